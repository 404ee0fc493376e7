"""`Graph` + `ScaleTable` -> a Relax module, from the layers' records.

Integer tensors are uint8 NHWC. A layer is the call of a private function that says what it computes
(`topi_ext.relax.lower`); joins, tables and requantizes are TIR functions with the norm's integers; what
moves are Relax operators; what stays float is float Relax in NCHW (`emit`) behind a stock dequantize and
before a stock quantize, with a clip where the range is less than a byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import inf, prod

import numpy as np

from topi_ext.function import is_vector, of_sum
from topi_ext.kernels import elementwise
from topi_ext.kernels.layer_norm import layer_norm
from topi_ext.kernels.product import Product
from topi_ext.kernels.resize import resize_linear, resize_real
from topi_ext.reference import quantize, spread_epsilon
from topi_ext.relax.lower import call_layer, call_product

from ..errors import GraphError
from ..network import pieces, resample
from ..network.expression import PARAMETRIC, softplus_of
from ..network.graph import Graph
from ..network.layout import NCHW_TO_NHWC, NHWC_TO_NCHW, nchw, nchw_axes, nchw_axis
from ..network.node import Node, model_shape
from ..network.ops import mean_shares
from ..network.shuffle import shuffled
from ..network.tensors import NUMPY
from ..scales.image_input import FirstNodes, ImageInput, every_byte, first_nodes
from ..scales.integer import function_values
from ..scales.layers import Layer, Records, records
from ..scales.numerics import Scale
from ..scales.table import ScaleTable
from . import artefact
from .emit import emit
from .framework import relax
from .tensors import RelaxTensors, Tensor


def rewrite(
    graph: Graph, table: ScaleTable, taps: Sequence[str] = (), image: ImageInput | None = None
) -> object:
    """The integer Relax module (``tvm.IRModule``) of a graph under a scale table.

    Inputs and outputs are those of the float model (its dtypes, NCHW). With ``taps``, names of stored
    tensors, the module returns them too, behind the outputs, as uint8 NHWC. image: the
    input as bytes, which tables make of it what it is without. Raises TableError if the table
    does not fit, OverflowError if a bias or accumulator does not fit int32, GraphError for a float node
    that this host cannot compute.
    """
    found = records(graph, table)
    made = first_nodes(found.scales.graph, found.scales.plan) if image is None else image
    module = _Module(found.scales.graph, made).written(_Rewriter, found, taps, made)
    module = artefact.with_table(module, table)
    return module if image is None else artefact.with_layouts(module, {image.name: image.layout})


def float_module(graph: Graph) -> object:
    """The float Relax module (``tvm.IRModule``) of a graph: its inputs and outputs, its float meaning.

    Raises GraphError for a float node that this host cannot compute.
    """
    return _Module(graph).written(_Floats)


class _Module:
    """A module with one function that is begun with the graph's inputs, and ended with its outputs."""

    def __init__(self, graph: Graph, image: ImageInput | FirstNodes | None = None):
        self.graph, self.builder = graph, relax.BlockBuilder()
        self.kinds = {name: (model_shape(graph[name]), graph[name].dtype) for name in graph.inputs}
        if image is not None:
            self.kinds[image.name] = (image.shape, image.dtype)
        self.t = RelaxTensors(self.builder)

    def written(self, writer: Callable, *arguments) -> object:
        inputs = {name: relax.Var(name, relax.TensorType(*kind)) for name, kind in self.kinds.items()}
        tensors = {name: Tensor.of(var, *self.kinds[name]) for name, var in inputs.items()}
        attributes = {"num_input": len(inputs)}
        with self.builder.function("main", list(inputs.values()), attrs=attributes):
            with self.builder.dataflow():
                outputs = [x.expr for x in writer(self, tensors, *arguments).outputs()]
                made = self.builder.emit_output(outputs[0] if len(outputs) == 1 else relax.Tuple(outputs))
            self.builder.emit_func_output(made)
        return self.builder.get()


class _Floats:
    def __init__(self, module: _Module, tensors: dict[str, Tensor]):
        self.t, self.graph, self.float_of = module.t, module.graph, tensors

    def outputs(self) -> list[Tensor]:
        for node in self.graph:
            if node.op != "input":
                self.float_of[node.name] = self.real_node(node)
        return [self.real(tensor) for tensor in self.graph.outputs]

    def real(self, tensor: str) -> Tensor:
        """The tensor in the model's layout."""
        return self.float_of[tensor]

    def real_node(self, node: Node) -> Tensor:
        """A node that stays float, by its rule or its handle."""
        inputs = [self.real(tensor) for tensor in node.inputs]
        if node.op == "float":
            return emit(self.t, node.attrs["handle"], inputs, node.name)
        return FLOAT[node.op](self.t, node, *inputs)


class _Rewriter(_Floats):
    def __init__(
        self,
        module,
        tensors,
        found: Records,
        taps: Sequence[str],
        image: ImageInput | FirstNodes | None = None,
    ):
        super().__init__(module, tensors)
        self.builder, self.taps = module.builder, taps
        self.layers, self.joins, self.scales = found.layers, found.joins, found.scales
        self.plan = self.scales.plan
        self.absorbing = {
            layer.join.name: layer for layer in self.layers.values() if layer.join is not None
        }
        self.stored_of: dict[str, Tensor] = {}  # tensor -> uint8, NHWC
        self.covered = frozenset() if image is None else image.covered
        if image is not None:
            self._bytes(image)

    def outputs(self):
        for node in self.graph:
            if node.op == "input" or node.name in self.plan.fused or node.name in self.covered:
                continue  # a fused one is done by its producer
            if node.name in self.plan.integer:
                INTEGER[node.op](self, node)
            else:
                self.float_of[node.name] = self.real_node(node)
        return [self.real(t) for t in self.graph.outputs] + [self._tap(t) for t in self.taps]

    def _bytes(self, image: ImageInput | FirstNodes) -> None:
        """The tensor's float32 and, where an integer node reads it, its stored one: each of a table that
        holds 256 numbers by channel."""
        x, tensor, every = self.float_of[image.name], image.tensor, every_byte(image)
        if not np.array_equal(image.looked_up(every), image.unfolded(every)):
            raise GraphError(
                f"input {image.name}: its table of bytes is not its preprocessing, a bug of ours"
            )
        if image.reverses:
            x = self.t.take(x, np.arange(x.shape[image.axis])[::-1], image.axis)
        values = image.values
        self.float_of[tensor] = self.t.transpose(_looked_up(self.t, values, x, image.axis), image.turn)
        if tensor in self.plan.site_of:
            s = self.scale(tensor)
            table = quantize(values, s.scale, s.zero_point, s.lo, s.hi)
            turn = [image.turn[axis] for axis in NCHW_TO_NHWC]
            self.stored_of[tensor] = self.t.transpose(_looked_up(self.t, table, x, image.axis), turn)

    # -- tensors

    def scale(self, tensor: str) -> Scale:
        return self.scales.decided(tensor)

    def stored(self, tensor: str) -> Tensor:
        """The tensor as uint8 NHWC; quantized here if a float node made it."""
        if tensor not in self.stored_of:
            x, s = self.float_of[tensor], self.scale(tensor)
            if len(x.shape) == 4:
                x = self.t.transpose(x, NCHW_TO_NHWC)
            self.stored_of[tensor] = self.t.quantize(x, s.scale, s.zero_point, s.lo, s.hi)
        return self.stored_of[tensor]

    def real(self, tensor):
        """The tensor in the model's layout; float32 if it is stored."""
        if tensor not in self.float_of:
            x, s = self.stored_of[tensor], self.scale(tensor)
            self.float_of[tensor] = self._to_model(self.t.dequantize(x, s.scale, s.zero_point))
        return self.float_of[tensor]

    def _tap(self, tensor):
        """A stored tensor; what is stored nowhere, as an add was fused to its layer, by itself."""
        if tensor not in self.stored_of and tensor not in self.float_of:
            name = self.plan.fused.get(tensor, tensor)
            self._call(self.layers[name].apart())
        return self.stored(tensor)

    def _element(self, function, *tensors: Tensor, numbers=(), shape=None) -> Tensor:
        """A function of `elementwise` on tensors, of which the first has the shape of what it makes, if no
        other is said."""

        def made(*inputs):
            return function(*inputs, *numbers)

        hint = f"eq_{function.__name__}"
        return self.t.compute(shape or tensors[0].shape, "uint8", made, *tensors, primfunc_name_hint=hint)

    def _to_model(self, x):
        return self.t.transpose(x, NHWC_TO_NCHW) if len(x.shape) == 4 else x

    # -- layers

    def _layer(self, node):
        layer = self.layers[node.name]
        if layer.join is None:  # else it is called where the add is, behind what it adds
            self._call(layer)

    def _call(self, layer: Layer):
        convolution, shape = layer.convolution, self.graph[layer.name].shape
        spec = convolution.spec
        data = self.stored(layer.data)
        if len(data.shape) == 2:
            data = self.t.reshape(data, (spec.batch, 1, 1, spec.in_channels))
        residual = None if layer.residual is None else self.stored(layer.residual).expr
        call = call_layer(self.builder, layer.name, convolution, data.expr, residual)
        made = Tensor.of(self.builder.emit(call), spec.out_shape, spec.out_dtype)
        if len(shape) == 2:
            made = self.t.reshape(made, shape)
        if layer.own is None:
            self.float_of[layer.name] = self._to_model(made)
        else:
            self.stored_of[layer.output] = made

    # -- other integer nodes

    def _finish(self, node, steps: Tensor, zero_point: int = 0):
        """Integers in steps of the node's unit -> the stored tensor, or float for float readers."""
        unit = np.asarray(self.scales.unit(node), np.float32)
        if node.name in self.plan.accumulators:
            self.float_of[node.name] = self._to_model(self.t.dequantize(steps, unit, zero_point))
            return
        made = self.scales.stored(node)
        fused, zero = made.fused(unit), made.scale.zero_point
        factor = np.asarray(fused.multiplier, np.float32)
        if fused.other is not None:
            factor = np.stack([np.broadcast_to(v, node.shape[-1:]) for v in (factor, fused.other)])
        numbers = (zero_point, zero, fused.lo + zero, fused.hi + zero, fused.function)
        self.stored_of[made.tensor] = self._element(
            elementwise.requantize, steps, self.t.constant(factor), numbers=numbers
        )

    def _clip(self, node):
        (tensor,) = node.inputs
        self._finish(node, self.stored(tensor), self.scale(tensor).zero_point)

    def _average(self, node):
        if node.name in self.layers:
            return self._layer(node)
        (tensor,) = node.inputs
        total = self.t.reduce("sum", self._steps(tensor), (1, 2))
        return self._finish(node, total)

    def _mean_pool(self, node):
        a = node.attrs
        window = (a["pool_size"], a["strides"], a["padding"], (1, 1))
        total = self.t.window("sum", self._steps(node.inputs[0]), *window, 1)
        self._finish(node, self.t.binary("multiply", total, self.t.constant(mean_shares(node))))

    def _reduce_mean(self, node):
        self._finish(node, self.t.reduce("sum", self._steps(node.inputs[0]), node.attrs["axes"]))

    def _layer_norm(self, node):
        a, (tensor,), made = node.attrs, node.inputs, self.scales.stored(node)
        epsilon = float(spread_epsilon(a["epsilon"], node.shape[-1], self.scale(tensor).scale))
        vectors = (self.t.constant(np.float32(a[key])) for key in ("scale", "shift"))
        numbers = (epsilon, float(made.scale.scale), made.scale.zero_point, made.lo, made.hi)
        self.stored_of[made.tensor] = self._element(
            layer_norm, self.stored(tensor), *vectors, numbers=numbers
        )

    def _resize_linear(self, node):
        (tensor,) = node.inputs
        x, zero = self.stored(tensor), self.scale(tensor).zero_point
        rows, columns, parts = resample.tables(node.attrs)
        unit, channels = np.asarray(self.scales.unit(node), np.float32), node.shape[-1:]
        numbers: dict = dict(parts=parts, in_zero_point=zero)
        factors = [unit]
        if node.name in self.plan.accumulators:
            made, dtype = None, "float32"
            numbers["dequantize"] = True
        else:
            made, dtype = self.scales.stored(node), "uint8"
            fused, zero = made.fused(unit), made.scale.zero_point
            factors = [fused.multiplier, *([] if fused.other is None else [fused.other])]
            limits = dict(zero_point=zero, lo=fused.lo + zero, hi=fused.hi + zero)
            numbers |= limits | dict(function=fused.function)
        vectors = np.stack([np.broadcast_to(np.asarray(f, np.float32), channels) for f in factors])
        result = self.t.compute(
            node.shape, dtype, partial(resize_linear, **numbers), x,
            *map(self.t.constant, (rows, columns, vectors)),
            primfunc_name_hint="eq_resize_linear",
        )  # fmt: skip
        if made is None:
            self.float_of[node.name] = self._to_model(result)
        else:
            self.stored_of[made.tensor] = result

    def _steps(self, tensor):
        """int32: a stored tensor less its zero point."""
        x = self.t.cast(self.stored(tensor), np.int32)
        zero = self.scale(tensor).zero_point
        return self.t.binary("subtract", x, self.t.constant(np.int32(zero))) if zero else x

    def _lookup(self, node):
        """A function of one number: a 256-entry table, made here by the norm."""
        s = self.scale(node.name)
        values = function_values(node, self.scale(node.inputs[0]))
        table = self.t.constant(quantize(values, s.scale, s.zero_point, s.lo, s.hi))
        index = self.t.cast(self.stored(node.inputs[0]), np.int32)
        self.stored_of[node.name] = self.t.gather(table, index, 0)

    def _join(self, node):
        if node.name in self.absorbing:
            self._call(self.absorbing[node.name])
            return
        join = self.joins[node.name]
        made = join.output
        scales = [number for s in (*join.scales, made.scale) for number in (float(s.scale), s.zero_point)]
        function = None if made.function is None else of_sum(made.function)
        tensors = [self.stored(tensor) for tensor in join.inputs]
        numbers = (*scales, made.lo, made.hi, function)
        self.stored_of[made.tensor] = self._element(
            JOINS[node.op], *tensors, numbers=numbers, shape=node.shape
        )

    def _mul(self, node):
        a, b = map(self._steps, node.inputs)
        self._finish(node, self.t.binary("multiply", a, b))

    def _matmul(self, node):
        shape, depth = model_shape(node), node.attrs["depth"]
        rows, columns, count = shape[-2], shape[-1], prod(shape[:-2])
        a, b = (self._to_model(self.stored(tensor)) for tensor in node.inputs)
        a = self.t.reshape(a, (count, rows, depth))
        b = self.t.transpose(self.t.reshape(b, (count, depth, columns)), (0, 2, 1))
        zeros = (self.scale(tensor).zero_point for tensor in node.inputs)
        product = Product(count, rows, depth, columns, *zeros)
        call = call_product(self.builder, node.name, product, a.expr, b.expr)
        made = self.t.reshape(Tensor.of(self.builder.emit(call), product.out_shape, "int32"), shape)
        if node.name in self.plan.accumulators:
            self.float_of[node.name] = self.t.dequantize(made, self.scales.unit(node), 0)
            return
        self._finish(node, self.t.transpose(made, NCHW_TO_NHWC) if len(shape) == 4 else made)

    def _move(self, node):
        if (found := shuffled(self.graph, node)) is not None:  # what is between is not read
            tensor, places = found
            self.stored_of[node.name] = _stored_take(
                self.t, self.stored(tensor), (None, None, None, places)
            )
            return
        inputs = [self.stored(tensor) for tensor in node.inputs]
        self.stored_of[node.name] = MOVES[node.op](self.t, node, self.scale(node.name).zero_point, *inputs)


def _looked_up(t, table, x, axis):
    """A (C, 256) table of bytes with the channels along ``axis``; x: uint8, or int8 of the same bits."""
    index = t.cast(x, np.int32)
    table = table[:1] if (table == table[0]).all() else table
    starts = np.arange(0, table.size, 256, dtype=np.int32).reshape(-1, *(1,) * (3 - axis))
    if x.dtype == "int8":
        table, starts = np.roll(table, 128, axis=1), starts + 128
    if starts.any():
        index = t.binary("add", index, t.constant(starts.astype(np.int32)))
    return t.gather(t.constant(table.ravel()), index, 0)


# -- a node that stays float: (tensors, node, inputs in NCHW)


def _float_conv(t, node, x):
    weight = t.constant(np.ascontiguousarray(node.weight.transpose(3, 2, 0, 1)))
    a = node.attrs
    made = t.conv(x, weight, a["strides"], a["padding"], a["dilation"], a["groups"])
    return t.binary("add", made, t.constant(node.bias.reshape(-1, 1, 1)))


def _float_dense(t, node, x):
    made = t.matmul(x, t.constant(np.ascontiguousarray(node.weight[0, 0])))
    return t.binary("add", made, t.constant(node.bias))


def _float_function(t, node, x):
    rank = len(node.shape)
    axis = nchw_axis(rank - 1, rank) if rank else 0
    return _expression(t, node.attrs["expression"], x, rank, axis)


def _expression(t, e, x, rank, axis):
    """An expression of `elementwise`; axis: of the channels in ``x``, of this rank."""
    if isinstance(e, str):
        return x
    if not isinstance(e, tuple) or is_vector(e):
        e = np.asarray(e, np.float32)
        return t.constant(e.reshape(-1, *(1,) * (rank - 1 - axis)) if e.ndim else e)

    def number(value):
        return _expression(t, value, x, rank, axis)

    if (inner := softplus_of(e)) is not None:
        inner = number(inner)
        small = t.unary("exp", t.unary("negative", t.unary("abs", inner)))
        small = t.unary("log", t.binary("add", small, number(1.0)))
        return t.binary("add", t.binary("maximum", inner, number(0.0)), small)
    name, first, *others = e
    first = number(first)
    if name == "leaky_relu":
        negative = t.binary("less", first, number(0.0))
        return t.where(negative, t.binary("multiply", first, number(others[0])), first)
    if name in PARAMETRIC:
        return _clipped(t, first, *others)
    if not others:
        return t.unary(name, first)
    return t.binary(name, first, number(others[0]))


def _clipped(t, x, lo, hi):
    for name, limit in (("maximum", lo), ("minimum", hi)):
        if abs(limit) != inf:
            x = t.binary(name, x, t.constant(np.float32(limit)))
    return x


def _windows(t, name, x, *window):
    """A pool with its channels last, as the layers around it are (`topi_ext.relax.floats`)."""
    made = t.window(name, t.transpose(x, NCHW_TO_NHWC), *window, 1)
    return t.transpose(made, NHWC_TO_NCHW)


def _float_max_pool(t, node, x):
    a = node.attrs
    return _windows(t, "max", x, a["pool_size"], a["strides"], a["padding"], a["dilation"])


def _float_average(t, node, x):
    a = node.attrs
    window = (a["pool_size"], a["strides"], a["padding"], (1, 1))
    count = np.float32(prod(a["pool_size"]))
    if any(a["padding"]) and not a.get("count_include_pad"):
        count = NUMPY.pool("sum", np.ones((1, 1, *x.shape[2:]), np.float32), *window)
    return t.binary("divide", _windows(t, "sum", x, *window), t.constant(count))


def _model_axes(node) -> list[int]:
    return sorted(nchw_axis(axis, len(node.shape)) for axis in node.attrs["axes"])


def _float_mean(t, node, x):
    total = t.reduce("sum", x, _model_axes(node))
    return t.binary("divide", total, t.constant(np.float32(prod(x.shape) // prod(total.shape))))


def _float_concat(t, node, *x):
    return t.concat(x, nchw_axis(node.attrs["axis"], len(node.shape)))


def _float_slice(t, node, x):
    return _crop(t, x, *(nchw(node.attrs[key]) for key in ("begin", "end", "strides")))


def _crop(t, x, begin, end, strides):
    return t.crop(x, begin, [min(*pair) for pair in zip(end, x.shape, strict=True)], strides)


def _take(t, x, indices):
    for axis, places in enumerate(indices):
        if places is not None:
            x = t.take(x, np.asarray(places), axis)
    return x


def _repeat(t, x, factors, first_axis):
    for axis, factor in enumerate(factors, first_axis):
        if factor > 1:
            x = t.take(x, np.arange(x.shape[axis]).repeat(factor), axis)
    return x


def _float_resize_linear(t, node, x):
    """With its channels last, as the layers around it are (`topi_ext.relax.floats`)."""
    taps = resample.taps_of(node.attrs)
    tables = [
        t.constant(array) for array in (*(each.table for each in taps), *(each.weights for each in taps))
    ]
    x = t.transpose(x, NCHW_TO_NHWC)
    made = t.compute(node.shape, "float32", resize_real, x, *tables, primfunc_name_hint="eq_resize_real")
    return t.transpose(made, NHWC_TO_NCHW)


def _float_shuffle(t, node, x):
    n, c, h, w = x.shape
    b, mode = node.attrs["block"], node.attrs["mode"]
    depth = c // b**2
    if mode == "DCR":
        pieces = t.transpose(t.reshape(x, (n, b, b, depth, h, w)), (0, 3, 4, 1, 5, 2))
    else:
        pieces = t.transpose(t.reshape(x, (n, depth, b, b, h, w)), (0, 1, 4, 2, 5, 3))
    return t.reshape(pieces, (n, depth, h * b, w * b))


# -- a node that moves uint8 NHWC tensors: (tensors, node, zero point, inputs)


def _concat(t, node, fill, *x):
    return t.concat(x, node.attrs["axis"])


def _max_pool(t, node, fill, x):
    a = node.attrs
    return t.window("max", x, a["pool_size"], a["strides"], a["padding"], a["dilation"], 1)


def _reshape(t, node, fill, x):
    shape = node.attrs["shape"]
    if not node.attrs["channels_first"]:
        return t.reshape(x, shape)
    if len(x.shape) == 4:
        x = t.transpose(x, NHWC_TO_NCHW)
    x = t.reshape(x, nchw(shape))
    return t.transpose(x, NCHW_TO_NHWC) if len(shape) == 4 else x


def _transpose(t, node, fill, x):
    axes = node.attrs["axes"]
    long = [axis for axis in axes if x.shape[axis] > 1]
    return t.reshape(x, [x.shape[i] for i in axes]) if long == sorted(long) else t.transpose(x, axes)


def _slice(t, node, fill, x):
    return _crop(t, x, node.attrs["begin"], node.attrs["end"], node.attrs["strides"])


def _stored_take(t, x, indices):
    *others, channels = indices
    if all(places is None for places in others) and len(channels) == x.shape[-1]:
        groups = elementwise.shuffled_groups(channels)
        if groups is not None:
            return t.compute(x.shape, "uint8", elementwise.shuffle, x, groups)
    return _take(t, x, indices)


def _pad(t, node, fill, x):
    return t.pad(x, node.attrs["widths"], fill)


def _resize(t, node, fill, x):
    return _repeat(t, x, node.attrs["factors"], 1)


def _shuffle(t, node, fill, x):
    n, h, w, c = x.shape
    b, mode = node.attrs["block"], node.attrs["mode"]
    depth = c // b**2
    if mode == "DCR":
        pieces = t.transpose(t.reshape(x, (n, h, w, b, b, depth)), (0, 1, 3, 2, 4, 5))
    else:
        pieces = t.transpose(t.reshape(x, (n, h, w, depth, b, b)), (0, 1, 4, 2, 5, 3))
    return t.reshape(pieces, (n, h * b, w * b, depth))


#: operator -> its rule for those that move
MOVES: dict[str, Callable] = {
    "concat": _concat,
    "max_pool2d": _max_pool,
    "reshape": _reshape,
    "transpose": _transpose,
    "slice": _slice,
    "pad": _pad,
    "resize": _resize,
    "gather": lambda t, node, fill, x: _stored_take(t, x, node.attrs["indices"]),
    "reduce_max": lambda t, node, fill, x: t.reduce("max", x, node.attrs["axes"]),
    "depth_to_space": _shuffle,
}
#: join in float32 -> its function
JOINS: dict[str, Callable] = {
    "add": elementwise.add,
    "sub": elementwise.sub,
    "max": elementwise.maximum,
    "min": elementwise.minimum,
}
#: operator -> its integer rule, for all that runs in integers
INTEGER: dict[str, Callable[[_Rewriter, Node], None]] = {
    "conv2d": _Rewriter._layer,
    "dense": _Rewriter._layer,
    **dict.fromkeys(JOINS, _Rewriter._join),
    "mul": _Rewriter._mul,
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
#: operator -> its float rule, for all but inputs and "float", whose handle is the rule
FLOAT: dict[str, Callable] = {
    "conv2d": _float_conv,
    "dense": _float_dense,
    "add": lambda t, node, a, b: t.binary("add", a, b),
    "sub": lambda t, node, a, b: t.binary("subtract", a, b),
    "max": lambda t, node, a, b: t.binary("maximum", a, b),
    "min": lambda t, node, a, b: t.binary("minimum", a, b),
    "mul": lambda t, node, a, b: t.binary("multiply", a, b),
    "matmul": lambda t, node, a, b: t.matmul(a, b),
    "elementwise": _float_function,
    "concat": _float_concat,
    "max_pool2d": _float_max_pool,
    "avg_pool2d": _float_average,
    "mean_pool2d": _float_average,
    "reduce_mean": _float_mean,
    "reduce_max": lambda t, node, x: t.reduce("max", x, _model_axes(node)),
    "layer_norm": lambda t, node, x: pieces.layer_norm(t, x, node.attrs),
    "clip": lambda t, node, x: _clipped(t, x, node.attrs["lo"], node.attrs["hi"]),
    "reshape": lambda t, node, x: t.reshape(x, model_shape(node)),
    "transpose": lambda t, node, x: t.transpose(x, nchw_axes(node.attrs["axes"])),
    "slice": _float_slice,
    "pad": lambda t, node, x: t.pad(x, nchw(node.attrs["widths"]), 0.0),
    "resize": lambda t, node, x: _repeat(t, x, node.attrs["factors"], 2),
    "gather": lambda t, node, x: _take(t, x, nchw(node.attrs["indices"])),
    "resize_linear": _float_resize_linear,
    "depth_to_space": _float_shuffle,
}
