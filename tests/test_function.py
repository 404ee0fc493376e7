"""The functions between a requantize's float32 and its rounding."""

from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topi_ext import curves, function
from topi_ext.reference import requantize
from topi_ext.targets.meaning import chosen, fused
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


#: those that cost the norm dozens of operations
CURVED = ("silu", "gelu", "gelu_tanh", "sigmoid", "tanh")
#: float32 that one instruction chooses among: AVX2's, AVX-512's of one vector and of two
PIECES = (8, 16, 32)


def by_curve(curve, x):
    """What a kernel computes of a curve before it clips: float32, one operation after the other."""
    number = np.float32
    size = np.minimum(np.abs(x) if curve.even else x, number(curve.far))
    t = size if curve.even else np.maximum(size, number(curve.near))
    shifted = fused(t, number(curve.per), number(function.MAGIC))
    r = fused(t, number(curve.per), number(function.MAGIC) - shifted)
    k = np.broadcast_to(shifted.view(np.int32), x.shape)
    y = None
    for row in curve.table[::-1]:
        c = chosen(np.broadcast_to(row, (1, len(row))), k[None])[0]
        y = c if y is None else fused(y, r, c)
    beyond = np.maximum(x, number(0)) if curve.even else x - size
    return fused(beyond, number(curve.slope), y) if curve.slope else y


def apart(curve, x, wanted, zero_point, divisor=None):
    """The largest distance of a curve from the norm, in half windows; what no byte holds is beyond it."""
    wanted = (
        wanted.astype(np.float64) if divisor is None else (wanted / np.float32(divisor)).astype(np.float64)
    )
    shift = curves.BASE + zero_point + curve.window // 2 * curves.GRAIN
    found = by_curve(curve, x).astype(np.float64) - shift
    byte = np.abs(wanted) <= 255
    beyond = np.sign(wanted[~byte]) * found[~byte]
    assert (beyond > 254.99).all()
    assert curve.low <= wanted.min() and wanted.max() <= curve.high
    return np.abs(found - wanted)[byte].max() / (curve.window // 2 * curves.GRAIN)


def everywhere(curve, count=3000):
    """float32 of every size up to what a layer reaches, and around the ends of the pieces."""
    sizes = np.concatenate([2.0 ** np.linspace(-140, 30, count), np.linspace(0, 20, count)])
    k = np.arange(-40, 40)
    ends = np.concatenate([(k + 0.5) / curve.per, [curve.far, curve.near, 0.0, 2.0**30]]).astype(np.float32)
    around = [np.nextafter(ends, np.float32(side)) for side in (-np.inf, np.inf)]
    return np.concatenate([sizes, -sizes, ends, -ends, *around]).astype(np.float32)


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("name", CURVED)
def test_a_curve_is_nearer_to_the_norm_than_its_window(name, pieces):
    found = 0
    for scale in (2e-4, 1 / 255, 2 / 255, 0.04, 0.8):
        for zero in (0, 128):
            f = function.fuse(FORMS[name], 1.0, scale, -zero, 255 - zero)
            curve = curves.curve(f.function, None, zero, pieces)
            if curve is None:
                continue
            x = everywhere(curve)
            assert apart(curve, x, function.apply(f.function, x), zero) < 1, (scale, zero)
            # of a sum, where a true division makes the steps
            form = function.of_sum(FORMS[name])
            curve = curves.curve(form, scale, zero, pieces)
            assert apart(curve, x, function.apply(form, x), zero, scale) < 1, (scale, zero)
            found += 1
    assert found >= 2 or (pieces == 8 and name in ("sigmoid", "tanh"))  # too few pieces for both sides


def test_functions_without_a_curve_stay_the_norms():
    silu = function.canonical(FORMS["silu"])
    assert curves.curve(("multiply", silu, 25.0), None, 0, 0) is None  # no instruction
    assert curves.curve(("multiply", silu, 1e5), None, 0, 32) is None  # float32 is too coarse for the steps
    for form in ("hard_swish", "leaky_relu", "softsign", "relu6"):
        assert curves.curve(function.single(function.canonical(FORMS[form])), None, 0, 32) is None, form
    assert curves.curve(("multiply", ("sigmoid", "x"), "other"), None, 0, 32) is None
    assert curves.curve(("sigmoid", ("multiply", "x", (0.5, 1.0))), None, 0, 32) is None


def test_a_window_that_is_too_narrow_would_be_found():
    """The distance that the proof allows is not far beyond the one that there is."""
    f = function.fuse(FORMS["silu"], 1.0, 0.04, -10, 245)
    curve = curves.curve(f.function, None, 10, 32)
    x = everywhere(curve)
    assert 0.2 < apart(curve, x, function.apply(f.function, x), 10) < 1 and curve.window <= 24


@pytest.mark.parametrize("name", ["exp", "erf", "sigmoid", "tanh"])
def test_the_norms_own_error_is_within_what_a_curve_counts_for_it(name):
    x = np.concatenate([np.linspace(-12, 12, 50_001), np.linspace(-89, 89, 20_001)]).astype(np.float32)
    assert_error(name, x)


def assert_error(name, x):
    at = x.astype(np.float64)
    none = np.zeros_like(at)
    real = curves.RULES[name](curves._Reach(at, at, none, none, none, at))
    made = function.apply((name, "x"), x)
    assert (np.abs(made - real.middle) <= real.error + 4e-16 * np.abs(real.middle)).all()  # float64's own


def magnitudes(low, high, count=2**20):
    """Every float32 of a range of positive ones, in parts."""
    first, last = (int(np.float32(v).view(np.int32)) for v in (low, high))
    for begin in range(first, last + 1, count):
        yield np.arange(begin, min(begin + count, last + 1), dtype=np.int32).view(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["exp", "erf"])
def test_the_norms_own_error_for_every_float32(name):
    """Smaller ones are 0 to both, larger ones are clipped."""
    for x in magnitudes(2.0**-26, 88.5 if name == "exp" else 9.5):
        assert_error(name, x)
        assert_error(name, -x)
