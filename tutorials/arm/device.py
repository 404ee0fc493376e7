"""Set up what runs our kernels on 64-bit ARM Linux: TVM's runtime and the program ``device``.

    python tutorials/arm/device.py FOLDER      makes FOLDER/device and FOLDER/libtvm_runtime.so

Both files go to the board, or run here under qemu (`Emulated`). Needs a cross compiler and qemu, on
Debian and Ubuntu: ``apt-get install --no-install-recommends qemu-user g++-aarch64-linux-gnu``. The runtime
comes out of the aarch64 wheel of the same TVM that is installed here; to use one of your own, put its
libtvm_runtime.so into FOLDER first.

With today's apache-tvm it makes FOLDER/VERSIONS/libtvm_runtime.so and libtvm_ffi.so, which
``tvmc-easyquant deploy --runtime`` takes; the example in C++ of that folder is the program.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import zipfile
from importlib import metadata, util
from pathlib import Path

COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"
SYSROOT = "/usr/aarch64-linux-gnu"
WHEEL = "xtc-tvm-python-bindings"
#: today's TVM, wheel by wheel: its runtime library, and the one that it needs beside it
TODAYS = {"apache-tvm": "tvm/lib/libtvm_runtime.so", "apache-tvm-ffi": "tvm_ffi/lib/libtvm_ffi.so"}
SOURCE = Path(__file__).with_name("device.cc")


class Missing(RuntimeError):
    """A tool that is not installed, or a file that cannot be had; the message says what to do."""


def tool(name: str) -> str:
    """The path of a program; Missing says how to install it."""
    path = shutil.which(name)
    if path is None:
        package = {EMULATOR: "qemu-user", COMPILER: "g++-aarch64-linux-gnu"}[name]
        raise Missing(f"there is no {name} here; on Debian and Ubuntu: apt-get install {package}")
    return path


def emulator() -> list[str]:
    """The command that runs an aarch64 program here; Missing without qemu."""
    return [tool(EMULATOR), "-L", SYSROOT]


def default_folder() -> Path:
    """Where the tests keep the set-up: $EASYQUANT_AARCH64, else a folder of the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("EASYQUANT_AARCH64") or Path(cache) / "tvm_easyquant" / "aarch64")


def fetch_runtime(folder: Path) -> Path:
    """libtvm_runtime.so for aarch64 in ``folder``, out of the wheel; Missing if it cannot be had."""
    return _fetch(WHEEL, "tvm/libtvm_runtime.so", folder)


def fetch_todays(folder: Path) -> Path:
    """libtvm_runtime.so of the installed apache-tvm for aarch64, beside it what it needs, in a folder of
    ``folder``; Missing if they cannot be had."""
    made = Path(folder) / "-".join(_version(wheel, folder) for wheel in TODAYS)
    made.mkdir(parents=True, exist_ok=True)
    runtime, _ = (_fetch(wheel, member, made) for wheel, member in TODAYS.items())
    return runtime


def _has(wheel: str) -> bool:
    return any(metadata.distributions(name=wheel))


def _version(wheel: str, folder: Path) -> str:
    try:
        return metadata.version(wheel)
    except metadata.PackageNotFoundError:
        raise Missing(f"this TVM is not {wheel}: put an aarch64 libtvm_runtime.so into {folder}") from None


def _fetch(name: str, member: str, folder: Path) -> Path:
    """A library for aarch64 in ``folder``, out of the wheel ``name`` of the version that is installed."""
    library = folder / Path(member).name
    if library.exists():
        return library
    version = _version(name, folder)
    python = f"{sys.version_info.major}{sys.version_info.minor}"
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
            "--platform", "manylinux_2_28_aarch64", "--implementation", "cp", "--python-version", python,
            "--abi", f"cp{python}", "-d", scratch, f"{name}=={version}",
        ]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if not wheels:
            reason = (result.stderr.strip().splitlines() or ["no wheel"])[-1]
            raise Missing(
                f"pip cannot download {name} {version} for aarch64 ({reason}); without a network, put its "
                f"{library.name} into {folder}"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            partial = Path(scratch) / library.name
            partial.write_bytes(wheel.read(member))
        partial.chmod(0o755)
        partial.replace(library)
    return library


def set_up(folder: Path) -> Path:
    """``folder/device`` for aarch64, compiled if its source is newer; Missing says what is needed."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    compiler = tool(COMPILER)
    fetch_runtime(folder)
    program = folder / "device"
    if program.exists() and program.stat().st_mtime >= SOURCE.stat().st_mtime:
        return program
    tvm = Path(util.find_spec("tvm").origin).parent
    includes = [tvm / "include", tvm / "3rdparty/dlpack/include", tvm / "3rdparty/dmlc-core/include"]
    partial = folder / f"device.{os.getpid()}"
    command = [
        compiler, "-std=c++17", "-O1", "-DDMLC_USE_LOGGING_LIBRARY=<tvm/runtime/logging.h>",
        *(f"-I{path}" for path in includes), SOURCE, "-o", partial, f"-L{folder}", "-ltvm_runtime",
        "-Wl,-rpath,$ORIGIN",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        partial.unlink(missing_ok=True)
        raise Missing(f"{COMPILER} cannot compile {SOURCE.name}: {result.stderr.strip().splitlines()[0]}")
    partial.replace(program)
    return program


class Emulated:
    """``device serve`` under qemu, as a context manager; ``port`` is what it listens on.

    Entered when it listens and, if there is a tracker, when the tracker has it; Missing if that takes more
    than ``seconds``.
    """

    def __init__(
        self,
        program: Path,
        tracker: tuple[str, int] | None = None,
        key: str = "aarch64",
        seconds: float = 60,
    ):
        self.command = [*emulator(), program, "serve", "0", *([*tracker, key] if tracker else [])]
        self.seconds, self.said = seconds, ["listening on ", *(["offered as "] if tracker else [])]

    def __enter__(self) -> Emulated:
        self.process = subprocess.Popen(
            list(map(str, self.command)), stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        late = threading.Timer(self.seconds, self.stop)  # ends a readline that waits for a dead tracker
        late.start()
        lines = [self.process.stdout.readline() for _ in self.said]
        late.cancel()
        late.join()  # from here on, one thread looks after the process
        if not all(map(str.startswith, lines, self.said)):
            self.__exit__()
            raise Missing(f"not up in {self.seconds} s: {' '.join(map(str, self.command))}")
        self.port = int(lines[0].split()[-1])
        return self

    def __exit__(self, *_):
        self.stop()
        self.process.stdout.close()

    def stop(self):
        """End the server and its sessions, which are processes of their own."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait()


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(f"use: python {Path(__file__).name} FOLDER")
    try:
        folder = Path(sys.argv[1])
        made = fetch_todays(folder) if _has("apache-tvm") else set_up(folder)
    except (Missing, OSError) as error:
        sys.exit(f"error: {error}")
    for path in sorted(made.parent.glob("*")):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
