"""Relax operators that stay float and have no meaning of ours: TVM runs them, and they are put back."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..network.layout import to_nchw, to_nhwc
from .framework import relax, tvm
from .tensors import Tensor

_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class RelaxOp:
    """One output of one Relax call, as a module of its own, which TVM runs.

    module: its ``main`` takes the tensors that the call reads, in the order of the node's inputs, and
    returns what the call makes; index: the field of a tuple that is meant, else None; shape (NCHW), dtype:
    of the output; uncovered: what about it is not covered, where the operator is.
    """

    op: str
    module: Any  # tvm.IRModule
    index: int | None
    shape: tuple[int, ...]
    dtype: str
    uncovered: str = ""

    @classmethod
    def of(cls, call, module, tensors: Sequence, index: int | None = None) -> RelaxOp:
        """The operator of a call; module: where its TIR function is, if it has one; tensors: what it reads,
        but constants."""
        builder = relax.BlockBuilder()
        inputs = [relax.Var(f"x{i}", tensor.ty) for i, tensor in enumerate(tensors)]
        with builder.function("main", inputs):
            with builder.dataflow():
                new = dict(zip(tensors, inputs, strict=True))
                made = builder.emit_output(builder.emit(_again(call, module, new, builder)))
            builder.emit_func_output(made)
        kind = call.ty if index is None else call.ty.fields[index]
        name = str(call.op.name) if isinstance(call.op, tvm.ir.Op) else "call"
        if name == "relax.call_tir":
            name = str(call.args[0].name_hint)
        shape = tuple(int(d) for d in kind.shape.values)
        return cls(name.removeprefix("relax."), builder.get(), index, shape, str(kind.dtype))

    def __str__(self):
        """What `Graph.fingerprint` sees of it: the operator with its attributes and constants."""
        return repr((self.index, self.module.script(show_meta=True)))

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != "machine"}

    def evaluate(self, *arrays: np.ndarray) -> np.ndarray:
        """Run it on NHWC arrays, compiled once. Threads wait for each other: a machine has one memory."""
        with _ONE_AT_A_TIME:
            if "machine" not in self.__dict__:
                library = tvm.compile(self.module, tvm.target.Target({"kind": "llvm"}))
                object.__setattr__(self, "machine", relax.VirtualMachine(library, tvm.cpu()))
            made = self.__dict__["machine"]["main"](*(tvm.runtime.tensor(to_nchw(a)) for a in arrays))
            return to_nhwc((made if self.index is None else made[self.index]).numpy())

    def emit(self, builder, inputs: Sequence[Tensor]) -> Tensor:
        """It on other tensors, in the function that a ``relax.BlockBuilder`` has begun."""
        main = self.module["main"]
        new = {var: x.expr for var, x in zip(main.params, inputs, strict=True)}
        made = builder.emit(_again(main.body.blocks[0].bindings[0].value, self.module, new, builder))
        if self.index is not None:
            made = builder.emit(relax.TupleGetItem(made, self.index))
        return Tensor.of(made, self.shape, self.dtype)


def _again(call, module, new: Mapping, builder):
    """A call on other tensors, its TIR function in the builder's module."""

    def swap(argument):
        if isinstance(argument, relax.Tuple):
            return relax.Tuple([swap(field) for field in argument.fields])
        if isinstance(argument, tvm.ir.GlobalVar):
            return builder.add_func(module[argument], str(argument.name_hint))
        return new.get(argument, argument) if isinstance(argument, relax.Var) else argument

    return relax.Call(call.op, [swap(a) for a in call.args], call.attrs, call.ty_args)
