"""What another tool's quantized networks answer; `accuracy.py` starts this in a process of its own.

    python benchmarks/accuracy_peers.py KIND NET.onnx FOLDER SETTINGS

Reads FOLDER/calibration.npy and FOLDER/inputs.npy, (N, 1, 3, H, W) float32; for each of the SETTINGS (JSON,
{name: settings}) quantizes NET with KIND's own tool (onnxruntime, openvino, relay_quantize) on the
calibration images, runs it on every input, and writes FOLDER/outputs_I.npz, I its number: arrays "0", "1",
..., (N, ...), the outputs in the model's order. Prints a line of JSON for each: its name, versions and
seconds, or why it failed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np


def onnxruntime(network, calibration, folder, settings):
    """Static QDQ, u8s8: uint8 activations, int8 weights; at opset 13, which scales per channel need.

    With the setting ``float_sums`` it runs the nodes one by one, layers in float32 between Q and DQ: what
    its integer kernels compute where they do not saturate.
    """
    import onnx
    import onnxruntime
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if settings.get("float_sums"):
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL

    def session(path):
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    name = session(network).get_inputs()[0].name

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.items = iter(calibration)

        def get_next(self):
            sample = next(self.items, None)
            return None if sample is None else {name: np.asarray(sample)}

    made = network
    if settings:
        prepared, made = folder / "prepared.onnx", folder / "quantized.onnx"
        model = onnx.load(network)
        if next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")) < 13:
            model = onnx.version_converter.convert_version(model, 13)
        onnx.save(model, folder / "opset13.onnx")
        quant_pre_process(str(folder / "opset13.onnx"), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared), str(made), Reader(), quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod[settings["calibrate_method"]],
            per_channel=True, reduce_range=settings["reduce_range"],
        )  # fmt: skip
    net = session(made)
    return lambda x: net.run(None, {name: x}), {"version": onnxruntime.__version__}


def openvino(network, calibration, folder, settings):
    """NNCF post-training quantization, executed by OpenVINO with float32 for what stays float."""
    import nncf
    import openvino

    model = openvino.convert_model(str(network))
    if settings:
        settings = dict(settings)
        if "preset" in settings:
            settings["preset"] = nncf.QuantizationPreset(settings["preset"])
        data = nncf.Dataset([np.asarray(x) for x in calibration])
        model = nncf.quantize(model, data, subset_size=len(calibration), **settings)
    hints = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(model, "CPU", hints)
    request = compiled.create_infer_request()
    facts = {"version": openvino.__version__.split("-")[0], "nncf": nncf.__version__}
    return lambda x: list(request.infer([x]).values()), facts


def relay_quantize(network, calibration, folder, settings):
    """TVM's own quantizer on plain llvm: its int8 kernels for x86 abort with VNNI and saturate on AVX2."""
    import math

    np.math = math  # it uses what numpy 2 has no more
    import onnx
    import tvm
    from tvm import relay

    from tvm_easyquant.relay.build import Executor
    from tvm_easyquant.relay.framework import NO_CSE, no_tophub

    module, params = relay.frontend.from_onnx(onnx.load(network), freeze_params=True)
    name = module["main"].params[0].name_hint
    data = [{name: np.asarray(x)} for x in calibration]
    with no_tophub():
        with relay.quantize.qconfig(**settings):
            module = relay.quantize.quantize(module, params, dataset=data)
        with tvm.transform.PassContext(opt_level=3, config=NO_CSE):
            executor = Executor(relay.build(module, "llvm"))
    return lambda x: executor({name: x}), {"version": tvm.__version__}


def main():
    kind, network, folder, settings = sys.argv[1:5]
    folder = Path(folder)
    calibration = np.load(folder / "calibration.npy", mmap_mode="r")
    inputs = np.load(folder / "inputs.npy", mmap_mode="r")
    for i, (name, chosen) in enumerate(json.loads(settings).items()):
        started = time.perf_counter()
        try:
            run, facts = globals()[kind](Path(network), calibration, folder, chosen)
            facts["quantize_seconds"] = round(time.perf_counter() - started, 1)
            answers = [[np.array(y)[0] for y in run(np.asarray(x))] for x in inputs]
            outputs = {str(k): np.stack(each) for k, each in enumerate(zip(*answers, strict=True))}
            np.savez(folder / f"outputs_{i}.npz", **outputs)
        except Exception as error:  # noqa: BLE001  # the tools raise anything
            facts = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:250]}"}
        print(json.dumps({"name": name, **facts}), flush=True)


if __name__ == "__main__":
    main()
