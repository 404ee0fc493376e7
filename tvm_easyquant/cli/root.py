"""``tvmc-easyquant``: TVM's own tvmc with our verbs and the target ``easyquant``.

tvmc's own verbs are untouched. What is added to tvmc is added when `main` runs and taken out when it
ends. Nothing here imports TVM before that, so that its absence is one sentence and no traceback.

Each other file here but `common` holds the verbs of one subject and adds them in ``add(subparsers)``;
`VERBS` lists them.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from unittest import mock

from ..relay import tvmc_checks as cli_checks
from .common import (
    INTERRUPTED,
    MISSING_PACKAGE,
    NOBODY_READS,
    USER_ERROR,
    fail,
    is_users,
    missing,
    one_line,
)

VERBS = (
    "quantize",
    "measure",
    "report",
    "kernels",
    "interchange",
    "doctor",
    "demo",
)


def _add_verbs(subparsers, main_parser, json_params):
    from .quantize import EXAMPLES

    main_parser.prog, main_parser.epilog = "tvmc-easyquant", EXAMPLES
    for module in VERBS:  # without tvmc's json_params, whose default sets --target to plain llvm
        importlib.import_module(f".{module}", __package__).add(subparsers)


@contextlib.contextmanager
def _plugged_in(records: str | None = None) -> Iterator[None]:
    """tvmc with our verbs, our target and our checks, and without its look-ups of schedules to download."""
    from tvm.driver.tvmc import autotuner, compiler, composite_target
    from tvm.driver.tvmc import main as tvmc
    from tvm.driver.tvmc import target as tvmc_target

    from ..relay.tvmc_target import Pipeline, tokens

    pipeline = Pipeline(records)
    codegen = {
        "config_key": None,
        "pass_default": False,
        "default_target": None,
        "pass_pipeline": pipeline,
    }
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        parsers = [*tvmc.REGISTERED_PARSER, _add_verbs]
        enter(mock.patch.object(tvmc, "REGISTERED_PARSER", parsers))
        enter(mock.patch.dict(composite_target.REGISTERED_CODEGEN, easyquant=codegen))
        enter(mock.patch.object(tvmc_target, "tokenize_target", tokens(tvmc_target.tokenize_target)))
        for module in (compiler, autotuner):
            watched = pipeline.watching(module.target_from_cli)
            enter(mock.patch.object(module, "target_from_cli", watched))
        enter(mock.patch.object(compiler, "parse_configs", pipeline.configured(compiler.parse_configs)))
        enter(mock.patch.dict(os.environ, {"TOPHUB_LOCATION": os.environ.get("TOPHUB_LOCATION", "NONE")}))
        enter(cli_checks.patches())
        # "One or more operators have not been tuned": ours need not be
        enter(mock.patch.object(logging.getLogger("autotvm"), "level", logging.ERROR))
        yield


def run(argv: Sequence[str]) -> int:
    """Run one command line; returns its exit code."""
    try:
        from ..relay import framework as host  # noqa: F401  says what to install if there is no TVM

        with _plugged_in(cli_checks.option(argv, "--tuning-records")):
            from tvm.driver.tvmc import TVMCException
            from tvm.driver.tvmc import main as tvmc

            try:
                cli_checks.check_before(argv)
                return tvmc._main(list(argv))
            except ValueError as error:
                if not is_users(error):
                    raise
                return fail(USER_ERROR, one_line(error))
            except TVMCException as error:  # from before tvmc's own handler, such as --config's
                return fail(USER_ERROR, one_line(error))
    except ImportError as error:
        return missing(error)
    except BrokenPipeError:
        raise
    except OSError as error:  # tvmc leaves these to Python
        return fail(USER_ERROR, one_line(error))
    except Exception as error:
        if isinstance(error, TypeError):  # tvmc's compile calls None if it finds no compiler to link with
            from tvm.contrib.cc import get_cc

            if get_cc() is None:
                no_compiler = "no C++ compiler to link the result: install g++, or set CXX to one"
                return fail(MISSING_PACKAGE, no_compiler)
        message = cli_checks.explain(argv, error)
        if message is None:
            raise
        return fail(USER_ERROR, message)
    except KeyboardInterrupt:
        return fail(INTERRUPTED, "interrupted; a search begun with --resume goes on from there")


def main() -> None:
    """The console script ``tvmc-easyquant``."""
    sys.path.insert(0, os.getcwd())  # where a user's module:function is looked for
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read it, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = NOBODY_READS
    sys.exit(code)


if __name__ == "__main__":
    main()
