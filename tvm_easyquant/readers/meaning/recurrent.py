"""LSTM, GRU and RNN, step by step, and the sums along an axis. A long sequence is a large program, of which
`topi_ext.recurrence` makes a loop again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..onnx_op import Call, NotConstant
from .algebra import Value, value, values

#: steps that are written out
LONGEST = 512

Step = Callable[[Value, list[Value]], list[Value]]

#: activations without numbers of their own
ACTIVATIONS: dict[str, Callable[[Value], Value]] = {
    "affine": lambda x: x,
    "elu": lambda x: x.where(x > 0, x.exp() - 1),
    "hardsigmoid": lambda x: (x * 0.2 + 0.5).at_least(0).at_most(1),
    "leakyrelu": lambda x: x.where(x > 0, x * 0.01),
    "relu": lambda x: x.at_least(0),
    "sigmoid": lambda x: x.unary("sigmoid"),
    "softplus": lambda x: (x.exp() + 1).log(),
    "softsign": lambda x: x / (x.abs() + 1),
    "tanh": lambda x: x.unary("tanh"),
}


def part(x: Value, axis: int, first: int, last: int) -> Value:
    """From ``first`` to before ``last`` along an axis."""
    begin, end = [0] * x.rank, list(x.shape)
    begin[axis], end[axis] = first, last
    return Value(x.t, x.t.crop(x.tensor, begin, end, [1] * x.rank))


def joined(parts: Sequence[Value], axis: int) -> Value:
    t = parts[0].t
    return parts[0] if len(parts) == 1 else Value(t, t.concat([p.tensor for p in parts], axis))


def _half(which: int, bias):
    """Of a vector, an array or a `Value`."""
    size = bias.shape[0] // 2
    first, last = which * size, (which + 1) * size
    return bias[first:last] if isinstance(bias, np.ndarray) else part(bias, 0, first, last)


class _Cell:
    """One direction of a recurrent operator: its weights, and what a step makes of the state.

    x W^T of all steps is one product; ``weights`` (G H, I), ``recurrent`` (G H, H), each half of the bias
    (G H,), zeros where there is none; G gates in ONNX's order.
    """

    def __init__(self, call: Call, direction: int, gates: int):
        self.size = call["hidden_size"]
        wide, x = gates * self.size, values(call)[0]

        def own(place: int, change: Callable = lambda numbers: numbers) -> Any:
            """The direction's part of an input, changed; of a known one it is a constant in a module,
            too."""
            if (known := call.op.constants.get(place)) is not None:
                return x.constant(np.ascontiguousarray(change(known[direction])))
            if (numbers := value(call, place)) is None:
                return None
            found = part(numbers, 0, direction, direction + 1)
            return change(found.reshape(found.shape[1:]))

        self.weights, self.recurrent = (own(place, lambda w: w.transpose((1, 0))) for place in (1, 2))
        halves = [own(3, partial(_half, which)) for which in (0, 1)]
        self.bias = [x.constant(np.zeros(wide)) if half is None else half for half in halves]
        self.peepholes = own(7)

    def gate(self, x: Value, number: int) -> Value:
        """Of numbers of all gates those of one; the last axis is cut."""
        return part(x, x.rank - 1, number * self.size, (number + 1) * self.size)


def _activations(call: Call, direction: int, count: int, usual: Sequence[str]) -> list[Callable]:
    """A direction's activations; NotConstant for numbers of their own or an unknown one."""
    if call.get("activation_alpha") or call.get("activation_beta"):
        raise NotConstant(f"{call.op.op} with numbers for its activations")
    named = call.get("activations") or [*usual] * (direction + 1)
    chosen = [str(name).lower() for name in named[direction * count : (direction + 1) * count]]
    unknown = [name for name in chosen if name not in ACTIVATIONS]
    if len(chosen) != count or unknown:
        raise NotConstant(f"{call.op.op} with the activations {', '.join(map(str, named))}")
    clip = call.get("clip")

    def clipped(function):
        return function if clip is None else lambda x: function(x.at_least(-clip).at_most(clip))

    functions = [ACTIVATIONS[name] for name in chosen]  # the third, of the memory, no runtime clips
    return [*map(clipped, functions[:2]), *functions[2:]]


def _lstm_cell(call: Call, direction: int) -> tuple[_Cell, Step]:
    cell, forgets = _Cell(call, direction, 4), not call.get("input_forget", 0)
    f, g, h = _activations(call, direction, 3, ("Sigmoid", "Tanh", "Tanh"))

    def peep(number, state):
        return 0 if cell.peepholes is None else state * cell.gate(cell.peepholes, number)

    def step(x: Value, state: list[Value]) -> list[Value]:
        hidden, memory = state
        sums = x + hidden.matmul(cell.recurrent) + cell.bias[1]
        i, o, forget, c = (cell.gate(sums, k) for k in range(4))
        i = f(i + peep(0, memory))
        forget = f(forget + peep(2, memory)) if forgets else 1 - i
        memory = forget * memory + i * g(c)
        return [f(o + peep(1, memory)) * h(memory), memory]

    return cell, step


def _gru_cell(call: Call, direction: int) -> tuple[_Cell, Step]:
    cell, late = _Cell(call, direction, 3), call.get("linear_before_reset", 0)
    f, g = _activations(call, direction, 2, ("Sigmoid", "Tanh"))

    def step(x: Value, state: list[Value]) -> list[Value]:
        (hidden,) = state
        sums = hidden.matmul(cell.recurrent) + cell.bias[1]
        z, r = (f(cell.gate(x, k) + cell.gate(sums, k)) for k in (0, 1))
        if late:
            new = r * cell.gate(sums, 2)
        else:
            new = (r * hidden).matmul(cell.gate(cell.recurrent, 2)) + cell.gate(cell.bias[1], 2)
        return [(1 - z) * g(cell.gate(x, 2) + new) + z * hidden]

    return cell, step


def _rnn_cell(call: Call, direction: int) -> tuple[_Cell, Step]:
    cell = _Cell(call, direction, 1)
    (f,) = _activations(call, direction, 1, ("Tanh",))
    return cell, lambda x, state: [f(x + state[0].matmul(cell.recurrent) + cell.bias[1])]


def _recurrent(cell_of: Callable[[Call, int], tuple[_Cell, Step]], states: int) -> Callable[[Call], Any]:
    """The rule of a cell with so many states: Y (T, D, N, H), and the last of each state (D, N, H)."""

    def rule(call: Call) -> Any:
        x = values(call)[0]
        batch_first = call.get("layout", 0)
        x = x.transpose((1, 0, 2)) if batch_first else x
        steps, batch, features = x.shape
        lengths = call.known(4)
        if lengths is not None and (np.asarray(lengths) != steps).any():
            raise NotConstant(f"{call.op.op} of sequences of several lengths")
        if not 0 < steps <= LONGEST:
            raise NotConstant(f"{call.op.op} of {steps} steps; at most {LONGEST} are written out")
        way = call["direction"]
        made, last = [], []
        for direction in range(2 if way == "bidirectional" else 1):
            cell, step = cell_of(call, direction)
            wide = cell.weights.shape[1]
            sums = x.reshape((steps * batch, features)).matmul(cell.weights) + cell.bias[0]
            sums = sums.reshape((steps, batch, wide))
            state = [_start(call, place, direction, x, cell.size) for place in (5, 6)[:states]]
            each: list[Value] = []
            backwards = way == "reverse" or direction == 1
            for number in reversed(range(steps)) if backwards else range(steps):
                state = step(part(sums, 0, number, number + 1).reshape((batch, wide)), state)
                each.append(state[0].reshape((1, 1, batch, cell.size)))
            made.append(joined(each[::-1] if backwards else each, 0))
            final = 0 if backwards else steps - 1  # cut from all, by which a host knows the loop
            hidden = part(made[-1], 0, final, final + 1)
            last.append([one.reshape((1, batch, cell.size)) for one in (hidden, *state[1:])])
        y = joined(made, 1)
        ends = [joined([direction[k] for direction in last], 0) for k in range(states)]
        if batch_first:
            y, ends = y.transpose((2, 0, 1, 3)), [end.transpose((1, 0, 2)) for end in ends]
        return tuple(one.tensor for one in (y, *ends))

    return rule


def _start(call: Call, place: int, direction: int, x: Value, size: int) -> Value:
    """(N, H): a direction's state before the first step, zeros where it is left out."""
    given = value(call, place)
    if given is None:
        return x.constant(np.zeros((x.shape[1], size)))
    given = given.transpose((1, 0, 2)) if call.get("layout", 0) else given
    return part(given, 0, direction, direction + 1).reshape((x.shape[1], size))


def _cumulative_sum(call: Call) -> Any:
    x = values(call)[0]
    axis = int(np.asarray(call.known(1)).reshape(())) % x.rank
    size = x.shape[axis]
    if not 0 < size <= LONGEST:
        raise NotConstant(f"CumSum of {size} numbers; at most {LONGEST} are written out")
    order = range(size)[::-1] if call["reverse"] else range(size)
    first = part(x, axis, 0, 1)
    total, sums = first.constant(np.zeros(first.shape)), {}
    for number in order:
        before, total = total, total + part(x, axis, number, number + 1)
        sums[number] = before if call["exclusive"] else total
    return joined([sums[number] for number in range(size)], axis).tensor


RULES: dict[str, Callable[[Call], Any]] = {
    "CumSum": _cumulative_sum,
    "GRU": _recurrent(_gru_cell, 1),
    "LSTM": _recurrent(_lstm_cell, 2),
    "RNN": _recurrent(_rnn_cell, 1),
}
