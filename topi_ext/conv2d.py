"""The integer convolution as a problem: its shape, its operand ranges, and what can be proved of it.

No TVM here. A kernel is legal for a layer if a function of this file proves it from the layer's real
weights; otherwise the answer is a `Refusal` with the figure that failed.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from .reference import INT32_MAX, add, output_size

INT16_MAX = 2**15 - 1
NEIGHBOURS = 4  # float32 values above and below a quotient of scales that `merged_scales` tries


class Bound(NamedTuple):
    """A proof: the largest magnitude ``value`` reached, the ``limit`` it respects, of ``what``."""

    what: str
    value: int
    limit: int

    def __str__(self):
        return f"{self.what} <= {self.value} of {self.limit}"


class Refusal(NamedTuple):
    """Why a kernel cannot take a layer."""

    why: str

    def __str__(self):
        return self.why


@dataclass(frozen=True)
class Residual:
    """The add that follows a convolution, by `reference.add`.

    The convolution is first requantized with its own scale, zero point and range, then added to the
    residual tensor (scale, zero_point) and quantized with out_scale. own_first: it is the left operand.
    """

    own_scale: float
    own_zero_point: int
    own_lo: int
    own_hi: int
    scale: float
    zero_point: int
    own_first: bool
    out_scale: float


@dataclass(frozen=True)
class ConvSpec:
    """One quantized convolution (or dense layer: 1x1 on a 1x1 map) with its epilogue.

    data: uint8 (batch, height, width, in_channels), 0 <= q <= data_max, padded with zero_point;
    weight: int8 (R, S, in_channels / groups, out_channels); bias: int32 (out_channels,) with the zero
    point folded in; multiplier: float32 (out_channels,).

    epilogue, with ``acc = sum(q * w) + bias``:
      requantize  ``uint8: clip(rint(float32(acc) * multiplier) + out_zero_point, lo, hi)``
      dequantize  ``float32: float32(acc) * multiplier``
      add         requantize by ``residual``, then add the residual tensor (see `Residual`)
    """

    batch: int
    height: int
    width: int
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    data_max: int = 255
    zero_point: int = 0
    epilogue: str = "requantize"
    out_zero_point: int = 0
    lo: int = 0
    hi: int = 255
    residual: Residual | None = None

    def __post_init__(self):
        for name in ("kernel", "strides", "padding", "dilation"):
            object.__setattr__(self, name, tuple(int(v) for v in getattr(self, name)))
        if self.epilogue not in ("requantize", "dequantize", "add"):
            raise ValueError(f"unknown epilogue {self.epilogue!r}")
        if (self.epilogue == "add") != (self.residual is not None):
            raise ValueError("the add epilogue, and only it, takes a residual")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(f"{self.groups} groups do not divide the channels")
        if min(self.out_height, self.out_width) < 1:
            raise ValueError("the kernel is larger than the padded map")

    @property
    def out_height(self) -> int:
        top, _, bottom, _ = self.padding
        return output_size(self.height, self.kernel[0], self.strides[0], self.dilation[0], top, bottom)

    @property
    def out_width(self) -> int:
        _, left, _, right = self.padding
        return output_size(self.width, self.kernel[1], self.strides[1], self.dilation[1], left, right)

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.out_height, self.out_width, self.out_channels)

    @property
    def out_dtype(self) -> str:
        return "float32" if self.epilogue == "dequantize" else "uint8"

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (*self.kernel, self.in_channels // self.groups, self.out_channels)

    @property
    def depthwise(self) -> bool:
        return self.groups == self.in_channels == self.out_channels

    @property
    def macs(self) -> int:
        return int(np.prod(self.out_shape)) * int(np.prod(self.weight_shape[:3]))

    @property
    def shape_text(self) -> str:
        """The layer's shape in a line, such as ``3x3 s2 64->128 @ 56x56``."""
        kind = "dw " if self.depthwise else f"g{self.groups} " if self.groups > 1 else ""
        stride = "" if self.strides == (1, 1) else f" s{self.strides[0]}"
        size = f"{self.kernel[0]}x{self.kernel[1]}{stride} {self.in_channels}->{self.out_channels}"
        return f"{kind}{size} @ {self.height}x{self.width}"

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ConvSpec:
        fields = json.loads(str(text))
        if fields["residual"] is not None:
            fields["residual"] = Residual(**fields["residual"])
        return cls(**fields)


def fold_zero_point(bias: np.ndarray, weight: np.ndarray, zero_point: int) -> np.ndarray:
    """int32 (K,) bias that lets a kernel sum ``q * w`` instead of ``(q - zero_point) * w``.

    weight: int8 (R, S, C / groups, K). Raises OverflowError if it does not fit int32.
    """
    total = weight.astype(np.int64).reshape(-1, weight.shape[-1]).sum(axis=0)
    folded = np.asarray(bias, np.int64) - int(zero_point) * total
    if folded.size and np.abs(folded).max() > INT32_MAX:
        raise OverflowError("the bias with the zero point folded in does not fit int32")
    return folded.astype(np.int32)


def _reach(weight, axis, data_max=1, data_min=0):
    """The largest magnitude of a sum of products along ``axis``, or of a part of it, for such data."""
    w = weight.astype(np.int64)
    positive, negative = np.maximum(w, 0).sum(axis=axis), np.maximum(-w, 0).sum(axis=axis)
    return np.maximum(data_max * positive - data_min * negative, data_max * negative - data_min * positive)


def accumulator_bound(spec: ConvSpec, weight: np.ndarray, bias: np.ndarray) -> Bound | Refusal:
    """Every partial sum of an output, bias included, fits int32, whatever the data."""
    flat = weight.reshape(-1, spec.out_channels)
    worst = int((spec.data_max * _reach(flat, 0) + np.abs(bias.astype(np.int64))).max())
    if worst > INT32_MAX:
        return Refusal(f"the int32 accumulator may reach {worst}")
    return Bound("accumulator", worst, INT32_MAX)


def lane_reach(packed: np.ndarray, depth: int, data_max: int, data_min: int = 0) -> np.ndarray:
    """int64 (blocks,): how far an int16 lane gets that sums ``depth`` byte-pair multiplies (vpmaddubsw).

    packed: int8 (blocks, ..., L, lanes, 4), L groups of four consecutive inputs in the order the kernel
    reads them; a lane holds two of the four. Depth groups are summed, starting at multiples of ``depth``.
    data_min <= 0 <= data_max: the range of the data.
    """
    *outer, length, lanes, four = packed.shape
    padded = -length % depth
    if padded:
        packed = np.concatenate([packed, np.zeros((*outer, padded, lanes, four), np.int8)], axis=-3)
    groups = packed.reshape(len(packed), -1, depth, lanes, 2, 2)  # depth groups, lanes, halves, pair
    return _reach(groups, (2, 5), data_max, data_min).reshape(len(packed), -1).max(axis=1, initial=0)


def lane_bound(packed: np.ndarray, depth: int, data_max: int, data_min: int = 0) -> Bound | Refusal:
    """No int16 lane of any block saturates or wraps; see `lane_reach`."""
    worst = int(lane_reach(packed, depth, data_max, data_min).max(initial=0))
    if worst > INT16_MAX:
        return Refusal(f"an int16 lane of {2 * depth} products may reach {worst}, beyond {INT16_MAX}")
    return Bound(f"int16 lane of {2 * depth} products", worst, INT16_MAX)


def tap_bound(spec: ConvSpec, weight: np.ndarray) -> Bound | Refusal:
    """All products of an output summed in int16 (depthwise kernels): weight (R, S, 1, K).

    The sum lies in an interval ``data_max * sum(|w|)`` wide. Shifted by a constant (`depthwise.center`) it
    fits int16 if the interval is no wider than int16; the additions on the way may wrap, as 16 bits do.
    """
    flat = np.abs(weight.reshape(-1, spec.out_channels).astype(np.int64))
    worst = spec.data_max * int(flat.sum(axis=0).max())
    if worst > 2 * INT16_MAX:
        return Refusal(f"the sum of a channel may span {worst}, wider than int16 ({2 * INT16_MAX})")
    return Bound("span of a channel's int16 sum", worst, 2 * INT16_MAX)


@functools.cache
def merged_scales(
    residual: Residual, zero_point: int, lo: int, hi: int
) -> tuple[np.float32, np.float32] | None:
    """Factors (a, b) by which a residual add needs no division: ``clip(rint(own * a + other * b))`` of the
    steps is the norm's result for every pair of steps. None if there are none nearby.

    The quotients of the scales do for nine layers in ten. Where a sum comes too close to the middle between
    two steps, their float32 neighbours are tried. A candidate is checked on all pairs, and for each way in
    which the sum may be rounded: two products, or either of them inside a fused multiply-add.
    """
    r = residual
    own, other = np.meshgrid(
        np.arange(r.own_lo, r.own_hi + 1, dtype=np.uint8), np.arange(256, dtype=np.uint8), indexing="ij"
    )
    numbers = (r.own_scale, r.own_zero_point, r.scale, r.zero_point, r.out_scale)
    want = add(own, other, *numbers, zero_point, lo, hi)  # which is the left operand changes no sum
    m, n = own.astype(np.float32) - r.own_zero_point, other.astype(np.float32) - r.zero_point

    def same(sums):
        steps = np.clip(np.rint(sums), lo - zero_point, hi - zero_point)
        return np.array_equal(steps + zero_point, want)

    near = range(-NEIGHBOURS, NEIGHBOURS + 1)
    offsets = sorted(((i, j) for i in near for j in near), key=lambda o: (abs(o[0]) + abs(o[1]), o))
    for i, j in offsets:
        a, b = (
            (np.float32(scale) / np.float32(r.out_scale)).view(np.int32) + np.int32(offset)
            for scale, offset in ((r.own_scale, i), (r.scale, j))
        )
        a, b = a.view(np.float32), b.view(np.float32)
        if same(m * a + n * b) and same(_fused(m, a, n * b)) and same(_fused(n, b, m * a)):
            return a, b
    return None


def _fused(x, factor, rest):
    """``x * factor + rest`` in float32, rounded once; NaN where float64 cannot say."""
    product, rest = x.astype(np.float64) * np.float64(factor), rest.astype(np.float64)
    total = product + rest
    more = total - product
    exact = (product - (total - more)) + (rest - more) == 0  # Knuth's two-sum: its rounding error
    return np.where(exact, total, np.nan).astype(np.float32)


def blocks_of(spec: ConvSpec, lanes: int) -> int:
    """Blocks of ``lanes`` output channels in one group, the last one perhaps ragged."""
    return -(-(spec.out_channels // spec.groups) // lanes)


def pack(spec: ConvSpec, weight: np.ndarray, lanes: int, group: int) -> np.ndarray:
    """Weights in the order a direct kernel reads them: (blocks, runs, L, lanes, group).

    A *run* is a stretch of the padded map that lies contiguous in memory: a whole kernel row where
    the dilation and the number of groups are 1, else one tap. ``group`` inputs fill one 32-bit lane; a run
    is filled up with zeros to a multiple of it (`tight`), or the input channels are, as is the data. Output
    channels of each group of the convolution are padded to whole blocks.
    """
    r, s, c, k = weight.shape
    per, blocks = k // spec.groups, blocks_of(spec, lanes)
    weight = weight.reshape(r, s, c, spec.groups, per)
    if tight(spec, group):
        weight = weight.reshape(r, 1, s * c, spec.groups, per)
    length = -(-weight.shape[2] // group) * group
    filled = np.zeros((*weight.shape[:2], length, spec.groups, blocks * lanes), weight.dtype)
    filled[:, :, : weight.shape[2], :, :per] = weight
    flat = filled.reshape(runs_of(spec), -1, group, spec.groups * blocks, lanes)
    return np.ascontiguousarray(flat.transpose(3, 0, 1, 4, 2))


def tight(spec: ConvSpec, group: int) -> bool:
    """Whether a kernel row is read as it lies in memory, though its pixels are no multiple of ``group``: a
    first layer with 3 channels. The last group reads a little beyond the row, times weights of zero."""
    return spec.in_channels % group > 0 and spec.kernel[1] > 1 and runs_of(spec) == spec.kernel[0]


def runs_of(spec: ConvSpec) -> int:
    """The number of contiguous runs in which the kernel window is read; see `pack`."""
    r, s = spec.kernel
    return r if spec.dilation[1] == 1 and spec.groups == 1 else r * s


def pad_vector(spec: ConvSpec, values: np.ndarray, lanes: int) -> np.ndarray:
    """A (K,) vector with the output channels of each group padded to whole blocks with zeros."""
    per = spec.out_channels // spec.groups
    padded = np.zeros((spec.groups, blocks_of(spec, lanes) * lanes), values.dtype)
    padded[:, :per] = values.reshape(spec.groups, per)
    return padded.reshape(-1)
