"""Whole networks, batch 1, random weights: ours against every runtime a user could pick instead.

    python benchmarks/networks.py --json FILE [--isa CLASS ... [--uncapped]] [--nets NAME ...]
        [--also NAME=ONNX ...] [--threads 1] [--peers NAME ...] [--peers-python PYTHON]
        [--relax-python PYTHON] [--records LOG ...]
        [--fp32-records LOG]

NAME is one of `random_networks`: the usual six, 224x224, are the default, ``today`` stands for all of
`OF_TODAY`. --also adds a file, of one input (1, 3, H, W).

Every runner is a process of its own that sleeps while another runs; rounds time them one after the other,
then in reverse order, at real-time priority where that is allowed (a shared machine). ``--isa`` caps
everybody at a class of CPUs, which the stored rows name: ours and TVM's fp32 by -mcpu, the peers by what
they are told of the CPU (`cap`). With ``--uncapped`` the CPU is what it is, and its class is named; only
then does bf16 run. PYTHON is an environment with openvino, nncf, ncnn and pnnx (NNCF needs packages that
TVM 0.19 does not get along with); without it those peers are left out and named. The Python of
--relax-python is one with this package and today's apache-tvm: the same table, built by that host, is one
more runner.

Before ours is timed it must equal the numpy reference bit for bit: its outputs, or, where a float operator
is before those, every stored tensor that has none before it (the outputs have a cosine above 0.999 then).
A peer's int8 must have a cosine of more than 0.9 with fp32. Ratios are medians of the ratios of a round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["TVM_NUM_THREADS"] = "1"
os.environ.setdefault("TOPHUB_LOCATION", "NONE")

import accuracy
import machine
import numpy as np
import onnx
import onnxruntime
import random_networks
from peers import CLASSES, Runner, capped, check_classes, target_of

import tvm_easyquant as eq
from topi_ext import isa
from tvm_easyquant.files import write_text
from tvm_easyquant.relay.build import build
from tvm_easyquant.relay.framework import NO_CSE, no_tophub, relay, tvm
from tvm_easyquant.scales.integer import run_integer

HERE = Path(__file__).resolve().parent
PEERS = ("tvm", "onnxruntime", "openvino", "ncnn")
#: what another Python, of the other host, does with a network and its table
ON_RELAX = """
import sys
import tvm_easyquant as eq

path, table, target, file = sys.argv[1:]
graph, table = eq.load(path), eq.ScaleTable.load(table)
graph = table.prepared(graph)
eq.Quantized(table, graph, table.check(graph)).build(target).export(file)
"""


def ort_int8(path, samples, made):
    """The network quantized by ONNX Runtime (static QDQ, MinMax, u8s8, per channel, 7-bit weights where
    the CPU has no VNNI, as its documentation advises)."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.items = iter(samples)

        def get_next(self):
            sample = next(self.items, None)
            return None if sample is None else {name: sample}

    name, _ = the_input(path)
    prepared = made.with_suffix(".prepared.onnx")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(prepared), str(made), Reader(), per_channel=True,
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        reduce_range=not (isa.host_has("avx512vnni") or isa.host_has("avxvnni")),
    )  # fmt: skip


def history(logs):
    from tvm import autotvm

    records = [record for log in logs or () for record in autotvm.record.load_from_file(str(log))]
    return autotvm.apply_history_best(records) if records else contextlib.nullcontext()


def tuned(logs, target):
    """While it is entered, the records of ours that are of the target's CPU decide."""
    from tvm import autotvm
    from tvm import target as targets

    from tvm_easyquant.relay.tune import read_log

    mcpu = targets.Target(target).attrs["mcpu"]
    records = [record for log in logs for record in read_log(log) if record[0].target.attrs["mcpu"] == mcpu]
    return autotvm.apply_history_best(records)


def the_input(path):
    """The name and the shape of a model's one input."""
    model = onnx.load(path)
    constants = {tensor.name for tensor in model.graph.initializer}
    (found,) = [each for each in model.graph.input if each.name not in constants]
    return found.name, tuple(d.dim_value for d in found.type.tensor_type.shape.dim)


def tvm_fp32(path, target, logs):
    module, params = relay.frontend.from_onnx(onnx.load(path), dict([the_input(path)]), freeze_params=True)
    with no_tophub(), history(logs), tvm.transform.PassContext(opt_level=3, config=NO_CSE):
        return relay.build(module, target, params=params)


def on_relax(python, path, table, target, file):
    """The library that the other host builds of a network and its table."""
    table.save(file.with_suffix(".json"))
    command = [python, "-c", ON_RELAX, path, file.with_suffix(".json"), target, file]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return file


class Race:
    """One network and its runners; ours verified.

    runners: {(runner, isa): Runner}; sizes: bytes of the libraries; left_out: told as they are found.
    """

    def __init__(self, name, args, folder, stack):
        self.name, self.args, self.folder, self.stack = name, args, folder, stack
        self.path = args.files.get(name) or random_networks.save(name, folder)
        self.entry, shape = the_input(self.path)
        self.samples = random_networks.pictures(8, shape=shape[2:])
        self.inputs = folder / "inputs.npy"
        np.save(self.inputs, np.concatenate(self.samples))
        self.graph = eq.load_onnx(self.path)
        self.q = random_networks.quantized(self.graph, self.samples)
        self.runners, self.sizes = {}, {}
        for isa_name in args.isa:
            self._ours(isa_name, target_of(isa_name, args.uncapped))
        if "tvm" in args.peers:
            for isa_name in args.isa:
                self._tvm(isa_name, target_of(isa_name, args.uncapped))
        models = self._peer_models()
        for isa_name in args.isa:
            for key, model in models.items():
                self._peer(key, isa_name, model)

    def _run(self, key, isa_name, python, kind, model, env=None):
        cpus = sorted(os.sched_getaffinity(0))[-self.args.threads :]
        runner = Runner(python, kind, model, self.inputs, self.args.threads, cpus, env)
        self.stack.callback(runner.stop)
        self.runners[key, isa_name] = runner
        return runner

    def _library(self, key, isa_name, built):
        file = self.folder / f"{key}_{isa_name}.so"
        built.export_library(str(file))
        self.sizes[key, isa_name] = file.stat().st_size
        self._run(key, isa_name, sys.executable, "tvm", file)

    def _leave_out(self, key, why):
        print(f"{self.name}: left out: {key}: {why}", flush=True)

    def _ours(self, isa_name, target):
        args, q = self.args, self.q
        self._library("tvm_easyquant-int7", isa_name, build(q.module, target))
        if args.relax_python:
            file = self.folder / f"relax_{isa_name}.so"
            on_relax(args.relax_python, self.path, q.table, target, file)
            self.sizes["tvm_easyquant-int7-relax", isa_name] = file.stat().st_size
            self._run("tvm_easyquant-int7-relax", isa_name, args.relax_python, "tvm", file)
        if args.records:
            with tuned(args.records, target):
                self._library("tvm_easyquant-int7-tuned", isa_name, build(q.module, target))
        made = run_integer(q.graph, q.table, {self.entry: self.samples[0]}).values()
        expected = np.concatenate([y.ravel() for y in made])
        behind = accuracy.behind_floats(q) | set(q.plan.floats)
        near = bool(behind & set(q.graph.outputs))
        if near:
            feeds = [{self.entry: self.samples[0]}]
            found = accuracy.exact(q, eq.Executor(build(q.module, target)), target, feeds, behind)
            if found["values_differing"]:
                raise SystemExit(f"error: tensors of {self.name} on {isa_name} differ from the reference")
        for (key, of), runner in self.runners.items():
            if of == isa_name:
                made = runner.output(self.folder / "o.npy")
                if not (cosine(made, expected) > 0.999 if near else np.array_equal(made, expected)):
                    raise SystemExit(
                        f"error: {key} of {self.name} on {isa_name} differs from the reference"
                    )

    def _tvm(self, isa_name, target):
        self._library("tvm-fp32", isa_name, tvm_fp32(self.path, target, None))
        if self.args.fp32_records:
            built = tvm_fp32(self.path, target, [self.args.fp32_records])
            self._library("tvm-fp32-tuned", isa_name, built)

    def _peer_models(self):
        """{runner: file}, of the peers that convert the network."""
        args, folder, models = self.args, self.folder, {}
        if "onnxruntime" in args.peers:
            ort_int8(self.path, self.samples, folder / "onnxruntime_int8.onnx")
            models = {"onnxruntime-fp32": self.path, "onnxruntime-int8": folder / "onnxruntime_int8.onnx"}
        if args.peers_python:  # ncnn may end that process; then only its files are missing
            command = [args.peers_python, HERE / "peer_models.py", self.path, self.inputs, folder]
            subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if (
                "openvino" in args.peers
                and args.uncapped
                and isa.host_flags() & {"avx512_bf16", "amx_bf16"}
            ):
                models["openvino_bf16"] = folder / "openvino_fp32.xml"
            files = {f"openvino-{k}": folder / f"openvino_{k}.xml" for k in ("fp32", "int8")}
            files |= {f"ncnn-{k}": folder / f"ncnn_{k}.bin" for k in ("fp32", "int8")}
            for key, file in files.items():
                if key.partition("-")[0] in args.peers and file.exists():
                    models[key] = file.with_suffix("") if file.suffix == ".bin" else file
                elif key.partition("-")[0] in args.peers:
                    self._leave_out(key, "its tools do not convert it")
        return models

    def _peer(self, key, isa_name, model):
        kind = key.partition("-")[0]
        peer = kind.removesuffix("_bf16")
        python = sys.executable if peer == "onnxruntime" else self.args.peers_python
        try:
            env = {} if self.args.uncapped else capped(python, peer, isa_name, self.args.scratch)
            self._run(key, isa_name, python, kind, model, env).output(self.folder / "o.npy")
        except RuntimeError as error:  # ncnn ends where it cannot run what its tools made
            self.runners.pop((key, isa_name), None)
            self._leave_out(f"{key} on {isa_name}", error)

    def cosines(self):
        """{(runner, isa): of its outputs with those of fp32}."""
        session = onnxruntime.InferenceSession(self.path, providers=["CPUExecutionProvider"])
        truth = np.concatenate([y.ravel() for y in session.run(None, {self.entry: self.samples[0]})])
        made = {key: runner.output(self.folder / "o.npy") for key, runner in self.runners.items()}
        return {key: cosine(y, truth) for key, y in made.items()}


def cosine(a, b):
    a, b = a.astype(float), b.astype(float)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def measure(name, args, facts):
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        race = Race(name, args, Path(scratch), stack)
        runners, cosines = race.runners, race.cosines()
        times = {key: [] for key in runners}
        number = {key: max(1, int(60 / float(r.ask(2)))) for key, r in runners.items()}
        for i in range(args.rounds):
            for key in list(runners)[:: 1 if i % 2 else -1]:
                times[key].append(float(runners[key].ask(number[key])))
        memory = {key: float(r.ask("memory")) for key, r in runners.items()}
        versions = {key: r.version for key, r in runners.items()}
    rows = []
    for key, values in times.items():
        runner, isa_name = key
        low = cosines[key] < 0.9 and "int" in runner
        row = {
            "net": name, "runner": runner, "version": versions[key], "isa": isa_name,
            "capped": not args.uncapped, "threads": args.threads,
            "ms_median": round(float(np.median(values)), 3),
            "ms_min": round(min(values), 3), "macs": race.graph.macs,
            "verified": "exact" if runner.startswith("tvm_easyquant") else not low,
            "cosine_to_fp32": round(cosines[key], 4), "peak_rss_mib": round(memory[key], 1),
            "artefact_mib": round(race.sizes[key] / 2**20, 2) if key in race.sizes else None,
            "cpu": facts["cpu"],
        }  # fmt: skip
        for mine in args.isa:
            ours = times["tvm_easyquant-int7", mine]
            row[f"over_ours_{mine}"] = round(float(np.median(np.array(values) / ours)), 3)
        rows.append(row)
    return rows


def tune_fp32(args):
    """Tune TVM's own fp32 convolutions of the networks, for ``--fp32-records``."""
    from tvm import autotvm

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    target = tvm.target.Target(target_of(args.isa[0]))
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.nets:
            path = random_networks.save(name, Path(scratch))
            module, params = relay.frontend.from_onnx(onnx.load(path), dict([the_input(path)]),
                                                      freeze_params=True)  # fmt: skip
            tasks = autotvm.task.extract_from_program(module["main"], params, target)
            for i, task in enumerate(tasks, 1):
                tuner = autotvm.tuner.XGBTuner(task, loss_type="rank-binary", feature_type="knob")
                tuner.tune(
                    n_trial=min(args.tune_fp32, len(task.config_space)),
                    measure_option=autotvm.measure_option(
                        autotvm.LocalBuilder(n_parallel=1),
                        autotvm.LocalRunner(number=2, repeat=2, min_repeat_ms=20),
                    ),
                    callbacks=[autotvm.callback.log_to_file(str(args.fp32_records))],
                )
                print(f"{name}: {i} of {len(tasks)} tasks", flush=True)


def tune_ours(args):
    """Measure our kernels for the networks on each ``--isa``, of each layer the next legal one too, and
    append to ``--records``."""
    from tvm_easyquant.relay.tune import tune

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.nets:
            graph = eq.load_onnx(random_networks.save(name, Path(scratch)))
            module = random_networks.quantized(graph, random_networks.pictures(4)).module
            for isa_name in args.isa:
                found = tune(module, args.records[0], target_of(isa_name), tuner="exhaustive",
                             trials=args.tune_ours)  # fmt: skip
                print(f"{name} on {isa_name}: {found}", flush=True)


def arguments(description):
    """The parser of what every race of networks is told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--isa", nargs="+", default=["avx2"], choices=CLASSES)
    parser.add_argument("--uncapped", action="store_true", help="the CPU as it is; --isa names its class")
    parser.add_argument("--nets", nargs="+", default=list(random_networks.NETWORKS))
    parser.add_argument("--also", nargs="+", default=[], metavar="NAME=ONNX", help="networks of files")
    parser.add_argument("--peers-python", help="Python of an environment with openvino, nncf, ncnn, pnnx")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "easyquant_peers",
                        help="where capped copies of the peers' packages are kept")  # fmt: skip
    return parser


def check(args):
    """Complete what `arguments` gave; SystemExit if it asks for what is not here."""
    if args.nets == ["today"]:
        args.nets = list(random_networks.OF_TODAY)
    args.files = {name: Path(file) for name, _, file in (word.partition("=") for word in args.also)}
    args.nets += [name for name in args.files if name not in args.nets]
    check_classes(args.isa, args.uncapped)
    if args.peers_python and not shutil.which(args.peers_python):
        raise SystemExit(f"error: --peers-python: there is no {args.peers_python}")


def main():
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--relax-python", help="Python of an environment with this and today's apache-tvm")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--records", type=Path, nargs="+", help="tuning records for ours")
    parser.add_argument("--fp32-records", type=Path, help="tuning records for TVM's fp32")
    parser.add_argument("--tune-fp32", type=int, metavar="TRIALS", help="make --fp32-records and end")
    parser.add_argument("--tune-ours", type=int, metavar="TRIALS", help="append to --records and end")
    args = parser.parse_args()
    check(args)
    if args.relax_python and not shutil.which(args.relax_python):
        raise SystemExit(f"error: --relax-python: there is no {args.relax_python}")
    if args.tune_fp32:
        return tune_fp32(args)
    if args.tune_ours:
        return tune_ours(args)
    os.environ["TVM_NUM_THREADS"] = str(args.threads)
    facts, rows = machine.describe(), []
    for name in args.nets:
        mine = measure(name, args, facts)
        rows += mine
        for row in mine:
            times = f"{row['ms_median']:9.2f} ms{row['over_ours_' + args.isa[0]]:7.2f}x"
            where = f"{name:20}{row['runner']:26}{row['isa']:11}"
            print(f"{where}{times}{row['peak_rss_mib']:9.0f} MiB", flush=True)
        if args.json:
            write_text(args.json, json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
