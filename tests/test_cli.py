"""``tvmc-easyquant``: the verbs, end to end, as a user runs them."""

import importlib.util
import json
import os
import subprocess
import sys

import networks
import numpy as np
import pytest
from python_process import tvmc

pytest.importorskip("tvm")
import onnx

from tvm_easyquant import ScaleTable, load_onnx, package
from tvm_easyquant.network import graph as graphs
from tvm_easyquant.scales.integer import run_integer


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a network, calibration images as .npz and as a folder, and a quantized table."""
    folder = tmp_path_factory.mktemp("cli")
    onnx.save(networks.small_onnx(), folder / "net.onnx")
    images = np.random.default_rng(0).standard_normal((6, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "images.npz", x=images)
    (folder / "images").mkdir()
    for i, image in enumerate(images):
        np.save(folder / "images" / f"{i}.npy", image[None])
    result = tvmc("quantize", "net.onnx", "--calibration", "images.npz", "-o", "table.json", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "100.0 % of the multiply-accumulates run in integers" in result.stdout
    assert "conv1" in result.stdout and "peak memory" in result.stdout
    assert "it/s" not in result.stderr  # a pipe: no progress bar
    return folder


@pytest.mark.linker
def test_quantize_compile_run_give_the_integers_of_the_reference(work):
    compiled = tvmc(
        "compile", "net.onnx", "-o", "net.tar", "--target", "easyquant -table=table.json, llvm", cwd=work
    )
    assert compiled.returncode == 0, compiled.stderr
    assert "easyquant: 3 integer layers, 3 of 3 kernels run untuned" in compiled.stderr
    image = np.load(work / "images" / "0.npy")
    np.savez(work / "input.npz", x=image)
    ran = tvmc("run", "net.tar", "--inputs", "input.npz", "-o", "output.npz", cwd=work)
    assert ran.returncode == 0, ran.stderr
    graph, table = load_onnx(work / "net.onnx"), ScaleTable.load(work / "table.json")
    expected = run_integer(graph, table, {"x": image})["classifier"]
    np.testing.assert_array_equal(np.load(work / "output.npz")["output_0"], expected)


def test_a_drop_is_met_on_labelled_data(work):
    graph, images = load_onnx(work / "net.onnx"), np.load(work / "images.npz")["x"]
    labels = [int(graphs.run(graph, {"x": x[None]})["classifier"].argmax()) for x in images]
    np.savez(work / "labelled.npz", images=images, labels=np.array(labels))
    common = [
        "quantize",
        "net.onnx",
        "--calibration",
        "images.npz",
        "--method",
        "minmax",
        "--target",
        "llvm",
    ]
    drop = ["--eval", "labelled.npz", "--max-drop", "100", "-o", "met.json", "--bits", "auto", "--json"]
    result = tvmc(*common, *drop, cwd=work)
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["drop"] <= 100 and any(line.startswith("met: ") for line in facts["decisions"])
    table = ScaleTable.load(work / "met.json")
    assert dict(table.config.layer_bits) == facts["layer_bits"]
    table.check(graph)


@pytest.mark.linker
@pytest.mark.isa("avx2")
def test_the_target_s_mcpu_reaches_our_kernels(work):
    for target in (["easyquant -table=table.json, llvm -mcpu=core-avx2"],
                   ["easyquant -table=table.json, llvm", "--target-llvm-mcpu", "core-avx2"]):  # fmt: skip
        result = tvmc("compile", "net.onnx", "-o", "avx2.tar", "--target", *target, "--dump-code", "asm",
                      cwd=work)  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert "vpmaddubsw" in (work / "avx2.tar.asm").read_text()


def test_a_folder_of_images_gives_the_same_table(work):
    result = tvmc("quantize", "net.onnx", "--calibration", "images", "-o", "again.json", cwd=work)
    assert result.returncode == 0, result.stderr
    assert (work / "again.json").read_text() == (work / "table.json").read_text()


def test_json_dry_run_and_module_out(work):
    result = tvmc(
        "quantize", "net.onnx", "--calibration", "images.npz", "-o", "t8.json", "--bits", "8",
        "--method", "minmax", "--skip", "conv2", "--module-out", "module.json", "--qdq-out",
        "qdq.onnx", "--json", cwd=work,
    )  # fmt: skip
    facts = json.loads(result.stdout)
    assert [row["kind"] for row in facts["layers"]] == ["int8", "float32", "int8"]
    assert facts["float_nodes"]["conv2"] == "kept float by skip"
    operators = [node.op_type for node in onnx.load(work / "qdq.onnx").graph.node]
    assert operators.count("QuantizeLinear") and operators.count("Conv") == 2
    import tvm

    assert tvm.ir.load_json((work / "module.json").read_text())["main"]
    result = tvmc("quantize", "net.onnx", "--dry-run", cwd=work)
    assert result.returncode == 0 and "classifier" in result.stdout and "MACs" in result.stdout


def test_tvmc_s_own_verbs_and_help_are_there(work):
    result = tvmc("--help", cwd=work)
    for verb in ("compile", "run", "tune", "quantize", "demo"):
        assert verb in result.stdout
    assert "examples:" in tvmc("quantize", "--help", cwd=work).stdout


def test_a_command_line_of_tvmc_s_is_handed_over_whole():
    from tvm_easyquant.cli.root import _handed

    for line in (
        "compile net.onnx",
        "-v run net.tar",
        "--config default tune n.onnx",
        "micro",
        "-vv compile -h",
    ):
        assert _handed(line.split()), line
    for line in (
        "quantize net.onnx",
        "-h compile",
        "--help",
        "",
        "-v plan compile",
        "--config compile plan",
    ):
        assert not _handed(line.split()), line


def test_input_shapes_are_read_as_tvmc_reads_them():
    from tvm.driver.tvmc.shape_parser import parse_shape_string

    from tvm_easyquant.cli.common import input_shapes
    from tvm_easyquant.errors import UserError

    for text in (
        "data:[1,3,224,224]",
        "x:[1, 3,8,8] y:[2]",
        "x:[1],y:[2,3]",
        "a/b.c:[1,2]",
        "a:0:[5]",
        "x: [4]",
    ):
        assert input_shapes(text) == parse_shape_string(text), text
    assert input_shapes("net/block/x-1:[1,2]") == {"net/block/x-1": [1, 2]}  # what tvmc would cut short
    assert input_shapes(None) is None
    for text in ("x=1,2", "x:1,2", "x:[]", "x:[1,a]", "x:[1] y", "x:[1]]"):
        with pytest.raises(UserError, match="--input-shapes .*: give NAME:"):
            input_shapes(text)


def test_help_names_the_tuners(work):
    from tvm_easyquant.relay.tune import TUNERS

    assert f"{', '.join(TUNERS)} (xgb)" in tvmc("tune-kernels", "--help", cwd=work).stdout


def test_a_progress_bar_with_an_eta_on_a_terminal_only(work):
    import fcntl
    import pty
    import struct
    import termios

    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tvm_easyquant.cli", "quantize", "net.onnx",
         "--calibration", "images.npz", "-o", "tty.json"],
        cwd=work, stdout=subprocess.DEVNULL, stderr=child,
    )  # fmt: skip
    os.close(child)
    seen = b""
    while True:
        try:
            seen += os.read(parent, 4096)
        except OSError:  # the terminal's other end is closed
            break
    assert process.wait() == 0
    assert b"calibrate" in seen and b"activations" in seen and b"<" in seen  # elapsed<remaining


def test_export_and_verify_onnx(work):
    exported = tvmc("export-onnx", "net.onnx", "--table", "table.json", "-o", "qdq.onnx", cwd=work)
    assert exported.returncode == 0 and "qdq.onnx: 100.0 %" in exported.stdout, exported.stderr
    assert [o.name for o in onnx.load(work / "qdq.onnx").graph.output] == ["y"]
    pytest.importorskip("onnxruntime")
    common = ["verify-onnx", "net.onnx", "--table", "table.json", "--inputs", "images.npz"]
    result = tvmc(*common, "--qdq", "qdq.onnx", "--compiled", "--json", "--count", "3", cwd=work)
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["integers"] == "compiled" and [r["graph_optimizations"] for r in facts["runs"]] == [
        False,
        True,
    ]
    assert all(r["inputs"] == 3 and r["unexplained"] == 0 for r in facts["runs"])
    # the model of another table: the layer is named, and the exit code says so
    model = onnx.load(work / "qdq.onnx")
    (weight,) = [t for t in model.graph.initializer if t.name == "conv1_weight_quantized"]
    weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(model, work / "wrong.onnx")
    result = tvmc(*common, "--qdq", "wrong.onnx", "--optimizations", "on", cwd=work)
    assert result.returncode == 1 and "the first layer that differs is conv1" in result.stdout, (
        result.stderr
    )


@pytest.mark.linker
def test_import_onnx_compiles_a_quantized_model(work):
    exported = tvmc("export-onnx", "net.onnx", "--table", "table.json", "-o", "theirs.onnx", cwd=work)
    assert exported.returncode == 0, exported.stderr
    result = tvmc("import-onnx", "theirs.onnx", "-o", "theirs.tar", "--isa", "generic,avx2", "--table-out", "theirs.json",
                  "--json", cwd=work)  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = [variant.name for variant in package.read_record(work / "theirs.tar").variants]
    assert rows == ["avx2", "generic"]
    facts = json.loads(result.stdout)
    assert facts["coverage_percent"] == 100.0 and next(row["layer"] for row in facts["layers"]) == "conv1"
    assert ScaleTable.load(work / "theirs.json").config.method == "imported"
    image = np.load(work / "images" / "1.npy")
    np.savez(work / "input.npz", x=image)
    ran = tvmc("run", "theirs.tar", "--inputs", "input.npz", "-o", "theirs.npz", cwd=work)
    assert ran.returncode == 0, ran.stderr
    graph, table = load_onnx(work / "net.onnx"), ScaleTable.load(work / "table.json")
    expected = run_integer(graph, table, {"x": image})["classifier"]
    np.testing.assert_array_equal(np.load(work / "theirs.npz")["output_0"], expected)
    if importlib.util.find_spec("onnxruntime"):
        checked = tvmc(
            "verify-onnx", "theirs.onnx", "--inputs", "images.npz", "--optimizations", "on", cwd=work
        )
        assert checked.returncode == 0 and "unexplained" not in checked.stdout, checked.stderr
    refused = tvmc("quantize", "theirs.onnx", "--calibration", "images.npz", "-o", "no.json", cwd=work)
    assert (
        refused.returncode == 4
        and "already quantized" in refused.stderr
        and "import-onnx" in refused.stderr
    )


def test_ncnn_tables_out_and_in(work):
    refused = tvmc("export-ncnn", "net.onnx", "--table", "table.json", "-o", "ncnn.table", cwd=work)
    assert refused.returncode == 4 and "layer conv1 reads a tensor with the zero point" in refused.stderr
    assert "quantize with --symmetric" in refused.stderr and not (work / "ncnn.table").exists()
    made = tvmc(
        "quantize",
        "net.onnx",
        "--calibration",
        "images.npz",
        "--symmetric",
        "-o",
        "symmetric.json",
        cwd=work,
    )
    assert made.returncode == 0, made.stderr
    out = tvmc("export-ncnn", "net.onnx", "--table", "symmetric.json", "-o", "ncnn.table", cwd=work)
    assert out.returncode == 0 and "3 layers" in out.stdout, out.stderr
    back = tvmc("import-ncnn", "net.onnx", "--ncnn", "ncnn.table", "-o", "ncnn.json", cwd=work)
    assert back.returncode == 0 and "100.0 % of the" in back.stdout, back.stderr
    ours, theirs = (ScaleTable.load(work / name) for name in ("symmetric.json", "ncnn.json"))
    np.testing.assert_array_equal(ours.weights["conv2"], theirs.weights["conv2"])
    wrong = tvmc("import-ncnn", "net.onnx", "--ncnn", "table.json", "-o", "no.json", cwd=work)
    assert wrong.returncode == 4 and "table.json, line 1: { has no scale" in wrong.stderr, wrong.stderr
    assert not (work / "no.json").exists()


def test_a_reader_that_has_enough_is_no_error(work):
    for command in (
        ["quantize", "net.onnx", "--dry-run", "--json"],
        ["plan", "net.onnx", "--table", "table.json"],
    ):
        with subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tvm_easyquant.cli", *command], cwd=work,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 141


def test_what_stays_float_is_said_once_for_each_reason():
    from tvm_easyquant.cli.common import float_lines

    floats = {"conv": "kept float by skip", **{f"add{i}": "an input is float" for i in range(8)}}
    assert float_lines(floats) == [
        "float: conv: kept float by skip",
        "float: add0, add1, add2, add3, add4, add5 and 2 more: an input is float",
    ]
    assert float_lines({}) == []
