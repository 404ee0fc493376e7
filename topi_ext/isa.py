"""Instruction sets: one row each. No TVM here.

To add one: a row in `ISAS`, its intrinsic in `x86.py` (or a file of its own family), its rows in
`manifest.KERNELS`. Tests and benchmarks find it there.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple


class Isa(NamedTuple):
    """features: LLVM features a target must have; flags: of /proc/cpuinfo; bits: vector width;
    mcpu: the plainest CPU that has them, to cap every compiler alike; prefers: fallback row."""

    name: str
    features: tuple[str, ...]
    flags: tuple[str, ...]
    bits: int
    mcpu: str
    prefers: str | None


ISAS = {
    row.name: row
    for row in (
        Isa("generic", (), (), 128, "", None),
        Isa("avx2", ("avx2",), ("avx2",), 256, "core-avx2", "generic"),
        Isa(
            "avx512bw",
            ("avx512bw", "avx512vl"),
            ("avx512bw", "avx512vl"),
            512,
            "skylake-avx512",
            "avx2",
        ),
        Isa(
            "avx512vnni",
            ("avx512bw", "avx512vl", "avx512vnni"),
            ("avx512bw", "avx512vl", "avx512_vnni"),
            512,
            "cascadelake",
            "avx512bw",
        ),
    )
}


def usable(name: str) -> list[str]:
    """The rows whose kernels run where ``name`` runs, best first."""
    rows = []
    while name is not None:
        rows.append(name)
        name = ISAS[name].prefers
    return rows


@functools.cache
def host_flags() -> frozenset[str]:
    """The CPU flags of this machine as Linux names them; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    lines = [line for line in text.splitlines() if line.startswith(("flags", "Features"))]
    return frozenset(lines[0].split(":", 1)[1].split()) if lines else frozenset()


def host_has(name: str) -> bool:
    """Whether this machine can run kernels of the row ``name``."""
    return set(ISAS[name].flags) <= host_flags()
