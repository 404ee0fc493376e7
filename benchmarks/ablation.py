"""What each switch of the search is worth at 7 bits: alone, beside the plain squared error, and together.

    python benchmarks/ablation.py --data DIR --json FILE [--nets NAME ...] [--variants NAME ...]

Each variant is searched on the same calibration images and executed by the compiled integer module on the
first images of the test set. Top-1 on so few images is coarse; ``sqnr_db`` (signal to noise of the outputs)
and ``kl`` (mean relative entropy of the class probabilities) against fp32 say more. Rows are added to FILE
as they are measured; rows that it has are not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import machine
import numpy as np
from accuracy import float_executor
from data import Network

import tvm_easyquant as eq
from tvm_easyquant.files import write_text
from tvm_easyquant.relay.build import host_target

MSE = {"method": "easyquant_mse"}
UNGAINED = {**MSE, "order": "layerwise", "start": "mse", "bias_correction": True}
DEFAULT = {**UNGAINED, "gain_correction": True}
#: what is measured, by name; "squared error" is what each single switch is added to
VARIANTS = {
    "min-max": {"method": "minmax"},
    "percentile": {"method": "percentile"},
    "kl": {"method": "kl"},
    "mse": {"method": "mse"},
    "paper": {"method": "easyquant"},
    "paper, unsigned": {"method": "easyquant_unsigned"},
    "squared error": MSE,
    "exhaustive": {**MSE, "exhaustive": True},
    "layerwise": {**MSE, "order": "layerwise"},
    "start mse": {**MSE, "start": "mse"},
    "start percentile": {**MSE, "start": "percentile"},
    "start kl": {**MSE, "start": "kl"},
    "bias correction": {**MSE, "bias_correction": True},
    "gain correction": {**MSE, "gain_correction": True},
    "rounding descent": {**MSE, "rounding": "descent"},
    "objective hessian": {**MSE, "objective": "hessian"},
    "rounds 3": {**MSE, "rounds": 3},
    "signed": {**MSE, "unsigned": False},
    "equalized": {**MSE, "equalize": True},
    "layerwise, start mse, bias": UNGAINED,
    "default: these and gain": DEFAULT,
    "default, descent": {**DEFAULT, "rounding": "descent"},
    "default, hessian": {**DEFAULT, "objective": "hessian"},
    "default, rounds 3": {**DEFAULT, "rounds": 3},
    "default, equalized": {**DEFAULT, "equalize": True},
    "all": {**DEFAULT, "rounding": "descent", "objective": "hessian", "rounds": 3},
}
#: test images, where fewer than all
IMAGES = {"imagenet_squeezenet1.1": 400, "imagenet_mobilenet_v1_0.75": 400}


def log_probabilities(outputs):
    if (outputs >= 0).all() and np.allclose(outputs.sum(axis=1), 1, atol=1e-3):
        return np.log(np.maximum(outputs, 1e-8))
    shifted = outputs - outputs.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def against(real, integer, labels) -> dict:
    """How the outputs (images, classes) of the integer network compare with those of the float one."""
    p, q = log_probabilities(real), log_probabilities(integer)
    right, mine = real.argmax(1) == labels, integer.argmax(1) == labels
    return {
        "top1": round(100 * float(mine.mean()), 2),
        "gained": int((mine & ~right).sum()),
        "lost": int((right & ~mine).sum()),
        "same_answer": round(100 * float((real.argmax(1) == integer.argmax(1)).mean()), 2),
        "sqnr_db": round(10 * float(np.log10((real**2).sum() / ((real - integer) ** 2).sum())), 2),
        "kl": round(float((np.exp(p) * (p - q)).sum(axis=1).mean()), 6),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of networks and images")
    parser.add_argument("--json", type=Path, required=True, help="the rows; those it has are kept")
    parser.add_argument("--nets", nargs="+", required=True)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    parser.add_argument("--images", type=int, help="the first N test images (1000; 400 of ImageNet)")
    args = parser.parse_args()
    facts, rows = machine.describe(), []
    if args.json.exists():
        rows = json.loads(args.json.read_text())["rows"]
    target = host_target()
    for name in args.nets:
        network = Network(args.data, name)
        graph = eq.load_onnx(network.path)
        (tensor,) = graph.inputs
        count = args.images or IMAGES.get(name, 1000)
        images, labels = zip(*network.test(count), strict=True)
        labels = np.array([int(label) for label in labels])

        def outputs(executor, images=images, tensor=tensor):
            return np.stack([executor({tensor: x})[0].reshape(-1) for x in images])

        real = None
        calibration = network.calibration(50)
        for variant in args.variants:
            if any((row["net"], row["variant"]) == (name, variant) for row in rows):
                continue
            if real is None:
                real = outputs(float_executor(network.path, target))
            cpu, wall = time.process_time(), time.perf_counter()
            q = eq.quantize(graph, calibration, bits=7, **VARIANTS[variant])
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            row = {
                "net": name,
                "variant": variant,
                "settings": VARIANTS[variant],
                "n": len(images),
                "fp32_top1": round(100 * float((real.argmax(1) == labels).mean()), 2),
                **against(real, outputs(eq.Executor(q.build(target))), labels),
                "quantize_cpu_seconds": round(cpu, 1),
                "quantize_wall_seconds": round(wall, 1),
                "commit": facts["commit"],
            }
            rows.append(row)
            write_text(args.json, json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")
            print(
                f"{name:28} {variant:28} {row['top1']:6.2f} (fp32 {row['fp32_top1']:.2f}, +{row['gained']} "
                f"-{row['lost']})  {row['sqnr_db']:.2f} dB  kl {row['kl']:.6f}  {cpu:.0f} CPU s",
                flush=True,
            )


if __name__ == "__main__":
    main()
