"""Instruction sets: one row each, with all that a kernel must know of it. No TVM here.

To add one: a row in `ISAS`, its multiply in `targets` (a file of its own for a new family), its rows in
`manifest.KERNELS`. No kernel looks a number up by the width of a vector. Tests and benchmarks find it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from . import cpu
from .errors import KernelError


class Vectors(NamedTuple):
    """LLVM's names of the multiplies and packs of x86 on vectors of ``bits``.

    byte_pairs: pmaddubsw, u8 x s8 added in pairs, saturating; word_pairs: pmaddwd, s16 x s16 added in
    pairs; to_int32: float32 to int32, half to even; to_words, to_bytes: int32 to int16 to uint8,
    saturating; saturated: int32 to int8, saturating, "" where there is none. permute: float32 lanes chosen
    by the last bits of int32 lanes, permute_two: of two vectors; "" where there is none.
    """

    bits: int
    byte_pairs: str
    word_pairs: str
    to_int32: str
    to_words: str
    to_bytes: str
    saturated: str = ""
    permute: str = ""
    permute_two: str = ""


SSSE3 = Vectors(
    128, "llvm.x86.ssse3.pmadd.ub.sw.128", "llvm.x86.sse2.pmadd.wd",
    "llvm.x86.sse2.cvtps2dq", "llvm.x86.sse2.packssdw.128", "llvm.x86.sse2.packuswb.128",
)  # fmt: skip
AVX2 = Vectors(
    256, "llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd",
    "llvm.x86.avx.cvt.ps2dq.256", "llvm.x86.avx2.packssdw", "llvm.x86.avx2.packuswb",
    permute="llvm.x86.avx2.permps",
)  # fmt: skip
AVX512 = Vectors(
    512, "llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512",
    "llvm.x86.avx512.mask.cvtps2dq.512", "llvm.x86.avx512.packssdw.512", "llvm.x86.avx512.packuswb.512",
    "llvm.x86.avx512.mask.pmovs.db.512",
    "llvm.x86.avx512.permvar.sf.512", "llvm.x86.avx512.vpermi2var.ps.512",
)  # fmt: skip


@dataclass(frozen=True)
class Isa:
    """One instruction set.

    features: LLVM features a target must have; flags: what Linux calls them; mcpu: the plainest CPU that
    has them, to cap every compiler alike; falls_back_to: the row whose kernels run here as well; arch: the
    first part of a target's triple, where a feature's name does not settle it.

    registers: vector registers; bits: of one; None: the multiply has no vectors (AMX). tiles: what a kernel
    keeps in registers without a spill, by multiply: accumulators of a direct kernel (those of float32 as
    "float"), in how many "vectors" of a pixel, if not one; int16 "sums" of a chain kernel; accumulators of
    a bilinear one as "products"; tiles of Winograd's.
    vectors: x86's instructions, widest first. narrows: the direct kernels pack four vectors of outputs to
    bytes at once (`targets.x86.narrow`). byte_dots: its multiply adds products of any bytes straight into
    int32, so that 8 bits cost what 7 do. ran: its kernels have run on such a CPU; what was only compiled is
    for those who name such a target (`hidden`).
    """

    name: str
    features: tuple[str, ...]
    flags: tuple[str, ...]
    mcpu: str
    falls_back_to: str | None
    arch: str = ""
    registers: int = 0
    bits: int | None = None
    tiles: Mapping[str, int] = field(default_factory=dict)
    vectors: tuple[Vectors, ...] = ()
    narrows: bool = False
    byte_dots: bool = False
    ran: bool = True

    @property
    def target(self) -> str:
        """A TVM target for the row."""
        triples = {"": "", "armv7": " -mtriple=armv7a-linux-gnueabihf -mfloat-abi=hard"}
        triple = triples.get(self.arch, f" -mtriple={self.arch}-linux-gnu")
        return f"llvm{triple} -mcpu={self.mcpu}" if self.mcpu else f"llvm{triple}"

    @property
    def lanes(self) -> int:
        """32-bit lanes of a vector. Raises KernelError where there are no vectors."""
        if self.bits is None:
            raise KernelError(f"{self.name} has no vectors to count lanes of")
        return self.bits // 32

    def vectors_of(self, bits: int) -> Vectors:
        """The instructions for vectors of ``bits``: the row's own width, or less at the end of a map.

        Raises KernelError where the row has none.
        """
        for vectors in self.vectors:
            if vectors.bits == bits:
                return vectors
        raise KernelError(f"{self.name} has no instructions for vectors of {bits} bits")


#: the architecture of the rows that name none and fall back on another
X86 = "x86_64"
ISAS = {
    row.name: row
    for row in (
        Isa("generic", (), (), "", None, bits=128, tiles={"plain": 6, "float": 8}),
        Isa(
            "avx2", ("avx2", "fma"), ("avx2", "fma"), "core-avx2", "generic",
            registers=16, bits=256, tiles={"direct": 7, "sums": 12, "winograd": 4, "float": 12},
            vectors=(AVX2, SSSE3), narrows=True,
        ),
        Isa(
            "avxvnni", ("avx2", "fma", "avxvnni"), ("avx2", "fma", "avx_vnni"), "alderlake", "avx2",
            registers=16, bits=256, tiles={"direct": 12, "vectors": 2, "quads": 2}, vectors=(AVX2, SSSE3),
            narrows=True, byte_dots=True, ran=False,
        ),
        Isa(
            "avx512bw", ("avx512bw", "avx512vl"), ("avx512bw", "avx512vl"), "skylake-avx512", "avx2",
            registers=32, bits=512, tiles={"direct": 14, "winograd": 8, "float": 28},
            vectors=(AVX512, AVX2, SSSE3),
        ),
        Isa(
            "avx512vnni", ("avx512bw", "avx512vl", "avx512vnni"), ("avx512bw", "avx512vl", "avx512_vnni"),
            "cascadelake", "avx512bw",
            registers=32, bits=512, tiles={"direct": 14, "products": 28, "quads": 4, "winograd": 8},
            vectors=(AVX512, AVX2, SSSE3), byte_dots=True,
        ),
        Isa(
            "amx", ("avx512bw", "avx512vl", "avx512vnni", "amx-tile", "amx-int8"),
            ("avx512bw", "avx512vl", "avx512_vnni", "amx_tile", "amx_int8"), "sapphirerapids", "avx512vnni",
            byte_dots=True, ran=False,
        ),
        Isa(
            "armv7_neon", ("neon",), ("neon",), "cortex-a7", "generic", "armv7",
            registers=16, bits=128, tiles={"words": 6},
        ),
        Isa(
            "neon", ("neon",), ("asimd",), "cortex-a53", "generic", "aarch64",
            registers=32, bits=128, tiles={"chain of 1": 3, "chain of 2": 2, "chain of 4": 2, "words": 6,
                                           "winograd": 8, "float": 24},
        ),
        Isa(
            "neon_dotprod", ("neon", "dotprod"), ("asimd", "asimddp"), "cortex-a55", "neon", "aarch64",
            registers=32, bits=128, tiles={"quads": 6}, byte_dots=True,
        ),
        Isa(
            "neon_i8mm", ("neon", "dotprod", "i8mm"), ("asimd", "asimddp", "i8mm"), "neoverse-n2",
            "neon_dotprod", "aarch64", registers=32, bits=128, tiles={"quads": 6}, byte_dots=True,
        ),
    )
}  # fmt: skip


def arch_of(triple: str) -> str:
    """The architecture of an LLVM triple, in Linux's spelling; of this process if there is none."""
    arch = triple.split("-", maxsplit=1)[0] or platform.machine()
    if arch.startswith(("armv7", "armv8l", "thumbv7")) or (not triple and arch == "aarch64" and cpu.NARROW):
        return "armv7"
    return {"arm64": "aarch64", "amd64": "x86_64"}.get(arch.lower(), arch)


def usable(name: str) -> list[str]:
    """The rows whose kernels run where ``name`` runs, best first."""
    rows, row = [name], ISAS[name]
    while row.falls_back_to is not None:
        row = ISAS[row.falls_back_to]
        if row.name in rows:
            raise KernelError(f"{row.name} falls back on itself: {' -> '.join([*rows, row.name])}")
        rows.append(row.name)
    return rows


def best(has_feature: Callable[[str], bool], arch: str) -> str:
    """The row for a CPU of ``arch`` (as `arch_of` spells it) that has these LLVM features: of the rows that
    run on it the one with the longest chain of fall-backs, whatever their order.

    Raises KernelError where two are equally far: one of them must fall back on the other.
    """
    here = [row for row in ISAS.values() if row.arch in ("", arch) and all(map(has_feature, row.features))]
    length = {row.name: len(usable(row.name)) for row in here}
    longest = [name for name, n in length.items() if n == max(length.values())]
    if len(longest) > 1:
        raise KernelError(f"{' and '.join(longest)} are equally good: one must fall back on the other")
    return longest[0]


def classes(name: str) -> list[str]:
    """The rows of the architecture that the row ``name`` is of, in order."""
    arch = ISAS[name].arch
    return [row.name for row in ISAS.values() if row.arch == arch or row.falls_back_to is None]


def named(names: str | Iterable[str]) -> list[Isa]:
    """The rows of these names, or of a text with commas, in order and each once.

    Raises KernelError for a name that is none, with the list of those that there are, and for rows of two
    architectures: there is no CPU, and no package, of both.
    """
    found: dict[str, Isa] = {}
    for name in [part.strip() for part in names.split(",")] if isinstance(names, str) else names:
        if name not in ISAS:
            raise KernelError(f"there is no instruction set {name!r}; use {', '.join(ISAS)}")
        found[name] = ISAS[name]
    archs = sorted({row.arch or (X86 if row.falls_back_to else arch_of("")) for row in found.values()})
    if len(archs) != 1:
        why = f"{', '.join(found)} are of {' and '.join(archs)}" if found else "none is named"
        raise KernelError(f"instruction sets are of one architecture: {why}; use some of {', '.join(ISAS)}")
    return list(found.values())


def host_flags() -> frozenset[str]:
    """The CPU's flags that the system enabled, as Linux names them (`cpu.flags`); empty if nobody says."""
    return cpu.flags().names


def host_has(name: str) -> bool:
    """Whether this machine can run kernels of the row ``name``."""
    return set(ISAS[name].flags) <= host_flags()


def of_host() -> list[str]:
    """The rows that this machine runs, the plainest first."""
    arch = arch_of("")
    return [row.name for row in ISAS.values() if row.arch in ("", arch) and host_has(row.name)]


#: LLVM's features of x86 whose instructions a compiler may choose by itself -> the flag of Linux
FLAG_OF = {
    **{name: name for name in (
        "adx", "avx", "avx2", "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512ifma", "avx512vbmi",
        "avx512vl", "bmi2", "f16c", "fma", "fma4", "gfni", "movbe", "popcnt", "sse4a", "ssse3", "tbm",
        "vaes", "vpclmulqdq", "xop",
    )},
    "avx512bf16": "avx512_bf16", "avx512bitalg": "avx512_bitalg", "avx512fp16": "avx512_fp16",
    "avx512vbmi2": "avx512_vbmi2", "avx512vnni": "avx512_vnni", "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512vp2intersect": "avx512_vp2intersect", "avxvnni": "avx_vnni", "avxifma": "avx_ifma",
    "avxvnniint8": "avx_vnni_int8", "avxvnniint16": "avx_vnni_int16", "avxneconvert": "avx_ne_convert",
    "amx-bf16": "amx_bf16", "amx-int8": "amx_int8", "amx-tile": "amx_tile", "bmi": "bmi1", "lzcnt": "abm",
    "sha": "sha_ni", "sse3": "pni", "sse4.1": "sse4_1", "sse4.2": "sse4_2",
}  # fmt: skip
#: the same of ARM, by architecture
FLAG_OF_ARM = {
    "aarch64": {
        "bf16": "bf16", "complxnum": "fcma", "crc": "crc32", "dotprod": "asimddp", "fp16fml": "asimdfhm",
        "fptoint": "frint", "fullfp16": "asimdhp", "i8mm": "i8mm", "jsconv": "jscvt", "lse": "atomics",
        "neon": "asimd", "rcpc": "lrcpc", "rdm": "asimdrdm", "sha3": "sha3", "sve": "sve", "sve2": "sve2",
    },
    "armv7": {
        "hwdiv": "idivt", "hwdiv-arm": "idiva", "neon": "neon", "vfp3d16": "vfpv3", "vfp4d16": "vfpv4",
    },
}  # fmt: skip


def flag_names(arch: str) -> Mapping[str, str]:
    """LLVM's features of ``arch`` that decide whether code runs -> what Linux calls them."""
    return FLAG_OF if arch == X86 else FLAG_OF_ARM.get(arch, {})


def lacking(features: Iterable[str]) -> list[str]:
    """Those of a CPU's LLVM ``features`` that this machine lacks although it calls itself that CPU: a
    virtual machine may hide instructions of its host. Without avx512f nothing of AVX-512 is named."""
    if not host_flags():
        return []
    names = flag_names(arch_of(""))
    missing = sorted(f for f in features if f in names and names[f] not in host_flags())
    return [f for f in missing if f == "avx512f" or not (f.startswith("avx512") and "avx512f" in missing)]


def hidden(features: Iterable[str]) -> list[str]:
    """Those of a CPU's LLVM ``features`` that the target of this machine does without: what is `lacking`,
    and what only rows need whose kernels have never run."""
    features = list(features)
    tried = {f for row in ISAS.values() if row.ran for f in row.features}
    untried = {f for row in ISAS.values() if not row.ran for f in row.features} - tried
    return sorted({*lacking(features), *untried.intersection(features)})


def refusal(features: Iterable[str], arch: str) -> str:
    """Why code of ``arch`` that may use these LLVM features cannot run here, as the end of a sentence that
    begins with what it is; "" if it can, or if nobody says what this CPU has."""
    here = arch_of("")
    if arch != here:
        return f"was made for another architecture: its code is {arch}'s, this machine's CPU is {here}"
    known = flag_names(arch)
    missing = lacking(features) + [f for f in sorted(features) if f not in known and host_flags()]
    if not missing:
        return ""
    has = ", ".join(of_host())
    return f"needs {', '.join(missing)}, which this CPU lacks; of the instruction sets it has {has}"
