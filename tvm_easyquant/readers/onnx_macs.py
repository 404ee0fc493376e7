"""Multiply-accumulates of an ONNX operator that stays float, as coverage counts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from .meaning.rules import RULES
from .onnx_op import OnnxOp

Shape = Sequence[int]


def multiply_accumulates(op: OnnxOp, sizes: Sequence[Shape]) -> int | None:
    """Those of one run, padding counted; None if nobody knows.

    sizes: the shapes (NCHW) of the tensors that the float node reads. What multiplies has one output.
    """
    rule = MACS.get(op.op)
    if rule is not None:
        return rule(op, _by_place(op, sizes))
    return 0 if op.op in RULES else None


def _by_place(op: OnnxOp, sizes: Sequence[Shape]) -> list[Shape | None]:
    """The shapes of a node's inputs, constants too; None of one that is left out."""
    places = max([*op.constants, *op.tensors], default=-1) + 1
    shapes: list[Shape | None] = [None] * places
    for place, array in op.constants.items():
        shapes[place] = array.shape
    for place, which in op.tensors.items():
        shapes[place] = sizes[which]
    return shapes


def _conv(op, shapes):
    """Each output is a sum over the kernel and the channels of its group; weight: (K, C / groups, ...)."""
    return prod(op.shapes[0]) * prod(shapes[1][1:])


def _conv_transpose(op, shapes):
    """Each input is multiplied by its channel's part of the weight, (C, K / groups, ...)."""
    return prod(shapes[0]) * prod(shapes[1][1:])


def _matmul(op, shapes):
    """(..., M, K) x (..., K, N); a vector has no M, or no N."""
    return prod(op.shapes[0]) * shapes[0][-1]


def _gemm(op, shapes):
    rows = 0 if op.attributes.get("transA") else 1
    return prod(op.shapes[0]) * shapes[0][rows]


def _einsum(op, shapes):
    """Of two operands: every combination of the indices is one; None of more, whose order is not said."""
    left = op.attributes["equation"].replace(" ", "").split("->")[0].split(",")
    if len(left) > 2:
        return None
    if len(left) == 1:
        return 0
    extents: dict[object, int] = {}
    for term, shape in zip(left, shapes, strict=False):
        before, dots, after = term.partition("...")
        inner = len(shape) - len(before) - len(after) if dots else 0
        # axes under an ellipsis are counted from the last, as broadcasting does
        names: list[object] = [*before, *range(-inner, 0), *after]
        for name, extent in zip(names, shape, strict=True):
            extents[name] = max(extents.get(name, 1), extent)
    return prod(extents.values())


def _unknown(op, shapes):
    return None


#: operator -> (op, shapes of its inputs) -> multiply-accumulates; those with a meaning that are not here: 0
MACS: dict[str, Callable[[OnnxOp, Sequence], int | None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "LSTM": _unknown,
    "GRU": _unknown,
    "RNN": _unknown,
}
