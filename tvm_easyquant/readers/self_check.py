"""What was read, compared with ONNX Runtime on one sample: the check at the door.

Both run the whole network. Where an output differs, every tensor is compared, and the first operator that
makes other numbers of the same inputs is named. Without ONNX Runtime, `onnx.reference` judges small
networks.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import LoadError, last_line
from ..network.graph import Graph, run
from ..network.tensors import NUMPY
from .onnx_file import check, cut, fixed_shapes, inline, read_onnx
from .onnx_float import load
from .onnx_model import Site, prepare, run_node
from .onnx_op import NotConstant, plain

#: largest difference of an output, of its largest number: in float32, and of a model in half precision
CLOSE, HALF = 1e-4, 2e-2
#: multiply-accumulates that `onnx.reference` is asked for
REFERENCE_MACS = 50_000_000
#: operators that `onnx.reference` gets wrong -> the opset from which it is right; None: not always in any
DOUBTED = {
    "BatchNormalization": 14, "Softmax": 13, "LogSoftmax": 13, "Hardmax": 13, "LRN": None, "MaxPool": None,
    "LpNormalization": None, "GlobalMaxPool": None, "CenterCropPad": None, "Resize": None, "Upsample": None,
}  # fmt: skip
HALVES = (10, 16)  # TensorProto.FLOAT16, BFLOAT16
#: operators that jump: a rounding before them may change what they make
JUMPS = ("Floor", "Ceil", "Round", "Sign", "TopK", "ArgMax", "ArgMin", "Cast", "Hardmax", "Equal", "Less",
         "Greater", "LessOrEqual", "GreaterOrEqual", "ThresholdedRelu", "Shrink", "Resize", "Upsample",
         "MaxPool", "Where")  # fmt: skip
UNCHECKED = "what was read was not compared with the model"
CURE = (
    "export the model with another opset, cut the network before it (outputs, --outputs), or go on without "
    "this check (check=False, --no-check), and report it"
)


@dataclass(frozen=True)
class SelfCheck:
    """What `load` made of an ONNX model, to be compared with it: called with a sample {input: NCHW array}.

    model, input_shapes, batch, outputs: as `load` took them; graph: what it made of them.
    """

    model: Any
    graph: Graph
    input_shapes: Mapping[str, Sequence[int]] | None = None
    batch: int | None = None
    outputs: Sequence[str] | None = None

    def __call__(self, sample: Mapping[str, np.ndarray]) -> str | None:
        """What there is to tell, in a line. Raises LoadError, which names the first node that differs."""
        model, name = read_onnx(self.model)
        model = inline(model if self.outputs is None else cut(model, self.outputs, name), name)
        for node in model.graph.node:
            while len(node.output) > 1 and not node.output[-1]:
                node.output.pop()  # ONNX Runtime takes the process down with such a BatchNormalization
        names = [value.name for value in model.graph.output]
        told = f"{UNCHECKED}: onnx.reference would take long on this network; install onnxruntime"
        for judge, judged in _judges(self.graph.macs):
            try:
                theirs = judged(model, sample)
                break
            except Exception as error:  # noqa: BLE001  # both raise types of their own
                told = f"{UNCHECKED}: {judge} cannot run it ({last_line(error)})"
        else:
            return told
        ours = self.graph.run(sample)
        close = HALF if _halves(model) else CLOSE
        apart = [i for i, n in enumerate(names) if not same(ours[n], theirs[i], close)]
        if not apart:
            return None
        return _Search(model, name, self, sample, judge, judged, close).verdict(apart)


@dataclass(frozen=True)
class HostCheck:
    """A model of another format, compared with what loaded it: ``original()`` makes the function that runs
    it, {input: array} -> outputs in the order of the graph's."""

    graph: Graph
    original: Callable[[], Callable[[dict], Sequence[np.ndarray]]]

    def __call__(self, sample: Mapping[str, np.ndarray]) -> str | None:
        """None. Raises LoadError, which names the first output that differs."""
        theirs, ours = self.original()(dict(sample)), run(self.graph, sample)
        for name, wanted in zip(self.graph.outputs, theirs, strict=True):
            if not same(ours[name], wanted):
                raise LoadError(
                    f"{self.graph.name}: output {name} is not what the model's own framework computes: "
                    "export it to ONNX, or go on without this check (--no-check), and report it"
                )
        return None


def _judges(macs: int) -> Iterator[tuple[str, Callable]]:
    """(who judges, what runs a model), the best first."""
    if importlib.util.find_spec("onnxruntime") is not None:
        yield "ONNX Runtime", _by_onnxruntime
    if macs <= REFERENCE_MACS:
        yield "onnx.reference", _by_reference


def _by_onnxruntime(model, sample) -> list:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, dict(sample))


def _by_reference(model, sample) -> list:
    from onnx.reference import ReferenceEvaluator

    with np.errstate(all="ignore"):
        return list(ReferenceEvaluator(model).run(None, dict(sample)))


def _halves(model) -> bool:
    """Whether a model computes in half precision somewhere."""
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    kinds |= {value.type.tensor_type.elem_type for value in model.graph.input}
    kinds |= {a.i for node in model.graph.node if node.op_type == "Cast" for a in node.attribute}
    return bool(kinds & set(HALVES))


def same(ours, theirs, close: float = CLOSE) -> bool:
    """Whether two arrays are equal: integers exactly, floats by ``close`` of the largest number."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.shape != theirs.shape:
        return False
    if ours.dtype.kind != "f" or theirs.dtype.kind != "f":
        return np.array_equal(ours, theirs)
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    finite = np.isfinite(theirs)
    largest = np.abs(theirs[finite]).max(initial=0)
    apart = np.abs(ours[finite] - theirs[finite]).max(initial=0)
    return bool(apart <= close * largest and np.array_equal(ours[~finite], theirs[~finite], equal_nan=True))


def _doubted(site: Site) -> bool:
    """Whether `onnx.reference` may be wrong about a node."""
    op = site.node.op_type
    if op in DOUBTED:
        right = DOUBTED[op]
        return right is None or site.opset < right
    return op == "Conv" and site.attributes.get("auto_pad") == "VALID"


def _without_branches(model, prepared):
    """The model with the branches that its Ifs take in their place: their tensors can be asked for."""
    if not prepared.branches:
        return model
    from onnx import helper, numpy_helper

    flat = type(model)()
    flat.CopyFrom(model)
    graph = flat.graph
    del graph.node[:], graph.initializer[:], graph.output[:]
    graph.node.extend(site.node for site in prepared.sites)
    read = {tensor for site in prepared.sites for tensor in site.inputs} & set(prepared.constants)
    graph.initializer.extend(numpy_helper.from_array(prepared.constants[t], t) for t in sorted(read))
    graph.output.extend(map(helper.make_empty_tensor_value_info, prepared.outputs))
    return flat


class _Search:
    """For the first node that differs."""

    def __init__(self, model, name, asked: SelfCheck, sample, judge, judged, close):
        self.judge, self.close, self.name = judge, close, name
        check(model, name, domains=())
        shapes = fixed_shapes(model, asked.input_shapes or {}, asked.batch, name)
        self.prepared = prepare(model, shapes, name)
        self.sites = self.prepared.sites
        tensors = [output for site in self.sites for output in site.outputs if output]
        whole = cut(_without_branches(model, self.prepared), tensors, name)
        tensors = [value.name for value in whole.graph.output]
        feed = {name: array for name, array in sample.items() if name in shapes}
        theirs = dict(zip(tensors, judged(whole, feed), strict=True))
        self.theirs = {**theirs, **feed}
        graph = load(whole, asked.input_shapes, asked.batch)
        self.ours = {**graph.run({name: feed[name] for name in graph.inputs}), **feed}

    def verdict(self, apart: Sequence[int]) -> str | None:
        """What there is to tell; apart: the places of the outputs that differ."""
        told, doubted = None, False
        for site in self.sites:
            for index, output in enumerate(site.outputs):
                if not output or same(self.ours[output], self.theirs[output], self.close):
                    continue
                if not same(self._alone(site, index, self.theirs), self.theirs[output], self.close):
                    if self.judge == "onnx.reference" and _doubted(site):
                        doubted = True
                        continue
                    if not self._by_specification(site, index):
                        raise LoadError(self._line(site, output))
                    told = told or f"{site}: {self.judge} computes otherwise than ONNX's specification"
                elif not same(self._alone(site, index, self.ours), self.ours[output], self.close):
                    raise LoadError(self._line(site, output))  # the operator is right, the graph is not
        if told is None and not doubted and not any(site.node.op_type in JUMPS for site in self.sites):
            # every operator is right, and their like folded into each other are not
            for output in (self.prepared.outputs[place] for place in apart):
                if same(self.ours[output], self.theirs[output], self.close):
                    maker = next(site for site in self.sites if output in site.outputs)
                    raise LoadError(self._line(maker, output))
        return told

    def _line(self, site, output) -> str:
        ours, theirs = np.asarray(self.ours[output]), np.asarray(self.theirs[output])
        if ours.shape != theirs.shape:
            what = f"its output {output} has the shape {ours.shape}, there it has {theirs.shape}"
        elif ours.dtype.kind == "f":
            with np.errstate(invalid="ignore"):
                apart = np.nanmax(np.abs(ours.astype(np.float64) - theirs))
            what = f"its output {output} is {apart:.3g} apart, of {np.nanmax(np.abs(theirs)):.3g}"
        else:
            what = f"its output {output} has other numbers"
        return f"{self.name}: {site} computes otherwise than {self.judge}: {what}; {CURE}"

    def _alone(self, site, index, values):
        """An output of a node by our rule, on these tensors."""
        op, tensors = self.prepared.handle(site, index)
        try:
            return op.emit(NUMPY, [plain(np.asarray(values[t])) for t in tensors])
        except NotConstant:
            return values[site.outputs[index]]  # by onnx.reference: not ours

    def _by_specification(self, site, index) -> bool:
        """Whether `onnx.reference` agrees with us about a node on the judge's inputs."""
        if self.judge == "onnx.reference":
            return False
        from onnx import helper

        known = {t: np.asarray(array) for t, array in self.theirs.items()} | self.prepared.constants
        try:
            made = run_node(site, [helper.make_opsetid("", site.opset)], known)
        except LoadError:
            return False
        return same(self._alone(site, index, self.theirs), made[index], self.close)


__all__ = ["HostCheck", "SelfCheck", "same"]
