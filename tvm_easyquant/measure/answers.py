"""What two networks answered to the same samples, one by one: which are gained, which lost. No TVM."""

from __future__ import annotations

import hashlib
import io
from base64 import b64encode
from collections.abc import Iterable, Mapping

import numpy as np

from ..samples.labelled import LabelledSet
from .accuracy import Metric

#: samples whose score changed that are kept by name, and pictures of them
KEPT, PICTURES = 1000, 40
#: the longer side of a picture on a page, in pixels; one that is no larger is kept as it is
SIDE = 96


class Answers:
    """Watches the metrics of a reference and then of another network on the same samples.

    ``metrics`` are those given, to be evaluated with the reference first; of a metric of the whole set
    nothing is kept, as it says nothing of a sample. data: the samples, for their names and pictures.
    """

    def __init__(self, data: LabelledSet, metrics: Mapping[str, Metric]):
        self.data = data
        self._scores: dict[str, list[float]] = {}
        self._said: list[tuple[object, int | None]] = []  # (label, answer) of each sample, twice
        self.metrics = {name: self._watched(name, metric) for name, metric in metrics.items()}

    def _watched(self, name: str, metric: Metric) -> Metric:
        if getattr(metric, "of_set", False):
            return metric
        first = not self._scores
        scores = self._scores[name] = []

        def watched(outputs, label):
            score = metric(outputs, label)
            scores.append(float(score))
            if first:
                self._said.append((label, _answer(outputs, label)))
            return score

        return watched

    def name(self, sample: int) -> str:
        """What a sample is called: its picture's file, or its number."""
        names = self.data.pictures.names if self.data.pictures is not None else ()
        return names[sample] if len(names) > sample else f"sample {sample}"

    def changed(self, metric: str) -> dict:
        """{"changed": the samples that score otherwise than with the reference, the lost ones first,
        "changed_left_out": how many more there are than the `KEPT` that differ most}."""
        scores = self._scores.get(metric, [])
        n = len(scores) // 2
        differences = np.asarray(scores[n:]) - np.asarray(scores[:n])
        order = np.argsort(-np.abs(differences), kind="stable")
        differ = [int(i) for i in order if differences[i]]
        found: list[dict] = [
            {
                "sample": i,
                "name": self.name(i),
                "label": _text(self._said[i][0]),
                "value": scores[n + i],
                "reference": scores[i],
                "answer": self._said[n + i][1],
                "answer_reference": self._said[i][1],
            }
            for i in differ[:KEPT]
        ]
        found.sort(key=lambda each: (each["value"] > each["reference"], each["sample"]))
        return {"changed": found, "changed_left_out": len(differ) - len(found)}

    @property
    def digest(self) -> str:
        """The same for the same labels and names in the same order, whatever was answered."""
        labels = [_text(label) for label, _ in self._said[: len(self._said) // 2]]
        names = list(self.data.pictures.names[: len(labels)]) if self.data.pictures is not None else []
        return hashlib.sha256(repr((labels, names)).encode()).hexdigest()[:16]

    def facts(self) -> dict:
        """What was evaluated on, for `compare`."""
        return {"data": self.data.name, "samples": len(self._said) // 2, "digest": self.digest}

    def pictures(self, samples: Iterable[int]) -> dict[int, str]:
        """{sample: its picture as a data URI}, of the first `PICTURES` of them; none without Pillow."""
        try:
            import PIL.Image  # noqa: F401
        except ImportError:
            return {}
        if self.data.pictures is None:
            return {}
        some = list(dict.fromkeys(samples))[:PICTURES]
        return {i: thumbnail(self.data.pictures.decoded(i)) for i in some}


def thumbnail(picture: np.ndarray) -> str:
    """uint8 (H, W, 3) or (H, W) -> a data URI of at most `SIDE` pixels a side."""
    from PIL import Image

    small = Image.fromarray(picture)
    kind = "png" if max(small.size) <= SIDE // 2 else "jpeg"  # a few pixels are to stay what they are
    small.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    small.save(file, kind, **({} if kind == "png" else {"quality": 75}))
    return f"data:image/{kind};base64,{b64encode(file.getvalue()).decode('ascii')}"


def _answer(outputs, label) -> int | None:
    """The class that a classifier says; None of what is none."""
    if isinstance(label, bool) or not isinstance(label, (int, np.integer)):
        return None
    scores = np.asarray(outputs[0])
    return int(scores.argmax()) if scores.size > 1 else None


def _text(label) -> str:
    text = str(label)
    return text if len(text) <= 60 else f"{text[:57]}..."
