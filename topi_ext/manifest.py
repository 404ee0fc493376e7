"""`KERNELS`: every convolution kernel there is, one row each, best first.

Strategy registration, the planner, the tests and the benchmarks iterate this table. What is not
listed does not exist; what is listed is tested.
"""

from __future__ import annotations

import functools

from .kernels import direct
from .kernels.rows import Kernel, depthwise_pairs_row, depthwise_row, direct_row, mixed_row, winograd_row
from .proofs import chain_proof, lane_proof, sum_proof
from .targets import arm, x86

KERNELS = (
    depthwise_pairs_row("avx512bw", 512),
    depthwise_pairs_row("avx2", 256),
    depthwise_row("depthwise_int16", "int16"),
    depthwise_row("depthwise_int32", "int32"),
    winograd_row(4, "avx512bw", 512, 4, x86.word_pairs(512)),
    winograd_row(2, "avx512bw", 512, 2**30, x86.word_pairs(512)),  # by measurement only
    direct_row("direct_avx512vnni", "avx512vnni", x86.vnni_dot(512)),
    direct_row("direct_avx512bw_d4", "avx512bw", x86.int16_dot(512, 4), lane_proof),
    mixed_row("avx512bw", 512, 4, 2),
    direct_row("direct_avx512bw_d2", "avx512bw", x86.int16_dot(512, 2), lane_proof),
    mixed_row("avx512bw", 512, 2, 1),
    direct_row("direct_avx512bw_d1", "avx512bw", x86.int16_dot(512, 1), lane_proof),
    direct_row("wide_avx512bw", "avx512bw", x86.int32_dot(512)),
    winograd_row(4, "avx2", 256, 16, x86.word_pairs(256), x86.narrow),
    winograd_row(2, "avx2", 256, 2**30, x86.word_pairs(256), x86.narrow),
    direct_row("direct_avx2_d4", "avx2", x86.int16_dot(256, 4), lane_proof),
    mixed_row("avx2", 256, 4, 2),
    direct_row("direct_avx2_d2", "avx2", x86.int16_dot(256, 2), lane_proof),
    mixed_row("avx2", 256, 2, 1),
    direct_row("direct_avx2_d1", "avx2", x86.int16_dot(256, 1), lane_proof),
    direct_row("wide_avx2", "avx2", x86.int32_dot(256)),
    # ARM: nothing is measured; the static cycle counts are in benchmarks/results/arm_mca.json
    direct_row("direct_neon_i8mm", "neon_i8mm", arm.usdot_dot(), sum_proof),
    direct_row("direct_neon_dotprod", "neon_dotprod", arm.sdot_dot, sum_proof),
    winograd_row(4, "neon", 128, 16, arm.word_pairs, order=arm.split_pairs),
    winograd_row(2, "neon", 128, 2**30, arm.word_pairs, order=arm.split_pairs),
    direct_row("direct_neon_d4", "neon", arm.widening_dot(4), chain_proof),
    direct_row("direct_neon_d2", "neon", arm.widening_dot(2), chain_proof),
    direct_row("direct_neon_d1", "neon", arm.widening_dot(1), chain_proof),
    direct_row("wide_neon", "neon", arm.word_dot()),
    direct_row("wide_armv7_neon", "armv7_neon", arm.word_dot()),
    direct_row("direct_generic", "generic", direct.plain_dot(8)),
)


@functools.cache
def kernel(name: str) -> Kernel:
    """The row called ``name``; KeyError lists the names."""
    for row in KERNELS:
        if row.name == name:
            return row
    raise KeyError(f"no kernel {name!r}; there are {', '.join(k.name for k in KERNELS)}")
