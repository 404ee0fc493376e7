"""`OnnxOp`: what a float node keeps of its ONNX node: enough to run it, to emit it and to write it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import GraphError, last_line
from ..network.layout import to_nchw, to_nhwc
from ..network.tensors import NUMPY, Tensors
from .onnx_file import CUT, called, readable

#: what is computed in float32 here
FLOATS = ("float16", "bfloat16", "float64")


class NotConstant(Exception):
    """A rule needs an input that is computed as a constant, or has no meaning for these attributes."""


@dataclass(frozen=True)
class OnnxOp:
    """One output of one ONNX node of the domain ai.onnx.

    node: the ``onnx.NodeProto``; opset: its version; attributes: those of the node and, behind them, the
    defaults of its schema, text as str, tensors as arrays; constants: input's place -> array; tensors:
    input's place -> which of the float node's inputs it is (an input left out is in neither); index: the
    output's place; shapes (NCHW), dtypes: of all its outputs. Every float is float32 here: float16,
    bfloat16 and double are computed in float32, in the constants, ``dtypes`` and a Cast, too. uncovered:
    what about it is not covered, where the operator is (`uncovered`).
    """

    node: Any
    opset: int
    attributes: Mapping[str, Any]
    constants: Mapping[int, np.ndarray]
    tensors: Mapping[int, int]
    index: int
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    uncovered: str = ""

    @property
    def op(self) -> str:
        return self.node.op_type

    def __str__(self):
        """What `Graph.fingerprint` sees of it."""
        constants = [
            (i, str(a.dtype), a.shape, a.tobytes().hex()) for i, a in sorted(self.constants.items())
        ]
        attributes = sorted((k, _text(v)) for k, v in self.attributes.items())
        return repr((self.op, self.opset, attributes, constants, sorted(self.tensors.items()), self.index))

    def emit(self, t: Tensors, tensors: Sequence) -> Any:
        """The output on the tensors (NCHW) of a host; NotConstant where there is no rule for it."""
        return self.outputs(t, tensors)[self.index]

    def outputs(self, t: Tensors, tensors: Sequence) -> Sequence[Any]:
        """All the outputs of the node; see `emit`."""
        from .meaning.rules import RULES

        rule = RULES.get(self.op)
        if rule is None:
            raise NotConstant(f"{self.op} has no rule")
        made = rule(Call(t, self, tensors))
        return made if isinstance(made, (tuple, list)) else (made,)

    def evaluate(self, *arrays: np.ndarray) -> np.ndarray:
        """The output on arrays as a Graph has them (NHWC where they have four dimensions).

        Raises GraphError, which names the node, where it has none.
        """
        x = [to_nchw(a) for a in arrays]
        try:
            try:
                made = self.emit(NUMPY, x)
            except NotConstant:
                made = self._by_reference(x)
        except Exception as error:  # an index outside, or what onnx.reference does not do
            why = readable(f"{type(error).__name__}: {last_line(error)}", 120)
            raise GraphError(f"{called(self.node)} cannot be computed ({why}); {CUT}") from error
        return to_nhwc(np.asarray(made, self.dtypes[self.index]))

    def model(self, tensors: Sequence) -> Any:
        """An ``onnx.ModelProto`` of this node alone; tensors: (dtype, NCHW shape) of the node's inputs."""
        from onnx import helper, numpy_helper

        inputs = {}
        for place, which in self.tensors.items():
            dtype, shape = tensors[which]
            name = self.node.input[place]
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            inputs[name] = helper.make_tensor_value_info(name, kind, shape)
        constants = {
            self.node.input[i]: numpy_helper.from_array(a, self.node.input[i])
            for i, a in self.constants.items()
        }
        output = helper.make_tensor_value_info(
            self.node.output[self.index],
            helper.np_dtype_to_tensor_dtype(np.dtype(self.dtypes[self.index])),
            self.shapes[self.index],
        )
        graph = helper.make_graph(
            [self.node], "node", list(inputs.values()), [output], list(constants.values())
        )
        opset = helper.make_opsetid("", self.opset)
        return helper.make_model(graph, opset_imports=[opset], ir_version=8)

    def _by_reference(self, x):
        from onnx.reference import ReferenceEvaluator

        kinds = [(a.dtype, a.shape) for a in x]
        names = {self.node.input[place]: x[which] for place, which in self.tensors.items()}
        outputs: Any = ReferenceEvaluator(self.model(kinds)).run(None, names)
        return outputs[0]


class Call:
    """An `OnnxOp` on tensors of a host, as its rule sees it.

    t: the host's `Tensors`; x: its inputs by place, constants as tensors too, None where one is left out.
    """

    def __init__(self, t: Tensors, op: OnnxOp, tensors: Sequence):
        self.t, self.op, self.opset = t, op, op.opset
        places = max([*op.constants, *op.tensors], default=-1) + 1
        self.x: list[Any] = [None] * places
        for place, array in op.constants.items():
            self.x[place] = t.constant(array)
        for place, which in op.tensors.items():
            self.x[place] = tensors[which]

    def __getitem__(self, name: str) -> Any:
        """An attribute; KeyError where there is none and no default."""
        return self.op.attributes[name]

    def get(self, name: str, otherwise: Any = None) -> Any:
        """An attribute, or ``otherwise``."""
        return self.op.attributes.get(name, otherwise)

    def input(self, place: int) -> Any:
        """An input, None if it is left out."""
        return self.x[place] if place < len(self.x) else None

    def known(self, place: int, otherwise: Any = None) -> Any:
        """The numbers of an input, ``otherwise`` if it is left out; NotConstant if it is computed."""
        if place in self.op.tensors:
            raise NotConstant(f"input {place} of {self.op.op} is computed")
        return self.op.constants.get(place, otherwise)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the output that is asked for."""
        return self.op.shapes[self.op.index]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.op.dtypes[self.op.index])


def plain(array: np.ndarray) -> np.ndarray:
    """Numbers as they are computed here: float16, bfloat16 and double as float32."""
    array = np.asarray(array)
    if array.dtype.names == ("bfloat16",):  # onnx < 1.19 marks its bits; later it is ml_dtypes' type
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32) if array.dtype.name in FLOATS else array


def attributes_of(node: Any, opset: int) -> dict[str, Any]:
    """Those of the node and the defaults of its schema; text as str, tensors as `plain` arrays."""
    import onnx

    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    defaults = [a.default_value for a in schema.attributes.values() if a.default_value.type]
    return {a.name: _attribute(onnx.helper.get_attribute_value(a)) for a in (*defaults, *node.attribute)}


def _attribute(value):
    from onnx import TensorProto, numpy_helper

    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, TensorProto):
        return plain(numpy_helper.to_array(value))
    return [_attribute(v) for v in value] if isinstance(value, (list, tuple)) else value


def from_node(
    node: Any,
    opset: int,
    constants: Mapping[str, np.ndarray],
    outputs: Sequence[tuple[Any, Sequence[int]]],
    index: int = 0,
) -> tuple[OnnxOp, list[str]]:
    """(an output of the node as an operator, the names of the tensors that its float node reads).

    constants: the inputs whose numbers are known, by name; outputs: (dtype, NCHW shape) of every output of
    the node, of one that is left out as well; index: which of them.
    """
    tensors = list(dict.fromkeys(name for name in node.input if name and name not in constants))
    return OnnxOp(
        node=node,
        opset=opset,
        attributes=attributes_of(node, opset),
        constants={i: plain(constants[name]) for i, name in enumerate(node.input) if name in constants},
        tensors={i: tensors.index(name) for i, name in enumerate(node.input) if name in tensors},
        index=index,
        shapes=tuple(tuple(map(int, shape)) for _, shape in outputs),
        dtypes=tuple(plain(np.empty(0, dtype)).dtype.name for dtype, _ in outputs),
    ), tensors


def _text(value) -> str:
    return value.tobytes().hex() if isinstance(value, np.ndarray) else repr(value)


__all__ = ["FLOATS", "Call", "NotConstant", "OnnxOp", "attributes_of", "from_node", "plain"]
