"""Convolution by products of whole tiles (AMX): the loops, for any `Tiles`.

A product takes the inputs of up to 16 pixels under a run of the kernel window, read from the map as it
lies there, a pixel a row, times the same inputs' weights of 16 output channels, as `packing.pack` orders
them for dot products of four bytes. Two tiles of pixels and two of channels are multiplied at once, so that
each that is loaded is used twice; their sums go through memory to the epilogue, a pixel's lanes at a time.

Every tile of a map has as many pixels, as their number is set for a whole kernel: the last ones overlap,
and what is in both is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from ..emit import Builder, const, extern, tir, with_lanes
from ..packing import blocks_of, groups_of, runs_of
from ..problem import ConvSpec
from .direct import Lanes, Writer, copied, flattens, needs_copy, outer_loop, padded_map

GROUP = 4  # bytes of one product of a lane
LANES = 16  # output channels of a tile
ROWS, ROW_BYTES = 16, 64  # of a tile, at most
SUMS, DATA, WEIGHTS = 0, 4, 6  # the first tile of each kind, of the eight that there are


class Tiles(NamedTuple):
    """Instructions on tiles, which are numbers; each returns a statement.

    configure(ib, {tile: (rows, bytes of a row)}) sets their sizes for this thread; release() ends that.
    zero(tile); load(tile, buffer, indices, stride): rows ``stride`` bytes apart; multiply(sums, data,
    weights): unsigned by signed bytes, by fours into int32; store(tile, buffer, indices, stride).
    """

    configure: Callable
    release: Callable
    zero: Callable
    load: Callable
    multiply: Callable
    store: Callable


def chunk_of(spec: ConvSpec) -> int:
    """Bytes of a run that a product takes: as many as divide it."""
    length = run_length(spec)
    return max(n for n in range(GROUP, ROW_BYTES + 1, GROUP) if length % n == 0)


def run_length(spec: ConvSpec) -> int:
    """Bytes of a run of the kernel window, see `packing.pack`."""
    return GROUP * groups_of(spec, GROUP)[1]


def rows_of(spec: ConvSpec) -> tuple[int, int]:
    """Rows of the output map, over the batch, and their width, as the loops see them."""
    rows, width = spec.batch * spec.out_height, spec.out_width
    return (1, rows * width) if flattens(spec) else (rows, width)


def tiles_of(spec: ConvSpec) -> tuple[int, int]:
    """(tiles of a row, pixels of a tile); the tiles are one, or even in number."""
    _, width = rows_of(spec)
    count = 1 if width <= ROWS else 2 * -(-width // (2 * ROWS))
    return count, -(-width // count)


def work(spec: ConvSpec) -> tuple[float, ...]:
    """Millions of: products of rows of a tile, tiles, outputs, elements copied, weights."""
    (rows, _), (count, pixels) = rows_of(spec), tiles_of(spec)
    columns = spec.groups * blocks_of(spec, LANES)
    products = columns * runs_of(spec) * run_length(spec) // chunk_of(spec)
    return tuple(
        float(n) * 1e-6
        for n in (
            rows * count * pixels * products,
            rows * count * columns,
            np.prod(spec.out_shape),
            copied(spec) if needs_copy(spec, GROUP, "uint8") else 0,
            columns * LANES * runs_of(spec) * run_length(spec),
        )
    )


def compute(cfg, spec: ConvSpec, tiles: Tiles, data, weight, bias, multiplier, residual=None):
    """TE tensor of the convolution; weight as `packing.pack` makes it, bias and multiplier padded.

    AutoTVM knob: ``order`` (which loop is outside).
    """
    orders = ["rows", "channels"]
    large = spec.groups * blocks_of(spec, LANES) * LANES * runs_of(spec) * run_length(spec) > 2**17
    cfg.define_knob("order", orders[::-1] if large else orders)
    cfg.add_flop(2 * spec.macs)
    source = padded_map(spec, GROUP, "uint8", data)
    inputs = [source, weight, bias, multiplier] + ([] if residual is None else [residual])

    def body(ins, out):
        return _Body(spec, tiles, ins, out, cfg["order"].val).loops()

    return extern(spec.out_shape, inputs, body, spec.out_dtype, "conv2d", "easyquant_conv2d")


class _Channels(NamedTuple):
    """Output channels, as ``steps`` of ``vectors`` blocks: ``each`` of them in a group, from its block
    ``first`` on. valid: lanes of the last block, None: all."""

    steps: int
    each: int
    first: int
    vectors: int
    valid: int | None


class _Body:
    """Emits the loops as TIR; one instance per kernel."""

    def __init__(self, spec, tiles, ins, out, order):
        self.spec, self.tiles, self.order = spec, tiles, order
        self.data, self.weight, self.bias, multiplier = ins[:4]
        self.ib = Builder()
        self.write = Writer(self.ib, spec, out, multiplier, ins[4] if len(ins) > 4 else None)
        (self.rows, self.width), (self.count, self.pixels) = rows_of(spec), tiles_of(spec)
        self.side = min(self.count, 2)  # tiles of pixels at once
        self.flat, self.chunk = flattens(spec), chunk_of(spec)
        self.blocks, self.per_group = blocks_of(spec, LANES), spec.out_channels // spec.groups

    def loops(self):
        """All steps of pixels by all of output channels; what is outside is shared among threads."""
        kind, pixels = outer_loop(self.spec), self.rows * (self.count // self.side)
        if self.order == "rows":
            with self.ib.for_range(0, pixels, "step", kind=kind) as step, self.thread():
                for channels in self.channels():
                    with self.ib.for_range(0, channels.steps, "block") as i:
                        self.step(step, i, channels)
            return self.ib.get()
        for channels in self.channels():
            with self.ib.for_range(0, channels.steps, "block", kind=kind) as i, self.thread():
                with self.ib.for_range(0, pixels, "step") as step:
                    self.step(step, i, channels)
        return self.ib.get()

    def channels(self):
        """All output channels: pairs of blocks, then what is left."""
        ragged = self.per_group % LANES
        whole = self.blocks - (ragged > 0)
        groups = self.spec.groups
        if whole > 1:
            yield _Channels(groups * (whole // 2), whole // 2, 0, 2, None)
        if whole % 2:
            yield _Channels(groups, 1, whole - 1, 1, None)
        if ragged:
            yield _Channels(groups, 1, whole, 1, ragged)

    @contextmanager
    def thread(self):
        """What one thread does between the configuration of its tiles and their release."""
        words = 4 * LANES
        sums, data, weights = (self.pixels, words), (self.pixels, self.chunk), (self.chunk // GROUP, words)
        sizes = {SUMS + i: sums for i in range(4)}
        sizes |= {DATA + i: data for i in (0, 1)} | {WEIGHTS + i: weights for i in (0, 1)}
        self.scratch = self.ib.allocate("int32", self.side * self.pixels * 2 * LANES, name="sums")
        self.ib.whole(self.scratch)
        self.tiles.configure(self.ib, sizes)
        yield
        self.ib.emit(self.tiles.release())

    def step(self, step, i, channels):
        """Tiles of pixels by blocks of output channels: step ``step`` of the map, ``i`` of ``channels``."""
        ib, tiles, steps = self.ib, self.tiles, self.count // self.side
        y, number = step // steps, step % steps
        group, first = i // channels.each, channels.first + channels.vectors * (i % channels.each)
        last = const(self.width - self.pixels, "int32")
        starts = [tir.min((number * self.side + n) * self.pixels, last) for n in range(self.side)]
        pairs = [(n, v) for n in range(self.side) for v in range(channels.vectors)]
        for n, v in pairs:
            ib.emit(tiles.zero(SUMS + 2 * n + v))
        runs, chunks = runs_of(self.spec), run_length(self.spec) // self.chunk
        columns = runs // self.spec.kernel[0]
        with ib.for_range(0, runs, "run") as run, ib.for_range(0, chunks, "chunk") as k:
            for v in range(channels.vectors):
                at = [group * self.blocks + first + v, run, k * (self.chunk // GROUP), 0, 0]
                ib.emit(tiles.load(WEIGHTS + v, self.weight, at, 4 * LANES))
            for n, x in enumerate(starts):
                index, stride = self.inputs(y, x, group, run // columns, run % columns, k * self.chunk)
                ib.emit(tiles.load(DATA + n, self.data, index, stride))
                for v in range(channels.vectors):
                    ib.emit(tiles.multiply(SUMS + 2 * n + v, DATA + n, WEIGHTS + v))
        for n, v in pairs:
            at = [(n * self.pixels * 2 + v) * LANES]
            ib.emit(tiles.store(SUMS + 2 * n + v, self.scratch, at, 2 * LANES * 4))
        for n, x in enumerate(starts):
            with ib.for_range(0, self.pixels, "pixel") as p:
                done = [
                    self.finished(y, x + p, n * self.pixels + p, group, first + v, v)
                    for v in range(channels.vectors)
                ]
                self.write.all(done, channels.valid)

    def inputs(self, y, x, group, ry, rx, offset):
        """(indices of the first input of a tile, bytes from one pixel to the next)."""
        spec, channels = self.spec, int(self.data.shape[3])
        channel = group * (spec.in_channels // spec.groups) + offset
        if self.flat:
            return [0, 0, x, channel], channels
        return [
            y // spec.out_height,
            (y % spec.out_height) * spec.strides[0] + ry * spec.dilation[0],
            x * spec.strides[1] + rx * spec.dilation[1],
            channel,
        ], spec.strides[1] * channels

    def finished(self, y, x, row, group, block, v):
        """`Lanes` of a pixel and a block of a group's output channels, whose sums are row ``row`` of the
        tiles."""
        wide, padded = with_lanes("int32", LANES), (group * self.blocks + block) * LANES
        total = self.scratch.vload([(row * 2 + v) * LANES], wide) + self.bias.vload([padded], wide)
        k = group * self.per_group + block * LANES
        return Lanes(total, lambda k: self.address(y, x, k), k, padded)

    def address(self, y, x, channel):
        """Indices into the output map; ``y`` counts rows of the whole batch."""
        spec = self.spec
        if self.flat:
            return [0, 0, x, channel]
        return [y // spec.out_height, y % spec.out_height, x, channel]
