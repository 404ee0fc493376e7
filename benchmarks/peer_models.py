"""The peers' own models of a network, made with the peers' own tools in the peers' own environment.

    python benchmarks/peer_models.py NET.onnx INPUTS.npy FOLDER

Writes into FOLDER: ``openvino_fp32.xml``, ``openvino_int8.xml`` (NNCF post-training quantization, its
defaults), ``ncnn_fp32.param`` and ``.bin`` (pnnx) and ``ncnn_int8`` (`ncnn_int8`). ONNX Runtime's int8 is
made by `networks.py`. What pnnx or `ncnn_int8` cannot write is not there.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import ncnn_int8
import numpy as np


def main():
    network, inputs, folder = sys.argv[1], np.load(sys.argv[2]), Path(sys.argv[3])
    import nncf
    import openvino

    model = openvino.convert_model(network)
    openvino.save_model(model, folder / "openvino_fp32.xml", compress_to_fp16=False)
    data = nncf.Dataset([x[None] for x in inputs])
    openvino.save_model(nncf.quantize(model, data, subset_size=len(inputs)), folder / "openvino_int8.xml",
                        compress_to_fp16=False)  # fmt: skip
    shape = f"inputshape={[1, *inputs.shape[1:]]}".replace(" ", "")
    pnnx = Path(sys.executable).with_name("pnnx")
    paths = [f"{key}={folder / name}" for key, name in (
        ("ncnnparam", "ncnn_fp32.param"), ("ncnnbin", "ncnn_fp32.bin"), ("ncnnpy", "unused_ncnn.py"),
        ("pnnxparam", "unused.param"), ("pnnxbin", "unused.bin"), ("pnnxpy", "unused.py"),
        ("pnnxonnx", "unused.onnx"),
    )]  # fmt: skip
    subprocess.run([pnnx, network, *paths, "fp16=0", shape], check=False, cwd=folder)
    with contextlib.suppress(ValueError, OSError, KeyError):  # a layer of weights that it does not know
        ncnn_int8.write(folder / "ncnn_fp32", folder / "ncnn_int8", inputs)


if __name__ == "__main__":
    main()
