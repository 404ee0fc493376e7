"""One network at several input shapes: two graphs read from the same model, which differ in sizes only.

Names, operators, types, weights and every setting are compared; what may differ are the sizes of feature
maps and the attributes that repeat them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .graph import Graph, GraphError
from .node import Node, model_shape

#: operator -> its attributes that are sizes of maps
SIZES = {
    "reshape": ("shape",), "slice": ("begin", "end"), "gather": ("indices",),
    "resize_linear": ("sizes", "scales"), "matmul": ("depth",), "mean_pool2d": ("rows", "columns"),
}  # fmt: skip
POOLS = ("avg_pool2d", "max_pool2d")


def input_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """{input: its shape, as the model has it (NCHW)}."""
    return {name: model_shape(graph[name]) for name in graph.inputs}


def inputs_of(graph: Graph) -> dict[str, tuple[tuple[int, ...], str]]:
    """{input: (its shape, as the model has it (NCHW), element type)}."""
    return {name: (model_shape(graph[name]), graph[name].dtype) for name in graph.inputs}


def told(shapes: Mapping[str, Sequence[int]]) -> str:
    """Shapes by input, as a message names them."""
    return ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())


def reshaped(graph: Graph, other: Graph) -> Graph:
    """``other`` as the same network as ``graph`` at other input shapes, with its fingerprint.

    Raises GraphError, which names the first node that differs in more than sizes.
    """
    at = told(input_shapes(other))
    if other.outputs != graph.outputs or len(other.nodes) != len(graph.nodes):
        raise GraphError(
            f"{graph.name} with {at} is another network: {len(other.nodes)} nodes and outputs "
            f"{list(other.outputs)}, with {told(input_shapes(graph))} it has {len(graph.nodes)} and "
            f"{list(graph.outputs)}"
        )
    for mine, theirs in zip(graph, other, strict=True):
        if (what := _difference(graph, mine, other, theirs)) is not None:
            raise GraphError(f"{graph.name} with {at} is another network: node {theirs.name} has {what}")
    return other.standing_for(graph)


def _difference(graph: Graph, mine: Node, other: Graph, theirs: Node) -> str | None:
    """What of a node is other than its size, for a message; None if nothing is."""
    for what in ("name", "op", "inputs", "dtype"):
        if getattr(mine, what) != getattr(theirs, what):
            return f"another {what}"
    if len(mine.shape) != len(theirs.shape):
        return "another number of dimensions"
    for what in ("weight", "bias"):
        a, b = getattr(mine, what), getattr(theirs, what)
        if (a is None) != (b is None) or (a is not None and not _same(a, b)):
            return f"another {what}"
    if mine.op == "float":  # its constants may be sizes; where they come from is the same model
        a, b = (getattr(node.attrs["handle"], "op", None) for node in (mine, theirs))
        return None if a == b else "another operator"
    for name, value in mine.attrs.items():
        free = name in SIZES.get(mine.op, ()) or (_whole(graph, mine) and _whole(other, theirs))
        if not free and theirs.attrs[name] != value:
            return f"{name} {theirs.attrs[name]}, not {value}"
    return None


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def _whole(graph: Graph, node: Node) -> bool:
    """Whether a pool's only window is all of its map."""
    if node.op not in POOLS or any(node.attrs["padding"]):
        return False
    return tuple(node.attrs["pool_size"]) == graph[node.inputs[0]].shape[1:3]
