"""Whole networks: ours against TVM's fp32 and ONNX Runtime's fp32 and int8, in one interleaved run.

    python benchmarks/networks.py --data DIR --json FILE [--nets NAME ...]

One thread, pinned, batch 1. Ours are compiled for the CPU this runs on, and for AVX2 alone; ONNX Runtime
takes what the CPU has and cannot be capped, so compare it with the first. Its int8 is static QDQ, u8s8, per
channel, reduce_range where the CPU has no VNNI, from the same calibration images. Ours is checked against
the numpy reference before it is timed. Figures are medians over rounds; ratios are medians of a round's.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

os.environ["TVM_NUM_THREADS"] = "1"
os.environ.setdefault("TOPHUB_LOCATION", "NONE")

import machine
import numpy as np
from accuracy import float_executor
from data import NETWORKS, Network

import tvm_easyquant as eq
from topi_ext import isa
from tvm_easyquant.files import write_text
from tvm_easyquant.relay_build import host_target
from tvm_easyquant.relay_reference import execute


def session(path):
    """An ONNX Runtime session on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def ort_int8(path, tensor, samples, folder):
    """The network quantized by ONNX Runtime (static QDQ, MinMax, u8s8, per channel)."""
    import onnx
    from onnx import version_converter
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.items = iter(samples)

        def get_next(self):
            sample = next(self.items, None)
            return None if sample is None else {tensor: sample}

    model = version_converter.convert_version(onnx.load(path), 13)  # per channel needs opset 13
    raw, prepared, made = (folder / f"{n}.onnx" for n in ("raw", "prepared", "int8"))
    onnx.save(model, raw)
    quant_pre_process(str(raw), str(prepared), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(prepared), str(made), Reader(), per_channel=True,
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        reduce_range=not isa.host_has("avx512vnni"),
    )  # fmt: skip
    return session(made)


def timed_session(runner, feed, number):
    import time

    start = time.perf_counter()
    for _ in range(number):
        runner.run(None, feed)
    return 1e3 * (time.perf_counter() - start) / number


def measure(folder, name, rounds, folder_tmp):
    network = Network(folder, name)
    graph = eq.load_onnx(network.path)
    (tensor,) = graph.inputs
    samples = list(network.calibration(20))
    q = eq.quantize(graph, samples, bits=7, method="minmax")  # the scales do not change the speed
    feed = {tensor: network.test(0)}
    tvm_runners = {
        "ours_int7": eq.Executor(q.build(host_target())),
        "ours_int7_avx2": eq.Executor(q.build("llvm -mcpu=core-avx2")),
        "tvm_fp32": float_executor(network.path, host_target()),
    }
    expected = execute(q.module, feed)[0]
    for key in ("ours_int7", "ours_int7_avx2"):
        if not np.array_equal(tvm_runners[key](feed)[0], expected):
            raise SystemExit(f"error: {key} of {name} differs from the reference")
    tvm_runners["tvm_fp32"](feed)
    sessions = {
        "ort_fp32": session(network.path),
        "ort_int8": ort_int8(network.path, tensor, samples, folder_tmp),
    }
    times = {key: [] for key in (*tvm_runners, *sessions)}
    for _ in range(rounds):
        for key, runner in tvm_runners.items():
            times[key].append(min(runner.milliseconds(repeat=3, number=3)))
        for key, runner in sessions.items():
            times[key].append(min(timed_session(runner, feed, 3) for _ in range(3)))
    row = {"net": name, "threads": 1, "macs": graph.macs, "exact": True}
    for key, values in times.items():
        row[f"{key}_ms"] = round(float(np.median(values)), 3)
        row[f"{key}_over_ours"] = round(float(np.median(np.array(values) / times["ours_int7"])), 2)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--nets", nargs="+", default=NETWORKS)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import onnxruntime

    rows = []
    for name in args.nets:
        with tempfile.TemporaryDirectory() as scratch:
            row = measure(args.data, name, args.rounds, Path(scratch))
        rows.append(row)
        print(name, {k: v for k, v in row.items() if k.endswith(("_ms", "_ours"))}, flush=True)
    if args.json:
        facts = {**machine.describe(), "target": host_target(), "onnxruntime": onnxruntime.__version__}
        write_text(args.json, json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
