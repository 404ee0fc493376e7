"""Layer normalization of stored tensors as one function on any CPU: `reference.layer_norm`, quantized.

Two exact sums over the channels of a pixel, then what is made of them, in vectors of channels.
"""

from __future__ import annotations

from math import prod

from .. import epilogue
from ..emit import const, extern, tir, with_lanes
from .vectors import Vectors


def layer_norm(x, gain, shift, epsilon: float, scale: float, zero_point: int, lo: int, hi: int):
    """uint8 (..., C) -> uint8; gain, shift: float32 (C,); scale and what follows: of the output."""
    shape = tuple(int(d) for d in x.shape)
    made = _Norm(shape, epsilon, (scale, zero_point, lo, hi))
    return extern(shape, [x, gain, shift], made.body, "uint8", "layer_norm", "easyquant_layer_norm")


class _Norm(Vectors):
    def __init__(self, shape: tuple[int, ...], epsilon: float, stored: tuple):
        super().__init__(shape)
        self.epsilon, self.stored = epsilon, stored

    def body(self, ins, out):
        x, gain, shift = ins
        channels, zero = self.shape[-1], const(0, "int32")
        with self.ib.for_range(0, prod(self.shape[:-1]), "pixel", self.kind) as pixel:
            start = pixel * channels

            def number(place, lanes, start=start):
                stored = x.vload(self.at(start + place), with_lanes("uint8", lanes))
                return stored.astype(with_lanes("int32", lanes))

            def square(place, lanes, number=number):
                value = number(place, lanes)
                return value * value

            total = self.cell(self.all_of(channels, number, zero), "total")
            squares = self.cell(self.all_of(channels, square, zero), "squares")
            wide = total().astype("int64")
            spread = squares().astype("int64") * const(channels, "int64") - wide * wide
            root = tir.sqrt(spread.astype("float32") + const(self.epsilon, "float32"))
            inverse = self.cell(const(1.0, "float32") / root, "inverse")

            def store(place, lanes, start=start, number=number, total=total, inverse=inverse):
                real = with_lanes("float32", lanes)
                times = const(channels, with_lanes("int32", lanes))
                centred = (number(place, lanes) * times - total(lanes)).astype(real)
                scaled = epilogue.fence(centred * inverse(lanes)) * gain.vload([place], real)
                made = epilogue.fence(scaled) + shift.vload([place], real)
                self.ib.emit(out.vstore(self.at(start + place), epilogue.stored(made, *self.stored)))

            self.over(channels, store)
        return self.ib.get()
