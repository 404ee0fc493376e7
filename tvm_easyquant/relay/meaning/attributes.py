"""What the rules ask of a call."""

from __future__ import annotations

import numpy as np


class NoMeaning(Exception):
    """There is no rule for an operator, or none for these attributes."""


#: the axes of a picture by their number
SPATIAL = ("W", "HW", "DHW")


def ints(values) -> tuple[int, ...]:
    return tuple(int(v) for v in values)


def shape(call) -> tuple[int, ...]:
    """Of the result."""
    return ints(call.checked_type.shape)


def only(known: bool, call) -> None:
    if not known:
        raise NoMeaning(f"these attributes of {call.op.name}")


def along(array: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """A vector, shaped to act along an axis."""
    extents = [1] * rank
    extents[axis] = -1
    return array.reshape(extents)


def axes(attrs, rank: int) -> tuple[int, ...]:
    """Those of a reduction, in order."""
    if attrs.axis is None:
        return tuple(range(rank))
    named = {int(i) % rank for i in (attrs.axis if hasattr(attrs.axis, "__len__") else [attrs.axis])}
    return tuple(i for i in range(rank) if (i in named) != bool(getattr(attrs, "exclude", False)))


def padding(values, rank: int) -> tuple[int, ...]:
    """All begins, then all ends."""
    values = ints(values)
    return values * (2 * rank) if len(values) == 1 else values * 2 if len(values) == rank else values


def turn(x: np.ndarray, have: str, want: str, call) -> np.ndarray:
    """An array whose axes are called as in ``have``, in the order of ``want``."""
    have, want = str(have), str(want)
    only(sorted(have) == sorted(want), call)  # channels in blocks are no order of axes
    return x if have == want else np.ascontiguousarray(x.transpose([have.index(axis) for axis in want]))
