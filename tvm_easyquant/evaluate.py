"""Accuracy on labelled data, and two networks on the same samples: `measure.accuracy`, in public."""

from .measure.accuracy import TOP, EvaluationError, LabelledSet, Paired, compare, evaluate, load, named, top

__all__ = [
    "TOP", "EvaluationError", "LabelledSet", "Paired", "compare", "evaluate", "load", "named", "top",
]  # fmt: skip
