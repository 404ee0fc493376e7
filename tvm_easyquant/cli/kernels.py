"""The verbs ``plan`` and ``tune-kernels``: which kernel each layer gets, and measuring them on this CPU."""

from __future__ import annotations

from ..files import writable
from ..progress import Bar
from .common import (
    INTERRUPTED,
    UserError,
    add_quantized,
    add_verb,
    fail,
    load_graph,
    print_json,
    read_table,
)

EXAMPLES = """\
examples:
  tvmc-easyquant plan net.onnx --table net.json --target "llvm -mcpu=core-avx2"
  tvmc-easyquant tune-kernels net.onnx --table net.json -o net.log
  tvmc-easyquant plan net.onnx --table net.json --tuning-records net.log
  tvmc-easyquant compile net.onnx --tuning-records net.log -o net.tar \\
      --target "easyquant -table=net.json, llvm -mcpu=core-avx2"
"""


def add(subparsers) -> None:
    _add_plan(subparsers)
    _add_tune(subparsers)


def _add_plan(subparsers):
    parser = add_verb(subparsers, "plan", _plan, "say which kernel each layer gets, and why", EXAMPLES)
    add_quantized(parser)
    parser.add_argument("--tuning-records", metavar="LOG", help="records of tune-kernels to choose by")


def _add_tune(subparsers):
    help = "measure our kernels for a quantized model on this CPU"
    parser = add_verb(subparsers, "tune-kernels", _tune, help, EXAMPLES)
    add_quantized(parser)
    add = parser.add_argument
    add("-o", "--output", required=True, metavar="LOG", help="records are appended; kernels in it are done")
    add("--tuner", help="xgb, ga, random, grid, exhaustive (xgb); with apache-tvm exhaustive alone")
    add("--trials", type=int, default=64, metavar="N", help="most configurations of one kernel (64)")
    add("--early-stopping", type=int, metavar="N", help="stop a kernel after N trials without a better one")
    add("--alternatives", type=int, default=1, metavar="N", help="slower legal kernels measured, too (1)")
    add("--rpc-tracker", metavar="HOST:PORT", help="measure on a device of this tracker")
    add("--rpc-key", metavar="KEY", help="the device's key at the tracker")
    add("--cross-compiler", metavar="NAME", help="what links for the device: aarch64-linux-gnu-g++")


def _quantized(args, host):
    """(graph, table, target) of the command line."""
    target = host.target(args.target)
    table = read_table(args)
    return load_graph(args, host, table), table, target


def _plan(args, host) -> int:
    from ..measure.report import saturation

    graph, table, target = _quantized(args, host)
    with host.history(args.tuning_records, target):
        layers = host.layer_choices(graph, table, target)
        without, count = host.untuned(layers, target)
    rows = [
        {
            "layer": layer.name,
            "shape": layer.spec.shape_text,
            "kernel": layer.choice.kernel.name,
            "reason": layer.choice.reason,
            "proof": str(layer.choice.proof),
            "saturation": saturation(layer.weight, layer.spec.data_max),
            "refused": dict(layer.choice.refused),
            "unfit": dict(layer.choice.unfit),
            "slower": dict(layer.choice.slower),
        }
        for layer in layers
    ]
    if args.json:
        print_json({"target": str(target), "untuned": without, "layers": rows})
        return 0
    width = max(len(row["layer"]) for row in rows)
    for row in rows:
        print(
            f"{row['layer']:{width}}  {row['shape']:34} {row['kernel']:24} {row['reason']}; {row['proof']}"
        )
        if not row["saturation"]["safe"]:
            print(f"{'':{width}}    {row['saturation']['text']}; {row['kernel']} is exact")
        for name, why in row["refused"].items():
            print(f"{'':{width}}    not {name}: {why}")
    print(f"{without} of {count} kernels run untuned")
    return 0


def _tune(args, host) -> int:
    host.linker(args.cross_compiler)
    writable(args.output, inputs=(args.FILE, args.table))
    device = None
    if args.rpc_tracker or args.rpc_key:
        name, _, port = (args.rpc_tracker or "").rpartition(":")
        if not (name and port.isdigit() and args.rpc_key):
            raise UserError("--rpc-tracker HOST:PORT and --rpc-key KEY belong together")
        device = (name, int(port), args.rpc_key)
    graph, table, target = _quantized(args, host)
    module = host.rewrite(graph, table)
    tuner = {} if args.tuner is None else {"tuner": args.tuner}  # the host's own
    bar = Bar(steps=True)
    try:
        result = host.tune(
            module, args.output, target, **tuner, trials=args.trials,
            early_stopping=args.early_stopping, alternatives=args.alternatives, device=device,
            cross_compiler=args.cross_compiler, progress=bar,
        )  # fmt: skip
    except KeyboardInterrupt:
        return fail(INTERRUPTED, f"interrupted; the same command goes on from the records in {args.output}")
    finally:
        bar.close()
    if args.json:
        print_json(vars(result))
    else:
        print(f"{result}; records in {args.output}")
    return 0
