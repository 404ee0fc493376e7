"""What long work shows: a progress bar on a terminal, lines in a log, and the memory it took."""

from __future__ import annotations

import sys
import time
from typing import Any

#: seconds between two lines where there is no terminal
EVERY = 30.0
#: how the text begins of what is told at once
RESUMED = "resumed at"


class Bar:
    """A progress bar with an ETA on a terminal, one for each total; elsewhere a line now and then.

    steps: whether a new text is a line of its own there, as of kernels that are tuned.
    """

    def __init__(self, steps: bool = False):
        self.bar: Any = None
        self.steps, self.text, self.told = steps, "", time.monotonic()

    def __call__(self, done: int, total: int, text: str) -> None:
        """``done`` of ``total`` (0: not known); another total is a new bar."""
        from tqdm import tqdm

        if not sys.stderr.isatty():
            self._line(done, total, text)
            return
        if text.startswith(RESUMED):
            tqdm.write(text, file=sys.stderr)
            return
        if self.bar is None or (self.bar.total or 0) != total:
            self.close()
            self.bar = tqdm(total=total or None, file=sys.stderr)
        self.bar.set_description(text)
        self.bar.update(done - self.bar.n)

    def _line(self, done: int, total: int, text: str) -> None:
        step, self.text = self.steps and text != self.text, text
        if text.startswith(RESUMED):
            print(text, file=sys.stderr, flush=True)
        elif step or time.monotonic() - self.told >= EVERY:
            self.told = time.monotonic()
            print(f"{text}: {done}{f' of {total}' if total else ''}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar, if there is one."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def peak_memory_gib() -> float:
    """The peak memory of this process, in GiB; NaN where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
