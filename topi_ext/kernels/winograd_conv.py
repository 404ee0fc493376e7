"""Winograd convolution F(m, 3) as loops: exact integers, bit for bit the direct convolution.

For a block of tiles: transform the data (int16); then for each block of output channels transform its
weights, make one int16 x int16 -> int32 matrix product per position of the tile, then the inverse
transform, the exact division and the epilogue. The weights are stored as they are, int8: transformed they
are eight times as large, and reading that takes longer than making it anew in a core's own cache. Where
even those of a block of output channels are too large for it, they and the products are made for a part of
the input channels after the other.

int32 arithmetic may wrap between the products and the quotient (`winograd`); TVM emits its own as undefined
on overflow, so add, subtract and multiply come from imported LLVM IR, inlined.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from math import ceil
from typing import NamedTuple

import numpy as np

from .. import epilogue
from ..emit import Builder, after, after_llvm, const, dtype_of, extern, keeper, prefetch, tir, with_lanes
from ..problem import ConvSpec
from ..winograd import Transform
from .direct import LINE, Lanes, Narrow, Writer, copied, outer_loop, padded_map

CHANNELS = 16  # input channels transformed at once
#: products of a block of tiles, to stay in a core's own cache until they are transformed back
M_BYTES = 500_000
#: of transformed weights, to stay there until they are multiplied; what all three may take
U_BYTES, OWN_BYTES = 300_000, 820_000
#: products are read and written again for each part of the input channels: worth it where they are so
#: many times fewer bytes than the transformed weights, and of a part with so many times `CHANNELS`
FEWER, LEAST = 8, 4


class WordPairs(NamedTuple):
    """A multiply of pairs of int16: multiply(wrap, acc, x, w) -> acc plus the products, in ``lanes`` lanes
    of int32, where x holds the same pair in every lane.

    rows: the most tiles of a matrix product's register block. data_bytes: of the transformed data of a
    block of tiles, which every block of output channels reads again; the fewer blocks, the less often
    weights are transformed. narrow, pieces: see `direct.Writer`. order(weights): as ``multiply`` wants
    `winograd.pack`'s. apart: the products of two vectors are made before either is added: right behind a
    multiply an add would take a port that the next one waits for."""

    lanes: int
    rows: int
    multiply: Callable
    data_bytes: int
    narrow: Narrow | None = None
    pieces: epilogue.Pieces | None = None
    order: Callable = lambda weights: weights
    apart: bool = False


class Wrapping:
    """int32 vector arithmetic modulo 2**32."""

    def __init__(self, lanes: int):
        self.type = with_lanes("int32", lanes)
        self.name = f"easyquant_%s_v{lanes}i32"
        vector = f"<{lanes} x i32>"
        self.llvm = "\n".join(
            f"define {vector} @{self.name % op}({vector} %a, {vector} %b) alwaysinline {{\n"
            f"  %r = {op} {vector} %a, %b\n  ret {vector} %r\n}}"
            for op in ("add", "sub", "mul")
        )

    def _call(self, op, a, b):
        return tir.call_pure_extern(self.type, self.name % op, a, b)

    def add(self, a, b):
        return self._call("add", a, b)

    def sub(self, a, b):
        return self._call("sub", a, b)

    def scale(self, factor, a):
        if factor > 0 and factor & (factor - 1) == 0:
            return a << const(factor.bit_length() - 1, self.type) if factor > 1 else a
        return self._call("mul", a, const(factor, self.type))


class Plain:
    """int16 vector arithmetic; TVM's own wraps below 32 bits."""

    @staticmethod
    def add(a, b):
        return a + b

    @staticmethod
    def sub(a, b):
        return a - b

    @staticmethod
    def scale(factor, a):
        return a if factor == 1 else a * const(factor, dtype_of(a))


def _weighted(coefficients, values, ops, keep):
    """``sum(c * v)`` over the non-zero coefficients; None if there are none."""
    total = None
    terms = sorted(
        ((int(c), v) for c, v in zip(coefficients, values, strict=True) if c), key=lambda t: t[0] < 0
    )
    for c, v in terms:
        term = ops.scale(abs(c), v)
        if total is None:
            total = term if c > 0 else ops.scale(-1, term)
        else:
            total = (ops.add if c > 0 else ops.sub)(total, term)
    return None if total is None else keep(total)


def _sign_pair(a, b):
    """Where b is a with some signs turned: the +-1 pattern; None if it is not, or no sign is turned."""
    if not np.array_equal(np.abs(a), np.abs(b)) or not a.any():
        return None
    signs = np.where((a != 0) & (a == -b), -1, 1)
    mixed = (signs[a != 0] == 1).any() and (signs == -1).any()
    return signs if mixed else None


def apply(matrix: np.ndarray, values, ops, keep):
    """``matrix @ values`` for vectors; columns, or rows, that differ in signs only share their work."""
    if matrix.shape[0] < matrix.shape[1]:
        matrix, values = _fold_columns(matrix, values, ops, keep)
    return _apply_rows(matrix, values, ops, keep)


def _fold_columns(matrix, values, ops, keep):
    """Replace each pair of columns that differ in signs by their values' sum and difference."""
    matrix, values = matrix.copy(), list(values)
    for j in range(matrix.shape[1]):
        for k in range(j + 1, matrix.shape[1]):
            signs = _sign_pair(matrix[:, j], matrix[:, k])
            if signs is not None:
                plus, minus = (keep(op(values[j], values[k])) for op in (ops.add, ops.sub))
                values[j], values[k] = plus, minus
                both = matrix[:, j].copy()
                matrix[:, j], matrix[:, k] = np.where(signs > 0, both, 0), np.where(signs < 0, both, 0)
                break
    return matrix, values


def _apply_rows(matrix, values, ops, keep):
    """`apply` where pairs of rows share an even and an odd half."""
    result = [None] * len(matrix)
    for i in range(len(matrix)):
        if result[i] is not None:
            continue
        for k in range(i + 1, len(matrix)):
            signs = _sign_pair(matrix[i], matrix[k])
            if result[k] is None and signs is not None:
                even = _weighted(np.where(signs > 0, matrix[i], 0), values, ops, keep)
                odd = _weighted(np.where(signs < 0, matrix[i], 0), values, ops, keep)
                result[i], result[k] = keep(ops.add(even, odd)), keep(ops.sub(even, odd))
                break
        else:
            result[i] = _weighted(matrix[i], values, ops, keep)
    return result


def tiles_of(spec: ConvSpec, t: Transform) -> tuple[int, int]:
    """Tiles that cover the output map: down, across."""
    return -(-spec.out_height // t.m), -(-spec.out_width // t.m)


def block_of(spec: ConvSpec, lanes: int) -> int:
    """Output channels computed together."""
    return 2 * lanes if spec.out_channels % (2 * lanes) == 0 else lanes


def pairs_of(spec: ConvSpec) -> int:
    """Pairs of input channels, rounded up to what is transformed at once."""
    return -(-spec.in_channels // CHANNELS) * CHANNELS // 2


def rows_of(total: int, most: int) -> int:
    """The tiles of a register block, of ``most`` at most, by which ``total`` tiles cost least: those of the
    last block that are not there cost as much as others, and every block has an overhead."""
    few = min(most, total)
    return min(
        range(max(1, few // 2), few + 1), key=lambda rows: (ceil(total / rows) * (rows + 0.5), -rows)
    )


def block_sizes(spec: ConvSpec, t: Transform, pairs: WordPairs) -> list[int]:
    """Tiles of a block, the default first; the weights are transformed for every block."""
    down, across = tiles_of(spec, t)
    total = spec.batch * down * across
    rows = rows_of(total, pairs.rows)
    budget = min(
        pairs.data_bytes // (t.n * t.n * 4 * pairs_of(spec)),
        M_BYTES // (t.n * t.n * 4 * block_of(spec, pairs.lanes)),
    )

    def even(limit):
        """A block size near ``limit`` whose blocks are equally full, and even in number."""
        blocks = ceil(total / max(limit, 1))
        blocks += blocks % 2 if blocks > 1 else 0
        return ceil(ceil(total / blocks) / rows) * rows

    sizes = (max(16, budget), budget // 2, 2 * budget, rows)
    return list(dict.fromkeys(map(even, sizes)))


def parts_of(spec: ConvSpec, t: Transform, lanes: int, size: int) -> int:
    """Into how many parts the input channels are divided: the weights of one are transformed, and
    multiplied with ``size`` tiles while they are in a core's own cache."""
    channels, block, positions = 2 * pairs_of(spec), block_of(spec, lanes), t.n * t.n
    data, weights, products = (
        positions * n for n in (2 * size * channels, 2 * channels * block, 4 * size * block)
    )
    if FEWER * products > weights:
        return 1
    groups, room = channels // CHANNELS, max(min(U_BYTES, OWN_BYTES - data - products), U_BYTES // 2)
    counts = [n for n in range(1, groups + 1) if groups % n == 0 and (n == 1 or groups // n >= LEAST)]
    return next((n for n in counts if weights <= n * room), counts[-1])


def work(spec: ConvSpec, t: Transform, pairs: WordPairs) -> tuple[float, ...]:
    """Millions of: products, data transformed, products transformed back, outputs, copied, weights
    transformed."""
    down, across = tiles_of(spec, t)
    tiles, positions, channels = spec.batch * down * across, t.n * t.n, 2 * pairs_of(spec)
    rows = rows_of(tiles, pairs.rows)
    whole = -(-tiles // rows) * rows
    blocks = ceil(tiles / block_sizes(spec, t, pairs)[0])
    counts = (
        whole * positions * channels * spec.out_channels,
        whole * positions * channels,
        whole * positions * spec.out_channels,
        np.prod(spec.out_shape),
        copied(spec),
        blocks * positions * channels * spec.out_channels,
    )
    return tuple(float(n) * 1e-6 for n in counts)


def compute(cfg, spec: ConvSpec, t: Transform, pairs: WordPairs, data, weight, bias, multiplier,
            residual=None):  # fmt: skip
    """TE tensor; weight: as `winograd.pack` makes it, in the order of ``pairs``.

    AutoTVM knobs: ``tiles`` (of a block), ``unroll`` (pairs of channels in the innermost loop).
    """
    down, across = tiles_of(spec, t)
    total = spec.batch * down * across
    rows = rows_of(total, pairs.rows)
    cfg.define_knob("tiles", block_sizes(spec, t, pairs))
    cfg.define_knob("unroll", [1, 2])
    cfg.add_flop(2 * spec.macs)
    top, left, _, _ = spec.padding
    # A map larger than its tiles need keeps what it has; the rows beyond are never read.
    bottom = max(0, down * t.m + t.r - 1 - top - spec.height)
    right = max(0, across * t.m + t.r - 1 - left - spec.width)
    padding = (top, left, bottom, right)
    source = padded_map(replace(spec, padding=padding), CHANNELS, "uint8", data)
    inputs = [source, weight, bias, multiplier] + ([] if residual is None else [residual])

    def body(ins, out):
        emitter = _Body(spec, t, pairs, ins, out)
        return emitter.loops(total, cfg["tiles"].val, rows, cfg["unroll"].val)

    return extern(spec.out_shape, inputs, body, spec.out_dtype, "conv2d", "easyquant_conv2d")


class _Positions:
    """A workspace array of ``positions`` rows of ``size`` elements."""

    def __init__(self, ib, dtype, name, positions, size):
        self.stride = size + LINE // np.dtype(dtype).itemsize
        self.buffer = ib.allocate(dtype, positions * self.stride, name=name)

    def load(self, position, at, dtype):
        return self.buffer.vload([position * self.stride + at], dtype)

    def store(self, position, at, value):
        return self.buffer.vstore([position * self.stride + at], value)


class _Part(NamedTuple):
    """Pairs of input channels from ``first`` on; adds: to the sums that are there already."""

    first: tir.PrimExpr
    pairs: int
    adds: bool


class _Body:
    """Emits the loops as TIR; one instance per kernel."""

    def __init__(self, spec, t, pairs, ins, out):
        self.spec, self.t, self.word_pairs = spec, t, pairs.multiply
        self.lanes, self.products_apart = pairs.lanes, pairs.apart
        self.block = block_of(spec, pairs.lanes)
        self.vectors = self.block // self.lanes
        self.data, self.weight, self.bias, multiplier = ins[:4]
        self.ib = Builder()
        self.keep = keeper(self.ib)
        self.write = Writer(self.ib, spec, out, multiplier, ins[4] if len(ins) > 4 else None,
                            pairs.narrow, pairs.pieces)  # fmt: skip
        self.wrap = Wrapping(self.lanes)
        self.vector = self.wrap.type
        # a function's curve has branches, across which LLVM would keep all of a tile in registers
        self.apart = epilogue.curve_of(spec, pairs.pieces, pairs.lanes) is not None

    def loops(self, total, size, rows, unroll):
        ib, t, spec = self.ib, self.t, self.spec
        positions, channels = t.n * t.n, 2 * pairs_of(spec)
        parts = parts_of(spec, t, self.lanes, size)
        each = channels // 2 // parts  # pairs of channels
        llvm = [self.wrap.llvm] + ([after_llvm(self.vector)] if self.products_apart else [])
        ib.scope_attr(self.data.data, "pragma_import_llvm", "\n".join(llvm))
        blocks, kind = -(-total // size), outer_loop(spec)
        # threads take blocks of tiles; of a single block, tiles to transform and then output channels
        outer, inner = (kind, "serial") if blocks > 1 else ("serial", kind)
        with ib.for_range(0, blocks, "tile_block", kind=outer) as tb:
            # positions a line further apart: at a power of two they would share a set of the cache
            v = _Positions(ib, "int16", "V", positions, size * channels)
            with ib.for_range(0, size, "tile", kind=inner) as ti:
                with self.among(tb, size, ti - ti % rows, total):
                    with ib.for_range(0, channels // CHANNELS, "c") as c:
                        self.transform_data(tb * size + ti, ti, c * CHANNELS, total, size, channels, v)
            with ib.for_range(0, spec.out_channels // self.block, "block", kind=inner) as block:
                u = _Positions(ib, "int16", "U", positions, 2 * each * self.block)
                m = _Positions(ib, "int32", "M", positions, size * self.block)
                if parts > 1:
                    with ib.for_range(0, positions, "position") as position:
                        with ib.for_range(0, size * self.vectors, "sum") as at:
                            ib.emit(m.store(position, at * self.lanes, const(0, self.vector)))
                with ib.for_range(0, parts, "part") as part:
                    chosen = _Part(part * each, each, parts > 1)
                    with ib.for_range(0, each, "pair") as pair:
                        for vector in range(self.vectors):
                            self.transform_weights(block, chosen.first + pair, pair, vector, u)
                    with ib.for_range(0, positions, "position") as position:
                        with ib.for_range(0, size // rows, "rows") as group:
                            turn = (part * positions + position) * (size // rows) + group
                            self.fetch(block + 1, turn, parts * positions * (size // rows))
                            first = group * rows
                            with self.among(tb, size, first, total):
                                self.multiply(position, first, rows, channels, chosen, unroll, u, v, m)
                with ib.for_range(0, size, "tile") as ti:
                    with self.among(tb, size, ti, total):
                        for vector in range(self.vectors):
                            self.finish(tb * size + ti, ti, block, vector, m)
                if self.apart:
                    with ib.for_range(0, size, "tile") as ti:
                        with self.among(tb, size, ti, total):
                            for vector in range(self.vectors):
                                self.store_sums(tb * size + ti, ti, block, vector, m)
        return ib.get()

    def among(self, tile_block, size, first, total):
        """Where tile ``first`` of a block of ``size`` is one of the map's; the last block may be short."""
        whole = total % size == 0
        return nullcontext() if whole else self.ib.if_scope(tile_block * size + first < total)

    def place(self, tile):
        """(image, first output row, first output column) of a tile."""
        down, across = tiles_of(self.spec, self.t)
        return tile // (down * across), (tile // across) % down * self.t.m, tile % across * self.t.m

    def transform_data(self, tile, ti, channel, total, size, channels, v):
        t, keep = self.t, self.keep
        image, y, x = self.place(tir.min(tile, total - 1))
        wide = f"int16x{CHANNELS}"
        lines = []
        for i in range(t.n):
            row = [
                keep(self.data.vload([image, y + i, x + j, channel], f"uint8x{CHANNELS}").astype(wide))
                for j in range(t.n)
            ]
            lines.append(apply(t.bt, row, Plain, keep))
        for j in range(t.n):
            column = apply(t.bt, [lines[i][j] for i in range(t.n)], Plain, keep)
            for i in range(t.n):
                self.ib.emit(v.store(i * t.n + j, ti * channels + channel, column[i]))

    def fetch(self, block, turn, turns):
        """Fetch a part of the weights of a block of channels, while those of another multiply."""
        share = -(-int(np.prod([int(d) for d in self.weight.shape[1:]])) // turns)
        for first in range(0, share, LINE):
            self.ib.emit(prefetch(self.weight, [block, 0, 0, 0, turn * share + first]))

    def transform_weights(self, block, pair, place, vector, u):
        """A pair of input channels by the output channels of a vector, stored at ``place``: U = G w GT."""
        t, keep, lanes = self.t, self.keep, 2 * self.lanes
        columns = []
        for b in range(t.r):
            taps = [[block, a * t.r + b, pair, vector * self.lanes, 0] for a in range(t.r)]
            column = [keep(self.weight.vload(i, f"int8x{lanes}").astype(f"int16x{lanes}")) for i in taps]
            columns.append(apply(t.g, column, Plain, keep))
        for i in range(t.n):
            row = apply(t.g, [columns[b][i] for b in range(t.r)], Plain, keep)
            for j in range(t.n):
                self.ib.emit(u.store(i * t.n + j, (place * self.vectors + vector) * lanes, row[j]))

    def multiply(self, position, first, rows, channels, part, unroll, u, v, m):
        """``rows`` tiles by a `_Part` of the ``channels``, which U holds, at one position."""
        ib, lanes = self.ib, self.lanes
        # a buffer for each vector: one of 1 KiB would be memory, not registers
        acc = [ib.allocate("int32", rows * lanes, name="acc") for _ in range(self.vectors)]

        def slot(r):
            return [r * lanes]

        for r in range(rows):
            for vector, each in enumerate(acc):
                at = self.sums_at(first + r, vector)
                start = m.load(position, at, self.vector) if part.adds else const(0, self.vector)
                ib.emit(each.vstore(slot(r), start))
        with ib.for_range(0, part.pairs // unroll, "k") as k:
            for step in range(unroll):
                pair = k * unroll + step
                for r in range(rows):
                    x = v.load(position, (first + r) * channels + (part.first + pair) * 2, "int16x2")
                    x = tir.reinterpret("int32", x).astype(self.vector)
                    x = tir.reinterpret(f"int16x{2 * lanes}", x)
                    ats = [(pair * self.vectors + vector) * 2 * lanes for vector in range(self.vectors)]
                    ws = [u.load(position, at, f"int16x{2 * lanes}") for at in ats]
                    old = [each.vload(slot(r), self.vector) for each in acc]
                    for each, total in zip(acc, self.totals(old, x, ws), strict=True):
                        ib.emit(each.vstore(slot(r), total))
        for r in range(rows):
            for vector, each in enumerate(acc):
                at = self.sums_at(first + r, vector)
                ib.emit(m.store(position, at, each.vload(slot(r), self.vector)))

    def totals(self, old, x, ws):
        """The sums ``old`` and the products of ``x`` with ``ws``."""
        if not self.products_apart or len(ws) < 2:
            return [self.word_pairs(self.wrap, total, x, w) for total, w in zip(old, ws, strict=True)]
        zero = const(0, self.vector)
        first, second = (self.keep(self.word_pairs(self.wrap, zero, x, w)) for w in ws)
        return [self.wrap.add(old[0], after(first, second)), self.wrap.add(old[1], second)]

    def finish(self, tile, ti, block, vector, m):
        """The output sums of a tile, stored or, if they are to be later, where its products were."""
        t, keep = self.t, self.keep
        at, channel = self.column(ti, block, vector)
        columns = []
        for j in range(t.n):
            column = [keep(m.load(i * t.n + j, at, self.vector)) for i in range(t.n)]
            columns.append(apply(t.at, column, self.wrap, keep))
        for i in range(t.m):
            line = apply(t.at, [columns[j][i] for j in range(t.n)], self.wrap, keep)
            done = []
            for each in line:
                exact = self.wrap.scale(t.inverse, each) if t.inverse != 1 else each
                acc = keep(exact >> const(t.shift, self.vector))
                done.append(acc + self.bias.vload([channel], self.vector))
            if not self.apart:
                self.store([done], tile, i, channel)
                continue
            for j, each in enumerate(done):
                self.ib.emit(m.store(i * t.m + j, at, each))

    def column(self, ti, block, vector):
        """(where a tile's vector of channels is at each position, the first of them)."""
        return self.sums_at(ti, vector), block * self.block + vector * self.lanes

    def sums_at(self, ti, vector):
        """Where a tile's vector of channels is at each position."""
        return ti * self.block + vector * self.lanes

    def store_sums(self, tile, ti, block, vector, m):
        """Store what `finish` has left at the first positions."""
        at, channel = self.column(ti, block, vector)
        size = range(self.t.m)
        lines = [[m.load(i * self.t.m + j, at, self.vector) for j in size] for i in size]
        self.store(lines, tile, 0, channel)

    def store(self, lines, tile, first, channel):
        """Store the sums of rows of a tile from row ``first`` on, those that are in the map."""
        spec, t = self.spec, self.t
        image, y, x = self.place(tile)
        done, inside = [], []
        for i, j in np.ndindex(len(lines), t.m):

            def index(k, i=i + first, j=j):
                return [image, y + i, x + j, k]

            done.append(Lanes(lines[i][j], index, channel, channel))
            ragged = ((i + first, y, spec.out_height), (j, x, spec.out_width))
            inside.append([start + at < end for at, start, end in ragged if at >= end % t.m > 0])
        self.write.all(done, inside=inside)
