"""How long a kernel takes for a layer: a linear model of its work, fitted from measurements. No TVM here.

A kernel's ``work(spec)`` counts what it does in millions: multiply-accumulates with all padding, tiles,
outputs, elements copied, weights read. ``costs/CORE.json`` holds microseconds per million of each on a
core, as LLVM calls it, fitted by ``benchmarks/kernels.py`` to its own stored measurements. Only the order
of a layer's kernels matters here, and that carries over to other CPUs, so one core stands for those that
nobody measured; a tuning record of the CPU at hand outranks it (`planner.choose`).

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

COSTS = Path(__file__).parent / "costs"
CYCLES = COSTS / "cycles.json"
#: whose measurements stand for a core that has none of its own
USUAL = "znver4"
CACHE_BYTES = 16_000_000  # of a last-level cache, what one network can count on


def costs_of(core: str) -> Path:
    """The file of a core's costs, which need not exist; core: LLVM's name of a CPU."""
    return COSTS / f"{core}.json"


@functools.cache
def measured() -> frozenset[str]:
    """The cores that have costs."""
    return frozenset(file.stem for file in COSTS.glob("*.json") if file != CYCLES)


@functools.cache
def costs(core: str = USUAL) -> dict[str, dict[str, list[float]]]:
    """{kernel: {"warm" or "cold": microseconds for one call and per million of each kind of work}} on a
    core, or on `USUAL` if nobody has measured it."""
    if core not in measured():
        return costs() if core != USUAL else {}
    return json.loads(costs_of(core).read_text(encoding="utf-8"))["kernels"]


def estimate(kernel: str, work: Sequence[float], cold: bool = False, core: str = USUAL) -> float | None:
    """Microseconds of one call; None for a kernel nobody has measured. cold: its weights are in memory."""
    known = costs(core).get(kernel)
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
