"""Streaming histograms and the thresholds read off them. No TVM."""

import networks
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_easyquant.scales import histogram
from tvm_easyquant.scales.calibrate import Range, calibrate, start_table
from tvm_easyquant.scales.histogram import BINS, Histogram
from tvm_easyquant.scales.numerics import ConfigError, QuantConfig
from tvm_easyquant.scales.partition import plan

values = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30)


def seen(*parts):
    h = Histogram()
    for part in parts:
        h.see(np.asarray(part, np.float32))
    return h


@settings(max_examples=80, deadline=None)
@given(st.lists(values, min_size=1, max_size=5), st.randoms())
def test_neither_order_nor_merging_changes_a_histogram(parts, random):
    whole = seen([x for part in parts for x in part])
    shuffled = list(parts)
    random.shuffle(shuffled)
    merged = Histogram()
    for part in shuffled:
        merged.merge(seen(part))
    assert seen(*shuffled) == whole and merged == whole
    assert whole.counts.sum() + whole.zeros == sum(map(len, parts))


@pytest.mark.parametrize("power", [-149, -140, -127, -20, 0, 100, 126])
def test_numbers_of_any_size_fall_into_the_bins_that_they_belong_to(power):
    x = np.ldexp(np.arange(1, 9, dtype=np.float64) / 8, power + 1).astype(np.float32)
    x = np.append(x, np.float32(0))
    h = seen(x)
    expected = np.bincount(
        np.floor(np.ldexp(x[:-1].astype(np.float64), -h.exponent)).astype(int), minlength=BINS
    )
    np.testing.assert_array_equal(
        h.counts, expected - np.bincount([0], weights=[(x[:-1] == 0).sum()], minlength=BINS)
    )
    assert h.zeros == (x == 0).sum()


def test_a_range_sees_its_negative_values():
    x = np.random.default_rng(0).standard_normal((1, 5, 4, 3)).astype(np.float32).transpose(0, 2, 1, 3)
    found = Range.of(QuantConfig(start="mse", asymmetric=True))
    found.see(x)
    found.see(np.abs(x))
    assert found.negative == seen(x[x < 0]) and found.histogram == seen(x, x)


def test_bins_hold_what_they_say():
    x = np.random.default_rng(0).standard_normal(5000).astype(np.float32) ** 3
    h = seen(x[:100], x[100:])
    counts, width = h.used()
    expected, _ = np.histogram(np.abs(x), np.arange(len(counts) + 1) * width)
    np.testing.assert_array_equal(counts, expected)
    assert BINS / 2 <= len(counts) <= BINS


@pytest.mark.parametrize("extreme", [1e-44, 1e-38, 3e38])
def test_extreme_values(extreme):
    h = seen([0.0, extreme, -extreme / 2], [1e-45])
    assert h.zeros == 1 and h.counts.sum() == 3 and h.absmax == np.float32(extreme)


def test_percentile_equals_numpys_to_a_bin():
    x = np.abs(np.random.default_rng(1).standard_normal(20000)).astype(np.float32)
    h = seen(x, np.zeros(1000))
    for percent in (50, 99, 99.9, 100):
        exact = np.percentile(np.append(x, np.zeros(1000)), percent, method="inverted_cdf")
        assert abs(histogram.percentile(h, percent) - exact) <= h.used()[1]


def test_mse_is_the_best_of_its_candidates():
    x = np.random.default_rng(2).laplace(size=20000).astype(np.float32)
    h = seen(x)

    def error(threshold, levels):
        step = threshold / levels
        return np.mean((x - step * np.clip(np.rint(x / step), -levels, levels)) ** 2)

    for levels in (15, 63):
        mine = error(histogram.mse(h, levels), levels)
        every = [error(h.absmax * part / 100, levels) for part in range(1, 101)]
        assert mine <= min(every) * 1.01
    assert histogram.mse(h, 15) < histogram.mse(h, 63) < h.absmax


def test_kl_cuts_a_long_tail_and_keeps_a_flat_one():
    rng = np.random.default_rng(3)
    tail = seen(np.append(rng.standard_normal(100000), [40.0]))
    assert 2 < histogram.kl(tail, 63) < 10
    flat = seen(rng.random(100000))
    assert histogram.kl(flat, 127) > 0.95
    assert histogram.kl(seen([1.0, 1.0]), 127) <= 1.0


@pytest.mark.parametrize("method", ["minmax", "percentile", "kl", "mse"])
def test_calibrators_are_methods_and_starts(method):
    graph, images = networks.residual()
    images[0][0, 0, 0, 0] = 30.0  # an outlier
    plan_ = plan(graph)

    def table(**settings):
        config = QuantConfig(**settings)
        return start_table(graph, plan_, calibrate(graph, plan_, images, config), config)

    start = {"minmax": "max"}.get(method, method)
    mine, again = table(method=method), table(method="easyquant_mse", start=start)
    assert mine.activations == again.activations
    largest = table(method="minmax").activations
    assert all(mine.activations[n].scale <= largest[n].scale for n in largest)
    assert (mine.activations["image"].scale < largest["image"].scale) == (method in ("kl", "mse"))


def test_the_paper_takes_no_switches():
    with pytest.raises(ConfigError, match="start='kl' is no part of the paper's method easyquant"):
        QuantConfig(method="easyquant", start="kl")
    with pytest.raises(ConfigError, match="method kl does not search: order says nothing"):
        QuantConfig(method="kl", order="layerwise")
    with pytest.raises(ConfigError, match="rounding is 'up'; use one of nearest, descent"):
        QuantConfig(rounding="up")
    with pytest.raises(ConfigError, match="percentile is 0"):
        QuantConfig(percentile=0)
