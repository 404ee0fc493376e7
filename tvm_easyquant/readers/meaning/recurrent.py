"""LSTM, GRU and RNN, step by step, and the sums along an axis. A long sequence is a large program, of which
`topi_ext.recurrence` makes a loop again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from ...network.tensors import NUMPY
from ..onnx_op import Call, NotConstant, OnnxOp
from .algebra import Value, value, values

#: steps that are written out
LONGEST = 512

Step = Callable[[Value, list[Value]], list[Value]]

#: activation -> (of x, alpha and beta; what they are where they are not given, None: they must be)
ACTIVATIONS: dict[str, tuple[Callable[..., Value], tuple[float, ...] | None]] = {
    "affine": (lambda x, alpha, beta: x * alpha + beta, (1.0, 0.0)),
    "elu": (lambda x, alpha: x.where(x > 0, (x.exp() - 1) * alpha), (1.0,)),
    "hardsigmoid": (lambda x, alpha, beta: (x * alpha + beta).at_least(0).at_most(1), (0.2, 0.5)),
    "leakyrelu": (lambda x, alpha: x.where(x > 0, x * alpha), (0.01,)),
    "relu": (lambda x: x.at_least(0), ()),
    "scaledtanh": (lambda x, alpha, beta: (x * beta).unary("tanh") * alpha, None),
    "sigmoid": (lambda x: x.unary("sigmoid"), ()),
    "softplus": (lambda x: (x.exp() + 1).log(), ()),
    "softsign": (lambda x: x / (x.abs() + 1), ()),
    "tanh": (lambda x: x.unary("tanh"), ()),
    "thresholdedrelu": (lambda x, alpha: x.where(x > alpha, 0), (1.0,)),
}
#: how many numbers an activation takes: alpha, or alpha and beta
NUMBERS = {"affine": 2, "hardsigmoid": 2, "scaledtanh": 2, "elu": 1, "leakyrelu": 1, "thresholdedrelu": 1}


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
    """A direction's activations; NotConstant for one that is unknown, or lacks its numbers."""
    ways = 2 if call["direction"] == "bidirectional" else 1
    named = [str(name) for name in call.get("activations") or [*usual] * ways]
    alphas, betas = (iter(call.get(f"activation_{which}") or ()) for which in ("alpha", "beta"))
    chosen = []
    for name in named:  # those of both directions in turn take the numbers that are given
        function, numbers = ACTIVATIONS.get(name.lower(), (None, None))
        known = NUMBERS.get(name.lower(), 0)
        given = [*islice(alphas, min(known, 1)), *islice(betas, max(known - 1, 0))]
        numbers = (*given, *(numbers or ())[len(given) :])
        if function is None or len(numbers) != known:
            raise NotConstant(f"{call.op.op} with the activations {', '.join(named)}")
        chosen.append(partial(_applied, function, numbers))
    if len(chosen) < count * ways:  # the schema names two of an RNN that takes one
        raise NotConstant(f"{call.op.op} with the activations {', '.join(named)}")
    clip = call.get("clip")

    def clipped(function):
        return function if clip is None else lambda x: function(x.at_least(-clip).at_most(clip))

    functions = chosen[direction * count : (direction + 1) * count]
    return [*map(clipped, functions[:2]), *functions[2:]]  # the third, of the memory, no runtime clips


def _applied(function: Callable[..., Value], numbers: Sequence[float], x: Value) -> Value:
    return function(x, *numbers)


def _lstm_cell(call: Call, direction: int) -> tuple[_Cell, Step]:
    cell, forgets = _Cell(call, direction, 4), not call.get("input_forget", 0)
    f, g, h = _activations(call, direction, *CELLS["LSTM"])

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
    f, g = _activations(call, direction, *CELLS["GRU"])

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
    (f,) = _activations(call, direction, *CELLS["RNN"])
    return cell, lambda x, state: [f(x + state[0].matmul(cell.recurrent) + cell.bias[1])]


def _recurrent(cell_of: Callable[[Call, int], tuple[_Cell, Step]], states: int) -> Callable[[Call], Any]:
    """The rule of a cell with so many states: Y (T, D, N, H), and the last of each state (D, N, H)."""

    def rule(call: Call) -> Any:
        x = values(call)[0]
        batch_first = call.get("layout", 0)
        x = x.transpose((1, 0, 2)) if batch_first else x
        steps, batch, features = x.shape
        lengths = call.known(4)
        whole = lengths is None or bool((np.asarray(lengths) == steps).all())
        if not steps > 0 or (steps > LONGEST and call.t is not NUMPY):
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
                before, state = state, step(part(sums, 0, number, number + 1).reshape((batch, wide)), state)
                out = state[0]
                if not whole:  # behind a sequence's end the state stays, and the output is zero
                    known = (np.asarray(lengths).reshape(batch, 1) > number).astype(np.float32)
                    inside, outside = x.constant(known), x.constant(1 - known)
                    state = [new * inside + old * outside for new, old in zip(state, before, strict=True)]
                    out = state[0] * inside
                each.append(out.reshape((1, 1, batch, cell.size)))
            made.append(joined(each[::-1] if backwards else each, 0))
            final = 0 if backwards else steps - 1  # cut from all, by which a host knows the loop
            hidden = part(made[-1], 0, final, final + 1) if whole else state[0]
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


def refused(op: OnnxOp) -> str | None:
    """Why a recurrent operator cannot be computed, with the cure; None of any other. onnx.reference, which
    computes what has no rule, ignores most of its attributes and inputs."""
    if op.op not in CELLS:
        return None
    if 4 in op.tensors:
        return "has sequence_lens that are computed; give them as a constant"
    call = Call(NUMPY, op, [np.zeros(0, np.float32)] * len(op.tensors))
    try:
        for direction in range(2 if call["direction"] == "bidirectional" else 1):
            _activations(call, direction, *CELLS[op.op])
    except NotConstant:
        named = ", ".join(map(str, call.get("activations")))
        return f"has the activations {named}, of which one is unknown or lacks its alpha or beta"
    return None


#: operator -> how many activations a direction has, and which if none are named
CELLS = {"GRU": (2, ("Sigmoid", "Tanh")), "LSTM": (3, ("Sigmoid", "Tanh", "Tanh")), "RNN": (1, ("Tanh",))}
RULES: dict[str, Callable[[Call], Any]] = {
    "CumSum": _cumulative_sum,
    "GRU": _recurrent(_gru_cell, 1),
    "LSTM": _recurrent(_lstm_cell, 2),
    "RNN": _recurrent(_rnn_cell, 1),
}
