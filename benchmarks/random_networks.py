"""The usual CNNs with random weights, 224x224, as ONNX: for speed, where weights do not matter.

Batch normalization is folded already. Weights are He-normal, the last layer of a residual branch halved so
that activations stay in range.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np


class _Net:
    """Builds an ONNX graph layer by layer; every method returns (tensor, channels)."""

    def __init__(self, seed=0):
        self.rng, self.nodes, self.constants = np.random.default_rng(seed), [], []
        self.count = 0

    def _add(self, op, inputs, **attributes):
        from onnx import helper

        self.count += 1
        out = f"{op.lower()}_{self.count}"
        self.nodes.append(helper.make_node(op, inputs, [out], out, **attributes))
        return out

    def _constant(self, name, array):
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def conv(self, x, out, kernel, stride=1, groups=1, relu=True, gain=1.0, six=False):
        tensor, channels = x
        fan = kernel * kernel * channels // groups
        weight = (
            self.rng.standard_normal((out, channels // groups, kernel, kernel)) * gain * np.sqrt(2 / fan)
        )
        n = self.count
        inputs = [tensor, self._constant(f"w{n}", weight)]
        inputs.append(self._constant(f"b{n}", self.rng.standard_normal(out) * 0.05))
        pad = kernel // 2
        y = self._add("Conv", inputs, kernel_shape=[kernel] * 2, strides=[stride] * 2, group=groups,
                      pads=[pad] * 4)  # fmt: skip
        return (self.relu(y, six) if relu else y), out

    def relu(self, tensor, six=False):
        if not six:
            return self._add("Relu", [tensor])
        for name, value in (("zero", 0.0), ("six", 6.0)):
            if name not in {c.name for c in self.constants}:
                self._constant(name, np.float32(value))
        return self._add("Clip", [tensor, "zero", "six"])

    def add(self, a, b, relu=True):
        y = self._add("Add", [a[0], b[0]])
        return (self._add("Relu", [y]) if relu else y), a[1]

    def pool(self, x, kernel, stride, pad=0, ceil=0):
        y = self._add("MaxPool", [x[0]], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4,
                      ceil_mode=ceil)  # fmt: skip
        return y, x[1]

    def average(self, x):
        return self._add("GlobalAveragePool", [x[0]]), x[1]

    def concat(self, a, b):
        return self._add("Concat", [a[0], b[0]], axis=1), a[1] + b[1]

    def flatten(self, x, channels):
        return self._add("Flatten", [x[0]]), channels

    def dense(self, x, out, relu=False):
        weight = self.rng.standard_normal((out, x[1])) * np.sqrt(2 / x[1])
        inputs = [x[0], self._constant(f"w{self.count}", weight)]
        inputs.append(self._constant(f"b{self.count}", np.zeros(out)))
        y = self._add("Gemm", inputs, transB=1)
        return (self._add("Relu", [y]) if relu else y), out

    def model(self, x):
        from onnx import TensorProto, checker, helper

        def info(name, shape):
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

        inputs, outputs = [info("image", [1, 3, 224, 224])], [info(x[0], [1, 1000])]
        graph = helper.make_graph(self.nodes, "net", inputs, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        checker.check_model(model)
        return model


def _resnet(blocks, bottleneck):
    net = _Net()
    x = net.pool(net.conv(("image", 3), 64, 7, 2), 3, 2, 1)
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            out = 4 * width if bottleneck else width
            if bottleneck:
                y = net.conv(net.conv(x, width, 1), width, 3, stride)
                y = net.conv(y, out, 1, relu=False, gain=0.5)
            else:
                y = net.conv(net.conv(x, width, 3, stride), out, 3, relu=False, gain=0.5)
            if stride != 1 or x[1] != out:
                x = net.conv(x, out, 1, stride, relu=False, gain=0.5)
            x = net.add(y, x)
    x = net.average(x)
    return net.model(net.dense(net.flatten(x, x[1]), 1000))


def _vgg16():
    net, x = _Net(), ("image", 3)
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            x = net.conv(x, width, 3)
        x = net.pool(x, 2, 2)
    x = net.dense(net.flatten(x, 512 * 49), 4096, relu=True)
    return net.model(net.dense(net.dense(x, 4096, relu=True), 1000))


def _mobilenet_v1():
    net = _Net()
    x = net.conv(("image", 3), 32, 3, 2)
    plan = [
        (64, 1),
        (128, 2),
        (128, 1),
        (256, 2),
        (256, 1),
        (512, 2),
        *[(512, 1)] * 5,
        (1024, 2),
        (1024, 1),
    ]
    for width, stride in plan:
        x = net.conv(net.conv(x, x[1], 3, stride, groups=x[1]), width, 1)
    x = net.average(x)
    return net.model(net.dense(net.flatten(x, x[1]), 1000))


def _mobilenet_v2():
    net = _Net()
    x = net.conv(("image", 3), 32, 3, 2, six=True)
    plan = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
            (6, 320, 1, 1)]  # fmt: skip
    for expand, width, count, first in plan:
        for i in range(count):
            stride, start = (first if i == 0 else 1), x
            y = net.conv(x, x[1] * expand, 1, six=True) if expand > 1 else x
            y = net.conv(y, y[1], 3, stride, groups=y[1], six=True)
            x = net.conv(y, width, 1, relu=False)
            if stride == 1 and start[1] == width:
                x = net.add(start, x, relu=False)
    x = net.average(net.conv(x, 1280, 1, six=True))
    return net.model(net.dense(net.flatten(x, x[1]), 1000))


def _squeezenet():
    net = _Net()
    x = net.pool(net.conv(("image", 3), 64, 3, 2), 3, 2, ceil=1)
    for squeeze, width, pool in ((16, 64, 0), (16, 64, 1), (32, 128, 0), (32, 128, 1), (48, 192, 0),
                                 (48, 192, 0), (64, 256, 0), (64, 256, 0)):  # fmt: skip
        y = net.conv(x, squeeze, 1)
        x = net.concat(net.conv(y, width, 1), net.conv(y, width, 3))
        x = net.pool(x, 3, 2, ceil=1) if pool else x
    x = net.average(net.conv(x, 1000, 1))
    return net.model(net.flatten(x, 1000))


NETWORKS = {
    "resnet18": lambda: _resnet((2, 2, 2, 2), False),
    "resnet50": lambda: _resnet((3, 4, 6, 3), True),
    "vgg16": _vgg16,
    "mobilenet_v1": _mobilenet_v1,
    "mobilenet_v2": _mobilenet_v2,
    "squeezenet1.1": _squeezenet,
}


def save(name: str, folder: Path) -> Path:
    """Write a network's ONNX file into ``folder`` and return its path."""
    import onnx

    path = folder / f"{name}.onnx"
    onnx.save(NETWORKS[name](), path)
    return path


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    """Smooth random float32 (1, 3, 224, 224) images: noise in many sizes."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        image = np.zeros((3, 224, 224))
        for size in (7, 14, 28, 56, 112, 224):
            coarse = rng.standard_normal((3, size, size)) * 7 / size * 4
            image += coarse.repeat(224 // size, 1).repeat(224 // size, 2)
        found.append((image / image.std())[None].astype(np.float32))
    return found
