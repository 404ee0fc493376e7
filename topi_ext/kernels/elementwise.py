"""The norm's operators of one number at a time, and of two, as TE computes; the same on every host.

Tensors are uint8 or int32 with a scale and a zero point, of any shape, the channels last; numbers are those
of `reference`'s functions, which these equal bit for bit.
"""

from __future__ import annotations

from contextlib import ExitStack
from math import prod

from .. import epilogue, function
from ..emit import Builder, extern, te, with_lanes

TAG = "broadcast"  # topi's: one number of the output reads one of each input
#: numbers from which on a copy is divided among threads
PARALLEL = 200_000
LANES = (32, 16, 8, 4, 2, 1)


def _along_last(x, i):
    """A () or (K,) tensor's value for output index ``i``."""
    return x(i[-1]) if len(x.shape) else x()


def _steps(x, zero_point):
    value = x.astype("int32")
    return value - epilogue.const(zero_point, "int32") if zero_point else value


def quantize(x, scale: float, zero_point: int, lo: int, hi: int):
    """float32 -> uint8."""

    def element(*i):
        scaled = epilogue.divide(x(*i), scale)
        return epilogue.store_byte(epilogue.round_to_step(scaled, zero_point, lo, hi), zero_point)

    return te.compute(x.shape, element, name="quantize", tag=TAG)


def requantize(x, multiplier, in_zero_point: int, zero_point: int, lo: int, hi: int, function=None):
    """uint8 or int32 -> uint8; multiplier: float32 () or (K,), or (2, K) with the second vector that the
    function reads."""

    def element(*i):
        factor, other = _factors(multiplier, function, i)
        real = _steps(x(*i), in_zero_point).astype("float32") * factor
        return epilogue.requantized(real, function, other, zero_point, lo, hi)

    return te.compute(x.shape, element, name="requantize", tag=TAG)


def _factors(multiplier, expression, i):
    if function.uses_other(expression):
        return multiplier(0, i[-1]), multiplier(1, i[-1])
    return _along_last(multiplier, i), None


def dequantize(x, scale, zero_point: int):
    """uint8 or int32 -> float32; scale: float32 () or (K,)."""

    def element(*i):
        return epilogue.fence(_steps(x(*i), zero_point).astype("float32") * _along_last(scale, i))

    return te.compute(x.shape, element, name="dequantize", tag=TAG)


def real_function(x, which: str):
    """float32 -> float32: `function.real`, in vectors, where a C library's function takes one number."""

    def element(*i):
        def of(name, value):
            return epilogue.applied((name, "x"), epilogue.fence(value))

        return function.real(which, x(*i), epilogue.LANES, of)

    return te.compute(x.shape, element, name=which, tag=TAG)


def add(a, b, a_scale: float, a_zero_point: int, b_scale: float, b_zero_point: int,
        scale: float, zero_point: int, lo: int, hi: int, function=None):  # fmt: skip
    """uint8 + uint8 -> uint8; function: of the real sum."""

    def element(*i):
        left = epilogue.real(_steps(a(*i), a_zero_point), a_scale)
        right = epilogue.real(_steps(b(*i), b_zero_point), b_scale)
        return epilogue.add_stored(left, right, scale, zero_point, lo, hi, function)

    return te.compute(a.shape, element, name="add", tag=TAG)


def mul(a, b, a_zero_point: int, b_zero_point: int, multiplier: float, zero_point: int, lo: int, hi: int):
    """uint8 * uint8 -> uint8; dimensions of ``b`` may be 1."""
    gate = [int(d) == 1 for d in b.shape]

    def element(*i):
        j = [0 if one else x for one, x in zip(gate, i, strict=True)]
        product = _steps(a(*i), a_zero_point) * _steps(b(*j), b_zero_point)
        real = product.astype("float32") * epilogue.const(multiplier, "float32")
        return epilogue.store_byte(epilogue.round_to_step(real, zero_point, lo, hi), zero_point)

    return te.compute(a.shape, element, name="mul", tag=TAG)


def join(*tensors):
    """Tensors one behind the other along the last axis, each copied by vectors. A loop that asks at every
    number which tensor it is of took 13 times as long."""
    *shape, _ = (int(d) for d in tensors[0].shape)
    sizes = [int(x.shape[-1]) for x in tensors]

    def body(parts, out):
        builder, at = Builder(), 0
        with ExitStack() as loops:
            large = prod(shape) * sum(sizes) > PARALLEL
            first = next((i for i, size in enumerate(shape) if size > 1), 0)
            index = [
                loops.enter_context(
                    builder.for_range(0, size, f"i{i}", "parallel" if large and i == first else "serial")
                )
                for i, size in enumerate(shape)
            ]
            for part, size in zip(parts, sizes, strict=True):
                lanes = next(n for n in LANES if size % n == 0)
                with builder.for_range(0, size // lanes, "c") as c:
                    vector = part.vload([*index, c * lanes], with_lanes(str(part.dtype), lanes))
                    builder.emit(out.vstore([*index, c * lanes + at], vector))
                at += size
        return builder.get()

    whole = (*shape, sum(sizes))
    return extern(whole, list(tensors), body, str(tensors[0].dtype), "join", "easyquant_join")
