"""Resize and Upsample: each axis on its own, as places that are taken or as a matrix of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..onnx_op import Call, NotConstant

#: more numbers than these are summed as a product of matrices
_TAPS = 4


@dataclass(frozen=True)
class _Axis:
    """How one axis is resized; made: its new size, width: the same before it was rounded; roi: the begin
    and end of what is taken, as parts of the axis."""

    axis: int
    size: int
    made: int
    width: float
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)

    def coordinates(self, mode: str) -> np.ndarray:
        """Where each new place lies among the old ones, in float32 as ONNX Runtime computes it: which is
        the nearest depends on it."""
        f = np.float32
        x, scale, last = np.arange(self.made, dtype=f), f(self.scale), f(self.size - 1)
        width = f(self.width)
        if mode == "asymmetric":
            return x / scale
        if mode == "align_corners":
            return x * last / (width - f(1)) if width != 1 else x * f(0)
        if mode == "tf_crop_and_resize":
            start, end = map(f, self.roi)
            if width == 1:
                return x * f(0) + f(0.5) * (start + end) * last
            return start * last + x * (end - start) * last / (width - f(1))
        if mode == "tf_half_pixel_for_nn":  # what is not resized stays, as channels
            return x if self.scale == 1 else (x + f(0.5)) / scale
        half = (x + f(0.5)) / scale - f(0.5)
        if mode == "half_pixel_symmetric":
            return f(self.size) / f(2) * (f(1) - f(self.made) / width) + half
        if mode == "pytorch_half_pixel":
            return half if self.made > 1 else x * f(0)
        if mode == "half_pixel":
            return half
        raise NotConstant(f"Resize has no coordinate_transformation_mode {mode}")


def _nearest(x: np.ndarray, mode: str, shrinks: bool) -> np.ndarray:
    """The places nearest to coordinates; mode "simple" is that of opset 10."""
    if mode == "simple":
        mode = "ceil" if shrinks else "floor"
    if mode == "floor":
        return np.floor(x)
    if mode == "ceil":
        return np.ceil(x)
    below = np.floor(x)
    over = x - below - np.float32(0.5)
    over = np.where(
        np.abs(over) < 1e-6, 0, over
    )  # as ONNX Runtime has it, half is a half after rounding, too
    if mode == "round_prefer_floor":
        return np.where(over > 0, below + 1, below)
    if mode == "round_prefer_ceil":
        return np.where(over < 0, below, below + 1)
    raise NotConstant(f"Resize has no nearest_mode {mode}")


def _weights(x: np.ndarray, scale: float, mode: str, a: float) -> tuple[np.ndarray, np.ndarray]:
    """(places, weights), (made, taps) each, of the numbers that are summed around coordinates; scale: below
    1 the filter is stretched (antialias)."""
    half = 1 if mode == "linear" else 2
    start = int(np.floor(-half / scale)) + 1
    x = x.astype(np.float64)
    places = np.floor(x)[:, None] + np.arange(start, 2 - start)
    distance = np.abs(places - x[:, None]) * scale
    if mode == "linear":
        weights = np.clip(1 - distance, 0, 1)
    else:
        near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
    return places.astype(np.int64), weights / weights.sum(1, keepdims=True)


def _resized(call: Call, axes: Sequence[_Axis], options: Mapping[str, Any]):
    """The tensor with each of ``axes`` resized; options: as the attributes of Resize."""
    t, x = call.t, call.x[0]
    mode = options["mode"]
    coordinates = {a: a.coordinates(options["coordinate_transformation_mode"]) for a in axes}
    kind = x.dtype
    if mode != "nearest":
        x = t.cast(x, np.float32)
    for axis, at in coordinates.items():
        if mode == "nearest":
            places = _nearest(at, options["nearest_mode"], axis.scale < 1)
            places = np.clip(places, 0, axis.size - 1).astype(np.int64)
            if not np.array_equal(places, np.arange(axis.size)):
                x = t.take(x, places, axis.axis)
            continue
        scale = min(1.0, axis.scale) if options.get("antialias") else 1.0
        places, weights = _weights(at, scale, mode, options.get("cubic_coeff_a", -0.75))
        if options.get("exclude_outside"):
            weights = np.where((places >= 0) & (places < axis.size), weights, 0)
            weights = weights / weights.sum(1, keepdims=True)
        x = _summed(t, x, axis, np.clip(places, 0, axis.size - 1), weights)
    if mode != "nearest":
        x = t.cast(x, kind)
    if options["coordinate_transformation_mode"] == "tf_crop_and_resize":
        outside = np.zeros((1,) * len(x.shape), bool)
        for axis, at in coordinates.items():
            along = [-1 if i == axis.axis else 1 for i in range(len(x.shape))]
            outside = outside | ((at < 0) | (at > axis.size - 1)).reshape(along)
        if outside.any():
            value = np.array(options.get("extrapolation_value", 0.0)).astype(kind)
            x = t.where(t.constant(outside), t.constant(value), x)
    return x


def _summed(t, x, axis: _Axis, places: np.ndarray, weights: np.ndarray):
    """Along an axis, at each new place the sum of ``weights`` times the numbers at ``places``."""
    rank = len(x.shape)
    matrix = np.zeros((axis.size, axis.made))
    for tap in range(places.shape[1]):
        np.add.at(matrix, (places[:, tap], np.arange(axis.made)), weights[:, tap])
    if axis.size == axis.made and np.array_equal(matrix, np.eye(axis.size)):
        return x
    if places.shape[1] > _TAPS:
        order = [i for i in range(rank) if i != axis.axis] + [axis.axis]
        x = t.transpose(x, order)
        shape = x.shape[:-1]
        x = t.matmul(t.reshape(x, (prod(shape), axis.size)), t.constant(matrix.astype(np.float32)))
        return t.transpose(t.reshape(x, (*shape, axis.made)), [order.index(i) for i in range(rank)])
    total = None
    for tap in range(places.shape[1]):
        if not weights[:, tap].any():
            continue
        along = [-1 if i == axis.axis else 1 for i in range(rank)]
        factor = t.constant(weights[:, tap].astype(np.float32).reshape(along))
        part = t.binary("multiply", t.take(x, places[:, tap], axis.axis), factor)
        total = part if total is None else t.binary("add", total, part)
    return total


def _resize(call: Call):
    return _resized(call, *_plan(call))


def linear(call: Call) -> tuple[str, list[float]] | None:
    """(coordinate_transformation_mode, factors of the rows and columns of a map) of a linear Resize or
    Upsample that does to a map no more than that; None of another."""
    axes, options = (_upsampling if call.op.op == "Upsample" else _plan)(call)
    found = {axis.axis: axis for axis in axes}
    if options["mode"] != "linear" or any(axis.size != axis.made for i, axis in found.items() if i < 2):
        return None
    spatial = [found.get(i) or _Axis(i, 1, 1, 1.0, 1.0) for i in (2, 3)]
    mode = options["coordinate_transformation_mode"]
    if mode == "align_corners" and any(axis.width != axis.made for axis in spatial):
        return None
    if mode == "half_pixel_symmetric" and all(axis.width == axis.made for axis in spatial):
        mode = "half_pixel"
    return mode, [axis.scale for axis in spatial]


def _plan(call: Call) -> tuple[list[_Axis], dict[str, Any]]:
    """(the axes of a Resize, its attributes)."""
    shape = call.x[0].shape
    rank = len(shape)
    options = {"coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_floor"}
    options = options | {"mode": "nearest"} | dict(call.op.attributes)
    if call.opset < 11:
        options |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "simple"}
        return _by_scales(shape, range(rank), call.known(1), None), options
    axes = [axis % rank for axis in call.get("axes") or range(rank)]
    scales, sizes = call.known(2), call.known(3)
    crops = options["coordinate_transformation_mode"] == "tf_crop_and_resize"
    roi = call.known(1) if crops else None
    if scales is not None and scales.size:
        return _by_scales(shape, axes, scales, roi), options
    if sizes is None or not sizes.size:
        raise NotConstant("Resize has neither scales nor sizes")
    ratios = [int(n) / shape[axis] for n, axis in zip(sizes, axes, strict=True)]
    policy = call.get("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        ratios = [(min if policy == "not_larger" else max)(ratios)] * len(axes)
        sizes = [int(np.floor(r * shape[axis] + 0.5)) for r, axis in zip(ratios, axes, strict=True)]
        widths = [r * shape[axis] for r, axis in zip(ratios, axes, strict=True)]
    else:
        widths = list(map(float, sizes))
    made = [
        _Axis(axis, shape[axis], int(sizes[i]), widths[i], ratios[i], _of(roi, i))
        for i, axis in enumerate(axes)
    ]
    return made, options


def _by_scales(shape, axes, scales, roi) -> list[_Axis]:
    made = []
    for i, (axis, scale) in enumerate(zip(axes, scales, strict=True)):
        width = float(np.float32(scale) * np.float32(shape[axis]))
        made.append(_Axis(axis, shape[axis], int(width), width, float(scale), _of(roi, i)))
    return made


def _of(roi, i: int) -> tuple[float, float]:
    return (0.0, 1.0) if roi is None else (float(roi[i]), float(roi[len(roi) // 2 + i]))


def _upsample(call: Call):
    return _resized(call, *_upsampling(call))


def _upsampling(call: Call) -> tuple[list[_Axis], dict[str, Any]]:
    shape = call.x[0].shape
    scales = call["scales"] if call.opset < 9 else call.known(1)
    options = {
        "mode": call.get("mode", "nearest"),
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "simple",
    }
    return _by_scales(shape, range(len(shape)), scales, None), options


RULES: dict[str, Callable[[Call], Any]] = {"Resize": _resize, "Upsample": _upsample}
