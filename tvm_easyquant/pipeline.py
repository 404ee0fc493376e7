"""`quantize`: load -> calibrate -> search -> rewrite, in one call."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from . import calibrate as _calibrate
from . import search as _search
from .graph import Graph
from .numerics import QuantConfig
from .scale_table import ScaleTable
from .sites import Plan, plan

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Quantized:
    """The result of a quantization.

    module: the integer Relay module (``tvm.IRModule``); table: its scales; graph: the float network
    it came from; plan: what runs in integers; seconds: time of each step; warnings: lines about what is
    suspicious.
    """

    module: object
    table: ScaleTable
    graph: Graph
    plan: Plan
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def coverage(self) -> float:
        """Percentage of the multiply-accumulates that run in integers."""
        return self.plan.coverage(self.graph)

    @property
    def layers(self) -> list[dict]:
        """One row per convolution or dense layer: name, op, shape, macs, kind and its figures."""
        rows = []
        for node in self.graph.compute_nodes:
            integer = node.name in self.plan.integer
            rows.append(
                {
                    "layer": node.name,
                    "op": node.op,
                    "weight": tuple(node.weight.shape),
                    "output": tuple(node.shape),
                    "macs": node.macs,
                    "kind": f"int{self.table.config.bits_of(node.name)}" if integer else "float32",
                    **self.table.figures.get(node.name, {}),
                }
            )
        return rows

    def build(self, target=None, *, lower: bool = True):
        """Compile for ``target`` (default: this CPU); returns TVM's library. See `relay_build.build`."""
        from .relay_build import build

        return build(self.module, target, lower=lower)

    def to_onnx(self, path: str | os.PathLike) -> None:
        """Write the network as standard QDQ ONNX, which ONNX Runtime runs. See `onnx_export`.

        Raises ExportError for a float operator that has no translation.
        """
        from .onnx_export import save, to_qdq

        save(path, to_qdq(self.graph, self.table))


def as_graph(model, params=None, **load_options) -> Graph:
    """A `Graph` from a Graph, the path of a model, an onnx.ModelProto, or a Relay module (with params).

    load_options: of `relay_frontend.load_model`; they say nothing to a Relay module, whose shapes are set.
    """
    if isinstance(model, Graph):
        return model
    from .host import tvm
    from .relay_frontend import from_relay, load_model, load_onnx

    if isinstance(model, tvm.IRModule):
        return from_relay(model, params)
    return (load_model if isinstance(model, (str, os.PathLike)) else load_onnx)(model, **load_options)


def quantize(
    model,
    calibration,
    *,
    params=None,
    config: QuantConfig | None = None,
    checkpoint: str | os.PathLike | None = None,
    progress: Progress | None = None,
    input_shapes=None,
    batch: int = 1,
    preprocess=None,
    record: _search.Record | None = None,
    **settings,
) -> Quantized:
    """Quantize a float CNN to an integer Relay module.

    model: the path of a model (ONNX, or what tvmc loads), an ``onnx.ModelProto``, or a Relay module with
    ``params``. calibration: any iterable of inputs (see `calibrate.samples`). settings: fields of
    `QuantConfig` such as ``bits``, ``method`` or ``skip``; or a whole ``config``. checkpoint: a file that
    lets an interrupted search go on. progress(done, total, text) is called as the work proceeds.
    preprocess: the `images.Preprocess` that made the samples, to be kept in the table. record: of
    `search.search`, for curves.

    Raises LoadError, CalibrationError, ConfigError, GraphError or CheckpointError, all ValueErrors
    whose message names the cause and the cure.
    """
    config = replace(config or QuantConfig(), **settings) if settings else config or QuantConfig()
    seconds, clock = {}, time.perf_counter()

    def lap(step):
        nonlocal clock
        now = time.perf_counter()
        seconds[step], clock = now - clock, now

    graph = as_graph(model, params, input_shapes=input_shapes, batch=batch)
    plan_ = plan(graph, config.skip, config.integer)
    config.check_layers(node.name for node in graph.compute_nodes)
    lap("load")
    calibrated = _calibrate.calibrate(graph, plan_, calibration, config, progress=progress)
    lap("calibrate")
    if config.searches:
        table = _search.search(
            graph, plan_, calibrated, config, progress=progress, checkpoint=checkpoint, record=record
        )
    else:
        table = _calibrate.start_table(graph, plan_, calibrated, config)
    table = replace(table, data=_facts(calibrated, preprocess))
    lap("search")
    module = apply(graph, table)
    lap("rewrite")
    warnings = (*_dead_channels(graph, plan_), *filter(None, [calibrated.warning]))
    return Quantized(module, table, graph, plan_, seconds, warnings)


@dataclass(frozen=True)
class Imported(Quantized):
    """A network that was quantized elsewhere, as `import_quantized` takes it over.

    origin: stored tensor -> (name of the integer tensor in the ONNX model, what to add to its numbers to
    get ours). model: the ONNX model itself. inputs, outputs: those that are integers there, with their
    `onnx_quantized.Encoding`; here they are float.
    """

    origin: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    model: object = None
    inputs: Mapping[str, object] = field(default_factory=dict)
    outputs: Mapping[str, object] = field(default_factory=dict)


def import_quantized(model, input_shapes=None, batch: int = 1) -> Imported:
    """Take over a quantized ONNX model (QDQ or QOperator): its scales, its integers, our kernels.

    model: a path or an ``onnx.ModelProto``, as ONNX Runtime, NNCF, Quark or PPQ write it. What it does not
    quantize, or what we do not cover, stays float and is in ``plan.floats`` with the reason.
    input_shapes, batch: see `load_onnx`. Raises LoadError or QuantizedModelError.
    """
    from .relay_frontend import load_quantized
    from .take_over import take_over

    clock = time.perf_counter()
    graph, normal = load_quantized(model, input_shapes, batch)
    taken = take_over(graph, {name: w.scale for name, w in normal.weights.items()}, normal.reasons)
    module = apply(taken.graph, taken.table)
    plan_ = taken.table.check(taken.graph)
    floats = {name: taken.reasons.get(name, why) for name, why in plan_.floats.items()}
    origin = {}
    for tensor, made in taken.origin.items():
        if made in normal.tensors:
            encoding = normal.tensors[made]
            origin[tensor] = (made, encoding.offset)
    seconds = {"import": time.perf_counter() - clock}
    return Imported(
        module, taken.table, taken.graph, replace(plan_, floats=floats), seconds, origin=origin,
        model=normal.source, inputs=normal.inputs, outputs=normal.outputs,
    )  # fmt: skip


def _facts(calibrated, preprocess) -> dict:
    """What a table keeps of its calibration data."""
    facts = {"samples": calibrated.seen, "digest": calibrated.digest}
    if preprocess is not None:
        facts["preprocess"] = json.loads(json.dumps(asdict(preprocess)))  # as a table reads it back
    return facts


def _dead_channels(graph, plan_):
    for node in graph.compute_nodes:
        if node.name in plan_.integer:
            axes = tuple(range(node.weight.ndim - 1)) if node.op == "conv2d" else 1
            dead = np.flatnonzero(~node.weight.any(axis=axes))
            if len(dead):
                shown = ", ".join(map(str, dead[:8])) + (", ..." if len(dead) > 8 else "")
                yield f"{node.name}: {len(dead)} channels have no weight but zero ({shown}); scale 1"


def apply(graph: Graph, table: ScaleTable):
    """The integer Relay module of ``graph`` under ``table``; TableError if they do not fit."""
    from .relay_rewrite import rewrite

    return rewrite(graph, table)
