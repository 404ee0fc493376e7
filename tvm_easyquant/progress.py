"""What long work shows: a progress bar on a terminal, and the memory it took."""

from __future__ import annotations

import sys


class Bar:
    """A progress bar with an ETA on a terminal, nothing elsewhere; one bar for each total."""

    def __init__(self):
        self.bar = None

    def __call__(self, done: int, total: int, text: str) -> None:
        """``done`` of ``total``; another total is a new bar."""
        from tqdm import tqdm

        if self.bar is None or (self.bar.total or 0) != total:
            self.close()
            self.bar = tqdm(total=total or None, disable=not sys.stderr.isatty(), file=sys.stderr)
        self.bar.set_description(text)
        self.bar.update(done - self.bar.n)

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
