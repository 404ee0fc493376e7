"""What the rules of Relax's operators ask of a call and of a type."""

from __future__ import annotations

from ..errors import LoadError
from .framework import relax, tvm

#: what a network may hold beside float32
DTYPES = ("bool", "uint8", "int8", "int32", "int64")
STATIC = "fix every dimension first: relax.transform.BindSymbolicVars({'batch': 1})(module)"


def operator(call) -> str:
    return str(call.op.name) if isinstance(call.op, tvm.ir.Op) else ""


def plain(name) -> str:
    """A name without TVM: its strings are a class of TVM's, which a process without it cannot unpickle."""
    return str.__str__(name)


def is_tensor(kind) -> bool:
    return isinstance(kind, relax.TensorType)


def numbers_of(shape) -> tuple[int, ...] | None:
    """The numbers of a shape that is known."""
    values = getattr(shape, "values", None)
    if values is None or not all(isinstance(d, tvm.tirx.IntImm) for d in values):
        return None
    return tuple(int(d) for d in values)


def shape_of(kind, what) -> tuple[int, ...]:
    """Of a tensor's type, in the model's layout; what: its name. Raises LoadError."""
    shape = kind.shape if is_tensor(kind) else None
    if shape is None or not hasattr(shape, "values"):
        raise LoadError(f"{plain(what)} has no known shape ({kind}); {STATIC}")
    if unknown := [d for d in shape.values if not isinstance(d, tvm.tirx.IntImm)]:
        raise LoadError(
            f"{plain(what)} has a dynamic shape; fix {unknown[0]} first: "
            f"relax.transform.BindSymbolicVars({{'{unknown[0]}': 1}})(module)"
        )
    return tuple(int(d) for d in shape.values)


def ints(values) -> tuple[int, ...]:
    return tuple(int(v) for v in values)


def ends(padding, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(begins, ends) of a padding of one number, one for each axis, or both ends of each."""
    p = ints(padding)
    p = {1: p * (2 * rank), rank: p * 2}.get(len(p), p) if len(p) != 2 * rank else p
    return p[:rank], p[rank:]


def permutation(walk, call) -> list[int]:
    rank = len(walk.size(call.args[0]))
    axes = call.attrs.axes
    return [int(i) % rank for i in axes] if axes is not None else list(range(rank))[::-1]


def slices_of(walk, call) -> dict[int, slice] | None:
    """{axis: slice} of a strided slice of known places."""
    rank, parts = len(walk.size(call.args[0])), [walk.fields(a) for a in call.args[1:]]
    if any(not hasattr(number, "value") for part in parts for number in part):
        return None
    axes, begin, end, *steps = ([int(number.value) for number in part] for part in parts)
    by = steps[0] if steps else [1] * len(axes)
    return {a % rank: slice(*bounds) for a, *bounds in zip(axes, begin, end, by, strict=True)}
