"""ONNX -> `Graph`, by the specification. No TVM here.

What has an operator in `network.ops` gets it; anything else is a float node that keeps its ONNX node
(`onnx_op.OnnxOp`). The nodes are walked from the outputs, inputs first, in the order in which Relay's walk
saw them, and carry the names that it gave: tables made then are read now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf, prod
from typing import Any

import numpy as np

from ..errors import LoadError
from ..network import pieces
from ..network.builder import Builder, normalization, per_channel, with_former
from ..network.graph import Graph
from ..network.layout import nhwc
from ..network.tensors import NUMPY
from . import geometry, uncovered
from .layer_norm import written_out
from .meaning import recurrent, resizing
from .onnx_file import CUT, called, check, cut, fixed_shapes, inline, read_onnx, stem, told
from .onnx_macs import multiply_accumulates
from .onnx_model import Prepared, Site, prepare
from .onnx_op import FLOATS, Call, NotConstant, OnnxOp, plain
from .onnx_quantized import QUANTIZED, Normalized, is_quantized, normalize


def load(
    model,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int | None = None,
    outputs: Sequence[str] | None = None,
) -> Graph:
    """An ONNX model (a path or an ``onnx.ModelProto``) as a `Graph`.

    input_shapes: {input name: NCHW shape} for inputs whose file leaves a dimension open; ``batch``
    is used for an open first dimension (None: 1), another fixed one is refused. outputs: tensors (or nodes)
    at which the network ends; those of the model. Raises LoadError, which names the node and the cure.
    """
    read, name = read_onnx(model)
    read = read if outputs is None else cut(read, outputs, name)
    if is_quantized(read):
        node = next(n for n in read.graph.node if n.op_type in QUANTIZED)
        raise LoadError(
            f"{name} is already quantized (node {node.name or node.output[0]} is {node.op_type}); "
            "import-onnx (Python: import_quantized) takes its scales over"
        )
    graph = _load(read, name, input_shapes, batch, stem(model))
    if outputs is not None:
        graph.cut = (outputs,) if isinstance(outputs, str) else tuple(outputs)
    return graph


def load_quantized(
    model, input_shapes: Mapping[str, Sequence[int]] | None = None, batch: int | None = None
) -> tuple[Graph, Normalized]:
    """A quantized ONNX model as a `Graph` with ``fake_quant`` nodes, and what `onnx_quantized` kept of it.

    Arguments as of `load`. Raises LoadError and QuantizedModelError.
    """
    read, name = read_onnx(model)
    if not is_quantized(read):
        raise LoadError(f"{name} is not quantized: it has no QuantizeLinear; quantize takes float models")
    normal = normalize(read)
    return _load(normal.model, name, input_shapes, batch, stem(model)), normal


def _load(model, name, input_shapes, batch, called) -> Graph:
    with told(name):
        model = inline(model, name)
        check(model, name, domains=())
        prepared = prepare(model, fixed_shapes(model, input_shapes or {}, batch, name), name)
        return with_former(lambda edition: _Walk(prepared, edition), lambda walk: walk.graph(called))


class _Walk:
    """One walk from the outputs of a prepared model; see `load`."""

    def __init__(self, prepared: Prepared, edition: int):
        self.prepared = prepared
        self.constants, self.types = prepared.constants, prepared.types
        self.maker = {output: site for site in prepared.sites for output in site.outputs if output}
        self.norms = written_out(prepared) if edition >= 2 else {}
        for end, norm in self.norms.items():
            self.maker[end] = replace(self.maker[end], inputs=(norm.data,))
        order = self._order()
        uses: dict[Any, int] = {}
        for site in order:
            for tensor in filter(None, site.inputs):
                uses[tensor] = uses.get(tensor, 0) + 1
        for tensor in prepared.outputs:
            uses[tensor] = uses.get(tensor, 0) + 1
        labels = {output: site.label for site in order for output in site.outputs}

        def label(value) -> str:  # a pair is a step on the way to a tensor
            return labels.get(value if isinstance(value, str) else value[0], "")

        self.builder = Builder(uses, label, edition, self._aside)
        if self.norms:
            self.builder.since(2)
        self.padded: dict[str, tuple] = {}  # a pad of a map -> what it pads, padding, fill
        self.rounded: dict[str, dict] = {}  # QuantizeLinear's output -> attributes of its fake_quant
        for tensor in prepared.inputs:
            self._input(tensor)
        for site in order:
            with told(site):
                self._site(site)

    def _order(self) -> list[Site]:
        """The sites that an output needs, each behind what it reads, depth first."""
        order: dict[int, Site] = {}
        stack = [(self.maker[t], False) for t in reversed(self.prepared.outputs) if t in self.maker]
        while stack:
            site, seen = stack.pop()
            if id(site) in order:
                continue
            if seen:
                order[id(site)] = site
                continue
            stack.append((site, True))
            stack.extend((self.maker[t], False) for t in reversed(site.inputs) if t in self.maker)
        return list(order.values())

    def graph(self, called: str) -> Graph:
        outputs = []
        for tensor in self.prepared.outputs:
            dtype = self.types[tensor][0]
            if dtype in FLOATS:
                self.cast((tensor, dtype), tensor, tensor, dtype)
            outputs.append(self.builder.tensor[(tensor, dtype) if dtype in FLOATS else tensor])
        return self.builder.graph(outputs, called, self.prepared.output_names, self.prepared.notes)

    def _input(self, tensor):
        dtype, shape = self.types[tensor]
        given = (tensor, dtype) if dtype in FLOATS else tensor
        self.builder.input(given, tensor, nhwc(shape), dtype)
        if dtype in FLOATS:
            self.cast(tensor, tensor, given, "float32")

    def _site(self, site):
        known = [tensor for tensor in site.inputs if self.known(tensor)]
        made = next(output for output in site.outputs if output)
        floats = all(self.dtype(tensor) == "float32" for tensor in (*known, made))
        rule = RULES.get(site.node.op_type) if floats or site.node.op_type in ANY_DTYPE else None
        rule = rule if made == site.outputs[0] else None  # of the rules none leaves out its first output
        if made in self.norms:
            self.builder.layer_norm(made, *self.norms[made], self.size(made))
            return
        nodes = dict(self.builder.nodes)
        if rule is None or rule(self, site) is False:
            self.builder.nodes.update(nodes)  # a Sum of three may have folded its constant into a layer
            self.stays_float(site, rule is not None)

    # -- what the rules ask

    def known(self, tensor: str) -> bool:
        """Whether it is a tensor, which depends on an input."""
        return tensor in self.types

    def dtype(self, tensor: str) -> str:
        """Its dtype here: every float is float32."""
        dtype = self.types[tensor][0]
        return "float32" if dtype in FLOATS else dtype

    def size(self, tensor: str) -> tuple[int, ...]:
        """Its shape, NCHW."""
        return self.types[tensor][1]

    def shape(self, site: Site, index: int = 0) -> tuple[int, ...]:
        """The shape of an output, NHWC."""
        return nhwc(self.size(site.outputs[index]))

    def constant(self, site: Site, place: int) -> np.ndarray | None:
        """The numbers of an input, floats as float32; None if it is left out or computed."""
        tensor = site.inputs[place] if place < len(site.inputs) else ""
        array = self.constants.get(tensor)
        return None if array is None else plain(array)

    def computed(self, site: Site, *places: int) -> bool:
        """Whether one of the inputs is a tensor that depends on an input of the network."""
        return any(place < len(site.inputs) and self.known(site.inputs[place]) for place in places)

    def unpadded(self, data: str, padding: Sequence[int], fill: float) -> tuple[str, tuple[int, ...]]:
        """What a window reads, and its padding: that of a Pad before it, with ``fill``, joins its own."""
        while data in self.padded and self.padded[data][2] == fill:
            data, around, _ = self.padded[data]
            padding = [p + q for p, q in zip(padding, around, strict=True)]
        return data, tuple(padding)

    def one(self, site: Site, op: str, attrs: Mapping, shape=None, **more) -> str:
        """A node of the site's first input."""
        shape = shape or self.shape(site)
        return self.builder.one(site.outputs[0], op, site.inputs[0], shape, attrs, **more)

    def moved(self, site: Site) -> bool:
        """A site that moves the numbers of its first input, by the places of each axis; else False."""
        made = self.prepared.handle(site, 0)[0].evaluate
        return self.builder.moved(site.outputs[0], site.inputs[0], self.shape(site), made)

    def stays_float(self, site: Site, covered: bool) -> None:
        """A node for each output of a site that no rule takes; covered: a rule takes others of its kind."""
        for index, output in enumerate(site.outputs):
            if output in self.builder.uses:
                self._float(output, *self.prepared.handle(site, index), covered)

    def _aside(self, tensor: str) -> None:
        """The float node of a tensor that no operator made."""
        site = self.maker[tensor]
        op, tensors = self.prepared.handle(site, site.outputs.index(tensor))
        if op.op != "Transpose":
            op = replace(op, uncovered=" with the batch behind other axes, where an operator reads that")
        self._float(tensor, op, tensors, op.op == "Transpose")

    def _float(self, value, op: OnnxOp, tensors: Sequence[str], covered: bool) -> None:
        if (why := recurrent.refused(op)) is not None:
            raise LoadError(f"{called(op.node)} {why}, or {CUT}")
        sizes = [self.size(tensor) for tensor in tensors]
        op = uncovered.told(op, sizes) if covered and self.builder.edition else op
        attrs = {"fn": op.evaluate, "handle": op, "macs": multiply_accumulates(op, sizes)}
        inputs = [self.builder.tensor[tensor] for tensor in tensors]
        shape = nhwc(op.shapes[op.index])
        self.builder.add(value, "float", inputs, shape, attrs, dtype=op.dtypes[op.index])

    def cast(self, value, tensor: str, source, dtype: str) -> None:
        """The numbers of a tensor at the network's own input or output, as ``dtype``."""
        from onnx import helper

        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        node = helper.make_node("Cast", [tensor], [f"{tensor}_{dtype}"], f"{tensor}_{dtype}", to=kind)
        op = OnnxOp(node, self.prepared.opset, {"to": kind}, {}, {0: 0}, 0, (self.size(tensor),), (dtype,))
        attrs = {"fn": op.evaluate, "handle": op, "macs": 0}
        inputs, shape = [self.builder.tensor[source]], nhwc(self.size(tensor))
        self.builder.add(value, "float", inputs, shape, attrs, dtype=dtype)


# -- the rules: (walk, site); False where the node stays float


def _alias(walk, site):
    walk.builder.alias(site.outputs[0], site.inputs[0])


def _dropout(walk, site):
    ratio, training = walk.constant(site, 1), walk.constant(site, 2)
    trains = training is not None and bool(training.reshape(-1)[0])
    asked = [output for output in site.outputs[1:] if output in walk.builder.uses]
    if walk.computed(site, 1, 2) or asked or (trains and (ratio is None or float(ratio.reshape(-1)[0]))):
        return False
    return _alias(walk, site)


def _cast(walk, site):
    if walk.dtype(site.inputs[0]) != walk.dtype(site.outputs[0]):
        return False
    return _alias(walk, site)


def _batch_norm(walk, site):
    arrays = [walk.constant(site, place) for place in range(1, 5)]
    a = site.attributes
    if any(v is None for v in arrays) or a.get("training_mode") or a.get("spatial", 1) != 1:
        return False
    if any(output in walk.builder.uses for output in site.outputs[1:]):
        return False
    gamma, beta, mean, variance = (v.astype(np.float64) for v in arrays)
    written = any(attribute.name == "epsilon" for attribute in site.node.attribute)
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + (a["epsilon"] if written else 1e-5))  # the default in double
        shift = beta - mean * scale
    value, data = site.outputs[0], site.inputs[0]
    if walk.builder.fold_affine(value, data, scale, shift):
        return True
    return walk.builder.channels(value, data, scale, shift)


def _repeats(shape: Sequence[int], whole: Sequence[int]) -> bool:
    """Whether a constant, repeated along axes where it has a size of 1, is of another shape."""
    behind = zip(shape[::-1], whole[::-1], strict=False)
    return len(shape) <= len(whole) and all(n in (1, size) for n, size in behind)


def _layer_norm(walk, site):
    size, a = walk.size(site.inputs[0]), site.attributes
    for name, place in (("Scale", 1), ("B", 2)):
        vector = walk.constant(site, place)
        if vector is not None and not _repeats(vector.shape, size):
            raise LoadError(
                f"{site}: its {name} of shape {vector.shape} does not fit {tuple(size)}; export it again"
            )
    several = a["axis"] % len(size) != len(size) - 1
    if several or walk.computed(site, 1, 2) or any(made in walk.builder.uses for made in site.outputs[1:]):
        return False
    scale, shift = (walk.constant(site, place) for place in (1, 2))
    vectors = (scale, np.zeros(1) if shift is None else shift)
    if any(v is not None and prod(v.shape[:-1]) != 1 for v in vectors):  # other numbers in other places
        return False
    attrs = normalization(size, -1, a["epsilon"], *vectors)
    return walk.builder.layer_norm(site.outputs[0], site.inputs[0], -1, attrs, size)


def _window(walk, site, kernel, *, counts=None):
    """(strides, dilations, padding) of a convolution or pool; whole windows where their number is given."""
    a, size = site.attributes, walk.size(site.inputs[0])[2:]
    strides = tuple(a.get("strides") or (1,) * len(size))
    dilations = tuple(a.get("dilations") or (1,) * len(size))
    padding = geometry.pads(a, size, kernel, strides, dilations)
    if counts is not None:
        padding = geometry.whole_windows(size, kernel, strides, dilations, padding, counts)
    return strides, dilations, padding


def _with_bias(walk, site, layer: Callable[[Any], Any]) -> bool:
    """A layer and, where it has one, its bias (input 2); layer(value): makes the product, or False."""
    value, bias = site.outputs[0], walk.constant(site, 2)
    if bias is None:
        return layer(value) is not False
    product = (value, "product")
    walk.builder.uses[product] = 1
    return layer(product) is not False and walk.builder.fold_affine(value, product, 1.0, bias)


def _conv(walk, site):
    weight, rank = walk.constant(site, 1), len(walk.size(site.inputs[0]))
    if weight is None or rank not in (3, 4) or walk.computed(site, 2):
        return False
    strides, dilations, padding = _window(walk, site, weight.shape[2:])
    data, padding = walk.unpadded(site.inputs[0], padding, 0.0)
    groups = site.attributes["group"]

    def layer(value, data, shape):
        attrs = dict(_high(strides, dilations, padding), groups=groups)
        kernel = weight if rank == 4 else weight[:, :, None]
        kernel = np.ascontiguousarray(kernel.transpose(2, 3, 1, 0))
        walk.builder.one(value, "conv2d", data, shape, attrs, weight=kernel)

    if rank == 4:
        return _with_bias(walk, site, lambda value: layer(value, data, walk.shape(site)))
    return _on_map(walk, site, data, layer, bias=walk.constant(site, 2))


def _high(strides, dilations, padding) -> dict[str, tuple[int, ...]]:
    """The windows of one axis as those of a map of height 1; those of a map as they are."""
    if len(strides) == 1:
        strides, dilations, padding = (1, *strides), (1, *dilations), (0, padding[0], 0, padding[1])
    return dict(strides=strides, padding=padding, dilation=dilations)


def _on_map(walk, site, data, layer: Callable, bias=None, rows=False) -> bool:
    """A layer or pool on what is no map; see `Builder.on_map`."""
    value = site.outputs[0]
    return walk.builder.on_map(value, data, walk.size(value), layer, bias, rows)


def _conv_transpose(walk, site):
    weight, a = walk.constant(site, 1), site.attributes
    if weight is None or weight.ndim not in (3, 4) or walk.computed(site, 2):
        return False
    if weight.ndim == 3 and not walk.builder.since():
        return False
    size = walk.size(site.inputs[0])[2:]
    strides = tuple(a.get("strides") or (1,) * len(size))
    dilations = tuple(a.get("dilations") or (1,) * len(size))
    padding, _ = geometry.transposed(a, size, weight.shape[2:], strides, dilations)
    begin = padding[: len(size)]
    if min(begin) < 0:
        return False
    if any(d != 1 for d in dilations):  # zeros between the weights
        whole = np.zeros((*weight.shape[:2], *geometry.reach(weight.shape[2:], dilations)), np.float32)
        places = [slice(None)] * 2 + [slice(None, None, d) for d in dilations]
        whole[tuple(places)] = weight
        weight = whole

    def layer(value, data, shape):
        kernel = weight if weight.ndim == 4 else weight[:, :, None]
        ends = [(1, *strides)[-2:], (0, *begin)[-2:]]
        return walk.builder.conv2d_transpose(value, data, kernel, *ends, shape, a["group"])

    data = site.inputs[0]
    if weight.ndim == 4:
        return _with_bias(walk, site, lambda value: layer(value, data, walk.shape(site)))
    return _on_map(walk, site, data, layer, bias=walk.constant(site, 2))


def _gemm(walk, site):
    weight, bias, a = walk.constant(site, 1), walk.constant(site, 2), site.attributes
    shape = walk.shape(site)
    if weight is None or a["transA"] or walk.computed(site, 2):
        return False
    if bias is not None and per_channel(bias, shape) is None:
        return False
    data, value = site.inputs[0], site.outputs[0]
    if a["alpha"] != 1.0:
        scaled = (value, "alpha")
        walk.builder.uses[scaled] = 1
        size = nhwc(walk.size(data))
        if not walk.builder.affine(scaled, "multiply", data, np.float32(a["alpha"]), False, size):
            return False
        data = scaled
    matrix = np.ascontiguousarray(weight if a["transB"] else weight.T).T[None, None]

    def product(made):
        walk.builder.one(made, "dense", data, shape, {}, weight=matrix)

    if bias is None:
        return product(value)
    summed = (value, "product")
    walk.builder.uses[summed] = 1
    product(summed)
    bias = bias if a["beta"] == 1.0 else np.float32(a["beta"]) * bias
    return walk.builder.affine(value, "add", summed, bias, False, shape)


def _matmul(walk, site):
    weight, data = walk.constant(site, 1), site.inputs[0]
    if all(map(walk.known, site.inputs)):
        return walk.builder.matmul(site.outputs[0], *site.inputs, walk.shape(site))
    if weight is None or weight.ndim != 2 or len(walk.size(data)) < 2:
        return False
    kernel = np.ascontiguousarray(weight.T).T[None, None]
    if len(walk.size(data)) == 2:
        return walk.one(site, "dense", {}, weight=kernel)
    attrs = dict(strides=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1)

    def layer(value, data, shape):
        walk.builder.one(value, "conv2d", data, shape, attrs, weight=kernel)

    return _on_map(walk, site, data, layer, rows=True)


def _function(name: str) -> Callable:
    """A function of one number."""
    return lambda walk, site: walk.builder.function(
        site.outputs[0], name, [site.inputs[0]], walk.shape(site)
    )


def _pieces(of: Callable) -> Callable:
    """An operator in pieces, as Relay's importer wrote it."""
    return lambda walk, site: walk.builder.chain(
        site.outputs[0], site.inputs[0], of(site.attributes), walk.shape(site)
    )


def _leaky_relu(walk, site):
    value, alpha = site.outputs[0], float(site.attributes["alpha"])
    return walk.builder.function(value, "leaky_relu", [site.inputs[0]], walk.shape(site), alpha)


def _prelu(walk, site):
    slope = walk.constant(site, 1)
    if slope is None:
        return False
    value, shape = site.outputs[0], walk.shape(site)
    if slope.size == 1:
        alpha: object = float(slope.reshape(()))
    else:
        along = np.broadcast_shapes(slope.shape, (1,) * len(shape))
        data, size = walk.builder.tensor[site.inputs[0]], walk.size(site.outputs[0])
        on_map = walk.builder.lowered.get(data) is False if len(size) == 3 else len(size) in (2, 4)
        if len(size) == 3 and not walk.builder.since():
            return False
        if not on_map or along != (1, size[1], *(1,) * (len(size) - 2)):
            return False
        alpha = tuple(map(float, slope.ravel()))
    return walk.builder.function(value, "leaky_relu", [site.inputs[0]], walk.shape(site), alpha)


def _binary(name: str) -> Callable:
    """An operator of two tensors, or of a tensor and a constant."""
    return lambda walk, site: walk.builder.two(
        site.outputs[0], name, _operands(walk, site), walk.shape(site)
    )


def _operands(walk, site) -> list:
    return [
        tensor if walk.known(tensor) else walk.constant(site, i) for i, tensor in enumerate(site.inputs)
    ]


def _many(name: str) -> Callable:
    """An operator of any number of tensors, two by two."""

    def rule(walk, site):
        first, *others = _operands(walk, site)
        if not others:
            return _alias(walk, site)
        for i, operand in enumerate(others, 1):
            made = site.outputs[0] if i == len(others) else (site.outputs[0], str(i))
            walk.builder.uses.setdefault(made, 1)
            if not walk.builder.two(made, name, (first, operand), walk.shape(site)):
                return False
            first = made
        return True

    return rule


def _relu(walk, site):
    walk.builder.clip(site.outputs[0], site.inputs[0], 0.0, inf)


def _clip(walk, site):
    if walk.computed(site, 1, 2):
        return False
    big, ends = float(np.finfo(np.float32).max), []
    for place, key in ((1, "min"), (2, "max")):
        given = walk.constant(site, place)
        end = site.attributes.get(key) if given is None else given.reshape(-1)[0]
        ends.append(None if end is None else float(end))
    lo, hi = ends
    lo = -inf if lo is None or lo <= -big else lo
    hi = inf if hi is None or hi >= big else hi
    if lo > hi:  # the specification: every number is the maximum
        return False
    walk.builder.clip(site.outputs[0], site.inputs[0], lo, hi)
    return True


def _concat(walk, site):
    if not all(walk.known(tensor) for tensor in site.inputs):
        return False
    if len(site.inputs) == 1:
        return _alias(walk, site)
    axis = site.attributes["axis"] % len(walk.shape(site))
    return walk.builder.concat(site.outputs[0], site.inputs, axis, walk.shape(site))


def _max_pool(walk, site):
    a, size = site.attributes, walk.size(site.outputs[0])
    if len(size) not in (3, 4) or any(output in walk.builder.uses for output in site.outputs[1:]):
        return False
    kernel = tuple(a["kernel_shape"])
    strides, dilations, padding = _window(walk, site, kernel, counts=size[2:])
    data, padding = walk.unpadded(site.inputs[0], padding, -inf)
    window = dict(pool_size=(1, *kernel)[-2:], **_high(strides, dilations, padding))
    return _pooled(
        walk, site, data, lambda value, x, shape: walk.builder.pool(value, "max_pool2d", x, shape, window)
    )


def _pooled(walk, site, data, pool: Callable) -> bool:
    """pool(value, map, shape): False where it stays float."""
    if len(walk.size(data)) == 3:
        return _on_map(walk, site, data, pool)
    return pool(site.outputs[0], data, walk.shape(site)) is not False


def _avg_pool(walk, site):
    a, size = site.attributes, walk.size(site.outputs[0])
    if len(size) not in (3, 4):
        return False
    kernel = tuple(a["kernel_shape"])
    strides, dilations, own = _window(walk, site, kernel)
    _, _, padding = _window(walk, site, kernel, counts=size[2:])
    if any(d != 1 for d in dilations) or padding != own:
        return False
    counts, data = bool(a.get("count_include_pad")) or not any(padding), site.inputs[0]
    if counts:
        data, padding = walk.unpadded(data, padding, 0.0)
    window = dict(pool_size=(1, *kernel)[-2:], **_high(strides, dilations, padding))
    del window["dilation"]
    return _pooled(
        walk, site, data, lambda value, x, shape: walk.builder.average(value, x, shape, window, counts)
    )


def _global(op: str) -> Callable:
    def rule(walk, site):
        data = site.inputs[0]
        if len(walk.size(data)) == 3:
            return _on_map(walk, site, data, lambda value, data, _: walk.builder.whole_map(value, op, data))
        return walk.builder.whole_map(site.outputs[0], op, data)

    return rule


def _reduce(op: str) -> Callable:
    def rule(walk, site):
        axes = site.attributes.get("axes")
        axes = walk.constant(site, 1) if axes is None else axes
        if axes is None or walk.computed(site, 1):
            return False
        axes = [int(x) for x in axes]
        return walk.builder.reduce(site.outputs[0], op, site.inputs[0], axes, walk.shape(site))

    return rule


def _reshape(walk, site):
    return walk.builder.reshape(site.outputs[0], site.inputs[0], walk.size(site.outputs[0]))


def _transpose(walk, site):
    rank = len(walk.size(site.inputs[0]))
    axes = site.attributes.get("perm") or range(rank)[::-1]
    return rank > 0 and walk.builder.move(site.outputs[0], site.inputs[0], list(axes), walk.shape(site))


def _slice(walk, site):
    a = site.attributes
    if walk.computed(site, 1, 2, 3, 4):
        return False
    bounds = [a.get(key) for key in ("starts", "ends", "axes", "steps")]
    if bounds[0] is None:
        bounds = [walk.constant(site, place) for place in range(1, 5)]
    starts, ends, axes, steps = ([int(v) for v in b] if b is not None else [] for b in bounds)
    rank = len(walk.size(site.inputs[0]))
    axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)
    slices = {axis % rank: slice(*bound) for axis, *bound in zip(axes, starts, ends, steps, strict=True)}
    return walk.builder.crop(site.outputs[0], site.inputs[0], slices, walk.shape(site))


def _split(walk, site):
    data, rank = site.inputs[0], len(walk.size(site.inputs[0]))
    axis = site.attributes["axis"] % rank
    if walk.computed(site, 1) or axis == walk.builder.batch_axis(data):
        return False
    at = 0
    for output in site.outputs:
        size = walk.size(output)
        slices = {axis: slice(at, at + size[axis], 1)}
        if output in walk.builder.uses and not walk.builder.crop(output, data, slices, nhwc(size)):
            return False
        at += size[axis]
    return True


def _gather(walk, site):
    data, indices = site.inputs[0], walk.constant(site, 1)
    if indices is None or indices.ndim > 1 or not walk.known(data):
        return False
    size, value = walk.size(data), site.outputs[0]
    axis = site.attributes["axis"] % len(size)
    if indices.size and not -size[axis] <= indices.min() <= indices.max() < size[axis]:
        return False
    places: list[Any] = [None] * len(size)
    places[axis] = (indices.reshape(-1) % size[axis]).tolist()
    kept = nhwc(n if taken is None else len(taken) for n, taken in zip(size, places, strict=True))
    if indices.ndim:
        return walk.builder.gather(value, data, places, kept)
    row = (value, "row")
    walk.builder.uses[row] = 1
    if not walk.builder.gather(row, data, places, kept):
        return False
    return walk.builder.reshape(value, row, walk.size(value))


def _pad(walk, site):
    a, data, value = site.attributes, site.inputs[0], site.outputs[0]
    if walk.computed(site, 1, 2, 3):
        return False
    if a.get("mode", "constant") != "constant":
        return walk.moved(site)
    pads = walk.constant(site, 1) if a.get("pads") is None else a["pads"]
    fill = a.get("value") if a.get("pads") is not None else walk.constant(site, 2)
    fill = float(np.asarray(fill).reshape(-1)[0]) if fill is not None and np.size(fill) else 0.0
    rank, axes = len(walk.size(data)), walk.constant(site, 3)
    axes = range(rank) if axes is None else [int(axis) % rank for axis in axes]
    widths = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        widths[axis] = (int(pads[i]), int(pads[i + len(axes)]))
    around = rank in (3, 4) and widths[:2] == [(0, 0)] * 2 and min(min(pair) for pair in widths) >= 0
    if around and (rank == 4 or walk.builder.since()):
        fill = -inf if fill <= -float(np.finfo(np.float32).max) else fill
        walk.padded[value] = (data, (*(b for b, _ in widths[2:]), *(e for _, e in widths[2:])), fill)
    return fill == 0 and walk.builder.pad(value, data, widths, walk.shape(site))


def _resize(walk, site):
    if walk.computed(site, 1, 2, 3):
        return False
    op, _ = walk.prepared.handle(site, 0)
    value, data, shape = site.outputs[0], site.inputs[0], walk.shape(site)
    try:
        found = resizing.linear(Call(NUMPY, op, [np.empty(walk.size(data), np.float32)]))
    except NotConstant:
        return False
    if walk.builder.resize(value, data, shape, op.evaluate, *(found or (None, None))):
        return True
    return site.attributes.get("mode", "nearest") == "nearest" and walk.moved(site)


def _move(walk, site):
    return not walk.computed(site, 1, 2) and walk.moved(site)


def _space_to_depth(walk, site):
    if site.attributes.get("mode", "DCR") != "DCR":  # newer opsets have two orders of channels
        return False
    block, shape = site.attributes["blocksize"], walk.shape(site)
    return walk.builder.space_to_depth(site.outputs[0], site.inputs[0], block, shape)


def _depth_to_space(walk, site):
    a = site.attributes
    return walk.one(site, "depth_to_space", dict(block=a["blocksize"], mode=a.get("mode", "DCR")))


def _quantize(walk, site):
    """The first half of a pair; `_dequantize` makes the node."""
    encoding = _encoding(walk, site)
    if encoding is None:
        return False
    walk.rounded[site.outputs[0]] = encoding
    return _alias(walk, site)


def _dequantize(walk, site):
    if site.inputs[0] not in walk.rounded:
        return False
    return walk.one(site, "fake_quant", walk.rounded[site.inputs[0]])


def _encoding(walk, site):
    """The attributes of a ``fake_quant``; None if they are not one number each, of uint8."""
    scale, zero = walk.constant(site, 1), walk.constant(site, 2)
    if scale is None or scale.size != 1 or walk.dtype(site.outputs[0]) != "uint8":
        return None
    zero = np.zeros((), np.uint8) if zero is None else zero
    return {"scale": float(scale.reshape(())), "zero_point": int(zero.reshape(()))}


#: operators whose rule looks at the dtypes itself
ANY_DTYPE = ("Identity", "Cast", "Dropout", "QuantizeLinear", "DequantizeLinear")
#: ONNX operator -> its rule, for those that an operator of `network.ops` stands for
RULES: dict[str, Callable[[_Walk, Site], Any]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "Identity": _alias,
    "Dropout": _dropout,
    "Cast": _cast,
    **{op: _function(op.lower()) for op in ("Sigmoid", "Tanh", "Exp", "Log", "Sqrt", "Abs", "Erf")},
    "Neg": _function("negative"),
    "Reciprocal": lambda walk, site: walk.builder.function(
        site.outputs[0], "divide", [1.0, site.inputs[0]], walk.shape(site)
    ),
    "HardSigmoid": _pieces(pieces.hard_sigmoid),
    "HardSwish": _pieces(pieces.hard_swish),
    "Softplus": _pieces(pieces.softplus),
    "Softsign": _pieces(pieces.softsign),
    "Elu": _pieces(pieces.elu),
    "Selu": _pieces(pieces.selu),
    "Celu": _pieces(pieces.celu),
    "Mish": _pieces(pieces.mish),
    "Gelu": _pieces(pieces.gelu),
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "Add": _binary("add"),
    "Sub": _binary("subtract"),
    "Mul": _binary("multiply"),
    "Div": _binary("divide"),
    "Pow": _binary("power"),
    "Max": _many("maximum"),
    "Min": _many("minimum"),
    "Sum": _many("add"),
    "Mean": lambda walk, site: _alias(walk, site) if len(site.inputs) == 1 else False,
    "Relu": _relu,
    "Clip": _clip,
    "Concat": _concat,
    "MaxPool": _max_pool,
    "AveragePool": _avg_pool,
    "GlobalAveragePool": _global("avg_pool2d"),
    "GlobalMaxPool": _global("max_pool2d"),
    "ReduceMean": _reduce("reduce_mean"),
    "ReduceMax": _reduce("reduce_max"),
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Transpose": _transpose,
    "Slice": _slice,
    "Split": _split,
    "Pad": _pad,
    "Resize": _resize,
    "Upsample": _resize,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Gather": _gather,
    "Tile": _move,
    "Expand": _move,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}
