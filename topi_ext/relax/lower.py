"""`LowerInteger`: the integer layers of a Relax module -> calls of our kernels, for one CPU target.

A layer is a private function with the attribute ``Composite`` = `LAYER`; its name and its `ConvSpec` as
JSON are attributes too. It takes its weights (int8 HWIO), its bias (int32, the zero point folded in) and
its multiplier beside the data, and its body says in stock operators what `ConvSpec` says: without this
pass any pipeline compiles it, to the same integers. Nothing is matched: the call of one becomes the
``call_tir`` of the kernel that `planner.choose_network` proves legal from the real weights. A stock
quantize, with the clip behind it, or dequantize becomes the elementwise kernel that computes the same. All
else in the module stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from tvm import relax, te

from .. import manifest, planner, records
from ..emit import DefaultKnobs, knob_space, target_isa, tir
from ..errors import LoweringError
from ..function import uses_other
from ..kernels import elementwise
from ..kernels.product import Product, compute, row_of
from ..planner import LayerChoice
from ..problem import Convolution, ConvSpec

#: what the function of a layer is composed as
LAYER = "easyquant.conv2d"
#: what the function of a product of two stored tensors is composed as
PRODUCT = "easyquant.product"
#: what keeps TVM's fusion and schedules off a kernel; pattern 8: opaque
KERNEL = {"tirx.is_scheduled": True, "op_pattern": 8, "tirx.noalias": True}
#: the names of all kernels' functions begin so
PREFIX = "easyquant_"
#: the attribute of a lowered module: the row of `isa.ISAS` that its kernels may be of
ROW = "easyquant_isa"
_OP: Any = relax.op


def choose(layers: Sequence[Convolution], target) -> list[tuple[planner.Choice, list[np.ndarray]]]:
    """`planner.choose_network` for a ``tvm.target.Target``, by the records applied now (`records`)."""
    core = str(target.attrs.get("mcpu", ""))
    found = records.best(core)
    measured: dict[str, dict[str, float]] = {}
    for (kernel, spec), timed in found.items():
        measured.setdefault(spec, {})[kernel] = timed.us
    chosen = planner.choose_network(layers, target_isa(target), measured, core)
    for i, (layer, (choice, packed)) in enumerate(zip(layers, chosen, strict=True)):
        if fastest := found.get((choice.kernel.name, layer.spec.to_json())):
            knobs = _known(fastest.knobs, choice.kernel, layer.spec, packed)
            chosen[i] = choice._replace(knobs=knobs), packed
    return chosen


def _known(knobs: records.Knobs, row: manifest.Kernel, spec: ConvSpec, packed) -> records.Knobs:
    """The knobs of a record, or none, the defaults, if this version has no such configuration: whatever a
    file says, what is compiled is legal."""
    kinds = [((spec.batch, spec.height, spec.width, spec.in_channels), "uint8")]
    kinds += [(array.shape, str(array.dtype)) for array in packed]
    kinds += [(spec.out_shape, "uint8")] if spec.residual is not None else []
    space = knob_space(row, spec, kinds)
    return knobs if all(value in space.get(name, ()) for name, value in knobs) else ()


# -- a layer as a function


def call_layer(builder, name: str, layer: Convolution, data, residual=None):
    """The call of a layer on Relax tensors of `ConvSpec`'s shapes; its function is added to the module.

    builder: the ``relax.BlockBuilder`` of the function that calls it.
    """
    function = builder.add_func(_function(builder, name, layer.spec), "layer")
    constants = [constant(array) for array in (layer.weight, layer.bias, layer.multiplier)]
    return relax.Call(function, [data, *constants, *([] if residual is None else [residual])])


def call_product(builder, name: str, product: Product, a, b):
    """The call of a product on Relax tensors of its shapes; its function is added to the module."""
    params = {
        "a": relax.Var("a", _tensor((product.batch, product.rows, product.depth), "uint8")),
        "b": relax.Var("b", _tensor((product.batch, product.columns, product.depth), "uint8")),
    }
    inner = relax.BlockBuilder()
    attributes = {
        "Composite": PRODUCT, "easyquant.name": name, "easyquant.spec": product.to_json(),
    }  # fmt: skip
    with inner.function("product", list(params.values()), attrs=attributes, private=True):
        with inner.dataflow():
            steps = [
                inner.emit(_OP.subtract(inner.emit(_OP.astype(x, "int32")), relax.const(zero, "int32")))
                for x, zero in zip(params.values(), (product.zero_a, product.zero_b), strict=True)
            ]
            turned = inner.emit(_OP.permute_dims(steps[1], [0, 2, 1]))
            made = inner.emit_output(_OP.matmul(steps[0], turned, "int32"))
        inner.emit_func_output(made)
    return relax.Call(builder.add_func(inner.get()["product"], "product"), [a, b])


def _function(builder, name: str, spec: ConvSpec):
    """The private function of a layer: (data, weight, bias, multiplier[, residual]) -> its output."""
    channels = (spec.out_channels,)
    kinds: dict[str, tuple[tuple[Any, ...], str]] = {
        "data": ((spec.batch, spec.height, spec.width, spec.in_channels), "uint8"),
        "weight": ((*spec.kernel, spec.in_channels // spec.groups, spec.out_channels), "int8"),
        "bias": (channels, "int32"),
        "multiplier": ((2, *channels) if uses_other(spec.function) else channels, "float32"),
    }
    if spec.residual is not None:
        kinds["residual"] = (spec.out_shape, "uint8")
    params = {key: relax.Var(key, _tensor(*kind)) for key, kind in kinds.items()}
    inner = relax.BlockBuilder()
    attributes = {
        "Composite": LAYER, "easyquant.name": name, "easyquant.spec": spec.to_json(),
    }  # fmt: skip
    with inner.function("layer", list(params.values()), attrs=attributes, private=True):
        with inner.dataflow():
            accumulator = _accumulator(inner, spec, params)
            made = inner.emit_output(_epilogue(builder, inner, spec, accumulator, params))
        inner.emit_func_output(made)
    return inner.get()["layer"]


def _accumulator(inner, spec: ConvSpec, params: Mapping):
    """int32: the sum of the products, and the bias; what is padded holds the zero point."""
    top, left, bottom, right = spec.padding
    data, weight = (inner.emit(_OP.astype(params[key], "int32")) for key in ("data", "weight"))
    if any(spec.padding):
        widths = [0, 0, top, bottom, left, right, 0, 0]
        data = inner.emit(_OP.nn.pad(data, widths, "constant", spec.zero_point))
    acc = _OP.nn.conv2d(
        data, weight, strides=list(spec.strides), dilation=list(spec.dilation), groups=spec.groups,
        data_layout="NHWC", kernel_layout="HWIO", out_dtype="int32",
    )  # fmt: skip
    return inner.emit(_OP.add(inner.emit(acc), params["bias"]))


def _epilogue(builder, inner, spec: ConvSpec, accumulator, params: Mapping):
    """What `ConvSpec.epilogue` makes of it, by the elementwise kernels."""
    if spec.epilogue == "dequantize":
        return _OP.dequantize(accumulator, params["multiplier"], relax.const(0, "int32"), -1, "float32")

    def element(function, tensors, *numbers):
        return inner.emit(call_element(builder, function, tensors, numbers, "uint8"))

    scaled, r = [accumulator, params["multiplier"]], spec.residual
    if r is None:
        limits = (spec.out_zero_point, spec.lo, spec.hi)
        return element(elementwise.requantize, scaled, 0, *limits, spec.function)
    own = element(elementwise.requantize, scaled, 0, r.own_zero_point, r.own_lo, r.own_hi)
    sides = [(own, r.own_scale, r.own_zero_point), (params["residual"], r.scale, r.zero_point)]
    (a, *left), (b, *right) = sides if r.own_first else sides[::-1]
    numbers = (*left, *right, r.out_scale, spec.out_zero_point, spec.lo, spec.hi, spec.function)
    return element(elementwise.add, [a, b], *numbers)


def _record(function, call) -> tuple[str, Convolution]:
    """(name, layer) that a call of `call_layer` says. Raises LoweringError."""
    name = str(function.attrs["easyquant.name"])
    spec = ConvSpec.from_json(str(function.attrs["easyquant.spec"]))
    arrays = [_numbers(argument) for argument in call.args[1:4]]
    weight, bias, multiplier = arrays
    if weight is None or bias is None or multiplier is None:
        raise LoweringError(
            f"layer {name}: its weights, bias or multiplier are not constant any more; run LowerInteger "
            "before a pass that lifts constants"
        )
    return name, Convolution(spec, weight, bias, multiplier)


def _numbers(expr) -> np.ndarray | None:
    """The array of a constant, else None."""
    return expr.value.numpy() if isinstance(expr, tvm.ir.GenericConst) else None


# -- lowering


@tvm.transform.module_pass(opt_level=0, name="LowerInteger")
class LowerInteger:
    """Module pass: every layer, and every stock quantize and dequantize, as a call of our kernel.

    target: a ``tvm.target.Target`` of a CPU, or what makes one. After a run, ``layers`` lists a
    `LayerChoice` for each convolution and dense layer in the order of the calls. The module says in its
    attribute `ROW` what its kernels need. Raises LoweringError.
    """

    if TYPE_CHECKING:

        def __call__(self, mod):
            """Run the pass on a module, as `tvm.transform.Pass` does."""

    def __init__(self, target):
        self.target = tvm.target.Target(target)
        self.layers: list[LayerChoice] = []

    def transform_module(self, mod, ctx):
        module, self.layers = lower(mod, self.target)
        known = ROW in (module.attrs or {})
        return module if known else module.with_attr(ROW, target_isa(self.target))


def lower(module, target) -> tuple[Any, list[LayerChoice]]:
    """(the module with every layer as a call of its kernel, the layers in the order of the calls).

    target: ``tvm.target.Target``. Raises LoweringError.
    """
    functions, products = (
        {
            var: function
            for var, function in module.functions_items()
            if isinstance(function, relax.Function) and (function.attrs or {}).get("Composite") == kind
        }
        for kind in (LAYER, PRODUCT)
    )
    calls = [
        binding.value
        for block in module["main"].body.blocks
        for binding in block.bindings
        if isinstance(binding.value, relax.Call) and binding.value.op in functions
    ]
    found = [_record(functions[call.op], call) for call in calls]
    chosen = choose([layer for _, layer in found], target)
    layers = [
        LayerChoice(name, layer.spec, layer.weight, choice)
        for (name, layer), (choice, _) in zip(found, chosen, strict=True)
    ]
    kernels = [(layer, packed) for layer, (_, packed) in zip(layers, chosen, strict=True)]
    lowering = _Lowering(module, set(functions), kernels, products, target_isa(target))
    return relax.transform.DeadCodeElimination(["main"])(lowering.module()), layers


@relax.expr_functor.mutator
class _Lowering(relax.PyExprMutator):
    """functions: the variables of the layers' functions; kernels: (`LayerChoice`, packed constants) of
    their calls, in order. products: those of products, with their functions; isa: for these."""

    def __init__(self, module, functions: set, kernels: Sequence, products: Mapping, isa: str):
        super().__init__(module)
        self.products, self.isa = products, isa
        self.functions, self.kernels = functions, iter(kernels)
        self.source, self.main = module, module.get_global_var("main")
        #: variable -> what it stands for
        self.bound = {b.var: b.value for block in module["main"].body.blocks for b in block.bindings}

    def module(self):
        self.builder_.update_func(self.main, self.visit_expr(self.source[self.main]))
        return self.builder_.get()

    def visit_call_(self, call):
        if call.op in self.functions:
            return self._layer(self.visit_expr_post_order(call), *next(self.kernels))
        if call.op in self.products:
            return self._product(self.visit_expr_post_order(call), self.products[call.op])
        name = call.op.name if isinstance(call.op, tvm.ir.Op) else ""
        made = ELEMENTS[name](self, call) if name in ELEMENTS else None
        return self.visit_expr_post_order(call) if made is None else made

    def _layer(self, call, layer: LayerChoice, packed: Sequence[np.ndarray]):
        data, _, _, _, *residual = call.args
        arguments = [data, *map(constant, packed), *residual]
        kernel = layer.choice.kernel
        function = kernel_function(kernel, layer.spec, [_kind(a) for a in arguments], layer.choice.knobs)
        name = self.builder_.add_func(function, PREFIX + kernel.name)
        return relax.call_tir(name, arguments, out_ty=_tensor(layer.spec.out_shape, layer.spec.out_dtype))

    def _product(self, call, function):
        product = Product.from_json(str(function.attrs["easyquant.spec"]))

        def made(*inputs):
            return compute(product, self.isa, *inputs)

        return self.statements(made, list(call.args), f"eq_product_{row_of(self.isa)}")

    def statements(self, made, tensors, name):
        """The call of a kernel that is loops already, made(placeholders) -> te.Tensor."""
        inputs = [te.placeholder(*_kind(x), name=f"in{i}") for i, x in enumerate(tensors)]
        out = made(*inputs)
        function = te.create_prim_func([*inputs, out]).with_attrs(KERNEL).without_attr("global_symbol")
        kind = _tensor(out.shape, out.dtype)
        return relax.call_tir(self.builder_.add_func(function, name), tensors, out_ty=kind)

    def element(self, function, data, tensors, numbers, dtype):
        """A function of `elementwise` on an expression of the source, and on constants."""
        tensors = [self.visit_expr(data), *tensors]
        return call_element(self.builder_, function, tensors, numbers, dtype)


def _quantized(lowering, call, lo=0, hi=255):
    """(what is quantized, the numbers of `elementwise.quantize`) of a quantize, or of a clip of one; None
    of another call."""
    name = getattr(getattr(call, "op", None), "name", "")
    if name == "relax.clip":
        made = lowering.bound.get(call.args[0])
        limits = (int(limit.value) for limit in call.args[1:])
        behind = getattr(getattr(made, "op", None), "name", "") == "relax.quantize"
        return _quantized(lowering, made, *limits) if behind else None
    if name != "relax.quantize":
        return None
    scale, zero = map(_numbers, call.args[1:])
    if str(call.attrs.out_dtype) != "uint8" or scale is None or zero is None or scale.size != 1:
        return None
    return call.args[0], (scale.item(), int(zero.item()), lo, hi)


def _quantize(lowering, call):
    found = _quantized(lowering, call)
    return found and lowering.element(elementwise.quantize, found[0], (), found[1], "uint8")


def _image(lowering, call):
    """An input of the network that is quantized and then put into NHWC; None of another transpose."""
    found = _quantized(lowering, lowering.bound.get(call.args[0]))
    if found is None or found[0] in lowering.bound or call.attrs.axes is None:
        return None
    data, numbers = found
    if not elementwise.is_image(_kind(data)[0], [int(axis) for axis in call.attrs.axes]):
        return None
    return lowering.statements(
        lambda x: elementwise.image(x, *numbers), [lowering.visit_expr(data)], "eq_image"
    )


def _dequantize(lowering, call):
    scale, zero = map(_numbers, call.args[1:])
    last = int(call.attrs.axis) in (-1, len(call.args[0].ty.shape.values) - 1)
    if scale is None or zero is None or zero.size != 1 or (scale.size > 1 and not last):
        return None
    scale = constant(scale.reshape(()) if scale.size == 1 else scale)
    return lowering.element(elementwise.dequantize, call.args[0], [scale], [int(zero.item())], "float32")


#: stock operator -> its rule (lowering, call); None where it stays
ELEMENTS = {
    "relax.quantize": _quantize, "relax.clip": _quantize, "relax.dequantize": _dequantize,
    "relax.permute_dims": _image,
}  # fmt: skip


def call_element(builder, function, tensors: Sequence, numbers: Sequence, dtype: str):
    """The call of a function of `elementwise`; what it makes has the shape of its first tensor."""
    kinds = [_kind(x) for x in tensors]
    inputs = [  # as Relax counts, or TVM would not fuse it
        te.placeholder([tir.IntImm("int64", d) for d in shape], kind, name=f"in{i}")
        for i, (shape, kind) in enumerate(kinds)
    ]
    made = te.create_prim_func([*inputs, function(*inputs, *numbers)]).without_attr("global_symbol")
    name = builder.add_func(made, f"eq_{function.__name__}")
    return relax.call_tir(name, list(tensors), out_ty=_tensor(kinds[0][0], dtype))


def kernel_function(
    row: manifest.Kernel,
    spec: ConvSpec,
    kinds: Sequence[tuple[tuple[int, ...], str]],
    knobs: records.Knobs = (),
):
    """The TIR function of a kernel for a layer; kinds: (shape, dtype) of data, constants and residual.

    knobs: of a tuning record, else the defaults.
    """
    inputs = [te.placeholder(shape, dtype, name=f"in{i}") for i, (shape, dtype) in enumerate(kinds)]
    function = te.create_prim_func([*inputs, row.compute(DefaultKnobs(**dict(knobs)), spec, *inputs)])
    return function.with_attrs(KERNEL).without_attr("global_symbol")


def constant(array: np.ndarray):
    """A constant of a Relax module; its numbers are copied."""
    array = np.asarray(array)
    return relax.const(np.ascontiguousarray(array).reshape(array.shape), str(array.dtype))


def _tensor(shape, dtype):
    return relax.TensorType(tuple(map(int, shape)), str(dtype))


def _kind(expr) -> tuple[tuple[int, ...], str]:
    return tuple(int(d) for d in expr.ty.shape.values), str(expr.ty.dtype)
