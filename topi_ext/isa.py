"""Instruction sets: one row each. No TVM here.

To add one: a row in `ISAS`, its intrinsic in `x86.py` (or a file of its own family), its rows in
`manifest.KERNELS`. Tests and benchmarks find it there.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Isa(NamedTuple):
    """features: LLVM features a target must have; flags: of /proc/cpuinfo; bits: vector width;
    mcpu: the plainest CPU that has them, to cap every compiler alike; prefers: fallback row;
    arch: the first part of a target's triple, where a feature's name does not settle it."""

    name: str
    features: tuple[str, ...]
    flags: tuple[str, ...]
    bits: int
    mcpu: str
    prefers: str | None
    arch: str = ""

    @property
    def target(self) -> str:
        """A TVM target for the row."""
        triples = {"": "", "armv7": " -mtriple=armv7a-linux-gnueabihf -mfloat-abi=hard"}
        triple = triples.get(self.arch, f" -mtriple={self.arch}-linux-gnu")
        return f"llvm{triple} -mcpu={self.mcpu}" if self.mcpu else f"llvm{triple}"


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
        Isa("armv7_neon", ("neon",), ("neon",), 128, "cortex-a7", "generic", "armv7"),
        Isa("neon", ("neon",), ("asimd",), 128, "cortex-a53", "generic", "aarch64"),
        Isa(
            "neon_dotprod", ("neon", "dotprod"), ("asimd", "asimddp"), 128, "cortex-a55", "neon", "aarch64"
        ),
        Isa(
            "neon_i8mm",
            ("neon", "dotprod", "i8mm"),
            ("asimd", "asimddp", "i8mm"),
            128,
            "neoverse-n2",
            "neon_dotprod",
            "aarch64",
        ),
    )
}


def arch_of(triple: str) -> str:
    """The architecture of an LLVM triple, in Linux's spelling; of this machine if there is none."""
    arch = triple.split("-")[0] or platform.machine()
    if arch.startswith(("armv7", "thumbv7")):
        return "armv7"
    return {"arm64": "aarch64", "amd64": "x86_64"}.get(arch.lower(), arch)


def usable(name: str) -> list[str]:
    """The rows whose kernels run where ``name`` runs, best first."""
    rows: list[str] = []
    row: Isa | None = ISAS[name]
    while row is not None:
        rows.append(row.name)
        row = ISAS.get(row.prefers or "")
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


#: LLVM's features of x86 whose instructions a compiler may choose by itself -> the flag of /proc/cpuinfo
FLAG_OF = {
    **{name: name for name in (
        "adx", "avx", "avx2", "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512ifma", "avx512vbmi",
        "avx512vl", "bmi2", "f16c", "fma", "fma4", "gfni", "movbe", "popcnt", "sse4a", "tbm", "vaes",
        "vpclmulqdq", "xop",
    )},
    "avx512bf16": "avx512_bf16", "avx512bitalg": "avx512_bitalg", "avx512fp16": "avx512_fp16",
    "avx512vbmi2": "avx512_vbmi2", "avx512vnni": "avx512_vnni", "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512vp2intersect": "avx512_vp2intersect", "avxvnni": "avx_vnni", "avxifma": "avx_ifma",
    "amx-bf16": "amx_bf16", "amx-int8": "amx_int8", "amx-tile": "amx_tile", "bmi": "bmi1", "lzcnt": "abm",
    "sha": "sha_ni", "sse4.1": "sse4_1", "sse4.2": "sse4_2",
}  # fmt: skip


def lacking(features: Iterable[str]) -> list[str]:
    """Those of an x86 CPU's LLVM ``features`` that this machine lacks although it calls itself that CPU: a
    virtual machine may hide instructions of its host. Without avx512f nothing of AVX-512 is named."""
    if not host_flags():
        return []
    missing = sorted(f for f in features if f in FLAG_OF and FLAG_OF[f] not in host_flags())
    return [f for f in missing if f == "avx512f" or not (f.startswith("avx512") and "avx512f" in missing)]
