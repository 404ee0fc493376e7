"""`KERNELS`: every convolution kernel there is, one row each, best first.

Strategy registration, the planner, the tests and the benchmarks iterate this table. What is not
listed does not exist; what is listed is tested.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import depthwise, direct, isa, winograd, winograd_conv, x86
from .conv2d import (
    Bound,
    ConvSpec,
    Refusal,
    accumulator_bound,
    lane_bound,
    pack,
    pad_vector,
    tap_bound,
)


class Kernel(NamedTuple):
    """One kernel.

    proves(spec, weight) -> Bound | Refusal: whether it is legal for these weights (bias aside).
    pack(spec, weight, bias, multiplier) -> the constant arrays it takes.
    compute(cfg, spec, data, *constants[, residual]) -> te.Tensor, its loops already made.
    pays(spec) -> None, or a Refusal where the kernel is legal but another one is faster.
    """

    name: str
    isa: str
    proves: Callable
    pack: Callable
    compute: Callable
    pays: Callable = lambda spec: None


class KernelPlan(NamedTuple):
    """The kernel chosen for a layer, the proof that it is legal, and the better ones refused."""

    kernel: Kernel
    proof: Bound
    refused: tuple[tuple[str, str], ...]

    def __str__(self):
        return f"{self.kernel.name} ({self.proof})"


def _direct(name: str, isa_name: str, dot: direct.Dot, proof: Callable | None = None) -> Kernel:
    """A row of the direct kernel with the multiply instruction ``dot``."""

    def packed(spec, weight):
        return pack(spec, weight.astype(dot.weight), dot.lanes, dot.group)

    def proves(spec, weight):
        per_group = spec.in_channels // spec.groups
        if spec.groups > 1 and per_group % dot.group:
            return Refusal(f"{per_group} input channels a group are not a multiple of {dot.group}")
        return proof(spec, packed(spec, weight)) if proof else Bound("any int8 weights", 0, 0)

    def constants(spec, weight, bias, multiplier):
        vectors = (pad_vector(spec, v, dot.lanes) for v in (bias, multiplier))
        return (packed(spec, weight), *vectors)

    def compute(cfg, spec, data, *rest):
        return direct.compute(cfg, spec, dot, data, *rest)

    return Kernel(name, isa_name, proves, constants, compute)


def _lanes(depth: int) -> Callable:
    return lambda spec, packed: lane_bound(packed, depth, spec.data_max)


def _depthwise(name: str, accumulator: str) -> Kernel:
    def proves(spec, weight):
        if not spec.depthwise:
            return Refusal("only for depthwise convolutions")
        if accumulator == "int16":
            return tap_bound(spec, weight)
        return Bound("any int8 weights", 0, 0)

    def constants(spec, weight, bias, multiplier):
        def padded(values):
            width = [(0, 0)] * (values.ndim - 1) + [(0, -spec.out_channels % depthwise.LANES)]
            return np.ascontiguousarray(np.pad(values, width))

        return (padded(weight[:, :, 0].astype(accumulator)), padded(bias), padded(multiplier))

    def compute(cfg, spec, data, *rest):
        return depthwise.compute(cfg, spec, accumulator, data, *rest)

    return Kernel(name, "generic", proves, constants, compute)


def _winograd(m: int, isa_name: str, bits: int, tiles: int) -> Kernel:
    """F(m, 3) on vectors of ``bits``; it pays from ``tiles`` tiles on (below, reading U dominates)."""
    t = winograd.transform(m, 3)

    def proves(spec, weight):
        if spec.out_channels % (bits // 32):
            return Refusal(f"{spec.out_channels} output channels are not a multiple of {bits // 32}")
        return winograd.proves(t, spec, weight)

    def pays(spec):
        down, across = winograd_conv.tiles_of(spec, t)
        if spec.batch * down * across < tiles:
            return Refusal(f"{spec.batch * down * across} tiles are too few to pay for the transforms")
        return Refusal("too few channels to pay for the transforms") if spec.in_channels < 32 else None

    def constants(spec, weight, bias, multiplier):
        block, pairs = winograd_conv.block_of(spec, bits), winograd_conv.pairs_of(spec)
        return (winograd.pack(spec, t, weight, block, pairs), bias, multiplier)

    def compute(cfg, spec, data, *rest):
        return winograd_conv.compute(cfg, spec, t, bits, x86.word_pairs(bits), data, *rest)

    return Kernel(f"winograd_f{m}3_{isa_name}", isa_name, proves, constants, compute, pays=pays)


KERNELS = (
    _depthwise("depthwise_int16", "int16"),
    _depthwise("depthwise_int32", "int32"),
    _winograd(4, "avx512bw", 512, 4),
    _direct("direct_avx512vnni", "avx512vnni", x86.vnni_dot(512)),
    _direct("direct_avx512bw_d4", "avx512bw", x86.int16_dot(512, 4), _lanes(4)),
    _direct("direct_avx512bw_d2", "avx512bw", x86.int16_dot(512, 2), _lanes(2)),
    _direct("direct_avx512bw_d1", "avx512bw", x86.int16_dot(512, 1), _lanes(1)),
    _direct("wide_avx512bw", "avx512bw", x86.int32_dot(512)),
    _winograd(4, "avx2", 256, 16),
    _direct("direct_avx2_d4", "avx2", x86.int16_dot(256, 4), _lanes(4)),
    _direct("direct_avx2_d2", "avx2", x86.int16_dot(256, 2), _lanes(2)),
    _direct("direct_avx2_d1", "avx2", x86.int16_dot(256, 1), _lanes(1)),
    _direct("wide_avx2", "avx2", x86.int32_dot(256)),
    _direct("direct_generic", "generic", direct.plain_dot(8)),
)


@functools.cache
def kernel(name: str) -> Kernel:
    """The row called ``name``; KeyError lists the names."""
    for row in KERNELS:
        if row.name == name:
            return row
    raise KeyError(f"no kernel {name!r}; there are {', '.join(k.name for k in KERNELS)}")


def plan(spec: ConvSpec, weight: np.ndarray, bias: np.ndarray, isa_name: str) -> KernelPlan:
    """The first legal kernel for a layer on an instruction set, and why the earlier ones are not.

    weight: int8 (R, S, C / groups, K); bias: int32 (K,) with the zero point folded in. Raises
    OverflowError if the layer's accumulator does not fit int32 in any kernel.
    """
    total = accumulator_bound(spec, weight, bias)
    if isinstance(total, Refusal):
        raise OverflowError(total.why)
    rows, refused = isa.usable(isa_name), []
    for row in KERNELS:
        if row.isa not in rows:
            continue
        answer = row.pays(spec) or row.proves(spec, weight)
        if isinstance(answer, Bound):
            return KernelPlan(row, answer if answer.limit else total, tuple(refused))
        refused.append((row.name, answer.why))
    raise AssertionError("direct_generic takes every layer")
