"""ONNX models of any opset whose every branch has an operator that stays float: what `test_onnx_export` writes.

Each branch reads the same integer layer and ends in one, so that its integers do not hang on another's.
"""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

SIZE, CHANNELS = 6, 8


class Model:
    """nodes and constants of a model of ``opset``."""

    def __init__(self, opset, seed=0):
        self.opset, self.rng = opset, np.random.default_rng(seed)
        self.nodes, self.constants, self.outputs = [], {}, []
        self.made = 0

    def name(self, op):
        self.made += 1
        return f"{op.lower()}{self.made}"

    def constant(self, array):
        name = self.name("constant")
        self.constants[name] = np.asarray(array)
        return name

    def op(self, op, *inputs, outputs=1, **attributes):
        """One node; arrays among its inputs become constants."""
        inputs = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        name = self.name(op)
        made = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, made, name, **attributes))
        return made[0] if outputs == 1 else made

    def by_axes(self, op, x, axes, since, **attributes):
        """An operator whose axes are an input from opset ``since`` on."""
        if self.opset < since:
            return self.op(op, x, axes=axes, **attributes)
        return self.op(op, x, np.array(axes, np.int64), **attributes)

    def weights(self, *shape):
        return (self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    def conv(self, x, channels=CHANNELS, depth=CHANNELS, kernel=1):
        pads = [kernel // 2] * 4
        return self.op("Conv", x, self.weights(channels, depth, kernel, kernel), pads=pads)

    def result(self, x, dtype=TensorProto.FLOAT):
        self.outputs.append((x, dtype))

    def build(self, inputs):
        """inputs: {name: (element type, shape)}."""
        graph = helper.make_graph(
            self.nodes, f"opset{self.opset}",
            [helper.make_tensor_value_info(name, *of) for name, of in inputs.items()],
            [helper.make_tensor_value_info(name, dtype, None) for name, dtype in self.outputs],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )  # fmt: skip
        opset = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opset, ir_version=8)


def _resize(m, x):
    if m.opset < 9:
        return m.op("Upsample", x, mode="linear", scales=[1.0, 1.0, 2.0, 2.0])
    if m.opset < 10:
        return m.op("Upsample", x, np.float32([1, 1, 2, 2]), mode="linear")
    if m.opset < 11:
        return m.op("Resize", x, np.float32([1, 1, 1.5, 1.5]), mode="linear")
    mode = dict(mode="nearest", coordinate_transformation_mode="pytorch_half_pixel", nearest_mode="ceil")
    none = "" if m.opset >= 13 else np.zeros(0, "f4")
    return m.op("Resize", x, none, none, np.array([1, CHANNELS, 9, 7], np.int64), **mode)


def _average(m, x):
    more = dict(ceil_mode=1) if m.opset >= 10 else {}
    window = dict(kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 1, 0])
    x = m.op("AveragePool", x, count_include_pad=1, **window, **more)
    return m.op("AveragePool", x, kernel_shape=[2, 2], pads=[1, 1, 0, 0])  # its padding does not count


def _norms(m, x):
    scale, bias = (m.rng.uniform(0.5, 1.5, CHANNELS).astype("f4") for _ in range(2))
    x = m.op("InstanceNormalization", x, scale, bias)
    if m.opset >= 21:  # what was so called before is deprecated
        x = m.op("GroupNormalization", x, scale, bias, num_groups=2)
    if m.opset >= 17:
        x = m.op("LayerNormalization", x, np.full(SIZE, 0.75, "f4"), axis=-1)
    return m.op("LpNormalization", m.op("LRN", x, size=3), axis=1)


def _products(m, x):
    if m.opset < 12:
        return m.op("MatMul", x, m.weights(SIZE, SIZE))
    return m.op("Einsum", x, m.weights(CHANNELS, CHANNELS), equation="nchw,cd->ndhw")


def _apart(m, x):
    """Without equals: of the same accumulators float32 may make different numbers, in ONNX Runtime's order."""
    return m.op("Add", x, m.rng.uniform(0, 0.1, (1, CHANNELS, 1, SIZE)).astype("f4"))


def _top(m, x):
    k = dict(k=4) if m.opset < 10 else {}
    both = m.op("TopK", _apart(m, x), *([] if k else [np.array([4], np.int64)]), outputs=2, axis=3, **k)
    return m.op("Add", both[0], m.op("Cast", both[1], to=TensorProto.FLOAT))


def _places(m, x):
    """Of a TopK the places alone."""
    k = dict(k=2) if m.opset < 10 else {}
    both = m.op("TopK", _apart(m, x), *([] if k else [np.array([2], np.int64)]), outputs=2, axis=1, **k)
    total = m.by_axes("ReduceSum", m.op("Cast", both[1], to=TensorProto.DOUBLE), [1], 13, keepdims=1)
    return m.op("Mul", x, m.op("Cast", total, to=TensorProto.FLOAT))


def _split(m, x):
    """Three uneven pieces, of which one is not read."""
    flat = m.op("Reshape", x, np.array([1, CHANNELS, -1], np.int64))
    sizes = [10, 6, 20]
    if m.opset < 13:
        parts = m.op("Split", flat, outputs=3, axis=2, split=sizes)
    else:
        parts = m.op("Split", flat, np.array(sizes, np.int64), outputs=3, axis=2)
    joined = m.op("Concat", parts[2], parts[0], axis=2)
    joined = m.op("BatchNormalization", joined, *np.float32(m.rng.uniform(0.5, 1, (4, CHANNELS))))
    return m.op("Reshape", joined, np.array([1, CHANNELS, 5, 6], np.int64))


def _axes(m, x):
    x = m.op("Add", x, m.by_axes("ReduceMean", x, [1], 18, keepdims=1))
    x = m.op("Sub", x, m.by_axes("ReduceMax", x, [-1] if m.opset >= 11 else [3], 18, keepdims=1))
    row = m.by_axes("Squeeze", m.by_axes("ReduceSum", x, [3], 13, keepdims=1), [3], 13)
    return m.op("Add", x, m.by_axes("Unsqueeze", row, [3], 13))


def _moves(m, x):
    if m.opset < 11:
        x = m.op("Pad", x, mode="reflect", pads=[0, 0, 1, 2, 0, 0, 0, 1])
    else:
        x = m.op("Pad", x, np.array([0, 0, 1, 2, 0, 0, 0, 1], np.int64), mode="reflect")
    if m.opset < 10:
        flat = m.op("Transpose", x, perm=[0, 2, 3, 1])
        x = m.op(
            "Transpose", m.op("Slice", flat, axes=[0, 3], starts=[0, -8], ends=[1, 99]), perm=[0, 3, 1, 2]
        )
    else:
        ends = [np.array(v, np.int64) for v in ([-1], [-99], [3], [-2])]
        x = m.op("Slice", x, *ends)
    x = m.op("Gather", x, np.array([3, 0, -1 if m.opset >= 11 else 7, 2, 1, 0, 6, 5], np.int64), axis=1)
    return m.op("Transpose", x, perm=[0, 1, 3, 2])


def _dropout(m, x):
    both = m.op("Dropout", x, outputs=2)
    return m.op("Mul", both[0], m.op("Cast", both[1], to=TensorProto.FLOAT))


def _half(m, x):
    """What is float16 in the model is float32 here."""
    x = m.op(
        "Mul", m.op("Cast", x, to=TensorProto.FLOAT16), m.rng.uniform(0.5, 1, (1, 1, 1, SIZE)).astype("f2")
    )
    return m.op("Cast", x, to=TensorProto.FLOAT)


def _where(m, x):
    if m.opset < 9:
        return m.op("Max", x, m.weights(1, 1, 1, SIZE))
    return m.op("Where", m.op("Greater", x, np.float32(0.2)), x, m.weights(1, 1, 1, SIZE))


#: what to call a branch -> (model, tensor of (1, CHANNELS, SIZE, SIZE)) -> a map of as many channels
BRANCHES = {
    "resize": _resize,
    "average": _average,
    "softmax": lambda m, x: m.op("Softmax", x, axis=1),
    "logsoftmax": lambda m, x: m.op("LogSoftmax", x, axis=2),
    "hardmax": lambda m, x: m.op("Hardmax", x, axis=3),
    "prelu": lambda m, x: m.op("PRelu", x, m.rng.uniform(-0.5, 0.5, (CHANNELS, 1, 1)).astype("f4")),
    "norms": _norms,
    "products": _products,
    "top": _top,
    "places": _places,
    "split": _split,
    "axes": _axes,
    "moves": _moves,
    "dropout": _dropout,
    "half": _half,
    "where": _where,
}


def islands(opset):
    """A network with every branch behind its first layer; its input is uint8, its last output int64."""
    m = Model(opset, seed=opset)
    x = m.op("Mul", m.op("Cast", "image", to=TensorProto.FLOAT), np.float32(1 / 255))
    stem = m.conv(x, depth=3, kernel=3)
    for branch in BRANCHES.values():
        last = m.conv(branch(m, m.conv(stem)), channels=4)
        m.result(last)
    m.result(m.op("ArgMax", last, axis=1, keepdims=0), TensorProto.INT64)
    return m.build({"image": (TensorProto.UINT8, (1, 3, SIZE, SIZE))})
