"""Labelled sets, top-k, and two networks compared on the same samples. No TVM."""

import io
import json
import math

import networks
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_easyquant.evaluate import EvaluationError, compare, evaluate, load, top
from tvm_easyquant.images import ImageError, Preprocess, decode
from tvm_easyquant.network.graph import run

PREPROCESS = {"color": "BGR", "scale": 0.5, "mean": [1, 2, 3], "std": [1, 2, 4], "crop": [4, 2]}


def saved(folder, **arrays):
    path = folder / "set.npz"
    np.savez(path, **arrays)
    return path


# -- sets


def test_float_images_come_as_they_are(tmp_path):
    images = np.random.default_rng(0).standard_normal((3, 3, 4, 4)).astype(np.float32)
    data = load(saved(tmp_path, images=images, labels=np.arange(3)))
    for _ in range(2):  # as often as asked
        for i, (x, label) in enumerate(data):
            np.testing.assert_array_equal(x, images[i : i + 1])
            assert label == i
    assert len(data) == 3 and len(list(data.first(2))) == 2


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_pictures_are_preprocessed_in_the_stated_order(tmp_path, layout):
    picture = np.random.default_rng(1).integers(0, 256, (6, 8, 3), np.uint8)
    stored = picture[None] if layout == "NHWC" else picture.transpose(2, 0, 1)[None]
    ((x, label),) = load(saved(tmp_path, images=stored, labels=np.array([7])), PREPROCESS)
    cut = picture[2:4, 2:6, ::-1].astype(np.float32)
    expected = (cut * 0.5 - [1, 2, 3]) / [1, 2, 4]
    np.testing.assert_allclose(x, expected.transpose(2, 0, 1)[None], rtol=1e-6)
    assert x.dtype == np.float32 and label == 7


def encoded(picture):
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return np.frombuffer(stream.getvalue(), np.uint8)


def test_encoded_pictures_are_cut_by_offsets(tmp_path):
    pytest.importorskip("PIL")
    pictures = np.random.default_rng(2).integers(0, 256, (3, 5, 5, 3), np.uint8)
    pieces = [encoded(p) for p in pictures]
    offsets = np.cumsum([0, *map(len, pieces)])
    path = saved(tmp_path, jpeg=np.concatenate(pieces), offsets=offsets, labels=np.zeros(3, np.int16))
    for (x, _), picture in zip(load(path, Preprocess()), pictures, strict=True):
        np.testing.assert_array_equal(x[0].transpose(1, 2, 0), picture)
    assert Preprocess(size=(7, 3))(pictures[0]).shape == (1, 3, 3, 7)
    with pytest.raises(ImageError, match="p 3 cannot be decoded"):
        decode(b"no picture", "p 3")


def pairs_of_a_user():
    yield np.zeros((1, 2), np.float32), 1
    yield np.ones((1, 2), np.float32), 0


def test_a_function_named_by_the_user_yields_the_pairs():
    data = load("test_evaluate:pairs_of_a_user")
    found = evaluate(lambda feed: [feed["x"] + [[0, 0.5]]], data, inputs=["x"])
    assert found["top1"].tolist() == [1.0, 0.0] and found["top5"].tolist() == [1.0, 1.0]


IMAGES = np.zeros((2, 3, 4, 4), np.float32)
BAD_SETS = {
    "no array labels": dict(images=IMAGES),
    "neither images nor jpeg": dict(labels=np.arange(2)),
    "3 labels for 2 images": dict(images=IMAGES, labels=np.arange(3)),
    "give one integer a sample": dict(images=IMAGES, labels=np.zeros(2, np.float32)),
    "images is float64": dict(images=IMAGES.astype(np.float64), labels=np.arange(2)),
    "holds pictures of 8 bits; say how": dict(images=IMAGES.astype(np.uint8), labels=np.arange(2)),
    "holds no image": dict(images=IMAGES[:0], labels=np.arange(0)),
    "offsets do not cut": dict(jpeg=np.zeros(4, np.uint8), offsets=np.array([0, 9]), labels=np.arange(1)),
    "image 1 holds NaN": dict(images=np.add(IMAGES, [[[[0]]], [[[math.nan]]]]), labels=np.arange(2)),
}
BAD_SETS["image 1 holds NaN"]["images"] = BAD_SETS["image 1 holds NaN"]["images"].astype(np.float32)


@pytest.mark.parametrize("message", BAD_SETS)
def test_a_bad_set_is_named(tmp_path, message):
    path = saved(tmp_path, **BAD_SETS[message])
    with pytest.raises(EvaluationError, match=message) as caught:
        list(load(path))
    assert str(path) in str(caught.value)


def test_bad_sources_are_named(tmp_path):
    (tmp_path / "no.npz").write_bytes(b"PK\x03\x04")
    for source, message in {
        str(tmp_path / "no.npz"): "cannot read",
        str(tmp_path / "none.npz"): "cannot read",
        "images.txt": "neither an .npz file nor module:function",
        "no_such_module:f": "names no function",
        "math:pi": "not a function",
        7: "labelled data is a int",
    }.items():
        with pytest.raises(EvaluationError, match=message):
            load(source)
    with pytest.raises(EvaluationError, match="sample 1 is no pair"):
        list(load([(1, 2), 3]))


@pytest.mark.parametrize(
    "facts, message",
    [
        (dict(color="GBR"), "color is"),
        (dict(mean=[1, 2]), "mean is"),
        (dict(std=[1, 0, 1]), "std is"),
        (dict(crop=[0, 3]), "crop is"),
        (dict(means=1), "preprocess has"),
    ],
)
def test_a_bad_preprocess_is_named(tmp_path, facts, message):
    (tmp_path / "net.json").write_text(json.dumps({"preprocess": facts}))
    with pytest.raises(ImageError, match=message) as caught:
        Preprocess.load(tmp_path / "net.json")
    assert "net.json" in str(caught.value)
    with pytest.raises(ImageError, match="smaller than the crop"):
        Preprocess(crop=(9, 9))(np.zeros((4, 4, 3), np.uint8))


# -- scores


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8), st.data())
def test_top_1_is_argmax_and_top_k_counts_the_larger(values, data):
    label, k = data.draw(st.integers(0, len(values) - 1)), data.draw(st.integers(1, 8))
    order = np.argsort(-np.asarray(values), kind="stable")
    assert top(1)([np.array([values], np.float32)], label) == (np.argmax(values) == label)
    assert top(k)([np.array([values])], label) == (label in order[:k])


@pytest.mark.parametrize("label", [5, -1, "cat", 1.0])
def test_a_label_out_of_range_names_the_sample(label):
    data = [(np.zeros((1, 5), np.float32), 0), (np.zeros((1, 5), np.float32), label)]
    with pytest.raises(EvaluationError, match="sample 1: its label is"):
        evaluate(lambda feed: [feed["x"]], data, inputs=["x"])


def test_a_metric_of_the_user_and_a_batched_network():
    graph, images = networks.residual()
    data = [(x, i) for i, x in enumerate(images[:5])]
    metrics = {"first": lambda outputs, label: float(outputs[0][0, 0]) + label}
    alone = evaluate(lambda feed: run(graph, feed), data, inputs=graph.inputs, metrics=metrics)

    def batched(feed):
        assert len(feed["image"]) == 3
        return [np.concatenate([run(graph, {"image": x[None]})["logits"] for x in feed["image"]])]

    together = evaluate(batched, data, inputs=graph.inputs, metrics=metrics, batch=3)
    np.testing.assert_array_equal(alone["first"], together["first"])
    with pytest.raises(EvaluationError, match="sample 0: metric m is nan"):
        evaluate(batched, data, inputs=["image"], metrics={"m": lambda o, y: math.nan}, batch=3)
    with pytest.raises(EvaluationError, match="is empty"):
        evaluate(batched, [], inputs=["image"])
    with pytest.raises(EvaluationError, match="rows for 2 samples"):
        evaluate(lambda feed: [np.zeros((1, 5))], data, inputs=["image"], batch=2)


# -- paired comparison


def test_only_samples_that_differ_count():
    reference = np.repeat([1.0, 0.0], [60, 40])
    scores = reference.copy()
    scores[:3], scores[60:61] = 0, 1
    found = compare(scores, reference)
    assert (found.gained, found.lost, found.n) == (1, 3, 100)
    assert found.difference == pytest.approx(-2) and found.drop == pytest.approx(2)
    assert found.value == pytest.approx(58) and found.reference == pytest.approx(60)
    assert found.interval[0] < -2 < found.interval[1]
    assert found.p == pytest.approx(2 * (1 + 4) / 16)  # 4 discordant: P(at most 1 of 4), twice
    same = compare(reference, reference)
    assert same.difference == 0 and same.p == 1 and same.interval[0] < 0 < same.interval[1]


def test_the_interval_holds_the_true_difference_as_often_as_it_says():
    rng = np.random.default_rng(3)
    held, rounds = 0, 2000
    for _ in range(rounds):
        which = rng.choice(3, 300, p=[0.02, 0.03, 0.95])
        reference = np.where(which == 0, 0.0, 1.0)
        scores = np.where(which == 1, 0.0, 1.0)
        low, high = compare(scores, reference).interval
        held += low <= -1.0 <= high
    assert 0.93 <= held / rounds <= 0.99


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_comparison_is_symmetric(gained, lost):
    a = np.repeat([1.0, 0.0, 1.0], [gained, lost, 5])
    b = np.repeat([0.0, 1.0, 1.0], [gained, lost, 5])
    one, other = compare(a, b), compare(b, a)
    assert one.difference == pytest.approx(-other.difference) and one.p == other.p
    assert one.interval[0] == pytest.approx(-other.interval[1])
    assert 0 < one.p <= 1


def test_other_scores_and_bad_pairs():
    a = np.array([0.2, 0.5, 0.9, 0.4])
    found = compare(a, a - 0.1)
    assert found.difference == pytest.approx(10) and found.gained == 4
    with pytest.raises(EvaluationError, match="two of one length"):
        compare(a, a[:2])
