"""The verb ``quantize``: a float model and calibration data in, a scale table out."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from .cli_common import UserError, add_model, add_verb, load_graph, one_line, print_json, writable
from .progress import Bar, peak_memory_gib

EXAMPLES = """\
examples:
  tvmc-easyquant quantize net.onnx --calibration images.npz -o net.json
  tvmc-easyquant quantize net.onnx --calibration folder/ --bits 8 --skip conv1 -o net.json
  tvmc-easyquant quantize net.onnx --dry-run --input-shapes "data:[1,3,224,224]"
  tvmc-easyquant compile net.onnx -o net.tar \\
      --target "easyquant -table=net.json, llvm -mcpu=core-avx2"
  tvmc-easyquant run net.tar --inputs input.npz --print-time

images.npz holds one array per input of the model, named like the input, samples along the first
axis (or a single array of any name for a model with one input); every .npy in a folder is one
sample or a batch of them. Values are float32, normalised as in training.
"""


# -- calibration data


def calibration_files(path: str) -> list[Path]:
    """The .npy and .npz files behind ``--calibration``; UserError if there are none."""
    source = Path(path)
    if not source.exists():
        raise UserError(f"--calibration: there is no file or folder {path}")
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    files = [f for f in files if f.suffix in (".npy", ".npz")]
    if not files:
        raise UserError(f"--calibration: {path} holds no .npy or .npz file")
    return files


def calibration_data(files: Sequence[Path], inputs: Sequence[str]) -> Iterator:
    """What the files hold, one after the other, in a form that `tvm_easyquant.calibrate` takes."""
    import numpy as np

    for file in files:
        try:
            loaded = np.load(file, allow_pickle=False)
            arrays = loaded if file.suffix == ".npy" else {name: loaded[name] for name in loaded.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"--calibration: cannot read {file}: {one_line(error)}") from None
        if file.suffix == ".npz" and len(arrays) == len(inputs) == 1:
            arrays = next(iter(arrays.values()))
        yield arrays


# -- the verb ``quantize``


def add(subparsers) -> None:
    from .numerics import BITS, DEFAULT_METHOD, METHODS

    help = "find the scales of an int7 or int8 network (EasyQuant)"
    parser = add_verb(subparsers, "quantize", _quantize, help, EXAMPLES)
    add_model(parser)
    add = parser.add_argument
    add("-o", "--output", default="table.json", help="the scale table to write (table.json)")
    add("--calibration", metavar="DATA", help=".npz file, or folder of .npy and .npz files")
    add("--bits", type=int, default=7, help=f"{' or '.join(map(str, BITS))} (7)")
    add("--method", default=DEFAULT_METHOD, help=f"{', '.join(METHODS)} ({DEFAULT_METHOD})")
    add("--search-images", type=int, default=50, metavar="N", help="samples for the search (50)")
    add("--skip", nargs="+", default=(), metavar="NAME", help="layers that stay float")
    add("--resume", action="store_true", help="save the search in OUTPUT.search and go on from it")
    add("--dry-run", action="store_true", help="only say what would run in integers")
    add("--module-out", metavar="FILE", help="also write the integer Relay module (TVM's JSON)")
    add("--json", action="store_true", help="print the result as JSON")


def _quantize(args) -> int:
    from . import pipeline, sites
    from .files import write_text
    from .numerics import QuantConfig

    config = QuantConfig(
        bits=args.bits, method=args.method, search_images=args.search_images, skip=args.skip
    )
    files = calibration_files(args.calibration) if args.calibration else None
    if not args.dry_run:
        if files is None:
            raise UserError("quantize needs --calibration FILE.npz or FOLDER")
        outputs = [writable(path) for path in (args.output, args.module_out) if path]
        if len(set(outputs)) < len(outputs):
            raise UserError(f"--output and --module-out both name {args.output}")
    graph = load_graph(args)
    if args.dry_run:
        return _dry_run(graph, sites.plan(graph, config.skip), args.json)
    checkpoint = Path(f"{args.output}.search") if args.resume else None
    bar = Bar()
    try:
        data = calibration_data(files, graph.inputs)
        result = pipeline.quantize(graph, data, config=config, checkpoint=checkpoint, progress=bar)
    finally:
        bar.close()
    module = None
    if args.module_out:
        from .host import tvm

        module = tvm.ir.save_json(result.module)
    result.table.save(args.output)
    if module is not None:
        write_text(args.module_out, module)
    if args.json:
        print_json(_facts(result, args.output))
    else:
        print(_summary(result, args.output))
    return 0


def _facts(result, output) -> dict:
    return {
        "table": str(output),
        "bits": result.table.config.bits,
        "method": result.table.config.method,
        "coverage_percent": result.coverage,
        "seconds": {step: round(s, 3) for step, s in result.seconds.items()},
        "peak_memory_gib": round(peak_memory_gib(), 3),
        "float_nodes": dict(result.plan.floats),
        "layers": result.layers,
    }


def _summary(result, output) -> str:
    lines = [f"{'layer':40} {'kind':8} {'cosine':>8} {'SQNR dB':>8}"]
    for row in result.layers:
        figures = zip((row.get("cosine"), row.get("sqnr_db")), (5, 1), strict=True)
        texts = ["" if f is None else f"{f:.{digits}f}" for f, digits in figures]
        lines.append(f"{row['layer']:40} {row['kind']:8} {texts[0]:>8} {texts[1]:>8}".rstrip())
    lines += [f"float: {name}: {why}" for name, why in result.plan.floats.items()]
    lines.append(
        f"{result.coverage:.1f} % of the multiply-accumulates run in integers; "
        f"{len(result.plan.floats)} nodes stay float"
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
        }
        for node in graph.compute_nodes
    ]
    if as_json:
        facts = {"coverage_percent": coverage, "float_nodes": dict(plan.floats), "layers": rows}
        print_json(facts)
        return 0
    for row in rows:
        print(f"{row['layer']:40} {row['op']:8} {row['kind']:8} {row['macs']:>12} MACs")
    for name, why in plan.floats.items():
        print(f"float: {name}: {why}")
    print(f"{coverage:.1f} % of the multiply-accumulates would run in integers")
    return 0
