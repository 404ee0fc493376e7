"""The report on a quantized network: facts of its layers, and one HTML page of them. No TVM here.

`histograms` and `saturation` make facts of a layer; `measure.collect.collect` gathers all of them; `render`
makes the page (extra ``report``: jinja2). Its plots are SVG that its own script, `data/report.js`, draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files

import numpy as np

from ..files import plain
from ..network.graph import Graph, run
from ..scales.partition import Plan
from ..scales.table import ScaleTable
from . import compare

Progress = Callable[[int, int, str], None]
BINS = 64
INT16_MAX = 32767


def saturation(weight: np.ndarray, data_max: int) -> dict:
    """Whether ``pmaddubsw``, which adds two products in int16, could saturate on a layer.

    weight: int8 (R, S, C, K); data: uint8, at most ``data_max``; neighbours in C are paired, as libraries
    pack them. {"safe": bool, "worst": the largest magnitude of a pair's sum, "text": the verdict}; a layer
    that is not safe comes with the weights that prove it.
    """
    r, s, c, k = weight.shape
    wide = np.zeros((r, s, c + c % 2, k), np.int64)
    wide[:, :, :c] = weight
    pairs = wide.reshape(r, s, -1, 2, k)
    reach = np.maximum(np.maximum(pairs, 0).sum(axis=3), -np.minimum(pairs, 0).sum(axis=3)) * data_max
    y, x, pair, channel = np.unravel_index(int(reach.argmax()), reach.shape)
    worst = int(reach[y, x, pair, channel])
    if worst <= INT16_MAX:
        return {
            "safe": True,
            "worst": worst,
            "text": f"cannot saturate: pairs reach {worst} of {INT16_MAX}",
        }
    first, second = pairs[y, x, pair, :, channel]
    return {
        "safe": False,
        "worst": worst,
        "text": (
            f"pmaddubsw could saturate: weights {first} and {second} (output channel {channel}, inputs "
            f"{2 * pair} and {2 * pair + 1}) on data of {data_max} reach {worst} of {INT16_MAX}"
        ),
    }


def histograms(
    graph: Graph,
    plan: Plan,
    table: ScaleTable,
    samples: Iterable[Mapping],
    progress: Progress | None = None,
) -> dict[str, dict]:
    """{integer layer: {"weights": histogram, "activations": histogram}} of the float values.

    A histogram: {"edges": (BINS + 1,), "counts": (BINS,), "clip": (low, high), "clipped": share outside}.
    Weights are relative to the largest that their channel's scale holds, so that all channels share the
    clip lines -1 and 1. Activations are the layer's input, over ``samples`` (none: no such histogram).
    """
    layers = [node for node in graph.compute_nodes if node.name in plan.integer]
    found: dict[str, dict] = {}
    for node in layers:
        flat = node.weight.reshape(-1, node.channels)
        top = 2 ** (table.config.bits_of(node.name) - 1) - 1
        values = flat / (table.rounding_scale(node.name) * top)
        edge = max(1.05, float(np.abs(values).max()))
        counts, edges = np.histogram(values, BINS, (-edge, edge))
        found[node.name] = {
            "weights": _histogram(counts, edges, -1.0, 1.0, float((np.abs(values) > 1).mean()))
        }
    samples = list(samples)
    wanted: dict[str, list[str]] = {}
    for node in layers:
        wanted.setdefault(node.inputs[0], []).append(node.name)
    ranges = {name: [0.0, 0.0] for name in wanted}

    def see_range(node, value):
        if node.name in ranges:
            low, high = ranges[node.name]
            ranges[node.name] = [min(low, float(value.min())), max(high, float(value.max()))]

    binned = {name: np.zeros(BINS, np.int64) for name in wanted}
    outside = dict.fromkeys(wanted, 0)
    limits = {name: _limits(table.activations[plan.site_of[name]]) for name in wanted}

    def count(node, value):
        if node.name in binned:
            low, high = limits[node.name]
            binned[node.name] += np.histogram(value, BINS, edges_of[node.name])[0]
            outside[node.name] += int(((value < low) | (value > high)).sum())

    edges_of: dict[str, tuple[float, float]] = {}
    for visit in (see_range, count) if samples else ():
        edges_of = {n: (low, high if high > low else low + 1.0) for n, (low, high) in ranges.items()}
        for i, sample in enumerate(samples):
            run(graph, sample, visit)
            if progress is not None:
                done = i + 1 + (len(samples) if visit is count else 0)
                progress(done, 2 * len(samples), "histograms")
    for tensor, names in wanted.items() if samples else ():
        edges = np.linspace(*edges_of[tensor], BINS + 1)
        share = outside[tensor] / max(1, int(binned[tensor].sum()))
        made = _histogram(binned[tensor], edges, *limits[tensor], share)
        for name in names:
            found[name]["activations"] = made
    return found


def _limits(scale) -> tuple[float, float]:
    """The real values that a scale holds; half a step beyond them still rounds to the last."""
    return (
        scale.scale * (scale.lo - scale.zero_point - 0.5),
        scale.scale * (scale.hi - scale.zero_point + 0.5),
    )


def _histogram(counts, edges, low, high, clipped) -> dict:
    return {
        "edges": [float(f"{e:.5g}") for e in edges],
        "counts": [int(c) for c in counts],
        "clip": [float(f"{low:.5g}"), float(f"{high:.5g}")],
        "clipped": clipped,
    }


def worst_layers(table: ScaleTable, count: int = 3) -> list[str]:
    """The integer layers with the least signal to noise, worst first; those above 40 dB are fine."""
    noise = {name: f["sqnr_db"] for name, f in table.figures.items() if "sqnr_db" in f}
    bad = [name for name in sorted(noise, key=lambda n: noise[n]) if noise[name] < 40]
    return bad[:count]


def weight_bytes(graph: Graph, plan: Plan) -> tuple[int, int]:
    """(bytes of the float network's weights and biases, of the quantized one's with their multipliers)."""
    before = sum(4 * (node.weight.size + node.channels) for node in graph.compute_nodes)
    after = sum(
        node.weight.size + 8 * node.channels
        if node.name in plan.integer
        else 4 * (node.weight.size + node.channels)
        for node in graph.compute_nodes
    )
    return before, after


def check_packages() -> None:
    """ImportError, which names the package, unless `render` can work."""
    import jinja2  # noqa: F401


def render(facts: Mapping) -> str:
    """The HTML page of the facts that `measure.collect.collect` gathers: one file, no request leaves it.

    facts["compared"], if there: the facts of other tables of the network, whose figures stand beside the
    first's. The page holds all of them as JSON, which `compare.read` takes from it. Raises ReportError if
    the networks have no layer in common.
    """
    others = facts.get("compared", [])
    runs = [plain(dict(each)) for each in (facts, *others)]
    compare.check_same_network(runs)
    compared = compare.comparison(runs) if others else None
    pictures = {}
    for each in reversed(runs):  # of the same samples, or none that is compared
        if _same_samples(each, facts):
            pictures.update(each["pictures"])
    return _page("report.html", facts, compared=compared, runs=runs, labels=compare.labels(runs),
                 pictures=pictures, script=_read("report.js"))  # fmt: skip


def _same_samples(run: Mapping, other: Mapping) -> bool:
    known = run["evaluated"], other["evaluated"]
    return all(known) and known[0]["digest"] == known[1]["digest"]


def render_package(facts: Mapping) -> str:
    """The same of `measure.collect.collect_package`: tables, no plots, no script."""
    return _page("package.html", facts)


def _read(name: str) -> str:
    return (files("tvm_easyquant") / "data" / name).read_text(encoding="utf-8")


def _page(name: str, facts: Mapping, **more: object) -> str:
    import jinja2

    loader = jinja2.FunctionLoader(_read)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, loader=loader)
    return environment.get_template(name).render(facts=plain(dict(facts)), **more)
