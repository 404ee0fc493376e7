"""``tvmc-easyquant``: TVM's own tvmc, the verbs ``quantize`` and ``demo``, and the target ``easyquant``.

tvmc's own verbs are untouched. What is added to tvmc is added when `main` runs and taken out when it
ends. Nothing here imports TVM before that, so that its absence is one sentence and no traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

from .progress import Bar, peak_memory_gib

USER_ERROR, MISSING_PACKAGE, INTERRUPTED = 4, 5, 130  # the first two are tvmc's own exit codes

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


class UserError(ValueError):
    """A mistake of the user's; printed as one line."""


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
            raise UserError(f"--calibration: cannot read {file}: {_one_line(error)}") from None
        if file.suffix == ".npz" and len(arrays) == len(inputs) == 1:
            arrays = next(iter(arrays.values()))
        yield arrays


# -- the verb ``quantize``


def _add_quantize(subparsers, main_parser, json_params):
    from .numerics import BITS, DEFAULT_METHOD, METHODS

    main_parser.prog, main_parser.epilog = "tvmc-easyquant", EXAMPLES
    parser = subparsers.add_parser(
        "quantize",
        prog="tvmc-easyquant quantize",
        help="find the scales of an int7 or int8 network (EasyQuant)",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(func=_guarded(_quantize))
    add = parser.add_argument
    add("FILE", help="an ONNX model")
    add("-o", "--output", default="table.json", help="the scale table to write (table.json)")
    add("--calibration", metavar="DATA", help=".npz file, or folder of .npy and .npz files")
    add("--bits", type=int, default=7, help=f"{' or '.join(map(str, BITS))} (7)")
    add("--method", default=DEFAULT_METHOD, help=f"{', '.join(METHODS)} ({DEFAULT_METHOD})")
    add("--search-images", type=int, default=50, metavar="N", help="samples for the search (50)")
    add("--skip", nargs="+", default=(), metavar="NAME", help="layers that stay float")
    add("--input-shapes", metavar="SHAPES", help='such as "data:[1,3,224,224]"')
    add("--batch", type=int, default=1, metavar="N", help="size of an open first dimension (1)")
    add("--resume", action="store_true", help="save the search in OUTPUT.search and go on from it")
    add("--dry-run", action="store_true", help="only say what would run in integers")
    add("--module-out", metavar="FILE", help="also write the integer Relay module (TVM's JSON)")
    add("--json", action="store_true", help="print the result as JSON")
    for params in json_params:
        parser.set_defaults(**params)


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
        outputs = [_writable(path) for path in (args.output, args.module_out) if path]
        if len(set(outputs)) < len(outputs):
            raise UserError(f"--output and --module-out both name {args.output}")
    graph = pipeline.as_graph(args.FILE, input_shapes=_shapes(args.input_shapes), batch=args.batch)
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
    print(json.dumps(_facts(result, args.output), indent=1) if args.json else _summary(result, args.output))
    return 0


def _writable(path: str) -> Path:
    """The resolved path of an output, checked before the work and not after it."""
    whole = Path(path).resolve()
    if whole.is_dir():
        raise UserError(f"cannot write {path}: it is a folder")
    if not (whole.parent.is_dir() and os.access(whole.parent, os.W_OK)):
        raise UserError(f"cannot write {path}: {whole.parent} is not a folder that can be written to")
    return whole


def _shapes(text: str | None):
    if not text:
        return None
    from tvm.driver.tvmc import TVMCException
    from tvm.driver.tvmc.shape_parser import parse_shape_string

    try:
        return parse_shape_string(text)
    except (argparse.ArgumentTypeError, TVMCException) as error:
        raise UserError(f"--input-shapes {text!r}: {error}") from None


def _facts(result, output) -> dict:
    def plain(value):  # JSON has no infinity
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {
        "table": str(output),
        "bits": result.table.config.bits,
        "method": result.table.config.method,
        "coverage_percent": result.coverage,
        "seconds": {step: round(s, 3) for step, s in result.seconds.items()},
        "peak_memory_gib": round(peak_memory_gib(), 3),
        "float_nodes": dict(result.plan.floats),
        "layers": [{key: plain(value) for key, value in row.items()} for row in result.layers],
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
        print(json.dumps(facts, indent=1))
        return 0
    for row in rows:
        print(f"{row['layer']:40} {row['op']:8} {row['kind']:8} {row['macs']:>12} MACs")
    for name, why in plan.floats.items():
        print(f"float: {name}: {why}")
    print(f"{coverage:.1f} % of the multiply-accumulates would run in integers")
    return 0


# -- the verb ``demo``


def _add_demo(subparsers, main_parser, json_params):
    parser = subparsers.add_parser(
        "demo", prog="tvmc-easyquant demo", help="quantize and run the embedded network"
    )
    parser.add_argument("-o", "--out", default="easyquant_demo", help="folder for the artefacts")

    def run_demo(args):
        from .demo import main as demo

        return demo(args.out)

    parser.set_defaults(func=_guarded(run_demo))


# -- the verbs ``plan`` and ``tune-kernels``


def _add_kernels(subparsers, main_parser, json_params):
    from . import cli_kernels

    for add in (cli_kernels.add_plan, cli_kernels.add_tune):
        add(subparsers, _guarded, argparse.RawDescriptionHelpFormatter)


# -- the composite target ``easyquant``


class _Pipeline:
    """What ``--target "easyquant -table=FILE, llvm ..."`` does: quantize by the table, then lower.

    tvmc does not hand its own target to a composite target's pipeline, so it is noted where tvmc
    reads it (options such as ``--target-llvm-mcpu`` and those of ``--config`` included).
    """

    def __init__(self):
        self.target = None

    def watching(self, target_from_cli):
        """tvmc's ``target_from_cli``, taking note of the target; an unknown one is tvmc's own error."""
        from tvm.driver.tvmc import TVMCException

        def watched(target, additional_target_options=None):
            try:
                found = target_from_cli(target, additional_target_options)
            except ValueError as error:
                raise TVMCException(f"target {target!r}: {_last_line(error)}") from None
            self.target = found[0]
            return found

        return watched

    def __call__(self, mod, params=None, mod_name="default", **options):
        from tvm.driver.tvmc import TVMCException

        from topi_ext.lower import LowerInteger

        from .host import tvm
        from .relay_build import cpu_target
        from .relay_pass import EasyQuant
        from .scale_table import ScaleTable

        try:
            if "table" not in options:
                raise UserError('target easyquant needs a scale table: "easyquant -table=FILE, llvm"')
            unknown = sorted(set(options) - {"table"})
            if unknown:
                raise UserError(f"target easyquant has no option {unknown}; it takes -table=FILE")
            target = cpu_target(self.target)
            table = ScaleTable.load(options["table"])
            passes = [EasyQuant(table, params=params), LowerInteger(target)]
            return tvm.transform.Sequential(passes)(mod)
        except Exception as error:
            if not _is_users(error):
                raise
            raise TVMCException(_one_line(error)) from None


@contextlib.contextmanager
def _plugged_in() -> Iterator[None]:
    """tvmc with our verbs and our target, and without its look-ups of schedules to download."""
    from tvm.driver.tvmc import autotuner, compiler, composite_target
    from tvm.driver.tvmc import main as tvmc

    pipeline = _Pipeline()
    codegen = {
        "config_key": None,
        "pass_default": False,
        "default_target": None,
        "pass_pipeline": pipeline,
    }
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        parsers = [*tvmc.REGISTERED_PARSER, _add_quantize, _add_demo, _add_kernels]
        enter(mock.patch.object(tvmc, "REGISTERED_PARSER", parsers))
        enter(mock.patch.dict(composite_target.REGISTERED_CODEGEN, easyquant=codegen))
        for module in (compiler, autotuner):
            watched = pipeline.watching(module.target_from_cli)
            enter(mock.patch.object(module, "target_from_cli", watched))
        enter(mock.patch.dict(os.environ, {"TOPHUB_LOCATION": os.environ.get("TOPHUB_LOCATION", "NONE")}))
        # "One or more operators have not been tuned": ours need not be
        enter(mock.patch.object(logging.getLogger("autotvm"), "level", logging.ERROR))
        yield


# -- errors


def _is_users(error: BaseException) -> bool:
    """Whether the message is meant for the user: an error class of ours, a file, or a number too large.

    Anything else is a bug and keeps its traceback.
    """
    ours = type(error).__module__.split(".")[0] in ("tvm_easyquant", "topi_ext", "__main__")
    return ours or isinstance(error, (OSError, OverflowError))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _fail(code: int, message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _missing(error: ImportError) -> int:
    from importlib.util import find_spec

    if error.name and error.name.split(".")[0] not in ("tvm", "tvm_easyquant", "topi_ext"):
        if find_spec(error.name.split(".")[0]) is None:
            return _fail(
                MISSING_PACKAGE,
                f"the package {error.name} is missing: pip install 'tvm_easyquant[relay]' brings it",
            )
    return _fail(MISSING_PACKAGE, _one_line(error))


def _guarded(verb):
    """A verb of ours whose user's errors are one line and an exit code."""

    def run_verb(args):
        try:
            return verb(args)
        except ImportError as error:
            return _missing(error)
        except Exception as error:
            if not _is_users(error):
                raise
            return _fail(USER_ERROR, _one_line(error))

    return run_verb


def _of_linking(error: BaseException) -> str | None:
    """What to do about code for another machine that cannot be linked or loaded here; else None."""
    text = str(error)
    if isinstance(error, FileNotFoundError) and str(error.filename).endswith(
        ("g++", "gcc", "clang", "clang++")
    ):
        return (
            f"there is no compiler {error.filename} here; for 64-bit ARM on Debian: apt-get install "
            "g++-aarch64-linux-gnu, then --cross-compiler aarch64-linux-gnu-g++"
        )
    if isinstance(error, RuntimeError) and "Compilation error" in text and "wrong format" in text:
        return (
            "the compiler of this machine cannot link code for the target; name one that can, such as "
            "--cross-compiler aarch64-linux-gnu-g++"
        )
    if "Failed to load dynamic shared library" in text:
        return (
            "this machine cannot load the compiled network; it was made for another architecture, or is "
            "damaged: compile it for this machine, or run it on the device it is for"
        )
    return None


def _check_records(argv: Sequence[str]) -> None:
    """Refuse a damaged ``--tuning-records`` file here: TVM's own reader ends in a traceback."""
    from .relay_tune import read_log

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--tuning-records")
    known, _ = parser.parse_known_args([a for a in argv if a != "-h"])
    if known.tuning_records:
        read_log(known.tuning_records)


def run(argv: Sequence[str]) -> int:
    """Run one command line; returns its exit code."""
    try:
        from . import host  # noqa: F401  says what to install if there is no TVM

        with _plugged_in():
            from tvm.driver.tvmc import TVMCException
            from tvm.driver.tvmc import main as tvmc

            try:
                _check_records(argv)
                return tvmc._main(list(argv))
            except ValueError as error:
                if not _is_users(error):
                    raise
                return _fail(USER_ERROR, _one_line(error))
            except TVMCException as error:  # from before tvmc's own handler, such as --config's
                return _fail(USER_ERROR, _one_line(error))
    except ImportError as error:
        return _missing(error)
    except OSError as error:  # tvmc leaves these to Python
        return _fail(USER_ERROR, _of_linking(error) or _one_line(error))
    except TypeError:  # tvmc's ``compile`` calls None if it finds no compiler to link with
        from tvm.contrib.cc import get_cc

        if get_cc() is not None:
            raise
        return _fail(MISSING_PACKAGE, "no C++ compiler to link the result: install g++, or set CXX to one")
    except Exception as error:
        if _of_linking(error) is None:
            raise
        return _fail(USER_ERROR, _of_linking(error))
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, "interrupted; a search begun with --resume goes on from there")


def main() -> None:
    """The console script ``tvmc-easyquant``."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
