"""The operators of a `Graph`: one row each, which is all that is known of it outside its rules.

A reader, a host or a writer adds a rule in an explicit dictionary of its own; `tests/test_rows.py` says
that no row lacks one and that no rule is without a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import lcm, prod
from typing import Any, Protocol

import numpy as np

from topi_ext.reference import MOST_PRODUCTS, dequantize, quantize, windows

from . import expression, resample
from .layout import nchw, to_nchw, to_nhwc


class Use(Protocol):
    """One use of an operator, as its row and its rules see it: a `node.Node`."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def attrs(self) -> Mapping[str, Any]: ...

    @property
    def weight(self) -> np.ndarray: ...

    @property
    def bias(self) -> np.ndarray: ...

    @property
    def channels(self) -> int: ...

    @property
    def groups(self) -> int: ...

    @property
    def operator(self) -> Operator: ...


#: how an operator runs on stored (uint8) tensors
INTEGER = {
    "input": "it does not run; its value is quantized where it is read",
    "accumulate": "to an int32 accumulator, which a float reader gets without 8-bit rounding",
    "sum": "in float32, of its dequantized inputs, which have scales of their own",
    "product": "to the int32 product of its inputs' steps",
    "contract": "to int32 sums of products of its inputs' steps, which float readers get without rounding",
    "table": "by a table of 256 entries, made in float32",
    "norm": "in float32, by exact sums of its input's steps over the channels of a pixel",
    "requantize": "its input's steps, in another range",
    "move": "it moves numbers and computes none: input and output share one scale",
    "float": "not at all",
}


@dataclass(frozen=True)
class Operator:
    """A row.

    attributes: their names (padding is top, left, bottom, right; axes are those of NHWC).
    evaluate(node, *arrays): its meaning, on float32 NHWC arrays of any batch. integer: a key of `INTEGER`.
    nonnegative(node, inputs): whether its output is proven never to be negative, by itself or because
    none of its ``inputs`` is. product(x, node, weight): of a layer, which has weights, what it makes of
    them, without its bias. macs(node): multiply-accumulates of one run (padding counted), None if unknown.
    refusal(node): why it cannot run in integers; None if it can. onnx: the ONNX operators it stands for.
    """

    name: str
    attributes: tuple[str, ...]
    integer: str
    evaluate: Callable[..., np.ndarray]
    onnx: tuple[str, ...] = ()
    nonnegative: Callable[[Use, bool], bool] = lambda node, inputs: False
    product: Callable[..., np.ndarray] | None = None
    macs: Callable[[Use], int | None] = lambda node: 0
    refusal: Callable[[Use], str | None] = lambda node: None

    @property
    def layer(self) -> bool:
        """It has weights."""
        return self.product is not None

    @property
    def moves(self) -> bool:
        return self.integer == "move"

    @property
    def accumulates(self) -> bool:
        return self.integer in ("accumulate", "contract")

    @property
    def worth(self) -> bool:
        """It is so much work that float inputs of it are quantized."""
        return self.layer or self.integer == "contract"

    @property
    def requantizes(self) -> bool:
        """It ends in a requantize, in which a clip behind it can happen too."""
        return self.integer in ("accumulate", "sum", "product", "contract", "norm")

    @property
    def in_float(self) -> bool:
        """It computes float32 from dequantized inputs, which is then quantized."""
        return self.integer in ("sum", "table", "norm")


# -- layers


def is_depthwise(node: Use) -> bool:
    """One input channel and one filter in each group."""
    return node.channels == node.attrs.get("groups") and node.weight.shape[2] == 1


def input_axes(node: Use) -> tuple[int, ...] | None:
    """The axes of a layer's weights besides its input channels'; None where groups have no such axis."""
    if is_depthwise(node):
        return (0, 1, 2)
    return (0, 1, 3) if node.groups == 1 else None


def conv_columns(x: np.ndarray, node: Use, group: int = 0) -> np.ndarray:
    """The im2col matrix of one group of a layer: (N * OH * OW, R * S * C / groups); of a vector, itself."""
    if x.ndim == 2:
        return x
    r, s, depth, _ = node.weight.shape
    x = x[..., group * depth : (group + 1) * depth]
    a = node.attrs
    patches = windows(x, (r, s), a["strides"], a["padding"], a["dilation"], 0)
    return patches.reshape(-1, r * s * depth)


def linear(x: np.ndarray, node: Use, weight: np.ndarray) -> np.ndarray:
    """Convolution or dense of ``x`` with ``weight`` (in the node's weight layout), no bias.

    x: (N, H, W, C) or (N, C), any float dtype; returns (N, OH, OW, K) or (N, K).
    """
    product = node.operator.product
    assert product is not None  # noqa: S101  # a layer's
    return product(x, node, weight)


def _convolve(x, node, weight):
    n = x.shape[0]
    groups, k = node.attrs["groups"], node.channels
    _, oh, ow, _ = node.shape
    if is_depthwise(node):
        a = node.attrs
        r, s = weight.shape[:2]
        patches = windows(x, (r, s), a["strides"], a["padding"], a["dilation"], 0)
        taps = np.ascontiguousarray(weight[:, :, 0])  # einsum's innermost loop is along the channels
        return np.ascontiguousarray(np.einsum("nhwijc,ijc->nhwc", patches, taps))
    per = k // groups
    out = np.empty((n * oh * ow, k), x.dtype)
    for g in range(groups):
        columns = conv_columns(x, node, g)
        kernel = weight[..., g * per : (g + 1) * per].reshape(-1, per)
        out[:, g * per : (g + 1) * per] = columns @ kernel
    return out.reshape(n, oh, ow, k)


def _dense(x, node, weight):
    return x @ np.asfortranarray(weight[0, 0])  # as it lies in memory: one order of sums, whoever made it


def _layer(node, x):
    return linear(x, node, node.weight) + node.bias


def _layer_macs(node):
    return prod(node.shape) * prod(node.weight.shape[:3])


# -- what computes


def _contract(node, a, b):
    return to_nhwc(to_nchw(a) @ to_nchw(b))


def _too_deep(node):
    if node.attrs["depth"] > MOST_PRODUCTS:
        return f"its int32 accumulator holds {MOST_PRODUCTS} products, not {node.attrs['depth']}"
    return None


def _average(node, x):
    a = node.attrs
    window = (a["pool_size"], a["strides"], a["padding"], (1, 1), 0)
    total = windows(x, *window).sum(axis=(3, 4), dtype=np.float32)
    if a["count_include_pad"] or not any(a["padding"]):
        return total / np.float32(prod(a["pool_size"]))
    count = windows(np.ones((1, *x.shape[1:3], 1), np.float32), *window).sum(axis=(3, 4))
    return total / count


def mean_counts(node: Use) -> np.ndarray:
    """float32 (OH, OW, 1): of how many numbers each of a ``mean_pool2d`` is the mean."""
    return np.multiply.outer(node.attrs["rows"], node.attrs["columns"]).astype(np.float32)[..., None]


def mean_parts(node: Use) -> int:
    """Of how many parts each mean of a ``mean_pool2d`` is made, so that they are whole."""
    return lcm(*node.attrs["rows"]) * lcm(*node.attrs["columns"])


def mean_shares(node: Use) -> np.ndarray:
    """int32 (OH, OW, 1): of how many of the `mean_parts` each number of a window is."""
    down, across = (lcm(*each) // np.array(each) for each in (node.attrs["rows"], node.attrs["columns"]))
    return np.multiply.outer(down, across).astype(np.int32)[..., None]


def _mean_within(node, x):
    a = node.attrs
    view = windows(x, a["pool_size"], a["strides"], a["padding"], (1, 1), 0)
    return view.sum(axis=(3, 4), dtype=np.float32) / mean_counts(node)


def _many_parts(node):
    most = resample.STEPS * mean_parts(node)
    if most <= 2**30:
        return None
    return f"an average pool whose windows have so many sizes that its int32 accumulator may reach {most}"


def _mean(node, x):
    return x.mean(axis=node.attrs["axes"], keepdims=True, dtype=np.float32)


def normalized(node: Use, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(what a layer normalization divides by, what it makes before its scale)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    root = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(node.attrs["epsilon"]))
    return root, centred / root


def _layer_norm(node, x):
    return normalized(node, x)[1] * np.float32(node.attrs["scale"]) + np.float32(node.attrs["shift"])


def _too_wide(node):
    if node.shape[-1] > MOST_PRODUCTS:
        return f"its int32 sums of squares hold {MOST_PRODUCTS} channels, not {node.shape[-1]}"
    return None


def _uncounted(node):
    if any(node.attrs["padding"]) and not node.attrs["count_include_pad"]:
        return "an average pool that leaves its padding out of the count"
    return None


def _clip(node, x):
    return np.clip(x, np.float32(node.attrs["lo"]), np.float32(node.attrs["hi"]))


def _fake_quant(node, x):
    return dequantize(quantize(x, **node.attrs), **node.attrs)


def _uncovered(handle):
    op, how = getattr(handle, "op", "this operator"), getattr(handle, "uncovered", "")
    return f"{op} is not covered{how}"


# -- what moves, on arrays of any dtype


def concat(node: Use, *x: np.ndarray) -> np.ndarray:
    return np.concatenate(x, node.attrs["axis"])


def _max_pool(node, x):
    a = node.attrs
    view = windows(x, a["pool_size"], a["strides"], a["padding"], a["dilation"], -np.inf)
    return view.max(axis=(3, 4))


def largest(node: Use, x: np.ndarray) -> np.ndarray:
    return x.max(axis=node.attrs["axes"], keepdims=True)


def reshape(node: Use, x: np.ndarray) -> np.ndarray:
    shape = node.attrs["shape"]
    if not node.attrs["channels_first"]:
        return x.reshape(-1, *shape[1:])
    return to_nhwc(to_nchw(x).reshape(-1, *nchw(shape)[1:]))


def transpose(node: Use, x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(node.attrs["axes"]))


def crop(node: Use, x: np.ndarray) -> np.ndarray:
    a = node.attrs
    axes = zip(a["begin"], a["end"], a["strides"], strict=True)
    return x[(slice(None), *(slice(*axis) for axis in list(axes)[1:]))]


def pad(node: Use, x: np.ndarray, fill=0.0) -> np.ndarray:
    return np.pad(x, node.attrs["widths"], constant_values=x.dtype.type(fill))


def resize(node: Use, x: np.ndarray) -> np.ndarray:
    down, across = node.attrs["factors"]
    return x.repeat(down, axis=1).repeat(across, axis=2)


def gather(node: Use, x: np.ndarray) -> np.ndarray:
    for axis, places in enumerate(node.attrs["indices"]):
        x = x if places is None else x.take(places, axis)
    return x


def resize_linear(node: Use, x: np.ndarray) -> np.ndarray:
    return resample.resized(x, node.attrs)


def depth_to_space(x: np.ndarray, block: int, mode: str) -> np.ndarray:
    """(N, H, W, b * b * C) -> (N, H * b, W * b, C), as ONNX DepthToSpace with block size b."""
    n, h, w, c = x.shape
    depth = c // block**2
    if mode == "DCR":
        pieces = x.reshape(n, h, w, block, block, depth).transpose(0, 1, 3, 2, 4, 5)
    else:
        pieces = x.reshape(n, h, w, depth, block, block).transpose(0, 1, 4, 2, 5, 3)
    return np.ascontiguousarray(pieces.reshape(n, h * block, w * block, depth))


def shuffle(node: Use, x: np.ndarray) -> np.ndarray:
    return depth_to_space(x, **node.attrs)


# -- signs


def _by_inputs(node, inputs):
    return inputs


def _by_limit(node, inputs):
    return node.attrs["lo"] >= 0 or inputs


def _by_expression(node, inputs):
    return expression.nonnegative(node.attrs["expression"], inputs)


# -- rows


def _input(node, *x):
    raise AssertionError(f"{node.name} is an input; it is fed")


def _call(node, *x):
    return node.attrs["fn"](*x)


_CONV = ("strides", "padding", "dilation", "groups")
_ROWS = (
    Operator("input", (), "input", _input),
    Operator(
        "conv2d", _CONV, "accumulate", _layer, ("Conv",), product=_convolve,
        macs=_layer_macs,
    ),
    Operator(
        "dense", (), "accumulate", _layer, ("Gemm", "MatMul"), product=_dense, macs=_layer_macs
    ),
    Operator("add", (), "sum", lambda node, a, b: a + b, ("Add",), _by_inputs),
    # one input may have sizes of 1 where the other has more
    Operator("sub", (), "sum", lambda node, a, b: a - b, ("Sub",)),
    Operator("max", (), "sum", lambda node, a, b: np.maximum(a, b), ("Max",), _by_inputs),
    Operator("min", (), "sum", lambda node, a, b: np.minimum(a, b), ("Min",), _by_inputs),
    # the second input may have sizes of 1: (N, 1, 1, C) is the gate of squeeze-and-excite
    Operator("mul", (), "product", lambda node, a, b: a * b, ("Mul",), _by_inputs),
    Operator(  # of two tensors (N, ..., M, depth) and (N, ..., depth, K) of the model
        "matmul", ("depth",), "contract", _contract, ("MatMul",), _by_inputs,
        macs=lambda node: prod(node.shape) * node.attrs["depth"], refusal=_too_deep,
    ),
    Operator(  # a function of one number, see `expression`
        "elementwise", ("expression",), "table",
        lambda node, x: expression.compute(node.attrs["expression"], x), expression.ONNX, _by_expression,
    ),
    Operator("concat", ("axis",), "move", concat, ("Concat",), _by_inputs),
    Operator(
        "max_pool2d", ("pool_size", "strides", "padding", "dilation"), "move", _max_pool,
        ("MaxPool", "GlobalMaxPool"), _by_inputs,
    ),
    Operator(
        "avg_pool2d", ("pool_size", "strides", "padding", "count_include_pad"), "accumulate", _average,
        ("AveragePool", "GlobalAveragePool"), _by_inputs, refusal=_uncounted,
    ),
    Operator(  # without its padding; rows, columns: how many of each window are within the map
        "mean_pool2d", ("pool_size", "strides", "padding", "rows", "columns"), "accumulate", _mean_within,
        ("AveragePool",), _by_inputs, refusal=_many_parts,
    ),
    # along axes that are not the batch's, which stay with size 1; of a whole map it is a pool
    Operator("reduce_mean", ("axes",), "accumulate", _mean, ("ReduceMean",), _by_inputs),
    Operator("reduce_max", ("axes",), "move", largest, ("ReduceMax",), _by_inputs),
    Operator(  # over the channels of each pixel; scale, shift: one number a channel
        "layer_norm", ("epsilon", "scale", "shift"), "norm", _layer_norm, ("LayerNormalization",),
        refusal=_too_wide,
    ),
    # relu has the limits 0 and inf, relu6 has 0 and 6
    Operator("clip", ("lo", "hi"), "requantize", _clip, ("Clip", "Relu"), _by_limit),
    # channels_first: in the order N, C, H, W of the one side that is a map. The batch may take up what is
    # behind it, and give it back
    Operator("reshape", ("shape", "channels_first"), "move", reshape, ("Reshape", "Flatten"), _by_inputs),
    # the batch stays first
    Operator("transpose", ("axes",), "move", transpose, ("Transpose",), _by_inputs),
    Operator("slice", ("begin", "end", "strides"), "move", crop, ("Slice",), _by_inputs),
    Operator("pad", ("widths",), "move", pad, ("Pad",), _by_inputs),  # with zeros
    # nearest: every row and column repeated (down, across)
    Operator("resize", ("factors",), "move", resize, ("Resize", "Upsample"), _by_inputs),
    # indices: of each axis the places that it takes, None: all as they are. Nearest resizes of any ratio,
    # pads that reflect or repeat, flips, tiles
    Operator("gather", ("indices",), "move", gather, ("Gather",), _by_inputs),
    # sizes: (before, after), scales: (numerator, denominator), of rows and of columns; see `resample`
    Operator(
        "resize_linear", ("mode", "sizes", "scales"), "accumulate", resize_linear, ("Resize", "Upsample"),
        _by_inputs, refusal=lambda node: resample.whole(node.attrs),
    ),
    # mode: DCR or CRD, as ONNX names the order of channels
    Operator("depth_to_space", ("block", "mode"), "move", shuffle, ("DepthToSpace",), _by_inputs),
    Operator(  # rounded as uint8: in models that were quantized, see `take_over`
        "fake_quant", ("scale", "zero_point"), "float", _fake_quant, ("QuantizeLinear", "DequantizeLinear"),
        refusal=lambda node: "the model is already quantized; import-onnx takes its scales over",
    ),
    Operator(  # anything else: fn(*arrays) -> array; handle is the host's; macs: int, None if unknown
        "float", ("fn", "handle", "macs"), "float", _call, macs=lambda node: node.attrs["macs"],
        refusal=lambda node: _uncovered(node.attrs["handle"]),
    ),
)  # fmt: skip
#: name -> row
OPERATORS: dict[str, Operator] = {row.name: row for row in _ROWS}
#: attributes that only a host can tell; its handle stands for them in a fingerprint
HOST_ATTRIBUTES = ("fn", "handle", "macs")


def evaluate(node: Use, *x: np.ndarray) -> Any:
    """One node on arrays (batch of any size), in NHWC; what overflows is infinite, without a word."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(node.operator.evaluate(node, *x))  # numpy makes numbers of 0-d arrays
