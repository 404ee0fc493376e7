"""`KERNELS`: every convolution kernel there is, one row each, best first.

Strategy registration, the planner, the tests and the benchmarks iterate this table. What is not
listed does not exist; what is listed is tested.
"""

from __future__ import annotations

import functools

from .bilinear import LINE, STRASSEN
from .isa import ISAS
from .kernels import direct
from .kernels.rows import (
    Kernel,
    bilinear_row,
    chain_row,
    depthwise_pairs_row,
    depthwise_quads_row,
    depthwise_row,
    direct_row,
    mixed_row,
    tile_row,
    winograd_row,
)
from .proofs import chain_proof, lane_proof, sum_proof
from .targets import arm, x86

GENERIC, AVX2, AVXVNNI = (ISAS[n] for n in ("generic", "avx2", "avxvnni"))
AVX512BW, AVX512VNNI, AMX = (ISAS[n] for n in ("avx512bw", "avx512vnni", "amx"))
ARMV7, NEON, DOTPROD, I8MM = (ISAS[n] for n in ("armv7_neon", "neon", "neon_dotprod", "neon_i8mm"))

KERNELS = (
    depthwise_quads_row(AVX512VNNI),
    depthwise_pairs_row(AVX512BW),
    depthwise_quads_row(AVXVNNI),  # compiled only: no costs
    depthwise_pairs_row(AVX2),
    depthwise_row("depthwise_int16", "int16"),
    depthwise_row("depthwise_int32", "int32"),
    tile_row("direct_amx", AMX, x86.amx_tiles()),  # compiled only: no costs
    winograd_row(4, AVX512VNNI, x86.word_pairs(AVX512VNNI), 4),
    winograd_row(2, AVX512VNNI, x86.word_pairs(AVX512VNNI), 2**30),  # by measurement only
    winograd_row(4, AVX512BW, x86.word_pairs(AVX512BW), 4),
    winograd_row(2, AVX512BW, x86.word_pairs(AVX512BW), 2**30),
    bilinear_row(LINE, AVX512VNNI, x86.byte_dots(AVX512VNNI)),
    bilinear_row(STRASSEN, AVX512VNNI, x86.byte_dots(AVX512VNNI)),
    direct_row("direct_avx512vnni", AVX512VNNI, x86.vnni_dot(AVX512VNNI)),
    chain_row(AVX512BW),
    direct_row("direct_avx512bw_d4", AVX512BW, x86.int16_dot(AVX512BW, 4), lane_proof),
    mixed_row(AVX512BW, 4, 2),
    direct_row("direct_avx512bw_d2", AVX512BW, x86.int16_dot(AVX512BW, 2), lane_proof),
    mixed_row(AVX512BW, 2, 1),
    direct_row("direct_avx512bw_d1", AVX512BW, x86.int16_dot(AVX512BW, 1), lane_proof),
    direct_row("wide_avx512bw", AVX512BW, x86.int32_dot(AVX512BW)),
    winograd_row(4, AVX2, x86.word_pairs(AVX2), 16),
    winograd_row(2, AVX2, x86.word_pairs(AVX2), 2**30),
    direct_row("direct_avxvnni", AVXVNNI, x86.vnni_dot(AVXVNNI)),  # compiled only: no costs
    chain_row(AVX2),
    direct_row("direct_avx2_d4", AVX2, x86.int16_dot(AVX2, 4), lane_proof),
    mixed_row(AVX2, 4, 2),
    direct_row("direct_avx2_d2", AVX2, x86.int16_dot(AVX2, 2), lane_proof),
    mixed_row(AVX2, 2, 1),
    direct_row("direct_avx2_d1", AVX2, x86.int16_dot(AVX2, 1), lane_proof),
    direct_row("wide_avx2", AVX2, x86.int32_dot(AVX2)),
    # ARM: nothing is measured; the static cycle counts are in benchmarks/results/arm_mca.json
    direct_row("direct_neon_i8mm", I8MM, arm.usdot_dot(I8MM), sum_proof),
    direct_row("direct_neon_dotprod", DOTPROD, arm.sdot_dot(DOTPROD), sum_proof),
    winograd_row(4, NEON, arm.word_pairs(NEON), 16),
    winograd_row(2, NEON, arm.word_pairs(NEON), 2**30),
    direct_row("direct_neon_d4", NEON, arm.widening_dot(NEON, 4), chain_proof),
    direct_row("direct_neon_d2", NEON, arm.widening_dot(NEON, 2), chain_proof),
    direct_row("direct_neon_d1", NEON, arm.widening_dot(NEON, 1), chain_proof),
    direct_row("wide_neon", NEON, arm.word_dot(NEON)),
    direct_row("wide_armv7_neon", ARMV7, arm.word_dot(ARMV7)),
    direct_row("direct_generic", GENERIC, direct.plain_dot(8, GENERIC.tiles["plain"])),
)


@functools.cache
def kernel(name: str) -> Kernel:
    """The row called ``name``; KeyError lists the names."""
    for row in KERNELS:
        if row.name == name:
            return row
    raise KeyError(f"no kernel {name!r}; there are {', '.join(k.name for k in KERNELS)}")
