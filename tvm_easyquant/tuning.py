"""Tuning on any host: the file of records, the loop that measures all configurations, the tracker.

A record is a line of JSON; `read` takes lines of ours and of AutoTVM, in one file, too, so that what one
host measured chooses the kernels of the other. The spaces are small (a few dozen points, every one of them
legal and exact), so that all of a space can be tried and no model of costs is needed.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from topi_ext.function import uses_other
from topi_ext.problem import Bound, ConvSpec
from topi_ext.records import Knobs, Record

from . import __version__
from .errors import TuneError
from .files import append_text
from .host import describe_machine

if TYPE_CHECKING:
    from topi_ext.manifest import Kernel
    from topi_ext.planner import LayerChoice

Progress = Callable[[int, int, str], None]
#: the tuner that is our own loop
EXHAUSTIVE = "exhaustive"
#: the form of a record's line, which is its first key's value
FORM = 1
#: AutoTVM's name of the task of one of our kernels
TASK = re.compile(r"easyquant_(\w+)\.cpu")
#: of ``time_evaluator``: the fastest of so many runs, each at least so long
TIMER = {"number": 1, "repeat": 5, "min_repeat_ms": 20}


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


def check_settings(tuner: str, trials: int, tuners: Sequence[str]) -> None:
    """TuneError if there is no such tuner, or nothing to try."""
    if tuner not in tuners:
        raise TuneError(f"tuner is {tuner!r}; use one of {', '.join(tuners)}")
    if trials < 1:
        raise TuneError(f"trials is {trials}; use 1 or more")


# -- records


def lines(path: str | os.PathLike) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines of a tuning log that hold something; none if there is no file.

    Raises TuneError if it is no text.
    """
    path = Path(path)
    if not path.exists():
        return
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TuneError(f"{path} is not a tuning log: {error}") from None
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            yield number, line


def damaged(path: str | os.PathLike, number: int) -> TuneError:
    """The error of a line that is no record."""
    return TuneError(
        f"{path}, line {number} is not a tuning record of this TVM (an interrupted write leaves a "
        "half line); delete the line"
    )


def ours(path: str | os.PathLike, number: int, line: str) -> Record | None:
    """The record of a line of ours; None if it is not ours but may be AutoTVM's. Raises TuneError."""
    try:
        found = json.loads(line)
        if "easyquant" not in found:
            return None
        if found["easyquant"] != FORM:
            raise TuneError(
                f"{path}, line {number} is a tuning record of form {found['easyquant']!r}, this version "
                f"reads form {FORM}: install a newer tvm_easyquant, or tune again into another file"
            )
        kernel, target, us = found["kernel"], found["target"], found["us"]
        knobs = tuple((str(name), _knob(value)) for name, value in found["knobs"].items())
        if not (isinstance(kernel, str) and isinstance(target, str)):
            raise TypeError("a text is none")
        return Record(
            kernel, _spec(json.dumps(found["spec"], sort_keys=True)), target, _mcpu(target), knobs, _us(us)
        )
    except TuneError:
        raise
    except _BROKEN:
        raise damaged(path, number) from None


def read(path: str | os.PathLike) -> list[Record]:
    """The records of a tuning log, ours and AutoTVM's, in order; [] if there is no file.

    A record of AutoTVM for an operator that is not ours has the task's name for a kernel and no spec.
    Raises TuneError naming the line that is no record, and what to do with it.
    """
    return [ours(path, number, line) or _autotvm(path, number, line) for number, line in lines(path)]


def check_cpu(path: str | os.PathLike, cpus: Iterable[str], mcpu: str, target) -> None:
    """TuneError if there is no such log, or if none of its records is of the ``-mcpu`` of ``target``.

    cpus: those of its records.
    """
    if not os.path.exists(path):
        raise TuneError(f"--tuning-records: there is no file {path}")
    if mcpu not in (known := sorted(set(cpus))):
        raise TuneError(
            f"--tuning-records: {path} was measured for -mcpu {', '.join(known) or 'nothing'}, the target "
            f"is {target}: tune on this CPU (tune-kernels), or leave the log out"
        )


#: what a line that is half written, or by hand, makes of its reader
_BROKEN = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


def _autotvm(path, number, line) -> Record:
    """The record of a line that AutoTVM wrote."""
    try:
        found = json.loads(line)
        target, name, arguments, _ = found["input"]
        costs, error = found["result"][:2]
        us = _us(1e6 * float(np.mean(costs))) if error == 0 else math.nan
        knobs = tuple((str(knob), _knob(value)) for knob, _, value in found["config"]["entity"])
        if (task := TASK.fullmatch(name)) is None:
            return Record(name, "", str(target), _mcpu(target), (), us)
        return Record(task[1], str(arguments[-1]), str(target), _mcpu(target), knobs, us)
    except _BROKEN:
        raise damaged(path, number) from None


def _mcpu(target: str) -> str:
    """The ``-mcpu`` of a target string; "" if it has none."""
    found = re.search(r"-mcpu=(\S+)", target)
    return found[1] if found else ""


def _us(value) -> float:
    if isinstance(value, bool) or not (math.isfinite(value) and value > 0):
        raise ValueError("no time")
    return float(value)


def _knob(value):
    """A knob's value: hashable, as the kernels compare it."""
    if not isinstance(value, (int, str)):
        raise TypeError("no knob")
    return value


@cache
def _spec(text: str) -> str:
    """The text of a spec as `ConvSpec.to_json` writes it."""
    return ConvSpec.from_json(text).to_json()


def about(tvm: str, device: str | None = None) -> dict:
    """What a record says beside what decides it: the machine, here or called ``device``, and the versions;
    tvm: its own."""
    cpu = describe_machine()["cpu"] if device is None else f"device {device}"
    return {"cpu": cpu, "versions": {"tvm": tvm, "tvm_easyquant": __version__}}


class _Log:
    """A tuning log that is written, line by line, as it is measured."""

    def __init__(self, path: str | os.PathLike, about: Mapping[str, Any]):
        """about: what each record says beside what decides it (`about`)."""
        self.path, self.about = Path(path), about
        with self.path.open("ab+") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 1, 0))
            self.separator = "\n" if file.read(1) not in (b"", b"\n") else ""

    def append(self, record: Record) -> None:
        fields = {
            "easyquant": FORM,
            "kernel": record.kernel,
            "target": record.target,
            "knobs": dict(record.knobs),
            "us": round(record.us, 4),
            **self.about,
            "spec": json.loads(record.spec),
        }
        append_text(self.path, f"{self.separator}{json.dumps(fields)}\n")
        self.separator = ""


# -- measuring


class Work(NamedTuple):
    """A kernel of a layer that is to be measured, once for all layers of the same shape."""

    row: Kernel
    spec: ConvSpec
    weight: np.ndarray

    @property
    def arrays(self) -> list[np.ndarray]:
        """Data, constants and residual, as the kernel takes them: the layer's own weights, any data."""
        spec, rng = self.spec, np.random.default_rng(0)
        factor = np.full((2, spec.out_channels) if uses_other(spec.function) else spec.out_channels, 1e-3)
        constants = self.row.pack(
            spec, self.weight, np.zeros(spec.out_channels, np.int32), factor.astype(np.float32)
        )
        shape = (spec.batch, spec.height, spec.width, spec.in_channels)
        data = rng.integers(0, spec.data_max + 1, shape).astype(np.uint8)
        rest = [rng.integers(0, 256, spec.out_shape).astype(np.uint8)] if spec.epilogue == "add" else []
        return [data, *constants, *rest]


def kernels(layers: Sequence[LayerChoice], alternatives: int = 1) -> list[Work]:
    """The layers' kernels and the next ``alternatives`` legal ones of each layer, each once."""
    from topi_ext import manifest

    found: dict[tuple[str, str], Work] = {}
    for layer in layers:
        rows = [layer.choice.kernel]
        for name, _ in layer.choice.slower:
            row = manifest.kernel(name)
            if len(rows) <= alternatives and isinstance(row.proves(layer.spec, layer.weight), Bound):
                rows.append(row)
        for row in rows:
            found.setdefault((row.name, layer.spec.to_json()), Work(row, layer.spec, layer.weight))
    return list(found.values())


#: of a host: a kernel of a layer -> its timer, which takes the knobs and gives microseconds of a call
Timer = Callable[[Work], Callable[[Knobs], float]]


def measure(
    layers: Sequence[LayerChoice],
    log: str | os.PathLike,
    target: str,
    timer: Timer,
    about: Mapping[str, Any],
    *,
    trials: int = 64,
    early_stopping: int | None = None,
    alternatives: int = 1,
    progress: Progress | None = None,
) -> Tuned:
    """Time every configuration of the layers' kernels and append the records to ``log``.

    trials: most configurations of one kernel; the default is the first, the others are in no order, so
    that early_stopping, trials without a better one, is no matter of where the good ones lie. Each record
    is written as it is made, and what the log has of this ``-mcpu`` is not measured again. progress: told
    how many of the configurations that were left are done.
    """
    mcpu, done = _mcpu(target), dict[tuple[str, str], set]()
    for record in read(log):
        if record.mcpu == mcpu and not math.isnan(record.us):
            done.setdefault((record.kernel, record.spec), set()).add(frozenset(record.knobs))
    work = [(one, _left(one, done, trials)) for one in kernels(layers, alternatives)]
    result, total, count = Tuned(kernels=len(work)), sum(len(left) for _, left in work), 0
    file = _Log(log, about)
    for number, (one, left) in enumerate(work, 1):
        if not left:
            result.resumed += 1
            continue
        time, best, since, end = timer(one), math.inf, 0, count + len(left)
        result.measured += 1
        for knobs in left:
            us = time(knobs)
            file.append(Record(one.row.name, one.spec.to_json(), target, mcpu, knobs, us))
            result.trials += 1
            count += 1
            best, since = (us, 0) if us < best else (best, since + 1)
            if progress is not None:
                progress(count, total, f"kernel {number} of {len(work)}, {one.row.name}")
            if early_stopping is not None and since >= early_stopping:
                break
        count = end
    return result


def _left(work: Work, done: Mapping, trials: int) -> list[Knobs]:
    """The configurations of a kernel that are to be measured, the default first."""
    from topi_ext.emit import knob_space

    space = knob_space(work.row, work.spec, [(a.shape, str(a.dtype)) for a in work.arrays])
    default, *others = (tuple(zip(space, values, strict=True)) for values in product(*space.values()))
    others = [others[i] for i in np.random.default_rng(0).permutation(len(others))]
    known = done.get((work.row.name, work.spec.to_json()), set())
    left = [knobs for knobs in (default, *others) if frozenset(knobs) not in known]
    measured = 1 + len(others) - len(left)
    return left[: max(0, trials - measured)]


# -- a device

#: of TVM's RPC: what a tracker and its clients greet each other with, and the question for its devices
MAGIC, SUMMARY = 0x2F271, 6


def check_tracker(host: str, port: int, key: str, seconds: float = 10, needs: str = "") -> None:
    """TuneError if no tracker answers in time, or if it has no device called ``key``.

    needs: what a tracker needs to be started, in words. TVM's own clients retry for a minute.
    """
    start = f"start one with: python -m tvm.exec.rpc_tracker --port {port} --port-end {port + 1}{needs}"
    try:
        with socket.create_connection((host, port), timeout=seconds) as connection:
            connection.sendall(struct.pack("<i", MAGIC))
            (magic,) = struct.unpack("<i", _received(connection, 4))
            if magic != MAGIC:
                raise TuneError(f"{host}:{port} is not an RPC tracker; {start}")
            question = json.dumps([SUMMARY]).encode()
            connection.sendall(struct.pack("<i", len(question)) + question)
            (size,) = struct.unpack("<i", _received(connection, 4))
            _, summary = json.loads(_received(connection, size))
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


def _received(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise OSError("it closed the connection")
        data += part
    return data
