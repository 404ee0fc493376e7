"""Small networks for tests: as `Graph` in numpy, and as ONNX models."""

from __future__ import annotations

from math import inf

import numpy as np

from tvm_easyquant.network.graph import Graph
from tvm_easyquant.network.node import Node
from tvm_easyquant.network.resample import ratio

RELU = dict(lo=0.0, hi=inf)


class Builder:
    """Builds a Graph node by node with random weights; every method returns the tensor's name."""

    def __init__(self, seed=0, batch=1, size=10, channels=3):
        self.rng = np.random.default_rng(seed)
        self.nodes = {"image": Node("image", "input", (), (batch, size, size, channels))}

    def add(self, name, op, inputs, shape, attrs, weight=None, bias=None):
        self.nodes[name] = Node(name, op, tuple(inputs), tuple(shape), attrs, weight, bias)
        return name

    def conv(self, name, x, channels, kernel=3, stride=1, groups=1, dilation=1, scale=1.0):
        n, h, w, c = self.nodes[x].shape
        pad = dilation * (kernel // 2)
        attrs = dict(strides=(stride,) * 2, padding=(pad,) * 4, dilation=(dilation,) * 2, groups=groups)
        size = [(d + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1 for d in (h, w)]
        weight = self.rng.standard_normal((kernel, kernel, c // groups, channels)) * scale
        weight = (weight / np.sqrt(kernel * kernel * c / groups)).astype(np.float32)
        bias = (self.rng.standard_normal(channels) * 0.1).astype(np.float32)
        return self.add(name, "conv2d", [x], (n, *size, channels), attrs, weight, bias)

    def relu(self, name, x, hi=inf):
        return self.add(name, "clip", [x], self.nodes[x].shape, dict(lo=0.0, hi=hi))

    def join(self, name, a, b):
        return self.add(name, "add", [a, b], self.nodes[a].shape, {})

    def concat(self, name, *xs):
        shape = list(self.nodes[xs[0]].shape)
        shape[3] = sum(self.nodes[x].shape[3] for x in xs)
        return self.add(name, "concat", xs, shape, dict(axis=3))

    def pool(self, name, x, op="max_pool2d", size=2, stride=2):
        n, h, w, c = self.nodes[x].shape
        attrs = dict(pool_size=(size,) * 2, strides=(stride,) * 2, padding=(0,) * 4)
        attrs |= dict(dilation=(1, 1)) if op == "max_pool2d" else dict(count_include_pad=True)
        shape = (n, (h - size) // stride + 1, (w - size) // stride + 1, c)
        return self.add(name, op, [x], shape, attrs)

    def resize_linear(self, name, x, made, mode="half_pixel"):
        n, *before, c = self.nodes[x].shape
        sizes = tuple(zip(before, made, strict=True))
        scales = tuple(ratio(after / size, size, after) for size, after in sizes)
        attrs = dict(mode=mode, sizes=sizes, scales=scales)
        return self.add(name, "resize_linear", [x], (n, *made, c), attrs)

    def global_pool(self, name, x):
        n, h, w, c = self.nodes[x].shape
        attrs = dict(pool_size=(h, w), strides=(1, 1), padding=(0,) * 4, count_include_pad=True)
        return self.add(name, "avg_pool2d", [x], (n, 1, 1, c), attrs)

    def flatten(self, name, x):
        n, h, w, c = self.nodes[x].shape
        attrs = dict(shape=(n, h * w * c), channels_first=h * w > 1)
        return self.add(name, "reshape", [x], attrs["shape"], attrs)

    def dense(self, name, x, units):
        n, k = self.nodes[x].shape
        weight = (self.rng.standard_normal((units, k)) / np.sqrt(k)).astype(np.float32)
        bias = (self.rng.standard_normal(units) * 0.1).astype(np.float32)
        return self.add(name, "dense", [x], (n, units), {}, weight.T[None, None], bias)

    def graph(self, *outputs):
        return Graph(self.nodes.values(), outputs, "test")

    def images(self, count):
        n, h, w, c = self.nodes["image"].shape
        return [self.rng.standard_normal((n, c, h, w)).astype(np.float32) for _ in range(count)]


def residual(seed=0, **options):
    """Residual add, concat, depthwise, grouped, dilated, every pool, ReLU6, dense: (graph, images)."""
    b = Builder(seed, **options)
    x = b.relu("stem.relu", b.conv("stem", "image", 8))
    y = b.relu("dw.relu", b.conv("dw", x, 8, groups=8), hi=6.0)
    y = b.conv("pw", y, 8, kernel=1)
    x = b.relu("join.relu", b.join("join", x, y))
    left = b.relu("left.relu", b.conv("left", x, 8, kernel=1))
    right = b.relu("right.relu", b.conv("right", x, 12, groups=4, dilation=2))
    x = b.pool("pool", b.concat("cat", left, right))
    x = b.relu("down.relu", b.conv("down", x, 16, stride=2))
    x = b.pool("avg", x, "avg_pool2d", 2, 1)
    x = b.flatten("flat", b.global_pool("gap", x))
    b.dense("logits", x, 5)
    return b.graph("logits"), b.images(6)


def turned(seed=0, **options):
    """Height and width change places between layers, and back: (graph, images)."""
    b = Builder(seed, **options)
    x = b.relu("stem.relu", b.conv("stem", "image", 8, stride=2))
    for name in ("over", "back"):
        n, height, width, channels = b.nodes[x].shape
        x = b.add(name, "transpose", [x], (n, width, height, channels), dict(axes=(0, 2, 1, 3)))
        x = b.relu(f"{name}.relu", b.conv(f"{name}.conv", x, 8))
    b.dense("logits", b.flatten("flat", b.global_pool("gap", x)), 5)
    return b.graph("logits"), b.images(6)


def joined(seed=0, **options):
    """What is made of two maps, of one and its gates, and what takes places of each axis, between layers:
    (graph, images)."""
    b = Builder(seed, **options)
    x = b.relu("stem.relu", b.conv("stem", "image", 8, stride=2))
    shape = n, h, w, c = b.nodes[x].shape
    y = b.conv("other", x, 8)
    x = b.add("difference", "sub", [x, y], shape, {})
    gate = b.relu("gate.relu", b.conv("gate", x, 1, kernel=1), hi=1.0)
    x = b.add("gated", "mul", [x, gate], shape, {})
    x = b.add("least", "min", [b.pool("mean", x, "avg_pool2d", h, 1), x], shape, {})
    x = b.relu("shifted.relu", b.add("shifted", "add", [b.conv("row", x, 8), gate], shape, {}))
    x = b.conv("mid", b.add("most", "max", [x, y], shape, {}), 8, kernel=1)
    within = dict(rows=(2, *(3,) * (h - 2), 2), columns=(*(2,) * (w - 1), 1))
    window = dict(pool_size=(3, 2), strides=(1, 1), padding=(1, 0, 1, 1))
    x = b.add("near", "mean_pool2d", [x], shape, window | within)
    for name, op, size, attrs in (
        ("groups", "reshape", (n, 2, c // 2, h, w), dict(shape=(n, 2, c // 2, h, w), channels_first=True)),
        ("turned", "transpose", (n, c // 2, 2, h, w), dict(axes=(0, 2, 1, 3, 4))),
        ("shuffled", "reshape", shape, dict(shape=shape, channels_first=True)),
    ):
        x = b.add(name, op, [x], size, attrs)
    places = (None, (2, 1, 0, *range(h)), tuple(range(0, w, 2)), tuple(range(c))[::-1])
    x = b.add("taken", "gather", [x], (n, h + 3, -(-w // 2), c), dict(indices=places))
    x = b.relu("late.relu", b.conv("late", x, 7))
    n, h, w, c = b.nodes[x].shape
    over = [b.add(op, op, [x], (n, h, w, 1), dict(axes=(3,))) for op in ("reduce_mean", "reduce_max")]
    look = b.conv("spatial", b.concat("over", *over), 1, kernel=5)
    look = b.add("look", "elementwise", [look], (n, h, w, 1), dict(expression=("sigmoid", "x")))
    x = b.add("seen", "mul", [x, look], (n, h, w, c), {})
    b.dense("logits", b.flatten("flat", b.global_pool("gap", x)), 5)
    return b.graph("logits"), b.images(6)


def resized(seed=0, **options):
    """Linear resizes of every kind of coordinates, up and down, of 8 and of 5 channels: behind a layer and
    a clip, before a clip, a function and a layer, and for readers of floats: (graph, images)."""
    b = Builder(seed, **options)
    x = b.relu("stem.relu", b.conv("stem", "image", 8), hi=2.0)
    x = b.conv("second", b.resize_linear("twice", x, (20, 20)), 5)
    x = b.relu("low", b.resize_linear("down", x, (13, 15), "align_corners"), hi=0.5)
    x = b.resize_linear("wide", b.conv("third", x, 5), (13, 25), "asymmetric")
    swish = ("multiply", "x", ("sigmoid", "x"))
    x = b.add("swish", "elementwise", [x], b.nodes[x].shape, dict(expression=swish))
    b.conv("last", x, 3, kernel=1)
    b.resize_linear("large", "last", (30, 26), "pytorch_half_pixel")
    return b.graph("large"), b.images(4)


def attended(seed=0, **options):
    """Products of two stored tensors, and one that only a float reader has: (graph, images)."""
    b = Builder(seed, **options)
    x = b.relu("stem.relu", b.conv("stem", "image", 6, stride=2))
    n, height, width, channels = b.nodes[x].shape  # (n, channels, height, width) of the model: heads
    turned = (n, width, height, channels)
    other = b.add("turn", "transpose", [x], turned, dict(axes=(0, 2, 1, 3)))
    made = (n, height, height, channels)
    scores = b.relu("scores.relu", b.add("scores", "matmul", [x, other], made, dict(depth=width)))
    mixed = b.add("mixed", "matmul", [scores, x], (n, height, width, channels), dict(depth=height))
    last = b.add("last", "matmul", [b.conv("next", mixed, 6), other], made, dict(depth=width))
    return b.graph(last), b.images(6)


def normalized(seed=0, **options):
    """Layer normalizations: behind a layer and a sum, before a layer, a clip and a function: (graph, images)."""
    b = Builder(seed, **options)
    x = b.conv("stem", "image", 6, stride=2)

    def norm(name, x):
        size, rng = b.nodes[x].shape, np.random.default_rng(len(name))
        vectors = {
            key: tuple(map(float, np.float32(rng.standard_normal(size[-1])))) for key in ("scale", "shift")
        }
        return b.add(name, "layer_norm", [x], size, dict(epsilon=1e-4, **vectors))

    x = norm("first", x)
    y = b.conv("mid", x, 6)
    x = norm("second", b.add("sum", "add", [x, y], b.nodes[x].shape, {}))
    x = norm("third", b.conv("late", b.relu("second.relu", x), 40))
    swish = dict(expression=("multiply", "x", ("sigmoid", "x")))
    x = b.conv("last", b.add("swish", "elementwise", [x], b.nodes[x].shape, swish), 7)
    b.dense("logits", b.flatten("flat", b.global_pool("gap", x)), 5)
    return b.graph("logits"), b.images(6)


def chain(seed=0, relu=True, channels=4, **options):
    """conv - (relu) - conv: the smallest network with a searched activation scale."""
    b = Builder(seed, **options)
    x = b.conv("first", "image", channels)
    x = b.relu("first.relu", x) if relu else x
    b.conv("second", x, 3, kernel=1)
    return b.graph("second"), b.images(4)


#: what `random_graph` is made of
KINDS = ("conv", "conv", "dw", "relu", "branch", "branch", "add", "mul", "concat", "max", "avg", "f")


def random_graph(seed):
    """Layers, joins of branches that others may read too, clips, pools and moves, in any order."""
    rng = np.random.default_rng(seed)
    b = Builder(seed, batch=int(rng.integers(1, 3)))
    tensors = [b.conv("conv0", "image", 8)]
    outputs = []
    for i in range(1, int(rng.integers(5, 14))):
        x = tensors[int(rng.integers(max(0, len(tensors) - 3), len(tensors)))]
        same = [t for t in tensors if b.nodes[t].shape == b.nodes[x].shape]
        c = b.nodes[x].shape[3]
        kind = str(rng.choice(KINDS))
        if kind == "conv":
            kernel, channels = int(rng.choice([1, 3])), int(rng.choice([c, c, 8, 12]))
            y = b.conv(f"conv{i}", x, channels, kernel, groups=int(rng.choice([1, 1, 2])))
        elif kind == "dw":
            y = b.conv(f"dw{i}", x, c, groups=c)
        elif kind == "relu":
            y = b.relu(f"relu{i}", x, hi=float(rng.choice([inf, 2.0])))
        elif kind in ("add", "mul"):
            y = b.add(f"{kind}{i}", kind, [x, str(rng.choice(same))], b.nodes[x].shape, {})
        elif kind == "branch":  # a residual add: the layer on either side, its ReLU between them or none
            own = b.conv(f"branch{i}", x, c, int(rng.choice([1, 3])))
            own = b.relu(f"branch{i}.relu", own) if rng.random() < 0.3 else own
            pair = [own, str(rng.choice(same))]
            y = b.join(f"join{i}", *pair[:: int(rng.choice([1, -1]))])
        elif kind == "concat" and c <= 24:
            y = b.concat(f"cat{i}", x, str(rng.choice(same)))
        elif kind in ("max", "avg") and b.nodes[x].shape[1] > 3:
            y = b.pool(f"pool{i}", x, {"max": "max_pool2d", "avg": "avg_pool2d"}[kind], 2, 1)
        else:
            y = b.add(f"f{i}", "elementwise", [x], b.nodes[x].shape, {"expression": ("tanh", "x")})
        tensors.append(y)
        if rng.random() < 0.15:
            outputs.append(y)
    last = b.dense("logits", b.flatten("flat", b.global_pool("gap", tensors[-1])), 5)
    read = {t for node in b.nodes.values() for t in node.inputs}
    unread = [t for t in tensors if t not in read]  # what nobody reads, a reader would leave out
    return b.graph(last, *dict.fromkeys([*outputs, *unread])), b.images(2)


# -- ONNX


def onnx_model(nodes, inputs, outputs, constants, opset=13):
    """A ModelProto; nodes: (op, inputs, outputs, name, attributes); constants: {name: array}."""
    from onnx import TensorProto, checker, helper, numpy_helper

    def info(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        [helper.make_node(op, i, o, n, **a) for op, i, o, n, a in nodes],
        "test",
        [info(n, s) for n, s in inputs.items()],
        [info(n, s) for n, s in outputs.items()],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    checker.check_model(model)
    return model


#: operator of a recurrence -> (gates, states)
RECURRENT = {"LSTM": (4, 2), "GRU": (3, 1), "RNN": (1, 1)}


def recurrent(
    op, steps=7, batch=1, size=21, direction="bidirectional", initial=False, lengths=None, **attributes
):
    """(model, x) of one LSTM, GRU or RNN; its outputs are the rows and the last of them. lengths: of the
    sequences."""
    rng, (gates, states) = np.random.default_rng(steps), RECURRENT[op]
    ways, features = 1 + (direction == "bidirectional"), 6
    sizes = {
        "w": (ways, gates * size, features),
        "r": (ways, gates * size, size),
        "b": (ways, 2 * gates * size),
    }
    names = ["x", "w", "r", "b", "", "", "", ""]
    if initial:
        sizes |= dict.fromkeys(("h", "c")[:states], (ways, batch, size))
        names[5 : 5 + states] = ("h", "c")[:states]
    if op == "LSTM" and initial:
        sizes["p"], names[7] = (ways, 3 * size), "p"
    scale = {"r": 1 / np.sqrt(size)}
    constants = {
        name: (rng.standard_normal(s) * scale.get(name, 0.5)).astype(np.float32)
        for name, s in sizes.items()
    }
    if lengths is not None:
        constants["l"], names[4] = np.array(lengths, np.int32), "l"
    while not names[-1]:
        names.pop()
    outputs = {"y": [steps, ways, batch, size]} | {"yh": [ways, batch, size]}
    attributes = dict(hidden_size=size, direction=direction) | attributes
    nodes = [(op, names, list(outputs), "cell", attributes)]
    x = rng.standard_normal((steps, batch, features)).astype(np.float32)
    return onnx_model(nodes, {"x": list(x.shape)}, outputs, constants, opset=14), x


#: the one that is quick to compile
LOOP = "RNN, as few steps as make a loop"
#: operator of a recurrence, how it is made otherwise, and the loops that it is: one for each direction and
#: each output, which are nodes of their own
LOOPS = {
    "LSTM": ("LSTM", {}, 4),
    "LSTM, peepholes, states, a batch": ("LSTM", dict(initial=True, batch=5, direction="forward"), 2),
    "LSTM, clipped, one gate for two": ("LSTM", dict(clip=0.5, input_forget=1, direction="reverse"), 2),
    "GRU": ("GRU", dict(initial=True), 4),
    "GRU, its reset late": ("GRU", dict(linear_before_reset=1, batch=2), 4),
    "RNN, wide": ("RNN", dict(size=130, direction="reverse", initial=True), 2),
    LOOP: ("RNN", dict(steps=4, size=2), 4),
    "RNN, too few steps": ("RNN", dict(steps=3), 0),
    "RNN, of several lengths": ("RNN", dict(batch=3, size=2, lengths=(7, 2, 5)), 0),
    "RNN, a function that is none of ours": ("RNN", dict(activations=["Softplus"] * 2), 0),
}


def sized_onnx(seed=0):
    """conv - relu - max pool - conv - relu - global pool - flatten - gemm; input ``x`` (any, 3, any,
    any)."""
    rng = np.random.default_rng(seed)
    sizes = {"w1": (8, 3, 3, 3), "w2": (16, 8, 3, 3), "w3": (4, 16)}
    constants = {name: (rng.standard_normal(s) * 0.2).astype(np.float32) for name, s in sizes.items()}
    nodes = [
        ("Conv", ["x", "w1"], ["t1"], "conv1", dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1])),
        ("Relu", ["t1"], ["t2"], "relu1", {}),
        ("MaxPool", ["t2"], ["t3"], "pool", dict(kernel_shape=[2, 2], strides=[2, 2])),
        ("Conv", ["t3", "w2"], ["t4"], "conv2", dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1])),
        ("Relu", ["t4"], ["t5"], "relu2", {}),
        ("GlobalAveragePool", ["t5"], ["t6"], "mean", {}),
        ("Flatten", ["t6"], ["t7"], "flatten", {}),
        ("Gemm", ["t7", "w3"], ["y"], "classifier", dict(transB=1)),
    ]
    return onnx_model(nodes, {"x": ["n", 3, "h", "w"]}, {"y": ["n", 4]}, constants)


def small_onnx(opset=13, batch=1, island=False, seed=0, norm=True):
    """conv - bn - relu - conv(+softmax island) - global pool - flatten - gemm, input ``x`` (n, 3, 8, 8)."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return (rng.standard_normal(shape) * 0.3).astype(np.float32)

    constants = {"w1": normal(8, 3, 3, 3), "b1": normal(8), "w2": normal(8, 8, 1, 1)}
    constants |= {"gamma": normal(8) + 1, "beta": normal(8), "mean": normal(8), "var": normal(8) ** 2 + 0.5}
    constants |= {"w3": normal(4, 8), "b3": normal(4)}
    conv = dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    nodes = [("Conv", ["x", "w1", "b1"], ["t1"], "conv1", conv)]
    last = "t1"
    if norm:
        nodes.append(("BatchNormalization", ["t1", "gamma", "beta", "mean", "var"], ["t2"], "bn1", {}))
        last = "t2"
    else:
        for name in ("gamma", "beta", "mean", "var"):
            del constants[name]
    nodes.append(("Relu", [last], ["t3"], "relu1", {}))
    last = "t3"
    if island:
        nodes += [
            ("Softmax", [last], ["t4"], "gate", dict(axis=1)),
            ("Mul", [last, "t4"], ["t5"], "swish", {}),
        ]
        last = "t5"
    nodes += [
        ("Conv", [last, "w2"], ["t6"], "conv2", dict(kernel_shape=[1, 1])),
        ("GlobalAveragePool", ["t6"], ["t7"], "pool", {}),
        ("Flatten", ["t7"], ["t8"], "flatten", {}),
        ("Gemm", ["t8", "w3", "b3"], ["y"], "classifier", dict(transB=1)),
    ]
    return onnx_model(nodes, {"x": [batch, 3, 8, 8]}, {"y": [batch, 4]}, constants, opset)
