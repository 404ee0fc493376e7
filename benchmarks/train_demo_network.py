"""Train the embedded demo network on Fashion-MNIST and write it as ONNX, with its images.

    python benchmarks/train_demo_network.py --data /usr/share/datasets/fashion-mnist

Needs torch and onnx, and the Debian package ``dataset-fashion-mnist`` (Fashion-MNIST, MIT licence).
Writes ``tvm_easyquant/data/fashion_cnn.onnx`` and ``fashion_mnist.npz``. The network holds one of
each thing the quantizer must cover: 3x3, 1x1, strided and depthwise convolutions, BatchNormalization
kept as nodes, residual add, concat, max, average and global pool, ReLU and ReLU6, and a dense layer.
Input ``image``: float32 (1, 1, 28, 28), ``(pixel / 255 - 0.2860) / 0.3530``; output ``logits``.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import time
from pathlib import Path

import numpy as np

MEAN, STD = 0.2860, 0.3530
DATA = Path(__file__).resolve().parent.parent / "tvm_easyquant" / "data"

#: name -> (in channels, out channels, kernel, stride, groups)
CONVS = {
    "stem.conv": (1, 16, 3, 1, 1),
    "down.conv": (16, 32, 3, 2, 1),
    "block1.depthwise": (32, 32, 3, 1, 32),
    "block1.pointwise": (32, 32, 1, 1, 1),
    "branch1x1.conv": (32, 32, 1, 1, 1),
    "branch3x3.conv": (32, 32, 3, 1, 1),
    "block2.conv1": (64, 64, 3, 1, 1),
    "block2.conv2": (64, 64, 3, 1, 1),
    "head.conv": (64, 96, 1, 1, 1),
}


def load(folder: Path, split: str):
    """images uint8 (N, 28, 28), labels uint8 (N,) of ``train`` or ``t10k``."""

    def read(kind, header):
        path = folder / f"{split}-{kind}-ubyte.gz"
        if not path.exists():
            sys.exit(f"error: {path} is missing; install the Debian package dataset-fashion-mnist")
        return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)

    return read("images-idx3", 16).reshape(-1, 28, 28), read("labels-idx1", 8)


def normalise(images):
    """uint8 (N, 28, 28) -> float32 (N, 1, 28, 28)."""
    return ((images[:, None].astype(np.float32) / 255) - MEAN) / STD


def network(torch):
    """The torch module; `to_onnx` writes the same graph by hand."""
    nn = torch.nn

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs, self.bns = nn.ModuleDict(), nn.ModuleDict()
            for name, (c, k, r, s, g) in CONVS.items():
                key = name.replace(".", "_")
                self.convs[key] = nn.Conv2d(c, k, r, s, r // 2, groups=g, bias=False)
                self.bns[key] = nn.BatchNorm2d(k)
            self.classifier = nn.Linear(96, 10)

        def step(self, name, x):
            key = name.replace(".", "_")
            return self.bns[key](self.convs[key](x))

        def forward(self, x):
            f = nn.functional
            x = f.relu(self.step("stem.conv", x))
            x = f.relu(self.step("down.conv", x))
            y = f.relu6(self.step("block1.depthwise", x))
            x = f.relu(x + self.step("block1.pointwise", y))
            a = f.relu(self.step("branch1x1.conv", x))
            b = f.relu(self.step("branch3x3.conv", x))
            x = f.max_pool2d(torch.cat([a, b], 1), 2)
            y = f.relu(self.step("block2.conv1", x))
            x = f.relu(x + self.step("block2.conv2", y))
            x = f.avg_pool2d(x, 3, 2)
            x = f.relu(self.step("head.conv", x))
            return self.classifier(x.mean((2, 3)))

    return Network()


def train(torch, model, images, labels, epochs, seed):
    """Stochastic gradient descent with flips and shifts by up to 2 pixels."""
    torch.manual_seed(seed)
    x, y = torch.from_numpy(normalise(images)), torch.from_numpy(labels.astype(np.int64))
    batch = 128
    total = epochs * (len(x) // batch)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total, pct_start=0.2)
    generator = torch.Generator().manual_seed(seed)
    zero = (0 - MEAN) / STD
    for epoch in range(epochs):
        model.train()
        start = time.time()
        for index in torch.randperm(len(x), generator=generator).split(batch)[: len(x) // batch]:
            images_ = torch.nn.functional.pad(x[index], (2, 2, 2, 2), value=zero)
            dy, dx = torch.randint(0, 5, (2,), generator=generator).tolist()
            images_ = images_[:, :, dy : dy + 28, dx : dx + 28]
            if torch.rand(1, generator=generator) < 0.5:
                images_ = images_.flip(3)
            loss = torch.nn.functional.cross_entropy(model(images_), y[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{epochs}  loss {loss.item():.3f}  {time.time() - start:.0f} s")


def to_onnx(model):
    """The trained network as an ``onnx.ModelProto`` with readable names, batch norms kept."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants = [], []

    def constant(name, tensor):
        constants.append(numpy_helper.from_array(tensor.detach().numpy().copy(), name))
        return name

    def node(op, name, *inputs, **attributes):
        nodes.append(helper.make_node(op, list(inputs), [name], name, **attributes))
        return name

    def conv_bn(name, x):
        _, _, r, s, g = CONVS[name]
        key, stem = name.replace(".", "_"), name
        weight = constant(f"{stem}.weight", model.convs[key].weight)
        x = node("Conv", stem, x, weight, kernel_shape=[r, r], strides=[s, s], pads=[r // 2] * 4,
                 group=g)  # fmt: skip
        bn = model.bns[key]
        parts = (("scale", bn.weight), ("shift", bn.bias))
        parts += (("mean", bn.running_mean), ("var", bn.running_var))
        values = [constant(f"{stem}.bn.{part}", value) for part, value in parts]
        return node("BatchNormalization", f"{stem}.bn", x, *values, epsilon=bn.eps)

    x = node("Relu", "stem.relu", conv_bn("stem.conv", "image"))
    x = node("Relu", "down.relu", conv_bn("down.conv", x))
    for name, value in (("zero", 0.0), ("six", 6.0)):
        constants.append(numpy_helper.from_array(np.array(value, np.float32), name))
    y = node("Clip", "block1.relu6", conv_bn("block1.depthwise", x), "zero", "six")
    y = conv_bn("block1.pointwise", y)
    x = node("Relu", "block1.relu", node("Add", "block1.add", x, y))
    a = node("Relu", "branch1x1.relu", conv_bn("branch1x1.conv", x))
    b = node("Relu", "branch3x3.relu", conv_bn("branch3x3.conv", x))
    x = node("Concat", "concat", a, b, axis=1)
    x = node("MaxPool", "maxpool", x, kernel_shape=[2, 2], strides=[2, 2])
    y = node("Relu", "block2.relu1", conv_bn("block2.conv1", x))
    y = conv_bn("block2.conv2", y)
    x = node("Relu", "block2.relu2", node("Add", "block2.add", x, y))
    x = node("AveragePool", "avgpool", x, kernel_shape=[3, 3], strides=[2, 2])
    x = node("Relu", "head.relu", conv_bn("head.conv", x))
    x = node("Flatten", "flatten", node("GlobalAveragePool", "pool", x))
    weight = constant("classifier.weight", model.classifier.weight)
    node("Gemm", "logits", x, weight, constant("classifier.bias", model.classifier.bias), transB=1)
    graph = helper.make_graph(
        nodes,
        "fashion_cnn",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])],
        constants,
    )
    opset = [helper.make_opsetid("", 13)]
    made = helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="tvm_easyquant")
    onnx.checker.check_model(made)
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=DATA, help="folder for the two files")
    args = parser.parse_args()
    try:
        import onnx
        import torch
    except ImportError as error:
        sys.exit(f"error: {error}; pip install torch onnx")
    images, labels = load(args.data, "train")
    test_images, test_labels = load(args.data, "t10k")
    torch.manual_seed(args.seed)
    model = network(torch)
    train(torch, model, images, labels, args.epochs, args.seed)
    model.eval()
    with torch.no_grad():
        batches = torch.from_numpy(normalise(test_images)).split(500)
        guess = torch.cat([model(x).argmax(1) for x in batches]).numpy()
    right = guess == test_labels
    print(f"top-1: {right.mean():.2%} of 10,000, {right[:2000].mean():.2%} of the first 2,000")
    args.out.mkdir(parents=True, exist_ok=True)
    onnx.save(to_onnx(model), args.out / "fashion_cnn.onnx")
    rng = np.random.default_rng(args.seed)
    classes = [rng.choice(np.flatnonzero(labels == c), 20, replace=False) for c in range(10)]
    chosen = rng.permutation(np.concatenate(classes))
    np.savez_compressed(
        args.out / "fashion_mnist.npz",
        calibration_images=images[chosen],
        test_images=test_images[:2000],
        test_labels=test_labels[:2000],
    )


if __name__ == "__main__":
    main()
