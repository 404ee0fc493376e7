"""Accuracy on labelled data, and two networks on the same samples: `samples.labelled` and
`measure.accuracy`, in public.
"""

from .errors import EvaluationError
from .measure.accuracy import TOP, Paired, PairedSet, SetScores, compare, evaluate, top
from .samples.labelled import LabelledSet, load, named

__all__ = [
    "TOP", "EvaluationError", "LabelledSet", "Paired", "PairedSet", "SetScores", "compare", "evaluate",
    "load", "named", "top",
]  # fmt: skip
