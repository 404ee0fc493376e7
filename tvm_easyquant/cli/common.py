"""What every verb of the command line shares: exit codes, errors in one line, options of a model."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from ..errors import LinkerMissing, UserError, one_line
from ..files import plain
from ..progress import Bar
from . import memory

if TYPE_CHECKING:
    from ..host import Host
    from ..network.graph import Graph
    from ..scales.partition import Plan
    from ..scales.table import ScaleTable
    from ..workflow import Opened

#: exit codes; the first three are argparse's and tvmc's own
USAGE, USER_ERROR, MISSING_PACKAGE, INTERRUPTED = 2, 4, 5, 130
NOBODY_READS = 141  # as a shell reports SIGPIPE


#: options of tvmc's, hundreds of them, which the usage leaves out
ATTRIBUTES = ("--target-", "--executor-", "--runtime-")


class Parser(argparse.ArgumentParser):
    """argparse's, but a mistake is one line, and an option that is none brings the usage of its verb."""

    def parse_known_args(self, args=None, namespace=None):
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            options = [name for action in self._actions for name in action.option_strings]
            hint = _near(rest[0].partition("=")[0], options)
            self._end(f"unrecognized arguments: {' '.join(rest)}{hint}", self._usage())
        return found, rest

    def error(self, message):
        if verb := re.match(r"argument \{(.*)\}: invalid choice: '([^']*)'", message):  # not all of them
            message = f"there is no verb {verb[2]!r}{_near(verb[2], verb[1].split(','))}"
        self._end(message)

    def _end(self, message: str, before: str = "") -> None:
        self.exit(USAGE, f"{before}error: {message}; see {self.prog} --help\n")

    def _usage(self) -> str:
        formatter = self._get_formatter()
        shown = [a for a in self._actions if not any(n.startswith(ATTRIBUTES) for n in a.option_strings)]
        formatter.add_usage(self.usage, shown, self._mutually_exclusive_groups)
        return formatter.format_help()

    @classmethod
    def adopt(cls, parser: argparse.ArgumentParser, verb: str) -> None:
        """A parser of tvmc's ``verb`` that speaks as ours do."""
        parser.__class__, parser.prog = cls, f"tvmc-easyquant {verb}"


def _near(word: str, known: Sequence[str]) -> str:
    """The end of a sentence: what may be meant."""
    names = {name.lstrip("-"): name for name in known}  # dashes alone are not near
    near = difflib.get_close_matches(word.lstrip("-"), names, 1)
    return f"; did you mean {names[near[0]]}?" if near else ""


def add_verb(subparsers, name: str, run: Callable, help: str, examples: str) -> argparse.ArgumentParser:
    """A verb ``name`` that calls run(arguments, host) -> exit code; returns its parser for the options."""
    parser = subparsers.add_parser(
        name,
        prog=f"tvmc-easyquant {name}",
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(func=run, verb=name)
    return parser


def add_model(parser, help: str = "the model: ONNX, or what tvmc loads") -> None:
    """The options that name a model; `load_graph` reads them."""
    add = parser.add_argument
    add("FILE", help=help)
    add("--model-format", metavar="NAME", help="onnx, tflite, pytorch, ... (by the file's ending)")
    add("--input-shapes", metavar="SHAPES", help='such as "data:[1,3,224,224]"')
    add("--batch", type=int, metavar="N", help="size of an open first dimension (1)")
    add("--outputs", metavar="NAME,...", help="end the network at these tensors or nodes (ONNX)")


def add_table(parser) -> None:
    """The options that name a model and its scale table; `load_table` reads them."""
    add_model(parser, "the model that the table was made for")
    parser.add_argument("--table", required=True, metavar="FILE", help="its scale table, from quantize")
    add_bits(parser)


def add_bits(parser) -> None:
    """The option that says which table of a file with several is meant; `read_table` reads it."""
    parser.add_argument("--bits", type=int, choices=(7, 8), metavar="N", help="of a table of several (7)")


def read_table(args) -> ScaleTable:
    """The scale table that ``--table`` and ``--bits`` name; TableError if there is none."""
    from ..scales.table import ScaleTable

    return ScaleTable.load(args.table, args.bits)


def add_quantized(parser, package: bool = False) -> None:
    """The options of a verb that runs a model with its scale table; package: or what was compiled of it."""
    if package:
        add_model(parser, "the model that the table was made for, or a package of compile (.tar)")
        parser.add_argument("--table", metavar="FILE", help="the model's scale table, from quantize")
        add_bits(parser)
    else:
        add_table(parser)
    add = parser.add_argument
    add("--target", help="a CPU target such as 'llvm -mcpu=core-avx2' (this CPU)")
    add("--json", action="store_true", help="print the result as JSON")


def model_options(args, table: ScaleTable | None = None) -> dict:
    """The options of `add_model` as `workflow.load` takes them; ``table``: where the model is cut, if they
    do not say."""
    outputs = None if args.outputs is None else [name for name in args.outputs.split(",") if name]
    if outputs is None and table is not None:
        outputs = table.outputs
    return {
        "model_format": args.model_format, "input_shapes": input_shapes(args.input_shapes),
        "batch": args.batch, "outputs": outputs,
    }  # fmt: skip


def open_model(args, host: Host, table: ScaleTable | None = None) -> Opened:
    """The float network that `add_model`'s options name, with its check. Raises UserError where a run of it
    needs more memory than there may be."""
    from .. import workflow

    opened = workflow.open_model(args.FILE, host=host, **model_options(args, table))
    memory.check_network(args.verb, args.FILE, opened.graph.live_bytes)
    return opened


def load_graph(args, host: Host, table: ScaleTable | None = None) -> Graph:
    """The float network that `add_model`'s options name."""
    return open_model(args, host, table).graph


def load_table(args, host: Host) -> tuple[Graph, ScaleTable, Plan]:
    """(graph, table, plan) of `add_table`'s options; TableError if they do not belong together."""
    table = read_table(args)
    graph = table.prepared(load_graph(args, host, table))
    return graph, table, table.check(graph)


def add_pictures(parser) -> None:
    """The options that say how pictures become inputs; `preprocess_of` reads them."""
    group = parser.add_argument_group("pictures", "how a network wants them: (x * scale - mean) / std")
    add = group.add_argument
    add("--scale", metavar="X", help="factor of the bytes 0..255, such as 1/255 (1)")
    add("--mean", metavar="M,M,M", help="by channel, or one number for all (0)")
    add("--std", metavar="S,S,S", help="by channel, or one number for all (1)")
    add("--short-side", type=int, metavar="N", help="resize so that the shorter side is N first, as "
        "torchvision's Resize; a --crop is then its CenterCrop")  # fmt: skip
    add("--size", metavar="WxH", help="resize to this size first, whatever the ratio")
    add("--crop", metavar="WxH", help="then cut this size from the centre")
    add("--channel-order", metavar="ORDER", help="RGB, BGR or GRAY (RGB)")
    add("--layout", metavar="NAME", help="of the model's input: NCHW or NHWC (NCHW)")
    add("--preprocess", metavar="FILE", help="a JSON file with these settings instead")


def preprocess_of(args, table=None):
    """The `images.Preprocess` of `add_pictures`'s options; else the table's; else None."""
    from ..samples.images import Preprocess

    given = {
        "scale": args.scale and _number("--scale", args.scale),
        "mean": args.mean and tuple(_number("--mean", m) for m in args.mean.split(",")),
        "std": args.std and tuple(_number("--std", s) for s in args.std.split(",")),
        "short_side": args.short_side,
        "size": args.size and _extent("--size", args.size),
        "crop": args.crop and _extent("--crop", args.crop),
        "color": args.channel_order and args.channel_order.upper(),
        "layout": args.layout and args.layout.upper(),
    }
    given = {name: value for name, value in given.items() if value is not None}
    if args.preprocess:
        if given:
            raise UserError(f"--preprocess and {sorted(given)} say the same; give one of them")
        return Preprocess.load(args.preprocess)
    if given:
        return Preprocess(**given)
    return table.preprocess if table is not None else None


def _number(flag: str, text: str) -> float:
    try:
        return float(Fraction(text.strip()))
    except (ValueError, ZeroDivisionError):
        raise UserError(f"{flag} {text!r}: give a number such as 0.485 or 1/255") from None


def _extent(flag: str, text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if not (1 <= len(parts) <= 2 and all(p.isdecimal() for p in parts)):
        raise UserError(f"{flag} {text!r}: give width and height such as 224x224")
    return int(parts[0]), int(parts[-1])


def check_linker(host, compiler: str | None = None) -> None:
    """LinkerMissing, before the work, where nothing could link what a host compiles."""
    if host.linker(compiler) is None:
        raise LinkerMissing("there is no C++ compiler to link with: install g++, or set CXX")


def add_cluster(parser) -> None:
    """The option that names a cluster; the verb then runs while it is connected."""
    parser.add_argument("--cluster", metavar="ADDRESS", help="work on a Dask cluster, too: its scheduler's "
        "tcp://HOST:PORT, or tls:// by Dask's own settings")  # fmt: skip


@contextlib.contextmanager
def progress_bar() -> Iterator[Bar]:
    """A `Bar` that is closed at the end, whatever happens."""
    bar = Bar()
    try:
        yield bar
    finally:
        bar.close()


def warn(lines: Iterable[str]) -> None:
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)


def print_json(facts) -> None:
    """``facts`` as JSON on stdout; infinities and NaN, which JSON lacks, become null."""
    print(json.dumps(plain(facts), indent=1))


SHOWN = 6  # nodes that stay float for one reason, by name; --json has them all


def float_lines(floats: Mapping[str, str]) -> list[str]:
    """What stays float, {node: reason}: a line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, why in floats.items():
        by_reason.setdefault(why, []).append(name)
    lines = []
    for why, names in by_reason.items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        lines.append(f"float: {', '.join(names[:SHOWN])}{more}: {why}")
    return lines


#: one input of --input-shapes: a name, which may hold dots, slashes and colons, and its sizes
SHAPE = re.compile(r"([^\s,\[\]]+):\s*\[\s*(-?\d+(?:\s*,\s*-?\d+)*)\s*\]")


def input_shapes(text: str | None) -> dict[str, list[int]] | None:
    """{input: shape} of ``--input-shapes``, whose inputs are separated by spaces or commas."""
    if not text:
        return None
    shapes = {name: [int(size) for size in sizes.split(",")] for name, sizes in SHAPE.findall(text)}
    if not shapes or SHAPE.sub("", text).strip(" ,"):
        raise UserError(
            f"--input-shapes {text!r}: give NAME:[SIZE,SIZE,...] of each input, such as "
            '"data:[1,3,224,224] mask:[1,10]"'
        )
    return shapes


# -- errors


def fail(code: int, message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


#: package -> the extra that brings it
EXTRAS = {"jinja2": "report", "PIL": "images", "xgboost": "tune", "distributed": "cluster"}


def missing(error: ImportError) -> int:
    return fail(MISSING_PACKAGE, lacking(error))


def lacking(error: ImportError) -> str:
    """Which package is missing, and what brings it."""
    from importlib.util import find_spec

    package = (error.name or "").split(".")[0]
    if package in ("tvm_easyquant", "topi_ext"):  # ours is whole: a bug
        raise error
    if package and package != "tvm" and find_spec(package) is None:
        extra = EXTRAS.get(package, "relay")
        return f"the package {package} is missing: pip install 'tvm_easyquant[{extra}]' brings it"
    return one_line(error)


#: what a command line calls a function of its user's
FUNCTION = re.compile(r"(?:--[\w-]+=)?(([\w.]+):\w+)")


def users_function(argv: Sequence[str], error: BaseException) -> str | None:
    """What a function that the command line names raised, in a line, once its frames are printed, and none
    of ours; None if the error is not from there."""
    found, frame = None, error.__traceback__
    named = [(match[1], file_of(match[2])) for word in argv if (match := FUNCTION.fullmatch(word))]
    while frame is not None and found is None:
        file = os.path.realpath(frame.tb_frame.f_code.co_filename)
        found = next((name for name, of in named if of == file), None)
        frame = frame if found else frame.tb_next
    if found is None:
        return None
    traceback.print_exception(type(error), error, frame)
    return f"{found} raised {type(error).__name__}: {one_line(error)}"


def file_of(module: str) -> str | None:
    """The file of a module, which may have failed while it was imported."""
    from importlib.util import find_spec

    with contextlib.suppress(ImportError, ValueError, AttributeError):
        spec = find_spec(module)
        if spec is not None and spec.origin:
            return os.path.realpath(spec.origin)
    return None
