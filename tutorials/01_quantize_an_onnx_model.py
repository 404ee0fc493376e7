"""
Quantize an ONNX model
======================

A float CNN becomes a network that runs in 7-bit integers. It runs on any machine with TVM 0.19: the model
and the images are embedded in the package.
"""

import numpy as np

import tvm_easyquant as eq
from tvm_easyquant import demo

# %%
# Calibrate and search
# --------------------
# Calibration data is any iterable of the model's inputs. 50 of them are used for the scale search.

images = demo.images()
q = eq.quantize(demo.network_path(), images["calibration_images"], bits=7)

# %%
# What became integer, and what did it cost?
# ------------------------------------------
# One row per layer. The cosine and the SQNR compare the layer's output with the float network's, with
# every layer before it quantized as well, so the noise that has piled up is in them.

print(f"{q.coverage:.0f} % of the multiply-accumulates run in integers")
for row in q.layers:
    print(f"{row['layer']:20} {row['kind']}  cosine {row['cosine']:.5f}  SQNR {row['sqnr_db']:.1f} dB")

# %%
# The scale table
# ---------------
# The only thing that passes from the search to the rewriter: a JSON file that can be read, compared and
# edited. Scales are real units per step.

relu = q.table.activations["stem.relu"]
print(relu)
assert (relu.zero_point, relu.lo, relu.hi) == (0, 0, 127)  # a ReLU made it: all 7 bits are positive

# %%
# Build and run
# -------------
# ``build`` lowers every integer operator to our kernels. Which one a layer gets is decided by a proof from
# its real weights.

from topi_ext.lower import LowerInteger

lower = LowerInteger("llvm -mcpu=core-avx2")
lower(q.module)
for layer in lower.layers:
    print(layer.choice)

run = eq.Executor(q.build("llvm"))
test, labels = images["test_images"][:200], images["test_labels"][:200]
guess = np.array([run({"image": x[None]})[0].argmax() for x in test])
print(f"top-1 on 200 images: {(guess == labels).mean():.1%}")
assert (guess == labels).mean() > 0.85

# %%
# The same integers everywhere
# ----------------------------
# numpy executes the module by the norm; the compiled one equals it bit for bit.

from tvm_easyquant.relay.reference import execute

np.testing.assert_array_equal(execute(q.module, {"image": test[:1]})[0], run({"image": test[:1]})[0])

# sphinx_gallery_thumbnail_path = 'pictures/01.svg'
