"""One build for all that is compiled: it runs, times its layers, and is the same bytes every time."""

import json
import tarfile
from dataclasses import replace

import networks
import numpy as np
import pytest
from python_process import python

tvm = pytest.importorskip("tvm")
import onnx
from tvm import relay

import tvm_easyquant as eq
from topi_ext.lower import LowerInteger
from tvm_easyquant import cli, deploy
from tvm_easyquant.relay import artefact
from tvm_easyquant.relay.build import build_float, host_target
from tvm_easyquant.relay.framework import no_tophub
from tvm_easyquant.relay.rewrite import float_module
from tvm_easyquant.scales.integer import run_integer


@pytest.fixture(scope="module")
def network():
    """(Quantized with one layer kept float, an image, its integer outputs)."""
    graph, images = networks.residual()
    q = eq.quantize(graph, images, method="minmax", skip=("down",))
    return q, images[0], run_integer(graph, q.table, {"image": images[0]})["logits"]


@pytest.fixture(scope="module")
def built(network):
    return network[0].build()


def test_it_runs_and_says_what_it_is(network, built):
    q, image, want = network
    assert built.inputs == {"image": (image.shape, "float32")} == eq.Executor(built).inputs
    assert built.outputs == ("logits",) and str(built.target).startswith("llvm")
    (mine,), (theirs,) = built({"image": image}), eq.Executor(built)({"image": image})
    np.testing.assert_allclose(mine, want, rtol=1e-4, atol=1e-5)  # a float layer sums in another order
    np.testing.assert_array_equal(mine, theirs)
    integer = {n.name for n in q.graph.compute_nodes} - {"down"}
    assert integer <= {layer.name for layer in built.layers} and min(built.milliseconds(3, 2)) > 0


def test_what_tvm_s_library_has_it_has(network, built):
    _, image, _ = network
    from tvm.contrib.graph_executor import GraphModule

    run = GraphModule(built["default"](tvm.cpu()))
    run.set_input("image", image)
    run.run()
    np.testing.assert_array_equal(run.get_output(0).numpy(), built({"image": image})[0])
    assert json.loads(built.get_graph_json())["nodes"] and not built.get_params()  # linked
    assert built.get_lib().get_source("asm") and built.libmod_name == built.library.libmod_name
    with pytest.raises(AttributeError):
        built.no_such_thing  # noqa: B018


def test_its_layers_are_timed_by_name(network, built):
    """Linked weights are no inputs of the graph, by whose sizes a layer that stayed float is told."""
    q, image, _ = network
    times = built.layer_times({"image": image}, repeat=3)
    assert list(times) == [layer.name for layer in built.layers] and min(times.values()) > 0
    assert "down" not in times
    profile = built.profile({"image": image})
    profile.run()
    (kept,) = [call for call in profile.calls if call.holds_layer and not call.ours]
    assert kept.weight == q.graph["down"].weight.size and kept.layer is None


def test_a_build_of_the_user_s_gives_the_same_integers_and_with_our_settings_the_same_code(network):
    graph, images = networks.residual(1)
    q = eq.quantize(graph, images, method="minmax")
    want = run_integer(graph, q.table, {"image": images[0]})["logits"]
    ours, libraries = q.build(), []
    for config in ({"tir.disable_cse_tir": True}, eq.BUILD_CONFIG):
        with no_tophub(), tvm.transform.PassContext(opt_level=3, config=config):
            libraries.append(relay.build(LowerInteger(host_target())(q.module), host_target()))
    for library in (ours, *libraries):
        np.testing.assert_array_equal(eq.Executor(library)({"image": images[0]})[0], want)
    digests = [type(ours)(library, ours.target).digest for library in libraries]
    assert digests[1] == ours.digest != digests[0]
    assert libraries[0].get_params() and not libraries[1].get_params()


def test_the_digest_is_the_table_s(network, built):
    q = network[0]
    assert q.build().digest == built.digest and built.size > 10_000
    name = next(iter(q.table.activations))
    moved = {**q.table.activations, name: q.table.activations[name].with_scale(0.123)}
    other = eq.build(eq.rewrite(q.graph, replace(q.table, activations=moved)))
    assert other.digest != built.digest


def test_a_float_build_has_no_layers_of_ours():
    built = build_float(float_module(eq.load_onnx(networks.small_onnx())), "llvm")
    x = np.zeros((1, 3, 8, 8), np.float32)
    assert (
        built.layers == () and built({"x": x})[0].shape == (1, 4) and built.layer_times({"x": x}, 1) == {}
    )
    assert built.get_params() and built.inputs == {"x": ((1, 3, 8, 8), "float32")}


# -- the same bytes

COMPILE = """
import sys
import numpy as np
import tvm_easyquant as eq
from tvm_easyquant import cli
folder, target = sys.argv[1:]
for words in (
    ["compile", "net.onnx", "--target", f"easyquant -table=net.json, {target}", "-o", f"{folder}/easyquant.tar"],
    ["compile", "net.onnx", "--target", target, "-o", f"{folder}/float.tar"],
    ["import-onnx", "qdq.onnx", "--target", target, "-o", f"{folder}/imported.tar"],
):
    assert cli.run(words) == 0
built = eq.build(eq.rewrite(eq.load_onnx("net.onnx"), eq.ScaleTable.load("net.json")), target)
built.export(f"{folder}/package.tar")
built.export_library(f"{folder}/library.so")
built.export_library(f"{folder}/library.tar")
print(built.digest)
"""


@pytest.mark.ci
@pytest.mark.linker
def test_two_processes_write_the_same_bytes(tmp_path):
    """Archives held times, parameters the order of a hash map: no two runs of ``compile`` were alike."""
    onnx.save(networks.small_onnx(), tmp_path / "net.onnx")
    images = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    q = eq.quantize(tmp_path / "net.onnx", images, method="minmax")
    q.table.save(tmp_path / "net.json")
    q.to_onnx(tmp_path / "qdq.onnx")
    found, digests = [], []
    for folder in ("a", "another/one"):
        (tmp_path / folder / "tmp").mkdir(parents=True)
        done = python(COMPILE, folder, "llvm", cwd=tmp_path, TMPDIR=str(tmp_path / folder / "tmp"))
        assert done.returncode == 0, done.stderr
        digests.append(done.stdout.split()[-1])
        found.append({p.name: p.read_bytes() for p in (tmp_path / folder).iterdir() if p.is_file()})
    assert set(found[0]) == {f"{n}.tar" for n in ("easyquant", "float", "imported", "package",
                                                  "library")} | {"library.so"}  # fmt: skip
    assert [name for name in found[0] if found[0][name] != found[1][name]] == []
    assert digests[0] == digests[1]
    assert found[0]["easyquant.tar"] == found[0]["package.tar"]  # what tvmc compiles is what build compiles
    want = q.build("llvm")({"x": images[:1]})[0]
    for name in ("easyquant.tar", "imported.tar", "library.so"):
        np.testing.assert_array_equal(deploy.Program(tmp_path / "a" / name)({"x": images[:1]})[0], want)
    with tarfile.open(tmp_path / "a" / "float.tar") as tar:
        assert [(m.name, m.mtime, m.uid, m.uname) for m in tar] == [
            (n, 0, 0, "") for n in ("mod.json", "mod.params", "mod.so")
        ]


def test_a_user_s_own_settings_come_before_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(networks.small_onnx(), "net.onnx")
    images = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    eq.quantize("net.onnx", images, method="minmax").table.save("net.json")
    command = ["compile", "net.onnx", "--target", "easyquant -table=net.json, llvm", "-o", "net.tar"]
    sizes = []
    for options in ([], ["--pass-config", "relay.FuseOps.link_params=0"]):
        assert cli.run([*command, *options]) == 0
        with tarfile.open("net.tar") as tar:
            sizes.append(len(tvm.runtime.load_param_dict(tar.extractfile("mod.params").read())))
    assert sizes[0] == 0 < sizes[1]


def test_parameters_are_tvm_s_in_the_order_of_their_names():
    rng = np.random.default_rng(0)
    arrays = {f"p{i}": tvm.nd.array(rng.integers(0, 9, (i + 1, 2)).astype("int8")) for i in range(20)}
    text = artefact.parameters(arrays)
    again = tvm.runtime.load_param_dict(text)
    assert {k: v.numpy().tolist() for k, v in again.items()} == {
        k: v.numpy().tolist() for k, v in arrays.items()
    }
    assert artefact.parameters(dict(reversed(arrays.items()))) == text == artefact.parameters(again)
    assert artefact.parameters({"p1": arrays["p1"]}) == bytes(
        tvm.runtime.save_param_dict({"p1": arrays["p1"]})
    )
