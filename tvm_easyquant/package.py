"""Packages of compiled networks: what an artefact needs, held against the CPU before any of its code runs.

A package is a tar archive. Its first member is ``easyquant.json``: who made it, the scale tables, and its
variants with what each needs and its files. One variant lies at the top, where stock tvmc looks for it; of
several each has a folder. A shared library carries the same record behind its last section, where no loader
looks: it is read without running the library, whichever compiler linked it. ``strip`` drops it.

numpy and the standard library only: a loader needs no TVM.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import lzma
import mmap
import os
import re
import struct
import sys
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

from topi_ext import isa as rows

from .errors import DeployError
from .files import LARGEST, parse_json

LOG = logging.getLogger("tvm_easyquant")
MANIFEST, FORMAT, VERSION = "easyquant.json", "tvm_easyquant package", 1
#: what loads and runs a variant: that of TVM 0.19, and that of today's apache-tvm
GRAPH, VM = "tvm.graph_executor", "tvm.relax.vm"
#: in every library that today's apache-tvm links
FFI_SYMBOL = b"__tvm_ffi_"
#: the environment's choice of a variant
CHOICE = "EASYQUANT_ISA"
#: what a variant's files are for -> the name stock tvmc knows them by
FILES = {"code": "mod.so", "graph": "mod.json", "parameters": "mod.params"}
#: bytes of a file that are in memory at once
PIECE = 1 << 20
#: at the end of a shared library: the record, its size in 8 bytes, this
MARK = b"\x00easyquant.json\x00"
#: ELF's numbers of architectures
MACHINES = {40: "armv7", 62: "x86_64", 183: "aarch64"}
#: what tarfile raises, with its decompressors, for an archive that is damaged
DAMAGED = (
    tarfile.TarError,
    OSError,
    EOFError,
    ValueError,
    IndexError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)


#: what was said already, see `say_once`
_said: set[str] = set()


def say_once(line: str) -> None:
    """A warning, once in a process: a server that loads a network again and again has said it."""
    if line and line not in _said:
        _said.add(line)
        LOG.warning(line)


class Needs(NamedTuple):
    """What a machine must have to run code: isa: the row of `topi_ext.isa` whose kernels it may hold; arch,
    as `isa.arch_of` spells it; features: LLVM's, any of which the code may use."""

    isa: str
    arch: str
    features: tuple[str, ...]

    @property
    def refusal(self) -> str:
        """Why it cannot run here, as the end of a sentence; "" if it can."""
        return rows.refusal(self.features, self.arch)


class File(NamedTuple):
    """A member of the archive, with its size and SHA-256."""

    member: str
    size: int
    sha256: str


class Input(NamedTuple):
    """What a network takes: the shape and the element type of an array; layout: NHWC or NCHW of an image of
    bytes, "" of any other."""

    shape: tuple[int, ...]
    dtype: str
    layout: str = ""

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}{self.layout and ', ' + self.layout}"


def told(inputs: Mapping[str, tuple[tuple[int, ...], Any]], layouts: Mapping[str, str]) -> str:
    """{name: (shape, element type)} with the layouts of images of bytes, as a line says it."""
    each = (Input(shape, str(dtype), layouts.get(name, "")) for name, (shape, dtype) in inputs.items())
    return ", ".join(f"{name} {taken}" for name, taken in zip(inputs, each, strict=True))


@dataclass(frozen=True)
class Variant:
    """One way in which a network was compiled.

    name: the row of `topi_ext.isa` it is for, of which there may be one for each set of input shapes;
    target: TVM's text; version: of the compiler; table: SHA-256 of its scale table, "" where none is known,
    as of a float network; layers: the integer layers' names in the order of the calls; files: by `FILES`,
    of an archive; inputs: {name: `Input`}, {} where not known; runtime: `GRAPH` or `VM`.
    """

    name: str
    needs: Needs
    target: str
    version: str
    table: str = ""
    layers: tuple[str, ...] = ()
    files: Mapping[str, File] = field(default_factory=dict)
    inputs: Mapping[str, Input] = field(default_factory=dict)
    runtime: str = GRAPH

    @property
    def shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """(input, shape) of each."""
        return tuple((name, taken.shape) for name, taken in self.inputs.items())

    def to_dict(self) -> dict:
        """As JSON says it."""
        return {
            "name": self.name, "isa": self.needs.isa, "arch": self.needs.arch,
            "features": list(self.needs.features), "target": self.target,
            "runtime": {"name": self.runtime, "version": self.version}, "table": self.table,
            "layers": list(self.layers),
            "inputs": {name: taken._asdict() for name, taken in self.inputs.items()},
            "files": {use: file._asdict() for use, file in self.files.items()},
        }  # fmt: skip


@dataclass(frozen=True)
class Record:
    """What ``easyquant.json`` says. tool: the version that wrote it; tables: {SHA-256: scale table, as its
    JSON says it}; variants: the best first."""

    tool: str
    tables: Mapping[str, Mapping]
    variants: tuple[Variant, ...]

    def to_json(self) -> str:
        """Its text, with a digest of what it says."""
        content = {
            "tool": self.tool,
            "models": {digest: table["model"] for digest, table in self.tables.items()},
            "tables": dict(self.tables),
            "variants": [variant.to_dict() for variant in self.variants],
        }
        head = {"format": FORMAT, "version": VERSION, "sha256": _digest(content)}
        return json.dumps({**head, "content": content}, indent=1) + "\n"


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _parsed(data: bytes, path: Path) -> Record:
    """The record of a text; DeployError says what is wrong with it."""
    source = f"{path}: its {MANIFEST}"
    try:
        found: Any = parse_json(data.decode(), DeployError, source)
    except UnicodeDecodeError:
        raise DeployError(f"{source} is damaged: it is no text") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise DeployError(f"{source} is not a record of {FORMAT}s")
    version = found.get("version")
    if version != VERSION or type(version) is not int:
        newer = isinstance(version, int) and version > VERSION
        cure = "install a newer tvm_easyquant" if newer else "compile the network anew"
        raise DeployError(f"{source} has version {version!r}, this release reads version {VERSION}; {cure}")
    content: Any = found.get("content")
    if found.get("sha256") != _digest(content):
        raise DeployError(f"{source} is damaged: its digest is another")
    try:
        variants = tuple(_variant(row, source) for row in content["variants"])
        record = Record(str(content["tool"]), dict(content["tables"]), variants)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DeployError(f"{source} is damaged: {type(error).__name__} {error}") from None
    if not variants:
        raise DeployError(f"{source} is damaged: it has no variants")
    return record


def _variant(row: Mapping, source: str) -> Variant:
    if row["runtime"]["name"] not in (GRAPH, VM):
        raise DeployError(
            f"{source} is for the runtime {row['runtime']['name']}, this release has {GRAPH} and {VM}"
        )
    texts = [row[key] for key in ("name", "isa", "arch", "target", "table")] + [
        *row["features"],
        *row["layers"],
    ]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a name that is no text")
    files = {
        use: File(str(f["member"]), int(f["size"]), str(f["sha256"])) for use, f in row["files"].items()
    }
    inputs = {
        str(name): Input(tuple(map(int, taken["shape"])), str(taken["dtype"]), str(taken["layout"]))
        for name, taken in row.get("inputs", {}).items()
    }
    if missing := sorted(set(FILES) - set(files)) if files else []:
        raise DeployError(f"{source} lacks a file of its variant {row['name']}: {missing[0]}")
    return Variant(
        row["name"], Needs(row["isa"], row["arch"], tuple(row["features"])), row["target"],
        str(row["runtime"]["version"]), row["table"], tuple(row["layers"]), files, inputs,
        row["runtime"]["name"],
    )  # fmt: skip


# -- writing


class Compiled(NamedTuple):
    """A variant and what belongs to it: table: its scale table's JSON, or ""; contents: by `FILES`."""

    variant: Variant
    table: str
    contents: Mapping[str, bytes]


def archive(members: Mapping[str, bytes]) -> bytes:
    """A tar archive of {name: content}: the record first, then sorted; of nobody, at no time."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in sorted(members, key=lambda name: (name != MANIFEST, name)):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(members[name]), 0o755 if name.endswith(".so") else 0o644
            tar.addfile(info, io.BytesIO(members[name]))
    return file.getvalue()


def packed(tool: str, compiled: Iterable[Compiled]) -> bytes:
    """The package of one network's variants: the same bytes for the same variants, in any order of them.

    Equal files are stored once. tool: the version that packs. Raises DeployError for two of one name and
    the same input shapes.
    """
    best_first = sorted(compiled, key=lambda each: _first_best(each.variant))
    shaped = len({each.variant.shapes for each in best_first}) > 1
    names = [folder_of(each.variant, shaped) for each in best_first]
    if len(set(names)) < len(names):
        what = "instruction set and input shape" if shaped else "instruction set"
        raise DeployError(f"two variants are for {max(names, key=names.count)}; give each {what} once")
    members: dict[str, bytes] = {}
    where: dict[str, str] = {}
    tables: dict[str, Mapping] = {}
    variants = []
    for variant, text, contents in best_first:
        files = {}
        for use, name in FILES.items():
            digest = hashlib.sha256(contents[use]).hexdigest()
            folder = f"{folder_of(variant, shaped)}/" if len(best_first) > 1 else ""
            member = where.setdefault(digest, f"{folder}{name}")
            members[member] = contents[use]
            files[use] = File(member, len(contents[use]), digest)
        variants.append(replace(_with_table(variant, text, tables), files=files))
    members[MANIFEST] = Record(tool, tables, tuple(variants)).to_json().encode()
    return archive(members)


def folder_of(variant: Variant, shaped: bool) -> str:
    """What its folder is called; shaped: the others have other input shapes."""
    sizes = "_".join("x".join(map(str, shape)) for _, shape in variant.shapes)
    return f"{variant.name}/{sizes}" if shaped else variant.name


def _with_table(variant: Variant, text: str, tables: dict[str, Mapping]) -> Variant:
    """The variant with the digest of its table, which goes into ``tables``."""
    if not text:
        return variant
    table = json.loads(text)
    tables[_digest(table)] = table
    return replace(variant, table=_digest(table))


def ordered(variants: Iterable[Variant]) -> list[Variant]:
    """Variants, the best first."""
    return sorted(variants, key=_first_best)


def _first_best(variant: Variant) -> tuple:
    return -_rank(variant.name), variant.name, variant.shapes


def _rank(name: str) -> int:
    return len(rows.usable(name)) if name in rows.ISAS else 0


def mark(tool: str, variant: Variant, table: str = "") -> bytes:
    """What is put behind a shared library: the record of its only variant."""
    tables: dict[str, Mapping] = {}
    variant = _with_table(variant, table, tables)
    record = Record(tool, tables, (variant,)).to_json().encode()
    return record + struct.pack("<Q", len(record)) + MARK


# -- reading


@dataclass(frozen=True)
class Chosen:
    """The variant of an artefact that runs on this machine.

    variant, record: None where the artefact has no record. archive: whether it is one, for `unpack`. note:
    what is not known of it, in a line, or "". runtime: `GRAPH` or `VM`.
    """

    path: Path
    archive: bool
    variant: Variant | None = None
    record: Record | None = None
    note: str = ""
    runtime: str = GRAPH

    @property
    def name(self) -> str | None:
        """The row of `topi_ext.isa` that it is compiled for, if that is known."""
        return self.variant.name if self.variant else None

    def read(self) -> dict[str, bytes]:
        """The contents of its files, by `FILES`. Raises DeployError where one is missing or damaged."""
        with _Archive(self.path) as archive:
            if self.variant is None or not self.variant.files:
                return {use: archive.read(name) for use, name in FILES.items()}
            files = self.variant.files
            return {use: archive.read(files[use].member, files[use]) for use in FILES}

    def lay_out(self, folder: Path) -> None:
        """Its files in a folder, by the names of `FILES`; none is in memory whole. Raises DeployError."""
        with _Archive(self.path) as archive:
            files = self.variant.files if self.variant is not None else {}
            for use, name in FILES.items():
                with open(folder / name, "wb") as to:
                    archive.copy(files[use].member if files else name, files.get(use), to)

    def unpack(self, folder: Path) -> tuple[str, bytes]:
        """Its code as ``mod.so`` of a folder; its graph and its parameters. Raises DeployError."""
        self.lay_out(folder)
        try:
            return (folder / FILES["graph"]).read_text(), (folder / FILES["parameters"]).read_bytes()
        except UnicodeDecodeError:
            raise DeployError(f"{self.path} is damaged: its {FILES['graph']} is no text") from None


def choose(path: str | os.PathLike[str], isa: str | None = None, *, elsewhere: bool = False) -> Chosen:
    """The best variant of a package, or of a shared library, that CPU and system run; no code of it runs.

    isa: the row of `topi_ext.isa` to take instead; else what the environment's EASYQUANT_ISA names.
    elsewhere: it is to run on another machine, which is not asked: of several, the row must be named.
    Of several input shapes it is the first, see `choices`. Raises DeployError: no such file, a damaged one,
    one of another format, a row that it has no variant for or that needs what this CPU lacks.
    """
    return choices(path, isa, elsewhere=elsewhere)[0]


def choices(
    path: str | os.PathLike[str], isa: str | None = None, *, elsewhere: bool = False
) -> list[Chosen]:
    """What `choose` takes, for each set of input shapes that there is, the smallest first."""
    path = Path(path)
    _wanted(isa)
    try:
        with open(path, "rb") as file:
            elf = file.read(4) == b"\x7fELF"
        library = elf or (sys.platform != "linux" and not tarfile.is_tarfile(path))
    except OSError as error:
        raise DeployError(f"cannot read {path}: {error.strerror}") from None
    record, kernels, runtime = _of_library(path) if library else _of_archive(path)
    if record is None:
        if isa is not None:
            raise DeployError(f"{path} has no record of its variants, so isa={isa!r} cannot be asked of it")
        note = "" if elsewhere else _by_symbols(path, kernels)
        return [Chosen(path, not library, note=note, runtime=runtime)]
    found = [best(str(path), each, isa, elsewhere=elsewhere) for each in by_shapes(record.variants)]
    LOG.info("%s: variant %s", path, found[0].name)
    return [Chosen(path, not library, variant, record, runtime=variant.runtime) for variant in found]


def by_shapes(variants: Iterable[Variant]) -> list[list[Variant]]:
    """Variants of the same input shapes together, in their order."""
    groups: dict[tuple, list[Variant]] = {}
    for variant in variants:
        groups.setdefault(variant.shapes, []).append(variant)
    return [groups[shapes] for shapes in sorted(groups)]


def read_record(path: str | os.PathLike[str]) -> Record | None:
    """What an archive says of itself, None if it says nothing. Raises DeployError where it is none."""
    with _Archive(Path(path)) as archive:
        return archive.record()


def _wanted(isa: str | None) -> tuple[str | None, str]:
    """(the row that is asked for, by whom); DeployError if there is no such row."""
    name, said = isa or os.environ.get(CHOICE) or None, "isa" if isa else CHOICE
    if name is not None and name not in rows.ISAS:
        raise DeployError(f"{said} is {name!r}; use one of {', '.join(rows.ISAS)}")
    return name, said


def best(
    what: str, variants: Sequence[Variant], isa: str | None = None, *, elsewhere: bool = False
) -> Variant:
    """The first of the variants of ``what`` that runs here; the rest as in `choose`. Raises DeployError."""
    wanted, said = _wanted(isa)
    names = ", ".join(variant.name for variant in variants)
    found = [variant for variant in variants if wanted in (None, variant.name)]
    if not found:
        raise DeployError(f"{what} has no variant {wanted}, which {said} asks for; it has {names}")
    if elsewhere:
        if len(found) > 1:
            raise DeployError(
                f"{what} has {names}, and the other machine is not asked which it runs: name it"
            )
        return found[0]
    if not rows.host_flags():
        found = found[-1:]  # the plainest, where nobody says what this CPU has
    for variant in found:
        if not variant.needs.refusal:
            return variant
    last = found[-1]
    if last.needs.arch != rows.arch_of(""):
        raise DeployError(f"{what} {last.needs.refusal}")
    others = f" (it has {names})" if len(variants) > 1 else ""
    raise DeployError(f"{what} was compiled for {last.name}{others}, which {last.needs.refusal}")


def _kernels(code) -> list[str]:
    """The rows of our kernels in machine code, by the names of their functions; the plainest first."""
    known = "|".join(sorted(rows.ISAS, key=len, reverse=True))
    found = re.findall(rf"easyquant_(?:conv2d(?:_add)?|[a-z0-9]+)_({known})(?![a-z])".encode(), code)
    return sorted({name.decode() for name in found}, key=_rank)


def _by_symbols(path: Path, names: list[str]) -> str:
    """What is not known of code that has no record, in a line; DeployError if our kernels cannot run."""
    if names:
        row = rows.ISAS[names[-1]]
        refusal = Needs(row.name, rows.arch_of(""), row.features).refusal
        if refusal:
            raise DeployError(f"{path} has kernels for {row.name} in it: it {refusal}")
    held = f"kernels for {', '.join(names)}" if names else "no kernels of ours"
    return (
        f"{path} has no record of what it needs ({held}): whether this CPU has all that TVM's own code in "
        "it may use cannot be known before it runs; Built.export and Built.export_library write the record"
    )


class _Archive:
    """A tar archive; what is wrong with it is a DeployError."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.tar = tarfile.open(path)  # noqa: SIM115  # this is a context itself
        except DAMAGED:
            raise self._damaged("it is no tar archive") from None

    def __enter__(self) -> _Archive:
        return self

    def __exit__(self, *_) -> None:
        self.tar.close()

    def _damaged(self, error: object) -> DeployError:
        reason = " ".join(str(error).split())
        return DeployError(f"{self.path} is no package that compile wrote, or a damaged one: {reason}")

    def record(self) -> Record | None:
        """What its first member says, if that is a record."""
        try:
            first = self.tar.next()
        except DAMAGED as error:
            raise self._damaged(error) from None
        if first is None or first.name != MANIFEST:
            return None
        if first.size > LARGEST:
            raise self._damaged(f"its {MANIFEST} has {first.size} bytes")
        record = _parsed(self.read(MANIFEST), self.path)
        with open(self.path, "rb") as file:
            if file.read(len(MANIFEST)) == MANIFEST.encode():  # not compressed
                file.seek(max(0, file.seek(0, os.SEEK_END) - 2 * tarfile.BLOCKSIZE))
                if file.read() != bytes(2 * tarfile.BLOCKSIZE):
                    raise self._damaged("its end is missing")
        return record

    def read(self, name: str, file: File | None = None) -> bytes:
        """A member's content, of the size and digest of ``file``."""
        content = io.BytesIO()
        self.copy(name, file, content)
        return content.getvalue()

    def copy(self, name: str, file: File | None, to: IO[bytes]) -> None:
        """The same, written to ``to`` in pieces."""
        digest, size = hashlib.sha256(), 0
        for piece in self._pieces(name):
            digest.update(piece)
            size += to.write(piece)
        if file and (size != file.size or digest.hexdigest() != file.sha256):
            raise self._damaged(f"its {name} is not what its {MANIFEST} says")

    def _pieces(self, name: str) -> Iterator[bytes]:
        try:
            try:
                reader = self.tar.extractfile(name)
            except KeyError as error:
                raise DeployError(f"{self.path} is no archive of tvmc compile: {error.args[0]}") from None
            if reader is None:
                raise DeployError(f"{self.path} is no archive of tvmc compile: {name!r} is no file in it")
            with reader:
                while piece := reader.read(PIECE):
                    yield piece
        except DAMAGED as error:
            raise self._damaged(error) from None


def _of_archive(path: Path) -> tuple[Record | None, list[str], str]:
    """(what an archive says of itself, the rows of its kernels and its runtime if it says nothing)."""
    with _Archive(path) as archive:
        record = archive.record()
        if record is not None:
            return record, [], ""
        return _of_code(path, archive.read(FILES["code"]))


def _of_library(path: Path) -> tuple[Record | None, list[str], str]:
    """The same of a shared library."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _of_code(path, data)


def _of_code(path: Path, data) -> tuple[Record | None, list[str], str]:
    _check_elf(path, data)
    end = len(data) - len(MARK) - 8
    if end < 0 or data[end + 8 :] != MARK:
        return None, _kernels(data), VM if data.find(FFI_SYMBOL) >= 0 else GRAPH
    (size,) = struct.unpack_from("<Q", data, end)
    if size > end:
        raise DeployError(f"{path} is damaged: the record behind it is not whole")
    return _parsed(data[end - size : end], path), [], ""


def _check_elf(path: Path, data) -> None:
    """Refuse a library of another architecture, or one that is not whole: a page that is missing would end
    the process by SIGBUS."""
    if data[:4] != b"\x7fELF":
        return  # another system's
    wide, order = data[4:5] == b"\x02", "<" if data[5:6] == b"\x01" else ">"
    if len(data) < 64:
        raise DeployError(f"{path} is truncated: it has {len(data)} bytes")
    (machine,) = struct.unpack_from(f"{order}H", data, 18)
    (start,) = struct.unpack_from(f"{order}{'Q' if wide else 'I'}", data, 40 if wide else 32)
    size, count = struct.unpack_from(f"{order}HH", data, 58 if wide else 46)
    if start + size * count > len(data):
        raise DeployError(f"{path} is truncated: it has {len(data)} bytes of {start + size * count}")
    arch = MACHINES.get(machine)
    if arch is not None and (refusal := rows.refusal((), arch)):
        raise DeployError(f"{path} {refusal}")
