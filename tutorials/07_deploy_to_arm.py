"""
Compile for a 64-bit ARM board, run there, and tune over RPC
============================================================

Everything here happens on an x86 computer. The board is played by qemu: it computes what a board computes,
bit for bit, but **its times mean nothing**. Needs, on Debian and Ubuntu, ``apt-get install
--no-install-recommends qemu-user g++-aarch64-linux-gnu``; without them the tutorial says so and ends.
"""

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TOPHUB_LOCATION", "NONE")  # no schedules to download
sys.path.insert(0, str(Path(__file__).resolve().parent / "arm"))
import device
import numpy as np
import tvm
from tvm import autotvm
from tvm.contrib import cc

import tvm_easyquant as eq
from topi_ext.lower import LowerInteger
from tvm_easyquant import demo

logging.getLogger("autotvm").setLevel(logging.ERROR)  # untuned is what we start from
try:
    program = device.set_up(device.default_folder())
    emulator = device.emulator()
except device.Missing as missing:
    print(f"skipped: {missing}")
    sys.exit()

# %%
# Quantize as always; compile for the board
# -----------------------------------------
# A Cortex-A53 or A72 sums up to eight 7-bit products in 16 bits (``smull``, ``smlal``, then one
# ``sadalp``), or multiplies in the Winograd domain; a core with dot products takes ``sdot``. The planner
# says which kernel each layer gets, the proof, and why: static cycle counts of the core that ``-mcpu``
# names (``benchmarks/arm.py``), until a tuning record outranks them.

images = demo.images()
q = eq.quantize(demo.network_path(), images["calibration_images"][:50], bits=7, method="minmax")
for target in ("llvm -mtriple=aarch64-linux-gnu -mattr=+neon",
               "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a55"):  # fmt: skip
    lower = LowerInteger(target)
    lower(q.module)
    print(target)
    for layer in lower.layers:
        print(f"    {layer.choice}; {layer.choice.reason}")

target = tvm.target.Target("llvm -mtriple=aarch64-linux-gnu -mattr=+neon")
folder = Path(tempfile.mkdtemp())
library = q.build(target)
library.export_library(str(folder / "net.so"), fcompile=cc.cross_compiler(device.COMPILER))

# %%
# The files that go to the board
# ------------------------------
# The network with its weights, TVM's runtime, and a small program (``tutorials/arm/device.cc``) that loads
# the one with the other. No Python on the board. ``tvmc-easyquant compile --cross-compiler
# aarch64-linux-gnu-g++`` makes an archive; unpacked, ``device run`` takes its folder as well.

for path in (folder / "net.so", program, program.with_name("libtvm_runtime.so")):
    print(f"{path.name:22}{path.stat().st_size / 1e6:6.2f} MB")

image = images["test_images"][:1]
image.tofile(folder / "in.bin")
command = [*emulator, program, "run", folder / "net.so", f"image={folder / 'in.bin'}", folder / "out.bin"]
subprocess.run(list(map(str, command)), check=True)

here = eq.Executor(q.build())({"image": image})[0]
there = np.fromfile(folder / "out.bin", np.float32).reshape(here.shape)
np.testing.assert_array_equal(there, here)
print("the ARM program gives the same numbers as this computer")

# %%
# Tune over RPC
# -------------
# A tracker knows the boards; each runs ``device serve PORT TRACKER TRACKER_PORT KEY`` (or, with Python on
# the board, ``python -m tvm.exec.rpc_server``). AutoTVM compiles candidates here and measures them there.
# Each record is in the log as soon as it is measured, so an interrupted run loses none. For all layers of a
# network, with a board::
#
#   python -m tvm.exec.rpc_tracker --port 9190                     # here
#   ./device serve 9090 HERE 9190 board                            # on the board
#   tvmc-easyquant tune-kernels net.onnx --table net.json -o net.log --rpc-tracker 127.0.0.1:9190 \
#       --rpc-key board --cross-compiler aarch64-linux-gnu-g++ --target "llvm -mtriple=aarch64-linux-gnu"

from tvm.rpc.tracker import Tracker

tasks = autotvm.task.extract_from_program(LowerInteger(target)(q.module)["main"], {}, target)
task = max(tasks, key=lambda t: len(t.config_space))
log = folder / "tuning.json"
tracker = Tracker("127.0.0.1", port=9190, port_end=9290, silent=True)
try:
    with device.Emulated(program, ("127.0.0.1", tracker.port), key="board"):
        runner = autotvm.RPCRunner("board", "127.0.0.1", tracker.port, number=1, repeat=1, timeout=20)
        builder = autotvm.LocalBuilder(build_func=cc.cross_compiler(device.COMPILER), n_parallel=1)
        autotvm.tuner.GridSearchTuner(task).tune(
            n_trial=3,
            measure_option=autotvm.measure_option(builder, runner),
            callbacks=[autotvm.callback.log_to_file(str(log))],
        )
finally:
    tracker.terminate()

records = list(autotvm.record.load_from_file(str(log)))
for measured, result in records:
    print(f"{task.name} {measured.config.to_json_dict()['entity']}: error {result.error_no}")
    assert result.error_no == 0, result
print("measured under qemu: the times mean nothing and are not shown")

# %%
# Build with the log
# ------------------
# The numbers cannot change: every configuration computes the same integers.

with autotvm.apply_history_best(str(log)):
    tuned = q.build(target)
tuned.export_library(str(folder / "net.so"), fcompile=cc.cross_compiler(device.COMPILER))
subprocess.run(list(map(str, command)), check=True)
np.testing.assert_array_equal(np.fromfile(folder / "out.bin", np.float32).reshape(here.shape), here)

# sphinx_gallery_thumbnail_path = 'pictures/07.svg'
