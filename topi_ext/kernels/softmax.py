"""Softmax of what stays float, along any axis, as one function on any CPU.

Three passes over what is in a near cache: the largest, the exponentials and their sum, the quotients, by
the reciprocal of the sum. ``exp`` is the norm's (`function.real`), so that it is vectors, and the same
everywhere.
"""

from __future__ import annotations

from math import prod

from .. import epilogue, function
from ..emit import const, extern, once, tir, with_lanes
from .vectors import Vectors

#: lanes of an exponential: what it computes on the way stays in registers
WIDEST = 16


def softmax(x, axis: int):
    """float32 -> the same shape: ``exp(x) / sum(exp(x))`` along an axis, without overflow."""
    shape = tuple(int(d) for d in x.shape)
    kind = _Last if prod(shape[axis + 1 :]) == 1 else _Before
    return extern(shape, [x], kind(shape, axis).body, "float32", "softmax", "easyquant_softmax")


def _exp(x):
    def of(name, value):
        return epilogue.applied((name, "x"), epilogue.fence(value))

    return once(x, lambda value: function.real("exp", value, epilogue.LANES, of))


class _Softmax(Vectors):
    def __init__(self, shape: tuple[int, ...], axis: int):
        super().__init__(shape)
        self.size, self.inner = shape[axis], prod(shape[axis + 1 :])


class _Last(_Softmax):
    """Of rows."""

    def body(self, ins, out):
        (x,), size = ins, self.size
        with self.ib.for_range(0, prod(self.shape) // size, "row", self.kind) as row:
            start = row * size

            def number(place, lanes, start=start):
                return x.vload(self.at(start + place), with_lanes("float32", lanes))

            first = x.vload(self.at(start), "float32")
            largest = self.cell(self.all_of(size, number, first, tir.max), "largest")

            def power(place, lanes, start=start, largest=largest, number=number):
                made = _exp(number(place, lanes) - largest(lanes))
                at = self.at(start + place)
                self.ib.emit(out.vstore(at, made))
                return out.vload(at, with_lanes("float32", lanes))

            total = self.all_of(size, power, const(0.0, "float32"), widest=WIDEST)
            share = self.cell(const(1.0, "float32") / total, "share")

            def store(place, lanes, start=start, share=share):
                at = self.at(start + place)
                self.ib.emit(out.vstore(at, out.vload(at, with_lanes("float32", lanes)) * share(lanes)))

            self.over(size, store)
        return self.ib.get()


class _Before(_Softmax):
    """Vectors along the axes behind it."""

    def body(self, ins, out):
        (x,) = ins
        whole = self.size * self.inner
        with self.ib.for_range(0, prod(self.shape) // whole, "outer", self.kind) as outer:

            def block(place, lanes, outer=outer):
                wide = with_lanes("float32", lanes)

                def at(i):
                    return self.at(outer * whole + i * self.inner + place)

                acc = self.ib.allocate("float32", lanes, "acc")
                self.ib.emit(acc.vstore([0], x.vload(at(0), wide)))
                with self.ib.for_range(0, self.size, "i") as i:
                    self.ib.emit(acc.vstore([0], tir.max(acc.vload([0], wide), x.vload(at(i), wide))))
                largest = self.cell(acc.vload([0], wide), "largest")
                self.ib.emit(acc.vstore([0], const(0.0, wide)))
                with self.ib.for_range(0, self.size, "i") as i:
                    self.ib.emit(out.vstore(at(i), _exp(x.vload(at(i), wide) - largest())))
                    self.ib.emit(acc.vstore([0], acc.vload([0], wide) + out.vload(at(i), wide)))
                share = self.cell(const(1.0, wide) / acc.vload([0], wide), "share")
                with self.ib.for_range(0, self.size, "i") as i:
                    self.ib.emit(out.vstore(at(i), out.vload(at(i), wide) * share()))

            self.over(self.inner, block, WIDEST)
        return self.ib.get()
