"""`LowerInteger`, the pass that gives every integer layer its kernel: `topi_ext.relay.lower`, in public."""

from .relay.lower import LayerPlan, LoweringError, LowerInteger

__all__ = ["LayerPlan", "LowerInteger", "LoweringError"]
