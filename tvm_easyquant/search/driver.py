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
Tasks go to joblib: threads by default, any other backend, such as loky or dask, under
``joblib.parallel_config``. Work is cut and summed in an order that does not depend on the number of
workers, and BLAS runs on one thread in each, so the result does not depend on them either.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cached_property, partial
from types import MappingProxyType

import numpy as np
from threadpoolctl import threadpool_limits

from topi_ext.reference import dequantize

from ..cluster import Once
from ..network.gradient import effects
from ..network.graph import Graph, run
from ..network.ops import evaluate, input_axes
from ..scales.calibrate import Calibration, start_table
from ..scales.integer import Sample, Scales, last_uses, node_limits
from ..scales.numerics import QuantConfig, Scale, quantize_weight, scale_between, ungained
from ..scales.partition import Plan
from ..scales.table import ScaleTable, pack, unpack
from . import objectives, reconstruct, wide
from .grid import SAFETY, factors, stages
from .objectives import choose, cosine
from .state import State, opened
from .weights import fit_weights, search_weights, singly
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


class _Search:
    def __init__(self, graph, plan, calibration, config, progress, checkpoint, jobs, record):
        self.graph, self.plan, self.how = graph, plan, config.how
        self.record = record
        self.calibration, self.progress = calibration, progress
        self.workers = Workers(jobs)
        self.layers = [n for n in graph.compute_nodes if n.name in plan.integer]
        searched = [site for site in plan.sites.values() if site.readers]
        self.total = config.rounds * (len(self.layers) + len(searched))
        self.done = 0
        self.scales: Scales
        self._begin(config, searched)
        self.state = opened(checkpoint, identity_of(graph, config, calibration) if checkpoint else {})
        self.resumed = False

    def run(self) -> ScaleTable:
        best = None
        for round_ in range(self.config.rounds):
            layerwise = self.how.order == "layerwise"
            if not layerwise:
                self._weight_pass(round_)
            found = self._activation_pass(round_, weights=layerwise)
            score = self._score(found.samples)
            if best is not None and score <= best[0]:
                self.scales = best[1]  # this round made the output no better: undo it, and stop
                self.done = self.total - 1
                self._tick(f"round {round_ + 1} undone")
                break
            best, figures = (score, self.scales.copy()), found.result()
        self.state.remove()
        s = self.scales
        activations = {site: s.decided(site) for site in s.activations}
        return ScaleTable(
            self.graph.fingerprint, self.config, activations, s.weights, figures,
            s.rounding, s.biases, s.gains,
        )  # fmt: skip

    def _begin(self, config, sites) -> None:
        """The start, with the sites that get more bits; and, of the layers whose reading is weighed by it,
        the effect at the outputs on each of the first images."""
        chooses = config.wide is None and any(config.bits_of(*site.readers) < 8 for site in sites)
        self._start(config)
        feeds = self._first_feeds
        judged = [s for s in sites if chooses or self._two_ends(self.scales.decided(s.name))]
        readers = [reader for site in judged for reader in site.readers if config.weighs_effects]
        self.effects = effects(self.graph, feeds, readers, each=self.workers.local) if readers else {}
        if chooses:
            noise = wide.noises(self.scales, feeds, self.effects, self.workers.local)
            self._start(replace(config, wide=wide.choose(self.scales, noise)))

    @property
    def _first_feeds(self) -> list[dict[str, np.ndarray]]:
        """The samples of the first images."""
        batch = max(self.graph[name].shape[0] for name in self.graph.inputs)
        return self.calibration.samples[: max(1, EFFECT_IMAGES[self.config.bits] // batch)]

    def _start(self, config) -> None:
        """The scales where the search starts."""
        start = start_table(self.graph, self.plan, self.calibration, config)
        self.config = config
        self.scales = Scales(self.graph, self.plan, config, start.activations, start.weights)

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

    def _score(self, samples) -> float:
        """How well the network's outputs survive on the search images; larger is better."""
        dots = np.zeros((len(samples), 3))
        for row, sample in zip(dots, samples, strict=True):
            for tensor in (t for t in self.graph.outputs if self.graph[t].dtype == "float32"):
                o = sample.floats[tensor].astype(np.float64).ravel()
                y = sample.real_value(tensor, self.scales).astype(np.float64).ravel()
                row += (o @ y, o @ o, y @ y)
        if self.how.objective == "cosine":
            return float(np.mean(cosine(*dots.T)))
        dot, norm_o, norm = dots.sum(axis=0)
        return float((2 * dot - norm - norm_o) / norm_o) if norm_o else 0.0

    def _walk(self, before, samples):
        """Every sample through both networks; before(node, samples) runs ahead of each node."""
        dead = last_uses(self.graph)
        for node in self.graph:
            self.workers.local(lambda s, node=node: s.advance_float(node), samples)
            before(node, samples)
            self.workers.local(lambda s, node=node: s.advance(node, self.scales), samples)
            for sample in samples:
                sample.forget(dead.get(node.name, ()), self.scales)

    # -- weights

    def _weight_pass(self, round_):
        def before(node, samples):
            if node in self.layers:
                self._fit(node, samples, round_)

        self._walk(before, [Sample(feed) for feed in self.calibration.samples])

    def _fit(self, node, samples, round_):
        kind = f"weights {round_}"
        found = self._taken_up(kind, node.name)
        if found is None:
            found = self._fitted(node, samples)
            self.state.append(kind, node.name, found)
        name, channels = node.name, node.channels
        self.scales.weights[name] = np.asarray(found["scales"], np.float32)
        self.scales.rounding.pop(name, None)
        if "rounding" in found:
            self.scales.rounding[name] = unpack(name, found["rounding"], channels)
        self.scales.gains.pop(name, None)
        if "gains" in found:
            self.scales.gains[name] = np.asarray(found["gains"], np.float32)
        if "bias" in found:
            self.scales.biases[name] = np.asarray(found["bias"], np.float32)
        self._tick(f"weights {name}")

    def _fitted(self, node, samples) -> dict:
        (tensor,) = node.inputs
        inputs = [x.stored_value(tensor, self.scales) for x in samples]
        outputs = [x.floats[node.name] for x in samples]
        start, scale = self.scales.rounding_scale(node), self.scales.decided(tensor)
        if self.how.objective == "cosine":
            best = search_weights(
                node, inputs, outputs, start, scale, self.config, None, self.workers.run, self.record
            )
            return {"scales": best.astype(np.float64).tolist()}
        bias = self.scales.bias(node)
        scales, gains, integers, bias = fit_weights(
            node, inputs, outputs, start, scale, self.config, self.workers.run, bias, self.record
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

    def _activation_pass(self, round_, weights=False):
        """Decides each site when it is first read; with ``weights``, each layer's too (layerwise)."""
        starts = dict(self.scales.activations)
        for site in self.plan.sites.values():
            if site.readers:
                self.scales.activations[site.name] = None

        def before(node, samples):
            if node.name in self.plan.integer and node.operator.moves:
                return  # moves wait with their site
            for tensor in node.inputs:
                site = self.plan.site_of.get(tensor)
                if site is not None and self.scales.activations[site] is None:
                    self._decide(self.plan.sites[site], starts[site], samples, round_, weights)
            if weights and node in self.layers:
                self._fit(node, samples, round_)

        figures = _Figures(self.scales, self.calibration.samples)
        self._walk(before, figures.samples)
        for name, scale in self.scales.activations.items():
            if scale is None:  # nobody read it as integers after all
                self.scales.activations[name] = starts[name]
        return figures

    def _decide(self, site, start, samples, round_, layerwise):
        kind = f"activations {round_}"
        found = self._taken_up(kind, site.name)
        if found is None:
            found = self._search_site(site, start, samples, layerwise and round_ == 0)
            self.state.append(kind, site.name, found)
        self.scales.activations[site.name] = (
            Scale(found[0], found[1], start.lo, start.hi)
            if isinstance(found, list)
            else start.with_scale(float(found))
        )
        for sample in samples:
            sample.settle(site.tensors, self.scales)
        self._tick(f"activations {site.name}")

    def _producer(self, tensor):
        """The node whose result is stored as ``tensor``."""
        return self.graph[self.plan.fused.get(tensor, tensor)]

    def _search_site(self, site, start, samples, by_float_weights):
        floats: list[Mapping[str, np.ndarray]] = [sample.floats for sample in samples]
        ahead = self._ahead.get(site.name)
        if ahead is None:
            known = [self._site_values(site, sample) for sample in samples]
        else:
            known = [self._site_values(site, *pair) for pair in zip(samples, ahead, strict=False)]
            floats = [{**now, **later} for now, later in zip(floats, ahead, strict=False)]
        ready = [self.graph[r] for r in site.readers if self.graph[r].inputs[0] in known[0]]
        if not ready:  # something else reads the site before any layer's input exists
            return [start.scale, start.zero_point] if self._two_ends(start) else start.scale
        layers = []
        for node in ready:
            values = singly(v[node.inputs[0]] for v in known)
            outputs = singly(evaluate(node, self._float_value(node.inputs[0], f)) for f in floats)
            scales = np.ones(node.channels, np.float32)
            weight = node.weight
            if not by_float_weights:
                weight, scales = self.scales.integer_weight(node), self.scales.weights[node.name]
            layers.append((node, values, outputs, weight.astype(np.float32), scales))
        if self._two_ends(start):
            return self._search_ends(site, start, layers)
        grid = [start.with_scale(start.scale / f) for f in factors(self.config)]
        best, scores = self._best(layers, grid)
        if self.record is not None:
            self.record("activations", site.name, factors(self.config), scores, np.array(best))
        return grid[best].scale

    def _two_ends(self, start) -> bool:
        """Whether both ends of a site's range are searched."""
        return self.how.asymmetric and start.zero_point > 0

    def _search_ends(self, site, start, layers) -> list:
        """[scale, zero point]: both ends of the range together, then apart, by the readers' errors."""
        names = [node.name for node, *_ in layers]
        known = [self.effects[name] for name in names] if self.effects.keys() >= set(names) else None
        grid = [start] + [start.with_scale(start.scale * part) for part in TOGETHER]
        best, scores = self._best(layers, grid, 1.0 if known else ROUGHLY, known)
        if self.record is not None:
            self.record("activations", site.name, 1 / np.array([1.0, *TOGETHER]), scores, np.array(best))
        middle, bits = grid[best], int(start.hi).bit_length()
        low, high = (middle.scale * (end - middle.zero_point) for end in (middle.lo, middle.hi))
        grid = [middle] + [scale_between(low * a, high * b, bits) for a in APART for b in APART]
        found = grid[self._best(layers, grid, effects=known)[0]]
        return [found.scale, found.zero_point]

    def _best(self, layers, grid, share=1.0, effects=None) -> tuple[int, np.ndarray]:
        """The best candidate for the scale of the layers' input, and the score of each; share: of the
        output positions that are looked at, unless all are (`Method.exhaustive`); effects: those of the
        layers, by which their errors are weighted on as many images."""
        if self.how.objective == "cosine":
            scores = self._cosines(layers, grid)
            return int(choose(scores)), scores
        return self._halving(layers, grid, 1.0 if self.how.exhaustive else share, effects)

    def _cosines(self, layers, grid):
        """The mean over layers and images of the cosine, for every candidate."""
        tasks = [
            (shared, v, weight, scales, self.scales.bias(node), o, grid)
            for node, values, outputs, weight, scales in layers
            for shared in [Once(node)]
            for v, o in zip(values, outputs, strict=True)
        ]
        return np.mean(self.workers.run(objectives.site_cosines, tasks), axis=0)

    def _halving(self, layers, grid, share=1.0, effects=None) -> tuple[int, np.ndarray]:
        """The candidate with the least squared error, relative to the output, mean over the layers; with
        ``effects`` the sum over the layers of the error at the network's outputs.

        Also minus the error of every candidate; of those dropped early, the least times their ratio to the
        best of that stage.
        """
        chosen = np.arange(len(grid))
        weights = effects or [None] * len(layers)
        work = [self._work(layer, one) for layer, one in zip(layers, weights, strict=True)]
        images = cut(len(work[0][1]), PARTS)
        size = min(node.shape[1] * node.shape[2] if len(node.shape) == 4 else 1 for node, *_ in work)
        scores, least = np.zeros(len(grid)), 0.0
        parts = [
            (Once((node, products, grid)), Once((values[i], targets[i], h and h[i])), i.start)
            for node, values, targets, products, h in work
            for i in images
        ]

        def errors_of(part, sample):
            tasks = [(*each, chosen, part, sample) for each in parts]
            found = self.workers.run(objectives.errors_of, tasks)
            totals: list = [None] * len(work)
            for n, errors in enumerate(found):
                totals[n // len(images)] = errors.plus(totals[n // len(images)])
            return totals

        edges = stages(1 if self.how.exhaustive else size, len(work[0][1]))
        tail = objectives.TAIL if len(edges) > 1 else 0.0
        known: list = errors_of((0.0, tail), False) if tail else [None] * len(work)
        seen: list = [None] * len(work)
        for first, last in zip([0.0, *edges], edges, strict=False):
            part = tuple(tail + (1 - tail) * edge for edge in (first, last))
            seen = [new.plus(old) for new, old in zip(errors_of(part, last < 1), seen, strict=True)]
            totals = [rest.times(1 / last).plus(most) for rest, most in zip(seen, known, strict=True)]
            shares = [1 / (total.norm * len(work)) if total.norm > 0 else 1.0 for total in totals]
            if effects is not None:
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

    def _work(self, layer, effects):
        """What the tasks of `_halving` have of a layer: (node, inputs, what its products are to be, its
        weights for `SiteTask`, `_sensitivity` or its effect on every image, or None)."""
        node, values, outputs, weight, scales = layer
        bias = self.scales.bias(node)
        if effects is None:
            weights = [self._sensitivity(node, o) for o in outputs]
        else:
            weights = singly(effect.value for effect in effects)
        values, outputs = values[: len(weights)], outputs[: len(weights)]
        targets = [o - bias for o in outputs]
        weighted = weights[0] is not None
        flat = objectives.projected(node, weight * scales, weighted)
        return node, values, targets, flat, weights if weighted else None

    def _sensitivity(self, node, output):
        """float32, like the output: how the next operators pass an error on (objective "hessian"); None.

        1 where the following clip lets it through, 0 elsewhere, times the norm of the weights with which
        the one layer that reads the channel uses it: a diagonal Gauss-Newton approximation.
        """
        if self.how.objective != "hessian":
            return None
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

    @cached_property
    def _ahead(self) -> dict[str, list[dict[str, np.ndarray]]]:
        """{site: on each of the first images, its tensors of the float network that are not made yet when
        it is first read}, of the sites that have some."""
        late = {} if self.how.order != "layerwise" else self._late()
        wanted = {tensor for tensors in late.values() for tensor in tensors}
        feeds = self._first_feeds
        found: list[dict[str, np.ndarray]] = [{} for _ in feeds]

        def collect(number: int) -> None:
            def see(node, value):
                if node.name in wanted:
                    found[number][node.name] = value

            run(self.graph, feeds[number], see)

        if wanted:
            self.workers.local(collect, range(len(found)))
        return {site: [{t: each[t] for t in tensors} for each in found] for site, tensors in late.items()}

    def _late(self) -> dict[str, list[str]]:
        """{site: its tensors that are computed after it is first read, and that layers read, as they are or
        moved}."""
        order, late = {node.name: i for i, node in enumerate(self.graph)}, {}

        def moves(name):
            return name in self.plan.integer and self.graph[name].operator.moves

        def computed(name):
            return set().union(*map(computed, self.graph[name].inputs)) if moves(name) else {name}

        for site in self.plan.sites.values():
            users = {user for tensor in site.tensors for user in self.graph.users[tensor]}
            first = min((order[user] for user in users if not moves(user)), default=len(order))
            read = set().union(*(computed(self.graph[reader].inputs[0]) for reader in site.readers))
            after = [t for t in site.tensors if t in read and order[self._producer(t).name] >= first]
            if after:
                late[site.name] = after
        return late

    def _float_value(self, tensor, floats):
        """A tensor of the float network that exists, or that moves alone make of those that do."""
        if tensor in floats:
            return floats[tensor]
        node = self.graph[tensor]
        return evaluate(node, *(self._float_value(t, floats) for t in node.inputs))

    def _site_values(self, site, sample, ahead=MappingProxyType({})):
        """tensor -> float32 before rounding: those of a site that exist, or are given ``ahead``, and what
        moves make of them."""
        values = {}
        for name in site.tensors:
            producer = self._producer(name)
            if name in ahead:
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
        return values


class _Figures:
    """How well each layer's output, before its activation, survives: sums of every sample."""

    def __init__(self, scales: Scales, samples):
        self.layers = [n.name for n in scales.graph.compute_nodes if n.name in scales.plan.integer]
        self.scales = scales
        self.sums: list[dict[str, np.ndarray]] = [{} for _ in samples]
        self.samples = [Sample(feed) for feed in samples]
        for sample, sums in zip(self.samples, self.sums, strict=True):
            sample.watch = partial(self._see, sample, sums)

    def _see(self, sample, sums, node, raw):
        if node.name in self.layers:
            y = dequantize(raw, self.scales.unit(node), 0).astype(np.float64).ravel()
            o = sample.floats[node.name].astype(np.float64).ravel()
            noise = o - y
            sums[node.name] = np.array((cosine(y @ o, o @ o, y @ y), o @ o, noise @ noise))

    def result(self) -> dict[str, dict]:
        found = {}
        for name in self.layers:
            similarity, signal, noise = sum((sums[name] for sums in self.sums), np.zeros(3))
            decibel = float(10 * np.log10(signal / noise)) if noise > 0 < signal else float("inf")
            found[name] = {"cosine": float(similarity / len(self.sums)), "sqnr_db": decibel}
        return found


def layer_figures(graph: Graph, plan: Plan, table: ScaleTable, samples) -> dict[str, dict]:
    """How well each layer's output survives in the quantized network.

    {layer: {"cosine": mean over samples, "sqnr_db": signal to noise over all samples}}, of the
    layer's output before its activation.
    """
    scales = Scales.of_table(graph, plan, table)
    figures = _Figures(scales, samples)
    dead = last_uses(graph)
    for sample in figures.samples:
        for node in graph:
            sample.advance_float(node)
            sample.advance(node, scales)
            sample.forget(dead.get(node.name, ()), scales)
    return figures.result()


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
