"""64-bit ARM: every row of the manifest equals the norm under qemu; what the compiler makes of it."""

import importlib
import json
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import networks
import numpy as np
import pytest

tvm = pytest.importorskip("tvm")
import onnx
import test_epilogue as functions
import test_kernels as kernels
import test_meaning as meanings
import test_operators as operators
from python_process import tvmc
from tvm import autotvm, relay, rpc, te
from tvm.autotvm.measure import MeasureErrorNo
from tvm.contrib import cc
from tvm.contrib.graph_executor import GraphModule
from tvm.rpc.tracker import Tracker

import tvm_easyquant as eq
from topi_ext import cost, isa, manifest, planner, proofs, reference
from topi_ext.conv2d import Bound, ConvSpec, Refusal, fold_zero_point, pack
from topi_ext.emit import DefaultKnobs
from topi_ext.kernels.product import Product, compute
from topi_ext.relay import op as relay_op
from topi_ext.targets import arm
from tvm_easyquant import cli, demo, load_onnx, tuning
from tvm_easyquant.relay import tune as relay_tune
from tvm_easyquant.relay.build import TargetError, cpu_target
from tvm_easyquant.relay.framework import no_tophub
from tvm_easyquant.relay.reference import execute
from tvm_easyquant.scales.integer import run_integer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tutorials" / "arm"))
import device

relay_op.register()
PAD = kernels.PAD
ROWS = [row for row in manifest.KERNELS if isa.ISAS[row.isa].arch == "aarch64"]
SHARED = [row for row in manifest.KERNELS if row.isa == "generic"]  # every CPU runs them
NEON = "llvm -mtriple=aarch64-linux-gnu -mattr=+neon"


def target_of(row):
    return isa.ISAS[row.isa if row in ROWS else "neon"].target


def marked(rows, **cases):
    """One parameter for each row and case, marked with the ISA the row needs."""
    return [
        pytest.param(
            row, value, id=f"{row.name}-{name}", marks=pytest.mark.isa(row.isa if row in ROWS else "neon")
        )
        for row in rows
        for name, value in cases.items()
    ]


def build(row, spec, weight, bias, factor, residual=None, target=None):
    """The kernel as TVM's library for aarch64."""
    shape = (spec.batch, spec.height, spec.width, spec.in_channels)
    arguments = [relay.var("x", shape=shape, dtype="uint8")]
    if residual is not None:
        arguments.append(relay.var("r", shape=residual.shape, dtype="uint8"))
    folded = fold_zero_point(bias, weight, spec.zero_point)
    constants = [relay.const(c) for c in row.pack(spec, weight, folded, factor)]
    call = relay_op.conv2d(arguments[0], spec, row, constants, *arguments[1:])
    module = tvm.IRModule.from_expr(relay.Function(arguments, call))
    with no_tophub(), tvm.transform.PassContext(opt_level=3):
        return relay.build(module, target or target_of(row))


class Board:
    """An aarch64 machine: the device program under qemu, reached by RPC."""

    def __init__(self, remote, folder):
        self.remote, self.folder, self.count = remote, folder, 0

    def run(self, library, feed):
        """The first output of TVM's ``library`` for the inputs ``feed``."""
        self.count += 1
        path = self.folder / f"net{self.count}.so"
        library.export_library(str(path), fcompile=cc.cross_compiler(device.COMPILER))
        self.remote.upload(str(path))
        module = GraphModule(self.remote.load_module(path.name)["default"](self.remote.cpu()))
        module.set_input(**feed)
        module.run()
        return module.get_output(0).numpy()

    def load(self, library):
        """A function (arrays, shape, dtype) -> output, of a library of one function called "instruction"."""
        self.count += 1
        path = self.folder / f"net{self.count}.so"
        library.export_library(str(path), fcompile=cc.cross_compiler(device.COMPILER))
        self.remote.upload(str(path))
        function = self.remote.load_module(path.name)["instruction"]

        def call(arrays, shape, dtype):
            out = tvm.nd.empty(shape, dtype, self.remote.cpu())
            function(*(tvm.nd.array(array, self.remote.cpu()) for array in arrays), out)
            return out.numpy()

        return call


@pytest.fixture(scope="session")
def program(request):
    """The device program; the isa marker has seen to it that the tools are here."""
    try:
        return device.set_up(device.default_folder())
    except device.Missing as error:
        if request.config.getoption("--require-isa"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def board(program, tmp_path_factory):
    with device.Emulated(program) as server:
        yield Board(rpc.connect("127.0.0.1", server.port), tmp_path_factory.mktemp("board"))


# -- executed: the instructions, then the kernels: extremes, tails, random


@pytest.mark.parametrize("row", [
    pytest.param(row, id=row.name, marks=pytest.mark.isa(row.isa))
    for row in meanings.INSTRUCTIONS.values() if isa.ISAS[row.isa].arch == "aarch64"
])  # fmt: skip
def test_an_instruction_computes_its_meaning(board, row):
    """Under qemu, on the corners of its operands; see tests/test_meaning.py."""
    inputs, out = meanings.function(row)
    target = isa.ISAS[row.isa].target
    library = tvm.build(te.create_schedule(out.op), [*inputs, out], target, name="instruction")
    arrays = meanings.operands(row)
    got = board.load(library)(arrays, tuple(map(int, out.shape)), out.dtype)
    np.testing.assert_array_equal(got, meanings.meaning(row.name)(*arrays))


def run(board, row, spec, data, weight, bias, factor, residual=None):
    feed = {"x": data} if residual is None else {"x": data, "r": residual}
    return board.run(build(row, spec, weight, bias, factor, residual), feed)


EXTREMES = {f"{sign * top}": (sign, top) for sign, top in ((1, 63), (-1, 127), (1, 255), (-1, 255))}


@pytest.mark.parametrize("row, extreme", [*marked(ROWS, **EXTREMES), *marked(SHARED, **{"255": (1, 255)})])
def test_extremes(board, row, extreme):
    """The largest equal weights each kernel can prove, on data that is all data_max and on data that is all
    0 (-128, where it is read as signed): no lane may wrap."""
    sign, data_max = extreme
    groups = 64 if row.name.startswith("depthwise") else 1
    spec = ConvSpec(2, 4, 5, 64, 64, (3, 3), groups=groups, data_max=data_max, epilogue="dequantize")
    answers = [row.proves(spec, np.full(spec.weight_shape, w, np.int8)) for w in range(128)]
    largest = max(w for w, answer in enumerate(answers) if isinstance(answer, Bound))
    assert all(isinstance(answer, Refusal) for answer in answers[largest + 1 :])
    weight = np.full(spec.weight_shape, sign * largest, np.int8)
    data = np.full((2, 4, 5, 64), data_max, np.uint8)
    data[1] = 0
    out = run(board, row, spec, data, weight, np.zeros(64, np.int32), np.ones(64, np.float32))
    assert (out[0] == np.float32(sign * largest * data_max * 9 * 64 // groups)).all() and not out[1].any()


def test_the_extremes_reach_what_the_manifest_says():
    """The largest equal weight proven for data up to 63, 127 and 255: 2 * depth * data * weight < 2**15."""
    spec = ConvSpec(1, 4, 5, 64, 16, (3, 3), epilogue="dequantize")

    def largest(name, data_max):
        row, case = manifest.kernel(name), replace(spec, data_max=data_max)
        weights = (np.full(spec.weight_shape, w, np.int8) for w in range(128))
        return sum(isinstance(row.proves(case, w), Bound) for w in weights) - 1

    table = {
        "direct_neon_d4": (65, 32, 31),  # 8 products; data up to 255 is read as -128 .. 127
        "direct_neon_d2": (127, 64, 63),
        "direct_neon_d1": (127, 127, 127),
        "direct_neon_dotprod": (127, 127, 127),
    }
    assert {name: tuple(largest(name, d) for d in (63, 127, 255)) for name in table} == table


def shapes_of(row):
    kinds = {"depthwise": kernels.DEPTHWISE, "winograd": kernels.WINOGRAD}
    return kinds.get(row.name.split("_")[0], kernels.TAILS)


#: rows whose body is that of a row tested in full, in CI: a few of its shapes stand for all
BRIEFLY = ("depthwise_int32", "direct_generic", "direct_neon_d1", "direct_neon_d2", "direct_neon_dotprod",
           "direct_neon_i8mm", "winograd_f23_neon")  # fmt: skip
BRIEF = ("plain", "first layer, stride, odd sizes", "dense, many", "residual, ragged",
         "partial tiles, batch, odd channels")  # fmt: skip


def tails():
    for row in (*ROWS, *SHARED):
        shapes = shapes_of(row)
        yield from marked([row], **{n: s for n, s in shapes.items() if n in BRIEF})
        if row.name not in BRIEFLY:
            for case in marked([row], **{n: s for n, s in shapes.items() if n not in BRIEF}):
                yield pytest.param(*case.values, id=case.id, marks=[*case.marks, pytest.mark.ci])


@pytest.mark.parametrize("row, spec", list(tails()))
def test_kernel_equals_the_norm(board, row, spec):
    refused = row.refuses(spec)
    if refused is not None:  # a shape the row does not take: the reason must be the shape
        assert spec.groups > 1 and "multiple" in refused.why
        return
    weight_max = next(w for w in (127, 63, 31, 15, 7) if kernels.legal(row, spec, w))
    operands = kernels.operands(spec, weight_max)
    np.testing.assert_array_equal(run(board, row, spec, *operands), kernels.expected(spec, *operands))


def fused():
    """Every function in a row of every body: a few by default, all in CI."""
    names = ("direct_neon_d2", "wide_neon", "winograd_f43_neon", "depthwise_int16", "direct_generic")
    for case in marked([manifest.kernel(name) for name in names], **{n: n for n in functions.FUNCTIONS}):
        row, name = case.values
        brief = name in functions.BRIEF and row.name != "direct_generic"
        yield pytest.param(row, name, id=case.id, marks=[*case.marks, *([] if brief else [pytest.mark.ci])])


@pytest.mark.parametrize("row, name", list(fused()))
def test_a_fused_function_is_the_norms(board, row, name):
    c = functions.Case(row, name)
    data = c.data()
    out = run(board, row, c.spec, data, c.weight, c.bias, c.factors)
    np.testing.assert_array_equal(out, c.wanted(data))


@pytest.mark.slow
@pytest.mark.parametrize("row, name", marked(
    [manifest.kernel(name) for name in ("direct_neon_d2", "winograd_f43_neon", "depthwise_int16")],
    **{name: name for name in functions.FUNCTIONS}
))  # fmt: skip
def test_ten_million_outputs_of_a_function(board, row, name, compared):
    c, done, call = functions.Case(row, name, seed=1, size=64), 0, None
    while done < functions.OUTPUTS:
        data = c.data()
        arrays = c.arrays(row, data)
        if call is None:
            call = board.load(functions.built(row, c.spec, arrays, target_of(row), "instruction"))
        found = call(arrays, c.spec.out_shape, "uint8")
        np.testing.assert_array_equal(found, c.wanted(data))
        done += found.size
        c.again()
    compared(f"{row.name}, {name}", done)


@pytest.mark.parametrize("row, spec", marked([r for r in ROWS if r.name.startswith("direct")],
                                             **{"8 bit": kernels.TAILS["plain"]}))  # fmt: skip
def test_data_up_to_255_is_read_as_signed_bytes(board, row, spec):
    """Every value of a byte, padded with one beyond 127; weights down to -128 where they are proven."""
    spec = replace(spec, data_max=255, zero_point=200, hi=255)
    data, weight, bias, factor, _ = kernels.operands(
        spec, next(w for w in (127, 63, 31, 15) if kernels.legal(row, spec, w))
    )
    lower = weight.copy()
    lower.reshape(-1)[::7] = -128
    weight = lower if isinstance(row.proves(spec, lower), Bound) else weight
    want = kernels.expected(spec, data, weight, bias, factor, None)
    np.testing.assert_array_equal(run(board, row, spec, data, weight, bias, factor), want)


@pytest.mark.isa("neon")
@pytest.mark.parametrize("shape", [(2, 9, 33, 17), (1, 8, 6, 16)], ids=str)
def test_a_product_of_two_tensors_is_exact(board, shape):
    product = Product(*shape, 255, 3)
    n, rows, depth, columns = shape
    rng = np.random.default_rng(depth)
    sides = [np.zeros((n, rows, depth), np.uint8), np.full((n, columns, depth), 255, np.uint8)]
    inputs = [te.placeholder(side.shape, "uint8") for side in sides]
    out = compute(product, "neon", *inputs)
    target = isa.ISAS["neon"].target
    run = board.load(tvm.build(te.create_schedule(out.op), [*inputs, out], target, name="instruction"))
    for a, b in (sides, [rng.integers(0, 256, side.shape).astype(np.uint8) for side in sides]):
        want = reference.product(a, b.swapaxes(1, 2), zero_a=255, zero_b=3)
        np.testing.assert_array_equal(run([a, b], product.out_shape, "int32"), want)


@pytest.mark.parametrize("isa_name, seed", [
    pytest.param(name, seed, marks=pytest.mark.isa(name))
    for name in ("neon", "neon_dotprod", "neon_i8mm") for seed in range(3)
])  # fmt: skip
def test_random_layers_take_the_planned_kernel_and_are_exact(board, isa_name, seed):
    rng = np.random.default_rng(seed)
    spec = ConvSpec(
        batch=int(rng.integers(1, 3)), height=int(rng.integers(6, 20)), width=int(rng.integers(6, 20)),
        in_channels=int(rng.integers(1, 60)), out_channels=int(rng.integers(1, 40)),
        kernel=tuple(int(v) for v in rng.integers(1, 5, 2)),
        strides=tuple(int(v) for v in rng.integers(1, 4, 2)),
        padding=tuple(int(v) for v in rng.integers(0, 3, 4)), data_max=int(rng.choice([63, 127, 255])),
        zero_point=int(rng.integers(0, 64)),
    )  # fmt: skip
    data, weight, bias, factor, _ = kernels.operands(spec, int(rng.choice([63, 127])), seed)
    chosen = planner.choose(spec, weight, bias, isa_name).kernel
    out = run(board, chosen, spec, data, weight, bias, factor)
    np.testing.assert_array_equal(out, kernels.expected(spec, data, weight, bias, factor, None))


@pytest.mark.isa("neon")
def test_winograd_wraps_and_is_still_exact(board):
    """All data 127, all weights 63, C = 448: 576 y is 1.6e10, far beyond int32; 64 y just fits."""
    spec = ConvSpec(1, 8, 8, 448, 16, (3, 3), padding=PAD, data_max=127, epilogue="dequantize")
    data, weight = np.full((1, 8, 8, 448), 127, np.uint8), np.full(spec.weight_shape, 63, np.int8)
    row, bias, factor = (
        manifest.kernel("winograd_f43_neon"),
        np.zeros(16, np.int32),
        np.ones(16, np.float32),
    )
    assert isinstance(row.proves(spec, weight), Bound)
    want = kernels.expected(spec, data, weight, bias, factor, None)
    np.testing.assert_array_equal(run(board, row, spec, data, weight, bias, factor), want)


# -- 32-bit ARM: the compiled kernel alone, as TVM's runtime has no wheel there

ARMV7 = [
    pytest.param(manifest.kernel(name), spec, id=f"{name}-{case}", marks=pytest.mark.isa("armv7_neon"))
    for name, shapes in (("wide_armv7_neon", kernels.TAILS), ("direct_generic", kernels.TAILS),
                         ("depthwise_int16", kernels.DEPTHWISE))
    for case, spec in shapes.items()
    if case in ("plain", "first layer, stride, odd sizes", "residual, ragged", "5x5 residual")
]  # fmt: skip


@pytest.mark.parametrize("row, spec", ARMV7)
def test_32_bit_arm_runs_the_portable_kernels(row, spec, tmp_path):
    weight_max = next(w for w in (127, 63, 31, 15) if kernels.legal(row, spec, w))
    operands = kernels.operands(spec, weight_max)
    got = on_32_bits(row, spec, *operands, tmp_path)
    np.testing.assert_array_equal(got, kernels.expected(spec, *operands))


@pytest.mark.parametrize("name", functions.BRIEF)
@pytest.mark.parametrize("row", [
    pytest.param(manifest.kernel(name), id=name, marks=pytest.mark.isa("armv7_neon"))
    for name in ("wide_armv7_neon", "depthwise_int16")
])  # fmt: skip
def test_32_bit_arm_computes_fused_functions(row, name, tmp_path):
    """Its vectors flush what is below 1e-38 to zero, which no function comes to."""
    c = functions.Case(row, name)
    data = c.data()
    got = on_32_bits(row, c.spec, data, c.weight, c.bias, c.factors, None, tmp_path)
    np.testing.assert_array_equal(got, c.wanted(data))


def on_32_bits(row, spec, data, weight, bias, factor, residual, tmp_path):
    """The output of the compiled kernel alone, under qemu."""
    arrays = [data, *row.pack(spec, weight, fold_zero_point(bias, weight, spec.zero_point), factor)]
    arrays += [] if residual is None else [residual]
    inputs = [te.placeholder(a.shape, str(a.dtype)) for a in arrays]
    out = row.compute(DefaultKnobs(), spec, *inputs)
    target = isa.ISAS["armv7_neon"].target
    library = tvm.build(te.create_schedule(out.op), [*inputs, out], target, name="kernel")
    if row.name == "wide_armv7_neon":
        assert "\tvmlal.s16\t" in library.get_source("asm")
    library.save(str(tmp_path / "kernel.o"))
    kinds, files = {"i": 0, "u": 1, "f": 2}, []
    with open(tmp_path / "shapes.txt", "w") as shapes:
        for array in [*arrays, np.empty(spec.out_shape, spec.out_dtype)]:
            print(kinds[array.dtype.kind], 8 * array.itemsize, array.ndim, *array.shape, file=shapes)
    for i, array in enumerate(arrays):
        files.append(f"{i}.bin")
        array.tofile(tmp_path / files[-1])
    include = Path(tvm.__file__).parent
    subprocess.run(
        ["arm-linux-gnueabihf-gcc", "-O1", "-I", include / "include", "-I", include / "3rdparty/dlpack/include",
         Path(__file__).parent / "arm" / "run.c", "kernel.o", "-lm", "-o", "run"], cwd=tmp_path, check=True,
    )  # fmt: skip
    ran = subprocess.run(
        ["qemu-arm", "-L", "/usr/arm-linux-gnueabihf", "./run", *files], cwd=tmp_path, capture_output=True
    )
    assert ran.returncode == 0, ran.stderr
    return np.frombuffer(ran.stdout, spec.out_dtype).reshape(spec.out_shape)


# -- proofs


@pytest.mark.parametrize("depth, data_max", [(d, m) for d in (1, 2, 4) for m in (63, 127, 255)])
def test_the_chain_bound_is_attained_and_never_passed(depth, data_max):
    """Against the sums themselves: for each lane the data that drives it furthest, by brute force."""
    spec = ConvSpec(1, 1, 1, 80, 8, (1, 1), data_max=data_max)
    dot = arm.widening_dot(isa.ISAS["neon"], depth)(spec)
    weight = np.random.default_rng(depth).integers(-20, 21, spec.weight_shape).astype(np.int8)
    packed = pack(spec, weight, arm.LANES, arm.GROUP)
    lo, hi = -dot.offset, data_max - dot.offset
    worst = 0
    for block in packed.reshape(-1, 5, arm.LANES, arm.GROUP):
        for first in range(0, 5, depth):
            chain = block[first : first + depth].astype(np.int64)
            for channel in range(arm.LANES):
                for lane in range(8):
                    products = chain[:, channel, lane::8]
                    up = np.maximum(products * hi, products * lo).sum()
                    down = np.minimum(products * hi, products * lo).sum()
                    worst = max(worst, up, -down)
    answer = proofs.chain_proof(spec, dot, weight)
    assert (answer.value == worst) if isinstance(answer, Bound) else (f"reach {worst}," in answer.why)
    assert isinstance(answer, Bound) == (worst < 2**15)


def test_a_partial_sum_beyond_int32_is_refused():
    spec = ConvSpec(1, 1, 1, 4, 4, (1, 1), data_max=255)
    dot = arm.sdot_dot(isa.ISAS["neon_dotprod"])(spec)
    assert proofs.sum_proof(spec, dot, np.full(spec.weight_shape, -128, np.int8)).value == 128 * 128 * 4
    huge = ConvSpec(1, 400, 400, 1, 1, (400, 400), data_max=255)
    refused = proofs.sum_proof(huge, dot, np.full(huge.weight_shape, 127, np.int8))
    assert isinstance(refused, Refusal) and "beyond int32" in refused.why


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_folded_offset_fits_wherever_the_accumulator_does(sign):
    spec = ConvSpec(1, 1, 1, 64, 4, (1, 1), data_max=255)
    weight = np.full(spec.weight_shape, sign * 127, np.int8)
    largest = 2**31 - 1 - 255 * 127 * 64
    bias = np.full(4, sign * largest, np.int32)
    planner.choose(spec, weight, bias, "neon")  # the accumulator fits
    folded = fold_zero_point(bias, weight, -arm.sdot_dot(isa.ISAS["neon_dotprod"])(spec).offset)
    assert (folded == sign * (largest + 128 * 127 * 64)).all()


# -- the plan


def planned(isa_name, size=16, data_max=63, weight_max=63, channels=64, core="", **changes):
    spec = ConvSpec(1, size, size, channels, 64, **{"kernel": (3, 3), "padding": PAD, **changes},
                    data_max=data_max)  # fmt: skip
    weight = np.full(spec.weight_shape, weight_max, np.int8)
    return planner.choose(spec, weight, np.zeros(64, np.int32), isa_name, core=core)


def test_the_planner_picks_by_layer():
    table = {
        ("neon", 16, 127, 63, 64): "winograd_f43_neon",
        ("neon", 7, 63, 63, 64): "direct_neon_d4",  # four tiles are too few for Winograd
        ("neon", 7, 127, 63, 64): "direct_neon_d2",
        ("neon", 7, 127, 127, 64): "direct_neon_d1",
        ("neon", 7, 255, 127, 64): "direct_neon_d1",
        ("neon", 16, 127, 63, 3): "direct_neon_d4",  # 9 bytes of a kernel row fill 16
        ("neon_dotprod", 16, 127, 63, 64): "direct_neon_dotprod",
        ("neon_dotprod", 16, 255, 127, 3): "direct_neon_dotprod",
        ("neon_i8mm", 16, 255, 127, 64): "direct_neon_i8mm",
        ("armv7_neon", 16, 127, 63, 64): "wide_armv7_neon",
    }
    assert {key: planned(*key).kernel.name for key in table} == table
    one = planned("neon", channels=3, kernel=(1, 1), padding=(0,) * 4)  # 3 bytes would fill 16
    assert one.kernel.name == "wide_neon" and "direct_neon_d4" in dict(one.slower)


@pytest.mark.parametrize("core, kernel_3x3, kernel_1x1", [
    ("cortex-a53", "winograd_f43_neon", "direct_neon_d4"),
    ("cortex-a55", "winograd_f43_neon", "direct_neon_dotprod"),
    ("cortex-a72", "winograd_f43_neon", "direct_neon_d4"),
    ("cortex-a76", "direct_neon_dotprod", "direct_neon_dotprod"),
    ("neoverse-n1", "direct_neon_dotprod", "direct_neon_dotprod"),
    ("neoverse-n2", "direct_neon_i8mm", "direct_neon_i8mm"),
])  # fmt: skip
def test_the_planner_picks_by_core(core, kernel_3x3, kernel_1x1):
    """By the static cycle counts of the core: Winograd where its products cost less than direct ones."""
    isa_name = relay_op.target_isa(tvm.target.Target(f"llvm -mtriple=aarch64-linux-gnu -mcpu={core}"))
    three = planned(isa_name, channels=256, weight_max=31, core=core)
    one = planned(isa_name, channels=256, core=core, kernel=(1, 1), padding=(0,) * 4)
    assert (three.kernel.name, one.kernel.name) == (kernel_3x3, kernel_1x1)
    assert re.fullmatch(rf"estimated: [\d,]+ cycles of a {core}", three.reason)
    ranked = [
        int(reason.split()[1].replace(",", "")) for _, reason in ((None, three.reason), *three.slower)
    ]
    assert ranked == sorted(ranked) and len(ranked) >= 3


def test_a_core_without_counts_is_planned_as_the_plainest_of_its_instruction_set():
    assert "of a cortex-a53" in planned("neon", core="cortex-a73").reason
    assert "of a cortex-a55" in planned("neon_dotprod", core="cortex-a53").reason  # has no sdot
    assert planned("armv7_neon").reason == "first of the manifest"


@pytest.mark.parametrize("options, row", {
    "-mtriple=aarch64-linux-gnu -mattr=+neon": "neon",
    "-mtriple=aarch64-linux-gnu -mcpu=cortex-a72": "neon",
    "-mtriple=aarch64-linux-gnu -mcpu=cortex-a76": "neon_dotprod",
    "-mtriple=aarch64-linux-gnu -mattr=+v8.2a,+dotprod": "neon_dotprod",
    "-mtriple=aarch64-linux-gnu -mattr=+v8.2a,+dotprod,+i8mm": "neon_i8mm",
    "-mtriple=aarch64-linux-gnu -mattr=-neon": "generic",
    "-mtriple=armv7a-linux-gnueabihf -mattr=+neon": "armv7_neon",
    "-mtriple=armv7a-linux-gnueabihf -mattr=-neon": "generic",
    "-mtriple=x86_64-linux-gnu -mcpu=core-avx2": "avx2",
}.items())  # fmt: skip
def test_the_target_names_the_row(options, row):
    assert relay_op.target_isa(tvm.target.Target(f"llvm {options}")) == row


# -- the assembly


def inner_loop(assembly, mnemonic):
    """The basic block with most of ``mnemonic``, up to its branch back."""
    block = max(re.split(r"\n(?=\.LBB)", assembly), key=lambda text: text.count(f"\t{mnemonic}"))
    label = block.split(":")[0]
    return block[: block.index(label, len(label))]


def assembly_of(name, data_max, **changes):
    spec = ConvSpec(1, 16, 14, 64, 64, (3, 3), padding=PAD, data_max=data_max, **changes)
    row = manifest.kernel(name)
    weight_max = next(w for w in (127, 63, 31, 15) if kernels.legal(row, spec, w))
    _, weight, bias, factor, _ = kernels.operands(spec, weight_max)
    target = NEON if row.isa == "neon" else target_of(row)
    return build(row, spec, weight, bias, factor, target=target).get_lib().get_source("asm")


def count(text, mnemonic):
    return len(re.findall(rf"\t{mnemonic}\t", text))


def on_the_stack(loop):
    return [line for line in loop.splitlines() if "[sp" in line or "[x29" in line]


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("data_max", [63, 255])
def test_a_chain_of_the_declared_depth_before_one_sadalp(depth, data_max):
    """For each widening add 2 * depth multiplies in int16; every tile of the row without a spill."""
    loop = inner_loop(assembly_of(f"direct_neon_d{depth}", data_max), "sadalp")
    first = count(loop, "smull") + count(loop, "smull2")
    more = count(loop, "smlal") + count(loop, "smlal2")
    assert first == count(loop, "sadalp") >= 8 and more == (2 * depth - 1) * first
    assert not on_the_stack(loop) and "\tbl\t" not in loop
    assert (count(loop, "eor") > 0) == (data_max == 255)


@pytest.mark.parametrize("name, mnemonic", [("dotprod", "sdot"), ("i8mm", "usdot")])
def test_the_dot_product_cores_use_their_instruction(name, mnemonic):
    loop = inner_loop(assembly_of(f"direct_neon_{name}", 127), mnemonic)
    assert count(loop, mnemonic) % 4 == 0 < count(loop, mnemonic) and not on_the_stack(loop)
    assert count(loop, "addp") == 0


def test_winograd_multiplies_and_adds_in_one_instruction():
    loop = inner_loop(assembly_of("winograd_f43_neon", 127), "smlal")
    assert count(loop, "smlal") == count(loop, "smlal2") >= 16
    assert count(loop, "add") <= 3 and not re.search(r"\tadd\tv", loop) and not on_the_stack(loop)


# -- whole networks


@pytest.mark.isa("neon")
def test_the_embedded_network_gives_the_same_numbers_as_here(board):
    data = demo.images()
    q = eq.quantize(demo.network_path(), data["calibration_images"][:20], bits=7, method="minmax")
    feed = {"image": data["test_images"][:1]}
    np.testing.assert_array_equal(board.run(q.build(NEON), feed), eq.Executor(q.build())(feed)[0])


@pytest.mark.isa("neon_dotprod")
@pytest.mark.parametrize("bits, target", [(7, NEON), (8, isa.ISAS["neon_dotprod"].target)])
def test_a_network_of_every_operator_equals_the_norm(board, bits, target):
    graph, images = networks.residual(1)
    q = eq.quantize(graph, images, bits=bits, method="minmax")
    want = run_integer(graph, q.table, {"image": images[0]})["logits"]
    np.testing.assert_array_equal(board.run(q.build(target), {"image": images[0]}), want)


GLUE = {
    "squeeze and excite": operators.squeeze_excite,
    "product of two branches": operators.two_branches_times,
    "gelu": operators.gelu,
    "resize, linear": operators.resize("half_pixel", how="linear"),
    "transposed convolution": operators.transposed(),
}


@pytest.mark.isa("neon")
@pytest.mark.parametrize("name", GLUE)
def test_the_operators_beside_the_convolution_are_exact(board, name):
    images = [np.random.default_rng(i).standard_normal((1, 3, 8, 8)).astype(np.float32) for i in range(3)]
    q = eq.quantize(GLUE[name](), images, method="minmax")
    want = execute(q.module, {"x": images[0]})[0]
    np.testing.assert_array_equal(board.run(q.build(NEON), {"x": images[0]}), want)


# -- tvmc: compile here, run there


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tvmc")
    onnx.save(networks.small_onnx(), folder / "net.onnx")
    image = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "images.npz", x=image)
    image.tofile(folder / "in.bin")
    eq.quantize(folder / "net.onnx", [image], method="minmax").table.save(folder / "table.json")
    return folder


def compile_command(target, *options):
    target = f"easyquant -table=table.json, {target}"
    return ["compile", "net.onnx", "-o", "net.tar", "--target", target, *options]


def on_board(program, *words, cwd):
    command = [*device.emulator(), program, "run", *words]
    return subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)


@pytest.mark.ci
@pytest.mark.isa("neon")
def test_a_cross_compiled_archive_runs_on_the_device(program, folder):
    result = tvmc(*compile_command(NEON, "--cross-compiler", device.COMPILER), cwd=folder)
    assert result.returncode == 0, result.stderr
    shutil.unpack_archive(folder / "net.tar", folder / "net")
    ran = on_board(program, "net", "x=in.bin", "out.bin", cwd=folder)
    assert ran.returncode == 0, ran.stderr
    graph, table = load_onnx(folder / "net.onnx"), eq.ScaleTable.load(folder / "table.json")
    want = run_integer(graph, table, {"x": np.load(folder / "images.npz")["x"]})["classifier"]
    np.testing.assert_array_equal(np.fromfile(folder / "out.bin", np.float32).reshape(want.shape), want)

    here = tvmc("run", "net.tar", "--inputs", "images.npz", cwd=folder)
    assert here.returncode == 4 and "made for another architecture" in here.stderr
    assert "Traceback" not in here.stderr
    for words, message in {
        ("no", "x=in.bin", "o.bin"): "there is no no",
        ("net", "y=in.bin", "o.bin"): "no input y",
        ("net", "x=images.npz", "o.bin"): "images.npz: the network takes 768 bytes",
        ("net", "x", "o.bin"): "NAME=FILE",
        ("net", "x=in.bin", "no/o.bin"): "cannot write no/o.bin",
        (sys.executable, "x=in.bin", "o.bin"): "is no network for this machine",
    }.items():
        ran = on_board(program, *words, cwd=folder)
        assert ran.returncode == 1 and message in ran.stderr and len(ran.stderr.splitlines()) == 1, (
            ran.stderr
        )


@pytest.mark.linker
@pytest.mark.parametrize("target, options, message", [
    (NEON, [], r"cannot link.*\(.*wrong format\); name one that can, such as --cross-compiler aarch64"),
    (NEON, ["--cross-compiler", "no-such-cc"], "there is no compiler no-such-cc here.*apt-get install"),
    ("llvm -mtriple=aarch64-linux-gnu -mattr=-neon", [], r"has no NEON.*write -mattr=\+neon"),
])  # fmt: skip
def test_a_target_that_cannot_be_had_is_one_line(folder, monkeypatch, capfd, target, options, message):
    (folder / "net.tar").unlink(missing_ok=True)
    before = sorted(path.name for path in folder.iterdir())
    monkeypatch.chdir(folder)
    assert cli.run(compile_command(target, *options)) == 4
    errors = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("easyquant: ")]
    assert len(errors) == 1 and re.search(message, errors[0]), errors
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize("options, message", {
    "-mtriple=aarm64-linux-gnu": "no code for aarm64 .*aarch64",
    "-mtriple=aarch64-linux-gnu -mattr=-neon": r"has no NEON.*write -mattr=\+neon",
    "-mtriple=armv7a-linux-gnueabihf -mattr=+neon": "write -mfloat-abi=hard",
}.items())  # fmt: skip
def test_what_llvm_would_crash_on_is_refused(options, message):
    with pytest.raises(TargetError, match=message):
        cpu_target(f"llvm {options}")


def test_an_interrupted_tuning_says_how_to_go_on(monkeypatch, capsys, folder):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(relay_tune, "tune", interrupted)
    monkeypatch.chdir(folder)
    assert cli.run(["tune-kernels", "net.onnx", "--table", "table.json", "-o", "t.log"]) == 130
    assert (
        capsys.readouterr().err
        == "error: interrupted; the same command goes on from the records in t.log\n"
    )


def test_a_tool_that_is_missing_is_named_with_its_package(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        device.Missing, match="no aarch64-linux-gnu-g.. here; .*apt-get install g..-aarch64"
    ):
        device.set_up(tmp_path / "device")
    with pytest.raises(device.Missing, match="no qemu-aarch64 here; .*apt-get install qemu-user"):
        device.Emulated(tmp_path / "device")


# -- tuning over RPC


@pytest.fixture
def tracker():
    tracker = Tracker("127.0.0.1", port=9190, port_end=9290, silent=True)
    yield tracker
    tracker.terminate()


@pytest.mark.ci
@pytest.mark.isa("neon")
def test_a_few_trials_through_the_tracker(program, board, tracker, tmp_path):
    """Trials reach the device through the tracker; a run that is interrupted, or loses the device, keeps
    its records and goes on from them; a build takes the log."""
    graph, images = networks.chain(channels=16)
    q = eq.quantize(graph, images, method="minmax")
    log = tmp_path / "log.json"
    layers = relay_tune.layer_choices(graph, q.table, NEON)
    assert len(relay_tune.tasks(layers, NEON, alternatives=0)) == 2

    def tune(after=lambda records: None):
        """Two trials of each kernel; ``after`` each, call it with the records so far."""
        runner = autotvm.RPCRunner("board", "127.0.0.1", tracker.port, number=1, repeat=1, timeout=60)
        return relay_tune.tune(q.module, log, NEON, tuner="grid", trials=2, alternatives=0, runner=runner,
                               cross_compiler=device.COMPILER,
                               progress=lambda *_: after(len(relay_tune.read_log(log))))  # fmt: skip

    def interrupt(records):
        raise KeyboardInterrupt

    with (
        pytest.raises(device.Missing, match="not up in 0.1 s"),
        device.Emulated(program, ("127.0.0.1", 1), seconds=0.1),
    ):
        pass
    with device.Emulated(program, ("127.0.0.1", tracker.port), key="board") as server:
        with pytest.raises(relay_tune.TuneError, match="no device 'boart'; it has board: start"):
            tuning.check_tracker("127.0.0.1", tracker.port, "boart")
        with pytest.raises(KeyboardInterrupt):
            tune(interrupt)
        assert len(relay_tune.read_log(log)) == 1
        with pytest.raises(relay_tune.TuneError, match="no device 'board'"):
            tune(lambda records: server.stop() if records == 2 else None)
    first, second = map(json.loads, log.read_text().splitlines())  # the first kernel is done
    second["result"][1] = int(MeasureErrorNo.RUN_TIMEOUT)  # as if this trial had found no device
    log.write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n")
    with device.Emulated(program, ("127.0.0.1", tracker.port), key="board"):
        done = tune()
        assert (done.kernels, done.resumed, done.measured, done.trials, done.failed) == (2, 0, 2, 3, [])
        done = tune()
        assert (done.resumed, done.trials) == (2, 0)
    records = [(found, result) for found, result in relay_tune.read_log(log) if result.error_no == 0]
    assert len({(str(found.task), found.config.index) for found, _ in records}) == len(records) == 4
    want = run_integer(graph, q.table, {"image": images[0]})["second"]
    with autotvm.apply_history_best(records):
        assert relay_tune.untuned(relay_tune.layer_choices(graph, q.table, NEON), NEON)[0] == 0
        library = q.build(NEON)
    np.testing.assert_array_equal(board.run(library, {"image": images[0]}), want)


def test_a_device_that_is_late_is_ended_once(monkeypatch):
    """The timer that ends a late device and the ``with`` that it fails used to end it side by side: the slower
    of the two killed a process that was gone, some 7 times in 100."""
    monkeypatch.setattr(device, "emulator", list)
    for _ in range(100):
        late = device.Emulated("60", seconds=0.002)
        late.command = ["sleep", "60"]
        with pytest.raises(device.Missing, match="not up in 0.002 s"), late:
            pass


def test_a_tracker_that_is_dead_or_slow_or_empty_is_named_with_the_cure(tracker):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        with pytest.raises(relay_tune.TuneError, match="no tracker at 127.*refused.*tvm.exec.rpc_tracker"):
            tuning.check_tracker("127.0.0.1", silent.getsockname()[1], "board")
        silent.listen()
        with pytest.raises(relay_tune.TuneError, match="does not answer within 0.3 s; start one with"):
            tuning.check_tracker("127.0.0.1", silent.getsockname()[1], "board", seconds=0.3)
    with pytest.raises(relay_tune.TuneError, match="no device 'board'; it has none: start"):
        tuning.check_tracker("127.0.0.1", tracker.port, "board")


@pytest.mark.skipif(isa.arch_of("") == "aarch64", reason="this is the foreign machine")
def test_kernels_of_another_machine_are_not_measured_here(tmp_path):
    graph, images = networks.chain()
    module = eq.quantize(graph, images, method="minmax").module
    with pytest.raises(relay_tune.TuneError, match="aarch64 cannot be measured here: .*--rpc-tracker"):
        relay_tune.tune(module, tmp_path / "log.json", NEON)
    with pytest.raises(relay_tune.TuneError, match="no compiler no-such-g.. here"):
        relay_tune.tune(module, tmp_path / "log.json", cross_compiler="no-such-g++")
    assert not (tmp_path / "log.json").exists()


# -- the stored cycle counts


def test_the_stored_cycles_are_those_of_the_kernels(monkeypatch):
    """They are static, so what is counted here is what is stored; some way off, the table is of old kernels
    and `benchmarks/arm.py --json results/arm_mca.json --fit` makes it anew."""
    benchmarks = Path(__file__).resolve().parent.parent / "benchmarks"
    monkeypatch.syspath_prepend(benchmarks)
    counts = importlib.import_module("arm").counts
    table = json.loads((benchmarks / "results" / "arm_mca.json").read_text())["cycles_per_128_macs"]
    column, stored = table["cortex-a53"], cost.cycle_counts()["cortex-a53"]
    for name, row in {"int8, 2 products": "direct_neon_d1", "int7, 8 products": "direct_neon_d4"}.items():
        assert column[name] == pytest.approx(128 * stored[row][0], abs=0.05)
    for row in ("direct_neon_d1", "direct_neon_d4", "winograd_f43_neon"):
        assert counts("cortex-a53", row) == pytest.approx(stored[row], rel=0.1)
    assert column["F(4,3), 64 channels"] < column["int7, 8 products"] < column["int8, 2 products"]
