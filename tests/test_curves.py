"""The record of a search: its best candidates are the scales that were found."""

import json

import networks
import numpy as np
import pytest

from tvm_easyquant.scales import calibrate
from tvm_easyquant.scales.numerics import QuantConfig
from tvm_easyquant.scales.partition import plan
from tvm_easyquant.search.curves import Curves, CurvesError
from tvm_easyquant.search.driver import search


@pytest.mark.parametrize("method", ["easyquant", "easyquant_mse", "easyquant_layerwise"])
def test_the_best_of_each_curve_is_the_scale_of_the_table(tmp_path, method):
    graph, images = networks.residual()
    config, plan_ = QuantConfig(method=method, grid=20, wide=()), plan(graph)
    calibrated = calibrate.calibrate(graph, plan_, images, config)
    start = calibrate.start_table(graph, plan_, calibrated, config)
    curves = Curves(config.how.objective, graph.fingerprint)
    table = search(graph, plan_, calibrated, config, record=curves)
    assert table.weights.keys() == curves.weights.keys()
    assert (
        table.to_json() == search(graph, plan_, calibrated, config).to_json()
    )  # recording changes nothing
    for name, curve in curves.weights.items():
        found = table.rounding_scale(name)
        np.testing.assert_allclose(found / start.weights[name], curve["chosen"], rtol=1e-5)
        assert curve["range"] == sorted(curve["range"]) and 1.0 in curve["range"]
        assert all(lo <= hi for lo, hi in zip(curve["low"], curve["high"], strict=True))
    for name, curve in curves.activations.items():
        best = curve["range"][int(np.argmax(curve["score"]))]
        ratio = table.activations[name].scale / start.activations[name].scale
        assert curve["chosen"] == pytest.approx(best)
        if config.how.asymmetric and start.activations[name].zero_point:  # both ends together, then apart
            assert 0.4 < ratio < 3
        else:
            assert ratio == pytest.approx(best, rel=1e-5)
    assert set(curves.activations) == {name for name, site in plan_.sites.items() if site.readers}
    curves.save(tmp_path / "record.json")
    assert Curves.load(tmp_path / "record.json") == curves


def test_what_is_no_record_is_refused(tmp_path):
    for text in ("{", "{}", "[1]", '{"format": "tvm_easyquant search record", "version": 0}'):
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(CurvesError, match="is not a search record.*--record"):
            Curves.load(tmp_path / "r.json")
    graph, images = networks.chain()
    config, plan_ = QuantConfig(grid=4), plan(graph)
    curves = Curves("mse", graph.fingerprint)
    search(graph, plan_, calibrate.calibrate(graph, plan_, images, config), config, record=curves)
    curves.save(tmp_path / "r.json")
    whole = json.loads((tmp_path / "r.json").read_text())
    for change in (
        {"model": 3}, {"weights": []}, {"weights": {"first": 1}}, {"weights": {"first": {"range": [1.0]}}},
        {"activations": {"image": {"range": [1.0], "score": ["1"], "chosen": 1.0}}}, {"version": True}, {"more": 1},
    ):  # fmt: skip
        (tmp_path / "r.json").write_text(json.dumps({**whole, **change}))
        with pytest.raises(CurvesError, match="is not a search record.*--record"):
            Curves.load(tmp_path / "r.json")
    twice = json.dumps(whole).replace('"objective":', '"model": "", "objective":')
    (tmp_path / "r.json").write_text(twice)
    with pytest.raises(CurvesError, match="is not a search record"):
        Curves.load(tmp_path / "r.json")
    with pytest.raises(CurvesError, match="cannot read"):
        Curves.load(tmp_path / "no.json")
