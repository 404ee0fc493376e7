"""What this machine is, which kernels it can run, and whether int8 by ``pmaddubsw`` is right on it."""

from __future__ import annotations

import numpy as np

from topi_ext import isa, reference
from topi_ext.relay import op as relay_op

from ..host import describe_rows
from .build import Executor, build, host_target
from .framework import no_tophub, relay, tvm
from .profile import describe_host


def examine() -> dict:
    """Facts of this machine, as plain values for JSON; see `Host.examine`."""
    return {
        "host": describe_host(),
        "target": host_target(),
        "isa_of_target": relay_op.target_isa(tvm.target.Target(host_target())),
        "linker": tvm.contrib.cc.get_cc(),
        "rows": describe_rows(),
        "saturation": saturation(),
    }


def saturation(channels: int = 64, size: int = 8) -> dict:
    """How many outputs of a 3x3 convolution, uint8 x int8 over the full range, are wrong on this CPU.

    TVM's own ``nn.conv2d`` and ours, both built for AVX2, against numpy: the shares ``tvm_int8_wrong`` and
    ``ours_wrong``, ``tvm_int8_largest_error`` and ``rms_output``. TVM's multiplies by ``pmaddubsw``, whose
    pair sums saturate at 32767. {} where the CPU has no AVX2.
    """
    if not isa.host_has("avx2"):
        return {}
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (1, size, size, channels)).astype(np.uint8)
    weight = np.clip(np.rint(rng.standard_normal((3, 3, channels, channels)) * 42), -127, 127)
    weight = weight.astype(np.int8)
    exact = reference.conv2d(data, weight, strides=(1, 1), padding=(1, 1, 1, 1))
    target = isa.ISAS["avx2"].target

    nchw = np.ascontiguousarray(data.transpose(0, 3, 1, 2))
    x = relay.var("x", shape=nchw.shape, dtype="uint8")
    kernel = relay.const(np.ascontiguousarray(weight.transpose(3, 2, 0, 1)))
    settings = dict(padding=(1, 1), channels=channels, kernel_size=(3, 3))
    stock = tvm.IRModule.from_expr(
        relay.Function([x], relay.nn.conv2d(x, kernel, out_dtype="int32", **settings))
    )
    with no_tophub(), tvm.transform.PassContext(opt_level=3):
        theirs = Executor(relay.build(stock, target))({"x": nchw})[0].transpose(0, 2, 3, 1)

    x = relay.var("x", shape=data.shape, dtype="uint8")
    zero, one = relay.const(0, "int32"), relay.const(1.0, "float32")
    y = relay.qnn.op.conv2d(
        x, relay.const(weight), zero, zero, one, one, data_layout="NHWC", kernel_layout="HWIO", **settings
    )
    ours = tvm.IRModule.from_expr(relay.Function([x], relay.qnn.op.dequantize(y, one, zero)))
    mine = build(ours, target)({"x": data})[0]
    error = np.abs(theirs.astype(np.int64) - exact)
    return {
        "layer": f"3x3, {channels} to {channels} channels, {size}x{size}, uint8 x int8, full range",
        "mcpu": isa.ISAS["avx2"].mcpu,
        "tvm_int8_wrong": float((error > 0).mean()),
        "tvm_int8_largest_error": int(error.max()),
        "rms_output": float(np.sqrt((exact.astype(np.float64) ** 2).mean())),
        "ours_wrong": float((mine != exact.astype(np.float32)).mean()),
    }
