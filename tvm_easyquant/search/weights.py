"""The weight scales of one layer: every channel's best candidate, by the cosine or by the squared error.

No TVM here.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np

from ..cluster import Once
from ..network.node import Node
from ..network.ops import is_depthwise
from ..scales.numerics import QuantConfig, Scale, steps
from . import objectives, reconstruct
from .grid import factors
from .objectives import choose
from .walk import Images
from .workers import PARTS, Workers, cut

CHUNK = 2**26  # bytes of candidate weights held at once
CHANNELS = 128  # output channels fitted in one task


class CosineTask(NamedTuple):
    """A layer and all its candidates: weight: float32 (depth, K), scales: (F, K); its input is stored with
    ``scale``."""

    node: Node
    weight: np.ndarray
    scale: Scale
    scales: np.ndarray
    bits: int


def channel_scores(task: CosineTask, part: slice, images) -> np.ndarray:
    """The cosine of every candidate and of the channels ``part``, summed over the images: (F, C).

    images: (stored inputs, outputs of the float layer, ...), one image each. See `search_weights`.
    """
    node, scale = task.node, task.scale
    top = steps(task.bits, signed=True)
    scales = task.scales[:, part]
    candidates = np.stack([np.clip(np.rint(task.weight[:, part] / s), -top, top) for s in scales])
    candidates = candidates.astype(np.float64)
    farthest = max(scale.hi - scale.zero_point, scale.zero_point - scale.lo)
    reach = farthest * np.abs(candidates).sum(axis=1).max()
    exact: type[np.floating] = (
        np.float32 if reach < reconstruct.EXACT else np.float64
    )  # holds every partial sum
    cosines = objectives.depthwise_cosines if is_depthwise(node) else objectives.channel_cosines
    bias, units = node.bias[part].astype(np.float64), np.float64(scale.scale) * scales
    found = np.zeros(scales.shape)
    for q, o in zip(*images[:2], strict=True):
        x = reconstruct.columns(q.astype(exact) - exact(scale.zero_point), node, part)
        found += cosines(x, o.reshape(-1, node.channels)[:, part], bias, units, candidates, farthest)
    return found


def search_weights(images: Images, start, scale, config: QuantConfig, workers=None, record=None):
    """The weight scales with the best cosine: float32 (K,).

    images: of a layer the quantized inputs, uint8 NHWC or (N, C), stored with ``scale`` (`Scale`), and the
    float outputs O, as batches; they are taken image by image. start: float32 (K,) scales. Every channel
    takes its own best candidate (paper, 3.2: "all filters of a layer are searched in one sweep").
    """
    workers, node, images = workers or Workers(1), images.node, images.singly()
    if node.shape[1:-1] in ((), (1, 1)):  # one position: the cosine runs over the images
        images = images.together()
    grid = factors(config)
    scales = (start.astype(np.float64)[None] / grid[:, None]).astype(np.float32)  # S * f = 1 / scale
    weight = reconstruct.weight_2d(node)
    # pieces of channels whose candidates fit in memory, none across two groups
    width = max(1, CHUNK // (8 * len(grid) * weight.shape[0]))
    pieces = [
        slice(first, min(first + width, group.stop))
        for group in reconstruct.groups(node)
        for first in range(group.start, group.stop, width)
    ]
    layer = Once(CosineTask(node, weight, scale, scales, config.bits_of(node.name)))
    shares = [images.share(part) for part in cut(len(images), PARTS)]
    tasks = [(layer, part, share) for part in pieces for share in shares]
    found = workers.run(channel_scores, tasks)
    scores = np.concatenate(
        [sum(found[n * len(shares) : (n + 1) * len(shares)]) / len(images) for n in range(len(pieces))],
        axis=1,
    )
    best = choose(scores)
    if record is not None:
        record("weights", node.name, grid, scores, best)
    return scales[best, np.arange(node.channels)]


def fit_weights(images: Images, start, scale, config: QuantConfig, workers, bias=None, record=None):
    """Weights with the least squared error: (scales (K,), gains (K,), integers (depth, K), bias (K,)).

    Arguments as `search_weights`; bias: what is added in the place of the node's own. All float32, but the
    integers. The scales have their gains (None without gain correction) in them, as in a `ScaleTable`.
    """
    node, how, layer = images.node, config.how, images.layer
    bias, grid = node.bias if bias is None else bias, factors(config)
    parts, count = reconstruct.groups(node), cut(len(images), PARTS)
    rows = len(images) * prod(node.shape[:-1])
    keep = not is_depthwise(node) and rows < prod(node.weight.shape[:3])
    shares = [images.share(part) for part in count]
    sums = workers.held(_moments, [(layer, g, share, scale, keep) for g in parts for share in shares])
    total = [
        workers.made(_total, *sums[n * len(shares) : (n + 1) * len(shares)]) for n in range(len(parts))
    ]
    del sums, shares
    tasks = []
    for group, m in zip(parts, total, strict=True):
        quadratic = workers.made(reconstruct.problem, m, bias[group], scale.scale, how.bias_correction)
        for first in range(group.start, group.stop, CHANNELS):
            part = slice(first, min(first + CHANNELS, group.stop))
            tasks.append((quadratic, layer, group, part, start[part], grid, config.bits_of(node.name), how))
    fitted = workers.run(_fit, tasks)
    scales, integers, errors, best, gains = (
        np.concatenate(parts, axis=-1) for parts in zip(*fitted, strict=True)
    )
    correction = None
    if how.gain_correction:
        correction = reconstruct.shrunk(gains[0], gains[1], len(images)).astype(np.float32)
        scales = scales * correction
    if record is not None:
        record("weights", node.name, grid, -errors, best)
    if how.bias_correction:
        sums = [workers.made(_sums, m) for m in total]
        means = workers.run(_means, [(each, integers[:, g]) for each, g in zip(sums, parts, strict=True)])
        bias = np.concatenate([
            (outputs - scale.scale * scales[g] * inputs) / rows
            for g, (outputs, inputs, rows) in zip(parts, means, strict=True)
        ]).astype(np.float32)  # fmt: skip
    return scales, correction, integers.astype(np.float64), bias


def _moments(node, part, images, scale, keep):
    inputs, outputs, *_ = images
    return reconstruct.moments(node, part, inputs, outputs, scale, keep)


def _total(*pieces):
    return reconstruct.Moments.total(pieces)


def _fit(quadratic, node, group, part, start, grid, *others):
    """`reconstruct.fit` of the channels ``part`` of a group, the integers int8; start: their scales."""
    inner = quadratic.channels(slice(part.start - group.start, part.stop - group.start))
    candidates = (start.astype(np.float64)[None] / grid[:, None]).astype(np.float32)
    scales, integers, *rest = reconstruct.fit(
        inner, reconstruct.weight_2d(node)[:, part], candidates, *others
    )
    return scales, integers.astype(np.int8), *rest


def _sums(m):
    return m.outputs, m.inputs, m.rows


def _means(sums, q):
    """(sums of the outputs, sums over the rows of X q, rows), for every channel."""
    outputs, inputs, rows = sums
    q = q.astype(np.float64)
    return outputs, inputs @ q if inputs.ndim == 1 else (inputs * q).sum(axis=0), rows
