"""What a float node's handle is in a Relay module.

A call that was read from Relay is put back. An ONNX operator is written by its own rule over `RELAY`; one
without a rule is taken from TVM's importer, after it gave what the operator means.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from topi_ext.function import REAL

from ..errors import GraphError, last_line
from ..network.layout import to_nchw, to_nhwc
from ..readers.onnx_op import NotConstant, OnnxOp
from ..readers.self_check import same
from .build import Executor
from .framework import NO_CSE, quiet, relay, tvm
from .tensors import RELAY, Tensor

#: operations that TVM may fuse, those it computes twice counted twice
TOGETHER = 32
#: operations before a function of `REAL`, whose kernel writes them out some fifty times
BEFORE = 4


def emit(
    handle: Any,
    tensors: Sequence[Tensor],
    node: str,
    values: Callable[[], Sequence[np.ndarray]] | None = None,
) -> object:
    """The Relay expression of a handle on its node's inputs, in NCHW.

    values: arrays (NCHW) of these inputs, on which what TVM's importer makes is compared; they are asked
    for where they are needed; without it, random numbers. Raises GraphError, which names the node, if Relay
    has nothing that means the same.
    """
    expressions = [x.expr for x in tensors]
    if not isinstance(handle, OnnxOp):
        return handle.rebuild(expressions)
    inputs = [relay.var(f"x{i}", shape=x.shape, dtype=str(x.dtype)) for i, x in enumerate(tensors)]
    try:
        made = handle.emit(RELAY, [replace(x, expr=v) for x, v in zip(tensors, inputs, strict=True)])
        return relay.bind(_apart(made.expr), dict(zip(inputs, expressions, strict=True)))
    except NotConstant:
        pass
    arrays = [_random(x) for x in tensors] if values is None else values()
    try:
        function = accepted(handle, arrays)
    except Different as error:
        raise GraphError(
            f"node {node}: {handle.op} cannot be built: {error}; cut the network there with outputs= "
            "(--outputs), or compute it outside"
        ) from None
    which = _inputs(handle).values()
    return relay.bind(
        function.body, {p: expressions[i] for p, i in zip(function.params, which, strict=True)}
    )


def _apart(expr):
    """The expression in pieces of at most `TOGETHER` operations, counted as TVM fuses them: what is read
    twice is computed twice, so that a chain of such would compile for ever."""
    order: list = []
    relay.analysis.post_order_visit(expr, order.append)
    made: dict = {}
    count: dict = {}
    for old in order:
        if isinstance(old, relay.Call):
            if old.op.name in REAL and count[old.args[0]] > BEFORE:
                made[old.args[0]], count[old.args[0]] = relay.annotation.stop_fusion(made[old.args[0]]), 1
            new = relay.Call(old.op, [made[a] for a in old.args], old.attrs, old.type_args, old.span)
            size = 1 + sum(count[a] for a in old.args)
            if size > TOGETHER:
                new, size = relay.annotation.stop_fusion(new), 1
        elif isinstance(old, relay.Tuple):
            new, size = relay.Tuple([made[f] for f in old.fields]), sum(count[f] for f in old.fields)
        elif isinstance(old, relay.TupleGetItem):
            new, size = relay.TupleGetItem(made[old.tuple_value], old.index), count[old.tuple_value]
        else:
            new, size = old, 0
        made[old], count[old] = new, size
    return made[expr]


class Different(Exception):
    """What TVM's importer makes of an operator is not what it means; the message says why."""


def accepted(handle: OnnxOp, arrays: Sequence[np.ndarray]) -> Any:
    """The Relay function that TVM's importer makes of the operator; it was run on the arrays (NCHW) and
    gave what the operator means. Raises Different."""
    kinds = [(a.dtype, a.shape) for a in arrays]
    try:
        want = to_nchw(handle.evaluate(*map(to_nhwc, arrays)))
    except Exception as error:  # noqa: BLE001  # what onnx.reference raises
        raise Different(f"onnx.reference cannot run it ({last_line(error)})") from None
    try:
        with _silent():
            module, _ = relay.frontend.from_onnx(handle.model(kinds), freeze_params=True)
            passes = [relay.transform.InferType(), relay.transform.DynamicToStatic()]
            with tvm.transform.PassContext(opt_level=2):
                module = tvm.transform.Sequential([*passes, relay.transform.InferType()])(module)
        function = module["main"]
        wanted = relay.TensorType(handle.shapes[handle.index], handle.dtypes[handle.index])
        if not tvm.ir.structural_equal(function.ret_type, wanted):
            raise Different(f"TVM's importer makes {_kind(function.ret_type)} of it, not {_kind(wanted)}")
        with _silent(), quiet(), tvm.transform.PassContext(opt_level=2, config=NO_CSE):
            executor = Executor(relay.build(module, "llvm"))
        names = [p.name_hint for p in function.params]
        feed = {name: arrays[i] for name, i in zip(names, _inputs(handle).values(), strict=True)}
        (made,) = executor({name: a for name, a in feed.items() if name in executor.inputs})
    except Different:
        raise
    except Exception as error:  # noqa: BLE001  # the importer and the compiler raise many unrelated types
        raise Different(f"TVM's importer fails ({last_line(error)})") from None
    if not same(made, want):
        raise Different("what TVM's importer makes of it computes other numbers")
    return function


def _inputs(handle: OnnxOp) -> dict[str, int]:
    """The names of the inputs of `OnnxOp.model`, in order -> which of the node's inputs each is."""
    return {handle.node.input[place]: which for place, which in handle.tensors.items()}


def _random(x: Tensor) -> np.ndarray:
    rng = np.random.default_rng(0)
    if x.dtype.kind == "f":
        return rng.standard_normal(x.shape).astype(x.dtype)
    return rng.integers(0, 2, x.shape).astype(x.dtype)


def _kind(kind) -> str:
    if not isinstance(kind, relay.TensorType):
        return "several tensors"
    return f"{kind.dtype} {tuple(map(str, kind.shape))}".replace("'", "")


@contextlib.contextmanager
def _silent():
    """Without the importer's warnings and the type checker's pages: an error says it in a line."""
    from tvm.ir import diagnostics

    diagnostics.override_renderer(lambda context: None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        diagnostics.override_renderer(None)
