"""Where a network's time goes: the share of each kind of operator, and the slowest calls.

    python benchmarks/profile_network.py NET [--isa avx2] [--top 12] [--json FILE]

TVM's debug executor times every call on one pinned thread; medians over the runs. Beside their sum stands
the limit: of each layer its multiply-accumulates at the rate of the class's multiply in registers
(`register_loops.c`, measured before and after), of those of the fewer products where the class has a scheme
that takes the layer (`topi_ext.bilinear`), or a quarter of them at that of its word pairs, where F(4, 3)
takes it, whichever is less.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

os.environ["TVM_NUM_THREADS"] = "1"
os.environ.setdefault("TOPHUB_LOCATION", "NONE")

import machine
import numpy as np
import random_networks
from peers import CLASSES, target_of, urgent

import tvm_easyquant as eq
from topi_ext import bilinear, isa, winograd
from tvm_easyquant.files import write_text
from tvm_easyquant.relay.build import build
from tvm_easyquant.relay.framework import tvm


def calls(name, target, runs=15):
    """([(function, microseconds)] of one run of the network, in program order; the layers' shapes)."""
    from tvm.contrib.debugger import debug_executor

    with tempfile.TemporaryDirectory() as scratch:
        graph = eq.load_onnx(random_networks.save(name, Path(scratch)))
        q = random_networks.quantized(graph, random_networks.pictures(4))
        library = build(q.module, target)
        executor = debug_executor.create(
            library.get_graph_json(), library.get_lib(), tvm.cpu(), dump_root=scratch
        )
        executor.set_input(**library.get_params())
        executor.set_input("image", random_networks.pictures(1)[0])
        times = []
        for _ in range(runs):
            rows = executor.profile().calls
            times.append([float(row["Duration (us)"].microseconds) for row in rows])
        names = [str(row["Name"]) for row in rows]
    found = list(zip(names, np.median(times, axis=0), strict=True))
    return found, [layer.spec for layer in library.layers]


def register_rates(isa_name):
    """GMAC/s of a class's loops in registers: (of bytes, of words)."""
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "loops"
        source = Path(__file__).with_name("register_loops.c")
        subprocess.run(["gcc", "-O3", "-funroll-all-loops", source, "-o", program], check=True)
        return tuple(
            float(subprocess.run([*urgent(), program, f"{isa_name}_{kind}"], capture_output=True, text=True,
                                 check=True).stdout)
            for kind in ("bytes", "words")
        )  # fmt: skip


def limit(specs, rates, isa_name):
    """Microseconds of the layers if their multiplies took all of the time."""
    transform, total = winograd.transform(4, 3), 0.0
    schemes = (bilinear.LINE, bilinear.STRASSEN) if "products" in isa.ISAS[isa_name].tiles else ()
    for spec in specs:
        # of 2 outputs by the vectors, each of the taps by the halves of the input channels
        shares = [
            s.products / (2 * s.vectors * s.taps * s.halves)
            for s in schemes
            if not bilinear.refuses(s, spec)
        ]
        direct = spec.macs * min([1.0, *shares]) / rates[0] * 1e-3
        fast = spec.macs / 4 / rates[1] * 1e-3
        total += direct if winograd.refuses(transform, spec) else min(direct, fast)
    return total


def kind(name):
    """What a fused function is: a convolution by our kernels, or what it is made of."""
    return (
        "conv"
        if "easyquant_conv2d" in name
        else name.removeprefix("tvmgen_default_fused_").rstrip("_0123456789")
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("net", choices=random_networks.NETWORKS)
    parser.add_argument("--isa", default="avx2", choices=CLASSES)
    parser.add_argument("--top", type=int, default=12)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    before = register_rates(args.isa)
    found, specs = calls(args.net, target_of(args.isa))
    rates = tuple(map(max, before, register_rates(args.isa)))
    least = limit(specs, rates, args.isa)
    total, shares = sum(us for _, us in found), {}
    for name, us in found:
        shares[kind(name)] = shares.get(kind(name), 0.0) + us
    share = f"{least:.0f} us, {least / total:.2f} of the time"
    print(f"the limit at {rates[0]:.0f} and {rates[1]:.0f} GMAC/s: {share}")
    for name, us in sorted(shares.items(), key=lambda item: -item[1]):
        print(f"{us:9.0f} us {us / total:6.1%}  {name}")
    print(f"{total:9.0f} us together; the slowest calls:")
    for name, us in sorted(found, key=lambda item: -item[1])[: args.top]:
        print(f"{us:9.0f} us  {name}")
    if args.json:
        facts = {"machine": machine.describe(), "net": args.net, "isa": args.isa, "rates": rates,
                 "limit": least, "of_the_limit": round(least / total, 3)}  # fmt: skip
        write_text(args.json, json.dumps({**facts, "microseconds": shares}, indent=1) + "\n")


if __name__ == "__main__":
    main()
