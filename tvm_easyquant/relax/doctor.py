"""What this machine is, which kernels it can run, and whether our int8 is right on it."""

from __future__ import annotations

import numpy as np

from topi_ext import isa, reference
from topi_ext.problem import Convolution, ConvSpec
from topi_ext.relax.lower import call_layer, target_isa

from ..host import describe_machine, describe_rows
from .build import build, cpu_target, host_target
from .framework import ffi_version, relax, tvm


def describe_host() -> dict:
    """`host.describe_machine`, and the versions of TVM and LLVM."""
    from tvm.target.codegen import llvm_version_major

    return {
        **describe_machine(), "tvm": str(tvm.__version__), "llvm": int(llvm_version_major()),
        "ffi": ffi_version(),
    }  # fmt: skip


def examine() -> dict:
    """Facts of this machine, as plain values for JSON; see `Host.examine`."""
    from tvm.support import cc

    return {
        "host": describe_host(),
        "target": host_target(),
        "isa_of_target": target_isa(cpu_target()),
        "linker": cc.get_cc(),
        "rows": describe_rows(),
        "saturation": saturation(),
    }


def saturation(channels: int = 64, size: int = 8) -> dict:
    """How many outputs of a 3x3 convolution, uint8 x int8 over the full range, ours has wrong on this CPU.

    The share ``ours_wrong``, and ``rms_output``. This TVM has no int8 convolution for CPUs to compare with.
    {} where the CPU has no AVX2.
    """
    if not isa.host_has("avx2"):
        return {}
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (1, size, size, channels)).astype(np.uint8)
    weight = np.clip(np.rint(rng.standard_normal((3, 3, channels, channels)) * 42), -127, 127)
    weight = weight.astype(np.int8)
    exact = reference.conv2d(data, weight, strides=(1, 1), padding=(1, 1, 1, 1))
    spec = ConvSpec(1, size, size, channels, channels, (3, 3), padding=(1, 1, 1, 1), epilogue="dequantize")
    layer = Convolution(spec, weight, np.zeros(channels, np.int32), np.ones(channels, np.float32))
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(data.shape, "uint8"))
    with builder.function("main", [x]):
        with builder.dataflow():
            made = builder.emit_output(builder.emit(call_layer(builder, "layer", layer, x)))
        builder.emit_func_output(made)
    (mine,) = build(builder.get(), isa.ISAS["avx2"].target)({"x": data})
    return {
        "layer": f"3x3, {channels} to {channels} channels, {size}x{size}, uint8 x int8, full range",
        "mcpu": isa.ISAS["avx2"].mcpu,
        "rms_output": float(np.sqrt((exact.astype(np.float64) ** 2).mean())),
        "ours_wrong": float((mine != exact.astype(np.float32)).mean()),
    }
