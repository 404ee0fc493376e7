"""What a scale search saw: the score of every candidate, recorded for the report. No TVM here.

A `Curves` is the ``record`` of `driver.search`. Candidates are kept as *ranges*: the range that the scale
holds, relative to that of the start (below 1 it clips more than the start).
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field

import numpy as np

from ..errors import CurvesError
from ..files import parse_json, read_text, write_text
from .state import State

FORMAT, VERSION = "tvm_easyquant search record", 1
KEYS = ("format", "version", "objective", "model", "weights", "activations")


@dataclass
class Curves:
    """weights, activations: {layer or site: curve}; a curve is {"range": [...], "score": [...], "chosen"}.

    Of weights, ``score`` is the mean over the channels, ``low`` and ``high`` their 10th and 90th percentile
    and ``chosen`` the range of every channel; of activations ``chosen`` is one number. objective: "cosine",
    or "mse", whose score is minus the squared error relative to the output. model: the graph's fingerprint.
    state: where each curve is kept as it comes, for a search that is resumed; see `resume`.
    """

    objective: str = ""
    model: str = ""
    weights: dict[str, dict] = field(default_factory=dict)
    activations: dict[str, dict] = field(default_factory=dict)
    state: State | None = field(default=None, compare=False)

    def resume(self, state: State) -> None:
        """Take up the curves that an interrupted run left in its state, and keep those to come there."""
        self.state = state
        self.weights.update(state.all("weights curve"))
        self.activations.update(state.all("activations curve"))

    def __call__(self, kind: str, name: str, factors, scores, chosen) -> None:
        """Keep the curve of one layer or site; a later round replaces an earlier one."""
        order = np.argsort(-factors)  # S * f: the range falls as f grows
        ranges = 1.0 / factors
        curve: dict = {"range": _short(ranges[order])}
        if kind == "weights":
            sorted_scores = scores[order]
            curve["score"] = _short(sorted_scores.mean(axis=1))
            low, high = np.percentile(sorted_scores, (10, 90), axis=1)
            curve.update(low=_short(low), high=_short(high), chosen=_short(ranges[chosen]))
            self.weights[name] = curve
        else:
            curve.update(score=_short(scores[order]), chosen=float(f"{ranges[int(chosen)]:.6g}"))
            self.activations[name] = curve
        if self.state is not None:
            self.state.append(f"{kind} curve", name, curve)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file atomically."""
        facts = {name: value for name, value in vars(self).items() if name != "state"}
        write_text(path, json.dumps({"format": FORMAT, "version": VERSION, **facts}) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Curves:
        """Read what `save` wrote; CurvesError otherwise."""
        try:
            text = read_text(path, CurvesError, "the search record")
        except CurvesError as error:
            if not isinstance(error.__cause__, UnicodeDecodeError):
                raise
            text = ""  # what is no text is no record
        version = None
        with contextlib.suppress(CurvesError):
            data = parse_json(text, CurvesError, str(path))
            if isinstance(data, dict) and _is_record(data):
                return cls(**{name: data[name] for name in KEYS[2:]})
            if isinstance(data, dict) and data.get("format") == FORMAT:
                version = data.get("version")
        if type(version) is int and version > VERSION:
            raise CurvesError(
                f"{path} has version {version}, this release reads version {VERSION}: install a newer "
                "tvm_easyquant, or make one with quantize --record FILE"
            )
        raise CurvesError(
            f"{path} is not a search record of this release; make one with quantize --record FILE"
        )


def _is_record(data: dict) -> bool:
    """Whether it has the form of what `Curves.save` writes."""
    if sorted(data) != sorted(KEYS) or (data["format"], repr(data["version"])) != (FORMAT, repr(VERSION)):
        return False
    texts = isinstance(data["objective"], str) and isinstance(data["model"], str)
    lists = {"weights": ("range", "score", "low", "high", "chosen"), "activations": ("range", "score")}
    return texts and all(
        isinstance(data[kind], dict)
        and all(isinstance(curve, dict) and _is_curve(curve, names) for curve in data[kind].values())
        for kind, names in lists.items()
    )


def _is_curve(curve: dict, lists: tuple[str, ...]) -> bool:
    numbers = [value for name, value in curve.items() if name not in lists]
    for name in lists:
        if not isinstance(curve.get(name), list):
            return False
        numbers += curve[name]
    return all(type(value) in (int, float) for value in numbers)


def _short(values) -> list[float]:
    """Six digits are enough for a plot."""
    return [float(f"{v:.6g}") for v in values]
