"""Streaming histograms of absolute values, and the thresholds that calibrators read off them.

The bins are [i * 2**e, (i + 1) * 2**e). When a larger value comes, e grows and whole bins are merged:
floor(floor(x / 2**e) / 2) is floor(x / 2**(e + 1)), so a histogram depends on the values alone, not on
their order nor on how they were split among workers, and its memory not on their number.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

BITS = 12  # 4,096 bins, of which 2,048 or more lie below the largest value
BINS = 2**BITS
LARGEST = 127  # powers of two below are float32, and so are their inverses


@dataclass
class Histogram:  # noqa: PLW1641  # it grows, so it has no hash
    """Counts of |x|. exponent: e, None while only zeros were seen; zeros: how many values were exactly 0
    (they are in no bin); counts: int64 (BINS,); absmax: the largest |x|."""

    exponent: int | None = None
    zeros: int = 0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    absmax: float = 0.0

    def __eq__(self, other):
        mine, theirs = ((h.exponent, h.zeros, h.absmax) for h in (self, other))
        return mine == theirs and np.array_equal(self.counts, other.counts)

    def see(self, values: np.ndarray) -> None:
        """Count finite float32 values of any shape."""
        values = np.abs(values).ravel()
        absmax = float(values.max(initial=0.0))
        if absmax > 0:
            zeros, power = int(np.count_nonzero(values == 0)), -self._grow(absmax)
            if abs(power) < LARGEST:  # the same, four times as fast
                bins = (values * np.float32(2.0**power)).astype(np.int32)
            else:
                bins = np.ldexp(values, power).astype(np.int32)
            self.counts += np.bincount(bins, minlength=BINS)
            self.counts[0] -= zeros
            self.zeros += zeros
        else:
            self.zeros += values.size

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram, which stays as it is."""
        self.zeros += other.zeros
        if other.exponent is not None:
            exponent = self._grow(other.absmax)
            self.counts += _coarser(other.counts, exponent - other.exponent)

    def _grow(self, absmax: float) -> int:
        """Make room for ``absmax``; the exponent that the bins have then."""
        exponent = int(np.frexp(absmax)[1]) - BITS  # absmax < BINS * 2**exponent
        if self.exponent is None:
            self.exponent = exponent
        elif exponent > self.exponent:
            self.counts = _coarser(self.counts, exponent - self.exponent)
            self.exponent = exponent
        self.absmax = max(self.absmax, absmax)
        return self.exponent

    def used(self) -> tuple[np.ndarray, float]:
        """(counts of the bins up to the largest value, width of a bin)."""
        assert self.exponent is not None  # noqa: S101  # zeros alone have no threshold to ask for
        width = float(np.ldexp(1.0, self.exponent))
        return self.counts[: int(self.absmax / width) + 1], width


def between(histogram: Histogram, negative: Histogram, levels: int) -> tuple[float, float]:
    """The ends (low, high), of 13 parts of the negative and 19 of the positive values' range, that make the
    least squared rounding and clipping error in ``levels`` steps with zero among them.

    histogram: of all absolute values; negative: of those of the negative ones.
    """
    counts, width = histogram.used()
    below = np.zeros(len(counts))
    if negative.exponent is not None:
        assert histogram.exponent is not None  # noqa: S101  # it holds those values, too
        below += _coarser(negative.counts, histogram.exponent - negative.exponent)[: len(counts)]
    sides = below, counts - below
    centres = width * (np.arange(len(counts)) + 0.5)
    ends = [width * (np.flatnonzero(side).max(initial=-1) + 1) for side in sides]
    used = [
        (side[:n], centres[:n]) for side, n in zip(sides, (round(e / width) for e in ends), strict=True)
    ]
    best, found = np.inf, (0.0, 0.0)
    for low in np.linspace(0.1, 1, 13) * ends[0] if ends[0] else (0.0,):
        for high in np.linspace(0.1, 1, 19) * ends[1] if ends[1] else (0.0,):
            step = (low + high) / levels
            zero = np.rint(low / step)
            total = 0.0
            for (side, values), top in zip(used, (zero, levels - zero), strict=True):
                error = values - step * np.minimum(np.rint(values / step), top)
                total += float(side @ (error * error))
            if total < best:
                best, found = total, (-float(low), float(high))
    return found


def _coarser(counts, powers):
    """The counts in bins ``2**powers`` times as wide."""
    if powers >= BITS:
        wide = np.zeros(BINS, np.int64)
        wide[0] = counts.sum()
        return wide
    merged = counts.reshape(-1, 2**powers).sum(axis=1)
    return np.append(merged, np.zeros(BINS - len(merged), np.int64))


def percentile(histogram: Histogram, percent: float) -> float:
    """The upper edge of the bin in which ``percent`` of all absolute values, zeros included, end."""
    counts, width = histogram.used()
    wanted = percent / 100 * (histogram.zeros + counts.sum()) - histogram.zeros
    edge = width * (int(np.searchsorted(np.cumsum(counts), wanted)) + 1)
    return min(edge, histogram.absmax)


def kl(histogram: Histogram, levels: int) -> float:
    """The threshold whose clipped and quantized distribution is nearest in relative entropy.

    The calibration of TensorRT (Migacz, GTC 2017): for the first i bins, P is the histogram with all that
    lies beyond added to its last bin, Q the same bins in ``levels`` groups of equal counts where P is not
    zero. Zeros are left out, as in ncnn.
    """
    counts, width = histogram.used()
    counts = counts.astype(np.float64)
    if len(counts) <= levels:
        return histogram.absmax
    best, found = np.inf, histogram.absmax
    present = (counts > 0).astype(np.float64)
    for last in range(levels, len(counts) + 1, max(1, len(counts) // 512)):
        p = counts[:last].copy()
        p[-1] += counts[last:].sum()
        edges = np.arange(levels) * last // levels
        sizes = np.diff(np.append(edges, last))
        filled = np.add.reduceat(present[:last], edges)
        mean = np.add.reduceat(counts[:last], edges) / np.maximum(filled, 1)
        q = np.repeat(mean, sizes) * present[:last]
        total_p, total_q = p.sum(), q.sum()
        if not total_q:
            continue
        some = p > 0
        ratio = (p[some] / total_p) / np.maximum(q[some] / total_q, 1e-9)
        divergence = float((p[some] / total_p) @ np.log(ratio))
        if divergence < best:
            best, found = divergence, min(last * width, histogram.absmax)
    return found


def mse(histogram: Histogram, levels: int) -> float:
    """The threshold, of 100 up to the largest value, with the least squared rounding and clipping error."""
    counts, width = histogram.used()
    centres = width * (np.arange(len(counts)) + 0.5)
    best, found = np.inf, histogram.absmax
    for part in range(100, 0, -1):
        threshold = histogram.absmax * part / 100
        step = threshold / levels
        error = centres - step * np.minimum(np.rint(centres / step), levels)
        total = float(counts @ (error * error))
        if total < best:
            best, found = total, threshold
    return found
