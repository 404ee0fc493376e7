"""Damaged and wrong ONNX files: read, or refused in one line; nothing else gets out, and nothing is written."""

import os
import re
import signal
from contextlib import contextmanager

import numpy as np
import onnx
import pytest
from python_process import tvmc

pytest.importorskip("onnxruntime", minversion="1.22")  # older ones are wrong, or crash, on rare attributes
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from onnx_random import random_model

from tvm_easyquant.errors import EasyQuantError, LoadError

SECONDS = 20  # the longest that reading a file of a few KiB may take
MEMORY = 2 << 30  # what it may take beside what the process has: a dimension may say 2**60
F = np.float32


@pytest.fixture
def load():
    return pytest.importorskip("tvm_easyquant.readers.onnx_float").load


@contextmanager
def limits():
    """No longer than SECONDS; where the system can, no more memory than MEMORY."""

    def late(*_):
        raise TimeoutError(f"no answer within {SECONDS} s")

    if not hasattr(signal, "SIGALRM"):  # not on Windows
        yield
        return
    import resource

    before = signal.signal(signal.SIGALRM, late)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refusal(load, model, **options):
    """The message of the LoadError; None if the model was read. Anything else is a failure."""
    with limits():
        try:
            load(model, **options)
        except LoadError as error:
            return str(error)
    return None


def one_line(text):
    return text.strip() == text != "" and text.isprintable() and len(text) <= 300


# -- files -------------------------------------------------------------------------------------------------------
def image_net():
    """conv, batch norm, pool, residual join, dense: what is quantized."""
    rng = np.random.default_rng(5)

    def weight(name, *shape):
        return numpy_helper.from_array(rng.standard_normal(shape).astype(F), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1] * 4),
        helper.make_node("BatchNormalization", ["c1", "s", "b", "m", "v"], ["n1"], "norm1"),
        helper.make_node("Relu", ["n1"], ["r1"], "relu1"),
        helper.make_node("MaxPool", ["r1"], ["p1"], "pool1", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2"], ["c2"], "conv2", auto_pad="SAME_UPPER", kernel_shape=[3, 3]),
        helper.make_node("Add", ["c2", "p1"], ["a"], "join"),
        helper.make_node("GlobalAveragePool", ["a"], ["g"], "gap"),
        helper.make_node("Flatten", ["g"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], "fc", transB=1),
    ]
    weights = [
        weight("w1", 4, 3, 3, 3),
        weight("b1", 4),
        weight("w2", 4, 4, 3, 3),
        weight("w3", 5, 4),
        weight("b3", 5),
    ]
    weights += [weight(name, 4) for name in "sbm"] + [numpy_helper.from_array(np.ones(4, F), "v")]
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", 1, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", 1, [1, 5])], weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def bases():
    return [
        image_net(),
        *(random_model(1000 + i, nodes=10, opset=opset)[0] for i, opset in enumerate((8, 11, 13, 21))),
    ]


HUGE = (2**60, 2**31, -1, 0, -(2**63), 2**63 - 1, 10**6)


def bent(model, rng):
    """A file that parses, with one field of another value: what flipped bits do when they hit a number or a name."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph, huge = model.graph, int(HUGE[rng.integers(len(HUGE))])
    node = graph.node[int(rng.integers(len(graph.node)))]
    kind = int(rng.integers(9))
    if kind == 0 and graph.initializer:
        tensor = graph.initializer[int(rng.integers(len(graph.initializer)))]
        tensor.dims[:] = [*tensor.dims[:-1], huge]
    elif kind == 1:
        shape = graph.input[0].type.tensor_type.shape
        shape.dim[int(rng.integers(len(shape.dim)))].dim_value = huge
    elif kind == 2 and graph.initializer:
        graph.initializer[int(rng.integers(len(graph.initializer)))].data_type = int(rng.integers(0, 30))
    elif kind == 3 and node.attribute:
        a = node.attribute[int(rng.integers(len(node.attribute)))]
        a.i = huge
        a.ints[:] = [huge] * len(a.ints)
        a.f = float("nan")
    elif kind == 4 and node.input:
        node.input[int(rng.integers(len(node.input)))] = "nowhere\x1b[31m\n"
    elif kind == 5:
        node.op_type = "Ünknown\x00"
    elif kind == 6:
        model.opset_import[0].version = huge
    elif kind == 7 and node.attribute:
        node.attribute[0].type = int(rng.integers(0, 15))
    else:
        graph.input[0].type.tensor_type.elem_type = int(rng.integers(0, 30))
    return model.SerializeToString()


def damaged(seed):
    """A file of one of five models with flipped bytes, cut off, longer, with a hole, or bent."""
    rng = np.random.default_rng([15, seed])
    model = BASES[seed % len(BASES)]
    data = bytearray(model.SerializeToString())
    kind = int(rng.integers(8))
    if kind < 4:  # as bytes of names and structure are few beside weights: half of the flips near an end
        places = rng.integers(0, len(data), 1 + int(rng.integers(8)))
        if kind < 2:
            near = places % min(len(data), 400)
            places = near if kind else len(data) - 1 - near
        for at in places:
            data[int(at)] ^= 1 << int(rng.integers(8)) if rng.random() < 0.5 else int(rng.integers(1, 256))
    elif kind == 4:
        del data[int(rng.integers(len(data))) :]
    elif kind == 5:
        data += rng.bytes(1 + int(rng.integers(40)))
    elif kind == 6:
        at = int(rng.integers(len(data)))
        data[at : at + 16] = bytes(min(16, len(data) - at))
    else:
        return bent(model, rng)
    return bytes(data)


BASES = bases()


def check_damaged(load, seeds, tmp_path):
    wrong = []
    for seed in seeds:
        path = tmp_path / f"{seed}.onnx"
        path.write_bytes(damaged(seed))
        try:
            message = refusal(load, path)
        except Exception as error:  # noqa: BLE001 - whatever gets out is reported with its seed
            wrong.append(f"{seed}: {type(error).__name__}: {str(error)[:200]!r}")
            continue
        if message is not None and not one_line(message):
            wrong.append(f"{seed}: {message!r}")
    assert wrong == []


@pytest.mark.parametrize("block", range(4))
def test_damaged_files_are_read_or_refused_in_a_line(load, tmp_path, block):
    check_damaged(load, range(25 * block, 25 * block + 25), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(1, 5))
def test_many_damaged_files_are_read_or_refused_in_a_line(load, tmp_path, block):
    check_damaged(load, range(100 * block, 100 * block + 100), tmp_path)


def test_files_as_they_were_are_read(load, tmp_path):
    for i, model in enumerate(BASES):
        onnx.save(model, tmp_path / f"{i}.onnx")
        assert refusal(load, tmp_path / f"{i}.onnx") is None


def quantize(folder, model, timeout=120):
    words = ("quantize", model, "--calibration", "images.npz", "-o", "out.json")
    return tvmc(*words, cwd=folder, timeout=timeout)


@pytest.mark.ci
@pytest.mark.parametrize("seed", range(0, 100, 5))  # all of the network of images
def test_the_command_line_refuses_a_damaged_file_in_a_line(load, tmp_path, seed):
    (tmp_path / "net.onnx").write_bytes(damaged(seed))
    np.savez(tmp_path / "images.npz", x=np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(F))
    result = quantize(tmp_path, "net.onnx")
    said = result.stderr.splitlines()
    assert "Traceback" not in result.stderr and result.returncode in (0, 4)
    if result.returncode:
        assert len(said) == 1 and said[0].startswith("error: ") and one_line(said[0])
        assert sorted(os.listdir(tmp_path)) == ["images.npz", "net.onnx"]


# -- models that are wrong ---------------------------------------------------------------------------------------
def net(
    *nodes, x=(1, 3, 8, 8), opset=13, constants=(), outputs=("y",), element=TensorProto.FLOAT, functions=()
):
    """conv -> ``nodes``, which take c and give y."""
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"], "conv"), *nodes], "g",
        [helper.make_tensor_value_info("x", element, x)],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, None) for y in outputs],
        [numpy_helper.from_array(np.full((4, 3, 1, 1), 0.1, F), "w"), *constants],
    )  # fmt: skip
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, functions=functions
    )


def node(op, *inputs, name="", output="y", **attributes):
    return helper.make_node(
        op,
        inputs or ["c"],
        [output] if isinstance(output, str) else output,
        name or op.lower(),
        **attributes,
    )


RELU = node("Relu", name="act")


def ints(name, *values):
    return numpy_helper.from_array(np.array(values, np.int64), name)


def changed(model, change):
    change(model)
    return model


def branch(name, op):
    return helper.make_graph(
        [helper.make_node(op, ["c"], [name])],
        name,
        [],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
    )


def conditional():
    return net(
        node("ReduceMax", output="top", keepdims=0), node("Cast", "top", output="is", to=TensorProto.BOOL),
        node("If", "is", name="choice", then_branch=branch("t", "Relu"), else_branch=branch("e", "Neg")),
    )  # fmt: skip


def loop():
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Relu", ["v"], ["u"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("v", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("u", TensorProto.FLOAT, None)],
    )  # fmt: skip
    return net(
        node("ReduceMax", output="top", keepdims=0), node("Cast", "top", output="times", to=TensorProto.INT64),
        node("Loop", "times", "", "c", name="repeat", body=body),
    )  # fmt: skip


def sequence_input():
    model = net(RELU)
    info = onnx.ValueInfoProto(name="list")
    info.type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    model.graph.input.append(info)
    model.graph.node.append(node("SequenceLength", "list", output="n", name="length"))
    model.graph.output.append(helper.make_tensor_value_info("n", TensorProto.INT64, []))
    return model


def strings():
    words = helper.make_tensor("words", TensorProto.STRING, [2], [b"a", b"b"])
    return net(RELU, node("Constant", name="text", output="s", value=words), node("Identity", "s", name="words", output="z"),
               outputs=("y", "z"))  # fmt: skip


def computed_weights():
    return changed(net(RELU), lambda m: (
        m.graph.node.insert(0, helper.make_node("Mul", ["w", "k"], ["v"], "scaled")),
        m.graph.input.append(helper.make_tensor_value_info("k", 1, [1])), m.graph.node[1].input.__setitem__(1, "v")))  # fmt: skip


def recursive():
    """A local function that calls itself."""
    call = helper.make_node("Again", ["a"], ["b"], domain="local")
    again = helper.make_function("local", "Again", ["a"], ["b"], [call], [helper.make_opsetid("local", 1)])
    model = net(helper.make_node("Again", ["c"], ["y"], "again", domain="local"), functions=[again])
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


def recursive_in_a_branch():
    """A local function that calls itself in a branch: onnx's inliner dies of it."""
    call = helper.make_node("Again", ["a"], ["d"], domain="local")
    taken = helper.make_graph([call], "then", [], [helper.make_empty_tensor_value_info("d")])
    other = helper.make_graph(
        [helper.make_node("Neg", ["a"], ["e"])], "else", [], [helper.make_empty_tensor_value_info("e")]
    )
    nodes = [
        helper.make_node("Constant", [], ["go"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("If", ["go"], ["b"], then_branch=taken, else_branch=other),
    ]
    opsets = [helper.make_opsetid("local", 1), helper.make_opsetid("", 13)]
    again = helper.make_function("local", "Again", ["a"], ["b"], nodes, opsets)
    model = net(helper.make_node("Again", ["c"], ["y"], "again", domain="local"), functions=[again])
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


def endless():
    """A loop of constants of 2**40 turns."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Neg", ["v"], ["u"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("v", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("u", TensorProto.FLOAT, None)],
    )  # fmt: skip
    return net(node("Loop", "times", "", "w", output="k", name="repeat", body=body), node("Conv", "x", "k"),
               constants=[numpy_helper.from_array(np.array(2**40), "times")])  # fmt: skip


def trained():
    true = numpy_helper.from_array(np.array(True), "true")
    return net(node("Dropout", "c", "", "true", name="drop"), constants=[true])


def open_shape(*dims):
    return net(RELU, x=dims)


#: what is wrong -> (the model, what the line must say: the node or tensor and the trouble)
WRONG = {
    "an opset too old": (lambda: net(RELU, opset=6), r"opset 6"),
    "an opset not known": (lambda: net(RELU, opset=999), r"opset 999"),
    "no opset": (lambda: changed(net(RELU), lambda m: m.ClearField("opset_import")), r"opset"),
    "an unknown domain": (
        lambda: changed(net(helper.make_node("Magic", ["c"], ["y"], "wand", domain="com.acme")),
                        lambda m: m.opset_import.append(helper.make_opsetid("com.acme", 1))),
        r"wand.*com\.acme|com\.acme.*wand",
    ),
    "an operator that ONNX does not have": (lambda: net(node("Konv", name="typo")), r"typo.*Konv|Konv.*typo"),
    "an operator newer than the opset": (lambda: net(node("Mish", name="act")), r"act.*Mish|Mish.*act"),
    "random numbers": (lambda: net(node("RandomUniformLike", name="noise")), r"noise"),
    "a height that is open": (lambda: open_shape(1, 3, "h", 8), r"\bx\b.*(\bh\b|dimension)"),
    "a rank that is open": (
        lambda: changed(net(RELU), lambda m: m.graph.input[0].type.tensor_type.ClearField("shape")), r"\bx\b"),
    "a choice that the data make": (conditional, r"choice"),
    "a loop that the data end": (loop, r"repeat"),
    "a sequence made": (lambda: net(node("SequenceConstruct", output="q", name="list"),
                                    node("ConcatFromSequence", "q", name="join", axis=0)), r"list|join"),
    "a sequence as an input": (sequence_input, r"list|length"),
    "strings": (strings, r"words|text|\bz\b|\bs\b"),
    "a string input": (lambda: net(RELU, element=TensorProto.STRING), r"\bx\b"),
    "a complex input": (lambda: net(RELU, element=TensorProto.COMPLEX64), r"\bx\b"),
    "an output that depends on no input": (
        lambda: net(RELU, node("Neg", "w", name="alone", output="z"), outputs=("y", "z")), r"\bz\b|alone"),
    "a cycle": (lambda: net(node("Add", "c", "b", name="first", output="a"), node("Relu", "a", name="second", output="b"),
                            node("Neg", "b", name="third")), r"first|second|\ba\b|\bb\b"),
    "a tensor made twice": (lambda: net(RELU, node("Neg", name="again")), r"\by\b"),
    "a weight given twice": (
        lambda: changed(net(RELU), lambda m: m.graph.initializer.append(m.graph.initializer[0])), r"\bw\b"),
    "an input given twice": (lambda: changed(net(RELU), lambda m: m.graph.input.append(m.graph.input[0])), r"\bx\b"),
    "a tensor from nowhere": (lambda: net(node("Add", "c", "lost", name="join")), r"lost"),
    "an output from nowhere": (lambda: net(RELU, outputs=("y", "lost")), r"lost"),
    "no node": (lambda: changed(net(RELU), lambda m: m.graph.ClearField("node")), r"\by\b|node"),
    "no output": (lambda: changed(net(RELU), lambda m: m.graph.ClearField("output")), r"output"),
    "no input": (lambda: changed(net(RELU), lambda m: m.graph.ClearField("input")), r"\bx\b|input"),
    "an attribute left out": (lambda: net(node("Concat", "c", "c", name="join")), r"join.*axis|axis.*join"),
    "an attribute of another kind": (
        lambda: net(node("Softmax", name="soft", axis="last")), r"soft.*axis|axis.*soft"),
    "an attribute that does not exist": (lambda: net(node("Relu", name="act", speed=3)), r"act.*speed|speed.*act"),
    "an axis out of range": (lambda: net(node("Concat", "c", "c", name="join", axis=9)), r"join"),
    "an axis of a normalization out of range": (
        lambda: net(node("LpNormalization", name="unit", axis=7)), r"unit.* no axis 7"),
    "an axis out of range of a normalization that is an operator": (
        lambda: net(node("LayerNormalization", "c", "v", name="norm", axis=7), opset=17, constants=[
            numpy_helper.from_array(np.ones(8, F), "v")]), r"norm.* no axis 7"),
    "numbers that fit no axis": (
        lambda: net(node("LayerNormalization", "c", "v", name="norm"), opset=17, constants=[
            numpy_helper.from_array(np.ones(4, F), "v")]), r"norm.*Scale.*\(4,\).* does not fit"),
    "too many inputs": (lambda: net(node("Relu", "c", "c", name="act")), r"act"),
    "too few inputs": (lambda: net(node("Add", "c", name="join")), r"join"),
    "shapes that do not fit": (lambda: net(node("MatMul", "c", "k", name="dense"),
                                           constants=[numpy_helper.from_array(np.ones((5, 2), F), "k")]), r"dense"),
    "a reshape to another size": (lambda: net(node("Reshape", "c", "to", name="shape"), constants=[ints("to", 1, 7)]), r"shape"),
    "a weight with too few bytes": (
        lambda: changed(net(RELU), lambda m: setattr(m.graph.initializer[0], "raw_data", b"abc")), r"\bw\b"),
    "a weight of 2**60": (lambda: changed(net(RELU), lambda m: m.graph.initializer[0].dims.__setitem__(0, 2**60)), r"\bw\b"),
    "a weight of a negative size": (
        lambda: changed(net(RELU), lambda m: m.graph.initializer[0].dims.__setitem__(0, -4)), r"\bw\b"),
    "an input of 2**60": (lambda: open_shape(1, 3, 2**60, 8), r"\bx\b|conv"),
    "a function that calls itself": (recursive, r"[Aa]gain"),
    "a function that calls itself in a branch": (recursive_in_a_branch, r"[Aa]gain"),
    "a loop of 2**40 turns": (endless, r"repeat"),
    "a dropout in training": (trained, r"drop.*random"),
    "an operator that is gone": (lambda: net(node("Upsample", "c", "s", name="twice"), constants=[
        numpy_helper.from_array(np.array([1, 1, 2, 2], F), "s")]), r"twice \(Upsample\).*opset 13"),
    "an attribute given twice": (
        lambda: changed(net(node("LeakyRelu", name="act", alpha=0.1)), lambda m: m.graph.node[1].attribute.append(
            m.graph.node[1].attribute[0])), r"act.*alpha"),
    "a reference to a function's attribute": (
        lambda: changed(net(node("LeakyRelu", name="act")), lambda m: m.graph.node[1].attribute.append(
            AttributeProto(name="alpha", type=AttributeProto.FLOAT, ref_attr_name="slope"))), r"act.*(alpha|slope)|slope"),
}  # fmt: skip

#: a refusal ends in what to do
CURE = re.compile(
    r"(?i)\b(use|using|give|set|name|rename|export|re-export|convert|install|upgrade|inline|fold|cut|simplify|remove|make|"
    r"fix|replace|repair|download|copy|must|needs?|one of|--[a-z-]+|input_shapes|outputs)\b"
)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_model_is_refused_by_name_with_the_cure(load, name):
    make, says = WRONG[name]
    message = refusal(load, make())
    assert message is not None, "it was read"
    assert one_line(message), repr(message)
    assert re.search(says, message), f"does not name {says}: {message}"
    assert CURE.search(message), f"no cure: {message}"


def test_computed_weights_are_read_or_refused_by_name(load):
    message = refusal(load, computed_weights())
    assert message is None or (one_line(message) and re.search(r"conv|scaled|\bv\b", message)), message


def test_an_open_shape_is_read_with_the_option_that_its_refusal_names(load):
    model = open_shape("n", 3, "h", 8)
    assert "input_shapes" in refusal(load, model) or "input-shapes" in refusal(load, model)
    assert refusal(load, model, input_shapes={"x": [2, 3, 8, 8]}) is None
    assert refusal(load, open_shape("n", 3, 8, 8), batch=2) is None
    wrong = refusal(load, net(RELU), input_shapes={"z": [2, 3, 8, 8]})
    assert one_line(wrong) and "'z'" in wrong and "'x'" in wrong


def test_a_number_as_an_input_is_read(load):
    """An input of rank 0 has a shape: an empty one."""
    model = net(node("Mul", "c", "s", name="scaled"))
    model.graph.input.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, []))
    x = np.ones((1, 3, 8, 8), F)
    made = load(model).run({"x": x, "s": np.array(3, F)})["y"]
    np.testing.assert_allclose(made, np.full((1, 4, 8, 8), 0.9, F), rtol=1e-5)


@pytest.mark.parametrize("dims, says", [
    ((1, 3, "rows", 8), r"dimension 2 \(rows\) is open.*x:\[1,3,224,8\]"), ((None, 3, 8, None), r"dimension 3 is open"),
    (("n", "c"), r"dimension 1 \(c\) is open.*x:\[1,1\]"),
])  # fmt: skip
def test_an_open_dimension_is_named_with_its_option(load, dims, says):
    assert re.search(says, refusal(load, open_shape(*dims)))


def external(folder, location, **more):
    """The conv net, its weight in another file."""
    model = net(RELU)
    tensor = model.graph.initializer[0]
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": 0, "length": size, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    (folder / "model").mkdir()
    (folder / "model" / "net.onnx").write_bytes(model.SerializeToString())
    data = np.full(size // 4, 0.1, F).tobytes()
    (folder / "secret.bin").write_bytes(data)
    (folder / "model" / "w.bin").write_bytes(data)
    return folder / "model" / "net.onnx"


def test_weights_beside_the_model_are_read(load, tmp_path):
    assert refusal(load, external(tmp_path, "w.bin")) is None


@pytest.mark.parametrize(
    "location, more",
    [("../secret.bin", {}), ("{}/secret.bin", {}), ("./sub/../../secret.bin", {}), ("link.bin", {}), ("gone.bin", {}),
     ("", {}), (".", {}), ("w.bin", {"length": 2**60}), ("w.bin", {"offset": 10**9}), ("w.bin", {"offset": -8}),
     ("w.bin", {"length": 3}), ("w.bin", {"length": "many"})],
)  # fmt: skip
def test_weights_that_are_not_beside_the_model_are_refused(load, tmp_path, location, more):
    path = external(tmp_path, location.format(tmp_path), **more)
    (path.parent / "link.bin").symlink_to(tmp_path / "secret.bin")
    message = refusal(load, path)
    assert message is not None, "it was read"
    assert one_line(message) and re.search(r"\bw\b|net\.onnx", message), message


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 64, b"hello, I am a text\n" * 9, b"PK\x03\x04" + bytes(60), None], ids=str
)
def test_what_is_no_model_is_refused(load, tmp_path, content):
    path = tmp_path / "net.onnx"
    path.mkdir() if content is None else path.write_bytes(content)
    message = refusal(load, path)
    assert message is not None and one_line(message) and "net.onnx" in message


def test_a_truncated_file_is_refused_at_every_length(load, tmp_path):
    """A cut between two fields of the message parses: what is left must still be refused, or be the whole graph."""
    data, path = image_net().SerializeToString(), tmp_path / "net.onnx"
    for length in range(0, len(data), 23):
        path.write_bytes(data[:length])
        message = refusal(load, path)
        assert message is not None and one_line(message), f"{length} of {len(data)} bytes: {message}"


def test_a_name_with_control_characters_is_told_without_them(load):
    message = refusal(load, net(node("Add", "c", "a\x1b[31m\nb\x07", name="join\r\n")))
    assert message is not None and one_line(message), repr(message)


def test_a_long_name_leaves_the_cure_in_the_line(load):
    message = refusal(load, net(node("Konv", name="typo" * 500)))
    assert one_line(message) and "Konv" in message and CURE.search(message), repr(message)


@pytest.mark.ci
@pytest.mark.parametrize(
    "name", ["an opset too old", "a height that is open", "a cycle", "an unknown domain"]
)
def test_the_command_line_exits_with_4_and_writes_nothing(load, tmp_path, name):
    (tmp_path / "net.onnx").write_bytes(WRONG[name][0]().SerializeToString())
    np.savez(tmp_path / "images.npz", x=np.zeros((2, 3, 8, 8), F))
    result = quantize(tmp_path, "net.onnx")
    assert (
        result.returncode == 4
        and len(result.stderr.splitlines()) == 1
        and re.search(WRONG[name][1], result.stderr)
    )
    assert sorted(os.listdir(tmp_path)) == ["images.npz", "net.onnx"]


def test_every_refusal_is_an_error_of_ours():
    assert issubclass(LoadError, EasyQuantError) and issubclass(LoadError, ValueError)


def test_damage_is_the_same_in_every_run():
    assert damaged(3) == damaged(3) and len({damaged(seed) for seed in range(500)}) > 490
