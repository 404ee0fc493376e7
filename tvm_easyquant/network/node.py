"""`Node`: one operation of a `Graph` and the tensor it makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from ..errors import GraphError
from .layout import nchw
from .ops import OPERATORS, Operator


@dataclass(frozen=True)
class Node:
    """One operation; its name is also the name of the tensor it produces.

    weight: float32 HWIO, of a dense layer (1, 1, C, K); bias: float32 (K,); shape: of the output, batch
    included. source: the names of the model's own nodes that were folded into this one. dtype: of the
    output, as numpy calls it; what is not float32 runs in float and stays as it is.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    weight: np.ndarray = None  # type: ignore[assignment]  # a layer has one
    bias: np.ndarray = None  # type: ignore[assignment]
    source: tuple[str, ...] = ()
    dtype: str = "float32"

    def __post_init__(self):
        if set(self.attrs) != set(self.operator.attributes):
            raise GraphError(f"node {self.name}: {self.op} takes attributes {self.operator.attributes}")
        object.__setattr__(self, "attrs", MappingProxyType(dict(self.attrs)))

    def __reduce__(self):  # a mapping proxy cannot be pickled
        values = (getattr(self, f.name) for f in fields(self) if f.name != "attrs")
        return _node, (dict(self.attrs), *values)

    @property
    def operator(self) -> Operator:
        """The row of its operator."""
        return OPERATORS[self.op]

    @cached_property
    def broken(self) -> str | None:
        """What is wrong with its weights or its bias: such a layer runs, but makes no numbers to go by."""
        for what, array in (("weights hold", self.weight), ("bias holds", self.bias)):
            if array is not None and not np.isfinite(array).all():
                return f"its {what} NaN or infinity"
        return None

    @property
    def channels(self) -> int:
        """Output channels K of a layer."""
        return self.weight.shape[-1]

    @property
    def public_weight(self) -> np.ndarray:
        """The weights as people and a table's fingerprint know them: HWIO, of a dense layer (K, C)."""
        return self.weight[0, 0].T if self.op == "dense" else self.weight

    @property
    def groups(self) -> int:
        """Groups of a layer's channels."""
        return self.attrs.get("groups", 1)

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of one run (padding counted); None if nobody knows."""
        return self.operator.macs(self)


def _node(attrs, name, op, inputs, shape, *rest):
    return Node(name, op, inputs, shape, attrs, *rest)


def exactly(array: np.ndarray, dtype: str) -> np.ndarray | None:
    """The same numbers in another dtype; None if it does not hold each of them."""
    with np.errstate(all="ignore"):
        other = array.astype(dtype)
    return other if np.array_equal(other, array) else None


def model_shape(node: Node) -> tuple[int, ...]:
    """The shape of a feature map as the model's own input or output: NCHW."""
    return nchw(node.shape)
