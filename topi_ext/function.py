"""The function between a requantize's float32 and its rounding: LeakyReLU, hard-swish, SiLU and the like.

A function is an expression: ``"x"``, a number, or a tuple ``(name, argument, ...)``; ``"other"`` is a
second float32 (K,) vector beside the multiplier, and a tuple of numbers a vector (K,) along the channels
before `fuse` has made it that. Its meaning is the norm: float32, one IEEE operation after the other, half
to even, never contracted, each a call of `Arithmetic`; `NUMPY` is the reference, `epilogue` computes the
same in TIR.
What has no exact operation is made of those: exp is 2**n times a polynomial (Cephes' expf), sigmoid, tanh
and erf (Abramowitz and Stegun 7.1.26) are made of exp, within 7e-7 of the real functions. A division by a
number is the product with its float32 reciprocal.

No overflow, no NaN: `bounds` follows the interval of x, within +-`REACH`, through an expression; `fusable`
says whether every step of it stays below 1e30 and no divisor comes near zero.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

#: the largest |x| a function is asked for; a layer is held to it by its weights
REACH = 2.0**30
LARGEST = 1e30  # of any step in between
NAMES = (
    "add", "subtract", "multiply", "divide", "maximum", "minimum", "negative", "abs", "clip", "leaky_relu",
    "power", "exp", "sigmoid", "tanh", "erf",
)  # fmt: skip
MAGIC = 12582912.0  # 1.5 * 2**23: added, it rounds to nearest even
MAGIC_BITS = 0x4B400000


class Arithmetic(Protocol):
    """One IEEE float32 operation each, on arrays or lanes; ``number`` makes one of a Python float."""

    def number(self, value: float, like: Any) -> Any: ...  # noqa: D102  # the class says it
    def add(self, a: Any, b: Any) -> Any: ...  # noqa: D102  # the class says it
    def subtract(self, a: Any, b: Any) -> Any: ...  # noqa: D102  # the class says it
    def multiply(self, a: Any, b: Any) -> Any: ...  # noqa: D102  # the class says it
    def divide(self, a: Any, b: Any) -> Any: ...  # noqa: D102  # the class says it
    def maximum(self, a: Any, b: Any) -> Any: ...  # noqa: D102  # the class says it
    def minimum(self, a: Any, b: Any) -> Any: ...  # noqa: D102  # the class says it

    def where_negative(self, x: Any, a: Any, b: Any) -> Any:
        """``a`` where x < 0, else ``b``."""

    def exp2(self, shifted: Any) -> Any:
        """2**n of ``n + MAGIC``, -126 <= n <= 127."""


class _Numpy:
    def number(self, value, like):
        return np.float32(value)

    def add(self, a, b):
        return a + b

    def subtract(self, a, b):
        return a - b

    def multiply(self, a, b):
        return a * b

    def divide(self, a, b):
        return a / b

    def maximum(self, a, b):
        return np.maximum(a, b)

    def minimum(self, a, b):
        return np.minimum(a, b)

    def where_negative(self, x, a, b):
        return np.where(x < 0, a, b)

    def exp2(self, shifted):
        steps = np.asarray(shifted, np.float32).view(np.int32) - np.int32(MAGIC_BITS)
        return ((steps + np.int32(127)) << np.int32(23)).view(np.float32)


NUMPY: Arithmetic = _Numpy()


def is_vector(e) -> bool:
    """Whether an expression is a number for each channel."""
    return isinstance(e, tuple) and not isinstance(e[0], str)


def apply(expression, x, other=None, arithmetic: Arithmetic = NUMPY):
    """The expression of float32 ``x``, whose last axis is the channels'; other: float32 (K,) or None."""
    return _Evaluation(x, other, arithmetic).of(expression)


#: functions of any float32, which what stays float computes in vectors, too: see `real`
REAL = ("exp", "sigmoid", "tanh")


def real(name: str, x, a: Arithmetic = NUMPY, of: Callable = lambda name, x: apply((name, "x"), x)):
    """A function of `REAL` of any float32: NaN stays NaN; exp is 0 below -87 and infinite beyond float32;
    tanh is a polynomial where it is nearly ``x``. of(name, x): the function within its bounds."""

    def number(value):
        return a.number(value, x)

    made = of(name, x)
    if name == "exp":
        beyond = a.subtract(number(88.0), x)  # there e times that of a number less
        made = of(name, a.where_negative(beyond, a.subtract(x, number(1.0)), x))
        made = a.multiply(made, a.where_negative(beyond, number(np.e), number(1.0)))
        made = a.where_negative(a.subtract(number(88.72283172607422), x), number(np.inf), made)
        made = a.where_negative(a.subtract(x, number(-87.0)), number(0.0), made)
    elif name == "tanh":
        square, odd = a.multiply(x, x), number(62 / 2835)
        for coefficient in (-17 / 315, 2 / 15, -1 / 3, 1.0):
            odd = a.add(a.multiply(odd, square), number(coefficient))
        made = a.where_negative(a.subtract(square, number(0.0625)), a.multiply(odd, x), made)
    either = a.where_negative(a.subtract(x, number(1.0)), made, x)  # x is NaN, or at least 1
    return a.where_negative(a.subtract(number(0.0), x), made, either)


class _Recorder:
    """Writes the operations of an expression down, each once, by their places in the order of evaluation:
    an `Arithmetic`."""

    def __init__(self):
        self.found: dict[tuple, int] = {}

    def step(self, *step):
        return self.found.setdefault(step, len(self.found))

    def number(self, value, like):
        return self.step("number", float(np.float32(value)))

    def __getattr__(self, name):
        return functools.partial(self.step, name)

    def where_negative(self, x, a, b):
        """A LeakyReLU of a slope in [0, 1] is a maximum, but for the sign of a zero."""
        steps = list(self.found)
        if b == x and steps[a][:2] == ("multiply", x):
            kind, *value = steps[steps[a][2]]
            if kind == "number" and 0.0 <= value[0] <= 1.0:
                return self.step("maximum", x, a)
        return self.step("where_negative", x, a, b)


@functools.cache
def steps(expression) -> tuple[tuple, ...]:
    """The expression, in the norm's form, as a straight line: ``("x",)``, ``("other",)``, ``("number",
    value)`` or an operation of `Arithmetic` with the places of its operands, all before it. The last is
    the result."""
    recorder: Any = _Recorder()
    x, other = recorder.step("x"), recorder.step("other") if uses_other(expression) else None
    apply(expression, x, other, recorder)
    return tuple(recorder.found)


class _Evaluation:
    def __init__(self, x, other, arithmetic: Arithmetic):
        self.x, self.other, self.a = x, other, arithmetic

    def number(self, value):
        return self.a.number(value, self.x)

    def of(self, e):
        if isinstance(e, str):
            return {"x": self.x, "other": self.other}[e]
        if not isinstance(e, tuple):
            return self.number(e)
        name, first, *rest = e
        return RULES[name](self, self.of(first), *map(self.of, rest))


def _clip(v, x, lo, hi):
    return v.a.minimum(v.a.maximum(x, lo), hi)


def _leaky_relu(v, x, slope):
    return v.a.where_negative(x, v.a.multiply(x, slope), x)


def _negative(v, x):
    return v.a.subtract(v.number(0.0), x)


def _exp(v, x):
    a, number = v.a, v.number
    x = _clip(v, x, number(-87.0), number(88.0))
    shifted = a.add(a.multiply(x, number(1.44269504088896341)), number(MAGIC))
    n = a.subtract(shifted, number(MAGIC))
    rest = a.subtract(x, a.multiply(n, number(0.693359375)))
    rest = a.subtract(rest, a.multiply(n, number(-2.12194440e-4)))
    y = number(1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1,
                        1.0, 1.0):  # fmt: skip
        y = a.add(a.multiply(y, rest), number(coefficient))
    return a.multiply(y, a.exp2(shifted))


def _sigmoid(v, x):
    one = v.number(1.0)
    return v.a.divide(one, v.a.add(one, _exp(v, _negative(v, x))))


def _tanh(v, x):
    two, one = v.number(2.0), v.number(1.0)
    return v.a.subtract(v.a.multiply(two, _sigmoid(v, v.a.multiply(two, x))), one)


def _erf(v, x):
    a, number = v.a, v.number
    size, one = a.maximum(x, _negative(v, x)), number(1.0)
    t = a.divide(one, a.add(one, a.multiply(number(0.3275911), size)))
    y = number(1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592, 0.0):
        y = a.add(a.multiply(y, t), number(coefficient))
    size = a.minimum(size, number(9.0))  # beyond, it is 1
    y = a.subtract(one, a.multiply(y, _exp(v, _negative(v, a.multiply(size, size)))))
    return a.where_negative(x, _negative(v, y), y)


#: name -> rule (evaluation, arguments) of the functions in the norm's own form (`canonical`)
RULES: dict[str, Callable] = {
    "add": lambda v, x, y: v.a.add(x, y),
    "subtract": lambda v, x, y: v.a.subtract(x, y),
    "multiply": lambda v, x, y: v.a.multiply(x, y),
    "divide": lambda v, x, y: v.a.divide(x, y),
    "abs": lambda v, x: v.a.maximum(x, _negative(v, x)),
    "maximum": lambda v, x, y: v.a.maximum(x, y),
    "minimum": lambda v, x, y: v.a.minimum(x, y),
    "clip": _clip,
    "leaky_relu": _leaky_relu,
    "exp": _exp,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "erf": _erf,
}


def _constant(e) -> bool:
    return not isinstance(e, (str, tuple)) or is_vector(e)


def _folded(name, values):
    """A function of numbers and vectors, as one of them, in float64."""
    function = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide,
                "maximum": np.maximum, "minimum": np.minimum}[name]  # fmt: skip
    found = function(*(np.asarray(value, np.float64) for value in values))
    return tuple(found.tolist()) if found.ndim else float(found)


def canonical(e):  # noqa: PLR0912  # a branch for each kind of expression
    """The expression in the norm's own form; None if it has a function that is not of `NAMES`."""
    if not isinstance(e, tuple) or is_vector(e):
        return e
    if e[0] not in NAMES:
        return None
    name, *arguments = e[0], *map(canonical, e[1:])
    if any(argument is None for argument in arguments):
        return None
    if name == "clip":
        return _canonical_clip(*arguments)
    if name == "negative":
        name, arguments = "multiply", [arguments[0], -1.0]
    elif name == "power":
        power = arguments[1]
        if power not in (1.0, 2.0, 3.0):
            return None
        product = arguments[0]
        for _ in range(int(power) - 1):
            product = ("multiply", product, arguments[0])
        return product
    if name in ("add", "subtract", "multiply", "divide", "maximum", "minimum"):
        first, second = arguments
        if _constant(first) and _constant(second):
            return _folded(name, arguments)
        if name in ("divide", "multiply") and _constant(second):
            return _times(first, second if name == "multiply" else _folded("divide", (1.0, second)))
        if name == "multiply" and _constant(first):
            return _times(second, first)
        if name == "subtract" and _constant(second):
            name, arguments = "add", [first, _folded("multiply", (second, -1.0))]
    return (name, *arguments)


def _canonical_clip(e, lo, hi):
    if -lo == hi == np.inf:
        return e
    if hi == np.inf:
        return ("maximum", e, lo)
    return ("minimum", e, hi) if lo == -np.inf else ("clip", e, lo, hi)


def _times(e, constant):
    """A product with a constant; two constants become one."""
    if isinstance(e, tuple) and e[0] == "multiply" and _constant(e[2]):
        e, constant = e[1], _folded("multiply", (e[2], constant))
    return e if constant == 1.0 else ("multiply", e, constant)


def vectors(e) -> set[tuple]:
    """The vectors in an expression."""
    if is_vector(e):
        return {e}
    return set().union(*map(vectors, e[1:])) if isinstance(e, tuple) else set()


def bounds(e, reach: float = REACH) -> tuple[float, float] | None:
    """The interval of a canonical expression for |x| <= reach; None where a step may be no number."""
    if e == "x":
        return -reach, reach
    if is_vector(e):
        return float(min(e)), float(max(e))
    if not isinstance(e, tuple):
        return float(e), float(e)
    found = [bounds(argument, reach) for argument in e[1:]]
    if any(f is None for f in found):
        return None
    result = INTERVALS[e[0]](*found)
    if result is None or not max(abs(result[0]), abs(result[1])) <= LARGEST:
        return None
    return result


def _corners(function):
    def interval(a, b):
        corners = [function(x, y) for x in a for y in b]
        return min(corners), max(corners)

    return interval


def _quotient(a, b):
    if b[0] <= 1e-6 and b[1] >= -1e-6:
        return None
    return _corners(lambda x, y: x / y)(a, b)


def _leaky_interval(a, slope):
    low = [min(a[0], 0.0) * s for s in slope]
    return min(*low, max(a[0], 0.0)), max(*low, a[1])


#: name -> interval of the result from those of the arguments
INTERVALS: dict[str, Callable] = {
    "add": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "subtract": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "multiply": _corners(lambda x, y: x * y),
    "divide": _quotient,
    "abs": lambda a: (0.0 if a[0] <= 0 <= a[1] else min(map(abs, a)), max(map(abs, a))),
    "maximum": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "minimum": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "clip": lambda a, lo, hi: (min(max(a[0], lo[0]), hi[1]), min(max(a[1], lo[0]), hi[1])),
    "leaky_relu": _leaky_interval,
    "exp": lambda a: (0.0, np.exp(min(a[1], 69.0)) if a[1] <= 69 else 1e39),  # ln 1e30
    "sigmoid": lambda a: (0.0, 1.0),
    "tanh": lambda a: (-1.0, 1.0),
    "erf": lambda a: (-1.0, 1.0),
}


def fusable(e) -> bool:
    """Whether a requantize can compute the expression before it rounds: of `NAMES`, exact, never NaN, and
    with one vector at most."""
    form = canonical(e)
    return form is not None and len(vectors(form)) <= 1 and bounds(form) is not None


class Fused(NamedTuple):
    """A requantize with a function: ``clip(rint(function(float32(acc) * multiplier, other)), lo, hi)``.

    function: in the norm's form, None if there is none left; multiplier, other: float32 () or (K,), other
    None where the function has none; lo, hi: real limits in steps, which its zero point is added to.
    """

    function: object
    multiplier: np.ndarray
    other: np.ndarray | None
    lo: int
    hi: int


def fuse(expression, unit, scale: float, lo: int, hi: int) -> Fused:
    """What a requantize computes for ``rint(expression(acc * unit) / scale)`` clipped to the steps lo..hi.

    unit: float32 () or (K,), real units per step of the accumulator; expression: one that is `fusable`.
    A function that is positively homogeneous, as LeakyReLU is, is taken of the steps. Of others the last
    product takes the division by the scale in; a clip of which the steps' own limits do all, is none.
    """
    form = canonical(single(expression))
    last: object = 1.0
    if isinstance(form, tuple) and form[0] == "multiply" and _constant(form[2]):
        form, last = form[1], form[2]
    positive = np.all(np.asarray(last) > 0)
    if isinstance(form, tuple) and form[0] == "clip" and form[1] == "x" and positive and not vectors(form):
        low, high = (np.clip(_steps(limit, last, scale), lo, hi) for limit in form[2:])
        if low.min() == low.max() and high.min() == high.max():
            factor = _over(np.asarray(unit, np.float32) * np.asarray(last, np.float32), scale)
            return Fused(None, factor, None, int(low.min()), int(high.min()))
    if _homogeneous(form) and positive and len(vectors(form)) + is_vector(last) <= 1:
        unit = np.asarray(unit, np.float32) * np.asarray(last, np.float32)
        return _with_vector(form, _over(unit, scale), lo, hi)
    step = _folded("divide", (last, float(np.float32(scale))))
    return _with_vector(("multiply", form, step), np.asarray(unit, np.float32), lo, hi)


def _over(unit, scale) -> np.ndarray:
    """The multiplier of a requantize, as `reference.multiplier` rounds it."""
    return np.asarray(unit / np.float32(scale), np.float32)


def _steps(limit, last, scale) -> np.ndarray:
    """A real limit in steps."""
    return np.rint(np.asarray(limit * np.asarray(last, np.float64)) / np.float64(np.float32(scale)))


def _homogeneous(e) -> bool:
    """Whether f(s x) = s f(x) for every s > 0, by its form."""
    if not isinstance(e, tuple):
        return e == "x"
    if e[0] in ("leaky_relu", "abs"):
        return _homogeneous(e[1])
    if e[0] in ("maximum", "minimum", "add", "subtract"):
        return all(_homogeneous(argument) or argument == 0.0 for argument in e[1:])
    return e[0] == "multiply" and _homogeneous(e[1]) and _constant(e[2])


def homogeneous(expression) -> bool:
    """Whether f(s x) = s f(x) for every s > 0, by the form of the expression."""
    return (form := canonical(expression)) is not None and _homogeneous(form)


def _with_vector(form, factor, lo, hi) -> Fused:
    found = list(vectors(form))
    if not found:
        return Fused(None if form == "x" else single(form), factor, None, lo, hi)
    other = np.asarray(found[0], np.float32)
    return Fused(single(_named(form, found[0])), factor, other, lo, hi)


def single(e):
    """Its numbers as float32 holds them, so that a text of them is the same everywhere."""
    if isinstance(e, tuple):
        return tuple(map(single, e))
    return e if e is None or isinstance(e, str) else float(np.float32(e))


def of_sum(expression):
    """The function of a residual add (`reference.add`) as a kernel takes it: of real numbers, without
    vectors; None if there is none left. expression: one that is `fusable`."""
    form = single(canonical(single(expression)))
    return None if form == "x" else form


def _named(e, vector):
    if e == vector:
        return "other"
    return (e[0], *(_named(argument, vector) for argument in e[1:])) if isinstance(e, tuple) else e


def uses_other(function) -> bool:
    """Whether a function in the norm's form reads the second vector."""
    return function == "other" or (isinstance(function, tuple) and any(map(uses_other, function[1:])))


def from_json(value):
    """An expression as it was before it became JSON, whose lists were tuples."""
    return tuple(map(from_json, value)) if isinstance(value, list) else value
