"""Where the tasks of a search run, and how work is cut into them, whoever runs them. No TVM here."""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor

from joblib import Parallel, delayed
from joblib.parallel import get_active_backend
from threadpoolctl import threadpool_limits

from ..cluster import Made, Once, active, plain

PARTS = 8  # tasks that the images of one layer are cut into


class Workers:
    """Runs tasks: in threads of this process, or where ``joblib.parallel_config`` says, by joblib.

    jobs: how many at once; None is what ``parallel_config`` says, without one the number of CPUs. On a Dask
    cluster its workers are how many; jobs are then the threads of what runs in this process. ``cluster``:
    it, or None.
    """

    def __init__(self, jobs: int | None = None):
        backend, configured = get_active_backend(prefer="threads")
        self.threaded = getattr(backend, "uses_threads", False)
        self.cluster = active()
        if jobs is None and self.threaded:
            jobs = (os.cpu_count() or 1) if configured in (None, 1) else configured
        self.jobs = jobs
        self.threads = ThreadPoolExecutor(min(jobs, 64) if jobs and jobs > 0 else os.cpu_count() or 1)

    def run(self, function, arguments) -> list:
        """function(*a) for each of ``arguments``, in their order; a `Once` stands for its value."""
        if self.cluster is not None:
            return self.cluster.run(function, arguments)
        calls = [plain(a) for a in arguments]
        if self.threaded:  # those that are there: joblib starts new ones for every call
            return list(self.threads.map(lambda each: function(*each), calls))
        return Parallel(self.jobs, prefer="threads")(delayed(_alone)(function, *each) for each in calls)

    def held(self, function, arguments) -> list[Once]:
        """What `run` returns, each to be an argument of other tasks; on a cluster it stays there."""
        if self.cluster is not None:
            return [Made(function, *a) for a in arguments]
        return [Once(found) for found in self.run(function, arguments)]

    def made(self, function, *arguments) -> Once:
        """The same of one call that is too little for a task: here it is made at once."""
        if self.cluster is not None:
            return Made(function, *arguments)
        return Once(function(*plain(arguments)))

    @property
    def note(self) -> str:
        """Who works, for a line of progress; nothing where it is this process."""
        return "" if self.cluster is None else self.cluster.note

    def local(self, function, items) -> None:
        """function(item) for each item, in threads of this process: for what changes the items."""
        list(self.threads.map(function, items))


def _alone(function, *arguments):
    with threadpool_limits(1):
        return function(*arguments)


def cut(count: int, parts: int) -> list[slice]:
    """Consecutive slices of nearly the same length, no more than ``parts``."""
    edges = [round(i * count / parts) for i in range(parts + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges) if b > a]
