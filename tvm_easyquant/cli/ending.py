"""A command that is ended by a signal says so in a line and leaves nothing behind.

Python hands a signal to the main thread between two of its instructions: not while a compiler runs, and an
exception raised inside a callback of TVM's may end in a crash. So a thread of its own waits for the signal,
ends the child processes, removes what is temporary, and the process with it. What is worth keeping (a
table, a line of a search's state) is written whole or not at all (`tvm_easyquant.files`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ..files import TEMPORARIES, alive

#: those that there are here; SIGHUP is that of a terminal that closes
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
PREFIX = "easyquant_"
PATIENCE = 1.0  # seconds that a child gets to end by itself


@contextlib.contextmanager
def tidy() -> Iterator[None]:
    """While it is entered, signals end the process as said above, and what this process and its children
    have in the folder of temporary files is in one folder of its own, which goes with it. For a console
    script's ``main``, in the main thread."""
    with _scratch() as folder, _watched(folder):
        yield


@contextlib.contextmanager
def _scratch() -> Iterator[str | None]:
    known, before = os.environ.get("TMPDIR"), tempfile.tempdir
    try:
        _remove_leftovers(Path(tempfile.gettempdir()))
        folder = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}_")
    except OSError:  # full or read-only; most verbs need none
        yield None
        return
    tempfile.tempdir = os.environ["TMPDIR"] = folder
    try:
        yield folder
    finally:
        tempfile.tempdir = before
        os.environ.pop("TMPDIR")
        if known is not None:
            os.environ["TMPDIR"] = known
        shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """Folders of processes that were killed with no chance to tidy up."""
    for entry in os.listdir(folder):
        found = re.fullmatch(rf"{PREFIX}(\d+)_\w+", entry)
        if found and not alive(int(found[1])):
            shutil.rmtree(folder / entry, ignore_errors=True)


@contextlib.contextmanager
def _watched(folder: str | None) -> Iterator[None]:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = {}
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            before[number] = signal.signal(number, lambda *_: None)
    old = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, set(before), folder), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(old)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)


def _watch(reader: int, watched: set, folder: str | None) -> None:
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while byte := pipe.read(1):
            if byte[0] in watched:
                _end(byte[0], folder)


def _end(number: int, folder: str | None) -> None:
    how = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    start = "\n" if sys.stderr.isatty() else ""  # behind a bar
    line = f"{start}error: {how}; a search begun with --resume and a tuning go on from there\n"
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
    _end_children()
    for path in [*TEMPORARIES]:
        with contextlib.suppress(OSError):
            path.unlink()
    if folder is not None:
        for _ in range(3):  # another thread may still write there
            shutil.rmtree(folder, ignore_errors=True)
    os._exit(128 + number)


def _children(pid: int) -> list[int]:
    """The processes that a process has started, and theirs; none where the system does not say."""
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, file.read_text().split()):
                found += [child, *_children(child)]
    return found


def _end_children() -> None:
    children = _children(os.getpid())
    for number, seconds in ((signal.SIGTERM, PATIENCE), (getattr(signal, "SIGKILL", signal.SIGTERM), 0.0)):
        for child in children:
            with contextlib.suppress(OSError):
                os.kill(child, number)
        until = time.monotonic() + seconds
        while children and time.monotonic() < until:
            time.sleep(0.01)
            children = [child for child in children if _running(child)]


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
