"""The host with Relax: the norm's integers in every network, under the tables that the other host has, too.

Skipped where TVM 0.19 is installed, or none.
"""

import importlib.metadata
import json
import re
import zlib
from functools import cache
from pathlib import Path

import golden_networks
import networks
import numpy as np
import pytest
import test_onnx_lowering as lowered
from python_process import python

import tvm_easyquant as eq
from topi_ext import isa
from tvm_easyquant import host as hosts
from tvm_easyquant.errors import (
    DeployError,
    GraphError,
    HostError,
    LinkerMissing,
    LoadError,
    TargetError,
    TVMMissing,
)
from tvm_easyquant.host import installed
from tvm_easyquant.samples.images import Preprocess
from tvm_easyquant.scales.integer import Sample, Scales, run_integer

GOLDEN = Path(__file__).with_name("golden")
relax = pytest.importorskip("tvm_easyquant.relax.framework", exc_type=TVMMissing).relax
GENERIC, AVX2 = "llvm", pytest.param("llvm -mcpu=core-avx2", marks=pytest.mark.isa("avx2"))


@cache
def network(name):
    return golden_networks.NETWORKS[name]()


def quantized(name, bits, method="minmax"):
    """(graph, table): a network of the golden files under its stored table, which Relay's tests have, too."""
    graph, _ = network(name)
    table = eq.ScaleTable.load(GOLDEN / "tables" / f"{name}.{method}.int{bits}.json")
    return table.prepared(graph), table


def build(graph, table, target, taps=()):
    host = installed("relax")
    return host.build(host.rewrite(graph, table, taps), target, outputs=graph.outputs)


def from_integers(graph, plan):
    """The tensors that no float node has a part in, but what reads the inputs."""
    found = set()
    for node in graph:
        alike = node.op == "input" or (node.name in plan.integer or node.operator.moves)
        if alike and found.issuperset(node.inputs):
            found.add(node.name)
    return found


def near(mine, want, relative=1e-6):
    assert mine.dtype == want.dtype and mine.shape == want.shape
    assert np.abs(mine - want).max() <= relative * np.abs(want).max()


def cases():
    """Every network with 7 and 8 bits, generic and AVX2; of the largest two of the four."""
    for name in golden_networks.NETWORKS:
        for bits in (7, 8):
            for target, other in ((GENERIC, 7), ("llvm -mcpu=core-avx2", 8)):
                if name != "demo" or bits != other:
                    marks = () if target == GENERIC else pytest.mark.isa("avx2")
                    yield pytest.param(name, bits, target, marks=marks, id=f"{name} int{bits} {target}")


@pytest.mark.parametrize("name, bits, target", list(cases()))
def test_a_network_has_the_norm_s_integers(name, bits, target, compared):
    graph, table = quantized(name, bits)
    built, exact, count = build(graph, table, target), from_integers(graph, table.check(graph)), 0
    assert built.outputs == graph.outputs
    for feed in golden_networks.pictures(graph):
        want = run_integer(graph, table, feed)
        for output, mine in zip(graph.outputs, built(feed), strict=True):
            if output in exact:
                np.testing.assert_array_equal(mine, want[output], err_msg=output)
                count += mine.size
            else:
                near(mine, want[output])
    if name != "small_onnx_island":
        assert count
    compared("relax, outputs", count)


@pytest.mark.parametrize("target", [GENERIC, AVX2])
@pytest.mark.parametrize("name", ["residual", "kinds", "functions", "pools", "moves"])
def test_every_stored_tensor_is_the_norm_s(name, target, compared):
    """Also of a layer that an add was fused to, which its kernel stores nowhere."""
    graph, table = quantized(name, 7, "default")
    plan = table.check(graph)
    (feed,) = golden_networks.pictures(graph, 1)
    sample, scales = Sample(graph.check_inputs(feed)), Scales.of_table(graph, plan, table)
    for node in graph:
        sample.advance(node, scales)
    taps = list(sample.stored)
    found = build(graph, table, target, taps)(feed)[len(graph.outputs) :]
    for tensor, mine in zip(taps, found, strict=True):
        np.testing.assert_array_equal(mine, sample.stored[tensor], err_msg=tensor)
    compared("relax, stored tensors", sum(mine.size for mine in found))


@pytest.mark.parametrize(
    "name",
    [
        "between layers of one dimension",
        "channels last",
        "products of two tensors",
        "gates of channels and of places",
        "the batch behind, Split",
    ],
)
def test_layers_on_what_is_no_map(name, compared):
    model, shape = lowered.NETWORKS[name]()
    feeds = [{"x": lowered.draw(*shape)} for _ in range(3)]
    q = eq.quantize(model, feeds, method="minmax", fuse_functions=True)
    assert q.plan.fused and all(q.graph[n].op in ("reshape", "transpose") for n in q.plan.floats)
    for feed, mine in ((feed, q.build("llvm")(feed)[0]) for feed in feeds):
        (want,) = run_integer(q.graph, q.table, feed).values()
        np.testing.assert_array_equal(mine, want)
        compared("relax, outputs", mine.size)


@pytest.mark.parametrize(
    "made", [networks.turned, networks.joined, networks.attended, networks.normalized, *range(4)]
)
def test_random_networks(made, compared):
    """And three whose maps are transposed, joined and shuffled, and multiplied with each other."""
    graph, images = networks.random_graph(made) if isinstance(made, int) else made()
    q = eq.quantize(graph, images, method="minmax", bits=7 + (made % 2 if isinstance(made, int) else 1))
    feed = {"image": images[0]}
    want = run_integer(q.graph, q.table, feed)
    for output, mine in zip(q.graph.outputs, q.build("llvm")(feed), strict=True):
        if output in from_integers(q.graph, q.plan):
            np.testing.assert_array_equal(mine, want[output], err_msg=output)
            compared("relax, outputs", mine.size)
        else:
            near(mine, want[output])


@pytest.mark.parametrize(
    "skip", [("join", "pool"), ("dw", "left"), ("cat", "avg"), ("logits",), ("pw", "down")], ids=" ".join
)
def test_float_leftovers_are_what_they_are_in_numpy(skip):
    graph, images = networks.residual()
    q = eq.quantize(graph, images, method="minmax", skip=skip)
    assert set(skip) <= set(q.plan.floats)
    built, feed = q.build("llvm"), {"image": images[0]}
    near(built(feed)[0], run_integer(q.graph, q.table, feed)["logits"])


@pytest.mark.parametrize("name", [*golden_networks.NETWORKS, "uncounted"])
def test_a_float_network_is_what_it_is_in_numpy(name):
    """Every operator's float rule."""
    graph = uncounted() if name == "uncounted" else network(name)[0]
    host = installed("relax")
    built = host.build_float(host.float_module(graph), "llvm")
    (feed,) = golden_networks.pictures(graph, 1)
    assert not built.layers
    want = graph.run(feed)
    for output, mine in zip(graph.output_names, built(feed), strict=True):
        near(mine, want[output], 1e-5)


def uncounted():
    """An average pool that does not count its padding, and functions of one number and of a channel."""
    b = networks.Builder(9, size=7)
    x = b.conv("first", "image", 4)
    attrs = dict(pool_size=(3, 3), strides=(2, 2), padding=(1, 1, 1, 1), count_include_pad=False)
    x = b.add("mean", "avg_pool2d", [x], (1, 4, 4, 4), attrs)
    softplus = ("log", ("add", ("exp", ("multiply", "x", 40.0)), 1.0))
    for name, e in (("softplus", softplus), ("tanh", ("tanh", ("clip", "x", -1.0, float("inf")))),
                    ("prelu", ("leaky_relu", "x", (0.1, 0.2, 0.3, 2.0)))):  # fmt: skip
        x = b.add(name, "elementwise", [x], (1, 4, 4, 4), dict(expression=e))
    b.conv("last", x, 3)
    return b.graph("last")


def test_an_onnx_model_with_an_operator_of_no_rule_is_refused_by_its_name(tmp_path, capsys):
    """The other host takes such from TVM's importer. Story: it was told at build, after the whole search."""
    from tvm_easyquant import cli

    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3, 1, 1)).astype(np.float32)
    nodes = [
        ("Conv", ["x", "w"], ["c"], "conv", {}),
        ("Det", ["c"], ["y"], "det", {}),
    ]
    model = networks.onnx_model(nodes, {"x": [1, 3, 4, 4]}, {"y": [1, 4]}, {"w": weight})
    q = eq.quantize(model, [rng.standard_normal((1, 3, 4, 4)).astype(np.float32)], method="minmax")
    with pytest.raises(GraphError, match="node det: the relax host has no Det of this kind yet"):
        q.build("llvm")
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    assert cli.run(["quantize", str(path), "--dry-run"]) == 0
    told = capsys.readouterr().err
    assert "node det: the relax host has no Det" in told and "compile will refuse it here" in told


@pytest.mark.parametrize("op, gates", [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_a_recurrent_head_is_what_it_is_in_numpy(op, gates):
    """Story: none was compiled here, and of two directions none was read by either host."""
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 3, 3, 3), "v": (2, gates * 5, 4), "r": (2, gates * 5, 5), "b": (2, 2 * gates * 5)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        ("Conv", ["x", "w"], ["c"], "conv", dict(kernel_shape=[3, 3], pads=[1] * 4)),
        ("Reshape", ["c", "s"], ["f"], "flat", {}),
        ("Transpose", ["f"], ["t"], "turned", dict(perm=[2, 0, 1])),
        (op, ["t", "v", "r", "b"], ["y"], "cell", dict(hidden_size=5, direction="bidirectional")),
    ]
    constants = {**weights, "s": np.array([1, 4, 16])}
    model = networks.onnx_model(nodes, {"x": [1, 3, 4, 4]}, {"y": [16, 2, 1, 5]}, constants)
    images = [rng.standard_normal((1, 3, 4, 4)).astype(np.float32) for _ in range(3)]
    q = eq.quantize(model, images, method="minmax")
    want = q.run(images[0])
    near(q.build("llvm")(images[0])[0], want["y"] if isinstance(want, dict) else want[0])


@pytest.mark.parametrize("skip", [(), ("stem",)], ids=["integers", "a float layer"])
@pytest.mark.parametrize("color", ["RGB", "BGR"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_bytes_are_what_their_preprocessing_makes_of_them(layout, color, skip):
    graph, _ = networks.residual()
    preprocess = Preprocess(color=color, scale=1 / 255, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    shots = np.random.default_rng(0).integers(0, 256, (2, 1, 10, 10, 3), np.uint8)
    feeds = [preprocess(shot[0]) for shot in shots]
    q = eq.quantize(graph, feeds, method="minmax", preprocess=preprocess, skip=skip)
    built = q.build("llvm", input_layout=layout, input_dtype="uint8")
    for shot, feed in zip(shots, feeds, strict=True):
        want = run_integer(q.graph, q.table, {"image": feed})["logits"]
        (mine,) = built({"image": shot if layout == "NHWC" else shot.transpose(0, 3, 1, 2)})
        if skip:
            near(mine, want)
        else:
            np.testing.assert_array_equal(mine, want)


# -- one table, one plan


@pytest.mark.parametrize("name", golden_networks.NETWORKS)
def test_the_kernels_are_those_of_the_other_host(name):
    stored = json.loads((GOLDEN / "kernels.json").read_text())
    for bits in (7, 8):
        graph, table = quantized(name, bits)
        for row in isa.ISAS.values():
            if not row.arch:
                layers = installed("relax").layer_choices(graph, table, row.target)
                chosen = {layer.name: layer.choice.kernel.name for layer in layers}
                assert chosen == stored[f"{name} int{bits}"][row.name]


MAKE = """
import sys, zlib
{before}
import networks, tvm_easyquant as eq
print(zlib.crc32(eq.quantize(*networks.chain(), grid=6).table.to_json().encode()), "tvm" in sys.modules)
"""


def test_a_table_is_the_same_with_any_host_or_none():
    def made(before):
        done = python(MAKE.format(before=before))
        assert done.returncode == 0, done.stderr
        return done.stdout

    graph, images = networks.chain()
    q = eq.quantize(graph, images, grid=6)
    q.build("llvm")
    table = zlib.crc32(q.table.to_json().encode())
    assert made("sys.modules['tvm'] = None").split()[0] == str(table) == made("import tvm").split()[0]


# -- what is built


@pytest.fixture(scope="module")
def small():
    graph, images = networks.chain()
    return eq.quantize(graph, images, method="minmax"), images


def test_a_built_network_is_timed_whole_and_by_layers(small):
    q, images = small
    built = q.build()
    assert len(built.milliseconds(3)) == 3 and min(built.milliseconds(2, 2)) > 0
    times = built.layer_times({"image": images[0]}, repeat=2)
    assert list(times) == ["first", "second"] and min(times.values()) > 0
    executor = eq.Executor(built)
    np.testing.assert_array_equal(executor({"image": images[0]})[0], built({"image": images[0]})[0])


def test_a_wrong_feed_is_named(small):
    q, images = small
    built = q.build("llvm")
    with pytest.raises(GraphError, match="there is no input picture; the inputs are \\['image'\\]"):
        built({"picture": images[0]})
    with pytest.raises(GraphError, match="input image is missing"):
        built({})
    with pytest.raises(GraphError, match="input image is float64 .*, the model takes float32"):
        built({"image": images[0].astype(np.float64)})


def test_an_input_may_lie_anywhere(small):
    """The code reads vectors of 64 bytes; an array of numpy's that begins elsewhere ended the process."""
    q, images = small
    built = q.build()
    space = np.zeros(images[0].size + 1, np.float32)
    odd = space[1:].reshape(images[0].shape)
    odd[:] = images[0]
    turned = np.ascontiguousarray(images[0].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for array in (odd, turned):
        np.testing.assert_array_equal(built({"image": array})[0], built({"image": images[0]})[0])


@pytest.mark.linker
def test_a_library_is_written_whole_and_quietly_and_runs(small, tmp_path, capfd):
    q, images = small
    built = q.build("llvm")
    built.export_library(tmp_path / "net.so")
    assert [p.name for p in tmp_path.iterdir()] == ["net.so"] and capfd.readouterr().err == ""
    assert built.size > 1000 and built.digest == q.build("llvm").digest != q.build().digest
    import tvm

    machine = relax.VirtualMachine(tvm.runtime.load_module(str(tmp_path / "net.so")), tvm.cpu())
    made = machine["main"](tvm.runtime.tensor(images[0])).numpy()
    np.testing.assert_array_equal(made, built({"image": images[0]})[0])


def test_without_a_compiler_there_is_an_archive_and_a_line(small, tmp_path, monkeypatch):
    from tvm.support import cc

    monkeypatch.setattr(cc, "get_cc", lambda: None)
    built = small[0].build("llvm")
    with pytest.raises(LinkerMissing, match="install g\\+\\+"):
        built.export_library(tmp_path / "net.so")
    built.export_library(tmp_path / "net.tar")
    assert [p.name for p in tmp_path.iterdir()] == ["net.tar"]


def test_an_input_keeps_its_name():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3, 1, 1)).astype(np.float32)
    nodes = [("Conv", ["main/x:0", "w"], ["y"], "conv", {})]
    model = networks.onnx_model(nodes, {"main/x:0": [1, 3, 4, 4]}, {"y": [1, 4, 4, 4]}, {"w": weight})
    q = eq.quantize(model, [rng.standard_normal((1, 3, 4, 4)).astype(np.float32)], method="minmax")
    assert q.build("llvm").inputs == {"main/x:0": ((1, 3, 4, 4), "float32")}


# -- targets


@pytest.mark.parametrize(
    "target",
    [
        "llvm -mcpu=core-avx2",
        {"kind": "llvm", "mcpu": "core-avx2"},
        '{"kind": "llvm", "mcpu": "core-avx2"}',
    ],
    ids=["text", "dict", "JSON"],
)
def test_a_target_is_named_as_users_know_it(target):
    from topi_ext.relax.lower import target_isa
    from tvm_easyquant.relax.artefact import target_text

    made = installed().target(target)
    assert target_text(made) == "llvm -mcpu=core-avx2" and target_isa(made) == "avx2"
    assert target_isa(installed().target("llvm -mcpu=znver4 -mattr=-avx512f,-avx2")) == "generic"
    assert installed().target(made).attrs["mcpu"] == "core-avx2"


def test_the_options_of_a_target_are_what_tvm_wants_them_to_be():
    """Whole numbers and switches were given as text, which TVM refuses; quotes stayed, and were ignored."""
    made = installed().target("""llvm -opt-level=3 -fast-math=1 -num-cores=2 -mattr="+avx2,-fma" """)
    found = {key: made.attrs[key] for key in ("opt-level", "fast-math", "num-cores")}
    assert found == {"opt-level": 3, "fast-math": True, "num-cores": 2}
    assert list(made.attrs["mattr"]) == ["+avx2", "-fma"]


def test_this_cpu_hides_what_the_machine_hides():
    from topi_ext.relax.lower import target_isa

    made = installed().target()
    assert isa.host_has(target_isa(made)) and installed().this_cpu().startswith("llvm -mcpu=")


@pytest.mark.parametrize(
    "target, why",
    [
        ("cuda", "target 'cuda' is not a CPU; name an llvm target"),
        ("llvm -mcpu=pentium9", "LLVM knows no -mcpu=pentium9"),
        ("llvm -speed=9", "is not a TVM target: "),
        ("llvm core-avx2", "core-avx2 is not -key=value"),
        ("nonsense", "is not a TVM target: "),
        ("", "the target is empty; name one, such as 'llvm -mcpu=core-avx2'"),
        ("llvm -num-cores=abc", "-num-cores is a whole number, not 'abc'"),
        ("llvm -opt-level=high", "-opt-level is a whole number, not 'high'"),
        ("llvm -fast-math=maybe", "-fast-math is 0 or 1, not 'maybe'"),
        ("llvm -mattr=+avx2,+foo", "LLVM knows no foo (of -mattr)"),
        ({"kind": "llvm", "mattr": ["-fo"]}, "LLVM knows no fo (of -mattr)"),
        ("llvm -mtriple=aarm64-linux-gnu", "this LLVM makes no code for aarm64 (of -mtriple), but for "),
        ("llvm -mtriple=aarch64-linux-gnu -mattr=-neon", "has no NEON, which every 64-bit ARM CPU has"),
        ("llvm -mtriple=armv7a-linux-gnueabihf -mattr=+neon", "write -mfloat-abi=hard, too"),
        (7, "is not a TVM target: "),
    ],
)
def test_a_target_that_is_none_is_refused_in_a_line(target, why):
    with pytest.raises(TargetError) as error:
        installed().target(target)
    assert why in str(error.value) and "\n" not in str(error.value)


# -- which host, and what this one does not do yet


def test_one_environment_has_one_host(monkeypatch):
    assert installed() is installed("relax")
    with pytest.raises(TVMMissing, match=r"tvm_easyquant\[relay\]"):
        installed("relay")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")
    with pytest.raises(TVMMissing, match="installed over each other.*pip uninstall both"):
        installed()


def test_without_any_host_both_are_named(monkeypatch):
    monkeypatch.setattr(hosts, "HOSTS", ("relay",))
    with pytest.raises(TVMMissing) as error:
        installed()
    assert "[relay]'" in str(error.value) and "[relax]'" in str(error.value)


def test_an_older_tvm_is_not_taken_for_this_one():
    code = "import tvm; tvm.__version__ = '0.19.0'\nimport tvm_easyquant.relax.host"
    result = python(code)
    assert "TVMMissing: the relax host needs apache-tvm 0.27" in result.stderr
    assert "(here is TVM 0.19.0)" in result.stderr


def test_a_module_is_saved_where_the_ffi_can(small, monkeypatch):
    from tvm_easyquant.relax import host

    q, _ = small
    assert "easyquant.spec" in installed().save_module(q.module)
    monkeypatch.setattr(host, "ffi_crashes", lambda: "0.1.15")
    with pytest.raises(HostError, match=r"0\.1\.15 crashes .* 'apache-tvm-ffi<0\.1\.15'"):
        installed().save_module(q.module)


@pytest.mark.parametrize(
    "ask, error",
    [
        (lambda q, host: q.build("llvm", lower=False), HostError),
        (lambda q, host: host.load("net.tflite"), LoadError),
    ],
)
def test_what_the_host_does_not_do_yet_is_said_in_a_line(ask, error, small):
    with pytest.raises(error, match="(the relax host|yet)") as found:
        ask(small[0], installed())
    assert "\n" not in str(found.value)


def test_doctor_says_which_host(capsys):
    from tvm_easyquant import cli

    assert cli.run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"its ffi {importlib.metadata.version('apache-tvm-ffi')}, LLVM" in out
    assert "relax host" in out and "ours has 0.0%" in out if isa.host_has("avx2") else "relax host" in out


def test_verbs_of_ours_work(tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    from tvm_easyquant import cli

    onnx.save(networks.small_onnx(), tmp_path / "net.onnx")
    images = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=images)
    words = ["quantize", str(tmp_path / "net.onnx"), "--calibration", str(tmp_path / "x.npz"), "--method",
             "minmax", "-o", str(tmp_path / "t.json")]  # fmt: skip
    assert cli.run(words) == 0
    table = ["--table", str(tmp_path / "t.json"), "--target", "llvm -mcpu=core-avx2"]
    assert cli.run(["plan", str(tmp_path / "net.onnx"), *table]) == 0
    assert "conv1" in capsys.readouterr().out
    np.savez(tmp_path / "labelled.npz", images=images, labels=np.zeros(4, np.int64))
    words = ["evaluate", str(tmp_path / "net.onnx"), *table, "--data", str(tmp_path / "labelled.npz")]
    assert cli.run(words) == 0
    shown = capsys.readouterr()
    assert "lost 0 of 4" in shown.out and "run in numpy" not in shown.err
    assert cli.run(["--version"]) == 0 and installed().version in capsys.readouterr().out


# -- the command line


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a model, its table and an input; (folder, the outputs)."""
    onnx = pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("work")
    onnx.save(networks.small_onnx(), folder / "net.onnx")
    images = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    q = eq.quantize(folder / "net.onnx", images, method="minmax")
    q.table.save(folder / "net.json")
    np.savez(folder / "x.npz", x=images)
    return folder, np.concatenate([q.build("llvm")({"x": x[None]})[0] for x in images])


def ask(capsys, *words):
    """(exit code, what is printed, lines of errors)."""
    from tvm_easyquant import cli

    code, shown = cli.run(list(map(str, words))), capsys.readouterr()
    return code, shown.out, [line for line in shown.err.splitlines() if not line.startswith("easyquant: ")]


@pytest.mark.linker
@pytest.mark.parametrize("words", [
    ["--table", "net.json", "--target", "llvm -mcpu=core-avx2"],
    ["--table", "net.json", "--target", '{"kind": "llvm", "mcpu": "core-avx2"}'],
    ["--target", "easyquant -table=net.json, llvm -mcpu=core-avx2"],
    ["--host", "relax", "--table=net.json", "--isa", "avx2,generic", "-f", "so"],
], ids=["text", "JSON", "easyquant", "isa"])  # fmt: skip
def test_compile_and_run(work, words, tmp_path, capsys, monkeypatch):
    folder, want = work
    monkeypatch.chdir(folder)
    code, _, errors = ask(capsys, "compile", "net.onnx", *words, "-o", tmp_path / "net.tar")
    assert code == 0 and len(errors) == 2  # its size, and what follows
    assert errors[0].startswith(f"{tmp_path / 'net.tar'}: ") and errors[1].startswith(
        "next: tvmc-easyquant "
    )
    done = [
        "run",
        tmp_path / "net.tar",
        "-i",
        "x.npz",
        "-o",
        tmp_path / "y",
        "--print-time",
        "--print-top",
        2,
    ]
    code, out, errors = ask(capsys, *done, "--repeat", 3, "-v")
    assert code == 0 and len(errors) == 2 and ": variant " in errors[0], errors
    assert errors[1].startswith("next: tvmc-easyquant deploy ")
    assert "Execution time summary:" in out and "median (ms)" in out
    np.testing.assert_array_equal(np.load(tmp_path / "y.npz")["output_0"], want)
    top = want[0].argsort()[::-1][:2]
    assert list(map(int, re.findall(r"(\d+)\.", out.splitlines()[-2]))) == list(top), out


@pytest.mark.linker
def test_a_float_model_is_compiled_too(work, tmp_path, capsys, monkeypatch):
    folder, want = work
    monkeypatch.chdir(folder)
    assert ask(capsys, "compile", "net.onnx", "--target", "llvm", "-o", tmp_path / "net.tar")[0] == 0
    assert ask(capsys, "run", tmp_path / "net.tar", "-i", "x.npz", "-o", tmp_path / "y.npz")[0] == 0
    found = np.load(tmp_path / "y.npz")["output_0"]
    assert found.shape == want.shape and np.abs(found - want).max() < 0.1 * np.abs(want).max()


@pytest.mark.parametrize("words, code, message", [
    ("tune net.onnx -o log", 4, "the relax host does not tune yet as tvmc does: tvmc-easyquant tune-kernels"),
    ("micro create", 4, "the relax host has no micro; TVM 0.19 has"),
    ("compile net.onnx --target cuda --table net.json", 4, "'cuda' is not a CPU"),
    ("compile net.onnx --target llvm,-mcpu=pentium9 --table net.json", 4, "is not a TVM target"),
    ("compile net.onnx --isa avx2", 4, "--isa compiles the integers of a scale table: give --table FILE"),
    ("compile net.onnx --table net.json --isa avx2 --target llvm", 4, "both say for which CPU"),
    ("compile net.onnx --input-dtype uint8", 4, "is of the integers of a scale table"),
    ("compile net.onnx --target easyquant,llvm", 4, 'needs a scale table: "easyquant -table=FILE, llvm"'),
    ("compile net.onnx --cross-compiler no-such-g++", 4, "there is no compiler no-such-g++ here"),
    ("compile net.onnx --table net.json --tuning-records log", 4, "there is no file log"),
    ("compile net.tflite", 4, "the relax host loads no models but ONNX yet"),
    ("run no.tar", 4, "no.tar does not exist"),
    ("run net.onnx", 4, "net.onnx is no package that compile wrote"),
    ("run net.tar --inputs no.npz", 4, "--inputs: cannot read no.npz"),
    ("--host relay run net.tar", 5, "tvm_easyquant needs Apache TVM 0.19 with Relay"),
    ("plan net.onnx --table net.json --host=relay", 5, "tvm_easyquant needs Apache TVM 0.19 with Relay"),
    ("doctor --host torch", 4, "host is 'torch'; use one of relay, relax"),
])  # fmt: skip
def test_a_mistake_is_a_line(work, words, code, message, capsys, monkeypatch):
    monkeypatch.chdir(work[0])
    found, _, errors = ask(capsys, *words.split())
    assert found == code and len(errors) == 1 and message in errors[0], errors


def test_help_of_the_verbs_in_place_of_tvmc_s(capsys):
    from tvm_easyquant import cli

    for verb, option in (("compile", "--table"), ("run", "--print-time")):
        with pytest.raises(SystemExit) as ended:
            cli.run([verb, "--help"])
        assert ended.value.code == 0 and option in capsys.readouterr().out


def test_host_only_says_which_it_must_be(small):
    graph, images = networks.chain()
    assert eq.quantize(graph, images, method="minmax", host="relax").build("llvm").layers
    with pytest.raises(TVMMissing, match=r"tvm_easyquant\[relay\]"):
        eq.quantize(graph, images, method="minmax", host="relay")


# -- what ships


NO_COMPILER = """
import os, sys
os.environ["PATH"] = "/nowhere"
os.environ.pop("CXX", None), os.environ.pop("CC", None)
import networks, tvm_easyquant as eq
from tvm_easyquant import cli
graph, images = networks.chain()
q = eq.quantize(graph, images, method="minmax")
q.build("llvm")({"image": images[0]})
try:
    q.build("llvm").export("net.tar")
except eq.errors.LinkerMissing as error:
    print(error)
sys.exit(cli.run(["compile", "no.onnx", "-o", "net.tar"]))
"""


def test_a_network_runs_without_a_compiler_and_one_that_ships_is_refused_before_work(tmp_path):
    """It was TypeError: 'NoneType' object is not callable, at the end."""
    code = NO_COMPILER.replace("eq.errors", "errors").replace(
        "from tvm_easyquant import cli", "from tvm_easyquant import cli, errors"
    )
    done = python(code)
    line = "there is no C++ compiler to link with: install g++, or set CXX"
    assert done.stdout == f"{line}\n" and done.returncode == 5, done.stderr
    assert f"error: {line}\n" in done.stderr and "no.onnx" not in done.stderr


@pytest.mark.linker
def test_an_artefact_of_the_other_host_is_a_line(small, tmp_path):
    """And what its libraries lack is no crash."""
    from tvm_easyquant import deploy, package

    needs = package.Needs("generic", isa.arch_of(""), ())
    contents = dict.fromkeys(package.FILES, b"")
    theirs = package.Compiled(package.Variant("generic", needs, "llvm", "0.19.0"), "", contents)
    (tmp_path / "net.tar").write_bytes(package.packed("1", [theirs]))
    with pytest.raises(DeployError) as error:
        deploy.Program(tmp_path / "net.tar")
    assert str(error.value) == (
        "net.tar was compiled by TVM 0.19 (the relay host), and today's apache-tvm (relax) is installed here: "
        "pip install 'tvm_easyquant[relay]' in an environment of its own, or compile it here"
    )
    with pytest.raises(DeployError, match="libtvm_runtime.so is no TVM runtime for this CPU"):
        deploy.Program(tmp_path / "net.tar", deploy.runtime_file(package.VM))
    small[0].build("llvm").export(tmp_path / "mine.tar")
    with pytest.raises(DeployError, match="no TVM runtime for this CPU|needs libtvm_ffi.so"):
        deploy.Program(tmp_path / "mine.tar", tmp_path / "net.tar")


@pytest.mark.linker
def test_a_library_of_tvm_s_own_says_no_inputs(small, tmp_path):
    from tvm_easyquant import deploy

    small[0].build("llvm").library.export_library(str(tmp_path / "own.so"))
    with pytest.raises(DeployError, match="own.so does not say what its inputs are: Built.export"):
        deploy.Program(tmp_path / "own.so")


def test_another_interface_of_the_ffi_is_a_line(monkeypatch):
    """A wrong apache-tvm-ffi ended the process."""
    from tvm_easyquant import deploy, package
    from tvm_easyquant.runtime import vm

    monkeypatch.setattr(vm, "INTERFACE", (0, 9))
    with pytest.raises(DeployError, match=r"libtvm_ffi.so is version 0\.1\.\d+; this release knows 0\.9"):
        vm.Runtime(deploy.find_runtime(package.VM))


@pytest.mark.linker
def test_the_weights_are_mapped_and_once(tmp_path):
    """They were a part of the code that each process copied to its heap."""
    from tvm_easyquant import deploy

    q = eq.quantize(networks.small_onnx(batch="n"), [np.ones((1, 3, 8, 8), np.float32)], method="minmax")
    q.build("llvm", input_shapes=[{"x": (n, 3, 8, 8)} for n in (1, 2)]).export(tmp_path / "net.tar")
    with deploy.Program(tmp_path / "net.tar") as program:
        one, two = (network._loaded for network in program._networks)
        assert one._weights and len(program._tvm._maps) == 1
        places = [[kept[1].ctypes.data for kept in network._kept] for network in (one, two)]
        assert places[0] == places[1] and all(place % 64 == 0 for place in places[0])
        assert not any(kept[1].flags.writeable for kept in one._kept)


def test_a_fork_waits_for_the_calls_that_run(small):
    """The memory of the virtual machine is behind a lock, which a child of fork may find taken for ever."""
    import threading

    q, images = small
    with eq.Executor(q.build("llvm"), contexts=2) as executor:
        pool, order = executor._contexts, []
        context = pool.take()
        forks = threading.Thread(target=lambda: (pool.hold(), order.append("forks"), pool.release()))
        forks.start()
        calls = threading.Thread(target=lambda: (executor({"image": images[0]}), order.append("called")))
        while not pool._forks:
            pass
        calls.start()
        calls.join(0.05)
        assert calls.is_alive() and not order
        pool.give(context)
        calls.join(30)
        forks.join(30)
        assert order == ["forks", "called"]
