"""Products of matrices, and of anything with indices."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import numpy as np

from ..onnx_op import Call, NotConstant
from .algebra import Value, value, values


def _matmul(call: Call) -> Any:
    """As numpy's: of a vector the missing axis is of size 1, and goes; the leading axes broadcast."""
    a, b = values(call)
    a = a.reshape((1, *a.shape)) if a.rank == 1 else a
    b = b.reshape((*b.shape, 1)) if b.rank == 1 else b
    if b.rank == 2:  # weights: one product of two matrices
        made = a.reshape((prod(a.shape[:-1]), a.shape[-1])).matmul(b)
    else:
        lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        made = a.broadcast((*lead, *a.shape[-2:])).matmul(b.broadcast((*lead, *b.shape[-2:])))
    return made.reshape(call.shape).tensor


def _scaled(x: Value, factor: float) -> Value:
    if factor == 1:
        return x
    if not x.is_float and factor != int(factor):
        raise NotConstant("Gemm of integers by a fraction")
    return x * factor


def _gemm(call: Call) -> Any:
    a, b = values(call)[:2]
    a = a.transpose((1, 0)) if call["transA"] else a
    b = b.transpose((1, 0)) if call["transB"] else b
    made, c = _scaled(a.matmul(b), call["alpha"]), value(call, 2)
    return (made if c is None or call["beta"] == 0 else made + _scaled(c, call["beta"])).tensor


def _einsum(call: Call) -> Any:
    """Two by two from the left; an index that nothing behind needs is summed over at once."""
    operands, wanted = _indices(call["equation"], [len(x.shape) for x in call.x])
    terms = [_diagonal(x, names) for x, names in zip(values(call), operands, strict=True)]
    x, names = terms[0]
    for i, (other, others) in enumerate(terms[1:], 1):
        needed = {*wanted, *(name for _, later in terms[i + 1 :] for name in later)}
        x, names = _contract(x, names, other, others, needed)
    x, names = _summed(x, names, wanted)
    return x.transpose([names.index(name) for name in wanted]).tensor


def _indices(equation: str, ranks: list[int]) -> tuple[list[list[str]], list[str]]:
    """The name of every axis of each operand, and of the result; those of an ellipsis are numbers that
    count from its end, since there operands broadcast."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise NotConstant(f"Einsum {equation!r} of {len(ranks)} tensors")
    hidden = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]

    def spelled(term, count):
        numbers = [str(i) for i in range(count, 0, -1)]
        parts = re.findall(r"\.\.\.|[A-Za-z]", term)
        return [name for part in parts for name in (numbers if part == "..." else [part])]

    operands = [spelled(term, count) for term, count in zip(terms, hidden, strict=True)]
    most = max((count for term, count in zip(terms, hidden, strict=True) if "..." in term), default=0)
    if arrow:
        return operands, spelled(right, most)
    once = sorted(name for name, n in Counter(left).items() if n == 1 and name.isalpha())
    return operands, spelled("...", most) + once


def _diagonal(x: Value, names: list[str]) -> tuple[Value, list[str]]:
    """Of an index that stands twice in one operand."""
    for name in [name for name, n in Counter(names).items() if n > 1]:
        while names.count(name) > 1:
            i = names.index(name)
            j = names.index(name, i + 1)
            order = [*(a for a in range(x.rank) if a not in (i, j)), i, j]
            x, names = x.transpose(order), [names[a] for a in order[:-1]]
            size = x.shape[-1]
            x = x.reshape((*x.shape[:-2], size * size)).take(np.arange(size) * (size + 1), x.rank - 2)
    return x, names


def _summed(x: Value, names: list[str], needed: Iterable[str]) -> tuple[Value, list[str]]:
    kept = [name for name in names if name in needed]
    shape = [x.shape[names.index(name)] for name in kept]
    return x.sum([i for i, name in enumerate(names) if name not in needed]).reshape(shape), kept


def _contract(a: Value, of_a: list[str], b: Value, of_b: list[str], needed: set[str]):
    """(the product of two tensors, summed over what is not ``needed``; its indices)."""
    a, of_a = _summed(a, of_a, needed | set(of_b))
    b, of_b = _summed(b, of_b, needed | set(of_a))
    sizes: dict[str, int] = {}
    for names, shape in ((of_a, a.shape), (of_b, b.shape)):
        for name, size in zip(names, shape, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
    both = [name for name in of_a if name in of_b]
    batch, over = ([n for n in both if n in needed], [n for n in both if n not in needed])
    only_a, only_b = ([n for n in of_a if n not in both], [n for n in of_b if n not in both])

    def matrix(x, names, rows, columns):
        order = [*batch, *rows, *columns]
        x = x.broadcast([sizes[name] for name in names])
        x = x.transpose([names.index(name) for name in order])
        return x.reshape(prod(sizes[n] for n in group) for group in (batch, rows, columns))

    a, b = matrix(a, of_a, only_a, over), matrix(b, of_b, over, only_b)
    made = a.matmul(b) if over else a * b
    names = [*batch, *only_a, *only_b]
    return made.reshape([sizes[name] for name in names]), names


RULES: dict[str, Callable[[Call], Any]] = {"Einsum": _einsum, "Gemm": _gemm, "MatMul": _matmul}
