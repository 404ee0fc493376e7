"""tvmc, TVM 0.19's own command line: the one file that touches it.

Our package goes through it for two things: its importers of model files (`frontend`, `load`), and its
verbs (`run`): compile, tune and run with all their options, the composite target ``easyquant`` (``--target
"easyquant -table=FILE, llvm"``, or ``--table FILE``), packages that say what they need, and what stock tvmc
does not check of its user's files or write whole: it unpacks an archive wherever its members point, reads
arrays and tuning records without a word about their faults, and writes its results in place.
What is added to tvmc is added for one command line and taken out when it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import re
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from topi_ext import isa
from topi_ext.emit import target_isa

from .. import __version__, package
from ..deploy import no_such_shapes, runtime_file
from ..errors import (
    DeployError,
    EasyQuantError,
    LinkerMissing,
    LoadError,
    UserError,
    is_users,
    last_line,
    one_line,
)
from ..files import replacing, writable
from ..linking import cannot_link, check_compiler
from ..measure.race import Call, named
from ..network.graph import Graph
from ..network.layout import layout_hint
from ..network.shapes import told
from ..readers import onnx_float
from ..readers.onnx_file import check_onnx
from ..samples.sources import reason
from ..scales.image_input import check_asked, image_input
from ..scales.table import BY_CLASS, ScaleTable, ScaleTables, asked_bits, told_by_class
from ..tuning import check_tracker
from .artefact import inputs, members, variant
from .build import BUILD_CONFIG, cpu_target, host_target, in_call_order
from .framework import quiet, relay, tvm
from .layout import as_nchw, has_nhwc
from .read import from_relay
from .rewrite import float_module, rewrite
from .tune import autotvm_log, history, read_log, untuned

# isort: split
from tvm.contrib.cc import get_cc
from tvm.contrib.debugger import debug_executor
from tvm.driver.tvmc import (
    TVMCException,
    TVMCImportError,
    autotuner,
    compiler,
    composite_target,
    frontends,
    runner,
)
from tvm.driver.tvmc import main as tvmc_main
from tvm.driver.tvmc import target as tvmc_target
from tvm.driver.tvmc.model import TVMCModel, TVMCPackage, TVMCResult
from tvm.driver.tvmc.shape_parser import parse_shape_string

# -- its importers and its package


def formats() -> tuple[str, ...]:
    """Names of the formats of model files that tvmc knows; most need a package of their own."""
    return tuple(frontends.get_frontend_names())


def frontend(path: str | os.PathLike, name: str | None = None) -> str | None:
    """The format of a model file: ``name`` if given, else by its ending; None if that says nothing.

    Raises LoadError for a name that tvmc does not know.
    """
    try:
        if name:
            return frontends.get_frontend_by_name(name).name()
        return frontends.guess_frontend(os.fspath(path)).name()
    except TVMCException as error:
        if name:
            raise LoadError(f"model format {name!r}: {last_line(error)}") from None
        return None


def load(path: str | os.PathLike, kind: str, shapes: Mapping[str, Sequence[int]] | None):
    """(Relay module, its weights) of a model file, by tvmc's importer of the format ``kind``.

    Raises LoadError where the format's package is missing, and whatever the importer raises.
    """
    try:
        loaded = frontends.load_model(os.fspath(path), kind, shapes)
    except (ImportError, TVMCImportError) as error:
        package = (getattr(error, "name", None) or str(error)).split(".")[0]
        name = os.path.basename(os.fspath(path))
        raise LoadError(f"{name}: the format {kind} needs the package {package}; install it") from None
    return loaded.mod, loaded.params or {}


# -- the composite target


def tokens(theirs):
    """tvmc's ``tokenize_target``, which stops at a slash, made to take any path after ``-table=``."""

    def tokenize(target):
        found, at = [], 0
        for table in re.finditer(r"""-table=("[^"]+"|'[^']+'|[^\s,"']+)""", target):
            found += [*theirs(target[at : table.start()]), table[0]]
            at = table.end()
        return [*found, *theirs(target[at:])]

    return tokenize


#: our composite target and its table
ASKED = re.compile(r"""\beasyquant\b(?:\s+-table=(?:"([^"]+)"|'([^']+)'|([^\s,"']+)))?""")


class Shapes:
    """The values of ``--input-shapes``, where there are several: the table was made at one of them, and the
    network at the others is the same one (`ScaleTable.at_shapes`)."""

    def __init__(self, texts: Sequence[str]):
        """Raises UserError for a text that tvmc does not read, and for one that is there twice."""
        try:
            self.asked = [parse_shape_string(text) for text in texts]
        except argparse.ArgumentTypeError as error:
            raise UserError(f"--input-shapes: {last_line(error)}") from None
        for text, shapes in zip(texts, self.asked, strict=True):
            if self.asked.count(shapes) > 1:
                raise UserError(f"--input-shapes {text} is there twice; give each once")
        self._own: Graph | None = None

    def of(self, table: ScaleTable, graph: Graph, read: Callable[[Mapping], Graph]) -> Graph:
        """The graph as one that the table is of; read: the model at other shapes. Raises TableError, and
        UserError where the table's own shapes are not among them."""
        for shapes in self.asked if self._own is None else ():
            found = table.prepared(read(shapes))
            if found.fingerprint == table.model:
                self._own = found
        if self._own is None:
            raise UserError(
                "the scale table was made at none of these --input-shapes, or for another model: give the "
                "shape that it was calibrated at, too"
            )
        return table.at_shapes(self._own, graph)


class Pipeline:
    """What ``--target "easyquant -table=FILE, llvm ..."`` does: quantize by the table, then lower.

    tvmc does not hand its own target to a composite target's pipeline, so it is noted where tvmc
    reads it (options such as ``--target-llvm-mcpu`` and those of ``--config`` included).
    """

    def __init__(
        self,
        records: str | None = None,
        layout: str | None = None,
        dtype: str | None = None,
        shapes: Shapes | None = None,
        bits: Any = None,
    ):
        """records: the file of ``--tuning-records``, which must be of the target's CPU. layout, dtype: of
        the input, see `scales.image_input`. shapes: of the network, where it is compiled at several. bits:
        of a table of several, or `BY_CLASS`."""
        self.target: Any = None
        self.records, self.asked_for = records, False
        self.alone = False  # whether all that is compiled is for the target
        self.input, self.shapes, self.bits = (layout, dtype), shapes, bits
        self.graph: Graph | None = None
        self.lowered: tuple[package.Variant, str] | None = None  # with the JSON of its table
        self.compiled: list[package.Compiled] = []
        self.layers: Sequence[str] = ()  # of a package that is run
        self.args: argparse.Namespace | None = None  # as tvmc has read them
        self.untuned: tuple[int, int] | None = None  # (kernels without a record, all)
        self.rows: list[str] = []  # of `topi_ext.isa`, of which the bits are the class's

    def reading(self, load_model, argv):
        """tvmc's ``load_model``, but ONNX for our target by our own reader: the module is the graph's float
        one, and the graph is kept for the table, which says where it is cut."""

        def loaded(path, model_format=None, shape_dict=None, **options):
            wanted = ASKED.search(option(argv, "--target") or "")
            if not wanted or frontend(path, model_format) not in (None, "onnx"):
                if self.shapes is not None:
                    raise TVMCException("several --input-shapes are of an ONNX model, which this is not")
                return load_model(path, model_format, shape_dict, **options)
            file = next(filter(None, wanted.groups()), None)
            try:
                cut = ScaleTable.load(file).outputs if file else None
                self.graph = onnx_float.load(path, shape_dict, outputs=cut)
                if self.shapes is not None:
                    table = ScaleTable.load(str(file))
                    read = functools.partial(onnx_float.load, path, outputs=cut)
                    self.graph = self.shapes.of(table, self.graph, read)
                return TVMCModel(float_module(self.graph), {})
            except Exception as error:
                if not is_users(error):
                    raise
                raise TVMCException(one_line(error)) from None

        return loaded

    def driving(self, drive, args):
        """tvmc's function of a verb, taking note of the command line."""
        self.args = args
        return drive(args) or 0

    def watching(self, target_from_cli):
        """tvmc's ``target_from_cli``, taking note of the target; an unknown one is tvmc's own error."""

        def watched(target, additional_target_options=None):
            try:
                found = target_from_cli(target, additional_target_options)
            except ValueError as error:
                raise TVMCException(f"target {target!r}: {last_line(error)}") from None
            except IndexError:  # tvmc's own parser of options
                raise TVMCException(f"target {target!r}: an option has no value after its =") from None
            self.target, self.alone = found[0], not found[1]
            self.asked_for = any(extra["name"] == "easyquant" for extra in found[1])
            return found

        return watched

    def configured(self, parse_configs):
        """tvmc's ``parse_configs``, with the settings of `build.build` for what its user does not set."""

        def parsed(texts):
            theirs = parse_configs(texts)
            return {**BUILD_CONFIG, **theirs} if self.asked_for else theirs

        return parsed

    def __call__(self, mod, params=None, mod_name="default", **options):
        from topi_ext.lower import LowerInteger  # it imports TVM, whose absence `framework` explains

        try:
            if "table" not in options:
                raise UserError('target easyquant needs a scale table: "easyquant -table=FILE, llvm"')
            unknown = sorted(set(options) - {"table"})
            if unknown:
                raise UserError(f"target easyquant has no option {unknown}; it takes -table=FILE")
            target = cpu_target(self.target)
            records = history(self.records, target)  # tvmc applies it to what it builds, later
            table = self.table(ScaleTables.load(options["table"]), target)
            graph = self.graph
            if graph is None:
                if has_nhwc(mod):  # TFLite, Keras: as quantize has read the model
                    bound = relay.build_module.bind_params_by_name(mod["main"], params or {})
                    mod, params = as_nchw(tvm.IRModule.from_expr(bound)), None
                graph = from_relay(mod, params)
            graph = table.prepared(graph)
            image = image_input(graph, table, *self.input)
            lower, module = LowerInteger(target), rewrite(graph, table, image=image)
            with records:
                return self._told(lower, lower(module), target, table, image)
        except Exception as error:
            if not is_users(error):
                raise
            raise TVMCException(one_line(error)) from None

    def table(self, tables: ScaleTables, target) -> ScaleTable:
        """The table that is compiled for a target."""
        if self.bits != BY_CLASS:
            return tables.for_bits(self.bits)
        self.rows.append(target_isa(target))
        return tables.for_class(self.rows[-1])

    def _told(self, lower, lowered, target, table, image):
        names = [layer.name for layer in in_call_order(lowered, lower.layers)]
        taken = inputs(lowered, {} if image is None else {image.name: image.layout})
        self.lowered = variant(target, names, taken), table.to_json()
        self.untuned = without, count = untuned(lower.layers, target)
        print(
            f"easyquant: {len(lower.layers)} integer layers, {without} of {count} kernels run untuned",
            file=sys.stderr,
        )
        return lowered

    def packed(self, archive: bytes) -> bytes:
        """An archive that tvmc wrote, the same bytes every time; with its record, before it if our target
        made it, else behind its code."""
        found, code = members(archive), package.FILES["code"]
        if self.lowered is None:
            if self.alone and self.target.kind.name == "llvm" and code in found:
                found[code] += package.mark(__version__, variant(self.target, ()))
            return package.archive(found)
        contents = {use: found[name] for use, name in package.FILES.items()}
        self.compiled.append(package.Compiled(*self.lowered, contents))
        return package.packed(__version__, self.compiled[-1:])


# -- what it does not check of its user's files


def load_arrays(path: str | os.PathLike, flag: str):
    """An array (.npy) or {name: array} (.npz) of a file; pickled objects are never loaded.

    Raises UserError naming ``flag``, the file and what is wrong with it.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:  # numpy leaves an archive that it cannot read open
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            return {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{flag}: cannot read {path}: {reason(error)}") from None


def check_archive(path: str | os.PathLike) -> list[str]:
    """Its members' names; UserError if unpacking a compiled network could write outside its folder."""
    with tarfile.open(path) as archive:
        for member in archive:
            parts = Path(member.name).parts
            if member.name.startswith("/") or ".." in parts or not (member.isreg() or member.isdir()):
                raise UserError(
                    f"{path} is not a network that compile wrote: its member {member.name!r} would leave "
                    "the folder it is unpacked in; do not use this file"
                )
        return archive.getnames()


def check_inputs(shapes, dtypes, inputs) -> None:
    """UserError if an array does not fit the compiled network's input of that name."""
    for name, array in (inputs or {}).items():
        if name not in shapes:  # tvmc's own message names both sides
            continue
        want, dtype = tuple(int(d) for d in shapes[name]), np.dtype(dtypes[name])
        wraps = dtype == np.uint8 and array.dtype != dtype  # tvmc would cut wider integers to bytes
        if array.shape != want or array.dtype.kind != dtype.kind or wraps:
            raise UserError(
                f"--inputs: {name} is {array.dtype} {array.shape}, the network takes {dtype} {want}"
                f"{layout_hint(array.shape, want)}"
            )


def _of_inputs(choices: Sequence[package.Chosen], path: str | None) -> package.Chosen:
    """The choice for the arrays of a file, of several input shapes; the first where no file is named.

    Raises DeployError, which lists the shapes.
    """
    if len(choices) == 1 or not path or not os.path.isfile(path):
        return choices[0]
    arrays, inputs = load_arrays(path, "--inputs"), choices[0].variant.inputs  # type: ignore[union-attr]
    if set(arrays) != set(inputs):
        return choices[0]  # tvmc's own message names both sides
    known = [dict(choice.variant.shapes) for choice in choices if choice.variant]
    given = {name: arrays[name].shape for name in inputs}
    if given not in known:
        dtypes = {name: taken.dtype for name, taken in inputs.items()}
        raise DeployError(no_such_shapes(known, arrays, dtypes))
    return choices[known.index(given)]


@contextlib.contextmanager
def replaced(owner: Any, name: str, new: object) -> Iterator[None]:
    """An attribute of tvmc's replaced for a while."""
    before = getattr(owner, name)
    setattr(owner, name, new)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def patches(pipeline: Pipeline, argv: Sequence[str]) -> Iterator[None]:
    """tvmc's archives checked before they are unpacked, its inputs checked, its results written whole."""

    def tvmc_s(check, *arguments, **options):
        try:
            return check(*arguments, **options)
        except (UserError, DeployError) as error:
            raise TVMCException(one_line(error)) from None

    import_package, export_package = TVMCPackage.import_package, TVMCModel.export_package
    make_inputs, save = runner.make_inputs_dict, TVMCResult.save

    def checked_import(self, package_path):
        names = tvmc_s(check_archive, package_path)
        ours = package.FILES["code"] in names or package.MANIFEST in names
        if not ours or _verb(argv) != "run":  # compile reads what it has written
            return import_package(self, package_path)
        elsewhere = any(option(argv, flag) is not None for flag in ("--rpc-tracker", "--rpc-key"))
        choices = tvmc_s(package.choices, package_path, option(argv, "--isa"), elsewhere=elsewhere)
        if choices[0].runtime != package.GRAPH:  # of the other host: what the loader says
            tvmc_s(runtime_file, choices[0].runtime, os.path.basename(package_path))
        chosen = tvmc_s(_of_inputs, choices, option(argv, "-i", "--inputs"))
        if chosen.variant is None:
            if chosen.note:
                print(f"note: {chosen.note}", file=sys.stderr)
            return import_package(self, package_path)
        if any(re.fullmatch("-v+|--verbose", word) for word in argv):
            at = f", {told(dict(chosen.variant.shapes))}" if len(choices) > 1 else ""
            print(f"{package_path}: variant {chosen.name}{at}", file=sys.stderr)
        pipeline.layers = chosen.variant.layers
        contents = tvmc_s(chosen.read)
        with tempfile.TemporaryDirectory() as folder:
            alone = Path(folder) / "mod.tar"
            alone.write_bytes(package.archive({package.FILES[use]: contents[use] for use in contents}))
            return import_package(self, alone)

    def checked_inputs(shape_dict, dtype_dict, inputs=None, fill_mode="random"):
        tvmc_s(check_inputs, shape_dict, dtype_dict, inputs)
        return make_inputs(shape_dict, dtype_dict, inputs, fill_mode)

    def whole_export(self, executor_factory, package_path=None, *rest, **options):
        if package_path is None:
            return export_package(self, executor_factory, package_path, *rest, **options)
        with replacing(package_path) as temporary:
            export_package(self, executor_factory, str(temporary), *rest, **options)
            temporary.write_bytes(pipeline.packed(temporary.read_bytes()))
        return package_path

    create = debug_executor.create

    def profiled(graph, library, device, dump_root=None):
        """tvmc's module of ``--profile``, which leaves no ./prof, and whose rows name layers."""
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        module = create(graph, library, device, dump_root=folder)
        profile = module.profile
        module.profile = lambda *arguments, **options: _Report(
            profile(*arguments, **options), pipeline.layers
        )
        return module

    def whole_save(self, output_path):
        path = Path(output_path)  # numpy's own rule for the suffix
        with replacing(path if path.suffix == ".npz" else f"{path}.npz") as temporary:
            save(self, str(temporary))

    with contextlib.ExitStack() as stack:
        for owner, name, new in (
            (TVMCPackage, "import_package", checked_import),
            (TVMCModel, "export_package", whole_export),
            (TVMCResult, "save", whole_save),
            (runner, "make_inputs_dict", checked_inputs),
            (debug_executor, "create", profiled),
        ):
            stack.enter_context(replaced(owner, name, new))
        yield


class _Report:
    """TVM's report of a profiled run: a row for each call in order, with the layer that it is."""

    def __init__(self, report, layers: Sequence[str]):
        names = [str(call["Name"]) for call in report.calls]
        calls = [Call(name, None, 0, 0, 0.0, "easyquant_conv2d" in name) for name in names]
        self._report, self._layers = report, [call.layer or "" for call in named(calls, layers)]

    def __str__(self) -> str:
        text = str(self._report)
        if not any(self._layers):
            return text
        names, width = ["Layer", *self._layers], max(map(len, self._layers))
        rows = self._report.table(sort=False, aggregate=False).splitlines()
        lines = [f"{name:{width}}  {row}" for name, row in zip(names, rows, strict=False)]
        return "\n".join([*lines, text[text.index("\n----") + 1 :]])


def option(argv: Sequence[str], *names: str) -> str | None:
    """The value of an option on a command line, or None."""
    for i, word in enumerate(argv):
        for name in names:
            if word == name and i + 1 < len(argv):
                return argv[i + 1]
            if name.startswith("--") and word.startswith(f"{name}="):
                return word[len(name) + 1 :]
    return None


def every(argv: Sequence[str], name: str) -> list[str]:
    """All values of an option that may be repeated."""
    found = [argv[i + 1] for i, word in enumerate(argv[:-1]) if word == name]
    return found + [word[len(name) + 1 :] for word in argv if word.startswith(f"{name}=")]


def without(argv: Sequence[str], *names: str) -> list[str]:
    """A command line without these options and their values."""
    left, words = [], iter(argv)
    for word in words:
        if word in names:
            next(words, None)
        elif not word.startswith(tuple(f"{name}=" for name in names if name.startswith("--"))):
            left.append(word)
    return left


NO_FILE = ("tune", "micro")  # verbs whose --output may be an input as well, or is a folder


def check_before(argv: Sequence[str]) -> None:
    """Refuse what tvmc would only stumble over later, or not at all; UserError or TuneError."""
    verb = _verb(argv)
    compiler = option(argv, "--cross-compiler")
    if compiler is not None:
        check_compiler(compiler)
    records = option(argv, "--tuning-records")
    if records is not None and verb == "compile":
        if not os.path.exists(records):
            raise UserError(f"--tuning-records: there is no file {records}")
        read_log(records)
    if verb not in NO_FILE:
        output = option(argv, "-o", "--output", "--outputs")
        output = output or ("module.tar" if verb == "compile" else None)
        if output is not None:
            others = list(argv)
            if output in others:  # not so for --output=FILE
                others.remove(output)
            writable(output, inputs=[word for word in others if os.path.isfile(word)])
    host, _, port = (option(argv, "--rpc-tracker") or "").rpartition(":")
    key = option(argv, "--rpc-key")
    if verb in ("run", "tune") and host and port.isdigit() and key:
        check_tracker(host, int(port), key)  # tvmc asks for a minute
    if verb == "run":
        inputs = option(argv, "-i", "--inputs")
        given = load_arrays(inputs, "--inputs") if inputs and os.path.isfile(inputs) else {}
        if isinstance(given, np.ndarray):
            raise UserError(f"--inputs: {inputs} is one array; give an .npz of arrays by input name")


# -- its verbs

#: called with the parser of a verb of tvmc's and its name
Adopt = Callable[[argparse.ArgumentParser, str], None]


class _InFull(argparse.Action):
    """An option that we take out of the command line before tvmc sees it; what is left is abbreviated."""

    def __call__(self, parser, namespace, values, option_string=None):
        raise UserError(f"write {self.option_strings[0]} in full")


#: verb of tvmc's -> {option of ours: (metavar, help)}
OPTIONS = {
    "compile": {
        "--table": (
            "FILE",
            "a scale table, from quantize: compile its integers, as the target easyquant does",
        ),
        "--isa": (
            "ROW,...",
            "with --table: a variant for each of these instruction sets, in one package; "
            "--input-shapes again and again: one for each shape, too",
        ),
        "--bits": ("N", "of a table of several: 7, 8, or by-class, 8 where it costs nothing (7)"),
        "--input-dtype": (
            "uint8",
            "with a scale table: the image is bytes, RGB, and the table's preprocessing is done here",
        ),
        "--input-layout": ("NAME", "of an image of bytes: NHWC or NCHW (the model's own)"),
    },
    "run": {"--isa": ("ROW", "the variant of a package to run (the best that this CPU runs)")},
}


def _verb(argv: Sequence[str]) -> str:
    return next((word for word in without(argv, "--config") if not word.startswith("-")), "")


#: of what an integer network takes
INPUT = ("--input-layout", "--input-dtype")
#: options of ours that tvmc does not see
OURS = {"run": ("--isa",), "compile": (*INPUT, "--bits")}


def _input(argv: Sequence[str]) -> list[str | None]:
    """What `INPUT` asks for. Raises ConfigError, and UserError where no integers are compiled."""
    layout, dtype = (option(argv, name) for name in INPUT)
    layout = layout and layout.upper()
    check_asked(layout, dtype)
    if dtype and option(argv, "--table") is None and not ASKED.search(option(argv, "--target") or ""):
        raise UserError("--input-dtype is of the integers of a scale table: give --table FILE")
    return [layout, dtype]


def _bits(argv: Sequence[str]) -> Any:
    """What ``--bits`` asks for. Raises ConfigError, and UserError where no integers are compiled."""
    bits = asked_bits(option(argv, "--bits"))
    if bits and option(argv, "--table") is None and not ASKED.search(option(argv, "--target") or ""):
        raise UserError("--bits is of the integers of a scale table: give --table FILE")
    return bits


def _targets(argv: Sequence[str]) -> list[str]:
    """tvmc's --target for each variant that ``compile --table --isa`` asks for.

    Raises UserError, and KernelError for a row that there is not.
    """
    table, rows, target = (option(argv, name) for name in ("--table", "--isa", "--target"))
    if table is None:
        raise UserError("--isa compiles the integers of a scale table: give --table FILE")
    if target is not None and rows is not None:
        raise UserError("--isa and --target both say for which CPU; give one of them")
    if target is not None and ASKED.search(target):
        raise UserError("--table and the target easyquant both name a table; give one of them")
    if any(quote in table for quote in "\"'"):
        raise UserError(f"--table {table}: tvmc takes no path with a quotation mark")
    targets = [row.target for row in isa.named(rows)] if rows is not None else [target or host_target()]
    return [f'easyquant -table="{table}", {one}' for one in targets]


def _compile(
    argv: Sequence[str], others: Iterable[str], adopt: Adopt
) -> tuple[int, argparse.Namespace | None]:
    """``compile`` with our options: tvmc's for each target, one package of what they make; see `_run`."""
    texts = every(argv, "--input-shapes")
    if len(texts) > 1 and option(argv, "--table") is None:
        raise UserError("several --input-shapes are of the integers of a scale table: give --table FILE")
    targets = _targets(argv)
    plain = without(argv, "--table", "--isa", "--target")
    if len(targets) == 1 and len(texts) < 2:
        return _run([*plain, "--target", targets[0]], others, adopt)
    if option(argv, "--dump-code") is not None:
        raise UserError("--dump-code writes one file: name one instruction set with --isa, and one shape")
    output = option(argv, "-o", "--output") or "module.tar"
    shapes = Shapes(texts) if len(texts) > 1 else None
    compiled: list[package.Compiled] = []
    rows: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        alone = [*without(plain, "-o", "--output"), "-o", os.path.join(folder, "mod.tar")]
        if shapes is not None:
            alone = without(alone, "--input-shapes")
        for text in texts if shapes is not None else (None,):
            more = [] if text is None else ["--input-shapes", text]
            for target in targets:
                code, ran = _run([*alone, *more, "--target", target], others, adopt, compiled, shapes)
                if code:
                    return code, None
                rows += [] if ran is None else ran.rows
    with replacing(output) as temporary:
        temporary.write_bytes(package.packed(__version__, compiled))
    if ran is not None:
        ran.output, ran.rows = output, rows
    return 0, ran


@contextlib.contextmanager
def _plugged_in(
    argv: Sequence[str], others: Iterable[str], adopt: Adopt, shapes: Shapes | None = None
) -> Iterator[Pipeline]:
    """tvmc with our target, options and checks; others, adopt: as of `run`."""
    compiles = _verb(argv) == "compile"
    layout, dtype = _input(argv) if compiles else (None, None)
    pipeline = Pipeline(
        option(argv, "--tuning-records"), layout, dtype, shapes, _bits(argv) if compiles else None
    )
    entry = {"config_key": None, "pass_default": False, "default_target": None, "pass_pipeline": pipeline}
    codegen = {"easyquant": entry}

    def ours(subparsers, main_parser, json_params):
        main_parser.prog = "tvmc-easyquant"
        for verb in others:
            subparsers.add_parser(verb)
        for verb, parser in subparsers.choices.items():
            adopt(parser, verb)
            if verb in OPTIONS:
                parser.set_defaults(func=functools.partial(pipeline.driving, parser.get_default("func")))
        for verb, options in OPTIONS.items():
            group = subparsers.choices[verb].add_argument_group("tvm_easyquant")
            for name, (metavar, help) in options.items():
                group.add_argument(name, action=_InFull, metavar=metavar, help=help)

    with contextlib.ExitStack() as stack:
        for owner, name, new in (
            (tvmc_main, "REGISTERED_PARSER", [*tvmc_main.REGISTERED_PARSER, ours]),
            (composite_target, "REGISTERED_CODEGEN", {**composite_target.REGISTERED_CODEGEN, **codegen}),
            (tvmc_target, "tokenize_target", tokens(tvmc_target.tokenize_target)),
            (compiler, "target_from_cli", pipeline.watching(compiler.target_from_cli)),
            (autotuner, "target_from_cli", pipeline.watching(autotuner.target_from_cli)),
            (frontends, "load_model", pipeline.reading(frontends.load_model, argv)),
            (compiler, "parse_configs", pipeline.configured(compiler.parse_configs)),
        ):
            stack.enter_context(replaced(owner, name, new))
        stack.enter_context(patches(pipeline, argv))
        stack.enter_context(quiet())
        yield pipeline


def run(
    argv: Sequence[str],
    others: Iterable[str] = (),
    adopt: Adopt = lambda parser, verb: None,
    done: Callable[[argparse.Namespace], None] = lambda args: None,
) -> int:
    """Run a command line of tvmc's own verbs; returns its exit code. others: names of verbs beside them;
    adopt: called with the parser of each verb and its name; done: with the command line of one that is
    done, as it was read, with ``verb``, ``table`` and ``untuned``, (kernels without a record, all).

    Raises UserError, TuneError and WriteError for what is checked here, and what tvmc leaves to Python
    (see `explain`).
    """
    check_before(argv)
    ours = any(option(argv, name) is not None for name in ("--table", "--isa"))
    if _verb(argv) == "compile" and (ours or len(every(argv, "--input-shapes")) > 1):
        code, ran = _compile(argv, others, adopt)
    else:
        code, ran = _run(argv, others, adopt)
    if code == 0 and ran is not None:
        asked = ASKED.search(option(argv, "--target") or "")
        table = next(filter(None, asked.groups()), None) if asked else option(argv, "--table")
        known = {"verb": _verb(argv), "table": table, "input_shapes": every(argv, "--input-shapes")}
        if ran.rows:
            print(f"easyquant: {told_by_class(dict.fromkeys(ran.rows))}", file=sys.stderr)
        done(argparse.Namespace(**vars(ran) | known))
    return code


def _run(
    argv: Sequence[str],
    others: Iterable[str],
    adopt: Adopt,
    compiled: list[package.Compiled] | None = None,
    shapes: Shapes | None = None,
) -> tuple[int, argparse.Namespace | None]:
    """The exit code of a command line of tvmc's, and as what it was read; what it compiles for our target
    goes into ``compiled``, too. shapes: all at which the network is compiled."""
    with _plugged_in(argv, others, adopt, shapes) as pipeline:
        if compiled is not None:
            pipeline.compiled = compiled
        plain = without(argv, *OURS.get(_verb(argv), ()))
        records = option(argv, "--tuning-records")
        try:
            with autotvm_log(records) as log:  # tvmc takes AutoTVM's own only
                if log != records:
                    plain = [*without(plain, "--tuning-records"), "--tuning-records", str(log)]
                code = tvmc_main._main(list(plain)) or 0
        except TVMCException as error:  # from before tvmc's own handler, such as --config's
            raise UserError(one_line(error)) from None
    if pipeline.args is not None:
        pipeline.args.untuned, pipeline.args.rows = pipeline.untuned, pipeline.rows
    return code, pipeline.args


def explain(argv: Sequence[str], error: BaseException) -> EasyQuantError | None:
    """What the user can do about an error of TVM's that is not ours; None if it is a bug."""
    text = str(error)
    if isinstance(error, TypeError) and get_cc() is None:  # tvmc calls None if it finds none to link with
        return LinkerMissing("no C++ compiler to link the result: install g++, or set CXX to one")
    if "is not enabled" in text and "device api" in text.lower():
        device = option(argv, "--device") or "that device"
        return UserError(f"this TVM was built without --device {device}; use cpu")
    if isinstance(error, RuntimeError) and (found := cannot_link(error)) is not None:
        return found
    if "Failed to load dynamic shared library" in text:
        return UserError(
            "this machine cannot load the compiled network; it was made for another architecture, or is "
            "damaged: compile it for this machine, or run it on the device it is for"
        )
    tracker = option(argv, "--rpc-tracker")
    if tracker is not None and "connect" in text.lower():
        return UserError(
            f"--rpc-tracker {tracker} does not answer: is it running, and are host and port right?"
        )
    model = next((word for word in argv if word.endswith(".onnx") and os.path.isfile(word)), None)
    if model is not None:
        try:
            check_onnx(model, fixed=option(argv, "--input-shapes") is not None)
        except LoadError as found:
            return found
    return None
