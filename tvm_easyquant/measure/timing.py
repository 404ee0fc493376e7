"""What rounds of two networks that were timed in turn say, or why they say nothing. No TVM here."""

from __future__ import annotations

import numpy as np

#: quartiles of the rounds' ratios, or a part and its whole, that are further apart are no measurement
UNSTEADY = 1.25


def ratios(mine: np.ndarray, theirs: np.ndarray) -> tuple[float, tuple[float, float]]:
    """(median, quartiles) of theirs / mine over the rounds."""
    low, middle, high = map(float, np.percentile(theirs / mine, (25, 50, 75)))
    return middle, (low, high)


def unsteady(quartiles: tuple[float, float] | None) -> str | None:
    """Why rounds with these quartiles give no figure, if so; None are not known."""
    if quartiles is None or quartiles[1] <= UNSTEADY * quartiles[0]:
        return None
    return (
        f"half of the rounds lie between {quartiles[0]:.2f} and {quartiles[1]:.2f} times as fast: the "
        "machine is busy; stop what else runs, or take more rounds"
    )


def headline(speedup: float, quartiles: tuple[float, float] | None, doubt: str | None) -> str:
    """How fast, with the quartiles of the rounds, or why that cannot be told."""
    if doubt is not None:
        return f"no figure: {doubt}"
    rounds = "" if quartiles is None else f" ({quartiles[0]:.2f} to {quartiles[1]:.2f})"
    return f"{speedup:.2f} times as fast{rounds}"
