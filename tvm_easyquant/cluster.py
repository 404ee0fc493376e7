"""A Dask cluster as the place where tasks run. No TVM here.

What several tasks share is sent once (`Once`), by a key that the tasks name. What a worker that is lost
held or computed is sent and computed again, on the others; a scheduler that is lost is a `ClusterError`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import pickle
import re
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from joblib.parallel import get_active_backend
from threadpoolctl import threadpool_limits

from .errors import ClusterError

ADDRESS = re.compile(r"(tcp|tls)://.+:\d+")
ANSWER = 5  # seconds that a scheduler has to answer, and to come back
WORKERS = 20  # seconds to wait for a worker where there is none
POLL = 2.0  # seconds after which a task that has not ended is looked after
TRIES = 6  # of a task whose worker is lost
SAMPLES = 16  # that one task of `Spread` runs a network on
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
NAMED = 4  # workers that a line of progress tells apart


class Once:
    """An argument that tasks share: a cluster is sent it once, elsewhere it is the value itself."""

    def __init__(self, value: Any):
        self.value = value
        self.future: Any = None


class Made(Once):
    """What the workers of a cluster make of what they hold, and keep: function(*arguments), some of them a
    `Once`. It is made again if it is lost. instead: nobody needs the first argument any more then; kept:
    else each task makes it where it runs. where: the worker, of `Cluster.places`, that makes it, and runs
    the tasks that it is an argument of, if it is there."""

    def __init__(
        self, function: Callable, *arguments: Any, instead: bool = False, kept: bool = True,
        where: str | None = None,
    ):  # fmt: skip
        super().__init__(None)
        self.function, self.arguments, self.where = function, arguments, where
        self.instead, self.kept = instead, kept


class _Place(NamedTuple):
    """An argument as it is sent: the number of what the worker holds."""

    number: int


class _Call(NamedTuple):
    """An argument as it is sent: what is made of others, which may be places and calls."""

    function: Callable
    arguments: tuple


def plain(arguments: Iterable) -> tuple:
    """Arguments as a function here takes them."""
    return tuple(a.value if isinstance(a, Once) else a for a in arguments)


def _call(version: str, work: bytes, *shared):
    """A task, on a worker: (the worker's address, what the function returned)."""
    from distributed import get_worker

    from . import __version__

    if version != __version__:
        raise ClusterError(_other(get_worker().address, __version__, version))
    _keep_memory()
    call = pickle.loads(work)  # noqa: S301  # a worker runs what it is sent
    with threadpool_limits(1):  # one order of BLAS's sums, whatever the machine
        return get_worker().address, _value(call, shared)


def _value(argument: Any, shared: Sequence) -> Any:
    """An argument as it was sent, on a worker that holds ``shared``."""
    if isinstance(argument, _Place):
        return shared[argument.number]
    if isinstance(argument, _Call):
        return argument.function(*(_value(a, shared) for a in argument.arguments))
    return argument


def _kept(*task):
    """A `Made`, on a worker."""
    return _call(*task)[1]


@functools.cache
def _keep_memory() -> None:
    """Dask has the C library of its workers give each array's memory back at once, and the next one is page
    faults again, which took more time than the tasks: back to what it ends at by itself."""
    if sys.platform == "linux" and "MALLOC_TRIM_THRESHOLD_" in os.environ:
        with contextlib.suppress(AttributeError):  # another C library than GNU's
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_THRESHOLD, 32 << 20)
            mallopt(M_TRIM_THRESHOLD, 64 << 20)


def _place(address: str) -> str:
    """HOST:PORT of an address."""
    return address.partition("://")[2] or address


def _other(address: str, theirs: str | None, ours: str) -> str:
    have = "has no tvm_easyquant" if theirs is None else f"has tvm_easyquant {theirs}"
    return f"{address} {have}, here it is {ours}; install the same release everywhere"


class Cluster:
    """A connected cluster. client: ``distributed.Client``.

    done: {worker's address: tasks that it has done}; again: tasks that ran again, or were sent again, as a
    worker was lost.
    """

    def __init__(self, client: Any):
        self.client, self.address = client, client.scheduler.address
        self.done: dict[str, int] = {}
        self.again = 0

    def check(self) -> None:
        """ClusterError where there are no workers, or some have another release of this package."""
        from . import __version__

        def told():  # within: a worker without this package must be able to say so
            try:
                import tvm_easyquant
            except ImportError:
                return None
            return tvm_easyquant.__version__

        from distributed import TimeoutError as Late

        try:
            self.client.wait_for_workers(1, timeout=WORKERS)
        except Late:
            raise self._without() from None
        found = {"the scheduler": self.client.run_on_scheduler(told), **self.client.run(told)}
        for address, version in found.items():
            if version != __version__:
                raise ClusterError(_other(address, version, __version__))
            if address != "the scheduler":
                self.done.setdefault(address, 0)

    @property
    def note(self) -> str:
        """Who has done how many tasks, for a line of progress; of many workers the least and the most."""
        if not self.done:
            return ""
        if len(self.done) > NAMED:
            least, most = min(self.done.values()), max(self.done.values())
            return f", {len(self.done)} workers: {least} to {most} tasks each"
        return ", tasks: " + ", ".join(f"{_place(address)} {n}" for address, n in sorted(self.done.items()))

    def __str__(self):
        some = any(self.done.values())  # else no word of each
        tasks = ", ".join(f"{a}: {count} tasks" for a, count in sorted(self.done.items()) if some)
        again = f"; {self.again} ran again as a worker was lost" if self.again else ""
        return (tasks or "no tasks") + again

    def run(self, function: Callable, calls: Iterable[Sequence]) -> list:
        """function(*arguments) for each of ``calls``, in their order. Raises what a function raises, and
        ClusterError where the cluster is lost."""
        tasks = [_Task(self, function, call) for call in calls]
        self.send([once for task in tasks for once in task.shared])
        for task in tasks:
            task.start()
        found = self._together(tasks)
        return [task.result() for task in tasks] if found is None else found

    def _together(self, tasks: Sequence[_Task]) -> list | None:
        """The results of tasks in one answer; None where one of them is to be looked at by itself."""
        from distributed import CancelledError, wait
        from distributed import TimeoutError as Late

        futures = [task.future for task in tasks]
        while any(future.status == "pending" for future in futures):
            try:
                with self.client.as_current():
                    wait(futures, timeout=POLL)
            except Late:
                self.look_after()
            except CancelledError:
                return None
        if any(future.status != "finished" for future in futures):
            return None
        try:
            found = self.client.gather(futures)
        except (CancelledError, OSError, Late):  # lost, or failed, since
            return None
        for address, _ in found:
            self.did(address)
        return [each for _, each in found]

    def did(self, address: str) -> None:
        """A worker has done a task."""
        self.done[address] = self.done.get(address, 0) + 1

    def spread(self) -> Spread:
        """See `Spread`."""
        return Spread(self)

    def send(self, shared: Iterable[Once]) -> None:
        """What the cluster does not hold yet; and has it make what is `Made` of that."""
        from distributed import TimeoutError as Late

        missing = _missing(shared)
        values = [once for once in missing if not isinstance(once, Made)]
        for _ in range(TRIES if missing else 0):
            try:
                futures = self._scattered([once.value for once in values])
            except (OSError, Late):  # to a worker that is lost, or there is none
                self.look_after()
                continue
            for once, future in zip(values, futures, strict=True):
                once.future = future
            for once in missing:
                if isinstance(once, Made):
                    once.future = _Task(self, once.function, once.arguments, once.where).start(_kept)
                    if once.instead:
                        once.arguments[0].future = None
            return
        if missing:
            raise self._without()

    def _scattered(self, values: list) -> list:
        return self.client.scatter(values, hash=False, timeout=ANSWER) if values else []

    def threads(self) -> int:
        """Of all workers together."""
        return sum(self._threads().values())

    def places(self, count: int) -> list[str | None]:
        """For each of so many shares its worker, all threads of one before those of the next: the same
        while no worker comes or goes."""
        threads = [address for address, n in sorted(self._threads().items()) for _ in range(n)]
        return [threads[i * len(threads) // count] if threads else None for i in range(count)]

    def _threads(self) -> dict[str, int]:
        """{worker's address: its threads}."""
        from distributed import TimeoutError as Late

        try:
            return self.client.nthreads()
        except (OSError, Late):
            raise self._lost() from None

    def look_after(self) -> None:
        """While tasks run: ClusterError if nobody is there to end them."""
        until = time.monotonic() + ANSWER + 1
        while self.client.status == "connecting" and time.monotonic() < until:
            time.sleep(0.05)
        if self.client.status != "running":
            raise self._lost()
        until = time.monotonic() + WORKERS
        while not self.threads():
            if time.monotonic() > until:
                raise self._without()
            time.sleep(0.2)

    def _lost(self) -> ClusterError:
        return ClusterError(
            f"the scheduler at {self.address} is lost; a search begun with --resume (checkpoint=) goes on "
            "from there, on a cluster or without one"
        )

    def _without(self) -> ClusterError:
        return ClusterError(f"the cluster at {self.address} has no workers")


def _held(once: Once) -> bool:
    return once.future is not None and once.future.status not in ("cancelled", "lost", "error")


def _held_for(arguments: Iterable) -> Iterator[Once]:
    """What a worker must hold to have these arguments."""
    for a in arguments:
        if isinstance(a, Made) and not a.kept:
            yield from _held_for(a.arguments)
        elif isinstance(a, Once):
            yield a


def _missing(shared: Iterable[Once]) -> list[Once]:
    """What is not held, each once, behind what it is made of."""
    found = [once for once in shared if not _held(once)]
    for once in found:  # it grows
        if isinstance(once, Made):
            found += [each for each in _held_for(once.arguments) if not _held(each)]
    return list({id(once): once for once in reversed(found)}.values())


class _Task:
    """One call, until it has ended somewhere."""

    def __init__(self, cluster: Cluster, function: Callable, arguments: Sequence, where: str | None = None):
        self.cluster = cluster
        self.name = getattr(function, "__name__", "task").strip("_")  # Dask learns how long these take
        self.shared: list[Once] = []
        self.work = pickle.dumps(self._sent(function, arguments), 5)
        theirs = (once.where for once in self.shared if isinstance(once, Made) and once.where)
        self.where = where or next(theirs, None)
        self.future: Any = None

    def _sent(self, function: Callable, arguments: Iterable) -> _Call:
        """A call as it is sent; what it needs of what workers hold comes to ``shared``."""
        sent: list[Any] = []
        for a in arguments:
            if isinstance(a, Made) and not a.kept:
                a = self._sent(a.function, a.arguments)
            elif isinstance(a, Once):
                self.shared.append(a)
                a = _Place(len(self.shared) - 1)
            sent.append(a)
        return _Call(function, tuple(sent))

    def start(self, how: Callable = _call) -> Any:
        from . import __version__

        shared = [once.future for once in self.shared]
        key = f"{self.name}-{uuid.uuid4().hex}"
        place: dict[str, Any] = dict(workers=[self.where], allow_other_workers=True) if self.where else {}
        self.future = self.cluster.client.submit(
            how, __version__, self.work, *shared, key=key, pure=False, **place
        )
        return self.future

    def result(self):
        from distributed import CancelledError, KilledWorker
        from distributed import TimeoutError as Late
        from distributed.comm import CommClosedError

        for _ in range(TRIES):
            try:
                address, found = self._waited(Late)
            except (CancelledError, KilledWorker, CommClosedError):
                self.cluster.look_after()
                self.cluster.again += 1
                self.cluster.send(self.shared)
                self.start()
                continue
            self.cluster.did(address)
            self.future = None
            return found
        raise ClusterError(
            f"a task was lost with its worker {TRIES} times; do the workers have memory enough?"
        )

    def _waited(self, late):
        while True:
            try:
                return self.future.result(timeout=POLL)
            except late:
                status = self.future.status
                if status == "error":  # the task's own
                    raise
                if status == "pending":  # else it ended just now
                    self.cluster.look_after()


class Spread:
    """Runs networks on samples of a set, which are sent once however many networks see them.

    A network is a function of a list of samples that returns their outputs; see `evaluate`'s ``each``.
    """

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.sent: list[Once] = []

    @property
    def note(self) -> str:
        """Who has done how many tasks, for a line of progress."""
        return self.cluster.note

    def __call__(self, network: Callable[[list], list], samples: Iterable) -> Iterator:
        """The outputs of each sample, in order, the next ones under way."""
        shared, waiting = Once(network), iter(samples)
        ahead = 2 * max(1, self.cluster.threads())
        under_way: deque[tuple[_Task, Once]] = deque()
        number = 0
        while True:
            while len(under_way) < ahead and (some := list(islice(waiting, SAMPLES))):
                if number == len(self.sent):
                    self.sent.append(Once(None))
                once = self.sent[number]
                once.value, number = some, number + 1
                task = _Task(self.cluster, _answers, (shared, once))
                self.cluster.send((shared, once))
                task.start()
                under_way.append((task, once))
            if not under_way:
                return
            task, once = under_way.popleft()
            found = task.result()
            once.value = None  # it is out there; the next network's samples come from the data again
            yield from found


def _answers(network: Callable[[list], list], samples: list) -> list:
    return network(samples)


def active() -> Cluster | None:
    """The cluster that ``joblib.parallel_config`` says, if it says one."""
    backend, _ = get_active_backend(prefer="threads")
    client = getattr(backend, "client", None)  # joblib's backend for Dask has one
    return getattr(backend, "cluster", None) or (Cluster(client) if client is not None else None)


@contextlib.contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """The cluster of a scheduler at ``tcp://HOST:PORT`` or, by Dask's own settings, ``tls://HOST:PORT``;
    joblib's tasks run there, too, while it is entered.

    Raises ClusterError where nobody answers, there are no workers or another release, and ImportError
    without ``distributed``.
    """
    if not ADDRESS.fullmatch(address):
        raise ClusterError(
            f"{address!r} is no scheduler's address; give tcp://HOST:PORT or tls://HOST:PORT"
        )
    import joblib
    from distributed import Client
    from joblib._dask import DaskDistributedBackend

    log = logging.getLogger("distributed")
    before = log.level
    log.setLevel(logging.CRITICAL)  # what it would tell of a lost scheduler or worker, we do
    try:
        try:
            client = Client(address, timeout=ANSWER, set_as_default=False)
        except (OSError, TypeError, ValueError, RuntimeError) as error:
            why = "nobody answers there" if isinstance(error, OSError) else " ".join(str(error).split())
            raise ClusterError(f"no Dask scheduler at {address}: {why}") from None
        try:
            cluster = Cluster(client)
            cluster.check()
            backend = DaskDistributedBackend(client=client)
            backend.cluster = cluster
            with joblib.parallel_config(backend=backend):
                yield cluster
        finally:
            with contextlib.suppress(Exception):
                client.close(timeout=1)
    finally:
        log.setLevel(before)
