"""
To and from other tools
=======================

Scales are no secret of this package. The quantized network leaves as standard QDQ ONNX, which ONNX Runtime
runs, or as ncnn's calibration table; a model that another tool quantized comes in and runs on our kernels.
"""

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import tvm_easyquant as eq
from tvm_easyquant import demo
from tvm_easyquant.scales.integer import run_integer
from tvm_easyquant.writers import ncnn, verify

if find_spec("onnxruntime") is None:
    print("skipped: ONNX Runtime is not installed")
    sys.exit()

scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)
images = demo.images()
calibration, test = images["calibration_images"][:50], images["test_images"][:20]
q = eq.quantize(demo.network_path(), calibration, bits=7)

# %%
# Out: QDQ ONNX
# -------------
# ``q.to_onnx``, or ``export-onnx`` on the command line. ONNX Runtime computes it; ``verify`` compares
# tensor by tensor with our integers.

q.to_onnx(folder / "quantized.onnx")
session = verify.session(verify.load(folder / "quantized.onnx"))
theirs = session.run(None, {"image": test[:1]})[0]
(ours,) = run_integer(q.graph, q.table, {"image": test[:1]}).values()
print("ours ", ours.round(3))
print("ONNX Runtime", theirs.round(3))
found = verify.verify(q.graph, q.table, [{"image": image[None]} for image in test])
print(f"{found.labels} of {found.inputs} inputs get the same class")
print(f"{found.total('different')} of {found.total('values')} integers differ")
assert found.unexplained == 0

# %%
# In: what another tool quantized
# -------------------------------
# ONNX Runtime's own static quantization, then ``import_quantized`` (``import-onnx`` on the command line):
# its scales and its integers, our kernels. Whatever cannot be taken over stays float and says why.

from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Calibration(CalibrationDataReader):
    """Any reader of ONNX Runtime's is calibration data for ``eq.quantize``, too."""

    def __init__(self):
        self.feeds = iter({"image": image[None]} for image in calibration)

    def get_next(self):
        """The next sample, or None."""
        return next(self.feeds, None)


quant_pre_process(demo.network_path(), folder / "folded.onnx", skip_symbolic_shape=True)
quantize_static(
    folder / "folded.onnx", folder / "theirs.onnx", Calibration(), quant_format=QuantFormat.QDQ,
    per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=True,
)  # fmt: skip
imported = eq.import_quantized(folder / "theirs.onnx")
print(f"{imported.plan.coverage(imported.graph).figure} % of the multiply-accumulates run in integers")
run = eq.Executor(imported.build("llvm"))
session = verify.session(verify.load(folder / "theirs.onnx"))
same = [
    run({"image": x[None]})[0].argmax() == session.run(None, {"image": x[None]})[0].argmax() for x in test
]
print(f"{sum(same)} of {len(same)} images get the class that ONNX Runtime gives them")
assert sum(same) >= len(same) - 1

# %%
# ncnn's table
# ------------
# ncnn knows symmetric scales only: ``symmetric`` settings find such. Out, and in again: the same scales.

symmetric = eq.quantize(demo.network_path(), calibration, bits=8, method="easyquant")
ncnn.save(folder / "net.table", symmetric.graph, symmetric.table)
print((folder / "net.table").read_text()[:200], "...")
again = ncnn.load(folder / "net.table", symmetric.graph)
for layer, scales in symmetric.table.weights.items():
    np.testing.assert_allclose(again.weights[layer], scales, rtol=1e-6)
scratch.cleanup()

# sphinx_gallery_thumbnail_path = 'pictures/13.svg'
