"""Files: written so that an interrupted run leaves the old one or the new one, read as JSON strictly."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import reprlib
import tempfile
from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path

from .errors import EasyQuantError, WriteError

#: files that this process is about to rename onto what they will be, for whoever ends it
TEMPORARIES: set[Path] = set()


def writable(path: str | os.PathLike[str], inputs: Sequence[str | os.PathLike[str]] = ()) -> Path:
    """The resolved path of an output, checked before the work and not after it.

    Raises WriteError if it cannot be written, or is one of the ``inputs``, which it would overwrite.
    """
    whole = Path(path).resolve()
    if whole.is_dir():
        raise WriteError(f"cannot write {path}: it is a folder")
    if not (whole.parent.is_dir() and os.access(whole.parent, os.W_OK)):
        raise WriteError(f"cannot write {path}: {whole.parent} is not a folder that can be written to")
    if any(whole == Path(name).resolve() for name in inputs):
        raise WriteError(f"cannot write {path}: it is also an input and would be lost; name another file")
    return whole


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path``; renamed onto it when the block ends without an error.

    What a killed run left of such a file is removed. Raises WriteError, which names ``path``.
    """
    path, temporary = Path(path), None
    folder = path.parent or Path(".")
    try:
        prefix = f".{path.name[:100]}.{platform.node()[:50]}."  # a folder may be shared between machines
        _remove_leftovers(folder, prefix)
        handle, temporary = tempfile.mkstemp(
            prefix=f"{prefix}{os.getpid()}.", suffix=path.suffix, dir=folder
        )
        TEMPORARIES.add(Path(temporary))
        os.close(handle)
        yield Path(temporary)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, WriteError) and error.errno is not None:
            raise WriteError(f"cannot write {path}: {error.strerror}") from error
        raise
    finally:
        if temporary is not None:
            TEMPORARIES.discard(Path(temporary))


def _remove_leftovers(folder: Path, prefix: str) -> None:
    """Remove temporary files of this machine whose process is gone (killed with no chance to tidy up)."""
    pattern = re.compile(rf"{re.escape(prefix)}(\d+)\.")
    for entry in os.listdir(folder):
        found = pattern.match(entry)
        if found and not alive(int(found[1])):
            with contextlib.suppress(OSError):
                os.unlink(folder / entry)


def alive(pid: int) -> bool:
    """Whether there is such a process."""
    if os.name == "nt":  # there signal 0 is Ctrl-C, and any other number ends the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` (UTF-8) to ``path`` atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def append_text(path: str | os.PathLike[str], text: str) -> None:
    """Add ``text`` at the end of a file; a process killed in between leaves its beginning there."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))  # Windows: no \r\n
        try:
            rest = text.encode("utf-8")
            while rest:
                rest = rest[os.write(file, rest) :]
        finally:
            os.close(file)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror}") from error


# -- JSON that a hand may have edited, or a stranger made

LARGEST = 2**28  # bytes of a file
DEEPEST = 32  # objects and lists in each other; ours have five
LONGEST = 64  # characters of a number; the shortest text of a float64 has at most 24


def read_json(
    path: str | os.PathLike[str], error: type[EasyQuantError], what: str, *, constants: bool = False
) -> object:
    """The value of a JSON file of ours; ``error`` in one line if it is missing or none: see `parse_json`.

    what: the kind of file, in words.
    """
    return parse_json(read_text(path, error, what), error, str(path), constants=constants)


def read_text(path: str | os.PathLike[str], error: type[EasyQuantError], what: str) -> str:
    """The UTF-8 text of a file that is not too large; ``error`` names it."""
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"it has more than {LARGEST} bytes")
        return data.decode("utf-8")
    except (OSError, ValueError) as problem:
        raise error(f"cannot read {what} {path}: {problem}") from problem


def parse_json(text: str, error: type[EasyQuantError], source: str, *, constants: bool = False) -> object:
    """The value of a JSON text; ``error`` says in one line that ``source`` is none, and why.

    Stricter than `json.loads`: no key twice in an object, no endless number, no endless nesting, and NaN
    and Infinity only with ``constants``, for those who check every number themselves.
    """

    def once(pairs):
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise _Refused(f"the key {shown(twice)} is there twice in one object")
        return found

    def number(kind):
        def read(digits):
            if len(digits) > LONGEST:
                raise _Refused(f"a number has {len(digits)} characters ({digits[:12]}...)")
            value = kind(digits)
            if not isfinite(value):
                raise _Refused(f"the number {digits} is too large")
            return value

        return read

    def constant(name):
        if not constants:
            raise _Refused(f"{name} is no number")
        return float(name)

    try:
        value = json.loads(
            text, object_pairs_hook=once, parse_int=number(int), parse_float=number(float),
            parse_constant=constant,
        )  # fmt: skip
        if _deeper(value, DEEPEST):
            raise RecursionError
    except _Refused as problem:
        raise error(f"{source} is damaged: {problem}") from None
    except RecursionError:
        raise error(f"{source} is not JSON of ours: it is nested more than {DEEPEST} deep") from None
    except json.JSONDecodeError as problem:
        raise error(f"{source} is not JSON: {problem}") from None
    return value


class _Refused(ValueError):
    """JSON that we do not take."""


def _deeper(value, depth: int) -> bool:
    """Whether lists and objects are nested deeper than ``depth``; no recursion."""
    level = [value]
    for _ in range(depth + 1):
        level = [item for node in level for item in _items(node) if isinstance(item, (list, dict))]
    return bool(level)


def _items(node):
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def shown(value) -> str:
    """``repr``, of what may be large: long ones are cut."""
    shorten = reprlib.Repr()
    shorten.maxstring = shorten.maxother = 60
    text = shorten.repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def plain(value):
    """``value`` as JSON takes it: no numpy numbers, no infinity, no tuple."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not isfinite(value) else value
