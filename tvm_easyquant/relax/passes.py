"""The names of the passes that this host has not got yet; asking for one says so."""

from __future__ import annotations

from ..errors import HostError


class _Missing:
    def __init__(self, *arguments, **options):
        raise HostError(
            f"the relax host has no pass {type(self).__name__} yet: quantize(...).build(target) does "
            "the same from ONNX or a Graph; TVM 0.19 (pip install 'tvm_easyquant[relay]') has the pass"
        )


class EasyQuant(_Missing):
    """Raises HostError."""


class LowerInteger(_Missing):
    """Raises HostError."""


__all__ = ["EasyQuant", "LowerInteger"]
