"""Where the nodes of a network stand in a picture of it: in ranks from its inputs down. No TVM here.

Layered as by Sugiyama: each node one rank below the lowest that it reads, edges over several ranks led
through points of their own, ranks ordered by where their neighbours are, and each node as near to its
neighbours as its rank's order allows.
"""

from __future__ import annotations

from itertools import pairwise

from ..network.graph import Graph
from ..scales.partition import Plan

#: pixels of a node's box, and from one rank, and from one box, to the next; of a point of an edge
WIDTH, HEIGHT, RANK, STEP, POINT = 176, 38, 66, 196, 36
SWEEPS = 12


def drawing(graph: Graph, plan: Plan) -> dict:
    """{"width", "height", "nodes", "edges"} in pixels, as plain values.

    A node: {"name", "ops": its operators, with those that happen in its requantize, "layer": whether it is
    one, "integer", "x", "y": the middle of its box}. An edge: [[x, y], ...] from the lower side of a box to
    the upper side of another.
    """
    drawn = {node.name: node.name for node in graph}
    for name in graph.nodes:  # what is fused to a node is drawn with it
        if name in plan.fused:
            drawn[name] = drawn[plan.fused[name]]
    ops: dict[str, list[str]] = {}
    reads: dict[str, list[str]] = {}
    for node in graph:
        mine = drawn[node.name]
        ops.setdefault(mine, []).append(node.op)
        reads.setdefault(mine, [])
        reads[mine] += [drawn[t] for t in dict.fromkeys(node.inputs) if drawn[t] != mine]
    x, y, edges = _placed({name: list(dict.fromkeys(inputs)) for name, inputs in reads.items()})
    nodes = [
        {
            "name": name,
            "ops": ops[name],
            "layer": graph[name].operator.layer,
            "integer": name in plan.integer,
            "x": x[name],
            "y": y[name],
        }
        for name in reads
    ]
    return {
        "width": max(x.values(), default=0) + WIDTH / 2 + 10,
        "height": max(y.values(), default=0) + HEIGHT / 2 + 10,
        "nodes": nodes,
        "edges": edges,
    }


def _placed(reads: dict[str, list[str]]):
    """(x, y of the middles, edges) of {node: what it reads}, in topological order."""
    rank: dict[str, int] = {}
    for name, inputs in reads.items():
        rank[name] = 1 + max((rank[t] for t in inputs), default=-1)
    first = {t: min(rank[n] for n, inputs in reads.items() if t in inputs) for t in _inner(reads)}
    rank.update((name, first[name] - 1) for name, inputs in reads.items() if not inputs and name in first)
    ranks: list[list] = [[] for _ in range(max(rank.values(), default=-1) + 1)]
    for name in reads:
        ranks[rank[name]].append(name)
    above: dict = {place: [] for place in reads}
    below: dict = {place: [] for place in reads}
    chains = []
    for name, inputs in reads.items():
        for tensor in inputs:
            points = [(tensor, name, r) for r in range(rank[tensor] + 1, rank[name])]
            chain = [tensor, *points, name]
            for point in points:
                ranks[point[2]].append(point)
            for upper, lower in pairwise(chain):
                below.setdefault(upper, []).append(lower)
                above.setdefault(lower, []).append(upper)
            chains.append(chain)
    _order(ranks, above, below)
    x = _abscissas(ranks, above, below)
    y = {p: 10 + HEIGHT / 2 + RANK * r for r, row in enumerate(ranks) for p in row}
    edges = []
    for chain in chains:
        line = [[x[p], y[p]] for p in chain]
        line[0][1] += HEIGHT / 2
        line[-1][1] -= HEIGHT / 2
        edges.append(line)
    return {n: x[n] for n in reads}, {n: y[n] for n in reads}, edges


def _inner(reads: dict[str, list[str]]) -> set[str]:
    """The nodes that others read."""
    return {tensor for inputs in reads.values() for tensor in inputs}


def _order(ranks, above, below) -> None:
    """Sort each rank by the mean place of its neighbours in the rank before, up and down in turn."""
    place = {p: i for row in ranks for i, p in enumerate(row)}
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        neighbours = above if down else below
        for row in ranks if down else reversed(ranks):
            mean = {
                p: sum(place[q] for q in near) / len(near) if (near := neighbours.get(p)) else place[p]
                for p in row
            }
            row.sort(key=mean.__getitem__)
            place.update((p, i) for i, p in enumerate(row))


def _abscissas(ranks, above, below) -> dict:
    """{place: x}: near the neighbours, in the order of the rank, boxes beside each other."""

    def half(p):
        return (POINT if isinstance(p, tuple) else STEP) / 2

    x: dict = {}
    for row in ranks:
        at = 0.0
        for p in row:
            x[p] = at + half(p)
            at += 2 * half(p)
    for sweep in range(SWEEPS + 1):
        down = sweep % 2 == 0
        for row in ranks if down else reversed(ranks):
            offset, offsets, wanted = 0.0, [], []
            for p in row:
                offset += half(p)
                near = (above if down else below).get(p) or [p]
                # an edge over many ranks is to be straight
                want = sum(x[q] for q in near) / len(near)
                offsets.append(offset)
                wanted.append(want - offset)
                offset += half(p)
            for p, shift, level in zip(row, offsets, _rising(wanted), strict=True):
                x[p] = level + shift
    left = min((x[p] - (half(p) if isinstance(p, tuple) else WIDTH / 2) for p in x), default=0.0)
    return {p: round(value - left + 10, 1) for p, value in x.items()}


def _rising(wanted: list[float]) -> list[float]:
    """The numbers nearest to these, in the sum of squares, that never fall (pool adjacent violators)."""
    pools: list[list[float]] = []  # [sum, count]
    for value in wanted:
        pools.append([value, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            total, count = pools.pop()
            pools[-1][0] += total
            pools[-1][1] += count
    return [total / count for total, count in pools for _ in range(int(count))]
