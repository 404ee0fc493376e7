"""The TVM this host runs on: one place that imports it and says what to do without it."""

from __future__ import annotations

import importlib.util
import re

from ..errors import TVMMissing

INSTALL = (
    "the relax host needs apache-tvm 0.27: pip install 'tvm_easyquant[relax]', in an environment without "
    "TVM 0.19, whose package is called tvm, too"
)
OLDEST = (0, 27)


try:
    import tvm
except (ImportError, OSError, RuntimeError) as _error:
    _reason = str(_error).strip().splitlines()[-1] if str(_error).strip() else type(_error).__name__
    raise TVMMissing(f"{INSTALL} ({_reason})") from None
if tuple(map(int, re.findall(r"\d+", str(tvm.__version__))[:2])) < OLDEST:
    raise TVMMissing(f"{INSTALL} (here is TVM {tvm.__version__})")
if importlib.util.find_spec("tvm.relay") is not None:
    raise TVMMissing(
        f"the files of TVM {tvm.__version__} are mixed with those of an older one: make a new environment, "
        "or pip uninstall both and install one again"
    )

from tvm import relax  # noqa: E402  # of this TVM, not of an older one
from tvm.relax import vm_build  # noqa: E402

#: the first apache-tvm-ffi that crashes the process when a module is saved as JSON
CRASHES = (0, 1, 15)


def ffi_version() -> str:
    """The version of apache-tvm-ffi; "" if nobody says."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("apache-tvm-ffi")
    except PackageNotFoundError:
        return ""


def ffi_crashes() -> str | None:
    """The version of apache-tvm-ffi, if it is one that crashes where JSON is saved; else None."""
    found = ffi_version()
    return found if tuple(map(int, re.findall(r"\d+", found)[:3])) >= CRASHES else None


def keep_errors() -> None:
    """Let errors of ours that are raised within a pass leave TVM as they are, not as a RuntimeError."""
    import tvm_ffi

    from topi_ext import errors as kernels

    from .. import errors

    for cls in (*vars(errors).values(), *vars(kernels).values()):
        # made again of its message alone
        if isinstance(cls, type) and issubclass(cls, Exception) and "__init__" not in vars(cls):
            tvm_ffi.register_error(f"tvm_easyquant.{cls.__name__}", cls)


__all__ = ["INSTALL", "ffi_crashes", "ffi_version", "keep_errors", "relax", "tvm", "vm_build"]
