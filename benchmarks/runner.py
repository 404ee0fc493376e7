"""One runtime with one network in a process of its own; `networks.py` starts these and times them in turn.

    python benchmarks/runner.py KIND MODEL INPUTS.npy THREADS

KIND: ``tvm`` (MODEL an exported library), ``onnxruntime``, ``openvino``, ``openvino_bf16``,
``ncnn`` (MODEL.param and .bin).
Then, over standard input: a number n runs the network n times and prints the mean of the milliseconds;
``output FILE`` stores the outputs of the first input, one after the other; ``memory`` prints the peak
resident MiB.
"""

from __future__ import annotations

import os
import sys
import time
from importlib import metadata

import numpy as np


def tvm(model, x, threads):
    os.environ["TVM_NUM_THREADS"] = str(threads)
    from tvm_easyquant import deploy  # TVM's runtime library without the compiler and its Python

    program = deploy.Program(model)
    (name,) = program.inputs
    program.set_inputs({name: x})
    wheels = ("xtc-tvm-python-bindings", "apache-tvm")  # 0.19, today's
    found = {each.name.lower(): each.version for each in metadata.distributions() if each.name}
    version = next(found[wheel] for wheel in wheels if wheel in found)
    return program.run, program.outputs, ".".join(version.split(".")[:3])


def onnxruntime(model, x, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x}
    return lambda: session.run(None, feed), lambda: session.run(None, feed), onnxruntime.__version__


def openvino_bf16(model, x, threads):
    return openvino(model, x, threads, "bf16")


def openvino(model, x, threads, precision="f32"):
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": precision}  # fmt: skip
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
    version = openvino.__version__.split("-")[0]
    return request.infer, lambda: list(request.infer().values()), version


def ncnn(model, x, threads):
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.load_param(f"{model}.param")
    net.load_model(f"{model}.bin")
    source = ncnn.Mat(np.ascontiguousarray(x[0]))

    def run():
        extractor = net.create_extractor()
        extractor.input("in0", source)
        return [np.array(extractor.extract(name)[1]) for name in names]

    names = [f"out{i}" for i in range(len(net.output_names()))]
    return run, run, ncnn.__version__


def peak_mib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def main():
    kind, model, inputs, threads = sys.argv[1:5]
    x = np.load(inputs)[:1]
    run, output, version = globals()[kind](model, x, int(threads))
    run()
    print(version, flush=True)
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "output":
            np.save(rest, np.concatenate([np.asarray(y).ravel() for y in output()]))
            print("done", flush=True)
        elif word == "memory":
            print(peak_mib(), flush=True)
        else:
            start = time.perf_counter()
            for _ in range(int(word)):
                run()
            print(1e3 * (time.perf_counter() - start) / int(word), flush=True)


if __name__ == "__main__":
    main()
