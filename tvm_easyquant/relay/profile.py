"""`race` on this host: `benchmark`, and `keep_if_faster`, which chooses the layers that stay float.

Per-layer times are those of TVM's debug executor: a layer with what was fused into it (bias, requantize or
ReLU, a residual add).
"""

from __future__ import annotations

from functools import partial

from ..host import describe_machine
from ..measure import race
from ..measure.race import Benchmark, Faster, Progress
from ..network.graph import Graph
from ..scales.numerics import QuantConfig
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
    return race.race(graph, floats, integers, threads_of=threads, machine=describe_host(), **options)


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
