"""Functions by pieces: a requantize rounds an approximation where that is proved to round like the norm.

A function takes the norm dozens of float32 operations (`function`), which a polynomial of a few, one of
``pieces`` along x, replaces: `Curve`. How far the two can be apart is proved here, and where a value is
nearer than that to the middle between two steps, the kernel computes the norm's own operations
(`epilogue.finished`). So no integer depends on a curve.

The proof, of the steps v before rounding, of every float32 x with |x| <= `function.REACH`:

* the norm from the real function: an interval of x is followed through the expression (`_Reach`) with the
  interval of the value, of its derivative and a bound of what float32 has added up. An operation rounds by
  ``U`` times its result at most, and an addition never by more than the smaller operand. `EXPONENTIAL` and
  `ERROR_FUNCTION`, which a test compares with every float32, bound the functions made of several;
* the real curve from the real function: on each of some ten thousand intervals that cover all x the
  difference in the middle and half the width times the largest difference of the derivatives;
* the curve as the kernel computes it from the real one: its float32 coefficients and the rounding of each
  fused multiply-add (`Curve.window`).

Beyond `WITHIN` steps from zero none of this matters as long as both are on the same side: the clip to a
byte makes them equal.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import function
from .function import REACH

U = 1.0001 * 2.0**-24  # what rounding to float32 adds, relatively; and to float64, as these bounds are
#: relative error of the norm's exp, absolute one of its erf, see `_Reach`; a slow test has every float32
EXPONENTIAL, ERROR_FUNCTION = 1.2e-7, 6.7e-7
#: a stored byte's value lies in the binade from 256 on, whose float32 are this far apart
GRAIN = 2.0**-15
BASE = 256.5
WITHIN = 260.0  # steps: no byte is further from its zero point
#: the curve may be this many steps from the real function, before a degree is added
CLOSE = 2e-4
DEGREES = range(2, 10)
#: the widest window, in grains, that is worth a curve: one in 500 values falls into it
WIDEST = 2**6
CELLS = 2**14  # intervals of all pieces, for the proof


class Curve(NamedTuple):
    """``table[k](r) + slope * beyond`` in steps, shifted by ``BASE`` and the zero point, where k is the
    nearest integer of ``t * per`` and r what is left.

    even: t is ``min(|x|, far)`` and beyond is ``max(x, 0)``; else t is ``clip(x, near, far)`` and beyond is
    ``x - min(x, far)``. table: float32 (degree + 1, pieces), a row for each power of r, the k-th number at
    ``k`` modulo the pieces; slope 0.0: there is no such term. per, near, far, slope: as float32 has them.

    window: even. Read as an integer, the last 15 bits of the value are a fraction of a step; where they are
    less than window, the norm has to decide. Else the 8 bits before them are the stored value.
    low, high: limits of the unrounded steps.
    """

    even: bool
    per: float
    near: float
    far: float
    slope: float
    table: np.ndarray
    window: int
    low: float
    high: float


class _Reach(NamedTuple):
    """Arrays, of some intervals of x: bounds of a real value, of its derivative by x, and of what the
    norm's float32 is away from it; and the value in the middle of each."""

    low: np.ndarray
    high: np.ndarray
    falls: np.ndarray
    rises: np.ndarray
    error: np.ndarray
    middle: np.ndarray

    @property
    def size(self):
        """The largest magnitude."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


def _product(a, b, c, d):
    """The interval of a product of one in a..b and one in c..d."""
    corners = [x * y for x in (a, b) for y in (c, d)]
    return np.minimum.reduce(corners), np.maximum.reduce(corners)


def _rounded(made: _Reach, most=np.inf) -> _Reach:
    """With the rounding of one operation; most: that it cannot exceed."""
    return made._replace(error=made.error + np.minimum(U * (made.size + made.error), most))


def _number(value: float, like: _Reach) -> _Reach:
    whole, none = np.full_like(like.low, np.float32(value)), np.zeros_like(like.low)
    return _Reach(whole, whole, none, none, none, whole)


def _add(a: _Reach, b: _Reach) -> _Reach:
    made = _Reach(a.low + b.low, a.high + b.high, a.falls + b.falls, a.rises + b.rises,
                  a.error + b.error, a.middle + b.middle)  # fmt: skip
    return _rounded(made, np.minimum(a.size + a.error, b.size + b.error))


def _subtract(a: _Reach, b: _Reach) -> _Reach:
    return _add(a, _Reach(-b.high, -b.low, -b.rises, -b.falls, b.error, -b.middle))


def _multiply(a: _Reach, b: _Reach) -> _Reach:
    low, high = _product(a.low, a.high, b.low, b.high)
    first, second = _product(a.falls, a.rises, b.low, b.high), _product(a.low, a.high, b.falls, b.rises)
    error = a.size * b.error + b.size * a.error + a.error * b.error
    slopes = first[0] + second[0], first[1] + second[1]
    return _rounded(_Reach(low, high, *slopes, error, a.middle * b.middle))


def _divide(a: _Reach, b: _Reach) -> _Reach:
    """``b`` is far from zero: `function.bounds`."""
    least = np.minimum(np.abs(b.low), np.abs(b.high))
    squares = _product(b.low, b.high, b.low, b.high)
    falls, rises = _product(-b.rises, -b.falls, 1 / squares[1], 1 / least**2)
    room = least - b.error
    error = np.where(room > 0, b.error / (least * room), np.inf)
    return _multiply(a, _Reach(1 / b.high, 1 / b.low, falls, rises, error, 1 / b.middle))  # rounds once


def _maximum(a: _Reach, b: _Reach) -> _Reach:
    first, second = a.low > b.high, b.low > a.high
    falls = np.where(first, a.falls, np.where(second, b.falls, np.minimum(a.falls, b.falls)))
    rises = np.where(first, a.rises, np.where(second, b.rises, np.maximum(a.rises, b.rises)))
    return _Reach(np.maximum(a.low, b.low), np.maximum(a.high, b.high), falls, rises,
                  np.maximum(a.error, b.error), np.maximum(a.middle, b.middle))  # fmt: skip


def _opposite(a: _Reach) -> _Reach:
    return _Reach(-a.high, -a.low, -a.rises, -a.falls, a.error, -a.middle)


def _minimum(a: _Reach, b: _Reach) -> _Reach:
    return _opposite(_maximum(_opposite(a), _opposite(b)))


def _leaky_relu(x: _Reach, slope: _Reach) -> _Reach:
    part, zero = _multiply(x, slope), _number(0.0, x)
    positive, negative = _maximum(x, zero), _minimum(x, zero)
    made = _add(positive, _multiply(negative, slope))
    return made._replace(error=np.maximum(x.error * np.maximum(1, slope.size), part.error))


def _least(x: _Reach):
    """The smallest magnitude."""
    return np.where((x.low < 0) & (x.high > 0), 0.0, np.minimum(np.abs(x.low), np.abs(x.high)))


def _by(value: Callable, derivative: Callable, own: Callable, x: _Reach) -> _Reach:
    """A rising function whose derivative falls with the magnitude of its argument; own(argument): what the
    norm's is away from it for the same argument."""
    least, most = derivative(x.size), derivative(_least(x))
    falls, rises = _product(x.falls, x.rises, least, most)
    wide = x._replace(low=x.low - x.error, high=x.high + x.error)
    error = own(wide) + derivative(_least(wide)) * x.error
    return _Reach(value(x.low), value(x.high), falls, rises, error, value(x.middle))


def _exp(x: _Reach) -> _Reach:
    x = _minimum(_maximum(x, _number(-87.0, x)), _number(88.0, x))
    low, high = np.exp(x.low), np.exp(x.high)
    falls, rises = _product(x.falls, x.rises, low, high)
    error = high * ((1 + EXPONENTIAL) * np.exp(x.error) - 1)
    return _Reach(low, high, falls, rises, error, np.exp(x.middle))


def _logistic(x):
    return 1 / (1 + np.exp(-np.clip(x, -700, 700)))


def _logistic_slope(x):
    e = np.exp(-np.abs(x))
    return e / (1 + e) ** 2


def _logistic_error(x: _Reach):
    """exp's error counts as far as exp does beside 1; sum and quotient round, or are 1 and do not. Beyond
    -88, exp is what it is there."""
    high, rest = _logistic(x.high), _logistic(-x.low)
    return high * (rest * 1.01 * EXPONENTIAL + 2.02 * np.minimum(U, rest)) + 1.3e-38


def _sigmoid(x: _Reach) -> _Reach:
    return _by(_logistic, _logistic_slope, _logistic_error, x)


def _tanh(x: _Reach) -> _Reach:
    two, one = _number(2.0, x), _number(1.0, x)
    made = _subtract(_multiply(two, _sigmoid(_multiply(two, x))), one)
    return made._replace(middle=np.tanh(x.middle))


def _erf_of(x):
    return np.array([math.erf(v) for v in np.ravel(x)]).reshape(np.shape(x))


def _erf_error(x: _Reach):
    """Where it is nearly 1, so is the formula, as what is left has a factor ``exp(-x**2)``; beyond 9 both
    are 1."""
    least = _least(x)
    return np.where(least > 9.0, 0.0, np.minimum(ERROR_FUNCTION, 4 * np.exp(-(least**2))))


def _erf(x: _Reach) -> _Reach:
    return _by(_erf_of, lambda v: 2 / np.sqrt(np.pi) * np.exp(-(v**2)), _erf_error, x)


#: name -> rule, as `function.RULES`
RULES: dict[str, Callable] = {
    "add": _add,
    "subtract": _subtract,
    "multiply": _multiply,
    "divide": _divide,
    "abs": lambda x: _maximum(x, _opposite(x)),
    "maximum": _maximum,
    "minimum": _minimum,
    "clip": lambda x, low, high: _minimum(_maximum(x, low), high),
    "leaky_relu": _leaky_relu,
    "exp": _exp,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "erf": _erf,
}


def _follow(expression, x: _Reach) -> _Reach:
    if expression == "x":
        return x
    if not isinstance(expression, tuple):
        return _number(expression, x)
    name, *arguments = expression
    return RULES[name](*(_follow(argument, x) for argument in arguments))


def _intervals(edges) -> tuple[np.ndarray, _Reach]:
    """Of the intervals between ``edges``: (half their widths, x itself)."""
    low, high = edges[:-1], edges[1:]
    one, none = np.ones_like(low), np.zeros_like(low)
    return (high - low) / 2, _Reach(low, high, one, one, none, (low + high) / 2)


def _real(expression, x) -> np.ndarray:
    """The real function of float64 numbers."""
    x = np.asarray(x, np.float64)
    none = np.zeros_like(x)
    return _follow(expression, _Reach(x, x, none, none, none, x)).middle


#: magnitudes of x from a piece's end to the farthest that there is: apart by a fiftieth
_FAR = np.geomspace(1.0, 2 * REACH, 1080)


class _Unit(NamedTuple):
    """A curve of a function as it stands, in float64, and its proof: ``apart`` bounds the difference of the
    norm and the real curve on intervals where the real function is at least ``least`` from zero; low, high:
    limits of the function."""

    even: bool
    per: float
    near: float
    far: float
    slope: float
    table: np.ndarray
    least: np.ndarray
    apart: np.ndarray
    low: float = 0.0
    high: float = 0.0


def _polynomials(function_of, middles, width, degree) -> np.ndarray:
    """(degree + 1, pieces) coefficients in r of pieces around ``middles``: interpolation at Chebyshev's
    nodes, r in -1/2..1/2 of a ``width``."""
    count = degree + 1
    angles = np.pi * (np.arange(count) + 0.5) / count
    values = function_of(middles[:, None] + np.cos(angles) / 2 * width)  # (pieces, nodes)
    turned = np.zeros((count, len(middles)))
    for i in range(count):
        for j in range(count):
            turned[i] += values[:, j] * np.cos(i * angles[j]) * (2 - (i == 0)) / count
    table = np.zeros((count, len(middles)))
    for i in range(count):
        powers = np.polynomial.chebyshev.cheb2poly(np.eye(count)[i])
        for power, coefficient in enumerate(powers):
            table[power] += coefficient * 2.0**power * turned[i]
    return table


def _evaluated(table, k, r):
    """Polynomial ``k`` at ``r``."""
    made = table[-1][k]
    for row in table[-2::-1]:
        made = made * r + row[k]
    return made


def _ends(expression, slope, tolerance, even) -> tuple[float, float] | None:
    """(near, far): beyond, the function is within ``tolerance`` of a constant, and of ``slope`` times x."""
    ends = []
    for side in (-1.0, 1.0):
        x = side * np.concatenate([np.arange(0.0, 64, 0.25), 64 * _FAR])
        rest = _real(expression, x) - slope * np.maximum(x, 0)
        stays = np.abs(rest - rest[-1]) <= tolerance + 1e-15 * np.abs(x)
        first = 1 if stays.all() else len(x) - int(np.argmin(stays[::-1]))
        if first >= 256:  # of those that are a quarter apart
            return None
        ends.append(float(x[first]))
    return (-max(-ends[0], ends[1]), max(-ends[0], ends[1])) if even else (ends[0], ends[1])


@functools.cache
def _unit(expression, pieces: int, close: float) -> _Unit | None:
    """The cheapest curve within about ``close`` of a function; None if there is none.

    pieces: of a table; two tables' (twice as many) are the same work, where there is an instruction for it.
    """
    far = _real(expression, [2.0**20, 2.0**21])
    slope = float(np.float32((far[1] - far[0]) / 2.0**20))
    slope = slope if abs(slope) > 1e-6 else 0.0
    for degree in DEGREES:
        for even in (True, False):
            made = _made(expression, pieces, close, slope, degree, even)
            if made is not None:
                closer = _made(expression, pieces, close / 2, slope, degree, even)
                return _proved(expression, closer or made)
    return None


def _made(expression, pieces, close, slope, degree, even) -> _Unit | None:
    """The curve of a degree and a kind, without its proof, if it is within ``close`` of the function on
    some points of each piece."""
    ends = _ends(expression, slope, close, even)
    if ends is None:
        return None
    near, far = (0.0 if even else float(np.float32(ends[0]))), float(np.float32(ends[1]))
    # half a piece more would be one too many
    per = float(np.float32((pieces - 0.51) / far if even else (pieces - 1.01) / (far - near)))
    first = math.floor(near * per + 0.5)
    k = np.arange(first, first + pieces)
    if not k[0] - 0.5 < near * per <= far * per < k[-1] + 0.5:
        return None

    def smooth(x):
        return _real(expression, x) - (slope * x if even else 0.0)

    table = np.roll(_polynomials(smooth, k / per, 1 / per, degree), first, axis=1)
    none = np.zeros(0)
    unit = _Unit(even, per, near, far, slope, table, none, none)
    points = np.linspace(near, far, 8 * pieces)
    points = np.concatenate([-points, points]) if even else points
    return unit if np.abs(_curve(unit, points) - _real(expression, points)).max() <= close else None


def _place(unit: _Unit, x):
    """(piece, its place in the table, r, beyond) of float64 x."""
    t = np.minimum(np.abs(x), unit.far) if unit.even else np.clip(x, unit.near, unit.far)
    beyond = np.maximum(x, 0) if unit.even else x - np.minimum(x, unit.far)
    k = np.rint(t * unit.per)
    return k.astype(int) % unit.table.shape[1], t * unit.per - k, beyond


def _curve(unit: _Unit, x):
    k, r, beyond = _place(unit, x)
    return _evaluated(unit.table, k, r) + unit.slope * beyond


def _proved(expression, unit: _Unit) -> _Unit:
    """With the bound of its difference from the norm on intervals that cover every x."""
    degree = len(unit.table) - 1
    rows = np.arange(degree + 1)
    slopes = unit.table[1:] * rows[1:, None]
    most = rows[2:] * rows[1:-1] * 0.5 ** (rows[2:] - 2.0)  # of each term's second derivative
    bends = (np.abs(unit.table[2:]) * most[:, None]).sum(axis=0)
    start = 0.0 if unit.even else unit.near
    first, last = np.rint(start * unit.per), np.rint(unit.far * unit.per)
    halves = (np.arange(first, last) + 0.5) / unit.per  # where pieces meet
    inner = np.linspace(start, unit.far, CELLS + 1)
    inner = np.unique(np.concatenate([inner, halves, [0.0] if start < 0 < unit.far else []]))
    inner = inner[(inner >= start) & (inner <= unit.far)]
    right, left = (end + _FAR - 1 for end in (unit.far, unit.far if unit.even else -unit.near))
    parts = [inner, right, -left[::-1], *([-inner[::-1]] if unit.even else [])]
    least, apart, low, high = [], [], 0.0, 0.0
    for edges in parts:
        half, x = _intervals(edges)
        real = _follow(expression, x)
        k, r, _ = _place(unit, x.middle)
        within = (unit.near < x.middle) & (x.middle < unit.far)
        if unit.even:
            within = np.abs(x.middle) < unit.far
        turned = np.sign(x.middle) if unit.even else 1.0
        at = unit.per * _evaluated(slopes, k, r) * turned * within
        around = unit.per**2 * bends[k] * half * within
        at = at + unit.slope * (x.middle > (0 if unit.even else unit.far))
        differs = np.maximum(real.rises - at + around, at + around - real.falls)
        curve = _curve(unit, x.middle)
        slack = 1e-9 + 4e-15 * np.abs(real.middle)
        apart.append(np.abs(curve - real.middle) + half * np.maximum(differs, 0) + real.error + slack)
        least.append(_least(real))
        low, high = min(low, float(real.low.min())), max(high, float(real.high.max()))
    return unit._replace(least=np.concatenate(least), apart=np.concatenate(apart), low=low, high=high)


@functools.cache
def curve(expression, divisor: float | None, zero_point: int, pieces: int) -> Curve | None:
    """The curve of a requantize's function, None where none is proved or worth it.

    expression: in the norm's form; divisor: what its result is divided by, None: nothing; pieces: how many
    float32 the instruction chooses among (0: there is none).
    """
    if not pieces or function.vectors(expression) or function.uses_other(expression):
        return None
    if not {"exp2", "divide"} & {name for name, *_ in function.steps(expression)}:
        return None  # a handful of operations
    form, step, roundings = expression, 1.0, 0
    if expression[0] == "multiply" and isinstance(expression[2], float) and expression[2] > 0:
        _, form, step = expression
        roundings += 1
    if divisor is not None:
        step, roundings = step / float(np.float32(divisor)), roundings + 1
    close = 2.0 ** (math.floor(2 * math.log2(CLOSE / step)) / 2)  # few of them, so that curves are shared
    with np.errstate(all="ignore"):  # what is infinite proves nothing, see `_in_steps`
        unit = _unit(form, pieces, max(close, 2.0**-22))
    return None if unit is None else _in_steps(unit, step, roundings, zero_point)


def _in_steps(unit: _Unit, step: float, roundings: int, zero_point: int) -> Curve | None:
    """The curve in steps of ``step`` to one of the function, in float32, if its window is narrow enough.

    roundings: of the norm, from the function to the steps.
    """
    byte = unit.least * step <= WITHIN
    if not (unit.apart[~byte] <= 0.01 * unit.least[~byte]).all():
        return None
    apart = float(unit.apart[byte].max(initial=0.0)) * step + 1.01 * roundings * U * WITHIN
    table = unit.table * step
    table[0] += BASE + zero_point
    powers = 0.5 ** np.arange(len(table))[:, None]
    held = np.abs(table) * powers  # of each term, at r = 1/2
    sums = np.cumsum(held[::-1], axis=0)[::-1]  # of each value on the way, less its remaining powers
    rounds = U * (held.sum(axis=0) + sums.sum(axis=0)).max()  # coefficients, fused multiply-adds
    rounds += 2.0**-26 * 2 * (np.arange(len(table))[:, None] * held).sum(axis=0).max()  # r
    if unit.slope:  # itself, what is beyond, the last sum
        rounds += U * (2 * (WITHIN + sums[0].max()) + 2 * BASE)
    bound = apart + 1.01 * rounds
    if not bound < WIDEST // 2 * GRAIN:
        return None
    window = 2 * (math.floor(bound / GRAIN) + 1)
    table[0] += window // 2 * GRAIN
    low, high = unit.low * step - 1, unit.high * step + 1
    return Curve(unit.even, unit.per, unit.near, unit.far, float(np.float32(unit.slope * step)),
                 table.astype(np.float32), window, low, high)  # fmt: skip
