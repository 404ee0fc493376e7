"""ONNX files that are damaged or wrong, cut and inlined: one line each, before any importer sees them. No TVM."""

import os

import networks
import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper

from tvm_easyquant.errors import LoadError
from tvm_easyquant.readers.onnx_file import (
    check,
    cut,
    fixed_shapes,
    inline,
    read_onnx,
    readable,
    topological,
)


def small():
    """x -> Conv c -> Relu r -> Flatten f -> Gemm g (weights v) -> y."""
    rng = np.random.default_rng(0)
    return networks.onnx_model(
        [
            ("Conv", ["x", "w"], ["c"], "conv", dict(kernel_shape=[3, 3])),
            ("Relu", ["c"], ["r"], "relu", {}),
            ("Flatten", ["r"], ["f"], "flat", {}),
            ("Gemm", ["f", "v"], ["y"], "gemm", {}),
        ],
        {"x": [1, 2, 6, 6]},
        {"y": [1, 3]},
        {
            "w": rng.standard_normal((4, 2, 3, 3)).astype(np.float32),
            "v": rng.standard_normal((64, 3)).astype(np.float32),
        },
    )


def copied():
    model = onnx.ModelProto()
    model.CopyFrom(small())
    return model


def refusal(model, **options):
    with pytest.raises(LoadError) as caught:
        check(model, "net.onnx", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_good_model_passes():
    check(small(), "net.onnx")
    assert [node.name for node in topological(small())] == ["conv", "relu", "flat", "gemm"]


def _input_type(model, make):
    model.graph.input[0].CopyFrom(make)


def element(model, kind):
    model.graph.input[0].type.tensor_type.elem_type = kind


SEQUENCE = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [1])
OPTIONAL = helper.make_value_info(
    "x", helper.make_optional_type_proto(helper.make_tensor_type_proto(1, [1]))
)


def rewire(model, place, name):
    model.graph.node[0].input[place] = name


def second_maker(model):
    model.graph.node[1].output[0] = "c"


def second_constant(model):
    model.graph.initializer.append(model.graph.initializer[0])


def loop(model):
    model.graph.node.insert(0, helper.make_node("Neg", ["r"], ["behind"], "behind"))
    model.graph.node[1].input[0] = "r"


def sparse(model):
    values = numpy_helper.from_array(np.ones(1, np.float32), "few")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "few_at")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))


def foreign(model):
    model.graph.node[1].domain = "com.example"


WRONG = {
    "circle": (loop, "node relu (Relu) waits for its own output; export it again"),
    "two makers": (second_maker, "node relu (Relu) makes c, which node conv (Conv) is already; rename it"),
    "over an input": (lambda m: m.graph.node[1].output.__setitem__(0, "x"), "node relu (Relu) makes x, which an input or"),
    "two constants": (second_constant, "two constants are named w; rename one"),
    "two inputs": (lambda m: m.graph.input.append(m.graph.input[0]), "two inputs are named x"),
    "a tensor nobody makes": (lambda m: rewire(m, 1, "no\nwhere"), "node conv (Conv) reads no?where, which no node makes; cut"),
    "an output nobody makes": (lambda m: setattr(m.graph.output[0], "name", "z"), "no node makes the output z; cut the network"),
    "no output": (lambda m: m.graph.ClearField("output"), "net.onnx has no output"),
    "sequence": (lambda m: _input_type(m, SEQUENCE), "input x is no tensor but of the kind sequence; cut"),
    "optional": (lambda m: _input_type(m, OPTIONAL), "input x is no tensor but of the kind optional; cut"),
    "strings": (lambda m: element(m, TensorProto.STRING), "input x is STRING; a network takes and returns numbers"),
    "complex": (lambda m: element(m, TensorProto.COMPLEX64), "input x is COMPLEX64"),
    "unknown type": (lambda m: element(m, 99), "input x is 99"),
    "no type": (lambda m: element(m, 0), "input x has no element type"),
    "no opset": (lambda m: m.ClearField("opset_import"), "does not say its opset"),
    "sparse": (sparse, "tensor few is sparse; export it as a dense initializer"),
    "short weights": (lambda m: setattr(m.graph.initializer[0], "raw_data", b"123"), "tensor w has the shape (4, 2, 3, 3) and another number"),
    "huge weights": (lambda m: m.graph.initializer[0].dims.__setitem__(0, 2**62), "tensor w has the shape (46116860"),
    "negative weights": (lambda m: m.graph.initializer[0].dims.__setitem__(0, -4), r"tensor w has the shape (-4, 2, 3, 3); the file is damaged"),
    "weights of no type": (lambda m: setattr(m.graph.initializer[0], "data_type", 77), "tensor w has the element type 77"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_graph_is_named_in_a_line(name):
    change, message = WRONG[name]
    model = copied()
    change(model)
    assert message in refusal(model)


def test_a_domain_is_refused_where_its_operators_are_not_known():
    model = copied()
    foreign(model)
    check(model, "net.onnx")
    check(model, "net.onnx", domains=["com.example"])
    assert "node relu (Relu) is of the domain com.example" in refusal(model, domains=[])
    assert "outputs" in refusal(model, domains=["com.microsoft"])


@pytest.mark.parametrize("kind", ["float16", "int4", "bool", "complex64", "float64", "uint64"])
@pytest.mark.parametrize("raw", [True, False])
def test_constants_of_every_type_hold_what_they_say(kind, raw):
    types = dict(float16=10, int4=22, bool=9, complex64=14, float64=11, uint64=13)
    values = np.array([1, 0, 1, 1, 0])
    if raw:
        stored = (np.array([1, 0, 1], np.uint8) if kind == "int4" else values.astype(kind)).tobytes()
        tensor = helper.make_tensor("k", types[kind], [5], stored, raw=True)
    else:
        tensor = helper.make_tensor("k", types[kind], [5], values)
    model = copied()
    model.graph.initializer.append(tensor)
    check(model, "net.onnx")
    tensor.dims[0] = 9
    model.graph.initializer[-1].CopyFrom(tensor)
    assert "tensor k has the shape (9,)" in refusal(model)


def test_nodes_that_are_not_in_order_are_put_so():
    model = copied()
    model.graph.ClearField("node")
    model.graph.node.extend(reversed(small().graph.node))
    check(model, "net.onnx")
    assert [node.name for node in topological(model)] == ["conv", "relu", "flat", "gemm"]


def test_what_an_inner_graph_reads_outside_is_read():
    """Story: a cycle through the branch of an If was no cycle to who looked at the node's own inputs."""
    model = copied()
    inner = helper.make_graph(
        [helper.make_node("Neg", ["late"], ["n"])], "then", [], [onnx.ValueInfoProto(name="n")]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.insert(
        0, helper.make_node("If", ["yes"], ["z"], "if", then_branch=inner, else_branch=inner)
    )
    model.graph.node.append(helper.make_node("Abs", ["y"], ["late"], "abs"))
    assert topological(model)[-1].name == "if"
    model.graph.node[-1].input[0] = "z"
    assert "node abs (Abs) waits for its own output" in refusal(model)
    assert {v.name for v in cut(model, ["y"]).graph.input} == {"x"}


# -- weights in other files


def external(folder, location):
    model = copied()
    data = model.graph.initializer[0].raw_data
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    return data


def test_weights_beside_the_model_are_read(tmp_path):
    (tmp_path / "sub").mkdir()
    data = external(tmp_path, "sub/w.bin")
    (tmp_path / "sub" / "w.bin").write_bytes(data)
    model, name = read_onnx(tmp_path / "net.onnx")
    check(model, name)
    assert model.graph.initializer[0].raw_data == data
    (tmp_path / "sub" / "w.bin").write_bytes(data[:-4])
    model, name = read_onnx(tmp_path / "net.onnx")
    with pytest.raises(LoadError, match="tensor w has the shape .* another number of values"):
        check(model, name)


@pytest.mark.parametrize("where", ["../w.bin", "absolute", "link.bin", "none.bin", "", "a\0b"])
def test_weights_elsewhere_are_not_read(tmp_path, where):
    home = tmp_path / "home"
    home.mkdir()
    location = str(tmp_path / "w.bin") if where == "absolute" else where
    (tmp_path / "w.bin").write_bytes(external(home, location))
    os.symlink(tmp_path / "w.bin", home / "link.bin")
    with pytest.raises(
        LoadError, match=r"the weights of net.onnx cannot be read: tensor w is in .*net.onnx$"
    ):
        read_onnx(home / "net.onnx")


def test_a_model_in_memory_must_have_its_weights(tmp_path):
    external(tmp_path, "w.bin")
    model = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    assert "tensor w lies in another file; give the path" in refusal(model)


# -- damaged files


def survives(data, path):
    """None, or the one line that says what is wrong."""
    path.write_bytes(data)
    try:
        model, name = read_onnx(path)
        model = inline(model, name)
        check(model, name, domains=[])
        fixed_shapes(model, {}, 1, name)
        topological(model, name)
    except LoadError as error:
        text = str(error)
        assert text.isprintable() and len(text) < 400, text
        return text
    return None


def test_files_with_a_byte_that_is_wrong(tmp_path):
    """Only a LoadError may come of one, in a line; most damage is in the weights, and is not seen."""
    good, rng = small().SerializeToString(), np.random.default_rng(0)
    head = [i for i in range(len(good)) if not 300 < i < len(good) - 400]
    found = []
    for _ in range(400):
        data = bytearray(good)
        data[rng.choice(head)] = rng.integers(256)
        found.append(survives(bytes(data), tmp_path / "net.onnx"))
    assert sum(text is not None for text in found) > 80


def test_files_that_end_too_soon(tmp_path):
    good = small().SerializeToString()
    for length in (0, 1, 20, len(good) // 2, len(good) - 1):
        assert survives(good[:length], tmp_path / "net.onnx")


def test_names_are_shown_in_a_line():
    assert readable("a\x1b[31m\nb") == "a?[31m?b" and readable("x" * 99) == "x" * 77 + "..."


# -- cut and inline


def outputs(model, feed):
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model).run(None, feed)


@pytest.mark.parametrize("asked, name", [("r", "r"), ("relu", "r"), ("conv", "c"), ("f", "f")])
def test_a_network_ends_where_it_is_cut(asked, name):
    model = small()
    ended = cut(model, [asked])
    onnx.checker.check_model(ended, full_check=True)
    feed = {"x": np.random.default_rng(1).standard_normal((1, 2, 6, 6)).astype(np.float32)}
    (value,), whole = ended.graph.output, copied()
    whole.graph.output.append(onnx.ValueInfoProto(name=name))
    np.testing.assert_array_equal(outputs(ended, feed)[0], outputs(whole, feed)[1])
    assert value.name == name and [t.name for t in ended.graph.initializer] == ["w"]
    assert value.type.tensor_type.shape.dim[0].dim_value == 1
    assert model == small()


def test_inputs_that_only_the_rest_needed_are_gone():
    model = networks.onnx_model(
        [
            ("Relu", ["x"], ["a"], "first", {}),
            ("Add", ["a", "other"], ["y"], "second", {}),
        ],
        {"x": [1, 3], "other": [1, 3]},
        {"y": [1, 3]},
        {},
    )
    assert [v.name for v in cut(model, ["a"]).graph.input] == ["x"]
    both = cut(model, ["y", "first", "a"])
    assert [v.name for v in both.graph.output] == ["y", "a"]


def test_a_shape_that_nobody_knows_is_left_open():
    model = copied()
    model.graph.node[2].op_type, model.graph.node[2].domain = "Odd", "com.example"
    (value,) = cut(model, ["f"]).graph.output
    assert value.name == "f" and not value.type.tensor_type.HasField("shape")


def test_a_name_that_is_none_is_told_with_its_neighbours():
    with pytest.raises(LoadError, match="net has no tensor and no node 'rellu'; did you mean relu"):
        cut(small(), ["rellu"], "net")
    with pytest.raises(LoadError, match="no node 'qqqqqqqq'; its outputs are y"):
        cut(small(), ["qqqqqqqq"])
    with pytest.raises(LoadError, match="outputs is empty"):
        cut(small(), [])


def test_functions_of_the_model_are_inlined():
    model = copied()
    body = [helper.make_node("Relu", ["a"], ["b"])]
    opset = helper.make_opsetid("", 13)
    model.functions.append(helper.make_function("local", "Act", ["a"], ["b"], body, [opset]))
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node[1].op_type, model.graph.node[1].domain = "Act", "local"
    check(model, "net.onnx", domains=[])
    flat = inline(model)
    assert [n.op_type for n in flat.graph.node] == [
        "Conv",
        "Relu",
        "Flatten",
        "Gemm",
    ] and not flat.functions
    feed = {"x": np.random.default_rng(1).standard_normal((1, 2, 6, 6)).astype(np.float32)}
    np.testing.assert_array_equal(outputs(flat, feed)[0], outputs(small(), feed)[0])
    assert inline(flat) is flat
