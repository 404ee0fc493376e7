"""``tvmc-easyquant``: our verbs, and those of TVM's tvmc where TVM 0.19 is installed.

Ours are parsed here and given the installed host, which they ask for when they need it: what needs no
compiler runs without one. A command line of tvmc's goes to it whole, with the target ``easyquant`` added;
on a host that has no tvmc, `compiled` has those verbs.
Nothing here imports TVM before a verb needs it, so that ``--help`` is quick, and TVM's absence is one
sentence and no traceback.

Each other file here but `common` holds the verbs of one subject and adds them in ``add(subparsers)``;
`VERBS` lists them.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import (
    EasyQuantError,
    HostError,
    LinkerMissing,
    TVMMissing,
    UserError,
    is_users,
    one_line,
)
from ..files import writable
from ..host import HOSTS, Late, installed
from . import compiled, memory, onward
from .common import (
    INTERRUPTED,
    MISSING_PACKAGE,
    NOBODY_READS,
    USER_ERROR,
    Parser,
    fail,
    input_shapes,
    missing,
    users_function,
)
from .ending import tidy

VERBS = (
    "auto",
    "quantize",
    "measure",
    "report",
    "kernels",
    "interchange",
    "deployment",
    "doctor",
    "demo",
)
#: verbs of tvmc's -> what the help says of them; micro is in some builds of TVM only
TVMC = {"run": "run a compiled module", "tune": "auto-tune a model", "compile": "compile a model."}
HANDED = (*TVMC, "micro")


def add_verbs(subparsers) -> None:
    """Add the parsers of our verbs."""
    for module in VERBS:
        importlib.import_module(f".{module}", __package__).add(subparsers)


def _parser(own: bool = False) -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser of every command line but tvmc's, and the names of our verbs; own: with what we have in
    place of tvmc's."""
    from .quantize import EXAMPLES

    parser = Parser(
        prog="tvmc-easyquant",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="TVM compiler driver",
        epilog=EXAMPLES,
        add_help=False,
    )
    add = parser.add_argument
    add("--config", default="default", help="configuration json file")
    add("--host", metavar="NAME", help=f"an error unless this one is installed: {', '.join(HOSTS)}")
    add("-v", "--verbose", action="count", default=0, help="increase verbosity")
    add("--version", action="store_true", help="print the version and exit")
    add("-h", "--help", action="help", help="show this help message and exit.")
    subparsers = parser.add_subparsers(title="commands", parser_class=Parser)
    parser.set_defaults(verb=None)
    if own:
        importlib.import_module(".compiled", __package__).add(subparsers)
    else:
        for verb, help in TVMC.items():
            subparsers.add_parser(verb, help=help)
    add_verbs(subparsers)
    return parser, [verb for verb in subparsers.choices if verb not in TVMC]


def _handed(argv: Sequence[str]) -> bool:
    """Whether this command line is tvmc's: its verb is, and no help is asked for before it."""
    words = iter(argv)
    for word in words:
        if word == "--config":
            next(words, None)
        elif word in ("-h", "--help"):
            return False
        elif not word.startswith("-"):
            return word in HANDED
    return False


def _check_output(argv: Sequence[str]) -> None:
    """WriteError for an --output that cannot be written, or that is a file the command line reads."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-o", "--output", nargs="?")
    known, others = parser.parse_known_args(argv)
    if known.output:
        writable(known.output, inputs=[word for word in others if os.path.isfile(word)])


def _asserted(argv: Sequence[str]) -> list[str]:
    """The command line without ``--host NAME``, wherever it stands. Raises TVMMissing if another host is
    installed, or none, and ConfigError for a name that is none."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--host", nargs="?")
    known, rest = parser.parse_known_args(argv)
    if known.host is not None:
        installed(known.host)
    return rest if known.host is not None else list(argv)


def _ours(argv: Sequence[str], follows: bool, own: bool = False) -> int:
    """own: whether tvmc's verbs are ours here."""
    parser, _ = _parser(own)
    args = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stdout)
    logging.getLogger("TVMC").setLevel(40 - min(args.verbose, 3) * 10)  # whose importers we use
    if args.version:
        print(f"tvm_easyquant {__version__} ({_host_version()})")
        return 0
    if args.verb is None:
        parser.print_help(sys.stderr)
        return 1
    if args.config != "default" and not own:
        raise UserError(f"--config is an option of {', '.join(TVMC)}; {args.verb} takes none")
    if args.verb not in ("auto", "demo", "deploy"):  # whose output is a folder
        _check_output(argv)
    with contextlib.ExitStack() as stack:
        cluster = None
        address = getattr(args, "cluster", None)
        if address is not None and args.verb != "auto":  # whose steps say it
            from ..cluster import connected

            cluster = stack.enter_context(connected(address))
        code = args.func(args, Late(stack))
        if cluster is not None:
            print(f"note: on the cluster {cluster}", file=sys.stderr)
    if code == 0 and follows:
        onward.tell(args)
    return code


def _host_version() -> str:
    """What compiles here, in words."""
    try:
        host = installed()
    except TVMMissing:
        return "no TVM here, so nothing compiles: see tvmc-easyquant doctor"
    return f"host {host.name}: TVM {host.version}"


def _explained(argv: Sequence[str], error: Exception):
    """What the user can do about an error that TVM leaves as a traceback; None if it is a bug."""
    try:
        from ..relay import tvmc
    except ImportError:
        return None
    return tvmc.explain(argv, error)


def run(argv: Sequence[str], *, follows: bool = True) -> int:
    """Run one command line; returns its exit code. follows: say what its user would run next."""
    try:
        return _verb(argv, follows)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return fail(INTERRUPTED, "interrupted; a search begun with --resume goes on from there")
    except Exception as error:
        code = _told(argv, error)
        if code is None:
            raise
        return code


def _verb(argv: Sequence[str], follows: bool) -> int:
    asks_help = bool({"-h", "--help"} & set(argv))
    argv = argv if asks_help else _asserted(argv)
    if not asks_help:
        memory.check(argv)
    if not _handed(argv):
        return _ours(argv, follows)
    if (host := installed()).name != "relay":
        if "micro" in argv and not set(TVMC) & set(argv):
            raise HostError(
                f"the {host.name} host has no micro; TVM 0.19 has, in an environment of its own: pip "
                "install 'tvm_easyquant[relay]'"
            )
        return _ours(argv, follows, own=True)
    from ..relay import tvmc

    for text in tvmc.every(argv, "--input-shapes"):
        input_shapes(text)  # which says what is wrong with it in a line

    def done(args: argparse.Namespace) -> None:
        if args.verb == "compile":
            compiled.tell(args)
        if follows:
            onward.tell(args)

    return tvmc.run(argv, _parser()[1], Parser.adopt, done)


def _told(argv: Sequence[str], error: Exception) -> int | None:
    """The exit code of an error, which is told in a line; None for a bug."""
    if not isinstance(error, EasyQuantError) and (theirs := users_function(argv, error)):
        return fail(USER_ERROR, theirs)
    if isinstance(error, ImportError):
        return missing(error)
    if isinstance(error, MemoryError):
        return fail(
            USER_ERROR, f"there is no more memory ({one_line(error) or 'it does not say for what'})"
        )
    found = error if is_users(error) else _explained(argv, error)
    if found is None:
        return None
    return fail(MISSING_PACKAGE if isinstance(found, LinkerMissing) else USER_ERROR, one_line(found))


def main() -> None:
    """The console script ``tvmc-easyquant``."""
    sys.path.insert(0, os.getcwd())  # where a user's module:function is looked for
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name in other letters than the terminal's is no error
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with tidy():
            code = run(sys.argv[1:])
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read it, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = NOBODY_READS
    sys.exit(code)


if __name__ == "__main__":
    main()
