"""
Accuracy: measured, and kept
============================

What do the integers cost? Labelled data answer. Then the question is turned round: so much may be lost,
which layers must keep more bits? At the end everything is one HTML page.
"""

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import tvm_easyquant as eq
from tvm_easyquant import demo
from tvm_easyquant.evaluate import compare, evaluate

for package, extra in {"scipy": "mixed", "jinja2": "report"}.items():
    if find_spec(package) is None:
        print(f"skipped: {package} is not installed (pip install 'tvm_easyquant[{extra}]')")
        sys.exit()

data = demo.images()
calibration = data["calibration_images"][:50]
labelled = list(zip(data["test_images"][:200], data["test_labels"][:200], strict=True))

# %%
# Two networks on the same images
# -------------------------------
# A start without search, so that there is something to lose. ``compare`` counts the images that only one of
# the two has right: the difference is known far better than either accuracy.

q = eq.quantize(demo.network_path(), calibration, bits=7, method="minmax")
run = eq.Executor(q.build("llvm"))
float32 = evaluate(q.graph.run, labelled, inputs=q.graph.inputs)
integers = evaluate(run, labelled)
print(compare(integers["top1"], float32["top1"]))

# %%
# Not more than so many points
# ----------------------------
# ``max_drop`` reverts layers, the worst first, 7 -> 8 -> float, until the compiled integers lose no more.
# Here they may lose nothing. The decisions are lines. (``quantize --max-drop 0 --eval labelled/``.)

kept = eq.quantize(
    demo.network_path(), calibration, bits=7, method="minmax", evaluation=labelled, max_drop=0.0,
    target="llvm",
)  # fmt: skip
print(*kept.decisions, sep="\n")
print(kept.drop)
assert kept.drop.difference >= 0

# %%
# The fastest bits within a drop
# ------------------------------
# ``bits="auto"`` weighs each layer's error against its kernels' stored times on this CPU, and solves for
# the fastest.

auto = eq.quantize(
    demo.network_path(), calibration, bits="auto", method="minmax", evaluation=labelled, max_drop=0.5
)
print(*auto.decisions, sep="\n")
print({row["layer"]: row["kind"] for row in auto.layers})

# %%
# One page
# --------
# ``report`` puts figures, the network as a graph, each layer's kernel and proof, and the images whose
# answer changed on one page without a request to anybody (:doc:`/report`).

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    kept.table.save(folder / "net.json")
    np.savez(folder / "labelled.npz", images=data["test_images"][:100], labels=data["test_labels"][:100])
    words = ["report", demo.network_path(), "--table", "net.json", "--data", "labelled.npz"]
    words += ["--no-benchmark", "-o", "net.html"]
    subprocess.run([sys.executable, "-m", "tvm_easyquant.cli", *words], cwd=folder, check=True)
    print(f"net.html: {(folder / 'net.html').stat().st_size / 1024:.0f} KiB")

# sphinx_gallery_thumbnail_path = 'pictures/12.svg'
