"""The TVM this front end runs on: one place that imports it and says what to do without it."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator

from ..errors import TVMMissing

INSTALL = (
    "tvm_easyquant needs Apache TVM 0.19 with Relay: install the extra with "
    "pip install 'tvm_easyquant[relay]' in an environment of its own, or put your own build of TVM 0.19 on "
    "PYTHONPATH"
)
if sys.platform != "linux":
    INSTALL = (
        "building a network is for Linux, where pip install 'tvm_easyquant[relay]' brings TVM 0.19 "
        "with Relay; what needs no compiler works here: quantize, export-onnx, verify-onnx, evaluate"
    )


try:
    import tvm
    from tvm import relay
except (ImportError, OSError, RuntimeError) as _error:
    _reason = str(_error).strip().splitlines()[-1] if str(_error).strip() else type(_error).__name__
    raise TVMMissing(f"{INSTALL} ({_reason})") from None


@contextlib.contextmanager
def no_tophub() -> Iterator[None]:
    """Keep TVM from looking for downloadable schedules; the environment is restored."""
    before = os.environ.get("TOPHUB_LOCATION")
    os.environ["TOPHUB_LOCATION"] = "NONE"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOPHUB_LOCATION"]
        else:
            os.environ["TOPHUB_LOCATION"] = before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No look-ups of schedules to download, unless the environment names a place for them, and no word of
    AutoTVM's that operators have not been tuned: ours need not be."""
    logger = logging.getLogger("autotvm")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.nullcontext() if "TOPHUB_LOCATION" in os.environ else no_tophub():
            yield
    finally:
        logger.setLevel(before)


#: setting of a PassContext: on LLVM 22, TVM 0.19 fails on vectors bound to a name, which this pass makes
NO_CSE = {"tir.disable_cse_tir": True}

__all__ = ["NO_CSE", "no_tophub", "quiet", "relay", "tvm"]
