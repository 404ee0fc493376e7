"""`race` on this host: `benchmark`, and `keep_if_faster`, which chooses the layers that stay float.

Per-layer times are those of TVM's debug executor: a layer with what was fused into it (bias, requantize or
ReLU, a residual add).
"""

from __future__ import annotations

from ..host import describe_machine
from ..measure.race import Benchmark, Faster, Progress, faster, noise, race
from ..network.graph import Graph
from ..scales.numerics import QuantConfig
from ..search.find import of_noise
from .build import Built, build
from .framework import tvm
from .rewrite import rewrite


def describe_host() -> dict:
    """`host.describe_machine`, and the versions of TVM and LLVM."""
    from tvm.target.codegen import llvm_version_major

    return {**describe_machine(), "tvm": str(tvm.__version__), "llvm": int(llvm_version_major())}


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
    **options,
) -> Faster:
    """The layers that are faster in float on this CPU, if keeping them float speeds the network up.

    Scales do not change the time, so this is measured with those of one noise sample, before any search.
    floats: the float network, built for ``target``. options: of `benchmark`, which ``measure`` may replace.
    Raises what `benchmark` and `plan` raise.
    """
    feed = noise(graph)

    def measured(skip):
        table, bits = of_noise(graph, feed, config, skip)
        integers = build(rewrite(graph, table), target)
        return measure(graph, floats, integers, bits=bits, feed=feed, progress=progress, **options)

    return faster(measured)
