"""`quantize`: load -> calibrate -> search -> rewrite, in one call."""

from __future__ import annotations

import difflib
import inspect
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from .measure import accuracy as _evaluate
from .measure.accuracy import Evaluation, Metric
from .network.graph import Graph, run
from .samples import labelled
from .samples.images import Preprocess
from .scales.numerics import ConfigError, QuantConfig, Settings
from .scales.partition import Plan
from .scales.table import ScaleTable
from .search import bits as sensitivity
from .search.driver import Record
from .search.find import find

if TYPE_CHECKING:  # type checkers know it; Python 3.10 has no Unpack of its own
    from typing_extensions import Unpack

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Quantized:
    """The result of a quantization.

    module: the integer Relay module (``tvm.IRModule``); table: its scales; graph: the float network
    it came from, equalized if that is a setting; plan: what runs in integers; seconds: time of each step;
    warnings: lines about what is suspicious; decisions: what ``max_drop`` tried and did, in lines; drop:
    the `evaluate.Paired` that it ended at.
    """

    module: object
    table: ScaleTable
    graph: Graph
    plan: Plan
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    decisions: tuple[str, ...] = ()
    drop: object = None

    @property
    def coverage(self) -> float:
        """Percentage of the multiply-accumulates that run in integers; of those that are known, if a float
        operator's are not (``plan.coverage(graph).at_most``)."""
        return self.plan.coverage(self.graph).percent

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
                    "weight": tuple(node.public_weight.shape),
                    "output": tuple(node.shape),
                    "macs": node.macs,
                    "kind": f"int{self.table.config.bits_of(node.name)}" if integer else "float32",
                    **self.table.figures.get(node.name, {}),
                }
            )
        return rows

    def build(self, target=None, *, lower: bool = True):
        """Compile for ``target`` (default: this CPU); returns a `Built`. See `tvm_easyquant.build`."""
        from .relay.build import build

        return build(self.module, target, lower=lower, outputs=self.graph.outputs)

    def to_onnx(self, path: str | os.PathLike) -> None:
        """Write the network as standard QDQ ONNX, which ONNX Runtime runs. See `onnx_export`.

        Raises ExportError for a float operator that has no translation.
        """
        from .writers.qdq import save, to_qdq

        save(path, to_qdq(self.graph, self.table))


def as_graph(model, params=None, **load_options) -> Graph:
    """A `Graph` from a Graph, the path of a model, an onnx.ModelProto, or a Relay module (with params).

    load_options: of `relay_frontend.load_model`; they say nothing to a Relay module, whose shapes are set.
    """
    if isinstance(model, Graph):
        return model
    from .relay.framework import tvm
    from .relay.read import from_relay, load_model, load_onnx

    if isinstance(model, tvm.IRModule):
        return from_relay(model, params)
    return (load_model if isinstance(model, (str, os.PathLike)) else load_onnx)(model, **load_options)


def quantize(
    model,
    calibration,
    *,
    bits: int | Literal["auto"] | Mapping[str, int | Literal["float"]] | None = None,
    method: str | None = None,
    skip: str | Iterable[str] | None = None,
    evaluation: Evaluation | object = None,
    config: QuantConfig | None = None,
    params: Mapping[str, object] | None = None,
    checkpoint: str | os.PathLike | None = None,
    progress: Progress | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int = 1,
    preprocess: Preprocess | None = None,
    record: Record | None = None,
    max_drop: float | None = None,
    metric: Metric | None = None,
    fp32: Callable[[dict], list | Mapping] | None = None,
    target: object = None,
    **settings: Unpack[Settings],
) -> Quantized:
    """Quantize a float CNN to an integer Relay module.

    model: the path of a model (ONNX, or what tvmc loads), an ``onnx.ModelProto``, or a Relay module with
    ``params``. calibration: any iterable of inputs (see `calibrate.samples`). bits, method, skip and
    settings: fields of `QuantConfig`; or a whole ``config``, which they change. checkpoint: a file that
    lets an interrupted search go on. progress(done, total, text) is called as the work proceeds.
    preprocess: the `images.Preprocess` that made the samples, to be kept in the table. record: of
    `driver.search`, for curves.

    evaluation: an `Evaluation`, labelled data and the points of accuracy that the compiled integers may
    lose on it to fp32; layers are then reverted, the worst first, 7 -> 8 -> float, as few as it takes (see
    `bits.meet`). With ``bits="auto"`` each layer gets the kind that makes the network fastest within that
    drop, by the stored costs of the kernels. Or the labelled data alone, beside ``max_drop``, ``metric``
    and ``target``. fp32: the float network as a function of {input: array}, where ``model`` is a Graph that
    is faster run otherwise than in numpy. With a checkpoint all of this goes on after an interruption, too.

    Raises LoadError, CalibrationError, ConfigError, GraphError, EvaluationError, DropError or
    CheckpointError, all ValueErrors whose message names the cause and the cure.
    """
    auto = bits == "auto"
    if auto:
        bits = 7
        sensitivity.solver()
    judged = _evaluation(evaluation, max_drop, metric, target)
    if auto and judged is None:
        raise ConfigError(NEEDS)
    config = _config(config or QuantConfig(), {"bits": bits, "method": method, "skip": skip}, settings)
    clock = time.perf_counter()
    graph = as_graph(model, params, input_shapes=input_shapes, batch=batch)
    loaded = time.perf_counter() - clock
    judge = None
    if judged is not None:
        module = None if isinstance(model, Graph) else _float_module(model, params, input_shapes, batch)
        judge = _Judge(graph, module, fp32, judged, progress)
    found = find(
        graph, calibration, config, checkpoint, progress, record, preprocess,
        max_drop=None if judged is None else judged.max_drop, judge=judge, fastest=auto,
    )  # fmt: skip
    clock = time.perf_counter()
    module = apply(found.graph, found.table)
    seconds = {"load": loaded, **found.seconds, "rewrite": time.perf_counter() - clock}
    decisions, drop = (found.met.lines, found.met.paired) if found.met else ((), None)
    return Quantized(module, found.table, found.graph, found.plan, seconds, found.warnings, decisions, drop)


NEEDS = 'max_drop and bits="auto" need labelled data (evaluation) and a max_drop'


def _evaluation(evaluation, max_drop, metric, target) -> Evaluation | None:
    """The `Evaluation` of `quantize`'s keywords, given whole or one by one."""
    if isinstance(evaluation, Evaluation):
        given = dict(max_drop=max_drop, metric=metric, target=target)
        if more := [name for name, value in given.items() if value is not None]:
            raise ConfigError(f"the Evaluation says {', '.join(more)}; give it there only")
        return evaluation
    if (max_drop is None) != (evaluation is None):
        raise ConfigError(NEEDS)
    if max_drop is None:
        return None
    return Evaluation(data=evaluation, max_drop=max_drop, metric=metric, target=target)


def _config(
    config: QuantConfig, common: Mapping[str, object], settings: Mapping[str, object]
) -> QuantConfig:
    """``config`` with what `quantize` was called with; None of ``common`` is not given."""
    known = [field_.name for field_ in fields(QuantConfig)]
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *inspect.signature(quantize).parameters], 1)
            hint = f"; did you mean {near[0]}?" if near else f"; the settings are {', '.join(known)}"
            raise TypeError(f"quantize() takes no {name}{hint}")
    given = {name: value for name, value in common.items() if value is not None} | dict(settings)
    return replace(config, **given) if given else config  # type: ignore[arg-type]


class _Judge:
    """Measures tables against fp32 on labelled data, compiled for a target."""

    def __init__(self, graph, module, fp32, evaluation: Evaluation, progress):
        from .relay.build import cpu_target

        self.graph, self.target, self.progress = graph, cpu_target(evaluation.target), progress
        self.data, metric = labelled.load(evaluation.data), evaluation.metric
        self.metrics = {"top1": _evaluate.top(1) if metric is None else metric}
        self.batch = next(iter(graph)).shape[0]
        self.fp32 = fp32 or self._float(module)
        names = [getattr(metric, name, None) for name in ("__module__", "__qualname__")]
        self.identity = [self.data.name, len(self.data), *names, str(self.target)]
        self._reference: np.ndarray | None = None

    def _float(self, module):
        if module is None:
            return lambda feed: run(self.graph, feed)
        from .relay.build import build_float

        return build_float(module, self.target)

    def _scores(self, network, what):
        found = _evaluate.evaluate(
            network, self.data, inputs=self.graph.inputs, metrics=self.metrics, batch=self.batch,
            progress=self.progress, what=what,
        )  # fmt: skip
        return found["top1"]

    def paired(self, table) -> _evaluate.Paired:
        from .relay.build import build

        if self._reference is None:
            self._reference = self._scores(self.fp32, "float32")
        scores = self._scores(build(apply(table.prepared(self.graph), table), self.target), "integers")
        return _evaluate.compare(scores, self._reference)

    def times(self, table) -> dict[str, float]:
        from .relay.tune import layer_times

        return layer_times(apply(table.prepared(self.graph), table), self.target)


def _float_module(model, params, input_shapes, batch):
    """The float Relay module of what `quantize` takes."""
    from .relay.framework import relay, tvm
    from .relay.read import import_model, import_onnx

    if isinstance(model, tvm.IRModule):
        if params:
            bound = relay.build_module.bind_params_by_name(model["main"], params)
            return tvm.IRModule.from_expr(bound)
        return model
    make = import_model if isinstance(model, (str, os.PathLike)) else import_onnx
    return make(model, input_shapes=input_shapes, batch=batch)


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
    from .readers.take_over import take_over
    from .relay.read import load_quantized

    clock = time.perf_counter()
    graph, normal = load_quantized(model, input_shapes, batch)
    scales = {name: w.scale for name, w in normal.weights.items()}
    reach = {name: w.reach for name, w in normal.weights.items()}
    taken = take_over(graph, scales, normal.reasons, reach)
    module = apply(taken.graph, taken.table)
    plan_ = taken.table.check(taken.graph)
    floats = {}
    for name, why in plan_.floats.items():
        rounded = normal.rounds(name)
        if rounded is None:
            floats[name] = taken.reasons.get(name, why)
        else:  # one line for all the operators that round it
            floats[rounded] = f"{normal.rounded[rounded]} and is rounded in float"
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


def apply(graph: Graph, table: ScaleTable):
    """The integer Relay module of ``graph`` under ``table``; TableError if they do not fit."""
    from .relay.rewrite import rewrite

    return rewrite(graph, table)
