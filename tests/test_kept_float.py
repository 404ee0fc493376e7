"""A layer that cannot be integer stays float and is told; the rest of the network is quantized. No TVM."""

import pickle
from dataclasses import replace

import networks
import numpy as np
import pytest

import tvm_easyquant as eq
from tvm_easyquant.errors import GraphError, RangeError
from tvm_easyquant.network.equalize import equalized
from tvm_easyquant.network.graph import Graph
from tvm_easyquant.scales import partition
from tvm_easyquant.scales.calibrate import calibrate
from tvm_easyquant.scales.integer import run_integer
from tvm_easyquant.scales.numerics import QuantConfig
from tvm_easyquant.scales.table import ScaleTable

FEW = dict(grid=4, search_images=2)


def wide(behind=True):
    """conv, relu -> a dense layer of 40,000 inputs, all weights 1 -> a small one, which is a layer, too."""
    b = networks.Builder(1, size=100)
    x = b.relu("relu", b.conv("conv", "image", 4))
    x = b.dense("wide", b.flatten("flat", x), 8)
    b.nodes[x].weight[:] = 1
    if behind:
        x = b.dense("small", b.add("act", "clip", [x], (1, 8), networks.RELU), 3)
    return b.graph(x), b.images(2)


def test_a_layer_beyond_int32_stays_float_and_the_rest_is_integer():
    """Story: quantize refused the whole network, whose other 50 layers were fine."""
    graph, images = wide()
    quantized = eq.quantize(graph, images, bits=8, **FEW)
    (line,) = [w for w in quantized.warnings if "stays float" in w]
    assert line.startswith("layer wide stays float: its int32 accumulator may reach ")
    assert line.endswith(", beyond 2**30") and line.endswith(quantized.plan.floats["wide"])
    assert set(quantized.table.weights) == {"conv", "small"}
    assert {row["layer"]: row["kind"] for row in quantized.layers} == {
        "conv": "int8", "wide": "float32", "small": "int8",
    }  # fmt: skip
    want = graph.run({"image": images[0]})["small"]
    got = run_integer(graph, quantized.table, {"image": images[0]})["small"]
    assert np.abs(got - want).max() < 0.05 * np.abs(want).max()


def test_the_table_of_such_a_network_is_read_back_as_it_is(tmp_path):
    graph, images = wide()
    quantized = eq.quantize(graph, images, bits=8, method="minmax")
    quantized.table.save(tmp_path / "net.json")
    again = ScaleTable.load(tmp_path / "net.json")
    plan = again.check(graph)
    assert plan.integer == quantized.plan.integer and "wide" in plan.floats
    # what the user says to skip means the same
    asked = eq.quantize(graph, images, bits=8, method="minmax", skip=["wide"])
    assert asked.table.to_json() == again.to_json() and not asked.warnings


def test_an_error_is_left_only_where_no_layer_is():
    graph, images = wide(behind=False)
    graph = Graph(graph.nodes.values(), graph.outputs)
    with pytest.raises(
        RangeError, match="layer wide: its int32 acc.*no other layer is left to quantize"
    ) as caught:
        eq.quantize(graph, images, bits=8, method="minmax", skip=["conv"])
    assert isinstance(caught.value, (GraphError, OverflowError)) and caught.value.layer == "wide"
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value) and again.reason == caught.value.reason


def test_an_interrupted_run_goes_on_without_the_layer(tmp_path):
    graph, images = wide()
    want = eq.quantize(graph, images, bits=8, **FEW).table.to_json()
    path, left = tmp_path / "state", [3]

    def stop(*_):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        eq.quantize(graph, images, bits=8, checkpoint=path, progress=stop, **FEW)
    got = eq.quantize(graph, images, bits=8, checkpoint=path, **FEW)
    assert got.table.to_json() == want and not path.exists()


def test_what_the_search_makes_too_large_is_kept_float_then(monkeypatch):
    """The start fits; the scales that a search found do not: the search is made again without the layer."""
    from tvm_easyquant.search import find as finding

    graph, images = networks.chain(channels=6)
    calls = []

    def misfits(graph, plan, table):
        calls.append(sorted(table.weights))
        return {"second": RangeError("second", "too much")} if "second" in plan.integer else {}

    monkeypatch.setattr(finding, "misfits", misfits)
    found = finding.find(graph, images, QuantConfig(**FEW))
    assert calls == [["first", "second"], ["first"]] and found.plan.floats["second"] == "too much"
    assert "layer second stays float: too much" in found.warnings
    want = finding.find(graph, images, QuantConfig(skip=("second",), **FEW))
    assert found.table.to_json() == want.table.to_json()


@pytest.mark.parametrize("method", ["minmax", "percentile", "kl"])
def test_calibration_for_a_plan_follows_from_that_for_a_larger_one(method):
    """Data may be a stream that comes once: what is kept float later must not need it again."""
    graph, images = networks.residual()
    config = QuantConfig(method=method)
    whole = calibrate(graph, partition.plan(graph), images, config)
    names = [node.name for node in graph.compute_nodes]
    for skip in [[n] for n in names] + [names[:2], names[1:4], names[2:], names[:-1]]:
        plan = partition.plan(graph, skip)
        assert whole.of(plan).ranges == calibrate(graph, plan, images, config).ranges


# -- weights that are not finite


def spoiled(value, at="right", graph=None):
    graph = graph or networks.residual()[0]
    weight = graph[at].weight.copy()
    weight[0, 0, 0, 0] = value
    nodes = [replace(node, weight=weight) if node.name == at else node for node in graph]
    return Graph(nodes, graph.outputs, graph.name)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", ["minmax", "easyquant", "easyquant_layerwise"])
def test_a_layer_with_bad_weights_stays_float_with_what_follows_it(value, method):
    """Story: a network with one NaN was refused; it is a network whose every other layer is good."""
    graph, images = spoiled(value), networks.residual()[1]
    settings = {} if method == "minmax" else FEW
    quantized = eq.quantize(graph, images, method=method, **settings)
    assert "layer right stays float: its weights hold NaN or infinity" in quantized.warnings
    assert quantized.plan.floats["right"] == "its weights hold NaN or infinity"
    assert quantized.plan.floats["logits"] == "it follows layer right: its weights hold NaN or infinity"
    assert set(quantized.table.weights) == {"stem", "dw", "pw", "left"}
    assert quantized.table.check(graph).integer == quantized.plan.integer
    got = run_integer(graph, quantized.table, {"image": images[0]})["logits"]
    assert not np.isfinite(got).all() and graph.fingerprint == spoiled(value).fingerprint


def test_a_bad_bias_is_told_too():
    graph, images = networks.chain()
    nodes = [replace(n, bias=n.bias * np.nan) if n.name == "second" else n for n in graph]
    found = eq.quantize(Graph(nodes, graph.outputs), images, method="minmax")
    assert found.plan.floats["second"] == "its bias holds NaN or infinity"


def test_nothing_is_left_where_the_first_layer_is_bad():
    graph, images = networks.chain()
    with pytest.raises(
        GraphError, match=r"every.*kept float \(layer first: its weights hold NaN.*nothing to quantize"
    ):
        eq.quantize(spoiled(np.nan, "first", graph), images, method="minmax")


def test_why_no_layer_can_be_integer_is_said(tmp_path):
    """Story: the name of a layer that is not covered and "stay float" was all that was said."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kinds = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (("x", (1, 3, 8, 8)), ("y", None))
    ]
    weight = numpy_helper.from_array(np.ones((3, 4, 2, 2), np.float32), "w")
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up", strides=[1, 2])
    graph = helper.make_graph([node], "up", kinds[:1], kinds[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    onnx.save(model, tmp_path / "up.onnx")
    found = eq.load_onnx(tmp_path / "up.onnx")
    with pytest.raises(
        GraphError, match=r"can be integer \(up: .*strides=\[1, 2\].*\): nothing to quantize"
    ):
        eq.quantize(found, np.ones((2, 3, 8, 8), np.float32), method="minmax")


def test_equalization_leaves_a_bad_layer_alone():
    graph = spoiled(np.inf, "down")
    changed = equalized(graph)
    for name in ("left", "right", "down"):
        np.testing.assert_array_equal(changed[name].weight, graph[name].weight)


def test_a_table_that_runs_a_bad_layer_in_integers_is_refused():
    graph = spoiled(np.nan)
    with pytest.raises(GraphError, match="runs right in integers, which cannot: its weights hold NaN"):
        partition.plan(graph, integer=["right"])
