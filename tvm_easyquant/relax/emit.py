"""What a float node's handle is in a Relax module: its rule, written over `RelaxTensors`, or its call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import GraphError
from ..readers.onnx_op import NotConstant, OnnxOp
from .float_op import RelaxOp
from .tensors import RelaxTensors, Tensor


def emit(tensors: RelaxTensors, handle: Any, inputs: Sequence[Tensor], node: str) -> Tensor:
    """The handle on its node's inputs, in NCHW.

    Raises GraphError, which names the node, for an ONNX operator without a rule of ours: the relay host
    takes those from TVM's importer, this one does not yet.
    """
    if isinstance(handle, RelaxOp):
        return handle.emit(tensors.builder, inputs)
    if not isinstance(handle, OnnxOp):
        raise GraphError(
            f"node {node}: {handle.op} was read from Relay, which the relax host does not know; give it "
            "the ONNX model"
        )
    try:
        return handle.emit(tensors, inputs)
    except NotConstant as error:
        raise GraphError(
            f"node {node}: the relax host has no {handle.op} of this kind yet ({error}); cut the network "
            "there with outputs= (--outputs), or compute it outside"
        ) from None
