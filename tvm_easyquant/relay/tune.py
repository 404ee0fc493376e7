"""Tuning: AutoTVM measures our kernels on the CPU at hand, and its records choose among them.

The spaces are small (a few dozen points, every one of them legal and exact). The records are AutoTVM's own
and are applied with ``autotvm.apply_history_best``: they set each kernel's knobs and, where several kernels
of a layer were measured for the same ``-mcpu``, which kernel it gets (`topi_ext.planner.choose`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from topi_ext import isa, manifest
from topi_ext.conv2d import Bound
from topi_ext.lower import LayerChoice, LowerInteger
from topi_ext.relay import op as relay_op
from topi_ext.relay.lower import choose

from ..errors import TuneError
from ..network.graph import Graph
from ..scales.layers import choices, stored_times
from ..scales.table import ScaleTable
from .build import cpu_target
from .framework import no_tophub

Progress = Callable[[int, int, str], None]
TUNERS = ("xgb", "ga", "random", "grid")
BUILD_SECONDS = 60  # most for compiling one configuration; AutoTVM's 10 are not enough on a busy computer


@dataclass
class Tuned:
    """What a tuning run did: kernels in all, measured now, taken from the log, without a valid time."""

    kernels: int = 0
    measured: int = 0
    resumed: int = 0
    failed: list[str] = field(default_factory=list)
    trials: int = 0

    def __str__(self):
        text = f"{self.kernels} kernels: {self.measured} measured in {self.trials} trials"
        text += f", {self.resumed} already in the log" if self.resumed else ""
        return text + (f", {len(self.failed)} without a valid time" if self.failed else "")


def read_log(path: str | os.PathLike) -> list[tuple]:
    """The records of a tuning log, as AutoTVM's (input, result) pairs; [] if there is no file.

    Raises TuneError naming the line that is no record, and what to do with it.
    """
    from tvm import autotvm

    path = Path(path)
    records: list = []
    if not path.exists():
        return records
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TuneError(f"{path} is not a tuning log: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            record = autotvm.record.decode(line)
        except Exception:  # noqa: BLE001  # whatever a half-written line makes of the decoder
            record = None
        if record is None:
            raise TuneError(
                f"{path}, line {number} is not a tuning record of this TVM (an interrupted write leaves a "
                "half line); delete the line"
            )
        records.append(record)
    return records


def records_for(path: str | os.PathLike, target) -> list[tuple]:
    """The records of a tuning log, if some of them were measured for the ``-mcpu`` of ``target``.

    AutoTVM itself ignores ``-mcpu`` and would apply the records of any CPU. Raises TuneError.
    """
    if not os.path.exists(path):
        raise TuneError(f"--tuning-records: there is no file {path}")
    records, cpu = read_log(path), str(target.attrs.get("mcpu", ""))
    cpus = sorted({str(record.target.attrs.get("mcpu", "")) for record, _ in records})
    if cpu not in cpus:
        raise TuneError(
            f"--tuning-records: {path} was measured for -mcpu {', '.join(cpus) or 'nothing'}, the target "
            f"is {target}: tune on this CPU (tune-kernels), or leave the log out"
        )
    return records


def check_compiler(name: str) -> None:
    """TuneError if there is no such program here."""
    if shutil.which(name) is None:
        raise TuneError(
            f"there is no compiler {name} here; for 64-bit ARM on Debian and Ubuntu: apt-get install "
            "g++-aarch64-linux-gnu, then --cross-compiler aarch64-linux-gnu-g++"
        )


def check_tracker(host: str, port: int, key: str, seconds: float = 10) -> None:
    """TuneError if no tracker answers in time, or if it has no device called ``key``.

    AutoTVM's own check retries for a minute and then fails in a thread.
    """
    from tvm.rpc import base

    start = f"start one with: python -m tvm.exec.rpc_tracker --port {port} --port-end {port + 1}"
    try:
        with socket.create_connection((host, port), timeout=seconds) as connection:
            connection.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
            (magic,) = struct.unpack("<i", base.recvall(connection, 4))
            if magic != base.RPC_TRACKER_MAGIC:
                raise TuneError(f"{host}:{port} is not an RPC tracker; {start}")
            base.sendjson(connection, [base.TrackerCode.SUMMARY])
            _, summary = base.recvjson(connection)
    except TimeoutError:
        raise TuneError(f"the tracker {host}:{port} does not answer within {seconds} s; {start}") from None
    except OSError as error:
        raise TuneError(f"no tracker at {host}:{port} ({error.strerror or error}); {start}") from None
    keys = sorted({str(server["key"]).partition(":")[2] for server in summary["server_info"]})
    if key not in keys:
        raise TuneError(
            f"the tracker {host}:{port} has no device {key!r}; it has {', '.join(keys) or 'none'}: start "
            "the device's server with this key"
        )


def layer_choices(graph: Graph, table: ScaleTable, target) -> list[LayerChoice]:
    """The kernel of every integer layer of a graph under its table, from the layers' record.

    The same, and in the same order, that `LowerInteger` chooses for the module of `rewrite`.
    """
    return choices(graph, table, lambda layers: choose(layers, cpu_target(target)))


def layer_times(graph: Graph, table: ScaleTable, target) -> dict[str, float]:
    """{layer: microseconds of its kernel by the stored costs}; TuneError where a kernel has none."""
    return stored_times(layer_choices(graph, table, target), target)


def tasks(layers: Sequence[LayerChoice], target, alternatives: int = 1) -> list:
    """AutoTVM tasks of the layers' kernels and of the next ``alternatives`` legal ones of each layer.

    Without alternatives these are the tasks that ``autotvm.task.extract_from_program`` finds.
    """
    from tvm import autotvm, te

    relay_op.register()
    made: dict = {}
    for layer in layers:
        rows = [layer.choice.kernel]
        for name, _ in layer.choice.slower:
            row = manifest.kernel(name)
            if len(rows) <= alternatives and isinstance(row.proves(layer.spec, layer.weight), Bound):
                rows.append(row)
        for row in rows:
            spec = layer.spec
            vectors = np.zeros(spec.out_channels, np.int32), np.ones(spec.out_channels, np.float32)
            arrays = row.pack(spec, layer.weight, *vectors)
            shapes = [((spec.batch, spec.height, spec.width, spec.in_channels), "uint8")]
            shapes += [(a.shape, str(a.dtype)) for a in arrays]
            shapes += [(spec.out_shape, "uint8")] if spec.epilogue == "add" else []
            inputs = [te.placeholder(shape, dtype) for shape, dtype in shapes]
            name = relay_op.template_name(row)
            task = autotvm.task.create(name, (*inputs, spec.to_json()), target)
            made.setdefault(task.workload, task)
    return list(made.values())


def tune(
    module,
    log: str | os.PathLike,
    target=None,
    *,
    tuner: str = "xgb",
    trials: int = 64,
    early_stopping: int | None = None,
    alternatives: int = 1,
    runner=None,
    cross_compiler: str | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Measure the kernels of an integer Relay module and append the records to ``log``.

    target: default this CPU. tuner: one of `TUNERS`. trials: most configurations of one kernel.
    early_stopping: stop a kernel after so many trials without a better one. alternatives: how many slower
    legal kernels of each layer are measured too. runner: ``autotvm.RPCRunner`` for another device; default
    is this machine. cross_compiler: what links for the device, if it is of another architecture. Every
    record is written as it is made, and a configuration in the log is not measured again unless the device
    was lost, so an interrupted run goes on where it stopped. Raises TuneError, also when the tracker or the
    device is lost on the way.
    """
    target = _checked(target, tuner, trials, runner, cross_compiler)
    done = _done(log)
    _check_device(runner)
    lower = LowerInteger(target)
    lower(module)
    work = tasks(lower.layers, target, alternatives)
    result = Tuned(kernels=len(work))
    with _measuring(runner, cross_compiler) as options:
        for i, task in enumerate(work, 1):
            known = done.get((str(target), task.workload), set())
            wanted = min(trials, len(task.config_space)) - len(known)
            if wanted <= 0:
                result.resumed += 1
                continue

            def seen(count, i=i, name=task.name):
                result.trials += count
                if progress is not None:
                    progress(i, len(work), name)

            _check_device(runner)  # AutoTVM would wait for a lost one without a word
            settings = {"n_trial": wanted, "early_stopping": early_stopping, "measure_option": options}
            valid = _measure(_tuner(tuner, task, known), settings, log, runner, seen)
            result.measured += 1
            if not (valid or known):
                result.failed.append(task.name)
    return result


def _checked(target, tuner, trials, runner, cross_compiler):
    """The tvm.target.Target to tune for; TuneError if something is set that cannot work."""
    if tuner not in TUNERS:
        raise TuneError(f"tuner is {tuner!r}; use one of {', '.join(TUNERS)}")
    if trials < 1:
        raise TuneError(f"trials is {trials}; use 1 or more")
    target = cpu_target(target)
    arch = isa.arch_of(str(target.attrs.get("mtriple", "")))
    if arch != isa.arch_of("") and (runner is None or cross_compiler is None):
        raise TuneError(
            f"kernels for {arch} cannot be measured here: name a device that can (--rpc-tracker, "
            f"--rpc-key) and what links for it, such as --cross-compiler {arch}-linux-gnu-g++"
        )
    if cross_compiler is not None:
        check_compiler(cross_compiler)
    return target


def _lost(outcome) -> bool:
    """Whether a trial says nothing about its configuration, since the device was lost."""
    from tvm.autotvm.measure import MeasureErrorNo as Number

    return outcome.error_no in (Number.RUNTIME_DEVICE, Number.RUN_TIMEOUT, Number.UNKNOWN_ERROR)


def _done(log) -> dict[tuple, set[int]]:
    """{(target, AutoTVM workload): indices of the configurations that the log has}."""
    done: dict[tuple, set[int]] = {}
    for found, outcome in read_log(log):
        if not _lost(outcome):
            done.setdefault((str(found.target), found.task.workload), set()).add(found.config.index)
    return done


def _check_device(runner) -> None:
    """TuneError if the device of an ``autotvm.RPCRunner`` is not there; None and others have none."""
    host, port, key = (getattr(runner, name, None) for name in ("host", "port", "key"))
    if host and port and key:
        check_tracker(host, port, key)


@contextlib.contextmanager
def _measuring(runner, cross_compiler) -> Iterator[dict]:
    """AutoTVM's measure option; its threads end with it, whatever happens."""
    from tvm import autotvm
    from tvm.contrib import cc

    link = cc.cross_compiler(cross_compiler) if cross_compiler else "default"
    builder = autotvm.LocalBuilder(n_parallel=1, build_func=link, timeout=BUILD_SECONDS)
    runner = runner or autotvm.LocalRunner(number=4, repeat=3, min_repeat_ms=20)
    try:
        yield autotvm.measure_option(builder, runner)
    finally:
        autotvm.env.GLOBAL_SCOPE.in_tuning = False  # an exception leaves it set
        for part in (builder, runner):
            part.executor._threadpool.shutdown()  # by the last trial's own thread it would be an error


def _measure(tuner, settings, log, runner, seen) -> bool:
    """Measure one kernel and append the records to the log; whether a trial gave a valid time.

    seen(count) is called after each batch of trials. TuneError where one lost the device.
    """
    from tvm import autotvm

    valid: list = []

    def batch(_, inputs, results):
        valid.extend(r for r in results if r.error_no == 0)
        seen(len(inputs))
        if any(map(_lost, results)):
            _check_device(runner)

    with no_tophub():
        tuner.tune(callbacks=[autotvm.callback.log_to_file(os.fspath(log)), batch], **settings)
    return bool(valid)


def _tuner(name, task, done):
    """The tuner ``name`` for the configurations of a task that are not in ``done`` (their indices; the
    genetic algorithm may come back to them). The default configuration, index 0, comes first: few trials
    may not find a better one, and a log without it would be slower than none."""
    from tvm.autotvm import tuner

    if name == "xgb":
        # the loop features of other tuners need a TE schedule; "rank" is gone from XGBoost 2
        made = tuner.XGBTuner(task, feature_type="knob", loss_type="rank-binary")
    elif name == "ga":
        size = len(task.config_space)
        made = tuner.GATuner(task, pop_size=min(50, size), elite_num=min(3, size))
        made.genes[0] = task.config_space.point2knob(0)
        return made
    else:
        made = tuner.RandomTuner(task) if name == "random" else tuner.GridSearchTuner(task)
    made.visited = type(made.visited)(done)
    if name == "grid":
        made.index = next(i for i in range(made.begin_idx, made.end_idx) if i not in done)
    elif 0 not in done:
        others = made.next_batch

        def default_first(size):
            made.next_batch = others
            made.visited = type(made.visited)([*made.visited, 0])
            return [task.config_space.get(0)]

        made.next_batch = default_first
    return made


def untuned(layers: Sequence[LayerChoice], target) -> tuple[int, int]:
    """(kernels without a record, all kernels) of layers under the records applied at the moment."""
    kernels = {(layer.choice.kernel.name, layer.spec.to_json()) for layer in layers}
    known = relay_op.recorded(cpu_target(target))
    return sum(key not in known for key in kernels), len(kernels)
