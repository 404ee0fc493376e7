"""
A detector, from ONNX to boxes
==============================

A network that finds shapes becomes one that runs in 7-bit integers, and is judged by what it is for: mean
average precision. It is built like the small detectors that phones run: LeakyReLU, depthwise layers,
bottlenecks without an activation. Everything is made here, in numpy.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
from metrics.boxes import mean_average_precision, overlaps  # beside this file
from onnx import helper, numpy_helper

import tvm_easyquant as eq
from tvm_easyquant.evaluate import compare, evaluate

SIDE, CELL, CLASSES = 64, 8, ("square", "disc", "cross")
rng = np.random.default_rng(0)

# %%
# Pictures with known boxes
# -------------------------
# One to three shapes on a noisy ground, each kind in tints of its own. A label is a row for each: class,
# x0, y0, x1, y1.


def picture():
    image = rng.uniform(0.3, 0.5, (3, 1, 1)) + 0.1 * rng.standard_normal((3, SIDE, SIDE))
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    label = []
    for _ in range(rng.integers(1, 4)):
        kind, half = rng.integers(len(CLASSES)), rng.uniform(8, 11)
        cx, cy = rng.uniform(half, SIDE - half, 2)
        box = [kind, cx - half, cy - half, cx + half, cy + half]
        if label and overlaps(np.array([box[1:]]), np.array(label)[:, 1:]).any():
            continue
        dx, dy = np.abs(x - cx), np.abs(y - cy)
        inside = (
            np.maximum(dx, dy) < half,
            dx**2 + dy**2 < half**2,
            (np.maximum(dx, dy) < half) & (np.minimum(dx, dy) < half / 3),
        )[kind]
        colour = image[:, 0, 0] + np.eye(3)[kind] * rng.uniform(0.6, 1) + rng.uniform(-0.2, 0.2, 3)
        image[:, inside] = colour[:, None] + 0.05 * rng.standard_normal((3, inside.sum()))
        label.append(box)
    return image[None].astype(np.float32), np.array(label)


training, calibration, test = ([picture() for _ in range(n)] for n in (400, 30, 100))

# %%
# The network
# -----------
# Its body is random; each layer is scaled so that its outputs have mean 0 and deviation 1, but those that a
# depthwise layer reads, whose channels have sizes of their own, as training leaves them. The last layer is
# fitted below.

layers = []  # (weight, bias, stride, groups, LeakyReLU or not)


def to_onnx(batch=1):
    nodes, constants, x = [], [], "image"
    for i, (weight, bias, stride, groups, leaky) in enumerate(layers):
        name = f"layer{i}"
        constants += [
            numpy_helper.from_array(weight, f"{name}.w"),
            numpy_helper.from_array(bias, f"{name}.b"),
        ]
        options = dict(strides=[stride] * 2, pads=[weight.shape[-1] // 2] * 4, group=groups)
        nodes.append(helper.make_node("Conv", [x, f"{name}.w", f"{name}.b"], [name], name, **options))
        x = name
        if leaky:
            nodes.append(helper.make_node("LeakyRelu", [x], [f"{name}.leaky"], f"{name}.leaky", alpha=0.1))
            x += ".leaky"
    image = helper.make_tensor_value_info("image", 1, [batch, 3, SIDE, SIDE])
    graph = helper.make_graph(
        nodes, "shapes", [image], [helper.make_tensor_value_info(x, 1, None)], constants
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def run(images):
    """What the layers so far make of some pictures: (N, C, H, W)."""
    graph = eq.load(to_onnx(batch=len(images)))
    return next(iter(graph.run({"image": np.concatenate(images)}).values()))


def add(channels, size, stride=1, depthwise=False, leaky=True, sizes=0.0):
    before = layers[-1][0].shape[0] if layers else 3
    groups = before if depthwise else 1
    weight = rng.standard_normal((channels, before // groups, size, size)).astype(np.float32)
    layers.append((weight, np.zeros(channels, np.float32), stride, groups, False))
    found = run([x for x, _ in training[:24]])
    mean, deviation = found.mean((0, 2, 3)), found.std((0, 2, 3))
    gain = np.exp(sizes * rng.standard_normal(channels)) / deviation
    weight, bias = weight * gain[:, None, None, None], -mean * gain
    layers[-1] = (weight.astype(np.float32), bias.astype(np.float32), stride, groups, leaky)


add(12, 3, stride=2)
for wide, size, stride, narrow in ((48, 3, 2, 24), (96, 5, 2, 48)):
    add(wide, 1, sizes=1.0)
    add(wide, size, stride, depthwise=True)
    add(narrow, 1, leaky=False)
add(192, 1, sizes=1.0)
add(192, 3, depthwise=True)
add(320, 1)

# %%
# Its head
# --------
# For each cell of 8x8 pixels a score of each class, high where an object's centre is near, and the nearest
# box: its centre from the cell's, its half size. A linear layer; the best one is the solution of a ridge
# regression.

GRID = SIDE // CELL


def targets(label):
    """(7, 8, 8) what the head should say, and the distance of each cell from an object, in cells."""
    y, x = np.mgrid[:GRID, :GRID] + 0.5
    wanted, nearest = np.zeros((7, GRID, GRID)), np.full((GRID, GRID), np.inf)
    for kind, x0, y0, x1, y1 in label / [1, CELL, CELL, CELL, CELL]:
        dx, dy = (x0 + x1) / 2 - x, (y0 + y1) / 2 - y
        distance = np.hypot(dx, dy)
        wanted[int(kind)] = np.maximum(wanted[int(kind)], np.exp(-(distance**2)))
        box = np.stack([dx, dy, np.full_like(dx, (x1 - x0) / 2), np.full_like(dx, (y1 - y0) / 2)])
        wanted[3:] = np.where(distance < nearest, box, wanted[3:])
        nearest = np.minimum(distance, nearest)
    return wanted, nearest


def rows(maps):
    """(N, C, 8, 8) -> float64 (cells, C)."""
    return np.moveaxis(np.asarray(maps, np.float64), 1, -1).reshape(-1, maps[0].shape[0])


def ridge(x, y):
    return np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ y)


images = [x for x, _ in training]
features = rows(np.concatenate([run(images[i : i + 50]) for i in range(0, len(images), 50)]))
features = np.column_stack([features, np.ones(len(features))])
wanted, nearest = zip(*(targets(label) for _, label in training), strict=True)
wanted, near = rows(wanted), np.ravel(nearest) < 1
scores = ridge(features, wanted[:, :3])
places = ridge(features[near], wanted[near, 3:])
head = np.column_stack([scores, places]).astype(np.float32)
layers.append((head[:-1].T[:, :, None, None].copy(), head[-1], 1, 1, False))
path = Path(tempfile.mkdtemp()) / "shapes.onnx"
onnx.save(to_onnx(), path)

# %%
# Boxes
# -----
# The metric is of the whole set (``of_set``): a box counts by its score among those of all pictures.
# ``tutorials/metrics/boxes.py`` has it; ``decode`` is what it must be told of this network.


def decode(outputs):
    """Rows x0, y0, x1, y1, score, class; of boxes of a class that overlap the best one."""
    maps, found = outputs[0][0], []
    for kind in range(len(CLASSES)):
        i, j = np.nonzero(maps[kind] > 0.1)
        dx, dy, w, h = maps[3:, i, j]
        cx, cy = CELL * (j + 0.5 + dx), CELL * (i + 0.5 + dy)
        corners = [cx - CELL * w, cy - CELL * h, cx + CELL * w, cy + CELL * h]
        boxes = np.column_stack([*corners, maps[kind, i, j], np.full(len(i), kind)])
        boxes = boxes[np.argsort(-boxes[:, 4], kind="stable")]
        while len(boxes):
            found.append(boxes[0])
            boxes = boxes[1:][overlaps(boxes[:1, :4], boxes[1:, :4])[0] < 0.3]
    return np.reshape(found, (-1, 6))


mAP = mean_average_precision(decode)
graph = eq.load(path)


def judged(run):
    return evaluate(run, test, inputs=["image"], metrics={"mAP": mAP})["mAP"]


before = judged(lambda feed: list(graph.run(feed).values()))
print(f"mAP of float32: {before.value:.3f}")
assert before.value > 0.6

# %%
# Seven bits
# ----------
# The default computes a LeakyReLU before it rounds, gives a tensor a zero point of its own, and a scale for
# each channel where depthwise layers read.

images = [x for x, _ in calibration]
q = eq.quantize(path, images, bits=7)
zero_points = sum(scale.zero_point not in (0, 64, 128) for scale in q.table.activations.values())
print(f"{len(q.plan.fused)} functions before the rounding")
print(f"{zero_points} of {len(q.table.activations)} tensors with a zero point of their own")
print(f"{len(q.table.factors)} with a scale for each channel")
built = q.build("llvm")
after = judged(eq.Executor(built))
print(compare(after, before))

# %%
# What these are worth
# --------------------
# The same search without them loses more. The error of the outputs says so more exactly than the mAP of a
# hundred pictures, which moves by chance: see the interval above.


def noise(built):
    """SQNR of the outputs in dB, on the test pictures."""
    run, signal, error = eq.Executor(built), 0.0, 0.0
    for x, _ in test:
        want, got = next(iter(graph.run({"image": x}).values())), run({"image": x})[0]
        signal, error = signal + (want**2).sum(), error + ((want - got) ** 2).sum()
    return 10 * np.log10(signal / error)


without = {"fuse_functions": False, "asymmetric": False, "channel_factors": False}
plain = noise(eq.quantize(path, images, bits=7, **without).build("llvm"))
print(f"SQNR {plain:.1f} dB without, {noise(built):.1f} dB with them")
assert noise(built) > plain + 2

# %%
# A drop that you allow
# ---------------------
# ``max_drop`` takes the same metric, in its unit: 0.01 is a point of mAP. Layers are reverted, the worst
# first, from 7 to 8 bits, then to float, as few as it takes for the compiled integers to lose no more. Six
# points are allowed here, as a hundred pictures tell no less. The search has none of the three parts, so
# that there is something to revert.

met = eq.quantize(path, images, bits=7, evaluation=test, max_drop=0.06, metric=mAP, **without)
print(*met.decisions, sep="\n")
assert met.drop.difference >= -0.06

# sphinx_gallery_thumbnail_path = 'pictures/09.svg'
