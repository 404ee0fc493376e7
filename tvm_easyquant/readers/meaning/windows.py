"""Convolutions, pools and products of matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from .. import geometry
from ..onnx_op import Call


def _conv(call: Call):
    t, x, weight = call.t, call.x[0], call.x[1]
    kernel, strides, dilations = _steps(call, weight.shape[2:])
    padding = geometry.pads(call.op.attributes, x.shape[2:], kernel, strides, dilations)
    x, padding = _without_negative(t, x, padding)
    return _biased(call, t.conv(x, weight, strides, padding, dilations, call.get("group", 1)))


def _conv_transpose(call: Call):
    x, weight = call.x[0], call.x[1]
    kernel, strides, dilations = _steps(call, weight.shape[2:])
    extra = call.get("output_padding") or (0,) * len(kernel)
    padding, _ = geometry.transposed(call.op.attributes, x.shape[2:], kernel, strides, dilations)
    out = _scattered(call.t, x, weight, strides, padding, dilations, call.get("group", 1), extra)
    return _biased(call, out)


def _scattered(t, x, weight, strides, padding, dilations, groups, extra):
    """A transposed convolution: zeros between the places of ``x``, then a convolution with the weights
    (C, K / groups, ...) flipped. padding: what is left out of the result; extra: made behind it."""
    rank, (n, c, *size) = len(strides), x.shape
    if any(s > 1 for s in strides):
        apart = [number for s in size for number in (s, 1)]
        widths = [(0, 0), (0, 0), *(w for s in strides for w in ((0, 0), (0, s - 1)))]
        x = t.pad(t.reshape(x, (n, c, *apart)), widths, 0)
        x = t.reshape(x, (n, c, *(m * s for m, s in zip(size, strides, strict=True))))
        ends = [(m - 1) * s + 1 for m, s in zip(size, strides, strict=True)]
        x = t.crop(x, (0,) * (2 + rank), (n, c, *ends), (1,) * (2 + rank))
    per = weight.shape[1]
    kernel = weight.shape[2:]
    weight = t.reshape(weight, (groups, c // groups, per, *kernel))
    weight = t.transpose(weight, (0, 2, 1, *range(3, 3 + rank)))
    weight = t.reshape(weight, (groups * per, c // groups, *kernel))
    for i, k in enumerate(kernel):
        if k > 1:
            weight = t.take(weight, np.arange(k)[::-1].copy(), 2 + i)
    spans = geometry.reach(kernel, dilations)
    begins = [r - 1 - p for r, p in zip(spans, padding[:rank], strict=True)]
    ends = [r - 1 - p + more for r, p, more in zip(spans, padding[rank:], extra, strict=True)]
    x, around = _without_negative(t, x, (*begins, *ends))
    return t.conv(x, weight, (1,) * rank, around, dilations, groups)


def _col2im(call: Call):
    t, x = call.t, call.x[0]
    image = [int(n) for n in call.known(1)]
    block = [int(n) for n in call.known(2)]
    kernel, strides, dilations = _steps(call, block)
    padding = call.get("pads") or (0,) * (2 * len(block))
    blocks = geometry.outputs(image, kernel, strides, dilations, padding)
    n, c = x.shape[0], x.shape[1] // prod(block)
    # each place of a block is a channel, whose one weight is at that place
    weight = t.constant(np.eye(prod(block), dtype=np.float32).reshape(-1, 1, *block))
    columns = t.cast(t.reshape(x, (n * c, prod(block), *blocks)), np.float32)
    begins, spans = padding[: len(block)], geometry.reach(kernel, dilations)
    ends = [
        s * (m - 1) + r - b - size
        for size, m, s, r, b in zip(image, blocks, strides, spans, begins, strict=True)
    ]  # fewer than the padding where the last block ends before it
    out = _scattered(t, columns, weight, strides, (*begins, *ends), dilations, 1, (0,) * len(block))
    return t.cast(t.reshape(out, (n, c, *image)), x.dtype)


# -- pools


def _windows(call: Call) -> tuple:
    """(kernel, strides, whole padding, dilations, counts) of a pool and the padding as it is written."""
    size = call.x[0].shape[2:]
    kernel, strides, dilations = _steps(call, call["kernel_shape"])
    padding = geometry.pads(call.op.attributes, size, kernel, strides, dilations)
    counts = geometry.outputs(size, kernel, strides, dilations, padding, bool(call.get("ceil_mode")))
    whole = geometry.whole_windows(size, kernel, strides, dilations, padding, counts)
    return (kernel, strides, whole, dilations, counts), padding


def _max_pool(call: Call):
    (kernel, strides, padding, dilations, counts), _ = _windows(call)
    if call.op.index == 0:
        return call.t.pool("max", call.x[0], kernel, strides, padding, dilations)
    return None, _places(call, kernel, strides, padding, dilations, counts)


def _places(call: Call, kernel, strides, padding, dilations, counts):
    """Where in the whole tensor, flat, the largest of each window is; of equals the first."""
    t, x, rank = call.t, call.x[0], len(kernel)
    n, c, *size = x.shape
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    spatial = list(zip(padding[:rank], padding[rank:], strict=True))
    padded = t.pad(x, [(0, 0), (0, 0), *spatial], lowest) if any(padding) else x
    # a row's or, with storage_order, a column's numbers lie side by side
    order = range(rank) if call.get("storage_order") else reversed(range(rank))
    weights, step = [0] * rank, 1
    for i in order:
        weights[i], step = step, step * size[i]
    best = chosen = None
    for place in product(*map(range, kernel)):
        begin = [k * d for k, d in zip(place, dilations, strict=True)]
        end = [b + (m - 1) * s + 1 for b, m, s in zip(begin, counts, strides, strict=True)]
        values = t.crop(padded, (0, 0, *begin), (n, c, *end), (1, 1, *strides))
        inside, flat = np.ones(counts, bool), np.zeros(counts, np.int64)
        for i in range(rank):
            along = begin[i] + np.arange(counts[i]) * strides[i] - padding[i]
            along = along.reshape([-1 if j == i else 1 for j in range(rank)])
            inside &= (along >= 0) & (along < size[i])
            flat += along * weights[i]
        if best is None:
            best, chosen, known = values, np.where(inside, flat, -1), inside
            chosen = t.broadcast(t.constant(chosen[None, None]), (n, c, *counts))
            continue
        better = t.binary("greater", values, best)
        if not inside.all():
            better = t.binary("and", better, t.constant(inside[None, None]))
        if not known.all():  # the first place within the tensor is taken whatever is there
            better = t.binary("or", better, t.constant((inside & ~known)[None, None]))
        known = known | inside
        best = t.where(better, values, best)
        chosen = t.where(better, t.constant(flat[None, None]), chosen)
    start = np.arange(n * c, dtype=np.int64).reshape(n, c, *(1,) * rank) * prod(size)
    return t.binary("add", chosen, t.constant(start))


def _average_pool(call: Call):
    t, x = call.t, call.x[0]
    (kernel, strides, padding, dilations, counts), written = _windows(call)
    total = t.pool("sum", x, kernel, strides, padding, dilations)
    rank = len(kernel)
    number = np.ones((1, 1, *counts), np.int64)
    for i in range(rank):  # what ceil mode adds behind is never counted
        first = np.arange(counts[i])[:, None] * strides[i] - padding[i]
        along = first + np.arange(kernel[i]) * dilations[i]
        low, high = 0, x.shape[2 + i]
        if call.get("count_include_pad"):
            low, high = low - written[i], high + written[rank + i]
        inside = ((along >= low) & (along < high)).sum(1)
        number *= inside.reshape([-1 if j == i + 2 else 1 for j in range(2 + rank)])
    if (number == prod(kernel)).all():
        number = np.array(prod(kernel))
    return t.binary("divide", total, t.constant(np.maximum(number, 1).astype(x.dtype)))


def _lp_pool(call: Call):
    (kernel, strides, padding, dilations, _), _ = _windows(call)
    t, p = call.t, float(call.get("p", 2))
    x = call.t.unary("abs", call.x[0])
    if p != 1:
        x = (
            t.binary("multiply", x, x)
            if p == 2
            else t.binary("power", x, t.constant(np.array(p, np.float32)))
        )
    x = t.pool("sum", x, kernel, strides, padding, dilations)
    if p == 1:
        return x
    return t.unary("sqrt", x) if p == 2 else t.binary("power", x, t.constant(np.array(1 / p, np.float32)))


def _global_average_pool(call: Call):
    x = call.x[0]
    axes = range(2, len(x.shape))
    count = call.t.constant(np.array(prod(x.shape[2:]), x.dtype))
    return call.t.binary("divide", call.t.reduce("sum", x, axes), count)


def _global_max_pool(call: Call):
    return call.t.reduce("max", call.x[0], range(2, len(call.x[0].shape)))


def _steps(call: Call, kernel: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """(kernel, strides, dilations), one number per spatial axis each."""
    ones = (1,) * len(kernel)
    return tuple(kernel), tuple(call.get("strides") or ones), tuple(call.get("dilations") or ones)


def _biased(call: Call, out):
    bias = call.input(2)
    if bias is None:
        return out
    shape = (1, bias.shape[0], *(1,) * (len(out.shape) - 2))
    return call.t.binary("add", out, call.t.reshape(bias, shape))


def _without_negative(t, x, padding):
    """(``x`` without the places that a negative padding takes away, what is left of the padding)."""
    if min(padding, default=0) >= 0:
        return x, padding
    rank = len(padding) // 2
    begin = [max(0, -p) for p in padding[:rank]]
    end = [n - max(0, -p) for n, p in zip(x.shape[2:], padding[rank:], strict=True)]
    x = t.crop(x, (0, 0, *begin), (*x.shape[:2], *end), (1,) * len(x.shape))
    return x, tuple(max(0, p) for p in padding)


RULES: dict[str, Callable[[Call], Any]] = {
    "AveragePool": _average_pool,
    "Col2Im": _col2im,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
    "LpPool": _lp_pool,
    "MaxPool": _max_pool,
}
