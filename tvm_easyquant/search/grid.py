"""The candidates of a scale, and how many output positions each stage of the halving sees. No TVM here."""

from __future__ import annotations

import numpy as np

from ..scales.numerics import QuantConfig

#: a candidate that is behind the best by so many standard deviations of the difference is dropped
SAFETY = 4.0
ENOUGH = 512, 8  # output positions in the first stage: of all images, of each


def factors(config: QuantConfig) -> np.ndarray:
    """Candidate factors of S, nearest to 1 first: on a tie the smaller change wins."""
    grid = np.linspace(config.alpha, config.beta, config.grid)
    grid = np.unique(np.append(grid, 1.0))
    return grid[np.argsort(np.abs(np.log(grid)), kind="stable")]


def stages(positions: int, images: int) -> list[float]:
    """The fractions of the output positions that are seen: enough, then four times as many, to all."""
    edges = [1.0]
    while positions * edges[0] >= 4 * max(ENOUGH[0] / images, ENOUGH[1]):
        edges.insert(0, edges[0] / 4)
    return edges
