"""The verb ``auto``: quantize, evaluate, compile and report in one run.

Each step is a command line of ours, run as a user would run it. What a step was made from is kept beside
its result, as a digest: a run that is repeated does again only what another network, other data or other
options ask for.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import WriteError
from ..files import parse_json, writable, write_text
from ..network.shapes import inputs_of
from . import onward
from .common import (
    FUNCTION,
    UserError,
    add_cluster,
    add_model,
    add_pictures,
    add_verb,
    check_linker,
    file_of,
    lacking,
    load_graph,
    preprocess_of,
    print_json,
)

EXAMPLES = """\
examples:
  tvmc-easyquant auto net.onnx --images photos/ --labels --short-side 256 --crop 224x224 \\
      --scale 1/255 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
  tvmc-easyquant auto net.onnx --images images.npz --labels labelled.npz -o out
  tvmc-easyquant auto net.onnx --images images.npz --bits auto --max-drop 0.5 --labels labelled.npz

What was done is kept: the same command goes on where it was interrupted, and does again only what another
network, other images or other options ask for. Each step is printed as the command that does it alone.
"""


def add(subparsers) -> None:
    help = "quantize, evaluate, compile and report in one run, which goes on where it was interrupted"
    parser = add_verb(subparsers, "auto", _auto, help, EXAMPLES)
    add_model(parser)
    add = parser.add_argument
    add("--images", required=True, metavar="DATA", help="for calibration: as quantize --calibration")
    add("--labels", nargs="?", const="", metavar="DATA",
        help="labelled: .npz, folder of folders, module:function; alone: the folders in --images are the "
        "classes")  # fmt: skip
    add("-o", "--output", metavar="FOLDER", help="for the results (FILE without its ending, _easyquant)")
    add(
        "--bits",
        default="7",
        help="7, 8, auto, by layer, or 7,8: both are found, those of the target's class compiled (7)",
    )
    add("--max-drop", metavar="POINTS", help="accuracy that may be lost against float32 on --labels")
    add("--metric", metavar="MODULE:FUNCTION", help="instead of top-1 and top-5, as in evaluate")
    add("--limit", metavar="N", help="judge by the first N labelled samples only")
    add("--target", help="a CPU target such as 'llvm -mcpu=core-avx2' (this CPU)")
    add("--json", action="store_true", help="print the result as JSON, all else to stderr")
    add_cluster(parser)
    add_pictures(parser)


@dataclass(frozen=True)
class Step:
    """verb: of a command line, with its words; output: the file that it makes; of: what decides it, beside
    the words; where: words that say where it is made, which decides nothing."""

    verb: str
    words: Sequence[str]
    output: Path
    of: Sequence[str]
    where: Sequence[str] = ()

    @property
    def line(self) -> list[str]:
        """The command line without our name."""
        return [self.verb, *self.words, *self.where]

    @property
    def key(self) -> str:
        """Whether a result is of this step."""
        return _sha(json.dumps([__version__, self.verb, *self.words, *self.of]).encode())


def _auto(args, host) -> int:
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        code, found = _done_all(args, host)
    if args.json and code == 0:
        print_json(found)
    return code


def _done_all(args, host) -> tuple[int, dict[str, Any]]:
    """(the exit code, what --json prints) once every step is done, or one has failed."""
    steps, folder = _steps(args, host)
    file = folder / "auto.json"
    done = _done(file)
    kept = [done.get(step.verb) == [step.key, _digest(str(step.output))] for step in steps]
    if args.cluster is not None and not kept[0]:
        from ..cluster import connected

        with connected(args.cluster):
            pass  # before the first step: is it there, and of this release?
    for step, was in zip(steps, kept, strict=True):
        key = step.key
        if was:
            print(f"{step.verb}: kept from {step.output}: the same network, data and options")
        else:
            print(f"{step.verb}: {shlex.join([onward.PROGRAM, *step.line])}", flush=True)
            if step.verb == "quantize" and done.get("begun") != key:
                Path(f"{step.output}.search").unlink(missing_ok=True)  # of another run
                done["begun"] = key
                write_text(file, json.dumps(done))
            if code := _run(step):
                return code, {}
            done[step.verb] = [key, _digest(str(step.output))]
            write_text(file, json.dumps(done))
        if step.verb == "evaluate":
            _tell(step.output)
    _end(steps, folder, args.json)
    files = {step.verb: str(step.output) for step in steps}
    found: dict[str, Any] = {
        "files": files,
        "kept": [step.verb for step, was in zip(steps, kept, strict=True) if was],
    }
    if scores := files.get("evaluate"):
        found["accuracy"] = parse_json(Path(scores).read_text(encoding="utf-8"), UserError, scores)
    return 0, found


def _steps(args, host) -> tuple[list[Step], Path]:
    """The steps, once everything that is cheap to see was seen, and the folder of their results."""
    from ..measure import accuracy, report
    from ..samples import labelled, sources

    labels = args.images if args.labels == "" else args.labels
    if labels is None and (args.max_drop or args.limit or args.metric or args.bits == "auto"):
        raise UserError("--max-drop, --metric, --limit and --bits auto need --labels")
    if args.bits == "auto" and not args.max_drop:
        raise UserError("--bits auto needs a --max-drop")
    if args.metric:
        labelled.named(args.metric, "outputs", "label")
    preprocess = preprocess_of(args)
    sources.calibration(args.images, preprocess, "--images", limit=1)
    judged = None if labels is None else sources.labelled(labels, preprocess)
    check_linker(host)
    machine = f"{host.name} {host.version} {args.target or host.this_cpu()}"
    graph = load_graph(args, host)
    if judged is not None:
        accuracy.check_first(judged, inputs_of(graph))
    folder = _folder(args)
    table, package, page, scores = (
        folder / f"{Path(args.FILE).stem}{end}" for end in (".json", ".tar", ".html", ".accuracy.json")
    )
    for path in (table, package, page, scores):
        writable(path, inputs=[args.FILE])

    model, shapes = _given(args, "model_format"), []
    if args.batch or args.input_shapes:
        named = (f"{name}:{list(shape)}".replace(" ", "") for name, (shape, _) in inputs_of(graph).items())
        shapes = ["--input-shapes", " ".join(named)]
    at = [args.FILE, *model, *shapes, *_given(args, "outputs")]
    target, how = _given(args, "target"), _given(args, *PICTURES)
    on, images = ["--table", str(table), *_taken(args, host)], _digest(args.images)
    metric, truth = _given(args, "metric"), [_digest(text) for text in (labels, args.metric) if text]
    words, of = [*at, "--calibration", args.images, *how, "--bits", args.bits], [graph.fingerprint, images]
    if labels is not None and args.max_drop:
        words += ["--eval", labels, *_given(args, "max_drop"), *metric, *target]
        of += [*truth, machine]
    where = _given(args, "cluster")  # what is compiled, evaluate's, runs here
    steps = [Step("quantize", [*words, "--resume", "-o", str(table)], table, of, where)]
    made = [graph.fingerprint, machine, steps[0].key]
    if labels is not None:
        words = [*at, *on, "--data", labels, *how, *metric, *_given(args, "limit"), *target, "--json"]
        steps.append(Step("evaluate", words, scores, [*made, *truth]))
    words = [args.FILE, *model, *shapes, *on, *target, "-o", str(package)]
    steps.append(Step("compile", words, package, made))
    words = [*at, *on, "--calibration", args.images, *how, *target, "-o", str(page)]
    words += [] if labels is None else ["--accuracy", str(scores)]
    try:
        report.check_packages()
        steps.append(Step("report", words, page, [*made, images, steps[1].key]))
    except ImportError as error:
        print(f"note: no report: {lacking(error)}", file=sys.stderr)
    return steps, folder


def _taken(args, host) -> list[str]:
    """Of a table of several bits those of ``compile --bits by-class``: what is scored is compiled."""
    from ..scales.table import bits_of_class

    if "," not in args.bits:
        return []
    return ["--bits", str(bits_of_class(host.row(host.target(args.target))))]


PICTURES = ("scale", "mean", "std", "short_side", "size", "crop", "channel_order", "layout", "preprocess")


def _given(args, *names: str) -> list[str]:
    """The options of these names that the command line has."""
    words = []
    for name in names:
        option, value = f"--{name.replace('_', '-')}", getattr(args, name)
        if value is not None:  # one that begins with - would be read as an option
            words += [f"{option}={value}"] if str(value).startswith("-") else [option, str(value)]
    return words


def _folder(args) -> Path:
    """The folder of the results, made."""
    folder = Path(args.output or f"{Path(args.FILE).with_suffix('')}_easyquant")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot write the folder {folder}: {error.strerror}") from None
    return folder


def _done(file: Path) -> dict:
    """{verb: [key, digest of its result]} of a run before; nothing if there was none."""
    with contextlib.suppress(OSError, UnicodeDecodeError, UserError):
        found = parse_json(file.read_text(encoding="utf-8"), UserError, str(file))
        return found if isinstance(found, dict) else {}
    return {}


def _run(step: Step) -> int:
    """The exit code of a step; what evaluate prints is its result."""
    from .root import run

    out = io.StringIO() if step.verb == "evaluate" else sys.stdout
    with contextlib.redirect_stdout(out):
        code = run(step.line, follows=False)
    if code == 0 and isinstance(out, io.StringIO):
        write_text(step.output, out.getvalue())
    return code


def _tell(scores: Path) -> None:
    """The lines that evaluate prints of what it has found."""
    from ..measure.accuracy import stored
    from ..measure.networks import Evaluated

    print("\n".join(Evaluated("", stored(scores)).lines))


def _end(steps: Sequence[Step], folder: Path, quiet: bool) -> None:
    files = {step.verb: str(step.output) for step in steps}
    print("\n".join(f"{verb}: {file}" for verb, file in files.items()))
    following = [
        [onward.PROGRAM, "run", files["compile"], "--print-time"],
        [onward.PROGRAM, "deploy", files["compile"], "-o", str(folder / "deploy")],
    ]
    if "report" in files:
        following.append(["python", "-m", "webbrowser", files["report"]])
    for words in following if not quiet else ():
        print(f"next: {shlex.join(words)}", file=sys.stderr)


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest(source: str) -> str:
    """What tells data from other data: of a file its content, of a folder the names, sizes and times of its
    files, of a function the file that it is in; "" where there is none."""
    path = Path(source)
    if path.is_dir():
        files = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(path.rglob("*"))]
        return _sha(repr(files).encode())
    if not path.exists() and (match := FUNCTION.fullmatch(source)):
        path = Path(file_of(match[2]) or "")
    if not path.is_file():
        return ""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
