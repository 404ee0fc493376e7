"""Functions between a layer and its rounding: every kernel computes the norm's float32, bit for bit."""

import re
from dataclasses import replace

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
from kernel_host import RELAY, compiled, computed, run
from test_function import FORMS, HARD_SWISH
from test_kernels import ROWS, expected, weight_limit

from topi_ext import epilogue, function, isa, manifest, reference
from topi_ext.conv2d import ConvSpec, Residual, fold_zero_point
from topi_ext.kernels import elementwise

#: accumulators around which float32 rounds, or a function has its corners and ends
CORNERS = (0, 2**24, -(2**24), 2**30, -(2**30), 12582912, 1000, -1000)
SLOPES = (0.25, -0.5, 1.5, 0.0, 1.0, -2.0, 1e-3, 0.1)
FUNCTIONS = {
    **{name: form for name, form in FORMS.items() if name not in ("relu", "slopes", "relu6")},
    "slopes": ("leaky_relu", "x", SLOPES),
    "relu6 times a vector": ("multiply", ("clip", "x", 0.0, 6.0), SLOPES),
    "hard swish times a vector": ("multiply", HARD_SWISH, SLOPES),
}
#: those that have every operation
BRIEF = ("slopes", "leaky_relu", "hard swish times a vector", "silu", "gelu")
#: a row of every body of a kernel, and what rounds its outputs
FAMILIES = ("direct_generic", "depthwise_int16", "direct_avx2_d2", "depthwise_avx2", "winograd_f43_avx2")


def draw(rng, channels):
    """(bias, unit): accumulators of every size, corners among them; steps that make at most 16 of them, some a
    power of two."""
    bias = rng.choice([-1, 1], channels) * 2.0 ** rng.uniform(0, 30, channels)
    bias[::2] = np.resize(CORNERS, channels)[::2]
    unit = 2.0 ** rng.uniform(-4, 4, channels) / np.maximum(np.abs(bias), 2**11)
    unit[::3] = 2.0 ** np.floor(np.log2(unit[::3]))
    return bias.astype(np.int32), unit.astype(np.float32)


class Case:
    """A layer whose accumulators are told: the tap in the middle of a 3x3 window alone reads the data, so that they
    are the bytes, perhaps times a weight, around each channel's bias."""

    def __init__(self, row, name, seed=0, channels=32, size=16, expression=None, **changes):
        self.rng = np.random.default_rng(seed)
        self.channels, self.name = channels, name
        expression = FUNCTIONS[name]
        for vector in function.vectors(expression):
            expression = function._named(expression, vector)
            other = tuple(np.resize(vector, channels).tolist())
            expression = _with(expression, other)
        self.expression = expression
        self.depthwise = row.name.startswith("depthwise")
        self.inputs = channels if self.depthwise else 4
        self.bias, unit = draw(self.rng, channels)
        plain = function.fuse(expression, unit, 1.0, 0, 255)
        x = np.linspace(-16, 16, 999, dtype=np.float32)[:, None]
        real = x if plain.function is None else function.apply(plain.function, x, plain.other)
        self.scale = float(np.float32(np.quantile(np.abs(real), 0.9) / 120))
        self.zero = 117
        fused = self.fuse(unit)
        self.spec = ConvSpec(
            1, size, size, self.inputs, channels, (3, 3), padding=(1,) * 4,
            groups=channels if self.depthwise else 1, out_zero_point=self.zero, lo=fused.lo + self.zero,
            hi=fused.hi + self.zero, function=fused.function, **changes,
        )  # fmt: skip
        self.factors = self.stacked(fused)
        limit = np.minimum(weight_limit(row, replace(self.spec, function=None)), 63)
        self.weight = np.zeros(self.spec.weight_shape, np.int8)
        self.weight[1, 1, 0] = np.maximum(limit, 1) * np.where(np.arange(channels) % 2, 1, -1)
        self.weight[1, 1, 0, ::3] = 1

    def fuse(self, unit):
        return function.fuse(self.expression, unit, self.scale, -self.zero, 255 - self.zero)

    def stacked(self, fused):
        found = [
            np.broadcast_to(v, (self.channels,)) for v in (fused.multiplier, fused.other) if v is not None
        ]
        return np.stack(found) if len(found) > 1 else np.ascontiguousarray(found[0])

    def data(self):
        size = self.spec.height * self.spec.width
        bytes_ = self.rng.permutation(np.arange(size) % 256).astype(np.uint8)
        data = np.zeros((1, self.spec.height, self.spec.width, self.inputs), np.uint8)
        data[..., :: 1 if self.depthwise else self.inputs] = bytes_.reshape(1, *self.spec.out_shape[1:3], 1)
        return data

    def again(self):
        """Other accumulators and multipliers for the same kernel."""
        self.bias, unit = draw(self.rng, self.channels)
        self.factors = self.stacked(self.fuse(unit))

    def wanted(self, data):
        acc = data[..., :1].astype(np.int32) * self.weight[1, 1, 0].astype(np.int32) + self.bias
        first, *other = (self.factors,) if self.factors.ndim == 1 else self.factors
        s = self.spec
        return reference.requantize(acc, first, s.out_zero_point, s.lo, s.hi, s.function, *other)

    def arrays(self, row, data):
        folded = fold_zero_point(self.bias, self.weight, 0)
        return [data, *row.pack(self.spec, self.weight, folded, self.factors)]


def _with(e, vector):
    if e == "other":
        return vector
    return (e[0], *(_with(argument, vector) for argument in e[1:])) if isinstance(e, tuple) else e


def cases():
    for row in ROWS:
        for name in FUNCTIONS if row.name in FAMILIES else ():
            marks = [pytest.mark.isa(row.isa)]
            if row.name.startswith("winograd") and name not in BRIEF:
                marks.append(pytest.mark.ci)  # seconds each, to compile
            yield pytest.param(row, name, id=f"{row.name}-{name}", marks=marks)


@pytest.mark.parametrize("row, name", list(cases()))
def test_a_fused_function_is_the_norms(row, name):
    c = Case(row, name)
    data = c.data()
    out, assembly = run(row, c.spec, data, c.weight, c.bias, c.factors)
    wanted = c.wanted(data)
    np.testing.assert_array_equal(out, wanted)
    assert len(np.unique(wanted)) > 30
    assert not re.search(r"\tvfn?m(add|sub)", assembly)  # no product met its add


@pytest.mark.parametrize("name", ["slopes", "silu"])
@pytest.mark.parametrize("row", [
    pytest.param(row, id=row.name, marks=pytest.mark.isa(row.isa)) for row in ROWS
    if row.name in FAMILIES and not row.name.startswith("winograd")
])  # fmt: skip
def test_a_ragged_last_block_computes_the_function_too(row, name):
    c = Case(row, name, channels=21)
    data = c.data()
    out, _ = run(row, c.spec, data, c.weight, c.bias, c.factors)
    np.testing.assert_array_equal(out, c.wanted(data))


@pytest.mark.isa("avx2")
def test_groups_have_their_own_second_vectors():
    """The vectors of each group are padded to whole blocks."""
    rng = np.random.default_rng(3)
    row = manifest.kernel("direct_avx2_d1")
    f = function.fuse(("leaky_relu", "x", tuple(np.resize(SLOPES, 24).tolist())), 1e-3, 0.01, -99, 156)
    spec = ConvSpec(1, 8, 8, 16, 24, (3, 3), groups=4, padding=(1,) * 4, data_max=127, out_zero_point=99,
                    function=f.function)  # fmt: skip
    data = rng.integers(0, 128, (1, 8, 8, 16)).astype(np.uint8)
    weight = rng.integers(-63, 64, spec.weight_shape).astype(np.int8)
    bias = rng.integers(-3000, 3000, 24).astype(np.int32)
    factors = np.stack([np.broadcast_to(f.multiplier, (24,)), f.other])
    out, _ = run(row, spec, data, weight, bias, factors)
    np.testing.assert_array_equal(out, expected(spec, data, weight, bias, factors, None))


@pytest.mark.isa("avx512vnni")
@pytest.mark.parametrize("name, taps", [("line_avx512vnni", 3), ("strassen_avx512vnni", 1)])
def test_fewer_products_end_in_a_function_of_two_vectors(name, taps):
    """The vectors are padded to blocks of one and of two vectors of output channels."""
    rng = np.random.default_rng(3)
    f = function.fuse(("leaky_relu", "x", tuple(np.resize(SLOPES, 37).tolist())), 1e-3, 0.01, -99, 156)
    spec = ConvSpec(1, 7, 9, 16, 37, (taps, taps), padding=(taps // 2,) * 4, data_max=127,
                    out_zero_point=99, function=f.function)  # fmt: skip
    data = rng.integers(0, 128, (1, 7, 9, 16)).astype(np.uint8)
    weight = rng.integers(-42, 43, spec.weight_shape).astype(np.int8)
    bias = rng.integers(-3000, 3000, 37).astype(np.int32)
    factors = np.stack([np.broadcast_to(f.multiplier, (37,)), f.other])
    out, _ = run(manifest.kernel(name), spec, data, weight, bias, factors)
    np.testing.assert_array_equal(out, expected(spec, data, weight, bias, factors, None))


@pytest.mark.parametrize("own_first", [True, False])
@pytest.mark.parametrize("name", ["leaky_relu", "hard_swish_affine", "silu", "gelu"])
@pytest.mark.parametrize("row", [
    pytest.param(row, id=row.name, marks=pytest.mark.isa(row.isa))
    for row in ROWS if row.name in ("direct_generic", "direct_avx2_d1")
])  # fmt: skip
def test_a_function_of_a_residual_sum_is_the_norms_for_every_pair_of_values(row, name, own_first):
    """Row i of the map holds i in every pixel, column j of the residual j; divided by the scale, never merged."""
    residual = Residual(0.021, 100, 0, 254, 0.017, 3, own_first, 0.0123)
    spec = ConvSpec(1, 256, 256, 8, 8, (1, 1), epilogue="add", residual=residual, out_zero_point=9, lo=2,
                    function=function.of_sum(FORMS[name]))  # fmt: skip
    data = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (1, 256, 256, 8)).copy()
    beside = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None], (1, 256, 256, 8)).copy()
    weight = np.eye(8, dtype=np.int8)[None, None]
    operands = (spec, data, weight, np.full(8, -100, np.int32), np.ones(8, np.float32), beside)
    np.testing.assert_array_equal(run(row, *operands)[0], expected(*operands))


@pytest.mark.skipif(isa.arch_of("") != "x86_64", reason="compiles for x86")
@pytest.mark.parametrize(
    "name",
    ["direct_avx2_d2", "depthwise_avx2", "direct_avx512vnni", "depthwise_avx512bw", "depthwise_avx512vnni"],
)
def test_a_function_is_a_handful_of_vector_instructions(name):
    """Compiled only: nothing scalar, nothing called, nothing contracted; one division for each vector."""
    row = manifest.kernel(name)
    counts = []
    for form in (None, "silu"):
        c = Case(row, "silu", channels=128)
        spec = c.spec if form else replace(c.spec, function=None)
        text = compiled(row, spec, c.arrays(row, c.data()), isa.ISAS[row.isa].mcpu)
        assert not re.search(r"\tvfn?m(add|sub)|\tv(mul|add|div|sub)ss", text)
        counts.append([len(re.findall(rf"\t{what}\b", text)) for what in ("vdivps", "vmulps", "callq?")])
    plain, fused = np.array(counts)
    assert plain[0] == 0 < fused[0] and fused[2] == plain[2]
    assert fused[1] - plain[1] == 13 * fused[0]


def test_a_leaky_relu_of_a_slope_up_to_one_is_a_maximum():
    def names(slope):
        return [name for name, *_ in function.steps(("leaky_relu", "x", slope))]

    assert names(0.1) == ["x", "number", "multiply", "maximum"] == names(1.0) == names(0.0)
    assert names(-0.5)[-1] == names(1.5)[-1] == names("other")[-1] == "where_negative"


def test_steps_are_each_made_once():
    """The exponential of a sigmoid reads its argument nine times."""
    steps = function.steps(function.canonical(FORMS["gelu_tanh"]))
    assert len(steps) == len(set(steps)) < 60
    assert all(place < i for i, (name, *places) in enumerate(steps) if name != "number" for place in places)
    x = np.linspace(-8, 8, 1001, dtype=np.float32)
    values: list = []
    for name, *operands in steps:
        read = {"x": lambda: x, "number": np.float32}.get(name)
        found = operands if read else [values[place] for place in operands]
        values.append((read or getattr(function.NUMPY, name))(*found))
    np.testing.assert_array_equal(values[-1], function.apply(function.canonical(FORMS["gelu_tanh"]), x))


def test_every_operation_of_the_arithmetic_has_its_lanes():
    operations = [name for name in vars(function.Arithmetic) if not name.startswith("_")]
    assert all(hasattr(epilogue.LANES, name) for name in operations) and len(operations) == 9


OUTPUTS = 10**7


@pytest.mark.slow
@pytest.mark.skipif(not RELAY, reason="built by TVM 0.19")
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("row", [
    pytest.param(row, id=row.name, marks=pytest.mark.isa(row.isa)) for row in ROWS if row.name in FAMILIES
])  # fmt: skip
def test_ten_million_outputs_of_a_function(row, name, compared):
    c, done, library = Case(row, name, seed=1, size=64), 0, None
    while done < OUTPUTS:
        data = c.data()
        arrays = c.arrays(row, data)
        if library is None:
            mcpu = isa.ISAS[row.isa].mcpu
            library = built(row, c.spec, arrays, f"llvm -mcpu={mcpu}" if mcpu else "llvm")
        found = tvm.nd.empty(c.spec.out_shape, "uint8")
        library(*map(tvm.nd.array, arrays), found)
        np.testing.assert_array_equal(found.numpy(), c.wanted(data))
        done += found.numpy().size
        c.again()
    compared(f"{row.name}, {name}", done)


def built(row, spec, arrays, target, name="kernel"):
    """The kernel alone, for TVM 0.19: a library of one function (*arrays, output)."""
    from tvm import te

    from topi_ext.emit import DefaultKnobs

    inputs = [te.placeholder(a.shape, str(a.dtype)) for a in arrays]
    out = row.compute(DefaultKnobs(), spec, *inputs)
    return tvm.build(te.create_schedule(out.op), [*inputs, out], target, name=name)


@pytest.mark.parametrize("name", function.REAL)
def test_functions_of_what_stays_float_are_the_norm_s(name):
    """Of every kind of float32; near the real function, and NaN where that is none."""
    corners = [
        np.nan,
        np.inf,
        -np.inf,
        0.0,
        -0.0,
        1e-38,
        -1e-38,
        0.25,
        -0.25,
        88.0,
        88.5,
        88.72,
        88.73,
        -87.0,
        -88.0,
    ]
    x = np.concatenate([corners, np.linspace(-90, 90, 2001), np.linspace(-0.3, 0.3, 301)]).astype(
        np.float32
    )
    with np.errstate(all="ignore"):
        want = function.real(name, x)
        exact = {"exp": np.exp, "tanh": np.tanh, "sigmoid": lambda v: 1 / (1 + np.exp(-v))}[name](
            x.astype(np.float64)
        )
        exact = exact.astype(np.float32)
    made = computed(lambda t: elementwise.real_function(t, name), [x])
    np.testing.assert_array_equal(made.view(np.uint32)[1:], want.view(np.uint32)[1:])
    assert np.isnan(made[0]) and np.isnan(want[0])
    np.testing.assert_allclose(made, exact, rtol=1e-6, atol=2e-38)
