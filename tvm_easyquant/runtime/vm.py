"""Networks that today's apache-tvm compiled: its virtual machine, by the C interface of ``libtvm_ffi.so``.

What is called is in ``libtvm_runtime.so``, which needs that library; neither a compiler nor a Python
package of theirs is loaded. The weights of a package lie in a file of their own, which is mapped: they are
in memory once, and each call is handed all of them. A library (``.so``) has its weights on the heap.

The code takes every array to begin at a multiple of `ALIGNMENT` bytes, which numpy's need not do: the
inputs are copied to memory of ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import mmap
import os
import sys
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from importlib import util
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from .. import package
from ..errors import DeployError
from . import dlpack
from .pool import GET_THREADS, SET_THREADS, SHARE_CPUS, Threads, making

FFI = "libtvm_ffi.so"
#: what a few float operators call (TopK sorts), beside the runtime library; and one of its functions
EXTRA, SORT = "libtvm_runtime_extra.so", "tvm.contrib.sort.argsort"
#: the version of its interface that is spoken here
INTERFACE = (0, 1)
ALIGNMENT = 64
POOLED = 2  # the virtual machine's memory: kept for the next call
# type indices of values (tvm/ffi/c_api.h); objects are counted, and begin with a head of 24 bytes
INT, BOOL, TEXT, OBJECT, TENSOR, ARRAY = 1, 2, 8, 64, 70, 71
HEAD = 24


class Value(ctypes.Structure):
    """TVMFFIAny."""

    class _Of(ctypes.Union):
        _fields_ = [("integer", ctypes.c_int64), ("handle", ctypes.c_void_p), ("text", ctypes.c_char_p)]

    _anonymous_ = ("of",)
    _fields_ = [("kind", ctypes.c_int32), ("padding", ctypes.c_uint32), ("of", _Of)]


class _Bytes(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("size", ctypes.c_size_t)]


class _Managed(ctypes.Structure):
    """DLManagedTensor, of memory that is not freed with it."""

    _fields_ = [("tensor", dlpack.Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


def ffi_library(runtime: Path, installed: bool = True) -> Path:
    """The ``libtvm_ffi.so`` beside a runtime library, else that of the ``installed`` apache-tvm-ffi."""
    found = util.find_spec("tvm_ffi") if installed else None
    folders = [runtime.parent, *([Path(found.origin).parent / "lib"] if found and found.origin else ())]
    for folder in folders:
        if (folder / FFI).is_file():
            return folder / FFI
    raise DeployError(f"{runtime} needs {FFI}, which is not beside it: copy it there, from apache-tvm-ffi")


class Runtime(Threads):
    """The C interface of one runtime library and of its ``libtvm_ffi.so``."""

    def __init__(self, path: Path):
        ffi, self._maps = ffi_library(path), {}  # type: Path, dict[str, Any]
        try:
            self._ffi = ctypes.CDLL(str(ffi), ctypes.RTLD_GLOBAL)
            self.library = ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
            here = ctypes.PyDLL(str(path))  # so short that giving up Python's lock would cost more
            self.set_threads, self.get_threads = here[SET_THREADS], here[GET_THREADS]
            version = (ctypes.c_uint32 * 3)()
            self._ffi.TVMFFIGetVersion(version)
            self._call = self._ffi.TVMFFIFunctionCall
        except (OSError, AttributeError) as error:
            raise DeployError(f"{path} is no TVM runtime for this CPU: {error}") from None
        if (found := tuple(version[:2])) != INTERFACE:
            raise DeployError(
                f"{ffi} is version {'.'.join(map(str, version))}; this release knows "
                f"{'.'.join(map(str, INTERFACE))}: pip install 'apache-tvm-ffi<0.{found[1]}'"
            )
        self._load_extra(path.with_name(EXTRA))

    def _load_extra(self, path: Path) -> None:
        """Load `EXTRA`, if it is there and what it brings is not: it is there once in a process."""
        if found := self._global(SORT):
            self.free([found])
        elif path.is_file():
            try:
                ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
            except OSError as error:
                raise DeployError(f"{path} cannot be loaded: {error}") from None

    def check(self, status: int) -> None:
        """DeployError with what TVM says, unless the status is 0."""
        if status:
            error = ctypes.c_void_p()
            self._ffi.TVMFFIErrorMoveFromRaised(ctypes.byref(error))
            texts = ctypes.cast((error.value or 0) + HEAD, ctypes.POINTER(_Bytes))  # kind, message
            said = ctypes.string_at(texts[1].data, texts[1].size).decode(errors="replace")
            self.free([error.value or 0])
            lines = [line.strip() for line in said.splitlines() if line.strip()]
            raise DeployError(f"TVM's runtime: {lines[0] if lines else 'it does not say why'}")

    def free(self, handles: Sequence[int]) -> None:
        """Forget objects that `call` or `tensor` gave."""
        for handle in handles:
            self._ffi.TVMFFIObjectDecRef(ctypes.c_void_p(handle))

    def named(self, name: str) -> int:
        """The handle of a global function."""
        found = self._global(name)
        if not found:
            raise DeployError(f"TVM's runtime has no function {name}: it is of another version")
        return found

    def _global(self, name: str) -> int:
        """The handle of a global function, 0 if there is none."""
        data, handle = ctypes.create_string_buffer(name.encode()), ctypes.c_void_p()
        text = _Bytes(ctypes.addressof(data), len(name.encode()))
        self.check(self._ffi.TVMFFIFunctionGetGlobal(ctypes.byref(text), ctypes.byref(handle)))
        return handle.value or 0

    def method(self, module: int, name: str) -> int:
        """The handle of a module's function."""
        get = self.named("ffi.ModuleGetFunction")
        try:
            found = self.call(get, (OBJECT, module), name, True)
        finally:
            self.free([get])
        if found.kind < OBJECT:
            raise DeployError(
                f"there is no function {name}: not a network compiled for the virtual machine"
            )
        return found.handle

    def call(self, function: int, *arguments) -> Value:
        """Call a function; arguments: bool, int, str, or (kind, handle). What it returns is to be freed."""
        values, result = (Value * len(arguments))(), Value()
        for value, argument in zip(values, arguments, strict=True):
            if isinstance(argument, bool):
                value.kind, value.integer = BOOL, argument
            elif isinstance(argument, int):
                value.kind, value.integer = INT, argument
            elif isinstance(argument, str):
                value.kind, value.text = TEXT, argument.encode()
            else:
                _, value.handle = argument
                value.kind = self.kind(value.handle)
        self.check(self._call(ctypes.c_void_p(function), values, len(values), ctypes.byref(result)))
        return result

    @staticmethod
    def kind(handle: int) -> int:
        """The type index of an object, which is in its head."""
        return ctypes.c_int32.from_address(handle + 8).value

    def ask(self, name: str, *arguments) -> Value:
        """`call` of a global function."""
        function = self.named(name)
        try:
            return self.call(function, *arguments)
        finally:
            self.free([function])

    def tensor(self, view: np.ndarray) -> tuple[int, object]:
        """(a tensor of an array's own memory, what must live as long)."""
        managed, handle = _Managed(dlpack.of(view), None, None), ctypes.c_void_p()
        make = self._ffi.TVMFFITensorFromDLPack
        self.check(make(ctypes.byref(managed), ALIGNMENT, 1, ctypes.byref(handle)))
        return handle.value or 0, (managed, view)

    def arrays(self, value: Value) -> list[np.ndarray]:
        """The memory of a tensor, or of an array of them."""
        if value.kind == TENSOR:
            return [dlpack.array(value.handle + HEAD)]
        size, item = self.named("ffi.ArraySize"), self.named("ffi.ArrayGetItem")
        try:
            whole = ARRAY, value.handle
            tensors = [self.call(item, whole, i).handle for i in range(self.call(size, whole).integer)]
            found = [dlpack.array(handle + HEAD) for handle in tensors]
            self.free(tensors)  # the array still has them
            return found
        finally:
            self.free([size, item])

    def configure(self, threads: int, cpus: Sequence[int]) -> None:
        with making:
            names = self.ask("ffi.Array", *map(str, cpus)).handle
            self.ask("runtime.config_threadpool", SHARE_CPUS, threads, (ARRAY, names))
            self.free([names])

    def mapped(self, file: Path, chosen: package.Chosen) -> tuple[int, Any]:
        """(size, memory) of the weights of an artefact; those of several input shapes are mapped once."""
        files = chosen.variant.files if chosen.variant is not None else {}
        key = files["parameters"].sha256 if files else str(file)
        if key not in self._maps:
            with open(file, "rb") as opened:
                size = os.fstat(opened.fileno()).st_size
                self._maps[key] = mmap.mmap(opened.fileno(), size, access=mmap.ACCESS_READ) if size else b""
        return len(self._maps[key]), self._maps[key]

    def open(self, chosen: package.Chosen) -> Network:
        """The network of an artefact. Raises DeployError."""
        return Network(self, chosen)


class Network:
    """A network as the virtual machine runs it. ``context`` makes one more machine, of the same weights;
    ``close`` frees what they share."""

    def __init__(self, runtime: Runtime, chosen: package.Chosen):
        if chosen.variant is None or not chosen.variant.inputs:
            raise DeployError(
                f"{chosen.path} does not say what its inputs are: Built.export and Built.export_library "
                "write it"
            )
        self._runtime, self.inputs = runtime, chosen.variant.inputs
        self._weights: list[int] = []
        self._kept: list[object] = []  # memory that they lie in
        if chosen.archive:
            with tempfile.TemporaryDirectory() as folder:
                chosen.lay_out(Path(folder))
                self._module = self._load(Path(folder) / package.FILES["code"])
                graph, parameters = (Path(folder) / package.FILES[use] for use in ("graph", "parameters"))
                self._map(chosen, graph, parameters)
        else:
            with quiet():
                self._module = self._load(chosen.path)
        self.close = weakref.finalize(self, runtime.free, [*self._weights, self._module])
        self.close.atexit = False  # the process frees it; a thread may still run it

    def _load(self, path: Path) -> int:
        return self._runtime.ask("ffi.ModuleLoadFromFile", str(path)).handle

    def _map(self, chosen: package.Chosen, graph: Path, parameters: Path) -> None:
        """The weights of a package, which its graph lists."""
        try:
            rows = weights(graph.read_bytes())
        except (ValueError, KeyError, TypeError) as error:
            raise DeployError(f"{chosen.path} is damaged: its {graph.name}: {error}") from None
        size, memory = self._runtime.mapped(parameters, chosen)
        for offset, shape, dtype in rows:
            if offset + prod(shape) * dtype.itemsize > size:
                raise DeployError(f"{chosen.path} is damaged: its {parameters.name} has only {size} bytes")
            view = np.frombuffer(memory, dtype, prod(shape), offset).reshape(shape)
            handle, kept = self._runtime.tensor(view)
            self._weights.append(handle)
            self._kept.append(kept)

    def context(self, threads: tuple[int, bool]) -> Context:
        """One more context; threads: (how many each call takes, whether they were asked for)."""
        runtime = self._runtime
        make = runtime.method(self._module, "vm_load_executable")
        machine = runtime.call(make).handle
        begin = runtime.method(machine, "vm_initialization")
        runtime.call(begin, dlpack.CPU, 0, POOLED, dlpack.CPU, 0, POOLED)
        runtime.free([make, begin])
        return Context(self, runtime, machine, self._weights, threads)


def weights(graph: bytes) -> list[tuple[int, tuple[int, ...], np.dtype]]:
    """(offset, shape, element type) of each weight that the graph of a package lists."""
    return [
        (int(offset), tuple(map(int, shape)), np.dtype(dtype))
        for offset, shape, dtype in json.loads(graph)["weights"]
    ]


class Context:
    """One virtual machine: its inputs are memory of ours, its outputs those of the last call."""

    kept = False

    def __init__(
        self, network: Network, runtime: Runtime, machine: int, weights, threads: tuple[int, bool]
    ):
        self.inputs = {name: aligned(taken.shape, taken.dtype) for name, taken in network.inputs.items()}
        tensors = [runtime.tensor(view) for view in self.inputs.values()]
        self._kept = tensors, network  # whose weights are the arguments behind the inputs
        self.run_already = False
        self._runtime, self._threads = runtime, threads
        handles = [*(handle for handle, _ in tensors), *weights]
        arguments = (Value * len(handles))(*(Value(TENSOR, 0, (0,)) for _ in handles))
        for value, handle in zip(arguments, handles, strict=True):
            value.handle = handle
        self._result = Value()
        function = runtime.method(machine, "main")
        self._run = functools.partial(
            runtime._call, ctypes.c_void_p(function), arguments, len(handles), ctypes.byref(self._result)
        )
        owned = [handle for handle, _ in tensors] + [function, machine]
        self.close = weakref.finalize(self, _free, runtime, self._result, owned)
        self.close.atexit = False

    def run(self) -> None:
        self._runtime.run(self._step, *self._threads)

    def _step(self) -> None:
        _forget(self._runtime, self._result)
        self._runtime.check(self._run())

    @property
    def outputs(self) -> list[np.ndarray]:
        """Views of the last call's."""
        return self._runtime.arrays(self._result)


def _forget(runtime: Runtime, result: Value) -> None:
    if result.kind >= OBJECT:
        runtime.free([result.handle])
    result.kind, result.integer = 0, 0


def _free(runtime: Runtime, result: Value, handles: Sequence[int]) -> None:
    _forget(runtime, result)
    runtime.free(handles)


def aligned(shape: Sequence[int], dtype) -> np.ndarray:
    """An array of zeros that begins where the code takes every array to begin."""
    dtype = np.dtype(dtype)
    size = prod(shape) * dtype.itemsize
    space = np.zeros(size + ALIGNMENT, np.uint8)
    start = -space.ctypes.data % ALIGNMENT
    return space[start : start + size].view(dtype).reshape(shape)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the lines about scopes that TVM writes to the standard error, one for each constant, where a
    library is written or loaded."""
    if sys.stderr is not None:
        sys.stderr.flush()
    before = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(before, 2)
        os.close(before)
