"""`network.tensors.Tensors` in Relay: an operator that stays float, written into a module.

`tests/test_host_tensors.py` compares each operation with the numpy meaning. Where an operator of Relay
means something else (ties of ``round``, a division by zero, -1 as the place of the largest of what has no
larger), it is made of others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np

from ..network.tensors import BOOL, COMPARE, WHOLE, Tensors
from .framework import relay


@dataclass(frozen=True)
class Tensor:
    """A Relay expression of a known type, in the model's layout."""

    expr: Any
    shape: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def of(cls, expr: Any, shape: Iterable[int], dtype: Any) -> Tensor:
        return cls(expr, tuple(int(d) for d in shape), np.dtype(dtype))


#: of floats; integers take the way through float64
_FLOAT_UNARY: dict[str, Callable] = {
    "sigmoid": relay.sigmoid, "tanh": relay.tanh, "exp": relay.exp, "log": relay.log, "sqrt": relay.sqrt,
    "rsqrt": relay.rsqrt, "erf": relay.erf,
}  # fmt: skip
_UNARY: dict[str, Callable] = {
    "abs": relay.abs, "negative": relay.negative, "sign": relay.sign, "not": relay.logical_not,
}  # fmt: skip
_BINARY: dict[str, Callable] = {
    "add": relay.add, "subtract": relay.subtract, "multiply": relay.multiply, "divide": relay.divide,
    "maximum": relay.maximum, "minimum": relay.minimum, "power": relay.power, "and": relay.logical_and,
    "or": relay.logical_or, "equal": relay.equal, "less": relay.less, "less_equal": relay.less_equal,
    "greater": relay.greater, "greater_equal": relay.greater_equal,
}  # fmt: skip
_REDUCE: dict[str, Callable] = {"sum": relay.sum, "max": relay.max, "min": relay.min, "prod": relay.prod}
_CONV: dict[int, Callable] = {1: relay.nn.conv1d, 2: relay.nn.conv2d, 3: relay.nn.conv3d}
_MAX_POOL: dict[int, Callable] = {1: relay.nn.max_pool1d, 2: relay.nn.max_pool2d, 3: relay.nn.max_pool3d}
_AVG_POOL: dict[int, Callable] = {1: relay.nn.avg_pool1d, 2: relay.nn.avg_pool2d, 3: relay.nn.avg_pool3d}


class _Relay:
    def constant(self, array):
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        return Tensor.of(relay.const(array, str(array.dtype)), array.shape, array.dtype)

    def cast(self, x, dtype):
        dtype = np.dtype(dtype)
        if dtype == x.dtype:
            return x
        if dtype.kind == "b":
            return Tensor(relay.not_equal(x.expr, self._number(x, 0)), x.shape, dtype)
        return Tensor(relay.cast(x.expr, str(dtype)), x.shape, dtype)

    def reshape(self, x, shape):
        return Tensor.of(relay.reshape(x.expr, _ints(shape)), shape, x.dtype)

    def transpose(self, x, axes):
        axes = _ints(axes)
        return Tensor.of(relay.transpose(x.expr, axes), (x.shape[i] for i in axes), x.dtype)

    def broadcast(self, x, shape):
        return Tensor.of(relay.broadcast_to(x.expr, _ints(shape)), shape, x.dtype)

    def concat(self, tensors, axis):
        shape = list(tensors[0].shape)
        shape[axis] = sum(x.shape[axis] for x in tensors)
        return Tensor.of(relay.concatenate([x.expr for x in tensors], int(axis)), shape, tensors[0].dtype)

    def crop(self, x, begin, end, steps):
        bounds = [_ints(each) for each in (begin, end, steps)]
        shape = [len(range(*axis)) for axis in zip(*bounds, strict=True)]
        return Tensor.of(relay.strided_slice(x.expr, *bounds), shape, x.dtype)

    def pad(self, x, widths, value):
        widths = [_ints(pair) for pair in widths]
        shape = [d + sum(pair) for d, pair in zip(x.shape, widths, strict=True)]
        return Tensor.of(relay.nn.pad(x.expr, widths, self._number(x, value)), shape, x.dtype)

    def take(self, x, indices, axis):
        return self.gather(x, self.constant(np.asarray(indices, np.int64)), axis)

    def gather(self, x, indices, axis):
        shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
        return Tensor.of(relay.take(x.expr, indices.expr, axis=int(axis), mode="clip"), shape, x.dtype)

    def unary(self, name, x):
        if name in WHOLE:
            return x if x.dtype.kind in "iub" else self._whole(name, x)
        if name in _FLOAT_UNARY:
            real = self._real(x)
            return self.cast(Tensor(_FLOAT_UNARY[name](real.expr), x.shape, real.dtype), x.dtype)
        return Tensor(_UNARY[name](x.expr), x.shape, x.dtype)

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
        return Tensor.of(_BINARY[name](a.expr, b.expr), shape, bool if name in COMPARE else a.dtype)

    def where(self, condition, a, b):
        shape = np.broadcast_shapes(condition.shape, a.shape, b.shape)
        return Tensor.of(relay.where(condition.expr, a.expr, b.expr), shape, a.dtype)

    def reduce(self, name, x, axes):
        axes = _ints(axes)
        if not axes:  # Relay takes none for all
            return x
        if x.dtype.kind == "b":
            return self.cast(self.reduce(name, self.cast(x, np.int32), axes), bool)
        shape = (1 if i in axes else d for i, d in enumerate(x.shape))
        return Tensor.of(_REDUCE[name](x.expr, axis=axes, keepdims=True), shape, x.dtype)

    def argmax(self, x, axis):
        x = self._ordered(x)
        shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
        place = relay.cast(relay.argmax(x.expr, axis=int(axis), keepdims=True), "int64")
        # the search begins with the lowest number at -1, which an equal one does not replace
        return Tensor.of(relay.maximum(place, relay.const(0, "int64")), shape, np.int64)

    def top(self, x, k, axis):
        ordered = self._ordered(x)
        order = relay.argsort(ordered.expr, axis=int(axis), is_ascend=False, dtype="int64")
        order = Tensor(order, x.shape, np.dtype(np.int64))
        end = list(x.shape)
        end[axis] = int(k)
        order = self.crop(order, [0] * len(end), end, [1] * len(end))
        return Tensor(relay.gather(x.expr, int(axis), order.expr), order.shape, x.dtype), order

    def matmul(self, a, b):
        (m, k), n = a.shape[-2:], b.shape[-1]
        count = prod(a.shape[:-2])
        if count == 1:
            right = relay.transpose(self.reshape(b, (k, n)).expr, (1, 0))
            made = relay.nn.dense(self.reshape(a, (m, k)).expr, right, units=n, out_dtype=str(a.dtype))
        else:
            left = self.reshape(a, (count, m, k)).expr
            right = relay.transpose(self.reshape(b, (count, k, n)).expr, (0, 2, 1))
            made = relay.nn.batch_matmul(left, right, out_dtype=str(a.dtype), transpose_b=True)
        return self.reshape(Tensor(made, (), a.dtype), (*a.shape[:-1], n))

    def conv(self, x, weight, strides, padding, dilation, groups):
        strides, padding, dilation = map(_ints, (strides, padding, dilation))
        rank = len(x.shape) - 2
        if rank == 1:  # as one row: Relay's own knows less
            made = self.conv(
                self.reshape(x, (*x.shape[:2], 1, x.shape[2])),
                self.reshape(weight, (*weight.shape[:2], 1, weight.shape[2])),
                (1, *strides), (0, padding[0], 0, padding[1]), (1, *dilation), groups,
            )  # fmt: skip
            return self.reshape(made, (*made.shape[:2], made.shape[3]))
        if rank == 3 and groups > 1:  # Relay's own has no schedule
            depth, per = x.shape[1] // groups, weight.shape[0] // groups
            made = [
                self.conv(
                    self._part(x, 1, i * depth, depth), self._part(weight, 0, i * per, per),
                    strides, padding, dilation, 1,
                )
                for i in range(groups)
            ]  # fmt: skip
            return self.concat(made, 1)
        kernel = weight.shape[2:]
        call = _CONV[rank](
            x.expr, weight.expr, strides=strides, padding=padding, dilation=dilation, groups=int(groups),
            channels=weight.shape[0], kernel_size=kernel,
        )  # fmt: skip
        out = _positions(x.shape[2:], kernel, strides, padding, dilation)
        return Tensor.of(call, (x.shape[0], weight.shape[0], *out), x.dtype)

    def pool(self, name, x, kernel, strides, padding, dilation):
        window = tuple(map(_ints, (kernel, strides, padding, dilation)))
        kernel, strides, padding, dilation = window
        rank = len(kernel)
        if rank > 3 or (name == "sum" and x.dtype.kind != "f"):
            return self._pool_by_places(name, x, *window)
        options: dict[str, Any] = dict(strides=strides, dilation=dilation, padding=padding)
        if name == "max":
            made = _MAX_POOL[rank](x.expr, kernel, **options)
        else:
            mean = _AVG_POOL[rank](x.expr, kernel, **options, count_include_pad=True)
            made = relay.multiply(mean, self._number(x, prod(kernel)))
        shape = (*x.shape[:2], *_positions(x.shape[2:], *window))
        return Tensor.of(made, shape, x.dtype)

    def _pool_by_places(self, name, x, kernel, strides, padding, dilation):
        """Every place of the window a crop."""
        rank = len(kernel)
        out = _positions(x.shape[2:], kernel, strides, padding, dilation)
        fill: Any = 0
        if name == "max":
            fill = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
        padded = self.pad(x, [(0, 0), (0, 0), *zip(padding[:rank], padding[rank:], strict=True)], fill)
        made = None
        for place in product(*map(range, kernel)):
            begin = [0, 0, *(p * d for p, d in zip(place, dilation, strict=True))]
            reach = ((o - 1) * s + 1 for o, s in zip(out, strides, strict=True))
            end = [*x.shape[:2], *(b + r for b, r in zip(begin[2:], reach, strict=True))]
            part = self.crop(padded, begin, end, (1, 1, *strides))
            made = part if made is None else self.binary("maximum" if name == "max" else "add", made, part)
        return made

    def group_norm(self, x, scale, bias, groups, epsilon):
        made = relay.nn.group_norm(x.expr, scale.expr, bias.expr, int(groups), epsilon=float(epsilon))
        return Tensor(made, x.shape, x.dtype)

    def softmax(self, x, axis):
        return Tensor(relay.nn.softmax(x.expr, int(axis)), x.shape, x.dtype)

    # -- parts

    def _number(self, x, value):
        """One number of the dtype of ``x``."""
        return relay.const(np.asarray(value, x.dtype), str(x.dtype))

    def _part(self, x, axis, begin, size):
        start, end = [0] * len(x.shape), list(x.shape)
        start[axis], end[axis] = begin, begin + size
        return self.crop(x, start, end, [1] * len(end))

    def _real(self, x):
        return x if x.dtype.kind == "f" else self.cast(x, np.float64)

    def _ordered(self, x):
        """Relay orders no bool and no small integers."""
        return self.cast(x, np.int32) if x.dtype.kind == "b" or x.dtype.itemsize < 4 else x

    def _whole(self, name, x):
        if name != "round":
            return Tensor({"floor": relay.floor, "ceil": relay.ceil}[name](x.expr), x.shape, x.dtype)
        low = relay.floor(x.expr)
        over = relay.subtract(x.expr, low)  # exact
        half, one, two = (self._number(x, value) for value in (0.5, 1, 2))
        even = relay.multiply(two, relay.ceil(relay.multiply(low, half)))
        up = relay.where(relay.greater(over, half), relay.add(low, one), low)
        return Tensor(relay.where(relay.equal(over, half), even, up), x.shape, x.dtype)

    def _divide(self, a, b):
        """Integers, towards zero; by zero it is 0, which the processor refuses, as it does of the lowest
        number by -1."""
        zero, one = self._number(a, 0), self._number(a, 1)
        by_zero = relay.equal(b.expr, zero)
        odd = by_zero
        if a.dtype.kind == "i":
            by_minus = relay.equal(b.expr, self._number(a, -1))
            odd = relay.logical_or(by_zero, by_minus)
        made = relay.divide(a.expr, relay.where(odd, one, b.expr))
        if a.dtype.kind == "i":
            made = relay.where(by_minus, relay.negative(a.expr), made)
        shape = np.broadcast_shapes(a.shape, b.shape)
        return Tensor.of(relay.where(by_zero, zero, made), shape, a.dtype)


def _ints(values) -> tuple[int, ...]:
    return tuple(int(v) for v in values)


def _positions(size, kernel, strides, padding, dilation):
    """Of a window along each axis."""
    rank = len(size)
    return tuple(
        (size[i] + padding[i] + padding[rank + i] - (kernel[i] - 1) * dilation[i] - 1) // strides[i] + 1
        for i in range(rank)
    )


#: Relay's
RELAY: Tensors = _Relay()
