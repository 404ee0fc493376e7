"""What is lowered to the layers of maps: 1-D layers, products of rows, transposed convolutions of every kind.

Each is read as integers can run it, equals ONNX Runtime in float, and is exact in every executor.
"""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import tvm_easyquant as eq
from tvm_easyquant.readers.onnx_float import load
from tvm_easyquant.scales.partition import plan

F = np.float32
RNG = np.random.default_rng(15)


def draw(*shape):
    return RNG.standard_normal(shape).astype(F)


def net(nodes, shape, **constants):
    """x of the ``shape`` -> y."""
    output = onnx.ValueInfoProto(name="y")
    output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", 1, shape)], [output],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), shape


def node(op, inputs, output, name="", **attributes):
    return helper.make_node(op, inputs.split(), [output], name, **attributes)


def norm(channels):
    return dict(s=draw(channels), o=draw(channels), v=np.abs(draw(channels)) + F(0.1))


def one_dimension():
    nodes = [
        node("Conv", "x w b", "c", "c1", strides=[2], pads=[1, 2], group=2),
        node("BatchNormalization", "c s o o v", "n", "bn"),
        node("Relu", "n", "r"),
        node("Conv", "r w2", "c2", "c2", dilations=[2]),
        node("Relu", "c2", "r2"),
        node("MaxPool", "r2", "p", "mp", kernel_shape=[2], strides=[2]),
        node("AveragePool", "p", "q", "ap", kernel_shape=[3], pads=[1, 1], count_include_pad=1),
        node("Add", "q p", "a", "add"),
        node("GlobalAveragePool", "a", "g", "gap"),
        node("Flatten", "g", "f"),
        node("Gemm", "f w3", "y", "fc"),
    ]
    return net(nodes, [1, 4, 33], w=draw(8, 2, 3), b=draw(8), w2=draw(6, 8, 3), w3=draw(6, 5), **norm(8))


def speech():
    """What a keyword network of today has between its layers of one dimension, which all stay maps."""
    nodes = [
        node("Pad", "x left", "l", "pad"), node("Conv", "l w", "c", "c1", dilations=[2]),
        node("PRelu", "c slopes", "r", "prelu"), node("Conv", "r w8", "d", "c2", group=8, pads=[1, 1]),
        node("ReduceMean", "d", "m", "mean", axes=[2]), node("Conv", "m w1", "g", "squeeze"),
        node("Sigmoid", "g", "h"), node("Mul", "d h", "e", "gate"), node("Add", "e r", "f", "add"),
        node("Sigmoid", "f", "f1"), node("Mul", "f f1", "a", "swish"), node("Mul", "a k", "b", "scale"),
        node("Slice", "b from to axis", "i", "crop"), node("Concat", "i i", "j", "both", axis=1),
        node("ConvTranspose", "j w2 b2", "u", "up", strides=[3], pads=[1, 2], output_padding=[1]),
        node("BatchNormalization", "u s o o v", "n", "bn"), node("Relu", "n", "q", "relu"),
        node("Transpose", "q", "t", "turn", perm=[0, 2, 1]), node("MatMul", "t w3", "z", "m1"),
        node("Elu", "z", "y1", "elu"), node("ReduceMean", "y1", "y", "rows", axes=[1], keepdims=0),
    ]  # fmt: skip
    weights = dict(
        w=draw(8, 4, 3), w8=draw(8, 1, 3), w1=draw(8, 8, 1), w2=draw(16, 5, 4), w3=draw(5, 6), b2=draw(5)
    )
    places = dict(left=np.array([0, 0, 4, 0, 0, 0]), to=np.array([15]), axis=np.array([2]))
    places["from"] = np.array([2])
    more = dict(slopes=np.abs(draw(8, 1)), k=np.abs(draw(8, 1)))
    return net(nodes, [1, 4, 17], **weights, **places, **more, **norm(5))


def channels_last():
    """Rows of a map, as ConvNeXt has them, and of a map without height."""
    nodes = [
        node("Conv", "x w", "c", "c1"), node("Transpose", "c", "t", "turn", perm=[0, 2, 3, 1]),
        node("MatMul", "t w1", "d", "m1"), node("Add", "d b", "e"), node("Tanh", "e", "f", "tanh"),
        node("Add", "f t", "g", "add"), node("Mul", "g k", "h", "scale"),
        node("Transpose", "h", "i", "back", perm=[0, 3, 1, 2]), node("Conv", "i w2", "j", "c2"),
        node("Squeeze", "j two", "s"), node("Transpose", "s", "l", "rows", perm=[0, 2, 1]),
        node("MatMul", "l w3", "y", "m2"),
    ]  # fmt: skip
    weights = dict(w=draw(6, 3, 2, 3), w1=draw(6, 6), w2=draw(4, 6, 3, 1), w3=draw(4, 5))
    return net(nodes, [1, 3, 4, 7], b=draw(6), k=np.abs(draw(6)), two=np.array([2]), **weights)


def attention(weigh="Sigmoid", **attributes):
    """Heads of one product for queries, keys and values; another product of rank 3, of what is stored."""
    nodes = [
        node("MatMul", "x w", "c", "qkv"), node("Add", "c b", "c1"), node("Split", "c1", "q", "split", axis=2),
        node("Reshape", "q heads", "q1"), node("Transpose", "q1", "q2", perm=[0, 2, 1, 3]),
        node("Reshape", "k heads", "k1"), node("Transpose", "k1", "k2", perm=[0, 2, 3, 1]),
        node("Reshape", "v heads", "v1"), node("Transpose", "v1", "v2", perm=[0, 2, 1, 3]),
        node("MatMul", "q2 k2", "s", "scores"), node("Mul", "s half", "s1"), node(weigh, "s1", "p", **attributes),
        node("MatMul", "p v2", "o", "mixed"), node("Transpose", "o", "o1", perm=[0, 2, 1, 3]),
        node("Reshape", "o1 flat", "o2"), node("MatMul", "o2 w2", "z", "out"), node("Relu", "z", "z1"),
        node("MatMul", "z1 w3", "t", "rows"), node("Transpose", "z1", "z2", perm=[0, 2, 1]),
        node("MatMul", "z2 t", "y1", "third"), node("Relu", "y1", "y2"), node("MatMul", "z1 y2", "y", "last"),
    ]  # fmt: skip
    nodes[2].output.extend(["k", "v"])
    weights = dict(w=draw(6, 18), w2=draw(6, 7), w3=draw(7, 9), b=draw(18), half=F(0.5))
    return net(nodes, [1, 5, 6], heads=np.array([1, 5, 2, 3]), flat=np.array([1, 5, 6]), **weights)


def batch_moved(batch, pick):
    """Queries, keys and values as SVTR and torch write them: the batch moves behind them, and each is taken."""
    nodes = [
        node("MatMul", "x w", "c", "qkv"), node("Add", "c b", "c1"), node("Reshape", "c1 heads", "h"),
        node("Transpose", "h", "t", "turn", perm=[2, 0, 3, 1, 4]),
    ]  # fmt: skip
    if pick == "Split":
        nodes.append(node(pick, "t", "p0", "split", axis=0))
        nodes[-1].output.extend(["p1", "p2"])
    for i, name in enumerate("qkv"):
        if pick == "Gather":
            nodes.append(node(pick, f"t i{i}", name, f"take.{name}", axis=0))
            continue
        if pick == "Slice":
            nodes.append(node(pick, f"t r{i} r{i + 1} r0", f"p{i}", f"crop.{name}"))
        nodes.append(node("Squeeze", f"p{i} r0", name, f"line.{name}"))
    nodes += [
        node("Mul", "q half", "q1"), node("Transpose", "k", "k1", perm=[0, 1, 3, 2]),
        node("MatMul", "q1 k1", "s", "scores"), node("Sigmoid", "s", "p"), node("MatMul", "p v", "m", "mixed"),
        node("Transpose", "m", "m1", perm=[0, 2, 1, 3]), node("Reshape", "m1 flat", "m2"),
        node("MatMul", "m2 w2", "y", "out"),
    ]  # fmt: skip
    numbers = {f"i{i}": np.array(i) for i in range(3)} | {f"r{i}": np.array([i]) for i in range(4)}
    places = dict(heads=np.array([batch, 5, 3, 2, 4]), flat=np.array([batch, 5, 8]), **numbers)
    return net(nodes, [batch, 5, 6], w=draw(6, 24), b=draw(24), w2=draw(8, 7), half=F(0.5), **places)


def heads():
    """Attention of a map's pixels as YOLO has it: a map is reshaped to one of heads, split, and back."""
    nodes = [
        node("Conv", "x w", "c", "qkv"), node("Reshape", "c apart", "a"), node("Split", "a", "q", "split", axis=2),
        node("Transpose", "q", "t", perm=[0, 1, 3, 2]), node("MatMul", "t k", "s", "scores"),
        node("Sigmoid", "s", "p"), node("Transpose", "p", "p1", perm=[0, 1, 3, 2]),
        node("MatMul", "v p1", "m", "mixed"), node("Reshape", "m again", "r"), node("Conv", "r w2", "y", "out"),
    ]  # fmt: skip
    nodes[2].output.extend(["k", "v"])
    places = dict(apart=np.array([1, 2, 9, 12]), again=np.array([1, 6, 3, 4]))
    return net(nodes, [1, 4, 3, 4], w=draw(18, 4, 1, 1), w2=draw(3, 6, 1, 1), **places)


def spatial_gate():
    """CBAM: a gate of channels from the mean and the largest of the map, one of places from those of channels."""
    nodes = [
        node("Conv", "x w", "c", "c1"), node("Relu", "c", "r"),
        node("ReduceMean", "r", "m", "mean", axes=[2, 3]), node("ReduceMax", "r", "n", "max", axes=[2, 3]),
        node("Conv", "m w1", "m1"), node("Relu", "m1", "m2"), node("Conv", "m2 w2", "m3"),
        node("Conv", "n w1", "n1"), node("Relu", "n1", "n2"), node("Conv", "n2 w2", "n3"),
        node("Add", "m3 n3", "g"), node("Sigmoid", "g", "g1"), node("Mul", "r g1", "s", "gate"),
        node("ReduceMean", "s", "t", "over.mean", axes=[1], keepdims=1),
        node("ReduceMax", "s", "u", "over.max", axes=[1], keepdims=1),
        node("Concat", "t u", "v", axis=1), node("Conv", "v w7", "p", "places", pads=[3] * 4),
        node("Sigmoid", "p", "p1"), node("Mul", "s p1", "q", "gate2"),
        node("ReduceMax", "q", "z", "flat", axes=[1], keepdims=0), node("Unsqueeze", "z one", "z1"),
        node("Conv", "z1 w3", "y", "c3"),
    ]  # fmt: skip
    weights = dict(w=draw(8, 4, 3, 3), w1=draw(2, 8, 1, 1), w2=draw(8, 2, 1, 1), w7=draw(1, 2, 7, 7))
    return net(nodes, [1, 4, 9, 8], w3=draw(3, 1, 1, 1), one=np.array([1]), **weights)


def norm_first():
    nodes = [node("BatchNormalization", "x s o o v", "n", "bn"), node("Conv", "n w", "y", "c")]
    return net(nodes, [1, 4, 9], w=draw(3, 4, 3), **norm(4))


def rows(*batch):
    """Two products of rows with a bias each side of the sum can have, and a join."""
    nodes = [
        node("MatMul", "x w", "c", "m1"), node("Add", "b c", "d", "bias"), node("Relu", "d", "r"),
        node("MatMul", "r w2", "e", "m2"), node("Add", "e x", "y", "join"),
    ]  # fmt: skip
    return net(nodes, [*batch, 8], w=draw(8, 12), b=draw(12), w2=draw(12, 8))


def channel_shuffle():
    nodes = [
        node("Conv", "x w", "c", "c1", group=2), node("Reshape", "c apart", "d"),
        node("Transpose", "d", "e", perm=[0, 2, 1, 3, 4]), node("Reshape", "e again", "f"),
        node("Conv", "f w", "y", "c2", group=2),
    ]  # fmt: skip
    apart, again = np.array([1, 2, 4, 6, 5]), np.array([1, 8, 6, 5])
    return net(nodes, [1, 8, 6, 5], w=draw(8, 4, 1, 1), apart=apart, again=again)


def upsampled(shape, channels, **attributes):
    """A transposed convolution, its batch norm and relu, which are folded into it, and a layer."""
    nodes = [
        node("ConvTranspose", "x w b", "c", "up", **attributes),
        node("BatchNormalization", "c s o o v", "n", "bn"),
        node("Relu", "n", "r"),
        node("Conv", "r w2", "y", "c2"),
    ]
    weights = dict(w=draw(*shape), b=draw(channels), w2=draw(2, channels, 1, 1))
    return net(nodes, [1, 4, 5, 6], **weights, **norm(channels))


def upsampled_row():
    """Depthwise, of one dimension: a copy of the map for each phase."""
    up = node("ConvTranspose", "x w", "u", "up", strides=[3], pads=[1, 1], group=4)
    norm_ = node("BatchNormalization", "u s o o v", "n", "bn")
    return net(
        [up, norm_, node("Conv", "n w2", "y", "c")], [1, 4, 7], w=draw(4, 1, 4), w2=draw(2, 4, 3), **norm(4)
    )


TWICE = dict(strides=[2, 2])
#: what is lowered -> (a model, its input's shape)
NETWORKS = {
    "layers of one dimension": one_dimension,
    "a batch norm of one dimension": norm_first,
    "between layers of one dimension": speech,
    "channels last": channels_last,
    "products of two tensors": attention,
    "products of a map's pixels": heads,
    "the batch behind, Gather": lambda: batch_moved(1, "Gather"),
    "the batch behind, Split": lambda: batch_moved(2, "Split"),
    "the batch behind, Slice": lambda: batch_moved(2, "Slice"),
    "gates of channels and of places": spatial_gate,
    "products with softmax": lambda: attention("Softmax", axis=-1),
    "rows": lambda: rows(2, 7),
    "rows of rows": lambda: rows(2, 5, 7),
    "rows of rank 5": lambda: rows(2, 2, 3, 4),
    "a channel shuffle": channel_shuffle,
    "transposed in groups": lambda: upsampled((4, 3, 3, 3), 6, group=2, **TWICE),
    "transposed, depthwise": lambda: upsampled((4, 1, 4, 4), 4, group=4, **TWICE),
    "transposed, depthwise, of a row": upsampled_row,
    "transposed and dilated": lambda: upsampled((4, 3, 3, 3), 3, dilations=[2, 2], pads=[1] * 4, **TWICE),
    "transposed beyond the last tap": lambda: upsampled(
        (4, 3, 2, 2), 3, output_padding=[1, 1], pads=[1, 1, 0, 0], **TWICE
    ),
    "transposed, SAME": lambda: upsampled((4, 3, 3, 3), 3, auto_pad="SAME_UPPER", **TWICE),
    "transposed to a size": lambda: upsampled((4, 3, 3, 3), 3, output_shape=[9, 11], **TWICE),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_read_without_a_float_node_and_equals_onnx_runtime(name):
    runtime = pytest.importorskip("onnxruntime")
    model, shape = NETWORKS[name]()
    graph, x = load(model), draw(*shape)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, {"x": x})
    assert [n.attrs["handle"].op for n in graph if n.op == "float"] == ["Softmax"] * name.endswith(
        "softmax"
    )
    np.testing.assert_allclose(graph.run({"x": x})["y"], want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.ci
@pytest.mark.parametrize("name", [name for name in NETWORKS if not name.endswith("softmax")])
def test_it_is_exact_in_every_executor(name):
    check_exact = pytest.importorskip("test_relay").check_exact
    model, shape = NETWORKS[name]()
    feeds = [{"x": draw(*shape)} for _ in range(4)]
    check_exact(eq.quantize(load(model), feeds), feeds[:2], "llvm")


UP = [
    "transpose",
    "reshape",
    "reshape",
    "transpose",
    "slice",
]  # phases of a row, which are the row in memory
#: what is lowered -> the moves that are left, from the input to the output
MOVES = {
    "layers of one dimension": ["reshape", "reshape"],
    "between layers of one dimension": ["reshape", "slice", "concat", *UP, "transpose", "reshape"],
    "channels last": ["transpose", "transpose", "reshape"],
    "rows": ["reshape", "transpose", "transpose", "reshape"],
    "rows of rows": ["transpose", "transpose"],
}


@pytest.mark.parametrize("name", MOVES)
def test_what_is_between_is_folded_fused_or_on_maps_and_no_move_is_left(name):
    """Story: each layer went to a map and back, so a bias behind it stayed an operator of its own, and
    functions, sums, gates and means were float, or by themselves, or read the map in another order."""
    graph = load(NETWORKS[name]()[0])
    assert not {"bn", "bias", "pad"} & set(graph.nodes)
    assert [n.op for n in graph if n.operator.moves and n.op != "max_pool2d"] == MOVES[name]
    floats, last = plan(graph, functions=True).floats, [*graph.nodes][-2:]
    assert set(floats.values()) <= {"only float nodes or outputs read it"} and set(floats) <= set(last)


@pytest.mark.parametrize("name", ["products of two tensors", "between layers of one dimension"])
def test_a_table_of_before_keeps_what_was_float(name):
    graph = load(NETWORKS[name]()[0])
    before = graph.former()
    floats = {n.name for n in before if n.op == "float"}
    assert floats and before.fingerprint != graph.fingerprint
    feeds = [{"x": draw(*graph["x"].shape)}]
    table = eq.quantize(before, feeds, method="minmax").table
    made = table.prepared(graph)
    assert floats <= set(table.check(made).floats) and made.fingerprint == before.fingerprint


def test_a_bias_of_another_axis_is_not_folded_into_rows():
    """Its numbers belong to the rows: as many as there are channels, by chance."""
    nodes = [node("MatMul", "x w", "c", "m"), node("Add", "c b", "y", "add")]
    model, shape = net(nodes, [1, 4, 3], w=draw(3, 4), b=draw(4, 1))
    x, graph = draw(*shape), load(model)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    want = x @ constants["w"] + constants["b"]
    np.testing.assert_allclose(graph.run({"x": x})["y"], want, rtol=0, atol=1e-5)
    assert "add" in graph.nodes


def test_a_batch_norm_of_the_rows_is_not_folded_into_their_channels():
    nodes = [node("MatMul", "x w", "c", "m"), node("BatchNormalization", "c s o o v", "y", "bn")]
    values = norm(4)
    model, shape = net(nodes, [1, 4, 3], w=draw(3, 4), **values)
    x, s, o, v = draw(*shape), *(values[k][:, None] for k in "sov")
    weight = numpy_helper.to_array(model.graph.initializer[0])
    want = (x @ weight - o) / np.sqrt(v + F(1e-5)) * s + o
    np.testing.assert_allclose(load(model).run({"x": x})["y"], want, rtol=0, atol=1e-4)
