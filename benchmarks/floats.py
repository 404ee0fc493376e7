"""Networks that stay float altogether, batch 1: our kernels against ONNX Runtime's fp32 and TVM's own.

    python benchmarks/floats.py --json FILE [--nets NAME ...] [--also MODEL.onnx=DATA.npz ...] [--rounds N]
        [--no-stock] [--by PYTHON]

In one process on one thread, one after the other, round by round, by the thread's CPU time (a shared
machine). The host is the one that is installed; ``--by``: the same once more by an interpreter that has the
other host, whose rows are behind these. Beside the networks of `random_networks` there are single operators
(`OPERATORS`), such as ``matmul``, the last layer of an OCR recognizer (40x120 by 120x6625). Stock: what TVM
makes of the same module without us, in a few rounds. Before a network is timed its outputs must be those of
ONNX Runtime. ``--also``: a model whose input is the first array of DATA. ``build_s``: CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ["TVM_NUM_THREADS"] = "1"
os.environ.setdefault("TOPHUB_LOCATION", "NONE")

import machine
import numpy as np
import random_networks

import tvm_easyquant as eq
from topi_ext.emit import target_isa
from tvm_easyquant.files import write_text
from tvm_easyquant.host import installed

STOCK_ROUNDS = 3
SHORTEST_MS = 1000  # of all rounds of a network: a short one has more


RNG = np.random.default_rng(0)


def normal(*shape, spread=1.0):
    return (RNG.standard_normal(shape) * spread).astype(np.float32)


def operator(op, shape, out, constants, **attributes):
    """(ONNX model of one operator, its input) with constants behind the input."""
    from onnx import TensorProto, helper, numpy_helper

    names = [f"c{i}" for i in range(len(constants))]
    node = helper.make_node(op, ["image", *names], ["y"], **attributes)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, kind)
            for name, kind in (("image", shape), ("y", out))]  # fmt: skip
    held = [numpy_helper.from_array(array, name) for name, array in zip(names, constants, strict=True)]
    graph = helper.make_graph([node], op, ends[:1], ends[1:], held)
    opset = helper.make_opsetid("", 21)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10), normal(*shape)


def matmul():
    return operator("MatMul", (1, 40, 120), (1, 40, 6625), [normal(120, 6625)])


def norm(shape, groups=None):
    scale_and_bias = [normal(shape[1]), normal(shape[1])]
    if groups is None:
        return operator("InstanceNormalization", shape, shape, scale_and_bias)
    return operator("GroupNormalization", shape, shape, scale_and_bias, num_groups=groups)


def lstm(steps, size):
    """Of both directions."""
    constants = [normal(2, 4 * size, size, spread=0.1) for _ in range(2)] + [
        normal(2, 8 * size, spread=0.1)
    ]
    shapes = (steps, 1, size), (steps, 2, 1, size)
    return operator("LSTM", *shapes, constants, hidden_size=size, direction="bidirectional")


MAPS = ((1, 32, 64, 64), (1, 64, 32, 32), (1, 128, 16, 16))
SEQUENCES = ((48, 40), (96, 40), (256, 80))
#: name -> (model, input) of one operator
OPERATORS = {
    "matmul": matmul,
    **{f"instance_norm_{s[1]}x{s[2]}": partial(norm, s) for s in MAPS},
    **{f"group_norm{g}_{s[1]}x{s[2]}": partial(norm, s, g) for s in MAPS for g in (8, 32)},
    **{f"lstm_{size}x{steps}": partial(lstm, steps, size) for size, steps in SEQUENCES},
}


def models(args, folder):
    """(name, ONNX file, input) of each."""
    import onnx

    for name in args.nets:
        path = folder / f"{name}.onnx"
        if name in OPERATORS:
            model, x = OPERATORS[name]()
        else:
            model, x = random_networks.NETWORKS[name](), random_networks.pictures(1)[0]
        onnx.save(model, path)
        yield name, path, x
    for also in args.also:
        model, _, data = also.partition("=")
        with np.load(data) as arrays:
            yield Path(model).stem, Path(model), arrays[arrays.files[0]][0].astype(np.float32)


def timed(run):
    start = time.thread_time()
    run()
    return 1e3 * (time.thread_time() - start)


def ours(host, module, name, x):
    built = host.build_float(module) if host.name == "relax" else host.build(module)
    return (lambda: built({name: x})[0]), runner(host, built.library, built.executor, name, x)


def runner(host, library, executor, name, x):
    """A function that runs a built network on an input that is set already."""
    import tvm

    if host.name == "relax":
        call = tvm.relax.VirtualMachine(library, tvm.cpu())["main"]
        given = tvm.runtime.tensor(x)
        return lambda: call(given)
    executor.module.set_input(name, x)
    return executor.module.run


def stock(host, module, target, name, x):
    """The same module by TVM alone, as its user would compile it."""
    import tvm

    if host.name == "relax":
        machine_ = tvm.relax.VirtualMachine(tvm.compile(module, target), tvm.cpu())
        call, given = machine_["main"], tvm.runtime.tensor(x)
        return lambda: call(given)
    from tvm.contrib import graph_executor

    from tvm_easyquant.relay.framework import NO_CSE, no_tophub, relay

    with no_tophub(), tvm.transform.PassContext(opt_level=3, config=NO_CSE):
        library = relay.build(module, target)
    executor = graph_executor.GraphModule(library["default"](tvm.cpu()))
    executor.set_input(name, x)
    return executor.run


def measure(name, path, x, host, args):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graph = eq.load_onnx(path)
    (input_name,) = graph.inputs
    feed = {session.get_inputs()[0].name: x}
    module = host.float_module(graph)
    start = time.process_time()
    output, run = ours(host, module, input_name, x)
    build_s = time.process_time() - start
    mine, want = output(), session.run(None, feed)[0]
    off = float(np.abs(mine - want).max() / np.abs(want).max())
    if off > 1e-3:
        raise SystemExit(f"error: {name} is {off:.1e} of its range off ONNX Runtime")
    runs = {"tvm_easyquant-fp32": run, "onnxruntime-fp32": lambda: session.run(None, feed)}
    times: dict[str, list[float]] = {key: [] for key in runs}
    rounds = max(args.rounds, int(SHORTEST_MS / (timed(run) + timed(runs["onnxruntime-fp32"]))))
    for i in range(rounds + 2):
        for key in list(runs)[:: 1 if i % 2 else -1]:
            ms = timed(runs[key])
            if i >= 2:
                times[key].append(ms)
    if args.stock:
        alone = stock(host, module, host.target(), input_name, x)
        alone()
        times["tvm-fp32"] = [timed(alone) for _ in range(STOCK_ROUNDS)]
    base = float(np.median(times["onnxruntime-fp32"]))
    versions = {"onnxruntime-fp32": onnxruntime.__version__}
    return [
        {
            "net": name, "runner": key, "host": host.name, "version": versions.get(key, host.version),
            "isa": target_isa(host.target()), "threads": 1, "rounds": len(values), "macs": graph.macs,
            "ms_quartiles": [round(float(q), 3) for q in np.percentile(values, [25, 50, 75])],
            "ms_min": round(min(values), 3), "over_onnxruntime": round(float(np.median(values)) / base, 3),
            "off_onnxruntime": off if key.startswith("tvm_easyquant") else None,
            "build_s": round(build_s, 1) if key.startswith("tvm_easyquant") else None,
        }
        for key, values in times.items()
    ]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--nets", nargs="*", default=["resnet50", "mobilenet_v2", *OPERATORS])
    parser.add_argument("--also", nargs="*", default=[], metavar="MODEL=DATA")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--no-stock", dest="stock", action="store_false")
    parser.add_argument("--by", metavar="PYTHON", help="the other host's interpreter")
    args = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    host, rows = installed(), []
    with tempfile.TemporaryDirectory() as folder:
        for name, path, x in models(args, Path(folder)):
            mine = measure(name, path, x, host, args)
            rows += mine
            for row in mine:
                low, median, high = row["ms_quartiles"]
                print(f"{name:24}{row['runner']:20}{median:9.3f} ms ({low:.3f}..{high:.3f})"
                      f"{row['over_onnxruntime']:8.2f}x", flush=True)  # fmt: skip
            write(args.json, rows)
        if args.by:
            other = Path(folder, "other.json")
            given = ["--nets", *args.nets, "--also", *args.also, "--rounds", str(args.rounds)]
            given += [] if args.stock else ["--no-stock"]
            subprocess.run([args.by, __file__, "--json", str(other), *given], check=True)
            write(args.json, rows + json.loads(other.read_text())["rows"])


def write(path, rows):
    if path:
        write_text(path, json.dumps({"machine": machine.describe(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
