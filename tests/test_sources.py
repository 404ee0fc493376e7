"""Data by name: files, folders of arrays and of pictures, functions; what is stored, what is refused."""

import importlib.util
import json

import hypothesis
import networks
import numpy as np
import pytest
from python_process import tvmc

import tvm_easyquant as eq
from tvm_easyquant.errors import ConfigError, GraphError
from tvm_easyquant.evaluate import EvaluationError
from tvm_easyquant.images import ImageError, Preprocess
from tvm_easyquant.samples import sources
from tvm_easyquant.samples.sources import SourceError
from tvm_easyquant.scales import suspicions
from tvm_easyquant.scales.calibrate import Calibration, calibrate
from tvm_easyquant.scales.numerics import QuantConfig
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


def test_a_folder_is_sampled_over_its_classes_and_names(tmp_path):
    """Story: the first 50 files in sorted order were all of class 00."""
    image = pytest.importorskip("PIL.Image")
    pixel = image.fromarray(np.zeros((4, 4, 3), np.uint8))
    for n in range(10):
        (tmp_path / f"{n:02}").mkdir()
        for i in range(20 + n):
            pixel.save(tmp_path / f"{n:02}" / f"{i:03}.png")
    source = sources.calibration(str(tmp_path), Preprocess(), limit=100)
    assert source.note == "calibration reads 100 of 245 pictures in 10 folders, spread evenly"
    files = source(["x"]).paths
    assert files == sources.calibration(str(tmp_path), Preprocess(), limit=100)(["x"]).paths
    assert files != sources.calibration(str(tmp_path), Preprocess(), limit=100, seed=1)(["x"]).paths
    for some in (10, 50, 100):  # what the search sees of it, too
        assert {f.parent.name for f in files[:some]} == {f"{n:02}" for n in range(10)}
    for n in range(10):
        numbers = sorted(int(f.stem) for f in files if f.parent.name == f"{n:02}")
        assert len(numbers) == 10 and max(np.diff(numbers)) <= 5  # of 20 to 29 names
    everything = sources.calibration(str(tmp_path), Preprocess(), limit=1000)
    assert len(set(everything(["x"]).paths)) == 245 and not everything.note


@hypothesis.given(hypothesis.strategies.integers(1, 200), hypothesis.strategies.integers(0, 5))
def test_every_beginning_is_spread_evenly(n, seed):
    order = sources._evenly(list(range(n)), seed)
    assert sorted(order) == list(range(n))
    for some in range(1, n + 1):  # the three gaps of steps around a circle, none larger than these
        gaps = np.diff([*sorted(order[:some]), min(order[:some]) + n])
        assert max(gaps) <= 3 * n / some + 1


@pytest.mark.parametrize("size, resized, corner", [
    ((500, 375), (341, 256), (58, 16)), ((333, 500), (256, 384), (16, 80)), ((256, 256), (256, 256), (16, 16)),
    ((1000, 257), (996, 256), (386, 16)), ((224, 225), (256, 257), (16, 16)), ((100, 200), (256, 512), (16, 144)),
])  # fmt: skip
def test_short_side_and_crop_are_torchvisions(size, resized, corner):
    """Resize(256) cuts the longer side to int(256 * longer / shorter); CenterCrop(224) begins at
    int(round((side - 224) / 2)), and round is to even: 33 / 2 is 16."""
    image = pytest.importorskip("PIL.Image")
    picture = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    whole = np.asarray(image.fromarray(picture).resize(resized, image.Resampling.BILINEAR))
    left, top = corner
    wanted = whole[top : top + 224, left : left + 224].transpose(2, 0, 1)[None].astype(np.float32)
    np.testing.assert_array_equal(Preprocess(short_side=256, crop=(224, 224))(picture), wanted)
    for wrong, message in (
        (dict(short_side=0), "whole number"), (dict(short_side=200, crop=(224, 224)), "larger than what short_side"),
        (dict(short_side=256, size=(256, 256)), "one of them"),
    ):  # fmt: skip
        with pytest.raises(ImageError, match=message):
            Preprocess(**wrong)


def test_short_side_is_kept_in_the_table_and_tables_without_it_are_as_before():
    assert "short_side" not in Preprocess().facts and Preprocess.of(Preprocess().facts) == Preprocess()
    assert Preprocess.of(Preprocess(short_side=9).facts).short_side == 9


def calibrated(data, limit=None, images=5):
    graph, _ = networks.residual()
    config = QuantConfig(search_images=images, method="minmax")
    told = []
    found = calibrate(
        graph, plan(graph, ()), data, config, lambda *said: told.append(said[:2]), limit=limit
    )
    return found, told


def test_iterables_are_read_no_further_than_the_limit():
    graph, read = networks.residual()[0], []
    images = np.random.default_rng(0).normal(size=(40, 3, 10, 10)).astype(np.float32)

    def endless():
        for i in range(10**9):
            read.append(i)
            yield images[i % 40][None]

    found, _ = calibrated(endless(), limit=12)
    assert read == list(range(12)) and found.seen == 12 and found.stopped
    whole, told = calibrated(images, limit=12)  # an array is read whole, its first samples searched
    assert whole.seen == 40 and not whole.stopped and told[0] == (1, 40)
    np.testing.assert_array_equal(whole.samples[1][graph.inputs[0]], images[1:2])
    batches = [images[i : i + 10] for i in range(0, 40, 10)]  # known to be 40
    some, told = calibrated(batches, limit=20)
    assert some.seen == 20 and some.stopped and told[0] == (1, 20) and told[-1] == (20, 20)
    kept = [next(i for i in range(40) if (images[i] == s[graph.inputs[0]][0]).all()) for s in some.samples]
    assert kept == [3, 7, 11, 15, 19]  # spread evenly over what is read


def told(settings=None, scale=1.0, add=0.0):
    """What is suspicious about byte pictures times ``scale`` and ``add``, said to be made by ``settings``."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 1, 3, 10, 10)).astype(np.float32)
    graph, _ = networks.residual()
    config = QuantConfig(search_images=8, method="minmax")
    found = calibrate(graph, plan(graph, ()), list(pixels * np.float32(scale) + np.float32(add)), config)
    found.answers = list(range(len(found.answers)))  # a network that does not mind
    lines = list(suspicions.of_data(found, settings))
    return " ".join([*lines, *(suspicions.of_settings(settings) if settings else ())])


IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def test_settings_that_no_picture_has_are_told():
    """Story: a forgotten --scale 1/255 gave a table, and nobody said a word."""
    assert "is --scale 1/255 missing?" in told(Preprocess(**IMAGENET), 4.4, -2.1)
    assert "go with --scale 1?" in told(
        Preprocess(scale=1 / 255, mean=(123.7, 116.3, 103.5)), 1 / 255, -123
    )
    usual = (
        (Preprocess(scale=1 / 255, **IMAGENET), 1 / 58, -2), (Preprocess(scale=1 / 255), 1 / 255, 0),
        (Preprocess(scale=1 / 127.5, mean=1.0), 1 / 127.5, -1), (Preprocess(mean=(104, 117, 123)), 1, -110),
        (Preprocess(), 1, 0), (None, 1 / 255, 0), (None, 1, -120), (None, 1 / 58, -2),
    )  # fmt: skip
    for settings, scale, add in usual:
        assert not told(settings, scale, add), settings


def test_samples_that_their_preprocessing_does_not_make_are_told():
    how = Preprocess(scale=1 / 255, **IMAGENET)
    assert "made with other settings?" in told(how) and "scaled twice?" in told(how, 1 / 255**2)
    assert "is a scale missing" in told(None, 4.4, -2.1) and "scaled twice?" in told(None, 1 / 255**2)


def test_pictures_that_are_clipped_are_told():
    pixels = np.clip(np.random.default_rng(0).normal(size=(8, 1, 3, 10, 10)) * 3, -1, 1).astype(np.float32)
    graph, _ = networks.residual()
    found = calibrate(graph, plan(graph, ()), list(pixels), QuantConfig(search_images=8, method="minmax"))
    assert "in 7" in (line := "".join(suspicions.of_data(found))) and "was it clipped" in line


def test_accuracy_by_chance_is_told_with_its_likely_cause(tmp_path):
    """A network that tells how bright a picture is, and pictures whose scale was forgotten."""
    weight = np.zeros((4, 3, 1, 1), np.float32)
    weight[:, 0, 0, 0], bias = np.arange(4) * 8, -np.cumsum(np.arange(4)).astype(np.float32) * 2
    nodes = [("Conv", ["x", "w", "b"], ["a"], "conv", dict(kernel_shape=[1, 1])),
             ("GlobalAveragePool", ["a"], ["p"], "pool", {}), ("Flatten", ["p"], ["y"], "flat", {})]  # fmt: skip
    import onnx

    model = networks.onnx_model(nodes, {"x": [1, 3, 4, 4]}, {"y": [1, 4]}, {"w": weight, "b": bias}, 13)
    onnx.save(model, tmp_path / "net.onnx")
    labels = np.arange(40) % 4
    images = np.zeros((40, 4, 4, 3), np.uint8)
    images[..., 0] = (labels * 64 + 32)[:, None, None]
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    rng = np.random.default_rng(0).uniform(0, 1, (8, 3, 4, 4)).astype(np.float32)
    eq.quantize(tmp_path / "net.onnx", rng, method="minmax").table.save(tmp_path / "t.json")
    arguments = [
        str(tmp_path / "net.onnx"),
        "--table",
        str(tmp_path / "t.json"),
        "--data",
        str(tmp_path / "set.npz"),
    ]

    def said_by(*options):
        done = tvmc("evaluate", *arguments, *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert "warning" not in said_by("--scale", "1/255")
    said = said_by("--scale", "1")
    assert "right on 10 of 40 samples of 4 classes, as often as by chance" in said
    assert "with --scale 1/255 it is right on 40 of 40" in said


@pytest.mark.parametrize("method", ["minmax", "kl"])
def test_a_method_that_does_not_search_says_how_well_layers_survive(method):
    graph, feeds = networks.residual()
    table = eq.quantize(graph, feeds, method=method).table
    layers = [node.name for node in graph.compute_nodes]
    assert all(
        table.figures[name]["cosine"] > 0.9 and table.figures[name]["sqnr_db"] > 5 for name in layers
    )


def test_calibration_is_named_in_python_too(photos, tmp_path):
    folder, _ = photos
    how = Preprocess(scale=1 / 255, mean=(0.5, 0.25, 0), std=(1, 2, 4), size=(8, 8))
    model = networks.small_onnx()
    q = eq.quantize(model, folder, preprocess=how, calibration_limit=3, method="minmax")
    assert q.notes == ("calibration reads 3 of 4 pictures in 2 folders, spread evenly",)
    assert q.table.data["samples"] == 3
    with pytest.raises(ConfigError, match="calibration_limit is 0"):
        eq.quantize(model, folder, preprocess=how, calibration_limit=0)
