"""Recurrences that a module has written out step by step, found again, as both hosts do it.

No TVM here: the host describes its expressions (`Part`). A step is what its state reads that the step
before does not; steps that are the same but for what they read of the sequence and of each other are one
program. So is the first, if what it reads of a state are its operands; else it stays as it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def reshaped(expr, part: Part, shape: tuple[int, ...]) -> Part:
    """What makes ``shape`` of an expression."""
    if part.op == "constant":
        return Part("constant", (), shape, part.value.reshape(shape))
    return Part("reshape", (expr,), shape)


def sliced(expr, part: Part, shape: tuple[int, ...], begin: Sequence[int]) -> Part | None:
    """What takes ``shape`` of an expression from ``begin`` on, without steps; None of several axes."""
    begin = [b + size if b < 0 else b for b, size in zip(begin, part.shape, strict=True)]
    cut = [axis for axis, (old, new) in enumerate(zip(part.shape, shape, strict=True)) if old != new]
    if part.op == "constant":
        places = tuple(slice(b, b + size) for b, size in zip(begin, shape, strict=True))
        return Part("constant", (), shape, part.value[places])
    return Part("slice", (expr,), shape, (cut[0], begin[cut[0]])) if len(cut) == 1 else None


class Recurrence(NamedTuple):
    """``steps`` steps over a sequence (T, N, W) to T rows of a state (N, H).

    A step reads row ``first``, then ``first + stride`` and so on, and writes it. program: (op, operands,
    value) in order, an operand ("here", place in it), ("state", which), ("number", value) or ("vector",
    which); a value is a slice's first column, or the matrix of a product. states: the places of the program
    that are its states one step on; output: which of them is written. matrices, vectors: the sizes of the
    constants. begun: whether the state that is given is a row, the one before the first.
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
    begun: bool

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """(T, N, H)."""
        return self.rows, self.batch, self.size

    @property
    def rows(self) -> int:
        """T."""
        return self.steps + self.begun


class Found(NamedTuple):
    """A recurrence in a module. sequence: the host's expression that it reads; starts: those of its states;
    products: the matrices; vectors: the vectors of numbers."""

    recurrence: Recurrence
    sequence: Any
    starts: tuple
    products: list[np.ndarray]
    vectors: list[np.ndarray]


def found(
    parts: Sequence, describe: Callable[[Any], Part], reads: Callable[[Any], Sequence]
) -> Found | None:
    """The recurrence whose states ``parts`` are, row by row, in whichever order it runs; or None."""
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


class _Search:
    def __init__(self, states, describe, reads):
        self.states, self.describe, self.reads = states, describe, reads
        self.step_of: dict = {}  # expression -> (step, its place in that)
        self.sequence: Any = None
        self.rows: list[int] = []
        self.products: list[np.ndarray] = []
        self.vectors: list[np.ndarray] = []
        self.starts: dict[int, Any] = {}
        self.widths: list[int] = []  # of the program's entries
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
        if any(self.widths[place] != self.size for place in places):
            return None
        if any(
            self.describe(start).shape != self.describe(self.states[0]).shape
            for start in self.starts.values()
        ):
            return None
        starts = tuple(self.starts[p] for p in places)
        before = self._stepped_back(named, places, starts, self.rows[0] - stride)
        begun = before is None
        made = Recurrence(
            steps + (not begun), self.rows[0] - (0 if begun else stride), stride, self.batch, self.size,
            shape[-1], named, tuple(places), places.index(end), tuple(m.shape for m in self.products),
            tuple(map(len, self.vectors)), begun,
        )  # fmt: skip
        return Found(made, self.sequence, before or starts, self.products, self.vectors)

    def _stepped_back(self, program, places, starts, row: int) -> tuple | None:
        """The states of which one step of the program makes ``starts``, by what these are; or None."""
        bound: dict[int, Any] = {}
        seen = set()
        stack = [(("here", place), start) for place, start in zip(places, starts, strict=True)]
        while stack:
            (kind, value), expr = wanted = stack.pop()
            if wanted in seen:
                continue
            seen.add(wanted)
            part = self.describe(self.bare(expr))
            if kind == "state":
                if not self._same(bound.setdefault(value, expr), expr):
                    return None
            elif kind in ("number", "vector"):
                known = np.float32(value) if kind == "number" else self.vectors[value]
                if part.op != "constant" or not np.array_equal(part.value.reshape(np.shape(known)), known):
                    return None
            elif not self._made_so(program[value], part, row):
                return None
            else:
                stack += zip(program[value][1], part.args, strict=True) if program[value][1] else []
        if set(bound) != set(range(len(places))):
            return None
        shapes = [self.describe(expr).shape for expr in bound.values()]
        whole = all(prod(shape) == self.batch * self.size for shape in shapes)
        return tuple(bound[which] for which in range(len(places))) if whole else None

    def _made_so(self, entry, part: Part, row: int) -> bool:
        """Whether an expression is an entry of the program but for its operands."""
        op, operands, value = entry
        if op == "row":
            return part.op == "slice" and part.args == (self.sequence,) and part.value == (0, row)
        if part.op != op or len(part.args) != len(operands):
            return False
        if op == "matmul":
            return np.array_equal(part.value, self.products[value])
        return op != "slice" or part.value == (len(part.shape) - 1, value)

    def _same(self, a, b) -> bool:
        """Whether two expressions are the same numbers in the same order."""
        if self.bare(a) == self.bare(b):
            return True
        one, other = self.describe(self.bare(a)), self.describe(self.bare(b))
        return one.op == other.op == "constant" and np.array_equal(one.value.ravel(), other.value.ravel())

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
        """Of a step; an operand is ("state", its place before), in the first step ("start", expression)."""
        program: list = []
        here: dict = {}
        widths = []
        for expr in self._order(state):
            part = self.describe(expr)
            entry = self._entry(number, part, here)
            if entry is None or prod(part.shape[:-1]) != self.batch:
                return None
            here[expr] = len(program)
            program.append(entry)
            widths.append(part.shape[-1])
        self.widths = self.widths or widths
        if not program or state not in here or widths != self.widths:
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
        return (
            (part.op, tuple(operands), 0) if part.op in ELEMENTWISE and wide == {part.shape[-1:]} else None
        )

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
