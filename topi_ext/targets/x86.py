"""The x86 multiply instructions, as `direct.Dot` rows, for depthwise and for Winograd.

Everything here is made for a row of `isa.ISAS`: its width, its registers, its instructions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from .. import epilogue
from ..chains import DEEP
from ..emit import address, const, dtype_of, effect, lanes_of, pick, pure, tir, with_lanes
from ..epilogue import Pieces, fence
from ..isa import Isa, Vectors
from ..kernels.bilinear_conv import ByteDots
from ..kernels.chain_conv import Chains
from ..kernels.depthwise import PairOps, QuadOps
from ..kernels.direct import Dot, Narrow, broadcast_word
from ..kernels.tile_conv import Tiles
from ..kernels.winograd_conv import WordPairs

#: `WordPairs`: a part of the last-level cache
DATA_BYTES = 2_000_000


def word_pairs(row: Isa) -> WordPairs:
    """vpmaddwd: int16 pairs multiplied and added into int32 lanes, which wrap. With VNNI LLVM makes one
    vpdpwssd of it and the add."""
    name, wide = row.vectors_of(32 * row.lanes).word_pairs, f"int32x{row.lanes}"

    def multiply(wrap, acc, x, w):
        return wrap.add(acc, pure(wide, name, x, w))

    return WordPairs(row.lanes, row.tiles["winograd"], multiply, DATA_BYTES, narrow(row), pieces(row),
                     apart=not row.byte_dots)  # fmt: skip


def pieces(row: Isa) -> Pieces:
    """vpermps of one vector, or of two at once."""

    def widest(lanes):
        return next((v for v in row.vectors if v.bits == 32 * lanes and v.permute), None)

    def count(lanes):
        vectors = widest(lanes)
        return 0 if vectors is None else lanes * (2 if vectors.permute_two else 1)

    def choose(parts, index):
        lanes = lanes_of(dtype_of(index))[1]
        dtype, vectors = with_lanes("float32", lanes), widest(lanes)
        if len(parts) == 2:
            return pure(dtype, vectors.permute_two, parts[0], index, parts[1])
        return pure(dtype, vectors.permute, parts[0], index)

    def each(steps):
        if lanes_of(dtype_of(steps[0]))[1] == 8 and row.narrows:
            return _in_fours(steps, four)
        return [x.astype(with_lanes("uint8", lanes_of(dtype_of(x))[1])) for x in steps]

    def four(steps):
        bytes_ = [x & const(255, dtype_of(x)) for x in steps]
        return _packed(row.vectors_of(32 * lanes_of(dtype_of(steps[0]))[1]), bytes_, 0)

    return Pieces(count, choose, each, four, 5 if row.registers > 16 else 4)


def narrow_four(vectors: Vectors, values, zero_point, lo, hi, bounded):
    """Four float32 vectors -> stored bytes by packssdw and packuswb, in `depthwise.PairOps`' order.

    cvtps2dq rounds half to even. What is too large for int32 would turn negative, so that limit comes
    first, but of values ``bounded`` by int32; what is too small becomes -2**31, and the saturating packs
    carry it to the lower limit.
    """
    lanes = vectors.bits // 32
    top = const(float(hi - zero_point), f"float32x{lanes}")
    masked: tuple = ()
    if ".mask." in vectors.to_int32:  # all lanes, rounded as the control register says
        masked = (const(0, f"int32x{lanes}"), const(-1, f"int{lanes}"), const(4, "int32"))
    below = values if bounded else [tir.min(x, top) for x in values]
    steps = [pure(f"int32x{lanes}", vectors.to_int32, x, *masked) for x in below]
    packed = _packed(vectors, steps, zero_point)
    packed = tir.min(packed, const(hi, dtype_of(packed))) if bounded and hi < 255 else packed
    return tir.max(packed, const(lo, dtype_of(packed))) if lo else packed


def _packed(vectors: Vectors, steps, zero_point):
    """Four int32 vectors -> bytes, saturated, in `depthwise.PairOps`' order."""
    lanes = vectors.bits // 32
    wide = f"int16x{2 * lanes}"
    words = [pure(wide, vectors.to_words, *steps[i : i + 2]) for i in (0, 2)]
    if zero_point:
        name = f"llvm.sadd.sat.v{2 * lanes}i16"
        words = [pure(wide, name, w, const(zero_point, wide)) for w in words]
    return tir.reinterpret(f"uint8x{4 * lanes}", pure(f"int8x{4 * lanes}", vectors.to_bytes, *words))


def narrow(row: Isa) -> Narrow | None:
    """The rounding of a row that has its own."""
    widest = row.vectors[0]
    if not row.narrows and not widest.saturated:
        return None

    def nearest(x):
        return pure(dtype_of(x), f"llvm.nearbyint.v{lanes_of(dtype_of(x))[1]}f32", x)

    return Narrow(_four_at_a_time(row.vectors_of(256)) if row.narrows else _saturating(widest), nearest)


def _four_at_a_time(vectors: Vectors) -> Callable:
    """Vectors of eight lanes, packed in fours."""

    def narrow(values, zero_point, lo, hi, bounded):
        return _in_fours(values, lambda four: narrow_four(vectors, four, zero_point, lo, hi, bounded))

    return narrow


def _in_fours(values, pack: Callable) -> list:
    """What pack(four vectors of eight lanes) makes, a vector of bytes for each of ``values``."""
    done = []
    for first in range(0, len(values), 4):
        four = [*values[first : first + 4], *[values[-1]] * 3][:4]
        packed = tir.reinterpret("int32x8", pack(four))
        # the quads of a vector lie in the two halves; without the fence LLVM packs each vector
        ordered = fence(tir.reinterpret("float32x8", pick([packed], (0, 4, 1, 5, 2, 6, 3, 7))))
        halves = tir.reinterpret("float64x4", ordered)
        done += [tir.reinterpret("uint8x8", pick([halves], [i])) for i in range(4)]
    return done[: len(values)]


def _saturating(vectors: Vectors) -> Callable:
    """Vectors of sixteen lanes, one by one. Of sums that are ``bounded`` vpmovsdb clips to -128..127 what
    float minima and maxima would, on the ports of the dot products."""

    def narrow(values, zero_point, lo, hi, bounded):
        of = bytes_of if bounded else rounded
        return [of(x, zero_point, lo, hi) for x in values]

    def rounded(x, zero_point, lo, hi):
        return epilogue.store_byte(epilogue.round_to_step(x, zero_point, lo, hi), zero_point)

    def bytes_of(x, zero_point, lo, hi):
        # of a zero point beyond a signed byte the sum could be, too
        offset, byte = (128, "uint8x16") if max(hi, zero_point) > 127 else (0, "int8x16")
        all_lanes = (const(0, "int32x16"), const(-1, "int16"), const(4, "int32"))
        steps = pure("int32x16", vectors.to_int32, x, *all_lanes)
        steps = steps + const(zero_point - offset, "int32x16") if zero_point != offset else steps
        stored = pure("int8x16", vectors.saturated, steps, const(0, "int8x16"), const(-1, "int16"))
        if offset:
            stored = tir.reinterpret(byte, stored) ^ const(offset, byte)
        stored = tir.max(stored, const(lo, byte)) if lo or not offset else stored
        stored = tir.min(stored, const(hi, byte)) if hi < offset + 127 else stored
        return tir.reinterpret("uint8x16", stored)

    return narrow


def pair_ops(row: Isa) -> PairOps:
    """Depthwise kernels' instructions: vpmaddubsw; widening by vpmaddwd with (1, 0) and (0, 1)."""

    def multiply(data, weight):
        lanes = lanes_of(dtype_of(weight))[1]
        data = tir.reinterpret(f"int8x{lanes}", data)
        return pure(f"int16x{lanes // 2}", row.vectors_of(8 * lanes).byte_pairs, data, weight)

    def widen(x):
        lanes = lanes_of(dtype_of(x))[1]
        units = (const(unit, f"int32x{lanes // 2}") for unit in (1, 2**16))
        ones = (tir.reinterpret(f"int16x{lanes}", u) for u in units)
        return [pure(f"int32x{lanes // 2}", row.vectors_of(16 * lanes).word_pairs, x, one) for one in ones]

    return PairOps(4 * row.lanes, multiply, widen, _packs(row), pieces(row))


def _packs(row: Isa) -> Callable:
    """Narrow of `PairOps` and `QuadOps`."""

    def packed(values, *limits):
        return narrow_four(row.vectors_of(32 * lanes_of(dtype_of(values[0]))[1]), values, *limits)

    return packed


def quad_ops(row: Isa) -> QuadOps:
    """Depthwise by vpdpbusd."""

    def multiply(acc, data, weight):
        return pure(dtype_of(acc), vpdpbusd(lanes_of(dtype_of(weight))[1]), acc, data, weight)

    return QuadOps(4 * row.lanes, multiply, _packs(row), row.tiles["quads"], pieces(row))


def byte_dots(row: Isa) -> ByteDots:
    """vpdpbusd for `bilinear`'s schemes."""

    def multiply(acc, x, w):
        return pure(dtype_of(acc), vpdpbusd(4 * row.lanes), acc, x, w)

    return ByteDots(row.lanes, row.tiles["products"], multiply, narrow(row), pieces(row))


def vpdpbusd(size: int) -> str:
    """LLVM's name for vectors of ``size`` bytes."""
    return f"llvm.x86.avx512.vpdpbusd.{8 * size}"


def _sum(parts):
    return functools.reduce(lambda a, b: a + b, parts)


def _byte_pairs(row: Isa) -> Callable:
    """vpmaddubsw: (x, w) -> int16 lanes; x: a group of bytes in each int32 lane."""
    lanes, vectors = row.lanes, row.vectors_of(32 * row.lanes)

    def product(x, w):
        data = tir.reinterpret(f"int8x{4 * lanes}", x)
        return pure(f"int16x{2 * lanes}", vectors.byte_pairs, data, w)

    return product


def _widened(row: Isa) -> Callable:
    """vpmaddwd by ones: int16 lanes -> int32 lanes."""
    lanes, vectors = row.lanes, row.vectors_of(32 * row.lanes)
    return lambda x: pure(f"int32x{lanes}", vectors.word_pairs, x, const(1, f"int16x{2 * lanes}"))


def int16_dot(row: Isa, depth: int) -> Dot:
    """u8 x s8 by vpmaddubsw; ``depth`` results are summed in int16 before one vpmaddwd by ones.

    vpmaddubsw saturates and the int16 sums wrap: legal only where `proofs.lane_proof` proves that
    neither happens. 9 instructions per 128 multiply-accumulates at depth 4 (256 bit).
    """
    product, widen = _byte_pairs(row), _widened(row)

    def combine(acc, xs, ws):
        return acc + widen(_sum([product(x, w) for x, w in zip(xs, ws, strict=True)]))

    return Dot(row.lanes, 4, "uint8", "int8", depth, broadcast_word(row.lanes), combine,
               row.tiles["direct"], narrow=narrow(row), pieces=pieces(row))  # fmt: skip


def int16_chains(row: Isa) -> Chains:
    """`int16_dot` for chains of `chains.DEEP`: 17 instructions per 256 multiply-accumulates (256 bit)."""
    dot, side_by_side = int16_dot(row, DEEP), "sums" in row.tiles
    if side_by_side:
        dot = dot._replace(accumulators=row.tiles["sums"], vectors=2, fills=True)
    return Chains(dot, _byte_pairs(row), _widened(row), side_by_side)


def int32_dot(row: Isa) -> Dot:
    """int16 x int16 by vpmaddwd, exact for any uint8 data and int8 weights (widened beforehand)."""
    lanes, vectors = row.lanes, row.vectors_of(32 * row.lanes)

    def combine(acc, xs, ws):
        products = [
            pure(f"int32x{lanes}", vectors.word_pairs, tir.reinterpret(f"int16x{2 * lanes}", x), w)
            for x, w in zip(xs, ws, strict=True)
        ]
        return _sum([acc, *products])

    return Dot(lanes, 2, "int16", "int16", 2, broadcast_word(lanes), combine,
               row.tiles["direct"], narrow=narrow(row), pieces=pieces(row))  # fmt: skip


def vnni_dot(row: Isa) -> Dot:
    """u8 x s8 by vpdpbusd: four products straight into int32, exact for any operands."""
    lanes = row.lanes

    def combine(acc, xs, ws):
        for x, w in zip(xs, ws, strict=True):
            data = tir.reinterpret(f"uint8x{4 * lanes}", x)
            acc = pure(f"int32x{lanes}", vpdpbusd(4 * lanes), acc, data, w)
        return acc

    return Dot(lanes, 4, "uint8", "int8", 1, broadcast_word(lanes), combine, row.tiles["direct"],
               narrow=narrow(row), pieces=pieces(row), vectors=row.tiles.get("vectors", 1),
               rereads=True, short=((9, 6), (16, 4)) if row.registers == 32 else ())  # fmt: skip


def amx_tiles() -> Tiles:
    """AMX: tdpbusd, and what loads and stores its tiles; exact for any operands."""

    def number(tile):
        return tir.const(tile, "uint8")

    def moved(name):
        def move(tile, buffer, indices, stride):
            return effect(name, number(tile), address(buffer, indices), tir.const(stride, "int64"))

        return move

    def configure(ib, sizes):
        """The 64 bytes that ldtilecfg reads: the palette, from byte 16 two a tile, the bytes of a row, from
        48 one, the rows."""
        text = bytearray(64)
        text[0] = 1
        for tile, (rows, size) in sizes.items():
            text[16 + 2 * tile : 18 + 2 * tile] = size.to_bytes(2, "little")
            text[48 + tile] = rows
        words = ib.allocate("int32", 16, name="tile_config")
        for i in range(16):
            word = int.from_bytes(text[4 * i : 4 * i + 4], "little", signed=True)
            ib.emit(words.vstore([i], const(word, "int32")))
        ib.emit(effect("llvm.x86.ldtilecfg", address(words, [0])))

    return Tiles(
        configure,
        lambda: effect("llvm.x86.tilerelease"),
        lambda tile: effect("llvm.x86.tilezero", number(tile)),
        moved("llvm.x86.tileloadd64"),
        lambda *tiles: effect("llvm.x86.tdpbusd", *map(number, tiles)),
        moved("llvm.x86.tilestored64"),
    )
