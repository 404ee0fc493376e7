"""The verbs that take a quantized network elsewhere and bring one in, and check that nothing changed."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

from topi_ext import isa

from ..files import writable
from .common import (
    UserError,
    add_bits,
    add_model,
    add_pictures,
    add_table,
    add_verb,
    float_lines,
    load_graph,
    load_table,
    model_options,
    preprocess_of,
    print_json,
    progress_bar,
    read_table,
)

DIFFERENT = 1  # exit code: compared, and not equal

EXAMPLES = """\
examples:
  tvmc-easyquant export-onnx net.onnx --table net.json -o net_qdq.onnx
  tvmc-easyquant verify-onnx net.onnx --table net.json --inputs images.npz
  tvmc-easyquant verify-onnx net.onnx --table net.json --inputs images.npz --qdq net_qdq.onnx --compiled
  tvmc-easyquant import-onnx quantized.onnx -o net.tar --isa avx2,generic
  tvmc-easyquant run net.tar --inputs input.npz
  tvmc-easyquant verify-onnx quantized.onnx --inputs images.npz
  tvmc-easyquant export-ncnn net.onnx --table net.json -o net.table
  tvmc-easyquant import-ncnn net.onnx --ncnn net.table -o net.json
"""


def add(subparsers) -> None:
    help = "write a quantized network as standard ONNX (QuantizeLinear, DequantizeLinear)"
    parser = add_verb(subparsers, "export-onnx", _export, help, EXAMPLES)
    add_table(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the ONNX file to write")

    help = "compare our integers with ONNX Runtime's, layer by layer"
    parser = add_verb(subparsers, "verify-onnx", _verify, help, EXAMPLES + VERDICTS)
    add_model(parser, "the model that the table was made for, or a quantized ONNX model")
    add = parser.add_argument
    add("--table", metavar="FILE", help="its scale table, from quantize; not for a quantized model")
    add_bits(parser)
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

    help = "compile a quantized ONNX model (QDQ or QOperator): its scales, our kernels"
    parser = add_verb(subparsers, "import-onnx", _import, help, EXAMPLES)
    add_model(parser, "an ONNX model quantized by ONNX Runtime, NNCF, Quark, PPQ, ...")
    add = parser.add_argument
    add("-o", "--output", metavar="FILE.tar", help="the compiled package to write, for run and benchmark")
    add("--target", help="a CPU target such as 'llvm -mcpu=core-avx2' (this CPU)")
    add(
        "--isa",
        metavar="ROW,...",
        help="instead: a variant for each of these instruction sets, as in compile",
    )
    add("--cross-compiler", metavar="NAME", help="what links for another machine")
    add("--tuning-records", metavar="LOG", help="records of tune-kernels")
    add("--table-out", metavar="FILE", help="also write its scales as a scale table")
    add("--module-out", metavar="FILE", help="also write the integer Relay module (TVM's JSON)")
    add("--json", action="store_true", help="print the result as JSON")

    help = "write a scale table as ncnn's calibration table"
    parser = add_verb(subparsers, "export-ncnn", _export_ncnn, help, EXAMPLES + NCNN)
    add_table(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the ncnn table to write")

    help = "make a scale table of ncnn's calibration table"
    parser = add_verb(subparsers, "import-ncnn", _import_ncnn, help, EXAMPLES + NCNN)
    add_model(parser, "the float model that ncnn's table was made for, with the same layer names")
    parser.add_argument("--ncnn", required=True, metavar="FILE", help="the ncnn table, from ncnn2table")
    parser.add_argument(
        "-o", "--output", default="table.json", help="the scale table to write (table.json)"
    )


NCNN = """
ncnn's scales are signed and symmetric, -127..127: an unsigned 8-bit tensor gets steps twice as large; what
only add, pool or concat read has none there, and stays float when such a table is read.
"""
VERDICTS = """
exit codes: 0 all equal, or different where float32 may round either way, next to a tie, or where ONNX
Runtime's kernels for a CPU without VNNI saturate (8 bits only); 1 different
"""


def _export(args, host) -> int:
    from ..writers.qdq import save, to_qdq

    writable(args.output, inputs=(args.FILE, args.table))
    graph, table, plan = load_table(args, host)
    save(args.output, to_qdq(graph, table))
    print(f"{args.output}: {_coverage(graph, plan)}")
    return 0


def _export_ncnn(args, host) -> int:
    from ..writers import ncnn

    writable(args.output, inputs=(args.FILE, args.table))
    graph, table, plan = load_table(args, host)
    ncnn.save(args.output, graph, table)
    print("\n".join([*float_lines(plan.floats), f"{args.output}: {len(table.weights)} layers"]))
    return 0


def _import_ncnn(args, host) -> int:
    from ..writers import ncnn

    writable(args.output, inputs=(args.FILE, args.ncnn))
    graph = load_graph(args, host)
    table = ncnn.load(args.ncnn, graph)
    table.save(args.output)
    plan = table.check(graph)
    print("\n".join([*float_lines(plan.floats), f"{args.output}: {_coverage(graph, plan)}"]))
    return 0


def _coverage(graph, plan) -> str:
    return f"{plan.coverage(graph)} run in integers; {len(plan.floats)} nodes stay float"


def _options(args) -> dict:
    """The options of a model that a quantized one has."""
    options = model_options(args)
    if options.pop("model_format") not in (None, "onnx"):
        raise UserError(f"--model-format {args.model_format}: a quantized model must be ONNX")
    if options.pop("outputs") is not None:
        raise UserError("--outputs cuts float models; a quantized one is taken over whole")
    return options


def _import(args, host) -> int:
    from dataclasses import replace

    from .. import workflow
    from ..files import write_text

    if args.output or args.cross_compiler:
        host.linker(args.cross_compiler)
    paths = [path for path in (args.output, args.table_out, args.module_out) if path]
    if len({writable(path) for path in paths}) < len(paths):
        raise UserError("--output, --table-out and --module-out must name different files")
    if args.isa is not None and not args.output:
        raise UserError("--isa is of the package: give --output FILE.tar")
    if args.isa is not None and args.target is not None:
        raise UserError("--isa and --target both say for which CPU; give one of them")
    several = [row.name for row in isa.named(args.isa)] if args.isa is not None else []
    if args.tuning_records and len(several) > 1:
        raise UserError("--tuning-records are of one CPU: name one instruction set with --isa")
    text = isa.ISAS[several[0]].target if len(several) == 1 else args.target
    target = host.target(text) if args.output else None
    taken = workflow.import_quantized(args.FILE, **_options(args), host=host)
    if args.output:
        with host.history(args.tuning_records, target):
            made = taken.build(isa=several) if len(several) > 1 else taken.build(target)
            made.export(args.output, args.cross_compiler)
    if args.table_out:
        replace(taken.table, data={"imported from": Path(args.FILE).name}).save(args.table_out)
    if args.module_out:
        write_text(args.module_out, host.save_module(taken.module))
    facts = {
        "package": args.output,
        "table": args.table_out,
        **taken.plan.coverage(taken.graph).facts,
        "float_nodes": dict(taken.plan.floats),
        "layers": taken.layers,
    }
    if args.json:
        print_json(facts)
        return 0
    for row in taken.layers:
        print(f"{row['layer']:40} {row['kind']:8} {taken.plan.floats.get(row['layer'], '')}".rstrip())
    for name, why in taken.plan.floats.items():
        if not taken.graph[name].operator.layer:
            print(f"float: {name}: {why}")
    package = f"; package: {args.output}" if args.output else ""
    print(f"{_coverage(taken.graph, taken.plan)}{package}")
    return 0


def _show(bar, total, text, done):
    bar(done, total, text)


def _verify(args, host) -> int:
    from .. import workflow
    from ..samples import sources
    from ..scales import calibrate
    from ..writers import verify

    if args.count < 1:
        raise UserError(f"--count is {args.count}; use 1 or more")
    table = read_table(args) if args.table else None
    source = sources.calibration(args.inputs, preprocess_of(args, table), "--inputs")
    model, names = None if args.qdq is None else verify.load(args.qdq), None
    if table is None:
        taken = workflow.import_quantized(args.FILE, **_options(args), host=host)
        if not taken.origin:
            raise UserError(f"{args.FILE}: nothing of it runs in integers, so there is nothing to compare")
        graph, table, model, names = taken.graph, taken.table, taken.model, taken.origin
    else:
        graph = table.prepared(load_graph(args, host, table))
    data = calibrate.samples(source(graph.inputs), graph)
    inputs = list(itertools.islice(data, args.count))
    integers = verify.compiled_integers(host, graph, table, args.target) if args.compiled else None
    runs = []
    with progress_bar() as bar:
        for optimize in {"on": (True,), "off": (False,), "both": (False, True)}[args.optimizations]:
            text = f"{'with' if optimize else 'without'} graph optimizations"
            show = functools.partial(_show, bar, len(inputs), text)
            runs.append(verify.verify(
                graph, table, inputs,
                model=model, names=names, optimize=optimize, integers=integers, progress=show,
            ))  # fmt: skip
    if args.json:
        facts = {"model": args.FILE, "table": args.table}
        facts["integers"] = "compiled" if args.compiled else "numpy"
        print_json({**facts, "runs": [run.to_dict() for run in runs]})
    else:
        print("\n".join(map(str, runs)))
    bad = any(run.first is not None if args.strict else run.unexplained for run in runs)
    return DIFFERENT if bad else 0
