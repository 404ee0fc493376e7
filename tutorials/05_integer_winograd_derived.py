"""
Integer Winograd, derived
=========================

Winograd's convolution saves multiplications. In integers it has a bad name: careless integer versions are
wrong, and TVM switched its own off (apache/tvm#5363). This one is exact. Everything here is numpy; no TVM
is needed.
"""

from fractions import Fraction

import numpy as np

from topi_ext import winograd
from topi_ext.conv2d import Bound, ConvSpec, Refusal

# %%
# Four multiplications instead of six
# -----------------------------------
# F(2, 3) makes two outputs of a three-tap filter: ``y = AT ((G g) * (BT d))``. The textbook's matrices:

BT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
AT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
d, g = np.array([3, 1, 4, 1]), np.array([2, 7, 1])
direct = [d[0:3] @ g, d[1:4] @ g]
print("direct  ", direct)
print("winograd", AT @ ((G @ g) * (BT @ d)))
np.testing.assert_array_equal(AT @ ((G @ g) * (BT @ d)), direct)

# %%
# What goes wrong in integers
# ---------------------------
# G has halves. Cast to integers they become zeros, and the result is rubbish: no rounding error, but
# another filter.

print("G cast to integers:", AT @ ((G.astype(int) @ g) * (BT @ d)))
assert (AT @ ((G.astype(int) @ g) * (BT @ d)) != direct).any()

# %%
# Clear the denominators
# ----------------------
# Multiply the rows of G that have halves by 2, and the columns of AT that belong to the others. Every
# matrix is integer, the result is twice y (four times in two dimensions), and the division is exact because
# the number is a multiple. ``transform`` derives the matrices for any F(m, 3)
# from the interpolation points 0, 1, -1, 2, -2 with exact fractions.

t = winograd.transform(2, 3)
print(t.g)
assert t.divisor == 4
t = winograd.transform(4, 3)
print(t.bt, t.g, t.at, f"divisor {t.divisor}", sep="\n")
assert t.divisor == 576

# %%
# F(4, 3) makes 16 outputs of a 3x3 filter with 36 multiplications instead of 144. Each row of G
# has its smallest integers, and the columns of AT make up for it: so the weights grow least.

worst = np.abs(t.g).sum(axis=1).max() ** 2
print(f"a transformed weight is at most {worst} times a weight: {worst * 127} at 8 bits")
assert worst * 127 <= 2**15 - 1

# %%
# A proof by all pairs of unit arrays
# -----------------------------------
# (data, weight) -> y is linear in each. If it is right for every pair of unit arrays, it is right for all
# integers: 36 times 9 cases are a theorem.

pairs = 0
for i in np.ndindex(6, 6):
    for j in np.ndindex(3, 3):
        data, weight = np.zeros((6, 6), int), np.zeros((3, 3), int)
        data[i] = weight[j] = 1
        expected = [[(data[a : a + 3, b : b + 3] * weight).sum() for b in range(4)] for a in range(4)]
        assert (winograd.correlate(t, data, weight) == expected).all()
        pairs += 1
print(pairs, "pairs")

# %%
# How large do the numbers get?
# -----------------------------
# The sums run over channels in int32, and 576 times an output may not fit. But all of it is linear, so it
# may wrap modulo 2**32 as long as the quotient can be recovered. 576 is 2**6 times 9. Nine has an inverse
# modulo 2**32; multiplying by it leaves 64 times y, and a shift gives y.

print(f"inverse of 9: {t.inverse}, shift {t.shift}")


def wrap(x):
    return (int(x) + 2**31) % 2**32 - 2**31


for y in (1, -12345, 2**25 - 1):
    assert wrap(wrap(576 * y) * t.inverse) >> t.shift == y
    print(f"{y}: 576 y is {576 * y}, in int32 {wrap(576 * y)}, and {y} again")

# %%
# Legal or not is a fact of the layer
# -----------------------------------
# The weights are constants. From them follows how large an output can be, and so whether 64 times it fits.
# The planner asks this for every layer, and says the figure that failed.

rng = np.random.default_rng(0)
spec = ConvSpec(1, 14, 14, 256, 256, (3, 3), padding=(1, 1, 1, 1), data_max=127)
likely = np.clip(np.rint(rng.normal(0, 21, spec.weight_shape)), -63, 63).astype(np.int8)
answer = winograd.proves(t, spec, likely)
print("weights as they are:", answer)
assert isinstance(answer, Bound)
answer = winograd.proves(t, spec, np.full(spec.weight_shape, 127, np.int8))
print("all weights 127:    ", answer)
assert isinstance(answer, Refusal)

# %%
# From points to matrices
# -----------------------
# The derivation itself, for F(2, 3): the rows of G are powers of the points over ``N_j``, the product of
# differences.

points = [Fraction(p) for p in winograd.POINTS[:3]]
for a in points:
    n = np.prod([a - b for b in points if b != a])
    print(f"point {a!s:>2}: row of G {[str(a**k / n) for k in range(3)]}")

# sphinx_gallery_thumbnail_path = 'pictures/05.svg'
