"""One network built several times for one package: for several CPUs, at several input shapes.

No host is known here: what is built runs, and its ``parts(compiler)`` are variants of a package. What the
hosts' executors have in common, several shapes among it, is here as well.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from . import __version__, package
from .deploy import at_shapes, fitting, no_such_shapes, the_inputs
from .errors import GraphError, TargetError
from .files import replacing
from .network.shapes import told
from .runtime.pool import Contexts

Own = TypeVar("Own", bound="PooledExecutor")


class _Several:
    """What several have in common: `export`, and what the first of them has besides."""

    def _first(self) -> Any:
        raise NotImplementedError

    def _all(self) -> Iterable[Any]:
        raise NotImplementedError

    def parts(self, compiler: str | None = None) -> list[package.Compiled]:
        """Each as a variant of a package, linked by ``compiler``."""
        return [part for built in self._all() for part in built.parts(compiler)]

    def __getattr__(self, name: str):
        if name.startswith("__") or not self.__dict__:  # not made yet, as in a copy
            raise AttributeError(name)
        return getattr(self._first(), name)

    def __getitem__(self, name: str):
        return self._first()[name]

    def export(self, path: str | os.PathLike[str], compiler: str | None = None) -> None:
        """Write the package of all of them, whole or not at all; a loader takes what its CPU runs, and of
        several input shapes those of the arrays. compiler: what links for another machine. Raises
        WriteError."""
        compiled = self.parts(compiler)
        with replacing(path) as temporary:
            temporary.write_bytes(package.packed(__version__, compiled))


class Fleet(_Several):
    """One network built for several instruction sets, to be written as one package.

    It runs as the best of them that this CPU runs, and what a `Built` has besides it has of that one.
    variants: {row of `topi_ext.isa`: Built}.
    """

    def __init__(self, variants: Mapping[str, Any]):
        self.variants = dict(variants)

    def __repr__(self) -> str:
        return f"<Fleet of {', '.join(self.variants)}>"

    @functools.cached_property
    def best(self) -> Any:
        """The one that runs here, or that EASYQUANT_ISA names. Raises DeployError if there is none."""
        ordered = package.ordered(built.variant for built in self.variants.values())
        return self.variants[package.best("the network", ordered).name]

    def _first(self):
        return self.best

    def _all(self):
        return self.variants.values()

    def __call__(self, feed: Mapping[str, np.ndarray] | np.ndarray) -> list[np.ndarray]:
        """The outputs of `best`."""
        return self.best(feed)

    def export_library(self, file_name, **options):
        """TargetError: a library holds one of them. ``variants`` has each."""
        raise TargetError(
            f"{file_name}: a library holds one instruction set, this network is built for "
            f"{', '.join(self.variants)}; export writes a package, variants[ROW].export_library one library"
        )


class Shapes(_Several):
    """One network built at several input shapes, to be written as one package.

    A call runs the one whose shapes its arrays have; what a `Built` has besides, it has of the first.
    networks: a `Built` or `Fleet` for each.
    """

    def __init__(self, networks: Sequence[Any]):
        self.networks = tuple(networks)

    def __repr__(self) -> str:
        return f"<Shapes {'; '.join(map(told, self.shapes))}>"

    def _first(self):
        return self.networks[0]

    def _all(self):
        return self.networks

    @property
    def shapes(self) -> list[dict[str, tuple[int, ...]]]:
        """{input: shape} of each."""
        return [{name: tuple(taken[0]) for name, taken in n.inputs.items()} for n in self.networks]

    def place(self, feed: Mapping[str, np.ndarray] | np.ndarray) -> int:
        """The place of the one whose shapes the arrays have. Raises GraphError, which lists them."""
        inputs = self.networks[0].inputs
        feed = the_inputs(feed, inputs, GraphError)
        known = self.shapes
        if set(feed) != set(inputs) or not all(hasattr(array, "shape") for array in feed.values()):
            return 0  # which says what is wrong
        given = {name: tuple(array.shape) for name, array in feed.items()}
        at = at_shapes(known, given)
        if at is None or known[at] != given:
            raise GraphError(no_such_shapes(known, feed, {n: dtype for n, (_, dtype) in inputs.items()}))
        return at

    def __call__(self, feed: Mapping[str, np.ndarray] | np.ndarray) -> list[np.ndarray]:
        """The outputs of the one whose shapes the arrays have; GraphError if there is none."""
        return self.networks[self.place(feed)](feed)

    def export_library(self, file_name, **options):
        """TargetError: a library holds one of them. ``networks`` has each."""
        raise TargetError(
            f"{file_name}: a library holds one input shape, this network is built at {len(self.networks)}; "
            "export writes a package, networks[i].export_library one library"
        )


def joined(made: Sequence[Any], rows: Sequence[str]) -> Any:
    """One `Fleet` of several, its variants in the order of ``rows``; of several `Shapes` one of these."""
    if isinstance(made[0], Shapes):
        return Shapes([joined(fleets, rows) for fleets in zip(*(s.networks for s in made), strict=True)])
    variants = {row: built for fleet in made for row, built in fleet.variants.items()}
    return Fleet({row: variants[row] for row in rows})


class PooledExecutor:
    """The calls of a host's Executor: each takes a context, of the network at its arrays' shapes.

    Who makes one sets these. inputs: {name: (shape, element type)}; the rest: the layouts of images, the
    networks at several shapes, the executors of all but the first of them, the runtime, its threads, the
    pool of contexts.
    """

    inputs: dict[str, tuple[tuple[int, ...], str]]
    _layouts: Mapping[str, str]
    _shapes: Shapes | None
    _others: Sequence[Any]
    _runtime: Any
    _threads: int
    _contexts: Contexts

    def __repr__(self) -> str:
        more = f" and {len(self._others)} other shapes" if self._others else ""
        return f"<Executor: {package.told(self.inputs, self._layouts)}{more}>"

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the calls that run; a later call raises GraphError."""
        for executor in (self, *self._others):
            executor._contexts.close()

    def __call__(self, feed: Mapping[str, np.ndarray] | np.ndarray) -> list[np.ndarray]:
        """The outputs for {input: array}, or for the array of the only input. Raises GraphError."""
        if self._shapes is not None and (place := self._shapes.place(feed)):
            return self._others[place - 1](feed)
        feed = fitting(feed, self.inputs, self._layouts, GraphError)
        return self._run(lambda context: context.step(feed))

    def _run(self, job: Callable[[Any], Any]) -> Any:
        """job(a context that nobody else runs)."""
        context = self._contexts.take()
        try:
            return self._runtime.run(functools.partial(job, context), self._threads)
        finally:
            self._contexts.give(context)
