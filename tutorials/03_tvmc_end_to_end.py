"""
tvmc from end to end
====================

``tvmc-easyquant`` is TVM's own ``tvmc`` with our verbs and a composite target. Every verb of tvmc is there
and untouched. Today's TVM has no tvmc: there the same lines are ``tvmc-easyquant``'s alone. The lines that
start with ``$`` are what you would type.
"""

import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tvm_easyquant import demo

if not (shutil.which("g++") or shutil.which("clang++")):
    print("skipped: what is compiled is linked, and there is no C++ compiler here")
    sys.exit()

folder = Path(tempfile.mkdtemp())
images = demo.images()
shutil.copy(demo.network_path(), folder / "net.onnx")
np.savez(folder / "images.npz", image=images["calibration_images"][:10])
np.savez(folder / "input.npz", image=images["test_images"][:1])


def shell(command, code=0):
    """Run a command line, show it and what it prints."""
    print(f"$ {command}")
    words = shlex.split(command.replace("tvmc-easyquant", "-m tvm_easyquant.cli", 1))
    result = subprocess.run(
        [sys.executable, "-W", "ignore", *words], cwd=folder, capture_output=True, text=True
    )
    print(result.stdout + result.stderr)
    assert result.returncode == code, result.returncode


# %%
# What would run in integers?
# ---------------------------
# ``--dry-run`` needs no data. ``doctor`` says what this machine can do.

shell("tvmc-easyquant quantize net.onnx --dry-run")

# %%
# Quantize
# --------
# An .npz holds one array for each input of the model, samples along the first axis. Fifty would be better
# than ten. The result is a scale table: JSON, to be read, compared and edited.

shell("tvmc-easyquant quantize net.onnx --calibration images.npz --bits 7 --search-images 10 -o net.json")

# %%
# Which kernel does each layer get?
# ---------------------------------
# And why: the proof, and what was refused.

shell('tvmc-easyquant plan net.onnx --table net.json --target "llvm -mcpu=core-avx2"')

# %%
# Compile and run
# ---------------
# With TVM 0.19 the archive is tvmc's own. It runs where TVM's runtime is, without this package.

shell('tvmc-easyquant compile net.onnx --target "easyquant -table=net.json, llvm" -o net.tar')
shell("tvmc-easyquant run net.tar --inputs input.npz --print-top 3")

# %%
# A mistake
# ---------
# Mistakes are one line, the exit code is 4, and nothing half-written stays behind.

shell("tvmc-easyquant quantize net.onnx --calibration images.npz --skip stem.con -o other.json", code=4)
assert not (folder / "other.json").exists()

# sphinx_gallery_thumbnail_path = 'pictures/03.svg'
