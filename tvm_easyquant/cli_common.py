"""What every verb of the command line shares: exit codes, errors in one line, options of a model."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from math import isfinite
from pathlib import Path

USER_ERROR, MISSING_PACKAGE, INTERRUPTED = 4, 5, 130  # the first two are tvmc's own exit codes


class UserError(ValueError):
    """A mistake of the user's; printed as one line."""


def add_verb(subparsers, name: str, run: Callable, help: str, examples: str) -> argparse.ArgumentParser:
    """A verb ``name`` that calls run(arguments) -> exit code; returns its parser for the options."""
    parser = subparsers.add_parser(
        name,
        prog=f"tvmc-easyquant {name}",
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(func=guarded(run))
    return parser


def add_model(parser, help: str = "an ONNX model") -> None:
    """The options that name a model; `load_graph` reads them."""
    add = parser.add_argument
    add("FILE", help=help)
    add("--input-shapes", metavar="SHAPES", help='such as "data:[1,3,224,224]"')
    add("--batch", type=int, default=1, metavar="N", help="size of an open first dimension (1)")


def load_graph(args):
    """The float network that `add_model`'s options name."""
    from . import pipeline

    return pipeline.as_graph(args.FILE, input_shapes=_shapes(args.input_shapes), batch=args.batch)


def print_json(facts) -> None:
    """``facts`` as JSON on stdout; infinities and NaN, which JSON lacks, become null."""
    print(json.dumps(plain(facts), indent=1))


def plain(value):
    """``value`` as JSON takes it: no numpy numbers, no infinity, no tuple."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not isfinite(value) else value


def writable(path: str) -> Path:
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


# -- errors


def is_users(error: BaseException) -> bool:
    """Whether the message is meant for the user: an error class of ours, a file, or a number too large.

    Anything else is a bug and keeps its traceback.
    """
    ours = type(error).__module__.split(".")[0] in ("tvm_easyquant", "topi_ext")
    return ours or isinstance(error, (OSError, OverflowError))


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def fail(code: int, message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def missing(error: ImportError) -> int:
    from importlib.util import find_spec

    if error.name and error.name.split(".")[0] not in ("tvm", "tvm_easyquant", "topi_ext"):
        if find_spec(error.name.split(".")[0]) is None:
            return fail(
                MISSING_PACKAGE,
                f"the package {error.name} is missing: pip install 'tvm_easyquant[relay]' brings it",
            )
    return fail(MISSING_PACKAGE, one_line(error))


def guarded(verb):
    """A verb of ours whose user's errors are one line and an exit code."""

    def run_verb(args):
        try:
            return verb(args)
        except ImportError as error:
            return missing(error)
        except Exception as error:
            if not is_users(error):
                raise
            return fail(USER_ERROR, one_line(error))

    return run_verb
