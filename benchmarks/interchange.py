"""Our integers against ONNX Runtime's on whole networks, tensor by tensor: both ways.

    python benchmarks/interchange.py --data DIR --json FILE [--quantized NAME:TOOL:FILE ...]

``export``: the scales of ``--method`` from ``--calibration`` images, the exported QDQ model run by ONNX
Runtime. ``import``: the network quantized by ONNX Runtime's own quantizer (QDQ and QOperator, per channel),
taken over. ``--quantized NAME:TOOL:FILE``: a model of network NAME that another tool has quantized. Ours is
the compiled module; ONNX Runtime runs without and with its graph optimizations. A row counts the stored
values that differ and the largest difference in steps, from the input on (``different``,
``largest_steps``) and of each layer on ONNX Runtime's own inputs (``own_differences``); ``saturated``
counts those of the latter that ONNX Runtime's int16 pairs make, ``unexplained`` those that neither they nor
rounding next to a tie can make: it must be 0. ``same_label`` of
``inputs`` images have the same largest logit.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import machine
from data import NETWORKS, Network
from tqdm import tqdm

import tvm_easyquant as eq
from tvm_easyquant.cli.common import plain
from tvm_easyquant.files import write_text
from tvm_easyquant.host import installed
from tvm_easyquant.relay.build import host_target
from tvm_easyquant.writers.verify import compiled_integers, verify

SHOWN = ("layer", "op", "values", "own", "own_largest", "saturated", "unexplained", "tie")


def compare(graph, table, network, args, **verify_options):
    """Rows of one (graph, table): without and with ONNX Runtime's optimizations."""
    (tensor,) = graph.inputs
    integers = compiled_integers(installed(), graph, table)
    for optimize in (False, True):
        images = tqdm(network.test(args.images), network.name, disable=not sys.stderr.isatty())
        feeds = ({tensor: x} for x, _ in images)
        facts = verify(
            graph, table, feeds, optimize=optimize, integers=integers, **verify_options
        ).to_dict()
        rows = [row for row in facts.pop("tensors") if row["own"]]
        facts["layers_with_own_differences"] = [{key: row[key] for key in SHOWN} for row in rows]
        yield facts


def exported(network, args):
    graph = eq.load_onnx(network.path)
    for bits in args.bits:
        q = eq.quantize(graph, network.calibration(args.calibration), bits=bits, method=args.method)
        settings = {
            "way": "export",
            "quantizer": f"tvm_easyquant {args.method}",
            "form": "QDQ",
            "bits": bits,
        }
        for facts in compare(graph, q.table, network, args):
            yield {**settings, "coverage_percent": q.coverage, "float_nodes": dict(q.plan.floats), **facts}


def imported(network, args, quantizer, form, model):
    taken = eq.import_quantized(model)
    settings = {"way": "import", "quantizer": quantizer, "form": form, "bits": 8}
    settings |= {"coverage_percent": taken.coverage, "float_nodes": dict(taken.plan.floats)}
    settings["tensors_compared"] = len(taken.origin)
    for facts in compare(taken.graph, taken.table, network, args, model=taken.model, names=taken.origin):
        yield {**settings, **facts}


def quantized_by_onnxruntime(network, args):
    """(form, ModelProto) of a network that ONNX Runtime's quantizer made of it."""
    import onnx
    import onnx.version_converter
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self, name):
            self.items = iter([{name: x} for x in network.calibration(args.calibration)])

        def get_next(self):
            return next(self.items, None)

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        model = onnx.version_converter.convert_version(onnx.load(network.path), 13)  # scales per channel
        onnx.save(model, folder / "float.onnx")
        quantization.quant_pre_process(
            folder / "float.onnx", folder / "ready.onnx", skip_symbolic_shape=True
        )
        for form in ("QDQ", "QOperator"):
            quantization.quantize_static(
                folder / "ready.onnx", folder / "quantized.onnx", Reader(model.graph.input[0].name),
                quant_format=quantization.QuantFormat[form], per_channel=True,
                activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            )  # fmt: skip
            yield form, onnx.load(folder / "quantized.onnx")


def measure(network, args):
    if "export" in args.ways:
        yield from exported(network, args)
    if "import" in args.ways:
        for form, model in quantized_by_onnxruntime(network, args):
            yield from imported(network, args, f"onnxruntime {version('onnxruntime')}", form, model)
    for text in args.quantized:
        name, tool, path = text.split(":", 2)
        if name == network.name:
            yield from imported(network, args, tool, "QDQ", path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of networks and images")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--nets", nargs="+", default=NETWORKS)
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 7])
    parser.add_argument("--ways", nargs="+", choices=("export", "import"), default=["export", "import"])
    parser.add_argument("--method", default="minmax")
    parser.add_argument("--quantized", nargs="+", default=[], metavar="NAME:TOOL:FILE")
    parser.add_argument("--images", type=int, default=20, help="test images (20)")
    parser.add_argument("--calibration", type=int, default=50, help="calibration images (50)")
    args = parser.parse_args()
    rows = []
    for name in args.nets:
        for row in measure(Network(args.data, name), args):
            rows.append({"net": name, **row})
            how = "optimized" if row["graph_optimizations"] else "as written"
            print(
                f"{name:28} {row['way']} {row['quantizer']} {row['form']} INT{row['bits']} {how:10} "
                f"{row['different']:>8} of {row['values']:>10} differ, largest {row['largest_steps']:>2}; "
                f"own {row['own_differences']:>4}, unexplained {row['unexplained']}, at most "
                f"{row['farthest_from_tie_steps']:.1e} from a tie; "
                f"label {row['same_label']}/{row['inputs']}; "
                f"coverage {row['coverage_percent']:.1f} %",
                flush=True,
            )
    if args.json:
        described = machine.describe()
        described["command"] = re.sub(r":/\S*/", ":", described["command"])  # no folders of this machine
        facts = {"machine": {**described, "target": host_target()}, "rows": plain(rows)}
        write_text(args.json, json.dumps(facts, indent=1) + "\n")
    return 1 if any(row["unexplained"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
