"""The norm's operators of one number at a time, and of two, as TE computes; the same on every host.

Tensors are uint8 or int32 with a scale and a zero point, of any shape, the channels last; numbers are those
of `reference`'s functions, which these equal bit for bit.
"""

from __future__ import annotations

from contextlib import ExitStack
from math import prod

from .. import epilogue, function
from ..emit import Builder, extern, once, te, tir, with_lanes

TAG = "broadcast"  # topi's: one number of the output reads one of each input
#: numbers from which on a copy is divided among threads
PARALLEL = 200_000
LANES = (32, 16, 8, 4, 2, 1)
IMAGE_LANES = (16, 8, 4)
#: the most groups of a shuffle, of which each is a vector in a register
GROUPS = 8


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


#: channels of an image, too few for a vector of them
FEW = 4


def is_image(shape, axes) -> bool:
    """Whether `image` does for a transpose by ``axes`` of what is quantized of such a ``shape``."""
    return tuple(axes) == (0, 2, 3, 1) and 1 < shape[1] <= FEW and shape[3] >= min(IMAGE_LANES)


def image(x, scale: float, zero_point: int, lo: int, hi: int):
    """float32 NCHW of a few channels -> uint8 NHWC: `quantize`, and the order of a picture.

    Vectors along the rows of each channel, whose lanes are mixed; the last of a row may begin before the
    one before it ends. TVM's loop over the channels reads and divides one number at a time, which took four
    times as long."""
    n, channels, height, width = (int(d) for d in x.shape)
    lanes = next(count for count in IMAGE_LANES if count <= width)
    mixed = [channel * lanes + i for i in range(lanes) for channel in range(channels)]
    real, byte = with_lanes("float32", lanes), with_lanes("uint8", lanes)

    def body(ins, out):
        builder = Builder()

        def block(batch, y, first):
            stored = []
            for channel in range(channels):
                scaled = epilogue.divide(ins[0].vload([batch, channel, y, first], real), scale)
                steps = epilogue.round_to_step(scaled, zero_point, lo, hi)
                kept = builder.allocate("uint8", lanes, name="kept")
                builder.emit(kept.vstore([0], epilogue.store_byte(steps, zero_point)))
                stored.append(kept.vload([0], byte))
            builder.emit(out.vstore([batch, y, first, 0], tir.Shuffle(stored, mixed)))

        kind = "parallel" if prod((n, channels, height, width)) > PARALLEL else "serial"
        with builder.for_range(0, n * height, "row", kind) as row:
            with builder.for_range(0, width // lanes, "part") as part:
                block(row // height, row % height, part * lanes)
            if width % lanes:
                block(row // height, row % height, width - lanes)
        return builder.get()

    return extern((n, height, width, channels), [x], body, "uint8", "image", "easyquant_image")


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

        # what makes x is written into this, which reads it often
        return once(x(*i), lambda value: function.real(which, value, epilogue.LANES, of))

    return te.compute(x.shape, element, name=which, tag=TAG)


#: join -> its operator on float32
JOINS = {"add": lambda a, b: a + b, "sub": lambda a, b: a - b, "max": tir.max, "min": tir.min}


def _two(op: str, a, b, a_scale: float, a_zero_point: int, b_scale: float, b_zero_point: int,
         scale: float, zero_point: int, lo: int, hi: int, function=None):  # fmt: skip
    """Two uint8 tensors -> uint8, by an operator of `JOINS`; dimensions of one of them may be 1. function:
    of the real number that it makes."""
    full = a if _size(a) >= _size(b) else b

    def element(*i):
        left = epilogue.real(_steps(_broadcast(a, i), a_zero_point), a_scale)
        right = epilogue.real(_steps(_broadcast(b, i), b_zero_point), b_scale)
        return epilogue.stored(JOINS[op](left, right), scale, zero_point, lo, hi, function)

    return te.compute(full.shape, element, name=op, tag=TAG)


def add(a, b, *numbers, **more):
    """uint8 + uint8 -> uint8: `reference.join`."""
    return _two("add", a, b, *numbers, **more)


def sub(a, b, *numbers, **more):
    """uint8 - uint8 -> uint8: `reference.join`."""
    return _two("sub", a, b, *numbers, **more)


def maximum(a, b, *numbers, **more):
    """The larger of two, uint8 -> uint8: `reference.join`."""
    return _two("max", a, b, *numbers, **more)


def minimum(a, b, *numbers, **more):
    """The smaller of two, uint8 -> uint8: `reference.join`."""
    return _two("min", a, b, *numbers, **more)


def _size(x) -> int:
    return prod(int(d) for d in x.shape)


def _broadcast(x, i):
    """A tensor's value for output index ``i``, where its dimensions may be 1."""
    return x(*(0 if int(d) == 1 else one for d, one in zip(x.shape, i, strict=True)))


def mul(a, b, a_zero_point: int, b_zero_point: int, multiplier: float, zero_point: int, lo: int, hi: int):
    """uint8 * uint8 -> uint8; dimensions of ``b`` may be 1."""

    def element(*i):
        product = _steps(a(*i), a_zero_point) * _steps(_broadcast(b, i), b_zero_point)
        real = product.astype("float32") * epilogue.const(multiplier, "float32")
        return epilogue.store_byte(epilogue.round_to_step(real, zero_point, lo, hi), zero_point)

    return te.compute(a.shape, element, name="mul", tag=TAG)


def total(x, zero_point: int):
    """uint8 (N, H, W, C) -> int32 (N, 1, 1, C): the sum of the steps over the map, as an average pool needs
    it, by vectors of channels. TVM sums one number at a time."""
    n, h, w, channels = (int(d) for d in x.shape)
    lanes = next(count for count in LANES if channels % count == 0)
    wide = with_lanes("int32", lanes)

    def body(ins, out):
        builder = Builder()
        with builder.for_range(0, n, "n") as i, builder.for_range(0, channels // lanes, "c") as c:
            acc = builder.allocate("int32", lanes, name="acc")
            builder.emit(acc.vstore([0], epilogue.const(-h * w * zero_point, wide)))
            with builder.for_range(0, h, "y") as y, builder.for_range(0, w, "x") as across:
                steps = ins[0].vload([i, y, across, c * lanes], with_lanes("uint8", lanes)).astype(wide)
                builder.emit(acc.vstore([0], acc.vload([0], wide) + steps))
            builder.emit(out.vstore([i, 0, 0, c * lanes], acc.vload([0], wide)))
        return builder.get()

    return extern((n, 1, 1, channels), [x], body, "int32", "total", "easyquant_total")


def shuffled_groups(places) -> int | None:
    """Into how many groups channels were divided whose order ``places`` is that of a channel shuffle: the
    first of each group, the second of each, ...; None of another order, or of more groups than `GROUPS`."""
    channels = len(places)
    for groups in range(2, min(GROUPS, channels // 2) + 1):
        if channels % groups == 0 and list(places) == [
            group * (channels // groups) + i for i in range(channels // groups) for group in range(groups)
        ]:
            return groups
    return None


def shuffle(x, groups: int):
    """A channel shuffle: the first channel of each group, the second of each, ... (`shuffled_groups`).

    Vectors of every group are loaded and their lanes mixed; the last of a group may begin before the one
    before it ends. TVM's own loop moves byte by byte, which took as long as a 1x1 convolution."""
    *shape, channels = (int(d) for d in x.shape)
    size = channels // groups
    lanes = next(n for n in LANES if n <= size)
    mixed = [group * lanes + i for i in range(lanes) for group in range(groups)]

    def body(parts, out):
        (data,) = parts
        builder, dtype = Builder(), with_lanes(str(x.dtype), lanes)

        def block(index, c):
            vectors = [data.vload([*index, group * size + c], dtype) for group in range(groups)]
            builder.emit(out.vstore([*index, c * groups], tir.Shuffle(vectors, mixed)))

        with ExitStack() as loops:
            large = prod(shape) * channels > PARALLEL
            first = next((i for i, n in enumerate(shape) if n > 1), 0)
            index = [
                loops.enter_context(
                    builder.for_range(0, n, f"i{i}", "parallel" if large and i == first else "serial")
                )
                for i, n in enumerate(shape)
            ]
            with builder.for_range(0, size // lanes, "c") as c:
                block(index, c * lanes)
            if size % lanes:
                block(index, size - lanes)
        return builder.get()

    return extern((*shape, channels), [x], body, str(x.dtype), "shuffle", "easyquant_shuffle")


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
