"""Where the windows of ONNX's convolutions and pools lie: numbers only, one per spatial axis.

``padding`` is as ONNX writes ``pads``: all begins, then all ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def reach(kernel: Sequence[int], dilations: Sequence[int]) -> tuple[int, ...]:
    """How many places a window spans."""
    return tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))


def pads(
    attributes: Mapping[str, Any],
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[int, ...]:
    """The padding of a convolution or pool on ``size`` places, ``auto_pad`` written out.

    SAME makes ceil(size / stride) windows; of an odd sum SAME_UPPER puts the larger part behind.
    """
    mode = attributes.get("auto_pad") or "NOTSET"
    if mode == "NOTSET":
        return tuple(int(p) for p in attributes.get("pads") or (0,) * (2 * len(size)))
    if mode == "VALID":
        return (0,) * (2 * len(size))
    spans = reach(kernel, dilations)
    total = [max(0, (-(-n // s) - 1) * s + r - n) for n, s, r in zip(size, strides, spans, strict=True)]
    small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    return small + large if mode == "SAME_UPPER" else large + small


def transposed(
    attributes: Mapping[str, Any],
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(what a transposed convolution leaves out of its sum, as ``pads``; the size of its output).

    The former is negative where zeros are added; ``output_padding``, which only ends later, is not in it.
    """
    rank, mode = len(size), attributes.get("auto_pad") or "NOTSET"
    extra = attributes.get("output_padding") or (0,) * rank
    spans = reach(kernel, dilations)
    natural = [s * (n - 1) + e + r for n, s, e, r in zip(size, strides, extra, spans, strict=True)]
    wanted = attributes.get("output_shape")
    if wanted:  # some exporters write the batch and the channels, too
        wanted = wanted[-rank:]
    elif mode.startswith("SAME"):
        wanted = [n * s for n, s in zip(size, strides, strict=True)]
    if wanted:
        total = [n - w for n, w in zip(natural, wanted, strict=True)]
        halves = [max(0, n) // 2 if mode == "SAME_UPPER" else -(-max(0, n) // 2) for n in total]
        padding = (*halves, *(n - half for n, half in zip(total, halves, strict=True)))
    else:
        padding = pads(attributes, size, kernel, strides, dilations)
    return padding, tuple(n - padding[i] - padding[rank + i] for i, n in enumerate(natural))


def outputs(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool = False,
) -> tuple[int, ...]:
    """How many windows there are; in ceil mode the last may end outside, but starts within or before.

    A last window that would start in the end padding is not made.
    """
    rank, made = len(size), []
    for i, r in enumerate(reach(kernel, dilations)):
        room = size[i] + padding[i] + padding[rank + i] - r
        count = (-(-room // strides[i]) if ceil_mode else room // strides[i]) + 1
        if ceil_mode and (count - 1) * strides[i] >= size[i] + padding[i]:
            count -= 1
        made.append(count)
    return tuple(made)


def whole_windows(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    padding: Sequence[int],
    counts: Sequence[int],
) -> tuple[int, ...]:
    """``padding`` with its ends such that there are exactly ``counts`` windows, all of them whole.

    Ends grow where the last window ends outside, and shrink where a further one would fit.
    """
    rank = len(size)
    ends = []
    for i, r in enumerate(reach(kernel, dilations)):
        needed = (counts[i] - 1) * strides[i] + r - size[i] - padding[i]
        ends.append(max(needed, min(padding[rank + i], needed + strides[i] - 1)))
    return (*padding[:rank], *ends)


__all__ = ["outputs", "pads", "reach", "transposed", "whole_windows"]
