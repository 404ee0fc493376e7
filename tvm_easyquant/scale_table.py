"""`ScaleTable`: what calibration and search found, keyed by name, and its JSON file.

The table is the only thing that passes from the search to a rewriter. It can be read, compared and
edited by hand.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from .files import write_text
from .graph import Graph
from .numerics import ConfigError, QuantConfig, Scale
from .sites import Plan, plan

FORMAT = "tvm_easyquant scale table"
VERSION = 1


class TableError(ValueError):
    """A scale table cannot be used; the message says what is wrong with it."""


@dataclass(frozen=True)
class ScaleTable:
    """Scales of one model.

    activations: site name -> `Scale`. weights: layer name -> float32 (K,) scales, real units per
    step. figures: layer name -> numbers worth reading (cosine, ...), for people. config: the settings
    they were found with. model: fingerprint of the graph.
    """

    model: str
    config: QuantConfig
    activations: Mapping[str, Scale]
    weights: Mapping[str, np.ndarray]
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def check(self, graph: Graph) -> Plan:
        """The graph's plan, if this table fits it exactly; otherwise TableError listing both sides."""
        plan_ = plan(graph, self.config.skip)
        layers = [n.name for n in graph.compute_nodes if n.name in plan_.integer]
        for kind, have, want in (
            ("activation", self.activations, plan_.sites),
            ("weight", self.weights, layers),
        ):
            missing, unknown = sorted(set(want) - set(have)), sorted(set(have) - set(want))
            if missing or unknown:
                raise TableError(
                    f"the scale table does not fit model {graph.name}: its {kind} scales lack "
                    f"{missing or 'nothing'} and have unknown {unknown or 'nothing'}"
                )
        for name in layers:
            if len(self.weights[name]) != graph[name].channels:
                raise TableError(
                    f"the scale table has {len(self.weights[name])} weight scales for layer {name}, "
                    f"the model has {graph[name].channels} channels there"
                )
        if self.model != graph.fingerprint:
            raise TableError(
                f"the scale table was made for another model ({self.model[:12]}, this is "
                f"{graph.fingerprint[:12]}): the names fit but the weights or shapes differ; "
                "quantize this model again"
            )
        return plan_

    def to_json(self) -> str:
        """JSON text; `from_json` of it equals this table bit for bit."""
        return json.dumps(
            {
                "format": FORMAT,
                "version": VERSION,
                "model": self.model,
                "config": asdict(self.config),
                "unit": "real units per step: real = scale * (q - zero_point)",
                "activations": {name: asdict(scale) for name, scale in self.activations.items()},
                "weights": {name: [float(s) for s in w] for name, w in self.weights.items()},
                "figures": {name: dict(figures) for name, figures in self.figures.items()},
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str, source: str = "the scale table") -> ScaleTable:
        """Parse `to_json`'s text; TableError names ``source`` and what is wrong."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise TableError(f"{source} is not JSON: {error}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise TableError(f"{source} is not a tvm_easyquant scale table")
        if data.get("version") != VERSION:
            raise TableError(
                f"{source} has version {data.get('version')}; this release reads version {VERSION}"
            )
        try:
            weights = {n: np.asarray(w, np.float32) for n, w in data["weights"].items()}
            bad = [n for n, w in weights.items() if not (np.isfinite(w).all() and (w > 0).all())]
            if bad:
                raise ConfigError(f"the weight scales of {bad} must be positive and finite")
            return cls(
                model=data["model"],
                config=QuantConfig(**data["config"]),
                activations={n: Scale(**s) for n, s in data["activations"].items()},
                weights=weights,
                figures=data.get("figures", {}),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TableError(f"{source} is damaged: {error}") from None

    def save(self, path: str | os.PathLike) -> None:
        """Write the JSON file atomically."""
        write_text(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> ScaleTable:
        """Read a file written by `save`; TableError if it is missing or not such a file."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TableError(f"cannot read the scale table {path}: {error}") from None
        return cls.from_json(text, str(path))

    def diff(self, other: ScaleTable) -> list[str]:
        """Lines that say where two tables differ; empty if they hold the same scales."""
        lines = []
        for kind, mine, theirs in (
            ("activation", self.activations, other.activations),
            ("weight", self.weights, other.weights),
        ):
            for name in dict.fromkeys([*mine, *theirs]):
                if name not in mine or name not in theirs:
                    lines.append(f"{kind} {name}: only in the {'first' if name in mine else 'second'}")
                elif kind == "activation" and mine[name] != theirs[name]:
                    a, b = mine[name], theirs[name]
                    lines.append(
                        f"activation {name}: {a.scale:.8g} [{a.lo}, {a.hi}] zero {a.zero_point} -> "
                        f"{b.scale:.8g} [{b.lo}, {b.hi}] zero {b.zero_point}"
                    )
                elif kind == "weight" and not np.array_equal(mine[name], theirs[name]):
                    if len(mine[name]) != len(theirs[name]):
                        lines.append(f"weight {name}: {len(mine[name])} -> {len(theirs[name])} channels")
                        continue
                    ratio = theirs[name] / mine[name]
                    lines.append(
                        f"weight {name}: {int((ratio != 1).sum())} of {len(ratio)} channels differ, "
                        f"factors {ratio.min():.4g} to {ratio.max():.4g}"
                    )
        return lines
