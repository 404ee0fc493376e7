"""A script as users write it, which `test_typed` has checked by the strictest type checkers; it is not run."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import tvm_easyquant as eq
from tvm_easyquant.deploy import Program
from tvm_easyquant.images import Preprocess

Image = NDArray[np.float32]
images: Image = np.zeros((8, 3, 8, 8), np.float32)
labels = np.arange(8)


def pairs() -> Iterator[tuple[Image, int]]:
    for i in range(8):
        yield images[i : i + 1], int(labels[i])


def told(done: int, total: int, text: str) -> None:
    print(f"{text}: {done} of {total}")


how = Preprocess(scale=1 / 255, mean=(0.5, 0.5, 0.5), short_side=256, crop=(224, 224))
q = eq.quantize("net.onnx", images, bits=7, progress=told)
q = eq.quantize("net.onnx", "photos/", preprocess=how, method="minmax", calibration_limit=100, seed=1)
q = eq.quantize(
    "net.onnx", images, bits={"*": 7, "stem": 8, "last": "float"}, evaluation=pairs(), max_drop=0.5
)
for line in (*q.warnings, *q.notes, *q.decisions):
    print(line)
print(q, f"{q.coverage:.1f} %", q.seconds["search"])
for layer in q.layers:
    print(layer["layer"], layer["kind"], layer["macs"], layer.get("cosine", 1.0))

outputs = q.run(images[:1])
logits = outputs["logits"]
print(logits.shape, float(logits.max()))

found = q.evaluate(pairs, limit=100)
print(found["top1"].drop, found["top1"].interval, found.lines)
times = q.benchmark(rounds=5)
print(times.ms, times.speedup, [row.name for row in times.slower])
q.report("report.html", "set.npz", calibration=images, benchmark=False)

q.save(Path("net.eq"))
q = eq.Quantized.load("net.eq")
q.table.save("net.json")
table = eq.ScaleTable.load("net.json")
print(table.diff(q.table), table.config.bits, table.preprocess)
q.to_onnx("quantized.onnx")

built = q.build("llvm -mcpu=core-avx2")
print(built(images[:1])[0].shape, built.inputs["x"], built.size)
built.export("net.tar")
with Program("net.tar", contexts=2) as program:
    print(program({"x": images[:1]})[0].argmax(), program.inputs["x"][0])
print(q.deploy("network/", isa=["avx2", "generic"])["lib"])

graph = eq.load("net.onnx", input_shapes={"x": (1, 3, 8, 8)})
print(graph.run({"x": images[:1]})["logits"].sum(), graph.inputs, graph.macs)
imported = eq.import_quantized("qdq.onnx")
print(imported.plan.floats, imported.coverage)
try:
    eq.quantize("missing.onnx", images)
except eq.errors.LoadError as error:
    print(error)
with np.load("set.npz") as stored:
    print(eq.evaluate.load(zip(stored["images"], stored["labels"], strict=True)))
    data = eq.demo.images()
    print(data["test_images"].shape, eq.demo.network_path())

config = eq.QuantConfig(bits=8, method="minmax")
q = eq.quantize(graph, np.zeros((1, 3, 8, 8), np.float32), config=config)
scale: eq.Scale = q.table.activations["x"]
print(scale.scale, scale.zero_point, q.table.weights["conv"].shape)
with eq.Executor(q.build(isa="avx2")) as run:
    print(run(np.zeros((1, 3, 8, 8), np.float32))[0].shape, run.milliseconds())
for node in graph:
    print(node.name, node.op, node.shape, node.inputs)
judged = eq.Evaluation(
    "set.npz", max_drop=0.5, metric=lambda outputs, label: float(outputs[0].argmax() == label)
)
q = eq.quantize(graph, [np.zeros((1, 3, 8, 8), np.float32)], bits="auto", evaluation=judged)
print(q.drop, q.plan.integer, judged.max_drop)
scores = eq.evaluate.evaluate(eq.Executor(q.build()), "set.npz", metrics={"top1": eq.evaluate.top(1)})
right: NDArray[np.float64] = scores["top1"]
print(eq.evaluate.compare(right, right).interval)
module = q.module
print(eq.build(module, "llvm").inputs, eq.BUILD_CONFIG, eq.__version__)
print(eq.deploy.find_runtime())
