"""The record of each layer and join, against what `LowerInteger` matches in the rewritten module."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import golden_networks
import networks
import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import autotvm, relay

import tvm_easyquant as eq
from topi_ext import cost, isa, manifest, reference
from topi_ext.lower import LowerInteger
from topi_ext.relay.op import CONV2D, JOINS
from tvm_easyquant.network.ops import OPERATORS
from tvm_easyquant.relay.tune import layer_choices, tasks
from tvm_easyquant.scales.layers import records

TARGET = "llvm -mcpu=core-avx2"  # kernels of several packings


def calls_of(module, prefix):
    found = []

    def visit(expr):
        if isinstance(expr, relay.Call) and str(getattr(expr.op, "name", "")).startswith(prefix):
            found.append(expr)

    relay.analysis.post_order_visit(module["main"], visit)
    return found


def compare(graph, table):
    """Every layer and every join of the lowered module, field by field; returns the records."""
    lower = LowerInteger(TARGET)
    lowered = lower(eq.rewrite(graph, table))
    mine = records(graph, table)
    matched = {layer.name: layer for layer in lower.layers}
    assert list(mine.layers) == list(matched)  # in the same order
    calls = {call.span.source_name.name: call for call in calls_of(lowered, CONV2D)}
    assert set(mine.layers) == set(matched) == set(calls) and len(lower.layers) == len(matched)
    for name, layer in mine.layers.items():
        assert asdict(layer.spec) == asdict(matched[name].spec), name
        np.testing.assert_array_equal(layer.weight, matched[name].weight)
        assert str(calls[name].attrs["spec"]) == layer.spec.to_json()
        row = manifest.kernel(str(calls[name].attrs["kernel"]))
        constants = row.pack(*layer.convolution)
        arguments = calls[name].args[1 : 1 + len(constants)]  # what the kernel is given
        for array, argument in zip(constants, arguments, strict=True):
            np.testing.assert_array_equal(array, argument.data.numpy())
        assert (layer.residual is None) == (len(calls[name].args) == 1 + len(constants))
    wanted = Counter(json.dumps(numbers(join), sort_keys=True) for join in mine.joins.values())
    joins = [call for name in (*JOINS.values(), "easyquant.mul") for call in calls_of(lowered, name)]
    assert Counter(str(call.attrs["numbers"]) for call in joins) == wanted
    return mine


def numbers(join):
    (a, b), (_, made, lo, hi, _) = join.scales, join.output
    out = {"a_zero_point": a.zero_point, "b_zero_point": b.zero_point, "lo": lo, "hi": hi,
           "zero_point": made.zero_point}  # fmt: skip
    if join.op == "mul":
        return {**out, "multiplier": float(reference.multiplier(a.scale, b.scale, made.scale))}
    return {**out, "a_scale": a.scale, "b_scale": b.scale, "scale": made.scale}


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("skip", [(), ("dw",), ("join",), ("down",), ("pw", "left")])
def test_the_residual_network(bits, skip):
    graph, images = networks.residual()
    found = compare(graph, eq.quantize(graph, images, method="minmax", bits=bits, skip=skip).table)
    if not skip:
        assert found.layers["pw"].residual == "stem.relu" and found.layers["pw"].output == "join.relu"
        assert found.layers["avg"].spec.depthwise and found.layers["down"].data == "pool"
        assert found.layers["logits"].spec.epilogue == "dequantize" and not found.joins


@pytest.mark.parametrize("relu", [True, False])
def test_the_chain(relu):
    graph, images = networks.chain(relu=relu)
    compare(graph, eq.quantize(graph, images, method="minmax", equalize=relu).table)


@pytest.mark.parametrize("options", [{}, {"batch": 2}, {"island": True}, {"norm": False}])
def test_the_onnx_network(options):
    graph = eq.load_onnx(networks.small_onnx(**options), batch=options.get("batch", 1))
    x = np.random.default_rng(0).standard_normal((4, options.get("batch", 1), 3, 8, 8)).astype(np.float32)
    compare(graph, eq.quantize(graph, list(x), method="minmax").table)


def same_choices(graph, table, target):
    """The kernels chosen from the record, proofs, reasons and all, against those of the module; them."""
    lower = LowerInteger(target)
    lower(eq.rewrite(graph, table))
    mine = layer_choices(graph, table, target)
    assert [(c.name, c.spec, c.choice) for c in mine] == [(c.name, c.spec, c.choice) for c in lower.layers]
    for a, b in zip(mine, lower.layers, strict=True):
        np.testing.assert_array_equal(a.weight, b.weight)
    return {layer.name: layer.choice for layer in mine}


def test_a_choice_needs_no_module(monkeypatch):
    """`plan` and the costs of ``max_drop`` wrote a Relay module and matched it back, for every table asked."""
    from topi_ext.relay import lower
    from tvm_easyquant.host import installed
    from tvm_easyquant.relay import rewrite

    graph, table = quantized("residual", 7)
    for where, name in ((rewrite, "_Rewriter"), (lower, "_Lowering")):
        monkeypatch.setattr(where, name, None)
    host = installed()
    names = [layer.name for layer in host.layer_choices(graph, table, TARGET)]
    assert list(host.layer_times(graph, table, TARGET)) == names and "pw" in names


def quantized(name, bits):
    """A network of the golden files under its stored table."""
    graph, _ = golden_networks.NETWORKS[name]()
    stored = Path(__file__).parent / "golden" / "tables" / f"{name}.minmax.int{bits}.json"
    return graph, eq.ScaleTable.load(stored)


@pytest.mark.parametrize("name", golden_networks.NETWORKS)
def test_the_networks_of_the_golden_files(name):
    compare(*quantized(name, 7))


@pytest.mark.parametrize("name", golden_networks.NETWORKS)
def test_the_choice_on_every_instruction_set(name):
    graph, table = quantized(name, 7)
    for row in isa.ISAS.values():
        arch = "" if row.arch else " -mtriple=x86_64-linux-gnu"
        same_choices(graph, table, row.target + arch)


@pytest.mark.parametrize("bits", [7, 8])
def test_the_choice_for_weights_in_memory(monkeypatch, bits):
    """With more weights than the cache holds, kernels are chosen by other costs."""
    graph, table = quantized("residual", bits)
    warm = same_choices(graph, table, TARGET)
    monkeypatch.setattr(cost, "CACHE_BYTES", 1000)
    assert same_choices(graph, table, TARGET) != warm


def test_the_choice_by_tuning_records():
    """A record of a slower kernel alone makes it the chosen one."""
    graph, table = quantized("residual", 7)
    target = tvm.target.Target(TARGET)
    before = same_choices(graph, table, target)
    layer = next(layer for layer in layer_choices(graph, table, target) if layer.name == "down")
    task = tasks([layer], target)[1]  # of the next best
    record = (
        autotvm.MeasureInput(target, task, task.config_space.get(0)),
        autotvm.MeasureResult([1e-9], 0, 0, 0),
    )
    with autotvm.apply_history_best([record]):
        after = same_choices(graph, table, target)
    assert after["down"].reason == "tuned: 0 us" and after["down"].kernel != before["down"].kernel
    assert {name for name in before if before[name] != after[name]} == {"down"}


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_random_networks(seed):
    graph, images = networks.random_graph(seed)
    compare(graph, eq.quantize(graph, images, method="minmax", bits=7 + seed % 2).table)


def test_random_networks_have_everything():
    """The generator: fused and unfused joins, both sides of a residual, float and integer readers."""
    seen = Counter()
    for seed in range(60):
        graph, images = networks.random_graph(seed)
        found = records(graph, eq.quantize(graph, images, method="minmax").table)
        for layer in found.layers.values():
            residual = layer.spec.residual
            seen[layer.spec.epilogue if residual is None else f"first {residual.own_first}"] += 1
            seen["narrow data"] += layer.spec.data_max < 255
        seen.update(join.op for join in found.joins.values())
    wanted = ("requantize", "dequantize", "first True", "first False", "add", "mul", "narrow data")
    assert min(seen[key] for key in wanted) > 3, seen


#: between them they have every operator that runs in integers
EVERY_OPERATOR = {
    make.__name__: make
    for make in (
        networks.residual,
        networks.turned,
        networks.joined,
        networks.resized,
        networks.attended,
        networks.normalized,
        golden_networks.gate,
        golden_networks.functions,
        golden_networks.moves,
        golden_networks.pools,
    )
}


@pytest.mark.parametrize("name", EVERY_OPERATOR)
def test_networks_with_every_operator(name):
    graph, images = EVERY_OPERATOR[name]()
    compare(graph, eq.quantize(graph, images, method="minmax").table)


def test_no_operator_is_without_a_layer_behind_it():
    """Story: the lowering did not know a new operator that moves; proofs behind it began at 255, and the
    slower kernel was taken without a word."""
    between = set()
    for make in EVERY_OPERATOR.values():
        graph, _ = make()
        below: dict[str, set] = {}  # tensor -> the operators since the last layer
        for node in graph:
            above = set().union(*(below[tensor] for tensor in node.inputs)) if node.inputs else set()
            if node.operator.layer:
                between |= above
            below[node.name] = {node.op} if node.operator.layer else above | {node.op}
    assert between == {name for name, row in OPERATORS.items() if row.integer != "float"} - {"dense"}
