"""Float operators between an accumulator and its quantize: `LowerInteger` computes them before the rounding.

Each form of a module, made by hand of the standard operators, equals the norm.
"""

from math import inf, sqrt

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
from test_function import FORMS
from tvm import autotvm, relay

from topi_ext import function, reference
from topi_ext.lower import LowerInteger
from tvm_easyquant.relay.build import Executor, host_target
from tvm_easyquant.relay.framework import no_tophub
from tvm_easyquant.relay.tune import tasks

RNG = np.random.default_rng(0)
SHAPE, ZERO, SCALE = (1, 7, 9, 12), 7, np.float32(0.0123)
DATA = RNG.integers(0, 128, SHAPE).astype(np.uint8)
BESIDE = RNG.integers(0, 256, SHAPE).astype(np.uint8)
WEIGHT = RNG.integers(-63, 64, (3, 3, 12, 12)).astype(np.int8)
BIAS = RNG.integers(-9000, 9000, 12).astype(np.int32)
UNIT = RNG.uniform(1e-4, 3e-4, 12).astype(np.float32)
VECTOR = (0.25, -0.5, 1.5, 0.0, 1.0, -2.0, 1e-3, 0.1, 0.5, 3.0, 0.75, 0.2)


def number(value):
    return relay.const(np.float32(value))


def written(x, e, rank=1):
    """An expression by Relay's operators; a vector of ``rank`` dimensions."""
    if not isinstance(e, tuple):
        return x if e == "x" else number(e)
    if function.is_vector(e):
        return number(np.reshape(np.float32(e), (1,) * (rank - 1) + (-1,)))
    name, *arguments = e
    if name == "clip" and arguments[1:] == [0.0, inf]:
        return relay.nn.relu(written(x, arguments[0], rank))
    if name == "clip":
        return relay.clip(written(x, arguments[0], rank), *arguments[1:])
    if name == "leaky_relu" and function.is_vector(arguments[1]):
        return relay.nn.prelu(written(x, arguments[0], rank), number(arguments[1]), axis=3)
    if name == "leaky_relu":
        return relay.nn.leaky_relu(written(x, arguments[0], rank), arguments[1])
    return getattr(relay, name)(*(written(x, argument, rank) for argument in arguments))


def accumulator(x):
    conv = relay.qnn.conv2d(
        x, relay.const(WEIGHT), relay.const(3), relay.const(0), relay.const(0.1), relay.const(UNIT),
        kernel_size=(3, 3), channels=12, padding=(1,) * 4, data_layout="NHWC", kernel_layout="HWIO",
    )  # fmt: skip
    return relay.nn.bias_add(conv, relay.const(BIAS), axis=3)


def dequantize(x, scale, zero=0):
    return relay.qnn.dequantize(x, relay.const(np.float32(scale)), relay.const(zero), axis=3)


def quantize(x, lo=0, hi=255):
    y = relay.qnn.quantize(x, number(SCALE), relay.const(ZERO), out_dtype="uint8")
    return y if (lo, hi) == (0, 255) else relay.clip(y, lo, hi)


def variable(name):
    return relay.var(name, shape=SHAPE, dtype="uint8")


def lowered(y):
    """(the layers lowered, the names of the operators left, a function that runs them)"""
    lower = LowerInteger(host_target())
    module = lower(tvm.IRModule.from_expr(relay.Function(relay.analysis.free_vars(y), y)))
    names: list = []
    relay.analysis.post_order_visit(
        module["main"], lambda e: names.append(e.op.name) if isinstance(e, relay.Call) else None
    )
    with no_tophub(), tvm.transform.PassContext(opt_level=3):
        return lower.layers, names, Executor(relay.build(module, lower.target))


def run(executor, **feed):
    return executor(feed)[0]


ACC = reference.conv2d(DATA, WEIGHT, zero_point=3, padding=(1,) * 4) + BIAS
FUSED = {
    **{name: form for name, form in FORMS.items() if name != "slopes"},
    "slopes": ("leaky_relu", "x", VECTOR),
    "relu6 times a vector": ("multiply", ("clip", "x", 0.0, 6.0), VECTOR),
    "relu6 plus a vector": ("add", VECTOR, ("clip", "x", 0.0, 6.0)),
    "a product of its parts": ("multiply", ("negative", ("minimum", "x", 1 / sqrt(3))), ("abs", "x")),
}


def requantized(acc, unit, expression, lo=0, hi=255):
    f = function.fuse(expression, unit, float(SCALE), lo - ZERO, hi - ZERO)
    return reference.requantize(acc, f.multiplier, ZERO, f.lo + ZERO, f.hi + ZERO, f.function, f.other)


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("limits", [(0, 255), (2, 100)])
def test_a_function_behind_a_layer_is_part_of_it(name, limits):
    rank = 4 if limits == (0, 255) else 1
    y = quantize(written(dequantize(accumulator(variable("x")), UNIT), FUSED[name], rank), *limits)
    layers, names, executor = lowered(y)
    assert len(layers) == 1 and names == [f"easyquant.conv2d.{layers[0].choice.kernel.isa}"]
    wanted = requantized(ACC, UNIT, FUSED[name], *limits)
    np.testing.assert_array_equal(run(executor, x=DATA), wanted)
    assert len(np.unique(wanted)) > 20


def test_a_layer_whose_function_reads_a_vector_is_tuned_at_the_shapes_that_it_runs_at():
    """It was measured with one vector where the kernel reads two: no record of it was ever applied."""
    y = quantize(written(dequantize(accumulator(variable("x")), UNIT), FUSED["slopes"], 4))
    lower = LowerInteger(host_target())
    module = lower(tvm.IRModule.from_expr(relay.Function(relay.analysis.free_vars(y), y)))
    with no_tophub():
        found = autotvm.task.extract_from_program(module["main"], {}, lower.target)
    mine = tasks(lower.layers, lower.target, alternatives=0)
    assert [t.workload for t in mine] == [t.workload for t in found] and len(mine) == 1


@pytest.mark.parametrize("name", ["slopes", "hard_swish", "gelu", "relu6 plus a vector"])
def test_a_function_of_another_int32_tensor_is_part_of_its_requantize(name):
    """A product of two maps; the same of a sum of pixels."""
    x, z = variable("x"), variable("z")
    a, b = (relay.cast(v, "int32") - relay.const(np.int32(zero)) for v, zero in ((x, 3), (z, 128)))
    unit = np.float32(7e-4)
    layers, names, executor = lowered(quantize(written(dequantize(a * b, unit), FUSED[name])))
    assert not layers and names.count("easyquant.requantize") == 1 and "easyquant.quantize" not in names
    acc = (DATA.astype(np.int32) - 3) * (BESIDE.astype(np.int32) - 128)
    np.testing.assert_array_equal(run(executor, x=DATA, z=BESIDE), requantized(acc, unit, FUSED[name]))
    total = relay.sum(a, axis=(1, 2), keepdims=True)
    _, names, executor = lowered(quantize(written(dequantize(total, unit), FUSED[name])))
    assert names.count("easyquant.requantize") == 1
    acc = (DATA.astype(np.int32) - 3).sum(axis=(1, 2), keepdims=True)
    np.testing.assert_array_equal(run(executor, x=DATA), requantized(acc, unit, FUSED[name]))


A, B = (0.021, 9), (0.017, 128)
OWN = np.float32(0.021)


@pytest.mark.parametrize("own", [None, 0, 1])
@pytest.mark.parametrize("name", ["leaky_relu", "hard_swish_affine", "silu", "gelu"])
def test_a_function_of_a_sum_is_part_of_the_add(name, own):
    """Of two stored maps; or of a layer, on either side, and one."""
    x, z = variable("x"), variable("z")
    mine = x
    if own is not None:
        mine = relay.qnn.requantize(
            accumulator(x), relay.const(UNIT), relay.const(0), number(OWN), relay.const(9), axis=3,
            out_dtype="uint8",
        )  # fmt: skip
        mine = relay.clip(mine, 1, 254)
    sides = [dequantize(mine, *A), dequantize(z, *B)]
    y = quantize(written(relay.add(*(sides[::-1] if own == 1 else sides)), FORMS[name]), 0, 200)
    layers, names, executor = lowered(y)
    stored = DATA
    if own is not None:
        stored = reference.requantize(ACC, reference.multiplier(1, UNIT, OWN), 9, 1, 254)
    row = "" if own is None else layers[0].choice.kernel.isa
    assert names == ["easyquant.add" if own is None else f"easyquant.conv2d_add.{row}"]
    assert [layer.spec.residual.own_first for layer in layers] == ([] if own is None else [own == 0])
    form = function.of_sum(FORMS[name])
    wanted = reference.add(stored, BESIDE, *A, *B, SCALE, ZERO, 0, 200, form)
    np.testing.assert_array_equal(run(executor, x=DATA, z=BESIDE), wanted)
    assert len(np.unique(wanted)) > 20


def stopped(x):
    return relay.annotation.stop_fusion(dequantize(accumulator(x), UNIT))


LEFT = {
    "a value behind stop_fusion": lambda x: relay.sigmoid(stopped(x)),
    "a stored map": lambda x: relay.sigmoid(dequantize(x, 0.1, 3)),
    "a function that is none": lambda x: relay.log(dequantize(accumulator(x), UNIT)),
    "a divisor that may be zero": lambda x: number(1) / dequantize(accumulator(x), UNIT),
    "two tensors": lambda x: dequantize(accumulator(x), UNIT) * dequantize(x, 0.1, 3),
    "a sum and a tensor": lambda x: (dequantize(x, 0.1) + dequantize(x, 0.2)) * dequantize(x, 0.1, 3),
    "a sum times a vector": lambda x: (dequantize(x, 0.1) + dequantize(x, 0.2)) * number(VECTOR),
    "a sum": lambda x: dequantize(x, 0.1) + dequantize(x, 0.2),
    "a map of numbers": lambda x: dequantize(accumulator(x), UNIT) * number(RNG.random((7, 1, 1))),
    "slopes of columns": lambda x: relay.nn.prelu(
        dequantize(accumulator(x), UNIT), number(np.ones(9)), axis=2
    ),
    "two vectors": lambda x: dequantize(accumulator(x), UNIT) * number(VECTOR) + number(VECTOR[::-1]),
    "a repeat": lambda x: dequantize(relay.sum(relay.cast(x, "int32"), 3, True), 1e-3) * number(VECTOR),
    "more numbers than a function has": lambda x: doubled(dequantize(accumulator(x), UNIT)),
}


def doubled(x):
    for _ in range(40):
        x = x + x
    return x


@pytest.mark.parametrize("name", LEFT)
def test_what_a_requantize_cannot_compute_stays_float(name):
    lower = LowerInteger("llvm")
    module = lower(tvm.IRModule.from_expr(relay.Function([x := variable("x")], quantize(LEFT[name](x)))))
    text = module.astext(show_meta_data=False)
    assert "easyquant.quantize" in text and ("easyquant.dequantize" in text or lower.layers)
    assert all(layer.spec.function is None for layer in lower.layers)
    assert '\\"function' not in text and "easyquant.add" not in text


def test_a_float_value_that_is_read_elsewhere_is_not_absorbed():
    """Its other reader would have nothing to read."""
    x = variable("x")
    real = dequantize(accumulator(x), UNIT)
    half = real * number(0.5)
    for other in (real, half):
        y = relay.Tuple([quantize(relay.sigmoid(half)), relay.exp(other)])
        lower = LowerInteger("llvm")
        text = lower(tvm.IRModule.from_expr(relay.Function([x], y))).astext(show_meta_data=False)
        assert "easyquant.quantize" in text and [layer.spec.epilogue for layer in lower.layers] == [
            "dequantize"
        ]
