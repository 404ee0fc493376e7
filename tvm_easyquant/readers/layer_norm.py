"""Layer normalizations that a model writes in pieces, as all did below opset 17, found again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..network.builder import normalization
from .onnx_model import Prepared, Site
from .onnx_op import FLOATS, plain


class LayerNorm(NamedTuple):
    """data: the tensor that is normalized along an axis; attributes: the operator's (`network.ops`)."""

    data: str
    axis: int
    attributes: dict[str, Any]


def written_out(prepared: Prepared) -> dict[str, LayerNorm]:
    """{the tensor that a normalization in pieces ends at: what it is}."""
    pieces = _Pieces(prepared)
    found = (pieces.ending_at(site) for site in prepared.sites if site.node.op_type == "Div")
    return {end: norm for each in found if each is not None for end, norm in [each]}


class _Pieces:
    def __init__(self, prepared: Prepared):
        self.prepared, self.types = prepared, prepared.types
        self.maker = {output: site for site in prepared.sites for output in site.outputs if output}
        self.users: dict[str, list[Site]] = {}
        for site in prepared.sites:
            for tensor in filter(None, site.inputs):
                self.users.setdefault(tensor, []).append(site)

    def ending_at(self, divided: Site) -> tuple[str, LayerNorm] | None:
        """(the tensor that ends it, the normalization) of a quotient of what it needs; else None."""
        centred, root = divided.inputs
        found, deviation = self._centred(centred), self._made_by("Sqrt", root)
        total = None if deviation is None else self._made_by("Add", deviation.inputs[0])
        if found is None or total is None:
            return None
        variance, epsilon = next(self._with_constant(total), ("", np.zeros(0)))
        square, along = self._mean(variance) or ("", 0)
        squared = next(self._squared(square), "")
        if epsilon.size != 1 or along != found[1] or self._centred(squared) != found:
            return None
        data, axis = found
        shape = self.types[data][1]
        end, vectors = divided.outputs[0], [np.ones(1), np.zeros(1)]
        for i, op in enumerate(("Mul", "Add")):
            if (after := self._alone(op, end)) is None:
                continue
            _, constant = next(self._with_constant(after), ("", np.zeros(0)))
            fits = constant.size == 1 or constant.shape == (shape[axis], *[1] * (len(shape) - 1 - axis))
            if not fits or self.types[after.outputs[0]][1] != shape:
                break
            end, vectors[i] = after.outputs[0], constant
        attributes = normalization(shape, axis, float(epsilon.reshape(())), *vectors)
        return None if attributes is None else (end, LayerNorm(data, axis, attributes))

    def _made_by(self, op: str, tensor: str) -> Site | None:
        site = self.maker.get(tensor)
        return site if site is not None and site.node.op_type == op else None

    def _alone(self, op: str, tensor: str) -> Site | None:
        """The operator that alone reads a tensor."""
        users = self.users.get(tensor, [])
        one = len(users) == 1 and tensor not in self.prepared.outputs and users[0].node.op_type == op
        return users[0] if one else None

    def _with_constant(self, site: Site) -> Iterator[tuple[str, np.ndarray]]:
        """The tensor and the constant that it is of."""
        for tensor, other in (site.inputs, site.inputs[::-1]):
            if tensor in self.types and other in self.prepared.constants:
                yield tensor, plain(self.prepared.constants[other])

    def _squared(self, tensor: str) -> Iterator[str]:
        """What a tensor is the square of."""
        site = self.maker.get(tensor)
        if site is None or len(site.inputs) != 2:
            return
        base, other = site.inputs
        if site.node.op_type == "Pow":
            yield from (x for x, power in self._with_constant(site) if x == base and np.all(power == 2))
        elif site.node.op_type == "Mul" and base == other:
            yield base

    def _mean(self, tensor: str) -> tuple[str, int] | None:
        """(what a tensor is the mean of, along which one axis, which stays)."""
        site = self._made_by("ReduceMean", tensor)
        if site is None or not site.attributes.get("keepdims", 1):
            return None
        axes = site.attributes.get("axes")
        axes = (
            self.prepared.constants.get(site.inputs[1]) if axes is None and len(site.inputs) > 1 else axes
        )
        dtype, shape = self.types.get(site.inputs[0], ("bool", ()))
        if axes is None or np.size(axes) != 1 or not shape or dtype not in ("float32", *FLOATS):
            return None
        return site.inputs[0], int(np.ravel(np.asarray(axes))[0]) % len(shape)

    def _centred(self, tensor: str) -> tuple[str, int] | None:
        """(what a tensor is less its mean, along which axis)."""
        site = self._made_by("Sub", tensor)
        found = None if site is None else self._mean(site.inputs[1])
        return found if site is not None and found is not None and found[0] == site.inputs[0] else None
