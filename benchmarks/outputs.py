"""How near quantized networks come to fp32 at their outputs: SQNR, boxes, top-1; ours and the other tools'.

    python benchmarks/outputs.py --data DIR --json FILE [--nets NAME ...] [--bits 7 8]
        [--settings NAME ...] [--runners ours onnxruntime openvino speed] [--peers-python PYTHON]
        [--images N] [--also NAME=NET.onnx,IMAGES.npz ...] [--cache FOLDER]

Every network is quantized from the same calibration images and run on the same other ones; ours *compiled*,
and on the first ``--exact`` images compared with the numpy network, tensor by tensor: ``values_differing``
must be 0. ``sqnr_db`` is that of each output, over all images: 10 log10(sum of squares / sum of squared
errors), against fp32 in ONNX Runtime; ``median_db`` the median over the images of each one's own.

* Classifiers: top-1, paired with fp32 (`tvm_easyquant.evaluate`), beside it.
* yolo_fastest_1.1: mAP at IoU 0.5 by DIR's evaluate_detector.py, and ``match``: of the boxes that fp32
  finds with a score above 0.3 those found again, of the same class, IoU above 0.7, score above 0.2. Both
  once more with the mirrored images added (``mirrored``), as mAP of some 200 images is noisy.
* nsfw_mobilenet_v2, esrgan_slim_x2: pictures of imagenet_calib, resized, the first ones for calibration.
* six_*: six convolutions with a function behind each, random weights, random images.
* --also: a network of yours; IMAGES.npz holds ``calibration`` and ``test``, (N, 1, C, H, W).

--settings: ``default``; ``minmax``; ``none``, the default without any of the switches that tables of
version 1 do not know; letters of `SWITCHES`, these alone, such as A or A+C; ``no NAME``, the default
without one that has no letter; or NAME=VALUE,... of `quantize`. ``speed`` compares the default with
``none``: medians of one thread, run in turn.

Rows that FILE already holds, made with the same settings, versions and quantizer source (``code``), are
kept, and tables that were found in the cache. PYTHON is an environment with openvino and nncf. Where the
CPU has no VNNI, ONNX Runtime's quantized models run with float sums (``float_sums``), as its integer
kernels saturate there; OpenVINO's run as they do.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from itertools import islice
from pathlib import Path

import accuracy
import machine
import numpy as np
import onnx
import readme_tables
import same_as
from data import NETWORKS, Network

import tvm_easyquant as eq
from tvm_easyquant.evaluate import compare, load, top
from tvm_easyquant.files import write_text
from tvm_easyquant.images import Preprocess
from tvm_easyquant.progress import Bar
from tvm_easyquant.relay.build import host_target
from tvm_easyquant.scales import numerics

HERE = Path(__file__).resolve().parent
DETECTOR = "yolo_fastest_1.1"
#: network without labels -> side of its input
PICTURES = {"nsfw_mobilenet_v2": 224, "esrgan_slim_x2": 96}
#: network of six layers -> the function behind each; in the order in which their weights are drawn
SIX = {"six_relu": "Relu", "six_leaky_relu": "LeakyRelu", "six_hard_swish": "HardSwish", "six_silu": "SiLU"}
NETS = (DETECTOR, *NETWORKS, *PICTURES, *SIX)
#: letter -> the switch of `QuantConfig`, as the ablation names them
SWITCHES = {"A": "fuse_functions", "B": "asymmetric", "C": "channel_factors"}
#: the networks of the ablation, and those that are timed
ABLATION = (DETECTOR, "ocr_angle")
TIMED = (DETECTOR, "imagenet_mobilenet_v1_0.75", "cifar10_resnet20", "mobilenet_v3_small")
FIELDS = [field.name for field in fields(eq.QuantConfig)]
OTHERS = tuple(name for name in numerics.NEW_SWITCHES if name not in SWITCHES.values())
#: the default without what has no letter
LESS = (*(f"no {name}" for name in OTHERS), *(["wide=[]"] if "wide" in FIELDS else []))
EACH = ("none", "A", "B", "C", "A+B", "A+C", "B+C", *(["A+B+C"] if OTHERS else []))
PEERS = {runner: accuracy.PEERS[runner] for runner in ("onnxruntime", "openvino")}
TIME_RATIO = "import json, sys, same_as; print(json.dumps(same_as.time_ratio(sys.argv[1:3], sys.argv[3])))"


def settings_of(name: str) -> dict:
    """The keywords of `quantize` that a name of --settings stands for."""
    if name in ("default", "minmax"):
        return {} if name == "default" else {"method": name}
    if name == "none" or all(letter in SWITCHES for letter in name.split("+")):
        on = [SWITCHES[letter] for letter in name.split("+")] if name != "none" else []
        return {switch: switch in on for switch in numerics.NEW_SWITCHES}
    if name.startswith("no ") and name[3:] in numerics.NEW_SWITCHES:
        return {name[3:]: False}
    found = {}
    for word in name.split(","):
        key, equals, value = word.partition("=")
        if not equals:
            raise SystemExit(f"error: --settings: {name} is none; see --help")
        try:
            found[key] = json.loads(value.lower())
        except json.JSONDecodeError:
            found[key] = value
    return found


@dataclass
class Case:
    """A network with its images. judge: function(outputs, those of fp32) -> facts of a row; each a list
    with an array (N, ...) for each output of the network. shown: how many images count for the SQNR."""

    path: Path
    calibration: list[np.ndarray]
    inputs: list[np.ndarray]
    judge: Callable[[list, list], dict] = lambda got, want: {}
    shown: int | None = None


def classifier(args, name: str) -> Case:
    network = Network(args.data, name)
    count = min(args.images or len(network.test_set), len(network.test_set))
    inputs, labels = zip(*network.test(count), strict=True)
    score = top(1)

    def judge(got, want):
        mine, real = (
            np.array([score([y], label) for y, label in zip(outputs[0], labels, strict=True)])
            for outputs in (got, want)
        )
        found = compare(mine, real)
        return {
            "top1": round(found.value, 3), "fp32_top1": round(found.reference, 3), "gained": found.gained,
            "lost": found.lost, "p": round(found.p, 4),
            "interval": [round(limit, 3) for limit in found.interval],
        }  # fmt: skip

    return Case(network.path, network.calibration(args.calibration), list(inputs), judge)


def module_of(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def detector(args, name: str) -> Case:
    tools = module_of(args.data / "evaluate_detector.py")
    heads = json.loads((args.data / f"{name}_heads.json").read_text())
    images, boxes = tools.samples(args.data / "coco128_eval.npz")
    count = min(args.images or len(images), len(images))
    images, boxes = images[:count], boxes[boxes[:, 0] < count]
    mirrored = boxes.copy()
    mirrored[:, 0] += count
    mirrored[:, 2] = 1 - mirrored[:, 2]
    sets = {"": boxes, "mirrored": np.concatenate([boxes, mirrored])}
    path = args.data / f"{name}.onnx"
    names = [output.name for output in onnx.load(path).graph.output]
    order = [names.index(head["output"]) for head in heads]
    known: list = []  # what fp32 found, once for all rows

    def found(outputs):
        each = zip(*(outputs[i] for i in order), strict=True)
        return [
            tools.nms(tools.decode([y[None] for y in heads_], heads, images[0].shape[-1], 0.02), 0.45)
            for heads_ in each
        ]

    def again(mine, real):
        """Boxes of fp32, and those that are found again."""
        real, mine = real[real[:, 1] > 0.3], mine[mine[:, 1] > 0.2]
        same = (real[:, None, 0] == mine[None, :, 0]) & (tools.iou(real[:, 2:], mine[:, 2:]) > 0.7)
        return len(real), int(same.any(axis=1).sum())

    def judge(got, want):
        if not known:
            known.extend(found(want))
        mine, facts = found(got), {}
        for which, truth in sets.items():
            upto = 2 * count if which else count
            (ap, classes), (real, _) = (tools.mean_ap(each[:upto], truth) for each in (mine, known))
            matches = [again(a, b) for a, b in zip(mine[:upto], known, strict=False)]
            total, match = map(sum, zip(*matches, strict=True))
            row = {"map": round(100 * ap, 2), "fp32_map": round(100 * real, 2), "classes": classes,
                   "match": match, "boxes": total, "images": upto}  # fmt: skip
            facts |= {which: row} if which else row
        return facts

    inputs = [*images, *(np.ascontiguousarray(x[..., ::-1]) for x in images)]
    calibration = tools.samples(args.data / "coco128_calib.npz")[0][: args.calibration]
    return Case(path, calibration, inputs, judge, count)


def pictures(args, name: str) -> Case:
    side = PICTURES[name]
    of = load(args.data / "imagenet_calib.npz", Preprocess(scale=1 / 255, size=(side, side)))
    found = [x for x, _ in islice(of, args.calibration + (args.images or 100))]
    return Case(args.data / f"{name}.onnx", found[: args.calibration], found[args.calibration :])


def six(args, name: str, folder: Path) -> Case:
    """Six 3x3 convolutions of 24 channels; the weights of all four networks come from one generator."""
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(1, 3, 24, 24)).astype(np.float32) for _ in range(20)]
    make, tensor = onnx.helper.make_node, partial(onnx.helper.make_tensor_value_info, elem_type=1)
    for kind in SIX.values():
        weights, nodes, x = [], [], "x"
        for i in range(6):
            inputs = 24 if i else 3
            weight = rng.normal(size=(24, inputs, 3, 3)) * (2 / (inputs * 9)) ** 0.5
            for which, array in ((f"w{i}", weight), (f"b{i}", rng.normal(size=24) * 0.3)):
                weights.append(onnx.numpy_helper.from_array(array.astype(np.float32), which))
            nodes.append(make("Conv", [x, f"w{i}", f"b{i}"], [f"c{i}"], f"c{i}", pads=[1] * 4))
            x = f"y{i}"
            if kind == "SiLU":
                nodes += [make("Sigmoid", [f"c{i}"], [f"s{i}"]), make("Mul", [f"c{i}", f"s{i}"], [x])]
            else:
                alpha = {"alpha": 0.05} if kind == "LeakyRelu" else {}
                nodes.append(make(kind, [f"c{i}"], [x], **alpha))
        if kind == SIX[name]:
            break
    graph = onnx.helper.make_graph(
        nodes, name, [tensor("x", shape=[1, 3, 24, 24])], [tensor(x, shape=None)], weights
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    onnx.save(model, folder / f"{name}.onnx")
    return Case(folder / f"{name}.onnx", images[:16][: args.calibration], images[16:][: args.images])


def also(args, name: str) -> Case:
    model, _, images = args.also[name].partition(",")
    with np.load(images) as arrays:
        calibration, inputs = (list(arrays[key]) for key in ("calibration", "test"))
    return Case(Path(model), calibration[: args.calibration], inputs[: args.images])


def case_of(args, name: str, folder: Path) -> Case:
    if name in args.also:
        return also(args, name)
    if name in SIX:
        return six(args, name, folder)
    return (detector if name == DETECTOR else pictures if name in PICTURES else classifier)(args, name)


def sqnr(want, got) -> float | None:
    """In dB, over all images; None if nothing differs."""
    signal = noise = 0.0
    for a, b in zip(want, got, strict=True):
        a = a.astype(np.float64)
        signal, noise = signal + float((a * a).sum()), noise + float(((a - b) ** 2).sum())
    return round(10 * float(np.log10(signal / noise)), 2) if noise else None


def median_sqnr(want, got) -> float | None:
    """The median over the images of each one's, in dB, which a few that dwarf the others do not decide."""
    found = [sqnr(a[None], b[None]) for a, b in zip(want, got, strict=True)]
    return round(float(np.median([np.inf if x is None else x for x in found])), 2) if found else None


class Bench:
    """One network: made when the first of its rows is wanted."""

    def __init__(self, args, name, folder, facts):
        self.args, self.name, self.folder = args, name, folder
        self.target = host_target()
        self.base = {"net": name, "cpu": machine.cpu(facts), "vnni": facts["vnni"], "target": self.target}
        self.case = self.want = None

    def prepare(self):
        if self.case is not None:
            return
        self.case = case = case_of(self.args, self.name, self.folder)
        self.graph = eq.load_onnx(case.path)
        (self.tensor,) = self.graph.inputs
        np.save(self.folder / "inputs.npy", np.stack(case.inputs))
        np.save(self.folder / "calibration.npy", np.stack(case.calibration))
        self.want = self.outputs(self.float_runner(), "fp32")
        self.base |= {"n": len(case.inputs), "calibration_images": len(case.calibration)}

    def float_runner(self):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            str(self.case.path), options, providers=["CPUExecutionProvider"]
        )
        return lambda feed: session.run(None, feed)

    def outputs(self, run, what) -> list[np.ndarray]:
        """An array (N, ...) for each output."""
        bar, found = Bar(), []
        try:
            for i, x in enumerate(self.case.inputs):
                found.append([np.array(y)[0] for y in run({self.tensor: x})])
                bar(i + 1, len(self.case.inputs), f"{self.name} {what}")
        finally:
            bar.close()
        return [np.stack(each) for each in zip(*found, strict=True)]

    def row(self, got, **facts):
        shown = self.case.shown
        found = [sqnr(a[:shown], b[:shown]) for a, b in zip(self.want, got, strict=True)]
        each = [median_sqnr(a[:shown], b[:shown]) for a, b in zip(self.want, got, strict=True)]
        return {
            **self.base,
            "sqnr_db": found,
            "median_db": each,
            **self.case.judge(got, self.want),
            **facts,
        }

    def quantized(self, setting, bits):
        """(`Quantized`, seconds of the clock and of the CPU): its table from the cache, if it is there."""
        settings = settings_of(setting)
        digest = hashlib.sha256(json.dumps([accuracy.code(), settings, bits], sort_keys=True).encode())
        for file in (self.case.path, self.folder / "calibration.npy"):
            digest.update(file.read_bytes())
        path = self.args.cache / f"{self.name}.int{bits}.{digest.hexdigest()[:16]}.json"
        if not path.exists():
            bar, clock, cpu = Bar(), time.perf_counter(), time.process_time()
            try:
                q = eq.quantize(self.graph, self.case.calibration, bits=bits, progress=bar, **settings)
            finally:
                bar.close()
            seconds = {"quantize_seconds": round(time.perf_counter() - clock, 1),
                       "quantize_cpu_seconds": round(time.process_time() - cpu, 1)}  # fmt: skip
            write_text(path, json.dumps({**seconds, "table": q.table.to_json()}))
        seconds = json.loads(path.read_text())
        table = eq.ScaleTable.from_json(seconds.pop("table"))
        graph = table.prepared(self.graph)
        return eq.Quantized(table, graph, table.check(graph)), seconds

    def ours(self, setting, bits):
        self.prepare()
        q, seconds = self.quantized(setting, bits)
        executor = eq.Executor(q.build(self.target))
        got = self.outputs(executor, f"{setting} INT{bits}")
        first = [{self.tensor: x} for x in self.case.inputs[: self.args.exact]]
        same = accuracy.exact(q, executor, self.target, first)
        kinds = {
            "zero_points": sum(s.zero_point not in (0, 64, 128) for s in q.table.activations.values()),
            "sites": len(q.table.activations),
            "fused_functions": sum(q.graph[name].op == "elementwise" for name in q.plan.fused),
            "sites_with_factors": len(q.table.factors),
        }
        return self.row(got, coverage_percent=round(q.coverage, 2), **kinds, **same, **seconds)

    def speed(self, bits):
        """Old form and new one, in a process of its own with one thread."""
        self.prepare()
        files = []
        for setting in ("none", "default"):
            files.append(str(self.folder / f"{setting}.so"))
            self.quantized(setting, bits)[0].build(self.target).export_library(files[-1])
        np.savez(self.folder / "images.npz", test=self.case.inputs[0][None])
        env = {**os.environ, "TVM_NUM_THREADS": "1"}
        command = [sys.executable, "-c", TIME_RATIO, *files, self.folder / "images.npz"]
        said = subprocess.run(
            list(map(str, command)), cwd=HERE, env=env, check=True, capture_output=True, text=True
        )
        load_average = [round(x, 1) for x in os.getloadavg()]
        return {**self.base, **json.loads(said.stdout.splitlines()[-1]), "load_average": load_average}

    def peers(self, runner, settings, python):
        """A row for each of a runner's settings, as they are done."""
        self.prepare()
        for name, facts, got in accuracy.from_peers(runner, self.case.path, self.folder, settings, python):
            yield name, {**self.base, **facts} if got is None else self.row(got, **facts)


def wanted(args, name, vnni):
    """(runner, setting, bits, settings) of a network's rows."""
    if "ours" in args.runners:
        every = ("default", "minmax", *((*EACH, *LESS) if name in ABLATION else ()))
        each: dict = {}  # config -> the first of its names
        for setting in every:
            each.setdefault(eq.QuantConfig(**settings_of(setting)), setting)
        for setting in args.settings or each.values():
            found = {**settings_of(setting), "code": accuracy.code()}
            yield from (("ours", setting, bits, found) for bits in args.bits)
    for runner, rows in PEERS.items():
        for setting, found in rows.items() if runner in args.runners else ():
            plain = {} if vnni or runner != "onnxruntime" else {"float_sums": True}
            yield runner, setting, 8, {**found, **plain}
    if "speed" in args.runners and name in TIMED:
        found = {"code": same_as.sources(accuracy.ROOT)}
        yield from (("speed", "default over none", bits, found) for bits in args.bits)


def say(row):
    where = f"{row['net']:28} {row['runner']:12} {row['setting']:24} {row['bits']} bits "
    if "failed" in row:
        text = f"failed: {row['failed']}"
    elif "time_ratio" in row:
        text = "{:.3f} ms, without {:.3f}: {:.3f}".format(*row["milliseconds"][::-1], row["time_ratio"])
    else:
        text = " / ".join("equal" if x is None else f"{x:.2f}" for x in row["sqnr_db"]) + " dB"
        if "top1" in row:
            text += (
                f"  top-1 {row['top1']:.2f} (fp32 {row['fp32_top1']:.2f}; +{row['gained']} -{row['lost']})"
            )
        if "match" in row:
            text += (
                f"  mAP {row['map']:.2f} (fp32 {row['fp32_map']:.2f})  match {row['match']}/{row['boxes']}"
            )
        text += f"  differing {row['values_differing']}" if "values_differing" in row else ""
    print(where + text, flush=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of networks and images")
    parser.add_argument("--json", type=Path, help="keep the rows here")
    parser.add_argument("--nets", nargs="+", metavar="NAME", help=f"of {', '.join(NETS)} and --also (all)")
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 7], choices=(7, 8))
    parser.add_argument("--settings", nargs="+", metavar="NAME", help="(the ablation of two networks, else "
                        "default and minmax)")  # fmt: skip
    runners = ["ours", *PEERS, "speed"]
    parser.add_argument("--runners", nargs="+", default=runners, choices=runners)
    parser.add_argument("--peers-python", help="a Python with openvino and nncf")
    parser.add_argument("--images", type=int, help="the first N test images (all; 100 pictures)")
    parser.add_argument("--calibration", type=int, default=50, help="calibration images (50)")
    parser.add_argument("--exact", type=int, default=4, help="images also run in numpy (4)")
    parser.add_argument("--also", nargs="+", default=[], metavar="NAME=NET.onnx,IMAGES.npz")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "easyquant_outputs",
                        help="where tables that were found are kept")  # fmt: skip
    args = parser.parse_args()
    args.also = dict(word.split("=", 1) for word in args.also)
    args.nets = args.nets or [*NETS, *args.also]
    if unknown := sorted(set(args.nets) - {*NETS, *args.also}):
        parser.error(f"--nets: there is no {', '.join(unknown)}")
    if args.peers_python and not shutil.which(args.peers_python):
        parser.error(f"--peers-python: there is no {args.peers_python}")
    if "openvino" in args.runners and not args.peers_python:
        print("left out: openvino, for want of --peers-python")
        args.runners.remove("openvino")
    for name in args.settings or ():
        try:
            eq.QuantConfig(**settings_of(name))
        except (TypeError, ValueError) as error:
            parser.error(f"--settings: {name}: {error}")
    args.cache.mkdir(parents=True, exist_ok=True)
    return args


def main():
    args = arguments()
    facts = machine.describe()
    facts["vnni"] = "avx512_vnni" in facts["flags"] or "avx_vnni" in facts["flags"]
    rows = json.loads(args.json.read_text())["rows"] if args.json and args.json.exists() else []
    asked = {"images": args.images, "calibration": args.calibration}

    def identity(row):
        return tuple(str(row[key]) for key in ("net", "runner", "setting", "bits", "asked"))

    def keep(found, runner, setting, bits, settings):
        nonlocal rows
        row = {**found, "runner": runner, "setting": setting, "bits": bits, "settings": settings,
               "asked": asked, "commit": facts["commit"], "date": facts["date"]}  # fmt: skip
        say(row)
        rows = [r for r in rows if identity(r) != identity(row)] + [row]
        order = {net: i for i, net in enumerate(NETS)}
        rows.sort(key=lambda r: order.get(r["net"], len(order)))
        if args.json:
            write_text(args.json, json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")

    def known(name, runner, setting, bits, settings):
        mine = {"net": name, "runner": runner, "setting": setting, "bits": bits, "asked": asked}
        return any(
            identity(r) == identity(mine) and r["settings"] == settings and "failed" not in r for r in rows
        )

    for name in args.nets:
        with tempfile.TemporaryDirectory() as scratch:
            bench = Bench(args, name, Path(scratch), facts)
            todo = [row for row in wanted(args, name, facts["vnni"]) if not known(name, *row)]
            for row in todo:
                if row[0] == "ours":
                    keep(bench.ours(row[1], row[2]), *row)
                elif row[0] == "speed":
                    keep(bench.speed(row[2]), *row)
            for runner in PEERS:
                mine = {row[1]: row for row in todo if row[0] == runner}
                python = args.peers_python if runner == "openvino" else sys.executable
                settings = {setting: row[3] for setting, row in mine.items()}
                for setting, found in bench.peers(runner, settings, python) if mine else ():
                    keep(found, *mine[setting])
    print("\n" + readme_tables.outputs_table({"rows": rows}))
    if bad := [r for r in rows if r.get("values_differing")]:
        raise SystemExit(f"error: {len(bad)} rows differ from the numpy network")


if __name__ == "__main__":
    main()
