"""Search and accuracy on a Dask cluster of two workers against one process, each of one thread.

    python benchmarks/cluster.py --json FILE [--network NAME] [--images N] [--rounds N]

A network with random weights (`random_networks.py`) is searched, and judged in numpy on as many samples,
once here and once on two worker processes of this machine, in turn, ``--rounds`` times. ``wall`` is what a
user waits, on a machine that may be busy; ``here`` and ``workers`` are CPU seconds of this process and of
the workers, which say how the work is divided; ``sent`` is what went out by key, in MB. The results must be
equal.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import statistics
import tempfile
import time
from pathlib import Path

import machine
import numpy as np
import random_networks

import tvm_easyquant as eq
from tvm_easyquant import cluster
from tvm_easyquant.files import write_text
from tvm_easyquant.measure import networks
from tvm_easyquant.samples import labelled
from tvm_easyquant.scales.calibrate import calibrate, start_table
from tvm_easyquant.scales.numerics import QuantConfig
from tvm_easyquant.scales.partition import plan
from tvm_easyquant.search.driver import search

WORKERS = 2


def size(values) -> int:
    """Bytes of the arrays in some values."""
    found = []
    pickle.dumps(values, 5, buffer_callback=lambda buffer: found.append(buffer.raw().nbytes))
    return sum(found)


def timed(work, there=None) -> tuple[dict, object]:
    """(its seconds, what it returned); there: the `cluster.Cluster` that it runs on."""

    def seconds():
        others = there.client.run(time.process_time).values() if there else ()
        return np.array([time.perf_counter(), time.process_time(), sum(others)])

    sent, before = 0, seconds()
    if there is not None:
        scatter = there.client.scatter

        def counted(values, **options):
            nonlocal sent
            sent += size(values)
            return scatter(values, **options)

        there.client.scatter = counted
    result = work()
    if there is not None:
        there.client.scatter = scatter
    wall, here, workers = (round(float(x), 1) for x in seconds() - before)
    return {"wall": wall, "here": here, "workers": workers, "sent": round(sent / 1e6, 1)}, result


def _write(args, graph, found, rows) -> None:
    ratios = {
        what: statistics.median(
            row["one process"]["wall"] / row["two workers"]["wall"] for row in rows if row["what"] == what
        )
        for what in dict.fromkeys(row["what"] for row in rows)
    }
    result = {
        "machine": machine.describe(), "network": args.network, "images": args.images,
        "images_mb": round(size(found.samples) / 1e6, 1), "layers": len(graph.compute_nodes),
        "gmacs": round(graph.macs / 1e9, 3), "workers": WORKERS, "wall_ratio": ratios, "rows": rows,
    }  # fmt: skip
    write_text(args.json, json.dumps(result, indent=1) + "\n")


def main():
    from dask.distributed import LocalCluster

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--network", default="squeezenet1.1")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        graph = eq.load_onnx(random_networks.save(args.network, Path(folder)))
    images = [random_networks.pictures(1, seed)[0] for seed in range(args.images)]
    plan_, config = plan(graph), QuantConfig(search_images=args.images)
    found = calibrate(graph, plan_, images, config)
    start = start_table(graph, plan_, found, config)
    judged = labelled.load([(x, 0) for x in images]), networks.metrics_of(None)

    def searched():
        return search(graph, plan_, found, config, jobs=1).to_json()

    def evaluated():
        return networks.judge(judged, networks.in_numpy(graph, start), graph, warn=list)

    rows = []
    local = LocalCluster(n_workers=WORKERS, threads_per_worker=1, host="127.0.0.1", dashboard_address=None)
    with local:
        for round_ in range(args.rounds):
            for what, work in (("search", searched), ("evaluate in numpy", evaluated)):
                row = {"what": what, "round": round_}
                row["one process"], expected = timed(work)
                with cluster.connected(local.scheduler_address) as there:
                    row["two workers"], result = timed(work, there)
                    row["tasks"] = sum(there.done.values())
                assert result == expected, "another result on the cluster"
                row["load_average"] = round(os.getloadavg()[0], 1)
                rows.append(row)
                print(row, flush=True)
                _write(args, graph, found, rows)


if __name__ == "__main__":
    main()
