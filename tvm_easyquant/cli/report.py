"""The verb ``report``: what quantization did to each layer, on one HTML page."""

from __future__ import annotations

from .. import __version__
from ..files import writable
from . import shipped
from .common import (
    UserError,
    add_pictures,
    add_quantized,
    add_verb,
    load_graph,
    preprocess_of,
    print_json,
    progress_bar,
)

EXAMPLES = """\
examples:
  tvmc-easyquant quantize net.onnx --calibration images.npz --record search.json -o net.json
  tvmc-easyquant report net.onnx --table net.json --calibration images.npz --record search.json \\
      --data validation.npz -o net.html
  tvmc-easyquant report net.onnx --table net.json --no-benchmark --json
  tvmc-easyquant report net.tar --data validation.npz --float net.onnx

Of a package the page has what it and its table know, and says what it leaves out.
The page needs no network; a browser opens it as a file.
"""


def add(subparsers) -> None:
    help = "one HTML page: accuracy, time, error, kernels and scales of every layer"
    parser = add_verb(subparsers, "report", _report, help, EXAMPLES)
    add_quantized(parser, package=True)
    shipped.add_options(parser)
    add = parser.add_argument
    add("-o", "--output", default="report.html", metavar="FILE", help="(report.html)")
    add("--calibration", metavar="DATA", help="inputs, for the histograms of activations; as in quantize")
    add("--samples", type=int, default=16, metavar="N", help="of them for the histograms (16)")
    add("--record", metavar="FILE", help="the curves of the search, from quantize --record")
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
    inputs = (args.FILE, args.table, args.calibration, args.record, args.float, args.accuracy)
    writable(args.output, [path for path in inputs if path])
    for name in ("samples", "threads", "rounds"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}; use 1 or more")
    if args.accuracy and (args.data or args.FILE.endswith(".tar")):
        raise UserError("--accuracy is of a model and its table, in the place of --data")


def _report(args, host) -> int:
    from dataclasses import replace
    from itertools import islice

    from ..files import write_text
    from ..measure import report
    from ..measure.accuracy import check_first, stored
    from ..measure.collect import collect
    from ..samples import sources
    from ..scales import calibrate
    from ..scales.table import ScaleTable
    from ..search.curves import Curves
    from ..search.driver import layer_figures
    from .measure import built, evaluation, inputs_of, labelled_data, timing

    _check(args)
    if shipped.is_package(args, but=["input_shapes"]):
        return shipped.report(args, host)
    report.check_packages()
    target, table = host.target(args.target), ScaleTable.load(args.table)
    host.check_cpu(target)
    curves = Curves.load(args.record) if args.record else None
    source = sources.calibration(args.calibration, preprocess_of(args, table)) if args.calibration else None
    accuracy = stored(args.accuracy) if args.accuracy else None
    judged = labelled_data(args, table) if args.data else None
    loaded = load_graph(args, host, table)
    graph = table.prepared(loaded)
    plan = table.check(graph)
    if judged is not None:
        check_first(judged[0], inputs_of(loaded))
    samples = []
    if source is not None:
        samples = list(islice(calibrate.samples(source(graph.inputs), graph), args.samples))
    if samples and not table.figures:
        table = replace(table, figures=layer_figures(graph, plan, table, samples))
    with host.history(args.tuning_records, target), progress_bar() as bar:
        benchmark = None
        if judged is None and args.no_benchmark:  # nothing is to be run
            layers = host.layer_choices(graph, table, target)
        else:
            networks = built(host, loaded, table, target)
            layers = networks[1].layers
            if judged is not None:
                accuracy = evaluation(judged, networks, args.batch or 1, loaded, bar)
            if not args.no_benchmark:
                benchmark = timing(args, host, graph, table, networks, bar)
        facts = collect(
            graph, table, layers, target=str(target), machine=host.describe(), version=__version__,
            samples=samples, curves=curves, benchmark=benchmark, accuracy=accuracy, progress=bar,
        )  # fmt: skip
    write_text(args.output, report.render(facts))
    if args.json:
        print_json(facts)
    else:
        print(f"report: {args.output}")
    return 0
