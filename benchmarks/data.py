"""The benchmark networks and labelled images of a data folder (its path is an argument everywhere).

A folder holds, for each network, ``NAME.onnx`` and ``NAME.json`` (keys ``eval``, ``calib``,
``preprocess``), and image sets as .npz: ``images`` uint8 (N, H, W, 3), or ``jpeg`` + ``offsets``, with
``labels``.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np

NETWORKS = (
    "cifar10_resnet20",
    "cifar10_resnet56",
    "imagenet_squeezenet1.1",
    "imagenet_mobilenet_v1_0.75",
)


class Images:
    """A labelled set; indexing gives uint8 (H, W, 3) RGB."""

    def __init__(self, path: Path):
        arrays = np.load(path)
        self.labels = arrays["labels"].astype(np.int64)
        self.raw = arrays["images"] if "images" in arrays else None
        if self.raw is None:
            self.jpeg, self.offsets = arrays["jpeg"], arrays["offsets"]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        if self.raw is not None:
            return self.raw[i]
        from PIL import Image

        encoded = self.jpeg[self.offsets[i] : self.offsets[i + 1]].tobytes()
        return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


class Network:
    """One network with its sets; ``calibration(n)`` and ``test(i)`` give float32 (1, 3, H, W)."""

    def __init__(self, folder: Path, name: str):
        self.name = name
        self.path = folder / f"{name}.onnx"
        facts = json.loads((folder / f"{name}.json").read_text())
        self.spec = facts["preprocess"]
        sets = facts["eval"] if isinstance(facts["eval"], list) else [facts["eval"]]
        self.test_set = Images(next(folder / s for s in sets if (folder / s).exists()))
        self.calib_set = Images(folder / facts["calib"])

    def prepare(self, image):
        if "crop" in self.spec:
            width, height = self.spec["crop"]
            top = (image.shape[0] - height) // 2
            left = (image.shape[1] - width) // 2
            image = image[top : top + height, left : left + width]
        x = image.astype(np.float32)
        if self.spec["color"] == "BGR":
            x = x[..., ::-1]
        x = x * np.float32(self.spec["scale"]) - np.asarray(self.spec["mean"], np.float32)
        x = x / np.asarray(self.spec["std"], np.float32)
        return np.ascontiguousarray(x.transpose(2, 0, 1))[None]

    def calibration(self, count):
        return (self.prepare(self.calib_set[i]) for i in range(min(count, len(self.calib_set))))

    def test(self, i):
        return self.prepare(self.test_set[i])
