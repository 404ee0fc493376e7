"""`lower_recurrences`: an LSTM, GRU or RNN that a Relay function has written out -> our kernel of it."""

from __future__ import annotations

import numpy as np
from tvm import relay

from .. import recurrence
from ..kernels.recurrence import Kernel
from ..recurrence import Part
from . import op as relay_op
from .expression import name_of
from .floats import again, dtype_of, reads, shape_of

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
    describe = _Describe()
    loops = {
        expr: made for expr, parts in joined.items() if (made := recurrence.found(parts, describe, reads))
    }
    return _Lowering(function, loops, describe, isa_name).function if loops else function


def _joins_rows(expr) -> bool:
    return (
        name_of(expr) == "concatenate"
        and isinstance(expr.args[0], relay.Tuple)
        and dtype_of(expr) == "float32"
        and (shape_of(expr) or ())[:1] == (len(expr.args[0].fields),)
        and int(expr.attrs.axis) in (0, -len(expr.checked_type.shape))
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
        other = Part("other", (), shape)
        if isinstance(expr, relay.Constant):
            return Part("constant", (), shape, expr.data.numpy())
        if not name or dtype_of(expr) != "float32":
            return other
        args = tuple(expr.args)
        if name == "transpose" and self(args[0]).op == "constant":
            axes = [int(axis) for axis in expr.attrs.axes] if expr.attrs.axes else None
            return Part("constant", (), shape, self(args[0]).value.transpose(axes))
        if name in RESHAPES:
            return recurrence.reshaped(args[0], self(args[0]), shape)
        if name == "strided_slice":
            return self._slice(expr, shape) or other
        if name == "nn.dense":
            weight = self(args[1])
            return other if weight.op != "constant" else Part("matmul", args[:1], shape, weight.value.T)
        return Part(name, args, shape) if name in recurrence.ELEMENTWISE else other

    def _slice(self, expr, shape) -> Part | None:
        a, whole = expr.attrs, str(expr.attrs.slice_mode) == "end" and not expr.attrs.axes
        if not whole or any(int(n) != 1 for n in a.strides):
            return None
        return recurrence.sliced(expr.args[0], self(expr.args[0]), shape, [int(n) for n in a.begin])


class _Lowering:
    def __init__(self, function, loops, describe: _Describe, isa_name: str):
        self.loops, self.describe, self.isa = loops, describe, isa_name
        self.made: dict = {}  # an expression of the function -> its new one
        self.function = relay.Function(function.params, self._new(function.body), attrs=function.attrs)

    def _new(self, root):
        """The new expression of an old one; what only steps of a loop read is read by nobody."""
        stack = [root]
        while stack:
            expr = stack[-1]
            found = self.loops.get(expr)
            wanted = reads(expr) if found is None else [found.sequence, *found.starts]
            if expr in self.made:
                stack.pop()
            elif waiting := [x for x in wanted if x not in self.made]:
                stack += waiting
            elif found is None:
                self.made[expr] = again(expr, self.made)
            else:
                self.made[expr] = relay.reshape(self._call(found), shape_of(expr))
        return self.made[root]

    def _call(self, found):
        r = found.recurrence
        kernel = Kernel(r, self.isa)
        sequence = relay.reshape(self.made[found.sequence], (r.rows, r.batch, r.width))
        known = [self.describe(start) for start in found.starts]
        if all(part.op == "constant" for part in known):
            states = relay.const(np.stack([part.value.reshape(r.batch, r.size) for part in known]))
        else:
            starts = [relay.reshape(self.made[start], (1, r.batch, r.size)) for start in found.starts]
            states = relay.concatenate(starts, 0)
        constants = relay.const(kernel.pack(found.products, found.vectors))
        return relay_op.recurrence(sequence, states, constants, r, self.isa)
