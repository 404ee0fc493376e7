"""Normalizations: by numbers that are known, by a tensor's own mean and variance, by its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from ..onnx_op import Call, NotConstant
from .algebra import Value, value, values


def _moments(x: Value, axes: Sequence[int]) -> tuple[Value, Value, Value]:
    """(mean, x without it, variance of all there is), the first and the last with axes of size 1."""
    mean = x.mean(axes)
    centred = x - mean
    return mean, centred, (centred * centred).mean(axes)


def _batch_norm(call: Call) -> Any:
    """In training by the batch's own moments; below opset 14 that is where more than Y is asked for."""
    x, scale, bias, mean, variance = values(call)
    if x.rank < 2:
        raise NotConstant("BatchNormalization of a vector")
    spatial = call.get("spatial", 1)  # opset 7 alone could say 0: one number for each place
    channels = (x.shape[1], *[1] * (x.rank - 2)) if spatial else x.shape[1:]
    axes = [0, *range(2, x.rank)] if spatial else [0]
    wanted = [name for name in call.op.node.output if name]
    training = call["training_mode"] if call.opset >= 14 else len(wanted) > 1
    now, running = [], [mean, variance]
    if training:
        of_batch, _, spread = _moments(x, axes)
        now, keep = [moment.reshape(mean.shape) for moment in (of_batch, spread)], call["momentum"]
        running = [old * keep + new * (1 - keep) for old, new in zip(running, now, strict=True)]
        mean, variance = now
    factor = (scale / (variance + call["epsilon"]).sqrt()).reshape((1, *channels))
    y = (x - mean.reshape((1, *channels))) * factor + bias.reshape((1, *channels))
    return tuple(v.tensor for v in (y, *running, *now))


def _instance_norm(call: Call) -> Any:
    x, scale, bias = values(call)
    return call.t.group_norm(x.tensor, scale.tensor, bias.tensor, x.shape[1], call["epsilon"])


def _group_norm(call: Call) -> Any:
    """Scale and bias are one per group, from opset 21 on one per channel."""
    x, scale, bias = values(call)
    groups, each = call["num_groups"], x.shape[1] // call["num_groups"]
    if call.opset < 21:
        scale, bias = (_repeated(numbers, each) for numbers in (scale, bias))
    return call.t.group_norm(x.tensor, scale.tensor, bias.tensor, groups, call["epsilon"])


def _repeated(numbers: Value, times: int) -> Value:
    """(G,) -> (G * times,), each as often."""
    groups = numbers.shape[0]
    return numbers.reshape((groups, 1)).broadcast((groups, times)).reshape((groups * times,))


def _layer_norm(call: Call) -> Any:
    x, scale, bias = *values(call)[:2], value(call, 2)
    axes = range(call["axis"] % x.rank, x.rank)
    mean, centred, variance = _moments(x, axes)
    inverse = 1 / (variance + call["epsilon"]).sqrt()
    y = centred * inverse * scale
    y = y if bias is None else y + bias
    return y.tensor, mean.tensor, inverse.tensor


def _lp_norm(call: Call) -> Any:
    """Nothing but zeros stays zeros."""
    (x,) = values(call)
    axis = [call["axis"] % x.rank]
    norm = x.abs().sum(axis) if call["p"] == 1 else (x * x).sum(axis).sqrt()
    return (x / norm.where(norm > 0, 1)).tensor


def _mean_variance(call: Call) -> Any:
    (x,) = values(call)
    _, centred, variance = _moments(x, [axis % x.rank for axis in call["axes"]])
    return (centred / (variance.sqrt() + 1e-9)).tensor


def _local_response(call: Call) -> Any:
    """By the squares of the ``size`` channels around, as a pool over the channels."""
    (x,) = values(call)
    n, c, *spatial = x.shape
    size = call["size"]
    before = (size - 1) // 2
    squares = (x * x).reshape((n, 1, c, prod(spatial))).tensor
    padding = (before, 0, size - 1 - before, 0)
    pooled = Value(call.t, call.t.pool("sum", squares, (size, 1), (1, 1), padding, (1, 1)))
    around = pooled.reshape(x.shape)
    return (x / (call["bias"] + call["alpha"] / size * around) ** call["beta"]).tensor


RULES: dict[str, Callable[[Call], Any]] = {
    "BatchNormalization": _batch_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _lp_norm,
    "LRN": _local_response,
    "MeanVarianceNormalization": _mean_variance,
}
