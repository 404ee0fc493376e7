"""Linear Resize: read with exact fractions, the same integers everywhere, told by name where it stays float."""

import re
from dataclasses import replace
from fractions import Fraction
from functools import partial

import networks
import numpy as np
import pytest

import tvm_easyquant as eq
from topi_ext import function, reference
from tvm_easyquant.errors import TableError, TVMMissing
from tvm_easyquant.host import installed
from tvm_easyquant.network import resample
from tvm_easyquant.network.graph import Graph
from tvm_easyquant.network.node import Node
from tvm_easyquant.scales.calibrate import calibrate, start_table
from tvm_easyquant.scales.integer import run_integer
from tvm_easyquant.scales.partition import plan
from tvm_easyquant.writers.qdq import to_qdq
from tvm_easyquant.writers.verify import reference_integers, verify

RNG = np.random.default_rng(0)


def table_of(graph, images, **settings):
    config = eq.QuantConfig(**{"method": "minmax", **settings})
    plan_ = plan(graph, config.skip)
    return start_table(graph, plan_, calibrate(graph, plan_, images, config), config)


def model(size, mode="half_pixel", scales=None, sizes=None, opset=13, how="linear", **attributes):
    """conv - Resize, of (1, 4, *size)."""
    weight = RNG.standard_normal((4, 3, 1, 1)).astype(np.float32)
    given = {"s": np.float32([1, 1, *scales])} if sizes is None else {"s": np.int64([1, 4, *sizes])}
    inputs = ["c", "", "s"] if sizes is None else ["c", "", "", "s"]
    attributes = {"mode": how, "coordinate_transformation_mode": mode, **attributes}
    nodes = [("Conv", ["x", "w"], ["c"], "conv", {}), ("Resize", inputs, ["y"], "up", attributes)]
    return networks.onnx_model(
        nodes, {"x": [1, 3, *size]}, {"y": list("abcd")}, {"w": weight, **given}, opset
    )


#: name -> (model, the ratios that it must be read by)
READ = {
    "twice": (lambda: model((4, 5), scales=[2, 2]), ((2, 1), (2, 1))),
    "thirds": (lambda: model((6, 9), scales=[4 / 3, 1 / 3]), ((4, 3), (1, 3))),
    "a place that is not whole": (lambda: model((5, 3), scales=[1.5, 2.5]), ((3, 2), (5, 2))),
    "sizes": (lambda: model((7, 3), sizes=[4, 9]), ((4, 7), (3, 1))),
    "of one place": (lambda: model((1, 6), "asymmetric", sizes=[3, 1]), ((3, 1), (1, 6))),
    "to one place": (lambda: model((4, 6), "pytorch_half_pixel", sizes=[1, 9]), ((1, 4), (3, 2))),
    "corners": (lambda: model((7, 5), "align_corners", sizes=[20, 3]), ((20, 7), (3, 5))),
    "asymmetric": (lambda: model((4, 5), "asymmetric", scales=[2, 3]), ((2, 1), (3, 1))),
    "symmetric": (lambda: model((4, 6), "half_pixel_symmetric", scales=[2, 0.5], opset=19), ((2, 1), (1, 2))),
    "antialias that has nothing to do": (
        lambda: model((4, 5), scales=[2, 3], opset=18, antialias=1), ((2, 1), (3, 1)),
    ),
    "what lies outside": (lambda: model((4, 5), scales=[2, 2], exclude_outside=1), ((2, 1), (2, 1))),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_every_kind_of_coordinates_is_read_as_onnx_runtime_computes_it(name):
    ort = pytest.importorskip("onnxruntime")
    made, ratios = READ[name][0](), READ[name][1]
    graph = eq.load_onnx(made)
    assert graph["up"].op == "resize_linear" and graph["up"].attrs["scales"] == ratios
    assert plan(graph).floats == {} and graph["up"].attrs["mode"] in resample.MODES
    x = RNG.standard_normal((1, 3, *graph["x"].shape[1:3])).astype(np.float32)
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(graph.run(x)["y"], session.run(None, {"x": x})[0], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    "made, why",
    [
        (lambda: model((5, 6), scales=[1.2345678, 2]), r"up: a resize by a factor that is no ratio of small .* 2\*\*30"),
        (lambda: model((5, 6), scales=[0.5, 2], opset=18, antialias=1), "Resize is not covered with antialias=1; without it is"),
        (lambda: model((5, 6), "align_corners", scales=[1.5, 2]),
         "Resize is not covered with align_corners and scales that make no whole size; give sizes instead"),
        (lambda: model((5, 6), scales=[2, 2], how="cubic"), "Resize is not covered with mode=cubic; nearest and linear are"),
    ],
)  # fmt: skip
def test_what_does_not_fit_stays_float_and_says_why(made, why):
    """A wrong number is never the answer: the accumulator of a factor like 1.2345678 would not fit int32."""
    graph = eq.load_onnx(made())
    (told,) = plan(graph).floats.items()
    assert re.search(why, ": ".join(told))


@pytest.mark.parametrize("scales", [(1.5, 2), (0.6, 2.3), (1.3, 1.7)])
@pytest.mark.parametrize("how", ["nearest", "linear", "cubic"])
def test_scales_that_make_no_whole_size_are_aligned_at_the_corners_as_the_specification_says(how, scales):
    """ONNX Runtime takes the size after it is rounded, and differs by far; docs: The norm."""
    reference_ = pytest.importorskip("onnx.reference")
    runtime = pytest.importorskip("onnxruntime")
    made = model((5, 6), "align_corners", scales=scales, how=how)
    graph, x = eq.load_onnx(made), RNG.standard_normal((1, 3, 5, 6)).astype(np.float32)
    (want,) = reference_.ReferenceEvaluator(made).run(None, {"x": x})
    mine = graph.run(x)["y"]
    np.testing.assert_allclose(mine, want, rtol=0, atol=1e-5)
    assert graph["up"].op == ("gather" if how == "nearest" else "float")
    (other,) = runtime.InferenceSession(made.SerializeToString()).run(None, {"x": x})
    assert other.shape == mine.shape and np.abs(other - mine).max() > 0.1


def test_a_large_map_aligned_at_its_corners_stays_float():
    attrs = dict(mode="align_corners", sizes=((3, 2100), (3, 2100)), scales=((700, 1),) * 2)
    assert "parts of 2099 and 2099 its int32 accumulator may reach 1123479255" in resample.whole(attrs)
    assert resample.whole({**attrs, "sizes": ((3, 2050), (3, 2050))}) is None  # 255 * 2049**2 < 2**30


@pytest.mark.parametrize("mode", resample.MODES)
def test_the_parts_are_the_fractions(mode):
    """The definition, number by number: a new place is so much of one old place and of the next."""
    for size, made, scale in (
        (3, 6, (2, 1)),
        (5, 7, (3, 2)),
        (6, 2, (1, 3)),
        (1, 4, (4, 1)),
        (4, 1, (1, 4)),
    ):
        found = resample.taps(mode, size, made, scale)
        for i in range(made):
            at = resample.MODES[mode](i, size, made, Fraction(*scale))
            at = min(max(at, Fraction(0)), Fraction(size - 1))
            share = Fraction(int(found.share[i]), found.denominator)
            assert (1 - share) * int(found.first[i]) + share * int(found.second[i]) == at
            assert 0 <= found.first[i] <= found.second[i] < size and 0 <= share < 1


# -- the kernel


def computed(arrays, **numbers):
    """`kernels.resize` on whichever TVM is installed."""
    pytest.importorskip("tvm")
    import kernel_host

    from topi_ext.kernels.resize import resize_linear

    return kernel_host.computed(partial(resize_linear, **numbers), arrays)


#: parts whose sums stay in int16, at its edge and beyond, and those that reach 2**30; a zero point
CORNERS = [(29, (4, 4), 128), (1, (16, 8), 0), (3, (129, 1), 255), (16, (2051, 2051), 255)]


@pytest.mark.parametrize("channels, parts, zero", CORNERS)
def test_the_kernel_is_the_norm_at_every_corner(channels, parts, zero):
    """Extremes first: every pair of corner values under every share, the sums at the ends of what is proved."""
    corners = np.uint8([0, 1, 127, 128, 254, 255])
    x = np.stack([np.tile(corners, (6, 1)), np.tile(corners[:, None], (1, 6))])[..., None]
    x = np.concatenate([x, RNG.integers(0, 256, x.shape).astype(np.uint8)]).repeat(channels, 3)
    x[..., 1:] = RNG.permuted(x[..., 1:], axis=1)
    tables = [
        np.array([(i % 6, min(i % 6 + 1, 5), s) for i in range(6) for s in {0, 1, whole // 2, whole - 1}], np.int32)
        for whole in parts
    ]  # fmt: skip
    unit = np.full((1, channels), 1 / (parts[0] * parts[1]), np.float32)
    acc = reference.resize_linear(x, *tables, parts, zero_point=zero)
    arrays, numbers = [x, *tables, unit], dict(parts=parts, in_zero_point=zero)
    made = computed(arrays, **numbers, zero_point=3, lo=1, hi=250)
    np.testing.assert_array_equal(made, reference.requantize(acc, unit[0], 3, 1, 250))
    made = computed(arrays, **numbers, dequantize=True)
    np.testing.assert_array_equal(made, reference.dequantize(acc, unit[0], 0))
    slopes = tuple(np.linspace(-1, 1, channels).tolist())
    how, factor, other, lo, hi = function.fuse(("leaky_relu", "x", slopes), unit[0], 0.5, -9, 200)
    factors = np.stack([np.broadcast_to(v, (channels,)) for v in (factor, other)]).astype(np.float32)
    made = computed([x, *tables, factors], **numbers, zero_point=9, lo=lo + 9, hi=hi + 9, function=how)
    np.testing.assert_array_equal(
        made, reference.requantize(acc, factors[0], 9, lo + 9, hi + 9, how, factors[1])
    )


# -- the walk


@pytest.mark.ci  # every day: test_layers and test_onnx_export have these resizes
def test_the_host_computes_the_same_integers():
    try:
        host = installed()
    except TVMMissing:
        pytest.skip("no TVM")
    graph, images = networks.resized()
    large = graph["large"]  # once more, in float
    graph = Graph(
        [*graph, Node("float", large.op, large.inputs, large.shape, large.attrs)], ["large", "float"]
    )
    table = table_of(graph, images, skip=("float",))
    found = table.check(graph)
    assert set(found.floats) == {"float"} and found.accumulators == {"large"}
    built, stored = host.build(host.rewrite(graph, table, found.site_of)), reference_integers(graph, table)
    for x in images[:2]:
        made, real, *taps = built({"image": x})
        want = stored({"image": x})
        np.testing.assert_array_equal(made, want["output large"])
        np.testing.assert_allclose(real, want["output float"], rtol=1e-6, atol=1e-6)
        for tensor, tap in zip(found.site_of, taps, strict=True):
            np.testing.assert_array_equal(tap, want[tensor])


def test_an_exported_network_comes_back_as_it_was():
    pytest.importorskip("onnx")
    graph, images = networks.resized()
    table = table_of(graph, images)
    back = eq.import_quantized(to_qdq(graph, table))
    assert not any(node.op == "resize_linear" for node in back.graph if node.name in back.plan.floats)
    for x in images[:2]:
        (mine,), (theirs,) = (
            run_integer(graph, table, x).values(),
            run_integer(back.graph, back.table, x).values(),
        )
        np.testing.assert_array_equal(mine, theirs)


def test_a_table_of_before_keeps_it_float():
    """Story: a Resize was a float node, and tables of then have no scale for it; its name is the model's own."""
    made = model((4, 5), scales=[2, 2])
    graph = eq.load_onnx(made)
    images = [RNG.standard_normal((1, 3, 4, 5)).astype(np.float32) for _ in range(3)]
    old = graph.former()
    assert old["up"].op == "float" and old.fingerprint != graph.fingerprint and old.former is None
    table = table_of(old, images)
    assert table.prepared(graph).fingerprint == old.fingerprint and plan(old).floats == {
        "up": "Resize is not covered"
    }
    mine, theirs = run_integer(graph, table, images[0]), run_integer(old, table, images[0])
    np.testing.assert_array_equal(mine["up"], theirs["up"])
    new = table_of(graph, images)
    assert new.prepared(graph) is graph and new.model != table.model
    with pytest.raises(TableError, match="another model"):
        new.check(old)
    assert isinstance(old, Graph)


@pytest.mark.parametrize("optimize", [True, False])
def test_what_onnx_runtime_rounds_otherwise_are_ties(optimize):
    """Story: 1,174 of 65,536 numbers were not those of ONNX Runtime. Where a model has one scale before and behind
    a linear Resize, many lie halfway between two steps, on whose one side float32 products come to lie."""
    runtime = pytest.importorskip("onnxruntime")
    if optimize and tuple(map(int, runtime.__version__.split(".")[:2])) < (1, 20):
        pytest.skip(f"ONNX Runtime {runtime.__version__} resizes the bytes themselves there, and cuts off")
    graph, images = networks.resized()
    table = table_of(graph, images)
    scales = {**table.activations, "twice": table.activations["stem.relu"]}
    table = replace(table, activations=scales)
    found = verify(graph, table, [{"image": x} for x in images], optimize=optimize)
    (row,) = [row for row in found.tensors if row.tensor == "twice"]
    assert row.unexplained == 0 and row.own_largest == 1 and 0 < row.own < row.values // 50
    assert row.tie < 1e-3


def test_relay_s_resizes_are_read():
    relay = pytest.importorskip("tvm.relay")
    import tvm

    x = relay.var("x", shape=(1, 3, 4, 6))
    resizes = {
        "half_pixel": relay.image.resize2d(x, (9, 6)),
        "align_corners": relay.image.resize2d(x, (8, 4), coordinate_transformation_mode="align_corners"),
        "asymmetric": relay.nn.upsampling(x, 2, 3, method="bilinear"),
    }
    feed = RNG.standard_normal((1, 3, 4, 6)).astype(np.float32)
    for mode, call in resizes.items():
        module = tvm.IRModule.from_expr(relay.Function([x], call))
        graph = eq.from_relay(module)
        (node,) = [node for node in graph if node.op != "input"]
        assert (
            node.op == "resize_linear"
            and node.attrs["mode"] == mode
            and graph.former()[node.name].op == "float"
        )
        (mine,), (theirs,) = graph.run(feed).values(), graph.former().run(feed).values()
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
