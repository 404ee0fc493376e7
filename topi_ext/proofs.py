"""What can be proved of a layer from its real weights. No TVM here.

A kernel is legal for a layer if a function of this file proves it; otherwise the answer is a `Refusal` with
the figure that failed. Two proofs are elsewhere: Winograd's beside its derivation (`winograd`), that of the
depthwise pairs beside the pairing (`kernels.depthwise`).
"""

from __future__ import annotations

import functools
from typing import Protocol

import numpy as np

from .packing import pack
from .problem import Bound, ConvSpec, Refusal, Residual
from .reference import INT32_MAX, add

INT16_MAX = 2**15 - 1
NEIGHBOURS = 4  # float32 values above and below a quotient of scales that `merged_scales` tries


class Multiply(Protocol):
    """What a proof needs to know of a multiply (`kernels.direct.Dot`)."""

    @property
    def lanes(self) -> int:
        """Output channels of a block."""

    @property
    def group(self) -> int:
        """Products of an int32 lane."""

    @property
    def depth(self) -> int:
        """How many groups are summed before they are widened."""

    @property
    def offset(self) -> int:
        """What is subtracted from the data."""


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


def lane_proof(spec: ConvSpec, dot: Multiply, weight: np.ndarray) -> Bound | Refusal:
    """int16 lanes of `targets.x86.int16_dot` hold their products: weight int8 (R, S, C / groups, K)."""
    return lane_bound(pack(spec, weight, dot.lanes, dot.group), dot.depth, spec.data_max)


def sum_proof(spec: ConvSpec, dot: Multiply, weight: np.ndarray) -> Bound | Refusal:
    """Every int32 partial sum of the (perhaps offset) data fits: weight int8 (R, S, C / groups, K).

    So does the bias with the offset folded in, ``bias + offset * sum(w)``: it is no larger than
    ``|bias| + 255 * max(sum w+, sum w-)``, which `accumulator_bound` has proven.
    """
    most = max(dot.offset, spec.data_max - dot.offset)
    magnitude = np.abs(weight.astype(np.int64)).reshape(-1, spec.out_channels).sum(axis=0)
    worst = int(most * magnitude.max(initial=0))
    if worst > INT32_MAX:
        return Refusal(f"a partial sum may reach {worst}, beyond int32")
    return Bound("partial sum", worst, INT32_MAX)


def chain_proof(spec: ConvSpec, dot: Multiply, weight: np.ndarray) -> Bound | Refusal:
    """int16 lanes of `targets.arm.widening_dot` hold their products, and int32 lanes their sums.

    A lane sums inputs j and j + 8 of each of ``dot.depth`` vectors of 16.
    """
    total = sum_proof(spec, dot, weight)
    if isinstance(total, Refusal):
        return total
    packed = pack(spec, weight, dot.lanes, dot.group)
    *outer, length, lanes, group = packed.shape
    halves = packed.reshape(*outer, length, lanes, 2, group // 2)
    pairs = np.ascontiguousarray(np.moveaxis(halves, -2, -1)).reshape(*outer, length, -1, 4)
    return lane_bound(pairs, dot.depth, spec.data_max - dot.offset, -dot.offset)


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
