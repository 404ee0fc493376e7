"""Run a compiled network with TVM's runtime library and numpy alone: no compiler, no TVM package.

What ``export_library`` (``net.so``) or ``tvmc-easyquant compile`` (``net.tar``) made is loaded through the
C interface of ``libtvm_runtime.so``. A process needs some 30 MiB beside the network; importing the ``tvm``
package takes some 50 more.

One graph executor runs one call at a time. So a network has a pool of them, `Contexts`: each call takes one
that is free. They share the weights; what each has of its own are the activations.

TVM's worker threads belong to the thread that first runs a network on them, and a child of ``fork`` has
none of them: a call would wait for ever. So a network of more than one thread runs in a thread of ours that
owns the workers (`Runtime.run`); whoever calls waits for it, and a child starts another.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import mmap
import os
import queue
import re
import struct
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from importlib import util
from math import prod
from pathlib import Path

import numpy as np

from . import package
from .errors import DeployError

NAME = "libtvm_runtime.so"
CPU = 1  # DLDeviceType
#: DLDataType's codes as numpy's kinds
KINDS = {0: "i", 1: "u", 2: "f"}
# type codes of TVM's C interface (c_runtime_api.h)
INT, DEVICE, TENSOR, OBJECT, MODULE, TEXT, BYTES, ARRAY = 0, 6, 7, 8, 9, 11, 12, 13
#: in C++ alone: set and get how many threads the calling thread's networks take
SET_THREADS = "_ZN3tvm7runtime9threading17SetMaxConcurrencyEi"
GET_THREADS = "_ZN3tvm7runtime9threading14MaxConcurrencyEv"
SHARE_CPUS = -3  # TVM's AffinityMode kSpecifyThreadShareAllCore
LIST_MAGIC = 0xF7E58D4F05049CB7  # of a file of parameters


class _Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int32), ("index", ctypes.c_int32)]


class _Type(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Bytes(ctypes.Structure):
    _fields_ = [("data", ctypes.c_char_p), ("size", ctypes.c_size_t)]


class _Value(ctypes.Union):
    _fields_ = [
        ("integer", ctypes.c_int64),
        ("handle", ctypes.c_void_p),
        ("text", ctypes.c_char_p),
        ("device", _Device),
    ]


def find_runtime() -> Path:
    """``libtvm_runtime.so`` of the installed TVM, which is not imported; DeployError if there is none.

    Where ``tvm`` is imported already, its library: a process bears one only."""
    if "tvm" in sys.modules:
        return Path(sys.modules["tvm"]._ffi.base._LIB._name)
    return runtime_file()


def runtime_file() -> Path:
    """The file ``libtvm_runtime.so`` of the installed TVM; DeployError if there is none."""
    found = util.find_spec("tvm")
    path = Path(found.origin).parent / NAME if found and found.origin else Path(NAME)
    if not path.exists():
        raise DeployError(f"no {NAME} beside an installed TVM: name the file as runtime=")
    return path


@functools.lru_cache
def runtime_version(path: Path) -> str | None:
    """The version of TVM that a runtime library was built of; None where it does not say.

    TVM's C interface has no call for it; the check of versions in its RPC has the number in its text.
    """
    if "tvm" in sys.modules and path == find_runtime():
        return str(sys.modules["tvm"].__version__)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = re.search(rb'version == "(\d+\.\d+\.[0-9a-z.]{1,20})"', data)
        return found[1].decode() if found else None


def another_version(chosen: package.Chosen, library: Path) -> str:
    """What to say of a network that another TVM compiled than the runtime is of; "" of the same.

    It may run: a library that lacks a function that is called is refused by `Runtime`, and the formats of
    graph and parameters are TVM's old ones. But nobody has tested these two.
    """
    made = chosen.variant.version if chosen.variant else ""
    here = runtime_version(library) if made else None
    if here is None or made.split(".")[:2] == here.split(".")[:2]:
        return ""
    return (
        f"{chosen.path} was compiled by TVM {made}, and the runtime library is TVM {here}'s: they were not "
        f"tested together; name TVM {made}'s as runtime=, or compile the network anew"
    )


class Runtime:
    """The C interface of one runtime library."""

    def __init__(self, path: Path):
        try:
            self.library = ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
            self.library.TVMGetLastError.restype = ctypes.c_char_p
            here = ctypes.PyDLL(str(path))  # so short that giving up Python's lock would cost more
            self._set_threads, self._get_threads = here[SET_THREADS], here[GET_THREADS]
        except (OSError, AttributeError) as error:
            raise DeployError(f"{path} is no TVM runtime for this CPU: {error}") from None
        #: handles that `function` gave; each keeps its module alive until `forget`
        self.functions: list[int] = []

    def check(self, status: int) -> None:
        """DeployError with what TVM says, unless the status is 0."""
        if status:
            said = self.library.TVMGetLastError().decode(errors="replace")
            reasons = [line for line in said.splitlines() if "Error" in line] or ["it does not say why"]
            raise DeployError(f"TVM's runtime: {reasons[-1].strip()}")

    def function(self, module: int | None, name: str) -> int:
        """The handle of a module's function, or of a global one."""
        handle = ctypes.c_void_p()
        if module is None:
            self.check(self.library.TVMFuncGetGlobal(name.encode(), ctypes.byref(handle)))
        else:
            arguments = (ctypes.c_void_p(module), name.encode(), 1, ctypes.byref(handle))
            self.check(self.library.TVMModGetFunction(*arguments))
        if not handle.value:
            raise DeployError(f"there is no function {name}: not a network compiled for the graph executor")
        self.functions.append(handle.value)
        return handle.value

    def forget(self) -> None:
        """Free what `function` gave."""
        while self.functions:
            self.library.TVMFuncFree(ctypes.c_void_p(self.functions.pop()))

    def call(self, function: int, *arguments):
        """Call a function; arguments: int, str, bytes, _Device, _Tensor, or (type code, handle)."""
        values, codes = (_Value * len(arguments))(), (ctypes.c_int * len(arguments))()
        for value, argument, i in zip(values, arguments, range(len(arguments)), strict=True):
            if isinstance(argument, int):
                value.integer, codes[i] = argument, INT
            elif isinstance(argument, str):
                value.text, codes[i] = argument.encode(), TEXT
            elif isinstance(argument, bytes):
                holder = _Bytes(argument, len(argument))
                value.handle, codes[i] = ctypes.addressof(holder), BYTES
            elif isinstance(argument, _Device):
                value.device, codes[i] = argument, DEVICE
            elif isinstance(argument, _Tensor):
                value.handle, codes[i] = ctypes.addressof(argument), TENSOR
            else:
                codes[i], value.handle = argument
        result, code = _Value(), ctypes.c_int()
        self.check(
            self.library.TVMFuncCall(
                ctypes.c_void_p(function), values, codes, len(arguments), ctypes.byref(result),
                ctypes.byref(code),
            )
        )  # fmt: skip
        if code.value == TEXT:
            return result.text.decode()
        return result.handle if code.value in (OBJECT, MODULE, ARRAY) else result.integer

    def load(self, path: Path) -> int:
        """The module of a shared library."""
        handle = ctypes.c_void_p()
        self.check(self.library.TVMModLoadFromFile(str(path).encode(), b"so", ctypes.byref(handle)))
        return handle.value or 0

    def array(self, handle: int) -> np.ndarray:
        """A tensor's own memory, which is its as long as the handle is."""
        tensor = ctypes.cast(handle, ctypes.POINTER(_Tensor)).contents
        code, bits = tensor.dtype.code, tensor.dtype.bits
        if code not in KINDS:
            raise DeployError(f"a tensor has elements that numpy does not know (DLPack's type {code})")
        dtype = np.dtype(bool if (KINDS[code], bits) == ("u", 1) else f"{KINDS[code]}{bits // 8}")
        shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
        size = prod(shape) * dtype.itemsize
        memory = (ctypes.c_char * size).from_address((tensor.data or 0) + tensor.byte_offset)
        return np.ndarray(shape, dtype, memory)

    @property
    def usual_threads(self) -> int:
        """How many threads TVM gives to a network of the calling thread: the environment's TVM_NUM_THREADS,
        else half of the CPUs on x86, all elsewhere."""
        return self._get_threads()

    def run(self, job: Callable, threads: int, asked: bool = False):
        """What job() returns, which runs a network on so many threads: TVM's own number, unless asked for.

        One thread is the caller's. More belong to a thread of ours, so that they do not multiply with the
        callers and bind none of them to a CPU; a child of fork, in which they are not, starts others. There
        are as many of ours as calls ran at once.
        """
        if threads == 1 and not asked:
            return job()
        if threads == 1:
            was = self._get_threads()
            self._set_threads(1)
            try:
                return job()
            finally:
                self._set_threads(was)
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
        self._configure(threads, (cpus * threads)[:threads])  # makes as many as there are CPUs named
        self._configure(threads, cpus)

    def _configure(self, threads: int, cpus: Sequence[int]) -> None:
        with _making:
            texts = [(OBJECT, self.call(self.function(None, "runtime.String"), str(cpu))) for cpu in cpus]
            names = self.call(self.function(None, "runtime.Array"), *texts)
            configure = self.function(None, "runtime.config_threadpool")
            self.call(configure, SHARE_CPUS, threads, (OBJECT, names))
            for handle in (names, *(text for _, text in texts)):
                self.library.TVMObjectFree(ctypes.c_void_p(handle))
            self.forget()


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
_making = threading.Lock()
#: the queues of our threads that nobody asks, by (runtime, threads of a network)
_idle: dict[tuple[int, int], list[queue.SimpleQueue]] = {}
_pools: weakref.WeakSet[Contexts] = weakref.WeakSet()


def _forked() -> None:
    """In a child of fork, which has no thread but the one that forked."""
    _making.release()
    _idle.clear()
    for pool in list(_pools):
        pool.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_making.acquire, after_in_parent=_making.release, after_in_child=_forked)


class Contexts:
    """A pool of contexts of one network, each for one call at a time.

    make: a function that returns one more; it is asked when all are taken, until there are ``limit``.
    first: the first one. name: the network's; gone: the error of calls once it is closed.
    """

    def __init__(self, make: Callable, limit: int, first, name: str, gone: type[Exception]):
        self._make, self._limit, self._name, self._gone = make, limit, name, gone
        self._free, self._left, self._busy, self._closed = [first], limit - 1, 0, False
        self._kept: weakref.WeakSet = weakref.WeakSet()  # by threads, for calls to come
        self._unlocked()
        _pools.add(self)

    def _unlocked(self) -> None:
        self._lock, self._waiting = threading.Lock(), 0
        self._ready = threading.Condition(self._lock)

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
            while own is None and not (self._free or self._left > 0):
                self._wait()
                self.refuse_closed()
            if own is None and self._free:
                own = self._free.pop()
            elif own is None:
                with _making:
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

    def forked(self) -> None:
        """In a child of fork: leave those that other threads ran."""
        self._unlocked()
        self._busy, self._left = 0, self._limit - len(self._free)


def the_inputs(feed, inputs: Mapping[str, object], wrong: type[Exception]) -> Mapping:
    """{input: array} of what a caller gave: that, or the array of the only input."""
    if isinstance(feed, Mapping):
        return feed
    if len(inputs) != 1:
        raise wrong(f"the network has {len(inputs)} inputs; give {{name: array}} of {sorted(inputs)}")
    return {next(iter(inputs)): feed}


def cure(array: np.ndarray, shape: tuple[int, ...], dtype) -> str:
    """What to do about an array that does not fit an input of this shape and type; "" if nobody knows."""
    given, wanted, has = tuple(array.shape), np.dtype(dtype), np.dtype(str(array.dtype))
    if given == shape and has.kind == wanted.kind:
        return f"; give array.astype(numpy.{wanted})"
    if given == shape and has.kind in "ui" and wanted.kind == "f":
        return "; prepare it as for training (scale, mean, std)"
    if len(given) == len(shape) == 4 and given != shape:
        n, a, b, c = given
        if (n, c, a, b) == shape:
            return "; its channels are last: give array.transpose(0, 3, 1, 2)"
        if (n, b, c, a) == shape:
            return "; its channels are first: give array.transpose(0, 2, 3, 1)"
    if given == shape[1:]:
        return "; it lacks the first dimension: give array[None]"
    return ""


def at_shapes(
    known: Sequence[Mapping[str, tuple[int, ...]]], given: Mapping[str, tuple[int, ...]]
) -> int | None:
    """The place in ``known`` of the input shapes that arrays of the shapes ``given`` go to; None: in none.

    A number of samples that is no compiled batch goes to the largest batch that it fills, else to the
    smallest that there is.
    """
    if given in known:
        return known.index(given)
    fitting = []
    for i, shapes in enumerate(known):
        batches = [(shape[0], given[n]) for n, shape in shapes.items() if shape != given[n] and shape]
        if all(given[n] == shape or given[n][1:] == shape[1:] for n, shape in shapes.items()) and batches:
            (batch, (samples, *_)) = batches[0]
            fitting.append((batch > samples, abs(samples - batch), i))
    return min(fitting)[2] if fitting else None


def no_such_shapes(known: Sequence[Mapping[str, tuple[int, ...]]], arrays: Mapping, dtypes: Mapping) -> str:
    """What to say of arrays that have none of the shapes that there are."""
    found = ", ".join(f"{name} {tuple(array.shape)}" for name, array in arrays.items())
    there = "; ".join(", ".join(f"{n} {shape}" for n, shape in shapes.items()) for shapes in known)
    cures = (cure(arrays[n], shape, dtypes[n]) for shapes in known for n, shape in shapes.items())
    return f"the inputs are {found}, the network takes {there}{next(filter(None, cures), '')}"


class _Context:
    """One graph executor: its inputs and outputs are its own memory, seen as arrays."""

    kept = False

    def __init__(self, runtime: Runtime, module: int, names: Sequence[str], threads: tuple[int, bool]):
        put, count = (runtime.function(module, name) for name in ("get_input", "get_num_outputs"))
        get = runtime.function(module, "get_output")
        handles = [runtime.call(put, name) for name in names]
        self.inputs = {name: runtime.array(handle) for name, handle in zip(names, handles, strict=True)}
        found = [runtime.call(get, i) for i in range(runtime.call(count))]
        self.outputs, self.run_already = [runtime.array(handle) for handle in found], False
        self._runtime, self._threads = runtime, threads
        run = runtime.function(module, "run")
        runtime.functions.remove(run)  # this one stays
        result = ctypes.byref(_Value()), ctypes.byref(ctypes.c_int())
        self._run = functools.partial(
            runtime.library.TVMFuncCall, ctypes.c_void_p(run), None, None, 0, *result
        )
        self.close = weakref.finalize(self, _free, runtime.library, [*handles, *found], [run], [module])
        self.close.atexit = False  # the process frees it; a thread may still run it

    def run(self) -> None:
        self._runtime.run(self._step, *self._threads)

    def _step(self) -> None:
        self._runtime.check(self._run())


def _free(library, arrays: Sequence[int], functions: Sequence[int], modules: Sequence[int]) -> None:
    for handles, free in ((arrays, "TVMArrayFree"), (functions, "TVMFuncFree"), (modules, "TVMModFree")):
        for handle in handles:
            library[free](ctypes.c_void_p(handle))


def _another(runtime: Runtime, graph: str, library: int, first: int, names, constants, threads) -> _Context:
    """One more context of a library, with the weights of the ``first`` executor, not copies of them."""
    create = runtime.function(None, "tvm.graph_executor.create")
    module = runtime.call(create, graph, (MODULE, library), CPU, 0)
    if constants:
        runtime.call(runtime.function(module, "share_params"), (MODULE, first), listed(constants))
    made = _Context(runtime, module, names, threads)
    runtime.forget()
    return made


def listed(names: Sequence[str]) -> bytes:
    """Names as TVM's ``share_params`` reads them: the head of a file of parameters."""
    texts = [name.encode() for name in names]
    head = struct.pack("<QQQ", LIST_MAGIC, 0, len(texts))
    return head + b"".join(struct.pack("<Q", len(t)) + t for t in texts) + struct.pack("<Q", len(texts))


class _Network:
    """A network compiled for one set of input shapes: its code and weights, and the pool of its contexts.

    inputs: {name: (shape, element type)}; layouts: of images of bytes; contexts, threads: as of `Program`.
    """

    def __init__(
        self, runtime: Runtime, chosen: package.Chosen, contexts: int | None, threads: int | None, name: str
    ):
        taken = chosen.variant.inputs if chosen.variant else {}
        self.layouts = {name: made.layout for name, made in taken.items() if made.layout}
        device, modules = _Device(CPU, 0), []
        if chosen.archive:
            with tempfile.TemporaryDirectory() as folder:
                graph, parameters = chosen.unpack(Path(folder))
                modules.append(runtime.load(Path(folder) / "mod.so"))
            create = runtime.function(None, "tvm.graph_executor.create")
            modules.append(runtime.call(create, graph, (MODULE, modules[0]), CPU, 0))
            runtime.call(runtime.function(modules[-1], "load_params"), parameters)
        else:
            modules.append(runtime.load(chosen.path))
            graph = runtime.call(runtime.function(modules[0], "get_graph_json"))
            modules.append(runtime.call(runtime.function(modules[0], "default"), device))
        nodes = json.loads(graph)
        arguments = [nodes["nodes"][i]["name"] for i in nodes["arg_nodes"]]
        constants = [name for name in arguments if re.fullmatch(r"p\d+", name)]  # as TVM calls them
        names = [name for name in arguments if name not in constants]
        cpus = len(usable_cpus())
        asked = (runtime.usual_threads, False) if threads is None else (min(threads, cpus), True)
        first = _Context(runtime, modules[-1], names, asked)
        runtime.forget()
        self.inputs = {name: (view.shape, view.dtype) for name, view in first.inputs.items()}
        self.outputs = [(view.shape, view.dtype) for view in first.outputs]
        more = functools.partial(_another, runtime, graph, modules[0], modules[-1], names, constants, asked)
        if contexts is None:
            contexts = max(cpus // asked[0], 1)
        self.contexts = Contexts(more, contexts, first, name, DeployError)
        library = runtime.library  # the first executor has the weights that the others share
        library.TVMObjectRetain(ctypes.c_void_p(modules[-1]))
        self._free = weakref.finalize(self, _free, library, (), (), modules)
        self._free.atexit = False

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{input: shape}."""
        return {name: shape for name, (shape, _) in self.inputs.items()}

    def close(self) -> None:
        """Wait for the calls that run, then free it."""
        self.contexts.close()
        self._free()

    def refuse(self, name: str, array: np.ndarray) -> None:
        """DeployError for an array that does not fit an input."""
        shape, dtype = self.inputs[name]
        found, what = f"{array.dtype} {array.shape}", cure(array, shape, dtype)
        taken = package.Input(shape, str(dtype), self.layouts.get(name, ""))
        raise DeployError(f"input {name} is {found}, the network takes {taken}{what}")

    def samples(self, arrays: Mapping[str, np.ndarray]) -> tuple[int, int]:
        """(compiled batch, samples given), (0, 0) where nothing is to be cut. Raises DeployError."""
        batch = samples = 0
        for name, (shape, dtype) in self.inputs.items():
            given = arrays[name]
            if given.dtype != dtype or (
                given.shape != shape and (given.shape[1:] != shape[1:] or not given.size)
            ):
                self.refuse(name, given)
            if given.shape == shape:
                continue
            if batch and (batch, samples) != (shape[0], len(given)):
                raise DeployError(f"input {name} has {len(given)} samples, another has {samples}")
            batch, samples = shape[0], len(given)
        if not batch:
            return 0, 0
        for name, (shape, _) in self.inputs.items():
            if shape[:1] == (batch,) and len(arrays[name]) != samples:
                raise DeployError(f"input {name} has {batch} samples, another has {samples}")
        for i, (shape, _) in enumerate(self.outputs):
            if shape[:1] != (batch,):
                lacks = f"output {i} of shape {shape} has no batch dimension"
                raise DeployError(f"{lacks}: give {batch} samples, not {samples}")
        return batch, samples

    def cut(self, context, arrays, batch: int, samples: int) -> list[np.ndarray]:
        """The outputs for any number of samples, a batch at a time."""
        made = [np.empty((samples, *shape[1:]), dtype) for shape, dtype in self.outputs]
        for at in range(0, samples, batch):
            part = min(batch, samples - at)
            for name, view in context.inputs.items():
                array = arrays[name]
                if view.shape[:1] != (batch,):
                    np.copyto(view, array)
                    continue
                np.copyto(view[:part], array[at : at + part])
                view[part:] = array[-1]
            context.run()
            for whole, view in zip(made, context.outputs, strict=True):
                whole[at : at + part] = view[:part]
        return made


class Program:
    """A compiled network with its inputs and outputs by name, for any number of threads.

    ``program(feed)`` takes {input: array of its shape and type}, or the array of the only input, and
    returns the outputs as a list, as `tvm_easyquant.Executor` does. How an array lies in memory does not
    matter. Where the first dimension is a batch, any number n of samples is cut into calls of the compiled
    batch, the last one filled up by repeating its last sample; the outputs have n rows. ``inputs`` is
    {name: (shape, element type)}, ``layouts`` {name: NHWC or NCHW} of an image of bytes.

    A package may hold the network at several input shapes: ``shapes`` lists them, {input: shape} each, and
    the arrays of a call say which is meant. ``inputs`` is then of the first.

    Each call takes a free context of a pool, and waits where there is none. Contexts share the weights;
    each has activations of its own. ``set_inputs``, ``run`` and ``outputs`` are the three steps of a call,
    for each thread by itself: it keeps a context until it ends.

    A process may be forked after a program was loaded or ran; the child may call it, too. ``close()``, or
    the end of a ``with`` block, waits for the calls that run and frees the network.

    path: ``net.so`` of ``export_library`` or ``net.tar`` of ``tvmc-easyquant compile``; runtime: a
    ``libtvm_runtime.so`` of the TVM that compiled it, by default that of the installed one; isa: the row of
    `topi_ext.isa` whose variant to take (``variant`` says which was taken; see `package.choose`). contexts:
    the most calls at once, each of which needs one; by default as many as keep the CPUs busy. They are made
    when they are needed first; of several shapes each has as many. threads: of each call, at most the CPUs
    that the process may use; by default what the environment's TVM_NUM_THREADS says, else TVM's own number.
    Raises DeployError.
    """

    def __init__(
        self,
        path,
        runtime=None,
        *,
        isa: str | None = None,
        contexts: int | None = None,
        threads: int | None = None,
    ):
        for what, number in (("contexts", contexts), ("threads", threads)):
            if number is not None and (type(number) is not int or number < 1):
                raise DeployError(f"{what} is {number!r}; use 1 or more")
        path = Path(path).resolve()  # what has no folder, the linker looks for elsewhere
        if not path.exists():
            raise DeployError(f"{path} does not exist")
        chosen = package.choices(path, isa)  # before any code of it runs
        self.variant = chosen[0].name
        package.say_once(chosen[0].note)
        library = Path(runtime) if runtime is not None else find_runtime()
        self._tvm = Runtime(library)
        package.say_once(another_version(chosen[0], library))
        self._networks = [_Network(self._tvm, each, contexts, threads, path.name) for each in chosen]
        self.inputs, self.layouts = self._networks[0].inputs, self._networks[0].layouts
        self.shapes = [network.shapes for network in self._networks]
        self._mine = threading.local()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the calls that run, then free the network; a later call raises DeployError."""
        for network in self._networks:
            network.close()

    def _arrays(self, feed) -> dict[str, np.ndarray]:
        """{input: array} of a feed; DeployError names an input that is unknown or missing."""
        feed = the_inputs(feed, self.inputs, DeployError)
        unknown = sorted(map(str, set(feed) - set(self.inputs)))
        if unknown:
            raise DeployError(f"there is no input {unknown[0]}; the inputs are {sorted(self.inputs)}")
        arrays = {}
        for name in self.inputs:
            if name not in feed:
                raise DeployError(f"input {name} is missing")
            try:
                arrays[name] = np.asarray(feed[name])
            except ValueError as error:
                raise DeployError(f"input {name} is no array: {error}") from None
        return arrays

    def _network(self, arrays: Mapping[str, np.ndarray]) -> _Network:
        """The one that arrays of these shapes are for. Raises DeployError, which lists the shapes."""
        if len(self._networks) == 1:
            return self._networks[0]
        at = at_shapes(self.shapes, {name: array.shape for name, array in arrays.items()})
        if at is None:
            dtypes = {name: dtype for name, (_, dtype) in self.inputs.items()}
            raise DeployError(no_such_shapes(self.shapes, arrays, dtypes))
        return self._networks[at]

    def set_inputs(self, feed: Mapping[str, np.ndarray] | np.ndarray) -> None:
        """Copy every input in; DeployError names one that is missing, unknown, of another shape or type."""
        arrays = self._arrays(feed)
        network = self._network(arrays)
        for name, (shape, dtype) in network.inputs.items():
            if arrays[name].shape != shape or arrays[name].dtype != dtype:
                network.refuse(name, arrays[name])
        own = self._kept(network)
        context = network.contexts.take(own)
        try:
            if own is None:
                network.contexts.keep(context)
                self._mine.contexts[network] = context
            self._mine.network = network
            for name, view in context.inputs.items():
                np.copyto(view, arrays[name])
        finally:
            network.contexts.give(context)

    def _kept(self, network: _Network):
        """The context of a network that this thread keeps, or None."""
        if not hasattr(self._mine, "contexts"):
            self._mine.contexts = {}
        return self._mine.contexts.get(network)

    def run(self) -> None:
        """Run the network on the inputs that this thread set; DeployError if it did not."""
        network, context = self._own("set_inputs", True)
        try:
            context.run()
            context.run_already = True
        finally:
            network.contexts.give(context)

    def outputs(self) -> list[np.ndarray]:
        """Copies of the outputs of this thread's last `run`; DeployError if there was none."""
        network, context = self._own("set_inputs and run", False)
        try:
            return [view.copy() for view in context.outputs]
        finally:
            network.contexts.give(context)

    def _own(self, before: str, runs: bool):
        """(network, the context of it that this thread keeps, taken)."""
        network = getattr(self._mine, "network", self._networks[0])
        own = self._kept(network)
        network.contexts.refuse_closed()
        if own is None or not (runs or own.run_already):
            raise DeployError(f"this thread has not called {before}; program(feed) is all three steps")
        return network, network.contexts.take(own)

    def __call__(self, feed: Mapping[str, np.ndarray] | np.ndarray) -> list[np.ndarray]:
        """The outputs for a feed of one batch, or of any number of samples; see the class."""
        arrays = self._arrays(feed)
        network = self._network(arrays)
        batch, samples = network.samples(arrays)
        context = network.contexts.take(self._kept(network))
        try:
            if samples != batch:
                return network.cut(context, arrays, batch, samples)
            for name, view in context.inputs.items():
                np.copyto(view, arrays[name])
            context.run()
            context.run_already = True
            return [view.copy() for view in context.outputs]
        finally:
            network.contexts.give(context)
