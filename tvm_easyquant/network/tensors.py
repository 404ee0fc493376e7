"""The few operations on tensors that every other float operator is made of, and their meaning in numpy.

An operator that stays float is written once, over a `Tensors` (`readers.onnx_meaning`). `NUMPY` runs it:
that is its meaning. A host's own `Tensors` writes the same operator into a program of that host.
Tensors are in the model's own layout (NCHW). There is no broadcasting but in `Tensors.binary` and
`Tensors.where`, and no axis counts from the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Protocol

import numpy as np

from . import expression

#: of one tensor; the result has its dtype
UNARY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **{name: expression.FUNCTIONS[name] for name in expression.UNARY if name != "negative"},
    "negative": np.negative,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,  # half to even
    "sign": np.sign,
    "not": np.logical_not,
}
#: of two tensors of one dtype, which the result has, too
BINARY: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    **{name: expression.FUNCTIONS[name] for name in expression.BINARY},
    "and": np.logical_and,
    "or": np.logical_or,
}
#: of two tensors of one dtype; the result is bool
COMPARE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "equal": np.equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
}
REDUCE: dict[str, Callable] = {"sum": np.sum, "max": np.max, "min": np.min, "prod": np.prod}
#: functions of `UNARY` that leave an integer as it is
WHOLE = ("floor", "ceil", "round")
#: function of `BINARY` -> what it is of two bool
BOOL = {"add": "or", "maximum": "or", "multiply": "and", "minimum": "and"}


class Tensors(Protocol):
    """What a host does with tensors; a tensor is whatever the host has, with a ``shape`` (a tuple of
    numbers) and a ``dtype`` (a `numpy.dtype`)."""

    def constant(self, array: np.ndarray) -> Any:
        """A tensor of known numbers."""

    def cast(self, x: Any, dtype: Any) -> Any:
        """Numbers of another dtype; of a float what is behind the point is cut off, bool is ``x != 0``."""

    def reshape(self, x: Any, shape: Sequence[int]) -> Any:
        """The same numbers in the same order."""

    def transpose(self, x: Any, axes: Sequence[int]) -> Any:
        """Axis ``i`` of the result is axis ``axes[i]`` of ``x``."""

    def broadcast(self, x: Any, shape: Sequence[int]) -> Any:
        """Repeated along axes of size 1, and along new ones in front."""

    def concat(self, tensors: Sequence[Any], axis: int) -> Any:
        """One behind the other."""

    def crop(self, x: Any, begin: Sequence[int], end: Sequence[int], steps: Sequence[int]) -> Any:
        """One slice for each axis, 0 <= begin <= end <= size, steps >= 1."""

    def pad(self, x: Any, widths: Sequence[tuple[int, int]], value: float) -> Any:
        """``value`` (before, after) on each axis, none negative."""

    def take(self, x: Any, indices: np.ndarray, axis: int) -> Any:
        """The places ``indices`` (1-D, known, none negative) of an axis."""

    def gather(self, x: Any, indices: Any, axis: int) -> Any:
        """The places ``indices`` (a tensor of int64 of any shape, none negative) instead of an axis."""

    def unary(self, name: str, x: Any) -> Any:
        """A function of `UNARY`."""

    def binary(self, name: str, a: Any, b: Any) -> Any:
        """A function of `BINARY` or `COMPARE`, broadcast as numpy does. Integers divide towards zero."""

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        """``a`` where the condition (bool) holds, else ``b``; broadcast as numpy does."""

    def reduce(self, name: str, x: Any, axes: Sequence[int]) -> Any:
        """A function of `REDUCE` over ``axes``, each of which stays with size 1; the dtype stays."""

    def argmax(self, x: Any, axis: int) -> Any:
        """int64: the first place of the largest along an axis, which stays with size 1."""

    def top(self, x: Any, k: int, axis: int) -> tuple[Any, Any]:
        """(the ``k`` largest along an axis, descending, int64 places); of equals the first comes first."""

    def matmul(self, a: Any, b: Any) -> Any:
        """(..., M, K) x (..., K, N); the leading axes are the same."""

    def conv(self, x: Any, weight: Any, strides, padding, dilation, groups: int) -> Any:
        """Convolution of any rank; x: (N, C, ...), weight: (K, C / groups, ...), padding: all begins, then
        all ends, filled with zeros."""

    def pool(self, name: str, x: Any, kernel, strides, padding, dilation) -> Any:
        """Windows of (N, C, ...) reduced by ``max`` (padded with the lowest number) or ``sum`` (with 0)."""

    def group_norm(self, x: Any, scale: Any, bias: Any, groups: int, epsilon: float) -> Any:
        """float32 (N, C, ...), each of ``groups`` groups of channels less its mean, over its standard
        deviation, times ``scale``, plus ``bias``, both (C,)."""

    def softmax(self, x: Any, axis: int) -> Any:
        """Of floats: ``exp(x) / sum(exp(x))`` along an axis, without overflow."""


class _Numpy:
    def constant(self, array):
        return np.asarray(array)

    def cast(self, x, dtype):
        with np.errstate(invalid="ignore"):
            return x.astype(dtype)

    def reshape(self, x, shape):
        return x.reshape(tuple(shape))

    def transpose(self, x, axes):
        return x.transpose(axes)

    def broadcast(self, x, shape):
        return np.broadcast_to(x, tuple(shape))

    def concat(self, tensors, axis):
        return np.concatenate(tensors, axis)

    def crop(self, x, begin, end, steps):
        return x[tuple(slice(*bounds) for bounds in zip(begin, end, steps, strict=True))]

    def pad(self, x, widths, value):
        return np.pad(x, widths, constant_values=x.dtype.type(value))

    def take(self, x, indices, axis):
        return x.take(indices, axis)

    def gather(self, x, indices, axis):
        return x.take(indices, axis)

    def unary(self, name, x):
        with np.errstate(all="ignore"):
            return np.asarray(UNARY[name](x)).astype(x.dtype)

    def binary(self, name, a, b):
        with np.errstate(all="ignore"):
            if name in COMPARE:
                return np.asarray(COMPARE[name](a, b))
            if name == "divide" and a.dtype.kind in "iu":
                return _divide(a, b)
            return np.asarray(BINARY[name](a, b)).astype(a.dtype)

    def where(self, condition, a, b):
        return np.where(condition, a, b)

    def reduce(self, name, x, axes):
        return np.asarray(REDUCE[name](x, axis=tuple(axes), keepdims=True)).astype(x.dtype)

    def argmax(self, x, axis):
        return x.argmax(axis, keepdims=True).astype(np.int64)

    def top(self, x, k, axis):
        keys = -x if x.dtype.kind == "f" else ~x  # -x of the lowest integer is itself
        order = np.argsort(keys, axis, kind="stable").take(np.arange(k), axis)
        return np.take_along_axis(x, order, axis), order.astype(np.int64)

    def matmul(self, a, b):
        return np.matmul(a, b)

    def conv(self, x, weight, strides, padding, dilation, groups):
        view = _windows(x, weight.shape[2:], strides, padding, dilation, 0)  # (N, C, *O, *R)
        rank, n, k = x.ndim - 2, x.shape[0], weight.shape[0]
        out, size = view.shape[2 : 2 + rank], weight.shape[2:]
        if groups == x.shape[1] and groups > 1:  # depthwise: as many sums as places of the filter
            result = np.zeros((n, groups, k // groups, *out), x.dtype)
            weight = weight.reshape(groups, -1, *(1,) * rank, *size)
            for place in np.ndindex(*size):
                result += view[(..., *place)][:, :, None] * weight[(..., *place)]
            return result.reshape(n, k, *out)
        columns = view.transpose(0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))
        weight = weight.reshape(groups, k // groups, -1)
        result = np.empty((n, groups, k // groups, prod(out)), x.dtype)
        for image, made in zip(columns, result, strict=True):  # one image's windows in memory at a time
            np.matmul(weight, image.reshape(groups, weight.shape[2], -1), out=made)
        return result.reshape(n, k, *out)

    def pool(self, name, x, kernel, strides, padding, dilation):
        lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
        rank = x.ndim - 2
        if any(padding):
            fill = lowest if name == "max" else 0
            spatial = zip(padding[:rank], padding[rank:], strict=True)
            x = np.pad(x, [(0, 0), (0, 0), *spatial], constant_values=x.dtype.type(fill))
        join = np.maximum if name == "max" else np.add
        for axis, k, s, d in zip(range(2, x.ndim), kernel, strides, dilation, strict=True):
            reach = (x.shape[axis] - (k - 1) * d - 1) // s * s + 1  # one axis after the other
            parts = [x[(*(slice(None),) * axis, slice(i * d, i * d + reach, s))] for i in range(k)]
            total = parts[0].copy()
            for part in parts[1:]:
                join(total, part, out=total)
            x = total
        return x

    def group_norm(self, x, scale, bias, groups, epsilon):
        channels = (-1, *[1] * (x.ndim - 2))
        grouped = x.reshape(x.shape[0], groups, -1)
        centred = grouped - grouped.mean(2, keepdims=True)
        made = centred / np.sqrt((centred * centred).mean(2, keepdims=True) + x.dtype.type(epsilon))
        return made.reshape(x.shape) * scale.reshape(channels) + bias.reshape(channels)

    def softmax(self, x, axis):
        with np.errstate(all="ignore"):
            e = np.exp(x - x.max(axis, keepdims=True))
            return e / e.sum(axis, keepdims=True)


def _divide(a, b):
    """Integers, towards zero; what is divided by zero is 0."""
    safe = np.where(b == 0, 1, b)
    quotient = np.trunc(np.true_divide(a, safe)) if a.dtype.itemsize < 8 else (
        np.sign(a) * np.sign(safe) * (np.abs(a) // np.abs(safe))
    )  # fmt: skip
    return np.where(b == 0, 0, quotient).astype(a.dtype)


def _windows(x, kernel, strides, padding, dilation, fill):
    """A read-only view (N, C, *O, *R) of the padded ``x``."""
    rank = x.ndim - 2
    if any(padding):
        spatial = zip(padding[:rank], padding[rank:], strict=True)
        x = np.pad(x, [(0, 0), (0, 0), *spatial], constant_values=x.dtype.type(fill))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(2, 2 + rank)))
    steps = tuple(slice(None, None, s) for s in strides)
    return view[(slice(None), slice(None), *steps, *(slice(None, None, d) for d in dilation))]


#: the meaning
NUMPY: Tensors = _Numpy()
