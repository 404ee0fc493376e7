"""Time and memory of calibration and search.

    python benchmarks/search.py --json FILE [--cases NAME ...] [--nets usual today] [--data DIR]

With --nets whole quantizations of the networks of `random_networks.py`, six usual ones and those of today,
in their own sizes and with the default method: the seconds of all threads together from the first picture
to the table, and so many of them to a GMAC of the network; ``table`` is a hash of what was found.

Else every case runs in a process of its own, with 50 images: ResNet-50 and MobileNetV1 with random weights
(`random_networks.py`), and with --data the networks of that folder. ``exhaustive`` tries every candidate on
all positions. ``wall`` seconds are what a user waits, on a machine that may be busy; ``cpu`` seconds are
what the work itself takes, over all threads. ``differ`` counts the activation scales that the exhaustive
search of the same case chooses otherwise. The cases ``calibration N`` only calibrate, with N images and
histograms, of CIFAR-10 or made up of 224x224: their peak memory must not grow.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import machine
import random_networks

from tvm_easyquant.files import write_text

#: case -> (network, settings)
CASES = {
    "resnet50": ("resnet50", {}),
    "resnet50 exhaustive": ("resnet50", {"exhaustive": True}),
    "resnet50 paper": ("resnet50", {"method": "easyquant"}),
    "mobilenet_v1": ("mobilenet_v1", {}),
    "mobilenet_v1 exhaustive": ("mobilenet_v1", {"exhaustive": True}),
    "mobilenet_v1 paper": ("mobilenet_v1", {"method": "easyquant"}),
    "calibration 100, 224x224": ("mobilenet_v1", 100),
    "calibration 1000, 224x224": ("mobilenet_v1", 1000),
}
DATA_CASES = {
    f"{name}{how and ' '}{how}": (name, settings)
    for name in ("cifar10_resnet20", "imagenet_mobilenet_v1_0.75", "imagenet_squeezenet1.1")
    for how, settings in (
        ("", {}),
        ("exhaustive", {"exhaustive": True}),
        ("paper", {"method": "easyquant"}),
    )
}
DATA_CASES |= {f"calibration {n}": ("cifar10_resnet20", n) for n in (100, 1000)}
#: --nets -> the networks
NETS = {"usual": tuple(random_networks.NETWORKS), "today": tuple(random_networks.OF_TODAY)}


def cpu_seconds():
    """Of this process and its children, user and system."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def quantize_one(name, images):
    """A whole quantization in this process: prints a JSON object."""
    import tvm_easyquant as eq
    from tvm_easyquant.progress import peak_memory_gib
    from tvm_easyquant.search.find import find

    with tempfile.TemporaryDirectory() as where:
        graph = eq.load_onnx(random_networks.save(name, Path(where)))
    shape = graph[graph.inputs[0]].shape[1:3]
    data = [random_networks.pictures(1, seed, shape)[0] for seed in range(images)]
    wall, cpu = time.perf_counter(), cpu_seconds()
    table = find(graph, data).table
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    row = {"case": name, "network": name, "images": images, "method": table.config.method}
    row |= {"gmacs": round(graph.macs / 1e9, 3), "wall_s": round(wall, 1), "cpu_s": round(cpu, 1)}
    row |= {"cpu_s_per_gmac": round(cpu / graph.macs * 1e9, 1), "peak_gib": round(peak_memory_gib(), 2)}
    print(json.dumps(row | {"table": hashlib.sha256(table.to_json().encode()).hexdigest()[:16]}))


def run_one(case, folder, images):
    """One case in this process: prints a JSON object."""
    import tvm_easyquant as eq
    from tvm_easyquant.progress import peak_memory_gib
    from tvm_easyquant.scales.calibrate import calibrate
    from tvm_easyquant.scales.numerics import QuantConfig
    from tvm_easyquant.scales.partition import plan
    from tvm_easyquant.search.driver import search

    name, settings = {**CASES, **DATA_CASES}[case]
    count = settings if isinstance(settings, int) else images
    if name in {n for n, _ in DATA_CASES.values()}:
        from data import Network

        network = Network(Path(folder), name)
        graph, data = eq.load_onnx(network.path), (x for x, _ in islice(network.calib_set, count))
    else:
        with tempfile.TemporaryDirectory() as where:
            graph = eq.load_onnx(random_networks.save(name, Path(where)))
        data = (random_networks.pictures(1, seed)[0] for seed in range(count))
    row = {"case": case, "network": name, "loaded_gib": round(peak_memory_gib(), 2)}
    clock = [time.perf_counter(), time.process_time()]

    def lap(what):
        now = [time.perf_counter(), time.process_time()]
        row[f"{what}_wall"], row[f"{what}_cpu"] = (round(b - a, 1) for a, b in zip(clock, now, strict=True))
        clock[:] = now

    if isinstance(settings, int):
        config = QuantConfig(method="kl", search_images=50)
        seen = calibrate(graph, plan(graph), data, config).seen
        lap("calibrate")
        row["images"] = seen
    else:
        config = QuantConfig(**settings)
        plan_ = plan(graph)
        found = calibrate(graph, plan_, data, config)
        lap("calibrate")
        table = search(graph, plan_, found, config)
        lap("search")
        row |= {"images": found.seen, "gmacs": round(graph.macs / 1e9, 3), "settings": config.how._asdict()}
        row["method"] = config.method
        row["scales"] = {n: s.scale for n, s in table.activations.items()}
    row["peak_gib"] = round(peak_memory_gib(), 2)
    print(json.dumps(row))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="the rows; cases that it has are not run again")
    parser.add_argument(
        "--cases",
        nargs="+",
        metavar="NAME",
        help=", ".join([*CASES, *DATA_CASES]) + "; of --nets, networks",
    )
    parser.add_argument("--nets", nargs="+", choices=NETS, help="whole quantizations of these networks")
    parser.add_argument("--data", help="folder of networks and images")
    parser.add_argument("--images", type=int, default=50, help="images of the search (50)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    wholes = [name for nets in args.nets or () for name in NETS[nets]]
    if args.nets and args.cases:
        wholes = [name for name in wholes if name in args.cases]
    if args.one and args.nets:
        quantize_one(args.one, args.images)
        return
    if args.one:
        run_one(args.one, args.data, args.images)
        return
    facts, rows = machine.describe(), []
    if args.json and args.json.exists():
        rows = json.loads(args.json.read_text())["rows"]
    for case in wholes or args.cases or [*CASES, *(DATA_CASES if args.data else ())]:
        if any(row["case"] == case for row in rows):
            continue
        command = [sys.executable, __file__, "--one", case, "--images", str(args.images)]
        command += ["--data", args.data] if args.data else []
        command += ["--nets", *args.nets] if args.nets else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        row |= {"load_average": round(os.getloadavg()[0], 1), "commit": facts["commit"]}
        rows.append(row)
        for other in rows:  # the exhaustive twin
            twin = next((r for r in rows if r["case"] == f"{other['case']} exhaustive"), None)
            if twin is not None:
                pairs = [(s, twin["scales"][n]) for n, s in other.get("scales", {}).items()]
                other["differ"] = sum(a != b for a, b in pairs)
                other["of"] = len(pairs)
        if args.json:
            write_text(args.json, json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")
        print({k: v for k, v in row.items() if k not in ("scales", "settings")}, flush=True)


if __name__ == "__main__":
    main()
