"""Every row of the manifest equals the norm, bit for bit: extremes, then tails, then random."""

import ctypes
import itertools
import mmap
import re
import sys
from dataclasses import replace

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
import golden_networks
from kernel_host import compiled, output, run
from python_process import python

import tvm_easyquant as eq
from topi_ext import cost, isa, manifest, planner, reference
from topi_ext.conv2d import (
    EXACT,
    Bound,
    Convolution,
    ConvSpec,
    Refusal,
    Residual,
    accumulator_bound,
    fold_zero_point,
)
from topi_ext.emit import Builder, const, knob_space
from topi_ext.errors import KernelError
from topi_ext.kernels import depthwise, direct
from topi_ext.kernels.rows import direct_row, tile_row
from topi_ext.kernels.tile_conv import Tiles
from topi_ext.proofs import lane_proof
from topi_ext.targets import x86
from tvm_easyquant import package
from tvm_easyquant.errors import TuneError
from tvm_easyquant.scales.layers import stored_times

RESIDUAL = Residual(0.013, 64, 1, 127, 0.0217, 3, True, 0.0301)
PAD = (1, 1, 1, 1)
COMPILED_ONLY = {"avxvnni", "amx"}  # no CPU at hand had them: nothing is measured
ROWS = [row for row in manifest.KERNELS if isa.ISAS[row.isa].arch in ("", isa.arch_of(""))]

TAILS = {
    "plain": ConvSpec(1, 9, 14, 16, 16, (3, 3), padding=PAD, data_max=127, hi=127),
    "first layer, stride, odd sizes": ConvSpec(
        2, 17, 13, 3, 20, (3, 3), (2, 2), (0, 1, 1, 0), data_max=127, zero_point=64, out_zero_point=64,
        lo=1, hi=127,
    ),
    "1x1 flattened, 7x7, batch": ConvSpec(2, 7, 7, 20, 9, (1, 1), data_max=127, zero_point=5),
    "1x1 strided": ConvSpec(1, 8, 9, 8, 8, (1, 1), (2, 2), data_max=127),
    "dense": ConvSpec(1, 1, 1, 100, 10, (1, 1), data_max=127, epilogue="dequantize"),
    "dense, many": ConvSpec(3, 1, 1, 7, 33, (1, 1), data_max=127),
    "residual": ConvSpec(
        1, 5, 10, 32, 24, (1, 1), data_max=127, epilogue="add", residual=RESIDUAL, out_zero_point=3, lo=3,
        hi=250,
    ),
    "residual, ragged": ConvSpec(1, 5, 5, 4, 5, (3, 3), padding=PAD, epilogue="add", data_max=127,
                                 residual=Residual(0.02, 0, 0, 255, 0.01, 128, False, 0.03)),
    "dilated": ConvSpec(1, 12, 11, 8, 16, (3, 3), dilation=(2, 2), padding=(2, 2, 2, 2), data_max=127),
    "5x1 kernel": ConvSpec(1, 9, 6, 5, 8, (5, 1), padding=(2, 0, 2, 0), data_max=127),
    # apache-tvm shrank the padded map to the rows that it saw: no code for the first, too little memory
    # for the second
    "an edge that nobody reads": ConvSpec(1, 13, 5, 4, 16, (3, 3), (2, 1), (0, 0, 1, 2), (2, 1), data_max=127),
    "an edge that nobody reads, one channel": ConvSpec(
        2, 14, 4, 1, 1, (4, 3), (2, 1), (1, 2, 1, 2), (2, 1), data_max=127
    ),
    "grouped": ConvSpec(1, 8, 8, 16, 24, (3, 3), groups=4, padding=PAD, data_max=127),
    "grouped by 1": ConvSpec(1, 6, 6, 4, 8, (3, 3), groups=4, padding=PAD, data_max=127),
}  # fmt: skip
LARGE = "large enough for threads"
TAILS[LARGE] = ConvSpec(1, 28, 30, 32, 32, (3, 3), padding=PAD, data_max=127)
WINOGRAD = {
    LARGE: TAILS[LARGE],
    "large enough for threads, blocks of tiles": ConvSpec(
        1, 32, 31, 128, 16, (3, 3), padding=PAD, data_max=127
    ),
    "whole tiles": ConvSpec(1, 16, 16, 16, 16, (3, 3), padding=PAD, data_max=127, hi=127),
    "partial tiles, batch, odd channels": ConvSpec(
        2, 9, 14, 20, 48, (3, 3), padding=(0, 1, 2, 1), data_max=127, zero_point=64
    ),
    "residual": ConvSpec(
        1, 13, 10, 64, 32, (3, 3), padding=PAD, data_max=255, epilogue="add", residual=RESIDUAL
    ),
    "no padding, float": ConvSpec(1, 12, 11, 8, 16, (3, 3), data_max=127, epilogue="dequantize"),
    "one tile": ConvSpec(1, 3, 4, 33, 16, (3, 3), padding=PAD, data_max=63),
    "channels in parts": ConvSpec(1, 7, 7, 768, 32, (3, 3), padding=PAD, data_max=63),
}
CHAINS = {
    LARGE: TAILS[LARGE],
    "first layer, stride, odd sizes": replace(TAILS["first layer, stride, odd sizes"], out_channels=28),
    "1x1 flattened, 7x7, batch": ConvSpec(2, 7, 7, 52, 41, (1, 1), data_max=127, zero_point=5),
    "1x1 strided": ConvSpec(1, 8, 9, 40, 16, (1, 1), (2, 2), data_max=127),
    "residual": replace(TAILS["residual"], out_channels=32),
    "residual, ragged": replace(TAILS["residual, ragged"], in_channels=9, out_channels=29),
    "dilated, float": replace(TAILS["dilated"], in_channels=7, epilogue="dequantize"),
    "5x1 kernel": ConvSpec(1, 9, 6, 13, 16, (5, 1), padding=(2, 0, 2, 0), data_max=127),
    "weights ahead": ConvSpec(1, 13, 7, 384, 400, (1, 1), data_max=127, hi=127),
}
LINE = {
    LARGE: TAILS[LARGE],
    "chunks of rows": ConvSpec(1, 16, 28, 128, 16, (3, 3), padding=PAD, data_max=127, hi=127),
    "odd width, batch, ragged": ConvSpec(
        2, 9, 7, 20, 41, (3, 3), padding=(0, 1, 2, 1), data_max=127, zero_point=64, lo=1, hi=127
    ),
    "residual, one row": ConvSpec(1, 6, 14, 8, 32, (1, 3), padding=(0, 1, 0, 1), data_max=127, epilogue="add",
                                  residual=RESIDUAL),
    "no padding, float": ConvSpec(1, 12, 11, 8, 24, (3, 3), data_max=63, epilogue="dequantize"),
    "one column": ConvSpec(1, 5, 3, 4, 16, (5, 3), padding=(2, 0, 2, 0), data_max=127),
}  # fmt: skip
STRASSEN = {
    LARGE: ConvSpec(1, 40, 40, 128, 64, (1, 1), data_max=127, hi=127),
    "one chunk": ConvSpec(1, 14, 14, 512, 64, (1, 1), data_max=127, zero_point=64, lo=1, hi=127),
    "odd pixels, batch, ragged": ConvSpec(3, 7, 5, 24, 41, (1, 1), data_max=127, zero_point=5),
    "half a block": ConvSpec(1, 8, 9, 8, 48, (1, 1), data_max=63, epilogue="dequantize"),
    "residual": ConvSpec(1, 5, 10, 256, 56, (1, 1), data_max=127, epilogue="add", residual=RESIDUAL, lo=3),
    "two pixels": ConvSpec(2, 1, 1, 8, 33, (1, 1), data_max=127),
}
DEPTHWISE = {
    LARGE: ConvSpec(1, 40, 40, 400, 400, (3, 3), groups=400, padding=PAD, data_max=127),
    "plain": ConvSpec(1, 11, 12, 32, 32, (3, 3), groups=32, padding=PAD, data_max=127, hi=127),
    "stride, tail": ConvSpec(2, 11, 9, 20, 20, (3, 3), (2, 2), (0, 0, 1, 1), groups=20, data_max=127,
                             zero_point=64),
    "5x5 residual": ConvSpec(1, 9, 9, 40, 40, (5, 5), padding=(2,) * 4, groups=40, data_max=127,
                             epilogue="add", residual=RESIDUAL),
    "dilated, float": ConvSpec(1, 9, 9, 16, 16, (3, 3), dilation=(2, 2), padding=(2,) * 4, groups=16,
                               data_max=127, epilogue="dequantize"),
}  # fmt: skip


def expected(spec, data, weight, bias, factor, residual):
    acc = reference.conv2d(
        data, weight, zero_point=spec.zero_point, strides=spec.strides, padding=spec.padding,
        dilation=spec.dilation, groups=spec.groups,
    ) + bias  # fmt: skip
    if spec.epilogue == "dequantize":
        return reference.dequantize(acc, factor, 0)
    if spec.epilogue == "requantize":
        first, *other = (factor,) if factor.ndim == 1 else factor
        return reference.requantize(
            acc, first, spec.out_zero_point, spec.lo, spec.hi, spec.function, *other
        )
    r = spec.residual
    own = (reference.requantize(acc, factor, r.own_zero_point, r.own_lo, r.own_hi),
           r.own_scale, r.own_zero_point)  # fmt: skip
    other = (residual, r.scale, r.zero_point)
    a, b = (own, other) if r.own_first else (other, own)
    numbers = (*a[1:], *b[1:], r.out_scale, spec.out_zero_point, spec.lo, spec.hi)
    return reference.add(a[0], b[0], *numbers, spec.function)


def weight_limit(row, spec):
    """The largest magnitude of equal weights that the row is proven for, per output channel: int (K,).

    A row of two depths takes the limit of the one in the first half of the channels, of the other in the
    rest; None where that does not make blocks of both.
    """
    if row.shares is None:
        answers = [row.proves(spec, np.full(spec.weight_shape, w, np.int8)) for w in range(128)]
        largest = max(w for w, answer in enumerate(answers) if isinstance(answer, Bound))
        assert all(isinstance(answer, Refusal) for answer in answers[largest + 1 :])
        return np.full(spec.out_channels, largest)
    weight = np.ones(spec.weight_shape, np.int8)
    deep, shallow = (weight_limit(manifest.kernel(name), spec)[0] for name in row.shares(spec, weight))
    limits = np.where(np.arange(spec.out_channels) < spec.out_channels // 2, deep, shallow)
    answer = row.proves(spec, np.broadcast_to(limits, spec.weight_shape).astype(np.int8))
    if isinstance(answer, Refusal):
        assert "every block" in answer.why
        return None
    return limits


def operands(spec, weight_max, seed=0):
    """weight_max: int, or int (K,) by output channel."""
    rng = np.random.default_rng(seed)
    shape = (spec.batch, spec.height, spec.width, spec.in_channels)
    data = rng.integers(0, spec.data_max + 1, shape).astype(np.uint8)
    weight = rng.integers(-weight_max, weight_max + 1, spec.weight_shape).astype(np.int8)
    bias = rng.integers(-1000, 1000, spec.out_channels).astype(np.int32)
    factor = (rng.random(spec.out_channels) * 1e-3 + 1e-4).astype(np.float32)
    residual = None
    if spec.epilogue == "add":
        residual = rng.integers(0, 256, spec.out_shape).astype(np.uint8)
    return data, weight, bias, factor, residual


def cases():
    """Every row of the manifest for this architecture with the shapes of its kind."""
    for row in ROWS:
        kinds = {"depthwise": DEPTHWISE, "winograd": WINOGRAD, "line": LINE, "strassen": STRASSEN,
                 "chains": CHAINS}  # fmt: skip
        for name, spec in kinds.get(row.name.split("_")[0], TAILS).items():
            yield pytest.param(row, spec, id=f"{row.isa}-{row.name}-{name}", marks=pytest.mark.isa(row.isa))


def check(row, spec, mcpu=None):
    refused = row.refuses(spec)
    if refused is not None:  # a shape the row does not take: the reason must be the shape
        assert spec.groups > 1 and "multiple" in refused.why
        return
    limits = weight_limit(row, spec)
    if limits is None:
        return
    data, weight, bias, factor, residual = operands(spec, limits)
    out, _ = run(row, spec, data, weight, bias, factor, residual, mcpu)
    np.testing.assert_array_equal(out, expected(spec, data, weight, bias, factor, residual))


def legal(row, spec, weight_max):
    return isinstance(row.proves(spec, np.full(spec.weight_shape, weight_max, np.int8)), Bound)


@pytest.mark.parametrize("row, spec", list(cases()))
def test_kernel_equals_the_norm(row, spec):
    check(row, spec)


@pytest.mark.isa("avx512vnni")
@pytest.mark.parametrize("row, spec", [
    pytest.param(*case.values, id=case.id) for case in cases() if case.values[0].isa == "avxvnni"
])  # fmt: skip
def test_a_kernel_of_avxvnni_equals_the_norm_by_the_instructions_of_avx512(row, spec):
    """The same vpdpbusd of 256 bits, in another encoding: so what no CPU at hand runs has run."""
    check(row, spec, "cascadelake")


@pytest.mark.parametrize(
    "row", [pytest.param(r, id=f"{r.isa}-{r.name}", marks=pytest.mark.isa(r.isa)) for r in ROWS]
)
@pytest.mark.parametrize("data_max", [63, 127, 255])
@pytest.mark.parametrize("sign", [-1, 1])
def test_extremes(row, data_max, sign):
    """The largest equal weights each kernel can prove, on data that is all data_max: no lane may wrap."""
    groups = 32 if row.name.startswith("depthwise") else 1
    taps = 1 if row.name.startswith("strassen") else 9
    kernel = (3, 3) if taps == 9 else (1, 1)
    spec = ConvSpec(1, 4, 7, 32, 32, kernel, groups=groups, data_max=data_max, epilogue="dequantize")
    limits = None if row.refuses(spec) else weight_limit(row, spec)
    if limits is None:
        return
    weight = np.broadcast_to(sign * limits, spec.weight_shape).astype(np.int8)
    data = np.full((1, 4, 7, 32), data_max, np.uint8)
    bias, factor = np.zeros(32, np.int32), np.ones(32, np.float32)
    out, _ = run(row, spec, data, weight, bias, factor)
    assert (out == (sign * limits * data_max * taps * (32 // groups)).astype(np.float32)).all()


@pytest.mark.parametrize("scales", [
    (0.25, 0.125, 0.5),  # many sums in the middle between two steps
    (0.03396959230303764, 0.019321970641613007, 0.02423577941954136),  # not the quotients, but neighbours
    (0.0126, 0.0195, 0.0212),  # the norm's own operations
])  # fmt: skip
@pytest.mark.parametrize("row", [
    pytest.param(r, id=r.name, marks=pytest.mark.isa(r.isa))
    for r in ROWS
    if r.name in ("direct_avx2_d1", "direct_avx512bw_d1", "direct_avx512vnni", "direct_generic")
])  # fmt: skip
@pytest.mark.parametrize("own_first", [True, False])
def test_a_residual_add_is_the_norms_for_every_pair_of_values(row, scales, own_first):
    """Row i of the map holds i in every pixel, column j of the residual j."""
    own, other, out = scales
    residual = Residual(own, 100, 0, 254, other, 3, own_first, out)
    spec = ConvSpec(1, 256, 256, 16, 16, (1, 1), epilogue="add", residual=residual, out_zero_point=5, lo=2)
    data = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (1, 256, 256, 16)).copy()
    beside = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None], (1, 256, 256, 16)).copy()
    weight = np.eye(16, dtype=np.int8)[None, None]
    operands = (spec, data, weight, np.full(16, -100, np.int32), np.ones(16, np.float32), beside)
    np.testing.assert_array_equal(run(row, *operands)[0], expected(*operands))


@pytest.mark.isa("avx2")
@pytest.mark.parametrize("seed", range(6))
def test_random_layers_take_the_planned_kernel_and_are_exact(seed):
    rng = np.random.default_rng(seed)
    kernel = tuple(int(v) for v in rng.integers(1, 5, 2))
    spec = ConvSpec(
        batch=int(rng.integers(1, 3)), height=int(rng.integers(6, 20)), width=int(rng.integers(6, 20)),
        in_channels=int(rng.integers(1, 40)), out_channels=int(rng.integers(1, 40)), kernel=kernel,
        strides=tuple(int(v) for v in rng.integers(1, 4, 2)),
        padding=tuple(int(v) for v in rng.integers(0, 3, 4)), data_max=int(rng.choice([63, 127, 255])),
        zero_point=int(rng.integers(0, 64)),
    )  # fmt: skip
    data, weight, bias, factor, _ = operands(spec, int(rng.choice([63, 127])), seed)
    chosen = planner.choose(spec, weight, bias, "avx2")
    out, _ = run(chosen.kernel, spec, data, weight, bias, factor, mcpu="core-avx2")
    np.testing.assert_array_equal(out, expected(spec, data, weight, bias, factor, None))


def planned(data_max, weight_max, row_isa="avx2", **changes):
    spec = ConvSpec(1, 8, 8, 64, 64, (3, 3), padding=PAD, data_max=data_max, **changes)
    weight = np.full(spec.weight_shape, weight_max, np.int8)
    return planner.choose(spec, weight, np.zeros(64, np.int32), row_isa)


def test_the_large_shapes_do_use_threads():
    assert TAILS[LARGE].macs > direct.PARALLEL_MACS < DEPTHWISE[LARGE].macs
    assert max(spec.macs for name, spec in TAILS.items() if name != LARGE) < direct.PARALLEL_MACS


def test_the_planner_takes_the_fastest_proven_kernel_and_says_why_not_the_others():
    """A 1x1 layer, where Winograd is out of the question."""
    spec = ConvSpec(1, 14, 14, 64, 64, (1, 1), data_max=255)
    table = {
        (63, 63, "avx2"): "direct_avx2_d4",
        (127, 63, "avx2"): "direct_avx2_d2",
        (255, 63, "avx2"): "direct_avx2_d1",
        (255, 127, "avx2"): "wide_avx2",
        (127, 63, "avx512bw"): "direct_avx512bw_d2",
        (255, 127, "avx512vnni"): "direct_avx512vnni",
        (63, 63, "generic"): "direct_generic",
    }
    for (data_max, weight_max, name), kernel in table.items():
        layer = replace(spec, data_max=data_max)
        weight = np.full(spec.weight_shape, weight_max, np.int8)
        chosen = planner.choose(layer, weight, np.zeros(64, np.int32), name)
        assert chosen.kernel.name == kernel and chosen.reason.startswith("estimated")
    chosen = planner.choose(spec, weight, np.zeros(64, np.int32), "avx2")
    assert "direct_generic" in dict(chosen.slower)
    chosen = planner.choose(spec, np.full(spec.weight_shape, 127, np.int8), np.zeros(64, np.int32), "avx2")
    depths = {f"direct_avx2_d{depth}" for depth in (4, 42, 2, 21, 1)}
    assert set(dict(chosen.refused)) == {"chains_avx2", *depths}
    assert "64770" in dict(chosen.refused)["direct_avx2_d1"]  # 255 * (127 + 127), beyond int16
    assert "only for depthwise" in dict(chosen.unfit)["depthwise_int16"]


def test_a_tuning_record_outranks_the_estimate_and_never_the_proof():
    spec = ConvSpec(1, 14, 14, 64, 64, (1, 1), data_max=127)
    weight, bias = np.full(spec.weight_shape, 63, np.int8), np.zeros(64, np.int32)
    measured = {"wide_avx2": 7.0, "direct_generic": 9.0, "direct_avx2_d4": 1.0}
    chosen = planner.choose(spec, weight, bias, "avx2", measured)
    assert chosen.kernel.name == "wide_avx2" and chosen.reason == "tuned: 7 us"
    assert [name for name, _ in chosen.refused] == ["direct_avx2_d4"]  # measured with other weights
    assert chosen.slower[0] == ("direct_generic", "tuned: 9 us")


def test_without_measured_costs_the_order_of_the_manifest_decides(monkeypatch):
    monkeypatch.setattr(cost, "costs", lambda core="": {})
    assert planned(63, 63).kernel.name == "direct_avx2_d4"  # 8x8: four tiles are too few for Winograd
    assert "4 tiles are too few" in dict(planned(63, 63).refused)["winograd_f43_avx2"]
    spec = ConvSpec(1, 16, 16, 16, 16, (3, 3), padding=PAD, data_max=63)
    chosen = planner.choose(spec, np.ones(spec.weight_shape, np.int8), np.zeros(16, np.int32), "avx2")
    assert "too few channels" in dict(chosen.refused)["winograd_f43_avx2"]
    assert planned(63, 63, "avx512bw").kernel.name == "winograd_f43_avx512bw"


def test_every_kernel_has_measured_costs_that_grow_with_the_layer():
    small, large = (ConvSpec(1, n, n, 64, 64, (3, 3), padding=PAD) for n in (8, 32))
    many = [replace(spec, groups=64) for spec in (small, large)]
    for row in [row for row in ROWS if row.shares is None and row.isa not in COMPILED_ONLY]:
        little, much = many if row.refuses(small) else (small, large)
        times = [cost.estimate(row.name, row.work(spec)) for spec in (little, much)]
        assert 0 < times[0] < times[1], row.name


def test_a_core_that_nobody_measured_has_the_costs_of_another():
    assert cost.costs("no such core") == cost.costs() != {}
    assert cost.estimate("direct_avx2_d4", [1.0] * 5, core="no such core") == cost.estimate(
        "direct_avx2_d4", [1.0] * 5, core=cost.USUAL
    )


@pytest.mark.isa("avx512vnni")
@pytest.mark.parametrize("own_scale", [0.03, 1e30])
def test_a_sum_beyond_int32_saturates(own_scale):
    """It is narrowed by vpmovsdb where it cannot reach that far; a scale of 1e30 can."""
    row, residual = manifest.kernel("direct_avx512vnni"), replace(RESIDUAL, own_scale=own_scale)
    spec = ConvSpec(1, 5, 5, 16, 32, (1, 1), data_max=127, epilogue="add", residual=residual)
    check(row, replace(spec, out_zero_point=7))
    check(row, replace(spec, lo=3, hi=100))


ROUNDING = ("direct_avx2_d1", "depthwise_avx2", "direct_avx512vnni", "depthwise_avx512vnni", "line_avx512vnni",
            "winograd_f43_avx512vnni")  # fmt: skip


@pytest.mark.parametrize(
    "zero_point, lo, hi", [(0, 0, 127), (64, 1, 127), (255, 3, 255), (3, 0, 250), (255, 2, 127)]
)
@pytest.mark.parametrize("row", [
    pytest.param(r, id=r.name, marks=pytest.mark.isa(r.isa)) for r in ROWS if r.name in ROUNDING
])  # fmt: skip
def test_scaled_accumulators_at_the_ends_of_int32_and_beyond(row, zero_point, lo, hi):
    """A float minimum keeps what is beyond from turning negative; below int32 there is none, and no need.

    Story: behind a clip below the zero point, which is no signed byte, adding that went beyond int32.
    """
    groups = 32 if row.name.startswith("depthwise") else 1
    spec = ConvSpec(1, 4, 8, 32, 32, (3, 3), padding=PAD, groups=groups, data_max=127, lo=lo, hi=hi,
                    out_zero_point=zero_point)  # fmt: skip
    data, weight, bias, _, _ = operands(spec, 20)
    bias[:16] = np.resize([-1, 1], 16) * (2**31 - 2**21)
    weight[..., :2], bias[:2] = 0, (-(2**31) + 1, 2**31 - 1)
    below = np.full(32, np.nextafter(np.float32(1), np.float32(0)))
    for factor, far in ((below, False), (below, True), (np.full(32, 3e5, np.float32), True)):
        operand = (replace(spec, far=far), data, weight, bias, factor, None)
        np.testing.assert_array_equal(run(row, *operand)[0], expected(*operand))


def beside_a_page_that_nobody_may_read(array, before=True):
    """A copy that ends before it, or the less than 64 bytes before that its alignment takes; or that begins
    behind it."""
    libc, size = ctypes.CDLL(None), -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, size + mmap.PAGESIZE)
    closed = ctypes.addressof(ctypes.c_char.from_buffer(pages)) + (size if before else 0)
    assert libc.mprotect(ctypes.c_void_p(closed), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    at = (size - array.nbytes) // 64 * 64 if before else mmap.PAGESIZE
    copy = np.frombuffer(pages, array.dtype, array.size, at).reshape(array.shape)
    copy[...] = array
    return copy


def in_a_process(function, name, layers):
    """``function(name, layer)`` of this file for each of the layers in a process, as one that is wrong dies."""
    code = "import test_kernels\nfrom topi_ext.conv2d import ConvSpec\n" + "".join(
        f"test_kernels.{function.__name__}({name!r}, ConvSpec.from_json({layer.to_json()!r}))\n"
        for layer in layers
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


def read_to_the_end(name, spec):
    """A kernel's output where memory ends behind each of its inputs."""
    row = manifest.kernel(name)
    data, weight, bias, factor, residual = operands(spec, weight_limit(row, spec))
    constants = row.pack(spec, weight, fold_zero_point(bias, weight, spec.zero_point), factor)
    arrays = [beside_a_page_that_nobody_may_read(a) for a in (data, *constants, residual)]
    out = output(row, spec, arrays, isa.ISAS[row.isa].mcpu, copy=False)
    np.testing.assert_array_equal(out, expected(spec, data, weight, bias, factor, residual))


@pytest.mark.ci
@pytest.mark.skipif(sys.platform != "linux", reason="takes a page's rights by Linux's call")
@pytest.mark.parametrize("function", [None, ("multiply", "x", ("sigmoid", "x"))], ids=["", "silu"])
@pytest.mark.parametrize("row", [
    pytest.param(r, id=r.name, marks=pytest.mark.isa(r.isa)) for r in ROWS
    if r.name in (*ROUNDING, "winograd_f43_avx2", "strassen_avx512vnni")
])  # fmt: skip
def test_nothing_behind_the_end_of_a_map_is_read(row, function):
    """Story: of a tile that is partly beyond the map all outputs were computed, and the residual of those that
    are not stored was read from behind its end: a crash, where no memory follows. A process, as one that is
    wrong dies."""
    if row.name.startswith("strassen"):
        if function is not None:
            pytest.skip("takes no function")
        spec = ConvSpec(1, 5, 7, 256, 64, (1, 1), data_max=127, epilogue="add", residual=RESIDUAL)
    else:
        groups = 32 if row.name.startswith("depthwise") else 1
        spec = ConvSpec(1, 9, 13, 32, 32, (3, 3), padding=PAD, groups=groups, data_max=127, epilogue="add",
                        residual=RESIDUAL, function=function)  # fmt: skip
    assert row.refuses(spec) is None
    in_a_process(read_to_the_end, row.name, [spec])


def read_at_the_edges(name, spec):
    """A depthwise kernel's output for two numbers of pixels, memory ending right at the map's two ends."""
    row = manifest.kernel(name)
    data, weight, bias, factor, _ = operands(spec, weight_limit(row, spec))
    constants = row.pack(spec, weight, fold_zero_point(bias, weight, spec.zero_point), factor)
    rest = [beside_a_page_that_nobody_may_read(a) for a in constants]
    kinds = [(a.shape, str(a.dtype)) for a in (data, *rest)]
    norm, in_place = expected(spec, data, weight, bias, factor, None), 0
    for pixels in knob_space(row, spec, kinds)["tile"][:2]:
        in_place += depthwise.in_place(spec, pixels)
        for before in (False, True):
            edge = beside_a_page_that_nobody_may_read(data, before)
            out = output(row, spec, [edge, *rest], isa.ISAS[row.isa].mcpu, copy=False, tile=pixels)
            np.testing.assert_array_equal(out, norm, err_msg=f"{spec}, tiles of {pixels}")
    assert in_place


@pytest.mark.skipif(sys.platform != "linux", reason="takes a page's rights by Linux's call")
@pytest.mark.parametrize("name", [
    pytest.param("depthwise_int32", marks=pytest.mark.ci),
    pytest.param("depthwise_avx2", marks=pytest.mark.isa("avx2")),
    pytest.param("depthwise_avx512bw", marks=[pytest.mark.isa("avx512bw"), pytest.mark.ci]),
    pytest.param("depthwise_avx512vnni", marks=[pytest.mark.isa("avx512vnni"), pytest.mark.ci]),
])  # fmt: skip
def test_a_depthwise_kernel_reads_the_map_as_it_is(name):
    """No padded copy, which took a quarter of the time of a layer of stride 2: what is beyond the map is a
    constant. Edges of one and of several tiles, uneven padding, windows that are all beyond it, dilation,
    stride, a zero point, all of a batch."""
    layers = [
        ConvSpec(1, 9, 13, 48, 48, (3, 3), padding=PAD, groups=48, data_max=127),
        ConvSpec(2, 8, 11, 32, 32, (3, 3), (2, 2), (0, 0, 1, 1), groups=32, data_max=127, zero_point=9),
        ConvSpec(1, 6, 5, 80, 80, (3, 2), (1, 1), (2, 3, 3, 0), groups=80, data_max=127, zero_point=127),
        ConvSpec(1, 7, 9, 16, 16, (5, 5), (1, 2), (2, 2, 2, 2), groups=16, data_max=63),
        ConvSpec(1, 1, 2, 16, 16, (3, 3), (1, 1), (3, 3, 3, 3), groups=16, data_max=127, zero_point=40),
        ConvSpec(
            1, 9, 9, 64, 64, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), groups=64, data_max=127, zero_point=3
        ),
    ]
    in_a_process(read_at_the_edges, name, layers)


def test_a_multiplier_of_one_or_more_is_far():
    spec = ConvSpec(1, 4, 8, 8, 8, (3, 3))
    weight, bias = np.ones(spec.weight_shape, np.int8), np.zeros(8, np.int32)
    factors = np.full((2, 8), 2, np.float32)  # the second vector is the function's
    factors[0] = np.nextafter(np.float32(1), np.float32(0))
    planner.choose_network([Convolution(spec, weight, bias, factors)], "avx2", {})
    factors[0, 3] = 1
    with pytest.raises(
        KernelError, match="3x3 8->8 @ 4x8: a multiplier of 1 or more, and its spec is not far"
    ):
        planner.choose_network([Convolution(spec, weight, bias, factors)], "avx2", {})
    planner.choose_network([Convolution(replace(spec, far=True), weight, bias, factors)], "avx2", {})
    real = replace(spec, epilogue="dequantize")  # is not rounded
    planner.choose_network([Convolution(real, weight, bias, factors)], "avx2", {})
    assert ConvSpec.from_json(replace(spec, far=True).to_json()).far and "far" not in spec.to_json()


@pytest.mark.isa("avx512vnni")
@pytest.mark.parametrize("name", ["line", "strassen"])
def test_fewer_products_of_bytes_whatever_the_tile_and_the_chunk(name):
    """Some sums of three weights are no bytes, in most blocks of output channels."""
    row = manifest.kernel(f"{name}_avx512vnni")
    taps = 3 if name == "line" else 1
    spec = ConvSpec(1, 16, 14, 32, 72, (taps, taps), padding=(taps // 2,) * 4, data_max=127, zero_point=9)
    data, weight, bias, factor, _ = operands(spec, 40)
    weight[1 % taps, :, ::13, ::7] = 63 * np.sign(weight[1 % taps, :1, ::13, ::7])
    arrays = [data, *row.pack(spec, weight, fold_zero_point(bias, weight, 9), factor)]
    rows = taps * 32 // 4 * 4 if taps == 3 else 32 // 8 * 7
    assert (arrays[1].shape[1] > rows) == (name == "line")
    wanted = expected(spec, data, weight, bias, factor, None)
    for tile, chunk in ((None, None), (4 if taps == 1 else 7, 112), (3, 56 if taps == 3 else 28)):
        knobs = {} if tile is None else {"tile": tile, "chunk": chunk}
        found = output(row, spec, arrays, isa.ISAS["avx512vnni"].mcpu, **knobs)
        np.testing.assert_array_equal(found, wanted)


def test_a_layer_takes_fewer_products_where_they_pay_and_are_proven():
    def plan(kernel, weight_max, data_max=127, channels=256):
        spec = ConvSpec(
            1, 14, 14, channels, 256, (kernel,) * 2, padding=(kernel // 2,) * 4, data_max=data_max
        )
        weight = np.full(spec.weight_shape, weight_max, np.int8)
        return planner.choose(spec, weight, np.zeros(256, np.int32), "avx512vnni")

    assert plan(3, 42).kernel.name == "line_avx512vnni"
    assert plan(1, 63).kernel.name == "strassen_avx512vnni"
    assert "add 3072 products to 12288" in dict(plan(3, 43).refused)["line_avx512vnni"]
    assert "a sum of weights may reach 128, beyond 127" in dict(plan(1, 64).refused)["strassen_avx512vnni"]
    assert "inputs may reach 256" in dict(plan(1, 63, data_max=128).unfit)["strassen_avx512vnni"]
    assert "strassen_avx512vnni" in dict(plan(1, 63, channels=16).slower)


@pytest.mark.isa("avx512vnni")
def test_winograd_multiplies_and_adds_in_one_instruction():
    """LLVM makes vpdpwssd of vpmaddwd and the add; the costs of the row are measured so."""
    row = manifest.kernel("winograd_f43_avx512vnni")
    spec = ConvSpec(1, 8, 8, 32, 32, (3, 3), padding=PAD, data_max=63)
    assert "vpdpwssd" in run(row, spec, *operands(spec, weight_limit(row, spec)))[1]


@pytest.mark.skipif(isa.arch_of("") != "x86_64", reason="compiles for x86")
@pytest.mark.parametrize("name, multiply, add", [
    ("winograd_f43_avx2", "vpmaddwd", "vpaddd"),
    ("winograd_f43_avx512bw", "vpmaddwd", "vpaddd"),
    ("chains_avx2", "vpmaddubsw", "vpaddw"),
])  # fmt: skip
def test_two_products_are_made_before_either_is_added(name, multiply, add):
    """Story: an add right behind its multiply took a port of the multiplier: on Zen 4 88 GMAC/s of registers
    with AVX-512, where two multiplies and then two adds make 106. LLVM orders them so by itself."""
    row = manifest.kernel(name)
    spec = ConvSpec(1, 16, 16, 64, 64, (3, 3), padding=PAD, data_max=127)
    data, weight, bias, factor, _ = operands(spec, 7)
    text = compiled(row, spec, [data, *row.pack(spec, weight, bias, factor)], isa.ISAS[row.isa].mcpu)
    loop = max(text.split("\n.LBB"), key=lambda block: block.count(multiply) * (add in block))
    loop = loop[: loop.index("\tjne")]
    order = "".join("m" if op == multiply else "a" for op in re.findall(rf"\t({multiply}|{add})\t", loop))
    assert re.fullmatch("(mm|mmaa)+", order), order


def test_a_layer_of_mixed_depths_has_a_stored_time():
    """bits="auto" refused networks with such a layer, of which the one in the package is one: "has no stored time"."""
    spec = ConvSpec(1, 14, 14, 32, 32, (1, 1), data_max=127)
    weight = np.full(spec.weight_shape, 63, np.int8)
    weight[..., :16] = 3
    mixed = [row for row in ROWS if row.shares is not None]
    for row in mixed:
        parts = [
            planner.microseconds(manifest.kernel(name), spec, weight) for name in row.shares(spec, weight)
        ]
        assert min(parts) <= planner.microseconds(row, spec, weight) <= max(parts), row.name
    choice = planner.choose(spec, weight, np.zeros(32, np.int32), "avx2")
    assert choice.kernel.name in [row.name for row in mixed]
    layer = planner.LayerChoice("layer", spec, weight, choice)
    assert stored_times([layer], "avx2")["layer"] > 0


@pytest.mark.parametrize("row, mcpu", [("avxvnni", "core-avx2"), ("amx", "cascadelake")])
def test_a_kernel_that_was_never_measured_has_no_time_and_says_whose_kernels_have(row, mcpu):
    spec = ConvSpec(1, 8, 8, 64, 64, (3, 3), padding=PAD, data_max=255)
    layer = planner.LayerChoice("layer", spec, np.ones(spec.weight_shape, np.int8), planned(255, 127, row))
    with pytest.raises(
        TuneError, match=f"take bits 7 or 8, or the target 'llvm -mcpu={mcpu}', which was meas"
    ):
        stored_times([layer], row)


def test_without_winograd_vnni_takes_any_operands():
    spec = ConvSpec(1, 8, 8, 64, 64, (1, 1), data_max=255)
    weight = np.full(spec.weight_shape, 127, np.int8)
    assert (
        planner.choose(spec, weight, np.zeros(64, np.int32), "avx512vnni").kernel.name
        == "direct_avx512vnni"
    )


def test_winograd_is_taken_where_it_pays_and_is_proven():
    def plan(size, data_max, weight_max, channels=64):
        spec = ConvSpec(1, size, size, channels, 64, (3, 3), padding=PAD, data_max=data_max)
        weight = np.full(spec.weight_shape, weight_max, np.int8)
        return planner.choose(spec, weight, np.zeros(64, np.int32), "avx2")

    assert plan(16, 127, 63).kernel.name == "winograd_f43_avx2"
    assert "winograd_f43_avx2" in dict(plan(16, 127, 63, 8).slower)
    refused = dict(plan(16, 127, 63, 512).refused)["winograd_f43_avx2"]
    assert f"may reach {64 * 127 * 63 * 9 * 512}, beyond int32" in refused


@pytest.mark.isa("avx2")
def test_winograd_wraps_and_is_still_exact():
    """All data 127, all weights 63, C = 448: 576 y is 1.6e10, far beyond int32; 64 y just fits."""
    spec = ConvSpec(1, 8, 8, 448, 16, (3, 3), padding=PAD, data_max=127, epilogue="dequantize")
    data = np.full((1, 8, 8, 448), 127, np.uint8)
    weight = np.full(spec.weight_shape, 63, np.int8)
    row = manifest.kernel("winograd_f43_avx2")
    assert isinstance(row.proves(spec, weight), Bound)
    one_more = ConvSpec(1, 8, 8, 480, 16, (3, 3), padding=PAD, data_max=127, epilogue="dequantize")
    assert isinstance(row.proves(one_more, np.full(one_more.weight_shape, 63, np.int8)), Refusal)
    bias, factor = np.zeros(16, np.int32), np.ones(16, np.float32)
    out, assembly = run(row, spec, data, weight, bias, factor)
    np.testing.assert_array_equal(out, expected(spec, data, weight, bias, factor, None))
    assert "vpmulld" in assembly and "easyquant_mul" not in assembly  # inlined, nothing called


def test_depthwise_falls_back_to_int32_where_int16_is_not_proven():
    spec = ConvSpec(1, 8, 8, 16, 16, (3, 3), groups=16, data_max=127)
    bias = np.zeros(16, np.int32)
    small, big = (np.full(spec.weight_shape, w, np.int8) for w in (28, 63))
    assert planner.choose(spec, small, bias, "generic").kernel.name == "depthwise_int16"
    assert planner.choose(spec, small, bias, "avx2").kernel.name == "depthwise_avx2"
    assert planner.choose(spec, big, bias, "generic").kernel.name == "depthwise_int32"


@pytest.mark.isa("avx2")
@pytest.mark.parametrize(
    ("kernel", "cuts"),
    [
        ((5, 5), 5),
        ((11, 13), 22),
        *(
            pytest.param(*case, marks=pytest.mark.ci)
            for case in (((3, 3), 2), ((7, 3), 4), ((1, 9), 2), ((2, 17), 6))
        ),
    ],
)
def test_pairs_are_summed_in_int16_over_as_many_taps_as_fit(kernel, cuts):
    """A 5x5 kernel of 7 bits is too wide for int16 as a whole: it ran in int32, at 0.4 of the speed. At the
    extremes of its data each part reaches both ends of its span. A large kernel is a loop over its rows."""
    size = (kernel[0] + 4, kernel[1] + 4)
    spec = ConvSpec(1, *size, 48, 48, kernel, groups=48, data_max=127, epilogue="dequantize")
    row, weight = manifest.kernel("depthwise_avx2"), np.full(spec.weight_shape, 63, np.int8)
    weight[..., 1::2] = -63
    assert depthwise.cuts(spec, weight) == cuts
    span = max(len(rows) * len(columns) for rows, columns in depthwise.cut(spec, cuts)) * 63 * 127
    assert row.proves(spec, weight).value == span <= 2**16
    data = np.random.default_rng(0).choice(np.array([0, 127], np.uint8), (1, *size, 48))
    data[0, :-2, :-2] = 127
    bias, factor = np.arange(48, dtype=np.int32), np.ones(48, np.float32)
    out, _ = run(row, spec, data, weight, bias, factor)
    np.testing.assert_array_equal(out, expected(spec, data, weight, bias, factor, None))


@pytest.mark.parametrize("name", [pytest.param("depthwise_int16", marks=pytest.mark.ci), "depthwise_int32"])
def test_a_large_kernel_is_a_loop_over_its_rows(name):
    """31x31 took half a minute to compile as one piece of code: twice as many rows are no more code."""
    lines = []
    for rows in (11, 22):
        spec = ConvSpec(1, rows + 2, 13, 16, 16, (rows, 10), groups=16, data_max=127, epilogue="dequantize")
        rng = np.random.default_rng(0)
        weight = rng.integers(-3, 4, spec.weight_shape).astype(np.int8)
        data = rng.integers(0, 128, (1, rows + 2, 13, 16)).astype(np.uint8)
        bias, factor = np.arange(16, dtype=np.int32), np.ones(16, np.float32)
        out, assembly = run(manifest.kernel(name), spec, data, weight, bias, factor)
        np.testing.assert_array_equal(out, expected(spec, data, weight, bias, factor, None))
        lines.append(assembly.count("\n"))
    assert lines[1] < 1.2 * lines[0]


def test_a_depthwise_sum_wraps_int16_on_its_way_and_is_still_exact():
    """Sums from 0 to 64008: half of them beyond int16 until the constant each sum starts at brings them back."""
    spec = ConvSpec(1, 6, 9, 32, 32, (3, 3), groups=32, padding=PAD, data_max=127, epilogue="dequantize")
    weight = np.full(spec.weight_shape, 56, np.int8)
    weight[..., 1::2] = -56
    row = manifest.kernel("depthwise_int16")
    assert row.proves(spec, weight).value == 9 * 56 * 127 > 2**15
    data = np.random.default_rng(0).choice(np.array([0, 127], np.uint8), (1, 6, 9, 32))
    data[0, :3, :3] = 127
    bias, factor = np.arange(32, dtype=np.int32), np.ones(32, np.float32)
    out, _ = run(row, spec, data, weight, bias, factor)
    np.testing.assert_array_equal(out, expected(spec, data, weight, bias, factor, None))
    assert out.max() == 64008 + 30 and out.min() == -64008 + 1


def test_a_layer_beyond_int32_is_refused_by_every_kernel():
    spec = ConvSpec(1, 1, 1, 4, 8, (1, 1), data_max=255)
    weight, bias = np.ones(spec.weight_shape, np.int8), np.full(8, 2**31 - 1, np.int64)
    assert isinstance(accumulator_bound(spec, weight, bias), Refusal)
    with pytest.raises(OverflowError, match="may reach"):
        planner.choose(spec, weight, bias, "avx2")


@pytest.mark.isa("avx2")
def test_the_inner_loop_is_what_the_design_says():
    """Depth 4: four vpmaddubsw for each vpmaddwd, accumulators in registers, nothing called."""
    spec = ConvSpec(1, 14, 14, 64, 64, (3, 3), padding=PAD, data_max=63)
    data, weight, bias, factor, _ = operands(spec, 63)
    _, assembly = run(manifest.kernel("direct_avx2_d4"), spec, data, weight, bias, factor)
    multiplies, widenings = assembly.count("vpmaddubsw"), assembly.count("vpmaddwd")
    assert multiplies == 4 * widenings > 0
    loop = max(assembly.split("\n.LBB"), key=lambda block: block.count("vpmaddubsw"))
    loop = loop[: loop.index("\tjne")]
    assert loop.count("vpmaddubsw") == 28  # 7 pixels
    assert "(%rsp)" not in loop  # no spill
    assert "call" not in loop


def inner_loop(row, mcpu, instruction, height=14, width=14):
    """The assembly of the inner loop of a 3x3 layer of any 8-bit operands: compiled, not run."""
    spec = ConvSpec(1, height, width, 64, 64, (3, 3), padding=PAD, data_max=255)
    data, weight, bias, factor, _ = operands(spec, 127)
    assert row.proves(spec, weight) is EXACT
    text = compiled(row, spec, [data, *row.pack(spec, weight, bias, factor)], mcpu)
    loop = max(text.split("\n.LBB"), key=lambda block: block.count(instruction))
    return loop[: loop.index("\tjne")]


@pytest.mark.skipif(isa.arch_of("") != "x86_64", reason="compiles for x86")
def test_avxvnni_keeps_six_pixels_by_two_vectors_in_sixteen_registers():
    """Seven accumulators are too few for the latency of vpdpbusd. Compiled only: to run it needs the CPU."""
    loop = inner_loop(manifest.kernel("direct_avxvnni"), "alderlake", "vpdpbusd", width=18)
    assert loop.count("{vex}\tvpdpbusd") == loop.count("vpdpbusd") in (12, 24)  # LLVM may unroll it
    assert loop.count("vpbroadcastd") * 2 == loop.count("vpdpbusd")  # each pixel's inputs are loaded once
    assert "%zmm" not in loop and "(%rsp)" not in loop


@pytest.mark.skipif(isa.arch_of("") != "x86_64", reason="compiles for x86")
def test_depthwise_of_avxvnni_takes_four_taps_at_once():
    layer = ConvSpec(1, 14, 14, 64, 64, (3, 3), groups=64, padding=PAD, data_max=255)
    weight = np.full(layer.weight_shape, 127, np.int8)
    chosen = planner.choose(layer, weight, np.zeros(64, np.int32), "avxvnni")
    assert chosen.kernel.name == "depthwise_avxvnni"
    data, weight, bias, factor, _ = operands(layer, 127)
    text = compiled(
        chosen.kernel, layer, [data, *chosen.kernel.pack(layer, weight, bias, factor)], "alderlake"
    )
    assert text.count("{vex}\tvpdpbusd") == text.count("vpdpbusd") > 0 and "%zmm" not in text


@pytest.mark.skipif(isa.arch_of("") != "x86_64", reason="compiles for x86")
def test_256_bit_vnni_of_avx512_is_a_row_and_no_new_kernel():
    """The same width with 32 registers."""
    new = isa.Isa("avx512vl_vnni", ("avx512vl", "avx512vnni"), (), "cascadelake", "avx2", registers=32, bits=256,
                  tiles={"direct": 14}, vectors=isa.ISAS["avx2"].vectors, narrows=True)  # fmt: skip
    loop = inner_loop(direct_row("direct_new", new, x86.vnni_dot(new)), "cascadelake", "vpdpbusd")
    assert loop.count("vpdpbusd") in (14, 28) and "{vex}" not in loop
    assert "%zmm" not in loop and "(%rsp)" not in loop


@pytest.mark.isa("avx2")
@pytest.mark.parametrize("channels, width", [(28, 13), (16, 6), (20, 13), (48, 1)])
def test_tiles_of_two_vectors_equal_the_norm(channels, width):
    """AVX-VNNI's loops with a multiply that this CPU has: whole and ragged pairs of blocks, an odd block, one
    pixel."""
    dot = x86.int16_dot(isa.ISAS["avx2"], 1)._replace(vectors=2, accumulators=12)
    row = direct_row("direct_pairs", isa.ISAS["avx2"], dot, lane_proof)
    spec = ConvSpec(1, 5, width, 9, channels, (3, 3), padding=PAD, data_max=127, zero_point=7)
    data, weight, bias, factor, _ = operands(spec, 63)
    assert direct.vectors_of(spec, dot) == (1 if channels == 20 else 2)
    arrays = [data, *row.pack(spec, weight, fold_zero_point(bias, weight, 7), factor)]
    out = output(row, spec, arrays, "core-avx2")
    np.testing.assert_array_equal(out, expected(spec, data, weight, bias, factor, None))


def plain_tiles():
    """AMX's tiles as buffers of int32, and its instructions as loops, which every CPU runs: the same addresses
    and steps. (Of one type, as apache-tvm's storage rewrite is wrong where memory changes its type.)"""
    held = {}

    def loops(tile, body):
        """body(row, column) for each element of a tile."""
        ib, (_, rows, columns) = Builder(), held[tile]
        with ib.for_range(0, rows, "r") as r, ib.for_range(0, columns, "c") as c:
            body(ib, r, c)
        return ib.get()

    def configure(ib, sizes):
        for tile, (rows, size) in sizes.items():
            columns = size if tile >= 4 else size // 4
            held[tile] = ib.allocate("int32", 16 * columns, f"tile{tile}"), rows, columns

    def at(buffer, indices, stride, r, c):
        return [*indices[:-1], indices[-1] + r * (stride // np.dtype(str(buffer.dtype)).itemsize) + c]

    def zero(tile):
        regs, _, columns = held[tile]
        return loops(tile, lambda ib, r, c: ib.emit(regs.vstore([r * columns + c], const(0, "int32"))))

    def load(tile, buffer, indices, stride):
        def body(ib, r, c):
            regs, _, columns = held[tile]
            value = buffer.vload(at(buffer, indices, stride, r, c)).astype("int32")
            ib.emit(regs.vstore([r * columns + c], value))

        return loops(tile, body)

    def store(tile, buffer, indices, stride):
        def body(ib, r, c):
            regs, _, columns = held[tile]
            ib.emit(buffer.vstore(at(buffer, indices, stride, r, c), regs.vload([r * columns + c])))

        return loops(tile, body)

    def multiply(sums, data, weights):
        (total, _, lanes), (a, _, width), (b, rows, _) = (held[t] for t in (sums, data, weights))
        assert 4 * rows == width  # as the hardware has it

        def body(ib, r, c):
            with ib.for_range(0, rows, "k") as k:
                old = total.vload([r * lanes + c])
                for i in range(4):
                    old = old + a.vload([r * width + 4 * k + i]) * b.vload([k * 64 + 4 * c + i])
                ib.emit(total.vstore([r * lanes + c], old))

        return loops(sums, body)

    return Tiles(configure, lambda: Builder().get(), zero, load, multiply, store)


TILES = {**TAILS, "three tiles of pixels, an odd block": ConvSpec(1, 2, 34, 8, 52, (1, 1), (1, 1), data_max=255,
                                                                 padding=(0, 1, 0, 0), hi=255)}  # fmt: skip
DAILY = {"first layer, stride, odd sizes", "residual, ragged", "grouped"}


@pytest.mark.parametrize("name, order", [
    pytest.param(name, order, id=f"{name}-{order}", marks=[] if name in DAILY else pytest.mark.ci)
    for name, order in zip(TILES, itertools.cycle(("rows", "channels")))
])  # fmt: skip
def test_the_loops_of_amx_equal_the_norm_by_tiles_that_every_cpu_has(name, order):
    """What is left to an AMX machine is the instructions, whose meaning is tested by itself."""
    spec, row = TILES[name], tile_row("tiles", isa.ISAS["amx"], plain_tiles())
    if row.refuses(spec) is not None:
        return
    limit = 127 if spec.epilogue != "dequantize" else 63
    data, weight, bias, factor, residual = operands(spec, limit)
    folded = fold_zero_point(bias, weight, spec.zero_point)
    arrays = [data, *row.pack(spec, weight, folded, factor), *([] if residual is None else [residual])]
    out = output(row, spec, arrays, "core-avx2", order=order)
    np.testing.assert_array_equal(out, expected(spec, data, weight, bias, factor, residual))


@pytest.mark.skipif(isa.arch_of("") != "x86_64", reason="compiles for x86")
def test_amx_multiplies_two_tiles_by_two():
    """Compiled only: to run it needs the CPU. Four products for four loads, configured and released around."""
    row = manifest.kernel("direct_amx")
    for kernel in ((3, 3), (1, 1)):
        spec = ConvSpec(
            1, 14, 28, 64, 64, kernel, padding=PAD if kernel == (3, 3) else (0,) * 4, data_max=255
        )
        data, weight, bias, factor, _ = operands(spec, 127)
        assert row.proves(spec, weight) is EXACT
        text = compiled(row, spec, [data, *row.pack(spec, weight, bias, factor)], "sapphirerapids")
        assert text.count("tdpbusd") == text.count("tileloadd") >= 4
        assert text.count("ldtilecfg") == text.count("tilerelease") > 0
        marks = ("ldtilecfg", "tilezero", "tileloadd", "tdpbusd", "tilestored", "tilerelease")
        assert sorted(marks, key=text.index) == list(marks)


def test_amx_takes_what_fills_its_tiles_and_leaves_the_rest_to_vnni():
    assert planned(255, 127, "amx").kernel.name == "direct_amx"
    dense = ConvSpec(1, 1, 1, 512, 64, (1, 1), data_max=255)
    thin = ConvSpec(1, 28, 28, 8, 64, (1, 1), data_max=255)
    for spec, why in ((dense, "too few pixels"), (thin, "too few inputs")):
        weight = np.full(spec.weight_shape, 127, np.int8)
        chosen = planner.choose(spec, weight, np.zeros(64, np.int32), "amx")
        assert chosen.kernel.name == "direct_avx512vnni" and chosen.reason.startswith("estimated")
        assert why in dict(chosen.refused)["direct_amx"]


def test_of_a_row_that_was_never_measured_rules_of_thumb_decide_and_not_others_costs():
    """Winograd's rows of AVX2 have costs, which say nothing beside a kernel that has none: F(4,3) from 16 tiles
    and 32 channels on, F(2,3) never."""
    assert planned(63, 63, "avxvnni").kernel.name == "direct_avxvnni"
    refused = dict(planned(63, 63, "avxvnni").refused)
    assert "4 tiles are too few" in refused["winograd_f43_avx2"] and "winograd_f23_avx2" in refused
    spec = ConvSpec(1, 16, 16, 64, 64, (3, 3), padding=PAD, data_max=63)
    chosen = planner.choose(spec, np.ones(spec.weight_shape, np.int8), np.zeros(64, np.int32), "avxvnni")
    assert chosen.kernel.name == "winograd_f43_avx2" and chosen.reason == "first of the manifest"


@pytest.mark.skipif(isa.arch_of("") != "x86_64", reason="compiles for x86")
def test_addresses_of_a_flat_map_are_no_quotients():
    """Story: today's TVM did not take ``x // width * width + x % width`` together again; layers of few
    channels on large maps spent a third of their time on addresses."""
    spec = ConvSpec(1, 8, 112, 16, 96, (1, 1), data_max=127)
    row = manifest.kernel("direct_avx2_d4")
    data, weight, bias, factor, _ = operands(spec, 1)
    text = compiled(row, spec, [data, *row.pack(spec, weight, bias, factor)], "core-avx2")
    assert not re.findall(r"imul\w*\s+\$-?\d{7,}", text)  # what a quotient by a constant becomes


@pytest.mark.ci
@pytest.mark.linker
@pytest.mark.skipif(isa.arch_of("") != "x86_64", reason="compiles for x86")
def test_a_network_is_built_for_rows_that_are_compiled_only(tmp_path):
    """Through the host's own lowering and linker, as one package of both."""
    graph, images = golden_networks.NETWORKS["kinds"]()
    built = eq.quantize(graph, images, bits=8, method="minmax").build(isa=sorted(COMPILED_ONLY))
    for name, one in built.variants.items():
        assert any(layer.choice.kernel.isa == name for layer in one.layers)
    built.export(tmp_path / "net.tar")
    assert {v.name for v in package.read_record(tmp_path / "net.tar").variants} == COMPILED_ONLY


@pytest.mark.parametrize("name", [
    "direct_generic",
    *(pytest.param(n, marks=pytest.mark.isa(n.split("_")[1]))
      for n in ("direct_avx2_d4", "chains_avx2", "chains_avx512bw", "direct_avx512vnni")),
])  # fmt: skip
def test_a_map_that_equal_rows_would_fill_badly_is_cut_into_whole_tiles(name):
    """Story: it was one row, so two threads took blocks of its output channels, in which a line of memory has
    pixels of both: 16 -> 96 @112x112 took 152 us with two threads, and 127 with one."""
    row = manifest.kernel(name)
    for height, width, epilogue in (
        (19, 23, "requantize"),
        (19, 23, "add"),
        (12, 31, "requantize"),
        (7, 43, "add"),
    ):
        residual = RESIDUAL if epilogue == "add" else None
        spec = ConvSpec(
            1, height, width, 64, 96, (1, 1), data_max=127, epilogue=epilogue, residual=residual
        )
        data, weight, bias, factor, beside = operands(spec, 20)
        arrays = [data, *row.pack(spec, weight, bias, factor), *([] if residual is None else [beside])]
        norm = expected(spec, data, weight, bias, factor, beside)
        space = knob_space(row, spec, [(a.shape, str(a.dtype)) for a in arrays])
        for pixels in space["tile"][:2]:
            out = output(row, spec, arrays, isa.ISAS[row.isa].mcpu, tile=pixels, order="rows")
            np.testing.assert_array_equal(out, norm, err_msg=f"{spec}, tiles of {pixels}")
        assert space["order"][0] == "rows"
    spec = ConvSpec(1, 112, 112, 16, 96, (1, 1))
    rows, tiles = direct.cut(spec, 112 * 112, 6)
    assert rows > 100 and (rows - 1) * tiles < 112 * 112 // 6 <= rows * tiles


def test_few_inputs_make_small_tiles_where_a_cpu_can_be_at_two_of_them():
    """With VNNI a tile of 14 pixels by 8 products each was done before its outputs were stored: one of 6
    takes 0.9 of the time, as the next tile's products begin meanwhile."""
    dot = x86.vnni_dot(isa.ISAS["avx512vnni"])
    pixels = {32: 6, 36: 6, 40: 4, 64: 4, 68: 14, 256: 14}
    for channels, most in pixels.items():
        spec = ConvSpec(1, 56, 56, channels, 64, (1, 1), data_max=127)
        assert direct.pixels_of(spec, dot) == most
        assert direct.pixels_of(spec, x86.int16_dot(isa.ISAS["avx512bw"], 4)) == 14
        assert direct.pixels_of(spec, x86.vnni_dot(isa.ISAS["avxvnni"])) == 6
    added = ConvSpec(1, 56, 56, 32, 64, (1, 1), data_max=127, epilogue="add", residual=RESIDUAL)
    assert direct.pixels_of(added, dot) == 14  # the residual is what it waits for


def test_a_tail_is_no_single_pixel_where_other_tiles_cost_the_same():
    assert [direct.tile_pixels(width, 6) for width in (7, 13, 14, 28)] == [5, 5, 6, 6]
    assert (
        direct.tile_pixels(15, 7) == 6 and direct.tile_pixels(7, 7) == 7 and direct.tile_pixels(1, 7) == 1
    )
