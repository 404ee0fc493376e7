"""Our integers against TVM's float32 of the same model, on this machine: whole networks and each layer.

The two networks are timed in turn, so that a noisy machine disturbs both alike. A round's figure is the
least of a few bursts of about a millisecond; figures are medians over the rounds, ratios the medians of the
rounds' ratios. Per-layer times are those of TVM's debug executor: a
layer with what was fused into it (bias, requantize or ReLU, a residual add).
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import numpy as np

from topi_ext import isa
from topi_ext.lower import LayerPlan, LowerInteger
from topi_ext.relay import op as relay_op

from ..network.graph import Graph, GraphError
from ..network.node import model_shape
from ..scales.calibrate import calibrate, start_table
from ..scales.numerics import SWITCHES, QuantConfig
from ..scales.partition import plan
from .build import Executor, cpu_target
from .framework import BUILD_CONFIG, no_tophub, relay, tvm
from .rewrite import rewrite

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class LayerTime:
    """Milliseconds of one layer; None where its time cannot be told from its neighbours'."""

    name: str
    kind: str  # "int7", "int8" or "float32"
    kernel: str
    ms: float | None
    ms_fp32: float | None

    @property
    def slower(self) -> bool:
        """Whether it runs in integers and took longer than in float: by 5 % and by 2 us, what the timer
        tells apart."""
        if self.kind == "float32" or self.ms is None or self.ms_fp32 is None:
            return False
        return self.ms > 1.05 * self.ms_fp32 and self.ms > self.ms_fp32 + 0.002


@dataclass(frozen=True)
class Benchmark:
    """ms, ms_fp32: medians of the whole networks; speedup: fp32 / integer, the median over the rounds.

    spread: (least, most) of the integer network's times. other_ms: of everything that is no layer, in the
    integer network (quantize, pools, ...). host: the machine, see `describe_host`. size, size_fp32: of the
    compiled networks, in bytes, see `compiled_size`.
    """

    ms: float
    ms_fp32: float
    speedup: float
    spread: tuple[float, float]
    layers: list[LayerTime]
    other_ms: float | None
    threads: int
    rounds: int
    target: str
    host: dict = field(default_factory=dict)
    size: int | None = None
    size_fp32: int | None = None

    @property
    def slower(self) -> list[LayerTime]:
        """The integer layers that took longer than in float."""
        return [layer for layer in self.layers if layer.slower]

    @property
    def notes(self) -> list[str]:
        """What an exit note says where integers do not pay; empty where they do."""
        lines = []
        if self.speedup < 1:
            lines.append(
                f"the integer network takes {1 / self.speedup:.2f} times as long as TVM's float32 here"
            )
        if self.slower:
            worst = max(self.slower, key=lambda layer: (layer.ms or 0.0) - (layer.ms_fp32 or 0.0))
            lines.append(
                f"{len(self.slower)} integer layers are slower than in float; most of all {worst.name}: "
                f"{worst.ms:.3f} against {worst.ms_fp32:.3f} ms"
            )
        return lines


def describe_host() -> dict:
    """cpu (its name, or what Linux knows of it), family and model, rows of `isa.ISAS`, cores, versions."""
    from tvm.target.codegen import llvm_version_major

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
    return {
        **facts,
        "isa": [name for name in isa.ISAS if isa.host_has(name)],
        "cores": os.cpu_count(),
        "tvm": str(tvm.__version__),
        "llvm": int(llvm_version_major()),
    }


def build_float(module, target=None):
    """TVM's own float32 build of a Relay module, opt_level 3: what ours is compared with."""
    with no_tophub(), tvm.transform.PassContext(opt_level=3, config=BUILD_CONFIG):
        return relay.build(module, cpu_target(target))


def build_integer(module, target=None) -> tuple[object, dict[str, LayerPlan], list[str]]:
    """(TVM's library of an integer Relay module with our kernels, its layers' kernel plans by name, the
    layers' names in the order in which the library calls them)."""
    target = cpu_target(target)
    lower = LowerInteger(target)
    with no_tophub(), tvm.transform.PassContext(opt_level=3, config=BUILD_CONFIG):
        lowered = lower(module)
        library = relay.build(lowered, target)
    order = []

    def visit(expr):
        if isinstance(expr, relay.Call) and str(getattr(expr.op, "name", "")).startswith(relay_op.CONV2D):
            order.append(expr.span.source_name.name if expr.span else "")

    relay.analysis.post_order_visit(lowered["main"], visit)
    return library, {plan.name: plan for plan in lower.layers}, order


def compiled_size(library) -> int:
    """Bytes of a compiled network: its machine code (an object file) and its parameters."""
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / "code.o"
        library.get_lib().save(str(code))
        parameters = sum(p.numpy().nbytes for p in library.get_params().values())
        return code.stat().st_size + parameters


@dataclass(frozen=True)
class _Call:
    """One call of a library: its function, the sizes of its largest constant and output, its time."""

    function: str
    weight: int
    output: int
    ms: float

    @property
    def ours(self) -> bool:
        return "easyquant_conv2d" in self.function

    @property
    def layer(self) -> bool:
        """Whether it holds a convolution or dense layer."""
        return self.ours or any(word in self.function for word in ("conv2d", "dense", "batch_matmul"))


class _Profile:
    """A library under TVM's debug executor."""

    def __init__(self, library, feed, folder):
        from tvm.contrib.debugger import debug_executor

        text, params = library.get_graph_json(), library.get_params()
        graph = json.loads(text)
        shapes, row = graph["attrs"]["shape"][1], graph["node_row_ptr"]
        self.sizes = []
        for i, node in enumerate(graph["nodes"]):
            if node["op"] != "null":
                names = [graph["nodes"][entry[0]]["name"] for entry in node["inputs"]]
                weights = [prod(params[name].shape) for name in names if name in params]
                self.sizes.append((max(weights, default=0), prod(shapes[row[i]])))
        self.executor = debug_executor.create(text, library.get_lib(), tvm.cpu(), dump_root=folder)
        self.executor.set_input(**params)
        self.executor.set_input(**feed)
        self.times: list[list[float]] = []
        self.names: list[str] = []

    def run(self):
        rows = self.executor.profile().calls
        self.names = [str(row["Name"]) for row in rows]
        self.times.append([float(row["Duration (us)"].microseconds) / 1e3 for row in rows])

    @property
    def calls(self) -> list[_Call]:
        medians = np.median(self.times, axis=0)
        sizes = self.sizes if len(self.sizes) == len(medians) else [(0, 0)] * len(medians)
        rows = zip(self.names, sizes, medians, strict=True)
        return [_Call(name, size[0], size[1], float(ms)) for name, size, ms in rows]


def benchmark(
    graph: Graph,
    float_module,
    integer_module,
    target=None,
    *,
    bits: Mapping[str, int] | None = None,
    feed: Mapping[str, np.ndarray] | None = None,
    threads: int = 1,
    rounds: int = 15,
    layers: bool = True,
    progress: Progress | None = None,
) -> Benchmark:
    """Time ``integer_module`` with our kernels and ``float_module`` as TVM builds it.

    graph: the float network of both. bits: layer -> bits of the integer layers, for the rows' names. feed:
    {input: float32 array} (default: normal noise). target: default this CPU. layers: also each layer.
    """
    target = cpu_target(target)
    integer, plans, order = build_integer(integer_module, target)
    floats = build_float(float_module, target)
    if feed is None:
        rng = np.random.default_rng(0)
        feed = {n: rng.standard_normal(model_shape(graph[n])).astype(np.float32) for n in graph.inputs}
    tvm.get_global_func("runtime.config_threadpool")(1, threads)
    executors = [Executor(integer), Executor(floats)]
    for executor in executors:
        executor(feed)
    times = []
    number = [max(1, round(1 / max(0.01, e.milliseconds(repeat=1)[0]))) for e in executors]
    with tempfile.TemporaryDirectory() as folder:
        profiles = [_Profile(lib, feed, folder) for lib in (integer, floats)] if layers else []
        for i in range(rounds):
            turn = (0, 1) if i % 2 else (1, 0)
            found = {k: min(executors[k].milliseconds(repeat=7, number=number[k])) for k in turn}
            times.append((found[0], found[1]))
            for k in turn if layers else ():
                profiles[k].run()
            if progress is not None:
                progress(i + 1, rounds, "benchmark")
    rows, other = (
        _rows(graph, plans, order, bits or {}, *(p.calls for p in profiles)) if layers else ([], None)
    )
    mine, theirs = np.array(times).T
    return Benchmark(
        float(np.median(mine)), float(np.median(theirs)), float(np.median(theirs / mine)),
        (float(mine.min()), float(mine.max())), rows, other, threads, rounds, str(target), describe_host(),
        compiled_size(integer), compiled_size(floats),
    )  # fmt: skip


def _rows(graph, plans, order, bits, integer_calls, float_calls):
    """(the layers' times by name, the milliseconds of everything else in the integer network)."""
    ours = [call.ms for call in integer_calls if call.ours]
    known = dict(zip(order, ours, strict=True)) if len(ours) == len(order) else {}
    kept = [node for node in graph.compute_nodes if node.name not in plans]
    known.update(_by_size(kept, [c for c in integer_calls if c.layer and not c.ours]))
    theirs = _by_size(graph.compute_nodes, [c for c in float_calls if c.layer])
    rows = []
    for node in graph.compute_nodes:
        plan = plans.get(node.name)
        kind = f"int{bits.get(node.name, 8)}" if plan else "float32"
        kernel = plan.plan.kernel.name if plan else "TVM"
        rows.append(LayerTime(node.name, kind, kernel, known.get(node.name), theirs.get(node.name)))
    return rows, sum(call.ms for call in integer_calls) - sum(row.ms or 0.0 for row in rows)


def _by_size(nodes, calls) -> dict[str, float]:
    """{node: milliseconds} of TVM's own layers. Fusion may change their order, so that a layer is told by
    the sizes of its weights and output; layers of equal sizes come in the order of the graph."""
    found: dict[tuple[int, int], list[float]] = {}
    for call in calls:
        found.setdefault((call.weight, call.output), []).append(call.ms)
    wanted: dict[tuple[int, int], list[str]] = {}
    for node in nodes:
        wanted.setdefault((node.weight.size, prod(node.shape)), []).append(node.name)
    times: dict[str, float] = {}
    for size, names in wanted.items():
        if len(names) == len(found.get(size, ())):
            times.update(zip(names, found[size], strict=True))
    return times


@dataclass(frozen=True)
class Faster:
    """What `keep_if_faster` decided: the layers to keep float, the measurement that stands, and why."""

    skip: tuple[str, ...]
    benchmark: Benchmark
    notes: tuple[str, ...]


def keep_if_faster(
    graph: Graph, float_module, config: QuantConfig, target=None, *, measure=None, progress=None, **options
) -> Faster:
    """The layers that are faster in float on this CPU, if keeping them float speeds the network up.

    Scales do not change the time, so this is measured with those of one noise sample, before any search.
    The slower layers are taken out together; they stay float only if the whole network is then faster: a
    float layer between integer ones costs its conversions. options: of `benchmark`, which ``measure`` may
    replace. Raises what `benchmark` and `sites.plan` raise.
    """
    rng = np.random.default_rng(0)
    feed = {n: rng.standard_normal(model_shape(graph[n])).astype(np.float32) for n in graph.inputs}

    def measured(skip):
        plain = {name: None for name in SWITCHES}
        settings = replace(config, **plain, method="minmax", skip=(*config.skip, *skip))
        plan_ = plan(graph, settings.skip)
        table = start_table(graph, plan_, calibrate(graph, plan_, [feed], settings), settings)
        bits = {node.name: settings.bits_of(node.name) for node in graph.compute_nodes}
        return (measure or benchmark)(
            graph, float_module, rewrite(graph, table), target, bits=bits, feed=feed, progress=progress,
            **options,
        )  # fmt: skip

    found = measured(())
    slow, notes = tuple(layer.name for layer in found.slower), []
    if slow:
        try:
            without = measured(slow)
        except GraphError:  # nothing would be left
            notes.append("every layer is faster in float here")
            slow = ()
        else:
            if without.speedup > found.speedup:
                notes.append(
                    f"{len(slow)} layers stay float because they are faster so: {without.ms:.3f} instead "
                    f"of {found.ms:.3f} ms"
                )
                found = without
            else:
                notes.append(
                    f"{len(slow)} layers are slower in integers ({', '.join(slow[:3])}"
                    f"{', ...' if len(slow) > 3 else ''}), but the network is not faster with them in float"
                )
                slow = ()
    if found.speedup < 1:
        notes.append(
            f"the integer network takes {1 / found.speedup:.2f} times as long as TVM's float32 here; for "
            "speed, compile the float model"
        )
    return Faster(slow, found, tuple(notes))
