"""The norm: what every integer operator of this project computes, in numpy.

This file is the definition. Kernels, the Relay lowering, the scale search and the exports must
give these integers exactly, with no tolerance.

Numbers
-------
``real = scale * (q - zero_point)``; ``scale`` is float32, in real units per step.
Feature maps are NHWC: ``q: uint8 (N, H, W, C)``. Convolution weights are HWIO: ``int8 (R, S, C /
groups, K)``. Accumulators are int32 and never wrap: a result outside int32 raises `OverflowError`.

Rounding
--------
Always half to even, always after float32 arithmetic, one IEEE operation after the other, never
contracted to a fused multiply-add:

==============  ==========================================================================
quantize        ``clip(rint(x / scale) + zero_point, lo, hi)``
dequantize      ``float32(q - zero_point) * scale``
requantize      ``clip(rint(float32(acc) * multiplier) + zero_point, lo, hi)``
add             ``quantize(dequantize(a) + dequantize(b))``; sub, max and min likewise
mul             requantize of the int32 product of the steps, with ``multiplier(a, b, out)``
product         the exact int32 sum of the products of the steps of two tensors
elementwise     ``table[q]``, the table made of ``quantize(f(dequantize(q)))``
layer norm      quantize of `layer_norm`, by exact integer sums over the channels
linear resize   requantize of the exact int32 sum of two rows' and two columns' parts
average pool    requantize of the exact int32 sum, with ``multiplier(in, 1 / count, out)``; where windows
                hold different counts, of the sum times ``parts / count``, parts their least common multiple
==============  ==========================================================================

A function between a layer and its rounding (LeakyReLU, hard-swish, SiLU) is part of the requantize:
``clip(rint(function(float32(acc) * multiplier)) + zero_point, lo, hi)``; `function` defines it.

This is the meaning ONNX gives to QuantizeLinear, DequantizeLinear and QLinearConv, and what a SIMD
unit does (``cvtdq2ps``, ``mulps``, round to nearest even). Max pool, concat, reshape, slice, gather, pad,
resize and depth to space move integers and compute nothing; their inputs and output share one scale.

``float32(acc)`` is itself rounded to nearest even where ``|acc| > 2**24``. Every implementation
rounds that conversion the same way, so integers stay equal on every CPU; against exact real
arithmetic such a layer may be one step off, next to a tie, which is below float32's own error.
"""

from __future__ import annotations

import numpy as np

from .function import apply

INT32_MAX = 2**31 - 1
#: how many products of two stored numbers, each less its zero point, a sum may have: it stays below 2**30
MOST_PRODUCTS = 2**30 // 255**2


def multiplier(input_scale, weight_scale, output_scale):
    """The float32 requantize multiplier ``(input_scale * weight_scale) / output_scale``.

    Each operation is rounded to float32, in this order (as ONNX Runtime's QLinearConv does).
    Scalars or float32 (K,) arrays; returns the broadcast float32 array.
    """
    product = np.float32(input_scale) * np.asarray(weight_scale, np.float32)
    return (product / np.float32(output_scale)).astype(np.float32)


def _store(rounded, zero_point, lo, hi):
    """Integral float32 values -> uint8 after adding the zero point and clipping to [lo, hi]."""
    clipped = np.clip(rounded, np.float32(lo - zero_point), np.float32(hi - zero_point))
    return (clipped.astype(np.int32) + np.int32(zero_point)).astype(np.uint8)


def quantize(x, scale, zero_point, lo=0, hi=255):
    """float32 (...) -> uint8 (...): ``clip(rint(x / scale) + zero_point, lo, hi)``."""
    x = np.asarray(x, np.float32)
    return _store(np.rint(x / np.float32(scale)), zero_point, lo, hi)


def dequantize(q, scale, zero_point):
    """uint8 or int32 (..., K) -> float32: ``float32(q - zero_point) * scale``.

    ``scale`` is a scalar, or float32 (K,) along the last axis.
    """
    steps = np.asarray(q).astype(np.int32) - np.int32(zero_point)
    return steps.astype(np.float32) * np.asarray(scale, np.float32)


def requantize(acc, multiplier, zero_point, lo=0, hi=255, function=None, other=None):
    """int32 (..., K) -> uint8: ``clip(rint(float32(acc) * multiplier) + zero_point, lo, hi)``.

    function: of the product, before it is rounded (`function.Fused`), with the vector ``other``.
    """
    scaled = np.asarray(acc, np.int32).astype(np.float32) * np.asarray(multiplier, np.float32)
    if function is not None:
        scaled = apply(function, scaled, other)
    return _store(np.rint(scaled), zero_point, lo, hi)


#: what is made of two stored tensors in float32
JOINS = {"add": np.add, "sub": np.subtract, "max": np.maximum, "min": np.minimum}


def join(op, a, b, a_scale, a_zero_point, b_scale, b_zero_point, scale, zero_point, lo=0, hi=255,
         function=None):  # fmt: skip
    """Two uint8 tensors, broadcast, each with its own scale -> uint8: dequantize, an operator of `JOINS`,
    quantize, all in float32.

    function: of what the operator makes, before it is quantized, in the form of `function.canonical`
    without vectors.
    """
    made = JOINS[op](dequantize(a, a_scale, a_zero_point), dequantize(b, b_scale, b_zero_point))
    made = made if function is None else apply(function, made)
    return quantize(made, scale, zero_point, lo, hi)


def add(a, b, *numbers, **more):
    """uint8 + uint8 -> uint8: `join`."""
    return join("add", a, b, *numbers, **more)


def mul(a, b, a_scale, a_zero_point, b_scale, b_zero_point, scale, zero_point, lo=0, hi=255):
    """uint8 * uint8 -> uint8, broadcast: the exact product of the steps, requantized."""
    product = (a.astype(np.int32) - np.int32(a_zero_point)) * (b.astype(np.int32) - np.int32(b_zero_point))
    return requantize(product, multiplier(a_scale, b_scale, scale), zero_point, lo, hi)


def spread_epsilon(epsilon, channels, scale):
    """The float32 epsilon of `layer_norm`, from that of a variance of real numbers; positive and finite."""
    limits = np.finfo(np.float32)
    exact = np.float64(epsilon) * np.float64(channels) ** 2 / np.float64(np.float32(scale)) ** 2
    return np.float32(np.clip(exact, limits.tiny, limits.max))


def layer_norm(q, gain, shift, epsilon):
    """uint8 (..., C) -> float32: each number less the mean of its C channels, over the root of their
    variance plus an epsilon, times ``gain`` plus ``shift``, both float32 (C,).

    Of integers, C times as large: ``float32(C * q - sum) * (1 / sqrt(float32(C * squares - sum**2) +
    epsilon)) * gain + shift``. The sums are exact, and neither scale nor zero point is in them; C is at
    most `MOST_PRODUCTS`. epsilon: `spread_epsilon`.
    """
    q = np.asarray(q).astype(np.int64)
    channels = q.shape[-1]
    total = q.sum(axis=-1, keepdims=True)
    spread = channels * (q * q).sum(axis=-1, keepdims=True) - total * total
    inverse = np.float32(1) / np.sqrt(spread.astype(np.float32) + np.float32(epsilon))
    return (channels * q - total).astype(np.float32) * inverse * gain + shift


def as_int32(exact, what):
    """An exact integer result as int32; raises OverflowError naming ``what`` if it does not fit."""
    if exact.size:
        worst = max(abs(float(exact.max())), abs(float(exact.min())))
        if worst > INT32_MAX:
            raise OverflowError(f"{what}: the accumulator reaches {worst:.0f}, beyond int32")
    return exact.astype(np.int32)


def output_size(size, kernel, stride, dilation, before, after):
    """Length of a convolution's or pool's output along one axis."""
    return (size + before + after - (kernel - 1) * dilation - 1) // stride + 1


def windows(x, kernel, strides, padding, dilation, fill):
    """Sliding windows of a feature map.

    x: (N, H, W, C); padding: (top, left, bottom, right), filled with ``fill``.
    Returns a view (N, OH, OW, R, S, C) of the padded map; read only.
    """
    top, left, bottom, right = padding
    if any(padding):
        n, h, w, c = x.shape
        padded = np.full((n, top + h + bottom, left + w + right, c), fill, x.dtype)
        padded[:, top : top + h, left : left + w] = x
        x = padded
    (n, h, w, c), (r, s) = x.shape, kernel
    oh = output_size(h, r, strides[0], dilation[0], 0, 0)
    ow = output_size(w, s, strides[1], dilation[1], 0, 0)
    sn, sh, sw, sc = x.strides
    return np.lib.stride_tricks.as_strided(
        x,
        (n, oh, ow, r, s, c),
        (sn, sh * strides[0], sw * strides[1], sh * dilation[0], sw * dilation[1], sc),
        writeable=False,
    )


def conv2d(data, weight, *, zero_point=0, strides=(1, 1), padding=(0, 0, 0, 0),
           dilation=(1, 1), groups=1):  # fmt: skip
    """Exact convolution: ``acc = sum((data - zero_point) * weight)``; padding contributes zero.

    data: uint8 (N, H, W, C); weight: int8 (R, S, C / groups, K), output channels of a group
    contiguous; returns int32 (N, OH, OW, K).
    Computed in float64, exact because every partial sum is far below 2**53.
    """
    r, s, depth, k = weight.shape
    if depth * groups != data.shape[-1] or k % groups:
        raise ValueError(f"conv2d: data {data.shape} and weight {weight.shape} do not fit {groups} groups")
    x = data.astype(np.float64) - zero_point
    patches = windows(x, (r, s), strides, padding, dilation, 0)
    n, oh, ow = patches.shape[:3]
    if depth == 1 and k == groups:  # depthwise
        acc = np.zeros((n, oh, ow, k))
        for i in range(r):
            for j in range(s):
                acc += patches[:, :, :, i, j] * weight[i, j, 0].astype(np.float64)
        return as_int32(acc, "conv2d")
    out = np.empty((n, oh, ow, k))
    per = k // groups
    for g in range(groups):
        columns = patches[..., g * depth : (g + 1) * depth].reshape(n * oh * ow, r * s * depth)
        kernel = weight[..., g * per : (g + 1) * per].reshape(-1, per).astype(np.float64)
        out[..., g * per : (g + 1) * per] = (columns @ kernel).reshape(n, oh, ow, per)
    return as_int32(out, "conv2d")


def dense(data, weight, *, zero_point=0):
    """uint8 (N, C), int8 (K, C) -> int32 (N, K): ``sum((data - zero_point) * weight)``."""
    x = data.astype(np.float64) - zero_point
    return as_int32(x @ weight.T.astype(np.float64), "dense")


def product(a, b, *, zero_a=0, zero_b=0):
    """uint8 (..., M, C) by uint8 (..., C, K) -> int32 (..., M, K): sums of the products of their steps."""
    left, right = a.astype(np.float64) - zero_a, b.astype(np.float64) - zero_b
    return as_int32(left @ right, "product")


def max_pool2d(data, *, pool_size, strides, padding=(0, 0, 0, 0), dilation=(1, 1)):
    """uint8 (N, H, W, C) -> uint8 (N, OH, OW, C); padding never wins."""
    return windows(data, pool_size, strides, padding, dilation, 0).max(axis=(3, 4))


def resize_linear(data, rows, columns, parts, *, zero_point=0):
    """uint8 (N, H, W, C) -> int32 (N, OH, OW, C): ``parts[0] * parts[1]`` times the linear resize, exactly.

    rows: int (OH, 3): of each new row the two old ones that it is a sum of, ``parts[0] - share`` times the
    first and ``share`` times the second; columns: the same (OW, 3), by ``parts[1]``.
    """
    x = data.astype(np.int64) - zero_point
    for axis, table, whole in zip((1, 2), (rows, columns), parts, strict=True):
        first, second, share = np.asarray(table, np.int64).T
        share = share.reshape([-1 if i == axis else 1 for i in range(4)])
        x = x.take(first, axis) * (whole - share) + x.take(second, axis) * share
    return as_int32(x, "resize_linear")
