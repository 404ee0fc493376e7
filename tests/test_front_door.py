"""Models as users have them come in: read by us, compared at the door, cut where they are asked to be. No TVM."""

import networks
import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import tvm_easyquant as eq
from tvm_easyquant import onnx_backend
from tvm_easyquant.errors import GraphError, LoadError
from tvm_easyquant.readers import meaning, onnx_float
from tvm_easyquant.readers.meaning import rules
from tvm_easyquant.readers.self_check import SelfCheck, same

RNG = np.random.default_rng(0)


def pictures(count=4, shape=(1, 3, 8, 8)):
    return [RNG.standard_normal(shape).astype(np.float32) for _ in range(count)]


def two_heads():
    """A convolution, whose map goes to a second one and to a Softmax behind it."""
    weights = {"w1": RNG.standard_normal((4, 3, 3, 3)) * 0.3, "w2": RNG.standard_normal((4, 4, 1, 1)) * 0.5}
    nodes = [
        ("Conv", ["x", "w1"], ["a"], "stem", dict(kernel_shape=[3, 3], pads=[1] * 4)),
        ("Relu", ["a"], ["b"], "relu", {}),
        ("Conv", ["b", "w2"], ["map"], "head", dict(kernel_shape=[1, 1])),
        ("Softmax", ["map"], ["y"], "soft", dict(axis=1)),
    ]
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    return networks.onnx_model(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 4, 8, 8]}, weights)


def runtime(model, feed):
    return pytest.importorskip("onnxruntime").InferenceSession(model.SerializeToString()).run(None, feed)


def test_a_loaded_model_runs_in_its_own_layout_and_types():
    model, x = two_heads(), pictures(1)[0]
    graph = eq.load(model)
    (found,) = graph.run({"x": x}).values()
    assert list(graph.run({"x": x})) == ["y"] and found.dtype == np.float32
    assert same(found, runtime(model, {"x": x})[0])
    assert eq.load_onnx is eq.load


def test_outputs_cuts_the_network_and_the_table_remembers_where(tmp_path):
    model, images = two_heads(), pictures()
    whole, head = eq.load(model), eq.load(model, outputs=["head"])
    assert head.output_names == ("map",) and "soft" not in head.nodes and "soft" in whole.nodes
    assert eq.load(model, outputs=["map", "b"]).output_names == ("map", "b")
    onnx.save(model, tmp_path / "net.onnx")
    q = eq.quantize(tmp_path / "net.onnx", images, method="minmax", outputs=["map"])
    q.table.save(tmp_path / "t.json")
    table = eq.ScaleTable.load(tmp_path / "t.json")
    assert table.outputs == ["map"] and table.check(head) and q.coverage == 100
    assert eq.quantize(head, images, method="minmax").table.outputs == ["head"]  # a graph knows of its cut
    with pytest.raises(LoadError, match="no tensor and no node 'maps'; did you mean map"):
        eq.load(model, outputs=["maps"])


def test_what_was_read_is_compared_at_the_door(monkeypatch):
    """TVM's importer dropped a Clip with one bound and nobody noticed; a wrong rule of ours is noticed."""
    pytest.importorskip("onnxruntime")
    model, images = two_heads(), pictures()
    assert eq.quantize(model, images, method="minmax").warnings == ()
    monkeypatch.setitem(rules.RULES, "Softmax", lambda call: call.x[0])
    with pytest.raises(
        LoadError, match=r"node soft \(Softmax\) computes otherwise than ONNX Runtime: its output y is"
    ):
        eq.quantize(model, images, method="minmax")
    assert eq.quantize(model, images, method="minmax", check=False).table


def test_a_wrong_reading_is_found_where_every_operator_alone_is_right(monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(
        onnx_float.RULES, "Relu", lambda walk, site: walk.builder.alias(*site.outputs, *site.inputs)
    )
    with pytest.raises(LoadError, match=r"node relu \(Relu\) computes otherwise"):
        eq.quantize(two_heads(), pictures(), method="minmax")


def test_without_onnxruntime_the_reference_judges_what_is_small(monkeypatch):
    from tvm_easyquant.readers import self_check

    model, images = two_heads(), pictures()
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    assert eq.quantize(model, images, method="minmax").warnings == ()
    monkeypatch.setattr(self_check, "REFERENCE_MACS", 10)
    (told,) = eq.quantize(model, images, method="minmax").warnings
    assert told.startswith("what was read was not compared with the model: onnx.reference would take long")


def test_the_reference_is_not_believed_where_it_is_wrong(monkeypatch):
    """It takes every batch normalization before opset 14 for one in training: the demo's network was refused
    where there is no ONNX Runtime."""
    from tvm_easyquant import demo

    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    images = demo.images()["calibration_images"][:2]
    assert eq.quantize(demo.network_path(), images, method="minmax").warnings == ()
    monkeypatch.setitem(
        onnx_float.RULES, "Relu", lambda walk, site: walk.builder.alias(*site.outputs, *site.inputs)
    )
    with pytest.raises(LoadError, match=r"\(Relu\) computes otherwise than onnx.reference"):
        eq.quantize(demo.network_path(), images, method="minmax")


def test_what_onnxruntime_dies_of_is_not_given_to_it():
    """Four empty outputs behind a BatchNormalization of opset 9 took the process down, ours with it."""
    pytest.importorskip("onnxruntime")
    weights = {name: np.float32([0.5, 1, 2]) for name in ("scale", "shift", "mean", "variance")}
    inputs = ["x", *weights]
    model = networks.onnx_model(
        [("BatchNormalization", inputs, ["y", "", "", "", ""], "norm", {})],
        {"x": [1, 3, 8, 8]}, {"y": [1, 3, 8, 8]}, weights, opset=9,
    )  # fmt: skip
    graph, x = eq.load(model), pictures(1)[0]
    assert SelfCheck(model, graph)({"x": x}) is None


def test_a_rounding_before_a_jump_is_no_difference():
    """Floor of 0.99999997 and of 1.0: both sides are right."""
    weights = {"w": RNG.standard_normal((4, 3, 3, 3)).astype(np.float32), "k": np.float32(1e5)}
    nodes = [
        ("Conv", ["x", "w"], ["a"], "conv", dict(kernel_shape=[3, 3])),
        ("Mul", ["a", "k"], ["b"], "large", {}),
        ("Floor", ["b"], ["c"], "floor", {}),
        ("Sub", ["b", "c"], ["y"], "rest", {}),
    ]
    pytest.importorskip("onnxruntime")
    model = networks.onnx_model(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 4, 6, 6]}, weights)
    graph, sample = eq.load(model), {"x": pictures(1)[0]}
    assert not same(graph.run(sample)["y"], runtime(model, sample)[0])
    assert SelfCheck(model, graph)(sample) is None


@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_other_floats_are_computed_in_float32_and_it_is_said(kind):
    proto = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    weight = (RNG.standard_normal((4, 3, 3, 3)) * 0.3).astype(kind)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["a"], "conv", kernel_shape=[3, 3]),
         helper.make_node("Relu", ["a"], ["y"], "relu")], "net",
        [helper.make_tensor_value_info("x", proto, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", proto, [1, 4, 6, 6])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    images = [x.astype(kind) for x in pictures()]
    found = eq.load(model).run({"x": images[0]})["y"]
    wanted = ReferenceEvaluator(model).run(None, {"x": images[0]})[0]
    assert found.dtype == kind and same(found, wanted, 2e-3)
    q = eq.quantize(model, images, method="minmax")
    assert (
        q.warnings == (f"the model's {kind} numbers are computed in float32",) and "conv" in q.plan.integer
    )


def test_a_branch_on_a_constant_is_taken_and_one_on_a_tensor_refused():
    def branch(op, name):
        node = helper.make_node(op, ["a"], [name], f"{name}_node")
        return helper.make_graph(
            [node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)]
        )

    def model(condition):
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["a"], "conv", kernel_shape=[1, 1]),
            helper.make_node("ReduceMax", ["x"], ["top"], "top", keepdims=0),
            helper.make_node("Cast", ["top"], ["computed"], "cast", to=TensorProto.BOOL),
            helper.make_node("If", [condition], ["y"], "choice", then_branch=branch("Relu", "t"),
                             else_branch=branch("Neg", "e")),
        ]  # fmt: skip
        weight = numpy_helper.from_array(RNG.standard_normal((2, 3, 1, 1)).astype(np.float32), "w")
        yes = numpy_helper.from_array(np.asarray(False), "constant")
        graph = helper.make_graph(
            nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 4, 4])], [weight, yes],
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)

    x = pictures(1, (1, 3, 4, 4))[0]
    taken = model("constant")
    assert same(eq.load(taken).run({"x": x})["y"], runtime(taken, {"x": x})[0])
    with pytest.raises(LoadError, match=r"node choice \(If\).*--outputs"):
        eq.load(model("computed"))
    assert eq.load(model("computed"), outputs=["conv"]).output_names == ("a",)


def test_branches_may_use_the_same_names():
    """Two Ifs whose branches call their tensors alike made the reader walk in a circle for ever; a branch's
    constant that hides one outside took the place of that."""

    def choice(condition, read, output, factor):
        nodes = [helper.make_node("Constant", [], ["k"], value_float=factor)]
        nodes += [helper.make_node("Mul", [read, "k"], ["m"]), helper.make_node("Conv", ["m", "v"], ["t"])]
        inside = numpy_helper.from_array(RNG.standard_normal((4, 4, 1, 1)).astype(np.float32), "v")
        out = [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)]
        branches = [helper.make_graph(nodes, "branch", [], out, [inside]) for _ in range(2)]
        return helper.make_node(
            "If", [condition], [output], output, then_branch=branches[0], else_branch=branches[1]
        )

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        choice("yes", "a", "b", 2.0),
        choice("no", "b", "c", 5.0),
        helper.make_node("Conv", ["c", "v"], ["y"], "last"),
    ]
    constants = {"yes": np.asarray(True), "no": np.asarray(False)}
    for name, shape in (("w", (4, 3, 1, 1)), ("v", (4, 4, 1, 1))):
        constants[name] = RNG.standard_normal(shape).astype(np.float32)
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "b")],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    x = pictures(1, (1, 3, 4, 4))[0]
    found = eq.load(model).run({"x": x})
    for name, array in zip(("y", "b"), runtime(model, {"x": x}), strict=True):
        assert same(found[name], array)
    with pytest.MonkeyPatch.context() as patch:  # the check names a node behind a branch, too
        patch.setitem(
            onnx_float.RULES, "Mul", lambda walk, site: walk.builder.alias(*site.outputs, site.inputs[0])
        )
        with pytest.raises(LoadError, match=r"\(Mul\) computes otherwise than ONNX Runtime"):
            eq.quantize(model, [x], method="minmax")


#: what fits nothing: operator, inputs, attributes, constants, the message
UNFIT = {
    "stride of 0": ("Conv", dict(strides=[0, 1]), [(4, 3, 3, 3)], r"strides is \[0, 1\], not 1 or more"),
    "dilation of 0": ("Conv", dict(dilations=[0, 1]), [(4, 3, 3, 3)], "dilations"),
    "no groups": ("Conv", dict(group=0), [(4, 3, 3, 3)], "group is 0, not 1 or more"),
    "an unknown word": ("Conv", dict(auto_pad="SAMEISH"), [(4, 3, 3, 3)], "'SAMEISH', none of NOTSET"),
    "an unknown mode": ("Resize", dict(mode="foo"), [None, [1.0, 1.0, 2.0, 2.0]], "'foo', none of nearest"),
    "another kernel": ("Conv", dict(kernel_shape=[5, 5]), [(4, 3, 3, 3)], r"its kernel is \(5, 5\)"),
    "other channels": ("Conv", {}, [(4, 5, 3, 3)], "1 groups of its weights take 5 channels"),
    "odd groups": ("Conv", dict(group=3), [(4, 1, 3, 3)], "3 groups"),
    "a long bias": ("Conv", {}, [(4, 3, 3, 3), (5,)], r"its bias has the shape \(5,\)"),
    "a large kernel": ("Conv", {}, [(4, 3, 9, 9)], r"no window of \(9, 9\) has a place on \(8, 8\)"),
    "negative padding": ("Conv", dict(pads=[-1] * 4), [(4, 3, 3, 3)], "negative (padding|values)"),
    "transposed channels": ("ConvTranspose", {}, [(4, 3, 3, 3)], "take 4 channels"),
    "transposed to nothing": ("ConvTranspose", dict(pads=[9] * 4), [(3, 4, 3, 3)], "has a place"),
    "a pool without a stride": ("MaxPool", dict(kernel_shape=[2, 2], strides=[0, 0]), [], "strides"),
    "a window of 0": ("MaxPool", dict(kernel_shape=[0, 1]), [], "kernel_shape"),
    "a large window": ("AveragePool", dict(kernel_shape=[9, 9]), [], "has a place"),
    "an empty shape": ("Pad", {}, [np.asarray([0, 0, -9, 0, 0, 0, 0, 0])], "empty shape"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_node_that_fits_nothing_is_refused_by_its_name(name):
    """It was read, and ran into numpy's traceback later; a stride of 0 ended the process in onnx's inference."""
    op, attributes, arrays, message = UNFIT[name]
    constants = {}
    for i, array in enumerate(arrays):
        if isinstance(array, tuple):
            array = np.zeros(array, np.float32)
        if array is not None:
            constants[f"c{i}"] = np.asarray(array) if isinstance(array, np.ndarray) else np.float32(array)
    read = [f"c{i}" if f"c{i}" in constants else "" for i in range(len(arrays))]
    model = networks.onnx_model(
        [(op, ["x", *read], ["y"], "bad", attributes)], {"x": [1, 3, 8, 8]}, {"y": [1, 4, 8, 8]}, constants
    )
    with pytest.raises(LoadError, match=rf"node bad \({op}\).*{message}"):
        eq.load(model)


@pytest.mark.parametrize(("matrix", "added"), [((5, 4), (4,)), ((3, 4), (3,)), ((3, 4), (2, 4))])
def test_matrices_that_do_not_fit_are_refused_by_name(matrix, added):
    weights = {"w": np.zeros(matrix, np.float32), "b": np.zeros(added, np.float32)}
    model = networks.onnx_model(
        [("Gemm", ["x", "w", "b"], ["y"], "fc", {})], {"x": [1, 3]}, {"y": [1, 4]}, weights
    )
    with pytest.raises(
        LoadError, match=r"node fc \(Gemm\) (multiplies .* do not fit|is not valid: .*ension)"
    ):
        eq.load(model)


def test_what_cannot_be_computed_is_named_when_it_runs():
    """An index outside, and what onnx.reference does not do, ended in a traceback of numpy's, or of its own."""
    nodes = [("Gather", ["x", "i"], ["y"], "pick", dict(axis=1))]
    model = networks.onnx_model(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 1, 8, 8]}, {"i": np.asarray([7])})
    with pytest.raises(GraphError, match=r"node pick \(Gather\) cannot be computed .*index 7.*--outputs"):
        eq.load(model).run({"x": pictures(1)[0]})


def test_a_function_of_another_opset_is_converted():
    """It was left where it was, and refused as an operator of a domain that nobody knows."""
    body = [helper.make_node("ReduceMean", ["X"], ["Y"], axes=[2, 3], keepdims=0)]
    mean = helper.make_function("own", "Mean", ["X"], ["Y"], body, [helper.make_opsetid("", 13)])
    graph = helper.make_graph(
        [helper.make_node("Mean", ["x"], ["y"], "mean", domain="own")], "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[mean])
    x = pictures(1)[0]
    assert same(eq.load(model).run({"x": x})["y"], x.mean((2, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(batch="1"), "batch is '1'"), (dict(batch=1.5), "batch is 1.5"),
        (dict(input_shapes=[1, 3, 8, 8]), "input_shapes is a list"),
        (dict(input_shapes={"x": [1.5, 3, 8, 8]}), r"input_shapes gives x \[1.5"),
        (dict(input_shapes={"x": "a"}), "input_shapes gives x 'a'"),
        (dict(outputs=["x"]), "x is an input or constant, no output; its outputs are y"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named(options, message):
    """It was the model that could not be read, and 1.5 was taken for 1."""
    with pytest.raises(LoadError, match=message):
        eq.load(two_heads(), **options)


def test_a_batch_that_the_model_does_not_have_is_refused():
    """``--batch 4`` on a model of one sample was ignored without a word: the network took one at a time."""
    fixed, opened = networks.small_onnx(), networks.small_onnx(batch="n")
    for batch, shape in ((None, 1), (1, 1), (4, 4)):
        assert eq.load(opened, batch=batch)["x"].shape[0] == shape
    for batch in (None, 1):
        assert eq.load(fixed, batch=batch)["x"].shape[0] == 1
    cure = r"input x has the shape \(1, 3, 8, 8\), the batch is to be 4; .*--input-shapes .*x:\[4,3,8,8\]"
    graph = eq.load(fixed)
    for model in (fixed, graph):
        with pytest.raises(LoadError, match=cure):
            eq.quantize(model, pictures(4), method="minmax", batch=4)
    with pytest.raises(LoadError, match=cure):
        eq.load(fixed, batch=4)
    whole = {"x": (4, 3, 8, 8)}
    assert eq.load(fixed, whole, batch=4)["x"].shape == eq.load(opened, batch=4)["x"].shape
    with pytest.raises(LoadError, match=r"has the shape \(4, 3, 8, 8\), the batch is to be 2"):
        eq.load(fixed, whole, batch=2)
    samples = np.concatenate(pictures(4))
    found = eq.load(fixed, whole).run({"x": samples})["y"]
    np.testing.assert_allclose(
        found, [graph.run({"x": x[None]})["y"][0] for x in samples], rtol=1e-5, atol=1e-6
    )


def test_what_is_given_in_another_form():
    model, x = two_heads(), pictures(1)[0]
    assert eq.load(model, outputs="map").output_names == ("map",)
    q = eq.quantize(model, [x], method="minmax", outputs="map")
    assert q.table.outputs == ["map"]
    graph = eq.load(model)
    np.testing.assert_array_equal(graph.run(x)["y"], graph.run({"x": x})["y"])  # it has one input
    with pytest.raises(GraphError, match="is a list; give {input name: array}"):
        graph.run([x])
    with pytest.raises(GraphError, match=r"has 1 inputs \(x\), 2 were given"):
        onnx_backend.prepare(model).run([x, x])
    model.graph.output.append(model.graph.output[0])
    with pytest.raises(LoadError, match="two outputs are named y"):
        eq.load(model)


def test_a_division_by_nothing_is_infinite_and_no_weights():
    """Folded into the layer before it made its weights infinite, and their sums no numbers."""
    weights = {"w": RNG.standard_normal((4, 3, 1, 1)).astype(np.float32), "zero": np.float32(0)}
    nodes = [("Conv", ["x", "w"], ["a"], "conv", {}), ("Div", ["a", "zero"], ["y"], "div", {})]
    model = networks.onnx_model(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 4, 8, 8]}, weights)
    x = pictures(1)[0]
    assert same(eq.load(model).run({"x": x})["y"], runtime(model, {"x": x})[0])


def test_the_backend_runs_float_models_and_binds_what_must_be_constant():
    """ONNX's own suite feeds axes, weights and shapes as inputs."""
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], "sum", keepdims=0)
    graph = helper.make_graph(
        [node], "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4]),
         helper.make_tensor_value_info("axes", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None])],
    )  # fmt: skip
    rep = onnx_backend.prepare(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    )
    x = RNG.standard_normal((2, 3, 4)).astype(np.float32)
    for axis in (1, 2, -1):
        (found,) = rep.run([x, np.array([axis])])
        np.testing.assert_allclose(found, x.sum(axis), rtol=1e-6)


def test_names_are_plain_strings():
    graph = eq.load(two_heads())
    assert {type(name) for node in graph for name in (node.name, *node.inputs, *node.source)} == {str}
    assert meaning  # the room of the operators
