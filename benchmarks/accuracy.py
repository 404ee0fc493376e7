"""Accuracy of the compiled integer networks against fp32, paired on the same images.

    python benchmarks/accuracy.py --data DIR --json FILE [--nets NAME ...] [--images N]

For every network: fp32 (the float module compiled by TVM), then INT8 and INT7 by each method, all
from the same calibration images, *executed by the compiled integer module*. ``gained`` and ``lost``
count the images that only the integer network, or only fp32, gets right; ``interval`` is the 95 %
confidence interval of the paired difference in points (`tvm_easyquant.evaluate.compare`). The first
``--exact`` images are also run by the numpy reference, and the number of differing output values is
stored (it must be 0). Rows: net, method, bits, calibration_images, n, top1, fp32_top1 (percent), gained,
lost, runner, cpu.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import machine
from data import NETWORKS, Network

import tvm_easyquant as eq
from tvm_easyquant.evaluate import compare, evaluate
from tvm_easyquant.files import write_text
from tvm_easyquant.host import no_tophub
from tvm_easyquant.progress import Bar, peak_memory_gib
from tvm_easyquant.relay_build import host_target
from tvm_easyquant.relay_reference import execute


def float_executor(path, target):
    """The float network, compiled by TVM with its default schedules."""
    import onnx
    import tvm
    from tvm import relay

    module, params = relay.frontend.from_onnx(onnx.load(path), freeze_params=True)
    with no_tophub(), tvm.transform.PassContext(opt_level=3):
        return eq.Executor(relay.build(module, target, params=params))


def right(run, tensor, network, count, what):
    """Which of the first ``count`` test images the network gets right: float64 (count,) of 0 and 1."""
    bar = Bar()
    try:
        return evaluate(run, network.test(count), inputs=[tensor], progress=bar, what=what)["top1"]
    finally:
        bar.close()


def measure(folder, name, args, facts):
    network = Network(folder, name)
    count = min(args.images or len(network.test_set), len(network.test_set))
    target = args.target or host_target()
    graph = eq.load_onnx(network.path)
    (tensor,) = graph.inputs
    fp32 = right(float_executor(network.path, target), tensor, network, count, f"{name} fp32")
    base = {
        "net": name,
        "n": count,
        "fp32_top1": round(100 * float(fp32.mean()), 3),
        "runner": "tvm_easyquant",
        "cpu": facts["cpu"],
        "target": target,
    }
    for method in args.methods:
        for bits in (8, 7):
            started = time.perf_counter()
            q = eq.quantize(graph, network.calibration(args.calibration), bits=bits, method=method)
            seconds = time.perf_counter() - started
            executor = eq.Executor(q.build(target))
            found = compare(right(executor, tensor, network, count, f"{name} {method} INT{bits}"), fp32)
            different = 0
            for x, _ in network.test(args.exact):
                expected = execute(q.module, {tensor: x})[0]
                different += int((expected != executor({tensor: x})[0]).sum())
            worst = min(q.layers, key=lambda row: row.get("cosine", 1.0))
            yield {
                **base,
                "method": method,
                "bits": bits,
                "calibration_images": args.calibration,
                "search_images": q.table.config.search_images,
                "top1": round(found.value, 3),
                "gained": found.gained,
                "lost": found.lost,
                "interval": [round(limit, 2) for limit in found.interval],
                "coverage_percent": q.coverage,
                "quantize_seconds": round(seconds, 1),
                "peak_memory_gib": round(peak_memory_gib(), 2),
                "exact_images": min(args.exact, count),
                "values_differing_from_reference": different,
                "worst_layer": worst["layer"],
                "worst_cosine": round(worst.get("cosine", 1.0), 5),
            }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of networks and images")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--nets", nargs="+", default=NETWORKS)
    parser.add_argument("--methods", nargs="+", default=["easyquant", "easyquant_unsigned"])
    parser.add_argument("--images", type=int, help="only the first N test images")
    parser.add_argument("--calibration", type=int, default=50, help="calibration images (50)")
    parser.add_argument("--exact", type=int, default=100, help="images also run by the reference")
    parser.add_argument("--target", help="TVM target (this CPU)")
    args = parser.parse_args()
    facts = machine.describe()
    rows = []
    for name in args.nets:
        for row in measure(args.data, name, args, facts):
            rows.append(row)
            print(
                f"{row['net']:28} {row['method']:20} INT{row['bits']}  top-1 {row['top1']:.2f} "
                f"(fp32 {row['fp32_top1']:.2f}, +{row['gained']} -{row['lost']})  "
                f"{row['quantize_seconds']:.0f} s, {row['peak_memory_gib']:.1f} GiB, differing "
                f"{row['values_differing_from_reference']}, worst layer {row['worst_layer']} "
                f"{row['worst_cosine']:.4f}",
                flush=True,
            )
            if args.json:
                write_text(args.json, json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
