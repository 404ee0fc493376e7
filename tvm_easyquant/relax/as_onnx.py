"""Relax operators as the ONNX operators of the same meaning, which `readers.meaning` says: what stays float
runs so in numpy, in a host's module and in an exported model by one rule.

A rule takes the reader's walk and a call, and returns (operator, operands, attributes), or None where the
call is no such operator. An operand is an expression or an array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .calls import DTYPES, ends, ints, is_tensor, permutation, shape_of, slices_of

#: whose operators these are
OPSET = 17


def _plain(op: str) -> Callable:
    """An operator without attributes."""
    return lambda walk, call: (op, list(call.args), {})


def _of_floats(op: str) -> Callable:
    """The same, of float32 only: what it is of integers is TVM's own."""

    def rule(walk, call):
        floats = all(str(leaf.ty.dtype) == "float32" for leaf in walk.leaves(call))
        return (op, list(call.args), {}) if floats else None

    return rule


def _softmax(op: str) -> Callable:
    return lambda walk, call: (op, [call.args[0]], {"axis": int(call.attrs.axis)})


def _layer_norm(walk, call):
    a, rank = call.attrs, len(walk.size(call.args[0]))
    axes = sorted(int(i) % rank for i in a.axes)
    if axes != list(range(axes[0], rank)) or not (a.scale and a.center):
        return None
    return "LayerNormalization", list(call.args), {"axis": axes[0], "epsilon": float(a.epsilon)}


def _onnx_conv(walk, call):
    a, rank = call.attrs, len(walk.size(call.args[0])) - 2
    if str(a.data_layout) != "NC" + "DHW"[3 - rank :] or not str(a.kernel_layout).startswith("OI"):
        return None
    begin, end = ends(a.padding, rank)
    return "Conv", list(call.args), {
        "strides": ints(a.strides), "pads": (*begin, *end), "dilations": ints(a.dilation),
        "group": int(a.groups),
    }  # fmt: skip


def _onnx_conv_transpose(walk, call):
    a, rank = call.attrs, len(walk.size(call.args[0])) - 2
    if str(a.data_layout) != "NC" + "DHW"[3 - rank :] or not str(a.kernel_layout).startswith("IO"):
        return None
    begin, end = ends(a.padding, rank)
    return "ConvTranspose", list(call.args), {
        "strides": ints(a.strides), "pads": (*begin, *end), "dilations": ints(a.dilation),
        "group": int(a.groups), "output_padding": ints(a.output_padding),
    }  # fmt: skip


def _onnx_max_pool(walk, call):
    a, rank = call.attrs, len(walk.size(call.args[0])) - 2
    if str(a.layout) != "NC" + "DHW"[3 - rank :]:
        return None
    begin, end = ends(a.padding, rank)
    return "MaxPool", list(call.args), {
        "kernel_shape": ints(a.pool_size), "strides": ints(a.strides), "pads": (*begin, *end),
        "dilations": ints(a.dilation), "ceil_mode": int(bool(a.ceil_mode)),
    }  # fmt: skip


def _reduce(op: str, *, as_input: bool = False) -> Callable:
    """A reduction; as_input: this opset takes its axes as an input."""

    def rule(walk, call):
        rank = len(walk.size(call.args[0]))
        axes = call.attrs.axis
        axes = [int(i) % rank for i in axes] if axes is not None else list(range(rank))
        keep = {"keepdims": int(bool(call.attrs.keepdims))}
        if as_input:
            return op, [call.args[0], np.asarray(axes, np.int64)], keep
        return op, [call.args[0]], {"axes": axes, **keep}

    return rule


def _place(op: str) -> Callable:
    def rule(walk, call):
        a = call.attrs
        if a.axis is None:
            return None
        axis = int(a.axis) % len(walk.size(call.args[0]))
        return op, [call.args[0]], {"axis": axis, "keepdims": int(bool(a.keepdims))}

    return rule


def _onnx_reshape(walk, call):
    return "Reshape", [call.args[0], np.asarray(shape_of(call.ty, "reshape"), np.int64)], {"allowzero": 1}


def _onnx_transpose(walk, call):
    return "Transpose", [call.args[0]], {"perm": permutation(walk, call)}


def _onnx_concat(walk, call):
    if call.attrs.axis is None:
        return None
    return "Concat", walk.fields(call.args[0]), {"axis": int(call.attrs.axis)}


def _onnx_slice(walk, call):
    slices = slices_of(walk, call)
    if slices is None or any(s.step is not None and s.step < 1 for s in slices.values()):
        return None
    size = walk.size(call.args[0])
    bounds = [(axis, *s.indices(size[axis])) for axis, s in slices.items()]
    axes, begin, end, steps = (np.asarray(part, np.int64) for part in zip(*bounds, strict=True))
    return "Slice", [call.args[0], begin, end, axes, steps], {}


def _onnx_split(walk, call):
    if is_tensor(call.ty):  # one part, which is no tuple
        return None
    axis = int(call.attrs.axis) % len(walk.size(call.args[0]))
    sizes = [shape_of(kind, "split")[axis] for kind in call.ty.fields]
    return "Split", [call.args[0], np.asarray(sizes, np.int64)], {"axis": axis}


def _onnx_take(walk, call):
    places, axis = walk.constant(call.args[1]), call.attrs.axis
    if axis is None or places is None:
        return None
    axis = int(axis) % len(walk.size(call.args[0]))
    if places.size and not 0 <= places.min() <= places.max() < walk.size(call.args[0])[axis]:
        return None
    return "Gather", [call.args[0], places.astype(np.int64)], {"axis": axis}


def _onnx_expand(walk, call):
    return "Expand", [call.args[0], np.asarray(shape_of(call.ty, "broadcast_to"), np.int64)], {}


def _onnx_cast(walk, call):
    from onnx import helper

    dtype = str(call.ty.dtype)
    if dtype not in ("float32", *DTYPES):
        return None
    return "Cast", [call.args[0]], {"to": helper.np_dtype_to_tensor_dtype(np.dtype(dtype))}


def _onnx_clip(walk, call):
    if str(call.ty.dtype) != "float32":
        return None
    return "Clip", [call.args[0], *(np.float32(a.value).reshape(()) for a in call.args[1:])], {}


#: Relax operator -> the ONNX operator of the same meaning
ONNX: dict[str, Callable[[Any, Any], tuple[str, list, dict] | None]] = {
    **{f"relax.{name}": _of_floats(op) for name, op in {
        "abs": "Abs", "ceil": "Ceil", "erf": "Erf", "exp": "Exp", "floor": "Floor", "log": "Log",
        "negative": "Neg", "sigmoid": "Sigmoid", "sqrt": "Sqrt", "tanh": "Tanh", "divide": "Div",
        "power": "Pow", "nn.relu": "Relu", "matmul": "MatMul",
    }.items()},
    **{f"relax.{name}": _plain(op) for name, op in {
        "add": "Add", "subtract": "Sub", "multiply": "Mul", "maximum": "Max", "minimum": "Min",
        "equal": "Equal", "less": "Less", "less_equal": "LessOrEqual", "greater": "Greater",
        "greater_equal": "GreaterOrEqual", "logical_and": "And", "logical_or": "Or", "logical_xor": "Xor",
        "logical_not": "Not", "where": "Where",
    }.items()},
    "relax.nn.softmax": _softmax("Softmax"),
    "relax.nn.log_softmax": _softmax("LogSoftmax"),
    "relax.nn.layer_norm": _layer_norm,
    **{f"relax.nn.conv{n}d": _onnx_conv for n in (1, 2, 3)},
    **{f"relax.nn.conv{n}d_transpose": _onnx_conv_transpose for n in (1, 2, 3)},
    **{f"relax.nn.max_pool{n}d": _onnx_max_pool for n in (1, 2, 3)},
    "relax.mean": _reduce("ReduceMean"),
    "relax.max": _reduce("ReduceMax"),
    "relax.min": _reduce("ReduceMin"),
    "relax.prod": _reduce("ReduceProd"),
    "relax.sum": _reduce("ReduceSum", as_input=True),
    "relax.argmax": _place("ArgMax"),
    "relax.argmin": _place("ArgMin"),
    **{f"relax.{name}": _onnx_reshape for name in ("reshape", "squeeze", "expand_dims", "flatten")},
    "relax.nn.batch_flatten": _onnx_reshape,
    "relax.permute_dims": _onnx_transpose,
    "relax.concat": _onnx_concat,
    "relax.strided_slice": _onnx_slice,
    "relax.split": _onnx_split,
    "relax.take": _onnx_take,
    "relax.broadcast_to": _onnx_expand,
    "relax.astype": _onnx_cast,
    "relax.clip": _onnx_clip,
}  # fmt: skip
