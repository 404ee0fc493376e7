"""Relay front end: a Relay module -> `Graph`, for the pass and for tvmc's formats that are not ONNX.

Batch normalization, biases and per-channel constants are folded in numpy (TVM's FoldConstant takes
50 to 90 ms a call and its FoldScaleAxis erases names). Names are those of the ONNX nodes, which the
importer leaves in ``call.span``; they are read here, before any Relay pass can drop them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf

import numpy as np

from ..errors import GraphError, LoadError
from ..network.builder import AFFINE, Builder, normalization, with_former
from ..network.expression import BINARY, UNARY
from ..network.graph import Graph
from ..network.layout import nhwc
from ..readers.uncovered import here
from .float_op import RelayOp, multiply_accumulates
from .framework import relay, tvm


def from_relay(module, params: Mapping | None = None, name: str = "model") -> Graph:
    """A float Relay module (NCHW) and its params as a `Graph`.

    Raises LoadError for control flow, several functions, or dynamic shapes.
    """
    function = module["main"]
    if params:
        function = relay.build_module.bind_params_by_name(function, dict(params))
    module = tvm.IRModule.from_expr(function)
    passes = [
        relay.transform.InferType(),
        relay.transform.DynamicToStatic(),
        relay.transform.FoldExplicitPadding(),
        relay.transform.InferType(),
    ]
    with tvm.transform.PassContext(opt_level=3):
        module = tvm.transform.Sequential(passes)(module)
    return with_former(lambda edition: _Walk(module["main"], name, edition), _Walk.graph)


class _Walk:
    """One walk over the Relay function in post-order; see `from_relay`."""

    def __init__(self, function, name: str, edition: int):
        self.name = name
        order: list = []
        relay.analysis.post_order_visit(function, order.append)
        body = function.body
        self.results = list(body.fields) if isinstance(body, relay.Tuple) else [body]
        uses: dict[object, int] = {}
        for read in [*(arg for expr in order for arg in _arguments(expr)), *self.results]:
            uses[read] = uses.get(read, 0) + 1
        self.builder = Builder(uses, _label, edition, self._aside)
        for expr in order:
            if expr in function.params:
                self._input(expr)
            elif isinstance(expr, relay.Call):
                self._call(expr)
            elif isinstance(expr, relay.TupleGetItem):
                self._field(expr)
            elif isinstance(expr, (relay.If, relay.Let, relay.Match)):
                raise LoadError(f"{name}: control flow ({type(expr).__name__}) cannot be quantized")

    def graph(self) -> Graph:
        if any(not self.known(result) for result in self.results):
            raise LoadError(f"{self.name}: an output does not depend on any input")
        outputs = [self.builder.tensor[result] for result in self.results]
        return self.builder.graph(outputs, self.name)

    def _input(self, expr):
        shape = _shape(expr.checked_type, expr.name_hint)
        if expr.checked_type.dtype != "float32":
            raise LoadError(
                f"input {expr.name_hint} is {expr.checked_type.dtype}; only float32 inputs are supported"
            )
        self.builder.input(expr, plain(expr.name_hint), nhwc(shape))

    def _call(self, call):
        if not isinstance(call.op, tvm.ir.Op):
            raise LoadError("calls of other functions cannot be quantized; inline them first")
        if not any(self.known(a) for a in _arguments(call)):
            return  # a constant; read where it is used
        if call.op.name in FIELDS:
            return  # read through their fields
        rule = RULES.get(call.op.name)
        if rule is not None and not _in_float32(call):  # places and fills of other types are constants
            tensors = [a for a in _arguments(call) if self.known(a)]
            rule = rule if _in_float32(call, tensors) and self.builder.since() else None
        if rule is None or rule(self, call) is False:
            self.stays_float(call)

    def _field(self, expr):
        call = expr.tuple_value
        if not isinstance(call, relay.Call):
            return
        rule = FIELDS.get(call.op.name)
        if rule is None or rule(self, expr, call) is False:
            self.stays_float(expr, expr.index)

    # -- what the rules ask

    def known(self, expr) -> bool:
        """Whether it is a tensor, which depends on an input."""
        return self.builder.known(expr)

    def tensor(self, expr) -> str:
        """The name of its node."""
        return self.builder.tensor[expr]

    def constant(self, expr) -> np.ndarray | None:
        """The value of an expression that depends on no input, else None."""
        if isinstance(expr, relay.Constant):
            return expr.data.numpy()
        if self.known(expr) or isinstance(expr, (relay.Var, relay.Tuple)):
            return None
        if relay.analysis.free_vars(expr):
            return None
        folded = relay.transform.FoldConstantExpr(expr, tvm.IRModule())
        return folded.data.numpy() if isinstance(folded, relay.Constant) else None

    def add(self, call, op: str, data, attrs: Mapping, shape=None, **more) -> str:
        """A node of one input that makes ``call``; shape: NHWC, by default what the call says."""
        return self.builder.add(call, op, [self.tensor(data)], shape or _out(call), attrs, **more)

    def _aside(self, expr) -> None:
        """The float node of a call, or of a field of one, that no operator made."""
        self.stays_float(expr, expr.index if isinstance(expr, relay.TupleGetItem) else None)

    def stays_float(self, expr, index: int | None = None) -> None:
        """A node for a call that no rule takes, or for a field of one."""
        call = expr.tuple_value if index is not None else expr
        if call.op.name.startswith("qnn."):
            raise LoadError(
                f"the model is already quantized (node {_label(call) or 'without a name'} is "
                f"{call.op.name}); for ONNX, import-onnx (Python: import_quantized) takes its scales over"
            )
        tensors = [a for a in _arguments(call) if self.known(a)]
        if not tensors or not isinstance(expr.checked_type, relay.TensorType):
            return  # a constant, or a tuple, whose fields become nodes
        how = ""
        if (call.op.name in RULES or call.op.name in FIELDS) and self.builder.edition:
            how = here([_shape(tensor.checked_type, "a tensor") for tensor in tensors], call.attrs)
        handle = RelayOp(str(call.op.name), call, tuple(dict.fromkeys(tensors)), index, how)
        self.builder.add(
            expr,
            "float",
            [self.tensor(t) for t in handle.tensors],
            nhwc(_shape(expr.checked_type, handle.op)),
            {"fn": handle.evaluate, "handle": handle, "macs": multiply_accumulates(call)},
            dtype=str(expr.checked_type.dtype),
        )


# -- the rules: (walk, call); False where the call stays float


def _batch_norm(walk, expr, call):
    arrays = [walk.constant(a) for a in call.args[1:]]
    data = call.args[0]
    if expr.index != 0 or any(a is None for a in arrays) or not walk.known(data):
        return False
    gamma, beta, mean, variance = (a.astype(np.float64) for a in arrays)
    scale = (gamma if call.attrs.scale else 1.0) / np.sqrt(variance + call.attrs.epsilon)
    shift = (beta if call.attrs.center else 0.0) - mean * scale
    axis = int(call.attrs.axis)
    if axis == 1 and walk.builder.fold_affine(expr, data, scale, shift):
        return True
    if axis != 1 or (len(data.checked_type.shape) == 3 and not walk.builder.since()):
        return False
    if not walk.builder.channels(call, data, scale, shift):
        return False
    walk.builder.tensor[expr] = walk.tensor(call)
    return True


def _dropout(walk, expr, call):
    return expr.index == 0 and walk.builder.alias(expr, call.args[0])


def _split(walk, expr, call):
    sizes = [_shape(kind, "split") for kind in call.checked_type.fields]
    rank = len(sizes[0])
    axis = int(call.attrs.axis) % rank
    if (
        not walk.known(call.args[0])
        or axis == walk.builder.batch_axis(call.args[0])
        or not walk.builder.since()
    ):
        return False
    at = sum(size[axis] for size in sizes[: expr.index])
    size = sizes[expr.index]
    slices = {axis: slice(at, at + size[axis], 1)}
    return walk.builder.crop(expr, call.args[0], slices, nhwc(size))


def _conv2d(walk, call):
    weight, a = walk.constant(call.args[1]), call.attrs
    if a.data_layout != "NCHW" or a.kernel_layout != "OIHW":
        raise LoadError(
            f"a convolution has layout {a.data_layout}, {a.kernel_layout}; convert the module with "
            "relay.transform.ConvertLayout({'nn.conv2d': ['NCHW', 'OIHW']}) first"
        )
    if weight is None:
        return False
    attrs = dict(
        strides=_ints(a.strides),
        padding=_four(a.padding),
        dilation=_ints(a.dilation),
        groups=int(a.groups),
    )
    weight = np.ascontiguousarray(weight.astype(np.float32).transpose(2, 3, 1, 0))
    return walk.add(call, "conv2d", call.args[0], attrs, weight=weight)


def _conv1d(walk, call):
    weight, a = walk.constant(call.args[1]), call.attrs
    if weight is None or (str(a.data_layout), str(a.kernel_layout)) != ("NCW", "OIW"):
        return False
    if not walk.builder.since():
        return False
    attrs = dict(_high(call), dilation=(1, *_ints(a.dilation)), groups=int(a.groups))
    kernel = np.ascontiguousarray(weight.astype(np.float32)[:, :, None].transpose(2, 3, 1, 0))

    def layer(value, data, shape):
        walk.builder.one(value, "conv2d", data, shape, attrs, weight=kernel)

    return walk.builder.on_map(call, call.args[0], _shape(call.checked_type, "conv1d"), layer)


def _high(call) -> dict[str, tuple[int, ...]]:
    """The strides and the padding of windows of one axis as those of a map of height 1."""
    begin, end = (_ints(call.attrs.padding) * 2)[:2]
    return dict(strides=(1, *_ints(call.attrs.strides)), padding=(0, begin, 0, end))


def _pool1d(op: str) -> Callable:
    """A pool of one axis, whose windows are whole."""

    def rule(walk, call):
        a, size = call.attrs, _shape(call.checked_type, op)
        if a.layout != "NCW" or bool(a.ceil_mode) or _ints(a.dilation) != (1,) or not walk.builder.since():
            return False
        window: dict[str, object] = dict(_high(call), pool_size=(1, *_ints(a.pool_size)))

        def pool(value, data, shape):
            if op == "avg_pool2d":
                return walk.builder.average(value, data, shape, window, bool(a.count_include_pad))
            return walk.builder.pool(value, op, data, shape, window, dilation=(1, 1))

        return walk.builder.on_map(call, call.args[0], size, pool)

    return rule


def _conv2d_transpose(walk, call):
    weight, a = walk.constant(call.args[1]), call.attrs
    plain = a.data_layout == "NCHW" and a.kernel_layout == "IOHW" and _ints(a.dilation) == (1, 1)
    if weight is None or not plain or (int(a.groups) != 1 and not walk.builder.since()):
        return False
    window = (_ints(a.strides), _four(a.padding)[:2], _out(call), int(a.groups))
    return walk.builder.conv2d_transpose(call, call.args[0], weight.astype(np.float32), *window)


def _depth_to_space(walk, call):
    a = call.attrs
    if a.layout != "NCHW":
        return False
    attrs = dict(block=int(a.block_size), mode=plain(a.mode))
    return walk.add(call, "depth_to_space", call.args[0], attrs)


def _resize(walk, call):
    data = call.args[0]
    if str(call.attrs.layout) != "NCHW":
        return False
    resized, a, mode = RelayOp(call.op.name, call, (data,)).evaluate, call.attrs, None
    if call.op.name == "nn.upsampling":
        mode = "align_corners" if a.align_corners else "asymmetric"
    elif str(a.method) == "linear":
        mode = str(a.coordinate_transformation_mode)
    if walk.builder.resize(call, data, _out(call), resized, mode):
        return True
    return str(a.method) == "nearest_neighbor" and _moved(walk, call)


def _moved(walk, call):
    """What moves numbers of its first argument, by the places of each axis."""
    data = call.args[0]
    if not all(walk.constant(a) is not None for a in call.args[1:]):
        return False
    return walk.builder.moved(call, data, _out(call), RelayOp(call.op.name, call, (data,)).evaluate)


def _take(walk, call):
    indices, axis = walk.constant(call.args[1]), call.attrs.axis
    data, mode = call.args[0], str(call.attrs.mode)
    if indices is None or indices.ndim > 1 or axis is None or not walk.known(data):
        return False
    size = _shape(data.checked_type, "take")
    axis = int(axis) % len(size)
    if indices.size and (indices.min() < 0 or indices.max() >= size[axis]) and mode != "wrap":
        return False
    places = [None] * len(size)
    places[axis] = (indices.reshape(-1) % size[axis]).tolist()
    if indices.ndim:
        return walk.builder.gather(call, data, places, _out(call))
    row = (call, "row")
    walk.builder.uses[row] = 1
    kept = nhwc(n if taken is None else 1 for n, taken in zip(size, places, strict=True))
    after = _shape(call.checked_type, "take")
    return walk.builder.gather(row, data, places, kept) and walk.builder.reshape(call, row, after)


def _space_to_depth(walk, call):
    a = call.attrs
    data = call.args[0]
    return a.layout == "NCHW" and walk.builder.space_to_depth(call, data, int(a.block_size), _out(call))


def _dense(walk, call):
    weight = walk.constant(call.args[1])
    if weight is None or len(call.checked_type.shape) != 2:
        return False
    weight = np.ascontiguousarray(weight.astype(np.float32))
    return walk.add(call, "dense", call.args[0], {}, weight=weight.T[None, None])


def _batch_matmul(walk, call):
    """Of two tensors; one with a constant, or of one matrix for all, stays float."""
    pair: list = list(call.args)
    if not all(map(walk.known, pair)) or not walk.builder.since():
        return False
    for i, turned in enumerate((call.attrs.transpose_a, call.attrs.transpose_b)):
        if turned:
            source, pair[i] = pair[i], (call, i)
            n, rows, columns = _shape(source.checked_type, "batch_matmul")
            walk.builder.uses[pair[i]] = 1
            walk.builder.move(pair[i], source, (0, 2, 1), (n, columns, rows))
    return walk.builder.matmul(call, pair[0], pair[1], _out(call))


def _bias_add(walk, call):
    bias = walk.constant(call.args[1])
    if bias is None or int(call.attrs.axis) not in (1, 1 - len(call.checked_type.shape)):
        return False
    return walk.builder.fold_affine(call, call.args[0], 1.0, bias)


def _function(walk, call, *parameters):
    """An operator whose tensors are all functions of one tensor: part of an elementwise node."""

    def operand(arg):
        if walk.known(arg):
            return arg
        value = walk.constant(arg)
        return float(value.reshape(())) if value is not None and value.size == 1 else None

    name = call.op.name.removeprefix("nn.")
    return walk.builder.function(call, name, [operand(a) for a in call.args], _out(call), *parameters)


def _leaky_relu(walk, call):
    return _function(walk, call, float(call.attrs.alpha))


def _layer_norm(walk, call):
    a, (data, *vectors) = call.attrs, call.args
    size, axis = _shape(data.checked_type, "layer_norm"), int(call.attrs.axis)
    scale, shift = map(walk.constant, vectors)
    scale, shift = scale if a.scale else np.ones(1), shift if a.center else np.zeros(1)
    attrs = normalization(size, axis, float(a.epsilon), scale, shift)
    return walk.builder.layer_norm(call, data, axis, attrs, size)


def _prelu(walk, call):
    slope, shape = walk.constant(call.args[1]), _out(call)
    if slope is None or len(shape) not in (2, 4) or int(call.attrs.axis) not in (1, 1 - len(shape)):
        return False
    slopes = tuple(map(float, np.broadcast_to(slope.ravel(), shape[-1:])))
    same = len(set(slopes)) == 1
    return walk.builder.function(call, "leaky_relu", [call.args[0]], shape, slopes[0] if same else slopes)


def _binary(walk, call):
    """An operator of two tensors, or of a tensor and a constant."""
    name, (a, b) = call.op.name, call.args
    if walk.known(a) and walk.known(b):
        return walk.builder.join(call, name, a, b, _out(call))
    if name not in AFFINE:
        return _function(walk, call)
    data, other = (a, b) if walk.known(a) else (b, a)
    constant = walk.constant(other)
    if constant is None:
        return False
    return walk.builder.affine(call, name, data, constant, data is b, _out(call))


def _relu(walk, call):
    walk.builder.clip(call, call.args[0], 0.0, inf)


def _clip(walk, call):
    lo, hi = float(call.attrs.a_min), float(call.attrs.a_max)
    big = float(np.finfo(np.float32).max)
    walk.builder.clip(call, call.args[0], -inf if lo <= -big else lo, inf if hi >= big else hi)


def _concatenate(walk, call):
    fields = list(call.args[0].fields)
    if not all(walk.known(f) for f in fields):
        return False
    axis = int(call.attrs.axis) % len(call.checked_type.shape)
    return walk.builder.concat(call, fields, axis, _out(call))


def _max_pool2d(walk, call):
    a = call.attrs
    if a.layout != "NCHW":
        return False
    attrs = dict(
        pool_size=_ints(a.pool_size),
        strides=_ints(a.strides),
        padding=_whole_windows(call, _ints(a.dilation)),
        dilation=_ints(a.dilation),
    )
    return walk.add(call, "max_pool2d", call.args[0], attrs)


def _avg_pool2d(walk, call):
    a = call.attrs
    padding = _whole_windows(call, (1, 1))
    if a.layout != "NCHW" or _ints(a.dilation) != (1, 1) or padding != _four(a.padding):
        return False
    window = dict(pool_size=_ints(a.pool_size), strides=_ints(a.strides), padding=padding)
    return walk.builder.average(call, call.args[0], _out(call), window, bool(a.count_include_pad))


def _global_avg_pool2d(walk, call):
    return call.attrs.layout == "NCHW" and walk.builder.whole_map(call, "avg_pool2d", call.args[0])


def _global_max_pool2d(walk, call):
    return call.attrs.layout == "NCHW" and walk.builder.whole_map(call, "max_pool2d", call.args[0])


def _adaptive_avg_pool2d(walk, call):
    if call.attrs.layout != "NCHW" or tuple(call.checked_type.shape[2:]) != (1, 1):
        return False
    return walk.builder.whole_map(call, "avg_pool2d", call.args[0])


def _reduce(op: str) -> Callable:
    def rule(walk, call):
        axes = [int(x) for x in call.attrs.axis or ()]
        return not call.attrs.exclude and walk.builder.reduce(call, op, call.args[0], axes, _out(call))

    return rule


def _reshape(walk, call):
    return walk.builder.reshape(call, call.args[0], _shape(call.checked_type, "reshape"))


def _strided_slice(walk, call):
    a = call.attrs
    if a.slice_mode != "end" or a.begin is None:
        return False
    axes = _ints(a.axes) if a.axes is not None else range(len(a.begin))
    steps = _ints(a.strides)
    slices = {
        axis: slice(int(a.begin[i]), int(a.end[i]), steps[i] if i < len(steps) else steps[-1])
        for i, axis in enumerate(axes)
    }
    return walk.builder.crop(call, call.args[0], slices, _out(call))


def _transpose(walk, call):
    rank = len(call.checked_type.shape)
    axes = [int(i) % rank for i in call.attrs.axes] if call.attrs.axes is not None else range(rank)[::-1]
    return rank > 0 and walk.builder.since() and walk.builder.move(call, call.args[0], axes, _out(call))


def _pad(walk, call):
    if call.attrs.pad_mode in ("edge", "reflect"):
        return _moved(walk, call)
    value = walk.constant(call.args[1]) if len(call.args) > 1 else np.float32(0)
    if value is None or float(value) != 0 or call.attrs.pad_mode != "constant":
        return False
    return walk.builder.pad(call, call.args[0], [_ints(pair) for pair in call.attrs.pad_width], _out(call))


def _copy(walk, call):
    walk.builder.alias(call, call.args[0])


#: Relay operator -> its rule
RULES: dict[str, Callable[[_Walk, object], object]] = {
    "nn.conv2d": _conv2d,
    "nn.conv1d": _conv1d,
    "nn.max_pool1d": _pool1d("max_pool2d"),
    "nn.avg_pool1d": _pool1d("avg_pool2d"),
    "nn.conv2d_transpose": _conv2d_transpose,
    "nn.depth_to_space": _depth_to_space,
    "nn.space_to_depth": _space_to_depth,
    "image.resize2d": _resize,
    "nn.upsampling": _resize,
    "nn.dense": _dense,
    "nn.batch_matmul": _batch_matmul,
    "nn.bias_add": _bias_add,
    **dict.fromkeys((*UNARY, *BINARY), _function),
    "nn.leaky_relu": _leaky_relu,
    "nn.prelu": _prelu,
    "nn.layer_norm": _layer_norm,
    **dict.fromkeys((*AFFINE, "maximum", "minimum"), _binary),
    "nn.relu": _relu,
    "clip": _clip,
    "concatenate": _concatenate,
    "nn.max_pool2d": _max_pool2d,
    "nn.avg_pool2d": _avg_pool2d,
    "nn.global_avg_pool2d": _global_avg_pool2d,
    "nn.global_max_pool2d": _global_max_pool2d,
    "nn.adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "mean": _reduce("reduce_mean"),
    "max": _reduce("reduce_max"),
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "nn.batch_flatten": _reshape,
    "strided_slice": _strided_slice,
    "transpose": _transpose,
    "nn.pad": _pad,
    "take": _take,
    **dict.fromkeys(("nn.mirror_pad", "tile", "repeat", "reverse", "broadcast_to"), _moved),
    "copy": _copy,
}
#: Relay operator that makes a tuple -> the rule of a field: (walk, field, call)
FIELDS: dict[str, Callable[[_Walk, object, object], object]] = {
    "nn.batch_norm": _batch_norm,
    "nn.dropout": _dropout,
    "split": _split,
}


def _label(expr) -> str:
    """What the model calls an operator; nothing if it has no name."""
    span = getattr(expr, "span", None)
    return plain(span.source_name.name) if span is not None and span.source_name else ""


def plain(name) -> str:
    """A name without TVM: its strings are a class of TVM's, which a process without it cannot unpickle."""
    return str.__str__(name)


def _in_float32(call, arguments=None) -> bool:
    """Whether a call reads and makes float32 only; of these arguments, if not all count."""
    kinds = [expr.checked_type for expr in (call, *(_arguments(call) if arguments is None else arguments))]
    return all(not isinstance(kind, relay.TensorType) or kind.dtype == "float32" for kind in kinds)


def _out(call) -> tuple[int, ...]:
    """The shape of what a call makes, NHWC."""
    return nhwc(_shape(call.checked_type, call.op.name.split(".")[-1]))


def _arguments(expr):
    """The tensors an expression reads, tuples opened."""
    if isinstance(expr, relay.TupleGetItem):
        return [expr.tuple_value]
    if not isinstance(expr, relay.Call):
        return []
    found: list = []
    for arg in expr.args:
        found.extend(arg.fields if isinstance(arg, relay.Tuple) else [arg])
    return found


def _shape(kind, what) -> tuple[int, ...]:
    if any(not isinstance(d, tvm.tir.IntImm) for d in kind.shape):
        example = ",".join(
            str(d) if isinstance(d, tvm.tir.IntImm) else "224" if i else "1"
            for i, d in enumerate(kind.shape)
        )
        raise LoadError(
            f"{what} has a dynamic shape; fix every dimension with input_shapes (--input-shapes on the "
            f"command line), for example {what}:[{example}]"
        )
    return tuple(int(d) for d in kind.shape)


def _ints(values) -> tuple[int, ...]:
    return tuple(int(v) for v in values)


def _four(padding) -> tuple[int, int, int, int]:
    p = _ints(padding)
    top, left, bottom, right = {1: p * 4, 2: p * 2, 4: p}[len(p)]
    return top, left, bottom, right


def _whole_windows(call, dilation):
    """Padding (t, l, b, r) grown at the end so that ceil mode's last windows are whole."""
    a = call.attrs
    height, width = _shape(call.args[0].checked_type, "pool")[2:]
    out = _shape(call.checked_type, "pool")[2:]
    top, left, bottom, right = _four(a.padding)
    ends = []
    for size, n, k, s, d, before, after in zip(
        (height, width), out, _ints(a.pool_size), _ints(a.strides), dilation,
        (top, left), (bottom, right), strict=True,
    ):  # fmt: skip
        ends.append(max(after, (n - 1) * s + (k - 1) * d + 1 - size - before))
    return (top, left, *ends)


__all__ = ["GraphError", "LoadError", "from_relay"]
