"""Functions between a layer and its rounding: every kernel computes the norm's float32, bit for bit."""

import re
from dataclasses import replace

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
from kernel_host import RELAY, compiled, computed, run
from test_function import FORMS, HARD_SWISH
from test_kernels import ROWS, expected, weight_limit

from topi_ext import curves, epilogue, function, isa, manifest, reference
from topi_ext.conv2d import ConvSpec, Residual, fold_zero_point
from topi_ext.emit import Builder, const, extern, with_lanes
from topi_ext.kernels import elementwise
from topi_ext.targets import x86

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


def curved(row, spec):
    """Whether a row approximates the function of a layer: `curves`."""
    vectors = isa.ISAS[row.isa].vectors
    return any(epilogue.curve_of(spec, x86.pieces(isa.ISAS[row.isa]), v.bits // 32) for v in vectors)


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
    assert curved(row, c.spec) or not re.search(r"\tvfn?m(add|sub)", assembly)  # no product met its add


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


@pytest.mark.ci
@pytest.mark.parametrize("row", [
    pytest.param(row, id=row.name, marks=pytest.mark.isa(row.isa)) for row in ROWS
    if row.name in ("winograd_f43_avx2", "winograd_f43_avx512vnni")
])  # fmt: skip
def test_tiles_beyond_the_map_are_not_stored(row):
    c = Case(row, "silu", size=18)
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
    """Compiled only: nothing scalar, nothing called; of the norm's own operations, which are computed where a
    curve is not sure, one division for each vector, and their products; the curve's, fused, are its degree and
    three more."""
    row = manifest.kernel(name)
    counts = []
    for form in (None, "silu"):
        c = Case(row, "silu", channels=128)
        spec = c.spec if form else replace(c.spec, function=None)
        text = compiled(row, spec, c.arrays(row, c.data()), isa.ISAS[row.isa].mcpu)
        assert not re.search(r"\tv(mul|add|div|sub|fmadd\d+)ss", text)
        found = [rf"\tv{what}ps\b" for what in ("div", "mul", r"fmadd\w*", "perm([it]2)?")]
        counts.append(
            [len(re.findall(what, text)) for what in (*found, r"\tcallq?\b", r"\tvfn?m(add|sub)")]
        )
    plain, fused = np.array(counts)
    assert plain[0] == plain[2] == plain[5] == 0 < fused[0] and fused[4] == plain[4]
    assert fused[2] == fused[5]
    assert fused[1] - plain[1] == 13 * fused[0]
    lanes = isa.ISAS[row.isa].lanes
    curve = epilogue.curve_of(c.spec, x86.pieces(isa.ISAS[row.isa]), lanes)
    degree = len(curve.table) - 1
    vectors = fused[3] // (degree + 1)
    assert fused[3] == vectors * (degree + 1) and fused[2] == vectors * (degree + 3) and vectors == fused[0]


CURVED = ("silu", "gelu", "gelu_tanh", "sigmoid", "tanh")
VECTORS = (("avx2", 8), ("avx512bw", 16), ("avx512bw", 8))


def by_curve(name, spec, x, lanes, instruction_set):
    """(bytes, bits) that the instructions make of float32, by the curve and where it is not sure by the norm; and
    by the curve alone."""
    row = isa.ISAS[instruction_set]
    pieces = x86.pieces(row)
    curve = epilogue.curve_of(spec, pieces, lanes)

    def body(ins, out):
        ib = Builder()
        with ib.for_range(0, len(x) // lanes, "i") as i:
            value = ins[0].vload([i * lanes], with_lanes("float32", lanes))
            rows = epilogue.tables(ib, curve, lanes)
            done = epilogue.finished(ib, curve, pieces, spec, [value], rows)[0]
            ib.emit(out.vstore([0, i * lanes], done & const(255, with_lanes("int32", lanes))))
            ib.emit(
                out.vstore([1, i * lanes], epilogue.evaluated(ib, curve, pieces, spec, [value], rows)[0])
            )
        return ib.get()

    made = computed(lambda t: extern((2, len(x)), [t], body, "int32", "out", "curve"), [x], row.mcpu)
    return curve, *made


def spec_of(name, scale, zero, residual=None):
    if residual is not None:
        return ConvSpec(1, 1, 1, 1, 1, (1, 1), epilogue="add", residual=residual, out_zero_point=zero,
                        function=function.of_sum(FORMS[name]))  # fmt: skip
    fused = function.fuse(FORMS[name], 1.0, scale, -zero, 255 - zero)
    return ConvSpec(1, 1, 1, 1, 1, (1, 1), out_zero_point=zero, lo=fused.lo + zero, hi=fused.hi + zero,
                    function=fused.function)  # fmt: skip


def steps_of(spec, x):
    """The norm's unrounded steps."""
    made = function.apply(spec.function, x)
    return made if spec.residual is None else made / np.float32(spec.residual.out_scale)


def around_ties(spec, lanes):
    """float32 on both sides of every middle between two steps: neighbours, of which the norm rounds one up and one
    down. Found by bisection between the sides that values on a grid have."""
    grid = np.concatenate([np.linspace(-20, 20, 4001), [-1e6, 1e6]]).astype(np.float32)
    grid.sort()
    value = np.rint(steps_of(spec, grid))
    at = np.flatnonzero(np.diff(value))
    low, high = grid[at], grid[at + 1]
    first = np.rint(steps_of(spec, low))
    for _ in range(60):
        middle = ((low.astype(np.float64) + high) / 2).astype(np.float32)
        same = np.rint(steps_of(spec, middle)) == first
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    found = np.concatenate([low, high])
    byte = np.abs(steps_of(spec, found) + 0.25) < min(spec.out_zero_point, 255 - spec.out_zero_point) - 1
    found = found[byte]
    return found[: len(found) // lanes * lanes]


@pytest.mark.parametrize("name", CURVED)
@pytest.mark.parametrize("instruction_set, lanes", [
    pytest.param(*both, id=f"{both[0]}-{both[1]}", marks=pytest.mark.isa(both[0])) for both in VECTORS
])  # fmt: skip
@pytest.mark.parametrize("sum_of_two", [False, True])
def test_the_norm_decides_next_to_the_middle_between_two_steps(name, instruction_set, lanes, sum_of_two):
    residual = Residual(0.02, 9, 0, 255, 0.03, 5, True, 0.04) if sum_of_two else None
    spec = spec_of(name, 0.04 if "lu" in name else 1 / 100, 117, residual)
    if epilogue.curve_of(spec, x86.pieces(isa.ISAS[instruction_set]), lanes) is None:
        pytest.skip("no curve of so few pieces")
    x = around_ties(spec, lanes)
    assert len(x) >= (40 if sum_of_two and "lu" not in name else 128)
    value = steps_of(spec, x).astype(np.float64)
    assert np.median(np.abs(np.abs(value - np.floor(value)) - 0.5)) < 2e-5
    curve, stored, bits = by_curve(name, spec, x, lanes, instruction_set)
    undecided = (bits & 0x7FFF) < curve.window
    assert undecided.all()  # each was computed by the norm
    wanted = np.clip(np.rint(value) + spec.out_zero_point, spec.lo, spec.hi)
    np.testing.assert_array_equal(stored, wanted)
    assert ((bits >> 15 & 255) != wanted).any()  # the curve alone would have been wrong


@pytest.mark.parametrize("name", CURVED)
@pytest.mark.parametrize("instruction_set, lanes", [
    pytest.param(*both, id=f"{both[0]}-{both[1]}", marks=pytest.mark.isa(both[0])) for both in VECTORS
])  # fmt: skip
def test_a_curve_stores_the_norms_bytes_of_float32_of_every_size(name, instruction_set, lanes):
    rng = np.random.default_rng(0)
    ends = (0.0, -0.0, 1e-45, 2.0**30, -(2.0**30), 88.0, -88.0, 5.25, 15.25)
    x = np.concatenate([rng.uniform(-16, 16, 2**15), rng.choice([-1, 1], 2**15) * 2.0 ** rng.uniform(-149, 30, 2**15),
                        np.resize(ends, 16)]).astype(np.float32)  # fmt: skip
    for scale, zero, lo, hi in ((0.04, 10, 0, 255), (0.03, 128, 1, 255), (1 / 128, 0, 0, 127)):
        spec = replace(spec_of(name, scale, zero), lo=lo, hi=hi)
        if epilogue.curve_of(spec, x86.pieces(isa.ISAS[instruction_set]), lanes) is None:
            continue
        curve, stored, bits = by_curve(name, spec, x, lanes, instruction_set)
        wanted = np.clip(np.rint(steps_of(spec, x)) + zero, lo, hi)
        np.testing.assert_array_equal(stored, wanted)
        assert ((bits & 0x7FFF) < curve.window)[: 2**15].mean() < 0.004  # and seldom by the norm


@pytest.mark.slow
@pytest.mark.parametrize("name", CURVED)
@pytest.mark.parametrize("instruction_set, lanes", [
    pytest.param(*both, id=f"{both[0]}-{both[1]}", marks=pytest.mark.isa(both[0])) for both in VECTORS[:2]
])  # fmt: skip
def test_every_float32_that_a_layer_reaches(name, instruction_set, lanes, compared):
    """Two thousand six hundred million: the curve is within half its window of the norm, or both are beyond a
    byte's values."""
    spec, done = spec_of(name, 0.03 if "lu" in name else 1 / 127, 90), 0
    if epilogue.curve_of(spec, x86.pieces(isa.ISAS[instruction_set]), lanes) is None:
        pytest.skip("no curve of so few pieces")
    for first in range(0, int(np.float32(function.REACH).view(np.int32)), 2**24):
        for sign in (0, -(2**31)):
            x = (np.arange(first, first + 2**24, dtype=np.int64) + sign).astype(np.int32).view(np.float32)
            curve, stored, bits = by_curve(name, spec, x, lanes, instruction_set)
            value = steps_of(spec, x).astype(np.float64) + spec.out_zero_point
            np.testing.assert_array_equal(stored, np.clip(np.rint(value), spec.lo, spec.hi))
            found = (bits - 0x43800000) * curves.GRAIN - 0.5
            apart = np.abs(found - curve.window // 2 * curves.GRAIN - np.clip(value, spec.lo, spec.hi))
            assert apart.max() < curve.window // 2 * curves.GRAIN
            done += len(x)
    compared(f"{instruction_set}, {name}", done)


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
