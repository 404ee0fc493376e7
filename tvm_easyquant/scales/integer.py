"""The quantized network in numpy, node by node: exactly what the compiled module computes.

`Sample` carries one input through the float and the quantized network side by side. The search uses
it to see each layer behind the quantized prefix; `run_integer` is the plain forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from topi_ext import reference
from topi_ext.function import REACH, Fused, fuse, of_sum
from topi_ext.function import apply as apply_function

from ..errors import RangeError
from ..network import expression, ops, resample
from ..network.graph import Graph
from ..network.layout import to_nchw, to_nhwc
from ..network.node import Node
from ..network.ops import evaluate, linear
from .numerics import QuantConfig, Scale, integer_limits, quantize_bias, quantize_weight, ungained
from .partition import Plan, clip_limits

if TYPE_CHECKING:
    from .table import ScaleTable


def integer_weight(node: Node, scales: np.ndarray, bits: int, rounding=None, lowest=None) -> np.ndarray:
    """The node's weights as int8, in the node's own layout; rounding, lowest: see `quantize_weight`."""
    flat = node.weight.reshape(-1, node.channels)
    return quantize_weight(flat, scales, bits, rounding, lowest).reshape(node.weight.shape)


def function_values(node: Node, scale: Scale) -> np.ndarray:
    """float32 (256,): an elementwise node's function of every stored value of its input; 0 where that is
    not a number (the logarithm of a negative step, which nobody stores)."""
    stored = np.arange(256, dtype=np.uint8)
    real = reference.dequantize(stored, scale.scale, scale.zero_point)
    values = expression.compute(node.attrs["expression"], real)
    return np.where(np.isnan(values), np.float32(0), values)


class Stored(NamedTuple):
    """A tensor as a node stores it: in steps of ``scale``, clipped to the stored range lo..hi that the clip
    fused to it, if there is one, leaves. function: the expression of the function fused to it, or None."""

    tensor: str
    scale: Scale
    lo: int
    hi: int
    function: object = None

    def fused(self, unit) -> Fused:
        """How a requantize makes it of an accumulator in steps of ``unit``, float32 () or (K,); the limits
        are in steps, without the zero point."""
        zero, function = self.scale.zero_point, "x" if self.function is None else self.function
        return fuse(function, unit, self.scale.scale, self.lo - zero, self.hi - zero)


class Scales:
    """The scales a walk uses: what a `ScaleTable` holds, mutable while they are searched.

    activations: site -> Scale, None while undecided; weights: layer -> float32 (K,); rounding,
    biases and gains: as in the table, for the layers that have them.
    """

    def __init__(
        self, graph: Graph, plan: Plan, config: QuantConfig, activations, weights,
        rounding=(), biases=(), gains=(),
    ):  # fmt: skip
        self.graph, self.plan, self.config = graph, plan, config
        self.activations: dict[str, Scale | None] = dict(activations)
        self.weights: dict[str, np.ndarray] = dict(weights)
        self.rounding: dict[str, np.ndarray] = dict(rounding)
        self.biases: dict[str, np.ndarray] = dict(biases)
        self.gains: dict[str, np.ndarray] = dict(gains)

    @classmethod
    def of_table(cls, graph: Graph, plan: Plan, table) -> Scales:
        return cls(
            graph,
            plan,
            table.config,
            table.activations,
            table.weights,
            table.rounding,
            table.biases,
            table.gains,
        )

    def copy(self) -> Scales:
        """Another one that shares no dict with this one."""
        return self.of_table(self.graph, self.plan, self)

    def integer_weight(self, node: Node) -> np.ndarray:
        """int8, in the node's own layout."""
        bits, rounding = self.config.bits_of(node.name), self.rounding.get(node.name)
        return integer_weight(node, self.rounding_scale(node), bits, rounding, self.config.lowest_weight)

    def rounding_scale(self, node: Node) -> np.ndarray:
        """float32 (K,): what its weights are divided by before they are rounded."""
        return ungained(self.weights[node.name], self.gains.get(node.name))

    def bias(self, node: Node) -> np.ndarray:
        """float32 (K,): the node's bias, or the corrected one of the table."""
        return self.biases.get(node.name, node.bias)

    def integer_bias(self, node: Node) -> np.ndarray:
        """int32 (K,), in steps of the accumulator."""
        scale = self.decided(node.inputs[0]).scale
        return quantize_bias(self.bias(node), scale, self.weights[node.name], node.name)

    def of(self, tensor: str) -> Scale | None:
        """The scale of the tensor's site; None while it is undecided."""
        return self.activations[self.plan.site_of[tensor]]

    def decided(self, tensor: str) -> Scale:
        """The scale of the tensor's site, which is decided."""
        scale = self.of(tensor)
        assert scale is not None, tensor  # noqa: S101  # a mistake of ours, not of a user
        return scale

    def unit(self, node: Node) -> np.ndarray | np.floating:
        """float32: real units per step of the node's int32 accumulator, () or (K,)."""
        return np.float32(self.decided(node.inputs[0]).scale) * self.factor(node)

    def factor(self, node: Node) -> np.ndarray | np.float32:
        """float32, () or (K,): what a step of its input is multiplied by in a step of its accumulator."""
        return RULES[node.op].factor(node, self)

    def stored(self, node: Node) -> Stored:
        """What an integer node stores, the scale of its site decided."""
        target = self.plan.stored(node, self.graph)
        scale = self.decided(target)
        return Stored(target, scale, *integer_limits(scale, node_limits(node, self)), self.function(node))

    def function(self, node: Node):
        """The expression of the function that is fused to ``node``, None if there is none."""
        fused = self.graph[self.plan.stored(node, self.graph)]
        return fused.attrs["expression"] if fused.op == "elementwise" and fused is not node else None


def check_range(node: Node, weight: np.ndarray, source: Scale) -> None:
    """Prove from a layer's integer weights that its accumulator fits int32 for every input.

    weight: int8, in the node's own layout; source: the scale of its input. Raises RangeError.
    """
    reach = max(source.hi - source.zero_point, source.zero_point - source.lo, source.zero_point)
    worst = int(np.abs(weight.astype(np.int64)).sum(axis=(0, 1, 2)).max()) * reach
    if worst > 2**30:  # the other half of int32 is the bias
        raise RangeError(node.name, f"its int32 accumulator may reach {worst}, beyond 2**30")


def check_reach(node: Node, scales: Scales, weight: np.ndarray, bias: np.ndarray) -> None:
    """Prove that the function fused to a layer is asked for numbers within its `REACH` only; RangeError.

    weight: int8, in the node's own layout; bias: int32 (K,).
    """
    if scales.function(node) is None:
        return
    source = scales.decided(node.inputs[0])
    most = max(source.hi - source.zero_point, source.zero_point - source.lo)
    acc = np.abs(weight.astype(np.int64)).sum(axis=(0, 1, 2)) * most + np.abs(bias.astype(np.int64))
    worst = float((acc * np.asarray(scales.unit(node), np.float64)).max())
    if not worst <= REACH:
        raise RangeError(node.name, f"its output may reach {worst:g}, beyond the {REACH:g} of its function")


def check_ranges(graph: Graph, table) -> None:
    """RangeError if a layer's accumulator or bias does not fit int32; TableError if the table is not
    the graph's."""
    graph = table.prepared(graph)
    for error in misfits(graph, table.check(graph), table).values():
        raise error


def misfits(graph: Graph, plan: Plan, table) -> dict[str, RangeError]:
    """The integer layers whose accumulator or bias does not fit int32, in order."""
    scales, found = Scales.of_table(graph, plan, table), {}
    for node in graph.compute_nodes:
        if node.name in plan.integer:
            try:
                weight = scales.integer_weight(node)
                check_range(node, weight, scales.decided(node.inputs[0]))
                check_reach(node, scales, weight, scales.integer_bias(node))
            except RangeError as error:
                found[node.name] = error
    return found


def may_overflow(node: Node, bits: int) -> bool:
    """Whether a layer has so many weights a channel that `check_range` could fail, whatever they are."""
    return prod(node.weight.shape[:3]) * 2 ** (bits - 1) * 255 > 2**30


class Sample:
    """One input on its way through the network.

    floats: tensor -> its value in the float network. stored: tensor -> uint8. real: tensor ->
    float32, made by float nodes. raw: what a producer has before it is stored: an int32 accumulator,
    or float32 where it computes ``in_float``; kept while the scale of its site is undecided. ran: nodes
    that have run. gone: tensors that nobody needs any more. watch(node, raw): is shown what each produces.
    """

    def __init__(
        self, feed: Mapping[str, np.ndarray], watch: Callable[[Node, np.ndarray], None] | None = None
    ):
        self.feed, self.watch = feed, watch
        self.floats: dict[str, np.ndarray] = {}
        self.stored: dict[str, np.ndarray] = {}
        self.real: dict[str, np.ndarray] = {}
        self.raw: dict[str, np.ndarray] = {}
        self.ran: set[str] = set()
        self.gone: set[str] = set()

    def copy(self) -> Sample:
        """Another one where this one is, not watched; it shares the tensors, which do not change."""
        made = Sample(self.feed)
        for name in ("floats", "stored", "real", "raw"):
            getattr(made, name).update(getattr(self, name))
        made.ran |= self.ran
        made.gone |= self.gone
        return made

    def advance_float(self, node: Node) -> None:
        if node.op == "input":
            self.floats[node.name] = to_nhwc(self.feed[node.name])
        else:
            self.floats[node.name] = evaluate(node, *(self.floats[t] for t in node.inputs))

    def stored_value(self, tensor: str, scales: Scales) -> np.ndarray:
        """The tensor as uint8; a float node's or an input's value is quantized here."""
        if tensor not in self.stored:
            s = scales.decided(tensor)
            self.stored[tensor] = reference.quantize(self.real[tensor], s.scale, s.zero_point, s.lo, s.hi)
        return self.stored[tensor]

    def real_value(self, tensor: str, scales: Scales) -> np.ndarray:
        """The tensor as float32, as a float node reads it."""
        if tensor in self.real:
            return self.real[tensor]
        s = scales.decided(tensor)
        return reference.dequantize(self.stored_value(tensor, scales), s.scale, s.zero_point)

    def advance(self, node: Node, scales: Scales) -> None:
        """Run one node of the quantized network; its input sites must be decided."""
        plan = scales.plan
        self.ran.add(node.name)
        if node.op == "input":
            self.real[node.name] = to_nhwc(self.feed[node.name])
        elif node.name in plan.fused:
            pass  # done by its producer
        elif node.name not in plan.integer:
            inputs = [self.real_value(t, scales) for t in node.inputs]
            self.real[node.name] = evaluate(node, *inputs)
        elif node.operator.moves:
            if scales.of(node.name) is not None:
                self._move(node, scales)
        else:
            raw = self._run(node, scales)
            if self.watch is not None:
                self.watch(node, raw)
            if node.name in plan.accumulators:
                self.real[node.name] = reference.dequantize(raw, scales.unit(node), 0)
                return
            self.raw[node.name] = raw
            target = plan.stored(node, scales.graph)
            if scales.of(target) is not None:
                self.store(node, scales)

    def _run(self, node, scales):
        return RULES[node.op].run(node, scales, *(self.stored_value(t, scales) for t in node.inputs))

    def _move(self, node, scales):
        self.stored[node.name] = self._run(node, scales)

    def unstored(self, node: Node, scales: Scales) -> np.ndarray:
        """What ``node`` and what is fused to it produced, as float32 before it is rounded to its site."""
        raw = self.raw[node.name]
        value = raw if node.operator.in_float else reference.dequantize(raw, scales.unit(node), 0)
        if (function := scales.function(node)) is not None:
            return expression.compute(function, value)
        lo, hi = node_limits(node, scales)
        return np.clip(value, np.float32(lo), np.float32(hi))

    def store(self, node: Node, scales: Scales) -> None:
        """Round what ``node`` produced to the scale of its site, by the norm."""
        made, raw = scales.stored(node), self.raw.pop(node.name)
        target, s, lo, hi, function = made
        zero = s.zero_point
        if node.operator.in_float:
            value = raw if function is None else apply_function(of_sum(function), raw)
            self.stored[target] = reference.quantize(value, s.scale, zero, lo, hi)
        else:
            how, factor, other, lo, hi = made.fused(scales.unit(node))
            self.stored[target] = reference.requantize(raw, factor, zero, lo + zero, hi + zero, how, other)

    def settle(self, tensors, scales: Scales) -> None:
        """Store what waited for the scale of a site; ``tensors``: the site's, in topological order."""
        for tensor in tensors:
            node = scales.graph[scales.plan.fused.get(tensor, tensor)]
            if node.name in self.raw:
                self.store(node, scales)
            elif node.operator.moves and node.name in scales.plan.integer and node.name in self.ran:
                self._move(node, scales)
        self.forget(self.gone.intersection(tensors), scales)

    def forget(self, tensors, scales: Scales) -> None:
        """Drop tensors that nobody needs any more.

        What waits for the scale of its site stays: the moves that read it run when that is settled.
        """
        for tensor in tensors:
            self.gone.add(tensor)
            self.floats.pop(tensor, None)
            if tensor not in scales.plan.site_of or scales.of(tensor) is not None:
                self.stored.pop(tensor, None)
                self.real.pop(tensor, None)


# -- the rules


def _steps(node, scales, q, i=0) -> np.ndarray:
    """int32: the stored ``q`` of the node's input ``i``, less its zero point."""
    return q.astype(np.int32) - np.int32(scales.decided(node.inputs[i]).zero_point)


def _convolve(node, q, weight, zero_point):
    return reference.conv2d(q, weight, zero_point=zero_point, **node.attrs)


def _dense(node, q, weight, zero_point):
    return reference.dense(q, weight[0, 0].T, zero_point=zero_point)


def _layer(exact):
    """The rule of a layer: in float32 where that is exact, else ``exact(node, q, weight, zero point)``."""

    def run(node, scales, q):
        s = scales.decided(node.inputs[0])
        weight, bias = scales.integer_weight(node), scales.integer_bias(node)
        flat = np.abs(weight.reshape(-1, node.channels))
        reach = max(s.hi - s.zero_point, s.zero_point - s.lo)
        if reach * flat.sum(axis=0, dtype=np.int64).max() < 2**24:  # float32 holds every partial sum
            acc = linear(q.astype(np.float32) - np.float32(s.zero_point), node, weight.astype(np.float32))
            return acc.astype(np.int32) + bias  # which is within 2**30
        acc = exact(node, q, weight, s.zero_point)
        return reference.as_int32(acc.astype(np.int64) + bias, f"layer {node.name}")

    return run


def _sum(node, scales, *q):
    s = [scales.decided(t) for t in node.inputs]
    left, right = (reference.dequantize(x, z.scale, z.zero_point) for x, z in zip(q, s, strict=True))
    return reference.JOINS[node.op](left, right)


def _product(node, scales, a, b):
    return _steps(node, scales, a) * _steps(node, scales, b, 1)


def _contract(node, scales, a, b):
    zeros = dict(
        zip(("zero_a", "zero_b"), (scales.decided(t).zero_point for t in node.inputs), strict=True)
    )
    return to_nhwc(reference.product(to_nchw(a), to_nchw(b), **zeros))


def _lookup(node, scales, q):
    return function_values(node, scales.decided(node.inputs[0]))[q]


def _average(node, scales, q):
    a = node.attrs
    window = (a["pool_size"], a["strides"], a["padding"], (1, 1), 0)
    return reference.windows(_steps(node, scales, q), *window).sum(axis=(3, 4), dtype=np.int32)


def _mean_within(node, scales, q):
    return _average(node, scales, q) * ops.mean_shares(node)


def _reduce_mean(node, scales, q):
    return _steps(node, scales, q).sum(axis=node.attrs["axes"], keepdims=True, dtype=np.int32)


def _layer_norm(node, scales, q):
    a, source = node.attrs, scales.decided(node.inputs[0])
    epsilon = reference.spread_epsilon(a["epsilon"], q.shape[-1], source.scale)
    return reference.layer_norm(q, np.float32(a["scale"]), np.float32(a["shift"]), epsilon)


def _resize_linear(node, scales, q):
    zero = scales.decided(node.inputs[0]).zero_point
    return reference.resize_linear(q, *resample.tables(node.attrs), zero_point=zero)


def _max_pool(node, scales, q):
    return reference.max_pool2d(q, **node.attrs)


def _pad(node, scales, q):
    return ops.pad(node, q, scales.decided(node.name).zero_point)


def _move(node, scales, *q):
    """What the operator means, on integers."""
    return evaluate(node, *q)


def _weight_scale(node, scales):
    return np.asarray(scales.weights[node.name], np.float32)


def _share(node, scales):
    return np.float32(1) / np.float32(prod(node.attrs["pool_size"]))


def _share_along(node, scales):
    before = scales.graph[node.inputs[0]].shape
    return np.float32(1) / np.float32(prod(before[axis] for axis in node.attrs["axes"]))


def _share_within(node, scales):
    return np.float32(1) / np.float32(ops.mean_parts(node))


def _part(node, scales):
    return np.float32(1) / np.float32(resample.parts(node.attrs))


def _other_scale(node, scales):
    return np.float32(scales.decided(node.inputs[1]).scale)


class Rule(NamedTuple):
    """run(node, scales, *stored inputs): what a node makes of them: uint8 if it moves, else what its
    operator's ``integer`` says. factor(node, scales): of the input's step, in a step of the accumulator."""

    run: Callable[..., np.ndarray]
    factor: Callable[[Node, Scales], np.ndarray | np.float32] = lambda node, scales: np.float32(1)


#: operator -> its integers in numpy, for all that runs in integers
RULES = {
    "conv2d": Rule(_layer(_convolve), _weight_scale),
    "dense": Rule(_layer(_dense), _weight_scale),
    "add": Rule(_sum),
    "sub": Rule(_sum),
    "max": Rule(_sum),
    "min": Rule(_sum),
    "mul": Rule(_product, _other_scale),
    "matmul": Rule(_contract, _other_scale),
    "elementwise": Rule(_lookup),
    "concat": Rule(_move),
    "max_pool2d": Rule(_max_pool),
    "avg_pool2d": Rule(_average, _share),
    "mean_pool2d": Rule(_mean_within, _share_within),
    "reduce_mean": Rule(_reduce_mean, _share_along),
    "reduce_max": Rule(_move),
    "layer_norm": Rule(_layer_norm),
    "clip": Rule(_steps),
    "reshape": Rule(_move),
    "transpose": Rule(_move),
    "slice": Rule(_move),
    "pad": Rule(_pad),
    "resize": Rule(_move),
    "gather": Rule(_move),
    "resize_linear": Rule(_resize_linear, _part),
    "depth_to_space": Rule(_move),
}


def node_limits(node: Node, scales: Scales) -> tuple[float, float]:
    """Real limits of what ``node`` stores: its own if it is a clip, else those of the fused clip."""
    if node.op == "clip":
        return node.attrs["lo"], node.attrs["hi"]
    return clip_limits(scales.graph, scales.plan, node)


def last_uses(graph: Graph) -> dict[str, list[str]]:
    """node -> the tensors nobody needs after it has run."""
    last = {}
    for node in graph:
        last[node.name] = node.name
        for tensor in node.inputs:
            last[tensor] = node.name
    dead: dict[str, list[str]] = {}
    for tensor, node_name in last.items():
        if tensor not in graph.outputs:
            dead.setdefault(node_name, []).append(tensor)
    return dead


def run_integer(
    graph: Graph, table: ScaleTable, feed: Mapping[str, np.ndarray] | np.ndarray
) -> dict[str, np.ndarray]:
    """Outputs of the quantized network for one input (see `Graph.run`), in the model's own layout.

    Equal, bit for bit, to the compiled module. Raises TableError if the table does not fit.
    """
    graph = table.prepared(graph)
    plan = table.check(graph)
    scales = Scales.of_table(graph, plan, table)
    sample = Sample(graph.check_inputs(feed))
    for node in graph:
        sample.advance(node, scales)
    return {t: to_nchw(sample.real_value(t, scales)) for t in graph.outputs}
