"""Which kernel a layer gets on an instruction set: the fastest that is proven legal, and why."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from . import cost, isa, manifest
from .errors import AccumulatorOverflow, KernelError
from .problem import EXACT, Bound, Convolution, ConvSpec, Refusal, is_far
from .proofs import accumulator_bound
from .records import Knobs


class Choice(NamedTuple):
    """The kernel chosen for a layer, the proof that it is legal, why it was preferred, the faster ones
    that were refused and why, those that do not take the shape, and those not asked because they are
    slower, with their times. knobs: of the tuning record that it was chosen by, where our own records are
    applied (`records`); AutoTVM keeps its own."""

    kernel: manifest.Kernel
    proof: Bound
    reason: str = ""
    refused: tuple[tuple[str, str], ...] = ()
    unfit: tuple[tuple[str, str], ...] = ()
    slower: tuple[tuple[str, str], ...] = ()
    knobs: Knobs = ()

    def __str__(self):
        return f"{self.kernel.name} ({self.proof})"


@dataclass(frozen=True)
class LayerChoice:
    """The kernel of one convolution or dense layer: its name where the IR has one, its shape, its weights
    (int8 HWIO), the kernel chosen and why, the refused ones."""

    name: str
    spec: ConvSpec
    weight: np.ndarray = field(repr=False)
    choice: Choice


def choose(
    spec: ConvSpec,
    weight: np.ndarray,
    bias: np.ndarray,
    isa_name: str,
    measured: Mapping[str, float] | None = None,
    cold: bool = False,
    core: str = "",
) -> Choice:
    """The fastest legal kernel for a layer on an instruction set, and why others are not taken.

    weight: int8 (R, S, C / groups, K); bias: int32 (K,) with the zero point folded in. measured:
    {kernel: microseconds} of this layer from tuning records; a kernel that has one comes before all that
    have none. Those are ordered by `cost.estimate`; where one of them was never measured, by `cost.cycles`
    on ``core`` (LLVM's name of a CPU) or on the plainest CPU of the instruction set; else by the order of
    `manifest.KERNELS`. cold: the network's weights are larger than the cache. Raises AccumulatorOverflow if
    the layer's accumulator does not fit int32 in any kernel.
    """
    total = accumulator_bound(spec, weight, bias)
    if isinstance(total, Refusal):
        raise AccumulatorOverflow(total.why)
    usable, refused, unfits, measured = isa.usable(isa_name), [], [], measured or {}
    rows = []
    for row in manifest.KERNELS:
        if row.isa in usable:
            unfit = row.refuses(spec)
            if unfit is None:
                rows.append(row)
            else:
                unfits.append((row.name, unfit.why))
    for row in list(rows):
        unfit = row.slow(spec)
        if unfit is not None and _cost(row, spec, weight, _measured(cold, core)) is None:
            rows.remove(row)
            refused.append((row.name, unfit.why))
    estimates, wording = _estimates(rows, spec, weight, cold, (core, isa.ISAS[isa_name].mcpu))
    if not estimates:  # rules of thumb for those that were measured, too, as their costs decide nothing
        for row in list(rows):
            unfit = row.slow(spec)
            if unfit is not None and row.name not in measured:
                rows.remove(row)
                refused.append((row.name, unfit.why))
    order = {row.name: i for i, row in enumerate(rows)}
    rows.sort(key=lambda row: (0, measured[row.name]) if row.name in measured
              else (1, estimates.get(row.name, order[row.name])))  # fmt: skip

    def reason(row):
        if row.name in measured:
            return f"tuned: {measured[row.name]:.0f} us"
        return wording.format(estimates[row.name]) if estimates else "first of the manifest"

    for i, row in enumerate(rows):
        answer = row.proves(spec, weight)
        if isinstance(answer, Bound):
            slower = tuple((other.name, reason(other)) for other in rows[i + 1 :])
            proof = total if answer is EXACT else answer
            return Choice(row, proof, reason(row), tuple(refused), tuple(unfits), slower)
        refused.append((row.name, answer.why))
    raise AssertionError("direct_generic takes every layer")


def choose_network(
    layers: Sequence[Convolution],
    isa_name: str,
    measured: Mapping[str, Mapping[str, float]],
    core: str = "",
) -> list[tuple[Choice, list[np.ndarray]]]:
    """For each layer of a network, `choose` and the constants as the chosen kernel reads them.

    measured: {spec as JSON: {kernel: microseconds}}. If the weights, packed for the best kernels, are
    larger than the cache, every call reads them from memory, and the kernels are chosen anew for that.
    Raises KernelError for a multiplier of 1 or more, before a rounding, that the spec does not say.
    """
    for spec, _, _, multiplier in layers:
        if spec.epilogue != "dequantize" and is_far(multiplier) and not spec.far:
            raise KernelError(f"{spec.shape_text}: a multiplier of 1 or more, and its spec is not far")
    found: list[tuple[Choice, list[np.ndarray]]] = []
    for cold in (False, True):
        for i, (spec, weight, bias, multiplier) in enumerate(layers):
            known = measured.get(spec.to_json())
            choice = choose(spec, weight, bias, isa_name, known, cold, core)
            if cold and choice.kernel == found[i][0].kernel:
                packed = found[i][1]
            else:
                packed = choice.kernel.pack(spec, weight, bias, multiplier)
            found[i : i + 1] = [(choice, packed)]
        if sum(array.nbytes for _, arrays in found for array in arrays) <= cost.CACHE_BYTES:
            break
    return found


def _measured(cold: bool, core: str = cost.USUAL) -> Callable:
    """The measured cost model as a ``measure`` of `_cost`."""
    return functools.partial(cost.estimate, cold=cold, core=core)


def microseconds(row: manifest.Kernel, spec: ConvSpec, weight: np.ndarray) -> float | None:
    """A kernel's time for a layer by the measured cost model; of a row that mixes others, by their shares.
    None for a kernel nobody has measured."""
    return _cost(row, spec, weight, _measured(cold=False))


def _estimates(rows, spec, weight, cold, cores) -> tuple[dict[str, float], str]:
    """The cost of each row, and the words for one; nothing where a row has no cost of the same kind."""
    ways = [(_measured(cold, cores[0]), "estimated: {:.0f} us")]
    for core in cores:
        cycles = functools.partial(cost.cycles, core=core)
        ways.append((cycles, f"estimated: {{:,.0f}} cycles of a {core}"))
    for measure, words in ways:
        costs = [(row.name, _cost(row, spec, weight, measure)) for row in rows]
        known = {name: found for name, found in costs if found is not None}
        if len(known) == len(costs):
            return known, words
    return {}, ""


def _cost(row: manifest.Kernel, spec: ConvSpec, weight: np.ndarray, measure: Callable) -> float | None:
    """measure(row's name, its work), or that of the rows whose shares it does; None if one has none."""
    if row.shares is None:
        return measure(row.name, row.work(spec))
    shares = row.shares(spec, weight)
    found = {name: _cost(manifest.kernel(name), spec, weight, measure) for name in shares}
    return None if None in found.values() else sum(share * found[n] for n, share in shares.items())
