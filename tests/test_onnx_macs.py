"""Multiply-accumulates of float ONNX operators, against products that are counted one by one. No TVM."""

from itertools import product
from math import prod

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import helper
from onnx.reference import ReferenceEvaluator

from tvm_easyquant.readers.meaning.rules import RULES
from tvm_easyquant.readers.onnx_macs import MACS, multiply_accumulates
from tvm_easyquant.readers.onnx_op import OnnxOp


def made(op, shapes, attributes=None, opset=18, constants=()):
    """(the `OnnxOp`, the shapes of its tensors, its value on ones) with the output's shape from onnx.reference."""
    names = [f"i{place}" for place in range(len(shapes))]
    node = helper.make_node(op, names, ["o"], **(attributes or {}))
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info(n, 1, s) for n, s in zip(names, shapes, strict=True)],
        [helper.make_empty_tensor_value_info("o")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    feed = {n: np.ones(s, np.float32) for n, s in zip(names, shapes, strict=True)}
    (out,) = ReferenceEvaluator(model).run(None, feed)
    fixed = {place: feed[names[place]] for place in constants}
    tensors = {place: i for i, place in enumerate(p for p in range(len(shapes)) if p not in constants)}
    kept = OnnxOp(node, opset, dict(attributes or {}), fixed, tensors, 0, (out.shape,), ("float32",))
    return kept, [shapes[place] for place in tensors], out


@pytest.mark.parametrize(
    "op, shapes, attributes",
    [
        ("Conv", [(2, 4, 7), (6, 2, 3)], dict(group=2, strides=[2])),
        ("Conv", [(1, 4, 7, 5), (6, 4, 3, 2)], {}),
        ("Conv", [(1, 2, 4, 5, 6), (3, 2, 2, 2, 3)], {}),
        ("MatMul", [(4, 5), (5, 3)], {}),
        ("MatMul", [(2, 1, 4, 5), (3, 5, 6)], {}),
        ("MatMul", [(5,), (2, 5, 3)], {}),
        ("MatMul", [(2, 4, 5), (5,)], {}),
        ("Gemm", [(4, 5), (5, 3)], {}),
        ("Gemm", [(5, 4), (3, 5)], dict(transA=1, transB=1)),
        ("Gemm", [(4, 5), (3, 5), (3,)], dict(transB=1)),
    ],
)
@pytest.mark.parametrize("constant", [True, False])
def test_each_number_of_the_output_counts_its_products(op, shapes, attributes, constant):
    """On ones, without padding, an output number is how many products it is the sum of."""
    kept, found, out = made(op, shapes, attributes, constants=[1] if constant else [])
    bias = prod(out.shape) if len(shapes) == 3 else 0
    assert multiply_accumulates(kept, found) == out.sum() - bias


@pytest.mark.parametrize(
    "equation, shapes",
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("bhid, bhjd -> bhij", [(2, 2, 3, 4), (2, 2, 5, 4)]),
        ("...ij,...jk->...ik", [(5, 2, 3), (5, 3, 4)]),
        ("...ij,jk", [(5, 2, 3), (3, 4)]),
        ("i,j->ij", [(3,), (4,)]),
        ("ii,i->", [(3, 3), (3,)]),
    ],
)
def test_a_contraction_counts_every_combination_of_its_indices(equation, shapes):
    kept, found, out = made("Einsum", shapes, dict(equation=equation))
    assert multiply_accumulates(kept, found) == out.sum()


def test_a_contraction_of_one_tensor_has_none_and_of_three_is_unknown():
    assert multiply_accumulates(*made("Einsum", [(2, 3)], dict(equation="ij->ji"))[:2]) == 0
    assert (
        multiply_accumulates(*made("Einsum", [(2, 3), (3, 4), (4, 5)], dict(equation="ij,jk,kl->il"))[:2])
        is None
    )


@pytest.mark.parametrize("group, pads", [(1, [0, 0, 0, 0]), (2, [1, 1, 1, 1])])
def test_a_transposed_convolution_counts_its_inputs(group, pads):
    """Each number of 4 channels of 3x5 goes with 3x2 weights into each of the channels of its group, of 6."""
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=group, pads=pads)
    weight = np.ones((4, 6 // group, 3, 2), np.float32)
    op = OnnxOp(node, 18, {}, {1: weight}, {0: 0}, 0, ((1, 6, 5 - pads[0], 6),), ("float32",))
    taps = sum(1 for _ in product(range(4), range(3 * 5), range(6 // group), range(3 * 2)))
    assert multiply_accumulates(op, [(1, 4, 3, 5)]) == taps


def test_what_has_a_meaning_is_counted_and_what_has_none_is_unknown():
    """Story: an LSTM counted as nothing, and the coverage of a network that is mostly one was 100 %."""

    def of(name):
        node = helper.make_node(name, ["x"], ["y"])
        return multiply_accumulates(OnnxOp(node, 18, {}, {}, {0: 0}, 0, ((1,),), ("float32",)), [(1, 2, 3)])

    assert {of(name) for name in RULES if name not in MACS} == {0}
    assert [of(name) for name in ("LSTM", "GRU", "RNN", "NoSuchOp")] == [None] * 4


def test_an_input_that_is_left_out_moves_no_other():
    node = helper.make_node("Gemm", ["x", "w", ""], ["y"])
    weight = np.ones((3, 5), np.float32)
    op = OnnxOp(node, 18, {}, {1: weight}, {0: 0}, 0, ((2, 5),), ("float32",))
    assert multiply_accumulates(op, [(2, 3)]) == 30
    swapped = OnnxOp(node, 18, {}, {}, {0: 1, 1: 0}, 0, ((2, 5),), ("float32",))
    assert multiply_accumulates(swapped, [(3, 5), (2, 3)]) == 30
