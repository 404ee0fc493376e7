"""A float node in a Relay module: by the rule of its ONNX operator, or by TVM's importer if that is right."""

import networks
import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
onnx = pytest.importorskip("onnx")
from tvm import relay

import tvm_easyquant as eq
from tvm_easyquant.errors import GraphError
from tvm_easyquant.readers.meaning.rules import RULES
from tvm_easyquant.readers.onnx_op import OnnxOp
from tvm_easyquant.relay import emit as emitter
from tvm_easyquant.relay.emit import Different, accepted
from tvm_easyquant.relay.rewrite import rewrite
from tvm_easyquant.scales.integer import run_integer

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def handle(op, *shapes, dtypes=("float32",), inputs=1, constants=None, opset=13, **attributes):
    """One node; its inputs are the tensors t0, t1, ..., then the constants."""
    constants = {inputs + i: np.asarray(a) for i, a in enumerate(constants or ())}
    names = [*(f"t{i}" for i in range(inputs)), *(f"c{i}" for i in constants)]
    node = onnx.helper.make_node(op, names, [f"y{i}" for i in range(len(shapes))], "n", **attributes)
    tensors = {i: i for i in range(inputs)}
    return OnnxOp(node, opset, attributes, constants, tensors, 0, shapes, dtypes * len(shapes))


def network(op, shape=(1, 8, 8, 8)):
    """conv - the operator - conv, the tensor between them NCHW (1, 8, 8, 8)."""
    b = networks.Builder(size=8)
    a = b.conv("conv1", "image", 8)
    nhwc = (shape[0], *shape[2:], shape[1])
    f = b.add("odd", "float", [a], nhwc, dict(fn=op.evaluate, handle=op, macs=0))
    b.conv("conv2", f, 4, kernel=1)
    graph = b.graph("conv2")
    feeds = [{"image": x} for x in b.images(3)]
    return graph, feeds, eq.quantize(graph, feeds, method="minmax")


def calls(module):
    found = []
    relay.analysis.post_order_visit(
        module["main"], lambda e: found.append(e.op.name) if isinstance(e, relay.Call) else None
    )
    return found


def check(graph, feeds, q):
    executor = eq.Executor(q.build("llvm"))
    for feed in feeds:
        mine = run_integer(graph, q.table, feed)["conv2"]
        (built,) = executor(feed)
        step = np.abs(mine).max() / 127
        assert np.abs(built - mine).max() <= 2 * step


def test_a_float_node_of_onnx_is_written_by_its_rule_without_the_importer(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("TVM's importer was asked")

    monkeypatch.setattr(relay.frontend, "from_onnx", refuse)
    graph, feeds, q = network(handle("Floor", (1, 8, 8, 8)))
    assert calls(rewrite(graph, q.table)).count("floor") == 1
    check(graph, feeds, q)


def test_a_chain_of_what_is_read_twice_compiles(monkeypatch):
    """Story: the places of the largest of 25 are a chain of 25 choices, each of which reads the last one
    twice; TVM wrote it out, 2**25 times."""

    def chain(call):
        t, made = call.t, call.x[0]
        for i in range(40):
            other = t.binary("multiply", made, t.constant(np.float32(0.9 + i / 1000)))
            made = t.where(t.binary("less", made, other), other, made)
        return made

    monkeypatch.setitem(RULES, "Identity", chain)
    graph, feeds, q = network(handle("Identity", (1, 8, 8, 8)))
    found = calls(rewrite(graph, q.table))
    assert 0 < found.count("annotation.stop_fusion") < 40 == found.count("where")
    check(graph, feeds, q)


def test_an_operator_without_a_rule_is_taken_from_the_importer_if_it_means_the_same(monkeypatch):
    monkeypatch.delitem(RULES, "Softsign", raising=False)
    graph, feeds, q = network(handle("Softsign", (1, 8, 8, 8)))
    assert "divide" in calls(rewrite(graph, q.table, sample=feeds[0]))
    check(graph, feeds, q)


def test_an_operator_that_the_importer_changes_is_refused_by_name(monkeypatch):
    """Story: reductions of opset 18 take their axes as an input; TVM's importer reduces one of two."""
    monkeypatch.delitem(RULES, "ReduceMax", raising=False)
    op = handle("ReduceMax", (1, 1, 1, 8), constants=[np.int64([1, 2])], opset=18, keepdims=1)
    graph, feeds, q = network(op, (1, 1, 1, 8))
    for sample in (None, feeds[0]):
        with pytest.raises(
            GraphError, match=r"^node odd: ReduceMax cannot be built: .*--outputs.*outside$"
        ):
            rewrite(graph, q.table, sample=sample)


def test_other_numbers_are_seen_on_the_sample_where_random_ones_do_not_show_them(monkeypatch):
    """The importer stands for one whose answer is right of small numbers only."""

    def wrong(model, **options):
        x = relay.var("t0", shape=(1, 8, 8, 8))
        return tvm.IRModule.from_expr(relay.Function([x], relay.clip(x, -100.0, 100.0))), {}

    monkeypatch.delitem(RULES, "Identity", raising=False)
    monkeypatch.setattr(relay.frontend, "from_onnx", wrong)
    graph, feeds, q = network(handle("Identity", (1, 8, 8, 8)))
    rewrite(graph, q.table)
    with pytest.raises(GraphError, match="node odd: Identity cannot be built: .*other numbers"):
        rewrite(graph, q.table, sample={"image": feeds[0]["image"] * 1000})


#: operator -> (handle, arrays, what the message says)
REFUSED = {
    "unknown": (lambda: handle("Det", (2,)), [normal(2, 3, 3)], r"TVM's importer fails \(.*Det"),
    "no probability": (
        lambda: handle("Bernoulli", (2, 3), opset=15),
        [-abs(normal(2, 3))],
        "onnx.reference cannot run it",
    ),
    "shape": (
        lambda: handle("ReduceMean", (2, 3, 1, 1), constants=[np.int64([2, 3])], opset=18, keepdims=1),
        [normal(2, 3, 4, 5)],
        r"makes float32 \(2, 3, 1, 5\) of it, not float32 \(2, 3, 1, 1\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_accepted_says_why_in_a_line(name, capfd):
    make, arrays, says = REFUSED[name]
    with pytest.raises(Different, match=says) as error:
        accepted(make(), arrays)
    assert "\n" not in str(error.value)
    assert "Traceback" not in capfd.readouterr().err


def test_inputs_of_other_types_are_accepted_and_fed_in_order():
    op = handle("Where", (2, 3), dtypes=("int64",), inputs=3, opset=16)
    arrays = [RNG.random((2, 3)) < 0.5, RNG.integers(-9, 9, (2, 3)), RNG.integers(-9, 9, (1, 3))]
    assert isinstance(accepted(op, arrays), relay.Function)


def test_a_handle_of_relay_is_put_back():
    x = relay.var("x", shape=(2, 3))

    class Handle:
        def rebuild(self, tensors):
            return relay.nn.relu(*tensors)

    made = emitter.emit(Handle(), [emitter.Tensor.of(x, (2, 3), "float32")], "n")
    assert tvm.ir.structural_equal(made, relay.nn.relu(x), map_free_vars=True)
