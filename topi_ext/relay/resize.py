"""The int32 form of a linear resize in Relay: written for a rewriter, and read back by `LowerInteger`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from tvm import relay

from .expression import name_of, value_of


class Resize(NamedTuple):
    """data: uint8 NHWC; rows, columns, parts: as `reference.resize_linear` takes them; zero_point: of
    data."""

    data: Any
    rows: np.ndarray
    columns: np.ndarray
    parts: tuple[int, int]
    zero_point: int


def write(resize: Resize) -> relay.Expr:
    """int32 NHWC, in stock operators: `reference.resize_linear`."""
    acc = relay.cast(resize.data, "int32")
    for axis, table, parts in zip((1, 2), (resize.rows, resize.columns), resize.parts, strict=True):
        weights = (parts - table[:, 2], table[:, 2])
        taken = (relay.take(acc, relay.const(table[:, i]), axis, mode="fast") for i in (0, 1))
        along = [-1 if i == axis else 1 for i in range(4)]
        first, second = (
            x * relay.const(np.ascontiguousarray(w.reshape(along)))
            for x, w in zip(taken, weights, strict=True)
        )
        acc = first + second
    zero = resize.zero_point * resize.parts[0] * resize.parts[1]
    return acc - relay.const(zero, "int32") if zero else acc


def read(expr) -> Resize | None:
    """What `write` was given; None of an expression that it did not make."""
    zero = 0
    if name_of(expr) == "subtract" and isinstance(expr.args[1], relay.Constant):
        zero, expr = int(value_of(expr.args[1])), expr.args[0]
    tables, parts = [], []
    for axis in (2, 1):
        found = _sum(expr, axis)
        if found is None:
            return None
        expr, table, count = found
        tables.append(table)
        parts.append(count)
    if name_of(expr) != "cast" or expr.args[0].checked_type.dtype != "uint8":
        return None
    return Resize(expr.args[0], tables[1], tables[0], (parts[1], parts[0]), zero // (parts[0] * parts[1]))


def _sum(expr, axis: int):
    """(tensor, table, parts) of a sum of two weighed takes along an axis; else None."""
    if name_of(expr) != "add":
        return None
    found = []
    for side in expr.args:
        if name_of(side) != "multiply" or name_of(side.args[0]) != "take":
            return None
        take, weights = side.args
        constant = isinstance(take.args[1], relay.Constant) and isinstance(weights, relay.Constant)
        if not constant or take.attrs.axis is None or int(take.attrs.axis) != axis:
            return None
        found.append((take.args[0], value_of(take.args[1]), value_of(weights).ravel()))
    (data, first, rest), (other, second, share) = found
    parts = rest + share
    if not data.same_as(other) or (parts != parts[0]).any():
        return None
    return data, np.stack([first, second, share], axis=1).astype(np.int32), int(parts[0])
