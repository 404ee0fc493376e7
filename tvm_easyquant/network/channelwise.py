"""One scale per channel before depthwise layers, as a rewrite of the float `Graph`.

An output channel of a depthwise layer reads one input channel, so any factor f[c] > 0 by which the tensor
is divided goes into the layer's weights exactly: nothing is lost in them, and its kernel does not change.
The producer is divided: its weights, where all up to the tensor is positively homogeneous (ReLU,
LeakyReLU), else its function is multiplied by 1 / f, which its requantize does anyway. What is
rounded then is a tensor whose channels are of one size. The float network is the same but for float32's
rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf

import numpy as np

from topi_ext import function

from ..errors import GraphError
from .graph import Graph
from .node import Node
from .ops import is_depthwise

#: no channel gets a step smaller than this times the largest channel's
SMALLEST = 1e-4


def place(graph: Graph, tensor: str, functions: bool = True) -> Node | None:
    """The layer that is divided if ``tensor`` is; None if something else than depthwise layers sees it.

    functions: whether a function may be multiplied by a vector.
    """
    node, readers = graph[tensor], [graph[name] for name in graph.users[tensor]]
    if tensor in graph.outputs or not readers:
        return None
    if not all(n.op == "conv2d" and is_depthwise(n) and not n.broken for n in readers):
        return None
    layer = node
    if node.op in ("clip", "elementwise"):
        layer = graph[node.inputs[0]]
        if graph.users[layer.name] != (tensor,) or layer.name in graph.outputs:
            return None
        times = functions and function.fusable(_times(node, np.ones(node.shape[-1])))
        if not (_scales(node) or times):
            return None
    return layer if layer.operator.layer and not layer.broken else None


def factors(largest: np.ndarray) -> np.ndarray:
    """float32 (C,): what a tensor is divided by, of each channel's largest |x|; 1 where that is 0."""
    most = largest.max(initial=0.0)
    relative = np.maximum(largest / most, SMALLEST) if most > 0 else largest
    return np.where(largest > 0, relative, 1.0).astype(np.float32)


def channelwise(graph: Graph, found: Mapping[str, np.ndarray]) -> Graph:
    """The network with tensors divided by float32 (C,) factors, the same names; itself if there are none.

    Raises GraphError for a tensor that has no `place`, or factors that are not its channels'.
    """
    nodes = dict(graph.nodes)
    for tensor, f in found.items():
        layer = place(graph, tensor) if tensor in graph.nodes else None
        if layer is None:
            raise GraphError(f"{tensor} has factors, but is no tensor that only depthwise layers read")
        node = nodes[tensor]
        if f.shape != node.shape[-1:]:
            raise GraphError(f"{tensor} has {f.size} factors for its {node.shape[-1]} channels")
        if layer.name == tensor or _scales(node):
            divided = nodes[layer.name]
            nodes[layer.name] = replace(divided, weight=divided.weight / f, bias=divided.bias / f)
        else:
            attrs = {"expression": _times(node, np.float32(1) / f)}
            nodes[tensor] = replace(node, op="elementwise", attrs=attrs)
        for name in graph.users[tensor]:
            nodes[name] = replace(nodes[name], weight=nodes[name].weight * f)
    return (
        Graph(nodes.values(), graph.outputs, graph.name, graph.output_names, graph.notes)
        if found
        else graph
    )


def _scales(node: Node) -> bool:
    """Whether f(s x) = s f(x) for every s > 0."""
    if node.op == "clip":
        return node.attrs["lo"] in (0.0, -inf) and node.attrs["hi"] == inf
    return node.op == "elementwise" and function.homogeneous(node.attrs["expression"])


def _times(node: Node, vector: np.ndarray):
    """The function of a clip or an elementwise node, times a vector."""
    if node.op == "clip":
        expression: object = ("clip", "x", float(node.attrs["lo"]), float(node.attrs["hi"]))
    else:
        expression = node.attrs["expression"]
    return ("multiply", expression, tuple(map(float, vector)))
