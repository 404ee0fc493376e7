"""What every instruction computes that `x86` and `arm` name, in numpy: saturating and wrapping as they do.

A test compares each on the corners of its operands' ranges with the hardware, or with an emulator of it; so
a kernel of a new one can be trusted where it cannot be run. No TVM here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..isa import AVX2, AVX512, SSSE3, Vectors


class Instruction(NamedTuple):
    """One instruction under LLVM's ``name``: operands and result are vector types as LLVM has them, whose
    int8 holds unsigned bytes as well; meaning(arrays of (n, lanes)) -> array of (n, lanes). isa: a row that
    has it."""

    name: str
    isa: str
    operands: tuple[str, ...]
    result: str
    meaning: Callable


def _saturate(x, dtype):
    limits = np.iinfo(dtype)
    return np.clip(x, limits.min, limits.max).astype(dtype)


def _sums(x, count):
    """int64 sums of ``count`` neighbours."""
    return x.reshape(len(x), -1, count).astype(np.int64).sum(axis=2)


def byte_pairs(a, b):
    """pmaddubsw: u8 x s8, neighbours added; saturates at int16."""
    return _saturate(_sums(a.view(np.uint8).astype(np.int64) * b, 2), np.int16)


def word_pairs(a, b):
    """pmaddwd: s16 x s16, neighbours added; wraps at the one sum of four -2**15."""
    return _sums(a.astype(np.int64) * b, 2).astype(np.int32)


def to_int32(x):
    """cvtps2dq: half to even; -2**31 for what does not fit."""
    wide = np.rint(x.astype(np.float64))
    fits = (wide >= -(2.0**31)) & (wide < 2.0**31)
    return np.where(fits, wide, -(2.0**31)).astype(np.int32)


def _packed(dtype):
    """Two vectors, each saturated to half its width, in turns of 64 bits."""

    def meaning(a, b):
        halves = (_saturate(x, dtype).reshape(len(x), -1, 8 // np.dtype(dtype).itemsize) for x in (a, b))
        return np.stack(list(halves), axis=2).reshape(len(a), -1)

    return meaning


def add_saturated(a, b):
    return _saturate(a.astype(np.int64) + b, np.int16)


def _quads(unsigned):
    """Four byte products added to an int32 lane, which wraps; ``unsigned`` data or signed."""

    def meaning(acc, a, b):
        data = a.view(np.uint8) if unsigned else a
        return (acc + _sums(data.astype(np.int64) * b, 4)).astype(np.int32)

    return meaning


def tile_product(acc, a, b):
    """tdpbusd: tiles of 16 rows. A row of ``a`` has 16 words of four unsigned bytes, a row of ``b`` those
    four inputs' weights of 16 outputs; their products are added to int32, which wraps."""
    rows = a.view(np.uint8).reshape(len(a), 16, 1, 16, 4).astype(np.int64)
    columns = b.reshape(len(b), 1, 16, 16, 4).swapaxes(2, 3)
    return (acc + (rows * columns).sum(axis=(3, 4)).reshape(len(a), -1)).astype(np.int32)


def _pairs_of_vectors(a, b):
    """addp: neighbours of the one vector, then of the other; wraps."""
    return np.concatenate([_sums(a, 2), _sums(b, 2)], axis=1).astype(np.int32)


def fused(a, b, c):
    """vfmadd: ``a * b + c``, rounded once. float64 holds the product; what its sum leaves over makes the
    sum odd, so that float32 rounds it as it would the exact one."""
    with np.errstate(invalid="ignore", over="ignore"):
        product, c = a.astype(np.float64) * b, c.astype(np.float64)
        total = product + c
        more = total - product
        rest = (product - (total - more)) + (c - more)
        even = total.view(np.int64) % 2 == 0
        toward = np.nextafter(total, np.where(rest > 0, np.inf, -np.inf))
        odd = np.isfinite(total) & (rest != 0) & even
        return np.where(odd, toward, total).astype(np.float32)


def chosen(x, index):
    """vpermps: each lane by the last bits of an int32."""
    return np.take_along_axis(x, index % x.shape[1], axis=1)


def chosen_of_two(a, index, b):
    """vpermi2ps: the same of the lanes of two vectors."""
    return chosen(np.concatenate([a, b], axis=1), index)


def _of_vectors(vectors: Vectors, isa: str) -> list[Instruction]:
    bits = vectors.bits
    int8, int16 = f"int8x{bits // 8}", f"int16x{bits // 16}"
    int32, float32 = f"int32x{bits // 32}", f"float32x{bits // 32}"
    return [
        Instruction(vectors.byte_pairs, isa, (int8, int8), int16, byte_pairs),
        Instruction(vectors.word_pairs, isa, (int16, int16), int32, word_pairs),
        Instruction(vectors.to_int32, isa, (float32,), int32, to_int32),
        Instruction(vectors.to_words, isa, (int32, int32), int16, _packed(np.int16)),
        Instruction(
            vectors.to_bytes, isa, (int16, int16), int8, lambda a, b: _packed(np.uint8)(a, b).view(np.int8)
        ),
        Instruction(f"llvm.sadd.sat.v{bits // 16}i16", isa, (int16, int16), int16, add_saturated),
        Instruction(f"llvm.nearbyint.v{bits // 32}f32", isa, (float32,), float32, np.rint),
        *(
            Instruction(name, isa, (int32,), f"int8x{bits // 32}", lambda a: _saturate(a, np.int8))
            for name in (vectors.saturated,)
            if name
        ),
        *(
            Instruction(name, isa, operands, float32, function)
            for name, operands, function in (
                (vectors.permute, (float32, int32), chosen),
                (vectors.permute_two, (float32, int32, float32), chosen_of_two),
                (f"llvm.fma.v{bits // 32}f32" if vectors.permute else "", (float32,) * 3, fused),
            )
            if name
        ),
    ]


INSTRUCTIONS = {
    row.name: row
    for row in (
        *_of_vectors(SSSE3, "avx2"),
        *_of_vectors(AVX2, "avx2"),
        *_of_vectors(AVX512, "avx512bw"),
        Instruction("llvm.x86.avx512.vpdpbusd.256", "avxvnni", ("int32x8", "int8x32", "int8x32"),
                    "int32x8", _quads(unsigned=True)),
        Instruction("llvm.x86.avx512.vpdpbusd.512", "avx512vnni", ("int32x16", "int8x64", "int8x64"),
                    "int32x16", _quads(unsigned=True)),
        Instruction("llvm.x86.tdpbusd", "amx", ("int32x256", "int8x1024", "int8x1024"), "int32x256",
                    tile_product),
        Instruction("llvm.aarch64.neon.smull", "neon", ("int8x8", "int8x8"), "int16x8",
                    lambda a, b: a.astype(np.int16) * b),
        Instruction("llvm.aarch64.neon.saddlp", "neon", ("int16x8",), "int32x4",
                    lambda a: _sums(a, 2).astype(np.int32)),
        Instruction("llvm.aarch64.neon.addp", "neon", ("int32x4", "int32x4"), "int32x4", _pairs_of_vectors),
        Instruction("llvm.aarch64.neon.sdot", "neon_dotprod", ("int32x4", "int8x16", "int8x16"), "int32x4",
                    _quads(unsigned=False)),
        Instruction("llvm.aarch64.neon.usdot", "neon_i8mm", ("int32x4", "int8x16", "int8x16"), "int32x4",
                    _quads(unsigned=True)),
    )
}  # fmt: skip


def meaning(name: str) -> Callable:
    """The numpy meaning of LLVM's intrinsic ``name``."""
    return INSTRUCTIONS[name].meaning
