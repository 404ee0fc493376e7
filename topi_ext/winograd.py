"""Winograd convolution in exact integers: the transforms derived, their bit growth computed. No TVM.

F(m, r) computes m outputs of an r-tap correlation with n = m + r - 1 multiplications. From n - 1
interpolation points a_j and infinity (Toom-Cook, transposed), with ``N_j = prod_{l != j} (a_j - a_l)``:

* row j of BT: the coefficients of ``prod_{l != j} (x - a_l)``; the last row: of ``prod_l (x - a_l)``;
* row j of G: ``a_j^k / N_j``; the last row: ``(0, .., 0, 1)``;
* column j of AT: ``a_j^i``; the last column: ``(0, .., 0, 1)``.

Then ``y = AT ((G g) * (BT d))``. G has fractions; dividing its row j by its first entry e_j that is not 0
and multiplying column j of AT by ``scale * e_j`` makes every matrix integer, and the result ``scale * y``;
in two dimensions ``scale^2 * y``, which is divided exactly. So the weights grow least, and cost least:
there are more of them than of a small map's tiles.

Everything after the transformed data V and weights U is linear, so it may wrap modulo 2**32 as long as
the arithmetic is *defined* to wrap and the quotient fits: for ``scale^2 = 2^s * odd``, multiplying by the
inverse of ``odd`` modulo 2**32 leaves ``2^s * y``, exact while ``|2^s * y| < 2**31``, and an arithmetic
shift by s gives y.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from math import lcm, prod
from typing import NamedTuple

import numpy as np

from .problem import Bound, ConvSpec, Refusal
from .proofs import INT16_MAX
from .reference import INT32_MAX

#: interpolation points, in the order in which they are used
POINTS = (0, 1, -1, 2, -2)


class Transform(NamedTuple):
    """Integer matrices of F(m, r): V = BT d B, U = G w GT, ``divisor * y = AT (U * V) A``.

    BT (n, n), G (n, r), AT (m, n), int64; divisor: of the two-dimensional result.
    """

    m: int
    r: int
    bt: np.ndarray
    g: np.ndarray
    at: np.ndarray
    divisor: int

    @property
    def n(self) -> int:
        """Rows of a tile of the data, m + r - 1."""
        return self.m + self.r - 1

    @property
    def shift(self) -> int:
        """The power of two in the divisor."""
        return (self.divisor & -self.divisor).bit_length() - 1

    @property
    def inverse(self) -> int:
        """The inverse modulo 2**32 of the odd part of the divisor, as a signed int32."""
        value = pow(self.divisor >> self.shift, -1, 2**32)
        return value - 2**32 if value >= 2**31 else value


def _times(polynomial, root):
    """Coefficients (low first) of ``polynomial * (x - root)``."""
    shifted = [Fraction(0), *polynomial]
    scaled = [-root * c for c in polynomial] + [Fraction(0)]
    return [a + b for a, b in zip(shifted, scaled, strict=True)]


def _polynomial(roots):
    result = [Fraction(1)]
    for root in roots:
        result = _times(result, Fraction(root))
    return result


def _integers(rows):
    """A matrix of Fractions as int64; ValueError if an entry is no integer."""
    if any(entry.denominator != 1 for row in rows for entry in row):
        raise ValueError("a transform matrix has a fraction left")
    return np.array([[int(entry) for entry in row] for row in rows], np.int64)


@cache
def transform(m: int, r: int) -> Transform:
    """The integer transform of F(m, r), derived; ValueError if `POINTS` are too few."""
    n = m + r - 1
    points = [Fraction(p) for p in POINTS[: n - 1]]
    if len(points) < n - 1:
        raise ValueError(f"F({m}, {r}) needs {n - 1} points")
    others = [[p for p in points if p != a] for a in points]
    bt = [[*_polynomial(o), Fraction(0)] for o in others] + [_polynomial(points)]
    norms = [prod((a - p for p in o), start=Fraction(1)) for a, o in zip(points, others, strict=True)]
    g = [[a**k / norm for k in range(r)] for a, norm in zip(points, norms, strict=True)]
    g.append([Fraction(int(k == r - 1)) for k in range(r)])
    at = [[a**i for a in points] + [Fraction(int(i == m - 1))] for i in range(m)]
    scale = lcm(*(entry.denominator for row in g for entry in row))
    factors = [1 / next(entry for entry in row if entry) for row in g]
    g = [[factor * e for e in row] for factor, row in zip(factors, g, strict=True)]
    at = [[e * scale / f for e, f in zip(row, factors, strict=True)] for row in at]
    return Transform(m, r, _integers(bt), _integers(g), _integers(at), scale * scale)


def data_growth(t: Transform) -> int:
    """max |V| for unsigned data up to 1: over pairs of rows of BT, what one sign can collect."""
    positive, negative = np.maximum(t.bt, 0).sum(1), np.maximum(-t.bt, 0).sum(1)
    same = np.outer(positive, positive) + np.outer(negative, negative)
    mixed = np.outer(positive, negative) + np.outer(negative, positive)
    return int(np.maximum(same, mixed).max())


def transform_weight(t: Transform, weight: np.ndarray) -> np.ndarray:
    """int8 (r, r, C, K) -> int64 (n, n, C, K): ``U = G w GT``."""
    return np.einsum("ia,abck,jb->ijck", t.g, weight.astype(np.int64), t.g)


def refuses(t: Transform, spec: ConvSpec) -> Refusal | None:
    """Why F(m, r) does not take the shape of a layer; None if it does."""
    plain = spec.strides == (1, 1) and spec.dilation == (1, 1) and spec.groups == 1
    if spec.kernel == (t.r, t.r) and plain:
        return None
    return Refusal(f"only for {t.r}x{t.r} with stride 1, dilation 1 and one group")


def proves(t: Transform, spec: ConvSpec, weight: np.ndarray) -> Bound | Refusal:
    """Whether F(m, r) is exact for a layer that it takes, from its real weights (int8 HWIO)."""
    v = spec.data_max * data_growth(t)
    if v > INT16_MAX:
        return Refusal(f"transformed data may reach {v}, beyond int16")
    u = int(np.abs(transform_weight(t, weight)).max(initial=0))
    if u > INT16_MAX:
        return Refusal(f"a transformed weight is {u}, beyond int16")
    if 2 * u * v > INT32_MAX:
        return Refusal(f"a pair of products may reach {2 * u * v}, beyond int32")
    flat = weight.reshape(-1, spec.out_channels).astype(np.int64)
    one_sided = np.maximum(np.maximum(flat, 0).sum(0), np.maximum(-flat, 0).sum(0))
    y = spec.data_max * int(one_sided.max())
    if y << t.shift > INT32_MAX:
        return Refusal(f"2^{t.shift} times an output may reach {y << t.shift}, beyond int32")
    return Bound(f"2^{t.shift} times an output", y << t.shift, INT32_MAX)


def correlate(t: Transform, data: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """One tile in exact integers: data (n, n), weight (r, r) -> y (m, m); for tests and for reading."""
    v = t.bt @ data.astype(object) @ t.bt.T
    u = t.g @ weight.astype(object) @ t.g.T
    y = t.at @ (u * v) @ t.at.T
    assert not np.any(y % t.divisor)  # noqa: S101  # the derivation says so
    return y // t.divisor


def pack(spec: ConvSpec, t: Transform, weight: np.ndarray, lanes: int, pairs: int) -> np.ndarray:
    """Weights as the kernel reads them: int8 (K / lanes, r * r, pairs, lanes, 2), padded with zeros."""
    blocks = -(-spec.out_channels // lanes)
    padded = np.zeros((t.r * t.r, 2 * pairs, blocks * lanes), np.int8)
    padded[:, : spec.in_channels, : spec.out_channels] = weight.reshape(t.r * t.r, *weight.shape[2:])
    split = padded.reshape(t.r * t.r, pairs, 2, blocks, lanes)
    return np.ascontiguousarray(split.transpose(3, 0, 1, 4, 2))
