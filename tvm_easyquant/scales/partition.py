"""What becomes integer, and which tensors share a scale.

A *site* is a set of stored tensors with one scale: a tensor and everything that max pool, concat,
reshape, slice, gather and pad make of it without computing. Decided here from the graph alone, so that
calibration, search and rewriting agree by construction.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from topi_ext import function

from ..network.graph import Graph, GraphError
from ..network.node import Node
from .numerics import QuantConfig

#: the square, as readers write it
SQUARES = (("multiply", "x", "x"), ("power", "x", 2.0))
#: why such a mean stays float
SUBTRACTED = "a normalization subtracts it from what it is the mean of, for which 8 bits are too few"
#: operators that give a tensor another shape
SHAPED = ("reshape", "transpose")


@dataclass(frozen=True)
class Site:
    """Tensors that are stored as uint8 with one scale.

    name: of the tensor that opens the site in topological order; readers: the convolution and dense
    nodes that read it; nonnegative: proven from the graph (a ReLU made it).
    """

    name: str
    tensors: tuple[str, ...]
    readers: tuple[str, ...]
    nonnegative: bool


class Coverage(NamedTuple):
    """How much of a network runs in integers; its text is ``92.3 % of the multiply-accumulates``.

    percent: of the multiply-accumulates that are known. at_most: those of a float node are not, so that
    the percentage is an upper bound.
    """

    percent: float
    at_most: bool

    @property
    def figure(self) -> str:
        """The percentage, as people are shown it."""
        return f"at most {self.percent:.1f}" if self.at_most else f"{self.percent:.1f}"

    def __str__(self) -> str:
        return f"{self.figure} % of the multiply-accumulates"

    @property
    def facts(self) -> dict:
        """What a command's JSON says of it."""
        return {"coverage_percent": self.percent, "coverage_is_upper_bound": self.at_most}


@dataclass(frozen=True)
class Plan:
    """The integer part of a graph.

    integer: names of nodes that run in integers. floats: the others, each with its reason.
    fused: clip, or function (an elementwise node) -> the node in whose requantize it happens. sites: by
    name. site_of: tensor -> site.
    accumulators: integer nodes read by float nodes only; their int32 result is dequantized directly.
    """

    integer: frozenset[str]
    floats: dict[str, str]
    fused: dict[str, str]
    sites: dict[str, Site]
    site_of: dict[str, str]
    accumulators: frozenset[str]

    def __repr__(self) -> str:
        return f"<Plan: {len(self.integer)} nodes in integers, {len(self.floats)} in float>"

    def stored(self, node: Node, graph: Graph) -> str:
        """The tensor that is stored when ``node`` runs: its own, or that of what is fused to it."""
        for user in graph.users[node.name]:
            if self.fused.get(user) == node.name:
                return user
        return node.name

    def coverage(self, graph: Graph) -> Coverage:
        """How many of the graph's multiply-accumulates run in integers."""
        done = sum(node.macs or 0 for node in graph if node.name in self.integer)
        percent = 100.0 * done / graph.macs if graph.macs else 0.0
        return Coverage(percent, any(node.macs is None for node in graph))


def nonnegative_tensors(graph: Graph) -> set[str]:
    """Names of the tensors that cannot hold a negative number, whatever the input."""
    proven: set[str] = set()
    for node in graph:
        by_inputs = bool(node.inputs) and all(t in proven for t in node.inputs)
        if node.operator.nonnegative(node, by_inputs):
            proven.add(node.name)
    return proven


def _not_float32(node: Node, graph: Graph) -> Node | None:
    """The node itself or the first of its inputs that is not float32."""
    return next((n for n in (node, *(graph[t] for t in node.inputs)) if n.dtype != "float32"), None)


def _broken(graph: Graph) -> dict[str, str]:
    """Nodes whose numbers are NaN or infinite, as weights are: {node: which}."""
    found: dict[str, str] = {}
    origin: dict[str, str] = {}
    for node in graph:
        before = next((origin[t] for t in node.inputs if t in origin), None)
        if node.broken:
            found[node.name], origin[node.name] = node.broken, node.name
        elif before is not None:
            found[node.name], origin[node.name] = (
                f"it follows layer {before}: {graph[before].broken}",
                before,
            )
    return found


def _why_float(
    node: Node, graph: Graph, integer: set[str], skip: set[str], broken: dict[str, str], functions: bool
) -> str | None:
    if node.name in skip:
        return "kept float by skip"
    if node.name in broken:
        return broken[node.name]
    if (other := _not_float32(node, graph)) is not None:
        mine = f"its numbers are {node.dtype}"
        return mine if other is node else f"it reads {other.name}, which is {other.dtype}"
    refusal = node.operator.refusal(node)
    if _loose(node, graph, integer, functions):
        return "its numbers differ by channel, and no layer that only it reads is before it"
    if refusal is None and node.op == "reduce_mean":
        refusal = _of_normalization(node, graph)
    if refusal is None and not node.operator.worth and not all(t in integer for t in node.inputs):
        return "an input is float"
    return refusal


def _of_normalization(node: Node, graph: Graph) -> str | None:
    """Why a mean along some axes stays float, as that of a normalization in pieces does; it, and what it is
    the mean of, may be read in another shape."""

    def source_of(tensor: str) -> str:
        while graph[tensor].op in SHAPED:
            (tensor,) = graph[tensor].inputs
        return tensor

    source, found = source_of(node.inputs[0]), [node.name]
    for name in found:
        for user in map(graph.__getitem__, graph.users[name]):
            if user.op in SHAPED:
                found.append(user.name)
            elif user.op == "sub" and source in map(source_of, user.inputs):
                return SUBTRACTED
    made = graph[source]
    if made.op == "elementwise" and made.attrs["expression"] in SQUARES:
        return "it is a mean of squares, for which 8 bits are too few"
    return None


def _fuses(node: Node, graph: Graph, integer: set[str], functions: bool) -> bool:
    """Whether a clip or a function happens in the requantize of the node before it."""
    if node.op not in (("clip", "elementwise") if functions else ("clip",)):
        return False
    (producer,) = node.inputs
    alone = graph.users[producer] == (node.name,) and producer not in graph.outputs
    if not (alone and producer in integer and graph[producer].operator.requantizes):
        return False
    if node.op == "clip":
        return True
    expression, kind = node.attrs["expression"], graph[producer].operator.integer
    if kind == "norm":  # whose kernel takes none
        return False
    return function.fusable(expression) and not (kind == "sum" and function.vectors(expression))


def _loose(node: Node, graph: Graph, integer: set[str], functions: bool) -> bool:
    """Whether it is a function whose numbers differ by channel, which no table holds, and is not fused."""
    vectors = node.op == "elementwise" and function.vectors(node.attrs["expression"])
    return bool(vectors) and not _fuses(node, graph, integer, functions)


def skipped(graph: Graph, patterns: Iterable[str]) -> set[str]:
    """The names of the nodes that ``patterns`` keep float: a name, ``op:conv2d`` for every node of an
    operator, or a regular expression that matches whole names. GraphError for one that matches nothing."""
    found, unknown = set(), []
    for pattern in patterns:
        if pattern in graph.nodes:
            names = {pattern}
        elif pattern.startswith("op:"):
            names = {node.name for node in graph if node.op == pattern[3:]}
        else:
            try:
                names = {name for name in graph.nodes if re.fullmatch(pattern, name)}
            except re.error:  # a name with brackets, mistyped
                names = set()
        found |= names
        if not names:
            unknown.append(pattern)
    if unknown:
        raise GraphError(
            f"skip names {unknown}, not in the model; its layers are "
            + ", ".join(node.name for node in graph.compute_nodes)
            + "; its operators "
            + ", ".join(f"op:{op}" for op in sorted({node.op for node in graph} - {"input"}))
        )
    return found


def plan(
    graph: Graph, skip: Iterable[str] = (), integer: Iterable[str] | None = None, functions: bool = False
) -> Plan:
    """Decide what runs in integers; raises GraphError if there is nothing to quantize.

    functions: whether a function is fused to the layer before it, as a clip is (`numerics.Method`).
    skip: patterns of what stays float, see `skipped`. integer: what runs in integers, where that is
    settled (`QuantConfig.integer`).
    """
    if integer is not None:
        return _settled(graph, set(integer), functions)
    skip = skipped(graph, skip)
    chosen: set[str] = set()
    floats: dict[str, str] = {}
    broken = _broken(graph)
    if not graph.compute_nodes:
        kept = [node for node in graph if node.op == "float" and node.macs]
        whys = [
            f"{node.name}: {_why_float(node, graph, chosen, skip, broken, functions)}" for node in kept[:3]
        ]
        which = f" that can be integer ({'; '.join(whys)})" if kept else ""
        raise GraphError(f"the model has no convolution and no dense layer{which}: nothing to quantize")
    for node in graph:
        reason = _why_float(node, graph, chosen, skip, broken, functions)
        if reason is None:
            chosen.add(node.name)
        elif node.op != "input" or node.name in skip:
            floats[node.name] = reason
    # Backwards: what nobody reads as integers is not worth rounding to 8 bits.
    for node in reversed(list(graph)):
        only_float = not any(user in chosen for user in graph.users[node.name])
        if (
            node.name in chosen
            and only_float
            and node.operator.integer not in ("sum", "accumulate", "contract")
        ):
            chosen.discard(node.name)
            if node.op != "input":
                floats[node.name] = "only float nodes or outputs read it"
    if not chosen & {node.name for node in graph.compute_nodes}:
        why = next((f" (layer {node.name}: {node.broken})" for node in graph if node.broken), "")
        raise GraphError(f"every convolution and dense layer is kept float{why}: nothing to quantize")
    return _plan(graph, chosen, floats, functions)


def plan_of(graph: Graph, config: QuantConfig) -> Plan:
    """What runs in integers by a config; raises as `plan`."""
    return plan(graph, config.skip, config.integer, config.how.fuse_functions)


def _settled(graph: Graph, integer: set[str], functions: bool) -> Plan:
    unknown = sorted(integer - set(graph.nodes))
    if unknown:
        raise GraphError(f"the table runs {unknown} in integers, which are no nodes of the model")
    wrong = sorted(name for name in integer if graph[name].operator.integer == "float")
    if wrong:
        raise GraphError(f"the table runs {wrong} in integers, which cannot: {graph[wrong[0]].op}")
    for name in sorted(integer):
        if _loose(graph[name], graph, integer, functions):
            raise GraphError(
                f"the table runs {name} in integers, which cannot: its numbers differ by channel"
            )
    broken = _broken(graph)
    for name in sorted(integer & set(broken)):
        raise GraphError(f"the table runs {name} in integers, which cannot: {broken[name]}")
    for name in sorted(integer):
        if (tensor := _not_float32(graph[name], graph)) is not None:
            raise GraphError(
                f"the table runs {name} in integers, which cannot: {tensor.name} is {tensor.dtype}"
            )
    floats = {
        node.name: _why_float(node, graph, set(graph.nodes), set(), broken, functions)
        or "the imported model keeps it float"
        for node in graph
        if node.name not in integer and node.op != "input"
    }
    return _plan(graph, integer, floats, functions)


def _plan(graph: Graph, integer: set[str], floats: dict[str, str], functions: bool) -> Plan:
    """What follows from which nodes are integer."""
    fused = {
        node.name: node.inputs[0]
        for node in graph
        if node.name in integer and _fuses(node, graph, integer, functions)
    }
    accumulators = frozenset(
        node.name
        for node in graph
        if node.name in integer
        and node.operator.accumulates
        and not any(user in integer for user in graph.users[node.name])
    )
    sites, site_of = _sites(graph, integer, fused, accumulators)
    return Plan(frozenset(integer), floats, fused, sites, site_of, accumulators)


def _sites(graph, integer, fused, accumulators):
    stored = {t for name in integer for t in graph[name].inputs}  # also float tensors read here
    stored |= {name for name in integer if graph[name].op != "input"}
    stored -= set(fused.values()) | accumulators
    leader = {name: name for name in graph.nodes if name in stored}

    def find(name):
        while leader[name] != name:
            name = leader[name]
        return name

    order = {name: i for i, name in enumerate(graph.nodes)}
    for node in graph:
        if node.name in integer and node.operator.moves and node.name not in fused:
            for tensor in node.inputs:
                first, second = sorted((find(tensor), find(node.name)), key=order.__getitem__)
                leader[second] = first
    positive = nonnegative_tensors(graph)
    sites = {}
    for root in [name for name in leader if find(name) == name]:
        tensors = tuple(name for name in leader if find(name) == root)
        readers = [
            node.name for node in graph.compute_nodes if node.name in integer and node.inputs[0] in tensors
        ]
        sites[root] = Site(root, tensors, tuple(readers), all(t in positive for t in tensors))
    return sites, {tensor: site.name for site in sites.values() for tensor in site.tensors}


def clip_limits(graph: Graph, plan_: Plan, node: Node) -> tuple[float, float]:
    """The real limits (lo, hi) that the clip fused to ``node`` sets; (-inf, inf) if there is none."""
    clip = plan_.stored(node, graph)
    if clip == node.name or graph[clip].op != "clip":
        return (-inf, inf)
    return (float(graph[clip].attrs["lo"]), float(graph[clip].attrs["hi"]))
