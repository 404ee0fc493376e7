"""What every reader shares: a `Graph`, built value by value from a program in topological order.

Batch normalization, biases and constants per channel are folded into the layer before them; a chain of
functions of one number becomes one elementwise node; a transposed convolution becomes a convolution and a
depth to space. A *value* is whatever the reader calls a tensor by (a Relay expression, an ONNX name).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from . import resample
from .graph import Graph
from .layout import NCHW_TO_NHWC, NHWC_TO_NCHW, nchw, nhwc, nhwc_axes, nhwc_axis
from .node import Node, model_shape
from .ops import is_depthwise

Value = Hashable


class OnMap(NamedTuple):
    """What makes a value that is no map, on a map: its node has the value's name."""

    value: Value


class Aside(NamedTuple):
    """A value whose batch is not its first axis; no node is made of it before one reads it.

    at: its axis of the batch; shape: the model's. make(value): makes ``value``, the same with it first.
    """

    at: int
    shape: tuple[int, ...]
    make: Callable[[Value], object]


class _Tensors(dict[Value, str]):
    """value -> the name of its node, which ``make(value)`` makes where an operator needs what is aside."""

    def __init__(self, make: Callable[[Value], None]):
        super().__init__()
        self.make = make

    def __missing__(self, value: Value) -> str:
        self.make(value)
        if value not in self:
            raise KeyError(value)
        return self[value]


#: what became an operator, in the order in which tables were made that know it as a float node
EDITIONS = (
    "joins and moves of tensors, layers of one dimension, products of two tensors",
    "layer normalizations, means along any axis, averages that leave padding out, batches in a reshape",
)


class Builder:
    """uses: value -> how many read it, outputs counted. label(value): what the model calls the operator
    that makes it, or nothing. float_node(value): makes the float node of one that is `Aside`.

    tensor: value -> the name of the node whose tensor it is; what depends on no input is not there.
    edition: of `EDITIONS`; below the last one it makes the graph that earlier tables are of
    (`Graph.former`): what became an operator later stays float. newest: the last edition that mattered.
    """

    def __init__(
        self,
        uses: MutableMapping[Value, int],
        label: Callable[[Value], str],
        edition: int = len(EDITIONS),
        float_node: Callable[[Any], None] = lambda value: None,
    ):
        self.uses, self.edition, self.newest = uses, edition, 0
        self.label: Callable[[Value], str] = lambda v: label(
            v.value if isinstance(v, OnMap) and edition else v
        )
        self.nodes: dict[str, Node] = {}
        self.tensor = _Tensors(lambda value: float_node(value) if value in self.aside else None)
        self.aside: dict[Value, Aside] = {}
        self.taken: set[str] = set()
        #: last node of a transposed convolution, or of a layer on a tensor that is no map -> its conv2d
        self.transposed: dict[str, str] = {}
        #: a tensor that is a map in another shape (see `of_map`) -> whether its channels are its last axis
        self.lowered: dict[str, bool] = {}
        #: one that the model itself turned from a map -> how many read that map beside it
        self.beside: dict[str, int] = {}

    def known(self, value: Value) -> bool:
        """Whether it depends on an input."""
        return value in self.tensor or value in self.aside

    def batch_axis(self, value: Value) -> int:
        return self.aside[value].at if value in self.aside else 0

    def node(self, value: Value) -> Node:
        """The node whose tensor the value is."""
        return self.nodes[self.tensor[value]]

    def unique(self, base: str) -> str:
        """A name that no node has yet: ``base``, or with a number behind it."""
        unique, n = base, 1
        while unique in self.taken:
            n += 1
            unique = f"{base}_{n}"
        self.taken.add(unique)
        return unique

    def input(self, value: Value, name: str, shape: Sequence[int], dtype: str = "float32") -> None:
        """An input of the network; shape: NHWC."""
        self.taken.add(name)
        self.nodes[name] = Node(name, "input", (), tuple(shape), dtype=dtype)
        self.tensor[value] = name

    def add(
        self,
        value: Value,
        op: str,
        inputs: Iterable[str],
        shape: Sequence[int],
        attrs: Mapping,
        weight: np.ndarray | None = None,
        bias: np.ndarray | None = None,
        dtype: str = "float32",
        called: str | None = None,
    ) -> str:
        """A node that makes ``value``; returns its name. A layer without a bias gets zeros; called: what
        one without a label is named after, by default its operator."""
        name = self.unique(self.label(value) or f"{called or op}_{len(self.nodes)}")
        if weight is None:
            node = Node(name, op, tuple(inputs), tuple(shape), attrs, source=(name,), dtype=dtype)
        else:
            bias = np.zeros(weight.shape[-1], np.float32) if bias is None else bias
            node = Node(name, op, tuple(inputs), tuple(shape), attrs, weight, bias, (name,))
        self.nodes[name] = node
        self.tensor[value] = name
        return name

    def since(self, edition: int = 1) -> bool:
        """Whether what tables before an edition know as a float node may be an operator."""
        if edition > self.edition:
            return False
        self.newest = max(self.newest, edition)
        return True

    def alias(self, value: Value, original: Value) -> None:
        """``value`` is the tensor ``original``: those who read it read that."""
        self.tensor[value] = self.tensor[original]
        self.uses[value] = self.uses.get(value, 0) + self.uses[original] - 1

    def graph(
        self,
        outputs: Sequence[str],
        name: str,
        output_names: Iterable[str] | None = None,
        notes: Iterable[str] = (),
    ) -> Graph:
        """The finished network, without what nobody reads: elementwise nodes that were gathered into later
        ones, a pad that a convolution took."""
        alive = set(outputs)
        for node in reversed(list(self.nodes.values())):
            if node.name in alive or node.op == "input":
                alive.update(node.inputs)
            else:
                del self.nodes[node.name]
        return Graph(self.nodes.values(), outputs, name, output_names, notes)

    # -- scale * data + shift

    def fold_affine(self, value: Value, data: Value, scale, shift, last: bool = False) -> bool:
        """Fold ``scale * data + shift`` (each () or (K,)) into the layer before it; False if not.

        last: of the last axis, not of the channels.
        """
        name = self.transposed.get(self.tensor[data], self.tensor[data])
        node = self.nodes[name]
        if node.weight is None or self.uses[data] != 1:
            return False
        if max(np.size(scale), np.size(shift)) > 1 and self.lowered.get(self.tensor[data], False) != last:
            return False
        if (
            name != self.tensor[data]
        ):  # every phase has all the channels; of groups, every channel its phases
            spread = np.tile if node.groups == 1 or is_depthwise(node) else np.repeat
            scale, shift = (spread(v, node.channels // np.size(v)) for v in (scale, shift))
        scale = np.broadcast_to(scale, (node.channels,)).astype(np.float64)
        shift = np.broadcast_to(shift, (node.channels,)).astype(np.float64)
        label = self.label(value)
        with np.errstate(all="ignore"):  # what is not finite is told later, see `Node.broken`
            weight, bias = node.weight * scale, node.bias * scale + shift
            weight, bias = weight.astype(np.float32), bias.astype(np.float32)
        self.nodes[name] = replace(
            node,
            weight=weight,
            bias=bias,
            source=node.source if label in ("", *node.source) else (*node.source, label),
        )
        self.tensor[value] = self.tensor[data]
        return True

    def channels(self, value: Value, data: Value, scale, shift) -> bool:
        """``scale * data + shift`` (each () or (C,)) with nothing to fold into: a 1x1 depthwise layer, of
        (N, C, L) on a map. False of what has other axes: a vector behind a normalization stays float."""
        shape = self.node(data).shape
        if len(shape) == 3:
            return self.on_map(value, data, shape, lambda made, x, _: self.channels(made, x, scale, shift))
        if len(shape) != 4:
            return False
        attrs = dict(strides=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=shape[3])
        weight, bias = (np.broadcast_to(v, shape[3:]).astype(np.float32) for v in (scale, shift))
        self.one(value, "conv2d", data, shape, attrs, weight=weight.reshape(1, 1, 1, -1), bias=bias)
        return True

    # -- functions of one number

    def function(self, value: Value, name: str, operands: Sequence, shape, *parameters: object) -> bool:
        """A function of `expression.FUNCTIONS` whose tensors are all functions of one tensor: part of an
        elementwise node. False if they are not.

        operands: values, or constants: a float, or None for one that is not a single number. parameters:
        floats, or a tuple of them, one a channel.
        """
        tensors = [o for o in operands if o is not None and not isinstance(o, float)]

        def on_maps(made, maps, high):
            known = dict(zip(tensors, maps, strict=True))
            return self.function(made, name, [known.get(o, o) for o in operands], high, *parameters)

        # one number a channel is not of the channels of a map whose channels are the last axis
        kinds = (False,) if any(isinstance(p, tuple) for p in parameters) else (False, True)
        lowered = all(self.lowered.get(self.tensor[t]) in kinds for t in tensors)
        if lowered and self._lift(value, tensors, shape, on_maps):
            return True
        inputs = [self._operand(operand) for operand in operands]
        bases = {base for base, _ in inputs if base is not None}
        if len(bases) != 1 or any(e is None for _, e in inputs):
            return False
        (base,) = bases
        if self.nodes[base].shape != tuple(shape):
            return False
        expression = (name, *(e for _, e in inputs), *parameters)
        self.add(value, "elementwise", [base], shape, dict(expression=expression))
        return True

    def _operand(self, operand):
        """(tensor or None, expression of it or None)."""
        if operand is None or isinstance(operand, float):
            return None, operand
        node = self.node(operand)
        return (node.inputs[0], node.attrs["expression"]) if node.op == "elementwise" else (node.name, "x")

    def multiply(self, value: Value, a: Value, b: Value, shape: Sequence[int]) -> bool:
        """The product of two maps, or of one and its gate: (N, 1, 1, C), (N, H, W, 1), any that is repeated
        along the axes where it has a size of 1. False of other shapes."""
        full, gate = sorted((self.node(a), self.node(b)), key=lambda node: -prod(node.shape))
        if full.shape != tuple(shape):
            return False
        if len(shape) == 4 and gate.shape == (shape[0], 1, 1, shape[3]):
            self.add(value, "mul", [full.name, gate.name], shape, {})
        elif gate.shape == tuple(shape):
            self.add(value, "mul", [self.tensor[a], self.tensor[b]], shape, {})
        elif _repeats(gate.shape, shape) and self.since():
            self.add(value, "mul", [full.name, gate.name], shape, {})
        else:
            return False
        return True

    # -- operators of one tensor, as every reader knows them; False where the value stays float

    def one(self, value: Value, op: str, data: Value, shape: Sequence[int], attrs: Mapping, **more) -> str:
        """A node of one input."""
        return self.add(value, op, [self.tensor[data]], shape, attrs, **more)

    def affine(
        self, value: Value, name: str, data: Value, constant: np.ndarray, left: bool, shape: Sequence[int]
    ) -> bool:
        """An operator of a tensor and a constant (on its ``left``, or its right), folded into the layer
        before it, as a function of one number, or as a layer of its own.

        name: add, subtract, multiply, divide; shape: of the result, NHWC.
        """
        if self.node(data).shape != tuple(shape):
            return False
        last = self.lowered.get(self.tensor[data], False)
        vector = per_channel(constant, nchw(shape), -1 if last else 1)
        if vector is None:
            return False
        rule = AFFINE[name][1 if left else 0]
        if rule is not None:
            with np.errstate(all="ignore"):
                scale, shift = rule(vector)
            if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
                return False  # x / 0 is infinite; weights times infinity are not a number
            if self.fold_affine(value, data, scale, shift, last):
                return True
        channels = vector.reshape(-1, 1, 1) if vector.ndim else vector
        if self._lift(
            value, [data], shape,
            lambda made, maps, high: self.affine(made, name, maps[0], channels, left, high),
        ):  # fmt: skip
            return True
        if vector.ndim == 0:
            number = float(vector)
            return self.function(value, name, [number, data] if left else [data, number], shape)
        if rule is None or last or (len(shape) == 3 and not self.since(2)):
            return False
        return self.channels(value, data, scale, shift)

    def join(self, value: Value, name: str, a: Value, b: Value, shape: Sequence[int]) -> bool:
        """A sum, a difference, a product or the larger or smaller of two tensors, of which one may be
        repeated along the axes where it has a size of 1."""
        if self.function(value, name, [a, b], shape):
            return True
        if self._lift(
            value, [a, b], shape, lambda made, maps, high: self.join(made, name, maps[0], maps[1], high)
        ):
            return True
        if name == "multiply":
            return self.multiply(value, a, b, shape)
        op, shape, sizes = JOINS.get(name), tuple(shape), [self.node(v).shape for v in (a, b)]
        if op is None or shape not in sizes or not all(_repeats(size, shape) for size in sizes):
            return False
        if not (op == "add" and sizes[0] == sizes[1]) and not self.since():
            return False
        self.add(value, op, [self.tensor[a], self.tensor[b]], shape, {})
        return True

    def matmul(self, value: Value, a: Value, b: Value, shape: Sequence[int]) -> bool:
        """The product of two tensors (N, ..., M, C) and (N, ..., C, K) of the model; shape: NHWC."""
        left, right, made = model_shape(self.node(a)), model_shape(self.node(b)), nchw(shape)
        fits = (*left[:-1], right[-1]) == made and (*left[:-2], left[-1]) == right[:-1]
        if len(made) < 3 or not fits or not self.since():
            return False
        self.add(value, "matmul", [self.tensor[a], self.tensor[b]], shape, dict(depth=left[-1]))
        return True

    def two(self, value: Value, name: str, pair: Sequence, shape: Sequence[int]) -> bool:
        """An operator of two tensors, or of a tensor and a constant (an array, or a number)."""
        a, b = pair
        constants = [isinstance(operand, (np.ndarray, np.generic, float)) for operand in pair]
        if all(constants):
            return False
        if not any(constants):
            return self.join(value, name, a, b, shape)
        if name in AFFINE:
            data, constant = (b, a) if constants[0] else (a, b)
            return self.affine(value, name, data, np.asarray(constant), constants[0], shape)
        operands = [_number(v) if known else v for v, known in zip(pair, constants, strict=True)]
        return self.function(value, name, operands, shape)

    def chain(self, value: Value, data: Value, steps: Sequence[tuple], shape: Sequence[int]) -> bool:
        """Functions of one tensor, one behind the other; steps: see `pieces`."""
        read = [operand for _, *operands in steps for operand in operands]
        self.uses[data] += read.count("x") - 1
        made: dict[object, Value] = {"x": data}
        for i, (name, *operands) in enumerate(steps):
            key = f"#{i}"
            made[key] = value if i == len(steps) - 1 else (value, key)
            self.uses.setdefault(made[key], read.count(key))
            values: list[Any] = [made[o] if isinstance(o, str) else o for o in operands]
            if name == "clip":
                self.clip(made[key], *values)
            elif len(values) == 1:
                if not self.function(made[key], name, values, shape):
                    return False
            elif not self.two(made[key], name, values, shape):
                return False
        return True

    def pool(
        self, value: Value, op: str, data: Value, shape: Sequence[int], window: Mapping, **more
    ) -> None:
        """window: pool_size, strides and padding (top, left, bottom, right)."""
        self.one(value, op, data, shape, dict(window, **more))

    def average(
        self, value: Value, data: Value, shape: Sequence[int], window: Mapping, counted: bool
    ) -> bool:
        """The average of each window of a map; counted: with its padding, as zeros. shape: NHWC; window:
        see `pool`. False where a window has nothing of the map."""
        counted = counted or not any(window["padding"])
        if counted or not self.since(2):
            self.pool(value, "avg_pool2d", data, shape, window, count_include_pad=counted)
            return True
        counts, sizes = [], zip(self.node(data).shape[1:3], shape[1:3], strict=True)
        axes = zip(window["pool_size"], window["strides"], window["padding"][:2], strict=True)
        for (size, made), (kernel, stride, pad) in zip(sizes, axes, strict=True):
            first = [i * stride - pad for i in range(made)]
            counts.append(tuple(min(at + kernel, size) - max(at, 0) for at in first))
        if min(map(min, counts)) < 1:
            return False
        limits = zip(window["padding"], window["pool_size"] * 2, strict=True)
        padding = tuple(min(pad, size - 1) for pad, size in limits)  # what is beyond is in no window
        attrs = dict(window, padding=padding, rows=counts[0], columns=counts[1])
        self.one(value, "mean_pool2d", data, shape, attrs, called="avg_pool2d")
        return True

    def whole_map(self, value: Value, op: str, data: Value) -> bool:
        """A pool whose window is the map."""
        if len(self.node(data).shape) != 4:
            return False
        n, height, width, channels = self.node(data).shape
        window = dict(pool_size=(height, width), strides=(1, 1), padding=(0, 0, 0, 0))
        more = dict(count_include_pad=True) if op == "avg_pool2d" else dict(dilation=(1, 1))
        self.pool(value, op, data, (n, 1, 1, channels), window, **more)
        return True

    def reduce(self, value: Value, op: str, data: Value, axes: Sequence[int], shape: Sequence[int]) -> bool:
        """The mean or the largest (``op``: of `POOLS`) along axes of the model, not along the batch; shape:
        NHWC, with them of size 1, or without. Of height and width together it is a pool."""
        before, rows = model_shape(self.node(data)), self._channels_last(data)
        rank = len(before)
        axes = sorted({axis % rank for axis in axes}) if rank else []
        inner = list(range(1, rank - 1) if rows else range(2, rank))
        if (rank == 4 or rows is not None) and axes == inner and (op == "reduce_mean" or self.since()):
            return self._pool_all(value, POOLS[op], data, shape, rows)
        if not axes or axes[0] == 0 or not self.since(2 if op == "reduce_mean" and rank != 4 else 1):
            return False
        kept = nhwc(1 if axis in axes else n for axis, n in enumerate(before))
        made: Value = value if len(shape) == rank else (value, "kept")
        self.uses.setdefault(made, 1)
        along = tuple(sorted(nhwc_axis(axis, rank) for axis in axes))
        self.one(made, op, data, kept, dict(axes=along))
        return made is value or self.reshape(value, made, nchw(shape))

    def layer_norm(
        self, value: Value, data: Value, axis: int, attrs: Mapping | None, shape: Sequence[int]
    ) -> bool:
        """Along one axis; shape: of ``value``, in the model's layout; attrs: `normalization`'s."""
        if attrs is None or not self.since(2):
            return False
        last = axis % len(shape) == len(shape) - 1
        if len(shape) == 2 or (len(shape) == 4 and not last):
            self.one(value, "layer_norm", data, nhwc(shape), attrs)
            return True

        def norm(made, x, high):
            self.one(made, "layer_norm", x, high, attrs)

        return self.on_map(value, data, shape, norm, rows=last)

    def _pool_all(
        self, value: Value, op: str, data: Value, shape: Sequence[int], rows: bool | None
    ) -> bool:
        """A pool of the whole map that ``data`` is; rows: see `_channels_last`."""
        if rows is not None and len(shape) == len(self.node(data).shape):

            def pool(made, x, _):
                return self.whole_map(made, op, x)

            return self.on_map(value, data, nchw(shape), pool, rows=rows)
        self.whole_map(value, op, data if rows is None else self.as_map(data, rows))
        if len(shape) == 2:
            self.one(value, "reshape", value, shape, dict(shape=tuple(shape), channels_first=False))
        return True

    def reshape(self, value: Value, data: Value, shape: Sequence[int]) -> bool:
        """Another shape, of the same batch or of one that takes up the axes behind it, or gives them back;
        shape: NCHW."""
        after = tuple(shape)
        if data in self.aside:
            at, size, _ = self.aside[data]  # the numbers lie in the same order if no axis was passed
            same = after[:1] == (size[at],) and (size[at] == 1 or prod(size[:at]) == 1)
            return same and self.reshape(value, self._batch_first(data), shape)
        if self._channels_last(data) is False:  # the map holds the same numbers in the same order
            key = self.as_map(data)
            if model_shape(self.node(key)) == after:
                self.alias(value, key)
                return True
            data = key if len(after) != 4 else data
        before = model_shape(self.node(data))
        if not before or not after:
            return False
        if before[:1] != after[:1] and (min(len(before), len(after)) < 2 or not self.since(2)):
            return False
        if len(before) == len(after) == 4:  # of a map another one
            row = (before[0], prod(before[1:]))
            if not self.since():
                return False
            self.one(value, "reshape", data, row, dict(shape=row, channels_first=True))
            self.one(value, "reshape", value, nhwc(after), dict(shape=nhwc(after), channels_first=True))
            return True
        maps = [shape for shape in (before, after) if len(shape) == 4]
        first = any(prod(shape[2:]) > 1 for shape in maps)
        after = nhwc(after)
        self.one(value, "reshape", data, after, dict(shape=after, channels_first=first))
        return True

    def move(self, value: Value, data: Value, axes: Sequence[int], shape: Sequence[int]) -> bool:
        """A transposition of the axes of NCHW; shape: NHWC. What it makes is `Aside` where the batch does
        not stay first."""
        at = self.batch_axis(data)
        if (now := list(axes).index(at)) or at:
            return self.since() and self._move_batch(value, data, axes, now, nchw(shape))
        rows = self._channels_last(data)
        if rows is None and self._map_behind(self.tensor[data], False) and self.since():
            rows = False
        if rows and tuple(axes) == NHWC_TO_NCHW:
            self.alias(value, self.as_map(data, rows))
            return True
        if rows is not None and tuple(axes) == (0, 2, 1):  # one order of the same map instead of the other
            key, made = self.as_map(data, rows), OnMap(value)
            n, height, width, depth = self.node(key).shape
            self.uses[made] = 1
            self.one(made, "transpose", key, (n, width, height, depth), dict(axes=(0, 2, 1, 3)))
            self.of_map(value, made, shape, not rows)
            return True
        name = self.one(value, "transpose", data, shape, dict(axes=nhwc_axes(axes)))
        if rows is None and tuple(axes) == NCHW_TO_NHWC and self.since():
            self.lowered[name], self.beside[name] = True, self.uses[data] - 1
        return True

    def _move_batch(
        self, value: Value, data: Value, axes: Sequence[int], now: int, shape: Sequence[int]
    ) -> bool:
        """A transposition that moves the batch to the axis ``now``, or back; shape: NCHW."""
        at = self.batch_axis(data)
        turn = [axis + (axis < at) if axis != at else 0 for axis in _first(axes, now)]

        def turned(made: Value) -> bool:
            return self.move(made, self._batch_first(data), turn, nhwc(_first(shape, now)))

        if now == 0:
            return turned(value)
        self.aside[value] = Aside(now, tuple(shape), turned)
        return True

    def _batch_first(self, value: Value) -> Value:
        """The same as a value with the batch first, which several may read."""
        if value not in self.aside:
            return value
        # a step on the way to a tensor begins with that
        key = (*value, "batch first") if isinstance(value, tuple) else (value, "batch first")
        if key not in self.tensor:
            self.uses[key] = 2
            self.aside[value].make(key)
        return key

    def concat(self, value: Value, tensors: Sequence[Value], axis: int, shape: Sequence[int]) -> bool:
        """Tensors one behind the other along an NCHW axis; shape: NHWC."""
        there = [a for t in tensors if (a := self._axis_on_map(t, axis)) is not None]
        if there and self._lift(
            value, tensors, shape, lambda made, maps, high: self.concat(made, maps, there[0], high)
        ):
            return True
        attrs = dict(axis=nhwc_axis(axis, len(shape)))
        self.add(value, "concat", [self.tensor[t] for t in tensors], shape, attrs)
        return True

    def crop(self, value: Value, data: Value, slices: Mapping[int, slice], shape: Sequence[int]) -> bool:
        """One slice for each NCHW axis that has one, but for the batch; shape: NHWC."""
        if data in self.aside:
            places = [range(n) for n in self.aside[data].shape]
            return self.gather(
                value, data, [p[slices.get(axis, slice(None))] for axis, p in enumerate(places)], shape
            )
        size = model_shape(self.node(data))
        rank = len(size)
        there = {a: w for axis, w in slices.items() if (a := self._axis_on_map(data, axis)) is not None}
        if there and self._lift(
            value, [data], shape, lambda made, maps, high: self.crop(made, maps[0], there, high)
        ):
            return True
        begin, end, strides = [0] * rank, list(size), [1] * rank
        for axis, wanted in slices.items():
            begin[axis], end[axis], strides[axis] = wanted.indices(size[axis])
        if rank < 2 or (begin[0], end[0], strides[0]) != (0, size[0], 1):
            return False
        if min(strides) < 1:
            places = [range(*bounds) for bounds in zip(begin, end, strides, strict=True)]
            return self.gather(value, data, places, shape)
        if rank != 4 and not self.since():
            return False
        attrs = dict(begin=nhwc(begin), end=nhwc(end), strides=nhwc(strides))
        self.one(value, "slice", data, shape, attrs)
        return True

    def pad(self, value: Value, data: Value, widths: Sequence[Sequence[int]], shape: Sequence[int]) -> bool:
        """Zeros around a map; widths: (before, after) of each NCHW axis."""
        pairs = [tuple(pair) for pair in widths]
        there = {a: p for axis, p in enumerate(pairs) if (a := self._axis_on_map(data, axis)) is not None}
        spread = [there.get(axis, (0, 0)) for axis in range(4)]
        if there and self._lift(
            value, [data], shape, lambda made, maps, high: self.pad(made, maps[0], spread, high)
        ):
            return True
        if len(pairs) != 4 or pairs[0] != (0, 0) or min(min(pair) for pair in pairs) < 0:
            return False
        self.one(value, "pad", data, shape, dict(widths=nhwc(pairs)))
        return True

    def gather(
        self, value: Value, data: Value, indices: Sequence[Sequence[int] | None], shape: Sequence[int]
    ) -> bool:
        """The places ``indices`` of each NCHW axis (None: all, as they are), none negative; not of the
        batch. shape: NHWC."""
        if data in self.aside:
            at, size, _ = self.aside[data]
            if 0 in shape or (indices[at] is not None and list(indices[at] or ()) != list(range(size[at]))):
                return False
            there, made = [indices[at], *indices[:at], *indices[at + 1 :]], _first(nchw(shape), at)
            self.aside[value] = Aside(
                at,
                nchw(shape),
                lambda key: self.gather(key, self._batch_first(data), there, nhwc(made)),
            )
            return True
        size = model_shape(self.node(data))
        places = [
            None if given is None or list(given) == list(range(n)) else tuple(map(int, given))
            for given, n in zip(indices, size, strict=True)
        ]
        if len(size) < 2 or places[0] is not None or 0 in shape or not self.since():
            return False
        taken = {axis: indices for axis, indices in enumerate(places) if indices is not None}
        if not taken:
            self.alias(value, data)
            return True
        slices = {axis: found for axis in taken if (found := _slice_of(taken[axis])) is not None}
        if len(slices) == len(taken):
            return self.crop(value, data, slices, shape)
        self.one(value, "gather", data, shape, dict(indices=nhwc(places)))
        return True

    def moved(
        self, value: Value, data: Value, shape: Sequence[int], made: Callable[[np.ndarray], np.ndarray]
    ) -> bool:
        """An operator that moves numbers and computes none, if it takes places of each axis by itself;
        which, it is asked itself. made: what it makes of an array, NHWC; shape: NHWC."""
        size, shape = self.node(data).shape, tuple(shape)
        if len(size) != len(shape) or not size or 0 in (*size, *shape) or not self.edition:
            return False
        indices: list[list[int]] = [[]] * len(size)
        for axes in _groups(size):  # float32 has a number for each place
            known = [n if axis in axes else 1 for axis, n in enumerate(size)]
            places = np.arange(prod(known), dtype=np.float32).reshape(known)
            found = made(np.ascontiguousarray(np.broadcast_to(places, size)))
            wanted = places
            for axis in axes:
                line = found[tuple(slice(None) if i == axis else 0 for i in range(len(size)))]
                indices[axis] = np.unravel_index(line.astype(np.int64) % places.size, known)[axis].tolist()
                wanted = wanted.take(indices[axis], axis)
            if found.shape != shape or not np.array_equal(found, np.broadcast_to(wanted, shape)):
                return False
        return self.gather(value, data, nchw(indices), shape)

    def space_to_depth(self, value: Value, data: Value, block: int, shape: Sequence[int]) -> bool:
        """Blocks of height and width become channels, whose own are the last; shape: NHWC."""
        if not self.since():
            return False
        n, channels, height, width = model_shape(self.node(data))
        rows, columns = height // block, width // block
        apart, behind = (value, "blocks"), (value, "channels")
        self.uses.update({apart: 1, behind: 1})
        self.reshape(apart, data, (n, channels, rows, block, columns, block))
        turned = (n, block, block, channels, rows, columns)
        self.move(behind, apart, (0, 3, 5, 1, 2, 4), turned)
        return self.reshape(value, behind, nchw(shape))

    def repeat(
        self, value: Value, data: Value, shape: Sequence[int], moved: Callable[[np.ndarray], np.ndarray]
    ) -> bool:
        """A resize that repeats every row and column a whole number of times, asked of the resize itself.

        moved: what it makes of a map, NHWC.
        """
        before = self.node(data).shape
        n, height, width, channels = before
        if shape[1] % height or shape[2] % width or (shape[0], shape[3]) != (n, channels):
            return False
        factors = (shape[1] // height, shape[2] // width)
        places = np.arange(height * width, dtype=np.float32).reshape(1, height, width, 1)
        found = moved(np.ascontiguousarray(np.broadcast_to(places, before)))
        wanted = np.broadcast_to(places.repeat(factors[0], 1).repeat(factors[1], 2), shape)
        if not np.array_equal(found, wanted):
            return False
        self.one(value, "resize", data, shape, dict(factors=factors))
        return True

    def resize(
        self,
        value: Value,
        data: Value,
        shape: Sequence[int],
        moved: Callable[[np.ndarray], np.ndarray],
        mode: str | None = None,
        factors: Sequence[float] | None = None,
    ) -> bool:
        """A resize that repeats (see `repeat`), or a linear one; ``moved`` must do what ours is said to.

        mode: the coordinates of a linear one (`resample.MODES`), None of another. factors: of rows and
        columns, by which the coordinates go; by default those of the sizes.
        """
        before = self.node(data).shape
        if len(before) != 4:
            return False
        if self.repeat(value, data, shape, moved):
            return True
        if mode not in resample.MODES or (shape[0], shape[3]) != (before[0], before[3]):
            return False
        sizes = tuple(zip(before[1:3], shape[1:3], strict=True))
        factors = [made / size for size, made in sizes] if factors is None else factors
        scales = tuple(resample.ratio(f, *pair) for f, pair in zip(factors, sizes, strict=True))
        attrs = dict(mode=mode, sizes=sizes, scales=scales)
        x = np.random.default_rng(0).random((1, *before[1:3], 1), np.float32)
        found = moved(np.ascontiguousarray(np.broadcast_to(x, before)))
        if not np.allclose(found, resample.resized(x, attrs), rtol=0, atol=1e-3):
            return False
        if not self.since():
            return False
        self.one(value, "resize_linear", data, shape, attrs, called="float")
        return True

    # -- layers on what is no map

    def as_map(self, data: Value, rows: bool = False) -> Value:
        """``data`` as a map: (N, C, L) of height 1; with ``rows``, (N, ..., C), whose last axis are the
        channels."""
        node, key = self.node(data), (data, "rows" if rows else "map")
        made = self._map_behind(node.name, rows)
        if made is not None:  # it is read by who reads ``data``
            self.tensor[key], self.uses[key] = made, self.uses[data] + self.beside.get(node.name, 0)
            return key
        if key in self.tensor:
            return key
        self.uses[key] = 2  # nothing is folded into what others may read, too
        n, *inner = node.shape
        if rows and len(inner) == 3:  # NHWC, of a tensor that is (N, A, B, C) in the model
            self.one(key, "transpose", data, (n, inner[2], *inner[:2]), dict(axes=(0, 3, 1, 2)))
        elif rows:
            length, channels = prod(inner[:-1]), inner[-1]
            shape = (n, length, channels, 1)  # the map (N, 1, L, C) of the model
            self.one(key, "reshape", data, shape, dict(shape=shape, channels_first=True))
            self.one(key, "transpose", key, (n, length, 1, channels), dict(axes=(0, 1, 3, 2)))
        else:
            shape = (n, 1, inner[1], inner[0])
            self.one(key, "reshape", data, shape, dict(shape=shape, channels_first=True))
        return key

    def _map_behind(self, name: str, rows: bool) -> str | None:
        """The map of which `of_map`, or a model that takes its height away, made a tensor: what comes next
        reads it at once."""
        node, known = self.nodes[name], self.lowered.get(name)
        if known is None and node.op == "reshape" and len(node.shape) == 3 and not rows and self.since():
            source = self.nodes[node.inputs[0]]
            return source.name if source.shape == _as_high(node.shape, rows) else None
        if known != rows:
            return None
        for _ in range(2 if rows and len(node.shape) != 4 else 1):
            node = self.nodes[node.inputs[0]]
        return node.name

    def of_map(self, value: Value, made: Value, shape: Sequence[int], rows: bool = False) -> None:
        """``value``, of the ``shape``, of the map ``made``, as `as_map` gave it to what made that."""
        layer = self.node(made)
        shape = tuple(shape)
        if rows and len(shape) == 4:
            self.one(value, "transpose", made, shape, dict(axes=(0, 2, 3, 1)))
        else:
            if rows:
                n, length, _, channels = layer.shape
                self.one(value, "transpose", made, (n, length, channels, 1), dict(axes=(0, 1, 3, 2)))
                made = value
            self.one(value, "reshape", made, shape, dict(shape=shape, channels_first=True))
        self.transposed[self.tensor[value]] = self.transposed.get(layer.name, layer.name)
        self.lowered[self.tensor[value]] = rows

    def on_map(
        self,
        value: Value,
        data: Value,
        shape: Sequence[int],
        layer: Callable,
        bias=None,
        rows: bool = False,
    ) -> bool:
        """A layer or pool on what is no map: ``layer(value, data, shape)`` on the map that is made of it,
        NHWC. shape: of ``value``, in the model's layout; bias: of the layer; rows: see `as_map`."""
        made, data = OnMap(value), self.as_map(data, rows)
        self.uses[made] = 1
        if layer(made, data, _as_high(shape, rows)) is False:
            return False
        if bias is not None:
            self.fold_affine(made, made, 1.0, bias)
        self.of_map(value, made, nhwc(shape), rows)
        return True

    def _lift(self, value: Value, tensors: Sequence[Value], shape: Sequence[int], layer: Callable) -> bool:
        """An operator that is the same on maps, on those that ``tensors`` are in another shape: layers on
        what is no map, and what lies between them, are one network of maps. False if none is one, or
        ``layer(value, tensors, shape)`` is; shape: NHWC, of ``value``."""
        kinds = {self.lowered[self.tensor[t]] for t in tensors if self.tensor[t] in self.lowered}
        if len(kinds) != 1 or any(len(self.node(t).shape) != len(shape) for t in tensors):
            return False
        if not self.since():
            return False
        (rows,), made = kinds, OnMap(value)
        self.uses[made] = 1
        if not layer(made, [self.as_map(t, rows) for t in tensors], _as_high(nchw(shape), rows)):
            return False
        self.of_map(value, made, shape, rows)
        return True

    def _channels_last(self, data: Value) -> bool | None:
        """Of what is a map in another shape, whether its channels are its last axis; None of another, and
        for earlier tables."""
        rows = self.lowered.get(self.tensor[data])
        return rows if rows is not None and self.since() else None

    def _axis_on_map(self, data: Value, axis: int) -> int | None:
        """Where an axis of ``data`` is in the map that it is, both NCHW; None if nowhere."""
        rows, rank = self.lowered.get(self.tensor[data]), len(self.node(data).shape)
        if rows is None or rank > 4:
            return None
        return ((0, 2, 1) if rank == 3 else NCHW_TO_NHWC)[axis] if rows else (0, 1, 3)[axis]

    # -- clips and transposed convolutions

    def clip(self, value: Value, data: Value, lo: float, hi: float) -> None:
        """Limits, which are infinite where there is none; part of an elementwise node behind one."""
        node = self.node(data)

        def on_map(made, maps, _):
            self.clip(made, maps[0], lo, hi)
            return True

        if self._lift(value, [data], node.shape, on_map):
            return
        if node.op == "elementwise":
            expression = ("clip", node.attrs["expression"], lo, hi)
            self.add(value, "elementwise", node.inputs, node.shape, dict(expression=expression))
        elif node.name in self.transposed and self.uses[data] == 1:
            self._clip_before_moves(value, node.name, lo, hi)
        else:
            self.add(value, "clip", [node.name], node.shape, dict(lo=lo, hi=hi))

    def conv2d_transpose(
        self,
        value: Value,
        data: Value,
        weight: np.ndarray,
        strides: Sequence[int],
        begin: Sequence[int],
        out: Sequence[int],
        groups: int = 1,
    ) -> bool:
        """A transposed convolution as one that makes every phase of the output, then depth to space, then
        a crop. False where no moves say so: of strides that differ, but along a map of height 1.

        weight: float32 IOHW, O of one group; begin: padding (top, left); out: the output's shape, NHWC.
        Output o reads input i with weight k where ``o + pad = stride * i + k``: the phase
        ``(o + pad) % stride`` takes every stride-th weight. Behind the last tap are taps of zeros.
        """
        n, height, width, depth = self.node(data).shape
        per, r, s = weight.shape[1:]
        (down, across), flat = strides, out[1] == height == r == 1
        depthwise = groups == depth > 1 == per and down * across > 1 and self.since()
        if down != across and not (flat and (groups == 1 or depthwise) and self.since()):
            return False
        taps = [
            max(-(-k // stride), -(-(p + o) // stride) - size + 1)
            for k, p, o, size, stride in zip((r, s), begin, out[1:3], (height, width), strides, strict=True)
        ]
        full = [
            (size + t - 1) * stride for size, t, stride in zip((height, width), taps, strides, strict=True)
        ]
        channels = groups * per
        spread = np.zeros((depth, per, taps[0] * down, taps[1] * across), np.float32)
        spread[:, :, :r, :s] = weight
        spread = spread.reshape(groups, depth // groups, per, taps[0], down, taps[1], across)
        spread = spread[:, :, :, ::-1, :, ::-1]
        # the phases of a channel lie side by side where groups must, else the channels of a phase
        by_phase = groups == 1 or depthwise
        order = (3, 5, 1, 4, 6, 0, 2) if by_phase else (3, 5, 1, 0, 2, 4, 6)
        kernel = spread.transpose(order).reshape(*taps, depth // groups, down * across * channels)
        source, many = self.tensor[data], down * across
        if depthwise:  # a copy of the map for each phase: kernels of depthwise layers
            copies = (n, height, width, many * depth)
            source = self.add((None, value), "concat", [source] * many, copies, dict(axis=3))
            groups *= many
        padding = (taps[0] - 1, taps[1] - 1) * 2
        attrs = dict(strides=(1, 1), padding=padding, dilation=(1, 1), groups=groups)
        phases = (n, full[0] // down, full[1] // across, kernel.shape[3])
        kernel = np.ascontiguousarray(kernel)
        name = self.add(value, "conv2d", [source], phases, attrs, kernel)
        if down == across:
            shuffle = dict(block=down, mode="DCR" if by_phase else "CRD")
            last = self.add(value, "depth_to_space", [name], (n, *full, channels), shuffle)
        else:  # the phases of a row lie one behind the other in memory, as the row does
            axes, whole = dict(axes=(0, 2, 3, 1)), (n, full[1], channels, 1)
            last = self.add(value, "transpose", [name], (n, phases[2], phases[3], 1), axes)
            for shape in ((n, prod(whole[1:])), whole):
                attrs = dict(shape=shape, channels_first=True)
                last = self.add(value, "reshape", [last], shape, attrs)
            last = self.add(value, "transpose", [last], (n, *full, channels), dict(axes=(0, 3, 1, 2)))
        if tuple(full) != tuple(out[1:3]) or any(begin):
            first = (0, *begin, 0)
            end = tuple(b + size for b, size in zip(first, out, strict=True))
            crop = dict(begin=first, end=end, strides=(1, 1, 1, 1))
            last = self.add(value, "slice", [last], out, crop)
        self.tensor[value] = last
        self.transposed[last] = name
        return True

    def _clip_before_moves(self, value, last, lo, hi):
        """A clip behind a transposed convolution: put at once behind its conv2d, where it is free."""
        conv = self.nodes[self.transposed.pop(last)]
        names = list(self.nodes)
        moves = [self.nodes.pop(name) for name in names[names.index(conv.name) + 1 :]]
        if any(node.op not in SHUFFLES for node in moves):  # something came between
            self.nodes.update((node.name, node) for node in moves)
            self.add(value, "clip", [last], self.nodes[last].shape, dict(lo=lo, hi=hi))
            return
        name = self.add(value, "clip", [conv.name], conv.shape, dict(lo=lo, hi=hi))
        moves[0] = replace(moves[0], inputs=(name,))
        self.nodes.update((node.name, node) for node in moves)
        self.tensor[value] = last


#: what moves the numbers of a transposed convolution, or of a layer on what is no map
SHUFFLES = ("depth_to_space", "slice", "reshape", "transpose")
#: operator of a tensor and a constant c -> (scale, shift) of c on the right, and on the left; None: no such
AFFINE: dict[str, tuple[Callable | None, Callable | None]] = {
    "add": (lambda c: (1.0, c), lambda c: (1.0, c)),
    "subtract": (lambda c: (1.0, -c), lambda c: (-1.0, c)),
    "multiply": (lambda c: (c, 0.0), lambda c: (c, 0.0)),
    "divide": (lambda c: (1.0 / c, 0.0), None),
}


#: how far float32 counts
COUNTED = 2**24
#: a reduction -> the pool that it is of a whole map
POOLS = {"reduce_mean": "avg_pool2d", "reduce_max": "max_pool2d"}
#: operator of two tensors -> the join that it is
JOINS = {"add": "add", "subtract": "sub", "maximum": "max", "minimum": "min"}


def _first(values: Sequence, axis: int) -> list:
    """What there is for each axis, with that of ``axis`` first."""
    values = list(values)
    return [values[axis], *values[:axis], *values[axis + 1 :]]


def _repeats(size: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether a tensor of this size makes one of this shape, repeated along axes; not along the batch's."""
    if len(size) != len(shape) or not size or size[0] != shape[0]:
        return False
    return all(n in (1, whole) for n, whole in zip(size, shape, strict=True))


def _slice_of(places: Sequence[int]) -> slice | None:
    """Places at one distance, from the first to the last, as a slice."""
    step = places[1] - places[0] if len(places) > 1 else 1
    if step < 1 or list(places) != list(range(places[0], places[-1] + 1, step)):
        return None
    return slice(places[0], places[-1] + 1, step)


def _groups(size: Sequence[int]) -> list[list[int]]:
    """The axes, side by side, in groups whose places are few enough for float32."""
    groups: list[list[int]] = [[]]
    for axis, n in enumerate(size):
        if prod(size[i] for i in groups[-1]) * n > COUNTED:
            groups.append([])
        groups[-1].append(axis)
    return groups


def _as_high(shape: Sequence[int], rows: bool) -> tuple[int, ...]:
    """The shape, NHWC, of the map of a tensor of a ``shape`` of the model; rows: see `Builder.as_map`."""
    n, *inner = shape
    if not rows:
        return (n, 1, inner[1], inner[0])
    return (n, *inner) if len(inner) == 3 else (n, prod(inner[:-1]), 1, inner[-1])


def _number(constant) -> float | None:
    return float(np.asarray(constant).reshape(())) if np.size(constant) == 1 else None


class Walk(Protocol):
    """What a reader makes a graph by."""

    builder: Builder


W = TypeVar("W", bound=Walk)


def with_former(
    walk: Callable[[int], W], graph: Callable[[W], Graph], edition: int = len(EDITIONS)
) -> Graph:
    """The graph of ``walk(edition)``, with those that earlier tables are of behind it (`Graph.former`)."""
    made = walk(edition)
    found, newest = graph(made), made.builder.newest
    if newest:
        found.former = lambda: with_former(walk, graph, newest - 1)
    return found


def normalization(
    shape: Sequence[int],
    axis: int,
    epsilon: float,
    scale: np.ndarray | None,
    shift: np.ndarray | None,
) -> dict[str, Any] | None:
    """The attributes of a layer normalization along an axis of a tensor of the model, by vectors of as many
    numbers; None where no operator is one: along other axes than the last and that of channels, or of
    numbers that are computed (None) or not finite."""
    rank = len(shape)
    if rank < 2 or 0 in shape or not 0 < epsilon < np.inf:
        return None
    if axis % rank != rank - 1 and (axis % rank != 1 or rank > 4):
        return None
    if scale is None or shift is None or not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        return None
    vectors = (np.broadcast_to(np.ravel(v), shape[axis]).astype(np.float32) for v in (scale, shift))
    of_channels = dict(zip(("scale", "shift"), (tuple(map(float, v)) for v in vectors), strict=True))
    return {"epsilon": float(epsilon), **of_channels}


def per_channel(constant: np.ndarray, shape: Sequence[int], axis: int = 1) -> np.ndarray | None:
    """A constant as () or (C,), float64, if it is one number per channel of ``shape`` (NCHW), else None.

    axis: that of the channels.
    """
    if constant.size == 1:
        return constant.reshape(()).astype(np.float64)
    padded = (1,) * (len(shape) - constant.ndim) + constant.shape
    if len(padded) == len(shape) > 1 and constant.size == shape[axis] == padded[axis]:
        return constant.reshape(-1).astype(np.float64)
    return None
