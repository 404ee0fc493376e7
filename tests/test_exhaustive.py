"""A hundred million outputs of every kernel against the norm: ``make test-slow``, minutes for each row.

Every round draws new weights as large as the row can prove, data over the full range, a bias and a
multiplier that spreads the outputs over the whole byte and beyond its limits.
"""

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
from test_kernels import PAD, ROWS, expected, weight_limit

from topi_ext import isa
from topi_ext.conv2d import ConvSpec, fold_zero_point
from topi_ext.emit import DefaultKnobs

OUTPUTS = 10**8
SHAPES = (
    ConvSpec(4, 112, 112, 8, 48, (1, 1), data_max=127, zero_point=64, lo=1, hi=127, out_zero_point=64),
    ConvSpec(4, 57, 61, 16, 48, (3, 3), padding=PAD, data_max=127, hi=127),
    ConvSpec(4, 57, 61, 16, 48, (3, 3), padding=PAD, data_max=255, zero_point=3, hi=255),
)
DEPTHWISE = (
    ConvSpec(4, 57, 61, 96, 96, (3, 3), groups=96, padding=PAD, data_max=127, hi=127),
    ConvSpec(4, 113, 115, 96, 96, (5, 5), (2, 2), (2, 2, 2, 2), groups=96, data_max=127, zero_point=9),
    ConvSpec(4, 57, 61, 96, 96, (3, 3), groups=96, padding=PAD, data_max=255, hi=255),
)


def compiled(row, spec, arrays):
    """The kernel as a function of its arguments, the constants among them."""
    from tvm import te

    inputs = [te.placeholder(a.shape, str(a.dtype)) for a in arrays]
    out = row.compute(DefaultKnobs(), spec, *inputs)
    mcpu = isa.ISAS[row.isa].mcpu
    target = f"llvm -mcpu={mcpu}" if mcpu else "llvm"
    return tvm.build(te.create_schedule(out.op), [*inputs, out], target)


def rounds(row, spec, count):
    """Compare ``count`` outputs of one shape, or nothing if the row does not take it; the number compared."""
    limits = None if row.refuses(spec) else weight_limit(row, spec)
    if limits is None:
        return 0
    libraries, done, rng = {}, 0, np.random.default_rng(len(row.name))
    depth = int(np.prod(spec.weight_shape[:3]))
    shape = (spec.batch, spec.height, spec.width, spec.in_channels)
    while done < count:
        data = rng.integers(0, spec.data_max + 1, shape).astype(np.uint8)
        weight = rng.integers(-limits, limits + 1, spec.weight_shape).astype(np.int8)
        bias = rng.integers(-1000, 1000, spec.out_channels).astype(np.int32)
        spread = spec.data_max * np.maximum(limits, 1) * np.sqrt(depth)
        factor = (rng.uniform(50, 300, spec.out_channels) / spread).astype(np.float32)
        folded = fold_zero_point(bias, weight, spec.zero_point)
        arrays = [data, *row.pack(spec, weight, folded, factor)]
        kinds = tuple(a.shape for a in arrays)  # into how many sums a kernel is cut depends on the weights
        if kinds not in libraries:
            libraries[kinds] = compiled(row, spec, arrays)
        out = tvm.nd.empty(spec.out_shape, spec.out_dtype)
        libraries[kinds](*map(tvm.nd.array, arrays), out)
        np.testing.assert_array_equal(out.numpy(), expected(spec, data, weight, bias, factor, None))
        done += int(np.prod(spec.out_shape))
    return done


@pytest.mark.slow
@pytest.mark.parametrize("row", [pytest.param(r, id=r.name, marks=pytest.mark.isa(r.isa)) for r in ROWS])
def test_a_hundred_million_outputs(row, compared):
    shapes = DEPTHWISE if row.name.startswith("depthwise") else SHAPES
    takes = [spec for spec in shapes if row.refuses(spec) is None and weight_limit(row, spec) is not None]
    total = sum(rounds(row, spec, -(-OUTPUTS // len(takes))) for spec in takes)
    compared(row.name, total)
    assert total >= OUTPUTS
