"""Relay operators that stay float, as ONNX: what a QDQ export needs of the Relay front end."""

from __future__ import annotations

import numpy as np

from .framework import relay

#: Relay operator -> ONNX operator, for those without attributes
PLAIN = {
    "add": "Add", "subtract": "Sub", "multiply": "Mul", "divide": "Div", "maximum": "Max",
    "minimum": "Min", "power": "Pow", "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "log": "Log",
    "sqrt": "Sqrt", "abs": "Abs", "negative": "Neg", "erf": "Erf", "floor": "Floor", "ceil": "Ceil",
    "nn.relu": "Relu", "nn.batch_flatten": "Flatten", "copy": "Identity",
}  # fmt: skip
REDUCTIONS = {"mean": "ReduceMean", "max": "ReduceMax", "min": "ReduceMin", "sum": "ReduceSum"}
POOLS = {"nn.global_avg_pool2d": "GlobalAveragePool", "nn.global_max_pool2d": "GlobalMaxPool"}


def to_onnx(handle, emit, x, output) -> str | None:
    """Emit the call of a `RelayOp` from the tensors ``x`` to ``output``; None if it has no translation.

    emit.add(op, inputs, output, **attributes) and emit.constant(name, array) write into the model.
    """
    call, names = handle.call, dict(zip(handle.tensors, x, strict=True))
    if handle.index is not None:
        return None

    def value(arg, i):
        if arg in names:
            return names[arg]
        if isinstance(arg, relay.Constant):
            return emit.constant(f"{output}_{i}", arg.data.numpy())
        return None

    fields = call.args[0].fields if len(call.args) and isinstance(call.args[0], relay.Tuple) else call.args
    inputs, a = [value(arg, i) for i, arg in enumerate(fields)], call.attrs
    if None in inputs:
        return None
    shape = [int(d) for d in call.checked_type.shape]
    op = handle.op
    if op in PLAIN:
        return emit.add(PLAIN[op], inputs, output)
    if op in POOLS and a.layout == "NCHW":
        return emit.add(POOLS[op], inputs, output)
    if op in ("nn.softmax", "nn.log_softmax"):
        name = "Softmax" if op == "nn.softmax" else "LogSoftmax"
        return emit.add(name, inputs, output, axis=int(a.axis))
    if op == "transpose":
        axes = [int(i) for i in a.axes] if a.axes is not None else list(range(len(shape)))[::-1]
        return emit.add("Transpose", inputs, output, perm=axes)
    if op in ("reshape", "squeeze", "expand_dims"):
        target = emit.constant(f"{output}_shape", np.asarray(shape, np.int64))
        return emit.add("Reshape", [inputs[0], target], output)
    if op == "concatenate":
        return emit.add("Concat", inputs, output, axis=int(a.axis))
    if op in REDUCTIONS and not a.exclude:
        rank = len(call.args[0].checked_type.shape)
        axes = [int(i) for i in a.axis] if a.axis is not None else list(range(rank))
        if op == "sum":  # the others take axes as an attribute in this opset
            wanted = emit.constant(f"{output}_axes", np.asarray(axes, np.int64))
            return emit.add("ReduceSum", [*inputs, wanted], output, keepdims=int(a.keepdims))
        return emit.add(REDUCTIONS[op], inputs, output, axes=axes, keepdims=int(a.keepdims))
    if op == "nn.leaky_relu":
        return emit.add("LeakyRelu", inputs, output, alpha=float(a.alpha))
    if op == "nn.prelu" and int(a.axis) == 1:
        rank = len(shape)
        slope = call.args[1].data.numpy().reshape(-1, *[1] * (rank - 2))
        return emit.add("PRelu", [inputs[0], emit.constant(f"{output}_slope", slope)], output)
    if op == "nn.batch_matmul":
        axes = [0, 2, 1]
        for i, flag in enumerate((a.transpose_a, a.transpose_b)):
            if flag:
                inputs[i] = emit.add("Transpose", [inputs[i]], f"{output}_t{i}", perm=axes)
        return emit.add("MatMul", inputs, output)
    if op == "nn.dense":
        return emit.add("Gemm", inputs, output, transB=1)
    return None
