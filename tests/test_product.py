"""The product of two stored tensors, on every instruction set: the norm's integers, and its place in a table."""

from importlib.util import find_spec

import numpy as np
import pytest

from tvm_easyquant.network.node import Node
from tvm_easyquant.network.ops import OPERATORS

tvm = pytest.importorskip("tvm")
from tvm import te

from topi_ext import isa, reference
from topi_ext.kernels.product import DOTS, Product, compute

RELAY = find_spec("tvm.relay") is not None
#: extremes, then tails of rows, columns and depth, then whole tiles
SHAPES = [(1, 1, 1, 1), (2, 7, 5, 9), (1, 4, 8, 16), (3, 13, 3, 20), (2, 9, 33, 17), (1, 24, 64, 49)]
RNG = np.random.default_rng(0)


def cases(product):
    """(a, b): all extremes of both, then random."""
    n, rows, depth, columns = product[:4]
    for x, y in ((0, 0), (0, 255), (255, 0), (255, 255)):
        yield np.full((n, rows, depth), x, np.uint8), np.full((n, columns, depth), y, np.uint8)
    yield (RNG.integers(0, 256, (n, size, depth)).astype(np.uint8) for size in (rows, columns))


def compiled(product, row):
    """The kernel on whichever TVM is installed."""
    inputs = [
        te.placeholder((product.batch, n, product.depth), "uint8") for n in (product.rows, product.columns)
    ]
    out = compute(product, row, *inputs)
    if RELAY:
        target = isa.ISAS[row].target
        return tvm.build(te.create_schedule(out.op), [*inputs, out], target, name="main")
    target = tvm.target.Target(
        {"kind": "llvm"} | ({"mcpu": isa.ISAS[row].mcpu} if isa.ISAS[row].mcpu else {})
    )
    return tvm.compile(tvm.IRModule({"main": te.create_prim_func([*inputs, out])}), target)


HERE = [row for row in DOTS if not isa.ISAS[row].arch]


@pytest.mark.parametrize("row", [
    pytest.param(row, marks=pytest.mark.isa(row) if row != "generic" else ()) for row in HERE
])  # fmt: skip
def test_the_kernel_is_the_norm(row, compared):
    make = tvm.nd.array if RELAY else tvm.runtime.tensor
    for shape, zeros in zip(SHAPES, [(0, 255), (255, 0), (128, 3)] * 2, strict=True):
        product = Product(*shape, *zeros)
        run = compiled(product, row)
        for a, b in cases(product):
            out = make(np.full(product.out_shape, -1, np.int32))
            run["main"](make(a), make(b), out)
            want = reference.product(a, b.swapaxes(1, 2), zero_a=zeros[0], zero_b=zeros[1])
            np.testing.assert_array_equal(out.numpy(), want, err_msg=str(product))
            compared("products", want.size)


@pytest.mark.skipif(not RELAY, reason="assembly for another architecture is asked of one TVM")
@pytest.mark.parametrize(
    "row, instruction", [("neon", "smlal"), ("armv7_neon", "vmlal.s16"), ("avx512bw", "zmm")]
)
def test_what_cannot_run_here_has_its_instruction(row, instruction):
    text = compiled(Product(2, 9, 33, 17, 7, 9), row).get_source("asm")
    assert instruction in text and ("vpmaddwd" in text) == (row == "avx512bw")


def test_the_deepest_sum_fits_and_one_deeper_is_refused():
    """2**30 is half of int32, as for a layer; the norm itself says what goes beyond int32."""

    def refusal(depth):
        node = Node("m", "matmul", ("a", "b"), (1, 1, 1), dict(depth=depth))
        return OPERATORS["matmul"].refusal(node)

    most = reference.MOST_PRODUCTS
    assert most * 255**2 <= 2**30 < (most + 1) * 255**2
    assert refusal(most) is None and str(most) in refusal(most + 1)
    a = np.full((1, 1, most), 255, np.uint8)
    assert reference.product(a, a.swapaxes(1, 2)) == most * 255**2
    with pytest.raises(OverflowError, match="product"):
        reference.product(np.repeat(a, 3, axis=2), np.repeat(a, 3, axis=2).swapaxes(1, 2))
