"""The functions between a requantize's float32 and its rounding."""

from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topi_ext import function
from topi_ext.reference import requantize
from tvm_easyquant.network import expression

HARD_SWISH = ("divide", ("multiply", "x", ("clip", ("add", "x", 3.0), 0.0, 6.0)), 6.0)
FORMS = {
    "relu": ("clip", "x", 0.0, inf),
    "leaky_relu": ("leaky_relu", "x", 0.1),
    "slopes": ("leaky_relu", "x", (0.25, -0.5, 1.5, 0.0)),
    "relu6": ("clip", "x", 0.0, 6.0),
    "hard_sigmoid": ("divide", ("clip", ("add", "x", 3.0), 0.0, 6.0), 6.0),
    "hard_swish": HARD_SWISH,
    "hard_swish_affine": ("add", ("multiply", HARD_SWISH, 1.7), -0.3),
    "silu": ("multiply", "x", ("sigmoid", "x")),
    "sigmoid": ("sigmoid", "x"),
    "tanh": ("tanh", "x"),
    "gelu": ("multiply", ("multiply", "x", 0.5), ("add", ("erf", ("divide", "x", 2.0**0.5)), 1.0)),
    "gelu_tanh": (
        "multiply", ("multiply", "x", 0.5),
        ("add", ("tanh", ("multiply", ("add", "x", ("multiply", ("power", "x", 3.0), 0.044715)), 0.7978846)), 1.0),
    ),
    "elu": ("add", ("maximum", "x", 0.0), ("minimum", 0.0, ("subtract", ("exp", ("minimum", "x", 0.0)), 1.0))),
    "softsign": ("divide", "x", ("add", 1.0, ("abs", "x"))),
}  # fmt: skip
X = np.concatenate([np.linspace(-12, 12, 4000), [0.0, -0.0, 1e-20, -1e-20, 88, -88, 1e4, -1e4]]).astype(
    np.float32
)


@pytest.mark.parametrize("name", FORMS)
def test_a_function_is_within_float32_of_its_meaning(name):
    form = function.canonical(FORMS[name])
    assert function.fusable(FORMS[name])
    x = np.repeat(X[:, None], 4, axis=1)
    other = np.asarray(next(iter(function.vectors(form)), (0,)), np.float32)
    found = function.apply(function._named(form, next(iter(function.vectors(form)), None)), x, other)
    wanted = expression.compute(FORMS[name], x)
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() <= 1e-6 * max(1, np.abs(wanted[np.abs(x) < 20]).max())
    assert np.allclose(found, wanted, rtol=2e-6, atol=1e-6)


def test_what_a_requantize_cannot_compute_is_told():
    for form in (("log", "x"), ("divide", 1.0, "x"), ("power", "x", 0.5), ("exp", "x"),
                 ("multiply", ("leaky_relu", "x", (0.1, 0.2)), (1.0, 2.0))):  # fmt: skip
        assert not function.fusable(form), form


@pytest.mark.parametrize("name", FORMS)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_fused_it_is_the_rounded_function(name, data):
    """A homogeneous function is taken of the steps, others take the scale into their last product: both
    are rint(f(acc * unit) / scale) but for float32's own error, next to a tie."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    unit = np.float32(10 ** rng.uniform(-4, -1, 4))
    scale, lo, hi = float(np.float32(10 ** rng.uniform(-2.5, -0.5))), -int(rng.integers(0, 128)), 127
    acc = rng.integers(-(10**4), 10**4, (64, 4)).astype(np.int32)
    fused = function.fuse(FORMS[name], unit, scale, lo, hi)
    stored = requantize(
        acc, fused.multiplier, 128, 128 + fused.lo, 128 + fused.hi, fused.function, fused.other
    )
    real = expression.compute(FORMS[name], acc * unit).astype(np.float64) / scale
    wanted = np.clip(np.rint(real), lo, hi) + 128
    apart = np.abs(stored - wanted)
    tie = np.abs(real - np.floor(real) - 0.5) < 1e-3 + 1e-5 * np.abs(real)
    assert (apart[~tie] == 0).all() and apart.max() <= 1


def test_the_interval_proof_holds_the_values():
    for form in FORMS.values():
        form = function.canonical(form)
        low, high = function.bounds(form, 12.0)
        for vector in function.vectors(form) or [None]:
            named = function._named(form, vector)
            other = None if vector is None else np.asarray(vector, np.float32)
            found = function.apply(named, np.repeat(X[:4000, None], 4, axis=1), other)
            assert low - 1e-3 <= found.min() and found.max() <= high + 1e-3


def test_a_clip_that_the_range_does_anyway_costs_nothing():
    fused = function.fuse(("multiply", ("clip", "x", 0.0, 6.0), (1.0, 2.0)), 0.01, 6 / 255, 0, 255)
    assert fused.function is None and (fused.lo, fused.hi) == (0, 255)
    fused = function.fuse(("multiply", ("clip", "x", 0.0, 6.0), (1.0, 2.0)), 0.01, 12 / 255, 0, 255)
    assert fused.function == ("multiply", ("clip", "x", 0.0, 6.0), "other")


def test_a_clip_beyond_the_range_stays_within_it():
    """Story: its lower limit of 167 steps came after the range's upper one, and a kernel stored it."""
    fused = function.fuse(("clip", "x", 1.0, 2.0), 0.01, 0.006, -128, 127)
    assert fused.function is None and (fused.lo, fused.hi) == (127, 127)


def test_numbers_are_what_float32_holds_wherever_an_expression_comes_from():
    """A module's constants are float32, a graph's numbers are not; both make the same function."""
    form = ("add", ("multiply", ("multiply", ("sigmoid", "x"), 0.1), (0.7, 0.3)), 0.2)
    held = function.single(form)
    assert held != form
    ours, theirs = (function.fuse(e, 0.01, 0.006, -128, 127) for e in (form, held))
    assert ours.function == theirs.function and (ours.other == theirs.other).all()
    assert function.of_sum(("negative", ("tanh", "x"))) == ("multiply", ("tanh", "x"), -1.0)
    assert function.of_sum(("multiply", "x", 1.0)) is None


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 0), (5,), (3, 50, 50, 7), (1, 2 * expression.TOGETHER)])
def test_a_map_is_computed_in_parts_as_it_is_whole(shape):
    """A SiLU of a map took five times as long where its float64 steps did not fit a cache."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    whole = expression.compute64(("multiply", "x", ("sigmoid", "x")), x).astype(np.float32)
    np.testing.assert_array_equal(expression.compute(("multiply", "x", ("sigmoid", "x")), x), whole)
