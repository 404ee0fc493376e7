"""`race` on this host: `benchmark`, and `keep_if_faster`, which chooses the layers that stay float.

Per-layer times are those of the virtual machine's calls: a layer with what was fused into it, and with the
one or two microseconds that it takes to look at the clock.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from topi_ext.relax import lower as lowering

from .. import package
from ..measure import race
from ..measure.race import Benchmark, Call, Faster, Progress, named
from ..network.graph import Graph
from ..runtime import vm
from ..scales.numerics import QuantConfig
from .build import Built, build
from .doctor import describe_host
from .framework import relax, tvm
from .rewrite import rewrite


def threads(count: int) -> None:
    """`Host.threads`."""
    tvm.get_global_func("runtime.config_threadpool")(1, count)  # 1: the big cores


def benchmark(graph: Graph, floats: Built, integers: Built, **options) -> Benchmark:
    """`race` of what `build` and `build_float` make; options: its."""
    return race.race(graph, floats, integers, threads_of=threads, machine=describe_host(), **options)


def calls(chosen: package.Chosen, feed: Mapping[str, np.ndarray], repeat: int = 10) -> list[Call]:
    """The calls of a package's network in order, with the layers that they are; their times are medians."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen.lay_out(folder)
        code, graph, parameters = (folder / package.FILES[use] for use in ("code", "graph", "parameters"))
        machine = relax.VirtualMachine(tvm.runtime.load_module(str(code)), tvm.cpu())
        stored = parameters.read_bytes()
        views = [vm.aligned(array.shape, array.dtype) for array in feed.values()]
        for view, array in zip(views, feed.values(), strict=True):
            np.copyto(view, array)
        for offset, shape, dtype in vm.weights(graph.read_bytes()):
            views.append(vm.aligned(shape, dtype))
            np.copyto(views[-1], np.frombuffer(stored, dtype, views[-1].size, offset).reshape(shape))
        names: list[str] = []
        times: list[float] = []
        begun = [0.0]

        def watch(function, name, before, *rest):
            if str(name).startswith("vm."):  # the machine's own
                return
            if before:
                begun[0] = time.perf_counter()
            else:
                times.append(1e3 * (time.perf_counter() - begun[0]))
                names.append(str(name))

        arguments = [tvm.runtime.from_dlpack(view) for view in views]
        machine["main"](*arguments)
        machine.set_instrument(watch)
        for _ in range(repeat):
            machine["main"](*arguments)
    medians = np.median(np.reshape(times, (repeat, -1)), axis=0)
    rows = zip(names, medians, strict=False)
    found = [Call(name, None, 0, 0, float(ms), name.startswith(lowering.PREFIX)) for name, ms in rows]
    return named(found, chosen.variant.layers if chosen.variant is not None else ())


def keep_if_faster(
    graph: Graph,
    floats: Built,
    config: QuantConfig,
    target=None,
    *,
    measure=benchmark,
    progress: Progress | None = None,
) -> Faster:
    """`race.keep_if_faster` of what `build` makes; floats: the float network for ``target``; measure:
    in place of `benchmark`."""

    def integers(table):
        return build(rewrite(graph, table), target)

    return race.keep_if_faster(graph, config, integers, partial(measure, graph, floats, progress=progress))
