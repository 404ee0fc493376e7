"""EasyQuant scale search (arXiv 2006.16669, section 3.2 and Algorithm 1), in numpy.

For every layer the scales are chosen that make its quantized output most similar to the float one:
the mean over images of the cosine between ``O``, the layer's output in the float network, and
``O^``, the dequantized output of the quantized layer fed by the quantized network before it (both
with the bias, before the activation). From a start at the maximum, a full pass over all weight
scales, one per output channel, then a full pass over all activation scales; candidates are
``linspace(alpha, beta, grid)`` times the starting scale of the paper, S = 1 / scale, and S itself.

Where the paper has one activation scale per layer *input*, one tensor stored once has one scale: a
site read by several layers takes the mean of their objectives (those whose input exists, or follows by
moves alone, when the site is first read). A site that no layer reads keeps its start.

A channel of a dense layer, or of a convolution with a 1x1 output, has one number per image, and the
cosine of two numbers says nothing (the paper leaves dense layers float). There the cosine runs over
the images instead of being averaged over them.

The method ``easyquant_mse`` keeps all this but the objective: minus the squared error relative to the
output. The cosine does not see a channel's gain; the error does.

The candidates of a channel need no convolution each. For a fixed input matrix X (im2col of the
quantized input) and float output o, a candidate w has ``num = w . (X^T o)`` and
``|O^|^2 = w^T (X^T X) w``: the Gram matrix is made once per image. Where X has fewer rows than about
twice its columns the plain product is cheaper and is used instead.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits

from topi_ext.reference import quantize as quantize_tensor
from topi_ext.reference import windows

from .calibrate import Calibration, start_table
from .files import write_text
from .graph import MOVES, Graph, Node, conv_columns, evaluate, is_depthwise, linear
from .integer import Sample, Scales, last_uses
from .numerics import QuantConfig, steps
from .scale_table import ScaleTable
from .sites import Plan

Progress = Callable[[int, int, str], None]
Record = Callable[[str, str, np.ndarray, np.ndarray, np.ndarray], None]
CHUNK = 2**26  # bytes of candidate weights held at once
TIE = 1e-12  # mean cosines nearer than this are equal: the rest is float64 rounding


class CheckpointError(ValueError):
    """A checkpoint does not belong to this search; the message names the file and the cure."""


def factors(config: QuantConfig) -> np.ndarray:
    """Candidate factors of S, nearest to 1 first: on a tie the smaller change wins."""
    grid = np.linspace(config.alpha, config.beta, config.grid)
    grid = np.unique(np.append(grid, 1.0))
    return grid[np.argsort(np.abs(np.log(grid)), kind="stable")]


def cosine(dot, norm_o, norm):
    """``dot / sqrt(norm_o * norm)`` of squared norms; two zero vectors are alike (1), one is not (0)."""
    product = np.sqrt(np.maximum(norm_o, 0.0)) * np.sqrt(np.maximum(norm, 0.0))
    both = (norm_o <= 0) & (norm <= 0)
    return np.where(product > 0, dot / np.where(product > 0, product, 1.0), np.where(both, 1.0, 0.0))


def less_error(dot, norm_o, norm):
    """Minus the squared error relative to the output: ``-|O - O^|^2 / |O|^2``; no division by zero."""
    error = norm_o - 2 * dot + norm
    return -error / np.where(norm_o > 0, norm_o, 1.0)


#: objective -> score(O . O^, |O|^2, |O^|^2), larger is better
OBJECTIVES = {"cosine": cosine, "mse": less_error}


def choose(similarity):
    """Index of the best candidate along axis 0; among equals the first, which is nearest to 1.

    Without this a dead channel, whose candidates are all alike, gets the scale that rounding noise
    picks, and so does every dense channel where the search sees one image.
    """
    return (similarity >= similarity.max(axis=0) - TIE).argmax(axis=0)


# -- weights: every channel of a layer at once


def _candidate_weights(weight_2d, scales, bits):
    """int8-valued float64 (len(scales), K, C): weight_2d (K, C) at candidate scales (F, C)."""
    top = steps(bits, signed=True)
    return np.clip(np.rint(weight_2d / scales[:, None, :]), -top, top).astype(np.float64)


def _channel_similarity(x, o, bias, units, candidates, score=cosine):
    """Each channel's score on one image, for every candidate: (F, C).

    x: (M, K) integer steps, in a float type that holds their dot products exactly; o: (M, C) float
    output; bias: (C,); units: (F, C) real units per step of the accumulator; candidates: (F, K, C).
    """
    rows, depth = x.shape
    count, _, channels = candidates.shape
    o = o.astype(np.float64)
    offset = bias / units  # the bias in accumulator steps
    if rows > 2 * depth:
        x = x.astype(np.float64)
        gram, cross, colsum = x.T @ x, x.T @ o, x.sum(axis=0)
        flat = np.ascontiguousarray(candidates.transpose(1, 0, 2)).reshape(depth, -1)
        square = (flat * (gram @ flat)).sum(axis=0).reshape(count, channels)
        linear_sum = (colsum @ flat).reshape(count, channels)
        dot = np.einsum("fkc,kc->fc", candidates, cross)
    else:
        square, linear_sum, dot = (np.empty((count, channels)) for _ in range(3))
        for f in range(count):
            y = (x @ candidates[f].astype(x.dtype)).astype(np.float64)
            square[f], linear_sum[f] = (y * y).sum(axis=0), y.sum(axis=0)
            dot[f] = (y * o).sum(axis=0)
    norm = square + 2 * offset * linear_sum + rows * offset**2
    return score(units * (dot + offset * o.sum(axis=0)), (o * o).sum(axis=0), units**2 * norm)


def _depthwise_similarity(x, o, bias, units, candidates, score=cosine):
    """`_channel_similarity` where every channel has its own X: x (M, K, C)."""
    x, o = x.astype(np.float64), o.astype(np.float64)
    offset = bias / units
    gram = np.einsum("mkc,mlc->ckl", x, x, optimize=True)
    cross = np.einsum("mkc,mc->kc", x, o)
    square = np.einsum("fkc,ckl,flc->fc", candidates, gram, candidates, optimize=True)
    linear_sum = np.einsum("fkc,kc->fc", candidates, x.sum(axis=0))
    dot = np.einsum("fkc,kc->fc", candidates, cross)
    norm = square + 2 * offset * linear_sum + x.shape[0] * offset**2
    return score(units * (dot + offset * o.sum(axis=0)), (o * o).sum(axis=0), units**2 * norm)


def _depthwise_columns(x, node, part):
    """The windows of some channels of a depthwise convolution's input: (M, R * S, channels)."""
    a = node.attrs
    view = windows(x[..., part], node.weight.shape[:2], a["strides"], a["padding"], a["dilation"], 0)
    return view.reshape(-1, node.weight.shape[0] * node.weight.shape[1], part.stop - part.start)


def _columns(x, node, part):
    """The im2col matrix that output channels ``part``, all of one group, are computed from: (M, K)."""
    if node.op == "dense":
        return x
    return conv_columns(x, node, part.start * node.attrs["groups"] // node.channels)


def search_weights(
    node: Node, inputs, outputs, start, scale, config: QuantConfig, jobs=1, record: Record | None = None
):
    """The best weight scales of a layer: float32 (K,).

    inputs: the quantized input, uint8 NHWC or (N, C), stored with ``scale`` (`Scale`), as a list of
    batches; outputs: the float output O in the same batches; both are taken image by image. start:
    float32 (K,) scales. Every channel takes its own best candidate (paper, 3.2: "all filters of a
    layer are searched in one sweep"). The im2col matrices of at most ``jobs`` images exist at a time.
    """
    inputs, outputs = ([x[i : i + 1] for x in xs for i in range(len(x))] for xs in (inputs, outputs))
    if node.shape[1:-1] in ((), (1, 1)):  # one position: the cosine runs over the images
        inputs, outputs = [np.concatenate(inputs)], [np.concatenate(outputs)]
    grid = factors(config)
    scales = (start.astype(np.float64)[None] / grid[:, None]).astype(np.float32)  # S * f = 1 / scale
    units = np.float64(scale.scale) * scales
    weight = node.weight.T if node.op == "dense" else node.weight.reshape(-1, node.channels)
    depthwise = is_depthwise(node)
    similarity, matrix = (
        (_depthwise_similarity, _depthwise_columns) if depthwise else (_channel_similarity, _columns)
    )
    bits = config.bits_of(node.name)
    farthest = max(scale.hi - scale.zero_point, scale.zero_point - scale.lo)

    def of_piece(part, threads):
        """The scales of a slice of channels."""
        candidates = _candidate_weights(weight[:, part], scales[:, part], bits)
        reach = farthest * np.abs(candidates).sum(axis=1).max()
        exact = np.float32 if reach < 2**24 else np.float64  # holds every partial sum

        def of_image(q, o):
            x = matrix(q.astype(exact) - exact(scale.zero_point), node, part)
            o = o.reshape(-1, node.channels)[:, part]
            bias = node.bias[part].astype(np.float64)
            return similarity(x, o, bias, units[:, part], candidates, OBJECTIVES[config.how.objective])

        found = Parallel(threads, prefer="threads")(
            delayed(of_image)(q, o) for q, o in zip(inputs, outputs, strict=True)
        )
        scores = sum(found) / len(found)
        best = choose(scores)
        return scales[best, np.arange(part.start, part.stop)], best, scores if record else None

    # pieces of channels whose candidates fit in memory, none across two groups
    per = node.channels if depthwise or node.op == "dense" else node.channels // node.attrs["groups"]
    width = max(1, CHUNK // (8 * len(grid) * weight.shape[0]))
    pieces = [
        slice(first, min(first + width, group + per))
        for group in range(0, node.channels, per)
        for first in range(group, group + per, width)
    ]
    outer, inner = (1, jobs) if len(inputs) > 1 else (jobs, 1)
    found = Parallel(outer, prefer="threads")(delayed(of_piece)(part, inner) for part in pieces)
    chosen, best, scores = zip(*found, strict=True)
    if record is not None:
        record("weights", node.name, grid, np.concatenate(scores, axis=1), np.concatenate(best))
    return np.concatenate(chosen)


# -- activations


def _site_similarity(values, layers, candidates, score):
    """Mean over layers and the images of a batch of the score of the whole output, per candidate: (F,).

    values: {layer: its input, float32, before it is rounded}; layers: (node, int weight as float32,
    unit weight scales, float output O).
    """
    found = np.zeros(len(candidates))
    for node, weight, scales, o in layers:
        o64 = o.astype(np.float64).reshape(len(o), -1)
        norm_o = [image @ image for image in o64]
        for f, s in enumerate(candidates):
            q = quantize_tensor(values[node.name], s.scale, s.zero_point, s.lo, s.hi)
            x = q.astype(np.float32) - np.float32(s.zero_point)
            y = linear(x, node, weight) * (np.float32(s.scale) * scales) + node.bias
            y = y.astype(np.float64).reshape(len(o), -1)
            scores = [score(a @ b, n, a @ a) for a, b, n in zip(y, o64, norm_o, strict=True)]
            found[f] += np.mean(scores)
    return found / len(layers)


# -- the two passes


class _Search:
    def __init__(self, graph, plan, calibration, config, progress, checkpoint, jobs, record):
        self.graph, self.plan, self.config, self.record = graph, plan, config, record
        self.calibration, self.progress = calibration, progress
        self.jobs = jobs if jobs is not None else min(os.cpu_count() or 1, len(calibration.samples))
        start = start_table(graph, plan, calibration, config)
        self.scales = Scales(graph, plan, config, start.activations, start.weights)
        self.start = start
        self.layers = [n for n in graph.compute_nodes if n.name in plan.integer]
        searched = [site for site in plan.sites.values() if site.readers]
        self.total = config.rounds * (len(self.layers) + len(searched))
        self.done = 0
        self.checkpoint = _Checkpoint(checkpoint, graph, config, calibration)

    def run(self) -> ScaleTable:
        for round_ in range(self.config.rounds):
            self._weight_pass(round_)
            self._activation_pass(round_)
        table = ScaleTable(
            self.graph.fingerprint,
            self.config,
            self.scales.activations,
            self.scales.weights,
        )
        figures = layer_figures(self.graph, self.plan, table, self.calibration.samples)
        self.checkpoint.remove()
        return ScaleTable(table.model, table.config, table.activations, table.weights, figures)

    def _tick(self, text):
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total, text)

    def _walk(self, before):
        """Every sample through both networks; before(node, samples) runs ahead of each node."""
        samples = [Sample(feed) for feed in self.calibration.samples]
        dead = last_uses(self.graph)
        threads = Parallel(self.jobs, prefer="threads")
        for node in self.graph:
            threads(delayed(s.advance_float)(node) for s in samples)
            before(node, samples)
            threads(delayed(s.advance)(node, self.scales) for s in samples)
            for sample in samples:
                sample.forget(dead.get(node.name, ()), self.scales)

    def _weight_pass(self, round_):
        def choose(node, samples):
            if node not in self.layers:
                return
            key = f"{round_} weights {node.name}"
            found = self.checkpoint.get(key)
            if found is None:
                (tensor,) = node.inputs
                s = self.scales.of(tensor)
                found = search_weights(
                    node,
                    [x.stored_value(tensor, self.scales) for x in samples],
                    [x.floats[node.name] for x in samples],
                    self.scales.weights[node.name],
                    s,
                    self.config,
                    self.jobs,
                    self.record,
                )
                self.checkpoint.put(key, found)
            self.scales.weights[node.name] = np.asarray(found, np.float32)
            self._tick(f"weights {node.name}")

        self._walk(choose)

    def _activation_pass(self, round_):
        starts = dict(self.scales.activations)
        for site in self.plan.sites.values():
            if site.readers:
                self.scales.activations[site.name] = None

        def decide(node, samples):
            if node.name in self.plan.integer and node.op in MOVES:
                return  # moves wait with their site
            for tensor in node.inputs:
                site = self.plan.site_of.get(tensor)
                if site is not None and self.scales.activations[site] is None:
                    self._decide(self.plan.sites[site], starts[site], samples, round_)

        self._walk(decide)
        for name, scale in self.scales.activations.items():
            if scale is None:  # nobody read it as integers after all
                self.scales.activations[name] = starts[name]

    def _decide(self, site, start, samples, round_):
        key = f"{round_} activations {site.name}"
        found = self.checkpoint.get(key)
        if found is None:
            found = self._search_site(site, start, samples)
            self.checkpoint.put(key, found)
        self.scales.activations[site.name] = start.with_scale(float(found))
        for sample in samples:
            sample.settle(site.tensors, self.scales)
        self._tick(f"activations {site.name}")

    def _producer(self, tensor):
        """The node whose result is stored as ``tensor``."""
        return self.graph[self.plan.fused.get(tensor, tensor)]

    def _search_site(self, site, start, samples):
        known = self._site_values(site, samples[0])
        ready = [self.graph[r] for r in site.readers if self.graph[r].inputs[0] in known]
        if not ready:  # something else reads the site before any layer's input exists
            return start.scale
        grid = [start.with_scale(start.scale / f) for f in factors(self.config)]
        weights = {n.name: self.scales.integer_weight(n).astype(np.float32) for n in ready}

        def one(sample):
            values = self._site_values(site, sample)
            layers = []
            for node in ready:
                o = evaluate(node, self._float_value(node.inputs[0], sample))
                layers.append((node, weights[node.name], self.scales.weights[node.name], o))
            inputs = {node.name: values[node.inputs[0]] for node in ready}
            return _site_similarity(inputs, layers, grid, OBJECTIVES[self.config.how.objective])

        found = Parallel(self.jobs, prefer="threads")(delayed(one)(s) for s in samples)
        scores = np.mean(found, axis=0)
        best = int(choose(scores))
        if self.record is not None:
            self.record("activations", site.name, factors(self.config), scores, np.array(best))
        return grid[best].scale

    def _float_value(self, tensor, sample):
        """A tensor of the float network that exists, or that moves alone make of those that do."""
        if tensor in sample.floats:
            return sample.floats[tensor]
        node = self.graph[tensor]
        return evaluate(node, *(self._float_value(t, sample) for t in node.inputs))

    def _site_values(self, site, sample):
        """tensor -> float32 before rounding: those of a site that exist, and what moves make of them."""
        values = {}
        for name in site.tensors:
            producer = self._producer(name)
            if producer.name in sample.raw:
                values[name] = sample.unstored(producer, self.scales)
            elif name in sample.real:
                values[name] = sample.real[name]
            elif producer.op in MOVES and name in self.plan.integer:
                if all(t in values for t in producer.inputs):
                    values[name] = evaluate(producer, *(values[t] for t in producer.inputs))
        return values


class _Checkpoint:
    """Decisions made so far, in a file written after each of them; a no-op without a path."""

    def __init__(self, path, graph, config, calibration):
        self.path = None if path is None else Path(path)
        self.found: dict[str, list[float]] = {}
        self.identity = {
            "model": graph.fingerprint,
            "config": json.loads(json.dumps(asdict(config))),
            "data": calibration.digest if path is not None else "",
        }
        if self.path is not None and self.path.exists():
            try:
                saved = json.loads(self.path.read_text(encoding="utf-8"))
                self.found = dict(saved.pop("found"))
            except (OSError, ValueError, KeyError, AttributeError, TypeError):
                raise CheckpointError(
                    f"{self.path} is not a search checkpoint; delete it or name another file"
                ) from None
            for key, mine in self.identity.items():
                if saved.get(key) != mine:
                    raise CheckpointError(
                        f"{self.path} belongs to a search with another {key}; delete it to start anew"
                    )

    def get(self, key):
        return self.found.get(key)

    def put(self, key, value):
        if self.path is not None:
            self.found[key] = np.asarray(value, np.float64).tolist()
            write_text(self.path, json.dumps({**self.identity, "found": self.found}))

    def remove(self):
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def layer_figures(graph: Graph, plan: Plan, table: ScaleTable, samples) -> dict[str, dict]:
    """How well each layer's output survives in the quantized network.

    {layer: {"cosine": mean over samples, "sqnr_db": signal to noise over all samples}}, of the
    layer's output before its activation.
    """
    scales = Scales(graph, plan, table.config, table.activations, table.weights)
    sums = {n.name: np.zeros(3) for n in graph.compute_nodes if n.name in plan.integer}
    dead = last_uses(graph)
    for feed in samples:
        sample = Sample(feed)
        for node in graph:
            sample.advance_float(node)
            if node.name in sums:
                weight = scales.integer_weight(node)
                s = scales.of(node.inputs[0])
                x = sample.stored_value(node.inputs[0], scales).astype(np.float32) - s.zero_point
                y = linear(x, node, weight.astype(np.float32)) * scales.unit(node) + node.bias
                o = sample.floats[node.name].astype(np.float64).ravel()
                y = y.astype(np.float64).ravel()
                noise = o - y
                sums[node.name] += (cosine(y @ o, o @ o, y @ y), o @ o, noise @ noise)
            sample.advance(node, scales)
            sample.forget(dead.get(node.name, ()), scales)
    return {
        name: {
            "cosine": float(similarity / len(samples)),
            "sqnr_db": float(10 * np.log10(signal / noise)) if noise > 0 < signal else float("inf"),
        }
        for name, (similarity, signal, noise) in sums.items()
    }


def search(
    graph: Graph,
    plan: Plan,
    calibration: Calibration,
    config: QuantConfig,
    *,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike | None = None,
    jobs: int | None = None,
    record: Record | None = None,
) -> ScaleTable:
    """Search every scale of a graph; deterministic, whatever the number of ``jobs`` (threads).

    checkpoint: a file that is written after each layer and taken up again by a later call; it is
    removed at the end. progress(done, total, text) is called after each layer. record("weights" or
    "activations", name, factors of S (F,), scores (F, channels) or (F,), chosen indices) is called for each
    layer and site that is searched here (`curves.Curves` is one); what a checkpoint decided has no scores.
    Raises CheckpointError if the file belongs to another model, data or config.
    """
    with threadpool_limits(1):  # the threads are ours: one BLAS order, one result
        return _Search(graph, plan, calibration, config, progress, checkpoint, jobs, record).run()
