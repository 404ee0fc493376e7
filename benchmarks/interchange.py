"""Our integers against ONNX Runtime's on whole networks: the QDQ export, tensor by tensor.

    python benchmarks/interchange.py --data DIR --json FILE [--nets NAME ...] [--images N]

For every network and bit width: the scales of ``--method`` from ``--calibration`` images, the exported
QDQ model run by ONNX Runtime without and with its graph optimizations, our compiled module beside it. A
row counts the stored values that differ and the largest difference in steps, from the input on
(``different``, ``largest_steps``) and of each layer on ONNX Runtime's own inputs (``own_differences``);
``unexplained`` counts those of the latter that rounding next to a tie cannot make: it must be 0.
``same_label`` of ``inputs`` images have the same largest logit.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import machine
from data import NETWORKS, Network
from tqdm import tqdm

import tvm_easyquant as eq
from tvm_easyquant.cli_common import plain
from tvm_easyquant.files import write_text
from tvm_easyquant.onnx_verify import compiled_integers, verify
from tvm_easyquant.relay_build import host_target

SHOWN = ("layer", "op", "values", "own", "own_largest", "unexplained", "tie")


def measure(folder, name, args):
    network = Network(folder, name)
    graph = eq.load_onnx(network.path)
    (tensor,) = graph.inputs
    for bits in args.bits:
        q = eq.quantize(graph, network.calibration(args.calibration), bits=bits, method=args.method)
        integers = compiled_integers(graph, q.table)
        for optimize in (False, True):
            images = tqdm(network.test(args.images), f"{name} INT{bits}", disable=not sys.stderr.isatty())
            found = verify(
                graph, q.table, ({tensor: x} for x, _ in images), optimize=optimize, integers=integers
            )
            facts = found.to_dict()
            facts["layers_with_own_differences"] = [
                {
                    key: row[key]
                    for key in ("layer", "op", "values", "own", "own_largest", "unexplained", "tie")
                }
                for row in facts.pop("tensors")
                if row["own"]
            ]
            yield {
                "net": name,
                "bits": bits,
                "method": args.method,
                "coverage_percent": q.coverage,
                **facts,
            }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of networks and images")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--nets", nargs="+", default=NETWORKS)
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 7])
    parser.add_argument("--method", default="minmax")
    parser.add_argument("--images", type=int, default=20, help="test images (20)")
    parser.add_argument("--calibration", type=int, default=50, help="calibration images (50)")
    args = parser.parse_args()
    rows = []
    for name in args.nets:
        for row in measure(args.data, name, args):
            rows.append(row)
            how = "optimized" if row["graph_optimizations"] else "as written"
            print(
                f"{name:28} INT{row['bits']} {how:10} {row['different']:>8} of {row['values']:>10} differ, "
                f"largest {row['largest_steps']:>2}; own {row['own_differences']:>4}, "
                f"unexplained {row['unexplained']}, "
                f"at most {row['farthest_from_tie_steps']:.1e} from a tie; label "
                f"{row['same_label']}/{row['inputs']}",
                flush=True,
            )
    if args.json:
        facts = {"machine": {**machine.describe(), "target": host_target()}, "rows": plain(rows)}
        write_text(args.json, json.dumps(facts, indent=1) + "\n")
    return 1 if any(row["unexplained"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
