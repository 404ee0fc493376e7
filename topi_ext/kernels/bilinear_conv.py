"""Convolutions in fewer products of bytes (`bilinear`) as loops, for a multiply of four bytes.

The sums of inputs of a chunk of the map are made first. Then a tile of units, each of them two outputs
side by side, walks the input channels with all products of a scheme in registers, where they are added up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .. import bilinear, epilogue
from ..bilinear import GROUP, Scheme
from ..emit import Builder, const, extern, prefetch, tir, with_lanes
from ..problem import ConvSpec
from .direct import BARRIER, LINE, Lanes, Narrow, Writer, outer_loop, over_row, pieces, tile_pixels
from .winograd_conv import Wrapping

#: of a chunk's sums of inputs, and of all weights, to stay in a core's own cache
SUMS_BYTES = 100_000
WEIGHT_BYTES = 300_000


class ByteDots(NamedTuple):
    """multiply(acc, x, w) -> acc plus the products of four bytes, in ``lanes`` lanes of int32, where x has
    the same ones in each. accumulators: kept in registers. narrow, pieces: see `direct.Writer`."""

    lanes: int
    accumulators: int
    multiply: Callable
    narrow: Narrow | None = None
    pieces: epilogue.Pieces | None = None


class Map(NamedTuple):
    """A map as the loops see it: ``images`` of ``rows`` of ``units``, and how many rows are a chunk, whose
    sums of inputs are made together. A 1x1 kernel's rows are parts of one row of all pixels."""

    images: int
    rows: int
    units: int
    chunk: int


def maps_of(scheme: Scheme, spec: ConvSpec, lanes: int, most: int) -> list[Map]:
    """The default first: sums of a chunk of `SUMS_BYTES`, unless the weights, which each chunk reads, are
    too many to stay in the same cache; then one chunk."""
    each = scheme.products * spec.in_channels // scheme.halves
    weights = bilinear.blocks_of(scheme, spec, lanes) * bilinear.groups_of(scheme, spec) * scheme.products
    total, images, rows = -(-spec.batch * spec.out_height * spec.out_width // 2), 1, 1
    found = []
    if scheme.taps == 1:
        units = [u for u in range(1, total + 1) if total % u == 0 and (u % most == 0 or u == total)]
        found = [Map(1, total // u, u, 1) for u in units]
    else:
        images, rows, total = spec.batch, spec.out_height, -(-spec.out_width // 2)
        chunks = [r for r in range(1, rows + 1) if rows % r == 0 and (r * total % most == 0 or r == rows)]
        found = [Map(images, rows, total, r) for r in chunks]
    fits = [m for m in found if m.chunk * m.units * each <= SUMS_BYTES]
    default = fits[-1] if fits and weights * lanes * GROUP <= WEIGHT_BYTES else found[-1]
    return [default, *(m for m in found[::-1] if m != default)]


def work(scheme: Scheme, spec: ConvSpec, dots: ByteDots) -> tuple[float, ...]:
    """Millions of: products, tiles, outputs, sums of inputs, weights."""
    most = dots.accumulators // scheme.products
    images, rows, units, chunk = maps_of(scheme, spec, dots.lanes, most)[0]
    blocks = bilinear.blocks_of(scheme, spec, dots.lanes)
    weights = blocks * bilinear.groups_of(scheme, spec) * scheme.products * dots.lanes * GROUP
    tile = tile_pixels(chunk * units, min(most, chunk * units))
    made = images * rows // chunk * (chunk + spec.kernel[0] - 1) * units
    counts = (
        images * rows * units * weights,
        images * rows // chunk * -(-chunk * units // tile) * blocks,
        np.prod(spec.out_shape),
        made * scheme.products * spec.in_channels // scheme.halves,
        weights,
    )
    return tuple(float(n) * 1e-6 for n in counts)


def compute(cfg, spec: ConvSpec, scheme: Scheme, dots: ByteDots, data, weight, numbers, multiplier,
            residual=None):  # fmt: skip
    """TE tensor; weight, numbers and multiplier as `bilinear.pack` makes them.

    AutoTVM knobs: ``tile`` (units), ``chunk`` (units whose sums of inputs are made together).
    """
    maps = maps_of(scheme, spec, dots.lanes, dots.accumulators // scheme.products)
    most = min(dots.accumulators // scheme.products, maps[0].chunk * maps[0].units)
    default = tile_pixels(maps[0].chunk * maps[0].units, most)
    cfg.define_knob("tile", [default, *(t for t in range(most, 0, -1) if t != default)])
    cfg.define_knob("chunk", [m.chunk * m.units for m in maps])
    cfg.add_flop(2 * spec.macs)
    inputs = [data, weight, numbers, multiplier] + ([] if residual is None else [residual])

    def body(ins, out):
        chosen = next(m for m in maps if m.chunk * m.units == cfg["chunk"].val)
        return _Body(spec, scheme, dots, chosen, ins, out, cfg["tile"].val).loops()

    return extern(spec.out_shape, inputs, body, spec.out_dtype, "conv2d", "easyquant_conv2d")


class _Body:
    """Emits the loops as TIR; one instance per kernel."""

    def __init__(self, spec, scheme, dots, chosen, ins, out, tile):
        self.spec, self.scheme, self.dots, self.map = spec, scheme, dots, chosen
        self.most = min(tile, chosen.chunk * chosen.units)
        self.data, self.weight, self.numbers, multiplier = ins[:4]
        self.ib, self.wrap = Builder(), Wrapping(dots.lanes)
        self.write = Writer(self.ib, spec, out, multiplier, ins[4] if len(ins) > 4 else None,
                            dots.narrow, dots.pieces)  # fmt: skip
        self.blocks, self.size = bilinear.blocks_of(scheme, spec, dots.lanes), scheme.vectors * dots.lanes
        self.products, self.groups = scheme.products, bilinear.groups_of(scheme, spec)
        self.channels, self.offsets = spec.in_channels // scheme.halves, bilinear.offsets(scheme, spec)
        self.starts = [off > 0 or row.any() for off, row in zip(self.offsets, scheme.start, strict=True)]
        self.row_size = chosen.units * self.products * self.channels

    def loops(self):
        ib, kind, (images, rows, _, chunk) = self.ib, outer_loop(self.spec), self.map
        ib.scope_attr(self.data.data, "pragma_import_llvm", f"{self.wrap.llvm}\n{BARRIER}")
        whole, ragged = divmod(self.spec.out_channels, self.size)
        # threads take chunks; of a single one, rows of its sums and then blocks of output channels
        chunks = images * rows // chunk
        outer, inner = (kind, "serial") if chunks > 1 else ("serial", kind)
        with ib.for_range(0, chunks, "chunk", kind=outer) as number:
            n, y = number // (rows // chunk), number % (rows // chunk) * chunk
            count = chunk + self.spec.kernel[0] - 1
            self.sums = ib.allocate("uint8", count * self.row_size + LINE, name="sums")
            self.make(n, y, count, inner)
            if whole:
                with ib.for_range(0, whole, "block", kind=inner) as block:
                    self.block(n, y, block, None, chunks == 1)
            if ragged:
                self.block(n, y, tir.const(whole), ragged, False)
        return ib.get()

    def make(self, n, y, count, kind):
        """The sums of inputs of ``count`` rows from row ``y`` of the output map on."""
        ib, spec, top = self.ib, self.spec, self.spec.padding[0]
        if self.scheme.taps == 1:
            pixels, units = spec.batch * spec.height * spec.width, self.map.units
            alone = pixels % 2  # the last unit has one pixel
            with ib.for_range(0, units, "unit", kind=kind) as u:
                self.unit([0, 0], y * units + u, u, 0, [True, True], (pixels - 1) if alone else None)
            return
        with ib.for_range(0, count, "row", kind=kind) as i:
            row = y + i - top
            outside = tir.any(row < 0, row >= spec.height)
            with ib.if_scope(outside):
                self.row(n, row, i, 0)
            with ib.if_scope(tir.Not(outside)):
                self.row(n, row, i, spec.width)

    def row(self, n, row, i, width):
        """A row of sums, of which ``width`` pixels are in the map; what is not is the zero point."""

        def inside(u):
            return [0 <= 2 * u + j - self.spec.padding[1] < width for j in range(self.scheme.pixels)]

        first, units = 0, self.map.units
        while first < units:  # units that have the same pixels in the map
            end = next((u for u in range(first, units) if inside(u) != inside(first)), units)
            with self.ib.for_range(first, end, "unit") as u:
                self.unit([n, row], u, i * units + u, self.spec.padding[1], inside(first))
            first = end

    def unit(self, row, u, place, left, inside, last=None):
        """All sums of unit ``u`` of a row, the ``place``-th of the chunk; inside: which of its pixels are
        in the map; last: the last pixel, where one may be beyond it."""
        scheme = self.scheme
        for at, lanes in pieces(self.ib, self.channels, (64, 32, 16, 8, 4)):
            wide = with_lanes("uint8", lanes)

            def value(e, at=at, wide=wide):
                pixel, half = divmod(int(e), scheme.halves)
                if not inside[pixel]:
                    return const(self.spec.zero_point, wide)
                x = 2 * u + pixel - left
                x = tir.min(x, last) if pixel and last is not None else x
                return self.data.vload([*row, x, half * self.channels + at], wide)

            for p, signs in enumerate(scheme.data):
                terms = [value(e) for e in np.flatnonzero(signs > 0)]
                terms += [const(self.offsets[p], wide) - value(e) for e in np.flatnonzero(signs < 0)]
                total = terms[0] if len(terms) == 1 else terms[0] + terms[1]
                self.ib.emit(self.sums.vstore([(place * self.products + p) * self.channels + at], total))

    def block(self, n, y, block, valid, fetch):
        """All units of a chunk by a block of output channels, of which ``valid`` are there; None: all."""

        def tile(first, count, number):
            self.tile(n, y, first, count, block, valid, number if fetch else None)

        over_row(self.ib, self.map.chunk * self.map.units, self.most, tile)

    def tile(self, n, y, first, count, block, valid, number):
        """``count`` units from unit ``first`` of a chunk on; number: of the tile, where it is to fetch."""
        ib, lanes, vector = self.ib, self.dots.lanes, self.wrap.type
        # a buffer for each unit: one of 1 KiB would be memory, not registers
        acc = [ib.allocate("int32", self.products * lanes, name="acc") for _ in range(count)]
        for p in range(self.products):
            at = (block * self.products + p) * lanes
            start = self.numbers.vload([at], vector) if self.starts[p] else const(0, vector)
            for each in acc:
                ib.emit(each.vstore([p * lanes], start))

        def multiply(p, row, offset):
            w = self.weight.vload([block, row, 0, 0], f"int8x{GROUP * lanes}")
            for u, each in enumerate(acc):
                at = ((first + u) * self.products + p) * self.channels + offset
                x = tir.reinterpret("int32", self.sums.vload([at], f"uint8x{GROUP}")).astype(vector)
                x = tir.reinterpret(f"uint8x{GROUP * lanes}", x)
                old = each.vload([p * lanes], vector)
                ib.emit(each.vstore([p * lanes], self.dots.multiply(old, x, w)))

        each_row = self.groups // self.spec.kernel[0]
        with ib.for_range(0, self.spec.kernel[0], "row") as row:
            with ib.for_range(0, each_row, "group") as k:
                group = row * each_row + k
                if number is not None:
                    self.fetch(block + 1, number, group)
                for p in range(self.products):
                    ib.emit(tir.Evaluate(tir.call_extern("int32", "easyquant_barrier")))
                    multiply(p, group * self.products + p, row * self.row_size + k * GROUP)
        self.beyond(block, multiply)
        if self.write.residual is not None and count == self.most:
            self.residual_ahead(n, y, first + count, count, block)
        for v in range(self.scheme.vectors):
            left = None if valid is None else min(valid - v * lanes, lanes)
            if left is None or left > 0:
                self.finish(n, y, first, block, v, left, acc)

    def beyond(self, block, multiply):
        """Multiply what is beyond a byte."""
        wide, done = self.scheme.wide, self.groups * self.products
        rows = (int(self.weight.shape[1]) - done) // max(len(wide), 1)
        counts = self.blocks * (self.products + self.scheme.vectors) * self.dots.lanes
        places = counts + self.blocks * len(wide)
        for i, p in enumerate(wide if rows else []):
            number = block * len(wide) + i
            with self.ib.for_range(0, self.numbers.vload([counts + number]), "beyond") as j:
                at = places + (number * rows + j) * 2
                row, k = (self.numbers.vload([at + n]) for n in (0, 1))
                multiply(p, done + i * rows + j, row * self.row_size + k * GROUP)

    def fetch(self, block, number, turn):
        """During each tile, fetch a part of the weights of the next block, a little in every turn."""
        tiles = self.map.chunk * self.map.units // self.most
        share = -(-int(np.prod([int(d) for d in self.weight.shape[1:]])) // tiles)
        stride = -(-share // self.groups)
        for first in range(0, stride, LINE):
            self.ib.emit(prefetch(self.weight, [block, 0, 0, number * share + turn * stride + first]))

    def residual_ahead(self, n, y, first, count, block):
        """Fetch the residuals of the next tile: lines too far apart for the CPU to guess."""
        for u in range(count):
            for j in (0, 1):
                index, _ = self.place(n, y, first + u, j)
                self.ib.emit(prefetch(self.write.residual, index(block * self.size)))

    def finish(self, n, y, first, block, v, valid, acc):
        """Add up the outputs of vector ``v`` and store them."""
        scheme, lanes, vector = self.scheme, self.dots.lanes, self.wrap.type
        channel = block * self.size + v * lanes
        items, inside = [], []
        for u, each in enumerate(acc):
            for j in (0, 1):
                signs = scheme.out[j * scheme.vectors + v]
                plus, minus = (np.flatnonzero(signs == sign).tolist() for sign in (1, -1))
                terms = {p: each.vload([p * lanes], vector) for p in (*plus, *minus)}
                total = functools.reduce(self.wrap.add, [terms[p] for p in plus])
                total = functools.reduce(self.wrap.sub, [total, *(terms[p] for p in minus)])
                if scheme.shift:
                    bias = self.numbers.vload([self.blocks * self.products * lanes + channel], vector)
                    total = (total >> const(scheme.shift, vector)) + bias
                index, conditions = self.place(n, y, first + u, j)
                items.append(Lanes(total, index, channel, channel))
                inside.append(conditions)
        self.write.all(items, valid, inside)

    def place(self, n, y, unit, j):
        """(indices of output ``j`` of a chunk's unit by the channel, the conditions for it to be)."""
        spec, units = self.spec, self.map.units
        pixel = 2 * (y * units + unit) + j
        if self.scheme.taps == 1:
            pixels = spec.batch * spec.out_height * spec.out_width
            return lambda k: [0, 0, pixel, k], [pixel < pixels] if j and pixels % 2 else []
        if spec.out_width % 2 == 0:
            return lambda k: [n, 0, pixel, k], []
        x = unit % units * 2 + j
        return lambda k: [n, y + unit // units, x, k], [x < spec.out_width] if j else []
