"""`Graph` + `ScaleTable` -> a standard ONNX model with QuantizeLinear and DequantizeLinear (QDQ).

The model has the float network's inputs and outputs and, between them, our scales: activations uint8
with our zero points, weights int8 and biases int32 as initializers behind DequantizeLinear, per
channel on axis 0. A range narrower than uint8 (7 bits, a signed tensor, a clip or ReLU) is an integer
Clip behind its QuantizeLinear: saturating to uint8 first and to the range after gives the integers of
one clip, and ONNX Runtime still fuses the layer before it, which a float Clip in front would prevent.

A runtime that fuses Q/DQ into QLinearConv computes our integers. One that runs Q/DQ as written
computes each layer in float32, whose sums are rounded in an order of its own: next to a tie it may be
one step off. `writers.verify` tells the two apart.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from math import inf

import numpy as np

from topi_ext.function import is_vector

from ..errors import ExportError
from ..files import replacing
from ..network.expression import PARAMETRIC, softplus_of
from ..network.graph import Graph
from ..network.layout import nchw, nchw_axes, nchw_axis
from ..network.node import Node, model_shape
from ..readers.onnx_op import NotConstant, OnnxOp
from ..scales.integer import Scales, node_limits
from ..scales.numerics import Scale, integer_limits
from ..scales.table import ScaleTable
from .onnx_tensors import Onnx, Tensor

OPSET = 13  # the first with scales per channel; what is written here means the same in every later one

#: functions of an expression that are one ONNX operator each
EXPRESSIONS = {
    "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "abs": "Abs",
    "negative": "Neg", "erf": "Erf", "add": "Add", "subtract": "Sub", "multiply": "Mul", "divide": "Div",
    "maximum": "Max", "minimum": "Min", "power": "Pow",
}  # fmt: skip


def stored_name(tensor: str) -> str:
    """The name, in the exported model, of the uint8 tensor that our integers of ``tensor`` equal."""
    return f"{tensor}_quantized"


def to_qdq(graph: Graph, table: ScaleTable, taps: Sequence[str] = ()):
    """The QDQ model (``onnx.ModelProto``) of a graph under a scale table.

    With ``taps``, names of stored tensors, the model returns them too, behind the outputs, as uint8
    NCHW. Raises TableError if the table does not fit, ExportError for a float node that has no
    translation.
    """
    return _Exporter(graph, table).model(taps)


def save(path: str | os.PathLike[str], model) -> None:
    """Write an ``onnx.ModelProto`` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


class _Exporter:
    def __init__(self, graph: Graph, table: ScaleTable):
        self.graph = graph = table.prepared(graph)
        self.plan = table.check(graph)
        self.scales = Scales.of_table(graph, self.plan, table)
        self.nodes: list = []
        self.constants: dict[str, np.ndarray] = {}
        self.real_of: dict[str, str] = {}  # tensor -> the ONNX model's float tensor, as float nodes read it
        self.dequantized_of: dict[str, str] = {}  # tensor -> float tensor, as integer nodes read it
        self.stored_of: set[str] = set()
        self.beside: set[str] = set()  # float nodes written with another output of their ONNX node
        self.taken = {*graph.nodes, *graph.output_names}  # names of tensors, with those that are to come
        self.taken.update(f(t) for t in graph.nodes for f in (stored_name, _dequantized_name))
        handles = [node.attrs["handle"] for node in graph if node.op == "float"]
        self.opset = max([OPSET, *(handle.opset for handle in handles if isinstance(handle, OnnxOp))])

    def model(self, taps):
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        for node in self.graph:
            if node.op == "input":
                self.real_of[node.name] = node.name
            elif node.name in self.plan.fused:
                pass  # done by its producer
            elif node.name in self.plan.integer:
                self._integer(node)
            else:
                RULES[node.op](self, node, [self.real(t) for t in node.inputs], node.name)
                self.real_of[node.name] = node.name
        results = []
        for tensor, name in zip(self.graph.outputs, self.graph.output_names, strict=True):
            source = self.real(tensor)
            if name in self.graph.nodes:  # the name of another tensor here
                name = tensor if tensor not in self.graph.inputs else f"{tensor}_output"
            if source != name:
                self.add("Identity", [source], name, name=f"{name}_output")
            results.append((name, self._type(tensor), tensor))
        for tensor in taps:
            self.dequantized(tensor)
            results.append((stored_name(tensor), TensorProto.UINT8, tensor))

        def info(name, dtype, tensor):
            return helper.make_tensor_value_info(name, dtype, model_shape(self.graph[tensor]))

        graph = helper.make_graph(
            self.nodes,
            self.graph.name,
            [info(name, self._type(name), name) for name in self.graph.inputs],
            [info(*result) for result in results],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        opset = [helper.make_opsetid("", self.opset)]
        ir = max(8, helper.find_min_ir_version_for(opset, ignore_unknown=True))
        model = helper.make_model(graph, opset_imports=opset, ir_version=ir, producer_name="tvm_easyquant")
        onnx.checker.check_model(model)
        return model

    # -- tensors

    def _type(self, tensor: str) -> int:
        """The element type of a tensor of the float network."""
        from onnx import helper

        return helper.np_dtype_to_tensor_dtype(np.dtype(self.graph[tensor].dtype))

    def add(self, op, inputs, output, name=None, **attrs):
        """One ONNX node; its name is that of its output, or of the first of a list of them."""
        from onnx import helper

        attrs = {key: value for key, value in attrs.items() if value is not None}
        outputs = [output] if isinstance(output, str) else list(output)
        self.nodes.append(helper.make_node(op, list(inputs), outputs, name=name or outputs[0], **attrs))
        return output

    def free(self, name):
        """A name for a tensor of ours, which a tensor of the model may have: a node Mul has parts Mul_0 and
        Mul_1, as a second and third Mul are called."""
        while name in self.taken or name in self.constants:
            name += "_"
        self.taken.add(name)
        return name

    def constant(self, name, array, dtype=None):
        array = np.array(array, dtype, order="C")  # keeps a scalar a scalar
        while name in self.taken or not _same(self.constants.get(name), array):
            name += "_"
        self.constants[name] = array
        return name

    def quantize(self, source, tensor, lo, hi):
        """``source`` (float) as the stored tensor, clipped to ``lo`` .. ``hi``."""
        s, target = self.scales.decided(tensor), stored_name(tensor)
        narrow = (lo, hi) != (0, 255)
        output = self.free(f"{tensor}_saturated") if narrow else target
        self.add("QuantizeLinear", [source, *self._numbers(s)], output, f"{tensor}_QuantizeLinear")
        if narrow:
            limits = [self.constant(f"clip_{value}", np.uint8(value)) for value in (lo, hi)]
            self.add("Clip", [output, *limits], target, f"{tensor}_Clip")
        self.stored_of.add(tensor)

    def _numbers(self, s: Scale):
        scale = self.constant(f"scale_{np.float32(s.scale).view(np.uint32):08x}", np.float32(s.scale))
        return scale, self.constant(f"zero_point_{s.zero_point}", np.uint8(s.zero_point))

    def dequantized(self, tensor):
        """The stored tensor as float32: what an integer node reads."""
        if tensor not in self.dequantized_of:
            s = self.scales.decided(tensor)
            if tensor not in self.stored_of:
                self.quantize(self.real_of[tensor], tensor, s.lo, s.hi)
            name = _dequantized_name(tensor) if tensor in self.real_of else tensor
            inputs = [stored_name(tensor), *self._numbers(s)]
            self.add("DequantizeLinear", inputs, name, f"{tensor}_DequantizeLinear")
            self.dequantized_of[tensor] = name
        return self.dequantized_of[tensor]

    def real(self, tensor):
        """The tensor as a float node reads it: float32, or what the node says."""
        return self.real_of[tensor] if tensor in self.real_of else self.dequantized(tensor)

    # -- nodes

    def _integer(self, node: Node):
        x = [self.dequantized(t) for t in node.inputs]
        if node.name in self.plan.accumulators:
            RULES[node.op](self, node, x, node.name)
            self.real_of[node.name] = node.name
            return
        target = self.plan.stored(node, self.graph)
        s = self.scales.decided(target)
        raw = RULES[node.op](self, node, x, self.free(f"{node.name}_float"))
        if (function := self.scales.function(node)) is not None:
            raw = self._expression(function, raw, self.free(f"{target}_float"), self.graph[target].shape)
        limits = (0, 255) if node.operator.moves else integer_limits(s, node_limits(node, self.scales))
        self.quantize(raw, target, *limits)

    def _weights(self, node: Node):
        """The weight and bias inputs of a layer: as integers where it runs in integers."""
        weight, bias = f"{node.name}_weight", f"{node.name}_bias"

        def onnx_layout(array):
            """OIHW, of a dense layer (K, C)."""
            array = array.transpose(3, 2, 0, 1)
            return array.reshape(array.shape[: len(node.shape)])

        if node.name not in self.plan.integer:
            return (
                self.constant(weight, onnx_layout(node.weight), np.float32),
                self.constant(bias, node.bias, np.float32),
            )
        real = []
        for name, array, unit in (
            (weight, onnx_layout(self.scales.integer_weight(node)), self.scales.weights[node.name]),
            (bias, self.scales.integer_bias(node), self.scales.unit(node)),
        ):
            inputs = [
                self.constant(f"{name}_quantized", array),
                self.constant(f"{name}_scale", unit, np.float32),
                self.constant(f"{name}_zero_point", np.zeros(node.channels, array.dtype)),
            ]
            label = f"{name}_DequantizeLinear"
            real.append(self.add("DequantizeLinear", inputs, self.free(name), label, axis=0))
        return real

    # -- the rules: a node's float operator from the tensors ``x`` to ``output``; each returns ``output``

    def _conv(self, node: Node, x, output):
        a = node.attrs
        return self.add(
            "Conv", [x[0], *self._weights(node)], output, node.name,
            kernel_shape=node.weight.shape[:2], strides=a["strides"], pads=a["padding"],
            dilations=a["dilation"], group=a["groups"],
        )  # fmt: skip

    def _dense(self, node, x, output):
        return self.add("Gemm", [x[0], *self._weights(node)], output, node.name, transB=1)

    def _join(self, node, x, output):
        return self.add(node.operator.onnx[0], x, output, node.name)

    def _elementwise(self, node, x, output):
        return self._expression(node.attrs["expression"], x[0], output, node.shape)

    def _limit(self, node, x, output):
        return self._clip(x[0], node.attrs["lo"], node.attrs["hi"], output)

    def _concat(self, node, x, output):
        return self.add("Concat", x, output, node.name, axis=nchw_axis(node.attrs["axis"], len(node.shape)))

    def _reshape(self, node, x, output):
        shape = self.constant(f"{node.name}_shape", model_shape(node), np.int64)
        return self.add("Reshape", [x[0], shape], output, node.name)

    def _transpose(self, node, x, output):
        return self.add("Transpose", x, output, node.name, perm=nchw_axes(node.attrs["axes"]))

    def _slice(self, node, x, output):
        bounds = {key: nchw(node.attrs[key]) for key in ("begin", "end", "strides")}
        lists = {"begin": bounds["begin"], "end": bounds["end"], "axes": range(len(node.shape))}
        lists["strides"] = bounds["strides"]
        inputs = [self.constant(f"{node.name}_{k}", list(v), np.int64) for k, v in lists.items()]
        return self.add("Slice", [x[0], *inputs], output, node.name)

    def _pad(self, node, x, output):
        before, after = zip(*nchw(node.attrs["widths"]), strict=True)
        pads = self.constant(f"{node.name}_pads", [*before, *after], np.int64)
        return self.add("Pad", [x[0], pads], output, node.name, mode="constant")

    def _resize(self, node, x, output):
        scales = self.constant(f"{node.name}_scales", [1, 1, *node.attrs["factors"]], np.float32)
        return self.add(
            "Resize", [x[0], "", scales], output, node.name, mode="nearest",
            coordinate_transformation_mode="asymmetric", nearest_mode="floor",
        )  # fmt: skip

    def _gather(self, node, x, output):
        places = nchw(node.attrs["indices"])
        axes = [axis for axis, indices in enumerate(places) if indices is not None]
        (made,) = x
        for axis in axes:
            indices = self.constant(f"{node.name}_indices_{axis}", places[axis], np.int64)
            last = axis == axes[-1]
            name = output if last else self.free(f"{node.name}_along_{axis}")
            made = self.add("Gather", [made, indices], name, node.name if last else None, axis=axis)
        return made

    def _resize_linear(self, node, x, output):
        a, empty = node.attrs, ""
        if all(made * q == size * p for (size, made), (p, q) in zip(a["sizes"], a["scales"], strict=True)):
            sizes = self.constant(f"{node.name}_sizes", model_shape(node), np.int64)
            inputs = [x[0], empty, empty, sizes]
        else:  # the last place is not whole
            scales = [1, 1, *(p / q for p, q in a["scales"])]
            inputs = [x[0], empty, self.constant(f"{node.name}_scales", scales, np.float32)]
        mode = a["mode"]
        return self.add(
            "Resize", inputs, output, node.name, mode="linear", coordinate_transformation_mode=mode
        )

    def _shuffle(self, node, x, output):
        a = node.attrs
        return self.add("DepthToSpace", x, output, node.name, blocksize=a["block"], mode=a["mode"])

    def _float(self, node, x, output):
        if isinstance(node.attrs["handle"], OnnxOp):
            return self._onnx(node, node.attrs["handle"], x, output)
        translate = getattr(node.attrs["handle"], "to_onnx", None)
        if translate is None or translate(self, x, output) is None:
            raise ExportError(
                f"node {node.name} ({getattr(node.attrs['handle'], 'op', 'float')}) stays float and has no "
                "translation to ONNX; cut the model there"
            )
        return output

    def _onnx(self, node: Node, handle: OnnxOp, x, output):
        """The ONNX node as it was, with all of its outputs at once; of an older opset, where that is not
        its form any more, the same in pieces."""
        if output in self.beside:
            return output
        if not _has_form(handle.op, handle.opset, self.opset):
            return self._in_pieces(node, handle, x, output)
        made = type(handle.node)()
        made.CopyFrom(handle.node)
        made.name, made.domain = node.name, ""
        for place, name in enumerate(made.input):
            if name and place in handle.constants:
                made.input[place] = self.constant(f"{node.name}_input_{place}", handle.constants[place])
            elif name:
                made.input[place] = x[handle.tensors[place]]
        outputs = self._outputs(node, handle)
        self.beside.update(outputs.values())
        for place, name in enumerate(made.output):
            if name:
                made.output[place] = outputs.get(place) or self.free(f"{node.name}_unread_{place}")
        for attribute in made.attribute:
            if attribute.name in ("to", "dtype"):  # a float is float32 here, but at inputs and outputs
                attribute.i = self._type(node.name)
        self.nodes.append(made)
        return output

    def _outputs(self, node, handle) -> dict[int, str]:
        """place -> the float node that is that output of the same ONNX node."""
        alike = (n for n in self.graph if n.op == "float" and n.inputs == node.inputs)
        handles = ((n.name, n.attrs["handle"]) for n in alike)
        return {
            other.index: name
            for name, other in handles
            if isinstance(other, OnnxOp) and other.node is handle.node
        }

    def _in_pieces(self, node, handle, x, output):
        tensors = [
            Tensor.of(name, model_shape(self.graph[t]), self.graph[t].dtype)
            for name, t in zip(x, node.inputs, strict=True)
        ]
        try:
            made = handle.emit(Onnx(self.add, self.constant, self.free, self.opset, node.name), tensors)
        except NotConstant:
            raise ExportError(
                f"node {node.name} ({handle.op}) is of opset {handle.opset} and has no form in opset "
                f"{self.opset}; convert the model to that or cut it there"
            ) from None
        return self.add("Identity", [made.name], output)

    def _global(self, node) -> dict:
        """The window of a pool over the whole map."""
        return dict(pool_size=self.graph[node.inputs[0]].shape[1:3], strides=(1, 1), padding=(0,) * 4)

    def _max_pool(self, node, x, output):
        return self._pool("MaxPool", node, x, output, dilations=node.attrs["dilation"])

    def _average(self, node, x, output):
        if dict(node.attrs) == {**self._global(node), "count_include_pad": True}:
            return self.add("GlobalAveragePool", x, output, node.name)
        counts = int(node.attrs["count_include_pad"])
        return self._pool("AveragePool", node, x, output, count_include_pad=counts)

    def _mean(self, node, x, output):
        return self._pool("AveragePool", node, x, output, count_include_pad=0)

    def _reduce(self, node, x, output):
        axes = sorted(nchw_axis(axis, len(node.shape)) for axis in node.attrs["axes"])
        return self._along(node.operator.onnx[0], axes, x, output, node.name)

    def _along(self, op, axes, x, output, label=None):
        """A mean or a maximum over axes, which stay."""
        since = 18  # from then on the axes are an input
        if self.opset < since:
            return self.add(op, x, output, label, axes=axes, keepdims=1)
        return self.add(op, [*x, self.constant(f"{label or output}_axes", axes, np.int64)], output, label)

    def _layer_norm(self, node, x, output):
        """In pieces along the channels, as `readers.layer_norm` reads them: the operator knows last axes
        alone."""
        spread = (-1, *(1,) * (len(node.shape) - 2))
        scale, shift, epsilon = (
            self.constant(f"{node.name}_{key}", np.reshape(np.asarray(node.attrs[key], np.float32), to))
            for key, to in (("scale", spread), ("shift", spread), ("epsilon", ()))
        )
        names = ("mean", "centred", "squares", "variance", "sum", "root", "quotient", "scaled")
        part = {name: self.free(f"{node.name}_{name}") for name in names}
        self._along("ReduceMean", [1], x, part["mean"])
        self.add("Sub", [x[0], part["mean"]], part["centred"])
        self.add("Mul", [part["centred"]] * 2, part["squares"])
        self._along("ReduceMean", [1], [part["squares"]], part["variance"])
        self.add("Add", [part["variance"], epsilon], part["sum"])
        self.add("Sqrt", [part["sum"]], part["root"])
        self.add("Div", [part["centred"], part["root"]], part["quotient"])
        self.add("Mul", [part["quotient"], scale], part["scaled"])
        return self.add("Add", [part["scaled"], shift], output, node.name)

    def _pool(self, op, node, x, output, **more):
        a = node.attrs
        pads = a["padding"]
        if any(p >= k for p, k in zip(pads, a["pool_size"] * 2, strict=True)):  # no pool may have so much
            lowest = -inf if op == "MaxPool" else 0.0
            amounts = self.constant(f"{node.name}_pads", [0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64)
            value = self.constant(f"{node.name}_padding", np.float32(lowest))
            padded = self.free(f"{node.name}_padded")
            x, pads = [self.add("Pad", [*x, amounts, value], padded)], (0,) * 4
        return self.add(
            op, x, output, node.name,
            kernel_shape=a["pool_size"], strides=a["strides"], pads=pads, **more,
        )  # fmt: skip

    def _clip(self, x, lo, hi, output):
        if (lo, hi) == (0.0, inf):
            return self.add("Relu", [x], output)
        if np.isinf(lo) and np.isinf(hi):  # changes nothing, but is a node
            lo, hi = np.finfo(np.float32).min, np.finfo(np.float32).max
        limits = [
            "" if np.isinf(v) else self.constant(f"{output}_{end}", np.float32(v))
            for v, end in ((lo, "lo"), (hi, "hi"))
        ]
        return self.add("Clip", [x, *limits], output)

    def _expression(self, e, x, output, shape):
        """An expression of `elementwise` of a tensor of this NHWC shape; its parts are named after
        ``output``."""
        if e == "x":
            return self.add("Identity", [x], output)
        if (inner := softplus_of(e)) is not None:
            inner = x if inner == "x" else self._expression(inner, x, self.free(f"{output}_0"), shape)
            return self.add("Softplus", [inner], output)
        name, *arguments = e
        values = []
        for i, argument in enumerate(arguments):
            part = f"{output}_{i}"
            if argument == "x":
                values.append(x)
            elif is_vector(argument):
                channels = np.float32(argument).reshape(-1, *(1,) * (len(shape) - 2))
                values.append(self.constant(part, channels))
            elif isinstance(argument, tuple):
                values.append(self._expression(argument, x, self.free(part), shape))
            elif name not in PARAMETRIC:
                values.append(self.constant(part, np.float32(argument)))
        if name == "clip":
            _, lo, hi = arguments
            return self._clip(values[0], lo, hi, output)
        if name == "leaky_relu" and is_vector(arguments[1]):
            return self.add("PRelu", values, output)
        if name == "leaky_relu":
            return self.add("LeakyRelu", values, output, alpha=arguments[1])
        if name == "rsqrt":
            root = self.add("Sqrt", values, self.free(f"{output}_root"))
            return self.add("Reciprocal", [root], output)
        return self.add(EXPRESSIONS[name], values, output)


def _dequantized_name(tensor: str) -> str:
    """Of a float tensor that is also stored, as integer nodes read it."""
    return f"{tensor}_dequantized"


def _same(known: np.ndarray | None, array: np.ndarray) -> bool:
    """Whether a constant may have the name of a known one, if any."""
    if known is None:
        return True
    return known.dtype == array.dtype and known.shape == array.shape and known.tobytes() == array.tobytes()


def _has_form(op: str, old: int, new: int) -> bool:
    """Whether a node of an older opset can stand in a newer one as it is: of what its schema has, nothing
    is gone and no default is another. (A change of the meaning has always been one of these.)"""
    from onnx import defs

    before, after = (defs.get_schema(op, opset, "") for opset in (old, new))
    if after.deprecated:  # the checker refuses it
        return False
    if before.since_version == after.since_version:
        return True

    def attributes(schema):
        return {(k, a.type, a.required, str(a.default_value)) for k, a in schema.attributes.items()}

    def begins(those, these):
        return [v.name for v in these[: len(those)]] == [v.name for v in those]

    return (
        attributes(before) <= attributes(after)
        and begins(before.inputs, after.inputs)
        and begins(before.outputs, after.outputs)
    )


#: operator -> its rule, for all that a model that was not quantized has
RULES: dict[str, Callable[[_Exporter, Node, list, str], str]] = {
    "conv2d": _Exporter._conv,
    "dense": _Exporter._dense,
    "add": _Exporter._join,
    "sub": _Exporter._join,
    "max": _Exporter._join,
    "min": _Exporter._join,
    "mul": _Exporter._join,
    "matmul": _Exporter._join,
    "elementwise": _Exporter._elementwise,
    "concat": _Exporter._concat,
    "max_pool2d": _Exporter._max_pool,
    "avg_pool2d": _Exporter._average,
    "mean_pool2d": _Exporter._mean,
    "reduce_mean": _Exporter._reduce,
    "reduce_max": _Exporter._reduce,
    "layer_norm": _Exporter._layer_norm,
    "clip": _Exporter._limit,
    "reshape": _Exporter._reshape,
    "transpose": _Exporter._transpose,
    "slice": _Exporter._slice,
    "pad": _Exporter._pad,
    "resize": _Exporter._resize,
    "gather": _Exporter._gather,
    "resize_linear": _Exporter._resize_linear,
    "depth_to_space": _Exporter._shuffle,
    "float": _Exporter._float,
}


__all__ = ["ExportError", "save", "stored_name", "to_qdq"]
