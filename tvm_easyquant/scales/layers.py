"""One record per integer layer and per join: what a host emits a kernel from, derived once from a graph and
its table. No TVM here.

A layer is what runs as an integer convolution: a convolution, a dense layer (1x1 on a 1x1 map), or the
window sums of an average pool (a depthwise convolution with ones). The clip or function that follows it is
fused into its requantize, and so is a residual add, where the layer's tensor has no other reader and no
function was fused. A join is every other add, and every sub, max, min and mul of two stored tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from topi_ext import reference
from topi_ext.conv2d import Convolution, ConvSpec, Residual, fold_zero_point, is_far
from topi_ext.function import of_sum

from ..errors import TuneError
from ..network.graph import Graph
from ..network.node import Node
from .integer import Scales, Stored, check_range, function_values
from .numerics import Scale
from .table import ScaleTable

if TYPE_CHECKING:  # it imports the kernels, and they TVM
    from topi_ext.planner import LayerChoice


@dataclass(frozen=True)
class Join:
    """An operator of two stored tensors.

    name, op: its node's. inputs: the two tensors, ``scales`` theirs. output: what it makes.
    """

    name: str
    op: str
    inputs: tuple[str, str]
    scales: tuple[Scale, Scale]
    output: Stored


@dataclass(frozen=True)
class Layer:
    """One integer layer with all that is fused into it.

    name: its node's. spec: its shape, its zero points, the largest value its data can hold (``data_max``),
    its epilogue with the stored range (lo, hi) that the fused clip leaves, and the residual's numbers.
    weight: int8 (R, S, C / groups, K), in steps of ``weight_scale``, float32 () or (K,). bias: int32 (K,),
    in steps of the accumulator. data: the stored tensor that it reads, of scale ``source``. own: what it
    stores, or would if no add were fused; None where only float nodes read it. join: the add that is fused,
    None if there is none.
    """

    name: str
    spec: ConvSpec
    weight: np.ndarray = field(repr=False)
    weight_scale: np.ndarray | np.float32 = field(repr=False)
    bias: np.ndarray = field(repr=False)
    data: str
    source: Scale
    own: Stored | None
    join: Join | None

    @property
    def unit(self) -> np.ndarray | np.floating:
        """float32, () or (K,): real units per step of the accumulator."""
        return np.float32(self.source.scale) * self.weight_scale

    @property
    def convolution(self) -> Convolution:
        """What its kernel is chosen by: the zero point folded into the bias; multipliers of the requantize,
        with the second vector of its function, or of the dequantize where only float nodes read it."""
        bias = fold_zero_point(self.bias, self.weight, self.source.zero_point)
        steps: list[Any] = [self.unit]
        if self.own is not None:
            fused = self.own.fused(self.unit)
            steps = [fused.multiplier] if fused.other is None else [fused.multiplier, fused.other]
        channels = np.stack([np.broadcast_to(step, (self.spec.out_channels,)) for step in steps])
        return Convolution(self.spec, self.weight, bias, channels[0] if len(steps) == 1 else channels)

    @property
    def residual(self) -> str | None:
        """The other stored tensor of the add that is fused, None if there is none."""
        if self.own is None or self.join is None:
            return None
        return self.join.inputs[1 if self.join.inputs[0] == self.own.tensor else 0]

    @property
    def output(self) -> str:
        """The tensor that it makes: the fused add's or clip's, if there is one."""
        made = self.own if self.join is None else self.join.output
        return self.name if made is None else made.tensor

    def apart(self) -> Layer:
        """The layer without the add: it stores ``own``, as a tap of that wants it."""
        alone = replace(self.spec, residual=None, **_epilogue(self.own, None, self.unit))
        return replace(self, spec=alone, join=None)


@dataclass(frozen=True)
class Records:
    """The records of a network by the names of their nodes: its layers, and the joins that no layer does.

    Their order is that of a walk from the outputs back: each behind all that it reads, residuals too.
    scales: what they were derived from, with the graph as the table prepares it, and its plan.
    """

    layers: Mapping[str, Layer]
    joins: Mapping[str, Join]
    scales: Scales = field(repr=False)


def records(graph: Graph, table: ScaleTable) -> Records:
    """The records of ``graph`` under ``table``; TableError if they do not fit, OverflowError if a bias or
    accumulator does not fit int32."""
    graph = table.prepared(graph)
    return _Deriver(graph, table).records()


def choices(graph: Graph, table: ScaleTable, choose: Callable) -> list[LayerChoice]:
    """The kernel of every integer layer of a graph under its table, from the layers' record.

    choose: of a host, convolutions -> (choice, packed arrays) of each.
    """
    from topi_ext.planner import LayerChoice

    layers = list(records(graph, table).layers.values())
    chosen = choose([layer.convolution for layer in layers])
    return [
        LayerChoice(layer.name, layer.spec, layer.weight, choice)
        for layer, (choice, _) in zip(layers, chosen, strict=True)
    ]


def stored_times(layers: Sequence[LayerChoice], target) -> dict[str, float]:
    """{layer: microseconds of the kernel chosen, by the stored costs}; TuneError where one has none."""
    from topi_ext.planner import microseconds

    times = {}
    for layer in layers:
        row = layer.choice.kernel
        time = microseconds(row, layer.spec, layer.weight)
        if time is None:
            raise TuneError(
                f"kernel {row.name} of layer {layer.name} has no stored time: bits cannot be chosen by "
                f"time for target '{target}'; take bits 7 or 8{_measured_instead(row.isa)}"
            )
        times[layer.name] = time
    return times


def _measured_instead(row: str) -> str:
    """The end of a sentence: a target whose kernels run where those of ``row`` do, and were measured."""
    from topi_ext import cost, isa, manifest

    for name in isa.usable(row)[1:-1]:
        if any(kernel.isa == name and kernel.name in cost.costs() for kernel in manifest.KERNELS):
            return f", or the target '{isa.ISAS[name].target}', which was measured"
    return ""


class _Deriver:
    def __init__(self, graph: Graph, table: ScaleTable):
        self.graph, self.plan = graph, table.check(graph)
        self.scales = Scales.of_table(graph, self.plan, table)
        self.bounds: dict[str, int] = {}

    def records(self) -> Records:
        absorbing = {}  # add -> the layer that it is fused into
        for node in self.graph:
            adds = node.name in self.plan.integer and node.op == "add"
            alike = adds and len({self.graph[t].shape for t in node.inputs}) == 1
            if alike and (layer := self._absorbing(node)):
                absorbing[node.name] = layer
        layers, joins, absorbed = {}, {}, set(absorbing.values())
        for node in map(self.graph.__getitem__, self._order()):
            if node.name not in self.plan.integer:
                continue
            if node.name in absorbing:
                name = absorbing[node.name]
                layers[name] = self._layer(self.graph[name], self._join(node))
            elif node.operator.integer in ("sum", "product"):
                joins[node.name] = self._join(node)
            elif self._convolves(node) and node.name not in absorbed:
                layers[node.name] = self._layer(node, None)
        return Records(layers, joins, self.scales)

    def _order(self) -> list[str]:
        """Nodes from the outputs back, each behind all that it reads, the first input's first; in the end
        those that no output needs."""
        order: dict[str, None] = {}
        waiting = [*reversed(self.graph.nodes), *reversed(self.graph.outputs)]
        while waiting:
            unmade = [tensor for tensor in self.graph[waiting[-1]].inputs if tensor not in order]
            if unmade:
                waiting.append(unmade[0])
            else:
                order.setdefault(waiting.pop())
        return list(order)

    # -- joins

    def _join(self, node: Node) -> Join:
        a, b = node.inputs
        return Join(
            node.name,
            node.op,
            (a, b),
            (self.scales.decided(a), self.scales.decided(b)),
            self.scales.stored(node),
        )

    def _absorbing(self, add: Node) -> str | None:
        """The layer that the add is fused into: a convolution whose tensor nobody else reads."""
        for tensor in add.inputs:
            node = self.graph[self.plan.fused.get(tensor, tensor)]
            convolution = node.name in self.plan.integer and node.op != "dense" and self._convolves(node)
            if convolution and self._reads(tensor) == 1 and self.scales.function(node) is None:
                return node.name
        return None

    def _reads(self, tensor: str) -> int:
        """How often a stored tensor is read: by each integer node, and once to make it float."""
        users = [self.graph[name] for name in dict.fromkeys(self.graph.users[tensor])]
        integer = [user for user in users if user.name in self.plan.integer]
        as_float = len(integer) < len(users) or tensor in self.graph.outputs
        return sum(user.inputs.count(tensor) for user in integer) + as_float

    # -- layers

    def _convolves(self, node: Node) -> bool:
        """Whether an integer node runs as a convolution; the sum over a whole map does not."""
        if node.op != "avg_pool2d":
            return node.operator.layer
        whole = tuple(self.graph[node.inputs[0]].shape[1:3]) == tuple(node.attrs["pool_size"])
        return not whole or any(node.attrs["padding"])

    def _layer(self, node: Node, join: Join | None) -> Layer:
        (data,) = node.inputs
        source, shape = self.scales.decided(data), self.graph[data].shape
        weight, bias = self._constants(node, source)
        own = None if node.name in self.plan.accumulators else self.scales.stored(node)
        n, h, w, c = shape if len(shape) == 4 else (shape[0], 1, 1, shape[1])
        names = ("strides", "padding", "dilation", "groups")  # a dense layer has none of them
        window = {name: node.attrs[name] for name in names if name in node.attrs}
        if node.op == "avg_pool2d":
            window["groups"] = c
        spec = ConvSpec(
            batch=n, height=h, width=w, in_channels=c, out_channels=node.shape[-1], kernel=weight.shape[:2],
            data_max=self._bound(data), zero_point=source.zero_point, **window,
            **_epilogue(own, join, self.scales.unit(node)),
        )  # fmt: skip
        layer = Layer(node.name, spec, weight, self.scales.factor(node), bias, data, source, own, join)
        return replace(layer, spec=replace(spec, far=is_far(layer.convolution.multiplier)))

    def _constants(self, node: Node, source: Scale) -> tuple[np.ndarray, np.ndarray]:
        """(weight, bias) in steps."""
        channels = node.shape[-1]
        if node.op == "avg_pool2d":
            return np.ones((*node.attrs["pool_size"], 1, channels), np.int8), np.zeros(channels, np.int32)
        weight = np.ascontiguousarray(self.scales.integer_weight(node))
        check_range(node, weight, source)
        return weight, self.scales.integer_bias(node)

    def _bound(self, tensor: str) -> int:
        """The largest value that a stored tensor can hold."""
        if tensor not in self.bounds:
            self.bounds[tensor] = self._new_bound(tensor)
        return self.bounds[tensor]

    def _new_bound(self, tensor: str) -> int:
        node, scale = self.graph[self.plan.fused.get(tensor, tensor)], self.scales.decided(tensor)
        if node.name not in self.plan.integer or node.op == "input":
            return scale.hi
        if node.operator.moves:
            fill = scale.zero_point if node.op == "pad" else 0
            return max(fill, *(self._bound(t) for t in node.inputs))
        if node.op == "elementwise":
            values = function_values(node, self.scales.decided(node.inputs[0]))
            return int(reference.quantize(values, scale.scale, scale.zero_point, scale.lo, scale.hi).max())
        return self.scales.stored(node).hi


def _epilogue(own: Stored | None, join: Join | None, unit) -> dict:
    """The fields of `ConvSpec` that say what becomes of the accumulator."""
    if own is None:
        return {"epilogue": "dequantize"}
    made = own if join is None else join.output
    zero = made.scale.zero_point
    if join is None:
        fused = made.fused(unit)
        return {
            "epilogue": "requantize",
            "out_zero_point": zero,
            "lo": fused.lo + zero,
            "hi": fused.hi + zero,
            "function": fused.function,
        }
    function = None if made.function is None else of_sum(made.function)
    first = join.inputs[0] == own.tensor
    other = join.scales[1 if first else 0]
    residual = Residual(
        own.scale.scale, own.scale.zero_point, own.lo, own.hi, other.scale, other.zero_point, first,
        made.scale.scale,
    )  # fmt: skip
    return {"epilogue": "add", "residual": residual, "out_zero_point": zero, "lo": made.lo, "hi": made.hi,
            "function": function}  # fmt: skip
