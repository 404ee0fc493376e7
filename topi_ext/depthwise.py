"""Depthwise convolution, NHWC: vectors of channels, no intrinsic, so the same code on every CPU.

``int16`` accumulators where `conv2d.tap_bound` proves that no partial sum leaves them, else int32.
"""

from __future__ import annotations

from .conv2d import ConvSpec
from .direct import Dot, Writer, outer_loop, padded_map
from .emit import Builder, extern, tir, with_lanes

LANES = 16


def compute(cfg, spec: ConvSpec, accumulator: str, data, weight, bias, multiplier, residual=None):
    """TE tensor; weight: ``accumulator`` type (R, S, C padded to 16), bias and multiplier padded.

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
        acc = ib.allocate(accumulator, count * LANES, name="acc", scope="local")
        channel = block * LANES
        for p in range(count):
            total = None
            for i in range(r):
                for j in range(s):
                    index = [
                        n,
                        y * spec.strides[0] + i * spec.dilation[0],
                        (x + p) * spec.strides[1] + j * spec.dilation[1],
                        channel,
                    ]
                    product = data.vload(index, f"uint8x{LANES}").astype(wide)
                    product = product * weight.vload([i, j, channel], wide)
                    total = product if total is None else total + product
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
