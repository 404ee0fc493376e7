"""Models as they are read: seconds, what stays float, and the float network against ONNX Runtime.

    python benchmarks/reading.py --data DIR [--json benchmarks/results/reading.json] [--nets NAME ...]

Every ONNX model of the folder, and those of `random_networks.py`, is loaded ``ROUNDS`` times by `load` (the
median is kept; the first of all pays for imports) and run in numpy on one random image. ``apart`` is the
largest difference of an output from ONNX Runtime's (no graph optimizations), of its largest number. Ends
with 1 if one is more than ``CLOSE``. No TVM is asked.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import machine
import numpy as np
import onnxruntime
import random_networks

import tvm_easyquant as eq
from tvm_easyquant.files import write_text
from tvm_easyquant.network.node import model_shape
from tvm_easyquant.scales.partition import plan

ROUNDS, CLOSE = 5, 1e-5
#: input shapes of models that leave them open
SHAPES = {"esrgan_slim_x2": (1, 3, 96, 96), "yolo_fastest_1.1": (1, 3, 320, 320)}


def image(shape, dtype, seed=0) -> np.ndarray:
    """A random tensor; of a map one that is smooth and rough, about -3 to 3."""
    rng = np.random.default_rng(seed)
    if dtype != "float32":
        return rng.integers(0, 2, shape).astype(dtype)
    made = rng.standard_normal(shape)
    if len(shape) == 4:
        n, c, h, w = shape
        coarse = rng.standard_normal((n, c, -(-h // 8), -(-w // 8)))
        made = (made + 2 * coarse.repeat(8, 2).repeat(8, 3)[:, :, :h, :w]) / 2
    return made.astype(np.float32)


def by_onnxruntime(path: Path, feed) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def read(path: Path) -> dict:
    """The row of one model."""
    shape = SHAPES.get(path.stem)
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        graph = eq.load(path)
        seconds.append(time.perf_counter() - start)
    if shape is not None and model_shape(graph[graph.inputs[0]]) != shape:
        graph = eq.load(path, {graph.inputs[0]: shape})
    feed = {name: image(model_shape(graph[name]), graph[name].dtype) for name in graph.inputs}
    start = time.perf_counter()
    ours = graph.run(feed)
    ran = time.perf_counter() - start
    apart = 0.0
    for name, wanted in by_onnxruntime(path, feed).items():
        assert ours[name].shape == wanted.shape and ours[name].dtype == wanted.dtype, name
        apart = max(apart, float(np.abs(ours[name] - wanted).max() / max(np.abs(wanted).max(), 1e-30)))
    floats = {node.name: node.attrs["handle"].op for node in graph if node.op == "float"}
    return {
        "net": path.stem, "seconds": round(float(np.median(seconds)), 3), "run_seconds": round(ran, 3),
        "apart": float(f"{apart:.3g}"), "float_nodes": floats,
        "coverage": plan(graph).coverage(graph).facts, "gmacs": round(graph.macs / 1e9, 3),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of networks")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--nets", nargs="+", metavar="NAME")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        paths = sorted(args.data.glob("*.onnx"))
        paths += [random_networks.save(name, Path(scratch)) for name in random_networks.NETWORKS]
        for path in paths:
            if args.nets and path.stem not in args.nets:
                continue
            rows.append(read(path))
            row = rows[-1]
            print(f"{row['net']:28} read in {row['seconds']:6.3f} s, {row['apart']:.1e} from ONNX Runtime, "
                  f"{len(row['float_nodes'])} float nodes", flush=True)  # fmt: skip
    if args.json:
        facts = {"machine": machine.describe(), "onnxruntime": onnxruntime.__version__, "rows": rows}
        write_text(args.json, json.dumps(facts, indent=1) + "\n")
    return int(any(row["apart"] > CLOSE for row in rows))


if __name__ == "__main__":
    sys.exit(main())
