"""Our integers against ONNX Runtime's, tensor by tensor, on the same inputs.

Every stored tensor of the QDQ model is made an output, and two questions are asked of it. *In all*: how
many values differ, when both run from the input? *Of its own*: how many differ when our layer gets
ONNX Runtime's own inputs of that layer? The second is not polluted by what happened before, so it
names the layer to blame. A difference of its own is *explained* if the exact result lies so close to
a tie that float32 sums of that length, in whatever order, may round to the other side (`_error`). A model
that others quantized may keep its biases in float, where ours are whole steps of the accumulator: what
that moves counts as explained, too.

ONNX Runtime's kernel of uint8 by int8 for x86 without VNNI adds pairs of products in int16, where those of
8 bits can saturate. A difference that is just what this loses (`lost_pairs`) is counted as ``saturated``:
explained, and ONNX Runtime's error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from topi_ext import reference

from ..errors import VerifyError
from ..network import resample
from ..network.expression import compute64
from ..network.graph import Graph
from ..network.layout import to_nchw, to_nhwc
from ..network.node import Node, model_shape
from ..network.ops import is_depthwise, linear, mean_shares
from ..scales.integer import Sample, Scales, function_values, node_limits
from ..scales.numerics import Scale, integer_limits
from ..scales.table import ScaleTable
from .qdq import stored_name, to_qdq

if TYPE_CHECKING:
    from ..host import Host

UNIT = 2.0**-24  # of float32: the relative error of one rounding
FLOAT_FUNCTION = 2.0**-18  # how far a function of another library may be, of its value and of 1


@dataclass
class TensorDifference:
    """One stored tensor over all inputs; steps are those of its scale.

    different, largest: of both networks from the input on. own, own_largest: of this layer on ONNX
    Runtime's inputs. saturated: those of ``own`` that ONNX Runtime's int16 pairs make. unexplained: those
    that they and rounding in float32 cannot make. tie: the farthest that any other of ``own`` lies from a
    tie, in steps.
    """

    tensor: str
    layer: str
    op: str
    values: int = 0
    different: int = 0
    largest: int = 0
    own: int = 0
    own_largest: int = 0
    saturated: int = 0
    unexplained: int = 0
    tie: float = 0.0

    def count(self, ours, theirs):
        apart = np.abs(ours.astype(np.int64) - theirs)
        self.values += apart.size
        self.different += int(np.count_nonzero(apart))
        self.largest = max(self.largest, int(apart.max(initial=0)))


@dataclass
class Verification:
    """tensors: in program order. outputs: output -> largest difference of the float outputs, in real units.

    labels: inputs whose largest output (the predicted class) is the same in both, of ``inputs``.
    """

    runtime: str
    optimized: bool
    inputs: int = 0
    labels: int = 0
    tensors: list[TensorDifference] = field(default_factory=list)
    outputs: dict[str, float] = field(default_factory=dict)

    @property
    def first(self) -> TensorDifference | None:
        """The first tensor that differs, None if there is none."""
        return next((t for t in self.tensors if t.different), None)

    @property
    def largest(self) -> int:
        return max((t.largest for t in self.tensors), default=0)

    @property
    def unexplained(self) -> int:
        return sum(t.unexplained for t in self.tensors)

    def total(self, what: str) -> int:
        return sum(getattr(t, what) for t in self.tensors)

    def to_dict(self) -> dict:
        first = self.first
        return {
            "runtime": self.runtime,
            "graph_optimizations": self.optimized,
            "inputs": self.inputs,
            "values": self.total("values"),
            "different": self.total("different"),
            "largest_steps": self.largest,
            "first_layer": first.layer if first else None,
            "own_differences": self.total("own"),
            "saturated": self.total("saturated"),
            "unexplained": self.unexplained,
            "farthest_from_tie_steps": max((t.tie for t in self.tensors), default=0.0),
            "same_label": self.labels,
            "outputs": dict(self.outputs),
            "tensors": [asdict(t) for t in self.tensors],
        }

    def __str__(self):
        how = "with graph optimizations" if self.optimized else "without graph optimizations"
        head = f"{self.runtime} {how}, {self.inputs} inputs, {self.total('values')} stored values: "
        if self.first is None:
            return head + "all equal"
        own, saturated = self.total("own"), self.total("saturated")
        if self.unexplained:
            why = f"{self.unexplained} of them more than rounding in float32"
        elif own == saturated:
            why = "none of them next to a tie"
        else:
            tie = max(t.tie for t in self.tensors)
            why = f"{own - saturated} next to a tie (at most {tie:.1e} steps away)"
        lines = [
            head + f"{self.total('different')} differ, by at most {self.largest} steps; "
            f"the first layer that differs is {self.first.layer}",
            f"{own} differences of a layer's own, {why}",
        ]
        if saturated:
            lines.append(
                f"{saturated} of them are wrong in ONNX Runtime: on a CPU without VNNI it adds pairs of "
                "products in int16, which saturates at 8 bits (7 bits cannot)"
            )
        shown = [t for t in self.tensors if t.own] or [self.first]
        width = max(len(t.layer) for t in shown)
        lines += [
            f"  {t.layer:{width}} {t.op:12} own {t.own} of {t.values}, largest {t.own_largest}, "
            + (f"saturated {t.saturated}, " if t.saturated else "")
            + f"unexplained {t.unexplained}"
            for t in shown
        ]
        return "\n".join(lines)


def load(path):
    """An ONNX file as ``onnx.ModelProto``; VerifyError if it is none."""
    import onnx

    try:
        return onnx.load(path)
    except Exception as error:  # noqa: BLE001  # onnx raises types of its own
        reason = " ".join(str(error).split())
        raise VerifyError(f"{path} is not an ONNX file ({reason})") from None


def _onnxruntime():
    try:
        import onnxruntime
    except ImportError:
        raise VerifyError("comparing needs ONNX Runtime: pip install onnxruntime") from None
    return onnxruntime


def session(model, optimize: bool = True, threads: int | None = None):
    """An ONNX Runtime session on the CPU; VerifyError if it refuses the model."""
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    if not isinstance(model, bytes):
        model = model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  # onnxruntime raises types of its own
        raise VerifyError(f"ONNX Runtime does not load the model: {' '.join(str(error).split())}") from None


def verify(
    graph: Graph,
    table: ScaleTable,
    samples: Iterable[Mapping[str, np.ndarray]],
    *,
    model=None,
    names: Mapping[str, tuple[str, int]] | None = None,
    optimize: bool = True,
    integers: Callable[[Mapping], Mapping[str, np.ndarray]] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Verification:
    """Compare our integers with ONNX Runtime's on ``samples`` ({input: NCHW}).

    model: a quantized model (``onnx.ModelProto``); None for the export of ``graph`` and ``table``. names:
    {stored tensor: (its name in ``model``, what to add to its numbers to get ours)}; None for the names of
    `qdq.to_qdq`; those of `workflow.import_quantized` are its ``origin``. integers(feed) ->
    {stored tensor: uint8 NHWC, "output NAME": float32}: None for the numpy reference, else as
    `compiled_integers`. Raises VerifyError.
    """
    comparison = _Comparison(graph, table, model, names, optimize)
    for i, feed in enumerate(samples):
        comparison.add(graph.check_inputs(feed, f"input {i}"), integers)
        if progress is not None:
            progress(i + 1)
    if not comparison.result.inputs:
        raise VerifyError("there is no input to compare on")
    return comparison.result


def stored_tensors(graph: Graph, table: ScaleTable) -> list[str]:
    """The stored tensors of a graph under a table, in program order."""
    graph = table.prepared(graph)
    stored = table.check(graph).site_of
    return [node.name for node in graph if node.name in stored]


def with_outputs(model, names: Mapping[str, tuple[str, int]], graph: Graph):
    """A copy of ``model`` that also returns the tensors ``names`` (see `verify`), and those it has;
    VerifyError if it has none of them."""
    import onnx
    from onnx import helper

    made = {name for node in model.graph.node for name in node.output}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {tensor: name for tensor, name in names.items() if name[0] in made}
    if not known:
        wanted = next((name for name, _ in names.values()), "a quantized tensor")
        raise VerifyError(
            f"the ONNX model has none of the tensors of the table, such as {wanted}; it was not made by "
            "export-onnx from this model"
        )
    have = {value.name for value in copy.graph.output}
    for tensor, (name, offset) in known.items():
        if name not in have:
            kind = onnx.TensorProto.INT8 if offset else onnx.TensorProto.UINT8
            copy.graph.output.append(helper.make_tensor_value_info(name, kind, model_shape(graph[tensor])))
    return copy, known


class _Comparison:
    def __init__(self, graph, table, model, names, optimize):
        onnxruntime = _onnxruntime()
        self.graph = graph = table.prepared(graph)
        self.table, self.plan = table, table.check(graph)
        self.theirs = names is not None  # a model of others, whose biases may be float
        tensors = stored_tensors(graph, table)
        names = {t: (stored_name(t), 0) for t in tensors} if names is None else names
        if model is None:
            model, self.known = to_qdq(graph, table, tensors), names
        else:
            model, self.known = with_outputs(model, names, graph)
        self.session = session(model, optimize)
        self.names = [value.name for value in self.session.get_outputs()]
        wanted = {value.name for value in self.session.get_inputs()}
        mine, theirs = sorted(graph.inputs), sorted(wanted)
        if mine != theirs or len(self.names) < len(graph.outputs):
            raise VerifyError(
                f"the ONNX model takes {theirs} and has {len(self.names)} outputs, the one of the table "
                f"takes {mine} and has {len(graph.outputs)}"
            )
        self.scales = Scales.of_table(graph, self.plan, table)
        self.result = Verification(f"ONNX Runtime {onnxruntime.__version__}", optimize)
        for tensor in (t for t in tensors if t in self.known):
            node = graph[self.plan.fused.get(tensor, tensor)]
            self.result.tensors.append(TensorDifference(tensor, node.name, node.op))

    def add(self, feed, integers):
        values = dict(zip(self.names, self.session.run(None, dict(feed)), strict=True))
        theirs = {
            tensor: to_nhwc(values[name]).astype(np.int64) + offset
            for tensor, (name, offset) in self.known.items()
        }
        ours = reference_integers(self.graph, self.table)(feed) if integers is None else integers(feed)
        self.result.inputs += 1
        for row in self.result.tensors:
            row.count(ours[row.tensor], theirs[row.tensor])
            if row.different:
                self._own(row, feed, theirs)
        same = True
        for name, tensor in zip(self.names, self.graph.outputs, strict=False):
            kind = (
                np.float32 if self.graph[tensor].dtype == "float32" else np.float64
            )  # bool has no difference
            theirs_, mine = values[name].astype(kind), ours[f"output {tensor}"].astype(kind)
            with np.errstate(invalid="ignore"):  # infinities that are equal
                apart = float(np.where(theirs_ == mine, 0, np.abs(theirs_ - mine)).max(initial=0))
            self.result.outputs[name] = max(self.result.outputs.get(name, 0.0), apart)
            same &= int(values[name].argmax()) == int(ours[f"output {tensor}"].argmax())
        self.result.labels += same

    def _own(self, row, feed, theirs):
        """Count where our layer, on ONNX Runtime's inputs, says something else."""
        node = self.graph[row.layer]
        if any(t not in theirs for t in node.inputs):
            return
        if row.layer not in self.plan.integer:
            return  # a float node's value, quantized: float32 of another implementation
        sample = Sample({name: feed[name] for name in self.graph.inputs})
        sample.stored = {t: theirs[t].astype(np.uint8) for t in node.inputs}
        sample.advance(node, self.scales)
        ours = sample.stored_value(row.tensor, self.scales).astype(np.int64)
        apart = ours != theirs[row.tensor]
        if not apart.any():
            return
        got = theirs[row.tensor][apart]
        row.own += int(apart.sum())
        row.own_largest = max(row.own_largest, int(np.abs(ours[apart] - got).max()))
        if node.operator.integer in ("move", "input"):
            row.unexplained += int(apart.sum())
            return
        exact, error = (np.broadcast_to(a, apart.shape) for a in self._exact(node, sample))
        s = self.scales.decided(row.tensor)
        lo, hi = integer_limits(s, node_limits(node, self.scales))

        def reaches(exact):
            exact, error_ = self._through(node, exact, error, s)
            exact, error_ = exact[apart], error_[apart]
            least, most = (
                np.clip(np.rint(v) + s.zero_point, lo, hi) for v in (exact - error_, exact + error_)
            )  # fmt: skip
            return (got >= least) & (got <= most)

        wrong = ~reaches(exact)
        saturated = np.zeros_like(wrong)
        if wrong.any() and node.operator.layer:
            made = _Run(node, self.scales, [], self.theirs)
            unit = np.broadcast_to(made.unit, apart.shape)[apart]
            (tensor,) = node.inputs
            weight, zero = self.scales.integer_weight(node), self.scales.decided(tensor).zero_point
            lost = lost_pairs(node, weight, sample.stored[tensor], zero, apart)
            moved = exact.copy()
            moved[apart] += lost * unit
            saturated = wrong & reaches(moved)
        row.saturated += int(saturated.sum())
        row.unexplained += int((wrong & ~saturated).sum())
        exact = self._through(node, exact, error, s)[0][apart][~saturated]
        row.tie = max(row.tie, float(np.abs(np.abs(exact - np.floor(exact)) - 0.5).max(initial=0.0)))

    def _through(self, node: Node, exact, error, scale: Scale):
        """What the function fused to a node makes of its result and how far float32 may be from it, in
        steps; the same where there is none."""
        if (function := self.scales.function(node)) is None:
            return exact, error
        value = compute64(function, exact * scale.scale)
        sides = (compute64(function, (exact + side) * scale.scale) for side in (-error, error))
        apart = np.maximum(*(np.abs(side - value) for side in sides))
        return value / scale.scale, (apart + FLOAT_FUNCTION * (1 + np.abs(value))) / scale.scale

    def _exact(self, node: Node, sample: Sample):
        """The result before rounding, in steps, as float64, and how far float32 may be from it."""
        stored = [sample.stored[t] for t in node.inputs]
        return EXACT[node.op](_Run(node, self.scales, stored, self.theirs))


@dataclass(frozen=True)
class _Run:
    """One layer on its inputs; stored: uint8; theirs: the model is of others, whose biases may be float."""

    node: Node
    scales: Scales
    stored: list[np.ndarray]
    theirs: bool

    @property
    def steps(self) -> list[np.ndarray]:
        """float64: the inputs less their zero points."""
        zeros = (s.zero_point for s in self.inputs)
        return [q.astype(np.float64) - zero for q, zero in zip(self.stored, zeros, strict=True)]

    @property
    def inputs(self) -> list[Scale]:
        return [self.scales.decided(t) for t in self.node.inputs]

    @property
    def step(self) -> float:
        """Real units per step of the stored result."""
        return float(self.scales.decided(self.scales.plan.stored(self.node, self.scales.graph)).scale)

    @property
    def unit(self) -> np.ndarray:
        """float64: steps of the stored result per step of the accumulator."""
        return np.asarray(self.scales.unit(self.node), np.float64) / self.step


def _exact_layer(run: _Run):
    node, scales, unit, (steps,) = run.node, run.scales, run.unit, run.steps
    weight = scales.integer_weight(node).astype(np.float64)
    bias = scales.integer_bias(node).astype(np.float64)
    exact = (linear(steps, node, weight) + bias) * unit
    size = (linear(np.abs(steps), node, np.abs(weight)) + np.abs(bias)) * unit
    error = _error(node.weight.size // node.channels, size)
    if run.theirs:  # a float bias, which ours rounds to a step of the accumulator
        accumulator = np.asarray(scales.unit(node), np.float64)
        error = error + np.abs(scales.bias(node) / accumulator - bias) * unit
    return exact, error


def _exact_join(join):
    def rule(run: _Run):
        a, b = (steps * float(s.scale) / run.step for steps, s in zip(run.steps, run.inputs, strict=True))
        return join(a, b), _error(2, np.abs(a) + np.abs(b))

    return rule


def _exact_product(run: _Run):
    exact = run.steps[0] * run.steps[1] * run.unit
    return exact, _error(2, np.abs(exact))


def _exact_contraction(run: _Run):
    a, b = map(to_nchw, run.steps)
    exact, size = (to_nhwc(x @ y) * run.unit for x, y in ((a, b), (np.abs(a), np.abs(b))))
    return exact, _error(run.node.attrs["depth"], size)


def _exact_function(run: _Run):
    values = function_values(run.node, run.inputs[0])[run.stored[0]].astype(np.float64)
    return values / run.step, FLOAT_FUNCTION * (1 + np.abs(values)) / run.step


def _exact_average(run: _Run, share=1):
    a, (steps,) = run.node.attrs, run.steps
    window = (a["pool_size"], a["strides"], a["padding"], (1, 1), 0)
    total, size = (
        reference.windows(v, *window).sum(axis=(3, 4)) * share * run.unit for v in (steps, np.abs(steps))
    )  # fmt: skip
    return total, _error(prod(a["pool_size"]), size)


def _exact_mean_within(run: _Run):
    return _exact_average(run, mean_shares(run.node))


def _exact_mean(run: _Run):
    axes, (steps,) = run.node.attrs["axes"], run.steps
    total, size = (v.sum(axis=axes, keepdims=True) * run.unit for v in (steps, np.abs(steps)))
    return total, _error(steps.size // total.size, size)


def _exact_norm(run: _Run):
    """A float runtime makes the sums of real numbers, in any order."""
    a, (steps,), scale = run.node.attrs, run.steps, float(run.inputs[0].scale)
    centred = steps - steps.mean(axis=-1, keepdims=True)
    root = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + a["epsilon"] / scale**2)
    gain = np.abs(np.asarray(a["scale"])) / run.step
    exact = centred / root * np.asarray(a["scale"]) / run.step + np.asarray(a["shift"]) / run.step
    reach = np.abs(steps).max(axis=-1, keepdims=True) / root * gain
    return exact, _error(3 * steps.shape[-1], reach + np.abs(exact))


def _exact_resize(run: _Run):
    """A float runtime computes the coordinates in float32, too."""
    attrs, (steps,) = run.node.attrs, run.steps
    exact = resample.resized(steps, attrs) * run.unit * resample.parts(attrs)
    near = np.abs(steps).max(axis=(1, 2), keepdims=True) * run.unit * resample.parts(attrs)
    return exact, _error(6 * sum(map(sum, attrs["sizes"])), near)


def _exact_limit(run: _Run):
    exact = run.steps[0] * run.unit
    return exact, _error(1, np.abs(exact))


#: operator -> its result before rounding, in steps, and how far float32 may be from it (both float64); for
#: all that computes in integers
EXACT: dict[str, Callable[[_Run], tuple]] = {
    "conv2d": _exact_layer,
    "dense": _exact_layer,
    **{op: _exact_join(join) for op, join in reference.JOINS.items()},
    "mul": _exact_product,
    "matmul": _exact_contraction,
    "elementwise": _exact_function,
    "avg_pool2d": _exact_average,
    "mean_pool2d": _exact_mean_within,
    "reduce_mean": _exact_mean,
    "resize_linear": _exact_resize,
    "layer_norm": _exact_norm,
    "clip": _exact_limit,
}


def lost_pairs(node: Node, weight, stored, zero: int, where) -> np.ndarray:
    """What int16 pairs lose of some accumulators: int64 (P,), 0 where no pair saturates.

    weight: int8, in the node's layout; stored: uint8, its input, with the zero point ``zero``; where:
    boolean, of the output's shape. As in MLAS (QgemmU8S8KernelAvx2), products of neighbours, in the order
    kernel row, column, input channel of the group, are added by ``pmaddubsw``; depthwise layers are exact.
    """
    at = np.argwhere(where)
    if is_depthwise(node):
        return np.zeros(len(at), np.int64)
    a, (r, s, depth, channels) = node.attrs, node.weight.shape
    weight = weight.reshape(-1, channels).T
    if stored.ndim == 4:
        view = reference.windows(stored, (r, s), a["strides"], a["padding"], a["dilation"], zero)
    lost = np.zeros(len(at), np.int64)
    for first in range(0, len(at), 1024):  # of a layer of 4,608 weights 38 MB
        n, *place, channel = at[first : first + 1024].T
        if stored.ndim == 2:
            rows = stored[n]
        else:
            groups = view[(n, *place)].reshape(len(n), r * s, a["groups"], depth)
            rows = groups[np.arange(len(n)), :, channel // (channels // a["groups"])].reshape(len(n), -1)
        products = rows.astype(np.int32) * weight[channel]
        products = np.pad(products, ((0, 0), (0, products.shape[1] % 2)))
        pairs = products[:, 0::2] + products[:, 1::2]
        lost[first : first + 1024] = (np.clip(pairs, -(2**15), 2**15 - 1) - pairs).sum(axis=1)
    return lost


def _error(terms, size):
    """The most that float32 can be off: ``terms`` products whose magnitudes add up to ``size``, in steps.

    The usual bound of a sum in any order, one unit for each addition, and eight for dequantizing the
    two factors, the product, the bias, the scale and the division.
    """
    return (terms + 8) * UNIT * size


def reference_integers(graph: Graph, table: ScaleTable) -> Callable:
    """feed -> the numpy reference's stored tensors (uint8 NHWC) and ``"output NAME"`` (float32)."""
    graph = table.prepared(graph)
    plan_ = table.check(graph)
    scales = Scales.of_table(graph, plan_, table)

    def run(feed):
        sample = Sample(feed)
        for node in graph:
            sample.advance(node, scales)
        found = {t: sample.stored_value(t, scales) for t in plan_.site_of}
        return found | {f"output {t}": to_nchw(sample.real_value(t, scales)) for t in graph.outputs}

    return run


def compiled_integers(host: Host, graph: Graph, table: ScaleTable, target=None) -> Callable:
    """The same from the module that ``host`` compiles for ``target`` (this CPU)."""
    tensors = stored_tensors(graph, table)
    built = host.build(host.rewrite(graph, table, tensors), target)

    def run(feed):
        values = built(feed)
        outputs = zip((f"output {t}" for t in graph.outputs), values, strict=False)
        return dict(outputs) | dict(zip(tensors, values[len(graph.outputs) :], strict=True))

    return run
