"""The package in Python, as a notebook or a script of a user's has it: names, `repr`, one array for one input."""

import copy
import importlib.util
import inspect
import json
import math
import types
from dataclasses import replace

import networks
import numpy as np
import pytest

import tvm_easyquant as eq
from tvm_easyquant import cli, workflow
from tvm_easyquant.errors import GraphError
from tvm_easyquant.files import plain
from tvm_easyquant.images import Preprocess
from tvm_easyquant.network.graph import Graph
from tvm_easyquant.network.node import Node


@pytest.fixture(scope="module")
def made():
    """(a quantized network, its images)."""
    graph, images = networks.chain()
    return eq.quantize(graph, images, method="minmax"), images


def two_inputs():
    nodes = [Node(name, "input", (), (1, 4, 4, 3)) for name in ("a", "b")]
    return Graph([*nodes, Node("sum", "add", ("a", "b"), (1, 4, 4, 3))], ["sum"])


def test_the_package_shows_what_is_public_and_nothing_else():
    """dir(eq) had annotations, importlib, TYPE_CHECKING, and every submodule that something had imported."""
    import tvm_easyquant.host
    import tvm_easyquant.readers.onnx_float  # noqa: F401

    names = dir(eq)
    assert [name for name in names if name.startswith("_")] == ["__version__"]
    elsewhere = [name for name, module in eq._PUBLIC.items() if module.split(".")[0] in ("relay", "relax")]
    modules = [n for n in names if n not in elsewhere and isinstance(getattr(eq, n), types.ModuleType)]
    assert modules == ["demo", "deploy", "errors", "evaluate", "images", "onnx_backend"]
    for name in modules:
        assert inspect.getdoc(getattr(eq, name)), name
    assert set(names) == {*eq.__all__, *modules, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = eq.quantise


def test_a_network_of_one_input_takes_its_array(made):
    q, images = made
    x, (name,) = images[0], q.graph.inputs
    for run in (q.run, q.graph.run):
        (mine,), (by_name,) = run(x).values(), run({name: x}).values()
        np.testing.assert_array_equal(mine, by_name)
    with pytest.raises(GraphError, match="is a list; give {input name: array}"):
        q.run([x])
    with pytest.raises(GraphError, match="is a ndarray; give {input name: array}"):
        two_inputs().run(x)


def test_what_is_compiled_takes_its_array_too(made, tmp_path):
    """And `Quantized.run` computes the same in numpy."""
    pytest.importorskip("tvm")
    q, images = made
    (mine,) = q.run(images[0]).values()
    built = q.build("llvm")
    for run in (built, eq.Executor(built), q.build(isa="generic")):
        np.testing.assert_array_equal(run(images[0])[0], mine)
    assert repr(built).startswith("<Built for ") and "image float32 (" in repr(built)
    assert repr(eq.Executor(built)).startswith("<Executor: image float32 (")


class Tensor:
    """As torch has them, as far as they are looked at."""

    def __init__(self, array):
        self.array = np.asarray(array)

    def __iter__(self):
        return map(Tensor, self.array)

    def detach(self):
        return self

    def cpu(self):
        return self

    def numpy(self):
        return self.array


class Loader:
    """Batches of (images, labels), as torch's loader yields them; it knows its length."""

    def __init__(self, images, labels, size, tensors):
        self.make = Tensor if tensors else np.asarray
        self.images, self.labels, self.size = np.concatenate(images), np.asarray(labels), size

    def __len__(self):
        return math.ceil(len(self.images) / self.size)

    def __iter__(self):
        for i in range(0, len(self.images), self.size):
            yield self.make(self.images[i : i + self.size]), self.make(self.labels[i : i + self.size])


@pytest.mark.parametrize("tensors", [False, True])
def test_a_labelled_loader_is_calibration_and_labelled_data(made, tensors):
    """Its batches were taken for samples, and labels that are tensors for no numbers."""
    q, images = made
    inputs = dict.fromkeys(q.graph.inputs, ((1, *images[0].shape[1:]), "float32"))
    labels = np.arange(len(images)) % 3
    loader = Loader(images, labels, 2, tensors)
    assert eq.quantize(q.graph, loader, method="minmax").table.to_json() == q.table.to_json()
    found = list(eq.evaluate.load(loader).singly(inputs, 1))
    assert [label for _, label in found] == list(labels)
    np.testing.assert_array_equal(np.concatenate([x for x, _ in found]), np.concatenate(images))
    (one,) = eq.evaluate.load([(images[0], Tensor(2) if tensors else np.array(2))])
    assert one[1] == 2 and isinstance(one[1], np.integer)
    # what the network takes whole is one sample, whose labels a metric gets together
    batch = {name: ((2, *shape[1:]), dtype) for name, (shape, dtype) in inputs.items()}
    assert len(list(eq.evaluate.load(loader).singly(batch, 1))) == len(loader)
    assert len(list(eq.evaluate.load(loader).singly(batch, 2))) == len(images)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """(a folder with a model, its table and labelled samples, its `Quantized`)."""
    onnx = pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("work")
    onnx.save(networks.small_onnx(), folder / "net.onnx")
    images = np.random.default_rng(0).standard_normal((24, 3, 8, 8)).astype(np.float32)
    q = eq.quantize(folder / "net.onnx", images, bits=7, method="minmax")
    q.table.save(folder / "net.json")
    labels = np.array([next(iter(q.graph.run(x[None]).values())).argmax() for x in images])
    labels[:3] = (labels[:3] + 1) % 4
    np.savez(folder / "set.npz", images=images, labels=labels)
    return folder, q


def answer(capsys, work, verb, *options):
    """What the command line prints as JSON, of the same network and table."""
    command = [verb, work / "net.onnx", "--table", work / "net.json", *options, "--json"]
    assert cli.run(list(map(str, command))) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def no_compiler(monkeypatch):
    """Both networks then run in numpy, which takes less time than to compile them."""

    def none(name=None):
        raise eq.errors.TVMMissing("no TVM")

    monkeypatch.setattr("tvm_easyquant.host.installed", none)


def test_evaluate_is_the_command_line_s(work, capsys):
    folder, q = work
    wanted = answer(capsys, folder, "evaluate", "--data", folder / "set.npz")["metrics"]
    found = q.evaluate(folder / "set.npz")
    assert json.loads(json.dumps(found.facts["metrics"])) == wanted and found["top1"].n == 24


def test_evaluate_takes_labelled_data_of_any_form(work, no_compiler):
    folder, q = work
    found = q.evaluate(folder / "set.npz")
    assert found["top1"].n == 24 and "no TVM here" in found.warnings[0]
    with pytest.raises(eq.errors.TVMMissing):
        q.evaluate(folder / "set.npz", target="llvm")
    with np.load(folder / "set.npz") as stored:
        images, labels = stored["images"], stored["labels"]
    pairs = list(zip(images, labels.tolist(), strict=True))
    for data in (pairs, iter(pairs), lambda: pairs, Loader([images], labels, 5, True)):
        assert dict(q.evaluate(data)) == dict(found)
    assert q.evaluate(Loader([images], labels, 5, False), limit=7)["top1"].n == 7  # samples, not batches

    def half(outputs, label):
        return 0.5 if label else 1.0

    assert list(q.evaluate(pairs, metric=half)) == ["half"]
    assert list(q.evaluate(pairs, metric={"mine": half}, limit=2)) == ["mine"]
    with pytest.raises(eq.errors.ConfigError, match="limit is 0; use 1 or more"):
        q.evaluate(pairs, limit=0)


def test_labelled_data_that_do_not_fit_are_told_before_anything_is_compiled(work, monkeypatch, tmp_path):
    """After two networks were compiled, as TVM's own error; the verbs said it at once."""
    _, q = work

    def none(*args, **options):
        raise AssertionError("compiled")

    monkeypatch.setattr("tvm_easyquant.measure.networks.built", none)
    monkeypatch.setattr("tvm_easyquant.measure.report.check_packages", lambda: None)
    wrong = [(np.zeros((1, 3, 5, 7), np.float32), 0)]
    for judged in (q.evaluate, lambda data: q.report(tmp_path / "report.html", data)):
        with pytest.raises(eq.errors.EvaluationError, match=r"sample 0: \w+ has shape \(1, 3, 5, 7\)"):
            judged(wrong)
        with pytest.raises(eq.errors.EvaluationError, match="is empty"):
            judged([])


def test_a_folder_of_pictures_is_what_a_drop_is_judged_by(work, tmp_path, monkeypatch):
    """A name was an .npz or module:function, though the command line took the folder."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(1)
    for i in range(6):
        (tmp_path / str(i % 2)).mkdir(exist_ok=True)
        picture = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image.fromarray(picture).save(tmp_path / str(i % 2) / f"{i}.png")
    how, (_, q) = Preprocess(scale=1 / 255), work
    seen = []

    class Judge(workflow._Judge):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            seen.extend(self.data)
            raise KeyboardInterrupt

    class Compiler:
        """As far as a judge asks it before it measures."""

        def target(self, text):
            return text

        def check_cpu(self, target):
            pass

    monkeypatch.setattr(workflow, "_Judge", Judge)
    with pytest.raises(KeyboardInterrupt):
        eq.quantize(
            q.graph, tmp_path, evaluation=tmp_path, max_drop=1, preprocess=how, method="minmax",
            host=Compiler(), fp32=lambda feed: [],
        )  # fmt: skip
    assert [label for _, label in seen] == [0, 0, 0, 1, 1, 1] and seen[0][0].shape == (1, 3, 8, 8)


def test_evaluate_says_where_float32_is_right_by_chance_only(work, no_compiler):
    folder, q = work
    with np.load(folder / "set.npz") as stored:
        images, labels = stored["images"], stored["labels"]
    found = q.evaluate([(x, int(label + 1) % 4) for x, label in zip(images, labels, strict=True)])
    assert any("by chance" in line for line in found.warnings)
    assert "by chance" in found._repr_html_()


@pytest.mark.ci
def test_benchmark_and_report_are_the_command_line_s(work, capsys, tmp_path):
    pytest.importorskip("tvm")
    pytest.importorskip("jinja2")
    folder, q = work
    found = q.benchmark(rounds=2, target="llvm")
    assert [layer.name for layer in found.layers] == [node.name for node in q.graph.compute_nodes]
    assert repr(found).startswith("<Benchmark ") and "1 thread" in repr(found)
    if importlib.util.find_spec("jinja2") is None:
        pytest.skip("no jinja2: no report")
    wanted = answer(capsys, folder, "report", "--no-benchmark", "--target", "llvm", "--data",
                    folder / "set.npz", "-o", tmp_path / "theirs.html")  # fmt: skip
    mine = q.report(tmp_path / "mine.html", folder / "set.npz", benchmark=False, target="llvm")
    assert (tmp_path / "mine.html").stat().st_size == pytest.approx(
        (tmp_path / "theirs.html").stat().st_size, rel=0.01
    )
    assert mine["accuracy"]["top1"]["n"] == 24 and mine["layers"] and set(mine) == set(wanted)
    assert json.loads(json.dumps(plain(mine["accuracy"]))) == wanted["accuracy"]
    with pytest.raises(eq.errors.WriteError, match="not a folder that can be written"):
        q.report(tmp_path / "nowhere" / "report.html")


def test_a_notebook_shows_a_table_that_no_name_breaks(made, no_compiler):
    q, images = made
    named = replace(q, graph=copy.copy(q.graph), warnings=("it is <b>odd</b>",))
    named.graph.name = "<script>alert(1)</script>"
    text = named._repr_html_()
    assert "<script" not in text and "&lt;script&gt;" in text and "&lt;b&gt;odd" in text
    assert "<caption>" in text and 'scope="row"' in text and len(text) < 3000
    found = q.evaluate([(x, 0) for x in images], metric={"<i>mine</i>": lambda outputs, label: 1.0})
    text = found._repr_html_()
    assert "<i>" not in text and "&lt;i&gt;mine" in text and "100.00" in text
    assert repr(found) == "<Evaluated on the labelled set: <i>mine</i> 100.00 against 100.00>"


def test_what_a_notebook_prints_is_short(made):
    """Each printed all of its arrays: pages of numbers."""
    q, images = made
    layers = len(q.graph.compute_nodes)
    assert repr(q).startswith(
        f"<Quantized 'test': {layers} of {layers} layers in integers, 100.0 % of the mul"
    )
    assert repr(q.graph).startswith(f"<Graph 'test': {layers} layers, ") and repr(q.graph).endswith(">")
    assert f"{layers} layers in int7" in repr(q.table) and "minmax" in repr(q.table)
    labelled = eq.evaluate.load([(x, 0) for x in images])
    assert repr(labelled) == f"<LabelledSet 'the labelled set': {len(images)} samples>"
    for thing in (q, q.graph, q.table, q.plan, labelled, eq.Evaluation(images, max_drop=1)):
        assert len(repr(thing)) < 160 and "\n" not in repr(thing), repr(thing)
