"""Every kernel of the manifest on layers of real networks: what the planner's costs are fitted to.

    python benchmarks/kernels.py --json FILE [--fit] [--isa NAME ...]

One pinned thread, default knobs, weights that the kernel can prove. The time is the least of several
bursts: the machine may be shared, and nothing makes a kernel faster than it is. ``--fit`` fits
microseconds per million of each kind of work (`topi_ext.cost`) by non-negative least squares of relative
errors and writes ``topi_ext/costs.json``; with ``--fit`` and a FILE that exists, nothing is measured again.
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

from topi_ext import cost, isa, manifest
from topi_ext.conv2d import Bound, ConvSpec
from tvm_easyquant.files import write_text

#: (height and width, in channels, out channels, kernel, stride)
DENSE = [
    (224, 3, 64, 7, 2), (224, 3, 32, 3, 2), (224, 3, 64, 3, 1), (32, 3, 16, 3, 1),
    (112, 64, 64, 3, 1), (56, 64, 64, 3, 1), (56, 128, 128, 3, 1), (28, 128, 128, 3, 1),
    (28, 256, 256, 3, 1), (14, 256, 256, 3, 1), (14, 512, 512, 3, 1), (7, 512, 512, 3, 1),
    (32, 16, 16, 3, 1), (16, 32, 32, 3, 1), (8, 64, 64, 3, 1), (27, 32, 128, 3, 1), (13, 48, 192, 3, 1),
    (13, 64, 256, 3, 1), (55, 16, 64, 3, 1), (20, 96, 96, 3, 1), (10, 160, 160, 3, 1), (40, 48, 48, 3, 1),
    (56, 64, 128, 3, 2), (56, 128, 128, 3, 2), (28, 256, 256, 3, 2), (14, 512, 512, 3, 2),
    (56, 64, 256, 1, 1), (56, 256, 64, 1, 1), (28, 256, 512, 1, 1), (28, 512, 128, 1, 1),
    (14, 1024, 256, 1, 1), (14, 256, 1024, 1, 1), (7, 2048, 512, 1, 1), (7, 512, 2048, 1, 1),
    (56, 256, 512, 1, 2), (112, 32, 16, 1, 1), (56, 24, 144, 1, 1), (28, 192, 32, 1, 1),
    (14, 384, 64, 1, 1), (7, 320, 1280, 1, 1), (55, 64, 16, 1, 1), (13, 512, 1000, 1, 1),
    (1, 512, 1000, 1, 1), (1, 2048, 1000, 1, 1), (1, 1280, 1000, 1, 1), (1, 64, 10, 1, 1),
]  # fmt: skip
DEPTHWISE = [
    (112, 32, 3, 1), (112, 64, 3, 2), (112, 96, 3, 2), (56, 128, 3, 1), (56, 144, 3, 1), (56, 144, 3, 2),
    (28, 192, 3, 1), (28, 256, 3, 1), (14, 384, 3, 1), (14, 512, 3, 1), (14, 576, 3, 2), (7, 960, 3, 1),
    (28, 120, 5, 1), (14, 240, 5, 2), (7, 672, 5, 1),
]  # fmt: skip


def layers():
    """(name, spec) of every layer; data up to 127, as an unsigned 7-bit activation."""
    for size, c, k, r, stride in DENSE:
        spec = ConvSpec(1, size, size, c, k, (r, r), (stride,) * 2, (r // 2,) * 4, data_max=127, hi=127)
        yield f"{r}x{r} s{stride} {c}-{k} @{size}", spec
    for size, c, r, stride in DEPTHWISE:
        spec = ConvSpec(1, size, size, c, c, (r, r), (stride,) * 2, (r // 2,) * 4, groups=c, data_max=127)
        yield f"dw {r}x{r} s{stride} {c} @{size}", spec


def measure(row, spec, mcpu):
    """Microseconds of one call of a kernel; None where the layer is nothing for it."""
    if row.fits(spec) is not None or (row.isa == "generic" and not spec.depthwise and spec.macs > 2e8):
        return None
    weight_max = next((w for w in (63, 31, 15, 7, 3) if proven(row, spec, w)), None)
    if weight_max is None:
        return None
    import tvm
    from tvm import relay

    from topi_ext import relay_op
    from tvm_easyquant.host import no_tophub
    from tvm_easyquant.relay_build import Executor

    relay_op.register()
    rng = np.random.default_rng(0)
    weight = rng.integers(-weight_max, weight_max + 1, spec.weight_shape).astype(np.int8)
    bias, factor = np.zeros(spec.out_channels, np.int32), np.full(spec.out_channels, 1e-4, np.float32)
    x = relay.var("x", shape=(spec.batch, spec.height, spec.width, spec.in_channels), dtype="uint8")
    constants = [relay.const(c) for c in row.pack(spec, weight, bias, factor)]
    call = relay_op.conv2d(x, spec, row, constants)
    with no_tophub(), tvm.transform.PassContext(opt_level=3):
        library = relay.build(tvm.IRModule.from_expr(relay.Function([x], call)), f"llvm -mcpu={mcpu}")
    run = Executor(library)
    shape = (spec.batch, spec.height, spec.width, spec.in_channels)
    run({"x": rng.integers(0, 128, shape).astype(np.uint8)})
    number = max(1, int(2.0 / max(min(run.milliseconds(repeat=2)), 1e-3)))
    return 1e3 * min(run.milliseconds(repeat=8, number=number))


def proven(row, spec, weight_max):
    return isinstance(row.proves(spec, np.full(spec.weight_shape, weight_max, np.int8)), Bound)


def fit(rows):
    """{kernel: microseconds of a call and per million of each kind of work}, and the errors of the fit."""
    from scipy.optimize import nnls

    found, errors = {}, {}
    for row in manifest.KERNELS:
        mine = [r for r in rows if r["kernel"] == row.name]
        if len(mine) < 5:
            continue
        times = np.array([r["us"] for r in mine])
        work = np.array([[1.0, *row.work(ConvSpec.from_json(r["spec"]))] for r in mine])
        values, _ = nnls(work / times[:, None], np.ones(len(mine)))
        found[row.name] = [round(float(v), 4) for v in values]
        errors[row.name] = round(float(np.median(np.abs(work @ values / times - 1))), 3)
    return found, errors


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--isa", nargs="+", default=[n for n in isa.ISAS if isa.host_has(n)])
    parser.add_argument("--fit", action="store_true", help="write topi_ext/costs.json")
    args = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if args.fit and args.json.exists():
        stored = json.loads(args.json.read_text())
        facts, rows = stored["machine"], stored["rows"]
    else:
        facts, rows = machine.describe(), []
        for name, spec in layers():
            for row in manifest.KERNELS:
                if row.isa not in args.isa:
                    continue
                # a portable kernel runs with whatever the CPU has; the plainest CPU with AVX2 stands for it
                mcpu = isa.ISAS[row.isa].mcpu or isa.ISAS["avx2"].mcpu
                us = measure(row, spec, mcpu)
                if us is not None:
                    entry = {"layer": name, "kernel": row.name, "us": round(us, 2), "spec": spec.to_json()}
                    rows.append(entry)
            best = min((r for r in rows if r["layer"] == name), key=lambda r: r["us"])
            print(f"{name:28}{best['kernel']:26}{best['us']:9.1f} us", flush=True)
        write_text(args.json, json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")
    if args.fit:
        found, errors = fit(rows)
        about = "fitted by benchmarks/kernels.py --fit; microseconds of a call and per million of each work"
        text = {"about": about, "machine": facts, "median_error": errors, "kernels": found}
        write_text(cost.COSTS, json.dumps(text, indent=1) + "\n")
        for name, values in found.items():
            print(f"{name:28}{errors[name]:7.1%}  {values}")


if __name__ == "__main__":
    main()
