"""The same tables on both hosts: are all integers equal, how near are outputs behind float nodes?

    python benchmarks/both_hosts.py --data DIR --relax-python PYTHON --json FILE [--nets NAME ...]
        [--images 100] [--also NAME=NET.onnx,IMAGES.npz ...]

Each network is quantized once (7 bits, the default method, 4 images searched: the scales need not be
good). Then each host builds it from that table, in a process of its own, with every stored tensor as an
output, and runs the same images. A tensor's integers are compared by a digest of all images.
``tensors_differing`` must be 0; ``apart`` is the largest difference of an output behind a float node, over
its largest value.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx

HERE = Path(__file__).resolve().parent


def worker(path, table, inputs, out) -> None:
    """Build by the installed host, run, and store the digests of stored tensors and the outputs."""
    import tvm_easyquant as eq
    from tvm_easyquant.host import installed

    host, table = installed(), eq.ScaleTable.load(table)
    graph = table.prepared(eq.load(path))
    plan = table.check(graph)
    taps = [t for site in plan.sites.values() for t in site.tensors if graph[t].op != "input"]
    run = host.build(host.rewrite(graph, table, taps), outputs=graph.outputs)
    digests, outputs = [hashlib.sha256() for _ in taps], []
    for x in np.load(inputs):
        got = run({graph.inputs[0]: x})
        outputs.append(got[: len(graph.outputs)])
        for digest, value in zip(digests, got[len(graph.outputs) :], strict=True):
            digest.update(np.ascontiguousarray(value).tobytes())
    facts = {
        "host": f"{host.name} {host.version}",
        "tensors": dict(zip(taps, (d.hexdigest() for d in digests), strict=True)),
    }
    arrays = {f"output{i}": np.stack(each) for i, each in enumerate(zip(*outputs, strict=True))}
    np.savez(out, facts=np.array(json.dumps(facts)), **arrays)


def compare(args, name, path, images, scratch) -> dict:
    import tvm_easyquant as eq

    graph = eq.load(path)
    q = eq.quantize(graph, images[:4], bits=7, search_images=4)
    q.table.save(scratch / "table.json")
    np.save(scratch / "inputs.npy", np.stack(images[: args.images]))
    found = []
    for i, python in enumerate((sys.executable, args.relax_python)):
        command = [
            python,
            __file__,
            "--worker",
            path,
            scratch / "table.json",
            scratch / "inputs.npy",
            scratch / f"{i}.npz",
        ]
        subprocess.run(
            list(map(str, command)), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        with np.load(scratch / f"{i}.npz") as arrays:
            outputs = [arrays[f"output{k}"] for k in range(len(graph.outputs))]
            found.append((json.loads(str(arrays["facts"])), outputs))
    (ours, here), (theirs, there) = found
    apart = [
        float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)) for a, b in zip(here, there, strict=True)
    ]
    exact = [graph.outputs[i] in q.plan.integer for i in range(len(here))]
    equal = [np.array_equal(a, b) for a, b in zip(here, there, strict=True)]
    return {
        "net": name, "hosts": [ours["host"], theirs["host"]], "images": min(args.images, len(images)),
        "tensors": len(ours["tensors"]),
        "tensors_differing": sum(ours["tensors"][t] != theirs["tensors"][t] for t in ours["tensors"]),
        "outputs_of_integers": sum(exact),
        "outputs_differing": sum(e and not same for e, same in zip(exact, equal, strict=True)),
        "apart": max(apart),
    }  # fmt: skip


def cases(args):
    """(name, path, images) of each network."""
    import outputs
    import random_networks
    from data import NETWORKS

    args.calibration = 4
    with tempfile.TemporaryDirectory() as folder:
        for name in (*random_networks.NETWORKS, *random_networks.OF_TODAY):
            if not args.nets or name in args.nets:
                path = random_networks.save(name, Path(folder))
                (feed,) = onnx.load(path).graph.input
                shape = [d.dim_value for d in feed.type.tensor_type.shape.dim]
                yield name, path, random_networks.pictures(args.images, shape=tuple(shape[2:]))
        for name in (outputs.DETECTOR, *NETWORKS, *outputs.PICTURES, *outputs.SIX, *args.also):
            if not args.nets or name in args.nets:
                case = outputs.case_of(args, name, Path(folder))
                yield name, case.path, [*case.calibration, *case.inputs][: args.images]


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        return worker(*sys.argv[2:])
    import machine

    from tvm_easyquant.files import write_text

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--relax-python", required=True, help="a Python with this package and today's apache-tvm"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--nets", nargs="+", metavar="NAME")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--also", nargs="+", default=[], metavar="NAME=NET.onnx,IMAGES.npz")
    args = parser.parse_args()
    args.also = dict(word.split("=", 1) for word in args.also)
    facts, rows = machine.describe(), []
    if args.json and args.json.exists():
        rows = json.loads(args.json.read_text())["rows"]
    for name, path, images in cases(args):
        with tempfile.TemporaryDirectory() as scratch:
            row = {
                **compare(args, name, path, images, Path(scratch)),
                "cpu": machine.cpu(facts),
                "commit": facts["commit"],
            }
        print(
            f"{name:28} {row['tensors']:4} tensors, {row['tensors_differing']} differ; "
            f"{row['outputs_of_integers']} outputs of integers, {row['outputs_differing']} differ; "
            f"float outputs {row['apart']:.1e} apart",
            flush=True,
        )
        rows = [r for r in rows if r["net"] != name] + [row]
        if args.json:
            write_text(args.json, json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")
    if bad := [r["net"] for r in rows if r["tensors_differing"] or r["outputs_differing"]]:
        raise SystemExit(f"error: integers differ: {', '.join(bad)}")
    return None


if __name__ == "__main__":
    main()
