"""Writes kernels as TIR on either host: TVM 0.19 (``tvm.tir``) or apache-tvm 0.27 (``tvm.tirx``).

Everything in `topi_ext` that makes TIR takes ``tir`` and `Builder` from here and is the same text on both.
What differs between the hosts is in this file and nowhere else: the module's name, how an allocation is
spelled, and whether an LLVM intrinsic's argument count is passed. What a target has is asked alike.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import tvm
from tvm import te

try:
    from tvm import tir
except ImportError:  # apache-tvm 0.24 and later
    from tvm import tirx as tir

from . import isa

HAS_ALLOCATE = hasattr(tir, "Allocate")  # else an allocation is a statement without a body

KINDS = {"serial": tir.ForKind.SERIAL, "parallel": tir.ForKind.PARALLEL}


def lanes_of(dtype) -> tuple[str, int]:
    """("int32", 8) of "int32x8"; ("int32", 1) of "int32"."""
    base, _, lanes = str(dtype).partition("x")
    return base, int(lanes or 1)


def with_lanes(base: str, lanes: int) -> str:
    """TVM's name of a type; of one lane it is the scalar's."""
    return base if lanes == 1 else f"{base}x{lanes}"


def dtype_of(x) -> str:
    """The element type of an expression, with its lanes."""
    return str(x.dtype if hasattr(x, "dtype") else x.ty.dtype)


def const(value, dtype):
    """A literal; for a vector type the same in every lane."""
    base, lanes = lanes_of(dtype)
    scalar = tir.const(value, base)
    return scalar if lanes == 1 else tir.Broadcast(scalar, lanes)


def pure(dtype, name, *args):
    """A call of a pure LLVM intrinsic."""
    count = [tir.const(len(args), "uint32")] if HAS_ALLOCATE else []  # 0.19 wants their number first
    return tir.call_llvm_pure_intrin(dtype, name, *count, *args)


def after(x, other):
    """``x``, for LLVM not before it has ``other`` of the same type; needs `after_llvm` of that."""
    return tir.call_pure_extern(dtype_of(x), f"easyquant_after_{_llvm_type(dtype_of(x))[1]}", x, other)


def after_llvm(dtype: str) -> str:
    """LLVM IR of what `after` calls for a vector of integers, inlined."""
    vector, name = _llvm_type(dtype)
    return f"""define {vector} @easyquant_after_{name}({vector} %a, {vector} %b) alwaysinline {{
  %r = call {vector} asm "", "=v,0,v"({vector} %a, {vector} %b)
  ret {vector} %r
}}"""


def _llvm_type(dtype: str) -> tuple[str, str]:
    """(LLVM's type of a vector of integers, its name in that of an intrinsic)."""
    base, lanes = lanes_of(dtype)
    return f"<{lanes} x {base.replace('int', 'i')}>", f"v{lanes}{base.replace('int', 'i')}"


def once(value, of):
    """``of(value)``, the value computed once. TVM 0.19 gives LLVM a debug record of it, which LLVM refuses
    of a float: there the value is written out as often as it is read."""
    if HAS_ALLOCATE:
        return of(value)
    name = tir.Var("once", dtype_of(value))
    return tir.Let(name, value, of(name))


def pick(vectors, indices):
    """The lanes ``indices`` (ints) of vectors of one type, counted through."""
    values = {_literal_of(x) for x in vectors}
    if len(values) == 1 and None not in values:  # which TVM 0.19 would compute once: see `once`
        return const(values.pop(), with_lanes(lanes_of(dtype_of(vectors[0]))[0], len(indices)))
    return tir.Shuffle(list(vectors), [const(i, "int32") for i in indices])


def reread(x, dtype):
    """The bits of a vector of integers as another type; of one number in every lane again such a one, if
    there is one."""
    value = _literal_of(x)
    if value is not None:
        base, lanes = lanes_of(dtype_of(x))
        values = set(np.full(lanes, value, base).view(lanes_of(dtype)[0]).tolist())
        if len(values) == 1:
            return const(values.pop(), dtype)
    return tir.reinterpret(dtype, x)


def _literal_of(x) -> int | None:
    """The integer that is in every lane of a vector, if it is known."""
    value = x.value if isinstance(x, tir.Broadcast) else None
    return int(value.value) if isinstance(value, tir.IntImm) else None


def part(x, first: int, count: int):
    """``count`` lanes of a vector from lane ``first`` on."""
    return pick([x], range(first, first + count))


def prefetch(buffer, indices):
    """A statement: start to load a cache line into the second-level cache. It may lie beyond the buffer."""
    address = tir.address_of(buffer.vload(indices))
    read, level_2, data = (tir.const(n, "int32") for n in (0, 2, 1))
    if HAS_ALLOCATE:
        return tir.Evaluate(tir.call_intrin("int32", "tir.prefetch", address, read, level_2, data))
    return tir.Evaluate(tir.call_llvm_intrin("void", "llvm.prefetch", address, read, level_2, data))


def address(buffer, indices):
    """The address of an element, for an instruction that reads or writes from there on."""
    return tir.address_of(buffer.vload(indices))


def effect(name, *args):
    """A statement: a call of an LLVM intrinsic for what it does."""
    if HAS_ALLOCATE:
        count = tir.const(len(args), "uint32")
        return tir.Evaluate(tir.call_llvm_intrin("int32", name, count, *args))
    return tir.Evaluate(tir.call_llvm_intrin("void", name, *args))


def extern(out_shape, inputs, body, dtype, name, tag):
    """A TE tensor made by statements: body(input buffers, output buffer) -> stmt."""
    return te.extern(
        [tuple(out_shape)],
        inputs,
        lambda ins, outs: body(ins, outs[0]),
        dtype=dtype,
        name=name,
        tag=tag,
    )


class Builder:
    """Collects statements in the order they are emitted; loops and conditions are ``with`` blocks."""

    def __init__(self):
        self._blocks: list[list] = [[]]

    def emit(self, statement) -> None:
        """Append a statement, such as ``buffer.vstore(indices, value)``."""
        self._blocks[-1].append(statement)

    def _body(self):
        return _sequence(self._blocks.pop())

    @contextmanager
    def for_range(self, begin, end, name: str, kind: str = "serial"):
        """``for name in begin..end``, ints, or 0 to an expression; yields the int32 value. A range known to
        be empty emits nothing."""
        var = tir.Var(name, "int32")  # TVM's code generator wants loops from zero
        self._blocks.append([])
        yield var + begin if begin else var
        body = self._body()
        if not isinstance(end, int) or end > begin:
            count = tir.const(end - begin, "int32") if isinstance(end, int) else end
            self.emit(tir.For(var, tir.const(0, "int32"), count, KINDS[kind], body))

    @contextmanager
    def if_scope(self, condition):
        """``if condition``."""
        self._blocks.append([])
        yield
        self.emit(tir.IfThenElse(condition, self._body(), None))

    def scope_attr(self, node, key: str, value: str) -> None:
        """An attribute of everything emitted after it in this block."""
        text = tir.StringImm(value) if hasattr(tir, "StringImm") else tvm.ir.StringImm(value)
        self.emit(_Around(lambda body: tir.AttrStmt(node, key, text, body)))

    def allocate(self, dtype: str, size: int, name: str):
        """A buffer of ``size`` scalars that lives to the end of the block: less than 1 KiB is the stack or
        registers, more the thread's workspace (of scope "local", even the little would be)."""
        scope = "global"
        if not HAS_ALLOCATE:
            buffer = tir.decl_buffer((size,), dtype, name, scope=scope)
            self.emit(tir.AllocBuffer(buffer))
            return buffer
        data = tir.Var(name, tvm.ir.PointerType(tvm.ir.PrimType(dtype), scope))
        buffer = tir.decl_buffer((size,), dtype, name, data=data, scope=scope)
        true = tir.const(1, "bool")
        self.emit(
            _Around(lambda body: tir.Allocate(data, dtype, [size], true, tir.DeclBuffer(buffer, body)))
        )
        return buffer

    def whole(self, buffer) -> None:
        """Keep an intermediate map at its full size: apache-tvm shrinks it to what it sees read and
        written, and does not see that a vector goes beyond its pixel, nor edges that depend on a
        condition."""
        if not HAS_ALLOCATE:
            self.emit(tir.Evaluate(buffer.data))

    def get(self):
        """The statement of everything emitted; the builder is spent."""
        return self._body()


def keeper(ib) -> Callable:
    """keep(expression): its value in a buffer of its own (TVM's vector lets do not compile), which is small
    enough for LLVM to make it registers."""

    def keep(value):
        base, lanes = lanes_of(dtype_of(value))
        slot = ib.allocate(base, lanes, name="kept")
        ib.emit(slot.vstore([0], value))
        return slot.vload([0], dtype_of(value))

    return keep


def literal(ib, values):
    """A vector of float32 literals, each its own, in a buffer as `keeper` has it, number by number: equal
    vectors TVM 0.19 would compute once, in a way that LLVM refuses (`once`)."""
    slot = ib.allocate("float32", len(values), name="literal")
    for i, value in enumerate(values):
        ib.emit(slot.vstore([i], tir.const(float(value), "float32")))
    return slot.vload([0], with_lanes("float32", len(values)))


class _Around:
    """Takes the rest of its block as a body."""

    def __init__(self, wrap):
        self.wrap = wrap


def _sequence(statements):
    done: list = []
    for statement in reversed(statements):
        if isinstance(statement, _Around):
            done = [statement.wrap(_flat(done))]
        else:
            done.insert(0, statement)
    return _flat(done)


def _flat(statements):
    if len(statements) == 1:
        return statements[0]
    return tir.SeqStmt(statements) if statements else tir.Evaluate(tir.const(0, "int32"))


class DefaultKnobs:
    """What AutoTVM's configuration is to a compute, without AutoTVM: each knob at its first candidate,
    or as given by name; ``space`` is what there was to choose from. Raises ValueError for a value that is
    not a candidate."""

    def __init__(self, **chosen):
        self.chosen, self.values, self.space, self.flop = chosen, {}, {}, 0

    def define_knob(self, name: str, candidates: list) -> None:
        """What was chosen for a knob, else the first; ValueError if it is no candidate."""
        value = self.chosen.get(name, candidates[0])
        if value not in candidates:
            raise ValueError(f"{name}={value!r} is not one of {candidates}")
        self.space[name] = list(candidates)
        self.values[name] = _Value(value)

    def add_flop(self, flop: int) -> None:
        """Count operations, as AutoTVM's configuration does."""
        self.flop += flop

    def __getitem__(self, name):
        return self.values[name]


def knob_space(row, spec, kinds) -> dict[str, list]:
    """{knob: its candidates, the default first} of a kernel of the manifest for a layer; kinds: (shape,
    dtype) of its data, constants and residual."""
    cfg = DefaultKnobs()
    row.compute(cfg, spec, *(te.placeholder(shape, dtype) for shape, dtype in kinds))
    return cfg.space


class _Value:
    def __init__(self, val):
        self.val = val


def target_isa(target) -> str:
    """The best row of `isa.ISAS` that a target has the features of: `isa.best`."""
    if target.kind.name != "llvm":
        return "generic"
    has = tvm.get_global_func("target.target_has_feature")
    return isa.best(lambda feature: bool(has(feature, target)), _arch(target))


def target_features(target) -> tuple[str, tuple[str, ...]]:
    """(architecture, LLVM's features that decide whether code for a target runs), as `isa` spells them."""
    has, arch = tvm.get_global_func("target.target_has_feature"), _arch(target)
    return arch, tuple(sorted(name for name in isa.flag_names(arch) if has(name, target)))


def _arch(target) -> str:
    return isa.arch_of(str(target.attrs.get("mtriple", "")))
