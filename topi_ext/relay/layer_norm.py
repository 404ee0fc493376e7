"""Layer normalization of a stored tensor in Relay: written for a rewriter, read back by `LowerInteger`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from tvm import relay

from .expression import name_of, value_of


class LayerNorm(NamedTuple):
    """data: uint8, its channels last; gain, shift, epsilon: as `reference.layer_norm` takes them."""

    data: Any
    gain: np.ndarray
    shift: np.ndarray
    epsilon: float


def write(norm: LayerNorm) -> relay.Expr:
    """float32, in stock operators: `reference.layer_norm`."""
    channels = len(norm.gain)
    steps = relay.cast(norm.data, "int32")
    total = relay.sum(steps, axis=-1, keepdims=True)
    squares = relay.sum(steps * steps, axis=-1, keepdims=True)
    wide = relay.cast(total, "int64")
    spread = relay.cast(squares, "int64") * relay.const(channels, "int64") - wide * wide
    root = relay.sqrt(relay.cast(spread, "float32") + relay.const(np.float32(norm.epsilon)))
    centred = relay.cast(steps * relay.const(channels, "int32") - total, "float32")
    scaled = centred * (relay.const(np.float32(1)) / root) * relay.const(np.float32(norm.gain))
    return scaled + relay.const(np.float32(norm.shift))


#: what `write` makes, from its end: operator, the place of what was made before
CENTRED = (("add", 0), ("multiply", 0), ("multiply", 0), ("cast", 0), ("subtract", 0), ("multiply", 0))
INVERSE = (("divide", 1), ("sqrt", 0), ("add", 0), ("cast", 0), ("subtract", 0), ("multiply", 0))


def read(expr) -> LayerNorm | None:
    """What `write` was given; None of an expression that it did not make."""
    centred = _down(expr, CENTRED)
    if centred is None or name_of(centred[-1]) != "cast":
        return None
    added, scaled, product, *_, steps = centred
    inverse = _down(product.args[1], INVERSE)
    vectors = [added.args[1], scaled.args[1]]
    if inverse is None or not all(isinstance(x, relay.Constant) for x in (*vectors, inverse[2].args[1])):
        return None
    squares, data = inverse[-1], steps.args[0]
    sums = _down(squares, (("cast", 0), ("sum", 0), ("multiply", 0)))
    if sums is None or not sums[-1].same_as(steps) or data.checked_type.dtype != "uint8":
        return None
    shift, gain = map(value_of, vectors)
    return LayerNorm(data, gain, shift, float(value_of(inverse[2].args[1])))


def _down(expr, path) -> list | None:
    """The calls along a path of operators, and what the last of them is made of."""
    found = [expr]
    for name, place in path:
        if name_of(found[-1]) != name:
            return None
        found.append(found[-1].args[place])
    return found
