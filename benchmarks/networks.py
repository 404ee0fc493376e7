"""Whole networks, batch 1, 224x224, random weights: ours against every runtime a user could pick instead.

    python benchmarks/networks.py --json FILE [--isa CLASS ... [--uncapped]] [--nets NAME ...] [--threads 1]
        [--peers NAME ...] [--peers-python PYTHON] [--relax-python PYTHON] [--records LOG ...]
        [--fp32-records LOG]

Every runner is a process of its own that sleeps while another runs; rounds time them one after the other,
then in reverse order, at real-time priority where that is allowed (a shared machine). ``--isa`` caps
everybody at a class of CPUs, which the stored rows name: ours and TVM's fp32 by -mcpu, the peers by what
they are told of the CPU (`cap`). With ``--uncapped`` the CPU is what it is, and its class is named; only
then does bf16 run. PYTHON is an environment with openvino, nncf, ncnn and pnnx (NNCF needs packages that
TVM 0.19 does not get along with); without it those peers are left out and named. The Python of
--relax-python is one with this package and today's apache-tvm: the same table, built by that host, is one
more runner.

Before ours is timed it must equal the numpy reference bit for bit. A peer's int8 must have a cosine of
more than 0.9 with its own fp32. Ratios are medians of the ratios of a round.
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

import machine
import numpy as np
import random_networks
from peers import CLASSES, Runner, capped, check_classes, target_of

import tvm_easyquant as eq
from topi_ext import isa
from tvm_easyquant.files import write_text
from tvm_easyquant.relay.build import build
from tvm_easyquant.relay.framework import NO_CSE, no_tophub, relay, tvm
from tvm_easyquant.relay.reference import execute

HERE = Path(__file__).resolve().parent
PEERS = ("onnxruntime", "openvino", "ncnn")
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
            return None if sample is None else {"image": sample}

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


def tvm_fp32(path, target, logs):
    module, params = relay.frontend.from_onnx(_load(path), {"image": (1, 3, 224, 224)}, freeze_params=True)
    with no_tophub(), history(logs), tvm.transform.PassContext(opt_level=3, config=NO_CSE):
        return relay.build(module, target, params=params)


def _load(path):
    import onnx

    return onnx.load(path)


def on_relax(python, path, table, target, file):
    """The library that the other host builds of a network and its table."""
    table.save(file.with_suffix(".json"))
    command = [python, "-c", ON_RELAX, path, file.with_suffix(".json"), target, file]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return file


def peers_models(path, samples, inputs, folder, args):
    """{runner: its model of the network}, made with the peers' own tools."""
    ort_int8(path, samples, folder / "onnxruntime_int8.onnx")
    models = {"onnxruntime-fp32": path, "onnxruntime-int8": folder / "onnxruntime_int8.onnx"}
    if args.peers_python:
        subprocess.run([args.peers_python, HERE / "peer_models.py", path, inputs, folder], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        models |= {f"openvino-{kind}": folder / f"openvino_{kind}.xml" for kind in ("fp32", "int8")}
        models |= {f"ncnn-{kind}": folder / f"ncnn_{kind}" for kind in ("fp32", "int8")}
        if args.uncapped and isa.host_flags() & {"avx512_bf16", "amx_bf16"}:
            models["openvino_bf16"] = folder / "openvino_fp32.xml"
    return models


def start(name, args, folder, stack):
    """{(runner, isa): Runner} and the facts of the network; ours verified."""
    path = random_networks.save(name, folder)
    samples = random_networks.pictures(8)
    inputs = folder / "inputs.npy"
    np.save(inputs, np.concatenate(samples))
    graph = eq.load_onnx(path)
    q = eq.quantize(graph, samples[:4], bits=7, method="minmax")  # the scales do not change the speed
    expected = execute(q.module, {"image": samples[0]})[0]
    cpus = sorted(os.sched_getaffinity(0))[-args.threads :]
    runners, sizes = {}, {}

    def run(key, isa_name, python, kind, model, env=None):
        runners[key, isa_name] = Runner(python, kind, model, inputs, args.threads, cpus, env)
        stack.callback(runners[key, isa_name].stop)

    def library(key, isa_name, built):
        file = folder / f"{key}_{isa_name}.so"
        built.export_library(str(file))
        sizes[key, isa_name] = file.stat().st_size
        run(key, isa_name, sys.executable, "tvm", file)

    for isa_name in args.isa:
        target = target_of(isa_name, args.uncapped)
        library("tvm_easyquant-int7", isa_name, build(q.module, target))
        if args.relax_python:
            file = on_relax(args.relax_python, path, q.table, target, folder / f"relax_{isa_name}.so")
            sizes["tvm_easyquant-int7-relax", isa_name] = file.stat().st_size
            run("tvm_easyquant-int7-relax", isa_name, args.relax_python, "tvm", file)
        if args.records:
            with history(args.records):
                library("tvm_easyquant-int7-tuned", isa_name, build(q.module, target))
        for key in [k for k, i in runners if i == isa_name and k.startswith("tvm_easyquant")]:
            if not np.array_equal(runners[key, isa_name].output(folder / "out.npy"), expected):
                raise SystemExit(f"error: {key} of {name} on {isa_name} differs from the reference")
        library("tvm-fp32", isa_name, tvm_fp32(path, target, None))
        if args.fp32_records:
            library("tvm-fp32-tuned", isa_name, tvm_fp32(path, target, [args.fp32_records]))
    models = peers_models(path, samples, inputs, folder, args)
    for isa_name in args.isa:
        for key, model in models.items():
            kind = key.partition("-")[0]
            peer = kind.removesuffix("_bf16")
            if peer not in args.peers:
                continue
            python = sys.executable if peer == "onnxruntime" else args.peers_python
            env = {} if args.uncapped else capped(python, peer, isa_name, args.scratch)
            try:
                run(key, isa_name, python, kind, model, env)
            except RuntimeError as error:
                print(f"{name}: left out: {key} on {isa_name}: {error}", flush=True)
    outputs = {key: r.output(folder / "out.npy").ravel().astype(float) for key, r in runners.items()}
    truth = outputs["tvm-fp32", args.isa[0]]
    alike = {k: float(o @ truth / np.sqrt((o @ o) * (truth @ truth))) for k, o in outputs.items()}
    return runners, {"macs": graph.macs, "cosine": alike, "bytes": sizes}


def measure(name, args, facts):
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        runners, found = start(name, args, Path(scratch), stack)
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
        low = found["cosine"][key] < 0.9 and "int" in runner
        row = {
            "net": name, "runner": runner, "version": versions[key], "isa": isa_name,
            "capped": not args.uncapped, "threads": args.threads,
            "ms_median": round(float(np.median(values)), 3),
            "ms_min": round(min(values), 3), "macs": found["macs"],
            "verified": "exact" if runner.startswith("tvm_easyquant") else not low,
            "cosine_to_fp32": round(found["cosine"][key], 4), "peak_rss_mib": round(memory[key], 1),
            "artefact_mib": round(found["bytes"][key] / 2**20, 2) if key in found["bytes"] else None,
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
            module, params = relay.frontend.from_onnx(_load(path), {"image": (1, 3, 224, 224)},
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
    """Measure our kernels for the networks on each ``--isa`` and append to ``--records``."""
    from tvm_easyquant.relay.tune import tune

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.nets:
            graph = eq.load_onnx(random_networks.save(name, Path(scratch)))
            module = eq.quantize(graph, random_networks.pictures(4), bits=7, method="minmax").module
            for isa_name in args.isa:
                found = tune(module, args.records[0], target_of(isa_name), tuner="random",
                             trials=args.tune_ours, alternatives=0)  # fmt: skip
                print(f"{name} on {isa_name}: {found}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--isa", nargs="+", default=["avx2"], choices=CLASSES)
    parser.add_argument("--uncapped", action="store_true", help="the CPU as it is; --isa names its class")
    parser.add_argument("--nets", nargs="+", default=list(random_networks.NETWORKS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--peers-python", help="Python of an environment with openvino, nncf, ncnn, pnnx")
    parser.add_argument("--relax-python", help="Python of an environment with this and today's apache-tvm")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "easyquant_peers",
                        help="where capped copies of the peers' packages are kept")  # fmt: skip
    parser.add_argument("--records", type=Path, nargs="+", help="tuning records for ours")
    parser.add_argument("--fp32-records", type=Path, help="tuning records for TVM's fp32")
    parser.add_argument("--tune-fp32", type=int, metavar="TRIALS", help="make --fp32-records and end")
    parser.add_argument("--tune-ours", type=int, metavar="TRIALS", help="append to --records and end")
    args = parser.parse_args()
    check_classes(args.isa, args.uncapped)
    if args.peers_python and not shutil.which(args.peers_python):
        raise SystemExit(f"error: --peers-python: there is no {args.peers_python}")
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
            where = f"{name:15}{row['runner']:26}{row['isa']:11}"
            print(f"{where}{times}{row['peak_rss_mib']:9.0f} MiB", flush=True)
        if args.json:
            write_text(args.json, json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
