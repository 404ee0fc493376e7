"""How long a kernel takes for a layer: a linear model of its work, fitted from measurements. No TVM here.

A kernel's ``work(spec)`` counts what it does in millions: multiply-accumulates with all padding, tiles,
outputs, elements copied, weights read. ``costs/costs.json`` holds microseconds per million of each, fitted
by ``benchmarks/kernels.py`` to its own stored measurements; the CPU they were made on is named in it. Only
the order of a layer's kernels matters here, and that carries over to CPUs of the same kind; a tuning record
of the CPU at hand outranks it (`planner.choose`).

There are two sets: ``warm`` with the weights in the cache, and ``cold`` with the weights in memory, which
is where a network finds them that has more of them than `CACHE_BYTES`.

For 64-bit ARM nothing is measured. ``costs/cycles.json`` holds static cycle counts instead, by LLVM's
models of some cores: of the inner loops, so without memory and without the loops around them
(``benchmarks/arm.py``).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

COSTS = Path(__file__).parent / "costs" / "costs.json"
CYCLES = Path(__file__).parent / "costs" / "cycles.json"
CACHE_BYTES = 16_000_000  # of a last-level cache, what one network can count on


@functools.cache
def costs() -> dict[str, dict[str, list[float]]]:
    """{kernel: {"warm" or "cold": microseconds for one call and per million of each kind of work}}."""
    if not COSTS.exists():
        return {}
    return json.loads(COSTS.read_text(encoding="utf-8"))["kernels"]


def estimate(kernel: str, work: Sequence[float], cold: bool = False) -> float | None:
    """Microseconds of one call; None for a kernel nobody has measured. cold: its weights are in memory."""
    known = costs().get(kernel)
    if known is None:
        return None
    call, *each = known["cold" if cold else "warm"]
    return call + sum(c * w for c, w in zip(each, work, strict=True))


@functools.cache
def cycle_counts() -> dict[str, dict[str, list[float]]]:
    """{core, as LLVM calls it: {kernel: cycles per operation of each kind of work that is counted}}."""
    return json.loads(CYCLES.read_text(encoding="utf-8"))["cores"] if CYCLES.exists() else {}


def cycles(kernel: str, work: Sequence[float], core: str) -> float | None:
    """Cycles of one call, by static counts; None where there are none."""
    known = cycle_counts().get(core, {}).get(kernel)
    return None if known is None else 1e6 * sum(c * w for c, w in zip(known, work, strict=False))
