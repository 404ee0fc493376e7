"""What about an operator is not covered, where others of its kind are: its attribute, axis or shapes, and
what to do about it, if there is something. For the sentence "Resize is not covered with mode=cubic; ...".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from .onnx_op import OnnxOp

#: attributes by which an operator tells what it is, so that a sentence may name them
NAMED = ("axis", "axes", "perm", "mode", "method", "keepdims", "kernel_shape", "strides", "dilations",
         "coordinate_transformation_mode", "pad_mode", "data_layout", "layout")  # fmt: skip

Shape = tuple[int, ...]


def told(op: OnnxOp, sizes: Sequence[Sequence[int]]) -> OnnxOp:
    """The operator with what about it is not covered; sizes: of the tensors that it reads, NCHW."""
    use = _Use(op, sizes)
    rule = WHY.get(op.op)
    given = {attribute.name: op.attributes.get(attribute.name) for attribute in op.node.attribute}
    why = rule(use) if rule is not None and use.shapes else None
    return replace(op, uncovered=why or here(use.shapes, given))


def here(shapes: Sequence[Sequence[int]], attributes: object) -> str:
    """What is to be seen of an operator, where no rule says more; attributes: by name, or an object's."""
    if not isinstance(attributes, Mapping):
        attributes = {name: getattr(attributes, name, None) for name in NAMED}
    of = " and ".join(str(tuple(shape)) for shape in shapes)
    found = [f"{name}={value}" for name, value in attributes.items() if name in NAMED and value is not None]
    return f" as it is here: of {', '.join([of, *found])}"


class _Use:
    """An operator and its inputs: their shapes by place, constants' too."""

    def __init__(self, op: OnnxOp, sizes: Sequence[Sequence[int]]):
        self.op, self.constants = op, op.constants
        found = {place: tuple(sizes[which]) for place, which in op.tensors.items()}
        found |= {place: array.shape for place, array in op.constants.items()}
        self.at: dict[int, Shape] = dict(sorted(found.items()))

    @property
    def shapes(self) -> list[Shape]:
        return [self.at[place] for place in self.at if place in self.op.tensors]

    @property
    def first(self) -> Shape:
        return self.at.get(0, self.shapes[0])

    @property
    def made(self) -> Shape:
        return self.op.shapes[self.op.index]

    def get(self, name: str, otherwise: Any = None) -> Any:
        value = self.op.attributes.get(name)
        return otherwise if value is None else value

    def computed(self, *places: int) -> bool:
        return any(place in self.op.tensors for place in places)

    def axes(self, place: int = 1) -> list[int] | None:
        """Those of the attribute or of the constant input, from the front; None if there are none."""
        axes = self.get("axes", self.constants.get(place))
        return None if axes is None else [int(axis) % len(self.first) for axis in np.ravel(axes)]


def _convolution(u: _Use) -> str | None:
    if u.computed(1, 2):
        return " with weights or a bias that are computed; they must be constants"
    if len(u.first) not in (3, 4):
        return f" of {len(u.first) - 2} dimensions; of 1 and 2 it is"
    strides, groups = u.get("strides", ()), u.get("group", 1)
    if u.op.op == "ConvTranspose" and len(u.first) == 3 and groups > 1 and set(strides) != {1}:
        return f" of one dimension with group={groups}; with 1, or a channel in each, it is"
    if u.op.op == "ConvTranspose" and len(set(strides)) > 1:
        return f" with strides={list(strides)}; with equal ones it is"
    return None


def _product(u: _Use) -> str | None:
    constant = next((place for place in (0, 1) if place in u.constants), None)
    if constant is None:
        a, b = (u.at[place] for place in (0, 1))
        return f" of two tensors {a} and {b}; with three axes or more and the same leading ones it is"
    if constant == 0:
        return " of a constant by a tensor; of a tensor by a constant matrix it is"
    if len(u.at[1]) != 2:
        return f" with a constant of {len(u.at[1])} axes; with a matrix it is"
    return " with transA=1" if u.get("transA") else None


def _reduction(u: _Use) -> str | None:
    axes = u.axes()
    if u.computed(1):
        return " over axes that the data decide"
    if axes is None or 0 in axes:
        return " over the batch (axis 0); over other axes it is"
    return None


def _transposition(u: _Use) -> str | None:
    axes = list(u.get("perm", range(len(u.first))[::-1]))
    return f" where perm={axes} moves the batch and an operator reads that" if axes[:1] != [0] else None


def _other_shape(u: _Use) -> str | None:
    short = min(len(u.first), len(u.made)) < 2
    return f" from {u.first} to {u.made}; between two axes or more it is" if short else None


def _places(u: _Use) -> str | None:
    others = [place for place in u.op.tensors if place > 0]
    if others:
        return " at places that the data decide; constant ones are"
    if u.op.op == "Gather" and len(u.at[1]) > 1:
        return f" of indices of {len(u.at[1])} axes; of one axis or one number it is"
    along = [int(u.get("axis", 0)) % len(u.first)] if u.op.op in ("Gather", "Split") else u.axes(3)
    return " along the batch (axis 0); along other axes it is" if along is None or 0 in along else None


def _repeated(u: _Use) -> str | None:
    if u.computed(1):  # how often
        return " as often as the data decide"
    return (
        f" from {u.first} to {u.made}: it repeats the batch (axis 0)" if u.first[:1] != u.made[:1] else None
    )


def _padding(u: _Use) -> str | None:
    if u.computed(1, 2, 3):
        return " by what the data decide"
    fill = np.ravel(u.constants.get(2, u.get("value", 0.0)))
    if u.get("mode", "constant") == "constant" and fill.size and fill[0] != 0:
        return f" with the fill {float(fill[0]):g}; with 0 it is"
    return f" of {len(u.first)} axes" if len(u.first) != 4 else None


def _resize(u: _Use) -> str | None:
    mode, way = u.get("mode", "nearest"), u.get("coordinate_transformation_mode", "half_pixel")
    if u.computed(1, 2, 3):
        return " to a size that the data decide; give its size or scales as constants"
    if mode not in ("nearest", "linear"):
        return f" with mode={mode}; nearest and linear are"
    if u.get("antialias"):
        return " with antialias=1; without it is"
    if way == "tf_crop_and_resize":
        return f" with coordinate_transformation_mode={way}; without a region of interest it is"
    if len(u.first) != 4 and mode == "linear":
        return f" with mode=linear of {len(u.first)} axes; of maps (N, C, H, W) it is"
    scales = np.ravel(u.constants.get(2, ()))
    if way == "align_corners" and scales.size == len(u.first):
        made = [size * float(scale) for size, scale in zip(u.first, scales, strict=True)]
        if any(abs(n - round(n)) > 1e-6 for n in made):
            return " with align_corners and scales that make no whole size; give sizes instead"
    return None


def _pool(u: _Use) -> str | None:
    if len(u.first) not in (3, 4):
        return f" of {len(u.first) - 2} dimensions; of 1 and 2 it is"
    if len([name for name in u.op.node.output if name]) > 1:
        return " with Indices, its second output"
    if u.op.op == "AveragePool" and any(d != 1 for d in u.get("dilations", ())):
        return f" with dilations={list(u.get('dilations'))}"
    if u.op.op == "AveragePool" and u.get("ceil_mode"):
        return " with ceil_mode=1 and windows that end outside; with whole windows it is"
    return None


def _limits(u: _Use) -> str | None:
    return " with limits that are computed; constants are" if u.computed(1, 2) else None


def _norm(u: _Use) -> str | None:
    if u.computed(1, 2, 3, 4):
        return " with numbers that are computed; they must be constants"
    if u.get("training_mode"):
        return " with training_mode=1; export the model for inference"
    return f" of {len(u.first)} axes" if len(u.first) not in (2, 3, 4) else None


def _layer_norm(u: _Use) -> str | None:
    if u.computed(1, 2):
        return " with numbers that are computed; they must be constants"
    if u.get("axis", -1) % len(u.first) != len(u.first) - 1:
        return f" over several axes (axis={u.get('axis')} of {len(u.first)}); over the last it is"
    if len([name for name in u.op.node.output if name]) > 1:
        return " with Mean or InvStdDev read"
    other = [u.at[place] for place in (1, 2) if prod(u.at.get(place, ())[:-1]) != 1]
    return f" by numbers of shape {other[0]}; by one for each of the last axis it is" if other else None


def _pair(u: _Use) -> str | None:
    if len(u.at) != 2:
        return None
    if u.op.op in ("Div", "Pow", "PRelu") and len(u.shapes) == 2:
        return " of two tensors; of a tensor and a constant it is"
    a, b = u.at.values()
    if len(u.shapes) == 1:
        (constant,) = u.constants.values()
        one = ONE.get(u.op.op, "one number, or one a channel (axis 1), is")
        if len(u.shapes[0]) == 2:
            one = "one number is, or one a channel behind a layer"
        return f" of {u.shapes[0]} and a constant of shape {constant.shape}; {one}"
    return f" of {a} and {b}; where one has the other's shape, or 1 in its place behind the batch, it is"


#: operator of a tensor and a constant -> of which constants it is covered, where that is not as of others
ONE = {
    **dict.fromkeys(("Max", "Min", "Pow"), "one number is"),
    "PRelu": "one number is, or one a channel (axis 1) behind a layer",
}
#: ONNX operator that some rule of a reader takes -> what of this use it does not take; None: see `here`
WHY: dict[str, Callable[[_Use], str | None]] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), _convolution),
    **dict.fromkeys(("Gemm", "MatMul"), _product),
    **dict.fromkeys(("ReduceMean", "ReduceMax"), _reduction),
    "Transpose": _transposition,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _other_shape),
    **dict.fromkeys(("Slice", "Split", "Gather"), _places),
    **dict.fromkeys(("Tile", "Expand"), _repeated),
    "Pad": _padding,
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), _pool),
    "Clip": _limits,
    "BatchNormalization": _norm,
    "LayerNormalization": _layer_norm,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "PRelu"), _pair),
    "Mean": lambda u: " of several tensors; their Sum times a constant is",
}
