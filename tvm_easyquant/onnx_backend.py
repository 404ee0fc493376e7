"""An ``onnx.backend`` of ours: quantized models are imported, compiled for a CPU and run, float ones are
read and run in numpy, without TVM.

What must be a constant (scales, zero points, weights, axes) may be an input of the model, as it is in
ONNX's own node tests; then it is bound when the model runs, and the model read anew if it changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx.backend.base import Backend, BackendRep

from .errors import GraphError
from .readers.onnx_file import readable
from .readers.onnx_quantized import check_types, is_quantized

if TYPE_CHECKING:
    from .host import Built
    from .workflow import Imported

#: operator -> the inputs that must be constants
CONSTANT = {
    "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2), "QLinearConv": range(1, 9),
    "QLinearMatMul": range(1, 8), "ConvInteger": (1, 2, 3), "MatMulInteger": (1, 2, 3),
}  # fmt: skip


#: operators that compute with all of their inputs; of the others all but the first say how
OPERANDS = (
    "Add", "And", "BitShift", "Concat", "Div", "Einsum", "Equal", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "MatMul", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum",
    "Where", "Xor",
)  # fmt: skip


class _Rep(BackendRep):
    """A model ready to run: ``run(inputs)`` takes its inputs in order and returns its outputs.

    constants: those of its inputs that are bound when it runs.
    """

    def __init__(self, model, constants):
        self.model = model
        given = {t.name for t in model.graph.initializer}
        self.inputs = [value.name for value in model.graph.input if value.name not in given]
        wanted = {
            node.input[i] for node in model.graph.node for i in constants(node) if i < len(node.input)
        }
        self.constants = [name for name in self.inputs if name in wanted]
        self.bound: tuple | None = None
        self.ready: Any = None

    def _prepared(self, values: Mapping[str, np.ndarray]) -> Any:
        """What `_prepare` makes of the model with its constants bound; kept until they change."""
        import onnx
        from onnx import numpy_helper

        bound = tuple((name, values[name].dtype, values[name].tobytes()) for name in self.constants)
        if bound != self.bound:
            model = onnx.ModelProto()
            model.CopyFrom(self.model)
            for name in self.constants:
                model.graph.initializer.append(numpy_helper.from_array(values[name], name))
            self.bound, self.ready = bound, self._prepare(model)
        return self.ready

    def _values(self, inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        if len(inputs) != len(self.inputs):
            names = ", ".join(map(readable, self.inputs))
            raise GraphError(f"the model has {len(self.inputs)} inputs ({names}), {len(inputs)} were given")
        return dict(zip(self.inputs, map(np.asarray, inputs), strict=True))

    def _prepare(self, model) -> Any:
        raise NotImplementedError


class FloatRep(_Rep):
    """A float model, read by `readers.onnx_float` and run in numpy."""

    def __init__(self, model):
        super().__init__(model, lambda node: () if node.op_type in OPERANDS else range(1, len(node.input)))

    def _prepare(self, model):
        from .readers import onnx_float

        return onnx_float.load(model)

    def run(self, inputs: Sequence[np.ndarray], **kwargs) -> tuple:
        """Outputs in the model's own types. Raises LoadError where the model is refused."""
        values = self._values(inputs)
        graph = self._prepared(values)
        found = graph.run({name: values[name] for name in graph.inputs})
        return tuple(found[value.name] for value in self.model.graph.output)


class QuantizedRep(_Rep):
    """A quantized model, compiled for ``target``."""

    def __init__(self, model, target: str):
        check_types(model)
        super().__init__(model, lambda node: CONSTANT.get(node.op_type, ()))
        self.target = target

    def _prepare(self, model) -> tuple[Imported, Built]:
        from .host import installed
        from .workflow import import_quantized

        host = installed()
        taken = import_quantized(model, host=host)
        return taken, taken.build(self.target)

    def run(self, inputs: Sequence[np.ndarray], **kwargs) -> tuple:
        """Outputs as the model's own types: integers where it has integers."""
        values = self._values(inputs)
        taken, run = self._prepared(values)
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
    """``prepare(model)``, on a CPU; ``target`` is TVM's (plain ``llvm``), for quantized models."""

    @classmethod
    def prepare(cls, model, device: str = "CPU", target: str = "llvm", **kwargs) -> FloatRep | QuantizedRep:
        """A model (``onnx.ModelProto``) ready to run; QuantizedModelError where we refuse it."""
        super().prepare(model, device, **kwargs)
        return QuantizedRep(model, target) if is_quantized(model) else FloatRep(model)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether it is the CPU, the only one."""
        return device == "CPU"


prepare, run_model, supports_device = (
    QuantizedBackend.prepare, QuantizedBackend.run_model, QuantizedBackend.supports_device,
)  # fmt: skip
