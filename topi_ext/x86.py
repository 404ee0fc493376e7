"""The x86 multiply instructions, as `direct.Dot` rows."""

from __future__ import annotations

import functools

import numpy as np

from .conv2d import Bound, ConvSpec, Refusal, lane_bound, pack
from .direct import Dot, broadcast_word
from .emit import const, pure, tir

#: vector bits -> (byte-pair multiply, word-pair multiply)
MULTIPLY = {
    256: ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"),
    512: ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"),
}
REGISTERS = {256: 7, 512: 14}  # accumulators of a tile that leave room for weights and temporaries


def word_pairs(bits: int):
    """vpmaddwd: int16 pairs multiplied and added into int32 lanes, which wrap."""
    lanes = bits // 32
    return lambda wrap, acc, x, w: wrap.add(acc, pure(f"int32x{lanes}", MULTIPLY[bits][1], x, w))


def _sum(parts):
    return functools.reduce(lambda a, b: a + b, parts)


def int16_dot(bits: int, depth: int) -> Dot:
    """u8 x s8 by vpmaddubsw; ``depth`` results are summed in int16 before one vpmaddwd by ones.

    vpmaddubsw saturates and the int16 sums wrap: legal only where `lane_proof` proves that
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

    return Dot(lanes, 4, "uint8", "int8", depth, broadcast_word(lanes), combine, REGISTERS[bits])


def lane_proof(spec: ConvSpec, dot: Dot, weight: np.ndarray) -> Bound | Refusal:
    """int16 lanes of `int16_dot` hold their products: weight int8 (R, S, C / groups, K)."""
    return lane_bound(pack(spec, weight, dot.lanes, dot.group), dot.depth, spec.data_max)


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

    return Dot(lanes, 2, "int16", "int16", 2, broadcast_word(lanes), combine, REGISTERS[bits])


def vnni_dot(bits: int) -> Dot:
    """u8 x s8 by vpdpbusd: four products straight into int32, exact for any operands."""
    lanes = bits // 32

    def combine(acc, xs, ws):
        for x, w in zip(xs, ws, strict=True):
            data = tir.reinterpret(f"uint8x{4 * lanes}", x)
            acc = pure(f"int32x{lanes}", f"llvm.x86.avx512.vpdpbusd.{bits}", acc, data, w)
        return acc

    return Dot(lanes, 4, "uint8", "int8", 1, broadcast_word(lanes), combine, 14)
