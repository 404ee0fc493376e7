"""Writing files so that an interrupted run leaves the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import tempfile
from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path

from .errors import WriteError


def writable(path: str | os.PathLike, inputs: Sequence[str | os.PathLike] = ()) -> Path:
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
def replacing(path: str | os.PathLike) -> Iterator[Path]:
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


def _remove_leftovers(folder: Path, prefix: str) -> None:
    """Remove temporary files of this machine whose process is gone (killed with no chance to tidy up)."""
    pattern = re.compile(rf"{re.escape(prefix)}(\d+)\.")
    for entry in os.listdir(folder):
        found = pattern.match(entry)
        if found and not _alive(int(found[1])):
            with contextlib.suppress(OSError):
                os.unlink(folder / entry)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write ``text`` (UTF-8) to ``path`` atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def plain(value):
    """``value`` as JSON takes it: no numpy numbers, no infinity, no tuple."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not isfinite(value) else value
