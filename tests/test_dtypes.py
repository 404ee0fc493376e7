"""Networks whose tensors are not all float32: run, calibrated, searched, written as they are. No TVM."""

import pickle

import networks
import numpy as np
import numpy_host
import pytest

import tvm_easyquant as eq
from tvm_easyquant.errors import CalibrationError, GraphError, SourceError
from tvm_easyquant.measure import accuracy
from tvm_easyquant.network.graph import Graph
from tvm_easyquant.network.node import Node, exactly, model_shape
from tvm_easyquant.samples import labelled, sources
from tvm_easyquant.samples.images import Preprocess
from tvm_easyquant.scales import partition
from tvm_easyquant.scales.calibrate import calibrate, samples
from tvm_easyquant.scales.integer import run_integer
from tvm_easyquant.scales.numerics import QuantConfig
from tvm_easyquant.search.bits import layer_errors


class Handle:
    """Of a float node, as a reader leaves it."""

    def __init__(self, op):
        self.op = op

    def __str__(self):
        return self.op

    def to_onnx(self, exporter, x, output):
        attrs = {"Cast": dict(to=1), "ArgMax": dict(axis=1, keepdims=0)}[self.op]
        return exporter.add(self.op, x, output, **attrs)


def to_float(x):
    return x.astype(np.float32) / np.float32(1)


def first_largest(x):
    return x.argmax(1)


def call(op, fn):
    return dict(fn=fn, handle=Handle(op), macs=0)


def camera():
    """uint8 picture -> Cast -> conv, relu, conv -> dense -> ArgMax, which has two names."""
    b = networks.Builder(3)
    b.nodes["image"] = Node("image", "input", (), (1, 10, 10, 3), dtype="uint8")
    x = b.add("cast", "float", ["image"], (1, 10, 10, 3), call("Cast", to_float))
    x = b.relu("relu", b.conv("first", x, 4, scale=0.02))
    x = b.flatten("flat", b.global_pool("gap", b.conv("second", x, 6)))
    x = b.dense("logits", x, 5)
    nodes = [
        *b.nodes.values(),
        Node("label", "float", (x,), (1,), call("ArgMax", first_largest), dtype="int64"),
    ]
    graph = Graph(nodes, ("label", "logits", "label"), "camera", ("best", "scores", "again"))
    return graph, [b.rng.integers(0, 256, (1, 3, 10, 10), np.uint8) for _ in range(4)]


GRAPH, IMAGES = camera()


def test_a_network_runs_in_the_models_own_types_and_names():
    found = GRAPH.run({"image": IMAGES[0]})
    assert list(found) == ["best", "scores", "again"]
    assert found["best"].dtype == np.int64 and found["scores"].dtype == np.float32
    np.testing.assert_array_equal(found["best"], found["scores"].argmax(1))
    np.testing.assert_array_equal(found["again"], found["best"])


@pytest.mark.parametrize(
    "image, message",
    [
        (IMAGES[0].astype(np.float32), "the input: image is float32; the model takes uint8"),
        (IMAGES[0][:, :2], r"image has shape \(1, 2, 10, 10\)"),
    ],
)
def test_an_input_is_taken_in_its_own_dtype_only(image, message):
    with pytest.raises(GraphError, match=message):
        GRAPH.run({"image": image})


def test_a_double_input_must_be_finite():
    graph = Graph([Node("x", "input", (), (2,), dtype="float64")], ["x"])
    assert graph.run({"x": np.ones(2)})["x"].dtype == np.float64
    with pytest.raises(GraphError, match="x holds NaN or infinity"):
        graph.run({"x": np.array([1, np.inf])})


def test_the_dtype_is_in_the_fingerprint_only_where_it_is_not_float32():
    """Story: tables are stored with the fingerprint, and every network of float32 must keep its own."""
    graph, _ = networks.chain()
    shape = graph["image"].shape
    same, other = (
        Graph([Node("image", "input", (), shape, dtype=dtype), *list(graph)[1:]], graph.outputs)
        for dtype in ("float32", "uint8")
    )
    assert same.fingerprint == graph.fingerprint != other.fingerprint
    again = pickle.loads(pickle.dumps(GRAPH))
    assert again.fingerprint == GRAPH.fingerprint and again["label"].dtype == "int64"


def test_only_float32_becomes_integer():
    plan = partition.plan(GRAPH)
    assert plan.floats == {
        "cast": "it reads image, which is uint8",
        "label": "its numbers are int64",
    }
    assert plan.coverage(GRAPH).percent == 100 and "image" not in plan.site_of
    assert all(GRAPH[tensor].dtype == "float32" for tensor in plan.site_of)
    assert partition.plan(GRAPH, ["image"]).floats["image"] == "kept float by skip"


def test_a_pool_or_a_sum_of_whole_numbers_stays_as_it_is():
    b = networks.Builder()
    b.nodes["mask"] = Node("mask", "input", (), (1, 10, 10, 3), dtype="int32")
    b.nodes["twice"] = Node("twice", "add", ("mask", "mask"), (1, 10, 10, 3), dtype="int32")
    b.conv("c", "image", 2)
    plan = partition.plan(b.graph("c", "twice"))
    assert plan.floats == {"twice": "its numbers are int32"} and "c" in plan.integer


def test_a_table_that_says_otherwise_is_refused():
    with pytest.raises(GraphError, match="runs cast in integers, which cannot: image is uint8"):
        nodes = [
            Node("image", "input", (), (1, 4), dtype="uint8"),
            Node("cast", "clip", ("image",), (1, 4), networks.RELU),
        ]
        partition.plan(Graph(nodes, ["cast"]), integer=["cast"])


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64])
def test_calibration_takes_whatever_holds_the_same_numbers(dtype):
    got = [s["image"] for s in samples([x.astype(dtype) for x in IMAGES], GRAPH)]
    assert all(x.dtype == np.uint8 for x in got)
    np.testing.assert_array_equal(np.concatenate(got), np.concatenate(IMAGES))


@pytest.mark.parametrize(
    "wrong", [IMAGES[0] + 0.5, IMAGES[0].astype(np.int64) + 300, np.full(IMAGES[0].shape, np.nan)]
)
def test_calibration_refuses_what_would_change(wrong):
    with pytest.raises(CalibrationError, match="item 1: image is (float|int)64; the model takes uint8"):
        calibrate(GRAPH, partition.plan(GRAPH), [wrong], QuantConfig())


def test_pictures_of_a_network_that_takes_bytes_are_no_reason_to_warn():
    warnings = calibrate(GRAPH, partition.plan(GRAPH), IMAGES, QuantConfig(search_images=2)).warnings
    assert not [line for line in warnings if "whole numbers" in line]


def test_an_input_of_one_number_is_not_called_constant():
    b = networks.Builder()
    b.nodes["count"] = Node("count", "input", (), (1,), dtype="int64")
    b.conv("c", "image", 2)
    graph = b.graph("c", "count")
    data = [{"image": x, "count": np.array([4])} for x in b.images(2)]
    assert not [
        w for w in calibrate(graph, partition.plan(graph), data, QuantConfig()).warnings if "constant" in w
    ]


@pytest.mark.parametrize("method", ["minmax", "easyquant", "easyquant_layerwise"])
def test_it_is_quantized_and_its_integers_answer_like_the_float_network(method):
    quantized = eq.quantize(
        GRAPH, IMAGES, method=method, **({} if method == "minmax" else {"grid": 4, "rounds": 2})
    )
    assert set(quantized.table.weights) == {"first", "second", "logits"}
    assert quantized.table.check(GRAPH).integer == quantized.plan.integer
    found, want = run_integer(GRAPH, quantized.table, {"image": IMAGES[0]}), GRAPH.run({"image": IMAGES[0]})
    assert found["label"].dtype == np.int64
    error = np.abs(found["logits"] - want["scores"]).max()
    assert error < 0.1 * np.abs(want["scores"]).max()


def test_the_error_of_a_layer_counts_classes_that_change():
    table = eq.quantize(GRAPH, IMAGES, method="minmax").table
    labels = Graph(GRAPH.nodes.values(), ["label"])
    errors = layer_errors(labels, partition.plan(labels), {7: table}, [{"image": x} for x in IMAGES])
    assert all(each[7] in (0, 0.25, 0.5, 0.75, 1) for each in errors.values())


def test_it_is_written_and_compared_in_its_own_types():
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto

    from tvm_easyquant.writers.qdq import to_qdq
    from tvm_easyquant.writers.verify import verify

    table = eq.quantize(GRAPH, IMAGES, method="minmax").table
    model = to_qdq(GRAPH, table)
    assert [v.type.tensor_type.elem_type for v in model.graph.input] == [TensorProto.UINT8]
    assert [(v.name, v.type.tensor_type.elem_type) for v in model.graph.output] == [
        ("best", TensorProto.INT64), ("scores", TensorProto.FLOAT), ("again", TensorProto.INT64),
    ]  # fmt: skip
    result = verify(GRAPH, table, [{"image": x} for x in IMAGES])
    assert result.unexplained == 0 and result.labels == len(IMAGES)
    assert result.outputs["best"] == 0


def test_labelled_bytes_reach_the_network_as_bytes(tmp_path):
    """`--scale 1`, which is all that a preprocess need say, leaves the numbers of the pictures."""
    path = tmp_path / "data.npz"
    stack = np.concatenate(IMAGES).transpose(0, 2, 3, 1)
    labels = [int(GRAPH.run({"image": x})["best"][0]) for x in IMAGES]
    np.savez(path, images=stack, labels=np.array(labels))
    known = {"image": (model_shape(GRAPH["image"]), "uint8")}
    found = accuracy.evaluate(
        lambda feed: [GRAPH.run(feed)["scores"]], labelled.load(path, Preprocess()), inputs=known,
        metrics={"top1": accuracy.top(1)},
    )  # fmt: skip
    assert found["top1"].all()
    with pytest.raises(GraphError, match="image is float32; the model takes uint8"):
        pictures = labelled.load(path, Preprocess(scale=0.3))
        accuracy.evaluate(lambda feed: [GRAPH.run(feed)["scores"]], pictures, inputs=known)


def test_files_of_bytes_are_calibration_data(tmp_path):
    np.savez(tmp_path / "bytes.npz", image=np.concatenate(IMAGES))
    got = list(samples(sources.calibration(str(tmp_path / "bytes.npz"))(GRAPH.inputs), GRAPH))
    np.testing.assert_array_equal(np.concatenate([s["image"] for s in got]), np.concatenate(IMAGES))
    with pytest.raises(SourceError, match="no file or folder"):
        sources.calibration(str(tmp_path / "nothing.npz"))


def test_exactly_takes_no_other_number():
    assert exactly(np.array([0.0, 255.0]), "uint8").dtype == np.uint8
    assert exactly(np.array([256]), "uint8") is None and exactly(np.array([0.5]), "bool") is None
    assert exactly(np.array([np.nan]), "float32") is None


def test_a_metric_sees_the_outputs_in_the_models_order():
    """Story: it saw them in the order in which nodes run, which for fp32 and integers was not the same."""
    graph, images = networks.residual()
    graph = Graph(graph.nodes.values(), ["logits", "gap"], output_names=["scores", "map"])
    assert [value.shape for value in graph.run({"image": images[0]}).values()] == [(1, 5), (1, 16, 1, 1)]
    seen = []

    def metric(outputs, label):
        seen.append([value.shape for value in outputs])
        return 1.0

    eq.quantize(
        graph, images, method="minmax", evaluation=[(x, 0) for x in images[:1]], max_drop=1, metric=metric,
        host=numpy_host.HOST,
    )  # fmt: skip
    assert seen and all(shapes == [(1, 5), (1, 16, 1, 1)] for shapes in seen)
