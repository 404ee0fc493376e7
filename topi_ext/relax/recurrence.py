"""`lower_recurrences`: an LSTM, GRU or RNN that a Relax function has written out -> our kernel of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tvm
from tvm import relax

from .. import recurrence
from ..emit import target_isa
from ..kernels.recurrence import Kernel
from ..recurrence import Part
from .floats import axes_of, call_kernel, dtype_of, main_of, name_of, shape_of, used
from .lower import constant

RESHAPES = ("relax.reshape", "relax.expand_dims", "relax.squeeze")


def lower_recurrences(module, target):
    """The module with every recurrence of ``main`` as a call of a kernel of ours.

    target: ``tvm.target.Target``.
    """
    if (main := main_of(module)) is None:
        return module
    values = {b.var: b.value for block in main.body.blocks for b in block.bindings}
    joined = {var: list(value.args[0].fields) for var, value in values.items() if _joins_rows(value)}
    if not joined:
        return module

    def reads(var):
        return used(values[var]) if var in values else []

    planned = recurrence.plan(joined, used(main.body.body), _Describe(values), reads)
    if not planned:
        return module
    lowered = _Lowering(module, planned, target_isa(target)).module()
    return relax.transform.DeadCodeElimination(["main"])(lowered)


def _joins_rows(value) -> bool:
    if not isinstance(value, relax.Call) or name_of(value) != "relax.concat":
        return False
    shape, fields = shape_of(value), getattr(value.args[0], "fields", ())
    if not shape or dtype_of(value) != "float32" or value.attrs.axis is None:
        return False
    return int(value.attrs.axis) in (0, -len(shape)) and shape[0] == len(fields)


class _Describe:
    """`recurrence.Part` of a variable or constant; each is looked at once."""

    def __init__(self, values: Mapping):
        self.values, self.known = values, {}  # type: ignore[var-annotated]

    def __call__(self, expr) -> Part:
        if expr not in self.known:
            self.known[expr] = self._part(expr)
        return self.known[expr]

    def _part(self, expr) -> Part:
        shape = shape_of(expr) or ()
        other = Part("other", (), shape)
        if isinstance(expr, tvm.ir.GenericConst):
            return Part("constant", (), shape, expr.value.numpy())
        call = self.values.get(expr) if isinstance(expr, relax.Var) else None
        if not isinstance(call, relax.Call) or dtype_of(call) != "float32":
            return other
        name, args = name_of(call), tuple(call.args)
        if name == "relax.permute_dims" and self(args[0]).op == "constant":
            return Part("constant", (), shape, self(args[0]).value.transpose(axes_of(call)))
        if name in RESHAPES:
            return Part("reshape", args[:1], shape)
        if name == "relax.strided_slice":
            return self._slice(call, shape) or other
        if name == "relax.matmul":
            weight = self(args[1])
            if weight.op != "constant" or len(weight.shape) != 2:
                return other
            return Part("matmul", args[:1], shape, np.ascontiguousarray(weight.value))
        name = name.removeprefix("relax.")
        return Part(name, args, shape) if name in recurrence.ELEMENTWISE else other

    def _slice(self, call, shape) -> Part | None:
        data, axes, begin, *rest = call.args
        before, steps = shape_of(data), _numbers(rest[1]) if len(rest) > 1 else ()
        cut = [axis for axis, (old, new) in enumerate(zip(before or (), shape, strict=True)) if old != new]
        where, first = _numbers(axes), _numbers(begin)
        if where is None or first is None or steps is None or set(steps) - {1} or len(cut) != 1:
            return None
        if cut[0] not in where:
            return None
        return Part("slice", (data,), shape, (cut[0], first[where.index(cut[0])]))


def _numbers(argument) -> tuple[int, ...] | None:
    """Of a tuple of known numbers."""
    values = [getattr(field, "value", None) for field in getattr(argument, "fields", ())]
    values = [getattr(value, "value", value) for value in values]
    return tuple(values) if all(isinstance(value, int) for value in values) else None


@relax.expr_functor.mutator
class _Lowering(relax.PyExprMutator):
    def __init__(self, module, planned: Mapping, isa_name: str):
        super().__init__(module)
        self.source, self.planned, self.isa = module, planned, isa_name
        self.calls: dict = {}

    def module(self):
        main = self.source.get_global_var("main")
        self.builder_.update_func(main, self.visit_expr(self.source[main]))
        return self.builder_.get()

    def visit_var_binding_(self, binding):
        rows = self.planned.get(binding.var)
        if rows is None:
            super().visit_var_binding_(binding)
            return
        inside = self.builder_.current_block_is_dataflow() and not isinstance(binding.var, relax.DataflowVar)
        emit = self.builder_.emit_output if inside else self.builder_.emit
        self.set_var_remap(binding.var, emit(self._rows(rows, shape_of(binding.var))))

    def _rows(self, rows, shape):
        found = rows.of
        r, emit = found.recurrence, self.builder_.emit
        if id(found) not in self.calls:
            self.calls[id(found)] = emit(self._call(found))
        call = self.calls[id(found)]
        if rows.row is not None or r.ends:
            first, end = (0, r.steps + 1) if rows.row is None else (rows.row, rows.row + 1)
            call = emit(relax.op.strided_slice(call, [0], [first], [end]))
        return relax.op.reshape(call, shape)

    def _call(self, found):
        r, emit = found.recurrence, self.builder_.emit
        kernel = Kernel(r, self.isa)
        sequence, *starts = map(self.visit_expr, (found.sequence, *found.starts))
        sequence = emit(relax.op.reshape(sequence, (r.steps + 1, r.batch, r.width)))
        starts = [emit(relax.op.reshape(start, (1, r.batch, r.size))) for start in starts]
        states = starts[0] if len(starts) == 1 else emit(relax.op.concat(starts, 0))
        constants = constant(kernel.pack(found.products, found.vectors))
        arguments = [sequence, states, constants]
        return call_kernel(self.builder_, "recurrence", kernel.compute, arguments, r.out_shape)
