"""NHWC inside, NCHW outside: shapes, axes and arrays on their way between the two.

Feature maps in a `Graph` are NHWC; the models that are read and written are NCHW. Only what has four
dimensions differs; everything else passes unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

#: transpositions; as a table, the axis of the one that an axis of the other is
NCHW_TO_NHWC, NHWC_TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


def nhwc(values: Iterable) -> tuple:
    """One value per dimension of an NCHW tensor (a shape, paddings, ...) in the order NHWC."""
    values = tuple(values)
    return tuple(values[i] for i in NCHW_TO_NHWC) if len(values) == 4 else values


def nchw(values: Iterable) -> tuple:
    """One value per dimension of an NHWC tensor in the order NCHW."""
    values = tuple(values)
    return tuple(values[i] for i in NHWC_TO_NCHW) if len(values) == 4 else values


def nhwc_axis(axis: int, rank: int) -> int:
    """Where the axis of an NCHW tensor of ``rank`` dimensions is in NHWC; it may count from the end."""
    axis %= rank
    return NHWC_TO_NCHW[axis] if rank == 4 else axis


def nchw_axis(axis: int, rank: int) -> int:
    """Where the axis of an NHWC tensor of ``rank`` dimensions is in NCHW; it may count from the end."""
    axis %= rank
    return NCHW_TO_NHWC[axis] if rank == 4 else axis


def nhwc_axes(axes: Sequence[int]) -> tuple[int, ...]:
    """The transposition of NCHW tensors as one of the same tensors in NHWC."""
    return nhwc(nhwc_axis(axis, len(axes)) for axis in axes)


def nchw_axes(axes: Sequence[int]) -> tuple[int, ...]:
    """The transposition of NHWC tensors as one of the same tensors in NCHW."""
    return nchw(nchw_axis(axis, len(axes)) for axis in axes)


def to_nhwc(array: np.ndarray) -> np.ndarray:
    """NCHW -> NHWC for 4-D arrays, others unchanged."""
    return np.ascontiguousarray(array.transpose(NCHW_TO_NHWC)) if array.ndim == 4 else array


def to_nchw(array: np.ndarray) -> np.ndarray:
    """NHWC -> NCHW for 4-D arrays, others unchanged."""
    return np.ascontiguousarray(array.transpose(NHWC_TO_NCHW)) if array.ndim == 4 else array


def layout_hint(have: Sequence[int], want: Sequence[int]) -> str:
    """What to do about an image in the order NHWC where NCHW is wanted; else nothing."""
    if len(have) == len(want) == 4 and (have[3], have[1], have[2]) == tuple(want[1:]):
        return ": it is NHWC; transpose it to NCHW with array.transpose(0, 3, 1, 2)"
    return ""
