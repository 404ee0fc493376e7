"""Tensors as both runtimes have them: DLPack's."""

from __future__ import annotations

import ctypes
from math import prod

import numpy as np

from ..errors import DeployError

CPU = 1  # DLDeviceType
#: DLDataType's codes as numpy's kinds
KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}


class Device(ctypes.Structure):
    """DLDevice."""

    _fields_ = [("kind", ctypes.c_int32), ("index", ctypes.c_int32)]


class Type(ctypes.Structure):
    """DLDataType."""

    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", Device),
        ("ndim", ctypes.c_int32),
        ("dtype", Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


def array(address: int) -> np.ndarray:
    """The memory of the `Tensor` at an address, which is the tensor's own. Raises DeployError."""
    tensor = ctypes.cast(address, ctypes.POINTER(Tensor)).contents
    kind, bits = KINDS.get(tensor.dtype.code), tensor.dtype.bits
    if kind is None:
        raise DeployError(
            f"a tensor has elements that numpy does not know (DLPack's type {tensor.dtype.code})"
        )
    dtype = np.dtype(bool if kind == "b" or (kind, bits) == ("u", 1) else f"{kind}{bits // 8}")
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    memory = (ctypes.c_char * (prod(shape) * dtype.itemsize)).from_address(
        (tensor.data or 0) + tensor.byte_offset
    )
    return np.ndarray(shape, dtype, memory)


def of(view: np.ndarray) -> Tensor:
    """A `Tensor` of a contiguous array's memory, which must live as long."""
    code = {kind: code for code, kind in KINDS.items()}[view.dtype.kind]
    shape = (ctypes.c_int64 * view.ndim)(*view.shape)
    kind = Type(code, 8 * view.dtype.itemsize, 1)
    return Tensor(view.ctypes.data, Device(CPU, 0), view.ndim, kind, shape, None, 0)
