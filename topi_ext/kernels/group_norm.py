"""Group normalization of what stays float, channels first or last, as one function on any CPU.

By the mean and the variance of each group of channels, in three passes over what is in a near cache: the
sum, the sum of the squares of what the mean leaves, the output. The first is of what a group's first number
leaves, so that numbers far from zero keep their spread. A sum is kept in as many lanes as hide the latency
of an add.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from ..emit import const, dtype_of, extern, tir, with_lanes
from .vectors import LANES, Vectors

#: rows of a map that are summed beside each other, where the channels are last
ROWS = 4


def group_norm(x, scale, bias, groups: int, epsilon: float, last: bool = False):
    """float32 (N, C, ...) -> the same, each of ``groups`` groups of channels of mean 0 and variance 1, then
    times ``scale`` plus ``bias``, both float32 (C,). With ``last`` of (N, ..., C)."""
    shape = tuple(int(d) for d in x.shape)
    made = (_Last if last else _First)(shape, groups, epsilon)
    return extern(shape, [x, scale, bias], made.body, "float32", "group_norm", "easyquant_group_norm")


class _Norm(Vectors):
    """What both layouts share."""

    def __init__(self, shape: tuple[int, ...], groups: int, epsilon: float):
        super().__init__(shape)
        self.groups, self.epsilon = groups, epsilon

    def inverse(self, squares, count: int):
        """1 / the standard deviation, of a sum of squares."""
        variance = squares / const(float(count), "float32") + const(self.epsilon, "float32")
        return const(1.0, "float32") / tir.sqrt(variance)


class _First(_Norm):
    """A group is one run of numbers, a channel a part of it."""

    def body(self, ins, out):
        self.x, scale, bias = ins
        n, channels, *spatial = self.shape
        size, each = prod(spatial), channels // self.groups
        run = each * size
        with self.ib.for_range(0, n * self.groups, "group", self.kind) as row:
            first = self.cell(self.x.vload(self.at(row * run), "float32"), "first")
            total = self.sum(row * run, run, lambda v, lanes, first=first: v - first(lanes))
            mean = self.cell(first() + total / const(float(run), "float32"), "mean")
            squares = self.sum(row * run, run, lambda v, lanes, mean=mean: _square(v - mean(lanes)))
            inverse = self.cell(self.inverse(squares, run), "inverse")
            with self.ib.for_range(0, each, "channel") as c:
                channel = row % self.groups * each + c
                factor = self.cell(scale.vload([channel], "float32") * inverse(), "factor")
                plus = self.cell(bias.vload([channel], "float32"), "plus")

                def store(place, lanes, start=row * run + c * size, mean=mean, factor=factor, plus=plus):
                    at = self.at(start + place)
                    centred = self.x.vload(at, with_lanes("float32", lanes)) - mean(lanes)
                    self.ib.emit(out.vstore(at, centred * factor(lanes) + plus(lanes)))

                self.over(size, store)
        return self.ib.get()

    def sum(self, start, count: int, of: Callable):
        """Of ``of(numbers, lanes)`` of so many numbers from a place on."""

        def value(place, lanes):
            return of(self.x.vload(self.at(start + place), with_lanes("float32", lanes)), lanes)

        return self.all_of(count, value, const(0.0, "float32"))


class _Last(_Norm):
    """Vectors of channels, a few rows of the map beside each other."""

    def body(self, ins, out):
        self.x, scale, bias = ins
        n, *spatial, channels = self.shape
        self.rows, self.each = prod(spatial), channels // self.groups
        each = self.each
        with self.ib.for_range(0, n, "n", self.kind if n > 1 else "serial") as image:
            mean, factor = (self.ib.allocate("float32", channels, name) for name in ("mean", "factor"))
            self.start = image * (self.rows * channels)
            numbers = const(float(each * self.rows), "float32")
            self.spread(mean, lambda c: self.x.vload(self.at(self.start + c), "float32"))
            self.sums(factor, lambda v, c: v - mean.vload([c], dtype_of(v)))
            self.spread(mean, lambda c: mean.vload([c], "float32") + self.total(factor, c) / numbers)
            self.sums(factor, lambda v, c: _square(v - mean.vload([c], dtype_of(v))))
            self.spread(factor, lambda c: self.inverse(self.total(factor, c), each * self.rows))

            def scaled(c, lanes):
                wide = with_lanes("float32", lanes)
                self.ib.emit(factor.vstore([c], factor.vload([c], wide) * scale.vload([c], wide)))

            self.over(channels, scaled)
            with self.ib.for_range(0, self.rows, "row", self.kind if n == 1 else "serial") as row:

                def store(c, lanes, row=row):
                    at, wide = self.at(self.start + row * channels + c), with_lanes("float32", lanes)
                    centred = self.x.vload(at, wide) - mean.vload([c], wide)
                    self.ib.emit(out.vstore(at, centred * factor.vload([c], wide) + bias.vload([c], wide)))

                self.over(channels, store)
        return self.ib.get()

    def sums(self, into, of: Callable):
        """``of(numbers, first channel)``, summed for each channel."""
        channels = self.shape[-1]

        def block(c, lanes):
            wide = with_lanes("float32", lanes)
            acc = self.ib.allocate("float32", ROWS * lanes, "acc")
            for i in range(ROWS):
                self.ib.emit(acc.vstore([i * lanes], const(0.0, wide)))

            def add(row, i):
                value = of(self.x.vload(self.at(self.start + row * channels + c), wide), c)
                self.ib.emit(acc.vstore([i * lanes], acc.vload([i * lanes], wide) + value))

            with self.ib.for_range(0, self.rows // ROWS, "rows") as rows:
                for i in range(ROWS):
                    add(rows * ROWS + i, i)
            for i in range(self.rows % ROWS):
                add(self.rows // ROWS * ROWS + i, i)
            a, b, *rest = (acc.vload([i * lanes], wide) for i in range(ROWS))
            self.ib.emit(into.vstore([c], (a + b) + (rest[0] + rest[1])))

        self.over(channels, block, LANES // 2)

    def spread(self, into, of: Callable):
        """``of(first channel)`` of each group, for each of its channels."""
        with self.ib.for_range(0, self.groups, "group") as group:
            value = self.cell(of(group * self.each), "value")
            with self.ib.for_range(0, self.each, "c") as c:
                self.ib.emit(into.vstore([group * self.each + c], value()))

    def total(self, sums, first):
        """Of the group that begins at a channel."""
        total = self.ib.allocate("float32", 1, "total")
        self.ib.emit(total.vstore([0], const(0.0, "float32")))
        with self.ib.for_range(0, self.each, "c") as c:
            one = sums.vload([first + c], "float32")
            self.ib.emit(total.vstore([0], total.vload([0], "float32") + one))
        return total.vload([0], "float32")


def _square(x):
    return x * x
