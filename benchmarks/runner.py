"""One runtime with one network in a process of its own: `networks.py` and `throughput.py` time it in turn.

    python benchmarks/runner.py KIND MODEL INPUTS.npy THREADS BATCH

KIND: ``tvm`` (MODEL an exported library), ``onnxruntime``, ``openvino``, ``openvino_bf16``,
``ncnn`` (MODEL.param and .bin). Two keep several calls under way: ``tvm_pool``, as many as THREADS, of one
thread each, by a program that they share; ``openvino_streams``, by the streams that OpenVINO chooses.
BATCH is of ``onnxruntime`` and ``openvino``; a library of ours is made for one, the others take 1.
Then, over standard input: a number n runs the network n times and prints the mean of the milliseconds;
``rate START SECONDS`` runs it for that long from that time of the monotonic clock and prints the calls a
second; ``output FILE`` stores the outputs of the first input, one after the other; ``memory`` prints the
peak resident MiB.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata

import numpy as np


def rate(run, start, seconds, finish=None):
    """Calls a second, until the last of them has ended."""
    time.sleep(max(start - time.monotonic(), 0))
    start, calls = time.monotonic(), 0
    while calls == 0 or time.monotonic() < start + seconds:
        run()
        calls += 1
    if finish:
        finish()
    return calls / (time.monotonic() - start)


def tvm(model, x, threads):
    os.environ["TVM_NUM_THREADS"] = str(threads)
    from tvm_easyquant import deploy  # TVM's runtime library without the compiler and its Python

    program = deploy.Program(model)
    (name,) = program.inputs
    program.set_inputs({name: x})
    return program.run, program.outputs, tvm_version()


def tvm_pool(model, x, threads):
    from tvm_easyquant import deploy

    program = deploy.Program(model, contexts=threads, threads=1)
    callers = ThreadPoolExecutor(threads)

    def rates(start, seconds):
        asked = [callers.submit(rate, lambda: program(x), start, seconds) for _ in range(threads)]
        return sum(each.result() for each in asked)

    return lambda: program(x), lambda: program(x), tvm_version(), rates


def tvm_version():
    wheels = ("xtc-tvm-python-bindings", "apache-tvm")  # 0.19, today's
    found = {each.name.lower(): each.version for each in metadata.distributions() if each.name}
    version = next(found[wheel] for wheel in wheels if wheel in found)
    return ".".join(version.split(".")[:3])


def onnxruntime(model, x, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if len(x) > 1:
        model = of_batch(model, len(x))
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x}
    return lambda: session.run(None, feed), lambda: session.run(None, feed), onnxruntime.__version__


def of_batch(path, batch):
    """A model of batch 1 as one of another, in bytes."""
    import onnx

    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    for each in model.graph.output:
        each.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    return model.SerializeToString()


def openvino_bf16(model, x, threads):
    return openvino(model, x, threads, "bf16")


def openvino(model, x, threads, precision="f32"):
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": precision}  # fmt: skip
    compiled = openvino_model(model, x, settings)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
    version = openvino.__version__.split("-")[0]
    return request.infer, lambda: list(request.infer().values()), version


def openvino_streams(model, x, threads):
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "THROUGHPUT",
                "INFERENCE_PRECISION_HINT": "f32"}  # fmt: skip
    requests = openvino.AsyncInferQueue(openvino_model(model, x, settings))
    for request in requests:
        request.set_input_tensor(openvino.Tensor(x, shared_memory=True))

    def rates(start, seconds):
        return rate(requests.start_async, start, seconds, requests.wait_all)

    version = openvino.__version__.split("-")[0]
    return requests[0].infer, lambda: list(requests[0].infer().values()), version, rates


def openvino_model(model, x, settings):
    import openvino

    core = openvino.Core()
    if len(x) > 1:
        model = core.read_model(model)
        model.reshape(list(x.shape))
    return core.compile_model(model, "CPU", settings)


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
    kind, model, inputs, threads, batch = sys.argv[1:6]
    x = np.load(inputs)[: int(batch)]
    run, output, version, *rates = globals()[kind](model, x, int(threads))
    run()
    print(version, flush=True)
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "output":
            np.save(rest, np.concatenate([np.asarray(y).reshape(len(x), -1)[0] for y in output()]))
            print("done", flush=True)
        elif word == "rate":
            start, seconds = map(float, rest.split())
            print(rates[0](start, seconds) if rates else rate(run, start, seconds), flush=True)
        elif word == "memory":
            print(peak_mib(), flush=True)
        else:
            start = time.perf_counter()
            for _ in range(int(word)):
                run()
            print(1e3 * (time.perf_counter() - start) / int(word), flush=True)


if __name__ == "__main__":
    main()
