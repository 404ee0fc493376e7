"""Where a network's time goes: the share of each kind of operator, and the slowest calls.

    python benchmarks/profile_network.py NET [--isa avx2] [--top 12] [--json FILE]

TVM's debug executor times every call on one pinned thread; medians over the runs.
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
import random_networks
from peers import CLASSES, target_of

import tvm_easyquant as eq
from tvm_easyquant.files import write_text
from tvm_easyquant.relay.build import build
from tvm_easyquant.relay.framework import tvm


def calls(name, target, runs=15):
    """[(function, microseconds)] of one run of the network, in program order."""
    from tvm.contrib.debugger import debug_executor

    with tempfile.TemporaryDirectory() as scratch:
        graph = eq.load_onnx(random_networks.save(name, Path(scratch)))
        q = eq.quantize(graph, random_networks.pictures(4), bits=7, method="minmax")
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
    return list(zip(names, np.median(times, axis=0), strict=True))


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
    found = calls(args.net, target_of(args.isa))
    total, shares = sum(us for _, us in found), {}
    for name, us in found:
        shares[kind(name)] = shares.get(kind(name), 0.0) + us
    for name, us in sorted(shares.items(), key=lambda item: -item[1]):
        print(f"{us:9.0f} us {us / total:6.1%}  {name}")
    print(f"{total:9.0f} us together; the slowest calls:")
    for name, us in sorted(found, key=lambda item: -item[1])[: args.top]:
        print(f"{us:9.0f} us  {name}")
    if args.json:
        facts = {"machine": machine.describe(), "net": args.net, "isa": args.isa}
        write_text(args.json, json.dumps({**facts, "microseconds": shares}, indent=1) + "\n")


if __name__ == "__main__":
    main()
