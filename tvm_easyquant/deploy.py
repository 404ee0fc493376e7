"""Run a compiled network with TVM's runtime library and numpy alone: no compiler, no TVM package.

What ``export_library`` (``net.so``) or ``tvmc-easyquant compile`` (``net.tar``) made is loaded through the
C interface of ``libtvm_runtime.so``. A process needs some 30 MiB beside the network; importing the ``tvm``
package takes some 50 more.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
import tempfile
import weakref
from collections.abc import Mapping
from importlib import util
from pathlib import Path

import numpy as np

from . import package
from .errors import DeployError

NAME = "libtvm_runtime.so"
CPU = 1  # DLDeviceType
#: numpy's kinds as DLDataType's codes
CODES = {"i": 0, "u": 1, "f": 2}
# type codes of TVM's C interface (c_runtime_api.h)
INT, DEVICE, TENSOR, MODULE, TEXT, BYTES, ARRAY = 0, 6, 7, 9, 11, 12, 13


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
    found = util.find_spec("tvm")
    path = Path(found.origin).parent / NAME if found and found.origin else Path(NAME)
    if not path.exists():
        raise DeployError(f"no {NAME} beside an installed TVM: name the file as runtime=")
    return path


class _Runtime:
    """The C interface of one runtime library."""

    def __init__(self, path: Path):
        try:
            self.library = ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
            self.library.TVMGetLastError.restype = ctypes.c_char_p
        except (OSError, AttributeError) as error:
            raise DeployError(f"{path} is no TVM runtime for this CPU: {error}") from None

    def check(self, status: int) -> None:
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
        return handle.value

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
        return result.handle if code.value in (MODULE, ARRAY) else result.integer

    def load(self, path: Path) -> int:
        handle = ctypes.c_void_p()
        self.check(self.library.TVMModLoadFromFile(str(path).encode(), b"so", ctypes.byref(handle)))
        return handle.value or 0

    def array(self, handle: int) -> tuple[tuple[int, ...], np.dtype]:
        """(shape, element type) of a tensor."""
        tensor = ctypes.cast(handle, ctypes.POINTER(_Tensor)).contents
        kind = {code: kind for kind, code in CODES.items()}[tensor.dtype.code]
        shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
        return shape, np.dtype(f"{kind}{tensor.dtype.bits // 8}")

    def free(self, handle: int) -> None:
        self.library.TVMArrayFree(ctypes.c_void_p(handle))


class Program:
    """A compiled network with its inputs and outputs by name.

    ``program(feed)`` takes {input: array of its shape and type} and returns the outputs as a list, as
    `tvm_easyquant.Executor` does; ``set_inputs``, ``run`` and ``outputs`` are its three steps. ``inputs``
    is {name: (shape, element type)}, ``layouts`` {name: NHWC or NCHW} of an image of bytes.

    path: ``net.so`` of ``export_library`` or ``net.tar`` of ``tvmc-easyquant compile``; runtime: a
    ``libtvm_runtime.so`` of the TVM that compiled it, by default that of the installed one; isa: the row of
    `topi_ext.isa` whose variant to take (``variant`` says which was taken; see `package.choose`). As many
    threads run as the environment's TVM_NUM_THREADS says. Raises DeployError.
    """

    def __init__(self, path, runtime=None, *, isa: str | None = None):
        path = Path(path).resolve()  # what has no folder, the linker looks for elsewhere
        if not path.exists():
            raise DeployError(f"{path} does not exist")
        chosen = package.choose(path, isa)  # before any code of it runs
        self.variant = chosen.name
        taken = chosen.variant.inputs if chosen.variant else {}
        self.layouts = {name: made.layout for name, made in taken.items() if made.layout}
        if chosen.note:
            package.LOG.warning(chosen.note)
        self._tvm = _Runtime(Path(runtime) if runtime is not None else find_runtime())
        device, modules = _Device(CPU, 0), []
        if chosen.archive:
            with tempfile.TemporaryDirectory() as folder:
                graph, parameters = chosen.unpack(Path(folder))
                modules.append(self._tvm.load(Path(folder) / "mod.so"))
            create = self._tvm.function(None, "tvm.graph_executor.create")
            modules.append(self._tvm.call(create, graph, (MODULE, modules[0]), CPU, 0))
            self._tvm.call(self._tvm.function(modules[-1], "load_params"), parameters)
        else:
            modules.append(self._tvm.load(path))
            graph = self._tvm.call(self._tvm.function(modules[0], "get_graph_json"))
            modules.append(self._tvm.call(self._tvm.function(modules[0], "default"), device))
        self._set, self._run, self._get, self._count, self._input = (
            self._tvm.function(modules[-1], name)
            for name in ("set_input", "run", "get_output", "get_num_outputs", "get_input")
        )
        library = self._tvm.library
        for module in reversed(modules):
            weakref.finalize(self, library.TVMModFree, ctypes.c_void_p(module))
        self.inputs = {}
        nodes = json.loads(graph)
        for name in (nodes["nodes"][i]["name"] for i in nodes["arg_nodes"]):
            if not re.fullmatch(r"p\d+", name):  # TVM's names for bound constants
                handle = self._tvm.call(self._input, name)
                self.inputs[name] = self._tvm.array(handle)
                self._tvm.free(handle)

    def set_inputs(self, feed: Mapping[str, np.ndarray]) -> None:
        """Copy every input in; DeployError names one that is missing, unknown, of another shape or type."""
        unknown = sorted(set(feed) - set(self.inputs))
        if unknown:
            raise DeployError(f"there is no input {unknown[0]}; the inputs are {sorted(self.inputs)}")
        for name, (shape, dtype) in self.inputs.items():
            if name not in feed:
                raise DeployError(f"input {name} is missing")
            array = np.ascontiguousarray(feed[name])
            if array.shape != shape or array.dtype != dtype:
                taken = package.Input(shape, str(dtype), self.layouts.get(name, ""))
                found = f"{array.dtype} {array.shape}"
                raise DeployError(f"input {name} is {found}, the network takes {taken}")
            extents = (ctypes.c_int64 * array.ndim)(*shape)
            kind = _Type(CODES[dtype.kind], 8 * dtype.itemsize, 1)
            tensor = _Tensor(array.ctypes.data, _Device(CPU, 0), array.ndim, kind, extents, None, 0)
            self._tvm.call(self._set, name, tensor)

    def run(self) -> None:
        """Run the network on the inputs that were set."""
        self._tvm.call(self._run)

    def outputs(self) -> list[np.ndarray]:
        """Copies of the outputs of the last run."""
        found = []
        for i in range(self._tvm.call(self._count)):
            handle = self._tvm.call(self._get, i)
            array = np.empty(*self._tvm.array(handle))
            size = ctypes.c_size_t(array.nbytes)
            pointer = ctypes.c_void_p(array.ctypes.data)
            self._tvm.check(self._tvm.library.TVMArrayCopyToBytes(ctypes.c_void_p(handle), pointer, size))
            self._tvm.free(handle)
            found.append(array)
        return found

    def __call__(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """`set_inputs`, `run` and `outputs`."""
        self.set_inputs(feed)
        self.run()
        return self.outputs()
