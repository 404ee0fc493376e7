"""Relay's float operators in numpy: what TVM computes, without its executor."""

import networks
import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
from tvm import relay

import tvm_easyquant as eq
from tvm_easyquant.network.layout import to_nchw, to_nhwc
from tvm_easyquant.relay.build import build_float
from tvm_easyquant.relay.float_op import RelayOp
from tvm_easyquant.relay.meaning.attributes import NoMeaning
from tvm_easyquant.relay.meaning.rules import compute
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


def more_numbers():
    x, flat = var(2, 4, 5, 6), var(2, 12)
    for name in (
        "cos",
        "cosh",
        "sin",
        "sinh",
        "tan",
        "atan",
        "asinh",
        "trunc",
        "round",
        "isnan",
        "isfinite",
    ):
        yield name, getattr(relay, name)(x)
    for name in ("acos", "asin", "atanh"):
        yield name, getattr(relay, name)(relay.clip(x, -0.9, 0.9))
    for name in ("acosh", "log2", "log10"):
        yield name, getattr(relay, name)(relay.clip(x, 1.0, 9.0))
    seven = relay.const(np.float32(0.7))
    for name in ("floor_divide", "floor_mod", "trunc_divide", "trunc_mod", "mod"):
        yield name, getattr(relay, name)(x, seven)
    whole = relay.cast(relay.multiply(x, relay.const(np.float32(9))), "int32")
    three = relay.const(np.int32(3))
    for name in ("bitwise_and", "bitwise_or", "bitwise_xor", "left_shift"):
        yield name, getattr(relay, name)(whole, three)
    yield "right_shift", relay.right_shift(whole, three)
    yield "bitwise_not", relay.bitwise_not(whole)
    positive = relay.greater(x, seven)
    yield "logical_xor", relay.logical_xor(positive, relay.less(x, relay.const(np.float32(2))))
    yield "all", relay.all(positive, 2)
    yield "any", relay.any(positive, [1, 2], keepdims=True)
    yield "argmin", relay.argmin(x, 2, keepdims=True)
    yield "variance", relay.variance(x, [2, 3])
    yield "variance, unbiased", relay.variance(x, 1, keepdims=True, unbiased=True)
    yield "cumsum", relay.cumsum(x, 2)
    yield "cumsum before it", relay.cumsum(x, 1, exclusive=True)
    yield "cumprod of all", relay.cumprod(flat, exclusive=False)
    yield "sort values", relay.sort(x, 2, is_ascend=False)
    yield "zeros like it", relay.zeros_like(x)
    yield "full like it", relay.full_like(x, seven)
    yield "one hot", relay.one_hot(relay.argmax(x, 1), seven, three_as_float(), 4, 1, "float32")
    yield "cast like", relay.cast_like(x, three)
    yield "layer norm", relay.nn.layer_norm(x, const(6), const(6))
    yield "layer norm of channels", relay.nn.layer_norm(x, const(4), const(4), axis=1, scale=False)
    yield "instance norm", relay.nn.instance_norm(x, const(4), const(4), epsilon=0.01)
    yield "group norm", relay.nn.group_norm(x, const(4), const(4), 2)
    yield "l2 normalize", relay.nn.l2_normalize(x, 1e-6, [1])
    yield "lrn of the last axis", relay.nn.lrn(x, size=3, axis=3, bias=1.5, alpha=0.3, beta=0.7)


def divisions():
    whole = relay.cast(relay.multiply(var(2, 12), relay.const(np.float32(9))), "int32")
    for name in ("floor_divide", "floor_mod", "trunc_divide", "trunc_mod"):
        yield f"{name} of integers", getattr(relay, name)(whole, relay.const(np.int32(3)))


def three_as_float():
    return relay.const(np.float32(-3))


def more_moves():
    x = var(2, 4, 6, 6)
    yield "stack", relay.stack([x, const(2, 4, 6, 6)], 1)
    yield "mirror", relay.nn.mirror_pad(x, ((0, 0), (0, 0), (1, 2), (2, 1)), "SYMMETRIC")
    yield "dilate", relay.nn.dilate(x, [1, 1, 2, 3], 0.5)
    yield "gather nd", relay.gather_nd(x, relay.const(np.int64([[1, 0], [3, 2]]), "int64"))
    places = relay.const(np.int64([[[[0, 1, 3, 2, 1, 0]]]]), "int64")
    for reduction in ("update", "add"):
        yield f"scatter {reduction}", relay.scatter_elements(x, places, const(1, 1, 1, 6), 2, reduction)
    yield "space to depth", relay.nn.space_to_depth(x, 2)
    yield "space to depth of NHWC", relay.nn.space_to_depth(x, 2, "NHWC")
    yield "space to batch", relay.nn.space_to_batch_nd(x, [2, 3], [[1, 1], [0, 0]], 0.5)
    yield "batch to space", relay.nn.batch_to_space_nd(var(8, 3, 2, 5), [2, 2], [[1, 0], [0, 1]])
    yield "slice like", relay.slice_like(x, const(1, 2, 3, 3), [1, 2])
    yield "reshape like", relay.reshape_like(x, const(2, 4, 36))


def more_windows():
    x = var(2, 4, 5, 6)
    modes = (
        "half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "tf_half_pixel_for_nn",
        "tf_crop_and_resize",
    )  # fmt: skip
    for method in ("nearest_neighbor", "linear", "cubic"):
        for mode in modes:
            more = {"roi": [0.2, 0.1, 1.1, 0.9], "extrapolation_value": 7.0} if "crop" in mode else {}
            for size in ((11, 9), (3, 4)):
                yield (
                    f"resize {method} {mode} to {size}",
                    relay.image.resize2d(
                        x, size, **more, method=method, coordinate_transformation_mode=mode
                    ),
                )
    for rounding in ("round", "floor", "ceil", "round_prefer_floor", "round_prefer_ceil"):
        yield (
            f"resize to the nearest by {rounding}",
            relay.image.resize2d(x, (7, 4), method="nearest_neighbor", rounding_method=rounding),
        )
    yield (
        "resize cubic without what is outside",
        relay.image.resize2d(x, (7, 9), method="cubic", cubic_alpha=-0.75, cubic_exclude=1),
    )
    yield "resize of NHWC", relay.image.resize2d(x, (7, 9), layout="NHWC", method="cubic")
    yield "resize 1-D", relay.image.resize1d(var(1, 3, 7), (16,), method="cubic")
    yield "resize 3-D", relay.image.resize3d(var(1, 2, 3, 4, 5), size=(5, 6, 4), method="linear")
    for method in ("nearest_neighbor", "bilinear", "bicubic"):
        for corners in (False, True):
            yield (
                f"upsampling {method} {corners}",
                relay.nn.upsampling(x, 2, 3, method=method, align_corners=corners),
            )
    yield "upsampling 3-D", relay.nn.upsampling3d(var(1, 2, 3, 4, 5), 2, 1, 3, method="trilinear")
    for count in (False, True):
        yield (
            f"average pool to the end {count}",
            relay.nn.avg_pool2d(x, (3, 3), (2, 2), padding=1, ceil_mode=True, count_include_pad=count),
        )
    yield "average pool of NHWC", relay.nn.avg_pool2d(x, (3, 2), (2, 1), layout="NHWC")
    yield "max pool 3-D", relay.nn.max_pool3d(var(1, 2, 4, 5, 6), (2, 2, 3), (1, 2, 2))
    yield "adaptive average", relay.nn.adaptive_avg_pool2d(x, (3, 4))
    yield "adaptive maximum", relay.nn.adaptive_max_pool2d(x, (2, 5))
    yield "adaptive average 1-D", relay.nn.adaptive_avg_pool1d(var(1, 3, 7), 3)
    yield "global average of NHWC", relay.nn.global_avg_pool2d(x, "NHWC")
    yield (
        "transposed 1-D",
        relay.nn.conv1d_transpose(
            var(1, 4, 7), const(4, 3, 3), (2,), (1,), channels=3, kernel_size=(3,), output_padding=(1,)
        ),
    )
    yield (
        "transposed 3-D",
        relay.nn.conv3d_transpose(
            var(1, 2, 3, 4, 3),
            const(2, 3, 3, 3, 3),
            (2, 2, 2),
            (1, 1, 1),
            channels=3,
            kernel_size=(3, 3, 3),
        ),
    )
    yield (
        "transposed, padded by more than it reaches",
        relay.nn.conv2d_transpose(
            x, const(4, 3, 3, 3), strides=(2, 2), padding=(3, 2), channels=3, kernel_size=(3, 3)
        ),
    )
    yield "einsum", relay.einsum([x, const(6, 3)], "nchw,wk->nchk")


GROUPS = [
    dict(some()) for some in (numbers, moves, windows, more_numbers, divisions, more_moves, more_windows)
]
CALLS = {name: expr for group in GROUPS for name, expr in group.items()}


def op_of(expr):
    """As `read` makes it."""
    call = relay.transform.InferType()(tvm.IRModule.from_expr(expr))["main"].body
    (x,) = relay.analysis.free_vars(call)
    return RelayOp(call.op.name, call, (x,)), normal(*map(int, x.checked_type.shape))


@pytest.fixture(scope="module")
def computed():
    """{name: (x, what TVM computes)}: a program for each group, not for each call."""
    found = {}
    for group in GROUPS:  # all in one is what LLVM refuses
        inputs, results, feed = [], [], {}
        for i, expr in enumerate(group.values()):
            (x,) = relay.analysis.free_vars(expr)
            inputs.append(relay.var(f"x{i}", x.type_annotation))
            results.append(relay.bind(expr, {x: inputs[-1]}))
            feed[f"x{i}"] = normal(*map(int, x.type_annotation.shape))
        built = build_float(tvm.IRModule.from_expr(relay.Function(inputs, relay.Tuple(results))), "llvm")
        found.update(zip(group, zip(feed.values(), built(feed), strict=True), strict=True))
    return found


@pytest.mark.parametrize("name", CALLS)
def test_the_meaning_is_what_tvm_computes(name, computed, monkeypatch):
    x, want = computed[name]
    monkeypatch.setattr(RelayOp, "_by_tvm", None)  # not asked
    (mine,) = execute(tvm.IRModule.from_expr(CALLS[name]), {"x": x})
    assert (mine.shape, mine.dtype) == (want.shape, want.dtype)
    if want.dtype.kind == "f":
        np.testing.assert_allclose(mine, want, rtol=1e-5, atol=3e-6 * np.abs(want).max())
    else:
        np.testing.assert_array_equal(mine, want)


@pytest.mark.parametrize(("parts", "second"), [((1, 4), slice(1, 4)), (3, slice(2, 4))])
def test_a_field_of_a_tuple_has_its_meaning(parts, second):
    fields = relay.split(var(1, 6, 2, 2), parts, 1).tuple_value
    call = relay.transform.InferType()(tvm.IRModule.from_expr(fields))["main"].body
    op, x = RelayOp(call.op.name, call, (call.args[0],), 1), normal(1, 6, 2, 2)
    np.testing.assert_array_equal(to_nchw(op.evaluate(to_nhwc(x))), x[:, second])


def test_what_has_no_rule_runs_by_tvm():
    boxes, first = relay.const(np.float32([[0.1, 0.2, 0.9, 0.8]])), relay.const(np.int32([0]))
    op, x = op_of(relay.image.crop_and_resize(var(1, 2, 3, 3), boxes, first, (2, 2), layout="NCHW"))
    with pytest.raises(NoMeaning):
        compute(op.call, [x] * len(op.call.args))
    assert op.evaluate(to_nhwc(x)).shape == (1, 2, 2, 2)


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
