"""`network.tensors.Tensors` in Relax: an operator that stays float, written into a module.

`tests/test_host_tensors.py` compares each operation with the numpy meaning. Where an operator of Relax
means something else (ties of ``round``, a division by zero, -1 as the place of the largest of what has no
larger), it is made of others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import te, tirx, topi

from topi_ext.kernels import elementwise
from topi_ext.relax.lower import constant

from ..network.tensors import BOOL, COMPARE, WHOLE, Tensors
from .framework import relax


@dataclass(frozen=True)
class Tensor:
    """A Relax variable or constant of a known type, in the model's layout."""

    expr: Any
    shape: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def of(cls, expr: Any, shape: Iterable[int], dtype: Any) -> Tensor:
        return cls(expr, tuple(int(d) for d in shape), np.dtype(dtype))


_OP: Any = relax.op
#: of floats; integers take the way through float64
_FLOAT_UNARY: dict[str, Callable] = {
    "sigmoid": _OP.sigmoid, "tanh": _OP.tanh, "exp": _OP.exp, "log": _OP.log, "sqrt": _OP.sqrt,
    "rsqrt": _OP.rsqrt, "erf": _OP.erf,
}  # fmt: skip
_UNARY: dict[str, Callable] = {
    "abs": _OP.abs, "negative": _OP.negative, "sign": _OP.sign, "not": _OP.logical_not,
}  # fmt: skip
_BINARY: dict[str, Callable] = {
    "add": _OP.add, "subtract": _OP.subtract, "multiply": _OP.multiply, "divide": _OP.divide,
    "maximum": _OP.maximum, "minimum": _OP.minimum, "power": _OP.power, "and": _OP.logical_and,
    "or": _OP.logical_or, "equal": _OP.equal, "less": _OP.less, "less_equal": _OP.less_equal,
    "greater": _OP.greater, "greater_equal": _OP.greater_equal,
}  # fmt: skip
_REDUCE: dict[str, Callable] = {"sum": _OP.sum, "max": _OP.max, "min": _OP.min, "prod": _OP.prod}
_CONV: dict[int, Callable] = {1: _OP.nn.conv1d, 2: _OP.nn.conv2d, 3: _OP.nn.conv3d}


class RelaxTensors:
    """Writes into the function that a ``relax.BlockBuilder`` has begun: every operation is a binding."""

    def __init__(self, builder: Any):
        self.builder = builder

    def constant(self, array):
        array = np.asarray(array)
        return Tensor.of(constant(array), array.shape, array.dtype)

    def cast(self, x, dtype):
        dtype = np.dtype(dtype)
        if dtype == x.dtype:
            return x
        if dtype.kind == "b":
            return self._emit(_OP.not_equal(x.expr, self._number(x, 0)), x.shape, dtype)
        return self._emit(_OP.astype(x.expr, str(dtype)), x.shape, dtype)

    def reshape(self, x, shape):
        return self._emit(_OP.reshape(x.expr, _ints(shape)), shape, x.dtype)

    def transpose(self, x, axes):
        axes = _ints(axes)
        return self._emit(_OP.permute_dims(x.expr, axes), (x.shape[i] for i in axes), x.dtype)

    def broadcast(self, x, shape):
        return self._emit(_OP.broadcast_to(x.expr, _ints(shape)), shape, x.dtype)

    def concat(self, tensors, axis):
        shape = list(tensors[0].shape)
        shape[axis] = sum(x.shape[axis] for x in tensors)
        last = axis % len(shape) == len(shape) - 1
        if last and np.dtype(tensors[0].dtype).kind in "iuf":
            return self.compute(shape, tensors[0].dtype, elementwise.join, *tensors)
        return self._emit(_OP.concat([x.expr for x in tensors], int(axis)), shape, tensors[0].dtype)

    def crop(self, x, begin, end, steps):
        begin, end, steps = (_ints(each) for each in (begin, end, steps))
        shape = [len(range(*axis)) for axis in zip(begin, end, steps, strict=True)]
        if not shape:
            return x
        axes = list(range(len(shape)))
        return self._emit(_OP.strided_slice(x.expr, axes, begin, end, steps), shape, x.dtype)

    def pad(self, x, widths, value):
        widths = [_ints(pair) for pair in widths]
        if not any(map(any, widths)):
            return x
        shape = [d + sum(pair) for d, pair in zip(x.shape, widths, strict=True)]
        return self.compute(shape, x.dtype, self._padded, x, widths, value)

    def take(self, x, indices, axis):
        return self.gather(x, self.constant(np.asarray(indices, np.int64)), axis)

    def gather(self, x, indices, axis):
        shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
        return self._emit(_OP.take(x.expr, indices.expr, axis=int(axis), mode="clip"), shape, x.dtype)

    def unary(self, name, x):
        if name in WHOLE:
            return x if x.dtype.kind in "iub" else self._whole(name, x)
        if name in _FLOAT_UNARY:
            real = x if x.dtype.kind == "f" else self.cast(x, np.float64)
            return self.cast(self._emit(_FLOAT_UNARY[name](real.expr), x.shape, real.dtype), x.dtype)
        return self._emit(_UNARY[name](x.expr), x.shape, x.dtype)

    def binary(self, name, a, b):
        if a.dtype.kind == "b" and name not in ("and", "or"):
            if name in COMPARE:
                return self.binary(name, self.cast(a, np.int32), self.cast(b, np.int32))
            name = BOOL[name]
        if name == "divide" and a.dtype.kind in "iu":
            return self._divide(a, b)
        if name == "power" and a.dtype.kind in "iu":  # exact below 2^53
            made = self.binary(name, self.cast(a, np.float64), self.cast(b, np.float64))
            return self.cast(made, a.dtype)
        shape = np.broadcast_shapes(a.shape, b.shape)
        return self._emit(_BINARY[name](a.expr, b.expr), shape, bool if name in COMPARE else a.dtype)

    def where(self, condition, a, b):
        shape = np.broadcast_shapes(condition.shape, a.shape, b.shape)
        return self._emit(_OP.where(condition.expr, a.expr, b.expr), shape, a.dtype)

    def reduce(self, name, x, axes):
        axes = _ints(axes)
        if not axes:  # Relax takes none for all
            return x
        if x.dtype.kind == "b":
            return self.cast(self.reduce(name, self.cast(x, np.int32), axes), bool)
        shape = (1 if i in axes else d for i, d in enumerate(x.shape))
        return self._emit(_REDUCE[name](x.expr, list(axes), True), shape, x.dtype)

    def argmax(self, x, axis):
        x = self._ordered(x)
        shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
        place = self._emit(_OP.argmax(x.expr, int(axis), True), shape, np.int64)
        # the search begins with the lowest number at -1, which an equal one does not replace
        return self.binary("maximum", place, self.constant(np.int64(0)))

    def top(self, x, k, axis):
        ordered = self._ordered(x)
        order = _OP.argsort(ordered.expr, axis=int(axis), descending=True, dtype="int64")
        end = list(x.shape)
        end[axis] = int(k)
        order = self.crop(self._emit(order, x.shape, np.int64), [0] * len(end), end, [1] * len(end))
        made = _OP.gather_elements(x.expr, order.expr, int(axis))
        return self._emit(made, order.shape, x.dtype), order

    def matmul(self, a, b):
        return self._emit(_OP.matmul(a.expr, b.expr), (*a.shape[:-1], b.shape[-1]), a.dtype)

    def conv(self, x, weight, strides, padding, dilation, groups):
        strides, padding, dilation = map(_ints, (strides, padding, dilation))
        made = _CONV[len(strides)](
            x.expr, weight.expr, strides=list(strides), padding=list(padding), dilation=list(dilation),
            groups=int(groups),
        )  # fmt: skip
        out = positions(x.shape[2:], weight.shape[2:], strides, padding, dilation)
        return self._emit(made, (x.shape[0], weight.shape[0], *out), x.dtype)

    def pool(self, name, x, kernel, strides, padding, dilation):
        return self.window(name, x, kernel, strides, padding, dilation, 2)

    def group_norm(self, x, scale, bias, groups, epsilon):
        axes = list(range(2, len(x.shape)))
        made = _OP.nn.group_norm(x.expr, scale.expr, bias.expr, int(groups), 1, axes, float(epsilon))
        return self._emit(made, x.shape, x.dtype)

    def softmax(self, x, axis):
        return self._emit(_OP.nn.softmax(x.expr, int(axis)), x.shape, x.dtype)

    # -- beyond `Tensors`

    def window(self, name, x, kernel, strides, padding, dilation, first: int):
        """`Tensors.pool` over the axes from ``first`` on; those behind them are channels.

        With channels what is padded is asked for as it is read: a vector of them is inside or outside.
        """
        kernel, strides, padding, dilation = map(_ints, (kernel, strides, padding, dilation))
        rank = len(kernel)
        fill: Any = 0
        if name == "max":
            fill = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
        widths = [(0, 0)] * len(x.shape)
        widths[first : first + rank] = zip(padding[:rank], padding[rank:], strict=True)
        out = positions(x.shape[first : first + rank], kernel, strides, padding, dilation)
        shape = (*x.shape[:first], *out, *x.shape[first + rank :])
        channels = len(shape) > first + rank

        def pooled(x):
            x = self._padded(x, widths, fill) if channels else x
            axes = [te.reduce_axis((0, size), f"r{i}") for i, size in enumerate(kernel)]

            def element(*i):
                j = list(i)
                for n, axis in enumerate(axes):
                    j[first + n] = i[first + n] * strides[n] + axis * dilation[n]
                return (te.max if name == "max" else te.sum)(x(*j), axis=axes)

            return te.compute(shape, element, name=f"{name}_pool")

        return self.compute(shape, x.dtype, pooled, x if channels else self.pad(x, widths, fill))

    def compute(self, shape, dtype, function: Callable, *arguments, **options):
        """What a function of TE tensors makes; arguments: `Tensor`s, and what it takes besides."""
        given = [a.expr if isinstance(a, Tensor) else a for a in arguments]
        return Tensor.of(self.builder.emit(self.builder.call_te(function, *given, **options)), shape, dtype)

    def quantize(self, x, scale: float, zero_point: int, lo: int, hi: int):
        """uint8: the norm's quantize. The scale is a vector of one number: where it is a scalar, TVM
        multiplies by its reciprocal instead of dividing."""
        scales, zero = self.constant(np.full(1, scale, np.float32)), self.constant(np.int32(zero_point))
        made = self._emit(_OP.quantize(x.expr, scales.expr, zero.expr, -1, "uint8"), x.shape, np.uint8)
        if (lo, hi) == (0, 255):
            return made
        return self._emit(_OP.clip(made.expr, lo, hi), x.shape, np.uint8)

    def dequantize(self, x, scale, zero_point: int):
        """float32: the norm's dequantize; scale: a number, or one for each of the last axis."""
        scale, zero = self.constant(np.asarray(scale, np.float32)), self.constant(np.int32(zero_point))
        made = _OP.dequantize(x.expr, scale.expr, zero.expr, -1, "float32")
        return self._emit(made, x.shape, np.float32)

    # -- parts

    @staticmethod
    def _padded(x, widths, value):
        """A TE tensor with ``value`` around it."""
        if not any(map(any, widths)):
            return x
        before, after = (list(side) for side in zip(*widths, strict=True))
        return topi.nn.pad(
            x, before, after, tirx.const(np.asarray(value, str(x.dtype)).item(), str(x.dtype))
        )

    def _emit(self, call, shape, dtype):
        return Tensor.of(self.builder.emit(call), shape, dtype)

    def _number(self, x, value):
        """One number of the dtype of ``x``."""
        return constant(np.asarray(value, x.dtype))

    def _ordered(self, x):
        """Relax orders no bool and no small integers."""
        return self.cast(x, np.int32) if x.dtype.kind == "b" or x.dtype.itemsize < 4 else x

    def _whole(self, name, x):
        if name != "round":
            return self._emit({"floor": _OP.floor, "ceil": _OP.ceil}[name](x.expr), x.shape, x.dtype)
        half, one, two = (self.constant(np.asarray(value, x.dtype)) for value in (0.5, 1, 2))
        low = self._whole("floor", x)
        over = self.binary("subtract", x, low)  # exact
        even = self.binary("multiply", two, self._whole("ceil", self.binary("multiply", low, half)))
        up = self.where(self.binary("greater", over, half), self.binary("add", low, one), low)
        return self.where(self.binary("equal", over, half), even, up)

    def _divide(self, a, b):
        """Integers, towards zero; by zero it is 0, which the processor refuses, as it does of the lowest
        number by -1. The quotient is in no branch: there TVM knows that the divisor is not 0, takes its
        guard away, and computes both branches."""

        def number(value):
            return self.constant(np.asarray(value, a.dtype))

        odd = by_zero = self.binary("equal", b, number(0))
        factor = number(1)
        if a.dtype.kind == "i":
            by_minus = self.binary("equal", b, number(-1))
            odd = self.binary("or", by_zero, by_minus)
            factor = self.where(by_minus, number(-1), factor)
        factor = self.where(by_zero, number(0), factor)
        safe = self.where(odd, number(1), b)
        shape = np.broadcast_shapes(a.shape, b.shape)
        made = self._emit(_OP.divide(a.expr, safe.expr), shape, a.dtype)
        return self.binary("multiply", made, factor)


def _ints(values) -> tuple[int, ...]:
    return tuple(int(v) for v in values)


def positions(size, kernel, strides, padding, dilation) -> tuple[int, ...]:
    """Of a window along each axis."""
    rank = len(size)
    return tuple(
        (size[i] + padding[i] + padding[rank + i] - (kernel[i] - 1) * dilation[i] - 1) // strides[i] + 1
        for i in range(rank)
    )


_CHECKED: type[Tensors] = RelaxTensors  # for a type checker: it has every operation
