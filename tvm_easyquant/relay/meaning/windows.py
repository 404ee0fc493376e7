"""Convolutions, pools and products of matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...network.tensors import NUMPY
from .attributes import SPATIAL, ints, only, padding, shape, turn


def _conv(rank: int) -> Callable:
    spatial = SPATIAL[rank - 1]

    def rule(call, attrs, x, weight):
        x = turn(x, attrs.data_layout, f"NC{spatial}", call)
        weight = turn(weight, attrs.kernel_layout, f"OI{spatial}", call)
        pads = padding(attrs.padding, rank)
        made = NUMPY.conv(x, weight, ints(attrs.strides), pads, ints(attrs.dilation), int(attrs.groups))
        return turn(made, f"NC{spatial}", attrs.out_layout or attrs.data_layout, call)

    return rule


def _conv_transpose(rank: int) -> Callable:
    """The convolution of what has zeros between its numbers with the weights turned round."""
    spatial = SPATIAL[rank - 1]

    def rule(call, attrs, x, weight):
        x = turn(x, attrs.data_layout, f"NC{spatial}", call)
        weight = turn(weight, attrs.kernel_layout, f"IO{spatial}", call)
        groups, strides, dilation = int(attrs.groups), ints(attrs.strides), ints(attrs.dilation)
        pads, more = padding(attrs.padding, rank), ints(attrs.output_padding)
        sizes = [(d - 1) * s + 1 for d, s in zip(x.shape[2:], strides, strict=True)]
        stuffed = np.zeros((*x.shape[:2], *sizes), x.dtype)
        spread: tuple = tuple(slice(None, None, s) for s in strides)
        stuffed[(..., *spread)] = x
        reach = [(k - 1) * d for k, d in zip(weight.shape[2:], dilation, strict=True)]
        pads = tuple(r - p for r, p in zip(reach * 2, pads, strict=True))
        pads = (*pads[:rank], *(p + m for p, m in zip(pads[rank:], more, strict=True)))
        where: tuple = tuple(  # what is padded by less than nothing is cut off
            slice(max(0, -b), n - max(0, -e))
            for b, e, n in zip(pads[:rank], pads[rank:], sizes, strict=True)
        )
        depth, per, *kernel = weight.shape
        turned = np.flip(weight, tuple(range(2, 2 + rank))).reshape(groups, depth // groups, per, *kernel)
        turned = np.ascontiguousarray(turned.swapaxes(1, 2))
        turned = turned.reshape(groups * per, depth // groups, *kernel)
        pads = tuple(max(0, p) for p in pads)
        made = NUMPY.conv(stuffed[(..., *where)], turned, (1,) * rank, pads, dilation, groups)
        return turn(made, f"NC{spatial}", attrs.out_layout or attrs.data_layout, call)

    return rule


def _inside(call, attrs, x, inner: str):
    """What a pool reads, and the shape that it makes, both with the axes ``inner``; its own layout."""
    layout = str(attrs.layout)
    only(not attrs.out_layout or str(attrs.out_layout) == layout, call)
    return turn(x, layout, inner, call), [shape(call)[layout.index(axis)] for axis in inner], layout


def _pool(name: str, rank: int) -> Callable:
    inner = f"NC{SPATIAL[rank - 1]}"

    def rule(call, attrs, x):
        x, out, layout = _inside(call, attrs, x, inner)
        kernel, strides, dilation = (
            ints(each) for each in (attrs.pool_size, attrs.strides, attrs.dilation)
        )
        pads = own = padding(attrs.padding, rank)
        if attrs.ceil_mode:  # the last window reaches beyond the end
            rows = zip(out[2:], strides, kernel, dilation, x.shape[2:], pads, strict=False)
            ends = ((o - 1) * s + (k - 1) * d + 1 - n - p for o, s, k, d, n, p in rows)
            pads = (*pads[:rank], *(max(e, p) for e, p in zip(ends, pads[rank:], strict=True)))
        if name == "max":
            return turn(NUMPY.pool("max", x, kernel, strides, pads, dilation), inner, layout, call)
        made = NUMPY.pool("sum", x, kernel, strides, pads, dilation)
        counted, beyond = np.ones((1, 1, *x.shape[2:]), x.dtype), pads
        if attrs.count_include_pad:  # what the last window reaches more of does not count
            beyond = (*[0] * rank, *(e - p for e, p in zip(pads[rank:], own[rank:], strict=True)))
            sides = zip(own[:rank], own[rank:], strict=True)
            counted = np.pad(counted, [(0, 0), (0, 0), *sides], constant_values=1)
        made = made / np.maximum(NUMPY.pool("sum", counted, kernel, strides, beyond, dilation), 1)
        return turn(made, inner, layout, call)

    return rule


def _adaptive_pool(reduction: Callable, rank: int) -> Callable:
    """Parts of about equal size, that may overlap."""
    inner = f"NC{SPATIAL[rank - 1]}"

    def rule(call, attrs, x):
        x, out, layout = _inside(call, attrs, x, inner)
        made = np.empty(out, x.dtype)
        for place in np.ndindex(*out[2:]):
            part: tuple = tuple(
                slice(i * n // o, -(-(i + 1) * n // o))
                for i, n, o in zip(place, x.shape[2:], out[2:], strict=True)
            )
            made[(..., *place)] = reduction(x[(..., *part)], axis=tuple(range(2, 2 + rank)))
        return turn(made, inner, layout, call)

    return rule


def _global_pool(reduction: Callable) -> Callable:
    def rule(call, attrs, x):
        where = tuple(str(attrs.layout).index(axis) for axis in "HW")
        only(len(str(attrs.layout)) == 4, call)
        return reduction(x, axis=where, keepdims=True)

    return rule


def _turned(x, flag):
    return x.swapaxes(-1, -2) if flag else x


def _matmul(call, attrs, a, b):
    return NUMPY.matmul(_turned(a, attrs.transpose_a), _turned(b, attrs.transpose_b))


def _einsum(call, attrs, fields):
    return np.einsum(str(attrs.equation), *fields)


RANKS = (1, 2, 3)
#: Relay operator -> its rule (call, attributes, arrays)
RULES: dict[str, Callable] = {
    **{f"nn.conv{rank}d": _conv(rank) for rank in RANKS},
    **{f"nn.conv{rank}d_transpose": _conv_transpose(rank) for rank in RANKS},
    **{f"nn.max_pool{rank}d": _pool("max", rank) for rank in RANKS},
    **{f"nn.avg_pool{rank}d": _pool("sum", rank) for rank in RANKS},
    **{f"nn.adaptive_max_pool{rank}d": _adaptive_pool(np.max, rank) for rank in RANKS},
    **{f"nn.adaptive_avg_pool{rank}d": _adaptive_pool(np.mean, rank) for rank in RANKS},
    "nn.global_avg_pool2d": _global_pool(np.mean),
    "nn.global_max_pool2d": _global_pool(np.max),
    "nn.dense": lambda call, attrs, a, b: NUMPY.matmul(a, b.T),
    "nn.matmul": _matmul,
    "nn.batch_matmul": _matmul,
    "einsum": _einsum,
}
