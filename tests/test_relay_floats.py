"""What `LowerInteger` makes of float layers on Relay: which it takes with what follows them, and that it moves
no map without need. Skipped where there is no TVM 0.19."""

import networks
import numpy as np
import pytest

import tvm_easyquant as eq
from tvm_easyquant.errors import TVMMissing
from tvm_easyquant.network.graph import run
from tvm_easyquant.scales.integer import run_integer

framework = pytest.importorskip("tvm_easyquant.relay.framework", exc_type=TVMMissing)
relay, tvm = framework.relay, framework.tvm
from topi_ext.lower import LowerInteger
from tvm_easyquant.relay.build import build, build_float
from tvm_easyquant.relay.rewrite import float_module

nn = relay.nn
RNG = np.random.default_rng(0)
X = RNG.standard_normal((1, 6, 9, 8)).astype(np.float32)


def random(*shape):
    return relay.const(RNG.standard_normal(shape).astype(np.float32))


W, ONE, B = random(10, 6, 3, 3), random(10, 10, 1, 1), random(10)
PAD = dict(padding=(1, 1, 1, 1))


def conv(x, weight, **options):
    """As TVM alone wants it: with the numbers that its weights have."""
    k, _, *size = weight.data.shape
    return nn.conv2d(x, weight, channels=k, kernel_size=size, **options)


def lowered(body, x=X):
    """(the module, as LowerInteger makes it) of body(x) -> the output, or several."""
    var = relay.var("x", shape=x.shape, dtype="float32")
    made = body(var)
    module = tvm.IRModule.from_expr(
        relay.Function([var], relay.Tuple(made) if isinstance(made, list) else made)
    )
    return module, LowerInteger("llvm")(module)


def calls(module):
    """{operator: how often}."""
    found: dict = {}

    def visit(expr):
        if isinstance(expr, relay.Call):
            found[expr.op.name] = found.get(expr.op.name, 0) + 1

    relay.analysis.post_order_visit(module["main"], visit)
    return found


def check(body, expected, x=X):
    """The lowered module has these calls and makes what TVM makes of the other."""
    module, ours = lowered(body, x)
    assert calls(ours) == expected
    for mine, want in zip(
        build(module, "llvm")({"x": x}), build_float(module, "llvm")({"x": x}), strict=True
    ):
        assert mine.shape == want.shape and mine.dtype == want.dtype
        np.testing.assert_allclose(mine, want, rtol=1e-5, atol=5e-5)


def test_a_layer_takes_over_its_bias_an_add_and_limits():
    def body(x):
        y = nn.relu(nn.bias_add(conv(x, W, **PAD), B))
        return relay.clip(nn.relu(y + nn.bias_add(conv(y, ONE), B)), 0.0, 6.0)

    check(body, {"transpose": 2, "easyquant.float": 1, "easyquant.float_add": 1})


def test_maps_stay_with_channels_last_through_what_has_no_layout():
    single, last = random(20, 1, 3, 3), random(5, 20, 1, 1)

    def body(x):
        y = conv(x, W, **PAD)
        y = relay.sigmoid(y) * random(1, 10, 1, 1)
        p = nn.max_pool2d(y, (3, 3), (1, 1), padding=(1, 1, 1, 1))
        y = relay.concatenate([p * relay.mean(p, [2, 3], keepdims=True), y], 1)
        y = conv(y, single, groups=20, strides=(2, 2), **PAD)
        y = nn.avg_pool2d(nn.leaky_relu(y, 0.1), (2, 2), (2, 2))
        y = conv(nn.global_avg_pool2d(y), last)
        return nn.relu(nn.bias_add(nn.dense(relay.reshape(y, (1, 5)), random(7, 5)), random(7)))

    once = (
        "easyquant.function",
        "nn.max_pool2d",
        "mean",
        "concatenate",
        "nn.leaky_relu",
        "nn.avg_pool2d",
        "nn.global_avg_pool2d",
    )
    check(
        body, {**dict.fromkeys(once, 1), "multiply": 2, "transpose": 1, "reshape": 3, "easyquant.float": 4}
    )


def test_a_normalization_is_made_where_its_map_is():
    """Channels last between layers, whatever its groups; channels first alone; along another axis by TVM."""
    ten, nine = [random(10), random(10)], [random(9), random(9)]

    def between(x):
        y = nn.instance_norm(conv(x, W, **PAD), *ten, epsilon=0.01)
        return conv(nn.group_norm(conv(y, ONE), *ten, 5), ONE)

    check(between, {"transpose": 2, "easyquant.float": 3, "easyquant.group_norm": 2})
    check(lambda x: nn.group_norm(x, random(6), random(6), 2), {"easyquant.group_norm": 1})
    check(lambda x: nn.instance_norm(x, *nine, axis=2), {"nn.instance_norm": 1})


def test_a_softmax_is_one_kernel_where_its_map_is():
    """Along the channels of a map that is channels last, along rows, along another axis."""
    check(
        lambda x: conv(nn.softmax(conv(x, W, **PAD), 1), ONE),
        {"transpose": 2, "easyquant.float": 2, "easyquant.softmax": 1},
    )
    check(nn.softmax, {"easyquant.softmax": 1})
    check(lambda x: nn.softmax(x, 2), {"easyquant.softmax": 1})


def test_without_a_layer_maps_stay_with_channels_last_too():
    """Story: between two integer layers and without a float one nothing was turned: an average pool was made in
    NCHW, behind a transpose that took as long, and its reader waited for another."""

    def body(x):
        y = relay.annotation.stop_fusion(
            nn.avg_pool2d(relay.transpose(x, (0, 3, 1, 2)), (3, 3), padding=(1, 1))
        )
        y = relay.take(y, relay.const(np.array([1, 0, 2])), axis=2)
        return relay.transpose(y, (0, 2, 3, 1))

    check(body, {"nn.avg_pool2d": 1, "annotation.stop_fusion": 1, "take": 1})


def test_what_somebody_else_reads_is_not_taken_over():
    def body(x):
        y = conv(x, W, **PAD)
        z = nn.bias_add(y, B)
        return [nn.relu(z), z, y * y]

    check(body, {"transpose": 4, "easyquant.float": 1, "nn.bias_add": 1, "nn.relu": 1, "multiply": 1})


def test_transposes_that_undo_each_other_are_gone():
    def body(x):
        y = conv(relay.transpose(relay.exp(x), (0, 3, 1, 2)), random(4, 8, 3, 3), **PAD)
        return relay.transpose(y, (0, 2, 3, 1))

    check(body, {"easyquant.function": 1, "easyquant.float": 1})


def test_a_product_is_made_in_the_shape_that_it_is_asked_for():
    x = RNG.standard_normal((6, 7)).astype(np.float32)

    def body(v):
        return relay.reshape(nn.dense(v, relay.transpose(random(7, 8))), (1, 2, 3, 8)) + random(8)

    check(body, {"reshape": 1, "easyquant.float": 1}, x)


def test_what_no_kernel_takes_stays():
    """Groups, and weights that are computed; and a function with a branch as a whole."""
    grouped = random(6, 3, 3, 3)

    def body(x):
        y = conv(x, grouped, groups=2, **PAD)
        return nn.conv2d(y, relay.strided_slice(y, (0, 0, 0, 0), (1, 6, 1, 1)))

    def branch(x):
        return relay.If(relay.const(True), conv(x, W), relay.exp(conv(x, W)))

    for each in (body, branch):
        module, ours = lowered(each)
        assert calls(ours) == calls(module)


@pytest.mark.parametrize("skip", [("left",), ("join", "pool"), ("dw",), ("pw", "down")], ids=" ".join)
def test_float_layers_of_an_integer_network(skip):
    graph, images = networks.residual()
    q = eq.quantize(graph, images, method="minmax", skip=skip)
    want = run_integer(q.graph, q.table, {"image": images[0]})["logits"]
    mine = q.build("llvm")({"image": images[0]})[0]
    assert np.abs(mine - want).max() <= 1e-6 * np.abs(want).max()
    assert not calls(LowerInteger("llvm")(q.module)).get("nn.conv2d")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.ci] * (name != networks.LOOP)) for name in networks.LOOPS],
)
def test_a_recurrence_that_is_written_out_is_a_loop_again(name):
    """Story: an LSTM of 80 steps was 1200 operators, which TVM took a minute to compile."""
    op, options, loops = networks.LOOPS[name]
    model, x = networks.recurrent(op, **options)
    graph = eq.load_onnx(model)
    module = float_module(graph)
    assert calls(LowerInteger("llvm")(module)).get("easyquant.recurrence", 0) == loops
    want = run(graph, x)
    for mine, name in zip(build(module, "llvm")({"x": x}), graph.outputs, strict=True):
        np.testing.assert_allclose(mine, want[name], rtol=1e-5, atol=1e-5)


#: of steps written out, what one of them has: (the row it reads, which weights, the state of which step before,
#: the function), and the order in which they are joined
SIX = [(n, 0, n - 1, relay.tanh) for n in range(6)]
STEPS = {
    "all alike": (SIX, range(6), 1),
    "one by other weights": ([*SIX[:3], (3, 1, 2, relay.tanh), *SIX[4:]], range(6), 0),
    "the last by other weights": ([*SIX[:5], (5, 1, 4, relay.tanh)], range(6), 0),
    "two rows the other way": (
        [*SIX[:3], (4, 0, 2, relay.tanh), (3, 0, 3, relay.tanh), SIX[5]],
        range(6),
        0,
    ),
    "one by another function": ([*SIX[:4], (4, 0, 3, relay.sigmoid), SIX[5]], range(6), 0),
    "one from two steps before": ([*SIX[:4], (4, 0, 2, relay.tanh), SIX[5]], range(6), 0),
    "joined in another order": (SIX, (0, 2, 1, 3, 4, 5), 0),
    "the first by other weights": ([(0, 1, -1, relay.tanh), *SIX[1:]], range(6), 1),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_that_are_not_alike_are_no_loop(name):
    """What is found is exactly what is written: one step that differs, and all of them stay; the first may."""
    steps, order, loops = STEPS[name]
    weights, x = [random(5, 5), random(5, 5)], RNG.standard_normal((6, 1, 5)).astype(np.float32)

    def body(var):
        states = []
        for row, which, before, function in steps:
            taken = relay.reshape(relay.strided_slice(var, [row, 0, 0], [row + 1, 1, 5]), (1, 5))
            state = states[before] if before >= 0 else relay.const(np.zeros((1, 5), np.float32))
            states.append(function(taken + nn.dense(state, weights[which])))
        return relay.concatenate([relay.reshape(states[n], (1, 1, 5)) for n in order], 0)

    module, ours = lowered(body, x)
    assert calls(ours).get("easyquant.recurrence", 0) == loops
    if loops:
        (mine,), (want,) = build(module, "llvm")({"x": x}), build_float(module, "llvm")({"x": x})
        np.testing.assert_allclose(mine, want, rtol=1e-5, atol=1e-5)
