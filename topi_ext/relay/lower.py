"""`LowerInteger`: qnn operators -> our kernels, for one CPU target.

Takes a Relay module of standard qnn ops in NHWC (what `tvm_easyquant.rewrite` makes) and replaces

* convolution or dense + bias + requantize + clip, and the residual add behind it, by one call of our
  own operator, with the kernel that `planner.choose` proves legal from the real weights;
* float operators between the dequantize of an int32 tensor, or of the two sides of a join, and a quantize
  by the function that `function.fuse` makes of them, computed before the rounding (`expression`);
* a layer normalization in integers (`layer_norm`) with its quantize by one operator;
* every other quantize, requantize, dequantize and join by an elementwise operator that computes the
  norm of `topi_ext.reference` (no stock qnn op rounds half to even).

Sums over a map are summed by vectors. Max pool, concat, reshape, slice, take, pad, repeat and table lookups
are exact in stock TVM and stay as they are. What stays float is handed to `floats`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import tvm
from tvm import relay

from .. import function, planner
from ..errors import LoweringError
from ..kernels import elementwise
from ..kernels.product import Product
from ..packing import fold_zero_point
from ..planner import LayerChoice
from ..problem import Convolution, ConvSpec, Residual, is_far
from ..reference import multiplier
from . import layer_norm as norms
from . import op as relay_op
from . import resize as resizes
from .expression import JOINS, Expression, name_of, value_of
from .floats import lower_floats
from .recurrence import lower_recurrences


@tvm.transform.module_pass(opt_level=0, name="LowerInteger")
class LowerInteger:
    """Module pass: lower every qnn operator for ``target``.

    After a run, ``layers`` lists a `LayerChoice` for each convolution and dense layer in program order.
    Raises LoweringError where exactness cannot be had.
    """

    if TYPE_CHECKING:

        def __call__(self, mod):
            """Run the pass on a module, as `tvm.transform.Pass` does."""

    def __init__(self, target):
        self.target = tvm.target.Target(target)
        self.layers: list[LayerChoice] = []

    def transform_module(self, mod, ctx):
        relay_op.register()
        module = relay.transform.InferType()(mod)
        self.layers = []
        lowering = _Lowering(module["main"], self.target, self.layers)
        self.layers.reverse()  # patterns are matched from the outputs back
        module = tvm.IRModule(module.functions, module.type_definitions)
        module["main"] = lowering.function
        module = relay.transform.InferType()(module)
        isa_name = relay_op.target_isa(self.target)
        module["main"] = lower_recurrences(module["main"], isa_name)
        module = relay.transform.InferType()(module)
        module["main"] = lower_floats(module["main"], isa_name)
        return relay.transform.InferType()(module)


def choose(layers: Sequence[Convolution], target) -> list[tuple[planner.Choice, list[np.ndarray]]]:
    """`planner.choose_network` for a ``tvm.target.Target``, by the AutoTVM records applied now."""
    measured: dict[str, dict[str, float]] = {}
    for (kernel, spec), us in relay_op.recorded(target).items():
        measured.setdefault(spec, {})[kernel] = us
    core = str(target.attrs.get("mcpu", ""))
    return planner.choose_network(layers, relay_op.target_isa(target), measured, core)


@dataclass(frozen=True)
class _Chain:
    """A group of calls that becomes one: its tensor arguments and how to emit it."""

    absorbed: tuple
    tensors: tuple
    emit: Callable


class _Lowering:
    def __init__(self, function, target, layers):  # noqa: PLR0912  # the kinds of Relay's expressions
        self.isa = relay_op.target_isa(target)
        self.names: list[str] = []  # of each layer
        self.found: list[Convolution] = []
        order: list = []
        relay.analysis.post_order_visit(function.body, order.append)
        self.uses: dict = {}
        for expr in order:
            for arg in _inputs(expr):
                self.uses[arg] = self.uses.get(arg, 0) + 1
        for result in _inputs(function.body) if isinstance(function.body, relay.Tuple) else ():
            self.uses[result] += 1  # never absorb an output
        self.bounds = {}
        for expr in order:
            self.bounds[expr] = self._upper(expr)
        chains, absorbed = {}, set()
        for expr in reversed(order):
            if expr not in absorbed and isinstance(expr, relay.Call):
                chain = self._match(expr)
                if chain is not None:
                    chains[expr] = chain
                    absorbed.update(chain.absorbed)
        self.chosen = choose(self.found, target)
        layers.extend(
            LayerChoice(name, layer.spec, layer.weight, choice)
            for name, layer, (choice, _) in zip(self.names, self.found, self.chosen, strict=True)
        )
        joined = {expr.args[0] for expr in order if _concatenates(expr)}
        new: dict = {}
        for expr in order:
            if expr in absorbed:
                continue
            if expr in chains:
                new[expr] = chains[expr].emit(*(new[t] for t in chains[expr].tensors))
            elif isinstance(expr, relay.Call):
                args = [new[a] for a in expr.args]
                new[expr] = relay.Call(expr.op, args, expr.attrs, expr.type_args, expr.span)
                if _concatenates(expr):
                    new[expr] = relay.annotation.stop_fusion(new[expr])
            elif isinstance(expr, relay.Tuple):
                fields = [new[f] for f in expr.fields]
                if expr in joined:  # what is fused to a concatenate is computed number by number
                    fields = [relay.annotation.stop_fusion(f) for f in fields]
                new[expr] = relay.Tuple(fields, expr.span)
            elif isinstance(expr, relay.TupleGetItem):
                new[expr] = relay.TupleGetItem(new[expr.tuple_value], expr.index)
            else:
                new[expr] = expr
        self.function = relay.Function(function.params, new[function.body])

    # -- what the IR proves

    def _upper(self, expr):
        """The largest value a uint8 expression can hold."""
        if not isinstance(expr, relay.Call):
            if isinstance(expr, relay.Tuple):
                return max((self.bounds[f] for f in expr.fields), default=255)
            return 255
        name = expr.op.name if isinstance(expr.op, tvm.ir.Op) else ""
        if name == "clip":
            return min(255, int(expr.attrs.a_max))
        if name in ("nn.max_pool2d", "max", "reshape", "transpose", "strided_slice", "concatenate",
                    "repeat", "nn.depth_to_space"):  # fmt: skip
            return self.bounds[expr.args[0]]
        if name == "take":  # a table, or what moves
            table = isinstance(expr.args[0], relay.Constant)
            return int(expr.args[0].data.numpy().max()) if table else self.bounds[expr.args[0]]
        if name == "nn.pad":
            return max(self.bounds[expr.args[0]], int(value_of(expr.args[1])))
        return 255

    # -- patterns

    def _match(self, root):
        clip, call = self._under_clip(root)
        name = name_of(call)
        if name == "qnn.requantize":
            return self._layer(root, clip, call) or self._requantize(root, clip, call)
        if name == "qnn.dequantize":
            return self._layer(root, None, call) or self._dequantize(call)
        if name == "qnn.add":
            return self._join("add", call.args[:2], call.args[2:], _limits(clip), _between(root, call))
        if name == "qnn.mul":
            return self._mul(root, clip, call)
        if name == "qnn.batch_matmul":
            return self._product(call)
        if name == "qnn.quantize":
            return self._function(root, clip, call) or self._quantize(root, clip, call)
        if name == "transpose":
            return self._image(call)
        if name == "sum":
            return self._total(root)
        if name == "take":
            return self._shuffle(call)
        if name.startswith("qnn."):
            raise LoweringError(f"{name}: no exact lowering for this use of it")
        return None

    def _under_clip(self, root):
        """(clip, the qnn call it limits), or (None, root)."""
        limited = ("qnn.requantize", "qnn.add", "qnn.mul", "qnn.quantize")
        if name_of(root) == "clip" and self._alone(root.args[0]) and name_of(root.args[0]) in limited:
            return root, root.args[0]
        return None, root

    def _alone(self, expr):
        return self.uses.get(expr) == 1

    def _accumulator(self, expr):
        """(conv or dense call, bias, absorbed calls) if ``expr`` is one, optionally + bias."""
        bias, absorbed = None, []
        if name_of(expr) == "nn.bias_add" and isinstance(expr.args[1], relay.Constant):
            absorbed.append(expr)
            bias = expr.args[1].data.numpy()
            expr = expr.args[0]
            if not self._alone(expr):
                return None
        if name_of(expr) not in ("qnn.conv2d", "qnn.dense"):
            return None
        if not isinstance(expr.args[1], relay.Constant):
            raise LoweringError(f"{name_of(expr)}: its weights are not constant")
        if name_of(expr) == "qnn.conv2d" and expr.attrs.data_layout != "NHWC":
            raise LoweringError(
                "qnn.conv2d in NCHW: stock int8 kernels are wrong there; convert it to NHWC first"
            )
        return expr, bias, (*absorbed, expr)

    def _layer(self, root, clip, call):
        if not self._alone(call.args[0]):
            return None
        found = self._accumulator(call.args[0])
        if found is None:
            return None
        conv, bias, absorbed = found
        if name_of(call) == "qnn.dequantize":
            scale, epilogue = value_of(call.args[1]), {"epilogue": "dequantize"}
        else:
            scale, epilogue = self._requantize_numbers(call)
            epilogue.update(epilogue="requantize", **_limits(clip))
        absorbed = (*absorbed, *_between(root, call))
        return self._emit_layer(conv, bias, scale, epilogue, absorbed)

    def _join(self, op, sides, numbers, limits, absorbed, expression=None):
        """A join: a residual add with the layer on one side, or any by itself. numbers: scale and zero
        point of the two sides and the output; expression: a function of the real number it makes."""
        numbers = [value_of(a) for a in numbers]
        residual = op == "add" and len({tuple(map(int, x.checked_type.shape)) for x in sides}) == 1
        chain = self._residual(sides, numbers, limits, absorbed, expression) if residual else None
        if chain is not None:
            return chain
        a_scale, a_zero, b_scale, b_zero, scale, zero = numbers

        def emit(a, b):
            return relay_op.join(
                op, a, b, float(a_scale), int(a_zero), float(b_scale), int(b_zero),
                float(scale), int(zero), **limits, function=expression,
            )  # fmt: skip

        return _Chain(absorbed, tuple(sides), emit)

    def _residual(self, sides, numbers, limits, absorbed, expression):
        for side in (0, 1):
            if not self._alone(sides[side]):
                continue
            inner_clip, inner = self._under_clip(sides[side])
            if name_of(inner) != "qnn.requantize" or not self._alone(inner.args[0]):
                continue
            found = self._accumulator(inner.args[0])
            if found is None or name_of(found[0]) != "qnn.conv2d":
                continue
            conv, bias, layers = found
            scale, own = self._requantize_numbers(inner)
            own.update(_limits(inner_clip))
            mine, other = (numbers[2 * side : 2 * side + 2], numbers[2 - 2 * side : 4 - 2 * side])
            if int(mine[1]) != own["out_zero_point"]:
                continue
            residual = Residual(
                own_scale=float(mine[0]),
                own_zero_point=own["out_zero_point"],
                own_lo=own["lo"],
                own_hi=own["hi"],
                scale=float(other[0]),
                zero_point=int(other[1]),
                own_first=side == 0,
                out_scale=float(numbers[4]),
            )
            epilogue = {
                "epilogue": "add",
                "out_zero_point": int(numbers[5]),
                "residual": residual,
                "function": expression,
                **limits,
            }
            absorbed = (*absorbed, *layers, inner, *_between(sides[side], inner), sides[side])
            return self._emit_layer(conv, bias, scale, epilogue, absorbed, sides[1 - side])
        return None

    def _function(self, root, clip, call):
        """A quantize of float operators on an int32 tensor, or on a join of two stored ones; else None."""
        found = Expression(self.uses).read(call.args[0])
        if found is None or any(value_of(a).size > 1 for a in call.args[1:]):
            return None
        expression, leaf, absorbed = found
        absorbed = (*absorbed, *_between(root, call))
        scale, zero = (value_of(a).item() for a in call.args[1:])
        limits = _limits(clip)
        if name_of(leaf) in JOINS:
            sides = [side.args[0] for side in leaf.args]
            scales = [number for side in (*leaf.args, call) for number in side.args[1:]]
            fused = None if expression == "x" else function.of_sum(expression)
            return self._join(JOINS[name_of(leaf)], sides, scales, limits, absorbed, fused)
        data, unit = leaf.args[0], value_of(leaf.args[1])
        unit = unit.reshape(()) if unit.size == 1 else unit
        channels = int(data.checked_type.shape[-1])
        fused = function.fuse(expression, unit, scale, limits["lo"] - zero, limits["hi"] - zero)
        numbers = {"lo": fused.lo + zero, "hi": fused.hi + zero, "function": fused.function}
        factor = fused.multiplier
        if fused.other is not None:
            factor = np.stack([np.broadcast_to(v, (channels,)) for v in (factor, fused.other)])
        layer = self._accumulator(data) if self._alone(data) else None
        if layer is not None:
            conv, bias, layers = layer
            epilogue = {"epilogue": "requantize", "out_zero_point": zero, **numbers}
            return self._emit_layer(conv, bias, factor, epilogue, (*absorbed, *layers))

        if (resize := resizes.read(data)) is not None:
            return _resized(resize, factor, {"zero_point": zero, **numbers}, absorbed)

        def emit(x):
            return relay_op.requantize(x, factor, 0, zero, **numbers)

        return _Chain(absorbed, (data,), emit)

    def _requantize_numbers(self, call):
        in_scale, in_zero, scale, zero = (value_of(a) for a in call.args[1:])
        if int(in_zero) != 0 and call.args[0].checked_type.dtype == "int32":
            raise LoweringError("qnn.requantize: an int32 input with a zero point")
        return multiplier(1, in_scale, scale), {"out_zero_point": int(zero)}

    def _emit_layer(self, conv, bias, factor, epilogue, absorbed, residual=None):
        weight = conv.args[1].data.numpy()
        zero_point = int(value_of(conv.args[2]))
        if int(value_of(conv.args[3])) != 0:
            raise LoweringError(f"{name_of(conv)}: weights with a zero point")
        data = conv.args[0]
        dense = name_of(conv) == "qnn.dense"
        shape = [int(d) for d in data.checked_type.shape]
        if dense:
            weight = np.ascontiguousarray(weight.T)[None, None]
            n, h, w, c = shape[0], 1, 1, shape[1]
            strides, padding, dilation, groups = (1, 1), (0, 0, 0, 0), (1, 1), 1
        else:
            a = conv.attrs
            if a.kernel_layout == "HWOI":
                weight = weight.transpose(0, 1, 3, 2)
            n, h, w, c = shape
            strides, dilation, groups = _ints(a.strides), _ints(a.dilation), int(a.groups)
            padding = _ints(a.padding)
        channels = weight.shape[-1]
        bias = np.zeros(channels, np.int32) if bias is None else bias
        bias = fold_zero_point(bias, weight, zero_point)
        factor = np.asarray(factor, np.float32)
        factor = np.ascontiguousarray(np.broadcast_to(factor, (*factor.shape[:-1], channels)))
        spec = ConvSpec(
            batch=n, height=h, width=w, in_channels=c, out_channels=channels,
            kernel=weight.shape[:2], strides=strides, padding=padding, dilation=dilation,
            groups=groups, data_max=self.bounds[data], zero_point=zero_point, far=is_far(factor),
            **epilogue,
        )  # fmt: skip
        index = len(self.found)
        self.names.append(conv.span.source_name.name if conv.span else "")
        self.found.append(Convolution(spec, weight, bias, factor))

        def emit(x, *rest):
            if dense:
                x = relay.reshape(x, (n, 1, 1, c))
            choice, packed = self.chosen[index]
            constants = [relay.const(array) for array in packed]
            y = relay_op.conv2d(x, spec, choice.kernel, constants, *rest)
            y = relay.Call(y.op, y.args, y.attrs, y.type_args, conv.span)  # its name
            return relay.reshape(y, (n, channels)) if dense else y

        tensors = (data,) if residual is None else (data, residual)
        return _Chain(absorbed, tensors, emit)

    def _product(self, call):
        """Of two stored tensors, by a kernel of its own; what is made of it is elementwise."""
        (n, rows, depth), (_, columns, _) = (map(int, a.checked_type.shape) for a in call.args[:2])
        if any(a.checked_type.dtype != "uint8" for a in call.args[:2]):
            raise LoweringError("qnn.batch_matmul: operands that are not uint8")
        product = Product(n, rows, depth, columns, *(int(value_of(a)) for a in call.args[2:4]))

        def emit(a, b):
            y = relay_op.product(a, b, product, self.isa)
            return relay.Call(y.op, y.args, y.attrs, y.type_args, call.span)  # its name

        return _Chain((), tuple(call.args[:2]), emit)

    # -- elementwise

    def _requantize(self, root, clip, call):
        factor, numbers = self._requantize_numbers(call)
        in_zero = int(value_of(call.args[2]))
        if (resize := resizes.read(call.args[0])) is not None:
            numbers = {"zero_point": numbers["out_zero_point"], **_limits(clip)}
            return _resized(resize, factor, numbers, _between(root, call))

        def emit(x):
            return relay_op.requantize(x, factor, in_zero, numbers["out_zero_point"], **_limits(clip))

        return _Chain(_between(root, call), (call.args[0],), emit)

    def _dequantize(self, call):
        scale, zero = (value_of(a) for a in call.args[1:])
        if (resize := resizes.read(call.args[0])) is not None:
            return _resized(resize, scale, {"dequantize": True}, ())
        return _Chain((), (call.args[0],), lambda x: relay_op.dequantize(x, scale, int(zero)))

    def _quantize(self, root, clip, call):
        scale, zero = (value_of(a) for a in call.args[1:])
        numbers = {"scale": float(scale), "zero_point": int(zero), **_limits(clip)}
        if (norm := norms.read(call.args[0])) is not None:  # what is between is read by nobody then

            def normalized(x):
                return relay_op.layer_normalized(x, norm.gain, norm.shift, epsilon=norm.epsilon, **numbers)

            return _Chain(_between(root, call), (norm.data,), normalized)
        return _Chain(_between(root, call), (call.args[0],), lambda x: relay_op.quantize(x, **numbers))

    def _image(self, call):
        """An input of the network that is quantized and then put into NHWC; None of another transpose."""
        quantized, axes = call.args[0], call.attrs.axes
        clip, made = self._under_clip(quantized)
        if name_of(made) != "qnn.quantize" or not self._alone(quantized) or axes is None:
            return None
        data = made.args[0]
        if not isinstance(data, relay.Var) or not elementwise.is_image(
            _ints(data.checked_type.shape), _ints(axes)
        ):
            return None
        scale, zero = (value_of(a) for a in made.args[1:])

        def emit(x):
            return relay_op.image(x, float(scale), int(zero), **_limits(clip))

        return _Chain((quantized, *_between(quantized, made)), (data,), emit)

    def _total(self, call):
        """The sum over a stored map, int32; None for another."""
        steps, zero, absorbed = call.args[0], np.zeros(()), [call.args[0]]
        if name_of(steps) == "subtract" and isinstance(steps.args[1], relay.Constant):
            zero, steps = value_of(steps.args[1]), steps.args[0]
            absorbed.append(steps)
        if name_of(steps) != "cast" or steps.attrs.dtype != "int32" or not all(map(self._alone, absorbed)):
            return None
        kind = steps.args[0].checked_type
        over_map = _ints(call.attrs.axis or ()) == (1, 2) and call.attrs.keepdims and not call.attrs.exclude
        if kind.dtype != "uint8" or len(kind.shape) != 4 or not over_map or zero.size != 1:
            return None
        return _Chain(tuple(absorbed), (steps.args[0],), lambda x: relay_op.total(x, int(zero.item())))

    def _shuffle(self, call):
        """A take of channels in the order of a channel shuffle."""
        data, indices = call.args
        kind = data.checked_type
        last = kind.dtype == "uint8" and int(call.attrs.axis) in (-1, len(kind.shape) - 1)
        if not last or not isinstance(indices, relay.Constant) or indices.data.numpy().ndim != 1:
            return None
        places = indices.data.numpy().tolist()
        groups = elementwise.shuffled_groups(places) if len(places) == int(kind.shape[-1]) else None
        if groups is None:
            return None
        return _Chain((), (data,), lambda x: relay_op.shuffle(x, groups))

    def _mul(self, root, clip, call):
        a_scale, a_zero, b_scale, b_zero, scale, zero = (value_of(a) for a in call.args[2:])

        def emit(a, b):
            return relay_op.mul(
                a, b, float(a_scale), int(a_zero), float(b_scale), int(b_zero),
                float(scale), int(zero), **_limits(clip),
            )  # fmt: skip

        return _Chain(_between(root, call), tuple(call.args[:2]), emit)


def _concatenates(expr):
    """Whether stored tensors are put one behind the other."""
    return name_of(expr) == "concatenate" and expr.checked_type.dtype == "uint8"


def _resized(resize: resizes.Resize, factor, numbers, absorbed):
    """A linear resize with what is made of its sums; those are read by nobody then, and vanish."""
    channels = int(resize.data.checked_type.shape[3])
    numbers = {"parts": resize.parts, "in_zero_point": resize.zero_point, **numbers}

    def emit(x):
        return relay_op.resize_linear(x, resize.rows, resize.columns, factor, channels, **numbers)

    return _Chain(absorbed, (resize.data,), emit)


def _inputs(expr):
    if isinstance(expr, relay.Call):
        return list(expr.args)
    if isinstance(expr, relay.Tuple):
        return list(expr.fields)
    return [expr.tuple_value] if isinstance(expr, relay.TupleGetItem) else []


def _between(root, call):
    """The call itself, if the chain's root is a clip on it."""
    return () if root.same_as(call) else (call,)


def _limits(clip):
    return {"lo": 0, "hi": 255} if clip is None else {
        "lo": int(clip.attrs.a_min), "hi": int(clip.attrs.a_max)
    }  # fmt: skip


def _ints(values):
    return tuple(int(v) for v in values)
