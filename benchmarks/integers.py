"""What runs in integers, what stays float and why: operators between two convolutions, and whole networks.

    python benchmarks/integers.py --json FILE [--also NAME=ONNX ...]

An operator stands in a network of its own, Conv - Relu - operator - Conv, as exporters write it. Networks
are those of `random_networks`, and the files of --also. Nothing is searched or compiled: the plan says it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

import machine
import numpy as np
import onnx
import random_networks

import tvm_easyquant as eq
from tvm_easyquant.errors import EasyQuantError
from tvm_easyquant.files import write_text
from tvm_easyquant.scales.partition import plan

CHANNELS, SIDE = 16, 16


class Between(random_networks._Net):
    """A network with one operator between its convolutions; `x` is the tensor before it."""

    def __init__(self):
        super().__init__(side=SIDE)
        self.x = self.conv(("image", 3), CHANNELS, 3)[0]
        self.weights = self.rng.standard_normal

    def op(self, kind, *inputs, **attributes):
        return self._add(kind, list(inputs or (self.x,)), **attributes)

    def ints(self, *values):
        return self._integers(*values)

    def floats(self, values):
        return self._floats(values)


def _split(n):
    a, b = n.halves((n.x, CHANNELS))
    return n.op("Concat", b[0], a[0], axis=1)


def _shuffle(n):
    y = n.op("Transpose", n.reshape(n.x, 1, 2, CHANNELS // 2, SIDE, SIDE), perm=[0, 2, 1, 3, 4])
    return n.reshape(y, 1, CHANNELS, SIDE, SIDE)


def _resized(mode, coordinates, factor):
    def make(n):
        more = {"nearest_mode": "floor"} if mode == "nearest" else {}
        more |= {"mode": mode, "coordinate_transformation_mode": coordinates}
        return n.op("Resize", n.x, "", n.floats([1, 1, factor, factor]), **more)

    return make


def _of_two(kind):
    return lambda n: n.op(kind, n.x, n.conv((n.x, CHANNELS), CHANNELS, 3)[0])


def _gate(axes):
    def make(n):
        gate = n.op("ReduceMean", n.x, axes=axes)
        return n.op("Mul", n.x, n.op("Sigmoid", gate))

    return make


def _pad(mode):
    return lambda n: n.op("Pad", n.x, n.ints(0, 0, 1, 1, 0, 0, 1, 1), mode=mode)


def _norm(kind):
    def make(n):
        ones, zeros = n.floats(np.ones(CHANNELS)), n.floats(np.zeros(CHANNELS))
        return n.op(kind, n.x, ones, zeros)

    return make


def _rows(n, x):
    """(1, C, H, W) -> (1, H * W, C)"""
    return n.op("Transpose", n.reshape(x, 1, CHANNELS, SIDE * SIDE), perm=[0, 2, 1])


def _map(n, rows):
    return n.reshape(n.op("Transpose", rows, perm=[0, 2, 1]), 1, CHANNELS, SIDE, SIDE)


def _product(n):
    return _map(n, n.op("MatMul", _rows(n, n.x), n.floats(n.weights((CHANNELS, CHANNELS)))))


def _attention(n):
    rows = _rows(n, n.x)
    q, k, v = (n.op("MatMul", rows, n.floats(n.weights((CHANNELS, CHANNELS)) / 4)) for _ in range(3))
    scores = n.op("Softmax", n.op("MatMul", q, n.op("Transpose", k, perm=[0, 2, 1])), axis=-1)
    return _map(n, n.op("MatMul", scores, v))


def _one_dimension(n):
    y = n.reshape(n.x, 1, CHANNELS, SIDE * SIDE)
    y = n.op("Conv", y, n.floats(n.weights((CHANNELS, CHANNELS, 3))), kernel_shape=[3], pads=[1, 1])
    return n.reshape(n.op("Relu", y), 1, CHANNELS, SIDE, SIDE)


def _transposed(groups):
    def make(n):
        weight = n.floats(n.weights((CHANNELS, CHANNELS // groups, 2, 2)))
        return n.op("ConvTranspose", n.x, weight, kernel_shape=[2, 2], strides=[2, 2], group=groups)

    return make


def _lstm(n):
    y = n.op("Transpose", n.reshape(n.x, 1, CHANNELS, SIDE * SIDE), perm=[2, 0, 1])
    w, r = (n.floats(n.weights((1, 4 * CHANNELS, CHANNELS)) / 4) for _ in range(2))
    y = n.op("LSTM", y, w, r, hidden_size=CHANNELS)  # (T, 1, N, C)
    return n.op("Transpose", n.reshape(y, SIDE, SIDE, 1, CHANNELS), perm=[2, 3, 0, 1])


def _gelu(n):
    return n.gelu(n.x)


def _mish(n):
    return n.op("Mul", n.x, n.op("Tanh", n.op("Softplus")))


def _flip(n):
    return n.op("Gather", n.x, n.ints(*range(CHANNELS)[::-1]), axis=1)


def _tile(n):
    return n.op("Tile", n.x, n.ints(1, 1, 2, 2))


def _blocks(n):
    return n.op("DepthToSpace", n.op("SpaceToDepth", blocksize=2), blocksize=2)


def _expand(n):
    return n.op("Expand", n.op("GlobalAveragePool"), n.ints(1, CHANNELS, SIDE, SIDE))


def _scale(n):
    vectors = [n.floats(n.rng.uniform(0.5, 2, (CHANNELS, 1, 1))) for _ in range(2)]
    y = n.op("MaxPool", kernel_shape=[3, 3], pads=[1] * 4)
    return n.op("Add", n.op("Mul", y, vectors[0]), vectors[1])


OPERATORS = {
    "Relu6 (Clip)": lambda n: n.relu6(n.x),
    "LeakyRelu": lambda n: n.op("LeakyRelu", alpha=0.1),
    "PRelu": lambda n: n.prelu(n.conv((n.x, CHANNELS), CHANNELS, 3, relu=False)[0], CHANNELS),
    "SiLU": lambda n: n.silu(n.x),
    "HardSwish": lambda n: n.hard_swish(n.x),
    "Gelu": _gelu,
    "Mish": _mish,
    "Elu": lambda n: n.op("Elu"),
    "Split, Concat": _split,
    "channel shuffle": _shuffle,
    "Gather (channel flip)": _flip,
    "Tile": _tile,
    "Expand": _expand,
    "SpaceToDepth, DepthToSpace": _blocks,
    "Pad, zeros": _pad("constant"),
    "Pad, reflect": _pad("reflect"),
    "Pad, edge": _pad("edge"),
    "Resize, nearest x2": _resized("nearest", "asymmetric", 2.0),
    "Resize, nearest x1.5": _resized("nearest", "half_pixel", 1.5),
    "Resize, linear x2, half_pixel": _resized("linear", "half_pixel", 2.0),
    "Resize, linear x2, align_corners": _resized("linear", "align_corners", 2.0),
    "Resize, linear x0.75": _resized("linear", "half_pixel", 0.75),
    "Resize, cubic x2": _resized("cubic", "half_pixel", 2.0),
    "Add of two maps": _of_two("Add"),
    "Sub of two maps": _of_two("Sub"),
    "Mul of two maps": _of_two("Mul"),
    "Max of two maps": _of_two("Max"),
    "Min of two maps": _of_two("Min"),
    "Mul by a channel gate": _gate([2, 3]),
    "Mul by a spatial gate": _gate([1]),
    "Mul and Add of vectors": _scale,
    "MaxPool": lambda n: n.op("MaxPool", kernel_shape=[3, 3], pads=[1] * 4),
    "AveragePool, pads counted": lambda n: n.op(
        "AveragePool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1
    ),
    "AveragePool, pads not counted": lambda n: n.op("AveragePool", kernel_shape=[3, 3], pads=[1] * 4),
    "Conv1d": _one_dimension,
    "ConvTranspose": _transposed(1),
    "ConvTranspose, grouped": _transposed(4),
    "ConvTranspose, depthwise": _transposed(CHANNELS),
    "MatMul with weights, 3-D": _product,
    "attention": _attention,
    "InstanceNormalization": _norm("InstanceNormalization"),
    "Softmax": lambda n: n.op("Softmax", axis=1),
    "LSTM": _lstm,
}


def operator(make) -> onnx.ModelProto:
    net = Between()
    y = make(net)
    inferred = onnx.shape_inference.infer_shapes(net.model((y, 0)))
    channels = inferred.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    return net.model(net.conv((y, channels), 8, 1, relu=False))


def facts(graph: eq.Graph) -> dict:
    """The plan of the default method."""
    found = plan(graph, functions=True)
    handles = {name: graph[name].attrs.get("handle") for name in found.floats}
    reasons = Counter(
        f"{getattr(handles[name], 'op', graph[name].op)}: {why}" for name, why in found.floats.items()
    )
    nodes = sum(node.op != "input" for node in graph)
    return {
        "nodes": nodes, "float": len(found.floats), "macs_m": round(graph.macs / 1e6),
        "macs_in_integers": found.coverage(graph).figure, "why": dict(reasons.most_common()),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--also", nargs="+", default=[], metavar="NAME=ONNX", help="networks of files")
    args = parser.parse_args()
    operators, networks = {}, {}
    for name, make in OPERATORS.items():
        try:
            operators[name] = facts(eq.load_onnx(operator(make)))
            said = "; ".join(operators[name]["why"]) or "integer"
        except EasyQuantError as error:
            operators[name] = {"refused": str(error)}
            said = f"refused: {error}"
        print(f"{name:34} {said}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        files = {n: random_networks.save(n, Path(folder)) for n in random_networks.NETWORKS}
        files |= {n: random_networks.save(n, Path(folder)) for n in random_networks.OF_TODAY}
        files |= dict(word.split("=", 1) for word in args.also)
        for name, file in files.items():
            row = networks[name] = facts(eq.load_onnx(file))
            print(f"{name:20} {row['float']} of {row['nodes']} nodes float, {row['macs_in_integers']} % of "
                  f"{row['macs_m']} M MACs in integers; {row['why']}", flush=True)  # fmt: skip
    if args.json:
        stored = {"machine": machine.describe(), "operators": operators, "networks": networks}
        write_text(args.json, json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
