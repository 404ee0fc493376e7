"""The verbs ``evaluate`` and ``benchmark``: our integers against TVM's float32, right and fast?"""

from __future__ import annotations

import sys

from . import shipped
from .common import (
    UserError,
    add_cluster,
    add_pictures,
    add_quantized,
    add_verb,
    load_graph,
    preprocess_of,
    print_json,
    progress_bar,
    read_table,
    warn,
)

EVALUATE = """\
examples:
  tvmc-easyquant evaluate net.onnx --table net.json --data validation.npz
  tvmc-easyquant evaluate net.onnx --table net.json --data photos/ --limit 500 --json
  tvmc-easyquant evaluate net.onnx --table net.json --data mydata:pairs --metric mydata:overlap
  tvmc-easyquant evaluate net.tar --data validation.npz --float net.onnx

validation.npz holds labels and images (float32, normalised) or pictures (uint8, or jpeg and offsets);
photos/ has one folder of pictures for each class. Pictures are normalised as the table says, which has
the settings of its calibration, unless --scale, --mean, ... say otherwise. mydata:pairs yields (input,
label), where a label is any object; mydata:overlap(outputs, label) gives 1.0 for right, 0.0 for wrong, or
anything between. A function with the attribute of_set = True gets two lists instead, of all samples, and
gives one number in its own unit, such as mAP; its interval is a bootstrap, which calls it 2,000 times.
"""

BENCHMARK = """\
examples:
  tvmc-easyquant benchmark net.onnx --table net.json
  tvmc-easyquant benchmark net.onnx --table net.json --target "llvm -mcpu=core-avx2" --json
  tvmc-easyquant benchmark net.tar --float net.onnx
"""


def add(subparsers) -> None:
    help = "top-1, top-5 or a metric of yours: integers against float32 on the same samples"
    parser = add_verb(subparsers, "evaluate", _evaluate, help, EVALUATE)
    add_quantized(parser, package=True)
    shipped.add_options(parser)
    add = parser.add_argument
    add("--data", required=True, metavar="DATA", help="labelled: .npz, folder of folders, module:function")
    add("--metric", metavar="MODULE:FUNCTION", help="instead of top-1 and top-5: (outputs, label) -> float")
    add("--limit", type=int, metavar="N", help="the first N samples only")
    add_cluster(parser)
    add_pictures(parser)

    help = "time our integers and TVM's float32 of the same model in turn, whole and layer by layer"
    parser = add_verb(subparsers, "benchmark", _benchmark, help, BENCHMARK)
    add_quantized(parser, package=True)
    shipped.add_options(parser)
    add = parser.add_argument
    add("--threads", type=int, default=1, metavar="N", help="(1)")
    add("--rounds", type=int, default=15, metavar="N", help="medians are over so many rounds (15)")
    add("--tuning-records", metavar="LOG", help="records of tune-kernels to choose kernels by")


def labelled_data(args, table, pictures=None):
    """(the labelled samples of ``args.data``, {metric: function}); the options are ``evaluate``'s.

    pictures: an `images.Preprocess` instead of theirs.
    """
    from ..measure import networks
    from ..samples import sources

    metrics = networks.metrics_of(args.metric or None)
    data = sources.labelled(args.data, pictures or preprocess_of(args, table))
    if args.limit is not None:
        if args.limit < 1:
            raise UserError(f"--limit is {args.limit}; use 1 or more")
        data = data.first(args.limit)
    return data, metrics


def _evaluate(args, host) -> int:
    from ..measure import accuracy, networks
    from ..network.shapes import inputs_of

    if shipped.is_package(args):
        if args.cluster is not None:
            raise UserError("--cluster is for a model with its table; a package is evaluated here")
        return shipped.evaluate(args, host)
    table = read_table(args)
    target = networks.target_of(host, args.target)
    if target is not None and args.cluster is not None:
        raise UserError(
            "--cluster evaluates in numpy, without TVM; what is compiled is judged here: leave it out"
        )
    judged = labelled_data(args, table)
    graph = load_graph(args, host, table)
    table.check(table.prepared(graph))
    accuracy.check_first(judged[0], inputs_of(graph))
    if target is None:
        print(f"note: {networks.IN_NUMPY}", file=sys.stderr)
    both = networks.in_numpy(graph, table) if target is None else networks.built(host, graph, table, target)
    with progress_bar() as bar:
        scores = networks.judge(
            judged, both, graph, batch=args.batch or 1, warn=warn, progress=bar,
            others=networks.other_settings(args.data, preprocess_of(args, table)),
        )  # fmt: skip
    found = networks.Evaluated(args.data, scores)
    if args.json:
        print_json(found.facts)
        return 0
    for line in found.lines:
        print(line)
    return 0


def _benchmark(args, host) -> int:
    from dataclasses import asdict

    from ..measure import networks

    for name in ("threads", "rounds"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}; use 1 or more")
    if shipped.is_package(args, but=["input_shapes"]):
        return shipped.benchmark(args, host)
    target, table = host.target(args.target), read_table(args)
    host.check_cpu(target)
    graph = load_graph(args, host, table)
    with host.history(args.tuning_records, target), progress_bar() as bar:
        both = networks.built(host, graph, table, target)
        found = networks.timing(
            host, table.prepared(graph), table, both, threads=args.threads, rounds=args.rounds,
            progress=bar,
        )  # fmt: skip
    if args.json:
        print_json({**asdict(found), "doubt": found.doubt, "notes": found.notes})
        return 0
    width = max(len(layer.name) for layer in found.layers)
    print(f"{'layer':{width}}  {'kind':8} {'kernel':24} {'ms':>9} {'fp32 ms':>9} {'speed-up':>9}")
    for layer in found.layers:
        times = [f"{ms:9.4f}" if ms is not None else f"{'?':>9}" for ms in (layer.ms, layer.ms_fp32)]
        ratio = f"{layer.ms_fp32 / layer.ms:9.2f}" if layer.ms and layer.ms_fp32 else ""
        print(
            f"{layer.name:{width}}  {layer.kind:8} {layer.kernel:24} {times[0]} {times[1]} {ratio}".rstrip()
        )
    print(f"{'everything else':{width}}  {'':33} {found.other_ms:9.4f}")
    machine = found.host
    print(
        f"integers {found.ms:.3f} ms ({found.spread[0]:.3f} to {found.spread[1]:.3f}), {host.floats} "
        f"{found.ms_fp32:.3f} ms: {found.headline}\n"
        f"{machine['cpu']} ({', '.join(machine['isa'])}), target '{found.target}', {found.threads} thread"
        f"{'s' if found.threads > 1 else ''}, medians of {found.rounds} rounds, TVM {machine['tvm']}"
    )
    for note in found.notes:
        print(f"note: {note}")
    if found.notes and found.doubt is None:
        print("note: quantize --keep-if-faster keeps float what is slower in integers")
    return 0
