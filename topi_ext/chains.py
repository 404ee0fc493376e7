"""In which order a direct kernel takes its groups of inputs, so that int16 holds longer sums. No TVM here.

Products of bytes are summed in int16, and what is summed is a chain; each chain is widened and added to
int32. A lane holds a chain if what its weights can reach fits. Most chains of `DEEP` groups in the order of
the channels do, while a few do not. An output's products may be summed in any order, so groups of such a
chain change places with groups of others; a chain that still does not fit becomes two of `SHALLOW`.

Each step of output channels has an order of its own: the kernel reads it from a table.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from typing import NamedTuple

import numpy as np

from .problem import Refusal
from .proofs import INT16_MAX

DEEP, SHALLOW = 8, 4  # groups of a chain
#: of a chain of DEEP, the groups of the first of two of SHALLOW
HALVES = np.array(list(itertools.combinations(range(DEEP), SHALLOW)))


class Order(NamedTuple):
    """groups: int32 (steps, groups), in the order they are taken, those of the deep chains first; from
    the layer's own number on they are zeros. deep: int32 (steps,), the chains of `DEEP`. reach: how far an
    int16 lane gets."""

    groups: np.ndarray
    deep: np.ndarray
    reach: int

    @property
    def share(self) -> float:
        """Of the groups, those in deep chains."""
        return float(DEEP * self.deep.sum() / self.groups.size)


def arrange(packed: np.ndarray, together: int, data_max: int) -> Order | Refusal:
    """An order for each step of ``together`` blocks in which every int16 lane holds its chain.

    packed: int8 (blocks, groups, lanes, 4), as `packing.pack` makes them, runs one behind the other.
    """
    return _arranged(_Weights(packed), together, data_max)


class _Weights:
    """An array as a key."""

    def __init__(self, array):
        self.array = array
        self.digest = hashlib.blake2b(array.tobytes()).digest(), array.shape

    def __eq__(self, other):
        return isinstance(other, _Weights) and self.digest == other.digest

    def __hash__(self):
        return hash(self.digest)


@functools.lru_cache(maxsize=64)  # a choice, its packing and its reason ask the same
def _arranged(weights: _Weights, together: int, data_max: int) -> Order | Refusal:
    packed = weights.array
    blocks, count, lanes, _ = packed.shape
    padded = np.concatenate([packed, np.zeros((blocks, -count % SHALLOW, lanes, 4), np.int8)], axis=1)
    pairs = padded.reshape(blocks // together, together, -1, lanes, 2, 2).astype(np.int32)
    reaches = np.stack([np.maximum(pairs, 0).sum(-1), np.maximum(-pairs, 0).sum(-1)], axis=-1)
    steps = np.moveaxis(reaches, 2, 1).reshape(len(pairs), pairs.shape[2], -1)
    limit = INT16_MAX // max(data_max, 1)
    orders, deep, worst = [], [], 0
    for reach in steps:
        order, count, most = _order(reach, limit)
        orders.append(order)
        deep.append(count)
        worst = max(worst, most * data_max)
    if worst > INT16_MAX:
        return Refusal(f"an int16 lane of {2 * SHALLOW} products may reach {worst}, beyond {INT16_MAX}")
    return Order(np.array(orders, np.int32), np.array(deep, np.int32), worst)


def _order(reach: np.ndarray, limit: int) -> tuple[np.ndarray, int, int]:
    """(order, deep chains, how far a lane gets per unit of data) of a step.

    reach: (groups, lanes and signs), of each group alone.
    """
    deep = len(reach) // DEEP
    chains, sums = _exchanged(np.arange(deep * DEEP).reshape(deep, DEEP), reach, limit)
    fits = sums.max(axis=1, initial=0) <= limit
    rest = [np.arange(deep * DEEP, len(reach))] if len(reach) % DEEP else []
    for chain in chains[~fits]:
        halves = reach[chain[HALVES]].sum(axis=1).max(axis=1)
        best = int(np.maximum(halves, halves[::-1]).argmin())  # the other half is the mirrored one
        rest += [chain[HALVES[best]], chain[HALVES[-1 - best]]]
    most = max((int(reach[each].sum(axis=0).max()) for each in [*chains[fits], *rest]), default=0)
    return np.concatenate([*chains[fits], *rest]), int(fits.sum()), most


def _exchanged(chains, reach, limit) -> tuple[np.ndarray, np.ndarray]:
    """Chains after exchanges that bring those beyond the limit nearer to it, and their reaches.

    The furthest comes first; one that no exchange helps is left.
    """
    sums, left = reach[chains].sum(axis=1), set(range(len(chains)))
    for _ in range(DEEP * len(chains)):
        worst = sums.max(axis=1, initial=0)
        i = max(left, key=lambda n: (worst[n], -n), default=None)
        if i is None or worst[i] <= limit:
            break
        others = np.delete(np.arange(len(chains)), i)
        more = reach[chains[i]][:, None] - reach[chains[others].ravel()]  # mine, theirs, lanes
        theirs = np.repeat(sums[others], DEEP, axis=0)
        after = np.maximum((sums[i] - more).max(-1) - limit, 0) + np.maximum(
            (theirs + more).max(-1) - limit, 0
        )
        gain = worst[i] - limit + np.maximum(theirs.max(-1) - limit, 0) - after
        if gain.size == 0 or gain.max() <= 0:
            left.discard(i)
            continue
        mine, place = np.unravel_index(gain.argmax(), gain.shape)
        j, theirs_at = others[place // DEEP], place % DEEP
        chains[i, mine], chains[j, theirs_at] = chains[j, theirs_at], chains[i, mine]
        sums[[i, j]] = reach[chains[[i, j]]].sum(axis=1)
        left.add(j)
    return chains, sums
