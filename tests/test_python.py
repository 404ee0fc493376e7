"""The package in Python, as a notebook or a script of a user's has it: names, `repr`, one array for one input."""

import inspect
import math
import types

import networks
import numpy as np
import pytest

import tvm_easyquant as eq
from tvm_easyquant.errors import GraphError
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
