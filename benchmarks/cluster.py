"""Search and accuracy on a Dask cluster of two workers against one process, each of one thread.

    python benchmarks/cluster.py --json FILE [--network NAME ...] [--data DIR] [--images N] [--rounds N]

A network with random weights (`random_networks.py`), or one of the folder that --data names, is searched,
and judged in numpy on four times as many samples, once here and once on two worker processes of this
machine, in turn, ``--rounds`` times. ``wall`` is what a user waits, on a machine that may be busy; ``here``
and ``workers`` are CPU seconds of this process and of the workers, which say how the work is divided. The
results must be equal.

``traffic`` counts what a search sends to the cluster and has back from it, in MB as it is pickled:
``images``; the ``network``, with the scales where the search starts; what was ``decided``; the
``candidates``; the ``arguments`` that are a task's own; ``tensors`` of layers on images, which workers make
themselves (whatever is none of the others is counted there). ``between`` is what Dask says that the workers
sent each other. ``compiled`` says what judging the compiled network costs here.
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
from data import Network
from threadpoolctl import threadpool_limits

import tvm_easyquant as eq
from tvm_easyquant import cluster
from tvm_easyquant.errors import TVMMissing
from tvm_easyquant.files import write_text
from tvm_easyquant.host import installed
from tvm_easyquant.measure import networks
from tvm_easyquant.samples import labelled
from tvm_easyquant.scales.calibrate import calibrate, start_table
from tvm_easyquant.scales.numerics import QuantConfig, Scale
from tvm_easyquant.scales.partition import plan
from tvm_easyquant.search.driver import search
from tvm_easyquant.search.walk import Walk

WORKERS = 2


def size(value) -> int:
    """Bytes of a value as it is sent."""
    found = []
    text = pickle.dumps(value, 5, buffer_callback=lambda buffer: found.append(buffer.raw().nbytes))
    return len(text) + sum(found)


def mb(count: float) -> float:
    return round(count / 1e6, 1)


def read(name: str, folder: Path | None, count: int):
    """(graph, images) of a network."""
    if folder is not None:
        network = Network(folder, name)
        return eq.load_onnx(network.path), network.calibration(count)
    with tempfile.TemporaryDirectory() as where:
        graph = eq.load_onnx(random_networks.save(name, Path(where)))
    return graph, [random_networks.pictures(1, seed)[0] for seed in range(count)]


class Case:
    """One network and its images: what is run."""

    def __init__(self, name: str, folder: Path | None, count: int):
        self.graph, self.images = read(name, folder, count)
        self.plan, self.config = plan(self.graph), QuantConfig(search_images=count)
        self.found = calibrate(self.graph, self.plan, self.images, self.config)
        self.start = start_table(self.graph, self.plan, self.found, self.config)
        self.judged = labelled.load([(x, 0) for x in self.images * 4]), networks.metrics_of(None)

    def search(self) -> str:
        return search(self.graph, self.plan, self.found, self.config, jobs=1).to_json()

    def evaluate(self, both=None) -> dict:
        both = both or networks.in_numpy(self.graph, self.start)
        return networks.judge(self.judged, both, self.graph, warn=list)


def kind_of(value) -> str:
    """What a value is that all tasks, or some, are sent."""
    if isinstance(value, Walk):
        return "network"
    first = value[0] if isinstance(value, list) else None
    kinds = {dict: "images", tuple: "decided", Scale: "candidates"}
    return kinds.get(type(first), "tensors")


KINDS = ("images", "network", "decided", "candidates", "arguments", "tensors")


def traffic(case: Case, address: str) -> dict:
    """Of one search on the cluster."""

    def moved():
        return sum(there.client.run(lambda dask_worker: dask_worker.transfer_outgoing_bytes_total).values())

    bytes_, tasks, returned = dict.fromkeys(KINDS, 0), 0, []
    with cluster.connected(address) as there:
        client, before = there.client, moved()
        scatter, submit, run = client.scatter, client.submit, there.run

        def scattered(values, **options):
            for value in values:
                bytes_[kind_of(value)] += size(value)
            return scatter(values, **options)

        def submitted(function, version, work, *shared, **options):
            nonlocal tasks
            tasks, bytes_["arguments"] = tasks + 1, bytes_["arguments"] + len(work)
            return submit(function, version, work, *shared, **options)

        def ran(function, calls):
            found = run(function, calls)
            returned.append(size(found))
            return found

        client.scatter, client.submit, there.run = scattered, submitted, ran
        case.search()
        between = moved() - before
    return {
        "images": len(case.images), "sent": mb(sum(bytes_.values())),
        "kinds": {kind: mb(count) for kind, count in bytes_.items()}, "returned": mb(sum(returned)),
        "between": mb(between), "tasks": tasks, "exchanges": len(returned),
    }  # fmt: skip


def compiled(case: Case) -> dict | None:
    """CPU seconds to compile both networks, and of both on one sample; None without TVM."""
    try:
        host = installed()
    except TVMMissing:
        return None
    host.threads(1)
    clock = [time.process_time()]
    both = networks.built(host, case.graph, case.start, host.target(None))
    clock.append(time.process_time())
    case.evaluate(both)
    clock.append(time.process_time())
    case.evaluate(both)
    clock.append(time.process_time())
    made, _, judged = np.diff(clock)
    return {
        "compile": round(float(made), 1), "sample": round(float(judged) / len(case.judged[0]), 4)
    }  # fmt: skip


def timed(work, there=None) -> tuple[dict, object]:
    """(its seconds, what it returned); there: the `cluster.Cluster` that it runs on."""

    def seconds():
        others = there.client.run(time.process_time).values() if there else ()
        return np.array([time.perf_counter(), time.process_time(), sum(others)])

    before = seconds()
    with threadpool_limits(1):
        result = work()
    wall, here, workers = (round(float(x), 1) for x in seconds() - before)
    return {"wall": wall, "here": here, "workers": workers}, result


def medians(rows) -> dict:
    """{work: medians of its seconds over the rounds}."""
    found = {}
    for what in dict.fromkeys(row["what"] for row in rows):
        mine = [row for row in rows if row["what"] == what]
        found[what] = {
            how: {key: statistics.median(row[how][key] for row in mine) for key in mine[0][how]}
            for how in ("one process", "two workers")
        }
    return found


def measured(case: Case, address: str, rounds: int):
    """The rows of a network, one after the other."""
    for number in range(rounds):
        for what, work in (("search", case.search), ("evaluate in numpy", case.evaluate)):
            row: dict = {"what": what, "round": number}
            row["one process"], expected = timed(work)
            with cluster.connected(address) as there:
                row["two workers"], result = timed(work, there)
                row["tasks"] = sorted(there.done.values())
            assert result == expected, "another result on the cluster"
            row["load_average"] = round(os.getloadavg()[0], 1)
            yield row


def main():
    from dask.distributed import LocalCluster

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--network", nargs="+", default=["squeezenet1.1"], metavar="NAME")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="the folder of the networks and their images"
    )
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside", default="", help="what else ran, to be stored")
    args = parser.parse_args()
    result: dict = {
        "machine": machine.describe(),
        "workers": WORKERS,
        "beside": args.beside,
        "networks": {},
    }
    local = LocalCluster(n_workers=WORKERS, threads_per_worker=1, host="127.0.0.1", dashboard_address=None)
    with local:
        for name in args.network:
            print(f"{name}: calibration", flush=True)
            case = Case(name, args.data, args.images)
            graph = case.graph
            facts = result["networks"][name] = {
                "images": args.images, "images_mb": mb(size(case.images)), "judged": len(case.judged[0]),
                "layers": len(graph.compute_nodes), "gmacs": round(graph.macs / 1e9, 3), "traffic": [],
            }  # fmt: skip
            for count in (args.images, 2 * args.images):
                facts["traffic"].append(traffic(Case(name, args.data, count), local.scheduler_address))
                print(f"{name}: traffic {facts['traffic'][-1]}", flush=True)
            facts["compiled"] = compiled(case)
            print(f"{name}: compiled {facts['compiled']}", flush=True)
            rows: list[dict] = []
            for row in measured(case, local.scheduler_address, args.rounds):
                rows.append(row)
                facts |= {"medians": medians(rows), "rows": rows}
                print(f"{name}: {row}", flush=True)
                write_text(args.json, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
