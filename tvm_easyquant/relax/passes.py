"""The quantizer as a Relax module pass, `EasyQuant`, what lowers its result, and what compiles that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import TableError, TargetError
from ..search.find import Finder
from .framework import keep_errors, relax, tvm  # before what is behind it: it says what to install

# isort: split
from topi_ext.relax import lower as lowering

from . import build
from .read import from_relax
from .rewrite import rewrite

__all__ = ["EasyQuant", "LowerInteger", "pipeline", "register_pipeline"]

#: what `register_pipeline` calls ours
NAME = "easyquant"


@tvm.transform.module_pass(opt_level=0, name="EasyQuant")
class EasyQuant(Finder):
    """Float Relax module in, integer Relax module out, which any pipeline of TVM's compiles.

    Compose it in ``tvm.transform.Sequential`` before `LowerInteger`, and compile what comes of both with
    ``relax_pipeline=eq.pipeline(target)``. Each layer is a private function with the attributes
    ``Composite``, ``easyquant.name`` and ``easyquant.spec``; float operators are between a dequantize and a
    quantize. What it takes, keeps and raises is what the other host's pass does: see `search.find.Finder`;
    params: {name: array} of parameters of ``main`` that are not bound.
    """

    if TYPE_CHECKING:

        def __call__(self, mod):
            """Run the pass on a module, as `tvm.transform.Pass` does."""

    def __init__(self, *arguments, **options):
        keep_errors()
        super().__init__(*arguments, **options)

    def transform_module(self, mod, ctx):
        graph = from_relax(mod, self.params)
        try:
            return rewrite(*self.of(graph))
        except TableError as error:
            if self.table is None or {*self.table.activations, *self.table.weights} <= set(graph.nodes):
                raise
            raise TableError(
                f"{error}; names are the module's here, not those of a file that it came from: make the "
                "table from this module (calibration=)"
            ) from None


def LowerInteger(target=None):
    """The pass `topi_ext.lower.LowerInteger` for a CPU; target: as `eq.build` takes it, None is this CPU.

    Its ``layers`` are, after a run, the `LayerChoice` of each layer. Raises TargetError, LoweringError.
    """
    keep_errors()
    return lowering.LowerInteger(build.cpu_target(target))


def pipeline(target=None):
    """The pass that `tvm.compile` takes as ``relax_pipeline``, for a CPU; target: as `LowerInteger`'s.

    It fuses and schedules what is not ours, which TVM's default for CPUs does not; our kernels stay as
    they are. Raises TargetError, in `tvm.compile`, too, where that compiles for a target that lacks the
    instructions of the kernels.
    """
    keep_errors()
    return build.pipeline(build.cpu_target(target))


def register_pipeline() -> None:
    """Let `tvm.compile` take ``relax_pipeline="easyquant"``: `pipeline` for the target it compiles for."""
    keep_errors()

    @tvm.transform.module_pass(opt_level=0, name="easyquant_pipeline")
    def named(module, context):
        target = tvm.target.Target.current(allow_none=True)
        if target is None:
            raise TargetError("tvm.compile was given no target; give it that of LowerInteger")
        return build.pipeline(build.cpu_target(target))(module)

    if NAME not in relax.pipeline.PIPELINE_MAP:
        relax.register_pipeline(NAME)(lambda: named)
