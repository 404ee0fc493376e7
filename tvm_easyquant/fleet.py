"""One network built several times for one package: for several CPUs, at several input shapes.

No host is known here: what is built runs, and its ``parts(compiler)`` are variants of a package.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from . import __version__, package
from .deploy import at_shapes, no_such_shapes, the_inputs
from .errors import GraphError, TargetError
from .files import replacing


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

    def export(self, path: str | os.PathLike, compiler: str | None = None) -> None:
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

    @functools.cached_property
    def best(self) -> Any:
        """The one that runs here, or that EASYQUANT_ISA names. Raises DeployError if there is none."""
        ordered = package.ordered(built.variant for built in self.variants.values())
        return self.variants[package.best("the network", ordered).name]

    def _first(self):
        return self.best

    def _all(self):
        return self.variants.values()

    def __call__(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
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

    def __call__(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of the one whose shapes the arrays have; GraphError if there is none."""
        return self.networks[self.place(feed)](feed)

    def export_library(self, file_name, **options):
        """TargetError: a library holds one of them. ``networks`` has each."""
        raise TargetError(
            f"{file_name}: a library holds one input shape, this network is built at {len(self.networks)}; "
            "export writes a package, networks[i].export_library one library"
        )
