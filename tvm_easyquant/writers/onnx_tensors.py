"""`network.tensors.Tensors` in ONNX: an operator that stays float, written in the primitive operators of a
newer opset, where the node as it was would be of another form or would mean something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..network.tensors import BOOL, COMPARE, WHOLE

#: function of `network.tensors` -> the ONNX operator that it is
UNARY = {
    "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "abs": "Abs",
    "negative": "Neg", "erf": "Erf", "floor": "Floor", "ceil": "Ceil", "round": "Round", "sign": "Sign",
    "not": "Not",
}  # fmt: skip
BINARY = {
    "add": "Add", "subtract": "Sub", "multiply": "Mul", "divide": "Div", "maximum": "Max",
    "minimum": "Min", "power": "Pow", "and": "And", "or": "Or", "equal": "Equal", "less": "Less",
    "less_equal": "LessOrEqual", "greater": "Greater", "greater_equal": "GreaterOrEqual",
}  # fmt: skip
REDUCE = {"sum": "ReduceSum", "max": "ReduceMax", "min": "ReduceMin", "prod": "ReduceProd"}
#: reductions whose axes are an input, since
AXES_AS_INPUT = {"sum": 13, "max": 18, "min": 18, "prod": 18}


@dataclass(frozen=True)
class Tensor:
    """A tensor of the model that is written, in its layout."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def of(cls, name: str, shape: Iterable[int], dtype: Any) -> Tensor:
        return cls(name, tuple(int(d) for d in shape), np.dtype(dtype))


class Onnx:
    """Nodes of a model of ``opset``; ``prefix`` begins the names of what is made.

    add(operator, inputs, output, **attributes) and constant(name, array) -> name write into the model;
    free(name): that name, or one like it that no tensor has.
    """

    def __init__(
        self,
        add: Callable,
        constant: Callable[[str, np.ndarray], str],
        free: Callable[[str], str],
        opset: int,
        prefix: str,
    ):
        self._add, self._constant, self._free = add, constant, free
        self._opset, self._prefix, self._made = opset, prefix, 0

    def constant(self, array):
        array = np.asarray(array)
        self._made += 1
        name = self._constant(f"{self._prefix}_part_{self._made}", array)
        return Tensor.of(name, array.shape, array.dtype)

    def cast(self, x, dtype):
        from onnx import helper

        dtype = np.dtype(dtype)
        if dtype == x.dtype:
            return x
        return self._node("Cast", [x], x.shape, dtype, to=helper.np_dtype_to_tensor_dtype(dtype))

    def reshape(self, x, shape):
        return self._node("Reshape", [x, self._numbers(shape)], shape, x.dtype)

    def transpose(self, x, axes):
        axes = [int(i) for i in axes]
        return self._node("Transpose", [x], [x.shape[i] for i in axes], x.dtype, perm=axes)

    def broadcast(self, x, shape):
        return self._node("Expand", [x, self._numbers(shape)], shape, x.dtype)

    def concat(self, tensors, axis):
        shape = list(tensors[0].shape)
        shape[axis] = sum(x.shape[axis] for x in tensors)
        return self._node("Concat", tensors, shape, tensors[0].dtype, axis=int(axis))

    def crop(self, x, begin, end, steps):
        shape = [len(range(*map(int, axis))) for axis in zip(begin, end, steps, strict=True)]
        bounds = [self._numbers(v) for v in (begin, end, range(len(shape)), steps)]
        return self._node("Slice", [x, *bounds], shape, x.dtype)

    def pad(self, x, widths, value):
        before, after = zip(*widths, strict=True)
        shape = [d + sum(pair) for d, pair in zip(x.shape, widths, strict=True)]
        fill = self.constant(np.asarray(value, x.dtype))
        return self._node("Pad", [x, self._numbers([*before, *after]), fill], shape, x.dtype)

    def take(self, x, indices, axis):
        return self.gather(x, self._numbers(indices), axis)

    def gather(self, x, indices, axis):
        shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
        return self._node("Gather", [x, indices], shape, x.dtype, axis=int(axis))

    def unary(self, name, x):
        if name in WHOLE and x.dtype.kind in "iub":
            return x
        if name == "rsqrt":
            return self._node("Reciprocal", [self.unary("sqrt", x)], x.shape, x.dtype)
        return self._node(UNARY[name], [x], x.shape, x.dtype)

    def binary(self, name, a, b):
        if a.dtype.kind == "b" and name not in ("and", "or"):
            if name in COMPARE:
                return self.binary(name, self.cast(a, np.int32), self.cast(b, np.int32))
            name = BOOL[name]
        shape = np.broadcast_shapes(a.shape, b.shape)
        return self._node(BINARY[name], [a, b], shape, bool if name in COMPARE else a.dtype)

    def where(self, condition, a, b):
        shape = np.broadcast_shapes(condition.shape, a.shape, b.shape)
        return self._node("Where", [condition, a, b], shape, a.dtype)

    def reduce(self, name, x, axes):
        axes = [int(i) for i in axes]
        if not axes:  # ONNX takes none for all
            return x
        if x.dtype.kind == "b":
            return self.cast(self.reduce(name, self.cast(x, np.int32), axes), bool)
        shape = [1 if i in axes else d for i, d in enumerate(x.shape)]
        if self._opset >= AXES_AS_INPUT[name]:
            return self._node(REDUCE[name], [x, self._numbers(axes)], shape, x.dtype)
        return self._node(REDUCE[name], [x], shape, x.dtype, axes=axes)

    def argmax(self, x, axis):
        shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
        return self._node("ArgMax", [x], shape, np.int64, axis=int(axis))

    def top(self, x, k, axis):
        shape = (*x.shape[:axis], int(k), *x.shape[axis + 1 :])
        names = [self._name(), self._name()]
        self._add("TopK", [x.name, self._numbers([k]).name], names, axis=int(axis))
        return Tensor.of(names[0], shape, x.dtype), Tensor.of(names[1], shape, np.int64)

    def matmul(self, a, b):
        return self._node("MatMul", [a, b], (*a.shape[:-1], b.shape[-1]), a.dtype)

    def conv(self, x, weight, strides, padding, dilation, groups):
        window = dict(strides=list(strides), pads=list(padding), dilations=list(dilation))
        size = _positions(x.shape[2:], weight.shape[2:], strides, padding, dilation)
        shape = (x.shape[0], weight.shape[0], *size)
        return self._node("Conv", [x, weight], shape, x.dtype, group=int(groups), **window)

    def pool(self, name, x, kernel, strides, padding, dilation):
        rank, channels = len(kernel), x.shape[1]
        if name == "sum":  # an average pool knows no dilation
            weight = self.constant(np.ones((channels, 1, *kernel), x.dtype))
            return self.conv(x, weight, strides, padding, dilation, channels)
        if any(padding):  # a pool's own may not reach beyond its window
            lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
            widths = [(0, 0), (0, 0), *zip(padding[:rank], padding[rank:], strict=True)]
            x = self.pad(x, widths, lowest)
        shape = (*x.shape[:2], *_positions(x.shape[2:], kernel, strides, (0,) * 2 * rank, dilation))
        window = dict(kernel_shape=list(kernel), strides=list(strides), dilations=list(dilation))
        return self._node("MaxPool", [x], shape, x.dtype, **window)

    def group_norm(self, x, scale, bias, groups, epsilon):
        channels = x.shape[1]
        if groups == channels:
            inputs = [x, scale, bias]
            return self._node("InstanceNormalization", inputs, x.shape, x.dtype, epsilon=float(epsilon))
        plain = [self.constant(np.full(groups, value, x.dtype)) for value in (1, 0)]
        grouped = self.reshape(x, (x.shape[0], groups, prod(x.shape[1:]) // groups))
        made = self.reshape(self.group_norm(grouped, plain[0], plain[1], groups, epsilon), x.shape)
        factor, plus = (self.reshape(v, (channels, *[1] * (len(x.shape) - 2))) for v in (scale, bias))
        return self.binary("add", self.binary("multiply", made, factor), plus)

    def softmax(self, x, axis):  # below opset 13 the operator is another
        e = self.unary("exp", self.binary("subtract", x, self.reduce("max", x, [axis])))
        return self.binary("divide", e, self.reduce("sum", e, [axis]))

    # -- parts

    def _name(self) -> str:
        self._made += 1
        return self._free(f"{self._prefix}_part_{self._made}")

    def _numbers(self, values) -> Tensor:
        return self.constant(np.array([int(v) for v in values], np.int64))

    def _node(self, op, inputs, shape, dtype, **attributes) -> Tensor:
        output = self._name()
        self._add(op, [x.name for x in inputs], [output], **attributes)
        return Tensor.of(output, shape, dtype)


def _positions(size, kernel, strides, padding, dilation):
    """Of a window along each axis."""
    rank = len(size)
    return [
        (size[i] + padding[i] + padding[rank + i] - (kernel[i] - 1) * dilation[i] - 1) // strides[i] + 1
        for i in range(rank)
    ]
