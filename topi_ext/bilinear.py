"""Convolutions of 7-bit operands in fewer products of bytes: a sum of two stays a byte. No TVM here.

A `Scheme` makes the outputs of a unit from fewer products: ``2**shift * y = OUT ((WEIGHT w) * (DATA d))``,
where ``*`` is a sum of products over the input channels and the rows of the kernel, in int32. What is
multiplied are sums of weights, computed when the network is compiled, and of two inputs, made once for all
output channels. A difference of inputs gets ``data_max`` added, so that it is no less than zero; its sum of
products starts that much lower.

* `STRASSEN`, of 1x1 kernels: 7 products for the 8 of two pixels by two halves of the input channels by two
  vectors of output channels.
* `LINE`, F(2, 3) along the rows of a kernel of three columns: 4 products for the 6 of two pixels.

Sums of three weights may be larger than a byte: what is beyond, few in a network, is multiplied behind the
rest. All is linear and may wrap modulo 2**32, as long as ``2**shift * y`` fits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .problem import EXACT, Bound, ConvSpec, Refusal
from .reference import INT32_MAX

GROUP = 4  # bytes of an int32 lane
ADD_CHANNELS = 256  # what a residual add does besides takes longer than the products of fewer
OUT_CHANNELS = 32  # for fewer the sums of inputs take longer
CACHE, FEW_PIXELS = 2**20, 128  # sums of weights of a 1x1 layer that come from memory
BEYOND = 8  # a layer is taken if what is beyond a byte adds no more than this part to the products


class Scheme(NamedTuple):
    """data (products, pixels * halves), weight (products, taps * halves * vectors), out (2 * vectors,
    products): integers.

    A unit reads ``pixels`` side by side and makes two outputs side by side in each of ``vectors`` vectors
    of output channels, with kernels of ``taps`` columns; ``halves`` of the input channels are told apart.
    start (products, vectors): of which vector a product starts with the bias; none where there is a shift.
    """

    name: str
    pixels: int
    halves: int
    taps: int
    vectors: int
    data: np.ndarray
    weight: np.ndarray
    out: np.ndarray
    start: np.ndarray
    shift: int

    @property
    def products(self) -> int:
        """Sums of products of a unit."""
        return len(self.data)

    @property
    def wide(self) -> list[int]:
        """The products whose weights are sums of three or more."""
        return [int(p) for p in np.flatnonzero(np.abs(self.weight).sum(axis=1) > 2)]


def _matrix(text: str) -> np.ndarray:
    return np.array([list(map(int, row.split())) for row in text.split(",")], np.int64)


STRASSEN = Scheme(
    "strassen", pixels=2, halves=2, taps=1, vectors=2,
    data=_matrix("1 0 0 1, 0 0 1 1, 1 0 0 0, 0 0 0 1, 1 1 0 0, -1 0 1 0, 0 1 0 -1"),
    weight=_matrix("1 0 0 1, 1 0 0 0, 0 1 0 -1, -1 0 1 0, 0 0 0 1, 1 1 0 0, 0 0 1 1"),
    out=_matrix("1 0 0 1 -1 0 1, 0 0 1 0 1 0 0, 0 1 0 1 0 0 0, 1 -1 1 0 0 1 0"),
    start=_matrix("1 0, 1 0, 0 1, 0 0, 0 0, 0 0, 0 0"),
    shift=0,
)  # fmt: skip
LINE = Scheme(
    "line", pixels=4, halves=1, taps=3, vectors=1,
    data=_matrix("1 0 -1 0, 0 1 1 0, 0 -1 1 0, 0 1 0 -1"),
    weight=_matrix("2 0 0, 1 1 1, 1 -1 1, 0 0 2"),
    out=_matrix("1 1 1 0, 0 1 -1 -1"),
    start=np.zeros((4, 1), np.int64),
    shift=1,
)  # fmt: skip


def offsets(scheme: Scheme, spec: ConvSpec) -> list[int]:
    """What is added to the data of each product."""
    return [int(-spec.data_max * row[row < 0].sum()) for row in scheme.data]


def refuses(scheme: Scheme, spec: ConvSpec) -> Refusal | None:
    """Why a scheme does not take the shape of a layer; None if it does."""
    plain = spec.strides == (1, 1) and spec.dilation == (1, 1) and spec.groups == 1
    if scheme.taps == 1 and not (plain and spec.kernel == (1, 1) and not any(spec.padding)):
        return Refusal("only for 1x1 with stride 1, without padding, one group")
    if not plain or spec.kernel[1] != scheme.taps:
        return Refusal(f"only for {scheme.taps} columns with stride 1, dilation 1 and one group")
    if spec.batch * spec.out_height * spec.out_width == 1:
        return Refusal("one pixel, of the two that a unit makes")
    multiple = scheme.halves * GROUP
    if spec.in_channels % multiple:
        return Refusal(f"{spec.in_channels} input channels are not a multiple of {multiple}")
    most = int(np.abs(scheme.data).sum(axis=1).max()) * spec.data_max
    if most > 255:
        return Refusal(f"a sum of inputs may reach {most}, beyond a byte")
    return _slow(scheme, spec) if scheme.taps == 1 else None


def _slow(scheme: Scheme, spec: ConvSpec) -> Refusal | None:
    """1x1 layers in which one product of eight is not worth what it costs, as measured on a Zen 4."""
    if spec.epilogue == "add" and spec.in_channels < ADD_CHANNELS:
        return Refusal(f"a residual add of fewer than {ADD_CHANNELS} input channels")
    if spec.function is not None:
        return Refusal("a function, which needs the registers that hold the products")
    if spec.out_channels < OUT_CHANNELS:
        return Refusal(f"fewer than {OUT_CHANNELS} output channels")
    pixels = spec.batch * spec.out_height * spec.out_width
    size = scheme.products * spec.in_channels // scheme.halves * (spec.out_channels // scheme.vectors)
    if size > CACHE and pixels < FEW_PIXELS:
        return Refusal(f"{size} sums of weights, more than a core's cache holds, for {pixels} pixels")
    return None


def blocks_of(scheme: Scheme, spec: ConvSpec, lanes: int) -> int:
    """Blocks of ``vectors`` vectors of output channels, the last one perhaps ragged."""
    return -(-spec.out_channels // (scheme.vectors * lanes))


def groups_of(scheme: Scheme, spec: ConvSpec) -> int:
    """Groups of input channels that a product sums, in all rows of the kernel."""
    return spec.kernel[0] * spec.in_channels // scheme.halves // GROUP


def transformed(scheme: Scheme, spec: ConvSpec, weight: np.ndarray, lanes: int) -> np.ndarray:
    """int64 (blocks, groups, products, lanes, GROUP): the sums of weights; weight int8 (R, S, C, K)."""
    blocks, (r, _, c, k) = blocks_of(scheme, spec, lanes), weight.shape
    filled = np.zeros((r, scheme.taps, c, blocks * scheme.vectors * lanes), np.int64)
    filled[..., :k] = weight
    split = filled.reshape(r, scheme.taps, scheme.halves, -1, GROUP, blocks, scheme.vectors, lanes)
    parts = split.transpose(1, 2, 6, 5, 0, 3, 7, 4)
    parts = parts.reshape(scheme.weight.shape[1], blocks, -1, lanes, GROUP)
    return np.moveaxis(np.tensordot(scheme.weight, parts, 1), 0, 2)


def _beyond(scheme: Scheme, sums: np.ndarray) -> list[list[np.ndarray]]:
    """For every block and each of the wide products, the groups in which a sum of weights is no byte."""
    over = (sums != np.clip(sums, -128, 127)).any(axis=(3, 4))
    return [[np.flatnonzero(block[:, p]) for p in scheme.wide] for block in over]


def proves(scheme: Scheme, spec: ConvSpec, weight: np.ndarray, lanes: int) -> Bound | Refusal:
    """Whether a scheme is exact for a layer that it takes, and worth it, from its weights (int8 HWIO)."""
    sums = transformed(scheme, spec, weight, lanes)
    signless = scheme._replace(weight=np.abs(scheme.weight))
    reach = transformed(signless, spec, np.abs(weight.astype(np.int64)), lanes).max(axis=(0, 1, 3, 4))
    for p, most in enumerate(reach):
        limit = 254 if p in scheme.wide else 127  # what is beyond is a byte, too
        if most > limit:
            return Refusal(f"a sum of weights may reach {most}, beyond {limit}")
    more = sum(len(groups) for block in _beyond(scheme, sums) for groups in block)
    products = len(sums) * groups_of(scheme, spec) * scheme.products
    if more * BEYOND > products:
        return Refusal(f"sums of weights beyond a byte add {more} products to {products}")
    if not scheme.shift:
        return EXACT
    flat = weight.reshape(-1, spec.out_channels).astype(np.int64)
    y = spec.data_max * int(np.maximum(np.maximum(flat, 0).sum(0), np.maximum(-flat, 0).sum(0)).max())
    if y << scheme.shift > INT32_MAX:
        return Refusal(f"2^{scheme.shift} times an output may reach {y << scheme.shift}, beyond int32")
    return Bound(f"2^{scheme.shift} times an output", y << scheme.shift, INT32_MAX)


def pack(scheme: Scheme, spec: ConvSpec, weight, bias, multiplier, lanes: int):
    """(weights, numbers, multiplier) as the kernel reads them.

    weights: int8 (blocks, rows, lanes, GROUP): for each group each product, then what is beyond a byte of
    the wide products. numbers: int32, one behind the other (blocks, products, lanes) what the sums start
    with, (blocks * vectors * lanes) the bias, (blocks, wide products) how many rows are beyond, (blocks,
    wide products, the most of them, 2) the row of the kernel and the group in it that each multiplies.
    """
    sums = transformed(scheme, spec, weight, lanes)
    blocks, groups = sums.shape[:2]
    found = _beyond(scheme, sums)
    counts = np.array([[len(groups) for groups in block] for block in found], np.int32)
    rows = int(counts.max(initial=0))
    near = np.clip(sums, -128, 127)
    more = np.zeros((blocks, len(scheme.wide), rows, lanes, GROUP), np.int64)
    places = np.zeros((blocks, len(scheme.wide), rows, 2), np.int32)
    for b, block in enumerate(found):
        for i, (p, own) in enumerate(zip(scheme.wide, block, strict=True)):
            more[b, i, : len(own)] = (sums - near)[b, own, p]
            places[b, i, : len(own)] = np.stack(np.divmod(own, groups // spec.kernel[0]), axis=1)
    packed = np.concatenate([a.reshape(blocks, -1, lanes, GROUP) for a in (near, more)], axis=1)
    padded = np.zeros((1 + len(multiplier.reshape(-1, spec.out_channels)), blocks * scheme.vectors * lanes))
    padded[0, : spec.out_channels] = bias
    padded[1:, : spec.out_channels] = multiplier.reshape(-1, spec.out_channels)
    per_vector = padded[0].astype(np.int64).reshape(blocks, scheme.vectors, lanes)
    starts = np.einsum("pv,bvl->bpl", scheme.start, per_vector)
    starts -= np.array(offsets(scheme, spec))[:, None] * sums.sum(axis=(1, 4))
    numbers = [a.reshape(-1).astype(np.int32) for a in (starts, padded[0], counts, places)]
    return packed.astype(np.int8), np.concatenate(numbers), padded[1:].reshape(-1).astype(np.float32)
