"""The seam to a compiler: what a host does for us, and which one is installed.

A host is TVM in one of its forms: `tvm_easyquant.relay.host` is TVM 0.19 with Relay,
`tvm_easyquant.relax.host` today's apache-tvm. Both are a package called ``tvm``, so that an environment has
one of them. The quantizer itself (calibrate, search, table, numpy run, QDQ export) needs none. Whoever does
is given one, or asks `installed`; nothing else outside a host's own folder imports it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from topi_ext import isa

from .errors import ConfigError, TVMMissing

if TYPE_CHECKING:
    import numpy as np

    from . import package
    from .network.graph import Graph
    from .scales.image_input import ImageInput
    from .scales.numerics import QuantConfig
    from .scales.table import ScaleTable

#: the hosts there are, the preferred first; each is a folder of this package with a file ``host``
HOSTS = ("relay", "relax")
#: the distributions that bring a package called ``tvm``
WHEELS = ("apache-tvm", "xtc-tvm-python-bindings")

#: the attribute of an integer module that holds its scale table, as JSON
TABLE = "easyquant_table"
#: and the one that holds the layouts of its images
LAYOUTS = "easyquant_layouts"

Progress = Callable[[int, int, str], None]
#: what belongs to the host alone: its IR module, and what it calls a target; others pass them on unread
Module = Any
Target = Any
Shapes = Mapping[str, Sequence[int]]


class Built(Protocol):
    """A compiled network: it runs on this machine, is timed, and is written to files."""

    @property
    def inputs(self) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """{name: (shape, element type)}."""

    @property
    def layers(self) -> Sequence[Any]:
        """The kernel of each lowered layer (`topi_ext.lower.LayerChoice`), in the order of the calls; none
        in a float network."""

    def __call__(self, feed: Mapping[str, np.ndarray] | np.ndarray) -> list[np.ndarray]:
        """The outputs for {input: array}, or for the array of the only input; GraphError if they are not
        the inputs."""

    def milliseconds(self, repeat: int = 10, number: int = 1) -> list[float]:
        """Times of ``repeat`` runs, each the mean of ``number``, with the inputs of the last call."""

    def layer_times(self, feed: Mapping[str, np.ndarray], repeat: int = 10) -> dict[str, float]:
        """{lowered layer: milliseconds}, medians of ``repeat`` runs on these inputs."""

    def export_library(self, file_name: Any, **options: Any) -> Any:
        """Write it as the compiler's own library."""

    def export(self, path: str | os.PathLike[str], compiler: str | None = None) -> None:
        """Write the package that the command line and `deploy.Program` run, whole or not at all.

        compiler: what links for another machine. Raises WriteError.
        """

    def parts(self, compiler: str | None = None) -> list[package.Compiled]:
        """What `export` packs: the variants of its package, with their files."""

    @property
    def size(self) -> int:
        """Bytes of its machine code and its parameters."""

    @property
    def digest(self) -> str:
        """SHA-256 of what it is made of: the same for the same module, target and records."""


class Host(Protocol):
    """What a compiler must do for us; every verb means the same on every host.

    A *module* is a network in the host's own IR: float32 NCHW inputs and outputs whichever it is, and
    inside either float operators (a float module) or the host's standard operators on uint8 NHWC tensors
    (an integer module). A *target* is a CPU: None is the one this runs on.
    """

    @property
    def name(self) -> str:
        """One of `HOSTS`."""

    @property
    def version(self) -> str:
        """The compiler's own version."""

    @property
    def floats(self) -> str:
        """What a line of times calls the float network of `build_float`."""

    # -- float networks

    def formats(self) -> Sequence[str]:
        """Names of the formats of model files that `load` takes as ``model_format``."""

    def load(
        self,
        model: str | os.PathLike[str],
        *,
        model_format: str | None = None,
        input_shapes: Shapes | None = None,
        batch: int | None = None,
    ) -> Graph:
        """A model file of one of the `formats` but ONNX, which `readers` reads, as a `Graph`.

        model_format: by default what the file's ending says. input_shapes: {input: NCHW shape} of those
        that the model leaves open; batch: size of an open first dimension. Raises LoadError.
        """

    def original(
        self,
        model: str | os.PathLike[str],
        *,
        model_format: str | None = None,
        input_shapes: Shapes | None = None,
        batch: int | None = None,
    ) -> Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]]:
        """What `load` reads, run as the host itself runs it: {input: array} -> outputs."""

    def float_module(self, graph: Graph) -> Module:
        """A graph as a float module. Raises GraphError for a float node that the host cannot compute."""

    def is_module(self, model: object) -> bool:
        """Whether this is a module of the host's."""

    def read(self, module: Module, params: Mapping | None = None, name: str = "model") -> Graph:
        """A float module as a `Graph` called ``name``; LoadError for what a graph cannot say."""

    # -- integer networks

    def rewrite(
        self,
        graph: Graph,
        table: ScaleTable,
        taps: Sequence[str] = (),
        sample: Mapping[str, np.ndarray] | None = None,
        image: ImageInput | None = None,
    ) -> Module:
        """The integer module of a graph under its table.

        taps: stored tensors that it returns too, behind the outputs, as uint8 NHWC. sample: a feed, on
        which a float node is compared with its meaning where the host has no rule for it. image: its
        input takes bytes in that layout, and what it computes is what it computes of ``image.unfolded`` of
        them, bit for bit. Raises TableError
        if the two do not fit, OverflowError if a bias or accumulator does not fit int32, GraphError for a
        float node that the host cannot compute.
        """

    def lower(self, module: Module, target: Target = None) -> Module:
        """An integer module with its integer operators as calls of our kernels for ``target``."""

    def save_module(self, module: Module) -> str:
        """The module as a text that the host loads again."""

    def layer_choices(self, graph: Graph, table: ScaleTable, target: Target = None) -> list:
        """The kernel that each integer layer gets (`topi_ext.lower.LayerChoice`), in order.

        From the layers' record (`scales.layers.records`) alone: no module is made. Raises TableError and
        OverflowError as `rewrite` does.
        """

    def layer_times(self, graph: Graph, table: ScaleTable, target: Target = None) -> dict[str, float]:
        """{layer: microseconds of its kernel by the stored costs}; TuneError where a kernel has none."""

    # -- building and running

    def this_cpu(self) -> str:
        """The text of the target that None stands for."""

    def target(self, text: str | Target | None = None) -> Target:
        """A target, checked to be a CPU that the compiler knows; TargetError says what to name instead."""

    def row(self, target: Target) -> str:
        """The row of `topi_ext.isa` whose kernels a target gets."""

    def check_cpu(self, target: Target) -> None:
        """TargetError, which names what this CPU has and lacks, if code for ``target`` may not run."""

    def linker(self, name: str | None = None) -> str | None:
        """The program that links: ``name``, if it is here (else TuneError), or the one found, or None."""

    def build(
        self, module: Module, target: Target = None, *, lower: bool = True, outputs: Sequence[str] = ()
    ) -> Built:
        """Compile an integer module with our kernels, or, without ``lower``, any module without them.

        target: also a list of rows of `topi_ext.isa`: a network for each and a package of them all, which
        runs as the best that this CPU runs. outputs: their names, if the caller knows them. Raises
        TargetError, and KernelError for a name that is no row.
        """

    def build_float(self, module: Module, target: Target = None) -> Built:
        """Compile a float module as the compiler does by itself: what our integers are compared with."""

    def threads(self, count: int) -> None:
        """Let what runs from now on take so many threads."""

    def quiet(self) -> contextlib.AbstractContextManager:
        """Without the compiler's own remarks about kernels that are not tuned; nothing is downloaded."""

    # -- measuring and tuning

    def describe(self) -> dict:
        """The machine and the compiler, for a record: cpu, family, model, isa, cores, versions."""

    def examine(self) -> dict:
        """What matters to our kernels: target, linker, rows of kernels, and a test of ``pmaddubsw``."""

    def benchmark(
        self,
        graph: Graph,
        floats: Built,
        integers: Built,
        *,
        bits: Mapping[str, int] | None = None,
        threads: int = 1,
        rounds: int = 15,
        progress: Progress | None = None,
    ) -> Any:
        """Time both networks of a graph in turn, whole and layer by layer; bits: of the integer layers."""

    def keep_if_faster(
        self,
        graph: Graph,
        floats: Built,
        config: QuantConfig,
        target: Target = None,
        *,
        progress: Progress | None = None,
    ) -> Any:
        """The layers to keep float (``skip``) because the whole network is then faster, and ``notes``."""

    def tune(
        self,
        module: Module,
        log: str | os.PathLike[str],
        target: Target = None,
        *,
        device: tuple[str, int, str] | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> Any:
        """Measure the kernels of an integer module and append the records to ``log``: a host chooses by
        what any host has measured.

        device: (tracker's host, port, key) of another machine. settings: tuner (default: the host's own),
        trials, early_stopping, alternatives, cross_compiler. Raises TuneError.
        """

    def history(
        self, log: str | os.PathLike[str] | None, target: Target
    ) -> contextlib.AbstractContextManager:
        """While it is entered, kernels are chosen by the records of ``log``; TuneError if they are not
        ``target``'s. None is no log."""

    def untuned(self, layers: Sequence, target: Target = None) -> tuple[int, int]:
        """(kernels without a record, all kernels) of `layer_choices` under the records applied now."""


def table_of(module: Module) -> str:
    """The JSON of a module's table; "" if it has none."""
    return str(module.get_attr(TABLE) or "")


def layouts_of(module: Module) -> dict[str, str]:
    """{input: NHWC or NCHW} of a module's images; {} if it has none."""
    return json.loads(str(module.get_attr(LAYOUTS) or "{}"))


def plain(module: Module) -> Module:
    """A module without what it knows, which TVM's passes are not to see."""
    for name in (TABLE, LAYOUTS):
        module = module.without_attr(name) if module.get_attr(name) else module
    return module


class Late:
    """The installed host, looked for when it is first asked for something: what needs none works without.

    Asking raises what `installed` raises. Its compiler is kept `Host.quiet` until ``stack`` is closed.
    """

    def __init__(self, stack: contextlib.ExitStack):
        self._stack = stack
        self._host: Host | None = None

    def __getattr__(self, name: str):
        if self._host is None:
            self._host = installed()
            self._stack.enter_context(self._host.quiet())
        return getattr(self._host, name)


def describe_machine() -> dict:
    """cpu (its name, or what Linux knows of it), family and model, rows of `isa.ISAS`, cores."""
    facts: dict = {"cpu": platform.processor() or platform.machine()}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Hardware") and value.strip():
                facts["cpu"] = value.strip()
            elif key.strip() in ("vendor_id", "cpu family", "model"):
                facts.setdefault(key.strip().replace(" ", "_"), value.strip())
    except OSError:
        pass
    return {**facts, "isa": [name for name in isa.ISAS if isa.host_has(name)], "cores": os.cpu_count()}


def describe_rows() -> list[dict]:
    """Of each row of `isa.ISAS`: whether it runs here, its plainest CPU, its kernels. Needs a TVM."""
    from topi_ext import manifest

    return [
        {
            "isa": row.name,
            "here": isa.host_has(row.name) and (not row.arch or row.arch == isa.arch_of("")),
            "mcpu": row.mcpu,
            "kernels": [kernel.name for kernel in manifest.KERNELS if kernel.isa == row.name],
        }
        for row in isa.ISAS.values()
    ]


def installed(name: str | None = None) -> Host:
    """The host ``name``, or the one of `HOSTS` that is installed.

    Raises TVMMissing, which says what to install, and ConfigError for a name that is none.
    """
    if name is not None and name not in HOSTS:
        raise ConfigError(f"host is {name!r}; use one of {', '.join(HOSTS)}")
    if len(both := [wheel for wheel in WHEELS if _has(wheel)]) > 1:
        raise TVMMissing(
            f"{' and '.join(both)} are installed over each other, both as the package tvm: pip uninstall "
            "both, and install one of them again"
        )
    missing = []
    for wanted in HOSTS if name is None else (name,):
        try:
            return importlib.import_module(f".{wanted}.host", __package__).HOST
        except TVMMissing as error:
            missing.append(error)
    if name is None and sys.platform == "linux":
        raise TVMMissing(f"{missing[0]}; or today's apache-tvm: pip install 'tvm_easyquant[relax]'")
    raise missing[0]


def named(host: Host | str | None) -> Host | None:
    """What a keyword ``host`` says: a host, none, or the name of the one that must be installed."""
    return installed(host) if isinstance(host, str) else host


def _has(distribution: str) -> bool:
    try:
        return bool(importlib.metadata.version(distribution))
    except importlib.metadata.PackageNotFoundError:
        return False
