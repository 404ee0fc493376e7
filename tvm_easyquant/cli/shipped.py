"""Packages of ``compile`` in `evaluate`, `benchmark` and `report`: figures of the program that ships."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from ..errors import TVMMissing
from .common import UserError, input_shapes, preprocess_of, print_json, progress_bar

if TYPE_CHECKING:
    from ..measure.accuracy import Paired, PairedSet
    from ..network.graph import Graph
    from ..scales.table import ScaleTable

#: options that belong to a model and its table, not to what was made of them
MODELS_OWN = ("table", "bits", "target", "input_shapes", "outputs", "model_format")


def is_package(args, but: Sequence[str] = ()) -> bool:
    """Whether the command line names a package; UserError where its options, ``but`` for these, do not go
    with it."""
    if args.FILE.lower().endswith(".tar"):
        for name in MODELS_OWN:
            if name not in but and getattr(args, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option} is of a model; {args.FILE} is compiled already: leave it out")
        return True
    if args.table is None:
        raise UserError("--table FILE is missing: the scale table of the model, from quantize")
    for name in ("float", "isa"):
        if getattr(args, name) is not None:
            raise UserError(
                f"--{name} is of a package (.tar); a model with its table is compared with itself"
            )
    return False


def add_options(parser) -> None:
    """The options of a package."""
    add = parser.add_argument
    add("--float", metavar="MODEL", help="with a package: the float model to compare it with")
    add("--isa", metavar="ROW", help="with a package: the variant (the best that this CPU runs)")


def _table(args) -> ScaleTable | None:
    """The table that the package holds, if it is known."""
    from .. import package
    from ..scales.table import ScaleTable

    chosen = package.choose(args.FILE, args.isa)
    if chosen.variant is None or chosen.record is None or not chosen.variant.table:
        return None
    return ScaleTable.from_json(json.dumps(chosen.record.tables[chosen.variant.table]))


def _float_graph(args, host, shapes: Mapping | None = None):
    """The model of ``--float`` at these input shapes, cut where the package's table says."""
    from .. import workflow

    table, batch = _table(args), None if shapes else args.batch
    outputs = None if table is None else table.outputs

    def opened(shapes, batch=None):
        options: dict = dict(batch=batch, input_shapes=shapes, outputs=outputs)
        return workflow.open_model(args.float, host=host, **options).graph

    graph = opened(shapes, batch)
    if table is not None:
        _check_float(args, table, graph, opened)
    return graph


def _check_float(args, table: ScaleTable, graph: Graph, reopened: Callable) -> None:
    """TableError where the package was quantized from another network than this one, as far as it can be
    told: an input of other sizes, such as another batch, says nothing."""
    from .. import package
    from ..network.node import model_shape

    choices = package.choices(args.FILE, args.isa)
    shapes = [dict(chosen.variant.shapes) for chosen in choices if chosen.variant]
    own = {name: model_shape(graph[name]) for name in graph.inputs}
    if len(shapes) == 1 and _sizes(shapes[0]) == _sizes(own):  # bytes may have another layout
        table.check(table.prepared(graph))
    elif len(shapes) > 1 and own in shapes:  # the table is of one of these
        graphs = [graph, *(reopened(other) for other in shapes if other != own)]
        if all(table.prepared(each).fingerprint != table.model for each in graphs):
            table.check(table.prepared(graph))


def _sizes(shapes: Mapping) -> dict[str, list[int]]:
    return {name: sorted(shape) for name, shape in shapes.items()}


def _open(args, host, **options):
    """The package as a `Program`. What ``--float`` needs TVM for is loaded first: a process in which the
    runtime library is there alone ends when TVM itself comes to it."""
    from ..deploy import Program

    if args.float is not None:
        with contextlib.suppress(TVMMissing):
            _ = host.name
    return Program(args.FILE, isa=args.isa, **options)


def _float(args, host, shapes: Mapping | None = None):
    """The float network, at these input shapes: as TVM compiles it, or a function that runs it in numpy
    where there is no TVM."""
    graph = _float_graph(args, host, shapes)
    try:
        return host.build_float(host.float_module(graph), None)
    except TVMMissing:
        return lambda feed: list(graph.run(feed).values())


def _floats(args, host):
    """The float network at whatever input shapes the arrays have."""
    made: dict[tuple, Callable] = {}

    def run(feed):
        shapes = tuple((name, array.shape) for name, array in feed.items())
        if shapes not in made:
            made[shapes] = _float(args, host, dict(shapes))
        return made[shapes](feed)

    return run


def _timed_at(args, program) -> dict[str, tuple[int, ...]]:
    """The input shapes of a package that are to be timed: the first, or those that are asked for."""
    from ..network.shapes import told

    asked = input_shapes(args.input_shapes)
    if asked is None:
        return program.shapes[0]
    shapes = {name: tuple(shape) for name, shape in asked.items()}
    if shapes not in program.shapes:
        raise UserError(
            f"{args.FILE} is compiled at {'; '.join(map(told, program.shapes))}, not {told(shapes)}"
        )
    return shapes


def _models_own(args, program, shapes: Mapping) -> dict:
    """What the model calls the shapes of a package, whose image of bytes may be turned."""
    from ..network.layout import nchw, nhwc
    from ..samples.images import Preprocess

    turned, table = dict(shapes), _table(args)
    for name, layout in program.layouts.items():  # whose table has preprocessing
        if table is not None and layout != Preprocess.of(table.data["preprocess"]).layout:
            turned[name] = (nhwc if layout == "NCHW" else nchw)(shapes[name])
    return turned


def _pictures(args, table, program):
    """How pictures become what the program takes: of bytes the program does the rest itself."""
    how = preprocess_of(args, table)
    if how is None or not program.layouts:
        return how
    (layout,) = program.layouts.values()
    return replace(how, scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3, color="RGB", layout=layout)


def _scores(args, host, table, program, bar) -> Mapping[str, Paired | PairedSet]:
    """{metric: the package against the float network of ``--float``, or against itself}."""
    from ..measure import accuracy
    from .measure import labelled_data

    data, metrics = labelled_data(args, table, _pictures(args, table, program))
    inputs = {name: (shape, str(dtype)) for name, (shape, dtype) in program.inputs.items()}

    def scores(run, data, what):
        return accuracy.evaluate(
            run, data, inputs=inputs, metrics=metrics, batch=args.batch or 1, progress=bar, what=what
        )

    mine = scores(program, data, "package")
    if args.float is None:
        return {name: accuracy.compare(mine[name], mine[name]) for name in metrics}
    if program.layouts:
        data, _ = labelled_data(args, table)
        inputs = {}
    run = _float(args, host) if len(program.shapes) == 1 else _floats(args, host)
    theirs = scores(run, data, "float32")
    return {name: accuracy.compare(mine[name], theirs[name], progress=bar) for name in metrics}


def _facts_of(args, found) -> dict:
    """The scores as plain values; of the package alone where there is no float network."""
    return {
        name: {"n": p.n, "value": p.value} if args.float is None else {**asdict(p), "drop": p.drop}
        for name, p in found.items()
    }


def evaluate(args, host) -> int:
    """``evaluate net.tar``."""
    with _open(args, host) as program, progress_bar() as bar:
        found = _scores(args, host, _table(args), program, bar)
    if args.json:
        print_json({"data": args.data, "variant": program.variant, "metrics": _facts_of(args, found)})
        return 0
    for name, p in found.items():
        if args.float is None:
            print(f"{name}: {p.figure(p.value)} on {p.n} samples (variant {program.variant or 'unknown'})")
        else:
            print(f"{name}: package {p}; p = {p.p:.3g}")
    return 0


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a package at these input shapes: the median and the least and most of the rounds;
    with a float network its median, the median of the rounds' ratios and their quartiles."""

    ms: float
    spread: tuple[float, float]
    threads: int
    rounds: int
    variant: str | None
    shapes: Mapping[str, tuple[int, ...]]
    ms_fp32: float | None = None
    speedup: float | None = None
    ratios: tuple[float, float] | None = None

    @property
    def doubt(self) -> str | None:
        """Why nothing can be said of the ratio, if so."""
        from ..measure import timing

        return timing.unsteady(self.ratios)

    @property
    def headline(self) -> str | None:
        """What can be said of the ratio; None without a float network."""
        from ..measure import timing

        if self.speedup is None or self.ratios is None:
            return None
        return timing.headline(self.speedup, self.ratios, self.doubt)


def _burst(program, number: int) -> float:
    """Milliseconds of one run, over ``number`` of them."""
    start = time.perf_counter()
    for _ in range(number):
        program.run()
    return 1e3 * (time.perf_counter() - start) / number


def _timed(args, host, program, bar) -> Timing:
    """A program of one context timed, in turn with the float network of ``--float``."""
    import numpy as np

    from ..measure import timing

    rng, shapes = np.random.default_rng(0), _timed_at(args, program)
    feed = {}
    for name, (_, dtype) in program.inputs.items():
        size = shapes[name]
        made = rng.standard_normal(size) if dtype.kind == "f" else rng.integers(0, 128, size)
        feed[name] = made.astype(dtype)
    program.set_inputs(feed)
    program.run()
    theirs_at = _models_own(args, program, shapes) if len(program.shapes) > 1 else None
    floats = None if args.float is None else _float(args, host, theirs_at)
    if floats is not None and not hasattr(floats, "milliseconds"):
        raise UserError("--float is timed as TVM compiles it; there is no TVM here: leave it out")
    if floats is not None:
        host.threads(args.threads)
        floats.milliseconds(repeat=1)
    number = max(1, round(1 / max(0.01, _burst(program, 1))))
    rows = []
    for i in range(args.rounds):
        mine = min(_burst(program, number) for _ in range(7))
        rows.append((mine, min(floats.milliseconds(repeat=7)) if floats is not None else np.nan))
        bar(i + 1, args.rounds, "benchmark")
    mine, theirs = np.array(rows).T
    spread = float(mine.min()), float(mine.max())
    found = Timing(float(np.median(mine)), spread, args.threads, args.rounds, program.variant, shapes)
    if floats is None:
        return found
    speedup, quartiles = timing.ratios(mine, theirs)
    return replace(found, ms_fp32=float(np.median(theirs)), speedup=speedup, ratios=quartiles)


def benchmark(args, host) -> int:
    """``benchmark net.tar``."""
    from ..network.shapes import told

    with _open(args, host, threads=args.threads, contexts=1) as program, progress_bar() as bar:
        found = _timed(args, host, program, bar)
        at = f", at {told(found.shapes)}" if len(program.shapes) > 1 else ""
    if args.json:
        print_json({**asdict(found), "doubt": found.doubt})
        return 0
    threads, (low, high) = f"{found.threads} thread{'s' if found.threads > 1 else ''}", found.spread
    variant = found.variant or "unknown"
    print(f"{args.FILE} (variant {variant}{at}): {found.ms:.3f} ms ({low:.3f} to {high:.3f})")
    print(f"{threads}, medians of {found.rounds} rounds")
    if found.speedup is not None:
        print(f"{host.floats} {found.ms_fp32:.3f} ms: {found.headline}")
    return 0


#: options of ``report`` that need the model itself
OF_LAYERS = ("calibration", "record", "tuning_records")


def report(args, host) -> int:
    """``report net.tar``."""
    from .. import __version__, package
    from ..files import write_text
    from ..host import describe_machine
    from ..measure import report as pages
    from ..measure.collect import collect_package

    for name in OF_LAYERS:
        if getattr(args, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{option} is of the model's layers; report MODEL --table FILE {option} takes it"
            )
    pages.check_packages()
    chosen, table = package.choose(args.FILE, args.isa), _table(args)
    if table is None or chosen.record is None:
        raise UserError(f"{args.FILE} holds no scale table, so there is nothing to report: compile it anew")
    scores, timed, graph = None, None, None
    with progress_bar() as bar:
        with _open(args, host, threads=args.threads, contexts=1) as program:
            if args.float is not None:
                graph = _the_tables(args, host, table, program)
            if args.data:
                scores = _facts_of(args, _scores(args, host, table, program, bar))
            if not args.no_benchmark:
                timed = _timed(args, host, program, bar)
    facts = collect_package(
        args.FILE, chosen, table, graph, version=__version__, machine=describe_machine(), accuracy=scores,
        benchmark=None if timed is None else {**asdict(timed), "headline": timed.headline},
    )  # fmt: skip
    write_text(args.output, pages.render_package(facts))
    for line in facts["left_out"]:
        print(f"note: {line}", file=sys.stderr)
    if args.json:
        print_json(facts)
    else:
        print(f"report: {args.output}")
    return 0


def _the_tables(args, host, table: ScaleTable, program):
    """The model of ``--float`` as the graph that the table is of. Raises TableError if it is of none."""
    several = len(program.shapes) > 1
    for shapes in program.shapes:
        graph = _float_graph(args, host, _models_own(args, program, shapes) if several else None)
        graph = table.prepared(graph)
        if graph.fingerprint == table.model:
            break
    table.check(graph)
    return graph
