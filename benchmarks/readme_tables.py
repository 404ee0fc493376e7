"""Write the README's tables from the stored results: ``python benchmarks/readme_tables.py``."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def stored(name):
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text())


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def cpu(machine):
    return f"{machine['cpu']} family {machine.get('cpu family')} model {machine.get('model')}"


def main():
    layers, accuracy, networks = map(stored, ("layers_avx2.json", "accuracy.json", "networks.json"))
    peers = {"ort_int8": "ONNX Runtime int8", "ort_fp32": "ONNX Runtime fp32", "tvm_fp32": "TVM fp32"}
    whole = table(
        ["network", "our INT7, ms", *(f"{peer} / ours" for peer in peers.values())],
        [
            [r["net"], f"{r['ours_int7_ms']:.2f}", *(f"{r[f'{key}_over_ours']:.2f}" for key in peers)]
            for r in networks["rows"]
        ],
    )
    kernels = table(
        ["ResNet-50 layer", "our kernel", "GMAC/s", "TVM int8 / ours", "TVM fp32 / ours"],
        [
            [r["layer"], r["kernel"], f"{r['gmacs']:.0f}", f"{r['ratio_vs_tvm_int8']:.2f}",
             f"{r['ratio_vs_tvm_fp32']:.2f}"]
            for r in layers["rows"]
        ],
    )  # fmt: skip
    nets = table(
        ["network", "method", "bits", "fp32", "integer", "gained / lost"],
        [
            [r["net"], r["method"], f"INT{r['bits']}", f"{r['fp32_top1']:.2f}", f"{r['top1']:.2f}",
             f"+{r['gained']} / -{r['lost']}"]
            for r in accuracy["rows"]
        ],
    )  # fmt: skip
    wrong = sorted(r["tvm_int8_wrong_outputs"] for r in layers["rows"])
    text = f"""<!-- measured -->

Kernels: the time of TVM's own convolution divided by ours. Medians of one interleaved run, one pinned
thread, every compiler capped at `-mcpu=core-avx2`, on {cpu(layers["machine"])}. TVM's int8 kernel is
timed although, on full-range 8-bit weights, {wrong[0]:.0%} to {wrong[-1]:.0%} of its outputs are wrong;
ours equals the norm on full-range 7-bit weights.

{kernels}

Whole networks: the time of each runtime divided by ours; batch 1, one pinned thread, the CPU's own
instructions for everybody (here {", ".join(networks["machine"]["flags"])}), ONNX Runtime
{networks["machine"]["onnxruntime"]} with static QDQ, u8s8.

{whole}

Accuracy of the compiled integer networks: top-1 in percent, 50 calibration images, test images gained and
lost against fp32 (10,000 CIFAR-10 images, 1,300 of ImageNet's validation set).

{nets}

Made by `python layers.py --isa avx2 --json results/layers_avx2.json`,
`python accuracy.py --data DIR --methods easyquant easyquant_mse --json results/accuracy.json` and
`python networks.py --data DIR --json results/networks.json` in `benchmarks/`; the machine, the versions
and every setting are in those files.

<!-- /measured -->"""
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    readme.write_text(re.sub(r"<!-- measured -->.*<!-- /measured -->", lambda _: text, old, flags=re.S))


if __name__ == "__main__":
    main()
