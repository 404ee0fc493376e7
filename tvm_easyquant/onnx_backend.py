"""Our compiler as an ``onnx.backend``: quantized ONNX models, imported, compiled for a CPU and run.

What quantization needs as constants (scales, zero points, weights) may be an input of the model, as it
is in ONNX's own node tests; then it is bound when the model runs, and the model compiled anew if it
changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from onnx.backend.base import Backend, BackendRep

from .readers.onnx_quantized import check_types

if TYPE_CHECKING:
    from .host import Built
    from .pipeline import Imported

#: operator -> the inputs that must be constants
CONSTANT = {
    "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2), "QLinearConv": range(1, 9),
    "QLinearMatMul": range(1, 8), "ConvInteger": (1, 2, 3), "MatMulInteger": (1, 2, 3),
}  # fmt: skip


class QuantizedRep(BackendRep):
    """A model ready to run: ``run(inputs)`` takes its inputs in order and returns its outputs."""

    def __init__(self, model, target: str):
        check_types(model)
        self.model, self.target = model, target
        given = {t.name for t in model.graph.initializer}
        self.inputs = [value.name for value in model.graph.input if value.name not in given]
        wanted = {
            node.input[i]
            for node in model.graph.node
            for i in CONSTANT.get(node.op_type, ())
            if i < len(node.input)
        }
        self.constants = [name for name in self.inputs if name in wanted]
        self.bound: tuple = ()
        self.compiled: tuple[Imported, Built] | None = None

    def _compile(self, values: Mapping[str, np.ndarray]):
        """The model with its constants bound, imported and compiled; kept until they change."""
        import onnx
        from onnx import numpy_helper

        from .host import installed
        from .pipeline import import_quantized

        bound = tuple((name, values[name].dtype, values[name].tobytes()) for name in self.constants)
        if self.compiled is None or bound != self.bound:
            model = onnx.ModelProto()
            model.CopyFrom(self.model)
            for name in self.constants:
                model.graph.initializer.append(numpy_helper.from_array(values[name], name))
            host = installed()
            taken = import_quantized(model, host=host)
            self.bound, self.compiled = bound, (taken, taken.build(self.target))
        return self.compiled

    def run(self, inputs: Sequence[np.ndarray], **kwargs) -> tuple:
        """Outputs as the model's own types: integers where it has integers."""
        values = dict(zip(self.inputs, map(np.asarray, inputs), strict=True))
        taken, run = self._compile(values)
        feed = {}
        for name in run.inputs:
            encoding = taken.inputs.get(name)
            feed[name] = values[name] if encoding is None else encoding.dequantize(values[name])
        results = []
        for value, array in zip(self.model.graph.output, run(feed), strict=True):
            encoding = taken.outputs.get(value.name)
            results.append(array if encoding is None else encoding.quantize(array))
        return tuple(results)


class QuantizedBackend(Backend):
    """``prepare(model)``, for quantized models on a CPU; ``target`` is TVM's (plain ``llvm``)."""

    @classmethod
    def prepare(cls, model, device: str = "CPU", target: str = "llvm", **kwargs) -> QuantizedRep:
        """A model (``onnx.ModelProto``) ready to run; QuantizedModelError where we refuse it."""
        super().prepare(model, device, **kwargs)
        return QuantizedRep(model, target)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether it is the CPU, the only one."""
        return device == "CPU"


prepare, run_model, supports_device = (
    QuantizedBackend.prepare, QuantizedBackend.run_model, QuantizedBackend.supports_device,
)  # fmt: skip
