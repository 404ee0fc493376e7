"""The integer convolution in public: the problem (`problem`), what is proved of it (`proofs`), and how
kernels read it (`packing`). No TVM here."""

from .packing import blocks_of, fold_zero_point, pack, pad_vector, runs_of, tight
from .problem import EXACT, Bound, Convolution, ConvSpec, Refusal, Residual, is_far
from .proofs import (
    INT16_MAX,
    NEIGHBOURS,
    accumulator_bound,
    lane_bound,
    lane_reach,
    merged_scales,
    tap_bound,
)

__all__ = [
    "EXACT",
    "INT16_MAX",
    "NEIGHBOURS",
    "Bound",
    "ConvSpec",
    "Convolution",
    "Refusal",
    "Residual",
    "accumulator_bound",
    "blocks_of",
    "fold_zero_point",
    "is_far",
    "lane_bound",
    "lane_reach",
    "merged_scales",
    "pack",
    "pad_vector",
    "runs_of",
    "tap_bound",
    "tight",
]
