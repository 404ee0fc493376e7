"""Operators in pieces: functions of one number that are no single function of `expression`, as
`Builder.chain` takes them; a layer normalization, where a host or a file has no such operator.

An operand is "x", the input; "#0", what the first step made; or a number. ``a`` are ONNX's attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

import numpy as np

from .tensors import Tensors

Steps = list[tuple]


def hard_sigmoid(a: Mapping) -> Steps:
    return [("multiply", "x", a["alpha"]), ("add", "#0", a["beta"]), ("clip", "#1", 0.0, 1.0)]


def hard_swish(a: Mapping) -> Steps:
    return [*hard_sigmoid({"alpha": float(np.float32(1 / 6)), "beta": 0.5}), ("multiply", "x", "#2")]


def softplus(a: Mapping) -> Steps:
    return [("exp", "x"), ("add", "#0", 1.0), ("log", "#1")]


def softsign(a: Mapping) -> Steps:
    return [("abs", "x"), ("add", 1.0, "#0"), ("divide", "x", "#1")]


def elu(a: Mapping) -> Steps:
    return [
        ("exp", "x"), ("subtract", 1.0, "#0"), ("clip", "#1", 0.0, inf), ("multiply", -a["alpha"], "#2"),
        ("clip", "x", 0.0, inf), ("add", "#3", "#4"),
    ]  # fmt: skip


def selu(a: Mapping) -> Steps:
    return [*elu(a), ("multiply", a["gamma"], "#5")]


def celu(a: Mapping) -> Steps:
    return [
        ("maximum", 0.0, "x"), ("divide", "x", a["alpha"]), ("exp", "#1"), ("subtract", "#2", 1.0),
        ("multiply", a["alpha"], "#3"), ("minimum", 0.0, "#4"), ("add", "#0", "#5"),
    ]  # fmt: skip


def mish(a: Mapping) -> Steps:
    return [("exp", "x"), ("add", 1.0, "#0"), ("log", "#1"), ("tanh", "#2"), ("multiply", "x", "#3")]


def gelu(a: Mapping) -> Steps:
    if a.get("approximate", "none") == "tanh":
        return [
            ("power", "x", 3.0), ("multiply", "#0", 0.044715), ("add", "x", "#1"),
            ("multiply", "#2", float(np.sqrt(2 / np.pi))), ("tanh", "#3"), ("add", 1.0, "#4"),
            ("multiply", "x", 0.5), ("multiply", "#6", "#5"),
        ]  # fmt: skip
    return [
        ("multiply", 0.5, "x"), ("divide", "x", float(np.float32(np.sqrt(2)))), ("erf", "#1"),
        ("add", 1.0, "#2"), ("multiply", "#0", "#3"),
    ]  # fmt: skip


def layer_norm(t: Tensors, x: Any, a: Mapping) -> Any:
    """Over axis 1 of a tensor of the model's layout. a: the attributes of the operator of `ops`."""
    count = t.constant(np.asarray(x.shape[1], np.float32))
    mean = t.binary("divide", t.reduce("sum", x, [1]), count)
    centred = t.binary("subtract", x, mean)
    variance = t.binary("divide", t.reduce("sum", t.binary("multiply", centred, centred), [1]), count)
    root = t.unary("sqrt", t.binary("add", variance, t.constant(np.asarray(a["epsilon"], np.float32))))
    vectors = (np.asarray(a[key], np.float32) for key in ("scale", "shift"))
    scale, shift = (t.constant(v.reshape(-1, *[1] * (len(x.shape) - 2))) for v in vectors)
    return t.binary("add", t.binary("multiply", t.binary("divide", centred, root), scale), shift)
