"""Operators that move numbers, and those that choose among them."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from ..onnx_op import Call, NotConstant


def _concat(call: Call):
    return call.t.concat(call.x, call["axis"] % len(call.x[0].shape))


def _split(call: Call):
    x, pieces = call.x[0], len(call.op.shapes)
    axis = call.get("axis", 0) % len(x.shape)
    size = x.shape[axis]
    lengths = call.get("split") if call.opset < 13 else call.known(1)
    if lengths is None:  # the last may be smaller
        each = -(-size // pieces)
        lengths = [max(0, min(each, size - i * each)) for i in range(pieces)]
    made, at = [], 0
    for length in map(int, lengths):
        made.append(_crop(call.t, x, {axis: (at, at + length, 1)}))
        at += length
    return made


def _slice(call: Call):
    x = call.x[0]
    rank = len(x.shape)
    if call.opset < 10:
        starts, ends, axes, steps = call["starts"], call["ends"], call.get("axes"), None
    else:
        starts, ends, axes, steps = (call.known(i) for i in (1, 2, 3, 4))
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    bounds = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis, start = int(axis) % rank, int(start)
        if step < 0 and start < 0:  # the first place at least, where Python would take none
            start = max(start, -x.shape[axis])
        bounds[axis] = slice(start, int(end), int(step)).indices(x.shape[axis])
    for axis, (start, end, step) in bounds.items():
        if step < 0:
            x = call.t.take(x, np.arange(start, end, step), axis)
    return _crop(call.t, x, {axis: b for axis, b in bounds.items() if b[2] > 0})


def _crop(t, x, bounds):
    """axis -> (begin, end, step), no axis where nothing is taken away."""
    bounds = {axis: b for axis, b in bounds.items() if b != (0, x.shape[axis], 1)}
    if not bounds:
        return x
    ranges = [bounds.get(axis, (0, size, 1)) for axis, size in enumerate(x.shape)]
    begin, end, steps = zip(*ranges, strict=True)
    return t.crop(x, begin, tuple(map(max, begin, end)), steps)


def _pad(call: Call):
    t, x = call.t, call.x[0]
    rank = len(x.shape)
    mode = call.get("mode", "constant")
    if call.opset < 11:
        pads, value, axes = call["pads"], call.get("value", 0.0), None
    else:
        pads, value, axes = call.known(1), 0, call.known(3)
        if mode == "constant" and call.input(2) is not None:
            value = call.known(2).item()
    axes = list(range(rank)) if axes is None else [int(axis) % rank for axis in axes]
    count = len(axes)
    widths = {axis: (int(pads[i]), int(pads[count + i])) for i, axis in enumerate(axes)}
    # a negative width takes away, before anything is added
    x = _crop(t, x, {axis: (max(0, -b), x.shape[axis] - max(0, -e), 1) for axis, (b, e) in widths.items()})
    added = [(max(0, b), max(0, e)) for b, e in (widths.get(axis, (0, 0)) for axis in range(rank))]
    if mode == "constant":
        return t.pad(x, added, value) if any(map(any, added)) else x
    if mode not in ("reflect", "edge", "wrap"):
        raise NotConstant(f"Pad has no mode {mode}")
    for axis, width in enumerate(added):
        if any(width):
            x = t.take(x, np.pad(np.arange(x.shape[axis]), width, mode=mode), axis)
    return x


def _center_crop_pad(call: Call):
    t, x = call.t, call.x[0]
    rank = len(x.shape)
    axes = call.get("axes") or range(rank)
    wanted = {axis % rank: int(size) for axis, size in zip(axes, call.known(1), strict=True)}
    bounds, widths = {}, [(0, 0)] * rank
    for axis, size in wanted.items():
        over = x.shape[axis] - size
        if over >= 0:
            bounds[axis] = (over // 2, over // 2 + size, 1)
        else:
            widths[axis] = (-over // 2, -over - -over // 2)
    x = _crop(t, x, bounds)
    return t.pad(x, widths, 0) if any(map(any, widths)) else x


def _flatten(call: Call):
    shape = call.x[0].shape
    axis = call.get("axis", 1)
    axis += len(shape) * (axis < 0)
    return call.t.reshape(call.x[0], (prod(shape[:axis]), prod(shape[axis:])))


def _reshape(call: Call):
    """To the output's shape: what 0 and -1 stand for is in it."""
    return call.t.reshape(call.x[0], call.shape)


def _transpose(call: Call):
    x = call.x[0]
    return call.t.transpose(x, tuple(call.get("perm") or reversed(range(len(x.shape)))))


def _depth_to_space(call: Call):
    n, c, h, w = call.x[0].shape
    b = call["blocksize"]
    crd = call.get("mode", "DCR") == "CRD"
    shape = (n, c // b**2, b, b, h, w) if crd else (n, b, b, c // b**2, h, w)
    x = call.t.transpose(
        call.t.reshape(call.x[0], shape), (0, 1, 4, 2, 5, 3) if crd else (0, 3, 4, 1, 5, 2)
    )
    return call.t.reshape(x, (n, c // b**2, h * b, w * b))


def _space_to_depth(call: Call):
    n, c, h, w = call.x[0].shape
    b = call["blocksize"]
    x = call.t.reshape(call.x[0], (n, c, h // b, b, w // b, b))
    order = (0, 1, 3, 5, 2, 4) if call.get("mode") == "CRD" else (0, 3, 5, 1, 2, 4)
    return call.t.reshape(call.t.transpose(x, order), (n, c * b**2, h // b, w // b))


def _gather(call: Call):
    t, x = call.t, call.x[0]
    axis = call.get("axis", 0) % len(x.shape)
    size = x.shape[axis]
    if 1 in call.op.tensors:
        indices = t.cast(call.x[1], np.int64)
        zero, length = (t.constant(np.array(n, np.int64)) for n in (0, size))
        behind = t.binary("add", indices, length)
        return t.gather(x, t.where(t.binary("less", indices, zero), behind, indices), axis)
    indices = call.known(1).astype(np.int64)
    if indices.size and not -size <= indices.min() <= indices.max() < size:
        raise NotConstant(f"Gather has an index that is not within {size}")
    x = t.take(x, (indices % size).reshape(-1) if size else indices.reshape(-1), axis)
    return t.reshape(x, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _expand(call: Call):
    shape = np.broadcast_shapes(call.x[0].shape, tuple(map(int, call.known(1))))
    return call.t.broadcast(call.x[0], shape)


def _tile(call: Call):
    x, repeats = call.x[0], [int(r) for r in call.known(1)]
    apart = [number for n in x.shape for number in (1, n)]
    often = [number for n, r in zip(x.shape, repeats, strict=True) for number in (r, n)]
    made = call.t.broadcast(call.t.reshape(x, apart), often)
    return call.t.reshape(made, tuple(n * r for n, r in zip(x.shape, repeats, strict=True)))


def _shrink(call: Call):
    t, x = call.t, call.x[0]
    y = t.cast(x, np.float32)
    zero = t.constant(np.array(0, np.float32))
    bias, limit = (t.constant(np.array(call.get(*a), np.float32)) for a in (("bias", 0.0), ("lambd", 0.5)))
    high = t.where(t.binary("greater", y, limit), t.binary("subtract", y, bias), zero)
    low = t.binary("less", y, t.unary("negative", limit))
    return t.cast(t.where(low, t.binary("add", y, bias), high), x.dtype)


RULES: dict[str, Callable[[Call], Any]] = {
    "CenterCropPad": _center_crop_pad,
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshape,
    "Shrink": _shrink,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _reshape,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
