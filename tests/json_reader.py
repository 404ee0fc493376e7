"""A toy reader, as CONTRIBUTING's walk has it: a model in JSON -> `Graph`, by `network.builder`. No TVM.

``{"inputs": {name: NCHW shape}, "outputs": [name], "nodes": [{"op", "name", "inputs", "output", ...}]}``; the
operators are ONNX's, their attributes and weights (nested lists, OIHW) are fields of the node.
"""

import json
from collections import Counter
from math import inf
from pathlib import Path

import numpy as np

from tvm_easyquant.errors import LoadError
from tvm_easyquant.network.builder import Builder, per_channel
from tvm_easyquant.network.layout import nchw, nhwc


class Reader:
    """One walk over the nodes, which are in topological order."""

    def __init__(self, model: dict):
        read = [name for node in model["nodes"] for name in node["inputs"]]
        labels = {node["output"]: node["name"] for node in model["nodes"]}
        self.builder = Builder(Counter([*read, *model["outputs"]]), lambda value: labels.get(value, ""))
        for name, shape in model["inputs"].items():
            self.builder.input(name, name, nhwc(shape))
        for node in model["nodes"]:
            if node["op"] not in RULES:
                raise LoadError(f"node {node['name']}: no rule for {node['op']}")
            RULES[node["op"]](self.builder, node, *node["inputs"])


def _conv(builder, node, x):
    weight = np.float32(node["weight"]).transpose(2, 3, 1, 0)
    n, h, w, _ = builder.node(x).shape
    pads, strides = node["pads"], node["strides"]
    size = [
        (d + before + after - k) // s + 1
        for d, before, after, k, s in zip(
            (h, w), pads[:2], pads[2:], weight.shape[:2], strides, strict=True
        )
    ]
    attrs = dict(strides=tuple(strides), padding=tuple(pads), dilation=(1, 1), groups=1)
    shape = (n, *size, weight.shape[3])
    builder.add(node["output"], "conv2d", [builder.tensor[x]], shape, attrs, np.ascontiguousarray(weight))


def _scale(builder, node, x):
    """A normalization: ``scale * x + shift``, one of each for a channel."""
    shape = nchw(builder.node(x).shape)
    scale, shift = (per_channel(np.float32(node[key])[:, None, None], shape) for key in ("scale", "shift"))
    if not builder.fold_affine(node["output"], x, scale, shift):
        builder.channels(node["output"], x, scale, shift)


def _relu(builder, node, x):
    builder.clip(node["output"], x, 0.0, inf)


def _add(builder, node, a, b):
    builder.add(node["output"], "add", [builder.tensor[a], builder.tensor[b]], builder.node(a).shape, {})


#: operator -> its rule (builder, node, inputs)
RULES = {"Conv": _conv, "BatchNormalization": _scale, "Relu": _relu, "Add": _add}


def load(path):
    """The `Graph` of a file; LoadError for what it cannot say."""
    path = Path(path)
    try:
        model = json.loads(path.read_text())
        builder = Reader(model).builder
    except (ValueError, KeyError) as error:
        raise LoadError(f"{path.name} is not a model: {error}") from None
    outputs = [builder.tensor[name] for name in model["outputs"]]
    return builder.graph(outputs, path.stem, model["outputs"])
