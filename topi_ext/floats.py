"""A float layer and what follows it, as both hosts gather it for a kernel of `kernels.float_conv`.

No TVM here: an expression of the host (``data``, ``residual``) is passed through unread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np

from .problem import ConvSpec

NHWC_TO_NCHW, NCHW_TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)


@dataclass
class FloatLayer:
    """A convolution, or a product with a matrix as one of 1x1.

    data: the host's expression; weight: float32 HWIO; shape: the geometry; out_shape: in the host's module;
    channel: its axis of the channels. Each method takes over something that follows and says if it did.
    """

    data: Any
    weight: np.ndarray
    shape: ConvSpec
    out_shape: tuple[int, ...]
    channel: int
    bias: np.ndarray = field(init=False)
    residual: Any = None
    lo: float = -inf
    hi: float = inf

    def __post_init__(self):
        self.bias = np.zeros(self.shape.out_channels, np.float32)

    @property
    def first(self) -> bool:
        """Whether the channels come first, in a map."""
        return self.channel == 1 and len(self.out_shape) == 4

    @property
    def rows(self) -> tuple[int, ...] | None:
        """`kernels.float_conv.FloatConv.rows`."""
        return None if self.first else self.out_shape[:-1]

    def limited(self, lo: float, hi: float) -> bool:
        """``clip(x, lo, hi)``; not where the limits cross."""
        lo, hi = max(self.lo, lo), min(self.hi, hi)
        if lo <= hi:
            self.lo, self.hi = lo, hi
        return lo <= hi

    def added(self, array: np.ndarray) -> bool:
        """A constant, if it is one number for each channel, or for all."""
        wide = array.reshape((1,) * (len(self.out_shape) - array.ndim) + array.shape)
        if not self._open or wide.ndim > len(self.out_shape):
            return False
        if wide.size not in (1, wide.shape[self.channel]):
            return False
        self.bias = self.bias + wide.ravel().astype(np.float32)
        return True

    def joined(self, expr: Any, shape: tuple[int, ...] | None) -> bool:
        """A tensor that is no constant, if it has the output's shape."""
        if not self._open or shape != self.out_shape:
            return False
        self.residual = expr
        return True

    def met(self, name: str, other: Any, shape: tuple[int, ...] | None, numbers: np.ndarray | None) -> bool:
        """``add``, ``maximum`` or ``minimum`` with another operand; numbers: its own, if a constant."""
        if name == "add":
            return self.joined(other, shape) if numbers is None else self.added(numbers)
        if numbers is None or numbers.size != 1:
            return False
        limit = float(numbers.ravel()[0])
        return self.limited(limit, inf) if name == "maximum" else self.limited(-inf, limit)

    @property
    def _open(self) -> bool:
        return (self.lo, self.hi) == (-inf, inf) and self.residual is None

    def reshaped(self, shape: tuple[int, ...] | None) -> bool:
        """A product's rows cut otherwise."""
        spec = self.shape
        rows = spec.kernel == spec.strides == (1, 1) and not any(spec.padding) and spec.groups == 1
        if (
            not rows
            or self.first
            or self.residual is not None
            or not shape
            or shape[-1] != spec.out_channels
        ):
            return False
        self.out_shape, self.channel = shape, len(shape) - 1
        return True
