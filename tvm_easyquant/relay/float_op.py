"""Relay operators that stay float: run alone, put back into a module, written as ONNX, counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ..network.layout import to_nchw, to_nhwc
from .framework import NO_CSE, no_tophub, relay, tvm
from .meaning.attributes import NoMeaning
from .meaning.rules import compute

_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class RelayOp:
    """What a float node keeps of its Relay call, enough to run it or to put it back.

    tensors: the non-constant arguments in the order of the node's inputs; index: of the tuple field
    the node takes, or None; uncovered: what about it is not covered, where the operator is.
    """

    op: str
    call: Any  # relay.Call
    tensors: tuple
    index: int | None = None
    uncovered: str = ""

    def __str__(self):
        """The operator with its attributes and constants, as `Graph.fingerprint` sees it."""
        attrs = tvm.ir.save_json(self.call.attrs) if self.call.attrs is not None else ""
        constants = [
            a.data.numpy().tobytes().hex() for a in self.call.args if isinstance(a, relay.Constant)
        ]
        return repr((self.op, self.index, attrs, constants))

    def rebuild(self, tensors: Sequence) -> object:
        """The call on other arguments: a Relay expression."""
        new = dict(zip(self.tensors, tensors, strict=True))

        def swap(arg):
            if isinstance(arg, relay.Tuple):
                return relay.Tuple([swap(field) for field in arg.fields])
            return new.get(arg, arg)

        call = self.call
        built = relay.Call(call.op, [swap(a) for a in call.args], call.attrs, call.type_args)
        return built if self.index is None else relay.TupleGetItem(built, self.index)

    def to_onnx(self, emit, x: Sequence[str], output: str) -> str | None:
        """Emit the call from the tensors ``x`` to ``output``; None if it has no translation.

        emit.add(op, inputs, output, **attributes) and emit.constant(name, array) write into the model.
        """
        call, names = self.call, dict(zip(self.tensors, x, strict=True))
        rule = ONNX.get(self.op)
        if self.index is not None or rule is None:
            return None

        def value(arg, i):
            if arg in names:
                return names[arg]
            if isinstance(arg, relay.Constant):
                return emit.constant(f"{output}_{i}", arg.data.numpy())
            return None

        first = call.args[0] if len(call.args) else None
        fields = first.fields if isinstance(first, relay.Tuple) else call.args
        inputs = [value(arg, i) for i, arg in enumerate(fields)]
        return None if None in inputs else rule(_Site(emit, call, call.attrs, inputs, output))

    def evaluate(self, *arrays: np.ndarray) -> np.ndarray:
        """Run the call on NHWC arrays: by its numpy meaning; what has none through TVM, compiled once.
        There threads wait for each other: an executor keeps its inputs and outputs."""
        given = dict(zip(self.tensors, map(to_nchw, arrays), strict=True))
        try:
            made = compute(self.call, [_array(arg, given) for arg in self.call.args])
        except NoMeaning:
            with _ONE_AT_A_TIME:
                return self._by_tvm(*arrays)
        return to_nhwc(made if self.index is None else made[self.index])

    def _by_tvm(self, *arrays):
        if "executor" not in self.__dict__:
            arguments = [
                relay.var(f"x{i}", shape=to_nchw(a).shape, dtype=str(a.dtype)) for i, a in enumerate(arrays)
            ]
            module = tvm.IRModule.from_expr(relay.Function(arguments, self.rebuild(arguments)))
            with no_tophub(), tvm.transform.PassContext(opt_level=2, config=NO_CSE):
                library = relay.build(module, "llvm")
            from tvm.contrib import graph_executor

            executor = graph_executor.GraphModule(library["default"](tvm.cpu()))
            object.__setattr__(self, "executor", executor)
        self.__dict__["executor"].run(**{f"x{i}": to_nchw(a) for i, a in enumerate(arrays)})
        return to_nhwc(self.__dict__["executor"].get_output(0).numpy())


def _array(arg, given):
    """An argument as an array, or as a list of them."""
    if isinstance(arg, relay.Tuple):
        return [_array(field, given) for field in arg.fields]
    if arg in given:
        return given[arg]
    if isinstance(arg, relay.Constant):
        return arg.data.numpy()
    raise NoMeaning("an argument is computed from constants")


# -- multiply-accumulates


def multiply_accumulates(call) -> int | None:
    """Of one run of a call, by its shapes; 0 of what moves, compares, sums or scales; None if unknown."""
    op = call.op.name
    if op in MACS:
        shapes = [expr.checked_type.shape for expr in (call, *call.args)]
        static = all(isinstance(d, tvm.tir.IntImm) for shape in shapes for d in shape)
        return MACS[op](call) if static else None
    if op in NO_PRODUCTS:
        return 0
    pattern = tvm.ir.Op.get(op).get_attr("TOpPattern")
    return 0 if pattern is not None and pattern <= REDUCTION and op != "einsum" else None


def _dims(expr) -> list[int]:
    return [int(d) for d in expr.checked_type.shape]


def _convolution(weight: int = 1) -> Callable[[Any], int | None]:
    """The rule of a convolution: its argument ``weight``, once at every position of the output."""

    def rule(call):
        return _everywhere(call, call, call.args[weight])

    return rule


def _transposed(call):
    """Every weight once at every position of the input."""
    return _everywhere(call, call.args[0], call.args[1])


def _everywhere(call, positions, weight):
    layout = str(call.attrs.data_layout)
    if not layout.isupper():  # channels in blocks
        return None
    return prod(d for d, axis in zip(_dims(positions), layout, strict=True) if axis != "C") * prod(
        _dims(weight)
    )


def _product(call):
    """A product of matrices: the output, times the depth of the first."""
    return prod(_dims(call)) * _dims(call.args[0])[-2 if getattr(call.attrs, "transpose_a", False) else -1]


#: Relay operator -> its multiply-accumulates
MACS: dict[str, Callable[[Any], int | None]] = {
    **dict.fromkeys(("nn.conv1d", "nn.conv2d", "nn.conv3d"), _convolution()),
    "nn.deformable_conv2d": _convolution(weight=2),
    **dict.fromkeys(("nn.conv1d_transpose", "nn.conv2d_transpose", "nn.conv3d_transpose"), _transposed),
    **dict.fromkeys(("nn.dense", "nn.matmul", "nn.batch_matmul"), _product),
}
#: TVM's pattern of reductions; those of elementwise, broadcast and injective operators are less
REDUCTION = 3
#: operators of other patterns without products to sum
NO_PRODUCTS = {
    *(f"nn.{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for n in (1, 2, 3)),
    "nn.global_max_pool2d", "nn.global_avg_pool2d", "nn.softmax", "nn.fast_softmax", "nn.log_softmax",
    "nn.batch_norm", "nn.group_norm", "nn.instance_norm", "nn.layer_norm", "nn.l2_normalize", "nn.lrn",
    "nn.dropout", "hardswish", "image.dilation2d", "one_hot", "arange", "shape_of", "argsort", "sort",
    "topk", "unique", "searchsorted", "cumsum", "cumprod", "argwhere", "sliding_window",
    "scatter_elements", "scatter_nd", "sparse_to_dense", "vision.roi_align", "vision.roi_pool",
    "vision.non_max_suppression", "vision.get_valid_counts", "vision.all_class_non_max_suppression",
    "vision.multibox_prior", "vision.multibox_transform_loc", "vision.proposal",
    "vision.regular_non_max_suppression",
}  # fmt: skip


# -- as ONNX


class _Site(NamedTuple):
    """A call and where it is to be written."""

    emit: Any
    call: Any
    attrs: Any
    inputs: list[str]
    output: str

    def add(self, op: str, inputs: Sequence[str], **attributes) -> str:
        return self.emit.add(op, inputs, self.output, **attributes)

    def constant(self, what: str, array) -> str:
        return self.emit.constant(f"{self.output}_{what}", array)

    @property
    def shape(self) -> list[int]:
        return [int(d) for d in self.call.checked_type.shape]

    @property
    def rank(self) -> int:
        """Of the first argument."""
        return len(self.call.args[0].checked_type.shape)


def _plain(op: str) -> Callable[[_Site], str | None]:
    """The rule of an operator without attributes."""
    return lambda site: site.add(op, site.inputs)


def _pool(op: str) -> Callable[[_Site], str | None]:
    return lambda site: site.add(op, site.inputs) if site.attrs.layout == "NCHW" else None


def _softmax(op: str) -> Callable[[_Site], str | None]:
    return lambda site: site.add(op, site.inputs, axis=int(site.attrs.axis))


def _transpose(site):
    axes = site.attrs.axes
    perm = [int(i) for i in axes] if axes is not None else list(range(len(site.shape)))[::-1]
    return site.add("Transpose", site.inputs, perm=perm)


def _reshape(site):
    target = site.constant("shape", np.asarray(site.shape, np.int64))
    return site.add("Reshape", [site.inputs[0], target])


def _concatenate(site):
    return site.add("Concat", site.inputs, axis=int(site.attrs.axis))


def _axes(site) -> list[int] | None:
    """The axes of a reduction; None if they are those that it leaves."""
    a = site.attrs
    if a.exclude:
        return None
    return [int(i) for i in a.axis] if a.axis is not None else list(range(site.rank))


def _reduce(op: str) -> Callable[[_Site], str | None]:
    def rule(site):
        axes = _axes(site)
        if axes is None:
            return None
        return site.add(op, site.inputs, axes=axes, keepdims=int(site.attrs.keepdims))

    return rule


def _sum(site):  # the others take axes as an attribute in this opset
    axes = _axes(site)
    if axes is None:
        return None
    wanted = site.constant("axes", np.asarray(axes, np.int64))
    return site.add("ReduceSum", [*site.inputs, wanted], keepdims=int(site.attrs.keepdims))


def _leaky_relu(site):
    return site.add("LeakyRelu", site.inputs, alpha=float(site.attrs.alpha))


def _prelu(site):
    if int(site.attrs.axis) != 1:
        return None
    slope = site.call.args[1].data.numpy().reshape(-1, *[1] * (len(site.shape) - 2))
    return site.add("PRelu", [site.inputs[0], site.constant("slope", slope)])


def _batch_matmul(site):
    inputs = list(site.inputs)
    for i, flag in enumerate((site.attrs.transpose_a, site.attrs.transpose_b)):
        if flag:
            inputs[i] = site.emit.add("Transpose", [inputs[i]], f"{site.output}_t{i}", perm=[0, 2, 1])
    return site.add("MatMul", inputs)


def _dense(site):
    return site.add("Gemm", site.inputs, transB=1)


#: Relay operator -> its rule, for those that have a translation
ONNX: dict[str, Callable[[_Site], str | None]] = {
    **{op: _plain(onnx) for op, onnx in {
        "add": "Add", "subtract": "Sub", "multiply": "Mul", "divide": "Div", "maximum": "Max",
        "minimum": "Min", "power": "Pow", "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "log": "Log",
        "sqrt": "Sqrt", "abs": "Abs", "negative": "Neg", "erf": "Erf", "floor": "Floor", "ceil": "Ceil",
        "nn.relu": "Relu", "nn.batch_flatten": "Flatten", "copy": "Identity",
    }.items()},
    "nn.global_avg_pool2d": _pool("GlobalAveragePool"),
    "nn.global_max_pool2d": _pool("GlobalMaxPool"),
    "nn.softmax": _softmax("Softmax"),
    "nn.log_softmax": _softmax("LogSoftmax"),
    "transpose": _transpose,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "concatenate": _concatenate,
    "mean": _reduce("ReduceMean"),
    "max": _reduce("ReduceMax"),
    "min": _reduce("ReduceMin"),
    "sum": _sum,
    "nn.leaky_relu": _leaky_relu,
    "nn.prelu": _prelu,
    "nn.batch_matmul": _batch_matmul,
    "nn.dense": _dense,
}  # fmt: skip
