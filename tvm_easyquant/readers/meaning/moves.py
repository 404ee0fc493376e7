"""Operators that move numbers, and those that choose among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..onnx_op import Call


RULES: dict[str, Callable[[Call], Any]] = {
    "Reshape": lambda call: call.t.reshape(call.x[0], call.shape),
}
