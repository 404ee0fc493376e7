"""Linear resizing of a map's rows and columns: what of which of them a new one is, as exact fractions.

A runtime computes where a new place lies among the old ones in float32. Here it is a ratio, so that
integers can be weighed by integers: a place is two neighbours, each so many of ``denominator`` parts.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from math import lcm
from typing import Any, NamedTuple

import numpy as np

#: the steps of a stored number, from its zero point, at most
STEPS = 255
#: ratios of a factor that is given as a float32 are looked for up to this denominator
LARGEST = 4096


class Taps(NamedTuple):
    """Of each new place along an axis, int64 (made,): it is ``denominator - share`` parts of the old place
    ``first`` and ``share`` parts of ``second``, of ``denominator`` together."""

    first: np.ndarray
    second: np.ndarray
    share: np.ndarray
    denominator: int

    @property
    def table(self) -> np.ndarray:
        """int32 (made, 3): the two places and the share, as a kernel reads them."""
        return np.stack([self.first, self.second, self.share], axis=1).astype(np.int32)

    @property
    def weights(self) -> np.ndarray:
        """float32 (made, 2): what the two count in a float runtime."""
        parts = np.stack([self.denominator - self.share, self.share], axis=1)
        return (parts / self.denominator).astype(np.float32)

    def matrix(self, size: int) -> np.ndarray:
        """float32 (size, made): what of each of ``size`` old places is in a new one."""
        found, made = np.zeros((size, len(self.first)), np.float32), np.arange(len(self.first))
        for places, weights in zip((self.first, self.second), self.weights.T, strict=True):
            np.add.at(found, (places, made), weights)
        return found


#: ONNX's coordinate_transformation_mode -> where the new place i lies: (i, old size, new size, factor)
MODES: dict[str, Callable[[int, int, int, Fraction], Fraction]] = {
    "half_pixel": lambda i, size, made, scale: (i + Fraction(1, 2)) / scale - Fraction(1, 2),
    "pytorch_half_pixel": lambda i, size, made, scale: (
        (i + Fraction(1, 2)) / scale - Fraction(1, 2) if made > 1 else Fraction(0)
    ),
    "align_corners": lambda i, size, made, scale: Fraction(i * (size - 1), max(made - 1, 1)),
    "asymmetric": lambda i, size, made, scale: i / scale,
}


@lru_cache(maxsize=256)
def taps(mode: str, size: int, made: int, scale: tuple[int, int]) -> Taps:
    """Of an axis of ``size`` places that becomes one of ``made``; scale: numerator and denominator of the
    factor that the coordinates go by."""
    factor = Fraction(*scale)
    places = [
        min(max(MODES[mode](i, size, made, factor), Fraction(0)), Fraction(size - 1)) for i in range(made)
    ]
    first = [place.numerator // place.denominator for place in places]
    rest = [place - whole for place, whole in zip(places, first, strict=True)]
    denominator = lcm(*(part.denominator for part in rest))
    share = [int(part * denominator) for part in rest]
    low = np.array(first, np.int64)
    return Taps(low, np.minimum(low + 1, size - 1), np.array(share, np.int64), denominator)


def ratio(scale: float, size: int, made: int) -> tuple[int, int]:
    """The factor that a model gives as a float32, from ``size`` to ``made`` places: a ratio of small
    numbers that is the same float32, if there is one, else its own."""
    exact = Fraction(float(np.float32(scale)))
    for found in (Fraction(made, size), exact.limit_denominator(LARGEST)):
        if np.float32(float(found)) == np.float32(scale):
            return found.numerator, found.denominator
    return exact.numerator, exact.denominator


def taps_of(attrs: Any) -> tuple[Taps, Taps]:
    """Those of the rows and of the columns of a ``resize_linear``, by its attributes."""
    rows, columns = zip(attrs["sizes"], attrs["scales"], strict=True)
    return taps(attrs["mode"], *rows[0], rows[1]), taps(attrs["mode"], *columns[0], columns[1])


def tables(attrs: Any) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """(rows, columns, parts), as `topi_ext.reference.resize_linear` takes them."""
    down, across = taps_of(attrs)
    return down.table, across.table, (down.denominator, across.denominator)


def parts(attrs: Any) -> int:
    """Of how many parts each number of a ``resize_linear`` is made."""
    down, across = taps_of(attrs)
    return down.denominator * across.denominator


def whole(attrs: Any) -> str | None:
    """Why a ``resize_linear`` cannot be computed in integers; None if it can."""
    down, across = (each.denominator for each in taps_of(attrs))
    most = STEPS * down * across
    if most <= 2**30:
        return None
    return (
        f"a resize by a factor that is no ratio of small numbers: with parts of {down} and {across} its "
        f"int32 accumulator may reach {most}, beyond 2**30"
    )


def resized(x: np.ndarray, attrs: Any) -> np.ndarray:
    """The float meaning of a ``resize_linear``: float32 or float64, (N, H, W, C) -> (N, OH, OW, C). Rows
    first; two products and a sum, each rounded by itself."""
    for axis, each in zip((1, 2), taps_of(attrs), strict=True):
        along = [-1 if i == axis else 1 for i in range(4)]
        low, high = each.weights.T.astype(x.dtype).reshape(2, *along)
        x = x.take(each.first, axis) * low + x.take(each.second, axis) * high
    return x
