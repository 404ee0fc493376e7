"""Which kernel each layer gets, and its stored time. Kernels are not measured on this host yet."""

from __future__ import annotations

from topi_ext.planner import LayerChoice
from topi_ext.relax.lower import choose

from ..network.graph import Graph
from ..scales.layers import choices, stored_times
from ..scales.table import ScaleTable
from .artefact import target_text
from .build import cpu_target


def layer_choices(graph: Graph, table: ScaleTable, target) -> list[LayerChoice]:
    """The kernel of every integer layer of a graph under its table, from the layers' record."""
    return choices(graph, table, lambda layers: choose(layers, cpu_target(target)))


def layer_times(graph: Graph, table: ScaleTable, target) -> dict[str, float]:
    """{layer: microseconds of its kernel by the stored costs}; TuneError where a kernel has none."""
    return stored_times(layer_choices(graph, table, target), target_text(cpu_target(target)))
