"""The facts of the report, without a browser: the saturation verdict, histograms, the page's text."""

import re
import shlex

import networks
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_easyquant.measure.report import BINS, histograms, saturation, worst_layers
from tvm_easyquant.network.graph import run
from tvm_easyquant.scales import calibrate
from tvm_easyquant.scales.numerics import QuantConfig
from tvm_easyquant.scales.partition import plan


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 3), st.integers(1, 255))
def test_the_verdict_is_the_worst_pair_of_neighbours(seed, channels, outputs, data_max):
    rng = np.random.default_rng(seed)
    weight = rng.integers(-128, 128, (2, 1, channels, outputs)).astype(np.int8)
    found = saturation(weight, data_max)
    worst = 0
    for y in range(2):
        for k in range(outputs):
            for c in range(0, channels, 2):
                pair = weight[y, 0, c : c + 2, k].astype(int)
                for data in ([a, b] for a in (0, data_max) for b in (0, data_max)):
                    worst = max(worst, abs(int(pair @ data[: len(pair)])))
    assert found["worst"] == worst and found["safe"] == (worst <= 32767)
    if not found["safe"]:  # the witness is in the weights
        numbers = re.findall(r"-?\d+", found["text"])[:7]
        first, second, k, c, d, top, sum_ = map(int, numbers)
        assert d == c + 1 and top == data_max and sum_ == worst
        assert any(
            (int(w[0, c, k]), int(w[0, d, k]) if d < channels else 0) == (first, second) for w in weight
        )


def test_seven_bits_never_saturate_and_eight_can():
    assert saturation(np.full((3, 3, 8, 4), 63, np.int8), 255)["safe"]
    assert not saturation(np.full((3, 3, 8, 4), 127, np.int8), 255)["safe"]
    assert saturation(np.full((3, 3, 1, 4), 127, np.int8), 255)["safe"]  # depthwise: nothing to pair


def test_the_worst_layers_make_a_line_for_the_shell():
    graph, images = networks.chain()
    table = calibrate.start_table(graph, plan(graph), calibrate.calibrate(graph, plan(graph), images, QuantConfig()),
                                  QuantConfig())  # fmt: skip
    figures = {
        "a b": {"sqnr_db": 12.0},
        "c": {"sqnr_db": 41.0},
        "d": {"sqnr_db": 9.0},
        "e": {"cosine": 1.0},
    }
    table = type(table)(table.model, table.config, table.activations, table.weights, figures)
    assert worst_layers(table) == ["d", "a b"]
    assert shlex.join(["--skip", *worst_layers(table)]) == "--skip d 'a b'"


@pytest.mark.parametrize("bits", [7, 8])
def test_histograms_count_every_value_and_the_clipped_ones(bits):
    graph, images = networks.residual()
    plan_, config = plan(graph), QuantConfig(method="minmax", bits=bits)
    calibrated = calibrate.calibrate(graph, plan_, images, config)
    table = calibrate.start_table(graph, plan_, calibrated, config)
    tight = {n: s.with_scale(s.scale / 2) for n, s in table.activations.items()}
    table = type(table)(table.model, table.config, tight, table.weights)
    found = histograms(graph, plan_, table, [{"image": x} for x in images])
    values = {}
    for x in images:
        run(graph, {"image": x}, lambda node, value: values.setdefault(node.name, []).append(value))
    for node in graph.compute_nodes:
        inputs = np.concatenate([v.ravel() for v in values[node.inputs[0]]])
        h = found[node.name]["activations"]
        assert sum(h["counts"]) == inputs.size and len(h["counts"]) == BINS == len(h["edges"]) - 1
        assert h["edges"][0] <= inputs.min() + 1e-4 and h["edges"][-1] >= inputs.max() - 1e-4
        low, high = h["clip"]
        assert h["clipped"] == pytest.approx(((inputs < low) | (inputs > high)).mean(), abs=1e-3)
        assert h["clipped"] > 0  # half the range
        w = found[node.name]["weights"]
        assert sum(w["counts"]) == node.weight.size and w["clip"] == [-1, 1] and w["clipped"] == 0
    without = histograms(graph, plan_, table, [])
    assert all(set(h) == {"weights"} for h in without.values())


def test_the_page_is_one_file_and_names_are_text(tmp_path):
    pytest.importorskip("tvm")
    pytest.importorskip("jinja2")
    import onnx

    from tvm_easyquant import cli

    model = networks.small_onnx()
    for node in model.graph.node:
        if node.name == "conv2":
            node.name = "</script><script>alert(1)</script>"
    onnx.save(model, tmp_path / "net.onnx")
    np.savez(
        tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    )
    net, table, page = (str(tmp_path / n) for n in ("net.onnx", "t.json", "p.html"))
    assert (
        cli.run(
            ["quantize", net, "--calibration", str(tmp_path / "x.npz"), "--method", "minmax", "-o", table]
        )
        == 0
    )
    assert cli.run(["report", net, "--table", table, "--no-benchmark", "-o", page]) == 0
    text = (tmp_path / "p.html").read_text()
    assert "<script>alert" not in text and "left out by --no-benchmark" in text and "not evaluated" in text
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"(?!data:)", text)
    for command, message in (
        (["--samples", "0"], "--samples is 0"),
        (["--record", str(tmp_path / "x.npz")], "is not a search record"),
        (["--table", str(tmp_path / "no.json")], "cannot read the scale table"),
    ):
        assert cli.run(["report", net, "--table", table, "-o", page, *command]) == 4, message
