"""What Relay's float operators mean, in numpy: search and reference ask no executor of TVM's.

These are the operators that `tensors` and `rewrite` write, and those of a user's module with a meaning of
a few lines. What else there is, and odd attributes of these, has none here: NoMeaning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from ..network.layout import to_nchw, to_nhwc
from ..network.ops import depth_to_space
from ..network.tensors import NUMPY
from .framework import relay, tvm


class NoMeaning(Exception):
    """There is no rule for an operator, or none for these attributes."""


def compute(call, arguments: Sequence[Any]) -> Any:
    """A call on arrays in its own layout (a list of them for an argument that is a tuple).

    The result is an array, a list of them for a tuple. Raises NoMeaning.
    """
    rule = RULES.get(call.op.name)
    if rule is None:
        raise NoMeaning(call.op.name)
    made = rule(call, call.attrs, *arguments)
    if isinstance(call.checked_type, relay.TensorType):
        return np.asarray(made, call.checked_type.dtype)
    fields = call.checked_type.fields
    return [np.asarray(array, kind.dtype) for array, kind in zip(made, fields, strict=True)]


def _ints(values) -> tuple[int, ...]:
    return tuple(int(v) for v in values)


def _shape(call) -> tuple[int, ...]:
    return _ints(call.checked_type.shape)


def _only(known: bool, call) -> None:
    if not known:
        raise NoMeaning(f"these attributes of {call.op.name}")


# -- numbers


def _unary(name: str) -> Callable:
    return lambda call, attrs, x: NUMPY.unary(name, x)


def _binary(name: str) -> Callable:
    return lambda call, attrs, a, b: NUMPY.binary(name, a, b)


def _clip(call, attrs, x):
    lo, hi = float(attrs.a_min), float(attrs.a_max)
    if x.dtype.kind in "iu":
        held = np.iinfo(x.dtype)
        lo, hi = max(lo, held.min), min(hi, held.max)
    return np.clip(x, x.dtype.type(lo), x.dtype.type(hi))


def _leaky_relu(call, attrs, x):
    return np.where(x >= 0, x, x * x.dtype.type(attrs.alpha))


def _along(array, axis, rank):
    """A vector, shaped to act along an axis."""
    shape = [1] * rank
    shape[axis] = -1
    return array.reshape(shape)


def _prelu(call, attrs, x, slope):
    return np.where(x >= 0, x, x * _along(slope, int(attrs.axis), x.ndim))


def _bias_add(call, attrs, x, bias):
    return x + _along(bias, int(attrs.axis), x.ndim)


def _softmax(call, attrs, x):
    e = np.exp(x - x.max(int(attrs.axis), keepdims=True))
    return e / e.sum(int(attrs.axis), keepdims=True)


def _log_softmax(call, attrs, x):
    x = x - x.max(int(attrs.axis), keepdims=True)
    return x - np.log(np.exp(x).sum(int(attrs.axis), keepdims=True))


def _lrn(call, attrs, x):
    _only(int(attrs.axis) == 1, call)
    size, half = int(attrs.size), int(attrs.size) // 2
    squares = np.pad(x * x, [(half, half) if i == 1 else (0, 0) for i in range(x.ndim)])
    total = sum(squares[:, i : i + x.shape[1]] for i in range(size))
    return x / (attrs.bias + (attrs.alpha / size) * total) ** attrs.beta


# -- places


def _reshape(call, attrs, x, *shape):
    return x.reshape(_shape(call))


def _transpose(call, attrs, x):
    return np.ascontiguousarray(x.transpose(None if attrs.axes is None else _ints(attrs.axes)))


def _concatenate(call, attrs, fields):
    return np.concatenate(fields, int(attrs.axis))


def _split(call, attrs, x):
    sections = attrs.indices_or_sections
    sections = _ints(sections) if hasattr(sections, "__len__") else int(sections)
    return np.split(x, sections, int(attrs.axis))


def _strided_slice(call, attrs, x):
    _only(attrs.slice_mode == "end" and attrs.begin is not None, call)
    begin, end, strides = (_ints(each) for each in (attrs.begin, attrs.end, attrs.strides))
    strides += (1,) * (len(begin) - len(strides))
    axes = range(len(begin)) if attrs.axes is None else _ints(attrs.axes)
    where = [slice(None)] * x.ndim
    for axis, *bounds in zip(axes, begin, end, strides, strict=True):
        where[axis] = slice(*bounds)
    return x[tuple(where)]


def _pad(call, attrs, x, value):
    widths: list = [_ints(pair) for pair in attrs.pad_width]
    mode: Any = str(attrs.pad_mode)
    if mode == "constant":
        return np.pad(x, widths, constant_values=x.dtype.type(value))
    return np.pad(x, widths, mode=mode)  # edge, reflect


def _take(call, attrs, x, indices):
    _only(int(attrs.batch_dims) == 0, call)
    axis = None if attrs.axis is None else int(attrs.axis)
    return x.take(indices, axis, mode="wrap" if attrs.mode == "wrap" else "clip")


def _argsort(call, attrs, x):
    if attrs.is_ascend:
        return x.argsort(int(attrs.axis), kind="stable")
    return NUMPY.top(x, x.shape[int(attrs.axis)], int(attrs.axis))[1]


def _topk(call, attrs, x):
    _only(not attrs.is_ascend and isinstance(attrs.k, (int, tvm.tir.IntImm)) and int(attrs.k) > 0, call)
    values, places = NUMPY.top(x, min(int(attrs.k), x.shape[int(attrs.axis)]), int(attrs.axis))
    return {"both": [values, places], "values": values, "indices": places}[str(attrs.ret_type)]


def _depth_to_space(call, attrs, x):
    _only(attrs.layout == "NCHW", call)
    return to_nchw(depth_to_space(to_nhwc(x), int(attrs.block_size), str(attrs.mode)))


def _resize2d(call, attrs, x):
    """Bilinear: rows, then columns, of float32 coordinates."""
    mode = str(attrs.coordinate_transformation_mode)
    known = ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
    _only(attrs.method == "linear" and attrs.layout == "NCHW" and mode in known, call)
    _only(x.dtype == np.float32, call)
    for axis, after in zip((3, 2), _shape(call)[:1:-1], strict=True):
        before = x.shape[axis]
        at = _coordinates(before, after, mode)
        low = np.floor(at)
        share = _along(at - low, axis, 4)
        first, second = (np.clip(low + i, 0, before - 1).astype(int) for i in (0, 1))
        x = x.take(first, axis) * (np.float32(1) - share) + x.take(second, axis) * share
    return x


def _coordinates(before, after, mode):
    """Where along an axis each number of the result lies."""
    place, one = np.arange(after, dtype=np.float32), np.float32(1)
    half = one / 2
    if mode == "align_corners":
        return place * (np.float32(before - 1) / np.float32(max(after - 1, 1)))
    scale = np.float32(before) / np.float32(after)
    if mode == "asymmetric":
        return place * scale
    return (place + half) * scale - half if after > 1 or mode == "half_pixel" else place * 0


# -- reductions


def _axes(attrs, rank):
    if attrs.axis is None:
        return tuple(range(rank))
    axes = {int(i) % rank for i in (attrs.axis if hasattr(attrs.axis, "__len__") else [attrs.axis])}
    return tuple(i for i in range(rank) if (i in axes) != bool(attrs.exclude))


def _reduce(name: str) -> Callable:
    return lambda call, attrs, x: NUMPY.reduce(name, x, _axes(attrs, x.ndim)).reshape(_shape(call))


def _mean(call, attrs, x):
    axes = _axes(attrs, x.ndim)
    total = NUMPY.reduce("sum", x, axes).reshape(_shape(call))
    return total / x.dtype.type(prod(x.shape[i] for i in axes))


def _argmax(call, attrs, x):
    axes = _axes(attrs, x.ndim)
    _only(len(axes) == 1 and not attrs.select_last_index, call)
    return NUMPY.argmax(x, axes[0]).reshape(_shape(call))


# -- windows and products


def _padding(values, rank):
    """All begins, then all ends."""
    values = _ints(values)
    return values * (2 * rank) if len(values) == 1 else values * 2 if len(values) == rank else values


SPATIAL = ("W", "HW", "DHW")  # by rank


def _conv(rank: int) -> Callable:
    spatial = SPATIAL[rank - 1]

    def rule(call, attrs, x, weight):
        layouts = (attrs.data_layout, attrs.kernel_layout, attrs.out_layout or attrs.data_layout)
        _only(layouts == (f"NC{spatial}", f"OI{spatial}", f"NC{spatial}"), call)
        padding = _padding(attrs.padding, rank)
        return NUMPY.conv(
            x, weight, _ints(attrs.strides), padding, _ints(attrs.dilation), int(attrs.groups)
        )

    return rule


def _conv2d_transpose(call, attrs, x, weight):
    """The convolution of what has zeros between its numbers with the weights turned round."""
    _only(attrs.data_layout == "NCHW" and attrs.kernel_layout == "IOHW", call)
    groups, strides, dilation = int(attrs.groups), _ints(attrs.strides), _ints(attrs.dilation)
    padding, more = _padding(attrs.padding, 2), _ints(attrs.output_padding)
    stuffed = np.zeros(
        (*x.shape[:2], *((d - 1) * s + 1 for d, s in zip(x.shape[2:], strides, strict=True))), x.dtype
    )
    stuffed[:, :, :: strides[0], :: strides[1]] = x
    reach = [(k - 1) * d for k, d in zip(weight.shape[2:], dilation, strict=True)]
    pads = [r - p for r, p in zip(reach * 2, padding, strict=True)]
    pads = [*pads[:2], *(p + m for p, m in zip(pads[2:], more, strict=True))]
    _only(min(pads) >= 0, call)
    depth, per, *kernel = weight.shape
    turned = weight[:, :, ::-1, ::-1].reshape(groups, depth // groups, per, *kernel)
    turned = np.ascontiguousarray(turned.swapaxes(1, 2)).reshape(groups * per, depth // groups, *kernel)
    return NUMPY.conv(stuffed, turned, (1, 1), pads, dilation, groups)


def _pool(name: str, rank: int) -> Callable:
    def rule(call, attrs, x):
        _only(attrs.layout == f"NC{SPATIAL[rank - 1]}" and not attrs.out_layout, call)
        kernel, strides, dilation = (
            _ints(each) for each in (attrs.pool_size, attrs.strides, attrs.dilation)
        )
        padding = _padding(attrs.padding, rank)
        if attrs.ceil_mode:  # the last window reaches beyond the end
            _only(name == "max", call)
            ends = (
                (o - 1) * s + (k - 1) * d + 1 - n - p
                for o, s, k, d, n, p in zip(
                    _shape(call)[2:], strides, kernel, dilation, x.shape[2:], padding, strict=False
                )
            )
            padding = (*padding[:rank], *(max(e, p) for e, p in zip(ends, padding[rank:], strict=True)))
        if name == "max":
            return NUMPY.pool("max", x, kernel, strides, padding, dilation)
        total = NUMPY.pool("sum", x, kernel, strides, padding, dilation)
        if attrs.count_include_pad or not any(padding):
            return total / x.dtype.type(prod(kernel))
        ones = np.ones((1, 1, *x.shape[2:]), x.dtype)
        return total / np.maximum(NUMPY.pool("sum", ones, kernel, strides, padding, dilation), 1)

    return rule


def _global_pool(reduction: Callable) -> Callable:
    def rule(call, attrs, x):
        _only(attrs.layout == "NCHW", call)
        return reduction(x, axis=(2, 3), keepdims=True)

    return rule


def _turned(x, flag):
    return x.swapaxes(-1, -2) if flag else x


def _matmul(call, attrs, a, b):
    return NUMPY.matmul(_turned(a, attrs.transpose_a), _turned(b, attrs.transpose_b))


#: Relay operator -> its rule (call, attributes, arrays)
RULES: dict[str, Callable] = {
    **{name: _unary(name) for name in (
        "sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "abs", "negative", "erf", "floor", "ceil", "sign",
    )},
    **{name: _binary(name) for name in (
        "add", "subtract", "multiply", "divide", "maximum", "minimum", "power", "equal", "less",
        "less_equal", "greater", "greater_equal",
    )},
    "logical_not": _unary("not"),
    "logical_and": _binary("and"),
    "logical_or": _binary("or"),
    "not_equal": lambda call, attrs, a, b: a != b,
    "where": lambda call, attrs, condition, a, b: np.where(condition, a, b),
    "cast": lambda call, attrs, x: NUMPY.cast(x, attrs.dtype),
    "clip": _clip,
    "nn.relu": lambda call, attrs, x: np.maximum(x, x.dtype.type(0)),
    "nn.leaky_relu": _leaky_relu,
    "nn.prelu": _prelu,
    "nn.bias_add": _bias_add,
    "nn.softmax": _softmax,
    "nn.log_softmax": _log_softmax,
    "nn.lrn": _lrn,
    **dict.fromkeys(("copy", "annotation.stop_fusion"), lambda call, attrs, x: x),
    "nn.dropout": lambda call, attrs, x: [x, np.ones_like(x)],
    **dict.fromkeys(("reshape", "squeeze", "expand_dims", "nn.batch_flatten"), _reshape),
    "transpose": _transpose,
    "broadcast_to": lambda call, attrs, x, *shape: np.broadcast_to(x, _shape(call)),
    "concatenate": _concatenate,
    "split": _split,
    "strided_slice": _strided_slice,
    "reverse": lambda call, attrs, x: np.flip(x, int(attrs.axis)),
    "tile": lambda call, attrs, x: np.tile(x, _ints(attrs.reps)),
    "repeat": lambda call, attrs, x: x.repeat(int(attrs.repeats), int(attrs.axis)),
    "nn.pad": _pad,
    "take": _take,
    "gather": lambda call, attrs, x, indices: np.take_along_axis(x, indices, int(attrs.axis)),
    "argsort": _argsort,
    "topk": _topk,
    "nn.depth_to_space": _depth_to_space,
    "image.resize2d": _resize2d,
    **{name: _reduce(name) for name in ("sum", "max", "min", "prod")},
    "mean": _mean,
    "argmax": _argmax,
    **{f"nn.conv{rank}d": _conv(rank) for rank in (1, 2, 3)},
    "nn.conv2d_transpose": _conv2d_transpose,
    **{f"nn.max_pool{rank}d": _pool("max", rank) for rank in (1, 2, 3)},
    **{f"nn.avg_pool{rank}d": _pool("sum", rank) for rank in (1, 2, 3)},
    "nn.global_avg_pool2d": _global_pool(np.mean),
    "nn.global_max_pool2d": _global_pool(np.max),
    "nn.dense": lambda call, attrs, a, b: NUMPY.matmul(a, b.T),
    "nn.matmul": _matmul,
    "nn.batch_matmul": _matmul,
}  # fmt: skip
