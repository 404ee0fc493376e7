"""Relax front end: a float Relax module -> `Graph`, for the pass and for modules that a user has.

What Relax's importers make of ONNX and of ``torch.export``, or what is written by hand. A rule of `RULES`
makes a node of `network.ops` of a call. A call without one stays float: by the meaning of the ONNX operator
that it is (`ONNX`), else by TVM itself (`float_op`). Nodes are called as the variables of the module are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import tvm_ffi

from ..errors import LoadError
from ..network import pieces
from ..network.builder import AFFINE, Builder, normalization, with_former
from ..network.expression import BINARY, UNARY
from ..network.graph import Graph
from ..network.layout import nhwc, to_nchw
from ..readers import geometry
from ..readers.onnx_macs import multiply_accumulates
from ..readers.onnx_op import OnnxOp, from_node
from ..readers.uncovered import here, told
from .as_onnx import ONNX, OPSET
from .calls import (
    DTYPES,
    STATIC,
    ends,
    ints,
    is_tensor,
    numbers_of,
    operator,
    permutation,
    plain,
    shape_of,
    slices_of,
)  # fmt: skip
from .float_op import RelaxOp
from .framework import relax, tvm


def from_relax(module, params: Mapping | None = None, name: str = "model") -> Graph:
    """A float Relax module (``tvm.IRModule``, NCHW) as a `Graph`: its function ``main``.

    params: {name: array} of parameters of ``main`` that are not bound yet, or what
    ``relax.frontend.detach_params`` returns: {"main": the arrays of the last parameters}. Raises LoadError
    for parameters without values, dynamic shapes, control flow, several functions, or a module that is
    quantized already.
    """
    if not isinstance(module, tvm.IRModule):
        raise LoadError(f"{name} is a {type(module).__name__}; give a Relax module (tvm.IRModule)")
    if "main" not in [str(var.name_hint) for var in module.get_global_vars()]:
        raise LoadError(f"{name}: the module has no function main, which is the network; name it so")
    if params:
        module = relax.transform.BindParams("main", _bound(module, params, name))(module)
    module = relax.transform.Normalize()(module)
    return with_former(lambda edition: _Walk(module, name, edition), _Walk.graph)


def _bound(module, params: Mapping, name: str) -> dict:
    """The values of parameters as TVM binds them: by variable's name."""
    variables = list(module["main"].params)
    if set(params) == {"main"} and not hasattr(params["main"], "shape"):
        arrays = list(params["main"])
        last = variables[len(variables) - len(arrays) :]
        params = {plain(var.name): array for var, array in zip(last, arrays, strict=True)}
    known = {plain(var.name): var for var in variables}
    if missing := [key for key in params if key not in known]:
        raise LoadError(f"{name}: main has no parameter {missing[0]}; it has {', '.join(sorted(known))}")
    made = {
        key: value if isinstance(value, tvm.runtime.Tensor) else tvm.runtime.tensor(np.asarray(value))
        for key, value in params.items()
    }
    for key, value in made.items():
        want = str(known[key].ty.dtype), shape_of(known[key].ty, key)
        if (given := (str(value.dtype), tuple(map(int, value.shape)))) != want:
            raise LoadError(
                f"{name}: the parameter {key} of main is {want[0]} {want[1]}, params has {given[0]} "
                f"{given[1]}"
            )
    return made


class _Walk:
    """One walk over the bindings of ``main``, in order; see `from_relax`."""

    def __init__(self, module, name: str, edition: int):
        self.module, self.name = module, name
        function = module["main"]
        _check(module, function, name)
        self.params = list(function.params)
        bindings = [binding for block in function.body.blocks for binding in block.bindings]
        self.tuples: dict[Any, list] = {}  # variable -> the fields of the tuple that it is
        self.same: dict[Any, Any] = {}  # variable -> the one that it stands for
        self.constants: dict[Any, np.ndarray] = {}
        fields: dict[tuple, Any] = {}
        for binding in bindings:
            self._alias(binding, fields)
        result = self.of(function.body.body)
        self.results = [self.of(r) for r in self.tuples.get(result, [result])]
        for r in self.results:
            if r in self.tuples or not is_tensor(r.ty):
                kind = type(r.ty).__name__.removesuffix("Type").lower()
                raise LoadError(
                    f"{name}: an output is no tensor, but a {kind}: return one tuple of tensors"
                )
        uses: dict[Any, int] = {}
        own = [b for b in bindings if b.var not in self.same and b.var not in self.tuples]
        self.values = {binding.var: binding.value for binding in own}
        read = [leaf for binding in own for leaf in self.leaves(binding.value)]
        for leaf in [*read, *self.results]:
            uses[leaf] = uses.get(leaf, 0) + 1
        self.builder = Builder(uses, _label, edition, self._aside)
        #: variable of a lower or an upper limit -> (what it limits, lower, upper)
        self.limits: dict[Any, tuple[Any, float, float]] = {}
        self._inputs(function)
        for binding in own:
            self._binding(binding.var, binding.value)
        _check_alone(module, name)

    def graph(self) -> Graph:
        if any(not self.builder.known(result) for result in self.results):
            raise LoadError(f"{self.name}: an output does not depend on any input")
        graph = self.builder.graph([self.builder.tensor[result] for result in self.results], self.name)
        functions = [
            str(c.args[0].name_hint) for c in self.calls.values() if operator(c) == "relax.call_tir"
        ]
        if not graph.compute_nodes and (layer := next(filter(LEGALIZED.match, functions), None)):
            raise LoadError(
                f"{self.name}: the module's layers are TIR functions ({layer}): quantize before LegalizeOps"
            )
        return graph

    def _alias(self, binding, fields):
        """What a binding adds to `same` and `tuples`."""
        var, value = binding.var, binding.value
        if not isinstance(binding, relax.VarBinding):
            raise LoadError(f"{self.name}: {plain(var.name)} is a match_cast; {STATIC}")
        if isinstance(value, relax.Var):
            self.same[var] = self.of(value)
        elif isinstance(value, relax.Tuple):
            self.tuples[var] = [self.of(field) for field in value.fields]
        elif isinstance(value, relax.TupleGetItem):
            source = self.of(value.tuple_value)
            if source in self.tuples:
                self.same[var] = self.tuples[source][value.index]
            elif (source, value.index) in fields:
                self.same[var] = fields[source, value.index]
            else:
                fields[source, value.index] = var
        if var in self.same and self.same[var] in self.tuples:
            self.tuples[var] = self.tuples[self.same.pop(var)]

    def _inputs(self, function):
        count = (function.attrs or {}).get("num_input")
        if count is not None and int(count) < len(self.params):
            names = [plain(var.name) for var in self.params[int(count) :]]
            raise LoadError(f"{self.name}: {_some(names)} of main have no values; {BIND}")
        for var in self.params:
            shape, dtype, what = shape_of(var.ty, var.name), str(var.ty.dtype), plain(var.name)
            if dtype not in ("float32", *DTYPES):
                raise LoadError(f"input {what} is {dtype}; give the module in float32")
            self.builder.input(var, what, nhwc(shape), dtype)

    def _binding(self, var, value):
        if isinstance(value, relax.TupleGetItem):
            self._field(var, value)
        elif isinstance(value, relax.Call):
            self._call(var, value)
        elif isinstance(value, tvm.ir.GenericConst):
            self.constants[var] = value.value.numpy()
        elif not isinstance(value, (relax.ShapeExpr, tvm.tirx.IntImm, tvm.tirx.FloatImm)):
            raise LoadError(f"{self.name}: control flow ({type(value).__name__}) cannot be quantized")

    def _call(self, var, call):
        op = operator(call)
        if not isinstance(call.op, tvm.ir.Op):
            raise LoadError(
                f"{self.name}: {plain(var.name)} is a call of {call.op}; inline it first: "
                "relax.transform.InlinePrivateFunctions()(module)"
            )
        if op in QUANTIZED:
            raise LoadError(
                f"{self.name}: the module is already quantized ({plain(var.name)} is {op}); give the "
                "float one"
            )
        if op in EFFECTS:
            raise LoadError(
                f"{self.name}: {plain(var.name)} is {op}, which a network cannot hold; take it out"
            )
        if not any(self.known(leaf) for leaf in self.leaves(call)) or not is_tensor(var.ty):
            return  # a constant, read where it is used; or a tuple, whose fields become nodes
        rule = RULES.get(op) if self._in_float32(var, call) else ANY_DTYPE.get(op)
        if rule is None or rule(self, var, call) is False:
            self.stays_float(var, call)

    def _field(self, var, item):
        source = self.of(item.tuple_value)
        call = self.calls.get(source)
        if call is None or not any(self.known(leaf) for leaf in self.leaves(call)):
            return
        rule = FIELDS.get(operator(call))
        if rule is None or rule(self, var, call, int(item.index)) is False:
            self.stays_float(var, call, int(item.index))

    @property
    def calls(self) -> Mapping:
        """Variable -> the call that makes it."""
        if "_calls" not in self.__dict__:
            self._calls = {
                b.var: b.value
                for block in self.module["main"].body.blocks
                for b in block.bindings
                if isinstance(b.value, relax.Call)
            }
        return self._calls

    # -- what the rules ask

    def of(self, expr):
        """The variable that one stands for; any other expression is itself."""
        return self.same.get(expr, expr) if isinstance(expr, relax.Var) else expr

    def leaves(self, expr) -> list:
        """The variables that an expression reads, tuples opened."""
        if isinstance(expr, relax.Call):
            return [leaf for argument in expr.args for leaf in self.leaves(argument)]
        if isinstance(expr, relax.Tuple):
            return [leaf for field in expr.fields for leaf in self.leaves(field)]
        if isinstance(expr, relax.TupleGetItem):
            return [self.of(expr.tuple_value)]
        if not isinstance(expr, relax.Var):
            return []
        expr = self.of(expr)
        return (
            [leaf for f in self.tuples[expr] for leaf in self.leaves(f)] if expr in self.tuples else [expr]
        )

    def fields(self, expr) -> list:
        """Those of an argument that is a tuple."""
        expr = self.of(expr)
        return self.tuples[expr] if expr in self.tuples else [self.of(field) for field in expr.fields]

    def known(self, expr) -> bool:
        """Whether it is a tensor, which depends on an input."""
        return isinstance(expr, relax.Var) and self.builder.known(self.of(expr))

    def tensor(self, expr) -> str:
        """The name of its node."""
        return self.builder.tensor[self.of(expr)]

    def constant(self, expr) -> np.ndarray | None:
        """The value of an expression that depends on no input, else None."""
        expr = self.of(expr)
        if isinstance(expr, tvm.ir.GenericConst):
            return expr.value.numpy()
        if not isinstance(expr, relax.Var) or self.known(expr):
            return None
        if expr not in self.constants and expr in self.calls:
            found = self._computed(expr, self.calls[expr])
            if found is None:
                return None
            self.constants[expr] = found
        return self.constants.get(expr)

    def _computed(self, var, call) -> np.ndarray | None:
        """A constant that a call makes of others, or of the shape of a tensor."""
        if operator(call) == "relax.shape_to_tensor" and (known := numbers_of(call.args[0].ty)) is not None:
            return np.asarray(known, np.int64)
        if not is_tensor(var.ty) or any(self.constant(leaf) is None for leaf in self.leaves(call)):
            return None
        if operator(call) == "relax.isnan":  # of every limit that comes from ONNX
            return np.isnan(np.asarray(self.constant(call.args[0])))
        found = self._onnx(var, call, None)
        handle = found[0] if found is not None else RelaxOp.of(self._resolved(call), self.module, [])
        return to_nchw(handle.evaluate())

    def parameter(self, expr) -> str | None:
        """The name of the parameter of ``main`` that an expression is, if it is one."""
        expr = self.of(expr)
        return plain(expr.name) if any(expr is p or expr.same_as(p) for p in self.params) else None

    def number(self, expr) -> float | None:
        """The value of one number, else None."""
        value = self.constant(expr)
        return float(value.reshape(())) if value is not None and value.size == 1 else None

    def one(self, var, call, op: str, attrs: Mapping, **more) -> str:
        """A node of the call's first argument."""
        return self.builder.one(var, op, self.of(call.args[0]), _out(var), attrs, **more)

    def size(self, expr) -> tuple[int, ...]:
        """The shape of a tensor, NCHW."""
        return shape_of(expr.ty, "a tensor")

    def _aside(self, var) -> None:
        """The float node of a variable that no operator made."""
        value = self.values[var]
        if isinstance(value, relax.TupleGetItem):
            self.stays_float(var, self.calls[self.of(value.tuple_value)], int(value.index))
        else:
            self.stays_float(var, value)

    def stays_float(self, var, call, index: int | None = None) -> None:
        """A node for a call that no rule takes, or for a field of one."""
        attrs, tensors = self.as_float(var, call, index)
        dtype = str(var.ty.dtype)
        if dtype not in ("float32", *DTYPES):
            raise LoadError(f"{self.name}: {plain(var.name)} is {dtype}; give the module in float32")
        inputs = [self.tensor(tensor) for tensor in tensors]
        self.builder.add(var, "float", inputs, _out(var), attrs, dtype=dtype)

    def as_float(self, var, call, index: int | None = None) -> tuple[dict, list]:
        """(the attributes of a call's float node, the tensors that it reads)."""
        found = self._onnx(var, call, index)
        covered = (operator(call) in RULES or operator(call) in FIELDS) and self.builder.edition > 0
        if found is not None:
            op, tensors = found
            shapes = [self.size(tensor) for tensor in tensors]
            op = told(op, shapes) if covered else op
            attrs = {"fn": op.evaluate, "handle": op, "macs": multiply_accumulates(op, shapes)}
        else:
            for leaf in self.leaves(call):  # what TVM computes of constants alone
                if not self.known(leaf) and self.constant(leaf) is None:
                    raise LoadError(
                        f"{self.name}: {plain(var.name)} reads {plain(leaf.name)}, which is no tensor"
                    )
            tensors = [leaf for leaf in dict.fromkeys(self.leaves(call)) if self.known(leaf)]
            own = RelaxOp.of(self._resolved(call), self.module, tensors, index)
            if covered:
                own = replace(own, uncovered=here([self.size(tensor) for tensor in tensors], call.attrs))
            attrs = {"fn": own.evaluate, "handle": own, "macs": 0 if own.op in NO_PRODUCTS else None}
        return attrs, tensors

    def _onnx(self, var, call, index: int | None) -> tuple[OnnxOp, list] | None:
        """(the ONNX operator that a call is, the tensors that it reads); None of a call that is none."""
        rule = ONNX.get(operator(call))
        found = None if rule is None else rule(self, call)
        if found is None:
            return None
        from onnx import helper

        op, operands, attributes = found
        names: list[str] = []
        constants: dict[str, np.ndarray] = {}
        tensors: list = []
        for i, operand in enumerate(operands):
            value = operand if isinstance(operand, np.ndarray) else self.constant(operand)
            if value is not None:
                names.append(f"c{i}")
                constants[names[-1]] = value
                continue
            tensor = self.of(operand)
            if tensor not in tensors:
                tensors.append(tensor)
            names.append(f"x{tensors.index(tensor)}")
        kinds = [var.ty] if index is None else list(call.ty.fields)
        outputs = [(str(kind.dtype), shape_of(kind, operator(call))) for kind in kinds]
        made = [f"y{i}" for i in range(len(outputs))]
        node = helper.make_node(op, names, made, plain(var.name), **attributes)
        handle, read = from_node(node, OPSET, constants, outputs, index or 0)
        return handle, [tensors[int(key[1:])] for key in read]

    def _resolved(self, call):
        """The call with its aliases and its computed constants as what they are."""

        def resolve(argument):
            argument = self.of(argument)
            if isinstance(argument, relax.Tuple) or argument in self.tuples:
                return relax.Tuple([resolve(field) for field in self.fields(argument)])
            if isinstance(argument, relax.Var) and not self.known(argument):
                value = self.constant(argument)
                return argument if value is None else relax.const(value, str(value.dtype))
            return argument

        arguments = [resolve(a) for a in call.args]
        return relax.Call(call.op, arguments, call.attrs, call.ty_args, ret_ty=call.ty)

    def _in_float32(self, var, call) -> bool:
        """Whether a call reads and makes float32 only."""
        kinds = [leaf.ty for leaf in self.leaves(call)] + [var.ty]
        return all(not is_tensor(kind) or str(kind.dtype) == "float32" for kind in kinds)


# -- the rules: (walk, variable, call); False where the call stays float


def _batch_norm(walk, var, call, index):
    arrays = [walk.constant(a) for a in call.args[1:5]]
    data, a = walk.of(call.args[0]), call.attrs
    if index != 0 or any(v is None for v in arrays) or not walk.known(data) or bool(a.training):
        return False
    gamma, beta, mean, variance = (v.astype(np.float64) for v in arrays)
    scale = (gamma if a.scale else 1.0) / np.sqrt(variance + a.epsilon)
    shift = (beta if a.center else 0.0) - mean * scale
    rank = len(walk.size(var))
    if int(a.axis) % rank != 1:
        return False
    if walk.builder.fold_affine(var, data, scale, shift):
        return True
    return walk.builder.channels(var, data, scale, shift)


def _dropout(walk, var, call, index):
    return index == 0 and _alias(walk, var, call)


def _split(walk, var, call, index):
    rank, data = len(walk.size(call.args[0])), walk.of(call.args[0])
    axis = int(call.attrs.axis) % rank
    if axis == walk.builder.batch_axis(data):
        return False
    at = sum(shape_of(kind, "split")[axis] for kind in call.ty.fields[:index])
    slices = {axis: slice(at, at + walk.size(var)[axis], 1)}
    return walk.builder.crop(var, data, slices, _out(var))


def _alias(walk, var, call):
    walk.builder.alias(var, walk.of(call.args[0]))
    return True


def _layout(walk, call, data: str, kernel: str):
    a = call.attrs
    if (str(a.data_layout), str(a.kernel_layout)) != (data, kernel):
        op = operator(call)
        raise LoadError(
            f"{walk.name}: a convolution has layout {a.data_layout}, {a.kernel_layout}; convert the module "
            f"first: relax.transform.ConvertLayout({{'{op}': ['{data}', '{kernel}']}})(module)"
        )


def _weight(walk, call) -> np.ndarray | None:
    """The weights of a convolution; None if they are computed. LoadError where they have no value."""
    weight = walk.constant(call.args[1])
    if weight is None and (name := walk.parameter(call.args[1])) is not None:
        raise LoadError(
            f"{walk.name}: {name} of main has no value, and is the weight of a convolution; {BIND}"
        )
    return weight


def _conv2d(walk, var, call):
    _layout(walk, call, "NCHW", "OIHW")
    weight = _weight(walk, call)
    if weight is None or not walk.known(call.args[0]):
        return False
    return walk.one(var, call, "conv2d", _windows(call), weight=_hwio(weight))


def _conv1d(walk, var, call):
    _layout(walk, call, "NCW", "OIW")
    weight = _weight(walk, call)
    if weight is None or not walk.known(call.args[0]):
        return False
    a, begin, end = call.attrs, *ends(call.attrs.padding, 1)
    attrs = dict(strides=(1, *ints(a.strides)), padding=(0, *begin, 0, *end),
                 dilation=(1, *ints(a.dilation)), groups=int(a.groups))  # fmt: skip

    def layer(value, data, shape):
        walk.builder.one(value, "conv2d", data, shape, attrs, weight=_hwio(weight[:, :, None]))

    return walk.builder.on_map(var, walk.of(call.args[0]), walk.size(var), layer)


def _hwio(weight: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(weight.astype(np.float32).transpose(2, 3, 1, 0))


def _windows(call) -> dict:
    a, begin, end = call.attrs, *ends(call.attrs.padding, 2)
    return dict(
        strides=ints(a.strides), padding=(*begin, *end), dilation=ints(a.dilation), groups=int(a.groups)
    )


def _conv2d_transpose(walk, var, call):
    _layout(walk, call, "NCHW", "IOHW")
    weight, a = _weight(walk, call), call.attrs
    begin, _ = ends(a.padding, 2)
    if weight is None or not walk.known(call.args[0]) or ints(a.dilation) != (1, 1) or min(begin) < 0:
        return False
    window = (ints(a.strides), begin, _out(var), int(a.groups))
    return walk.builder.conv2d_transpose(var, walk.of(call.args[0]), weight.astype(np.float32), *window)


def _matmul(walk, var, call):
    weight, data = walk.constant(call.args[1]), walk.of(call.args[0])
    if walk.known(data) and walk.known(call.args[1]):
        return walk.builder.matmul(var, data, walk.of(call.args[1]), _out(var))
    if weight is None or weight.ndim != 2 or not walk.known(data) or len(walk.size(data)) < 2:
        return False
    kernel = np.ascontiguousarray(weight.astype(np.float32).T).T[None, None]
    if len(walk.size(data)) == 2:
        return walk.one(var, call, "dense", {}, weight=kernel)
    attrs = dict(strides=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1)

    def layer(value, data, shape):
        walk.builder.one(value, "conv2d", data, shape, attrs, weight=kernel)

    return walk.builder.on_map(var, data, walk.size(var), layer, rows=True)


def _function(name: str) -> Callable:
    """An operator whose tensors are all functions of one tensor: part of an elementwise node."""

    def rule(walk, var, call):
        operands = [walk.of(a) if walk.known(a) else walk.number(a) for a in call.args]
        return walk.builder.function(var, name, operands, _out(var))

    return rule


def _two(name: str) -> Callable:
    """An operator of two tensors, or of a tensor and a constant."""

    def rule(walk, var, call):
        pair = [walk.of(a) if walk.known(a) else walk.constant(a) for a in call.args]
        return not any(operand is None for operand in pair) and walk.builder.two(var, name, pair, _out(var))

    return rule


def _chain(of: Callable) -> Callable:
    return lambda walk, var, call: walk.builder.chain(var, walk.of(call.args[0]), of(call.attrs), _out(var))


def _softplus(walk, var, call):
    if float(call.attrs.beta) != 1.0:
        return False
    return _chain(pieces.softplus)(walk, var, call)


def _leaky_relu(walk, var, call):
    alpha = float(call.attrs.alpha)
    return walk.builder.function(var, "leaky_relu", [walk.of(call.args[0])], _out(var), alpha)


def _layer_norm(walk, var, call):
    a, size = call.attrs, walk.size(var)
    axes = [int(axis) for axis in a.axes]
    scale, shift = map(walk.constant, call.args[1:])
    if len(axes) != 1 or not (a.scale and a.center):
        return False
    attrs = normalization(size, axes[0], float(a.epsilon), scale, shift)
    return walk.builder.layer_norm(var, walk.of(call.args[0]), axes[0], attrs, size)


def _prelu(walk, var, call):
    slope, shape = walk.constant(call.args[1]), _out(var)
    if slope is None or len(shape) not in (2, 4) or int(call.attrs.axis) % len(shape) != 1:
        return False
    slopes = tuple(map(float, np.broadcast_to(slope.ravel(), shape[-1:])))
    same = slopes[0] if len(set(slopes)) == 1 else slopes
    return walk.builder.function(var, "leaky_relu", [walk.of(call.args[0])], shape, same)


def _relu(walk, var, call):
    return _limit(walk, var, walk.of(call.args[0]), 0.0, inf)


def _limit(walk, var, data, lo: float, hi: float) -> None:
    """Limits; a lower and an upper one that are two calls are one clip."""
    if data in walk.limits and walk.builder.uses[data] == 1:
        before, least, most = walk.limits[data]
        if max(lo, least) <= min(hi, most):
            data, lo, hi = before, max(lo, least), min(hi, most)
    walk.limits[var] = (data, lo, hi)
    walk.builder.clip(var, data, lo, hi)


def _clip(walk, var, call):
    lo, hi = (float(a.value) for a in call.args[1:])
    big = float(np.finfo(np.float32).max)
    if lo > hi:
        return False
    return _limit(walk, var, walk.of(call.args[0]), -inf if lo <= -big else lo, inf if hi >= big else hi)


def _bound_by(name: str) -> Callable:
    """A maximum or a minimum: with a number a limit, which ONNX's Clip is read as; else a function."""

    def rule(walk, var, call):
        pair = [walk.of(a) for a in call.args]
        numbers = [None if walk.known(a) else walk.number(a) for a in pair]
        found = [n for n in numbers if n is not None]
        if len(found) != 1 or not any(walk.known(a) and walk.size(a) == walk.size(var) for a in pair):
            return _two(name)(walk, var, call)
        data = pair[1 - numbers.index(found[0])]
        return _limit(walk, var, data, *((found[0], inf) if name == "maximum" else (-inf, found[0])))

    return rule


def _concat(walk, var, call):
    fields = walk.fields(call.args[0])
    if call.attrs.axis is None or not all(walk.known(f) for f in fields):
        return False
    axis = int(call.attrs.axis) % len(walk.size(var))
    return walk.builder.concat(var, fields, axis, _out(var))


def _stay_nchw(call) -> bool:
    return str(call.attrs.layout) == "NCHW"


def _max_pool2d(walk, var, call):
    if not _stay_nchw(call):
        return False
    a = call.attrs
    attrs = dict(pool_size=ints(a.pool_size), strides=ints(a.strides), dilation=ints(a.dilation),
                 padding=_whole(walk, var, call))  # fmt: skip
    return walk.one(var, call, "max_pool2d", attrs)


def _avg_pool2d(walk, var, call):
    a, begin, end = call.attrs, *ends(call.attrs.padding, 2)
    padding = _whole(walk, var, call)
    if not _stay_nchw(call) or ints(a.dilation) != (1, 1) or padding != (*begin, *end):
        return False
    window = dict(pool_size=ints(a.pool_size), strides=ints(a.strides), padding=padding)
    data, counted = walk.of(call.args[0]), bool(a.count_include_pad)
    return walk.builder.average(var, data, _out(var), window, counted)


def _whole(walk, var, call) -> tuple[int, ...]:
    """The padding of a pool, grown at the end so that ceil mode's last windows are whole."""
    a, begin, end = call.attrs, *ends(call.attrs.padding, 2)
    size, counts = walk.size(call.args[0])[2:], walk.size(var)[2:]
    return tuple(
        geometry.whole_windows(
            size, ints(a.pool_size), ints(a.strides), ints(a.dilation), (*begin, *end), counts
        )
    )


def _adaptive_avg_pool2d(walk, var, call):
    if not _stay_nchw(call) or walk.size(var)[2:] != (1, 1):
        return False
    return walk.builder.whole_map(var, "avg_pool2d", walk.of(call.args[0]))


def _reduce(op: str) -> Callable:
    def rule(walk, var, call):
        axes, data = call.attrs.axis, walk.of(call.args[0])
        return axes is not None and walk.builder.reduce(var, op, data, ints(axes), _out(var))

    return rule


def _reshape(walk, var, call):
    return walk.builder.reshape(var, walk.of(call.args[0]), walk.size(var))


def _permute(walk, var, call):
    return walk.builder.move(var, walk.of(call.args[0]), permutation(walk, call), _out(var))


def _strided_slice(walk, var, call):
    slices = slices_of(walk, call)
    return slices is not None and walk.builder.crop(var, walk.of(call.args[0]), slices, _out(var))


def _pad(walk, var, call):
    a = call.attrs
    if str(a.pad_mode) != "constant":
        return _moved(walk, var, call)
    if float(a.pad_value) != 0:
        return False
    widths = ints(a.pad_width)
    pairs = list(zip(widths[::2], widths[1::2], strict=True))
    return walk.builder.pad(var, walk.of(call.args[0]), pairs, _out(var))


def _resize(walk, var, call):
    if not _stay_nchw(call):
        return False
    data = walk.of(call.args[0])
    resized = RelaxOp.of(walk._resolved(call), walk.module, [data]).evaluate
    linear = str(call.attrs.method) == "linear"
    mode = str(call.attrs.coordinate_transformation_mode) if linear else None
    if walk.builder.resize(var, data, _out(var), resized, mode):
        return True
    return str(call.attrs.method) == "nearest_neighbor" and _moved(walk, var, call)


def _moved(walk, var, call):
    """What moves numbers of its first argument, by the places of each axis."""
    data = walk.of(call.args[0])
    if not walk.known(data):
        return False
    own = RelaxOp.of(walk._resolved(call), walk.module, [data])
    return walk.builder.moved(var, data, _out(var), own.evaluate)


def _take(walk, var, call):
    indices, axis, data = walk.constant(call.args[1]), call.attrs.axis, walk.of(call.args[0])
    if indices is None or indices.ndim > 1 or axis is None or not walk.known(data):
        return False
    size = walk.size(data)
    axis = int(axis) % len(size)
    if indices.size and not 0 <= indices.min() <= indices.max() < size[axis]:
        return False
    places: list = [None] * len(size)
    places[axis] = indices.reshape(-1).tolist()
    if indices.ndim:
        return walk.builder.gather(var, data, places, _out(var))
    row = (var, "row")
    walk.builder.uses[row] = 1
    kept = nhwc(n if taken is None else 1 for n, taken in zip(size, places, strict=True))
    return walk.builder.gather(row, data, places, kept) and walk.builder.reshape(var, row, walk.size(var))


def _pixel_shuffle(walk, var, call):
    if len(walk.size(var)) != 4:
        return False
    attrs = dict(block=int(call.attrs.upscale_factor), mode="CRD")
    return walk.one(var, call, "depth_to_space", attrs)


def _call_tir(walk, var, call):
    """A TIR function, as the ONNX importer makes of Clip: it is what it is called if TVM's own function of
    that name, made anew for these arguments, is equal to it."""
    function, given = walk.module[call.args[0]], [walk.of(a) for a in walk.fields(call.args[1])]
    name = str(call.args[0].name_hint).rstrip("0123456789")
    if name not in TIR or len(call.args) > 2 or len(given) not in (1, 2):
        return False
    if len(given) == 1:  # the limit is in the function: what it makes of numbers beyond it
        own = RelaxOp.of(walk._resolved(call), walk.module, given)
        beyond = -inf if name == "maximum" else inf
        given.append(float(own.evaluate(np.full(nhwc(walk.size(given[0])), beyond, np.float32)).ravel()[0]))
    builder = relax.BlockBuilder()
    made = builder.call_te(TIR[name], *given)
    if not tvm_ffi.structural_equal(builder.get()[made.args[0]], function):
        return False
    return _bound_by(name)(walk, var, _Pair(given))


class _Pair:
    """Two operands, as a rule reads those of a call."""

    def __init__(self, operands):
        self.args = [relax.const(np.float32(a)) if isinstance(a, float) else a for a in operands]


#: name of a TIR function -> what TVM makes such of
TIR: dict[str, Callable] = {"maximum": tvm.topi.maximum, "minimum": tvm.topi.minimum}
#: what LegalizeOps makes of layers is called so
LEGALIZED = re.compile("(fused_)?(conv[12]d|matmul)")
SELU = {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805}
#: Relax operator -> its rule
RULES: dict[str, Callable[[_Walk, Any, Any], object]] = {
    "relax.nn.conv2d": _conv2d,
    "relax.nn.conv1d": _conv1d,
    "relax.nn.conv2d_transpose": _conv2d_transpose,
    "relax.matmul": _matmul,
    **{f"relax.{name}": _function(name) for name in UNARY},
    **{f"relax.{name}": _two(name) for name in {*BINARY, *AFFINE}},
    "relax.maximum": _bound_by("maximum"),
    "relax.minimum": _bound_by("minimum"),
    "relax.square": _chain(lambda a: [("multiply", "x", "x")]),
    "relax.nn.relu": _relu,
    "relax.clip": _clip,
    "relax.nn.silu": _chain(lambda a: [("sigmoid", "x"), ("multiply", "x", "#0")]),
    "relax.nn.gelu": _chain(lambda a: pieces.gelu({})),
    "relax.nn.gelu_tanh": _chain(lambda a: pieces.gelu({"approximate": "tanh"})),
    "relax.nn.selu": _chain(lambda a: pieces.selu(SELU)),
    "relax.nn.softplus": _softplus,
    "relax.nn.leakyrelu": _leaky_relu,
    "relax.nn.prelu": _prelu,
    "relax.nn.layer_norm": _layer_norm,
    "relax.concat": _concat,
    "relax.nn.max_pool2d": _max_pool2d,
    "relax.nn.avg_pool2d": _avg_pool2d,
    "relax.nn.adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "relax.mean": _reduce("reduce_mean"),
    "relax.max": _reduce("reduce_max"),
    **{f"relax.{name}": _reshape for name in ("reshape", "squeeze", "expand_dims", "flatten")},
    "relax.nn.batch_flatten": _reshape,
    "relax.permute_dims": _permute,
    "relax.strided_slice": _strided_slice,
    "relax.nn.pad": _pad,
    "relax.take": _take,
    **{f"relax.{name}": _moved for name in ("tile", "repeat", "flip", "broadcast_to")},
    "relax.image.resize2d": _resize,
    "relax.nn.pixel_shuffle": _pixel_shuffle,
    "relax.wrap_param": _alias,
    "relax.astype": _alias,  # of float32 to itself
    "relax.split": _alias,  # into one part, which is no tuple
    "relax.call_tir": _call_tir,
}
#: the rules of operators that move numbers of any type
ANY_DTYPE: dict[str, Callable[[_Walk, Any, Any], object]] = {}
#: Relax operator that makes a tuple -> the rule of a field: (walk, variable, call, field)
FIELDS: dict[str, Callable[[_Walk, Any, Any, int], object]] = {
    "relax.nn.batch_norm": _batch_norm,
    "relax.nn.dropout": _dropout,
    "relax.split": _split,
}


#: of those that TVM runs, the ones that multiply nothing
NO_PRODUCTS = {
    *(f"nn.{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg") for n in (1, 2, 3)),
    "image.resize2d", "image.resize3d", "nn.batch_norm", "nn.group_norm", "nn.instance_norm", "nn.pad",
    "nn.rms_norm", "argsort", "bucketize", "cumsum", "cumprod", "flip", "floor_divide", "floor_mod",
    "gather_elements", "gather_nd", "median", "mod", "not_equal", "one_hot", "repeat", "round", "rsqrt",
    "scatter_elements", "scatter_nd", "sign", "sort", "stack", "std", "tile", "topk", "tril", "triu",
    "trunc", "unique", "variance", "zeros_like", "ones_like", "full_like", "square",
}  # fmt: skip
#: what a float module has not
QUANTIZED = ("relax.quantize", "relax.dequantize")
#: what does more than compute
EFFECTS = (
    "relax.print", "relax.assert_op", "relax.call_inplace_packed", "relax.call_tir_inplace",
    "relax.invoke_closure", "relax.call_py_func",
)  # fmt: skip


# -- the module


BIND = "bind them first: relax.transform.BindParams('main', params)(module), or give params="


def _check(module, function, name: str) -> None:
    """LoadError for what a graph cannot say."""
    composites = [f for _, f in module.functions_items() if (f.attrs or {}).get("easyquant.spec")]
    if composites:
        raise LoadError(f"{name}: the module is already quantized; give the float one")
    if not isinstance(function, relax.Function):
        raise LoadError(f"{name}: main is no Relax function, but {type(function).__name__}")
    if not isinstance(function.body, relax.SeqExpr):
        raise LoadError(f"{name}: main has no bindings; relax.transform.Normalize()(module) makes them")


def _check_alone(module, name: str) -> None:
    """LoadError for functions beside ``main`` that nothing of it calls."""
    others = [
        str(var.name_hint)
        for var, function in module.functions_items()
        if isinstance(function, relax.Function) and "global_symbol" in (function.attrs or {})
    ]
    if len(others) > 1:
        others = sorted(set(others) - {"main"})
        raise LoadError(
            f"{name}: the module has functions beside main, which would be lost: {_some(others)}; give a "
            "module with one function, main, for each"
        )


def _some(names: Sequence[str]) -> str:
    """A few of many names."""
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


def _label(value) -> str:
    """The name of a variable in the module; nothing for what the reader made itself."""
    return plain(value.name) if isinstance(value, relax.Var) else ""


def _out(var) -> tuple[int, ...]:
    """The shape of a variable, NHWC."""
    return nhwc(shape_of(var.ty, var.name))


__all__ = ["from_relax"]
