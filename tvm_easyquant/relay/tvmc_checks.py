"""What stock tvmc does not check of its user's files, and what it does not write whole.

tvmc unpacks an archive wherever its members point, reads arrays and tuning records without a word about
their faults, and writes its results in place. `patches` mends that for one command line; `explain` says
what the user can do about an error that tvmc leaves as a traceback.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import numpy as np

from ..cli.common import UserError
from ..files import replacing, writable
from ..network.layout import layout_hint
from ..samples.sources import reason


def load_arrays(path: str | os.PathLike, flag: str):
    """An array (.npy) or {name: array} (.npz) of a file; pickled objects are never loaded.

    Raises UserError naming ``flag``, the file and what is wrong with it.
    """
    path = Path(path)
    try:
        loaded = np.load(path, allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{flag}: cannot read {path}: {reason(error)}") from None


def check_archive(path: str | os.PathLike) -> None:
    """UserError if unpacking a compiled network could write outside its folder."""
    with tarfile.open(path) as archive:
        for member in archive:
            parts = Path(member.name).parts
            if member.name.startswith("/") or ".." in parts or not (member.isreg() or member.isdir()):
                raise UserError(
                    f"{path} is not a network that compile wrote: its member {member.name!r} would leave "
                    "the folder it is unpacked in; do not use this file"
                )


def check_inputs(shapes, dtypes, inputs) -> None:
    """UserError if an array does not fit the compiled network's input of that name."""
    for name, array in (inputs or {}).items():
        if name not in shapes:  # tvmc's own message names both sides
            continue
        want, dtype = tuple(int(d) for d in shapes[name]), np.dtype(dtypes[name])
        if array.shape != want or array.dtype.kind != dtype.kind:
            raise UserError(
                f"--inputs: {name} is {array.dtype} {array.shape}, the network takes {dtype} {want}"
                f"{layout_hint(array.shape, want)}"
            )


@contextlib.contextmanager
def patches() -> Iterator[None]:
    """tvmc's archives checked before they are unpacked, its inputs checked, its results written whole."""
    from tvm.driver.tvmc import TVMCException, runner
    from tvm.driver.tvmc.model import TVMCModel, TVMCPackage, TVMCResult

    from .artefact import make_repeatable

    def tvmc_s(check, *arguments):
        try:
            check(*arguments)
        except UserError as error:
            raise TVMCException(str(error)) from None

    import_package, export_package = TVMCPackage.import_package, TVMCModel.export_package
    make_inputs, save = runner.make_inputs_dict, TVMCResult.save

    def checked_import(self, package_path):
        tvmc_s(check_archive, package_path)
        return import_package(self, package_path)

    def checked_inputs(shape_dict, dtype_dict, inputs=None, fill_mode="random"):
        tvmc_s(check_inputs, shape_dict, dtype_dict, inputs)
        return make_inputs(shape_dict, dtype_dict, inputs, fill_mode)

    def whole_export(self, executor_factory, package_path=None, *rest, **options):
        if package_path is None:
            return export_package(self, executor_factory, package_path, *rest, **options)
        with replacing(package_path) as temporary:
            export_package(self, executor_factory, str(temporary), *rest, **options)
            make_repeatable(temporary)
        return package_path

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
        ):
            stack.enter_context(mock.patch.object(owner, name, new))
        yield


def option(argv: Sequence[str], *names: str) -> str | None:
    """The value of an option on a command line, or None."""
    for i, word in enumerate(argv):
        for name in names:
            if word == name and i + 1 < len(argv):
                return argv[i + 1]
            if name.startswith("--") and word.startswith(f"{name}="):
                return word[len(name) + 1 :]
    return None


FOLDER_OR_LOG = ("demo", "tune", "micro")  # verbs whose --output is a folder, or may be an input as well


def check_before(argv: Sequence[str]) -> None:
    """Refuse what tvmc would only stumble over later, or not at all; UserError or TuneError."""
    verb = next((word for word in argv if not word.startswith("-")), "")
    compiler = option(argv, "--cross-compiler")
    if compiler is not None:
        from .tune import check_compiler

        check_compiler(compiler)
    records = option(argv, "--tuning-records")
    if records is not None and verb == "compile":
        from .tune import read_log

        if not os.path.exists(records):
            raise UserError(f"--tuning-records: there is no file {records}")
        read_log(records)
    if verb not in FOLDER_OR_LOG:
        output = option(argv, "-o", "--output", "--outputs")
        if output is not None:
            others = list(argv)
            if output in others:  # not so for --output=FILE
                others.remove(output)
            writable(output, inputs=[word for word in others if os.path.isfile(word)])
    if verb == "run":
        inputs = option(argv, "-i", "--inputs")
        if inputs is not None and os.path.isfile(inputs):
            if isinstance(load_arrays(inputs, "--inputs"), np.ndarray):
                raise UserError(f"--inputs: {inputs} is one array; give an .npz of arrays by input name")


def explain(argv: Sequence[str], error: BaseException) -> str | None:
    """What the user can do about an error of tvmc's that is not ours; None if it is a bug."""
    text = str(error)
    if "is not enabled" in text and "device api" in text.lower():
        return f"this TVM was built without --device {option(argv, '--device') or 'that device'}; use cpu"
    if isinstance(error, RuntimeError) and "Compilation error:" in text:
        lines = [line.strip() for line in text.split("Compilation error:")[1].splitlines() if line.strip()]
        why = next((line for line in lines if "file" in line), lines[0]).split(": ", 1)[-1]
        return (
            f"the compiler cannot link code for the target ({why}); name one that can, such as "
            "--cross-compiler aarch64-linux-gnu-g++"
        )
    if "Failed to load dynamic shared library" in text:
        return (
            "this machine cannot load the compiled network; it was made for another architecture, or is "
            "damaged: compile it for this machine, or run it on the device it is for"
        )
    tracker = option(argv, "--rpc-tracker")
    if tracker is not None and "connect" in text.lower():
        return f"--rpc-tracker {tracker} does not answer: is it running, and are host and port right?"
    model = next((word for word in argv if word.endswith(".onnx") and os.path.isfile(word)), None)
    if model is not None:
        from ..errors import LoadError
        from ..readers.onnx_file import check_onnx

        try:
            check_onnx(model, fixed=option(argv, "--input-shapes") is not None)
        except LoadError as found:
            return str(found)
    return None
