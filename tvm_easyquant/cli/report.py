"""The verb ``report``: what quantization did to each layer, on one HTML page."""

from __future__ import annotations

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
    warn,
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
    add("--metric", metavar="MODULE:FUNCTION", help="instead of top-1 and top-5, as in evaluate")
    add("--limit", type=int, metavar="N", help="the first N labelled samples only")
    add("--no-benchmark", action="store_true", help="leave the times out")
    add("--threads", type=int, default=1, metavar="N", help="of the benchmark (1)")
    add("--rounds", type=int, default=15, metavar="N", help="of the benchmark (15)")
    add("--tuning-records", metavar="LOG", help="records of tune-kernels to choose kernels by")
    add_pictures(parser)


def _report(args, host) -> int:
    from ..files import write_text
    from ..measure import networks, report
    from ..samples import sources
    from ..scales.table import ScaleTable
    from ..search.curves import Curves
    from .measure import labelled_data

    inputs = [path for path in (args.FILE, args.table, args.calibration, args.record, args.float) if path]
    writable(args.output, inputs)
    for name in ("samples", "threads", "rounds"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}; use 1 or more")
    if shipped.is_package(args, but=["input_shapes"]):
        return shipped.report(args, host)
    report.check_packages()
    target, table = host.target(args.target), ScaleTable.load(args.table)
    host.check_cpu(target)
    curves = Curves.load(args.record) if args.record else None
    source = sources.calibration(args.calibration, preprocess_of(args, table)) if args.calibration else None
    loaded = load_graph(args, host, table)
    with host.history(args.tuning_records, target), progress_bar() as bar:
        facts = networks.facts(
            host, loaded, table, target, source=None if source is None else source(loaded.inputs),
            samples=args.samples, judged=labelled_data(args, table) if args.data else None,
            batch=args.batch or 1, timed=not args.no_benchmark, threads=args.threads, rounds=args.rounds,
            warn=warn, progress=bar, curves=curves,
        )  # fmt: skip
    write_text(args.output, report.render(facts))
    if args.json:
        print_json(facts)
    else:
        print(f"report: {args.output}")
    return 0
