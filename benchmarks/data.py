"""The benchmark networks and labelled images of a data folder (its path is an argument everywhere).

A folder holds, for each network, ``NAME.onnx`` and ``NAME.json`` (keys ``eval``, ``calib``,
``preprocess``), and image sets as .npz that `tvm_easyquant.evaluate.load` takes.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np

from tvm_easyquant.evaluate import LabelledSet, load
from tvm_easyquant.images import Preprocess

NETWORKS = (
    "cifar10_resnet20",
    "cifar10_resnet56",
    "cifar10_resnet8",
    "imagenet_squeezenet1.1",
    "imagenet_mobilenet_v1_0.75",
    "ocr_angle",
)


class Network:
    """One network with its sets: ``test_set`` and ``calib_set`` yield (float32 (1, 3, H, W), label)."""

    def __init__(self, folder: Path, name: str):
        self.name = name
        self.path = folder / f"{name}.onnx"
        facts = json.loads((folder / f"{name}.json").read_text())
        self.batch_free = facts["batch"] == "free"
        preprocess = Preprocess.of(facts)
        sets = facts["eval"] if isinstance(facts["eval"], list) else [facts["eval"]]
        self.test_set = load(next(folder / s for s in sets if (folder / s).exists()), preprocess)
        self.calib_set = load(folder / facts["calib"], preprocess)

    def calibration(self, count: int) -> list[np.ndarray]:
        """The first ``count`` calibration images."""
        return [x for x, _ in islice(self.calib_set, count)]

    def test(self, count: int) -> LabelledSet:
        """The first ``count`` test images."""
        return self.test_set.first(count)
