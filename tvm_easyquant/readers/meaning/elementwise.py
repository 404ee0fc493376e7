"""Operators that act on each number alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from math import pi, sqrt
from typing import Any

import numpy as np

from ..onnx_op import Call, NotConstant
from .algebra import Value, value, values

#: operator -> function of `network.tensors.UNARY`
UNARY = {
    "Abs": "abs", "Ceil": "ceil", "Erf": "erf", "Exp": "exp", "Floor": "floor", "Log": "log",
    "Neg": "negative", "Not": "not", "Round": "round", "Sigmoid": "sigmoid", "Sign": "sign",
    "Sqrt": "sqrt", "Tanh": "tanh",
}  # fmt: skip
#: operator -> function of `network.tensors.BINARY` or `COMPARE`
BINARY = {
    "Add": "add", "And": "and", "Div": "divide", "Equal": "equal", "Greater": "greater",
    "GreaterOrEqual": "greater_equal", "Less": "less", "LessOrEqual": "less_equal", "Mul": "multiply",
    "Or": "or", "Sub": "subtract",
}  # fmt: skip
#: operator -> the same, of any number of inputs
VARIADIC = {"Max": "maximum", "Min": "minimum", "Sum": "add"}


def _unary(name: str) -> Callable[[Call], Any]:
    return lambda call: call.t.unary(name, call.x[0])


def _binary(name: str) -> Callable[[Call], Any]:
    return lambda call: call.t.binary(name, *call.x)


def _variadic(name: str) -> Callable[[Call], Any]:
    return lambda call: reduce(lambda a, b: call.t.binary(name, a, b), call.x)


def _formula(of: Callable[[Value, Call], Value]) -> Callable[[Call], Any]:
    return lambda call: of(Value(call.t, call.x[0]), call).tensor


def _gelu(x: Value, call: Call) -> Value:
    if call["approximate"] == "tanh":
        inner = (x * sqrt(2 / pi) * (1 + 0.044715 * x * x)).unary("tanh")
    else:
        inner = (x / sqrt(2)).unary("erf")
    return 0.5 * x * (1 + inner)


def _softplus(x: Value) -> Value:
    """log(1 + exp(x)), of any x without overflow."""
    return x.at_least(0) + (1 + (-x.abs()).exp()).log()


def _exponential(x: Value) -> Value:
    """exp(x) - 1 where x is negative; elsewhere 0, never an overflow."""
    return x.at_most(0).exp() - 1


def _signed(x: Value, negative: Value) -> Value:
    """x where it is at least 0, else ``negative``."""
    return x.where(x >= 0, negative)


def _clip(x: Value, call: Call) -> Value:
    """The bounds were attributes below opset 11. Where they cross, the upper one wins."""
    if call.opset < 11:
        return x.at_least(call["min"]).at_most(call["max"])
    lowest, highest = value(call, 1), value(call, 2)
    if lowest is not None:
        x = x.at_least(lowest.reshape(()))
    return x.at_most(highest.reshape(())) if highest is not None else x


def _power(x: Value, call: Call) -> Value:
    """The result has the type of ``x``, whatever that of the exponent is."""
    exponent, known = Value(call.t, call.x[1]), call.op.constants.get(1)
    if known is not None and known.size == 1 and known.ndim <= x.rank and known.item() in (1, 2, 3):
        return reduce(Value.__mul__, [x] * int(known.item()))
    if x.is_float:
        return x ** exponent.cast(x.dtype)
    exponent = exponent.cast(np.float64)
    made = x.cast(np.float64) ** exponent
    whole = exponent.equal(exponent.unary("floor"))  # then so is the result, which may be rounded
    return made.unary("round").where(whole, made).cast(x.dtype)


def _dropout(call: Call) -> Any:
    """Inference. In training it is random, unless nothing is dropped."""
    training = call.opset >= 12 and call.known(2, False)
    if training and call.known(1, 0.5) != 0:
        raise NotConstant("Dropout in training is random")
    if len(call.op.dtypes) == 1:
        return call.x[0]
    return call.x[0], call.t.constant(np.ones(call.x[0].shape, call.op.dtypes[1]))


def _mean(call: Call) -> Any:
    inputs = values(call)
    return (reduce(Value.__add__, inputs) / len(inputs)).tensor


RULES: dict[str, Callable[[Call], Any]] = {
    **{op: _unary(name) for op, name in UNARY.items()},
    **{op: _binary(name) for op, name in BINARY.items()},
    **{op: _variadic(name) for op, name in VARIADIC.items()},
    "Cast": _formula(lambda x, call: x.cast(call.dtype)),
    "CastLike": _formula(lambda x, call: x.cast(call.dtype)),
    "Celu": _formula(
        lambda x, call: x.at_least(0) + (call["alpha"] * ((x / call["alpha"]).exp() - 1)).at_most(0)
    ),
    "Clip": _formula(_clip),
    "Dropout": _dropout,
    "Elu": _formula(lambda x, call: _signed(x, call["alpha"] * _exponential(x))),
    "Gelu": _formula(_gelu),
    "HardSigmoid": _formula(lambda x, call: (call["alpha"] * x + call["beta"]).at_least(0).at_most(1)),
    "HardSwish": _formula(lambda x, call: x * (x / 6 + 0.5).at_least(0).at_most(1)),
    "Identity": lambda call: call.x[0],
    "LeakyRelu": _formula(lambda x, call: _signed(x, call["alpha"] * x)),
    "Mean": _mean,
    "Mish": _formula(lambda x, call: x * _softplus(x).unary("tanh")),
    "Pow": _formula(_power),
    "PRelu": _formula(lambda x, call: _signed(x, values(call)[1] * x)),
    "Reciprocal": _formula(lambda x, call: 1 / x),
    "Relu": _formula(lambda x, call: x.at_least(0)),
    "Selu": _formula(
        lambda x, call: call["gamma"] * _signed(x, call["alpha"] * _exponential(x)),
    ),
    "Softplus": _formula(lambda x, call: _softplus(x)),
    "Softsign": _formula(lambda x, call: x / (1 + x.abs())),
    "ThresholdedRelu": _formula(lambda x, call: x.where(x > call["alpha"], 0)),
    "Where": lambda call: call.t.where(*call.x),
    "Xor": lambda call: call.t.unary("not", call.t.binary("equal", *call.x)),
}
