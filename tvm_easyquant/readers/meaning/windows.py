"""Convolutions and pools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..onnx_op import Call

RULES: dict[str, Callable[[Call], Any]] = {}
