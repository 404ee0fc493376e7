"""Who runs a network: a pool of contexts, and threads of ours that own TVM's workers.

A context, an executor of TVM's, runs one call at a time. So a network has a pool of them, `Contexts`: each
call takes one that is free. They share the weights; what each has of its own are the activations.

TVM's worker threads belong to the thread that first runs a network on them, and a child of ``fork`` has
none of them: a call would wait for ever. So a network of more than one thread runs in a thread of ours that
owns the workers (`Threads.run`); whoever calls waits for it, and a child starts another.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import DeployError

SHARE_CPUS = -3  # TVM's AffinityMode kSpecifyThreadShareAllCore
#: in C++ alone: set and get how many threads the calling thread's networks take
SET_THREADS = "_ZN3tvm7runtime9threading17SetMaxConcurrencyEi"
GET_THREADS = "_ZN3tvm7runtime9threading14MaxConcurrencyEv"


class Threads:
    """The threads of one runtime library, which a subclass calls by its C interface.

    library: the ``ctypes.CDLL``. set_threads, get_threads: `SET_THREADS` and `GET_THREADS` of it.
    """

    library: Any
    set_threads: Callable[[int], Any]
    get_threads: Callable[[], int]

    def configure(self, threads: int, cpus: Sequence[int]) -> None:
        """The calling thread's networks run on so many threads, which share these CPUs."""
        raise NotImplementedError

    @property
    def usual_threads(self) -> int:
        """How many threads TVM gives to a network of the calling thread: the environment's TVM_NUM_THREADS,
        else half of the CPUs on x86, all elsewhere."""
        return self.get_threads()

    def run(self, job: Callable, threads: int, asked: bool = False):
        """What job() returns, which runs a network on so many threads: TVM's own number, unless asked for.

        One thread is the caller's. More belong to a thread of ours, so that they do not multiply with the
        callers and bind none of them to a CPU; a child of fork, in which they are not, starts others. There
        are as many of ours as calls ran at once.
        """
        if threads == 1 and not asked:
            return job()
        if threads == 1:
            was = self.get_threads()
            self.set_threads(1)
            try:
                return job()
            finally:
                self.set_threads(was)
        key = self.library._handle, threads
        try:
            jobs = _idle[key].pop()
        except (KeyError, IndexError):
            jobs = self._start(threads)
        try:
            return _wait(jobs, job)
        finally:
            _idle.setdefault(key, []).append(jobs)

    def _start(self, threads: int) -> queue.SimpleQueue:
        jobs: queue.SimpleQueue = queue.SimpleQueue()
        try:
            threading.Thread(target=_serve, args=(jobs,), name="easyquant", daemon=True).start()
        except RuntimeError as error:
            raise DeployError(f"the network gets no {threads} threads: {error}") from None
        try:
            _wait(jobs, functools.partial(self._own_workers, threads))
        except BaseException:
            jobs.put(None)
            raise
        return jobs

    def _own_workers(self, threads: int) -> None:
        """Have the calling thread's networks run on so many threads, on any of the process's CPUs."""
        cpus = usable_cpus()
        self.configure(threads, (cpus * threads)[:threads])  # makes as many as there are CPUs named
        self.configure(threads, cpus)


def usable_cpus() -> list[int]:
    """The CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _serve(jobs: queue.SimpleQueue) -> None:
    """A thread of ours: what it is asked, one after the other."""
    while (asked := jobs.get()) is not None:
        job, found, done = asked
        try:
            found += job(), None
        except BaseException as error:  # noqa: BLE001  # it is the caller's
            found += None, error
        del asked, job, found
        done.release()


def _wait(jobs: queue.SimpleQueue, job: Callable):
    """What job() returns in the thread that serves these; Ctrl-C waits for it, as in a call of C."""
    done, found = threading.Lock(), []  # type: tuple[threading.Lock, list]
    done.acquire()
    try:
        jobs.put((job, found, done))
        done.acquire()
    except BaseException:
        passed: list = []
        jobs.put((int, passed, threading.Semaphore()))
        while not passed:
            with contextlib.suppress(KeyboardInterrupt):
                time.sleep(1e-3)
        raise
    result, error = found
    if error is not None:
        raise error
    return result


#: held while a context is made, and while the process is forked
making = threading.Lock()
_forking = threading.Lock()
_held: list[Contexts] = []  # pools that the fork under way holds
#: the queues of our threads that nobody asks, by (runtime, threads of a network)
_idle: dict[tuple[int, int], list[queue.SimpleQueue]] = {}
_pools: weakref.WeakSet[Contexts] = weakref.WeakSet()


def _before_fork() -> None:
    _forking.acquire()
    for pool in list(_pools):
        if pool.still:
            pool.hold()
            _held.append(pool)
    making.acquire()


def _after_fork() -> None:
    making.release()
    while _held:
        _held.pop().release()
    _forking.release()


def _forked() -> None:
    """In a child of fork, which has no thread but the one that forked."""
    making.release()
    _held.clear()
    _idle.clear()
    for pool in list(_pools):
        pool.forked()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_forked)


class Contexts:
    """A pool of contexts of one network, each for one call at a time.

    make: a function that returns one more; it is asked when all are taken, until there are ``limit``.
    first: the first one. name: the network's; gone: the error of calls once it is closed. still: whether a
    fork waits for the calls that run: where they take locks, which the child would find taken.
    """

    def __init__(
        self, make: Callable, limit: int, first, name: str, gone: type[Exception], still: bool = False
    ):
        self._make, self._limit, self._name, self._gone, self.still = make, limit, name, gone, still
        self._free, self._left, self._busy, self._closed = [first], limit - 1, 0, False
        self._kept: weakref.WeakSet = weakref.WeakSet()  # by threads, for calls to come
        self._unlocked()
        _pools.add(self)

    def _unlocked(self) -> None:
        self._lock, self._waiting, self._forks = threading.Lock(), 0, False
        self._ready, self._idle = threading.Condition(self._lock), threading.Condition(self._lock)

    def _wait(self) -> None:
        self._waiting += 1
        try:
            self._ready.wait()
        finally:
            self._waiting -= 1

    def refuse_closed(self) -> None:
        """Raise what ``gone`` is if it is closed."""
        if self._closed:
            raise self._gone(f"{self._name} is closed")

    def take(self, own=None):
        """A context that nobody runs, or ``own``, which was kept; waits for one where all are taken."""
        with self._lock:
            self.refuse_closed()
            while self._forks or (own is None and not (self._free or self._left > 0)):
                self._wait()
                self.refuse_closed()
            if own is None and self._free:
                own = self._free.pop()
            elif own is None:
                with making:
                    own = self._make()
                self._left -= 1
            self._busy += 1
            return own

    def give(self, context) -> None:
        """Back what was taken."""
        with self._lock:
            self._busy -= 1
            if not context.kept:
                self._free.append(context)
            if self._waiting:
                self._ready.notify(self._waiting if self._closed else 1)
            if self._forks:
                self._idle.notify()

    def keep(self, context) -> None:
        """A context that was taken goes to the thread that took it; the others may make one more."""
        with self._lock:
            context.kept = True
            self._kept.add(context)
            self._left += 1
            self._ready.notify()

    def close(self) -> None:
        """Free them all, once those that run are done. What is called afterwards is refused."""
        with self._lock:
            self._closed = True
            self._ready.notify_all()
            while self._busy:
                self._wait()
            for context in (*self._free, *self._kept):
                context.close()
            self._free.clear()
            self._kept.clear()

    def hold(self) -> None:
        """Wait for the calls that run, and let none begin until `release`."""
        self._lock.acquire()
        self._forks = True
        while self._busy:
            self._idle.wait()

    def release(self) -> None:
        """Undo `hold`."""
        self._forks = False
        self._ready.notify_all()
        self._lock.release()

    def forked(self) -> None:
        """In a child of fork: leave those that other threads ran."""
        self._unlocked()
        self._busy, self._left = 0, self._limit - len(self._free)
