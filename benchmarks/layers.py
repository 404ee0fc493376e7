"""Our convolution kernels, layer by layer, against TVM's own and ONNX Runtime's, in one interleaved run.

    python benchmarks/layers.py --json FILE [--isa avx2] [--threads 1] [--peers tvm onnxruntime] [--quick]

One thread, pinned to one CPU, at real-time priority where that is allowed; everybody capped at the same
instruction set. Before anything is timed our kernel must equal the norm; a wrong kernel has no speed.
Weights are normally distributed, 7 bit by channel, as a network's are: what depth the int16 sums may have
depends on them. ``int7`` is the kernel that the planner takes; its best direct kernel is timed beside it.

TVM's int8 is ``nn.conv2d`` uint8 x int8 in NCHW, its fastest int8 path on x86 and the one that saturates:
the share of wrong outputs on full-range 8-bit weights is stored with it. TVM's fp32 is its default
schedule, untuned. ONNX Runtime's int8 is QLinearConv, NHWC (its own ``channels_last``) or NCHW, whichever
is faster. ``over_ours`` is the median over rounds of the ratio of a round; ``x_fp32_peak`` the speed over
the float32 multiply-add peak of this core in AVX2, measured in the same run (`peak.c`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import tempfile
from pathlib import Path

os.environ["TVM_NUM_THREADS"] = "1"
os.environ.setdefault("TOPHUB_LOCATION", "NONE")

import sys

import machine
import numpy as np
import tvm
from peers import CLASSES, Runner, capped, check_classes, target_of, urgent
from tvm import relay

from topi_ext import manifest, planner, reference
from topi_ext.conv2d import ConvSpec, Refusal, fold_zero_point
from topi_ext.relay import op as relay_op
from tvm_easyquant.files import write_text
from tvm_easyquant.relay.build import Executor
from tvm_easyquant.relay.framework import NO_CSE, no_tophub

#: name -> (height and width, in channels, out channels, kernel, stride): ResNet-50's and MobileNet's layers
LAYERS = {
    "3x3 64 @56": (56, 64, 64, 3, 1),
    "3x3 128 @28": (28, 128, 128, 3, 1),
    "3x3 256 @14": (14, 256, 256, 3, 1),
    "3x3 512 @7": (7, 512, 512, 3, 1),
    "3x3 s2 128 @56": (56, 128, 128, 3, 2),
    "1x1 64-256 @56": (56, 64, 256, 1, 1),
    "1x1 256-64 @56": (56, 256, 64, 1, 1),
    "1x1 256-512 @28": (28, 256, 512, 1, 1),
    "1x1 512-128 @28": (28, 512, 128, 1, 1),
    "1x1 1024-256 @14": (14, 1024, 256, 1, 1),
    "1x1 256-1024 @14": (14, 256, 1024, 1, 1),
    "1x1 2048-512 @7": (7, 2048, 512, 1, 1),
    "1x1 512-2048 @7": (7, 512, 2048, 1, 1),
    "dw 3x3 32 @112": (112, 32, 0, 3, 1),
    "dw 3x3 128 @56": (56, 128, 0, 3, 1),
    "dw 3x3 s2 64 @112": (112, 64, 0, 3, 2),
    "dw 3x3 512 @14": (14, 512, 0, 3, 1),
}


def spec_of(name: str) -> ConvSpec:
    """A layer with data up to 127; no output channels means depthwise."""
    size, c, k, r, stride = LAYERS[name]
    return ConvSpec(1, size, size, c, k or c, (r, r), (stride, stride), (r // 2,) * 4,
                    groups=1 if k else c, data_max=127, hi=127)  # fmt: skip


def compiled(expression, variables, target):
    module = tvm.IRModule.from_expr(relay.Function(variables, expression))
    with no_tophub(), tvm.transform.PassContext(opt_level=3, config=NO_CSE):
        return Executor(relay.build(module, target))


def seven_bits(spec, rng):
    """int8 weights: normally distributed, the largest of each channel 63."""
    weight = rng.standard_normal(spec.weight_shape)
    return np.rint(63 * weight / np.abs(weight).max(axis=(0, 1, 2))).astype(np.int8)


def our_kernel(row, spec, data, weight, target, rng):
    """The executor of a kernel; raises if it differs from the norm."""
    bias = rng.integers(-1000, 1000, spec.out_channels).astype(np.int32)
    factor = np.full(spec.out_channels, 3e-4, np.float32)
    x = relay.var("x", shape=data.shape, dtype="uint8")
    folded = fold_zero_point(bias, weight, spec.zero_point)
    constants = [relay.const(c) for c in row.pack(spec, weight, folded, factor)]
    run = compiled(relay_op.conv2d(x, spec, row, constants), [x], target)
    acc = reference.conv2d(data, weight, strides=spec.strides, padding=spec.padding, groups=spec.groups)
    expected = reference.requantize(acc + bias, factor, 0, spec.lo, spec.hi)
    if not np.array_equal(run({"x": data})[0], expected):
        raise SystemExit(f"error: {row.name} differs from the norm")
    return run


def our_kernels(spec, weight, isa_name):
    """{runner: row}: what the planner takes, and the best direct kernel if that is another."""
    row_isa = relay_op.target_isa(tvm.target.Target(target_of(isa_name)))
    plan = planner.choose(spec, weight, np.zeros(spec.out_channels, np.int32), row_isa)
    found = {"tvm_easyquant-int7": plan.kernel}
    if plan.kernel.name.startswith("winograd"):
        rows = (manifest.kernel(name) for name, _ in plan.slower if name.startswith("direct"))
        legal = (row for row in rows if not isinstance(row.proves(spec, weight), Refusal))
        found["tvm_easyquant-int7-direct"] = next(legal)
    return found


def tvm_conv(spec, data, weight, dtypes, target):
    """TVM's own convolution, NCHW."""
    data_type, weight_type, out_type = dtypes
    nchw = np.ascontiguousarray(data.transpose(0, 3, 1, 2)).astype(data_type)
    kernel = relay.const(np.ascontiguousarray(weight.transpose(3, 2, 0, 1).astype(weight_type)))
    x = relay.var("x", shape=nchw.shape, dtype=data_type)
    y = relay.nn.conv2d(
        x, kernel, strides=spec.strides, padding=spec.padding, channels=spec.out_channels,
        groups=spec.groups, kernel_size=spec.kernel, out_dtype=out_type,
    )  # fmt: skip
    run = compiled(y, [x], target)
    run({"x": nchw})
    return run


def wrong_share(spec, target, rng):
    """The share of wrong outputs of TVM's int8 on full-range data and 8-bit weights."""
    weight = rng.integers(-127, 128, spec.weight_shape).astype(np.int8)
    data = rng.integers(0, 256, (spec.batch, spec.height, spec.width, spec.in_channels)).astype(np.uint8)
    run = tvm_conv(spec, data, weight, ("uint8", "int8", "int32"), target)
    out = run({"x": np.ascontiguousarray(data.transpose(0, 3, 1, 2))})[0]
    exact = reference.conv2d(data, weight, strides=spec.strides, padding=spec.padding, groups=spec.groups)
    return float((out.transpose(0, 2, 3, 1) != exact).mean())


def onnx_layer(spec, weight, kind, folder):
    """(model file, input file) of one convolution for ONNX Runtime: fp32 with its ReLU, or uint8 in and out
    in the layout ``nchw`` or ``nhwc``."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    w = np.ascontiguousarray(weight.transpose(3, 2, 0, 1))
    data = (spec.batch, spec.in_channels, spec.height, spec.width)
    attributes = {"strides": spec.strides, "pads": spec.padding, "kernel_shape": spec.kernel,
                  "group": spec.groups}  # fmt: skip
    if kind == "fp32":
        constants = {"w": w.astype(np.float32) * 0.01, "b": np.zeros(spec.out_channels, np.float32)}
        nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c"], **attributes),
                 helper.make_node("Relu", ["c"], ["y"])]  # fmt: skip
        element, dtype = TensorProto.FLOAT, np.float32
    else:
        last = kind == "nhwc"
        data = (data[0], *data[2:], data[1]) if last else data
        scales = {"xs": np.float32(0.02), "xz": np.uint8(0), "ys": np.float32(0.05), "yz": np.uint8(0)}
        constants = {**scales, "w": w, "ws": np.full(spec.out_channels, 3e-3, np.float32),
                     "wz": np.zeros(spec.out_channels, np.int8),
                     "b": np.zeros(spec.out_channels, np.int32)}  # fmt: skip
        domain = {"domain": "com.microsoft", "channels_last": 1} if last else {}
        names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"]
        nodes = [helper.make_node("QLinearConv", names, ["y"], **attributes, **domain)]
        element, dtype = TensorProto.UINT8, np.uint8
    graph = helper.make_graph(
        nodes, "layer", [helper.make_tensor_value_info("x", element, data)],
        [helper.make_tensor_value_info("y", element, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
    model, inputs = folder / f"{kind}.onnx", folder / f"{kind}.npy"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), model)
    np.save(inputs, np.random.default_rng(0).integers(0, 128, data).astype(dtype))
    return model, inputs


class InProcess:
    """An executor that is timed as a `peers.Runner` is."""

    def __init__(self, executor, version):
        self.executor, self.version = executor, version

    def ask(self, number):
        return self.executor.milliseconds(repeat=1, number=int(number))[0]


def measure(name, isa_name, args, rng):
    spec, target = spec_of(name), target_of(isa_name)
    data = rng.integers(0, 128, (1, spec.height, spec.width, spec.in_channels)).astype(np.uint8)
    weight = seven_bits(spec, rng)
    kernels = our_kernels(spec, weight, isa_name)
    runners, wrong = {}, None
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as scratch:
        for key, row in kernels.items():
            runners[key] = InProcess(our_kernel(row, spec, data, weight, target, rng), tvm.__version__)
        if "tvm" in args.peers:
            wrong = wrong_share(spec, target, rng)
            for kind, dtypes in (("int8", ("uint8", "int8", "int32")), ("fp32", ("float32",) * 3)):
                run = tvm_conv(spec, data, weight, dtypes, target)
                runners[f"tvm-{kind}"] = InProcess(run, tvm.__version__)
        if "onnxruntime" in args.peers:
            env = capped(sys.executable, "onnxruntime", isa_name, args.scratch)
            for kind in ("fp32", "nchw", "nhwc"):
                model, inputs = onnx_layer(spec, weight, kind, Path(scratch))
                runner = Runner(
                    sys.executable, "onnxruntime", model, inputs, 1, os.sched_getaffinity(0), env
                )
                stack.callback(runner.stop)
                runners[f"onnxruntime-{kind}"] = runner
        number = {key: max(1, int(15 / max(float(r.ask(3)), 1e-3))) for key, r in runners.items()}
        times = {key: [] for key in runners}
        for i in range(5 if args.quick else 15):
            for key in list(runners)[:: 1 if i % 2 else -1]:
                times[key].append(float(runners[key].ask(number[key])))
    if "onnxruntime" in args.peers:  # the better layout stands for its int8
        kinds = [f"onnxruntime-{kind}" for kind in ("nchw", "nhwc")]
        best = min(kinds, key=lambda key: np.median(times[key]))
        runners["onnxruntime-int8"], times["onnxruntime-int8"] = runners[best], times[best]
        for key in kinds:
            del runners[key], times[key]
    ours = np.array(times["tvm_easyquant-int7"])
    rows = []
    for key, values in times.items():
        median = float(np.median(values))
        row = {
            "layer": name, "runner": key, "version": str(runners[key].version), "isa": isa_name,
            "threads": 1, "ms_median": round(median, 5), "ms_min": round(min(values), 5),
            "gmacs": round(spec.macs / median * 1e-6, 1), "macs": spec.macs,
            "x_fp32_peak": round(spec.macs / median * 1e-6 / args.peak, 3),
            "over_ours": round(float(np.median(np.array(values) / ours)), 3),
            "verified": "exact" if key in kernels else key != "tvm-int8",
        }  # fmt: skip
        if key in kernels:
            row["kernel"] = kernels[key].name
        if key == "tvm-int8":
            row["wrong_outputs"] = round(wrong, 4)
        rows.append(row)
    return rows


def fp32_peak(folder: Path) -> float:
    """GMAC/s of this core's float32 multiply-adds, 256 bit."""
    program = folder / "peak"
    source = Path(__file__).with_name("peak.c")
    subprocess.run(
        ["gcc", "-O3", "-funroll-all-loops", "-mavx2", "-mfma", source, "-o", program], check=True
    )
    return float(subprocess.run([*urgent(), program], capture_output=True, text=True, check=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", nargs="+", default=["avx2"], choices=CLASSES)
    parser.add_argument("--threads", type=int, default=1, choices=(1,), help="layers are timed on one")
    parser.add_argument(
        "--peers", nargs="*", default=["tvm", "onnxruntime"], choices=("tvm", "onnxruntime")
    )
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "easyquant_peers",
                        help="where capped copies of the peers' packages are kept")  # fmt: skip
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="three layers, few rounds")
    args = parser.parse_args()
    check_classes(args.isa)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if urgent():
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(10))
    relay_op.register()
    with tempfile.TemporaryDirectory() as scratch:
        args.peak = fp32_peak(Path(scratch))
    print(f"float32 multiply-add peak, AVX2: {args.peak:.1f} GMAC/s")
    facts, rows, rng = {**machine.describe(), "fp32_peak_gmacs": args.peak}, [], np.random.default_rng(0)
    for isa_name in args.isa:
        for name in list(LAYERS)[: 3 if args.quick else None]:
            mine = measure(name, isa_name, args, rng)
            rows += [{**row, "cpu": facts["cpu"]} for row in mine]
            for row in mine:
                wrong = f"{row['wrong_outputs']:.1%} wrong" if "wrong_outputs" in row else ""
                print(
                    f"{isa_name:11}{name:20}{row['runner']:27}{1e3 * row['ms_median']:9.1f} us"
                    f"{row['gmacs']:7.0f} GMAC/s {row['x_fp32_peak']:6.2f}x peak"
                    f"{row['over_ours']:7.2f}x ours  {row.get('kernel', wrong)}",
                    flush=True,
                )
            if args.json:
                write_text(args.json, json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
