"""How good a candidate scale is: functions of arrays, run as tasks by `search`.

Cosine: the mean over images (the paper). Squared error: the sum over images, relative to the output.
"""

from __future__ import annotations

from math import ceil, prod
from typing import NamedTuple

import numpy as np

from topi_ext.reference import quantize, windows

from ..network.node import Node
from ..network.ops import is_depthwise, linear
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


def positions(node: Node, value, first: float, last: float, image: int = 0) -> np.ndarray | None:
    """A part of a layer's output positions, in an order that is fixed for each image: those between two
    fractions. None stands for all of them, as they come.

    value: the input, float32, of one image. The `TAIL` with the largest inputs come first: a few positions
    can make most of the error of a scale that clips, and a random sample hold none. The others are in
    random order.
    """
    count = prod(node.shape[1:-1])
    if (first, last) == (0.0, 1.0):
        return None
    size = np.square(np.square(value)).sum(axis=-1, keepdims=True)
    a = node.attrs
    view = windows(size, node.weight.shape[:2], a["strides"], a["padding"], a["dilation"], 0)
    reach = view.reshape(count, -1).sum(axis=1)
    order = np.random.default_rng((count, image)).permutation(count)
    tail = np.argsort(-reach[order], kind="stable")[: ceil(TAIL * count)]
    order = np.concatenate([order[tail], np.delete(order, tail)])
    return order[ceil(first * count) : ceil(last * count)]


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


def site_errors(
    node: Node, values, targets, flat, basis, candidates, chosen, part, number=0, sensitivity=None,
    sample=False,
) -> Errors:  # fmt: skip
    """`Errors` of some candidates on some images and positions.

    values: float32 inputs before they are rounded, one image each, counted from ``number``; targets: the
    float outputs without the bias; flat, basis: of `projected`; candidates: all `Scale`s, of which those
    numbered ``chosen`` are tried; part: fractions of the positions; sensitivity: float32, like the targets,
    weights of the errors; sample: whether the noise is wanted.
    """
    total = None
    together = max(1, TOGETHER // values[0].size)
    for first in range(0, len(values), together):
        some = slice(first, first + together)
        where = [positions(node, value, *part, number + first + i) for i, value in enumerate(values[some])]
        h = None if sensitivity is None else _at(where, sensitivity[some])
        value, t = np.concatenate(values[some]), _at(where, targets[some])
        total = _errors(node, value, t, where, flat, basis, candidates, chosen, h, sample).plus(total)
    return total


def _at(where, maps):
    """(images * rows, K): some maps at each one's positions."""
    flat = (a.reshape(-1, a.shape[-1]) for a in maps)
    return np.concatenate([a if w is None else a[w] for a, w in zip(flat, where, strict=True)])


def _errors(node, value, t, where, flat, basis, candidates, chosen, h, sample) -> Errors:
    """`site_errors` of images that are computed on together; t, h: the targets and weights at ``where``."""
    norm = _rows(t).sum(dtype=np.float64)
    outside = 0.0
    if basis is not None:
        inside = t @ basis
        outside, t = max(norm - _rows(inside).sum(dtype=np.float64), 0.0), inside
    source, view, multiply = _source(value, node, None if where[0] is None else np.stack(where))
    buffer = np.empty_like(source)
    rows = view(buffer)
    errors = np.zeros((len(chosen), len(t)), np.float32)
    for row, f in zip(errors, chosen, strict=True):
        s = candidates[f]
        np.divide(source, np.float32(s.scale), out=buffer)
        np.rint(buffer, out=buffer)
        np.clip(buffer, np.float32(s.lo - s.zero_point), np.float32(s.hi - s.zero_point), out=buffer)
        step = np.float32(s.scale)
        for y, part_of in multiply(rows(), flat, step):
            y -= t[:, part_of]
            if h is not None:
                y *= h[:, part_of]
            row += _rows(y)
    found, noise = errors.sum(axis=1, dtype=np.float64), np.zeros((len(chosen),) * 2)
    if sample:
        size = len(t) // len(where)
        apart = errors.reshape(len(chosen), len(where), size)
        apart = (apart - apart.mean(axis=2, keepdims=True, dtype=np.float64)).reshape(len(chosen), -1)
        noise = apart @ apart.T * (size / (size - 1))
    return Errors(found + outside, norm, noise)


def _rows(y):
    """Sum of squares of each row, float32."""
    return np.einsum("ij,ij->i", y, y)


def _source(value, node, where):
    """(what is quantized; view(buffer), a function that gathers the wanted rows of a buffer of its shape;
    multiply(rows, flat weights, step) -> [(output rows, their channels)]).

    value: float32, some images; where: the positions in each, (images, M), or None for all.
    """
    if value.ndim == 2:
        return value, _same, lambda rows, flat, step: [(rows @ (flat * step), slice(None))]
    a, (r, s) = node.attrs, node.weight.shape[:2]
    depthwise = is_depthwise(node)
    _, oh, ow, _ = node.shape
    top, left, bottom, right = a["padding"]
    if any(a["padding"]):  # once, not for every candidate: a zero stays one
        value = np.pad(value, ((0, 0), (top, bottom), (left, right), (0, 0)))
    count = len(value)
    shape = (count * (oh * ow if where is None else where.shape[1]), r, s, value.shape[-1])

    def of(array):
        """Its windows: (images, OH, OW, R, S, channels)."""
        return windows(array, (r, s), a["strides"], (0, 0, 0, 0), a["dilation"], 0)

    def view(buffer):
        """() -> (rows, R, S, channels) windows of the buffer at the wanted positions."""
        if where is None:
            seen = of(buffer)
            return lambda: seen.reshape(shape)
        pixels = np.arange(buffer[..., 0].size).reshape(*buffer.shape[:3], 1)
        wanted = of(pixels)[np.arange(count)[:, None], where // ow, where % ow, ..., 0].reshape(shape[:3])
        flat, rows = buffer.reshape(-1, shape[-1]), np.empty(shape, buffer.dtype)
        return lambda: flat.take(wanted, axis=0, out=rows, mode="clip")

    def multiply(rows, flat, step):
        """rows (M, R, S, C) times the weights."""
        if depthwise:
            y = np.zeros((len(rows), node.channels), np.float32)
            taps = (flat * step).reshape(r, s, -1)
            for i in range(r):
                for j in range(s):
                    y += rows[:, i, j] * taps[i, j]
            return [(y, slice(None))]
        if a["groups"] == 1:
            return [(rows.reshape(len(rows), -1) @ (flat * step), slice(None))]
        depth, per = node.weight.shape[2], node.channels // a["groups"]
        return [
            (
                rows[..., g * depth : (g + 1) * depth].reshape(len(rows), -1)
                @ (flat[:, g * per : (g + 1) * per] * step),
                slice(g * per, (g + 1) * per),
            )
            for g in range(a["groups"])
        ]

    gathered = where is not None and where.shape[1] * r * s <= value.shape[1] * value.shape[2]
    if gathered or ((r, s) == (1, 1) and where is not None):
        return view(value)(), _same, multiply
    return value, view, multiply


def _same(buffer):
    return lambda: buffer
