"""
The pass inside a TVM build
===========================

You have a Relay module and your own pipeline of passes. Quantization is one more pass: ``EasyQuant`` makes
standard ``qnn`` operators out of float ones, ``LowerInteger`` hands them to our kernels.
"""

import os
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import tvm
from tvm import relay

import tvm_easyquant as eq
from topi_ext.lower import LowerInteger
from tvm_easyquant import demo

os.environ.setdefault("TOPHUB_LOCATION", "NONE")  # no schedules of TVM's to download

module, params = relay.frontend.from_onnx(onnx.load(demo.network_path()))
images = demo.images()
calibration, image = images["calibration_images"][:10], images["test_images"][:1]

# %%
# One pass
# --------
# It takes calibration data and a config. ``skip`` keeps layers float; here the classifier.

config = eq.QuantConfig(bits=7, skip=("logits",), search_images=10)
quantize = eq.EasyQuant(calibration=calibration, params=params, config=config)
integer = quantize(module)


def operators(mod):
    found = Counter()
    relay.analysis.post_order_visit(
        mod["main"], lambda e: found.update([e.op.name] if isinstance(e, relay.Call) else [])
    )
    return found


for name, count in sorted(operators(integer).items()):
    print(f"{count:3} {name}")
assert operators(integer)["nn.dense"] == 1 and not operators(integer)["nn.conv2d"]

# %%
# The scales it found
# -------------------
# They are the pass's attribute ``table``. Saved, they make the same module again without any data: search
# once, build for many targets.

file = Path(tempfile.mkdtemp()) / "scales.json"
quantize.table.save(file)
again = eq.EasyQuant(eq.ScaleTable.load(file), params=params)
assert tvm.ir.structural_equal(again(module), integer)

# %%
# Composed with other passes
# --------------------------
# Both passes fit in ``Sequential``, with passes of yours around them, and in a ``PassContext``.
# ``LowerInteger`` keeps what it decided: the kernel of each layer and the proof that it may be used.

target = "llvm"
lower = LowerInteger(target)
passes = tvm.transform.Sequential([again, relay.transform.InferType(), lower])
with tvm.transform.PassContext(opt_level=3):
    lowered = passes(module)
    library = relay.build(lowered, target)
for layer in lower.layers:
    print(f"{layer.name:20} {layer.spec.shape_text:24} {layer.choice}")
print(operators(lowered))

# %%
# Run it as any TVM library
# -------------------------
# No class of ours is needed. The result equals the norm (``topi_ext.reference``) bit for bit; the float
# classifier at the end sums in its own order.

from tvm.contrib.graph_executor import GraphModule

run = GraphModule(library["default"](tvm.cpu()))
run.set_input("image", image)
run.run()
logits = run.get_output(0).numpy()

from tvm_easyquant.relay.reference import execute

np.testing.assert_allclose(logits, execute(integer, {"image": image})[0], rtol=1e-5)
print("class", logits.argmax())

# sphinx_gallery_thumbnail_path = 'pictures/02.svg'
