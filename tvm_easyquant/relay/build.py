"""Build a network for a CPU and run it: `build` and `Built`, for everything that we compile.

``lower=True`` hands every integer operator to our kernels (`topi_ext.lower`): integers equal to the
norm on every CPU. ``lower=False`` leaves TVM's stock lowering: it rounds ties differently, and its
int8 kernels are slower.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__, deploy, package
from ..errors import TargetError
from ..files import replacing
from ..fleet import Fleet, PooledExecutor, Shapes
from ..host import layouts_of, plain, table_of
from ..measure.race import Call, named
from ..network.graph import GraphError
from ..runtime import graph as executors
from ..runtime import pool
from . import artefact
from .framework import NO_CSE, no_tophub, quiet, relay, tvm

if TYPE_CHECKING:  # topi_ext.lower imports TVM, whose absence `framework` explains
    from topi_ext.lower import LayerChoice


def host_target() -> str:
    """A target string for the CPU this runs on, without the instructions that it hides."""
    from tvm.target import codegen  # a module that ``import tvm`` may leave out

    from topi_ext import isa

    cpu = codegen.llvm_get_system_cpu()
    if not cpu:
        return "llvm"
    hidden = isa.hidden(map(str, codegen.llvm_get_cpu_features(tvm.target.Target(f"llvm -mcpu={cpu}"))))
    return f"llvm -mcpu={cpu}" + (f" -mattr={','.join(f'-{name}' for name in hidden)}" if hidden else "")


def cpu_target(target) -> object:
    """``target`` (a string or tvm.target.Target, None for this CPU) checked to be a CPU target."""
    try:
        target = tvm.target.Target(target if target is not None else host_target())
    except (ValueError, TypeError, tvm.TVMError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise TargetError(f"target {target!r} is not a TVM target: {reason}") from None
    if target.kind.name != "llvm":
        raise TargetError(
            f"target {target.kind.name!r} is not a CPU; name an llvm target, such as 'llvm -mcpu=core-avx2'"
        )
    from tvm.target.codegen import llvm_get_cpu_archlist

    _check_arch(target)
    cpu = str(target.attrs.get("mcpu", ""))
    if cpu and cpu not in {str(c) for c in llvm_get_cpu_archlist(target)}:
        raise TargetError(f"LLVM knows no -mcpu={cpu} for this target and would ignore it; mend the name")
    return target


def _check_arch(target) -> None:
    """Refuse what LLVM would crash on, or make code of that cannot be linked."""
    from topi_ext.isa import arch_of

    triple = str(target.attrs.get("mtriple", ""))
    arch, known = arch_of(triple), tuple(str(name) for name in tvm.target.codegen.llvm_get_targets())
    if triple and not (arch.startswith(known) or re.fullmatch("i[3-6]86", arch)):
        raise TargetError(f"this LLVM makes no code for {arch} (of -mtriple), but for {', '.join(known)}")
    if arch == "aarch64" and not tvm.get_global_func("target.target_has_feature")("neon", target):
        raise TargetError(
            f"target '{target}' has no NEON, which every 64-bit ARM CPU has; write -mattr=+neon"
        )
    if triple.endswith("eabihf") and target.attrs.get("mfloat-abi") != "hard":
        raise TargetError(f"-mtriple={triple} has its floats in registers; write -mfloat-abi=hard, too")


#: settings of a PassContext that make `build` of ``relay.build``: weights linked into the code, not stored
#: beside it (the operating system maps them from the file, so they are in memory once, and processes share
#: them); no checks of the kernels' arguments, which the executor has made already (a fifth of a small
#: network's code); and what LLVM 22 needs. They change no integer.
BUILD_CONFIG = {"relay.FuseOps.link_params": True, "tir.disable_assert": True, **NO_CSE}


def build(
    module: Any, target: Any = None, *, lower: bool = True, opt_level: int = 3, outputs: Sequence[str] = ()
) -> Built:
    """Compile an integer Relay module for a CPU (default: this one), as everything of ours is compiled.

    It is what ``relay.build`` makes of the module lowered by `LowerInteger`, under a ``PassContext`` with
    ``config=BUILD_CONFIG``. outputs: their names, if the caller knows them.

    Raises TargetError if the target is not a CPU that LLVM knows, or if the stock lowering is asked for
    where TVM's int8 dense kernel aborts the process (targets with AVX-512 VNNI).
    """
    from topi_ext.isa import usable
    from topi_ext.lower import LowerInteger
    from topi_ext.relay.op import target_isa

    target, layers, table = cpu_target(target), [], table_of(module)
    layouts = layouts_of(module)
    if not lower and "avx512vnni" in usable(target_isa(target)) and "qnn.dense" in _operators(module):
        raise TargetError(
            f"TVM's stock int8 dense kernel aborts the process on target '{target}'; leave lower=True, or "
            "name a -mcpu without AVX-512 VNNI, such as skylake-avx512"
        )
    with no_tophub(), quiet(), tvm.transform.PassContext(opt_level=opt_level, config=BUILD_CONFIG):
        if lower:
            lowering = LowerInteger(target)
            module = lowering(module)
            layers = in_call_order(module, lowering.layers)
        else:
            module = plain(module)
        return Built(relay.build(module, target), target, layers, outputs, table, layouts)


def build_fleet(
    module, rows: Sequence[str] | str, *, lower: bool = True, outputs: Sequence[str] = ()
) -> Fleet:
    """`build` for several rows of `topi_ext.isa`, all of one architecture, by name.

    Raises KernelError for a name that is none of them, and what `build` raises.
    """
    from topi_ext import isa

    return Fleet(
        {row.name: build(module, row.target, lower=lower, outputs=outputs) for row in isa.named(rows)}
    )


def build_float(module, target=None) -> Built:
    """Compile a float Relay module as TVM's user would by default (opt_level 3), to compare ours with."""
    target = cpu_target(target)
    clash = any(CONSTANT.fullmatch(param.name_hint) for param in module["main"].params)
    config = BUILD_CONFIG if clash else NO_CSE
    with no_tophub(), quiet(), tvm.transform.PassContext(opt_level=3, config=config):
        return Built(relay.build(module, target), target)


def in_call_order(lowered, layers: Sequence[LayerChoice]) -> list[LayerChoice]:
    """The layers in the order in which the compiled network calls them: a residual branch is moved before
    the layer that its add was fused into."""
    from topi_ext.relay.op import CONV2D

    waiting: dict[tuple, list[LayerChoice]] = {}
    for layer in layers:
        key = (layer.name, layer.spec.to_json(), layer.choice.kernel.name)
        waiting.setdefault(key, []).append(layer)
    order = []

    def visit(expr):
        if isinstance(expr, relay.Call) and str(getattr(expr.op, "name", "")).startswith(CONV2D):
            name = expr.span.source_name.name if expr.span else ""
            order.append(waiting[name, str(expr.attrs["spec"]), str(expr.attrs["kernel"])].pop(0))

    relay.analysis.post_order_visit(lowered["main"], visit)
    return order


def _operators(module) -> set[str]:
    """Names of the operators that a Relay module calls."""
    names = set()

    def visit(expr):
        if isinstance(expr, relay.Call) and isinstance(expr.op, tvm.ir.Op):
            names.add(expr.op.name)

    relay.analysis.post_order_visit(module["main"], visit)
    return names


class Built:
    """A compiled network: it runs, is timed, layer by layer, too, and is written to files.

    ``built(feed)`` takes {input: float32 NCHW array} and returns the outputs as a list; it works in
    `Executor`, too. What TVM's own library has (``export_library``, ``["default"]``, ``get_lib``, ...) this
    has as well.

    library: what ``relay.build`` returned. target: tvm.target.Target. layers: the `LayerChoice` of each
    lowered convolution or dense layer, in the order of the calls (none in a float network). inputs: {name:
    (shape, element type)}. outputs: their names, () where the builder was not told. table: the JSON of its
    scale table, "" where there is none. layouts: {input: NHWC or NCHW} of an image of bytes.
    """

    def __init__(
        self,
        library: Any,
        target: Any,
        layers: Sequence[LayerChoice] = (),
        outputs: Sequence[str] = (),
        table: str = "",
        layouts: Mapping[str, str] | None = None,
    ):
        self.library, self.target, self.table = library, target, table
        self.layouts = dict(layouts or {})
        self.layers, self.outputs = tuple(layers), tuple(outputs)
        nodes, constants = json.loads(library.get_graph_json()), library.get_params()
        shapes, types = nodes["attrs"]["shape"][1], nodes["attrs"]["dltype"][1]
        self.inputs = {
            nodes["nodes"][i]["name"]: (tuple(shapes[i]), types[i])
            for i in nodes["arg_nodes"]  # before any node of several outputs: entry i is node i
            if nodes["nodes"][i]["name"] not in constants
        }

    def __getattr__(self, name: str):
        if "library" not in self.__dict__:  # not made yet, as in a copy
            raise AttributeError(name)
        return getattr(self.library, name)

    def __getitem__(self, name: str):
        return self.library[name]

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
        """Times of ``repeat`` runs (each the mean of ``number``), after the inputs were set."""
        return self.executor.milliseconds(repeat, number)

    def profile(self, feed: Mapping[str, np.ndarray]) -> Profile:
        """A `Profile` of it on these inputs, to be run as often as wanted."""
        return Profile(self, feed)

    def layer_times(self, feed: Mapping[str, np.ndarray], repeat: int = 10) -> dict[str, float]:
        """{lowered layer: milliseconds}, medians of ``repeat`` runs under TVM's debug executor; {} where
        the calls cannot be told apart. A layer's time is with what was fused into it."""
        profile = self.profile(feed)
        for _ in range(repeat):
            profile.run()
        return {call.layer: call.ms for call in profile.calls if call.layer is not None}

    def export_library(self, file_name, **options):
        """TVM's ``export_library``; the archive of object files (``.tar``) is the same bytes every time, as
        the shared library is. The library (``.so``) says what it needs behind its code (`package`); the
        archive, which TVM links when it loads it, cannot."""
        path = os.fspath(file_name)
        made = self.library.export_library(path, **options)
        if path.endswith(".tar"):
            artefact.make_repeatable(path)
        elif path.endswith(".so"):
            with open(path, "ab") as file:
                file.write(package.mark(__version__, self.variant, self.table))
        return made

    def export(self, path: str | os.PathLike[str], compiler: str | None = None) -> None:
        """Write the package that ``tvmc-easyquant run`` and `deploy.Program` take, whole or not at all.

        compiler: what links for another machine, such as ``aarch64-linux-gnu-g++``. Raises WriteError.
        """
        with replacing(path) as temporary:
            temporary.write_bytes(package.packed(__version__, [self.compiled(compiler)]))

    def compiled(self, compiler: str | None = None) -> package.Compiled:
        """It as a variant of a package, linked by ``compiler``."""
        options = {"fcompile": tvm.contrib.cc.cross_compiler(compiler)} if compiler else {}
        folder = tvm.contrib.utils.tempdir()
        code = Path(folder.relpath("mod.so"))
        self.library.get_lib().export_library(str(code), **options)
        contents = {
            "code": code.read_bytes(),
            "graph": self.library.get_graph_json().encode(),
            "parameters": artefact.parameters(self.library.get_params()),
        }
        return package.Compiled(self.variant, self.table, contents)

    def parts(self, compiler: str | None = None) -> list[package.Compiled]:
        """`compiled`, as what is built several times has it (`fleet`)."""
        return [self.compiled(compiler)]

    @functools.cached_property
    def variant(self) -> package.Variant:
        """What its code needs of a machine, and whose it is."""
        taken = {
            name: package.Input(shape, TVM_DTYPES.get(dtype, dtype), self.layouts.get(name, ""))
            for name, (shape, dtype) in self.inputs.items()
        }
        return artefact.variant(self.target, [layer.name for layer in self.layers], taken)

    @functools.cached_property
    def _content(self) -> tuple[int, str]:
        """(size, digest)."""
        folder = tvm.contrib.utils.tempdir()
        code = Path(folder.relpath("code.o"))
        self.library.get_lib().save(str(code))
        parts = code.read_bytes(), artefact.parameters(self.library.get_params())
        digest = hashlib.sha256(self.library.get_graph_json().encode())
        for part in parts:
            digest.update(hashlib.sha256(part).digest())
        stored = sum(array.numpy().nbytes for array in self.library.get_params().values())
        return len(parts[0]) + stored, digest.hexdigest()

    @property
    def size(self) -> int:
        """Bytes of its machine code (an object file, linked weights included) and its parameters."""
        return self._content[0]

    @property
    def digest(self) -> str:
        """SHA-256 of its code, graph and parameters: the same module, target, table and records give the
        same digest in every process."""
        return self._content[1]


class Profile:
    """A `Built` under TVM's debug executor: ``run`` it as often as wanted; ``calls`` are medians."""

    def __init__(self, built: Built, feed: Mapping[str, np.ndarray]):
        from tvm.contrib.debugger import debug_executor

        _check_library(built)
        self._layers, library = [layer.name for layer in built.layers], built.library
        text, params = library.get_graph_json(), library.get_params()
        self._sizes = _sizes(json.loads(text), params, library.function_metadata)
        self._folder = tvm.contrib.utils.tempdir()  # the debug executor wants one; it goes with this
        self._executor = debug_executor.create(
            text, library.get_lib(), tvm.cpu(), dump_root=self._folder.temp_dir
        )
        self._executor.set_input(**params)
        self._executor.set_input(**feed)
        self._times: list[list[float]] = []
        self._names: list[str] = []

    def run(self) -> None:
        """Time every call once more."""
        rows = self._executor.profile().calls
        self._names = [str(row["Name"]) for row in rows]
        self._times.append([float(row["Duration (us)"].microseconds) / 1e3 for row in rows])

    @property
    def calls(self) -> list[Call]:
        """The network's calls in order, their times the medians over the runs."""
        medians = np.median(self._times, axis=0)
        sizes = self._sizes if len(self._sizes) == len(medians) else [(0, 0)] * len(medians)
        rows = zip(self._names, sizes, medians, strict=True)
        return named(
            [Call(name, None, *size, float(ms), "easyquant_conv2d" in name) for name, size, ms in rows],
            self._layers,
        )


def _sizes(graph: dict, params, functions) -> list[tuple[int, int]]:
    """(size of its largest constant, linked or a parameter, size of its output) of each call of a graph."""
    shapes, row = graph["attrs"]["shape"][1], graph["node_row_ptr"]
    sizes = []

    def visit(expr):
        if isinstance(expr, relay.Constant):
            constants.append(prod(expr.data.shape))

    for i, node in enumerate(graph["nodes"]):
        if node["op"] == "null":
            continue
        inputs = [graph["nodes"][entry[0]]["name"] for entry in node["inputs"]]
        constants = [prod(params[name].shape) for name in inputs if name in params]
        found = functions.get(node["attrs"]["func_name"])  # none of a call that does nothing
        for function in found.relay_primfuncs.values() if found is not None else ():
            relay.analysis.post_order_visit(function, visit)
        sizes.append((max(constants, default=0), prod(shapes[row[i]])))
    return sizes


#: what TVM calls a constant that it stores beside the code; a network's own input may be called so, too
CONSTANT = re.compile(r"p\d+")
#: TVM's name of a dtype -> numpy's, where they differ
TVM_DTYPES = {"uint1": "bool"}


class _Context:
    """One graph executor of a library, for one call at a time."""

    kept = False

    def __init__(self, module):
        self.module = module

    def close(self) -> None:
        self.module = None

    def step(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        for name, array in feed.items():
            self.module.set_input(name, array)
        self.module.run()
        return [self.module.get_output(i).numpy() for i in range(self.module.get_num_outputs())]


def check_cpu(target) -> None:
    """TargetError if this CPU lacks what code for a ``tvm.target.Target`` may use."""
    refusal = artefact.needs(target).refusal
    if refusal:
        raise TargetError(f"the code for target '{target}' cannot run here: it {refusal}")


def _check_library(library) -> None:
    """The same of a `Built`, or of what ``relay.build`` made; a library that was loaded does not say."""
    targets = getattr(library, "target", ())
    for target in (targets,) if isinstance(targets, tvm.target.Target) else targets:
        if isinstance(target, tvm.target.Target) and target.kind.name == "llvm":
            check_cpu(target)


class Executor(PooledExecutor):
    """A built library with its inputs and outputs by name.

    ``executor(feed)`` takes {input: float32 NCHW array}, or the array of the only input, and returns the
    outputs as a list. Any number of threads may call it, and a child of fork, too: it has contexts as
    `deploy.Program` has them. ``close()``, or the end of a ``with`` block, waits for calls that run. Of a
    network that is built at several input shapes, the arrays of a call say which runs.
    """

    def __init__(self, library: Any, device: Any = None, *, contexts: int | None = None):
        """library: a `Built`, or what ``relay.build`` or ``tvm.runtime.load_module`` returned. contexts:
        the most calls at once; by default as many as keep the CPUs busy, one on a ``device`` elsewhere."""
        from tvm.contrib import graph_executor

        self._shapes = library if isinstance(library, Shapes) else None
        if self._shapes is not None:
            library = self._shapes.networks[0]
        others = () if self._shapes is None else self._shapes.networks[1:]
        self._others = tuple(Executor(other, device, contexts=contexts) for other in others)
        if isinstance(library, Fleet):
            library = library.best
        _check_library(library)
        self._layouts = library.layouts if isinstance(library, Built) else {}
        self.library = library = library.library if isinstance(library, Built) else library
        self.device = device or tvm.cpu()
        self.module = graph_executor.GraphModule(library["default"](self.device))
        shapes, dtypes = self.module.get_input_info()
        constants = set(library.get_params()) if hasattr(library, "get_params") else None
        self.inputs = {
            name: (tuple(int(d) for d in shape), TVM_DTYPES.get(str(dtypes[name]), str(dtypes[name])))
            for name, shape in shapes.items()
            if not (CONSTANT.fullmatch(name) if constants is None else name in constants)
        }
        self._runtime = executors.Runtime(deploy.find_runtime())
        self._threads = self._runtime.usual_threads
        if contexts is None:
            contexts = max(len(pool.usable_cpus()) // self._threads, 1) if self.device == tvm.cpu() else 1
        more = functools.partial(_another, library, self.module, self.device, self.inputs)
        self._contexts = pool.Contexts(more, contexts, _Context(self.module), "the executor", GraphError)

    def milliseconds(self, repeat: int = 10, number: int = 1) -> list[float]:
        """Times of ``repeat`` runs (each the mean of ``number``), after the inputs were set."""

        def timed(context: _Context) -> list[float]:
            measure = context.module.module.time_evaluator("run", self.device, number=number, repeat=repeat)
            return [1e3 * float(t) for t in measure().results]

        return self._run(timed)


def _another(library, first, device, inputs) -> _Context:
    """One more context of a library, with the weights of the ``first`` GraphModule, not copies of them."""
    from tvm.contrib import graph_executor

    whole = getattr(library, "module", library)  # what relay.build returns holds the module of the library
    graph = whole["get_graph_json"]()
    nodes = json.loads(graph)
    names = [nodes["nodes"][i]["name"] for i in nodes["arg_nodes"]]
    made = graph_executor.create(graph, whole, device)
    if len(names) > len(inputs):
        made.share_params(first, executors.listed([name for name in names if name not in inputs]))
    return _Context(made)
