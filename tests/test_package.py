"""One artefact for a fleet: what each needs is held against the CPU before its code runs; the integers are the same."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from topi_ext import isa
from topi_ext.errors import KernelError
from tvm_easyquant import package
from tvm_easyquant.errors import ConfigError, DeployError, TargetError

ROOT = Path(__file__).resolve().parent.parent
QEMU = shutil.which("qemu-x86_64")
X86 = isa.arch_of("") == "x86_64" and sys.platform == "linux"
ROWS = ["avx512vnni", "avx2", "generic"]  # the best first
#: what a CPU without AVX-512 has, as Linux names it
AVX2_ONLY = frozenset(isa.FLAG_OF.values()) - {
    f for f in isa.FLAG_OF.values() if f.startswith(("avx512", "amx"))
}


# -- the format, without TVM


def needs(row, arch="x86_64"):
    return package.Needs(row, arch, isa.ISAS[row].features)


def compiled(row, code=b"code", arch="x86_64"):
    variant = package.Variant(
        row, needs(row, arch), f"llvm for {row}", "0.19.0", layers=("first", "second")
    )
    contents = {"code": code + row.encode(), "graph": b'{"nodes": []}', "parameters": b"none"}
    return package.Compiled(
        variant, json.dumps({"model": "f" * 64, "weights": {"a": [0.1, 1e-9]}}), contents
    )


@pytest.fixture
def here(monkeypatch):
    """This machine as one with AVX2 and no AVX-512."""
    monkeypatch.setattr(isa, "host_flags", lambda: AVX2_ONLY)
    monkeypatch.setattr(isa.platform, "machine", lambda: "x86_64")
    monkeypatch.delenv(package.CHOICE, raising=False)


@pytest.fixture
def fleet(tmp_path):
    path = tmp_path / "net.tar"
    path.write_bytes(package.packed("1.0", [compiled(row) for row in reversed(ROWS)]))
    return path


def names(path):
    with tarfile.open(path) as tar:
        return tar.getnames()


def test_the_record_comes_first_and_each_variant_has_a_folder(fleet, here):
    assert names(fleet) == ["easyquant.json", "avx2/mod.so", "avx512vnni/mod.json", "avx512vnni/mod.params",
                            "avx512vnni/mod.so", "generic/mod.so"]  # fmt: skip
    record = package.choose(fleet).record
    assert [variant.name for variant in record.variants] == ROWS
    (digest,) = record.tables
    assert record.tables[digest]["weights"] == {"a": [0.1, 1e-9]}
    assert {variant.table for variant in record.variants} == {digest}
    assert record.variants[0].layers == ("first", "second") and record.variants[0].version == "0.19.0"
    assert record.variants[1].needs == needs("avx2")


def test_one_variant_lies_where_stock_tvmc_looks(tmp_path, here):
    path = tmp_path / "net.tar"
    path.write_bytes(package.packed("1.0", [compiled("avx2")]))
    assert names(path) == ["easyquant.json", "mod.json", "mod.params", "mod.so"]
    assert package.choose(path).unpack(tmp_path) == ('{"nodes": []}', b"none")
    assert (tmp_path / "mod.so").read_bytes() == b"codeavx2"


def test_the_same_variants_are_the_same_bytes_in_any_order():
    one, two = compiled("avx2"), compiled("generic")
    assert package.packed("1.0", [one, two]) == package.packed("1.0", [two, one])
    with pytest.raises(DeployError, match="two variants are for avx2"):
        package.packed("1.0", [one, one])


def test_a_variant_may_have_a_table_of_its_own(tmp_path, here):
    other = compiled("generic")._replace(table=json.dumps({"model": "f" * 64, "weights": {}}))
    path = tmp_path / "net.tar"
    path.write_bytes(package.packed("1.0", [compiled("avx2"), other]))
    record = package.choose(path).record
    assert [record.tables[variant.table]["weights"] for variant in record.variants] == [
        {"a": [0.1, 1e-9]},
        {},
    ]


def test_the_best_that_the_cpu_runs_is_taken_or_the_one_that_is_named(fleet, here, monkeypatch):
    assert package.choose(fleet).name == "avx2"
    assert package.choose(fleet).read()["code"] == b"codeavx2"
    assert package.choose(fleet, isa="generic").name == "generic"
    monkeypatch.setenv("EASYQUANT_ISA", "generic")
    assert package.choose(fleet).name == "generic" and package.choose(fleet, isa="avx2").name == "avx2"
    monkeypatch.setenv("EASYQUANT_ISA", "")
    monkeypatch.setattr(isa, "host_flags", lambda: frozenset(isa.FLAG_OF.values()))
    assert package.choose(fleet).name == "avx512vnni"
    monkeypatch.setattr(isa, "host_flags", lambda: frozenset({"sse2"}))
    assert package.choose(fleet).name == "generic"
    monkeypatch.setattr(isa, "host_flags", frozenset)  # nobody says
    assert package.choose(fleet).name == "generic"


def refused(path, message, isa=None, **options):
    with pytest.raises(DeployError, match=message) as error:
        package.choose(path, isa, **options)
    assert "\n" not in str(error.value)


def test_what_cannot_be_had_is_one_sentence(fleet, here, monkeypatch, tmp_path):
    refused(fleet, r"for avx512vnni \(it has avx512vnni, avx2, generic\), which needs avx512bw, avx512vl, "
            "avx512vnni, which this CPU lacks; of the instruction sets it has generic, avx2", "avx512vnni")  # fmt: skip
    refused(fleet, "no variant avx512bw, which isa asks for; it has avx512vnni, avx2, generic", "avx512bw")
    refused(fleet, "isa is 'AVX2'; use one of generic, avx2, avxvnni, avx512bw", "AVX2")
    monkeypatch.setenv("EASYQUANT_ISA", "neon")
    refused(fleet, "no variant neon, which EASYQUANT_ISA asks for")
    monkeypatch.setenv("EASYQUANT_ISA", "fastest")
    refused(fleet, "EASYQUANT_ISA is 'fastest'; use one of generic")
    monkeypatch.delenv("EASYQUANT_ISA")
    alone = tmp_path / "alone.tar"
    alone.write_bytes(package.packed("1.0", [compiled("avx512bw")]))
    refused(
        alone, "alone.tar was compiled for avx512bw, which needs avx512bw, avx512vl, which this CPU lacks"
    )
    arm = tmp_path / "arm.tar"
    arm.write_bytes(
        package.packed("1.0", [compiled("neon", arch="aarch64"), compiled("neon_i8mm", arch="aarch64")])
    )
    refused(
        arm,
        "arm.tar was made for another architecture: its code is aarch64's, this machine's CPU is x86_64",
    )
    refused(tmp_path / "none.tar", "cannot read .*none.tar: No such file")
    refused(tmp_path, "cannot read .*: Is a directory")


def test_for_another_machine_the_variant_is_named(fleet, here):
    refused(fleet, "the other machine is not asked which it runs: name it", elsewhere=True)
    assert package.choose(fleet, "avx512vnni", elsewhere=True).name == "avx512vnni"


def spoilt(fleet, change):
    """The package with its record changed, and the record's digest made anew."""
    with tarfile.open(fleet) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    record = json.loads(members["easyquant.json"])
    change(record, members)
    if "sha256" in record:
        text = json.dumps(record.get("content"), sort_keys=True)
        record["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    members["easyquant.json"] = json.dumps(record).encode()
    fleet.write_bytes(package.archive(members))


@pytest.mark.parametrize("change, message", [
    (lambda r, m: r.update(version=2), "has version 2, this release reads version 1; install a newer tvm_easyquant"),
    (lambda r, m: r.update(version=0), "has version 0, .*; compile the network anew"),
    (lambda r, m: r.update(version="1"), "has version '1', .*; compile the network anew"),
    (lambda r, m: r.update(format="x"), "is not a record of tvm_easyquant packages"),
    (lambda r, m: r.pop("content"), "is damaged"),
    (lambda r, m: r["content"].update(variants=[]), "is damaged: it has no variants"),
    (lambda r, m: r["content"].update(variants=3), "is damaged: TypeError"),
    (lambda r, m: r["content"].pop("tables"), "is damaged: KeyError 'tables'"),
    (lambda r, m: r["content"]["variants"][0].pop("features"), "is damaged: KeyError 'features'"),
    (lambda r, m: r["content"]["variants"][0].update(features=[1]), "is damaged: TypeError a name that is no text"),
    (lambda r, m: r["content"]["variants"][1]["runtime"].update(name="vm"), "is for the runtime vm, this release has"),
    (lambda r, m: r["content"]["variants"][1]["files"].pop("code"), "lacks a file of its variant avx2: code"),
    (lambda r, m: m.pop("avx2/mod.so"), "no archive of tvmc compile: .*'avx2/mod.so' not found"),
    (lambda r, m: m.update({"avx2/mod.so": b"other"}), "its avx2/mod.so is not what its easyquant.json says"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_a_record_that_is_not_right_is_one_line(fleet, here, change, message):
    spoilt(fleet, change)
    with pytest.raises(DeployError, match=message) as error:
        package.choose(fleet).read()
    assert "\n" not in str(error.value) and str(fleet) in str(error.value)


def test_spoiling_nothing_spoils_nothing(fleet, here):
    """Otherwise the test above could pass without its changes."""
    spoilt(fleet, lambda record, members: None)
    assert package.choose(fleet).read()["code"] == b"codeavx2"


def test_a_record_that_is_edited_is_damaged(fleet, here):
    fleet.write_bytes(fleet.read_bytes().replace(b'"avx2"', b'"avx3"'))
    refused(fleet, "damaged: its digest is another")


def test_a_package_cut_or_changed_anywhere_is_a_line_or_whole(fleet, here):
    """200 lengths and 200 bytes: never another exception, never other code."""
    whole, rng = fleet.read_bytes(), np.random.default_rng(0)
    want, refusals = package.choose(fleet).read(), 0
    spoils = [whole[:n] for n in rng.integers(0, len(whole), 200)]
    for at in rng.integers(0, len(whole), 200):
        changed = bytearray(whole)
        changed[at] ^= int(rng.integers(1, 256))
        spoils.append(bytes(changed))
    for spoil in spoils:
        fleet.write_bytes(spoil)
        try:
            found = package.choose(fleet)
            assert found.read() == want
        except DeployError as error:
            assert "\n" not in str(error)
            refusals += 1
    assert refusals > 100  # what was spoilt otherwise is the padding, which nobody reads


def test_only_its_padding_may_be_cut(fleet, here):
    whole = fleet.read_bytes()
    end = len(whole.rstrip(b"\0"))
    for n in range(0, end, 97):
        fleet.write_bytes(whole[:n])
        with pytest.raises(DeployError):
            package.choose(fleet).read()


def test_no_pathological_member_is_read_as_code(fleet, here):
    with tarfile.open(fleet, "w") as tar:
        link = tarfile.TarInfo("mod.so")
        link.type, link.linkname = tarfile.SYMTYPE, "/bin/sh"
        tar.addfile(link, io.BytesIO())
    with pytest.raises(DeployError):
        package.choose(fleet).read()


# -- libraries


def elf(machine=62, size=64):
    head = bytearray(64)
    head[:6], head[18:20] = b"\x7fELF\x02\x01", machine.to_bytes(2, "little")
    head[40:48], head[58:60], head[60:62] = size.to_bytes(8, "little"), (64).to_bytes(2, "little"), b"\1\0"
    return bytes(head) + bytes(size)


def test_a_library_says_what_it_needs_behind_its_code(tmp_path, here):
    path = tmp_path / "net.so"
    for row, message in (("avx2", None), ("avx512vnni", "compiled for avx512vnni, which needs avx512bw")):
        path.write_bytes(elf() + package.mark("1.0", compiled(row).variant, compiled(row).table))
        if message:
            refused(path, message)
            continue
        chosen = package.choose(path)
        assert (chosen.name, chosen.archive, chosen.note) == ("avx2", False, "")
        assert list(chosen.record.tables) == [chosen.variant.table]
    refused(path, "no variant generic", "generic")
    path.write_bytes(path.read_bytes().replace(b'"version": 1', b'"version": 9'))
    refused(path, "has version 9, this release reads version 1")


def test_the_code_of_an_archive_of_tvmc_s_may_say_it_too(tmp_path, here):
    """What ``compile`` makes for a target of TVM's own keeps its three members, which scripts rely on."""
    path = tmp_path / "net.tar"
    for row in ("avx2", "avx512bw"):
        code = elf() + package.mark("1.0", compiled(row).variant)
        path.write_bytes(package.archive({"mod.so": code, "mod.json": b"{}", "mod.params": b""}))
        if row == "avx2":
            found = package.choose(path)
            assert (found.name, found.archive, found.note) == ("avx2", True, "")
            assert found.read() == {"code": code, "graph": b"{}", "parameters": b""}
    refused(path, "compiled for avx512bw, which needs avx512bw, avx512vl, which this CPU lacks")


def test_a_library_that_another_wrote_is_known_by_its_kernels(tmp_path, here):
    path = tmp_path / "net.so"
    symbol = "tvmgen_default_fused_easyquant_conv2d{}_{}_3\0"
    path.write_bytes(elf() + (symbol.format("", "avx2") + symbol.format("_add", "generic")).encode())
    found = package.choose(path)
    assert found.variant is None and "(kernels for generic, avx2)" in found.note
    refused(path, "no record of its variants, so isa='avx2' cannot be asked", "avx2")
    path.write_bytes(elf() + symbol.format("", "avx512bw").encode())
    refused(path, "has kernels for avx512bw in it: it needs avx512bw, avx512vl, which this CPU lacks")
    path.write_bytes(elf())
    assert "(no kernels of ours)" in package.choose(path).note


def test_a_library_that_is_not_whole_is_not_loaded(tmp_path, here):
    """The missing pages of a library end the process by SIGBUS."""
    path = tmp_path / "net.so"
    for content, message in (
        (elf()[:100], "is truncated: it has 100 bytes of 128"),
        (elf()[:40], "is truncated: it has 40 bytes"),
        (elf(machine=183), "made for another architecture: its code is aarch64's"),
        (elf() + b"\xff" * 8 + package.MARK, "the record behind it is not whole"),
        (elf() + b"no json" + (7).to_bytes(8, "little") + package.MARK, "is not JSON"),
    ):
        path.write_bytes(content)
        refused(path, message)


# -- with TVM


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a network, its table, an input, and what of them is compiled: fleet.tar and avx2.so."""
    pytest.importorskip("tvm")
    onnx = pytest.importorskip("onnx")
    import networks

    import tvm_easyquant as eq

    if not X86 or shutil.which("c++") is None:
        pytest.skip("no x86 CPU here, or no C++ compiler to link with")
    folder = tmp_path_factory.mktemp("fleet")
    onnx.save(networks.small_onnx(), folder / "net.onnx")
    images = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "in.npz", x=images[:1])
    q = eq.quantize(folder / "net.onnx", images, method="minmax")
    q.table.save(folder / "net.json")
    fleet = q.build(isa=ROWS)
    fleet.export(folder / "fleet.tar")
    fleet.variants["avx2"].export_library(folder / "avx2.so")
    fleet.variants["generic"].export(folder / "generic.tar")
    (want,) = q.build("llvm")({"x": images[:1]})
    np.save(folder / "want.npy", want)
    return folder, q, fleet


def command(*words, cwd, env=None, emulator=()):
    return subprocess.run(
        [*emulator, sys.executable, "-W", "ignore", "-m", "tvm_easyquant.cli", *words], cwd=cwd, text=True,
        capture_output=True, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), **(env or {})},
    )  # fmt: skip


def test_a_network_built_for_a_fleet_runs_as_the_best_of_it(made):
    import tvm_easyquant as eq

    folder, q, fleet = made
    x, want = {"x": np.load(folder / "in.npz")["x"]}, np.load(folder / "want.npy")
    best = next(row for row in ROWS if isa.host_has(row))
    assert fleet.best is fleet.variants[best] and fleet.inputs == {"x": ((1, 3, 8, 8), "float32")}
    np.testing.assert_array_equal(fleet(x)[0], want)
    np.testing.assert_array_equal(eq.Executor(fleet)(x)[0], want)
    assert [built.variant.name for built in fleet.variants.values()] == ROWS
    assert "avx2" in fleet.variants["avx2"].variant.needs.features
    for row, built in fleet.variants.items():
        if isa.host_has(row):
            np.testing.assert_array_equal(built(x)[0], want)
        else:
            with pytest.raises(
                TargetError, match="cannot run here: it needs avx512f, .*this CPU lacks; of the"
            ):
                built(x)
            with pytest.raises(TargetError, match="this CPU lacks"):
                built.profile(x)
    with pytest.raises(TargetError, match="a library holds one instruction set.*avx512vnni, avx2, generic"):
        fleet.export_library(folder / "net.so")
    with pytest.raises(ConfigError, match="target and isa both say"):
        q.build("llvm", isa="avx2")
    with pytest.raises(KernelError, match="no instruction set 'avx512_vnni'; use generic"):
        q.build(isa=["avx512_vnni"])


@pytest.mark.parametrize("row", ["avx2", "generic", None])
def test_every_variant_computes_the_same_integers(made, row):
    from tvm_easyquant import deploy

    folder, _, _ = made
    if row == "avx2" and not isa.host_has("avx2"):
        pytest.skip("this CPU lacks avx2")
    program = deploy.Program(folder / "fleet.tar", isa=row)
    assert program.variant == row or row is None
    np.testing.assert_array_equal(
        program({"x": np.load(folder / "in.npz")["x"]})[0], np.load(folder / "want.npy")
    )


@pytest.mark.relay
def test_run_of_a_package_of_the_other_host_is_a_line(tmp_path):
    """Story: tvmc unpacked it, and ended in a traceback of the graph executor: "key weights is not supported"."""
    needs = package.Needs("generic", isa.arch_of(""), ())
    contents = dict.fromkeys(package.FILES, b"")
    theirs = package.Variant("generic", needs, "llvm", "0.27.0", runtime=package.VM)
    (tmp_path / "net.tar").write_bytes(package.packed("1", [package.Compiled(theirs, "", contents)]))
    done = command("run", "net.tar", cwd=tmp_path)
    assert done.returncode == 4 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "net.tar was compiled by today's apache-tvm (the relax host), and TVM 0.19" in done.stderr


@pytest.mark.ci
def test_compile_writes_what_python_exports_and_run_takes_the_best(made):
    folder, _, _ = made
    done = command(
        "compile",
        "net.onnx",
        "--table",
        "net.json",
        "--isa",
        "generic,avx2,avx512vnni",
        "-o",
        "c.tar",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "c.tar").read_bytes() == (folder / "fleet.tar").read_bytes()
    best, want = next(row for row in ROWS if isa.host_has(row)), np.load(folder / "want.npy")
    for options, env, row in (
        ([], {}, best), (["--isa", "generic"], {}, "generic"), ([], {"EASYQUANT_ISA": "generic"}, "generic"),
    ):  # fmt: skip
        done = command(
            "run", "c.tar", "-v", "--inputs", "in.npz", "-o", "out.npz", *options, cwd=folder, env=env
        )
        assert done.returncode == 0 and f"c.tar: variant {row}\n" in done.stderr, done.stderr
        np.testing.assert_array_equal(np.load(folder / "out.npz")["output_0"], want)
    if best != "avx512vnni":
        done = command("run", "c.tar", "--isa", "avx512vnni", "--inputs", "in.npz", cwd=folder)
        assert done.returncode == 4 and "needs avx512f, which this CPU lacks" in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("verb", ["benchmark", "evaluate"])
def test_what_is_for_another_cpu_is_not_measured_here(made, verb):
    """It was built, and ended with SIGILL."""
    folder, _, _ = made
    if isa.host_has("avx512bw"):
        pytest.skip("this CPU has AVX-512")
    np.savez(folder / "labelled.npz", images=np.load(folder / "in.npz")["x"], labels=np.zeros(1, np.int64))
    data = ["--data", "labelled.npz"] if verb == "evaluate" else []
    words = [verb, "net.onnx", "--table", "net.json", *data, "--target", "llvm -mcpu=skylake-avx512"]
    done = command(*words, cwd=folder)
    assert done.returncode == 4 and "cannot run here: it needs avx512f, which this CPU lacks" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.ci
@pytest.mark.relay
def test_what_tvmc_compiles_for_a_target_of_its_own_is_refused_elsewhere(made):
    """``compile --target "llvm -mcpu=..."`` knows no table, but the target."""
    folder, _, _ = made
    if isa.host_has("avx512bw"):
        pytest.skip("this CPU has AVX-512")
    done = command(
        "compile", "net.onnx", "--target", "llvm -mcpu=skylake-avx512", "-o", "wide.tar", cwd=folder
    )
    assert done.returncode == 0 and names(folder / "wide.tar") == ["mod.json", "mod.params", "mod.so"], (
        done.stderr
    )
    done = command("run", "wide.tar", "--inputs", "in.npz", cwd=folder)
    assert done.returncode == 4 and "wide.tar was compiled for avx512bw, which needs avx512f" in done.stderr
    done = command("compile", "net.onnx", "--target", "llvm", "-o", "plain.tar", cwd=folder)
    done = command("run", "plain.tar", "--inputs", "in.npz", cwd=folder)
    assert done.returncode == 0 and "note:" not in done.stderr, done.stderr


@pytest.mark.relay
def test_stock_tvmc_runs_a_package_of_one_variant(made):
    folder, _, _ = made
    stock = [sys.executable, "-W", "ignore", "-m", "tvm.driver.tvmc", "run", "generic.tar", "--inputs", "in.npz",
             "-o", "stock.npz"]  # fmt: skip
    done = subprocess.run(stock, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(folder / "stock.npz")["output_0"], np.load(folder / "want.npy"))


@pytest.mark.relay
def test_a_library_of_a_user_s_own_build_says_its_kernels_and_no_more(made, caplog):
    import tvm
    from tvm import relay

    import tvm_easyquant as eq
    from tvm_easyquant import deploy

    folder, q, _ = made
    target = isa.ISAS["avx2" if isa.host_has("avx2") else "generic"].target
    with tvm.transform.PassContext(opt_level=3, config=eq.BUILD_CONFIG):
        library = relay.build(eq.LowerInteger(target)(q.module), target)
    library.export_library(str(folder / "own.so"))
    program = deploy.Program(folder / "own.so")
    assert program.variant is None and "own.so has no record of what it needs (kernels for " in caplog.text
    np.testing.assert_array_equal(
        program({"x": np.load(folder / "in.npz")["x"]})[0], np.load(folder / "want.npy")
    )
    wide = "llvm -mcpu=skylake-avx512"
    if not isa.host_has("avx512bw"):
        with tvm.transform.PassContext(opt_level=3, config=eq.BUILD_CONFIG):
            library = relay.build(eq.LowerInteger(wide)(q.module), wide)
        with pytest.raises(TargetError, match="cannot run here: it needs avx512f"):
            eq.Executor(library)
        library.export_library(str(folder / "wide.so"))
        with pytest.raises(DeployError, match="has kernels for avx512bw in it: it needs avx512"):
            deploy.Program(folder / "wide.so")


LOADS = """
import sys
import numpy as np
from tvm_easyquant import deploy, errors
for path, isa in (("fleet.tar", None), ("fleet.tar", "generic"), ("fleet.tar", "avx2"), ("avx2.so", None)):
    try:
        program = deploy.Program(path, isa=isa)
        same = np.array_equal(program({"x": np.load("in.npz")["x"]})[0], np.load("want.npy"))
        print(program.variant, same)
    except errors.DeployError as error:
        print("refused:", error)
"""


@pytest.mark.skipif(QEMU is None, reason="no qemu-x86_64 here to be another CPU")
@pytest.mark.parametrize("name, said", [
    ("Nehalem", ["generic True", "generic True", "refused", "refused"]),
    ("Haswell", ["avx2 True", "generic True", "avx2 True", "avx2 True"]),
])  # fmt: skip
def test_another_cpu_takes_what_it_runs_and_is_never_killed(made, name, said):
    """What was built for the CPU of the desk ended with SIGILL on a plainer one."""
    folder, _, _ = made
    done = subprocess.run(
        [QEMU, "-cpu", name, sys.executable, "-c", LOADS], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode == -signal.SIGILL, done.stderr)
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == said
    for line in lines[2:] if name == "Nehalem" else ():
        assert "compiled for avx2" in line and "avx2, bmi" in line and line.endswith("it has generic")


HERE = """
import numpy as np
import tvm_easyquant as eq
from topi_ext import isa
from tvm_easyquant.errors import TargetError
module = eq.rewrite(eq.load("net.onnx"), eq.ScaleTable.load("net.json"))
x = {"x": np.load("in.npz")["x"]}
built = eq.build(module)
print(isa.of_host(), built.variant.name, np.array_equal(built(x)[0], np.load("want.npy")))
try:
    eq.build(module, isa.ISAS["avx2"].target)(x)
except TargetError as error:
    print(error)
"""


@pytest.mark.ci
@pytest.mark.skipif(QEMU is None, reason="no qemu-x86_64 here to be another CPU")
def test_this_cpu_is_the_emulated_one_where_a_network_is_built_and_run(made):
    """TVM itself under qemu: "this CPU" left out nothing of the host's, whose flags /proc/cpuinfo showed."""
    folder, _, _ = made
    done = subprocess.run(
        [QEMU, "-cpu", "Nehalem", sys.executable, "-W", "ignore", "-c", HERE], cwd=folder, capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode == -signal.SIGILL, done.stderr)
    first, second = done.stdout.splitlines()
    assert first == "['generic'] generic True"
    assert "it needs avx, avx2, bmi, " in second and second.endswith("it has generic")


@pytest.mark.ci
@pytest.mark.skipif(QEMU is None, reason="no qemu-x86_64 here to be another CPU")
def test_the_verb_run_on_another_cpu(made):
    folder, _, _ = made
    emulator = [QEMU, "-cpu", "Nehalem"]
    run = ["run", "fleet.tar", "-v", "--inputs", "in.npz", "-o", "nehalem.npz"]
    done = command(*run, cwd=folder, emulator=emulator)
    assert done.returncode == 0 and "fleet.tar: variant generic" in done.stderr, done.stderr
    np.testing.assert_array_equal(np.load(folder / "nehalem.npz")["output_0"], np.load(folder / "want.npy"))
