"""Models that others quantized: the same integers as ONNX Runtime's, layer by layer, or a named reason."""

import networks
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("onnx")
import onnx
from onnx import TensorProto, helper, numpy_helper

import tvm_easyquant as eq
from tvm_easyquant.errors import GraphError
from tvm_easyquant.network import graph as graphs
from tvm_easyquant.network.graph import Graph
from tvm_easyquant.network.node import Node
from tvm_easyquant.readers.onnx_quantized import QuantizedModelError, is_quantized, normalize
from tvm_easyquant.readers.take_over import take_over
from tvm_easyquant.scales.integer import Scales, run_integer
from tvm_easyquant.scales.numerics import ConfigError
from tvm_easyquant.scales.partition import plan

# -- taking over: a graph with fake_quant nodes, no TVM, no ONNX


class Exact(networks.Builder):
    """Networks whose float arithmetic is exact: scales are powers of two, weights few integers of them."""

    def fake_quant(self, name, x, scale, zero_point=128):
        return self.add(
            name, "fake_quant", [x], self.nodes[x].shape, dict(scale=scale, zero_point=zero_point)
        )

    def conv(self, name, x, channels, kernel=1, reach=4):
        n, h, w, c = self.nodes[x].shape
        pad = kernel // 2
        attrs = dict(strides=(1, 1), padding=(pad,) * 4, dilation=(1, 1), groups=1)
        weight = self.rng.integers(-reach, reach + 1, (kernel, kernel, c, channels)) * 0.25
        bias = self.rng.integers(-10, 11, channels) / 16  # whole steps of every accumulator
        arrays = (weight.astype(np.float32), bias.astype(np.float32))
        return self.add(name, "conv2d", [x], (n, h, w, channels), attrs, *arrays)


def exact_network(draw, seed):
    """A random network with fake_quant nodes in random places."""
    b = Exact(seed, size=4)
    scale = st.sampled_from([2.0**-k for k in range(2, 6)])
    zero = st.sampled_from([0, 3, 64, 128, 255])
    tensors, weights, count = ["image"], {}, draw(st.integers(2, 9))
    for i in range(count):
        x = draw(st.sampled_from(tensors[-3:]))
        kind = draw(
            st.sampled_from(["conv", "relu", "add", "pool", "concat", "quant", "quant", "float", "table"])
        )
        name = f"{kind}{i}"
        if kind == "conv":
            b.conv(name, x, 4, kernel=draw(st.sampled_from([1, 3])))
            if draw(st.integers(0, 5)):
                weights[name] = np.float32(0.25) if draw(st.booleans()) else np.full(4, 0.25, np.float32)
        elif kind == "quant":
            b.fake_quant(name, x, draw(scale), draw(zero))
        elif kind == "relu":
            b.relu(name, x, hi=draw(st.sampled_from([np.inf, 1.0])))
        elif kind == "pool":
            if b.nodes[x].shape[1] < 2:
                continue
            b.pool(name, x)
        elif kind == "float":
            b.add(name, "float", [x], b.nodes[x].shape, dict(fn=np.negative, handle="negative", macs=0))
        elif kind == "table":
            expression = ("add", ("abs", "x"), 0.25)
            b.add(name, "elementwise", [x], b.nodes[x].shape, dict(expression=expression))
        else:
            y = draw(st.sampled_from(tensors))
            if b.nodes[x].shape != b.nodes[y].shape:
                continue
            (b.join if kind == "add" else b.concat)(name, x, y)
        tensors.append(name)
    outputs = [t for t in tensors[-2:] if t != "image"]
    return Graph(b.nodes.values(), outputs), weights


def test_a_reader_that_leads_nowhere_does_not_stop_the_rounding():
    """The pool is in the model and no output needs it: it counted as a reader in integers, then it was dropped,
    and the output was not rounded."""
    b = Exact(0, size=4)
    b.fake_quant("image8", "image", 0.25, 0)
    b.conv("conv", "image8", 4, kernel=1)
    b.pool("nowhere", "conv")
    b.fake_quant("conv8", "conv", 0.25, 0)
    graph = Graph(b.nodes.values(), ["conv8"])
    taken = take_over(graph, {"conv": np.float32(0.25)})
    feed = {"image": np.random.default_rng(0).integers(-64, 64, (1, 3, 4, 4)).astype(np.float32) / 32}
    (output,) = taken.graph.outputs
    found = run_integer(taken.graph, taken.table, feed)[output]
    np.testing.assert_array_equal(found, graphs.run(graph, feed)["conv8"])


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(0, 1000))
def test_what_is_taken_over_computes_the_fake_quantized_network(data, seed):
    """Wherever roundings are: the integers of the table give the same numbers, exactly."""
    graph, weights = exact_network(data.draw, seed)
    if not graph.outputs:
        return
    taken = take_over(graph, weights)
    assert not any(node.op == "fake_quant" for node in taken.graph)
    assert (
        set(taken.reasons)
        >= {n.name for n in taken.graph.compute_nodes} - taken.table.check(taken.graph).integer
    )
    image = np.random.default_rng(seed).integers(-64, 64, (1, 3, 4, 4)).astype(np.float32) / 32
    expected = graphs.run(graph, {"image": image})
    found = run_integer(taken.graph, taken.table, {"image": image})
    for theirs, ours in zip(graph.outputs, taken.graph.outputs, strict=True):
        np.testing.assert_array_equal(found[ours], expected[theirs])


def quantized_chain(weight_scale, weight=None):
    b = Exact(1, size=4)
    x = b.fake_quant("q0", "image", 0.125)
    x = b.relu("relu", b.conv("first", x, 4))
    x = b.fake_quant("q1", x, 0.0625, 0)
    b.conv("second", x, 2)
    b.fake_quant("q2", "second", 0.5)
    if weight is not None:
        b.nodes["first"] = Node(*[getattr(b.nodes["first"], f) for f in ("name", "op", "inputs", "shape", "attrs")],
                                weight, b.nodes["first"].bias)  # fmt: skip
    return take_over(b.graph("q2"), {"first": weight_scale, "second": np.float32(0.25)})


def test_scales_are_taken_over_unchanged():
    taken = quantized_chain(np.float32(0.25))
    assert {k: (s.scale, s.zero_point, s.lo, s.hi) for k, s in taken.table.activations.items()} == {
        "image": (0.125, 128, 0, 255), "relu": (0.0625, 0, 0, 255), "second_rounded": (0.5, 128, 0, 255),
    }  # fmt: skip
    assert taken.table.config.method == "imported" and taken.table.weights["first"].tolist() == [0.25] * 4
    assert taken.origin == {"image": "q0", "relu": "q1", "second_rounded": "q2"}
    assert taken.reasons == {} and taken.table.check(taken.graph).fused["relu"] == "first"
    again = eq.ScaleTable.from_json(taken.table.to_json())
    assert again.check(taken.graph).integer == taken.table.check(taken.graph).integer
    assert not again.diff(taken.table) and again.config == taken.table.config


def test_weights_of_minus_128_are_kept():
    weight = np.full((1, 1, 3, 4), -32.0, np.float32)
    weight[0, 0, 0] = 31.75
    taken = quantized_chain(np.float32(0.25), weight)
    integers = Scales.of_table(taken.graph, taken.table.check(taken.graph), taken.table).integer_weight(
        taken.graph["first"]
    )
    assert integers.min() == -128 and integers.max() == 127


@pytest.mark.parametrize(
    "scale, weight, why",
    [(np.float32(0.3), None, "no multiples of their scale"),
     (np.float32(0.0005), None, "no multiples of their scale"),
     (np.float32(2.0**-34), np.zeros((1, 1, 3, 4), np.float32), "its bias is beyond int32 in steps of its scales"),
     (np.full(3, 0.25, np.float32), None, "has 3 weight scales for 4 channels")],
)  # fmt: skip
def test_a_layer_that_cannot_be_taken_over_stays_float_and_says_why(scale, weight, why):
    taken = quantized_chain(scale, weight)
    assert why in taken.reasons["first"]
    assert "second" in taken.table.weights and "first" not in taken.table.weights


def test_a_quantized_graph_cannot_be_quantized_again_and_settings_must_fit():
    b = Exact(1, size=4)
    b.conv("first", b.fake_quant("q0", "image", 0.125), 4)
    assert "already quantized; import-onnx" in plan(b.graph("first")).floats["q0"]
    with pytest.raises(ConfigError, match="imported and the setting integer belong together"):
        eq.QuantConfig(method="imported")
    with pytest.raises(ConfigError, match="imported and the setting integer belong together"):
        eq.QuantConfig(integer=("first",))
    with pytest.raises(GraphError, match=r"\['nothing'\] in integers, which are no nodes"):
        plan(b.graph("first"), integer=("nothing",))


# -- normalizing ONNX, no TVM


QUARK = "com.amd.quark"


def quantized_onnx(nodes, constants, inputs=None, outputs=None, opset=13, main=""):
    """A ModelProto from (op, inputs, outputs, attributes[, domain]), input ``x`` and output ``y``."""
    inputs = inputs or {"x": (TensorProto.FLOAT, [1, 3, 6, 6])}
    outputs = outputs or {"y": (TensorProto.FLOAT, None)}
    graph = helper.make_graph(
        [helper.make_node(op, i, o, name=f"n{k}", domain=(d or [""])[0], **a)
         for k, (op, i, o, a, *d) in enumerate(nodes)],
        "test",
        [helper.make_tensor_value_info(n, *kind) for n, kind in inputs.items()],
        [helper.make_tensor_value_info(n, *kind) for n, kind in outputs.items()],
        [v if isinstance(v, TensorProto) else numpy_helper.from_array(np.asarray(v), n)
         for n, v in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid(main, opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


S, Z8, ZU = np.float32(0.05), np.int8(3), np.uint8(120)
W = np.random.default_rng(0).integers(-127, 128, (4, 3, 1, 1)).astype(np.int8)


def test_scales_of_shape_one_become_scalars_and_int8_becomes_uint8():
    model = quantized_onnx(
        [("QuantizeLinear", ["x", "s", "z"], ["q"], {}), ("DequantizeLinear", ["q", "s", "z"], ["d"], {}),
         ("DequantizeLinear", ["w", "ws", "wz"], ["wd"], dict(axis=0)), ("Conv", ["d", "wd"], ["y"], {})],
        {"s": [S], "z": [Z8], "w": W, "ws": np.full(4, 0.01, np.float32), "wz": np.zeros(4, np.int8)},
    )  # fmt: skip
    normal = normalize(model)
    constants = {t.name: numpy_helper.to_array(t) for t in normal.model.graph.initializer}
    (quantize,) = [n for n in normal.model.graph.node if n.op_type == "QuantizeLinear"]
    assert constants[quantize.input[1]].shape == () and constants[quantize.input[2]] == np.uint8(131)
    assert (
        normal.tensors["q"].offset == 128 and normal.weights["n3"].scale.tolist() == [np.float32(0.01)] * 4
    )
    np.testing.assert_array_equal(constants["wd"], W * np.float32(0.01))


CONSTANTS = {"s": S, "t": np.float32(0.1), "z": ZU, "w": W, "wz": np.int8(0), "u": np.float32(0.02), "zero": np.uint8(0),
             "z4": helper.make_tensor("z4", TensorProto.INT4, [], [0]), "minus": np.float32(-1)}  # fmt: skip
Q, DQ = ("QuantizeLinear", ["x", "s", "z"], ["q"], {}), ("DequantizeLinear", ["q", "s", "z"], ["d"], {})
DW = ("DequantizeLinear", ["w", "u", "wz"], ["wd"], {})


@pytest.mark.parametrize(
    "nodes, why",
    [([Q, ("DequantizeLinear", ["q", "t", "z"], ["d"], {}), DW, ("Conv", ["d", "wd"], ["y"], {})],
      "n1: q is quantized with one scale and read with another"),
     ([("QuantizeLinear", ["x", "s", "z4"], ["q"], {}), ("DequantizeLinear", ["q", "s", "z4"], ["y"], {})],
      "z4 is INT4; integers of 8 or 16 bits"),
     ([("ExtendedQuantizeLinear", ["x", "s", "z"], ["q"], {}, QUARK), ("ExtendedDequantizeLinear", ["q", "s", "z"], ["y"], {}, QUARK)],
      "n0 .ExtendedQuantizeLinear, 2 such nodes. rounds to numbers that are no integers"),
     ([("BFPQuantizeDequantize", ["x"], ["y"], {}, QUARK)], "n0 .BFPQuantizeDequantize, 1 such nodes."),
     ([("MXQuantizeDequantize", ["x"], ["y"], {}, QUARK)], "n0 .MXQuantizeDequantize, 1 such nodes."),
     ([("QuantizeFloating", ["x", "s", "z"], ["y"], {})], "n0 .QuantizeFloating, 1 such nodes."),
     ([Q, ("Add", ["d", "a"], ["b"], {}), DQ, ("Relu", ["b"], ["a"], {}), ("Identity", ["a"], ["y"], {})],
      "node n1 reads what is made of its own output"),
     ([("QuantizeLinear", ["x", "minus", "z"], ["q"], {}), ("DequantizeLinear", ["q", "minus", "z"], ["y"], {})],
      "n0 .QuantizeLinear.: a scale is not positive and finite"),
     ([("ReduceMax", ["x"], ["m"], dict(keepdims=0)), ("QuantizeLinear", ["x", "m", "z"], ["q"], {}),
       ("DequantizeLinear", ["q", "m", "z"], ["y"], {})], "n1 .QuantizeLinear.: its scale is computed"),
     ([Q, ("ArgMax", ["q"], ["y"], {})], "n1: ArgMax of integers .q. cannot be taken over"),
     ([Q, ("QuantizeLinear", ["x", "t", "z"], ["p"], {}), ("Concat", ["q", "p"], ["c"], dict(axis=1)),
       ("DequantizeLinear", ["c", "s", "z"], ["y"], {})], "n2: Concat of integers with different scales"),
     ([("MatMulIntegerToFloat", ["x", "w"], ["y"], {}, "com.microsoft")], "n0: .* before ONNX Runtime optimized it")],
)  # fmt: skip
def test_what_cannot_be_taken_over_names_the_node(nodes, why):
    with pytest.raises(QuantizedModelError, match=why):
        normalize(quantized_onnx(nodes, CONSTANTS))


def test_models_are_known_by_their_operators():
    assert is_quantized(quantized_onnx([Q, DQ, DW, ("Conv", ["d", "wd"], ["y"], {})], CONSTANTS))
    assert not is_quantized(networks.small_onnx())


# -- the whole way, against ONNX Runtime


def rich_onnx():
    """Residual add, concat of two scales, every pool, depthwise, ReLU6, sigmoid gate, resize, slice, pad."""
    rng = np.random.default_rng(7)

    def normal(*shape):
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32)

    constants = {"w1": normal(8, 3, 3, 3), "b1": normal(8), "wd": normal(8, 1, 3, 3), "w2": normal(8, 8, 1, 1),
                 "b2": normal(8), "w3": normal(8, 8, 3, 3), "w4": normal(4, 16, 1, 1), "w5": normal(5, 36),
                 "b5": normal(5), "zero": np.float32(0), "six": np.float32(6), "pads": np.int64([0, 0, 0, 0, 0, 0, 1, 1]),
                 "roi": np.zeros(0, np.float32), "sizes": np.float32([1, 1, 2, 2])}  # fmt: skip
    three = dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    resize = dict(mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    nodes = [
        ("Conv", ["x", "w1", "b1"], ["c1"], "conv1", three), ("Relu", ["c1"], ["r1"], "relu1", {}),
        ("Conv", ["r1", "wd"], ["c2"], "dw", {**three, "group": 8}), ("Clip", ["c2", "zero", "six"], ["r2"], "relu6", {}),
        ("Conv", ["r2", "w2", "b2"], ["c3"], "pw", dict(kernel_shape=[1, 1])),
        ("Add", ["c3", "r1"], ["a1"], "join", {}), ("Relu", ["a1"], ["r3"], "joined", {}),
        ("MaxPool", ["r3"], ["p1"], "pool", dict(kernel_shape=[2, 2], strides=[2, 2])),
        ("Conv", ["p1", "w3"], ["c4"], "conv3", three),
        ("Sigmoid", ["c4"], ["g"], "gate", {}), ("Mul", ["c4", "g"], ["m"], "swish", {}),
        ("Concat", ["p1", "m"], ["cat"], "cat", dict(axis=1)),
        ("Conv", ["cat", "w4"], ["c5"], "narrow", dict(kernel_shape=[1, 1])),
        ("Resize", ["c5", "roi", "sizes"], ["up"], "up", resize),
        ("Pad", ["up", "pads"], ["padded"], "pad", {}),
        ("AveragePool", ["padded"], ["avg"], "avg", dict(kernel_shape=[3, 3], strides=[3, 3])),
        ("Flatten", ["avg"], ["flat"], "flatten", {}),
        ("Gemm", ["flat", "w5", "b5"], ["y"], "classifier", dict(transB=1)),
    ]  # fmt: skip
    return networks.onnx_model(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 5]}, constants)


def quantized_by_onnxruntime(model, images, folder, **settings):
    quantization = pytest.importorskip("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):
        items = iter([{"x": x} for x in images])

        def get_next(self):
            return next(self.items, None)

    onnx.save(model, folder / "float.onnx")
    quantization.quantize_static(folder / "float.onnx", folder / "quantized.onnx", Reader(), **settings)
    return onnx.load(folder / "quantized.onnx")


def pictures(count, seed=0):
    return [
        np.random.default_rng(seed + i).standard_normal((1, 3, 8, 8)).astype(np.float32)
        for i in range(count)
    ]


KINDS = {
    "QDQ u8s8": dict(form="QDQ", activation_type="QUInt8", per_channel=True),
    "QDQ s8s8": dict(form="QDQ", activation_type="QInt8", per_channel=True),
    "QDQ per tensor": dict(form="QDQ", activation_type="QUInt8", per_channel=False),
    "QDQ 7 bits": dict(form="QDQ", activation_type="QUInt8", per_channel=True, reduce_range=True),
    "QOperator u8s8": dict(form="QOperator", activation_type="QUInt8", per_channel=True),
    "QOperator s8s8": dict(form="QOperator", activation_type="QInt8", per_channel=True),
}


MORE = ("QDQ per tensor", "QDQ 7 bits", "QOperator s8s8")  # beside one of each form and sign


@pytest.fixture(
    scope="module", params=[pytest.param(k, marks=pytest.mark.slow if k in MORE else ()) for k in KINDS]
)
def theirs(request, tmp_path_factory):
    """A model that ONNX Runtime quantized, as we take it over."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    pytest.importorskip("tvm")
    options = dict(KINDS[request.param])
    form = options.pop("form")
    options["quant_format"] = quantization.QuantFormat[form]
    options["activation_type"] = quantization.QuantType[options["activation_type"]]
    folder = tmp_path_factory.mktemp("ort")
    return eq.import_quantized(quantized_by_onnxruntime(rich_onnx(), pictures(8), folder, **options))


def test_onnxruntime_s_models_give_onnxruntime_s_integers(theirs):
    from tvm_easyquant.writers.verify import verify

    assert theirs.coverage == 100.0 and len(theirs.origin) >= 12
    for optimize in (True, False):
        found = verify(theirs.graph, theirs.table, [{"x": x} for x in pictures(12, 100)], model=theirs.model,
                       names=theirs.origin, optimize=optimize)  # fmt: skip
        assert found.unexplained == 0 and found.total("values") > 10_000, str(found)
        assert found.total("own") <= found.total("values") / 2000, str(found)


def test_onnxruntime_s_models_compile(theirs):
    run = eq.Executor(theirs.build("llvm"))
    for x in pictures(3, 50):
        expected = run_integer(theirs.graph, theirs.table, {"x": x})
        np.testing.assert_array_equal(run({"x": x})[0], expected[theirs.graph.outputs[0]])


@pytest.mark.parametrize("bits", [7, 8])
def test_our_own_export_comes_back_as_it_was(bits):
    pytest.importorskip("tvm")
    from tvm_easyquant.writers.qdq import to_qdq

    q = eq.quantize(
        networks.small_onnx(norm=False), np.stack([x[0] for x in pictures(6)]), bits=bits, method="minmax"
    )
    taken = eq.import_quantized(to_qdq(q.graph, q.table))
    assert taken.coverage == 100.0 and list(taken.plan.floats) == ["x_saturated_Clip"]  # of the input
    for x in pictures(5, 30):
        a, b = run_integer(q.graph, q.table, {"x": x}), run_integer(taken.graph, taken.table, {"x": x})
        np.testing.assert_array_equal(a[q.graph.outputs[0]], b[taken.graph.outputs[0]])


@pytest.mark.parametrize("bits", [7, 8])
def test_an_exported_layer_norm_comes_back_as_one(bits):
    """Story: it was written with sums and quotients, which were read as a float island."""
    pytest.importorskip("tvm")
    from tvm_easyquant.writers.qdq import to_qdq

    graph, images = networks.normalized()
    q = eq.quantize(graph, images, bits=bits, method="minmax")
    taken = eq.import_quantized(to_qdq(q.graph, q.table))
    norms = [node.name for node in taken.graph if node.op == "layer_norm"]
    assert norms == ["first", "second", "third"] and taken.plan.integer.issuperset(norms)
    for x in images[:3]:
        (a,), (b,) = (run_integer(of.graph, of.table, x).values() for of in (q, taken))
        np.testing.assert_array_equal(a, b)


def test_dynamic_quantization_stays_float_and_says_why(tmp_path):
    quantization = pytest.importorskip("onnxruntime.quantization")
    pytest.importorskip("tvm")
    import onnxruntime

    onnx.save(networks.small_onnx(norm=False), tmp_path / "float.onnx")
    quantization.quantize_dynamic(tmp_path / "float.onnx", tmp_path / "dynamic.onnx")
    taken = eq.import_quantized(tmp_path / "dynamic.onnx")
    reasons = [why for why in taken.plan.floats.values() if "quantized at run time" in why]
    assert len(reasons) == 3 and taken.coverage == 0.0
    x = pictures(1)[0]
    (expected,) = onnxruntime.InferenceSession(tmp_path / "dynamic.onnx").run(None, {"x": x})
    (found,) = run_integer(taken.graph, taken.table, {"x": x}).values()
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


def test_weights_with_a_zero_point_are_shifted_if_they_fit():
    pytest.importorskip("tvm")

    def taken(weight, zero):
        nodes = [Q, DQ, DW, ("Conv", ["d", "wd"], ["y"], dict(kernel_shape=[1, 1]))]
        constants = {**CONSTANTS, "w": weight, "wz": np.uint8(zero)}
        return eq.import_quantized(
            quantized_onnx(nodes, constants, outputs={"y": (TensorProto.FLOAT, [1, 4, 6, 6])})
        )

    fits = taken(np.random.default_rng(0).integers(0, 256, (4, 3, 1, 1)).astype(np.uint8), 128)
    assert fits.coverage == 100.0
    (beyond,) = taken(np.full((4, 3, 1, 1), 255, np.uint8), 100).plan.floats.values()
    assert beyond == "its weights, less their zero point, reach 155: beyond int8"


def test_float_and_quantized_models_are_told_apart():
    pytest.importorskip("tvm")
    from tvm_easyquant import load_onnx
    from tvm_easyquant.errors import LoadError

    with pytest.raises(LoadError, match="is not quantized: it has no QuantizeLinear"):
        eq.import_quantized(networks.small_onnx())
    with pytest.raises(LoadError, match="already quantized .node n0 is QuantizeLinear.; import-onnx"):
        load_onnx(quantized_onnx([Q, DQ, DW, ("Conv", ["d", "wd"], ["y"], {})], CONSTANTS))


def test_a_batch_normalization_behind_a_quantized_layer_is_folded_into_its_scales(tmp_path):
    """NNCF leaves it there; its factors may be negative, and turn the integers of their channel over."""
    pytest.importorskip("tvm")
    pytest.importorskip("onnxruntime")
    from tvm_easyquant.writers.verify import verify

    rng = np.random.default_rng(3)
    factors = np.float32([1.5, -0.7, 0.01, 2.0])
    nodes = [
        Q, DQ, ("DequantizeLinear", ["w", "ws", "wz4"], ["wd"], dict(axis=0)), ("Conv", ["d", "wd"], ["c"], {}),
        ("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"], dict(epsilon=0.0)), ("Relu", ["n"], ["r"], {}),
        ("QuantizeLinear", ["r", "t", "zero"], ["p"], {}), ("DequantizeLinear", ["p", "t", "zero"], ["y"], {}),
    ]  # fmt: skip
    constants = {
        **CONSTANTS, "ws": np.float32([0.01, 0.02, 0.005, 0.01]), "wz4": np.zeros(4, np.int8), "gamma": factors,
        "beta": rng.standard_normal(4).astype(np.float32), "mean": rng.standard_normal(4).astype(np.float32),
        "var": np.ones(4, np.float32),
    }  # fmt: skip
    model = quantized_onnx(nodes, constants, outputs={"y": (TensorProto.FLOAT, [1, 4, 6, 6])})
    taken = eq.import_quantized(model)
    assert taken.coverage == 100.0 and not taken.plan.floats
    (scales,) = taken.table.weights.values()
    np.testing.assert_allclose(scales, constants["ws"] * np.abs(factors), rtol=1e-6)
    images = [{"x": rng.standard_normal((1, 3, 6, 6)).astype(np.float32)} for _ in range(20)]
    for optimize in (True, False):
        found = verify(
            taken.graph, taken.table, images, model=taken.model, names=taken.origin, optimize=optimize
        )
        assert found.unexplained == 0 and found.largest <= 1 and found.total("values") > 4000, str(found)


# -- the graphs that Quark and PPQ write, by hand: neither is needed


class Written:
    """A residual network in QDQ form, input ``x`` (1, 3, 6, 6), output ``y`` (1, 5).

    activation: the type of the activations; domain: of what quantizes them; bias: the type of the biases,
    None for float ones; power_of_two: all scales are; in_graph: the model quantizes float weights itself.
    """

    def __init__(
        self, seed=0, activation=np.int8, domain="", bias=np.int32, power_of_two=False, in_graph=False
    ):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants, self.domain = [], {}, domain
        self.activation, self.bias, self.in_graph = activation, bias, in_graph
        self.fit = (lambda s: np.float32(2.0 ** np.ceil(np.log2(s)))) if power_of_two else np.float32

    def add(self, op, inputs, output, domain="", **attrs):
        self.nodes.append((op, inputs, [output], attrs, domain))
        return output

    def constant(self, name, value):
        self.constants[name] = np.asarray(value)
        return name

    def rounded(self, x, reach, dtype=None):
        """x through QuantizeLinear and DequantizeLinear; reach: the largest magnitude it can hold."""
        dtype = dtype or self.activation
        limits = np.iinfo(dtype)
        zero = 0 if limits.min else (limits.max + 1) // 2
        scale = self.constant(f"{x}_s", self.fit(2 * reach / (limits.max - limits.min)))
        zero = self.constant(f"{x}_z", np.array(zero, dtype))
        q = self.add("QuantizeLinear", [x, scale, zero], f"{x}_q", self.domain)
        return self.add("DequantizeLinear", [q, scale, zero], f"{x}_d", self.domain)

    def layer(self, op, x, output, *shape, **attrs):
        """A convolution or Gemm with int8 weights and a bias."""
        real = (self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        step, axis, domain = self.fit(np.abs(real).max() / 127), {}, self.domain
        if self.in_graph:  # PPQ: a scale for each channel
            step, axis, domain = step * np.linspace(1, 1.3, shape[0], dtype=np.float32), dict(axis=0), ""
        scale = self.constant(f"{output}_ws", step)
        zero = self.constant(f"{output}_wz", np.zeros(step.shape, np.int8))
        if self.in_graph:
            weight = [self.constant(f"{output}_w", real), scale, zero]
            weight = self.add("QuantizeLinear", weight, f"{output}_wq", **axis)
        else:
            weight = self.constant(f"{output}_wq", np.clip(np.rint(real / step), -127, 127).astype(np.int8))
        weight = self.add("DequantizeLinear", [weight, scale, zero], f"{output}_wd", domain, **axis)
        bias = self.rng.standard_normal(shape[0]).astype(np.float32) / 4
        if self.bias is None:
            bias = self.constant(f"{output}_b", bias)
        else:  # Quark: in units of the accumulator, or (XINT8) int8 with a scale of its own
            unit = np.float32(self.constants[x.replace("_d", "_s")] * step)
            unit = unit if self.bias == np.int32 else self.fit(np.abs(bias).max() / 127)
            limit = np.iinfo(self.bias).max
            steps = np.clip(np.rint(bias / unit), -limit, limit).astype(self.bias)
            parts = [("bq", steps), ("bs", unit), ("bz", self.bias(0))]
            parts = [self.constant(f"{output}_{name}", value) for name, value in parts]
            bias = self.add("DequantizeLinear", parts, f"{output}_bd", domain)
        return self.add(op, [x, weight, bias], output, **attrs)

    def network(self, wide=None, raw=False, scaled=False):
        """wide: a type for the tensors of the addition; raw: one layer reads what only others read rounded;
        scaled: the pool is multiplied by a constant, in nodes behind all others."""
        stem = self.layer(
            "Conv", self.rounded("x", 3.0), "stem", 4, 3, 3, 3, kernel_shape=[3, 3], pads=[1] * 4
        )
        relu = self.add("Relu", [stem], "relu")
        rounded = self.rounded(relu, 4.0)
        body = self.layer("Conv", relu if raw else rounded, "body", 4, 4, 1, 1, kernel_shape=[1, 1])
        joined = self.add("Add", [rounded, self.rounded(body, 3.0, wide)], "joined")
        joined = self.rounded(self.add("Relu", [joined], "joined_relu"), 5.0, wide)
        last = self.layer("Conv", joined, "last", 6, 4, 1, 1, kernel_shape=[1, 1])
        self.add("GlobalAveragePool", [self.rounded(last, 4.0)], "mean" if scaled else "pool")
        flat = self.add("Flatten", [self.rounded("pool", 3.0)], "flat")
        logits = self.layer("Gemm", self.rounded(flat, 3.0), "logits", 5, 6, transB=1)
        self.add("Identity", [self.rounded(logits, 3.0)], "y")
        if scaled:
            value = numpy_helper.from_array(np.float32(1.0625))
            self.nodes.append(("Constant", [], ["correction"], dict(value=value)))
            self.add("Mul", ["mean", "correction"], "pool")
        outputs = {"y": (TensorProto.FLOAT, [1, 5])}
        return quantized_onnx(
            self.nodes, self.constants, outputs=outputs, main="ai.onnx" if self.in_graph else ""
        )


def compared(model):
    """The model as we take it over, after both ways of ONNX Runtime gave the same integers."""
    pytest.importorskip("tvm")
    pytest.importorskip("onnxruntime")
    from tvm_easyquant.writers.verify import verify

    taken, rng = eq.import_quantized(model), np.random.default_rng(11)
    images = [{"x": rng.standard_normal((1, 3, 6, 6)).astype(np.float32)} for _ in range(20)]
    for optimize in (True, False):
        found = verify(
            taken.graph, taken.table, images, model=taken.model, names=taken.origin, optimize=optimize
        )
        assert found.unexplained == 0 and found.total("values") > 5000, str(found)
        assert found.total("own") <= found.total("values") / 500, str(found)
    return taken


@pytest.mark.parametrize(
    "settings",
    [dict(activation=np.int8, domain="com.microsoft"),  # A8W8
     dict(activation=np.uint8, bias=np.int8, power_of_two=True),  # XINT8
     dict(activation=np.uint8)],  # U8S8_AAWS
    ids=["A8W8", "XINT8", "U8S8"],
)  # fmt: skip
def test_quark_s_graphs(settings):
    """One scale for all weights, biases quantized, operators of Microsoft's domain, nodes in any order."""
    taken = compared(Written(**settings).network(scaled=True))
    assert taken.coverage == 100.0 and len(taken.origin) >= 6
    assert list(taken.plan.floats) == [f"n{len(taken.model.graph.node) - 1}"]  # the Mul behind the pool


def test_tensors_of_16_bits_are_rounded_in_float_and_named():
    """Quark's A16W8 and its mixed settings."""
    taken = compared(Written(domain="com.microsoft", bias=None).network(wide=np.int16))
    layers = {name: why for name, why in taken.plan.floats.items() if taken.graph[name].macs}
    assert list(layers.values()) == ["its input has 16 bits"] and 0 < taken.coverage < 100
    named = {name: why for name, why in taken.plan.floats.items() if why.startswith("has 16 bits")}
    assert named == dict.fromkeys(["body_q", "joined_relu_q"], "has 16 bits and is rounded in float")


@pytest.mark.ci
@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_a_network_of_16_bits_computes_the_same_in_float(dtype):
    pytest.importorskip("tvm")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = Written(activation=dtype, domain="com.microsoft", bias=None).network()
    taken = eq.import_quantized(model)
    session, run = onnxruntime.InferenceSession(model.SerializeToString()), eq.Executor(taken.build("llvm"))
    assert taken.coverage == 0.0
    for seed in range(5):
        x = np.random.default_rng(seed).standard_normal((1, 3, 6, 6)).astype(np.float32)
        np.testing.assert_allclose(run({"x": x})[0], session.run(None, {"x": x})[0], atol=4 * 6 / 65535)


def test_ppq_s_graphs():
    """Weights that the model itself quantizes; a layer reads the float tensor that others read rounded."""
    whole = compared(Written(bias=None, in_graph=True).network())
    assert whole.coverage == 100.0 and not whole.plan.floats
    partly = compared(Written(bias=None, in_graph=True).network(raw=True))
    layers = {name: why for name, why in partly.plan.floats.items() if partly.graph[name].macs}
    assert list(layers.values()) == ["the model does not quantize its input"]
    assert {partly.graph[name].op for name in partly.plan.floats} == {"conv2d", "clip"}


@pytest.mark.parametrize("zero", [np.uint8(129), np.int8(-7)])
@pytest.mark.parametrize("way", ["half_pixel", "asymmetric"])
def test_a_linear_resize_of_bytes_is_what_onnx_runtime_makes_of_it(zero, way):
    """Story: it was taken over as what moves numbers, so its fractions were kept, and what read it stayed float
    ("the model does not quantize its input") or was wrong by them. ONNX Runtime cuts them off."""
    runtime = pytest.importorskip("onnxruntime")
    weight = np.random.default_rng(1).integers(-90, 91, (5, 3, 1, 1)).astype(np.int8)
    constants = {
        "s": np.float32(0.031),
        "z": zero,
        "r": np.float32([1, 1, 2, 4]),
        "w": weight,
        "ws": np.float32(0.01),
    }
    resize = dict(mode="linear", coordinate_transformation_mode=way)
    nodes = [
        ("QuantizeLinear", ["x", "s", "z"], ["q"], "round", {}), ("Resize", ["q", "", "r"], ["u"], "up", resize),
        ("DequantizeLinear", ["u", "s", "z"], ["d"], "real", {}),
        ("DequantizeLinear", ["w", "ws"], ["v"], "weight", {}), ("Conv", ["d", "v"], ["c"], "conv", {}),
        ("QuantizeLinear", ["c", "s", "z"], ["p"], "round2", {}), ("DequantizeLinear", ["p", "s", "z"], ["y"], "out", {}),
    ]  # fmt: skip
    model = networks.onnx_model(
        nodes, {"x": [1, 3, 6, 5]}, {"y": list("abcd"), "d": list("efgh")}, constants
    )
    taken = eq.import_quantized(model)
    assert "conv" in taken.plan.integer
    why = (
        "computes with integers, whose fractions are cut off as ONNX Runtime does, and is rounded in float"
    )
    assert taken.plan.floats["up (Resize)"] == why
    x = np.random.default_rng(0).uniform(-4, 4, (1, 3, 6, 5)).astype(np.float32)
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    _, want = runtime.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})
    made = list(run_integer(taken.graph, taken.table, x).values())
    np.testing.assert_array_equal(made[1], want)


def test_a_nearest_resize_of_bytes_moves_them():
    constants = {"s": np.float32(0.031), "z": np.uint8(129), "r": np.float32([1, 1, 2, 4])}
    nodes = [
        ("QuantizeLinear", ["x", "s", "z"], ["q"], "round", {}), ("Resize", ["q", "", "r"], ["u"], "up", {}),
        ("DequantizeLinear", ["u", "s", "z"], ["y"], "real", {}),
    ]  # fmt: skip
    model = networks.onnx_model(nodes, {"x": [1, 3, 6, 5]}, {"y": list("abcd")}, constants)
    assert not normalize(model).rounded
