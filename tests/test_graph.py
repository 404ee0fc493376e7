"""The float network in numpy, and what becomes integer. No TVM."""

import hashlib
from dataclasses import replace
from math import inf

import networks
import numpy as np
import pytest

from tvm_easyquant.errors import GraphError
from tvm_easyquant.network import graph as graphs
from tvm_easyquant.network.graph import Graph
from tvm_easyquant.network.layout import to_nhwc
from tvm_easyquant.network.node import Node
from tvm_easyquant.network.ops import evaluate, linear
from tvm_easyquant.scales import partition


def test_every_op_runs_and_shapes_agree():
    graph, images = networks.residual()
    seen = {}
    graphs.run(graph, {"image": images[0]}, lambda node, value: seen.update({node.name: value.shape}))
    assert seen == {node.name: node.shape for node in graph}


def test_grouped_convolution_equals_separate_ones():
    b = networks.Builder(1, channels=6)
    b.conv("c", "image", 4, groups=2)
    node, image = b.nodes["c"], to_nhwc(b.images(1)[0])
    whole = evaluate(node, image)
    for g in range(2):
        part = Node("p", "conv2d", ("image",), (1, 10, 10, 2), {**node.attrs, "groups": 1},
                    node.weight[..., 2 * g : 2 * g + 2], node.bias[2 * g : 2 * g + 2])  # fmt: skip
        one = evaluate(part, image[..., 3 * g : 3 * g + 3])
        np.testing.assert_allclose(whole[..., 2 * g : 2 * g + 2], one, rtol=1e-5, atol=1e-6)


def test_macs():
    graph, _ = networks.chain()
    assert [n.macs for n in graph.compute_nodes] == [10 * 10 * 4 * 9 * 3, 10 * 10 * 3 * 4]


def test_fingerprint_sees_names_shapes_and_weights():
    prints = {networks.chain(seed)[0].fingerprint for seed in (0, 1)} | {
        networks.chain(0, size=11)[0].fingerprint
    }
    assert len(prints) == 3 and networks.chain(0)[0].fingerprint in prints


def test_the_fingerprint_is_of_the_form_that_stored_tables_know():
    """Story: dense weights became those of a 1x1 convolution; a stored table knows them as (K, C)."""
    b = networks.Builder(0, size=1, channels=4)
    b.dense("logits", b.flatten("flat", "image"), 3)
    node = b.nodes["logits"]
    assert node.weight.shape == (1, 1, 4, 3) and node.public_weight.shape == (3, 4)
    flat = [("channels_first", False), ("shape", (1, 4))]
    digest = hashlib.sha256(repr(("image", "input", (), (1, 1, 1, 4), [])).encode() + b"--")
    digest.update(repr(("flat", "reshape", ("image",), (1, 4), flat)).encode() + b"--")
    digest.update(repr(("logits", "dense", ("flat",), (1, 3), [])).encode())
    digest.update(np.ascontiguousarray(node.weight[0, 0].T).tobytes() + node.bias.tobytes())
    assert b.graph("logits").fingerprint == digest.hexdigest()


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_dense_layer_sums_in_one_order_however_its_weights_lie(order):
    b = networks.Builder(0, size=1, channels=257)
    b.dense("logits", b.flatten("flat", "image"), 33)
    node, x = b.nodes["logits"], b.rng.standard_normal((1, 257)).astype(np.float32)
    laid = replace(node, weight=np.array(node.weight, order=order))
    np.testing.assert_array_equal(
        linear(x, laid, laid.weight), x @ np.ascontiguousarray(node.public_weight).T
    )


def test_bad_graphs_name_the_node():
    image = Node("image", "input", (), (1, 4, 4, 3))
    with pytest.raises(GraphError, match="two nodes are named image"):
        Graph([image, image], ["image"])
    with pytest.raises(GraphError, match="relu reads nothing"):
        Graph([image, Node("relu", "clip", ("nothing",), (1, 4, 4, 3), networks.RELU)], ["relu"])
    with pytest.raises(GraphError, match="clip takes attributes"):
        Node("relu", "clip", ("image",), (1, 4, 4, 3), {"lo": 0})


@pytest.mark.parametrize(
    "feed, message",
    [
        ({"picture": np.zeros((1, 3, 10, 10), np.float32)}, "picture.*inputs are.*image"),
        ({"image": np.zeros((1, 3, 10, 11), np.float32)}, r"shape \(1, 3, 10, 11\).*\(1, 3, 10, 10\)"),
        ({"image": np.zeros((1, 3, 10, 10))}, "float64.*float32"),
        ({"image": np.full((1, 3, 10, 10), np.nan, np.float32)}, "image holds NaN"),
    ],
)
def test_wrong_inputs_are_named(feed, message):
    graph, _ = networks.chain()
    with pytest.raises(GraphError, match=message):
        graphs.run(graph, feed)


def test_plan_of_the_residual_network():
    graph, _ = networks.residual()
    plan = partition.plan(graph)
    assert plan.coverage(graph) == (100, False) and plan.floats == {}
    assert plan.accumulators == {"logits"}
    assert plan.fused["join.relu"] == "join" and plan.fused["stem.relu"] == "stem"
    assert plan.site_of["left.relu"] == plan.site_of["right.relu"] == plan.site_of["pool"]
    assert plan.sites["left.relu"].nonnegative and plan.sites["left.relu"].readers == ("down",)
    assert not plan.sites["pw"].nonnegative and plan.sites["pw"].readers == ()
    assert "join" not in plan.site_of and "logits" not in plan.site_of


def test_skip_makes_an_island_and_unknown_names_are_listed():
    graph, _ = networks.residual()
    plan = partition.plan(graph, ["pw"])
    assert plan.floats["pw"] == "kept float by skip"
    assert plan.floats["join"] == "an input is float"
    assert "left" in plan.integer and 0 < plan.coverage(graph).percent < 100
    with pytest.raises(GraphError, match="skip names.*pww.*stem, dw, pw"):
        partition.plan(graph, ["pww"])


def test_nothing_to_quantize_is_an_error():
    b = networks.Builder()
    b.relu("relu", "image")
    with pytest.raises(GraphError, match="no convolution and no dense"):
        partition.plan(b.graph("relu"))
    graph, _ = networks.chain()
    with pytest.raises(GraphError, match="every convolution"):
        partition.plan(graph, ["first", "second"])


def test_a_relu_that_others_read_around_is_not_fused():
    b = networks.Builder()
    x = b.conv("c", "image", 3)
    y = b.relu("r", x)
    b.conv("d", b.join("j", x, y), 2)
    plan = partition.plan(b.graph("d"))
    assert plan.fused == {} and plan.site_of["c"] != plan.site_of["r"]


def test_an_average_pool_that_does_not_count_its_padding_stays_float():
    b = networks.Builder()
    x = b.conv("c", "image", 3)
    attrs = dict(pool_size=(3, 3), strides=(1, 1), padding=(1,) * 4, count_include_pad=False)
    b.add("p", "avg_pool2d", [x], (1, 10, 10, 3), attrs)
    b.conv("d", "p", 2)
    plan = partition.plan(b.graph("d"))
    assert "padding" in plan.floats["p"] and plan.accumulators == {"c", "d"}


def test_nonnegative_is_proven_through_pools_adds_and_concats():
    b = networks.Builder()
    x = b.relu("r", b.conv("c", "image", 4), hi=inf)
    p = b.pool("p", x)
    b.concat("k", p, p)
    b.join("j", p, p)
    b.conv("d", "k", 2)
    proven = partition.nonnegative_tensors(b.graph("d"))
    assert {"r", "p", "k", "j"} <= proven and not {"c", "d", "image"} & proven
