"""The float network of a model and the integers of its table: made, judged, timed and reported together.

The verbs ``evaluate``, ``benchmark`` and ``report`` and the methods of `Quantized` of these names are this.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from .. import __version__
from ..cluster import active
from ..errors import TVMMissing
from ..host import Host
from ..network.graph import Graph
from ..network.shapes import inputs_of
from ..samples import labelled, sources
from ..samples.images import Preprocess
from ..samples.labelled import LabelledSet
from ..scales import calibrate
from ..scales.integer import run_integer
from ..scales.suspicions import others
from ..scales.table import ScaleTable
from ..search.driver import layer_figures
from . import accuracy, notebook
from .accuracy import Metric, Paired, PairedSet
from .answers import Answers
from .collect import collect
from .race import Benchmark

Progress = Callable[[int, int, str], None]
#: called with lines about what is suspicious, before more work is done
Warn = Callable[[Iterable[str]], None]
#: samples on which other settings of pictures are tried
TRIED = 50
IN_NUMPY = "no TVM here: both networks run in numpy, which takes its time"


class Networks(NamedTuple):
    """Both, as a host builds them (`host.Built`), or as functions of {input: array}."""

    floats: Any
    integers: Any


def target_of(host: Host, asked: object) -> Any:
    """The checked target on which both run; None where there is no TVM, and none was asked for."""
    try:
        target = host.target(asked)
        host.check_cpu(target)
    except TVMMissing:
        if asked is not None:
            raise
        return None
    return target


def built(host: Host, graph: Graph, table: ScaleTable, target: Any) -> Networks:
    """Both, built for ``target``; graph: as it was loaded."""
    floats = host.build_float(host.float_module(graph), target)
    return Networks(floats, host.build(host.rewrite(table.prepared(graph), table), target))


def in_numpy(graph: Graph, table: ScaleTable) -> Networks:
    """The same without a host: they compute in numpy, the integers the same ones."""
    prepared = table.prepared(graph)
    table.check(prepared)

    return Networks(functools.partial(_floats, graph), functools.partial(_integers, prepared, table))


def _floats(graph: Graph, feed) -> list[np.ndarray]:
    return list(graph.run(feed).values())


def _integers(graph: Graph, table: ScaleTable, feed) -> list[np.ndarray]:
    found = run_integer(graph, table, feed)
    return [found[name] for name in graph.outputs]


class Shipped:
    """A network, a function of {input: array}, as the workers of a cluster run it: on several samples."""

    def __init__(self, network: Callable):
        self.network = network

    def __call__(self, samples: list) -> list:
        """The outputs of each sample."""
        return [self.network(feed) for feed in samples]


def here_or_there(network: Any) -> tuple[Callable[[Any], Any], Any]:
    """(what a network is made before, `accuracy.evaluate`'s ``spread``): for the cluster that
    ``joblib.parallel_config`` says, else for here, where what is compiled runs always."""
    found = None if hasattr(network, "export") else active()
    return (lambda network: network, map) if found is None else (Shipped, found.spread())


# -- accuracy


@dataclass(frozen=True, eq=False, repr=False)
class Evaluated(Mapping[str, Paired | PairedSet]):
    """{metric: the integers against float32 on the same samples}: ``found["top1"].drop``.

    data: the name of the labelled samples. warnings: lines about what is suspicious.
    """

    data: str
    metrics: Mapping[str, Paired | PairedSet]
    warnings: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Paired | PairedSet:
        return self.metrics[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.metrics)

    def __len__(self) -> int:
        return len(self.metrics)

    @property
    def lines(self) -> list[str]:
        """One for each metric, as the command line prints them."""
        return [f"{name}: integers {each}; p = {each.p:.3g}" for name, each in self.items()]

    @property
    def facts(self) -> dict[str, Any]:
        """The same as plain values, as the command line's JSON."""
        return {
            "data": self.data,
            "metrics": {name: {**asdict(each), "drop": each.drop} for name, each in self.items()},
        }

    def __repr__(self) -> str:
        figures = ", ".join(
            f"{name} {each.figure(each.value)} against {each.figure(each.reference)}"
            for name, each in self.items()
        )
        return f"<Evaluated on {self.data}: {figures}>"

    def _repr_html_(self) -> str:
        heads = ("metric", "integers", "float32", "difference", "95 %", "p", "samples")
        rows = []
        for name, each in self.items():
            shown = [
                each.figure(each.value),
                each.figure(each.reference),
                each.figure(each.difference, "+"),
            ]
            ends = "" if each.interval is None else " to ".join(each.figure(x, "+") for x in each.interval)
            rows.append((name, *shown, ends, "" if each.p is None else f"{each.p:.3g}", each.n))
        return notebook.table(f"accuracy on {self.data}", heads, rows, self.warnings)


def metrics_of(metric: str | Metric | Mapping[str, Metric] | None) -> dict[str, Metric]:
    """{name: metric} of one, of the name of one (``module:function``), of several, or of none: `TOP`.

    Raises EvaluationError.
    """
    if metric is None:
        return dict(accuracy.TOP)
    if isinstance(metric, Mapping):
        return dict(metric)
    if isinstance(metric, str):
        return {metric: labelled.named(metric, "outputs", "label")}
    return {accuracy.name_of(metric): metric}


def judge(
    judged: tuple[LabelledSet, Mapping[str, Metric]],
    networks: Networks,
    graph: Graph,
    *,
    batch: int = 1,
    warn: Warn,
    progress: Progress | None = None,
    others: Sequence[tuple[str, LabelledSet]] = (),
) -> dict[str, Paired | PairedSet]:
    """{metric: integers against the float network}; judged: labelled samples and {name: metric}.

    others: of `other_settings`, tried where float32 is right by chance only. Raises EvaluationError.
    """
    data, metrics = judged
    made, spread = here_or_there(networks.floats)
    networks = Networks(*map(made, networks))

    def scored(network, data, what, spread=spread):
        return accuracy.evaluate(
            network, data, inputs=inputs_of(graph), metrics=metrics, batch=batch, progress=progress,
            what=what, spread=spread,
        )  # fmt: skip

    labels: list = []
    reference = scored(networks.floats, data.noting(labels), "float32")
    told = accuracy.chance(reference["top1"], labels) if "top1" in metrics else None
    if told is not None:
        other = map if spread is map else type(spread)(spread.cluster)  # other samples than were sent
        tried = functools.partial(scored, networks.floats, what="other settings", spread=other)
        warn([told, *_cause(others, tried)])
    scores = scored(networks.integers, data, "integers")
    return {
        name: accuracy.compare(scores[name], reference[name], progress=progress)  # type: ignore[misc]
        for name in metrics
    }


def other_settings(data: object, how: Preprocess | None) -> list[tuple[str, LabelledSet]]:
    """[(options, labelled samples of ``data`` made with them)] of what may be meant instead of ``how``."""
    found = others(how) if how is not None else ()
    return [(words, sources.labelled(data, other).first(TRIED)) for words, other in found]


def _cause(others: Sequence[tuple[str, LabelledSet]], scored: Callable) -> list[str]:
    """A line with the settings by which float32 is right most often, if that is no chance."""
    found = []
    for words, data in others:
        labels: list = []
        right = scored(data.noting(labels))["top1"]
        if accuracy.chance(right, labels) is None:
            found.append((right.mean(), f"with {words} it is right on {int(right.sum())} of {len(right)}"))
    return [max(found, key=lambda each: each[0])[1]] if found else []


# -- time


def timing(
    host: Host,
    graph: Graph,
    table: ScaleTable,
    networks: Networks,
    *,
    threads: int = 1,
    rounds: int = 15,
    progress: Progress | None = None,
) -> Benchmark:
    """`Host.benchmark` of a table's graph, as `ScaleTable.prepared` makes it."""
    bits = {node.name: table.config.bits_of(node.name) for node in graph.compute_nodes}
    return host.benchmark(graph, *networks, bits=bits, threads=threads, rounds=rounds, progress=progress)


# -- report


def facts(
    host: Host,
    loaded: Graph,
    table: ScaleTable,
    target: Any,
    *,
    source: Any = None,
    samples: int = 16,
    judged: tuple[LabelledSet, Mapping[str, Metric]] | None = None,
    batch: int = 1,
    timed: bool = True,
    threads: int = 1,
    rounds: int = 15,
    warn: Warn,
    progress: Progress | None = None,
    **known: Any,
) -> dict[str, Any]:
    """The facts of `report.render` on a table: what is known of it, and what is asked for, measured.

    loaded: the graph of the model, as it was loaded; source: calibration data (`calibrate.samples`), of
    which so many ``samples`` make the histograms; judged: as of `judge`; timed: whether the networks are;
    known: what else `collect` takes. Raises TableError, CalibrationError, EvaluationError.
    """
    graph = table.prepared(loaded)
    plan = table.check(graph)
    seen = [] if source is None else list(islice(calibrate.samples(source, graph), samples))
    if seen and not table.figures:
        table = replace(table, figures=layer_figures(graph, plan, table, seen))
    if judged is None and not timed:  # nothing is to be run
        layers = host.layer_choices(graph, table, target)
    else:
        networks = built(host, loaded, table, target)
        layers = networks.integers.layers
        if judged is not None:
            answers = Answers(*judged)
            known["accuracy"] = judge(
                (answers.data, answers.metrics), networks, loaded, batch=batch, warn=warn, progress=progress
            )
            known["answers"] = answers
        if timed:
            known["benchmark"] = timing(
                host, graph, table, networks, threads=threads, rounds=rounds, progress=progress
            )
    return collect(
        graph, table, layers, target=str(target), machine=host.describe(), version=__version__,
        samples=seen, progress=progress, **known,
    )  # fmt: skip
