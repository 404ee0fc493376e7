"""Where data comes from when it is named in text: files, folders of arrays or pictures, a function.

`calibration` gives inputs, `labelled` gives (input, label) pairs. Pickles are never loaded. No TVM here.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EvaluationError, SourceError
from . import labelled as labels
from .images import Preprocess, decode

ARRAYS = (".npy", ".npz")
#: samples that are read of calibration data that are no arrays
CALIBRATION_LIMIT = 300
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def reason(error: Exception) -> str:
    """Why numpy could not load a file, in a line."""
    text = " ".join(str(error).split())
    if "allow_pickle" in text:
        return "it holds pickled Python objects, which are never loaded; save plain numeric arrays"
    return text or type(error).__name__


def _files(folder: Path, endings) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.suffix.lower() in endings and f.is_file())


def _pictures(source: Path, files: Sequence[Path], preprocess) -> Callable[[Path], np.ndarray]:
    """The function that makes an input of a picture's file."""
    if preprocess is None:
        raise SourceError(
            f"{source} holds pictures; say how the network wants them: --scale 1/255 --mean M,M,M "
            "--std S,S,S [--short-side N] [--crop WxH] [--channel-order BGR], or --preprocess FILE.json "
            "(in Python preprocess=Preprocess(...))"
        )

    def read(file: Path) -> np.ndarray:
        return preprocess(decode(file.read_bytes(), str(file)))

    read(files[0])  # a mistake in the settings shows before the work starts
    return read


@dataclass(frozen=True)
class Source:
    """Calibration data that text names: called with the input names, an iterable of the inputs.

    whole: all that it gives is to be read, as of arrays, and as of pictures that were chosen already; note:
    what of it is taken, in a line, if not all of it.
    """

    make: Callable[[Sequence[str]], Iterable]
    whole: bool = False
    note: str = ""

    def __call__(self, inputs: Sequence[str]) -> Iterable:
        return self.make(inputs)


class _Each:
    """What a function makes of each file, one after the other, as often as asked."""

    def __init__(self, files: Sequence[Path], read: Callable[[Path], np.ndarray]):
        self.paths, self.read = files, read

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(self.read, self.paths)


def spread(files: Sequence[Path], limit: int, seed: int = 0) -> list[Path]:
    """``limit`` of the files, whose beginning is spread evenly over the folders, and over each one's sorted
    names, however much of it is read; the same files for the same seed."""
    folders: dict[Path, list[Path]] = {}
    for file in files:
        folders.setdefault(file.parent, []).append(file)
    queues = [_evenly(folders[name], seed) for name in _evenly(sorted(folders), seed)]
    longest = max(map(len, queues))
    turns = (queue[i] for i in range(longest) for queue in queues if i < len(queue))
    return list(islice(turns, limit))


def _evenly(items: list, seed: int) -> list:
    """All items, of which every beginning is spread evenly over the list: by steps of the golden ratio
    around a circle, which leave no gap of more than 1.7 of the mean one for long."""
    n, start = len(items), np.random.default_rng(seed).random()
    places = (start + np.arange(3 * n + 3) * ((5**0.5 - 1) / 2)) % 1
    return [items[i] for i in dict.fromkeys((places * n).astype(int).tolist())]


def calibration(
    text: str,
    preprocess: Preprocess | None = None,
    flag: str = "--calibration",
    *,
    limit: int | None = None,
    seed: int = 0,
) -> Source:
    """A `Source`, whose inputs have a form that `scales.calibrate` takes.

    text: an .npy or .npz file (arrays named like the inputs, or one of any name; samples along the first
    axis; one with ``labels`` is read by `labelled.load`); a folder of such files; a folder, searched to any
    depth, of pictures, which need ``preprocess``; or ``module:function``, called without arguments, whose
    result yields arrays or {input: array}. limit: take so many pictures of a folder, `spread` by ``seed``;
    None takes all in the order of their names. flag: what errors call it. Raises SourceError, now or later.
    """
    source = Path(text)
    if not source.exists():
        if ":" in text:
            function = labels.named(text)
            return Source(lambda inputs: iter(function()))
        raise SourceError(f"{flag}: there is no file or folder {text}")
    if source.is_dir():
        files = sorted(f for f in source.iterdir() if f.suffix in ARRAYS)
        pictures = _files(source, PICTURES)
        if files and pictures:
            raise SourceError(f"{flag}: {text} holds both arrays ({files[0].name}) and pictures "
                              f"({pictures[0].name}); name a folder of one kind")  # fmt: skip
        if pictures:
            read, note = _pictures(source, pictures, preprocess), ""
            if limit is not None:
                found = spread(pictures, limit, seed)
                if len(found) < len(pictures):
                    of = {f.parent for f in pictures}
                    folders = f" in {len(of)} folders" if len(of) > 1 else ""
                    count = f"{len(found)} of {len(pictures)} pictures"
                    note = f"calibration reads {count}{folders}, spread evenly"
                pictures = found
            return Source(lambda inputs: _Each(pictures, read), whole=True, note=note)
    else:
        files = [source] if source.suffix in ARRAYS else []
    if not files:
        raise SourceError(f"{flag}: {text} holds no .npy or .npz file and no picture")
    return Source(lambda inputs: _arrays(files, inputs, preprocess, flag), whole=True)


def _arrays(files: Sequence[Path], inputs: Sequence[str], preprocess, flag) -> Iterator:
    for file in files:
        try:
            with file.open("rb") as stored:  # numpy leaves an archive that it cannot read open
                loaded = np.load(stored, allow_pickle=False)
                names = [] if file.suffix == ".npy" else loaded.files
                if "labels" in names and "labels" not in inputs:
                    yield from (x for x, _ in labels.load(file, preprocess))
                    continue
                arrays = {name: loaded[name] for name in names} if names else loaded
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            if isinstance(error, EvaluationError):
                raise
            raise SourceError(f"{flag}: cannot read {file}: {reason(error)}") from None
        if names and len(arrays) == len(inputs) == 1:
            arrays = next(iter(arrays.values()))
        yield arrays


def labelled(data: Any, preprocess: Preprocess | None = None) -> labels.LabelledSet:
    """Labelled data: what `labelled.load` takes, or the name of a folder with a folder of pictures a class.

    Classes are the folders' names if all of them are numbers, else their positions in sorted order.
    Raises SourceError, EvaluationError, ImageError.
    """
    if not isinstance(data, (str, os.PathLike)):
        return labels.load(data, preprocess)
    text = os.fspath(data)
    source = Path(text)
    if not source.is_dir():
        if source.suffix == ".npz" and not source.exists():
            raise SourceError(f"there is no file {text}")
        return labels.load(text, preprocess)
    classes = sorted(f.name for f in source.iterdir() if f.is_dir())
    if all(name.isdecimal() for name in classes):
        index = {name: int(name) for name in classes}
    else:
        index = {name: i for i, name in enumerate(classes)}
    pairs = [(file, index[name]) for name in classes for file in _files(source / name, PICTURES)]
    if not pairs:
        raise SourceError(f"{text} has no folders with pictures; make one folder for each class")
    read = _pictures(source, [pairs[0][0]], preprocess)
    seen = labels.Pictures(
        lambda i: decode(pairs[i][0].read_bytes(), str(pairs[i][0])),
        [file.relative_to(source).as_posix() for file, _ in pairs],
    )
    return labels.LabelledSet(lambda: ((read(f), label) for f, label in pairs), len(pairs), text, seen)
