"""Our Relay operators, their strategy and their AutoTVM templates, in an unpatched TVM 0.19.

`register` adds them to TVM's operator registry and the templates to AutoTVM's, once a process (TVM has no
way to take an operator out again; nothing of TVM's own is changed). Importing registers nothing: AutoTVM's
worker processes get a task with its functions inside.

==========================  ==================================================================
easyquant.conv2d.ROW        data, packed weight, bias, multiplier -> `problem.ConvSpec`'s output
easyquant.conv2d_add.ROW    the same and a residual tensor
easyquant.float             data, packed weight, bias -> `kernels.float_conv.FloatConv`'s output
easyquant.float_add         the same and a tensor that is added
easyquant.product.ROW       data, data -> int32                   (`kernels.product.Product`)
easyquant.quantize          float32 -> uint8                      (`reference.quantize`)
easyquant.requantize        uint8 or int32, multiplier -> uint8   (`reference.requantize`)
easyquant.dequantize        uint8 or int32, scale -> float32      (`reference.dequantize`)
easyquant.function          float32 -> float32                    (`function.real`)
easyquant.add (sub, max, min)  uint8, uint8 (or broadcast) -> uint8  (`reference.join`)
easyquant.mul               uint8, uint8 (or its gate) -> uint8   (`reference.mul`)
easyquant.total             uint8 -> int32, summed over the map
easyquant.image             float32 NCHW -> uint8 NHWC, of few channels (`elementwise.image`)
easyquant.shuffle           uint8 -> uint8, its channels shuffled (`elementwise.shuffle`)
easyquant.group_norm        float32, scale, bias -> float32       (`kernels.group_norm`)
easyquant.layer_norm        uint8, gain, shift -> uint8           (`kernels.layer_norm`)
easyquant.softmax           float32 -> float32                    (`kernels.softmax`)
easyquant.recurrence        float32, states, constants -> float32 (`kernels.recurrence`)
easyquant.resize_linear     uint8, rows, columns, multiplier -> uint8 or float32
                            (`reference.resize_linear`, and what is made of it)
==========================  ==================================================================

ROW is the instruction set of the kernel, a row of `isa.ISAS`: TVM names the compiled function after the
operator, so that a library says by its symbols what it needs, whoever built it.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable
from math import prod

import numpy as np
import tvm
from tvm import autotvm, relay, te
from tvm.relay.op import op as _op

from .. import function, isa, manifest
from ..emit import target_isa  # noqa: F401  # part of what this module answers
from ..errors import KernelError
from ..kernels import elementwise, float_conv, group_norm, layer_norm, resize, softmax
from ..kernels import product as kernels
from ..kernels.recurrence import Kernel as RecurrenceKernel
from ..problem import ConvSpec
from ..recurrence import Recurrence
from ..reference import multiplier

#: numbers of a vector of an elementwise operator
LANES = (16, 8)
#: what the names of the convolutions begin with
CONV2D, CONV2D_ADD = "easyquant.conv2d", "easyquant.conv2d_add"
FLOAT, FLOAT_ADD, PRODUCT = "easyquant.float", "easyquant.float_add", "easyquant.product"
TOTAL = "easyquant.total"
SHUFFLE = "easyquant.shuffle"
IMAGE = "easyquant.image"
RESIZE = "easyquant.resize_linear"
GROUP_NORM = "easyquant.group_norm"
SOFTMAX = "easyquant.softmax"
LAYER_NORM = "easyquant.layer_norm"
RECURRENCE = "easyquant.recurrence"


# -- AutoTVM templates: one topi compute and schedule for each row of the manifest


def template_name(row) -> str:
    """The AutoTVM task name of a row of the manifest."""
    return f"easyquant_{row.name}.cpu"


def _declare(row):
    @autotvm.register_topi_compute(template_name(row))
    def compute(cfg, data, weight, bias, multiplier, *rest):
        *residual, spec = rest
        return row.compute(cfg, ConvSpec.from_json(spec), data, weight, bias, multiplier, *residual)

    @autotvm.register_topi_schedule(template_name(row))
    def schedule(cfg, outs):
        return te.create_schedule([t.op for t in ([outs] if isinstance(outs, te.Tensor) else outs)])

    return compute, schedule


def recorded(target) -> dict[tuple[str, str], float]:
    """{(kernel, spec as JSON): microseconds} in the AutoTVM records applied at the moment.

    AutoTVM ignores ``-mcpu`` when it looks up a record; a time of another CPU says little, so only records
    made for this target's ``-mcpu`` are read.
    """
    names = {template_name(row): row.name for row in manifest.KERNELS}
    cpu = str(target.attrs.get("mcpu", ""))
    found: dict[tuple[str, str], float] = {}
    context = autotvm.task.DispatchContext.current
    while context is not None:
        for (key, workload), (record, result) in getattr(context, "best_by_targetkey", {}).items():
            mine = str(record.target.attrs.get("mcpu", "")) == cpu and key in target.keys
            if mine and workload[0] in names and result.error_no == 0:
                entry = (names[workload[0]], str(workload[-1]))
                found.setdefault(entry, 1e6 * float(np.mean(result.costs)))
        context = getattr(context, "_old_ctx", None)
    return found


_registering = threading.RLock()


def _once(function: Callable) -> Callable:
    """What TVM's registries take once a process, though threads build side by side."""
    cached = functools.cache(function)

    @functools.wraps(function)
    def of_one_thread(*arguments):
        with _registering:
            return cached(*arguments)

    return of_one_thread


@_once
def _templates() -> dict[str, tuple[Callable, Callable]]:
    """{row's name: (compute, schedule)}, in AutoTVM's registry from the first call on."""
    return {row.name: _declare(row) for row in manifest.KERNELS}


def _conv_strategy(attrs, inputs, out_type, target):
    """The one implementation the call names; the planner has chosen already."""
    name, spec = str(attrs["kernel"]), str(attrs["spec"])
    compute, schedule = _templates()[name]

    def run_schedule(attrs, outs, target):
        with target:
            return schedule(outs)

    strategy = _op.OpStrategy()
    strategy.add_implementation(
        lambda attrs, inputs, out_type: [compute(*inputs, spec)],
        run_schedule,
        name=template_name(manifest.kernel(name)),
    )
    return strategy


def _float_strategy(attrs, inputs, out_type, target):
    conv, row = float_conv.FloatConv.from_json(attrs["layer"]), str(attrs["isa"])
    kernel = float_conv.choose(conv, row)
    if kernel is None:
        raise KernelError(f"no float kernel takes {conv.shape.shape_text}")

    def run_schedule(attrs, outs, target):
        with target:
            return te.create_schedule([t.op for t in outs])

    strategy = _op.OpStrategy()
    strategy.add_implementation(
        lambda attrs, inputs, out_type: [kernel.compute(*inputs)], run_schedule, name="easyquant_float"
    )
    return strategy


def _by_rows(outs):
    """Vectors along the channels if they are whole, so that what is read by channel is no gather; else
    along as many axes as make whole vectors. TVM's own schedule cuts the last axis by 16, and a rest makes
    every vector a condition."""
    schedule = te.create_schedule([out.op for out in outs])
    te.schedule.AutoInlineInjective(schedule)
    for out in outs:
        _vectors(schedule[out], [int(d) for d in out.shape])
    return schedule


def _vectors(stage, shape):
    *before, last = stage.op.axis
    size = shape[-1]
    lanes = next((n for n in LANES if size % n == 0), None)
    while lanes is None and before:
        last, size = stage.fuse(before.pop(), last), size * shape[len(before)]
        lanes = next((n for n in LANES if size % n == 0), None)
    if lanes is not None:
        last, vector = stage.split(last, lanes)
        stage.vectorize(vector)
    if prod(shape) > elementwise.PARALLEL:
        stage.parallel(stage.fuse(*before[:2]) if before else last)


def _as_made(outs):
    """Kernels that are statements have nothing to schedule."""
    return te.create_schedule([out.op for out in outs])


def _strategy(make, schedule, name):
    """One implementation: make(attrs, inputs) -> te.Tensor, schedule(tensors)."""

    def strategy(attrs, inputs, out_type, target):
        def run_schedule(attrs, outs, target):
            with target:
                return schedule([outs] if isinstance(outs, te.Tensor) else list(outs))

        result = _op.OpStrategy()
        result.add_implementation(
            lambda attrs, inputs, out_type: [make(attrs, inputs)], run_schedule, name=name
        )
        return result

    return strategy


def _product(attrs, inputs):
    product = kernels.Product.from_json(attrs["product"])
    return kernels.compute(product, str(attrs["isa"]), *inputs)


# -- computes of the elementwise operators; numbers are in the JSON attribute ``numbers``


def _numbers(attrs):
    numbers = json.loads(str(attrs["numbers"]))
    return {key: function.from_json(value) for key, value in numbers.items()}


def _by(compute):
    """Of tensors and numbers, as the functions of `elementwise` are."""
    return lambda attrs, inputs: compute(*inputs, **_numbers(attrs))


def _recurrence(attrs, inputs):
    return RecurrenceKernel(Recurrence(**_numbers(attrs)), str(attrs["isa"])).compute(*inputs)


# -- registration


def _conv_type(arg_types, attrs):
    spec = ConvSpec.from_json(attrs["spec"])
    return relay.TensorType(spec.out_shape, spec.out_dtype)


def _float_type(arg_types, attrs):
    return relay.TensorType(float_conv.FloatConv.from_json(attrs["layer"]).out_shape, "float32")


def _resize_type(arg_types, attrs):
    (n, _, _, c), (height, _), (width, _) = (kind.shape for kind in arg_types[:3])
    dtype = "float32" if _numbers(attrs).get("dequantize") else "uint8"
    return relay.TensorType((n, height, width, c), dtype)


def _recurrence_type(arg_types, attrs):
    return relay.TensorType(Recurrence(**_numbers(attrs)).out_shape, "float32")


def _product_type(arg_types, attrs):
    return relay.TensorType(kernels.Product.from_json(attrs["product"]).out_shape, "int32")


def _same_shape(dtype):
    return lambda arg_types, attrs: relay.TensorType(arg_types[0].shape, dtype)


def _image_type(arg_types, attrs):
    n, channels, height, width = arg_types[0].shape
    return relay.TensorType((n, height, width, channels), "uint8")


def _summed_shape(arg_types, attrs):
    n, _, _, channels = arg_types[0].shape
    return relay.TensorType((n, 1, 1, channels), "int32")


def _larger_shape(dtype):
    """Of two tensors, of which one may be broadcast."""
    return lambda arg_types, attrs: relay.TensorType(
        max((t.shape for t in arg_types[:2]), key=lambda shape: np.prod([int(d) for d in shape])), dtype
    )


_INPUTS = ("data", "weight", "bias", "multiplier")
_FLOAT_INPUTS = ("data", "weight", "bias")
#: join -> its operator
JOINS = {op: f"easyquant.{op}" for op in ("add", "sub", "max", "min")}
_ELEMENTWISE = {
    "easyquant.quantize": (("data",), _same_shape("uint8"), _by(elementwise.quantize)),
    "easyquant.requantize": (("data", "multiplier"), _same_shape("uint8"), _by(elementwise.requantize)),
    "easyquant.dequantize": (("data", "scale"), _same_shape("float32"), _by(elementwise.dequantize)),
    "easyquant.function": (("data",), _same_shape("float32"), _by(elementwise.real_function)),
    "easyquant.add": (("a", "b"), _larger_shape("uint8"), _by(elementwise.add)),
    "easyquant.sub": (("a", "b"), _larger_shape("uint8"), _by(elementwise.sub)),
    "easyquant.max": (("a", "b"), _larger_shape("uint8"), _by(elementwise.maximum)),
    "easyquant.min": (("a", "b"), _larger_shape("uint8"), _by(elementwise.minimum)),
    "easyquant.mul": (("a", "b"), _same_shape("uint8"), _by(elementwise.mul)),
}
_STATEMENTS = {
    GROUP_NORM: (("data", "scale", "bias"), _same_shape("float32"), _by(group_norm.group_norm)),
    LAYER_NORM: (("data", "gain", "shift"), _same_shape("uint8"), _by(layer_norm.layer_norm)),
    SOFTMAX: (("data",), _same_shape("float32"), _by(softmax.softmax)),
    RECURRENCE: (("data", "states", "constants"), _recurrence_type, _recurrence),
    IMAGE: (("data",), _image_type, _by(elementwise.image)),
    SHUFFLE: (("data",), _same_shape("uint8"), _by(elementwise.shuffle)),
    TOTAL: (("data",), _summed_shape, _by(elementwise.total)),
    RESIZE: (("data", "rows", "columns", "multiplier"), _resize_type, _by(resize.resize_linear)),
}


def _register_op(name, arguments, type_relation, pattern, strategy):
    _op.register(name, "an operator of tvm_easyquant; see topi_ext.relay.op")
    op = _op.get(name)
    op.set_num_inputs(len(arguments))
    for argument in arguments:
        op.add_argument(argument, "Tensor", argument)
    op.set_attrs_type_key("DictAttrs")

    def relation(arg_types, attrs):
        if not all(isinstance(t, relay.TensorType) for t in arg_types[: len(arguments)]):
            return None
        return type_relation(arg_types, attrs)

    op.add_type_rel(name.replace(".", "_") + "_type", relation)
    _op.register_pattern(name, pattern)
    _op.register_stateful(name, False)
    tvm.ir.register_op_attr(name, "TNonComputational", False)
    generic = tvm.target.override_native_generic_func(name.replace(".", "_") + "_strategy")(strategy)
    _op.register_strategy(name, generic)


@_once
def register() -> None:
    """Add the operators and the AutoTVM templates to TVM's registries; calling it again does nothing."""
    _templates()
    known = set(tvm.ir.Op.list_op_names())
    for row in isa.ISAS:
        _register_convolutions(row)
    for name, inputs in ((FLOAT, _FLOAT_INPUTS), (FLOAT_ADD, (*_FLOAT_INPUTS, "residual"))):
        if name not in known:
            _register_op(name, inputs, _float_type, _op.OpPattern.OPAQUE, _float_strategy)
    for name, (operands, kind, make) in _ELEMENTWISE.items():
        if name not in known:
            _register_op(
                name, operands, kind, _op.OpPattern.BROADCAST, _strategy(make, _by_rows, "easyquant")
            )
    for name, (operands, kind, make) in _STATEMENTS.items():
        if name not in known:
            strategy = _strategy(make, _as_made, name.replace(".", "_"))
            _register_op(name, operands, kind, _op.OpPattern.OPAQUE, strategy)


@_once
def _register_convolutions(row: str) -> None:
    """The operators of an instruction set; of one that is not in the table, when it is first used."""
    known = set(tvm.ir.Op.list_op_names())
    for name, inputs in ((CONV2D, _INPUTS), (CONV2D_ADD, (*_INPUTS, "residual"))):
        if f"{name}.{row}" not in known:
            _register_op(f"{name}.{row}", inputs, _conv_type, _op.OpPattern.OPAQUE, _conv_strategy)
    if f"{PRODUCT}.{row}" not in known:
        strategy = _strategy(_product, _as_made, "easyquant_product")
        _register_op(f"{PRODUCT}.{row}", ("a", "b"), _product_type, _op.OpPattern.OPAQUE, strategy)


# -- constructors


def _call(name, args, **attrs):
    return relay.Call(_op.get(name), args, tvm.ir.make_node("DictAttrs", **attrs))


def _elementwise(name, args, **numbers):
    known = {key: value for key, value in numbers.items() if value is not None}
    return _call(name, args, numbers=json.dumps(known, sort_keys=True))


def conv2d(data, spec: ConvSpec, row: manifest.Kernel, constants, residual=None):
    """A call of kernel ``row`` on uint8 NHWC ``data``; constants as ``row.pack`` makes them."""
    args = [data, *constants] + ([] if residual is None else [residual])
    _register_convolutions(row.isa)
    name = CONV2D if residual is None else CONV2D_ADD
    return _call(f"{name}.{row.isa}", args, kernel=row.name, spec=spec.to_json())


def float_layer(data, conv: float_conv.FloatConv, isa_name: str, constants, residual=None):
    """A call of the float kernel of a layer on NHWC ``data``; constants as the kernel packs them."""
    args = [data, *constants] + ([] if residual is None else [residual])
    return _call(FLOAT if residual is None else FLOAT_ADD, args, layer=conv.to_json(), isa=isa_name)


def product(a, b, of: kernels.Product, isa_name: str):
    """The product of two stored tensors on an instruction set."""
    row = kernels.row_of(isa_name)
    _register_convolutions(row)
    return _call(f"{PRODUCT}.{row}", [a, b], product=of.to_json(), isa=row)


def quantize(data, scale: float, zero_point: int, lo: int = 0, hi: int = 255):
    """float32 -> uint8."""
    return _elementwise("easyquant.quantize", [data], scale=scale, zero_point=zero_point, lo=lo, hi=hi)


def image(data, scale: float, zero_point: int, lo: int = 0, hi: int = 255):
    """float32 NCHW -> uint8 NHWC."""
    return _elementwise(IMAGE, [data], scale=scale, zero_point=zero_point, lo=lo, hi=hi)


def requantize(data, multiplier, in_zero_point: int, zero_point: int, lo: int = 0, hi: int = 255,
               function=None):  # fmt: skip
    """uint8 or int32 -> uint8; multiplier: float32 () or (K,) along the last axis, or (2, K) with the
    second vector that ``function`` reads."""
    return _elementwise(
        "easyquant.requantize", [data, relay.const(np.asarray(multiplier, np.float32))],
        in_zero_point=in_zero_point, zero_point=zero_point, lo=lo, hi=hi, function=function,
    )  # fmt: skip


def dequantize(data, scale, zero_point: int):
    """uint8 or int32 -> float32; scale: float32 () or (K,) along the last axis."""
    scale = relay.const(np.asarray(scale, np.float32))
    return _elementwise("easyquant.dequantize", [data, scale], zero_point=zero_point)


def function_of(data, name: str):
    """float32 -> float32: a function of `function.REAL`."""
    return _elementwise("easyquant.function", [data], which=name)


def normalized(data, scale, bias, groups: int, epsilon: float, last: bool = False):
    """float32 -> float32: `kernels.group_norm`."""
    return _elementwise(GROUP_NORM, [data, scale, bias], groups=groups, epsilon=epsilon, last=last)


def softened(data, axis: int):
    """float32 -> float32: `kernels.softmax`."""
    return _elementwise(SOFTMAX, [data], axis=axis)


def layer_normalized(data, gain, shift, **numbers):
    """uint8 -> uint8: `kernels.layer_norm`, whose numbers they are."""
    vectors = (relay.const(np.asarray(v, np.float32)) for v in (gain, shift))
    return _elementwise(LAYER_NORM, [data, *vectors], **numbers)


def recurrence(data, states, constants, of: Recurrence, isa_name: str):
    """float32: `kernels.recurrence` on an instruction set; constants as the kernel packs them."""
    numbers = json.dumps(of._asdict(), sort_keys=True)
    return _call(RECURRENCE, [data, states, constants], numbers=numbers, isa=isa_name)


def join(op: str, a, b, a_scale: float, a_zero_point: int, b_scale: float, b_zero_point: int,
         scale: float, zero_point: int, lo: int = 0, hi: int = 255, function=None):  # fmt: skip
    """Two uint8 tensors -> uint8, by an operator of `JOINS`; function: of the real number it makes."""
    return _elementwise(
        JOINS[op], [a, b], a_scale=a_scale, a_zero_point=a_zero_point, b_scale=b_scale,
        b_zero_point=b_zero_point, scale=scale, zero_point=zero_point, lo=lo, hi=hi, function=function,
    )  # fmt: skip


def shuffle(data, groups: int):
    """uint8 -> uint8: a channel shuffle, the channels last."""
    return _elementwise(SHUFFLE, [data], groups=groups)


def mul(a, b, a_scale: float, a_zero_point: int, b_scale: float, b_zero_point: int,
        scale: float, zero_point: int, lo: int = 0, hi: int = 255):  # fmt: skip
    """uint8 * uint8 -> uint8; dimensions of ``b`` may be 1."""
    factor = float(multiplier(a_scale, b_scale, scale))
    return _elementwise(
        "easyquant.mul", [a, b], a_zero_point=a_zero_point, b_zero_point=b_zero_point,
        multiplier=factor, zero_point=zero_point, lo=lo, hi=hi,
    )  # fmt: skip


def total(data, zero_point: int):
    """uint8 (N, H, W, C) -> int32 (N, 1, 1, C), the sum of the steps."""
    return _elementwise(TOTAL, [data], zero_point=zero_point)


def resize_linear(data, rows, columns, multiplier, channels: int, **numbers):
    """uint8 NHWC -> uint8, or float32 with ``dequantize``; multiplier: float32 () or (K,), or (2, K) with
    the second vector that the function reads; rows, columns, numbers: those of
    `kernels.resize.resize_linear`."""
    factor = np.asarray(multiplier, np.float32)
    factor = factor if factor.ndim == 2 else np.broadcast_to(factor, (1, channels))
    constants = (relay.const(np.ascontiguousarray(array)) for array in (rows, columns, factor))
    return _elementwise(RESIZE, [data, *constants], **numbers)
