"""
Tune for your CPU
=================

Every kernel has a few dozen variants: tile sizes, loop orders, unrolling. All compute the same integers, so
tuning can make a network faster and cannot make it wrong. This tutorial tunes one layer with a few
trials; the verb ``tune-kernels`` tunes all layers of a network::

    tvmc-easyquant tune-kernels net.onnx --table net.json -o net.log
    tvmc-easyquant compile net.onnx --tuning-records net.log -o net.tar \\
        --target "easyquant -table=net.json, llvm -mcpu=..."
"""

import tempfile
from pathlib import Path

import numpy as np
from tvm import autotvm

import tvm_easyquant as eq
from tvm_easyquant import demo
from tvm_easyquant.relay import tune as relay_tune
from tvm_easyquant.relay.build import cpu_target

# %%
# A network with one integer layer
# --------------------------------
# All others stay float here, to keep this short.

images = demo.images()
LAYER = "block2.conv2"
graph = eq.load_onnx(demo.network_path())
others = tuple(node.name for node in graph.compute_nodes if node.name != LAYER)
q = eq.quantize(graph, images["calibration_images"][:20], method="minmax", skip=others)
target = cpu_target(None)  # this CPU
print(target)

# %%
# Before
# ------
# Without records the planner orders the legal kernels by estimated costs; "slower" are those that come
# after the chosen one.

(layer,) = relay_tune.layer_choices(q.graph, q.table, target)
print(layer.choice.kernel.name, "-", layer.choice.reason)
for name, reason in layer.choice.slower[:3]:
    print("   then", name, "-", reason)

# %%
# Measure
# -------
# AutoTVM builds and times variants of the chosen kernel and of the next one. Each record is in the log at
# once: an interrupted run goes on where it stopped, and a finished kernel is not measured again.

log = Path(tempfile.mkdtemp()) / "net.log"
result = relay_tune.tune(q.module, log, target, tuner="random", trials=2, alternatives=1)
print(result)
assert result.measured == result.kernels >= 1
again = relay_tune.tune(q.module, log, target, tuner="random", trials=2, alternatives=1)
print("once more:", again)
assert again.trials == 0

# %%
# After
# -----
# Records decide before estimates do. They belong to one CPU: ``records_for`` refuses a log of another.

records = relay_tune.records_for(log, target)
for measured, outcome in records:
    knobs = {name: value for name, _, value in measured.config.to_json_dict()["entity"]}
    print(measured.task.name, knobs, f"{1e6 * np.mean(outcome.costs):.1f} us on this machine")
with autotvm.apply_history_best(records):
    (layer,) = relay_tune.layer_choices(q.graph, q.table, target)
    tuned = q.build(target)
print(layer.choice.kernel.name, "-", layer.choice.reason)
assert layer.choice.reason.startswith("tuned")

# %%
# The same numbers
# ----------------

image = {"image": images["test_images"][:1]}
np.testing.assert_array_equal(eq.Executor(tuned)(image)[0], eq.Executor(q.build(target))(image)[0])
