"""Mistakes: each a clear line or two that names the thing and the cure, exit code 4, nothing left behind."""

import networks
import numpy as np
import onnx
import pytest
from test_cli import tvmc

pytest.importorskip("tvm")

Q = ["quantize", "net.onnx", "--calibration", "images.npz", "-o", "out.json"]
NAN = np.full((2, 3, 8, 8), np.nan, np.float32)


def quantize(**changes):
    """The quantize command line with some arguments replaced."""
    command = list(Q)
    for key, value in changes.items():
        command[{"model": 1, "calibration": 3, "output": 5}[key]] = value
    return command


#: name -> (command, what the message must say, exit code)
CASES = {
    "missing model": (quantize(model="no.onnx"), "no file no.onnx", 4),
    "not an ONNX file": (quantize(model="images.npz"), "images.npz is not an ONNX file", 4),
    "text file": (quantize(model="text.onnx"), "text.onnx is not an ONNX file", 4),
    "empty file": (quantize(model="empty.onnx"), "empty.onnx is not an ONNX file", 4),
    "a folder": (quantize(model="folder"), "folder is not an ONNX file", 4),
    "no conv": (quantize(model="relu.onnx"), "no convolution and no dense", 4),
    "dynamic shape": (quantize(model="dynamic.onnx"), "input x has the dynamic shape.*--input-shapes", 4),
    "wrong --input-shapes name": ([*Q, "--input-shapes", "y:[1,3,8,8]"], r"input_shapes names \['y'\].*\['x'\]", 4),
    "wrong --input-shapes": ([*Q, "--input-shapes", "x:[1,4,8,8]"], "x was given shape.*the model says", 4),
    "unreadable --input-shapes": ([*Q, "--input-shapes", "x=1,2"], "--input-shapes", 4),
    "unknown operator": (quantize(model="unknown.onnx"), "cannot import unknown.onnx.*NoSuchOp", 4),
    "bits": ([*Q, "--bits", "6"], "bits is 6; use 7 or 8", 4),
    "method": ([*Q, "--method", "magic"], "method is 'magic'; use one of easyquant", 4),
    "search images": ([*Q, "--search-images", "0"], "search_images is 0", 4),
    "skip": ([*Q, "--skip", "conv9"], r"skip names \['conv9'\].*conv1, conv2, classifier", 4),
    "skip all": ([*Q, "--skip", "conv1", "conv2", "classifier"], "nothing to quantize", 4),
    "no calibration": (["quantize", "net.onnx"], "needs --calibration", 4),
    "missing calibration": (quantize(calibration="no.npz"), "no file or folder no.npz", 4),
    "empty folder": (quantize(calibration="folder"), "folder holds no .npy or .npz", 4),
    "calibration is text": (quantize(calibration="text.npz"), "cannot read text.npz", 4),
    "empty calibration": (quantize(calibration="none.npz"), "calibration data is empty", 4),
    "NaN": (quantize(calibration="nan.npz"), "item 1, sample 0: x holds NaN or infinity", 4),
    "wrong input name": (quantize(calibration="names.npz"), r"\['a', 'b'\].*\['x'\]", 4),
    "wrong shape": (quantize(calibration="shape.npz"), r"x has shape \(2, 3, 9, 9\), the model takes \(1, 3, 8, 8\)", 4),
    "wrong dtype": (quantize(calibration="bytes.npz"), "x is uint8; the model takes float32", 4),
    "unwritable output": (quantize(output="no/such/folder/t.json"), "cannot write no/such/folder/t.json", 4),
    "broken checkpoint": ([*Q, "--resume"], "out.json.search is not a search checkpoint; delete it", 4),
    "damaged tuning log": (["compile", "net.onnx", "-o", "n.tar", "--tuning-records", "text.npz", "--target",
                            "easyquant -table=table.json, llvm"], "text.npz, line 1 is not a tuning record", 4),
    "no tuning log": (["plan", "net.onnx", "--table", "table.json", "--tuning-records", "no.log"],
                      "--tuning-records: there is no file no.log", 4),
    "unknown tuner": (["tune-kernels", "net.onnx", "--table", "table.json", "-o", "t.log", "--tuner", "best"],
                      "tuner is 'best'; use one of xgb", 4),
    "half a tracker": (["tune-kernels", "net.onnx", "--table", "table.json", "-o", "t.log", "--rpc-tracker", "h"],
                       "--rpc-tracker HOST:PORT and --rpc-key KEY belong together", 4),
    "plan for a GPU": (["plan", "net.onnx", "--table", "table.json", "--target", "cuda"], "not a CPU", 4),
    "no table": (["compile", "net.onnx", "-o", "n.tar", "--target", "easyquant, llvm"], "needs a scale table", 4),
    "missing table": (["compile", "net.onnx", "-o", "n.tar", "--target", "easyquant -table=no.json, llvm"],
                      "cannot read the scale table no.json", 4),
    "table of another model": (["compile", "other.onnx", "-o", "n.tar", "--target",
                                "easyquant -table=table.json, llvm"], "made for another model", 4),
    "damaged table": (["compile", "net.onnx", "-o", "n.tar", "--target", "easyquant -table=damaged.json, llvm"],
                      "damaged.json is not JSON", 4),
    "unknown target option": (["compile", "net.onnx", "-o", "n.tar", "--target",
                               "easyquant -tabel=table.json -table=table.json, llvm"], r"no option \['tabel'\]", 4),
    "not a CPU": (["compile", "net.onnx", "-o", "n.tar", "--target", "easyquant -table=table.json, c"],
                  "target 'c' is not a CPU", 4),
    "unknown mcpu": (["compile", "net.onnx", "-o", "n.tar", "--target",
                      "easyquant -table=table.json, llvm -mcpu=core-avx9"], "knows no -mcpu=core-avx9", 4),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    images = np.zeros((2, 3, 8, 8), np.float32) + np.arange(8, dtype=np.float32)
    onnx.save(networks.small_onnx(), folder / "net.onnx")
    onnx.save(networks.small_onnx(seed=1), folder / "other.onnx")
    dims = {"x": [1, 3, 8, 8]}
    relu = networks.onnx_model([("Relu", ["x"], ["y"], "r", {})], dims, {"y": [1, 3, 8, 8]}, {})
    onnx.save(relu, folder / "relu.onnx")
    dynamic = networks.small_onnx()
    dynamic.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(dynamic, folder / "dynamic.onnx")
    unknown = networks.small_onnx()
    unknown.graph.node[0].op_type = "NoSuchOp"
    onnx.save(unknown, folder / "unknown.onnx")
    (folder / "text.onnx").write_text("this is no network")
    (folder / "empty.onnx").write_text("")
    (folder / "text.npz").write_text("this is no archive")
    (folder / "damaged.json").write_text("{")
    (folder / "out.json.search").write_text("{")
    (folder / "folder").mkdir()
    arrays = {
        "images": dict(x=images), "none": dict(x=images[:0]), "nan": dict(x=NAN), "names": dict(a=images, b=images),
        "shape": dict(x=np.zeros((2, 3, 9, 9), np.float32)), "bytes": dict(x=images.astype(np.uint8)),
    }  # fmt: skip
    for name, values in arrays.items():
        np.savez(folder / f"{name}.npz", **values)
    made = tvmc("quantize", "net.onnx", "--calibration", "images.npz", "-o", "table.json", "--method",
                "minmax", cwd=folder)  # fmt: skip
    assert made.returncode == 0, made.stderr
    return folder


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_named_and_leaves_nothing_behind(folder, name):
    import re

    command, message, code = CASES[name]
    before = sorted(p.name for p in folder.iterdir())
    result = tvmc(*command, cwd=folder)
    assert result.returncode == code, result.stdout + result.stderr
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) <= 2, result.stderr
    assert sorted(p.name for p in folder.iterdir()) == before


def test_wrong_inputs_at_run_time_are_named():
    from tvm_easyquant import quantize
    from tvm_easyquant.graph import GraphError
    from tvm_easyquant.relay_build import Executor

    images = [np.zeros((1, 3, 8, 8), np.float32) + np.arange(8, dtype=np.float32)]
    run = Executor(quantize(networks.small_onnx(), images, method="minmax").build("llvm"))
    for feed, message in (
        ({"y": images[0]}, r"no input y; the inputs are \['x'\]"),
        ({}, "input x is missing"),
        ({"x": images[0][:, :2]}, r"x is float32 \(1, 2, 8, 8\), the model takes float32 \(1, 3, 8, 8\)"),
        ({"x": images[0].astype(np.float64)}, "x is float64"),
    ):
        with pytest.raises(GraphError, match=message):
            run(feed)
