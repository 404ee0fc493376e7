"""Relax modules of users as a `Graph`: what is read is what TVM itself computes of the module, in float.

Skipped where TVM 0.19 is installed, or none.
"""

import pickle

import numpy as np
import pytest

from tvm_easyquant.errors import TVMMissing

relax = pytest.importorskip("tvm_easyquant.relax.framework", exc_type=TVMMissing).relax
import networks
import tvm
from relax_modules import OP, computed, constants, float_module, module, pictures, unbound, variable

import tvm_easyquant as eq
from tvm_easyquant.errors import LoadError
from tvm_easyquant.host import installed
from tvm_easyquant.readers.onnx_op import OnnxOp
from tvm_easyquant.relax import read
from tvm_easyquant.relax.float_op import RelaxOp
from tvm_easyquant.scales.integer import run_integer


def image(*shape):
    return variable("x", shape or (1, 4, 6, 6))


def integers():
    """Calls that become operators of `network.ops`: name -> (inputs, body, those that there are)."""
    c = constants(1)
    conv = dict(strides=(2, 1), padding=(1, 0, 2, 1), dilation=(1, 2))
    half = relax.const(np.float32(0.5))

    def case(body, *ops, inputs=None):
        return inputs or [image()], body, set(ops)

    return {
        "conv": case(lambda e, x: OP.nn.conv2d(x, c(6, 4, 3, 2), **conv), "conv2d"),
        "grouped": case(lambda e, x: OP.nn.conv2d(x, c(6, 2, 3, 3), groups=2, padding=1), "conv2d"),
        "conv1d": case(lambda e, x: OP.nn.conv1d(x, c(6, 4, 3), strides=2, padding=(1, 2)),
                       "reshape", "conv2d", inputs=[image(1, 4, 9)]),
        "transposed": case(
            lambda e, x: OP.nn.conv2d_transpose(x, c(4, 3, 3, 3), strides=(2, 2), padding=1,
                                                output_padding=(1, 1)),
            "conv2d", "depth_to_space", "slice"),
        "dense": case(lambda e, x: OP.add(e(OP.matmul(x, c(7, 5))), c(5)), "dense", inputs=[image(2, 7)]),
        "rows": case(lambda e, x: OP.matmul(x, c(7, 5)), "reshape", "transpose", "conv2d", inputs=[image(2, 3, 7)]),
        "linear": case(lambda e, x: OP.matmul(x, e(OP.permute_dims(c(5, 7)))), "dense", inputs=[image(2, 7)]),
        "matmul": case(lambda e, x, y: OP.matmul(x, y), "matmul", inputs=[image(), variable("y", (1, 4, 6, 5))]),
        "bias and scale": case(
            lambda e, x: OP.multiply(e(OP.add(e(OP.nn.conv2d(x, c(6, 4, 1, 1))), c(1, 6, 1, 1))), half),
            "conv2d"),
        "norm alone": case(
            lambda e, x: relax.TupleGetItem(e(OP.nn.batch_norm(
                x, c(4), c(4), c(4), c(4, low=0.5), axis=1, training=False)), 0), "conv2d"),
        "norm of rows": case(
            lambda e, x: relax.TupleGetItem(e(OP.nn.batch_norm(
                x, c(4), c(4), c(4), c(4, low=0.5), axis=1, training=False)), 0),
            "reshape", "conv2d", inputs=[image(1, 4, 9)]),
        "dropout": case(lambda e, x: relax.TupleGetItem(e(OP.nn.dropout(e(OP.abs(x)))), 0), "elementwise"),
        "relu": case(lambda e, x: OP.nn.relu(x), "clip"),
        "relu6": case(lambda e, x: OP.nn.relu6(x), "clip"),
        "clip": case(lambda e, x: OP.clip(x, -0.5, 0.75), "clip"),
        "limits": case(lambda e, x: OP.minimum(e(OP.maximum(x, relax.const(np.float32(-1)))), half), "clip"),
        "hard swish": case(
            lambda e, x: OP.multiply(x, e(OP.divide(e(OP.clip(e(OP.add(x, relax.const(np.float32(3)))), 0, 6)),
                                                    relax.const(np.float32(6))))), "elementwise"),
        "silu": case(lambda e, x: OP.nn.silu(x), "elementwise"),
        "gelu": case(lambda e, x: OP.nn.gelu(x), "elementwise"),
        "gelu_tanh": case(lambda e, x: OP.nn.gelu_tanh(x), "elementwise"),
        "selu": case(lambda e, x: OP.nn.selu(x), "elementwise", "clip", "add"),
        "softplus": case(lambda e, x: OP.nn.softplus(x), "elementwise"),
        "leaky": case(lambda e, x: OP.nn.leakyrelu(x, 0.2), "elementwise"),
        "prelu": case(lambda e, x: OP.nn.prelu(x, c(4)), "elementwise"),
        "square": case(lambda e, x: OP.square(x), "elementwise"),
        "rsqrt": case(lambda e, x: OP.rsqrt(e(OP.add(e(OP.exp(x)), half))), "elementwise"),
        "power": case(lambda e, x: OP.power(e(OP.abs(x)), half), "elementwise"),
        "add": case(lambda e, x: OP.add(x, e(OP.nn.relu(x))), "clip", "add"),
        "gate": case(lambda e, x: OP.multiply(x, e(OP.mean(x, [2, 3], keepdims=True))), "avg_pool2d", "mul"),
        "joins": case(lambda e, x: OP.subtract(e(OP.maximum(x, e(OP.mean(x, [1], keepdims=True)))),
                                               e(OP.minimum(e(OP.nn.relu(x)), x))),
                      "reduce_mean", "max", "clip", "min", "sub"),
        "largest of channels": case(lambda e, x: OP.max(x, [1, 3]), "reduce_max", "reshape"),
        "largest of a map": case(lambda e, x: OP.max(x, [2, 3], keepdims=True), "max_pool2d"),
        "layer norm of rows": case(lambda e, x: OP.nn.layer_norm(x, c(6), c(6), axes=[-1]),
                                   "transpose", "layer_norm", "transpose"),
        "layer norm of channels": case(lambda e, x: OP.nn.layer_norm(x, c(4), c(4), axes=[1]), "layer_norm"),
        "mean of columns": case(lambda e, x: OP.mean(x, [3]), "reduce_mean", "reshape"),
        "spatial gate": case(lambda e, x, g: OP.add(e(OP.multiply(g, x)), g), "mul", "add",
                             inputs=[image(), variable("g", (1, 1, 6, 6))]),
        "take": case(lambda e, x: OP.take(x, relax.const(np.array([3, 0, 2], np.int64)), axis=1), "gather"),
        "row": case(lambda e, x: OP.take(x, relax.const(np.int64(3)), axis=2), "slice", "reshape"),
        "batch aside": case(
            lambda e, x: OP.take(e(OP.permute_dims(x, [2, 0, 1, 3])), relax.const(np.int64(1)), axis=0),
            "transpose", "slice", "reshape", inputs=[image(2, 5, 3, 4)]),
        "batch aside, split": case(
            lambda e, x: OP.squeeze(e(relax.TupleGetItem(e(OP.split(e(OP.permute_dims(x, [2, 0, 1, 3])), 3, 0)), 2)), [0]),
            "transpose", "slice", "reshape", inputs=[image(2, 5, 3, 4)]),
        "tile": case(lambda e, x: OP.tile(x, (1, 2, 1, 1)), "gather"),
        "mirror": case(lambda e, x: OP.flip(e(OP.nn.pad(x, (0, 0, 0, 0, 1, 2, 0, 1), "reflect")), 3), "gather"),
        "backwards": case(lambda e, x: OP.strided_slice(x, [2], [4], [-99], [-2]), "gather"),
        "split of rows": case(lambda e, x: relax.TupleGetItem(e(OP.split(x, [1, 3], axis=1)), 1), "slice",
                              inputs=[image(1, 5, 7)]),
        "ratio": case(lambda e, x: OP.image.resize2d(
            x, (4, 9), method="nearest_neighbor", coordinate_transformation_mode="half_pixel",
            rounding_method="round"), "gather"),
        "concat": case(lambda e, x: OP.concat([x, e(OP.nn.relu(x))], axis=1), "clip", "concat"),
        "max pool": case(lambda e, x: OP.nn.max_pool2d(x, (3, 2), (2, 2), (1, 0, 1, 1), (1, 2)), "max_pool2d"),
        "ceil": case(lambda e, x: OP.nn.max_pool2d(x, (3, 3), (2, 2), ceil_mode=True), "max_pool2d",
                     inputs=[image(1, 4, 6, 6)]),
        "average": case(lambda e, x: OP.nn.avg_pool2d(x, (2, 3), (1, 2), (1, 1), count_include_pad=True),
                        "avg_pool2d"),
        "not counted": case(lambda e, x: OP.nn.avg_pool2d(x, (3, 3), (2, 2), (1, 1, 0, 1)), "mean_pool2d"),
        "adaptive": case(lambda e, x: OP.nn.adaptive_avg_pool2d(x, (1, 1)), "avg_pool2d"),
        "mean": case(lambda e, x: OP.mean(x, [2, 3]), "avg_pool2d", "reshape"),
        "mean of tokens": case(lambda e, x: OP.mean(x, [1]), "reduce_mean", "reshape", inputs=[image(1, 5, 6)]),
        "windows in the batch": case(lambda e, x: OP.reshape(x, (4, 36)), "reshape"),
        "flatten": case(lambda e, x: OP.reshape(x, (1, 144)), "reshape"),
        "batch_flatten": case(lambda e, x: OP.nn.batch_flatten(x), "reshape"),
        "permute": case(lambda e, x: OP.permute_dims(x, [0, 2, 3, 1]), "transpose"),
        "slice": case(lambda e, x: OP.strided_slice(x, [1, 3], [1, 0], [3, 99], [1, 2]), "slice"),
        "split": case(lambda e, x: [relax.TupleGetItem(s := e(OP.split(x, [1, 3], axis=1)), 2),
                                    relax.TupleGetItem(s, 1)], "slice"),
        "pad": case(lambda e, x: OP.nn.pad(x, (0, 0, 0, 0, 1, 2, 0, 3)), "pad"),
        "nearest": case(lambda e, x: OP.image.resize2d(
            x, (12, 18), method="nearest_neighbor", coordinate_transformation_mode="asymmetric",
            rounding_method="floor"), "resize"),
        "bilinear": case(lambda e, x: OP.image.resize2d(x, (9, 13)), "resize_linear"),
        "tuple": case(lambda e, x: relax.TupleGetItem(e(relax.Tuple([x, e(OP.exp(x))])), 1), "elementwise"),
    }  # fmt: skip


def floats():
    """Calls that stay float: name -> (inputs, body, the operator's name, whether it is one of ONNX's)."""
    c, n = constants(2), np.float32
    y = variable("y", (1, 4, 6, 6))

    def case(body, op, onnx=True, inputs=None):
        return inputs or [image()], body, op, onnx

    def compare(f):
        return lambda e, x, y: OP.where(e(f(x, y)), x, y)

    return {
        "softmax": case(lambda e, x: OP.nn.softmax(x, axis=1), "Softmax"),
        "log_softmax": case(lambda e, x: OP.nn.log_softmax(x, axis=-1), "LogSoftmax"),
        "layer_norm": case(lambda e, x: OP.nn.layer_norm(x, c(6, 6), c(6, 6), axes=[-2, -1]), "LayerNormalization"),
        "batch aside": case(lambda e, x: OP.nn.softmax(e(OP.permute_dims(x, [2, 0, 1, 3])), axis=0), "Transpose"),
        "max of all": case(lambda e, x: OP.max(x), "ReduceMax"),
        "min": case(lambda e, x: OP.min(x, 2, keepdims=True), "ReduceMin"),
        "sum": case(lambda e, x: OP.sum(x, [1]), "ReduceSum"),
        "sum of all": case(lambda e, x: OP.sum(x), "ReduceSum"),
        "mean of the batch": case(lambda e, x: OP.mean(x, [0], keepdims=True), "ReduceMean", inputs=[image(1, 5, 6)]),
        "prod": case(lambda e, x: OP.prod(x, [3]), "ReduceProd"),
        "argmax": case(lambda e, x: OP.astype(e(OP.argmax(x, 1, keepdims=True)), "float32"), "ArgMax"),
        "argmin": case(lambda e, x: OP.astype(e(OP.argmin(x, 1)), "float32"), "ArgMin"),
        "subtract": case(lambda e, x, y: OP.subtract(x, y), "Sub", inputs=[image(), variable("y", (6, 6))]),
        "divide": case(lambda e, x, y: OP.divide(x, e(OP.add(e(OP.abs(y)), relax.const(n(1))))), "Div",
                       inputs=[image(), y]),
        "maximum": case(lambda e, x, y: OP.maximum(x, y), "Max",
                        inputs=[image(1, 4, 1, 6), variable("y", (1, 1, 6, 1))]),
        "broadcast": case(lambda e, x: OP.add(x, c(6, 6)), "Add"),
        "where": case(compare(OP.greater), "Greater", inputs=[image(), y]),
        "less_equal": case(compare(OP.less_equal), "Where", inputs=[image(), y]),
        "not equal": case(compare(OP.not_equal), "not_equal", False, inputs=[image(), y]),
        "floor": case(lambda e, x: OP.floor(x), "Floor"),
        "round": case(lambda e, x: OP.round(x), "round", False),
        "cosine": case(lambda e, x: OP.cos(x), "cos", False),
        "computed weights": case(lambda e, x, w: OP.nn.conv2d(x, e(OP.exp(w))), "Conv",
                                 inputs=[image(), variable("w", (5, 4, 3, 3))]),
        "conv3d": case(lambda e, x: OP.nn.conv3d(x, c(5, 4, 2, 2, 2), padding=1), "Conv",
                       inputs=[image(1, 4, 5, 5, 5)]),
        "transposed1d": case(lambda e, x: OP.nn.conv1d_transpose(x, c(4, 5, 3), strides=2, padding=1), "ConvTranspose",
                             inputs=[image(1, 4, 7)]),
        "max pool 1d": case(lambda e, x: OP.nn.max_pool1d(x, 3, 2, 1), "MaxPool", inputs=[image(1, 4, 7)]),
        "average 1d": case(lambda e, x: OP.nn.avg_pool1d(x, 3, 2, 1), "nn.avg_pool1d", False,
                           inputs=[image(1, 4, 7)]),
        "averages of ceil": case(lambda e, x: OP.nn.avg_pool2d(x, (3, 3), (2, 2), ceil_mode=True),
                                 "nn.avg_pool2d", False),
        "adaptive": case(lambda e, x: OP.nn.adaptive_avg_pool2d(x, (2, 3)), "nn.adaptive_avg_pool2d", False),
        "matmul of one for all": case(lambda e, x, y: OP.matmul(x, y), "MatMul",
                                      inputs=[image(), variable("y", (1, 1, 6, 6))]),
        "reshape to a line": case(lambda e, x: OP.reshape(x, (144,)), "Reshape"),
        "permute of the batch": case(lambda e, x: OP.permute_dims(x), "Transpose"),
        "concat with a constant": case(lambda e, x: OP.concat([x, c(1, 2, 6, 6)], axis=1), "Concat"),
        "slice of the batch": case(lambda e, x: OP.strided_slice(x, [0], [1], [2]), "Slice",
                                   inputs=[image(3, 4, 6, 6)]),
        "split of the batch": case(lambda e, x: relax.TupleGetItem(e(OP.split(x, 3, axis=0)), 1), "Split",
                                   inputs=[image(3, 4, 6, 6)]),
        "take": case(lambda e, x: OP.take(x, relax.const(np.array([[3], [0]], np.int64)), axis=1), "Gather"),
        "broadcast_to": case(lambda e, x: OP.broadcast_to(x, (2, 4, 6, 6)), "Expand"),
        "tile of the batch": case(lambda e, x: OP.tile(x, (2, 1, 1, 1)), "tile", False),
        "cumsum": case(lambda e, x: OP.cumsum(x, axis=1), "cumsum", False),
        "cubic resize": case(lambda e, x: OP.image.resize2d(x, (9, 13), method="cubic"),
                              "image.resize2d", False),
        "group_norm": case(lambda e, x: OP.nn.group_norm(x, c(4), c(4), 2, 1, [2, 3]), "nn.group_norm", False),
        "topk": case(lambda e, x: relax.TupleGetItem(e(OP.topk(x, 2, axis=1)), 0), "topk", False),
        "beta": case(lambda e, x: OP.nn.softplus(x, beta=2.0), "nn.softplus", False),
        "pad with a number": case(lambda e, x: OP.nn.pad(x, (0, 0, 0, 0, 1, 2, 0, 3), "constant", 0.5),
                                  "nn.pad", False),
        "integers": case(lambda e, x: OP.astype(e(OP.add(e(OP.astype(x, "int32")), relax.const(7, "int32"))),
                                                "float32"), "Cast"),
        "TIR": case(lambda e, x: relax.BlockBuilder.current().call_te(
            lambda t: tvm.te.compute(t.shape, lambda *i: t(*i) * t(*i), name="own"), x,
            primfunc_name_hint="own"), "own", False),
    }  # fmt: skip


def feed(inputs, seed=3):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal([int(d) for d in v.ty.shape.values]).astype(np.float32) for v in inputs]


def check(made, graph, arrays, relative=2e-6):
    """The graph in numpy, and its float operators as a module of this host, are what TVM computes."""
    by_name = dict(zip(graph.inputs, arrays, strict=True))
    want, mine = computed(made, arrays), graph.run(by_name)
    for name, array in zip(graph.output_names, want, strict=True):
        near(mine[name], array, relative)
    if all(node.op != "float" for node in graph):
        return
    back = installed().float_module(graph)
    for array, again in zip(want, computed(back, arrays), strict=True):
        near(again, array, relative)


def near(mine, want, relative):
    assert mine.shape == want.shape and mine.dtype == want.dtype
    assert np.abs(mine - want).max(initial=0) <= relative * max(np.abs(want).max(initial=0), 1e-6)


@pytest.mark.parametrize("name", integers())
def test_a_call_becomes_an_operator(name):
    inputs, body, ops = integers()[name]
    made = module(inputs, body)
    graph = eq.from_relax(made)
    assert {node.op for node in graph} - {"input"} == ops
    check(made, graph, feed(inputs))


def test_a_split_into_one_part_is_the_tensor():
    made = module([image()], lambda e, x: OP.nn.relu(e(OP.split(x, [], axis=1))))
    graph = eq.from_relax(made)
    assert [node.op for node in graph] == ["input", "clip"]
    check(made, graph, feed([image()]))


def test_numbers_of_a_shape_are_constants():
    """TVM's importer leaves ONNX's shape arithmetic in the module."""

    def body(e, x):
        sizes = e(OP.shape_to_tensor(e(OP.shape_of(x))))
        half = e(OP.divide(e(OP.astype(e(OP.take(sizes, relax.const(2, "int64"), axis=0)), "float32")),
                           relax.const(np.float32(2))))  # fmt: skip
        return OP.multiply(x, half)

    made = module([image()], body)
    graph = eq.from_relax(made)
    assert [node.op for node in graph] == ["input", "elementwise"]
    check(made, graph, feed([image()]))


@pytest.mark.parametrize("name", floats())
def test_a_call_stays_float_with_its_meaning(name):
    inputs, body, op, onnx = floats()[name]
    made = module(inputs, body)
    graph = eq.from_relax(made)
    handles = {node.attrs["handle"].op: node.attrs["handle"] for node in graph if node.op == "float"}
    assert isinstance(handles[op], OnnxOp if onnx else RelaxOp)
    check(made, graph, feed(inputs))


@pytest.mark.parametrize(
    "body, why",
    [
        (lambda e, x: OP.reshape(x, (288,)), "Reshape is not covered from (2, 4, 6, 6) to (288,); between two axes "
                                             "or more it is"),
        (lambda e, x: OP.tile(x, (2, 1, 1, 1)), "tile is not covered as it is here: of (2, 4, 6, 6)"),
        (lambda e, x: OP.nn.softmax(x), "Softmax is not covered"),
    ],
)  # fmt: skip
def test_what_is_not_covered_says_what_about_it(body, why):
    graph = eq.from_relax(module([image(2, 4, 6, 6)], body))
    (node,) = (node for node in graph if node.op == "float")
    assert node.operator.refusal(node) == why


def test_every_rule_is_of_an_operator_of_relax():
    known = set(map(str, tvm.ir.Op.list_op_names()))
    for rules in (read.RULES, read.ANY_DTYPE, read.FIELDS, read.ONNX):
        assert set(rules) <= known
    assert {f"relax.{name}" for name in read.NO_PRODUCTS} <= known
    assert {*read.QUANTIZED, *read.EFFECTS} <= known


def test_a_pixel_shuffle_is_that_of_torch():
    """TVM 0.27 has the operator and cannot compile it."""
    graph = eq.from_relax(module([image()], lambda e, x: OP.nn.pixel_shuffle(x, 2)))
    (x,) = feed([image()])
    want = x.reshape(1, 1, 2, 2, 6, 6).transpose(0, 1, 4, 2, 5, 3).reshape(1, 1, 12, 12)
    np.testing.assert_array_equal(graph.run({"x": x})[graph.output_names[0]], want)


def test_names_are_the_variables_and_layers_keep_what_was_folded():
    graph = eq.from_relax(float_module())
    assert [node.name for node in graph][:3] == ["image", "first", "on"]
    assert graph["first"].source[0] == "first" and len(graph["first"].source) == 2
    assert graph.outputs == ("dense",) and graph["dense"].source == ("dense", "logits")


def test_a_network_goes_all_the_way(compared):
    q = eq.quantize(float_module(), pictures(), method="minmax")
    built, picture = q.build("llvm"), pictures()[0]
    want = run_integer(q.graph, q.table, {"image": picture})["dense"]
    near(built({"image": picture})[0], want, 1e-6)
    assert np.abs(want - computed(float_module(), [picture])[0]).max() < 0.1 * np.abs(want).max()


def test_a_float_operator_of_tvm_s_can_be_sent_to_another_process():
    made = module([image()], lambda e, x: OP.cos(x))
    graph = eq.from_relax(made)
    again, (x,) = pickle.loads(pickle.dumps(graph)), feed([image()])
    assert again.fingerprint == graph.fingerprint
    (name,) = graph.outputs
    np.testing.assert_array_equal(again.run({"x": x})[name], graph.run({"x": x})[name])
    assert type(name) is str


# -- what TVM's importer makes of ONNX


def imported(model):
    from tvm.relax.frontend.onnx import from_onnx

    return from_onnx(model, keep_params_in_input=False)


@pytest.mark.parametrize("island", [False, True], ids=["", "island"])
def test_an_imported_onnx_model_is_read_as_the_onnx_model_is(island):
    """Its Clip is a TIR function each for the lower and the upper limit there: they are one clip again."""
    model = networks.small_onnx(island=island)
    graph, direct = eq.from_relax(imported(model)), eq.load(model)
    assert [node.op for node in graph] == [node.op for node in direct]
    x = pictures(1)[0]
    near(graph.run({"x": x})[graph.output_names[0]], direct.run({"x": x})[direct.output_names[0]], 1e-6)
    for mine, other in zip(graph.compute_nodes, direct.compute_nodes, strict=True):
        np.testing.assert_array_equal(mine.weight, other.weight)


@pytest.mark.parametrize("opset", [7, 13])
def test_limits_of_an_imported_clip(opset):
    """Attributes once, inputs now: numbers in the TIR function, or arguments of it."""
    limits = {"lo": np.float32(-0.25), "hi": np.float32(0.5)}
    given = (["x"], dict(min=-0.25, max=0.5)) if opset == 7 else (["x", "lo", "hi"], {})
    nodes = [("Clip", given[0], ["c"], "clip", given[1]), ("Max", ["c", "x"], ["y"], "max", {})]
    model = networks.onnx_model(
        nodes, {"x": [1, 2, 4, 4]}, {"y": [1, 2, 4, 4]}, {} if opset == 7 else limits, opset
    )
    made = imported(model)
    graph = eq.from_relax(made)
    clip = next(node for node in graph if node.op == "clip")
    assert (clip.attrs["lo"], clip.attrs["hi"]) == (-0.25, 0.5) and sum(n.op == "clip" for n in graph) == 1
    check(made, graph, pictures(1, (1, 2, 4, 4)))


def test_a_tir_function_is_not_taken_for_what_it_is_called():
    def lower(t, c):
        return tvm.te.compute(t.shape, lambda *i: tvm.te.max(t(*i), c() * 2.0), name="maximum")

    made = module(
        [image()],
        lambda e, x: relax.BlockBuilder.current().call_te(
            lower, x, relax.const(np.float32(0.25)), primfunc_name_hint="maximum"
        ),
    )
    graph = eq.from_relax(made)
    assert [node.op for node in graph] == ["input", "float"]
    check(made, graph, feed([image()]))


@pytest.mark.parametrize("seed", [17, 45, 57, 68])
def test_random_onnx_models_are_what_tvm_makes_of_them(seed):
    """Of those that its importer takes, one in four: what it leaves of them is read, or runs by TVM."""
    pytest.importorskip("onnxruntime", minversion="1.22")
    from onnx_random import random_model

    model, by_name = random_model(seed, 4, 13)
    made = imported(model)
    check(made, eq.from_relax(made), [by_name[str(p.name)] for p in made["main"].params], 1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_random_networks_are_what_tvm_computes(seed):
    graph, _ = networks.random_graph(seed)
    made = installed().float_module(graph)
    again = eq.from_relax(made)
    assert len(again.compute_nodes) == len(graph.compute_nodes)
    (x,) = feed(made["main"].params)
    check(made, again, [x], 1e-5)


# -- what a graph cannot say


def dynamic():
    n = tvm.tirx.Var("n", "int64")
    return module([variable("x", (n, 3, 8, 8))], lambda e, x: OP.nn.relu(x))


def two_functions():
    builder = relax.BlockBuilder()
    x = variable("x", (1, 4))
    with builder.function("other", [x]):
        builder.emit_func_output(builder.emit(OP.nn.relu(x)))
    y = variable("y", (1, 4))
    with builder.function("main", [y]):
        builder.emit_func_output(builder.emit(relax.Call(builder.get().get_global_var("other"), [y])))
    return builder.get()


def lonely():
    """What the pass once returned without its second function."""
    made, builder, x = float_module(), relax.BlockBuilder(), variable("x", (1, 4))
    with builder.function("other", [x]):
        builder.emit_func_output(builder.emit(OP.nn.relu(x)))
    made.update(builder.get())
    return made


def legalized():
    return relax.transform.LegalizeOps()(float_module())


def nested():
    return module([image()], lambda e, x: [e(OP.nn.relu(x)), relax.Tuple([x, x])])


def choosing():
    builder, x = relax.BlockBuilder(), variable("x", (1, 4))
    with builder.function("main", [x]):
        condition = relax.const(True, "bool")
        builder.emit_func_output(builder.emit(relax.If(condition, OP.nn.relu(x), OP.nn.relu6(x))))
    return builder.get()


def nameless():
    builder, x = relax.BlockBuilder(), variable("x", (1, 4))
    with builder.function("forward", [x]):
        builder.emit_func_output(builder.emit(OP.nn.relu(x)))
    return builder.get()


def counted():
    inputs = [variable("image", (1, 3, 8, 8)), *(variable(f"w{i}", (3,)) for i in range(5))]
    return module(inputs, lambda e, x, *w: OP.nn.relu(x), num_input=1)


def other_layout():
    weight = relax.const(np.ones((3, 3, 3, 4), np.float32))
    return module(
        [variable("x", (1, 8, 8, 3))],
        lambda e, x: OP.nn.conv2d(x, weight, data_layout="NHWC", kernel_layout="HWIO"),
    )


def rounded():
    scale, zero = relax.const(np.float32(0.1)), relax.const(np.int32(0))
    return module([image()], lambda e, x: OP.quantize(x, scale, zero, -1, "uint8"))


@pytest.mark.parametrize(
    "make, why",
    [
        (lambda: unbound()[0], "w of main has no value, and is the weight of a convolution; bind .*BindParams"),
        (counted, "w0, w1, w2 and 2 more of main have no values; bind them first: .*BindParams.*params="),
        (dynamic, r"x has a dynamic shape; fix n first: relax.transform.BindSymbolicVars\(\{'n': 1\}\)"),
        (two_functions, "is a call of .*other.*; inline it first: relax.transform.InlinePrivateFunctions"),
        (legalized, r"layers are TIR functions \(conv2d\): quantize before LegalizeOps"),
        (nested, "an output is no tensor, but a tuple: return one tuple of tensors"),
        (lambda: 3, r"model is a int; give a Relax module \(tvm.IRModule\)"),
        (lonely, "has functions beside main, which would be lost: other; give a module with one function"),
        (choosing, r"control flow \(If\) cannot be quantized"),
        (nameless, "the module has no function main"),
        (other_layout, r"layout NHWC, HWIO; convert the module first: .*ConvertLayout\(\{'relax.nn.conv2d': "),
        (rounded, "already quantized .* is relax.quantize"),
        (lambda: module([variable("x", (1, 4), "float16")], lambda e, x: OP.nn.relu(x)), "input x is float16"),
        (lambda: module([image()], lambda e, x: relax.const(np.ones(3, np.float32))), "does not depend on any"),
    ],
)  # fmt: skip
def test_what_a_graph_cannot_say_is_refused_in_a_line(make, why):
    with pytest.raises(LoadError, match=why) as error:
        eq.from_relax(make())
    assert "\n" not in str(error.value)


def test_the_cure_of_a_dynamic_shape_works():
    made = relax.transform.BindSymbolicVars({"n": 2})(dynamic())
    assert eq.from_relax(made)["x"].shape == (2, 8, 8, 3)


def test_params_are_bound_by_name():
    made, params = unbound()
    with pytest.raises(LoadError, match="main has no parameter v; it has image, w"):
        eq.from_relax(made, {"v": params["w"]})
    with pytest.raises(
        LoadError, match=r"w of main is float32 \(4, 3, 3, 3\), params has float32 \(4, 3, 3\)"
    ):
        eq.from_relax(made, {"w": params["w"][..., 0]})
    with pytest.raises(LoadError, match="params has float64"):
        eq.from_relax(made, {"w": params["w"].astype(np.float64)})
    detached = {"main": [tvm.runtime.tensor(params["w"])]}  # of relax.frontend.detach_params
    assert eq.from_relax(made, detached).fingerprint == eq.from_relax(made, params).fingerprint
    graph = eq.from_relax(made, params)
    np.testing.assert_array_equal(graph["only"].weight, params["w"].transpose(2, 3, 1, 0))
    check(relax.transform.BindParams("main", params)(made), graph, pictures(1))
