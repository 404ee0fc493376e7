"""Operators that reduce axes, and those that choose the largest along one."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from ..onnx_op import Call
from .algebra import Value


def _axes(call: Call) -> list[int]:
    """The axes of a reduction: an attribute, from opset 13 or 18 on an input; none: all of them."""
    rank = len(call.x[0].shape)
    axes = call.get("axes")
    if axes is None:
        axes = call.known(1)
    if axes is None or not len(axes):
        return [] if call.get("noop_with_empty_axes") else list(range(rank))
    return sorted({int(axis) % rank for axis in axes})


def _reduction(of: Callable[[Value, list[int]], Value]) -> Callable[[Call], Any]:
    """Where no axis is reduced (``noop_with_empty_axes``) the rest of the formula still holds."""

    def rule(call):
        x = Value(call.t, call.x[0])
        return of(x, _axes(call)).cast(x.dtype).reshape(call.shape).tensor

    return rule


def _extreme(name: str) -> Callable[[Value, list[int]], Value]:
    """Of bool it is any or all."""
    return lambda x, axes: (x.cast(np.uint8) if x.dtype.kind == "b" else x).reduce(name, axes)


def _wide(x: Value) -> Value:
    """Integers, whose root or logarithm is cut off at the end."""
    return x if x.is_float else x.cast(np.float64)


def log_sum_exp(x: Value, axes: list[int]) -> Value:
    """log(sum(exp(x))) of any x without overflow."""
    x = _wide(x)
    finite = np.finfo(x.dtype)
    largest = x.max(axes).at_least(finite.min).at_most(finite.max)  # inf - inf is no number
    return (x - largest).exp().sum(axes).log() + largest


def _along_axis(of: Callable[[Value, int], Value]) -> Callable[[Call], Any]:
    """Below opset 13 all axes behind ``axis`` belong to it."""

    def rule(call):
        x = Value(call.t, call.x[0])
        shape, axis = x.shape, call["axis"] % x.rank
        if call.opset < 13:
            x, axis = x.reshape((prod(shape[:axis]), prod(shape[axis:]))), 1
        return of(x, axis).reshape(shape).tensor

    return rule


def _softmax(x: Value, axis: int) -> Value:
    return Value(x.t, x.t.softmax(x.tensor, axis))


def _log_softmax(x: Value, axis: int) -> Value:
    x = x - x.max([axis])
    return x - x.exp().sum([axis]).log()


def _hardmax(x: Value, axis: int) -> Value:
    """1 at the first of the largest."""
    first = x.argmax(axis)
    shape = [-1 if a == axis else 1 for a in range(x.rank)]
    places = first.constant(np.arange(x.shape[axis]).reshape(shape))
    return places.equal(first).cast(x.dtype)


def _arg(smallest: bool) -> Callable[[Call], Any]:
    def rule(call):
        x = Value(call.t, call.x[0])
        axis = call["axis"] % x.rank
        if smallest:
            x = x.reversed()
        if call.get("select_last_index"):
            last = x.shape[axis] - 1
            place = last - x.take(np.arange(last, -1, -1), axis).argmax(axis)
        else:
            place = x.argmax(axis)
        return place.reshape(call.shape).tensor

    return rule


def _top(call: Call) -> Any:
    """From opset 10 on ``k`` is an input. What is not sorted may be."""
    x = Value(call.t, call.x[0])
    k, smallest = int(call["k"] if call.opset < 10 else call.known(1).item()), not call.get("largest", 1)
    made, places = call.t.top((x.reversed() if smallest else x).tensor, k, call["axis"] % x.rank)
    return (Value(call.t, made).reversed().tensor if smallest else made), places


RULES: dict[str, Callable[[Call], Any]] = {
    "ArgMax": _arg(smallest=False),
    "ArgMin": _arg(smallest=True),
    "Hardmax": _along_axis(_hardmax),
    "LogSoftmax": _along_axis(_log_softmax),
    "ReduceL1": _reduction(lambda x, axes: x.abs().sum(axes)),
    "ReduceL2": _reduction(lambda x, axes: _wide((x * x).sum(axes)).sqrt()),
    "ReduceLogSum": _reduction(lambda x, axes: _wide(x.sum(axes)).log()),
    "ReduceLogSumExp": _reduction(log_sum_exp),
    "ReduceMax": _reduction(_extreme("max")),
    "ReduceMean": _reduction(lambda x, axes: x.mean(axes)),
    "ReduceMin": _reduction(_extreme("min")),
    "ReduceProd": _reduction(lambda x, axes: x.reduce("prod", axes)),
    "ReduceSum": _reduction(lambda x, axes: x.sum(axes)),
    "ReduceSumSquare": _reduction(lambda x, axes: (x * x).sum(axes)),
    "Softmax": _along_axis(_softmax),
    "TopK": _top,
}
