"""``tvmc-easyquant``: TVM's own tvmc with the verbs ``quantize`` and ``demo`` and the composite target
``easyquant``. All of tvmc's verbs are untouched; what is added to tvmc is added when `main` runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

USER_ERROR, MISSING_PACKAGE = 4, 5  # tvmc's own exit codes

EXAMPLES = """\
examples:
  tvmc-easyquant quantize net.onnx --calibration images.npz -o net.json
  tvmc-easyquant quantize net.onnx --calibration folder/ --bits 8 --skip conv1 -o net.json
  tvmc-easyquant compile net.onnx -o net.tar \\
      --target "easyquant -table=net.json, llvm -mcpu=core-avx2"
  tvmc-easyquant run net.tar --inputs input.npz --print-time
"""


class UserError(Exception):
    """A mistake of the user's; printed as one line."""


def calibration_data(path: str, inputs):
    """Calibration samples of a .npz file or a folder of .npy and .npz files, as an iterable.

    A .npz holds one array per input with a leading sample axis (or a single array of any name for a
    model with one input); in a folder every .npy is one sample or a batch of them.
    """
    import numpy as np

    source = Path(path)
    if not source.exists():
        raise UserError(f"--calibration: there is no file or folder {path}")
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    files = [f for f in files if f.suffix in (".npy", ".npz")]
    if not files:
        raise UserError(f"--calibration: {path} holds no .npy or .npz file")
    for file in files:
        try:
            loaded = np.load(file, allow_pickle=False)
            if file.suffix == ".npy":
                yield loaded
                continue
            arrays = {name: loaded[name] for name in loaded.files}
        except (ValueError, OSError, EOFError) as error:
            raise UserError(f"--calibration: cannot read {file}: {error}") from None
        if len(arrays) == 1 and len(inputs) == 1:
            yield next(iter(arrays.values()))
        else:
            yield arrays


class Bar:
    """A progress bar with an ETA on a terminal, nothing elsewhere."""

    def __init__(self):
        self.bar, self.text = None, None

    def __call__(self, done: int, total: int, text: str) -> None:
        from tqdm import tqdm

        kind = text.split()[0]
        if self.bar is None or kind != self.text and not total:
            self.close()
            self.bar = tqdm(total=total or None, disable=not sys.stderr.isatty(), file=sys.stderr)
        if total and self.bar.total != total:
            self.close()
            self.bar = tqdm(total=total, disable=not sys.stderr.isatty(), file=sys.stderr)
        self.text = kind
        self.bar.set_description(text)
        self.bar.update(done - self.bar.n)

    def close(self):
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _quantize(args) -> int:
    """The verb ``quantize``."""
    from . import pipeline, sites
    from .files import write_text
    from .numerics import QuantConfig

    config = QuantConfig(
        bits=args.bits, method=args.method, search_images=args.search_images, skip=args.skip
    )
    graph = pipeline.as_graph(args.FILE, input_shapes=_shapes(args.input_shapes), batch=args.batch)
    if args.dry_run:
        return _dry_run(graph, sites.plan(graph, config.skip))
    if not args.calibration:
        raise UserError("quantize needs --calibration FILE.npz or FOLDER")
    for output in (args.output, args.module_out):
        folder = Path(output).resolve().parent if output else None
        if folder and not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise UserError(f"cannot write {output}: {folder} is not a writable folder")
    bar = Bar()
    try:
        result = pipeline.quantize(
            graph,
            calibration_data(args.calibration, graph.inputs),
            config=config,
            checkpoint=f"{args.output}.search" if args.resume else None,
            progress=bar,
        )
    finally:
        bar.close()
    result.table.save(args.output)
    if args.module_out:
        from .host import tvm

        write_text(args.module_out, tvm.ir.save_json(result.module))
    print(_summary(result, args.output) if not args.json else json.dumps(_facts(result), indent=1))
    return 0


def _facts(result) -> dict:
    return {
        "coverage_percent": result.coverage,
        "seconds": {step: round(s, 3) for step, s in result.seconds.items()},
        "float_nodes": dict(result.plan.floats),
        "layers": result.layers,
    }


def peak_memory_gib() -> float:
    """The peak memory of this process, in GiB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _summary(result, output) -> str:
    lines = [f"{'layer':40} {'kind':8} {'cosine':>8} {'SQNR dB':>8}"]
    for row in result.layers:
        figures = [row.get("cosine"), row.get("sqnr_db")]
        texts = ["" if f is None else f"{f:.{d}f}" for f, d in zip(figures, (5, 1), strict=True)]
        lines.append(f"{row['layer']:40} {row['kind']:8} {texts[0]:>8} {texts[1]:>8}")
    lines.append(
        f"{result.coverage:.1f} % of the multiply-accumulates run in integers; "
        f"{len(result.plan.floats)} nodes stay float"
    )
    lines += [f"  float: {name}: {why}" for name, why in result.plan.floats.items()]
    lines.append(
        f"search {result.seconds['search']:.1f} s, peak memory {peak_memory_gib():.2f} GiB; "
        f"scale table: {output}"
    )
    return "\n".join(lines)


def _dry_run(graph, plan) -> int:
    for node in graph.compute_nodes:
        kind = "integer" if node.name in plan.integer else "float"
        print(f"{node.name:40} {node.op:8} {kind:8} {node.macs:>12} MACs")
    for name, why in plan.floats.items():
        print(f"float: {name}: {why}")
    print(f"{plan.coverage(graph):.1f} % of the multiply-accumulates would run in integers")
    return 0


def _shapes(text):
    if not text:
        return None
    from tvm.driver.tvmc import TVMCException
    from tvm.driver.tvmc.shape_parser import parse_shape_string

    try:
        return parse_shape_string(text)
    except (argparse.ArgumentTypeError, TVMCException) as error:
        raise UserError(f"--input-shapes: {error}") from None


def _add_quantize(subparsers, main_parser, json_params):
    from .numerics import BITS, DEFAULT_METHOD, METHODS

    parser = subparsers.add_parser(
        "quantize",
        help="find the scales of an int7 or int8 network (EasyQuant)",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(func=_guarded(_quantize))
    parser.add_argument("FILE", help="an ONNX model")
    parser.add_argument("-o", "--output", default="table.json", help="scale table (table.json)")
    parser.add_argument("--calibration", help=".npz file, or folder of .npy and .npz files")
    parser.add_argument("--bits", type=int, default=7, help=f"one of {BITS} (7)")
    parser.add_argument("--method", default=DEFAULT_METHOD, help=f"one of {', '.join(METHODS)}")
    parser.add_argument("--search-images", type=int, default=50, help="samples for the search (50)")
    parser.add_argument("--skip", nargs="+", default=(), metavar="LAYER", help="layers to keep float")
    parser.add_argument("--input-shapes", help='such as "data:[1,3,224,224]"')
    parser.add_argument("--batch", type=int, default=1, help="batch for an open first dimension (1)")
    parser.add_argument("--resume", action="store_true", help="go on where an interrupted run ended")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be quantized")
    parser.add_argument("--module-out", metavar="FILE", help="also write the Relay module (JSON)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    for params in json_params:
        parser.set_defaults(**params)


def _add_demo(subparsers, main_parser, json_params):
    parser = subparsers.add_parser("demo", help="quantize and run the embedded network")
    parser.add_argument("-o", "--out", default="easyquant_demo", help="folder for the artefacts")

    def run(args):
        from .demo import main as demo

        return demo(args.out)

    parser.set_defaults(func=_guarded(run))


def _guarded(verb):
    """A verb whose user errors become tvmc's: one line, exit code 4."""

    def run(args):
        from tvm.driver.tvmc import TVMCException

        try:
            return verb(args)
        except (UserError, ValueError, OverflowError, OSError) as error:
            raise TVMCException(_one_line(error)) from None

    return run


def _one_line(error) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _partition(mod, params=None, mod_name="default", **options):
    """The pipeline behind ``--target "easyquant -table=FILE, llvm ..."``: quantize, then lower."""
    from tvm.driver.tvmc import TVMCException

    from topi_ext.lower import LowerInteger

    from .host import tvm
    from .relay_build import cpu_target
    from .relay_pass import EasyQuant
    from .scale_table import ScaleTable

    try:
        if "table" not in options:
            raise UserError('target easyquant needs a scale table: "easyquant -table=FILE, llvm"')
        unknown = set(options) - {"table"}
        if unknown:
            raise UserError(f"target easyquant has no option {sorted(unknown)}; it takes -table")
        target = cpu_target(_tvm_target())
        passes = [EasyQuant(ScaleTable.load(options["table"]), params=params), LowerInteger(target)]
        return tvm.transform.Sequential(passes)(mod)
    except (UserError, ValueError, OverflowError) as error:
        raise TVMCException(_one_line(error)) from None


def _tvm_target():
    """TVM's own target of this command line (tvmc does not pass it to a composite target's pipeline)."""
    from tvm.driver.tvmc.target import target_from_cli

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--target", default="llvm")
    parser.add_argument("--target-llvm-mcpu")
    parser.add_argument("--target-llvm-mattr")
    args, _ = parser.parse_known_args(sys.argv[1:])
    extra = {"mcpu": args.target_llvm_mcpu, "mattr": args.target_llvm_mattr}
    extra = {"llvm": {key: value for key, value in extra.items() if value}}
    return target_from_cli(args.target, extra)[0]


def main() -> int:
    """The console script ``tvmc-easyquant``."""
    from .host import TVMMissing

    try:
        from . import host  # noqa: F401
    except TVMMissing as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(MISSING_PACKAGE)
    import logging

    from tvm.driver.tvmc import composite_target
    from tvm.driver.tvmc import main as tvmc

    os.environ.setdefault("TOPHUB_LOCATION", "NONE")  # nothing there for these kernels
    logging.getLogger("autotvm").setLevel(logging.ERROR)
    for add in (_add_quantize, _add_demo):
        if add not in tvmc.REGISTERED_PARSER:
            tvmc.register_parser(add)
    composite_target.REGISTERED_CODEGEN["easyquant"] = {
        "config_key": None,
        "pass_default": False,
        "default_target": None,
        "pass_pipeline": _partition,
    }
    sys.exit(tvmc._main(sys.argv[1:]))


if __name__ == "__main__":
    main()
