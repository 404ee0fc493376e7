"""`lower_floats`: what stays float in a Relay function, with constant weights -> our float kernels.

As `topi_ext.relax.floats` does it: a layer takes over the bias, an add and the limits that follow it; maps
that are NCHW in the module are made in NHWC between the kernels, and in NCHW where somebody asks for that.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, prod
from typing import Any

import numpy as np
import tvm
from tvm import relay

from ..floats import NCHW_TO_NHWC, NHWC_TO_NCHW, FloatLayer
from ..function import REAL
from ..kernels.float_conv import FloatConv, choose
from ..problem import ConvSpec
from . import op as relay_op
from .expression import name_of

#: operators of single numbers, which have no layout
ELEMENTWISE = {
    "abs", "add", "annotation.stop_fusion", "cast", "ceil", "clip", "divide", "easyquant.quantize",
    "equal", "erf", "exp", "floor", "greater", "greater_equal", "less", "less_equal", "log", "logical_and",
    "logical_not", "logical_or", "maximum", "minimum", "multiply", "negative", "nn.leaky_relu", "nn.relu",
    "not_equal", "power", "round", "rsqrt", "sigmoid", "sign", "sqrt", "subtract", "tanh", "where",
}  # fmt: skip
POOLS: dict[str, Callable] = {"nn.max_pool2d": relay.nn.max_pool2d, "nn.avg_pool2d": relay.nn.avg_pool2d}
REDUCE: dict[str, Callable] = {"mean": relay.mean, "sum": relay.sum, "max": relay.max}


def lower_floats(function, isa_name: str):
    """The function, whose types are known, with every float layer that a kernel of ours takes as a call of
    it, for an instruction set."""
    order: list = []
    relay.analysis.post_order_visit(function.body, order.append)
    if any(isinstance(expr, (relay.Function, relay.Let, relay.If, relay.Match)) for expr in order):
        return function
    layers = _layers(function.body, order, isa_name)
    return _Lowering(function, order, layers, isa_name).function


def _layers(body, order, isa_name) -> dict:
    """{call that a layer ends at: (layer, what it computes, its kernel)}."""
    users: dict = {}
    for expr in order:
        for used in reads(expr):
            users.setdefault(used, []).append(expr)
    users.setdefault(body, []).append(None)  # an output
    found: dict = {}
    taken: set = set()
    for expr in order:
        layer = _layer(expr) if isinstance(expr, relay.Call) and expr not in taken else None
        if layer is None:
            continue
        end = expr
        while len(users[end]) == 1 and isinstance(after := users[end][0], relay.Call):
            if after in taken or not _takes(layer, after, end):
                break
            taken.add(after)
            end = after
        conv = FloatConv(layer.shape, layer.lo, layer.hi, layer.residual is not None, layer.rows)
        kernel = choose(conv, isa_name)
        if kernel is not None:
            found[end] = layer, conv, kernel
    return found


def _layer(call) -> FloatLayer | None:
    """The layer of a call, if it is one: float32, with constant weights."""
    name = name_of(call)
    if name not in ("nn.conv2d", "nn.dense") or dtype_of(call) != "float32":
        return None
    data, weight = call.args[0], number(call.args[1])
    shape, out = shape_of(data), shape_of(call)
    if weight is None or shape is None or out is None or not prod(out) or weight.dtype != np.float32:
        return None
    if name == "nn.dense":
        rows = prod(shape[:-1])
        spec = ConvSpec(1, 1, rows, shape[-1], weight.shape[0], (1, 1))
        return FloatLayer(data, weight.T[None, None], spec, out, len(out) - 1)
    a = call.attrs
    layout, kernel_layout = str(a.data_layout), str(a.kernel_layout)
    if layout not in ("NCHW", "NHWC") or str(a.out_layout) not in ("", layout):
        return None
    groups = int(a.groups)
    if sorted(kernel_layout) != sorted("HWIO") or (groups > 1 and kernel_layout not in ("OIHW", "HWIO")):
        return None
    weight = weight.transpose([kernel_layout.index(axis) for axis in "HWIO"])
    n, h, w, c = (shape[layout.index(axis)] for axis in "NHWC")
    window: Any = {key: tuple(map(int, getattr(a, key))) for key in ("strides", "padding", "dilation")}
    kernel: Any = weight.shape[:2]
    spec = ConvSpec(n, h, w, c, weight.shape[-1], kernel, groups=groups, **window)
    if weight.shape != spec.weight_shape:
        return None
    return FloatLayer(data, weight, spec, out, layout.index("C"))


def _takes(layer: FloatLayer, call, end) -> bool:
    """Have the layer take over the call, if it is one that a kernel does to its output ``end``."""
    name = name_of(call)
    if name == "nn.relu":
        return layer.limited(0.0, inf)
    if name == "clip":
        return layer.limited(float(call.attrs.a_min), float(call.attrs.a_max))
    if name == "reshape":
        return layer.reshaped(shape_of(call))
    if name == "nn.bias_add":
        vector, axis = number(call.args[1]), int(call.attrs.axis) % len(layer.out_shape)
        return call.args[0].same_as(end) and vector is not None and axis == layer.channel and layer.added(
            vector.reshape(-1, *(1,) * (len(layer.out_shape) - 1 - axis))
        )  # fmt: skip
    others = [arg for arg in call.args if not arg.same_as(end)]
    if name not in ("add", "maximum", "minimum") or len(others) != 1 or shape_of(call) != layer.out_shape:
        return False
    return layer.met(name, others[0], shape_of(others[0]), number(others[0]))


class _Lowering:
    def __init__(self, function, order, layers, isa_name):
        self.layers, self.isa = layers, isa_name
        self.turned: dict = {}  # an expression of the function in NCHW -> what holds it in NHWC
        self.made: dict = {}  # an expression of the function -> its new one
        for expr in order:
            self._visit(expr)
        self.function = relay.Function(function.params, self._new(function.body), attrs=function.attrs)

    def _visit(self, expr):
        """Make an expression whose operands are there; what only layers took over is read by nobody."""
        if expr in self.layers:
            made, last = self._layer(*self.layers[expr])
        elif isinstance(expr, relay.Call) and (turned := self._turn(expr)) is not None:
            made, last = turned
        else:
            return
        (self.turned if last else self.made)[expr] = made

    def _new(self, root):
        """The new expression of an old one, in the module's layout. Networks are too deep to recurse."""
        stack = [root]
        while stack:
            expr = stack[-1]
            if expr in self.made:
                stack.pop()
            elif expr in self.turned:
                self.made[expr] = _moved(self.turned[expr], NHWC_TO_NCHW, shape_of(expr), True)
            elif waiting := [x for x in reads(expr) if x not in self.made]:
                stack += waiting
            else:
                self.made[expr] = again(expr, self.made, _called)
        return self.made[root]

    def _nhwc(self, expr):
        """A map of the function that is NCHW, in NHWC."""
        if isinstance(expr, relay.Constant):
            array = expr.data.numpy()
            wide = array.reshape((1,) * (4 - array.ndim) + array.shape)
            return relay.const(np.ascontiguousarray(wide.transpose(NCHW_TO_NHWC)))
        if expr not in self.turned:
            self.turned[expr] = _moved(self._new(expr), NCHW_TO_NHWC, shape_of(expr))
        return self.turned[expr]

    def _layer(self, layer, conv, kernel):
        """(the call of a layer's kernel, whether its channels are last where the function's are first)."""
        turn, spec = self._nhwc if layer.first else self._new, layer.shape
        data, shape = turn(layer.data), (spec.batch, spec.height, spec.width, spec.in_channels)
        if not layer.first and shape_of(layer.data) != shape:
            data = relay.reshape(data, shape)
        constants = map(relay.const, kernel.pack(layer.weight, layer.bias))
        residual = None if layer.residual is None else turn(layer.residual)
        return relay_op.float_layer(data, conv, self.isa, list(constants), residual), layer.first

    def _turn(self, call):  # noqa: PLR0912  # a branch for each kind of operator
        """(expression, whether its channels are last where the function's are first) of a call that is done
        in NHWC; None of another."""
        name, shape = name_of(call), shape_of(call)
        operands = reads(call) if name != "concatenate" else reads(call.args[0])
        maps = [x for x in operands if not isinstance(x, relay.Constant) and len(shape_of(x) or ()) == 4]
        if name == "transpose" and maps:
            axes = tuple(int(axis) % 4 for axis in call.attrs.axes or (3, 2, 1, 0))
            if maps[0] in self.turned:
                whole = tuple(NHWC_TO_NCHW[axis] for axis in axes)
                found = tuple((shape_of(maps[0]) or ())[axis] for axis in NCHW_TO_NHWC)
                return _moved(self.turned[maps[0]], whole, found), False
            return (self._new(maps[0]), True) if axes == NHWC_TO_NCHW else None
        if not any(x in self.turned for x in maps) or len(shape or ()) != 4:
            return None
        a = call.attrs
        if name in ELEMENTWISE:
            if any(
                not isinstance(x, relay.Constant) and len(shape_of(x) or ()) not in (0, 4) for x in operands
            ):
                return None
            args = [self._nhwc(x) if shape_of(x) else self._new(x) for x in call.args]
            return _called(call, args), True
        if name == "nn.bias_add" and int(a.axis) % 4 == 1:
            return relay.nn.bias_add(self._nhwc(maps[0]), self._new(call.args[1]), axis=3), True
        if name == "concatenate" and len(maps) == len(operands):
            parts = [self._nhwc(x) for x in operands]
            return relay.concatenate(parts, NCHW_TO_NHWC.index(int(a.axis) % 4)), True
        if name in POOLS and str(a.layout) == "NCHW" and str(a.out_layout) in ("", "NCHW"):
            keys = ("pool_size", "strides", "padding", "dilation", "ceil_mode", "count_include_pad")
            options = {key: getattr(a, key) for key in keys if key in a.keys()}  # noqa: SIM118
            return POOLS[name](self._nhwc(maps[0]), **options, layout="NHWC"), True
        if (norm := _norm(call)) is not None and len(maps) == 1:
            x, scale, bias = self._nhwc(maps[0]), *map(self._new, call.args[1:])
            return relay_op.normalized(x, scale, bias, *norm, last=True), True
        if (axis := _softmax(call)) is not None:
            return relay_op.softened(self._nhwc(maps[0]), NCHW_TO_NHWC.index(axis)), True
        if name == "nn.global_avg_pool2d" and str(a.layout) == "NCHW":
            return relay.nn.global_avg_pool2d(self._nhwc(maps[0]), layout="NHWC"), True
        if name == "take" and maps[0].same_as(call.args[0]) and isinstance(call.args[1], relay.Constant):
            if a.axis is None or len(shape_of(call.args[1]) or ()) != 1:
                return None
            axis = NCHW_TO_NHWC.index(int(a.axis) % 4)
            return relay.take(self._nhwc(maps[0]), call.args[1], axis, mode=str(a.mode)), True
        if name in REDUCE and a.keepdims and not a.exclude and a.axis is not None:
            over = [NCHW_TO_NHWC.index(int(axis) % 4) for axis in a.axis]
            return REDUCE[name](self._nhwc(maps[0]), over, keepdims=True), True
        return None


def _again(call, args):
    return relay.Call(call.op, args, call.attrs, call.type_args, call.span)


def again(expr, made, call: Callable = _again):
    """An expression as it was, on new operands; call(old, operands): a call of them."""
    if isinstance(expr, relay.Call):
        return call(expr, [made[arg] for arg in expr.args])
    if isinstance(expr, relay.Tuple):
        return relay.Tuple([made[x] for x in expr.fields], expr.span)
    if isinstance(expr, relay.TupleGetItem):
        return relay.TupleGetItem(made[expr.tuple_value], expr.index)
    return expr


def _called(call, args):
    """The call on other arguments; a function that our vectors compute as that."""
    if name_of(call) in REAL and dtype_of(call) == "float32":
        return relay_op.function_of(args[0], name_of(call))
    if (norm := _norm(call)) is not None:
        x, scale, bias = args
        return relay_op.normalized(x, scale, bias, *norm)
    if (axis := _softmax(call)) is not None:
        return relay_op.softened(args[0], axis)
    return _again(call, args)


# -- asking Relay


def _norm(call) -> tuple[int, float] | None:
    """(groups, epsilon) of a normalization of channels, which are first, else None."""
    name, a = name_of(call), call.attrs
    if name not in ("nn.group_norm", "nn.instance_norm") or dtype_of(call) != "float32":
        return None
    shape = shape_of(call)
    if shape is None or len(shape) < 3 or not prod(shape) or int(a.axis) != 1 or not (a.center and a.scale):
        return None
    return shape[1] if name == "nn.instance_norm" else int(a.num_groups), float(a.epsilon)


def _softmax(call) -> int | None:
    """The axis of a softmax, none of whose axes is empty, else None."""
    shape = shape_of(call)
    if name_of(call) != "nn.softmax" or dtype_of(call) != "float32" or not shape or not prod(shape):
        return None
    return int(call.attrs.axis) % len(shape)


def _moved(x, axes, shape, back=False):
    """``x`` transposed; shape: of ``x``, or, for the way ``back``, of what comes out. Where only axes of
    one element move it is a reshape, which costs nothing."""
    if tuple(axes) == (0, 1, 2, 3):
        return x
    if back:
        shape = tuple(shape[axis] for axis in NCHW_TO_NHWC)
    long = [axis for axis in axes if shape[axis] != 1]
    if long == sorted(long):
        return relay.reshape(x, [shape[axis] for axis in axes])
    return relay.transpose(x, axes)


def reads(expr) -> list:
    if isinstance(expr, relay.Call):
        return list(expr.args)
    if isinstance(expr, relay.Tuple):
        return list(expr.fields)
    return [expr.tuple_value] if isinstance(expr, relay.TupleGetItem) else []


def shape_of(expr) -> tuple[int, ...] | None:
    """The shape of a tensor, if it is known."""
    kind = expr.checked_type
    if not isinstance(kind, relay.TensorType):
        return None
    return (
        tuple(int(d) for d in kind.shape)
        if all(isinstance(d, tvm.tir.IntImm) for d in kind.shape)
        else None
    )


def dtype_of(expr) -> str:
    return str(getattr(expr.checked_type, "dtype", ""))


def number(expr) -> np.ndarray | None:
    """The numbers of a constant, or of one that is transposed or reshaped."""
    if isinstance(expr, relay.Constant):
        return expr.data.numpy()
    if name_of(expr) in ("transpose", "reshape"):
        found = number(expr.args[0])
        if found is None:
            return None
        if name_of(expr) == "reshape":
            return found.reshape(shape_of(expr) or found.shape)
        return found.transpose([int(axis) for axis in expr.attrs.axes] if expr.attrs.axes else None)
    return None
