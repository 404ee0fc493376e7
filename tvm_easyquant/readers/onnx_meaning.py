"""The float meaning of ONNX's operators, from its specification, over `Tensors`: one rule for every host.

A rule takes a `Call` and returns its output, or a tuple of all. It raises NotConstant for what it does not
know; such a node runs by `onnx.reference`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .onnx_op import Call, NotConstant


def _unary(name: str) -> Callable[[Call], Any]:
    return lambda call: call.t.unary(name, call.x[0])


def _binary(name: str) -> Callable[[Call], Any]:
    return lambda call: call.t.binary(name, *call.x)


def _axes(call: Call) -> list[int]:
    """The axes of a reduction: an attribute, from opset 13 or 18 on an input; none: all of them."""
    rank = len(call.x[0].shape)
    axes = call.get("axes")
    if axes is None:
        axes = call.known(1)
    if axes is None or not len(axes):
        return [] if call.get("noop_with_empty_axes") else list(range(rank))
    return sorted(int(axis) % rank for axis in axes)


def _reduce(name: str) -> Callable[[Call], Any]:
    def rule(call):
        return call.t.reshape(call.t.reduce(name, call.x[0], _axes(call)), call.shape)

    return rule


#: operator of ai.onnx -> its rule
RULES: dict[str, Callable[[Call], Any]] = {
    **{op: _unary(name) for op, name in {"Abs": "abs", "Erf": "erf", "Floor": "floor"}.items()},
    **{op: _binary(name) for op, name in {"Add": "add", "Sub": "subtract"}.items()},
    "ReduceSum": _reduce("sum"),
}

__all__ = ["RULES", "NotConstant", "np"]
