"""Relay's float operators in numpy: what TVM computes, without its executor."""

import networks
import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
from tvm import relay

import tvm_easyquant as eq
from tvm_easyquant.network.layout import to_nchw, to_nhwc
from tvm_easyquant.relay.float_op import RelayOp
from tvm_easyquant.relay.meaning import NoMeaning, compute
from tvm_easyquant.relay.reference import execute
from tvm_easyquant.relay.rewrite import rewrite
from tvm_easyquant.scales.integer import run_integer

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def const(*shape):
    return relay.const(normal(*shape))


def var(*shape):
    return relay.var("x", shape=shape)


def numbers():
    x, flat = var(2, 4, 5, 6), var(2, 12)
    yield "softmax", relay.nn.softmax(x, axis=1)
    yield "log softmax", relay.nn.log_softmax(flat)
    yield "prelu", relay.nn.prelu(x, const(4))
    yield "leaky relu", relay.nn.leaky_relu(x, 0.3)
    yield "relu", relay.nn.relu(x)
    yield "clip", relay.clip(x, -0.5, 0.7)
    yield "bias", relay.nn.bias_add(x, const(4))
    yield "lrn", relay.nn.lrn(x, size=3, axis=1, bias=1.5, alpha=0.3, beta=0.7)
    yield "exponential", relay.exp(x)
    yield "subtract from a constant", relay.subtract(const(4, 1, 1), x)
    yield "power", relay.power(relay.const(np.float32(2)), x)
    for reduction in (relay.sum, relay.max, relay.min, relay.mean, relay.prod):
        yield f"{reduction.__name__} of maps", reduction(x, [2, -1], keepdims=True)
        yield f"{reduction.__name__} of all", reduction(x)
        yield f"{reduction.__name__} but one", reduction(x, 1, exclude=True)
    yield "argmax", relay.argmax(x, 1)
    yield "sort", relay.argsort(x, -1, is_ascend=True)
    yield "topk", relay.topk(x, 3, 1, "values")


def moves():
    x, flat = var(2, 4, 5, 6), var(2, 12)
    yield "transpose", relay.transpose(x, (3, 0, 2, 1))
    yield "transpose all", relay.transpose(x)
    yield "reshape", relay.reshape(x, (0, -1, 3))
    yield "squeeze", relay.squeeze(var(2, 1, 3, 1), [3])
    yield "expand", relay.expand_dims(flat, 1, 2)
    yield "flatten", relay.nn.batch_flatten(x)
    yield "concatenate", relay.concatenate([x, const(2, 3, 5, 6), x], 1)
    yield "slice", relay.strided_slice(x, [0, 1], [2, 100], [1, 2])
    yield "slice backwards", relay.strided_slice(x, [-1], [-100], [-2], axes=[2])
    yield "slice to the last", relay.strided_slice(x, [1], [-1], [1], axes=[3])
    yield "reverse", relay.reverse(x, 2)
    yield "tile", relay.tile(flat, (2, 1, 3))
    yield "repeat", relay.repeat(x, 3, 2)
    yield "pad", relay.nn.pad(x, ((0, 0), (0, 0), (1, 2), (2, 0)), 1.5)
    yield "pad the edge", relay.nn.pad(x, ((0, 0), (0, 0), (1, 2), (2, 0)), pad_mode="edge")
    yield "pad by reflection", relay.nn.pad(x, ((0, 0), (0, 0), (1, 2), (2, 0)), pad_mode="reflect")
    yield "take", relay.take(x, relay.const(np.int64([[3, 0], [1, 1]]), "int64"), 1)
    yield "take of all", relay.take(flat, relay.const(np.int64([3, 20]), "int64"))
    yield "depth to space", relay.nn.depth_to_space(x, 2, mode="CRD")


def windows():
    x, flat = var(2, 4, 5, 6), var(2, 12)
    for mode in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"):
        yield f"resize up {mode}", relay.image.resize2d(x, (11, 9), coordinate_transformation_mode=mode)
        size = (3, 2) if mode == "align_corners" else (3, 1)  # TVM divides by the size less 1
        yield f"resize down {mode}", relay.image.resize2d(x, size, coordinate_transformation_mode=mode)
    yield (
        "conv1d",
        relay.nn.conv1d(var(1, 4, 9), const(6, 4, 3), strides=2, padding=(1, 2), channels=6, kernel_size=3),
    )
    yield (
        "conv2d, groups",
        relay.nn.conv2d(
            x,
            const(6, 2, 3, 2),
            strides=(1, 2),
            padding=(1, 0, 2, 1),
            groups=2,
            channels=6,
            kernel_size=(3, 2),
        ),
    )
    yield (
        "conv3d",
        relay.nn.conv3d(
            var(1, 2, 4, 5, 6), const(3, 2, 2, 2, 3), padding=(0, 1, 1), channels=3, kernel_size=(2, 2, 3)
        ),
    )
    yield (
        "transposed",
        relay.nn.conv2d_transpose(
            x,
            const(4, 3, 3, 3),
            strides=(2, 3),
            padding=(1, 0),
            output_padding=(1, 2),
            channels=3,
            kernel_size=(3, 3),
        ),
    )
    yield "max pool", relay.nn.max_pool2d(x, (3, 2), (2, 2), padding=(1, 0, 0, 1))
    yield "max pool to the end", relay.nn.max_pool2d(x, (3, 3), (2, 2), ceil_mode=True)
    yield "average pool", relay.nn.avg_pool2d(x, (3, 3), (2, 2), padding=(1, 1))
    yield "average pool with its padding", relay.nn.avg_pool2d(x, 3, 1, padding=1, count_include_pad=True)
    yield "average pool 1-D", relay.nn.avg_pool1d(var(1, 3, 9), 3, 2)
    yield "global average", relay.nn.global_avg_pool2d(x)
    yield "global maximum", relay.nn.global_max_pool2d(x)
    yield "dense", relay.nn.dense(flat, const(5, 12))
    yield "matmul", relay.nn.matmul(const(7, 2), flat)
    yield "batch", relay.nn.batch_matmul(var(2, 3, 4), const(2, 5, 4))
    yield "batch, not turned", relay.nn.batch_matmul(var(2, 3, 4), const(1, 4, 5), transpose_b=False)


CALLS = {**dict(numbers()), **dict(moves()), **dict(windows())}


def op_of(expr):
    """As `read` makes it."""
    call = relay.transform.InferType()(tvm.IRModule.from_expr(expr))["main"].body
    (x,) = relay.analysis.free_vars(call)
    return RelayOp(call.op.name, call, (x,)), normal(*map(int, x.checked_type.shape))


@pytest.mark.parametrize("name", CALLS)
def test_the_meaning_is_what_tvm_computes(name, monkeypatch):
    op, x = op_of(CALLS[name])
    want = op._by_tvm(to_nhwc(x))
    monkeypatch.setattr(RelayOp, "_by_tvm", None)  # not asked again
    mine = op.evaluate(to_nhwc(x))
    assert (mine.shape, mine.dtype) == (want.shape, want.dtype)
    np.testing.assert_allclose(mine, want, rtol=1e-5, atol=3e-6 * np.abs(want).max())


@pytest.mark.parametrize(("parts", "second"), [((1, 4), slice(1, 4)), (3, slice(2, 4))])
def test_a_field_of_a_tuple_has_its_meaning(parts, second):
    fields = relay.split(var(1, 6, 2, 2), parts, 1).tuple_value
    call = relay.transform.InferType()(tvm.IRModule.from_expr(fields))["main"].body
    op, x = RelayOp(call.op.name, call, (call.args[0],), 1), normal(1, 6, 2, 2)
    np.testing.assert_array_equal(to_nchw(op.evaluate(to_nhwc(x))), x[:, second])


def test_what_has_no_rule_or_odd_attributes_runs_by_tvm():
    for expr in (relay.image.resize2d(var(1, 2, 3, 3), (6, 6), method="cubic"), relay.atan(var(1, 3))):
        op, x = op_of(expr)
        with pytest.raises(NoMeaning):
            compute(op.call, [x] * len(op.call.args))
        assert op.evaluate(to_nhwc(x)).shape


def floats(b):
    """Every kind of operator that can stay float, behind and between layers."""
    x = b.relu("relu1", b.conv("conv1", "image", 8), hi=6.0)
    call = relay.transform.InferType()(tvm.IRModule.from_expr(relay.nn.softmax(var(1, 8, 10, 10), axis=1)))[
        "main"
    ].body
    op = RelayOp(call.op.name, call, (call.args[0],))
    x = b.add("soft", "float", [x], (1, 10, 10, 8), dict(fn=op.evaluate, handle=op, macs=0))
    x = b.conv("conv2", x, 8, groups=8)
    x = b.join("join", x, b.conv("conv3", x, 8, kernel=1))
    x = b.pool("pool", x, "avg_pool2d")
    silu = ("multiply", "x", ("sigmoid", "x"))
    x = b.add("silu", "elementwise", [x], b.nodes[x].shape, dict(expression=silu))
    x = b.add("twice", "resize", [x], (1, 10, 10, 8), dict(factors=(2, 2)))
    x = b.add("pixels", "depth_to_space", [x], (1, 20, 20, 2), dict(block=2, mode="DCR"))
    x = b.concat("concat", x, x)
    return b.dense("dense", b.flatten("flat", b.pool("last", x)), 5)


@pytest.mark.parametrize(
    "keep", [(), ("conv2", "dense", "pool", "join")], ids=["integers", "layers in float"]
)
def test_a_rewritten_module_runs_in_numpy_alone(monkeypatch, keep):
    """Story: a float operator of a rewritten module was compiled by TVM, one at a time."""
    b = networks.Builder()
    graph = b.graph(floats(b))
    feeds = [{"image": x} for x in b.images(3)]
    q = eq.quantize(graph, feeds, method="minmax", skip=keep)
    module = rewrite(q.graph, q.table)

    def refuse(*args, **options):
        raise AssertionError("TVM was asked to build")

    monkeypatch.setattr(relay, "build", refuse)
    for feed in feeds:
        (mine,) = execute(module, feed)
        want = run_integer(q.graph, q.table, feed)["dense"]
        np.testing.assert_allclose(mine, want, atol=0.02 * np.abs(want).max())
