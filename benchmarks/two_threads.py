"""One call on two cores: ours on two threads, against one thread and two processes, in turn.

    python benchmarks/two_threads.py [--isa CLASS ...] [--json FILE] [--nets NAME ...] [--rounds N]

The networks of `networks`, quantized by MinMax, run by a `Program`. Two cores of a virtual machine may be
of one core complex, which shares a cache, at one moment and of two at the next; what threads hand to each
other then takes six times as long, and processes hand nothing. So `core_to_core.c` measures before and
after each round how long a line of memory takes from one core to the other, and the rounds are told apart:
``near``, below `NEAR` nanoseconds both times, and ``far``, not below it both times. ``calls_per_second``
are medians, ``speedup`` is that of the rounds' ratios of two threads to one, ``of_processes`` of two
threads to two processes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
import numpy as np
import random_networks
from peers import target_of
from threads import rate, started

import tvm_easyquant as eq
from tvm_easyquant.files import write_text

SECONDS, NEAR = 0.5, 120
NETS = ("resnet18", "resnet50", "mobilenet_v1", "mobilenet_v2")


def compiled(folder: Path) -> Path:
    """The program that measures how far two cores are apart."""
    program = folder / "core_to_core"
    source = Path(__file__).with_name("core_to_core.c")
    subprocess.run(["gcc", "-O2", "-pthread", source, "-o", program], check=True)
    return program


def apart(program: Path, cpus) -> float:
    """Nanoseconds from one core to the other, once threads that wait for work have gone to sleep."""
    time.sleep(0.1)
    command = [program, *map(str, cpus)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def pinned(cpu: int) -> dict:
    return {"env": {"TVM_NUM_THREADS": "1"}, "preexec_fn": lambda: os.sched_setaffinity(0, {cpu})}


def measure(network: Path, samples: Path, rounds: int, program: Path, cpus) -> dict:
    """{near or far: the figures of its rounds}."""
    first, second = cpus
    servers = {
        "one": [started("serve", network, samples, 1, **pinned(second))],
        "processes": [started("serve", network, samples, 1, **pinned(cpu)) for cpu in cpus],
        "threads": [started("call", network, samples, 2, env={"TVM_NUM_THREADS": "2"})],
    }
    found: list[tuple[tuple[float, float], dict]] = []
    before = apart(program, (first, second))
    for i in range(rounds + 1):
        order = list(servers)[:: 1 if i % 2 else -1]
        rates = {name: rate(servers[name], SECONDS) for name in order}
        after = apart(program, (first, second))
        if i:  # the first round warms up
            found.append(((before, after), rates))
        before = after
    for process in (process for group in servers.values() for process in group):
        process.communicate()
    kinds = {
        "near": [(ns, rates) for ns, rates in found if max(ns) < NEAR],
        "far": [(ns, rates) for ns, rates in found if min(ns) >= NEAR],
    }
    return {kind: figures(mine) for kind, mine in kinds.items() if mine}


def figures(mine) -> dict:
    def median(of):
        return statistics.median(of(rates) for _, rates in mine)

    return {
        "rounds": len(mine),
        "core_to_core_ns": statistics.median(max(ns) for ns, _ in mine),
        "calls_per_second": {name: round(median(lambda r, n=name: r[n]), 1) for name in mine[0][1]},
        "speedup": round(median(lambda r: r["threads"] / r["one"]), 3),
        "of_processes": round(median(lambda r: r["threads"] / r["processes"]), 3),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--isa", nargs="+", default=["avx2"])
    parser.add_argument("--nets", nargs="+", default=NETS)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))[-2:]
    if len(cpus) < 2:
        raise SystemExit("error: one CPU; give the process two")
    facts, rows = machine.describe(), []
    with tempfile.TemporaryDirectory() as scratch:
        program, samples = compiled(Path(scratch)), Path(scratch) / "samples.npy"
        np.save(samples, np.concatenate(random_networks.pictures(4)))
        for name in args.nets:
            graph = eq.load_onnx(random_networks.save(name, Path(scratch)))
            q = random_networks.quantized(graph, random_networks.pictures(4))
            for isa_name in args.isa:
                network = Path(scratch) / f"{name}_{isa_name}.tar"
                q.build(target_of(isa_name)).export(network)
                found = measure(network, samples, args.rounds, program, cpus)
                for kind, each in found.items():
                    rows.append({"net": name, "isa": isa_name, "cores": kind, **each,
                                 "cpu": machine.cpu(facts), "commit": facts["commit"]})  # fmt: skip
                    print(rows[-1], flush=True)
                if args.json:
                    text = {"machine": facts, "seconds": SECONDS, "near_ns": NEAR, "rows": rows}
                    write_text(args.json, json.dumps(text, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
