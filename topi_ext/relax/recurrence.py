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

    describe = _Describe(values)
    loops = {
        var: made for var, parts in joined.items() if (made := recurrence.found(parts, describe, reads))
    }
    if not loops:
        return module
    lowered = _Lowering(module, loops, describe, target_isa(target)).module()
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
            return recurrence.reshaped(args[0], self(args[0]), shape)
        if name == "relax.strided_slice":
            return self._slice(call, shape) or other
        if name == "relax.matmul":
            weight = self(args[1])
            if weight.op != "constant" or len(weight.shape) != 2:
                return other
            return Part("matmul", args[:1], shape, weight.value)
        name = name.removeprefix("relax.")
        return Part(name, args, shape) if name in recurrence.ELEMENTWISE else other

    def _slice(self, call, shape) -> Part | None:
        data, axes, begin, _, *strides = call.args
        where, first, steps = map(_numbers, (axes, begin, *(strides or [relax.Tuple([])])))
        if where is None or first is None or steps is None or set(steps) - {1}:
            return None
        at = dict(zip(where, first, strict=True))
        return recurrence.sliced(data, self(data), shape, [at.get(axis, 0) for axis in range(len(shape))])


def _numbers(argument) -> tuple[int, ...] | None:
    """Of a tuple of known numbers."""
    values = [getattr(field, "value", None) for field in getattr(argument, "fields", ())]
    values = [getattr(value, "value", value) for value in values]
    found = tuple(int(value) for value in values if isinstance(value, int))
    return found if len(found) == len(values) else None


@relax.expr_functor.mutator
class _Lowering(relax.PyExprMutator):
    def __init__(self, module, loops: Mapping, describe: _Describe, isa_name: str):
        super().__init__(module)
        self.source, self.loops, self.describe, self.isa = module, loops, describe, isa_name

    def module(self):
        main = self.source.get_global_var("main")
        self.builder_.update_func(main, self.visit_expr(self.source[main]))
        return self.builder_.get()

    def visit_var_binding_(self, binding):
        found = self.loops.get(binding.var)
        if found is None:
            super().visit_var_binding_(binding)
            return
        inside = self.builder_.current_block_is_dataflow() and not isinstance(
            binding.var, relax.DataflowVar
        )
        emit = self.builder_.emit_output if inside else self.builder_.emit
        made = relax.op.reshape(self.builder_.emit(self._call(found)), shape_of(binding.var))
        self.set_var_remap(binding.var, emit(made))

    def _call(self, found):
        r, emit = found.recurrence, self.builder_.emit
        kernel = Kernel(r, self.isa)
        sequence = emit(relax.op.reshape(self.visit_expr(found.sequence), (r.rows, r.batch, r.width)))
        known = [self.describe(start) for start in found.starts]
        if all(part.op == "constant" for part in known):
            states = constant(np.stack([part.value.reshape(r.batch, r.size) for part in known]))
        else:
            starts = [
                emit(relax.op.reshape(self.visit_expr(start), (1, r.batch, r.size)))
                for start in found.starts
            ]
            states = emit(relax.op.concat(starts, 0))
        constants = constant(kernel.pack(found.products, found.vectors))
        arguments = [sequence, states, constants]
        return call_kernel(self.builder_, "recurrence", kernel.compute, arguments, r.out_shape)
