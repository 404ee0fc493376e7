"""Accuracy on labelled data, and two networks compared on the same samples. No TVM here.

Two networks that see the same images err on much the same ones, so their difference is known far better
than either accuracy: only the samples that one gets right and the other wrong say anything about it.
`compare` counts those and gives the difference with its interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from itertools import islice

import numpy as np

from ..errors import ConfigError, EvaluationError
from ..network.node import exactly
from ..samples.labelled import load

Progress = Callable[[int, int, str], None]
Metric = Callable[[list, object], float]


# -- metrics: (outputs of one sample, label) -> 1.0 at best, 0.0 at worst


def top(k: int) -> Metric:
    """Whether the label, an integer, is among the ``k`` largest of the first output.

    Of equal scores the one with the lower index comes first, as in ``argmax``.
    """

    def metric(outputs, label):
        scores = np.asarray(outputs[0], np.float64).reshape(-1)
        if isinstance(label, (bool, np.bool_)) or not isinstance(label, (int, np.integer)):
            raise EvaluationError(f"its label is {label!r}; top-{k} needs an integer, or give a metric")
        if not 0 <= label < scores.size:
            raise EvaluationError(
                f"its label is {label}, the network has classes 0..{scores.size - 1}; counted from 1?"
            )
        mine = scores[label]
        before = (scores > mine).sum() + (scores[:label] == mine).sum()
        return float(before < k and not np.isnan(scores).any())

    return metric


TOP = {"top1": top(1), "top5": top(5)}


def evaluate(
    run: Callable[[dict], list | Mapping],
    data,
    *,
    inputs: Iterable[str] = (),
    metrics: Mapping[str, Metric] | None = None,
    batch: int = 1,
    progress: Progress | None = None,
    what: str = "evaluate",
) -> dict[str, np.ndarray]:
    """Each metric of each sample: {metric: float64 (N,)}.

    run: an `Executor`, or any function of {input: array} that returns the outputs as a list or as a dict.
    data: what `load` takes. inputs: the input names, or {name: (shape, dtype)}; only needed where samples
    are arrays and ``run`` is no Executor. metrics: name -> function(outputs of this sample, label); default
    `TOP`. batch: samples ``run`` takes at once (the last batch is filled up with the last sample). An input
    that is not float32 is given in its own dtype where that holds the same numbers. Raises
    EvaluationError naming the sample.
    """
    metrics = TOP if metrics is None else metrics
    data = load(data)
    known = inputs or getattr(run, "inputs", ())
    names = list(known)
    dtypes = {n: known[n][1] for n in names} if isinstance(known, Mapping) else {}
    found: dict[str, list[float]] = {name: [] for name in metrics}
    done, waiting = 0, iter(data)
    while group := list(islice(waiting, batch)):
        feeds = [_feed(x, names, dtypes, data.name, done + i) for i, (x, _) in enumerate(group)]
        feeds += feeds[-1:] * (batch - len(group))
        feed = {n: np.concatenate([f[n] for f in feeds]) if batch > 1 else feeds[0][n] for n in feeds[0]}
        outputs = run(feed)
        outputs = list(outputs.values()) if isinstance(outputs, Mapping) else list(outputs)
        if batch > 1 and any(len(o) != batch for o in outputs):
            raise EvaluationError(
                f"the network returns {[len(o) for o in outputs]} rows for {batch} samples"
            )
        for i, (_, label) in enumerate(group):
            mine = outputs if batch == 1 else [o[i : i + 1] for o in outputs]
            for name, metric in metrics.items():
                try:
                    value = float(metric(mine, label))
                except EvaluationError as error:
                    raise EvaluationError(f"{data.name}, sample {done}: {error}") from None
                if not math.isfinite(value):
                    raise EvaluationError(f"{data.name}, sample {done}: metric {name} is {value}")
                found[name].append(value)
            done += 1
        if progress is not None:
            progress(done, len(data), what)
    if not done:
        raise EvaluationError(f"{data.name} is empty")
    return {name: np.asarray(values, np.float64) for name, values in found.items()}


def _feed(x, names, dtypes, source, number):
    if isinstance(x, Mapping):
        return {n: _as(np.asarray(value), dtypes.get(n, "float32")) for n, value in x.items()}
    if len(names) != 1:
        raise EvaluationError(
            f"{source}: sample {number} is one array, the model has inputs {names}; give a dict"
        )
    array = _as(np.asarray(x), dtypes.get(names[0], "float32"))
    return {names[0]: array[None] if array.ndim in (1, 3) else array}


def _as(array, dtype):
    """The array in the model's dtype, unless that is float32 or holds other numbers; the model says so."""
    other = None if dtype in ("float32", array.dtype) else exactly(array, dtype)
    return array if other is None else other


@dataclass(frozen=True)
class Evaluation:
    """What a quantization may lose, and how that is measured.

    data: labelled, what `load` takes. metric: None for top-1, or function(outputs of a sample, label) ->
    0.0 to 1.0. max_drop: points that the integers, compiled for ``target`` (a CPU target as TVM writes it;
    None: this CPU), may lose to fp32. Raises ConfigError for a drop that is none.
    """

    data: object
    _: KW_ONLY
    metric: Metric | None = None
    max_drop: float
    target: object = None

    def __post_init__(self):
        number = isinstance(self.max_drop, (int, float, np.number)) and not isinstance(self.max_drop, bool)
        if not (number and self.max_drop >= 0):
            raise ConfigError(f"max_drop is {self.max_drop!r}; give points of accuracy, 0 or more")


# -- two networks on the same samples


@dataclass(frozen=True)
class Paired:
    """One network against a reference on the same samples.

    n: samples; value, reference: their means in points (percent where the metric is top-k). gained, lost:
    samples where the network scores higher, lower. difference: value - reference in points; interval: of
    the difference, 95 %; p: of the exact McNemar (sign) test that gained and lost are equally likely.
    """

    n: int
    value: float
    reference: float
    gained: int
    lost: int
    difference: float
    interval: tuple[float, float]
    p: float

    @property
    def drop(self) -> float:
        """Points lost against the reference; negative if the network is better."""
        return -self.difference

    def __str__(self):
        low, high = self.interval
        return (
            f"{self.value:.2f} against {self.reference:.2f}: {self.difference:+.2f} points "
            f"[{low:+.2f}, {high:+.2f}], gained {self.gained}, lost {self.lost} of {self.n}"
        )


def compare(scores: np.ndarray, reference: np.ndarray) -> Paired:
    """Paired comparison of two (N,) arrays of one metric over the same samples.

    The interval: for right-or-wrong scores the Wald interval of the difference of two dependent
    proportions, from the discordant pairs, with half a sample added to each cell of the table (Agresti and
    Min, Statistics in Medicine 24, 2005), which keeps its level where few samples differ; for other scores
    that of the mean of the differences, normal.
    """
    a, b = np.asarray(scores, np.float64), np.asarray(reference, np.float64)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise EvaluationError(f"paired scores have shapes {a.shape} and {b.shape}; give two of one length")
    n, gained, lost = a.size, int((a > b).sum()), int((a < b).sum())
    if np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all():
        up, down, total = gained + 0.5, lost + 0.5, n + 2
        middle = (up - down) / total
        half = 1.96 * math.sqrt(max((up + down) / total - middle**2, 0.0) / total)
    else:
        middle = float((a - b).mean())
        half = 1.96 * float((a - b).std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return Paired(
        n, 100 * float(a.mean()), 100 * float(b.mean()), gained, lost, 100 * float((a - b).mean()),
        (100 * (middle - half), 100 * (middle + half)), _sign_test(gained, lost),
    )  # fmt: skip


def _sign_test(gained: int, lost: int) -> float:
    """The two-sided exact probability of a split as uneven as this one, were both equally likely."""
    n, few = gained + lost, min(gained, lost)
    log_half = n * math.log(2)
    terms = (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - log_half for k in range(few + 1)
    )
    return min(1.0, 2 * sum(map(math.exp, terms)))
