"""The x86 multiply instructions, as `direct.Dot` rows."""

from __future__ import annotations

import functools

from ..emit import const, dtype_of, lanes_of, pick, pure, tir
from ..epilogue import fence
from ..kernels.depthwise import PairOps
from ..kernels.direct import Dot, broadcast_word

#: vector bits -> (byte-pair multiply, word-pair multiply)
MULTIPLY = {
    128: ("llvm.x86.ssse3.pmadd.ub.sw.128", "llvm.x86.sse2.pmadd.wd"),
    256: ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"),
    512: ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"),
}
#: vector bits -> (float32 to int32 half to even, int32 to int16, int16 to uint8, both saturating)
NARROW = {
    128: ("llvm.x86.sse2.cvtps2dq", "llvm.x86.sse2.packssdw.128", "llvm.x86.sse2.packuswb.128"),
    256: ("llvm.x86.avx.cvt.ps2dq.256", "llvm.x86.avx2.packssdw", "llvm.x86.avx2.packuswb"),
    512: ("llvm.x86.avx512.mask.cvtps2dq.512", "llvm.x86.avx512.packssdw.512",
          "llvm.x86.avx512.packuswb.512"),
}  # fmt: skip
REGISTERS = {256: 7, 512: 14}  # accumulators of a tile that leave room for weights and temporaries


def word_pairs(bits: int):
    """vpmaddwd: int16 pairs multiplied and added into int32 lanes, which wrap."""
    lanes = bits // 32
    return lambda wrap, acc, x, w: wrap.add(acc, pure(f"int32x{lanes}", MULTIPLY[bits][1], x, w))


def narrow_four(values, zero_point, lo, hi):
    """Four float32 vectors -> stored bytes by packssdw and packuswb, in `depthwise.PairOps`' order.

    cvtps2dq rounds half to even. What is too large for int32 would turn negative, so that limit comes
    first; what is too small becomes -2**31, and the saturating packs carry it to the lower limit.
    """
    lanes = lanes_of(dtype_of(values[0]))[1]
    convert, to_words, to_bytes = NARROW[32 * lanes]
    top, wide = const(float(hi - zero_point), f"float32x{lanes}"), f"int16x{2 * lanes}"
    masked = (const(0, f"int32x{lanes}"), const(-1, "int16"), const(4, "int32")) if lanes == 16 else ()
    steps = [pure(f"int32x{lanes}", convert, tir.min(x, top), *masked) for x in values]
    words = [pure(wide, to_words, *steps[i : i + 2]) for i in (0, 2)]
    if zero_point:
        name = f"llvm.sadd.sat.v{2 * lanes}i16"
        words = [pure(wide, name, w, const(zero_point, wide)) for w in words]
    packed = tir.reinterpret(f"uint8x{4 * lanes}", pure(f"int8x{4 * lanes}", to_bytes, *words))
    return tir.max(packed, const(lo, f"uint8x{4 * lanes}")) if lo else packed


def narrow(values, zero_point, lo, hi):
    """`direct.Writer`'s narrow on 256 bits: vectors of eight, four at a time."""
    done = []
    for first in range(0, len(values), 4):
        four = [*values[first : first + 4], *[values[-1]] * 3][:4]
        packed = tir.reinterpret("int32x8", narrow_four(four, zero_point, lo, hi))
        # the quads of a vector lie in the two halves; without the fence LLVM makes a pack for each vector
        ordered = fence(tir.reinterpret("float32x8", pick([packed], (0, 4, 1, 5, 2, 6, 3, 7))))
        halves = tir.reinterpret("float64x4", ordered)
        done += [tir.reinterpret("uint8x8", pick([halves], [i])) for i in range(4)]
    return done[: len(values)]


def pair_ops(bits: int) -> PairOps:
    """Depthwise kernels' instructions: vpmaddubsw; widening by vpmaddwd with (1, 0) and (0, 1)."""

    def multiply(data, weight):
        lanes = lanes_of(dtype_of(weight))[1]
        data = tir.reinterpret(f"int8x{lanes}", data)
        return pure(f"int16x{lanes // 2}", MULTIPLY[8 * lanes][0], data, weight)

    def widen(x):
        lanes = lanes_of(dtype_of(x))[1]
        units = (const(unit, f"int32x{lanes // 2}") for unit in (1, 2**16))
        ones = (tir.reinterpret(f"int16x{lanes}", u) for u in units)
        return [pure(f"int32x{lanes // 2}", MULTIPLY[16 * lanes][1], x, one) for one in ones]

    return PairOps(bits // 8, multiply, widen, narrow_four)


def _sum(parts):
    return functools.reduce(lambda a, b: a + b, parts)


def int16_dot(bits: int, depth: int) -> Dot:
    """u8 x s8 by vpmaddubsw; ``depth`` results are summed in int16 before one vpmaddwd by ones.

    vpmaddubsw saturates and the int16 sums wrap: legal only where `proofs.lane_proof` proves that
    neither happens. 9 instructions per 128 multiply-accumulates at depth 4 (256 bit).
    """
    lanes = bits // 32
    byte_pairs, word_pairs = MULTIPLY[bits]

    def combine(acc, xs, ws):
        products = [
            pure(f"int16x{2 * lanes}", byte_pairs, tir.reinterpret(f"int8x{4 * lanes}", x), w)
            for x, w in zip(xs, ws, strict=True)
        ]
        ones = const(1, f"int16x{2 * lanes}")
        return acc + pure(f"int32x{lanes}", word_pairs, _sum(products), ones)

    return Dot(lanes, 4, "uint8", "int8", depth, broadcast_word(lanes), combine, REGISTERS[bits],
               narrow=narrow if bits == 256 else None)  # fmt: skip


def int32_dot(bits: int) -> Dot:
    """int16 x int16 by vpmaddwd, exact for any uint8 data and int8 weights (widened beforehand)."""
    lanes = bits // 32
    word_pairs = MULTIPLY[bits][1]

    def combine(acc, xs, ws):
        products = [
            pure(f"int32x{lanes}", word_pairs, tir.reinterpret(f"int16x{2 * lanes}", x), w)
            for x, w in zip(xs, ws, strict=True)
        ]
        return _sum([acc, *products])

    return Dot(lanes, 2, "int16", "int16", 2, broadcast_word(lanes), combine, REGISTERS[bits],
               narrow=narrow if bits == 256 else None)  # fmt: skip


def vnni_dot(bits: int) -> Dot:
    """u8 x s8 by vpdpbusd: four products straight into int32, exact for any operands."""
    lanes = bits // 32

    def combine(acc, xs, ws):
        for x, w in zip(xs, ws, strict=True):
            data = tir.reinterpret(f"uint8x{4 * lanes}", x)
            acc = pure(f"int32x{lanes}", f"llvm.x86.avx512.vpdpbusd.{bits}", acc, data, w)
        return acc

    return Dot(lanes, 4, "uint8", "int8", 1, broadcast_word(lanes), combine, 14)
