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
from .runtime.vm import FFI

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

Variants, the best first; the first that the CPU has the instructions for is taken: {variants}.

| what | bytes |
|---|---|
{sizes}
"""


def deploy(path: str | os.PathLike, folder: str | os.PathLike, runtime=None) -> dict[str, int]:
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
    try:
        _fill(made, Path(path), record, libraries)
        sizes = {name: _size(made / name) for name in ("network.tar", "lib", "python", "network")}
        table = "\n".join(f"| {name} | {size} |" for name, size in sizes.items())
        inputs = "\n".join(f"    {line}" for line in (made / "network/inputs.txt").read_text().splitlines())
        variants = ", ".join(variant.name for variant in record.variants)
        text = README.format(inputs=inputs, variants=variants, sizes=table)
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


def _fill(made: Path, path: Path, record: package.Record, libraries: Sequence[Path]) -> None:
    shutil.copyfile(path, made / "network.tar")
    (made / "lib").mkdir()
    for library, name in zip(libraries, (NAME, FFI), strict=False):
        shutil.copyfile(library, made / "lib" / name)
    examples = dict(zip(EXAMPLES, EXAMPLES, strict=True), **{"run.cc": IN_CPP[record.variants[0].runtime]})
    for name, source in examples.items():
        (made / name).write_bytes((files("tvm_easyquant") / "data" / "deployment" / source).read_bytes())
    for name, modules in MODULES.items():
        to = made / "python" / name.replace(".", "/")
        to.mkdir(parents=True)
        for module in modules:
            (to / f"{module}.py").write_bytes((files(name) / f"{module}.py").read_bytes())
    lines = []
    for variant in record.variants:
        contents = package.choose(path, variant.name, elsewhere=True).read()
        (made / "network" / variant.name).mkdir(parents=True)
        for use, content in contents.items():
            (made / "network" / variant.name / package.FILES[use]).write_bytes(content)
        if variant.runtime == package.VM:
            rows = [listed(dtype, shape, offset) for offset, shape, dtype in vm.weights(contents["graph"])]
            (made / "network" / variant.name / "weights.txt").write_text("".join(rows), encoding="utf-8")
        known = isa.flag_names(variant.needs.arch)
        flags = sorted(known[feature] for feature in variant.needs.features if feature in known)
        lines.append(" ".join([variant.name, *flags]))
    taken = record.variants[0].inputs
    inputs = [listed(one.dtype, one.shape, name) for name, one in taken.items()]
    (made / "network/variants.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (made / "network/inputs.txt").write_text("".join(inputs), encoding="utf-8")


def listed(dtype, shape: Sequence[int], name) -> str:
    """The line of an array, as the example in C++ reads it."""
    return f"{dtype} {'x'.join(map(str, shape)) or '-'} {name}\n"


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
