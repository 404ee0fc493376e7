"""What is suspicious about calibration data and pictures' settings, in lines that say the likely cause.

None of it is an error: a network may be odd, and right. No TVM here.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..samples.images import Preprocess
    from .calibrate import Calibration

#: what the mean and the deviation of a set of pictures are, in bytes, at the very least and most
MEAN, DEVIATION = (8, 247), (8, 200)


def of_settings(how: Preprocess) -> Iterator[str]:
    """Of how pictures become inputs: a mean or a deviation that no set of pictures has."""
    mean = [m / how.scale for m in how.mean if m] if how.scale else []
    std = [s / how.scale for s in how.std] if how.scale and set(how.std) != {1.0} else []
    scale = f"scale {how.scale:g}"
    for name, found, (least, most) in (("mean", mean, MEAN), ("std", std, DEVIATION)):
        low = [value for value in found if abs(value) < least]
        high = [value for value in found if abs(value) > most]
        if low or high:
            given = ", ".join(f"{value:g}" for value in getattr(how, name))
            cure = "is --scale 1/255 missing?" if low else "are they of bytes, to go with --scale 1?"
            yield (
                f"the {name} {given} is {(low or high)[0]:.3g} of the bytes 0..255 with {scale}, which no "
                f"pictures have; {cure}"
            )


def of_data(found: Calibration, how: Preprocess | None = None) -> Iterator[str]:
    """Of what calibration saw. how: the preprocessing that is said to have made its samples."""
    answers, samples, seen = found.answers, found.samples, found.seen
    answer, often = Counter(answers).most_common(1)[0] if answers else (0, 0)
    same = len(answers) >= 10 and often == len(answers)
    mostly = len(answers) >= 10 and often >= len(answers) / 2
    if same:
        yield (
            f"the float network answers {answer} to all {len(answers)} calibration samples; "
            "is their preprocessing (scale, mean, std, channel order) that of its training?"
        )
    if samples and seen < found.asked:
        yield f"{seen} calibration samples, where the search asks for {found.asked}; give more if you can"
    yield from _repeated(samples)
    for name in samples[0] if samples else ():
        values = [sample[name] for sample in samples]
        yield from _constant(name, values)
        bytes_ = all(
            v.dtype == np.float32 and v.min() >= 0 and v.max() <= 255 and (v == np.rint(v)).all()
            for v in values
        )
        if bytes_ and max(v.max() for v in values) > 64 and (mostly or not answers):
            yield f"{name} holds whole numbers 0..255, like raw pictures; does the model take them so?"
        if values[0].dtype == np.float32 and values[0].ndim == 4:
            yield from _range(name, values, how)
    zero = [name for name, seen_ in found.ranges.items() if seen_.absmax == 0]
    if zero and seen:
        shown = ", ".join(zero[:8]) + (", ..." if len(zero) > 8 else "")
        yield f"zero on every calibration sample: {shown}; their scale is 1"


def _repeated(samples) -> Iterator[str]:
    first: dict[bytes, int] = {}
    again: list[int] = []
    for number, sample in enumerate(samples):
        key = hashlib.sha256(b"".join(sample[name].tobytes() for name in sorted(sample))).digest()
        if first.setdefault(key, number) != number:
            again.append(number)
    if again:
        yield (
            f"{len(again)} of {len(samples)} calibration samples repeat an earlier one (the first is "
            f"sample {again[0]}); they add nothing"
        )


def _constant(name: str, values) -> Iterator[str]:
    flat = [n for n, v in enumerate(values) if v.size > 1 and v.min() == v.max()]  # one number always is
    if flat:
        count = f"{len(flat)} of {len(values)} samples"
        yield f"{name} is constant in {count} (the first is sample {flat[0]})"


def _range(name: str, values, how: Preprocess | None) -> Iterator[str]:
    """Of images' values: beyond what bytes can become, far below it, or at both ends of their range."""
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    if low == high:
        return
    if how is not None:
        ends = [
            (byte * how.scale - m) / s for m, s in zip(how.mean, how.std, strict=True) for byte in (0, 255)
        ]
        span = max(ends) - min(ends)
        said = (
            f"{name} holds {low:.4g} to {high:.4g}, where the preprocessing makes {min(ends):.4g} to "
            f"{max(ends):.4g} of pictures"
        )
        if low < min(ends) - span / 100 or high > max(ends) + span / 100:
            yield f"{said}; were these samples made with other settings?"
            return
        if high - low < span / 32:
            yield f"{said}; were they scaled twice?"
            return
    elif max(-low, high) > 256:
        yield (
            f"{name} holds {low:.4g} to {high:.4g}, more than pictures do; is a scale missing before the "
            "mean and std?"
        )
    elif max(-low, high) < 1 / 50:
        yield f"{name} holds {low:.4g} to {high:.4g} only; were the samples scaled twice?"
    ends_ = [np.mean([(v == end).mean() for v in values]) for end in (low, high)]
    if min(ends_) > 0.25 and any(((v > low) & (v < high)).any() for v in values):
        yield (
            f"{name} is at its smallest or its largest value, {low:.4g} or {high:.4g}, in "
            f"{100 * sum(ends_):.0f} % of its numbers; was it clipped, or cast to bytes, after the mean was"
            " taken?"
        )


def others(how: Preprocess) -> Iterator[tuple[str, Preprocess]]:
    """Settings that are often meant where ``how`` is given, each with the options that say them."""
    plain = set(how.mean) == {0.0} and set(how.std) == {1.0}
    byte = replace(how, scale=1 / 255)
    found = [("--scale 1/255", byte), ("--scale 1", replace(how, scale=1.0))]
    if plain and how.color != "GRAY":
        words = "--scale 1/255 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
        found.append((words, replace(byte, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))))
    if how.color != "GRAY":
        other = "BGR" if how.color == "RGB" else "RGB"
        found += [
            (f"{words} --channel-order {other}".lstrip(), replace(settings, color=other))
            for words, settings in (("", how), *found)
        ]
    return ((words, settings) for words, settings in found if settings != how)
