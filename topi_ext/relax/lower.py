"""`lower`: the integer layers of a Relax module -> calls of our kernels, for one CPU target.

A layer is a private function with the attribute ``Composite`` = `LAYER`: its name and its `ConvSpec` as
JSON are attributes too, its weights (int8 HWIO), bias (int32, the zero point folded in) and multiplier
constants in its body. Nothing is matched: the call of one becomes the ``call_tir`` of the kernel that
`planner.choose_network` proves legal from the real weights. All else in the module stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from tvm import relax, te

from .. import manifest, planner, records
from ..emit import DefaultKnobs, knob_space, target_isa
from ..planner import LayerChoice
from ..problem import Convolution, ConvSpec

#: the packed function that the body of a layer calls, which nobody has: it says what is computed
LAYER = "easyquant.conv2d"
#: what keeps TVM's fusion and schedules off a kernel; pattern 8: opaque
KERNEL = {"tirx.is_scheduled": True, "op_pattern": 8, "tirx.noalias": True}
#: the names of all kernels' functions begin so
PREFIX = "easyquant_"


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


def layer_function(name: str, layer: Convolution):
    """The private function of a layer: (data[, residual]) -> `ConvSpec`'s output."""
    spec = layer.spec
    params = [relax.Var("data", _tensor((spec.batch, spec.height, spec.width, spec.in_channels), "uint8"))]
    if spec.residual is not None:
        params.append(relax.Var("residual", _tensor(spec.out_shape, "uint8")))
    constants = [constant(array) for array in (layer.weight, layer.bias, layer.multiplier)]
    builder = relax.BlockBuilder()
    attributes = {
        "Composite": LAYER, "easyquant.name": name, "easyquant.spec": spec.to_json(),
    }  # fmt: skip
    with builder.function("layer", params, attrs=attributes, private=True):
        with builder.dataflow():
            arguments = relax.Tuple([params[0], *constants, *params[1:]])
            out = _tensor(spec.out_shape, spec.out_dtype)
            made = builder.emit_output(relax.call_dps_packed(LAYER, arguments, out))
        builder.emit_func_output(made)
    return builder.get()["layer"]


def _record(function) -> tuple[str, Convolution]:
    """(name, layer) that `layer_function` made the function of."""
    (block,) = function.body.blocks
    _, weight, bias, multiplier, *_ = block.bindings[0].value.args[1].fields
    spec = ConvSpec.from_json(str(function.attrs["easyquant.spec"]))
    arrays = [array.value.numpy() for array in (weight, bias, multiplier)]
    return str(function.attrs["easyquant.name"]), Convolution(spec, *arrays)


# -- lowering


def lower(module, target) -> tuple[object, list[LayerChoice]]:
    """(the module with every layer as a call of its kernel, the layers in the order of the calls).

    target: ``tvm.target.Target``.
    """
    functions = {
        var: function
        for var, function in module.functions_items()
        if isinstance(function, relax.Function) and (function.attrs or {}).get("Composite") == LAYER
    }
    calls = [
        binding.value.op
        for block in module["main"].body.blocks
        for binding in block.bindings
        if isinstance(binding.value, relax.Call) and binding.value.op in functions
    ]
    found = [_record(functions[var]) for var in calls]
    chosen = choose([layer for _, layer in found], target)
    layers = [
        LayerChoice(name, layer.spec, layer.weight, choice)
        for (name, layer), (choice, _) in zip(found, chosen, strict=True)
    ]
    lowering = _Lowering(module, dict(zip(calls, zip(layers, chosen, strict=True), strict=True)))
    return relax.transform.DeadCodeElimination(["main"])(lowering.module()), layers


@relax.expr_functor.mutator
class _Lowering(relax.PyExprMutator):
    def __init__(self, module, kernels: Mapping):
        super().__init__(module)
        self.kernels, self.main = kernels, module.get_global_var("main")
        self.source = module

    def module(self):
        self.builder_.update_func(self.main, self.visit_expr(self.source[self.main]))
        return self.builder_.get()

    def visit_call_(self, call):
        call = self.visit_expr_post_order(call)
        if call.op not in self.kernels:
            return call
        layer, (choice, packed) = self.kernels[call.op]
        data, *residual = call.args
        arguments = [data, *map(constant, packed), *residual]
        kinds = [_kind(a) for a in arguments]
        function = kernel_function(choice.kernel, layer.spec, kinds, choice.knobs)
        name = self.builder_.add_func(function, PREFIX + choice.kernel.name)
        return relax.call_tir(name, arguments, out_ty=_tensor(layer.spec.out_shape, layer.spec.out_dtype))


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
