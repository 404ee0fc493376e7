"""`lower_floats` on Relax modules: which layers it takes with what follows them, and that it moves no map
without need. Skipped where TVM 0.19 is installed, or none."""

import networks
import numpy as np
import pytest

import tvm_easyquant as eq
from tvm_easyquant.errors import TVMMissing
from tvm_easyquant.host import installed
from tvm_easyquant.network.graph import run
from tvm_easyquant.scales.integer import run_integer

framework = pytest.importorskip("tvm_easyquant.relax.framework", exc_type=TVMMissing)
relax, tvm = framework.relax, framework.tvm
from topi_ext.relax.floats import lower_floats
from topi_ext.relax.recurrence import lower_recurrences

OP = relax.op
TARGET = "llvm"
RNG = np.random.default_rng(0)
X = RNG.standard_normal((1, 6, 9, 8)).astype(np.float32)
W = RNG.standard_normal((10, 6, 3, 3)).astype(np.float32)
B = RNG.standard_normal((10, 1, 1)).astype(np.float32)
ONE = RNG.standard_normal((10, 10, 1, 1)).astype(np.float32)


def const(array):
    return relax.const(np.ascontiguousarray(array))


def module(body, x=X):
    """body(builder's emit, x) -> the output, or several."""
    builder, var = relax.BlockBuilder(), relax.Var("x", relax.TensorType(x.shape, "float32"))
    with builder.function("main", [var]):
        with builder.dataflow():
            made = body(builder.emit, var)
            made = builder.emit_output(relax.Tuple(made) if isinstance(made, list) else made)
        builder.emit_func_output(made)
    return builder.get()


def target(text=TARGET):
    return installed("relax").target(text)


def calls(lowered):
    """{operator, or the kernel of a call: how often} in main, without the numbers of equal names."""
    found: dict = {}
    for block in lowered["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if not isinstance(value, relax.Call):
                continue
            name = value.op.name
            if name == "relax.call_tir":
                name = value.args[0].name_hint.rstrip("0123456789")
            found[name] = found.get(name, 0) + 1
    return found


def outputs(made, x):
    """What a module computes, as TVM lowers it by itself."""
    machine = relax.VirtualMachine(tvm.compile(made, target()), tvm.cpu())
    out = machine["main"](tvm.runtime.tensor(x))
    return [each.numpy() for each in ([out] if hasattr(out, "numpy") else out)]


def check(body, expected, x=X):
    """The lowered module has these calls and makes what the stock one makes."""
    made = module(body, x)
    lowered = lower_floats(made, target())
    assert calls(lowered) == expected
    for mine, want in zip(outputs(lowered, x), outputs(made, x), strict=True):
        assert mine.shape == want.shape and mine.dtype == want.dtype
        np.testing.assert_allclose(mine, want, rtol=1e-5, atol=2e-5)
    return lowered


def conv(emit, x, weight=W, **options):
    return emit(OP.nn.conv2d(x, const(weight), **({"padding": [1] * 4} | options)))


def test_bias_residual_and_limits_are_in_the_kernel():
    def body(emit, x):
        y = emit(OP.nn.relu(emit(OP.add(conv(emit, x), const(B)))))
        z = emit(OP.add(conv(emit, y, ONE, padding=[0] * 4), const(B)))
        return emit(OP.clip(emit(OP.nn.relu(emit(OP.add(y, z)))), 0, 6))

    check(body, {"relax.permute_dims": 2, "eq_float_direct": 2})


def test_a_normalization_is_made_where_its_map_is():
    """Channels last between layers, whatever its groups; channels first alone; along other axes by TVM."""
    ten, six = ([const(RNG.standard_normal(n).astype(np.float32))] * 2 for n in (10, 6))

    def between(emit, x):
        y = emit(OP.nn.instance_norm(conv(emit, x), *ten, 1, [2, 3], 0.01))
        y = emit(OP.nn.group_norm(conv(emit, y, ONE, padding=[0] * 4), *ten, 5, 1, [2, 3]))
        return conv(emit, y, ONE, padding=[0] * 4)

    check(between, {"relax.permute_dims": 2, "eq_float_direct": 3, "eq_group_norm": 2})
    check(lambda emit, x: emit(OP.nn.group_norm(x, *six, 2, 1, [2, 3])), {"eq_group_norm": 1})
    check(lambda emit, x: emit(OP.nn.group_norm(x, *six, 2, 1, [3])), {"relax.nn.group_norm": 1})


def test_a_softmax_is_one_kernel_where_its_map_is():
    """Along the channels of a map that is channels last, along rows, along another axis."""

    def between(emit, x):
        return conv(emit, emit(OP.nn.softmax(conv(emit, x), 1)), ONE, padding=[0] * 4)

    check(between, {"relax.permute_dims": 2, "eq_float_direct": 2, "eq_softmax": 1})
    check(lambda emit, x: emit(OP.nn.softmax(x)), {"eq_softmax": 1})
    check(lambda emit, x: emit(OP.nn.softmax(x, 2)), {"eq_softmax": 1})


def test_limits_as_maximum_and_minimum_in_either_order():
    def body(emit, x):
        y = emit(OP.maximum(emit(OP.minimum(conv(emit, x), const(np.float32(1)))), const(np.float32(-1))))
        return emit(
            OP.minimum(emit(OP.maximum(const(np.float32(0)), conv(emit, y, ONE))), const(np.float32(6)))
        )

    check(body, {"relax.permute_dims": 2, "eq_float_direct": 2})


def test_limits_that_cross_are_left_where_they_are():
    def body(emit, x):
        y = emit(OP.maximum(conv(emit, x), const(np.float32(2))))
        return emit(OP.minimum(y, const(np.float32(1))))

    check(body, {"relax.permute_dims": 2, "eq_float_direct": 1, "relax.minimum": 1})


def test_what_somebody_else_reads_is_not_taken_over():
    """The sum before the limit is an output, the layer's own sum is read twice."""

    def body(emit, x):
        y = conv(emit, x)
        z = emit(OP.add(y, const(B)))
        return [emit(OP.nn.relu(z)), z, emit(OP.multiply(y, y))]

    check(
        body,
        {
            "relax.permute_dims": 4,
            "eq_float_direct": 1,
            "relax.add": 1,
            "relax.nn.relu": 1,
            "relax.multiply": 1,
        },
    )


def test_a_sum_of_two_layers_is_taken_by_one_of_them():
    def two(emit, x):
        return emit(OP.nn.relu(emit(OP.add(conv(emit, x), conv(emit, x)))))

    def twice(emit, x):
        y = conv(emit, x)
        return emit(OP.add(y, y))

    check(two, {"relax.permute_dims": 2, "eq_float_direct": 2})
    check(twice, {"relax.permute_dims": 2, "eq_float_direct": 1, "relax.add": 1})


def test_layers_outside_a_block_of_data_flow_and_behind_one():
    """What a block made with its channels last is not seen behind it."""
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType(X.shape, "float32"))
    with builder.function("main", [x]):
        y = builder.emit(OP.nn.relu(conv(builder.emit, x)))
        with builder.dataflow():
            z = builder.emit_output(OP.add(conv(builder.emit, y, ONE, padding=[0] * 4), y))
        w = builder.emit(OP.abs(conv(builder.emit, z, ONE, padding=[0] * 4)))
        builder.emit_func_output(w)
    made = builder.get()
    lowered = lower_floats(made, target())
    assert calls(lowered)["eq_float_direct"] == 3
    np.testing.assert_allclose(outputs(lowered, X)[0], outputs(made, X)[0], rtol=2e-5, atol=1e-3)


def test_a_module_with_branches_is_left_alone():
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(X.shape, "float32"))
    which = relax.Var("which", relax.TensorType((), "bool"))
    with builder.function("main", [x, which]):
        y = builder.emit(OP.nn.conv2d(x, const(W)))
        branches = [relax.SeqExpr([], f(y)) for f in (OP.exp, OP.nn.relu)]
        builder.emit_func_output(builder.emit(relax.If(which, *branches)))
    made = builder.get()
    assert lower_floats(made, target()).same_as(made)


def test_a_second_sum_or_one_behind_a_limit_is_not_taken():
    other = RNG.standard_normal((1, 10, 9, 8)).astype(np.float32)

    def body(emit, x):
        y = emit(OP.nn.relu(conv(emit, x)))
        return emit(OP.add(emit(OP.add(y, const(B))), const(other)))

    check(body, {"relax.permute_dims": 2, "eq_float_direct": 1, "relax.add": 2})


def test_maps_stay_with_channels_last_through_what_has_no_layout():
    gate = RNG.standard_normal((1, 10, 1, 1)).astype(np.float32)

    def body(emit, x):
        y = conv(emit, x)
        y = emit(OP.multiply(emit(OP.sigmoid(y)), const(gate)))
        p = emit(OP.nn.max_pool2d(y, [3, 3], [1, 1], [1] * 4))
        m = emit(OP.mean(p, [2, 3], keepdims=True))
        y = emit(OP.concat([emit(OP.multiply(p, m)), y], 1))
        y = conv(emit, y, RNG.standard_normal((5, 20, 3, 3)).astype(np.float32), strides=[2, 2])
        y = emit(OP.nn.avg_pool2d(y, [2, 2], [2, 2]))
        return emit(OP.exp(y))

    expected = {f"relax.{name}": 1 for name in ("nn.max_pool2d", "mean", "concat", "nn.avg_pool2d")}
    expected |= {"relax.multiply": 2, "relax.permute_dims": 2, "eq_float_direct": 2, "eq_real_function": 2}
    check(body, expected)


def test_transposes_that_undo_each_other_are_gone():
    def body(emit, x):
        y = emit(OP.permute_dims(emit(OP.exp(x)), [0, 3, 1, 2]))
        y = conv(emit, y, RNG.standard_normal((4, 8, 3, 3)).astype(np.float32))
        return emit(OP.permute_dims(y, [0, 2, 3, 1]))

    check(body, {"eq_real_function": 1, "eq_float_direct": 1})


def test_another_transpose_is_one_with_ours():
    def body(emit, x):
        return emit(OP.permute_dims(conv(emit, x), [0, 2, 1, 3]))

    check(body, {"relax.permute_dims": 2, "eq_float_direct": 1})


def test_a_map_of_one_pixel_is_reshaped():
    def body(emit, x):
        y = emit(OP.mean(conv(emit, x), [2, 3], keepdims=True))
        y = conv(emit, y, ONE, padding=[0] * 4)
        return emit(OP.reshape(y, [1, 10]))

    check(body, {"relax.permute_dims": 1, "eq_float_direct": 2, "relax.mean": 1, "relax.reshape": 2})


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_a_product_with_a_constant_matrix(rank):
    """Also of a transposed one."""
    x = RNG.standard_normal((2, 3, 5, 7)[4 - rank :]).astype(np.float32)
    weight, bias = (
        RNG.standard_normal((11, 7)).astype(np.float32),
        RNG.standard_normal(11).astype(np.float32),
    )

    def body(emit, x):
        y = emit(OP.matmul(x, emit(OP.permute_dims(const(weight)))))
        return emit(OP.nn.relu(emit(OP.add(y, const(bias)))))

    check(body, {"relax.reshape": 1, "eq_float_direct": 1}, x)


def test_a_product_is_made_in_the_shape_that_it_is_asked_for():
    """The bias may be before the reshape or behind it; one that cuts the channels stays."""
    x, weight = (RNG.standard_normal(shape).astype(np.float32) for shape in ((6, 7), (7, 8)))
    bias = RNG.standard_normal(8).astype(np.float32)

    def body(emit, v):
        y = emit(OP.reshape(emit(OP.matmul(v, const(weight))), [1, 2, 3, 8]))
        return emit(OP.nn.relu(emit(OP.add(y, const(bias)))))

    check(body, {"relax.reshape": 1, "eq_float_direct": 1}, x)
    check(lambda emit, v: emit(OP.reshape(emit(OP.matmul(v, const(weight))), [12, 4])),
          {"relax.reshape": 2, "eq_float_direct": 1}, x)  # fmt: skip
    check(lambda emit, v: emit(OP.reshape(conv(emit, v), [1, 9, 10, 8])),
          {"relax.permute_dims": 2, "relax.reshape": 1, "eq_float_direct": 1})  # fmt: skip


def test_a_sum_behind_a_product_with_a_matrix():
    x, weight = (RNG.standard_normal(shape).astype(np.float32) for shape in ((2, 5, 7), (7, 7)))
    check(lambda emit, v: emit(OP.nn.relu(emit(OP.add(v, emit(OP.matmul(v, const(weight))))))),
          {"relax.reshape": 1, "eq_float_direct": 1}, x)  # fmt: skip


def test_layouts_that_are_ours_already_and_depthwise():
    x = np.ascontiguousarray(X.transpose(0, 2, 3, 1))
    hwio = np.ascontiguousarray(W.transpose(2, 3, 1, 0))
    single = RNG.standard_normal((10, 1, 3, 3)).astype(np.float32)

    def body(emit, x):
        layout = dict(data_layout="NHWC", padding=[1, 0, 1, 2])
        y = emit(OP.nn.conv2d(x, const(hwio), kernel_layout="HWIO", **layout))
        y = emit(OP.add(y, const(B.ravel())))
        y = emit(OP.permute_dims(y, [0, 3, 1, 2]))
        return emit(OP.clip(conv(emit, y, single, groups=10, strides=[2, 1]), 0, 6))

    assert "eq_float_depthwise" in calls(check(body, {
        "eq_float_direct": 1, "eq_float_depthwise": 1, "relax.permute_dims": 1}, x))  # fmt: skip


def test_what_no_kernel_takes_stays():
    """Groups, weights that are computed, matrices of both sides, float64."""
    grouped = RNG.standard_normal((6, 3, 3, 3)).astype(np.float32)

    def body(emit, x):
        y = conv(emit, x, grouped, groups=2)
        z = emit(OP.nn.conv2d(y, emit(OP.strided_slice(y, [2, 3], [0, 0], [1, 1]))))
        m = emit(OP.matmul(x, emit(OP.permute_dims(x, [0, 1, 3, 2]))))
        d = emit(OP.astype(x, "float64"))
        d = emit(OP.nn.conv2d(d, relax.const(W.astype(np.float64), "float64")))
        return [z, m, d]

    made = module(body)
    assert calls(lower_floats(made, target())) == calls(made)


def test_a_module_without_main_or_layers_is_what_it_was():
    made = module(lambda emit, x: emit(OP.erf(x)))
    assert calls(lower_floats(made, target())) == {"relax.erf": 1}
    other = tvm.IRModule({"other": made["main"].with_attr("global_symbol", "other")})
    assert lower_floats(other, target()).same_as(other)


@pytest.mark.parametrize(
    "skip", [("left",), ("join", "pool"), ("dw",), ("pw", "down"), "all but the first"], ids=str
)
def test_float_layers_of_an_integer_network(skip):
    graph, images = networks.residual()
    if skip == "all but the first":
        skip = tuple(node.name for node in graph if node.op != "input" and node.name != "stem")
    q = eq.quantize(graph, images, method="minmax", skip=skip)
    want = run_integer(q.graph, q.table, {"image": images[0]})["logits"]
    for text in ("llvm", "llvm -mcpu=core-avx2"):
        mine = q.build(text)({"image": images[0]})[0]
        assert np.abs(mine - want).max() <= 1e-6 * np.abs(want).max()


def test_threads_do_not_change_a_number():
    graph, images = networks.residual()
    host = installed("relax")
    built = host.build_float(host.float_module(graph), TARGET)
    made = []
    try:
        for count in (1, 2):
            host.threads(count)
            made.append(built({"image": images[0]})[0])
    finally:
        host.threads(0)
    np.testing.assert_array_equal(*made)


def test_weights_are_in_the_library_once():
    """A layer of a megabyte of weights, and not two."""
    weight = RNG.standard_normal((512, 512, 1, 1)).astype(np.float32)
    x = RNG.standard_normal((1, 512, 2, 2)).astype(np.float32)
    made = module(lambda emit, v: emit(OP.nn.conv2d(v, const(weight))), x)
    built = installed("relax").build_float(made, TARGET)
    assert weight.nbytes < built.size < 1.2 * weight.nbytes


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.ci] * (name != networks.LOOP)) for name in networks.LOOPS],
)
def test_a_recurrence_that_is_written_out_is_a_loop_again(name):
    """Story: an LSTM of 80 steps was 1200 operators, which TVM took a minute to compile."""
    op, options, loops = networks.LOOPS[name]
    model, x = networks.recurrent(op, **options)
    graph = eq.load_onnx(model)
    module = installed("relax").float_module(graph)
    found = calls(lower_recurrences(module, target()))
    assert found.get("eq_recurrence", 0) == loops
    want = run(graph, x)
    for mine, name in zip(installed("relax").build_float(module)({"x": x}), graph.outputs, strict=True):
        np.testing.assert_allclose(mine, want[name], rtol=1e-5, atol=1e-5)
