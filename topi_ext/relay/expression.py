"""Float operators between a layer's accumulator and its quantize, read as a `function`'s expression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relay

from .. import function
from ..errors import LoweringError

WRITTEN_OUT = 1000  # the largest expression that is read: what is read twice counts twice

#: Relay's float operators -> of `function`, with what their call says beside its arguments
FLOAT = {
    **{name: name for name in (
        "add", "subtract", "multiply", "divide", "maximum", "minimum", "negative", "abs", "power", "exp",
        "sigmoid", "tanh", "erf", "clip",
    )},
    "nn.relu": "maximum", "nn.leaky_relu": "leaky_relu", "nn.prelu": "leaky_relu",
}  # fmt: skip
#: Relay's operators of two stored tensors -> the joins that they are
JOINS = {"add": "add", "subtract": "sub", "maximum": "max", "minimum": "min"}
ATTRIBUTES: dict[str, Callable] = {
    "clip": lambda attrs: (float(attrs.a_min), float(attrs.a_max)),
    "nn.relu": lambda attrs: (0.0,),
    "nn.leaky_relu": lambda attrs: (float(attrs.alpha),),
}


class Expression:
    """Reads the float operators under a quantize down to what they are a function of, their leaf: a
    ``qnn.dequantize`` of an int32 tensor, or one of `JOINS` of two of stored ones."""

    def __init__(self, uses):
        self.uses = uses  # call -> how often it is read in the module
        self.leaf: Any = None
        self.found: dict = {}  # call -> (expression, its size written out); None: not one that can be read
        self.read_by: dict = {}  # call -> how often by those of `found`
        self.rank = 0  # the constants' largest

    def read(self, top):
        """(expression, leaf, all its calls) if it is `function.fusable` and nothing else reads a value of
        it; else None."""
        if self.of(top) is None or self.leaf is None:
            return None
        alone = top.same_as(self.leaf)
        if alone and name_of(top) not in ("subtract", "maximum", "minimum"):
            return None
        expression, _ = self.found[top]
        calls = [call for call in self.found if isinstance(call, relay.Call)]
        self.read_by[top] = self.read_by.get(top, 0) + 1
        joins = self.leaf.op.name in JOINS
        if joins:
            for side in self.leaf.args:
                self.count(side)
            calls += [side for i, side in enumerate(self.leaf.args) if side not in self.leaf.args[:i]]
        if any(self.uses[call] != self.read_by[call] for call in calls):
            return None
        if not function.fusable(expression) or not self.per_channel(expression):
            return None
        if joins and not alone and (function.vectors(expression) or not function.of_sum(expression)):
            return None
        return expression, self.leaf, tuple(calls)

    def count(self, expr):
        self.read_by[expr] = self.read_by.get(expr, 0) + 1

    def per_channel(self, expression):
        *outer, channels = (int(n) for n in self.leaf.checked_type.shape)
        return self.rank <= len(outer) + 1 and all(len(v) == channels for v in function.vectors(expression))

    def of(self, expr):
        """(expression, size) of a float value, None if it is none that can be fused."""
        if expr not in self.found:
            self.found[expr] = self.leaf_of(expr) or self.call(expr)
        return self.found[expr]

    def leaf_of(self, expr):
        if isinstance(expr, relay.Constant):
            return self.constant(expr)
        whole = name_of(expr) == "qnn.dequantize" and _exact(expr, "int32")
        if whole or (name_of(expr) in JOINS and all(_exact(side, "uint8") for side in expr.args)):
            if self.leaf is not None:
                return None
            self.leaf = expr
            return "x", 1
        return None

    def constant(self, expr):
        """A number, or a vector along the last axis."""
        value = expr.data.numpy()
        if value.dtype != np.float32 or value.size != np.prod(value.shape[-1:]):
            return None
        self.rank = max(self.rank, value.ndim)
        return (float(value.reshape(())) if value.size == 1 else tuple(value.reshape(-1).tolist())), 1

    def call(self, expr):
        name = name_of(expr)
        if name not in FLOAT or (name == "nn.prelu" and int(expr.attrs.axis) not in _last(expr)):
            return None
        parts = []
        for argument in expr.args:
            part = self.of(argument)
            if part is None:
                return None
            self.count(argument)
            parts.append(part)
        size = 1 + sum(part[1] for part in parts)
        if size > WRITTEN_OUT:
            return None
        extra = ATTRIBUTES[name](expr.attrs) if name in ATTRIBUTES else ()
        return (FLOAT[name], *(part[0] for part in parts), *extra), size


def _exact(expr, dtype):
    """Whether an expression is a dequantize of such a tensor: of a stored one by a single scale, of another
    by scales along the last axis, without a zero point."""
    if name_of(expr) != "qnn.dequantize" or expr.args[0].checked_type.dtype != dtype:
        return False
    scale, zero = map(value_of, expr.args[1:])
    if dtype == "uint8":
        return scale.size == zero.size == 1
    return not zero.any() and (scale.size == 1 or int(expr.attrs.axis) in _last(expr))


def _last(expr):
    """Both names of the last axis."""
    return -1, len(expr.checked_type.shape) - 1


def name_of(expr):
    """The name of the operator that an expression calls, or nothing."""
    return expr.op.name if isinstance(expr, relay.Call) and isinstance(expr.op, tvm.ir.Op) else ""


def value_of(expr):
    """A constant's array. Raises LoweringError for another expression."""
    if not isinstance(expr, relay.Constant):
        raise LoweringError("a scale or zero point is not a constant")
    return expr.data.numpy()
