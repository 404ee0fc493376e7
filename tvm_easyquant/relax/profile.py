"""`race` on this host: `benchmark`, and `keep_if_faster`, which chooses the layers that stay float.

Per-layer times are those of the virtual machine's calls: a layer with what was fused into it, and with the
one or two microseconds that it takes to look at the clock.
"""

from __future__ import annotations

from ..measure.race import Benchmark, Faster, Progress, faster, noise, race
from ..network.graph import Graph
from ..scales.numerics import QuantConfig
from ..search.find import of_noise
from .build import Built, build
from .doctor import describe_host
from .framework import tvm
from .rewrite import rewrite


def threads(count: int) -> None:
    """`Host.threads`."""
    tvm.get_global_func("runtime.config_threadpool")(1, count)  # 1: the big cores


def benchmark(graph: Graph, floats: Built, integers: Built, **options) -> Benchmark:
    """`race` of what `build` and `build_float` make; options: its."""
    return race(graph, floats, integers, threads_of=threads, machine=describe_host(), **options)


def keep_if_faster(
    graph: Graph,
    floats: Built,
    config: QuantConfig,
    target=None,
    *,
    measure=benchmark,
    progress: Progress | None = None,
) -> Faster:
    """The layers that are faster in float on this CPU, if keeping them float speeds the network up.

    Measured with the scales of one noise sample, which do not change the time. floats: the float network,
    built for ``target``. measure: in place of `benchmark`. Raises what `benchmark` and `plan` raise.
    """
    feed = noise(graph)

    def measured(skip):
        table, bits = of_noise(graph, feed, config, skip)
        integers = build(rewrite(graph, table), target)
        return measure(graph, floats, integers, bits=bits, feed=feed, progress=progress)

    return faster(measured)
