"""What a scale search saw: the score of every candidate, recorded for the report. No TVM here.

A `Curves` is the ``record`` of `search.search`. Candidates are kept as *ranges*: the range that the scale
holds, relative to that of the start (below 1 it clips more than the start).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import CurvesError
from ..files import write_text

FORMAT, VERSION = "tvm_easyquant search record", 1


@dataclass
class Curves:
    """weights, activations: {layer or site: curve}; a curve is {"range": [...], "score": [...], "chosen"}.

    Of weights, ``score`` is the mean over the channels, ``low`` and ``high`` their 10th and 90th percentile
    and ``chosen`` the range of every channel; of activations ``chosen`` is one number. objective: "cosine",
    or "mse", whose score is minus the squared error relative to the output. model: the graph's fingerprint.
    path: where each curve is saved as it comes, for a search that is resumed; see `resumed`.
    """

    objective: str = ""
    model: str = ""
    weights: dict[str, dict] = field(default_factory=dict)
    activations: dict[str, dict] = field(default_factory=dict)
    path: str | os.PathLike | None = field(default=None, compare=False)

    @classmethod
    def resumed(cls, objective: str, model: str, path: str | os.PathLike) -> Curves:
        """The curves that an interrupted search of the same kind left in ``path``, or none yet."""
        if os.path.exists(path):
            found = cls.load(path)
            if (found.objective, found.model) == (objective, model):
                found.path = path
                return found
        return cls(objective, model, path=path)

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
        if self.path is not None:
            self.save(self.path)

    def save(self, path: str | os.PathLike) -> None:
        """Write the JSON file atomically."""
        facts = {name: value for name, value in vars(self).items() if name != "path"}
        write_text(path, json.dumps({"format": FORMAT, "version": VERSION, **facts}) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> Curves:
        """Read what `save` wrote; CurvesError otherwise."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if data.pop("format") != FORMAT or data.pop("version") != VERSION:
                raise KeyError("format")
            return cls(**data)
        except OSError as error:
            raise CurvesError(f"cannot read the search record {path}: {error}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CurvesError(f"{path} is not a search record of this release; make one with quantize "
                              "--record FILE") from None  # fmt: skip


def _short(values) -> list[float]:
    """Six digits are enough for a plot."""
    return [float(f"{v:.6g}") for v in values]
