"""Direct convolution whose int16 sums run over longer chains, in the order of a table: the loops.

They are those of `direct`, but for the walk of a tile through its inputs: chains of `chains.DEEP` groups,
then those of `chains.SHALLOW`, wherever in the window the groups lie. The number of the first of each step
of output channels follows the bias, then the place of each group in the padded map from a pixel's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..chains import DEEP, SHALLOW
from ..emit import after, after_llvm, tir, with_lanes
from ..epilogue import fence
from ..packing import groups_of
from ..problem import ConvSpec
from . import direct


class Chains(NamedTuple):
    """A multiply whose products are summed in int16.

    dot: its `direct.Dot`, which combines any number of groups. product(x, w) -> int16 lanes of a group;
    widen(sums) -> int32 lanes. side_by_side: where registers are few, the int16 sums of a whole tile are in
    them, a group after the other, and the int32 ones in memory; else a pixel's chain is summed at once, and
    its weights are in registers.
    """

    dot: direct.Dot
    product: Callable
    widen: Callable
    side_by_side: bool


def places(spec: ConvSpec, group: int) -> np.ndarray:
    """int32 (groups,): where each group of inputs of the window lies in the padded map, in elements from
    the first one of the first pixel, in the order of `packing.pack`."""
    _, _, width, channels = direct.padded_shape(spec, group)
    runs, length = groups_of(spec, group)
    columns = runs // spec.kernel[0]  # runs in a kernel row
    run = np.arange(runs)
    first = (run // columns * spec.dilation[0] * width + run % columns * spec.dilation[1]) * channels
    return (first[:, None] + group * np.arange(length)).reshape(-1).astype(np.int32)


def work(spec: ConvSpec, chains: Chains) -> tuple[float, ...]:
    """That of `direct.work`, then vectors of weights that tiles read."""
    counts = direct.work(spec, chains.dot)
    return *counts, counts[1] * float(np.prod(groups_of(spec, chains.dot.group)))


def compute(cfg, spec: ConvSpec, chains: Chains, data, weight, bias, multiplier, residual=None):
    """TE tensor of the convolution, as `direct.compute`; weight (blocks, 1, groups, lanes, 4), each step's
    groups in its order."""
    body = functools.partial(_Body, chains)
    return direct.compute(cfg, spec, chains.dot, data, weight, bias, multiplier, residual, body=body)


class _Body(direct.Body):
    """`direct.Body` with its own walk."""

    def __init__(self, chains, *parts):
        super().__init__(*parts)
        self.chains = chains
        self.groups_in_all = int(self.weight.shape[2])
        self.words = with_lanes("int16", 2 * self.dot.lanes)

    def window(self, tile, acc, slot):
        """Walk the chains."""
        steps = self.blocks // self.vectors
        step = tile.block // self.vectors
        numbers = self.blocks * self.dot.lanes  # they follow the bias
        deep = self.bias.vload([numbers + step])
        table = numbers + steps + step * self.groups_in_all
        if self.chains.side_by_side:
            text = f"{direct.BARRIER}\n{after_llvm(self.words)}"
            self.ib.scope_attr(self.data.data, "pragma_import_llvm", text)
        with self.ib.for_range(0, deep, "chain") as i:
            if tile.fetch is not None:
                tile.fetch(i, self.groups_in_all // DEEP)
            self.chain(tile, acc, slot, table, i * DEEP, DEEP)
        with self.ib.for_range(0, self.groups_in_all // SHALLOW - deep * (DEEP // SHALLOW), "rest") as i:
            self.chain(tile, acc, slot, table, deep * DEEP + i * SHALLOW, SHALLOW)

    def chain(self, tile, acc, slot, table, first, count):
        """``count`` groups of inputs from ``first`` on, for every pixel and vector."""
        at = [self.write.keep(self.bias.vload([table + first + d])) for d in range(count)]
        if self.chains.side_by_side:
            self.together(tile, acc, slot, at, first)
            return
        for p in range(tile.pixels):
            for v in range(self.vectors):
                xs = [self.inputs_at(tile, p, 0, 0, place) for place in at]
                ws = [self.weights_at(tile, v, 0, first + d) for d in range(count)]
                old = acc.vload(slot(p, v), self.sums)
                self.ib.emit(acc.vstore(slot(p, v), tile.dot.combine(old, xs, ws)))

    def together(self, tile, acc, slot, at, first):
        """A chain of every pixel and vector, one group after the other; at: the groups' places.

        A pixel's products with its vectors are made before they are added: right behind a multiply an add
        would take a port that the next one waits for."""
        keep, vectors = self.write.keep, range(self.vectors)
        lanes, floats = 2 * self.dot.lanes, with_lanes("float32", self.dot.lanes)
        # a buffer for each pixel: one of 1 KiB would be memory, not registers
        sums = [self.ib.allocate("int16", self.vectors * lanes, name="sums") for _ in range(tile.pixels)]
        for d, place in enumerate(at):
            self.ib.emit(tir.Evaluate(tir.call_extern("int32", "easyquant_barrier")))
            for p in range(tile.pixels):
                x = self.inputs_at(tile, p, 0, 0, place)
                ws = [self.weights_at(tile, v, 0, first + d) for v in vectors]
                made = [keep(self.chains.product(x, w)) for w in ws]
                for v in vectors:
                    total = made[v] if v else after(made[0], made[-1])
                    if d:  # the fence keeps the order of the sum, and so its registers
                        total = sums[p].vload([v * lanes], self.words) + total
                        total = tir.reinterpret(self.words, fence(tir.reinterpret(floats, total)))
                    self.ib.emit(sums[p].vstore([v * lanes], total))
        for p in range(tile.pixels):
            for v in vectors:
                widened = self.chains.widen(sums[p].vload([v * lanes], self.words))
                self.ib.emit(acc.vstore(slot(p, v), acc.vload(slot(p, v), self.sums) + widened))
