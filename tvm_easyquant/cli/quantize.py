"""The verb ``quantize``: a float model and calibration data in, a scale table out."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

from ..errors import GraphError, TVMMissing
from ..files import writable
from ..measure.report import worst_layers
from ..network.shapes import inputs_of
from ..progress import peak_memory_gib
from ..scales.numerics import SWITCHES
from .common import (
    UserError,
    add_cluster,
    add_model,
    add_pictures,
    add_verb,
    float_lines,
    load_graph,
    model_options,
    open_model,
    preprocess_of,
    print_json,
    progress_bar,
    warn,
)

EXAMPLES = """\
examples:
  tvmc-easyquant quantize net.onnx --calibration images.npz -o net.json
  tvmc-easyquant quantize net.onnx --calibration folder/ --bits 8 --skip conv1 'layer4.*' op:dense
  tvmc-easyquant quantize net.onnx --calibration photos/ --short-side 256 --crop 224x224 \\
      --scale 1/255 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 -o net.json
  tvmc-easyquant quantize net.onnx --calibration mydata:batches -o net.json
  tvmc-easyquant quantize net.onnx --calibration images.npz --bits 7,8 -o net.json
  tvmc-easyquant quantize net.onnx --calibration images.npz --max-drop 0.5 --eval validation.npz
  tvmc-easyquant quantize net.onnx --calibration images.npz --bits auto --max-drop 0.5 --eval labelled/
  tvmc-easyquant quantize net.onnx --calibration images.npz --set rounding=descent start=kl
  tvmc-easyquant quantize net.onnx --dry-run --input-shapes "data:[1,3,224,224]"
  tvmc-easyquant compile net.onnx -o net.tar \\
      --target "easyquant -table=net.json, llvm -mcpu=core-avx2"
  tvmc-easyquant run net.tar --inputs input.npz --print-time

images.npz holds one array per input of the model, named like the input, samples along the first
axis (or a single array of any name for a model with one input); every .npy in a folder is one
sample or a batch of them. Values are float32, normalised as in training. Pictures (.png, .jpg, ...)
are normalised by --scale, --mean and --std; these settings are kept in the table, where evaluate and
report find them. mydata:batches is a function in mydata.py that yields arrays or {input: array}.

--max-drop reverts the worst layers, 7 -> 8 -> float, as few as it takes, until the compiled integers lose
no more than so many points against float32 on --eval (what evaluate takes as --data). --bits auto chooses
each layer's bits so that the network is fastest within --max-drop. With a --metric of the whole set (see
evaluate) --max-drop is in that metric's own unit: 0.01 of an mAP that is 0.337, 1 of one that is 33.7.
--bits 7,8 writes both tables to one file, of one calibration; what reads it takes the one of 7 bits, or
what its own --bits says.

--set changes what --method does: grid=N factors of a scale between alpha=X and beta=X; rounds=N;
percentile=X that start=percentile keeps; start=max|percentile|kl|mse; objective=cosine|mse|hessian;
order=passes|layerwise; rounding=nearest|descent; unsigned, gain_correction, bias_correction,
exhaustive, fuse_functions, asymmetric, channel_factors, effect and equalize=true|false. The paper's
method, easyquant, takes the numbers only.
"""
#: settings of `QuantConfig` that --set takes: numbers, and the switches of the search
NUMBERS = {"grid": int, "rounds": int, "alpha": float, "beta": float, "percentile": float}
SETTINGS = (*NUMBERS, *SWITCHES, "equalize")
BOOLEANS = {"true": True, "false": False}


def add(subparsers) -> None:
    from ..samples.sources import CALIBRATION_LIMIT
    from ..scales.numerics import BITS, DEFAULT_METHOD, METHODS

    help = "find the scales of an int7 or int8 network (EasyQuant)"
    parser = add_verb(subparsers, "quantize", _quantize, help, EXAMPLES)
    add_model(parser)
    add = parser.add_argument
    add("-o", "--output", default="table.json", help="the scale table to write (table.json)")
    add("--calibration", metavar="DATA", help=".npz, folder of arrays or pictures, or module:function")
    add("--bits", type=_bits, default=7,
        help=f"{', '.join(map(str, BITS))}, 7,8 for both in one table, or auto, by layer (7)")  # fmt: skip
    add("--max-drop", type=float, metavar="POINTS",
        help="accuracy that may be lost against float32 on --eval")  # fmt: skip
    add("--eval", metavar="DATA", help="labelled: .npz, folder of folders, module:function")
    add("--metric", metavar="MODULE:FUNCTION", help="instead of top-1: (outputs, label) -> 0.0 to 1.0")
    add("--method", default=DEFAULT_METHOD, help=f"{', '.join(METHODS)} ({DEFAULT_METHOD})")
    add("--search-images", type=int, default=50, metavar="N", help="samples for the search (50)")
    add("--calibration-limit", type=int, default=CALIBRATION_LIMIT, metavar="N",
        help="samples that are read at most, spread evenly over a folder of pictures; arrays are read "
        f"whole ({CALIBRATION_LIMIT})")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="of the pictures that are taken (0)")
    add("--skip", nargs="+", default=(), metavar="LAYER",
        help="what stays float: names, regular expressions, or op:conv2d for an operator")  # fmt: skip
    add("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE",
        help=f"a setting of the search ({', '.join(SETTINGS)}); see below")  # fmt: skip
    add("--resume", action="store_true", help="save the search in OUTPUT.search and go on from it")
    add("--no-check", action="store_true",
        help="do not compare what was read with the model on the first sample")  # fmt: skip
    add("--dry-run", action="store_true", help="only say what would run in integers")
    add("--keep-if-faster", action="store_true",
        help="measure first; layers that are slower in integers than TVM's float32 stay float")  # fmt: skip
    add("--target", help="what --keep-if-faster, --max-drop and --bits auto measure on, such as "
        "'llvm -mcpu=core-avx2' (this CPU)")  # fmt: skip
    add("--module-out", metavar="FILE", help="also write the integer Relay module (TVM's JSON)")
    add("--qdq-out", metavar="FILE", help="also write the network as ONNX with QuantizeLinear nodes")
    add(
        "--symmetric",
        action="store_true",
        help="no zero points and no scale per channel for activations, as ncnn's table has none",
    )
    add("--record", metavar="FILE", help="also write the curves of the search, for report --record")
    add("--json", action="store_true", help="print the result as JSON")
    add_cluster(parser)
    add_pictures(parser)


def _bits(text: str):
    """The bits that ``--bits`` names: a number, both, or "auto"; any other text as it is."""
    if text in ("7,8", "8,7"):
        return (7, 8)
    return int(text) if text.isdecimal() else text


def _settings(words: list[str]) -> dict[str, Any]:
    """The settings that ``--set`` names, as `QuantConfig` takes them; it checks the values of switches."""
    found: dict[str, Any] = {}
    for word in words:
        name, _, text = word.partition("=")
        if name not in SETTINGS or not text:
            raise UserError(f"--set {word}: give NAME=VALUE; the names are {', '.join(SETTINGS)}")
        try:
            found[name] = NUMBERS[name](text) if name in NUMBERS else BOOLEANS.get(text.lower(), text)
            if name in NUMBERS and not math.isfinite(found[name]):
                raise ValueError
        except ValueError:
            kind = "whole number" if NUMBERS[name] is int else "number"
            raise UserError(f"--set {word}: {name} takes a {kind}") from None
    return found


def _check_asked(args, auto: bool, both: bool) -> None:
    """UserError for options that do not go together."""
    if (args.max_drop is None) != (args.eval is None) or (auto and args.eval is None):
        raise UserError("--max-drop and --bits auto need --eval DATA, labelled, and a --max-drop")
    if both and (args.eval or args.keep_if_faster or args.module_out or args.qdq_out):
        raise UserError("--bits 7,8 finds two tables; --eval, --keep-if-faster, --module-out and --qdq-out "
                        "are of one: give --bits 7, or 8")  # fmt: skip
    if args.metric and args.eval is None:
        raise UserError("--metric judges labelled data: give --eval DATA and --max-drop, too")
    if args.keep_if_faster and args.resume:
        raise UserError("--keep-if-faster measures anew, and times vary: --resume cannot rely on it; give "
                        "--skip the layers that it named")  # fmt: skip


def _quantize(args, host) -> int:
    from .. import workflow
    from ..measure import accuracy
    from ..samples import sources
    from ..scales import partition
    from ..scales.numerics import QuantConfig
    from ..search.curves import Curves

    auto, both = args.bits == "auto", isinstance(args.bits, tuple)
    if isinstance(args.bits, str) and not auto:
        raise UserError(f"--bits {args.bits!r}: give 7, 8, 7,8 for both in one table, or auto")
    config = QuantConfig(
        bits=7 if auto or both else args.bits, method=args.method, search_images=args.search_images,
        skip=args.skip,
        **({"asymmetric": False, "channel_factors": False} if args.symmetric else {}) | _settings(args.set),
    )  # fmt: skip
    _check_asked(args, auto, both)
    preprocess = preprocess_of(args)
    if args.calibration_limit < 1 or args.seed < 0:
        raise UserError("--calibration-limit takes 1 or more, --seed 0 or more")
    data = None
    if args.calibration:
        data = sources.calibration(
            args.calibration, preprocess, limit=args.calibration_limit, seed=args.seed
        )
    if args.dry_run:
        graph = load_graph(args, host)
        _warn_of_floats(host, graph)
        return _dry_run(graph, partition.plan_of(graph, config), args.json)
    if data is None:
        raise UserError("quantize needs --calibration FILE.npz, FOLDER or module:function")
    _check_outputs(args)
    judged = {} if args.eval is None else _judged(args, preprocess, auto)
    opened = open_model(args, host)
    graph = opened.graph
    _warn_of_floats(host, graph)
    if judged:
        accuracy.check_first(judged["evaluation"], inputs_of(graph))
    notes: tuple[str, ...] = ()
    if args.keep_if_faster:
        config, notes = _faster(args, host, graph, config)
    checkpoint = Path(f"{args.output}.search") if args.resume else None
    curves = Curves(config.how.objective or "", graph.fingerprint) if args.record else None
    if judged:
        judged["fp32"] = host.build_float(host.float_module(graph), args.target)
    check = False if args.no_check or opened.check is None else opened.check
    with progress_bar() as bar:
        result = workflow.quantize(
            graph, data, config=config, checkpoint=checkpoint, progress=bar,
            preprocess=preprocess, record=curves, host=host, check=check,
            outputs=model_options(args)["outputs"],
            calibration_limit=args.calibration_limit, **({"bits": args.bits} if both else {}), **judged,
        )  # fmt: skip
    _write(args, host, result, curves)
    _tell(args, result, notes + result.notes)
    return 0


def _tell(args, result, notes) -> None:
    """What was found, and at other bits what they found."""
    warn(dict.fromkeys(line for q in (result, *result.others.values()) for line in q.warnings))
    if args.json:
        also = [_facts(q, args.output) for q in result.others.values()]
        print_json(
            {**_facts(result, args.output), "notes": list(notes), **({"also": also} if also else {})}
        )
        return
    lines = [_summary(result, args.output)]
    lines += [f"at {bits} bits:\n{_summary(q, args.output)}" for bits, q in result.others.items()]
    print("\n".join([*lines, *(f"note: {note}" for note in notes)]))


def _warn_of_floats(host, graph) -> None:
    """Before the search: what `compile` would refuse, a float operator that this host cannot compute."""
    if any(node.op == "float" for node in graph):
        try:
            host.float_module(graph)
        except GraphError as error:
            warn([f"{error}; compile will refuse it here"])
        except TVMMissing:
            pass


def _check_outputs(args) -> None:
    """Before the work: every output can be written, and no two are one file."""
    inputs = (args.FILE, args.calibration)
    taken: dict[Path, str] = {}
    for flag in ("output", "module_out", "qdq_out", "record"):
        path = getattr(args, flag)
        other = taken.setdefault(writable(path, inputs), flag) if path else flag
        if other != flag:
            flags = " and ".join("--" + name.replace("_", "-") for name in (other, flag))
            raise UserError(f"{flags} both name {path}")


def _write(args, host, result, curves) -> None:
    """The table and what else was asked for: all made before the first is written."""
    from ..files import write_text
    from ..writers import qdq

    module = host.save_module(result.module) if args.module_out else None
    exported = qdq.to_qdq(result.graph, result.table) if args.qdq_out else None
    result.tables.save(args.output)
    if module is not None:
        write_text(args.module_out, module)
    if exported is not None:
        qdq.save(args.qdq_out, exported)
    if curves is not None:
        curves.model = result.table.model  # the report knows the network as the table prepares it
        curves.save(args.record)


def _faster(args, host, graph, config):
    """The settings with the layers that are faster in float kept so, and what to say about it."""
    from dataclasses import replace

    target = host.target(args.target)
    floats = host.build_float(host.float_module(graph), target)
    with progress_bar() as bar:
        found = host.keep_if_faster(graph, floats, config, target, progress=bar)
    return replace(config, skip=(*config.skip, *found.skip)), found.notes


def _judged(args, preprocess, auto) -> dict:
    """What `workflow.quantize` needs to meet ``--max-drop``, but for the float network."""
    from ..samples import labelled, sources

    if not args.max_drop >= 0:
        raise UserError(f"--max-drop is {args.max_drop}; give points of accuracy, 0 or more")
    return {
        "max_drop": args.max_drop,
        "evaluation": sources.labelled(args.eval, preprocess),
        "metric": labelled.named(args.metric, "outputs", "label") if args.metric else None,
        "target": args.target,
        **({"bits": "auto"} if auto else {}),
    }


def _facts(result, output) -> dict:
    return {
        "table": str(output),
        "bits": result.table.config.bits,
        "layer_bits": dict(result.table.config.layer_bits),
        "decisions": list(result.decisions),
        "drop": None if result.drop is None else result.drop.drop,
        "method": result.table.config.method,
        **result.plan.coverage(result.graph).facts,
        "seconds": {step: round(s, 3) for step, s in result.seconds.items()},
        "peak_memory_gib": round(peak_memory_gib(), 3),
        "float_nodes": dict(result.plan.floats),
        "worst_layers": worst_layers(result.table),
        "warnings": list(result.warnings),
        "layers": result.layers,
    }


def _summary(result, output) -> str:
    width = max([5, *(len(row["layer"]) for row in result.layers)])
    lines = [f"{'layer':{width}} {'kind':8} {'cosine':>8} {'SQNR dB':>8}"]
    for row in result.layers:
        figures = zip((row.get("cosine"), row.get("sqnr_db")), (5, 1), strict=True)
        texts = ["" if f is None else f"{f:.{digits}f}" for f, digits in figures]
        lines.append(f"{row['layer']:{width}} {row['kind']:8} {texts[0]:>8} {texts[1]:>8}".rstrip())
    decided = {line.split(": ")[0] for line in result.decisions}  # a line of its own says why
    lines += float_lines({n: why for n, why in result.plan.floats.items() if n not in decided})
    lines += result.decisions
    worst = worst_layers(result.table)
    if worst and not result.decisions:
        skip = " ".join(map(shlex.quote, (*result.table.config.skip, *worst)))
        lines.append(f"if the accuracy is too low, keep the worst layers float: --skip {skip}")
    lines.append(
        f"{result.plan.coverage(result.graph)} run in integers; {len(result.plan.floats)} nodes stay float"
    )
    lines.append(
        f"search {result.seconds['search']:.1f} s, peak memory {peak_memory_gib():.2f} GiB; "
        f"scale table: {output}"
    )
    return "\n".join(lines)


def _dry_run(graph, plan, as_json: bool) -> int:
    coverage = plan.coverage(graph)
    rows = [
        {
            "layer": node.name,
            "op": node.op,
            "kind": "integer" if node.name in plan.integer else "float",
            "macs": node.macs,
            "percent": 100 * node.macs / graph.macs if graph.macs else 0.0,
            "weight": list(node.public_weight.shape),
            "output": list(node.shape),
        }
        for node in graph.compute_nodes
    ]
    if as_json:
        facts = {**coverage.facts, "float_nodes": dict(plan.floats), "layers": rows}
        print_json(facts)
        return 0
    width = max(len(row["layer"]) for row in rows)
    for row in rows:
        shape = "x".join(map(str, row["weight"]))
        print(
            f"{row['layer']:{width}} {row['op']:8} {shape:14} {row['kind']:8} {row['macs']:>12} MACs "
            f"{row['percent']:5.1f} %"
        )
    print("".join(f"{line}\n" for line in float_lines(plan.floats)), end="")
    integer = sum(row["kind"] == "integer" for row in rows)
    print(f"{integer} of {len(rows)} layers, {coverage} would run in integers")
    return 0
