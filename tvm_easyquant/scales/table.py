"""`ScaleTable`: what calibration and search found, keyed by name, and its JSON file.

The table is the only thing that passes from the search to a rewriter. It can be read, compared and
edited by hand.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from topi_ext import isa

from ..errors import ImageError, TableError
from ..files import parse_json, read_json, shown, write_text
from ..network.channelwise import channelwise
from ..network.equalize import equalized
from ..network.graph import Graph, GraphError
from ..network.shapes import input_shapes, reshaped, told
from ..samples.images import Preprocess
from .numerics import BITS, NEW_SWITCHES, ConfigError, QuantConfig, Scale, ungained
from .partition import Plan, plan_of

FORMAT = "tvm_easyquant scale table"
#: 2 knows functions fused to layers, zero points that were searched, and factors of channels; a table that
#: has none of them is written as 1
VERSION = 2
#: the version of a file that holds the tables of one model at several bits
SEVERAL = 3
UNIT = "real units per step: real = scale * (q - zero_point)"
#: what every table has, and what it may have
KEYS = ("format", "version", "model", "config", "unit", "activations", "weights", "figures")
MORE = ("data", "rounding", "biases", "gains", "factors")
#: the settings that the first tables had; those that came later may be absent
SETTINGS = ("bits", "method", "search_images", "grid", "alpha", "beta", "rounds", "skip")
#: those that version 1 does not know
NEW_SETTINGS = (*NEW_SWITCHES, "wide")


def pack(steps: np.ndarray) -> str:
    """int8 (any, K) -> text: zlib, then base64; row by row."""
    return b64encode(zlib.compress(np.ascontiguousarray(steps, np.int8).tobytes(), 9)).decode("ascii")


LARGEST = 2**28  # weights of a layer: a text of a few bytes must not unpack to all of the memory


def unpack(name: str, text: str, channels: int) -> np.ndarray:
    """int8 (any, K) of `pack`'s text; ConfigError naming the layer."""
    unpacker = zlib.decompressobj()
    try:
        packed = b64decode(text, validate=True)
        steps = unpacker.decompress(packed, LARGEST)
        canonical = (
            b64encode(packed).decode("ascii") == text
        )  # else the last letter has bits that say nothing
        if canonical and unpacker.eof and not unpacker.unused_data:
            return np.frombuffer(steps, np.int8).reshape(-1, channels)
    except (ValueError, TypeError, zlib.error):
        pass
    raise ConfigError(f"the rounding of {name} is not one that a search wrote; quantize again")


@dataclass(frozen=True)
class ScaleTable:
    """Scales of one model.

    activations: site name -> `Scale`. weights: layer name -> float32 (K,) scales, real units per
    step. figures: layer name -> numbers worth reading (cosine, ...), for people. config: the settings
    they were found with. model: fingerprint of the graph. data: the calibration data: ``samples``,
    ``digest``, ``preprocess`` if they were made from pictures (`images.Preprocess`'s fields), and
    ``outputs`` if the model was cut there.

    rounding: layer name -> int8 (weights of a channel, K), steps to add to the nearest integer, for layers
    whose weights were rounded otherwise. biases: layer name -> float32 (K,), real units, instead of the
    model's, for layers whose bias was corrected. gains: layer name -> float32 (K,), for layers whose gain
    was corrected: factors that are in ``weights``, while the model's weights are rounded at
    ``weights / gains``. factors: tensor that only depthwise layers read -> float32 (C,) by which its
    channels are divided before they are rounded (`network.channelwise`); the scales are of the network as
    `prepared` makes it. With the model they make the integers; no more is needed.
    """

    model: str
    config: QuantConfig
    activations: Mapping[str, Scale]
    weights: Mapping[str, np.ndarray]
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    rounding: Mapping[str, np.ndarray] = field(default_factory=dict)
    biases: Mapping[str, np.ndarray] = field(default_factory=dict)
    gains: Mapping[str, np.ndarray] = field(default_factory=dict)
    data: Mapping[str, object] = field(default_factory=dict)
    factors: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __repr__(self) -> str:
        bits = sorted({self.config.bits_of(name) for name in self.weights})
        kinds = " and ".join(f"int{each}" for each in bits)
        layers = f"{len(self.weights)} layers in {kinds}"
        return f"<ScaleTable of model {self.model[:12]}: {layers}, {self.config.method}>"

    def rounding_scale(self, layer: str) -> np.ndarray:
        """float32 (K,): what the layer's weights are divided by before they are rounded."""
        return ungained(self.weights[layer], self.gains.get(layer))

    def prepared(self, graph: Graph) -> Graph:
        """The graph that this table is of, for one as it was loaded: equalized, if that is a setting, and
        divided by its factors; of an earlier table what was read then (`Graph.former`). TableError if they
        do not fit."""
        made = found = self._divided(graph)
        cut = graph.cut
        while found.fingerprint != self.model:
            if graph.former is None:
                return made
            graph = graph.former()
            graph.cut = cut
            found = self._divided(graph)
        return found

    def _divided(self, graph: Graph) -> Graph:
        """The graph, equalized and divided by the factors, if the table has such."""
        if not (self.config.equalize or self.factors) or self.model == graph.fingerprint:
            return graph
        try:
            return channelwise(equalized(graph) if self.config.equalize else graph, self.factors)
        except GraphError as error:
            raise TableError(f"the scale table does not fit model {graph.name}: {error}") from None

    def at_shapes(self, graph: Graph, other: Graph) -> Graph:
        """The same model read at other input shapes as a graph that this table is of, too.

        graph: the one it was made for, as `prepared` makes it; other: as it was loaded. No scale depends on
        a size, so where only sizes differ the table is as good for both. TableError where more does.
        """
        plan_ = self.check(graph)
        if other.fingerprint == graph.fingerprint:
            return other
        try:
            made = reshaped(graph, self.prepared(other))
        except GraphError as error:
            if other.former is not None:  # of an earlier table
                return self.at_shapes(graph, other.former())
            raise TableError(f"the scale table does not fit: {error}") from None
        there = self.check(made)
        if (there.integer, there.fused) != (plan_.integer, plan_.fused):
            shapes = told(input_shapes(made))
            raise TableError(f"the scale table does not fit: with {shapes} other nodes run in integers")
        return made

    @property
    def outputs(self) -> list[str] | None:
        """Where the model is cut that this table is of; None: nowhere."""
        return self.data.get("outputs")  # type: ignore[return-value]  # a list, as `_facts` says

    @property
    def preprocess(self) -> Preprocess | None:
        """How the pictures of its calibration became inputs; None where it was not of pictures."""
        stored = self.data.get("preprocess")
        return Preprocess.of(stored) if stored else None

    def check(self, graph: Graph) -> Plan:
        """The graph's plan, if this table fits it exactly; otherwise TableError listing both sides."""
        plan_ = plan_of(graph, self.config)
        try:
            self.config.check_layers(node.name for node in graph.compute_nodes)
            self.config.check_wide(graph.nodes)
        except ConfigError as error:
            raise TableError(f"the scale table does not fit model {graph.name}: {error}") from None
        layers = [n.name for n in graph.compute_nodes if n.name in plan_.integer]
        self._check_names(graph, plan_, layers)
        self._check_sizes(graph, layers)
        if self.model != graph.fingerprint:
            raise TableError(
                f"the scale table was made for another model ({self.model[:12]}, this is "
                f"{graph.fingerprint[:12]}): the names fit but the weights or shapes differ; "
                + ("give table.prepared(graph), or " if self.config.equalize or self.factors else "")
                + "quantize this model again, or load it at the input shapes that the table was made at"
            )
        return plan_

    def _check_names(self, graph: Graph, plan_: Plan, layers: list[str]) -> None:
        for kind, have, want in (
            ("activation", self.activations, plan_.sites),
            ("weight", self.weights, layers),
        ):
            missing, unknown = sorted(set(want) - set(have)), sorted(set(have) - set(want))
            if (missing or unknown) and self.model != graph.fingerprint:
                raise TableError(
                    f"the scale table was made for another model ({self.model[:12]}, {graph.name} is "
                    f"{graph.fingerprint[:12]}): quantize this one, or name the table's own"
                )
            if missing or unknown:
                raise TableError(
                    f"the scale table does not fit model {graph.name}: its {kind} scales lack "
                    f"{missing or 'nothing'} and have unknown {unknown or 'nothing'}; quantize it again"
                )

    def _check_sizes(self, graph: Graph, layers: list[str]) -> None:
        for name in layers:
            if len(self.weights[name]) != graph[name].channels:
                raise TableError(
                    f"the scale table has {len(self.weights[name])} weight scales for layer {name}, "
                    f"the model has {graph[name].channels} channels there"
                )
        for kind, have in (("rounding", self.rounding), ("biases", self.biases), ("gains", self.gains)):
            unknown = sorted(set(have) - set(layers))
            if unknown:
                raise TableError(f"the scale table has {kind} of {unknown}, which are no integer layers")
        for name, steps in self.rounding.items():
            shape = (graph[name].weight.size // graph[name].channels, graph[name].channels)
            if steps.shape != shape:
                raise TableError(f"the rounding of layer {name} is {steps.shape}, its weights are {shape}")
        for what, each in (("bias", self.biases), ("gain", self.gains)):
            for name, values in each.items():
                if values.shape != (graph[name].channels,):
                    raise TableError(
                        f"the {what} of layer {name} is {values.shape}, not ({graph[name].channels},)"
                    )

    def to_json(self) -> str:
        """JSON text; `from_json` of it equals this table bit for bit."""
        more: dict[str, dict] = {}  # what few tables have, so that the others do not change
        if self.rounding:
            more["rounding"] = {name: pack(steps) for name, steps in self.rounding.items()}
        if self.biases:
            more["biases"] = {name: [float(b) for b in bias] for name, bias in self.biases.items()}
        if self.gains:
            more["gains"] = {name: [float(g) for g in gains] for name, gains in self.gains.items()}
        if self.factors:
            more["factors"] = {name: [float(f) for f in factors] for name, factors in self.factors.items()}
        config = {**asdict(self.config), "layer_bits": dict(self.config.layer_bits)}
        known = self.factors or self.config.wide or any(getattr(self.config.how, n) for n in NEW_SWITCHES)
        if not known:
            config = {name: value for name, value in config.items() if name not in NEW_SETTINGS}
        return json.dumps(
            {
                "format": FORMAT,
                "version": VERSION if known else 1,
                "model": self.model,
                "config": config,
                "data": dict(self.data),
                "unit": UNIT,
                "activations": {name: asdict(scale) for name, scale in self.activations.items()},
                "weights": {name: [float(s) for s in w] for name, w in self.weights.items()},
                "figures": {name: dict(figures) for name, figures in self.figures.items()},
                **more,
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str, source: str = "the scale table") -> ScaleTable:
        """Parse `to_json`'s text; TableError names ``source`` and what is wrong."""
        return ScaleTables.of(parse_json(text, TableError, source, constants=True), source).for_bits()

    @classmethod
    def _of(cls, data: object, source: str) -> ScaleTable:
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise TableError(f"{source} is not a tvm_easyquant scale table")
        version = data.get("version")
        if type(version) is not int or not 1 <= version <= VERSION:
            newer = type(version) is int and version > SEVERAL
            cure = "install a newer tvm_easyquant, or quantize again with this one"
            raise TableError(
                f"{source} has version {shown(version)}; this release reads versions 1 to {SEVERAL}: "
                + (cure if newer else "no release wrote it so; quantize again")
            )
        try:
            for key in KEYS:
                if key not in data:
                    raise ConfigError(f"it has no {key!r}")
            if unknown := [key for key in data if key not in (*KEYS, *MORE)]:
                raise ConfigError(f"it has unknown {shown(unknown)}")
            if data["unit"] != UNIT:
                raise ConfigError(f"unit is {shown(data['unit'])}; it must be {UNIT!r}")
            named = {key: _object(key, data.get(key, {})) for key in (*KEYS[5:], *MORE)}
            weights = {n: _positive("weight scales", n, w) for n, w in named["weights"].items()}
            if version == 1 and named["factors"]:
                raise ConfigError("it has 'factors', which version 1 does not know")
            for name in named["rounding"]:
                if name not in weights:
                    raise ConfigError(f"it has a rounding of {shown(name)}, but no weight scales")
            return cls(
                model=_text("model", data["model"]),
                config=_config(data["config"], version),
                activations={n: _scale(n, s) for n, s in named["activations"].items()},
                weights=weights,
                figures={n: _figures(n, f) for n, f in named["figures"].items()},
                rounding={n: unpack(n, t, len(weights[n])) for n, t in named["rounding"].items()},
                biases={n: _biases(n, b) for n, b in named["biases"].items()},
                gains={n: _positive("gains", n, g) for n, g in named["gains"].items()},
                factors={n: _positive("factors", n, f) for n, f in named["factors"].items()},
                data=_facts(named["data"]),
            )
        except (ConfigError, ImageError) as error:
            raise TableError(f"{source} is damaged: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file atomically."""
        write_text(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str], bits: int | None = None) -> ScaleTable:
        """Read a file written by `save`; TableError if it is missing or not such a file.

        bits: of a file with several tables (`ScaleTables`) the one of these bits, by default the fewest.
        """
        return ScaleTables.load(path).for_bits(bits)

    def diff(self, other: ScaleTable) -> list[str]:
        """Lines that say where two tables differ; empty if they hold the same scales."""
        lines = []
        scales: tuple[tuple[str, Mapping[str, Any], Mapping[str, Any]], ...] = (
            ("activation", self.activations, other.activations),
            ("weight", self.weights, other.weights),
        )
        for kind, mine, theirs in scales:
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
        for kind, mine, theirs in (
            ("rounding", self.rounding, other.rounding),
            ("bias", self.biases, other.biases),
            ("gain", self.gains, other.gains),
            ("factors", self.factors, other.factors),
        ):
            for name in dict.fromkeys([*mine, *theirs]):
                if name not in mine or name not in theirs:
                    lines.append(f"{kind} {name}: only in the {'first' if name in mine else 'second'}")
                elif mine[name].shape != theirs[name].shape:
                    lines.append(f"{kind} {name}: {mine[name].shape} -> {theirs[name].shape}")
                elif different := int((mine[name] != theirs[name]).sum()):
                    lines.append(f"{kind} {name}: {different} of {mine[name].size} differ")
        return lines


#: the bits of a compiled network that depend on the class of its CPU: 8 where they cost nothing, else 7
BY_CLASS = "by-class"


def asked_bits(text: str | None) -> Any:
    """The bits that ``compile --bits`` names: 7, 8, `BY_CLASS` or None; ConfigError for anything else."""
    if text not in (None, "7", "8", BY_CLASS):
        raise ConfigError(f"--bits {text}: give 7, 8 or {BY_CLASS}")
    return int(text) if text in ("7", "8") else text


def bits_of_class(row: str) -> int:
    """The bits of `BY_CLASS` on a row of `topi_ext.isa`: 8 where it has dot products of bytes, else 7."""
    return 8 if isa.ISAS[row].byte_dots else 7


def told_by_class(rows: Iterable[str]) -> str:
    """What each class runs by `BY_CLASS`, in a line that says what comes of it."""
    by_bits: dict[int, list[str]] = {}
    for row in rows:
        by_bits.setdefault(bits_of_class(row), []).append(row)
    said = "; ".join(f"{bits} bits on {', '.join(names)}" for bits, names in sorted(by_bits.items()))
    return said + (": answers differ between these" if len(by_bits) > 1 else "")


@dataclass(frozen=True)
class ScaleTables:
    """The tables of one model at several bits, as one calibration found them; {7: ..., 8: ...}, or one.

    One alone is written as a `ScaleTable` is. Whatever reads a table takes one of them (`for_bits`).
    """

    tables: Mapping[int, ScaleTable]

    def __repr__(self) -> str:
        first = self.for_bits()
        widths = " and ".join(map(str, sorted(self.tables)))
        return f"<ScaleTables of model {first.model[:12]}: {widths} bits, {first.config.method}>"

    def for_bits(self, bits: int | None = None) -> ScaleTable:
        """The table of these bits, or of the fewest. Raises TableError where there is none."""
        if bits is None:
            bits = min(self.tables)
        if bits not in self.tables:
            has = " and ".join(map(str, sorted(self.tables)))
            raise TableError(
                f"the scale table is of {has} bits, {shown(bits)} is asked for; quantize at these, or at "
                "--bits 7,8, which finds both"
            )
        return self.tables[bits]

    def for_class(self, row: str) -> ScaleTable:
        """The table of `bits_of_class`. Raises TableError unless all bits are there."""
        if missing := [bits for bits in BITS if bits not in self.tables]:
            self.for_bits(missing[0])
        return self.tables[bits_of_class(row)]

    def to_json(self) -> str:
        """JSON text: of one table its own, of several each of them."""
        if len(self.tables) == 1:
            return self.for_bits().to_json()
        each = {str(bits): json.loads(self.tables[bits].to_json()) for bits in sorted(self.tables)}
        return json.dumps({"format": FORMAT, "version": SEVERAL, "tables": each}, indent=1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file atomically."""
        write_text(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ScaleTables:
        """Read a file written by this `save` or a table's; TableError if it is no such file."""
        return cls.of(read_json(path, TableError, "the scale table", constants=True), str(path))

    @classmethod
    def of(cls, data: object, source: str) -> ScaleTables:
        """What JSON held; TableError names ``source`` and what is wrong."""
        version = data.get("version") if isinstance(data, dict) and data.get("format") == FORMAT else None
        if not isinstance(data, dict) or type(version) is not int or version != SEVERAL:
            table = ScaleTable._of(data, source)
            return cls({table.config.bits: table})
        each = data.get("tables")
        if (
            not isinstance(each, dict)
            or not {*each} <= {str(bits) for bits in BITS}
            or not each
            or set(data) != {"format", "version", "tables"}
        ):
            raise TableError(f"{source} is damaged: it must have tables of 7 and 8 bits, and nothing else")
        found = {int(bits): ScaleTable._of(one, f"{source} at {bits} bits") for bits, one in each.items()}
        for bits, table in found.items():
            if table.config.bits != bits:
                raise TableError(f"{source} is damaged: its table of {bits} bits is of {table.config.bits}")
        if len({table.model for table in found.values()}) > 1:
            raise TableError(f"{source} is damaged: its tables are of different models")
        return cls(found)


# -- reading what a hand may have edited


def _text(key, entry) -> str:
    if not isinstance(entry, str):
        raise ConfigError(f"{key} is {shown(entry)}; it must be a text")
    return entry


def _object(key, entry) -> dict:
    if not isinstance(entry, dict):
        raise ConfigError(f"{key} is {shown(entry)}; it must be an object")
    return entry


def _fields(what, entry, kind, required) -> dict:
    """The entry of a JSON object as fields of the dataclass ``kind``; ConfigError says what is wrong."""
    known = {f.name for f in fields(kind)}
    lacking = [n for n in required if n not in entry]
    unknown = [n for n in entry if n not in known]
    if lacking or unknown:
        more = shown(unknown) if unknown else "nothing"
        raise ConfigError(f"{what} lacks {lacking or 'nothing'} and has unknown {more}")
    return entry


def _config(entry, version: int) -> QuantConfig:
    found = _fields("config", _object("config", entry), QuantConfig, SETTINGS)
    if version == 1:
        if unknown := [name for name in NEW_SETTINGS if name in found]:
            raise ConfigError(f"config has {shown(unknown)}, which version 1 does not know")
        found = {**found, **dict.fromkeys(NEW_SWITCHES, False)}
    _object("layer_bits", found.get("layer_bits", {}))
    if isinstance(found["bits"], dict):  # a call may give them so, a table has layer_bits
        raise ConfigError(f"bits is {shown(found['bits'])}; use 7 or 8")
    return QuantConfig(**found)


def _scale(name, entry) -> Scale:
    what = f"the scale of activation {name}"
    names = [f.name for f in fields(Scale)]
    for key, value in _fields(what, _object(what, entry), Scale, names).items():
        wanted, allowed = ("a number", (int, float)) if key == "scale" else ("an integer", int)
        if isinstance(value, bool) or not isinstance(value, allowed):
            raise ConfigError(f"{what}: {key} is {shown(value)}; it must be {wanted}")
    try:
        return Scale(**entry)
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from None


def _figures(name, entry) -> dict[str, float]:
    for key, value in _object(f"figures of {name}", entry).items():
        # a layer without any noise has an infinite SQNR
        if type(value) not in (int, float) or not (math.isfinite(value) or value == math.inf):
            raise ConfigError(f"figures of {name}: {shown(key)} is {shown(value)}; it must be a number")
    return entry


def _facts(entry) -> dict[str, object]:
    """The facts of the calibration data."""
    for key, value in entry.items():
        if key == "samples":
            if type(value) is not int or value < 0:
                raise ConfigError(f"data: samples is {shown(value)}; it must be a whole number, 0 or more")
        elif key in ("digest", "imported from"):
            _text(f"data: {key}", value)
        elif key == "outputs":
            if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
                raise ConfigError(f"data: outputs is {shown(value)}; it must be a list of names")
        elif key == "preprocess":
            Preprocess(**_fields("preprocess", _object("data: preprocess", value), Preprocess, ()))
        else:
            raise ConfigError(f"data has unknown {shown(key)}")
    return entry


def _numbers(entry) -> np.ndarray | None:
    """A list of finite numbers as float32; None if the entry is anything else."""
    if not (isinstance(entry, list) and all(type(v) in (int, float) for v in entry)):
        return None
    with np.errstate(over="ignore"):
        array = np.asarray(entry, np.float64).astype(np.float32)
    return array if np.isfinite(array).all() else None


def _positive(what, name, entry) -> np.ndarray:
    values = _numbers(entry)
    if values is None or not (values.size and (values > 0).all()):
        raise ConfigError(f"the {what} of {name} must be a list of positive, finite numbers")
    return values


def _biases(name, entry) -> np.ndarray:
    biases = _numbers(entry)
    if biases is None:
        raise ConfigError(f"the biases of {name} must be a list of finite numbers")
    return biases
