"""One rule per operator, for every host.

A rule takes a `Call` and returns its output, or a tuple of all. It raises NotConstant for what it does not
know; such a node runs by `onnx.reference`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..onnx_op import Call
from . import elementwise, moves, normalizations, products, recurrent, reductions, resizing, windows

#: operator of ai.onnx -> its rule
RULES: dict[str, Callable[[Call], Any]] = {
    **elementwise.RULES,
    **moves.RULES,
    **normalizations.RULES,
    **products.RULES,
    **recurrent.RULES,
    **reductions.RULES,
    **resizing.RULES,
    **windows.RULES,
}
