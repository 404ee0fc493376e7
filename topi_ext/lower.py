"""`LowerInteger`, the pass that gives every integer layer its kernel: `topi_ext.relay.lower`, in public."""

from .errors import LoweringError
from .relay.lower import LayerChoice, LowerInteger

__all__ = ["LayerChoice", "LowerInteger", "LoweringError"]
