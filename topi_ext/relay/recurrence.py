"""`lower_recurrences`: an LSTM, GRU or RNN that a Relay function has written out -> our kernel of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relay

from .. import recurrence
from ..kernels.recurrence import Kernel
from ..recurrence import Part
from . import op as relay_op
from .expression import name_of
from .floats import dtype_of, number, reads, shape_of

#: what leaves the numbers and their order
RESHAPES = ("reshape", "expand_dims", "squeeze", "annotation.stop_fusion")


def lower_recurrences(function, isa_name: str):
    """The function, whose types are known, with every recurrence as a call of a kernel, for an instruction
    set."""
    order: list = []
    relay.analysis.post_order_visit(function.body, order.append)
    joined = {expr: list(expr.args[0].fields) for expr in order if _joins_rows(expr)}
    scopes = (relay.Function, relay.Let, relay.If, relay.Match)
    if not joined or any(isinstance(expr, scopes) for expr in order):
        return function
    planned = recurrence.plan(joined, [function.body], _Describe(), reads)
    return _Lowering(function, planned, isa_name).function if planned else function


def _joins_rows(expr) -> bool:
    return (
        name_of(expr) == "concatenate"
        and isinstance(expr.args[0], relay.Tuple)
        and dtype_of(expr) == "float32"
        and bool(shape_of(expr))
        and int(expr.attrs.axis) in (0, -len(expr.checked_type.shape))
        and shape_of(expr)[0] == len(expr.args[0].fields)
    )


class _Describe:
    """`recurrence.Part` of a Relay expression; constants are looked at once."""

    def __init__(self):
        self.known: dict = {}

    def __call__(self, expr) -> Part:
        if expr not in self.known:
            self.known[expr] = self._part(expr)
        return self.known[expr]

    def _part(self, expr) -> Part:
        shape, name = shape_of(expr) or (), name_of(expr)
        other = Part(name or "other", (), shape)
        if (array := number(expr)) is not None:
            return Part("constant", (), shape, array)
        if not name or dtype_of(expr) != "float32":
            return other._replace(op="other")
        args = tuple(expr.args)
        if name in RESHAPES:
            return Part("reshape", args, shape)
        if name == "strided_slice":
            return self._slice(expr, shape)
        if name == "nn.dense":
            weight = self(args[1])
            made = other._replace(op="other")
            return made if weight.op != "constant" else Part("matmul", args[:1], shape, _turned(weight.value))
        return Part(name, args, shape) if name in recurrence.ELEMENTWISE else other._replace(op="other")

    def _slice(self, expr, shape) -> Part:
        before, a = shape_of(expr.args[0]), expr.attrs
        cut = [axis for axis, (old, new) in enumerate(zip(before or (), shape, strict=True)) if old != new]
        steps = [int(n) for n in a.strides]
        if not before or a.axes or str(a.slice_mode) != "end" or any(n != 1 for n in steps) or len(cut) != 1:
            return Part("other", (), shape)
        return Part("slice", (expr.args[0],), shape, (cut[0], int(a.begin[cut[0]])))


def _turned(array):
    return np.ascontiguousarray(array.T)


class _Lowering:
    def __init__(self, function, planned, isa_name: str):
        self.planned, self.isa = planned, isa_name
        self.made: dict = {}  # an expression of the function -> its new one
        self.calls: dict[int, Any] = {}
        self.function = relay.Function(function.params, self._new(function.body), attrs=function.attrs)

    def _new(self, root):
        stack = [root]
        while stack:
            expr = stack[-1]
            rows = self.planned.get(expr)
            wanted = reads(expr) if rows is None else [rows.of.sequence, *rows.of.starts]
            if expr in self.made:
                stack.pop()
            elif waiting := [x for x in wanted if x not in self.made]:
                stack += waiting
            else:
                self.made[expr] = self._again(expr) if rows is None else self._rows(expr, rows)
        return self.made[root]

    def _rows(self, expr, rows):
        r = rows.of.recurrence
        if id(rows.of) not in self.calls:
            self.calls[id(rows.of)] = self._call(rows.of)
        call = self.calls[id(rows.of)]
        if rows.row is not None or r.ends:
            first, end = (0, r.steps + 1) if rows.row is None else (rows.row, rows.row + 1)
            call = relay.strided_slice(call, [first, 0, 0], [end, r.batch, r.size], [1, 1, 1])
        return relay.reshape(call, shape_of(expr))

    def _call(self, found):
        r = found.recurrence
        kernel = Kernel(r, self.isa)
        sequence = relay.reshape(self.made[found.sequence], (r.steps + 1, r.batch, r.width))
        starts = [relay.reshape(self.made[start], (1, r.batch, r.size)) for start in found.starts]
        states = starts[0] if len(starts) == 1 else relay.concatenate(starts, 0)
        constants = relay.const(kernel.pack(found.products, found.vectors))
        return relay_op.recurrence(sequence, states, constants, r, self.isa)

    def _again(self, expr):
        if isinstance(expr, relay.Call):
            args = [self.made[arg] for arg in expr.args]
            return relay.Call(expr.op, args, expr.attrs, expr.type_args, expr.span)
        if isinstance(expr, relay.Tuple):
            return relay.Tuple([self.made[x] for x in expr.fields], expr.span)
        if isinstance(expr, relay.TupleGetItem):
            return relay.TupleGetItem(self.made[expr.tuple_value], expr.index)
        return expr
