"""The same table every time: float nodes run by numpy, from any number of threads, never by a shared executor.

They ran in one TVM executor that threads shared: six searches of a network with a reversed slice gave six tables.
"""

import pickle

import networks
import numpy as np
import pytest
from python_process import python

pytest.importorskip("onnx")
from joblib import parallel_config

import tvm_easyquant as eq

LAST = np.iinfo(np.int64).min


def normal(*shape):
    return (np.random.default_rng(sum(shape)).standard_normal(shape) * 0.3).astype(np.float32)


def between(*middle, constants=None, size=8):
    constants = {"w1": normal(8, 3, 3, 3), "w2": normal(4, 8, 3, 3), **(constants or {})}
    nodes = [
        ("Conv", ["x", "w1"], ["a"], "first", dict(kernel_shape=[3, 3], pads=[1] * 4)),
        *middle,
        ("Conv", ["b", "w2"], ["y"], "last", dict(kernel_shape=[3, 3], pads=[1] * 4)),
    ]
    return networks.onnx_model(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 4, size, size]}, constants, 13)


def prelu():
    return between(("PRelu", ["a", "slope"], ["b"], "f", {}), constants={"slope": normal(8, 1, 1)})


def bicubic():
    scales = {"scales": np.array([1, 1, 2, 2], np.float32)}
    resize = ("Resize", ["a", "", "scales"], ["b"], "f", dict(mode="cubic"))
    return between(resize, constants=scales, size=16)


def reversed_slice():
    """Along the batch: along the channels it is an integer move."""
    bounds = {"begin": [-1], "end": [LAST], "axes": [0], "steps": [-1]}
    constants = {name: np.array(value) for name, value in bounds.items()}
    return between(("Slice", ["a", *constants], ["b"], "f", {}), constants=constants)


NETWORKS = {"prelu": prelu, "bicubic": bicubic, "reversed slice": reversed_slice}


def tables(name, threads, runs, images=8):
    """The bytes of the tables of so many searches."""
    graph = eq.load(NETWORKS[name]())
    # slopes by channel are integer where a layer is before them; then nothing of the network is float
    assert [node.op for node in graph].count("float") == (name != "prelu")
    samples = list(np.random.default_rng(1).standard_normal((images, 1, 3, 8, 8)).astype(np.float32))
    with parallel_config(backend="threading", n_jobs=threads):
        return {eq.quantize(graph, samples, grid=20).table.to_json() for _ in range(runs)}


@pytest.mark.parametrize("name", NETWORKS)
def test_any_number_of_threads_finds_the_same_table(name):
    assert len(set().union(*(tables(name, threads, 1) for threads in (1, 2, 8)))) == 1


@pytest.mark.ci
@pytest.mark.parametrize("name", NETWORKS)
def test_twenty_runs_on_each_number_of_threads(name):
    assert len(set().union(*(tables(name, threads, 20) for threads in (1, 2, 8)))) == 1


def test_a_graph_with_float_nodes_is_read_by_a_process_without_tvm(tmp_path):
    """Names were strings of TVM's, and a float node held its Relay call: no worker could unpickle it."""
    graph, x = eq.load(bicubic()), normal(1, 3, 8, 8)
    (tmp_path / "graph.pkl").write_bytes(pickle.dumps(graph))
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys; sys.modules['tvm'] = None; import pickle, numpy as np\n"
        f"graph = pickle.load(open({str(tmp_path / 'graph.pkl')!r}, 'rb'))\n"
        f"found = graph.run(dict(x=np.load({str(tmp_path / 'x.npy')!r})))['y']\n"
        "print(graph.fingerprint, found.tobytes().hex())"
    )
    done = python(code)
    assert done.stdout.split() == [graph.fingerprint, graph.run({"x": x})["y"].tobytes().hex()], done.stderr
