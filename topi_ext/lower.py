"""`LowerInteger`, the pass that gives every integer layer its kernel, of the TVM that is installed."""

from .errors import LoweringError
from .planner import LayerChoice

try:
    from .relay.lower import LowerInteger
except ImportError:  # today's apache-tvm has no Relay; where there is no TVM either says so
    from .relax.lower import LowerInteger  # type: ignore[assignment]

__all__ = ["LayerChoice", "LowerInteger", "LoweringError"]
