"""The package in Python, as a notebook or a script of a user's has it: names, `repr`, one array for one input."""

import inspect
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
