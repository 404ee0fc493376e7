"""What every reader shares: a `Graph`, built value by value from a program in topological order.

Batch normalization, biases and constants per channel are folded into the layer before them; a chain of
functions of one number becomes one elementwise node; a transposed convolution becomes a convolution and a
depth to space. A *value* is whatever the reader calls a tensor by (a Relay expression, an ONNX name).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from .graph import Graph
from .node import Node

Value = Hashable


class Builder:
    """uses: value -> how many read it, outputs counted. label(value): what the model calls the operator
    that makes it, or nothing.

    tensor: value -> the name of the node whose tensor it is; what depends on no input is not there.
    """

    def __init__(self, uses: MutableMapping[Value, int], label: Callable[[Value], str]):
        self.uses, self.label = uses, label
        self.nodes: dict[str, Node] = {}
        self.tensor: dict[Value, str] = {}
        self.taken: set[str] = set()
        self.transposed: dict[str, str] = {}  # last node of a transposed convolution -> its conv2d

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

    def input(self, value: Value, name: str, shape: Sequence[int]) -> None:
        """An input of the network; shape: NHWC."""
        self.taken.add(name)
        self.nodes[name] = Node(name, "input", (), tuple(shape))
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
    ) -> str:
        """A node that makes ``value``; returns its name. A layer without a bias gets zeros."""
        name = self.unique(self.label(value) or f"{op}_{len(self.nodes)}")
        if weight is None:
            node = Node(name, op, tuple(inputs), tuple(shape), attrs, source=(name,))
        else:
            bias = np.zeros(weight.shape[-1], np.float32) if bias is None else bias
            node = Node(name, op, tuple(inputs), tuple(shape), attrs, weight, bias, (name,))
        self.nodes[name] = node
        self.tensor[value] = name
        return name

    def alias(self, value: Value, original: Value) -> None:
        """``value`` is the tensor ``original``: those who read it read that."""
        self.tensor[value] = self.tensor[original]
        self.uses[value] = self.uses.get(value, 0) + self.uses[original] - 1

    def graph(self, outputs: Sequence[str], name: str, output_names: Iterable[str] | None = None) -> Graph:
        """The finished network, without elementwise nodes that were gathered into later ones."""
        alive = set(outputs)
        for node in reversed(list(self.nodes.values())):
            if node.name in alive or node.op != "elementwise":
                alive.update(node.inputs)
            else:
                del self.nodes[node.name]
        return Graph(self.nodes.values(), outputs, name, output_names)

    # -- scale * data + shift

    def fold_affine(self, value: Value, data: Value, scale, shift) -> bool:
        """Fold ``scale * data + shift`` (each () or (K,)) into the layer before it; False if not."""
        name = self.transposed.get(self.tensor[data], self.tensor[data])
        node = self.nodes[name]
        if node.weight is None or self.uses[data] != 1:
            return False
        if name != self.tensor[data]:  # every phase has all the channels
            scale, shift = (np.tile(v, node.channels // np.size(v)) for v in (scale, shift))
        scale = np.broadcast_to(scale, (node.channels,)).astype(np.float64)
        shift = np.broadcast_to(shift, (node.channels,)).astype(np.float64)
        label = self.label(value)
        self.nodes[name] = replace(
            node,
            weight=(node.weight * scale).astype(np.float32),
            bias=(node.bias * scale + shift).astype(np.float32),
            source=node.source if label in ("", *node.source) else (*node.source, label),
        )
        self.tensor[value] = self.tensor[data]
        return True

    def channels(self, value: Value, data: Value, scale, shift) -> str:
        """``scale * data + shift`` (each () or (C,)) with nothing to fold into: a 1x1 depthwise layer."""
        shape = self.node(data).shape
        attrs = dict(strides=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=shape[3])
        weight, bias = (np.broadcast_to(v, shape[3:]).astype(np.float32) for v in (scale, shift))
        weight = weight.reshape(1, 1, 1, -1)
        return self.add(value, "conv2d", [self.tensor[data]], shape, attrs, weight, bias)

    # -- functions of one number

    def function(self, value: Value, name: str, operands: Sequence, shape, *parameters: float) -> bool:
        """A function of `expression.FUNCTIONS` whose tensors are all functions of one tensor: part of an
        elementwise node. False if they are not.

        operands: values, or constants: a float, or None for one that is not a single number.
        """
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
        """The product of two maps, or of one and its gate (N, 1, 1, C); False of other shapes."""
        full, gate = sorted((self.node(a), self.node(b)), key=lambda node: -prod(node.shape))
        if full.shape != tuple(shape):
            return False
        if len(shape) == 4 and gate.shape == (shape[0], 1, 1, shape[3]):
            self.add(value, "mul", [full.name, gate.name], shape, {})
        elif gate.shape == tuple(shape):
            self.add(value, "mul", [self.tensor[a], self.tensor[b]], shape, {})
        else:
            return False
        return True

    # -- clips and transposed convolutions

    def clip(self, value: Value, data: Value, lo: float, hi: float) -> None:
        """Limits, which are infinite where there is none; part of an elementwise node behind one."""
        node = self.node(data)
        if node.op == "elementwise":
            expression = ("clip", node.attrs["expression"], lo, hi)
            self.add(value, "elementwise", node.inputs, node.shape, dict(expression=expression))
        elif node.name in self.transposed and self.uses[data] == 1:
            self._clip_before_moves(value, node.name, lo, hi)
        else:
            self.add(value, "clip", [node.name], node.shape, dict(lo=lo, hi=hi))

    def conv2d_transpose(
        self, value: Value, data: Value, weight: np.ndarray, stride: int, begin: Sequence[int], out
    ) -> bool:
        """A transposed convolution as one that makes every phase of the output, then depth to space, then
        a crop; False if the output goes beyond the last tap.

        weight: float32 IOHW; begin: padding (top, left); out: the output's shape, NHWC. Output o reads
        input i with weight k where ``o + pad = stride * i + k``: the phase ``(o + pad) % stride`` takes
        every stride-th weight.
        """
        n, height, width, depth = self.node(data).shape
        channels, r, s = weight.shape[1:]
        taps = [-(-k // stride) for k in (r, s)]
        full = [(size + t - 1) * stride for size, t in zip((height, width), taps, strict=True)]
        if any(p + o > f for p, o, f in zip(begin, out[1:3], full, strict=True)):
            return False
        spread = np.zeros((depth, channels, taps[0] * stride, taps[1] * stride), np.float32)
        spread[:, :, :r, :s] = weight
        spread = spread.reshape(depth, channels, taps[0], stride, taps[1], stride)[:, :, ::-1, :, ::-1]
        kernel = spread.transpose(2, 4, 0, 3, 5, 1).reshape(*taps, depth, stride**2 * channels)
        padding = (taps[0] - 1, taps[1] - 1) * 2
        attrs = dict(strides=(1, 1), padding=padding, dilation=(1, 1), groups=1)
        phases = (n, full[0] // stride, full[1] // stride, kernel.shape[3])
        kernel = np.ascontiguousarray(kernel)
        name = self.add(value, "conv2d", [self.tensor[data]], phases, attrs, kernel)
        shuffle = dict(block=stride, mode="DCR")
        last = self.add(value, "depth_to_space", [name], (n, *full, channels), shuffle)
        if tuple(full) != tuple(out[1:3]) or any(begin):
            first = (0, *begin, 0)
            end = tuple(b + size for b, size in zip(first, out, strict=True))
            crop = dict(begin=first, end=end, strides=(1, 1, 1, 1))
            last = self.add(value, "slice", [last], out, crop)
        self.transposed[last] = name
        return True

    def _clip_before_moves(self, value, last, lo, hi):
        """A clip behind a transposed convolution: put at once behind its conv2d, where it is free."""
        conv = self.nodes[self.transposed.pop(last)]
        names = list(self.nodes)
        moves = [self.nodes.pop(name) for name in names[names.index(conv.name) + 1 :]]
        if any(node.op not in ("depth_to_space", "slice") for node in moves):  # something came between
            self.nodes.update((node.name, node) for node in moves)
            self.add(value, "clip", [last], self.nodes[last].shape, dict(lo=lo, hi=hi))
            return
        name = self.add(value, "clip", [conv.name], conv.shape, dict(lo=lo, hi=hi))
        moves[0] = replace(moves[0], inputs=(name,))
        self.nodes.update((node.name, node) for node in moves)
        self.tensor[value] = last


def per_channel(constant: np.ndarray, shape: Sequence[int]) -> np.ndarray | None:
    """A constant as () or (C,), float64, if it is one number per channel of ``shape`` (NCHW), else None."""
    if constant.size == 1:
        return constant.reshape(()).astype(np.float64)
    padded = (1,) * (len(shape) - constant.ndim) + constant.shape
    if len(padded) == len(shape) and constant.size == shape[1] == padded[1]:
        return constant.reshape(-1).astype(np.float64)
    return None
