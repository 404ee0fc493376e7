"""Accuracy on labelled data, and two networks compared on the same samples. No TVM here.

Two networks that see the same images err on much the same ones, so their difference is known far better
than either accuracy: only the samples that one gets right and the other wrong say anything about it.
`compare` counts those and gives the difference with its interval.

A metric is of a sample, or of the whole set: then it has the attribute ``of_set``, and `compare` draws the
samples anew to see how far the difference would move with others.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar, overload

import numpy as np

from ..errors import ConfigError, EvaluationError
from ..files import read_json, shown
from ..network.layout import layout_hint
from ..network.node import exactly
from ..samples.labelled import load

Progress = Callable[[int, int, str], None]
#: see `evaluate`
Metric = Callable[[list[Any], Any], float]


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


def chance(right: np.ndarray, labels: Sequence[object]) -> str | None:
    """A warning where fp32 itself is right on labelled samples no more often than by chance, else None.

    right: its scores by top-1, (N,); labels: those of the samples.
    """
    n, classes = len(right), len(set(labels))
    if n < 20 or classes < 2:
        return None
    share = 1 / classes
    if right.mean() > share + 2 * math.sqrt(share * (1 - share) / n):
        return None
    return (
        f"float32 itself is right on {int(right.sum())} of {n} samples of {classes} classes, as often as "
        "by chance; are scale, mean, std, channel order and the labels those of its training?"
    )


def evaluate(
    run: Callable[[dict[str, np.ndarray]], list[Any] | Mapping[str, Any]],
    data: Any,
    *,
    inputs: Iterable[str] = (),
    metrics: Mapping[str, Metric] | None = None,
    batch: int = 1,
    progress: Progress | None = None,
    what: str = "evaluate",
    spread: Callable[..., Iterable[Any]] = map,
) -> dict[str, Any]:
    """Each metric of each sample: {metric: float64 (N,)}; of a metric of the whole set, its `SetScores`.

    run: an `Executor`, or any function of {input: array} that returns the outputs as a list or as a dict.
    data: what `load` takes. inputs: the input names, or {name: (shape, dtype)}; only needed where samples
    are arrays and ``run`` is no Executor. metrics: name -> function(outputs, label); default `TOP`. batch:
    samples ``run`` takes at once (the last batch is filled up with the last sample). An input that is not
    float32 is given in its own dtype where that holds the same numbers. spread(run, inputs) gives the
    outputs of each, in order, as ``map`` does; a cluster's (`cluster.Spread`) runs several at once and says
    in its ``note``, for ``progress``, who has run how many.

    A metric gets the outputs of one sample, a list of arrays in the model's order, each with a first
    dimension of 1, and the sample's label as the data gave it: any object. More is better. If it has a true
    attribute ``of_set`` it gets two lists instead, of such outputs and of labels, of all samples, once the
    network has run on them; these arrays cannot be written to. If it has an attribute ``each`` beside it,
    function(outputs, label), that is called once for each sample, as it comes, and the first list holds
    what it returned. Raises EvaluationError naming the sample.
    """
    metrics = TOP if metrics is None else metrics
    sets = {name: SetScores(metric, [], []) for name, metric in metrics.items() if _of_set(metric)}
    data = load(data)
    known = inputs or getattr(run, "inputs", ())
    names = list(known)
    dtypes = {n: known[n][1] for n in names} if isinstance(known, Mapping) else {}
    found: dict[str, list[float]] = {name: [] for name in metrics if name not in sets}
    done, waiting = 0, iter(data)
    groups: deque[list] = deque()  # whose outputs are awaited

    def feeds():
        begun = 0
        while group := list(islice(waiting, batch)):
            rows = [_feed(x, names, dtypes, data.name, begun + i) for i, (x, _) in enumerate(group)]
            rows += rows[-1:] * (batch - len(group))
            groups.append(group)
            begun += len(group)
            yield {n: np.concatenate([f[n] for f in rows]) if batch > 1 else rows[0][n] for n in rows[0]}

    for outputs in spread(run, feeds()):
        group = groups.popleft()
        outputs = list(outputs.values()) if isinstance(outputs, Mapping) else list(outputs)
        if batch > 1 and any(len(o) != batch for o in outputs):
            raise EvaluationError(
                f"the network returns {[len(o) for o in outputs]} rows for {batch} samples"
            )
        for i, (_, label) in enumerate(group):
            mine = outputs if batch == 1 else [o[i : i + 1] for o in outputs]
            try:
                for name, scores in found.items():
                    scores.append(_number(metrics[name](mine, label), f"metric {name}", "a sample"))
                for each in sets.values():
                    each.add(mine, label)
            except EvaluationError as error:
                raise EvaluationError(f"{data.name}, sample {done}: {error}") from None
            done += 1
        if progress is not None:
            progress(done, len(data), what + getattr(spread, "note", ""))
    if not done:
        raise EvaluationError(f"{data.name} is empty")
    for name, each in sets.items():
        try:
            _ = each.value  # a metric that fails does so before another network is run
        except EvaluationError as error:
            raise EvaluationError(f"{data.name}, metric {name}: {error}") from None
    arrays = {name: np.asarray(values, np.float64) for name, values in found.items()}
    return {name: sets[name] if name in sets else arrays[name] for name in metrics}


def _of_set(metric: object) -> bool:
    return bool(getattr(metric, "of_set", False))


@dataclass(frozen=True, eq=False)
class SetScores:
    """What a network answered on a whole set, to be judged by a metric of the set.

    metric: function(list of outputs, list of labels); see `evaluate`. outputs, labels: one for each sample;
    of a metric with ``each`` what that returned, in the outputs' place.
    Raises EvaluationError if their numbers differ.
    """

    metric: Callable[[list[Any], list[Any]], float]
    outputs: list[Any]
    labels: list[Any]

    def __post_init__(self):
        if len(self.outputs) != len(self.labels):
            n, others = len(self.outputs), len(self.labels)
            raise EvaluationError(f"{n} outputs and {others} labels; give one each for every sample")

    def add(self, outputs: Iterable[np.ndarray], label: object) -> None:
        """One more sample; the arrays are copied, as a network may use its memory again."""
        kept = [np.array(o) for o in outputs]
        for array in kept:  # a metric that changed them would find them changed when it is called again
            array.flags.writeable = False
        each = getattr(self.metric, "each", None)
        self.outputs.append(kept if each is None else each(kept, label))
        self.labels.append(label)
        self.__dict__.pop("value", None)

    @cached_property
    def value(self) -> float:
        """The metric of all samples, in its own unit. EvaluationError if it is no finite number."""
        return self.of(range(len(self.labels)))

    def of(self, picked: Sequence[int] | np.ndarray) -> float:
        """The metric of these samples, by number."""
        outputs, labels = [self.outputs[i] for i in picked], [self.labels[i] for i in picked]
        return _number(self.metric(outputs, labels), "it", "the set")


def _number(value, what: str, of: str) -> float:
    """What a metric returned, if it is a number."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, (list, tuple, np.ndarray)):
        raise EvaluationError(f"{what} gives {len(value)} values; give one number for {of}")
    try:
        if isinstance(value, (str, bytes, np.complexfloating)):  # float would read "0.5", and half of 1j
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise EvaluationError(f"{what} is {reprlib.repr(value)}, not a number") from None
    if not math.isfinite(number):
        raise EvaluationError(f"{what} is {number}")
    return number


def _feed(x, names, dtypes, source, number):
    if isinstance(x, Mapping):
        return {n: _as(np.asarray(value), dtypes.get(n, "float32")) for n, value in x.items()}
    if len(names) != 1:
        raise EvaluationError(
            f"{source}: sample {number} is one array, the model has inputs {names}; give a dict"
        )
    array = _as(np.asarray(x), dtypes.get(names[0], "float32"))
    return {names[0]: array[None] if array.ndim in (1, 3) else array}


def check_first(data, inputs: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
    """Before a network is compiled to be judged by it: EvaluationError if there is no labelled sample, or
    the first does not fit the network's inputs, {name: (shape, dtype)}; any number of rows does."""
    data = load(data)
    first = next(iter(data), None)
    if first is None:
        raise EvaluationError(f"{data.name} is empty")
    feed = _feed(first[0], list(inputs), {}, data.name, 0)
    for name, (shape, _) in inputs.items():
        if name in feed and feed[name].shape[1:] != tuple(shape[1:]):
            found = feed[name].shape
            raise EvaluationError(
                f"{data.name}, sample 0: {name} has shape {found}, the network takes {tuple(shape)}"
                f"{layout_hint(found, tuple(shape))}"
            )


def _as(array, dtype):
    """The array in the model's dtype, unless that is float32 or holds other numbers; the model says so."""
    other = None if dtype in ("float32", array.dtype) else exactly(array, dtype)
    return array if other is None else other


@dataclass(frozen=True)
class Evaluation:
    """What a quantization may lose, and how that is measured.

    data: labelled, what `load` takes, or a folder with one folder of pictures a class. metric: None for
    top-1, or function(outputs of a sample, label) -> 0.0 to 1.0, or a metric of the whole set (see
    `measure.accuracy.evaluate`). max_drop: points that the integers, compiled for ``target`` (a CPU target
    as TVM writes it; None: this CPU), may lose to fp32; by a metric of the whole set, in its own unit: 0.01
    of an mAP that is 0.337, 1 of one that is 33.7. Raises ConfigError for a drop that is none.
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

    def __repr__(self) -> str:
        given = {"metric": self.metric and name_of(self.metric), "target": self.target}
        more = "".join(f", {name}={value}" for name, value in given.items() if value is not None)
        return f"<Evaluation of {shown(self.data)}: max_drop={self.max_drop}{more}>"


def name_of(metric: object) -> str:
    """What a metric is called."""
    return getattr(metric, "__name__", type(metric).__name__)


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
    unit: ClassVar[str] = " points"

    @property
    def drop(self) -> float:
        """Points lost against the reference; negative if the network is better."""
        return -self.difference

    def figure(self, x: float, sign: str = "") -> str:
        """A number of points as it is shown; sign: "+" to show that, too."""
        return f"{x:{sign}.2f}"

    def __str__(self):
        low, high = self.interval
        return (
            f"{self.value:.2f} against {self.reference:.2f}: {self.difference:+.2f} points "
            f"[{low:+.2f}, {high:+.2f}], gained {self.gained}, lost {self.lost} of {self.n}"
        )


@dataclass(frozen=True)
class PairedSet:
    """One network against a reference by a metric of the whole set, in the metric's own unit.

    n: samples; value, reference: the metric of each; difference: value - reference; interval: of the
    difference, 95 %, by paired bootstrap; p: two-sided, of the same; both None where they were not asked
    for.
    """

    n: int
    value: float
    reference: float
    difference: float
    interval: tuple[float, float] | None = None
    p: float | None = None
    unit: ClassVar[str] = ""

    @property
    def drop(self) -> float:
        """What is lost against the reference; negative if the network is better."""
        return -self.difference

    def figure(self, x: float, sign: str = "") -> str:
        """A number in the metric's unit as it is shown: to the fourth digit of the metric itself."""
        size = max(abs(self.value), abs(self.reference))
        digits = 3 - math.floor(math.log10(size)) if size else 4
        return f"{x:{sign}.{min(max(digits, 0), 12)}f}"

    def __str__(self):
        show = self.figure
        sure = "" if self.interval is None else " [{}, {}]".format(*(show(x, "+") for x in self.interval))
        return (
            f"{show(self.value)} against {show(self.reference)}: {show(self.difference, '+')}{sure} "
            f"on {self.n} samples"
        )


def compared(facts: Mapping[str, Any]) -> Paired | PairedSet:
    """A comparison of its plain values. Raises KeyError, TypeError, ValueError."""
    kind = Paired if "gained" in facts else PairedSet
    given = {field.name: facts[field.name] for field in fields(kind)}
    if given["interval"] is not None:  # JSON has no infinity
        low, high = given["interval"]
        given["interval"] = -math.inf if low is None else low, math.inf if high is None else high
    return kind(**given)


def stored(path: str | os.PathLike[str]) -> dict[str, Paired | PairedSet]:
    """{metric: the comparison} of a file that ``evaluate --json`` has printed. Raises EvaluationError."""
    facts = read_json(path, EvaluationError, "the accuracy")
    try:
        return {name: compared(row) for name, row in facts["metrics"].items()}  # type: ignore[index,call-overload]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise EvaluationError(
            f"{path} is not what evaluate --json prints of a model and its table"
        ) from None


@overload
def compare(
    scores: np.ndarray, reference: np.ndarray, *, interval: bool = True, progress: Progress | None = None
) -> Paired: ...
@overload
def compare(
    scores: SetScores, reference: SetScores, *, interval: bool = True, progress: Progress | None = None
) -> PairedSet: ...
def compare(scores, reference, *, interval=True, progress=None):
    """Paired comparison of one metric over the same samples: two (N,) arrays, or two `SetScores`.

    The interval: for right-or-wrong scores the Wald interval of the difference of two dependent
    proportions, from the discordant pairs, with half a sample added to each cell of the table (Agresti and
    Min, Statistics in Medicine 24, 2005), which keeps its level where few samples differ; for other scores
    that of the mean of the differences, normal.

    Of `SetScores`: by paired bootstrap. `RESAMPLES` times N samples are drawn anew, with a fixed seed, and
    both networks judged on them: the metric is called 2 * `RESAMPLES` times, unless ``interval`` is False,
    and progress(done, total, text) half as often. The interval holds 95 % of the differences; p is twice
    the share of those that are on the rarer side of zero, or at it. Raises EvaluationError.
    """
    if isinstance(scores, SetScores) or isinstance(reference, SetScores):
        return _compare_sets(scores, reference, interval, progress)
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
        (100 * (middle - half), 100 * (middle + half)), sign_test(gained, lost),
    )  # fmt: skip


def sign_test(gained: int, lost: int) -> float:
    """The two-sided exact probability of a split as uneven as this one, were both equally likely."""
    n, few = gained + lost, min(gained, lost)
    log_half = n * math.log(2)
    terms = (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - log_half for k in range(few + 1)
    )
    return min(1.0, 2 * sum(map(math.exp, terms)))


#: how often, and from what seed, a bootstrap draws
RESAMPLES, SEED = 1000, 0


def _compare_sets(ours, theirs, interval, progress) -> PairedSet:
    if not (isinstance(ours, SetScores) and isinstance(theirs, SetScores)):
        raise EvaluationError("a metric of the whole set is compared with itself only; give two SetScores")
    n, others = len(ours.labels), len(theirs.labels)
    if n != others or not n:
        raise EvaluationError(f"paired answers are to {n} and {others} samples; give two of one length")
    found = PairedSet(n, ours.value, theirs.value, ours.value - theirs.value)
    return replace(found, **_bootstrap(ours, theirs, progress)) if interval else found


def _bootstrap(ours: SetScores, theirs: SetScores, progress: Progress | None) -> dict[str, Any]:
    n, draw = len(ours.labels), np.random.default_rng(SEED)
    if n == 1:  # one sample says nothing about others
        return {"interval": (-math.inf, math.inf), "p": 1.0}
    differences = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        picked = draw.integers(0, n, n)
        try:
            differences[i] = ours.of(picked) - theirs.of(picked)
        except EvaluationError as error:
            raise EvaluationError(
                f"the metric has no interval: of samples drawn anew, some twice, some not at all, {error}"
            ) from None
        if progress is not None:
            progress(i + 1, RESAMPLES, "bootstrap")
    low, high = np.percentile(differences, (2.5, 97.5))
    rarer = min((differences <= 0).sum(), (differences >= 0).sum())
    return {"interval": (float(low), float(high)), "p": min(1.0, 2 * float(1 + rarer) / (1 + RESAMPLES))}
