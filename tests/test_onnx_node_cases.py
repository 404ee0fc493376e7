"""ONNX's own node tests through the whole reader: right, or refused by name; nothing is silently wrong.

Every case of the operators that a network of images may hold whose first input is float32; its other inputs are
bound as constants.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import numpy_helper
from onnx_cases import differs, node_cases
from onnx_operators import LISTED

from tvm_easyquant.errors import EasyQuantError
from tvm_easyquant.readers.onnx_float import load
from tvm_easyquant.readers.onnx_op import plain

VERSION = tuple(map(int, onnx.__version__.split(".")[:2]))
#: cases that are refused -> why, as the message says it
REFUSED = {
    "test_cast_FLOAT_to_BFLOAT16": "input holds NaN",
    "test_cast_FLOAT_to_FLOAT16": "input holds NaN",
    "test_cast_FLOAT_to_DOUBLE": "input holds NaN",
    "test_cast_BFLOAT16_to_FLOAT": "input holds NaN",
    "test_training_dropout": "node Dropout_0 .* makes random numbers",
    "test_training_dropout_default": "node Dropout_0 .* makes random numbers",
    "test_training_dropout_default_mask": "node Dropout_0 .* makes random numbers",
    "test_training_dropout_mask": "node Dropout_0 .* makes random numbers",
}
#: what onnx itself had wrong -> the version that mended it
MENDED = {"test_averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_True": (1, 17)}
#: operator -> (right, refused, not applicable) of onnx 1.18
TABLE = {
    "Abs": (1, 0, 0), "Add": (2, 0, 1), "ArgMax": (16, 0, 0), "AveragePool": (20, 0, 0),
    "BatchNormalization": (4, 0, 0), "Cast": (2, 1, 5), "Ceil": (2, 0, 0), "Celu": (1, 0, 0),
    "CenterCropPad": (6, 0, 0), "Clip": (9, 0, 3), "Col2Im": (5, 0, 0), "Concat": (12, 0, 0),
    "Conv": (6, 0, 0), "ConvTranspose": (11, 0, 0), "DepthToSpace": (2, 0, 0), "Div": (3, 0, 1),
    "Dropout": (8, 4, 0), "Einsum": (0, 0, 5), "Elu": (3, 0, 0), "Erf": (1, 0, 0), "Exp": (2, 0, 0),
    "Expand": (2, 0, 0), "Flatten": (9, 0, 0), "Floor": (2, 0, 0), "Gather": (4, 0, 0), "Gelu": (4, 0, 0),
    "Gemm": (11, 0, 0), "GlobalAveragePool": (2, 0, 0), "GlobalMaxPool": (2, 0, 0),
    "GroupNormalization": (2, 0, 0), "HardSigmoid": (3, 0, 0), "HardSwish": (1, 0, 0), "Hardmax": (7, 0, 0),
    "Identity": (1, 0, 0), "InstanceNormalization": (2, 0, 0), "LRN": (2, 0, 0),
    "LayerNormalization": (19, 0, 0), "LeakyRelu": (3, 0, 0), "Log": (2, 0, 0), "LogSoftmax": (7, 0, 0),
    "LpNormalization": (0, 0, 0), "LpPool": (8, 0, 0), "MatMul": (3, 0, 0), "Max": (4, 0, 10),
    "MaxPool": (18, 0, 1), "Mean": (3, 0, 0), "MeanVarianceNormalization": (1, 0, 0), "Min": (4, 0, 10),
    "Mish": (1, 0, 0), "Mul": (3, 0, 1), "Neg": (2, 0, 0), "PRelu": (2, 0, 0), "Pad": (3, 0, 3),
    "Pow": (8, 0, 4), "Reciprocal": (2, 0, 0), "ReduceL1": (8, 0, 1), "ReduceL2": (8, 0, 1),
    "ReduceLogSumExp": (0, 0, 9), "ReduceMax": (8, 0, 2), "ReduceMean": (8, 0, 0), "ReduceMin": (8, 0, 2),
    "ReduceProd": (8, 0, 1), "ReduceSum": (10, 0, 2), "ReduceSumSquare": (8, 0, 1), "Relu": (1, 0, 0),
    "Reshape": (9, 0, 1), "Resize": (39, 0, 0), "Round": (1, 0, 0), "Selu": (3, 0, 0), "Shrink": (2, 0, 0),
    "Sigmoid": (2, 0, 0), "Sign": (1, 0, 0), "Slice": (7, 0, 1), "Softmax": (7, 0, 0),
    "Softplus": (2, 0, 0), "Softsign": (2, 0, 0), "SpaceToDepth": (2, 0, 0), "Split": (14, 0, 2),
    "Sqrt": (2, 0, 0), "Squeeze": (2, 0, 0), "Sub": (3, 0, 1), "Sum": (3, 0, 0), "Tanh": (2, 0, 0),
    "ThresholdedRelu": (3, 0, 0), "Tile": (2, 0, 0), "TopK": (3, 0, 4), "Transpose": (7, 0, 0),
    "Unsqueeze": (7, 0, 0), "Upsample": (1, 0, 0), "Where": (0, 0, 2),
}  # fmt: skip


def outcome(case) -> str:
    """ "right", "refused: " and why, "not applicable", or what is wrong."""
    first = next((name for name in case.node.input if name), None)
    values = [case.inputs.get(first), *(array for array, _ in case.outputs.values())]
    if first is None or values[0].dtype != np.float32 or any(v.size == 0 for v in values):
        return "not applicable"
    if MENDED.get(case.name, (0, 0)) > VERSION:
        return "not applicable"
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    constants = {name: array for name, array in case.inputs.items() if name != first}
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in constants.items())
    try:
        made = load(model).run({first: case.inputs[first]})
    except EasyQuantError as error:
        return f"refused: {error}"
    except Exception as error:  # noqa: BLE001 - whatever gets out is reported
        return f"{type(error).__name__}: {error}"
    for name, (want, kind) in case.outputs.items():
        got = made[name]
        if got.shape != want.shape or plain(got).dtype != plain(want).dtype or differs(got, want, kind):
            return f"{name} is wrong: {got.dtype}{got.shape} for {want.dtype}{want.shape}"
    return "right"


@cache
def outcomes() -> dict:
    """case -> (operator, opset, outcome)."""
    return {c.name: (c.node.op_type, c.opset, outcome(c)) for c in node_cases() if c.node.op_type in LISTED}


def test_every_case_is_right_or_refused_by_name():
    wrong = {
        name: said
        for name, (_, _, said) in outcomes().items()
        if said not in ("right", "not applicable") and not said.startswith("refused: ")
    }
    assert wrong == {}


def test_only_what_is_listed_is_refused():
    refused = {
        name: said
        for name, (_, opset, said) in outcomes().items()
        if said.startswith("refused") and opset >= 7
    }
    assert set(refused) <= set(REFUSED)
    for name, said in refused.items():
        assert re.search(REFUSED[name], said), said
    assert len([said for *_, said in outcomes().values() if said.startswith("refused")]) <= 25


def test_the_table_of_the_cases(record_property):
    """The counts by operator; of onnx 1.18 they are known."""
    counts: dict[str, Counter] = {op: Counter() for op in LISTED}
    for op, _, said in outcomes().values():
        counts[op][said.split(":")[0]] += 1
    table = {op: (c["right"], c["refused"], c["not applicable"]) for op, c in sorted(counts.items())}
    for op, row in table.items():
        print(f"{op:28} right {row[0]:3}, refused {row[1]}, not applicable {row[2]}")
    total = tuple(map(sum, zip(*table.values(), strict=True)))
    print(f"all: {total[0]} right, {total[1]} refused, {total[2]} not applicable")
    record_property("node cases", total)
    assert total[0] >= 425
    if VERSION == (1, 18):
        assert table == TABLE
