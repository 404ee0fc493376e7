"""Random legal ONNX models: ``random_model(seed)`` over the operators a CNN may hold, and when two results differ.

A graph grows node by node. Each node is run by ONNX Runtime as it is added, twice: on the values so far, and on
values moved by about float32's own rounding. What then moves by much more (ties, cancellation, a pole near by),
is not finite or not of moderate size is taken back, so that what is left is a fair question to a reader.
Every choice comes from one numpy Generator; nothing depends on the order of a hash or on onnx's newest opset.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

OPSETS = range(7, 22)
#: no tensor has more elements
SIZE = 8000
#: the largest value
LARGE = 30.0
#: what a tensor may move by, of its maximum, when its inputs move by NOISE
STEADY, NOISE = 2e-5, 2e-7
F, D, H = np.float32, np.float64, np.float16

ort.set_default_logger_severity(4)


class Reject(Exception):
    """What was drawn is not legal here, or not fair."""


def session(model):
    """ONNX Runtime on one thread, nothing optimised."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def value_info(name, array):
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


class Maker:
    """A graph that grows. ``values``: name -> (value, value when the inputs move by float32's rounding)."""

    def __init__(self, rng, opset, limit):
        self.rng, self.opset, self.limit = rng, opset, limit
        self.ir = int(rng.integers(3, 5)) if opset < 10 else int(rng.choice([7, 8]) if opset < 19 else 9)
        self.nodes, self.initializers, self.inputs, self.feed = [], {}, {}, {}
        self.values, self.live, self.used, self.constants = {}, [], set(), set()
        self.count = 0

    # -- choices ---------------------------------------------------------------------------------------------
    def chance(self, p):
        return bool(self.rng.random() < p)

    def one(self, *of):
        return of[int(self.rng.integers(len(of)))]

    def int(self, low, high):
        """low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def real(self, low, high):
        return float(np.float32(self.rng.uniform(low, high)))

    def array(self, shape, low=-1.0, high=1.0):
        return self.rng.uniform(low, high, shape).astype(F)

    def name(self, kind="t"):
        self.count += 1
        style = self.int(0, 3)
        return (
            f"{kind}{self.count}",
            f"/net/{kind}.{self.count}/out",
            f"{self.count}",
            f"{kind}{self.count}:0",
        )[style]

    def axis(self, rank, negative=11):
        """An axis, sometimes counted from the end where the opset allows it."""
        axis = self.int(0, rank - 1)
        return axis - rank if self.opset >= negative and self.chance(0.4) else axis

    def axes(self, rank, negative=11, least=1):
        found = sorted(self.rng.permutation(rank)[: self.int(least, rank)].tolist())
        if self.chance(0.2):
            found = found[::-1]
        return [a - rank if self.opset >= negative and self.chance(0.3) else a for a in found]

    # -- tensors ---------------------------------------------------------------------------------------------
    def state(self):
        return (len(self.nodes), dict(self.initializers), dict(self.inputs), dict(self.feed), dict(self.values),
                list(self.live), set(self.used), set(self.constants))  # fmt: skip

    def restore(self, state):
        (
            length,
            self.initializers,
            self.inputs,
            self.feed,
            self.values,
            self.live,
            self.used,
            self.constants,
        ) = state
        del self.nodes[length:]

    def __getitem__(self, name):
        return self.values[name][0]

    def input(self, array):
        name = self.name("in")
        moved = array
        if array.dtype == F:
            moved = self.moved(array)
        self.inputs[name] = value_info(name, array)
        self.feed[name], self.values[name] = array, (array, moved)
        self.live.append(name)
        return name

    def moved(self, array):
        if array.dtype not in (F, D) or not array.size:
            return array
        noise = NOISE * np.abs(array).max() * self.rng.standard_normal(array.shape)
        return np.asarray(array + np.where(array != 0, noise, 0), array.dtype)

    def pick(self, low=1, high=5, dtype=F, test: Callable | None = None):
        """A tensor that is not constant, rather one that nothing uses yet and a late one."""
        found = [
            n for n in self.live
            if low <= self[n].ndim <= high and (dtype is None or self[n].dtype == dtype)
            and (test is None or test(self[n]))
        ]  # fmt: skip
        if not found:
            raise Reject
        weights = np.array(
            [
                (1 + i) * (1 if n in self.used else 6) * (3 if self[n].ndim == 4 else 1)
                for i, n in enumerate(found)
            ],
            float,
        )
        return found[int(self.rng.choice(len(found), p=weights / weights.sum()))]

    def initializer(self, array, as_input=False):
        name = self.name("w")
        self.initializers[name] = array
        self.values[name] = (array, array)
        self.constants.add(name)
        if as_input or self.ir < 4:
            self.inputs[name] = value_info(name, array)
        return name

    def const(self, array):
        """A constant: an initializer, one that is also an input, a Constant node, or what folds to one."""
        array = np.asarray(array)
        kind = self.int(0, 11)
        if kind < 5 or len(self.nodes) + 3 > self.limit:
            return self.initializer(array)
        if kind == 5:
            return self.initializer(array, as_input=True)
        if kind == 6:
            return self.add("Identity", [self.initializer(array)])
        if kind == 7 and array.dtype == F:
            return self.add("Cast", [self.initializer(array.astype(D))], to=TensorProto.FLOAT)
        if kind == 7 and array.dtype == np.int64 and array.size:
            return self.add("Cast", [self.initializer(array.astype(np.int32))], to=TensorProto.INT64)
        if kind == 8 and array.ndim == 1 and array.size > 1 and array.dtype in (F, np.int64):
            cut = self.int(1, array.size - 1)
            return self.add(
                "Concat", [self.initializer(array[:cut]), self.initializer(array[cut:])], axis=0
            )
        if kind == 9 and array.ndim > 1:
            return self.add("Transpose", [self.initializer(np.ascontiguousarray(array.T))])
        if self.opset < 9 and array.dtype not in (F, D, H):  # Constant held no others
            return self.initializer(array)
        attributes = dict(value=numpy_helper.from_array(array))
        if self.opset >= 12 and self.chance(0.6) and array.ndim < 2 and array.dtype in (F, np.int64):
            key = "float" if array.dtype == F else "int"
            attributes = {f"value_{key}s": array.tolist()} if array.ndim else {f"value_{key}": array.item()}
            if array.ndim and not array.size:
                attributes = dict(value=numpy_helper.from_array(array))
        return self.add("Constant", [], **attributes)

    def ints(self, values):
        return self.const(np.array(values, np.int64))

    def shape(self, values, like=None):
        """A shape as exporters write it: a constant, or Shape -> Gather -> Unsqueeze -> Concat of ``like``."""
        values = [int(v) for v in values]
        same = (
            []
            if like is None
            else [i for i, v in enumerate(values) if i < self[like].ndim and self[like].shape[i] == v]
        )
        if not same or self.chance(0.6) or len(self.nodes) + 6 > self.limit:
            return self.ints(values)
        at = self.one(*same)
        whole = self.add("Shape", [like])
        if self.chance(0.5):
            if self.opset < 10:
                part = self.add("Slice", [whole], starts=[at], ends=[at + 1])
            else:  # from initializers: ONNX Runtime's shape inference follows no other constant through a Slice
                bounds = [self.initializer(np.array([v])) for v in (at, at + 1)]
                part = self.add("Slice", [whole, *bounds])
        else:
            part = self.unsqueeze(self.add("Gather", [whole, self.ints(at)], axis=0), [0])
        pieces = (
            [self.ints(values[:at])] * bool(at)
            + [part]
            + [self.ints(values[at + 1 :])] * (at + 1 < len(values))
        )
        return self.add("Concat", pieces, axis=0) if len(pieces) > 1 else part

    def unsqueeze(self, x, axes):
        return (
            self.add("Unsqueeze", [x], axes=axes)
            if self.opset < 13
            else self.add("Unsqueeze", [x, self.ints(axes)])
        )

    # -- nodes -----------------------------------------------------------------------------------------------
    def add(self, op, inputs, outputs=1, **attributes):
        """Append a node and run it; its output, or their list where ``outputs`` is a list of which are asked for."""
        asked = [True] if outputs == 1 else list(outputs)
        names = [self.name() if wanted else "" for wanted in asked]
        if len(self.nodes) >= self.limit:
            raise Reject
        attributes = {key: value for key, value in attributes.items() if value is not None}
        node = helper.make_node(
            op, inputs, names, name="" if self.chance(0.2) else f"{op}_{self.count}", **attributes
        )
        fixed = all(n in self.constants for n in inputs if n) or op == "Shape"
        self.run(node, fixed)
        self.nodes.append(node)
        self.used.update(n for n in inputs if n)
        if fixed:
            self.constants.update(n for n in names if n)
        else:
            self.live += [n for n in names if n]
        return names[0] if outputs == 1 else names

    def run(self, node, fixed):
        given = list(dict.fromkeys(n for n in node.input if n))
        moving = [n for n in given if n not in self.constants]
        names = [n for n in node.output if n]
        graph = helper.make_graph(
            [node], "g", [value_info(n, self[n]) for n in moving], [onnx.ValueInfoProto(name=n) for n in names],
            [numpy_helper.from_array(self[n], n) for n in given if n in self.constants],
        )  # fmt: skip
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=max(self.ir, 4)
        )
        try:
            runner = session(model)
            plain = runner.run(names, {n: self[n] for n in moving})
            moved = plain if fixed else runner.run(names, {n: self.values[n][1] for n in moving})
        except Exception as error:  # noqa: BLE001 - what ONNX Runtime cannot do is not asked
            raise Reject(f"{node.op_type}: {str(error).splitlines()[0][:200]}") from None
        for name, a, b in zip(names, plain, moved, strict=False):
            if not fixed:
                fair(a, b, node.op_type)
            self.values[name] = (a, b if fixed else self.moved(b))

    def keep_small(self, x):
        """What grew is scaled back, as a normalisation would."""
        top = float(np.abs(self[x]).max())
        if self[x].dtype == F and (top > LARGE or top < 0.01):
            factor = np.array(F(2.0 ** -round(math.log2(top))), F)
            x = self.add("Mul", [x, self.const(factor.reshape([1] * self.int(0, self[x].ndim)))])
        return x

    def positive(self, x, low=0.2):
        """x, or a function of it, at least ``low`` everywhere."""
        if self[x].min() > low and self.chance(0.8):
            return x
        x = self.add(self.one("Abs", "Sigmoid", "Relu", "Softplus"), [x])
        return self.add("Add", [x, self.const(np.array(self.real(low + 0.1, 1.5), F))])

    def fitting(self, x, same=0.5):
        """A second operand of x: another tensor that broadcasts with it, or a constant."""
        shape = self[x].shape
        if self.chance(same):
            return self.pick(0, 5, F, lambda a: broadcasts(a.shape, shape))
        return self.const(self.array(self.broadcastable(shape), -2, 2))

    def broadcastable(self, shape, wider=True):
        shape = [d if self.chance(0.5) else 1 for d in shape]
        if self.chance(0.3):
            shape = shape[self.int(0, len(shape)) :]
        elif wider and len(shape) < 5 and self.chance(0.1):
            shape = [self.int(1, 2), *shape]
        return shape


def broadcasts(*shapes):
    """Whether they do, to a tensor that is not too large."""
    try:
        return math.prod(np.broadcast_shapes(*shapes)) <= SIZE
    except ValueError:
        return False


def fair(a, b, op):
    """Reject a value that is no fair question."""
    if not isinstance(a, np.ndarray) or a.ndim > 5 or not 0 < a.size <= SIZE or a.shape != b.shape:
        raise Reject
    if a.dtype.kind == "f":
        top = (
            float(np.abs(a.astype(D)).max()) if np.isfinite(a).all() and np.isfinite(b).all() else math.inf
        )
        if not 1e-6 < top < 1e4:
            raise Reject
        if np.abs(a.astype(D) - b).max() > STEADY * top:
            raise Reject(f"{op}: not steady")
    elif not np.array_equal(a, b):
        raise Reject(f"{op}: a tie")


#: operator -> (first opset, last opset, how to add one, how often it is drawn)
RECIPES: dict[str, tuple[int, int, Callable, float]] = {}


def recipe(*ops, since=7, until=99, often=1.0):
    def register(function):
        for op in ops:
            RECIPES[op] = (since, until, lambda m, op=op: function(m, op), often)
        return function

    return register


# -- convolutions and pools ----------------------------------------------------------------------------------
def window(m, spatial, dilated=True, largest=3):
    """kernel_shape, and the strides, dilations, pads or auto_pad that go with it; some left to their defaults."""
    n = len(spatial)
    kernel = [min(m.one(1, 2, largest, largest), d + 1) for d in spatial]
    if m.chance(0.5):
        kernel = [min(kernel)] * n
    found = dict(kernel_shape=kernel)
    if m.chance(0.6):
        found["strides"] = [m.int(1, 3) for _ in kernel] if m.chance(0.4) else [m.int(1, 2)] * n
    if dilated and m.chance(0.3):
        found["dilations"] = [m.int(1, 2) for _ in kernel]
    how = m.int(0, 9)
    if how < 5:
        at = [m.int(0, k - 1) for k in kernel]
        found["pads"] = at * 2 if m.chance(0.5) else at + [m.int(0, k - 1) for k in kernel]
    elif how < 9:
        found["auto_pad"] = m.one("SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET")
    return found


def fits(found, spatial):
    """Reject a window that is larger than the padded input: what a pool then gives, nobody says."""
    pads = found.get("pads", [0] * 2 * len(spatial))
    dilations = found.get("dilations", [1] * len(spatial))
    for i, (d, k, e) in enumerate(zip(spatial, found["kernel_shape"], dilations, strict=True)):
        if "SAME" not in found.get("auto_pad", "") and (k - 1) * e >= d + pads[i] + pads[len(spatial) + i]:
            raise Reject
    return found


def weights(m, shape):
    return m.const(m.array(shape) * F(1.5 / math.sqrt(math.prod(shape[1:]))))


@recipe("Conv", often=9)
def conv(m, op):
    x = m.pick(3, 5)
    _n, c, *spatial = m[x].shape
    group = m.one(*[g for g in (1, 1, 2, 3, c) if c % g == 0])
    found = fits(window(m, spatial), spatial)
    k = group * m.int(1, max(1, 6 // group))
    inputs = [x, weights(m, [k, c // group, *found["kernel_shape"]])]
    inputs += m.one([], [""], [m.const(m.array(k))], [m.const(m.array(k))])
    if m.chance(0.3):
        del found["kernel_shape"]
    if group > 1 or m.chance(0.3):
        found["group"] = group
    y = m.add(op, inputs, **found)
    if m.chance(0.4):
        y = batch_norm(m, y)
    if m.chance(0.4):
        y = m.add("Relu", [y])
    return y


@recipe("ConvTranspose", often=4)
def conv_transpose(m, op):
    x = m.pick(3, 5)
    _n, c, *spatial = m[x].shape
    group = m.one(*[g for g in (1, 1, 2, c) if c % g == 0])
    found = window(m, spatial)
    strides, dilations = (found.get(k, [1] * len(spatial)) for k in ("strides", "dilations"))
    extents = [(w - 1) * e + 1 for w, e in zip(found["kernel_shape"], dilations, strict=True)]
    if "SAME" in found.get("auto_pad", "") and any(w < s for w, s in zip(extents, strides, strict=True)):
        raise Reject  # a negative padding, or none
    k = m.int(1, 3)
    inputs = [x, weights(m, [c, k, *found["kernel_shape"]]), *m.one([], [m.const(m.array(k * group))])]
    if m.chance(0.35) and "SAME" not in found.get("auto_pad", ""):  # which of the two wins is not said
        found["output_padding"] = [
            m.int(0, max(s, d) - 1) for s, d in zip(strides, dilations, strict=False)
        ]
    if m.chance(0.25):
        found.pop("pads", None)
        full = [
            (d - 1) * s + (w - 1) * e + 1
            for d, s, w, e in zip(spatial, strides, found["kernel_shape"], dilations, strict=False)
        ]
        found["output_shape"] = [max(1, f - m.int(0, 1)) for f in full]
        found.pop("output_padding", None)
    if m.chance(0.3):
        del found["kernel_shape"]
    if group > 1 or m.chance(0.3):
        found["group"] = group
    return m.add(op, inputs, **found)


@recipe("MaxPool", "AveragePool", "LpPool", often=3.5)
def pool(m, op):
    x = m.pick(3, 5)
    opset = m.opset
    dilated = opset >= {"MaxPool": 10, "AveragePool": 19, "LpPool": 18}[op]
    found = fits(window(m, m[x].shape[2:], dilated), m[x].shape[2:])
    if "SAME" in found.get("auto_pad", ""):  # ONNX Runtime 1.32 pads as if not dilated, and below zero
        found.pop("dilations", None)
        if any(k < s for k, s in zip(found["kernel_shape"], found.get("strides", ()), strict=False)):
            raise Reject
    outputs = 1
    if opset >= (18 if op == "LpPool" else 10) and m.chance(0.5):
        found["ceil_mode"] = m.int(0, 1)
    if op == "AveragePool" and m.chance(0.6):
        found["count_include_pad"] = m.int(0, 1)
    if op == "LpPool" and m.chance(0.6):
        found["p"] = m.int(1, 3)
    if op == "MaxPool" and opset >= 8:
        if m.chance(0.25):
            outputs = [True, True]
        if m.chance(0.2):
            found["storage_order"] = m.int(0, 1)
    y = m.add(op, [x], outputs, **found)
    return y if outputs == 1 else y[0]


@recipe("GlobalAveragePool", "GlobalMaxPool", often=1.5)
def global_pool(m, op):
    return m.add(op, [m.pick(3, 5)])


# -- normalisations ------------------------------------------------------------------------------------------
def batch_norm(m, x):
    c = m[x].shape[1]
    scale, bias, mean = (m.const(m.array(c, low, 1.5)) for low in (0.5, -1, -1))
    return m.add(
        "BatchNormalization", [x, scale, bias, mean, m.const(m.array(c, 0.3, 2))],
        epsilon=m.one(None, 1e-3, 1e-5), momentum=m.one(None, 0.9, 0.5),
        spatial=m.one(None, 1) if m.opset < 9 else None, training_mode=m.one(None, 0) if m.opset >= 14 else None,
    )  # fmt: skip


@recipe("BatchNormalization", often=1.5)
def batch_normalization(m, op):
    return batch_norm(m, m.pick(2, 5))


@recipe("InstanceNormalization", often=1.5)
def instance_norm(m, op):
    x = m.pick(3, 5)
    c = m[x].shape[1]
    return m.add(
        op, [x, m.const(m.array(c, 0.5, 1.5)), m.const(m.array(c))], epsilon=m.one(None, 1e-3, 0.1)
    )


@recipe("GroupNormalization", since=21, often=4)
def group_norm(m, op):
    x = m.pick(3, 5)
    c = m[x].shape[1]
    groups = m.one(*[g for g in range(1, c + 1) if c % g == 0])
    return m.add(op, [x, m.const(m.array(c, 0.5, 1.5)), m.const(m.array(c))], num_groups=groups,
                 epsilon=m.one(None, 1e-3, 0.1), stash_type=m.one(None, 1))  # fmt: skip


@recipe("LayerNormalization", since=17, often=4)
def layer_norm(m, op):
    x = m.pick(2, 5)
    axis = m.axis(m[x].ndim)
    shape = m[x].shape[axis:]
    inputs = [x, m.const(m.array(shape, 0.5, 1.5)), *m.one([], [m.const(m.array(shape))], [""])]
    outputs = [True, *m.one([], [], [True], [True, True], [False, True])]
    return m.add(op, inputs, outputs, axis=axis if axis != -1 or m.chance(0.5) else None,
                 epsilon=m.one(None, 1e-3), stash_type=m.one(None, 1))[0]  # fmt: skip


@recipe("LpNormalization", often=1.5)
def lp_norm(m, op):
    x = m.pick(1, 5)
    return m.add(op, [x], axis=m.one(None, m.axis(m[x].ndim)), p=m.one(None, 1, 2))


@recipe("MeanVarianceNormalization", since=9, often=2)
def mean_variance_norm(m, op):
    x = m.pick(4, 4) if m.chance(0.8) else m.pick(2, 5)
    axes = m.one(None, [0, 2, 3], [0, 1, 2, 3], m.axes(m[x].ndim, 99))
    if m[x].ndim <= max(
        [0, 2, 3] if axes is None else axes
    ):  # ONNX Runtime counts such an axis from 0 again
        raise Reject
    return m.add(op, [x], axes=axes)


@recipe("LRN", often=1.5)
def lrn(m, op):
    return m.add(op, [m.pick(4, 4)], size=m.one(1, 3, 5), alpha=m.one(None, m.real(0.01, 1)),
                 beta=m.one(None, m.real(0.3, 1)), bias=m.one(None, m.real(0.5, 2)))  # fmt: skip


# -- element-wise --------------------------------------------------------------------------------------------
@recipe("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Neg", "Abs", "Identity")
def unary(m, op):
    return m.add(op, [m.pick(0, 5)])


RECIPES |= {
    op: (since, 99, lambda m, op=op: unary(m, op), often)
    for op, since, often in [("Erf", 9, 1.5), ("HardSwish", 14, 2.5), ("Mish", 18, 2.5)]
}


@recipe("Floor", "Ceil", often=1.5)
def rounding(m, op):
    return m.add(op, [m.add("Mul", [m.pick(1, 5), m.const(np.array(m.one(2, 5), F))])])


@recipe("Round", since=11, often=1.5)
def rounds(m, op):
    if m.chance(0.4):  # halves that are exact: to the even one
        x = m.pick(0, 5, None, lambda a: a.dtype.kind in "iu")
        return m.add(
            op, [m.add("Mul", [m.add("Cast", [x], to=TensorProto.FLOAT), m.const(np.array(0.5, F))])]
        )
    return rounding(m, op)


@recipe("Sign", since=9, often=1.5)
def sign(m, op):
    return m.add(op, [m.pick(0, 5, F if m.chance(0.8) else None)])


@recipe("Exp", "Log", "Sqrt", "Reciprocal")
def safe(m, op):
    x = m.pick(0, 5)
    if op == "Exp":
        return m.add(op, [x if m[x].max() < 4 else m.add("Tanh", [x])])
    return m.add(op, [m.positive(x)])


@recipe("Pow", often=1.5)
def power(m, op):
    x = m.pick(0, 5)
    kind = m.int(0, 3)
    if kind == 0:
        return m.add(op, [x, m.const(np.array(m.one(2, 3, 1), F))])
    if kind == 1 and m.opset >= 12:
        return m.add(op, [x, m.const(np.array(m.one(2, 3), m.one(np.int32, np.int64)))])
    if kind == 2:
        return m.add(op, [m.const(np.array(m.one(0.5, 2.0), F)), x])
    return m.add(op, [m.positive(x), m.const(m.array(m.broadcastable(m[x].shape), -2, 2))])


@recipe("Add", "Sub", "Mul", often=2)
def binary(m, op):
    x = m.pick(0, 5)
    pair = [x, m.fitting(x)]
    return m.add(op, pair[::-1] if m.chance(0.4) else pair)


@recipe("Div", often=1.5)
def division(m, op):
    x = m.pick(0, 5)
    if m.chance(0.6):
        return m.add(op, [x, m.const(m.array(m.broadcastable(m[x].shape), 0.5, 2) * F(m.one(-1, 1)))])
    y = m.positive(x, 0.4)
    return m.add(op, [m.fitting(y), y])


@recipe("Max", "Min", "Sum", "Mean", often=1.5)
def variadic(m, op):
    x = m.pick(1, 5)
    inputs = [x]
    for _ in range(m.int(0, 3)):
        same = m.opset < 8
        inputs.append(m.const(m.array(m[x].shape, -2, 2)) if same else m.fitting(x))
    return m.add(op, [inputs[i] for i in m.rng.permutation(len(inputs))])


@recipe("LeakyRelu", "Elu", "HardSigmoid", "Selu")
def curved(m, op):
    alpha = m.one(None, m.real(0.01, 0.9))
    more = dict(gamma=m.one(None, m.real(0.5, 2))) if op == "Selu" else {}
    more |= dict(beta=m.one(None, m.real(0.1, 0.9))) if op == "HardSigmoid" else {}
    return m.add(op, [m.pick(0, 5)], alpha=alpha, **more)


@recipe("Celu", since=12, often=1.5)
def celu(m, op):
    return m.add(op, [m.pick(0, 5)], alpha=m.one(None, m.real(0.2, 2)))


@recipe("ThresholdedRelu", since=10, often=1.5)
def thresholded(m, op):
    return m.add(op, [m.pick(0, 5)], alpha=m.one(None, m.real(-0.5, 0.5)))


@recipe("Shrink", since=9, often=1.5)
def shrink(m, op):
    return m.add(
        op, [m.pick(0, 5)], lambd=m.one(None, m.real(0.1, 0.6)), bias=m.one(None, m.real(-0.3, 0.3))
    )


@recipe("Gelu", since=20, often=4)
def gelu(m, op):
    return m.add(op, [m.pick(0, 5)], approximate=m.one(None, "none", "tanh"))


@recipe("PRelu", often=1.5)
def prelu(m, op):
    x = m.pick(1, 5)
    shape = m[x].shape
    per_channel = [shape[1]] + [1] * (len(shape) - 2) if len(shape) > 1 else [1]
    slope = m.one(per_channel, [1], list(shape), m.broadcastable(shape, wider=False))
    return m.add(op, [x, m.const(m.array(slope, -0.5, 1))])


@recipe("Clip", often=2)
def clip(m, op):
    x = m.pick(0, 5)
    low, high = m.one((-0.5, 0.5), (0.0, 6.0), (0.0, m.real(0.3, 2)), (m.real(-1, 0), m.real(0, 1)))
    if m.chance(0.04):
        low, high = 0.5, 0.2  # the maximum wins
    given = m.int(0, 3)
    if m.opset < 11:
        return m.add(op, [x], min=low if given & 1 else None, max=high if given & 2 else None)

    def bound(value, asked):
        if not asked:
            return ""
        if m.chance(0.15):
            return m.pick(0, 0)
        return m.const(np.array(value, F))

    bounds = [bound(low, given & 1), bound(high, given & 2)]
    while bounds and not bounds[-1] and m.chance(0.7):
        bounds.pop()
    return m.add(op, [x, *bounds])


@recipe("Where", since=9, often=2)
def where(m, op):
    x = m.pick(1, 5)
    shape = m[x].shape
    kind = m.int(0, 2)
    if kind == 0:
        condition = m.const(m.rng.random(m.broadcastable(shape)) < 0.5)
    elif kind == 1:
        condition = m.add(
            "Cast", [m.add("Relu", [m.pick(test=lambda a: a.shape == shape)])], to=TensorProto.BOOL
        )
    else:
        condition = m.pick(0, 5, np.bool_, lambda a: broadcasts(a.shape, shape))
    pair = [x, m.fitting(x)]
    return m.add(op, [condition, *(pair[::-1] if m.chance(0.4) else pair)])


# -- casts, islands of other types ---------------------------------------------------------------------------
@recipe("Cast", often=3)
def cast(m, op):
    kind = m.int(0, 4)
    if kind == 0:  # an integer or a boolean, often back to float
        x = m.add("Mul", [m.pick(1, 5), m.const(np.array(m.one(3, 7), F))])
        y = m.add(
            op, [x], to=m.one(TensorProto.INT32, TensorProto.INT64, TensorProto.INT8, TensorProto.BOOL)
        )
        return m.add(op, [y], to=TensorProto.FLOAT) if m.chance(0.5) else y
    if kind == 1:
        y = m.add(op, [m.pick(0, 5, None, lambda a: a.dtype != F)], to=TensorProto.FLOAT)
        return m.add("Mul", [y, m.const(np.array(0.02, F))]) if np.abs(m[y]).max() > LARGE else y
    if kind in (2, 3):  # double inside
        x = m.add(op, [m.pick(1, 5)], to=TensorProto.DOUBLE)
        for _ in range(m.int(1, 2)):
            step = m.one("Add", "Mul", "Relu", "Neg", "Sub", "Sigmoid", "MatMul")
            if step == "MatMul":
                x = m.add(step, [x, m.const(m.array([m[x].shape[-1], m.int(1, 4)]).astype(D))])
            elif step in ("Add", "Mul", "Sub"):
                x = m.add(step, [x, m.const(m.array(m.broadcastable(m[x].shape)).astype(D))])
            else:
                x = m.add(step, [x])
        return m.add(op, [x], to=TensorProto.FLOAT)
    # half inside, of values that it holds exactly: a reader may compute it in float32
    y = m.add(
        "Floor", [m.add("Mul", [m.pick(1, 5, F, lambda a: np.abs(a).max() < 20), m.const(np.array(4, F))])]
    )
    y = m.add(op, [y], to=TensorProto.FLOAT16)
    step = m.one("Add", "Sub", "Relu", "Neg", "Abs")
    more = (
        [m.const(m.rng.integers(-8, 9, m.broadcastable(m[y].shape)).astype(H))]
        if step in ("Add", "Sub")
        else []
    )
    y = m.add(op, [m.add(step, [y, *more])], to=TensorProto.FLOAT)
    return m.add("Mul", [y, m.const(np.array(0.25, F))])


@recipe("Dropout", often=1.5)
def dropout(m, op):
    x = m.pick(0, 5)
    outputs = [True, True] if m.opset >= 12 and m.chance(0.2) else [True]  # before, zeros or ones
    if m.opset < 12:
        y = m.add(op, [x], outputs, ratio=m.one(None, 0.3))[0]
    else:
        ratio = m.const(np.array(0.3, F))
        more = m.one([], [ratio], [ratio, m.const(np.array(False))], ["", m.const(np.array(False))])
        y = m.add(op, [x, *more], outputs)[0]
    return m.add("Identity", [y]) if m.chance(0.4) else y


# -- shapes and movement -------------------------------------------------------------------------------------
def anything(m, low=1, high=5):
    return m.pick(low, high, F if m.chance(0.8) else None)


@recipe("Flatten", often=1.5)
def flatten(m, op):
    x = m.pick(1, 5)
    rank = m[x].ndim
    axis = m.one(None, m.int(0, rank), -m.int(1, rank) if m.opset >= 11 else 1)
    return m.add(op, [x], axis=axis)


def factored(m, size, rank):
    dims = []
    for _ in range(rank - 1):
        dims.append(m.one(*[d for d in range(1, 9) if size % d == 0]))
        size //= dims[-1]
    return [dims[i] for i in m.rng.permutation(len(dims))] + [size]


@recipe("Reshape", often=2)
def reshape(m, op):
    x = anything(m, 0)
    shape = list(m[x].shape)
    new = factored(m, m[x].size, m.one(1, 2, 3, 4, 4, 4, 5))
    if len(shape) > 2 and m.chance(0.3):
        new = [shape[0], -1, *shape[2:]] if m.chance(0.5) else [shape[0], -1]
    written = list(new)
    if m.chance(0.4) and -1 not in written:
        written[m.int(0, len(written) - 1)] = -1
    zeros = m.chance(0.3)
    if zeros:
        written = [
            0 if i < len(shape) and v == shape[i] and m.chance(0.7) else v for i, v in enumerate(written)
        ]
    allowzero = None if m.opset < 14 or 0 in written else m.one(None, 0, 1)
    if allowzero is None and m.opset >= 14 and m.chance(0.2):
        allowzero = 0
    if 0 in written:
        return m.add(op, [x, m.ints(written)], allowzero=allowzero)
    return m.add(op, [x, m.shape(written, x)], allowzero=allowzero)


@recipe("Squeeze", often=1.5)
def squeeze(m, op):
    x = m.pick(1, 5, F if m.chance(0.8) else None, lambda a: 1 in a.shape)
    rank, ones = m[x].ndim, [i for i, d in enumerate(m[x].shape) if d == 1]
    if m.chance(0.3):
        return m.add(op, [x])
    axes = ones[: m.int(1, len(ones))]
    axes = [a - rank if m.opset >= 11 and m.chance(0.3) else a for a in axes]
    return m.add(op, [x], axes=axes) if m.opset < 13 else m.add(op, [x, m.ints(axes)])


@recipe("Unsqueeze", often=1.5)
def unsqueeze(m, op):
    x = anything(m, 0, 4)
    rank = m[x].ndim
    count = m.int(1, min(2, 5 - rank))
    axes = m.rng.permutation(rank + count)[:count].tolist()
    axes = [a - rank - count if m.opset >= 11 and m.chance(0.3) else a for a in axes]
    return m.unsqueeze(x, axes)


@recipe("Transpose", often=1.5)
def transpose(m, op):
    x = anything(m)
    return m.add(op, [x], perm=m.one(None, *[m.rng.permutation(m[x].ndim).tolist()] * 4))


@recipe("DepthToSpace", "SpaceToDepth", often=3)
def depth_space(m, op):
    block = m.one(2, 2, 3, 1)
    if op == "SpaceToDepth":
        x = m.pick(4, 4, F, lambda a: a.shape[2] % block == 0 and a.shape[3] % block == 0)
        return m.add(op, [x], blocksize=block)
    x = m.pick(4, 4, F, lambda a: a.shape[1] % block**2 == 0)
    return m.add(op, [x], blocksize=block, mode=m.one(None, "DCR", "CRD") if m.opset >= 11 else None)


@recipe("Concat", often=2)
def concat(m, op):
    x = anything(m)
    axis = m.axis(m[x].ndim)
    shape = list(m[x].shape)

    def joins(a):
        return a.ndim == len(shape) and all(
            d == e for i, (d, e) in enumerate(zip(a.shape, shape, strict=False)) if i != axis % len(shape)
        )

    inputs = [x]
    for _ in range(m.int(0, 2)):
        if m.chance(0.7):
            inputs.append(m.pick(1, 5, m[x].dtype, joins))
        elif m[x].dtype == F:
            other = list(shape)
            other[axis] = m.int(1, 3)
            inputs.append(m.const(m.array(other)))
    return m.add(op, [inputs[i] for i in m.rng.permutation(len(inputs))], axis=axis)


@recipe("Slice", often=2.5)
def slices(m, op):
    x = anything(m)
    shape, rank = m[x].shape, m[x].ndim
    axes = [a % rank for a in m.axes(rank)]
    stepped = m.opset >= 10
    starts, ends, steps = [], [], []
    for a in axes:
        d = shape[a]
        step = m.one(1, 1, 2, -1, -2, 3) if stepped else 1
        low = m.int(0, d - 1)
        high = m.int(low + 1, d)
        start, end = (low, high) if step > 0 else (high - 1, low - 1)
        if start and m.chance(0.3):
            start -= d
        if step > 0 and end == d:
            end = m.one(d, d + 5, 2**31 - 1, 2**63 - 1)
        elif step < 0 and end < 0:
            end = m.one(-d - 1, -(2**31), -(2**63) + 1)
        elif m.chance(0.3):
            end -= d
        starts.append(start), ends.append(end), steps.append(step)
    default = axes == list(range(len(axes))) and m.chance(0.5)
    if not stepped:
        return m.add(op, [x], starts=starts, ends=ends, axes=None if default else axes)
    written = [a - rank if m.chance(0.3) else a for a in axes]
    small = all(abs(v) < 2**31 for v in starts + ends) and m.chance(0.3)
    kind = np.int32 if small else np.int64
    inputs = [x, *(m.const(np.array(v, kind)) for v in (starts, ends))]
    inputs.append("" if default else m.const(np.array(written, kind)))
    if any(s != 1 for s in steps) or m.chance(0.5):
        inputs.append(m.const(np.array(steps, kind)))
    while not inputs[-1]:
        inputs.pop()
    return m.add(op, inputs)


@recipe("Split", often=2)
def split(m, op):
    x = m.pick(1, 5, F if m.chance(0.8) else None, lambda a: max(a.shape) > 1)
    rank = m[x].ndim
    axis = m.one(*[i for i, d in enumerate(m[x].shape) if d > 1])
    d = m[x].shape[axis]
    parts = m.int(1, min(4, d))
    written = (
        None if axis == 0 and m.chance(0.5) else axis - rank if m.opset >= 11 and m.chance(0.3) else axis
    )
    if m.opset >= 18 and m.chance(0.5):
        if (parts - 1) * -(-d // parts) >= d:
            raise Reject
        return m.add(op, [x], [True] * parts, axis=written, num_outputs=parts)[0]
    if d % parts == 0 and m.opset < 18 and m.chance(0.4):
        return m.add(op, [x], [True] * parts, axis=written)[0]
    cuts = sorted(m.rng.permutation(d - 1)[: parts - 1].tolist())
    sizes = np.diff([0, *(c + 1 for c in cuts), d]).tolist()
    if m.opset < 13:
        return m.add(op, [x], [True] * parts, axis=written, split=sizes)[0]
    return m.add(op, [x, m.ints(sizes)], [True] * parts, axis=written)[0]


@recipe("Gather", often=2)
def gather(m, op):
    x = anything(m)
    axis = m.axis(m[x].ndim)
    d = m[x].shape[axis]
    low = -d if m.opset >= 11 and m.chance(0.5) else 0
    indices = m.rng.integers(low, d, m.one((), (m.int(1, 4),), (m.int(1, 4),), (2, m.int(1, 2))))
    kind = m.one(np.int32, np.int64)
    return m.add(
        op, [x, m.const(np.asarray(indices, kind))], axis=None if axis == 0 and m.chance(0.5) else axis
    )


@recipe("Expand", since=8, often=1.5)
def expand(m, op):
    x = anything(m, 0)
    shape = [m.int(1, 3) if d == 1 else m.one(1, d) for d in m[x].shape]
    if len(shape) < 5 and m.chance(0.3):
        shape = [m.int(1, 3), *shape]
    elif m.chance(0.2):
        shape = shape[1:]
    return m.add(op, [x, m.shape(shape)])


@recipe("Tile", often=1.5)
def tile(m, op):
    x = anything(m)
    return m.add(op, [x, m.ints([m.one(1, 1, 2, 3) for _ in m[x].shape])])


@recipe("Pad", often=3)
def pad(m, op):
    x = m.pick(1, 5, F)
    rank, opset = m[x].ndim, m.opset
    mode = m.one(None, "constant", "constant", "reflect", "edge", *["wrap"] * (opset >= 19))
    axes = [a % rank for a in m.axes(rank)] if opset >= 18 and m.chance(0.5) else list(range(rank))
    ends = []
    for _ in range(2):
        for a in axes:
            d = m[x].shape[a]
            most = max(0, d - 1) if mode in ("reflect", "wrap") else 3
            ends.append(m.int(0, min(2, most)) if m.chance(0.6) else 0)
            if m.chance(0.15) and d > 2:
                ends[-1] = -1
    value = m.one(None, m.real(-2, 2)) if mode in (None, "constant") else None
    if opset < 11:
        return m.add(op, [x], pads=ends, mode=mode, value=value)
    inputs = [x, m.ints(ends)]
    if value is not None:
        inputs.append(m.const(np.array(value, F)))
    if len(axes) < rank or (opset >= 18 and m.chance(0.2)):
        inputs += [""] * (3 - len(inputs)) + [m.ints([a - rank if m.chance(0.3) else a for a in axes])]
    return m.add(op, inputs, mode=mode)


@recipe("Resize", since=10, often=6)
def resize(m, op):
    x = m.pick(4, 4) if m.chance(0.8) else m.pick(1, 5)
    rank, opset, shape = m[x].ndim, m.opset, m[x].shape
    mode = m.one(None, "nearest", "linear", "linear", *["cubic"] * (2 * (opset >= 11)))
    fixed = 2 if rank > 2 else 0
    scale = [1.0] * fixed + [
        m.one(2.0, 0.5, 1.5, 3.0, 1.0, 0.75, m.real(0.4, 2.5)) for _ in range(rank - fixed)
    ]
    # an axis that keeps its size is as it was in ONNX Runtime, whatever its scale
    scale = [1.0 if int(d * s) == d else s for d, s in zip(shape, scale, strict=True)]
    if opset == 10:
        return m.add(op, [x, m.const(np.array(scale, F))], mode=mode)
    found = dict(mode=mode)
    ways = ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "tf_crop_and_resize"]
    ways += ["tf_half_pixel_for_nn"] * (2 * (opset < 13)) + ["half_pixel_symmetric"] * (2 * (opset >= 19))
    found["coordinate_transformation_mode"] = way = m.one(None, *ways)
    # of a fraction ONNX Runtime rounds the new size first; the node tests and onnx.reference do not
    if way in ("align_corners", "tf_crop_and_resize"):
        scale = [float(max(1, round(v))) for v in scale]
    roi = ""
    if way == "tf_crop_and_resize":
        begin, end = [0.0] * rank, [1.0] * rank
        for a in range(fixed, rank):
            begin[a], end[a] = m.real(0, 0.4), m.real(0.6, 1.2)
        # an axis that keeps its size ONNX Runtime does not crop
        begin = [b if s != 1 else 0.0 for b, s in zip(begin, scale, strict=True)]
        end = [e if s != 1 else 1.0 for e, s in zip(end, scale, strict=True)]
        roi = m.const(np.array(begin + end, F))
        found["extrapolation_value"] = m.one(None, 0.5)
    if mode in (None, "nearest"):
        found["nearest_mode"] = m.one(None, "round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    if mode == "cubic":
        found["cubic_coeff_a"] = m.one(None, -0.5, -0.6)
        found["exclude_outside"] = m.one(None, 0, 1)
    if opset >= 18 and mode in ("linear", "cubic"):
        found["antialias"] = m.one(None, 0, 1)
    axes = list(range(rank))
    if opset >= 18 and m.chance(0.6) and not roi:
        axes = [a for a in axes if a >= fixed]
        found["axes"] = [a - rank if m.chance(0.3) else a for a in axes]
        scale = scale[fixed:]
    if m.chance(0.5):
        if opset >= 18:
            policies = ("not_larger", "not_smaller") if "axes" in found else ()
            found["keep_aspect_ratio_policy"] = m.one(None, "stretch", *policies, *policies)
            if (
                found["keep_aspect_ratio_policy"] in policies
            ):  # ONNX Runtime 1.32 forgets it on a negative axis
                found["axes"] = axes
        sizes = [max(1, int(shape[a] * s)) for a, s in zip(axes, scale, strict=False)]
        empty = "" if opset >= 13 else m.initializer(np.zeros(0, F))
        roi = roi or ("" if opset >= 13 else m.initializer(np.zeros(0, F)))
        return m.add(op, [x, roi, empty, m.shape(sizes, x)], **found)
    if not roi and opset < 13:
        roi = m.initializer(np.zeros(0, F))
    return m.add(op, [x, roi, m.const(np.array(scale, F))], **found)


@recipe("Upsample", until=9, often=6)
def upsample(m, op):
    x = m.pick(4, 4)
    scales = [1.0, 1.0, m.one(1.0, 2.0, 3.0, 1.5), m.one(1.0, 2.0, 3.0)]
    mode = m.one(None, "nearest", "linear")
    if m.opset < 9:
        return m.add(op, [x], scales=scales, mode=mode)
    return m.add(op, [x, m.const(np.array(scales, F))], mode=mode)


@recipe("CenterCropPad", since=18, often=2.5)
def center_crop_pad(m, op):
    x = m.pick(1, 5)
    rank = m[x].ndim
    axes = (
        None
        if m.chance(0.4)
        else [
            a - rank if m.chance(0.3) else a
            for a in sorted(m.rng.permutation(rank)[: m.int(1, rank)].tolist())
        ]
    )
    over = range(rank) if axes is None else axes
    return m.add(op, [x, m.ints([max(1, m[x].shape[a] + m.int(-3, 3)) for a in over])], axes=axes)


@recipe("Col2Im", since=18, often=5)
def col2im(m, op):
    n = m.one(1, 2, 2, 3)
    block = [m.int(1, 2 if n < 3 else 1) for _ in range(n)]
    image = [m.int(3, 6) for _ in range(n)] if n < 3 else [m.int(1, 3) for _ in range(n)]
    pads = m.one(None, [m.int(0, 1) for _ in range(2 * n)])
    strides = m.one(None, [m.int(1, 2) for _ in range(n)])
    dilations = (
        m.one(None, [m.int(1, 2) for _ in range(n)]) if n == 2 else None
    )  # ONNX Runtime 1.32 errs in 1-D
    length = 1
    for i in range(n):
        d = image[i] + (pads[i] + pads[n + i] if pads else 0)
        count = (d - (dilations[i] if dilations else 1) * (block[i] - 1) - 1) // (
            strides[i] if strides else 1
        ) + 1
        length *= max(count, 0)
    rows = math.prod(block)
    x = m.pick(1, 5, F, lambda a: length and a.size >= length * rows)
    channels = m.int(1, max(1, min(3, m[x].size // (length * rows))))
    total = channels * rows * length
    x = m.add("Reshape", [x, m.ints([1, -1])])
    if m[x].size != total:
        x = m.add("Slice", [x, m.ints([0]), m.ints([total]), m.ints([1])])
    x = m.add("Reshape", [x, m.ints([1, channels * rows, length])])
    return m.add(op, [x, m.ints(image), m.ints(block)], pads=pads, strides=strides, dilations=dilations)


# -- sums and products ---------------------------------------------------------------------------------------
@recipe("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceSumSquare",
        "ReduceLogSumExp", often=1.3)  # fmt: skip
def reduce(m, op):
    x = m.pick(1, 5)
    keepdims = m.one(None, 0, 1)
    axes = None if m.chance(0.15) else m.axes(m[x].ndim)
    if m.opset < (13 if op == "ReduceSum" else 18):
        return m.add(op, [x], axes=axes, keepdims=keepdims)
    noop = m.one(None, 0, 1)
    if axes is None:
        more = m.one([], [""], [m.initializer(np.zeros(0, np.int64))])
        if noop and op not in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"):
            noop = 0  # whether |x|, x*x ... still happens is read in two ways
    else:
        more = [m.ints(axes)]
    return m.add(op, [x, *more], keepdims=keepdims, noop_with_empty_axes=noop)


@recipe("Softmax", "LogSoftmax", "Hardmax", often=1.5)
def softmax(m, op):
    x = m.pick(1, 5)
    return m.add(op, [x], axis=m.one(None, m.axis(m[x].ndim), m.axis(m[x].ndim)))


@recipe("TopK", often=2.5)
def topk(m, op):
    x = m.pick(1, 5, F if m.chance(0.8) or m.opset < 11 else np.int64)
    axis = m.axis(m[x].ndim)
    k = m.int(1, m[x].shape[axis])
    written = None if axis == -1 else axis
    if m.opset < 10:
        return m.add(op, [x], [True, True], axis=written, k=k)[0]
    more = dict(largest=m.one(None, 0, 1), sorted=m.one(None, 1)) if m.opset >= 11 else {}
    return m.add(op, [x, m.ints([k])], [True, True], axis=written, **more)[0]


@recipe("ArgMax", often=2)
def argmax(m, op):
    x = m.pick(1, 5)
    axis = m.one(None, m.axis(m[x].ndim), m.axis(m[x].ndim))
    last = m.one(None, 0, 1) if m.opset >= 12 else None
    y = m.add(op, [x], axis=axis, keepdims=m.one(None, 0, 1), select_last_index=last)
    return m.add("Cast", [y], to=TensorProto.FLOAT) if m.chance(0.3) else y


@recipe("Gemm", often=6)
def gemm(m, op):
    x = m.pick(2, 2)
    transposed, b = m.one(None, 0, 1), m.one(None, 0, 1)
    rows, depth = m[x].shape[::-1] if transposed else m[x].shape
    k = m.int(1, 6)
    weight = m.const(m.array([k, depth] if b else [depth, k]) * F(1 / math.sqrt(depth)))
    alpha, beta = m.one(None, m.real(0.3, 2)), m.one(None, m.real(0.3, 2))
    more = [m.const(m.array(m.one([k], [1, k], [rows, 1], [rows, k], [])))]
    if m.opset >= 11 and m.chance(0.3):
        more = m.one([], [""])
    return m.add(op, [x, weight, *more], transA=transposed, transB=b, alpha=alpha, beta=beta)


@recipe("MatMul", often=3)
def matmul(m, op):
    x = m.pick(1, 5)
    shape = m[x].shape
    kind = m.int(0, 4)
    if kind == 0:
        return m.add(op, [x, m.const(m.array([shape[-1]]))])
    if kind == 1 and len(shape) > 1:
        return m.add(op, [m.const(m.array([m.int(1, 4), shape[-2]])), x])
    if kind == 2 and len(shape) > 1:
        return m.add(op, [x, m.pick(1, 5, F, lambda a: a.ndim > 1 and a.shape[-2] == shape[-1] and
                                    a.shape[:-2] in ((), shape[:-2]))])  # fmt: skip
    batch = m.broadcastable(shape[:-2]) if len(shape) > 2 and m.chance(0.3) else []
    return m.add(op, [x, weights(m, [*batch, shape[-1], m.int(1, 5)])])


@recipe("Einsum", since=12, often=2)
def einsum(m, op):
    x = m.pick(1, 5)
    shape, rank = m[x].shape, m[x].ndim
    names = "abcde"[:rank]
    kind = m.int(0, 5)
    if kind == 0:
        kept = "".join(names[i] for i in m.rng.permutation(rank)[: m.int(1, rank)])
        return m.add(op, [x], equation=f"{names}->{kept}" if m.chance(0.7) else f"{names} -> {kept}")
    if kind == 1:
        return m.add(op, [x, m.const(m.array([shape[-1], m.int(1, 4)]))], equation="...k,kn->...n")
    if kind == 2:
        y = m.pick(test=lambda a: a.shape == shape)
        return m.add(op, [x, y], equation=f"{names},{names}->{names[: m.int(1, rank)]}")
    if kind == 3 and rank > 1:
        return m.add(op, [x, m.pick(test=lambda a: a.ndim == rank and a.shape[:-1] == shape[:-1])],
                     equation=f"{names},{names[:-1]}z->{names[:-2]}{names[-1]}z")  # fmt: skip
    if kind == 4 and rank > 1:
        return m.add(op, [x], equation="...ij->...ji")
    i = m.int(0, rank - 1)
    return m.add(
        op, [x, m.const(m.array([shape[i]]))], equation=f"{names},{names[i]}" + m.one("", f"->{names}")
    )


# -- integers ------------------------------------------------------------------------------------------------
def on_integers(m):
    """Arithmetic of integers, exact."""
    x = m.pick(0, 5, None, lambda a: a.dtype in (np.int64, np.int32) and np.abs(a).max() < 1000)
    op = m.one("Add", "Sub", "Mul", "Abs", "Neg")
    if op in ("Abs", "Neg"):
        return m.add(op, [x])
    return m.add(op, [x, m.const(m.rng.integers(-3, 4, m.broadcastable(m[x].shape)).astype(m[x].dtype))])


#: what random_model covers; "Shape" and "Constant" come with constants that fold
OPERATORS = sorted(RECIPES)


def first_inputs(m):
    """One to three inputs, mostly images."""
    for i in range(m.one(1, 1, 2, 3)):
        kind = m.int(0, 9)
        shape = [m.one(1, 1, 2), m.one(1, 2, 3, 4, 6, 8), m.int(3, 10), m.int(3, 10)]
        if i == 0 or kind < 4:
            m.input(m.array(shape, -2, 2))
        elif kind < 6:
            rank = m.one(1, 2, 3, 3, 5)
            m.input(
                m.array(
                    [m.int(1, 2) if rank == 5 else m.int(1, 6), *(m.int(2, 5) for _ in range(rank - 1))],
                    -2,
                    2,
                )
            )
        elif kind < 8:
            m.input(m.rng.integers(0, 256, shape).astype(np.uint8))
        else:
            m.input(m.rng.integers(-9, 10, shape[m.int(0, 3) :]).astype(m.one(np.int64, np.int32)))


def grow(m, wanted):
    """Add nodes until there are ``wanted``; what is rejected is taken back and another drawn."""
    able = [op for op in OPERATORS if RECIPES[op][0] <= m.opset <= RECIPES[op][1]]
    often = np.array([RECIPES[op][3] for op in able])
    for _ in range(12 * wanted):
        if len(m.nodes) >= wanted:
            break
        state = m.state()
        op = able[int(m.rng.choice(len(able), p=often / often.sum()))]
        try:
            m.keep_small(on_integers(m) if m.chance(0.03) else RECIPES[op][2](m))
        except Reject:
            m.restore(state)


def finish(m):
    """The model: what nothing uses is an output (sometimes one is left hanging), now and then one in between."""
    computed = [n for n in m.live if n not in m.inputs]
    ends = [n for n in computed if n not in m.used]
    if len(ends) > 2 and m.chance(0.3):
        ends.pop(m.int(0, len(ends) - 1))
    between = [n for n in computed if n in m.used]
    if between and m.chance(0.2):
        ends.append(m.one(*between))
    if not ends:
        raise Reject
    graph = helper.make_graph(
        m.nodes, "random", list(m.inputs.values()), [value_info(n, m[n]) for n in ends],
        [numpy_helper.from_array(a, n) for n, a in m.initializers.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", m.opset)], ir_version=m.ir)


def runs(model, m):
    """Reject a model that ONNX Runtime refuses, or runs otherwise, as a whole."""
    names = [o.name for o in model.graph.output]
    try:
        found = session(model).run(names, m.feed)
    except Exception as error:  # noqa: BLE001 - as above
        raise Reject(f"as a whole: {error}") from None
    if any(apart(a, m[n], STEADY) for n, a in zip(names, found, strict=False)):
        raise Reject("as a whole it gives something else")


def random_model(seed: int, nodes: int = 30, opset: int | None = None) -> tuple[onnx.ModelProto, dict]:
    """A legal ONNX model of at most ``nodes`` nodes and a feed {input name: array}, the same for the same arguments."""
    for attempt in range(20):
        rng = np.random.default_rng([seed, nodes, attempt])
        chosen = opset or int(rng.choice([*OPSETS, 7, 9, 11, 12, 13, 18, 20, 20, 21, 21, 21]))
        m = Maker(rng, chosen, nodes)
        try:
            first_inputs(m)
            grow(m, m.int(min(4, nodes), nodes) if m.chance(0.3) else nodes)
            model = finish(m)
            runs(model, m)
        except Reject:
            continue
        onnx.checker.check_model(model)
        return model, m.feed
    raise AssertionError(f"seed {seed} gave no model")


# -- equality ------------------------------------------------------------------------------------------------
def apart(a, b, rtol=1e-4):
    """Why two outputs are not equal, or None: max|a-b| <= rtol max|b|, integers and booleans equal."""
    if not isinstance(a, np.ndarray) or a.shape != b.shape or a.dtype.kind != b.dtype.kind:
        kind = "" if isinstance(a, np.ndarray) else f"{type(a).__name__}: "
        return f"{kind}{getattr(a, 'dtype', '')}{getattr(a, 'shape', '')} is not {b.dtype}{b.shape}"
    if a.dtype.kind != "f":
        return None if np.array_equal(a, b) else f"{np.count_nonzero(a != b)} of {a.size} {a.dtype} differ"
    a, b = a.astype(D), b.astype(D)
    error, top = float(np.abs(a - b).max(initial=0)), float(np.abs(b).max(initial=0))
    return None if error <= rtol * top else f"{error:.3g} apart, of {top:.3g}"


def in_double(model, output):
    """What of the model makes this output, with double wherever it has float32."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    wanted, nodes = {output}, []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            nodes.insert(0, node)
            wanted |= set(node.input)
    ends = [o for o in model.graph.output if o.name == output][:1]
    for field, kept in (("node", nodes), ("output", ends)):
        kept = [type(k).FromString(k.SerializeToString()) for k in kept]
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(kept)

    def tensor(t):
        if t.data_type == TensorProto.FLOAT:
            t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t).astype(D), t.name))

    constants = []
    for t in model.graph.initializer:
        tensor(t)
    for info in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            info.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in model.graph.node:
        for a in node.attribute:
            if a.type == onnx.AttributeProto.TENSOR:
                tensor(a.t)
            elif node.op_type == "Cast" and a.name == "to" and a.i == TensorProto.FLOAT:
                a.i = TensorProto.DOUBLE
            elif node.op_type == "Constant" and a.name in ("value_float", "value_floats"):
                value = np.array(a.f if a.name == "value_float" else list(a.floats), D)
                constants.append((a, value))
    for a, value in constants:
        a.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(value)))
    return model


def evaluate_in_double(model, feed, output):
    """An output by onnx.reference in double; None where it cannot."""
    from onnx.reference import ReferenceEvaluator

    try:
        with np.errstate(all="ignore"):
            doubles = {n: a.astype(D) if a.dtype == F else a for n, a in feed.items()}
            return ReferenceEvaluator(in_double(model, output)).run(None, doubles)[0]
    except Exception:  # noqa: BLE001 - some of its operators take float32 only
        return None


def spread(model, feed):
    """{output: (lowest, highest)} of ONNX Runtime when the feed moves by float32's rounding."""
    runner, rng = session(model), np.random.default_rng(0)
    names, found = [o.name for o in model.graph.output], []
    for size in (0, *[3e-7] * 6, *[1e-6] * 6):
        moved = {
            n: np.asarray(a * (1 + size * rng.standard_normal(a.shape)), a.dtype)
            if a.dtype.kind == "f"
            else a
            for n, a in feed.items()
        }
        found.append([a.astype(D) for a in runner.run(names, moved)])
    return {n: (np.min(all_, 0), np.max(all_, 0)) for n, *all_ in zip(names, *found, strict=False)}


def differs(model, feed, ours: dict, theirs: list) -> str | None:
    """Why ``ours`` {output name: array} is not ``theirs`` (ONNX Runtime's list), or None.

    A difference counts unless evaluation in double agrees with ours and not with theirs; where double says neither
    (the reference lacks or misreads an operator), unless ours is among what ONNX Runtime gives near by.
    """
    names = [o.name for o in model.graph.output]
    if sorted(ours) != sorted(set(names)):
        return f"outputs {sorted(ours)}, not {sorted(set(names))}"
    found = {n: (i, why) for i, n in enumerate(names) if (why := apart(ours[n], theirs[i]))}
    if not found:
        return None
    near = None
    for n, (i, _) in list(found.items()):
        double = evaluate_in_double(model, feed, n)
        ours_off, theirs_off = (double is None or apart(a, double) for a in (ours[n], theirs[i]))
        if theirs_off and ours_off:
            if ours[n].shape != theirs[i].shape or ours[n].dtype != theirs[i].dtype:
                continue
            near = spread(model, feed) if near is None else near
            low, high = near[n]
            slack = (
                1e-4
                * max(np.abs(low).max(initial=0), np.abs(high).max(initial=0))
                * (ours[n].dtype.kind == "f")
            )
            theirs_off = bool(((ours[n] >= low - slack) & (ours[n] <= high + slack)).all())
        if theirs_off:
            del found[n]
    return "; ".join(f"{n}: {why}" for n, (_, why) in found.items()) or None
