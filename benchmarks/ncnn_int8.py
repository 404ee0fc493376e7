"""An ncnn model in int8, as ncnn's own ncnn2table and ncnn2int8 write it; those are not in the wheel.

Scales are of the maximum (activations over the given images, weights per channel), which is ncnn2table's
starting point; they do not change the speed. Convolutions that feed convolutions only hand on int8, as
ncnn2int8 arranges it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

INT8_TAG = np.uint32(0x000D4B38)


class _Layer:
    """One line of a .param file; ``numbers``: its parameters by id."""

    def __init__(self, line: str):
        words = line.split()
        self.kind, self.name = words[:2]
        ins, outs = int(words[2]), int(words[3])
        self.inputs, self.outputs = words[4 : 4 + ins], words[4 + ins : 4 + ins + outs]
        self.numbers = dict(pair.split("=", 1) for pair in words[4 + ins + outs :])

    def get(self, key: int, default: int = 0) -> int:
        return int(self.numbers.get(str(key), default))

    @property
    def weights(self) -> tuple[int, int, int] | None:
        """(elements of the weight, channels with a scale of their own, length of the bias); None: none."""
        if self.kind in ("Convolution", "ConvolutionDepthWise"):
            channels = self.get(7) if self.kind == "ConvolutionDepthWise" else self.get(0)
            return self.get(6), channels, self.get(0) if self.get(5) else 0
        if self.kind == "InnerProduct":
            return self.get(2), self.get(0), self.get(0) if self.get(1) else 0
        return None

    def __str__(self):
        head = [self.kind, self.name, len(self.inputs), len(self.outputs), *self.inputs, *self.outputs]
        return " ".join(map(str, head)) + "".join(f" {k}={v}" for k, v in self.numbers.items())


def _largest(model: Path, blobs, images) -> dict[str, float]:
    """The largest magnitude of each blob over the images, in float."""
    import ncnn

    net = ncnn.Net()
    net.opt.lightmode = False  # keep every blob
    net.load_param(f"{model}.param")
    net.load_model(f"{model}.bin")
    found = dict.fromkeys(blobs, 0.0)
    for image in images:
        extractor = net.create_extractor()
        extractor.set_light_mode(False)
        extractor.input("in0", ncnn.Mat(np.ascontiguousarray(image)))
        for blob in blobs:
            found[blob] = max(found[blob], float(np.abs(np.array(extractor.extract(blob)[1])).max()))
    return found


def write(model: Path, made: Path, images: np.ndarray) -> None:
    """``made``.param and .bin from ``model``.param and .bin; images: float32 (N, 3, H, W)."""
    magic, sizes, *lines = Path(f"{model}.param").read_text().splitlines()
    layers = [_Layer(line) for line in lines if line.strip()]
    users: dict[str, list[_Layer]] = {}
    for layer in layers:
        for blob in layer.inputs:
            users.setdefault(blob, []).append(layer)
    mine = [layer for layer in layers if layer.weights]
    scales = {b: 127 / m for b, m in _largest(model, {x.inputs[0] for x in mine}, images).items()}

    def readers(blob):
        for user in users.get(blob, []):
            if user.kind == "Split":
                for out in user.outputs:
                    yield from readers(out)
            else:
                yield user

    source, out, at = Path(f"{model}.bin").read_bytes(), [], 0
    for layer in mine:
        size, channels, bias_size = layer.weights
        if source[at : at + 4] != bytes(4):
            raise ValueError(f"{layer.name}: weights are not plain float32")
        weight = np.frombuffer(source, np.float32, size, at + 4).reshape(channels, -1)
        bias = source[at + 4 + 4 * size : at + 4 + 4 * (size + bias_size)]
        at += 4 + 4 * (size + bias_size)
        weight_scales = (127 / np.maximum(np.abs(weight).max(axis=1), 1e-6)).astype(np.float32)
        q = np.clip(np.rint(weight * weight_scales[:, None]), -127, 127).astype(np.int8).tobytes()
        term = 1 if layer.kind == "ConvolutionDepthWise" else 2
        tops = {
            scales[r.inputs[0]] if r.weights and r.kind != "InnerProduct" else None
            for r in readers(layer.outputs[0])
        }
        handed_on = layer.kind != "InnerProduct" and len(tops) == 1 and None not in tops
        layer.numbers["8"] = str(term + 100 * handed_on)
        out += [INT8_TAG.tobytes(), q, bytes(-len(q) % 4), bias, weight_scales.tobytes()]
        out.append(np.float32(scales[layer.inputs[0]]).tobytes())
        if handed_on:
            out.append(np.float32(tops.pop()).tobytes())
    if at != len(source):
        raise ValueError(f"{model}: {len(source) - at} bytes of weights belong to no known layer")
    Path(f"{made}.param").write_text("\n".join([magic, sizes, *map(str, layers)]) + "\n")
    Path(f"{made}.bin").write_bytes(b"".join(out))
