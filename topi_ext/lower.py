"""`LowerInteger`, the pass that gives every integer layer its kernel: `topi_ext.relay.lower`, in public."""

from .errors import LoweringError
from .relay.lower import LayerPlan, LowerInteger

__all__ = ["LayerPlan", "LowerInteger", "LoweringError"]
