"""The search with errors weighted by their effect at the network's outputs. No TVM."""

import json
from dataclasses import replace

import networks
import numpy as np
import pytest
from test_search import searched

from topi_ext.reference import quantize
from tvm_easyquant.errors import TableError
from tvm_easyquant.network.gradient import effects
from tvm_easyquant.network.graph import run
from tvm_easyquant.network.ops import evaluate, linear
from tvm_easyquant.scales.calibrate import calibrate, start_table
from tvm_easyquant.scales.integer import Scales, run_integer
from tvm_easyquant.scales.numerics import ConfigError, QuantConfig, scale_between
from tvm_easyquant.scales.partition import plan
from tvm_easyquant.scales.table import ScaleTable
from tvm_easyquant.search import wide
from tvm_easyquant.search.bits import compose
from tvm_easyquant.search.driver import APART, EFFECT_IMAGES, TOGETHER


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("seed", range(3))
def test_a_range_is_that_of_plain_loops(bits, seed):
    """The first layer's input: both ends together, then apart, by the squared error at the outputs."""
    graph, images = networks.chain(seed, size=6)
    images = networks.Builder(seed, size=6).images(EFFECT_IMAGES[bits] + 2)
    config = QuantConfig(bits=bits, grid=20, wide=())
    start = start_table(graph, plan(graph), calibrate(graph, plan(graph), images, config), config)
    first, some = graph.compute_nodes[0], images[: EFFECT_IMAGES[bits]]
    known = effects(graph, [{"image": x} for x in some], [first.name])[first.name]

    def error(s):
        found = 0.0
        for x, effect in zip(some, known, strict=True):
            x = x.transpose(0, 2, 3, 1)
            q = quantize(x, s.scale, s.zero_point, s.lo, s.hi).astype(np.float64) - s.zero_point
            move = linear(q * s.scale, first, first.weight) + first.bias - evaluate(first, x)
            found += np.square(move * effect.value).sum()
        return found

    middle = start.activations["image"]
    middle = min([middle, *(middle.with_scale(middle.scale * f) for f in TOGETHER)], key=error)
    low, high = (middle.scale * (q - middle.zero_point) for q in (middle.lo, middle.hi))
    wanted = min(
        [middle, *(scale_between(low * a, high * b, bits) for a in APART for b in APART)], key=error
    )
    table = searched(graph, images, bits=bits, grid=20, wide=())
    assert table.activations["image"] == wanted


def test_an_error_that_the_outputs_do_not_see_does_not_count():
    """Story: the largest numbers of a tensor went where the network ignores them, and took all of its steps."""
    b = networks.Builder(size=12, channels=2)
    mixed = b.conv("mixed", "image", 2, kernel=1)
    split = b.conv("split", mixed, 2, kernel=1)
    b.conv("last", split, 1, kernel=1)
    for name, weight in (("mixed", [[1, 0], [0, 100]]), ("split", [[1, 0], [0, 1]]), ("last", [[1], [0]])):
        weight = np.array(weight, np.float32)[None, None]
        b.nodes[name] = replace(b.nodes[name], weight=weight, bias=np.zeros_like(b.nodes[name].bias))
    graph, images = b.graph("last"), b.images(10)
    scales = {
        effect: searched(graph, images, bits=8, effect=effect).activations[mixed]
        for effect in (True, False)
    }
    assert scales[True].scale < 0.45 * scales[False].scale  # as far as its candidates go: 0.6 * 0.7
    for objective in ("cosine", "hessian"):  # they are the errors of others
        with_, without = (
            searched(graph, images, bits=8, objective=objective, effect=effect) for effect in (True, False)
        )
        assert with_.activations == without.activations


def noisy_site(bits=7, **settings):
    """A network of whose sites the small one makes most of the noise, and the table of its search."""
    b = networks.Builder(seed=3, size=16, channels=3)
    x = b.conv("narrow", "image", 2, kernel=1)
    x = b.conv("spread", x, 24, kernel=1)
    x = b.conv("deep", x, 24)
    b.conv("last", x, 8)
    graph, images = b.graph("last"), b.images(6)
    return graph, images, searched(graph, images, bits=bits, grid=10, **settings)


def test_the_site_of_most_noise_gets_8_bits_within_the_cost():
    graph, images, table = noisy_site()
    assert table.config.wide and set(table.config.wide) <= {"image", "narrow"}  # "deep" costs too much
    cost = sum(graph[n].macs for n in ("narrow", "spread"))
    assert cost <= wide.COST * graph.macs < graph["deep"].macs
    for name, scale in table.activations.items():
        read = any(name in graph[r].inputs for r in ("narrow", "spread", "deep", "last"))
        assert scale.hi == (255 if name in table.config.wide or not read else 127)
    off = noisy_site(wide=())[2]
    assert off.config.wide == () and all(off.activations[name].hi == 127 for name in table.config.wide)
    assert noise(graph, table, images) < noise(graph, off, images)
    said = noisy_site(wide=table.config.wide)[2]
    assert said.to_json() == table.to_json() == ScaleTable.from_json(table.to_json()).to_json()
    for name in ("narrow", "spread"):  # the readers' weights keep 7
        assert np.abs(Scales.of_table(graph, plan(graph), table).integer_weight(graph[name])).max() <= 63


def noise(graph, table, images):
    outputs = [
        (run(graph, {"image": x})["last"], run_integer(graph, table, {"image": x})["last"]) for x in images
    ]
    return sum(float(np.square(y - o).sum()) for o, y in outputs)


def test_only_sites_of_7_bits_are_chosen():
    assert noisy_site(bits=8)[2].config.wide is None
    table = noisy_site(layer_bits={"narrow": 8, "spread": 8})[2]
    assert not set(table.config.wide) & {"image", "narrow"}
    assert noisy_site(effect=False)[2].config.wide == ()


def test_a_composed_table_has_the_wide_sites_of_its_parts():
    graph, images, seven = noisy_site()
    tables = {7: seven, 8: noisy_site(bits=8)[2]}
    feeds = [{"image": x} for x in images]
    config = QuantConfig(bits=7)
    same = compose(graph, config, tables, feeds)
    assert same.config.wide == seven.config.wide and same.activations == seven.activations
    mixed = compose(graph, replace(config, layer_bits={"narrow": 8}), tables, feeds)
    assert set(mixed.config.wide) == set(seven.config.wide) - {"image"}
    assert mixed.activations["image"] == tables[8].activations["image"]
    mixed.check(graph)


def test_wide_of_bad_input_is_refused_in_a_line():
    with pytest.raises(ConfigError, match="^wide is 7; give a list of names$"):
        QuantConfig(wide=7)
    for method in ("easyquant", "imported"):
        with pytest.raises(ConfigError, match=f"^wide is no part of the method {method}"):
            QuantConfig(method=method, wide=("a",), integer=("a",) if method == "imported" else None)
    with pytest.raises(ConfigError, match=r"^wide names \['nonsense'\], no tensors of the model$"):
        noisy_site(wide=("nonsense",))
    assert QuantConfig(method="minmax").wide == () and QuantConfig(wide={"b", "a"}).wide == ("a", "b")
    graph, _, table = noisy_site()
    other = replace(table, config=replace(table.config, wide=("nonsense",)))
    with pytest.raises(TableError, match="does not fit model test: wide names"):
        other.check(graph)
    old = json.loads(noisy_site(method="minmax")[2].to_json())
    assert old["version"] == 1 and "wide" not in old["config"] and "effect" not in old["config"]
    old["config"]["wide"] = []
    with pytest.raises(TableError, match="which version 1 does not know"):
        ScaleTable.from_json(json.dumps(old))
    assert json.loads(noisy_site(method="minmax", wide=("narrow",))[2].to_json())["version"] == 2
