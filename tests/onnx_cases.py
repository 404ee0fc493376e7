"""ONNX's own node tests as they come with the installed onnx: of one node each, with its inputs and outputs."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.backend.test.loader import load_model_tests

from tvm_easyquant.readers.onnx_op import plain

T = TensorProto
#: what a float node may hold; float8, int4, text and sequences are left out
TYPES = {T.FLOAT, T.FLOAT16, T.BFLOAT16, T.DOUBLE, T.BOOL, T.INT8, T.INT16, T.INT32, T.INT64,
         T.UINT8, T.UINT16, T.UINT32, T.UINT64}  # fmt: skip
#: half a step of these types in the expected numbers is not our mistake
COARSE = {T.FLOAT16: 2**-10, T.BFLOAT16: 2**-7}


class Case(NamedTuple):
    """inputs: name -> array; outputs: name -> (array, type)."""

    name: str
    model: Any
    node: Any
    opset: int
    inputs: dict
    outputs: dict


def _data(case, graph) -> tuple[list, list]:
    """Inputs and outputs as arrays: from onnx 1.19 or so on they come with the case, before in files beside it."""
    if case.data_sets:
        return tuple(
            [numpy_helper.to_array(x) if isinstance(x, TensorProto) else np.asarray(x) for x in of]
            for of in case.data_sets[0]
        )
    folder = Path(case.model_dir) / "test_data_set_0"

    def stored(kind, place, declared):
        tensor = TensorProto.FromString((folder / f"{kind}_{place}.pb").read_bytes())
        if declared.type.tensor_type.elem_type == T.BFLOAT16:  # they store its bits as uint16
            tensor.data_type = T.BFLOAT16
        return numpy_helper.to_array(tensor)

    sides = (("input", graph.input), ("output", graph.output))
    return tuple([stored(kind, i, v) for i, v in enumerate(of)] for kind, of in sides)


@cache
def node_cases() -> list[Case]:
    """Those of one node of ai.onnx that holds tensors of `TYPES` only; ``_expanded`` ones are left out."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer ones compute their cases here
        every = load_model_tests(kind="node")
    for case in every:
        if "_expanded" in case.name:
            continue
        model = case.model or onnx.load(Path(case.model_dir) / "model.onnx")
        graph = model.graph
        if len(graph.node) != 1 or graph.node[0].domain:
            continue
        values = [*graph.input, *graph.output]
        if not all(v.type.tensor_type.elem_type in TYPES for v in values):
            continue
        inputs, outputs = _data(case, graph)
        feed = {v.name: x for v, x in zip(graph.input, inputs, strict=True)}
        wanted = {
            v.name: (x, v.type.tensor_type.elem_type) for v, x in zip(graph.output, outputs, strict=True)
        }
        opset = next(o.version for o in model.opset_import if not o.domain)
        found.append(Case(case.name, model, graph.node[0], opset, feed, wanted))
    return found


def differs(made: np.ndarray, want: np.ndarray, kind: int, rtol=1e-3, atol=1e-5) -> bool:
    expected = plain(want)
    if expected.dtype.kind != "f":
        return not np.array_equal(made, expected)
    return not np.allclose(plain(made), expected, max(rtol, COARSE.get(kind, 0)), atol, equal_nan=True)
