"""Every instruction that the kernels name computes what its numpy meaning says, on the corners of its operands."""

from dataclasses import replace

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
from kernel_host import RELAY
from test_kernels import DEPTHWISE, LINE, STRASSEN, TAILS, WINOGRAD
from tvm import te

from topi_ext import epilogue, isa, manifest, packing, reference
from topi_ext.conv2d import ConvSpec
from topi_ext.emit import Builder, DefaultKnobs, const, effect, extern, lanes_of, pure
from topi_ext.targets import arm, x86
from topi_ext.targets.meaning import INSTRUCTIONS, meaning

VECTORS = 2000
#: float32 corners of a conversion to int32: ties, the last values that fit, the first that do not
FLOATS = (
    0.5,
    1.5,
    2.5,
    -0.5,
    -1.5,
    2.0**31 - 128,
    2.0**31,
    -(2.0**31),
    -(2.0**31) - 256,
    np.inf,
    -np.inf,
    np.nan,
)


def lattice(dtype):
    if dtype == "float32":
        return np.array(FLOATS, np.float32)
    limits = np.iinfo(dtype)
    return np.array([limits.min, limits.min + 1, -1, 0, 1, limits.max - 1, limits.max], dtype)


def operands(row):
    """Corner values in every lane, drawn anew for each of many vectors."""
    rng = np.random.default_rng(0)
    types = map(lanes_of, row.operands)
    return [rng.choice(lattice(base), (VECTORS, lanes)) for base, lanes in types]


def immediates(row):
    """The operands of a masked instruction that are no data: what is not computed, all lanes and, of a
    conversion from float, the rounding."""
    if ".mask." not in row.name:
        return ()
    masked = (const(0, row.result), const(-1, "int16"))
    return (*masked, const(4, "int32")) if row.operands[0].startswith("float") else masked


def function(row):
    """(TE inputs, TE output) of the instruction on each of `VECTORS` vectors."""
    inputs = [
        te.placeholder((VECTORS, n), base, name=f"in{i}")
        for i, (base, n) in enumerate(map(lanes_of, row.operands))
    ]
    base, lanes = lanes_of(row.result)

    def body(ins, out):
        ib = Builder()
        if row.isa == "amx":
            return of_tiles(ib, ins, out)
        with ib.for_range(0, VECTORS, "i") as i:
            xs = [buffer.vload([i, 0], dtype) for buffer, dtype in zip(ins, row.operands, strict=True)]
            ib.emit(out.vstore([i, 0], pure(row.result, row.name, *xs, *immediates(row))))
        return ib.get()

    return inputs, extern((VECTORS, lanes), inputs, body, base, "out", "instruction")


def of_tiles(ib, ins, out):
    """The product of three tiles on each of `VECTORS` sets of them."""
    tiles = x86.amx_tiles()
    tiles.configure(ib, dict.fromkeys(range(3), (16, 64)))
    with ib.for_range(0, VECTORS, "i") as i:
        for tile, buffer in enumerate(ins):
            ib.emit(tiles.load(tile, buffer, [i, 0], 64))
        ib.emit(tiles.multiply(0, 1, 2))
        ib.emit(tiles.store(0, out, [i, 0], 64))
    ib.emit(tiles.release())
    return ib.get()


@pytest.mark.skipif(not RELAY, reason="built by TVM 0.19")
@pytest.mark.parametrize("row", [
    pytest.param(row, id=row.name, marks=pytest.mark.isa(row.isa))
    for row in INSTRUCTIONS.values() if isa.ISAS[row.isa].arch in ("", isa.arch_of(""))
])  # fmt: skip
def test_an_instruction_computes_its_meaning(row):
    inputs, out = function(row)
    library = tvm.build(te.create_schedule(out.op), [*inputs, out], isa.ISAS[row.isa].target)
    arrays = operands(row)
    got = tvm.nd.empty((VECTORS, lanes_of(row.result)[1]), lanes_of(row.result)[0])
    library(*map(tvm.nd.array, arrays), got)
    np.testing.assert_array_equal(got.numpy(), meaning(row.name)(*arrays))


@pytest.mark.parametrize("name", [
    "llvm.x86.avx512.vpdpbusd.256", "llvm.x86.avx512.vpdpbusd.512", "llvm.aarch64.neon.usdot",
])  # fmt: skip
def test_quads_add_up_to_the_norms_sums(name):
    """Where no CPU at hand has it: a layer of any 8-bit operands by its meaning is the norm's, for all corners."""
    lanes = lanes_of(INSTRUCTIONS[name].result)[1]
    rng = np.random.default_rng(0)
    data = rng.choice(np.array([0, 1, 127, 128, 255], np.uint8), (64, 1, 1, 40))
    weight = rng.choice(lattice("int8"), (1, 1, 40, lanes))
    acc = np.zeros((64, lanes), np.int32)
    for first in range(0, 40, 4):
        group = np.tile(data[:, 0, 0, first : first + 4], lanes).view(np.int8)
        acc = meaning(name)(acc, group, np.tile(weight[0, 0, first : first + 4].T.ravel(), (64, 1)))
    norm = reference.conv2d(data, weight, zero_point=0, strides=(1, 1), padding=(0, 0, 0, 0))
    np.testing.assert_array_equal(acc, norm[:, 0, 0])


def test_a_product_of_tiles_is_the_norms_sums():
    """The same of AMX: 16 pixels by 16 outputs, 64 inputs."""
    rng = np.random.default_rng(0)
    data = rng.choice(np.array([0, 1, 127, 128, 255], np.uint8), (1, 4, 4, 64))
    weight = rng.choice(lattice("int8"), (1, 1, 64, 16))
    start = rng.choice(lattice("int32"), (1, 256))
    packed = packing.pack(ConvSpec(1, 4, 4, 64, 16, (1, 1)), weight, 16, 4)
    found = meaning("llvm.x86.tdpbusd")(start, data.reshape(1, -1).view(np.int8), packed.reshape(1, -1))
    norm = reference.conv2d(data, weight, zero_point=0, strides=(1, 1), padding=(0, 0, 0, 0))
    np.testing.assert_array_equal(found, (start + norm.reshape(1, -1)).astype(np.int32))


def test_the_corners_reach_what_saturates_and_what_wraps():
    """The comparison above would miss a meaning that does not saturate if no operand did."""
    bytes_ = operands(INSTRUCTIONS[isa.AVX2.byte_pairs])
    assert set(np.unique(meaning(isa.AVX2.byte_pairs)(*bytes_))) >= {-(2**15), 2**15 - 1}
    words = operands(INSTRUCTIONS[isa.AVX2.word_pairs])
    assert meaning(isa.AVX2.word_pairs)(*words).min() == -(2**31)
    exact = (words[0].astype(np.int64) * words[1]).reshape(VECTORS, -1, 2).sum(axis=2)
    assert exact.max() == 2**31


def test_every_instruction_of_a_kernel_has_a_meaning(monkeypatch):
    used = set()

    def recorded(dtype, name, *args):
        used.add(name)
        return pure(dtype, name, *args)

    def done(name, *args):
        used.add(name)
        return effect(name, *args)

    for module in (x86, arm, epilogue):
        monkeypatch.setattr(module, "pure", recorded)
    monkeypatch.setattr(x86, "effect", done)
    spec = {"depthwise": DEPTHWISE["plain"], "winograd": WINOGRAD["whole tiles"],
            "line": LINE["one column"], "strassen": STRASSEN["two pixels"]}  # fmt: skip
    for row in manifest.KERNELS:
        layer = spec.get(row.name.split("_")[0], TAILS["first layer, stride, odd sizes"])
        layer = replace(layer, function=("multiply", ("multiply", "x", ("sigmoid", "x")), 25.0))
        weight = np.ones(layer.weight_shape, np.int8)
        arrays = row.pack(
            layer, weight, np.zeros(layer.out_channels, np.int32), np.ones(layer.out_channels, np.float32)
        )
        data = te.placeholder((layer.batch, layer.height, layer.width, layer.in_channels), "uint8")
        row.compute(DefaultKnobs(), layer, data, *(te.placeholder(a.shape, str(a.dtype)) for a in arrays))
    moves = {"ldtilecfg", "tilerelease", "tilezero", "tileloadd64", "tilestored64"}
    used -= {f"llvm.x86.{name}" for name in moves}
    made = ("llvm.arithmetic.fence", "llvm.vector.reduce.or.")  # of no instruction of their own
    used = {name for name in used if not name.startswith(made)}
    assert used and used <= set(INSTRUCTIONS), used - set(INSTRUCTIONS)
    vectors = {name for row in isa.ISAS.values() for v in row.vectors for name in v[1:] if name}
    assert vectors <= set(INSTRUCTIONS)


def test_a_fused_multiply_add_is_rounded_once():
    """The product is a tie of float32's; what is added to it float64 cannot hold beside it."""
    a, little = np.float32([[1 + 2.0**-12]]), np.float32([[2.0**-70]])
    assert meaning("llvm.fma.v8f32")(a, a, little) == np.float32(1 + 2.0**-11 + 2.0**-23)
    assert meaning("llvm.fma.v8f32")(a, a, -little) == np.float32(1 + 2.0**-11)
