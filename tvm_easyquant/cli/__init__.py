"""The command line ``tvmc-easyquant``; also ``python -m tvm_easyquant.cli``."""

from .root import main, run

__all__ = ["main", "run"]
