"""Cross-layer equalization: another network of the same outputs, bit for bit. No TVM but where it says so."""

from dataclasses import replace

import networks
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_easyquant.network.equalize import equalized
from tvm_easyquant.network.graph import Graph, run
from tvm_easyquant.scales.integer import run_integer
from tvm_easyquant.scales.numerics import ConfigError, QuantConfig
from tvm_easyquant.scales.table import ScaleTable, TableError
from tvm_easyquant.writers import ncnn


def mobile(seed=0, spread=6, hi=np.inf):
    """conv - ReLU - depthwise - ReLU - two convolutions, out of balance by up to ``spread`` at both places."""
    b = networks.Builder(seed)
    x = b.relu("stem.relu", b.conv("stem", "image", 8), hi=hi)
    x = b.relu("dw.relu", b.conv("dw", x, 8, groups=8), hi=hi)
    left = b.conv("left", x, 6, kernel=1)
    right = b.conv("right", x, 6, kernel=3)
    b.dense("logits", b.flatten("flat", b.global_pool("gap", b.join("join", left, right))), 4)
    rng = np.random.default_rng(seed)
    one, two = (np.float32(spread) ** rng.uniform(-1, 1, (2, 8))).astype(np.float32)
    nodes = b.graph("logits").nodes.copy()
    for name, made, read in (("stem", one, 1), ("dw", two, one), ("left", 1, two), ("right", 1, two)):
        n, read = nodes[name], read if name == "dw" else np.reshape(read, (-1, 1))
        nodes[name] = replace(n, weight=n.weight * made / read, bias=n.bias * made)
    return Graph(nodes.values(), ["logits"]), b.images(4)


def reaches(graph):
    """{layer: largest weight by output channel}, {layer: largest weight by input channel}."""
    out = {n.name: np.abs(n.weight).max(axis=(0, 1, 2)) for n in graph if n.op == "conv2d"}
    left, right = graph["left"], graph["right"]
    both = np.maximum(np.abs(left.weight).max(axis=(0, 1, 3)), np.abs(right.weight).max(axis=(0, 1, 3)))
    return out, {"dw": out["dw"], "both": both}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.sampled_from([1.5, 6.0, 200.0]))
def test_outputs_keep_every_bit_and_channels_are_balanced(seed, spread):
    graph, images = mobile(seed, spread)
    other = equalized(graph)
    assert list(other.nodes) == list(graph.nodes) and other.outputs == graph.outputs
    for image in images:
        a, b = run(graph, {"image": image}), run(other, {"image": image})
        np.testing.assert_array_equal(a["logits"], b["logits"])
    out, reads = reaches(other)
    for first, second in ((out["stem"], reads["dw"]), (out["dw"], reads["both"])):
        assert (np.abs(np.log2(first / second)) <= 1.0 + 1e-6).all()  # s is off by half a power of two
    assert equalized(other) is other


def test_where_it_may_not_reach_nothing_changes():
    graph, _ = mobile(hi=6.0)
    assert equalized(graph) is graph  # ReLU6 does not scale
    b = networks.Builder()
    x = b.relu("relu", b.conv("first", "image", 8))
    y = b.conv("second", x, 8)
    b.join("join", x, y)  # the add sees the ReLU
    graph = b.graph("join")
    assert equalized(graph) is graph
    b = networks.Builder()
    x = b.relu("relu", b.conv("first", "image", 8))
    b.conv("second", x, 8, groups=4)
    graph = b.graph("second")
    assert equalized(graph) is graph
    b = networks.Builder()
    b.conv("second", b.relu("relu", b.conv("first", "image", 8)), 8)
    graph = b.graph("second")
    for outputs in (("second", "relu"), ("second", "first")):  # a user of the network sees them
        seen = Graph(graph.nodes.values(), outputs)
        assert equalized(seen) is seen


def test_dead_channels_stay():
    graph, images = mobile()
    stem, dw = graph["stem"], graph["dw"]
    w, v = stem.weight.copy(), dw.weight.copy()
    w[..., 0], v[..., 1] = 0, 0
    nodes = {**graph.nodes, "stem": replace(stem, weight=w), "dw": replace(dw, weight=v)}
    graph = Graph(nodes.values(), graph.outputs)
    other = equalized(graph)
    assert all(np.isfinite(n.weight).all() and np.isfinite(n.bias).all() for n in other.compute_nodes)
    np.testing.assert_array_equal(
        run(graph, {"image": images[0]})["logits"], run(other, {"image": images[0]})["logits"]
    )


def test_as_a_setting():
    import tvm_easyquant as eq

    pytest.importorskip("tvm")
    graph, images = mobile(3)
    q = eq.quantize(graph, images, method="minmax", equalize=True)
    plain = eq.quantize(graph, images, method="minmax")
    assert q.graph.fingerprint != graph.fingerprint == plain.graph.fingerprint
    want = np.stack([run(graph, {"image": x})["logits"] for x in images])

    def outputs(executor):
        return np.stack([executor({"image": x})[0] for x in images])

    def noise(found):
        return ((found - want) ** 2).sum()

    mine = outputs(eq.Executor(q.build("llvm")))
    assert noise(mine) < noise(outputs(eq.Executor(plain.build("llvm"))))
    table = ScaleTable.from_json(q.table.to_json())
    assert table.config.equalize
    # the table with the model as it was loaded
    again = eq.Executor(eq.build(eq.rewrite(graph, table), "llvm"))
    np.testing.assert_array_equal(outputs(again), mine)
    numpy = [run_integer(table.prepared(graph), table, {"image": x})["logits"] for x in images]
    np.testing.assert_array_equal(np.stack(numpy), mine)
    with pytest.raises(TableError, match="give table.prepared"):
        table.check(graph)
    with pytest.raises(TableError, match="equalized weights, which ncnn's model does not have"):
        ncnn.dumps(q.graph, table)


def test_the_paper_takes_none():
    with pytest.raises(ConfigError, match="equalize=True is no part of the method easyquant"):
        QuantConfig(method="easyquant", equalize=True)
    with pytest.raises(ConfigError, match="equalize is 'yes'"):
        QuantConfig(equalize="yes")
