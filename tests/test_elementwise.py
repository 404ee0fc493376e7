"""Our elementwise Relay operators against the norm, over every pair of bytes; two stories of rounding."""

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
from tvm import relay

from topi_ext import reference
from topi_ext.kernels import elementwise
from topi_ext.relay import op as relay_op
from tvm_easyquant.relay.build import Executor, host_target
from tvm_easyquant.relay.framework import no_tophub

relay_op.register()
BYTES = [m.astype(np.uint8).reshape(1, 64, 64, 16) for m in np.meshgrid(np.arange(256), np.arange(256))]
#: left, right and output scales: random ones, and one whose sums lie on ties
SCALES = [[float(np.float32(v)) for v in np.random.default_rng(i).random(3) * 0.05 + 0.01] for i in (0, 1)]
SCALES.append([float(np.float32(v)) for v in (0.049, 0.049, 0.098)])
TARGETS = ["llvm", pytest.param("llvm -mcpu=core-avx2", marks=pytest.mark.isa("avx2")), host_target()]


def compiled(expression, *variables, target=TARGETS[0]):
    module = tvm.IRModule.from_expr(relay.Function(list(variables), expression))
    with no_tophub(), tvm.transform.PassContext(opt_level=3):
        return Executor(relay.build(module, target))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("scales", SCALES)
def test_add_over_every_pair_of_bytes(target, scales):
    """Story: LLVM contracted ``a*s + b*t`` to a fused multiply-add, and TVM turned the division by a
    constant into a multiplication by its reciprocal; both moved some of these 65,536 sums by a step."""
    a, b = (relay.var(n, shape=BYTES[0].shape, dtype="uint8") for n in "ab")
    numbers = (scales[0], 64, scales[1], 3, scales[2], 5, 1, 250)
    run = compiled(relay_op.join("add", a, b, *numbers), a, b, target=target)
    out = run({"a": BYTES[0], "b": BYTES[1]})[0]
    np.testing.assert_array_equal(out, reference.add(*BYTES, *numbers))


@pytest.mark.parametrize("op", ["add", "sub", "max", "min"])
def test_joins_over_every_pair_of_bytes(op):
    """One of the two may be repeated along the axes where it has a size of 1."""
    down, across = np.arange(256, dtype=np.uint8).reshape(1, 256, 1), np.arange(256, dtype=np.uint8)
    numbers = (SCALES[0][0], 64, SCALES[0][1], 3, SCALES[0][2], 5, 1, 250)
    whole = np.broadcast_to(across, (1, 256, 256)).copy()
    for pair in ((down, whole), (whole, down)):
        a, b = (relay.var(n, shape=x.shape, dtype="uint8") for n, x in zip("ab", pair, strict=True))
        run = compiled(relay_op.join(op, a, b, *numbers), a, b, target=TARGETS[-1])
        made = run(dict(zip("ab", pair, strict=True)))[0]
        np.testing.assert_array_equal(made, reference.join(op, *pair, *numbers))


@pytest.mark.parametrize("target", TARGETS)
def test_a_channel_shuffle_is_that_of_the_take(target):
    """Groups as wide as a vector, wider, narrower; of one vector that begins before the last ends."""
    for groups, size in ((2, 58), (2, 32), (3, 20), (4, 5), (8, 2), (2, 1000)):
        x = np.random.default_rng(size).integers(0, 256, (2, 3, 1, groups * size)).astype(np.uint8)
        places = np.arange(groups * size).reshape(groups, size).T.ravel()
        assert elementwise.shuffled_groups(places.tolist()) == groups
        var = relay.var("x", shape=x.shape, dtype="uint8")
        made = compiled(relay_op.shuffle(var, groups), var, target=target)({"x": x})[0]
        np.testing.assert_array_equal(made, x[..., places])
    for places in ([0, 1, 2, 3], [0, 2, 1], [3, 2, 1, 0], np.arange(18).reshape(9, 2).T.ravel().tolist()):
        assert elementwise.shuffled_groups(places) is None


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_is_what_quantize_and_transpose_make_of_it(target):
    """Rows of whole vectors, a last one that begins before the one before it ends, and shorter ones; ties, and
    what is beyond the range. As a transpose fused to the quantize it took four times as long."""
    for shape in ((1, 3, 4, 32), (2, 3, 3, 21), (1, 2, 5, 9), (1, 4, 1, 4)):
        x = np.random.default_rng(shape[3]).integers(-200, 200, shape).astype(np.float32) * np.float32(0.05)
        x.ravel()[:4] = np.inf, -np.inf, 1e30, -1e30
        var = relay.var("x", shape=shape)
        made = compiled(relay_op.image(var, 0.1, 3, 1, 127), var, target=target)({"x": x})[0]
        np.testing.assert_array_equal(made, reference.quantize(x, 0.1, 3, 1, 127).transpose(0, 2, 3, 1))
        assert elementwise.is_image(shape, (0, 2, 3, 1))
    others = (((1, 3, 4, 3), (0, 2, 3, 1)), ((1, 5, 4, 8), (0, 2, 3, 1)), ((1, 3, 8, 8), (0, 3, 2, 1)))
    assert not any(elementwise.is_image(shape, axes) for shape, axes in others)


def test_the_two_mistakes_would_be_seen():
    """The pairs above do tell the norm from a reciprocal and from a contraction: the test can fail."""
    reciprocal = fused = 0
    for left, right, out in SCALES:
        total = reference.dequantize(BYTES[0], left, 64) + reference.dequantize(BYTES[1], right, 3)
        norm = np.rint(total / np.float32(out))
        reciprocal += (np.rint(total * (np.float32(1) / np.float32(out))) != norm).sum()
        exact = (BYTES[0].astype(float) - 64) * left  # float64 holds the product exactly
        contracted = (exact + reference.dequantize(BYTES[1], right, 3)).astype(np.float32)
        fused += (np.rint(contracted / np.float32(out)) != norm).sum()
    assert reciprocal > 0 and fused > 0


@pytest.mark.parametrize("target", TARGETS)
def test_quantize_divides_and_rounds_half_to_even(target):
    rng = np.random.default_rng(1)
    scale = float(np.float32(0.0371))
    ties = (np.arange(-300, 300, dtype=np.float32) + np.float32(0.5)) * np.float32(scale)
    x = np.concatenate([ties, rng.standard_normal(4000).astype(np.float32) * 3, [-1e30, 1e30, 0.0]])
    x = np.resize(x.astype(np.float32), (1, 4608))
    var = relay.var("x", shape=x.shape)
    out = compiled(relay_op.quantize(var, scale, 64, 1, 127), var, target=target)({"x": x})[0]
    np.testing.assert_array_equal(out, reference.quantize(x, scale, 64, 1, 127))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("target", TARGETS)
def test_requantize_and_dequantize(target, per_channel):
    rng = np.random.default_rng(2)
    acc = rng.integers(-(2**20), 2**20, (1, 7, 5, 12)).astype(np.int32)
    acc.ravel()[:4] = (2**24 + 1, 2**31 - 1, -(2**31), 1)
    factor = (rng.random(12 if per_channel else ()) * 1e-4).astype(np.float32)
    var = relay.var("x", shape=acc.shape, dtype="int32")
    out = compiled(relay_op.requantize(var, factor, 0, 9, 2, 200), var, target=target)({"x": acc})[0]
    np.testing.assert_array_equal(out, reference.requantize(acc, factor, 9, 2, 200))
    out = compiled(relay_op.dequantize(var, factor, 0), var, target=target)({"x": acc})[0]
    np.testing.assert_array_equal(out, reference.dequantize(acc, factor, 0))


def test_requantize_of_bytes_with_a_zero_point():
    q = np.arange(256, dtype=np.uint8).reshape(1, 256)
    var = relay.var("x", shape=q.shape, dtype="uint8")
    out = compiled(relay_op.requantize(var, np.float32(0.77), 64, 3), var)({"x": q})[0]
    np.testing.assert_array_equal(out, reference.requantize(q.astype(np.int32) - 64, np.float32(0.77), 3))


def test_the_chain_quantize_dequantize_add_does_not_contract_when_fused():
    """dequantize feeding a float add of TVM's own must not become a fused multiply-add either."""
    a, b = (relay.var(n, shape=BYTES[0].shape, dtype="uint8") for n in "ab")
    total = relay_op.dequantize(a, 0.0371, 64) + relay_op.dequantize(b, 0.0173, 3)
    out = compiled(total, a, b, target=host_target())({"a": BYTES[0], "b": BYTES[1]})[0]
    expected = reference.dequantize(BYTES[0], 0.0371, 64) + reference.dequantize(BYTES[1], 0.0173, 3)
    np.testing.assert_array_equal(out, expected)
