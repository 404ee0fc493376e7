"""The fit of one layer's weights: sums, candidates, descent, gain, bias. No TVM."""

import networks
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topi_ext import reference
from tvm_easyquant.network.layout import to_nhwc
from tvm_easyquant.network.ops import evaluate, linear
from tvm_easyquant.scales.numerics import METHODS, QuantConfig, scale_for, steps, weight_scales
from tvm_easyquant.search.walk import Images
from tvm_easyquant.search.weights import CHANNELS, fit_weights, reconstruct
from tvm_easyquant.search.workers import Workers


def layer(groups=1, kernel=3, seed=0, size=7, channels=8, images=3, bits=7):
    """(node, its quantized inputs, its float outputs, the input's scale) of a lone convolution."""
    b = networks.Builder(seed, size=size, channels=4)
    b.conv("c", "image", 4 if groups == 4 else channels, kernel=kernel, groups=groups)
    node = b.nodes["c"]
    xs = [to_nhwc(x) for x in b.images(images)]
    scale = scale_for(max(float(np.abs(x).max()) for x in xs), bits, True)
    stored = [reference.quantize(x, scale.scale, scale.zero_point, scale.lo, scale.hi) for x in xs]
    return node, stored, [evaluate(node, x) for x in xs], scale


def error(node, stored, outputs, scale, q, scales, bias):
    """Squared error of every channel, by direct convolution."""
    total = 0
    for x, o in zip(stored, outputs, strict=True):
        y = linear(x.astype(np.float64) - scale.zero_point, node, q.reshape(node.weight.shape))
        y = y * (scale.scale * scales.astype(np.float64)) + bias
        total = total + ((y - o) ** 2).sum(axis=(0, 1, 2))
    return total


def quadratic(node, stored, outputs, scale, part, centred):
    m = reconstruct.moments(node, part, stored, outputs, scale)
    return m, reconstruct.problem(m, node.bias[part], scale.scale, centred)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([1, 2, 4]), st.sampled_from([1, 3]), st.integers(0, 99), st.booleans(),
    st.sampled_from([7, 8]),
)  # fmt: skip
def test_the_quadratic_is_the_squared_error(groups, kernel, seed, centred, bits):
    node, stored, outputs, scale = layer(groups, kernel, seed, bits=bits)
    rng = np.random.default_rng(seed)
    depth = node.weight.size // node.channels
    q = rng.integers(-63, 64, (depth, node.channels)).astype(np.float64)
    scales = (rng.random(node.channels) + 0.5).astype(np.float32) * 0.01
    for part in reconstruct.groups(node):
        _, p = quadratic(node, stored, outputs, scale, part, centred)
        mine = p.error(q[:, part], scales[part].astype(np.float64)) * scale.scale**2
        bias = node.bias
        if centred:  # the best bias
            y = [linear(x.astype(np.float64) - scale.zero_point, node, q.reshape(node.weight.shape))
                 * (scale.scale * scales.astype(np.float64)) for x in stored]  # fmt: skip
            bias = np.mean([(o - z).mean(axis=(0, 1, 2)) for o, z in zip(outputs, y, strict=True)], axis=0)
        expected = error(node, stored, outputs, scale, q, scales, bias)[part]
        np.testing.assert_allclose(mine, expected, rtol=1e-6)


@pytest.mark.parametrize("centred", [False, True])
def test_few_rows_are_kept_as_they_are_and_give_the_same_errors(centred):
    node, stored, outputs, scale = layer(1, 3, 3, size=3, images=2)
    weight = reconstruct.weight_2d(node)
    scales = np.stack([weight_scales(weight, 7) * np.float32(f) for f in (0.6, 1.0, 1.7)])
    found = []
    for keep in (False, True):
        m = reconstruct.moments(node, slice(0, 8), stored, outputs, scale, keep)
        assert (m.gram is None) == keep and m.rows == 18
        p = reconstruct.problem(m, node.bias, scale.scale, centred)
        found.append(reconstruct.errors(p, weight, scales, 63))
        exact = [p.error(reconstruct.rounded(weight, s, 63), s.astype(float)) for s in scales]
        np.testing.assert_allclose(found[-1], exact, rtol=1e-3, atol=1e-6 * p.least.max())
        np.testing.assert_allclose(p.diagonal, p.with_gram().diagonal)
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-6 * p.least.max())


def test_gram_matrices_are_exact_whatever_the_number_of_rows():
    b = networks.Builder(0, size=80, channels=4)
    b.conv("c", "image", 4, kernel=1)
    x = np.full((1, 80, 80, 4), 255, np.uint8)
    scale = scale_for(1.0, 8, False)
    m = reconstruct.moments(b.nodes["c"], slice(0, 4), [x], [np.ones((1, 80, 80, 4), np.float32)], scale)
    assert (m.gram == 255 * 255 * 6400).all() and m.rows == 6400


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([1, 2, 4]), st.integers(0, 99), st.booleans())
def test_descent_and_gain_never_fit_worse(groups, seed, centred):
    node, stored, outputs, scale = layer(groups, 3, seed)
    top = steps(7, True)
    weight = reconstruct.weight_2d(node)
    start = weight_scales(weight, 7)
    for part in reconstruct.groups(node):
        _, p = quadratic(node, stored, outputs, scale, part, centred)
        w, s = weight[:, part], start[part]
        nearest = reconstruct.rounded(w, s, top)
        q = reconstruct.descend(p, w, s, top)
        assert np.abs(q).max() <= top and (q == np.rint(q)).all()

        def damped(q, p=p, w=w, s=s):
            e = q - w / s
            return (e * (p.times(e) + reconstruct.DAMPING * p.diagonal.mean(axis=0) * e)).sum(axis=0)

        assert (damped(q) <= damped(nearest) * (1 + 1e-9)).all()
        gains, left = reconstruct.gain(p, q, s)
        best = p.error(q, s * gains)
        assert (best <= p.error(q, s.astype(float)) * (1 + 1e-6) + 1e-9).all()
        np.testing.assert_allclose(best, left * (p.least - best), rtol=1e-6, atol=1e-6 * p.least.max())


def test_descent_ends_where_no_single_step_helps():
    node, stored, outputs, scale = layer(1, 3, 5)
    stored = [x // 8 + 70 for x in stored]  # far from zero, so that the inputs of a channel are alike
    _, p = quadratic(node, stored, outputs, scale, slice(0, 8), False)
    weight = reconstruct.weight_2d(node)
    s = weight_scales(weight, 7)
    q = reconstruct.descend(p, weight, s, 63)

    def damped(q):
        e = q - weight / s
        return (e * (p.times(e) + reconstruct.DAMPING * p.diagonal.mean(axis=0) * e)).sum(axis=0)

    assert (damped(q) < damped(reconstruct.rounded(weight, s, 63))).any()
    for k in range(len(q)):
        for step in (-1, 1):
            other = q.copy()
            other[k] = np.clip(other[k] + step, -63, 63)
            assert (damped(other) >= damped(q) - 1e-6).all()


@pytest.mark.parametrize("groups, channels", [(1, 2 * CHANNELS + 3), (2, 8), (4, 4)])
@pytest.mark.parametrize("centred", [False, True])
def test_pieces_and_corrections_fit_as_one(groups, channels, centred):
    """fit_weights by pieces and parts of the images: each channel's best candidate, and the best bias."""
    node, stored, outputs, scale = layer(groups, 3, 1, channels=channels)
    config = QuantConfig(method="easyquant_mse", bias_correction=centred, grid=8)
    start = weight_scales(reconstruct.weight_2d(node), 7, node.bias, scale.scale)
    images = Images(node, stored, outputs)
    scales, _, q, bias = fit_weights(images, start, scale, config, Workers(1))
    mine = error(node, stored, outputs, scale, q, scales, bias)
    if not centred:
        assert bias is node.bias
    for factor in (0.5, 1.0, 2.0):
        s = (start / np.float64(factor)).astype(np.float32)
        q2 = reconstruct.rounded(reconstruct.weight_2d(node), s, 63)
        assert (mine <= error(node, stored, outputs, scale, q2, s, bias) * (1 + 1e-6)).all()
    shifted = error(node, stored, outputs, scale, q, scales, bias + np.float32(0.01))
    assert not centred or (mine < shifted).all()


def test_inputs_of_zeros_keep_the_nearest_integers():
    node, stored, outputs, scale = layer()
    zeros = [np.full_like(x, scale.zero_point) for x in stored]
    weight = reconstruct.weight_2d(node)
    s = weight_scales(weight, 7)
    _, p = quadratic(node, zeros, outputs, scale, slice(0, 8), True)
    np.testing.assert_array_equal(reconstruct.descend(p, weight, s, 63), reconstruct.rounded(weight, s, 63))
    gains, left = reconstruct.gain(p, reconstruct.rounded(weight, s, 63), s)
    assert (gains == 1).all() and np.isinf(left).all()
    np.testing.assert_array_equal(reconstruct.shrunk(gains, left, 3), gains)
    how = METHODS["easyquant_layerwise"]
    found, *_ = reconstruct.fit(p, weight, np.stack([s, s / 2]).astype(np.float32), 7, how)
    np.testing.assert_array_equal(found, s)


def classifier(images, spread, seed=0, classes=400):
    """`reconstruct.gain` of a layer of one output each whose true gains are 1.05 +- ``spread``; and those."""
    rng = np.random.default_rng(seed)
    true = 1.05 + spread * rng.standard_normal(classes)
    made = rng.standard_normal((images, classes))
    wanted = made * true + 0.2 * rng.standard_normal(made.shape)
    dot, square = (made * wanted).sum(axis=0), (made**2).sum(axis=0)
    gains = dot / square
    left = (wanted**2).sum(axis=0) * square / dot**2 - 1
    return gains, left, true


@pytest.mark.parametrize("seed", range(3))
def test_gains_that_differ_by_chance_become_one(seed):
    """Story: MobileNet's classifier saw each class in no image or one; 50 images gave it gains that were
    noise, and the entropy of its answers against fp32 rose from 0.0139 to 0.0191."""
    gains, left, true = classifier(50, 0.0, seed)
    mine = reconstruct.shrunk(gains, left, 50)
    assert gains.std() > 0.02 and mine.std() < 0.35 * gains.std()
    np.testing.assert_allclose(mine.mean(), 1.05, atol=0.005)  # what all have in common stays
    assert ((mine - true) ** 2).sum() < 0.2 * ((gains - true) ** 2).sum()


@pytest.mark.parametrize("spread, images", [(0.1, 50), (0.1, 500), (0.03, 50), (0.01, 50)])
def test_gains_that_differ_for_a_reason_stay(spread, images):
    gains, left, true = classifier(images, spread)
    mine = reconstruct.shrunk(gains, left, images)
    assert ((mine - true) ** 2).sum() < ((gains - true) ** 2).sum()
    if spread == 0.1:
        assert np.abs(mine - gains).max() < 0.2 * np.abs(gains - gains.mean()).max()


def test_gains_of_extremes():
    one = np.array([1.3]), np.array([0.5])
    assert reconstruct.shrunk(*one, 10**9) == pytest.approx(1.3)
    assert reconstruct.shrunk(*one, 1) == 1  # one image that says 1.3 +- 0.7
    exact = reconstruct.shrunk(np.array([0.9, 1.2]), np.zeros(2), 1)
    np.testing.assert_allclose(exact, [0.9, 1.2])
    unknown = reconstruct.shrunk(np.array([1.0, 1.1, 1.1]), np.array([np.inf, 0.0, 0.0]), 50)
    np.testing.assert_allclose(unknown, [1, 1.1, 1.1])
