"""The quantizer as a Relay module pass, `EasyQuant`, and what lowers its result, `LowerInteger`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ..errors import TableError
from ..scales.numerics import QuantConfig
from ..scales.table import ScaleTable
from ..search.find import find
from .framework import tvm  # before what is behind it: it says what to install

# isort: split
from topi_ext.lower import LowerInteger

from .read import from_relay
from .rewrite import rewrite

__all__ = ["EasyQuant", "LowerInteger"]


@tvm.transform.module_pass(opt_level=0, name="EasyQuant")
class EasyQuant:
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

    def __init__(
        self,
        table: ScaleTable | None = None,
        *,
        calibration=None,
        config: QuantConfig | None = None,
        params=None,
        progress=None,
        checkpoint=None,
        preprocess=None,
    ):
        if (table is None) == (calibration is None):
            raise ValueError("EasyQuant takes either a scale table or calibration data")
        self.table, self.calibration, self.params = table, calibration, params
        self.config, self.progress = config or QuantConfig(), progress
        self.checkpoint, self.preprocess = checkpoint, preprocess
        self.warnings: tuple[str, ...] = ()

    def transform_module(self, mod, ctx):
        graph = from_relay(mod, self.params)
        if self.table is not None and self.calibration is None:
            return rewrite(graph, self.table)
        prepared = graph
        if self.table is not None:
            with contextlib.suppress(TableError):  # of another model: found anew below
                prepared = self.table.prepared(graph)
        if self.table is None or self.table.model != prepared.fingerprint:
            found = find(
                graph, self.calibration, self.config, self.checkpoint, self.progress,
                preprocess=self.preprocess,
            )  # fmt: skip
            prepared, self.table, self.warnings = found.graph, found.table, found.warnings
        return rewrite(prepared, self.table)
