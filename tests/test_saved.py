"""`Quantized.save` and `Quantized.load`: one file, which any release refuses in a line or reads whole."""

import json
import zipfile

import networks
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import tvm_easyquant as eq
from tvm_easyquant.errors import EasyQuantError, ExportError, LoadError, WriteError
from tvm_easyquant.measure.accuracy import Paired
from tvm_easyquant.network.node import Node
from tvm_easyquant.writers import saved


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(a network with every kind of node, its images, the file)."""
    graph, images = networks.residual()
    q = eq.quantize(graph, images, bits={"*": 7, graph.compute_nodes[0].name: 8}, method="minmax")
    file = tmp_path_factory.mktemp("saved") / "net.eq"
    q.save(file)
    return q, images, file


def test_a_saved_network_is_the_same_network(made):
    q, images, file = made
    again = eq.Quantized.load(file)
    assert again.table.to_json() == q.table.to_json() and again.graph.fingerprint == q.graph.fingerprint
    assert again.plan == q.plan and again.seconds == q.seconds and again.warnings == q.warnings
    assert again.graph.output_names == q.graph.output_names and again.layers == q.layers
    for x in images[:2]:
        for mine, other in zip(again.run(x).values(), q.run(x).values(), strict=True):
            assert_array_equal(mine, other)
    assert again.evaluate([(x, 0) for x in images], metric=lambda outputs, label: 1.0)["<lambda>"].drop == 0


def test_it_is_built_and_saved_again_as_before(made, tmp_path):
    q, images, file = made
    again = eq.Quantized.load(file)
    again.save(tmp_path / "again.eq")
    assert (tmp_path / "again.eq").read_bytes() == file.read_bytes()
    with zipfile.ZipFile(file) as members:  # its table is one for the command line
        (tmp_path / "net.json").write_bytes(members.read("table.json"))
    assert eq.ScaleTable.load(tmp_path / "net.json").to_json() == q.table.to_json()
    pytest.importorskip("tvm")
    for mine, other in zip(again.build("llvm")(images[0]), q.run(images[0]).values(), strict=True):
        assert_array_equal(mine, other)


def test_float_operators_and_functions_of_onnx_are_in_it(tmp_path):
    onnx = pytest.importorskip("onnx")
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((4, 3, 3, 3)), "axes": np.array([2, 3], np.int64)}
    nodes = [
        ("Conv", ["x", "w"], ["a"], "stem", dict(kernel_shape=[3, 3], pads=[1] * 4)),
        ("HardSigmoid", ["a"], ["g"], "gate", dict(alpha=0.2)),
        ("Mul", ["a", "g"], ["b"], "swish", {}),
        ("Softmax", ["b"], ["s"], "soft", dict(axis=1)),
        ("ReduceSum", ["s", "axes"], ["y"], "sum", dict(keepdims=0)),
    ]
    weights["w"] = weights["w"].astype(np.float32)
    model = networks.onnx_model(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 4]}, weights)
    assert isinstance(model, onnx.ModelProto)
    images = rng.standard_normal((4, 3, 8, 8)).astype(np.float32)
    q = eq.quantize(model, images)
    assert any(node.op == "float" for node in q.graph)
    q.save(tmp_path / "net.eq")
    again = eq.Quantized.load(tmp_path / "net.eq")
    assert again.graph.fingerprint == q.graph.fingerprint
    assert_array_equal(again.run(images[:1])["y"], q.run(images[:1])["y"])
    assert_array_equal(again.graph.run(images[:1])["y"], q.graph.run(images[:1])["y"])


def test_an_imported_network_is_saved_as_a_quantized_one(made, tmp_path):
    pytest.importorskip("onnx")
    q, images, _ = made
    q.to_onnx(tmp_path / "net.onnx")
    imported = eq.import_quantized(tmp_path / "net.onnx")
    assert (
        repr(imported).startswith("<Imported 'net': ") and len(repr(imported)) < 160
    )  # it printed the model
    imported.save(tmp_path / "net.eq")
    again = eq.Quantized.load(tmp_path / "net.eq")
    for mine, other in zip(again.run(images[0]).values(), imported.run(images[0]).values(), strict=True):
        assert_array_equal(mine, other)


def test_what_a_drop_was_met_by_is_kept(made, tmp_path):
    q = made[0]
    drop = Paired(1, 100.0, 100.0, 0, 0, 0.0, (-np.inf, np.inf), 1.0)
    met = eq.Quantized(q.table, q.graph, q.plan, {}, ("odd",), ("8 bits",), drop, ("50 of 60",))
    met.save(tmp_path / "net.eq")
    again = eq.Quantized.load(tmp_path / "net.eq")
    assert again.drop == drop and again.decisions == ("8 bits",) and again.notes == ("50 of 60",)


def test_what_no_file_holds_is_refused_by_name(tmp_path):
    b = networks.Builder()
    x = b.conv("stem", "image", 4)
    attrs = dict(fn=lambda a: a, handle=None, macs=0)
    b.nodes["odd"] = Node("odd", "float", (x,), b.nodes[x].shape, attrs)
    q = eq.quantize(b.graph("odd"), b.images(2), method="minmax")
    with pytest.raises(ExportError, match=r"node odd \(float\) is an operator of a host's own"):
        q.save(tmp_path / "net.eq")
    assert not list(tmp_path.iterdir())  # nor a beginning of one
    with pytest.raises(WriteError, match="cannot write"):
        eq.Quantized(q.table, networks.chain()[0], q.plan).save(tmp_path / "nowhere" / "net.eq")


def rewritten(file, to, change):
    """The file with its network.json changed."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(to, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == saved.NETWORK:
                content = json.loads(data)
                change(content)
                data = json.dumps(content)
            new.writestr(zipfile.ZipInfo(name), data)
    return to


def test_a_newer_file_and_other_kinds_of_file_are_said_in_a_line(made, tmp_path):
    q, _, file = made
    newer = rewritten(file, tmp_path / "newer", lambda c: c.update(version=saved.VERSION + 1, tool="9.1"))
    with pytest.raises(
        LoadError, match=r"has version 2 \(tvm_easyquant '9.1' wrote it\); .*install a newer"
    ):
        eq.Quantized.load(newer)
    q.table.save(tmp_path / "net.json")
    np.savez(tmp_path / "set.npz", images=np.zeros(3))
    (tmp_path / "empty").touch()
    other = rewritten(file, tmp_path / "other", lambda c: c.update(format="a picture"))
    for path, message in (
        (tmp_path / "net.json", "no network that Quantized.save wrote; ScaleTable.load reads scale tables"),
        (tmp_path / "set.npz", "no network that Quantized.save wrote"),
        (tmp_path / "empty", "no network that Quantized.save wrote"),
        (other, "no network that Quantized.save wrote"),
        (tmp_path / "missing", "No such file"),
        (tmp_path, "irectory"),
    ):
        with pytest.raises(LoadError, match=message) as raised:
            eq.Quantized.load(path)
        assert "\n" not in str(raised.value) and str(path) in str(raised.value)


def test_a_truncated_or_damaged_file_is_never_read(made, tmp_path):
    """Cut anywhere, and with any byte changed, it is an error of ours or the same network."""
    q, _, file = made
    whole, part = file.read_bytes(), tmp_path / "part.eq"
    for end in np.linspace(3, len(whole) - 1, 20).astype(int):
        part.write_bytes(whole[:end])
        with pytest.raises(LoadError, match=r"is damaged|no network"):
            eq.Quantized.load(part)
    for place in np.random.default_rng(0).integers(0, len(whole), 60):
        changed = bytearray(whole)
        changed[place] ^= 0x55
        part.write_bytes(changed)
        try:
            found = eq.Quantized.load(part)
        except EasyQuantError as error:
            assert str(part) in str(error) and "\n" not in str(error), error
        else:
            assert found.graph.fingerprint == q.graph.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("said"),
        lambda c: c.update(graph=[]),
        lambda c: c["graph"].pop("nodes"),
        lambda c: c["graph"]["nodes"][1].update(op="nothing"),
        lambda c: c["graph"]["nodes"][1].update(inputs=["nothing"]),
        lambda c: c["graph"]["nodes"][1].update(weight="arrays/99.weight.npy"),
        lambda c: c["graph"]["nodes"][1]["attrs"].update(more=1),
        lambda c: c["graph"]["nodes"][1].update(shape=[1, 2]),
        lambda c: c["graph"].update(outputs=["nothing"]),
        lambda c: c["said"].update(drop={"n": 1, "interval": None}),
        lambda c: c["said"].update(seconds=[1]),
    ],
)
def test_a_file_that_says_nonsense_is_damaged(made, tmp_path, change):
    with pytest.raises(LoadError, match="is damaged"):
        eq.Quantized.load(rewritten(made[2], tmp_path / "net.eq", change))
