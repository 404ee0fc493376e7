"""The float kernels against numpy in float64: extremes, then tails, then random; on whichever TVM there is.

No norm says the last bit of a float sum. Asked is the bound of an honest one, that the same output is the
same number wherever a tile begins and whoever computes it, and that no row needs more than its CPU has.
"""

import re
from itertools import pairwise

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_host import RELAY, computed

from topi_ext import isa, reference
from topi_ext.conv2d import ConvSpec
from topi_ext.kernels.float_conv import FloatConv, choose, pieces, row_of
from topi_ext.kernels.group_norm import group_norm
from topi_ext.kernels.layer_norm import layer_norm
from topi_ext.kernels.softmax import softmax

EPS = float(np.finfo(np.float32).eps)
HERE = [row for row in isa.ISAS.values() if row.arch in ("", isa.arch_of("")) and "float" in row.tiles]
ROWS = [pytest.param(row, id=row.name, marks=pytest.mark.isa(row.name)) for row in HERE]
PAD = (1, 1, 1, 1)

CASES = {
    "plain": FloatConv(ConvSpec(1, 9, 14, 16, 16, (3, 3), padding=PAD)),
    "first layer, stride, odd sizes": FloatConv(ConvSpec(2, 17, 13, 3, 20, (3, 3), (2, 2), (0, 1, 1, 0)), 0.0),
    "1x1 as a row, batch, ragged": FloatConv(ConvSpec(2, 7, 7, 20, 9, (1, 1)), 0.0, 6.0),
    "1x1 strided": FloatConv(ConvSpec(1, 8, 9, 8, 8, (1, 1), (2, 2))),
    "one channel": FloatConv(ConvSpec(1, 6, 6, 1, 1, (3, 3))),
    "dense": FloatConv(ConvSpec(1, 1, 1, 100, 10, (1, 1))),
    "dense, wide": FloatConv(ConvSpec(1, 1, 1, 64, 1000, (1, 1))),
    "dense, many": FloatConv(ConvSpec(3, 1, 1, 7, 33, (1, 1)), -1.0),
    "a matrix": FloatConv(ConvSpec(1, 1, 41, 30, 663, (1, 1))),
    "added": FloatConv(ConvSpec(1, 5, 10, 32, 24, (1, 1)), 0.0, residual=True),
    "added, ragged": FloatConv(ConvSpec(1, 5, 5, 4, 15, (3, 3), padding=PAD), residual=True),
    "dilated": FloatConv(ConvSpec(1, 12, 11, 8, 16, (3, 3), dilation=(2, 2), padding=(2, 2, 2, 2)), -0.5, 0.5),
    "5x1 kernel": FloatConv(ConvSpec(1, 9, 6, 5, 8, (5, 1), padding=(2, 0, 2, 0))),
    "large enough for threads": FloatConv(ConvSpec(1, 28, 30, 32, 33, (3, 3), padding=PAD)),
    "large, by blocks": FloatConv(ConvSpec(1, 7, 7, 300, 260, (1, 1))),
    "depthwise": FloatConv(ConvSpec(1, 11, 12, 32, 32, (3, 3), groups=32, padding=PAD), 0.0, 6.0),
    "depthwise, stride, ragged": FloatConv(ConvSpec(2, 11, 9, 23, 23, (3, 3), (2, 2), (0, 0, 1, 1), groups=23)),
    "depthwise, 5x5, added": FloatConv(ConvSpec(1, 9, 9, 20, 20, (5, 5), padding=(2,) * 4, groups=20), residual=True),
    "depthwise, dilated": FloatConv(ConvSpec(1, 9, 9, 16, 16, (3, 3), dilation=(2, 2), padding=(2,) * 4, groups=16)),
    "depthwise, more edge than map": FloatConv(ConvSpec(1, 2, 3, 8, 8, (5, 5), padding=(3,) * 4, groups=8)),
    "depthwise, no padding": FloatConv(ConvSpec(1, 8, 9, 8, 8, (3, 2), groups=8), 0.0),
    "depthwise, large enough for threads": FloatConv(ConvSpec(1, 40, 40, 200, 200, (3, 3), groups=200, padding=PAD)),
}  # fmt: skip


def operands(conv, seed=0):
    """(data, weight, bias, residual or nothing)."""
    rng, shape = np.random.default_rng(seed), conv.shape
    data = (shape.batch, shape.height, shape.width, shape.in_channels)
    kinds = [data, shape.weight_shape, (shape.out_channels,)] + [shape.out_shape] * conv.residual
    return [rng.standard_normal(kind).astype(np.float32) for kind in kinds]


def in_float64(conv, data, weight, bias, residual=0.0):
    """(the sum, the sum of the magnitudes)."""
    shape, sums = conv.shape, []
    for size in (lambda x: x, np.abs):
        x, w, b, r = (size(np.asarray(each, np.float64)) for each in (data, weight, bias, residual))
        top, left, bottom, right = shape.padding
        x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
        window = np.lib.stride_tricks.sliding_window_view(
            x, [(k - 1) * d + 1 for k, d in zip(shape.kernel, shape.dilation, strict=True)], (1, 2)
        )[:, :: shape.strides[0], :: shape.strides[1], :, :: shape.dilation[0], :: shape.dilation[1]]
        if shape.depthwise and shape.groups > 1:
            total = np.einsum("nyxcij,ijc->nyxc", window, w[:, :, 0])
        else:
            total = np.einsum("nyxcij,ijck->nyxk", window, w)
        sums.append(total + b + r)
    return sums


def compiled(conv, row, arrays, mcpu):
    """The kernel, compiled, and its assembly."""
    from tvm import te

    kernel = choose(conv, row.name)
    ins = [te.placeholder(a.shape, str(a.dtype), name=f"in{i}") for i, a in enumerate(arrays)]
    out = kernel.compute(*ins)
    if RELAY:
        target = f"llvm -mcpu={mcpu}" if mcpu else "llvm"
        made = tvm.build(te.create_schedule(out.op), [*ins, out], target, name="main")
        return made, made.get_source("asm")
    target = tvm.target.Target({"kind": "llvm"} | ({"mcpu": mcpu} if mcpu else {}))
    made = tvm.compile(tvm.IRModule({"main": te.create_prim_func([*ins, out])}), target)
    return made, made.mod.inspect_source("asm")


def run(conv, row, data, weight, bias, *residual):
    kernel = choose(conv, row.name)
    arrays = [data, *kernel.pack(weight, bias), *residual]
    made, _ = compiled(conv, row, arrays, row.mcpu)
    make = tvm.nd.array if RELAY else tvm.runtime.tensor
    out = make(np.full(conv.shape.out_shape, np.nan, np.float32))
    made["main"](*map(make, arrays), out)
    return out.numpy()


def check(conv, row, *arrays):
    exact, size = in_float64(conv, *arrays)
    products = int(np.prod(conv.shape.weight_shape[:3])) + 2
    mine = run(conv, row, *arrays).astype(np.float64)
    error = np.abs(mine - np.clip(exact, conv.lo, conv.hi))
    assert (
        error <= products * EPS / 2 * 1.01 * size + np.finfo(np.float32).smallest_subnormal * products
    ).all()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("row", ROWS)
def test_a_layer_is_no_further_from_the_exact_sum_than_its_rounding(row, name):
    conv = CASES[name]
    check(conv, row, *operands(conv))


@pytest.mark.parametrize("row", ROWS)
def test_extremes(row):
    """The largest and the smallest numbers, and sums that cancel; zeros stay zeros, what overflows is inf."""
    conv = FloatConv(ConvSpec(1, 4, 5, 8, 12, (3, 3), padding=PAD))
    for scale in (1e-30, 1e-22, 1e18, 1e19):
        data, weight, bias = (np.float32(scale) * x for x in operands(conv))
        check(conv, row, data, weight / np.float32(scale), bias)
    data, weight, bias = operands(conv)
    data[..., 4:], weight[:, :, 4:] = data[..., :4], -weight[:, :, :4]
    check(conv, row, data, weight, 0 * bias)
    assert not run(conv, row, data, 0 * weight, 0 * bias).any()
    huge = run(conv, row, np.full_like(data, 1e38), np.full_like(weight, 10), bias)
    assert np.isposinf(huge).all()
    assert (
        run(conv._replace(hi=6.0), row, np.full_like(data, 1e38), np.full_like(weight, 10), bias) == 6
    ).all()


@pytest.mark.parametrize(
    "name", ["depthwise", "1x1 as a row, batch, ragged", "plain", "large enough for threads"]
)
@pytest.mark.parametrize("row", ROWS)
def test_a_number_does_not_depend_on_where_its_tile_begins(row, name):
    """Every pixel and channel of data and weights that are the same everywhere is the same number, though
    tiles, tails and vectors of all widths made it; every picture of a batch as well."""
    conv = CASES[name]
    shape = conv.shape
    data, weight, bias = operands(conv)
    data[:], weight[:], bias[:] = data[:1, :1, :1, :], weight[..., :1], 0.1
    if shape.groups > 1:
        data[:] = 0.7
    top, left, bottom, right = shape.padding
    out = run(conv, row, data, weight, bias)
    inner = out[:, top : out.shape[1] - bottom, left : out.shape[2] - right]
    assert (inner == inner[0, 0, 0, 0]).all() and inner.size


@pytest.mark.parametrize("row", [pytest.param(HERE[0], id=HERE[0].name, marks=pytest.mark.ci), *ROWS[1:2]])
@settings(deadline=None, max_examples=12, derandomize=True, database=None)
@given(data=st.data())
def test_random_layers(row, data):
    def some(low, high):
        return data.draw(st.integers(low, high))

    kernel, strides, dilation = (
        (some(1, 4), some(1, 4)),
        (some(1, 3), some(1, 3)),
        (some(1, 2), some(1, 2)),
    )
    padding = tuple(some(0, 3) for _ in range(4))
    height, width = ((k - 1) * d + some(1, 12) for k, d in zip(kernel, dilation, strict=True))
    channels = some(1, 20)
    groups, out = (channels, channels) if some(0, 1) else (1, some(1, 40))
    shape = ConvSpec(some(1, 2), height, width, channels, out, kernel, strides, padding, dilation, groups)
    lo, hi = data.draw(st.sampled_from([(-np.inf, np.inf), (0.0, np.inf), (0.0, 6.0), (-1.0, 1.0)]))
    conv = FloatConv(shape, lo, hi, residual=bool(some(0, 1)))
    check(conv, row, *operands(conv, some(0, 99)))


def loops(code):
    """The innermost loops of assembly: the lines from a label to the jump back to it, none else between."""
    lines, labels = code.splitlines(), {}
    for i, line in enumerate(lines):
        if found := re.match(r"(\.LBB\w+):", line):
            labels[found.group(1)] = i
        elif (found := re.match(r"\tj\w+\t(\.LBB\w+)", line)) and found.group(1) in labels:
            body = lines[labels[found.group(1)] : i]
            if not any(re.match(r"\tj", other) for other in body):
                yield body


@pytest.mark.parametrize("name", ["avx2", "avx512bw"])
def test_sums_stay_in_registers(name):
    """Code for an x86 CPU that need not be this one."""
    if isa.arch_of("") != isa.X86:
        pytest.skip("the code of x86")
    row = isa.ISAS[name]
    for shape in (ConvSpec(1, 56, 56, 64, 64, (3, 3), padding=PAD), ConvSpec(1, 7, 7, 512, 2048, (1, 1)),
                  ConvSpec(1, 1, 1, 2048, 1000, (1, 1))):  # fmt: skip
        conv = FloatConv(shape, 0.0)
        data, weight, bias = operands(conv)
        _, code = compiled(conv, row, [data, *choose(conv, name).pack(weight, bias)], row.mcpu)
        inner = [body for body in loops(code) if any("vfmadd" in line for line in body)]
        assert inner and not [line for body in inner for line in body if "(%rsp)" in line]


def test_weights_are_packed_without_a_number_more():
    for name, conv in CASES.items():
        for row in HERE:
            _, weight, bias, *_ = operands(conv)
            packed, vector = choose(conv, row.name).pack(weight, bias)
            assert packed.size == weight.size and vector.size == bias.size, name
            assert sorted(packed.ravel()) == sorted(weight.ravel())


def test_vectors_of_a_remainder():
    assert pieces(27, 8) == [8, 8, 8, 2, 1] and pieces(8, 8) == [8] and pieces(0, 8) == []
    assert all(
        sum(pieces(n, 16)) == n and all(a >= b for a, b in pairwise(pieces(n, 16))) for n in range(100)
    )


def test_grouped_convolutions_have_no_float_kernel():
    assert choose(FloatConv(ConvSpec(1, 8, 8, 16, 24, (3, 3), groups=4)), "avx2") is None


@pytest.mark.parametrize("name", isa.ISAS)
def test_every_row_has_lanes_and_registers_for_floats(name):
    row = row_of(name)
    assert row.name in isa.usable(name) and row.tiles["float"] >= 8
    assert row.registers == 0 or row.tiles["float"] + 3 < row.registers + 1
    if name.startswith("avx512"):
        assert row.lanes == 16


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize(
    "shape, groups", [((2, 6, 7, 5), 3), ((1, 70, 3), 10), ((1, 40, 90, 60), 40), ((1, 2, 1, 1), 1)]
)
def test_a_normalization_is_what_it_is_in_float64(shape, groups, last):
    """Story: InstanceNormalization took five times ONNX Runtime's time: sums of one number after the other, and
    four passes. The same numbers channels first and last; maps far from zero keep their spread."""
    rng = np.random.default_rng(0)
    for far in (0, 1000):
        x, scale, bias = (
            rng.standard_normal(size).astype(np.float32) for size in (shape, shape[1], shape[1])
        )
        x += np.float32(far)
        grouped = x.astype(np.float64).reshape(shape[0], groups, -1)
        spread = np.sqrt(grouped.var(2, keepdims=True) + 1e-5)
        vectors = [v.reshape(-1, *[1] * (len(shape) - 2)) for v in (scale, bias)]
        want = ((grouped - grouped.mean(2, keepdims=True)) / spread).reshape(shape) * vectors[0] + vectors[
            1
        ]
        given = np.moveaxis(x, 1, -1) if last else x
        made = computed(
            lambda *t: group_norm(*t, groups, 1e-5, last), [np.ascontiguousarray(given), scale, bias]
        )
        made = np.moveaxis(made, -1, 1) if last else made
        np.testing.assert_allclose(made, want, rtol=1e-5, atol=2e-5 + far * 3e-7)


@pytest.mark.parametrize("shape", [(5, 40), (1, 7, 3, 67), (2, 1), (1, 3, 1, 320), (1, 2, 2, 1500)])
def test_a_layer_norm_of_bytes_is_the_norms(shape):
    """Bit for bit: all that is one number, the two extremes, and anything; whatever the vectors' rest."""
    rng = np.random.default_rng(shape[-1])
    x = rng.integers(0, 256, shape).astype(np.uint8)
    rows = x.reshape(-1, shape[-1])
    rows[0], rows[1] = 255, np.where(np.arange(shape[-1]) % 2, 255, 0)
    gain, shift = (rng.standard_normal(shape[-1]).astype(np.float32) for _ in range(2))
    for epsilon, stored in (
        (1e-5, (0.0173, 64, 0, 127)),
        (1e4, (0.5, 3, 1, 250)),
        (1e-38, (1e-3, 0, 0, 255)),
    ):
        epsilon = float(np.float32(epsilon))
        made = computed(lambda *t, e=epsilon, s=stored: layer_norm(*t, e, *s), [x, gain, shift])
        want = reference.quantize(reference.layer_norm(x, gain, shift, epsilon), *stored)
        np.testing.assert_array_equal(made, want)


@pytest.mark.parametrize(
    "shape, axis", [((3, 67), 1), ((2, 40, 40), 2), ((2, 5, 3, 7), 1), ((1, 9, 33), 0), ((1, 1), 1)]
)
def test_a_softmax_is_what_it_is_in_float64(shape, axis):
    """Story: that of 40 rows of 6,625 classes took a fifth of an OCR network's time: sums of one number after
    the other, exponentials in half vectors, a quotient for each number. The largest and infinite numbers stay
    what they are."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) * 20).astype(np.float32)
    for number in (3e38, -np.inf):
        x.ravel()[0] = number
        with np.errstate(invalid="ignore", over="ignore"):
            e = np.exp((x - x.max(axis, keepdims=True)).astype(np.float64))
        made = computed(lambda t: softmax(t, axis), [x])
        np.testing.assert_allclose(made, e / e.sum(axis, keepdims=True), rtol=2e-6, atol=1e-30)
