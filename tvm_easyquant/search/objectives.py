"""How good a candidate scale is: functions of arrays, run as tasks by `search`.

Cosine: the mean over images (the paper). Squared error: the sum over images, relative to the output.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import ceil, prod
from typing import NamedTuple

import numpy as np

from topi_ext.reference import quantize, windows

from ..network.node import Node
from ..network.ops import is_depthwise, linear
from ..scales.numerics import Scale
from .reconstruct import EXACT

TIE = 1e-12  # mean cosines nearer than this are equal: the rest is float64 rounding


def cosine(dot, norm_o, norm):
    """``dot / sqrt(norm_o * norm)`` of squared norms; two zero vectors are alike (1), one is not (0)."""
    product = np.sqrt(np.maximum(norm_o, 0.0)) * np.sqrt(np.maximum(norm, 0.0))
    both = (norm_o <= 0) & (norm <= 0)
    return np.where(product > 0, dot / np.where(product > 0, product, 1.0), np.where(both, 1.0, 0.0))


def choose(similarity):
    """Index of the best candidate along axis 0; among equals the first, which is nearest to 1.

    Without this a dead channel, whose candidates are all alike, gets the scale that rounding noise
    picks, and so does every dense channel where the search sees one image.
    """
    return (similarity >= similarity.max(axis=0) - TIE).argmax(axis=0)


# -- weights: the cosine of every channel of a layer at once


def exact_gram(x, reach) -> np.ndarray:
    """float64 X^T X of float32 integers within +-reach, exact: in blocks that float32 holds exactly."""
    block = max(1, int(EXACT // max(reach, 1) ** 2))
    gram = np.zeros((x.shape[1], x.shape[1]))
    for first in range(0, len(x), block):
        rows = x[first : first + block]
        gram += rows.T @ rows
    return gram


def channel_cosines(x, o, bias, units, candidates, reach=255):
    """Each channel's cosine on one image, for every candidate: (F, C).

    x: (M, K) integer steps within +-reach, in a float type that holds their dot products exactly; o: (M, C)
    float output; bias: (C,); units: (F, C) real units per step of the accumulator; candidates: (F, K, C).
    Where X has more than twice as many rows as columns, its Gram matrix makes each candidate cost K^2.
    """
    rows, depth = x.shape
    count, _, channels = candidates.shape
    o = o.astype(np.float64)
    offset = bias / units  # the bias in accumulator steps
    if rows > 2 * depth:
        gram = exact_gram(x.astype(np.float32), reach)
        x = x.astype(np.float64)
        cross, colsum = x.T @ o, x.sum(axis=0)
        flat = np.ascontiguousarray(candidates.transpose(1, 0, 2)).reshape(depth, -1)
        square = (flat * (gram @ flat)).sum(axis=0).reshape(count, channels)
        linear_sum = (colsum @ flat).reshape(count, channels)
        dot = np.einsum("fkc,kc->fc", candidates, cross)
    else:
        square, linear_sum, dot = (np.empty((count, channels)) for _ in range(3))
        for f in range(count):
            y = (x @ candidates[f].astype(x.dtype)).astype(np.float64)
            square[f], linear_sum[f] = np.einsum("mc,mc->c", y, y), y.sum(axis=0)
            dot[f] = np.einsum("mc,mc->c", y, o)
    norm = square + 2 * offset * linear_sum + rows * offset**2
    return cosine(units * (dot + offset * o.sum(axis=0)), (o * o).sum(axis=0), units**2 * norm)


def depthwise_cosines(x, o, bias, units, candidates, reach=255):
    """`channel_cosines` where every channel has its own X: x (M, K, C)."""
    x, o = x.astype(np.float64), o.astype(np.float64)
    offset = bias / units
    channels = np.ascontiguousarray(x.transpose(2, 1, 0))
    gram = channels @ channels.transpose(0, 2, 1)
    cross = np.einsum("ckm,mc->kc", channels, o)
    flat = np.ascontiguousarray(candidates.transpose(2, 0, 1))  # (C, F, K)
    square = ((flat @ gram) * flat).sum(axis=2).T
    linear_sum = np.einsum("fkc,kc->fc", candidates, x.sum(axis=0))
    dot = np.einsum("fkc,kc->fc", candidates, cross)
    norm = square + 2 * offset * linear_sum + x.shape[0] * offset**2
    return cosine(units * (dot + offset * o.sum(axis=0)), (o * o).sum(axis=0), units**2 * norm)


# -- activations


def site_cosines(node: Node, value, weight, scales, bias, o, candidates):
    """The cosine of a layer's whole output, for every candidate scale of its input: (F,), mean over images.

    value: the input, float32 (N, ...), before it is rounded; weight: float32, in the node's layout, with
    ``scales`` (K,) real units per step; o: the float output (N, ...).
    """
    o64 = o.astype(np.float64).reshape(len(o), -1)
    norm_o = [image @ image for image in o64]
    found = np.zeros(len(candidates))
    for f, s in enumerate(candidates):
        q = quantize(value, s.scale, s.zero_point, s.lo, s.hi)
        x = q.astype(np.float32) - np.float32(s.zero_point)
        y = linear(x, node, weight) * (np.float32(s.scale) * scales) + bias
        y = y.astype(np.float64).reshape(len(o), -1)
        found[f] = np.mean([cosine(a @ b, n, a @ a) for a, b, n in zip(y, o64, norm_o, strict=True)])
    return found


def cosines_of(layer, images, candidates):
    """`site_cosines` of a layer (node, weight, scales, bias) on one image: ([value], [output], None)."""
    node, weight, scales, bias = layer
    (value,), (o,), _ = images
    return site_cosines(node, value, weight, scales, bias, o, candidates)


class Errors(NamedTuple):
    """Squared errors of candidates (F,) on some output positions of some images; they add up.

    sums: over the positions; norm: of the output there; noise: float64 (F, F), the covariance of the sums
    if the positions are a random sample of each image's.
    """

    sums: np.ndarray
    norm: float
    noise: np.ndarray

    def plus(self, other: Errors | None) -> Errors:
        if other is None:
            return self
        return Errors(self.sums + other.sums, self.norm + other.norm, self.noise + other.noise)

    def times(self, factor: float) -> Errors:
        return Errors(self.sums * factor, self.norm * factor, self.noise * factor**2)

    def of(self, which) -> Errors:
        """Of the candidates at the indices ``which`` only."""
        return Errors(self.sums[which], self.norm, self.noise[np.ix_(which, which)])

    def deviation(self, best: int) -> np.ndarray:
        """Standard deviation of ``sums - sums[best]``: (F,)."""
        variance = np.diagonal(self.noise) + self.noise[best, best] - 2 * self.noise[best]
        return np.sqrt(np.maximum(variance, 0.0))


#: the part of a layer's output positions that comes first in `positions`: those with the largest inputs
TAIL = 1 / 64
#: numbers of the inputs of those images that `site_errors` computes on together: small maps are overhead
TOGETHER = 2**17


def positions(
    node: Node, value, first: float, last: float, image: int = 0, order: np.ndarray | None = None
) -> np.ndarray | None:
    """A part of a layer's output positions, in an order that is fixed for each image: those between two
    fractions. None stands for all of them, as they come.

    value: the input, float32, of one image. The `TAIL` with the largest inputs come first: a few positions
    can make most of the error of a scale that clips, and a random sample hold none. The others are in
    random order. order: `order_of` of it, if it is known.
    """
    count = prod(node.shape[1:-1])
    if (first, last) == (0.0, 1.0):
        return None
    order = order_of(node, value, image) if order is None else order
    return order[ceil(first * count) : ceil(last * count)]


def order_of(node: Node, value, image: int) -> np.ndarray:
    """The order of `positions`."""
    count, a = prod(node.shape[1:-1]), node.attrs
    size = np.square(np.square(value)).sum(axis=-1, keepdims=True)
    view = windows(size, node.weight.shape[:2], a["strides"], a["padding"], a["dilation"], 0)
    reach = view.reshape(count, -1).sum(axis=1)
    order = np.random.default_rng((count, image)).permutation(count)
    tail = np.argsort(-reach[order], kind="stable")[: ceil(TAIL * count)]
    return np.concatenate([order[tail], np.delete(order, tail)])


def orders_of(node: Node, images, number: int) -> list[np.ndarray]:
    """`order_of` of some images, counted from ``number``: once, not for every stage and grid."""
    return [order_of(node, value, number + i) for i, value in enumerate(images[0])]


def projected(node: Node, weight, weighted=False) -> tuple[np.ndarray, np.ndarray | None]:
    """(weights float32 (depth, K or fewer), basis float32 (K, fewer) or None) for `site_errors`.

    weight: float32 real weights in the node's layout. With more channels than weights in each, errors are
    measured in an orthonormal basis of the space that the weights span; what lies outside is the same for
    every candidate. Not so if the errors of channels are ``weighted``.
    """
    flat = np.ascontiguousarray(weight.reshape(-1, node.channels))
    if node.groups > 1 or weighted or flat.shape[1] <= 1.5 * flat.shape[0]:
        return flat, None
    basis, triangle = np.linalg.qr(flat.T.astype(np.float64))
    return np.ascontiguousarray(triangle.T, np.float32), basis.astype(np.float32)


class SiteTask(NamedTuple):
    """Some candidates for the scale of a layer's input, on some images and positions.

    values: float32 inputs before they are rounded, one image each, counted from ``number``; targets: the
    float outputs without the bias; flat, basis: of `projected`; candidates: all `Scale`s, of which those
    numbered ``chosen`` are tried; part: fractions of the positions; sensitivity: float32, like the targets,
    weights of the errors; sample: whether the noise is wanted; orders: `orders_of` the images, if known.
    """

    node: Node
    values: list[np.ndarray]
    targets: list[np.ndarray]
    flat: np.ndarray
    basis: np.ndarray | None
    candidates: Sequence[Scale]
    chosen: np.ndarray
    part: tuple[float, float]
    number: int = 0
    sensitivity: list[np.ndarray] | None = None
    sample: bool = False
    orders: list[np.ndarray] | None = None


def errors_of(layer, candidates, images, number: int, orders, chosen, part, sample: bool) -> Errors:
    """`site_errors` of a `SiteTask` by what its tasks share: layer (node, (flat, basis)), the candidates,
    and images (values, targets, sensitivity)."""
    node, (flat, basis) = layer
    values, targets, h = images
    return site_errors(
        SiteTask(node, values, targets, flat, basis, candidates, chosen, part, number, h, sample, orders)
    )


def site_errors(task: SiteTask) -> Errors:
    """`Errors` of the candidates that a task tries."""
    total = None
    values, first, last = task.values, *task.part
    together = max(1, TOGETHER // values[0].size)
    for start in range(0, len(values), together):
        some = slice(start, start + together)
        orders = itertools.repeat(None) if task.orders is None else task.orders[some]
        where = [
            positions(task.node, value, first, last, task.number + start + i, order)
            for i, (value, order) in enumerate(zip(values[some], orders, strict=False))
        ]
        total = _errors(task, some, where).plus(total)
    assert total is not None  # noqa: S101  # there is an image
    return total


def _at(where, maps):
    """(images * rows, K): some maps at each one's positions."""
    flat = (a.reshape(-1, a.shape[-1]) for a in maps)
    return np.concatenate([a if w is None else a[w] for a, w in zip(flat, where, strict=True)])


def _errors(task: SiteTask, some: slice, where) -> Errors:
    """`site_errors` of images that are computed on together, at the positions ``where``."""
    value, seen, at = np.concatenate(task.values[some]), where, np.arange(0)
    count = prod(task.node.shape[1:-1])
    if where[0] is not None and is_depthwise(task.node) and 2 * len(where[0]) >= count:
        # all positions are less work than to gather what makes these
        seen, at = [None] * len(where), np.concatenate([i * count + w for i, w in enumerate(where)])
    t = _at(seen, task.targets[some])
    h = None if task.sensitivity is None else _at(seen, task.sensitivity[some])
    squares = _squares(t)
    norm = (squares if seen is where else squares[at]).sum(dtype=np.float64)
    outside = 0.0
    if task.basis is not None:
        inside = t @ task.basis
        outside, t = max(norm - _squares(inside).sum(dtype=np.float64), 0.0), inside
    source = _source(value, task.node, None if seen[0] is None else np.stack(seen))
    buffer = np.empty_like(source.values)
    errors = np.zeros((len(task.chosen), len(t)), np.float32)
    for row, f in zip(errors, task.chosen, strict=True):
        s = task.candidates[f]
        np.divide(source.values, np.float32(s.scale), out=buffer)
        np.rint(buffer, out=buffer)
        np.clip(buffer, np.float32(s.lo - s.zero_point), np.float32(s.hi - s.zero_point), out=buffer)
        for y, channels in _products(task.node, source.rows(buffer), task.flat, np.float32(s.scale)):
            y -= t[:, channels]
            if h is not None:
                y *= h[:, channels]
            row += _squares(y)
    errors = errors if seen is where else errors.take(at, axis=1)
    found, noise = errors.sum(axis=1, dtype=np.float64), np.zeros((len(task.chosen),) * 2)
    if task.sample:
        size = errors.shape[1] // len(where)
        apart = errors.reshape(len(errors), len(where), size)
        apart = (apart - apart.mean(axis=2, keepdims=True, dtype=np.float64)).reshape(len(errors), -1)
        noise = apart @ apart.T * (size / (size - 1))
    return Errors(found + outside, norm, noise)


def _squares(y):
    """Sum of squares of each row, float32."""
    return np.einsum("ij,ij->i", y, y)


class _Source(NamedTuple):
    """What is quantized of a layer's input, and how the rows of its product are taken from that.

    values: float32, quantized whole. pixels: integers (M, R, S), which of its pixels make the rows;
    windows: all windows do, in order; neither: the values are the rows. room: (M, R, S, C), where rows are
    put.
    """

    node: Node
    values: np.ndarray
    pixels: np.ndarray | None = None
    room: np.ndarray | None = None
    windows: bool = False

    def rows(self, buffer) -> np.ndarray:
        """(M, ...) of a buffer like the values; of a depthwise layer's windows (images, OH, OW, ...)."""
        if self.pixels is not None:
            return buffer.reshape(-1, buffer.shape[-1]).take(
                self.pixels, axis=0, out=self.room, mode="clip"
            )
        if self.windows:
            seen = _windows(self.node, buffer)
            return seen if is_depthwise(self.node) else seen.reshape(-1, *seen.shape[3:])
        return buffer


def _windows(node, padded):
    """(images, OH, OW, R, S, channels) of maps that are padded already."""
    a = node.attrs
    return windows(padded, node.weight.shape[:2], a["strides"], (0, 0, 0, 0), a["dilation"], 0)


def _source(value, node: Node, where) -> _Source:
    """value: float32, some images; where: the positions in each, (images, M), or None for all."""
    if value.ndim == 2:
        return _Source(node, value)
    top, left, bottom, right = node.attrs["padding"]
    if any(node.attrs["padding"]):  # once, not for every candidate: a zero stays one
        value = np.pad(value, ((0, 0), (top, bottom), (left, right), (0, 0)))
    if where is None:
        return _Source(node, value, windows=True)
    (r, s), width = node.weight.shape[:2], node.shape[2]
    pixels = np.arange(value[..., 0].size).reshape(*value.shape[:3], 1)
    image = np.arange(len(value))[:, None]
    wanted = _windows(node, pixels)[image, where // width, where % width, ..., 0].reshape(-1, r, s)
    room = np.empty((*wanted.shape, value.shape[-1]), value.dtype)
    source = _Source(node, value, wanted, room)
    if (r, s) == (1, 1) or where.shape[1] * r * s <= value.shape[1] * value.shape[2]:
        return _Source(node, source.rows(value))  # fewer numbers than the maps have: those are quantized
    return source


def _products(node: Node, rows, flat, step):
    """[(rows times the weights ``flat * step``, their channels)]; rows: (M, K), or (..., R, S, C)."""
    if rows.ndim == 2:
        return [(rows @ (flat * step), slice(None))]
    if is_depthwise(node):
        taps = (flat * step).reshape(rows.shape[-3:])
        return [(np.einsum("...ijc,ijc->...c", rows, taps).reshape(-1, node.channels), slice(None))]
    groups = node.attrs["groups"]
    if groups == 1:
        return [(rows.reshape(len(rows), -1) @ (flat * step), slice(None))]
    depth, per = node.weight.shape[2], node.channels // groups
    return [
        (
            rows[..., g * depth : (g + 1) * depth].reshape(len(rows), -1)
            @ (flat[:, g * per : (g + 1) * per] * step),
            slice(g * per, (g + 1) * per),
        )
        for g in range(groups)
    ]
