"""Chains of moves that are a channel shuffle: what a host makes at once, with nothing between."""

from __future__ import annotations

from math import prod

import numpy as np

from .graph import Graph
from .node import Node
from .ops import evaluate


def shuffled(graph: Graph, node: Node) -> tuple[str, tuple[int, ...]] | None:
    """(tensor, places) of a map whose channel c is channel ``places[c]`` of the map ``tensor``: what ends a
    chain of reshape, transpose and reshape; None of any other node."""
    chain = [node]
    for op in ("reshape", "transpose", "reshape"):
        if chain[-1].op != op:
            return None
        chain.append(graph[chain[-1].inputs[0]])
    *moves, source = chain
    if source.shape != node.shape or len(node.shape) != 4:
        return None
    numbers = np.arange(prod(source.shape), dtype=np.int64).reshape(source.shape)
    made = numbers
    for move in reversed(moves):
        made = evaluate(move, made)
    places = made[0, 0, 0]
    if places.max() >= node.shape[3] or not np.array_equal(made, numbers[..., places]):
        return None
    return source.name, tuple(places.tolist())
