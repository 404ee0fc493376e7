"""A recurrence of what stays float as one loop over its steps: LSTM, GRU, RNN and the like, on any CPU.

Products with a state are made first, of blocks of columns whose sums stay in registers while the rows of
the matrix pass by; what is left is of one column at a time, in vectors, computed once for all states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .. import epilogue, function
from ..emit import Builder, const, dtype_of, extern, lanes_of, tir, with_lanes
from ..recurrence import Recurrence
from .float_conv import fused, pieces, row_of

#: sums that are kept at once: as many as hide a multiply-add's latency
SUMS = 8
#: functions of the program that are no functions of `function.REAL`
OPERATORS: dict[str, Callable] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "maximum": tir.max,
    "minimum": tir.min,
    "negative": lambda a: const(0.0, dtype_of(a)) - a,
    "abs": lambda a: tir.max(a, const(0.0, dtype_of(a)) - a),
}


class Kernel:
    """One recurrence on an instruction set. `compute` takes the sequence (T, N, W), the states (S, N, H)
    before the first step, and what `pack` makes of the constants."""

    def __init__(self, recurrence: Recurrence, isa_name: str):
        self.r, self.lanes = recurrence, row_of(isa_name).lanes
        self.together = min(recurrence.batch, SUMS // 2)
        self.block = self.lanes * (SUMS // self.together)
        sizes = [k * m for k, m in recurrence.matrices] + list(recurrence.vectors)
        self.places = [int(n) for n in np.cumsum([0, *sizes])]

    def pack(self, matrices: Sequence[np.ndarray], vectors: Sequence[np.ndarray]) -> np.ndarray:
        """All constants as one vector, each matrix by blocks of columns."""
        found: list[np.ndarray] = []
        for matrix in matrices:
            edge = matrix.shape[1] // self.block * self.block
            blocks = matrix[:, :edge].reshape(len(matrix), -1, self.block).transpose(1, 0, 2)
            found += [blocks.ravel(), matrix[:, edge:].ravel()]
        return np.concatenate([*found, *vectors]).astype(np.float32)

    def compute(self, sequence, states, constants):
        inputs = [sequence, states, constants]
        return extern(self.r.out_shape, inputs, self._body, "float32", "recurrence", "easyquant_recurrence")

    def _body(self, ins, out):
        self.sequence, start, self.constants = ins
        self.out, self.ib, r = out, Builder(), self.r
        ib = self.ib
        self.states = [self._map(r.size, "state") for _ in r.states]
        self.made = {
            place: self._map(r.matrices[value][1], "product")
            for place, (op, _, value) in enumerate(r.program) if op == "matmul"
        }  # fmt: skip
        taken = {
            place: self._map(r.matrices[r.program[place][2]][0], "taken")
            for place in self.made if self._state_of(place) is None
        }  # fmt: skip

        def begin(n, c, lanes):
            for which, state in enumerate(self.states):
                value = start.vload([which, n, c], with_lanes("float32", lanes))
                ib.emit(state.vstore([n * r.size + c], value))
                if r.begun and which == r.output:
                    ib.emit(out.vstore([r.first - r.stride, n, c], value))

        self._each(r.size, begin)
        with ib.for_range(0, r.steps, "step") as step:
            self.row = step * r.stride + r.first
            for place in self.made:
                which = self._state_of(place)
                if which is None:
                    self._keep(r.program[place][1][0], taken[place], r.matrices[r.program[place][2]][0])
                self._product(place, taken[place] if which is None else self.states[which])
            self._each(r.size, self._step)
        return ib.get()

    def _map(self, columns: int, name: str):
        """Memory for (N, columns)."""
        buffer = self.ib.allocate("float32", self.r.batch * columns, name)
        self.ib.whole(buffer)
        return buffer

    def _each(self, columns: int, body: Callable):
        """body(n, column, lanes) of the vectors that cover (N, columns)."""
        with self.ib.for_range(0, self.r.batch, "n") as n:
            whole = columns // self.lanes
            with self.ib.for_range(0, whole, "c") as c:
                body(n, c * self.lanes, self.lanes)
            at = whole * self.lanes
            for lanes in pieces(columns - at, self.lanes):
                body(n, at, lanes)
                at += lanes

    def _state_of(self, place: int) -> int | None:
        """The number of the state that a product multiplies, None if it is computed."""
        ((kind, value),) = self.r.program[place][1]
        return value if kind == "state" else None

    def _keep(self, operand, into, columns: int):
        def store(n, c, lanes):
            self.ib.emit(into.vstore([n * columns + c], self._value(operand, (n, c), 0, lanes, {})))

        self._each(columns, store)

    def _step(self, n, c, lanes):
        """All states one step on: computed, and then written, as they are read where they are written."""
        r, known = self.r, {}  # type: ignore[var-annotated]
        values = [self._value(("here", place), (n, c), 0, lanes, known) for place in r.states]
        for which, (state, value) in enumerate(zip(self.states, values, strict=True)):
            self.ib.emit(state.vstore([n * r.size + c], value))
            if which == r.output:
                self.ib.emit(self.out.vstore([self.row, n, c], value))

    # -- products

    def _product(self, place: int, source):
        depth, columns = self.r.matrices[self.r.program[place][2]]
        start = self.places[self.r.program[place][2]]
        blocks, rest = divmod(columns, self.block)

        def tile(n, count, block, vectors):
            self._tile(self.made[place], source, (depth, columns), start, (n, count, block, vectors))

        def rows(n, count):
            with self.ib.for_range(0, blocks, "block") as block:
                tile(n, count, block, [self.lanes] * (self.block // self.lanes))
            if rest:
                tile(n, count, tir.const(blocks, "int32"), pieces(rest, self.lanes))

        whole = self.r.batch // self.together
        with self.ib.for_range(0, whole, "rows") as n:
            rows(n * self.together, self.together)
        if self.r.batch % self.together:
            rows(whole * self.together, self.r.batch % self.together)

    def _tile(self, into, source, size, start, tile):
        (depth, columns), (n, count, block, vectors) = size, tile
        ib, wide = self.ib, sum(vectors)
        acc = ib.allocate("float32", count * wide, "acc")
        firsts = np.cumsum([0, *vectors[:-1]])
        places = [(i, int(first), with_lanes("float32", lanes)) for i in range(count)
                  for first, lanes in zip(firsts, vectors, strict=True)]  # fmt: skip
        for i, first, dtype in places:
            ib.emit(acc.vstore([i * wide + first], const(0.0, dtype)))
        base = block * (self.block * depth) + start
        with ib.for_range(0, depth, "k") as k:
            for i, first, dtype in places:
                weight = self.constants.vload([base + k * wide + first], dtype)
                x = source.vload([(n + i) * depth + k], "float32")
                slot = [i * wide + first]
                ib.emit(acc.vstore(slot, fused(acc.vload(slot, dtype), x, weight)))
        for i, first, dtype in places:
            at = (n + i) * columns + block * self.block + first
            ib.emit(into.vstore([at], acc.vload([i * wide + first], dtype)))

    # -- numbers

    def _value(self, operand, at, skip: int, lanes: int, known: dict):
        """Lanes of an operand from the column ``skip`` behind ``at``, (n, column), on; known: what has been
        computed there."""
        (kind, value), (n, column), dtype = operand, at, with_lanes("float32", lanes)
        if kind == "number":
            return const(value, dtype)
        if kind == "vector":
            return self.constants.vload(
                [column + (self.places[len(self.r.matrices) + value] + skip)], dtype
            )
        if kind == "state":
            return self.states[value].vload([n * self.r.size + column + skip], dtype)
        if (value, skip) not in known:
            known[value, skip] = self._kept(self._computed(value, at, skip, lanes, known))
        return known[value, skip]

    def _computed(self, place: int, at, skip: int, lanes: int, known: dict):
        op, operands, value = self.r.program[place]
        (n, column), dtype = at, with_lanes("float32", lanes)
        if op == "row":
            return self.sequence.vload([self.row, n, column + skip], dtype)
        if op == "matmul":
            return self.made[place].vload([n * self.r.matrices[value][1] + column + skip], dtype)
        if op == "slice":
            return self._value(operands[0], at, skip + value, lanes, known)
        x = [self._value(operand, at, skip, lanes, known) for operand in operands]
        if op in OPERATORS:
            return OPERATORS[op](*x)

        def of(name, value):
            return epilogue.applied((name, "x"), epilogue.fence(self._kept(value)), keep=self._kept)

        return function.real(op, x[0], epilogue.LANES, of)

    def _kept(self, value):
        """It in memory of its own, so that it is computed once."""
        lanes = lanes_of(dtype_of(value))[1]
        buffer = self.ib.allocate("float32", lanes, "kept")
        self.ib.emit(buffer.vstore([0], value))
        return buffer.vload([0], dtype_of(value))
