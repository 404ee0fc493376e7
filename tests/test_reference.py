"""The norm against exact arithmetic in Python integers and fractions. No TVM."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from topi_ext import reference

F32 = st.floats(2.0**-20, 2.0**10, width=32)


def half_even(value: Fraction) -> int:
    """Round an exact fraction to the nearest integer, ties to even."""
    return round(value)


def float32(value: Fraction) -> Fraction:
    """The float32 nearest to an exact fraction (numpy rounds it from float64, exact enough here)."""
    return Fraction(float(np.float32(float(value))))


@given(st.integers(-(2**24), 2**24), F32, st.integers(0, 255))
def test_requantize_is_one_float32_product_rounded_half_to_even(acc, factor, zero_point):
    product = float32(Fraction(acc) * Fraction(factor))
    expected = min(max(half_even(product) + zero_point, 0), 255)
    assert reference.requantize(np.int32(acc), np.float32(factor), zero_point) == expected


def test_ties_go_to_even():
    ties = np.array([1, 3, 5, -1, -3, 7], np.int32)
    assert reference.requantize(ties, np.float32(0.5), 100).tolist() == [100, 102, 102, 100, 98, 104]
    assert reference.quantize(ties.astype(np.float32), 2.0, 100).tolist() == [100, 102, 102, 100, 98, 104]


def test_beyond_2_to_24_the_accumulator_itself_is_rounded_to_float32_half_to_even():
    """2**24 + 1 is no float32; it becomes 2**24 on every CPU, and so does the norm."""
    acc = np.array([2**24 + 1, 2**24 + 3, 2**31 - 1, -(2**31)], np.int32)
    rounded = np.array([2**24, 2**24 + 4, 2**31, -(2**31)], np.float64)
    factor = np.float32(2.0**-24)
    expected = np.clip(np.rint(rounded * float(factor)) + 128, 0, 255)
    assert reference.requantize(acc, factor, 128).tolist() == expected.tolist()


@given(F32, F32, F32)
def test_multiplier_rounds_after_each_operation(a, b, c):
    product = float32(Fraction(a) * Fraction(b))
    expected = np.float32(float(product / Fraction(c)))
    assert reference.multiplier(a, b, c) == expected


def test_quantize_clips_at_both_ends_and_keeps_zero():
    x = np.array([-1e30, -1.0, 0.0, 1.0, 1e30], np.float32)
    assert reference.quantize(x, 0.5, 64, 1, 127).tolist() == [1, 62, 64, 66, 127]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_conv2d_equals_the_loops(groups):
    rng = np.random.default_rng(groups)
    data = rng.integers(0, 256, (2, 5, 6, 4)).astype(np.uint8)
    weight = rng.integers(-128, 128, (3, 2, 4 // groups, 8)).astype(np.int8)
    strides, (top, left, bottom, right), dilation, zero = (2, 1), (1, 0, 2, 1), (1, 2), 7
    out = reference.conv2d(
        data, weight, zero_point=zero, strides=strides, padding=(top, left, bottom, right),
        dilation=dilation, groups=groups,
    )  # fmt: skip
    per_in, per_out = 4 // groups, 8 // groups
    for n, y, x, k in np.ndindex(out.shape):
        total = 0
        for i, j, c in np.ndindex(3, 2, per_in):
            h, w = y * 2 + i - top, x + j * 2 - left
            if 0 <= h < 5 and 0 <= w < 6:
                channel = (k // per_out) * per_in + c
                total += (int(data[n, h, w, channel]) - zero) * int(weight[i, j, c, k])
        assert out[n, y, x, k] == total


def test_an_accumulator_beyond_int32_is_an_error_and_not_a_wrong_number():
    data = np.full((1, 1, 1, 70000), 255, np.uint8)
    with pytest.raises(OverflowError, match="beyond int32"):
        reference.conv2d(data, np.full((1, 1, 70000, 1), 127, np.int8))


def test_add_is_dequantize_add_quantize():
    a = np.arange(256, dtype=np.uint8)
    out = reference.add(a, a[::-1], 0.1, 10, 0.2, 20, 0.15, 30)
    real = (a.astype(np.float32) - 10) * np.float32(0.1)
    other = (a[::-1].astype(np.float32) - 20) * np.float32(0.2)
    assert out.tolist() == np.clip(np.rint((real + other) / np.float32(0.15)) + 30, 0, 255).tolist()


def test_max_pool_padding_never_wins():
    out = reference.max_pool2d(
        np.zeros((1, 2, 2, 1), np.uint8), pool_size=(2, 2), strides=(2, 2), padding=(1, 1, 1, 1)
    )
    assert out.max() == 0
