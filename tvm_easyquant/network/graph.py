"""The float network as the quantizer sees it: named nodes, numpy constants, no TVM.

A host (`relay`, later Relax) reads its own program as a `Graph`. Calibration and search run it here in
numpy; the host's rewriter turns it back, with a scale table, into an integer program. Nothing but names,
numpy arrays and a `ScaleTable` crosses that seam.

Layout: feature maps are NHWC ``(N, H, W, C)``, float32 where a node says nothing else, whatever the model
used; convolution weights are HWIO ``(R, S, C / groups, K)``, and dense weights those of a 1x1 convolution,
``(1, 1, C, K)``.
Batch normalization and biases are already folded into the convolution or dense node before them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod

import numpy as np

from ..errors import GraphError
from .layout import to_nchw, to_nhwc
from .node import Node, model_shape
from .ops import HOST_ATTRIBUTES, evaluate


class Graph:
    """Nodes in topological order, keyed by name.

    inputs and outputs are node names; output_names: what the model itself calls its outputs. notes: what
    its reader has to tell about it, in lines. cut: the names at which its reader ended the model, or None.
    former: makes the graph that was read before, which may have one, too, for the tables of then; or None.
    ``fingerprint`` is a hash of structure and weights; at other shapes (`network.shapes`) it stays.
    """

    def __init__(
        self,
        nodes: Iterable[Node],
        outputs: Iterable[str],
        name: str = "model",
        output_names: Iterable[str] | None = None,
        notes: Iterable[str] = (),
    ):
        self.name, self.notes = name, tuple(notes)
        self.nodes: dict[str, Node] = {}
        for node in nodes:
            if node.name in self.nodes:
                raise GraphError(f"two nodes are named {node.name}")
            for tensor in node.inputs:
                if tensor not in self.nodes:
                    raise GraphError(f"node {node.name} reads {tensor}, which no earlier node makes")
            self.nodes[node.name] = node
        self.outputs = tuple(outputs)
        self.cut: tuple[str, ...] | None = None
        self.former: Callable[[], Graph] | None = None
        self._known: str | None = None
        self.output_names = self.outputs if output_names is None else tuple(output_names)
        self.inputs = tuple(n.name for n in self.nodes.values() if n.op == "input")
        self.users: dict[str, tuple[str, ...]] = dict.fromkeys(self.nodes, ())
        for node in self.nodes.values():
            for tensor in dict.fromkeys(node.inputs):
                self.users[tensor] += (node.name,)

    def __repr__(self) -> str:
        inputs = ", ".join(f"{name} {model_shape(self[name])}" for name in self.inputs)
        counts = f"{len(self.compute_nodes)} layers, {len(self.nodes)} nodes"
        return f"<Graph {self.name!r}: {counts}, {inputs} -> {', '.join(self.output_names)}>"

    def __getstate__(self) -> dict:
        return {**self.__dict__, "former": None}  # it may hold a host's module

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    @property
    def compute_nodes(self) -> list[Node]:
        """The layers: convolutions and dense."""
        return [node for node in self if node.operator.layer]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run, those of float operators included where they are known."""
        return sum(node.macs or 0 for node in self)

    @property
    def live_bytes(self) -> int:
        """The most bytes of its tensors that are needed at once in a run, by their shapes and types."""
        size = {node.name: prod(node.shape) * np.dtype(node.dtype).itemsize for node in self}
        waiting = {name: len(users) for name, users in self.users.items()}
        live = most = 0
        for node in self:
            live += size[node.name]
            most = max(most, live)
            for tensor in dict.fromkeys(node.inputs):
                waiting[tensor] -= 1
                live -= 0 if waiting[tensor] else size[tensor]
            live -= 0 if self.users[node.name] else size[node.name]
        return most

    @property
    def fingerprint(self) -> str:
        """SHA-256 of node names, ops, attributes, shapes and weights."""
        import hashlib

        if self._known is not None:
            return self._known
        digest = hashlib.sha256()
        for node in self:
            attrs = sorted((k, v) for k, v in node.attrs.items() if k not in HOST_ATTRIBUTES)
            if node.op == "float":
                attrs.append(("handle", str(node.attrs["handle"])))
            dtype = () if node.dtype == "float32" else (node.dtype,)  # most have none: so tables stay valid
            digest.update(repr((node.name, node.op, node.inputs, node.shape, attrs, *dtype)).encode())
            for array in (None if node.weight is None else node.public_weight, node.bias):
                digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def standing_for(self, graph: Graph | str) -> Graph:
        """This graph with the fingerprint of another, which is the same network at other shapes."""
        made = Graph(self, self.outputs, self.name, self.output_names, self.notes)
        made.cut, made._known = self.cut, graph if isinstance(graph, str) else graph.fingerprint
        return made

    @property
    def stands_for(self) -> str | None:
        """The fingerprint of the network that this one stands for; None: its own."""
        return self._known

    def check_inputs(
        self, feed: Mapping[str, np.ndarray] | np.ndarray, what: str = "the input"
    ) -> dict[str, np.ndarray]:
        """One sample by input name, in the model's own layout (NCHW) and types, of such a one or of the
        array of the only input; GraphError naming what is wrong."""
        if isinstance(feed, np.ndarray) and len(self.inputs) == 1:
            feed = {self.inputs[0]: feed}
        if not isinstance(feed, Mapping):
            raise GraphError(f"{what} is a {type(feed).__name__}; give {{input name: array}}")
        if set(feed) != set(self.inputs):
            raise GraphError(
                f"{what} has tensors {sorted(feed)}, the model's inputs are {sorted(self.inputs)}"
            )
        checked = {}
        for name, array in feed.items():
            array = np.asarray(array)
            node = self.nodes[name]
            if array.dtype != node.dtype:
                raise GraphError(f"{what}: {name} is {array.dtype}; the model takes {node.dtype}")
            want = model_shape(node)
            if array.shape != want:
                raise GraphError(f"{what}: {name} has shape {array.shape}, the model takes {want}")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise GraphError(f"{what}: {name} holds NaN or infinity; remove or mend that sample")
            checked[name] = array
        return checked

    def run(self, feed: Mapping[str, np.ndarray] | np.ndarray) -> dict[str, np.ndarray]:
        """The float network in numpy: {output, as the model calls it: array}.

        feed: {input: array}, or the array of the only input; both are in the model's own layout (NCHW) and
        types. Raises GraphError for a feed that is not the model's.
        """
        values = run(self, feed)
        return {name: values[node] for name, node in zip(self.output_names, self.outputs, strict=True)}


def run(
    graph: Graph,
    feed: Mapping[str, np.ndarray] | np.ndarray,
    visit: Callable[[Node, np.ndarray], None] | None = None,
) -> dict[str, np.ndarray]:
    """Run the float network: {output node: array}; feed and result are in the model's own layout (NCHW).

    visit(node, value) is called for every node with its NHWC value; values are dropped as soon as
    nobody needs them, so memory does not grow with depth.
    """
    feed = graph.check_inputs(feed)
    waiting = {name: len(users) for name, users in graph.users.items()}
    values: dict[str, np.ndarray] = {}
    results: dict[str, np.ndarray] = {}
    for node in graph:
        if node.op == "input":
            value = to_nhwc(feed[node.name])
        else:
            value = evaluate(node, *(values[t] for t in node.inputs))
        if visit is not None:
            visit(node, value)
        if node.name in graph.outputs:
            results[node.name] = to_nchw(value)
        values[node.name] = value
        for tensor in dict.fromkeys(node.inputs):
            waiting[tensor] -= 1
            if not waiting[tensor]:
                del values[tensor]
    return results
