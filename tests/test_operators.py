"""Operators beside the convolution: read from ONNX, kept integer, exact, and close to the float model."""

import json

import networks
import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
from test_relay import check_exact, float_output, images
from tvm import relay

import tvm_easyquant as eq
from tvm_easyquant import load_onnx
from tvm_easyquant.network import expression as elementwise
from tvm_easyquant.network.graph import run
from tvm_easyquant.relay.build import Executor, build_float
from tvm_easyquant.relay.rewrite import float_module
from tvm_easyquant.scales.integer import run_integer

RNG = np.random.default_rng(0)


def normal(*shape):
    return (RNG.standard_normal(shape) * 0.3).astype(np.float32)


def between(nodes, constants, channels=8, size=8, opset=14):
    """conv - (nodes: from "a" to "b") - conv, input x (1, 3, 8, 8)."""
    constants = {"w1": normal(8, 3, 3, 3), "w2": normal(4, channels, 1, 1), **constants}
    nodes = [
        ("Conv", ["x", "w1"], ["a"], "conv1", dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1])),
        *nodes,
        ("Conv", ["b", "w2"], ["y"], "conv2", dict(kernel_shape=[1, 1])),
    ]
    return networks.onnx_model(
        nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 4, *np.broadcast_to(size, 2).tolist()]}, constants, opset
    )


def one(op, constants=None, inputs=(), **attributes):
    return lambda: between([(op, ["a", *inputs], ["b"], "f", attributes)], constants or {})


def hard_swish_in_pieces():
    pieces = [
        ("Add", ["a", "three"], ["t"], "plus", {}),
        ("Clip", ["t", "zero", "six"], ["u"], "clip", {}),
        ("Mul", ["a", "u"], ["v"], "times", {}),
        ("Div", ["v", "six"], ["b"], "f", {}),
    ]
    values = {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)}
    return between(pieces, values)


def gelu():
    pieces = [
        ("Div", ["a", "root"], ["t"], "div", {}),
        ("Erf", ["t"], ["u"], "erf", {}),
        ("Add", ["u", "one"], ["v"], "plus", {}),
        ("Mul", ["a", "v"], ["w"], "times", {}),
        ("Mul", ["w", "half"], ["b"], "f", {}),
    ]
    return between(pieces, {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)})


def silu():
    return between([("Sigmoid", ["a"], ["t"], "s", {}), ("Mul", ["t", "a"], ["b"], "f", {})], {})


FUNCTIONS = {
    "sigmoid": one("Sigmoid"),
    "tanh": one("Tanh"),
    "leaky relu": one("LeakyRelu", alpha=0.1),
    "hard sigmoid": one("HardSigmoid", alpha=0.2),
    "hard swish": one("HardSwish"),
    "hard swish in pieces": hard_swish_in_pieces,
    "silu": silu,
    "gelu": gelu,
}


def squeeze_excite():
    gate = [
        ("Relu", ["a"], ["r"], "relu", {}),
        ("GlobalAveragePool", ["r"], ["p"], "pool", {}),
        ("Conv", ["p", "w3"], ["q"], "squeeze", dict(kernel_shape=[1, 1])),
        ("Relu", ["q"], ["s"], "relu2", {}),
        ("Conv", ["s", "w4"], ["t"], "excite", dict(kernel_shape=[1, 1])),
        ("Sigmoid", ["t"], ["g"], "gate", {}),
        ("Mul", ["g", "r"], ["b"], "scale", {}),
    ]
    return between(gate, {"w3": normal(4, 8, 1, 1), "w4": normal(8, 4, 1, 1)})


def two_branches_times():
    return between(
        [
            ("Conv", ["x", "w3"], ["c"], "other", dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1])),
            ("Mul", ["a", "c"], ["m"], "times", {}),
            ("Relu", ["m"], ["b"], "relu", {}),
        ],
        {"w3": normal(8, 3, 3, 3)},
    )


def resize(mode, scale=2.0, size=16, how="nearest"):
    attributes = dict(mode=how, coordinate_transformation_mode=mode, nearest_mode="floor")
    if mode == "half_pixel":
        attributes["nearest_mode"] = "round_prefer_floor"
    node = ("Resize", ["a", "", "scales"], ["b"], "up", attributes)
    return lambda: between([node], {"scales": np.float32([1, 1, scale, scale])}, size=size)


def transposed(kernel=3, stride=2, pad=1, extra=1, bias=True, relu=True, size=16):
    def make():
        constants = {"wt": normal(8, 6, kernel, kernel)} | ({"bt": normal(6)} if bias else {})
        attributes = dict(kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4,
                          output_padding=[extra] * 2)  # fmt: skip
        inputs = ["a", "wt"] + (["bt"] if bias else [])
        nodes = [("ConvTranspose", inputs, ["t" if relu else "b"], "up", attributes)]
        nodes += [("Relu", ["t"], ["b"], "relu", {})] if relu else []
        return between(nodes, constants, channels=6, size=size)

    return make


def pixel_shuffle(mode):
    node = ("DepthToSpace", ["a"], ["b"], "up", dict(blocksize=2, mode=mode))
    return lambda: between([node], {}, channels=2, size=16)


def per_channel():
    nodes = [("Relu", ["a"], ["t"], "relu", {}), ("Mul", ["t", "v"], ["b"], "scale", {})]
    return between(nodes, {"v": normal(1, 8, 1, 1)})


def joins():
    """What is made of two maps, and of one and what is repeated over it; and an add of three."""
    nodes = [
        ("Conv", ["x", "w3"], ["c"], "other", dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1])),
        ("Max", ["a", "c", "zero"], ["m"], "max", {}),
        ("ReduceMean", ["m"], ["p"], "mean", dict(axes=[2, 3], keepdims=1)),
        ("Sub", ["p", "m"], ["s"], "sub", {}),
        ("Conv", ["s", "w4"], ["l"], "look", dict(kernel_shape=[1, 1])),
        ("Sigmoid", ["l"], ["g"], "gate", {}),
        ("Mul", ["g", "s"], ["t"], "scale", {}),
        ("Min", ["t", "c"], ["n"], "min", {}),
        ("LeakyRelu", ["n"], ["u"], "leaky", dict(alpha=0.25)),
        ("Sum", ["u", "g", "c"], ["b"], "sum", {}),
    ]
    return between(nodes, {"w3": normal(8, 3, 3, 3), "w4": normal(1, 8, 1, 1), "zero": np.float32(0)})


def moves():
    """Places of each axis: flips, mirrors, tiles, ratios; and what else moves and is no row of its own."""
    nearest = dict(mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    numbers = {
        "around": np.int64([0, 0, 1, 2, 0, 0, 3, 0]), "ratio": np.float32([1, 1, 0.75, 1.2]),
        "first": np.int64([-1]), "last": np.int64([-100]), "width": np.int64([3]), "back": np.int64([-1]),
        "channels": np.int64([3, -1, 0, 5, 2, 1, 4, 6]), "times": np.int64([1, 2, 1, 1]),
    }  # fmt: skip
    nodes = [
        ("Pad", ["a", "around"], ["m"], "mirror", dict(mode="reflect")),
        ("Resize", ["m", "", "ratio"], ["r"], "ratio", nearest),
        ("Slice", ["r", "first", "last", "width", "back"], ["f"], "flip", {}),
        ("Gather", ["f", "channels"], ["g"], "gather", dict(axis=1)),
        ("MaxPool", ["g"], ["p"], "pool", dict(kernel_shape=[2, 1], strides=[1, 1])),
        ("SpaceToDepth", ["p"], ["d"], "blocks", dict(blocksize=2)),
        ("Tile", ["d", "times"], ["b"], "tile", {}),
    ]
    return between(nodes, numbers, channels=64, size=[4, 6])


def layer_norm(axis, opset=14, form="Mul", affine=True):
    """Along an axis of a map, or, with -1, along the channels of what is turned to have them last."""

    def make():
        turn = axis == -1
        x, end = ("t", "u") if turn else ("a", "b")
        shape = (8,) if turn else (8, 1, 1)
        inner = [
            ("ReduceMean", [x], ["m"], "mean", dict(axes=[axis])),
            ("Sub", [x, "m"], ["d"], "less", {}),
            ("Mul", ["d", "d"], ["s"], "square", {})
            if form == "Mul"
            else ("Pow", ["d", "two"], ["s"], "square", {}),
            ("ReduceMean", ["s"], ["v"], "variance", dict(axes=[axis])),
            ("Add", ["little", "v"], ["w"], "plus", {}),
            ("Sqrt", ["w"], ["r"], "root", {}),
            ("Div", ["d", "r"], ["q" if affine else end], "quotient", {}),
        ]
        if affine:
            inner += [
                ("Mul", ["gain", "q"], ["p"], "times", {}),
                ("Add", ["p", "shift"], [end], "norm", {}),
            ]
        if opset >= 17:
            inner = [("LayerNormalization", [x, "gain", "shift"], [end], "norm", dict(epsilon=1e-3))]
        turns = [("Transpose", [p], [q], p, dict(perm=order)) for p, q, order in (
            ("a", "t", [0, 2, 3, 1]), ("u", "b", [0, 3, 1, 2]))]  # fmt: skip
        nodes = [turns[0], *inner, turns[1]] if turn else inner
        constants = {"little": np.float32(1e-3), "two": np.float32(2)}
        constants |= {"gain": 1 + normal(*shape), "shift": normal(*shape)} if affine else {}
        return between(nodes, constants, opset=opset)

    return make


NORMS = {
    "layer norm": layer_norm(-1, 17),
    "layer norm in pieces": layer_norm(-1),
    "layer norm of channels in pieces": layer_norm(1, form="Pow"),
    "layer norm without scale and shift": layer_norm(1, affine=False),
}
OTHERS = {
    **NORMS,
    "joins": joins,
    "moves": moves,
    "squeeze and excite": squeeze_excite,
    "product of two maps": two_branches_times,
    "resize, asymmetric": resize("asymmetric"),
    "resize, half pixel": resize("half_pixel"),
    "transposed": transposed(),
    "transposed, kernel 2": transposed(2, 2, 0, 0),
    "transposed, kernel 4, no bias": transposed(4, 2, 1, 0, bias=False),
    "transposed, stride 3, no relu": transposed(5, 3, 1, 0, relu=False, size=24),
    "transposed, stride 1": transposed(3, 1, 1, 0, size=8),
    "depth to space": pixel_shuffle("DCR"),
    "pixel shuffle": pixel_shuffle("CRD"),
    "a factor for each channel behind a relu": per_channel,
}


@pytest.mark.parametrize("name", [*FUNCTIONS, *OTHERS])
def test_operators_stay_integer_and_are_exact(name):
    model = {**FUNCTIONS, **OTHERS}[name]()
    graph = load_onnx(model)
    feeds = [{"x": x} for x in images(graph, 6)]
    (mine,) = run(graph, feeds[0]).values()
    truth = float_output(model, feeds[0])
    np.testing.assert_allclose(mine, truth, rtol=1e-4, atol=1e-5)
    q = eq.quantize(graph, feeds, bits=8, grid=8)
    assert not q.plan.floats and q.coverage == 100
    check_exact(q, feeds[:2])
    out = np.concatenate([np.ravel(v) for f in feeds for v in run_integer(graph, q.table, f).values()])
    floats = np.concatenate([np.ravel(v) for f in feeds for v in run(graph, f).values()])
    assert out @ floats / np.sqrt((out @ out) * (floats @ floats)) > 0.998


@pytest.mark.parametrize("name", NORMS)
def test_a_layer_norm_is_one_node_and_one_kernel(name):
    """Story: ConvNeXt's were means, differences and squares in 8 bits, and then floats: two thirds of a
    network's calls, a third of its time. Tables of then keep them as they were."""
    graph = load_onnx(NORMS[name]())
    assert [node.op for node in graph] == ["input", "conv2d", "layer_norm", "conv2d"]
    feeds = [{"x": x} for x in images(graph, 2)]
    q = eq.quantize(graph, feeds, bits=7, method="minmax")
    nodes = json.loads(q.build().library.get_graph_json())["nodes"]
    calls = [node["name"] for node in nodes if node["op"] == "tvm_op"]
    assert [name for name in calls[1:] if "conv2d" not in name] == [
        "tvmgen_default_fused_easyquant_layer_norm",
        "tvmgen_default_fused_transpose",  # the output's
    ]
    former = graph.former()
    assert "layer_norm" not in [node.op for node in former] and "float" in [node.op for node in former]


@pytest.mark.parametrize(
    "name, axes, inputs",
    [
        ("along two axes", [1, 2], {}),
        ("of another axis than the squares", [2], {}),
        ("the mean less it", [1], {"less": ["m", "d0"]}),
        ("squares of another tensor", [1], {"square": ["a", "a"]}),
        ("an epsilon that is negative", [1], {"little": np.float32(-1e-3)}),
    ],
)
def test_what_is_no_layer_norm_stays_what_it_was(name, axes, inputs):
    nodes = [
        ("Relu", ["a"], ["d0"], "relu", {}),
        ("ReduceMean", ["d0"], ["m"], "mean", dict(axes=axes)),
        ("Sub", inputs.get("less", ["d0", "m"]), ["d"], "less", {}),
        ("Mul", inputs.get("square", ["d", "d"]), ["s"], "square", {}),
        ("ReduceMean", ["s"], ["v"], "variance", dict(axes=[1])),
        ("Add", ["v", "little"], ["w"], "plus", {}),
        ("Sqrt", ["w"], ["r"], "root", {}),
        ("Div", ["d", "r"], ["b"], "quotient", {}),
    ]
    graph = load_onnx(between(nodes, {"little": inputs.get("little", np.float32(1))}))
    assert "layer_norm" not in [node.op for node in graph]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_one_node_whatever_it_was_written_as(name):
    graph = load_onnx(FUNCTIONS[name]())
    kinds = [node.op for node in graph]
    if name == "hard sigmoid":  # alpha and beta go into the convolution, the clip into its requantize
        assert kinds == ["input", "conv2d", "clip", "conv2d"]
    else:
        assert kinds == ["input", "conv2d", "elementwise", "conv2d"]


def test_a_relu_behind_a_transposed_convolution_costs_nothing():
    graph = load_onnx(transposed()())
    assert [n.op for n in graph] == [
        "input",
        "conv2d",
        "conv2d",
        "clip",
        "depth_to_space",
        "slice",
        "conv2d",
    ]
    q = eq.quantize(graph, images(graph), method="minmax")
    assert set(q.plan.fused) == {"relu"}


@pytest.mark.parametrize("name", ["leaky relu", "gelu", "hard swish in pieces"])
def test_a_function_that_stays_float_is_put_back(name):
    model = FUNCTIONS[name]()
    graph = load_onnx(model)
    feeds = [{"x": x} for x in images(graph)]
    (function,) = [n.name for n in graph if n.op == "elementwise"]
    q = eq.quantize(graph, feeds, bits=8, method="minmax", skip=["conv2", function])
    assert q.plan.floats[function] == "kept float by skip"
    (mine,) = run_integer(graph, q.table, feeds[0]).values()
    np.testing.assert_allclose(Executor(q.build())(feeds[0])[0], mine, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pieces", [False, True])
def test_a_softplus_that_stays_float_is_right_beyond_exp(pieces):
    """log(1 + exp(100)) is 100, and infinity in float32: it was so in a module, and nobody said it."""
    rng = np.random.default_rng(0)  # the largest below is known
    steps = [
        ("Exp", ["b"], ["e"], "e", {}), ("Add", ["e", "one"], ["p"], "p", {}), ("Log", ["p"], ["y"], "l", {}),
    ] if pieces else [("Softplus", ["b"], ["y"], "soft", {})]  # fmt: skip
    nodes = [
        ("Conv", ["x", "w"], ["a"], "conv", dict(kernel_shape=[1, 1])),
        ("Mul", ["a", "many"], ["b"], "scale", {}),
        *steps,
    ]
    constants = {"w": rng.standard_normal((4, 3, 1, 1)).astype(np.float32), "many": np.float32([500, 1, -500, 0.1]).reshape(1, 4, 1, 1),
                 "one": np.float32(1)}  # fmt: skip
    model = networks.onnx_model(nodes, {"x": [1, 3, 4, 4]}, {"y": [1, 4, 4, 4]}, constants, 13)
    graph, x = load_onnx(model), rng.uniform(-0.5, 0.5, (1, 3, 4, 4)).astype(np.float32)
    expected = graph.run({"x": x})["y"]
    assert np.isfinite(expected).all() and expected.max() > 100
    floats = build_float(float_module(graph), "llvm")
    np.testing.assert_allclose(floats({"x": x})[0], expected, rtol=1e-5, atol=1e-6)


def test_expressions():
    x = np.float32([-3, -0.5, 0, 0.5, 3])
    swish = ("multiply", "x", ("sigmoid", "x"))
    np.testing.assert_allclose(elementwise.compute(swish, x), x / (1 + np.exp(-x)), rtol=1e-6)
    softplus = ("log", ("add", ("exp", "x"), 1.0))
    np.testing.assert_allclose(
        elementwise.compute(softplus, np.float32([-1e4, 50, 800, 1e30])), [0, 50, 800, 1e30], rtol=1e-6
    )
    assert np.isnan(elementwise.compute(("log", "x"), x)[0])  # as in ONNX; a table of 256 has 0 there
    assert np.isfinite(elementwise.compute(("sigmoid", "x"), np.float32([-1e30, 1e30]))).all()
    assert (elementwise.compute(("leaky_relu", "x", 2.0), x) == np.float32([-6, -1, 0, 0.5, 3])).all()
    for expression, always, behind_relu in [
        (swish, False, True),
        (("sigmoid", ("negative", "x")), True, True),
        (("clip", ("add", "x", 3.0), 0.0, 6.0), True, True),
        (("subtract", "x", 1.0), False, False),
        (("maximum", "x", 0.5), True, True),
    ]:
        assert elementwise.nonnegative(expression) == always
        assert elementwise.nonnegative(expression, True) == behind_relu


def test_calls_of_relay_that_move_and_join_are_read():
    """One module of them all, against what TVM computes of it."""
    x = relay.var("x", shape=(1, 4, 6, 8))
    g = relay.nn.relu(relay.max(x, axis=[1], keepdims=True))
    parts = relay.split(x, (1, 3), axis=1)
    made = {
        "take": relay.take(x, relay.const(np.int64([3, 0, 2])), axis=1, mode="fast"),
        "reverse": relay.reverse(x, 3),
        "tile": relay.tile(x, (1, 1, 2, 1)),
        "repeat": relay.repeat(x, 3, axis=2),
        "broadcast": relay.broadcast_to(g, (1, 4, 6, 8)),
        "mirror": relay.nn.mirror_pad(x, ((0, 0), (0, 0), (1, 2), (0, 3)), "REFLECT"),
        "edge": relay.nn.pad(x, ((0, 0), (0, 0), (1, 2), (0, 3)), pad_mode="edge"),
        "ratio": relay.image.resize2d(x, (4, 5), method="nearest_neighbor", rounding_method="floor",
                                      coordinate_transformation_mode="asymmetric"),
        "backwards": relay.strided_slice(x, [3], [-9], [-2], axes=[2]),
        "first": parts[0], "last": parts[2],
        "turned": relay.transpose(x, (0, 1, 3, 2)),
        "blocks": relay.nn.space_to_depth(x, 2),
        "sub": relay.subtract(x, g), "max": relay.maximum(x, g), "min": relay.minimum(g, x), "mul": x * g,
    }  # fmt: skip
    function = relay.Function([x], relay.Tuple([relay.nn.relu(call) for call in made.values()]))
    module = relay.transform.InferType()(tvm.IRModule.from_expr(function))
    graph = eq.from_relay(module)
    assert all(node.op != "float" for node in graph)
    assert {"gather", "slice", "transpose", "sub", "max", "min", "mul"} <= {node.op for node in graph}
    feed = {"x": normal(1, 4, 6, 8)}
    for name, mine, want in zip(
        made, graph.run(feed).values(), build_float(module, "llvm")(feed), strict=True
    ):
        np.testing.assert_array_equal(mine, want, err_msg=name)
    before = graph.former()
    assert {node.op for node in before} == {"input", "clip", "float"}
