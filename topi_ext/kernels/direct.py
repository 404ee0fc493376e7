"""Direct NHWC convolution with a register tile: the loops, for any multiply instruction.

The output is made in tiles of ``pixels x lanes`` accumulators that live in registers. For each run of
the kernel window (a stretch contiguous in memory, `packing.pack`) the tile walks the input channels in
groups of one 32-bit lane: the group is broadcast from the feature map itself (no im2col) and
multiplied with ``lanes`` output channels at once. Tails are smaller tiles of the same code.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np

from .. import epilogue
from ..emit import Builder, const, dtype_of, extern, keeper, lanes_of, prefetch, tir, with_lanes
from ..packing import blocks_of, groups_of, runs_of, tight
from ..problem import ConvSpec

PARALLEL_MACS = 1_000_000  # a layer of less takes some 10 us on one core, a thread's wake-up some 5
LINE = 64  # bytes of a cache line
PARALLEL_BYTES = 100_000  # the same for copying a map
#: LLVM does not keep what it has read beyond this; of a run it may keep more than there are registers
BARRIER = """define i32 @easyquant_barrier() alwaysinline {
  call void asm sideeffect "", "~{memory}"()
  ret i32 0
}"""
ROW_BYTES = 12_000  # of a row of pixels: a part of the nearest cache, where a block of weights is as well


class Dot(NamedTuple):
    """A multiply instruction: ``lanes`` int32 sums of ``group`` products each.

    data: element type of the padded map; weight: of the packed weights; depth: how many groups
    ``combine`` takes at once. load(x) makes of one group of inputs what ``combine`` multiplies;
    combine(acc, [x...], [w...]) -> acc adds their products. accumulators: of a tile, kept in registers;
    vectors: of each pixel of a tile, where the layer's blocks of output channels are a multiple of them: a
    multiply that waits for its result needs more accumulators than pixels can be loaded for.
    An accumulator holds ``partials`` int32 sums for each lane, which reduce(acc) adds up at the end.
    load subtracts ``offset`` from the data, which the bias has to make up for. narrow, pieces: see
    `Writer`.
    rereads: what pixels side by side have in common in a run is read for each, by `BARRIER`.
    short: (groups, pixels): the most pixels of a tile where an output has so few groups of inputs, so that
    the CPU is at one tile's products while it stores the last one's; the fewest groups first.
    fills: see `filled`.
    """

    lanes: int
    group: int
    data: str
    weight: str
    depth: int
    load: Callable
    combine: Callable
    accumulators: int
    partials: int = 1
    reduce: Callable | None = None
    offset: int = 0
    narrow: Narrow | None = None
    vectors: int = 1
    rereads: bool = False
    pieces: epilogue.Pieces | None = None
    short: tuple[tuple[int, int], ...] = ()
    fills: bool = False


def broadcast_word(lanes: int) -> Callable:
    """The 32 bits of one group in each of ``lanes`` lanes."""
    return lambda x: tir.reinterpret("int32", x).astype(f"int32x{lanes}")


def plain_dot(lanes: int, accumulators: int) -> Dot:
    """Multiply and add in int32 lanes, no intrinsic: exact on every CPU."""

    def combine(acc, xs, ws):
        for x, w in zip(xs, ws, strict=True):
            acc = acc + x * w.astype(dtype_of(acc))
        return acc

    def load(x):
        return x.astype("int32").astype(f"int32x{lanes}")

    return Dot(lanes, 1, "uint8", "int8", 1, load, combine, accumulators)


def needs_copy(spec: ConvSpec, group: int, dtype: str) -> bool:
    """Whether the data must be copied (padded, widened, or channels rounded up) before the kernel."""
    return bool(any(spec.padding) or spec.in_channels % group or dtype != "uint8")


def padded_map(spec: ConvSpec, group: int, dtype: str, data):
    """The padded map as a TE stage: (N, H + pads, W + pads, channels rounded up to the group); where rows
    are `tight`, the channels as they are and some more pixels for the last group to read."""
    if not needs_copy(spec, group, dtype):
        return data
    shape = padded_shape(spec, group)
    return extern(shape, [data], lambda ins, out: _copy(spec, ins[0], out, shape, dtype), dtype,
                  "padded", "easyquant_padded")  # fmt: skip


def padded_shape(spec: ConvSpec, group: int) -> tuple[int, int, int, int]:
    """That of `padded_map`."""
    top, left, bottom, right = spec.padding
    channels, more = -(-spec.in_channels // group) * group, 0
    if tight(spec, group):
        channels, more = spec.in_channels, -(-(group - 1) // spec.in_channels)
    return spec.batch, spec.height + top + bottom, spec.width + left + right + more, channels


def _copy(spec: ConvSpec, data, out, shape, dtype):
    """The rows of the padded map: what is inside is copied, what is not becomes the zero point.

    Maps are contiguous: an index may run on from a pixel's channels into the next pixel. Quotients and
    remainders that say the same are not taken together again by every TVM.
    """
    ib = Builder()
    (_, rows, width, channels), (top, left, _, _) = shape, spec.padding

    def fill(n, y, x, first, count):
        """``count`` elements of a row from channel ``first`` of pixel ``x``: the zero point."""
        for at, lanes in pieces(ib, count):
            value = const(spec.zero_point, with_lanes(dtype, lanes))
            ib.emit(out.vstore([n, y, x, first + at], value))

    def copy(n, y, x, from_x, count):
        """``count`` elements from pixel ``from_x`` of the data's row to pixel ``x``."""
        for at, lanes in pieces(ib, count):
            value = data.vload([n, y - top, from_x, at], with_lanes(str(data.dtype), lanes))
            value = value.astype(with_lanes(dtype, lanes))
            ib.emit(out.vstore([n, y, x, at], value))

    ib.whole(out)
    parallel = np.prod(shape) > PARALLEL_BYTES
    with ib.for_range(0, shape[0] * rows, "row", kind="parallel" if parallel else "serial") as row:
        n, y = row // rows, row % rows
        if rows != spec.height:
            with ib.if_scope(tir.any(y < top, y >= top + spec.height)):
                fill(n, y, 0, 0, width * channels)
        inside = ib.if_scope(tir.all(y >= top, y < top + spec.height))
        with inside if rows != spec.height else nullcontext():
            if left:
                fill(n, y, 0, 0, left * channels)
            if channels == spec.in_channels:
                copy(n, y, left, 0, spec.width * channels)
            else:
                with ib.for_range(0, spec.width, "x") as x:
                    copy(n, y, x + left, x, spec.in_channels)
                    fill(n, y, x + left, spec.in_channels, channels - spec.in_channels)
            if width > left + spec.width:
                right = width - left - spec.width
                fill(n, y, left + spec.width, 0, right * channels)
    return ib.get()


def pieces(ib, count, sizes=(32, 16, 8, 4, 2, 1)):
    """(offset, lanes) of vectors that cover ``count`` contiguous elements; loops where there are many."""
    done = 0
    for lanes in sizes:
        repeat, _ = divmod(count - done, lanes)
        if repeat > 1:
            with ib.for_range(0, repeat, "piece") as piece:
                yield done + piece * lanes, lanes
        elif repeat:
            yield done, lanes
        done += repeat * lanes


def outer_loop(spec: ConvSpec) -> str:
    """Kind of a kernel's outermost loop: small layers are done before other threads have woken up. What a
    depthwise layer does for each multiply-accumulate takes four times as long."""
    return "parallel" if spec.macs * (4 if spec.depthwise else 1) > PARALLEL_MACS else "serial"


def flattens(spec: ConvSpec) -> bool:
    """A 1x1 convolution without stride or padding sees its map as one row of pixels."""
    return spec.kernel == (1, 1) and spec.strides == (1, 1) and not any(spec.padding)


def tile_pixels(width: int, most: int) -> int:
    """The tile width whose tiles (tail included) cost least; a tile costs its pixels plus overhead, and a
    tail of one pixel waits for its sums."""
    return min(range(1, most + 1), key=lambda p: (_row_cost(width, p), width % p == 1, -p))


def _row_cost(width: int, pixels: int) -> float:
    """What a row costs in tiles of ``pixels``."""
    tiles, tail = divmod(width, pixels)
    return tiles * (pixels + 1.5) + (tail + 1.5 if tail else 0)


def rows_of(spec: ConvSpec, dot: Dot) -> tuple[int, int]:
    """Rows of the output map, over the batch, and their width, as the loops see them.

    A map that `flattens` is cut into equal rows, which stay in the nearest cache with a line of outputs and
    one of residuals for each pixel; it stays whole where tiles would fill the rows worse (`cut`).
    """
    if not flattens(spec):
        return spec.batch * spec.out_height, spec.out_width
    pixels = spec.batch * spec.out_height * spec.out_width
    most = pixels_of(spec, dot)
    limit = _near(spec, most)

    def overhead(width):
        return _row_cost(width, tile_pixels(width, most)) / width

    widths = [w for w in range(1, pixels + 1) if pixels % w == 0 and (w <= limit or w == pixels)]
    width = min(reversed(widths), key=lambda w: (round(overhead(w), 2), w == pixels))
    return pixels // width, width


def _near(spec: ConvSpec, pixels: int) -> int:
    """Pixels of a flat map's row that stay in the nearest cache, two tiles of ``pixels`` at least."""
    return max(ROW_BYTES // (spec.in_channels + 2 * LINE), 2 * pixels)


def cut(spec: ConvSpec, width: int, pixels: int) -> tuple[int, int]:
    """(rows, tiles of ``pixels`` in each) of a map that is one row of ``width``; the last one may have
    fewer, and has the tail. So threads take pixels of it: by blocks of channels they would write to the
    same lines of memory."""
    tiles = width // pixels
    rows = max(1, -(-tiles // (_near(spec, pixels) // pixels)))
    each = max(1, -(-tiles // rows))
    return -(-tiles // each), each


def pixels_of(spec: ConvSpec, dot: Dot) -> int:
    """The most pixels of a tile in a map wider than one pixel."""
    count = np.prod(groups_of(spec, dot.group))
    few = (pixels for groups, pixels in dot.short if count <= groups and spec.epilogue != "add")
    return next(few, dot.accumulators // _side_by_side(spec, dot))


def filled(spec: ConvSpec, dot: Dot) -> int:
    """To a multiple of how many the blocks of output channels are filled up: for a multiply that ``fills``
    those of a tile, where few are empty."""
    return dot.vectors if dot.fills and blocks_of(spec, dot.lanes) >= 4 * dot.vectors else 1


def _blocks(spec: ConvSpec, dot: Dot) -> int:
    """Blocks of output channels of a group of the convolution."""
    return blocks_of(spec, dot.lanes, filled(spec, dot))


def _side_by_side(spec: ConvSpec, dot: Dot) -> int:
    """Blocks of output channels in a tile of several pixels."""
    return 1 if _blocks(spec, dot) % dot.vectors else dot.vectors


def vectors_of(spec: ConvSpec, dot: Dot) -> int:
    """Blocks of output channels in a tile: a dense layer has one pixel, so its tile is wide instead."""
    if rows_of(spec, dot)[1] > 1:
        return _side_by_side(spec, dot)
    return next(v for v in (4, 2, 1) if _blocks(spec, dot) % v == 0)


def work(spec: ConvSpec, dot: Dot) -> tuple[float, ...]:
    """Millions of: multiply-accumulates with padded channels, tiles, outputs, elements copied, weights."""
    rows, width = rows_of(spec, dot)
    columns = spec.groups * _blocks(spec, dot)
    depth = int(np.prod(groups_of(spec, dot.group))) * dot.group
    tiles = rows * -(-width // tile_pixels(width, min(pixels_of(spec, dot), width))) * columns
    counts = (
        rows * width * columns * dot.lanes * depth,
        tiles,
        np.prod(spec.out_shape),
        copied(spec) if needs_copy(spec, dot.group, dot.data) else 0,
        columns * dot.lanes * depth,
    )
    return tuple(float(n) * 1e-6 for n in counts)


def copied(spec: ConvSpec) -> int:
    """Elements of the padded map."""
    top, left, bottom, right = spec.padding
    return spec.batch * (spec.height + top + bottom) * (spec.width + left + right) * spec.in_channels


def compute(
    cfg, spec: ConvSpec, dot: Dot, data, weight, bias, multiplier, residual=None, *, shallow=None, body=None
):
    """TE tensor of the convolution; weight as `packing.pack` makes it, bias and multiplier padded.

    shallow: the `Dot` of blocks of output channels whose depth, which follows the bias, is not ``dot``'s.
    body: what makes the loops, of `Body`'s arguments; None: that.

    AutoTVM knobs: ``tile`` (pixels), ``order`` (which loop is outside).
    """
    rows, width = rows_of(spec, dot)
    blocks = _blocks(spec, dot)
    most = min(pixels_of(spec, dot), width)
    default = tile_pixels(width, most)
    candidates = [default] + [p for p in (1, 2, 3, 4, 5, 6, 7, 8, 14) if p <= most and p != default]
    cfg.define_knob("tile", candidates)
    weight_bytes = spec.groups * blocks * dot.lanes * int(weight.shape[1]) * int(weight.shape[2]) * 4
    orders = ["rows", "channels"]
    if flattens(spec) and rows == 1:
        rows, _ = cut(spec, width, default)
    cfg.define_knob("order", orders[::-1] if weight_bytes > 2**17 or rows <= 1 else orders)
    cfg.add_flop(2 * spec.macs)
    source = padded_map(spec, dot.group, dot.data, data)
    inputs = [source, weight, bias, multiplier] + ([] if residual is None else [residual])

    def loops(ins, out):
        return (body or Body)(spec, dot, ins, out, cfg["tile"].val, cfg["order"].val, shallow).loops()

    return extern(spec.out_shape, inputs, loops, spec.out_dtype, "conv2d", "easyquant_conv2d")


class Lanes(NamedTuple):
    """Finished int32 lanes with bias; index(channel) -> output indices; k: their first output channel;
    padded_k: its place in the padded bias and multiplier vectors."""

    acc: object
    index: Callable
    k: object
    padded_k: object


class Narrow(NamedTuple):
    """A row's own rounding.

    pack(values, zero_point, lo, hi, bounded) -> [uint8 lanes]: rounds float32 lanes to stored bytes, as
    `epilogue.round_to_step` and `epilogue.store_byte` do, several at once; bounded: of `problem.ConvSpec`.
    nearest(x) -> x in float32 lanes, rounded half to even."""

    pack: Callable
    nearest: Callable


def _within(item: Lanes, conditions):
    """Indices of ``item`` in the residual, which is no larger than the map: of what is computed and not
    stored, those of the first pixel."""
    index = item.index(item.k)
    if not conditions:
        return index
    return [tir.Select(tir.all(*conditions), tir.const(i) if isinstance(i, int) else i, 0) for i in index]


class Writer:
    """Stores finished lanes; ``valid`` of them where the last block of a group is ragged. narrow: `Narrow`,
    or None: as every CPU can; pieces: how a function is approximated, or None."""

    def __init__(self, ib, spec, out, multiplier, residual, narrow=None, pieces=None):
        self.ib, self.spec, self.out = ib, spec, out
        self.multiplier, self.residual, self.narrow, self.pieces = multiplier, residual, narrow, pieces
        self.keep = keeper(ib)

    def all(self, items, valid=None, inside=None):
        """Store a list of `Lanes`; the first ``valid`` lanes of each count. inside: for each item the
        conditions under which it is stored."""
        spec, inside = self.spec, inside or [()] * len(items)
        lanes = lanes_of(dtype_of(items[0].acc))[1]
        ragged = valid is not None and valid != lanes
        curve = epilogue.curve_of(spec, self.pieces, lanes)
        if curve is not None and not (ragged and spec.residual is not None):
            rows = epilogue.tables(self.ib, curve, lanes)
            size = -(-len(items) // -(-len(items) // self.pieces.together))
            for first in range(0, len(items), size):
                some = slice(first, first + size)
                done = self._by_pieces(curve, items[some], inside[some], rows)
                self._store(items[some], done, inside[some], valid if ragged else None)
            return
        if ragged or self.narrow is None or spec.epilogue == "dequantize":
            for item, conditions in zip(items, inside, strict=True):
                with self.ib.if_scope(tir.all(*conditions)) if conditions else nullcontext():
                    self._one(item, valid)
            return
        values = []
        for item, conditions in zip(items, inside, strict=True):
            operands = self._operands(_within(item, conditions), item.padded_k, item.acc)
            values.append(epilogue.unrounded(spec, item.acc, *operands, self.narrow.nearest))
        done = self.narrow.pack(values, spec.out_zero_point, spec.lo, spec.hi, spec.bounded)
        self._store(items, done, inside, None)

    def _by_pieces(self, curve, items, inside, rows) -> list:
        """Bytes of a few `Lanes` whose function has a ``curve``; rows: its tables."""
        values, nearest = [], self.narrow.nearest if self.narrow is not None else None
        for item, conditions in zip(items, inside, strict=True):
            at = _within(item, conditions)
            multiplier, _, residual, _ = self._operands(at, item.padded_k, item.acc)
            values.append(self.keep(epilogue.before(self.spec, item.acc, multiplier, residual, nearest)))
        return self.pieces.each(epilogue.finished(self.ib, curve, self.pieces, self.spec, values, rows))

    def _store(self, items, done, inside, valid):
        """Store bytes of `Lanes`, computed once, where each is inside; valid: lanes that count, or None."""
        if any(inside):
            done = [
                self.keep(value) if conditions else value
                for value, conditions in zip(done, inside, strict=True)
            ]
        for item, value, conditions in zip(items, done, inside, strict=True):
            with self.ib.if_scope(tir.all(*conditions)) if conditions else nullcontext():
                if valid is None:
                    self.ib.emit(self.out.vstore(item.index(item.k), value))
                    continue
                spill = self.ib.allocate("uint8", lanes_of(dtype_of(value))[1], name="spill")
                self.ib.emit(spill.vstore([0], value))
                for at, count in pieces(self.ib, valid):
                    part = spill.vload([at], with_lanes("uint8", count))
                    self.ib.emit(self.out.vstore(item.index(item.k + at), part))

    def _operands(self, index, padded_k, acc) -> tuple[object, object, object, Callable]:
        """What `epilogue.unrounded` takes beside the lanes ``acc``."""
        lanes, residual = lanes_of(dtype_of(acc))[1], None
        if self.residual is not None:
            residual = self.residual.vload(index, with_lanes("uint8", lanes))
        factor, other = epilogue.factors(self.spec, self.multiplier, padded_k, lanes)
        return factor, other, residual, self.keep

    def __call__(self, acc, index, k, padded_k, valid=None):
        """Store one `Lanes`."""
        self._one(Lanes(acc, index, k, padded_k), valid)

    def _one(self, item: Lanes, valid):
        acc, index, k, padded_k = item
        lanes = lanes_of(dtype_of(acc))[1]
        ib, spec = self.ib, self.spec
        if valid is None or valid == lanes:
            value = epilogue.finish(spec, acc, *self._operands(index(k), padded_k, acc))
            ib.emit(self.out.vstore(index(k), value))
            return
        # Ragged: keep the accumulators, finish the valid ones in shorter vectors.
        spill = ib.allocate("int32", lanes, name="spill")
        ib.emit(spill.vstore([0], acc))
        for at, count in pieces(ib, valid):
            some = spill.vload([at], with_lanes("int32", count))
            value = epilogue.finish(spec, some, *self._operands(index(k + at), padded_k + at, some))
            ib.emit(self.out.vstore(index(k + at), value))


def over_row(ib, width, pixels, tile, edges=(0, 0)):
    """Cover a row of ``width`` by tile(first pixel, pixels, number): whole tiles of ``pixels`` in a loop,
    then a smaller one, whose number is None. edges: of the first and of the last pixels, how many are in
    tiles of their own, before and behind the loop, whose first pixel is an int and whose number is None."""
    tiles, tail = divmod(width, pixels)
    first, last = inner_tiles(width, pixels, edges)
    for t in range(first):
        tile(t * pixels, min(pixels, width - t * pixels), None)
    if last > first:
        with ib.for_range(first, last, "tile") as t:
            tile(t * pixels, pixels, t)
    for t in range(max(first, last), tiles):
        tile(t * pixels, pixels, None)
    if tail and tiles >= first:
        tile(tiles * pixels if any(edges) else tir.const(tiles * pixels), tail, None)


def inner_tiles(width, pixels, edges):
    """(first, end) of `over_row`'s tiles in the loop."""
    before, behind = edges
    return -(-before // pixels), (width - behind) // pixels


class _Tile(NamedTuple):
    """A register tile: ``pixels`` of row ``y`` from ``x`` on, by the output channels of the blocks from
    ``block`` on of a group, with the multiply ``dot``. valid: of their channels those that are, None: all.
    fetch(turn, turns): called in every turn of the inner loop."""

    dot: Dot
    y: object
    x: object
    pixels: int
    group: object
    block: object
    valid: int | None
    fetch: Callable | None


class Body:
    """Emits the loops as TIR; one instance per kernel.

    A tile is of ``pixels`` by ``vectors`` blocks of output channels. order: which loop is outside; shallow:
    see `compute`.
    """

    def __init__(self, spec, dot, ins, out, pixels, order, shallow=None):
        self.spec, self.dot, self.shallow = spec, dot, shallow
        self.pixels, self.order = pixels, order
        self.rows, self.width = rows_of(spec, dot)
        self.blocks, self.vectors = _blocks(spec, dot), vectors_of(spec, dot)
        self.flat, self.per_group = flattens(spec), spec.out_channels // spec.groups
        self.tiles, self.tail = divmod(self.width, pixels)
        self.even = not (self.flat and self.rows == 1 and order == "rows" and self.tiles > 1)
        if not self.even:
            self.rows, each = cut(spec, self.width, pixels)
            self.width = each * pixels
        shared = runs_of(spec) < int(np.prod(spec.kernel)) and spec.kernel[1] > spec.strides[1]
        self.rereads = dot.rereads and shared
        self.data, self.weight, self.bias, multiplier = ins[:4]
        self.ib = Builder()
        self.write = Writer(self.ib, spec, out, multiplier, ins[4] if len(ins) > 4 else None,
                            dot.narrow, dot.pieces)  # fmt: skip
        self.vector = with_lanes("int32", dot.lanes)
        self.sums = with_lanes("int32", dot.lanes * dot.partials)

    def loops(self):
        """All rows by all steps of blocks."""
        ib, spec = self.ib, self.spec
        steps = self.blocks // self.vectors
        whole = self.per_group // (self.dot.lanes * self.vectors)  # the last one may be ragged
        kind = outer_loop(spec)
        if self.order == "rows" or spec.groups > 1:
            with ib.for_range(0, self.rows, "row", kind=kind) as y:
                with ib.for_range(0, spec.groups, "group") as group:
                    if whole:
                        with ib.for_range(0, whole, "block") as step:
                            self.row(y, group, step, False)
                    if whole < steps:
                        self.row(y, group, tir.const(whole), True)
            return ib.get()
        if whole:
            with ib.for_range(0, whole, "block", kind=kind) as step:
                with ib.for_range(0, self.rows, "row") as y:
                    self.row(y, tir.const(0), step, False)
        if whole < steps:
            with ib.for_range(0, self.rows, "row", kind=kind) as y:
                self.row(y, tir.const(0), tir.const(whole), True)
        return ib.get()

    def row(self, y, group, step, last):
        """A row of pixels by one step of blocks, at the depth that its weights allow. last: the step may be
        ragged."""
        if self.shallow is None:
            self.row_of(self.dot, y, group, step, last)
            return
        depths = self.spec.groups * self.blocks * self.dot.lanes  # they follow the bias
        depth = self.bias.vload([depths + group * self.blocks + step * self.vectors])
        for dot, mine in ((self.dot, depth == self.dot.depth), (self.shallow, depth != self.dot.depth)):
            with self.ib.if_scope(mine):
                self.row_of(dot, y, group, step, last)

    def row_of(self, dot, y, group, step, last):
        valid = self.per_group % (dot.lanes * self.vectors) if last else None

        def tile(x, pixels, number):
            far = self.order == "channels" and not last and number is not None
            fetch = self.ahead(y, number, step) if far else None
            if self.order == "rows" and not last and number is not None:
                self.maps_ahead(y, number, step)
            self.tile(_Tile(dot, y, x, pixels, group, step * self.vectors, valid, fetch))

        if self.even:
            over_row(self.ib, self.width, self.pixels, tile)
            return
        each = self.width // self.pixels
        with self.ib.for_range(0, tir.min(each, self.tiles - y * each), "tile") as t:
            tile(t * self.pixels, self.pixels, t)
        if self.tail:
            with self.ib.if_scope(y == self.rows - 1):
                tile(self.tiles * self.pixels - y * self.width, self.tail, None)

    def ahead(self, y, number, step):
        """During each tile, fetch a part of the weights of the next step, a little in every turn of its
        inner loop: at once they would make the tile wait."""
        tiles, line = self.width // self.pixels, LINE // np.dtype(self.dot.weight).itemsize
        block = self.vectors * int(np.prod([int(d) for d in self.weight.shape[1:]]))  # weights of a step
        share = -(-block // (self.rows * tiles))

        def fetch(turn, turns):
            stride = -(-share // turns)
            for first in range(0, stride, line):
                offset = (y * tiles + number) * share + turn * stride + first
                self.ib.emit(prefetch(self.weight, [(step + 1) * self.vectors, 0, 0, 0, offset]))

        return fetch

    def maps_ahead(self, y, number, step):
        """Before a tile, fetch a part of the next row of a residual, and of the outputs that it is added
        to: lines of which a tile needs a quarter or less, too far apart for the CPU to guess."""
        if self.write.residual is None:
            return
        tiles = LINE // (self.dot.lanes * self.vectors)  # that share a line
        count = -(-self.pixels // tiles)
        for i in range(count):
            x = number * self.pixels + step % tiles * count + i
            for each in (self.write.residual, self.write.out):
                self.ib.emit(prefetch(each, self.address(y + 1, x, step // tiles * LINE)))

    def address(self, y, x, channel):
        """Indices into the output map; ``y`` counts rows of the whole batch."""
        spec = self.spec
        if self.flat:
            # one row of all pixels, as in `_copy`
            return [0, 0, y * self.width + x, channel]
        return [y // spec.out_height, y % spec.out_height, x, channel]

    def tile(self, tile):
        """Start at the bias, or at zero and add it at the end; multiply; store."""
        size = self.dot.lanes * self.dot.partials
        acc = self.ib.allocate("int32", tile.pixels * self.vectors * size, name="acc")

        def slot(p, v):
            return [(p * self.vectors + v) * size]

        for p in range(tile.pixels):
            for v in range(self.vectors):
                bias = self.bias.vload([self.place(tile, v) * tile.dot.lanes], self.vector)
                self.ib.emit(acc.vstore(slot(p, v), const(0, self.sums) if tile.dot.reduce else bias))
        self.window(tile, acc, slot)
        for v in range(self.vectors):
            valid = None if tile.valid is None else min(tile.dot.lanes, tile.valid - v * tile.dot.lanes)
            if valid is not None and valid <= 0:
                break
            done = [self.finished(tile, p, v, acc.vload(slot(p, v), self.sums)) for p in range(tile.pixels)]
            self.write.all(done, valid)

    def place(self, tile, v):
        """The block of the packed weights, bias and multiplier of a tile's vector."""
        return tile.group * self.blocks + tile.block + v

    def finished(self, tile, p, v, total):
        """`Lanes` of pixel ``p`` and vector ``v``, whose sums are ``total``."""
        padded = self.place(tile, v) * tile.dot.lanes
        if tile.dot.reduce:
            total = tile.dot.reduce(total) + self.bias.vload([padded], self.vector)
        k = tile.group * self.per_group + (tile.block + v) * tile.dot.lanes
        return Lanes(total, lambda k: self.address(tile.y, tile.x + p, k), k, padded)

    def window(self, tile, acc, slot):
        """Walk the runs of the kernel window."""
        spec, runs = self.spec, runs_of(self.spec)
        if self.rereads:
            self.ib.scope_attr(self.data.data, "pragma_import_llvm", BARRIER)
        if runs == 1:
            self.run(tile, acc, slot, 0, 0, 0)
            return
        columns = runs // spec.kernel[0]  # runs in a kernel row
        with self.ib.for_range(0, runs, "run") as run:
            self.run(tile, acc, slot, run // columns, run % columns if columns > 1 else 0, run)

    def run(self, tile, acc, slot, ry, rx, run):
        """One run, in turns of ``depth`` groups of inputs and a shorter one."""
        depth = tile.dot.depth
        whole, rest = divmod(int(self.weight.shape[2]), depth)
        if whole:
            with self.ib.for_range(0, whole, "k") as k:
                if tile.fetch is not None:
                    tile.fetch(run * whole + k, runs_of(self.spec) * whole)
                self.groups(tile, acc, slot, ry, rx, run, k * depth, depth)
        if rest:
            self.groups(tile, acc, slot, ry, rx, run, tir.const(whole * depth), rest)

    def groups(self, tile, acc, slot, ry, rx, run, first, count):
        """``count`` groups of inputs from group ``first`` of a run, for every pixel and vector."""
        if self.rereads:
            self.ib.emit(tir.Evaluate(tir.call_extern("int32", "easyquant_barrier")))
        for p in range(tile.pixels):
            for v in range(self.vectors):
                xs = [self.inputs(tile, p, ry, rx, first + d) for d in range(count)]
                ws = [self.weights_at(tile, v, run, first + d) for d in range(count)]
                old = acc.vload(slot(p, v), self.sums)
                self.ib.emit(acc.vstore(slot(p, v), tile.dot.combine(old, xs, ws)))

    def weights_at(self, tile, v, run, group):
        """The weights of a group of a run, for a tile's vector."""
        wide = with_lanes(tile.dot.weight, tile.dot.group * tile.dot.lanes)
        return self.weight.vload([self.place(tile, v), run, group, 0, 0], wide)

    def inputs(self, tile, p, ry, rx, first):
        """Group ``first`` of the inputs of pixel ``p`` under a tap, as the multiply takes it."""
        per_group = self.spec.in_channels // self.spec.groups
        return self.inputs_at(tile, p, ry, rx, tile.group * per_group + first * tile.dot.group)

    def inputs_at(self, tile, p, ry, rx, channel):
        """The inputs of pixel ``p`` under a tap from ``channel`` on, which may lie beyond the tap."""
        spec, dot = self.spec, tile.dot
        if self.flat:
            index = self.address(tile.y, tile.x + p, channel)
        else:
            index = [
                tile.y // spec.out_height,
                (tile.y % spec.out_height) * spec.strides[0] + ry * spec.dilation[0],
                (tile.x + p) * spec.strides[1] + rx * spec.dilation[1],
                channel,
            ]
        return dot.load(self.data.vload(index, with_lanes(dot.data, dot.group)))
