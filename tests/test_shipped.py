"""`evaluate` and `benchmark` of a package: the figures are those of the very program that ships."""

import json
import tarfile

import networks
import numpy as np
import pytest
from python_process import tvmc

pytest.importorskip("tvm")
onnx = pytest.importorskip("onnx")

import tvm_easyquant as eq
from tvm_easyquant import cli, package
from tvm_easyquant.deploy import Program

pytestmark = pytest.mark.linker


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, its table, a package of two variants, and data with the package's own answers but for one."""
    path, rng = tmp_path_factory.mktemp("shipped"), np.random.default_rng(0)
    images = rng.standard_normal((12, 1, 3, 8, 8)).astype(np.float32)
    onnx.save(networks.small_onnx(), path / "net.onnx")
    q = eq.quantize(path / "net.onnx", list(images), method="minmax")
    q.table.save(path / "net.json")
    q.build(isa=["generic"]).export(path / "net.tar")
    with Program(path / "net.tar") as program:
        labels = program({"x": images[:, 0]})[0].argmax(1)
    labels[0] = (labels[0] + 1) % 4
    np.savez(path / "data.npz", images=images[:, 0], labels=labels)
    onnx.save(networks.small_onnx(seed=1), path / "other.onnx")
    whole = (path / "net.tar").read_bytes()
    (path / "half.tar").write_bytes(whole[: len(whole) // 2])
    with tarfile.open(path / "net.tar") as tar:
        files = {name: tar.extractfile(name).read() for name in package.FILES.values()}
    (path / "bare.tar").write_bytes(package.archive(files))
    return path


def answer(capsys, *words):
    assert cli.run([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_accuracy_is_the_package_s(folder, capsys):
    words = ("evaluate", folder / "net.tar", "--data", folder / "data.npz")
    found = answer(capsys, *words)
    assert found["variant"] == "generic"
    assert found["metrics"]["top1"] == {"n": 12, "value": pytest.approx(100 * 11 / 12)}
    with_model = answer(capsys, "evaluate", folder / "net.onnx", "--table", folder / "net.json", *words[2:])
    paired = answer(capsys, *words, "--float", folder / "net.onnx")
    assert paired["metrics"] == with_model["metrics"]
    assert answer(capsys, *words, "--batch", 5)["metrics"] == found["metrics"]
    assert cli.run([*map(str, words)]) == 0
    assert "top1: 91.67 on 12 samples (variant generic)" in capsys.readouterr().out


def test_a_picture_reaches_a_program_of_bytes_as_it_is(folder, capsys, tmp_path):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (6, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "photos.npz", images=pixels, labels=np.zeros(6, np.int64))
    how = ("--scale", "1/255", "--mean", "0.5", "--std", "0.25")
    words = (folder / "net.onnx", "--calibration", tmp_path / "photos.npz", *how, "--method", "minmax")
    assert cli.run([*map(str, ("quantize", *words, "-o", tmp_path / "net.json"))]) == 0
    graph, table = eq.load(folder / "net.onnx"), eq.ScaleTable.load(tmp_path / "net.json")
    q = eq.Quantized(table, graph, table.check(graph))
    q.build("llvm", input_dtype="uint8", input_layout="NHWC").export(tmp_path / "bytes.tar")
    capsys.readouterr()
    data = ("--data", tmp_path / "photos.npz")
    want = answer(capsys, "evaluate", folder / "net.onnx", "--table", tmp_path / "net.json", *data)
    found = answer(capsys, "evaluate", tmp_path / "bytes.tar", *data, "--float", folder / "net.onnx")
    assert found["metrics"] == want["metrics"]


def test_the_time_is_the_package_s(folder, capsys):
    words = ("benchmark", folder / "net.tar", "--rounds", 3)
    found = answer(capsys, *words)
    assert found["variant"] == "generic" and 0 < found["spread"][0] <= found["ms"] <= found["spread"][1]
    assert found["speedup"] is None
    found = answer(capsys, *words, "--float", folder / "net.onnx")
    assert found["ms_fp32"] > 0 and found["ratios"][0] <= found["speedup"] <= found["ratios"][1]
    assert cli.run([*map(str, words), "--float", str(folder / "net.onnx")]) == 0
    out = capsys.readouterr().out
    assert "net.tar (variant generic): " in out and (
        "times as fast (" in out or "no figure: half of" in out
    )


def test_a_process_that_loads_a_package_may_compile_the_float_network(folder):
    """It ended by SIGABRT: TVM's library came to a process that had its runtime library already."""
    for words in (
        ["benchmark", "net.tar", "--rounds", "2", "--float", "net.onnx"],
        ["evaluate", "net.tar", "--data", "data.npz", "--float", "net.onnx"],
    ):
        done = tvmc(*words, cwd=folder)
        assert done.returncode == 0, done.stderr


def test_the_report_has_what_a_package_knows_and_says_what_it_leaves_out(folder, capsys, monkeypatch):
    """It was refused: a package holds no model."""
    pytest.importorskip("jinja2")
    monkeypatch.chdir(folder)
    page = folder / "page.html"
    assert cli.run(["report", "net.tar", "--no-benchmark", "-o", "page.html", "--json"]) == 0
    out, err = capsys.readouterr()
    facts, text = json.loads(out), page.read_text()
    table = eq.ScaleTable.load(folder / "net.json")
    assert [row["name"] for row in facts["layers"]] == ["conv1", "conv2", "classifier"]
    assert {site["name"] for site in facts["activations"]} == set(table.activations)
    assert facts["layers"][0]["scales"][1] == pytest.approx(float(table.weights["conv1"].max()))
    assert facts["coverage"] is None and facts["benchmark"] is None and facts["accuracy"] == {}
    lines = err.splitlines()
    assert len(lines) == 3 and all(line.startswith("note: left out") for line in lines)
    for line, flag in zip(
        lines, ("--float MODEL", "report MODEL --table FILE", "--data DATA"), strict=True
    ):
        assert flag in line and line.removeprefix("note: ") in text
    assert "<script" not in text and "generic" in text and "left out by --no-benchmark" in text
    words = ["--float", "net.onnx", "--data", "data.npz", "--rounds", "3", "-o", "page.html", "--json"]
    assert cli.run(["report", "net.tar", *words]) == 0
    out, err = capsys.readouterr()
    facts, text = json.loads(out), page.read_text()
    assert err.count("\n") == 1 and "kernels and their proofs" in err
    assert facts["coverage"]["coverage_percent"] == 100 and facts["floats"] == {}
    assert facts["layers"][0]["weight"] == [3, 3, 3, 8]
    want = answer(capsys, "evaluate", "net.tar", "--data", "data.npz", "--float", "net.onnx")["metrics"]
    assert facts["accuracy"] == want and f"float32 {want['top1']['reference']:.4g}" in text
    low, high = facts["benchmark"]["spread"]
    assert low <= facts["benchmark"]["ms"] <= high and facts["benchmark"]["ms_fp32"] > 0


def test_a_call_that_is_no_layer_is_none_of_the_report(tmp_path, capsys, monkeypatch):
    """The average pool of the demo's network has a kernel and no weights: KeyError: 'avgpool'."""
    pytest.importorskip("jinja2")
    from tvm_easyquant import demo

    q = eq.quantize(demo.network_path(), demo.images()["calibration_images"][:8], method="minmax")
    q.build().export(tmp_path / "net.tar")
    monkeypatch.chdir(tmp_path)
    assert cli.run(["report", "net.tar", "--no-benchmark", "--json"]) == 0
    layers = [row["name"] for row in json.loads(capsys.readouterr().out)["layers"]]
    assert layers == [node.name for node in q.graph.compute_nodes]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("evaluate", "net.tar", "--data", "data.npz", "--table", "net.json"),
            "--table is of a model; net.tar is",
        ),
        (("evaluate", "net.onnx", "--data", "data.npz"), "--table FILE is missing"),
        (
            ("evaluate", "net.tar", "--data", "data.npz", "--isa", "avx9"),
            "isa is 'avx9'; use one of generic",
        ),
        (("evaluate", "net.tar", "--data", "data.npz", "--isa", "avx2"), "net.tar has no variant avx2"),
        (
            ("benchmark", "net.onnx", "--table", "net.json", "--float", "net.onnx"),
            "--float is of a package",
        ),
        (("benchmark", "none.tar"), "none.tar does not exist"),
        (("benchmark", "net.tar", "--rounds", "0"), "--rounds is 0; use 1 or more"),
        (
            ("report", "net.tar", "--table", "net.json"),
            "--table is of a model; net.tar is compiled already",
        ),
        (("report", "net.onnx"), "--table FILE is missing"),
        (
            ("report", "net.tar", "--calibration", "data.npz"),
            "--calibration is of the model's layers; report MODEL --table FILE --calibration takes it",
        ),
        (("report", "net.tar", "--float", "other.onnx"), "the scale table was made for another model"),
        (("evaluate", "net.tar", "--data", "data.npz", "--float", "other.onnx"), "made for another model"),
        (("benchmark", "net.tar", "--float", "other.onnx"), "the scale table was made for another model"),
        (("report", "half.tar"), "half.tar is no package that compile wrote, or a damaged one"),
        (("report", "bare.tar"), "bare.tar holds no scale table, so there is nothing to report"),
        (("report", "net.tar", "-o", "net.tar"), "net.tar: it is also an input and would be lost"),
    ],
)
def test_mistakes_are_a_line(folder, monkeypatch, capsys, words, message):
    if words[0] == "report":
        pytest.importorskip("jinja2")
    monkeypatch.chdir(folder)
    assert cli.run(list(words)) == 4
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
