"""64-bit ARM through Relax: packages that are linked here and run under qemu by the example in C++, and every
row of kernels for ARM, alone. With TVM 0.19: test_arm.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import golden_networks
import networks
import numpy as np
import onnx
import pytest

import tvm_easyquant as eq
from topi_ext import cpu, isa
from topi_ext.conv2d import Bound, ConvSpec, fold_zero_point
from tvm_easyquant import cli, deployment, load_onnx
from tvm_easyquant.errors import DeployError, TargetError, TuneError, TVMMissing
from tvm_easyquant.host import installed
from tvm_easyquant.scales.integer import run_integer

tvm = pytest.importorskip("tvm_easyquant.relax.framework", exc_type=TVMMissing).tvm
import test_kernels as kernels

from topi_ext import manifest
from topi_ext.relax.lower import kernel_function
from tvm_easyquant.relax.build import BUILD_CONFIG

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS.parent / "tutorials" / "arm"))
import device

NEON = "llvm -mtriple=aarch64-linux-gnu -mattr=+neon"
WARNINGS = ["-std=c++17", "-O2", "-Wall", "-Werror"]


def emulated(program, *words, cwd, **more):
    """What a program for aarch64 says under qemu."""
    command = list(map(str, [*device.emulator(), program, *words]))
    environment = {**os.environ, "TVM_NUM_THREADS": "2", **more}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, check=False)


# -- packages


@pytest.fixture(scope="session")
def runtime(request):
    """libtvm_runtime.so of today's apache-tvm for aarch64; the isa marker has seen to it that the tools are
    here."""
    try:
        return device.fetch_todays(device.default_folder())
    except device.Missing as error:
        if "neon" in request.config.getoption("--require-isa"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


def compiled_example(folder):
    """The example of a folder of `deploy`, for aarch64."""
    source = [folder / "run.cc", "-ldl", "-o", folder / "run"]
    subprocess.run([device.COMPILER, *WARNINGS, *source], check=True)
    return folder / "run"


def first_output(folder, image, want, **more):
    """The first output of the example in ``folder``, as ``want`` is."""
    image.tofile(folder / "in.bin")
    ran = emulated(folder / "run", folder, "in.bin", cwd=folder, **more)
    assert ran.returncode == 0, ran.stderr
    return np.fromfile(folder / "output_0.bin", want.dtype).reshape(want.shape)


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    """(a folder with net.onnx and net.json, an image, its integers in numpy)."""
    folder = tmp_path_factory.mktemp("arm")
    onnx.save(networks.small_onnx(), folder / "net.onnx")
    image = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    eq.quantize(folder / "net.onnx", [image], method="minmax").table.save(folder / "net.json")
    graph, table = load_onnx(folder / "net.onnx"), eq.ScaleTable.load(folder / "net.json")
    return folder, image, run_integer(graph, table, {"x": image})["classifier"]


@pytest.mark.isa("neon_dotprod")
def test_a_cross_compiled_package_gives_the_norms_integers(work, runtime, tmp_path, monkeypatch):
    folder, image, want = work
    monkeypatch.chdir(folder)
    words = ["compile", "net.onnx", "--table", "net.json", "--isa", "neon,neon_dotprod"]
    assert cli.run([*words, "--cross-compiler", device.COMPILER, "-o", "net.tar"]) == 0
    with pytest.raises(DeployError, match="net.tar is for aarch64, the TVM installed here is not"):
        deployment.deploy("net.tar", tmp_path / "net")
    deployment.deploy("net.tar", tmp_path / "net", runtime)
    program = compiled_example(tmp_path / "net")
    lines = (tmp_path / "net/network/variants.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["neon_dotprod", "neon"]  # the best first
    for name in ("neon", "neon_dotprod"):
        found = first_output(tmp_path / "net", image, want, EASYQUANT_ISA=name)
        np.testing.assert_array_equal(found, want)
    # a CPU without dot products, by its auxiliary vector: /proc/cpuinfo is this machine's own
    np.testing.assert_array_equal(first_output(tmp_path / "net", image, want, QEMU_CPU="cortex-a53"), want)
    asked = {"QEMU_CPU": "cortex-a53", "EASYQUANT_ISA": "neon_dotprod"}
    ran = emulated(program, tmp_path / "net", "in.bin", cwd=tmp_path / "net", **asked)
    assert ran.returncode == 4 and b"neon_dotprod needs asimddp" in ran.stderr
    with pytest.raises(DeployError, match="aarch64"):
        eq.deploy.Program("net.tar")


def test_the_example_knows_the_flags_that_the_loader_does():
    text = (TESTS.parent / "tvm_easyquant/data/deployment/network.h").read_text()
    assert all(flags in " ".join(text.replace('"', " ").split()) for flags in cpu.HWCAP["aarch64"])


@pytest.mark.ci
@pytest.mark.parametrize("bits, name", [
    pytest.param(bits, name, marks=pytest.mark.isa(name))
    for bits, name in ((7, "neon"), (8, "neon_i8mm"))
])  # fmt: skip
def test_a_network_of_every_operator_equals_the_norm(runtime, bits, name, tmp_path):
    graph, images = networks.residual(1)
    q = eq.quantize(graph, images, bits=bits, method="minmax")
    want = run_integer(graph, q.table, {"image": images[0]})["logits"]
    q.deploy(tmp_path / "net", isa=name, runtime=runtime, compiler=device.COMPILER)
    compiled_example(tmp_path / "net")
    np.testing.assert_array_equal(first_output(tmp_path / "net", images[0], want), want)


@pytest.mark.ci
@pytest.mark.isa("neon_dotprod")
@pytest.mark.parametrize("name", ["kinds", "functions", "pools"])
def test_a_stored_table_gives_the_norms_integers(runtime, name, tmp_path):
    graph, (image, *_) = golden_networks.NETWORKS[name]()
    table = eq.ScaleTable.load(TESTS / "golden" / "tables" / f"{name}.minmax.int7.json")
    graph, host = table.prepared(graph), installed()
    built = host.build(host.rewrite(graph, table), isa.ISAS["neon_dotprod"].target, outputs=graph.outputs)
    built.export(tmp_path / "net.tar", device.COMPILER)
    deployment.deploy(tmp_path / "net.tar", tmp_path / "net", runtime)
    compiled_example(tmp_path / "net")
    (taken,) = built.inputs
    want = run_integer(graph, table, {taken: image})[graph.outputs[0]]
    np.testing.assert_array_equal(first_output(tmp_path / "net", image, want), want)


@pytest.mark.linker
@pytest.mark.skipif(isa.arch_of("") == "aarch64", reason="this is the foreign machine")
def test_what_cannot_be_had_is_one_line(work, tmp_path, capfd, monkeypatch):
    folder, image, _ = work
    monkeypatch.chdir(folder)
    words = ["compile", "net.onnx", "--table", "net.json", "-o", str(tmp_path / "net.tar")]
    for more, message in {
        ("--target", NEON): "cannot link code for the target",
        ("--isa", "neon", "--cross-compiler", "no-such-g++"): "there is no compiler no-such-g++ here",
        ("--target", "llvm -mtriple=aarch64-linux-gnu -mattr=-neon"): "has no NEON",
    }.items():
        assert cli.run([*words, *more]) == 4
        lines = [x for x in capfd.readouterr().err.splitlines() if not x.startswith("easyquant: ")]
        assert len(lines) == 1 and message in lines[0], lines
        assert not list(tmp_path.iterdir())
    q = eq.quantize(networks.small_onnx(), [image], method="minmax")
    built = q.build(NEON)
    assert built.variant.needs.arch == "aarch64" and built.variant.target == NEON
    with pytest.raises(TargetError, match="cannot run here"):
        eq.Executor(built)
    with pytest.raises(TuneError, match="aarch64 cannot be measured here: .*--cross-compiler aarch64"):
        installed().tune(q.module, tmp_path / "log", NEON)
    assert not list(tmp_path.iterdir())


# -- kernels alone: what the compiler makes of them, without TVM's runtime

ROWS = [row for row in manifest.KERNELS if isa.ISAS[row.isa].arch == "aarch64"]
SHARED = [row for row in manifest.KERNELS if row.isa == "generic"]  # every CPU runs them
#: row -> (GNU's compiler, qemu, where its libraries are)
TOOLS = {
    "aarch64": (device.COMPILER, "qemu-aarch64", device.SYSROOT),
    "armv7": ("arm-linux-gnueabihf-gcc", "qemu-arm", "/usr/arm-linux-gnueabihf"),
}
#: the shape of every day for each kind; more of them in CI
FIRST = ("residual, ragged", "5x5 residual", "partial tiles, batch, odd channels")
MORE = ("first layer, stride, odd sizes", "dense, many", "plain")


def cases():
    for row in (*ROWS, *SHARED, manifest.kernel("wide_armv7_neon")):
        kinds = {"depthwise": kernels.DEPTHWISE, "winograd": kernels.WINOGRAD}
        mark = pytest.mark.isa("neon" if row in SHARED else row.isa)
        for name, spec in kinds.get(row.name.split("_")[0], kernels.TAILS).items():
            if name in FIRST + MORE:
                marks = [mark] if name in FIRST else [mark, pytest.mark.ci]
                yield pytest.param(row, spec, id=f"{row.name}-{name}", marks=marks)


def ran_alone(row, spec, data, weight, bias, factor, residual, folder):
    """The output of the compiled kernel, under qemu."""
    arrays = [data, *row.pack(spec, weight, fold_zero_point(bias, weight, spec.zero_point), factor)]
    arrays += [] if residual is None else [residual]
    kinds = [(array.shape, str(array.dtype)) for array in arrays]
    function = kernel_function(row, spec, kinds).with_attr("global_symbol", "kernel")
    target = installed().target(isa.ISAS["neon" if row in SHARED else row.isa].target)
    with tvm.transform.PassContext(opt_level=3, config=BUILD_CONFIG):
        made = tvm.compile(tvm.IRModule({"kernel": function}), target)
    made.mod.write_to_file(str(folder / "kernel.o"), "o")
    codes = {"i": 0, "u": 1, "f": 2}
    with open(folder / "shapes.txt", "w", encoding="utf-8") as shapes:
        for array in [*arrays, np.empty(spec.out_shape, spec.out_dtype)]:
            print(codes[array.dtype.kind], 8 * array.itemsize, array.ndim, *array.shape, file=shapes)
    for i, array in enumerate(arrays):
        array.tofile(folder / f"{i}.bin")
    compiler, emulator, libraries = TOOLS[isa.ISAS["neon" if row in SHARED else row.isa].arch]
    harness = shutil.copy(TESTS / "arm" / "run.c", folder)
    site = Path(tvm.__file__).parent.parent
    headers = [f"-I{site / package / 'include'}" for package in ("tvm", "tvm_ffi")]
    command = [compiler, "-x", "c", "-O1", *headers, harness, "-x", "none", "kernel.o", "-lm", "-o", "run"]
    subprocess.run(command, cwd=folder, check=True)
    files = [f"{i}.bin" for i in range(len(arrays))]
    ran = subprocess.run([emulator, "-L", libraries, "./run", *files], cwd=folder, capture_output=True)
    assert ran.returncode == 0, ran.stderr
    return np.frombuffer(ran.stdout, spec.out_dtype).reshape(spec.out_shape)


@pytest.mark.parametrize("row, spec", list(cases()))
def test_kernel_equals_the_norm(row, spec, tmp_path):
    if row.refuses(spec) is not None:  # a shape the row does not take: the reason must be the shape
        assert spec.groups > 1 and "multiple" in row.refuses(spec).why
        return
    weight_max = next(w for w in (127, 63, 31, 15, 7) if kernels.legal(row, spec, w))
    operands = kernels.operands(spec, weight_max)
    found = ran_alone(row, spec, *operands, tmp_path)
    np.testing.assert_array_equal(found, kernels.expected(spec, *operands))


@pytest.mark.parametrize("row", [
    pytest.param(row, id=row.name, marks=pytest.mark.isa(row.isa)) for row in ROWS
])  # fmt: skip
def test_extremes(row, tmp_path):
    """The largest equal weights that are proven for all bytes, on data that is all 255 and all 0 (which are
    127 and -128 where it is read as signed): no lane may wrap."""
    groups = 64 if row.name.startswith("depthwise") else 1
    spec = ConvSpec(2, 4, 5, 64, 64, (3, 3), groups=groups, data_max=255, epilogue="dequantize")
    answers = [row.proves(spec, np.full(spec.weight_shape, -w, np.int8)) for w in range(128)]
    largest = max(w for w, answer in enumerate(answers) if isinstance(answer, Bound))
    weight = np.full(spec.weight_shape, -largest, np.int8)
    data = np.full((2, 4, 5, 64), 255, np.uint8)
    data[1] = 0
    bias, factor = np.zeros(64, np.int32), np.ones(64, np.float32)
    out = ran_alone(row, spec, data, weight, bias, factor, None, tmp_path)
    assert (out[0] == np.float32(-largest * 255 * 9 * 64 // groups)).all() and not out[1].any()
