"""Models that are not ONNX: quantized, compiled and run, or refused with the cure."""

import importlib.metadata
import importlib.util
import sys
from pathlib import Path

import networks
import numpy as np
import pytest
from python_process import python

tvm = pytest.importorskip("tvm")
from python_process import tvmc
from tvm import relay

import tvm_easyquant as eq
from tvm_easyquant.errors import LoadError
from tvm_easyquant.network.graph import run
from tvm_easyquant.relay import formats
from tvm_easyquant.relay.formats import load_model
from tvm_easyquant.scales.integer import run_integer

#: made by TensorFlow 2.21: conv 3x3, batch norm, ReLU, max pool, depthwise, conv 1x1, global pool, dense
TFLITE = Path(__file__).parent / "models" / "small.tflite"
NCHW, NHWC = (2, 3, 16, 16), (2, 16, 16, 3)


def quantized(path, shape, **options):
    """The integers of a model file as compiled, which are those of the reference and near its floats."""
    images = np.random.default_rng(0).standard_normal((8, *shape[1:])).astype(np.float32)
    q = eq.quantize(str(path), images, bits=8, method="minmax", **options)
    (name,), (output,) = q.graph.inputs, q.graph.outputs
    compiled = eq.Executor(q.build("llvm"))
    for image in images[:2]:
        feed = {name: image[None]}
        found = compiled(feed)[0]
        np.testing.assert_array_equal(found, run_integer(q.graph, q.table, feed)[output])
        wanted = run(q.graph, feed)[output]
        np.testing.assert_allclose(found, wanted, atol=0.1 * np.abs(wanted).max())
    return q


def test_tflite():
    pytest.importorskip("tflite")
    q = quantized(TFLITE, NHWC)
    assert q.coverage == 100.0 and len(q.layers) == 4


@pytest.mark.ci
@pytest.mark.linker
def test_tflite_in_tvmc(tmp_path):
    """The NHWC module that tvmc itself reads is the one that the table was made for."""
    pytest.importorskip("tflite")
    images = np.random.default_rng(0).standard_normal((4, *NHWC[1:])).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    (name,) = load_model(TFLITE).inputs
    np.savez(tmp_path / "input.npz", **{name: images[:1]})
    for command in (
        ["quantize", TFLITE, "--calibration", "images.npy", "--method", "minmax", "-o", "t.json"],
        ["compile", TFLITE, "--target", "easyquant -table=t.json, llvm", "-o", "net.tar"],
        ["run", "net.tar", "--inputs", "input.npz", "-o", "out.npz"],
    ):
        done = tvmc(*map(str, command), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    graph, table = load_model(TFLITE), eq.ScaleTable.load(tmp_path / "t.json")
    (expected,) = run_integer(graph, table, {name: images[:1]}).values()
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["output_0"], expected)


def torchscript(torch):
    nn = torch.nn
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
    layers += nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Hardswish(), nn.Conv2d(8, 16, 1), nn.SiLU()
    layers += nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    return nn.Sequential(*layers).eval()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_torchscript(tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torchscript(torch)
    torch.jit.trace(model, torch.zeros(1, *NCHW[1:])).save(str(tmp_path / "net.pth"))
    shapes = {"x": (1, *NCHW[1:])}
    assert quantized(tmp_path / "net.pth", NCHW, input_shapes=shapes).coverage == 100.0
    with pytest.raises(LoadError, match="--input-shapes"):
        load_model(tmp_path / "net.pth")
    torch.save(model.state_dict(), tmp_path / "state.pth")
    with pytest.raises(LoadError, match="state.pth as pytorch: it takes TorchScript.*not a state_dict"):
        load_model(tmp_path / "state.pth", input_shapes=shapes)


KERAS = """
from tensorflow import keras
layers = keras.layers
model = [keras.Input((16, 16, 3)), layers.Conv2D(8, 3, padding="same"), layers.BatchNormalization(), layers.ReLU()]
model += [layers.DepthwiseConv2D(3, padding="same"), layers.GlobalAveragePooling2D(), layers.Dense(5)]
keras.Sequential(model).save("net.h5")
"""


def test_keras(tmp_path):
    """In processes of its own: TensorFlow is not loaded beside what the other tests use."""
    try:
        formats.check_tensorflow("net.h5")
    except LoadError as error:
        pytest.skip(str(error))
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("no TensorFlow here")
    made = python(KERAS, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    np.save(tmp_path / "images.npy", np.random.default_rng(0).standard_normal(NHWC).astype(np.float32))
    command = ["quantize", "net.h5", "--calibration", "images.npy", "--method", "minmax"]
    done = tvmc(*command, cwd=tmp_path, TVM_NUM_THREADS="1")  # 2 threads hang beside TensorFlow
    assert done.returncode == 0 and "100.0 % of the multiply-acc" in done.stdout, done.stderr


def test_a_relay_text(tmp_path):
    import onnx

    module, params = relay.frontend.from_onnx(
        networks.small_onnx(), {"x": [1, 3, 8, 8]}, freeze_params=False
    )
    (tmp_path / "lacking.relay").write_text(module.astext())
    bound = relay.build_module.bind_params_by_name(module["main"], params)
    (tmp_path / "net.relay").write_text(tvm.IRModule.from_expr(bound).astext())
    shapes = {"x": (1, 3, 8, 8)}
    q = quantized(tmp_path / "net.relay", (2, 3, 8, 8), input_shapes=shapes)
    onnx.save(networks.small_onnx(), tmp_path / "net.onnx")
    assert q.coverage == 100.0 and q.graph.macs == load_model(tmp_path / "net.onnx").macs
    for name, given, message in (
        ("net.relay", None, "net.relay: a Relay text needs --input-shapes"),
        ("lacking.relay", shapes, r"lacking.relay lacks its weights \(b1, .*bind_params_by_name"),
        ("none.relay", shapes, "there is no file .*none.relay"),
    ):
        with pytest.raises(LoadError, match=message):
            load_model(tmp_path / name, input_shapes=given)
    (tmp_path / "json.relay").write_text(tvm.ir.save_json(module))
    with pytest.raises(LoadError, match=r"it takes what module.astext\(\) returns"):
        load_model(tmp_path / "json.relay", input_shapes=shapes)


@pytest.mark.parametrize(
    "name, package", [("net.pdmodel", "paddle"), ("net.h5", "tensorflow"), ("net.pb", "tensorflow")]
)
def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(formats, "check_tensorflow", lambda name: None)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(LoadError, match=f"{name}: the format .* needs the package {package}; install it"):
        load_model(tmp_path / name)


@pytest.mark.parametrize(
    "version, refused", [("2.15.1", False), ("2.16.0", True), ("2.21.0", True), ("3.0", True)]
)
def test_a_tensorflow_that_would_abort_is_refused(tmp_path, monkeypatch, version, refused):
    monkeypatch.setattr(importlib.metadata, "version", lambda package: version)
    if refused:
        with pytest.raises(
            LoadError, match=f"TensorFlow {version} cannot be loaded beside TVM.*tensorflow-cpu 2.15"
        ):
            formats.check_tensorflow("net.h5")
    else:
        formats.check_tensorflow("net.h5")
