"""`KERNELS`: every convolution kernel there is, one row each, best first.

Strategy registration, the planner, the tests and the benchmarks iterate this table. What is not
listed does not exist; what is listed is tested.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from . import cost, isa, winograd
from .conv2d import (
    INT16_MAX,
    Bound,
    ConvSpec,
    Refusal,
    accumulator_bound,
    fold_zero_point,
    lane_reach,
    pack,
    pad_vector,
    tap_bound,
)
from .kernels import depthwise, direct, winograd_conv
from .targets import arm, x86


class Kernel(NamedTuple):
    """One kernel.

    fits(spec) -> None, or a Refusal for a shape that it does not take.
    proves(spec, weight) -> Bound | Refusal: whether it is legal for these weights (bias aside).
    pack(spec, weight, bias, multiplier) -> the constant arrays it takes.
    compute(cfg, spec, data, *constants[, residual]) -> te.Tensor, its loops already made.
    work(spec) -> what it does, in millions of operations of each kind, for `cost.estimate`.
    pays(spec) -> None, or a Refusal: a rule of thumb where there are no measured costs.
    shares(spec, weight) -> {row: share} for a kernel that does a share of the layer as another row does.
    """

    name: str
    isa: str
    fits: Callable
    proves: Callable
    pack: Callable
    compute: Callable
    work: Callable
    pays: Callable = lambda spec: None
    shares: Callable | None = None

    def cost(self, spec: ConvSpec, weight: np.ndarray, measure: Callable) -> float | None:
        """measure(row's name, its work), or that of the rows whose shares it does; None if one has none."""
        if self.shares is None:
            return measure(self.name, self.work(spec))
        shares = self.shares(spec, weight)
        found = {name: kernel(name).cost(spec, weight, measure) for name in shares}
        return None if None in found.values() else sum(share * found[n] for n, share in shares.items())


class KernelPlan(NamedTuple):
    """The kernel chosen for a layer, the proof that it is legal, why it was preferred, the faster ones
    that were refused and why, those that do not take the shape, and those not asked because they are
    slower, with their times."""

    kernel: Kernel
    proof: Bound
    reason: str = ""
    refused: tuple[tuple[str, str], ...] = ()
    unfit: tuple[tuple[str, str], ...] = ()
    slower: tuple[tuple[str, str], ...] = ()

    def __str__(self):
        return f"{self.kernel.name} ({self.proof})"


def _direct(name: str, isa_name: str, dot: direct.Dot | Callable, proof: Callable | None = None) -> Kernel:
    """A row of the direct kernel with the multiply ``dot``, or dot(spec) if it depends on the layer.

    proof(spec, dot, weight) -> Bound | Refusal; None: exact for any weights.
    """
    dot_of = dot if callable(dot) else lambda spec: dot

    def fits(spec):
        per_group, group = spec.in_channels // spec.groups, dot_of(spec).group
        if spec.groups > 1 and per_group % group:
            return Refusal(f"{per_group} input channels a group are not a multiple of {group}")
        return None

    def proves(spec, weight):
        return proof(spec, dot_of(spec), weight) if proof else Bound("any int8 weights", 0, 0)

    def constants(spec, weight, bias, multiplier):
        dot = dot_of(spec)
        packed = pack(spec, weight.astype(dot.weight), dot.lanes, dot.group)
        vectors = fold_zero_point(bias, weight, -dot.offset), multiplier
        return (packed, *(pad_vector(spec, v, dot.lanes) for v in vectors))

    def compute(cfg, spec, data, *rest):
        return direct.compute(cfg, spec, dot_of(spec), data, *rest)

    def work(spec):
        return direct.work(spec, dot_of(spec))

    return Kernel(name, isa_name, fits, proves, constants, compute, work)


def _mixed(isa_name: str, bits: int, deep: int, shallow: int) -> Kernel:
    """Direct rows ``deep`` and ``shallow`` in one: each block of output channels at the depth that its own
    weights allow. The depths follow the bias."""
    dot, less = (x86.int16_dot(bits, depth) for depth in (deep, shallow))
    plain = _direct(f"direct_{isa_name}_d{deep}{shallow}", isa_name, dot)
    names = [f"direct_{isa_name}_d{depth}" for depth in (deep, shallow)]

    def depths(spec, packed):
        """The depth of every block, and how far an int16 lane gets."""
        reach = {d: lane_reach(packed, d, spec.data_max) for d in (deep, shallow)}
        together = direct.vectors_of(spec, dot)
        fits = (reach[deep] <= INT16_MAX).reshape(-1, together).all(axis=1).repeat(together)
        return np.where(fits, deep, shallow), np.where(fits, reach[deep], reach[shallow])

    def packed(spec, weight):
        return pack(spec, weight, dot.lanes, dot.group)

    def proves(spec, weight):
        found, reach = depths(spec, packed(spec, weight))
        worst, share = int(reach.max(initial=0)), float((found == deep).mean())
        if worst > INT16_MAX:
            return Refusal(f"an int16 lane of {2 * shallow} products may reach {worst}, beyond {INT16_MAX}")
        if share in (0, 1):
            return Refusal(f"every block is of depth {deep if share else shallow}")
        what = f"int16 lane of {2 * deep} products in {share:.0%} of the blocks, {2 * shallow} in the rest"
        return Bound(what, worst, INT16_MAX)

    def constants(spec, weight, bias, multiplier):
        arrays = plain.pack(spec, weight, bias, multiplier)
        found, _ = depths(spec, arrays[0])
        return (arrays[0], np.concatenate([arrays[1], found.astype(np.int32)]), arrays[2])

    def compute(cfg, spec, data, *rest):
        return direct.compute(cfg, spec, dot, data, *rest, shallow=less)

    def shares(spec, weight):
        found, _ = depths(spec, packed(spec, weight))
        share = float((found == deep).mean())
        return {names[0]: share, names[1]: 1 - share}

    return plain._replace(proves=proves, pack=constants, compute=compute, shares=shares)


def _depthwise(name: str, accumulator: str) -> Kernel:
    def fits(spec):
        return None if spec.depthwise else Refusal("only for depthwise convolutions")

    def proves(spec, weight):
        if accumulator == "int16":
            return tap_bound(spec, weight)
        return Bound("any int8 weights", 0, 0)

    def constants(spec, weight, bias, multiplier):
        def padded(values):
            width = [(0, 0)] * (values.ndim - 1) + [(0, -spec.out_channels % depthwise.LANES)]
            return np.ascontiguousarray(np.pad(values, width))

        center = depthwise.center(spec, weight) if accumulator == "int16" else 0 * bias
        taps = np.concatenate([weight.reshape(-1, spec.out_channels), -center[None]])
        return (padded(taps.astype(accumulator)), padded(bias + center), padded(multiplier))

    def compute(cfg, spec, data, *rest):
        return depthwise.compute(cfg, spec, accumulator, data, *rest)

    return Kernel(name, "generic", fits, proves, constants, compute, depthwise.work)


def _depthwise_pairs(isa_name: str, bits: int) -> Kernel:
    """Depthwise with the byte-pair multiply: two taps of a channel at once."""
    ops = x86.pair_ops(bits)

    def fits(spec):
        if not spec.depthwise:
            return Refusal("only for depthwise convolutions")
        if spec.epilogue == "add" and spec.out_channels % depthwise.LANES:
            return Refusal(f"a residual add of channels that are not a multiple of {depthwise.LANES}")
        return Refusal("no two taps in a kernel row") if spec.kernel[1] < 2 else None

    def proves(spec, weight):
        pairs = depthwise.pair_bound(spec, weight)
        return tap_bound(spec, weight) if isinstance(pairs, Bound) else pairs

    def constants(spec, weight, bias, multiplier):
        return depthwise.pack_pairs(spec, weight, bias, multiplier, ops.width)

    def compute(cfg, spec, data, *rest):
        return depthwise.compute_pairs(cfg, spec, ops, data, *rest)

    name = f"depthwise_{isa_name}"
    return Kernel(name, isa_name, fits, proves, constants, compute, depthwise.work)


def _winograd(
    m: int,
    isa_name: str,
    bits: int,
    tiles: int,
    word_pairs: Callable,
    narrow: Callable | None = None,
    order: Callable = lambda u: u,
) -> Kernel:
    """F(m, 3) on vectors of ``bits``; it pays from ``tiles`` tiles on (below, making U dominates).

    word_pairs, narrow: of `winograd_conv.compute`, which takes the weights after ``order``.
    """
    t = winograd.transform(m, 3)

    def fits(spec):
        if spec.out_channels % (bits // 32):
            return Refusal(f"{spec.out_channels} output channels are not a multiple of {bits // 32}")
        return winograd.fits(t, spec)

    def proves(spec, weight):
        return winograd.proves(t, spec, weight)

    def pays(spec):
        down, across = winograd_conv.tiles_of(spec, t)
        if spec.batch * down * across < tiles:
            return Refusal(f"{spec.batch * down * across} tiles are too few to pay for the transforms")
        return Refusal("too few channels to pay for the transforms") if spec.in_channels < 32 else None

    def constants(spec, weight, bias, multiplier):
        block, pairs = winograd_conv.block_of(spec, bits), winograd_conv.pairs_of(spec)
        return (order(winograd.pack(spec, t, weight, block, pairs)), bias, multiplier)

    def compute(cfg, spec, data, *rest):
        return winograd_conv.compute(cfg, spec, t, bits, word_pairs, narrow, data, *rest)

    def work(spec):
        return winograd_conv.work(spec, t, bits)

    name = f"winograd_f{m}3_{isa_name}"
    return Kernel(name, isa_name, fits, proves, constants, compute, work, pays)


KERNELS = (
    _depthwise_pairs("avx512bw", 512),
    _depthwise_pairs("avx2", 256),
    _depthwise("depthwise_int16", "int16"),
    _depthwise("depthwise_int32", "int32"),
    _winograd(4, "avx512bw", 512, 4, x86.word_pairs(512)),
    _winograd(2, "avx512bw", 512, 2**30, x86.word_pairs(512)),  # by measurement only
    _direct("direct_avx512vnni", "avx512vnni", x86.vnni_dot(512)),
    _direct("direct_avx512bw_d4", "avx512bw", x86.int16_dot(512, 4), x86.lane_proof),
    _mixed("avx512bw", 512, 4, 2),
    _direct("direct_avx512bw_d2", "avx512bw", x86.int16_dot(512, 2), x86.lane_proof),
    _mixed("avx512bw", 512, 2, 1),
    _direct("direct_avx512bw_d1", "avx512bw", x86.int16_dot(512, 1), x86.lane_proof),
    _direct("wide_avx512bw", "avx512bw", x86.int32_dot(512)),
    _winograd(4, "avx2", 256, 16, x86.word_pairs(256), x86.narrow),
    _winograd(2, "avx2", 256, 2**30, x86.word_pairs(256), x86.narrow),
    _direct("direct_avx2_d4", "avx2", x86.int16_dot(256, 4), x86.lane_proof),
    _mixed("avx2", 256, 4, 2),
    _direct("direct_avx2_d2", "avx2", x86.int16_dot(256, 2), x86.lane_proof),
    _mixed("avx2", 256, 2, 1),
    _direct("direct_avx2_d1", "avx2", x86.int16_dot(256, 1), x86.lane_proof),
    _direct("wide_avx2", "avx2", x86.int32_dot(256)),
    # ARM: nothing is measured; the static cycle counts are in benchmarks/results/arm_mca.json
    _direct("direct_neon_i8mm", "neon_i8mm", arm.usdot_dot(), arm.sum_proof),
    _direct("direct_neon_dotprod", "neon_dotprod", arm.sdot_dot, arm.sum_proof),
    _winograd(4, "neon", 128, 16, arm.word_pairs, order=arm.split_pairs),
    _winograd(2, "neon", 128, 2**30, arm.word_pairs, order=arm.split_pairs),
    _direct("direct_neon_d4", "neon", arm.widening_dot(4), arm.chain_proof),
    _direct("direct_neon_d2", "neon", arm.widening_dot(2), arm.chain_proof),
    _direct("direct_neon_d1", "neon", arm.widening_dot(1), arm.chain_proof),
    _direct("wide_neon", "neon", arm.word_dot()),
    _direct("wide_armv7_neon", "armv7_neon", arm.word_dot()),
    _direct("direct_generic", "generic", direct.plain_dot(8)),
)


@functools.cache
def kernel(name: str) -> Kernel:
    """The row called ``name``; KeyError lists the names."""
    for row in KERNELS:
        if row.name == name:
            return row
    raise KeyError(f"no kernel {name!r}; there are {', '.join(k.name for k in KERNELS)}")


def plan(
    spec: ConvSpec,
    weight: np.ndarray,
    bias: np.ndarray,
    isa_name: str,
    measured: Mapping[str, float] | None = None,
    cold: bool = False,
    core: str = "",
) -> KernelPlan:
    """The fastest legal kernel for a layer on an instruction set, and why others are not taken.

    weight: int8 (R, S, C / groups, K); bias: int32 (K,) with the zero point folded in. measured:
    {kernel: microseconds} of this layer from tuning records; a kernel that has one comes before all that
    have none. Those are ordered by `cost.estimate`; where one of them was never measured, by `cost.cycles`
    on ``core`` (LLVM's name of a CPU) or on the plainest CPU of the instruction set; else by the order of
    `KERNELS`. cold: the network's weights are larger than the cache. Raises OverflowError if the layer's
    accumulator does not fit int32 in any kernel.
    """
    total = accumulator_bound(spec, weight, bias)
    if isinstance(total, Refusal):
        raise OverflowError(total.why)
    usable, refused, unfits, measured = isa.usable(isa_name), [], [], measured or {}
    rows = []
    for row in KERNELS:
        if row.isa in usable:
            unfit = row.fits(spec)
            if unfit is None:
                rows.append(row)
            else:
                unfits.append((row.name, unfit.why))
    for row in list(rows):
        unfit = row.pays(spec)
        if unfit is not None and row.cost(spec, weight, warm_or_cold(cold)) is None:
            rows.remove(row)
            refused.append((row.name, unfit.why))
    estimates, wording = _estimates(rows, spec, weight, cold, (core, isa.ISAS[isa_name].mcpu))
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
            proof = answer if answer.limit else total
            return KernelPlan(row, proof, reason(row), tuple(refused), tuple(unfits), slower)
        refused.append((row.name, answer.why))
    raise AssertionError("direct_generic takes every layer")


def warm_or_cold(cold: bool) -> Callable:
    """The measured cost model as a ``measure`` of `Kernel.cost`."""
    return functools.partial(cost.estimate, cold=cold)


def _estimates(rows, spec, weight, cold, cores) -> tuple[dict[str, float], str]:
    """The cost of each row, and the words for one; nothing where a row has no cost of the same kind."""
    found = {row.name: row.cost(spec, weight, warm_or_cold(cold)) for row in rows}
    if None not in found.values():
        return found, "estimated: {:.0f} us"
    for core in cores:
        cycles = functools.partial(cost.cycles, core=core)
        found = {row.name: row.cost(spec, weight, cycles) for row in rows}
        if None not in found.values():
            return found, f"estimated: {{:,.0f}} cycles of a {core}"
    return {}, ""
