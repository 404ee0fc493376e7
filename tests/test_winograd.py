"""The Winograd transforms: derived, proven on all basis pairs, their bounds reached by witnesses. No TVM."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from topi_ext import winograd
from topi_ext.conv2d import INT16_MAX, Bound, ConvSpec, Refusal


def direct(t, data, weight):
    return np.array(
        [[int((data[i : i + t.r, j : j + t.r] * weight).sum()) for j in range(t.m)] for i in range(t.m)]
    )


@pytest.mark.parametrize("m", [2, 4])
def test_every_basis_pair_is_a_proof(m):
    """(data, weight) -> y is bilinear, so equality on all pairs of unit arrays is equality everywhere."""
    t = winograd.transform(m, 3)
    pairs = 0
    for a in np.ndindex(t.n, t.n):
        for b in np.ndindex(t.r, t.r):
            data, weight = np.zeros((t.n, t.n), int), np.zeros((t.r, t.r), int)
            data[a], weight[b] = 1, 1
            assert (winograd.correlate(t, data, weight) == direct(t, data, weight)).all()
            pairs += 1
    assert pairs == (t.n * t.r) ** 2 == {2: 144, 4: 324}[m]


def test_the_divisors_and_the_exact_division():
    assert [winograd.transform(m, 3).divisor for m in (2, 4)] == [4, 576]
    t = winograd.transform(4, 3)
    assert t.shift == 6 and (t.inverse * 9) % 2**32 == 1


@given(st.integers(-(2**25) + 1, 2**25 - 1))
def test_division_is_exact_even_where_the_dividend_wrapped(y):
    t = winograd.transform(4, 3)
    wrapped = (576 * y + 2**31) % 2**32 - 2**31
    product = (wrapped * t.inverse + 2**31) % 2**32 - 2**31
    assert product >> t.shift == y


@pytest.mark.parametrize("m", [2, 4])
def test_growth_of_the_data_is_attained_and_fits_int16(m):
    t = winograd.transform(m, 3)
    growth = winograd.data_growth(t)
    coefficients = [np.outer(a, b) for a in t.bt for b in t.bt]
    witnesses = [max(c[c > 0].sum(), -c[c < 0].sum()) for c in coefficients]  # data 1 under one sign
    assert max(witnesses) == growth == {2: 4, 4: 68}[m]
    assert growth * 255 <= INT16_MAX


@pytest.mark.parametrize("m", [2, 4])
def test_transformed_weights_fit_int16_at_8_bits(m):
    t = winograd.transform(m, 3)
    worst = np.abs(t.g).sum(axis=1).max() ** 2 * 127
    assert worst == {2: 9, 4: 49}[m] * 127 <= INT16_MAX


def test_no_fraction_survives():
    with pytest.raises(ValueError, match="fraction left"):
        winograd._integers([[winograd.Fraction(1, 2)]])
    with pytest.raises(ValueError, match="points"):
        winograd.transform(6, 3)


def proves(channels, data_max, weight_max, **changes):
    spec = ConvSpec(1, 16, 16, channels, 8, (3, 3), padding=(1,) * 4, data_max=data_max, **changes)
    return winograd.proves(winograd.transform(4, 3), spec, np.full(spec.weight_shape, weight_max, np.int8))


@pytest.mark.parametrize("data_max, weight_max, last", [(63, 63, 939), (127, 63, 465), (127, 127, 231)])
def test_the_largest_channel_count_of_equal_weights(data_max, weight_max, last):
    """64 |y| < 2**31 for C channels of nine equal weights (method notes: 939, 465, 231)."""
    assert (2**31 - 1) // (64 * 9 * data_max * weight_max) == last
    assert isinstance(proves(last, data_max, weight_max), Bound)
    assert isinstance(proves(last + 1, data_max, weight_max), Refusal)


def test_other_shapes_are_refused():
    t = winograd.transform(4, 3)
    for changes in (dict(strides=(2, 2)), dict(dilation=(2, 2))):
        spec = ConvSpec(1, 16, 16, 8, 8, (3, 3), **changes)
        assert "only for 3x3" in str(winograd.refuses(t, spec))
