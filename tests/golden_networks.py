"""The networks of the golden files, by name, and their images; deterministic, and the same on any CPU.

Between them they have every integer operator. Functions of one number are those that IEEE arithmetic
settles (hard-swish, leaky ReLU): sigmoid and its like depend on the mathematics library, whose vectorised
exponential differs from CPU to CPU. A float island's own numbers are not compared for the same reason.
"""

from __future__ import annotations

import networks
import numpy as np
from networks import Builder

from tvm_easyquant import demo

HARD_SWISH = ("divide", ("multiply", "x", ("clip", ("add", "x", 3.0), 0.0, 6.0)), 6.0)


def kinds():
    """Convolutions: grouped, depthwise, dilated, strided, asymmetric padding, ReLU6, a clip from below 0."""
    b = Builder(1, size=12)
    x = b.relu("stem.relu6", b.conv("stem", "image", 16), hi=6.0)
    x = b.relu("depthwise.relu", b.conv("depthwise", x, 16, groups=16, stride=2))
    x = b.relu("grouped.relu6", b.conv("grouped", x, 24, groups=4), hi=6.0)
    x = b.conv("wide", x, 40, kernel=5)
    x = b.add("wide.clip", "clip", [x], b.nodes[x].shape, dict(lo=-1.0, hi=1.5))
    x = b.relu("dilated.relu", b.conv("dilated", x, 32, dilation=2))
    x = b.conv("uneven", x, 8, kernel=3)
    node = b.nodes["uneven"]  # one row and one column of padding less at the end
    attrs = dict(node.attrs, padding=(1, 1, 0, 0))
    b.add("uneven", "conv2d", node.inputs, (1, 5, 5, 8), attrs, node.weight, node.bias)
    b.conv("last", "uneven", 7, kernel=1, stride=2)
    return b.graph("last"), b.images(6)


def gate():
    """A map times its gate of one number a channel, clipped to [0, 1] as a hard sigmoid is."""
    b = Builder(2, size=8)
    x = b.relu("stem.relu", b.conv("stem", "image", 16))
    g = b.relu("squeeze.relu", b.conv("squeeze", b.global_pool("gap", x), 4, kernel=1))
    g = b.relu("excite.clip", b.conv("excite", g, 16, kernel=1), hi=1.0)
    x = b.add("scaled", "mul", [x, g], b.nodes[x].shape, {})
    b.conv("last", x, 5, kernel=1)
    return b.graph("last"), b.images(6)


def product():
    """Two maps times each other, with a ReLU behind."""
    b = Builder(3, size=8)
    left, right = b.conv("left", "image", 8), b.conv("right", "image", 8)
    x = b.relu("times.relu", b.add("times", "mul", [left, right], b.nodes[left].shape, {}))
    b.conv("last", x, 4)
    return b.graph("last"), b.images(6)


def functions():
    """Hard-swish, leaky ReLU, and an add of what they make."""
    b = Builder(4, size=8)
    x = b.conv("first", "image", 8)
    x = b.add("swish", "elementwise", [x], b.nodes[x].shape, dict(expression=HARD_SWISH))
    y = b.conv("second", x, 8, kernel=1)
    y = b.add("leaky", "elementwise", [y], b.nodes[y].shape, dict(expression=("leaky_relu", "x", 0.125)))
    b.conv("last", b.join("join", x, y), 4)
    return b.graph("last"), b.images(6)


def moves():
    """Resize, slice, pad, depth to space in both orders, concat: what moves numbers and computes none."""
    b = Builder(5, size=6)
    x = b.relu("stem.relu", b.conv("stem", "image", 16))
    dcr = b.add("dcr", "depth_to_space", [x], (1, 12, 12, 4), dict(block=2, mode="DCR"))
    crd = b.add("crd", "depth_to_space", [x], (1, 12, 12, 4), dict(block=2, mode="CRD"))
    up = b.add("up", "resize", [x], (1, 12, 18, 16), dict(factors=(2, 3)))
    cut = b.add("cut", "slice", [up], (1, 12, 9, 16), dict(begin=(0, 0, 0, 0), end=(1, 12, 18, 16),
                strides=(1, 1, 2, 1)))  # fmt: skip
    wide = b.add("wide", "pad", [cut], (1, 12, 12, 16), dict(widths=((0, 0), (0, 0), (1, 2), (0, 0))))
    b.conv("last", b.concat("cat", dcr, crd, wide), 6)
    return b.graph("last"), b.images(6)


def pools():
    """Max and average pools, padded and not; their branches side by side; two outputs."""
    b = Builder(6, size=9)
    x = b.relu("stem.relu", b.conv("stem", "image", 8))
    padded = dict(pool_size=(3, 3), strides=(2, 2), padding=(1, 1, 1, 1))
    most = b.add("most", "max_pool2d", [x], (1, 5, 5, 8), dict(padded, dilation=(1, 1)))
    mean = b.add("mean", "avg_pool2d", [x], (1, 5, 5, 8), dict(padded, count_include_pad=True))
    x = b.concat("cat", most, mean)
    side = b.pool("side", b.conv("side.conv", x, 4, kernel=1), "avg_pool2d", 3, 1)
    x = b.relu("deep.relu", b.conv("deep", b.pool("down", x, "max_pool2d", 2, 1), 8))
    return b.graph(b.conv("last", b.pool("avg", x, "avg_pool2d", 2, 2), 4), side), b.images(6)


def denses():
    """Two maps flattened in the model's order, and a chain of dense layers; batch 2."""
    b = Builder(7, batch=2, size=6)
    x = b.flatten("flat", b.relu("stem.relu", b.conv("stem", "image", 6, stride=2)))
    x = b.relu("hidden.relu", b.dense("hidden", x, 33))
    x = b.relu("deeper.relu6", b.dense("deeper", x, 16), hi=6.0)
    b.dense("last", x, 10)
    return b.graph("last"), b.images(6)


def operators_onnx():
    """What only a front end makes: transposed convolution, normalization, factors, ONNX's own spellings."""
    rng = np.random.default_rng(8)

    def normal(*shape):
        return (rng.standard_normal(shape) * 0.3).astype(np.float32)

    constants = {
        "w1": normal(8, 3, 3, 3), "gamma": normal(8) + 1, "beta": normal(8), "mean": normal(8),
        "var": normal(8) ** 2 + np.float32(0.5), "three": np.float32(3), "zero": np.float32(0),
        "six": np.float32(6), "wt": normal(8, 6, 3, 3), "bt": normal(6), "scales": np.float32([1, 1, 2, 2]),
        "pads": np.int64([0, 0, 1, 0, 0, 0, 1, 0]), "starts": np.int64([1]), "ends": np.int64([17]),
        "axes": np.int64([2]), "factor": normal(1, 8, 1, 1) + 1, "w2": normal(4, 8, 1, 1), "b2": normal(4),
        "w3": normal(5, 4), "b3": normal(5),
    }  # fmt: skip
    up = dict(mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    transposed = dict(kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])
    nodes = [
        ("Conv", ["x", "w1"], ["a"], "conv1", dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1])),
        ("BatchNormalization", ["a", "gamma", "beta", "mean", "var"], ["n"], "norm", {}),
        ("Add", ["n", "three"], ["t"], "plus", {}),
        ("Clip", ["t", "zero", "six"], ["u"], "clip", {}),
        ("Mul", ["n", "u"], ["v"], "times", {}),
        ("Div", ["v", "six"], ["s"], "swish", {}),
        ("ConvTranspose", ["s", "wt", "bt"], ["c"], "transposed", transposed),
        ("Relu", ["c"], ["r"], "relu", {}),
        ("Pad", ["r", "pads"], ["p"], "pad", {}),
        ("Slice", ["p", "starts", "ends", "axes"], ["q"], "slice", {}),
        ("Resize", ["s", "", "scales"], ["up"], "up", up),
        ("Mul", ["up", "factor"], ["f"], "factors", {}),
        ("Concat", ["q", "f"], ["g"], "concat", dict(axis=1)),
        ("MaxPool", ["g"], ["h"], "pool", dict(kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)),
        ("AveragePool", ["h"], ["i"], "mean", dict(kernel_shape=[2, 2])),
        ("Slice", ["i", "starts", "nine", "channel"], ["j"], "channels", {}),
        ("Conv", ["j", "w2", "b2"], ["k"], "conv2", dict(kernel_shape=[1, 1])),
        ("GlobalAveragePool", ["k"], ["l"], "gap", {}),
        ("Flatten", ["l"], ["m"], "flatten", {}),
        ("Gemm", ["m", "w3", "b3"], ["y"], "classifier", dict(transB=1)),
    ]
    constants |= {"nine": np.int64([9]), "channel": np.int64([1])}
    return networks.onnx_model(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 5]}, constants)


def _from_onnx(model):
    import tvm_easyquant as eq

    graph = eq.load_onnx(model)
    (name,) = graph.inputs
    n, h, w, c = graph[name].shape
    rng = np.random.default_rng(0)
    return graph, [rng.standard_normal((n, c, h, w)).astype(np.float32) for _ in range(6)]


def _demo():
    import tvm_easyquant as eq

    return eq.load_onnx(demo.network_path()), list(demo.images()["calibration_images"][:16, None])


#: name -> function that makes (graph, calibration images)
GRAPHS = {
    "residual": networks.residual,
    "chain": networks.chain,
    "chain_signed": lambda: networks.chain(seed=1, relu=False),
    "kinds": kinds,
    "gate": gate,
    "product": product,
    "functions": functions,
    "moves": moves,
    "pools": pools,
    "denses": denses,
}
#: the same for those that TVM reads
FROM_ONNX = {
    "small_onnx": lambda: _from_onnx(networks.small_onnx()),
    "small_onnx_island": lambda: _from_onnx(networks.small_onnx(island=True)),
    "operators_onnx": lambda: _from_onnx(operators_onnx()),
    "demo": _demo,
}
NETWORKS = {**GRAPHS, **FROM_ONNX}

SKIPS = {"*": 7, "stem": 8, "right": 8, "logits": "float"}
#: table -> (network, settings of `quantize`)
TABLES = {
    **{
        f"{name}.{method or 'default'}.int{bits}": (name, dict(bits=bits, **({"method": method} if method else {})))
        for name in NETWORKS
        for method in ("", "minmax")
        for bits in (7, 8)
    },
    "residual.layer_bits": ("residual", dict(method="minmax", bits=SKIPS)),
    "residual.skip": ("residual", dict(method="minmax", skip=("join", "pool"))),
    "residual.equalize": ("residual", dict(method="minmax", equalize=True)),
    "residual.paper": ("residual", dict(method="easyquant", grid=8)),
    "residual.descent": ("residual", dict(rounding="descent", grid=8)),
}  # fmt: skip


def pictures(graph, count: int = 2) -> list[dict[str, np.ndarray]]:
    """Feeds whose numbers are multiples of 1/256, so that no arithmetic is needed to make them."""
    rng, feeds = np.random.default_rng(99), []
    for _ in range(count):
        feed = {}
        for name in graph.inputs:
            n, h, w, c = graph[name].shape
            feed[name] = (rng.integers(-640, 641, (n, c, h, w)) / 256).astype(np.float32)
        feeds.append(feed)
    return feeds
