"""Tuning: our own loop measures every configuration of our kernels, here or on a device of TVM's RPC.

Its records, and AutoTVM's of the same kernels, choose each layer's kernel and set its knobs while they are
applied (`topi_ext.records`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence

from topi_ext import isa, records
from topi_ext.planner import LayerChoice
from topi_ext.relax.lower import choose, kernel_function, lower

from .. import tuning
from ..errors import TuneError, last_line
from ..linking import check_device
from ..network.graph import Graph
from ..scales.layers import choices, stored_times
from ..scales.table import ScaleTable
from ..tuning import Progress, Tuned
from .artefact import needs, target_text
from .build import BUILD_CONFIG, check_cpu, cpu_target, export_to, link_with
from .framework import tvm

TUNERS = (tuning.EXHAUSTIVE,)
SECONDS = 60  # most for one configuration on a device


def layer_choices(graph: Graph, table: ScaleTable, target) -> list[LayerChoice]:
    """The kernel of every integer layer of a graph under its table, from the layers' record."""
    return choices(graph, table, lambda layers: choose(layers, cpu_target(target)))


def layer_times(graph: Graph, table: ScaleTable, target) -> dict[str, float]:
    """{layer: microseconds of its kernel by the stored costs}; TuneError where a kernel has none."""
    return stored_times(layer_choices(graph, table, target), target_text(cpu_target(target)))


def records_for(log: str | os.PathLike, target) -> list[records.Record]:
    """The records of a tuning log, if some of them were measured for the ``-mcpu`` of ``target``.

    Raises TuneError.
    """
    found = tuning.read(log)
    tuning.check_cpu(log, (record.mcpu for record in found), _mcpu(target), target_text(target))
    return found


def untuned(layers: Sequence[LayerChoice], target) -> tuple[int, int]:
    """(kernels without a record, all kernels) of layers under the records applied at the moment."""
    kernels = {(layer.choice.kernel.name, layer.spec.to_json()) for layer in layers}
    known = records.best(_mcpu(cpu_target(target)))
    return len(kernels - known.keys()), len(kernels)


def tune(
    module,
    log: str | os.PathLike,
    target=None,
    *,
    tuner: str = tuning.EXHAUSTIVE,
    trials: int = 64,
    early_stopping: int | None = None,
    alternatives: int = 1,
    device: tuple[str, int, str] | None = None,
    cross_compiler: str | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Measure the kernels of an integer Relax module and append the records to ``log``: `tuning.measure`.

    target: default this CPU. device: a tracker's host and port, and the device's key there; default is this
    machine. cross_compiler: what links for the device, if it is of another architecture. Raises TuneError,
    also when the device is lost on the way; TargetError for code that cannot run here, LinkerMissing and
    UserError where a device needs what this machine cannot link.
    """
    tuning.check_settings(tuner, trials, TUNERS)
    target = cpu_target(target)
    check_device(needs(target).arch, isa.arch_of(""), device, cross_compiler)
    if device is None:
        check_cpu(target)
    else:
        _check(device)
    _, layers = lower(module, target)
    return tuning.measure(
        layers, log, target_text(target), _timer(target, device, cross_compiler),
        tuning.about(str(tvm.__version__), device and device[2]), trials=trials,
        early_stopping=early_stopping, alternatives=alternatives, progress=progress,
    )  # fmt: skip


def _mcpu(target) -> str:
    return str(target.attrs.get("mcpu", ""))


def _timer(target, device, compiler) -> tuning.Timer:
    """Times kernels in this process, or on the device."""

    def of(work):
        arrays = work.arrays
        kinds = [(array.shape, str(array.dtype)) for array in arrays]
        out = work.spec.out_shape, work.spec.out_dtype

        def time(knobs):
            function = kernel_function(work.row, work.spec, kinds, knobs)
            function = function.with_attr("global_symbol", "main")
            with tvm.transform.PassContext(opt_level=3, config=BUILD_CONFIG):
                built = tvm.compile(tvm.IRModule({"main": function}), target)
            if device is not None:
                return _on_device(device, built, arrays, out, compiler)
            return _seconds(built.jit(), tvm.cpu(), arrays, out)

        return time

    return of


def _seconds(module, cpu, arrays, out) -> float:
    """Microseconds of a call of ``main``; out: (shape, dtype) of its last argument."""
    arguments = [tvm.runtime.tensor(array, cpu) for array in arrays]
    arguments.append(tvm.runtime.empty(*out, device=cpu))
    found = module.time_evaluator("main", cpu, **tuning.TIMER)(*arguments)
    return 1e6 * min(found.results)


# -- a device


def _check(device) -> None:
    host, port, key = device
    tuning.check_tracker(host, port, key, needs=" (it needs: pip install tornado)")


def _on_device(device, built, arrays, out, compiler) -> float:
    """`_seconds` on a device; TuneError if it is lost."""
    from tvm import rpc

    host, port, key = device
    options = link_with(compiler)
    _check(device)  # TVM would wait for a lost one without a word
    with tempfile.TemporaryDirectory() as folder:
        library = os.path.join(folder, "kernel.so")
        export_to(library, built, **options)
        try:
            session = rpc.connect_tracker(host, port).request(key, session_timeout=SECONDS)
            session.upload(library)
            found = _seconds(session.load_module("kernel.so"), session.cpu(), arrays, out)
            session.remove("kernel.so")
            return found
        except (RuntimeError, OSError) as error:
            _check(device)
            raise TuneError(
                f"the device {key} of {host}:{port} failed: {last_line(error)}; the same command goes on "
                "from the records"
            ) from None
