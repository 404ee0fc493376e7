"""The float network as the quantizer sees it: named nodes, numpy constants, no TVM.

A front end (`relay_frontend`, later Relax) turns its own program into a `Graph`. Calibration and
search run it here in numpy; the front end's rewriter turns it back, with a scale table, into an
integer program. Nothing but names, numpy arrays and a `ScaleTable` crosses that seam.

Layout: feature maps are NHWC ``float32 (N, H, W, C)`` whatever the model used; convolution weights
are HWIO ``(R, S, C / groups, K)``, dense weights ``(K, C)``. Batch normalization and biases are
already folded into the convolution or dense node before them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np

from topi_ext.reference import dequantize, quantize, windows

from ..errors import GraphError
from . import expression

#: op -> attributes (padding is top, left, bottom, right; axes are those of NHWC)
OPS = {
    "input": (),
    "conv2d": ("strides", "padding", "dilation", "groups"),
    "dense": (),
    "add": (),
    "mul": (),  # the second input may be (N, 1, 1, C): the gate of squeeze-and-excite
    "elementwise": ("expression",),  # a function of one number, see `elementwise`
    "concat": ("axis",),
    "max_pool2d": ("pool_size", "strides", "padding", "dilation"),
    "avg_pool2d": ("pool_size", "strides", "padding", "count_include_pad"),
    "clip": ("lo", "hi"),  # relu is clip(0, inf), relu6 is clip(0, 6)
    "reshape": ("shape", "channels_first"),  # channels_first: flattened in the order N, C, H, W
    "slice": ("begin", "end", "strides"),
    "pad": ("widths",),  # with zeros
    "resize": ("factors",),  # nearest: every row and column repeated (down, across)
    "depth_to_space": ("block", "mode"),  # mode: DCR or CRD, as ONNX names the order of channels
    "fake_quant": (
        "scale",
        "zero_point",
    ),  # rounded as uint8: in models that were quantized, see `take_over`
    "float": ("fn", "handle"),  # anything else: stays float; fn(*arrays) -> array
}
#: ops that carry weights and do the multiply-accumulates
COMPUTE = ("conv2d", "dense")
#: ops that move numbers and compute none: input and output share one scale
MOVES = ("concat", "max_pool2d", "reshape", "slice", "pad", "resize", "depth_to_space")


@dataclass(frozen=True)
class Node:
    """One operation; its name is also the name of the tensor it produces.

    weight: float32 HWIO or (K, C); bias: float32 (K,); shape: of the output, batch included.
    source: the names of the model's own nodes that were folded into this one.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    weight: np.ndarray = None  # type: ignore[assignment]  # a compute node has one
    bias: np.ndarray = None  # type: ignore[assignment]
    source: tuple[str, ...] = ()

    def __post_init__(self):
        if set(self.attrs) != set(OPS[self.op]):
            raise GraphError(f"node {self.name}: {self.op} takes attributes {OPS[self.op]}")
        for what, array in (("weights", self.weight), ("bias", self.bias)):
            if array is not None and not np.isfinite(array).all():
                raise GraphError(f"node {self.name}: its {what} hold NaN or infinity; export it again")
        object.__setattr__(self, "attrs", MappingProxyType(dict(self.attrs)))

    def __reduce__(self):  # a mapping proxy cannot be pickled
        values = (getattr(self, f.name) for f in fields(self) if f.name != "attrs")
        return _node, (dict(self.attrs), *values)

    @property
    def channels(self) -> int:
        """Output channels K of a convolution or dense node."""
        return self.weight.shape[-1] if self.op == "conv2d" else self.weight.shape[0]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run (padding counted)."""
        if self.op == "conv2d":
            return prod(self.shape) * prod(self.weight.shape[:3])
        return prod(self.shape) * self.weight.shape[1] if self.op == "dense" else 0


def _node(attrs, name, op, inputs, shape, *rest):
    return Node(name, op, inputs, shape, attrs, *rest)


class Graph:
    """Nodes in topological order, keyed by name.

    inputs and outputs are node names; output_names: what the model itself calls its outputs.
    ``fingerprint`` is a hash of structure and weights.
    """

    def __init__(
        self,
        nodes: Iterable[Node],
        outputs: Iterable[str],
        name: str = "model",
        output_names: Iterable[str] | None = None,
    ):
        self.name = name
        self.nodes: dict[str, Node] = {}
        for node in nodes:
            if node.name in self.nodes:
                raise GraphError(f"two nodes are named {node.name}")
            for tensor in node.inputs:
                if tensor not in self.nodes:
                    raise GraphError(f"node {node.name} reads {tensor}, which no earlier node makes")
            self.nodes[node.name] = node
        self.outputs = tuple(outputs)
        self.output_names = self.outputs if output_names is None else tuple(output_names)
        self.inputs = tuple(n.name for n in self.nodes.values() if n.op == "input")
        self.users: dict[str, tuple[str, ...]] = {name: () for name in self.nodes}
        for node in self.nodes.values():
            for tensor in dict.fromkeys(node.inputs):
                self.users[tensor] += (node.name,)

    def __iter__(self):
        return iter(self.nodes.values())

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    @property
    def compute_nodes(self) -> list[Node]:
        return [node for node in self if node.op in COMPUTE]

    @property
    def macs(self) -> int:
        return sum(node.macs for node in self)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of node names, ops, attributes, shapes and weights."""
        import hashlib

        digest = hashlib.sha256()
        for node in self:
            attrs = sorted((k, v) for k, v in node.attrs.items() if k not in ("fn", "handle"))
            if node.op == "float":
                attrs.append(("handle", str(node.attrs["handle"])))
            digest.update(repr((node.name, node.op, node.inputs, node.shape, attrs)).encode())
            for array in (node.weight, node.bias):
                digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def check_inputs(self, feed: Mapping[str, np.ndarray], what: str = "the input") -> dict:
        """One sample as float32 arrays by input name; raises GraphError naming what is wrong."""
        if set(feed) != set(self.inputs):
            raise GraphError(
                f"{what} has tensors {sorted(feed)}, the model's inputs are {sorted(self.inputs)}"
            )
        checked = {}
        for name, array in feed.items():
            array = np.asarray(array)
            if array.dtype != np.float32:
                raise GraphError(f"{what}: {name} is {array.dtype}; the model takes float32")
            want = model_shape(self.nodes[name])
            if array.shape != want:
                raise GraphError(f"{what}: {name} has shape {array.shape}, the model takes {want}")
            if not np.isfinite(array).all():
                raise GraphError(f"{what}: {name} holds NaN or infinity; remove or mend that sample")
            checked[name] = array
        return checked


def model_shape(node: Node) -> tuple[int, ...]:
    """The shape of a feature map as the model's own input or output: NCHW."""
    if len(node.shape) != 4:
        return tuple(node.shape)
    n, h, w, c = node.shape
    return (n, c, h, w)


def layout_hint(have: Sequence[int], want: Sequence[int]) -> str:
    """What to do about an image in the order NHWC where NCHW is wanted; else nothing."""
    if len(have) == len(want) == 4 and (have[3], have[1], have[2]) == tuple(want[1:]):
        return ": it is NHWC; transpose it to NCHW with array.transpose(0, 3, 1, 2)"
    return ""


def to_nhwc(array: np.ndarray) -> np.ndarray:
    """NCHW -> NHWC for 4-D arrays, others unchanged."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if array.ndim == 4 else array


def to_nchw(array: np.ndarray) -> np.ndarray:
    """NHWC -> NCHW for 4-D arrays, others unchanged."""
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2)) if array.ndim == 4 else array


def conv_columns(x: np.ndarray, node: Node, group: int = 0) -> np.ndarray:
    """The im2col matrix of one group of a convolution: (N * OH * OW, R * S * C / groups)."""
    r, s, depth, _ = node.weight.shape
    x = x[..., group * depth : (group + 1) * depth]
    a = node.attrs
    patches = windows(x, (r, s), a["strides"], a["padding"], a["dilation"], 0)
    return patches.reshape(-1, r * s * depth)


def is_depthwise(node: Node) -> bool:
    """One input channel and one filter in each group."""
    return node.op == "conv2d" and node.weight.shape[2] == 1 and node.channels == node.attrs["groups"]


def input_axes(node: Node) -> tuple[int, ...] | None:
    """The axes of a layer's weights besides its input channels'; None where groups have no such axis."""
    if node.op == "dense":
        return (0,)
    if is_depthwise(node):
        return (0, 1, 2)
    return (0, 1, 3) if node.attrs["groups"] == 1 else None


def linear(x: np.ndarray, node: Node, weight: np.ndarray) -> np.ndarray:
    """Convolution or dense of ``x`` with ``weight`` (in the node's weight layout), no bias.

    x: (N, H, W, C) or (N, C), any float dtype; returns (N, OH, OW, K) or (N, K).
    """
    if node.op == "dense":
        return x @ weight.T
    n = x.shape[0]
    groups, k = node.attrs["groups"], node.channels
    _, oh, ow, _ = node.shape
    if is_depthwise(node):
        a = node.attrs
        r, s = weight.shape[:2]
        patches = windows(x, (r, s), a["strides"], a["padding"], a["dilation"], 0)
        out = np.zeros((n, oh, ow, k), x.dtype)
        for i in range(r):
            for j in range(s):
                out += patches[:, :, :, i, j] * weight[i, j, 0]
        return out
    per = k // groups
    out = np.empty((n * oh * ow, k), x.dtype)
    for g in range(groups):
        columns = conv_columns(x, node, g)
        kernel = weight[..., g * per : (g + 1) * per].reshape(-1, per)
        out[:, g * per : (g + 1) * per] = columns @ kernel
    return out.reshape(n, oh, ow, k)


def evaluate(node: Node, *x: np.ndarray) -> np.ndarray:
    """One node on float32 arrays (batch of any size), in NHWC."""
    a = node.attrs
    if node.op in COMPUTE:
        return linear(x[0], node, node.weight) + node.bias
    if node.op == "add":
        return x[0] + x[1]
    if node.op == "mul":
        return x[0] * x[1]
    if node.op == "elementwise":
        return expression.compute(a["expression"], x[0])
    if node.op == "concat":
        return np.concatenate(x, a["axis"])
    if node.op == "clip":
        return np.clip(x[0], np.float32(a["lo"]), np.float32(a["hi"]))
    if node.op == "fake_quant":
        return dequantize(quantize(x[0], **a), **a)
    if node.op == "max_pool2d":
        view = windows(x[0], a["pool_size"], a["strides"], a["padding"], a["dilation"], -np.inf)
        return view.max(axis=(3, 4))
    if node.op == "avg_pool2d":
        return _average(x[0], a)
    return move(node, 0.0, *x)


def _average(x, a):
    window = (a["pool_size"], a["strides"], a["padding"], (1, 1), 0)
    total = windows(x, *window).sum(axis=(3, 4), dtype=np.float32)
    if a["count_include_pad"] or not any(a["padding"]):
        return total / np.float32(prod(a["pool_size"]))
    count = windows(np.ones((1, *x.shape[1:3], 1), np.float32), *window).sum(axis=(3, 4))
    return total / count


def move(node: Node, fill, *x: np.ndarray) -> np.ndarray:
    """An op of `MOVES` but max pool, or a front end's float op, on arrays of any dtype."""
    a = node.attrs
    if node.op == "reshape":
        source = to_nchw(x[0]) if a["channels_first"] else x[0]
        return source.reshape(x[0].shape[0], *a["shape"][1:])
    if node.op == "slice":
        axes = zip(a["begin"], a["end"], a["strides"], strict=True)
        return x[0][(slice(None), *(slice(*axis) for axis in list(axes)[1:]))]
    if node.op == "pad":
        return np.pad(x[0], a["widths"], constant_values=x[0].dtype.type(fill))
    if node.op == "concat":
        return np.concatenate(x, a["axis"])
    if node.op == "resize":
        down, across = a["factors"]
        return x[0].repeat(down, axis=1).repeat(across, axis=2)
    if node.op == "depth_to_space":
        return depth_to_space(x[0], **a)
    if node.op == "float":
        return a["fn"](*x)
    raise GraphError(f"node {node.name}: no rule to run {node.op}")


def depth_to_space(x: np.ndarray, block: int, mode: str) -> np.ndarray:
    """(N, H, W, b * b * C) -> (N, H * b, W * b, C), as ONNX DepthToSpace with block size b."""
    n, h, w, c = x.shape
    depth = c // block**2
    if mode == "DCR":
        pieces = x.reshape(n, h, w, block, block, depth).transpose(0, 1, 3, 2, 4, 5)
    else:
        pieces = x.reshape(n, h, w, depth, block, block).transpose(0, 1, 4, 2, 5, 3)
    return np.ascontiguousarray(pieces.reshape(n, h * block, w * block, depth))


def run(
    graph: Graph,
    feed: Mapping[str, np.ndarray],
    visit: Callable[[Node, np.ndarray], None] | None = None,
) -> dict[str, np.ndarray]:
    """Run the float network; feed and result are in the model's own layout (NCHW).

    visit(node, value) is called for every node with its NHWC value; values are dropped as soon as
    nobody needs them, so memory does not grow with depth.
    """
    feed = graph.check_inputs(feed)
    waiting = {name: len(users) for name, users in graph.users.items()}
    values: dict[str, np.ndarray] = {}
    results: dict[str, np.ndarray] = {}
    for node in graph:
        if node.op == "input":
            value = to_nhwc(feed[node.name])
        else:
            value = evaluate(node, *(values[t] for t in node.inputs))
        if visit is not None:
            visit(node, value)
        if node.name in graph.outputs:
            results[node.name] = to_nchw(value)
        values[node.name] = value
        for tensor in dict.fromkeys(node.inputs):
            waiting[tensor] -= 1
            if not waiting[tensor]:
                del values[tensor]
    return results
