"""Depthwise convolution, NHWC: vectors of channels, no intrinsic, so the same code on every CPU.

``int16`` accumulators where `conv2d.tap_bound` proves that a channel's sums are no further apart than int16
is wide: each sum starts at a constant that puts the middle of its range at zero, and the bias takes it
back. Else int32.
"""

from __future__ import annotations

import numpy as np

from .conv2d import ConvSpec
from .direct import Dot, Writer, copied, outer_loop, padded_map
from .emit import Builder, extern, tir, with_lanes

LANES = 16


def center(spec: ConvSpec, weight: np.ndarray) -> np.ndarray:
    """int32 (K,): the middle of the range of each channel's sum; weight int8 (R, S, 1, K)."""
    flat = weight.reshape(-1, spec.out_channels).astype(np.int64)
    return (spec.data_max * flat.sum(axis=0) // 2).astype(np.int32)


def work(spec: ConvSpec) -> tuple[float, ...]:
    """Millions of: multiply-accumulates with padded channels, outputs, elements copied."""
    outputs = spec.batch * spec.out_height * spec.out_width * (-(-spec.out_channels // LANES) * LANES)
    taps = spec.kernel[0] * spec.kernel[1]
    return tuple(n * 1e-6 for n in (outputs * taps, outputs, copied(spec) if any(spec.padding) else 0))


def compute(cfg, spec: ConvSpec, accumulator: str, data, weight, bias, multiplier, residual=None):
    """TE tensor; weight: ``accumulator`` type (R * S + 1, C padded to 16), the last row what every sum
    starts with; bias and multiplier padded.

    AutoTVM knob: ``tile`` (pixels of a row computed at once).
    """
    width = spec.out_width
    cfg.define_knob("tile", [p for p in (4, 2, 1, 3, 7) if p <= width])
    cfg.add_flop(2 * spec.macs)
    source = padded_map(spec, Dot(LANES, LANES, "uint8", "", 1, None, None, 0), data)
    inputs = [source, weight, bias, multiplier] + ([] if residual is None else [residual])

    def body(ins, out):
        return _emit(spec, accumulator, cfg["tile"].val, ins, out)

    return extern(spec.out_shape, inputs, body, spec.out_dtype, "conv2d", "easyquant_conv2d")


def _emit(spec, accumulator, pixels, ins, out):
    data, weight, bias, multiplier = ins[:4]
    ib = Builder()
    write = Writer(ib, spec, out, multiplier, ins[4] if len(ins) > 4 else None)
    wide = with_lanes(accumulator, LANES)
    r, s = spec.kernel
    tiles, tail = divmod(spec.out_width, pixels)
    blocks, ragged = divmod(spec.out_channels, LANES)

    def tile(n, y, x, count, block, valid):
        acc = ib.allocate(accumulator, count * LANES, name="acc")
        channel = block * LANES
        for p in range(count):
            total = weight.vload([r * s, channel], wide)
            for i in range(r):
                for j in range(s):
                    index = [
                        n,
                        y * spec.strides[0] + i * spec.dilation[0],
                        (x + p) * spec.strides[1] + j * spec.dilation[1],
                        channel,
                    ]
                    product = data.vload(index, f"uint8x{LANES}").astype(wide)
                    total = total + product * weight.vload([i * s + j, channel], wide)
            ib.emit(acc.vstore([p * LANES], total))
        for p in range(count):
            value = acc.vload([p * LANES], wide).astype(f"int32x{LANES}")
            write(
                value + bias.vload([channel], f"int32x{LANES}"),
                lambda k, p=p: [n, y, x + p, k],
                channel,
                channel,
                valid,
            )

    def row(n, y, block, valid):
        if tiles:
            with ib.for_range(0, tiles, "tile") as t:
                tile(n, y, t * pixels, pixels, block, valid)
        if tail:
            tile(n, y, tir.const(tiles * pixels), tail, block, valid)

    with ib.for_range(0, spec.batch * spec.out_height, "row", kind=outer_loop(spec)) as ny:
        n, y = ny // spec.out_height, ny % spec.out_height
        if blocks:
            with ib.for_range(0, blocks, "block") as block:
                row(n, y, block, None)
        if ragged:
            row(n, y, tir.const(blocks), ragged)
    return ib.get()
