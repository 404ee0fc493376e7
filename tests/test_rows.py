"""One row per operator: every row has its rules, every rule a row, and no dispatch by a name's spelling."""

import importlib
import importlib.util
import re
from pathlib import Path

import networks
import numpy as np
import pytest

import tvm_easyquant as eq
from tvm_easyquant.errors import GraphError, TVMMissing
from tvm_easyquant.network import expression, gradient, ops
from tvm_easyquant.network.node import Node
from tvm_easyquant.network.ops import INTEGER, OPERATORS
from tvm_easyquant.readers import onnx_float, onnx_quantized, take_over, uncovered
from tvm_easyquant.scales import integer
from tvm_easyquant.writers import qdq, verify

ROOT = Path(__file__).resolve().parent.parent
RUNS = {name for name, row in OPERATORS.items() if row.integer not in ("input", "float")}
MOVES = {name for name, row in OPERATORS.items() if row.moves}
#: what the host runs as a layer; a resize has its own kernel, a mean along axes or of windows that differ is a sum
PRODUCTS = {name for name, row in OPERATORS.items() if row.integer == "accumulate"}
PRODUCTS -= {"resize_linear", "reduce_mean", "mean_pool2d"}
JOIN = {name for name, row in OPERATORS.items() if row.integer in ("sum", "product")}


def relay(module, name):
    pytest.importorskip("tvm_easyquant.relay.framework", exc_type=TVMMissing)
    return getattr(importlib.import_module(f"tvm_easyquant.relay.{module}"), name)


def relax(module, name):
    pytest.importorskip("tvm_easyquant.relax.framework", exc_type=TVMMissing)
    return getattr(importlib.import_module(f"tvm_easyquant.relax.{module}"), name)


#: dictionary of rules -> the rows that need one there; the others, and why not
RULES = {
    "taken over": (lambda: take_over.RULES, set(OPERATORS)),
    "integers in numpy": (lambda: integer.RULES, RUNS),  # an input is fed, "float" is no integer
    "gradients": (lambda: gradient.RULES, RUNS),  # a float node passes nothing on, and its inputs count
    "QDQ": (lambda: qdq.RULES, set(OPERATORS) - {"input", "fake_quant"}),  # a table has no fake_quant
    "verified": (lambda: verify.EXACT, RUNS - MOVES),  # what moves is equal or wrong
    "Relay, integer": (lambda: relay("rewrite", "INTEGER"), RUNS),
    "Relay, moves": (lambda: relay("rewrite", "MOVES"), MOVES),
    "Relay, products": (lambda: relay("rewrite", "PRODUCTS"), PRODUCTS),
    "Relay, joins": (lambda: relay("rewrite", "JOINS"), JOIN),
    # the handle of a "float" is its rule
    "Relay, float": (lambda: relay("rewrite", "FLOAT"), set(OPERATORS) - {"input", "fake_quant", "float"}),
    "Relax, integer": (lambda: relax("rewrite", "INTEGER"), RUNS),
    "Relax, moves": (lambda: relax("rewrite", "MOVES"), MOVES),
    "Relax, float": (lambda: relax("rewrite", "FLOAT"), set(OPERATORS) - {"input", "fake_quant", "float"}),
}


@pytest.mark.parametrize("name", RULES)
def test_every_row_has_its_rule_and_every_rule_a_row(name):
    rules, wanted = RULES[name][0](), RULES[name][1]
    assert set(rules) == wanted and all(map(callable, map(_called, rules.values())))


def _called(rule):
    if isinstance(rule, gradient.Rule):
        return rule.back
    return rule.run if isinstance(rule, integer.Rule) else rule


@pytest.mark.parametrize("name", OPERATORS)
def test_a_row_says_what_its_operator_is(name):
    row = OPERATORS[name]
    assert row.name == name and row.integer in INTEGER
    assert set(INTEGER) == {r.integer for r in OPERATORS.values()}
    if row.layer:
        assert row.accumulates and not row.in_float
    with pytest.raises(GraphError, match=f"node n: {name} takes attributes"):
        Node("n", name, (), (1,), {"nonsense": 1})


def test_every_function_of_an_expression_is_known_to_every_place():
    assert set(expression.FUNCTIONS) == {*expression.UNARY, *expression.BINARY, *expression.PARAMETRIC}
    assert set(qdq.EXPRESSIONS) | {*expression.PARAMETRIC, "rsqrt"} == set(expression.FUNCTIONS)
    assert set(qdq.EXPRESSIONS.values()) < set(expression.ONNX)


def test_relay_has_every_function_of_an_expression():
    assert set(relay("rewrite", "EXPRESSIONS")) == set(expression.FUNCTIONS)


def test_every_operator_can_be_read_from_relax():
    """`relax.read` makes each of some call; a fake_quant only a quantized model has."""
    source = Path(importlib.import_module("tvm_easyquant").__file__).parent
    text = (source / "relax" / "read.py").read_text() + (source / "network" / "builder.py").read_text()
    made = {name for name in OPERATORS if f'"{name}"' in text}
    assert set(OPERATORS) - made == {"fake_quant"}


def test_rules_of_relay_operators_name_relay_operators():
    """Story: rules were found by spelling, and one for an operator that Relay does not have was dead."""
    pytest.importorskip("tvm.relay")
    import tvm

    known = set(tvm.ir.Op.list_op_names())
    for module, name in (
        ("read", "RULES"),
        ("read", "FIELDS"),
        ("float_op", "ONNX"),
        ("reference", "RULES"),
        ("meaning.rules", "RULES"),
    ):
        assert set(relay(module, name)) <= known, (module, name)


def test_rules_of_onnx_operators_name_onnx_operators():
    onnx = pytest.importorskip("onnx")
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert (
        set(uncovered.WHY) <= set(onnx_float.RULES) <= known
    )  # of another "is not covered" is all there is to say
    known |= {*onnx_quantized.LINEAR, "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}  # ONNX Runtime's
    assert set(onnx_quantized.RULES) <= known
    assert {op for row in OPERATORS.values() for op in row.onnx} <= known


def test_an_onnx_operator_called_like_a_method_is_no_rule():
    """Story: an operator was looked up as the method "_" + its name, so one called "finish" ended the walk."""
    onnx = pytest.importorskip("onnx")
    image = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4])
    made = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4])
    node = onnx.helper.make_node("finish", ["x"], ["y"], "n", domain="some.one")
    normal = onnx_quantized.normalize(
        onnx.helper.make_model(onnx.helper.make_graph([node], "g", [image], [made]))
    )
    assert [(n.op_type, n.name, n.domain) for n in normal.model.graph.node] == [("finish", "n", "some.one")]


def test_what_qdq_writes_is_what_the_rows_say():
    graph, images = networks.residual()
    table = eq.quantize(graph, images, method="minmax").table if importlib.util.find_spec("tvm") else None
    if table is None:
        pytest.skip("no TVM here")
    written = {node.name: node.op_type for node in qdq.to_qdq(graph, table).graph.node}
    for node in graph:
        if node.name in written and node.name not in graph.outputs:
            assert written[node.name] in node.operator.onnx, node.name


#: a name put together and looked up: getattr(x, "_" + op), getattr(x, f"_{op}"), globals()[...]
SPELLED = re.compile(
    r"""getattr\([^,()]+,\s*(?:f["']|["'][^"']*["']\s*[+%]|[^,()]+\+)|globals\(\)(?:\.get\(|\[)"""
)


@pytest.mark.parametrize("folder", ["tvm_easyquant", "topi_ext"])
def test_nothing_is_dispatched_by_spelling(folder):
    found = {
        f"{path.relative_to(ROOT)}: {match}"
        for path in (ROOT / folder).rglob("*.py")
        for match in SPELLED.findall(path.read_text())
    }
    assert not found


def test_the_check_above_can_fail():
    for line in (
        'getattr(self, f"_{op}", None)',
        'getattr(self, "_op_" + name)',
        'globals().get("_" + name)',
    ):
        assert SPELLED.search(line)
    assert not SPELLED.search('getattr(handle, "to_onnx", None)')


def test_signs():
    """A sign follows from what the operator is, and from its inputs'."""

    def sign(op, inputs, **attrs):
        return OPERATORS[op].nonnegative(Node("n", op, (), (1,), attrs), inputs)

    assert sign("clip", False, lo=0.0, hi=6.0) and not sign("clip", False, lo=-1.0, hi=6.0)
    assert sign("clip", True, lo=-1.0, hi=6.0) and sign("add", True) and not sign("add", False)
    assert sign("elementwise", False, expression=("sigmoid", "x"))
    assert not any(OPERATORS[op].nonnegative(None, True) for op in ("conv2d", "dense", "float", "input"))


def test_an_input_is_fed_and_does_not_run():
    with pytest.raises(AssertionError, match="image is an input"):
        ops.evaluate(Node("image", "input", (), (1, 4)), np.zeros((1, 4), np.float32))
