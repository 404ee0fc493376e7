"""From int32 accumulators to the stored output, as TIR vector expressions; the same for every kernel.

Every operation is one IEEE float32 operation of the norm (`reference`), but for the residual add, which has
`proofs.merged_scales` where they are proved the same. Three things would break that:

* TVM rewrites ``x / constant`` to a multiplication; `divide` keeps the division.
* LLVM contracts ``a * b + c`` to a fused multiply-add under TVM's options. Only adds have that shape, and
  functions; their products pass through ``llvm.arithmetic.fence``, which stops the contraction, or are
  proved to bear it.
* ``nearbyint`` does not vectorise. Adding 1.5 * 2**23 rounds to nearest even in the adder; it is right
  for |x| < 2**22, so the clip to a byte's range comes first.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import curves, function
from .curves import Curve
from .emit import const, dtype_of, keeper, lanes_of, literal, pure, tir, with_lanes
from .function import MAGIC, MAGIC_BITS
from .problem import ConvSpec
from .proofs import merged_scales


def fence(x):
    """``x``, hidden from floating-point contraction."""
    return pure(dtype_of(x), "llvm.arithmetic.fence", x)


def divide(x, divisor: float):
    """``x / divisor``, a true division: TVM would turn a literal divisor into a multiplication by its
    reciprocal, which rounds differently, so the divisor is given as its bits."""
    base_lanes = lanes_of(dtype_of(x))[1]
    bits = int(np.float32(divisor).view(np.int32))
    return x / tir.reinterpret(dtype_of(x), const(bits, with_lanes("int32", base_lanes)))


def _clipped(x, lo, hi):
    return tir.max(tir.min(x, const(float(hi), dtype_of(x))), const(float(lo), dtype_of(x)))


def _shifted(x, lo, hi):
    """``clip(rint(x), lo, hi)`` + MAGIC, in float32 lanes."""
    return _clipped(x, lo, hi) + const(MAGIC, dtype_of(x))


def rounded(x, lo, hi, nearest: Callable | None = None):
    """float32 lanes -> float32 lanes: ``clip(rint(x), lo, hi)``; nearest(x) -> rint(x), where there is an
    instruction for it."""
    if nearest is not None:
        return nearest(_clipped(x, lo, hi))
    return fence(_shifted(x, lo, hi)) - const(MAGIC, dtype_of(x))


def round_to_step(x, zero_point, lo, hi):
    """float32 lanes -> int32 lanes: ``clip(rint(x), lo - zero_point, hi - zero_point)``."""
    shifted = _shifted(x, lo - zero_point, hi - zero_point)
    bits = tir.reinterpret(with_lanes("int32", lanes_of(dtype_of(x))[1]), shifted)
    return bits - const(MAGIC_BITS, dtype_of(bits))


def store_byte(steps, zero_point):
    """int32 steps -> uint8 stored value."""
    lanes = lanes_of(dtype_of(steps))[1]
    shifted = steps + const(zero_point, dtype_of(steps)) if zero_point else steps
    return shifted.astype(with_lanes("uint8", lanes))


def real(steps, scale):
    """int32 or float32 steps -> ``float32(steps) * scale``, fenced so that an add cannot absorb it."""
    dtype = with_lanes("float32", lanes_of(dtype_of(steps))[1])
    return fence(steps.astype(dtype) * const(scale, dtype))


class _Lanes:
    """`function.Arithmetic` on float32 lanes."""

    def number(self, value, like):
        return const(value, dtype_of(like))

    def add(self, a, b):
        return a + b

    def subtract(self, a, b):
        return a - b

    def multiply(self, a, b):
        return fence(a * b)

    def divide(self, a, b):
        return a / b  # never by a number: `function.canonical`

    def maximum(self, a, b):
        return tir.max(a, b)

    def minimum(self, a, b):
        return tir.min(a, b)

    def where_negative(self, x, a, b):
        return tir.Select(x < const(0.0, dtype_of(x)), a, b)

    def exp2(self, shifted):
        integers = with_lanes("int32", lanes_of(dtype_of(shifted))[1])
        exponents = tir.reinterpret(integers, shifted) << const(23, integers)  # shifts MAGIC's own bits out
        return tir.reinterpret(dtype_of(shifted), exponents + const(127 << 23, integers))


LANES: function.Arithmetic = _Lanes()


def applied(expression, x, other=None, keep: Callable = lambda value: value):
    """float32 lanes -> float32 lanes: `function.apply`. x: fenced; keep(value): a value that is read
    several times, which is computed once."""
    steps = function.steps(expression)
    uses = Counter(place for name, *places in steps if name != "number" for place in places)
    shifted = {place for name, *places in steps if name == "exp2" for place in places}
    values: list = []
    for i, (name, *operands) in enumerate(steps):
        if name == "number":
            value = LANES.number(operands[0], x)
        elif name == "other":
            value = other
        else:
            value = x if name == "x" else getattr(LANES, name)(*(values[place] for place in operands))
            value = fence(value) if i in shifted else value  # MAGIC is taken off again
            value = keep(value) if uses[i] > 1 else value
        values.append(value)
    return values[-1]


def factors(spec: ConvSpec, multiplier, at, lanes: int):
    """float32 lanes of the buffer ``multiplier`` from place ``at`` on: the multiplier, and the function's
    second vector, which lies behind all of the first, or None."""
    found = [multiplier.vload([at], with_lanes("float32", lanes))]
    if not function.uses_other(spec.function):
        return found[0], None
    return found[0], multiplier.vload([at + int(multiplier.shape[0]) // 2], dtype_of(found[0]))


def requantized(scaled, expression, other, zero_point, lo, hi):
    """float32 lanes, unrounded steps before the function ``expression`` or None -> uint8."""
    scaled = scaled if expression is None else applied(expression, fence(scaled), other)
    return store_byte(round_to_step(scaled, zero_point, lo, hi), zero_point)


def stored(real, out_scale, zero_point, lo, hi, expression=None):
    """float32 -> uint8: ``quantize(expression(real))``, with a true division."""
    total = real if expression is None else applied(expression, real)
    return store_byte(round_to_step(divide(total, out_scale), zero_point, lo, hi), zero_point)


def unrounded(
    spec: ConvSpec, acc, multiplier, other, residual, keep: Callable, nearest: Callable | None = None
):
    """int32 lanes (bias added) -> float32 lanes: what ``spec``'s epilogue rounds last.

    multiplier, other: float32 lanes, as `factors` loads them; residual: uint8 lanes for the add epilogue,
    else None; keep: as `applied` takes it; nearest: a row's instruction for `rounded`.
    """
    value = before(spec, acc, multiplier, residual, nearest)
    if spec.function is None:
        return value
    return after(spec, value, other, keep)


def after(spec: ConvSpec, value, other, keep: Callable):
    """What ``spec``'s function, which there is, makes of float32 lanes `before` it, in unrounded steps."""
    made = applied(spec.function, value, other, keep)
    return made if spec.residual is None else divide(made, spec.residual.out_scale)


def before(spec: ConvSpec, acc, multiplier, residual, nearest=None):
    """int32 lanes (bias added) -> float32 lanes: what ``spec``'s function is taken of, where it has one,
    else what is rounded; the arguments are those of `unrounded`."""
    scaled = acc.astype(dtype_of(multiplier)) * multiplier
    r = spec.residual
    if r is None:
        return scaled if spec.function is None else fence(scaled)
    own = rounded(scaled, r.own_lo - r.own_zero_point, r.own_hi - r.own_zero_point, nearest)
    beside = residual.astype(dtype_of(acc)) - const(r.zero_point, dtype_of(acc))
    beside = beside.astype(dtype_of(multiplier))
    merged = None
    if spec.function is None:
        merged = merged_scales(r, spec.out_zero_point, spec.lo, spec.hi)
    if merged is not None:
        a, b = (const(float(factor), dtype_of(multiplier)) for factor in merged)
        return own * a + beside * b
    own, beside = real(own, r.own_scale), real(beside, r.scale)
    total = own + beside if r.own_first else beside + own
    return total if spec.function is not None else divide(total, r.out_scale)


class Pieces(NamedTuple):
    """How a row evaluates a `curves.Curve`.

    count(lanes): of the float32 among which an instruction chooses for each lane, 0: there is none;
    choose(vectors, index): of theirs, a vector's lanes or two vectors', by the last bits of int32 lanes.
    each([int32 lanes]) -> [uint8 lanes]: their last 8 bits; four(the same of four) -> uint8 lanes in the
    order of `depthwise.PairOps`. together: how many vectors are evaluated at once.
    """

    count: Callable
    choose: Callable
    each: Callable
    four: Callable
    together: int


def curve_of(spec: ConvSpec, pieces: Pieces | None, lanes: int) -> Curve | None:
    """The curve of ``spec``'s function for vectors of ``lanes``; None: there is none."""
    if pieces is None or spec.function is None or spec.epilogue == "dequantize":
        return None
    divisor = None if spec.residual is None else spec.residual.out_scale
    return curves.curve(spec.function, divisor, spec.out_zero_point, pieces.count(lanes))


def _fused(a, b, c):
    """``a * b + c``, rounded once."""
    return pure(dtype_of(a), f"llvm.fma.v{lanes_of(dtype_of(a))[1]}f32", a, b, c)


def tables(ib, curve: Curve, lanes: int) -> list:
    """The vectors of ``curve``'s coefficients, of the highest power first."""
    return [[literal(ib, part) for part in row.reshape(-1, lanes)] for row in curve.table[::-1]]


def evaluated(ib, curve: Curve, pieces: Pieces, spec: ConvSpec, values, rows) -> list:
    """float32 lanes -> int32 lanes: the bits of the clipped values of ``curve`` (see `curves.Curve`); rows:
    its `tables`.

    Each step is made of all ``values`` before the next is: a CPU looks ahead no further than a vector's.
    """
    dtype, keep = dtype_of(values[0]), keeper(ib)
    integers = with_lanes("int32", lanes_of(dtype)[1])

    def number(value):
        return const(float(value), dtype)

    def magnitude(x):
        return tir.reinterpret(dtype, tir.reinterpret(integers, x) & const(2**31 - 1, integers))

    highs = [keep(tir.min(magnitude(x) if curve.even else x, number(curve.far))) for x in values]
    ts = highs if curve.even else [keep(tir.max(t, number(curve.near))) for t in highs]
    shifted = [keep(fence(_fused(t, number(curve.per), number(MAGIC)))) for t in ts]
    rests = [
        keep(_fused(t, number(curve.per), number(MAGIC) - u)) for t, u in zip(ts, shifted, strict=True)
    ]
    index = [tir.reinterpret(integers, u) for u in shifted]
    made: list = []
    for parts in rows:
        chosen = [pieces.choose(parts, i) for i in index]
        if made:
            chosen = [_fused(y, r, c) for y, r, c in zip(made, rests, chosen, strict=True)]
        made = [keep(y) for y in chosen]
    if curve.slope:
        beyond = [
            tir.max(x, number(0.0)) if curve.even else x - t for x, t in zip(values, highs, strict=True)
        ]
        made = [_fused(b, number(curve.slope), y) for b, y in zip(beyond, made, strict=True)]
    shift = curves.BASE + curve.window // 2 * curves.GRAIN
    if curve.high > spec.hi - spec.out_zero_point:
        made = [tir.min(y, number(shift + spec.hi)) for y in made]
    if curve.low < spec.lo - spec.out_zero_point:
        made = [tir.max(y, number(shift + spec.lo)) for y in made]
    return [keep(tir.reinterpret(integers, y)) for y in made]


def undecided(curve: Curve, bits):
    """Whether any of the int32 lanes that `evaluated` made is too near to the middle between two steps."""
    integers = dtype_of(bits[0])
    fraction = const(2**15 - 1, integers)
    least = functools.reduce(tir.min, [x & fraction for x in bits])
    near = least < const(curve.window, integers)
    return pure("bool", f"llvm.vector.reduce.or.v{lanes_of(integers)[1]}i1", near)


def finished(ib, curve: Curve, pieces: Pieces, spec: ConvSpec, values, rows) -> list:
    """float32 lanes (see `before`) -> int32 lanes whose last 8 bits are the stored value: what ``curve``
    makes of them, and of a vector of which that is not sure, what the norm does. rows: its `tables`."""
    bits = evaluated(ib, curve, pieces, spec, values, rows)
    integers = dtype_of(bits[0])
    done = [ib.allocate("int32", lanes_of(integers)[1], name="done") for _ in bits]
    for slot, x in zip(done, bits, strict=True):
        ib.emit(slot.vstore([0], x >> const(15, integers)))
    with ib.if_scope(undecided(curve, bits)):
        for slot, x, value in zip(done, bits, values, strict=True):
            with ib.if_scope(undecided(curve, [x])):
                made = after(spec, value, None, keeper(ib))
                steps = round_to_step(made, spec.out_zero_point, spec.lo, spec.hi)
                ib.emit(slot.vstore([0], steps + const(spec.out_zero_point, integers)))
    return [slot.vload([0], integers) for slot in done]


def finish(spec: ConvSpec, acc, multiplier, other, residual, keep: Callable):
    """int32 lanes (bias added) -> the output lanes of ``spec``'s epilogue; see `unrounded`."""
    value = unrounded(spec, acc, multiplier, other, residual, keep)
    if spec.epilogue == "dequantize":
        return value
    return store_byte(round_to_step(value, spec.out_zero_point, spec.lo, spec.hi), spec.out_zero_point)
