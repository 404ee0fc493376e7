"""How a row of the manifest is made: a compute, the multiply it is made with, the proof of legality."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .. import bilinear, chains, winograd
from ..isa import Isa
from ..packing import fold_zero_point, groups_of, pack, pad_vector
from ..problem import EXACT, Bound, Refusal
from ..proofs import INT16_MAX, lane_reach, tap_bound
from ..targets import x86
from . import bilinear_conv, chain_conv, depthwise, direct, tile_conv, winograd_conv

#: of the inputs, the share in long chains from which those of a whole tile, side by side, pay
LONG = 0.5


class Kernel(NamedTuple):
    """One kernel.

    refuses(spec) -> a Refusal for a shape that it does not take, else None.
    proves(spec, weight) -> Bound | Refusal: whether it is legal for these weights (bias aside).
    pack(spec, weight, bias, multiplier) -> the constant arrays it takes; multiplier: (K,) or (2, K), see
        `ConvSpec`, of which the second lies behind the first.
    compute(cfg, spec, data, *constants[, residual]) -> te.Tensor, its loops already made.
    work(spec) -> what it does, in millions of operations of each kind, for `cost.estimate`.
    slow(spec) -> a Refusal where others are faster by a rule of thumb, else None; asked where no costs are
        measured.
    shares(spec, weight) -> {row: share} for a kernel that does a share of the layer as another row does.
    """

    name: str
    isa: str
    refuses: Callable
    proves: Callable
    pack: Callable
    compute: Callable
    work: Callable
    slow: Callable = lambda spec: None
    shares: Callable | None = None


def direct_row(name: str, row: Isa, dot: direct.Dot | Callable, proof: Callable | None = None) -> Kernel:
    """A row of the direct kernel with the multiply ``dot``, or dot(spec) if it depends on the layer.

    proof(spec, dot, weight) -> Bound | Refusal; None: exact for any weights.
    """
    dot_of = dot if callable(dot) else lambda spec: dot

    def refuses(spec):
        per_group, group = spec.in_channels // spec.groups, dot_of(spec).group
        if spec.groups > 1 and per_group % group:
            return Refusal(f"{per_group} input channels a group are not a multiple of {group}")
        return None

    def proves(spec, weight):
        return proof(spec, dot_of(spec), weight) if proof else EXACT

    def constants(spec, weight, bias, multiplier):
        dot = dot_of(spec)
        together = direct.filled(spec, dot)
        packed = pack(spec, weight.astype(dot.weight), dot.lanes, dot.group, together)
        vectors = fold_zero_point(bias, weight, -dot.offset), multiplier
        return (packed, *(pad_vector(spec, v, dot.lanes, together) for v in vectors))

    def compute(cfg, spec, data, *rest):
        return direct.compute(cfg, spec, dot_of(spec), data, *rest)

    def work(spec):
        return direct.work(spec, dot_of(spec))

    return Kernel(name, row.name, refuses, proves, constants, compute, work)


def tile_row(name: str, row: Isa, tiles: tile_conv.Tiles) -> Kernel:
    """A row of the kernel of whole tiles, of any weights."""
    group, lanes = tile_conv.GROUP, tile_conv.LANES

    def refuses(spec):
        per_group = spec.in_channels // spec.groups
        if spec.groups > 1 and per_group % group:
            return Refusal(f"{per_group} input channels a group are not a multiple of {group}")
        return None

    def slow(spec):
        if tile_conv.tiles_of(spec)[1] < tile_conv.ROWS // 4:
            return Refusal("too few pixels to fill a tile")
        return Refusal("too few inputs to fill a tile") if tile_conv.chunk_of(spec) < 16 else None

    def constants(spec, weight, bias, multiplier):
        return (pack(spec, weight, lanes, group), *(pad_vector(spec, v, lanes) for v in (bias, multiplier)))

    def compute(cfg, spec, data, *rest):
        return tile_conv.compute(cfg, spec, tiles, data, *rest)

    return Kernel(
        name, row.name, refuses, lambda spec, weight: EXACT, constants, compute, tile_conv.work, slow
    )


def mixed_row(row: Isa, deep: int, shallow: int) -> Kernel:
    """Direct rows ``deep`` and ``shallow`` in one: each block of output channels at the depth that its own
    weights allow. The depths follow the bias."""
    dot, less = (x86.int16_dot(row, depth) for depth in (deep, shallow))
    plain = direct_row(f"direct_{row.name}_d{deep}{shallow}", row, dot)
    names = [f"direct_{row.name}_d{depth}" for depth in (deep, shallow)]

    def depths(spec, packed):
        """The depth of every block, and how far an int16 lane gets."""
        reach = {d: lane_reach(packed, d, spec.data_max) for d in (deep, shallow)}
        together = direct.vectors_of(spec, dot)
        fits = (reach[deep] <= INT16_MAX).reshape(-1, together).all(axis=1).repeat(together)
        return np.where(fits, deep, shallow), np.where(fits, reach[deep], reach[shallow])

    def packed(spec, weight):
        return pack(spec, weight, dot.lanes, dot.group)

    def proves(spec, weight):
        found, reach = depths(spec, packed(spec, weight))
        worst, share = int(reach.max(initial=0)), float((found == deep).mean())
        if worst > INT16_MAX:
            return Refusal(f"an int16 lane of {2 * shallow} products may reach {worst}, beyond {INT16_MAX}")
        if share in (0, 1):
            return Refusal(f"every block is of depth {deep if share else shallow}")
        what = f"int16 lane of {2 * deep} products in {share:.0%} of the blocks, {2 * shallow} in the rest"
        return Bound(what, worst, INT16_MAX)

    def constants(spec, weight, bias, multiplier):
        arrays = plain.pack(spec, weight, bias, multiplier)
        found, _ = depths(spec, arrays[0])
        return (arrays[0], np.concatenate([arrays[1], found.astype(np.int32)]), arrays[2])

    def compute(cfg, spec, data, *rest):
        return direct.compute(cfg, spec, dot, data, *rest, shallow=less)

    def shares(spec, weight):
        found, _ = depths(spec, packed(spec, weight))
        share = float((found == deep).mean())
        return {names[0]: share, names[1]: 1 - share}

    return plain._replace(proves=proves, pack=constants, compute=compute, shares=shares)


def chain_row(row: Isa) -> Kernel:
    """Chains of int16 sums that are as long as the weights allow, in an order that makes them longer. The
    order follows the bias."""
    multiply = x86.int16_chains(row)
    dot, plain = multiply.dot, direct_row(f"chains_{row.name}", row, multiply.dot)

    def refuses(spec):
        if spec.groups > 1:
            return Refusal("grouped")
        if np.prod(groups_of(spec, dot.group)) < chains.DEEP:
            return Refusal(f"fewer than {chains.DEEP * dot.group} inputs of an output")
        if direct.rows_of(spec, dot)[1] == 1:
            return Refusal("a single pixel")
        if multiply.side_by_side and direct.vectors_of(spec, dot) == 1:
            return Refusal(f"no pairs of {dot.lanes} output channels")
        return None

    def arranged(spec, packed):
        flat = packed.reshape(len(packed), -1, dot.lanes, dot.group)
        return flat, chains.arrange(flat, direct.vectors_of(spec, dot), spec.data_max)

    def proves(spec, weight):
        together = direct.filled(spec, dot)
        _, order = arranged(spec, pack(spec, weight, dot.lanes, dot.group, together))
        if isinstance(order, Refusal):
            return order
        deep, less = 2 * chains.DEEP, 2 * chains.SHALLOW
        if multiply.side_by_side and order.share < LONG:
            return Refusal(f"int16 lanes hold {deep} products for {order.share:.0%} of the inputs")
        what = f"int16 lane of {deep} products for {order.share:.0%} of the inputs, {less} for the rest"
        return Bound(what, order.reach, INT16_MAX)

    def constants(spec, weight, bias, multiplier):
        packed, bias, multiplier = plain.pack(spec, weight, bias, multiplier)
        flat, order = arranged(spec, packed)
        count = order.groups.shape[1]
        more = [(0, count - flat.shape[1]) if axis == 1 else (0, 0) for axis in range(4)]
        each = order.groups.repeat(direct.vectors_of(spec, dot), axis=0)[:, :, None, None]
        taken = np.take_along_axis(np.pad(flat, more), each, axis=1)
        places = np.pad(chain_conv.places(spec, dot.group), more[1])
        table = [order.deep, places[order.groups].reshape(-1)]
        return taken[:, None], np.concatenate([bias, *table]), multiplier

    def compute(cfg, spec, data, *rest):
        return chain_conv.compute(cfg, spec, multiply, data, *rest)

    def work(spec):
        return chain_conv.work(spec, multiply)

    return plain._replace(refuses=refuses, proves=proves, pack=constants, compute=compute, work=work)


def depthwise_row(name: str, accumulator: str) -> Kernel:
    def refuses(spec):
        return None if spec.depthwise else Refusal("only for depthwise convolutions")

    def proves(spec, weight):
        if accumulator == "int16":
            return tap_bound(spec, weight)
        return EXACT

    def constants(spec, weight, bias, multiplier):
        center = depthwise.center(spec, weight) if accumulator == "int16" else 0 * bias
        taps = np.concatenate([weight.reshape(-1, spec.out_channels), -center[None]])
        padded = depthwise.padded
        return (padded(taps.astype(accumulator)), padded(bias + center), padded(multiplier).reshape(-1))

    def compute(cfg, spec, data, *rest):
        return depthwise.compute(cfg, spec, accumulator, data, *rest)

    return Kernel(name, "generic", refuses, proves, constants, compute, depthwise.work)


def _several_taps_refuse(spec) -> Refusal | None:
    """Of the depthwise kernels that take several taps of a kernel row at once."""
    if not spec.depthwise:
        return Refusal("only for depthwise convolutions")
    if spec.epilogue == "add" and spec.out_channels % depthwise.LANES:
        return Refusal(f"a residual add of channels that are not a multiple of {depthwise.LANES}")
    return Refusal("no two taps in a kernel row") if spec.kernel[1] < 2 else None


def depthwise_pairs_row(row: Isa) -> Kernel:
    """Depthwise with the byte-pair multiply: two taps of a channel at once."""
    ops = x86.pair_ops(row)

    def proves(spec, weight):
        pairs = depthwise.pair_bound(spec, weight)
        return depthwise.cut_bound(spec, weight) if isinstance(pairs, Bound) else pairs

    def constants(spec, weight, bias, multiplier):
        return depthwise.pack_pairs(spec, weight, bias, multiplier, ops.width)

    def compute(cfg, spec, data, *rest):
        return depthwise.compute_pairs(cfg, spec, ops, data, *rest)

    name = f"depthwise_{row.name}"
    return Kernel(name, row.name, _several_taps_refuse, proves, constants, compute, depthwise.work)


def depthwise_quads_row(row: Isa) -> Kernel:
    """Depthwise with the multiply of four bytes: four taps of a channel at once, of any weights."""
    ops = x86.quad_ops(row)

    def constants(spec, weight, bias, multiplier):
        return depthwise.pack_quads(spec, weight, bias, multiplier, ops.width)

    def compute(cfg, spec, data, *rest):
        return depthwise.compute_quads(cfg, spec, ops, data, *rest)

    def proves(spec, weight):
        return EXACT

    def work(spec):
        return depthwise.work(spec, 4)

    name = f"depthwise_{row.name}"
    return Kernel(name, row.name, _several_taps_refuse, proves, constants, compute, work)


def winograd_row(m: int, row: Isa, pairs: winograd_conv.WordPairs, tiles: int) -> Kernel:
    """F(m, 3) with the multiply ``pairs``; it pays from ``tiles`` tiles on (below, making U dominates)."""
    t = winograd.transform(m, 3)

    def refuses(spec):
        if spec.out_channels % pairs.lanes:
            return Refusal(f"{spec.out_channels} output channels are not a multiple of {pairs.lanes}")
        return winograd.refuses(t, spec)

    def proves(spec, weight):
        return winograd.proves(t, spec, weight)

    def slow(spec):
        down, across = winograd_conv.tiles_of(spec, t)
        if spec.batch * down * across < tiles:
            return Refusal(f"{spec.batch * down * across} tiles are too few to pay for the transforms")
        return Refusal("too few channels to pay for the transforms") if spec.in_channels < 32 else None

    def constants(spec, weight, bias, multiplier):
        block, channels = winograd_conv.block_of(spec, pairs.lanes), winograd_conv.pairs_of(spec)
        packed = pairs.order(winograd.pack(spec, t, weight, block, channels))
        return packed, bias, multiplier.reshape(-1)

    def compute(cfg, spec, data, *rest):
        return winograd_conv.compute(cfg, spec, t, pairs, data, *rest)

    def work(spec):
        return winograd_conv.work(spec, t, pairs)

    name = f"winograd_f{m}3_{row.name}"
    return Kernel(name, row.name, refuses, proves, constants, compute, work, slow)


def bilinear_row(scheme: bilinear.Scheme, row: Isa, dots: bilinear_conv.ByteDots) -> Kernel:
    """A scheme of fewer products with the multiply ``dots``."""

    def refuses(spec):
        return bilinear.refuses(scheme, spec)

    def proves(spec, weight):
        return bilinear.proves(scheme, spec, weight, dots.lanes)

    def constants(spec, weight, bias, multiplier):
        return bilinear.pack(scheme, spec, weight, bias, multiplier, dots.lanes)

    def compute(cfg, spec, data, *rest):
        return bilinear_conv.compute(cfg, spec, scheme, dots, data, *rest)

    def work(spec):
        return bilinear_conv.work(scheme, spec, dots)

    return Kernel(f"{scheme.name}_{row.name}", row.name, refuses, proves, constants, compute, work)
