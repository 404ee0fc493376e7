"""One network built for several instruction sets, as any host builds it."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import __version__, package
from .errors import TargetError
from .files import replacing


class Fleet:
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

    def __getattr__(self, name: str):
        if "variants" not in self.__dict__:  # not made yet, as in a copy
            raise AttributeError(name)
        return getattr(self.best, name)

    def __getitem__(self, name: str):
        return self.best[name]

    def __call__(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """What the best of them gives."""
        return self.best(feed)

    def export(self, path: str | os.PathLike, compiler: str | None = None) -> None:
        """Write the package of all of them, see `Built.export`; a loader takes the best for its CPU."""
        compiled = [built.compiled(compiler) for built in self.variants.values()]
        with replacing(path) as temporary:
            temporary.write_bytes(package.packed(__version__, compiled))

    def export_library(self, file_name, **options):
        """TargetError: a library holds one of them. ``variants`` has each."""
        raise TargetError(
            f"{file_name}: a library holds one instruction set, this network is built for "
            f"{', '.join(self.variants)}; export writes a package, variants[ROW].export_library one library"
        )
