"""Accuracy of the compiled integer networks and of the other tools, paired with fp32 on the same images.

    python benchmarks/accuracy.py --data DIR --json FILE [--nets NAME ...] [--methods NAME ...]
        [--runners ours onnxruntime openvino relay_quantize] [--peers-python PYTHON] [--images N]

For every network: fp32 (the float module compiled by TVM), then INT8 and INT7 by each of our methods,
*executed by the compiled integer module*, then ONNX Runtime's static quantization, OpenVINO with NNCF and
TVM's own relay.quantize, all from the same calibration images and on the same test images. ``gained`` and
``lost`` count the images that only the integer network, or only fp32, gets right; ``interval`` is the 95 %
interval of the paired difference in points and ``p`` that of the sign test (`tvm_easyquant.evaluate`).

With our own methods the first ``--exact`` images also run through the numpy network that the search
sees: ``layers_compared`` stored tensors and the outputs, of which ``values_differing`` must be 0. ``fp32``
keeps which images fp32 gets right, packed bits in hexadecimal.

Rows that FILE already holds, made with the same settings, versions and quantizer source (``code``), are
kept: an interrupted run goes on where it was. PYTHON is an environment with openvino and nncf; without it
those rows are left out and named.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
import numpy as np
from data import NETWORKS, Network

import tvm_easyquant as eq
from tvm_easyquant.evaluate import compare, evaluate, top
from tvm_easyquant.files import write_text
from tvm_easyquant.network.layout import to_nchw
from tvm_easyquant.progress import Bar, peak_memory_gib
from tvm_easyquant.relay.build import build, host_target
from tvm_easyquant.relay.framework import no_tophub
from tvm_easyquant.relay.rewrite import rewrite
from tvm_easyquant.scales import numerics
from tvm_easyquant.scales.integer import Sample, Scales
from tvm_easyquant.scales.numerics import DEFAULT_METHOD

ROOT = Path(__file__).resolve().parent.parent
#: what the integers of a quantized network depend on: the quantizer and the norm, not the kernels
SOURCES = (
    *(f"tvm_easyquant/{room}/*.py" for room in ("network", "scales", "search")),
    *(f"tvm_easyquant/{name}.py" for name in (
        "workflow", "readers/onnx_file", "readers/onnx_model", "readers/onnx_float", "readers/onnx_op",
        "relay/rewrite")),
    "topi_ext/reference.py",
    "topi_ext/function.py",
)  # fmt: skip
#: name -> settings of `quantize`; kl_signed is the baseline of the paper
METHODS = {
    **{name: dict(method=name) for name in numerics.METHODS},
    "kl_signed": dict(method="kl", unsigned=False),
}
SHOWN = tuple(dict.fromkeys(("minmax", "kl", "kl_signed", "easyquant", DEFAULT_METHOD)))
ORT = {
    f"{method}{' reduce_range' * reduce}": dict(calibrate_method=method, reduce_range=bool(reduce))
    for method in ("MinMax", "Entropy", "Percentile")
    for reduce in (0, 1)
}
#: runner -> {name: settings}
PEERS = {
    "onnxruntime": ORT,
    "openvino": {"nncf": dict(preset="performance"), "nncf mixed": dict(preset="mixed")},
    "relay_quantize": {
        "kl": dict(calibrate_mode="kl_divergence", weight_scale="max"),
        "global scale": dict(calibrate_mode="global_scale", global_scale=8.0),
    },
}


def float_executor(path, target):
    """The float network, compiled by TVM with its default schedules."""
    import onnx
    import tvm
    from tvm import relay

    module, params = relay.frontend.from_onnx(onnx.load(path), freeze_params=True)
    with no_tophub(), tvm.transform.PassContext(opt_level=3):
        return eq.Executor(relay.build(module, target, params=params))


def code():
    """A digest of the sources that decide our integers."""
    digest = hashlib.sha256()
    for pattern in SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def behind_floats(q) -> set[str]:
    """The nodes with a float operator before them: its last bits, which are the compiler's, reach them."""
    found: set[str] = set()
    for node in q.graph:
        if any(t in q.plan.floats or t in found for t in node.inputs):
            found.add(node.name)
    return found


def exact(q, executor, target, feeds, but=()):
    """Tensors compared on these feeds, without those of ``but``, and values that the numpy network of the
    search has otherwise.

    An output that a float operator makes is no integer's: ``float_outputs_apart`` is the largest difference
    there, relative to the largest value.
    """
    taps = [t for site in q.plan.sites.values() for t in site.tensors if q.graph[t].op != "input"]
    taps = [t for t in taps if t not in but]
    tapped = eq.Executor(build(rewrite(q.graph, q.table, taps), target))
    scales, differing, apart = Scales.of_table(q.graph, q.plan, q.table), 0, 0.0
    for feed in feeds:
        sample = Sample(feed)
        for node in q.graph:
            sample.advance(node, scales)
        want = [to_nchw(sample.real_value(t, scales)) for t in q.graph.outputs]
        for name, a, b in zip(q.graph.outputs, want, executor(feed), strict=True):
            if name in q.plan.floats:
                apart = max(apart, float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)))
            else:
                differing += int((a != b).sum())
        got = tapped(feed)[len(want) :]
        for tensor, value in zip(taps, got, strict=True):
            differing += int((sample.stored_value(tensor, scales) != value).sum())
    found = {"exact_images": len(feeds), "layers_compared": len(taps), "values_differing": differing}
    return found | ({"float_outputs_apart": apart} if apart else {})


class Bench:
    """One network: its images as arrays in a scratch folder, fp32's scores, and the rows to come."""

    def __init__(self, args, name, folder, facts, known):
        self.args, self.folder, self.known = args, folder, known
        self.network = Network(args.data, name)
        self.target = args.target or host_target()
        self.count = min(args.images or len(self.network.test_set), len(self.network.test_set))
        self.base = {"net": name, "n": self.count, "calibration_images": args.calibration,
                     "cpu": machine.cpu(facts), "vnni": facts["vnni"], "target": self.target}  # fmt: skip
        self.fp32 = None

    def prepare(self):
        """The images, decoded once; scores of fp32."""
        if self.fp32 is not None:
            return
        pairs = list(self.network.test(self.count))
        self.labels = [label for _, label in pairs]
        np.save(self.folder / "inputs.npy", np.stack([x for x, _ in pairs]))
        del pairs
        self.inputs = np.load(self.folder / "inputs.npy", mmap_mode="r")
        self.calibration = self.network.calibration(self.args.calibration)
        np.save(self.folder / "calibration.npy", np.stack(self.calibration))
        self.graph = eq.load_onnx(self.network.path)
        (self.tensor,) = self.graph.inputs
        key = f"{self.base['net']} {self.count} {self.target}"
        if key not in self.known:
            found = self.score(float_executor(self.network.path, self.target), "fp32")
            self.known[key] = {m: np.packbits(s.astype(bool)).tobytes().hex() for m, s in found.items()}
        self.fp32 = {
            m: np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[: self.count].astype(float)
            for m, text in self.known[key].items()
        }

    def score(self, run, what):
        bar = Bar()
        try:
            pairs = ((np.asarray(x), y) for x, y in zip(self.inputs, self.labels, strict=True))
            metrics = {"top1": top(1)} if self.base["net"].startswith("ocr") else None
            return evaluate(run, lambda: pairs, inputs=[self.tensor], metrics=metrics, progress=bar,
                            what=f"{self.base['net']} {what}")  # fmt: skip
        finally:
            bar.close()

    def row(self, scores, **facts):
        found = compare(scores["top1"], self.fp32["top1"])
        row = {**self.base, **facts, "top1": round(found.value, 3), "fp32_top1": round(found.reference, 3),
               "difference": round(found.difference, 3), "gained": found.gained,
               "lost": found.lost, "p": round(found.p, 4),
               "interval": [round(limit, 3) for limit in found.interval]}  # fmt: skip
        if "top5" in scores:
            row["top5"], row["fp32_top5"] = (
                round(100 * float(s["top5"].mean()), 3) for s in (scores, self.fp32)
            )
        return row

    def ours(self, name, bits):
        self.prepare()
        started = time.perf_counter()
        q = eq.quantize(self.graph, self.calibration, bits=bits, **METHODS[name])
        seconds = time.perf_counter() - started
        executor = eq.Executor(q.build(self.target))
        scores = self.score(executor, f"{name} INT{bits}")
        first = [{self.tensor: np.asarray(x)} for x in self.inputs[: self.args.exact]]
        compared = exact(q, executor, self.target, first) if name.startswith("easyquant_") else {}
        known = [row for row in q.layers if "cosine" in row]
        worst = min(known, key=lambda row: row["cosine"]) if known else None
        return self.row(
            scores, quantize_seconds=round(seconds, 1), peak_memory_gib=round(peak_memory_gib(), 2),
            coverage_percent=round(q.coverage, 2), **compared,
            worst_layer=worst and worst["layer"], worst_cosine=worst and round(worst["cosine"], 5),
        )  # fmt: skip

    def peer(self, runner, names, python):
        """A row for each of a runner's settings, as they are done."""
        self.prepare()
        settings = {name: PEERS[runner][name] for name in names}
        for name, facts, outputs in from_peers(runner, self.network.path, self.folder, settings, python):
            if outputs is None:
                yield name, {**self.base, **facts}
                continue
            answers = iter(outputs[0])
            yield name, self.row(self.score(lambda feed: [next(answers)], f"{runner} {name}"), **facts)  # noqa: B023


def from_peers(runner, model, folder, settings, python):
    """(setting's name, facts, outputs) as `accuracy_peers.py` is done with them, in the environment of
    ``python``; outputs: of all inputs, an array for each output, or None where ``facts`` say what failed.

    folder: where the inputs lie, as that script takes them. settings: {name: what the tool is given}.
    """
    script, left = ROOT / "benchmarks" / "accuracy_peers.py", list(settings)
    command = [python, script, runner, model, folder, json.dumps(settings)]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.DEVNULL) as child:  # fmt: skip
        for line in child.stdout:
            if not line.startswith('{"name"'):
                continue  # what the tool itself says
            facts = json.loads(line)
            name = facts.pop("name")
            left.remove(name)
            if "failed" in facts:
                yield name, facts, None
                continue
            file = folder / f"outputs_{list(settings).index(name)}.npz"
            with np.load(file) as found:
                outputs = [found[key] for key in sorted(found, key=int)]
            file.unlink()
            yield name, facts, outputs
    for name in left:
        yield name, {"failed": f"the process ended with {child.returncode}"}, None


def wanted(args):
    """(runner, method, bits, settings) of every row, ours first."""
    if "ours" in args.runners:
        for method in args.methods:
            settings = {**METHODS[method], "code": code()}
            yield from (("ours", method, bits, settings) for bits in args.bits)
    for runner, rows in PEERS.items():
        if runner in args.runners:
            for name, settings in rows.items():
                yield runner, name, 8, settings


def say(row):
    where = f"{row['net']:28} {row['runner']:15} {row['method']:24} {row['bits']:3} bits  "
    if "failed" in row:
        print(f"{where}failed: {row['failed']}", flush=True)
        return
    low, high = row["interval"]
    print(
        f"{where}{row['top1']:6.2f} (fp32 {row['fp32_top1']:.2f})  {row['difference']:+.2f} "
        f"[{low:+.2f}, {high:+.2f}]  +{row['gained']} -{row['lost']}"
        + (f"  differing {row['values_differing']}" if "values_differing" in row else ""),
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of networks and images")
    parser.add_argument("--json", type=Path, help="keep the rows here")
    parser.add_argument("--nets", nargs="+", default=NETWORKS)
    parser.add_argument("--methods", nargs="+", default=SHOWN, choices=METHODS)
    parser.add_argument("--runners", nargs="+", default=["ours", *PEERS], choices=["ours", *PEERS])
    parser.add_argument("--peers-python", help="Python of an environment with openvino and nncf")
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 7], help="of ours (8 7)")
    parser.add_argument("--images", type=int, help="only the first N test images")
    parser.add_argument("--calibration", type=int, default=50, help="calibration images (50)")
    parser.add_argument("--exact", type=int, default=4, help="images also run by the numpy network (4)")
    parser.add_argument("--target", help="TVM target (this CPU)")
    args = parser.parse_args()
    if args.peers_python and not shutil.which(args.peers_python):
        raise SystemExit(f"error: --peers-python: there is no {args.peers_python}")
    if "openvino" in args.runners and not args.peers_python:
        print("left out: openvino, for want of --peers-python")
        args.runners.remove("openvino")
    facts = machine.describe()
    facts["vnni"] = "avx512_vnni" in facts["flags"] or "avx_vnni" in facts["flags"]
    if facts["vnni"]:
        facts["note"] = (
            "this CPU has VNNI: the u8s8 kernels of ONNX Runtime and OpenVINO do not saturate here; on "
            "AVX2 without VNNI those with full-range weights do (reduce_range is their cure)"
        )
    stored = json.loads(args.json.read_text()) if args.json and args.json.exists() else {"rows": []}
    rows, known = stored["rows"], stored.get("fp32", {})

    def identity(row):
        return tuple(
            str(row[key]) for key in ("net", "runner", "method", "bits", "n", "calibration_images")
        )

    def keep(bench, row, runner, method, bits, settings):
        nonlocal rows
        row = {**row, "runner": runner, "method": method, "bits": bits, "settings": settings,
               "commit": facts["commit"], "date": facts["date"]}  # fmt: skip
        say(row)
        rows = [r for r in rows if identity(r) != identity(row)] + [row]
        order = {net: i for i, net in enumerate(NETWORKS)}
        rows.sort(key=lambda r: order.get(r["net"], len(order)))
        if args.json:
            stored = {"machine": facts, "default_method": DEFAULT_METHOD, "rows": rows, "fp32": known}
            write_text(args.json, json.dumps(stored, indent=1) + "\n")

    for name in args.nets:
        with tempfile.TemporaryDirectory() as scratch:
            bench = Bench(args, name, Path(scratch), facts, known)
            todo = []
            for runner, method, bits, settings in wanted(args):
                mine = {**bench.base, "runner": runner, "method": method, "bits": bits}
                old = [r for r in rows if identity(r) == identity(mine) and "failed" not in r]
                if not any(r["settings"] == settings for r in old):
                    todo.append((runner, method, bits, settings))
            for row in todo:
                if row[0] == "ours":
                    keep(bench, bench.ours(row[1], row[2]), *row)
            for runner in PEERS:
                mine = {row[1]: row for row in todo if row[0] == runner}
                python = args.peers_python if runner == "openvino" else sys.executable
                for method, found in bench.peer(runner, list(mine), python) if mine else ():
                    keep(bench, found, *mine[method])
    bad = [r for r in rows if r.get("values_differing")]
    if bad:
        raise SystemExit(f"error: {len(bad)} rows differ from the numpy network")


if __name__ == "__main__":
    main()
