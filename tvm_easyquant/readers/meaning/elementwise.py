"""Operators that act on each number alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..onnx_op import Call


def _unary(name: str) -> Callable[[Call], Any]:
    return lambda call: call.t.unary(name, call.x[0])


def _binary(name: str) -> Callable[[Call], Any]:
    return lambda call: call.t.binary(name, *call.x)


RULES: dict[str, Callable[[Call], Any]] = {
    **{op: _unary(name) for op, name in {"Abs": "abs", "Erf": "erf", "Floor": "floor"}.items()},
    **{op: _binary(name) for op, name in {"Add": "add", "Sub": "subtract"}.items()},
}
