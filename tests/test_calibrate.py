"""Calibration data in every form users have it, and what is wrong with it. No TVM."""

import networks
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_easyquant.network.graph import Graph
from tvm_easyquant.network.node import Node
from tvm_easyquant.scales.calibrate import CalibrationError, calibrate, samples, start_table
from tvm_easyquant.scales.integer import function_values
from tvm_easyquant.scales.numerics import QuantConfig, Scale
from tvm_easyquant.scales.partition import plan

GRAPH, IMAGES = networks.chain()
STACK = np.concatenate(IMAGES)


class Reader:
    """ONNX Runtime's CalibrationDataReader."""

    def __init__(self):
        self.items = iter([{"image": x} for x in IMAGES])

    def get_next(self):
        return next(self.items, None)


@pytest.mark.parametrize(
    "data",
    [
        IMAGES,
        iter(IMAGES),
        (x for x in IMAGES),
        [{"image": x} for x in IMAGES],
        [(x, 7) for x in IMAGES],
        [x[0] for x in IMAGES],
        STACK,
        {"image": STACK},
        [STACK[:3], STACK[3:]],
        STACK.astype(np.float64),
        Reader(),
    ],
    ids=["list", "iterator", "generator", "dicts", "labelled", "no batch axis", "array", "dict of arrays",
         "batches", "float64", "CalibrationDataReader"],
)  # fmt: skip
def test_every_form_of_data_gives_the_same_samples(data):
    got = [s["image"] for s in samples(data, GRAPH)]
    assert len(got) == 4 and all(x.dtype == np.float32 for x in got)
    np.testing.assert_array_equal(np.concatenate(got), STACK)


def test_an_input_that_is_a_number():
    """A number has no axis of samples; every form of it was refused."""
    nodes = [Node("image", "input", (), (1, 2, 2, 3)), Node("gain", "input", (), ())]
    graph = Graph(nodes, ["image"])
    x = STACK[:2, :3, :2, :2]
    for gain in (np.float32([1, 2]), [1.0, 2.0]):
        got = list(samples({"image": x, "gain": gain}, graph))
        assert [(s["gain"].shape, float(s["gain"])) for s in got] == [((), 1.0), ((), 2.0)]
    (one,) = samples([{"image": x[:1], "gain": np.float32(3)}], graph)
    assert graph.check_inputs(one)["gain"] == 3
    with pytest.raises(CalibrationError, match=r"gain has shape \(1, 1\), the model takes \(\)"):
        list(samples([{"image": x[:1], "gain": np.zeros((1, 1), np.float32)}], graph))


def test_a_name_is_no_data():
    with pytest.raises(CalibrationError, match="calibration data is 'x.npz', a name; give the arrays"):
        list(samples("x.npz", GRAPH))


def test_what_is_not_a_number_is_told():
    """A root of a negative number was 0 in the float network, and NaN in everybody else's."""
    root = Node("root", "elementwise", ("image",), GRAPH["image"].shape, dict(expression=("sqrt", "x")))
    graph = Graph([GRAPH["image"], root], ["root"])
    found = graph.run({"image": np.full_like(IMAGES[0], -1)})["root"]
    assert np.isnan(found).all()
    assert not np.isnan(function_values(root, Scale(0.1, 64, 0, 127))).any()  # of steps that nobody stores


def test_kept_samples_are_copies():
    """Story: a reader that filled one buffer again and again made all 50 search images the last one."""

    def one_buffer():
        buffer = np.empty_like(IMAGES[0])
        for x in IMAGES:
            buffer[...] = x
            yield buffer

    result = calibrate(GRAPH, plan(GRAPH), one_buffer(), QuantConfig())
    np.testing.assert_array_equal(np.concatenate([s["image"] for s in result.samples]), STACK)
    (sample,) = calibrate(GRAPH, plan(GRAPH), STACK, QuantConfig(search_images=1)).samples
    assert sample["image"].base is None  # the big array is not kept alive


BAD = np.where(np.arange(STACK.size).reshape(STACK.shape) == 700, np.nan, STACK).astype(np.float32)


@pytest.mark.parametrize(
    "data, message",
    [
        ([], "calibration data is empty"),
        (5, "calibration data is a int"),
        ([{"picture": IMAGES[0]}], r"item 1 has tensors \['picture'\].*\['image'\]"),
        ([IMAGES[0], IMAGES[1][:, :2]], "item 2: image has shape"),
        ([(IMAGES[0] * 255).astype(np.uint8)], "item 1: image is uint8.*float32"),
        (BAD, "item 1, sample 2: image holds NaN"),
        ([IMAGES[0] * np.float64(1e300)], "item 1, sample 0: image holds NaN or infinity"),
    ],
)
def test_bad_data_is_named(data, message):
    with pytest.raises(CalibrationError, match=message):
        calibrate(GRAPH, plan(GRAPH), data, QuantConfig())


def test_an_incomplete_batch_is_named():
    graph, _ = networks.chain(batch=2)
    with pytest.raises(CalibrationError, match="3 samples, not a multiple of the model's batch 2"):
        list(samples(STACK[:3], graph))


def test_memory_does_not_grow_with_the_number_of_images():
    """Only the search images are kept; the iterable is consumed one item at a time."""
    alive, most = 0, 0

    class Item(np.ndarray):
        def __del__(self):
            nonlocal alive
            alive -= 1

    def stream():
        nonlocal alive, most
        for i in range(100):
            alive += 1
            most = max(most, alive)
            yield IMAGES[i % 4].copy().view(Item)

    result = calibrate(GRAPH, plan(GRAPH), stream(), QuantConfig(search_images=3))
    assert result.seen == 100 and len(result.samples) == 3 and most < 12


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(4)))
def test_ranges_do_not_depend_on_the_order(order):
    config = QuantConfig()
    base = calibrate(GRAPH, plan(GRAPH), IMAGES, config).ranges
    assert calibrate(GRAPH, plan(GRAPH), [IMAGES[i] for i in order], config).ranges == base


@pytest.mark.parametrize("method, zero_point, hi", [("easyquant", 64, 127), ("easyquant_unsigned", 0, 127)])
def test_signs_and_bits_of_sites(method, zero_point, hi):
    graph, images = networks.residual()
    plan_, config = plan(graph), QuantConfig(method=method)
    table = start_table(graph, plan_, calibrate(graph, plan_, images, config), config)
    relu, image, added = (table.activations[n] for n in ("stem.relu", "image", "pw"))
    assert (relu.zero_point, relu.hi) == (zero_point, hi)
    assert (image.zero_point, image.lo, image.hi) == (64, 1, 127)
    assert (added.zero_point, added.lo, added.hi) == (128, 1, 255)  # only an add reads it: 8 bits


def test_an_input_that_is_never_negative_is_unsigned():
    images = [np.abs(x) for x in IMAGES]
    config = QuantConfig()
    table = start_table(GRAPH, plan(GRAPH), calibrate(GRAPH, plan(GRAPH), images, config), config)
    assert table.activations["image"].zero_point == 0


def suspicions(images, graph=GRAPH, **settings):
    return calibrate(graph, plan(graph), images, QuantConfig(**settings)).warnings


def test_data_that_is_as_it_should_be_is_not_suspected():
    assert suspicions(IMAGES, search_images=4) == ()
    assert suspicions(IMAGES, method="minmax") == ()  # that asks for no number of images


def test_fewer_images_than_asked_for():
    (line,) = suspicions(IMAGES)
    assert line.startswith("4 calibration samples, where the search asks for 50")


def test_repeated_and_constant_samples_are_named():
    images = [*IMAGES, IMAGES[1], np.full_like(IMAGES[0], 0.5), IMAGES[0]]
    repeated, constant = suspicions(images, search_images=7)
    assert repeated.startswith("2 of 7 calibration samples repeat an earlier one (the first is sample 4)")
    assert constant == "image is constant in 1 of 7 samples (the first is sample 5)"


def test_raw_pictures_are_suspected_where_the_answers_do_not_vouch_for_them():
    rng = np.random.default_rng(0)
    raw = [rng.integers(0, 256, IMAGES[0].shape).astype(np.float32) for _ in range(3)]
    (line,) = suspicions(raw, search_images=3)
    assert line.startswith("image holds whole numbers 0..255, like raw pictures")
    graph, _ = networks.residual()  # a classifier that tells some of them apart
    assert not [w for w in suspicions(raw, graph, search_images=3) if "raw" in w]


def test_tensors_that_are_always_zero_are_named():
    graph, images = networks.chain(2)
    graph["first"].weight[...] = 0
    graph["first"].bias[...] = -1
    (line,) = suspicions(images, graph, search_images=4)
    assert line == "zero on every calibration sample: first.relu; their scale is 1"


def test_an_activation_beyond_float32_is_named():
    from tvm_easyquant.errors import GraphError

    graph, images = networks.chain(2)
    graph["first"].weight[...] = 3e38
    with (
        pytest.raises(GraphError, match="first.* overflows float32 on calibration sample"),
        np.errstate(all="ignore"),
    ):
        suspicions(images, graph)
