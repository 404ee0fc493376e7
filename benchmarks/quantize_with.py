"""A network quantized by another tool, for ``interchange.py --quantized``; needs that tool only.

    python benchmarks/quantize_with.py TOOL FLOAT.onnx CALIBRATION.npz QUANTIZED.onnx

TOOL: ``nncf``; ``quark:CONFIG`` with a name of Quark's own, such as XINT8 (scales are powers of two) or
A8W8; ``ppq``, for ONNX Runtime. CALIBRATION.npz holds one array of batches. Each tool wants packages of its
own: Quark 0.13 was run with onnx 1.21, PPQ 0.6.6 with onnx 1.14, protobuf 3.20 and numpy 1.26.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter


def with_nncf(source, tensor, batches, path, config):
    import nncf

    data = nncf.Dataset([{tensor: batch} for batch in batches])
    onnx.save(nncf.quantize(onnx.load(source), data, subset_size=len(batches)), path)


def with_quark(source, tensor, batches, path, config):
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config import Config, get_default_config

    class Reader:
        def rewind(self):
            self.items = iter([{tensor: batch} for batch in batches])

        __init__ = rewind

        def get_next(self):
            return next(self.items, None)

    settings = Config(global_quant_config=get_default_config(config))
    ModelQuantizer(settings).quantize_model(source, path, Reader())


def with_ppq(source, tensor, batches, path, config):
    import torch
    from ppq import TargetPlatform
    from ppq.api import export_ppq_graph, quantize_onnx_model

    graph = quantize_onnx_model(
        source, [torch.from_numpy(batch) for batch in batches], calib_steps=len(batches),
        input_shape=list(batches[0].shape), platform=TargetPlatform.ONNXRUNTIME, device="cpu", verbose=0,
    )  # fmt: skip
    export_ppq_graph(graph, platform=TargetPlatform.ONNXRUNTIME, graph_save_to=path)


def main():
    words, source, calibration, path = sys.argv[1:]
    tool, _, config = words.partition(":")
    model = onnx.version_converter.convert_version(onnx.load(source), 13)  # scales per channel
    (batches,) = np.load(calibration).values()
    with tempfile.TemporaryDirectory() as folder:
        source = str(Path(folder) / "float.onnx")
        onnx.save(model, source)
        run = {"nncf": with_nncf, "quark": with_quark, "ppq": with_ppq}[tool]
        run(source, model.graph.input[0].name, list(batches), path, config)


if __name__ == "__main__":
    main()
