"""From a float network and calibration data to its scale table: partition, calibrate, start or search.

The command line, the Relay pass, the benchmark and `tvm_easyquant.quantize` find their scales here: each
has the warnings, the facts about the data, the bits that a drop allows and the resumption. No TVM here.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from ..errors import GraphError, RangeError, TableError
from ..measure.accuracy import Paired, PairedSet
from ..network.equalize import equalized
from ..network.graph import Graph
from ..samples.images import Preprocess
from ..scales import suspicions
from ..scales.calibrate import Calibration, calibrate, divided, start_table
from ..scales.integer import may_overflow, misfits
from ..scales.numerics import BITS, SWITCHES, ConfigError, QuantConfig
from ..scales.partition import Plan, plan_of
from ..scales.table import ScaleTable
from .bits import Met, float_times, meet
from .curves import Curves
from .driver import Record, identity_of, layer_figures, search
from .state import State

Progress = Callable[[int, int, str], None]
#: samples by which a method that does not search says how well a layer's output survives
FIGURES = 8


class Judge(Protocol):
    """Measures tables on labelled data, as a drop is asked for.

    identity: what its figures depend on beside the network, as JSON takes it.
    """

    @property
    def identity(self) -> object: ...

    def paired(self, table: ScaleTable, interval: bool = False) -> Paired | PairedSet:
        """The accuracy of the table's integers against fp32; interval: with it, where it is dear."""

    def times(self, table: ScaleTable) -> Mapping[str, float]:
        """{layer: microseconds} of the table's kernels."""


@dataclass(frozen=True)
class Found:
    """table: the scales, with the facts of their data; graph: the network they are of, as the table
    prepares it; plan: what runs in integers, and why the rest does not; warnings: what is suspicious, in
    lines; seconds: of each step; met: what a drop that was asked for led to; stopped: whether calibration
    read as many samples as it may, and perhaps not all; others: what was found at other bits."""

    table: ScaleTable
    graph: Graph
    plan: Plan
    warnings: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    met: Met | None = None
    stopped: bool = False
    others: Mapping[int, Found] = field(default_factory=dict)


class Finder:
    """The table of a pass that quantizes whatever network it is given: what the pass `EasyQuant` of each
    host is made of.

    It takes either a ``table`` found before, or its path, or ``calibration`` data and a ``config`` to
    search one; the table of the network that it saw last is then its attribute ``table``, and what is
    suspicious is in ``warnings``, in lines. A table serves the network it was found for: another one is
    searched anew, and a table that was given is refused. params, progress, checkpoint, preprocess: as
    `tvm_easyquant.quantize` takes them.
    """

    def __init__(
        self,
        table: ScaleTable | str | os.PathLike[str] | None = None,
        *,
        calibration=None,
        config: QuantConfig | None = None,
        params=None,
        progress: Progress | None = None,
        checkpoint: str | os.PathLike | None = None,
        preprocess: Preprocess | None = None,
    ):
        if (table is None) == (calibration is None):
            raise ValueError("EasyQuant takes either a scale table or calibration data")
        if isinstance(table, (str, os.PathLike)):
            table = ScaleTable.load(table)
        if table is not None and not isinstance(table, ScaleTable):
            raise TableError(f"the table is a {type(table).__name__}; give a ScaleTable, or its path")
        self.table, self.calibration, self.params = table, calibration, params
        self.config, self.progress = config or QuantConfig(), progress
        self.checkpoint, self.preprocess = checkpoint, preprocess
        self.warnings: tuple[str, ...] = ()

    def of(self, graph: Graph) -> tuple[Graph, ScaleTable]:
        """(the network as its table prepares it, its table); raises what `tvm_easyquant.quantize` does."""
        if self.table is not None and self.calibration is None:
            return graph, self.table
        if self.table is not None:
            with contextlib.suppress(TableError):  # of another model: found anew below
                prepared = self.table.prepared(graph)
                if self.table.model == prepared.fingerprint:
                    return prepared, self.table
        found = find(
            graph, self.calibration, self.config, self.checkpoint, self.progress, preprocess=self.preprocess
        )
        self.table, self.warnings = found.table, found.warnings
        return found.graph, found.table


def find(
    graph: Graph,
    data,
    config: QuantConfig | None = None,
    resume: str | os.PathLike | None = None,
    progress: Progress | None = None,
    record: Record | None = None,
    preprocess: Preprocess | None = None,
    *,
    max_drop: float | None = None,
    judge: Judge | None = None,
    fastest: bool = False,
    first: Callable[[Mapping[str, np.ndarray]], object] | None = None,
    limit: int | None = None,
    also: Sequence[int] = (),
) -> Found:
    """Find the scales of a float network.

    data: any iterable of inputs (see `calibrate.samples`). resume: a file that lets an interrupted run go
    on; it is removed at the end. progress(done, total, text) is called as the work proceeds. record: of
    `driver.search`; a `Curves` is resumed, too. preprocess: what made the samples, to be kept in the table.
    max_drop: points that ``judge`` may find lost; layers are then reverted until it is met, or, with
    ``fastest``, get the kind that makes the network fastest within it (see `bits.meet`). first: called with
    the first sample, before the work begins. limit: samples that are read, of data that are no arrays.
    also: other bits than the config's, at which tables are found from the same calibration, equal to those
    that a call of its own finds; ``record`` sees the config's only.

    A layer whose weights are not finite, or whose integers do not fit int32, stays float: a warning says
    so, and of the second kind the table's ``skip``.

    Raises CalibrationError, ConfigError, GraphError, CheckpointError, and DropError if no choice meets it;
    RangeError, a GraphError, if no layer is left that fits int32.
    """
    config, clock = config or QuantConfig(), time.perf_counter()
    if (max_drop is None) != (judge is None) or (fastest and judge is None):
        raise ConfigError("a drop needs a judge that measures it, and max_drop")
    if also and judge is not None:
        raise ConfigError("a drop is met at bits of its own: find the scales of several bits without one")
    graph = equalized(graph) if config.equalize else graph
    plan_ = plan_of(graph, config)
    config.check_layers(node.name for node in graph.compute_nodes)
    calibration = calibrate(graph, plan_, data, config, progress, first, limit)
    graph, plan_, calibration, factors = divided(graph, plan_, calibration, config)
    seconds = {"calibrate": time.perf_counter() - clock}
    identity = identity_of(graph, config, calibration) if resume is not None else {}
    if judge is not None:
        identity |= {"evaluation": judge.identity, "choice": "fastest" if fastest else "safer"}
    if also and resume is not None:
        identity |= {"also": list(also)}
    state = State(resume, identity)
    facts = _facts(calibration, preprocess)
    work = _Work(graph, plan_, calibration, config, facts, progress, state, factors=factors)
    if not also:
        found = _found(work, seconds, preprocess, record, judge, max_drop, fastest)
    else:
        found, *others = (
            _found(work.at(bits), seconds, preprocess, record if bits == config.bits else None)
            for bits in (config.bits, *also)
        )
        found = replace(found, others={other.table.config.bits: other for other in others})
    state.remove()
    return found


def _found(
    work: _Work,
    seconds: Mapping[str, float],
    preprocess: Preprocess | None,
    record: Record | None,
    judge: Judge | None = None,
    max_drop: float | None = None,
    fastest: bool = False,
) -> Found:
    """What `find` finds once the data are seen, which took so many ``seconds``."""
    graph, calibration, config = work.graph, work.calibration, work.config
    clock = time.perf_counter()
    work = _start(work, (config.bits,) if judge is None else BITS)
    met, checking = None, 0.0
    while True:  # as a rule once: the start shows which layers do not fit
        try:
            if max_drop is None or judge is None:
                table = work.table(work.config, work.state, record)
            else:
                met = work.meet(record, judge, max_drop, fastest)
                table = met.table
        except RangeError as error:
            work = work.without({error.layer: error})
            continue
        checked = time.perf_counter()
        plan_ = plan_of(graph, table.config)
        unfit = misfits(graph, plan_, table)
        checking += time.perf_counter() - checked
        if not unfit:
            break
        work = work.without(unfit)
    if not config.searches:  # a search knows how well its layers' outputs survive
        table = _with_figures(table, graph, plan_, calibration)
    took = {**seconds, "search": time.perf_counter() - clock - checking, "check": checking}
    reasons = {name: error.reason for name, error in work.unfit.items()}
    told = {node.name: node.broken for node in graph if node.broken and node.name not in reasons} | reasons
    warnings = (
        *(f"layer {name} stays float: {why}" for name, why in told.items()),
        *_dead_channels(graph, plan_),
        *(suspicions.of_settings(preprocess) if preprocess is not None else ()),
        *suspicions.of_data(calibration, preprocess),
    )
    plan_ = replace(plan_, floats=plan_.floats | reasons)
    return Found(table, graph, plan_, warnings, took, met, calibration.stopped)


def _start(work: _Work, widths: Sequence[int]) -> _Work:
    """The work without the layers that do not fit int32 where the search starts, at any of these bits."""
    while True:
        layers = [n for n in work.graph.compute_nodes if n.name in work.plan.integer]
        unfit: dict[str, RangeError] = {}
        for bits in widths:
            config = work.config if len(widths) == 1 else replace(work.config, layer_bits=(), bits=bits)
            if any(may_overflow(node, config.bits_of(node.name)) for node in layers):
                table = start_table(work.graph, work.plan, work.calibration, config)
                unfit |= misfits(work.graph, work.plan, table)
        if not unfit:
            return work
        work = work.without(unfit)


@dataclass(frozen=True)
class _Work:
    """What tables are found from. unfit: the layers that do not fit int32, which ``config`` skips; factors:
    by which the graph's tensors were divided (`calibrate.divided`)."""

    graph: Graph
    plan: Plan
    calibration: Calibration
    config: QuantConfig
    facts: dict[str, object]
    progress: Progress | None
    state: State
    unfit: Mapping[str, RangeError] = field(default_factory=dict)
    factors: Mapping[str, np.ndarray] = field(default_factory=dict)

    def at(self, bits: int) -> _Work:
        """The same at these bits, as one of several."""
        config, state, theirs = (
            replace(self.config, bits=bits),
            self.state.part(f"int{bits}"),
            self.progress,
        )

        def progress(done: int, total: int, text: str) -> None:
            if theirs is not None:
                theirs(done, total, f"{text} at {bits} bits")

        return replace(self, config=config, state=state, progress=progress)

    def without(self, more: Mapping[str, RangeError]) -> _Work:
        """The same, these layers kept float; the RangeError of one of them if no layer is left then."""
        first = next(iter(more.values()))
        if self.config.integer is not None:
            raise first
        unfit = {**self.unfit, **more}
        config = replace(self.config, skip=(*self.config.skip, *more))
        try:
            plan_ = plan_of(self.graph, config)
        except GraphError:
            cure = "no other layer is left to quantize"
            raise RangeError(first.layer, first.reason, cure) from None
        calibration = self.calibration.of(plan_)
        return replace(
            self, plan=plan_, calibration=calibration, config=config, facts=self.facts | calibration.facts,
            state=self.state.part(f"without {', '.join(more)}"), unfit=unfit,
        )  # fmt: skip

    def meet(self, record: Record | None, judge: Judge, max_drop: float, fastest: bool) -> Met:
        tables = _Tables(self, record)
        return meet(
            self.graph, self.plan, self.config, tables, self.calibration.samples, judge.paired, max_drop,
            times=(lambda bits: judge.times(tables(bits))) if fastest else None,
            float_times=float_times(self.graph) if fastest else None,
            progress=self.progress, checkpoint=self.state,
        )  # fmt: skip

    def table(self, config: QuantConfig, state: State, record: Record | None) -> ScaleTable:
        if isinstance(record, Curves):
            record.resume(state)
        if config.searches:
            table = search(
                self.graph, self.plan, self.calibration, config, progress=self.progress, checkpoint=state,
                record=record,
            )  # fmt: skip
        else:
            table = start_table(self.graph, self.plan, self.calibration, config)
        return replace(table, data=self.facts, factors=self.factors)


class _Tables:
    """The scale table found at each bit width for all layers, kept in the state."""

    def __init__(self, work: _Work, record: Record | None):
        self.work, self.record = work, record
        self.found: dict[int, ScaleTable] = {}

    def __call__(self, bits: int) -> ScaleTable:
        if bits not in self.found:
            state = self.work.state
            kept = state.get("table", str(bits))
            if kept is None:
                config = replace(self.work.config, layer_bits=(), bits=bits)
                record = self.record if bits == self.work.config.bits else None
                table = self.work.table(config, state.part(f"int{bits}"), record)
                state.append("table", str(bits), json.loads(table.to_json()))
            else:
                table = ScaleTable.from_json(json.dumps(kept), f"the table at {bits} bits in {state.path}")
            self.found[bits] = table
        return self.found[bits]


def _with_figures(table: ScaleTable, graph: Graph, plan_: Plan, calibration: Calibration) -> ScaleTable:
    """The table with each layer's cosine and SQNR on the first `FIGURES` samples."""
    with threadpool_limits(1):
        found = layer_figures(graph, plan_, table, calibration.samples[:FIGURES])
    figures = {name: {**known, **table.figures.get(name, {})} for name, known in found.items()}
    return replace(table, figures={**table.figures, **figures})


def _facts(calibration: Calibration, preprocess: Preprocess | None) -> dict[str, object]:
    """What a table keeps of its calibration data."""
    facts = calibration.facts
    if preprocess is not None:
        facts["preprocess"] = json.loads(json.dumps(preprocess.facts))  # as a table reads it back
    return facts


def _dead_channels(graph: Graph, plan_: Plan) -> Iterator[str]:
    for node in graph.compute_nodes:
        if node.name in plan_.integer:
            dead = np.flatnonzero(~node.weight.any(axis=(0, 1, 2)))
            if len(dead):
                shown = ", ".join(map(str, dead[:8])) + (", ..." if len(dead) > 8 else "")
                yield f"{node.name}: {len(dead)} channels have no weight but zero ({shown}); scale 1"


def of_noise(
    graph: Graph, feed: Mapping[str, np.ndarray], config: QuantConfig, skip: Sequence[str]
) -> tuple[ScaleTable, dict[str, int]]:
    """(a table of one sample, as good as any where only times matter; layer -> bits). skip: layers that
    stay float beside those of ``config``."""
    plain: dict[str, Any] = dict.fromkeys(SWITCHES)
    settings = replace(config, **plain, method="minmax", equalize=False, skip=(*config.skip, *skip))
    table = find(graph, [feed], settings).table
    return table, {node.name: settings.bits_of(node.name) for node in graph.compute_nodes}
