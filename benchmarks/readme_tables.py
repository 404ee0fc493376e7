"""Write the README's tables from the stored results: ``python benchmarks/readme_tables.py``."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from machine import cpu

ROOT = Path(__file__).resolve().parent.parent


def stored(name):
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text())


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


#: column of the table of methods -> the method of `accuracy.py`
METHODS = {"min-max": "minmax", "KL": "kl", "KL, signed": "kl_signed", "EasyQuant (paper)": "easyquant",
           "squared error": "easyquant_mse"}  # fmt: skip
#: lines of the ablation, where measured: the names of `ablation.py`
VARIANTS = (
    "min-max", "percentile", "kl", "mse", "paper", "paper, unsigned", "squared error", "signed",
    "exhaustive", "start percentile", "start kl", "start mse", "layerwise", "bias correction",
    "gain correction", "rounding descent", "objective hessian", "rounds 3", "equalized",
    "layerwise, start mse, bias", "default: these and gain", "default, hessian", "default, descent",
    "default, rounds 3", "default, equalized", "all",
)  # fmt: skip
TOOLS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "relay_quantize": "relay.quantize"}


def cell(row, name=""):
    """A row of accuracy.json in a cell: top-1, the difference in points, gained and lost."""
    if row is None:
        return "not measured"
    text = f"{row['top1']:.2f} ({row['difference']:+.2f}; +{row['gained']} -{row['lost']})"
    return f"{text}, {name}" if name else text


def keyed(stored):
    """{(network, runner, method, bits): row} of accuracy.json, in its order."""
    rows = (row for row in stored["rows"] if "failed" not in row)
    return {(row["net"], row["runner"], row["method"], row["bits"]): row for row in rows}


def current(stored, outputs):
    """accuracy.json with the rows of our default from outputs.json, which are of it as it is now: the same
    networks, compiled, the same images and calibration."""
    default, found = stored["default_method"], {}
    for row in outputs["rows"]:
        if (
            (row["runner"], row["setting"]) == ("ours", "default")
            and "top1" in row
            and row["asked"]["images"] is None
        ):
            found[row["net"], row["bits"]] = {
                **row, "method": default, "difference": round(row["top1"] - row["fp32_top1"], 3),
            }  # fmt: skip
    rows = [
        found.get((row["net"], row["bits"]), row)
        if (row["runner"], row["method"]) == ("ours", default)
        else row
        for row in stored["rows"]
    ]
    return {**stored, "rows": rows}


def accuracy_text(stored, avx2):
    """The tables of accuracy, and what they show. avx2: ONNX Runtime's rows on a CPU with AVX2 alone."""
    known, default = keyed(stored), stored["default_method"]
    rows = list(known.values())

    def of(net, method, bits):
        return known.get((net, "ours", method, bits))

    nets = list(dict.fromkeys(row["net"] for row in rows))
    best = {}
    for row in rows:
        if row["runner"] != "ours" and row["top1"] > best.get(row["net"], {"top1": -1})["top1"]:
            best[row["net"]] = row
    shown = {title: method for title, method in METHODS.items() if method != default}
    head = table(
        ["network", "fp32", "our INT8", "our INT7", "best INT8 of the others"],
        [
            [net, f"{next(r for r in rows if r['net'] == net)['fp32_top1']:.2f}",
             cell(of(net, default, 8)), cell(of(net, default, 7)),
             cell(best.get(net), net in best and f"{TOOLS[best[net]['runner']]} {best[net]['method']}")]
            for net in nets
        ],
    )  # fmt: skip
    worst = min(avx2["rows"], key=lambda r: r["difference"])
    there = known[worst["net"], "onnxruntime", worst["method"], 8]
    methods = table(
        ["network, INT7", *shown, f"default ({default})"],
        [[net, *(cell(of(net, m, 7)) for m in (*shown.values(), default))] for net in nets],
    )
    return f"""Accuracy of the compiled integer networks: top-1 in percent; in brackets the difference
to fp32 in points and the images gained and lost against it, on the same images: 10,000 of CIFAR-10, 1,300
of ImageNet's validation set, 2,000 words. Every tool was given the same {rows[0]["calibration_images"]}
calibration images. The others: ONNX Runtime's static quantization (MinMax, Entropy, Percentile; per
channel; with and without reduce_range), NNCF for OpenVINO (two presets), TVM's relay.quantize; shown is
the one that did best on these very images.

{head}

The others' INT8 ran with VNNI. On a CPU with AVX2 alone ONNX Runtime's int16 pairs saturate:
{worst["net"]} by {worst["method"]} loses {-worst["difference"]:.1f} points there,
{-there["difference"]:.1f} with VNNI. Our integers are the same everywhere.

By method, at 7 bits:

{methods}

What they mean, with the intervals: [benchmarks/README.md](benchmarks/README.md#accuracy)."""


def accuracy_details(stored):
    """Every row of accuracy.json, and how ours stands against the goals."""
    rows = [row for row in stored["rows"] if "failed" not in row]
    default = stored["default_method"]
    tools = {"ours": "ours", **TOOLS}
    every = table(
        ["network", "tool", "method", "bits", "top-1", "difference", "95 % interval", "gained / lost", "p"],
        [
            [r["net"], tools[r["runner"]], r["method"] + " (default)" * (r["method"] == default), r["bits"],
             f"{r['top1']:.2f}", f"{r['difference']:+.2f}",
             "{:+.2f} to {:+.2f}".format(*r["interval"]), f"+{r['gained']} / -{r['lost']}", f"{r['p']:.2g}"]
            for r in rows
        ],
    )  # fmt: skip
    goals = []
    for net in dict.fromkeys(row["net"] for row in rows):
        mine = {
            r["bits"]: r for r in rows if (r["net"], r["runner"], r["method"]) == (net, "ours", default)
        }
        peers = [r for r in rows if r["net"] == net and r["runner"] != "ours"]
        cells = [net]
        for bits, goal in ((7, -0.3), (8, -0.1)):
            row = mine.get(bits)
            if row is None:
                cells.append("not measured")
                continue
            said = "met" if row["difference"] >= goal else "missed"
            if said == "missed" and row["interval"][1] >= goal:
                said = "missed, within the noise"
            cells.append(f"{row['difference']:+.2f}: {said}")
        best = max(peers, key=lambda r: r["top1"], default=None)
        for bits in (8, 7):
            row = mine.get(bits)
            if best is None or row is None:
                cells.append("not measured")
                continue
            ahead = row["top1"] - best["top1"]
            noise = sum(((r["interval"][1] - r["interval"][0]) / 2) ** 2 for r in (row, best)) ** 0.5
            cells.append(f"{ahead:+.2f} ({'within' if abs(ahead) <= noise else 'beyond'} {noise:.2f})")
        goals.append(cells)
    head = table(
        [
            "network",
            "INT7, goal -0.3",
            "INT8, goal -0.1",
            "INT8 against the best INT8 of the others",
            "INT7, the same",
        ],
        goals,
    )
    return f"""The goals (default method; in points; beside the last two the noise, from both intervals):

{head}

{every}"""


def between(path, mark, text):
    """Replace what stands between the marks of a file."""
    old = path.read_text(encoding="utf-8")
    block = f"<!-- {mark} -->\n\n{text}\n\n<!-- /{mark} -->"
    new = re.sub(rf"<!-- {mark} -->.*<!-- /{mark} -->", lambda _: block, old, flags=re.S)
    path.write_text(new, encoding="utf-8")


#: runner -> column of the table of networks
RUNNERS = {
    "onnxruntime-int8": "ONNX Runtime int8", "openvino-int8": "OpenVINO int8", "ncnn-int8": "ncnn int8",
    "onnxruntime-fp32": "ONNX Runtime fp32", "openvino-fp32": "OpenVINO fp32", "ncnn-fp32": "ncnn fp32",
    "openvino_bf16": "OpenVINO bf16", "tvm-fp32": "TVM fp32",
}  # fmt: skip


#: what rows of an earlier date call a class; "native" was a CPU with VNNI, uncapped
CLASSES = {"avx512": "avx512bw", "native": "avx512vnni"}


def networks_table(stored, isa):
    """One line a network: our milliseconds, and every other's time over ours."""
    rows = [row for row in stored["rows"] if CLASSES.get(row["isa"], row["isa"]) == isa]
    columns = [r for r in RUNNERS if any(row["runner"] == r for row in rows)]
    lines = []
    for net in dict.fromkeys(row["net"] for row in rows):
        mine = {row["runner"]: row for row in rows if row["net"] == net}
        ratio = f"over_ours_{mine['tvm_easyquant-int7']['isa']}"
        others = (f"{mine[r][ratio]:.2f}" if r in mine else "does not run" for r in columns)
        lines.append([net, f"{mine['tvm_easyquant-int7']['ms_median']:.2f}", *others])
    return table(["network", "our INT7, ms", *(RUNNERS[r] for r in columns)], lines)


#: what a stored row calls a network -> what it is called
FULL_NAMES = {
    "yolov8n": "YOLOv8n 320", "mobilenet_v3_small": "MobileNetV3-Small",
    "mobilenet_v3_large": "MobileNetV3-Large",
    "efficientnet_b0": "EfficientNet-B0", "shufflenet_v2": "ShuffleNetV2", "convnext_atto": "ConvNeXt-atto",
    "ssdlite": "SSDLite 320", "unet_bilinear": "U-Net bilinear 256", "mobilefacenet": "MobileFaceNet 112",
    "yolo_fastest": "YOLO-Fastest 320", "pp_ocr_det": "PP-OCR det 320", "pp_ocr_rec": "PP-OCR rec 48x320",
}  # fmt: skip


def throughput_table(stored):
    """One line a network: our images per second, each peer's best mode and how many times ours that is."""
    lines = []
    for net in dict.fromkeys(row["net"] for row in stored["rows"]):
        mine = [row for row in stored["rows"] if row["net"] == net]
        best: dict = {}
        for row in mine:
            who = row["runner"].partition("-")[0]
            if who not in best or row["images_per_second"] > best[who]["images_per_second"]:
                best[who] = row
        cells = [net]
        for who in ("tvm_easyquant", "openvino", "onnxruntime"):
            row = best[who]
            text = f"{row['images_per_second']:.0f} ({row['mode']}, batch {row['batch']})"
            cells.append(text if who == "tvm_easyquant" else f"{text}: {row['over_ours']:.2f}")
        lines.append(cells)
    return table(["network", "ours", "OpenVINO int8, best mode", "ONNX Runtime int8, best mode"], lines)


def today_table(by_class, coverage):
    """One line a network: for each class our milliseconds, over the best int8's and the best fp32's; what
    stays float. by_class: {its name, its row in the files: what is stored}."""
    lines = []
    for net in dict.fromkeys(row["net"] for stored in by_class.values() for row in stored["rows"]):
        cells = [FULL_NAMES.get(net, net)]
        for (_, isa_name), stored in by_class.items():
            cells += _beside_the_best(stored["rows"], net, isa_name)
        facts = coverage["networks"][net]
        said = Counter(
            word.partition(":")[0]
            for word, n in facts["why"].items()
            for _ in range(n)
            if "not covered" in word
        )
        named = ", ".join(f"{n} {op}" if n > 1 else op for op, n in said.items()) or "nothing"
        rest = facts["float"] - sum(said.values())
        lines.append([*cells, f"{named}{f', {rest} behind them or at the outputs' if rest else ''}"])
    header = [f"{name}: {what}" for name, _ in by_class for what in ("ms", "of the best int8's", "fp32's")]
    return table(["network", *header, "stays float"], lines)


def _beside_the_best(rows, net, isa_name):
    """Our milliseconds, and what part of the best int8's and the best fp32's time they are."""
    mine = {row["runner"]: row for row in rows if row["net"] == net}
    if not mine:
        return ["", "", ""]
    cells = [f"{mine['tvm_easyquant-int7']['ms_median']:.2f}"]
    for kind in ("int8", "fp32"):
        others = {r: row for r, row in mine.items() if r.endswith(f"-{kind}") and row["verified"]}
        best = min(others, key=lambda r: others[r]["ms_median"])
        cells.append(f"{1 / others[best][f'over_ours_{isa_name}']:.2f} ({RUNNERS[best]})")
    return cells


def coverage_table(stored):
    """One line an operator that stays float somewhere, and the integer ones in one."""
    found = stored["operators"]
    integer = [name for name, row in found.items() if not row.get("why") and "refused" not in row]
    lines = [["integer", "; ".join(integer)]]
    for name, row in found.items():
        if name not in integer:
            told = [
                f"{op}" for op, _, why in (w.partition(": ") for w in row["why"]) if "only float" not in why
            ]
            lines.append([name, f"float: {', '.join(dict.fromkeys(told))}"])
    return table(["between two convolutions", ""], lines)


def layers_table(stored):
    """One line a layer: our kernel, its speed, and the others' time over ours."""
    lines = []
    for layer in dict.fromkeys(row["layer"] for row in stored["rows"]):
        mine = {row["runner"]: row for row in stored["rows"] if row["layer"] == layer}
        ours = mine["tvm_easyquant-int7"]
        others = (f"{mine[r]['over_ours']:.2f}" for r in LAYER_RUNNERS)
        lines.append([layer, ours["kernel"], f"{ours['gmacs']:.0f}", f"{ours['x_fp32_peak']:.2f}", *others])
    names = (name.replace("onnxruntime", "ONNX Runtime").replace("-", " ") for name in LAYER_RUNNERS)
    return table(["layer", "our kernel", "GMAC/s", "x FMA peak", *names], lines)


def memory_table(stored):
    """One line a network: peak memory beside ONNX Runtime's int8, size beside TVM's fp32."""
    lines = []
    for net in dict.fromkeys(row["net"] for row in stored["rows"]):
        mine = {row["runner"]: row for row in stored["rows"] if row["net"] == net}
        ours, ort, fp32 = (mine[r] for r in ("tvm_easyquant-int7", "onnxruntime-int8", "tvm-fp32"))
        size = ours["artefact_mib"]
        lines.append([net, f"{ours['peak_rss_mib']:.0f}", f"{ort['peak_rss_mib']:.0f}", f"{size:.2f}",
                      f"{size / fp32['artefact_mib']:.3f}"])  # fmt: skip
    return table(["network", "our MiB", "ONNX Runtime int8, MiB", "our library, MiB", "of fp32's"], lines)


def apart_table(stored):
    """One line a network, class and distance of the cores: calls a second, what two threads gain."""
    lines = []
    for row in stored["rows"]:
        calls = row["calls_per_second"]
        cells = [row["net"], row["isa"], f"{row['core_to_core_ns']:.0f} ns ({row['rounds']})"]
        cells += [f"{calls[how]:.0f}" for how in ("one", "threads", "processes")]
        lines.append([*cells, f"{row['speedup']:.2f}", f"{row['of_processes']:.2f}"])
    titles = ("network", "class", "core to core (rounds)", "one thread, calls/s", "one call on two",
              "two processes", "of one thread", "of two processes")  # fmt: skip
    return table(titles, lines)


def serving_table(stored):
    """One line a network: calls a second of threads and of processes, and what a context costs."""
    lines = []
    for row in stored["rows"]:
        calls, kib = row["calls_per_second"], row["memory_kib"]
        quartiles = " to ".join(f"{q:.2f}" for q in row["ratio_quartiles"])
        speed = [f"{calls[how]:.0f}" for how in ("one", "threads", "processes")]
        memory = [f"{kib[count] / 1024:.1f}" for count in ("1", "2", "4")]
        ratio = f"{row['ratio']:.2f} ({quartiles})"
        lines.append([row["net"], *speed, ratio, *memory, f"{row['context_kib'] / 1024:.2f}"])
    titles = (
        "network",
        "one thread, calls/s",
        "two threads",
        "two processes",
        "threads / processes (quartiles)",
    )
    return table([*titles, "1 context, MiB", "2", "4", "one more"], lines)


def avx2_accuracy_table(accuracy, avx2):
    """ONNX Runtime with and without VNNI on the same models, beside our default on either."""
    rows, mine = keyed(accuracy), accuracy["default_method"]
    lines = []
    for row in avx2["rows"]:
        there = rows.get((row["net"], "onnxruntime", row["method"], 8))
        ours = [cell(rows.get((row["net"], "ours", mine, bits))) for bits in (8, 7)]
        lines.append([row["net"], row["method"], cell(row), cell(there), *ours])
    return table(
        ["network", "ONNX Runtime", "INT8, AVX2 alone", "INT8, with VNNI", "our INT8", "our INT7"], lines
    )


def saturated_table(stored):
    """One line a network and width: what ONNX Runtime computes otherwise in our exported networks."""
    return table(
        ["network", "bits", "stored values", "differ", "largest, steps", "layers' own", "saturated",
         "unexplained"],
        [
            [r["net"], r["bits"], r["values"], r["different"],
             r["largest_steps"], r["own_differences"], r["saturated"], r["unexplained"]]
            for r in stored["rows"] if r["graph_optimizations"]
        ],
    )  # fmt: skip


def ablation_table(stored):
    """One line a variant of the search: signal to noise and relative entropy of each network's output."""
    rows = {(row["variant"], row["net"]): row for row in stored["rows"]}
    nets = list(dict.fromkeys(row["net"] for row in stored["rows"]))
    counts = {row["net"]: row["n"] for row in stored["rows"]}
    lines = []
    for variant in VARIANTS:
        found = [rows.get((variant, net)) for net in nets]
        if any(found):
            cells = (f"{r['sqnr_db']:.2f} dB, {r['kl']:.4f}" if r else "not measured" for r in found)
            lines.append([variant, *cells])
    return table(["variant", *(f"{net}, {counts[net]} images" for net in nets)], lines)


def decibels(row):
    """The SQNR of each output."""
    return " / ".join("equal" if x is None else f"{x:.1f}" for x in row["sqnr_db"])


def relax_table(stored):
    """One line a network: the same table built by either host."""
    lines = []
    for net in dict.fromkeys(row["net"] for row in stored["rows"]):
        mine = {row["runner"]: row for row in stored["rows"] if row["net"] == net}
        old, new = mine["tvm_easyquant-int7"], mine["tvm_easyquant-int7-relax"]
        lines.append([
            net, f"{old['ms_median']:.2f}", f"{new['ms_median']:.2f}", f"{new['over_ours_avx2']:.2f}",
            f"{old['peak_rss_mib']:.0f}", f"{new['peak_rss_mib']:.0f}",
        ])  # fmt: skip
    return table(
        ["network", "TVM 0.19, ms", "apache-tvm 0.27, ms", "ratio of rounds", "peak MiB", "peak MiB, 0.27"],
        lines,
    )


def outputs_cells(row):
    """Of a row of outputs.json: SQNR, and boxes or top-1."""
    if row is None:
        return ["not measured", ""]
    if "match" in row:
        more = (
            f"{row['match']} of {row['boxes']}, mAP {row['map']:.1f} ({row['map'] - row['fp32_map']:+.1f})"
        )
        if far := row.get("mirrored"):
            more += f"; {far['match']} of {far['boxes']}, {far['map'] - far['fp32_map']:+.1f}"
    elif "top1" in row:
        difference = row["top1"] - row["fp32_top1"]
        more = f"{row['top1']:.2f} ({difference:+.2f}; +{row['gained']} -{row['lost']})"
    else:
        each = [x for x in row.get("median_db", ()) if x is not None]
        more = f"median image {' / '.join(f'{x:.1f}' for x in each)}" if each else ""
    return [decibels(row), more]


def outputs_table(stored):
    """One line a network and width: how near the outputs come to fp32's, by us and by the best peer. Then
    the parts of the default alone and together, and their time."""
    rows = [row for row in stored["rows"] if "failed" not in row]
    known = {(r["net"], r["runner"], r["setting"], r["bits"]): r for r in rows}
    lines, ablation, times = [], [], []

    def mean(row):
        return sum(1e3 if x is None else x for x in row["sqnr_db"]) / len(row["sqnr_db"])

    for net in dict.fromkeys(row["net"] for row in rows):
        peers = [r for r in rows if r["net"] == net and r["runner"] in TOOLS]
        best = max(peers, key=mean, default=None)
        for bits in (8, 7):
            before, mine = (known.get((net, "ours", name, bits)) for name in ("none", "default"))
            if mine is None:
                continue
            theirs = outputs_cells(best) if bits == 8 else ["", ""]
            theirs += [f"{TOOLS[best['runner']]} {best['setting']}" if best and bits == 8 else ""]
            old = known.get((net, "ours", "minmax", bits)) if before is None else before
            was = f"{decibels(old)}{'' if before else ' (min-max)'}" if old else ""
            lines.append([net, bits, *outputs_cells(mine), was, *theirs])
            found = [r for r in rows if (r["net"], r["runner"], r["bits"]) == (net, "ours", bits)]
            if before is not None:
                ablation += [
                    [net, bits, r["setting"], *outputs_cells(r), f"{r['quantize_cpu_seconds']:.0f}"]
                    for r in found
                ]
            if row := known.get((net, "speed", "default over none", bits)):
                old, new = row["milliseconds"]
                times.append([net, bits, f"{old:.2f}", f"{new:.2f}", f"{row['time_ratio']:.3f}"])
    head = ["network", "bits", "ours, dB", "boxes or top-1", "without A, B, C, dB"]
    parts = [table([*head, "best of the others, INT8, dB", "boxes or top-1", "which"], lines)]
    if ablation:
        parts.append(table(["network", "bits", "parts", "dB", "boxes or top-1", "search, CPU s"], ablation))
    if times:
        parts.append(table(["network", "bits", "without A, B, C, ms", "default, ms", "ratio"], times))
    return "\n\n".join(parts)


def search_table(stored):
    """One line a case: what calibration and search take."""
    lines = []
    for row in stored["rows"]:
        seconds = [f"{row[f'{what}_{clock}']:.0f}" if f"{what}_{clock}" in row else ""
                   for what in ("calibrate", "search") for clock in ("wall", "cpu")]  # fmt: skip
        scales = f"{row['differ']} of {row['of']}" if "differ" in row else ""
        peak = f"{row['peak_gib']:.2f}"
        lines.append([row["case"], row["network"], row["images"], *seconds, peak, scales])
    return table(
        ["case", "network", "images", "calibration, s", "CPU s", "search, s", "CPU s", "peak GiB",
         "scales that differ from the exhaustive search"],
        lines,
    )  # fmt: skip


def cluster_tables(stored) -> dict[str, tuple[list[str], list[list[str]]]]:
    """{"work", "traffic"}: the header and the lines of what `cluster.py` has found."""
    work, traffic = [], []
    for name, found in stored["networks"].items():
        for what, each in found["medians"].items():
            one, two = each["one process"], each["two workers"]
            cpu = [one["here"], two["here"], two["workers"]]
            on = f"{found['judged'] if what.startswith('evaluate') else found['images']} images"
            work.append([name, f"{what}, {on}", *(f"{seconds:.1f}" for seconds in cpu)])
        for each in found["traffic"]:
            kinds = each["kinds"]
            sizes = [each["sent"], kinds["images"], kinds["network"], kinds["tensors"]]
            sizes += [each["returned"], each["between"]]
            traffic.append(
                [name, str(each["images"]), *(f"{mb:.1f}" for mb in sizes), str(each["exchanges"])]
            )
    return {
        "work": (["network", "work", "one process, CPU s", "on two workers: here, CPU s",
                  "both workers, CPU s"], work),
        "traffic": (["network", "images", "sent, MB", "of it images", "the network", "layers' tensors",
                     "returned, MB", "between workers, MB", "exchanges"], traffic),
    }  # fmt: skip


def cluster_readme(stored):
    """The tables of `cluster_tables` for the page of benchmarks."""
    return "\n\n".join(table(*each) for each in cluster_tables(stored).values())


def cluster_page(stored, what: str) -> str:
    """One of `cluster_tables` for a page of the documentation."""
    header, lines = cluster_tables(stored)[what]
    rows = ["\n".join(f"   {' ' if i else '*'} - {cell}" for i, cell in enumerate(row))
            for row in (header, *lines)]  # fmt: skip
    return "\n".join([".. list-table::", "   :header-rows: 1", "", *rows])


LAYER_RUNNERS = ("onnxruntime-int8", "onnxruntime-fp32", "tvm-int8", "tvm-fp32")


def main():
    layers, accuracy, networks = map(stored, ("layers_avx2.json", "accuracy.json", "networks_avx2.json"))
    accuracy = current(accuracy, stored("outputs.json"))
    wide = stored("networks_avx512.json")
    wrong = sorted(r["wrong_outputs"] for r in layers["rows"] if "wrong_outputs" in r)
    text = f"""<!-- measured -->

Whole networks, 224x224, batch 1, random weights: the time of each runtime divided by ours. One pinned
thread, everybody capped at AVX2, medians of one interleaved run on
{cpu(networks["machine"])}. Ours equals the numpy reference bit for bit before it is timed.

{networks_table(networks, "avx2")}

The same, everybody capped at AVX-512 with VNNI, on {cpu(wide["machine"])}:

{networks_table(wide, "avx512vnni")}

{accuracy_text(accuracy, stored("accuracy_avx2.json"))}

Layer by layer, with AVX-512 without VNNI, throughput, memory and size:
[benchmarks/README.md](benchmarks/README.md#speed).
TVM's own int8 convolution is in those tables although, on full-range 8-bit weights, up to
{wrong[-1]:.0%} of its outputs are wrong on AVX2. Made by `networks.py`, `layers.py`, `accuracy.py` and
`outputs.py` (our default) in `benchmarks/`; the command, the machine, the versions and every setting are in
`benchmarks/results/`.

<!-- /measured -->"""
    tables = {
        "layers": layers_table(layers),
        "networks": networks_table(networks, "avx2"),
        "throughput": throughput_table(stored("throughput_avx512vnni.json")),
        "memory": memory_table(networks),
        "two_threads": apart_table(stored("two_threads.json")),
        "serving": serving_table(stored("threads.json")),
        "avx512bw": networks_table(wide, "avx512bw"),
        "avx512vnni": networks_table(wide, "avx512vnni"),
        "accuracy": accuracy_details(accuracy),
        "accuracy_avx2": avx2_accuracy_table(accuracy, stored("accuracy_avx2.json")),
        "saturated": saturated_table(stored("interchange_avx2.json")),
        "ablation": ablation_table(stored("ablation.json")),
        "search": search_table(stored("search.json")),
        "search_avx2": search_table(stored("search_avx2.json")),
        "outputs": outputs_table(stored("outputs.json")),
        "cluster": cluster_readme(stored("cluster.json")),
        "today": today_table(
            {
                ("AVX2", "avx2"): stored("networks_today_avx2.json"),
                ("VNNI", "avx512vnni"): stored("networks_today_avx512.json"),
            },
            stored("integers.json"),
        ),
        "coverage": coverage_table(stored("integers.json")),
        "relax": relax_table(stored("networks_relax_avx2.json")),
    }
    for mark, content in tables.items():
        between(ROOT / "benchmarks" / "README.md", mark, content)
    page = ROOT / "docs" / "cluster.rst"
    for what in ("work", "traffic"):
        old, found = page.read_text(encoding="utf-8"), cluster_page(stored("cluster.json"), what)
        block = f".. {what}\n\n{found}\n\n.. /{what}\n"
        new = re.sub(
            rf"^\.\. {what}\n.*^\.\. /{what}\n", lambda _, block=block: block, old, flags=re.S | re.M
        )
        page.write_text(new, encoding="utf-8")
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    readme.write_text(re.sub(r"<!-- measured -->.*<!-- /measured -->", lambda _: text, old, flags=re.S))


if __name__ == "__main__":
    main()
