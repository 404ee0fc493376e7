"""A quantized ONNX model as a float one: the form in which a front end can read it. No TVM here.

Models quantized by ONNX Runtime, NNCF, Quark or PPQ come in two dialects, QDQ (QuantizeLinear and
DequantizeLinear around float operators) and QOperator (QLinearConv, ConvInteger, ...). `normalize`
turns both into float operators in which every quantized tensor is rounded by one pair of
QuantizeLinear and DequantizeLinear, per tensor and uint8, and weights are float initializers. What
the integers were is kept beside it: each layer's weight scales, and the name of each tensor.

This is done on ONNX, not on Relay, whose importer refuses scales of shape (1,), mixed signs and
per-channel MatMul, deep in C++ and without naming the node.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import QuantizedModelError

MICROSOFT = ("com.microsoft", "com.ms.internal.nhwc")
#: operators that move integers: on the dequantized values they do the same
MOVING = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Pad", "Concat",
          "Split", "Gather", "DepthToSpace", "SpaceToDepth", "Resize", "Upsample", "Identity", "Expand",
          "Tile", "Dropout", "GlobalMaxPool", "ReduceMax")  # fmt: skip
#: QOperator -> (the float operator, where its tensors are: each followed by scale and zero point)
LINEAR = {
    "QLinearConv": ("Conv", (0, 3)), "QLinearMatMul": ("MatMul", (0, 3)), "QLinearAdd": ("Add", (0, 3)),
    "QLinearMul": ("Mul", (0, 3)), "QGemm": ("Gemm", (0, 3)), "QLinearSigmoid": ("Sigmoid", (0,)),
    "QLinearLeakyRelu": ("LeakyRelu", (0,)), "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "QLinearAveragePool": ("AveragePool", (0,)), "QLinearSoftmax": ("Softmax", (0,)),
    "QLinearReduceMean": ("ReduceMean", (0,)), "QLinearConcat": ("Concat", ()),
}  # fmt: skip
#: attributes that the float operator does not have
DROPPED = ("opset", "channels_last")
#: operators of Quark's and PPQ's own: they round to bfloat16, to fp8, to blocks with a common exponent
NO_INTEGERS = ("ExtendedQuantizeLinear", "ExtendedDequantizeLinear", "BFPQuantizeDequantize",
               "MXQuantizeDequantize", "QuantizeFloating", "DequantizeFloating")  # fmt: skip
#: what marks a model as quantized
QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger",
             "MatMulIntegerToFloat", "DynamicQuantizeMatMul", *LINEAR, *NO_INTEGERS)  # fmt: skip
#: integers of activations that can be taken over; those of 16 bits are rounded in float
EIGHT, SIXTEEN = (np.uint8, np.int8), (np.uint16, np.int16)


def is_quantized(model) -> bool:
    """Whether an ``onnx.ModelProto`` has quantized operators."""
    return any(node.op_type in QUANTIZED for node in model.graph.node)


def check_types(model) -> None:
    """QuantizedModelError if a model holds integers of fewer than 8 bits, or small floats."""
    from onnx import TensorProto

    strange = [node for node in model.graph.node if node.op_type in NO_INTEGERS]
    if strange:
        name, op = strange[0].name or strange[0].output[0], strange[0].op_type
        raise QuantizedModelError(
            f"node {name} ({op}, {len(strange)} such nodes) rounds to numbers that are no integers; "
            "quantize with settings that write QuantizeLinear, such as Quark's A8W8"
        )
    kinds = [(value.name, value.type.tensor_type.elem_type) for value in model.graph.input]
    kinds += [(value.name, value.type.tensor_type.elem_type) for value in model.graph.output]
    read = {name for node in model.graph.node if node.op_type in QUANTIZED for name in node.input}
    kinds += [(tensor.name, tensor.data_type) for tensor in model.graph.initializer if tensor.name in read]
    for name, kind in kinds:
        text = TensorProto.DataType.Name(kind)
        if text.endswith(("INT4", "INT2")) or text.startswith(("FLOAT8", "FLOAT4")):
            raise QuantizedModelError(f"{name} is {text}; integers of 8 or 16 bits can be taken over")


def in_order(nodes) -> list:
    """The nodes of an ONNX graph, each behind those it reads from, else as they were: Quark appends nodes.

    Raises QuantizedModelError if they form a cycle.
    """
    maker = {name: i for i, node in enumerate(nodes) for name in node.output}
    before = [{maker[name] for name in node.input if name in maker} for node in nodes]
    readers: list[list[int]] = [[] for _ in nodes]
    for i, made in enumerate(before):
        for j in made:
            readers[j].append(i)
    ready, order = [i for i, made in enumerate(before) if not made], []
    while ready:
        order.append(heapq.heappop(ready))  # a sorted list is a heap
        for i in readers[order[-1]]:
            before[i].discard(order[-1])
            if not before[i]:
                heapq.heappush(ready, i)
    if len(order) < len(nodes):
        last = nodes[next(i for i, made in enumerate(before) if made)]
        raise QuantizedModelError(f"node {last.name or last.op_type} reads what is made of its own output")
    return [nodes[i] for i in order]


@dataclass(frozen=True)
class Encoding:
    """How an integer tensor encodes numbers: ``real = scale * (q - zero_point)``.

    scale: float32, scalar or along ``axis``; zero_point: of the same shape, as ``dtype`` has it.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    dtype: np.dtype
    axis: int = 1

    @property
    def per_tensor(self) -> bool:
        return self.scale.ndim == 0 and self.zero_point.ndim == 0

    @property
    def offset(self) -> int:
        """What to add to a stored number to get our uint8."""
        return 128 if self.dtype == np.int8 else 0

    def same(self, other: Encoding) -> bool:
        return (
            self.dtype == other.dtype
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def along(self, values: np.ndarray, rank: int) -> np.ndarray:
        """A scale or zero point shaped to act along the axis of a tensor with ``rank`` dimensions."""
        return (
            values
            if values.ndim == 0
            else values.reshape([-1 if i == self.axis % rank else 1 for i in range(rank)])
        )

    def quantize(self, real: np.ndarray) -> np.ndarray:
        """float32 -> integers: ``clip(rint(x / scale) + zero_point)``, as ONNX defines it."""
        limits = np.iinfo(self.dtype)
        scale, zero = (self.along(v, real.ndim) for v in (self.scale, self.zero_point))
        steps = np.rint(np.asarray(real, np.float32) / scale) + zero.astype(np.float32)
        return np.clip(steps, limits.min, limits.max).astype(self.dtype)

    def dequantize(self, q: np.ndarray) -> np.ndarray:
        """Integers -> float32."""
        scale, zero = (self.along(v, q.ndim) for v in (self.scale, self.zero_point))
        steps = q.astype(np.int64) - zero.astype(np.int64)
        return (steps.astype(np.float32) * scale).astype(np.float32)


@dataclass(frozen=True)
class Weights:
    """The integer weights of a layer: scale float32 (), or (K,) along its output channels; reach: int (K,),
    the largest of each channel, less the zero point."""

    scale: np.ndarray
    reach: np.ndarray


@dataclass
class Normalized:
    """model: float, an ``onnx.ModelProto``; source: the original. weights: layer -> `Weights`. reasons:
    layer -> why it cannot run in integers. tensors: name of a DequantizeLinear in it -> the `Encoding` of
    the integer tensor of that name in the original. inputs, outputs: those that were integers, with their
    encodings. rounded: tensors that are rounded in float -> why. rounding: the operators that do it ->
    their tensor."""

    model: object = None
    source: object = None
    weights: dict[str, Weights] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, Encoding] = field(default_factory=dict)
    inputs: dict[str, Encoding] = field(default_factory=dict)
    outputs: dict[str, Encoding] = field(default_factory=dict)
    rounded: dict[str, str] = field(default_factory=dict)
    rounding: dict[str, str] = field(default_factory=dict)

    def rounds(self, name: str) -> str | None:
        """The tensor that a node of the front end rounds in float; those of one operator are numbered."""
        return self.rounding.get(name, self.rounding.get(re.sub(r"_\d+$", "", name)))


def normalize(model) -> Normalized:
    """The float form of a quantized ``onnx.ModelProto``. Raises QuantizedModelError."""
    return _Normalizer(model).result


class _Normalizer:
    def __init__(self, model):
        from onnx import numpy_helper

        check_types(model)
        self.model, self.graph = model, model.graph
        self.result = Normalized(source=model)
        self.constants = {t.name: numpy_helper.to_array(t) for t in self.graph.initializer}
        self.encodings: dict[str, Encoding] = {}  # integer activation -> its encoding
        self.units: dict[str, float] = {}  # int32 accumulator -> real units of one step
        self.dynamic: dict[str, str] = {}  # tensor quantized at run time -> its zero point's tensor
        self.weight_of: dict[str, tuple] = {}  # dequantized constant -> (encoding, integers)
        self.alias: dict[str, str] = {}
        self.ranks: dict[str, int] | None = None
        self.clipped: set[str] = set()  # outputs of integer Clips that became float ones
        self.nodes, self.taken = [], set()
        self.users: dict[str, list] = {}
        for node in self.graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.integer_inputs = {}
        for value in self.graph.input:
            if value.name not in self.constants and value.type.tensor_type.elem_type in range(2, 7):
                self.integer_inputs[value.name] = value  # of 8 or 16 bits, or int32
        for index, node in enumerate(in_order(self.graph.node)):
            self._node(node, node.name or f"{node.op_type}_{index}")
        self._finish()

    # -- building

    def emit(self, op, inputs, outputs, name, **attrs):
        from onnx import helper

        unique, n = name, 1
        while unique in self.taken:
            n += 1
            unique = f"{name}_{n}"
        self.taken.add(unique)
        outputs = [outputs] if isinstance(outputs, str) else list(outputs)
        attrs = {key: value for key, value in attrs.items() if value is not None}
        self.nodes.append(helper.make_node(op, list(inputs), outputs, name=unique, **attrs))
        return unique

    def constant(self, name, array):
        while name in self.constants and not np.array_equal(self.constants[name], array):
            name += "_"
        self.constants[name] = np.asarray(array)
        return name

    def real(self, name):
        """The tensor's name in the float model."""
        while name in self.alias:
            name = self.alias[name]
        return name

    def value(self, node, name, what):
        name = self.real(name)
        if name not in self.constants:
            raise QuantizedModelError(
                f"node {node.name or node.op_type} ({node.op_type}): its {what} is computed, not a constant"
            )
        return self.constants[name]

    def encoding(self, node, scale, zero, dtype=None, axis=None) -> Encoding:
        """The encoding that two constants give; shapes (1,) become ()."""
        scale = np.asarray(self.value(node, scale, "scale"), np.float32)
        if zero:
            zero = self.value(node, zero, "zero point")
            dtype = zero.dtype
        else:
            dtype = np.dtype(dtype or np.uint8)
            zero = np.zeros(scale.shape, dtype)
        if scale.size == 1 and zero.size == 1:
            scale, zero = scale.reshape(()), zero.reshape(())
        elif scale.shape != zero.shape:
            zero = np.broadcast_to(zero.reshape(-1), scale.shape)
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise QuantizedModelError(
                f"node {node.name or node.op_type} ({node.op_type}): a scale is not positive and finite"
            )
        return Encoding(scale, zero, dtype, 1 if axis is None else axis)

    # -- nodes

    def _node(self, node, name):
        RULES.get(node.op_type, _Normalizer._other)(self, node, name, _attributes(node))

    def _constant(self, node, name, attrs):
        if "value" in attrs:
            from onnx import numpy_helper

            self.constants[node.output[0]] = numpy_helper.to_array(attrs["value"])
        else:
            self._other(node, name, attrs)

    def _is_integer(self, name):
        return (
            name in self.encodings
            or name in self.units
            or name in self.dynamic
            or name in self.integer_inputs
        )

    def _other(self, node, name, attrs):
        """Any other operator: as it is, on the dequantized values."""
        integer = [x for x in node.input if self._is_integer(x)]
        if integer and (node.op_type not in MOVING or any(x not in self.encodings for x in integer)):
            raise QuantizedModelError(
                f"node {name}: {node.op_type} of integers ({integer[0]}) cannot be taken over"
            )
        inputs = [self.real(x) for x in node.input]
        if integer:
            first = self.encodings[integer[0]]
            data = [x for x in node.input if x in self.encodings]
            if not all(self.encodings[x].same(first) for x in data):
                raise QuantizedModelError(f"node {name}: {node.op_type} of integers with different scales")
            if node.op_type == "Pad" and len(node.input) > 2 and node.input[2]:
                filled = first.dequantize(np.asarray(self.value(node, node.input[2], "fill value")))
                inputs[2] = self.constant(f"{name}_fill", filled)
            if _mixes(node, attrs):
                return self._resize_integers(node, name, inputs, first)
            for output in node.output:
                self.encodings[output] = first
        elif node.op_type == "Identity" and inputs[0] in self.constants:
            self.alias[node.output[0]] = inputs[0]
            return None
        made = self._copy(node, inputs, name)
        self._note_layer(made, node.op_type, inputs, attrs)
        return None

    def _resize_integers(self, node, name, inputs, encoding):
        """A Resize that computes, on integers: of the steps, in float, whose fractions are cut off as ONNX
        Runtime does it (onnx.reference of onnx 1.18 does, too; that of 1.23 rounds them)."""
        from onnx import TensorProto

        (output,) = node.output
        if not encoding.per_tensor:
            raise QuantizedModelError(
                f"node {name}: {node.op_type} of integers with a scale for each channel"
            )
        scale = self.constant(f"{output}_scale_", encoding.scale)
        zero = self.constant(f"{output}_first_step_", encoding.zero_point.astype(np.float32))
        source = inputs[0]
        for op, operands, attrs in (
            ("Div", [scale], {}), ("Round", [], {}), ("Add", [zero], {}), (node.op_type, inputs[1:], None),
            ("Cast", [], {"to": TensorProto.INT32}), ("Cast", [], {"to": TensorProto.FLOAT}),
            ("Sub", [zero], {}), ("Mul", [scale], {}),
        ):  # fmt: skip
            target = f"{output}_{len(self.nodes)}_"
            made = self.emit(
                op, [source, *operands], target, name if attrs is None else target, **attrs or {}
            )
            if attrs is None:
                self.nodes[-1].attribute.extend(node.attribute)
            self.result.rounding[made], source = f"{name} ({node.op_type})", target
        why = "computes with integers, whose fractions are cut off as ONNX Runtime does,"
        self.result.rounded[f"{name} ({node.op_type})"] = why
        self.fake_quantize(source, output, encoding, name)

    def _copy(self, node, inputs, name):
        made = self.emit(node.op_type, inputs, node.output, name)
        self.nodes[-1].attribute.extend(node.attribute)
        self.nodes[-1].domain = node.domain
        return made

    def _note_layer(self, name, op, inputs, attrs):
        """Keep the weight scales of a layer with dequantized constants."""
        if op not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or len(inputs) < 2:
            return
        if inputs[0] in self.result.rounded:
            self.result.reasons[name] = f"its input {self.result.rounded[inputs[0]]}"
            return
        if inputs[1] not in self.weight_of:
            if inputs[1] in self.constants:
                self.result.reasons[name] = "the model does not quantize its weights"
            return
        encoding, integers = self.weight_of[inputs[1]]
        rank = integers.ndim
        axis = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0 if attrs.get("transB") else 1, "MatMul": rank - 1}[
            op
        ]
        steps = integers.astype(np.int64) - encoding.along(encoding.zero_point, rank).astype(np.int64)
        if encoding.scale.ndim and encoding.axis % rank != axis:
            wrong = f"its weight scales run along axis {encoding.axis}, not along the output channels"
            self.result.reasons[name] = wrong
        elif encoding.scale.ndim and op == "ConvTranspose":
            self.result.reasons[name] = "a transposed convolution with weight scales per channel"
        elif steps.size and (steps.max() > 127 or steps.min() < -128):
            reach = int(np.abs(steps).max())
            self.result.reasons[name] = f"its weights, less their zero point, reach {reach}: beyond int8"
        else:
            others = tuple(i for i in range(rank) if i != axis)
            self.result.weights[name] = Weights(encoding.scale, np.abs(steps).max(axis=others, initial=0))

    # -- QDQ

    def fake_quantize(self, source, tensor, encoding, name):
        """Round the float tensor ``source`` as the integer tensor ``tensor`` was; keeps its encoding."""
        self.encodings[tensor] = encoding
        if encoding.dtype not in (*EIGHT, *SIXTEEN):
            raise QuantizedModelError(
                f"node {name}: {encoding.dtype} activations; 8 or 16 bits can be taken over"
            )
        if encoding.dtype in SIXTEEN:
            return self._round_in_float(source, tensor, encoding, "has 16 bits")
        if not encoding.per_tensor:
            return self._round_in_float(source, tensor, encoding, "has a scale for each channel")
        inputs = [self.constant(f"{tensor}_scale_", encoding.scale)]
        zero = encoding.zero_point.astype(np.int64) + encoding.offset
        inputs.append(self.constant(f"{tensor}_zero_point_", zero.astype(np.uint8)))
        stored = f"{tensor}_stored_"
        self.emit("QuantizeLinear", [source, *inputs], stored, f"{tensor}_QuantizeLinear")
        made = self.emit("DequantizeLinear", [stored, *inputs], tensor, tensor)
        self.result.tensors[made] = encoding
        return None

    def _round_in_float(self, source, tensor, encoding, why):
        """An activation that ours cannot be: they have 8 bits and one scale for all channels."""
        self.result.rounded[tensor] = why
        limits = np.iinfo(encoding.dtype)
        rank = 1 if encoding.per_tensor else max(encoding.axis + 1, self.rank(source))
        scale = self.constant(f"{tensor}_scale_", encoding.along(encoding.scale, rank))
        zero = encoding.along(encoding.zero_point, rank).astype(np.float32)
        zero = self.constant(f"{tensor}_zero_point_", zero)
        ends = [self.constant(f"{tensor}_{v}_", np.float32(v)) for v in (limits.min, limits.max)]
        last = source
        for op, operands in (("Div", [scale]), ("Round", []), ("Add", [zero]), ("Clip", ends),
                             ("Sub", [zero]), ("Mul", [scale])):  # fmt: skip
            target = tensor if op == "Mul" else f"{tensor}_{op}_"
            self.result.rounding[self.emit(op, [last, *operands], target, target)] = tensor
            last = target

    def rank(self, name) -> int:
        """The number of dimensions of a tensor, by ONNX's own shape inference."""
        import onnx

        if self.ranks is None:
            inferred = onnx.shape_inference.infer_shapes(self.model).graph
            known = [*inferred.input, *inferred.value_info, *inferred.output]
            self.ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in known}
        if name not in self.ranks:
            raise QuantizedModelError(f"{name} has scales for each channel and a shape that is not known")
        return self.ranks[name]

    def _quantize(self, node, name, attrs):
        self._check_blocks(name, attrs)
        (source, scale, *zero), (output,) = node.input, node.output
        encoding = self.encoding(node, scale, zero[0] if zero else "", None, attrs.get("axis"))
        source = self.real(source)
        if source in self.constants:
            self.constants[output] = encoding.quantize(self.constants[source])
            return
        users = self.users.get(output, [])
        kinds = {user.op_type for user in users}
        outputs = {value.name for value in self.graph.output}
        if kinds == {"Clip"} and len(users) == 1 and encoding.per_tensor and output not in outputs:
            # an integer Clip: the same on the real numbers before they are rounded
            clip, limits = users[0], []
            for i, end in ((1, "min"), (2, "max")):
                bound = clip.input[i] if len(clip.input) > i else ""
                q = np.asarray(self.value(clip, bound, end)) if bound else None
                limits.append(
                    "" if q is None else self.constant(f"{output}_{end}_", encoding.dequantize(q))
                )
            self.emit("Clip", [source, *limits], f"{output}_clipped_", f"{output}_Clip")
            self.clipped.add(clip.output[0])
            source, output = f"{output}_clipped_", clip.output[0]
        self.fake_quantize(source, output, encoding, name)

    def _clip(self, node, name, attrs):
        if node.output[0] not in self.clipped:  # else done by its QuantizeLinear
            self._other(node, name, attrs)

    def _check_blocks(self, name, attrs):
        if attrs.get("block_size"):
            raise QuantizedModelError(f"node {name}: scales by block (block_size) cannot be taken over")

    def _dequantize(self, node, name, attrs):
        self._check_blocks(name, attrs)
        (source, scale, *zero), (output,) = node.input, node.output
        zero = zero[0] if zero else ""
        if self.real(source) in self.constants:
            integers = self.constants[self.real(source)]
            encoding = self.encoding(node, scale, zero, integers.dtype, attrs.get("axis"))
            self._dequantized(output, encoding, integers)
            return
        if source in self.units:
            encoding = self.encoding(node, scale, zero, np.int32, attrs.get("axis"))
            if not encoding.per_tensor or encoding.zero_point:
                raise QuantizedModelError(f"node {name}: an accumulator dequantized per channel")
            factor = np.float32(encoding.scale / np.float32(self.units[source]))
            self.emit("Mul", [self.real(source), self.constant(f"{output}_factor_", factor)], output, name)
            return
        encoding = self.encoding(node, scale, zero, np.uint8, attrs.get("axis"))
        self.alias[output] = self._stored(node, name, source, encoding)

    def _dequantized(self, output, encoding, integers):
        """A float constant of an integer one, which is remembered."""
        self.constants[output] = encoding.dequantize(integers)
        self.weight_of[output] = (encoding, integers)
        return output

    def _stored(self, node, name, source, encoding):
        """The float tensor of an integer one that is read with ``encoding``."""
        if source in self.integer_inputs and source not in self.encodings:
            self._open_input(source, encoding)
        if source in self.dynamic:
            raise QuantizedModelError(
                f"node {name}: {source} is quantized at run time and read with a constant scale"
            )
        if source not in self.encodings:
            raise QuantizedModelError(f"node {name}: {source} is no quantized tensor")
        if not self.encodings[source].same(encoding):
            raise QuantizedModelError(
                f"node {name}: {source} is quantized with one scale and read with another"
            )
        return self.real(source)

    def _open_input(self, name, encoding):
        """An integer input: a float one that is rounded first."""
        self.result.inputs[name] = encoding
        self.alias[name] = f"{name}_opened_"
        self.fake_quantize(name, f"{name}_opened_", encoding, name)
        self.encodings[name] = encoding

    # -- QOperator

    def _linear(self, node, name, attrs):
        """float operator of dequantized tensors, then rounded."""
        op, places = LINEAR[node.op_type]
        given = list(node.input)
        if op == "Concat":
            out, rest = given[:2], given[2:]
            triples = [rest[i : i + 3] for i in range(0, len(rest), 3)]
        else:
            triples = [given[i : i + 3] for i in places]
            after = 3 * len(places)
            out = given[after : after + 2]
            if node.op_type == "QGemm":
                out = given[7:9]
        inputs = [self._operand(node, name, *t) for t in triples]
        bias = ""
        if node.op_type == "QLinearConv" and len(given) > 8:
            bias = given[8]
        if node.op_type == "QGemm" and len(given) > 6:
            bias = given[6]
        if bias:
            inputs.append(self._bias(node, name, bias, triples))
        if attrs.get("channels_last"):
            raise QuantizedModelError(f"node {name}: channels_last cannot be taken over")
        attrs = {key: value for key, value in attrs.items() if key not in DROPPED}
        output = node.output[0]
        quantized = bool(out and out[0])
        target = f"{output}_raw_" if quantized else output
        made = self.emit(op, inputs, target, name, **attrs)
        if op in ("Conv", "MatMul", "Gemm"):
            self._note_layer(made, op, inputs, attrs)
        if quantized:
            encoding = self.encoding(node, out[0], out[1] if len(out) > 1 else "")
            self.fake_quantize(target, output, encoding, name)

    def _operand(self, node, name, tensor, scale, zero):
        """A tensor of a QOperator node as float."""
        if self.real(tensor) in self.constants:
            integers = self.constants[self.real(tensor)]
            axis = {"QLinearConv": 0, "QGemm": 0 if _attributes(node).get("transB") else 1}.get(
                node.op_type, -1
            )
            encoding = self.encoding(node, scale, zero, integers.dtype, axis)
            return self._dequantized(f"{name}_{tensor}_real_", encoding, integers)
        dtype = np.uint8
        return self._stored(node, name, tensor, self.encoding(node, scale, zero, dtype))

    def _bias(self, node, name, bias, triples):
        """The int32 bias of a layer as float: its unit is the product of the two scales."""
        integers = self.value(node, bias, "bias")
        unit = np.asarray(self.value(node, triples[0][1], "scale"), np.float32).reshape(-1)[
            :1
        ] * np.asarray(self.value(node, triples[1][1], "weight scale"), np.float32).reshape(-1)
        return self.constant(f"{name}_bias_", (integers * unit.astype(np.float64)).astype(np.float32))

    # -- integer products

    def _integer_product(self, node, name, attrs, op):
        x, w, *zeros = node.input
        zeros = [*zeros, "", ""][:2]
        if self.real(w) not in self.constants:
            raise QuantizedModelError(f"node {name}: its weights {w} are computed, not constants")
        integers = self.constants[self.real(w)]
        zero = (
            np.asarray(self.value(node, zeros[1], "zero point"))
            if zeros[1]
            else np.zeros((), integers.dtype)
        )
        if zero.size == 1:
            zero = zero.reshape(())
        axis = 0 if op == "Conv" else integers.ndim - 1
        encoding = Encoding(np.ones(zero.shape, np.float32), zero, integers.dtype, axis)
        weight = self._dequantized(f"{name}_weight_", encoding, integers)
        output = node.output[0]
        if x in self.dynamic:
            centered = f"{name}_centered_"
            self.emit("Sub", [self.real(x), self.dynamic[x]], centered, centered)
            made = self.emit(op, [centered, weight], output, name, **attrs)
            self.result.reasons[made] = "its input is quantized at run time (DynamicQuantizeLinear)"
            self.units[output] = 1.0
            return
        known = self.encodings.get(x)
        if known is None:
            signed = x in self.integer_inputs and self.integer_inputs[x].type.tensor_type.elem_type == 3
            point = np.zeros((), np.int8 if signed else np.uint8)
            if zeros[0]:
                point = np.asarray(self.value(node, zeros[0], "zero point")).reshape(())
            known = Encoding(np.ones((), np.float32), point, point.dtype)
        source = self._stored(node, name, x, known)
        made = self.emit(op, [source, weight], output, name, **attrs)
        self._note_layer(made, op, [source, weight], attrs)
        self.units[output] = float(known.scale)

    def _conv_integer(self, node, name, attrs):
        self._integer_product(node, name, attrs, "Conv")

    def _matmul_integer(self, node, name, attrs):
        self._integer_product(node, name, attrs, "MatMul")

    def _cast(self, node, name, attrs):
        source, output = node.input[0], node.output[0]
        if source in self.units and attrs.get("to") == 1:
            unit = self.units[source]
            if unit == 1.0:
                self.alias[output] = self.real(source)
            else:
                factor = self.constant(f"{output}_factor_", np.float32(1 / unit))
                self.emit("Mul", [self.real(source), factor], output, name)
            return
        self._other(node, name, attrs)

    def _dynamic_quantize(self, node, name, attrs):
        """Its definition, in float: the scale depends on the input."""
        source, (output, scale, zero) = self.real(node.input[0]), node.output
        number = {v: self.constant(f"dynamic_{v}_", np.float32(v)) for v in (0, 255)}

        def step(op, inputs, target, **more):
            self.emit(op, inputs, target, target, **more)
            return target

        top = step("ReduceMax", [source], f"{output}_top_", keepdims=0)
        low = step("ReduceMin", [source], f"{output}_low_", keepdims=0)
        top = step("Max", [top, number[0]], f"{output}_top0_")
        low = step("Min", [low, number[0]], f"{output}_low0_")
        step("Div", [step("Sub", [top, low], f"{output}_span_"), number[255]], scale)
        point = step("Div", [step("Sub", [number[0], low], f"{output}_minus_"), scale], f"{output}_point_")
        point = step("Clip", [step("Round", [point], f"{output}_round_"), number[0], number[255]], zero)
        steps = step("Round", [step("Div", [source, scale], f"{output}_steps_")], f"{output}_rounded_")
        step("Clip", [step("Add", [steps, point], f"{output}_moved_"), number[0], number[255]], output)
        self.dynamic[output] = zero

    def _optimized(self, node, name, attrs):
        raise QuantizedModelError(
            f"node {name}: MatMulIntegerToFloat comes from an optimized model; take the model before "
            "ONNX Runtime optimized it"
        )

    # -- the model

    def _finish(self):
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        used = {name for node in self.nodes for name in node.input}
        outputs = []
        for value in self.graph.output:
            made, name = self.real(value.name), value.name
            if name in self.encodings:
                self.result.outputs[name] = self.encodings[name]
            elif name in self.units:
                unit = np.asarray(self.units[name], np.float32)
                self.result.outputs[name] = Encoding(unit, np.zeros((), np.int32), np.dtype(np.int32))
            elif name in self.dynamic or value.type.tensor_type.elem_type == TensorProto.UINT8:
                # the zero point is found at run time
                one = np.ones((), np.float32)
                self.result.outputs[name] = Encoding(one, np.zeros((), np.uint8), np.dtype(np.uint8))
            if made != name:
                self.emit("Identity", [made], name, f"{name}_output_")
                used.add(made)
            copy = onnx.ValueInfoProto()
            copy.CopyFrom(value)
            copy.type.tensor_type.elem_type = TensorProto.FLOAT
            outputs.append(copy)
        inputs = []
        for value in self.graph.input:
            if value.name not in self.constants:
                copy = onnx.ValueInfoProto()
                copy.CopyFrom(value)
                if value.name in self.integer_inputs:
                    copy.type.tensor_type.elem_type = TensorProto.FLOAT
                inputs.append(copy)
        constants = [numpy_helper.from_array(a, n) for n, a in self.constants.items() if n in used]
        graph = helper.make_graph(self.nodes, self.graph.name or "model", inputs, outputs, constants)
        opsets = [o for o in self.model.opset_import if o.domain in ("", "ai.onnx")]
        version = max((o.version for o in opsets), default=13)
        self.result.model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", version)],
            ir_version=min(self.model.ir_version or 8, 9),
        )


#: ONNX operator -> its rule (normalizer, node, name, attributes); all others are as in a float model
RULES: dict[str, Callable[[_Normalizer, Any, str, dict], None]] = {
    **dict.fromkeys(LINEAR, _Normalizer._linear),
    "QuantizeLinear": _Normalizer._quantize,
    "DequantizeLinear": _Normalizer._dequantize,
    "DynamicQuantizeLinear": _Normalizer._dynamic_quantize,
    "ConvInteger": _Normalizer._conv_integer,
    "MatMulInteger": _Normalizer._matmul_integer,
    "MatMulIntegerToFloat": _Normalizer._optimized,
    "DynamicQuantizeMatMul": _Normalizer._optimized,
    "Clip": _Normalizer._clip,
    "Cast": _Normalizer._cast,
    "Constant": _Normalizer._constant,
}


def _mixes(node, attrs) -> bool:
    """Whether a Resize makes new numbers, and does not move those that there are."""
    return node.op_type in ("Resize", "Upsample") and attrs.get("mode", b"nearest") != b"nearest"


def _attributes(node) -> dict:
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}
