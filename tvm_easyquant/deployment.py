"""A folder with all that runs a network elsewhere: the package, TVM's runtime library, loaders, a server.

What it holds runs with Python and numpy, or from C++; neither TVM nor this package is needed there. No
code of the network runs here, so a package for another CPU can be laid out, too.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from topi_ext import isa

from . import package
from .deploy import NAME, runtime_file, runtime_files
from .errors import DeployError, WriteError
from .runtime import vm
from .runtime.vm import EXTRA, FFI

#: what the Python loader is made of, from this package's folder and from `topi_ext`'s
MODULES = {
    "tvm_easyquant": ("__init__", "deploy", "package", "files", "errors"),
    "tvm_easyquant.runtime": ("__init__", "dlpack", "pool", "graph", "vm"),
    "topi_ext": ("__init__", "isa", "cpu", "errors"),
}
EXAMPLES = ("run.py", "serve.py", "network.h", "Dockerfile")
#: what runs a variant -> the example in C++, which the folder has as run.cc
IN_CPP = {package.GRAPH: "run.cc", package.VM: "run_vm.cc"}
README = """\
The network and what runs it. Nothing else is needed than what each line names.

    python run.py input.npy                                # Python 3.10 or newer, numpy
    python serve.py --port 8000                            # the same; see its first lines
    g++ -std=c++17 -O2 run.cc -ldl -o run && ./run . input.bin
    docker build -t network . && docker run -p 8000:8000 network

Inputs, as type, shape and name:

{inputs}
{shapes}
Variants, the best first; the first that the CPU has the instructions for is taken: {variants}.

| what | bytes |
|---|---|
{sizes}
"""
#: of a network at several input shapes
SHAPES = """
The network takes each of these shapes: those of the arrays say which. From C++ name it, as the folder
network/ calls it: EASYQUANT_SHAPES={first} ./run . input.bin
"""


def deploy(path: str | os.PathLike[str], folder: str | os.PathLike[str], runtime=None) -> dict[str, int]:
    """Lay out ``folder`` for the package ``path`` (``net.tar``): {what: its bytes}.

    runtime: a ``libtvm_runtime.so`` for the CPU that it will run on; by default the installed TVM's, if it
    is of that architecture. Raises DeployError, and WriteError if the folder holds something already or
    cannot be written.
    """
    folder = Path(folder)
    record = package.read_record(path)
    if record is None:
        raise DeployError(f"{path} has no record of what it needs; compile it anew and deploy the .tar")
    if not record.variants[0].inputs:
        raise DeployError(f"{path} does not say what its inputs are; compile it anew")
    arch, kind = record.variants[0].needs.arch, record.variants[0].runtime
    if runtime is None:
        if arch != isa.arch_of(""):
            raise DeployError(
                f"{path} is for {arch}, the TVM installed here is not: name a libtvm_runtime.so for it "
                "(--runtime, runtime=)"
            )
        runtime = runtime_file(kind, os.fspath(path))
    if not Path(runtime).is_file():
        raise DeployError(f"there is no runtime library {runtime}")
    libraries = runtime_files(kind, Path(runtime), installed=arch == isa.arch_of(""))
    if folder.exists() and (not folder.is_dir() or os.listdir(folder)):
        raise WriteError(f"cannot write {folder}: it exists and is not an empty folder")
    try:
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.resolve().parent))
    except OSError as error:
        raise WriteError(f"cannot write {folder}: {error.strerror}") from None
    groups = package.by_shapes(record.variants)
    try:
        _fill(made, Path(path), groups, libraries)
        sizes = {name: _size(made / name) for name in ("network.tar", "lib", "python", "network")}
        table = "\n".join(f"| {name} | {size} |" for name, size in sizes.items())
        inputs = "\n".join(f"    {line}" for group in groups for line in _inputs(group[0]))
        variants = ", ".join(dict.fromkeys(variant.name for variant in record.variants))
        shapes = SHAPES.format(first=_shape_folder(groups[0][0])) if len(groups) > 1 else ""
        text = README.format(inputs=inputs, shapes=shapes, variants=variants, sizes=table)
        (made / "README.md").write_text(text, encoding="utf-8")
        made.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        made.rename(folder)
    except OSError as error:
        raise WriteError(f"cannot write {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return sizes


def _inputs(variant: package.Variant) -> list[str]:
    """A line for each input: type, shape, name."""
    return [_listed(one.dtype, one.shape, name) for name, one in variant.inputs.items()]


def _listed(dtype, shape: Sequence[int], name) -> str:
    """The line of an array, as the example in C++ reads it."""
    return f"{dtype} {'x'.join(map(str, shape)) or '-'} {name}"


def _shape_folder(variant: package.Variant) -> str:
    return "_".join("x".join(map(str, shape)) for _, shape in variant.shapes)


def _fill(
    made: Path, path: Path, groups: Sequence[Sequence[package.Variant]], libraries: Sequence[Path]
) -> None:
    shutil.copyfile(path, made / "network.tar")
    (made / "lib").mkdir()
    for library, name in zip(libraries, (NAME, FFI, EXTRA), strict=False):
        shutil.copyfile(library, made / "lib" / name)
    examples = dict(zip(EXAMPLES, EXAMPLES, strict=True), **{"run.cc": IN_CPP[groups[0][0].runtime]})
    for name, source in examples.items():
        (made / name).write_bytes((files("tvm_easyquant") / "data" / "deployment" / source).read_bytes())
    for name, modules in MODULES.items():
        to = made / "python" / name.replace(".", "/")
        to.mkdir(parents=True)
        for module in modules:
            (to / f"{module}.py").write_bytes((files(name) / f"{module}.py").read_bytes())
    for place, group in enumerate(groups):
        network = made / "network"
        if len(groups) > 1:
            network /= _shape_folder(group[0])
        lines = []
        for variant in group:
            chosen = package.choices(path, variant.name, elsewhere=True)[place]
            (network / variant.name).mkdir(parents=True)
            chosen.lay_out(network / variant.name)
            if variant.runtime == package.VM:
                _list_weights(network / variant.name)
            known = isa.flag_names(variant.needs.arch)
            flags = sorted(known[feature] for feature in variant.needs.features if feature in known)
            lines.append(" ".join([variant.name, *flags]))
        (network / "variants.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (network / "inputs.txt").write_text("\n".join(_inputs(group[0])) + "\n", encoding="utf-8")
    if len(groups) > 1:
        names = [_shape_folder(group[0]) for group in groups]
        (made / "network/shapes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")


def _list_weights(folder: Path) -> None:
    """A line for each weight: type, shape, where it begins."""
    rows = vm.weights((folder / package.FILES["graph"]).read_bytes())
    lines = [_listed(dtype, shape, offset) + "\n" for offset, shape, dtype in rows]
    (folder / "weights.txt").write_text("".join(lines), encoding="utf-8")


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
