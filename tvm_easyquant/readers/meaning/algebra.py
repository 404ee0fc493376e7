"""`Value`: a tensor of any host in arithmetic, so that a rule reads as the formula of its operator."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from ...network.tensors import Tensors
from ..onnx_op import Call


class Value:
    """A tensor of the `Tensors` ``t``; a number beside it takes its dtype."""

    __slots__ = ("t", "tensor")

    def __init__(self, t: Tensors, tensor: Any):
        self.t, self.tensor = t, tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.tensor.dtype)

    @property
    def is_float(self) -> bool:
        return self.dtype.kind == "f"

    def constant(self, array: Any) -> Value:
        """Known numbers of this dtype."""
        return Value(self.t, self.t.constant(np.asarray(array, self.dtype)))

    def unary(self, name: str) -> Value:
        return Value(self.t, self.t.unary(name, self.tensor))

    def binary(self, name: str, other: Value | float) -> Value:
        return Value(self.t, self.t.binary(name, self.tensor, self._beside(other).tensor))

    def _beside(self, other: Value | float) -> Value:
        return other if isinstance(other, Value) else self.constant(other)

    def __add__(self, other):
        return self.binary("add", other)

    def __radd__(self, other):
        return self.constant(other) + self

    def __sub__(self, other):
        return self.binary("subtract", other)

    def __rsub__(self, other):
        return self.constant(other) - self

    def __mul__(self, other):
        return self.binary("multiply", other)

    def __rmul__(self, other):
        return self.constant(other) * self

    def __truediv__(self, other):
        return self.binary("divide", other)

    def __rtruediv__(self, other):
        return self.constant(other) / self

    def __pow__(self, other):
        return self.binary("power", other)

    def __neg__(self):
        return self.unary("negative")

    def __gt__(self, other):
        return self.binary("greater", other)

    def __ge__(self, other):
        return self.binary("greater_equal", other)

    def equal(self, other: Value | float) -> Value:
        return self.binary("equal", other)

    def at_least(self, bound: Value | float) -> Value:
        return self.binary("maximum", bound)

    def at_most(self, bound: Value | float) -> Value:
        return self.binary("minimum", bound)

    def where(self, condition: Value, otherwise: Value | float) -> Value:
        """This where the condition holds."""
        made = self.t.where(condition.tensor, self.tensor, self._beside(otherwise).tensor)
        return Value(self.t, made)

    def exp(self) -> Value:
        return self.unary("exp")

    def log(self) -> Value:
        return self.unary("log")

    def sqrt(self) -> Value:
        return self.unary("sqrt")

    def abs(self) -> Value:
        return self.unary("abs")

    def cast(self, dtype: Any) -> Value:
        return self if self.dtype == dtype else Value(self.t, self.t.cast(self.tensor, np.dtype(dtype)))

    def reshape(self, shape: Sequence[int]) -> Value:
        shape = tuple(map(int, shape))
        return self if self.shape == shape else Value(self.t, self.t.reshape(self.tensor, shape))

    def transpose(self, axes: Sequence[int]) -> Value:
        axes = tuple(axes)
        same = axes == tuple(range(self.rank))
        return self if same else Value(self.t, self.t.transpose(self.tensor, axes))

    def broadcast(self, shape: Sequence[int]) -> Value:
        shape = tuple(shape)
        return self if self.shape == shape else Value(self.t, self.t.broadcast(self.tensor, shape))

    def take(self, indices: np.ndarray, axis: int) -> Value:
        return Value(self.t, self.t.take(self.tensor, indices, axis))

    def reduce(self, name: str, axes: Sequence[int]) -> Value:
        """Over ``axes``, which stay with size 1; over none it is the tensor itself."""
        axes = tuple(axes)
        return Value(self.t, self.t.reduce(name, self.tensor, axes)) if axes else self

    def sum(self, axes: Sequence[int]) -> Value:
        return self.reduce("sum", axes)

    def max(self, axes: Sequence[int]) -> Value:
        return self.reduce("max", axes)

    def mean(self, axes: Sequence[int]) -> Value:
        """Of integers it is cut off."""
        return self.sum(axes) / prod(self.shape[a] for a in axes) if axes else self

    def argmax(self, axis: int) -> Value:
        return Value(self.t, self.t.argmax(self.tensor, axis))

    def matmul(self, other: Value) -> Value:
        return Value(self.t, self.t.matmul(self.tensor, other.tensor))

    def reversed(self) -> Value:
        """The same numbers with their order reversed, of integers without overflow; its own inverse."""
        if self.is_float:
            return -self
        return (np.iinfo(self.dtype).max if self.dtype.kind == "u" else -1) - self


def values(call: Call) -> list[Value]:
    """The inputs; one left out raises where it is used."""
    return [Value(call.t, x) if x is not None else None for x in call.x]  # type: ignore[misc]


def value(call: Call, place: int) -> Value | None:
    """An input, None where it is left out."""
    x = call.input(place)
    return None if x is None else Value(call.t, x)
