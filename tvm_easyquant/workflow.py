"""`quantize`: load -> calibrate -> search, in one call; a host compiles what comes of it."""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np

from topi_ext import isa as rows

from . import deployment
from .errors import LoadError, TVMMissing, one_line
from .files import writable, write_text
from .fleet import Shapes, joined
from .host import Built, Host, Late, installed, named
from .measure import accuracy as _evaluate
from .measure import networks, notebook
from .measure.accuracy import Evaluation, Metric, Paired, PairedSet
from .measure.networks import Evaluated
from .measure.race import Benchmark
from .network.graph import Graph
from .network.node import model_shape
from .network.shapes import input_shapes as input_shapes_of
from .network.shapes import inputs_of, told
from .readers import onnx_float, torch_model
from .readers.onnx_file import check_batch
from .readers.self_check import HostCheck, SelfCheck
from .samples import sources
from .samples.images import Preprocess
from .scales.image_input import image_input
from .scales.integer import check_ranges, run_integer
from .scales.numerics import BITS, ConfigError, QuantConfig, Settings
from .scales.partition import Plan
from .scales.table import BY_CLASS, ScaleTable, ScaleTables
from .search import bits as sensitivity
from .search.curves import Curves
from .search.driver import Record
from .search.find import Found, find

if TYPE_CHECKING:  # type checkers know it; Python 3.10 has no Unpack of its own
    from typing_extensions import Unpack

LOG = logging.getLogger("tvm_easyquant")
Progress = Callable[[int, int, str], None]
#: called with the first sample; returns a line to be told, or nothing; raises LoadError
Check = Callable[[Mapping[str, np.ndarray]], "str | None"]
#: {input: its shape (NCHW)}
InputShapes = Mapping[str, Sequence[int]]
#: called with the shape of every input; returns the model read anew at these; raises LoadError
Reopen = Callable[[InputShapes], Graph]


#: layers that a notebook shows of a network, those with the least signal to noise
SHOWN = 5


def _check_counts(**counts: int | None) -> None:
    """ConfigError for an option that is no number of anything."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ConfigError(f"{name} is {count}; use 1 or more")


def _warn(lines: Iterable[str]) -> None:
    for line in lines:
        LOG.warning(line)


class _Layer(TypedDict):
    layer: str
    op: str
    weight: tuple[int, ...]
    output: tuple[int, ...]
    macs: int | None
    kind: str


class Layer(_Layer, total=False):
    """A row of `Quantized.layers`. weight, output: shapes; macs: multiply-accumulates, None if unknown;
    kind: "int7", "int8" or "float32"; cosine, sqnr_db: of an integer layer's output on calibration data,
    where they are known."""

    cosine: float
    sqnr_db: float


@dataclass(frozen=True)
class Quantized:
    """The result of a quantization.

    table: its scales; graph: the float network it came from, equalized if that is a setting; plan: what
    runs in integers; seconds: time of each step; warnings: lines about what is suspicious; decisions: what
    ``max_drop`` tried and did, in lines; drop: the `evaluate.Paired` (by a metric of the whole set, the
    `evaluate.PairedSet`) that it ended at; notes: what of the calibration data was read, in lines; host:
    what makes ``module`` and builds it (None: the one that is installed); sample: the first of the
    calibration; reopen: reads the model at other input shapes; others: the same at other bits, where
    ``quantize`` was asked for several.
    """

    table: ScaleTable
    graph: Graph
    plan: Plan
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    decisions: tuple[str, ...] = ()
    drop: Paired | PairedSet | None = None
    notes: tuple[str, ...] = ()
    host: Host | None = field(default=None, repr=False, compare=False)
    sample: Mapping[str, np.ndarray] | None = field(default=None, repr=False, compare=False)
    reopen: Reopen | None = field(default=None, repr=False, compare=False)
    others: Mapping[int, Quantized] = field(default_factory=dict, repr=False, compare=False)

    def __repr__(self) -> str:
        done = sum(node.name in self.plan.integer for node in self.graph.compute_nodes)
        layers = f"{done} of {len(self.graph.compute_nodes)} layers in integers"
        warned = f", {len(self.warnings)} warnings" if self.warnings else ""
        return (
            f"<{type(self).__name__} {self.graph.name!r}: {layers}, {self.plan.coverage(self.graph)}, "
            f"{self.table.config.method}{warned}>"
        )

    @property
    def tables(self) -> ScaleTables:
        """Its table and those of ``others``; ``tables.save`` writes the file of ``quantize --bits 7,8``."""
        others = {bits: q.table for bits, q in self.others.items()}
        return ScaleTables({self.table.config.bits: self.table} | others)

    def for_bits(self, bits: int) -> Quantized:
        """The same network at these bits alone. Raises TableError where it was not quantized so."""
        self.tables.for_bits(bits)
        return self.others.get(bits) or replace(self, others={})

    @functools.cached_property
    def module(self) -> Any:
        """The integer module of the host (``tvm.IRModule``), made when it is first asked for.

        Raises TVMMissing, which says what to install, where there is no host.
        """
        return (self.host or installed()).rewrite(self.graph, self.table, sample=self.sample)

    @property
    def coverage(self) -> float:
        """Percentage of the multiply-accumulates that run in integers; of those that are known, if a float
        operator's are not (``plan.coverage(graph).at_most``)."""
        return self.plan.coverage(self.graph).percent

    @property
    def layers(self) -> list[Layer]:
        """One row per convolution or dense layer: name, op, shape, macs, kind and its figures."""
        rows: list[Layer] = []
        for node in self.graph.compute_nodes:
            integer = node.name in self.plan.integer
            row: Layer = {
                "layer": node.name,
                "op": node.op,
                "weight": tuple(node.public_weight.shape),
                "output": tuple(node.shape),
                "macs": node.macs,
                "kind": f"int{self.table.config.bits_of(node.name)}" if integer else "float32",
            }
            row.update(self.table.figures.get(node.name, {}))  # type: ignore[typeddict-item]  # by name
            rows.append(row)
        return rows

    def run(self, feed: Mapping[str, np.ndarray] | np.ndarray) -> dict[str, np.ndarray]:
        """The integer network in numpy, without a compiler: {output, as the model calls it: array}, equal
        bit for bit to what `build` makes; of what stays float (a last sigmoid, say) to rounding.

        feed: {input: array}, or the array of the only input, as of `Graph.run`. Raises GraphError for a
        feed that is not the model's.
        """
        values = run_integer(self.graph, self.table, feed)
        names = zip(self.graph.output_names, self.graph.outputs, strict=True)
        return {name: values[node] for name, node in names}

    def build(
        self,
        target: object = None,
        *,
        lower: bool = True,
        isa: str | Sequence[str] | None = None,
        input_layout: str | None = None,
        input_dtype: str | None = None,
        input_shapes: InputShapes | Sequence[InputShapes] | None = None,
        bits: int | Literal["by-class"] | None = None,
    ) -> Built:
        """Compile for ``target`` (default: this CPU), or for rows of `topi_ext.isa`; see `Host.build`.

        isa: names, as a list or with commas, instead of a target: ``q.build(isa=["avx2", "generic"])``
        exports one package with a variant for each, and runs as the best of them that this CPU runs.

        input_dtype: "uint8" makes the image an array of bytes, resized and cropped, in the order RGB: the
        table's preprocessing and the first quantize become a look-up, equal bit for bit to preprocessing in
        numpy. input_layout: "NHWC" or "NCHW" of that array, by default the model's own. Raises ConfigError,
        TableError or GraphError where the network has no such input, or its table no preprocessing.

        input_shapes: {input: NCHW shape}, or a list of them, for a network that takes images of several
        sizes, all under this table: ``q.build(input_shapes=[{"x": (1, 3, 48, 320)}, {"x": (1, 3, 48,
        640)}])`` runs, and exports one package that runs, the one whose shape the array has. Raises
        LoadError for a shape that the model does not take, TableError for one that makes another network
        of it.

        bits: of a network that was quantized at several, those to compile (by default the fewest);
        "by-class" takes 8 for an instruction set that has dot products of bytes, else 7, so that answers
        differ between classes of CPUs. Raises TableError where they were not found.
        """
        host = self.host or installed()
        if isa is not None:
            if target is not None:
                raise ConfigError("target and isa both say for which CPU; give one of them")
            target = [row.name for row in rows.named(isa)]
        if bits is not None:
            return self._at_bits(
                bits, host, target, lower=lower, input_layout=input_layout, input_dtype=input_dtype,
                input_shapes=input_shapes,
            )  # fmt: skip
        made = []
        for graph in self._at(input_shapes):
            image = image_input(graph, self.table, input_layout, input_dtype)
            module = self.module if graph is self.graph and image is None else None
            if module is None:
                sample = self.sample if graph is self.graph else None
                module = host.rewrite(graph, self.table, sample=sample, image=image)
            made.append(host.build(module, target, lower=lower, outputs=graph.outputs))
        return made[0] if len(made) == 1 else Shapes(made)  # type: ignore[return-value]  # has what it has

    def _at_bits(self, bits: int | str, host: Host, target: Any, **options: Any) -> Built:
        """`build` at these bits, or at those of each class of CPUs; target: rows, or a target."""
        several = isinstance(target, list)
        if bits != BY_CLASS:
            if bits not in BITS:
                raise ConfigError(f"bits is {bits!r}; use 7, 8 or {BY_CLASS!r}")
            one = self.for_bits(int(bits))
            return one.build(None if several else target, isa=target if several else None, **options)
        if not several:
            bits = self.tables.for_class(host.row(host.target(target))).config.bits
            return self.for_bits(bits).build(target, **options)
        of_bits: dict[int, list[str]] = {}
        for row in target:
            of_bits.setdefault(self.tables.for_class(row).config.bits, []).append(row)
        made = [self.for_bits(each).build(isa=names, **options) for each, names in of_bits.items()]
        return joined(made, target)

    def _at(self, asked: InputShapes | Sequence[InputShapes] | None) -> list[Graph]:
        """The graph at each of the input shapes that are asked for."""
        if asked is None:
            return [self.graph]
        several = [asked] if isinstance(asked, Mapping) else asked
        listed = isinstance(several, (list, tuple)) and several
        if not listed or not all(isinstance(each, Mapping) for each in several):
            raise ConfigError("input_shapes is {input: shape}, or a list of such; give one or more")
        own = input_shapes_of(self.graph)
        graphs: list[Graph] = []
        for each in several:
            if self.reopen is None and any(own.get(n) != _as_shape(shape) for n, shape in each.items()):
                raise ConfigError(
                    f"this network was no model's file: it takes {told(own)} only; quantize the path of a "
                    "model, which is read again at other shapes"
                )
            read = self.graph if self.reopen is None else self.reopen({**own, **each})
            graph = self.table.at_shapes(self.graph, read)
            graphs.append(self.graph if input_shapes_of(graph) == own else graph)
        shapes = [told(input_shapes_of(graph)) for graph in graphs]
        if len(set(shapes)) < len(shapes):
            raise ConfigError(f"input_shapes has {max(shapes, key=shapes.count)} twice; give each once")
        return graphs

    def deploy(
        self,
        folder: str | os.PathLike[str],
        target: object = None,
        *,
        isa: str | Sequence[str] | None = None,
        input_layout: str | None = None,
        input_dtype: str | None = None,
        input_shapes: InputShapes | Sequence[InputShapes] | None = None,
        runtime: str | os.PathLike[str] | None = None,
        compiler: str | None = None,
        bits: int | Literal["by-class"] | None = None,
    ) -> dict[str, int]:
        """Lay out a folder with the compiled network and all that runs it, as ``tvmc-easyquant deploy``; or
        write a package, as ``compile`` does, where the name ends in ``.tar``. Returns {what: its bytes}.

        target, isa, input_layout, input_dtype, input_shapes, bits: as of `build`; compiler: what links for
        another machine; runtime: of a folder, a ``libtvm_runtime.so`` for that machine, see
        `deployment.deploy`. Raises DeployError and WriteError.
        """
        alone = os.fspath(folder).endswith(".tar")
        if alone and runtime is not None:
            raise ConfigError(f"{folder} is a package, which holds no runtime; name a folder for that")
        if alone:
            writable(folder)
        built = self.build(
            target, isa=isa, input_layout=input_layout, input_dtype=input_dtype, input_shapes=input_shapes,
            bits=bits,
        )  # fmt: skip
        if alone:
            built.export(folder, compiler)
            return {Path(folder).name: Path(folder).stat().st_size}
        with tempfile.TemporaryDirectory() as scratch:
            package = Path(scratch) / "network.tar"
            built.export(package, compiler)
            return deployment.deploy(package, folder, runtime)

    def evaluate(
        self,
        data: object,
        *,
        metric: str | Metric | Mapping[str, Metric] | None = None,
        limit: int | None = None,
        target: object = None,
        batch: int | None = None,
        preprocess: Preprocess | None = None,
        progress: Progress | None = None,
    ) -> Evaluated:
        """Accuracy, as ``tvmc-easyquant evaluate``: integers against float32 on the same labelled samples.

        data: a loader or any iterable of (inputs, labels), one sample or a batch each, or a name: of an
        .npz, a folder with one folder of pictures a class, ``module:function`` (see `labelled.load`);
        pictures are made inputs by ``preprocess``, else as in the calibration. metric: None for top-1 and
        top-5, or function(outputs of a sample, label) -> 0.0 to 1.0, one of the whole set,
        ``module:function``, or {name: metric}. limit: the first so many samples. batch: how many the
        network takes at once (its first dimension). Both are compiled for ``target`` (this CPU); without a
        TVM they run in numpy.

        Returns {metric: `evaluate.Paired`, in points, or `evaluate.PairedSet`, in the metric's own unit}.
        Raises EvaluationError, SourceError, ImageError, ConfigError, TargetError.
        """
        _check_counts(limit=limit, batch=batch)
        warned: list[str] = []
        with self._lent() as host:
            chosen, how = networks.target_of(host, target), preprocess or self.table.preprocess
            metrics = networks.metrics_of(metric)
            if batch is None:
                batch = next(iter(self.graph)).shape[0]
            found = sources.labelled(data, how).singly(inputs_of(self.graph), batch)
            others = networks.other_settings(data, how) if isinstance(data, (str, os.PathLike)) else ()
            found = found if limit is None else found.first(limit)
            _evaluate.check_first(found, inputs_of(self.graph))
            if chosen is None:
                warned.append(networks.IN_NUMPY)
                both = networks.in_numpy(self.graph, self.table)
            else:
                both = networks.built(host, self.graph, self.table, chosen)
            scores = networks.judge(
                (found, metrics), both, self.graph, batch=batch, warn=warned.extend, progress=progress,
                others=others,
            )  # fmt: skip
        return Evaluated(found.name, scores, tuple(warned))

    def benchmark(
        self,
        *,
        threads: int = 1,
        rounds: int = 15,
        target: object = None,
        tuning_records: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> Benchmark:
        """Time the integers and TVM's float32 in turn on this machine, whole and layer by layer, as
        ``tvmc-easyquant benchmark``: milliseconds, medians over ``rounds``.

        tuning_records: a log by which kernels are chosen. Raises TVMMissing, TargetError, TuneError,
        ConfigError.
        """
        _check_counts(threads=threads, rounds=rounds)
        with self._lent() as host:
            chosen = host.target(target)
            host.check_cpu(chosen)
            with host.history(tuning_records, chosen):
                both = networks.built(host, self.graph, self.table, chosen)
                return networks.timing(
                    host, self.graph, self.table, both, threads=threads, rounds=rounds, progress=progress
                )

    def report(
        self,
        path: str | os.PathLike[str] = "report.html",
        data: object = None,
        *,
        calibration: object = None,
        samples: int = 16,
        record: str | os.PathLike[str] | None = None,
        metric: str | Metric | Mapping[str, Metric] | None = None,
        limit: int | None = None,
        benchmark: bool = True,
        threads: int = 1,
        rounds: int = 15,
        target: object = None,
        tuning_records: str | os.PathLike[str] | None = None,
        batch: int | None = None,
        preprocess: Preprocess | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Write one HTML page on every layer, as ``tvmc-easyquant report``; returns its facts.

        data, metric, limit, batch, preprocess: as of `evaluate`, for the accuracy. calibration: as of
        `quantize`, of which so many ``samples`` make the histograms of activations. record: the file of
        ``quantize --record``, for the curves of the search. benchmark, threads, rounds, target,
        tuning_records: as of `benchmark`. Raises WriteError before any work, what these two raise,
        CalibrationError, CurvesError, and ImportError without the extra ``report``.
        """
        from .measure import report

        _check_counts(samples=samples, limit=limit, batch=batch, threads=threads, rounds=rounds)
        writable(path)
        report.check_packages()
        how, judged = preprocess or self.table.preprocess, None
        if batch is None:
            batch = next(iter(self.graph)).shape[0]
        if isinstance(calibration, (str, os.PathLike)):
            calibration = sources.calibration(os.fspath(calibration), how, "calibration")(self.graph.inputs)
        if data is not None:
            found = sources.labelled(data, how).singly(inputs_of(self.graph), batch)
            judged = found if limit is None else found.first(limit), networks.metrics_of(metric)
            _evaluate.check_first(judged[0], inputs_of(self.graph))
        curves = None if record is None else Curves.load(record)
        with self._lent() as host:
            chosen = host.target(target)
            host.check_cpu(chosen)
            with host.history(tuning_records, chosen):
                facts = networks.facts(
                    host, self.graph, self.table, chosen, source=calibration, samples=samples,
                    judged=judged, batch=batch, timed=benchmark, threads=threads, rounds=rounds,
                    warn=_warn, progress=progress, curves=curves,
                )  # fmt: skip
        write_text(path, report.render(facts))
        return facts

    @contextlib.contextmanager
    def _lent(self) -> Iterator[Any]:
        """Its host, or the installed one, which is looked for when it is first asked for something."""
        with contextlib.ExitStack() as stack:
            yield self.host or Late(stack)

    def _repr_html_(self) -> str:
        config, data = self.table.config, self.table.data
        done = sum(node.name in self.plan.integer for node in self.graph.compute_nodes)
        rows: list[tuple[str, object]] = [
            (
                "layers in integers",
                f"{done} of {len(self.graph.compute_nodes)}, {self.plan.coverage(self.graph)}",
            ),
            ("method", f"{config.method}, {config.bits} bits"),
            ("calibration", f"{data.get('samples', 'unknown')} samples"),
        ]
        noise = [(f["sqnr_db"], name) for name, f in self.table.figures.items() if "sqnr_db" in f]
        rows += [(f"layer {name}", f"signal to noise {db:.1f} dB") for db, name in sorted(noise)[:SHOWN]]
        return notebook.table(self.graph.name, ("", "quantized"), rows, self.warnings)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one file with all that `load` needs: the graph, the table with its bits, what was said.

        No pictures of the calibration are in it, and no code. It is written whole or not at all. Raises
        WriteError, ExportError where a float operator is a host's own (of a model that was no ONNX), and
        ConfigError for a network at several bits, of which a file holds one.
        """
        from .writers import saved

        if self.others:
            raise ConfigError(
                f"{os.fspath(path)} would hold one table of {1 + len(self.others)}: save q.for_bits(8), or "
                "all tables, without the graph, with q.tables.save(path)"
            )
        said = {
            "floats": self.plan.floats, "seconds": self.seconds, "warnings": self.warnings,
            "decisions": self.decisions, "notes": self.notes,
            "drop": None if self.drop is None else asdict(self.drop),
        }  # fmt: skip
        saved.write(path, self.graph, self.table, said)

    @staticmethod
    def load(path: str | os.PathLike[str], *, host: Host | str | None = None) -> Quantized:
        """What `save` wrote: it runs, is built, measured and deployed as before, at its own input shapes.

        host: what compiles, as of `quantize`. Raises LoadError for a file that is missing, damaged, of a
        newer release, or none of these.
        """
        from .writers import saved

        graph, table, said = saved.read(path)
        try:
            plan = replace(table.check(graph), floats=dict(said["floats"]))
            lines = [tuple(map(str, said[name])) for name in ("warnings", "decisions", "notes")]
            drop = None if said["drop"] is None else _evaluate.compared(said["drop"])
            seconds = {str(name): float(value) for name, value in said["seconds"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LoadError(f"{path} is damaged: {one_line(error)}") from None
        warnings, decisions, notes = lines
        return Quantized(table, graph, plan, seconds, warnings, decisions, drop, notes, named(host))

    def to_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write the network as standard QDQ ONNX, which ONNX Runtime runs. See `writers.qdq`.

        Raises ExportError for a float operator that has no translation.
        """
        from .writers.qdq import save, to_qdq

        save(path, to_qdq(self.graph, self.table))


@dataclass(frozen=True)
class Opened:
    """A model as `load` reads it. check: what compares the graph with the model on a sample, see
    `readers.self_check`; None where nobody can."""

    graph: Graph
    check: Check | None = None


def open_model(
    model: Any,
    params: Any = None,
    *,
    host: Host | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int | None = None,
    model_format: str | None = None,
    outputs: Sequence[str] | None = None,
) -> Opened:
    """A Graph, the path of a model, an ``onnx.ModelProto``, torch's network, or the host's module (with
    params), opened.

    The other arguments are those of `load`; a Graph or a module, whose shapes are set, must have the batch.
    Raises LoadError.
    """
    if isinstance(model, Graph):
        return Opened(_of_batch(model, batch))
    model = _of_torch(model, model_format, host)
    if _is_onnx(model, model_format):
        graph = onnx_float.load(model, input_shapes, batch, outputs)
        return Opened(graph, SelfCheck(model, graph, input_shapes, batch, outputs))
    if torch_model.is_torch(model):
        made = torch_model.to_onnx(model, input_shapes, batch)
        graph = onnx_float.load(made, None, batch, outputs)
        if outputs is not None:
            return Opened(graph, SelfCheck(made, graph, None, batch, outputs))
        return Opened(graph, HostCheck(graph, functools.partial(torch_model.original, model)))
    if outputs is not None:
        raise LoadError("outputs cuts ONNX models; export the model to ONNX")
    host = host or installed()
    if host.is_module(model):
        return Opened(_of_batch(host.read(model, params), batch))
    if not isinstance(model, (str, os.PathLike)):
        raise LoadError(
            f"the model is a {type(model).__name__}; give its path, or an onnx.ModelProto "
            "(onnx.load_from_string makes one of bytes)"
        )
    options: dict = dict(model_format=model_format, input_shapes=input_shapes, batch=batch)
    graph = _of_batch(host.load(model, **options), batch)
    return Opened(graph, HostCheck(graph, functools.partial(host.original, model, **options)))


def _of_torch(model, model_format: str | None, host: Host | None) -> Any:
    """The network of torch's in a file of its; anything else as it is."""

    def host_reads() -> bool:
        try:
            return "pytorch" in (host or installed()).formats()
        except TVMMissing:
            return False

    return torch_model.opened(model, model_format, host_reads)


def _of_batch(graph: Graph, batch: int | None) -> Graph:
    """The graph, whose shapes are set; LoadError if they are of another batch."""
    check_batch(batch, {name: model_shape(graph[name]) for name in graph.inputs}, graph.name)
    return graph


def load(
    model: Any,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int | None = None,
    model_format: str | None = None,
    *,
    outputs: Sequence[str] | None = None,
) -> Graph:
    """A float model as a `Graph`: its path (ONNX, or what an installed host loads), an ``onnx.ModelProto``,
    or a ``torch.nn.Module`` or ``ExportedProgram``, or the file of one: TorchScript, or what
    ``torch.export.save`` wrote (see `readers.torch_model`).

    input_shapes: {input name: NCHW shape} for inputs whose file leaves a dimension open, and for those of a
    ``torch.nn.Module``. batch: the size of
    an open first dimension (None: 1); a model that fixes another is refused. model_format: onnx, tflite,
    pytorch, ...; by default what the file's ending says. outputs: names of tensors (or nodes) at which an
    ONNX model is cut. ``Graph.run`` runs it in numpy. Raises LoadError, and TVMMissing for a format that
    needs a host where there is none.
    """
    return open_model(
        model, input_shapes=input_shapes, batch=batch, model_format=model_format, outputs=outputs
    ).graph


load_onnx = load
#: endings of model files that only a host loads
OTHER_FORMATS = (
    ".tflite",
    *torch_model.ENDINGS,
    ".zip",
    ".h5",
    ".hdf5",
    ".keras",
    ".pb",
    ".pdmodel",
    ".relay",
    ".json",
)


def _is_onnx(model, model_format: str | None) -> bool:
    if model_format is not None or not isinstance(model, (str, os.PathLike)):
        return model_format == "onnx" or type(model).__name__ == "ModelProto"
    return not os.fspath(model).lower().endswith(OTHER_FORMATS)


def quantize(
    model: Any,
    calibration: Any,
    *,
    bits: int | Literal["auto"] | Sequence[int] | Mapping[str, int | Literal["float"]] | None = None,
    method: str | None = None,
    skip: str | Iterable[str] | None = None,
    evaluation: Evaluation | object = None,
    config: QuantConfig | None = None,
    params: Mapping[str, object] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int | None = None,
    preprocess: Preprocess | None = None,
    record: Record | None = None,
    max_drop: float | None = None,
    metric: Metric | None = None,
    fp32: Callable[[dict[str, np.ndarray]], list[Any] | Mapping[str, Any]] | None = None,
    target: object = None,
    host: Host | str | None = None,
    model_format: str | None = None,
    outputs: Sequence[str] | None = None,
    check: bool | Check = True,
    calibration_limit: int | None = sources.CALIBRATION_LIMIT,
    seed: int = 0,
    **settings: Unpack[Settings],
) -> Quantized:
    """Quantize a float CNN to integers.

    >>> import tvm_easyquant as eq
    >>> images = eq.demo.images()["calibration_images"][:8]
    >>> q = eq.quantize(eq.demo.network_path(), images, bits=7, method="minmax")
    >>> q
    <Quantized 'fashion_cnn': 10 of 10 layers in integers, 100.0 % of the multiply-accumulates, minmax>
    >>> q.run(images[:1])["logits"].shape
    (1, 10)

    Then `Quantized.build` compiles it, `Quantized.evaluate` says what it costs in accuracy, and
    `Quantized.save` keeps it.

    model: the path of a model (ONNX, or what tvmc loads), an ``onnx.ModelProto``, a ``torch.nn.Module`` or
    ``ExportedProgram``, a module of the host's with ``params``, or a `Graph`. calibration: any iterable of
    inputs (see `calibrate.samples`), such as torch's DataLoader, or the name of a file, folder or function
    as `samples.sources.calibration` takes it. Of data that are no arrays not more than
    ``calibration_limit`` samples are read (None: all), of a folder's pictures so many, spread evenly over
    its folders and names, from ``seed``; all of them give the ranges, ``search_images`` the search.

    method: ``easyquant_layerwise`` (the default, which measured best at 7 bits), ``easyquant`` (the paper),
    ``easyquant_unsigned``, ``easyquant_mse``; and without a search ``minmax``, ``percentile``, ``kl``,
    ``mse``. bits: 7, 8, {layer: 7, 8 or "float"}, or "auto". bits, method, skip and settings are fields of
    `QuantConfig`; or a whole ``config``, which they change. ``bits=(7, 8)`` finds the tables of two calls
    from one calibration: what is returned is at 7 bits, and has ``for_bits(8)`` and ``tables``.
    checkpoint: a file that lets an interrupted search go on. progress(done, total, text) is called as the
    work proceeds. preprocess: the `images.Preprocess` that made the samples, to be kept in the table.
    record: of `driver.search`, for curves.

    evaluation: an `Evaluation`, labelled data and the points of accuracy that the compiled integers may
    lose on it to fp32; layers are then reverted, the worst first, 7 -> 8 -> float, as few as it takes (see
    `bits.meet`). With ``bits="auto"`` each layer gets the kind that makes the network fastest within that
    drop, by the stored costs of the kernels. Or the labelled data alone, beside ``max_drop``, ``metric``
    and ``target``. fp32: the float network as a function of {input: array}, where ``model`` is a Graph that
    is faster run otherwise than in numpy. With a checkpoint all of this goes on after an interruption, too.

    host: what compiles, and reads what is not ONNX, see `tvm_easyquant.host`: the installed one, of which a
    name ("relay", "relax") only says which it must be. ONNX and a
    Graph are quantized without any, unless there is a drop to meet. input_shapes, batch, model_format,
    outputs: see `load`. check: whether what was read is compared with the model on the first sample
    (`readers.self_check`), or what does it.

    Raises LoadError, CalibrationError, ConfigError, GraphError, EvaluationError, DropError or
    CheckpointError, all ValueErrors whose message names the cause and the cure; TVMMissing where a host is
    needed and there is none. A layer that cannot be integer, as its weights are not finite or its bias or
    accumulator may not fit int32, stays float, which a warning says; if no layer is left, that is a
    GraphError (of the second kind an OverflowError, too).
    """
    host, auto = named(host), bits == "auto"
    if auto:
        bits = 7
        sensitivity.solver()
    judged = _evaluation(evaluation, max_drop, metric, target)
    also: Sequence[int] = ()
    if isinstance(bits, (list, tuple)):
        bits, *also = _widths(bits)
        if also and judged is not None:
            raise ConfigError("bits=(7, 8) are found without a max_drop, which is met at bits of its own")
    if auto and judged is None:
        raise ConfigError(NEEDS)
    config = _config(config or QuantConfig(), {"bits": bits, "method": method, "skip": skip}, settings)
    if calibration_limit is not None and calibration_limit < 1:
        raise ConfigError(f"calibration_limit is {calibration_limit}; use 1 or more, or None for all")
    if isinstance(calibration, (str, os.PathLike)):
        calibration = sources.calibration(
            os.fspath(calibration), preprocess, "calibration", limit=calibration_limit, seed=seed
        )
    clock, judge, note = time.perf_counter(), None, ""
    if isinstance(calibration, sources.Source):
        note, calibration_limit = calibration.note, None if calibration.whole else calibration_limit
    model = _of_torch(model, model_format, host)
    if torch_model.is_torch(model):
        if isinstance(calibration, sources.Source):
            calibration = calibration(torch_model.inputs_of(model))
        calibration, input_shapes = torch_model.seen(model, calibration, input_shapes, batch)
    opened = open_model(
        model, params, host=host, input_shapes=input_shapes, batch=batch, model_format=model_format,
        outputs=outputs,
    )  # fmt: skip
    graph = opened.graph
    if judged is not None:
        judge = _Judge(host or installed(), graph, fp32, judged, progress, preprocess)
    loaded = time.perf_counter() - clock
    door = _Door(opened.check if check is True else check or None)
    if isinstance(calibration, sources.Source):
        calibration = calibration(graph.inputs)
    found = find(
        graph, calibration, config, checkpoint, progress, record, preprocess,
        max_drop=None if judged is None else judged.max_drop, judge=judge, fastest=auto, first=door,
        limit=calibration_limit, also=also,
    )  # fmt: skip
    if not note and found.stopped:
        note = f"calibration read {calibration_limit} samples and no further"
    reopen = functools.partial(_read_again, model, host, model_format, outputs) if _is_file(model) else None

    def quantized(found: Found, others: Mapping[int, Quantized]) -> Quantized:
        table = found.table
        if graph.cut is not None:
            table = replace(table, data={**table.data, "outputs": list(graph.cut)})
        decisions, drop = (found.met.lines, found.met.paired) if found.met else ((), None)
        warnings = (*graph.notes, *door.notes, *found.warnings, *(judge.warnings if judge else ()))
        return Quantized(
            table, found.graph, found.plan, {"load": loaded, **found.seconds}, warnings, decisions, drop,
            (note,) if note else (), host, door.sample, reopen, others,
        )  # fmt: skip

    return quantized(found, {bits: quantized(other, {}) for bits, other in found.others.items()})


def _widths(bits: Sequence[int]) -> list[int]:
    """The bits of a network that is quantized at several, the fewest first."""
    if not bits or len(set(bits)) < len(bits) or set(bits) - set(BITS):
        raise ConfigError(f"bits is {bits!r}; use 7 or 8, or (7, 8) for both")
    return sorted(bits)


def _as_shape(shape):
    return tuple(shape) if isinstance(shape, Iterable) else shape


def _is_file(model) -> bool:
    return isinstance(model, (str, os.PathLike)) or type(model).__name__ == "ModelProto"


def _read_again(model, host, model_format, outputs, input_shapes: InputShapes) -> Graph:
    """A model that was opened before, at other input shapes."""
    options: dict = dict(model_format=model_format, outputs=outputs)
    return open_model(model, host=host, input_shapes=input_shapes, **options).graph


class _Door:
    """Sees the first sample: keeps it, and has the graph compared with its model."""

    def __init__(self, check: Check | None):
        self.check = check
        self.sample: Mapping[str, np.ndarray] | None = None
        self.notes: tuple[str, ...] = ()

    def __call__(self, sample):
        self.sample = {name: array.copy() for name, array in sample.items()}
        told = None if self.check is None else self.check(self.sample)
        self.notes = () if told is None else (told,)


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
        if metric is not None:
            raise ConfigError(f"a metric judges labelled data; {NEEDS}")
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

    def __init__(self, host: Host, graph, fp32, evaluation: Evaluation, progress, preprocess=None):
        self.host, self.graph, self.progress = host, graph, progress
        self.target = host.target(evaluation.target)
        host.check_cpu(self.target)
        metric = evaluation.metric
        self.metric = _evaluate.top(1) if metric is None else metric
        self.batch = next(iter(graph)).shape[0]
        self.inputs = inputs_of(graph)
        self.data = sources.labelled(evaluation.data, preprocess).singly(self.inputs, self.batch)
        _evaluate.check_first(self.data, self.inputs)
        self.fp32 = fp32 or host.build_float(host.float_module(graph), self.target)
        names = [getattr(metric, name, None) for name in ("__module__", "__qualname__")]
        self.identity = [self.data.name, len(self.data), *names, str(self.target)]
        self.name = "top1" if metric is None else _evaluate.name_of(metric)
        self.warnings: tuple[str, ...] = ()
        self._reference: Any = None
        self._last: tuple[str, Any] | None = None

    def _scores(self, network, what, data=None):
        found = _evaluate.evaluate(
            network, data or self.data, inputs=self.inputs, metrics={self.name: self.metric},
            batch=self.batch, progress=self.progress, what=what,
        )  # fmt: skip
        return found[self.name]

    def paired(self, table, interval: bool = False) -> _evaluate.Paired | _evaluate.PairedSet:
        if self._reference is None:
            labels: list = []
            self._reference = self._scores(self.fp32, "float32", self.data.noting(labels))
            if self.name == "top1":
                told = _evaluate.chance(self._reference, labels)
                self.warnings = () if told is None else (told,)
        key = table.to_json()
        if self._last is None or self._last[0] != key:  # as a rule the last choice is the one that is taken
            self._last = None
            built = self.host.build(self.host.rewrite(self.graph, table), self.target)
            self._last = key, self._scores(built, "integers")
        return _evaluate.compare(self._last[1], self._reference, interval=interval, progress=self.progress)

    def times(self, table) -> dict[str, float]:
        return self.host.layer_times(self.graph, table, self.target)


@dataclass(frozen=True, repr=False)
class Imported(Quantized):
    """A network that was quantized elsewhere, as `import_quantized` takes it over.

    origin: stored tensor -> (name of the integer tensor in the ONNX model, what to add to its numbers to
    get ours). model: the ONNX model itself. inputs, outputs: those that are integers there, with their
    `onnx_quantized.Encoding`; here they are float. reach: layer -> the largest of its integer weights.
    """

    origin: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    model: object = None
    inputs: Mapping[str, object] = field(default_factory=dict)
    outputs: Mapping[str, object] = field(default_factory=dict)
    reach: Mapping[str, int] = field(default_factory=dict)

    @property
    def layers(self) -> list[Layer]:
        """As of `Quantized`; a layer whose weights stay within 63 has 7 bits, whatever type holds them."""
        return [
            {**row, "kind": "int7"}
            if row["kind"] == "int8" and self.reach.get(row["layer"], 127) <= 63
            else row
            for row in super().layers
        ]


def import_quantized(
    model: Any,
    input_shapes: InputShapes | None = None,
    batch: int | None = None,
    *,
    host: Host | str | None = None,
) -> Imported:
    """Take over a quantized ONNX model (QDQ or QOperator): its scales, its integers, our kernels.

    model: a path or an ``onnx.ModelProto``, as ONNX Runtime, NNCF, Quark or PPQ write it. What it does not
    quantize, or what we do not cover, stays float and is in ``plan.floats`` with the reason.
    input_shapes, batch: see `load`. host: what compiles, as of `quantize`.
    Raises LoadError or QuantizedModelError, and OverflowError as `quantize` does.
    """
    clock, host = time.perf_counter(), named(host)
    graph, normal = onnx_float.load_quantized(model, input_shapes, batch)
    taken = _taken(graph, normal)
    check_ranges(taken.graph, taken.table)
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
        taken.table, taken.graph, replace(plan_, floats=floats), seconds, host=host,
        reopen=lambda shapes: _taken(*onnx_float.load_quantized(model, shapes)).graph, origin=origin,
        model=normal.source, inputs=normal.inputs, outputs=normal.outputs,
        reach={name: int(weights.reach.max()) for name, weights in normal.weights.items()},
    )  # fmt: skip


def _taken(graph: Graph, normal):
    """A graph and its scales as `readers.take_over` takes them over."""
    from .readers.take_over import take_over

    scales = {name: w.scale for name, w in normal.weights.items()}
    reach = {name: w.reach for name, w in normal.weights.items()}
    return take_over(graph, scales, normal.reasons, reach)
