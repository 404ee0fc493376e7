"""Every kernel of the manifest on layers of real networks: what the planner's costs are fitted to.

    python benchmarks/kernels.py --json FILE [--fit [--core CORE]] [--isa NAME ...]

Each is timed twice: again and again (warm), and with everything but the data flushed from the caches before
each call (cold), which is how a network finds its weights that is larger than the cache.

One pinned thread, default knobs, weights that the kernel can prove. The time is the least of several
bursts: the machine may be shared, and nothing makes a kernel faster than it is. ``--fit`` fits
microseconds per million of each kind of work (`topi_ext.cost`) by non-negative least squares of relative
errors and writes ``topi_ext/costs/CORE.json``; with ``--fit`` and a FILE that exists, nothing is measured
again.
"""

from __future__ import annotations

import argparse
import contextlib
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
    """Microseconds of one call of a kernel, with weights in the cache and with weights in memory; None
    where the layer is nothing for it."""
    slow = row.isa == "generic" and not spec.depthwise and spec.macs > 2e8
    if slow or row.shares or row.refuses(spec) is not None:
        return None
    weight_max = next((w for w in (63, 31, 15, 7, 3) if proven(row, spec, w)), None)
    if weight_max is None:
        return None
    import tvm
    from tvm import te

    from topi_ext.emit import DefaultKnobs

    rng = np.random.default_rng(0)
    weight = rng.integers(-weight_max, weight_max + 1, spec.weight_shape).astype(np.int8)
    bias, factor = np.zeros(spec.out_channels, np.int32), np.full(spec.out_channels, 1e-4, np.float32)
    shape = (spec.batch, spec.height, spec.width, spec.in_channels)
    arrays = [rng.integers(0, 128, shape).astype(np.uint8), *row.pack(spec, weight, bias, factor)]
    inputs = [te.placeholder(a.shape, str(a.dtype)) for a in arrays]
    out = row.compute(DefaultKnobs(), spec, *inputs)
    library = tvm.build(te.create_schedule(out.op), [*inputs, out], f"llvm -mcpu={mcpu}")
    held = [tvm.nd.array(a) for a in arrays] + [tvm.nd.empty(spec.out_shape, spec.out_dtype)]

    def least(repeat, number, prepare=""):
        with at_priority():
            return timed(repeat, number, prepare)

    def timed(repeat, number, prepare):
        timer = library.time_evaluator(library.entry_name, tvm.cpu(), number=number, repeat=repeat,
                                       f_preproc=prepare)  # fmt: skip
        return 1e6 * min(timer(*held).results)

    number = max(1, int(2000 / max(least(2, 1), 1)))
    return least(8, number), least(12, 1, "cache_flush_cpu_non_first_arg")


@contextlib.contextmanager
def at_priority():
    """Real-time priority for what is timed, where it is allowed; compiling does without."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(10))
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def proven(row, spec, weight_max):
    return isinstance(row.proves(spec, np.full(spec.weight_shape, weight_max, np.int8)), Bound)


def fit(rows):
    """{kernel: microseconds of a call and per million of each kind of work}, and the errors of the fit."""
    from scipy.optimize import nnls

    found, errors = {}, {}
    for row in manifest.KERNELS:
        mine = [r for r in rows if r["kernel"] == row.name]
        if len(mine) < 5 or row.shares:
            continue
        work = np.array([[1.0, *row.work(ConvSpec.from_json(r["spec"]))] for r in mine])
        for state in ("warm", "cold"):
            times = np.array([r[f"{state}_us"] for r in mine])
            values, _ = nnls(work / times[:, None], np.ones(len(mine)))
            found.setdefault(row.name, {})[state] = [round(float(v), 4) for v in values]
            error = float(np.median(np.abs(work @ values / times - 1)))
            errors.setdefault(row.name, {})[state] = round(error, 3)
    return found, errors


def system_cpu():
    from tvm.target import codegen

    return str(codegen.llvm_get_system_cpu())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--isa", nargs="+", default=[n for n in isa.ISAS if isa.host_has(n)])
    parser.add_argument("--kernels", nargs="+", help="of the manifest; default: all")
    parser.add_argument("--fit", action="store_true", help="write topi_ext/costs/CORE.json")
    parser.add_argument(
        "--core", help="whose measurements FILE holds, as LLVM calls it (default: this CPU)"
    )
    args = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if args.fit and args.json.exists():
        stored = json.loads(args.json.read_text())
        facts, rows = stored["machine"], stored["rows"]
    else:
        facts, rows = machine.describe(), []
        for name, spec in layers():
            for row in manifest.KERNELS:
                if row.isa not in args.isa or (args.kernels and row.name not in args.kernels):
                    continue
                # a portable kernel runs with whatever the CPU has; the plainest CPU with AVX2 stands for it
                mcpu = isa.ISAS[row.isa].mcpu or isa.ISAS["avx2"].mcpu
                found = measure(row, spec, mcpu)
                if found is not None:
                    warm, cold = (round(us, 2) for us in found)
                    rows.append({"layer": name, "kernel": row.name, "warm_us": warm, "cold_us": cold,
                                 "spec": spec.to_json()})  # fmt: skip
            for state in ("warm_us", "cold_us"):
                mine = [r for r in rows if r["layer"] == name]
                if mine:  # with --isa a layer may be for none of the rows
                    best = min(mine, key=lambda r: r[state])
                    print(f"{name:28}{state:8}{best['kernel']:26}{best[state]:9.1f} us", flush=True)
        write_text(args.json, json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")
    if args.fit:
        found, errors = fit(rows)
        about = "fitted by benchmarks/kernels.py --fit; microseconds of a call and per million of each work"
        text = {"about": about, "machine": facts, "median_error": errors, "kernels": found}
        write_text(cost.costs_of(args.core or system_cpu()), json.dumps(text, indent=1) + "\n")
        for name, values in found.items():
            print(f"{name:28}{errors[name]}  {values}")


if __name__ == "__main__":
    main()
