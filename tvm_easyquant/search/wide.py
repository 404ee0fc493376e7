"""Which activations of a 7-bit network get 8 bits, their readers' weights staying at 7. No TVM here.

A few sites can make most of the noise at the outputs. With activations of 8 bits the readers of a site add
fewer products in int16, which costs them some time; others notice nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from topi_ext.reference import dequantize, quantize

from ..network.gradient import Each, Effect
from ..network.graph import run
from ..network.ops import linear
from ..scales.integer import Scales

#: a site is worth it from this share of the noise that the rounding of all sites makes at the outputs
SHARE = 0.04
#: of the network's multiply-accumulates those of all readers of wide sites together, at most: a stand-in
#: for the time, which only a host knows. A reader takes 0 (depthwise) to 15 % longer by the planner's
#: estimates for AVX2, so that the network takes less than 2 % longer
COST = 0.10
#: times the start's range: the search is yet to come, and a start that clips too much says nothing
RANGES = (1.0, 1.4, 1.8)


def noises(
    scales: Scales,
    feeds: Sequence[Mapping[str, np.ndarray]],
    effects: Mapping[str, list[Effect]],
    each: Each,
) -> dict[str, float]:
    """{site: the squared error at the outputs, relative to them, that its rounding makes alone, in the best
    of some ranges}, on the samples of the ``effects``, as far as layers that have one read it."""
    graph = scales.graph
    readers = [node for node in graph.compute_nodes if node.name in effects]
    reading: dict[str, list[int]] = {}
    for i, node in enumerate(readers):
        reading.setdefault(node.inputs[0], []).append(i)
    sums = np.zeros((len(feeds), len(readers), len(RANGES)))

    def measure(number: int) -> None:
        def see(node, value):
            if node.name not in reading:
                return
            start = scales.decided(node.name)
            for k, wider in enumerate(RANGES):
                s = start.with_scale(start.scale * wider)
                stored = quantize(value, s.scale, s.zero_point, s.lo, s.hi)
                error = dequantize(stored, s.scale, s.zero_point) - value
                for i in reading[node.name]:
                    moved = linear(error, readers[i], readers[i].weight)
                    moved *= effects[readers[i].name][number].value
                    sums[number, i, k] = np.square(moved, dtype=np.float64).sum()

        run(graph, feeds[number], see)

    each(measure, range(len(feeds)))
    found: dict[str, np.ndarray] = {}
    for node, noise in zip(readers, sums.mean(axis=0), strict=True):
        site = scales.plan.site_of[node.inputs[0]]
        found[site] = found.get(site, np.zeros(len(RANGES))) + noise
    return {site: float(noise.min()) for site, noise in found.items()}


def choose(scales: Scales, noise: Mapping[str, float]) -> tuple[str, ...]:
    """The sites of 7 bits that get 8: those of most noise, as far as `SHARE` and `COST` go."""
    graph, total, chosen = scales.graph, sum(noise.values()), []
    left = COST * graph.macs
    for site in sorted(noise, key=lambda name: (-noise[name], name)):
        readers = scales.plan.sites[site].readers
        cost = sum(graph[reader].macs or 0 for reader in readers)
        if noise[site] >= SHARE * total > 0 and cost <= left and scales.config.bits_of(*readers) < 8:
            chosen.append(site)
            left -= cost
    return tuple(chosen)
