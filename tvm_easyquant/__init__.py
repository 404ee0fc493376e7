"""EasyQuant post-training quantization (arXiv 2006.16669) for Apache TVM.

`quantize` does the main job in one call; `EasyQuant` is the same as a Relay pass. Importing this
package imports no TVM and registers nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what `__getattr__` loads, for type checkers
    from .graph import Graph as Graph
    from .numerics import QuantConfig as QuantConfig
    from .numerics import Scale as Scale
    from .pipeline import Quantized as Quantized
    from .pipeline import import_quantized as import_quantized
    from .pipeline import quantize as quantize
    from .relay_build import Executor as Executor
    from .relay_build import build as build
    from .relay_frontend import from_relay as from_relay
    from .relay_frontend import load_onnx as load_onnx
    from .relay_pass import EasyQuant as EasyQuant
    from .relay_rewrite import rewrite as rewrite
    from .scale_table import ScaleTable as ScaleTable

__version__ = "0.1.0"

#: public name -> the module it lives in; loaded on first use, so that `import tvm_easyquant` is light
_PUBLIC = {
    "quantize": "pipeline",
    "Quantized": "pipeline",
    "import_quantized": "pipeline",
    "QuantConfig": "numerics",
    "Scale": "numerics",
    "ScaleTable": "scale_table",
    "Graph": "graph",
    "load_onnx": "relay_frontend",
    "from_relay": "relay_frontend",
    "EasyQuant": "relay_pass",
    "rewrite": "relay_rewrite",
    "build": "relay_build",
    "Executor": "relay_build",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__():
    return sorted([*globals(), *__all__])
