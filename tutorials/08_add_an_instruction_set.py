"""
Add an instruction set
======================

A new instruction set is a row of facts, and rows of the manifest that use them; a multiply that is not here
yet is a function in a file of its family. Tests, planner and benchmarks find them by themselves. The toy
here is SSSE3, the 128-bit ancestor of AVX2: too old to be worth shipping, and on every x86 machine.
"""

import platform
import sys
from unittest import mock

import numpy as np
import tvm
from tvm import te

from topi_ext import isa, manifest, planner, reference
from topi_ext.conv2d import Bound, ConvSpec
from topi_ext.emit import DefaultKnobs
from topi_ext.kernels.rows import direct_row
from topi_ext.proofs import lane_proof
from topi_ext.targets import x86

if platform.machine() not in ("x86_64", "AMD64"):
    print("skipped: SSSE3 is an x86 instruction set")
    sys.exit()

# %%
# 1. The facts: a row of ``topi_ext/isa.py``
# ------------------------------------------
# What LLVM calls it, what Linux calls it in ``/proc/cpuinfo``, the plainest CPU that has it, the row to
# fall back on; then its registers, how many accumulators of a direct kernel fit in them, and LLVM's names
# of the multiplies.

ssse3 = isa.Isa(
    "ssse3", ("ssse3",), ("ssse3",), "core2", "generic",
    registers=16, bits=128, tiles={"direct": 7}, vectors=(isa.SSSE3,),
)  # fmt: skip
print(ssse3.target)

# %%
# 2. The multiply: ``topi_ext/targets/x86.py``
# --------------------------------------------
# ``direct.Dot`` is how the direct kernel sees a multiply: so many lanes, so many products of a lane, the
# types of its operands, and ``combine``, which emits it. For x86 the same text does for each row.

dot = x86.int16_dot(ssse3, depth=2)
print(dot)

# %%
# 3. The rows: ``topi_ext/manifest.py``
# -------------------------------------
# A row joins the multiply with what makes it legal. ``pmaddubsw`` saturates at 16 bits: a lane sums two
# products, and ``depth`` of them are added before they are widened. ``lane_proof`` shows from the real
# weights that this cannot overflow.

row = direct_row("direct_ssse3_d2", ssse3, dot, lane_proof)
KERNELS = (*manifest.KERNELS[:-1], row, manifest.KERNELS[-1])  # best first; the portable kernel is last

# %%
# It equals the norm
# ------------------
# In the repository nothing more is to be written: ``tests/test_kernels.py`` runs each row on extremes,
# tails and random shapes against ``topi_ext/reference.py``. Here is what it does, for one odd shape.

spec = ConvSpec(1, 9, 7, 5, 11, (3, 3), (2, 2), (1, 1, 1, 1), data_max=127, hi=127)
rng = np.random.default_rng(0)
data = rng.integers(0, 128, (1, 9, 7, 5)).astype(np.uint8)
factor = rng.uniform(1e-3, 2e-3, 11).astype(np.float32)
zero = np.zeros(11, np.int32)  # the bias
target = tvm.target.Target(ssse3.target)


def run(weight):
    """Build the row's compute for one layer and run it: (output, assembly)."""
    arrays = [data, *row.pack(spec, weight, zero, factor)]
    inputs = [te.placeholder(a.shape, str(a.dtype)) for a in arrays]
    out = row.compute(DefaultKnobs(), spec, *inputs)
    with target:
        built = tvm.build(te.create_schedule(out.op), [*inputs, out], target)
    result = tvm.nd.array(np.zeros(spec.out_shape, spec.out_dtype))
    built(*map(tvm.nd.array, arrays), result)
    return result.numpy(), built.get_source("asm")


for name, weight in {
    "all 63": np.full(spec.weight_shape, 63, np.int8),
    "all -63": np.full(spec.weight_shape, -63, np.int8),
    "random": rng.integers(-63, 64, spec.weight_shape).astype(np.int8),
}.items():
    assert isinstance(row.proves(spec, weight), Bound)
    acc = reference.conv2d(data, weight, zero_point=0, strides=(2, 2), padding=(1, 1, 1, 1))
    out, assembly = run(weight)
    np.testing.assert_array_equal(out, reference.requantize(acc, factor, 0, 0, 127))
    print(f"{name:8} equal; {row.proves(spec, weight)}")
assert "pmaddubsw" in assembly

# %%
# The planner takes it, or says why not
# -------------------------------------
# For a CPU with SSSE3 the row now comes before the portable kernel. Full 8-bit weights are refused.

with mock.patch.dict(isa.ISAS, ssse3=ssse3), mock.patch.object(manifest, "KERNELS", KERNELS):
    assert isa.best({"ssse3"}.__contains__, "x86_64") == "ssse3"
    choice = planner.choose(spec, weight, zero, "ssse3")
    print(choice)
    assert choice.kernel is row
    choice = planner.choose(spec, np.full(spec.weight_shape, 127, np.int8), zero, "ssse3")
    print(choice, *(f"not {name}: {why}" for name, why in choice.refused), sep="\n")
    assert choice.kernel.name == "direct_generic"

# %%
# What is left to do
# ------------------
# AVX2 must fall back on the new row, or a CPU with both has two rows that are equally good, which
# ``isa.best`` refuses. Then costs of the new rows, measured by ``benchmarks/kernels.py`` on a machine that
# has the instruction set; until then the order of the manifest decides, for AVX2 and AVX-512 as well.
# ``pytest tests/test_golden.py --update-golden`` shows which kernels are chosen otherwise. A line in the
# changelog.
#
# A kernel of another kind, such as Winograd on the new width, is a row too: see ``winograd_row``.

# sphinx_gallery_thumbnail_path = 'pictures/08.svg'
