"""Which numbers a quantized tensor may hold, and the settings of a quantization.

``real = scale * (q - zero_point)``: a scale is in real units per step (the EasyQuant paper's S is its
inverse). Activations are stored as uint8 on every target: the fast x86 multiply takes one unsigned
operand. A signed symmetric 7-bit activation, -63..63, is stored with zero point 64, as 1..127;
nothing but the stored byte differs from the paper. Weights are int8, symmetric, one scale per
output channel.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np

from ..errors import ConfigError, RangeError
from ..files import shown


class Method(NamedTuple):
    """What a method does: the switches of `QuantConfig`, each with its value.

    objective: what the search improves, None for no search. "cosine": the mean over images of the cosine
        (the paper). "mse": the squared error over all images, relative to the output; unlike the cosine it
        sees a channel's gain. "hessian": the squared error, for activation scales weighted by how the next
        operators pass it on (a diagonal Gauss-Newton approximation without gradients).
    unsigned: 0..127 instead of -63..63 for tensors that are never negative.
    start: where the search starts, or what a method without search takes: "max", "percentile", "kl"
        (entropy) or "mse", of the calibration histograms.
    order: "passes", all weight scales, then all activation scales (Algorithm 1); or "layerwise", layer
        after layer: its input's scale, then its weights, behind a prefix that is final.
    gain_correction: the least-squares gain of each output channel, less what is chance in it, folded into
        its scale.
    bias_correction: the bias that removes each output channel's mean error on the calibration data.
    rounding: "nearest", or "descent": weights rounded up or down by coordinate descent on the layer's
        squared error, which its Gram matrix gives (AdaRound's aim, without gradients).
    fuse_functions: a function behind a layer, an add or a mul (LeakyReLU, hard-swish, SiLU) is computed on
        the float32 of its requantize: one rounding; without it the layer is rounded, and a table of 256
        entries read.
    asymmetric: any zero point for tensors that can be negative, both ends of the range searched.
    channel_factors: one scale per channel for tensors that only depthwise layers read
        (`network.channelwise`).
    effect: where both ends of a range are searched, a layer's squared error counts by how far it moves the
        network's outputs (`network.gradient`) on the first 16 search images (24
        at 8 bits); with the objective "mse" only.
    exhaustive: every candidate on all data; otherwise successive halving on growing samples of the output
        positions drops most activation scales early.
    """

    objective: str | None = "mse"
    unsigned: bool = True
    start: str = "max"
    order: str = "passes"
    gain_correction: bool = False
    bias_correction: bool = False
    rounding: str = "nearest"
    exhaustive: bool = False
    fuse_functions: bool = False
    asymmetric: bool = False
    channel_factors: bool = False
    effect: bool = False


METHODS = {
    # the paper: signed symmetric everywhere (section 3.2)
    "easyquant": Method("cosine", unsigned=False, exhaustive=True),
    "easyquant_unsigned": Method("cosine", exhaustive=True),
    "easyquant_mse": Method("mse"),
    # what measured best at 7 bits (benchmarks/ablation.py)
    "easyquant_layerwise": Method(
        "mse",
        start="mse",
        order="layerwise",
        gain_correction=True,
        bias_correction=True,
        fuse_functions=True,
        asymmetric=True,
        channel_factors=True,
        effect=True,
    ),
    # the starting points of the search, unsearched
    "minmax": Method(None),
    "percentile": Method(None, start="percentile"),
    "kl": Method(None, start="kl"),
    "mse": Method(None, start="mse"),
}
#: switch -> the values it takes
SWITCHES = {
    "objective": ("cosine", "mse", "hessian"),
    "unsigned": (True, False),
    "start": ("max", "percentile", "kl", "mse"),
    "order": ("passes", "layerwise"),
    "gain_correction": (True, False),
    "bias_correction": (True, False),
    "rounding": ("nearest", "descent"),
    "exhaustive": (True, False),
    "fuse_functions": (True, False),
    "asymmetric": (True, False),
    "channel_factors": (True, False),
    "effect": (True, False),
}
#: the switches that tables of version 1 do not know, where each of them is off
NEW_SWITCHES = ("fuse_functions", "asymmetric", "channel_factors", "effect")
#: what a method without search has a say in
UNSEARCHED = ("start", "unsigned", "fuse_functions", "asymmetric", "channel_factors")
#: the method of a table whose scales a quantized model brought along
IMPORTED = "imported"
BITS = (7, 8)
DEFAULT_METHOD = "easyquant_layerwise"


class Settings(TypedDict, total=False):
    """The fields of `QuantConfig` that `tvm_easyquant.quantize` takes beside bits, method and skip."""

    search_images: int
    grid: int
    alpha: float
    beta: float
    rounds: int
    percentile: float
    objective: Literal["cosine", "mse", "hessian"] | None
    unsigned: bool | None
    start: Literal["max", "percentile", "kl", "mse"] | None
    order: Literal["passes", "layerwise"] | None
    gain_correction: bool | None
    bias_correction: bool | None
    rounding: Literal["nearest", "descent"] | None
    exhaustive: bool | None
    fuse_functions: bool | None
    asymmetric: bool | None
    channel_factors: bool | None
    effect: bool | None
    equalize: bool
    layer_bits: Mapping[str, int] | Iterable[tuple[str, int]]
    integer: Iterable[str] | None
    wide: Iterable[str] | None


def _whole(value) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _names(setting: str, given) -> tuple[str, ...]:
    """The names of layers in a list, a tuple, a set; ConfigError names the ``setting``."""
    listed = isinstance(given, Iterable) and not isinstance(given, (str, Mapping))
    names = tuple(given) if listed else ()
    if not (listed and all(isinstance(name, str) for name in names)):
        raise ConfigError(f"{setting} is {shown(given)}; give a list of names")
    return names


def _pairs(given) -> list[tuple[str, Any]]:
    """{layer: bits}, or pairs of them."""
    pairs = list(given.items() if isinstance(given, Mapping) else given if _listed(given) else [None])
    if not all(_listed(pair) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        raise ConfigError(f"bits by layer are {shown(given)}; give {{layer: bits}}")
    return [(name, bits) for name, bits in pairs]


def _listed(value) -> bool:
    return isinstance(value, (list, tuple))


@dataclass(frozen=True)
class QuantConfig:
    """Settings of one quantization; immutable, comparable, stored in the scale table.

    bits: 7 or 8, of weights and of every activation that a convolution or dense layer reads
        (tensors read only by add, pool or concat keep 8: nothing there can overflow). Or a mapping
        {layer: 7, 8 or "float"}, whose key "*" stands for all other layers (7): its entries become
        ``layer_bits`` and ``skip``. A tensor that several layers read has the fewest bits of them.
    method: a key of `METHODS`.
    search_images: samples used by the scale search (paper: 50).
    grid, alpha, beta: ``grid`` candidate factors evenly spaced over ``[alpha, beta]`` (paper: 100
        over [0.5, 2]), plus the factor 1.
    rounds: the whole search, repeated from where it is; a round that makes the network's output worse on
        the search images is undone and ends it (paper: 1).
    percentile: of the absolute values that the start "percentile" keeps.
    objective, unsigned, start, order, gain_correction, bias_correction, rounding, exhaustive,
        fuse_functions, asymmetric, channel_factors, effect: switches, see `Method`; None is what ``method``
        says. ``method="easyquant"`` is the paper and takes none.
    equalize: cross-layer equalization first (`equalize`); of any method but the paper's.
    layer_bits: ((layer, bits), ...) of the layers whose bits differ from ``bits``.
    wide: the sites (`partition.Site`; other tensors say nothing) whose activations have 8 bits though the
        layers that read them have 7, which their weights keep. None: those that make most of the noise at
        the outputs, within a cost (`search.wide`), which a method with ``effect`` and the objective "mse"
        can tell; the table's config has them. () is none, as in every other method.
    integer: the nodes that run in integers, exactly these, where an imported model says so; None: all that
        can. With the method "imported" only; 8-bit weights may be -128 then.
    skip: what stays float: names, ``op:`` and an operator, or regular expressions (`partition.skipped`).
    """

    bits: int = 7
    method: str = DEFAULT_METHOD
    search_images: int = 50
    grid: int = 100
    alpha: float = 0.5
    beta: float = 2.0
    rounds: int = 1
    skip: tuple[str, ...] = ()
    percentile: float = 99.99
    objective: str | None = None
    unsigned: bool | None = None
    start: str | None = None
    order: str | None = None
    gain_correction: bool | None = None
    bias_correction: bool | None = None
    rounding: str | None = None
    exhaustive: bool | None = None
    fuse_functions: bool | None = None
    asymmetric: bool | None = None
    channel_factors: bool | None = None
    effect: bool | None = None
    equalize: bool = False
    layer_bits: tuple[tuple[str, int], ...] = ()
    integer: tuple[str, ...] | None = None
    wide: tuple[str, ...] | None = None

    def __post_init__(self):
        self._settle_bits()
        if self.integer is not None:
            object.__setattr__(self, "integer", _names("integer", self.integer))
        if not isinstance(self.method, str):
            raise ConfigError(f"method is {shown(self.method)}; use one of {', '.join(METHODS)}")
        if (self.method == IMPORTED) != (self.integer is not None):
            raise ConfigError("the method imported and the setting integer belong together")
        if self.method not in METHODS and self.method != IMPORTED:
            raise ConfigError(f"method is {shown(self.method)}; use one of {', '.join(METHODS)}")
        self._check_numbers()
        for name, values in SWITCHES.items():
            if getattr(self, name) is not None:
                self._check_switch(name, values)
        for name in NEW_SWITCHES:  # said or not: one form
            if getattr(self, name) == getattr(METHODS.get(self.method, Method(None)), name):
                object.__setattr__(self, name, None)
        self._settle_wide()
        if not isinstance(self.equalize, bool):
            raise ConfigError(f"equalize is {shown(self.equalize)}; use one of True, False")
        if self.equalize and self.method in ("easyquant", IMPORTED):
            raise ConfigError(f"equalize=True is no part of the method {self.method}; use it with another")

    def _settle_bits(self) -> None:
        """``bits``, ``layer_bits`` and ``skip`` as they are kept, of all ways to give them."""
        each = dict(_pairs(self.layer_bits))
        skip = (self.skip,) if isinstance(self.skip, str) else _names("skip", self.skip)
        if isinstance(self.bits, Mapping):
            chosen = dict(_pairs(self.bits))
            object.__setattr__(self, "bits", chosen.pop("*", 7))
            skip += tuple(n for n in sorted(chosen) if chosen[n] == "float" and n not in skip)
            each |= {name: bits for name, bits in chosen.items() if bits != "float"}
        object.__setattr__(self, "skip", skip)
        for name, bits in [("", self.bits), *each.items()]:
            if not _whole(bits) or bits not in BITS:
                raise ConfigError(f"bits{name and ' of layer '}{name} is {shown(bits)}; use 7 or 8")
        object.__setattr__(self, "bits", int(self.bits))
        differ = sorted((name, int(bits)) for name, bits in each.items() if bits != self.bits)
        object.__setattr__(self, "layer_bits", tuple(differ))

    def _settle_wide(self) -> None:
        """``wide`` in one form: sorted, or None where the search chooses."""
        if self.wide is not None:
            object.__setattr__(self, "wide", tuple(sorted(set(_names("wide", self.wide)))))
            if self.wide and self.method in ("easyquant", IMPORTED):
                raise ConfigError(f"wide is no part of the method {self.method}; use it with another")
        elif not self.weighs_effects:
            object.__setattr__(self, "wide", ())

    def _check_numbers(self) -> None:
        for name in ("search_images", "grid", "rounds"):
            value = getattr(self, name)
            if not _whole(value) or value < 1:
                raise ConfigError(f"{name} is {shown(value)}; use a whole number, 1 or more")
            object.__setattr__(self, name, int(value))  # numpy's cannot be written
        for name in ("alpha", "beta", "percentile"):
            value = getattr(self, name)
            real = _whole(value) or isinstance(value, (float, np.floating))
            if not (real and abs(value) < np.inf):
                raise ConfigError(f"{name} is {shown(value)}; use a number")
            object.__setattr__(self, name, value if type(value) in (int, float) else float(value))
        if not 0 < self.alpha <= 1 <= self.beta:
            raise ConfigError(f"alpha {self.alpha} and beta {self.beta} must enclose 1")
        if not 0 < self.percentile <= 100:
            raise ConfigError(f"percentile is {self.percentile}; use one above 0 and up to 100")

    def _check_switch(self, name: str, values: tuple) -> None:
        value = getattr(self, name)
        if type(value) is not type(values[0]) or value not in values:
            raise ConfigError(f"{name} is {shown(value)}; use one of {', '.join(map(str, values))}")
        if self.method == "easyquant" and value != getattr(METHODS["easyquant"], name):
            raise ConfigError(
                f"{name}={value!r} is no part of the paper's method easyquant; use it with "
                "easyquant_unsigned or easyquant_mse"
            )
        if self.method == IMPORTED and name in NEW_SWITCHES and value:
            raise ConfigError(f"{name}=True is no part of the method imported: its scales are settled")
        off = name in NEW_SWITCHES and not value  # as tables of version 1 have them
        if not self.searches and name not in UNSEARCHED and not off:
            raise ConfigError(f"method {self.method} does not search: {name} says nothing there")

    @property
    def how(self) -> Method:
        """Every switch, resolved."""
        own = {name: getattr(self, name) for name in SWITCHES}
        return METHODS.get(self.method, Method(None))._replace(
            **{k: v for k, v in own.items() if v is not None}
        )

    @property
    def lowest_weight(self) -> int | None:
        """The smallest weight where it is not the negative of the largest, else None."""
        return -128 if self.method == IMPORTED else None

    def bits_of(self, *layers: str) -> int:
        """The bits of a layer; of several, the fewest: those of a tensor that they all read."""
        each = dict(self.layer_bits)
        return min(each.get(layer, self.bits) for layer in layers)

    def bits_read(self, site: str, readers: Iterable[str]) -> int:
        """The bits of a site's activations: of its readers, or 8 if it is wide or has none."""
        names = tuple(readers)
        return self.bits_of(*names) if names and site not in (self.wide or ()) else 8

    @property
    def weighs_effects(self) -> bool:
        """Whether the search weighs errors by their effect at the outputs."""
        return self.how.effect and self.how.objective == "mse"

    def check_layers(self, layers: Iterable[str]) -> None:
        """ConfigError if ``layer_bits`` names a layer that is none of ``layers``."""
        layers = list(layers)
        unknown = sorted(set(dict(self.layer_bits)) - set(layers))
        if unknown:
            raise ConfigError(
                f"bits names {unknown}, no layers of the model; those are {', '.join(layers)}"
            )

    def check_wide(self, tensors: Container[str]) -> None:
        """ConfigError if ``wide`` names a tensor that is none of ``tensors``."""
        unknown = [name for name in self.wide or () if name not in tensors]
        if unknown:
            raise ConfigError(f"wide names {unknown}, no tensors of the model")

    @property
    def searches(self) -> bool:
        """Whether the method searches scales, or takes those it starts from."""
        return METHODS.get(self.method, Method(None)).objective is not None


@dataclass(frozen=True)
class Scale:
    """How one activation tensor is stored: ``real = scale * (q - zero_point)``, lo <= q <= hi.

    scale: float32-representable, real units per step, > 0. q is uint8.
    """

    scale: float
    zero_point: int
    lo: int
    hi: int

    def __post_init__(self):
        with np.errstate(over="ignore"):  # infinity is named below
            object.__setattr__(self, "scale", float(np.float32(self.scale)))
        if not (self.scale > 0 and np.isfinite(self.scale)):
            raise ConfigError(f"a scale is {self.scale}; it must be positive and finite")
        if not 0 <= self.lo <= self.zero_point <= self.hi <= 255:
            raise ConfigError(
                f"zero point {self.zero_point} and range {self.lo}..{self.hi} must lie in uint8"
            )

    def with_scale(self, scale: float) -> Scale:
        """The same range of integers in other steps."""
        return Scale(scale, self.zero_point, self.lo, self.hi)


def steps(bits: int, signed: bool) -> int:
    """The largest |q - zero_point|: 63 or 127 signed, 127 or 255 unsigned."""
    return 2 ** (bits - 1) - 1 if signed else 2**bits - 1


def scale_for(absmax: float, bits: int, signed: bool) -> Scale:
    """The scale that just holds ``[-absmax, absmax]``, or ``[0, absmax]`` if not signed.

    An all-zero tensor gets scale 1.
    """
    top = steps(bits, signed)
    zero_point = 2 ** (bits - 1) if signed else 0
    scale = float(np.float32(absmax / top)) if absmax > 0 else 1.0
    scale = max(scale, float(np.finfo(np.float32).tiny))
    return Scale(scale, zero_point, zero_point - top if signed else 0, zero_point + top)


def scale_between(low: float, high: float, bits: int) -> Scale:
    """The scale and zero point of ``[low, high]``, which has 0 inside, in all integers of ``bits``."""
    top = steps(bits, signed=False)
    low, high = min(low, 0.0), max(high, 0.0)
    if high == low:
        return Scale(1.0, 0, 0, top)
    scale = max(float(np.float32((high - low) / top)), float(np.finfo(np.float32).tiny))
    return Scale(scale, min(top, int(np.rint(-low / scale))), 0, top)


def weight_scales(
    weight_2d: np.ndarray, bits: int, bias: np.ndarray | None = None, input_scale: float = 1.0
) -> np.ndarray:
    """float32 (K,) scales that just hold each output channel of ``weight_2d`` (any, K).

    A channel whose bias (K,) is huge beside its weights (a batch normalization that switched the
    channel off leaves weights of 1e-14) gets the scale that keeps the int32 bias at 2**22 steps of
    ``input_scale * scale``. A channel of zeros with no bias gets scale 1.
    """
    scales = np.abs(weight_2d).max(axis=0).astype(np.float64) / steps(bits, signed=True)
    if bias is not None:
        scales = np.maximum(scales, np.abs(bias) / (float(input_scale) * 2.0**22))
    scales = scales.astype(np.float32)
    return np.where(scales > np.finfo(np.float32).tiny, scales, np.float32(1)).astype(np.float32)


def quantize_weight(
    weight_2d: np.ndarray,
    scales: np.ndarray,
    bits: int,
    rounding: np.ndarray | None = None,
    lowest: int | None = None,
) -> np.ndarray:
    """float32 (any, K) -> int8: ``clip(rint(w / scale), -qmax, qmax)``, a hard clip at +-63 or 127.

    rounding: int8 (any, K), steps then added, where nearest is not best (`ScaleTable`), and clipped again.
    lowest: instead of -qmax (`QuantConfig.lowest_weight`).
    """
    top = steps(bits, signed=True)
    low = -top if lowest is None else lowest
    nearest = np.clip(np.rint(weight_2d / scales), low, top)
    if rounding is not None:
        nearest = np.clip(nearest + rounding, low, top)
    return nearest.astype(np.int8)


def ungained(scales: np.ndarray, gains: np.ndarray | None) -> np.ndarray:
    """float32 (K,): what weights are divided by, of scales that have these gains (`ScaleTable`) in them."""
    return scales if gains is None else (scales / gains).astype(np.float32)


def quantize_bias(bias: np.ndarray, input_scale: float, scales: np.ndarray, name: str) -> np.ndarray:
    """float32 (K,) -> int32 steps of ``input_scale * weight_scale``; RangeError names the layer."""
    exact = np.rint(np.asarray(bias, np.float64) / (float(input_scale) * scales.astype(np.float64)))
    if exact.size and np.abs(exact).max() > 2**30:
        channel = int(np.abs(exact).argmax())
        raise RangeError(
            name,
            f"the bias of channel {channel} is {bias[channel]:g}, too large for int32 "
            f"at scale {float(input_scale) * scales[channel]:g}",
        )
    return exact.astype(np.int32)


def integer_limits(scale: Scale, limits: tuple[float, float]) -> tuple[int, int]:
    """The stored range (lo, hi) of a tensor that is clipped to the real ``limits``."""
    with np.errstate(over="ignore"):
        low, high = (np.rint(np.float32(limit) / np.float32(scale.scale)) for limit in limits)
    lo = scale.lo if low <= scale.lo - scale.zero_point else int(low) + scale.zero_point
    hi = scale.hi if high >= scale.hi - scale.zero_point else int(high) + scale.zero_point
    return lo, max(lo, hi)
