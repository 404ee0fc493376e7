"""The usual CNNs with random weights as ONNX: for speed, where weights do not matter.

Batch normalization is folded already. Weights are He-normal, the last layer of a residual branch halved so
that activations stay in range. `NETWORKS` are the six of every table, 224x224; `OF_TODAY` are detectors,
mobile networks, one for segmentation and one for faces, with the operators that exporters write for them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np


class _Net:
    """Builds an ONNX graph layer by layer; every method returns (tensor, channels)."""

    def __init__(self, seed=0, side=224):
        self.rng, self.nodes, self.constants = np.random.default_rng(seed), [], []
        self.count, self.side = 0, side

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

    def _integers(self, *values):
        """A constant of int64, a name of its own."""
        from onnx import numpy_helper

        name = f"i{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def _floats(self, values):
        return self._constant(f"f{len(self.constants)}", np.asarray(values))

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

    # -- what networks of today have besides

    def layer(self, x, out, kernel, act, stride=1, groups=1, gain=1.0):
        """A convolution and the function ``act`` of this class, None for none."""
        y = self.conv(x, out, kernel, stride, groups, relu=False, gain=gain)
        return y if act is None else (act(self, y[0]), out)

    def silu(self, tensor):
        return self._add("Mul", [tensor, self._add("Sigmoid", [tensor])])

    def relu6(self, tensor):
        return self.relu(tensor, six=True)

    def hard_swish(self, tensor):
        return self._add("HardSwish", [tensor])

    def gelu(self, tensor):
        """As torch's exporter writes it."""
        y = self._add("Erf", [self._add("Div", [tensor, self._floats(2**0.5)])])
        y = self._add("Mul", [tensor, self._add("Add", [y, self._floats(1.0)])])
        return self._add("Mul", [y, self._floats(0.5)])

    def prelu(self, tensor, channels):
        return self._add("PRelu", [tensor, self._floats(self.rng.uniform(0.1, 0.4, (channels, 1, 1)))])

    def gate(self, x, squeeze, gate, act=relu):
        """Squeeze-and-excite."""
        y = self.layer(self.average(x), squeeze, 1, act)
        y = self.conv(y, x[1], 1, relu=False)
        name, more = ("HardSigmoid", {"alpha": 1 / 6}) if gate == "hard" else ("Sigmoid", {})
        return self._add("Mul", [x[0], self._add(name, [y[0]], **more)]), x[1]

    def concats(self, *xs):
        return self._add("Concat", [x[0] for x in xs], axis=1), sum(x[1] for x in xs)

    def halves(self, x):
        """ONNX Split along the channels."""
        from onnx import helper

        self.count += 1
        out = [f"split_{self.count}{half}" for half in "ab"]
        self.nodes.append(helper.make_node("Split", [x[0]], out, out[0], axis=1))
        return tuple((tensor, x[1] // 2) for tensor in out)

    def up(self, x, mode, coordinates):
        """Twice as wide and high."""
        inputs = [x[0], "", self._floats([1, 1, 2, 2])]
        more = {"nearest_mode": "floor"} if mode == "nearest" else {}
        y = self._add("Resize", inputs, mode=mode, coordinate_transformation_mode=coordinates, **more)
        return y, x[1]

    def reshape(self, tensor, *shape):
        return self._add("Reshape", [tensor, self._integers(*shape)])

    def model(self, *results):
        """results: each (tensor, channels); shapes are inferred where a network has several."""
        from onnx import TensorProto, checker, helper, shape_inference

        def info(name, shape):
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

        inputs = [info("image", [1, 3, self.side, self.side])]
        classifier = len(results) == 1 and results[0][1] == 1000
        outputs = [info(x[0], [1, 1000] if classifier else None) for x in results]
        graph = helper.make_graph(self.nodes, "net", inputs, outputs, self.constants)
        hard_swish = any(node.op_type == "HardSwish" for node in self.nodes)
        opset = helper.make_opsetid("", 14 if hard_swish else 13)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
        if not classifier:
            model.graph.output.extend(shape_inference.infer_shapes(model).graph.output)
            del model.graph.output[: len(outputs)]
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


def _yolov8n():
    """YOLOv8n at 320 as its exporter writes it: C2f with Split, SPPF, and the heads with their decoding."""
    net = _Net(side=320)

    def conv(x, out, kernel=1, stride=1):
        return net.layer(x, out, kernel, _Net.silu, stride)

    def c2f(x, out, count, shortcut):
        pieces = list(net.halves(conv(x, out)))
        for _ in range(count):
            y = conv(conv(pieces[-1], out // 2, 3), out // 2, 3)
            pieces.append(net.add(pieces[-1], y, relu=False) if shortcut else y)
        return conv(net.concats(*pieces), out)

    def up(x):
        return net.up(x, "nearest", "asymmetric")

    x = conv(conv(("image", 3), 16, 3, 2), 32, 3, 2)
    x = c2f(x, 32, 1, True)
    small = c2f(conv(x, 64, 3, 2), 64, 2, True)
    middle = c2f(conv(small, 128, 3, 2), 128, 2, True)
    x = c2f(conv(middle, 256, 3, 2), 256, 1, True)
    pieces = [conv(x, 128)]
    for _ in range(3):
        pieces.append(net.pool(pieces[-1], 5, 1, 2))
    large = conv(net.concats(*pieces), 256)
    middle = c2f(net.concats(up(large), middle), 128, 1, False)
    small = c2f(net.concats(up(middle), small), 64, 1, False)
    middle = c2f(net.concats(conv(small, 64, 3, 2), middle), 128, 1, False)
    large = c2f(net.concats(conv(middle, 128, 3, 2), large), 256, 1, False)
    heads, cells = [], 0
    for x, side in ((small, 40), (middle, 20), (large, 10)):
        box = net.conv(conv(conv(x, 64, 3), 64, 3), 64, 1, relu=False)
        classes = net.conv(conv(conv(x, 80, 3), 80, 3), 80, 1, relu=False)
        heads.append(net.reshape(net.concats(box, classes)[0], 1, 144, side * side))
        cells += side * side
    joined = net._add("Concat", heads, axis=2)
    boxes = net._add("Slice", [joined, net._integers(0), net._integers(64), net._integers(1)])
    scores = net._add("Slice", [joined, net._integers(64), net._integers(144), net._integers(1)])
    spread = net._add("Transpose", [net.reshape(boxes, 1, 4, 16, cells)], perm=[0, 2, 1, 3])
    steps = net._constant("steps", np.arange(16).reshape(1, 16, 1, 1))
    boxes = net._add("Conv", [net._add("Softmax", [spread], axis=1), steps], kernel_shape=[1, 1])
    return net.model((net.reshape(boxes, 1, 4, cells), 4), (net._add("Sigmoid", [scores]), 80))


#: kernel, expanded, out, squeeze-and-excite, hard-swish, stride
_V3_SMALL = [(3, 16, 16, 1, 0, 2), (3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1), (5, 96, 40, 1, 1, 2),
             (5, 240, 40, 1, 1, 1), (5, 240, 40, 1, 1, 1), (5, 120, 48, 1, 1, 1), (5, 144, 48, 1, 1, 1),
             (5, 288, 96, 1, 1, 2), (5, 576, 96, 1, 1, 1), (5, 576, 96, 1, 1, 1)]  # fmt: skip
_V3_LARGE = [(3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2),
             (5, 120, 40, 1, 0, 1), (5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1),
             (3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1),
             (5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1), (5, 960, 160, 1, 1, 1)]  # fmt: skip


def _divisible(value):
    """By eight, as the authors round channels."""
    return max(8, int(value + 4) // 8 * 8)


def _v3_block(net, x, block):
    kernel, expanded, out, squeeze, hard, stride = block
    act, start, y = _Net.hard_swish if hard else _Net.relu, x, x
    if expanded != x[1]:
        y = net.layer(y, expanded, 1, act)
    y = net.layer(y, expanded, kernel, act, stride, groups=expanded)
    if squeeze:
        y = net.gate(y, _divisible(expanded / 4), "hard")
    y = net.conv(y, out, 1, relu=False, gain=0.5)
    return net.add(start, y, relu=False) if stride == 1 and start[1] == out else y


def _mobilenet_v3(blocks, last):
    net = _Net()
    x = net.layer(("image", 3), 16, 3, _Net.hard_swish, 2)
    for block in blocks:
        x = _v3_block(net, x, block)
    x = net.layer(x, 6 * x[1], 1, _Net.hard_swish)
    x = net.dense(net.flatten(net.average(x), x[1]), last)
    return net.model(net.dense((net.hard_swish(x[0]), last), 1000))


def _ssdlite():
    """SSDLite on MobileNetV3-Large at 320: the raw heads of six maps."""
    net = _Net(side=320)
    x = net.layer(("image", 3), 16, 3, _Net.hard_swish, 2)
    maps = []
    for i, block in enumerate(_V3_LARGE):
        kernel, expanded, out, squeeze, hard, stride = block
        if i == 12:  # the first map is this block's expansion
            maps.append(net.layer(x, expanded, 1, _Net.hard_swish))
        if i >= 12:  # the reduced tail
            out = 80
            expanded = 672 if i == 12 else 480
        x = _v3_block(net, x, (kernel, expanded, out, squeeze, hard, stride))
    maps.append(net.layer(x, 480, 1, _Net.hard_swish))
    for width in (512, 256, 256, 128):
        y = net.layer(maps[-1], width // 2, 1, _Net.relu6)
        y = net.layer(y, width // 2, 3, _Net.relu6, 2, groups=width // 2)
        maps.append(net.layer(y, width, 1, _Net.relu6))
    results = []
    for per_anchor in (91, 4):
        rows = []
        for y in maps:
            z = net.layer(y, y[1], 3, _Net.relu6, groups=y[1])
            z = net.conv(z, 6 * per_anchor, 1, relu=False)
            z = net._add("Transpose", [z[0]], perm=[0, 2, 3, 1])
            rows.append(net.reshape(z, 1, -1, per_anchor))
        results.append((net._add("Concat", rows, axis=1), per_anchor))
    return net.model(*results)


def _efficientnet_b0():
    net = _Net()
    x = net.layer(("image", 3), 32, 3, _Net.silu, 2)
    plan = [(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5),
            (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)]  # fmt: skip
    for expand, out, count, first, kernel in plan:
        for i in range(count):
            stride, start = (first if i == 0 else 1), x
            y = net.layer(x, x[1] * expand, 1, _Net.silu) if expand > 1 else x
            y = net.layer(y, y[1], kernel, _Net.silu, stride, groups=y[1])
            y = net.gate(y, start[1] // 4, "sigmoid", _Net.silu)
            x = net.conv(y, out, 1, relu=False, gain=0.5)
            if stride == 1 and start[1] == out:
                x = net.add(start, x, relu=False)
    x = net.average(net.layer(x, 1280, 1, _Net.silu))
    return net.model(net.dense(net.flatten(x, 1280), 1000))


def _shufflenet_v2():
    """x1.0; the shuffle as exporters write it."""
    net = _Net()
    x, side = net.pool(net.conv(("image", 3), 24, 3, 2), 3, 2, 1), 56

    def shuffle(x, side):
        y = net.reshape(x[0], 1, 2, x[1] // 2, side, side)
        y = net._add("Transpose", [y], perm=[0, 2, 1, 3, 4])
        return net.reshape(y, 1, x[1], side, side), x[1]

    for out, count in ((116, 4), (232, 8), (464, 4)):
        half, side = out // 2, side // 2
        left = net.conv(x, x[1], 3, 2, groups=x[1], relu=False)
        y = net.conv(net.conv(x, half, 1), half, 3, 2, groups=half, relu=False)
        x = shuffle(net.concats(net.conv(left, half, 1), net.conv(y, half, 1)), side)
        for _ in range(count - 1):
            left, right = net.halves(x)
            y = net.conv(net.conv(right, half, 1), half, 3, groups=half, relu=False)
            x = shuffle(net.concats(left, net.conv(y, half, 1)), side)
    x = net.conv(x, 1024, 1)
    y = net._add("ReduceMean", [x[0]], axes=[2, 3], keepdims=0)
    return net.model(net.dense((y, 1024), 1000))


def _convnext_atto():
    """Channels last between the depthwise convolution and the sum, as in the paper's code."""
    net = _Net()

    def norm(tensor, channels):
        """Along the last axis, as opset 13 writes it."""
        y = net._add("Sub", [tensor, net._add("ReduceMean", [tensor], axes=[-1])])
        two = net._floats(2.0)
        var = net._add("ReduceMean", [net._add("Pow", [y, two])], axes=[-1])
        y = net._add("Div", [y, net._add("Sqrt", [net._add("Add", [var, net._floats(1e-6)])])])
        y = net._add("Mul", [y, net._floats(np.ones(channels))])
        return net._add("Add", [y, net._floats(np.zeros(channels))])

    def turned(tensor, *perm):
        return net._add("Transpose", [tensor], perm=list(perm))

    def norm_first(x):
        return turned(norm(turned(x[0], 0, 2, 3, 1), x[1]), 0, 3, 1, 2), x[1]

    def product(tensor, rows, columns, gain):
        weight = net._floats(net.rng.standard_normal((rows, columns)) * gain * np.sqrt(1 / rows))
        return net._add("Add", [net._add("MatMul", [tensor, weight]), net._floats(np.zeros(columns))])

    def patches(x, out, size):
        """A convolution whose windows touch."""
        weight = net.rng.standard_normal((out, x[1], size, size)) * np.sqrt(1 / (size * size * x[1]))
        inputs = [x[0], net._floats(weight), net._floats(np.zeros(out))]
        return net._add("Conv", inputs, kernel_shape=[size] * 2, strides=[size] * 2), out

    x = norm_first(patches(("image", 3), 40, 4))
    for stage, (width, count) in enumerate(((40, 2), (80, 2), (160, 6), (320, 2))):
        if stage:
            x = patches(norm_first(x), width, 2)
        for _ in range(count):
            y = net.conv(x, width, 7, groups=width, relu=False)
            y = norm(turned(y[0], 0, 2, 3, 1), width)
            y = product(net.gelu(product(y, width, 4 * width, 1.0)), 4 * width, width, 1.0)
            y = net._add("Mul", [y, net._floats(np.full(width, 0.5))])
            x = net._add("Add", [turned(y, 0, 3, 1, 2), x[0]]), width
    y = net._add("ReduceMean", [x[0]], axes=[2, 3], keepdims=0)
    return net.model(net.dense((norm(y, 320), 320), 1000))


def _unet():
    """U-Net at 256, 16 channels first, bilinear with aligned corners."""
    net = _Net(side=256)

    def twice(x, out):
        return net.conv(net.conv(x, out, 3), out, 3)

    x, skips = twice(("image", 3), 16), []
    for width in (32, 64, 128, 128):
        skips.append(x)
        x = twice(net.pool(x, 2, 2), width)
    for width in (64, 32, 16, 16):
        x = twice(net.concats(skips.pop(), net.up(x, "linear", "align_corners")), width)
    return net.model(net.conv(x, 2, 1, relu=False))


def _mobilefacenet():
    net = _Net(side=112)

    def layer(x, out, kernel, stride=1, groups=1):
        y = net.conv(x, out, kernel, stride, groups, relu=False)
        return net.prelu(y[0], out), out

    x = layer(layer(("image", 3), 64, 3, 2), 64, 3, groups=64)
    for expand, out, count, first in ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2),
                                      (2, 128, 2, 1)):  # fmt: skip
        for i in range(count):
            stride, start = (first if i == 0 else 1), x
            y = layer(layer(x, x[1] * expand, 1), x[1] * expand, 3, stride, groups=x[1] * expand)
            x = net.conv(y, out, 1, relu=False, gain=0.5)
            if stride == 1 and start[1] == out:
                x = net.add(start, x, relu=False)
    x = layer(x, 512, 1)
    weight = net._floats(net.rng.standard_normal((512, 1, 7, 7)) / 7)
    y = net._add("Conv", [x[0], weight], kernel_shape=[7, 7], group=512)
    y = net.conv((y, 512), 128, 1, relu=False)
    return net.model(net.flatten(y, 128))


NETWORKS = {
    "resnet18": lambda: _resnet((2, 2, 2, 2), False),
    "resnet50": lambda: _resnet((3, 4, 6, 3), True),
    "vgg16": _vgg16,
    "mobilenet_v1": _mobilenet_v1,
    "mobilenet_v2": _mobilenet_v2,
    "squeezenet1.1": _squeezenet,
}
OF_TODAY = {
    "yolov8n": _yolov8n,
    "mobilenet_v3_small": lambda: _mobilenet_v3(_V3_SMALL, 1024),
    "mobilenet_v3_large": lambda: _mobilenet_v3(_V3_LARGE, 1280),
    "efficientnet_b0": _efficientnet_b0,
    "shufflenet_v2": _shufflenet_v2,
    "convnext_atto": _convnext_atto,
    "ssdlite": _ssdlite,
    "unet_bilinear": _unet,
    "mobilefacenet": _mobilefacenet,
}


def save(name: str, folder: Path) -> Path:
    """Write a network's ONNX file into ``folder`` and return its path."""
    import onnx

    path = folder / f"{name}.onnx"
    onnx.save((NETWORKS | OF_TODAY)[name](), path)
    return path


def pictures(count: int, seed: int = 0, shape: tuple[int, int] = (224, 224)) -> list[np.ndarray]:
    """Smooth random float32 (1, 3, *shape) images: noise in many sizes."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        image = np.zeros((3, *shape))
        for part in (32, 16, 8, 4, 2, 1):
            size = [-(-extent // part) for extent in shape]
            coarse = rng.standard_normal((3, *size)) * 7 / size[0] * 4
            image += coarse.repeat(part, 1).repeat(part, 2)[:, : shape[0], : shape[1]]
        found.append((image / image.std())[None].astype(np.float32))
    return found


def quantized(graph, samples):
    """As the races quantize a network: speed depends on the structure, which is that of the default method,
    not on the ranges."""
    import tvm_easyquant as eq

    return eq.quantize(graph, samples[:4], bits=7, method="minmax", fuse_functions=True, asymmetric=True)
