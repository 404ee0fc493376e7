"""The weights of one layer, fitted so that the quantized layer gives the float layer's output.

For integer weights q (K, C) at scales s (C,), input steps X (M, K) at input scale a, and float output O:

    |O - b - a X q s|^2 / a^2  =  s^2 q^T G q - 2 s q^T c + constant,    G = X^T X,  c = X^T (O - b) / a

so one pass over the data makes every candidate cost K^2 instead of M * K. G, an integer matrix, is exact;
where M < K, X itself stands for it. With a bias of its own for every choice (`bias_correction`) G and c are
those of centred data.

Everything here is a function of arrays, run as tasks by `search` in threads, processes or a cluster.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from topi_ext.reference import windows

from ..network.node import Node
from ..network.ops import conv_columns, is_depthwise
from ..scales.numerics import Scale, steps

EXACT = 2**24  # float32 holds every integer up to here
BLOCK = 256  # rows of a float32 sum
SWEEPS = 6  # of the coordinate descent; what is left after that is below a thousandth
LARGEST = 2**13  # weights of a channel above which its Gram matrix is too large for the descent
DAMPING = 0.01  # of the mean diagonal of G, towards the float weights


def weight_2d(node: Node) -> np.ndarray:
    """float32 (weights of a channel, K): a view or copy of the node's weights."""
    return node.weight.reshape(-1, node.channels)


def groups(node: Node) -> list[slice]:
    """The slices of output channels that read the same input channels; all of them if depthwise."""
    if is_depthwise(node):
        return [slice(0, node.channels)]
    per = node.channels // node.groups
    return [slice(i, i + per) for i in range(0, node.channels, per)]


def columns(x, node, part):
    """The im2col matrix of the output channels ``part``, all of one group: (M, K); depthwise (M, K, C)."""
    if is_depthwise(node):
        a, (r, s) = node.attrs, node.weight.shape[:2]
        view = windows(x[..., part], (r, s), a["strides"], a["padding"], a["dilation"], 0)
        return view.reshape(-1, r * s, part.stop - part.start)
    return conv_columns(x, node, part.start * node.groups // node.channels)


def _turned(x, node, part):
    """What `columns` makes of a depthwise layer, as (C, K, M): from maps that lie whole one after another,
    as numbers far apart are slow to gather."""
    a, (r, s) = node.attrs, node.weight.shape[:2]
    maps = np.ascontiguousarray(x[..., part].transpose(3, 0, 1, 2)).reshape(-1, *x.shape[1:3], 1)
    view = windows(maps, (r, s), a["strides"], a["padding"], a["dilation"], 0)[..., 0]
    view = view.reshape(-1, len(x), *view.shape[1:]) if len(x) > 1 else view[:, None]
    return view.transpose(0, 4, 5, 1, 2, 3).reshape(len(view), r * s, -1)


class Moments(NamedTuple):
    """Sums over the rows of X (M, K) and O (M, C); they add up over images.

    gram: X^T X, float64 (K, K), exact, or instead of it ``matrix``: X, float32 (M, K); cross: X^T O,
    float64 (K, C); inputs: (K,); outputs: (C,); squares: of O, (C,); rows: M. Depthwise layers have a gram
    (C, K, K) and inputs (K, C).
    """

    gram: np.ndarray | None
    matrix: np.ndarray | None
    cross: np.ndarray
    inputs: np.ndarray
    outputs: np.ndarray
    squares: np.ndarray
    rows: int

    @classmethod
    def total(cls, pieces) -> Moments:
        """Of all the images of several."""
        first, *rest = pieces
        gram = None if first.gram is None else sum((p.gram for p in rest), first.gram)
        matrix = None if first.matrix is None else np.concatenate([p.matrix for p in pieces])
        return cls(gram, matrix, *(sum(values) for values in zip(*(p[2:] for p in pieces), strict=True)))


def moments(node: Node, part: slice, inputs, outputs, scale: Scale, keep: bool = False) -> Moments:
    """`Moments` of some images. inputs: stored, uint8 NHWC or (N, C); outputs: the float layer's; ``keep``:
    the matrix, not its Gram matrix."""
    pieces = []
    for q, o in zip(inputs, outputs, strict=True):
        q = q.astype(np.float32) - np.float32(scale.zero_point)
        x, turned = columns(q, node, part), _turned(q, node, part) if is_depthwise(node) else None
        o = o.reshape(-1, node.channels)[:, part]
        # float32 products are exact up to so many rows; their sums are kept in float64
        block = max(1, EXACT // max(scale.hi - scale.zero_point, scale.zero_point - scale.lo) ** 2)
        for first in range(0, len(x), block):
            rows, target = x[first : first + block], o[first : first + block].astype(np.float64)
            gram = matrix = None
            if turned is not None:
                channels = turned[..., first : first + block]
                twin = channels.copy()  # times itself would be a call of syrk, slow where K is small
                gram = (channels @ twin.transpose(0, 2, 1)).astype(np.float64)
                cross = np.einsum("mkc,mc->kc", rows, target)
            else:
                cross = rows.T.astype(np.float64) @ target
                if keep:
                    matrix = rows
                else:
                    gram = (rows.T @ rows).astype(np.float64)
            sums = rows.sum(axis=0).astype(np.float64), target.sum(axis=0), (target * target).sum(axis=0)
            pieces.append(Moments(gram, matrix, cross, *sums, len(rows)))
            if not keep:
                pieces = [Moments.total(pieces)]
    return Moments.total(pieces)


class Problem(NamedTuple):
    """The quadratic of some channels of a layer: G or X, c, and |O - b|^2 / a^2 as ``least`` (C,)."""

    gram: np.ndarray | None
    matrix: np.ndarray | None
    cross: np.ndarray
    least: np.ndarray

    def channels(self, part: slice) -> Problem:
        gram = self.gram
        if gram is not None and gram.ndim == 3:  # depthwise
            gram = gram[part]
        return Problem(gram, self.matrix, self.cross[:, part], self.least[part])

    @property
    def design(self) -> np.ndarray:
        """X, of a problem without G."""
        assert self.matrix is not None  # noqa: S101  # it has one of the two
        return self.matrix

    @property
    def normal_matrix(self) -> np.ndarray:
        """G, made if there is none."""
        if self.gram is not None:
            return self.gram
        matrix = self.design.astype(np.float64)
        return matrix.T @ matrix

    def with_gram(self) -> Problem:
        return self if self.gram is not None else Problem(self.normal_matrix, None, self.cross, self.least)

    def times(self, q):
        """G q: (K, C)."""
        if self.gram is None:
            return self.design.T @ (self.design @ q)
        if self.gram.ndim == 3:
            return (self.gram @ q.T[:, :, None])[:, :, 0].T
        return self.gram @ q

    @property
    def diagonal(self):
        """(K, 1), depthwise (K, C)."""
        if self.gram is None:
            return (self.design.astype(np.float64) ** 2).sum(axis=0)[:, None]
        if self.gram.ndim == 3:
            return np.einsum("ckk->kc", self.gram)
        return np.diagonal(self.gram)[:, None]

    def error(self, q, scales):
        """Squared error of every channel: (C,)."""
        square, dot = (q * self.times(q)).sum(axis=0), (q * self.cross).sum(axis=0)
        return scales**2 * square - 2 * scales * dot + self.least


def problem(m: Moments, bias, input_scale: float, centred: bool) -> Problem:
    """The quadratic for a fixed ``bias`` (C,), or ``centred``, for the best bias of every candidate."""
    shift = m.outputs / m.rows if centred else bias.astype(np.float64)
    outer = m.inputs[:, None] if m.inputs.ndim == 1 else m.inputs
    cross = (m.cross - outer * shift) / input_scale
    least = (m.squares - 2 * shift * m.outputs + m.rows * shift**2) / input_scale**2
    gram, matrix = m.gram, m.matrix
    if centred and matrix is not None:
        matrix = matrix - (m.inputs / m.rows).astype(np.float32)
    elif centred and gram is not None:
        depthwise = gram.ndim == 3
        square = np.einsum("kc,lc->ckl", m.inputs, m.inputs) if depthwise else np.outer(m.inputs, m.inputs)
        gram = gram - square / m.rows
    return Problem(gram, matrix, cross, least)


def rounded(weight, scales, top):
    """float64 (K, C): the nearest integers within +-top, as `numerics.quantize_weight` (all float32)."""
    return np.clip(np.rint(weight / scales), -top, top).astype(np.float64)


def errors(p: Problem, weight, scales, top) -> np.ndarray:
    """Squared error of every candidate: (F, C) for scales float32 (F, C).

    By the distance d = q s - w to the float weights, ``d^T G d + 2 d^T (G w - c)`` and a constant: then
    float32 is precise enough for the products, which are most of the work.
    """
    exact = weight.astype(np.float64)
    slope = p.times(exact)
    constant = (exact * (slope - 2 * p.cross)).sum(axis=0) + p.least
    slope = (2 * (slope - p.cross)).astype(np.float32)
    gram = None if p.gram is None else p.gram.astype(np.float32)
    found = np.empty(scales.shape)
    d = np.empty_like(weight, order="C")
    for f, s in enumerate(scales):
        np.divide(weight, s, out=d)
        np.rint(d, out=d)
        np.clip(d, -top, top, out=d)
        d *= s
        d -= weight
        if gram is None:
            y = p.design @ d
            square = _dot(y, y)
        else:
            square = _quadratic(gram, d)
        found[f] = square + _dot(d, slope) + constant
    return found


def _quadratic(gram, d):
    """d^T G d of every channel, float64 (C,), in float32 products; G is symmetric: half of it is enough."""
    if gram.ndim == 3:
        return _dot(d, (gram @ d.T[:, :, None])[:, :, 0].T)
    total = np.zeros(d.shape[1])
    for first in range(0, len(d), BLOCK):
        here, after = slice(first, first + BLOCK), slice(first + BLOCK, None)
        y = gram[here, here] @ d[here]
        if first + BLOCK < len(d):
            y += 2 * (gram[here, after] @ d[after])
        total += _dot(d[here], y)
    return total


def _dot(a, b):
    """The dot product of every channel, float64 (C,), of float32 (K, C); short sums in float32."""
    total = np.zeros(a.shape[1])
    for first in range(0, len(a), BLOCK):
        total += np.einsum("kc,kc->c", a[first : first + BLOCK], b[first : first + BLOCK])
    return total


def descend(p: Problem, weight, scales, top) -> np.ndarray:
    """Integers (K, C) that no change of a single one improves, or the last after `SWEEPS` sweeps.

    Coordinate descent on ``|X (q s - w)|^2``, damped, from the nearest integers, a block of coordinates at
    a time, all channels at once. The aim is the float weights' output on the same input: to aim at the
    float network's output fits the noise of the layers before, where images are few. A channel that this
    does not improve keeps the nearest integers, and so do those of more than `LARGEST` weights.
    """
    nearest = rounded(weight, scales, top)
    if len(nearest) > LARGEST:
        return nearest
    p = p.with_gram()
    gram = p.normal_matrix
    damping = DAMPING * p.diagonal.mean(axis=0)
    diagonal = p.diagonal + damping
    usable = np.broadcast_to(diagonal > 0, nearest.shape)
    divisor = np.broadcast_to(np.where(diagonal > 0, diagonal, 1.0), nearest.shape)
    q = nearest.copy()
    aim = (weight / scales).astype(np.float64)
    residual = p.times(q - aim) + damping * (q - aim)
    before = ((q - aim) * residual).sum(axis=0)
    for _ in range(SWEEPS):
        changed = 0
        for first in range(0, len(q), 64):
            block = slice(first, min(first + 64, len(q)))
            local, moved = residual[block].copy(), np.zeros((block.stop - first, q.shape[1]))
            square = gram[..., block, block]
            for k in range(len(moved)):
                wanted = np.rint(q[first + k] - local[k] / divisor[first + k])
                step = np.where(usable[first + k], np.clip(wanted, -top, top) - q[first + k], 0.0)
                if step.any():
                    moved[k] = step
                    local += square[..., k].T * step if square.ndim == 3 else np.outer(square[:, k], step)
                    local[k] += damping * step
            if moved.any():
                changed += int(np.count_nonzero(moved))
                q[block] += moved
                if gram.ndim == 3:
                    residual += np.einsum("clk,kc->lc", gram[:, :, block], moved)
                else:
                    residual += gram[:, block] @ moved
                residual[block] += damping * moved
        if not changed:
            break
    return np.where(((q - aim) * residual).sum(axis=0) < before, q, nearest)


def gain(p: Problem, q, scales) -> np.ndarray:
    """The least-squares gains of integers q, and what they leave of the output's square: float64 (2, C).

    A gain is a factor of the scale; where there is none that makes sense, 1, and infinity is left.
    """
    square, dot = (q * p.times(q)).sum(axis=0), (q * p.cross).sum(axis=0)
    gains = dot / np.where(square > 0, square * scales, 1.0)
    sensible = (square > 0) & (gains > 0.5) & (gains < 2)
    left = p.least * square / np.where(sensible, dot, 1.0) ** 2 - 1
    return np.where(sensible, [gains, np.maximum(left, 0.0)], [[1.0], [np.inf]])


def shrunk(gains, left, images: int) -> np.ndarray:
    """A layer's gains (C,) without what is chance: towards their mean, and that towards 1.

    left: of `gain`. A gain of ``images`` that leave so much has the variance ``left / images``: positions
    of one image are alike, so images count. Where the gains differ by no more than that, their differences
    are chance (Efron and Morris, 1975), as those of a classifier are: each class is in few images or none.
    """
    known = np.isfinite(left)
    if not known.any():
        return gains
    noise = left[known].mean() / images
    mean = gains[known].mean()
    common = 1 + (mean - 1) * _share((mean - 1) ** 2, noise / known.sum())
    return np.where(known, common + (gains - mean) * _share(gains[known].var(), noise), 1.0)


def _share(square, noise):
    """The part of a squared deviation that is not noise."""
    return max(0.0, 1 - noise / square) if square > 0 else 0.0


def fit(p: Problem, weight, candidates, bits: int, how) -> tuple[np.ndarray, ...]:
    """(scales float32 (C,), integers float64 (K, C), relative errors (F, C), best of them (C,), `gain`;
    (0, C) where gains are not corrected).

    Of some channels; candidates: float32 (F, C) scales, of which the best is taken; how: `numerics.Method`.
    """
    top = steps(bits, signed=True)
    found = errors(p, weight, candidates, top) / np.where(p.least > 0, p.least, 1.0)
    best = choose_least(found)
    scales = candidates[best, np.arange(candidates.shape[1])]
    q = rounded(weight, scales, top)
    if how.rounding == "descent":
        q = descend(p, weight, scales, top)
    gains = gain(p, q, scales) if how.gain_correction else np.empty((0, len(scales)))
    return scales, q, found, best, gains


def choose_least(errors, tie=1e-12):
    """Index of the least along axis 0; among equals the first, which is nearest to the start."""
    return (errors <= errors.min(axis=0) + tie).argmax(axis=0)
