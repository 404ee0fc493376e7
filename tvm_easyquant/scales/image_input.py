"""A network's image as bytes: what makes it take uint8 pictures, its preprocessing within. No TVM.

A byte has 256 values, so preprocessing and the first quantize are 256 numbers by channel: a host looks them
up instead of computing them, and the integers stay what they were, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError, GraphError, TableError
from ..network.graph import Graph
from ..network.layout import NCHW_TO_NHWC, NHWC_TO_NCHW, nchw, nhwc
from ..network.node import model_shape
from ..samples.images import Preprocess
from .table import ScaleTable

LAYOUTS = ("NHWC", "NCHW")


@dataclass(frozen=True)
class ImageInput:
    """The one input of a network, as uint8 pictures that are resized and cropped already.

    name: the input's. layout, shape: of the array; its channels are RGB, or the grey value. preprocess:
    what the network wants of them; its layout is that of the network's own input.
    """

    name: str
    layout: str
    shape: tuple[int, ...]
    preprocess: Preprocess

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
