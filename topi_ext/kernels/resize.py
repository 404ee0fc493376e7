"""Linear resizing of maps NHWC, as `reference.resize_linear` says it: two passes, the channels in vectors.

Along the height each output row is a sum of two input rows, which stays beside; along the width a pixel is
a sum of two of its pixels, which is finished at once: an integer in int16 where all sums fit, and
requantized.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from .. import epilogue, function
from ..emit import Builder, const, dtype_of, extern, lanes_of, tir, with_lanes
from .elementwise import LANES, PARALLEL

#: numbers of the widest vector of channels; what is left over takes smaller ones
WIDE = 16


def resize_linear(
    data, rows, columns, multiplier, parts: tuple[int, int], in_zero_point: int,
    zero_point: int = 0, lo: int = 0, hi: int = 255, function=None, dequantize: bool = False,
):  # fmt: skip
    """uint8 (N, H, W, C) -> uint8 (N, OH, OW, C), or float32 with ``dequantize``.

    rows: int32 (OH, 3): of each new row the two old ones, and how many parts of ``parts[0]`` it has of the
    second; columns: the same (OW, 3). multiplier: float32 (1, C) of what a part of all is, or (2, C) with
    the second vector that the function reads.
    """
    kind = "int16" if 255 * parts[0] * parts[1] < 2**15 else "int32"

    def finish(acc, at, factors):
        acc = acc.astype(with_lanes("int32", lanes_of(dtype_of(acc))[1]))
        if in_zero_point:
            acc = acc - const(in_zero_point * parts[0] * parts[1], dtype_of(acc))
        return _finish(acc, factors, at, function, (zero_point, lo, hi), dequantize)

    def weights(table, i, which, *_):
        share = table.vload([i, 2], "int32")
        return [(const(parts[which], "int32") - share).astype(kind), share.astype(kind)]

    out = "float32" if dequantize else "uint8"
    return _passes(data, rows, columns, [multiplier], kind, out, weights, finish)


def resize_real(data, rows, columns, down, across):
    """float32 (N, H, W, C) -> (N, OH, OW, C); rows, columns: as above; down, across: float32 (OH, 2) and
    (OW, 2), the weights of the two. Each product and each sum is rounded by itself."""

    def weights(table, i, which, *tables):
        return [tables[which].vload([i, j], "float32") for j in (0, 1)]

    return _passes(
        data, rows, columns, [down, across], "float32", "float32", weights, lambda acc, at, *_: acc
    )


def _passes(data, rows, columns, more, kind: str, dtype: str, weights: Callable, finish: Callable):
    """The loops: sums of ``kind`` become ``dtype``. weights(table, place, pass, *more): of its two;
    finish(lanes, channel, *more): what is stored."""
    n, _, width, channels = (int(d) for d in data.shape)
    made = (n, int(rows.shape[0]), int(columns.shape[0]), channels)

    def body(ins, out):
        source, down, across, *rest = ins
        builder, large = Builder(), prod(made) > PARALLEL
        with (
            builder.for_range(0, n, "n", "parallel" if large and n > 1 else "serial") as image,
            builder.for_range(0, made[1], "y", "parallel" if large and n == 1 else "serial") as y,
        ):
            row = builder.allocate(kind, width * channels, "row")
            builder.whole(row)
            pair, factors = _pair(down, y), weights(down, y, 0, *rest)
            with builder.for_range(0, width, "w") as x:
                for at, lanes in _vectors(channels):
                    read = with_lanes(str(source.dtype), lanes)
                    vectors = [
                        source.vload([image, i, x, at], read).astype(with_lanes(kind, lanes)) for i in pair
                    ]
                    builder.emit(row.vstore([x * channels + at], _weighed(vectors, factors)))
            with builder.for_range(0, made[2], "x") as x:
                pair, factors = _pair(across, x), weights(across, x, 1, *rest)
                for at, lanes in _vectors(channels):
                    vectors = [row.vload([i * channels + at], with_lanes(kind, lanes)) for i in pair]
                    builder.emit(
                        out.vstore([image, y, x, at], finish(_weighed(vectors, factors), at, *rest))
                    )
        return builder.get()

    return extern(made, [data, rows, columns, *more], body, dtype, "resize_linear", "easyquant_resize")


def _vectors(count: int) -> list[tuple[int, int]]:
    """(first, lanes) of the vectors that cover ``count`` channels."""
    found, at = [], 0
    for lanes in (lanes for lanes in LANES if lanes <= WIDE):
        while count - at >= lanes:
            found.append((at, lanes))
            at += lanes
    return found


def _pair(table, i):
    return [table.vload([i, j], "int32") for j in (0, 1)]


def _weighed(vectors, weights):
    """Lanes: the sum of two vectors, each times its number."""
    lanes = lanes_of(dtype_of(vectors[0]))[1]
    weights = weights if lanes == 1 else [tir.Broadcast(weight, lanes) for weight in weights]
    first, second = (vector * weight for vector, weight in zip(vectors, weights, strict=True))
    if dtype_of(first).startswith("float"):
        first, second = map(epilogue.fence, (first, second))
    return first + second


def _finish(acc, factors, at: int, expression, numbers, dequantize: bool):
    """int32 lanes, less the zero point -> lanes of the output."""
    real = with_lanes("float32", lanes_of(dtype_of(acc))[1])
    scaled = acc.astype(real) * factors.vload([0, at], real)
    if dequantize:
        return epilogue.fence(scaled)
    other = factors.vload([1, at], real) if function.uses_other(expression) else None
    return epilogue.requantized(scaled, expression, other, *numbers)
