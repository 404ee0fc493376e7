"""The integer convolution as a problem: its shape, its operand ranges, the answer to a proof. No TVM."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from .function import from_json, single, uses_other
from .reference import output_size


class Bound(NamedTuple):
    """A proof: the largest magnitude ``value`` reached, the ``limit`` it respects, of ``what``."""

    what: str
    value: int
    limit: int

    def __str__(self):
        return f"{self.what} <= {self.value} of {self.limit}"


class Exact(Bound):
    """The bound of a kernel that needs none of its own: whatever the weights, it is exact wherever the
    layer's accumulator fits int32."""


EXACT = Exact("any int8 weights", 0, 0)


class Refusal(NamedTuple):
    """Why a kernel cannot take a layer."""

    why: str

    def __str__(self):
        return self.why


@dataclass(frozen=True)
class Residual:
    """The add that follows a convolution, by `reference.add`.

    The convolution is first requantized with its own scale, zero point and range, then added to the
    residual tensor (scale, zero_point) and quantized with out_scale. own_first: it is the left operand.
    """

    own_scale: float
    own_zero_point: int
    own_lo: int
    own_hi: int
    scale: float
    zero_point: int
    own_first: bool
    out_scale: float

    @property
    def reach(self) -> float:
        """No sum is further from zero, in steps of the output."""
        return 255 * (self.own_scale + self.scale) / self.out_scale


@dataclass(frozen=True)
class ConvSpec:
    """One quantized convolution (or dense layer: 1x1 on a 1x1 map) with its epilogue.

    data: uint8 (batch, height, width, in_channels), 0 <= q <= data_max, padded with zero_point;
    weight: int8 (R, S, in_channels / groups, out_channels); bias: int32 (out_channels,) with the zero
    point folded in; multiplier: float32 (out_channels,), or (2, out_channels) where the function reads a
    second vector, which is behind the first.

    epilogue, with ``acc = sum(q * w) + bias``:
      requantize  ``uint8: clip(rint(function(float32(acc) * multiplier)) + out_zero_point, lo, hi)``
      dequantize  ``float32: float32(acc) * multiplier``
      add         requantize by ``residual``, then add the tensor (`Residual`); ``function`` of the real sum

    function: an expression in the norm's form (see `function`), for requantize and add; for add without
    a second vector. far: a multiplier is 1 or more (`is_far`), so that ``float32(acc) * multiplier`` may
    lie beyond int32.
    """

    batch: int
    height: int
    width: int
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    data_max: int = 255
    zero_point: int = 0
    epilogue: str = "requantize"
    out_zero_point: int = 0
    lo: int = 0
    hi: int = 255
    residual: Residual | None = None
    function: object = None
    far: bool = False

    def __post_init__(self):
        for name in ("kernel", "strides", "padding", "dilation"):
            object.__setattr__(self, name, tuple(int(v) for v in getattr(self, name)))
        object.__setattr__(self, "function", single(self.function))
        if self.epilogue not in ("requantize", "dequantize", "add"):
            raise ValueError(f"unknown epilogue {self.epilogue!r}")
        if (self.epilogue == "add") != (self.residual is not None):
            raise ValueError("the add epilogue, and only it, takes a residual")
        if self.function is not None and self.epilogue == "dequantize":
            raise ValueError("the dequantize epilogue takes no function")
        if uses_other(self.function) and self.epilogue == "add":
            raise ValueError("the function of an add takes no vector")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(f"{self.groups} groups do not divide the channels")
        if min(self.out_height, self.out_width) < 1:
            raise ValueError("the kernel is larger than the padded map")

    @property
    def bounded(self) -> bool:
        """Whether what the epilogue rounds last lies in int32, whatever the data."""
        far = self.far if self.residual is None else self.residual.reach >= 2**30
        return not far and self.function is None

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        top, _, bottom, _ = self.padding
        return output_size(self.height, self.kernel[0], self.strides[0], self.dilation[0], top, bottom)

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        _, left, _, right = self.padding
        return output_size(self.width, self.kernel[1], self.strides[1], self.dilation[1], left, right)

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """(N, OH, OW, K)."""
        return (self.batch, self.out_height, self.out_width, self.out_channels)

    @property
    def out_dtype(self) -> str:
        """The output's element type."""
        return "float32" if self.epilogue == "dequantize" else "uint8"

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(R, S, C / groups, K)."""
        return (*self.kernel, self.in_channels // self.groups, self.out_channels)

    @property
    def depthwise(self) -> bool:
        """One input channel and one filter in each group."""
        return self.groups == self.in_channels == self.out_channels

    @property
    def macs(self) -> int:
        """Multiply-accumulates, those of the padding included."""
        return int(np.prod(self.out_shape)) * int(np.prod(self.weight_shape[:3]))

    @property
    def shape_text(self) -> str:
        """The layer's shape in a line, such as ``3x3 s2 64->128 @ 56x56``."""
        kind = "dw " if self.depthwise else f"g{self.groups} " if self.groups > 1 else ""
        stride = "" if self.strides == (1, 1) else f" s{self.strides[0]}"
        size = f"{self.kernel[0]}x{self.kernel[1]}{stride} {self.in_channels}->{self.out_channels}"
        return f"{kind}{size} @ {self.height}x{self.width}"

    def to_json(self) -> str:
        """Its key in tuning records: the same text for the same problem, of one without a function, or not
        far, as it was before there were any."""
        fields = asdict(self)
        for name in ("function", "far"):
            if not fields[name]:
                del fields[name]
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ConvSpec:
        """What `to_json` made the text of."""
        fields = json.loads(str(text))
        if fields["residual"] is not None:
            fields["residual"] = Residual(**fields["residual"])
        fields["function"] = from_json(fields.get("function"))
        return cls(**fields)


def is_far(multiplier: np.ndarray) -> bool:
    """What `ConvSpec.far` says of multipliers, float32 (K,), or (2, K) of which the first are meant."""
    return bool((np.abs(multiplier.reshape(-1, multiplier.shape[-1])[0]) >= 1).any())


class Convolution(NamedTuple):
    """A convolution with its constants, as `ConvSpec` says them: all that a kernel is chosen by and packed
    from."""

    spec: ConvSpec
    weight: np.ndarray
    bias: np.ndarray
    multiplier: np.ndarray
