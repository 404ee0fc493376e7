"""Ranges, settings and the scale table. No TVM."""

import json
from dataclasses import asdict, replace
from math import inf

import networks
import numpy as np
import pytest

from tvm_easyquant.files import replacing
from tvm_easyquant.scales.calibrate import calibrate, start_table
from tvm_easyquant.scales.numerics import (
    ConfigError,
    QuantConfig,
    Scale,
    integer_limits,
    quantize_bias,
    quantize_weight,
    scale_for,
    steps,
    weight_scales,
)
from tvm_easyquant.scales.partition import plan
from tvm_easyquant.scales.table import ScaleTable, TableError


def test_the_ranges_of_the_paper():
    assert [steps(b, s) for b in (7, 8) for s in (True, False)] == [63, 127, 127, 255]
    assert scale_for(6.3, 7, True) == Scale(0.1, 64, 1, 127)
    assert scale_for(25.5, 8, False) == Scale(0.1, 0, 0, 255)
    assert scale_for(0.0, 7, True).scale == 1


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(bits=6), "bits is 6; use 7 or 8"),
        (dict(bits=True), "bits is True; use 7 or 8"),
        (dict(bits={"conv1": 6}), "bits of layer conv1 is 6; use 7 or 8"),
        (dict(bits={"*": "float"}), "bits is 'float'; use 7 or 8"),
        (dict(layer_bits={"conv1": "8"}), "bits of layer conv1 is '8'"),
        (dict(method="magic"), "method is 'magic'.*easyquant"),
        (dict(search_images=0), "search_images is 0"),
        (dict(grid=0), "grid is 0"),
        (dict(alpha=1.5), "alpha 1.5"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        QuantConfig(**settings)


@pytest.mark.parametrize(
    "values", [(0.0, 0, 0, 255), (np.inf, 0, 0, 255), (0.1, 300, 0, 255), (1, 5, 9, 3)]
)
def test_impossible_scales_are_refused(values):
    with pytest.raises(ConfigError):
        Scale(*values)


def test_integer_limits_of_relu_relu6_and_none():
    s = Scale(0.1, 64, 1, 127)
    assert integer_limits(s, (-inf, inf)) == (1, 127)
    assert integer_limits(s, (0.0, inf)) == (64, 127)
    assert integer_limits(s, (0.0, 6.0)) == (64, 124)
    assert integer_limits(Scale(0.1, 0, 0, 127), (0.0, 1e30)) == (0, 127)


def test_weights_are_clipped_hard_and_zero_channels_are_safe():
    w = np.array([[1.0, 0.0, -2.0], [-0.5, 0.0, 1.0]], np.float32)
    scales = weight_scales(w, 7)
    assert scales[1] == 1
    assert quantize_weight(w, scales, 7).tolist() == [
        [63, 0, -63],
        [-31, 0, 31],
    ]  # 31.5 lies just below in float32
    assert quantize_weight(w, scales / 2, 7).tolist() == [[63, 0, -63], [-63, 0, 63]]


def test_a_switched_off_channel_keeps_its_bias():
    """Story: MobileNetV1-0.75's first convolution has channels whose batch norm is zero; folding left
    weights of 1e-14 beside a bias of -1.6, and the bias no longer fitted int32."""
    w, bias = np.array([[1e-14, 0.0, 1.0]], np.float32), np.array([-1.6384, 3.0, 0.1], np.float32)
    scales = weight_scales(w, 7, bias, 0.02)
    integers = quantize_bias(bias, 0.02, scales, "conv1")
    np.testing.assert_allclose(integers * scales * 0.02, bias, rtol=1e-6)
    with pytest.raises(OverflowError, match="layer conv1: the bias of channel 0"):
        quantize_bias(bias, 0.02, weight_scales(w, 7), "conv1")


def table(bits=7, seed=0):
    graph, images = networks.residual(seed)
    config = QuantConfig(bits=bits, method="minmax")
    plan_ = plan(graph, config.skip)
    return graph, start_table(graph, plan_, calibrate(graph, plan_, images, config), config)


def test_the_table_round_trips_bit_for_bit(tmp_path):
    graph, mine = table()
    mine.save(tmp_path / "t.json")
    again = ScaleTable.load(tmp_path / "t.json")
    assert mine.diff(again) == [] and again.config == mine.config and again.model == graph.fingerprint
    assert again.to_json() == mine.to_json()
    again.check(graph)


def rounded(graph, mine, seed=0):
    """A table with rounding and biases of its own."""
    rng = np.random.default_rng(seed)
    layers = {name: graph[name] for name in mine.weights}
    rounding = {
        n: rng.integers(-1, 2, (node.weight.size // node.channels, node.channels)).astype(np.int8)
        for n, node in layers.items()
    }
    biases = {n: (node.bias + rng.standard_normal(node.channels) * 0.01).astype(np.float32)
              for n, node in layers.items()}  # fmt: skip
    return replace(mine, rounding=rounding, biases=biases)


def test_rounding_and_biases_round_trip_and_are_checked():
    graph, plain = table()
    mine = rounded(graph, plain)
    again = ScaleTable.from_json(mine.to_json())
    assert mine.diff(again) == [] and again.to_json() == mine.to_json() and again.check(graph)
    assert not {"rounding", "biases"} & set(json.loads(plain.to_json()))
    assert "rounding stem: only in the second" in plain.diff(mine)
    assert any(line.startswith("bias logits: 5 of 5") for line in mine.diff(rounded(graph, plain, 1)))
    with pytest.raises(TableError, match=r"has rounding of \['gap'\], which are no integer layers"):
        replace(mine, rounding={"gap": mine.rounding["stem"]}).check(graph)
    with pytest.raises(TableError, match=r"rounding of layer stem is \(1, 8\), its weights are \(27, 8\)"):
        replace(mine, rounding={"stem": mine.rounding["stem"][:1]}).check(graph)
    with pytest.raises(TableError, match="bias of layer stem"):
        replace(mine, biases={"stem": mine.biases["stem"][:1]}).check(graph)
    data = json.loads(mine.to_json())
    for change in ({"rounding": {"stem": "eJw"}}, {"biases": {"stem": [float("nan")]}}):
        with pytest.raises(TableError, match="damaged"):
            ScaleTable.from_json(json.dumps({**data, **change}))


def test_bits_by_layer_are_one_setting_however_they_are_given():
    mixed = QuantConfig(bits={"*": 7, "b": 8, "a": 8, "c": 7, "d": "float"}, skip=["e"])
    assert mixed == QuantConfig(layer_bits={"a": 8, "b": 8}, skip=("e", "d"))
    assert hash(mixed) == hash(QuantConfig(layer_bits=[["b", 8], ["a", 8]], skip=("e", "d")))
    assert [mixed.bits_of(name) for name in "abcx"] == [8, 8, 7, 7]
    assert mixed.bits_of("a", "b") == 8 and mixed.bits_of("a", "c") == 7
    assert QuantConfig(bits={"*": 8, "a": 8}) == QuantConfig(bits=8)
    assert replace(mixed, bits=8).layer_bits == ()


def test_the_table_keeps_bits_by_layer_and_reads_files_from_before():
    graph, mine = table(bits={"dw": 8, "left": 8, "logits": "float"})
    again = ScaleTable.from_json(mine.to_json())
    assert again.config == mine.config and again.to_json() == mine.to_json()
    assert again.config.layer_bits == (("dw", 8), ("left", 8)) and again.config.skip == ("logits",)
    old = json.loads(mine.to_json())
    del old["config"]["layer_bits"]
    assert ScaleTable.from_json(json.dumps(old)).config.layer_bits == ()
    with pytest.raises(TableError, match=r"does not fit model test: bits names \['nose'\], no layers"):
        replace(mine, config=QuantConfig(bits={"nose": 8}, skip=("logits",))).check(graph)


def test_a_tensor_read_by_several_layers_has_the_fewest_bits_of_them():
    b = networks.Builder(size=6)
    x = b.relu("r", b.conv("stem", "image", 4))
    b.join("sum", b.conv("one", x, 4, kernel=1), b.conv("two", x, 4, kernel=1))
    b.conv("last", "sum", 4)
    graph = b.graph("last")

    def ranges(bits):
        config = QuantConfig(bits=bits, method="minmax")
        plan_ = plan(graph)
        made = start_table(graph, plan_, calibrate(graph, plan_, b.images(2), config), config)
        return {name: s.hi for name, s in made.activations.items()}, made

    assert ranges({"one": 8})[0]["r"] == 127
    assert ranges({"one": 8, "two": 8})[0]["r"] == 255
    found, made = ranges({"one": 8, "last": 8})
    assert found["sum"] == 255 and found["image"] == 127
    steps_of = {
        n.name: np.abs(n.weight).reshape(-1, 4).max(0) / made.weights[n.name] for n in graph.compute_nodes
    }
    assert {n: round(float(s.min())) for n, s in steps_of.items()} == {
        "stem": 63,
        "one": 127,
        "two": 63,
        "last": 127,
    }


def test_diff_says_where_two_tables_differ():
    _, mine = table()
    weights = {**mine.weights, "stem": mine.weights["stem"] * np.float32(2)}
    activations = dict(mine.activations)
    gone = activations.pop("image")
    activations["left.relu"] = activations["left.relu"].with_scale(0.5)
    lines = mine.diff(replace(mine, weights=weights, activations=activations))
    assert gone and len(lines) == 3
    assert any("image: only in the first" in line for line in lines)
    assert any("weight stem: 8 of 8 channels differ, factors 2 to 2" in line for line in lines)


def test_a_table_that_does_not_fit_lists_both_sides():
    graph, mine = table()
    activations = {("other" if k == "image" else k): v for k, v in mine.activations.items()}
    with pytest.raises(TableError, match=r"lack \['image'\] and have unknown \['other'\]"):
        replace(mine, activations=activations).check(graph)
    weights = {k: v for k, v in mine.weights.items() if k != "dw"}
    with pytest.raises(TableError, match=r"weight scales lack \['dw'\]"):
        replace(mine, weights=weights).check(graph)
    with pytest.raises(TableError, match="another model"):
        table(seed=1)[1].check(graph)
    short = {**mine.weights, "dw": mine.weights["dw"][:3]}
    with pytest.raises(TableError, match="3 weight scales for layer dw.*8 channels"):
        replace(mine, weights=short).check(graph)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.update(format="x"), "not a tvm_easyquant scale table"),
        (lambda d: d.update(version=99), "version 99"),
        (lambda d: d.pop("weights"), "damaged"),
        (lambda d: d["config"].update(bits=5), "damaged: bits is 5"),
        (lambda d: d["activations"]["image"].update(scale=-1), "damaged: .*a scale is -1"),
        (lambda d: d["weights"].update(stem=[0.0]), "damaged.*stem"),
    ],
)
def test_a_damaged_table_says_what_is_wrong(tmp_path, change, message):
    data = json.loads(table()[1].to_json())
    change(data)
    path = tmp_path / "t.json"
    path.write_text(json.dumps(data))
    with pytest.raises(TableError, match=message):
        ScaleTable.load(path)


def test_unreadable_tables(tmp_path):
    with pytest.raises(TableError, match="cannot read the scale table .*missing.json"):
        ScaleTable.load(tmp_path / "missing.json")
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(TableError, match="t.json is not JSON"):
        ScaleTable.load(tmp_path / "t.json")


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_numbers_of_numpy_are_kept_as_python_s():
    """A table with a setting of numpy's could not be written."""
    config = QuantConfig(bits=np.int64(8), grid=np.int32(4), alpha=np.float32(0.5), percentile=99)
    assert [type(v) for v in (config.bits, config.grid, config.alpha, config.percentile)] == [
        int,
        int,
        float,
        int,
    ]
    json.dumps(asdict(config))
