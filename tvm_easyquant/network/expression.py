"""Functions of one number, as expressions: what a 256-entry table can hold. No TVM here.

An expression is ``"x"``, a float, or a tuple ``(function, argument, ...)`` with a name of `FUNCTIONS`:
hard-swish is ``("multiply", "x", ("clip", ("add", "x", 3.0), 0.0, 6.0))`` divided by 6. A front end
gathers every chain of such operators on one tensor into one node, so that sigmoid, hard-swish, SiLU,
leaky ReLU, tanh or GELU are part of a requantize, or cost one table lookup each. The names are Relay's.
A tuple of numbers stands for one number a channel, as PReLU's slopes are: along the last axis, NHWC's.
"""

from __future__ import annotations

from collections.abc import Callable
from math import erf

import numpy as np

from topi_ext.function import is_vector

#: numbers of a map that are computed together: their float64 steps stay in a CPU's cache
TOGETHER = 2**14


def _sigmoid(x):
    small = np.exp(-np.abs(x))
    return np.maximum(small, x >= 0) / (1 + small)  # small is at most 1


#: name -> function of float64 arrays
FUNCTIONS: dict[str, Callable] = {
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "abs": np.abs,
    "negative": np.negative,
    "erf": np.vectorize(erf, otypes=[np.float64]),
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "power": np.power,
    "clip": np.clip,  # x, lo, hi
    "leaky_relu": lambda x, slope: np.where(x >= 0, x, x * slope),
}
UNARY = ("sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "abs", "negative", "erf")
PARAMETRIC = ("clip", "leaky_relu")  # what follows their first argument is numbers
BINARY = ("add", "subtract", "multiply", "divide", "maximum", "minimum", "power")
#: the ONNX operators that are such functions, or make one in pieces
ONNX = ("Sigmoid", "Tanh", "Exp", "Log", "Sqrt", "Reciprocal", "Abs", "Neg", "Erf", "Add", "Sub", "Mul",
        "Div", "Max", "Min", "Pow", "Clip", "Relu", "LeakyRelu", "Identity")  # fmt: skip


def compute(expression, x: np.ndarray) -> np.ndarray:
    """The expression of every number of ``x``: float32 of the same shape, computed in float64."""
    with np.errstate(over="ignore"):
        return _in_parts(lambda part: compute64(expression, part), x)


def _in_parts(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """float32: function(x), of the shape of ``x``, of parts (M, K) of `TOGETHER` numbers, whole along the
    last axis."""
    found: np.ndarray = np.empty(x.shape, np.float32)
    width = x.shape[-1] if x.size and x.ndim else 1
    rows, made = x.reshape(-1, width), found.reshape(-1, width)
    step = max(1, TOGETHER // width)
    for first in range(0, len(rows), step):
        made[first : first + step] = function(rows[first : first + step])
    return found


def compute64(expression, x: np.ndarray) -> np.ndarray:
    """The same as float64, of numbers of any type."""

    def value(e):
        if isinstance(e, str):
            return exact
        if not isinstance(e, tuple) or is_vector(e):
            return np.asarray(e, np.float64)
        found = FUNCTIONS[e[0]](*map(value, e[1:]))
        if (inner := softplus_of(e)) is not None:
            return np.where(found == np.inf, value(inner), found)  # exp holds up to 709
        return found

    with np.errstate(all="ignore"):
        exact = x.astype(np.float64)
        return np.broadcast_to(value(expression), x.shape)


def softplus_of(expression):
    """``a`` of log(1 + exp(a)), whose exponential floats may not hold; None of other expressions."""
    match expression:
        case ("log", ("add", ("exp", a), 1.0) | ("add", 1.0, ("exp", a))):
            return a
    return None


def nonnegative(expression, x_nonnegative: bool = False) -> bool:
    """Whether the expression is proven never to be negative."""

    def proven(e):
        if e == "x":
            return x_nonnegative
        if not isinstance(e, tuple) or is_vector(e):
            return np.min(e) >= 0
        name, *arguments = e
        if name in ("sigmoid", "exp", "abs", "sqrt", "rsqrt"):
            return True
        if name == "clip":
            return arguments[1] >= 0 or proven(arguments[0])
        if name == "maximum":
            return any(map(proven, arguments))
        return name in ("add", "multiply", "divide", "minimum", "leaky_relu") and all(
            map(proven, arguments)
        )

    return proven(expression)
