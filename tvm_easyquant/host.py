"""The TVM this front end runs on: one place that imports it and says what to do without it."""

from __future__ import annotations

INSTALL = (
    "tvm_easyquant needs Apache TVM 0.19 with Relay: install the extra with "
    "pip install 'tvm_easyquant[relay]', or put your own build of TVM 0.19 on PYTHONPATH"
)


class TVMMissing(ImportError):
    """No usable TVM in this Python."""


try:
    import tvm
    from tvm import relay
except (ImportError, OSError, RuntimeError) as _error:
    _reason = str(_error).strip().splitlines()[-1] if str(_error).strip() else type(_error).__name__
    raise TVMMissing(f"{INSTALL} ({_reason})") from None

__all__ = ["relay", "tvm"]
