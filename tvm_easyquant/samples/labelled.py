"""Labelled samples: pairs (input, label) from files, functions or iterables. No TVM here."""

from __future__ import annotations

import importlib
import inspect
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EvaluationError
from . import loader
from .images import Preprocess, decode


@dataclass(frozen=True)
class Pictures:
    """What people see of labelled samples. decoded: number of a sample -> uint8 (H, W, 3) RGB, or (H, W);
    names: of the samples, or none."""

    decoded: Callable[[int], np.ndarray]
    names: Sequence[str] = ()


class LabelledSet:
    """Labelled inputs, one after the other, as often as asked: ``for x, label in labelled``.

    x: (1, C, H, W), float32 or what the network takes, or {input: such an array}. ``len`` is 0 where the
    number is not known. pictures: those that the inputs are made from, if they are.
    """

    def __init__(
        self,
        make: Callable[[], Iterable[Any]],
        count: int = 0,
        name: str = "the labelled set",
        pictures: Pictures | None = None,
    ):
        self._make, self._count, self.name, self.pictures = make, count, name, pictures

    def __repr__(self) -> str:
        count = f"{self._count} samples" if self._count else "samples"
        return f"<LabelledSet {self.name!r}: {count}>"

    def __len__(self) -> int:
        return self._count

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for number, item in enumerate(self._make()):
            if not isinstance(item, (tuple, list)) or len(item) != 2:
                raise EvaluationError(f"{self.name}: sample {number} is no pair (input, label)")
            x, label = (loader.arrays(part) if loader.holds_tensors(part) else part for part in item)
            yield x, label[()] if isinstance(label, np.ndarray) and not label.ndim else label

    def singly(self, inputs: Mapping[str, tuple[tuple[int, ...], str]], batch: int) -> LabelledSet:
        """The same, each sample by itself, where an item may be a batch of inputs and as many labels.

        inputs: {name: (shape, element type)} of the network that will read them, ``batch`` at once.
        """

        def rows(x, label) -> int | None:
            return _rows(x, label, {name: tuple(shape) for name, (shape, _) in inputs.items()}, batch)

        def cut():
            for x, label in self:
                count = rows(x, label)
                yield from [(x, label)] if count is None else zip(_each(x, count), label, strict=True)

        first = next(iter(self), None) if self._count else None
        known = self._count if first is None or rows(*first) is None else 0
        return LabelledSet(cut, known, self.name, self.pictures)  # what are pictures comes one by one

    def noting(self, labels: list[Any]) -> LabelledSet:
        """The same, whose labels are appended to ``labels`` as they come."""

        def noted():
            for x, label in self:
                labels.append(label)
                yield x, label

        return LabelledSet(noted, self._count, self.name, self.pictures)

    def first(self, count: int) -> LabelledSet:
        """The first ``count`` samples of this set."""
        known = min(count, self._count) if self._count else 0
        return LabelledSet(lambda: islice(iter(self), count), known, self.name, self.pictures)


def _rows(x, label, shapes: Mapping[str, tuple[int, ...]], batch: int) -> int | None:
    """How many samples an item holds; None if it is one, as is what the network takes whole."""
    count = len(label) if isinstance(label, (np.ndarray, list, tuple)) else 0
    given = {n: np.shape(a) for n, a in (x if isinstance(x, Mapping) else dict.fromkeys(shapes, x)).items()}
    if count < 2 or set(given) != set(shapes) or (batch == 1 and given == shapes):
        return None
    return count if all(given[name] == (count, *shapes[name][1:]) for name in shapes) else None


def _each(x, rows: int) -> Iterator:
    """The samples of a batch, each with a first dimension of 1."""
    for i in range(rows):
        yield {n: a[i : i + 1] for n, a in x.items()} if isinstance(x, Mapping) else x[i : i + 1]


def load(source: Any, preprocess: Preprocess | Mapping[str, Any] | None = None) -> LabelledSet:
    """A `LabelledSet` from a file, a function or an iterable of (input, label) pairs.

    source: an .npz with ``labels`` (N,) integers and one of ``images`` float32 (N, C, H, W), normalised
    as in training; ``images`` uint8 (N, H, W, 3) or (N, 3, H, W), RGB; ``jpeg`` uint8 with ``offsets``
    (N + 1,), encoded pictures end to end. Or ``"module:function"``, called without arguments, whose
    result yields the pairs, in the same order each time; their labels may be any object, for a metric that
    takes it. Or torch's DataLoader of (inputs, labels), whose batches are cut up; so are those of any other
    iterable where the network's inputs are known (`LabelledSet.singly`). Tensors become arrays. uint8 and
    encoded pictures need ``preprocess``; one that does not scale leaves the numbers 0..255, which a network
    whose input is uint8 takes as they are. Raises EvaluationError, and ImageError for a picture.
    """
    if isinstance(source, LabelledSet):
        return source
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        if text.endswith(".npz"):
            return _npz(Path(text), preprocess)
        if ":" in text:
            return LabelledSet(named(text), name=text)
        raise EvaluationError(f"{text} is neither an .npz file nor module:function")
    if loader.is_loader(source):
        count = len(source.dataset) if hasattr(source.dataset, "__len__") else 0
        return LabelledSet(lambda: loader.pairs(source), count)
    if callable(source):
        return LabelledSet(source)
    if not isinstance(source, Iterable):
        raise EvaluationError(f"labelled data is a {type(source).__name__}; give pairs (input, label)")
    kept = list(source)
    return LabelledSet(lambda: kept, len(kept))


def named(text: str, *arguments: str) -> Callable[..., Any]:
    """The function that ``"module:function"`` names; EvaluationError if there is none.

    arguments: what it is called with, in words; a function that does not take so many is an error too.
    """
    module, _, function = text.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise EvaluationError(f"{text!r} names no function: {error}") from None
    if not callable(found):
        raise EvaluationError(f"{text!r} is a {type(found).__name__}, not a function")
    try:
        signature = inspect.signature(found)
    except ValueError:  # a built-in that does not tell
        return found
    try:
        signature.bind(*arguments)
    except TypeError:
        wanted = f"the arguments ({', '.join(arguments)})" if arguments else "no arguments"
        raise EvaluationError(f"{text}{signature}: it is called with {wanted}; define it so") from None
    return found


def _npz(path: Path, preprocess) -> LabelledSet:
    arrays = _arrays(path)
    labels = arrays["labels"]
    if isinstance(preprocess, Mapping):
        preprocess = Preprocess.of(preprocess)
    if "jpeg" in arrays and "offsets" in arrays:
        count, picture = _cut_out(arrays["jpeg"], arrays["offsets"].astype(np.int64), path)
    elif "images" in arrays:
        images = arrays["images"]
        count, picture = len(images), _picked(images, path)
        if images.dtype == np.float32:
            preprocess = None
    else:
        raise EvaluationError(f"{path} has neither images nor jpeg and offsets; it has {sorted(arrays)}")
    if preprocess is None and ("jpeg" in arrays or arrays["images"].dtype == np.uint8):
        raise EvaluationError(
            f"{path} holds pictures of 8 bits; say how the network wants them (preprocess: color, scale, "
            "mean, std, crop)"
        )
    if len(labels) != count:
        raise EvaluationError(f"{path}: {len(labels)} labels for {count} images")
    if not count:
        raise EvaluationError(f"{path} holds no image")
    ready = preprocess or (lambda x: x)
    return LabelledSet(
        lambda: ((ready(picture(i)), int(labels[i])) for i in range(count)),
        count,
        str(path),
        Pictures(picture) if preprocess is not None else None,
    )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, with good labels."""
    try:
        # opened here: numpy leaves an archive that it cannot read open
        with open(path, "rb") as stored, np.load(stored, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise EvaluationError(f"cannot read {path}: {error}") from None
    if "labels" not in arrays:
        raise EvaluationError(f"{path} has no array labels; it has {sorted(arrays)}")
    labels = arrays["labels"]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise EvaluationError(f"{path}: labels is {labels.dtype} {labels.shape}; give one integer a sample")
    return arrays


def _cut_out(encoded: np.ndarray, offsets: np.ndarray, path: Path) -> tuple[int, Callable]:
    """(number of pictures, i -> picture) of JPEG files in one array of bytes."""
    count = len(offsets) - 1
    bad = encoded.ndim != 1 or encoded.dtype != np.uint8 or count < 0 or offsets[0] < 0
    if bad or (np.diff(offsets) < 0).any() or offsets[-1] > len(encoded):
        raise EvaluationError(f"{path}: offsets do not cut jpeg, uint8 (bytes,), into pictures")
    return count, lambda i: decode(encoded[offsets[i] : offsets[i + 1]], f"{path}: picture {i}")


def _picked(images: np.ndarray, path: Path) -> Callable:
    """i -> the image, ready for the network (float32), or as a picture (uint8 HWC)."""
    if images.dtype == np.float32 and images.ndim == 4:

        def ready(i):
            if not np.isfinite(images[i]).all():
                raise EvaluationError(f"{path}: image {i} holds NaN or infinity")
            return images[i : i + 1]

        return ready
    if images.dtype == np.uint8 and images.ndim == 4 and 3 in (images.shape[1], images.shape[3]):
        last = images if images.shape[3] == 3 else images.transpose(0, 2, 3, 1)
        return lambda i: last[i]
    raise EvaluationError(
        f"{path}: images is {images.dtype} {images.shape}; give float32 (N, C, H, W) normalised as "
        "in training, or uint8 (N, H, W, 3)"
    )
