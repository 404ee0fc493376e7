"""The ``next:`` line of each verb: what its user would run next, with the names of this run.

It goes to stderr, as progress does: what a verb prints on stdout may be read by a script.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import DeployError

PROGRAM = "tvmc-easyquant"
#: of what the command line does not know
DATA, LIBRARY = "DATA", "LIB"


def tell(args: argparse.Namespace) -> None:
    """The line of a verb that is done; none where a script reads the result."""
    if getattr(args, "json", False) or args.verb not in NEXT:
        return
    words = NEXT[args.verb](args)
    if words:
        print(f"next: {shlex.join(words)}", file=sys.stderr)


def _model(args) -> list[str]:
    """The model as its options name it."""
    texts = getattr(args, "input_shapes", None) or ()
    shapes = [text for text in ((texts,) if isinstance(texts, str) else texts) if isinstance(text, str)]
    return [args.FILE, *(word for text in shapes for word in ("--input-shapes", text))]


def named(path: str, ending: str) -> str:
    """A file beside another one, such as net.tar of net.json."""
    made = str(Path(path).with_suffix(ending))
    return made if made != path else str(Path(path).with_suffix(f".2{ending}"))


def compiling(args, table: str, *more: str) -> list[str]:
    """The command that compiles the integers of a table."""
    if getattr(args, "batch", None):  # which compile takes from --input-shapes only
        return []
    on = ["--table", table, *_bits(args)]
    return [PROGRAM, "compile", *_model(args), *on, *more, "-o", named(table, ".tar")]


def _bits(args) -> list[str]:
    """Of a table of several bits those that the verb was told to take."""
    told = str(getattr(args, "bits", None))
    return ["--bits", told] if getattr(args, "table", None) and told in ("7", "8") else []


def _of_package(path: str) -> list[str]:
    return [PROGRAM, "deploy", path, "-o", f"{Path(path).with_suffix('')}_deploy"]


def _quantize(args):
    if args.dry_run:
        output = named(args.FILE, ".json")
        return [PROGRAM, "quantize", *_model(args), "--calibration", args.calibration or DATA, "-o", output]
    return compiling(args, args.output)


def _measured(args):
    return compiling(args, args.table) if args.table else _of_package(args.FILE)


def _plan(args):
    if args.tuning_records:
        return compiling(args, args.table, "--tuning-records", args.tuning_records)
    return tuning(args, args.table)


def tuning(args, table: str) -> list[str]:
    """The command that measures the kernels of a table."""
    on = ["--table", table, *_bits(args)]
    return [PROGRAM, "tune-kernels", *_model(args), *on, "-o", named(table, ".log")]


def _elsewhere(path: str) -> list[str] | None:
    """What follows for a package that this machine cannot run; None if it can."""
    from topi_ext import isa

    from .. import package

    try:
        package.choose(path)
        return None
    except DeployError:
        pass
    try:
        record = package.read_record(path)
    except DeployError:
        return []
    if record is None:
        return []
    own = {variant.needs.arch for variant in record.variants} == {isa.arch_of("")}
    return _of_package(path) if own else [*_of_package(path), "--runtime", LIBRARY]


def _compile(args):
    if (words := _elsewhere(args.output)) is not None:
        return words
    if args.table and args.FILE.lower().endswith(".onnx"):
        return [PROGRAM, "benchmark", args.output, "--float", args.FILE]
    return [PROGRAM, "run", args.output, "--print-time"]


def _export(args):
    taken = ["--table", args.table, "--qdq", args.output, "--inputs", DATA]
    return [PROGRAM, "verify-onnx", *_model(args), *taken]


def _verify(args):
    if args.table:
        return compiling(args, args.table)
    return [PROGRAM, "import-onnx", *_model(args), "-o", named(args.FILE, ".tar")]


def _import(args):
    if args.output:
        words = _elsewhere(args.output)
        return [PROGRAM, "run", args.output, "--print-time"] if words is None else words
    return [PROGRAM, "import-onnx", *_model(args), "-o", named(args.FILE, ".tar")]


def _export_ncnn(args):
    stem = Path(args.FILE).with_suffix("")
    files = [f"{stem}{end}" for end in (".param", ".bin", "-int8.param", "-int8.bin")]
    return ["ncnn2int8", *files, args.output]


def _deploy(args):
    return ["python", str(Path(args.output) / "serve.py")] if _elsewhere(args.FILE) is None else []


def _demo(args):
    net, images, labels = (
        str(Path(args.out) / name) for name in ("net.onnx", "images.npz", "labelled.npz")
    )
    return [PROGRAM, "auto", net, "--images", images, "--labels", labels]


#: verb -> the words of the command, none where nothing follows
NEXT: dict[str, Callable[[argparse.Namespace], list[str]]] = {
    "quantize": _quantize,
    "evaluate": _measured,
    "benchmark": _measured,
    "report": lambda args: ["python", "-m", "webbrowser", args.output],
    "plan": _plan,
    "tune-kernels": lambda args: compiling(args, args.table, "--tuning-records", args.output),
    "compile": _compile,
    "run": lambda args: _of_package(args.PATH) if args.PATH.endswith(".tar") else [],
    "export-onnx": _export,
    "verify-onnx": _verify,
    "import-onnx": _import,
    "export-ncnn": _export_ncnn,
    "import-ncnn": lambda args: compiling(args, args.output),
    "deploy": _deploy,
    "doctor": lambda args: [PROGRAM, "demo"],
    "demo": _demo,
}
