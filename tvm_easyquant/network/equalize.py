"""Cross-layer equalization (Nagel et al., 2019, arXiv 1906.04721, section 4.1), of a `Graph`.

Where a layer's ReLU is read by layers alone, channel i of the first may be divided by any s_i > 0 if the
readers' weights for it are multiplied by it. Balanced are the largest weights on both sides, r1 and r2:
``s = sqrt(r1 / r2)``, here to the nearest power of two, so that not a bit of the float network's outputs
changes. A ReLU6 is no such place.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .graph import Graph
from .ops import input_axes

SWEEPS = 10  # over all places: what one moves changes its neighbours
FARTHEST = 16  # exponent of s in one sweep


def equalized(graph: Graph) -> Graph:
    """The same network, the same names, other weights and biases; ``graph`` itself if there is no place."""
    nodes = dict(graph.nodes)
    places = [place for relu in graph if (place := _place(graph, relu))]
    for _ in range(SWEEPS):
        changed = False
        for first, readers in places:
            s = _factors(nodes[first], [nodes[name] for name in readers])
            if (s != 1).any():
                changed = True
                nodes[first] = _divided(nodes[first], s)
                nodes.update({name: _multiplied(nodes[name], s) for name in readers})
        if not changed:
            break
    if all(nodes[name] is node for name, node in graph.nodes.items()):
        return graph
    return Graph(nodes.values(), graph.outputs, graph.name, graph.output_names)


def _place(graph, relu) -> tuple[str, tuple[str, ...]] | None:
    """(layer, readers of its ReLU) if nothing else sees what is between them."""
    if relu.op != "clip" or (relu.attrs["lo"], relu.attrs["hi"]) != (0.0, np.inf):
        return None
    first, readers = graph[relu.inputs[0]], graph.users[relu.name]
    seen = {first.name, relu.name} & set(graph.outputs) or graph.users[first.name] != (relu.name,)
    if seen or not first.operator.layer or not readers:
        return None
    if any(not graph[name].operator.layer or input_axes(graph[name]) is None for name in readers):
        return None
    if any(graph[name].broken for name in (first.name, *readers)):
        return None
    return first.name, readers


def _factors(first, readers) -> np.ndarray:
    """float32 (C,), powers of two."""
    r1 = np.abs(first.weight).max(axis=(0, 1, 2)).astype(np.float64)
    r2 = np.max([np.abs(n.weight).max(axis=input_axes(n)) for n in readers], axis=0).astype(np.float64)
    alive = (r1 > 0) & (r2 > 0)
    exponent = np.rint(0.5 * np.log2(np.where(alive, r1, 1.0) / np.where(alive, r2, 1.0)))
    return np.exp2(np.clip(exponent, -FARTHEST, FARTHEST)).astype(np.float32)


def _divided(node, s):
    return replace(node, weight=node.weight / s, bias=node.bias / s)


def _multiplied(node, s):
    axes = input_axes(node)
    assert axes is not None  # noqa: S101  # a place has readers with such an axis only
    return replace(node, weight=node.weight * np.expand_dims(s, axes))
