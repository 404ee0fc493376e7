"""Which layers cost accuracy, and how many bits each of them needs. No TVM here.

`layer_errors` quantizes one layer at a time, its input and its weights, everything else float, and
measures how far the network's output moves: the error that the layer causes alone. Near 7 and 8 bits
errors are small and add up, so that their sum ranks whole choices of bits; what a choice really loses is
measured on labelled data. `meet` reverts the worst layers to a safer kind, 7 -> 8 -> float, until the
drop is met; `choose_bits` takes the fastest choice that meets it, a small integer program (`fastest`).

Layers that read one tensor change their bits together: a tensor has the fewest bits of its readers.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from topi_ext.reference import quantize as quantize_tensor

from ..cluster import Once
from ..errors import DropError
from ..measure.accuracy import Paired, PairedSet
from ..network.graph import Graph, run
from ..network.ops import evaluate, linear
from ..scales.integer import Scales
from ..scales.numerics import ConfigError, QuantConfig, scale_for
from ..scales.partition import Plan, plan_of
from ..scales.table import ScaleTable
from .state import State, opened
from .workers import Workers

Progress = Callable[[int, int, str], None]
Kind = object  # 7, 8 or "float"
FLOAT = "float"
IMAGES = 8  # calibration samples that errors are measured on


# -- the error of each layer


def layer_errors(
    graph: Graph,
    plan_: Plan,
    tables: Mapping[int, ScaleTable],
    samples: Sequence[Mapping[str, np.ndarray]],
    *,
    progress: Progress | None = None,
    jobs: int | None = None,
) -> dict[str, dict[int, float]]:
    """{layer: {bits: error}}: how far the network's output moves if that layer alone is quantized.

    tables: bits -> a table of the graph at these bits. samples: {input: array} each. error: the
    squared change of an output relative to its square, mean over the outputs and the samples.
    """
    layers = [node for node in graph.compute_nodes if node.name in plan_.integer]
    todo = [(node, bits) for node in layers for bits in tables]
    scales = {bits: Scales.of_table(graph, plan_, table) for bits, table in tables.items()}
    total = np.zeros(len(todo))
    workers = Workers(jobs)
    with threadpool_limits(1):
        if workers.threaded:
            for i, feed in enumerate(samples):
                values = _values(graph, feed)
                total += workers.run(_alone, [(node, scales[bits], values) for node, bits in todo])
                if progress is not None:
                    progress(i + 1, len(samples), "sensitivity")
        else:  # a sample each, which is all that is sent
            shared = Once((graph, scales, [(node.name, bits) for node, bits in todo]))
            for found in workers.run(_of_sample, [(shared, feed) for feed in samples]):
                total += found
            if progress is not None:
                progress(len(samples), len(samples), "sensitivity" + workers.note)
    errors: dict[str, dict[int, float]] = {node.name: {} for node in layers}
    for (node, bits), error in zip(todo, total / max(1, len(samples)), strict=True):
        errors[node.name][bits] = float(error)
    return errors


def _values(graph, feed) -> dict[str, np.ndarray]:
    """Every tensor of the float network."""
    values: dict[str, np.ndarray] = {}
    run(graph, feed, partial(_keep, values))
    return values


def _keep(values, node, value):
    values[node.name] = value


def _of_sample(shared, feed) -> list[float]:
    """`_alone` of each of the layers and bits."""
    graph, scales, todo = shared
    values = _values(graph, feed)
    return [_alone(graph[name], scales[bits], values) for name, bits in todo]


def _alone(node, scales: Scales, values) -> float:
    """The output error on one sample; values: tensor -> float32 in the float network, NHWC."""
    graph, source = scales.graph, scales.decided(node.inputs[0])
    q = quantize_tensor(values[node.inputs[0]], source.scale, source.zero_point, source.lo, source.hi)
    x = q.astype(np.float32) - np.float32(source.zero_point)
    y = linear(x, node, scales.integer_weight(node).astype(np.float32)) * scales.unit(node) + node.bias
    changed = {node.name: y}
    for later in graph:
        if later.name != node.name and any(t in changed for t in later.inputs):
            changed[later.name] = evaluate(later, *(changed.get(t, values[t]) for t in later.inputs))
    found = []
    for name in graph.outputs:
        o = values[name].astype(np.float64).ravel()
        move = changed.get(name, values[name]).astype(np.float64).ravel() - o
        if graph[name].dtype != "float32":  # places, classes: how many are others
            found.append(float((move != 0).mean()) if move.size else 0.0)
            continue
        found.append(move @ move / (o @ o) if o.any() else float(move.any()))
    return float(np.mean(found))


def ranking(errors: Mapping[str, Mapping[int, float]], bits: int) -> list[tuple[str, float]]:
    """(layer, error at ``bits``), worst first."""
    return sorted(((name, each[bits]) for name, each in errors.items()), key=lambda row: -row[1])


# -- choices of bits


def groups(plan_: Plan) -> list[tuple[str, ...]]:
    """The integer layers, those that read one tensor together."""
    return [site.readers for site in plan_.sites.values() if site.readers]


def with_kinds(config: QuantConfig, kinds: Mapping[str, Kind]) -> QuantConfig:
    """``config`` with {layer: 7, 8 or "float"} instead of its own bits."""
    bits = {"*": config.bits, **kinds}
    return replace(config, layer_bits=(), bits=bits)  # type: ignore[arg-type]  # taken apart there


def compose(
    graph: Graph,
    config: QuantConfig,
    tables: Mapping[int, ScaleTable],
    samples: Iterable[Mapping[str, np.ndarray]],
) -> ScaleTable:
    """The table of a mixed ``config``: every layer and tensor as in the search at its own bits.

    tables: bits -> a table of the graph with the same settings but for bits and fewer layers skipped.
    samples: for the tensors that only this choice stores (what an add makes where its ReLU became float):
    their scale holds all they take there.
    """
    plan_ = plan_of(graph, config)
    widest = max(tables)
    before = {bits: plan_of(graph, table.config) for bits, table in tables.items()}
    activations, wide = {}, []
    for site in plan_.sites.values():
        bits = config.bits_of(*site.readers) if site.readers else widest
        old = before[bits].site_of.get(site.name)
        if site.readers and old in (tables[bits].config.wide or ()):
            wide.append(site.name)
        if old is None:
            activations[site.name] = _observed(graph, site, bits if site.readers else 8, samples)
        else:
            activations[site.name] = tables[bits].activations[old]
    if any(table.config.wide is not None for table in tables.values()):
        config = replace(config, wide=tuple(wide))
    layers = [node.name for node in graph.compute_nodes if node.name in plan_.integer]

    def gathered(field):
        each = {name: getattr(tables[config.bits_of(name)], field) for name in layers}
        return {name: found[name] for name, found in each.items() if name in found}

    return ScaleTable(
        graph.fingerprint, config, activations, gathered("weights"), gathered("figures"),
        gathered("rounding"), gathered("biases"), gathered("gains"), tables[widest].data,
        tables[widest].factors,
    )  # fmt: skip


#: microseconds of a million float32 multiply-accumulates in TVM's own convolutions, one thread: the median
#: of benchmarks/results/layers_avx2.json; and of the call, with the conversions around it, roughly. What
#: stays float is by far slower than integers of either width
FLOAT_COST, FLOAT_CALL = 33.0, 10.0


def float_times(graph: Graph) -> dict[str, float]:
    """{layer: microseconds if it stays float}, roughly; see `FLOAT_COST`."""
    return {node.name: FLOAT_CALL + FLOAT_COST * (node.macs or 0) / 1e6 for node in graph.compute_nodes}


def _observed(graph, site, bits, samples):
    """The scale that holds what a site takes on the samples."""
    low = high = 0.0

    def see(node, value):
        nonlocal low, high
        if node.name in site.tensors:
            low, high = min(low, float(value.min())), max(high, float(value.max()))

    for feed in samples:
        run(graph, feed, see)
    return scale_for(max(-low, high), bits, signed=low < 0)


def solver():
    """`scipy.optimize`; ConfigError where there is none."""
    try:
        import scipy.optimize
    except ImportError:
        raise ConfigError(
            "choosing bits by time needs SciPy: pip install 'tvm_easyquant[mixed]', or take bits 7 or 8"
        ) from None
    return scipy.optimize


def fastest(
    errors: Sequence[Mapping[Kind, float]], times: Sequence[Mapping[Kind, float]], budget: float
) -> list[Kind] | None:
    """For each item one kind, so that the sum of times is least and the sum of errors at most ``budget``.

    Of choices equally fast the one with the least error. None if there is no such choice. Solved exactly
    by `scipy.optimize.milp`; ConfigError without SciPy.
    """
    from_scipy = solver()
    Bounds, LinearConstraint = from_scipy.Bounds, from_scipy.LinearConstraint
    pairs = [(i, kind) for i, each in enumerate(times) for kind in each]
    time = np.array([times[i][kind] for i, kind in pairs], np.float64)
    error = np.array([errors[i][kind] for i, kind in pairs], np.float64)
    time, error = time / max(time.max(), 1e-300), error / (unit := max(error.max(), 1e-300))
    one_each = np.array([[float(i == j) for i, _ in pairs] for j in range(len(times))])
    rules = [LinearConstraint(one_each, 1, 1)]
    if math.isfinite(budget):
        rules.append(LinearConstraint(error[None], -np.inf, budget / unit))
    common = dict(bounds=Bounds(0, 1), integrality=np.ones(len(pairs)), options={"mip_rel_gap": 0.0})
    found = from_scipy.milp(time, constraints=rules, **common)
    if not found.success:
        return None
    as_fast = LinearConstraint(time[None], -np.inf, found.fun + 1e-9 * len(times))
    better = from_scipy.milp(error, constraints=[*rules, as_fast], **common)
    found = better if better.success else found
    chosen = {i: kind for (i, kind), x in zip(pairs, found.x, strict=True) if x > 0.5}
    return [chosen[i] for i in range(len(times))]


# -- meeting a drop


@dataclass(frozen=True)
class Met:
    """The choice that met the drop.

    table: its scales; paired: its measured accuracy against fp32; kinds: {layer: 7, 8 or "float"};
    errors: of `layer_errors`; lines: what was tried and done, for people.
    """

    table: ScaleTable
    paired: Paired | PairedSet
    kinds: dict[str, Kind]
    errors: dict[str, dict[int, float]]
    lines: tuple[str, ...]


class _Trials:
    """Choices of bits measured so far, kept in a `State`."""

    def __init__(self, graph, config, table, samples, measure, max_drop, state: State):
        self.graph, self.config, self.table, self.max_drop = graph, config, table, max_drop
        self.samples = samples
        self._measure, self.state = measure, state
        self.lines: list[str] = []
        self.said: set[str] = set()

    def errors(self, make):
        if (found := self.state.get("errors")) is None:
            found = {n: {str(b): e for b, e in each.items()} for n, each in make().items()}
            self.state.append("errors", "", found)
        return {n: {int(b): e for b, e in each.items()} for n, each in found.items()}

    def paired(self, kinds) -> Paired | PairedSet:
        key = _key(kinds)
        paired = self._kept("trial", kinds, self._measure)
        if key not in self.said:
            self.said.add(key)
            self._say(kinds, paired)
        return paired

    def sure(self, kinds) -> Paired | PairedSet:
        """The same with its interval: dear by a metric of the whole set, so of the last choice only."""
        paired = self.paired(kinds)
        if paired.interval is not None:
            return paired
        return self._kept("interval", kinds, partial(self._measure, interval=True))

    def _kept(self, what, kinds, measure):
        if (found := self.state.get(what, _key(kinds))) is None:
            found = astuple(measure(self.compose(kinds)))
            self.state.append(what, _key(kinds), found)
        paired: Any = Paired(*found) if len(found) == len(fields(Paired)) else PairedSet(*found)
        return replace(paired, interval=paired.interval and tuple(paired.interval))  # JSON has a list

    def _say(self, kinds, paired):
        count = {kind: list(kinds.values()).count(kind) for kind in (7, 8, FLOAT)}
        shown = ", ".join(f"{n} {'float' if k == FLOAT else f'at {k} bits'}" for k, n in count.items() if n)
        self.lines.append(f"{shown}: {paired}")

    def compose(self, kinds) -> ScaleTable:
        config = with_kinds(self.config, kinds)
        used = {bits for bits in kinds.values() if bits != FLOAT}
        tables = {bits: self.table(bits) for bits in sorted(used)}
        return compose(self.graph, config, tables, self.samples)

    def met(self, kinds) -> bool:
        return self.paired(kinds).drop <= self.max_drop


def _key(kinds) -> str:
    return json.dumps(sorted(kinds.items()))


def _smallest(met: Callable[[int], bool], last: int) -> int | None:
    """The smallest k in 1..last with met(k), by doubling and bisection; None if not even the last."""
    low, high = 0, 1
    while not met(high):
        if high == last:
            return None
        low, high = high, min(2 * high, last)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if met(middle) else (middle, high)
    return high


def meet(
    graph: Graph,
    plan_: Plan,
    config: QuantConfig,
    table: Callable[[int], ScaleTable],
    samples: Sequence[Mapping[str, np.ndarray]],
    measure: Callable[..., Paired | PairedSet],
    max_drop: float,
    *,
    times: Callable[[int], Mapping[str, float]] | None = None,
    float_times: Mapping[str, float] | None = None,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike | State | None = None,
) -> Met:
    """Choose the bits of each layer so that the measured drop against fp32 is at most ``max_drop`` points.

    A metric of the whole set measures it in its own unit.

    table(bits): the scale table found at these bits for all layers. samples: calibration samples for the
    sensitivity. measure(table): the paired accuracy of a table's integers on labelled data; where that has
    no interval, measure(table, interval=True) is called for the choice that was taken. Without ``times``
    the worst layers of ``config.bits`` are reverted, 7 -> 8 -> float, as few as it takes. With
    ``times(bits)``, {layer: microseconds}, and ``float_times`` the fastest choice is taken that meets it.
    checkpoint: a file that lets an interrupted run go on; it may have been written with another
    ``max_drop``; or the `State` of a larger run.

    Raises DropError if nothing meets it, CheckpointError for a file of another run, ConfigError.
    """
    if not (isinstance(max_drop, (int, float)) and max_drop >= 0):
        raise ConfigError(f"max_drop is {max_drop!r}; give points of accuracy, 0 or more")
    way = "safer" if times is None else "fastest"
    state = opened(checkpoint, {"model": graph.fingerprint, "config": asdict(config), "choice": way})
    trials = _Trials(graph, config, table, samples, measure, max_drop, state)
    together = groups(plan_)

    def errors_of(ladder):
        tables = {bits: table(bits) for bits in ladder}
        return trials.errors(
            lambda: layer_errors(graph, plan_, tables, samples[:IMAGES], progress=progress)
        )

    def spread(kinds):
        return {name: kind for group, kind in zip(together, kinds, strict=True) for name in group}

    if times is None:
        kinds, errors = _revert(trials, config, together, spread, errors_of)
    else:
        kinds, errors = _fastest(trials, together, spread, errors_of, times, float_times)
    paired = trials.sure(kinds)
    lines = [*trials.lines, *_done(config, kinds, errors), *_verdict(paired, max_drop)]
    chosen = trials.compose(kinds)
    figures = {
        name: {**chosen.figures.get(name, {}), "error_alone": errors[name][kinds[name]]}
        for name in chosen.weights
        if errors
    }
    found = Met(replace(chosen, figures=figures or chosen.figures), paired, kinds, errors, tuple(lines))
    trials.state.remove()
    return found


def _done(config, kinds, errors) -> Iterable[str]:
    changed = [name for name, kind in kinds.items() if kind != config.bits_of(name)]
    for name in sorted(changed, key=lambda n: -max(errors.get(n, {0: 0.0}).values())):
        bits = config.bits_of(name)
        error = errors.get(name, {}).get(bits)
        alone = "" if error is None else f"; its error alone at {bits} bits: {error:.2g}"
        yield f"{name}: {bits} -> {kinds[name]}{alone}"


def _verdict(paired: Paired | PairedSet, max_drop: float) -> Iterable[str]:
    def told(x):
        return f"{paired.figure(x)}{paired.unit}"

    shown = 0.005  # what is less is no difference in points of two digits
    if isinstance(paired, PairedSet):
        shown = 0.0
        yield f"by bootstrap: {paired}"
        if max_drop >= abs(paired.reference):
            yield f"a drop of {max_drop:g} allows anything where float32 has {told(paired.reference)}"
    lost = f"{told(paired.drop)} lost" if paired.drop > 0 else "nothing lost"
    yield f"met: {lost}, {max_drop:g} were allowed"
    low, high = paired.interval or (0.0, 0.0)
    width = (high - low) / 2
    if width > max(max_drop, shown):
        yield (
            f"{paired.n} labelled samples tell the drop to {told(width)} only, more than "
            f"{max_drop:g}; give more of them to be sure"
        )


def _revert(trials, config, together, spread, errors_of):
    base = [config.bits_of(*group) for group in together]
    if trials.met(spread(base)):
        return spread(base), {}
    ladder = [bits for bits in (7, 8) if bits >= min(base)]
    errors, after = errors_of(ladder), {7: 8, 8: FLOAT}

    def error(group, kind):
        return sum(errors[name][kind] for name in together[group])

    steps, kinds = [base], list(base)
    while any(kind != FLOAT for kind in kinds):
        worst = max((g for g, kind in enumerate(kinds) if kind != FLOAT), key=lambda g: error(g, kinds[g]))
        kinds[worst] = after[kinds[worst]]
        steps.append(list(kinds))
    steps.pop()  # one group stays integer
    found = _smallest(lambda k: trials.met(spread(steps[k])), len(steps) - 1) if len(steps) > 1 else None
    if found is None:
        best = trials.paired(spread(steps[-1]))
        raise DropError(
            f"with all layers but {', '.join(n for n, k in spread(steps[-1]).items() if k != FLOAT)} float "
            f"the drop is still {best.figure(best.drop)}{best.unit}; {trials.max_drop:g} cannot be met"
        )
    return spread(steps[found]), errors


def _fastest(trials, together, spread, errors_of, times, float_times):
    errors = errors_of((7, 8))
    clock = {7: times(7), 8: times(8), FLOAT: float_times}
    error = [{**{b: sum(errors[n][b] for n in g) for b in (7, 8)}, FLOAT: 0.0} for g in together]
    time = [{kind: sum(each[n] for n in g) for kind, each in clock.items()} for g in together]

    def choice(budget):
        kinds = fastest(error, time, budget)
        if kinds is None or all(kind == FLOAT for kind in kinds):
            return None
        return kinds

    def total(kinds, of):
        return sum(each[kind] for each, kind in zip(of, kinds, strict=True))

    def line(kinds):
        alike = ", ".join(f"all at {b} bits {total([b] * len(kinds), time):.0f}" for b in (7, 8))
        trials.lines.append(
            f"estimated {total(kinds, time):.0f} us for its layers ({alike}), "
            f"{total(kinds, error):.3g} of error"
        )

    kinds = choice(math.inf)
    tried, budget = kinds, total(kinds, error)
    while not trials.met(spread(kinds)):
        failed, budget, kinds = budget, budget / 2, choice(budget / 2)
        if kinds is None:
            paired = trials.paired(spread(tried))
            best = paired.figure(paired.drop)
            raise DropError(f"no choice of bits meets a drop of {trials.max_drop:g}; the nearest: {best}")
        tried = kinds
    if budget < total(
        choice(math.inf), error
    ):  # between the last budget that failed and the first that met
        for _ in range(3):
            middle = math.sqrt(failed * budget)
            other = choice(middle)
            if other is not None and trials.met(spread(other)):
                budget = middle
                kinds = other if total(other, time) <= total(kinds, time) else kinds
            else:
                failed = middle
    line(kinds)
    return spread(kinds), errors
