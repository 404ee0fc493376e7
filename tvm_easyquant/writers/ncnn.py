"""ncnn's calibration table, out and in.

One line for each layer's weights, ``NAME_param_0 S S ...``, and one for its input, ``NAME S``; S is the
*inverse* of our scale: steps per real unit. ncnn is signed and symmetric, -127..127, for weights and
activations alike, has one weight scale for each *group* of a grouped convolution, and computes
everything but convolution and dense layers in float. So:

*Out*: steps are kept where they fit, that is for signed tensors and for 7-bit ones; an unsigned 8-bit
tensor (0..255) gets steps twice as large, and one with a zero point of its own the steps that hold its
farther end. What only add, pool or concat read has no line. A group gets the widest scale of its
channels. ncnn saturates 7-bit tensors at 127, not at 63. Its 3x3 kernels may cut the weights further. It
rounds the model's own weights: corrected biases and gains, and weights that the search rounded up or down,
are not in its form.

*In*: a table in which what ncnn computes in float stays float. Layers without both lines stay float. If
layers that read the same tensor have different scales, the one with the widest range holds for all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from ..files import write_text
from ..network.graph import Graph
from ..scales.numerics import IMPORTED, QuantConfig, Scale
from ..scales.partition import plan
from ..scales.table import ScaleTable, TableError

WEIGHT = "_param_0"
TOP = 127


def dumps(graph: Graph, table: ScaleTable, names: Mapping[str, str] | None = None) -> str:
    """The text of an ncnn calibration table. names: {our layer: ncnn's name of it} where they differ."""
    graph = table.prepared(graph)
    plan_ = table.check(graph)
    if table.config.equalize:
        raise TableError(
            "the table is of equalized weights, which ncnn's model does not have; quantize without equalize"
        )
    if table.factors:
        raise TableError(
            f"{next(iter(table.factors))} has one scale per channel, which ncnn's table has not; "
            "quantize with --symmetric"
        )
    names = names or {}
    layers = [node for node in graph.compute_nodes if node.name in plan_.integer]
    weights, inputs = [], []
    for node in layers:
        name = names.get(node.name, node.name)
        if any(c.isspace() for c in name):
            raise TableError(
                f"layer {name!r}: ncnn's table cannot hold a name with a space; give it another"
            )
        scales = table.rounding_scale(node.name).astype(np.float64)
        if node.groups > 1:
            scales = scales.reshape(node.groups, -1).max(axis=1)
        weights.append(_line(name + WEIGHT, scales))
        scale = table.activations[plan_.site_of[node.inputs[0]]]
        if table.config.how.asymmetric and scale.zero_point not in (0, 64, 128):
            raise TableError(
                f"layer {node.name} reads a tensor with the zero point {scale.zero_point}, and ncnn has "
                "none; quantize with --symmetric"
            )
        inputs.append(_line(name, [_signed_step(scale)]))
    return "\n".join([*weights, *inputs]) + "\n"


def _line(name, scales):
    return " ".join([name, *(f"{1 / float(s):.17g}" for s in scales)])


def _signed_step(scale: Scale) -> float:
    """Our step, or a larger one so that -127..127 of it holds the range."""
    reach = max(scale.hi - scale.zero_point, scale.zero_point - scale.lo)
    return scale.scale if reach <= TOP + 1 else float(np.float32(scale.scale * reach / TOP))


def save(path: str | os.PathLike[str], graph: Graph, table: ScaleTable, names=None) -> None:
    """Write `dumps`'s text atomically."""
    write_text(path, dumps(graph, table, names))


def load(path: str | os.PathLike[str], graph: Graph, names=None) -> ScaleTable:
    """`loads` of a file; TableError if it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"cannot read the ncnn table {path}: {error}") from None
    return loads(text, graph, names, str(path))


def loads(
    text: str, graph: Graph, names: Mapping[str, str] | None = None, source: str = "the ncnn table"
) -> ScaleTable:
    """The `ScaleTable` that computes as an ncnn calibration table says.

    Lines that begin with # are left out, as ncnn does. Raises TableError naming the line or layer.
    """
    lines = _parse(text, source)
    names = names or {}
    theirs = {node.name: names.get(node.name, node.name) for node in graph.compute_nodes}
    known = set(theirs.values())
    unknown = sorted(key for key in lines if key.removesuffix(WEIGHT) not in known)
    if unknown:
        raise TableError(
            f"{source} has lines of {unknown}, which are no layers of the model; its layers are "
            + ", ".join(theirs.values())
        )
    weights, steps = {}, {}
    for node in graph.compute_nodes:
        name = theirs[node.name]
        if name in lines and name + WEIGHT in lines:
            weights[node.name] = _weight_scales(node, lines[name + WEIGHT], source)
            (steps[node.name],) = _inverse(lines[name], name, source)
    if not weights:
        raise TableError(f"{source} has no layer with both its lines, NAME{WEIGHT} and NAME")
    plan_ = _plan(graph, set(weights))
    activations = {}
    for site in plan_.sites.values():
        step = max(steps[reader] for reader in site.readers)
        activations[site.name] = Scale(step, 0, 0, TOP) if site.nonnegative else Scale(step, 128, 1, 255)
    integer = tuple(node.name for node in graph if node.name in plan_.integer)
    config = QuantConfig(bits=8, method=IMPORTED, integer=integer)
    table = ScaleTable(graph.fingerprint, config, activations, weights, data={"imported from": source})
    table.check(graph)
    return table


def _plan(graph: Graph, layers: set[str]):
    """The plan in which every stored tensor is read by one of ``layers``: the others have no scale."""
    floats = {node.name for node in graph.compute_nodes} - layers
    integer = set(plan(graph, sorted(floats)).integer) - set(graph.inputs)
    while True:
        found = plan(graph, integer=integer)
        without = {t for site in found.sites.values() if not site.readers for t in site.tensors}
        drop = {
            name
            for name in integer - layers
            if name in without or any(t in without for t in graph[name].inputs)
        }
        if not drop:
            return found
        integer -= drop


def _parse(text, source):
    lines: dict[str, np.ndarray] = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, *values = line.split() or [""]
        if not name or name.startswith("#"):
            continue
        try:
            numbers = np.array([float(v) for v in values])
        except ValueError as error:
            raise TableError(f"{source}, line {number}: {error}") from None
        if not numbers.size:
            raise TableError(f"{source}, line {number}: {name} has no scale")
        lines[name] = numbers
    return lines


def _inverse(values, name, source):
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise TableError(f"{source}: the scales of {name} must be positive and finite")
    return (1 / values).astype(np.float32)


def _weight_scales(node, values, source):
    groups = node.groups
    if len(values) not in (node.channels, groups):
        raise TableError(
            f"{source}: layer {node.name} has {len(values)} weight scales; it has {node.channels} channels"
            + (f" in {groups} groups" if groups > 1 else "")
        )
    values = np.repeat(values, node.channels // len(values))
    dead = ~node.weight.any(axis=(0, 1, 2))
    return _inverse(np.where(dead & ~(np.isfinite(values) & (values > 0)), 1.0, values), node.name, source)
