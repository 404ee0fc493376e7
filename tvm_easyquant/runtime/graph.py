"""Networks that TVM 0.19 compiled: its graph executor by the C interface of ``libtvm_runtime.so``."""

from __future__ import annotations

import ctypes
import functools
import json
import re
import struct
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

from .. import package
from ..errors import DeployError
from . import dlpack
from .pool import GET_THREADS, SET_THREADS, SHARE_CPUS, Threads, making

# type codes of TVM's C interface (c_runtime_api.h)
INT, DEVICE, TENSOR, OBJECT, MODULE, TEXT, BYTES, ARRAY = 0, 6, 7, 8, 9, 11, 12, 13
LIST_MAGIC = 0xF7E58D4F05049CB7  # of a file of parameters


class _Bytes(ctypes.Structure):
    _fields_ = [("data", ctypes.c_char_p), ("size", ctypes.c_size_t)]


class _Value(ctypes.Union):
    _fields_ = [
        ("integer", ctypes.c_int64),
        ("handle", ctypes.c_void_p),
        ("text", ctypes.c_char_p),
        ("device", dlpack.Device),
    ]


class Runtime(Threads):
    """The C interface of one runtime library."""

    def __init__(self, path: Path):
        try:
            self.library = ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
            self.library.TVMGetLastError.restype = ctypes.c_char_p
            here = ctypes.PyDLL(str(path))  # so short that giving up Python's lock would cost more
            self.set_threads, self.get_threads = here[SET_THREADS], here[GET_THREADS]
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
        """Call a function; arguments: int, str, bytes, of `dlpack`, or (type code, handle)."""
        values, codes = (_Value * len(arguments))(), (ctypes.c_int * len(arguments))()
        for value, argument, i in zip(values, arguments, range(len(arguments)), strict=True):
            if isinstance(argument, int):
                value.integer, codes[i] = argument, INT
            elif isinstance(argument, str):
                value.text, codes[i] = argument.encode(), TEXT
            elif isinstance(argument, bytes):
                holder = _Bytes(argument, len(argument))
                value.handle, codes[i] = ctypes.addressof(holder), BYTES
            elif isinstance(argument, dlpack.Device):
                value.device, codes[i] = argument, DEVICE
            elif isinstance(argument, dlpack.Tensor):
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

    def configure(self, threads: int, cpus: Sequence[int]) -> None:
        with making:
            texts = [(OBJECT, self.call(self.function(None, "runtime.String"), str(cpu))) for cpu in cpus]
            names = self.call(self.function(None, "runtime.Array"), *texts)
            configure = self.function(None, "runtime.config_threadpool")
            self.call(configure, SHARE_CPUS, threads, (OBJECT, names))
            for handle in (names, *(text for _, text in texts)):
                self.library.TVMObjectFree(ctypes.c_void_p(handle))
            self.forget()

    def open(self, chosen: package.Chosen) -> Network:
        """The network of an artefact; its record's inputs are not asked. Raises DeployError."""
        return Network(self, chosen)


class Network:
    """A network as the graph executor runs it. ``context`` makes one more executor, which shares the
    weights of the first; ``close`` frees what they share, and the first executor with it."""

    def __init__(self, runtime: Runtime, chosen: package.Chosen):
        self._runtime, modules = runtime, []
        if chosen.archive:
            with tempfile.TemporaryDirectory() as folder:
                self._graph, parameters = chosen.unpack(Path(folder))
                modules.append(runtime.load(Path(folder) / package.FILES["code"]))
            create = runtime.function(None, "tvm.graph_executor.create")
            modules.append(runtime.call(create, self._graph, (MODULE, modules[0]), dlpack.CPU, 0))
            runtime.call(runtime.function(modules[-1], "load_params"), parameters)
        else:
            modules.append(runtime.load(chosen.path))
            self._graph = runtime.call(runtime.function(modules[0], "get_graph_json"))
            device = dlpack.Device(dlpack.CPU, 0)
            modules.append(runtime.call(runtime.function(modules[0], "default"), device))
        nodes = json.loads(self._graph)
        arguments = [nodes["nodes"][i]["name"] for i in nodes["arg_nodes"]]
        self._constants = [name for name in arguments if re.fullmatch(r"p\d+", name)]  # as TVM calls them
        self._names = [name for name in arguments if name not in self._constants]
        self._library, self._first = modules
        self._fresh = True
        runtime.forget()
        self.close = weakref.finalize(self, _free, runtime.library, (), (), modules)
        self.close.atexit = False

    def context(self, threads: tuple[int, bool]) -> Context:
        """One more context; threads: (how many each call takes, whether they were asked for)."""
        runtime = self._runtime
        if self._fresh:  # the one with the weights, which outlives its context
            self._fresh, module = False, self._first
            runtime.library.TVMObjectRetain(ctypes.c_void_p(module))
        else:
            create = runtime.function(None, "tvm.graph_executor.create")
            module = runtime.call(create, self._graph, (MODULE, self._library), dlpack.CPU, 0)
            if self._constants:
                share = runtime.function(module, "share_params")
                runtime.call(share, (MODULE, self._first), listed(self._constants))
        made = Context(runtime, module, self._names, threads)
        runtime.forget()
        return made


class Context:
    """One graph executor: its inputs and outputs are its own memory, seen as arrays."""

    kept = False

    def __init__(self, runtime: Runtime, module: int, names: Sequence[str], threads: tuple[int, bool]):
        put, count = (runtime.function(module, name) for name in ("get_input", "get_num_outputs"))
        get = runtime.function(module, "get_output")
        handles = [runtime.call(put, name) for name in names]
        self.inputs = {name: dlpack.array(handle) for name, handle in zip(names, handles, strict=True)}
        found = [runtime.call(get, i) for i in range(runtime.call(count))]
        self.outputs, self.run_already = [dlpack.array(handle) for handle in found], False
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


def listed(names: Sequence[str]) -> bytes:
    """Names as TVM's ``share_params`` reads them: the head of a file of parameters."""
    texts = [name.encode() for name in names]
    head = struct.pack("<QQQ", LIST_MAGIC, 0, len(texts))
    return head + b"".join(struct.pack("<Q", len(t)) + t for t in texts) + struct.pack("<Q", len(texts))
