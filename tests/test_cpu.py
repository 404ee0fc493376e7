"""What the CPU has, asked of the CPU: what qemu or a virtual machine shows, and what the system enabled."""

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from topi_ext import cpu, isa
from topi_ext.errors import KernelError

ROOT = Path(__file__).resolve().parent.parent
QEMU = shutil.which("qemu-x86_64")
X86 = isa.arch_of("") == "x86_64" and sys.platform == "linux"

ASK = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom topi_ext import cpu, isa\n"


def ask(code, *command):
    done = subprocess.run(
        [*command, sys.executable, "-c", ASK + code], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")


@pytest.mark.skipif(not X86, reason="no x86 CPU here to ask")
def test_the_cpu_says_all_that_linux_says_of_it():
    found, told = cpu.flags(), cpu._by_proc()
    assert found.source == "CPUID and XGETBV" and "sse2" in found.names
    known = {name for bits in cpu.CPUID.values() for name in bits.values()}
    assert told.names & known <= found.names


@pytest.mark.skipif(not X86 or QEMU is None, reason="no qemu-x86_64 here to be another CPU")
@pytest.mark.parametrize("name, rows", [("Nehalem", ["generic"]), ("Haswell", ["generic", "avx2"])])
def test_an_emulated_cpu_is_asked_and_not_its_host(name, rows):
    """/proc/cpuinfo is the host's under qemu: a Nehalem would have got the kernels of AVX2, and SIGILL."""
    found = ask("print(cpu.flags().source); print(isa.of_host())", QEMU, "-cpu", name)
    assert found[:2] == ["CPUID and XGETBV", str(rows)]


def answers(ecx1=1 << cpu.OSXSAVE, xcr0=0):
    """A CPU with every flag, whose operating system saves what ``xcr0`` says."""

    def cpuid(leaf, subleaf):
        if leaf in (0, 0x80000000):
            return (leaf | 0x20, 0, 0, 0)
        if (leaf, subleaf) == (1, 0):
            return (0, 0, 0xFFFFFFFF & ~(1 << cpu.OSXSAVE) | ecx1, 0xFFFFFFFF)
        return (0xFFFFFFFF,) * 4

    return cpu.x86(cpuid, lambda: xcr0)


def test_registers_that_the_system_does_not_save_are_not_there():
    plain, ymm, zmm = answers(), answers(xcr0=cpu.YMM), answers(xcr0=cpu.ZMM)
    assert {"sse4_2", "abm", "sha_ni", "bmi2"} <= plain
    assert not {"avx", "avx2", "fma", "avx512f", "amx_int8"} & plain
    assert {"avx2", "avx_vnni", "f16c"} <= ymm and not {"avx512f", "avx512_vnni", "amx_int8"} & ymm
    assert {"avx512f", "avx512_vnni", "avx2"} <= zmm and "amx_int8" not in zmm
    assert "amx_int8" in answers(xcr0=cpu.ZMM | cpu.TILES)
    assert answers(ecx1=0, xcr0=cpu.ZMM) == plain  # the system has no XGETBV to ask


@pytest.mark.skipif(not X86 or shutil.which("gcc") is None, reason="no gcc for x86 here")
def test_a_capped_cpu_is_of_the_class_that_a_benchmark_names(tmp_path):
    """A CPU that has everything, as `benchmarks/cap.c` shows it to a peer: each class is a row's, and has no bf16."""
    (tmp_path / "ask.c").write_text(
        f'#include "{ROOT / "benchmarks" / "cap.c"}"\n#include <stdio.h>\n'
        "int main(int n, char **names) { for (int i = 1; i < n; i++) for (unsigned sub = 0; sub < 2; sub++) {\n"
        "unsigned out[4] = {~0u, ~0u, ~0u, ~0u}; choose(names[i]); hide(7, sub, out);\n"
        'printf("%u %u %u %u\\n", out[0], out[1], out[2], out[3]); } }'
    )
    classes = re.findall(r"^    \{\"(\w+)\"", (ROOT / "benchmarks" / "cap.c").read_text(), re.M)
    assert classes == ["avx2", "avxvnni", "avx512bw", "avx512vnni", "amx"]
    subprocess.run(["gcc", tmp_path / "ask.c", "-o", tmp_path / "ask"], check=True)
    said = subprocess.run([tmp_path / "ask", *classes, "none"], capture_output=True, text=True, check=True)
    leaves = iter([tuple(map(int, line.split())) for line in said.stdout.splitlines()])
    rest = (0xFFFFFFFF,) * 4
    for name in [*classes, "none"]:
        seven = {(7, sub): next(leaves) for sub in (0, 1)}
        flags = cpu.x86(lambda *asked, seven=seven: seven.get(asked, rest), lambda: cpu.ZMM | cpu.TILES)
        if name == "none":
            assert {"avx512_bf16", "amx_fp16", "avx_vnni_int8"} <= flags
            continue
        has = [row for row in isa.ISAS.values() if not row.arch and set(row.flags) <= flags]
        features = {feature for row in has for feature in row.features}
        assert isa.best(features.__contains__, "x86_64") == name
        assert ({"amx_tile", "amx_int8"} <= flags) == (name == "amx")
        assert not {"amx_fp16", "avx_vnni_int8", "avx_ifma"} & flags
        assert name == "amx" or not {"avx512_bf16", "amx_bf16", "avx512_fp16", "amx_tile"} & flags
        assert name not in ("avx2", "avxvnni") or not {"avx512f", "avx512_vnni", "avx512vbmi"} & flags


def test_tiles_are_asked_for_once_and_a_refusal_leaves_the_other_rows():
    """AMX's registers are not a process's until it asks for them; a container may refuse that."""
    asked = []

    def ask(answer):
        asked.append(answer)
        return answer

    rest = isa.ISAS["avx512vnni"].flags
    tiles = cpu.Flags(frozenset(isa.ISAS["amx"].flags), "CPUID")
    assert cpu.allowed(tiles, lambda: ask(True)) == tiles
    refused = cpu.allowed(tiles, lambda: ask(False))
    assert refused.names == frozenset(rest) and refused.refused == {"amx_tile", "amx_int8"}
    assert cpu.allowed(cpu.Flags(frozenset(rest), ""), lambda: ask(True)).names == frozenset(rest)
    assert asked == [True, False]  # not where there are none


@pytest.mark.skipif(not X86, reason="no Linux on x86 here")
def test_where_there_are_no_tiles_linux_says_no():
    if "amx_tile" not in cpu._told().names:
        assert cpu._ask_for_tiles() is False


def test_leaves_that_a_cpu_does_not_have_are_not_asked():
    """Above its highest leaf a CPU answers with the data of that leaf."""
    asked = []

    def cpuid(leaf, subleaf):
        asked.append(leaf)
        return {0: (1, 0, 0, 0), 0x80000000: (0x80000000, 0, 0, 0)}.get(leaf, (0xFFFFFFFF,) * 4)

    assert "avx2" not in cpu.x86(cpuid, lambda: 0xFF)
    assert set(asked) == {0, 1, 0x80000000}


@pytest.mark.skipif(not X86, reason="no x86 CPU here to ask")
def test_where_executable_memory_is_refused_linux_is_asked():
    """As systemd's MemoryDenyWriteExecute refuses it."""
    deny = (
        "import ctypes\n"
        "if ctypes.CDLL(None, use_errno=True).prctl(65, 1, 0, 0, 0): sys.exit(3)\n"  # PR_SET_MDWE
        "print(cpu.flags().source); print('sse2' in cpu.flags().names)"
    )
    if ctypes.CDLL(None).prctl(66, 0, 0, 0, 0) < 0:  # PR_GET_MDWE
        pytest.skip("this Linux cannot refuse executable memory")
    source, has = ask(deny)[:2]
    assert (source, has) == ("/proc/cpuinfo, as this process may not ask the CPU itself", "True")


@pytest.mark.parametrize("kind, triple", [("aarch64", "aarch64-linux-gnu"), ("arm", "arm-linux-gnueabihf")])
def test_the_bits_of_arm_are_linux_s(kind, triple):
    header = Path(f"/usr/{triple}/include/asm/hwcap.h")
    if not header.exists():
        pytest.skip(f"no C headers of {triple} here")
    bits = dict(re.findall(r"#define HWCAP(2?_\w+)\s+\(1U?L? << (\d+)\)", header.read_text()))
    bits = {name.lower(): int(bit) for name, bit in bits.items()}
    checked = 0
    for prefix, names in zip(("_", "2_"), cpu.HWCAP[kind], strict=True):
        for bit, name in enumerate(names.split()):
            if prefix + name in bits:
                assert bits[prefix + name] == bit, name
                checked += 1
    assert checked > 20


def test_every_flag_that_a_row_or_a_feature_asks_for_is_one_that_the_cpu_can_tell():
    """One that it cannot would be lacking everywhere."""
    x86 = {name for bits in cpu.CPUID.values() for name in bits.values()}
    told = {"x86_64": x86} | {
        arch: set(" ".join(cpu.HWCAP[kind]).split())
        for arch, kind in (("aarch64", "aarch64"), ("armv7", "arm"))
    }
    for row in isa.ISAS.values():
        arch = row.arch or isa.X86
        assert set(row.flags) <= told[arch], row.name
        assert {isa.flag_names(arch)[feature] for feature in row.features} == set(row.flags), row.name
    for arch, names in told.items():
        assert set(isa.flag_names(arch).values()) <= names, arch


# -- what is said of it


def test_a_row_is_spelled_as_in_the_table():
    assert [row.name for row in isa.named("avx2, generic,avx2")] == ["avx2", "generic"]
    assert [row.name for row in isa.named(["neon", "neon_i8mm"])] == ["neon", "neon_i8mm"]
    for wrong in ("AVX2", "avx512_vnni", "", "avx2,", ["avx2", 3]):
        with pytest.raises(
            KernelError, match="there is no instruction set .*; use generic, avx2, avxvnni, avx512bw"
        ):
            isa.named(wrong)
    with pytest.raises(KernelError, match="of one architecture: avx2, neon are of aarch64 and x86_64"):
        isa.named("avx2,neon")
    with pytest.raises(KernelError, match="none is named"):
        isa.named([])


def test_a_refusal_names_what_the_cpu_has_and_lacks(monkeypatch):
    monkeypatch.setattr(isa, "host_flags", lambda: frozenset({"avx2", "fma", "pni", "abm"}))
    monkeypatch.setattr(isa.platform, "machine", lambda: "x86_64")
    assert isa.refusal(["avx2", "sse3"], "x86_64") == ""
    said = isa.refusal(["avx2", "avx512f", "avx512vl", "bmi"], "x86_64")
    assert said == "needs avx512f, bmi, which this CPU lacks; of the instruction sets it has generic, avx2"
    assert "needs avx1024" in isa.refusal(["avx1024"], "x86_64")  # of a later release
    assert isa.refusal([], "aarch64") == (
        "was made for another architecture: its code is aarch64's, this machine's CPU is x86_64"
    )
    monkeypatch.setattr(isa, "host_flags", frozenset)
    assert isa.refusal(["avx512f"], "x86_64") == ""  # nobody says what this CPU has
