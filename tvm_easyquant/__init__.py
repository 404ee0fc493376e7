"""EasyQuant post-training quantization (arXiv 2006.16669) for Apache TVM.

`quantize` does the main job in one call; `EasyQuant` is the same as a Relay pass. Importing this
package imports no TVM and registers nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what `__getattr__` loads, for type checkers
    from . import demo as demo
    from . import deploy as deploy
    from . import errors as errors
    from . import evaluate as evaluate
    from . import images as images
    from . import onnx_backend as onnx_backend
    from .measure.accuracy import Evaluation as Evaluation
    from .network.graph import Graph as Graph
    from .relax.passes import pipeline as pipeline
    from .relax.passes import register_pipeline as register_pipeline
    from .relax.read import from_relax as from_relax
    from .relay.build import BUILD_CONFIG as BUILD_CONFIG
    from .relay.build import Built as Built
    from .relay.build import Executor as Executor
    from .relay.build import build as build
    from .relay.passes import EasyQuant as EasyQuant
    from .relay.passes import LowerInteger as LowerInteger
    from .relay.read import from_relay as from_relay
    from .relay.rewrite import rewrite as rewrite
    from .scales.numerics import QuantConfig as QuantConfig
    from .scales.numerics import Scale as Scale
    from .scales.table import ScaleTable as ScaleTable
    from .workflow import Quantized as Quantized
    from .workflow import import_quantized as import_quantized
    from .workflow import load as load
    from .workflow import load_onnx as load_onnx
    from .workflow import quantize as quantize

__version__ = "0.1.0"

#: public name -> the module it lives in; loaded on first use, so that `import tvm_easyquant` is light.
#: What is relay's here comes from the installed host's file of the same name; what is relax's that host
#: alone has
_PUBLIC = {
    "quantize": "workflow",
    "Quantized": "workflow",
    "import_quantized": "workflow",
    "Evaluation": "measure.accuracy",
    "QuantConfig": "scales.numerics",
    "Scale": "scales.numerics",
    "ScaleTable": "scales.table",
    "Graph": "network.graph",
    "load": "workflow",
    "load_onnx": "workflow",
    "from_relay": "relay.read",
    "from_relax": "relax.read",
    "EasyQuant": "relay.passes",
    "LowerInteger": "relay.passes",
    "pipeline": "relax.passes",
    "register_pipeline": "relax.passes",
    "rewrite": "relay.rewrite",
    "build": "relay.build",
    "Built": "relay.build",
    "BUILD_CONFIG": "relay.build",
    "Executor": "relay.build",
}
#: modules of the package that are public, too
_MODULES = ("demo", "deploy", "errors", "evaluate", "images", "onnx_backend")
__all__ = sorted(_PUBLIC)  # noqa: PLE0605  # a list, which a checker does not see


def __getattr__(name: str):
    import importlib

    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room, _, file = _PUBLIC[name].rpartition(".")
    if room == "relay" and name != "from_relay":
        from .host import installed

        room = installed().name
    module = f"{room}.{file}" if room else file
    return getattr(importlib.import_module(f".{module}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*_PUBLIC, *_MODULES, "__version__"])
