"""Run a compiled network with TVM's runtime library and numpy alone: no compiler, no TVM package.

What ``export_library`` (``net.so``) or ``tvmc-easyquant compile`` (``net.tar``) made is loaded through the
C interface of ``libtvm_runtime.so``, in one of its two forms (`RUNTIMES`): an artefact says in which. A
process needs some 30 MiB beside the network; importing the ``tvm`` package takes some 50 more.
"""

from __future__ import annotations

import functools
import mmap
import os
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np

from . import package
from .errors import DeployError
from .runtime import graph, vm
from .runtime.pool import Contexts, usable_cpus

NAME = "libtvm_runtime.so"
#: what runs an artefact -> its C interface
RUNTIMES: Mapping[str, Any] = {package.GRAPH: graph.Runtime, package.VM: vm.Runtime}
#: and the host that has it, what that is, and where the library lies beside the package ``tvm``
HOSTS = {
    package.GRAPH: ("relay", "TVM 0.19", NAME),
    package.VM: ("relax", "today's apache-tvm", f"lib/{NAME}"),
}


def find_runtime(runtime: str = package.GRAPH, what: str = "the network") -> Path:
    """``libtvm_runtime.so`` of the installed TVM, which is not imported.

    Where ``tvm`` is imported already, its library: a process bears one only. runtime: `package.GRAPH` or
    `package.VM`. Raises DeployError, which says what to install for ``what``, if there is none of it.
    """
    if runtime == package.GRAPH and "tvm" in sys.modules and hasattr(sys.modules["tvm"], "_ffi"):
        return Path(sys.modules["tvm"]._ffi.base._LIB._name)
    return runtime_file(runtime, what)


def runtime_file(runtime: str = package.GRAPH, what: str = "the network") -> Path:
    """The file ``libtvm_runtime.so`` of the installed TVM; DeployError if there is none."""
    found = util.find_spec("tvm")
    folder = Path(found.origin).parent if found and found.origin else Path()
    here = [name for name, (*_, library) in HOSTS.items() if (folder / library).exists()]
    if found and runtime in here:
        return folder / HOSTS[runtime][-1]
    if found and here:
        (host, made_by, _), (installed, is_here, _) = HOSTS[runtime], HOSTS[here[0]]
        raise DeployError(
            f"{what} was compiled by {made_by} (the {host} host), and {is_here} ({installed}) is installed "
            f"here: pip install 'tvm_easyquant[{host}]' in an environment of its own, or compile it here"
        )
    raise DeployError(f"no {NAME} beside an installed TVM: name the file as runtime=")


@functools.lru_cache
def runtime_version(path: Path) -> str | None:
    """The version of TVM that a runtime library was built of; None where it does not say.

    TVM's C interface has no call for it; the check of versions in its RPC has the number in its text.
    """
    if "tvm" in sys.modules and path == find_runtime():
        return str(sys.modules["tvm"].__version__)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = re.search(rb'version == "(\d+\.\d+\.[0-9a-z.]{1,20})"', data)
        return found[1].decode() if found else None


def another_version(chosen: package.Chosen, library: Path) -> str:
    """What to say of a network that another TVM compiled than the runtime is of; "" of the same.

    It may run: a library that lacks a function that is called is refused by `Runtime`, and the formats of
    graph and parameters are TVM's old ones. But nobody has tested these two.
    """
    made = chosen.variant.version if chosen.variant else ""
    here = runtime_version(library) if made else None
    if here is None or made.split(".")[:2] == here.split(".")[:2]:
        return ""
    return (
        f"{chosen.path} was compiled by TVM {made}, and the runtime library is TVM {here}'s: they were not "
        f"tested together; name TVM {made}'s as runtime=, or compile the network anew"
    )


def runtime_files(runtime: str, library: Path, installed: bool = True) -> list[Path]:
    """A runtime library and what it needs, beside it or ``installed``. Raises DeployError."""
    if runtime == package.GRAPH:
        return [library]
    extra = library.with_name(vm.EXTRA)
    return [library, vm.ffi_library(library, installed), *([extra] if extra.is_file() else [])]


def the_inputs(feed, inputs: Mapping[str, object], wrong: type[Exception]) -> Mapping:
    """{input: array} of what a caller gave: that, or the array of the only input."""
    if isinstance(feed, Mapping):
        return feed
    if len(inputs) != 1:
        raise wrong(f"the network has {len(inputs)} inputs; give {{name: array}} of {sorted(inputs)}")
    return {next(iter(inputs)): feed}


def fitting(feed, inputs: Mapping, layouts: Mapping[str, str], wrong: type[Exception]) -> Mapping:
    """{input: array} of what a caller gave, each of its input's shape and type.

    inputs: {name: (shape, element type)}. Raises ``wrong``, which says what does not fit.
    """
    feed = the_inputs(feed, inputs, wrong)
    for name in feed:
        if name not in inputs:
            raise wrong(f"there is no input {name}; the inputs are {sorted(inputs)}")
    for name, (shape, dtype) in inputs.items():
        array = feed.get(name)
        if array is None:
            raise wrong(f"input {name} is missing")
        if not hasattr(array, "shape"):
            raise wrong(f"input {name} is a {type(array).__name__}; give a numpy array")
        if tuple(array.shape) != shape or str(array.dtype) != dtype:
            found, what = f"{array.dtype} {tuple(array.shape)}", cure(array, shape, dtype)
            taken = package.Input(shape, dtype, layouts.get(name, ""))
            raise wrong(f"input {name} is {found}, the model takes {taken}{what}")
    return feed


def cure(array: np.ndarray, shape: tuple[int, ...], dtype) -> str:
    """What to do about an array that does not fit an input of this shape and type; "" if nobody knows."""
    given, wanted, has = tuple(array.shape), np.dtype(dtype), np.dtype(str(array.dtype))
    if given == shape and has.kind == wanted.kind:
        return f"; give array.astype(numpy.{wanted})"
    if given == shape and has.kind in "ui" and wanted.kind == "f":
        return "; prepare it as for training (scale, mean, std)"
    if len(given) == len(shape) == 4 and given != shape:
        n, a, b, c = given
        if (n, c, a, b) == shape:
            return "; its channels are last: give array.transpose(0, 3, 1, 2)"
        if (n, b, c, a) == shape:
            return "; its channels are first: give array.transpose(0, 2, 3, 1)"
    if given == shape[1:]:
        return "; it lacks the first dimension: give array[None]"
    return ""


def at_shapes(
    known: Sequence[Mapping[str, tuple[int, ...]]], given: Mapping[str, tuple[int, ...]]
) -> int | None:
    """The place in ``known`` of the input shapes that arrays of the shapes ``given`` go to; None: in none.

    A number of samples that is no compiled batch goes to the largest batch that it fills, else to the
    smallest that there is.
    """
    if given in known:
        return known.index(given)
    fitting = []
    for i, shapes in enumerate(known):
        batches = [(shape[0], given[n]) for n, shape in shapes.items() if shape != given[n] and shape]
        if all(given[n] == shape or given[n][1:] == shape[1:] for n, shape in shapes.items()) and batches:
            (batch, (samples, *_)) = batches[0]
            fitting.append((batch > samples, abs(samples - batch), i))
    return min(fitting)[2] if fitting else None


def no_such_shapes(known: Sequence[Mapping[str, tuple[int, ...]]], arrays: Mapping, dtypes: Mapping) -> str:
    """What to say of arrays that have none of the shapes that there are."""
    found = ", ".join(f"{name} {tuple(array.shape)}" for name, array in arrays.items())
    there = "; ".join(", ".join(f"{n} {shape}" for n, shape in shapes.items()) for shapes in known)
    cures = (cure(arrays[n], shape, dtypes[n]) for shapes in known for n, shape in shapes.items())
    return f"the inputs are {found}, the network takes {there}{next(filter(None, cures), '')}"


class _Network:
    """A network compiled for one set of input shapes: its code and weights, and the pool of its contexts.

    inputs: {name: (shape, element type)}; layouts: of images of bytes; contexts, threads: as of `Program`.
    """

    def __init__(
        self, runtime: Any, chosen: package.Chosen, contexts: int | None, threads: int | None, name: str
    ):
        taken = chosen.variant.inputs if chosen.variant else {}
        self.layouts = {name: made.layout for name, made in taken.items() if made.layout}
        self._loaded = runtime.open(chosen)
        cpus = len(usable_cpus())
        asked = (runtime.usual_threads, False) if threads is None else (min(threads, cpus), True)
        more = functools.partial(self._loaded.context, asked)
        first = more()
        self.inputs = {name: (view.shape, view.dtype) for name, view in first.inputs.items()}
        if contexts is None:
            contexts = max(cpus // asked[0], 1)
        still = chosen.runtime == package.VM
        self.contexts = Contexts(more, contexts, first, name, DeployError, still)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{input: shape}."""
        return {name: shape for name, (shape, _) in self.inputs.items()}

    def close(self) -> None:
        """Wait for the calls that run, then free it."""
        self.contexts.close()
        self._loaded.close()

    def refuse(self, name: str, array: np.ndarray) -> None:
        """DeployError for an array that does not fit an input."""
        shape, dtype = self.inputs[name]
        found, what = f"{array.dtype} {array.shape}", cure(array, shape, dtype)
        taken = package.Input(shape, str(dtype), self.layouts.get(name, ""))
        raise DeployError(f"input {name} is {found}, the network takes {taken}{what}")

    def samples(self, arrays: Mapping[str, np.ndarray]) -> tuple[int, int]:
        """(compiled batch, samples given), (0, 0) where nothing is to be cut. Raises DeployError."""
        batch = samples = 0
        for name, (shape, dtype) in self.inputs.items():
            given = arrays[name]
            if given.dtype != dtype or (
                given.shape != shape and (given.shape[1:] != shape[1:] or not given.size)
            ):
                self.refuse(name, given)
            if given.shape == shape:
                continue
            if batch and (batch, samples) != (shape[0], len(given)):
                raise DeployError(f"input {name} has {len(given)} samples, another has {samples}")
            batch, samples = shape[0], len(given)
        if not batch:
            return 0, 0
        for name, (shape, _) in self.inputs.items():
            if shape[:1] == (batch,) and len(arrays[name]) != samples:
                raise DeployError(f"input {name} has {batch} samples, another has {samples}")
        return batch, samples

    def cut(self, context, arrays, batch: int, samples: int) -> list[np.ndarray]:
        """The outputs for any number of samples, a batch at a time. Raises DeployError."""
        made: list[np.ndarray] = []
        for at in range(0, samples, batch):
            part = min(batch, samples - at)
            for name, view in context.inputs.items():
                array = arrays[name]
                if view.shape[:1] != (batch,):
                    np.copyto(view, array)
                    continue
                np.copyto(view[:part], array[at : at + part])
                view[part:] = array[-1]
            context.run()
            outputs = context.outputs
            if not made:  # their shapes are known now
                for i, view in enumerate(outputs):
                    if view.shape[:1] != (batch,):
                        lacks = f"output {i} of shape {view.shape} has no batch dimension"
                        raise DeployError(f"{lacks}: give {batch} samples, not {samples}")
                made = [np.empty((samples, *view.shape[1:]), view.dtype) for view in outputs]
            for whole, view in zip(made, outputs, strict=True):
                whole[at : at + part] = view[:part]
        return made


class Program:
    """A compiled network with its inputs and outputs by name, for any number of threads.

    ``program(feed)`` takes {input: array of its shape and type}, or the array of the only input, and
    returns the outputs as a list, as `tvm_easyquant.Executor` does. How an array lies in memory does not
    matter. Where the first dimension is a batch, any number n of samples is cut into calls of the compiled
    batch, the last one filled up by repeating its last sample; the outputs have n rows. ``inputs`` is
    {name: (shape, element type)}, ``layouts`` {name: NHWC or NCHW} of an image of bytes.

    A package may hold the network at several input shapes: ``shapes`` lists them, {input: shape} each, and
    the arrays of a call say which is meant. ``inputs`` is then of the first.

    Each call takes a free context of a pool, and waits where there is none. Contexts share the weights;
    each has activations of its own. ``set_inputs``, ``run`` and ``outputs`` are the three steps of a call,
    for each thread by itself: it keeps a context until it ends.

    A process may be forked after a program was loaded or ran; the child may call it, too. ``close()``, or
    the end of a ``with`` block, waits for the calls that run and frees the network.

    path: ``net.so`` of ``export_library`` or ``net.tar`` of ``tvmc-easyquant compile``; runtime: a
    ``libtvm_runtime.so`` of the TVM that compiled it, by default that of the installed one; isa: the row of
    `topi_ext.isa` whose variant to take (``variant`` says which was taken; see `package.choose`). contexts:
    the most calls at once, each of which needs one; by default as many as keep the CPUs busy. They are made
    when they are needed first; of several shapes each has as many. threads: of each call, at most the CPUs
    that the process may use; by default what the environment's TVM_NUM_THREADS says, else TVM's own number.
    Raises DeployError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        runtime: str | os.PathLike[str] | None = None,
        *,
        isa: str | None = None,
        contexts: int | None = None,
        threads: int | None = None,
    ):
        for what, number in (("contexts", contexts), ("threads", threads)):
            if number is not None and (type(number) is not int or number < 1):
                raise DeployError(f"{what} is {number!r}; use 1 or more")
        file = Path(path).resolve()  # what has no folder, the linker looks for elsewhere
        if not file.exists():
            raise DeployError(f"{file} does not exist")
        chosen = package.choices(file, isa)  # before any code of it runs
        self.variant = chosen[0].name
        package.say_once(chosen[0].note)
        kind = chosen[0].runtime
        library = find_runtime(kind, file.name) if runtime is None else Path(runtime)
        self._tvm = RUNTIMES[kind](library)
        if kind == package.GRAPH:
            package.say_once(another_version(chosen[0], library))
        self._networks = [_Network(self._tvm, each, contexts, threads, file.name) for each in chosen]
        self.inputs, self.layouts = self._networks[0].inputs, self._networks[0].layouts
        self.shapes = [network.shapes for network in self._networks]
        self._mine = threading.local()

    def __repr__(self) -> str:
        more = f" and {len(self.shapes) - 1} other shapes" if len(self.shapes) > 1 else ""
        variant = self.variant or "of unknown instruction set"
        return f"<Program {variant}: {package.told(self.inputs, self.layouts)}{more}>"

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the calls that run, then free the network; a later call raises DeployError."""
        for network in self._networks:
            network.close()

    def _arrays(self, feed) -> dict[str, np.ndarray]:
        """{input: array} of a feed; DeployError names an input that is unknown or missing."""
        feed = the_inputs(feed, self.inputs, DeployError)
        unknown = sorted(map(str, set(feed) - set(self.inputs)))
        if unknown:
            raise DeployError(f"there is no input {unknown[0]}; the inputs are {sorted(self.inputs)}")
        arrays = {}
        for name in self.inputs:
            if name not in feed:
                raise DeployError(f"input {name} is missing")
            try:
                arrays[name] = np.asarray(feed[name])
            except ValueError as error:
                raise DeployError(f"input {name} is no array: {error}") from None
        return arrays

    def _network(self, arrays: Mapping[str, np.ndarray]) -> _Network:
        """The one that arrays of these shapes are for. Raises DeployError, which lists the shapes."""
        if len(self._networks) == 1:
            return self._networks[0]
        at = at_shapes(self.shapes, {name: array.shape for name, array in arrays.items()})
        if at is None:
            dtypes = {name: dtype for name, (_, dtype) in self.inputs.items()}
            raise DeployError(no_such_shapes(self.shapes, arrays, dtypes))
        return self._networks[at]

    def set_inputs(self, feed: Mapping[str, np.ndarray] | np.ndarray) -> None:
        """Copy every input in; DeployError names one that is missing, unknown, of another shape or type."""
        arrays = self._arrays(feed)
        network = self._network(arrays)
        for name, (shape, dtype) in network.inputs.items():
            if arrays[name].shape != shape or arrays[name].dtype != dtype:
                network.refuse(name, arrays[name])
        own = self._kept(network)
        context = network.contexts.take(own)
        try:
            if own is None:
                network.contexts.keep(context)
                self._mine.contexts[network] = context
            self._mine.network = network
            for name, view in context.inputs.items():
                np.copyto(view, arrays[name])
        finally:
            network.contexts.give(context)

    def _kept(self, network: _Network):
        """The context of a network that this thread keeps, or None."""
        if not hasattr(self._mine, "contexts"):
            self._mine.contexts = {}
        return self._mine.contexts.get(network)

    def run(self) -> None:
        """Run the network on the inputs that this thread set; DeployError if it did not."""
        network, context = self._own("set_inputs", True)
        try:
            context.run()
            context.run_already = True
        finally:
            network.contexts.give(context)

    def outputs(self) -> list[np.ndarray]:
        """Copies of the outputs of this thread's last `run`; DeployError if there was none."""
        network, context = self._own("set_inputs and run", False)
        try:
            return [view.copy() for view in context.outputs]
        finally:
            network.contexts.give(context)

    def _own(self, before: str, runs: bool):
        """(network, the context of it that this thread keeps, taken)."""
        network = getattr(self._mine, "network", self._networks[0])
        own = self._kept(network)
        network.contexts.refuse_closed()
        if own is None or not (runs or own.run_already):
            raise DeployError(f"this thread has not called {before}; program(feed) is all three steps")
        return network, network.contexts.take(own)

    def __call__(self, feed: Mapping[str, np.ndarray] | np.ndarray) -> list[np.ndarray]:
        """The outputs for a feed of one batch, or of any number of samples; see the class."""
        arrays = self._arrays(feed)
        network = self._network(arrays)
        batch, samples = network.samples(arrays)
        context = network.contexts.take(self._kept(network))
        try:
            if samples != batch:
                return network.cut(context, arrays, batch, samples)
            for name, view in context.inputs.items():
                np.copyto(view, arrays[name])
            context.run()
            context.run_already = True
            return [view.copy() for view in context.outputs]
        finally:
            network.contexts.give(context)
