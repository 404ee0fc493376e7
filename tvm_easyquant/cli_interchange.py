"""The verbs that take a quantized network elsewhere and bring one in, and check that nothing changed."""

from __future__ import annotations

import functools
import itertools

from .cli_common import (
    UserError,
    add_model,
    add_pictures,
    add_verb,
    load_graph,
    preprocess_of,
    print_json,
    progress_bar,
    writable,
)

DIFFERENT = 1  # exit code: compared, and not equal

EXAMPLES = """\
examples:
  tvmc-easyquant export-onnx net.onnx --table net.json -o net_qdq.onnx
  tvmc-easyquant verify-onnx net.onnx --table net.json --inputs images.npz
  tvmc-easyquant verify-onnx net.onnx --table net.json --inputs images.npz --qdq net_qdq.onnx --compiled
"""


def add(subparsers) -> None:
    help = "write a quantized network as standard ONNX (QuantizeLinear, DequantizeLinear)"
    parser = add_verb(subparsers, "export-onnx", _export, help, EXAMPLES)
    add_model(parser, "the model that the table was made for")
    parser.add_argument("--table", required=True, metavar="FILE", help="its scale table, from quantize")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the ONNX file to write")

    help = "compare our integers with ONNX Runtime's, layer by layer"
    parser = add_verb(subparsers, "verify-onnx", _verify, help, EXAMPLES + VERDICTS)
    add_model(parser, "the model that the table was made for")
    add = parser.add_argument
    add("--table", required=True, metavar="FILE", help="its scale table, from quantize")
    add(
        "--inputs",
        required=True,
        metavar="DATA",
        help=".npz, folder of arrays or pictures, or module:function",
    )
    add("--count", type=int, default=8, metavar="N", help="inputs to compare on (8)")
    add("--qdq", metavar="FILE", help="a model written by export-onnx (made anew from the table)")
    add("--optimizations", choices=("on", "off", "both"), default="both",
        help="ONNX Runtime with its graph optimizations, without, or both in turn (both)")  # fmt: skip
    add("--compiled", action="store_true", help="run the compiled module instead of the numpy reference")
    add("--target", help="a CPU target for --compiled (this CPU)")
    add("--strict", action="store_true", help="a difference next to a tie is a difference, too")
    add("--json", action="store_true", help="print the result as JSON")
    add_pictures(parser)


VERDICTS = """
exit codes: 0 all equal, or different next to a tie only, where float32 may round either way; 1 different
"""


def _export(args) -> int:
    from .onnx_export import save_qdq
    from .scale_table import ScaleTable

    writable(args.output, inputs=(args.FILE, args.table))
    table = ScaleTable.load(args.table)
    graph = load_graph(args)
    save_qdq(args.output, graph, table)
    plan = table.check(graph)
    print(
        f"{args.output}: {plan.coverage(graph):.1f} % of the multiply-accumulates behind int8 weights, "
        f"{len(plan.floats)} float nodes"
    )
    return 0


def _show(bar, total, text, done):
    bar(done, total, text)


def _verify(args) -> int:
    from . import calibrate, onnx_verify, sources
    from .scale_table import ScaleTable

    if args.count < 1:
        raise UserError(f"--count is {args.count}; use 1 or more")
    table = ScaleTable.load(args.table)
    source = sources.calibration(args.inputs, preprocess_of(args, table), "--inputs")
    model = None if args.qdq is None else onnx_verify.load(args.qdq)
    graph = load_graph(args)
    data = calibrate.samples(source(graph.inputs), graph)
    inputs = list(itertools.islice(data, args.count))
    integers = onnx_verify.compiled_integers(graph, table, args.target) if args.compiled else None
    runs = []
    with progress_bar() as bar:
        for optimize in {"on": (True,), "off": (False,), "both": (False, True)}[args.optimizations]:
            text = f"{'with' if optimize else 'without'} graph optimizations"
            options = dict(model=model, optimize=optimize, integers=integers)
            options["progress"] = functools.partial(_show, bar, len(inputs), text)
            runs.append(onnx_verify.verify(graph, table, inputs, **options))
    if args.json:
        print_json({"table": args.table, "integers": "compiled" if args.compiled else "numpy",
                    "runs": [run.to_dict() for run in runs]})  # fmt: skip
    else:
        print("\n".join(map(str, runs)))
    bad = any(run.first is not None if args.strict else run.unexplained for run in runs)
    return DIFFERENT if bad else 0
