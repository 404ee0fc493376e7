"""From int32 accumulators to the stored output, as TIR vector expressions; the same for every kernel.

Every operation is one IEEE float32 operation of the norm (`reference`), but for the residual add, which has
`proofs.merged_scales` where they are proved the same. Three things would break that:

* TVM rewrites ``x / constant`` to a multiplication; `divide` keeps the division.
* LLVM contracts ``a * b + c`` to a fused multiply-add under TVM's options. Only adds have that shape; their
  products pass through ``llvm.arithmetic.fence``, which stops the contraction, or are proved to bear it.
* ``nearbyint`` does not vectorise. Adding 1.5 * 2**23 rounds to nearest even in the adder; it is right
  for |x| < 2**22, so the clip to a byte's range comes first.
"""

from __future__ import annotations

import numpy as np

from .emit import const, dtype_of, lanes_of, pure, tir, with_lanes
from .problem import ConvSpec
from .proofs import merged_scales

MAGIC = 12582912.0  # 1.5 * 2**23
MAGIC_BITS = 0x4B400000


def fence(x):
    """``x``, hidden from floating-point contraction."""
    return pure(dtype_of(x), "llvm.arithmetic.fence", x)


def divide(x, divisor: float):
    """``x / divisor``, a true division: TVM would turn a literal divisor into a multiplication by its
    reciprocal, which rounds differently, so the divisor is given as its bits."""
    base_lanes = lanes_of(dtype_of(x))[1]
    bits = int(np.float32(divisor).view(np.int32))
    return x / tir.reinterpret(dtype_of(x), const(bits, with_lanes("int32", base_lanes)))


def _shifted(x, lo, hi):
    """``clip(rint(x), lo, hi)`` + MAGIC, in float32 lanes."""
    clipped = tir.max(tir.min(x, const(float(hi), dtype_of(x))), const(float(lo), dtype_of(x)))
    return clipped + const(MAGIC, dtype_of(x))


def rounded(x, lo, hi):
    """float32 lanes -> float32 lanes: ``clip(rint(x), lo, hi)``."""
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


def add_stored(a, b, out_scale, zero_point, lo, hi):
    """Two float32 tensors -> uint8: ``quantize(a + b)``, with a true division."""
    total = divide(a + b, out_scale)
    return store_byte(round_to_step(total, zero_point, lo, hi), zero_point)


def unrounded(spec: ConvSpec, acc, multiplier, residual=None):
    """int32 lanes (bias added) -> float32 lanes: what ``spec``'s epilogue rounds last.

    multiplier: float32 lanes; residual: uint8 lanes for the add epilogue.
    """
    scaled = acc.astype(dtype_of(multiplier)) * multiplier
    r = spec.residual
    if r is None:
        return scaled
    own = rounded(scaled, r.own_lo - r.own_zero_point, r.own_hi - r.own_zero_point)
    other = residual.astype(dtype_of(acc)) - const(r.zero_point, dtype_of(acc))
    other = other.astype(dtype_of(multiplier))
    factors = merged_scales(r, spec.out_zero_point, spec.lo, spec.hi)
    if factors is not None:
        a, b = (const(float(factor), dtype_of(multiplier)) for factor in factors)
        return own * a + other * b
    own, other = real(own, r.own_scale), real(other, r.scale)
    return divide(own + other if r.own_first else other + own, r.out_scale)


def finish(spec: ConvSpec, acc, multiplier, residual=None):
    """int32 lanes (bias added) -> the output lanes of ``spec``'s epilogue; see `unrounded`."""
    value = unrounded(spec, acc, multiplier, residual)
    if spec.epilogue == "dequantize":
        return value
    return store_byte(round_to_step(value, spec.out_zero_point, spec.lo, spec.hi), spec.out_zero_point)
