"""Build a network for a CPU and run it: `build` and `Built`, for everything that we compile."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from topi_ext import isa
from topi_ext.emit import target_features, target_isa
from topi_ext.relax import lower as lowering
from topi_ext.relax.floats import lower_floats
from topi_ext.relax.recurrence import lower_recurrences

from .. import __version__, deploy, package
from ..errors import GraphError, HostError, LinkerMissing, TargetError
from ..files import replacing
from ..fleet import Fleet, PooledExecutor, Shapes
from ..host import layouts_of, plain, table_of
from ..linking import cannot_link, check_compiler
from ..measure.race import Call, named
from ..runtime import pool, vm
from . import artefact
from .framework import relax, tvm, vm_build
from .schedule import schedule

# isort: split
from tvm.support import cc

if TYPE_CHECKING:
    from topi_ext.planner import LayerChoice

#: settings of the PassContext of `build`: without the checks of the kernels' arguments, which the executor
#: and TVM's virtual machine have made already. They change no integer.
BUILD_CONFIG = {"tirx.disable_assert": True}
#: keys of a target's text whose values are lists
LISTS = ("mattr", "keys", "libs")
#: what a whole number and a switch are in a target's text
SWITCH = {"1": True, "true": True, "0": False, "false": False}
NUMBERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "int": (int, "a whole number"),
    "bool": (lambda text: SWITCH[text.lower()], "0 or 1"),
}


# -- targets


def host_target() -> str:
    """A target string for the CPU this runs on, without the instructions that it hides."""
    from tvm.target import codegen

    cpu = codegen.llvm_get_system_cpu()
    if not cpu:
        return "llvm"
    target = tvm.target.Target({"kind": "llvm", "mcpu": str(cpu)})
    hidden = isa.hidden(map(str, codegen.llvm_get_cpu_features(target)))
    return f"llvm -mcpu={cpu}" + (f" -mattr={','.join(f'-{name}' for name in hidden)}" if hidden else "")


def _fields(text: str) -> dict:
    """A target string as TVM 0.19 has them, which this one reads as a dict only."""
    kind, *words = text.split()
    fields: dict[str, Any] = {"kind": kind}
    kinds = tvm.target.TargetKind.options_from_name("llvm")
    for word in words:
        key, equals, value = word.removeprefix("--").removeprefix("-").partition("=")
        if not word.startswith("-") or not equals:
            raise TargetError(f"target {text!r}: {word} is not -key=value, such as -mcpu=core-avx2")
        value = value.strip("\"'")
        made, what = NUMBERS.get(str(kinds.get(key)), (str, ""))
        try:
            fields[key] = value.split(",") if key in LISTS else made(value)
        except (ValueError, KeyError):
            raise TargetError(f"target {text!r}: -{key} is {what}, not {value!r}") from None
    return fields


def cpu_target(target=None) -> Any:
    """``target`` (a string, a dict or tvm.target.Target; None for this CPU) checked to be a CPU target."""
    given = host_target() if target is None else target
    if isinstance(given, str) and not given.strip():
        raise TargetError("the target is empty; name one, such as 'llvm -mcpu=core-avx2', or leave it out")
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
    _check_arch(made)
    cpu = str(made.attrs.get("mcpu", ""))
    if cpu and cpu not in {str(c) for c in tvm.target.codegen.llvm_get_cpu_archlist(made)}:
        raise TargetError(f"LLVM knows no -mcpu={cpu} for this target and would ignore it; mend the name")
    for name in (str(feature).lstrip("+-") for feature in made.attrs.get("mattr", ())):
        if not _is_feature(name, str(made.attrs.get("mtriple", ""))):
            raise TargetError(
                f"LLVM knows no {name} (of -mattr) for this target and would ignore it; mend the name"
            )
    return made


@functools.cache
def _is_feature(name: str, triple: str) -> bool:
    """Whether LLVM knows a feature of CPUs of this kind."""
    with vm.quiet():  # it remarks on what it does not know
        probe = {"kind": "llvm", "mattr": [f"+{name}"]} | ({"mtriple": triple} if triple else {})
        return name in set(map(str, tvm.target.codegen.llvm_get_cpu_features(tvm.target.Target(probe))))


def _check_arch(target) -> None:
    """Refuse what LLVM would crash on, or make code of that cannot be linked."""
    triple = str(target.attrs.get("mtriple", ""))
    arch, known = isa.arch_of(triple), tuple(str(name) for name in tvm.target.codegen.llvm_get_targets())
    if triple and not (arch.startswith(known) or re.fullmatch("i[3-6]86", arch)):
        raise TargetError(f"this LLVM makes no code for {arch} (of -mtriple), but for {', '.join(known)}")
    if arch == "aarch64" and "neon" not in target_features(target)[1]:
        text = artefact.target_text(target)
        raise TargetError(
            f"target '{text}' has no NEON, which every 64-bit ARM CPU has; write -mattr=+neon"
        )
    if triple.endswith("eabihf") and target.attrs.get("mfloat-abi") != "hard":
        raise TargetError(f"-mtriple={triple} has its floats in registers; write -mfloat-abi=hard, too")


def check_cpu(target) -> None:
    """TargetError if this CPU lacks what code for a ``tvm.target.Target`` may use."""
    if refusal := artefact.needs(target).refusal:
        raise TargetError(
            f"the code for target '{artefact.target_text(target)}' cannot run here: it {refusal}"
        )


def check_linker() -> None:
    """LinkerMissing if there is no C++ compiler to make a library with."""
    if cc.get_cc() is None:
        raise LinkerMissing("there is no C++ compiler to link with: install g++, or set CXX")


def link_with(compiler: str | None) -> dict[str, Any]:
    """The options of `export_to` for ``compiler``, None for this machine's own, once it is found."""
    if compiler is None:
        check_linker()
        return {}
    check_compiler(compiler)
    return {"fcompile": cc.cross_compiler(compiler)}


def export_to(path: str | os.PathLike[str], library, **options) -> None:
    """TVM's ``export_library``; UserError where the compiler does not link the target's code."""
    try:
        with vm.quiet():
            library.export_library(str(path), **options)
    except RuntimeError as error:
        if (found := cannot_link(error)) is None:
            raise
        raise found from None


# -- building


def pipeline(target):
    """A Relax pass: what makes machine code's functions of a module; our kernels stay as they are.

    target: ``tvm.target.Target``. `tvm.compile` takes it as ``relax_pipeline``. Raises TargetError where
    the target that is compiled for lacks instructions of the kernels.
    """
    passes = relax.transform

    @tvm.transform.module_pass(opt_level=0, name="easyquant_pipeline")
    def run(module, context):
        _check_compiled_for(module, target)
        steps = [passes.LegalizeOps(), passes.AnnotateTIROpPattern(), passes.FuseOps(), passes.FuseTIR()]
        module = lower_floats(lower_recurrences(module, target), target)
        with target:
            module = schedule(tvm.transform.Sequential(steps)(module))
            return relax.get_pipeline("default_build")(module)

    return run


def _check_compiled_for(module, target) -> None:
    """TargetError if LLVM would compile kernels for a CPU without their instructions: it aborts."""
    current = tvm.target.Target.current(allow_none=True)
    given = target if current is None else cpu_target(current)
    runs = isa.usable(target_isa(given))
    for row in (str((module.attrs or {}).get(lowering.ROW, "generic")), target_isa(target)):
        if row not in runs:
            raise TargetError(
                f"target '{artefact.target_text(given)}' lacks the instructions of the kernels, which are "
                f"for {row}: give LowerInteger, eq.pipeline and tvm.compile the same target"
            )


def build(module: Any, target: Any = None, *, lower: bool = True, outputs: Sequence[str] = ()) -> Built:
    """Compile an integer Relax module for a CPU (default: this one), as everything of ours is compiled.

    outputs: their names, if the caller knows them. Raises TargetError if the target is not a CPU that LLVM
    knows, HostError without ``lower``.
    """
    target = cpu_target(target)
    if not lower:
        raise HostError(
            "the relax host has only our own lowering yet; leave lower=True (the stock one needs TVM 0.19)"
        )
    table, layouts = table_of(module), layouts_of(module)
    lowered, layers = lowering.lower(plain(module), target)
    return _compiled(lowered, target, layers, outputs, table, layouts)


def build_fleet(
    module, rows: Sequence[str] | str, *, lower: bool = True, outputs: Sequence[str] = ()
) -> Fleet:
    """`build` for several rows of `topi_ext.isa`, all of one architecture, by name.

    Raises KernelError for a name that is none of them, and what `build` raises.
    """
    return Fleet(
        {row.name: build(module, row.target, lower=lower, outputs=outputs) for row in isa.named(rows)}
    )


def build_float(module, target=None) -> Built:
    """Compile a float Relax module: TVM's own operators, which have no schedules for CPUs, with ours."""
    return _compiled(module, cpu_target(target))


def _compiled(module, target, layers=(), outputs=(), table="", layouts=None) -> Built:
    inputs = {
        str(var.name): (tuple(int(d) for d in var.ty.shape.values), str(var.ty.dtype))
        for var in module["main"].params
    }
    with tvm.transform.PassContext(opt_level=3, config=BUILD_CONFIG):
        with target:
            ready = pipeline(target)(module)
        code, library = _linked(ready, target)
    return Built(library, target, inputs, layers, outputs, table, layouts, ready, code)


def _linked(ready, target, code=None):
    """(the machine code of a module's functions, the ``VMExecutable``) of what `pipeline` made.

    code: that of the same functions, if it is compiled already. It is what ``tvm.compile`` does.
    """
    builder = relax.ExecBuilder()
    rest = vm_build._vmcodegen(builder, ready)
    functions = None if code is not None else vm_build._filter_tir(rest)
    library = vm_build._vmlink(builder, target, functions, ext_libs=[] if code is None else [code])
    return library.mod.imports[0] if code is None and library.mod.imports else code, library


class Built:
    """A compiled network: it runs, is timed, layer by layer, too, and is written to files.

    ``built(feed)`` takes {input: float32 NCHW array} and returns the outputs as a list.

    library: the ``tvm.relax.VMExecutable``. target: tvm.target.Target. inputs: {name: (shape, element
    type)}. layers: the `LayerChoice` of each lowered convolution or dense layer, in the order of the calls
    (none in a float network). outputs: their names, () where the builder was not told. table: the JSON of
    its scale table, "" where there is none. layouts: {input: NHWC or NCHW} of an image of bytes. ready,
    code: what `pipeline` made, and its functions' machine code.
    """

    def __init__(
        self,
        library,
        target,
        inputs,
        layers: Sequence[LayerChoice] = (),
        outputs: Sequence[str] = (),
        table: str = "",
        layouts: Mapping[str, str] | None = None,
        ready=None,
        code=None,
    ):
        self.library, self.target, self.inputs, self.table = library, target, dict(inputs), table
        self.layers, self.outputs, self.layouts = tuple(layers), tuple(outputs), dict(layouts or {})
        self._ready, self._code = ready, code

    @functools.cached_property
    def executor(self) -> Executor:
        """This CPU's executor of it."""
        return Executor(self)

    def __repr__(self) -> str:
        layers = f", {len(self.layers)} layers in integers" if self.layers else ""
        return f"<Built for {self.target}: {package.told(self.inputs, self.layouts)}{layers}>"

    def __call__(self, feed: Mapping[str, np.ndarray] | np.ndarray) -> list[np.ndarray]:
        return self.executor(feed)

    def milliseconds(self, repeat: int = 10, number: int = 1) -> list[float]:
        """Times of ``repeat`` runs (each the mean of ``number``), with the inputs of the last call."""
        return self.executor.milliseconds(repeat, number)

    def layer_times(self, feed: Mapping[str, np.ndarray], repeat: int = 10) -> dict[str, float]:
        """{lowered layer: milliseconds}, medians of ``repeat`` runs. A layer's time is with what was fused
        into it, and with the one or two microseconds that it takes to look at the clock."""
        profile = self.profile(feed)
        for _ in range(repeat):
            profile.run()
        return {call.layer: call.ms for call in profile.calls if call.layer is not None}

    def profile(self, feed: Mapping[str, np.ndarray]) -> Profile:
        """A `Profile` of it on these inputs, to be run as often as wanted."""
        return Profile(self, feed)

    def export_library(self, file_name, **options) -> None:
        """TVM's ``export_library``, whole or not at all: a library, or object files (``.tar``). The library
        (``.so``) says what it needs behind its code (`package`).

        Raises LinkerMissing for a library where there is no C++ compiler.
        """
        archive = os.fspath(file_name).endswith(".tar")
        if not archive and "fcompile" not in options:
            check_linker()
        with replacing(file_name) as temporary:
            export_to(temporary, self.library, **options)
            if os.fspath(file_name).endswith(".so"):
                with open(temporary, "ab") as file:
                    file.write(package.mark(__version__, self.variant, self.table))

    def export(self, path: str | os.PathLike[str], compiler: str | None = None) -> None:
        """Write the package that ``tvmc-easyquant run`` and `deploy.Program` take, whole or not at all.

        compiler: what links for another machine, such as ``aarch64-linux-gnu-g++``. Raises WriteError,
        LinkerMissing where there is no C++ compiler, TuneError where ``compiler`` is not here, UserError
        where it cannot link the target's code.
        """
        with replacing(path) as temporary:
            temporary.write_bytes(package.packed(__version__, [self.compiled(compiler)]))

    def compiled(self, compiler: str | None = None) -> package.Compiled:
        """It as a variant of a package, linked by ``compiler``: the weights beside the code, so that a
        loader maps them."""
        options = link_with(compiler)
        main, weights = artefact.lifted(self._ready)
        _, library = _linked(main, self.target, self._code)
        graph, parameters = artefact.weights(weights)
        with tempfile.TemporaryDirectory() as folder:
            code = Path(folder, package.FILES["code"])
            export_to(code, library, **options)
            contents = {"code": code.read_bytes(), "graph": graph, "parameters": parameters}
        return package.Compiled(self.variant, self.table, contents)

    @functools.cached_property
    def variant(self) -> package.Variant:
        """What its code needs of a machine, and whose it is."""
        taken = {
            name: package.Input(shape, dtype, self.layouts.get(name, ""))
            for name, (shape, dtype) in self.inputs.items()
        }
        return artefact.variant(self.target, [layer.name for layer in self.layers], taken)

    def parts(self, compiler: str | None = None) -> list[package.Compiled]:
        """`compiled`, as what is built several times has it (`fleet`)."""
        return [self.compiled(compiler)]

    @functools.cached_property
    def _content(self) -> tuple[int, str]:
        """(size, digest)."""
        # not the executable's own bytes, which are others once it ran
        parts = [self.library.as_text().encode(), *artefact.weights(artefact.lifted(self._ready)[1])]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "code.o")
            self._code.write_to_file(str(file), "o")
            parts.append(file.read_bytes())
        digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts))
        return sum(map(len, parts)), digest.hexdigest()

    @property
    def size(self) -> int:
        """Bytes of its machine code (an object file), its steps and its constants."""
        return self._content[0]

    @property
    def digest(self) -> str:
        """SHA-256 of its code, steps and constants: the same module, target and table give the same digest
        in every process."""
        return self._content[1]


class Profile:
    """A `Built` whose calls are timed: ``run`` it as often as wanted; ``calls`` are medians."""

    def __init__(self, built: Built, feed: Mapping[str, np.ndarray]):
        self._layers, self._feed = [layer.name for layer in built.layers], feed
        self._steps = artefact.steps(built._ready)
        self._executor, self._start = Executor(built, contexts=1), 0.0
        names, self._row = {step[0] for step in self._steps}, []  # type: set[str], list[float]
        self._times: list[list[float]] = []

        def watch(function, name, before, *rest):
            if str(name) in names:
                if before:
                    self._start = time.perf_counter()
                else:
                    self._row.append(1e3 * (time.perf_counter() - self._start))

        self._executor._run(lambda context: context.machine.set_instrument(watch))

    def run(self) -> None:
        """Time every call once more."""
        self._row = []
        self._executor(self._feed)
        self._times.append(self._row)

    @property
    def calls(self) -> list[Call]:
        """The network's calls in order, their times the medians over the runs."""
        medians = np.median(self._times, axis=0)
        rows = [
            Call(name, None, weight, output, float(ms), name.startswith(lowering.PREFIX))
            for (name, weight, output), ms in zip(self._steps, medians, strict=True)
        ]
        return named(rows, self._layers)


class _Context:
    """One virtual machine of a library, for one call at a time."""

    kept = False

    def __init__(self, machine, inputs: Mapping):
        self.machine: Any = machine
        self.views = {name: vm.aligned(*kind) for name, kind in inputs.items()}
        self.arguments = [tvm.runtime.from_dlpack(view) for view in self.views.values()]

    def close(self) -> None:
        self.machine = None

    def step(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        for name, view in self.views.items():
            np.copyto(view, feed[name])
        made = self.machine["main"](*self.arguments)
        return [output.numpy() for output in ([made] if hasattr(made, "numpy") else made)]


class Executor(PooledExecutor):
    """A built network with its inputs and outputs by name.

    ``executor(feed)`` takes {input: float32 NCHW array}, or the array of the only input, and returns the
    outputs as a list. Any number of threads may call it, and a child of fork, too: it has contexts as
    `deploy.Program` has them. ``close()``, or the end of a ``with`` block, waits for calls that run. Of a
    network that is built at several input shapes, the arrays of a call say which runs.
    """

    def __init__(self, library: Built | Fleet | Shapes, *, contexts: int | None = None):
        """library: what `build` returned. contexts: the most calls at once; by default as many as keep the
        CPUs busy. Raises TargetError if its code may not run here."""
        self._shapes = library if isinstance(library, Shapes) else None
        first, *others = (library,) if self._shapes is None else self._shapes.networks
        self._others = [Executor(other, contexts=contexts) for other in others]
        built = first.best if isinstance(first, Fleet) else first
        if not isinstance(built, Built):
            raise TargetError(
                "the relax host's Executor runs what build returned; deploy.Program runs a library"
            )
        check_cpu(built.target)
        self.library, self.inputs, self._layouts = built.library, built.inputs, built.layouts
        self._runtime = vm.Runtime(deploy.find_runtime(package.VM))
        self._threads = self._runtime.usual_threads
        if contexts is None:
            contexts = max(len(pool.usable_cpus()) // self._threads, 1)
        self._contexts = pool.Contexts(
            self._context, contexts, self._context(), "the executor", GraphError, still=True
        )

    def _context(self) -> _Context:
        return _Context(relax.VirtualMachine(self.library, tvm.cpu()), self.inputs)

    def milliseconds(self, repeat: int = 10, number: int = 1) -> list[float]:
        """Times of ``repeat`` runs (each the mean of ``number``), with the inputs of the last call."""

        def timed(context: _Context) -> list[float]:
            timer = context.machine.time_evaluator("main", tvm.cpu(), number=number, repeat=repeat)
            return [1e3 * float(t) for t in timer(*context.arguments).results]

        return self._run(timed)
