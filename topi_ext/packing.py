"""The order in which kernels read weights, bias and multiplier. No TVM here."""

from __future__ import annotations

import numpy as np

from .errors import AccumulatorOverflow
from .problem import ConvSpec
from .reference import INT32_MAX


def fold_zero_point(bias: np.ndarray, weight: np.ndarray, zero_point: int) -> np.ndarray:
    """int32 (K,) bias that lets a kernel sum ``q * w`` instead of ``(q - zero_point) * w``.

    weight: int8 (R, S, C / groups, K). Raises AccumulatorOverflow if it does not fit int32.
    """
    total = weight.astype(np.int64).reshape(-1, weight.shape[-1]).sum(axis=0)
    folded = np.asarray(bias, np.int64) - int(zero_point) * total
    if folded.size and np.abs(folded).max() > INT32_MAX:
        raise AccumulatorOverflow("the bias with the zero point folded in does not fit int32")
    return folded.astype(np.int32)


def blocks_of(spec: ConvSpec, lanes: int, together: int = 1) -> int:
    """Blocks of ``lanes`` output channels in one group, a multiple of ``together``: the last ones may be
    ragged or empty."""
    return -(-(spec.out_channels // spec.groups) // (lanes * together)) * together


def pack(spec: ConvSpec, weight: np.ndarray, lanes: int, group: int, together: int = 1) -> np.ndarray:
    """Weights in the order a direct kernel reads them: (blocks, runs, L, lanes, group).

    A *run* is a stretch of the padded map that lies contiguous in memory: a whole kernel row where
    the dilation and the number of groups are 1, else one tap. ``group`` inputs fill one 32-bit lane; a run
    is filled up with zeros to a multiple of it (`tight`), or the input channels are, as is the data. Output
    channels of each group of the convolution are padded to whole blocks, a multiple of ``together``.
    """
    r, s, c, k = weight.shape
    per, blocks = k // spec.groups, blocks_of(spec, lanes, together)
    weight = weight.reshape(r, s, c, spec.groups, per)
    if tight(spec, group):
        weight = weight.reshape(r, 1, s * c, spec.groups, per)
    length = -(-weight.shape[2] // group) * group
    filled = np.zeros((*weight.shape[:2], length, spec.groups, blocks * lanes), weight.dtype)
    filled[:, :, : weight.shape[2], :, :per] = weight
    flat = filled.reshape(runs_of(spec), -1, group, spec.groups * blocks, lanes)
    return np.ascontiguousarray(flat.transpose(3, 0, 1, 4, 2))


def tight(spec: ConvSpec, group: int) -> bool:
    """Whether a kernel row is read as it lies in memory, though its pixels are no multiple of ``group``: a
    first layer with 3 channels. The last group reads a little beyond the row, times weights of zero."""
    return spec.in_channels % group > 0 and spec.kernel[1] > 1 and runs_of(spec) == spec.kernel[0]


def runs_of(spec: ConvSpec) -> int:
    """The number of contiguous runs in which the kernel window is read; see `pack`."""
    r, s = spec.kernel
    return r if spec.dilation[1] == 1 and spec.groups == 1 else r * s


def groups_of(spec: ConvSpec, group: int) -> tuple[int, int]:
    """(runs of the kernel window, groups of inputs in each), see `pack`."""
    runs, channels = runs_of(spec), spec.in_channels // spec.groups
    if tight(spec, group):
        return runs, -(-channels * spec.kernel[1] // group)
    return runs, -(-channels // group) * (int(np.prod(spec.kernel)) // runs)


def pad_vector(spec: ConvSpec, values: np.ndarray, lanes: int, together: int = 1) -> np.ndarray:
    """A (K,) vector with the output channels of each group padded to whole blocks with zeros, as those of
    `pack`; several, of (n, K), one behind the other."""
    per = spec.out_channels // spec.groups
    vectors = values.reshape(-1, spec.groups, per)
    width = blocks_of(spec, lanes, together) * lanes
    padded = np.zeros((len(vectors), spec.groups, width), values.dtype)
    padded[:, :, :per] = vectors
    return padded.reshape(-1)
