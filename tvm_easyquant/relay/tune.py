"""Tuning: AutoTVM, or our own loop, measures our kernels on the CPU at hand, and records choose among them.

The records are AutoTVM's own, or ours (`tuning`), which become AutoTVM's where they are read. They are
applied with ``autotvm.apply_history_best``: they set each kernel's knobs and, where several kernels of a
layer were measured for the same ``-mcpu``, which kernel it gets (`topi_ext.planner.choose`).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import tvm
from tvm import te

from topi_ext import isa, manifest
from topi_ext.emit import DefaultKnobs
from topi_ext.lower import LayerChoice, LowerInteger
from topi_ext.problem import ConvSpec
from topi_ext.records import Record
from topi_ext.relay import op as relay_op
from topi_ext.relay.lower import choose

from .. import tuning
from ..errors import TuneError
from ..linking import check_device
from ..network.graph import Graph
from ..scales.layers import choices, stored_times
from ..scales.table import ScaleTable
from ..tuning import Progress, Tuned
from .build import BUILD_CONFIG, check_cpu, cpu_target
from .framework import no_tophub

TUNERS = ("xgb", "ga", "random", "grid", tuning.EXHAUSTIVE)
BUILD_SECONDS = 60  # most for compiling one configuration; AutoTVM's 10 are not enough on a busy computer


def read_log(path: str | os.PathLike) -> list[tuple]:
    """The records of a tuning log, as AutoTVM's (input, result) pairs; [] if there is no file.

    Those of ours that name a kernel of another version are left out. Raises TuneError naming the line that
    is no record, and what to do with it.
    """
    from tvm import autotvm

    rows, records = {row.name for row in manifest.KERNELS}, []
    for number, line in tuning.lines(path):
        mine = tuning.ours(path, number, line)
        if mine is not None:
            if mine.kernel in rows:
                records.append(_as_autotvm(mine))
            continue
        try:
            record = autotvm.record.decode(line)
        except Exception:  # noqa: BLE001  # whatever a half-written line makes of the decoder
            record = None
        if record is None:
            raise tuning.damaged(path, number)
        records.append(record)
    return records


def records_for(path: str | os.PathLike, target) -> list[tuple]:
    """The records of a tuning log, if some of them were measured for the ``-mcpu`` of ``target``.

    AutoTVM itself ignores ``-mcpu`` and would apply the records of any CPU. Raises TuneError.
    """
    records = read_log(path)
    cpus = {str(record.target.attrs.get("mcpu", "")) for record, _ in records}
    tuning.check_cpu(path, cpus, str(target.attrs.get("mcpu", "")), target)
    return records


def history(log: str | os.PathLike | None, target) -> contextlib.AbstractContextManager:
    """While it is entered, `records_for` decide; None is no log. Raises TuneError."""
    from tvm import autotvm

    return autotvm.apply_history_best(records_for(log, target)) if log else contextlib.nullcontext()


@contextlib.contextmanager
def autotvm_log(path: str | os.PathLike | None) -> Iterator[str | None]:
    """The path of a log that AutoTVM reads by itself: ``path``, or a copy, if records of ours are in it."""
    from tvm import autotvm

    if path is None or all(tuning.ours(path, *line) is None for line in tuning.lines(path)):
        yield None if path is None else os.fspath(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "records.log")
        with open(copy, "w", encoding="utf-8") as file:
            file.writelines(autotvm.record.encode(*record) + "\n" for record in read_log(path))
        yield copy


def _as_autotvm(record: Record) -> tuple:
    """A record of ours as AutoTVM's pair; with the default configuration, if this version does not have the
    record's."""
    from tvm import autotvm

    task = _task(record.kernel, record.spec, record.target)
    space, knobs = task.config_space.space_map, dict(record.knobs)
    index, stride = 0, 1
    for name, knob in space.items():
        values = [entity.val for entity in knob.entities]
        if knobs.get(name) not in values:
            index = 0
            break
        index, stride = index + stride * values.index(knobs[name]), stride * len(values)
    seconds = 1e-6 * record.us
    result = autotvm.MeasureResult((seconds,), 0, seconds, 0)
    return autotvm.MeasureInput(task.target, task, task.config_space.get(index)), result


@cache
def _task(kernel: str, spec: str, target: str):
    """AutoTVM's task of a kernel for a layer."""
    problem = ConvSpec.from_json(spec)
    weight = np.zeros(problem.weight_shape, np.int8)  # no shape depends on its numbers
    work = tuning.Work(manifest.kernel(kernel), problem, weight)
    return _create(work, tvm.target.Target(target))


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
    return [_create(work, target) for work in tuning.kernels(layers, alternatives)]


def _create(work: tuning.Work, target):
    from tvm import autotvm

    relay_op.register()
    inputs = [te.placeholder(a.shape, str(a.dtype)) for a in work.arrays]
    arguments = (*inputs, work.spec.to_json())
    return autotvm.task.create(relay_op.template_name(work.row), arguments, target)


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

    target: default this CPU. tuner: one of `TUNERS`; the last, our own loop, writes our records, the others
    AutoTVM's. trials: most configurations of one kernel. early_stopping: stop a kernel after so many
    trials without a better one. alternatives: how many slower legal kernels of each layer are
    measured too. runner: ``autotvm.RPCRunner`` for another device; default is this machine.
    cross_compiler: what links for the device, if it is of another architecture. Every record is written as
    it is made, and a configuration in the log is not measured again unless the device was lost, so an
    interrupted run goes on where it stopped. Raises TuneError, also when the tracker or the device is lost
    on the way.
    """
    target = _checked(target, tuner, trials, runner, cross_compiler)
    if tuner == tuning.EXHAUSTIVE:
        return _exhaustive(module, log, target, runner, trials, early_stopping, alternatives, progress)
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
                    progress(i, len(work), f"kernel {i} of {len(work)}, {name}")

            _check_device(runner)  # AutoTVM would wait for a lost one without a word
            settings = {"n_trial": wanted, "early_stopping": early_stopping, "measure_option": options}
            valid = _measure(_tuner(tuner, task, known), settings, log, runner, seen)
            result.measured += 1
            if not (valid or known):
                result.failed.append(task.name)
    return result


def _exhaustive(module, log, target, runner, trials, early_stopping, alternatives, progress) -> Tuned:
    """`tuning.measure` on this machine."""
    if runner is not None:
        raise TuneError("tuner 'exhaustive' measures on this machine only; for a device use grid")
    check_cpu(target)
    lower = LowerInteger(target)
    lower(module)
    about = tuning.about(str(tvm.__version__))
    return tuning.measure(
        lower.layers, log, str(target), _timer(target), about, trials=trials,
        early_stopping=early_stopping, alternatives=alternatives, progress=progress,
    )  # fmt: skip


def _timer(target) -> tuning.Timer:
    """Times kernels in this process, built by TVM as `build` does."""

    def of(work):
        arrays = [tvm.nd.array(array) for array in work.arrays]
        out = tvm.nd.empty(work.spec.out_shape, work.spec.out_dtype)
        inputs = [te.placeholder(a.shape, a.dtype) for a in arrays]

        def time(knobs):
            made = work.row.compute(DefaultKnobs(**dict(knobs)), work.spec, *inputs)
            with tvm.transform.PassContext(opt_level=3, config=BUILD_CONFIG):
                function = tvm.build(te.create_schedule(made.op), [*inputs, made], target)
            run = function.time_evaluator(function.entry_name, tvm.cpu(), **tuning.TIMER)
            return 1e6 * min(run(*arrays, out).results)

        return time

    return of


def _checked(target, tuner, trials, runner, cross_compiler):
    """The tvm.target.Target to tune for; TuneError if something is set that cannot work."""
    tuning.check_settings(tuner, trials, TUNERS)
    target = cpu_target(target)
    arch = isa.arch_of(str(target.attrs.get("mtriple", "")))
    check_device(arch, isa.arch_of(""), runner, cross_compiler)
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
        tuning.check_tracker(host, port, key)


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
