"""Pictures as inputs of a network: `samples.images`, in public."""

from .samples.images import ImageError, Preprocess, decode

__all__ = ["ImageError", "Preprocess", "decode"]
