"""
The scale search by hand
========================

EasyQuant in forty lines of numpy, on the first layer of the embedded network. No TVM is needed. At the end
the package's own search gives the same scales.
"""

import numpy as np
import onnx

from tvm_easyquant import demo

model = onnx.load(demo.network_path())
constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
gain, shift, mean, var = (constants[f"stem.conv.bn.{n}"] for n in ("scale", "shift", "mean", "var"))
gain = gain / np.sqrt(var + np.float32(1e-5))  # batch normalization is folded into the layer before it
weight = constants["stem.conv.weight"] * gain[:, None, None, None]  # (K, 1, 3, 3)
bias = shift - mean * gain  # (K,)
images = demo.images()["calibration_images"][:20, 0]  # (N, 28, 28)

# %%
# A convolution is a matrix product
# ---------------------------------
# Row by row the matrix X holds the nine pixels under the kernel. O is what the float network computes.


def columns(x):
    """(N, 28, 28) -> (N, 28 * 28, 9), padded with zeros."""
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1)])
    taps = [padded[:, r : r + 28, s : s + 28] for r in range(3) for s in range(3)]
    return np.stack(taps, axis=-1).reshape(len(x), -1, 9)


W = weight.reshape(len(weight), 9).T  # (9, K)
O = columns(images) @ W + bias  # noqa: E741  the paper's letter

# %%
# Steps of 7 bits
# ---------------
# A scale is the size of a step. Signed 7-bit numbers go from -63 to 63; the start is the scale that just
# holds the largest value: one for the whole activation, one for each channel of the weights.

TOP = 63
activation_scale = np.float32(np.abs(images).max() / TOP)
start = (np.abs(W).max(axis=0) / TOP).astype(np.float32)


def integers(x, scale):
    return np.clip(np.rint(x / scale), -TOP, TOP)


# %%
# The objective
# -------------
# For each candidate the layer is computed in integers, dequantized, and compared with O: the cosine of each
# channel, averaged over the images.


def cosines(x_scale, w_scales):
    """Mean cosine of each channel: (K,)."""
    acc = columns(integers(images, x_scale)) @ integers(W, w_scales)
    o = acc * (np.float64(x_scale) * w_scales) + bias
    dot, norms = (o * O).sum(axis=1), np.sqrt((o * o).sum(axis=1) * (O.astype(float) ** 2).sum(axis=1))
    return (dot / norms).mean(axis=0)


# %%
# The search
# ----------
# One hundred factors from 0.5 to 2 multiply the paper's S, which is one over the scale: a factor above 1
# makes the step smaller and clips the largest weights. Each channel keeps its own best; the start itself
# is a candidate, so a channel cannot get worse.

factors = np.unique(np.append(np.linspace(0.5, 2, 100), 1.0))
factors = factors[np.argsort(np.abs(np.log(factors)), kind="stable")]  # on a tie the nearest to 1 wins
table = np.array([cosines(activation_scale, (start / f).astype(np.float32)) for f in factors])
best = table.argmax(axis=0)
found = (start / factors[best]).astype(np.float32)

before, after = cosines(activation_scale, start), cosines(activation_scale, found)
for c in range(4):
    print(f"channel {c}: factor {factors[best[c]]:.3f}, cosine {before[c]:.6f} -> {after[c]:.6f}")
print(f"1 - cosine, mean over channels: {1 - before.mean():.2e} -> {1 - after.mean():.2e}")
assert (after >= before).all() and after.mean() > before.mean()

# %%
# The curve of one channel
# ------------------------
# It has a broad top and no use for a finer grid.

channel = int((after - before).argmax())
for f in np.linspace(0.5, 2, 13):
    value = cosines(activation_scale, (start / np.float32(f)).astype(np.float32))[channel]
    print(f"{f:5.2f} {value:.6f} " + "#" * int(max(0, 60 + 12 * np.log10(1 - value + 1e-9) * -1 - 60)))

# %%
# The activation scale
# --------------------
# The same once more with the weights fixed, one scale for the whole tensor. The paper's cosine is now that
# of the whole output.


def whole_cosine(x_scale):
    acc = columns(integers(images, x_scale)) @ integers(W, found)
    o = (acc * (np.float64(x_scale) * found) + bias).reshape(len(images), -1)
    flat = O.reshape(len(images), -1).astype(float)
    return ((o * flat).sum(1) / np.sqrt((o * o).sum(1) * (flat * flat).sum(1))).mean()


scores = [whole_cosine(np.float32(activation_scale / f)) for f in factors]
print(f"activation: factor {factors[int(np.argmax(scores))]:.3f}")
assert max(scores) >= whole_cosine(activation_scale)

# %%
# The package does the same
# -------------------------
# ``search_weights`` needs no product for each candidate: it makes the Gram matrix once (see its module's
# text). The scales are equal.

from tvm_easyquant.network.node import Node
from tvm_easyquant.scales.numerics import QuantConfig, Scale
from tvm_easyquant.search.walk import Images
from tvm_easyquant.search.weights import search_weights

attrs = dict(strides=(1, 1), padding=(1, 1, 1, 1), dilation=(1, 1), groups=1)
node = Node("stem", "conv2d", ("image",), (1, 28, 28, len(bias)), attrs, weight.transpose(2, 3, 1, 0), bias)
stored = Scale(activation_scale, 64, 1, 127)  # -63..63 as uint8
q = (integers(images, activation_scale) + 64).astype(np.uint8)[..., None]
layer = Images(node, [x[None] for x in q], [o.reshape(1, 28, 28, -1) for o in O])
theirs = search_weights(layer, start, stored, QuantConfig(method="easyquant"))
np.testing.assert_allclose(theirs, found, rtol=1e-6)
print("the package's search agrees")

# sphinx_gallery_thumbnail_path = 'pictures/04.svg'
