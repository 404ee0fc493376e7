"""The product of two stored tensors, as attention has it: uint8 x uint8 -> int32, exact for any operands.

Nothing is known before it runs, so both sides are copied once as int16 steps, less their zero points: the
rows of the one as they lie, the rows of the other in blocks of as many as a vector has lanes. A register
tile of rows by blocks then walks the depth in groups of one 32-bit lane, as `direct` does. A step has 8
bits and a sign, so int16 holds it, and int32 the sum of `reference.MOST_PRODUCTS` products.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

from .. import isa
from ..emit import Builder, const, extern, tir, with_lanes
from ..isa import ISAS
from ..reference import MOST_PRODUCTS
from ..targets import arm, x86
from .direct import PARALLEL_MACS, Dot, pieces, plain_dot, tile_pixels

VECTORS = 2  # blocks in a tile, so that a number is loaded once for two vectors


class Product(NamedTuple):
    """``out[n, i, j] = sum over c of (a[n, i, c] - zero_a) * (b[n, j, c] - zero_b)``.

    a: uint8 (batch, rows, depth); b: uint8 (batch, columns, depth); out: int32 (batch, rows, columns).
    """

    batch: int
    rows: int
    depth: int
    columns: int
    zero_a: int = 0
    zero_b: int = 0

    @property
    def out_shape(self) -> tuple[int, int, int]:
        return self.batch, self.rows, self.columns

    @property
    def macs(self) -> int:
        return self.batch * self.rows * self.depth * self.columns

    def to_json(self) -> str:
        """As an attribute of an operator."""
        return json.dumps(self._asdict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Product:
        """What `to_json` made the text of."""
        return cls(**json.loads(str(text)))


def _plain(row: isa.Isa) -> Dot:
    """`plain_dot` of two sides in int16."""
    return plain_dot(2 * row.lanes, 2)._replace(data="int16", weight="int16")


#: instruction set -> (its multiply of int16, rows in a tile)
DOTS: dict[str, tuple[Callable[[isa.Isa], Dot], int]] = {
    "avx512bw": (x86.int32_dot, 12),
    "avx2": (x86.int32_dot, 4),
    "neon": (arm.word_dot, 4),
    "armv7_neon": (arm.word_dot, 2),
    "generic": (_plain, 2),
}


def row_of(isa_name: str) -> str:
    """The instruction set whose multiply a product on ``isa_name`` takes."""
    return next(name for name in isa.usable(isa_name) if name in DOTS)


def compute(product: Product, isa_name: str, a, b):
    """TE tensor of the product, its loops already made, for an instruction set."""
    assert product.depth <= MOST_PRODUCTS  # noqa: S101  # the row of the operator refuses it
    name = row_of(isa_name)
    make, pixels = DOTS[name]
    return _Loops(product, make(ISAS[name]), pixels).made(a, b)


class _Loops:
    """One instance per kernel."""

    def __init__(self, product: Product, dot: Dot, pixels: int):
        self.product, self.dot = product, dot
        self.pixels = tile_pixels(product.rows, min(pixels, product.rows))
        self.groups = -(-product.depth // dot.group)
        self.blocks = -(-product.columns // dot.lanes)
        self.kind = "parallel" if product.macs > PARALLEL_MACS else "serial"

    def made(self, a, b):
        p, dot = self.product, self.dot
        rows = (p.batch, p.rows, self.groups * dot.group)
        left = extern(
            rows, [a], lambda ins, out: self._rows(ins[0], out), "int16", "rows", "easyquant_rows"
        )
        blocks = (p.batch, self.blocks, self.groups, dot.lanes * dot.group)
        right = extern(
            blocks, [b], lambda ins, out: self._blocks(ins[0], out), "int16", "blocks", "easyquant_blocks"
        )
        return extern(p.out_shape, [left, right], self._body, "int32", "product", "easyquant_product")

    def _rows(self, a, out):
        """Steps of the first side, with zeros behind the depth that fill the last group."""
        ib, p = Builder(), self.product
        ib.whole(out)
        with ib.for_range(0, p.batch * p.rows, "row", kind=self.kind) as row:
            n, y = row // p.rows, row % p.rows
            for at, lanes in pieces(ib, p.depth):
                wide = with_lanes("int16", lanes)
                x = a.vload([n, y, at], with_lanes("uint8", lanes)).astype(wide)
                ib.emit(out.vstore([n, y, at], x - const(p.zero_a, wide)))
            for at in range(p.depth, self.groups * self.dot.group):
                ib.emit(out.vstore([n, y, at], const(0, "int16")))
        return ib.get()

    def _blocks(self, b, out):
        """Steps of the second side, a group of each row of a block beside that of the next."""
        ib, p, dot = Builder(), self.product, self.dot
        ib.whole(out)
        whole, rest = divmod(p.columns, dot.lanes)

        def group(n, block, c, count, rows):
            """``count`` steps of every row of a block from the group ``c`` on, then zeros."""
            for lane in range(dot.lanes):
                wide = with_lanes("int16", count)
                if lane < rows:
                    x = b.vload([n, block * dot.lanes + lane, c * dot.group], with_lanes("uint8", count))
                    ib.emit(
                        out.vstore([n, block, c, lane * dot.group], x.astype(wide) - const(p.zero_b, wide))
                    )
                for i in range(count if lane < rows else 0, dot.group):
                    ib.emit(out.vstore([n, block, c, lane * dot.group + i], const(0, "int16")))

        def block_of(n, block, rows):
            full, odd = divmod(p.depth, dot.group)
            with ib.for_range(0, full, "group") as c:
                group(n, block, c, dot.group, rows)
            if odd:
                group(n, block, tir.const(full, "int32"), odd, rows)

        if whole:
            with ib.for_range(0, p.batch * whole, "block", kind=self.kind) as i:
                block_of(i // whole, i % whole, dot.lanes)
        if rest:
            with ib.for_range(0, p.batch, "last") as n:
                block_of(n, tir.const(whole, "int32"), rest)
        return ib.get()

    def _body(self, ins, out):
        """All rows by all blocks; the rows that are left over are smaller tiles."""
        self.left, self.right = ins
        self.out, self.ib = out, Builder()
        ib, p = self.ib, self.product
        tiles, tail = divmod(p.rows, self.pixels)
        if tiles:
            with ib.for_range(0, p.batch * tiles, "tile", kind=self.kind) as t:
                self._row(t // tiles, (t % tiles) * self.pixels, self.pixels)
        if tail:
            with ib.for_range(0, p.batch, "tail", kind=self.kind if p.batch > 1 else "serial") as n:
                self._row(n, tir.const(tiles * self.pixels, "int32"), tail)
        return ib.get()

    def _row(self, n, y, pixels):
        whole, rest = divmod(self.product.columns, self.dot.lanes)
        steps, one = divmod(whole, VECTORS)
        with self.ib.for_range(0, steps, "step") as step:
            self._tile(n, y, pixels, step * VECTORS, VECTORS)
        if one:
            self._tile(n, y, pixels, tir.const(steps * VECTORS, "int32"), one)
        if rest:
            self._tile(n, y, pixels, tir.const(whole, "int32"), 1, rest)

    def _tile(self, n, y, pixels, block, vectors, valid=None):
        """Sums of ``pixels`` rows and ``vectors`` blocks; valid: lanes of the last block that count."""
        ib, dot = self.ib, self.dot
        vector, wide = with_lanes("int32", dot.lanes), with_lanes("int16", dot.lanes * dot.group)
        acc = ib.allocate("int32", pixels * vectors * dot.lanes, name="acc")
        places = [(i, v, [(i * vectors + v) * dot.lanes]) for i in range(pixels) for v in range(vectors)]
        for _, _, slot in places:
            ib.emit(acc.vstore(slot, const(0, vector)))
        with ib.for_range(0, self.groups, "k") as k:
            for i, v, slot in places:
                x = dot.load(self.left.vload([n, y + i, k * dot.group], with_lanes("int16", dot.group)))
                w = self.right.vload([n, block + v, k, 0], wide)
                ib.emit(acc.vstore(slot, dot.combine(acc.vload(slot, vector), [x], [w])))
        for i, v, slot in places:
            column = (block + v) * dot.lanes
            if valid is None or v < vectors - 1:
                ib.emit(self.out.vstore([n, y + i, column], acc.vload(slot, vector)))
                continue
            with ib.for_range(0, valid, "lane") as lane:
                one = acc.vload([slot[0] + lane], "int32")
                ib.emit(self.out.vstore([n, y + i, column + lane], one))
