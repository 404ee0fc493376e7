"""One network at several input shapes: one table, one package, and the array says which code runs."""

import json
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace

import networks
import numpy as np
import pytest
from python_process import run

from topi_ext import isa
from tvm_easyquant import package
from tvm_easyquant.errors import ConfigError, DeployError, GraphError, LoadError, TableError, TargetError
from tvm_easyquant.host import installed
from tvm_easyquant.network.graph import Graph
from tvm_easyquant.network.shapes import reshaped
from tvm_easyquant.scales.integer import run_integer

SHAPES = [(1, 3, 8, 8), (1, 3, 8, 20), (4, 3, 12, 12)]


def arrays(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# -- the same network, without a compiler


@pytest.mark.parametrize("make", [networks.residual, networks.turned])
def test_a_network_at_another_size_keeps_its_fingerprint(make):
    """Its table was refused: the weights or shapes differ."""
    import tvm_easyquant as eq

    (graph, images), (other, more) = make(size=10), make(size=14)
    assert other.fingerprint != graph.fingerprint
    made = reshaped(graph, other)
    assert made.fingerprint == graph.fingerprint and made["image"].shape == (1, 14, 14, 3)
    table = eq.quantize(graph, images, method="minmax").table
    with pytest.raises(TableError, match="made for another model"):
        table.check(other)
    there = table.at_shapes(graph, other)
    assert table.check(there).integer == table.check(graph).integer
    assert np.isfinite(run_integer(there, table, {"image": more[0]})["logits"]).all()


def with_node(graph, name, **changes):
    """The graph with a node of it changed, or left out (None)."""
    return Graph([replace(n, **changes) if n.name == name else n for n in graph], graph.outputs, graph.name)


@pytest.mark.parametrize(("name", "changes", "what"), [
    ("stem", dict(bias=np.ones(8, np.float32)), "node stem has another bias"),
    ("pw", dict(weight=np.ones((1, 1, 8, 8), np.float32)), "node pw has another weight"),
    ("dw.relu", dict(attrs=dict(lo=0.0, hi=5.0)), "node dw.relu has hi 5.0, not 6.0"),
    ("avg", dict(attrs=dict(pool_size=(1, 2), strides=(1, 1), padding=(0,) * 4, count_include_pad=True)),
     r"node avg has pool_size \(1, 2\), not \(2, 2\)"),
    ("join.relu", dict(op="avg_pool2d", attrs=dict(pool_size=(1, 1), strides=(1, 1), padding=(0,) * 4,
                                                  count_include_pad=True)), "node join.relu has another op"),
    ("cat", dict(dtype="uint8"), "node cat has another dtype"),
    ("cat", dict(inputs=("right.relu", "left.relu")), "node cat has another inputs"),
    ("flat", dict(shape=(1, 16, 1)), "node flat has another number of dimensions"),
])  # fmt: skip
def test_what_is_another_network_is_told_by_its_first_node(name, changes, what):
    (graph, _), (other, _) = networks.residual(size=10), networks.residual(size=14)
    with pytest.raises(GraphError, match=rf"test with image \(1, 3, 14, 14\) is another network: {what}"):
        reshaped(graph, with_node(other, name, **changes))


def test_another_number_of_nodes_is_another_network():
    graph, _ = networks.chain(size=10)
    other, _ = networks.chain(size=12, relu=False)
    with pytest.raises(GraphError, match=r"2 nodes and outputs|3 nodes and outputs"):
        reshaped(graph, other)


def test_a_table_of_equalized_weights_fits_the_other_sizes():
    import tvm_easyquant as eq

    factors = np.float32([1, 8, 64, 512])
    (graph, images), other = networks.chain(size=10), networks.chain(size=14)[0]
    graph, other = (with_node(g, "first", weight=g["first"].weight * factors) for g in (graph, other))
    q = eq.quantize(graph, images, method="minmax", equalize=True)
    there = q.table.at_shapes(q.graph, other)
    assert q.table.check(there).integer == q.plan.integer
    assert any(not np.array_equal(there[n.name].weight, n.weight) for n in other.compute_nodes)


# -- the package, without a compiler


def compiled(row, shape, code=b"code"):
    needs = package.Needs(row, "x86_64", isa.ISAS[row].features)
    taken = {"x": package.Input(shape, "float32")}
    variant = package.Variant(row, needs, f"llvm for {row}", "0.19.0", inputs=taken)
    contents = {"code": code + row.encode() + str(shape).encode(), "graph": b"{}", "parameters": b""}
    return package.Compiled(variant, json.dumps({"model": "f" * 64}), contents)


@pytest.fixture
def fleet(tmp_path, monkeypatch):
    """A package for two instruction sets at two shapes, and this machine one with AVX2."""
    flags = frozenset(f for f in isa.FLAG_OF.values() if not f.startswith(("avx512", "amx")))
    monkeypatch.setattr(isa, "host_flags", lambda: flags)
    monkeypatch.setattr(isa.platform, "machine", lambda: "x86_64")
    monkeypatch.delenv(package.CHOICE, raising=False)
    path = tmp_path / "net.tar"
    parts = [compiled(row, shape) for shape in SHAPES[1::-1] for row in ("generic", "avx2")]
    path.write_bytes(package.packed("1.0", parts))
    assert path.read_bytes() == package.packed("1.0", parts[::-1])
    return path


def test_each_shape_of_each_instruction_set_has_a_folder(fleet):
    with tarfile.open(fleet) as tar:
        names = tar.getnames()
    assert names[0] == "easyquant.json" and "avx2/1x3x8x20/mod.so" in names
    assert "generic/1x3x8x8/mod.so" in names
    record = package.read_record(fleet)
    assert [v.name for v in record.variants] == ["avx2", "avx2", "generic", "generic"]
    assert len(record.tables) == 1  # the same for all


def test_each_shape_is_taken_of_the_best_instruction_set(fleet):
    for wanted, row in ((None, "avx2"), ("generic", "generic")):
        found = package.choices(fleet, wanted)
        assert [(c.name, dict(c.variant.shapes)["x"]) for c in found] == [(row, s) for s in SHAPES[:2]]
        assert [c.read()["code"] for c in found] == [
            b"code" + row.encode() + str(s).encode() for s in SHAPES[:2]
        ]
    assert package.choose(fleet).variant == package.choices(fleet)[0].variant
    with pytest.raises(DeployError, match="no variant neon, which isa asks for; it has avx2, generic"):
        package.choices(fleet, "neon")


def test_two_variants_of_one_shape_are_refused():
    parts = [compiled("avx2", shape) for shape in (SHAPES[0], SHAPES[1], SHAPES[0])]
    with pytest.raises(
        DeployError, match="two variants are for avx2/1x3x8x8; give each instruction set and input"
    ):
        package.packed("1.0", parts)


def test_samples_that_are_no_batch_go_to_the_batch_that_wastes_least():
    from tvm_easyquant.deploy import at_shapes

    known = [{"x": (n, 3, 8, 8)} for n in (1, 4, 16)] + [{"x": (2, 3, 9, 9)}]
    batches = [1, 1, 1, 4, 4, 4, 16, 16]
    for samples, batch in zip((1, 2, 3, 4, 5, 15, 16, 40), batches, strict=True):
        assert known[at_shapes(known, {"x": (samples, 3, 8, 8)})] == {"x": (batch, 3, 8, 8)}, samples
    assert at_shapes(known, {"x": (1, 3, 9, 9)}) == 3
    assert at_shapes(known, {"x": (1, 3, 9, 8)}) is None and at_shapes(known, {"x": ()}) is None
    two = [{"x": (1, 3), "y": (1, 5)}, {"x": (1, 4), "y": (1, 5)}]
    assert at_shapes(two, {"x": (1, 4), "y": (1, 5)}) == 1
    assert at_shapes(two, {"x": (2, 4), "y": (2, 5)}) == 1
    assert at_shapes(two, {"x": (1, 4), "y": (1, 6)}) is None


# -- compiled

linked = pytest.mark.linker


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, Quantized, what it is built to at SHAPES): net.onnx, net.json, net.tar; outputs by the norm."""
    pytest.importorskip("tvm")
    onnx = pytest.importorskip("onnx")
    import tvm_easyquant as eq

    folder = tmp_path_factory.mktemp("shapes")
    onnx.save(networks.sized_onnx(), folder / "net.onnx")
    np.savez(folder / "images.npz", x=arrays((4, 3, 8, 8)))
    q = eq.quantize(
        folder / "net.onnx", arrays((4, 3, 8, 8)), method="minmax", input_shapes={"x": SHAPES[0]}
    )
    q.table.save(folder / "net.json")
    built = q.build(isa=["generic"], input_shapes=[{"x": shape} for shape in SHAPES])
    built.export(folder / "net.tar")
    return folder, q, built


def norm(q, x):
    """What the integers of the network are at the shape of x, in numpy."""
    from tvm_easyquant.workflow import load

    graph = q.table.at_shapes(q.graph, load(q.reopen.args[0], {"x": x.shape}))
    return run_integer(graph, q.table, {"x": x})[q.graph.outputs[0]]


@linked
def test_the_array_says_which_code_runs_and_the_integers_are_the_norm_s(made):
    import tvm_easyquant as eq
    from tvm_easyquant.deploy import Program

    folder, q, built = made
    assert built.inputs == {"x": (SHAPES[0], "float32")} and built.shapes == [{"x": s} for s in SHAPES]
    with Program(folder / "net.tar") as program, eq.Executor(built) as executor:
        assert program.shapes == built.shapes and program.inputs["x"][0] == SHAPES[0]
        for shape in (*SHAPES, SHAPES[0]):
            x = arrays(shape, 5)
            want = norm(q, x)
            for run in (program, executor, built):
                np.testing.assert_array_equal(run({"x": x})[0], want)
            np.testing.assert_array_equal(program(x)[0], want)
            program.set_inputs(x)
            program.run()
            np.testing.assert_array_equal(program.outputs()[0], want)
        x = arrays((7, 3, 12, 12), 6)  # cut into calls of four
        np.testing.assert_array_equal(program(x)[0], norm(q, x))
        there = r"the network takes x \(1, 3, 8, 8\); x \(1, 3, 8, 20\); x \(4, 3, 12, 12\)"
        for run, error in ((program, DeployError), (executor, GraphError), (built, GraphError)):
            with pytest.raises(error, match=rf"the inputs are x \(1, 3, 9, 9\), {there}$"):
                run({"x": arrays((1, 3, 9, 9))})
            with pytest.raises(
                error, match=there + r"; its channels are last: give array.transpose\(0, 3, 1, 2\)"
            ):
                run({"x": arrays((1, 8, 20, 3))})
            with pytest.raises(error, match=r"x is float64 \(1, 3, 8, 20\)"):
                run({"x": arrays((1, 3, 8, 20)).astype(np.float64)})
            with pytest.raises(error, match="input x is missing"):
                run({})
    with pytest.raises(TargetError, match="a library holds one input shape, this network is built at 3"):
        built.export_library(folder / "net.so")


@linked
def test_threads_that_take_turns_between_shapes_get_their_own_answers(made):
    from concurrent.futures import ThreadPoolExecutor

    from tvm_easyquant.deploy import Program

    folder, q, _ = made
    feeds = [arrays(shape, i) for i, shape in enumerate(SHAPES * 2)]
    want = [norm(q, x) for x in feeds]
    with Program(folder / "net.tar", contexts=2) as program, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: program(feeds[i % 6])[0], range(240)))
    for i, got in enumerate(found):
        np.testing.assert_array_equal(got, want[i % 6])


@pytest.mark.ci
@linked
def test_compile_writes_what_python_exports_and_the_verbs_take_the_shape_of_the_data(
    made, capsys, monkeypatch
):
    from tvm_easyquant import cli

    folder, q, _ = made
    monkeypatch.chdir(folder)
    shapes = [word for shape in SHAPES for word in ("--input-shapes", f"x:[{','.join(map(str, shape))}]")]
    words = ["compile", "net.onnx", "--table", "net.json", "--isa", "generic", *shapes, "-o", "cli.tar"]
    assert cli.run(words) == 0
    assert (folder / "cli.tar").read_bytes() == (folder / "net.tar").read_bytes()
    capsys.readouterr()
    for shape in SHAPES[:2]:
        np.savez(folder / "in.npz", x=arrays(shape))
        assert not cli.run(["run", "net.tar", "-v", "--inputs", "in.npz", "-o", "out.npz"])
        assert f"net.tar: variant generic, x {shape}\n" in capsys.readouterr().err
        np.testing.assert_array_equal(np.load(folder / "out.npz")["output_0"], norm(q, arrays(shape)))
    images = np.concatenate([arrays(SHAPES[1], i) for i in range(6)])
    labels = norm(q, images).argmax(1)
    np.savez(folder / "data.npz", images=images, labels=labels)
    assert cli.run(["evaluate", "net.tar", "--data", "data.npz", "--float", "net.onnx", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["metrics"]["top1"]
    assert found["value"] == 100 and found["n"] == 6 and found["reference"] > 0
    timed = ["benchmark", "net.tar", "--rounds", "2", "--json"]
    assert cli.run(timed) == 0
    assert json.loads(capsys.readouterr().out)["shapes"] == {"x": list(SHAPES[0])}
    assert cli.run([*timed, *shapes[2:4], "--float", "net.onnx"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["shapes"] == {"x": list(SHAPES[1])} and found["ms_fp32"] > 0


@linked
@pytest.mark.parametrize(("words", "message"), [
    (["compile", "net.onnx", "--table", "net.json", "--input-shapes", "x:[1,3,9,9]", "--input-shapes=x:[1,3,8,16]"],
     "the scale table was made at none of these --input-shapes, or for another model: give the shape"),
    (["compile", "net.onnx", "--table", "net.json", "--input-shapes", "x:[1,3,8,8]", "--input-shapes=x:[1,3,1,1]"],
     "node pool (MaxPool): no window of (2, 2) has a place on (1, 1)"),
    (["compile", "net.onnx", "--table", "net.json", "--input-shapes", "x:[1,3,8,8]", "--input-shapes=x:[1,4,8,8]"],
     "input x was given shape (1, 4, 8, 8), the model says ('?', 3, '?', '?')"),
    (["run", "net.tar", "--inputs", "odd.npz"],
     "the inputs are x (1, 3, 9, 9), the network takes x (1, 3, 8, 8); x (1, 3, 8, 20); x (4, 3, 12, 12)"),
    (["evaluate", "net.tar", "--data", "odd_data.npz"],
     "the inputs are x (1, 3, 9, 9), the network takes x (1, 3, 8, 8); x (1, 3, 8, 20); x (4, 3, 12, 12)"),
    (["evaluate", "net.tar", "--data", "odd_data.npz", "--input-shapes", "x:[1,3,8,8]"],
     "--input-shapes is of a model; net.tar is compiled already: leave it out"),
    (["benchmark", "net.tar", "--input-shapes", "x:[1,3,9,9]"],
     "net.tar is compiled at x (1, 3, 8, 8); x (1, 3, 8, 20); x (4, 3, 12, 12), not x (1, 3, 9, 9)"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_mistakes_are_a_line(made, monkeypatch, capsys, words, message):
    from tvm_easyquant import cli

    folder, _, _ = made
    monkeypatch.chdir(folder)
    np.savez("odd.npz", x=arrays((1, 3, 9, 9)))
    np.savez("odd_data.npz", images=arrays((2, 3, 9, 9)), labels=np.zeros(2, np.int64))
    assert cli.run(words) == 4
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("easyquant: ")]
    if installed().name != "relay" and message.startswith("--input-shapes argument"):  # tvmc's own
        message = "--input-shapes 'x': give NAME:[SIZE,SIZE,...] of each input"
    assert len(lines) == 1 and message in lines[0], lines
    assert not (folder / "n.tar").exists()


def test_in_python_they_are_errors_with_the_cure(made):
    import tvm_easyquant as eq

    _, q, _ = made
    for asked, error, message in (
        ([], ConfigError, "input_shapes is {input: shape}, or a list of such; give one or more"),
        (5, ConfigError, "input_shapes is {input: shape}, or a list of such"),
        (
            [{"x": SHAPES[0]}, {"x": list(SHAPES[0])}],
            ConfigError,
            r"x \(1, 3, 8, 8\) twice; give each once",
        ),
        ({"y": SHAPES[0]}, LoadError, r"input_shapes names \['y'\], its inputs are \['x'\]"),
        ({"x": 3}, LoadError, "input_shapes gives x 3; give its sizes, whole numbers"),
        ({"x": (1, 3, 1, 1)}, LoadError, r"no window of \(2, 2\) has a place on \(1, 1\)"),
    ):
        with pytest.raises(error, match=message):
            q.build(input_shapes=asked)
    of_graph = eq.Quantized(q.table, q.graph, q.plan)
    with pytest.raises(ConfigError, match=r"no model's file: it takes x \(1, 3, 8, 8\) only; quantize the"):
        of_graph.build(input_shapes={"x": (1, 3, 8, 20)})
    assert of_graph.build("llvm", input_shapes={"x": SHAPES[0]}).inputs["x"][0] == SHAPES[0]


def test_a_shape_at_which_the_model_is_another_network_is_refused(made, tmp_path):
    """A model that was changed since: its weights are others."""
    onnx = pytest.importorskip("onnx")
    import tvm_easyquant as eq

    onnx.save(networks.sized_onnx(), tmp_path / "net.onnx")
    images = arrays((4, 3, 8, 8))
    q = eq.quantize(tmp_path / "net.onnx", images, method="minmax", input_shapes={"x": SHAPES[0]})
    onnx.save(networks.sized_onnx(seed=1), tmp_path / "net.onnx")
    with pytest.raises(
        TableError, match=r"net with x \(1, 3, 8, 20\) is another network: node conv1 has another"
    ):
        q.build("llvm", input_shapes={"x": (1, 3, 8, 20)})


@linked
@pytest.mark.ci
def test_bytes_at_several_sizes(made, tmp_path):
    import tvm_easyquant as eq
    from tvm_easyquant.deploy import Program
    from tvm_easyquant.images import Preprocess

    folder, _, _ = made
    how = Preprocess(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    q = eq.quantize(folder / "net.onnx", arrays((4, 3, 8, 8)), method="minmax", preprocess=how,
                    input_shapes={"x": SHAPES[0]})  # fmt: skip
    wanted = [{"x": shape} for shape in SHAPES[:2]]
    q.deploy(tmp_path / "d", isa=["generic"], input_layout="NHWC", input_dtype="uint8", input_shapes=wanted)
    with Program(tmp_path / "d/network.tar") as program:
        assert program.shapes == [{"x": (1, 8, 8, 3)}, {"x": (1, 8, 20, 3)}]
        for _, _, height, width in SHAPES[:2]:
            x = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
            np.testing.assert_array_equal(program(x)[0], norm(q, how.normalized(x.astype(np.float32))))


@linked
@pytest.mark.ci
@pytest.mark.skipif(sys.platform != "linux", reason="builds are for Linux")
def test_the_deployed_folder_runs_every_shape(made, tmp_path):
    from tvm_easyquant import deployment

    folder, q, _ = made
    deployment.deploy(folder / "net.tar", tmp_path / "d")
    assert (tmp_path / "d/network/shapes.txt").read_text() == "1x3x8x8\n1x3x8x20\n4x3x12x12\n"
    assert "EASYQUANT_SHAPES=1x3x8x8 ./run . input.bin" in (tmp_path / "d/README.md").read_text()
    x = arrays(SHAPES[1])
    np.save(tmp_path / "x.npy", x)
    done = run("d/run.py", "x.npy", "-o", "y.npz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npz")["output_0"], norm(q, x))
    compiler = shutil.which("g++") or shutil.which("clang++")
    subprocess.run(
        [compiler, "-std=c++17", "-Wall", "-Werror", "d/run.cc", "-ldl", "-o", "run"],
        cwd=tmp_path,
        check=True,
    )
    x.tofile(tmp_path / "x.bin")
    for named, code, said in (
        ("1x3x8x20", 0, ""),
        ("", 4, "set EASYQUANT_SHAPES to one of 1x3x8x8 1x3x8x20"),
    ):
        done = subprocess.run([tmp_path / "run", "d", "x.bin"], cwd=tmp_path, env={"EASYQUANT_SHAPES": named},
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == code and said in done.stderr, done.stderr
    np.testing.assert_array_equal(np.fromfile(tmp_path / "output_0.bin", np.float32), norm(q, x)[0])
