"""The verb ``report``: what quantization did to each layer, on one HTML page; of several tables, too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import writable
from . import shipped
from .common import (
    UserError,
    add_bits,
    add_model,
    add_pictures,
    add_verb,
    load_graph,
    preprocess_of,
    print_json,
    progress_bar,
    warn,
)

if TYPE_CHECKING:
    from ..scales.table import ScaleTable

EXAMPLES = """\
examples:
  tvmc-easyquant quantize net.onnx --calibration images.npz --record search.json -o net.json
  tvmc-easyquant report net.onnx --table net.json --calibration images.npz --record search.json \\
      --data validation.npz -o net.html
  tvmc-easyquant report net.onnx --table net.json --no-benchmark --json
  tvmc-easyquant report net.onnx --table int8.json --table int7.json --data photos/ -o both.html
  tvmc-easyquant report new.html --compare old.html -o both.html
  tvmc-easyquant report net.tar --data validation.npz --float net.onnx

Several tables, and reports made before, are compared on one page: the first with each other one. Of a
package the page has what it and its table know, and says what it leaves out.
The page needs no network; a browser opens it as a file.
"""

#: how a report made before is told from a model
MADE = (".html", ".json")


def add(subparsers) -> None:
    help = "one HTML page: accuracy, time, error, kernels and scales of every layer"
    parser = add_verb(subparsers, "report", _report, help, EXAMPLES)
    add_model(
        parser, "the model, a package of compile (.tar), or a report made before (.html, or its .json)"
    )
    add = parser.add_argument
    add(
        "--table",
        action="append",
        metavar="FILE",
        help="the model's scale table, from quantize; may be repeated",
    )
    add_bits(parser)
    add(
        "--compare",
        action="append",
        metavar="REPORT",
        default=[],
        help="a report made before, beside it; may be repeated",
    )
    add("--target", help="a CPU target such as 'llvm -mcpu=core-avx2' (this CPU)")
    add("--json", action="store_true", help="print the result as JSON")
    shipped.add_options(parser)
    add("-o", "--output", default="report.html", metavar="FILE", help="(report.html)")
    add("--calibration", metavar="DATA", help="inputs, for the histograms of activations; as in quantize")
    add("--samples", type=int, default=16, metavar="N", help="of them for the histograms (16)")
    add(
        "--record",
        metavar="FILE",
        help="the curves of the search, from quantize --record (the first table's)",
    )
    add("--data", metavar="DATA", help="labelled data, for the accuracy; as in evaluate")
    add("--accuracy", metavar="FILE", help="instead of --data: what evaluate --json has printed")
    add("--metric", metavar="MODULE:FUNCTION", help="instead of top-1 and top-5, as in evaluate")
    add("--limit", type=int, metavar="N", help="the first N labelled samples only")
    add("--no-benchmark", action="store_true", help="leave the times out")
    add("--threads", type=int, default=1, metavar="N", help="of the benchmark (1)")
    add("--rounds", type=int, default=15, metavar="N", help="of the benchmark (15)")
    add("--tuning-records", metavar="LOG", help="records of tune-kernels to choose kernels by")
    add_pictures(parser)


def _check(args) -> None:
    """What can be said of the options before anything is read."""
    tables = args.table or []
    inputs = [args.FILE, *tables, args.calibration, args.record, args.float, args.accuracy, *args.compare]
    writable(args.output, [path for path in inputs if path])
    for name in ("samples", "threads", "rounds"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}; use 1 or more")
    if args.accuracy and (args.data or args.FILE.endswith(".tar") or len(tables) > 1):
        raise UserError("--accuracy is of a model and its one table, in the place of --data")


def _report(args, host) -> int:
    from ..files import write_text
    from ..measure import compare, report

    _check(args)
    made = args.FILE.lower().endswith(MADE)
    if made:
        _check_made(args)
    elif shipped.is_package(args, but=["input_shapes"]):
        if args.compare:
            raise UserError(f"--compare is of reports of models; {args.FILE} is a package: leave it out")
        return shipped.report(args, host)
    report.check_packages()
    before = [facts for path in args.compare for facts in compare.read(path)]
    facts, *others = compare.read(args.FILE) if made else _measured(args, host)
    if others := [*others, *before]:
        facts["compared"] = [compare.slim(other) for other in others]
    write_text(args.output, report.render(facts))
    if args.json:
        print_json(facts)
    else:
        print(f"report: {args.output}")
    return 0


#: options that say how something is measured
OF_MODEL = (
    "table", "bits", "target", "input_shapes", "outputs", "model_format", "batch", "float", "isa",
    "calibration", "record", "data", "accuracy", "metric", "limit", "tuning_records",
)  # fmt: skip


def _check_made(args) -> None:
    """UserError where options do not go with a report made before, of which nothing is measured."""
    for name in OF_MODEL:
        if getattr(args, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} is of a model; {args.FILE} is a report made before: leave it out")


def _tables(args) -> Iterator[tuple[str, ScaleTable, bool]]:
    """(name, table, whether its file has several) of each ``--table``, at all its bits or at ``--bits``."""
    from ..scales.table import ScaleTables

    for path in args.table:
        found, name = ScaleTables.load(path), Path(path).name
        several = len(found.tables) > 1
        for bits in found.tables if args.bits is None else [args.bits]:
            yield f"{name} at {bits} bits" if several else name, found.for_bits(bits), several


def _measured(args, host) -> list[dict]:
    """The facts of each table of the command line, in its order."""
    from topi_ext import isa

    from ..measure import networks
    from ..measure.accuracy import check_first, stored
    from ..network.shapes import inputs_of
    from ..samples import sources
    from ..scales.table import told_by_class
    from ..search.curves import Curves
    from .measure import labelled_data

    target, tables = host.target(args.target), [*_tables(args)]
    if args.accuracy and len(tables) > 1:
        raise UserError("--accuracy is of a model and its one table: name it with --bits")
    host.check_cpu(target)
    by_class = told_by_class(isa.classes(host.row(target)))
    curves = Curves.load(args.record) if args.record else None
    known = {"accuracy": stored(args.accuracy)} if args.accuracy else {}
    found: list[dict] = []
    for name, table, several in tables:
        source = None
        if args.calibration:
            source = sources.calibration(args.calibration, preprocess_of(args, table))
        judged = labelled_data(args, table) if args.data else None
        loaded = load_graph(args, host, table)
        table.check(table.prepared(loaded))
        if judged is not None:
            check_first(judged[0], inputs_of(loaded))
        with host.history(args.tuning_records, target), progress_bar() as bar:
            found.append(networks.facts(
                host, loaded, table, target, source=None if source is None else source(loaded.inputs),
                samples=args.samples, judged=judged,
                batch=args.batch or 1, timed=not args.no_benchmark, threads=args.threads,
                rounds=args.rounds, warn=warn, progress=bar, curves=None if found else curves,
                name=name, by_class=by_class if several else None, **known,
            ))  # fmt: skip
    return found
