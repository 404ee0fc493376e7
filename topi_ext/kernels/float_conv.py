"""Float convolution, NHWC, for what stays float: direct and depthwise, in register tiles, on any CPU.

No norm says a float sum's last bit, as it depends on the order of the products. Here every output is the
bias and then the products in the order of the window's rows, columns and channels, each added by
``llvm.fmuladd`` (fused where the CPU does it at once): the same number whatever the tile, the threads and
the place in the map, and no further from the exact sum than float32's unit times the number of products
times the sum of their magnitudes. No TVM operator is used, and no intrinsic of one CPU: a row of `isa.ISAS`
says the lanes and how many accumulators stay in registers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from math import inf, prod
from typing import NamedTuple

import numpy as np

from .. import isa
from ..emit import Builder, const, dtype_of, extern, pure, tir, with_lanes
from ..isa import Isa
from ..problem import ConvSpec
from .direct import flattens, outer_loop, over_row, padded_map

LATENCY = 4  # cycles of a multiply-add: a tile of fewer than twice as many accumulators waits for itself
CHUNK_BYTES = 65_536  # of a row of pixels that all blocks of weights pass over
WEIGHT_BYTES = 2**18  # of all weights, to stay in the second-level cache while the rows pass by
WIDEST = 8  # vectors of a block: a layer of one pixel has only them


class FloatConv(NamedTuple):
    """A float32 convolution: ``clip(conv(data, weight) + bias [+ residual], lo, hi)``.

    shape: a `ConvSpec` of which the geometry is meant and nothing else. residual: whether a tensor of the
    output's shape is added before the limits. rows: the output's axes before the channels, of a product
    with a matrix that makes another rank; else those of the map.
    """

    shape: ConvSpec
    lo: float = -inf
    hi: float = inf
    residual: bool = False
    rows: tuple[int, ...] | None = None

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Of the output and what is added to it."""
        return self.shape.out_shape if self.rows is None else (*self.rows, self.shape.out_channels)

    def to_json(self) -> str:
        """As an attribute of an operator."""
        return json.dumps({**self._asdict(), "shape": self.shape.to_json()}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> FloatConv:
        """What `to_json` made the text of."""
        fields = json.loads(str(text))
        rows = None if fields["rows"] is None else tuple(fields["rows"])
        return cls(**{**fields, "shape": ConvSpec.from_json(fields["shape"]), "rows": rows})


class Kernel(NamedTuple):
    """A float kernel for one layer.

    pack(weight (R, S, C / groups, K), bias (K,)) -> the constants that it reads. compute(data, *constants[,
    residual]) -> te.Tensor, its loops already made.
    """

    name: str
    pack: Callable
    compute: Callable


def row_of(isa_name: str) -> Isa:
    """The row of `isa.ISAS` whose vectors the float kernels use on an instruction set."""
    return next(isa.ISAS[name] for name in isa.usable(isa_name) if "float" in isa.ISAS[name].tiles)


def choose(conv: FloatConv, isa_name: str) -> Kernel | None:
    """The kernel of a float layer; None for grouped convolutions, which have none."""
    made: _Direct | _Depthwise | None = None
    if conv.shape.depthwise and conv.shape.groups > 1:
        made = _Depthwise(conv, row_of(isa_name))
    elif conv.shape.groups == 1:
        made = _Direct(conv, row_of(isa_name))
    return None if made is None else Kernel(made.name, made.pack, made.compute)


class _Loops:
    """What both kernels share: one instance per layer."""

    def __init__(self, conv: FloatConv, row: Isa):
        self.conv, self.shape, self.lanes = conv, conv.shape, row.lanes
        self.accumulators = row.tiles["float"]

    def made(self, data, constants, body: Callable):
        """body(input buffers, output buffer) -> stmt, as a TE tensor."""
        return extern(self.conv.out_shape, [data, *constants], body, "float32", "conv2d", "easyquant_float")

    def store(self, ib, out, residual, index: Sequence, total) -> None:
        """Write a vector of finished sums."""
        if residual is not None:
            total = total + residual.vload(index, dtype_of(total))
        if self.conv.lo > -inf:
            total = tir.max(total, const(self.conv.lo, dtype_of(total)))
        if self.conv.hi < inf:
            total = tir.min(total, const(self.conv.hi, dtype_of(total)))
        ib.emit(out.vstore(index, total))


def fused(acc, x, w):
    """``acc + x * w``; ``x`` may be one number."""
    lanes = dtype_of(acc).partition("x")[2]
    x = tir.Broadcast(x, int(lanes)) if lanes and dtype_of(x) == "float32" else x
    return pure(dtype_of(acc), "llvm.fmuladd", x, w, acc)


def pieces(count: int, lanes: int) -> list[int]:
    """Widths of the vectors that cover ``count`` channels: whole ones, then smaller powers of two."""
    found = [lanes] * (count // lanes)
    rest = count % lanes
    return found + [2**i for i in range(lanes.bit_length(), -1, -1) if rest & 2**i]


# -- direct


class _Direct(_Loops):
    """Tiles of pixels by a block of output channels, whose sums stay in registers over the whole window.

    The weights lie as they are read: block by block, of each the window's runs (`packing.runs_of`) of
    inputs, of each the block's channels. The last block is as narrow as the channels left over.
    """

    name = "float_direct"

    def __init__(self, conv: FloatConv, row: Isa):
        super().__init__(conv, row)
        shape = self.shape
        self.runs, self.length = shape.kernel[0], shape.kernel[1] * shape.in_channels
        if shape.dilation[1] > 1:
            self.runs, self.length = prod(shape.kernel), shape.in_channels
        depth = self.runs * self.length
        weight_bytes = 4 * depth * shape.out_channels
        self.flat = flattens(shape)
        self.rows, self.width = shape.batch * shape.out_height, shape.out_width
        if self.flat:
            self.rows, self.width = self._cut(self.rows * self.width)
        self.by_rows = weight_bytes <= WEIGHT_BYTES and self.rows > 1
        most = min(self.width, self.accumulators // 2)
        vectors = min(self.accumulators // most, WIDEST, -(-shape.out_channels // self.lanes))
        self.pixels = self._pixels(self.width, vectors)
        self.block = vectors * self.lanes
        self.blocks, self.rest = divmod(shape.out_channels, self.block)

    def _cost(self, width: int, pixels: int, vectors: int) -> float:
        """Cycles for a row in tiles of ``pixels``, for each input."""
        tiles, tail = divmod(width, pixels)
        return sum(
            n * (max(p * vectors / 2, LATENCY) + 0.5) for n, p in ((tiles, pixels), (1, tail)) if n * p
        )

    def _pixels(self, width: int, vectors: int) -> int:
        most = max(min(self.accumulators // vectors, width), 1)
        return min(range(1, most + 1), key=lambda p: (self._cost(width, p, vectors), -p))

    def _cut(self, pixels: int) -> tuple[int, int]:
        """A map of so many pixels as equal rows that stay in a near cache; whole where tiles would fill the
        rows worse."""
        limit = max(CHUNK_BYTES // (4 * self.shape.in_channels), 2 * self.accumulators)

        def each(width):
            return round(self._cost(width, self._pixels(width, 2), 2) / width, 2)

        width = min(
            (w for w in range(1, min(limit, pixels) + 1) if pixels % w == 0), key=lambda w: (each(w), -w)
        )
        width = width if each(width) <= 1.05 * each(pixels) else pixels
        return pixels // width, width

    def pack(self, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        flat = np.asarray(weight, np.float32).reshape(self.runs * self.length, self.shape.out_channels)
        edge = self.blocks * self.block
        whole = flat[:, :edge].reshape(len(flat), self.blocks, self.block).transpose(1, 0, 2)
        return np.concatenate([whole.ravel(), flat[:, edge:].ravel()]), np.asarray(bias, np.float32)

    def compute(self, data, weight, bias, *residual):
        if any(self.shape.padding):
            data = padded_map(self.shape, 1, "float32", data)
        return self.made(data, (weight, bias, *residual), self._body)

    def _body(self, ins, out):
        self.data, self.weight, self.bias, *rest = ins
        self.out, self.residual, self.ib = out, rest[0] if rest else None, Builder()
        ib, kind = self.ib, outer_loop(self.shape)
        whole, rest = [self.lanes] * (self.block // self.lanes), pieces(self.rest, self.lanes)
        if self.by_rows:
            with ib.for_range(0, self.rows, "row", kind=kind) as y:
                with ib.for_range(0, self.blocks, "block") as block:
                    self._row(y, block, whole)
                if rest:
                    self._row(y, tir.const(self.blocks, "int32"), rest)
            return ib.get()
        with ib.for_range(0, self.blocks, "block", kind=kind) as block:
            with ib.for_range(0, self.rows, "row") as y:
                self._row(y, block, whole)
        if rest:
            with ib.for_range(0, self.rows, "row", kind=kind) as y:
                self._row(y, tir.const(self.blocks, "int32"), rest)
        return ib.get()

    def _row(self, y, block, vectors):
        """A row of pixels by a block, whose vectors are so wide."""
        pixels = max(min(self.pixels, self.accumulators // len(vectors)), 1)
        over_row(self.ib, self.width, pixels, lambda x, count, _: self._tile(y, x, count, block, vectors))

    def _at(self, y, x, channel, axes):
        """Indices of a pixel's channel in the data or the output, whose axes before the channels are these:
        where the map is seen as rows, one row of all pixels (maps are contiguous, as in `direct._copy`)."""
        if not self.flat:
            return [y // self.shape.out_height, y % self.shape.out_height, x, channel]
        return [*[0] * (len(axes) - 1), y * self.width + x, channel]

    def _input(self, y, x, run, k):
        """One number under the window: the ``k``-th of a run."""
        if self.flat:
            return self.data.vload(self._at(y, x, k, self.shape.out_shape[:3]), "float32")
        shape, columns = self.shape, self.runs // self.shape.kernel[0]
        row = (y % shape.out_height) * shape.strides[0] + run // columns * shape.dilation[0]
        column = x * shape.strides[1] + (run % columns * shape.dilation[1] if columns > 1 else 0)
        return self.data.vload([y // shape.out_height, row, column, k], "float32")

    def _tile(self, y, x, pixels, block, vectors):
        ib, starts = self.ib, np.cumsum([0, *vectors])
        size, depth = int(starts[-1]), self.runs * self.length
        acc = ib.allocate("float32", pixels * size, name="acc")
        channel, base = block * self.block, block * (self.block * depth)
        places = [
            (p, int(first), p * size + int(first), with_lanes("float32", lanes))
            for p in range(pixels) for first, lanes in zip(starts[:-1], vectors, strict=True)
        ]  # fmt: skip
        for _, first, slot, wide in places:
            ib.emit(acc.vstore([slot], self.bias.vload([channel + first], wide)))
        with ib.for_range(0, self.runs, "run") as run:
            with ib.for_range(0, self.length, "k") as k:
                for p, first, slot, wide in places:
                    w = self.weight.vload([base + (run * self.length + k) * size + first], wide)
                    total = fused(acc.vload([slot], wide), self._input(y, x + p, run, k), w)
                    ib.emit(acc.vstore([slot], total))
        for p, first, slot, wide in places:
            index = self._at(y, x + p, channel + first, self.conv.out_shape[:-1])
            self.store(ib, self.out, self.residual, index, acc.vload([slot], wide))


# -- depthwise


class _Depthwise(_Loops):
    """Vectors of channels, a few pixels of a row at once. The data is not copied: beyond the map's edge
    taps are left out, of the columns when the code is made, of the rows when it runs."""

    name = "float_depthwise"

    def __init__(self, conv: FloatConv, row: Isa):
        super().__init__(conv, row)
        self.pixels = min(max(self.accumulators // 2, 1), self.shape.out_width)

    def pack(self, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        taps = np.asarray(weight, np.float32).reshape(-1, self.shape.out_channels)
        return np.ascontiguousarray(taps), np.asarray(bias, np.float32)

    def compute(self, data, weight, bias, *residual):
        return self.made(data, (weight, bias, *residual), self._body)

    def _body(self, ins, out):
        self.data, self.weight, self.bias, *rest = ins
        self.out, self.residual, self.ib = out, rest[0] if rest else None, Builder()
        ib, shape = self.ib, self.shape
        columns = [self._taps(x) for x in range(shape.out_width)]
        inner = [x for x, taps in enumerate(columns) if len(taps) == shape.kernel[1]]
        first, last = (inner[0], inner[-1] + 1) if inner else (shape.out_width, shape.out_width)
        with ib.for_range(0, shape.batch * shape.out_height, "row", kind=outer_loop(shape)) as ny:
            n, y = ny // shape.out_height, ny % shape.out_height

            def tiles(begin, end):
                """Pixels whose taps are not all inside, each with its own."""
                for x in range(begin, end, self.pixels):
                    self._channels(n, y, x, columns[x : min(x + self.pixels, end)])

            tiles(0, first)
            over_row(ib, last - first, self.pixels, lambda x, count, _: self._channels(
                n, y, first + x, [range(shape.kernel[1])] * count))  # fmt: skip
            tiles(last, shape.out_width)
        return ib.get()

    def _taps(self, x: int) -> list[int]:
        """The columns of the window that lie inside the map for the output column ``x``."""
        start = x * self.shape.strides[1] - self.shape.padding[1]
        return [
            j for j in range(self.shape.kernel[1])
            if 0 <= start + j * self.shape.dilation[1] < self.shape.width
        ]  # fmt: skip

    def _channels(self, n, y, x, columns):
        """All channels of pixels from ``x`` on; columns: the taps of each."""
        whole, rest = divmod(self.shape.out_channels, self.lanes)
        with self.ib.for_range(0, whole, "block") as block:
            self._tile(n, y, x, columns, block * self.lanes, self.lanes)
        channel = whole * self.lanes
        for lanes in pieces(rest, self.lanes):
            self._tile(n, y, x, columns, tir.const(channel, "int32"), lanes)
            channel += lanes

    def _tile(self, n, y, x, columns, channel, lanes):
        ib, shape, wide = self.ib, self.shape, with_lanes("float32", lanes)
        top, left, bottom, _ = shape.padding
        acc = ib.allocate("float32", len(columns) * lanes, name="acc")
        for p in range(len(columns)):
            ib.emit(acc.vstore([p * lanes], self.bias.vload([channel], wide)))
        for i in range(shape.kernel[0]):
            row = y * shape.strides[0] + (i * shape.dilation[0] - top)
            inside = tir.all(row >= 0, row < shape.height)
            with ib.if_scope(inside) if top or bottom else nullcontext():
                for p, taps in enumerate(columns):
                    for j in taps:
                        column = (x + p) * shape.strides[1] + (j * shape.dilation[1] - left)
                        value = self.data.vload([n, row, column, channel], wide)
                        w = self.weight.vload([i * shape.kernel[1] + j, channel], wide)
                        ib.emit(acc.vstore([p * lanes], fused(acc.vload([p * lanes], wide), value, w)))
        for p in range(len(columns)):
            self.store(ib, self.out, self.residual, [n, y, x + p, channel], acc.vload([p * lanes], wide))
