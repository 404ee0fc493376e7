"""Runs of numbers of any length as vectors, for kernels that are statements."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from operator import add

from ..emit import Builder, dtype_of, lanes_of, part, tir, with_lanes
from .elementwise import PARALLEL

#: lanes of a sum: four vectors of AVX2, which hide the latency of an add
LANES = 32


class Vectors:
    """Statements on tensors of one shape. They are contiguous: a place is one index, behind zeros."""

    def __init__(self, shape: tuple[int, ...]):
        self.shape, self.ib = shape, Builder()
        self.kind = "parallel" if prod(shape) > PARALLEL else "serial"

    def at(self, place):
        return [*[0] * (len(self.shape) - 1), place]

    def over(self, count: int, body: Callable, widest: int = LANES):
        """body(place, lanes) of the vectors that cover so many numbers."""
        at, lanes = 0, widest
        while at < count:
            times = (count - at) // lanes
            if times:
                with self.ib.for_range(0, times, "i") as i:
                    body(i * lanes + at, lanes)
            at, lanes = at + times * lanes, lanes // 2

    def cell(self, value, name: str):
        """A number or a vector that is computed once, as a function of the lanes a number is wanted in."""
        dtype, count = dtype_of(value), lanes_of(dtype_of(value))[1]
        buffer = self.ib.allocate(lanes_of(dtype)[0], count, name)
        self.ib.emit(buffer.vstore([0], value))
        return lambda lanes=count: wide(buffer.vload([0], dtype), lanes // count)

    def all_of(self, count: int, value: Callable, start, join: Callable = add, widest: int = LANES):
        """``value(place, lanes)`` of so many numbers, joined; start: a number that changes nothing."""
        lanes = min(widest, 1 << (count.bit_length() - 1))
        base, most = dtype_of(start), with_lanes(dtype_of(start), lanes)
        acc = self.ib.allocate(base, lanes, "acc")
        self.ib.emit(acc.vstore([0], wide(start, lanes)))

        def take(place, lanes):
            made = join(acc.vload([0], with_lanes(base, lanes)), value(place, lanes))
            self.ib.emit(acc.vstore([0], made))

        self.over(count, take, lanes)
        made = acc.vload([0], most)
        while lanes > 1:
            lanes //= 2
            made = join(part(made, 0, lanes), part(made, lanes, lanes))
        return made


def wide(x, lanes: int):
    return x if lanes == 1 else tir.Broadcast(x, lanes)
