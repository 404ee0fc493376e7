"""How much an error of a layer's output moves the network's outputs: backward rules, inputs only. No TVM.

With ``v`` normal, the mean square of the derivative of ``<v, y>`` by a number is the squared length of the
derivative of all of ``y`` by it: a few projections on random vectors tell the effect of every element of
every layer at once, each for the cost of one backward run.

There is one rule for each row of `ops.OPERATORS` that can run in integers. A node without a rule (an
operator that stays float) passes nothing on: the tensors that it reads count as outputs, too.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from topi_ext.reference import windows

from . import expression, resample
from .graph import Graph, run
from .layout import to_nchw, to_nhwc
from .node import Node
from .ops import evaluate, is_depthwise, mean_counts, normalized

#: of the input, relative to 1 or to its size, on both sides of the number whose derivative is taken
STEP = 1e-3

Gradients = tuple[np.ndarray, ...]
#: (function, numbers): calls it with each number
Each = Callable[[Callable[[int], None], Sequence[int]], object]


class Effect(NamedTuple):
    """For each element of a layer's output the root of its effect, on one sample: ``root * step``.

    root: float16, at most 2**14; step: a power of two. A squared error times the square of it is the
    squared error that it makes at the outputs, relative to theirs.
    """

    root: np.ndarray
    step: float

    @classmethod
    def of(cls, root: np.ndarray) -> Effect:
        step = 2.0 ** (np.frexp(root.max(initial=0.0))[1] - 14)
        return cls((root / np.float32(step)).astype(np.float16), step)

    @property
    def value(self) -> np.ndarray:
        """float32, of the layer's output's shape."""
        return self.root.astype(np.float32) * np.float32(self.step)


def effects(
    graph: Graph,
    feeds: Sequence[Mapping[str, np.ndarray]],
    layers: Iterable[str],
    projections: int = 2,
    each: Each = lambda function, numbers: list(map(function, numbers)),
    sizes: Mapping[str, float] | None = None,
) -> dict[str, list[Effect]]:
    """{layer: its `Effect` on each sample}; without the layers whose effect is nothing, or no number.

    feeds: {input: array} each, in the model's own layout. each(function, numbers): calls the function with
    every number, in threads if it likes. The result does not depend on that; the random vectors come from
    the images. sizes: the `lengths` on them, if they are known.
    """
    layers, numbers = frozenset(layers), range(len(feeds))
    known = lengths(graph, feeds, each) if sizes is None else sizes
    found: list[dict[str, Effect]] = [{} for _ in feeds]

    def descend(number: int) -> None:
        found[number] = effect_of(graph, feeds[number], layers, known, projections)

    for first in numbers[::2]:  # two samples in memory at once
        each(descend, numbers[first : first + 2])
    whole = [name for name in graph.nodes if name in layers and all(name in one for one in found)]
    return {
        name: [one[name] for one in found] for name in whole if any(one[name].root.any() for one in found)
    }


def lengths(
    graph: Graph, feeds: Sequence[Mapping[str, np.ndarray]], each: Each = lambda f, n: list(map(f, n))
) -> dict[str, float]:
    """{tensor whose errors count: its length, the root of its mean square over the samples}, where that is
    a number above 0."""
    ends, numbers = _ends(graph), range(len(feeds))
    squares = np.zeros((len(feeds), len(ends)))

    def measure(number: int) -> None:
        def see(node, value):
            if node.name in ends:
                squares[number, ends.index(node.name)] = np.square(value, dtype=np.float64).sum()

        run(graph, feeds[number], see)

    for first in numbers[::2]:  # two samples in memory at once
        each(measure, numbers[first : first + 2])
    norms = np.sqrt(squares.mean(axis=0))
    return {end: float(n) for end, n in zip(ends, norms, strict=True) if np.isfinite(n) and n > 0}


def _ends(graph: Graph) -> list[str]:
    """The tensors whose errors count: outputs, and what nodes without a rule read."""
    read = {tensor for node in graph if node.op not in RULES for tensor in node.inputs}
    return [n.name for n in graph if n.dtype == "float32" and n.name in read.union(graph.outputs)]


def effect_of(
    graph: Graph,
    feed: Mapping[str, np.ndarray],
    layers: Iterable[str],
    sizes: Mapping[str, float],
    projections: int = 2,
) -> dict[str, Effect]:
    """{layer: its `Effect`} on one sample, where that is a number; sizes: the `lengths` on all."""
    kept = _kept(graph, feed)
    total: dict[str, np.ndarray] = {}
    for projection in range(projections):
        start = {
            end: _normal(feed, graph[end].shape, (i, projection)) / np.float32(size)
            for i, (end, size) in enumerate(sizes.items())
        }
        for name, gradient in _descend(graph, start, kept):
            if name in layers:
                square = np.square(gradient)
                total[name] = total[name] + square if name in total else square
    return {
        name: Effect.of(np.sqrt(square / np.float32(projections)))
        for name, square in total.items()
        if np.isfinite(square).all()
    }


def _normal(feed: Mapping[str, np.ndarray], shape: tuple[int, ...], seed: tuple[int, ...]) -> np.ndarray:
    """float32 normal numbers: of each image of a batch its own, which come from what it shows, however
    bright: times a power of two, they are the same."""
    whole = not all(x.shape[:1] == shape[:1] for x in feed.values())
    parts = []
    for image in [tuple(feed.values())] if whole else zip(*feed.values(), strict=True):
        shown = (zlib.crc32(_mantissas(np.asarray(x)).tobytes()) for x in image)
        random = np.random.default_rng((*shown, *seed))
        parts.append(random.standard_normal(shape if whole else shape[1:], np.float32))
    return parts[0] if whole else np.stack(parts)


def _mantissas(x: np.ndarray) -> np.ndarray:
    """The numbers over the power of two that the largest has, which is exact."""
    if x.dtype.kind != "f":
        return x
    largest = np.abs(x).max(initial=0)
    return np.ldexp(x, -np.frexp(largest)[1]) if 0 < largest < np.inf else x


def gradients(
    graph: Graph, feed: Mapping[str, np.ndarray], start: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """{tensor: the derivative by it of the sum of ``<start[end], end>``}, NHWC, of all that lead there.

    start: {tensor: float32 of its shape, NHWC}.
    """
    return dict(_descend(graph, dict(start), _kept(graph, feed)))


def _kept(graph: Graph, feed: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the rules need of a run."""
    kept: dict[str, Any] = {}
    values: dict[str, np.ndarray] = {}
    left = {name: len(users) for name, users in graph.users.items()}

    def see(node, value):
        values[node.name] = value
        if node.op in RULES:
            kept[node.name] = RULES[node.op].keep(node, *(values[t] for t in node.inputs))
        for tensor in dict.fromkeys(node.inputs):
            left[tensor] -= 1
            if not left[tensor]:
                del values[tensor]

    run(graph, feed, see)
    return kept


def _descend(graph: Graph, waiting: dict[str, np.ndarray], kept: Mapping[str, Any]):
    """(tensor, gradient), from the last to the first; ``waiting`` has those of the ends, and is emptied."""
    for node in reversed(list(graph)):
        gradient = waiting.pop(node.name, None)
        if gradient is None:
            continue
        yield node.name, gradient
        if node.op not in RULES:
            continue
        shapes = [graph[t].shape for t in node.inputs]
        with np.errstate(over="ignore", invalid="ignore"):
            parts = RULES[node.op].back(node, gradient, shapes, kept[node.name])
            for tensor, part in zip(node.inputs, parts, strict=True):
                if graph[tensor].dtype == "float32":
                    waiting[tensor] = waiting[tensor] + part if tensor in waiting else part


# -- the rules


def _nothing(node, *inputs):
    return None


class Rule(NamedTuple):
    """back(node, gradient, shapes of the inputs, what was kept): the gradient of each input.

    keep(node, *inputs): what it needs of a run.
    """

    back: Callable[[Node, np.ndarray, list[tuple[int, ...]], Any], Gradients]
    keep: Callable[..., Any] = _nothing


def _spread(node, shape, kernel, piece) -> np.ndarray:
    """Sums of windows, as a gradient sees them: ``piece(i, j)`` (N, OH, OW, C) goes to the pixels that the
    place (i, j) of a window was read from."""
    a = node.attrs
    top, left, bottom, right = a["padding"]
    (n, h, w, c), (down, across) = shape, a["strides"]
    (apart, aside), (_, oh, ow, _) = a.get("dilation", (1, 1)), node.shape
    found = np.zeros((n, h + top + bottom, w + left + right, c), np.float32)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            rows = slice(i * apart, i * apart + down * (oh - 1) + 1, down)
            columns = slice(j * aside, j * aside + across * (ow - 1) + 1, across)
            found[:, rows, columns] += piece(i, j)
    return found[:, top : top + h, left : left + w]


def _convolution(node, gradient, shapes, kept):
    weight, groups = node.weight, node.groups
    r, s, depth, k = weight.shape
    if is_depthwise(node):
        return (_spread(node, shapes[0], (r, s), lambda i, j: gradient * weight[i, j, 0]),)
    flat = gradient.reshape(-1, groups, k // groups).transpose(1, 0, 2)

    def piece(i, j):
        kernel = weight[i, j].reshape(depth, groups, k // groups).transpose(1, 2, 0)
        return (flat @ kernel).transpose(1, 0, 2).reshape(*gradient.shape[:3], groups * depth)

    return (_spread(node, shapes[0], (r, s), piece),)


def _dense(node, gradient, shapes, kept):
    return (gradient @ node.weight[0, 0].T,)


def _summed(gradient, shape):
    """The gradient of what was repeated along axes of size 1."""
    axes = tuple(i for i, size in enumerate(shape) if size == 1 != gradient.shape[i])
    return gradient.sum(axis=axes, keepdims=True) if axes else gradient


def _sum(node, gradient, shapes, kept):
    return tuple(_summed(gradient, shape) for shape in shapes)


def _difference(node, gradient, shapes, kept):
    return _summed(gradient, shapes[0]), _summed(-gradient, shapes[1])


def _extreme(node, gradient, shapes, kept):
    first, second = _summed(gradient * kept, shapes[0]), _summed(gradient * ~kept, shapes[1])
    return first, second


def _product(node, gradient, shapes, kept):
    a, b = kept
    return _summed(gradient * b, shapes[0]), _summed(gradient * a, shapes[1])


def _contract(node, gradient, shapes, kept):
    made, a, b = map(to_nchw, (gradient, *kept))
    return to_nhwc(made @ b.swapaxes(-1, -2)), to_nhwc(a.swapaxes(-1, -2) @ made)


def _slope(node, x):
    """float32: the derivative of an elementwise node's function, by central differences."""
    f, x = node.attrs["expression"], x.astype(np.float64)
    step = STEP * np.maximum(np.abs(x), 1)
    rise = expression.compute64(f, x + step) - expression.compute64(f, x - step)
    return (rise / (2 * step)).astype(np.float32)


def _times(node, gradient, shapes, kept):
    return (gradient * kept,)


def _within(node, x):
    return (x > node.attrs["lo"]) & (x < node.attrs["hi"])


def _concat(node, gradient, shapes, kept):
    axis = node.attrs["axis"]
    return tuple(np.split(gradient, np.cumsum([shape[axis] for shape in shapes])[:-1], axis))


def _largest(node, x):
    """(N, OH, OW, C): which place of its window each number of a max pool comes from."""
    a = node.attrs
    view = windows(x, a["pool_size"], a["strides"], a["padding"], a["dilation"], -np.inf)
    n, h, w, r, s, c = view.shape
    return view.reshape(n, h, w, r * s, c).argmax(axis=3).astype(np.uint16)


def _max_pool(node, gradient, shapes, kept):
    width = node.attrs["pool_size"][1]
    return (_spread(node, shapes[0], node.attrs["pool_size"],
                    lambda i, j: gradient * (kept == i * width + j)),)  # fmt: skip


def _average(node, gradient, shapes, kept):
    a, size = node.attrs, node.attrs["pool_size"]
    if a["count_include_pad"]:
        count: Any = np.float32(size[0] * size[1])
    else:
        seen = np.ones((1, *shapes[0][1:3], 1), np.float32)
        count = windows(seen, size, a["strides"], a["padding"], (1, 1), 0).sum(axis=(3, 4))
    return (_spread(node, shapes[0], size, lambda i, j: gradient / count),)


def _mean_within(node, gradient, shapes, kept):
    made = gradient / mean_counts(node)
    return (_spread(node, shapes[0], node.attrs["pool_size"], lambda i, j: made),)


def _mean_along(node, gradient, shapes, kept):
    count = np.prod(shapes[0]) // np.prod(gradient.shape)
    return (np.broadcast_to(gradient / np.float32(count), shapes[0]),)


def _shares_of_largest(node, x):
    """1 where the largest along the axes is, of equals a share each."""
    there = (x == evaluate(node, x)).astype(np.float32)
    return there / there.sum(axis=node.attrs["axes"], keepdims=True)


def _layer_norm(node, gradient, shapes, kept):
    root, made = kept
    inner = gradient * np.float32(node.attrs["scale"])
    along = (inner * made).mean(axis=-1, keepdims=True)
    return ((inner - inner.mean(axis=-1, keepdims=True) - made * along) / root,)


def _moved(node, gradient, shapes, kept):
    """Of what moves every number to one place at most."""
    size = int(np.prod(shapes[0]))
    found = np.zeros(size, np.float32)
    found[evaluate(node, np.arange(size).reshape(shapes[0])).ravel()] = gradient.ravel()
    return (found.reshape(shapes[0]),)


def _pad(node, gradient, shapes, kept):
    axes = zip(node.attrs["widths"], shapes[0], strict=True)
    return (gradient[tuple(slice(before, before + size) for (before, _), size in axes)],)


def _gather(node, gradient, shapes, kept):
    for axis, places in enumerate(node.attrs["indices"]):
        if places is not None:
            whole = np.zeros((shapes[0][axis], *np.delete(gradient.shape, axis)), np.float32)
            np.add.at(whole, list(places), np.moveaxis(gradient, axis, 0))
            gradient = np.moveaxis(whole, 0, axis)
    return (gradient,)


def _resize(node, gradient, shapes, kept):
    (n, h, w, c), (down, across) = shapes[0], node.attrs["factors"]
    return (gradient.reshape(n, h, down, w, across, c).sum(axis=(2, 4)),)


def _resize_linear(node, gradient, shapes, kept):
    down, across = resample.taps_of(node.attrs)
    _, height, width, _ = shapes[0]
    return (
        np.einsum("nyxc,hy,wx->nhwc", gradient, down.matrix(height), across.matrix(width), optimize=True),
    )


#: operator -> its backward rule, for all that can run in integers
RULES = {
    "conv2d": Rule(_convolution),
    "dense": Rule(_dense),
    "add": Rule(_sum),
    "sub": Rule(_difference),
    "max": Rule(_extreme, lambda node, a, b: a >= b),
    "min": Rule(_extreme, lambda node, a, b: a <= b),
    "mul": Rule(_product, lambda node, a, b: (a, b)),
    "matmul": Rule(_contract, lambda node, a, b: (a, b)),
    "elementwise": Rule(_times, _slope),
    "concat": Rule(_concat),
    "max_pool2d": Rule(_max_pool, _largest),
    "avg_pool2d": Rule(_average),
    "mean_pool2d": Rule(_mean_within),
    "reduce_mean": Rule(_mean_along),
    "reduce_max": Rule(_times, _shares_of_largest),
    "layer_norm": Rule(_layer_norm, normalized),
    "clip": Rule(_times, _within),
    "reshape": Rule(_moved),
    "transpose": Rule(_moved),
    "slice": Rule(_moved),
    "pad": Rule(_pad),
    "resize": Rule(_resize),
    "gather": Rule(_gather),
    "resize_linear": Rule(_resize_linear),
    "depth_to_space": Rule(_moved),
}
