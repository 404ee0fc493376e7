"""Images a second on all cores of the machine: ours against the int8 peers, the best mode of each.

    python benchmarks/throughput.py --peers-python PYTHON --json FILE [--isa CLASS ...] [--nets NAME ...]

The networks, the classes of CPUs and the check of ours are those of `networks`. `MODES` says what runs: as
many processes as cores, each with one thread and a core of its own; calls at once in one process (our pool
of contexts, OpenVINO's streams under its THROUGHPUT hint, as many as it chooses); all threads for one call.
All take a batch of 8, too. Every mode runs for ``SECONDS``, or for ``CALLS`` calls where that takes
longer, in turn, and in reverse order in the next round; a first round warms up. ``images_per_second`` is
the median of the rounds. ``over_ours`` is the rate of our best mode over the row's, the median of the
rounds' ratios: above 1, ours is faster. A mode that fails on a network is told and left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from pathlib import Path

import machine
import networks
import numpy as np
from peers import target_of
from runner import of_batch

import tvm_easyquant as eq
from tvm_easyquant.errors import EasyQuantError
from tvm_easyquant.files import write_text

OURS = "tvm_easyquant-int7"
SECONDS, CALLS, LEAD = 2.0, 30, 0.2
#: runner, mode, batch, kind of `runner`, whether each core has a process of its own
MODES = (
    (OURS, "processes", 1, "tvm", True),
    (OURS, "processes", 8, "tvm", True),
    (OURS, "pool", 1, "tvm_pool", False),
    (OURS, "threads", 1, "tvm", False),
    ("openvino-int8", "streams", 1, "openvino_streams", False),
    ("openvino-int8", "streams", 8, "openvino_streams", False),
    ("openvino-int8", "processes", 1, "openvino", True),
    ("openvino-int8", "processes", 8, "openvino", True),
    ("onnxruntime-int8", "processes", 1, "onnxruntime", True),
    ("onnxruntime-int8", "processes", 8, "onnxruntime", True),
    ("onnxruntime-int8", "threads", 1, "onnxruntime", False),
    ("onnxruntime-int8", "threads", 8, "onnxruntime", False),
)


class Race(networks.Race):
    """One network and its int8 runners of one thread, ours verified."""

    def _peer_models(self):
        return {key: model for key, model in super()._peer_models().items() if key.endswith("int8")}

    def _of_batch(self, isa_name, batch):
        """Our library of the same table for a batch."""
        file = self.folder / f"{OURS}_{isa_name}_{batch}.so"
        if not file.exists():
            model = file.with_suffix(".onnx")
            model.write_bytes(of_batch(self.path, batch))
            graph = self.q.table.at_shapes(self.q.graph, eq.load_onnx(model))
            target = target_of(isa_name, self.args.uncapped)
            eq.Quantized(self.q.table, graph, self.q.table.check(graph)).build(target).export(file)
        return file

    def mode(self, isa_name, runner, mode, batch, kind, split):
        """The started processes of a mode, or None; each gives what the runner alone gives."""
        cores, one = sorted(os.sched_getaffinity(0)), self.runners.get((runner, isa_name))
        if one is None:
            return None
        try:
            model = self._of_batch(isa_name, batch) if runner == OURS and batch > 1 else one.model
            group = []
            for cpus in [[core] for core in cores] if split else [cores]:
                group.append(one.another(kind, len(cpus), cpus, batch, model))
                self.stack.callback(group[-1].stop)
            alone, *made = (each.output(self.folder / "o.npy") for each in (one, *group))
        except (RuntimeError, BrokenPipeError, EasyQuantError) as error:
            self._leave_out(f"{runner}, {mode}, batch {batch}, on {isa_name}", error)
            return None
        for found in made:
            if runner == OURS and not np.array_equal(found, alone):
                raise SystemExit(f"error: {mode} of {self.name} on {isa_name} differ from one call alone")
            if networks.cosine(found, alone) < 0.99:
                self._leave_out(f"{runner}, {mode}, batch {batch}, on {isa_name}", "its outputs differ")
                return None
        return group


def images(group, batch, seconds):
    """Images a second of processes that run at once."""
    start = time.monotonic() + LEAD
    for runner in group:
        runner.tell(f"rate {start} {seconds}")
    return batch * sum(float(runner.answer()) for runner in group)


def measure(name, args, facts):
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        race, groups = Race(name, args, Path(scratch), stack), {}
        for isa_name in args.isa:
            for runner, mode, batch, kind, split in MODES:
                group = race.mode(isa_name, runner, mode, batch, kind, split)
                if group:
                    groups[isa_name, runner, mode, batch] = group
        first = {key: images(group, key[-1], SECONDS) for key, group in groups.items()}
        seconds = {key: max(SECONDS, CALLS * key[-1] / rate) for key, rate in first.items()}
        rates = {key: [] for key in groups}
        for i in range(args.rounds):
            for key in list(groups)[:: 1 if i % 2 else -1]:
                rates[key].append(images(groups[key], key[-1], seconds[key]))
        versions = {key: group[0].version for key, group in groups.items()}
    rates = {key: np.array(values) for key, values in rates.items()}
    rows = []
    for key, values in rates.items():
        isa_name, runner, mode, batch = key
        ours = max((rates[k] for k in rates if k[:2] == (isa_name, OURS)), key=np.median)
        low, high = np.quantile(ours / values, (0.25, 0.75))
        rows.append({
            "net": name, "runner": runner, "version": versions[key], "mode": mode, "batch": batch,
            "isa": isa_name, "capped": not args.uncapped, "cores": len(os.sched_getaffinity(0)),
            "images_per_second": round(float(np.median(values)), 2),
            "over_ours": round(float(np.median(ours / values)), 3),
            "over_ours_quartiles": [round(float(low), 3), round(float(high), 3)],
            "cpu": machine.cpu(facts), "commit": facts["commit"],
        })  # fmt: skip
    return rows


def main():
    parser = networks.arguments(__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    networks.check(args)
    args.peers, args.threads = ("onnxruntime", "openvino"), 1
    args.relax_python = args.records = args.fp32_records = None
    facts, rows = machine.describe(), []
    for name in args.nets:
        mine = measure(name, args, facts)
        rows += mine
        for row in mine:
            how = f"{row['runner']:20}{row['mode']:11}batch {row['batch']:<3}{row['isa']:11}"
            print(f"{name:16}{how}{row['images_per_second']:9.1f}/s{row['over_ours']:7.2f}", flush=True)
        if args.json:
            write_text(args.json, json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
