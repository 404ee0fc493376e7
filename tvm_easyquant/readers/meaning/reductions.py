"""Operators that reduce axes, and normalizations, which are made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..onnx_op import Call


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


RULES: dict[str, Callable[[Call], Any]] = {"ReduceSum": _reduce("sum")}
