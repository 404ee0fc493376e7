"""The seam to the compiler: which host is installed, that it has every verb, and when it is asked.

The toy host of `numpy_host` is one as well: what asks a host for its verbs runs on it, without TVM.
"""

import inspect
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import json_reader
import networks
import numpy as np
import numpy_host
import pytest

import tvm_easyquant as eq
from tvm_easyquant import cli
from tvm_easyquant import host as hosts
from tvm_easyquant.errors import ConfigError, LoadError, TargetError, TVMMissing
from tvm_easyquant.host import HOSTS, Built, Host, installed
from tvm_easyquant.images import Preprocess
from tvm_easyquant.network.graph import run
from tvm_easyquant.scales.integer import run_integer

VERBS = [name for name in vars(Host) if not name.startswith("_")]


def named(name):
    if name == "numpy":
        return numpy_host.HOST
    try:
        return installed(name)
    except TVMMissing as error:
        pytest.skip(f"no {name}: {error}")


@pytest.fixture(params=HOSTS)
def host(request):
    return named(request.param)


@pytest.fixture(params=[*HOSTS, "numpy"])
def any_host(request):
    return named(request.param)


def test_a_pass_takes_a_table_by_its_path(tmp_path):
    """It kept the text, which had no attribute of a table's when the pass ran."""
    from tvm_easyquant.errors import TableError
    from tvm_easyquant.search.find import Finder

    golden = Path(__file__).with_name("golden") / "tables" / "residual.minmax.int7.json"
    assert Finder(str(golden)).table.to_json() == Finder(golden).table.to_json()
    with pytest.raises(TableError, match="the table is a dict; give a ScaleTable, or its path"):
        Finder({})
    with pytest.raises(TableError, match="none.json"):
        Finder(tmp_path / "none.json")


def test_what_is_installed_is_taken(host):
    assert installed() is host is installed(host.name) and host.name in HOSTS
    assert host.version
    with pytest.raises(ConfigError, match="host is 'torch'; use one of relay"):
        installed("torch")


@pytest.mark.parametrize("verb", VERBS)
def test_a_host_has_the_verb_with_the_same_parameters(any_host, verb):
    said = getattr(Host, verb)
    if isinstance(said, property):
        assert isinstance(getattr(any_host, verb), str)
        return
    said, done = (inspect.signature(f).parameters for f in (said, getattr(type(any_host), verb)))
    rest = [p for p in done.values() if p.kind is p.VAR_KEYWORD]
    for name, parameter in said.items():
        if name in done:
            assert (done[name].kind, done[name].default) == (parameter.kind, parameter.default)
        else:  # handed on as it is
            assert rest and parameter.kind is parameter.KEYWORD_ONLY
    assert len(VERBS) > 20


def test_what_a_host_builds_has_all_that_is_promised(any_host):
    graph, images = networks.chain()
    q = eq.quantize(graph, images, method="minmax", host=any_host)
    built = q.build()
    assert [name for name in vars(Built) if not name.startswith("_") and not hasattr(built, name)] == []
    assert dict(built.inputs) == {"image": ((1, 3, 10, 10), "float32")}
    (mine,) = built({"image": images[0]})
    np.testing.assert_array_equal(mine, run_integer(graph, q.table, {"image": images[0]})["second"])
    assert len(built.milliseconds(2)) == 2 and min(built.milliseconds(2)) > 0 and built.size > 0
    assert built.digest == q.build().digest


def test_an_image_of_bytes_is_what_its_preprocessing_makes_of_it(any_host):
    graph, _ = networks.chain()
    preprocess = Preprocess(color="BGR", scale=1 / 255, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    shots = np.random.default_rng(0).integers(0, 256, (3, 1, 10, 10, 3), np.uint8)
    feeds = [preprocess(shot[0]) for shot in shots]
    q = eq.quantize(graph, feeds, method="minmax", preprocess=preprocess, host=any_host)
    built = q.build(input_layout="NHWC", input_dtype="uint8")
    assert dict(built.inputs) == {"image": ((1, 10, 10, 3), "uint8")}
    for shot, feed in zip(shots, feeds, strict=True):
        (mine,) = built({"image": shot})
        np.testing.assert_array_equal(mine, run_integer(graph, q.table, {"image": feed})["second"])


def test_the_module_is_made_when_it_is_asked_for_and_once(any_host):
    graph, images = networks.chain()
    asked = []

    class Counting(type(any_host)):
        def rewrite(self, *arguments, sample):
            asked.append(arguments)
            return super().rewrite(*arguments, sample=sample)

    q = eq.quantize(graph, images, method="minmax", host=Counting())
    assert not asked and q.table and q.coverage == 100
    assert any_host.is_module(q.module) and q.module is q.module
    assert asked == [(q.graph, q.table)]


def test_a_model_whose_drop_is_judged_is_read_by_us_and_built_once(host, tmp_path):
    onnx = pytest.importorskip("onnx")
    onnx.save(networks.small_onnx(), tmp_path / "net.onnx")
    images = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    made = []

    class Counting(type(host)):
        def float_module(self, *arguments, **options):
            made.append(arguments)
            return super().float_module(*arguments, **options)

        def load(self, *arguments, **options):
            raise AssertionError("ONNX is read by us")

    q = eq.quantize(
        tmp_path / "net.onnx", images, max_drop=100, evaluation=[(x, 0) for x in images], method="minmax",
        target="llvm", host=Counting(),
    )  # fmt: skip
    assert len(made) == 1 and q.graph.name == "net" and q.drop.n == 3


def test_a_model_comes_through_the_host_in_every_form(host, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = networks.small_onnx()
    onnx.save(model, tmp_path / "net.onnx")
    graph = eq.load(model)
    module = host.float_module(graph)
    graphs = [graph, eq.load(tmp_path / "net.onnx"), host.load(tmp_path / "net.onnx"), host.load(
        tmp_path / "net.onnx", model_format="onnx")]  # fmt: skip
    assert len({graph.fingerprint for graph in graphs}) == 1
    x = {"x": np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)}
    read_again = [host.read(module)] if host.name == "relay" else []
    for read in (graph, *read_again):
        for found, wanted in zip(read.run(x).values(), graph.run(x).values(), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert host.is_module(module) and not host.is_module(model)
    assert "onnx" in host.formats()


# -- the toy: whatever a host is asked for is asked of the one that was given


@pytest.fixture
def model(tmp_path):
    """A model that the toy reads: conv - normalization - relu - conv, and a residual add; (path, images)."""
    rng = np.random.default_rng(0)

    def conv(name, x, c, k, size):
        weight = (rng.standard_normal((k, c, size, size)) / np.sqrt(c * size * size)).tolist()
        pads = [size // 2] * 4
        return dict(
            op="Conv", name=name, inputs=[x], output=f"{name}:0", weight=weight, pads=pads, strides=[1, 1]
        )

    norm = dict(scale=rng.uniform(0.5, 2, 8).tolist(), shift=rng.standard_normal(8).tolist())
    nodes = [
        conv("stem", "image", 3, 8, 3),
        dict(op="BatchNormalization", name="norm", inputs=["stem:0"], output="n", **norm),
        dict(op="Relu", name="relu", inputs=["n"], output="r"),
        conv("branch", "r", 8, 8, 1),
        dict(op="Add", name="join", inputs=["branch:0", "r"], output="j"),
        conv("last", "j", 8, 4, 3),
    ]
    path = tmp_path / "net.json"
    path.write_text(json.dumps(dict(inputs={"image": [1, 3, 6, 6]}, outputs=["last:0"], nodes=nodes)))
    return path, list(rng.standard_normal((5, 1, 3, 6, 6)).astype(np.float32))


def test_a_model_is_read_quantized_built_and_run_without_tvm(model, tmp_path):
    path, images = model
    q = eq.quantize(path, images, host=numpy_host.HOST, grid=6)
    assert q.graph.name == "net" and [node.op for node in q.graph] == [
        "input", "conv2d", "clip", "conv2d", "add", "conv2d"
    ]  # fmt: skip
    assert q.coverage == 100 and not q.plan.floats
    built = q.build()
    assert built.inputs == {"image": ((1, 3, 6, 6), "float32")}
    for image in images:
        (mine,), truth = built({"image": image}), run(q.graph, {"image": image})["last"]
        np.testing.assert_array_equal(mine, run_integer(q.graph, q.table, {"image": image})["last"])
        assert np.abs(mine - truth).max() < 0.1 * np.abs(truth).max()
    floats = numpy_host.HOST.build_float(numpy_host.HOST.float_module(q.graph))
    assert built.digest == q.build("numpy").digest != floats.digest
    with pytest.raises(TargetError, match="target 'llvm' is not numpy"):
        q.build("llvm")


def test_a_drop_is_judged_by_what_the_host_builds(model):
    path, images = model
    labelled = [(image, i) for i, image in enumerate(images)]
    built = []

    class Counting(numpy_host.Numpy):
        def build(self, module, target=None, **options):
            built.append(module.table)
            return super().build(module, target, **options)

    q = eq.quantize(
        path, images, method="minmax", max_drop=0, evaluation=labelled, host=Counting(),
        metric=lambda outputs, label: float(np.argmax(outputs[0])),
    )  # fmt: skip
    chosen = replace(q.table, figures={}).to_json()  # how well layers survive is found at the end
    assert q.drop.n == 5 and built[0] is None and chosen in [table.to_json() for table in built[1:]]


def test_a_host_is_a_folder_and_a_name(model, tmp_path, monkeypatch, capsys):
    """What `installed` finds serves the command line, too; without TVM it works to the accuracy on images."""
    path, images = model
    folder, file = ModuleType("tvm_easyquant.numpy"), ModuleType("tvm_easyquant.numpy.host")
    file.HOST = numpy_host.HOST
    monkeypatch.setitem(sys.modules, folder.__name__, folder)
    monkeypatch.setitem(sys.modules, file.__name__, file)
    monkeypatch.setattr(hosts, "HOSTS", ("numpy", *HOSTS))
    assert installed() is installed("numpy") is numpy_host.HOST
    np.savez(tmp_path / "images.npz", image=np.concatenate(images))
    np.savez(tmp_path / "labelled.npz", images=np.concatenate(images), labels=np.zeros(5, int))
    table, data = tmp_path / "net.eq.json", tmp_path / "labelled.npz"
    assert (
        cli.run(["quantize", str(path), "--calibration", str(tmp_path / "images.npz"), "-o", str(table)])
        == 0
    )
    assert cli.run(["evaluate", str(path), "--table", str(table), "--data", str(data)]) == 0
    assert "100.0 % of the multiply-accumulates" in capsys.readouterr().out
    assert (
        cli.run(["evaluate", str(path), "--table", str(table), "--data", str(data), "--target", "llvm"])
        == 4
    )


def test_the_toy_reader_says_what_it_cannot_read(tmp_path):
    path = tmp_path / "net.json"
    node = dict(op="Softmax", name="gate", inputs=["x"], output="y")
    path.write_text(json.dumps(dict(inputs={"x": [1, 4]}, outputs=["y"], nodes=[node])))
    with pytest.raises(LoadError, match="node gate: no rule for Softmax"):
        json_reader.load(path)
    path.write_text("{}")
    with pytest.raises(LoadError, match="net.json is not a model: 'nodes'"):
        json_reader.load(path)
