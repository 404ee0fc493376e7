"""From pictures to what a network reads: decode, crop, scale, normalise. No TVM here.

A picture is uint8 (H, W, 3), RGB. Pillow decodes and resizes; it is imported only where it is needed.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from ..errors import ImageError
from ..files import read_json, shown


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes an input, in this order; the names are those of a network's JSON file.

    size: (width, height) to resize to, None to leave as it is; short_side: instead, the length of the
    shorter side to resize to, the ratio kept; crop: (width, height) cut from the centre, where short_side
    is given as torchvision's Resize and CenterCrop round it; color: "RGB", "BGR" to reverse the channels,
    or "GRAY" for one channel (ITU-R 601 luma); then ``(x * scale - mean) / std`` in float32, mean and std
    by channel (one number is for all), as (3, H, W), or as (H, W, 3) with layout "NHWC".
    """

    color: str = "RGB"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    crop: tuple[int, int] | None = None
    size: tuple[int, int] | None = None
    layout: str = "NCHW"
    short_side: int | None = None

    def __post_init__(self):
        if self.color not in ("RGB", "BGR", "GRAY"):
            raise ImageError(f"color is {self.color!r}; use RGB, BGR or GRAY")
        if self.layout not in ("NCHW", "NHWC"):
            raise ImageError(f"layout is {self.layout!r}; use NCHW or NHWC")
        if not _finite(self.scale):
            raise ImageError(f"scale is {shown(self.scale)}; give a finite number")
        for name in ("mean", "std"):
            given = getattr(self, name)
            each = given.ravel().tolist() if isinstance(given, np.ndarray) else given
            each = [each] if _finite(each) else each
            good = isinstance(each, (list, tuple)) and len(each) in (1, 3) and all(map(_finite, each))
            if not good or (name == "std" and 0 in each):
                raise ImageError(f"{name} is {shown(given)}; give three numbers or one, a std not 0")
            values = [float(value) for value in each] * (3 // len(each))
            object.__setattr__(self, name, tuple(values))
        for name in ("crop", "size"):
            value = getattr(self, name)
            if value is not None:
                pair = isinstance(value, (list, tuple)) and len(value) == 2
                if not pair or not all(_finite(v) and v == int(v) >= 1 for v in value):
                    raise ImageError(f"{name} is {shown(value)}; give width and height")
                object.__setattr__(self, name, (int(value[0]), int(value[1])))
        if self.short_side is not None:
            if not _finite(self.short_side) or not self.short_side == int(self.short_side) >= 1:
                raise ImageError(f"short_side is {shown(self.short_side)}; give a whole number of pixels")
            object.__setattr__(self, "short_side", int(self.short_side))
            if self.size is not None:
                raise ImageError("size and short_side both say what to resize to; give one of them")
            if self.crop is not None and max(self.crop) > self.short_side:
                raise ImageError(
                    f"the crop {self.crop[0]}x{self.crop[1]} is larger than what short_side "
                    f"{self.short_side} leaves of a picture; give a smaller crop or a larger short_side"
                )

    @property
    def facts(self) -> dict[str, object]:
        """The fields, as a scale table keeps them: short_side where it is given."""
        return {
            field.name: getattr(self, field.name) for field in fields(self)
            if field.name != "short_side" or self.short_side is not None
        }  # fmt: skip

    @classmethod
    def of(cls, facts: object) -> Preprocess:
        """From a dict with this class's fields, or one that holds such a dict as ``preprocess``."""
        facts = facts.get("preprocess", facts) if isinstance(facts, Mapping) else facts
        if not isinstance(facts, Mapping):
            raise ImageError(f"preprocess is {shown(facts)}; give an object with its settings")
        known = {field.name for field in fields(cls)}
        if set(facts) - known:
            raise ImageError(f"preprocess has {sorted(set(facts) - known)}; it may have {sorted(known)}")
        return cls(**facts)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Preprocess:
        """From a JSON file of what `of` takes; ImageError names the file."""
        facts = read_json(path, ImageError, "the preprocess file")
        try:
            return cls.of(facts)
        except ImageError as error:
            raise ImageError(f"preprocess file {path}: {error}") from None

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) RGB -> float32 (1, 3, H', W'), or what color and layout make of it."""
        picture = np.asarray(picture)
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ImageError(f"a picture is {picture.dtype} {picture.shape}, not uint8 (H, W, 3)")
        if self.size is not None:
            picture = _resized(picture, self.size)
        if self.short_side is not None:
            picture = _resized(picture, _by_short_side(picture, self.short_side))
        if self.crop is not None:
            width, height = self.crop
            if picture.shape[0] < height or picture.shape[1] < width:
                raise ImageError(
                    f"a picture of {picture.shape[1]}x{picture.shape[0]} is smaller than the crop "
                    f"{width}x{height}; give a size to resize to"
                )
            above, beside = picture.shape[0] - height, picture.shape[1] - width
            top, left = above // 2, beside // 2
            if self.short_side is not None:  # torchvision's CenterCrop rounds, to even
                top, left = round(above / 2), round(beside / 2)
            picture = picture[top : top + height, left : left + width]
        x = picture.astype(np.float32)
        if self.color == "GRAY":
            x = (x @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
        return self.normalized(x[None])

    @property
    def channels(self) -> int:
        """How many the network's input has."""
        return 1 if self.color == "GRAY" else 3

    def normalized(self, x: np.ndarray) -> np.ndarray:
        """What follows the crop: float32 (N, H, W, C) of 0..255, RGB or the grey value, as the input."""
        mean, std = (np.asarray(v, np.float32)[: self.channels] for v in (self.mean, self.std))
        if self.color == "BGR":
            x = x[..., ::-1]
        x = (x * np.float32(self.scale) - mean) / std
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2) if self.layout == "NCHW" else x)


def _finite(value) -> bool:
    """Whether it is a number, and finite."""
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _pillow():
    try:
        from PIL import Image
    except ImportError:
        raise ImageError(
            "to decode or resize pictures, install Pillow: pip install 'tvm_easyquant[images]'"
        ) from None
    return Image


def _by_short_side(picture: np.ndarray, side: int) -> tuple[int, int]:
    """(width, height) of torchvision's Resize(side): the longer side is cut to whole pixels."""
    height, width = picture.shape[:2]
    longer = int(side * max(height, width) / min(height, width))
    return (side, longer) if width <= height else (longer, side)


def _resized(picture, size):
    return np.asarray(_pillow().fromarray(picture).resize(size, resample=2))  # 2: bilinear


def decode(data: bytes | np.ndarray, what: str = "a picture") -> np.ndarray:
    """An encoded picture (JPEG, PNG, ...) as uint8 (H, W, 3) RGB; ImageError names ``what``."""
    pillow = _pillow()
    try:
        with pillow.open(io.BytesIO(bytes(data))) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(f"{what} cannot be decoded: {error}") from None
