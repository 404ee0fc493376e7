"""The multiply instructions of ARM (NEON), as `direct.Dot` rows and for Winograd.

What is written with LLVM's aarch64 intrinsics is for 64-bit ARM; `word_dot` is plain vector arithmetic that
becomes smlal there and vmlal on 32-bit ARM.

The direct kernels read 16 consecutive inputs of a pixel as one vector and multiply it with the same 16
inputs' weights of four output channels; each channel keeps four partial sums, added up at the end. (The
layout of x86, one group of inputs broadcast to lanes of output channels, needs twice the cycles here.)

NEON multiplies signed bytes only. Data up to 127 is read as it is; data up to 255 has its top bit
flipped, which makes it ``q - 128``, and the bias takes ``128 * sum(w)`` (`packing.fold_zero_point`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from ..emit import const, dtype_of, lanes_of, part, pick, pure, tir
from ..isa import Isa
from ..kernels.direct import Dot
from ..kernels.winograd_conv import WordPairs
from ..problem import ConvSpec

LANES = 4  # output channels of a block
GROUP = 16  # inputs of a vector
OFFSET = 128  # subtracted from data that does not fit int8


def data_offset(spec: ConvSpec) -> int:
    """What the kernels of signed bytes subtract from the data to make it int8: 0 or 128."""
    return OFFSET if spec.data_max > 127 else 0


def join(parts):
    """Vectors of the same type, one after the other."""
    lanes = lanes_of(dtype_of(parts[0]))[1]
    return pick(parts, range(lanes * len(parts)))


def _signed(spec: ConvSpec):
    """uint8x16 -> int8x16, minus the offset."""
    if data_offset(spec):
        return lambda x: tir.reinterpret(f"int8x{GROUP}", x ^ const(OFFSET, dtype_of(x)))
    return lambda x: tir.reinterpret(f"int8x{GROUP}", x)


def _add_up(acc):
    """Four partial sums of four channels -> four sums, by pairwise adds."""
    a, b, c, d = (part(acc, 4 * i, 4) for i in range(4))

    def pairs(x, y):
        return pure("int32x4", "llvm.aarch64.neon.addp", x, y)

    return pairs(pairs(a, b), pairs(c, d))


def _dot(depth, load, multiply, pixels, offset) -> Dot:
    """A dot product along the inputs; multiply(acc of a channel, [x...], [w of the channel...]) -> acc."""

    def combine(acc, xs, ws):
        channels = []
        for o in range(LANES):
            own = [part(w, GROUP * o, GROUP) for w in ws]
            channels.append(multiply(part(acc, 4 * o, 4), xs, own))
        return join(channels)

    return Dot(LANES, GROUP, "uint8", "int8", depth, load, combine, pixels, 4, _add_up, offset)


def widening_dot(row: Isa, depth: int) -> Callable:
    """dot(spec): s8 x s8 by smull and smlal into int16, ``2 * depth`` products a lane, then one sadalp.

    The int16 sums wrap: legal only where `proofs.chain_proof` proves that they do not.
    """

    def multiply(acc, xs, ws):
        products = [
            pure("int16x8", "llvm.aarch64.neon.smull", part(x, half, 8), part(w, half, 8))
            for x, w in zip(xs, ws, strict=True)
            for half in (0, 8)
        ]
        chain = functools.reduce(lambda a, b: a + b, products)
        return acc + pure("int32x4", "llvm.aarch64.neon.saddlp", chain)

    return lambda spec: _dot(
        depth, _signed(spec), multiply, row.tiles[f"chain of {depth}"], data_offset(spec)
    )


def _quads(name: str) -> Callable:
    """multiply(acc, xs, ws) by an instruction that adds four byte products to an int32 lane."""

    def multiply(acc, xs, ws):
        for x, w in zip(xs, ws, strict=True):
            acc = pure("int32x4", f"llvm.aarch64.neon.{name}", acc, x, w)
        return acc

    return multiply


def sdot_dot(row: Isa) -> Callable:
    """dot(spec): s8 x s8 by sdot, four products straight into int32, exact for any operands."""
    return lambda spec: _dot(1, _signed(spec), _quads("sdot"), row.tiles["quads"], data_offset(spec))


def usdot_dot(row: Isa) -> Dot:
    """u8 x s8 by usdot, exact for any operands. The int8 matrix multiply extension brings it: data up to
    255 needs no offset. The extension's smmla, which multiplies two pixels at once, is not used."""
    return _dot(1, lambda x: x, _quads("usdot"), row.tiles["quads"], 0)


def word_dot(row: Isa) -> Dot:
    """int16 x int16 by smlal into int32, exact for any uint8 data and int8 weights, any channels."""
    lanes = 8

    def combine(acc, xs, ws):
        for x, w in zip(xs, ws, strict=True):
            acc = acc + x.astype(dtype_of(acc)) * w.astype(dtype_of(acc))
        return acc

    return Dot(lanes, 1, "int16", "int16", 1, lambda x: x.astype(f"int16x{lanes}"), combine,
               row.tiles["words"])  # fmt: skip


#: `WordPairs`: a part of a core's own cache, as many boards have no other
DATA_BYTES = 400_000


def word_pairs(row: Isa) -> WordPairs:
    """acc + two products a lane by smlal: x holds the pair in every 32-bit lane, w as `split_pairs`."""

    def multiply(wrap, acc, x, w):
        for i in (0, 1):
            value = pick([x], [i] * 4).astype("int32x4")
            acc = wrap.add(acc, part(w, 4 * i, 4).astype("int32x4") * value)
        return acc

    return WordPairs(row.lanes, row.tiles["winograd"], multiply, DATA_BYTES, order=split_pairs)


def split_pairs(packed: np.ndarray) -> np.ndarray:
    """`winograd.pack` with the pair outside the four output channels of a vector: the same shape.

    packed: int8 (blocks, r * r, pairs, lanes, 2), lanes a multiple of 4.
    """
    blocks, positions, pairs, lanes, two = packed.shape
    quads = packed.reshape(blocks, positions, pairs, lanes // 4, 4, two)
    return np.ascontiguousarray(np.moveaxis(quads, -1, -2)).reshape(packed.shape)
