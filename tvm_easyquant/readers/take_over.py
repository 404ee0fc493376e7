"""A network that somebody else quantized -> the float `Graph` and the `ScaleTable` that compute it.

A front end reads such a network as float operators with ``fake_quant`` nodes, where its tensors are
rounded to 8 bits (`onnx_quantized`). Here these nodes become scales, and what lies between two of
them becomes integer: the same (float graph, table) that a search makes, so that everything behind it
works unchanged. Nothing is searched and nothing guessed: what the model does not round stays float,
and what it rounds is rounded there and nowhere else. No TVM here.

The table lists the integer nodes (`QuantConfig.integer`), because `partition.plan` would take more: it
gives every convolution integers, where a quantized model has its own idea.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np

from topi_ext.function import vectors

from ..network.graph import Graph
from ..network.node import Node
from ..scales.numerics import IMPORTED, QuantConfig, Scale, quantize_bias
from ..scales.partition import plan
from ..scales.table import ScaleTable

RAW = None  # read as it is, not rounded


@dataclass(frozen=True)
class TakenOver:
    """graph, table: what computes the network. reasons: layer -> why it stays float. origin: stored
    tensor of the graph -> the ``fake_quant`` node it stands for."""

    graph: Graph
    table: ScaleTable
    reasons: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)


def take_over(
    graph: Graph,
    weights: Mapping[str, np.ndarray],
    reasons: Mapping[str, str] | None = None,
    reach: Mapping[str, np.ndarray] | None = None,
) -> TakenOver:
    """Turn a graph with ``fake_quant`` nodes into a float one and a table.

    weights: layer -> float32 scale of its weights, () or (K,), for layers whose weights are integers.
    reasons: layer -> why it stays float, where that is known. reach: layer -> the largest of its integers
    in each channel (K,): tells by what a batch normalization behind it has multiplied the channels.
    """
    return _TakeOver(_merge_clips(graph), weights, dict(reasons or {}), reach or {}).result()


def _scale(node: Node) -> Scale:
    return Scale(node.attrs["scale"], node.attrs["zero_point"], 0, 255)


def _merge_clips(graph: Graph) -> Graph:
    """Two clips, one behind the other, as one."""
    nodes: dict[str, Node] = {}
    for node in graph:
        before = nodes.get(node.inputs[0]) if node.op == "clip" else None
        alone = before is not None and graph.users[before.name] == (node.name,)
        if before is not None and before.op == "clip" and alone and before.name not in graph.outputs:
            limits = {key: float(np.clip(before.attrs[key], node.attrs["lo"], node.attrs["hi"]))
                      for key in ("lo", "hi")}  # fmt: skip
            del nodes[before.name]
            node = replace(node, inputs=before.inputs, attrs=limits)
        nodes[node.name] = node
    return Graph(nodes.values(), graph.outputs, graph.name, graph.output_names)


class _TakeOver:
    def __init__(self, graph: Graph, weights, reasons, reach):
        self.old, self.weights, self.reasons, self.reach = graph, weights, reasons, reach
        self.nodes: dict[str, Node] = {}
        self.name: dict[str, str] = {}  # old tensor -> new tensor
        self.at: dict[str, Scale | None] = {}  # old tensor -> how it is stored, None if it is not
        self.stored: dict[str, Scale] = {}  # new tensor -> its scale
        self.integer: set[str] = set()
        self.table_weights: dict[str, np.ndarray] = {}
        self.origin: dict[str, str] = {}
        self.wanted = self._demands()
        for node in graph:
            self._node(node)
        self.outputs = [self._as_float(t) for t in graph.outputs]

    def _demands(self):
        """tensor -> the set of `Scale`s it is rounded to by all that reads it, and `RAW`."""
        found: dict[str, set[Scale | None]] = {}
        for node in reversed(list(self.old)):
            wants: set[Scale | None] = {RAW} if node.name in self.old.outputs else set()
            for user in self.old.users[node.name]:
                op = self.old[user].op
                if op == "fake_quant":
                    wants.add(_scale(self.old[user]))
                elif self.old[user].operator.moves:
                    wants |= found[user]
                else:
                    wants.add(RAW)
            found[node.name] = wants
        return found

    def _target(self, tensor) -> Scale | None:
        """The one scale that everybody wants a tensor in, if there is one."""
        wants = self.wanted[tensor]
        return next(iter(wants)) if len(wants) == 1 else None

    def _fusable(self, node) -> Node | None:
        """The clip that can happen in ``node``'s requantize, if that is rounded after it."""
        users = self.old.users[node.name]
        if len(users) != 1 or node.name in self.old.outputs or not node.operator.requantizes:
            return None
        clip = self.old[users[0]]
        return clip if clip.op == "clip" and self._target(clip.name) is not None else None

    # -- new nodes

    def _put(self, node: Node, scale: Scale | None = None, integer: bool = False):
        self.nodes[node.name] = node
        if integer:
            self.integer.add(node.name)
        if scale is not None:
            self.stored[node.name] = scale

    def _unused(self, name):
        while name in self.nodes or name in self.old.nodes:
            name += "_"
        return name

    def _round(self, source: str, name: str, scale: Scale) -> str:
        """An integer node: the stored tensor ``source`` with another scale, or for float readers."""
        shape = self.nodes[source].shape
        self._put(Node(name, "elementwise", (source,), shape, dict(expression="x")), scale, True)
        return name

    def _copy(self, source: str, name: str) -> str:
        """A float tensor of its own with the value of another."""
        shape = self.nodes[source].shape
        self._put(Node(name, "clip", (source,), shape, dict(lo=-inf, hi=inf)))
        return name

    # -- reading

    def _as_float(self, tensor: str) -> str:
        """The tensor as a float node reads it: a new tensor."""
        new, scale = self.name[tensor], self.at[tensor]
        if scale is None or new in self.integer:
            return new
        rounded = self._round(new, self._unused(f"{tensor}_rounded"), scale)  # a float tensor, rounded
        self.name[tensor] = rounded
        return rounded

    # -- the rules

    def _node(self, node: Node):
        RULES[node.op](self, node)

    def _input(self, node):
        self._put(node)
        self.name[node.name], self.at[node.name] = node.name, None

    def _fake_quant(self, node):
        (source,) = node.inputs
        scale, new = _scale(node), self.name[source]
        self.at[node.name] = scale
        if self.at[source] == scale:
            self.name[node.name] = new
        elif self.at[source] is not None:
            self.name[node.name] = self._round(new, self._unused(f"{node.name}_rounded"), scale)
        else:
            accumulated = new in self.integer  # dequantized by its reader: 8 bits of it are another tensor
            if accumulated or self.stored.get(new, scale) != scale:
                new = self._copy(new, self._unused(f"{node.name}_copy"))
            self.stored[new] = scale
            self.name[node.name] = new
        self.origin.setdefault(self.name[node.name], node.name)

    def _finish_node(self, node, inputs, scale, integer):
        self._put(replace(node, inputs=tuple(inputs)), scale, integer)
        self.name[node.name], self.at[node.name] = node.name, scale

    def _float_node(self, node):
        self._finish_node(node, [self._as_float(t) for t in node.inputs], None, False)

    def _move(self, node):
        scales = [self.at[t] for t in node.inputs]
        target = scales[0] if len(set(scales)) == 1 else self._target(node.name)
        if target is None or None in scales:
            return self._float_node(node)
        inputs = []
        for tensor, scale in zip(node.inputs, scales, strict=True):
            new = self.name[tensor]
            if scale != target:
                new = self._round(new, self._unused(f"{tensor}_in_{node.name}"), target)
            inputs.append(new)
        return self._finish_node(node, inputs, target, True)

    def _layer(self, node):
        (source,) = node.inputs
        why = self.reasons.get(node.name) or self._why_float(node, source)
        if why is not None:
            self.reasons[node.name] = why
            return self._float_node(node)
        self.table_weights[node.name] = self._weight_scale(node)
        return self._produce(node)

    def _why_float(self, node, source):
        stored = self.at[source]
        if stored is None:
            return "the model does not quantize its input"
        if node.name not in self.weights:
            return "the model does not quantize its weights"
        scale = self._weight_scale(node)
        if scale is None:
            return f"it has {self.weights[node.name].size} weight scales for {node.channels} channels"
        steps = node.weight / scale
        apart = np.abs(steps - np.rint(steps)).max(initial=0)
        if apart > 1e-2 or np.rint(steps).max(initial=0) > 127 or np.rint(steps).min(initial=0) < -128:
            return "its weights are no multiples of their scale"
        try:
            quantize_bias(node.bias, stored.scale, scale, node.name)
        except OverflowError:
            return "its bias is beyond int32 in steps of its scales"
        return None

    def _weight_scale(self, node):
        scale = np.asarray(self.weights[node.name], np.float32)
        if scale.size not in (1, node.channels):
            return None
        scale = np.broadcast_to(scale.reshape(-1), (node.channels,)).astype(np.float32)
        reach = self.reach.get(node.name)
        if reach is None or reach.shape != scale.shape:
            return scale
        found = (np.abs(node.weight).max(axis=(0, 1, 2)) / np.maximum(reach, 1)).astype(np.float32)
        folded = (reach > 0) & (found > 0) & (np.abs(found / scale - 1) > 1e-5)
        return np.where(folded, found, scale)

    def _produce(self, node):
        """A node that requantizes, on stored inputs: rounded, fused, or dequantized for float readers."""
        inputs = [self.name[t] for t in node.inputs]
        if self._fusable(node) is not None:  # the clip is next
            return self._finish_node(node, inputs, None, True)
        target = self._target(node.name)
        if target is None and not node.operator.accumulates:
            return self._float_node(node)
        return self._finish_node(node, inputs, target, True)

    def _arithmetic(self, node):
        scales = [self.at[t] for t in node.inputs]
        target = self._target(node.name)
        if node.op == "clip":
            before = self.old[node.inputs[0]]
            if self._fusable(before) is node and before.name in self.integer:
                return self._finish_node(node, [before.name], target, True)
        if None in scales or vectors(node.attrs.get("expression")):  # no table of 256 numbers
            return self._float_node(node)
        if node.operator.requantizes:
            return self._produce(node) if node.operator.refusal(node) is None else self._float_node(node)
        if target is None:
            return self._float_node(node)
        inputs = [self.name[t] for t in node.inputs]
        if node.op == "clip":  # of a stored tensor: one more function of 256 numbers
            expression = ("clip", "x", node.attrs["lo"], node.attrs["hi"])
            node = replace(node, op="elementwise", attrs=dict(expression=expression))
        return self._finish_node(node, inputs, target, True)

    # -- the result

    def _keep_rounding(self):
        """Accumulators that are rounded but read by float nodes only: a clip that does nothing is fused
        to them, because without an integer reader they would not be rounded. Dead readers are gone by now:
        they would count, and then vanish."""
        read = {t for name in self.integer for t in self.nodes[name].inputs}
        renamed: dict[str, str] = {}
        nodes = {}
        for name, node in self.nodes.items():
            node = replace(node, inputs=tuple(renamed.get(t, t) for t in node.inputs))
            nodes[name] = node
            rounded = name in self.integer and name in self.stored
            if rounded and name not in read and node.operator.accumulates:
                clip = self._unused(f"{name}_rounded")
                nodes[clip] = Node(clip, "clip", (name,), node.shape, dict(lo=-inf, hi=inf))
                self.integer.add(clip)
                self.stored[clip] = self.stored.pop(name)
                if name in self.origin:
                    self.origin[clip] = self.origin.pop(name)
                renamed[name] = clip
        self.nodes, self.outputs = nodes, [renamed.get(t, t) for t in self.outputs]

    def _drop_dead(self):
        alive = set(self.outputs)
        for node in reversed(list(self.nodes.values())):
            if node.name in alive or node.op == "input":
                alive.update(node.inputs)
            else:
                del self.nodes[node.name]
                self.integer.discard(node.name)

    def result(self) -> TakenOver:
        self._drop_dead()
        self._keep_rounding()
        graph = Graph(self.nodes.values(), self.outputs, self.old.name, self.old.output_names)
        config = QuantConfig(
            bits=8, method=IMPORTED, integer=tuple(name for name in self.nodes if name in self.integer)
        )
        plan_ = plan(graph, integer=config.integer)
        activations = {}
        for site in plan_.sites.values():
            scales = {self.stored[t] for t in site.tensors if t in self.stored}
            if len(scales) != 1:
                raise AssertionError(f"site {site.name} has the scales {scales}")
            (activations[site.name],) = scales
        weights = {name: scale for name, scale in self.table_weights.items() if name in self.nodes}
        table = ScaleTable(graph.fingerprint, config, activations, weights)
        table.check(graph)
        origin = {t: old for t, old in self.origin.items() if t in plan_.site_of}
        return TakenOver(graph, table, self.reasons, origin)


#: operator -> how it is taken over
RULES: dict[str, Callable[[_TakeOver, Node], None]] = {
    "input": _TakeOver._input,
    "conv2d": _TakeOver._layer,
    "dense": _TakeOver._layer,
    "add": _TakeOver._arithmetic,
    "sub": _TakeOver._arithmetic,
    "max": _TakeOver._arithmetic,
    "min": _TakeOver._arithmetic,
    "mul": _TakeOver._arithmetic,
    "matmul": _TakeOver._arithmetic,
    "elementwise": _TakeOver._arithmetic,
    "concat": _TakeOver._move,
    "max_pool2d": _TakeOver._move,
    "avg_pool2d": _TakeOver._arithmetic,
    "mean_pool2d": _TakeOver._arithmetic,
    "reduce_mean": _TakeOver._arithmetic,
    "reduce_max": _TakeOver._move,
    "layer_norm": _TakeOver._arithmetic,
    "clip": _TakeOver._arithmetic,
    "reshape": _TakeOver._move,
    "transpose": _TakeOver._move,
    "slice": _TakeOver._move,
    "pad": _TakeOver._move,
    "resize": _TakeOver._move,
    "gather": _TakeOver._move,
    "resize_linear": _TakeOver._arithmetic,
    "depth_to_space": _TakeOver._move,
    "fake_quant": _TakeOver._fake_quant,
    "float": _TakeOver._float_node,
}
