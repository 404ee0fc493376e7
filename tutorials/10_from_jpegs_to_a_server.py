"""
From a folder of JPEGs to a server
==================================

Pictures in, a folder out that serves the network where neither TVM nor this package is installed. The
network is the embedded one; its pictures are written as JPEGs first, one folder for each class.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

try:
    from PIL import Image
except ImportError:
    print("skipped: Pillow is not installed")
    sys.exit()

import numpy as np

import tvm_easyquant as eq
from tvm_easyquant import demo
from tvm_easyquant.images import Preprocess

scratch = tempfile.TemporaryDirectory()
work = Path(scratch.name)
data = demo.images()


def as_jpegs(pictures, labels, folder):
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        path = folder / str(label) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.rint((picture[0] * demo.STD + demo.MEAN) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=95)


as_jpegs(data["calibration_images"][:50], np.zeros(50, int), work / "calibration")
as_jpegs(data["test_images"][:100], data["test_labels"][:100], work / "test")

# %%
# Quantize
# --------
# What the network wants done to a picture is said once, and kept in the table.

how = Preprocess(color="GRAY", scale=1 / 255, mean=(float(demo.MEAN),), std=(float(demo.STD),))
pictures = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(work.glob("calibration/*/*"))]
q = eq.quantize(demo.network_path(), [how(pixels) for pixels in pictures], preprocess=how)
print(f"{q.coverage:.0f} % of the multiply-accumulates run in integers")

# %%
# Lay out the folder
# ------------------
# The program takes bytes: preprocessing and the first rounding are a look-up. ``isa`` names the CPUs it is
# for; the plainest code runs on all of them.

sizes = q.deploy(work / "network", isa=["generic"], input_dtype="uint8", input_layout="NHWC")
print({name: f"{size / 1024:.0f} KiB" for name, size in sizes.items()})
print(sorted(path.name for path in (work / "network").iterdir()))

# %%
# Serve
# -----
# Any Python with numpy does, and Pillow where JPEGs are sent as they are.

environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
server = subprocess.Popen(
    [sys.executable, work / "network" / "serve.py", "--port", "0"],
    stdout=subprocess.PIPE, text=True, env=environment,
)  # fmt: skip
url = "http://127.0.0.1:" + server.stdout.readline().rpartition(":")[2].strip()
print(urllib.request.urlopen(f"{url}/health").read().decode())


def ask(jpeg):
    request = urllib.request.Request(f"{url}/predict", jpeg.read_bytes(), {"Content-Type": "image/jpeg"})
    with urllib.request.urlopen(request) as answer:
        return int(np.argmax(json.load(answer)["outputs"][0]))


answers = [(ask(path), int(path.parent.name)) for path in sorted(work.glob("test/*/*.jpg"))]
right = sum(found == label for found, label in answers)
print(f"{right} of {len(answers)} JPEGs right")
assert right >= 80

# %%
# SIGTERM lets the running calls end.

server.send_signal(signal.SIGTERM)
assert server.wait(30) == 0
server.stdout.close()
scratch.cleanup()

# sphinx_gallery_thumbnail_path = 'pictures/10.svg'
