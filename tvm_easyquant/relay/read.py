"""Relay front end: an ONNX file or a Relay module -> `Graph`.

Batch normalization, biases and per-channel constants are folded in numpy (TVM's FoldConstant takes
50 to 90 ms a call and its FoldScaleAxis erases names). Names are those of the ONNX nodes, which the
importer leaves in ``call.span``; they are read here, before any Relay pass can drop them.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, prod
from typing import Any

import numpy as np

from ..errors import LoadError
from ..network.expression import BINARY, UNARY
from ..network.graph import Graph, GraphError, Node, to_nchw, to_nhwc
from ..readers.onnx_quantized import QUANTIZED, Normalized, is_quantized, normalize
from .framework import BUILD_CONFIG, no_tophub, relay, tvm

OUTPUT_NAMES = "output_names"  # attribute of a module: what the model it came from calls its outputs
OLDEST_OPSET = 7  # before it, broadcasting was an attribute


def load_onnx(
    model,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int = 1,
) -> Graph:
    """Load an ONNX model (a path or an ``onnx.ModelProto``) as a `Graph`.

    input_shapes: {input name: NCHW shape} for inputs whose file leaves a dimension open; ``batch``
    is used for an open first dimension. Raises LoadError.
    """
    return from_relay(import_onnx(model, input_shapes, batch), name=_stem(model))


def load_model(
    path: str | os.PathLike,
    model_format: str | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int = 1,
) -> Graph:
    """Load a model file of any format that tvmc loads as a `Graph`; see `import_model`."""
    return from_relay(import_model(path, model_format, input_shapes, batch), name=_stem(path))


def import_model(
    path: str | os.PathLike,
    model_format: str | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int = 1,
):
    """The float Relay module (NCHW, params bound) of a model file; what is not ONNX goes through tvmc.

    model_format: a name of tvmc's (onnx, tflite, pytorch, keras, pb, paddle, relay); by default the file's
    ending decides. input_shapes and batch: see `load_onnx`; other formats take input_shapes only.
    Raises LoadError.
    """
    from tvm.driver.tvmc import TVMCException, frontends

    from . import formats

    try:
        known = frontends.get_frontend_by_name(model_format) if model_format else None
        known = known or frontends.guess_frontend(os.fspath(path))
    except TVMCException as error:
        if model_format:
            raise LoadError(f"model format {model_format!r}: {_last_line(error)}") from None
        known = None
    if known is None or known.name() == "onnx":
        return import_onnx(path, input_shapes, batch)
    return formats.load(path, known.name(), input_shapes)


def load_quantized(
    model, input_shapes: Mapping[str, Sequence[int]] | None = None, batch: int = 1
) -> tuple[Graph, Normalized]:
    """A quantized ONNX model as a `Graph` with ``fake_quant`` nodes, and what `onnx_quantized` kept of it.

    Arguments as of `load_onnx`. Raises LoadError and QuantizedModelError.
    """
    read, name = _read_onnx(model)
    if not is_quantized(read):
        raise LoadError(f"{name} is not quantized: it has no QuantizeLinear; quantize takes float models")
    normal = normalize(read)
    module = _import_onnx(normal.model, name, input_shapes, batch)
    return from_relay(module, name=_stem(model), quantized=True), normal


def import_onnx(model, input_shapes=None, batch: int = 1):
    """The float Relay module of an ONNX model, params bound; arguments and errors of `load_onnx`."""
    model, name = _read_onnx(model)
    if is_quantized(model):
        node = next(n for n in model.graph.node if n.op_type in QUANTIZED)
        raise LoadError(
            f"{name} is already quantized (node {node.name or node.output[0]} is {node.op_type}); "
            "import-onnx (Python: import_quantized) takes its scales over"
        )
    return _import_onnx(model, name, input_shapes, batch)


def _import_onnx(model, name, input_shapes, batch):
    if batch < 1:
        raise LoadError(f"batch is {batch}; use 1 or more")
    shapes = _input_shapes(model, dict(input_shapes or {}), batch, name)
    try:
        module, params = relay.frontend.from_onnx(model, shapes, freeze_params=True)
    except Exception as error:  # the importer raises several unrelated types
        raise LoadError(f"TVM cannot import {name}: {_why_not(model, error)}") from None
    module = tvm.IRModule.from_expr(relay.build_module.bind_params_by_name(module["main"], params))
    return module.with_attr(OUTPUT_NAMES, [value.name for value in model.graph.output])


def check_onnx(path: str | os.PathLike, fixed: bool = False) -> None:
    """LoadError if the file is no readable ONNX model, or, unless ``fixed``, has a dynamic shape."""
    model, name = _read_onnx(path)
    if not fixed:
        _input_shapes(model, {}, 1, name)


def _read_onnx(model):
    """The ModelProto of a path (or the one given) and its name; LoadError if it is not one to import."""
    import onnx

    name = "model"
    if not isinstance(model, onnx.ModelProto):
        name = os.path.basename(os.fspath(model))
        try:
            model = onnx.load(os.fspath(model))
            known = model.graph.node and model.opset_import
        except FileNotFoundError:
            raise LoadError(f"there is no file {os.fspath(model)}") from None
        except onnx.checker.ValidationError as error:  # external data
            raise LoadError(f"the weights of {name} cannot be read: {_last_line(error)}") from None
        except Exception as error:
            raise LoadError(f"{name} is not an ONNX file, or a damaged one ({_last_line(error)})") from None
        if not known:
            raise LoadError(f"{name} is not an ONNX file (it holds no graph)")
    newest = onnx.defs.onnx_opset_version()
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and not OLDEST_OPSET <= opset.version <= newest:
            raise LoadError(
                f"{name} has opset {opset.version}; {OLDEST_OPSET} to {newest} can be read: export it with "
                "opset 17, or convert it with onnx.version_converter"
            )
    return model, name


def _stem(model) -> str:
    if not isinstance(model, (str, os.PathLike)):
        return "model"
    return os.path.splitext(os.path.basename(os.fspath(model)))[0]


def _why_not(model, error) -> str:
    """Why TVM's importer gave up, in a line; a bare KeyError of its own says too little."""
    import onnx

    if isinstance(error, KeyError):
        with contextlib.suppress(Exception):
            try:
                onnx.checker.check_model(model)
            except onnx.checker.ValidationError as found:
                return " ".join(str(found).split("==>")[0].split())
    kinds = {
        value.name: onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        for value in model.graph.input
        if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT
    }
    if kinds:
        which = ", ".join(f"{name} is {kind}" for name, kind in kinds.items())
        return f"input {which}; export the model with float32 inputs"
    return _last_line(error)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _input_shapes(model, given, batch, name):
    constants = {t.name for t in model.graph.initializer}
    shapes = {}
    for value in model.graph.input:
        if value.name in constants:
            continue
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if value.name in given:
            shape = [int(d) for d in given.pop(value.name)]
            fixed = all(d in (0, s) for d, s in zip(dims[1:], shape[1:], strict=False))
            if (dims and len(dims) != len(shape)) or not fixed or min(shape, default=1) < 1:
                raise LoadError(
                    f"{name}: input {value.name} was given shape {tuple(shape)}, the model says "
                    f"{tuple(d or '?' for d in dims)}"
                )
        else:
            shape = [batch, *dims[1:]] if dims and dims[0] <= 0 else dims
            if not shape or any(d <= 0 for d in shape):
                raise LoadError(
                    f"{name}: input {value.name} has the dynamic shape "
                    f"{tuple(d or '?' for d in dims)}; fix it with input_shapes "
                    f"(--input-shapes on the command line), for example {value.name}:[1,3,224,224]"
                )
        shapes[value.name] = shape
    if given:
        raise LoadError(f"{name}: input_shapes names {sorted(given)}, its inputs are {sorted(shapes)}")
    if not shapes:
        raise LoadError(f"{name} has no input")
    return shapes


@dataclass(frozen=True)
class RelayOp:
    """What a float node keeps of its Relay call, enough to run it or to put it back.

    tensors: the non-constant arguments in the order of the node's inputs; index: of the tuple field
    the node takes, or None.
    """

    op: str
    call: Any  # relay.Call
    tensors: tuple
    index: int | None = None

    def __str__(self):
        """The operator with its attributes and constants, as `Graph.fingerprint` sees it."""
        attrs = tvm.ir.save_json(self.call.attrs) if self.call.attrs is not None else ""
        constants = [
            a.data.numpy().tobytes().hex() for a in self.call.args if isinstance(a, relay.Constant)
        ]
        return repr((self.op, self.index, attrs, constants))

    def rebuild(self, tensors: Sequence) -> object:
        """The call on other arguments: a Relay expression."""
        new = {old: arg for old, arg in zip(self.tensors, tensors, strict=True)}

        def swap(arg):
            if isinstance(arg, relay.Tuple):
                return relay.Tuple([swap(field) for field in arg.fields])
            return new.get(arg, arg)

        call = self.call
        built = relay.Call(call.op, [swap(a) for a in call.args], call.attrs, call.type_args)
        return built if self.index is None else relay.TupleGetItem(built, self.index)

    def to_onnx(self, emit, x: Sequence[str], output: str) -> str | None:
        """Write the call into an ONNX model; see `relay_onnx.to_onnx`."""
        from .float_op import to_onnx

        return to_onnx(self, emit, x, output)

    def evaluate(self, *arrays: np.ndarray) -> np.ndarray:
        """Run the call on NHWC arrays through TVM; compiled once."""
        if "executor" not in self.__dict__:
            arguments = [
                relay.var(f"x{i}", shape=to_nchw(a).shape, dtype=str(a.dtype)) for i, a in enumerate(arrays)
            ]
            module = tvm.IRModule.from_expr(relay.Function(arguments, self.rebuild(arguments)))
            with no_tophub(), tvm.transform.PassContext(opt_level=2, config=BUILD_CONFIG):
                library = relay.build(module, "llvm")
            from tvm.contrib import graph_executor

            executor = graph_executor.GraphModule(library["default"](tvm.cpu()))
            object.__setattr__(self, "executor", executor)
        self.__dict__["executor"].run(**{f"x{i}": to_nchw(a) for i, a in enumerate(arrays)})
        return to_nhwc(self.__dict__["executor"].get_output(0).numpy())


def from_relay(
    module, params: Mapping | None = None, name: str = "model", quantized: bool = False
) -> Graph:
    """A float Relay module (NCHW) and its params as a `Graph`.

    quantized: pairs of qnn.quantize and qnn.dequantize become ``fake_quant`` nodes, for `take_over`.
    Raises LoadError for control flow, several functions, or dynamic shapes.
    """
    function = module["main"]
    names = dict(module.attrs or {}).get(OUTPUT_NAMES)
    output_names = None if names is None else [str(n) for n in names]
    if params:
        function = relay.build_module.bind_params_by_name(function, dict(params))
    module = tvm.IRModule.from_expr(function)
    passes = [
        relay.transform.InferType(),
        relay.transform.DynamicToStatic(),
        relay.transform.FoldExplicitPadding(),
        relay.transform.InferType(),
    ]
    with tvm.transform.PassContext(opt_level=3):
        module = tvm.transform.Sequential(passes)(module)
    return _Importer(module["main"], name, output_names, quantized).graph


class _Importer:
    """One walk over the Relay function in post-order; see `from_relay`."""

    def __init__(self, function, name, output_names=None, quantized=False):
        self.quantized = quantized
        self.nodes: dict[str, Node] = {}
        self.tensor = {}  # Relay expression -> node name
        self.taken: set[str] = set()
        self.rounded: dict[object, dict] = {}  # qnn.quantize -> attributes of its fake_quant
        self.transposed: dict[str, str] = {}  # last node of a transposed convolution -> its conv2d
        self.uses: dict[object, int] = {}
        order = []
        relay.analysis.post_order_visit(function, order.append)
        for expr in order:
            for arg in _arguments(expr):
                self.uses[arg] = self.uses.get(arg, 0) + 1
        body = function.body
        self.results = list(body.fields) if isinstance(body, relay.Tuple) else [body]
        for result in self.results:
            self.uses[result] = self.uses.get(result, 0) + 1
        for expr in order:
            if expr in function.params:
                self._input(expr)
            elif isinstance(expr, relay.Call):
                self._call(expr)
            elif isinstance(expr, relay.TupleGetItem):
                self._field(expr)
            elif isinstance(expr, (relay.If, relay.Let, relay.Match)):
                raise LoadError(f"{name}: control flow ({type(expr).__name__}) cannot be quantized")
        outputs = []
        for result in self.results:
            if result not in self.tensor:
                raise LoadError(f"{name}: an output does not depend on any input")
            outputs.append(self.tensor[result])
        self._drop_dead(outputs)
        self.graph = Graph(self.nodes.values(), outputs, name, output_names)

    # -- helpers

    def _name(self, expr, fallback):
        span = getattr(expr, "span", None)
        name = span.source_name.name if span is not None and span.source_name else ""
        base = name or fallback
        unique, n = base, 1
        while unique in self.taken:
            n += 1
            unique = f"{base}_{n}"
        self.taken.add(unique)
        return unique

    def _source(self, expr):
        span = getattr(expr, "span", None)
        return span.source_name.name if span is not None and span.source_name else "without a name"

    def _add(self, expr, op, inputs, shape, attrs, weight=None, bias=None):
        name = self._name(expr, f"{op}_{len(self.nodes)}")
        node = Node(name, op, tuple(inputs), tuple(shape), attrs, weight, bias, (name,))
        self.nodes[name] = node
        self.tensor[expr] = name
        return name

    def _input(self, expr):
        kind = expr.checked_type
        shape = _shape(kind, expr.name_hint)
        if kind.dtype != "float32":
            raise LoadError(f"input {expr.name_hint} is {kind.dtype}; only float32 inputs are supported")
        if re.fullmatch(r"p\d+", expr.name_hint):
            raise LoadError(f"input {expr.name_hint} has a name that TVM gives to constants; rename it")
        self.taken.add(expr.name_hint)
        node = Node(expr.name_hint, "input", (), _nhwc_shape(shape))
        self.nodes[node.name] = node
        self.tensor[expr] = node.name

    def _constant(self, expr):
        """The value of an expression that depends on no input, else None."""
        if isinstance(expr, relay.Constant):
            return expr.data.numpy()
        if expr in self.tensor or isinstance(expr, (relay.Var, relay.Tuple)):
            return None
        if relay.analysis.free_vars(expr):
            return None
        folded = relay.transform.FoldConstantExpr(expr, tvm.IRModule())
        return folded.data.numpy() if isinstance(folded, relay.Constant) else None

    def _drop_dead(self, outputs):
        """Drop elementwise nodes that were gathered into later ones."""
        alive = set(outputs)
        for node in reversed(list(self.nodes.values())):
            if node.name in alive or node.op != "elementwise":
                alive.update(node.inputs)
            else:
                del self.nodes[node.name]

    def _fold_affine(self, expr, data, scale, shift):
        """Fold ``scale * data + shift`` (each () or (K,)) into the node before it; False if not."""
        name = self.transposed.get(self.tensor[data], self.tensor[data])
        node = self.nodes[name]
        if node.weight is None or self.uses[data] != 1:
            return False
        if name != self.tensor[data]:  # every phase has all the channels
            scale, shift = (np.tile(v, node.channels // np.size(v)) for v in (scale, shift))
        scale = np.broadcast_to(scale, (node.channels,)).astype(np.float64)
        shift = np.broadcast_to(shift, (node.channels,)).astype(np.float64)
        factor = scale if node.op == "conv2d" else scale[:, None]
        source = expr.span.source_name.name if expr.span else ""
        self.nodes[name] = Node(
            name,
            node.op,
            node.inputs,
            node.shape,
            node.attrs,
            (node.weight * factor).astype(np.float32),
            (node.bias * scale + shift).astype(np.float32),
            node.source if source in ("", *node.source) else (*node.source, source),
        )
        self.tensor[expr] = self.tensor[data]
        return True

    def _float(self, expr, index=None):
        call = expr.tuple_value if index is not None else expr
        if call.op.name.startswith("qnn."):
            raise LoadError(
                f"the model is already quantized (node {self._source(call)} is {call.op.name}); for ONNX, "
                "import-onnx (Python: import_quantized) takes its scales over"
            )
        tensors = [a for a in _arguments(call) if a in self.tensor]
        if not tensors:
            return  # a constant; read through _constant where it is used
        handle = RelayOp(str(call.op.name), call, tuple(dict.fromkeys(tensors)), index)
        kind = expr.checked_type
        if not isinstance(kind, relay.TensorType):
            return  # a tuple; its fields become nodes
        self._add(
            call if index is None else expr,
            "float",
            [self.tensor[t] for t in handle.tensors],
            _nhwc_shape(_shape(kind, handle.op)),
            {"fn": handle.evaluate, "handle": handle},
        )

    # -- expressions

    def _field(self, expr):
        call = expr.tuple_value
        if not isinstance(call, relay.Call):
            return
        if call.op.name == "nn.dropout" and expr.index == 0:
            self.tensor[expr] = self.tensor[call.args[0]]
            self._share_uses(expr, call.args[0])
        elif call.op.name == "nn.batch_norm" and expr.index == 0:
            self._batch_norm(expr, call)
        else:
            self._float(expr, expr.index)

    def _share_uses(self, alias, original):
        self.uses[alias] = self.uses.get(alias, 0) + self.uses[original] - 1

    def _batch_norm(self, expr, call):
        arrays = [self._constant(a) for a in call.args[1:]]
        data = call.args[0]
        if any(a is None for a in arrays) or data not in self.tensor:
            return self._float(expr, 0)
        gamma, beta, mean, variance = (a.astype(np.float64) for a in arrays)
        scale = (gamma if call.attrs.scale else 1.0) / np.sqrt(variance + call.attrs.epsilon)
        shift = (beta if call.attrs.center else 0.0) - mean * scale
        if int(call.attrs.axis) == 1 and self._fold_affine(expr, data, scale, shift):
            return None
        if int(call.attrs.axis) != 1 or len(data.checked_type.shape) != 4:
            return self._float(expr, 0)
        self._channels(call, data, scale, shift)
        self.tensor[expr] = self.tensor[call]
        return None

    def _channels(self, call, data, scale, shift):
        """``scale * data + shift`` (each () or (C,)) with nothing to fold into: a 1x1 depthwise layer."""
        shape = _nhwc_shape(_shape(data.checked_type, "batch_norm"))
        attrs = dict(strides=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=shape[3])
        weight, bias = (np.broadcast_to(v, shape[3:]).astype(np.float32) for v in (scale, shift))
        weight = weight.reshape(1, 1, 1, -1)
        self._add(call, "conv2d", [self.tensor[data]], shape, attrs, weight, bias)

    def _call(self, call):
        if not isinstance(call.op, tvm.ir.Op):
            raise LoadError("calls of other functions cannot be quantized; inline them first")
        if not any(a in self.tensor for a in _arguments(call)):
            return  # constant
        rule = getattr(self, "_op_" + call.op.name.replace(".", "_"), None)
        if rule is None and call.op.name in (*UNARY, *BINARY):
            rule = self._function
        if call.op.name in ("nn.batch_norm", "nn.dropout"):
            return  # read through their field 0
        if rule is None or rule(call) is False:
            self._float(call)

    def _op_nn_conv2d(self, call):
        weight, a = self._constant(call.args[1]), call.attrs
        if a.data_layout != "NCHW" or a.kernel_layout != "OIHW":
            raise LoadError(
                f"a convolution has layout {a.data_layout}, {a.kernel_layout}; convert the module with "
                "relay.transform.ConvertLayout({'nn.conv2d': ['NCHW', 'OIHW']}) first"
            )
        if weight is None:
            return False
        data = call.args[0]
        top, left, bottom, right = _four(a.padding)
        shape = _nhwc_shape(_shape(call.checked_type, "conv2d"))
        attrs = dict(
            strides=_ints(a.strides),
            padding=(top, left, bottom, right),
            dilation=_ints(a.dilation),
            groups=int(a.groups),
        )
        weight = np.ascontiguousarray(weight.astype(np.float32).transpose(2, 3, 1, 0))
        bias = np.zeros(weight.shape[3], np.float32)
        return self._add(call, "conv2d", [self.tensor[data]], shape, attrs, weight, bias)

    def _op_nn_conv2d_transpose(self, call):
        """As a convolution that makes every phase of the output, then depth to space, then a crop.

        Output o reads input i with weight k where ``o + pad = stride * i + k``: the phase
        ``(o + pad) % stride`` takes every stride-th weight.
        """
        weight, a = self._constant(call.args[1]), call.attrs
        (stride, other), top_left = _ints(a.strides), _four(a.padding)[:2]
        plain = a.data_layout == "NCHW" and a.kernel_layout == "IOHW" and _ints(a.dilation) == (1, 1)
        if weight is None or not plain or int(a.groups) != 1 or stride != other:
            return False
        data = call.args[0]
        n, height, width, depth = _nhwc_shape(_shape(data.checked_type, "conv2d_transpose"))
        out = _nhwc_shape(_shape(call.checked_type, "conv2d_transpose"))
        channels, r, s = weight.shape[1:]
        taps = [-(-k // stride) for k in (r, s)]
        full = [(size + t - 1) * stride for size, t in zip((height, width), taps, strict=True)]
        if any(p + o > f for p, o, f in zip(top_left, out[1:3], full, strict=True)):
            return False  # output padding beyond the last tap
        spread = np.zeros((depth, channels, taps[0] * stride, taps[1] * stride), np.float32)
        spread[:, :, :r, :s] = weight
        spread = spread.reshape(depth, channels, taps[0], stride, taps[1], stride)[:, :, ::-1, :, ::-1]
        kernel = spread.transpose(2, 4, 0, 3, 5, 1).reshape(*taps, depth, stride**2 * channels)
        attrs = dict(
            strides=(1, 1), padding=(taps[0] - 1, taps[1] - 1) * 2, dilation=(1, 1), groups=1
        )  # fmt: skip
        bias = np.zeros(kernel.shape[3], np.float32)
        phases = (n, full[0] // stride, full[1] // stride, kernel.shape[3])
        name = self._add(
            call, "conv2d", [self.tensor[data]], phases, attrs, np.ascontiguousarray(kernel), bias
        )
        attrs = dict(block=stride, mode="DCR")
        last = self._add(call, "depth_to_space", [name], (n, *full, channels), attrs)
        if tuple(full) != out[1:3] or any(top_left):
            begin = (0, *top_left, 0)
            end = tuple(b + size for b, size in zip(begin, out, strict=True))
            attrs = dict(begin=begin, end=end, strides=(1, 1, 1, 1))
            last = self._add(call, "slice", [last], out, attrs)
        self.transposed[last] = name
        return None

    def _clip_before_moves(self, call, last, lo, hi):
        """A clip behind a transposed convolution: put at once behind its conv2d, where it is free."""
        conv = self.nodes[self.transposed.pop(last)]
        names = list(self.nodes)
        moves = [self.nodes.pop(name) for name in names[names.index(conv.name) + 1 :]]
        if any(node.op not in ("depth_to_space", "slice") for node in moves):  # something came between
            self.nodes.update((node.name, node) for node in moves)
            attrs, shape = dict(lo=lo, hi=hi), self.nodes[last].shape
            return self._add(call, "clip", [last], shape, attrs)
        name = self._add(call, "clip", [conv.name], conv.shape, dict(lo=lo, hi=hi))
        moves[0] = replace(moves[0], inputs=(name,))
        self.nodes.update((node.name, node) for node in moves)
        self.tensor[call] = last
        return None

    def _op_nn_depth_to_space(self, call):
        a = call.attrs
        if a.layout != "NCHW":
            return False
        shape = _nhwc_shape(_shape(call.checked_type, "depth_to_space"))
        attrs = dict(block=int(a.block_size), mode=str(a.mode))
        return self._add(call, "depth_to_space", [self.tensor[call.args[0]]], shape, attrs)

    def _resize(self, call):
        """A resize that repeats every row and column a whole number of times; asked of TVM itself."""
        data = call.args[0]
        before, after = (_shape(t.checked_type, "resize") for t in (data, call))
        layout = str(call.attrs.layout)
        if layout != "NCHW" or after[2] % before[2] or after[3] % before[3]:
            return False
        factors = (after[2] // before[2], after[3] // before[3])
        places = np.arange(prod(before[2:]), dtype=np.float32).reshape(1, *before[2:], 1)
        ramp = np.broadcast_to(places, _nhwc_shape(before))
        moved = RelayOp(call.op.name, call, (data,)).evaluate(np.ascontiguousarray(ramp))
        if not np.array_equal(moved, ramp.repeat(factors[0], 1).repeat(factors[1], 2)):
            return False
        shape = _nhwc_shape(after)
        return self._add(call, "resize", [self.tensor[data]], shape, dict(factors=factors))

    _op_image_resize2d = _op_nn_upsampling = _resize

    def _op_nn_dense(self, call):
        weight = self._constant(call.args[1])
        if weight is None or len(call.checked_type.shape) != 2:
            return False
        weight = np.ascontiguousarray(weight.astype(np.float32))
        shape = _shape(call.checked_type, "dense")
        bias = np.zeros(weight.shape[0], np.float32)
        return self._add(call, "dense", [self.tensor[call.args[0]]], shape, {}, weight, bias)

    def _op_nn_bias_add(self, call):
        bias = self._constant(call.args[1])
        if bias is None or int(call.attrs.axis) not in (1, 1 - len(call.checked_type.shape)):
            return False
        return self._fold_affine(call, call.args[0], 1.0, bias)

    def _function(self, call, *parameters):
        """An operator whose tensors are all functions of one tensor: part of an elementwise node."""
        inputs = [self._operand(a) for a in call.args]
        bases = {base for base, _ in inputs if base is not None}
        if len(bases) != 1 or any(e is None for _, e in inputs):
            return False
        shape = _nhwc_shape(_shape(call.checked_type, call.op.name))
        (base,) = bases
        if self.nodes[base].shape != shape:
            return False
        name = call.op.name.removeprefix("nn.")
        expression = (name, *(e for _, e in inputs), *parameters)
        return self._add(call, "elementwise", [base], shape, dict(expression=expression))

    def _operand(self, arg):
        """(tensor or None, expression of it or None) of an argument."""
        if arg in self.tensor:
            node = self.nodes[self.tensor[arg]]
            if node.op == "elementwise":
                return node.inputs[0], node.attrs["expression"]
            return node.name, "x"
        value = self._constant(arg)
        single = value is not None and value.size == 1
        return None, float(value.reshape(())) if single else None

    def _op_nn_leaky_relu(self, call):
        return self._function(call, float(call.attrs.alpha))

    def _op_add(self, call):
        a, b = call.args
        if a in self.tensor and b in self.tensor:
            if self._function(call) is not False:
                return None
            if list(a.checked_type.shape) != list(b.checked_type.shape):
                return False
            inputs = [self.tensor[a], self.tensor[b]]
            shape = _nhwc_shape(_shape(call.checked_type, "add"))
            return self._add(call, "add", inputs, shape, {})
        return self._affine(call, lambda c: (1.0, c), lambda c: (1.0, c))

    def _op_subtract(self, call):
        return self._affine(call, lambda c: (1.0, -c), lambda c: (-1.0, c))

    def _op_multiply(self, call):
        a, b = call.args
        if a not in self.tensor or b not in self.tensor:
            return self._affine(call, lambda c: (c, 0.0), lambda c: (c, 0.0))
        if self._function(call) is not False:
            return None
        shape = _nhwc_shape(_shape(call.checked_type, "multiply"))
        full, gate = sorted((self.tensor[a], self.tensor[b]), key=lambda t: -prod(self.nodes[t].shape))
        same = self.nodes[full].shape == shape
        if len(shape) == 4 and self.nodes[gate].shape == (shape[0], 1, 1, shape[3]):
            return self._add(call, "mul", [full, gate], shape, {}) if same else False
        if not same or self.nodes[gate].shape != shape:
            return False
        return self._add(call, "mul", [self.tensor[a], self.tensor[b]], shape, {})

    def _op_divide(self, call):
        return self._affine(call, lambda c: (1.0 / c, 0.0), None)

    def _affine(self, call, constant_right, constant_left):
        a, b = call.args
        data, other, rule = (a, b, constant_right) if a in self.tensor else (b, a, constant_left)
        constant = self._constant(other) if other not in self.tensor else None
        if constant is None:
            return self._function(call)
        vector = _per_channel(constant, _shape(data.checked_type, "affine"))
        if vector is None:
            return False
        if rule is not None and self._fold_affine(call, data, *rule(vector)):
            return None
        if vector.ndim == 0:
            return self._function(call)
        if rule is None or len(data.checked_type.shape) != 4:
            return False
        return self._channels(call, data, *rule(vector))

    def _clip(self, call, lo, hi):
        shape = _nhwc_shape(_shape(call.checked_type, "clip"))
        data = self.nodes[self.tensor[call.args[0]]]
        if data.op == "elementwise":
            expression = ("clip", data.attrs["expression"], lo, hi)
            return self._add(call, "elementwise", data.inputs, shape, dict(expression=expression))
        if data.name in self.transposed and self.uses[call.args[0]] == 1:
            return self._clip_before_moves(call, data.name, lo, hi)
        return self._add(call, "clip", [self.tensor[call.args[0]]], shape, dict(lo=lo, hi=hi))

    def _op_nn_relu(self, call):
        return self._clip(call, 0.0, inf)

    def _op_clip(self, call):
        lo, hi = float(call.attrs.a_min), float(call.attrs.a_max)
        big = float(np.finfo(np.float32).max)
        return self._clip(call, -inf if lo <= -big else lo, inf if hi >= big else hi)

    def _op_concatenate(self, call):
        fields = list(call.args[0].fields)
        if not all(f in self.tensor for f in fields):
            return False
        shape = _shape(call.checked_type, "concatenate")
        axis = _nhwc_axis(int(call.attrs.axis), len(shape))
        inputs = [self.tensor[f] for f in fields]
        return self._add(call, "concat", inputs, _nhwc_shape(shape), dict(axis=axis))

    def _pool(self, call, op, **attrs):
        data = call.args[0]
        shape = _nhwc_shape(_shape(call.checked_type, op))
        return self._add(call, op, [self.tensor[data]], shape, attrs)

    def _op_nn_max_pool2d(self, call):
        a = call.attrs
        if a.layout != "NCHW":
            return False
        padding = _whole_windows(call, _ints(a.dilation))
        return self._pool(
            call,
            "max_pool2d",
            pool_size=_ints(a.pool_size),
            strides=_ints(a.strides),
            padding=padding,
            dilation=_ints(a.dilation),
        )

    def _op_nn_avg_pool2d(self, call):
        a = call.attrs
        padding = _whole_windows(call, (1, 1))
        if a.layout != "NCHW" or _ints(a.dilation) != (1, 1) or padding != _four(a.padding):
            return False
        return self._pool(
            call,
            "avg_pool2d",
            pool_size=_ints(a.pool_size),
            strides=_ints(a.strides),
            padding=padding,
            count_include_pad=bool(a.count_include_pad) or not any(padding),
        )

    def _whole_map(self, call, op):
        _, height, width, _ = _nhwc_shape(_shape(call.args[0].checked_type, op))
        attrs = dict(pool_size=(height, width), strides=(1, 1), padding=(0, 0, 0, 0))
        extra = dict(count_include_pad=True) if op == "avg_pool2d" else dict(dilation=(1, 1))
        n, c = (int(d) for d in call.args[0].checked_type.shape[:2])
        self._add(call, op, [self.tensor[call.args[0]]], (n, 1, 1, c), {**attrs, **extra})

    def _op_nn_global_avg_pool2d(self, call):
        return False if call.attrs.layout != "NCHW" else self._whole_map(call, "avg_pool2d")

    def _op_nn_global_max_pool2d(self, call):
        return False if call.attrs.layout != "NCHW" else self._whole_map(call, "max_pool2d")

    def _op_nn_adaptive_avg_pool2d(self, call):
        if call.attrs.layout != "NCHW" or tuple(call.checked_type.shape[2:]) != (1, 1):
            return False
        return self._whole_map(call, "avg_pool2d")

    def _op_mean(self, call):
        rank = len(call.args[0].checked_type.shape)
        axes = sorted(int(x) % rank for x in call.attrs.axis or ())
        if rank != 4 or axes != [2, 3] or call.attrs.exclude:
            return False
        self._whole_map(call, "avg_pool2d")
        if not call.attrs.keepdims:
            pooled = self.tensor[call]
            shape = _shape(call.checked_type, "mean")
            attrs = dict(shape=shape, channels_first=False)
            self._add(call, "reshape", [pooled], shape, attrs)
        return None

    def _reshape(self, call):
        before = _shape(call.args[0].checked_type, "reshape")
        after = _shape(call.checked_type, "reshape")
        flat = len(after) == 2 and after[0] == before[0]
        unflat = len(before) == 2 and len(after) == 4 and after[2:] == (1, 1) and after[0] == before[0]
        if not (flat and len(before) in (2, 4) or unflat):
            return False
        first = len(before) == 4 and prod(before[2:]) > 1
        shape = _nhwc_shape(after)
        attrs = dict(shape=shape, channels_first=first)
        return self._add(call, "reshape", [self.tensor[call.args[0]]], shape, attrs)

    _op_reshape = _op_squeeze = _op_expand_dims = _op_nn_batch_flatten = _reshape

    def _op_strided_slice(self, call):
        data, a = call.args[0], call.attrs
        size = _shape(data.checked_type, "strided_slice")
        if len(size) != 4 or a.slice_mode != "end" or a.begin is None:
            return False
        axes = _ints(a.axes) if a.axes is not None else range(len(a.begin))
        begin, end, strides = [0] * 4, list(size), [1] * 4
        steps = _ints(a.strides)
        for i, axis in enumerate(axes):
            step = steps[i] if i < len(steps) else steps[-1]
            first, last, step = slice(int(a.begin[i]), int(a.end[i]), step).indices(size[axis])
            if step < 1 or axis % 4 == 0 and (first, last, step) != (0, size[0], 1):
                return False
            begin[axis], end[axis], strides[axis] = first, last, step
        attrs = {
            key: _nhwc_shape(value) for key, value in (("begin", begin), ("end", end), ("strides", strides))
        }
        shape = _nhwc_shape(_shape(call.checked_type, "strided_slice"))
        return self._add(call, "slice", [self.tensor[data]], shape, attrs)

    def _op_nn_pad(self, call):
        value = self._constant(call.args[1]) if len(call.args) > 1 else np.float32(0)
        widths = [_ints(pair) for pair in call.attrs.pad_width]
        if value is None or float(value) != 0 or call.attrs.pad_mode != "constant":
            return False
        if len(widths) != 4 or widths[0] != (0, 0) or min(min(pair) for pair in widths) < 0:
            return False
        shape = _nhwc_shape(_shape(call.checked_type, "pad"))
        inputs = [self.tensor[call.args[0]]]
        return self._add(call, "pad", inputs, shape, dict(widths=_nhwc_shape(widths)))

    def _op_qnn_quantize(self, call):
        """The first half of a pair; `_op_qnn_dequantize` makes the node."""
        encoding = _encoding(*(self._constant(a) for a in call.args[1:]))
        if not self.quantized or encoding is None or call.attrs.out_dtype != "uint8":
            return False
        self.rounded[call] = encoding
        return self._op_copy(call)

    def _op_qnn_dequantize(self, call):
        source = call.args[0]
        if source not in self.rounded:
            return False
        shape = _nhwc_shape(_shape(call.checked_type, "dequantize"))
        return self._add(call, "fake_quant", [self.tensor[source]], shape, self.rounded[source])

    def _op_copy(self, call):
        self.tensor[call] = self.tensor[call.args[0]]
        self._share_uses(call, call.args[0])


def _arguments(expr):
    """The tensors an expression reads, tuples opened."""
    if isinstance(expr, relay.TupleGetItem):
        return [expr.tuple_value]
    if not isinstance(expr, relay.Call):
        return []
    found = []
    for arg in expr.args:
        found.extend(arg.fields if isinstance(arg, relay.Tuple) else [arg])
    return found


def _shape(kind, what) -> tuple[int, ...]:
    if any(not isinstance(d, tvm.tir.IntImm) for d in kind.shape):
        example = ",".join(
            str(d) if isinstance(d, tvm.tir.IntImm) else "224" if i else "1"
            for i, d in enumerate(kind.shape)
        )
        raise LoadError(
            f"{what} has a dynamic shape; fix every dimension with input_shapes (--input-shapes on the "
            f"command line), for example {what}:[{example}]"
        )
    return tuple(int(d) for d in kind.shape)


def _ints(values) -> tuple[int, ...]:
    return tuple(int(v) for v in values)


def _four(padding) -> tuple[int, int, int, int]:
    p = _ints(padding)
    top, left, bottom, right = {1: p * 4, 2: p * 2, 4: p}[len(p)]
    return top, left, bottom, right


def _nhwc_shape(values) -> tuple:
    values = tuple(values)
    return (values[0], values[2], values[3], values[1]) if len(values) == 4 else values


def _nhwc_axis(axis: int, rank: int) -> int:
    axis %= rank
    return (0, 3, 1, 2)[axis] if rank == 4 else axis


def _encoding(scale, zero_point):
    """The attributes of a ``fake_quant`` from two constants; None if they are not one number each."""
    if scale is None or zero_point is None or scale.size != 1 or zero_point.size != 1:
        return None
    return {"scale": float(scale.reshape(())), "zero_point": int(zero_point.reshape(()))}


def _per_channel(constant, shape):
    """A constant as () or (C,) if it is one number per channel of ``shape`` (NCHW), else None."""
    if constant.size == 1:
        return constant.reshape(()).astype(np.float64)
    padded = (1,) * (len(shape) - constant.ndim) + constant.shape
    if len(padded) == len(shape) and constant.size == shape[1] == padded[1]:
        return constant.reshape(-1).astype(np.float64)
    return None


def _whole_windows(call, dilation):
    """Padding (t, l, b, r) grown at the end so that ceil mode's last windows are whole."""
    a = call.attrs
    height, width = _shape(call.args[0].checked_type, "pool")[2:]
    out = _shape(call.checked_type, "pool")[2:]
    top, left, bottom, right = _four(a.padding)
    ends = []
    for size, n, k, s, d, before, after in zip(
        (height, width), out, _ints(a.pool_size), _ints(a.strides), dilation,
        (top, left), (bottom, right), strict=True,
    ):  # fmt: skip
        ends.append(max(after, (n - 1) * s + (k - 1) * d + 1 - size - before))
    return (top, left, *ends)


__all__ = ["GraphError", "LoadError", "RelayOp", "from_relay", "load_onnx"]
