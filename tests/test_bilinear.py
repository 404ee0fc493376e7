"""Fewer products of bytes: the schemes proven on all basis pairs, their bounds attained. No TVM."""

from dataclasses import replace

import numpy as np
import pytest

from topi_ext import bilinear, reference
from topi_ext.bilinear import LINE, STRASSEN
from topi_ext.conv2d import EXACT, Bound, ConvSpec, Refusal, Residual

BOTH = pytest.mark.parametrize("scheme", [LINE, STRASSEN], ids=lambda scheme: scheme.name)


def direct(scheme, data, weight):
    """Two outputs of a unit by each vector: data (pixels, halves), weight (taps, halves, vectors)."""
    return np.array([np.einsum("th,thv->v", data[j : j + scheme.taps], weight) for j in (0, 1)])


@BOTH
def test_every_basis_pair_is_a_proof(scheme):
    """(data, weight) -> y is bilinear, so equality on all pairs of unit arrays is equality everywhere."""
    inputs, weights = (scheme.pixels, scheme.halves), (scheme.taps, scheme.halves, scheme.vectors)
    for a in np.ndindex(inputs):
        for b in np.ndindex(weights):
            data, weight = np.zeros(inputs, int), np.zeros(weights, int)
            data[a], weight[b] = 1, 1
            products = (scheme.data @ data.reshape(-1)) * (scheme.weight @ weight.reshape(-1))
            y = (scheme.out @ products).reshape(2, scheme.vectors)
            np.testing.assert_array_equal(y, direct(scheme, data, weight) << scheme.shift)


@BOTH
def test_the_bias_reaches_each_output_once(scheme):
    once = np.tile(np.eye(scheme.vectors, dtype=int), (2, 1))
    np.testing.assert_array_equal(scheme.out @ scheme.start, once if scheme.shift == 0 else 0 * once)


@BOTH
def test_sums_of_inputs_are_bytes_and_reach_the_ends(scheme):
    spec = ConvSpec(1, 8, 8, 8, 32, (scheme.taps,) * 2, data_max=127)
    off = bilinear.offsets(scheme, spec)
    corners = np.array(list(np.ndindex(*(2,) * scheme.data.shape[1]))) * 127
    sums = corners @ scheme.data.T + off
    assert sums.min() == 0 and sums.max() == 254
    assert bilinear.refuses(scheme, spec) is None
    more = ConvSpec(1, 8, 8, 8, 32, (scheme.taps,) * 2, data_max=128)
    assert "may reach 256" in str(bilinear.refuses(scheme, more))


@BOTH
def test_other_shapes_are_refused(scheme):
    kernel = (scheme.taps,) * 2
    for changes, why in (
        (dict(strides=(2, 2)), "stride 1"), (dict(dilation=(2, 2)), "dilation" if scheme is LINE else "only"),
        (dict(groups=2), "one group"), (dict(in_channels=6), "multiple"), (dict(kernel=(2, 2)), "only for"),
    ):  # fmt: skip
        fields = {"in_channels": 8, "kernel": kernel, **changes}
        spec = ConvSpec(1, 9, 9, out_channels=32, data_max=127, **fields)
        assert why in str(bilinear.refuses(scheme, spec))
    assert "one pixel" in str(bilinear.refuses(STRASSEN, ConvSpec(1, 1, 1, 8, 16, (1, 1), data_max=127)))
    assert "padding" in str(
        bilinear.refuses(STRASSEN, ConvSpec(1, 4, 4, 8, 16, (1, 1), padding=(1,) * 4, data_max=127))
    )


def test_1x1_layers_that_do_not_pay_are_refused():
    few = ConvSpec(1, 7, 7, 2048, 512, (1, 1), data_max=127)
    assert "1835008 sums of weights" in str(bilinear.refuses(STRASSEN, few))
    assert bilinear.refuses(STRASSEN, replace(few, height=14, width=14)) is None
    of_function = replace(few, height=14, width=14, function=("multiply", "x", ("sigmoid", "x")))
    assert "a function" in str(bilinear.refuses(STRASSEN, of_function))
    assert "fewer than 32" in str(bilinear.refuses(STRASSEN, replace(few, out_channels=31)))
    add = dict(epilogue="add", residual=Residual(0.02, 0, 0, 255, 0.01, 128, False, 0.03))
    assert "fewer than 256" in str(bilinear.refuses(STRASSEN, replace(few, in_channels=248, **add)))
    assert bilinear.refuses(STRASSEN, replace(few, in_channels=256, **add)) is None


def proves(scheme, weight, **changes):
    spec = ConvSpec(1, 8, 8, weight.shape[2], weight.shape[3], weight.shape[:2], data_max=127, **changes)
    return bilinear.proves(scheme, spec, weight.astype(np.int8), 16)


def test_bounds_of_the_weights():
    assert proves(STRASSEN, np.full((1, 1, 8, 32), 63)) is EXACT
    assert "may reach 128, beyond 127" in str(proves(STRASSEN, np.full((1, 1, 8, 32), -64)))
    assert isinstance(proves(LINE, np.full((3, 3, 8, 16), 42)), Bound)
    assert "add 6 products to 24" in str(proves(LINE, np.full((3, 3, 8, 16), 43)))
    few = np.ones((3, 3, 32, 16))
    few[1, :, 3, 5] = 63  # a sum of 189, in one of 24 groups
    assert isinstance(proves(LINE, few), Bound)
    few[1, :, 3, 5] = (63, -63, 63)
    assert isinstance(proves(LINE, few), Bound)
    few[1, :, 3, 5] = (85, 0, 0)
    assert "may reach 170, beyond 127" in str(proves(LINE, few))


def test_twice_an_output_fits():
    most = (2**31 - 1) // (2 * 127 * 42 * 9)
    assert isinstance(proves(LINE, np.full((3, 3, most // 4 * 4, 1), 42)), Bound)
    refused = proves(LINE, np.full((3, 3, (most // 4 + 1) * 4, 1), 42))
    assert isinstance(refused, Refusal) and "beyond int32" in str(refused)


@BOTH
def test_what_is_packed_multiplies_to_the_convolution(scheme):
    """The kernel's loops in numpy: ragged blocks, sums of weights beyond a byte, two vectors of factors."""
    rng = np.random.default_rng(0)
    spec = ConvSpec(1, 6, 8, 8, 40, (scheme.taps,) * 2, data_max=127)
    weight = rng.integers(-40, 41, spec.weight_shape).astype(np.int8)
    if scheme is LINE:
        weight[0, :, 2, 3] = weight[2, :, 1, 39] = 63
    data = rng.integers(0, 128, (6, 8, 8))
    bias = rng.integers(-1000, 1000, 40).astype(np.int32)
    factors = rng.random((2, 40)).astype(np.float32)
    packed, numbers, multiplier = bilinear.pack(scheme, spec, weight, bias, factors, 16)
    blocks, groups = bilinear.blocks_of(scheme, spec, 16), bilinear.groups_of(scheme, spec)
    rows = packed.shape[1] - groups * scheme.products
    assert (rows > 0) == (scheme is LINE) and len(multiplier) == 2 * blocks * scheme.vectors * 16
    near = packed[:, : groups * scheme.products].astype(int).reshape(blocks, groups, scheme.products, 16, 4)
    ends = np.cumsum(
        [blocks * scheme.products * 16, blocks * scheme.vectors * 16, blocks * len(scheme.wide)]
    )
    starts, biases, counts, places = np.split(numbers, ends)
    starts = starts.reshape(blocks, scheme.products, 16)
    each = groups // scheme.taps
    sums = near.transpose(0, 2, 1, 3, 4).copy()
    for b in range(blocks):
        for i, p in enumerate(scheme.wide):
            for j in range(counts.reshape(blocks, -1)[b, i]):
                row, k = places.reshape(blocks, len(scheme.wide), -1, 2)[b, i, j]
                at = groups * scheme.products + i * (rows // len(scheme.wide)) + j
                sums[b, p, row * each + k] += packed[b, at]
    wanted = reference.conv2d(data[None].astype(np.uint8), weight, zero_point=0, strides=(1, 1),
                              padding=(0,) * 4, dilation=(1, 1), groups=1)[0] + bias  # fmt: skip
    off = np.array(bilinear.offsets(scheme, spec))[:, None]
    for y, x in ((0, 0), (2, 4)):
        unit = data[y : y + scheme.taps, x : x + scheme.pixels].reshape(
            scheme.taps, scheme.pixels, scheme.halves, -1
        )
        made = (
            np.einsum("pe,rec->prc", scheme.data, unit.reshape(scheme.taps, -1, unit.shape[-1]))
            + off[..., None]
        )
        total = starts + np.einsum("pgf,bpglf->bpl", made.reshape(scheme.products, groups, 4), sums)
        out = np.einsum("op,bpl->bol", scheme.out, total) >> scheme.shift
        found = out.reshape(blocks, 2, scheme.vectors * 16).transpose(1, 0, 2).reshape(2, -1)
        found = found + (biases if scheme.shift else 0)
        np.testing.assert_array_equal(found[:, :40], wanted[y, x : x + 2])
