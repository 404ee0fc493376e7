"""Accuracy on labelled data, and two networks compared on the same samples. No TVM here.

Two networks that see the same images err on much the same ones, so their difference is known far better
than either accuracy: only the samples that one gets right and the other wrong say anything about it.
`compare` counts those and gives the difference with its interval.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from ..samples.images import Preprocess, decode

Progress = Callable[[int, int, str], None]
Metric = Callable[[list, object], float]


class EvaluationError(ValueError):
    """Labelled data or a metric cannot be used; the message names the file, the sample and the cure."""


# -- labelled data


class LabelledSet:
    """Labelled inputs, one after the other, as often as asked: ``for x, label in labelled``.

    x: float32 (1, C, H, W), or {input: such an array}. ``len`` is 0 where the number is not known.
    """

    def __init__(self, make: Callable[[], Iterable], count: int = 0, name: str = "the labelled set"):
        self._make, self._count, self.name = make, count, name

    def __len__(self) -> int:
        return self._count

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator:
        for number, item in enumerate(self._make()):
            if not isinstance(item, (tuple, list)) or len(item) != 2:
                raise EvaluationError(f"{self.name}: sample {number} is no pair (input, label)")
            yield item[0], item[1]

    def first(self, count: int) -> LabelledSet:
        """The first ``count`` samples of this set."""
        known = min(count, self._count) if self._count else 0
        return LabelledSet(lambda: islice(iter(self), count), known, self.name)


def load(source, preprocess: Preprocess | Mapping | None = None) -> LabelledSet:
    """A `LabelledSet` from a file, a function or an iterable of (input, label) pairs.

    source: an .npz with ``labels`` (N,) integers and one of ``images`` float32 (N, C, H, W), normalised
    as in training; ``images`` uint8 (N, H, W, 3) or (N, 3, H, W), RGB; ``jpeg`` uint8 with ``offsets``
    (N + 1,), encoded pictures end to end. Or ``"module:function"``, called without arguments, whose
    result yields the pairs. uint8 and encoded pictures need ``preprocess``.
    Raises EvaluationError, and ImageError for a picture.
    """
    if isinstance(source, LabelledSet):
        return source
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        if text.endswith(".npz"):
            return _npz(Path(text), preprocess)
        if ":" in text:
            return LabelledSet(named(text), name=text)
        raise EvaluationError(f"{text} is neither an .npz file nor module:function")
    if callable(source):
        return LabelledSet(source)
    if not isinstance(source, Iterable):
        raise EvaluationError(f"labelled data is a {type(source).__name__}; give pairs (input, label)")
    kept = list(source)
    return LabelledSet(lambda: kept, len(kept))


def named(text: str, *arguments: str) -> Callable:
    """The function that ``"module:function"`` names; EvaluationError if there is none.

    arguments: what it is called with, in words; a function that does not take so many is an error too.
    """
    module, _, function = text.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise EvaluationError(f"{text!r} names no function: {error}") from None
    if not callable(found):
        raise EvaluationError(f"{text!r} is a {type(found).__name__}, not a function")
    try:
        signature = inspect.signature(found)
    except ValueError:  # a built-in that does not tell
        return found
    try:
        signature.bind(*arguments)
    except TypeError:
        wanted = f"the arguments ({', '.join(arguments)})" if arguments else "no arguments"
        raise EvaluationError(f"{text}{signature}: it is called with {wanted}; define it so") from None
    return found


def _npz(path: Path, preprocess) -> LabelledSet:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise EvaluationError(f"cannot read {path}: {error}") from None
    if "labels" not in arrays:
        raise EvaluationError(f"{path} has no array labels; it has {sorted(arrays)}")
    labels = arrays["labels"]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise EvaluationError(f"{path}: labels is {labels.dtype} {labels.shape}; give one integer a sample")
    if isinstance(preprocess, Mapping):
        preprocess = Preprocess.of(preprocess)
    if "jpeg" in arrays and "offsets" in arrays:
        encoded, offsets = arrays["jpeg"], arrays["offsets"].astype(np.int64)
        count = len(offsets) - 1
        bad = encoded.ndim != 1 or encoded.dtype != np.uint8 or count < 0 or offsets[0] < 0
        if bad or (np.diff(offsets) < 0).any() or offsets[-1] > len(encoded):
            raise EvaluationError(f"{path}: offsets do not cut jpeg, uint8 (bytes,), into pictures")

        def picture(i):
            return decode(encoded[offsets[i] : offsets[i + 1]], f"{path}: picture {i}")

    elif "images" in arrays:
        images = arrays["images"]
        count = len(images)
        if images.dtype == np.float32 and images.ndim == 4:
            preprocess = None

            def picture(i):
                if not np.isfinite(images[i]).all():
                    raise EvaluationError(f"{path}: image {i} holds NaN or infinity")
                return images[i : i + 1]

        elif images.dtype == np.uint8 and images.ndim == 4 and 3 in (images.shape[1], images.shape[3]):
            last = images if images.shape[3] == 3 else images.transpose(0, 2, 3, 1)

            def picture(i):
                return last[i]

        else:
            raise EvaluationError(
                f"{path}: images is {images.dtype} {images.shape}; give float32 (N, C, H, W) normalised as "
                "in training, or uint8 (N, H, W, 3)"
            )
    else:
        raise EvaluationError(f"{path} has neither images nor jpeg and offsets; it has {sorted(arrays)}")
    if preprocess is None and ("jpeg" in arrays or arrays["images"].dtype == np.uint8):
        raise EvaluationError(
            f"{path} holds pictures of 8 bits; say how the network wants them (preprocess: color, scale, "
            "mean, std, crop)"
        )
    if len(labels) != count:
        raise EvaluationError(f"{path}: {len(labels)} labels for {count} images")
    if not count:
        raise EvaluationError(f"{path} holds no image")
    ready = preprocess or (lambda x: x)
    return LabelledSet(
        lambda: ((ready(picture(i)), int(labels[i])) for i in range(count)), count, str(path)
    )


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

    run: an `Executor`, or any function of {input: float32 array} that returns the outputs as a list or as a
    dict. data: what `load` takes. inputs: the input names; only needed where samples are arrays and ``run``
    is no Executor. metrics: name -> function(outputs of this sample, label); default `TOP`. batch: samples
    ``run`` takes at once (the last batch is filled up with the last sample).
    Raises EvaluationError naming the sample.
    """
    metrics = TOP if metrics is None else metrics
    data = load(data)
    names = list(inputs or getattr(run, "inputs", ()))
    found: dict[str, list[float]] = {name: [] for name in metrics}
    done, waiting = 0, iter(data)
    while group := list(islice(waiting, batch)):
        feeds = [_feed(x, names, data.name, done + i) for i, (x, _) in enumerate(group)]
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


def _feed(x, names, source, number):
    if isinstance(x, Mapping):
        return {name: np.asarray(value) for name, value in x.items()}
    if len(names) != 1:
        raise EvaluationError(
            f"{source}: sample {number} is one array, the model has inputs {names}; give a dict"
        )
    array = np.asarray(x)
    return {names[0]: array[None] if array.ndim in (1, 3) else array}


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
