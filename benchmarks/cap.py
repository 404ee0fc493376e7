"""Shows a peer's runtime a CPU with fewer instruction sets, so that every row of a table is capped alike.

Only OpenVINO can be told what to use; ONNX Runtime and ncnn ask the CPU. Here a copy of the package is
made in which every ``cpuid`` instruction is ``ud2``, and a preloaded library answers in its place
(`cap.c`) for a CPU of a class: a row of `topi_ext.isa`. Nothing else of the package is changed.
Needs objdump and gcc.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

#: AVX2 alone, VNNI of 256 bits without AVX-512, AVX-512 without VNNI, with it and without AMX, AMX
CAPS = ("avx2", "avxvnni", "avx512bw", "avx512vnni", "amx")


def sections(library: Path) -> list[tuple[int, int, int]]:
    """(address, size, offset in the file) of a shared library's sections."""
    text = subprocess.run(["objdump", "-h", library], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in text.splitlines()]
    return [tuple(int(r[i], 16) for i in (3, 2, 5)) for r in rows if len(r) == 7 and r[0].isdigit()]


def patch(library: Path) -> int:
    """Replace every cpuid instruction of a library by ud2; how many there were."""
    if b"\x0f\xa2" not in library.read_bytes():
        return 0
    code = subprocess.Popen(
        ["objdump", "-d", "--no-show-raw-insn", library],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    addresses = [int(line.split(":")[0], 16) for line in code.stdout if line.rstrip().endswith("\tcpuid")]
    code.wait()
    table = sections(library)
    with open(library, "r+b") as file:
        for address in addresses:
            start, _, offset = next(s for s in table if s[0] <= address < s[0] + s[1])
            file.seek(address - start + offset)
            if file.read(2) != b"\x0f\xa2":
                raise RuntimeError(f"{library.name}: no cpuid at {address:#x}")
            file.seek(-2, 1)
            file.write(b"\x0f\x0b")
    return len(addresses)


def capped(package: Path, folder: Path) -> dict[str, str]:
    """Environment variables (but $EASYQUANT_CAP) with which Python finds a capped copy of ``package``.

    package: its folder in a site-packages; folder: where the copy is kept, to be used again.
    """
    copy, answers = folder / package.name, folder / "cap.so"
    folder.mkdir(parents=True, exist_ok=True)
    if not copy.exists():
        partial = folder / f"{package.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(package, partial)
        count = sum(patch(lib) for lib in partial.rglob("*.so*") if lib.is_file() and not lib.is_symlink())
        if not count:
            raise RuntimeError(f"{package.name} asks the CPU nothing")
        partial.rename(copy)
        bundled = package.with_name(f"{package.name}.libs")  # what a wheel brings along
        if bundled.exists():
            (folder / bundled.name).symlink_to(bundled)
    source = Path(__file__).with_name("cap.c")
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", source, "-o", answers], check=True)
    return {"PYTHONPATH": str(folder), "LD_PRELOAD": str(answers)}
