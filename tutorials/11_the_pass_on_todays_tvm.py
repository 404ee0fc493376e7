"""
The pass on today's TVM
=======================

:doc:`The second tutorial <02_the_pass_in_a_tvm_build>` with apache-tvm 0.27 and Relax: the same two passes,
between them a module that any pipeline compiles, and the same integers.
"""

import sys

import numpy as np
import onnx

import tvm_easyquant as eq
from tvm_easyquant import demo
from tvm_easyquant.errors import TVMMissing
from tvm_easyquant.host import installed

try:
    installed("relax")
except TVMMissing:
    print("skipped: this needs apache-tvm 0.27 (pip install 'tvm_easyquant[relax]')")
    sys.exit()

import tvm
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx

module = from_onnx(onnx.load(demo.network_path()), keep_params_in_input=False)
images = demo.images()
calibration, image = images["calibration_images"][:10], images["test_images"][:1]

# %%
# One pass
# --------
# The params are constants of the module. Layers are called as the module's variables are.

quantize = eq.EasyQuant(calibration=calibration, config=eq.QuantConfig(bits=7, search_images=10))
integer = quantize(module)

layers = [
    function.attrs["easyquant.name"]
    for _, function in integer.functions_items()
    if isinstance(function, relax.Function) and function.attrs and "Composite" in function.attrs
]
print(len(layers), "layers:", *layers)

# %%
# Between the passes
# ------------------
# Each layer is a private function that says in stock operators what it computes. Any pipeline compiles it.


def run(library):
    return relax.VirtualMachine(library, tvm.cpu())["main"](tvm.runtime.tensor(image)).numpy()


stock = tvm.compile(integer, tvm.target.Target({"kind": "llvm"}))

# %%
# Composed with other passes
# --------------------------
# A table found before makes the same module without any data. ``LowerInteger`` keeps what it decided.

lower = eq.LowerInteger("llvm")
again = eq.EasyQuant(quantize.table)
passes = tvm.transform.Sequential([again, relax.transform.CanonicalizeBindings(), lower])
library = tvm.compile(passes(module), lower.target, relax_pipeline=eq.pipeline("llvm"))
for layer in lower.layers[:5]:
    print(f"{layer.name:8} {layer.spec.shape_text:24} {layer.choice}")

# %%
# The same integers
# -----------------

np.testing.assert_array_equal(run(library), run(stock))
print("class", run(library).argmax())

# sphinx_gallery_thumbnail_path = 'pictures/11.svg'
