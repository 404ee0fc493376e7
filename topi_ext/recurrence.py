"""Recurrences that a module has written out step by step, found again, as both hosts do it.

No TVM here: the host describes its expressions (`Part`). A step is what its state reads that the step before
does not; steps that are the same but for what they read of the sequence and of each other are one program.
The first stays as it is written: what it makes is where the rest begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np

#: steps from which on it is worth a search
FEWEST = 4
#: functions of one number and of two that a program may have
ELEMENTWISE = {
    "add", "subtract", "multiply", "divide", "maximum", "minimum", "negative", "abs", "sigmoid", "tanh",
    "exp",
}  # fmt: skip


class Part(NamedTuple):
    """An expression of the host: what it is, what it reads, its shape, and by ``op``

    ``constant``: the array; ``slice``: (axis, begin), of one axis; ``matmul``: the constant (K, M) that the
    only operand is multiplied with; else None. ``reshape``, one of `ELEMENTWISE`, or another name.
    """

    op: str
    args: tuple
    shape: tuple[int, ...]
    value: Any = None


class Recurrence(NamedTuple):
    """``steps`` steps over a sequence (T, N, W), T one more, to T rows of a state (N, H).

    A step reads row ``first``, then ``first + stride`` and so on, and writes it; the row before the first is
    of the state that is given. program: (op, operands, value) in order, an operand ("here", place in it),
    ("state", which), ("number", value) or ("vector", which); a value is a slice's first column, or the matrix
    of a product. states: the places of the program that are its states one step on; output: which of them is
    written; ends: those that are written behind the rows, as they are at last. matrices, vectors: the sizes of
    the constants.
    """

    steps: int
    first: int
    stride: int
    batch: int
    size: int
    width: int
    program: tuple
    states: tuple[int, ...]
    output: int
    matrices: tuple[tuple[int, int], ...]
    vectors: tuple[int, ...]
    ends: tuple[int, ...] = ()

    @property
    def out_shape(self) -> tuple[int, int, int]:
        return self.steps + 1 + len(self.ends), self.batch, self.size


class Found(NamedTuple):
    """A recurrence in a module. sequence: the host's expression that it reads; starts: those of its states;
    last: those that hold its states at last; products: the matrices; vectors: the vectors of numbers."""

    recurrence: Recurrence
    sequence: Any
    starts: tuple
    last: tuple
    products: list[np.ndarray]
    vectors: list[np.ndarray]


def found(parts: Sequence, describe: Callable[[Any], Part], reads: Callable[[Any], Sequence]) -> Found | None:
    """The recurrence whose states ``parts`` are, in the order of the rows, whichever it runs in; or None."""
    states = [_bare(part, describe) for part in parts]
    shapes = {describe(state).shape for state in states}
    if len(states) < FEWEST or len(set(states)) < len(states) or len(shapes) > 1:
        return None
    for stride in (1, -1):
        made = _Search(states[::stride], describe, reads).found(stride)
        if made is not None:
            return made
    return None


def _bare(expr, describe):
    """What an expression is another shape of, with the same columns."""
    while (part := describe(expr)).op == "reshape" and describe(part.args[0]).shape[-1:] == part.shape[-1:]:
        (expr,) = part.args
    return expr


class Rows(NamedTuple):
    """What of a recurrence's output stands for an expression: all the rows of the sequence, or one of them."""

    of: Found
    row: int | None = None


def plan(
    joined: Mapping[Any, Sequence],
    outputs: Sequence,
    describe: Callable[[Any], Part],
    reads: Callable[[Any], Sequence],
) -> dict[Any, Rows]:
    """{expression: what it is of a recurrence}. joined: {expression: what it joins, row by row}; outputs: the
    module's."""
    found_at = {expr: made for expr, parts in joined.items() if (made := found(parts, describe, reads))}
    last = {state: (expr, which) for expr, made in found_at.items() for which, state in enumerate(made.last)}
    seen, stack = set(), list(outputs)
    while stack:
        expr = stack.pop()
        if expr in seen:
            continue
        seen.add(expr)
        made = found_at.get(last[expr][0] if expr in last else expr)
        stack += reads(expr) if made is None else [made.sequence, *made.starts]
    planned: dict[Any, Rows] = {}
    for expr, made in found_at.items():
        r = made.recurrence
        ends = tuple(n for n, state in enumerate(made.last) if state in seen and n != r.output)
        made = made._replace(recurrence=r._replace(ends=ends))
        planned[expr] = Rows(made)
        final = r.first + r.stride * (r.steps - 1)
        rows = {r.output: final} | {n: r.steps + 1 + i for i, n in enumerate(ends)}
        planned |= {made.last[n]: Rows(made, row) for n, row in rows.items()}
    return planned


class _Search:
    def __init__(self, states, describe, reads):
        self.states, self.describe, self.reads = states, describe, reads
        self.step_of: dict = {}  # expression -> (step, its place in that)
        self.sequence: Any = None
        self.rows: list[int] = []
        self.products: list[np.ndarray] = []
        self.vectors: list[np.ndarray] = []
        self.starts: dict[int, Any] = {}
        self.bare = partial(_bare, describe=describe)
        shape = describe(states[0]).shape
        self.batch, self.size = prod(shape[:-1]), shape[-1]

    def found(self, stride: int) -> Found | None:
        self._before()
        programs: list = []
        for number, state in enumerate(self.states[1:], 1):
            program = self._program(number, state)
            if program is None or (number > 2 and program != programs[1]):
                return None
            programs.append(program)
        if self.sequence is None or not self._begins(*programs[:2]):
            return None
        program, places, steps = programs[1], sorted(self.starts), len(programs)
        end, shape = len(program) - 1, self.describe(self.sequence).shape
        if end not in places or shape[0] != steps + 1 or prod(shape[1:-1]) != self.batch:
            return None
        if self.rows != list(range(1, steps + 1) if stride > 0 else range(steps - 1, -1, -1)):
            return None
        named = tuple((op, tuple(_state(o, places) for o in operands), v) for op, operands, v in program)
        last = {place: expr for expr, (step, place) in self.step_of.items() if step == steps}
        if any(self.describe(x).shape[-1] != self.size for x in (*self.starts.values(), *map(last.get, places))):
            return None
        made = Recurrence(
            steps, self.rows[0], stride, self.batch, self.size, shape[-1], named, tuple(places),
            places.index(end), tuple(m.shape for m in self.products), tuple(map(len, self.vectors)),
        )  # fmt: skip
        return Found(
            made, self.sequence, tuple(self.starts[p] for p in places), tuple(last[p] for p in places),
            self.products, self.vectors,
        )  # fmt: skip

    def _before(self):
        """All that the first state reads."""
        stack = [self.states[0]]
        while stack:
            expr = stack.pop()
            if expr not in self.step_of:
                self.step_of[expr] = 0, None
                stack += self.reads(expr)

    def _order(self, state):
        """What a state reads that no step before it does, operands first, but constants."""
        order, seen, stack = [], set(), [(state, False)]
        while stack:
            expr, done = stack.pop()
            if done:
                order.append(expr)
            elif expr not in seen and expr not in self.step_of and self.describe(expr).op != "constant":
                seen.add(expr)
                stack.append((expr, True))
                stack += [(self.bare(arg), False) for arg in reversed(self.describe(expr).args)]
        return order

    def _program(self, number: int, state) -> list | None:
        """Of one step; an operand ("state", place in the step before), or ("start", expression) in the first."""
        program: list = []
        here: dict = {}
        for expr in self._order(state):
            part = self.describe(expr)
            entry = self._entry(number, part, here)
            if entry is None or prod(part.shape[:-1]) != self.batch:
                return None
            here[expr] = len(program)
            program.append(entry)
        if not program or state not in here:
            return None
        self.step_of |= {expr: (number, place) for expr, place in here.items()}
        return program

    def _entry(self, number, part, here):
        if part.op == "slice" and self.bare(part.args[0]) not in here:
            (source,) = part.args
            if self.step_of[self.bare(source)][0] != 0 or part.value[0] != 0 or part.shape[0] != 1:
                return None
            if self.sequence is None:
                self.sequence = source
            if source != self.sequence or len(self.rows) != number - 1:
                return None
            self.rows.append(part.value[1])
            return "row", (), 0
        operands = [self._operand(number, arg, here) for arg in part.args]
        if None in operands:
            return None
        if part.op == "slice":
            axis, begin = part.value
            return (part.op, tuple(operands), begin) if axis == len(part.shape) - 1 else None
        if part.op == "matmul":
            return part.op, tuple(operands), self._number(self.products, part.value)
        wide = {self.describe(arg).shape[-1:] for arg in part.args} - {(), (1,)}
        return (part.op, tuple(operands), 0) if part.op in ELEMENTWISE and wide == {part.shape[-1:]} else None

    def _operand(self, number, expr, here):
        expr = self.bare(expr)
        if expr in here:
            return "here", here[expr]
        part = self.describe(expr)
        if part.op == "constant":
            if part.value.dtype != np.float32:
                return None
            if part.value.size == 1:
                return "number", float(part.value.reshape(()))
            whole = part.value.size == part.value.shape[-1]
            return ("vector", self._number(self.vectors, part.value.reshape(-1))) if whole else None
        step, place = self.step_of[expr]
        if number == 1:
            return "start", expr
        return ("state", place) if step == number - 1 else None

    @staticmethod
    def _number(known: list[np.ndarray], array: np.ndarray) -> int:
        """The place of an array among those that are known."""
        for place, other in enumerate(known):
            if other is array or (other.shape == array.shape and np.array_equal(other, array)):
                return place
        known.append(array)
        return len(known) - 1

    def _begins(self, first, second) -> bool:
        """Whether the first step is the second one but for its states, which are `starts` then."""
        if [(op, value) for op, _, value in first] != [(op, value) for op, _, value in second]:
            return False
        for (_, mine, _), (_, other, _) in zip(first, second, strict=True):
            for a, b in zip(mine, other, strict=True):
                if a[0] == "start" and b[0] == "state":
                    if self.starts.setdefault(b[1], a[1]) != a[1]:
                        return False
                elif a != b:
                    return False
        return bool(self.starts)


def _state(operand, places):
    """An operand, a state by its number."""
    kind, value = operand
    return (kind, places.index(value)) if kind == "state" else operand
