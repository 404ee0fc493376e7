"""Our integers against a host's float32 of the same model, on this machine: whole networks and each layer.

Each is timed as it is shipped, in turn, so that a noisy machine disturbs both alike. A round's figure is
the least of a few bursts of about a millisecond; figures are medians over the rounds, ratios the medians of
the rounds' ratios. No host is known here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from ..network.graph import Graph, GraphError
from ..network.node import model_shape
from ..scales.numerics import QuantConfig
from ..scales.table import ScaleTable
from ..search.find import of_noise
from . import timing

Progress = Callable[[int, int, str], None]
#: milliseconds by which the calls of a small network may differ from it: the debug executor's own
TIMER = 0.1


@dataclass(frozen=True)
class LayerTime:
    """Milliseconds of one layer; None where its time cannot be told from its neighbours'."""

    name: str
    kind: str  # "int7", "int8" or "float32"
    kernel: str
    ms: float | None
    ms_fp32: float | None

    @property
    def slower(self) -> bool:
        """Whether it runs in integers and took longer than in float: by 5 % and by 2 us, what the timer
        tells apart."""
        if self.kind == "float32" or self.ms is None or self.ms_fp32 is None:
            return False
        return self.ms > 1.05 * self.ms_fp32 and self.ms > self.ms_fp32 + 0.002


@dataclass(frozen=True)
class Benchmark:
    """ms, ms_fp32: medians of the whole networks; speedup: fp32 / integer, the median over the rounds.

    spread: (least, most) of the integer network's times. other_ms: of everything that is no layer, in the
    integer network (quantize, pools, ...). host: the machine, see `describe_host`. size, size_fp32: of the
    compiled networks, in bytes, see `Built.size`. ratios: the quartiles of the rounds' speedups. parts:
    (the sum, the largest) of the calls' times, of the integer network and of the float one.
    """

    ms: float
    ms_fp32: float
    speedup: float
    spread: tuple[float, float]
    layers: list[LayerTime]
    other_ms: float | None
    threads: int
    rounds: int
    target: str
    host: dict = field(default_factory=dict)
    size: int | None = None
    size_fp32: int | None = None
    ratios: tuple[float, float] | None = None
    parts: tuple[tuple[float, float], ...] = ()

    def __repr__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"<Benchmark {self.ms:.3f} ms against {self.ms_fp32:.3f}, {threads}: {self.headline}>"

    @property
    def doubt(self) -> str | None:
        """Why nothing can be said of the speed from these times, if so: the rounds disagree, or a network
        does not take what its calls take. Other work on the machine does that."""
        if (why := timing.unsteady(self.ratios)) is not None:
            return why
        for what, whole, (total, largest) in zip(
            ("integer", "float32"), (self.ms, self.ms_fp32), self.parts, strict=False
        ):
            if (
                largest > timing.UNSTEADY * whole + TIMER
                or not whole / 2 - TIMER < total < 2 * whole + TIMER
            ):
                return (
                    f"the {what} network took {whole:.3f} ms, its calls {total:.3f} ms together, one "
                    f"of them {largest:.3f} ms: the machine was busy; measure again"
                )
        return None

    @property
    def headline(self) -> str:
        """How fast, with the quartiles of the rounds, or why that cannot be told."""
        return timing.headline(self.speedup, self.ratios, self.doubt)

    @property
    def slower(self) -> list[LayerTime]:
        """The integer layers that took longer than in float."""
        return [layer for layer in self.layers if layer.slower]

    @property
    def notes(self) -> list[str]:
        """What an exit note says where integers do not pay; empty where they do."""
        if self.doubt is not None:
            return [self.doubt]
        lines = []
        if self.speedup < 1:
            lines.append(
                f"the integer network takes {1 / self.speedup:.2f} times as long as TVM's float32 here"
            )
        if self.slower:
            worst = max(self.slower, key=lambda layer: (layer.ms or 0.0) - (layer.ms_fp32 or 0.0))
            lines.append(
                f"{len(self.slower)} integer layers are slower than in float; most of all {worst.name}: "
                f"{worst.ms:.3f} against {worst.ms_fp32:.3f} ms"
            )
        return lines


#: in the names of functions that hold a layer; the last two are our kernels in float32, on either host
LAYERS = ("conv2d", "dense", "matmul", "easyquant_float", "eq_float")


@dataclass(frozen=True)
class Call:
    """One call of a compiled network: its function, the lowered layer that it is (None: it is none, or
    cannot be told), the sizes of its largest constant and of its output, its milliseconds; ours: whether it
    is a kernel of ours."""

    function: str
    layer: str | None
    weight: int
    output: int
    ms: float
    ours: bool = False

    @property
    def holds_layer(self) -> bool:
        """Whether it holds a convolution or dense layer, ours (in float32, too) or TVM's."""
        return self.ours or any(word in self.function for word in LAYERS)


def named(calls: Sequence[Call], layers: Sequence[str]) -> list[Call]:
    """The calls with the names of ``layers``, which are in call order; without, if the counts differ."""
    ours = [i for i, call in enumerate(calls) if call.ours]
    names = dict(zip(ours, layers, strict=True)) if len(ours) == len(layers) else {}
    return [replace(call, layer=names.get(i)) for i, call in enumerate(calls)]


def race(
    graph: Graph,
    floats: Any,
    integers: Any,
    *,
    threads_of: Callable[[int], Any],
    machine: dict,
    bits: Mapping[str, int] | None = None,
    feed: Mapping[str, np.ndarray] | None = None,
    threads: int = 1,
    rounds: int = 15,
    layers: bool = True,
    progress: Progress | None = None,
) -> Benchmark:
    """Time ``integers`` against ``floats``, both as a host builds them (`host.Built`, with ``profile``).

    graph: the float network of both. bits: layer -> bits of the integer layers, for the rows' names. feed:
    {input: float32 array} (default: normal noise). layers: also each layer.
    threads_of: sets how many threads what runs from now on takes. machine: `Host.describe`.
    """
    feed = feed or noise(graph)
    threads_of(threads)
    networks = (integers, floats)
    for network in networks:
        network(feed)
    times = []
    number = [max(1, round(1 / max(0.01, n.milliseconds(repeat=1)[0]))) for n in networks]
    profiles = [network.profile(feed) for network in networks] if layers else []
    for i in range(rounds):
        turn = (0, 1) if i % 2 else (1, 0)
        found = {k: min(networks[k].milliseconds(repeat=7, number=number[k])) for k in turn}
        times.append((found[0], found[1]))
        for k in turn if layers else ():
            profiles[k].run()
        if progress is not None:
            progress(i + 1, rounds, "benchmark")
    kernels = {layer.name: layer.choice.kernel.name for layer in integers.layers}
    rows, other = _rows(graph, kernels, bits or {}, *(p.calls for p in profiles)) if layers else ([], None)
    mine, theirs = np.array(times).T
    speedup, quartiles = timing.ratios(mine, theirs)
    return Benchmark(
        float(np.median(mine)), float(np.median(theirs)), speedup,
        (float(mine.min()), float(mine.max())), rows, other, threads, rounds, integers.variant.target,
        machine, integers.size, floats.size, quartiles,
        tuple((sum(c.ms for c in p.calls), max(c.ms for c in p.calls)) for p in profiles),
    )  # fmt: skip


def noise(graph: Graph) -> dict[str, np.ndarray]:
    """One sample of normal noise: {input: float32 array in the model's shape}."""
    rng = np.random.default_rng(0)
    return {n: rng.standard_normal(model_shape(graph[n])).astype(np.float32) for n in graph.inputs}


def _rows(graph, kernels, bits, integer_calls, float_calls):
    """(the layers' times by name, the milliseconds of everything else in the integer network).

    kernels: {integer layer: its kernel}; the calls of both networks are `build.Call`.
    """
    known = {call.layer: call.ms for call in integer_calls if call.layer is not None}
    kept = [node for node in graph.compute_nodes if node.name not in kernels]
    known.update(_by_size(kept, [c for c in integer_calls if c.holds_layer and not c.ours]))
    theirs = _by_size(graph.compute_nodes, [c for c in float_calls if c.holds_layer])
    rows = []
    for node in graph.compute_nodes:
        kernel = kernels.get(node.name)
        kind = f"int{bits.get(node.name, 8)}" if kernel else "float32"
        rows.append(
            LayerTime(node.name, kind, kernel or "TVM", known.get(node.name), theirs.get(node.name))
        )
    return rows, sum(call.ms for call in integer_calls) - sum(row.ms or 0.0 for row in rows)


def _by_size(nodes, calls) -> dict[str, float]:
    """{node: milliseconds} of TVM's own layers. Fusion may change their order, so that a layer is told by
    the sizes of its weights and output; layers of equal sizes come in the order of the graph."""
    found: dict[tuple[int, int], list[float]] = {}
    for call in calls:
        found.setdefault((call.weight, call.output), []).append(call.ms)
    wanted: dict[tuple[int, int], list[str]] = {}
    for node in nodes:
        wanted.setdefault((node.weight.size, prod(node.shape)), []).append(node.name)
    times: dict[str, float] = {}
    for size, names in wanted.items():
        if len(names) == len(found.get(size, ())):
            times.update(zip(names, found[size], strict=True))
    return times


@dataclass(frozen=True)
class Faster:
    """What `keep_if_faster` decided: the layers to keep float, the measurement that stands, and why."""

    skip: tuple[str, ...]
    benchmark: Benchmark
    notes: tuple[str, ...]


def keep_if_faster(
    graph: Graph, config: QuantConfig, build: Callable[[ScaleTable], Any], measure: Callable[..., Benchmark]
) -> Faster:
    """The layers that are faster in float on this CPU, if keeping them float speeds the network up.

    Measured with the scales of one noise sample, which do not change the time, before any search.
    build(table): the integer network; measure(integer network, bits=, feed=): it beside the float one.
    Raises what they and `plan` raise.
    """
    feed = noise(graph)

    def measured(skip):
        table, bits = of_noise(graph, feed, config, skip)
        return measure(build(table), bits=bits, feed=feed)

    return faster(measured)


def faster(measured: Callable[[tuple[str, ...]], Benchmark]) -> Faster:
    """The layers that are faster in float, if keeping them float speeds the network up.

    measured: times the network with these layers, too, kept float. The slower layers are taken out
    together; they stay float only if the whole network is then faster: a float layer between integer ones
    costs its conversions.
    """
    found = measured(())
    if found.doubt is not None:
        return Faster((), found, (f"no layer was kept float for speed: {found.doubt}",))
    slow, notes = tuple(layer.name for layer in found.slower), []
    if slow:
        try:
            without = measured(slow)
        except GraphError:  # nothing would be left
            notes.append("every layer is faster in float here")
            slow = ()
        else:
            if without.doubt is None and without.speedup > found.speedup:
                notes.append(
                    f"{len(slow)} layers stay float because they are faster so: {without.ms:.3f} instead "
                    f"of {found.ms:.3f} ms"
                )
                found = without
            else:
                notes.append(
                    f"{len(slow)} layers are slower in integers ({', '.join(slow[:3])}"
                    f"{', ...' if len(slow) > 3 else ''}), but the network is not faster with them in float"
                )
                slow = ()
    if found.speedup < 1:
        notes.append(
            f"the integer network takes {1 / found.speedup:.2f} times as long as TVM's float32 here; for "
            "speed, compile the float model"
        )
    return Faster(slow, found, tuple(notes))
