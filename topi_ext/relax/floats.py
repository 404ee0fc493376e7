"""`lower_floats`: what stays float in a Relax module, with constant weights -> calls of our float kernels.

A convolution, or a product with a constant matrix, becomes one ``call_tir`` of `kernels.float_conv` with
the bias, a tensor that is added, and the limits that follow it. The kernels read and write NHWC. A tensor
that is NCHW in the module is made in NHWC where it comes from one of them, or was NHWC before, or from an
operator of single numbers, a pool or a concatenation of such; in NCHW it is only made where somebody asks
for it. All else stays as it is, and so does a layer that no kernel takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, prod
from typing import Any

import numpy as np
import tvm
from tvm import relax, te

from ..emit import target_isa
from ..floats import NCHW_TO_NHWC, NHWC_TO_NCHW, FloatLayer
from ..function import REAL
from ..kernels import elementwise
from ..kernels.float_conv import FloatConv, choose
from ..kernels.group_norm import group_norm
from ..kernels.softmax import softmax
from ..problem import ConvSpec
from .lower import KERNEL, call_element, constant

#: operators of single numbers, which have no layout
ELEMENTWISE = {f"relax.{name}" for name in (
    "abs", "add", "astype", "ceil", "clip", "divide", "equal", "erf", "exp", "floor", "greater",
    "greater_equal", "less", "less_equal", "log", "logical_and", "logical_not", "logical_or", "maximum",
    "minimum", "multiply", "negative", "nn.gelu", "nn.relu", "nn.silu", "not_equal", "power", "round",
    "rsqrt", "sigmoid", "sign", "sqrt", "subtract", "tanh", "where",
)}  # fmt: skip
POOLS = {"relax.nn.max_pool2d": relax.op.nn.max_pool2d, "relax.nn.avg_pool2d": relax.op.nn.avg_pool2d}
NORMS = ("relax.nn.group_norm", "relax.nn.instance_norm")
REDUCE = {"relax.mean": relax.op.mean, "relax.sum": relax.op.sum, "relax.max": relax.op.max}


def lower_floats(module, target):
    """The module with every float layer of ``main`` that a kernel of ours takes as a call of it.

    target: ``tvm.target.Target``.
    """
    if (main := main_of(module)) is None:
        return module
    lowered = _Lowering(module, _layers(main, target_isa(target))).module()
    return relax.transform.DeadCodeElimination(["main"])(lowered)


def _takes(layer: FloatLayer, call, var, number) -> bool:
    """Have the layer take over the call, if it is one that a kernel does to its output ``var``."""
    name, args = name_of(call), list(call.args)
    if name == "relax.nn.relu":
        return layer.limited(0.0, inf)
    if name == "relax.clip":
        lo, hi = map(_number, args[1:])
        return lo is not None and hi is not None and layer.limited(lo, hi)
    if name == "relax.reshape":
        return layer.reshaped(shape_of(call))
    others = [arg for arg in args if not arg.same_as(var)]
    if name not in ("relax.add", "relax.maximum", "relax.minimum") or len(others) != 1:
        return False
    if shape_of(call) != layer.out_shape:
        return False
    return layer.met(name.removeprefix("relax."), others[0], shape_of(others[0]), number(others[0]))


def _layers(main, isa_name: str) -> dict:
    """{variable that a layer ends at: (layer, its kernel)}."""
    values: dict = {}
    users: dict = {}
    inner = set()
    for block in main.body.blocks:
        for binding in block.bindings:
            var, value = binding.var, binding.value
            values[var] = value
            if isinstance(block, relax.DataflowBlock) and isinstance(var, relax.DataflowVar):
                inner.add(var)
            for read in used(value):
                users.setdefault(read, []).append(var)

    def number(expr) -> np.ndarray | None:
        """The numbers of a constant, or of one that is transposed."""
        if isinstance(expr, tvm.ir.GenericConst):
            return expr.value.numpy()
        value = values.get(expr) if isinstance(expr, relax.Var) else None
        if isinstance(value, relax.Call) and name_of(value) == "relax.permute_dims":
            found = number(value.args[0])
            return None if found is None else found.transpose(axes_of(value))
        return None

    found, taken = {}, set()
    for var, value in values.items():
        layer = _layer(value, number) if isinstance(value, relax.Call) and var not in taken else None
        if layer is None:
            continue
        end = var
        while end in inner and len(users.get(end, ())) == 1:
            (after,) = users[end]
            if after in taken or not isinstance(values[after], relax.Call):
                break
            if not _takes(layer, values[after], end, number):
                break
            taken.add(after)
            end = after
        conv = FloatConv(layer.shape, layer.lo, layer.hi, layer.residual is not None, layer.rows)
        kernel = choose(conv, isa_name)
        if kernel is not None:
            found[end] = layer, kernel
    return found


def _layer(call, number) -> FloatLayer | None:
    """The layer of a call, if it is one: float32, of known shapes, with constant weights."""
    if name_of(call) not in ("relax.nn.conv2d", "relax.matmul") or dtype_of(call) != "float32":
        return None
    data, weight = call.args[0], number(call.args[1])
    shape, out = shape_of(data), shape_of(call)
    if weight is None or shape is None or out is None or not prod(out) or weight.dtype != np.float32:
        return None
    if name_of(call) == "relax.matmul":
        if weight.ndim != 2 or len(shape) < 2:
            return None
        rows, (depth, columns) = prod(shape[:-1]), weight.shape
        spec = ConvSpec(1, 1, rows, depth, columns, (1, 1))
        return FloatLayer(data, weight[None, None], spec, out, len(out) - 1)
    a = call.attrs
    layout = str(a.data_layout)
    if layout not in ("NCHW", "NHWC") or str(a.out_layout) != layout:
        return None
    weight = weight.transpose([str(a.kernel_layout).index(axis) for axis in "HWIO"])
    n, h, w, c = (shape[layout.index(axis)] for axis in "NHWC")
    window: Any = {key: tuple(getattr(a, key)) for key in ("strides", "padding", "dilation")}
    kernel: Any = weight.shape[:2]
    spec = ConvSpec(n, h, w, c, weight.shape[-1], kernel, groups=int(a.groups), **window)
    return FloatLayer(data, weight, spec, out, layout.index("C"))


# -- rewriting


@relax.expr_functor.mutator
class _Lowering(relax.PyExprMutator):
    def __init__(self, module, layers):
        super().__init__(module)
        self.source, self.layers = module, layers
        self.turned: dict = {}  # a variable of the module in NCHW -> what holds it in NHWC
        self.waiting: set = set()  # those of them that are not made in NCHW

    def module(self):
        main = self.source.get_global_var("main")
        self.builder_.update_func(main, self.visit_expr(self.source[main]))
        return self.builder_.get()

    def visit_var_binding_(self, binding):
        var, value = binding.var, binding.value
        if var in self.layers:
            self._bind(var, *self._made(*self.layers[var]))
            return
        turned = self._turned(value) if isinstance(value, relax.Call) else None
        if turned is None:
            super().visit_var_binding_(binding)
        else:
            self._bind(var, *turned)

    def visit_dataflow_block_(self, block):
        made = super().visit_dataflow_block_(block)
        self.turned.clear()  # what is in NHWC is not seen outside
        return made

    def visit_var_(self, op):
        self._need(op)
        return super().visit_var_(op)

    def visit_dataflow_var_(self, op):
        self._need(op)
        return super().visit_dataflow_var_(op)

    def _need(self, var):
        """Make a variable in NCHW that so far is in NHWC alone."""
        if var in self.waiting:
            self.waiting.discard(var)
            self.set_var_remap(var, self._moved(self.turned[var], NHWC_TO_NCHW))

    # -- parts

    def _bind(self, var, expr, last: bool):
        """The variable is ``expr``; last: with its channels last, though in the module they are first."""
        hidden = isinstance(var, relax.DataflowVar)
        if last:
            made = self.turned[var] = self.builder_.emit(expr)
            if hidden:
                self.waiting.add(var)
                return
            expr = relax.op.permute_dims(made, NHWC_TO_NCHW)
        inside = self.builder_.current_block_is_dataflow()
        emit = self.builder_.emit if hidden or not inside else self.builder_.emit_output
        self.set_var_remap(var, emit(expr))

    def _moved(self, x, axes):
        """Transposed; where only axes of one element move it is a reshape, which costs nothing."""
        shape = shape_of(x) or ()
        if tuple(axes) == tuple(range(len(axes))):
            return x
        long = [axis for axis in axes if shape[axis] != 1]
        if long == sorted(long):
            return self.builder_.emit(relax.op.reshape(x, [shape[axis] for axis in axes]))
        return self.builder_.emit(relax.op.permute_dims(x, axes))

    def _in_nhwc(self, expr):
        """A map of the module that is NCHW."""
        if isinstance(expr, tvm.ir.GenericConst):
            array = expr.value.numpy()
            wide = array.reshape((1,) * (4 - array.ndim) + array.shape)
            return constant(wide.transpose(NCHW_TO_NHWC))
        if expr not in self.turned:
            self.turned[expr] = self._moved(self.visit_expr(expr), NCHW_TO_NHWC)
        return self.turned[expr]

    def _made(self, layer, kernel):
        """(the call of a layer's kernel, whether its channels are last where the module's are first)."""
        spec = layer.shape
        turn = self._in_nhwc if layer.first else self.visit_expr

        data, shape = turn(layer.data), (spec.batch, spec.height, spec.width, spec.in_channels)
        if shape_of(data) != shape:
            data = self.builder_.emit(relax.op.reshape(data, shape))
        rest = [] if layer.residual is None else [turn(layer.residual)]
        constants = kernel.pack(layer.weight, layer.bias)
        out = spec.out_shape if layer.first else layer.out_shape
        made = call_kernel(
            self.builder_, kernel.name, kernel.compute, [data, *map(constant, constants), *rest], out
        )
        return made, layer.first

    def _normalized(self, call, data, last: bool):
        """The kernel of a normalization on ``data``, with its channels last or first; None of another."""
        name, shape, a = name_of(call), shape_of(call) or (), call.attrs
        if name not in NORMS or dtype_of(call) != "float32" or len(shape) < 3 or not prod(shape):
            return None
        axes = sorted(int(axis) % len(shape) for axis in a.axes)
        if not (a.center and a.scale) or int(a.channel_axis) != 1 or axes != list(range(2, len(shape))):
            return None
        groups = int(a.num_groups) if name == "relax.nn.group_norm" else shape[1]

        def compute(x, scale, bias):
            return group_norm(x, scale, bias, groups, float(a.epsilon), last)

        arguments = [data, *map(self.visit_expr, call.args[1:])]
        return call_kernel(self.builder_, "group_norm", compute, arguments, shape_of(data) or ())

    def _softmax(self, call, data, turn=range(4)):
        """The kernel of a softmax on ``data``, whose axes are those of the module or in the order ``turn``;
        None of another."""
        shape = shape_of(call)
        if (
            name_of(call) != "relax.nn.softmax"
            or dtype_of(call) != "float32"
            or not shape
            or not prod(shape)
        ):
            return None
        axis = int(call.attrs.axis) % len(shape)
        axis = turn.index(axis) if len(shape) == 4 else axis
        return call_kernel(
            self.builder_, "softmax", lambda x: softmax(x, axis), [data], shape_of(data) or ()
        )

    def visit_call_(self, call):
        call = self.visit_expr_post_order(call)
        if not call.args:
            return call
        made = self._function(call, call.args[0])
        made = self._normalized(call, call.args[0], False) if made is None else made
        made = self._softmax(call, call.args[0]) if made is None else made
        return call if made is None else made

    def _function(self, call, data):
        """The call of a function of numbers that our vectors compute, on ``data``; None of another."""
        name = name_of(call).removeprefix("relax.")
        if name not in REAL or dtype_of(call) != "float32" or not shape_of(call):
            return None
        return call_element(self.builder_, elementwise.real_function, [data], [name], "float32")

    def _turned(self, call):
        """(expression, whether its channels are last where the module's are first) of a call that is done
        in NHWC; None of another."""
        name, shape = name_of(call), shape_of(call)
        maps = [x for x in _tensors(call) if isinstance(x, relax.Var) and len(shape_of(x) or ()) == 4]
        if name == "relax.permute_dims" and maps:
            axes = axes_of(call)
            if maps[0] in self.turned:
                whole = tuple(NHWC_TO_NCHW[axis] for axis in axes)
                return self._moved(self.turned[maps[0]], whole), False
            return (self.visit_expr(maps[0]), True) if axes == NHWC_TO_NCHW else None
        if not any(x in self.turned for x in maps) or len(shape or ()) != 4:
            return None
        if name in ELEMENTWISE:
            if any(
                isinstance(x, relax.Var) and len(shape_of(x) or (0,)) not in (0, 4) for x in _tensors(call)
            ):
                return None
            args = [self._in_nhwc(x) if _is_map(x) else self.visit_expr(x) for x in call.args]
            made = self._function(call, args[0])
            return relax.Call(call.op, args, call.attrs, call.ty_args) if made is None else made, True
        if len(maps) == 1 and name in NORMS:
            made = self._normalized(call, self._in_nhwc(maps[0]), True)
            return None if made is None else (made, True)
        if (
            len(maps) == 1
            and (made := self._softmax(call, self._in_nhwc(maps[0]), NCHW_TO_NHWC)) is not None
        ):
            return made, True
        a = call.attrs
        if name == "relax.concat" and all(shape_of(x) for x in _tensors(call)):
            parts = [self._in_nhwc(x) for x in call.args[0].fields]
            return relax.op.concat(parts, NCHW_TO_NHWC.index(int(a.axis) % 4)), True
        if name in POOLS and str(a.layout) == str(a.out_layout) == "NCHW":
            options = {key: getattr(a, key) for key in (
                "pool_size", "strides", "padding", "dilation", "ceil_mode", "count_include_pad",
            )}  # fmt: skip
            return POOLS[name](self._in_nhwc(maps[0]), **options, layout="NHWC", out_layout="NHWC"), True
        if name == "relax.take" and a.axis is not None and isinstance(call.args[1], tvm.ir.GenericConst):
            if len(shape_of(call.args[1]) or ()) != 1:
                return None
            axis = NCHW_TO_NHWC.index(int(a.axis) % 4)
            return relax.op.take(self._in_nhwc(maps[0]), call.args[1], axis, str(a.mode)), True
        if name in REDUCE and a.keepdims and a.axis is not None:
            over = [NCHW_TO_NHWC.index(int(axis) % 4) for axis in a.axis]
            return REDUCE[name](self._in_nhwc(maps[0]), over, keepdims=True), True
        return None


def call_kernel(builder, name: str, compute: Callable, arguments: Sequence, out: Sequence[int]):
    """The call of a kernel on float32 tensors, whose output has the shape ``out``; its function is added to
    the module."""
    inputs = [te.placeholder(shape_of(x), "float32", name=f"in{i}") for i, x in enumerate(arguments)]
    function = te.create_prim_func([*inputs, compute(*inputs)]).with_attrs(KERNEL)
    added = builder.add_func(function.without_attr("global_symbol"), f"eq_{name}")
    return relax.call_tir(added, list(arguments), out_ty=relax.TensorType(tuple(out), "float32"))


# -- asking Relax


def main_of(module):
    """``main``, None where there is none or it has branches, whose tensors are not seen outside."""
    main = module["main"] if "main" in [var.name_hint for var in module.get_global_vars()] else None
    if not isinstance(main, relax.Function):
        return None
    found: list = []
    relax.analysis.post_order_visit(main, lambda x: found.append(x) if isinstance(x, relax.If) else None)
    return None if found else main


def name_of(call) -> str:
    return str(getattr(call.op, "name", ""))


def shape_of(expr) -> tuple[int, ...] | None:
    """The shape of a tensor, if it is known."""
    shape = getattr(getattr(expr, "ty", None), "shape", None)
    values = getattr(shape, "values", None)
    if values is None or not all(hasattr(d, "value") for d in values):
        return None
    return tuple(int(d) for d in values)


def dtype_of(expr) -> str:
    return str(expr.ty.dtype)


def axes_of(call) -> tuple[int, ...]:
    rank = len(shape_of(call) or ())
    if call.attrs.axes is None:
        return tuple(reversed(range(rank)))
    return tuple(int(axis) % rank for axis in call.attrs.axes)


def _tensors(call) -> Sequence:
    """The tensors among the arguments, those of a tuple as well."""
    found = []
    for arg in call.args:
        found += list(arg.fields) if isinstance(arg, relax.Tuple) else [arg]
    return [x for x in found if isinstance(getattr(x, "ty", None), relax.TensorType)]


def _is_map(expr) -> bool:
    """Whether an argument has a layout: a map, or a constant that is spread over one."""
    if isinstance(expr, tvm.ir.GenericConst):
        return expr.value.numpy().ndim > 0
    return isinstance(expr, relax.Var) and len(shape_of(expr) or ()) == 4


def _number(expr) -> float | None:
    value = getattr(expr, "value", None)
    value = getattr(value, "value", value)
    return float(value) if isinstance(value, (int, float)) else None


def used(value) -> list:
    """The variables that an expression reads."""
    found: list = []

    def visit(expr):
        if isinstance(expr, relax.Var):
            found.append(expr)

    relax.analysis.post_order_visit(value, visit)
    return found
