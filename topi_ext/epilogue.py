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

from collections import Counter
from collections.abc import Callable

import numpy as np

from . import function
from .emit import const, dtype_of, lanes_of, pure, tir, with_lanes
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
    scaled = acc.astype(dtype_of(multiplier)) * multiplier
    r = spec.residual
    if r is None:
        return scaled if spec.function is None else applied(spec.function, fence(scaled), other, keep)
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
    if spec.function is not None:
        total = applied(spec.function, total, keep=keep)
    return divide(total, r.out_scale)


def finish(spec: ConvSpec, acc, multiplier, other, residual, keep: Callable):
    """int32 lanes (bias added) -> the output lanes of ``spec``'s epilogue; see `unrounded`."""
    value = unrounded(spec, acc, multiplier, other, residual, keep)
    if spec.epilogue == "dequantize":
        return value
    return store_byte(round_to_step(value, spec.out_zero_point, spec.lo, spec.hi), spec.out_zero_point)
