"""A command that is ended by a signal says so in a line and leaves nothing behind.

Python hands a signal to the main thread between two of its instructions: not while a compiler runs, and an
exception raised inside a callback of TVM's may end in a crash. So a thread of its own waits for the signal,
ends the child processes, removes what is temporary, and the process with it. What is worth keeping (a
table, a line of a search's state) is written whole or not at all (`tvm_easyquant.files`). Meanwhile the
main thread waits: what it was at fails without its child or file, and that error would be the last word.
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
from collections.abc import Callable, Iterator
from pathlib import Path

from ..files import TEMPORARIES, alive

#: those that there are here; SIGHUP is that of a terminal that closes
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
PREFIX = "easyquant_"
PATIENCE = 1.0  # seconds that a child gets to end by itself
PARKED = 60.0  # seconds that the main thread waits for the process to end


@contextlib.contextmanager
def tidy() -> Iterator[None]:
    """While it is entered, signals end the process as said above, and what it and its children have in the
    folder of temporary files is in one folder of its own, which goes with it. For a console script's
    ``main``, in the main thread."""
    folders: list[str] = []
    restore = _watch_signals(folders)
    known, before = os.environ.get("TMPDIR"), tempfile.tempdir
    try:
        _remove_leftovers(Path(tempfile.gettempdir()))
        folders.append(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}_"))
        tempfile.tempdir = os.environ["TMPDIR"] = folders[0]
    except OSError:  # full or read-only; most verbs need none
        pass
    try:
        yield
    finally:
        tempfile.tempdir = before
        os.environ.pop("TMPDIR", None)
        if known is not None:
            os.environ["TMPDIR"] = known
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        restore()


def _remove_leftovers(folder: Path) -> None:
    """Folders of processes that were killed with no chance to tidy up."""
    for entry in os.listdir(folder):
        found = re.fullmatch(rf"{PREFIX}(\d+)_\w+", entry)
        if found and not alive(int(found[1])):
            shutil.rmtree(folder / entry, ignore_errors=True)


def _watch_signals(folders: list[str]) -> Callable[[], None]:
    """What it returns undoes it."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    watched = {n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN}  # as under nohup
    threading.Thread(target=_watch, args=(reader, watched, folders), daemon=True).start()
    old = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: time.sleep(PARKED)) for number in watched}

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old)
        os.close(writer)

    return restore


def _watch(reader: int, watched: set, folders: list[str]) -> None:
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while byte := pipe.read(1):
            if byte[0] in watched:
                _end(byte[0], folders)


def _end(number: int, folders: list[str]) -> None:
    how = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    start = "\n" if sys.stderr.isatty() else ""  # behind a bar
    line = f"{start}error: {how}; a search begun with --resume and a tuning go on from there\n"
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
    _end_children()
    for path in [*TEMPORARIES]:
        with contextlib.suppress(OSError):
            path.unlink()
    for folder in 3 * folders:  # another thread may still write there
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
