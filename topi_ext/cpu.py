"""What this CPU has, asked of the CPU itself: by CPUID and XGETBV on x86, by the auxiliary vector on ARM.

``/proc/cpuinfo`` shows the host's flags to a program that qemu emulates, and CPUID alone names registers
that the operating system may not save. Names are Linux's, which `isa` and users know. No TVM here.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple


class Flags(NamedTuple):
    """names: as Linux spells them; none where nothing could be asked. source: who said so, in words.
    refused: those that the CPU has and this process may not use, as the kernel or a container refuses it
    (AMX's tiles); they are not among ``names``."""

    names: frozenset[str]
    source: str
    refused: frozenset[str] = frozenset()


#: (leaf, subleaf, register of eax, ebx, ecx, edx) -> bit -> Linux's name
CPUID: dict[tuple[int, int, int], dict[int, str]] = {
    (1, 0, 2): {0: "pni", 1: "pclmulqdq", 9: "ssse3", 12: "fma", 13: "cx16", 19: "sse4_1", 20: "sse4_2",
                22: "movbe", 23: "popcnt", 25: "aes", 28: "avx", 29: "f16c", 30: "rdrand"},
    (1, 0, 3): {25: "sse", 26: "sse2"},
    (7, 0, 1): {0: "fsgsbase", 3: "bmi1", 5: "avx2", 8: "bmi2", 16: "avx512f", 17: "avx512dq", 18: "rdseed",
                19: "adx", 21: "avx512ifma", 28: "avx512cd", 29: "sha_ni", 30: "avx512bw", 31: "avx512vl"},
    (7, 0, 2): {1: "avx512vbmi", 6: "avx512_vbmi2", 8: "gfni", 9: "vaes", 10: "vpclmulqdq",
                11: "avx512_vnni", 12: "avx512_bitalg", 14: "avx512_vpopcntdq"},
    (7, 0, 3): {8: "avx512_vp2intersect", 22: "amx_bf16", 23: "avx512_fp16", 24: "amx_tile",
                25: "amx_int8"},
    (7, 1, 0): {4: "avx_vnni", 5: "avx512_bf16", 21: "amx_fp16", 23: "avx_ifma"},
    (7, 1, 3): {4: "avx_vnni_int8", 5: "avx_ne_convert", 10: "avx_vnni_int16"},
    (0x80000001, 0, 2): {0: "lahf_lm", 5: "abm", 6: "sse4a", 8: "3dnowprefetch", 11: "xop", 16: "fma4",
                         21: "tbm"},
}  # fmt: skip
#: bits of XCR0 that the operating system sets when it saves those registers: ymm, zmm and masks, tiles
YMM, ZMM, TILES = 0x6, 0xE6, 0x60000
OSXSAVE = 27  # bit of ecx of leaf 1: XGETBV may be asked

#: names by bit of AT_HWCAP (16) and AT_HWCAP2 (26)
HWCAP = {
    "aarch64": (
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc "
        "dcpop sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg",
        "dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm "
        "svebf16 i8mm bf16 dgh rng bti mte",
    ),
    "arm": (
        "swp half thumb 26bit fastmult fpa vfp edsp java iwmmxt crunch thumbee neon vfpv3 vfpv3d16 tls "
        "vfpv4 idiva idivt vfpd32 lpae evtstrm",
        "aes pmull sha1 sha2 crc32 sb ssbs",
    ),
}
AT_HWCAP, AT_HWCAP2 = 16, 26
#: whether this process has 32-bit pointers, which a 64-bit machine may run
NARROW = struct.calcsize("P") == 4

# void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4]), and uint64_t xcr0(void), of the System V ABI
CODE = bytes.fromhex(
    "53 4989d0 89f8 89f1 0fa2"  # push rbx; mov r8, rdx; mov eax, edi; mov ecx, esi; cpuid
    "418900 41895804"  # mov [r8], eax; mov [r8 + 4], ebx
    "41894808 4189500c 5b c3"  # mov [r8 + 8], ecx; mov [r8 + 12], edx; pop rbx; ret
    "31c9 0f01d0 48c1e220 4809d0 c3"  # xor ecx, ecx; xgetbv; shl rdx, 32; or rax, rdx; ret
)
XCR0 = CODE.index(bytes.fromhex("31c9"))


def x86(cpuid: Callable[[int, int], tuple[int, ...]], xcr0: Callable[[], int]) -> frozenset[str]:
    """The flags by cpuid(leaf, subleaf) -> (eax, ebx, ecx, edx) and the operating system's XCR0."""
    basic, extended = cpuid(0, 0)[0], cpuid(0x80000000, 0)[0]
    subleaves = cpuid(7, 0)[0] if basic >= 7 else 0
    saved = xcr0() if cpuid(1, 0)[2] >> OSXSAVE & 1 else 0

    def found() -> Iterator[str]:
        for (leaf, subleaf, register), bits in CPUID.items():
            if leaf <= (extended if leaf >> 31 else basic) and (leaf != 7 or subleaf <= subleaves):
                value = cpuid(leaf, subleaf)[register]
                yield from (name for bit, name in bits.items() if value >> bit & 1)

    return frozenset(name for name in found() if saved & (needed := _registers(name)) == needed)


def _registers(name: str) -> int:
    """The bits of XCR0 that a flag's instructions need."""
    if name.startswith("avx512"):
        return ZMM
    if name.startswith("amx"):
        return TILES
    wide = name.startswith("avx") or name in ("fma", "fma4", "f16c", "xop", "vaes", "vpclmulqdq")
    return YMM if wide else 0


def _by_cpuid() -> frozenset[str]:
    """Raises OSError where memory that may be executed is refused."""
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as memory:
        memory.write(CODE)
        anchor = ctypes.c_char.from_buffer(memory)
        start = ctypes.addressof(anchor)
        ask = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(start)
        xcr0 = ctypes.CFUNCTYPE(ctypes.c_uint64)(start + XCR0)

        def cpuid(leaf: int, subleaf: int) -> tuple[int, ...]:
            out = (ctypes.c_uint32 * 4)()
            ask(leaf, subleaf, ctypes.addressof(out))
            return tuple(out)

        try:
            return x86(cpuid, xcr0)
        finally:
            del anchor  # the memory cannot be given back while it is held


def _by_auxiliary_vector(names: tuple[str, str]) -> frozenset[str]:
    """Raises AttributeError where the C library has no getauxval."""
    ask = ctypes.CDLL(None).getauxval
    ask.restype, ask.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return frozenset(
        name
        for at, known in zip((AT_HWCAP, AT_HWCAP2), names, strict=True)
        for bit, name in enumerate(known.split())
        if ask(at) >> bit & 1
    )


def _by_proc() -> Flags:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return Flags(frozenset(), "nobody")
    lines = [line for line in text.splitlines() if line.startswith(("flags", "Features"))]
    return Flags(frozenset(lines[0].split(":", 1)[1].split()) if lines else frozenset(), "/proc/cpuinfo")


#: arch_prctl of x86-64, what asks it for registers that a process does not have by itself, and AMX's tiles
ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XTILEDATA = 158, 0x1023, 18


def _ask_for_tiles() -> bool:
    """Whether Linux lets this process use AMX's tiles, once and for all of its threads."""
    ask = ctypes.CDLL(None).syscall
    ask.restype, ask.argtypes = ctypes.c_long, [ctypes.c_long] * 3
    return ask(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0


def allowed(found: Flags, ask: Callable[[], bool] = _ask_for_tiles) -> Flags:
    """The same without what ``ask`` is refused; it is called only where there are tiles to be asked for."""
    tiles = frozenset(name for name in found.names if name.startswith("amx"))
    if not tiles or ask():
        return found
    return found._replace(names=found.names - tiles, refused=tiles)


@functools.cache
def flags() -> Flags:
    """The flags of this CPU, each only if the operating system saves the registers that it needs; where
    these are AMX's, this process has asked for them and may use them."""
    return allowed(_told())


def _told() -> Flags:
    machine = platform.machine().lower()
    try:
        if machine in ("x86_64", "amd64") and not NARROW and hasattr(mmap, "PROT_EXEC"):
            return Flags(_by_cpuid(), "CPUID and XGETBV")
        if machine.startswith(("aarch64", "arm")):
            kind = "aarch64" if machine in ("aarch64", "arm64") and not NARROW else "arm"
            return Flags(_by_auxiliary_vector(HWCAP[kind]), "the auxiliary vector")
    except (OSError, AttributeError):
        found = _by_proc()
        return Flags(found.names, f"{found.source}, as this process may not ask the CPU itself")
    return _by_proc()
