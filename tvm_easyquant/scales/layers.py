"""One record per integer layer and per join: what a host emits a kernel from, derived once from a graph and
its table. No TVM here.

A layer is what runs as an integer convolution: a convolution, a dense layer (1x1 on a 1x1 map), or the
window sums of an average pool (a depthwise convolution with ones). The clip that follows it is fused into
its requantize, and so is a residual add, where the layer's tensor has no other reader. A join is every
other add or mul of two stored tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from topi_ext import reference
from topi_ext.conv2d import ConvSpec, Residual, fold_zero_point

from ..network.graph import Graph
from ..network.node import Node
from .integer import Scales, function_values, node_limits
from .numerics import Scale, integer_limits
from .table import ScaleTable


@dataclass(frozen=True)
class Layer:
    """One integer layer with all that is fused into it.

    name: its node's. spec: its shape, its zero points, the largest value its data can hold (``data_max``),
    its epilogue with the stored range (lo, hi) that the fused clip leaves, and the residual's numbers.
    weight: int8 (R, S, C / groups, K). bias: int32 (K,), the data's zero point folded in, as by
    `fold_zero_point`. multiplier: float32 (K,), of the requantize, or of the dequantize where only float
    nodes read it. data: the stored tensor that it reads. residual: the other stored tensor of the add that
    is fused, None if there is none. output: the tensor that it makes, the fused add's or clip's if there is
    one.
    """

    name: str
    spec: ConvSpec
    weight: np.ndarray = field(repr=False)
    bias: np.ndarray = field(repr=False)
    multiplier: np.ndarray = field(repr=False)
    data: str
    residual: str | None
    output: str


@dataclass(frozen=True)
class Join:
    """An add or mul of two stored tensors that no layer does.

    name, op: its node's. inputs: the two tensors, ``scales`` theirs. output: the tensor that it makes, of
    ``scale``; lo, hi: the stored range that the fused clip leaves.
    """

    name: str
    op: str
    inputs: tuple[str, str]
    scales: tuple[Scale, Scale]
    output: str
    scale: Scale
    lo: int
    hi: int


@dataclass(frozen=True)
class Records:
    """The layers and joins of a network by node name, in topological order."""

    layers: Mapping[str, Layer]
    joins: Mapping[str, Join]


def records(graph: Graph, table: ScaleTable) -> Records:
    """The records of ``graph`` under ``table``; TableError if they do not fit, OverflowError if a bias with
    the zero point folded in does not fit int32."""
    graph = table.prepared(graph)
    return _Deriver(graph, table).records()


class _Deriver:
    def __init__(self, graph: Graph, table: ScaleTable):
        self.graph, self.plan = graph, table.check(graph)
        self.scales = Scales.of_table(graph, self.plan, table)
        self.bounds: dict[str, int] = {}

    def records(self) -> Records:
        joins, residuals = {}, {}
        for node in self.graph:
            if node.name in self.plan.integer and node.op in ("add", "mul"):
                join = self._join(node)
                layer = self._absorbing(node) if node.op == "add" else None
                if layer is None:
                    joins[node.name] = join
                else:
                    residuals[layer] = join
        layers = {
            node.name: self._layer(node, residuals.get(node.name))
            for node in self.graph
            if node.name in self.plan.integer and self._convolves(node)
        }
        return Records(layers, joins)

    def _scale(self, tensor: str) -> Scale:
        scale = self.scales.of(tensor)
        assert scale is not None  # a table leaves none open
        return scale

    def _limits(self, node: Node) -> tuple[int, int]:
        """The stored range of what ``node`` stores."""
        target = self.plan.stored(node, self.graph)
        return integer_limits(self._scale(target), node_limits(node, self.scales))

    # -- joins

    def _join(self, node: Node) -> Join:
        target, (a, b) = self.plan.stored(node, self.graph), node.inputs
        scales = (self._scale(a), self._scale(b))
        return Join(node.name, node.op, (a, b), scales, target, self._scale(target), *self._limits(node))

    def _absorbing(self, add: Node) -> str | None:
        """The layer that the add is fused into: a convolution whose tensor nobody else reads."""
        for tensor in add.inputs:
            node = self.graph[self.plan.fused.get(tensor, tensor)]
            if node.name in self.plan.integer and node.op != "dense" and self._convolves(node):
                if self._reads(tensor) == 1:
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
        weight, bias = self._constants(node)
        source, (data,) = self._scale(node.inputs[0]), node.inputs
        shape = self.graph[data].shape
        n, h, w, c = shape if len(shape) == 4 else (shape[0], 1, 1, shape[1])
        names = ("strides", "padding", "dilation", "groups")  # a dense layer has none of them
        window = {name: node.attrs[name] for name in names if name in node.attrs}
        if node.op == "avg_pool2d":
            window["groups"] = c
        output, multiplier, epilogue = self._epilogue(node, join)
        spec = ConvSpec(
            batch=n, height=h, width=w, in_channels=c, out_channels=node.shape[-1], kernel=weight.shape[:2],
            data_max=self._bound(data), zero_point=source.zero_point, **window, **epilogue,
        )  # fmt: skip
        channels = np.broadcast_to(np.asarray(multiplier, np.float32), (node.shape[-1],))
        folded = fold_zero_point(bias, weight, source.zero_point)
        residual = None if join is None else next(t for t in join.inputs if t != self._own(node))
        return Layer(
            node.name, spec, weight, folded, np.ascontiguousarray(channels), data, residual, output
        )

    def _own(self, node: Node) -> str:
        """The tensor that a layer would store if no add were fused."""
        return self.plan.stored(node, self.graph)

    def _constants(self, node: Node) -> tuple[np.ndarray, np.ndarray]:
        """(weight, bias) in steps, the bias without the zero point."""
        channels = node.shape[-1]
        if node.op == "avg_pool2d":
            return np.ones((*node.attrs["pool_size"], 1, channels), np.int8), np.zeros(channels, np.int32)
        weight = np.ascontiguousarray(self.scales.integer_weight(node))
        return weight, self.scales.integer_bias(node)

    def _epilogue(self, node: Node, join: Join | None):
        """(the tensor that is made, the multiplier, the fields of `ConvSpec` that say how)."""
        unit = self.scales.unit(node)
        if node.name in self.plan.accumulators:
            return node.name, unit, {"epilogue": "dequantize"}
        own, (lo, hi) = self._scale(self._own(node)), self._limits(node)
        multiplier = reference.multiplier(1, unit, own.scale)
        if join is None:
            fields = {"epilogue": "requantize", "out_zero_point": own.zero_point, "lo": lo, "hi": hi}
            return self._own(node), multiplier, fields
        first = join.inputs[0] == self._own(node)
        other = join.scales[1 if first else 0]
        residual = Residual(
            own.scale, own.zero_point, lo, hi, other.scale, other.zero_point, first, join.scale.scale
        )
        fields = {"epilogue": "add", "out_zero_point": join.scale.zero_point, "lo": join.lo, "hi": join.hi}
        return join.output, multiplier, {**fields, "residual": residual}

    def _bound(self, tensor: str) -> int:
        """The largest value that a stored tensor can hold."""
        if tensor not in self.bounds:
            self.bounds[tensor] = self._new_bound(tensor)
        return self.bounds[tensor]

    def _new_bound(self, tensor: str) -> int:
        node, scale = self.graph[self.plan.fused.get(tensor, tensor)], self._scale(tensor)
        if node.name not in self.plan.integer or node.op == "input":
            return scale.hi
        if node.operator.moves:
            fill = scale.zero_point if node.op == "pad" else 0
            return max(fill, *(self._bound(t) for t in node.inputs))
        if node.op == "elementwise":
            values = function_values(node, self._scale(node.inputs[0]))
            return int(reference.quantize(values, scale.scale, scale.zero_point, scale.lo, scale.hi).max())
        return self._limits(node)[1]
