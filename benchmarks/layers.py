"""Our convolution kernels against TVM's own, layer by layer, in one interleaved run.

    python benchmarks/layers.py --isa avx2 --json FILE [--quick]

One thread, pinned to one CPU. Every compiler is capped at the same -mcpu. Before anything is timed our
kernel must equal the norm on full-range 7-bit weights; a wrong kernel has no speed. TVM's int8 is
``nn.conv2d`` uint8 x int8 in NCHW, its fastest int8 path on x86 (and the one that saturates: the share
of wrong outputs on full-range 8-bit weights is stored beside its time); TVM's fp32 is its default
schedule, untuned. Each figure is the median over rounds; a round times the three one after the other,
and the ratios are medians of the ratios of a round.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ["TVM_NUM_THREADS"] = "1"
os.environ.setdefault("TOPHUB_LOCATION", "NONE")

import machine
import numpy as np
import tvm
from tvm import relay

from topi_ext import isa, manifest, reference, relay_op
from topi_ext.conv2d import ConvSpec, fold_zero_point
from tvm_easyquant.files import write_text
from tvm_easyquant.host import no_tophub
from tvm_easyquant.relay_build import Executor

#: name -> (height and width, in channels, out channels, kernel, stride): the layers of ResNet-50
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
}


def compiled(expression, variables, target):
    module = tvm.IRModule.from_expr(relay.Function(variables, expression))
    with no_tophub(), tvm.transform.PassContext(opt_level=3):
        return Executor(relay.build(module, target))


def our_kernel(spec, data, isa_name, target, rng):
    """(executor, kernel name); raises if it differs from the norm on full-range 7-bit weights."""
    weight = rng.choice(np.array([-63, 63], np.int8), spec.weight_shape)
    bias = rng.integers(-1000, 1000, spec.out_channels).astype(np.int32)
    factor = np.full(spec.out_channels, 3e-5, np.float32)
    chosen = manifest.plan(spec, weight, bias, isa_name).kernel
    x = relay.var("x", shape=data.shape, dtype="uint8")
    folded = fold_zero_point(bias, weight, spec.zero_point)
    constants = [relay.const(c) for c in chosen.pack(spec, weight, folded, factor)]
    run = compiled(relay_op.conv2d(x, spec, chosen, constants), [x], target)
    acc = reference.conv2d(data, weight, strides=spec.strides, padding=spec.padding) + bias
    expected = reference.requantize(acc, factor, 0, spec.lo, spec.hi)
    if not np.array_equal(run({"x": data})[0], expected):
        raise SystemExit(f"error: {chosen.name} differs from the norm")
    return run, chosen.name


def tvm_conv(spec, data, dtypes, target, rng):
    """TVM's own convolution, NCHW; for int8 also the share of outputs that are wrong."""
    data_type, weight_type, out_type = dtypes
    nchw = np.ascontiguousarray(data.transpose(0, 3, 1, 2)).astype(data_type)
    weight = rng.integers(-127, 128, spec.weight_shape)
    kernel = relay.const(np.ascontiguousarray(weight.transpose(3, 2, 0, 1).astype(weight_type)))
    x = relay.var("x", shape=nchw.shape, dtype=data_type)
    y = relay.nn.conv2d(
        x, kernel, strides=spec.strides, padding=spec.padding, channels=spec.out_channels,
        kernel_size=spec.kernel, out_dtype=out_type,
    )  # fmt: skip
    run = compiled(y, [x], target)
    wrong = None
    if weight_type == "int8":
        full = rng.integers(0, 256, data.shape).astype(np.uint8)
        exact = reference.conv2d(full, weight.astype(np.int8), strides=spec.strides, padding=spec.padding)
        out = run({"x": np.ascontiguousarray(full.transpose(0, 3, 1, 2))})[0]
        wrong = float((out.transpose(0, 2, 3, 1) != exact).mean())
    run({"x": nchw})
    return run, wrong


def measure(name, isa_name, target, rounds, rng):
    size, c, k, r, stride = LAYERS[name]
    spec = ConvSpec(
        1, size, size, c, k, (r, r), (stride, stride), (r // 2,) * 4, data_max=127, hi=127
    )  # fmt: skip
    data = rng.integers(0, 128, (1, size, size, c)).astype(np.uint8)
    ours, kernel = our_kernel(spec, data, isa_name, target, rng)
    int8, wrong = tvm_conv(spec, data, ("uint8", "int8", "int32"), target, rng)
    fp32, _ = tvm_conv(spec, data, ("float32", "float32", "float32"), target, rng)
    runners = {"ours": ours, "tvm_int8": int8, "tvm_fp32": fp32}
    times = {key: [] for key in runners}
    for _ in range(rounds):
        for key, runner in runners.items():
            times[key].append(1e3 * min(runner.milliseconds(repeat=3, number=2)))
    ratio = {
        key: float(np.median(np.array(times[key]) / np.array(times["ours"])))
        for key in ("tvm_int8", "tvm_fp32")
    }
    median = {key: float(np.median(t)) for key, t in times.items()}
    return {
        "layer": name,
        "kernel": kernel,
        "isa": isa_name,
        "threads": 1,
        "macs": spec.macs,
        "median_us": round(median["ours"], 1),
        "spread_us": [round(min(times["ours"]), 1), round(max(times["ours"]), 1)],
        "gmacs": round(spec.macs / median["ours"] / 1e3, 1),
        "tvm_int8_us": round(median["tvm_int8"], 1),
        "tvm_fp32_us": round(median["tvm_fp32"], 1),
        "ratio_vs_tvm_int8": round(ratio["tvm_int8"], 2),
        "ratio_vs_tvm_fp32": round(ratio["tvm_fp32"], 2),
        "exact": True,
        "tvm_int8_wrong_outputs": wrong,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--isa",
        default="avx2",
        choices=("avx2", "avx512bw"),
        help="caps every compiler (avx2); TVM's own int8 aborts on VNNI",
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="three layers, few rounds")
    args = parser.parse_args()
    if not isa.host_has(args.isa):
        raise SystemExit(f"error: this CPU does not have {args.isa}")
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    relay_op.register()
    target, rng = f"llvm -mcpu={isa.ISAS[args.isa].mcpu}", np.random.default_rng(0)
    rows = []
    print(
        f"{'layer':20}{'kernel':22}{'us':>9}{'GMAC/s':>8}{'x TVM int8':>12}{'x TVM fp32':>12}  int8 wrong"
    )
    for name in list(LAYERS)[: 3 if args.quick else None]:
        row = measure(name, args.isa, target, 5 if args.quick else 15, rng)
        rows.append(row)
        print(
            f"{name:20}{row['kernel']:22}{row['median_us']:9.0f}{row['gmacs']:8.0f}"
            f"{row['ratio_vs_tvm_int8']:12.2f}{row['ratio_vs_tvm_fp32']:12.2f}  "
            f"{row['tvm_int8_wrong_outputs']:.1%}",
            flush=True,
        )
    if args.json:
        facts = {**machine.describe(), "target": target}
        write_text(args.json, json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
