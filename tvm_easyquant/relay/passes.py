"""`EasyQuant`: the quantizer as a Relay module pass."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..network.equalize import equalized
from ..scales.calibrate import calibrate, start_table
from ..scales.numerics import QuantConfig
from ..scales.partition import plan
from ..scales.table import ScaleTable
from ..search.driver import search
from .framework import tvm
from .read import from_relay
from .rewrite import rewrite


@tvm.transform.module_pass(opt_level=0, name="EasyQuant")
class EasyQuant:
    """Float Relay module in, integer Relay module of standard qnn ops out.

    Compose it in ``tvm.transform.Sequential`` before ``topi_ext.lower.LowerInteger``. Give it either
    a ``table`` found before, or ``calibration`` data and a ``config`` to search one; the table it
    used is then its attribute ``table``. params are bound to the module first.

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
    ):
        if (table is None) == (calibration is None):
            raise ValueError("EasyQuant takes either a scale table or calibration data")
        self.table, self.calibration, self.params = table, calibration, params
        self.config, self.progress = config or QuantConfig(), progress

    def transform_module(self, mod, ctx):
        graph = from_relay(mod, self.params)
        if self.table is None:
            if self.config.equalize:
                graph = equalized(graph)
            plan_ = plan(graph, self.config.skip)
            found = calibrate(graph, plan_, self.calibration, self.config, progress=self.progress)
            make = search if self.config.searches else start_table
            self.table = replace(make(graph, plan_, found, self.config), data=found.facts)
        return rewrite(graph, self.table)
