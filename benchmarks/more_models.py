"""Networks of other tasks and of other functions, with images, for ``outputs.py --also``.

    PYTHON benchmarks/more_models.py --data DIR --ocr FOLDER --out FOLDER [--calibration N] [--test N]

PYTHON has torch and torchvision, too. Prints the words to give to ``--also``.

* pp_ocr_det, pp_ocr_rec: FOLDER holds the models of the package rapidocr-onnxruntime 1.4.4 (PP-OCRv4,
  Apache-2.0). Images: pages of 320x320 and lines of 48x320, random words on a picture's colours.
* mobilenet_v3_small, efficientnet_b0, ssdlite: torchvision's, without trained weights: random ones, and the
  statistics of batch normalization from 64 calibration images. Of ssdlite the raw heads. Images: those of
  imagenet_calib, resized. Test images on which the fp32 outputs are over three times as large as on the
  median are left out: random weights can make of a nearly plain picture something a thousand times as large
  as of all others, and the SQNR would be that of this one.
"""

from __future__ import annotations

import argparse
import io
import string
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import onnx

from tvm_easyquant.evaluate import load
from tvm_easyquant.images import Preprocess

MEAN, STD = (
    np.array(v, np.float32).reshape(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
)
OCR = {
    "pp_ocr_det": ("ch_PP-OCRv4_det_infer.onnx", (320, 320), (14, 34)),
    "pp_ocr_rec": ("ch_PP-OCRv4_rec_infer.onnx", (48, 320), (26, 34)),
}
STATISTICS = 64  # images for batch normalization


def page(rng, size, heights) -> np.ndarray:
    """Random words on a page or a line: float32 (1, 3, H, W) in -1..1."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = size
    paper = tuple(int(v) for v in rng.integers(150, 256, 3))
    image = Image.new("RGB", (width, height), paper)
    draw, y = ImageDraw.Draw(image), int(rng.integers(2, 8))
    while True:
        tall = int(rng.integers(*heights))
        if y + tall > height:
            break
        font, x, ink = (
            ImageFont.load_default(tall),
            int(rng.integers(4, 20)),
            tuple(map(int, rng.integers(0, 90, 3))),
        )
        while x < width - 60:
            word = "".join(rng.choice(list(string.ascii_letters + string.digits), int(rng.integers(2, 9))))
            draw.text((x, y), word, ink, font)
            x += int(draw.textlength(word, font)) + tall // 2
        y += int(tall * rng.uniform(1.3, 2.2))
    pixels = np.asarray(image, np.float32) + rng.normal(0, 4, (height, width, 3)).astype(np.float32)
    return ((pixels / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None].astype(np.float32)


def ocr(args, name: str, rng) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    file, size, heights = OCR[name]
    model = onnx.load(args.ocr / file)
    shape = model.graph.input[0].type.tensor_type.shape
    for dimension, extent in zip(shape.dim, (1, 3, *size), strict=True):
        dimension.dim_value = extent
    return model, [page(rng, size, heights) for _ in range(args.calibration + args.test)]


def raw_heads(detector):
    """SSDLite without its boxes' decoding."""
    import torch

    class Heads(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = detector.backbone, detector.head

        def forward(self, x):
            found = self.head(list(self.backbone(x).values()))
            return found["cls_logits"], found["bbox_regression"]

    return Heads()


def architecture(args, name: str) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    import torch

    if "torchvision" not in sys.modules:
        for operator in ("nms", "qnms"):  # not in a wheel that is made for another torch
            torch.library.define(f"torchvision::{operator}", "(Tensor a, Tensor b, float c) -> Tensor")
    import torchvision

    torch.manual_seed(0)
    side = 320 if name == "ssdlite" else 224
    if name == "ssdlite":
        made = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None
        )
        network = raw_heads(made)
    else:
        network = getattr(torchvision.models, name)(weights=None)
    of = load(args.data / "imagenet_calib.npz", Preprocess(scale=1 / 255, size=(side, side)))
    wanted = max(STATISTICS, args.calibration + args.test)
    images = [((x - MEAN) / STD).astype(np.float32) for x, _ in islice(of, wanted)]
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all that it sees
    network.train()
    with torch.no_grad():
        for i in range(0, STATISTICS, 16):
            network(torch.from_numpy(np.concatenate(images[i : i + 16])))
    network.eval()
    file = io.BytesIO()
    torch.onnx.export(network, torch.from_numpy(images[0]), file, opset_version=17, dynamo=False)
    return onnx.load_from_string(file.getvalue()), images[: args.calibration + args.test]


def ordinary(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """The images without those whose outputs dwarf the others'."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    sizes = np.array(
        [max(float(np.square(y).mean()) for y in session.run(None, {name: x})) for x in images]
    )
    return images[sizes <= 9 * np.median(sizes)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--ocr", type=Path, help="folder of PP-OCR's models")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--calibration", type=int, default=50)
    parser.add_argument("--test", type=int, default=50)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    names = [*(OCR if args.ocr else ()), "mobilenet_v3_small", "efficientnet_b0", "ssdlite"]
    for i, name in enumerate(names):
        model, images = (
            ocr(args, name, np.random.default_rng(i)) if name in OCR else architecture(args, name)
        )
        onnx.save(model, args.out / f"{name}.onnx")
        images = np.stack(images)
        np.savez(
            args.out / f"{name}.npz",
            calibration=images[: args.calibration],
            test=images[args.calibration :],
        )
        print(f"{name}={args.out / name}.onnx,{args.out / name}.npz", flush=True)


if __name__ == "__main__":
    main()
