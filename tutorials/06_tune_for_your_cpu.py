"""
Tune for your CPU
=================

Every kernel has a few dozen variants: tile sizes, loop orders, unrolling. All compute the same integers, so
tuning can make a network faster and cannot make it wrong. This tutorial tunes one layer with a few
trials; the verb ``tune-kernels`` tunes all layers of a network, by either TVM::

    tvmc-easyquant tune-kernels net.onnx --table net.json -o net.log
    tvmc-easyquant plan net.onnx --table net.json --tuning-records net.log
    tvmc-easyquant compile net.onnx --tuning-records net.log -o net.tar \\
        --target "easyquant -table=net.json, llvm -mcpu=..."
"""

import tempfile
from pathlib import Path

import numpy as np

import tvm_easyquant as eq
from tvm_easyquant import demo, tuning
from tvm_easyquant.host import installed

# %%
# A network with one integer layer
# --------------------------------
# All others stay float here, to keep this short.

images = demo.images()
LAYER = "block2.conv2"
graph = eq.load_onnx(demo.network_path())
others = tuple(node.name for node in graph.compute_nodes if node.name != LAYER)
q = eq.quantize(graph, images["calibration_images"][:20], method="minmax", skip=others)
host = installed()  # TVM 0.19, or today's apache-tvm
target = host.target(None)  # this CPU
print(host.name, target)

# %%
# Before
# ------
# Without records the planner orders the legal kernels by estimated costs; "slower" are those that come
# after the chosen one.

(layer,) = host.layer_choices(q.graph, q.table, target)
print(layer.choice.kernel.name, "-", layer.choice.reason)
for name, reason in layer.choice.slower[:3]:
    print("   then", name, "-", reason)

# %%
# Measure
# -------
# Variants of the chosen kernel and of the next one are built and timed: here two of each, otherwise all.
# With TVM 0.19 AutoTVM's tuners do it as well (``tuner="xgb"``). Each record is in the log at once: an
# interrupted run goes on where it stopped, and a finished kernel is not measured again.

log = Path(tempfile.mkdtemp()) / "net.log"
result = host.tune(q.module, log, target, tuner="exhaustive", trials=2, alternatives=1)
print(result)
assert result.measured == result.kernels >= 1
again = host.tune(q.module, log, target, tuner="exhaustive", trials=2, alternatives=1)
print("once more:", again)
assert again.trials == 0

# %%
# After
# -----
# Records decide before estimates do. They belong to one CPU: a log of another is refused. Each TVM reads
# what the other one wrote, and AutoTVM's records.

for record in tuning.read(log):
    print(record.kernel, dict(record.knobs), f"{record.us:.1f} us on this machine")
with host.history(log, target):
    (layer,) = host.layer_choices(q.graph, q.table, target)
    tuned = q.build(target)
print(layer.choice.kernel.name, "-", layer.choice.reason)
assert layer.choice.reason.startswith("tuned")

# %%
# The same numbers
# ----------------

image = {"image": images["test_images"][:1]}
np.testing.assert_array_equal(tuned(image)[0], q.build(target)(image)[0])

# sphinx_gallery_thumbnail_path = 'pictures/06.svg'
