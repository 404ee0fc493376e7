"""How long a kernel takes for a layer: a linear model of its work, fitted from measurements. No TVM here.

A kernel's ``work(spec)`` counts what it does in millions: multiply-accumulates with all padding, tiles,
outputs, elements copied, weights read. ``costs.json`` holds microseconds per million of each, fitted by
``benchmarks/kernels.py`` to its own stored measurements; the CPU they were made on is named in it. Only the
order of a layer's kernels matters here, and that carries over to CPUs of the same kind; a tuning record of
the CPU at hand outranks it (`manifest.plan`).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

COSTS = Path(__file__).with_name("costs.json")


@functools.cache
def costs() -> dict[str, tuple[float, ...]]:
    """Microseconds for one call and per million of each kind of work, by kernel name."""
    if not COSTS.exists():
        return {}
    stored = json.loads(COSTS.read_text(encoding="utf-8"))
    return {name: tuple(values) for name, values in stored["kernels"].items()}


def estimate(kernel: str, work: Sequence[float]) -> float | None:
    """Microseconds of one call; None for a kernel nobody has measured."""
    known = costs().get(kernel)
    if known is None:
        return None
    call, *each = known
    return call + sum(c * w for c, w in zip(each, work, strict=True))
