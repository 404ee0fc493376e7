"""A network's image as bytes: what makes it take uint8 pictures, its preprocessing within. No TVM.

A byte has 256 values, so preprocessing and the first quantize are 256 numbers by channel: a host looks them
up instead of computing them, and the integers stay what they were, bit for bit. So are the first nodes of a
model that takes bytes itself (Cast, Sub, Div, Transpose, ...).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..errors import ConfigError, GraphError, TableError
from ..network.graph import Graph
from ..network.layout import NCHW_TO_NHWC, NHWC_TO_NCHW, nchw, nhwc, to_nchw, to_nhwc
from ..network.node import Node, model_shape
from ..network.ops import evaluate
from ..samples.images import Preprocess
from .partition import Plan
from .table import ScaleTable

LAYOUTS = ("NHWC", "NCHW")


class _LookUp:
    """What is looked up: a number of every byte, by channel."""

    def looked_up(self: ImageInput | FirstNodes, array: np.ndarray) -> np.ndarray:  # type: ignore[misc]
        """The tensor, in the model's layout, by the values of an array's bytes."""
        last = np.moveaxis(array.view(np.uint8), self.axis, 0)
        last = last[::-1] if self.reverses else last
        made = np.stack([values[channel] for values, channel in zip(self.values, last, strict=True)])
        return np.moveaxis(made, 0, self.axis).transpose(self.turn)


@dataclass(frozen=True)
class ImageInput(_LookUp):
    """The one input of a network, as uint8 pictures that are resized and cropped already.

    name: the input's. layout, shape: of the array; its channels are RGB, or the grey value. preprocess:
    what the network wants of them; its layout is that of the network's own input.
    """

    name: str
    layout: str
    shape: tuple[int, ...]
    preprocess: Preprocess
    dtype = "uint8"
    covered: frozenset[str] = frozenset()

    @property
    def tensor(self) -> str:
        """The tensor that is looked up: the input."""
        return self.name

    @property
    def channels(self) -> int:
        """Of the array."""
        return self.preprocess.channels

    @property
    def axis(self) -> int:
        """Of the channels in the array."""
        return self.layout.index("C")

    @property
    def reverses(self) -> bool:
        """Whether the network's channels are in the other order."""
        return self.preprocess.color == "BGR"

    @property
    def turn(self) -> tuple[int, ...]:
        """The transposition that makes the network's own layout of the array's."""
        if self.layout == self.preprocess.layout:
            return (0, 1, 2, 3)
        return NHWC_TO_NCHW if self.layout == "NHWC" else NCHW_TO_NHWC

    @property
    def values(self) -> np.ndarray:
        """float32 (C, 256): what each byte becomes in each of the network's channels."""
        every = np.arange(256, dtype=np.float32).reshape(-1, 1, 1, 1)
        made = self.preprocess.normalized(every.repeat(self.preprocess.channels, 3))
        return np.ascontiguousarray(made.reshape(256, -1).T)

    def unfolded(self, array: np.ndarray) -> np.ndarray:
        """What the network without it takes, for a uint8 array in ``layout``: `Preprocess` in numpy."""
        last = array if self.layout == "NHWC" else array.transpose(NCHW_TO_NHWC)
        return self.preprocess.normalized(last.astype(np.float32))


@dataclass(frozen=True)
class FirstNodes(_LookUp):
    """The first nodes of a model whose own input is bytes, as far as the tensor that is quantized first.

    name, dtype, shape: of the input, in the model's layout; dtype: uint8 or int8. nodes: in order; the last
    one makes ``tensor``. axis: of the channels in the array; reverses, turn: as of `ImageInput`; values:
    float32 (C, 256), what each byte becomes in each channel of the tensor (int8 as the same bits).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nodes: tuple[Node, ...]
    axis: int = 0
    reverses: bool = False
    turn: tuple[int, ...] = ()
    values: np.ndarray = None  # type: ignore[assignment]  # found last

    @property
    def tensor(self) -> str:
        """The tensor that is looked up."""
        return self.nodes[-1].name

    @property
    def covered(self) -> frozenset[str]:
        """Names of the nodes that the look-up replaces."""
        return frozenset(node.name for node in self.nodes)

    @property
    def channels(self) -> int:
        """Of the array."""
        return self.shape[self.axis]

    def unfolded(self, array: np.ndarray) -> np.ndarray:
        """The tensor, in the model's layout, as the nodes make it of an array with a map of any size."""
        value = to_nhwc(array)
        for node in self.nodes:
            value = evaluate(node, value)
        return to_nchw(value)


#: ONNX's operators that make each number of one number of its channel, and constants; Gather and Slice may
#: turn the order of the channels
BY_NUMBER = ("Cast", "Sub", "Add", "Mul", "Div", "Neg", "Identity", "Transpose", "Gather", "Slice")
#: sizes of a map on which the nodes are tried: whatever is not the same everywhere fits one of them only
TRIED = ((8, 32), (32, 8))


def every_byte(
    like: ImageInput | FirstNodes, size: tuple[int, int] = (16, 16), seed: int = 0
) -> np.ndarray:
    """An array whose every channel holds the 256 bytes in an order of its own, on a map of this size."""
    rng = np.random.default_rng(seed)
    every = np.stack([rng.permutation(256) for _ in range(like.channels)]).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(every.reshape(1, -1, *size), 1, like.axis)).view(like.dtype)


def first_nodes(graph: Graph, plan: Plan) -> FirstNodes | None:
    """Those of a network whose input is bytes, if a look-up can take their place; else None."""
    for name in graph.inputs:
        node = graph[name]
        shape = model_shape(node)
        if node.dtype not in ("uint8", "int8") or len(shape) != 4:
            continue
        nodes = _chain(graph, plan, node)
        if nodes and (found := _tabled(FirstNodes(name, node.dtype, shape, nodes))) is not None:
            return found
    return None


def _chain(graph: Graph, plan: Plan, node: Node) -> tuple[Node, ...]:
    """The float nodes from an input to the first tensor that is quantized; () if others are there."""
    nodes: list[Node] = []
    while len(graph.users[node.name]) == 1 and node.name not in graph.outputs:
        node = graph[graph.users[node.name][0]]
        known = node.op in ("elementwise", "clip", "transpose", "gather")
        known |= node.op == "float" and getattr(node.attrs["handle"], "op", None) in BY_NUMBER
        if not known or len(node.inputs) != 1 or node.name in plan.integer or len(node.shape) != 4:
            return ()
        nodes.append(node)
        if node.name in plan.site_of:
            return tuple(nodes) if node.dtype == "float32" else ()
    return ()


def _tabled(found: FirstNodes) -> FirstNodes | None:
    """With its values, if the nodes are a table by channel in one of the orders that bytes come in."""
    for axis, turn in ((3, NHWC_TO_NCHW), (1, (0, 1, 2, 3)), (1, NCHW_TO_NHWC), (3, (0, 1, 2, 3))):
        for reverses in (False, True):
            tried = replace(found, axis=axis, turn=turn, reverses=reverses)
            try:
                same = np.arange(256, dtype=np.uint8).reshape(1, 1, *TRIED[0]).repeat(tried.channels, 1)
                array = np.ascontiguousarray(np.moveaxis(same, 1, axis)).view(tried.dtype)
                made = tried.unfolded(array)
                if made.shape != tuple(array.shape[i] for i in turn):
                    continue
                back = np.moveaxis(made.transpose(np.argsort(turn)), axis, 1)
                tried = replace(tried, values=np.ascontiguousarray(back.reshape(tried.channels, 256)))
                arrays = [every_byte(tried, size, seed) for seed, size in enumerate(TRIED)]
                if all(_same(tried.unfolded(x), tried.looked_up(x)) for x in arrays):
                    return tried
            except (GraphError, ValueError, IndexError):  # the nodes are of that one size, or of other axes
                continue
    return None


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b)


def check_asked(layout: str | None, dtype: str | None) -> None:
    """ConfigError where no network has such an input."""
    if dtype not in (None, "uint8"):
        raise ConfigError(f"input_dtype is {dtype!r}; use uint8, or leave it out for the model's own")
    if layout not in (None, *LAYOUTS):
        raise ConfigError(f"input_layout is {layout!r}; use one of {', '.join(LAYOUTS)}")
    if layout is not None and dtype is None:
        raise ConfigError(f"input_layout {layout} is that of bytes; give input_dtype uint8 with it")


def image_input(
    graph: Graph, table: ScaleTable, layout: str | None = None, dtype: str | None = None
) -> ImageInput | None:
    """The `ImageInput` of a network under its table; None where neither layout nor dtype is asked for.

    layout: by default that of the model's own input. Raises ConfigError for another layout or dtype,
    TableError if the table has no preprocessing, GraphError if that is not of the network's input.
    """
    check_asked(layout, dtype)
    if dtype is None:
        return None
    if len(graph.inputs) != 1:
        raise GraphError(
            f"input_dtype uint8 is of one image; the network's inputs are {list(graph.inputs)}"
        )
    node = graph[graph.inputs[0]]
    shape = model_shape(node)
    if node.dtype != "float32":
        raise GraphError(f"input {node.name} is {node.dtype} in the model itself; leave input_dtype out")
    if len(shape) != 4:
        raise GraphError(f"input {node.name} has shape {shape}; an image has four dimensions")
    stored = table.data.get("preprocess")
    if not isinstance(stored, Mapping):
        raise TableError(
            "input_dtype uint8 needs the preprocessing of the pictures, and the scale table has none: "
            "quantize with --scale, --mean, --std (preprocess=)"
        )
    preprocess = Preprocess.of(stored)
    own = preprocess.layout
    if shape[own.index("C")] != preprocess.channels:
        raise GraphError(
            f"the table's preprocessing makes {preprocess.channels} channels ({preprocess.color}, {own}), "
            f"input {node.name} {shape} has {shape[own.index('C')]}"
        )
    layout = layout or own
    if layout != own:
        shape = nhwc(shape) if own == "NCHW" else nchw(shape)
    found = ImageInput(node.name, layout, shape, preprocess)
    with np.errstate(over="ignore"):
        finite = np.isfinite(found.values).all()
    if not finite:
        raise GraphError(f"the table's preprocessing makes bytes numbers that are not finite: {preprocess}")
    return found
