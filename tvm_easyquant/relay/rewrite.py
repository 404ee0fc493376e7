"""`Graph` + `ScaleTable` -> a Relay module of standard qnn ops.

Integer tensors are uint8 NHWC; each ``qnn.requantize`` names its rounding and compute type and each
is followed by a ``clip`` to the range its scale allows, so that the 7-bit range can be read off the
IR. What stays float is float Relay in NCHW (`emit`), between ``qnn.dequantize`` and ``qnn.quantize``.
The module compiles with TVM's stock lowering, which rounds ties differently; with `topi_ext.lower` it
computes the norm of `topi_ext.reference` exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from itertools import chain
from math import inf

import numpy as np

from topi_ext.function import is_vector
from topi_ext.reference import quantize, spread_epsilon
from topi_ext.relay import layer_norm, resize

from ..errors import GraphError
from ..network import pieces, resample
from ..network.expression import PARAMETRIC, softplus_of
from ..network.graph import Graph, run
from ..network.layout import NCHW_TO_NHWC, NHWC_TO_NCHW, nchw, nchw_axes, nchw_axis, to_nchw, to_nhwc
from ..network.node import Node, model_shape
from ..network.ops import mean_shares
from ..network.shuffle import shuffled
from ..scales.image_input import FirstNodes, ImageInput, every_byte, first_nodes
from ..scales.integer import function_values
from ..scales.layers import Records, records
from ..scales.numerics import Scale
from ..scales.table import ScaleTable
from .artefact import with_layouts, with_table
from .emit import emit
from .framework import relay, tvm
from .reference import execute
from .tensors import RELAY, Tensor

#: how every requantize says it rounds; stock TVM has no half-even, this setting differs at ties only
REQUANTIZE = {"rounding": "UPWARD", "compute_dtype": "float32"}


def rewrite(
    graph: Graph,
    table: ScaleTable,
    taps: Sequence[str] = (),
    sample: Mapping[str, np.ndarray] | None = None,
    image: ImageInput | None = None,
) -> object:
    """The integer Relay module (``tvm.IRModule``) of a graph under a scale table.

    Inputs and outputs are those of the float model (its dtypes, NCHW). With ``taps``, names of stored
    tensors, the module returns them too, behind the outputs, as uint8 NHWC: this is how a compiled
    module is compared with the reference layer by layer. sample: a feed of the network, on which a float
    operator without a rule of ours is compared with its meaning; without one on random numbers. image: the
    input is this one, of bytes; the first nodes of a model that takes bytes itself are looked up by
    themselves. Raises TableError if the table does not fit, OverflowError if a bias or accumulator does not
    fit int32, GraphError for a float node that Relay cannot compute.
    """
    found = records(graph, table)
    own = first_nodes(graph, found.scales.plan) if image is None else None
    module = with_table(_Rewriter(found, sample, image or own).module(taps), table)
    return module if image is None else with_layouts(module, {image.name: image.layout})


def float_module(graph: Graph) -> object:
    """The float Relay module (``tvm.IRModule``) of a graph: its inputs and outputs, its float meaning.

    Raises GraphError for a float node that Relay cannot compute.
    """
    made: dict = {}
    params: list = []
    for node in graph:
        inputs = [made[t] for t in node.inputs]
        if node.op == "input":
            made[node.name] = relay.var(node.name, shape=model_shape(node), dtype=node.dtype)
            params.append(made[node.name])
        elif node.op == "float":
            made[node.name] = emit(node.attrs["handle"], _tensors(graph, node, inputs), node.name)
        else:
            made[node.name] = FLOAT[node.op](node, *inputs)
    return _function(params, [made[t] for t in graph.outputs])


def _function(params, results):
    body = results[0] if len(results) == 1 else relay.Tuple(results)
    return relay.transform.InferType()(tvm.IRModule.from_expr(relay.Function(params, body)))


def _tensors(graph: Graph, node: Node, inputs) -> list[Tensor]:
    """The inputs of a float node with what a graph knows of them."""
    sources = [graph[t] for t in node.inputs]
    return [Tensor.of(x, model_shape(s), s.dtype) for x, s in zip(inputs, sources, strict=True)]


class _Rewriter:
    def __init__(
        self,
        found: Records,
        sample: Mapping[str, np.ndarray] | None,
        image: ImageInput | FirstNodes | None = None,
    ):
        self.sample, self.image = sample, image
        self.layers, self.scales = found.layers, found.scales
        fused = (layer.join for layer in found.layers.values() if layer.join is not None)
        self.joins = {**found.joins, **{join.name: join for join in fused}}
        self.graph, self.plan = self.scales.graph, self.scales.plan
        self.params: list = []
        self.float_of: dict = {}  # tensor -> expression of its own dtype in the model's layout
        self.stored_of: dict = {}  # tensor -> uint8 expression, NHWC
        self.unrounded = set(self.plan.accumulators)  # and what float nodes make of those alone

    def module(self, taps):
        for node in self.graph:
            if node.op == "input":
                self._input(node)
            elif node.name in self.plan.fused or (self.image and node.name in self.image.covered):
                pass  # done by its producer
            elif node.name in self.plan.integer:
                INTEGER[node.op](self, node)
            else:
                if self.unrounded.issuperset(node.inputs):
                    self.unrounded.add(node.name)
                self.float_of[node.name] = self._float(node)
        results = [self.real(t) for t in self.graph.outputs] + [self.stored(t) for t in taps]
        return _function(self.params, results)

    # -- inputs

    def _input(self, node):
        image = self.image
        if image is None or node.name != image.name:
            var = relay.var(node.name, shape=model_shape(node), dtype=node.dtype)
            self.float_of[node.name] = var
        else:
            var, tensor = relay.var(image.name, shape=image.shape, dtype=image.dtype), image.tensor
            scale = self.scale(tensor) if tensor in self.plan.site_of else None
            _check_lookups(image, scale)
            self.float_of[tensor], self.stored_of[tensor] = _lookups(image, var, scale)
        self.params.append(var)

    # -- tensors

    def scale(self, tensor: str) -> Scale:
        return self.scales.decided(tensor)

    def stored(self, tensor: str):
        """The tensor as uint8 NHWC; quantized here if a float node made it."""
        if tensor not in self.stored_of:
            s = self.scale(tensor)
            x = self.float_of[tensor]
            if tensor in self.unrounded:  # else it would look like a function fused to the layer
                x = relay.annotation.stop_fusion(x)
            q = relay.qnn.quantize(x, _scalar(s.scale), _zero(s.zero_point), out_dtype="uint8")
            q = _clip(q, s.lo, s.hi)
            if len(self.graph[tensor].shape) == 4:
                q = relay.transpose(q, NCHW_TO_NHWC)
            self.stored_of[tensor] = q
        return self.stored_of[tensor]

    def real(self, tensor: str):
        """The tensor in the model's layout; float32 if it is stored."""
        if tensor not in self.float_of:
            x = _dequantize(self.stored_of[tensor], self.scale(tensor))
            self.float_of[tensor] = _to_model(x, self.graph[tensor])
        return self.float_of[tensor]

    def _float(self, node):
        """A node that stays float, by its rule or its handle."""
        if node.op != "float":
            return FLOAT[node.op](node, *(self.real(t) for t in node.inputs))
        tensors = _tensors(self.graph, node, [self.real(t) for t in node.inputs])
        values = None if self.sample is None else partial(self._values, node, self.sample)
        return emit(node.attrs["handle"], tensors, node.name, values)

    def _values(self, node, sample):
        """Of its inputs, in a sample."""
        values: dict = {}

        def keep(made, value):
            if made.name in node.inputs:
                values[made.name] = to_nchw(value)

        run(self.graph, sample, keep)
        return [values[t] for t in node.inputs]

    # -- integer nodes

    def _move(self, node: Node):
        if (found := shuffled(self.graph, node)) is not None:  # what is between is not read
            tensor, places = found
            self.stored_of[node.name] = _take(self.stored(tensor), (None, None, None, places))
            return
        x = [self.stored(t) for t in node.inputs]
        self.stored_of[node.name] = MOVES[node.op](node, self.scale(node.name).zero_point, *x)

    def _matmul(self, node):
        scales = [self.scale(t) for t in node.inputs]
        a, b = (self._as_model(t) for t in node.inputs)
        shape, depth = model_shape(node), node.attrs["depth"]
        acc = relay.qnn.batch_matmul(
            relay.reshape(a, (-1, shape[-2], depth)),
            relay.transpose(relay.reshape(b, (-1, depth, shape[-1])), (0, 2, 1)),
            *(_zero(s.zero_point) for s in scales), *(_scalar(s.scale) for s in scales), out_dtype="int32",
        )  # fmt: skip
        acc = relay.reshape(_named(acc, node.name), shape)
        if node.name in self.plan.accumulators:
            unit = _scalar(self.scales.unit(node))
            self.float_of[node.name] = relay.qnn.dequantize(acc, unit, _zero(0), out_dtype="float32")
            return
        acc = relay.transpose(acc, NCHW_TO_NHWC) if len(shape) == 4 else acc
        self._finish(node, acc, _scalar(self.scales.unit(node)))

    def _as_model(self, tensor):
        """The tensor as uint8 in the model's layout."""
        return _to_model(self.stored(tensor), self.graph[tensor])

    def _clip(self, node):
        s = self.scale(node.inputs[0])
        self._finish(node, self.stored(node.inputs[0]), _scalar(s.scale), s.zero_point)

    def _finish(self, node, acc, unit, zero_point=0):
        """Integers in steps of ``unit`` -> the stored tensor, or float for float readers."""
        if node.name in self.plan.accumulators:
            x = relay.qnn.dequantize(acc, unit, _zero(zero_point), axis=-1, out_dtype="float32")
            self.float_of[node.name] = _to_model(x, node)
            return
        layer = self.layers.get(node.name)
        made = (layer and layer.own) or self.scales.stored(node)
        if made.function is not None:
            x = relay.qnn.dequantize(acc, unit, _zero(zero_point), axis=-1, out_dtype="float32")
            self._quantized(made, x, node)
            return
        q = relay.qnn.requantize(
            acc, unit, _zero(zero_point), _scalar(made.scale.scale), _zero(made.scale.zero_point),
            axis=len(node.shape) - 1, out_dtype="uint8", **REQUANTIZE,
        )  # fmt: skip
        self.stored_of[made.tensor] = _clip(q, made.lo, made.hi)

    def _quantized(self, made, x, node):
        """A float32 NHWC tensor through the function that is fused to its node -> the stored tensor."""
        if made.function is not None:
            x = _expression(made.function, x, len(node.shape), len(node.shape) - 1)
        scale = made.scale
        q = relay.qnn.quantize(x, _scalar(scale.scale), _zero(scale.zero_point), out_dtype="uint8")
        self.stored_of[made.tensor] = _clip(q, made.lo, made.hi)

    def _layer(self, node):
        layer = self.layers[node.name]
        common = dict(
            input_zero_point=_zero(layer.source.zero_point),
            kernel_zero_point=_zero(0),
            input_scale=_scalar(layer.source.scale),
            kernel_scale=_number(layer.weight_scale),
        )
        acc = _named(PRODUCTS[node.op](self.stored(layer.data), layer, common), node.name)
        if node.bias is not None:
            acc = relay.nn.bias_add(acc, relay.const(layer.bias), axis=len(node.shape) - 1)
        self._finish(node, acc, _number(layer.unit))

    def _average(self, node):
        if node.name in self.layers:
            return self._layer(node)
        s = self.scale(node.inputs[0])
        total = relay.sum(_steps(self.stored(node.inputs[0]), s), axis=[1, 2], keepdims=True)
        return self._finish(node, total, _number(self.scales.unit(node)))

    def _mean_pool(self, node):
        a, s = node.attrs, self.scale(node.inputs[0])
        top, left, bottom, right = a["padding"]
        widths = ((0, 0), (top, bottom), (left, right), (0, 0))
        total = relay.nn.pad(_steps(self.stored(node.inputs[0]), s), widths, pad_value=0)
        for axis, size, stride in zip((1, 2), a["pool_size"], a["strides"], strict=True):
            reach = (node.shape[axis] - 1) * stride + 1
            places = (
                relay.strided_slice(total, [i], [i + reach], [stride], axes=[axis]) for i in range(size)
            )
            total = reduce(relay.add, places)
        self._finish(node, total * relay.const(mean_shares(node)), _number(self.scales.unit(node)))

    def _reduce_mean(self, node):
        steps = _steps(self.stored(node.inputs[0]), self.scale(node.inputs[0]))
        total = relay.sum(steps, axis=node.attrs["axes"], keepdims=True)
        self._finish(node, total, _number(self.scales.unit(node)))

    def _layer_norm(self, node):
        a, (tensor,), made = node.attrs, node.inputs, self.scales.stored(node)
        epsilon = spread_epsilon(a["epsilon"], node.shape[-1], self.scale(tensor).scale)
        gain, shift = (np.asarray(a[key], np.float32) for key in ("scale", "shift"))
        x = layer_norm.write(layer_norm.LayerNorm(self.stored(tensor), gain, shift, float(epsilon)))
        self._quantized(made, x, node)

    def _resize_linear(self, node):
        (tensor,) = node.inputs
        x, zero = self.stored(tensor), self.scale(tensor).zero_point
        acc = resize.write(resize.Resize(x, *resample.tables(node.attrs), zero))
        self._finish(node, acc, _number(self.scales.unit(node)))

    def _lookup(self, node):
        """A function of one number: a 256-entry table, made here by the norm."""
        s = self.scale(node.name)
        values = function_values(node, self.scale(node.inputs[0]))
        table = relay.const(quantize(values, s.scale, s.zero_point, s.lo, s.hi))
        index = relay.cast(self.stored(node.inputs[0]), "int32")
        self.stored_of[node.name] = relay.take(table, index, axis=0, mode="fast")

    def _join(self, node):
        """Two tensors with scales of their own, by an operator of qnn."""
        join = self.joins[node.name]
        made = join.output
        tensors = [self.stored(tensor) for tensor in join.inputs]
        if made.function is not None:
            WITH_FUNCTION[node.op](self, node, join, tensors)
            return
        numbers = [(_scalar(s.scale), _zero(s.zero_point)) for s in (*join.scales, made.scale)]
        q = JOINS[node.op](*tensors, *chain.from_iterable(numbers))
        self.stored_of[made.tensor] = _clip(q, made.lo, made.hi)

    def _sum(self, node, join, tensors):
        a, b = map(_dequantize, tensors, join.scales)
        self._quantized(join.output, FLOAT[node.op](node, a, b), node)

    def _product(self, node, join, tensors):
        a, b = map(_steps, tensors, join.scales)
        self._finish(node, a * b, _number(self.scales.unit(node)))


def _lookups(image: ImageInput | FirstNodes, x, scale: Scale | None):
    """Bytes in the image's layout as (float32 in the model's, uint8 NHWC under ``scale``), each of a table
    that holds 256 numbers by channel; where no integer node reads the input, the second is None."""
    x = relay.reverse(x, image.axis) if image.reverses else x
    values = image.values
    signed = image.dtype == "int8"
    real = relay.transpose(_looked_up(values, x, image.axis, signed), image.turn)
    if scale is None:
        return real, None
    table = quantize(values, scale.scale, scale.zero_point, scale.lo, scale.hi)
    # the range that the scale allows is said where the table does not reach it: kernels stay the same
    q = relay.clip(_looked_up(table, x, image.axis, signed), float(scale.lo), float(scale.hi))
    return real, relay.transpose(q, [image.turn[axis] for axis in NCHW_TO_NHWC])


def _looked_up(table, x, axis, signed):
    """A (C, 256) table of bytes with the channels along ``axis``; signed: x is int8, of the same bits."""
    index = relay.cast(x, "int32")
    table = table[:1] if (table == table[0]).all() else table
    starts = np.arange(0, table.size, 256, dtype=np.int32).reshape(-1, *(1,) * (3 - axis))
    if signed:  # a cast to uint8 first is simplified away by TVM
        table, starts = np.roll(table, 128, axis=1), starts + 128
    if starts.any():
        index = index + relay.const(starts.astype(np.int32))
    return relay.take(relay.const(table.ravel()), index, axis=0, mode="fast")


def _check_lookups(image: ImageInput | FirstNodes, scale: Scale | None) -> None:
    """GraphError unless the operators that are compiled make of every byte what it is without tables."""
    x = every_byte(image)
    var = relay.var(image.name, shape=x.shape, dtype=image.dtype)
    results = [y for y in _lookups(image, var, scale) if y is not None]
    made = execute(_function([var], results), {image.name: x})
    want = [image.unfolded(x)]
    if scale is not None:
        want.append(quantize(to_nhwc(want[0]), scale.scale, scale.zero_point, scale.lo, scale.hi))
    if not all(map(np.array_equal, made, want)):
        raise GraphError(f"input {image.name}: its table of bytes is not its preprocessing, a bug of ours")


def _dequantize(q, scale):
    """A stored tensor as float32."""
    return relay.qnn.dequantize(q, _scalar(scale.scale), _zero(scale.zero_point), out_dtype="float32")


def _steps(q, scale):
    """A stored tensor as int32, less its zero point."""
    return relay.cast(q, "int32") - _zero(scale.zero_point)


def _named(call, name):
    """The call with the name of its node, for `topi_ext.lower` to tell."""
    span = relay.Span(relay.SourceName(name), 0, 0, 0, 0)
    return relay.Call(call.op, call.args, call.attrs, call.type_args, span)


def _scalar(value):
    return relay.const(np.float32(value))


def _number(value):
    """float32, of any shape."""
    return relay.const(np.asarray(value, np.float32))


def _zero(value):
    return relay.const(int(value), "int32")


def _clip(q, lo, hi):
    return q if (lo, hi) == (0, 255) else relay.clip(q, float(lo), float(hi))


def _to_model(x, node):
    return relay.transpose(x, NHWC_TO_NCHW) if len(node.shape) == 4 else x


def _conv(x, layer, common):
    """qnn.conv2d NHWC."""
    spec, weight = layer.spec, layer.weight
    depthwise = spec.depthwise
    if depthwise:
        weight = weight.transpose(0, 1, 3, 2)
    return relay.qnn.conv2d(
        x,
        relay.const(np.ascontiguousarray(weight)),
        kernel_size=spec.kernel,
        channels=spec.out_channels,
        strides=spec.strides,
        padding=spec.padding,
        dilation=spec.dilation,
        groups=spec.groups,
        data_layout="NHWC",
        kernel_layout="HWOI" if depthwise else "HWIO",
        out_dtype="int32",
        **common,
    )


def _dense(x, layer, common):
    matrix = relay.const(np.ascontiguousarray(layer.weight[0, 0].T))
    return relay.qnn.dense(x, matrix, units=layer.spec.out_channels, **common)


def _real_clip(x, lo, hi):
    """Relay's clip takes no infinity."""
    big = float(np.finfo(np.float32).max)
    return relay.clip(x, max(lo, -big), min(hi, big))


def _in_float(join):
    """A join that qnn has no operator for: what `LowerInteger` reads as one."""

    def made(a, b, a_scale, a_zero, b_scale, b_zero, scale, zero):
        a = relay.qnn.dequantize(a, a_scale, a_zero, out_dtype="float32")
        b = relay.qnn.dequantize(b, b_scale, b_zero, out_dtype="float32")
        return relay.qnn.quantize(join(a, b), scale, zero, out_dtype="uint8")

    return made


def _take(x, indices):
    for axis, places in enumerate(indices):
        if places is not None:
            x = relay.take(x, relay.const(np.asarray(places, np.int32)), axis=axis, mode="fast")
    return x


def _repeat(x, factors, first_axis):
    for axis, factor in enumerate(factors, first_axis):
        if factor > 1:
            x = relay.repeat(x, factor, axis)
    return x


def _expression(e, x, rank, axis):
    """An expression of `elementwise` as Relay calls; axis: of the channels in ``x``, of this rank."""
    if isinstance(e, str):
        return x
    if not isinstance(e, tuple) or is_vector(e):
        e = np.asarray(e, np.float32)
        return relay.const(e.reshape(-1, *(1,) * (rank - 1 - axis)) if e.ndim else e)
    if (inner := softplus_of(e)) is not None:
        inner = _expression(inner, x, rank, axis)
        small = relay.log(relay.exp(relay.negative(relay.abs(inner))) + relay.const(np.float32(1)))
        return relay.maximum(inner, relay.const(np.float32(0))) + small
    name, first, *others = e
    first = _expression(first, x, rank, axis)
    if name == "leaky_relu" and is_vector(others[0]):
        return relay.nn.prelu(first, relay.const(np.asarray(others[0], np.float32)), axis)
    others = others if name in PARAMETRIC else [_expression(other, x, rank, axis) for other in others]
    return EXPRESSIONS[name](first, *others)


# -- a node that stays float, on NCHW tensors


def _float_conv(node, x):
    y = relay.nn.conv2d(
        x,
        relay.const(np.ascontiguousarray(node.weight.transpose(3, 2, 0, 1))),
        kernel_size=node.weight.shape[:2],
        channels=node.channels,
        **node.attrs,
    )
    return relay.nn.bias_add(y, relay.const(node.bias), axis=1)


def _float_dense(node, x):
    y = relay.nn.dense(x, relay.const(np.ascontiguousarray(node.weight[0, 0].T)), units=node.channels)
    return relay.nn.bias_add(y, relay.const(node.bias), axis=1)


def _float_matmul(node, a, b):
    shape, depth = model_shape(node), node.attrs["depth"]
    a, b = relay.reshape(a, (-1, shape[-2], depth)), relay.reshape(b, (-1, depth, shape[-1]))
    made = relay.nn.batch_matmul(a, relay.transpose(b, (0, 2, 1)), transpose_b=True)
    return relay.reshape(made, shape)


def _float_function(node, x):
    rank = len(node.shape)
    return _expression(node.attrs["expression"], x, rank, nchw_axis(rank - 1, rank) if rank else 0)


def _float_clip(node, x):
    lo, hi = node.attrs["lo"], node.attrs["hi"]
    return relay.nn.relu(x) if (lo, hi) == (0.0, inf) else _real_clip(x, lo, hi)


def _float_concat(node, *x):
    return relay.concatenate(x, axis=nchw_axis(node.attrs["axis"], len(node.shape)))


def _float_mean_pool(node, x):
    window = {key: node.attrs[key] for key in ("pool_size", "strides", "padding")}
    return relay.nn.avg_pool2d(x, count_include_pad=False, **window)


def _float_reduce(made):
    def rule(node, x):
        axes = [nchw_axis(axis, len(node.shape)) for axis in node.attrs["axes"]]
        return made(x, axis=sorted(axes), keepdims=True)

    return rule


def _float_layer_norm(node, x):
    return pieces.layer_norm(RELAY, Tensor.of(x, model_shape(node), np.float32), node.attrs).expr


def _float_slice(node, x):
    return relay.strided_slice(x, *(nchw(node.attrs[key]) for key in ("begin", "end", "strides")))


def _float_resize_linear(node, x):
    for axis, taps in zip((2, 3), resample.taps_of(node.attrs), strict=True):
        along = [-1 if i == axis else 1 for i in range(4)]
        places = (taps.table[:, i] for i in (0, 1))
        first, second = (
            relay.take(x, relay.const(place), axis, mode="fast") * _number(weights.reshape(along))
            for place, weights in zip(places, taps.weights.T, strict=True)
        )
        x = first + second
    return x


def _float_shuffle(node, x):
    return relay.nn.depth_to_space(x, node.attrs["block"], mode=node.attrs["mode"])


# -- a node that moves uint8 NHWC tensors: (node, zero point, tensors)


def _concat(node, fill, *x):
    return relay.concatenate(x, axis=node.attrs["axis"])


def _max_pool(node, fill, x):
    return relay.nn.max_pool2d(x, layout="NHWC", **node.attrs)


def _reshape(node, fill, x):
    shape = node.attrs["shape"]
    if not node.attrs["channels_first"]:
        return relay.reshape(x, shape)
    if len(shape) == 4:  # which is the map
        return relay.transpose(relay.reshape(x, nchw(shape)), NCHW_TO_NHWC)
    return relay.reshape(relay.transpose(x, NHWC_TO_NCHW), shape)


def _transpose(node, fill, x):
    axes = node.attrs["axes"]
    long = [axis for axis, size in zip(axes, node.shape, strict=True) if size > 1]
    return relay.reshape(x, node.shape) if long == sorted(long) else relay.transpose(x, axes)


def _slice(node, fill, x):
    return relay.strided_slice(x, node.attrs["begin"], node.attrs["end"], node.attrs["strides"])


def _pad(node, fill, x):
    return relay.nn.pad(x, node.attrs["widths"], pad_value=fill)


def _resize(node, fill, x):
    return _repeat(x, node.attrs["factors"], 1)


def _shuffle(node, fill, x):
    return relay.nn.depth_to_space(x, node.attrs["block"], layout="NHWC", mode=node.attrs["mode"])


#: operator -> its rule (node, zero point, uint8 tensors) for those that move
MOVES: dict[str, Callable] = {
    "concat": _concat,
    "max_pool2d": _max_pool,
    "reshape": _reshape,
    "transpose": _transpose,
    "slice": _slice,
    "pad": _pad,
    "resize": _resize,
    "gather": lambda node, fill, x: _take(x, node.attrs["indices"]),
    "reduce_max": lambda node, fill, x: relay.max(x, axis=node.attrs["axes"], keepdims=True),
    "depth_to_space": _shuffle,
}
#: layer -> its product (x, record, common arguments); a window sum is a convolution, too
PRODUCTS: dict[str, Callable] = {"conv2d": _conv, "avg_pool2d": _conv, "dense": _dense}
#: join -> the operator of qnn, or what stands for it
JOINS: dict[str, Callable] = {
    "add": relay.qnn.add,
    "sub": _in_float(relay.subtract),
    "max": _in_float(relay.maximum),
    "min": _in_float(relay.minimum),
    "mul": relay.qnn.mul,
}
#: join -> how it is made where a function is fused to it
WITH_FUNCTION: dict[str, Callable] = {
    **dict.fromkeys(("add", "sub", "max", "min"), _Rewriter._sum),
    "mul": _Rewriter._product,
}
#: operator -> its integer rule, for all that runs in integers
INTEGER: dict[str, Callable[[_Rewriter, Node], None]] = {
    "conv2d": _Rewriter._layer,
    "dense": _Rewriter._layer,
    **dict.fromkeys(JOINS, _Rewriter._join),
    "matmul": _Rewriter._matmul,
    "elementwise": _Rewriter._lookup,
    "avg_pool2d": _Rewriter._average,
    "mean_pool2d": _Rewriter._mean_pool,
    "reduce_mean": _Rewriter._reduce_mean,
    "layer_norm": _Rewriter._layer_norm,
    "resize_linear": _Rewriter._resize_linear,
    "clip": _Rewriter._clip,
    **dict.fromkeys(MOVES, _Rewriter._move),
}
#: operator -> its float rule (node, tensors), for all but inputs and "float", whose handle is the rule
FLOAT: dict[str, Callable] = {
    "conv2d": _float_conv,
    "dense": _float_dense,
    "add": lambda node, a, b: a + b,
    "sub": lambda node, a, b: a - b,
    "max": lambda node, a, b: relay.maximum(a, b),
    "min": lambda node, a, b: relay.minimum(a, b),
    "mul": lambda node, a, b: a * b,
    "matmul": _float_matmul,
    "elementwise": _float_function,
    "concat": _float_concat,
    "max_pool2d": lambda node, x: relay.nn.max_pool2d(x, **node.attrs),
    "avg_pool2d": lambda node, x: relay.nn.avg_pool2d(x, **node.attrs),
    "mean_pool2d": _float_mean_pool,
    "reduce_mean": _float_reduce(relay.mean),
    "reduce_max": _float_reduce(relay.max),
    "layer_norm": _float_layer_norm,
    "clip": _float_clip,
    "reshape": lambda node, x: relay.reshape(x, model_shape(node)),
    "transpose": lambda node, x: relay.transpose(x, nchw_axes(node.attrs["axes"])),
    "slice": _float_slice,
    "pad": lambda node, x: relay.nn.pad(x, nchw(node.attrs["widths"])),
    "resize": lambda node, x: _repeat(x, node.attrs["factors"], 2),
    "gather": lambda node, x: _take(x, nchw(node.attrs["indices"])),
    "resize_linear": _float_resize_linear,
    "depth_to_space": _float_shuffle,
}
#: function of an expression -> Relay's, for all of `expression.FUNCTIONS`
EXPRESSIONS: dict[str, Callable] = {
    "sigmoid": relay.sigmoid,
    "tanh": relay.tanh,
    "exp": relay.exp,
    "log": relay.log,
    "sqrt": relay.sqrt,
    "rsqrt": relay.rsqrt,
    "abs": relay.abs,
    "negative": relay.negative,
    "erf": relay.erf,
    "add": relay.add,
    "subtract": relay.subtract,
    "multiply": relay.multiply,
    "divide": relay.divide,
    "maximum": relay.maximum,
    "minimum": relay.minimum,
    "power": relay.power,
    "clip": _real_clip,
    "leaky_relu": relay.nn.leaky_relu,
}
