"""Gathers the facts of a report: kernels and their proofs, error, times, accuracy, curves, histograms; of a
package what it knows of these."""

from __future__ import annotations

import datetime
import hashlib
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .. import package
from ..errors import CurvesError, TableError
from ..network.graph import Graph
from ..scales.table import ScaleTable
from . import compare, report
from .accuracy import Paired, PairedSet
from .answers import Answers
from .drawing import drawing

if TYPE_CHECKING:
    from topi_ext.lower import LayerChoice


def collect(
    graph: Graph,
    table: ScaleTable,
    layers: Iterable[LayerChoice],
    *,
    target: str,
    machine: Mapping[str, object],
    version: str,
    samples: Sequence[Mapping] = (),
    curves: Any = None,
    benchmark: Any = None,
    accuracy: Mapping[str, Paired | PairedSet] | None = None,
    answers: Answers | None = None,
    name: str = "",
    by_class: str | None = None,
    progress=None,
) -> dict:
    """The facts of `report.render`, as plain values.

    layers: the kernel of each for ``target``: of a `Built`, or `Host.layer_choices`. machine: of
    `Host.describe`; version: of this package. samples: calibration inputs, for histograms. curves
    (`Curves`), benchmark (`Host.benchmark`), accuracy: what was recorded and measured, each may be left
    out. answers: which watched the metrics of ``accuracy``, for the samples that changed. name: of the
    table, where several are compared; by_class: what each class of CPUs runs, where a file has several.
    Raises TableError if the table does not fit the graph, CurvesError if the curves are another model's.
    """
    plan = table.check(graph)
    if curves is not None and curves.model != graph.fingerprint:
        raise CurvesError("the search record belongs to another model; record this one's search")
    layer_of = {layer.name: layer for layer in layers}
    times = {row.name: row for row in benchmark.layers} if benchmark else {}
    histograms = report.histograms(graph, plan, table, samples, progress)
    rows = [
        {
            "number": number,
            "name": node.name,
            "op": node.op,
            "weight": list(node.public_weight.shape),
            "output": list(node.shape),
            "groups": node.groups,
            "macs": node.macs,
            "macs_percent": 100 * (node.macs or 0) / graph.macs,  # a layer's are known
            "bits": table.config.bits_of(node.name) if node.name in plan.integer else None,
            **_kernel(layer_of.get(node.name), plan.floats.get(node.name, "")),
            "cosine": table.figures.get(node.name, {}).get("cosine"),
            "sqnr_db": table.figures.get(node.name, {}).get("sqnr_db"),
            "ms": times[node.name].ms if node.name in times else None,
            "ms_fp32": times[node.name].ms_fp32 if node.name in times else None,
            "histograms": histograms.get(node.name, {}),
            "curves": _curves(curves, node, plan),
            **_stored(table, node.name),
        }
        for number, node in enumerate(graph.compute_nodes, 1)
    ]
    worst = report.worst_layers(table)
    before, after = report.weight_bytes(graph, plan)
    judged = {
        metric: {
            **asdict(paired),
            "drop": paired.drop,
            **(answers.changed(metric) if answers is not None else {"changed": [], "changed_left_out": 0}),
        }
        for metric, paired in (accuracy or {}).items()
    }
    changed = [each["sample"] for found in judged.values() for each in found["changed"]]
    return {
        "format": compare.FORMAT,
        "format_version": compare.VERSION,
        "model": graph.name,
        "table": name,
        "by_class": by_class,
        "fingerprint": graph.fingerprint,
        "version": version,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "target": target,
        "host": dict(machine),
        "config": asdict(table.config),
        "data": dict(table.data),
        **plan.coverage(graph).facts,
        "weight_bytes": {"float32": before, "integer": after},
        "accuracy": judged,
        "evaluated": answers.facts() if answers is not None else None,
        "pictures": answers.pictures(changed) if answers is not None else {},
        "benchmark": _timing(benchmark),
        "objective": curves.objective if curves is not None else None,
        "floats": dict(plan.floats),
        "skip_line": shlex.join(["--skip", *table.config.skip, *worst]) if worst else "",
        "layers": rows,
        "activations": {
            site: {"scale": s.scale, "zero_point": s.zero_point} for site, s in table.activations.items()
        },
        "graph": drawing(graph, plan),
    }


#: what a package lacks -> what brings it to its report
WITHOUT_MODEL = (
    "shapes and multiply-accumulates of the layers, what stays float and why, the comparison with float32"
)
LAYERS_ONLY = "kernels and their proofs, times of layers, histograms and curves of the search"


def collect_package(
    name: str,
    chosen: package.Chosen,
    table: ScaleTable,
    graph: Graph | None = None,
    *,
    version: str,
    machine: Mapping[str, object],
    accuracy: Mapping[str, Mapping] | None = None,
    benchmark: Mapping | None = None,
) -> dict:
    """The facts of `report.render_package`, as plain values: what a package and its table know.

    name: the package's; chosen: the variant that runs here; graph: the network that the table is of, where
    the model is at hand; the rest as of `collect`, as plain values.
    """
    record, variant = chosen.record, chosen.variant
    if record is None or variant is None:
        raise TableError(f"{name} has no record of what it is")
    rows: list[dict[str, Any]] = []
    calls = [layer for layer in variant.layers if layer in table.weights]  # a pool is called, too
    for number, layer in enumerate(calls, 1):
        weights, figures = table.weights[layer], table.figures.get(layer, {})
        node = None if graph is None else graph[layer]
        rows.append(
            {
                "number": number,
                "name": layer,
                "bits": table.config.bits_of(layer),
                "channels": len(weights),
                "scales": [float(weights.min()), float(weights.max())],
                "cosine": figures.get("cosine"),
                "sqnr_db": figures.get("sqnr_db"),
                "weight": None if node is None else list(node.public_weight.shape),
                "output": None if node is None else list(node.shape),
                "macs_percent": None
                if node is None or graph is None
                else 100 * (node.macs or 0) / graph.macs,
            }
        )
    plan = None if graph is None else table.check(graph)
    out = [f"left out, as a package holds no model: {LAYERS_ONLY}; report MODEL --table FILE brings them"]
    if graph is None:
        out.insert(0, f"left out, as a package holds no model: {WITHOUT_MODEL}; --float MODEL brings them")
    if accuracy is None:
        out.append("left out: the accuracy; --data DATA brings it")
    return {
        "package": name,
        "fingerprint": table.model,
        "version": version,
        "tool": record.tool,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "host": dict(machine),
        "config": asdict(table.config),
        "data": dict(table.data),
        "variant": variant.name,
        "variants": [
            {
                "name": each.name,
                "bits": record.tables[each.table]["config"]["bits"] if each.table else None,
                "target": each.target,
                "runtime": each.version,
                "inputs": {n: str(taken) for n, taken in each.inputs.items()},
                "bytes": sum(file.size for file in each.files.values()),
                "runs": not each.needs.refusal,
                "refusal": each.needs.refusal,
            }
            for each in record.variants
        ],
        "layers": rows,
        "activations": [
            {"name": site, "scale": s.scale, "zero_point": s.zero_point, "lo": s.lo, "hi": s.hi}
            for site, s in table.activations.items()
        ],
        "coverage": None if plan is None or graph is None else plan.coverage(graph).facts,
        "weight_bytes": None if plan is None or graph is None else list(report.weight_bytes(graph, plan)),
        "floats": None if plan is None else dict(plan.floats),
        "accuracy": dict(accuracy or {}),
        "benchmark": benchmark,
        "left_out": out,
    }


def _kernel(layer: LayerChoice | None, why: str) -> dict:
    """The kernel of a layer and its proof; why: a float layer's reason."""
    if layer is None:
        return {"kernel": "TVM float32", "why": why, "proof": "", "refused": {}, "saturation": None}
    chosen = layer.choice
    return {
        "kernel": chosen.kernel.name,
        "why": chosen.reason,
        "proof": str(chosen.proof),
        "refused": dict(chosen.refused),
        "saturation": report.saturation(layer.weight, layer.spec.data_max),
    }


def _stored(table: ScaleTable, layer: str) -> dict:
    """The size of a layer's scales of weights, and whether its integers are another table's: the same
    digest for the same scales, steps, bias and gains."""
    if layer not in table.weights:
        return {"weight_scale": None, "digest": None}
    scales = table.weights[layer].astype(float)
    digest = hashlib.sha256(scales.tobytes())
    for more in (table.rounding, table.biases, table.gains):
        digest.update(more[layer].tobytes() if layer in more else b"-")
    mean = math.exp(sum(map(math.log, scales)) / len(scales))
    return {"weight_scale": float(f"{mean:.6g}"), "digest": digest.hexdigest()[:16]}


def _curves(curves, node, plan) -> dict:
    if curves is None:
        return {}
    site = plan.site_of.get(node.inputs[0])
    found = {"weights": curves.weights.get(node.name), "activations": curves.activations.get(site)}
    return {kind: curve for kind, curve in found.items() if curve}


def _timing(benchmark) -> dict | None:
    if benchmark is None:
        return None
    facts = {key: getattr(benchmark, key) for key in ("notes", "headline", "doubt")} | asdict(benchmark)
    del facts["layers"], facts["host"]
    return facts
