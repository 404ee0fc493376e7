"""Accuracy on labelled data, and two networks on the same samples: `samples.labelled`,
`measure.accuracy` and `measure.networks`, in public.
"""

from .errors import EvaluationError
from .measure.accuracy import TOP, Paired, PairedSet, SetScores, compare, evaluate, top
from .measure.networks import Evaluated
from .samples.labelled import LabelledSet, load, named

__all__ = [
    "TOP", "Evaluated", "EvaluationError", "LabelledSet", "Paired", "PairedSet", "SetScores", "compare",
    "evaluate", "load", "named", "top",
]  # fmt: skip
