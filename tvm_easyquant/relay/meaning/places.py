"""What moves numbers and computes none; resampling of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...network.layout import to_nchw, to_nhwc
from ...network.ops import depth_to_space
from .attributes import SPATIAL, along, ints, only, shape, turn


def _reshape(call, attrs, x, *more):
    return x.reshape(shape(call))


def _transpose(call, attrs, x):
    return np.ascontiguousarray(x.transpose(None if attrs.axes is None else ints(attrs.axes)))


def _concatenate(call, attrs, fields):
    return np.concatenate(fields, int(attrs.axis))


def _stack(call, attrs, fields):
    return np.stack(fields, int(attrs.axis))


def _split(call, attrs, x):
    sections = attrs.indices_or_sections
    sections = ints(sections) if hasattr(sections, "__len__") else int(sections)
    return np.split(x, sections, int(attrs.axis))


def _strided_slice(call, attrs, x):
    only(attrs.slice_mode == "end" and attrs.begin is not None, call)
    begin, end, strides = (ints(each) for each in (attrs.begin, attrs.end, attrs.strides))
    strides += (1,) * (len(begin) - len(strides))
    axes = range(len(begin)) if attrs.axes is None else ints(attrs.axes)
    where = [slice(None)] * x.ndim
    for axis, *bounds in zip(axes, begin, end, strides, strict=True):
        where[axis] = slice(*bounds)
    return x[tuple(where)]


def _slice_like(call, attrs, x, like):
    return x[tuple(slice(n) for n in shape(call))]


def _pad(call, attrs, x, value):
    widths: list = [ints(pair) for pair in attrs.pad_width]
    mode: Any = str(attrs.pad_mode)
    if mode == "constant":
        return np.pad(x, widths, constant_values=x.dtype.type(value))
    return np.pad(x, widths, mode=mode)  # edge, reflect


def _mirror_pad(call, attrs, x):
    mode: Any = {"SYMMETRIC": "symmetric", "REFLECT": "reflect"}[str(attrs.mode)]
    return np.pad(x, [ints(pair) for pair in attrs.pad_width], mode=mode)


def _dilate(call, attrs, x):
    """What has ``dilation_value`` between its numbers."""
    made = np.full(shape(call), attrs.dilation_value, x.dtype)
    made[tuple(slice(None, None, step) for step in ints(attrs.strides))] = x
    return made


def _take(call, attrs, x, indices):
    only(int(attrs.batch_dims) == 0, call)
    axis = None if attrs.axis is None else int(attrs.axis)
    return x.take(indices, axis, mode="wrap" if attrs.mode == "wrap" else "clip")


def _gather_nd(call, attrs, x, indices):
    only(int(attrs.batch_dims) == 0, call)
    return x[tuple(indices)]


def _scatter_elements(call, attrs, x, indices, updates):
    join = {"update": None, "add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}
    only(str(attrs.reduction) in join, call)
    made, axis, function = x.copy(), int(attrs.axis) % x.ndim, join[str(attrs.reduction)]
    where = list(np.indices(indices.shape, sparse=True))
    where[axis] = np.where(indices < 0, indices + x.shape[axis], indices)
    if function is None:
        made[tuple(where)] = updates
    else:
        function.at(made, tuple(where), updates)
    return made


def _space_to_depth(call, attrs, x):
    x, block = turn(x, attrs.layout, "NCHW", call), int(attrs.block_size)
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block).transpose(0, 3, 5, 1, 2, 4)
    return turn(parts.reshape(n, -1, h // block, w // block), "NCHW", attrs.layout, call)


def _depth_to_space(call, attrs, x):
    x = to_nhwc(turn(x, attrs.layout, "NCHW", call))
    made = to_nchw(depth_to_space(x, int(attrs.block_size), str(attrs.mode)))
    return turn(made, "NCHW", attrs.layout, call)


def _batch_to_space(call, attrs, x):
    blocks, rank = ints(attrs.block_shape), len(attrs.block_shape)
    parts = x.reshape(*blocks, -1, *x.shape[1:])
    pairs = (axis for i in range(rank) for axis in (rank + 1 + i, i))
    spatial = [n * b for n, b in zip(x.shape[1:], blocks, strict=False)]
    made = parts.transpose(rank, *pairs, *range(2 * rank + 1, parts.ndim))
    made = made.reshape(-1, *spatial, *x.shape[1 + rank :])
    cuts = (slice(b, n - e) for (b, e), n in zip(map(ints, attrs.crops), spatial, strict=True))
    return made[(slice(None), *cuts)]


def _space_to_batch(call, attrs, x):
    blocks, rank = ints(attrs.block_shape), len(attrs.block_shape)
    widths = [(0, 0), *map(ints, attrs.paddings), *[(0, 0)] * (x.ndim - 1 - rank)]
    x = np.pad(x, widths, constant_values=x.dtype.type(attrs.pad_value))
    parts = [(n // b, b) for n, b in zip(x.shape[1:], blocks, strict=False)]
    split = x.reshape(x.shape[0], *(d for pair in parts for d in pair), *x.shape[1 + rank :])
    order = [*range(2, 2 * rank + 1, 2), 0, *range(1, 2 * rank, 2), *range(2 * rank + 1, split.ndim)]
    return split.transpose(order).reshape(-1, *(n for n, _ in parts), *x.shape[1 + rank :])


# -- resampling


def _coordinates(before: int, after: int, mode: str, start: float, end: float) -> np.ndarray:
    """Where along an axis each number of the result lies, in float32."""
    place, one, half = np.arange(after, dtype=np.float32), np.float32(1), np.float32(0.5)
    scale, last = np.float32(before) / np.float32(after), np.float32(before - 1)
    if mode == "align_corners":
        return place * (last / np.float32(max(after - 1, 1)))
    if mode == "asymmetric":
        return place * scale
    if mode == "tf_half_pixel_for_nn":
        return (place + half) * scale
    if mode == "tf_crop_and_resize":
        first, reach = np.float32(start), np.float32(end) - np.float32(start)
        if after > 1:
            return first * last + place * reach * last / np.float32(after - 1)
        return np.full(1, half * (2 * first + reach) * last)
    return (place + half) * scale - half if after > 1 or mode == "half_pixel" else place * (one - one)


MODES = (
    "half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "tf_half_pixel_for_nn",
    "tf_crop_and_resize",
)  # fmt: skip
#: nearest_neighbor: coordinates -> places
NEAREST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round": lambda at: np.floor(at + np.float32(0.5)),
    "round_prefer_floor": lambda at: np.ceil(at - np.float32(0.5)),
    "round_prefer_ceil": lambda at: np.floor(at + np.float32(0.5)),
    "floor": lambda at: np.floor(at + np.float32(1e-5)),
    "ceil": lambda at: np.ceil(at - np.float32(1e-5)),
}


def _cubic(t: np.ndarray, alpha: float) -> list[np.ndarray]:
    """The weights of four neighbours."""
    a, squared, cubed = np.float32(alpha), t * t, t * t * t
    return [
        a * (cubed - 2 * squared + t),
        (a + 2) * cubed - (3 + a) * squared + 1,
        -(a + 2) * cubed + (3 + 2 * a) * squared - a * t,
        -a * cubed + a * squared,
    ]


def _taps(at: np.ndarray, before: int, attrs, mode: str) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Places along an axis and what each counts; None: it is the only one."""
    method = str(attrs.method)
    if method == "nearest_neighbor":
        rounding = str(attrs.rounding_method) or ("round" if mode == "align_corners" else "floor")
        return [(NEAREST[rounding](at), None)]
    low = np.floor(at)
    share = at - low
    if method == "linear":
        return [(low, np.float32(1) - share), (low + 1, share)]
    weights = _cubic(share, attrs.cubic_alpha)
    if attrs.cubic_exclude:
        inside = [(low - 1 + i >= 0) & (low + i <= before) for i in range(4)]
        weights = [np.where(there, w, np.float32(0)) for there, w in zip(inside, weights, strict=True)]
        total = sum(weights)
        weights = [w / total for w in weights]
    return [(low - 1 + i, w) for i, w in enumerate(weights)]


def _resize(rank: int) -> Callable:
    inner = f"NC{SPATIAL[rank - 1]}"

    def rule(call, attrs, x):
        roi = [float(each) for each in (attrs.roi if attrs.roi is not None else [])] or [0.0] * (2 * rank)
        if rank == 3:  # TVM counts these from the last axis
            roi = [*roi[2::-1], *roi[:2:-1]]
        after = shape(call)
        after = tuple(after[str(attrs.layout).index(axis)] for axis in inner[2:])
        return resize(call, attrs, x, after, str(attrs.coordinate_transformation_mode), roi, inner)

    return rule


def resize(call, attrs, x, after: Sequence[int], mode: str, roi: Sequence[float], inner: str):
    """The last axis first, in float32, as TVM does."""
    only(x.dtype == np.float32 and mode in MODES, call)
    only(not (str(attrs.method) == "cubic" and attrs.cubic_exclude and len(after) == 3), call)
    x = turn(x, attrs.layout, inner, call)
    beyond = np.zeros(tuple(after), bool)
    for i in reversed(range(len(after))):
        axis, before = i + 2, x.shape[i + 2]
        at = _coordinates(before, after[i], mode, roi[i], roi[i + len(after)])
        made: Any = None
        for place, weight in _taps(at, before, attrs, mode):
            part = x.take(np.clip(place, 0, before - 1).astype(int), axis)
            part = part if weight is None else part * along(weight, axis, x.ndim)
            made = part if made is None else made + part
        x = made
        beyond |= along((at < 0) | (at > before - 1), i, len(after))
    if mode == "tf_crop_and_resize":
        x = np.where(beyond, np.float32(attrs.extrapolation_value), x)
    return turn(x, inner, attrs.layout, call)


class _Upsampling:
    """The attributes of an upsampling as those of a resize."""

    cubic_alpha, cubic_exclude, rounding_method, extrapolation_value = -0.5, 0, "", 0.0

    def __init__(self, attrs):
        method = str(attrs.method)
        self.layout = str(attrs.layout)
        self.method = {"bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}.get(method, method)


def _upsampling(call, attrs, x):
    inner, rank = f"NC{SPATIAL[x.ndim - 3]}", x.ndim - 2
    after = shape(call)
    after = tuple(after[str(attrs.layout).index(axis)] for axis in inner[2:])
    if rank == 2:
        mode = "align_corners" if attrs.align_corners else "asymmetric"
    else:
        mode = str(attrs.coordinate_transformation_mode)
    return resize(call, _Upsampling(attrs), x, after, mode, [0.0] * (2 * rank), inner)


#: Relay operator -> its rule (call, attributes, arrays)
RULES: dict[str, Callable] = {
    **dict.fromkeys(("copy", "annotation.stop_fusion"), lambda call, attrs, x: x),
    "nn.dropout": lambda call, attrs, x: [x, np.ones_like(x)],
    **dict.fromkeys(("reshape", "squeeze", "expand_dims", "nn.batch_flatten", "reshape_like"), _reshape),
    "transpose": _transpose,
    "broadcast_to": lambda call, attrs, x, *more: np.broadcast_to(x, shape(call)),
    "broadcast_to_like": lambda call, attrs, x, like: np.broadcast_to(x, shape(call)),
    "concatenate": _concatenate,
    "stack": _stack,
    "split": _split,
    "strided_slice": _strided_slice,
    "slice_like": _slice_like,
    "reverse": lambda call, attrs, x: np.flip(x, int(attrs.axis)),
    "tile": lambda call, attrs, x: np.tile(x, ints(attrs.reps)),
    "repeat": lambda call, attrs, x: x.repeat(int(attrs.repeats), int(attrs.axis)),
    "nn.pad": _pad,
    "nn.mirror_pad": _mirror_pad,
    "nn.dilate": _dilate,
    "take": _take,
    "gather": lambda call, attrs, x, indices: np.take_along_axis(x, indices, int(attrs.axis)),
    "gather_nd": _gather_nd,
    "scatter_elements": _scatter_elements,
    "nn.depth_to_space": _depth_to_space,
    "nn.space_to_depth": _space_to_depth,
    "nn.batch_to_space_nd": _batch_to_space,
    "nn.space_to_batch_nd": _space_to_batch,
    **{f"image.resize{rank}d": _resize(rank) for rank in (1, 2, 3)},
    "nn.upsampling": _upsampling,
    "nn.upsampling3d": _upsampling,
}
