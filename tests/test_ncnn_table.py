"""ncnn's calibration table: its numbers are the inverse of ours; what is lost is what the docs say."""

import networks
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_onnx_export import table_of

import tvm_easyquant as eq
from tvm_easyquant.network.graph import run
from tvm_easyquant.scales.integer import run_integer
from tvm_easyquant.scales.table import TableError
from tvm_easyquant.writers import ncnn


def lines_of(text):
    return {line.split()[0]: [float(v) for v in line.split()[1:]] for line in text.splitlines()}


def test_scales_are_inverse_per_channel_and_per_group():
    graph, images = networks.residual()
    table = table_of(graph, images, bits=7)
    lines = lines_of(ncnn.dumps(graph, table))
    layers = [n.name for n in graph.compute_nodes]
    assert list(lines) == [*(f"{n}_param_0" for n in layers), *layers]
    np.testing.assert_allclose(lines["stem_param_0"], 1 / table.weights["stem"].astype(float), rtol=1e-12)
    assert len(lines["dw_param_0"]) == 8 and len(lines["right_param_0"]) == 4  # groups, not channels
    widest = table.weights["right"].reshape(4, 3).max(axis=1)
    np.testing.assert_allclose(lines["right_param_0"], 1 / widest.astype(float), rtol=1e-12)
    assert lines["stem"] == [1 / table.activations["image"].scale]  # a 7-bit step is kept


def test_an_unsigned_8_bit_tensor_gets_steps_of_twice_the_size():
    graph, images = networks.chain(relu=True)
    table = table_of(graph, images, bits=8)
    site = table.activations["first.relu"]
    assert (site.zero_point, site.hi) == (0, 255)
    lines = lines_of(ncnn.dumps(graph, table))
    assert lines["second"][0] == pytest.approx(127 / (255 * site.scale), rel=1e-7)
    assert lines["first"][0] == pytest.approx(1 / table.activations["image"].scale, rel=1e-7)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([7, 8]), st.booleans())
def test_round_trip(seed, bits, unsigned):
    """Out and in: every step comes back bit for bit, except the unsigned 8-bit one; then nothing changes."""
    graph, images = networks.chain(seed % 7, relu=True)
    rng = np.random.default_rng(seed)
    table = table_of(
        graph, [x * np.float32(rng.uniform(0.01, 100)) for x in images], bits=bits, unsigned=unsigned
    )
    text = ncnn.dumps(graph, table)
    back = ncnn.loads(text, graph)
    for name, scales in table.weights.items():
        np.testing.assert_array_equal(back.weights[name], scales)
    for name, scale in table.activations.items():
        same = (bits, scale.zero_point) != (8, 0)
        assert (back.activations[name].scale == scale.scale) == same
        assert back.activations[name].scale == pytest.approx(
            scale.scale * (1 if same else 255 / 127), rel=1e-6
        )
    assert ncnn.dumps(graph, back) == text
    again = ncnn.loads(ncnn.dumps(graph, back), graph)
    assert again.activations == back.activations and not again.diff(back)


def test_a_7_bit_network_keeps_its_integers():
    """The steps are the same; only what saturated at 63 would now saturate at 127."""
    graph, images = networks.chain(relu=True)
    table = table_of(graph, images, bits=7)
    back = ncnn.loads(ncnn.dumps(graph, table), graph)
    for x in images:  # calibrated on them: nothing saturates
        a, b = (run_integer(graph, t, {"image": x})["second"] for t in (table, back))
        np.testing.assert_array_equal(a, b)


def test_what_ncnn_computes_in_float_stays_float():
    graph, images = networks.residual()
    back = ncnn.loads(ncnn.dumps(graph, table_of(graph, images, bits=8)), graph)
    plan = back.check(graph)
    assert {n.name for n in graph.compute_nodes} <= plan.integer
    assert {"join", "avg", "gap"} <= set(plan.floats)  # read by no layer: ncnn has no scale for them
    assert {"cat", "pool", "stem.relu", "left.relu"} <= plan.integer
    for x in images[:3]:
        exact = run(graph, {"image": x})["logits"]
        found = run_integer(graph, back, {"image": x})["logits"]
        assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.99


def test_layers_that_disagree_about_a_tensor_get_the_widest_range():
    graph, images = networks.residual()
    table = table_of(graph, images, bits=7)
    text = ncnn.dumps(graph, table).splitlines()
    text = [
        f"{k} {2 * float(v)}" if (k := line.split()[0]) == "right" and (v := line.split()[1]) else line
        for line in text
    ]
    back = ncnn.loads("\n".join(text), graph)
    site = back.check(graph).site_of["join.relu"]
    assert back.activations[site].scale == table.activations[site].scale  # left's, not half of it


def test_commented_and_missing_layers_stay_float():
    graph, images = networks.chain()
    text = ncnn.dumps(graph, table_of(graph, images))
    back = ncnn.loads(text.replace("second ", "#second "), graph)
    assert list(back.weights) == ["first"] and "second" in back.check(graph).floats


def test_names_of_ncnn_s_own():
    graph, images = networks.chain()
    table, names = table_of(graph, images), {"first": "conv_0", "second": "conv_1"}
    text = ncnn.dumps(graph, table, names)
    assert list(lines_of(text)) == ["conv_0_param_0", "conv_1_param_0", "conv_0", "conv_1"]
    assert not ncnn.loads(text, graph, names).diff(ncnn.loads(ncnn.dumps(graph, table), graph))


@pytest.mark.parametrize(
    "edit, why",
    [(lambda t: t + "conv9 1.0\n", r"lines of \['conv9'\], which are no layers of the model; its layers are first, second"),
     (lambda t: t.replace("first_param_0 ", "first_param_0 1.0 "), "first has 5 weight scales; it has 4 channels"),
     (lambda t: t.replace("second ", "second zero "), "line 4: could not convert string to float: 'zero'"),
     (lambda t: t.replace("second ", "second inf "), "scales of second must be positive and finite"),
     (lambda t: t.replace("second ", "second -3 "), "scales of second must be positive and finite"),
     (lambda t: "first\n" + t, "line 1: first has no scale"),
     (lambda t: "", "no layer with both its lines")],
)  # fmt: skip
def test_a_wrong_table_is_named(edit, why):
    graph, images = networks.chain()
    with pytest.raises(TableError, match=why):
        ncnn.loads(edit(ncnn.dumps(graph, table_of(graph, images))), graph)


def test_dead_channels_may_have_an_infinite_scale():
    graph, images = networks.chain()
    graph["first"].weight[..., 1] = 0
    text = ncnn.dumps(graph, table_of(graph, images))
    name, *values = text.splitlines()[0].split()
    values[1] = "inf"  # what ncnn's own tool writes: 127 / 0
    back = ncnn.loads("\n".join([" ".join([name, *values]), *text.splitlines()[1:]]), graph)
    assert back.weights["first"][1] == 1.0


def test_files(tmp_path):
    graph, images = networks.chain()
    table = table_of(graph, images)
    ncnn.save(tmp_path / "net.table", graph, table)
    assert isinstance(ncnn.load(tmp_path / "net.table", graph), eq.ScaleTable)
    with pytest.raises(TableError, match="cannot read the ncnn table"):
        ncnn.load(tmp_path / "no.table", graph)
