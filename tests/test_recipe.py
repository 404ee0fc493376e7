"""One rounding per layer, zero points, one scale per channel before depthwise layers: what they mean in the
network, in the table and in what is written. No TVM here but where a module is compiled.

A LeakyReLU network lost 6 dB to what these save: the layer was rounded before its function, the stored range
was symmetric, and a depthwise layer's input had one scale for channels of very different size.
"""

import json
from math import inf

import networks
import numpy as np
import pytest

import tvm_easyquant as eq
from tvm_easyquant.errors import TableError
from tvm_easyquant.network.channelwise import channelwise, factors, place
from tvm_easyquant.network.graph import Graph, GraphError, run
from tvm_easyquant.scales.integer import run_integer
from tvm_easyquant.scales.numerics import NEW_SWITCHES, ConfigError, QuantConfig
from tvm_easyquant.scales.partition import plan
from tvm_easyquant.scales.table import ScaleTable

HARD_SWISH = ("divide", ("multiply", "x", ("clip", ("add", "x", 3.0), 0.0, 6.0)), 6.0)
SILU = ("multiply", "x", ("sigmoid", "x"))
SLOPES = tuple(np.linspace(-0.2, 0.6, 8).astype(np.float32).tolist())


def function(b, name, x, expression):
    return b.add(name, "elementwise", [x], b.nodes[x].shape, dict(expression=expression))


BEHIND = {
    "nothing": lambda b, x: x,
    "relu": lambda b, x: b.relu("f", x),
    "relu6": lambda b, x: b.relu("f", x, hi=6.0),
    "leaky relu": lambda b, x: function(b, "f", x, ("leaky_relu", "x", 0.1)),
    "prelu": lambda b, x: function(b, "f", x, ("leaky_relu", "x", SLOPES)),
    "hard swish": lambda b, x: function(b, "f", x, HARD_SWISH),
    "silu": lambda b, x: function(b, "f", x, SILU),
}


def before_depthwise(kind, seed=0):
    """conv - function - depthwise - conv, whose channels are of very different size: (graph, feeds)."""
    b = networks.Builder(seed)
    x = b.conv("first", "image", 8)
    for array in (b.nodes["first"].weight, b.nodes["first"].bias):
        array *= np.float32(2) ** -np.arange(8)
    x = BEHIND[kind](b, x)
    x = b.relu("dw.relu", b.conv("dw", x, 8, groups=8))
    b.conv("last", x, 4, kernel=1)
    return b.graph("last"), [{"image": x} for x in b.images(6)]


def everything(seed=0):
    """Functions behind a layer, an add, a product, window and whole average pools, a dense layer."""
    b = networks.Builder(seed)
    x = function(b, "a", b.conv("first", "image", 8), ("leaky_relu", "x", 0.1))
    y = function(b, "b", b.conv("dw", x, 8, groups=8), HARD_SWISH)
    z = b.conv("pw", y, 8, kernel=1)
    x = function(b, "c", b.join("sum", x, z), SILU)
    g = function(b, "d", b.conv("gate", b.global_pool("gap", x), 8, kernel=1), ("sigmoid", "x"))
    x = function(b, "e", b.add("product", "mul", [x, g], b.nodes[x].shape, {}), ("leaky_relu", "x", 0.25))
    x = function(b, "f", b.pool("avg", x, "avg_pool2d", 2, 1), ("tanh", "x"))
    x = function(b, "h", b.conv("slopes", x, 8), ("leaky_relu", "x", SLOPES))
    x = b.flatten("flat", b.global_pool("gap2", x))
    x = function(b, "i", b.dense("hidden", x, 8), ("leaky_relu", "x", SLOPES))
    b.dense("logits", x, 5)
    return b.graph("logits"), [{"image": x} for x in b.images(6)]


def decibel(graph, table, feeds):
    found = [(run(graph, f), run_integer(graph, table, f)) for f in feeds]
    pairs = [(a[t].ravel(), b[t].ravel()) for a, b in found for t in a]
    a, b = (np.concatenate(side).astype(np.float64) for side in zip(*pairs, strict=True))
    return 10 * np.log10((a @ a) / ((a - b) @ (a - b)))


@pytest.mark.parametrize("kind", BEHIND)
def test_a_divided_network_is_the_same_network(kind):
    graph, feeds = before_depthwise(kind)
    tensor = graph["dw"].inputs[0]
    assert place(graph, tensor).name == "first"
    f = factors(np.float64([4, 2, 1, 0.5, 1e-9, 0, 3, 0.3]))
    assert f[0] == 1 and f[4] == np.float32(1e-4) and f[5] == 1  # a channel of zeros keeps its size
    other = channelwise(graph, {tensor: f})
    assert [n.name for n in other] == [n.name for n in graph] and other.fingerprint != graph.fingerprint
    for feed in feeds[:2]:
        (a,), (b,) = run(graph, feed).values(), run(other, feed).values()
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(a).max())


@pytest.mark.parametrize("kind", BEHIND)
@pytest.mark.parametrize("bits", [7, 8])
def test_factors_of_channels_save_what_small_channels_lose(kind, bits):
    graph, feeds = before_depthwise(kind)
    found = [eq.quantize(graph, feeds, bits=bits, grid=8, channel_factors=on) for on in (False, True)]
    without, with_ = (decibel(graph, q.table, feeds) for q in found)
    assert not found[0].table.factors and list(found[1].table.factors) == [graph["dw"].inputs[0]]
    assert with_ > without - 0.1 and (kind == "relu6" or with_ > without + 0.5), (without, with_)


def test_only_what_depthwise_layers_alone_read_is_divided():
    b = networks.Builder()
    x = b.conv("first", "image", 8)
    b.conv("dw", x, 8, groups=8)
    b.conv("full", x, 8)
    assert place(b.graph("dw", "full"), "first") is None  # another layer reads it, too
    assert place(b.graph("dw"), "first") is None
    del b.nodes["full"]
    assert place(b.graph("dw"), "first").name == "first"
    assert place(b.graph("dw", "first"), "first") is None  # it is an output
    assert place(b.graph("dw"), "image") is None  # no layer made it
    for names, message in (("image", "no tensor that only depthwise"), ("nobody", "nobody has factors")):
        with pytest.raises(GraphError, match=message):
            channelwise(b.graph("dw"), {names: np.ones(3, np.float32)})
    with pytest.raises(GraphError, match="first has 3 factors for its 8 channels"):
        channelwise(b.graph("dw"), {"first": np.ones(3, np.float32)})


def test_every_function_behind_what_requantizes_is_fused():
    graph, _ = everything()
    names = set("abcdefhi")
    assert set(plan(graph, functions=True).fused) == names
    without = plan(graph)
    assert not without.fused and set(without.floats) == {"h", "gap2", "flat", "i"}
    assert "its numbers differ by channel" in without.floats["h"]


def test_a_function_that_others_wait_for_is_not_fused():
    b = networks.Builder()
    x = b.conv("first", "image", 8)
    y = function(b, "f", x, ("leaky_relu", "x", SLOPES))
    b.conv("last", b.join("sum", x, y), 4)
    found = plan(b.graph("last"), functions=True)
    assert not found.fused and "no layer that only it reads" in found.floats["f"]


@pytest.mark.parametrize("bits", [7, 8])
def test_the_recipe_beats_the_form_before_it(bits):
    graph, feeds = everything()
    new = eq.quantize(graph, feeds, bits=bits, grid=8)
    off = dict.fromkeys(NEW_SWITCHES, False)
    old = eq.quantize(graph, feeds, bits=bits, grid=8, **off)
    assert new.plan.fused and not old.plan.fused
    assert decibel(graph, new.table, feeds) > decibel(graph, old.table, feeds) + 2
    assert any(s.zero_point not in (0, 64, 128) for s in new.table.activations.values())


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("seed", range(2))
def test_compiled_it_is_the_numpy_network(bits, seed):
    pytest.importorskip("tvm.relay")
    for graph, feeds in (everything(seed), *(before_depthwise(kind, seed) for kind in ("relu6", "prelu"))):
        q = eq.quantize(graph, feeds, bits=bits, method="minmax", fuse_functions=True, asymmetric=True,
                        channel_factors=True)  # fmt: skip
        executor = eq.Executor(q.build())
        for feed in feeds[:2]:
            for mine, theirs in zip(
                run_integer(graph, q.table, feed).values(), executor(feed), strict=True
            ):
                np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("bits", [7, 8])
def test_exported_it_is_what_onnx_runtime_computes(bits):
    pytest.importorskip("onnxruntime", minversion="1.22")
    from tvm_easyquant.writers.verify import verify

    for graph, feeds in (everything(), *map(before_depthwise, BEHIND)):
        q = eq.quantize(graph, feeds, bits=bits, grid=8)
        found = verify(graph, q.table, feeds[:2])
        assert found.unexplained == 0, str(found)


def test_slopes_of_a_prelu_are_read_from_onnx():
    rng = np.random.default_rng(0)
    weight, slope = rng.standard_normal((8, 3, 3, 3)).astype(np.float32), np.float32(SLOPES)
    nodes = [
        ("Conv", ["x", "w"], ["a"], "first", dict(kernel_shape=[3, 3])),
        ("PRelu", ["a", "slope"], ["b"], "f", {}),
        ("Conv", ["b", "v"], ["y"], "last", dict(kernel_shape=[1, 1])),
    ]
    constants = {
        "w": weight,
        "slope": slope.reshape(8, 1, 1),
        "v": weight[:4, :, 0, :1].repeat(8, 1)[:, :8],
    }
    constants["v"] = rng.standard_normal((4, 8, 1, 1)).astype(np.float32)
    model = networks.onnx_model(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 4, 6, 6]}, constants)
    graph = eq.load(model)
    assert [n.op for n in graph] == ["input", "conv2d", "elementwise", "conv2d"]
    feeds = [{"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(4)]
    q = eq.quantize(graph, feeds, bits=8, grid=8)
    assert not q.plan.floats and decibel(graph, q.table, feeds) > 30


# -- the table


@pytest.fixture(scope="module")
def made():
    graph, feeds = before_depthwise("leaky relu")
    return graph, eq.quantize(graph, feeds, grid=4).table


def test_a_table_with_factors_comes_back(made):
    graph, table = made
    tree = json.loads(table.to_json())
    assert tree["version"] == 2 and tree["factors"].keys() == {"f"}
    again = ScaleTable.from_json(table.to_json())
    assert again.to_json() == table.to_json() and not again.diff(table)
    prepared = again.prepared(graph)
    assert prepared is not graph and again.prepared(prepared) is prepared and again.check(prepared)


def test_a_table_of_version_1_has_none_of_it(made):
    graph, _ = made
    old = eq.quantize(graph, before_depthwise("leaky relu")[1], grid=4,
                      **dict.fromkeys(NEW_SWITCHES, False)).table  # fmt: skip
    tree = json.loads(old.to_json())
    assert tree["version"] == 1 and not {*NEW_SWITCHES, "wide"} & set(tree["config"])
    again = ScaleTable.from_json(old.to_json())
    assert again.config == old.config and again.to_json() == old.to_json()
    assert not again.config.how.asymmetric and "f" not in again.check(graph).fused
    for change, message in (
        ({"factors": {"f": [1.0] * 8}}, "'factors', which version 1 does not know"),
        ({"config": {**tree["config"], "asymmetric": True}}, "which version 1 does not know"),
        ({"version": 4}, "version 4; this release reads versions 1 to 3"),
    ):
        with pytest.raises(TableError, match=message):
            ScaleTable.from_json(json.dumps({**tree, **change}))


@pytest.mark.parametrize("bad", [0.0, -1.0, inf, float("nan")])
def test_a_factor_that_is_no_size_is_refused(made, bad):
    tree = json.loads(made[1].to_json())
    tree["factors"]["f"][3] = bad
    with pytest.raises(
        TableError, match=r"the factors of f must be a list of positive, finite numbers|NaN|Inf"
    ):
        ScaleTable.from_json(json.dumps(tree))


def test_factors_that_do_not_fit_the_network_are_named(made):
    graph, table = made
    tree = json.loads(table.to_json())
    for factors_, message in (({"f": [1.0]}, "f has 1 factors for its 8 channels"),
                              ({"dw.relu": [1.0] * 8}, "dw.relu has factors, but is no tensor that")):  # fmt: skip
        wrong = ScaleTable.from_json(json.dumps({**tree, "factors": factors_}))
        with pytest.raises(TableError, match=message):
            run_integer(graph, wrong, {})


def test_a_zero_point_beyond_uint8_is_refused(made):
    tree = json.loads(made[1].to_json())
    for zero in (-1, 256):
        tree["activations"]["f"]["zero_point"] = zero
        with pytest.raises(TableError, match=f"zero point {zero}"):
            ScaleTable.from_json(json.dumps(tree))


def test_the_papers_method_stays_as_it_is():
    for name in NEW_SWITCHES:
        assert not getattr(QuantConfig(method="easyquant").how, name)
        with pytest.raises(ConfigError, match=f"{name}=True is no part of the paper's method"):
            QuantConfig(method="easyquant", **{name: True})
        assert getattr(QuantConfig().how, name) and QuantConfig(**{name: True}) == QuantConfig()


def test_a_network_of_relus_has_nothing_of_it_but_its_input():
    graph, images = networks.residual()
    new = eq.quantize(graph, [{"image": x} for x in images], grid=4, channel_factors=False)
    assert isinstance(new.graph, Graph)
    assert {n for n, s in new.table.activations.items() if s.zero_point not in (0, 64, 128)} <= {
        "image",
        "pw",
    }
