"""Where data comes from when it is named in text: files, folders of arrays or pictures, a function.

`calibration` gives inputs, `labelled` gives (input, label) pairs. Pickles are never loaded. No TVM here.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..errors import EvaluationError, SourceError
from . import labelled as labels
from .images import Preprocess, decode

ARRAYS = (".npy", ".npz")
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
            "--std S,S,S [--size WxH] [--crop WxH] [--channel-order BGR], or --preprocess FILE.json"
        )

    def read(file: Path) -> np.ndarray:
        return preprocess(decode(file.read_bytes(), str(file)))

    read(files[0])  # a mistake in the settings shows before the work starts
    return read


def calibration(
    text: str, preprocess: Preprocess | None = None, flag: str = "--calibration"
) -> Callable[[Sequence[str]], Iterator]:
    """A function (input names) -> iterator of inputs, in a form that `scales.calibrate` takes.

    text: an .npy or .npz file (arrays named like the inputs, or one of any name; samples along the first
    axis; one with ``labels`` is read by `labelled.load`); a folder of such files; a folder, searched to any
    depth, of pictures, which need ``preprocess``; or ``module:function``, called without arguments, whose
    result yields arrays or {input: array}. flag: what errors call it. Raises SourceError, now or later.
    """
    source = Path(text)
    if not source.exists():
        if ":" in text:
            function = labels.named(text)
            return lambda inputs: iter(function())
        raise SourceError(f"{flag}: there is no file or folder {text}")
    if source.is_dir():
        files = sorted(f for f in source.iterdir() if f.suffix in ARRAYS)
        pictures = _files(source, PICTURES)
        if files and pictures:
            raise SourceError(f"{flag}: {text} holds both arrays ({files[0].name}) and pictures "
                              f"({pictures[0].name}); name a folder of one kind")  # fmt: skip
        if pictures:
            read = _pictures(source, pictures, preprocess)
            return lambda inputs: map(read, pictures)
    else:
        files = [source] if source.suffix in ARRAYS else []
    if not files:
        raise SourceError(f"{flag}: {text} holds no .npy or .npz file and no picture")
    return lambda inputs: _arrays(files, inputs, preprocess, flag)


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


def labelled(text: str, preprocess: Preprocess | None = None) -> labels.LabelledSet:
    """Labelled data by name: what `labelled.load` takes, or a folder with one folder of pictures a class.

    Classes are the folders' names if all of them are numbers, else their positions in sorted order.
    Raises SourceError, EvaluationError, ImageError.
    """
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
    return labels.LabelledSet(lambda: ((read(f), label) for f, label in pairs), len(pairs), text)
