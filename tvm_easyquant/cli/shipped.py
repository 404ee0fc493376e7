"""`evaluate` and `benchmark` of a package of ``compile``: the figures of the very program that ships."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from ..errors import TVMMissing
from .common import UserError, input_shapes, preprocess_of, print_json, progress_bar

if TYPE_CHECKING:
    from ..scales.table import ScaleTable

#: options that belong to a model and its table, not to what was made of them
MODELS_OWN = ("table", "target", "input_shapes", "outputs", "model_format")


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


def _float(args, host, shapes: Mapping | None = None):
    """The float network, at these input shapes: as TVM compiles it, or a function that runs it in numpy
    where there is no TVM."""
    from .. import pipeline

    batch = None if shapes else args.batch
    graph = pipeline.open_model(args.float, host=host, batch=batch, input_shapes=shapes).graph
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


def evaluate(args, host) -> int:
    """``evaluate net.tar``."""
    from ..deploy import Program
    from ..measure import accuracy
    from .measure import labelled_data

    table = _table(args)
    with Program(args.FILE, isa=args.isa) as program, progress_bar() as bar:
        data, metrics = labelled_data(args, table, _pictures(args, table, program))
        inputs = {name: (shape, str(dtype)) for name, (shape, dtype) in program.inputs.items()}

        def scores(run, data, what):
            return accuracy.evaluate(
                run, data, inputs=inputs, metrics=metrics, batch=args.batch or 1, progress=bar, what=what
            )

        mine = scores(program, data, "package")
        if args.float is None:
            found = {name: accuracy.compare(mine[name], mine[name]) for name in metrics}
        else:
            if program.layouts:
                data, _ = labelled_data(args, table)
                inputs = {}
            run = _float(args, host) if len(program.shapes) == 1 else _floats(args, host)
            theirs = scores(run, data, "float32")
            found = {name: accuracy.compare(mine[name], theirs[name], progress=bar) for name in metrics}
    if args.json:
        rows = {
            name: {"n": p.n, "value": p.value} if args.float is None else {**asdict(p), "drop": p.drop}
            for name, p in found.items()
        }
        print_json({"data": args.data, "variant": program.variant, "metrics": rows})
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


def _burst(program, number: int) -> float:
    """Milliseconds of one run, over ``number`` of them."""
    start = time.perf_counter()
    for _ in range(number):
        program.run()
    return 1e3 * (time.perf_counter() - start) / number


def benchmark(args, host) -> int:
    """``benchmark net.tar``."""
    import numpy as np

    from ..deploy import Program
    from ..measure import timing
    from ..network.shapes import told

    rng = np.random.default_rng(0)
    with (
        Program(args.FILE, isa=args.isa, threads=args.threads, contexts=1) as program,
        progress_bar() as bar,
    ):
        shapes = _timed_at(args, program)
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
        variant = program.variant
        at = f", at {told(shapes)}" if len(program.shapes) > 1 else ""
    mine, theirs = np.array(rows).T
    spread = float(mine.min()), float(mine.max())
    found = Timing(float(np.median(mine)), spread, args.threads, args.rounds, variant, shapes)
    if floats is not None:
        speedup, quartiles = timing.ratios(mine, theirs)
        found = replace(found, ms_fp32=float(np.median(theirs)), speedup=speedup, ratios=quartiles)
    if args.json:
        print_json({**asdict(found), "doubt": found.doubt})
        return 0
    threads, (low, high) = f"{found.threads} thread{'s' if found.threads > 1 else ''}", found.spread
    print(f"{args.FILE} (variant {variant or 'unknown'}{at}): {found.ms:.3f} ms ({low:.3f} to {high:.3f})")
    print(f"{threads}, medians of {found.rounds} rounds")
    if found.speedup is not None:
        said = timing.headline(found.speedup, found.ratios, found.doubt)
        print(f"{host.floats} {found.ms_fp32:.3f} ms: {said}")
    return 0
