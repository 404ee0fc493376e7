"""Run a rewritten Relay module in numpy, every integer operator by the norm of `topi_ext.reference`.

This reads the IR itself, not the graph it came from, so it also checks the rewriting. What stays float
runs by `meaning`; what of a user's module has none there, through TVM, one operator at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from topi_ext import reference

from ..network.layout import to_nchw, to_nhwc
from ..network.ops import depth_to_space
from .float_op import RelayOp
from .framework import relay
from .meaning.attributes import NoMeaning
from .meaning.rules import compute


def execute(module, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of ``module["main"]`` for inputs by name; arrays keep the module's own layouts."""
    function = relay.transform.InferType()(module)["main"]
    values: dict = {}
    order: list = []
    relay.analysis.post_order_visit(function, order.append)
    for expr in order:
        if isinstance(expr, relay.Var):
            values[expr] = np.asarray(feed[expr.name_hint])
        elif isinstance(expr, relay.Constant):
            values[expr] = expr.data.numpy()
        elif isinstance(expr, relay.Tuple):
            values[expr] = [values[field] for field in expr.fields]
        elif isinstance(expr, relay.Call):
            values[expr] = _call(expr, [values[a] for a in expr.args])
        elif isinstance(expr, relay.TupleGetItem):
            values[expr] = _float_field(expr, values)
    result = values[function.body]
    return list(result) if isinstance(result, list) else [result]


def _ints(values):
    return tuple(int(v) for v in values)


def _call(call, x):
    rule = RULES.get(call.op.name)
    return _float(call, x) if rule is None else rule(call, call.attrs, *x)


def _float(call, x, index=None):
    """A float operator, or a field of what it makes."""
    try:
        made = compute(call, x)
    except NoMeaning:
        return _by_tvm(call, x, index)
    return made if index is None else made[index]


def _by_tvm(call, x, index):
    tensors, arrays = [], []
    for arg, value in zip(call.args, x, strict=True):
        fields = zip(arg.fields, value, strict=True) if isinstance(arg, relay.Tuple) else [(arg, value)]
        for expr, array in fields:
            if not isinstance(expr, relay.Constant):
                tensors.append(expr)
                arrays.append(array)
    op = RelayOp(call.op.name, call, tuple(tensors), index)
    return to_nchw(op.evaluate(*(to_nhwc(a) for a in arrays)))


def _float_field(expr, values):
    call = expr.tuple_value
    return _float(call, [values[a] for a in call.args], expr.index)


def _on_axis(scale, axis, ndim):
    """A () or (K,) scale, shaped to act along ``axis``."""
    scale = np.asarray(scale, np.float32)
    if scale.ndim == 0:
        return scale
    shape = [1] * ndim
    shape[axis] = -1
    return scale.reshape(shape)


def _qnn_quantize(call, attrs, x, scale, zero_point):
    return reference.quantize(x, scale, int(zero_point))


def _qnn_dequantize(call, attrs, q, scale, zero_point):
    return reference.dequantize(q, _on_axis(scale, attrs.axis, q.ndim), int(zero_point))


def _qnn_requantize(call, attrs, q, in_scale, in_zero_point, scale, zero_point):
    factor = reference.multiplier(1, in_scale, scale)
    acc = q.astype(np.int32) - np.int32(in_zero_point)
    return reference.requantize(acc, _on_axis(factor, attrs.axis, q.ndim), int(zero_point))


def _qnn_conv2d(call, attrs, data, weight, data_zero, weight_zero, data_scale, weight_scale):
    if attrs.kernel_layout == "HWOI":
        weight = weight.transpose(0, 1, 3, 2)
    return reference.conv2d(
        data,
        weight,
        zero_point=int(data_zero),
        strides=_ints(attrs.strides),
        padding=_ints(attrs.padding),
        dilation=_ints(attrs.dilation),
        groups=int(attrs.groups),
    )


def _qnn_dense(call, attrs, data, weight, data_zero, weight_zero, data_scale, weight_scale):
    return reference.dense(data, weight, zero_point=int(data_zero))


def _qnn_batch_matmul(call, attrs, a, b, a_zero, b_zero, a_scale, b_scale):
    return reference.product(a, b.swapaxes(-1, -2), zero_a=int(a_zero), zero_b=int(b_zero))


def _qnn_add(call, attrs, a, b, a_scale, a_zero, b_scale, b_zero, scale, zero):
    return reference.add(a, b, a_scale, int(a_zero), b_scale, int(b_zero), scale, int(zero))


def _qnn_mul(call, attrs, a, b, a_scale, a_zero, b_scale, b_zero, scale, zero):
    return reference.mul(a, b, a_scale, int(a_zero), b_scale, int(b_zero), scale, int(zero))


def _nn_depth_to_space(call, attrs, x):
    if attrs.layout != "NHWC":
        return _float(call, [x])
    return depth_to_space(x, int(attrs.block_size), str(attrs.mode))


def _nn_bias_add(call, attrs, x, bias):
    if x.dtype != np.int32:
        return _float(call, [x, bias])
    return reference.as_int32(x.astype(np.int64) + bias, "bias_add")


def _sum(call, attrs, x):
    if x.dtype != np.int32:
        return _float(call, [x])
    total = x.sum(axis=_ints(attrs.axis), keepdims=bool(attrs.keepdims), dtype=np.int64)
    return reference.as_int32(total, "sum")


def _nn_max_pool2d(call, attrs, x):
    if attrs.layout != "NHWC":
        return _float(call, [x])
    return reference.max_pool2d(
        x,
        pool_size=_ints(attrs.pool_size),
        strides=_ints(attrs.strides),
        padding=_ints(attrs.padding),
        dilation=_ints(attrs.dilation),
    )


#: Relay operator -> its rule, for those of integers; others have that of `meaning`
RULES: dict[str, Callable] = {
    "qnn.quantize": _qnn_quantize,
    "qnn.dequantize": _qnn_dequantize,
    "qnn.requantize": _qnn_requantize,
    "qnn.conv2d": _qnn_conv2d,
    "qnn.dense": _qnn_dense,
    "qnn.batch_matmul": _qnn_batch_matmul,
    "qnn.add": _qnn_add,
    "qnn.mul": _qnn_mul,
    "nn.depth_to_space": _nn_depth_to_space,
    "nn.bias_add": _nn_bias_add,
    "sum": _sum,
    "nn.max_pool2d": _nn_max_pool2d,
}
