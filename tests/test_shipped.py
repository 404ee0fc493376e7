"""`evaluate` and `benchmark` of a package: the figures are those of the very program that ships."""

import json

import networks
import numpy as np
import pytest

pytest.importorskip("tvm")
onnx = pytest.importorskip("onnx")

import tvm_easyquant as eq
from tvm_easyquant import cli
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
        (("report", "net.tar", "--table", "net.json"), "a report is of a model's layers"),
    ],
)
def test_mistakes_are_a_line(folder, monkeypatch, capsys, words, message):
    monkeypatch.chdir(folder)
    assert cli.run(list(words)) == 4
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
