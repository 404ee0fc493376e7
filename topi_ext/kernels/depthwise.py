"""Depthwise convolution, NHWC, on vectors of channels.

`compute` needs no intrinsic, so it is the same code on every CPU. `compute_pairs` takes the taps of a
kernel row in pairs: the bytes of two neighbouring pixels are interleaved, and one byte-pair multiply
(vpmaddubsw) makes both products of a channel and adds them. `compute_quads` takes them in fours, for a
multiply that adds four products of bytes to int32 (vpdpbusd).

``int16`` accumulators where `proofs.tap_bound` proves that a channel's sums are no further apart than int16
is wide: each sum starts at a constant that puts the middle of its range at zero, and the bias takes it
back. Else int32; pairs are summed in int16 over as many taps as `cut_bound` proves, then widened.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np

from .. import epilogue
from ..emit import Builder, const, dtype_of, extern, keeper, lanes_of, pick, reread, tir, with_lanes
from ..problem import Bound, ConvSpec, Refusal
from ..proofs import INT16_MAX, tap_bound
from .direct import Writer, copied, inner_tiles, outer_loop, over_row, padded_map

LANES = 16
#: taps up to which a kernel is one piece of code
UNROLLED = 100
PIXELS = 4  # of a tile, as a rule


def center(spec: ConvSpec, weight: np.ndarray) -> np.ndarray:
    """int32 (K,): the middle of the range of each channel's sum; weight int8 (R, S, 1, K)."""
    flat = weight.reshape(-1, spec.out_channels).astype(np.int64)
    return (spec.data_max * flat.sum(axis=0) // 2).astype(np.int32)


def large(spec: ConvSpec) -> bool:
    """Whether a kernel's rows are a loop: without one 31x31 took half a minute to compile."""
    return spec.kernel[0] * spec.kernel[1] > UNROLLED


def work(spec: ConvSpec, together: int = 1) -> tuple[float, ...]:
    """Millions of: multiply-accumulates with padded channels, outputs, elements copied. together: taps of a
    row that are multiplied at once, where those that are not there cost as much as others."""
    outputs = spec.batch * spec.out_height * spec.out_width * (-(-spec.out_channels // LANES) * LANES)
    taps = spec.kernel[0] * -(-spec.kernel[1] // together) * together
    return tuple(n * 1e-6 for n in (outputs * taps, outputs, 0 if in_place(spec, PIXELS) else copied(spec)))


def edges_of(spec: ConvSpec) -> tuple[int, int]:
    """How many of a row's first and of its last outputs take pixels beyond it."""
    left, reach = spec.padding[1], (spec.kernel[1] - 1) * spec.dilation[1]
    inside = max(0, (spec.width - 1 + left - reach) // spec.strides[1] + 1)
    return min(-(-left // spec.strides[1]), spec.out_width), max(0, spec.out_width - inside)


def in_place(spec: ConvSpec, pixels: int) -> bool:
    """Whether tiles of ``pixels`` read the map as it is: each at its edges is code of its own."""
    first, end = inner_tiles(spec.out_width, pixels, edges_of(spec))
    pieces = 1 + -(-spec.out_width // pixels) - max(0, end - first)
    return spec.in_channels % LANES == 0 and pieces * spec.kernel[0] * spec.kernel[1] <= UNROLLED


def source(spec: ConvSpec, pixels: int, data):
    """The TE tensor that tiles of ``pixels`` read."""
    return data if in_place(spec, pixels) else padded_map(spec, LANES, "uint8", data)


class Map:
    """`source` as tiles of ``pixels`` read it. In place, what is beyond it is a constant that is known as
    the code is made; a kernel row beyond it is left out, if that is zero, or else made of the constant."""

    def __init__(self, ib, spec: ConvSpec, pixels: int, buffer):
        self.ib, self.spec, self.pixels, self.buffer = ib, spec, pixels, buffer
        self.in_place = in_place(spec, pixels)
        self.edges = edges_of(spec) if self.in_place else (0, 0)
        self.top, self.left = spec.padding[:2] if self.in_place else (0, 0)

    def over_row(self, tile):
        """Cover a row of outputs by tile(first pixel, pixels)."""
        width = self.spec.out_width
        over_row(self.ib, width, self.pixels, lambda x, count, _: tile(x, count), self.edges)

    def rows(self, y, taps, body):
        """body(i, absent) for each kernel row of ``taps``, as output row ``y`` takes it; absent: beyond the
        map."""
        for i in taps:
            beyond = self._beyond(y, i) if self.in_place else []
            with self.ib.if_scope(tir.Not(tir.any(*beyond))) if beyond else nullcontext():
                body(i, False)
            if beyond and self.spec.zero_point:
                with self.ib.if_scope(tir.any(*beyond)):
                    body(i, True)

    def _row(self, y, i):
        return y * self.spec.strides[0] + i * self.spec.dilation[0] - self.top

    def _beyond(self, y, i) -> list:
        """The conditions under which kernel row ``i`` is beyond the map, that may be."""
        last, end = self.spec.out_height - 1, self.spec.height
        above = [self._row(y, i) < 0] if self._row(0, i) < 0 else []
        return above + ([self._row(y, i) >= end] if self._row(last, i) >= end else [])

    def load(self, at, i, j, lanes, absent=False):
        """uint8 lanes that output ``at``, (n, y, x, channel), takes in kernel row ``i``, ``j`` pixels from
        the first of its window."""
        n, y, x, channel = at
        column = x * self.spec.strides[1] + j - self.left
        if absent or (self.in_place and isinstance(column, int) and not 0 <= column < self.spec.width):
            return const(self.spec.zero_point, with_lanes("uint8", lanes))
        return self.buffer.vload([n, self._row(y, i), column, channel], with_lanes("uint8", lanes))


def compute(cfg, spec: ConvSpec, accumulator: str, data, weight, bias, multiplier, residual=None):
    """TE tensor; weight: ``accumulator`` type (R * S + 1, C padded to 16), the last row what every sum
    starts with; bias and multiplier padded.

    AutoTVM knob: ``tile`` (pixels of a row computed at once).
    """
    width = spec.out_width
    cfg.define_knob("tile", [p for p in (4, 2, 1, 3, 7) if p <= width])
    cfg.add_flop(2 * spec.macs)
    inputs = [source(spec, cfg["tile"].val, data), weight, bias, multiplier]
    inputs += [] if residual is None else [residual]

    def body(ins, out):
        return _emit(spec, accumulator, cfg["tile"].val, ins, out)

    return extern(spec.out_shape, inputs, body, spec.out_dtype, "conv2d", "easyquant_conv2d")


def _emit(spec, accumulator, pixels, ins, out):
    weight, bias, multiplier = ins[1:4]
    ib = Builder()
    data = Map(ib, spec, pixels, ins[0])
    write = Writer(ib, spec, out, multiplier, ins[4] if len(ins) > 4 else None)
    wide = with_lanes(accumulator, LANES)
    r, s = spec.kernel
    blocks, ragged = divmod(spec.out_channels, LANES)

    def tile(n, y, x, count, block, valid):
        acc = ib.allocate(accumulator, count * LANES, name="acc")
        channel = block * LANES

        def taps(i, absent):
            for p in range(count):
                total = acc.vload([p * LANES], wide)
                for j in range(s):
                    pixel = data.load((n, y, x + p, channel), i, j * spec.dilation[1], LANES, absent)
                    total = total + pixel.astype(wide) * weight.vload([i * s + j, channel], wide)
                ib.emit(acc.vstore([p * LANES], total))

        for p in range(count):
            ib.emit(acc.vstore([p * LANES], weight.vload([r * s, channel], wide)))
        if large(spec):
            with ib.for_range(0, r, "tap") as i:
                taps(i, False)
        else:
            data.rows(y, range(r), taps)
        for p in range(count):
            value = acc.vload([p * LANES], wide).astype(f"int32x{LANES}")
            write(
                value + bias.vload([channel], f"int32x{LANES}"),
                lambda k, p=p: [n, y, x + p, k],
                channel,
                channel,
                valid,
            )

    def row(n, y, block, valid):
        data.over_row(lambda x, count: tile(n, y, x, count, block, valid))

    with ib.for_range(0, spec.batch * spec.out_height, "row", kind=outer_loop(spec)) as ny:
        n, y = ny // spec.out_height, ny % spec.out_height
        if blocks:
            with ib.for_range(0, blocks, "block") as block:
                row(n, y, block, None)
        if ragged:
            row(n, y, tir.const(blocks), ragged)
    return ib.get()


# -- pairs of taps


def pairs_of(spec: ConvSpec) -> list[tuple[int, int | None, int | None]]:
    """The byte-pair multiplies of a kernel row: (first pixel, tap of its weight, tap of the next pixel's).

    The last tap of an odd row stands alone, with a zero weight beside it: once before it and once after it,
    because either pair of pixels may be interleaved already; a kernel uses one of the two.
    """
    taps = spec.kernel[1]
    pairs = [(i, i, i + 1) for i in range(0, taps - 1, 2)]
    return pairs + ([(taps - 2, None, taps - 1), (taps - 1, taps - 1, None)] if taps % 2 else [])


def pair_bound(spec: ConvSpec, weight: np.ndarray) -> Bound | Refusal:
    """No byte-pair multiply saturates: weight int8 (R, S, 1, K)."""
    w = spec.data_max * weight.astype(np.int64)[:, :, 0]
    worst = 0
    for _, first, second in pairs_of(spec):
        both = np.stack([w[:, tap] for tap in (first, second) if tap is not None])
        sides = [np.maximum(sign * both, 0).sum(axis=0).max(initial=0) for sign in (1, -1)]
        worst = max(worst, *map(int, sides))
    if worst > INT16_MAX:
        return Refusal(f"a pair of products may reach {worst}, beyond {INT16_MAX}")
    return Bound("a pair of products", worst, INT16_MAX)


def cut(spec: ConvSpec, count: int) -> list[tuple[range, range]]:
    """A kernel in ``count`` parts, (its rows, its columns): of whole rows, where there are as many or more;
    else of pieces of a row, whole pairs each."""
    rows, columns = spec.kernel
    if count <= rows:
        return [(part, range(columns)) for part in _even(rows, count)]
    pieces = [range(2 * p.start, min(2 * p.stop, columns)) for p in _even(-(-columns // 2), count // rows)]
    return [(range(i, i + 1), piece) for i in range(rows) for piece in pieces]


def _even(size: int, count: int) -> list[range]:
    """0..size in ``count`` ranges, the first ones longer by one."""
    ends = np.cumsum([0, *(len(part) for part in np.array_split(np.arange(size), count))]).tolist()
    return list(map(range, ends, ends[1:]))


def cuts(spec: ConvSpec, weight: np.ndarray) -> int:
    """Into how few parts a kernel is cut (`cut`) so that the sum of each is no wider than int16; into
    single pairs where that does not do either. A large one: into rows at least. weight: (R, S, 1, K)."""
    rows, columns = spec.kernel
    pieces = range(1, -(-columns // 2) + 1)
    for count in (*range(rows if large(spec) else 1, rows), *(rows * n for n in pieces)):
        if all(isinstance(tap_bound(spec, _taps(weight, part)), Bound) for part in cut(spec, count)):
            return count
    return rows * pieces[-1]


def _taps(weight: np.ndarray, part: tuple[range, range]) -> np.ndarray:
    rows, columns = part
    return weight[rows.start : rows.stop, columns.start : columns.stop]


def cut_bound(spec: ConvSpec, weight: np.ndarray) -> Bound | Refusal:
    """The sum of each part of `cuts` in int16, and each in int32 with those before: `proofs.tap_bound`."""
    found = [tap_bound(spec, _taps(weight, part)) for part in cut(spec, cuts(spec, weight))]
    refused = next((bound for bound in found if isinstance(bound, Refusal)), None)
    return refused or max((b for b in found if isinstance(b, Bound)), key=lambda bound: bound.value)


def halves(width: int, offset: int = 0) -> list[list[int]]:
    """The channels of the two interleaves of ``width`` bytes, in order: punpcklbw's and punpckhbw's."""
    lanes = range(width // 16)
    return [[16 * lane + 8 * half + i + offset for lane in lanes for i in range(8)] for half in (0, 1)]


def blocks_of(spec: ConvSpec, width: int) -> list[tuple[int, int]]:
    """(first channel, bytes) of the blocks: of ``width``, then at most one of each half, down to 16."""
    padded, first, blocks = -(-spec.out_channels // LANES) * LANES, 0, []
    while width >= LANES:
        while padded - first >= width:
            blocks.append((first, width))
            first += width
        width //= 2
    return blocks


def padded(values: np.ndarray) -> np.ndarray:
    """Arrays of channels, the last axis, with zeros up to a multiple of `LANES`."""
    width = [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % LANES)]
    return np.ascontiguousarray(np.pad(values, width))


def pack_pairs(spec: ConvSpec, weight, bias, multiplier, width: int):
    """(weights, bias, multiplier) for `compute_pairs`.

    weights: int8 (blocks, R * pairs + cuts, 2 * width): for each pair the two interleaves, then what the
    int16 sums of each part start with, in bytes. bias and multiplier in the order of the widened
    sums: even lanes, odd lanes of the one interleave, then of the other.
    """
    r = spec.kernel[0]
    parts, whole = cut(spec, cuts(spec, weight)), padded(weight[:, :, 0])
    starts = padded(np.stack([-center(spec, _taps(weight, part)) for part in parts]).astype(np.int16))
    folded = padded(bias.astype(np.int32)) - starts.astype(np.int32).sum(axis=0, dtype=np.int32)
    factor = padded(multiplier.reshape(-1, spec.out_channels))
    pairs, blocks, order = pairs_of(spec), blocks_of(spec, width), []
    packed = np.zeros((len(blocks), r * len(pairs) + len(parts), 2 * width), np.int8)
    for b, (first, size) in enumerate(blocks):
        for half, own in enumerate(halves(size, first)):
            place = slice(half * size, (half + 1) * size)
            for i in range(r):
                for j, (_, *taps) in enumerate(pairs):
                    both = [np.zeros(len(own), np.int8) if t is None else whole[i, t, own] for t in taps]
                    packed[b, i * len(pairs) + j, place] = np.stack(both, axis=1).reshape(-1)
            packed[b, r * len(pairs) :, place] = np.ascontiguousarray(starts[:, own]).view(np.int8)
            order += [*own[::2], *own[1::2]]
    return packed, folded[order], factor[:, order].reshape(-1)


class PairOps(NamedTuple):
    """Instructions for `compute_pairs`, each for vectors of 16 bytes and of ``width``.

    multiply(uint8 data, int8 weights) -> int16: products of neighbouring bytes, added in pairs.
    widen(int16) -> (int32 of the even lanes, int32 of the odd ones).
    narrow(four float32 vectors, zero_point, lo, hi, bounded) -> uint8: as `direct.Narrow`'s pack; each 16
    bytes hold four lanes of the first vector, four of the second, and so on. pieces: how a function is
    approximated.
    """

    width: int
    multiply: Callable
    widen: Callable
    narrow: Callable
    pieces: epilogue.Pieces


def compute_pairs(cfg, spec: ConvSpec, ops: PairOps, data, weight, bias, multiplier, residual=None):
    """TE tensor; weight, bias and multiplier as `pack_pairs` makes them for ``ops.width``.

    AutoTVM knob: ``tile`` (pixels of a row computed at once).
    """
    wide = spec.strides[1] == 1 and spec.out_width % 7 == 0
    tiles = (7, 4, 2, 1, 3) if wide else (4, 2, 1, 3, 7)
    cfg.define_knob("tile", [p for p in tiles if p <= spec.out_width])
    cfg.add_flop(2 * spec.macs)
    inputs = [source(spec, cfg["tile"].val, data), weight, bias, multiplier]
    inputs += [] if residual is None else [residual]

    def body(ins, out):
        return _Pairs(spec, ops, ins, out, cfg["tile"].val).loops()

    return extern(spec.out_shape, inputs, body, spec.out_dtype, "conv2d", "easyquant_conv2d")


class _Pairs:
    """Emits the loops of `compute_pairs`; one instance per kernel."""

    def __init__(self, spec, ops, ins, out, pixels):
        self.spec, self.ops, self.out = spec, ops, out
        self.ib = Builder()
        self.data = Map(self.ib, spec, pixels, ins[0])
        self.weight, self.bias, self.multiplier = ins[1:4]
        self.residual = ins[4] if len(ins) > 4 else None

    def loops(self):
        ib, spec = self.ib, self.spec
        blocks = blocks_of(spec, self.ops.width)
        whole = spec.out_channels // self.ops.width

        def row(n, y, block, first, size):
            self.data.over_row(lambda x, count: self.tile(n, y, x, count, block, first, size))

        with ib.for_range(0, spec.batch * spec.out_height, "row", kind=outer_loop(spec)) as ny:
            n, y = ny // spec.out_height, ny % spec.out_height
            if whole:
                with ib.for_range(0, whole, "block") as block:
                    row(n, y, block, block * self.ops.width, self.ops.width)
            for block in range(whole, len(blocks)):
                row(n, y, block, *blocks[block])
        return ib.get()

    def pairs(self, pixel, last):
        """The pairs that an output takes whose window starts at ``pixel``: a tap alone goes with the pixel
        that is interleaved with its own for another output, if the row has it (``last`` is its end)."""
        spec, found = self.spec, list(enumerate(pairs_of(self.spec)))
        if spec.kernel[1] % 2 == 0:
            return found
        *found, before, after = found
        beyond = pixel + spec.kernel[1] * spec.dilation[1]
        return [*found, after if spec.strides[1] % 2 == 0 and beyond <= last else before]

    def tile(self, n, y, x, count, block, first, size):
        """``count`` pixels by the ``size`` channels of a block from channel ``first`` on."""
        ib, spec = self.ib, self.spec
        step, apart, each = spec.strides[1], spec.dilation[1], len(pairs_of(spec))
        last = (count - 1) * step + (spec.kernel[1] - 1) * apart
        sums = with_lanes("int16", size // 2)
        acc = [[ib.allocate("int16", size // 2, name="acc") for _ in (0, 1)] for _ in range(count)]
        quarter = with_lanes("int32", size // 4)
        parts = cut(spec, int(self.weight.shape[1]) - spec.kernel[0] * each)
        cut_up = len(parts) > 1
        wide = [ib.allocate("int32", size, name="wide") for _ in range(count if cut_up else 0)]

        def weights(index, half):
            return self.weight.vload([block, index, half * size], with_lanes("int8", size))

        def products(half, own, columns, i, absent):
            for p in range(count):
                for j, (offset, *taps) in self.pairs(p * step, last):
                    if min(tap for tap in taps if tap is not None) not in columns:
                        continue
                    pair = [
                        self.data.load((n, y, x, first), i, p * step + (offset + k) * apart, size, absent)
                        for k in (0, 1)
                    ]
                    both = pick(pair, [lane for c in own for lane in (c, size + c)])
                    product = self.ops.multiply(both, weights(i * each + j, half))
                    ib.emit(acc[p][half].vstore([0], acc[p][half].vload([0], sums) + product))

        def add(rows, columns, start, first_part):
            """The sums of a part, in int16, then added to those before in int32."""
            for half, own in enumerate(halves(size)):
                for p in range(count):
                    begin = tir.reinterpret(sums, weights(start, half))
                    ib.emit(acc[p][half].vstore([0], begin))
                self.data.rows(y, rows, functools.partial(products, half, own, columns))
            for p in range(count):
                widened = [v for a in acc[p] for v in self.ops.widen(a.vload([0], sums))]
                if not cut_up:
                    self.store(widened, [n, y, x + p], first, size)
                    continue
                for i, more in enumerate(widened):
                    at = [i * size // 4]
                    ib.emit(wide[p].vstore(at, more if first_part else wide[p].vload(at, quarter) + more))

        starts = spec.kernel[0] * each
        if large(spec):  # a loop over its rows, each cut alike
            pieces = [columns for rows, columns in parts if rows.start == 0]
            for p in range(count):
                for i in range(4):
                    ib.emit(wide[p].vstore([i * size // 4], const(0, quarter)))
            with ib.for_range(0, spec.kernel[0], "tap") as i:
                for k, columns in enumerate(pieces):
                    add([i], columns, starts + i * len(pieces) + k, False)
        else:
            for k, (rows, columns) in enumerate(parts):
                add(rows, columns, starts + k, k == 0)
        for p, each_sum in enumerate(wide):
            found = [each_sum.vload([i * size // 4], quarter) for i in range(4)]
            self.store(found, [n, y, x + p], first, size)

    def orders(self, size):
        """The channels of a block in each of the four int32 vectors."""
        return [order for own in halves(size) for order in (own[::2], own[1::2])]

    def with_bias(self, total, at, lanes):
        return total + self.bias.vload([at], with_lanes("int32", lanes))

    def store(self, sums, index, first, size):
        """Add the bias to the four int32 vectors of a pixel, and store what the epilogue makes of them."""
        ib, spec, quarter = self.ib, self.spec, size // 4
        orders, pieces = self.orders(size), self.ops.pieces
        # as many of the four vectors together as make the most of an instruction
        joined = max((1, 2, 4), key=lambda n: pieces.count(n * quarter))
        curve = epilogue.curve_of(spec, pieces, joined * quarter)
        residual, values = None, []
        for i, total in enumerate(sums):
            at = first + i * quarter
            acc = self.with_bias(total, at, quarter)
            if self.residual is not None:
                stored = self.residual.vload([*index, first], with_lanes("uint8", size))
                residual = pick([stored], orders[i])
            scale, other = epilogue.factors(spec, self.multiplier, at, quarter)
            if curve is not None:
                values.append(epilogue.before(spec, acc, scale, residual))
                continue
            values.append(epilogue.unrounded(spec, acc, scale, other, residual, keeper(ib)))
        if spec.epilogue == "dequantize":
            places = [c for order in orders for c in order]
            done = pick(values, np.argsort(places).tolist())
        else:
            if curve is None:
                packed = self.ops.narrow(values, spec.out_zero_point, spec.lo, spec.hi, spec.bounded)
            else:
                packed = self.by_pieces(curve, values, joined)
            places = [
                order[4 * lane + i] for lane in range(size // 16) for order in orders for i in range(4)
            ]
            places = np.argsort(places).tolist()
            done = packed if places == sorted(places) else pick([packed], places)
        valid = min(size, spec.out_channels - first) if isinstance(first, int) else size
        if valid == size:
            ib.emit(self.out.vstore([*index, first], done))
            return
        spill = ib.allocate(spec.out_dtype, size, name="spill")
        ib.emit(spill.vstore([0], done))
        with ib.for_range(0, valid, "channel") as c:
            ib.emit(self.out.vstore([*index, first + c], spill.vload([c])))

    def by_pieces(self, curve, values, joined):
        """Bytes of four float32 vectors whose function has a ``curve`` for ``joined`` of them."""
        keep, pieces, lanes = keeper(self.ib), self.ops.pieces, lanes_of(dtype_of(values[0]))[1]
        wide = [values[i : i + joined] for i in range(0, 4, joined)]
        wide = [keep(pick(some, range(joined * lanes)) if joined > 1 else some[0]) for some in wide]
        rows = epilogue.tables(self.ib, curve, joined * lanes)
        steps = epilogue.finished(self.ib, curve, pieces, self.spec, wide, rows)
        if joined > 1:
            apart = [range(i * lanes, (i + 1) * lanes) for i in range(joined)]
            steps = [pick([x], own) for x in map(keep, steps) for own in apart]
        return pieces.four(steps)


# -- four taps at once


class QuadOps(NamedTuple):
    """Instructions for `compute_quads`, for vectors of 16 bytes, of ``width`` and of what is between.

    multiply(int32 acc, uint8 data, int8 weights) -> acc and the four products of its bytes. narrow, pieces:
    as in `PairOps`. pixels: whose sums are kept in registers, four vectors each.
    """

    width: int
    multiply: Callable
    narrow: Callable
    pixels: int
    pieces: epilogue.Pieces


def quarters(width: int, offset: int = 0) -> list[list[int]]:
    """The channels of the four interleaves of the bytes of four pixels: punpcklbw and punpckhbw, and
    punpcklwd and punpckhwd of each."""
    lanes = range(width // 16)
    return [
        [16 * lane + 4 * quarter + i + offset for lane in lanes for i in range(4)] for quarter in range(4)
    ]


def quads_of(spec: ConvSpec) -> list[list[list[int | None]]]:
    """For a window that begins at the first pixel of a quad, and for one that begins at its second, which
    takes the same quads: the tap of each pixel of each quad, None: zero. The second is there where windows
    are a pixel apart."""
    taps = spec.kernel[1]
    shifts = (0, 1) if spec.strides[1] == spec.dilation[1] == 1 else (0,)
    windows = [[None] * shift + list(range(taps)) for shift in shifts]
    padded = [[*window, *[None] * (-len(window) % 4)] for window in windows]
    return [[window[i : i + 4] for i in range(0, len(window), 4)] for window in padded]


def pack_quads(spec: ConvSpec, weight, bias, multiplier, width: int):
    """(weights, bias, multiplier) for `compute_quads`.

    weights: int8 (blocks, R, quads of both windows, 4 * width): the four interleaves of each. bias and
    multiplier in the order of the sums.
    """
    quads, whole = [quad for window in quads_of(spec) for quad in window], padded(weight[:, :, 0])
    blocks, order = blocks_of(spec, width), []
    packed = np.zeros((len(blocks), spec.kernel[0], len(quads), 4 * width), np.int8)
    for b, (first, size) in enumerate(blocks):
        for quarter, own in enumerate(quarters(size, first)):
            for k, taps in enumerate(quads):
                each = [0 * whole[:, 0, own] if tap is None else whole[:, tap, own] for tap in taps]
                place = slice(quarter * size, (quarter + 1) * size)
                packed[b, :, k, place] = np.stack(each, axis=2).reshape(len(whole), -1)
            order += own
    factor = padded(multiplier.reshape(-1, spec.out_channels))
    return packed, padded(bias)[order], factor[:, order].reshape(-1)


def compute_quads(cfg, spec: ConvSpec, ops: QuadOps, data, weight, bias, multiplier, residual=None):
    """TE tensor; weight, bias and multiplier as `pack_quads` makes them for ``ops.width``.

    AutoTVM knob: ``tile`` (pixels of a row computed at once).
    """
    cfg.define_knob("tile", [p for p in (ops.pixels, 2, 1, 3) if p <= spec.out_width])
    cfg.add_flop(2 * spec.macs)
    inputs = [source(spec, cfg["tile"].val, data), weight, bias, multiplier]
    inputs += [] if residual is None else [residual]

    def body(ins, out):
        return _Quads(spec, ops, ins, out, cfg["tile"].val).loops()

    return extern(spec.out_shape, inputs, body, spec.out_dtype, "conv2d", "easyquant_conv2d")


class _Quads(_Pairs):
    """Emits the loops of `compute_quads`; one instance per kernel."""

    def orders(self, size):
        return quarters(size)

    def with_bias(self, total, at, lanes):
        return total  # they begin with it

    def tile(self, n, y, x, count, block, first, size):
        ib, spec, lanes = self.ib, self.spec, size // 4
        step, apart, windows = spec.strides[1], spec.dilation[1], quads_of(self.spec)
        last, wide = (count - 1) * step + (spec.kernel[1] - 1) * apart, with_lanes("int32", lanes)
        acc = [[ib.allocate("int32", lanes, name="acc") for _ in range(4)] for _ in range(count)]
        for quarter in range(4):
            for sums in acc:
                at = [first + quarter * lanes]
                ib.emit(sums[quarter].vstore([0], self.bias.vload(at, wide)))

        def row(i, absent):
            def pixel(at):
                # what lies beyond the last window has a zero weight
                return self.data.load((n, y, x, first), i, min(at, last), size, absent)

            def pair(at, own):
                both = pick([pixel(at), pixel(at + apart)], [lane for c in own for lane in (c, size + c)])
                return reread(both, with_lanes("int16", size // 2))

            for p in range(0, count, len(windows)):
                for k in range(max(map(len, windows))):
                    base = p * step + 4 * k * apart
                    for half, own in enumerate(halves(size)):
                        two = [pair(base, own), pair(base + 2 * apart, own)]
                        for part in (0, 1):
                            self.products(acc, two, (i, p, k, 2 * half + part), block, size)

        if large(spec):
            with ib.for_range(0, spec.kernel[0], "tap") as i:
                row(i, False)
        else:
            self.data.rows(y, range(spec.kernel[0]), row)
        for p, sums in enumerate(acc):
            self.store([each.vload([0], wide) for each in sums], [n, y, x + p], first, size)

    def products(self, acc, two, place, block, size):
        """Add those of a quarter of quad ``k`` of the windows from pixel ``p`` on, in kernel row ``i``."""
        (i, p, k, quarter), windows = place, quads_of(self.spec)
        words = size // 2
        own = [8 * lane + 4 * (quarter % 2) + j for lane in range(size // 16) for j in range(4)]
        quad = reread(pick(two, [w for c in own for w in (c, words + c)]), with_lanes("uint8", size))
        before = 0
        for shift, window in enumerate(windows):
            if p + shift < len(acc) and k < len(window):
                at = [block, i, before + k, quarter * size]
                weights = self.weight.vload(at, with_lanes("int8", size))
                sums = acc[p + shift][quarter]
                old = sums.vload([0], with_lanes("int32", size // 4))
                self.ib.emit(sums.vstore([0], self.ops.multiply(old, quad, weights)))
            before += len(window)
