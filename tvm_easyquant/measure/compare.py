"""Reports beside each other: what was gained and lost from one to the next, and what differs. No TVM here.

A report's facts are those of `collect.collect`; `read` takes them from a page or a JSON file made before.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ReportError
from ..files import parse_json, read_text
from .accuracy import sign_test

FORMAT = "tvm_easyquant report"
#: raised when a reader of another version would misread the facts
VERSION = 1
_DATA = re.compile(r'<script type="application/json" id="facts">(.*?)</script>', re.S)
_PICTURE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]*")
_NUMBER = (int, float)
#: what a page needs of the facts, and of a layer's; (type, ...): or None
_FACTS = {
    "model": str, "table": str, "fingerprint": str, "version": str, "created": str, "target": str,
    "host": dict, "config": dict, "data": dict, "coverage_percent": _NUMBER,
    "coverage_is_upper_bound": bool, "weight_bytes": dict, "accuracy": dict, "benchmark": (dict, None),
    "objective": (str, None), "floats": dict, "skip_line": str, "layers": list, "activations": dict,
    "graph": dict, "evaluated": (dict, None), "pictures": dict,
}  # fmt: skip
_LAYER = {
    "number": int, "name": str, "op": str, "weight": list, "output": list, "groups": int, "macs": _NUMBER,
    "macs_percent": _NUMBER, "bits": (int, None), "kernel": str, "why": str, "proof": str, "refused": dict,
    "saturation": (dict, None), "cosine": (*_NUMBER, None), "sqnr_db": (*_NUMBER, None),
    "ms": (*_NUMBER, None), "ms_fp32": (*_NUMBER, None), "histograms": dict, "curves": dict,
    "weight_scale": (*_NUMBER, None), "digest": (str, None),
}  # fmt: skip
_ACCURACY = {
    "n": int, "value": _NUMBER, "reference": _NUMBER, "difference": _NUMBER, "interval": (list, None),
    "changed": list, "changed_left_out": int,
}  # fmt: skip
_CHANGED = {
    "sample": int, "name": str, "label": str, "value": _NUMBER, "reference": _NUMBER,
    "answer": (int, None), "answer_reference": (int, None),
}  # fmt: skip
_TIME = {
    "ms": _NUMBER, "ms_fp32": _NUMBER, "threads": int, "rounds": int, "headline": str, "notes": list,
    "size": (int, None), "size_fp32": (int, None), "other_ms": _NUMBER, "doubt": (str, None),
}  # fmt: skip


def read(path: str | os.PathLike) -> list[dict]:
    """The facts in a page that `report.render` made, or in its JSON: the report's own, then those it was
    compared with. Raises ReportError, which names the file."""
    text = read_text(path, ReportError, "the report")
    if not text.lstrip().startswith("{"):
        found = _DATA.search(text)
        if found is None:
            raise ReportError(
                f"{path} holds no data of a report; name a page or JSON that `report` of this release made"
            )
        text = found[1]
    facts = parse_json(text, ReportError, str(path))
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise ReportError(f"{path} is no report of a model; name a page or JSON that `report` made")
    if facts.get("format_version") != VERSION:
        raise ReportError(
            f"{path} is of another release (version {facts.get('format_version')!r} of the data, this "
            f"one reads {VERSION}); make the report anew"
        )
    others = facts.pop("compared", [])
    every = [facts, *(others if isinstance(others, list) else [])]
    for each in every:
        _check(each, path)
    kinds = {"width": _NUMBER, "height": _NUMBER, "nodes": list, "edges": list}
    _has(facts["graph"], kinds, path, "the graph")
    return every


def _check(facts: object, path) -> None:
    """ReportError unless all that a page shows is there and of its kind."""
    facts = _has(facts, _FACTS, path, "it")
    for layer in facts["layers"]:
        _has(layer, _LAYER, path, "a layer")
    for name, accuracy in facts["accuracy"].items():
        for each in _has(accuracy, _ACCURACY, path, f"accuracy {name}")["changed"]:
            _has(each, _CHANGED, path, "a changed sample")
    for site in facts["activations"].values():
        _has(site, {"scale": _NUMBER, "zero_point": int}, path, "a scale")
    if facts["benchmark"] is not None:
        _has(facts["benchmark"], _TIME, path, "the benchmark")
    if facts["evaluated"] is not None:
        _has(facts["evaluated"], {"data": str, "samples": int, "digest": str}, path, "the evaluation")
    _has(facts["weight_bytes"], {"float32": int, "integer": int}, path, "weight_bytes")
    _has(facts["config"], {"bits": int, "method": str, "layer_bits": list, "skip": list}, path, "config")
    facts["pictures"] = {
        n: uri for n, uri in facts["pictures"].items() if isinstance(uri, str) and _PICTURE.fullmatch(uri)
    }


def _has(value: object, kinds: Mapping[str, Any], path, what: str) -> dict:
    if not isinstance(value, dict):
        raise ReportError(f"{path} is damaged: {what} is no object")
    for name, kind in kinds.items():
        allowed = tuple(
            type(None) if k is None else k for k in (kind if isinstance(kind, tuple) else (kind,))
        )
        if name not in value or not isinstance(value[name], allowed):
            raise ReportError(f"{path} is damaged: {what} lacks {name}, or it is of another kind")
    return value


def slim(facts: Mapping) -> dict:
    """The facts of a report that is compared with another: without what only its own page draws."""
    layers = [{**layer, "histograms": {}, "curves": {}} for layer in facts["layers"]]
    return {**facts, "layers": layers, "graph": {}}


def check_same_network(runs: Sequence[Mapping]) -> None:
    """ReportError if a report has no layer in common with the first."""
    names = {layer["name"] for layer in runs[0]["layers"]}
    for run in runs[1:]:
        if not names & {layer["name"] for layer in run["layers"]}:
            raise ReportError(
                f"the reports of {runs[0]['table']} and {run['table']} have no layer in common; compare "
                "reports of one network"
            )


def labels(runs: Sequence[Mapping]) -> list[str]:
    """What each run is called on the page: its table's name, with a number where two have the same."""
    names = [run["table"] or run["model"] for run in runs]
    return [
        f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]


def comparison(runs: Sequence[Mapping]) -> dict:
    """What the page says of two or more runs, the first of which the others are compared with.

    {"names", "metrics": {metric: the figure of each run}, "answers": gained and lost from the first to each
    other one, by metric, "settings": those that differ, "layers": those whose integers or kernel differ,
    "activations": scales that differ, the most changed first, "same": (number of layers, of tensors) alike
    in all}
    """
    first, *others = runs
    names = labels(runs)
    metrics = list(dict.fromkeys(name for run in runs for name in run["accuracy"]))
    by_name = [{layer["name"]: layer for layer in run["layers"]} for run in runs]
    every = list(dict.fromkeys(name for run in by_name for name in run))
    layers = [_layer(name, [run.get(name) for run in by_name]) for name in every]
    sites = list(dict.fromkeys(name for run in runs for name in run["activations"]))
    scales = [_site(name, [run["activations"].get(name) for run in runs]) for name in sites]
    changed = [each for each in scales if each["differs"]]
    changed.sort(key=lambda each: -(each["ratio"] or float("inf")))
    different = [each for each in layers if each["differs"]]
    return {
        "names": names,
        "metrics": {name: [run["accuracy"].get(name) for run in runs] for name in metrics},
        "answers": [
            _answers(name, first, other, label)
            for other, label in zip(others, names[1:], strict=True)
            for name in metrics
            if name in first["accuracy"] and name in other["accuracy"]
        ],
        "settings": _settings(runs),
        "layers": different,
        "activations": changed,
        "same": (len(layers) - len(different), len(scales) - len(changed)),
    }


def _layer(name: str, rows: Sequence[Mapping | None]) -> dict:
    def all_of(key):
        return [None if row is None else row[key] for row in rows]

    found = {key: all_of(key) for key in ("bits", "kernel", "sqnr_db", "ms", "weight_scale")}
    return {
        "name": name,
        **found,
        "differs": any(len(set(all_of(key))) > 1 for key in ("bits", "kernel", "digest")),
        "ratios": _ratios(found["weight_scale"]),
    }


def _ratios(values: Sequence[float | None]) -> list[float | None]:
    """Each over the first, where both are known."""
    first = values[0]
    return [v / first if v and first else None for v in values]


def _site(name: str, scales: Sequence[Mapping | None]) -> dict:
    ratios = _ratios([None if s is None else s["scale"] for s in scales])
    known = [max(r, 1 / r) for r in ratios if r]
    return {
        "name": name,
        "scales": list(scales),
        "ratios": ratios,
        "ratio": max(known) if len(known) == len(scales) else None,  # one lacks it: that comes first
        "differs": any(
            (s and (s["scale"], s["zero_point"]))
            != (scales[0] and (scales[0]["scale"], scales[0]["zero_point"]))
            for s in scales
        ),
    }


def _settings(runs: Sequence[Mapping]) -> list[dict]:
    """What differs of the settings, and of what the figures were found with."""
    names = dict.fromkeys(name for run in runs for name in run["config"])
    rows = [(name, [_shown(run["config"].get(name)) for run in runs]) for name in names]
    rows.append(("calibration samples", [_shown(run["data"].get("samples")) for run in runs]))
    rows.append(("preprocessing", [_shown(run["data"].get("preprocess")) for run in runs]))
    rows.append(("nodes that stay float", [_shown(sorted(run["floats"])) for run in runs]))
    rows.append(("target", [run["target"] for run in runs]))
    rows.append(("CPU", [_shown(run["host"].get("cpu")) for run in runs]))
    rows.append(("TVM", [_shown(run["host"].get("tvm")) for run in runs]))
    rows.append(("tvm_easyquant", [run["version"] for run in runs]))
    return [{"name": name, "values": values} for name, values in rows if len(set(values)) > 1]


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {v}" for k, v in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None or value == "" else str(value)


def _answers(metric: str, first: Mapping, other: Mapping, label: str) -> dict:
    """Which samples ``other`` gained and lost against ``first``.

    Both know the samples that differ from float32; what neither names is as float32 in both.
    """
    a, b = first["accuracy"][metric], other["accuracy"][metric]
    found: dict = {"metric": metric, "label": label, "gained": [], "lost": [], "why_not": ""}
    found["difference"] = b["value"] - a["value"]
    if not (first["evaluated"] and other["evaluated"]) or "gained" not in a:
        found["why_not"] = "a metric of the whole set says nothing of a sample" if "gained" not in a else (
            "a report says nothing of its samples"
        )  # fmt: skip
    elif first["evaluated"]["digest"] != other["evaluated"]["digest"]:
        found["why_not"] = (
            f"they were evaluated on different samples: {first['evaluated']['samples']} of "
            f"{first['evaluated']['data']}, {other['evaluated']['samples']} of {other['evaluated']['data']}"
        )
    if found["why_not"]:
        return found
    mine, theirs = ({each["sample"]: each for each in x["changed"]} for x in (a, b))
    for sample in sorted({*mine, *theirs}):
        known = theirs.get(sample) or mine[sample]
        before = mine[sample]["value"] if sample in mine else known["reference"]
        after = theirs[sample]["value"] if sample in theirs else known["reference"]
        if before != after:
            answers = [
                x[sample]["answer"] if sample in x else known["answer_reference"] for x in (mine, theirs)
            ]
            each = {"sample": sample, "name": known["name"], "label": known["label"], "answers": answers}
            found["gained" if after > before else "lost"].append(each)
    found["p"] = sign_test(len(found["gained"]), len(found["lost"]))
    found["left_out"] = a["changed_left_out"] + b["changed_left_out"]
    return found
