"""The search's images on their way through both networks, to where a scale is to be decided. No TVM here.

Here one `Walk` has all images. On a cluster each share of them has its own, which stays with the workers
(`There`): they are sent the images once, then what is decided, and make each layer's tensors by themselves.
A walk is what its images and the decisions make of it, so that one that is lost is made again. What is
wanted next does not depend on images: a walk without any says it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np

from topi_ext.reference import dequantize

from ..cluster import Made, Once
from ..network.gradient import Effect, effect_of
from ..network.graph import run
from ..network.node import Node
from ..network.ops import evaluate, input_axes
from ..scales.integer import Sample, Scales, last_uses, node_limits
from ..scales.numerics import Scale
from ..scales.table import unpack
from .objectives import cosine, projected
from .workers import PARTS, Workers, cut

#: (kind, name, what was found): a way begun, a layer's weights, a site's activations
Decision = tuple[str, str, object]


def singly(batches) -> list:
    """The images of batches, each (1, ...)."""
    return [x[i : i + 1] for x in batches for i in range(len(x))]


def one_by_one(function: Callable, items: Iterable) -> None:
    """function(item) for each item."""
    for item in items:
        function(item)


class Weighing(NamedTuple):
    """How errors are weighed by their effect at the outputs: of which layers, the `lengths` of the outputs,
    and {layer: `Effect`} on each image, where that is known already."""

    layers: frozenset[str] = frozenset()
    lengths: Mapping[str, float] = {}
    known: Sequence[Mapping[str, Effect]] | None = None


class Wanted(NamedTuple):
    """What a task needs of a layer. site: where its input is to be decided; None: where that is, and the
    weights are to be. limit: samples, the first of all; weighted: by the effect at the outputs."""

    layer: str
    limit: int
    site: str | None = None
    weighted: bool = False


class Walk:
    """Some images on their way.

    scales: those decided so far, changed here; first: the number of the first image among all; early: of
    all, those on which what is not made yet is taken from the float network. ``wanted``: (kind, name) of
    what is to be decided next, None at the end. figures: of each image, of each layer, what `figures_of`
    adds up.
    """

    def __init__(self, scales: Scales, early: int = 0, feeds: Sequence[Mapping[str, np.ndarray]] = ()):
        self.scales, self.feeds, self.early = scales, feeds, early
        self.each: Callable[[Callable, Iterable], None] = one_by_one
        self.graph, self.plan, self.how = scales.graph, scales.plan, scales.config.how
        self.layers = {n.name for n in self.graph.compute_nodes if n.name in self.plan.integer}
        self.weighing = Weighing()
        self.first = 0
        self.samples: list[Sample] = []
        self.figures: list[dict[str, np.ndarray]] = []
        self.wanted: tuple[str, str] | None = None
        self.starts: dict[str, Scale | None] = {}
        self.way, self._at, self._entered = "", 0, False
        self._ran: set[str] = set()
        self._fitted: set[str] = set()
        self._known: dict[tuple[str, int], dict[str, np.ndarray]] = {}
        self._images: dict[Wanted, tuple[list, list, list | None]] = {}

    def __sizeof__(self) -> int:
        """Bytes that go out with it: by them Dask leaves it where it is."""
        held = [part for s in self.samples for part in (s.floats, s.stored, s.real, s.raw, s.feed)]
        arrays = [array for part in held for array in part.values()]
        arrays += [array for node in self.graph for array in (node.weight, node.bias) if array is not None]
        return 10_000 + sum(array.nbytes for array in arrays)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "each": one_by_one, "_known": {}, "_images": {}}

    def copy(self) -> Walk:
        """Another one where this one is, for a worker; it shares the tensors, which do not change."""
        made = copy.copy(self)
        made.scales, made.samples = self.scales.copy(), [sample.copy() for sample in self.samples]
        made.figures = [dict(each) for each in self.figures]
        made._ran, made._fitted = set(self._ran), set(self._fitted)
        return made

    # -- on its way

    def decide(self, kind: str, name: str, found) -> None:
        """Take a decision, and go on to the next. Raises RangeError, OverflowError."""
        if kind == "begin":
            self._begin(name)
        elif kind == "weights":
            self._take_weights(name, found)
        else:
            start = self.starts[name]
            assert start is not None  # noqa: S101  # every site had a scale
            self.scales.activations[name] = (
                Scale(found[0], found[1], start.lo, start.hi)
                if isinstance(found, list)
                else start.with_scale(float(found))
            )
            for sample in self.samples:
                sample.settle(self.plan.sites[name].tensors, self.scales)
        self._known, self._images = {}, {}
        self._go_on()

    def _begin(self, way: str) -> None:
        """way: what is decided: "weights", "activations", both "layerwise", or nothing, for "figures"."""
        self.way, self._at, self._entered = way, 0, False
        self.samples = [Sample(feed) for feed in self.feeds]
        self._ran, self._fitted = set(), set()
        if way != "weights":
            self.figures = [{} for _ in self.feeds]
        if way in ("activations", "layerwise"):
            self.starts = dict(self.scales.activations)
            for site in self.plan.sites.values():
                if site.readers:
                    self.scales.activations[site.name] = None

    def _take_weights(self, name: str, found: Mapping) -> None:
        scales = self.scales
        scales.weights[name] = np.asarray(found["scales"], np.float32)
        scales.rounding.pop(name, None)
        if "rounding" in found:
            scales.rounding[name] = unpack(name, found["rounding"], self.graph[name].channels)
        scales.gains.pop(name, None)
        if "gains" in found:
            scales.gains[name] = np.asarray(found["gains"], np.float32)
        if "bias" in found:
            scales.biases[name] = np.asarray(found["bias"], np.float32)
        self._fitted.add(name)

    def _go_on(self) -> None:
        """Every sample through both networks, to the node ahead of which something is to be decided."""
        nodes, dead = list(self.graph), last_uses(self.graph)
        while self._at < len(nodes):
            node = nodes[self._at]
            if not self._entered:
                self.each(partial(Sample.advance_float, node=node), self.samples)
                self._entered = True
            self.wanted = self._wants(node)
            if self.wanted is not None:
                return
            self.each(partial(self._advance, node), range(len(self.samples)))
            self._ran.add(node.name)
            for sample in self.samples:
                sample.forget(dead.get(node.name, ()), self.scales)
            self._at, self._entered = self._at + 1, False
        self.wanted = None
        for name, scale in self.scales.activations.items():
            if scale is None:  # nobody read it as integers after all
                self.scales.activations[name] = self.starts[name]

    def _wants(self, node: Node) -> tuple[str, str] | None:
        """Each site is decided when it is first read, and layerwise then the layer's weights."""
        if node.name in self.plan.integer and node.operator.moves:
            return None  # moves wait with their site
        if self.way in ("activations", "layerwise"):
            for tensor in node.inputs:
                site = self.plan.site_of.get(tensor)
                if site is not None and self.scales.activations[site] is None:
                    return "activations", site
        fits = self.way in ("weights", "layerwise") and node.name in self.layers
        return ("weights", node.name) if fits and node.name not in self._fitted else None

    def _advance(self, node: Node, number: int) -> None:
        sample = self.samples[number]
        if self.way != "weights" and node.name in self.layers:
            sample.watch = partial(self._see, number)
        sample.advance(node, self.scales)
        sample.watch = None

    def _see(self, number: int, node: Node, raw: np.ndarray) -> None:
        y = dequantize(raw, self.scales.unit(node), 0).astype(np.float64).ravel()
        o = self.samples[number].floats[node.name].astype(np.float64).ravel()
        noise = o - y
        self.figures[number][node.name] = np.array((cosine(y @ o, o @ o, y @ y), o @ o, noise @ noise))

    # -- what the tasks need

    def ready(self, site_name: str) -> list[Node]:
        """The layers by which a site is judged: those whose input is made, or follows from what is."""
        site, late = self.plan.sites[site_name], self.late.get(site_name, ())
        known: set[str] = set()
        for name in site.tensors:
            producer = self._producer(name)
            moved = producer.operator.moves and producer.name in self.plan.integer
            if (
                name in late
                or (not moved and producer.name in self._ran)
                or (moved and name in self.plan.integer and known.issuperset(producer.inputs))
            ):
                known.add(name)
        return [self.graph[r] for r in site.readers if self.graph[r].inputs[0] in known]

    def images(self, wanted: Wanted) -> tuple[list, list, list | None]:
        """(inputs, outputs, weights of the errors or None) of a layer, as far as its images are wanted.

        Of weights to be decided: batches, stored inputs and float outputs. Of a site: single images, inputs
        before they are rounded, and float outputs, but for the cosine without the bias. They are kept until
        the next decision.
        """
        if wanted not in self._images:
            self._images[wanted] = self._made(wanted)
        return self._images[wanted]

    def _made(self, wanted: Wanted) -> tuple[list, list, list | None]:
        node = self.graph[wanted.layer]
        count = max(0, min(len(self.samples), wanted.limit - self.first))
        if wanted.site is None:
            samples = self.samples[:count]
            inputs = [sample.stored_value(node.inputs[0], self.scales) for sample in samples]
            return inputs, [sample.floats[node.name] for sample in samples], None
        values, outputs = [], []
        for number in range(count):
            values.append(self._site_values(wanted.site, number)[node.inputs[0]])
            floats = self.samples[number].floats
            if wanted.site in self.late:
                floats = floats | self._ahead[number]
            made = floats.get(node.name)  # the layer that waits for the decision has run there
            if made is None:
                made = evaluate(node, self._float_value(node.inputs[0], floats))
            outputs.append(made)
        values, outputs = singly(values), singly(outputs)
        if self.how.objective == "cosine":
            return values, outputs, None
        weights = None
        if wanted.weighted:
            weights = singly(each[node.name].value for each in self._effects[:count])
        elif self.how.objective == "hessian":
            weights = [self._sensitivity(node, o) for o in outputs]
        bias = self.scales.bias(node)
        return values, [o - bias for o in outputs], weights

    def products(
        self, layer: str, by_float_weights: bool, weighted: bool
    ) -> tuple[Node, tuple[np.ndarray, np.ndarray | None]]:
        """(layer, `projected` of its weights as they are so far)."""
        node, weight, scales, _ = self.weights(layer, by_float_weights)
        return node, projected(node, weight * scales, weighted)

    def weights(self, layer: str, by_float_weights: bool) -> tuple:
        """(layer, float32 weights in its layout, their scales (K,), bias (K,)), as they are so far."""
        node = self.graph[layer]
        weight, scales = node.weight, np.ones(node.channels, np.float32)
        if not by_float_weights:
            weight, scales = self.scales.integer_weight(node), self.scales.weights[layer]
        return node, weight.astype(np.float32), scales, self.scales.bias(node)

    def outputs(self) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
        """At the end, of each image: (its figures, float64 (3,) products of the float and the quantized
        outputs: o y, o o, y y)."""
        found = []
        for sample, figures in zip(self.samples, self.figures, strict=True):
            dots = np.zeros(3)
            for tensor in (t for t in self.graph.outputs if self.graph[t].dtype == "float32"):
                o = sample.floats[tensor].astype(np.float64).ravel()
                y = sample.real_value(tensor, self.scales).astype(np.float64).ravel()
                dots += (o @ y, o @ o, y @ y)
            found.append((figures, dots))
        return found

    def _producer(self, tensor: str) -> Node:
        """The node whose result is stored as ``tensor``."""
        return self.graph[self.plan.fused.get(tensor, tensor)]

    def _site_values(self, site_name: str, number: int) -> dict[str, np.ndarray]:
        """tensor -> float32 before rounding: those of a site that exist, or are taken from the float
        network, and what moves make of them."""
        if (site_name, number) in self._known:
            return self._known[site_name, number]
        sample, values = self.samples[number], {}
        ahead = self._ahead[number] if site_name in self.late else {}
        for name in self.plan.sites[site_name].tensors:
            producer = self._producer(name)
            if name in self.late.get(site_name, ()):
                values[name] = ahead[name]
            elif producer.name in sample.raw:
                values[name] = sample.unstored(producer, self.scales)
            elif name in sample.real:
                values[name] = sample.real[name]
            elif (
                producer.operator.moves
                and name in self.plan.integer
                and all(t in values for t in producer.inputs)
            ):
                values[name] = evaluate(producer, *(values[t] for t in producer.inputs))
        self._known[site_name, number] = values
        return values

    def _float_value(self, tensor: str, floats: Mapping[str, np.ndarray]) -> np.ndarray:
        """A tensor of the float network that exists, or that moves alone make of those that do."""
        if tensor in floats:
            return floats[tensor]
        node = self.graph[tensor]
        return evaluate(node, *(self._float_value(t, floats) for t in node.inputs))

    @cached_property
    def _effects(self) -> Sequence[Mapping[str, Effect]]:
        """{layer: its `Effect`} on each of the first images that are here."""
        layers, lengths, known = self.weighing
        if known is None:
            known = [effect_of(self.graph, feed, layers, lengths) for feed in self._early]
        return known

    @property
    def _early(self) -> Sequence[Mapping[str, np.ndarray]]:
        return self.feeds[: max(0, self.early - self.first)]

    @cached_property
    def _ahead(self) -> list[dict[str, np.ndarray]]:
        """{tensor of the float network that is not made yet when its site is first read: it}, on each of
        the first images that are here."""
        wanted = {tensor for tensors in self.late.values() for tensor in tensors}
        found: list[dict[str, np.ndarray]] = [{} for _ in self._early]

        def collect(number: int) -> None:
            def see(node, value):
                if node.name in wanted:
                    found[number][node.name] = value

            run(self.graph, self._early[number], see)

        self.each(collect, range(len(found)))
        return found

    @cached_property
    def late(self) -> dict[str, list[str]]:
        """{site: its tensors that are computed after it is first read, and that layers read, as they are or
        moved}, layerwise."""
        order, late = {node.name: i for i, node in enumerate(self.graph)}, {}

        def moves(name):
            return name in self.plan.integer and self.graph[name].operator.moves

        def computed(name):
            return set().union(*map(computed, self.graph[name].inputs)) if moves(name) else {name}

        for site in self.plan.sites.values() if self.how.order == "layerwise" else ():
            users = {user for tensor in site.tensors for user in self.graph.users[tensor]}
            first = min((order[user] for user in users if not moves(user)), default=len(order))
            read = set().union(*(computed(self.graph[reader].inputs[0]) for reader in site.readers))
            after = [t for t in site.tensors if t in read and order[self._producer(t).name] >= first]
            if after:
                late[site.name] = after
        return late

    def _sensitivity(self, node: Node, output: np.ndarray) -> np.ndarray:
        """float32, like the output: how the next operators pass an error on (objective "hessian").

        1 where the following clip lets it through, 0 elsewhere, times the norm of the weights with which
        the one layer that reads the channel uses it: a diagonal Gauss-Newton approximation.
        """
        lo, hi = node_limits(node, self.scales)
        weight = ((output > lo) & (output < hi)).astype(np.float32)
        if not weight.any():
            weight[...] = 1
        users = self.graph.users[self.plan.stored(node, self.graph)]
        reader = self.graph[users[0]] if len(users) == 1 else None
        if reader is not None and reader.operator.layer and not reader.broken:
            axes = input_axes(reader)
            if axes is None:
                return weight
            norms = np.sqrt((reader.weight**2).sum(axis=axes))
            if norms.shape == (node.channels,) and norms.any():
                weight *= (norms / np.sqrt((norms**2).mean())).astype(np.float32)
        return weight


def figures_of(found: Sequence[Mapping[str, np.ndarray]]) -> dict[str, dict]:
    """How well each layer's output, before its activation, survives: {layer: {"cosine": mean over images,
    "sqnr_db": signal to noise over all}} of the figures of each image."""
    result = {}
    for name in found[0]:
        similarity, signal, noise = sum((each[name] for each in found), np.zeros(3))
        decibel = float(10 * np.log10(signal / noise)) if noise > 0 < signal else float("inf")
        result[name] = {"cosine": float(similarity / len(found)), "sqnr_db": decibel}
    return result


# -- where the images are


class Images:
    """A layer's tensors on the images: lists, one of which may be None, of batches or single images."""

    def __init__(self, node: Node, *lists):
        self.node, self.lists = node, lists

    def __len__(self) -> int:
        return len(self.lists[0])

    @property
    def layer(self) -> Once:
        """The node, as a task is given it."""
        return Once(self.node)

    def singly(self) -> Images:
        """The images of batches."""
        return Images(self.node, *(each and singly(each) for each in self.lists))

    def together(self) -> Images:
        """One batch of all images."""
        return Images(self.node, *(each and [np.concatenate(each)] for each in self.lists))

    def share(self, part: slice) -> Once:
        """The lists of some of them, as a task is given it."""
        return Once(tuple(each and each[part] for each in self.lists))


class Here:
    """All images in this process."""

    def __init__(self, walk: Walk, feeds: Sequence[Mapping[str, np.ndarray]], workers: Workers):
        self.walk, self.workers = walk, workers
        walk.feeds, walk.each = feeds, workers.local

    def decide(self, kind: str, name: str, found: object = None) -> None:
        """See `Walk.decide`."""
        self.walk.decide(kind, name, found)

    def images(self, wanted: Wanted) -> Images:
        """A layer's tensors."""
        return Images(self.walk.graph[wanted.layer], *self.walk.images(wanted))

    def made(self, method: Callable, *arguments) -> Once:
        """What a method of `Walk` says that does not depend on images."""
        return Once(method(self.walk, *arguments))

    def outputs(self) -> list:
        """`Walk.outputs` of all images."""
        return self.walk.outputs()


class There:
    """The images on a cluster, in shares of consecutive ones; ``walk`` has none."""

    def __init__(self, walk: Walk, feeds: Sequence[Mapping[str, np.ndarray]], workers: Workers):
        self.walk, self.workers = walk, workers
        self.parts = cut(len(feeds), PARTS)
        start = Once(walk.copy())
        self._walks: list[Once] = [
            Made(_with_images, start, Once(feeds[p]), p.start, where=where)
            for p, where in zip(self.parts, self._places, strict=True)
        ]
        self._decisions: list[Decision] = []

    @property
    def _places(self) -> list[str | None]:
        assert self.workers.cluster is not None  # noqa: S101  # else the images are here
        return self.workers.cluster.places(len(self.parts))

    def decide(self, kind: str, name: str, found: object = None) -> None:
        """See `Walk.decide`; the workers hear of it when they are next asked for something."""
        self._decisions.append((kind, name, found))
        self.walk.decide(kind, name, found)

    @property
    def walks(self) -> list[Once]:
        """The walk of each share, where ours is."""
        if self._decisions:
            decisions = Once(self._decisions)
            self._walks = [
                Made(_gone_on, walk, decisions, instead=True, where=where)
                for walk, where in zip(self._walks, self._places, strict=True)
            ]
            self._decisions = []
        return self._walks

    def images(self, wanted: Wanted) -> Images:
        """A layer's tensors."""
        return _Elsewhere(self, wanted)

    def made(self, method: Callable, *arguments) -> Once:
        """What a method of `Walk` says that does not depend on images."""
        return Made(method, self.walks[0], *arguments)

    def outputs(self) -> list:
        """`Walk.outputs` of all images."""
        found = self.workers.run(Walk.outputs, [(walk,) for walk in self.walks])
        return [each for share in found for each in share]


class _Elsewhere(Images):
    """Those that the workers of a cluster make; of a site they are single images."""

    def __init__(self, there: There, wanted: Wanted, single: bool | None = None, whole: bool = False):
        super().__init__(there.walk.graph[wanted.layer])
        self.there, self.wanted, self.whole = there, wanted, whole
        self.single = wanted.site is not None if single is None else single
        self.each = there.walk.graph[self.node.inputs[0]].shape[0] if self.single else 1

    def __len__(self) -> int:
        return 1 if self.whole else self._all

    @property
    def _all(self) -> int:
        return self.wanted.limit * self.each

    @property
    def layer(self) -> Once:
        return self.there.made(_layer, self.node.name)

    def singly(self) -> Images:
        return _Elsewhere(self.there, self.wanted, True)

    def together(self) -> Images:
        return _Elsewhere(self.there, self.wanted, self.single, True)

    def share(self, part: slice) -> Once:
        if self.whole:
            part = slice(0, self._all)
        pieces = []
        for walk, samples in zip(self.there.walks, self.there.parts, strict=True):
            start = samples.start * self.each
            first, last = max(part.start, start), min(part.stop, samples.stop * self.each)
            if first < last:
                mine = slice(first - start, last - start)
                pieces.append((walk, self.wanted, self.single, mine))
        if len(pieces) == 1 and not self.whole:  # the walk has them: no need to keep them beside it
            return Made(_piece, *pieces[0], kept=False)
        return Made(_joined, self.whole, *(Made(_piece, *piece) for piece in pieces))


def _with_images(walk: Walk, feeds, first: int) -> Walk:
    made = walk.copy()
    made.feeds, made.first = feeds, first
    return made


def _gone_on(walk: Walk, decisions: Sequence[Decision]) -> Walk:
    made = walk.copy()
    for each in decisions:
        made.decide(*each)
    return made


def _layer(walk: Walk, name: str) -> Node:
    return walk.graph[name]


def _piece(walk: Walk, wanted: Wanted, single: bool, part: slice) -> tuple:
    lists = walk.images(wanted)
    if single and wanted.site is None:
        return tuple(each and singly(each)[part] for each in lists)
    return tuple(each and each[part] for each in lists)


def _joined(whole: bool, *pieces: tuple) -> tuple:
    lists = [each[0] and [x for piece in each for x in piece] for each in zip(*pieces, strict=True)]
    return tuple(each and ([np.concatenate(each)] if whole else each) for each in lists)
