"""Functions between a layer and its rounding: every kernel computes the norm's float32, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
from kernel_host import run
from test_function import FORMS, HARD_SWISH
from test_kernels import ROWS, expected, weight_limit

from topi_ext import function
from topi_ext.conv2d import ConvSpec

#: accumulators where float32 rounds, ties, ends: a kernel meets 256 in a row around each
CORNERS = (0, 2**24, -(2**24), 2**30 - 2**10, -(2**30) + 2**10, 12582912, 1000, -1000)
SLOPES = (0.25, -0.5, 1.5, 0.0, 1.0, -2.0, 1e-3, 0.1)
FUNCTIONS = {
    **{name: form for name, form in FORMS.items() if name not in ("relu", "slopes", "relu6")},
    "slopes": ("leaky_relu", "x", SLOPES),
    "relu6 times a vector": ("multiply", ("clip", "x", 0.0, 6.0), SLOPES),
    "hard swish times a vector": ("multiply", HARD_SWISH, SLOPES),
}


def case(row, name, seed=0, channels=32, size=16):
    """(spec, data, weight, bias, factors): the tap in the middle of a 3x3 window alone reads the bytes 0 to 255,
    so that a channel's accumulators are those in a row around its bias; multipliers of many sizes."""
    rng = np.random.default_rng(seed)
    depthwise = row.name.startswith("depthwise")
    inputs = channels if depthwise else 4
    zero, lo, hi = int(rng.integers(50, 200)), 0, 255
    expression = FUNCTIONS[name]
    vectors = function.vectors(expression)
    for vector in vectors:
        expression = _with(expression, vector, tuple(np.resize(vector, channels).tolist()))
    unit = (10 ** rng.uniform(-2.5, -1, channels)).astype(np.float32)
    bias = np.resize(CORNERS, channels).astype(np.int32)
    far = np.abs(bias) > 2**20
    unit[far] = (10 ** rng.uniform(-9, -5.5, channels)).astype(np.float32)[far]
    unit[1::5] = 2.0**-6 * np.where(far, 2.0**-18, 1)[1::5]  # ties
    fused = function.fuse(expression, unit, 1.0, 0, 255)
    x = (bias + rng.integers(-256 * 63, 256 * 63, (999, channels))).astype(np.float32) * fused.multiplier
    scale = float(
        np.float32(np.quantile(np.abs(function.apply(fused.function, x, fused.other)), 0.9) / 100)
    )
    fused = function.fuse(expression, unit, scale, lo - zero, hi - zero)
    spec = ConvSpec(
        1, size, 256 // size, inputs, channels, (3, 3), padding=(1,) * 4, groups=channels if depthwise else 1,
        out_zero_point=zero, lo=fused.lo + zero, hi=fused.hi + zero, function=fused.function,
    )  # fmt: skip
    limit = np.minimum(weight_limit(row, replace(spec, function=None)), 63)
    weight = np.zeros(spec.weight_shape, np.int8)
    weight[1, 1, 0] = np.maximum(limit, 1) * np.where(np.arange(channels) % 2, 1, -1)
    weight[1, 1, 0, ::3] = 1
    data = rng.permutation(256).astype(np.uint8).reshape(1, size, -1, 1)
    data = np.repeat(data, inputs, axis=3) if depthwise else np.concatenate([data, 0 * data, data, data], 3)
    factors = [np.broadcast_to(v, (channels,)) for v in (fused.multiplier, fused.other) if v is not None]
    return spec, data, weight, bias, np.stack(factors) if len(factors) > 1 else factors[0]


def _with(e, vector, other):
    if e == vector:
        return other
    return (e[0], *(_with(argument, vector, other) for argument in e[1:])) if isinstance(e, tuple) else e


FAMILIES = [
    pytest.param(row, name, id=f"{row.name}-{name}", marks=pytest.mark.isa(row.isa))
    for row in ROWS
    for name in FUNCTIONS
    if row.name
    in ("direct_generic", "depthwise_int16", "direct_avx2_d2", "depthwise_avx2", "winograd_f43_avx2")
]


@pytest.mark.parametrize("row, name", FAMILIES)
def test_a_fused_function_is_the_norms(row, name):
    spec, data, weight, bias, factors = case(row, name)
    out, _ = run(row, spec, data, weight, bias, factors)
    wanted = expected(spec, data, weight, bias, factors, None)
    np.testing.assert_array_equal(out, wanted)
    assert len(np.unique(wanted)) > 20
