"""Legality from real weights: bounds are reached by witnesses, and refused one step beyond. No TVM."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topi_ext.conv2d import (
    EXACT,
    INT16_MAX,
    Bound,
    ConvSpec,
    Refusal,
    Residual,
    accumulator_bound,
    fold_zero_point,
    lane_bound,
    merged_scales,
    pack,
    tap_bound,
)
from topi_ext.errors import AccumulatorOverflow, KernelError, LoweringError
from topi_ext.proofs import _fused
from tvm_easyquant.errors import is_users


def lanes(values):
    """Packed weights (1, 1, L, 1, 4) of one output channel."""
    return np.array(values, np.int8).reshape(1, 1, -1, 1, 4)


@pytest.mark.parametrize("bits, data_max, depth", [(63, 63, 4), (63, 127, 2), (63, 255, 1), (127, 127, 1)])
def test_guaranteed_depths_of_the_paper(bits, data_max, depth):
    """Section 3.3: 8 products of 63 x 63 fit int16 (four vpmaddubsw), 4 of 127 x 63, 2 of 127 x 127."""
    worst = lanes([bits] * 64)
    assert isinstance(lane_bound(worst, depth, data_max), Bound)
    assert isinstance(lane_bound(worst, 2 * depth, data_max), Refusal)


def test_one_past_the_bound_is_refused_with_the_figure():
    """255 * (64 + 64) = 32640 fits, 255 * (65 + 64) = 32895 does not."""
    assert lane_bound(lanes([64, 64, 0, 0]), 1, 255) == Bound("int16 lane of 2 products", 32640, INT16_MAX)
    refusal = lane_bound(lanes([65, 64, 0, 0]), 1, 255)
    assert isinstance(refusal, Refusal) and "32895" in str(refusal)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-127, 127), min_size=32, max_size=32), st.sampled_from([63, 127, 255]))
def test_lane_bound_is_attained(weights, data_max):
    """The bound is exact: the data that is data_max under one sign and 0 under the other reaches it."""
    answer = lane_bound(lanes(weights), 2, data_max)
    w = np.array(weights).reshape(-1, 2, 2, 2).transpose(0, 2, 1, 3).reshape(-1, 4)  # group, half
    reach = data_max * max(np.maximum(w, 0).sum(1).max(), np.maximum(-w, 0).sum(1).max())
    if isinstance(answer, Bound):
        assert answer.value == reach <= INT16_MAX
    else:
        assert reach > INT16_MAX


def test_depthwise_bound_is_the_span_of_a_channel():
    spec = ConvSpec(1, 5, 5, 2, 2, (3, 3), groups=2, data_max=127)
    weight = np.tile(np.array([57, 0]), 9).reshape(3, 3, 1, 2).astype(np.int8)
    weight[0, 0, 0, 0] = -60  # 127 * (8 * 57 + 60) = 65532 of 65534
    assert tap_bound(spec, weight) == Bound("span of a channel's int16 sum", 65532, 65534)
    weight[1, 1, 0, 0] += 1
    assert "65659" in tap_bound(spec, weight).why


def test_accumulator_bound_counts_the_bias():
    spec = ConvSpec(1, 1, 1, 4, 1, (1, 1), data_max=255)
    weight = np.full((1, 1, 4, 1), 127, np.int8)
    assert accumulator_bound(spec, weight, np.array([5])).value == 4 * 127 * 255 + 5
    assert isinstance(accumulator_bound(spec, weight, np.array([2**31 - 1])), Refusal)


def test_fold_zero_point_is_exact_and_checked():
    weight = np.array([3, -5], np.int8).reshape(1, 1, 1, 2)
    assert fold_zero_point(np.array([10, 20]), weight, 7).tolist() == [10 - 21, 20 + 35]
    with pytest.raises(AccumulatorOverflow, match="does not fit int32"):
        fold_zero_point(np.array([2**31 - 1, 0]), -weight, 7)


@pytest.mark.parametrize("groups, dilation", [(1, 1), (1, 2), (2, 1)])
def test_pack_keeps_every_weight_once(groups, dilation):
    spec = ConvSpec(1, 9, 9, 6, 10, (3, 2), dilation=(dilation,) * 2, groups=groups)
    weight = np.arange(1, 1 + np.prod(spec.weight_shape)).reshape(spec.weight_shape).astype(np.int16)
    packed = pack(spec, weight, 8, 4)
    kept = packed[packed != 0]
    assert sorted(kept.tolist()) == sorted(weight.ravel().tolist())


def test_spec_round_trips_as_json_and_refuses_nonsense():
    residual = Residual(0.1, 64, 1, 127, 0.2, 0, True, 0.3)
    spec = ConvSpec(1, 8, 8, 4, 4, (3, 3), epilogue="add", residual=residual)
    assert ConvSpec.from_json(spec.to_json()) == spec
    with pytest.raises(ValueError, match="residual"):
        ConvSpec(1, 8, 8, 4, 4, (3, 3), epilogue="add")
    with pytest.raises(ValueError, match="larger than the padded map"):
        ConvSpec(1, 2, 2, 4, 4, (3, 3))
    with pytest.raises(ValueError, match="groups"):
        ConvSpec(1, 8, 8, 4, 4, (3, 3), groups=3)


def test_a_function_is_in_the_key_of_a_layer_and_its_absence_is_not():
    """Keys of AutoTVM's logs from before there were functions stay what they were."""
    plain = ConvSpec(1, 8, 8, 4, 4, (3, 3))
    assert "function" not in plain.to_json()
    spec = replace(plain, function=("multiply", ("leaky_relu", "x", "other"), 0.1))
    assert spec.function[2] == float(np.float32(0.1)) and hash(spec)
    assert ConvSpec.from_json(spec.to_json()) == spec
    assert ConvSpec.from_json(spec.to_json()).to_json() == spec.to_json() != plain.to_json()
    with pytest.raises(ValueError, match="dequantize epilogue takes no function"):
        replace(plain, epilogue="dequantize", function="x")
    with pytest.raises(ValueError, match="takes no vector"):
        replace(spec, epilogue="add", residual=Residual(1.0, 0, 0, 255, 1.0, 0, True, 1.0))


def test_factors_of_a_residual_add_are_the_quotients_or_their_neighbours_or_none():
    """0.0126 n + 0.0195 m is often exactly in the middle between two steps of 0.0212, where only the norm's own
    operations fall on its side."""
    assert merged_scales(Residual(0.25, 127, 0, 254, 0.125, 0, True, 0.5), 0, 0, 127) == (0.5, 0.25)
    own, other, out = 0.03396959230303764, 0.019321970641613007, 0.02423577941954136
    quotients = (np.float32(own) / np.float32(out), np.float32(other) / np.float32(out))
    found = merged_scales(Residual(own, 127, 0, 254, other, 0, True, out), 0, 0, 127)
    assert found is not None and found != quotients
    np.testing.assert_allclose(found, quotients, rtol=1e-6)
    assert merged_scales(Residual(0.0126, 127, 0, 254, 0.0195, 0, True, 0.0212), 0, 0, 127) is None


floats = st.floats(2.0**-20, 2.0**20, width=32)


@given(st.integers(-255, 255), floats, floats, st.sampled_from([-1, 1]))
def test_a_fused_multiply_add_is_rounded_once(steps, factor, rest, sign):
    exact = steps * Fraction(factor) + sign * Fraction(rest)
    got = _fused(np.float32(steps), np.float32(factor), np.float32(sign * rest))
    if not np.isnan(got):
        near = np.nextafter(got, np.float32([-np.inf, np.inf]))
        errors = [abs(Fraction(float(value)) - exact) for value in (got, *near)]
        assert errors[0] == min(errors) and (np.isclose(float(exact), got) or not exact)
    else:
        assert not 2.0**-20 < factor / rest < 2.0**20


def test_a_kernels_error_is_the_users_by_its_class_not_by_the_name_of_its_module():
    """A line and no traceback; any error that was raised in a module called topi_ext counted once."""
    assert issubclass(AccumulatorOverflow, OverflowError) and issubclass(KernelError, ValueError)
    assert is_users(LoweringError("qnn.conv2d: weights with a zero point")) and is_users(
        AccumulatorOverflow("x")
    )

    class Bug(Exception):
        __module__ = "topi_ext.kernels.direct"

    assert not is_users(Bug())


def test_a_kernel_that_is_exact_for_any_weights_says_so():
    assert (
        isinstance(EXACT, Bound)
        and EXACT is not Bound(*EXACT)
        and str(EXACT) == "any int8 weights <= 0 of 0"
    )
