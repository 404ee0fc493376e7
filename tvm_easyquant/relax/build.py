"""Build a network for a CPU and run it: `build` and `Built`, for everything that we compile."""

from __future__ import annotations

import functools
import hashlib
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from topi_ext import isa
from topi_ext.emit import target_features
from topi_ext.relax import lower as lowering
from topi_ext.relax.floats import lower_floats

from ..errors import GraphError, HostError, LinkerMissing, TargetError
from ..files import replacing
from .framework import quiet, relax, tvm
from .schedule import schedule

if TYPE_CHECKING:
    from topi_ext.planner import LayerChoice

#: settings of the PassContext of `build`: without the checks of the kernels' arguments, which the executor
#: and TVM's virtual machine have made already. They change no integer.
BUILD_CONFIG = {"tirx.disable_assert": True}
#: keys of a target's text whose values are lists
LISTS = ("mattr", "keys", "libs")


# -- targets


def host_target() -> str:
    """A target string for the CPU this runs on, without the instructions that it hides."""
    from tvm.target import codegen

    cpu = codegen.llvm_get_system_cpu()
    if not cpu:
        return "llvm"
    target = tvm.target.Target({"kind": "llvm", "mcpu": str(cpu)})
    hidden = isa.lacking(map(str, codegen.llvm_get_cpu_features(target)))
    return f"llvm -mcpu={cpu}" + (f" -mattr={','.join(f'-{name}' for name in hidden)}" if hidden else "")


def _fields(text: str) -> dict:
    """A target string as TVM 0.19 has them, which this one reads as a dict only."""
    kind, *words = text.split()
    fields: dict[str, Any] = {"kind": kind}
    for word in words:
        key, equals, value = word.removeprefix("--").removeprefix("-").partition("=")
        if not word.startswith("-") or not equals:
            raise TargetError(f"target {text!r}: {word} is not -key=value, such as -mcpu=core-avx2")
        fields[key] = value.split(",") if key in LISTS else int(value) if key == "num-cores" else value
    return fields


def cpu_target(target=None) -> Any:
    """``target`` (a string, a dict or tvm.target.Target; None for this CPU) checked to be a CPU target."""
    if isinstance(target, (list, tuple)):
        raise TargetError("the relax host makes no package for several CPUs yet; build for one of them")
    given = host_target() if target is None else target
    if isinstance(given, str) and given.strip() and not given.lstrip().startswith("{"):
        given = _fields(given)
    try:
        made = tvm.target.Target(given)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise TargetError(f"target {target!r} is not a TVM target: {reason}") from None
    if made.kind.name != "llvm":
        raise TargetError(
            f"target {made.kind.name!r} is not a CPU; name an llvm target, such as 'llvm -mcpu=core-avx2'"
        )
    arch = isa.arch_of(str(made.attrs.get("mtriple", "")))
    if arch != isa.arch_of(""):
        raise TargetError(
            f"the relax host does not build for {arch} yet, only for this machine's own {isa.arch_of('')}; "
            "TVM 0.19 does: pip install 'tvm_easyquant[relay]' in another environment"
        )
    cpu = str(made.attrs.get("mcpu", ""))
    if cpu and cpu not in {str(c) for c in tvm.target.codegen.llvm_get_cpu_archlist(made)}:
        raise TargetError(f"LLVM knows no -mcpu={cpu} for this target and would ignore it; mend the name")
    return made


def check_cpu(target) -> None:
    """TargetError if this CPU lacks what code for a ``tvm.target.Target`` may use."""
    arch, features = target_features(target)
    if refusal := isa.refusal(features, arch):
        raise TargetError(f"the code for target '{target_text(target)}' cannot run here: it {refusal}")


def target_text(target) -> str:
    """The target as a string that `cpu_target` reads."""
    text = "llvm"
    for key in ("mtriple", "mcpu", "mattr"):
        value = target.attrs.get(key)
        if value and not (key == "mtriple" and "mcpu" in target.attrs):
            text += f" -{key}={value if isinstance(value, str) else ','.join(map(str, value))}"
    return text


# -- building


def pipeline(target):
    """A Relax pass: what makes machine code's functions of a module; our kernels stay as they are.

    target: ``tvm.target.Target``. `tvm.compile` takes it as ``relax_pipeline``.
    """
    passes = relax.transform

    @tvm.transform.module_pass(opt_level=0, name="easyquant_pipeline")
    def run(module, context):
        steps = [passes.LegalizeOps(), passes.AnnotateTIROpPattern(), passes.FuseOps(), passes.FuseTIR()]
        module = lower_floats(module, target)
        with target:
            module = schedule(tvm.transform.Sequential(steps)(module))
            return relax.get_pipeline("default_build")(module)

    return run


def build(module, target=None, *, lower: bool = True, outputs: Sequence[str] = ()) -> Built:
    """Compile an integer Relax module for a CPU (default: this one), as everything of ours is compiled.

    outputs: their names, if the caller knows them. Raises TargetError if the target is not a CPU that LLVM
    knows, HostError without ``lower``.
    """
    target = cpu_target(target)
    if not lower:
        raise HostError(
            "the relax host has only our own lowering yet; leave lower=True (the stock one needs TVM 0.19)"
        )
    module, layers = lowering.lower(module, target)
    return _compiled(module, target, layers, outputs)


def build_float(module, target=None) -> Built:
    """Compile a float Relax module: TVM's own operators, which have no schedules for CPUs, with ours."""
    return _compiled(module, cpu_target(target))


def _compiled(module, target, layers=(), outputs=()):
    inputs = {
        str(var.name): (tuple(int(d) for d in var.ty.shape.values), str(var.ty.dtype))
        for var in module["main"].params
    }
    with tvm.transform.PassContext(opt_level=3, config=BUILD_CONFIG):
        library = tvm.compile(module, target, relax_pipeline=pipeline(target))
    return Built(library, target, inputs, layers, outputs)


class Built:
    """A compiled network: it runs, is timed, layer by layer, too, and is written to files.

    ``built(feed)`` takes {input: float32 NCHW array} and returns the outputs as a list.

    library: the ``tvm.relax.VMExecutable``. target: tvm.target.Target. inputs: {name: (shape, element
    type)}. layers: the `LayerChoice` of each lowered convolution or dense layer, in the order of the calls
    (none in a float network). outputs: their names, () where the builder was not told.
    """

    def __init__(
        self, library, target, inputs, layers: Sequence[LayerChoice] = (), outputs: Sequence[str] = ()
    ):
        self.library, self.target, self.inputs = library, target, dict(inputs)
        self.layers, self.outputs = tuple(layers), tuple(outputs)

    @functools.cached_property
    def executor(self) -> Executor:
        """This CPU's executor of it."""
        return Executor(self)

    def __call__(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return self.executor(feed)

    def milliseconds(self, repeat: int = 10, number: int = 1) -> list[float]:
        """Times of ``repeat`` runs (each the mean of ``number``), with the inputs of the last call."""
        return self.executor.milliseconds(repeat, number)

    def layer_times(self, feed: Mapping[str, np.ndarray], repeat: int = 10) -> dict[str, float]:
        """{lowered layer: milliseconds}, medians of ``repeat`` runs. A layer's time is with what was fused
        into it, and with the one or two microseconds that it takes to look at the clock."""
        found: dict[str, list[float]] = {layer.name: [] for layer in self.layers}
        executor, names = Executor(self), [layer.name for layer in self.layers]
        clock, waiting = [0.0], list(names)

        def watch(function, name, before, *rest):
            if str(name).startswith(lowering.PREFIX):
                if before:
                    clock[0] = time.perf_counter()
                else:
                    found[waiting.pop(0)].append(1e3 * (time.perf_counter() - clock[0]))

        executor.machine.set_instrument(watch)
        for _ in range(repeat):
            waiting[:] = names
            executor(feed)
        return {name: statistics.median(times) for name, times in found.items()}

    def export_library(self, file_name, **options) -> None:
        """TVM's ``export_library``, whole or not at all: a library, or object files (``.tar``).

        Raises LinkerMissing for a library where there is no C++ compiler.
        """
        from tvm.support import cc

        archive = os.fspath(file_name).endswith(".tar")
        if not archive and "fcompile" not in options and cc.get_cc() is None:
            raise LinkerMissing("there is no C++ compiler to link with: install g++, or set CXX")
        with replacing(file_name) as temporary, quiet():
            self.library.export_library(str(temporary), **options)

    def export(self, path: str | os.PathLike, compiler: str | None = None) -> None:
        """Raises HostError: what `deploy.Program` and ``tvmc-easyquant run`` read is not made here yet."""
        raise HostError(
            "the relax host writes no package yet; export_library writes the library, which "
            "tvm.runtime.load_module and tvm.relax.VirtualMachine run"
        )

    @functools.cached_property
    def _content(self) -> tuple[int, str]:
        """(size, digest)."""
        size, digest = 0, hashlib.sha256()
        with tempfile.TemporaryDirectory() as folder, quiet():
            for i, part in enumerate((self.library.mod, *self.library.mod.imports)):
                file = Path(folder, f"{i}.o")
                part.write_to_file(str(file), "o")  # the machine's steps and constants; machine code
                content = file.read_bytes()
                size += len(content)
                digest.update(hashlib.sha256(content).digest())
        return size, digest.hexdigest()

    @property
    def size(self) -> int:
        """Bytes of its machine code (an object file), its steps and its constants."""
        return self._content[0]

    @property
    def digest(self) -> str:
        """SHA-256 of its code, steps and constants: the same module, target and table give the same digest
        in every process."""
        return self._content[1]


class Executor:
    """A built network with its inputs by name.

    ``executor(feed)`` takes {input: float32 NCHW array} and returns the outputs as a list. Threads may
    share it; they take turns.
    """

    def __init__(self, built: Built):
        self.inputs, self._alone = built.inputs, threading.Lock()
        self.machine = relax.VirtualMachine(built.library, tvm.cpu())
        self._last: list | None = None

    def __call__(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        for name in feed:
            if name not in self.inputs:
                raise GraphError(f"there is no input {name}; the inputs are {sorted(self.inputs)}")
        for name, (shape, dtype) in self.inputs.items():
            array = feed.get(name)
            if array is None:
                raise GraphError(f"input {name} is missing")
            if tuple(array.shape) != shape or str(array.dtype) != dtype:
                raise GraphError(
                    f"input {name} is {array.dtype} {tuple(array.shape)}, the model takes {dtype} {shape}"
                )
        with self._alone:  # its memory is the machine's own
            # a copy: the code takes inputs at addresses that numpy's need not have
            self._last = [tvm.runtime.tensor(np.asarray(feed[name], order="C")) for name in self.inputs]
            made = self.machine["main"](*self._last)
            outputs = [made] if hasattr(made, "numpy") else list(made)
            return [output.numpy() for output in outputs]

    def milliseconds(self, repeat: int = 10, number: int = 1) -> list[float]:
        """Times of ``repeat`` runs (each the mean of ``number``), with the inputs of the last call."""
        if self._last is None:
            self._last = [tvm.runtime.tensor(np.zeros(*kind)) for kind in self.inputs.values()]
        timer = self.machine.time_evaluator("main", tvm.cpu(), number=number, repeat=repeat)
        return [1e3 * float(t) for t in timer(*self._last).results]
