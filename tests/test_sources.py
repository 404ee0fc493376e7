"""Data by name: files, folders of arrays and of pictures, functions; what is stored, what is refused."""

import importlib.util
import json

import networks
import numpy as np
import pytest

from tvm_easyquant.errors import GraphError
from tvm_easyquant.evaluate import EvaluationError
from tvm_easyquant.images import ImageError, Preprocess
from tvm_easyquant.samples import sources
from tvm_easyquant.samples.sources import SourceError
from tvm_easyquant.scales.calibrate import Calibration
from tvm_easyquant.scales.partition import plan, skipped

PICTURE = Preprocess(scale=1 / 255, mean=(0.5, 0.25, 0), std=(1, 2, 4))


@pytest.fixture
def photos(tmp_path):
    """Four pictures of two classes, and what the network is to read of each."""
    image = pytest.importorskip("PIL.Image")
    rng, pixels = np.random.default_rng(0), []
    for i in range(4):
        folder = tmp_path / "photos" / ("cat" if i < 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        pixels.append(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))
        image.fromarray(pixels[-1]).save(folder / f"{i}.png")
    mean, std = np.float32([0.5, 0.25, 0]), np.float32([1, 2, 4])
    wanted = [((p * np.float32(1 / 255) - mean) / std).transpose(2, 0, 1)[None] for p in pixels]
    return tmp_path / "photos", wanted


def test_a_folder_of_pictures(photos):
    folder, wanted = photos
    found = list(sources.calibration(str(folder), PICTURE)(["x"]))
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate(wanted))
    pairs = list(sources.labelled(str(folder), PICTURE))
    assert [label for _, label in pairs] == [0, 0, 1, 1]
    np.testing.assert_array_equal(pairs[3][0], wanted[3])


def test_folders_with_numbers_for_names_are_the_labels(photos):
    folder, _ = photos
    (folder / "cat").rename(folder / "7")
    (folder / "dog").rename(folder / "10")
    assert [label for _, label in sources.labelled(str(folder), PICTURE)] == [10, 10, 7, 7]


def test_grey_pictures_and_nhwc():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 3), dtype=np.uint8)
    grey = Preprocess(color="GRAY", scale=2, mean=1.0)(pixels)
    np.testing.assert_allclose(grey[0, 0], 2 * (pixels @ [0.299, 0.587, 0.114]) - 1, rtol=1e-5)
    last = Preprocess(layout="NHWC", color="BGR")(pixels)
    np.testing.assert_array_equal(last[0], pixels[..., ::-1])
    for wrong in (dict(layout="CHWN"), dict(color="XYZ"), dict(mean=(1, 2)), dict(scale=np.inf)):
        with pytest.raises(ImageError):
            Preprocess(**wrong)


def test_functions_and_labelled_files(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def batches():\n    yield {'x': 1}\n    yield {'x': 2}\n")
    monkeypatch.syspath_prepend(tmp_path)
    read = sources.calibration("mine:batches")
    assert list(read(["x"])) == list(read(["x"])) == [{"x": 1}, {"x": 2}]
    pixels = np.zeros((2, 3, 4, 4), np.float32)
    np.savez(tmp_path / "set.npz", images=pixels, labels=np.arange(2))
    assert len(list(sources.calibration(str(tmp_path / "set.npz"))(["x"]))) == 2


def test_mistakes(tmp_path, photos):
    folder, _ = photos
    for text, error, message in (
        ("no/such", SourceError, "there is no file or folder"),
        (str(folder), SourceError, "say how the network wants them: --scale"),
        ("no_such_module:f", EvaluationError, "names no function"),
        (str(tmp_path / "empty"), SourceError, "holds no .npy or .npz file and no picture"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(error, match=message):
            sources.calibration(text)
    with pytest.raises(ImageError, match="0.png"):
        (folder / "cat" / "0.png").write_text("no picture")
        sources.calibration(str(folder), PICTURE)
    np.save(folder / "a.npy", np.zeros(3))
    with pytest.raises(SourceError, match="holds both arrays"):
        sources.calibration(str(folder), PICTURE)
    with pytest.raises(SourceError, match="one folder for each class"):
        sources.labelled(str(tmp_path / "empty"), PICTURE)


def test_a_pickle_is_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    np.save(tmp_path / "bomb.npy", np.array([Bomb()], object), allow_pickle=True)
    np.savez(tmp_path / "bomb.npz", x=np.array([Bomb()], object))
    (tmp_path / "exploded").unlink(missing_ok=True)
    for name in ("bomb.npy", "bomb.npz"):
        with pytest.raises(SourceError, match="cannot read"):
            list(sources.calibration(str(tmp_path / name))(["x"]))
    assert not (tmp_path / "exploded").exists()


def test_skip_by_name_operator_and_expression():
    graph, _ = networks.residual()
    assert skipped(graph, ["pw"]) == {"pw"}
    assert skipped(graph, ["op:dense", "op:concat"]) == {"logits", "cat"}
    assert skipped(graph, ["(left|right).*"]) == {"left", "left.relu", "right", "right.relu"}
    assert plan(graph, ["p[a-z]", "op:dense"]).floats["pw"] == "kept float by skip"
    for wrong in ("conv9", "op:conv9d", "conv("):
        with pytest.raises(GraphError, match="skip names .*op:conv2d"):
            skipped(graph, [wrong])


def test_one_answer_to_all_samples_is_suspicious():
    assert "answers 3 to all 10" in Calibration({}, answers=[3] * 10).warnings[0]
    assert (
        not Calibration({}, answers=[3] * 9).warnings
        and not Calibration({}, answers=[3] * 9 + [2]).warnings
    )


def test_the_table_keeps_the_preprocessing_and_the_data_s_hash(photos):
    pytest.importorskip("tvm")
    from tvm_easyquant import ScaleTable, quantize

    folder, _ = photos
    model = networks.small_onnx()
    settings = Preprocess(scale=1 / 255, size=(8, 8))
    data = sources.calibration(str(folder), settings)(["x"])
    table = quantize(model, data, preprocess=settings, method="minmax").table
    again = ScaleTable.from_json(table.to_json())
    assert again.data == table.data == json.loads(json.dumps(dict(table.data)))
    assert table.data["samples"] == 4 and len(table.data["digest"]) == 64
    assert Preprocess.of(again.data["preprocess"]) == settings


def test_other_formats_go_through_tvmc_and_nhwc_is_converted(tmp_path):
    """The same weights as an NHWC module in Relay's text, which tvmc loads, and as a Graph made by hand."""
    tvm = pytest.importorskip("tvm")
    from tvm import relay

    from tvm_easyquant import quantize
    from tvm_easyquant.errors import LoadError
    from tvm_easyquant.network.graph import run
    from tvm_easyquant.relay.formats import load_model

    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, 3, 4, 8)).astype(np.float32)
    x = relay.var("x", shape=(1, 6, 6, 4))
    y = relay.nn.conv2d(x, relay.const(weight), padding=1, channels=8, kernel_size=3, data_layout="NHWC",
                        kernel_layout="HWIO")  # fmt: skip
    y = relay.nn.bias_add(y, relay.const(np.arange(8, dtype=np.float32)), axis=3)
    module = tvm.IRModule.from_expr(relay.Function([x], relay.nn.relu(y)))
    (tmp_path / "net.relay").write_text(module.astext(show_meta_data=True))
    graph = load_model(tmp_path / "net.relay", input_shapes={"x": (1, 6, 6, 4)})
    images = [rng.standard_normal((1, 6, 6, 4)).astype(np.float32) for _ in range(3)]
    run_tvm = relay.create_executor("graph", module).evaluate()
    (found,) = run(graph, {"x": images[0]}).values()
    np.testing.assert_allclose(found, run_tvm(images[0]).numpy(), rtol=1e-4, atol=1e-4)
    assert quantize(graph, images, bits=8).coverage == 100
    for name, format, message in (
        ("net.relay", "onnx", "is not an ONNX file"),
        ("net.tflite", None, "no file"),
        ("net.relay", "magic", "model format 'magic'"),
    ):
        with pytest.raises(LoadError, match=message):
            load_model(tmp_path / name, format)
    (tmp_path / "bad.relay").write_text("nonsense")
    with pytest.raises(LoadError, match="tvmc cannot load bad.relay as relay"):
        load_model(tmp_path / "bad.relay", input_shapes={"x": (1, 6, 6, 4)})
    if importlib.util.find_spec("paddle") is None:
        (tmp_path / "net.pdmodel").write_text("x")
        with pytest.raises(LoadError, match="net.pdmodel: the format paddle needs the package paddle"):
            load_model(tmp_path / "net.pdmodel")
    if importlib.util.find_spec("tflite") is None:
        (tmp_path / "net.tflite").write_text("x")
        with pytest.raises(LoadError, match="the format tflite needs the package tflite"):
            load_model(tmp_path / "net.tflite")
