"""What links for another machine: whether it is here, and why it cannot link; no host's own."""

from __future__ import annotations

import shutil

from .errors import TuneError, UserError


def check_compiler(name: str) -> None:
    """TuneError if there is no such program here."""
    if shutil.which(name) is None:
        raise TuneError(
            f"there is no compiler {name} here; for 64-bit ARM on Debian and Ubuntu: apt-get install "
            "g++-aarch64-linux-gnu, then --cross-compiler aarch64-linux-gnu-g++"
        )


def check_device(arch: str, here: str, device, compiler: str | None) -> None:
    """TuneError where kernels for ``arch`` cannot be measured: ``here`` without a device that is one, or a
    device without a compiler that links for it."""
    if arch != here and (device is None or compiler is None):
        raise TuneError(
            f"kernels for {arch} cannot be measured here: name a device that can (--rpc-tracker, "
            f"--rpc-key) and what links for it, such as --cross-compiler {arch}-linux-gnu-g++"
        )
    if compiler is not None:
        check_compiler(compiler)


def cannot_link(error: BaseException) -> UserError | None:
    """What to say of an error of TVM's, if it is that the compiler does not link the target's code."""
    _, failed, said = str(error).partition("Compilation error:")
    if not failed:
        return None
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    why = next((line for line in lines if "file" in line), lines[0]).split(": ", 1)[-1]
    return UserError(
        f"the compiler cannot link code for the target ({why}); name one that can, such as "
        "--cross-compiler aarch64-linux-gnu-g++"
    )
