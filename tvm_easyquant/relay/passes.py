"""The quantizer as a Relay module pass, `EasyQuant`, and what lowers its result, `LowerInteger`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..search.find import Finder
from .framework import tvm  # before what is behind it: it says what to install

# isort: split
from topi_ext.lower import LowerInteger

from .read import from_relay
from .rewrite import rewrite

__all__ = ["EasyQuant", "LowerInteger"]


@tvm.transform.module_pass(opt_level=0, name="EasyQuant")
class EasyQuant(Finder):
    """Float Relay module in, integer Relay module of standard qnn ops out.

    Compose it in ``tvm.transform.Sequential`` before ``topi_ext.lower.LowerInteger``. Give it either
    a ``table`` found before, or ``calibration`` data and a ``config`` to search one; the table of the
    module that it saw last is then its attribute ``table``, and what is suspicious is in ``warnings``, in
    lines. A table serves the network it was found for: another module is searched anew, and a table that
    was given is refused. params are bound to the module first. checkpoint, preprocess: as
    `tvm_easyquant.quantize` takes them.

    Raises what `tvm_easyquant.quantize` raises.
    """

    if TYPE_CHECKING:

        def __call__(self, mod):
            """Run the pass on a module, as `tvm.transform.Pass` does."""

    def transform_module(self, mod, ctx):
        return rewrite(*self.of(from_relay(mod, self.params)))
