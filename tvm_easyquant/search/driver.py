"""EasyQuant scale search (arXiv 2006.16669, section 3.2 and Algorithm 1), in numpy.

For every layer the scales are chosen that make its quantized output most similar to the float one: ``O``,
the layer's output in the float network, and ``O^``, the dequantized output of the quantized layer fed by
the quantized network before it (both with the bias, before the activation). The paper's similarity is the
mean over images of the cosine; ours is the squared error over all images, relative to the output, which
unlike the cosine sees a channel's gain. Candidates are ``linspace(alpha, beta, grid)`` times the starting
scale of the paper, S = 1 / scale, and S itself.

Two orders. "passes" (Algorithm 1): a pass over all weight scales, one per output channel, then a pass over
all activation scales. "layerwise": in topological order each layer's input scale, by the layer's float
weights, then its weights: scales, rounding, gain, bias, as far as the switches say; what comes before a
layer is then final, and its weights make up for it.

A range whose both ends are searched is judged at the network's outputs (`Method.effect`): each layer's
squared error counts by its effect there, on a few images; one-sided ranges, which gained nothing by it, by
the error relative to the layer's output.

Where the paper has one activation scale per layer *input*, one tensor stored once has one scale: a
site read by several layers takes the mean of their objectives. It is decided when it is first read; of a
concat that may be before all branches exist. Layerwise, those that are not made yet are the float
network's, on a few images; in passes, only readers count whose input exists, or follows by moves alone.
A site that no layer reads keeps its start.

A channel of a dense layer, or of a convolution with a 1x1 output, has one number per image, and the
cosine of two numbers says nothing (the paper leaves dense layers float). There the cosine runs over
the images instead of being averaged over them.

Cost. The candidates of a channel need no convolution each: the Gram matrix of the layer's input makes one
cost K^2 (`reconstruct`, `objectives`). Activation candidates are matrix products; unless ``exhaustive``,
successive halving tries all of them on a few of the output positions (those with the largest inputs and a
fixed random sample of at least 512), and only those that could still be the least on four times as many,
and so on to all: a candidate is dropped when it is behind by 4 standard deviations of that distance, as
the sample gives them.
Tasks go to threads of this process; under ``joblib.parallel_config`` to any other backend, such as loky or
dask. Work is cut and summed in an order that does not depend on the number of
workers, and BLAS runs on one thread in each, so the result does not depend on them either. On a cluster the
workers run the networks on their own images (`walk`), and this process sees none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from ..cluster import Once
from ..network.gradient import effects, lengths
from ..network.graph import Graph
from ..network.node import Node
from ..scales.calibrate import Calibration, start_table
from ..scales.integer import Scales
from ..scales.numerics import QuantConfig, quantize_weight, scale_between, ungained
from ..scales.partition import Plan
from ..scales.table import ScaleTable, pack
from . import objectives, reconstruct, wide
from .grid import SAFETY, factors, stages
from .objectives import choose, cosine
from .state import State, opened
from .walk import Here, Images, There, Walk, Wanted, Weighing, figures_of
from .weights import fit_weights, search_weights
from .workers import PARTS, Workers, cut

#: a search of two ends: both by one of these factors, on `ROUGHLY` of the output positions, then each by
#: one of `APART`
TOGETHER = np.linspace(0.6, 1.8, 31)
APART = np.linspace(0.7, 1.45, 7)
ROUGHLY = 1 / 8
#: bits of the network -> the first search images, on which errors are weighted by their effect at the
#: outputs; the errors of the ranges that are compared are nearer to each other at 8 bits
EFFECT_IMAGES = {7: 16, 8: 24}

Progress = Callable[[int, int, str], None]
Record = Callable[[str, str, np.ndarray, np.ndarray, np.ndarray], None]


class _Judge(NamedTuple):
    """A layer that judges its input's scales: what it is, on which images, and whether by its float
    weights; of each share of the images the order of the positions, None where a task makes it."""

    node: Node
    images: Images
    by_float_weights: bool
    orders: Sequence[Once | None]


def _places(node: Node) -> int:
    """How many output positions of a layer the halving tells apart."""
    return node.shape[1] * node.shape[2] if len(node.shape) == 4 else 1


class _Search:
    def __init__(self, graph, plan, calibration, config, progress, checkpoint, jobs, record):
        self.graph, self.plan, self.how = graph, plan, config.how
        self.record = record
        self.calibration, self.progress = calibration, progress
        self.workers = Workers(jobs)
        searched = [site for site in plan.sites.values() if site.readers]
        layers = [node for node in graph.compute_nodes if node.name in plan.integer]
        self.total = config.rounds * (len(layers) + len(searched))
        self.done = 0
        self.images: Here | There
        self._begin(config, searched)
        self.state = opened(checkpoint, identity_of(graph, config, calibration) if checkpoint else {})
        self.resumed = False

    @property
    def scales(self) -> Scales:
        """Those decided so far."""
        return self.images.walk.scales

    def run(self) -> ScaleTable:
        best: tuple[float, Scales, dict] | None = None
        for round_ in range(self.config.rounds):
            for way in ("layerwise",) if self.how.order == "layerwise" else ("weights", "activations"):
                self._pass(way, round_)
            found = self.images.outputs()
            score = self._score(np.array([dots for _, dots in found]))
            if best is not None and score <= best[0]:  # this round made the output no better: it is undone
                self.done = self.total - 1
                self._tick(f"round {round_ + 1} undone")
                break
            best = score, self.scales.copy(), figures_of([figures for figures, _ in found])
        self.state.remove()
        assert best is not None  # noqa: S101  # there is a round
        _, s, figures = best
        activations = {site: s.decided(site) for site in s.activations}
        return ScaleTable(
            self.graph.fingerprint, self.config, activations, s.weights, figures,
            s.rounding, s.biases, s.gains,
        )  # fmt: skip

    def _begin(self, config, sites) -> None:
        """The start, with the sites that get more bits; and, of the layers whose reading is weighed by it,
        the effect at the outputs on each of the first images."""
        chooses = config.wide is None and any(config.bits_of(*site.readers) < 8 for site in sites)
        scales, feeds = self._start(config), self._first_feeds(config)
        judged = [s for s in sites if chooses or self._two_ends(scales.decided(s.name))]
        readers = [reader for site in judged for reader in site.readers if config.weighs_effects]
        sizes = lengths(self.graph, feeds, self.workers.local) if readers else {}
        known = effects(self.graph, feeds, readers, each=self.workers.local, sizes=sizes) if readers else {}
        if chooses:
            noise = wide.noises(scales, feeds, known, self.workers.local)
            config = replace(config, wide=wide.choose(scales, noise))
            scales = self._start(config)
        self.config = config
        ends = [site for site in sites if self._two_ends(scales.decided(site.name))]
        self.effects = frozenset(reader for site in ends for reader in site.readers if reader in known)
        there = self.workers.cluster is not None
        walk = Walk(scales, len(feeds))
        each = None if there else [{n: known[n][i] for n in self.effects} for i in range(len(feeds))]
        walk.weighing = Weighing(self.effects, sizes, each)
        where = There if there else Here
        self.images = where(walk, self.calibration.samples, self.workers)

    def _first_feeds(self, config) -> list[dict[str, np.ndarray]]:
        """The samples of the first images."""
        batch = max(self.graph[name].shape[0] for name in self.graph.inputs)
        return self.calibration.samples[: max(1, EFFECT_IMAGES[config.bits] // batch)]

    def _start(self, config) -> Scales:
        """The scales where the search starts."""
        start = start_table(self.graph, self.plan, self.calibration, config)
        return Scales(self.graph, self.plan, config, start.activations, start.weights)

    def _tick(self, text):
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total, text + self.workers.note)

    def _taken_up(self, kind, name):
        """What an interrupted run decided, or None; the first that it did not is told."""
        found = self.state.get(kind, name)
        if found is None and self.resumed and self.progress is not None:
            self.progress(self.done, self.total, f"resumed at {self.done} of {self.total}")
        self.resumed = found is not None
        return found

    def _score(self, dots: np.ndarray) -> float:
        """How well the network's outputs survive on the search images; larger is better. dots: (images, 3)
        of `Walk.outputs`."""
        if self.how.objective == "cosine":
            return float(np.mean(cosine(*dots.T)))
        dot, norm_o, norm = dots.sum(axis=0)
        return float((2 * dot - norm - norm_o) / norm_o) if norm_o else 0.0

    def _pass(self, way, round_):
        """Decides what a way (`Walk`) wants, one after the other."""
        self.images.decide("begin", way)
        while (wanted := self.images.walk.wanted) is not None:
            kind, name = wanted
            found = self._taken_up(f"{kind} {round_}", name)
            if found is None:
                if kind == "weights":
                    found = self._fitted(self.graph[name])
                else:
                    found = self._search_site(name, way == "layerwise" and round_ == 0)
                self.state.append(f"{kind} {round_}", name, found)
            self.images.decide(kind, name, found)
            self._tick(f"{kind} {name}")

    # -- weights

    def _fitted(self, node) -> dict:
        images = self.images.images(Wanted(node.name, len(self.calibration.samples)))
        start, scale = self.scales.rounding_scale(node), self.scales.decided(node.inputs[0])
        if self.how.objective == "cosine":
            best = search_weights(images, start, scale, self.config, self.workers, self.record)
            return {"scales": best.astype(np.float64).tolist()}
        bias = self.scales.bias(node)
        scales, gains, integers, bias = fit_weights(
            images, start, scale, self.config, self.workers, bias, self.record
        )
        found = {"scales": scales.astype(np.float64).tolist()}
        if gains is not None and (gains != 1).any():
            found["gains"] = gains.astype(np.float64).tolist()
        bits = self.config.bits_of(node.name)
        nearest = quantize_weight(reconstruct.weight_2d(node), ungained(scales, gains), bits)
        rounding = (integers - nearest).astype(np.int8)
        if rounding.any():
            found["rounding"] = pack(rounding)
        if self.how.bias_correction:
            found["bias"] = bias.astype(np.float64).tolist()
        return found

    # -- activations

    def _search_site(self, name, by_float_weights):
        walk = self.images.walk
        start, ready = walk.starts[name], walk.ready(name)
        assert start is not None  # noqa: S101  # a search starts with all scales
        ends = self._two_ends(start)
        if not ready:  # something else reads the site before any layer's input exists
            return [start.scale, start.zero_point] if ends else start.scale
        by_effect = ends and self.effects.issuperset(node.name for node in ready)
        limit = len(self.calibration.samples)
        if by_effect or name in walk.late:
            limit = min(limit, walk.early)
        layers = []
        for node in ready:
            images = self.images.images(Wanted(node.name, limit, name, by_effect))
            layers.append(_Judge(node, images, by_float_weights, self._orders(images)))
        if ends:
            return self._search_ends(name, start, layers, by_effect)
        grid = [start.with_scale(start.scale / f) for f in factors(self.config)]
        best, scores = self._best(layers, grid)
        if self.record is not None:
            self.record("activations", name, factors(self.config), scores, np.array(best))
        return grid[best].scale

    def _orders(self, images: Images) -> Sequence[Once | None]:
        """Of each share of a layer's images `objectives.orders_of`, where stages look at some positions."""
        parts, stages_ = cut(len(images), PARTS), stages(_places(images.node), len(images))
        halves = self.how.objective != "cosine" and not self.how.exhaustive and len(stages_) > 1
        if self.workers.cluster is not None or not halves:
            return [None] * len(parts)
        tasks = [(images.layer, images.share(part), part.start) for part in parts]
        return self.workers.held(objectives.orders_of, tasks)

    def _two_ends(self, start) -> bool:
        """Whether both ends of a site's range are searched."""
        return self.how.asymmetric and start.zero_point > 0

    def _search_ends(self, name, start, layers, by_effect) -> list:
        """[scale, zero point]: both ends of the range together, then apart, by the readers' errors."""
        grid = [start] + [start.with_scale(start.scale * part) for part in TOGETHER]
        best, scores = self._best(layers, grid, 1.0 if by_effect else ROUGHLY, by_effect)
        if self.record is not None:
            self.record("activations", name, 1 / np.array([1.0, *TOGETHER]), scores, np.array(best))
        middle, bits = grid[best], int(start.hi).bit_length()
        low, high = (middle.scale * (end - middle.zero_point) for end in (middle.lo, middle.hi))
        grid = [middle] + [scale_between(low * a, high * b, bits) for a in APART for b in APART]
        found = grid[self._best(layers, grid, by_effect=by_effect)[0]]
        return [found.scale, found.zero_point]

    def _best(self, layers, grid, share=1.0, by_effect=False) -> tuple[int, np.ndarray]:
        """The best candidate for the scale of the layers' input, and the score of each; share: of the
        output positions that are looked at, unless all are (`Method.exhaustive`); by_effect: whether the
        layers' errors are weighted by their effects at the outputs."""
        if self.how.objective == "cosine":
            scores = self._cosines(layers, grid)
            return int(choose(scores)), scores
        return self._halving(layers, grid, 1.0 if self.how.exhaustive else share, by_effect)

    def _cosines(self, layers, grid):
        """The mean over layers and images of the cosine, for every candidate."""
        candidates = Once(grid)
        tasks = [
            (shared, images.share(slice(i, i + 1)), candidates)
            for node, images, by_float_weights, _ in layers
            for shared in [self.images.made(Walk.weights, node.name, by_float_weights)]
            for i in range(len(images))
        ]
        return np.mean(self.workers.run(objectives.cosines_of, tasks), axis=0)

    def _halving(self, layers, grid, share=1.0, by_effect=False) -> tuple[int, np.ndarray]:
        """The candidate with the least squared error, relative to the output, mean over the layers; or
        ``by_effect`` the sum over the layers of the error at the network's outputs.

        Also minus the error of every candidate; of those dropped early, the least times their ratio to the
        best of that stage.
        """
        chosen = np.arange(len(grid))
        count = len(layers[0].images)
        images = cut(count, PARTS)
        size = min(_places(node) for node, *_ in layers)
        scores, least = np.zeros(len(grid)), 0.0
        weighted, candidates = by_effect or self.how.objective == "hessian", Once(grid)
        parts = [
            (shared, candidates, layer.images.share(i), i.start, order)
            for layer in layers
            for shared in [
                self.images.made(Walk.products, layer.node.name, layer.by_float_weights, weighted)
            ]
            for i, order in zip(images, layer.orders, strict=True)
        ]

        def errors_of(part, sample):
            tasks = [(*each, chosen, part, sample) for each in parts]
            found = self.workers.run(objectives.errors_of, tasks)
            totals: list = [None] * len(layers)
            for n, errors in enumerate(found):
                totals[n // len(images)] = errors.plus(totals[n // len(images)])
            return totals

        edges = stages(1 if self.how.exhaustive else size, count)
        tail = objectives.TAIL if len(edges) > 1 else 0.0
        known: list = errors_of((0.0, tail), False) if tail else [None] * len(layers)
        seen: list = [None] * len(layers)
        for first, last in zip([0.0, *edges], edges, strict=False):
            part = tuple(tail + (1 - tail) * edge for edge in (first, last))
            seen = [new.plus(old) for new, old in zip(errors_of(part, last < 1), seen, strict=True)]
            totals = [rest.times(1 / last).plus(most) for rest, most in zip(seen, known, strict=True)]
            shares = [1 / (total.norm * len(layers)) if total.norm > 0 else 1.0 for total in totals]
            if by_effect:
                shares = [1.0] * len(totals)
            relative = sum(share * total.sums for share, total in zip(shares, totals, strict=True))
            at = int(reconstruct.choose_least(relative))
            best, least = chosen[at], relative.min()
            scores[chosen] = relative / max(least, np.finfo(np.float64).tiny)
            if last >= share or len(chosen) == 1:
                break
            noise = sum(share * total.deviation(at) for share, total in zip(shares, totals, strict=True))
            left = np.flatnonzero(relative - relative[at] <= SAFETY * noise)
            chosen = chosen[left]
            known, seen = ([errors.of(left) for errors in each] for each in (known, seen))
        return int(best), -scores * least


def layer_figures(graph: Graph, plan: Plan, table: ScaleTable, samples) -> dict[str, dict]:
    """How well each layer's output survives in the quantized network.

    {layer: {"cosine": mean over samples, "sqnr_db": signal to noise over all samples}}, of the
    layer's output before its activation.
    """
    walk = Walk(Scales.of_table(graph, plan, table), feeds=samples)
    walk.decide("begin", "figures", None)
    return figures_of(walk.figures)


def identity_of(graph: Graph, config: QuantConfig, calibration: Calibration) -> dict[str, object]:
    """What decides the result of a search, for its `State`."""
    return {"model": graph.fingerprint, "config": asdict(config), "data": calibration.digest}


def search(
    graph: Graph,
    plan: Plan,
    calibration: Calibration,
    config: QuantConfig,
    *,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike | State | None = None,
    jobs: int | None = None,
    record: Record | None = None,
) -> ScaleTable:
    """Search every scale of a graph; the same bytes whatever the number of ``jobs`` and the joblib backend.

    jobs: tasks at once; None is what ``joblib.parallel_config`` says, without one the number of CPUs.
    checkpoint: a file that each decision is appended to, taken up again by a later call and removed at the
    end; or the `State` of a larger run. progress(done, total, text) is called after each layer.
    record("weights" or "activations", name, factors of S (F,), scores (F, channels) or (F,), chosen
    indices) is called for each layer and site that is searched here (`curves.Curves` is one); what a
    checkpoint decided has no scores.
    Raises CheckpointError if the file belongs to another model, data or config.
    """
    with threadpool_limits(1):  # the threads are ours: one BLAS order, one result
        return _Search(graph, plan, calibration, config, progress, checkpoint, jobs, record).run()
