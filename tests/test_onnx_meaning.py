"""The meaning of every ONNX operator that has a rule, against ONNX's own node tests and ONNX Runtime.

The rules run over `Strict`, which hides numpy from them and holds them to what `network.tensors.Tensors`
promises to a host.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import networks
import numpy as np
import pytest

import tvm_easyquant as eq
from tvm_easyquant.errors import LoadError

pytest.importorskip("onnxruntime", minversion="1.22")  # older ones are wrong, or crash, on rare attributes

onnx = pytest.importorskip("onnx")
from onnx import helper
from onnx_cases import differs, node_cases

from tvm_easyquant.network.tensors import BINARY, COMPARE, NUMPY, REDUCE, UNARY
from tvm_easyquant.readers.meaning.rules import RULES
from tvm_easyquant.readers.onnx_op import NotConstant, from_node, plain


class Hidden:
    """A tensor that nothing can be done with but by `Strict`."""

    def __init__(self, array):
        assert isinstance(array, np.ndarray)
        self._array = array
        self.shape, self.dtype = self._array.shape, self._array.dtype

    __array__ = None  # no numpy function takes it


class Strict:
    """`NUMPY` that asserts what the protocol asks of a caller, and what it promises of the result."""

    def constant(self, array):
        assert isinstance(array, (np.ndarray, np.generic))
        return Hidden(NUMPY.constant(array))

    def cast(self, x, dtype):
        return Hidden(NUMPY.cast(x._array, dtype))

    def reshape(self, x, shape):
        assert np.prod(shape) == x._array.size and all(s >= 0 for s in shape)
        return Hidden(NUMPY.reshape(x._array, shape))

    def transpose(self, x, axes):
        assert sorted(axes) == list(range(x._array.ndim))
        return Hidden(NUMPY.transpose(x._array, axes))

    def broadcast(self, x, shape):
        return Hidden(NUMPY.broadcast(x._array, shape))

    def concat(self, tensors, axis):
        assert len({x.dtype for x in tensors}) == 1 and 0 <= axis < len(tensors[0].shape)
        return Hidden(NUMPY.concat([x._array for x in tensors], axis))

    def crop(self, x, begin, end, steps):
        assert len(begin) == len(end) == len(steps) == len(x.shape) and min(steps, default=1) >= 1
        assert all(0 <= b <= e <= s for b, e, s in zip(begin, end, x.shape, strict=True))
        return Hidden(NUMPY.crop(x._array, begin, end, steps))

    def pad(self, x, widths, value):
        assert len(widths) == len(x.shape) and all(w >= 0 for pair in widths for w in pair)
        return Hidden(NUMPY.pad(x._array, widths, value))

    def take(self, x, indices, axis):
        assert isinstance(indices, np.ndarray) and indices.ndim == 1 and 0 <= axis < len(x.shape)
        assert indices.dtype.kind == "i" and (indices >= 0).all() and (indices < x.shape[axis]).all()
        return Hidden(NUMPY.take(x._array, indices, axis))

    def gather(self, x, indices, axis):
        assert indices.dtype == np.int64 and 0 <= axis < len(x.shape) and (indices._array >= 0).all()
        return Hidden(NUMPY.gather(x._array, indices._array, axis))

    def unary(self, name, x):
        assert name in UNARY
        made = NUMPY.unary(name, x._array)
        assert made.dtype == x.dtype and made.shape == x.shape
        return Hidden(made)

    def binary(self, name, a, b):
        assert a.dtype == b.dtype and name in {*BINARY, *COMPARE}, (name, a.dtype, b.dtype)
        made = NUMPY.binary(name, a._array, b._array)
        assert made.dtype == (bool if name in COMPARE else a.dtype)
        return Hidden(made)

    def where(self, condition, a, b):
        assert condition.dtype == bool and a.dtype == b.dtype
        return Hidden(NUMPY.where(condition._array, a._array, b._array))

    def reduce(self, name, x, axes):
        assert name in REDUCE and all(0 <= a < len(x.shape) for a in axes) and len(set(axes)) == len(axes)
        made = NUMPY.reduce(name, x._array, axes)
        assert made.dtype == x.dtype
        return Hidden(made)

    def argmax(self, x, axis):
        assert 0 <= axis < len(x.shape)
        return Hidden(NUMPY.argmax(x._array, axis))

    def top(self, x, k, axis):
        assert isinstance(k, int) and 0 <= axis < len(x.shape)
        return tuple(map(Hidden, NUMPY.top(x._array, k, axis)))

    def matmul(self, a, b):
        assert a.dtype == b.dtype and a.shape[:-2] == b.shape[:-2] and a.shape[-1] == b.shape[-2]
        return Hidden(NUMPY.matmul(a._array, b._array))

    def conv(self, x, weight, strides, padding, dilation, groups):
        rank = len(x.shape) - 2
        assert len(strides) == len(dilation) == rank and len(padding) == 2 * rank and min(padding) >= 0
        assert x.shape[1] == weight.shape[1] * groups and weight.shape[0] % groups == 0
        return Hidden(NUMPY.conv(x._array, weight._array, strides, padding, dilation, groups))

    def pool(self, name, x, kernel, strides, padding, dilation):
        rank = len(x.shape) - 2
        assert name in ("max", "sum") and len(kernel) == len(strides) == len(dilation) == rank
        assert len(padding) == 2 * rank and min(padding) >= 0
        return Hidden(NUMPY.pool(name, x._array, kernel, strides, padding, dilation))

    def group_norm(self, x, scale, bias, groups, epsilon):
        assert x.dtype == scale.dtype == bias.dtype == np.float32 and len(x.shape) > 2
        assert scale.shape == bias.shape == (x.shape[1],) and x.shape[1] % groups == 0
        return Hidden(NUMPY.group_norm(x._array, scale._array, bias._array, groups, epsilon))

    def softmax(self, x, axis):
        assert x.dtype.kind == "f" and 0 <= axis < len(x.shape)
        return Hidden(NUMPY.softmax(x._array, axis))


def test_a_hidden_tensor_is_out_of_numpys_reach():
    """The harness can fail: a rule that used numpy on a tensor would end here."""
    with pytest.raises(TypeError):
        np.add(Hidden(np.ones(3)), 1)
    with pytest.raises(AssertionError):
        Strict().binary("add", Hidden(np.ones(3)), Hidden(np.ones(3, np.float32)))


def run(node, opset, feed, constants, outputs, index=0):
    """An output by its rule, as an array; feed: all inputs by name, constants: which of them are known."""
    known = {name: feed[name] for name in constants}
    op, names = from_node(node, opset, known, outputs, index)
    made = op.emit(Strict(), [Hidden(plain(feed[name])) for name in names])
    assert made.shape == op.shapes[index] and made.dtype == op.dtypes[index], (made.shape, made.dtype, op)
    return made._array


@cache
def cases(op: str) -> list:
    return [case for case in every_case() if case[1].op_type == op]


@cache
def every_case() -> list:
    """(name, node, opset, inputs, outputs) of the cases whose operator has a rule, with numbers in them."""
    return [
        (case.name, case.node, case.opset, case.inputs, case.outputs)
        for case in node_cases()
        if case.node.op_type in RULES
        # an empty list of axes is none
        and not any(x.size == 0 for x in [*case.inputs.values()][:1])
        and not any(x.size == 0 for x, _ in case.outputs.values())
    ]


def attempt(case, constants) -> list[str]:
    """The outputs that differ; NotConstant as the rule raises it."""
    _, node, opset, feed, wanted = case
    kinds = {name: (plain(x).dtype, x.shape) for name, (x, _) in wanted.items()}
    outputs = [kinds.get(name, (np.float32, ())) for name in node.output]
    return [
        name
        for index, name in enumerate(node.output)
        if name and differs(run(node, opset, feed, constants, outputs, index), *wanted[name])
    ]


#: cases that no rule runs although all inputs but the first are known, and why
NOT_BY_RULE = {
    "test_training_dropout": "random",
    "test_training_dropout_default": "random",
    "test_training_dropout_default_mask": "random",
    "test_training_dropout_mask": "random",
}


@pytest.mark.parametrize("op", sorted(RULES))
def test_onnx_node_cases(op, record_property):
    """Both ways: all inputs computed, and all but the first known."""
    passed, refused, failed = Counter(), Counter(), []
    for case in cases(op):
        name, node, _, feed, _ = case
        first = next((n for n in node.input if n), None)
        for way, constants in (("tensors", ()), ("constants", [n for n in feed if n != first])):
            try:
                wrong = attempt(case, constants)
            except NotConstant as told:
                refused[way] += 1
                if way == "constants" and name not in NOT_BY_RULE:
                    failed.append(f"{name}: {told}")
                continue
            if wrong:
                failed.append(f"{name}, {way}: {', '.join(wrong)}")
            passed[way] += not wrong
    record_property("cases", (op, len(cases(op)), dict(passed), dict(refused)))
    print(f"{op}: {len(cases(op))} cases; passed: {dict(passed)}, not by the rule: {dict(refused)}")
    assert not failed


def test_there_are_cases():
    """What is counted above: not one case, and then none, by mistake."""
    counts = Counter(node.op_type for _, node, *_ in every_case())
    assert sum(counts.values()) >= 380
    assert set(RULES) - set(counts) <= {"LpNormalization"}  # onnx 1.18 has none; ONNX Runtime tells below


# --- random legal attributes against ONNX Runtime


class Draw:
    """A node with random legal attributes; every draw is one of a seed."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def one(self, *of):
        return of[self.rng.integers(len(of))]

    def shape(self, low=1, high=5, largest=5):
        return tuple(int(s) for s in self.rng.integers(1, largest + 1, self.rng.integers(low, high + 1)))

    def array(self, shape, dtype=np.float32, spread=3.0):
        if np.dtype(dtype).kind == "f":
            return (self.rng.standard_normal(shape) * spread).astype(dtype)
        if np.dtype(dtype).kind == "b":
            return self.rng.random(shape) < 0.5
        low = 0 if np.dtype(dtype).kind == "u" else -9
        return self.rng.integers(low, 10, shape).astype(dtype)

    def axis(self, rank, negative=True):
        return int(self.rng.integers(-rank if negative else 0, rank))

    def axes(self, rank, negative=True):
        chosen = self.rng.permutation(rank)[: self.rng.integers(1, rank + 1)]
        return [int(a - rank * (negative and self.rng.random() < 0.5)) for a in chosen]


def softmax(d, op):
    x, opset = d.array(d.shape(), spread=30), d.one(7, 11, 13, 22)
    attributes = {"axis": d.axis(x.ndim, opset >= 11)}
    if d.one(0, 1) and x.ndim > 1:
        attributes = {}
    return helper.make_node(op, ["x"], ["y"], **attributes), opset, {"x": x}


def clip(d, op):
    opset = d.one(7, 11, 12, 13)
    x = d.array(
        d.shape(0, 4), d.one(np.float32, np.int8, np.uint8, np.int64) if opset >= 12 else np.float32
    )
    low, high = (
        sorted(d.array((2,), x.dtype)) if opset < 11 or d.one(0, 1, 2) else d.array((2,), x.dtype)
    )  # or crossed
    bounds = {name: v for name, v in {"min": low, "max": high}.items() if d.one(0, 1, 2)}
    if opset < 11:
        bounds = {name: float(v) for name, v in bounds.items()}
        return helper.make_node(op, ["x"], ["y"], **bounds), opset, {"x": x}
    names = ["x", *(name if name in bounds else "" for name in ("min", "max"))]
    return helper.make_node(op, names, ["y"]), opset, {"x": x, **bounds}


def reduction(d, op):
    opset = d.one(7, 11, 13, 18)
    kinds = (
        [np.float32, np.int32]
        if op not in ("ReduceLogSum", "ReduceLogSumExp", "ReduceL2")
        else [np.float32]
    )
    x = d.array(d.shape(), d.one(*kinds), spread=100 if op == "ReduceLogSumExp" else 3)
    if op == "ReduceLogSum":
        x = np.abs(x)
    axes = d.axes(x.ndim, opset >= 11) if d.one(0, 1, 2) else None
    if op == "ReduceProd":
        x = np.sign(x) * 1 if x.dtype.kind == "i" else x / 3  # what overflows is nobody's
    attributes = {"keepdims": d.one(0, 1)}
    feed = {"x": x}
    if opset >= (13 if op == "ReduceSum" else 18):
        attributes["noop_with_empty_axes"] = d.one(0, 1)
        if axes is not None:
            feed["axes"] = np.array(axes)
    elif axes is not None:
        attributes["axes"] = axes
    return helper.make_node(op, list(feed), ["y"], **attributes), opset, feed


def batch_norm(d, op):
    x, opset = d.array(d.shape(2, 5)), d.one(7, 9, 14, 15)
    c = x.shape[1]
    feed = {"x": x, "scale": d.array(c), "b": d.array(c), "mean": d.array(c), "var": d.array(c) ** 2}
    attributes, outputs = {"epsilon": d.one(1e-5, 1e-2)}, ["y"]
    return helper.make_node(op, list(feed), outputs, **attributes), opset, feed


def layer_norm(d, op):
    x = d.array(d.shape())
    axis = d.axis(x.ndim)
    feed = {"x": x, "scale": d.array(x.shape[axis:])}
    if d.one(0, 1):
        feed["b"] = d.array(x.shape[axis:])
    outputs = ["y", "mean", "inverse"][: d.one(1, 3)]
    return helper.make_node(op, list(feed), outputs, axis=axis, epsilon=d.one(1e-5, 1e-2)), 17, feed


def instance_norm(d, op):
    x = d.array((*d.shape(2, 4), 2))  # of one number ONNX Runtime cancels 1e-4
    feed = {"x": x, "scale": d.array(x.shape[1]), "b": d.array(x.shape[1])}
    return helper.make_node(op, list(feed), ["y"], epsilon=d.one(1e-5, 1e-2)), d.one(7, 17, 22), feed


def group_norm(d, op):
    groups, each, opset = d.one(1, 2, 3), d.one(1, 2, 4), d.one(18, 21)
    x = d.array((d.one(1, 2), groups * each, 2, *d.shape(0, 2)))
    c = groups if opset < 21 else groups * each
    feed = {"x": x, "scale": d.array(c), "b": d.array(c)}
    return helper.make_node(op, list(feed), ["y"], num_groups=groups), opset, feed


def lp_norm(d, op):
    x = d.array(d.shape(1, 4))
    x[0] = x[0] * d.one(0, 1)
    return helper.make_node(op, ["x"], ["y"], p=d.one(1, 2), axis=d.axis(x.ndim)), d.one(7, 13), {"x": x}


def local_response(d, op):
    x = d.array((d.one(1, 2), d.one(1, 3, 7), *d.shape(2, 2)))
    attributes = {
        "size": d.one(1, 3, 5),
        "alpha": d.one(1e-4, 0.5),
        "beta": d.one(0.75, 1.0),
        "bias": d.one(1.0, 2.0),
    }
    return helper.make_node(op, ["x"], ["y"], **attributes), d.one(7, 13), {"x": x}


def moments(d, op):
    x = d.array((2, 3, d.one(2, 3), d.one(2, 4)))  # ONNX Runtime: 0 / 0 where one number is normalized
    attributes = {"axes": d.one([0, 2, 3], [2, 3], [1, 2, 3], [-1, 0])}
    return helper.make_node(op, ["x"], ["y"], **attributes), d.one(9, 13), {"x": x}


def activation(d, op):
    x = d.array(d.shape(0, 4), spread=d.one(1, 30))
    has = {"LeakyRelu": ["alpha"], "Elu": ["alpha"], "Selu": ["alpha", "gamma"], "Celu": ["alpha"],
           "ThresholdedRelu": ["alpha"], "HardSigmoid": ["alpha", "beta"]}.get(op, [])  # fmt: skip
    attributes = {name: float(d.rng.random() + 0.1) for name in has if d.one(0, 1)}
    if op == "Gelu":
        attributes = {"approximate": d.one("none", "tanh")}
    oldest = (
        onnx.defs.get_schema(op).since_version
        if op in ("Gelu", "Mish")
        else {"Celu": 12, "HardSwish": 14}.get(op, 10)
    )
    opset = d.one(oldest, max(oldest, 14), 22 if op == "Mish" else max(oldest, 20))
    return helper.make_node(op, ["x"], ["y"], **attributes), opset, {"x": x}


def prelu(d, op):
    x = d.array(d.shape(1, 4))
    slope = d.array([d.one(1, s) for s in x.shape[d.rng.integers(x.ndim) :]])
    return helper.make_node(op, ["x", "slope"], ["y"]), d.one(7, 9, 16), {"x": x, "slope": slope}


def arg(d, op):
    x, opset = d.array(d.shape(), d.one(np.float32, np.int32)), d.one(7, 11, 12, 13)
    if x.dtype == np.float32:
        x = np.round(x)  # ties
    attributes = {"axis": d.axis(x.ndim, opset >= 11), "keepdims": d.one(0, 1)}
    if opset >= 12:
        attributes["select_last_index"] = d.one(0, 1)
    return helper.make_node(op, ["x"], ["y"], **attributes), opset, {"x": x}


def top(d, op):
    opset = d.one(7, 10, 11)
    x = d.array(d.shape(), d.one(np.float32, np.int64) if opset == 11 else np.float32)
    if x.dtype == np.float32 and opset == 11:
        x = np.round(x)  # ties
    axis = d.axis(x.ndim)
    k = int(d.rng.integers(1, x.shape[axis] + 1))
    attributes = {"axis": axis if opset == 11 else axis % x.ndim}
    if opset < 10:
        return helper.make_node(op, ["x"], ["y", "places"], k=k, **attributes), opset, {"x": x}
    if opset == 11:
        attributes["largest"] = d.one(0, 1)
    return (
        helper.make_node(op, ["x", "k"], ["y", "places"], **attributes),
        opset,
        {"x": x, "k": np.array([k])},
    )


def matmul(d, op):
    m, k, n = d.rng.integers(1, 5, 3)
    lead = d.shape(0, 3, 3)
    a, b = (tuple(d.one(1, s) for s in lead[d.rng.integers(len(lead) + 1) :]) for _ in range(2))
    a, b = (d.one((m, k), (k,)) if not a else (*a, m, k)), (d.one((k, n), (k,)) if not b else (*b, k, n))
    dtype = d.one(np.float32, np.float32, np.int32)
    return (
        helper.make_node(op, ["a", "b"], ["y"]),
        d.one(9, 13),
        {"a": d.array(a, dtype), "b": d.array(b, dtype)},
    )


def gemm(d, op):
    m, k, n = d.rng.integers(1, 5, 3)
    turned = {"transA": d.one(0, 1), "transB": d.one(0, 1)}
    opset = d.one(7, 9, 11, 13)
    feed = {
        "a": d.array((k, m) if turned["transA"] else (m, k)),
        "b": d.array((n, k) if turned["transB"] else (k, n)),
    }
    if opset < 11 or d.one(0, 1, 2):
        feed["c"] = d.array(d.one((), (1,), (n,), (m, 1), (1, n), (m, n)))
    attributes = {"alpha": d.one(1.0, 0.5), "beta": d.one(1.0, 2.0, 0.0)}
    return helper.make_node(op, list(feed), ["y"], **turned, **attributes), opset, feed


EQUATIONS = ("ij,jk->ik", "bij,bjk", "i,j->ij", "ij->ji", "ij->", "ii->i", "bii->b", "...ij,...jk->...ik", "i...->...",
             "bhqd,bhkd->bhqk", "nchw,kc->nkhw", "ij,ij->j", "ij,ij->ij", "bij, bj -> bi", "...i,...i", "ij,jk,kl->il",
             "abc,cd,be->ade", "nctv,vw->nctw", "i,i", "ij,k->i", "ba,ca", "...ii->...")  # fmt: skip


def einsum(d, op):
    equation = EQUATIONS[d.count % len(EQUATIONS)]
    sizes = dict(zip("abcdehijklnqtvw", d.rng.integers(1, 5, 15).tolist(), strict=True))
    hidden, feed = [2, 3], {}
    for i, term in enumerate(equation.replace(" ", "").partition("->")[0].split(",")):
        own = [s if d.one(0, 1) else 1 for s in hidden] if i else hidden
        at = term.find("...")
        shape = [sizes[c] for c in term.replace("...", "")]
        feed[f"x{i}"] = d.array(shape[:at] + own + shape[at:] if at >= 0 else shape)
    return helper.make_node(op, list(feed), ["y"], equation=equation), 12, feed


def arithmetic(d, op):
    opset, shape = d.one(7, 13, 14), d.shape(0, 4)
    other = tuple(d.one(1, s) for s in shape[d.rng.integers(len(shape) + 1) :])
    dtype = d.one(np.float32, np.int32, np.int64)
    a, b = d.array(shape, dtype), d.array(other, dtype)
    if op == "Div":
        b = np.where(b == 0, b.dtype.type(3), b)
    if d.one(0, 1):
        a, b = b, a if op != "Div" else np.where(a == 0, a.dtype.type(3), a)
    return helper.make_node(op, ["a", "b"], ["y"]), opset, {"a": a, "b": b}


def power(d, op):
    opset, shape = d.one(7, 13, 15), d.shape(0, 4)
    base, exponent = (
        (d.one(np.float32, np.int32), d.one(np.float32, np.int32, np.int64))
        if opset > 12
        else [np.float32] * 2
    )
    a = np.abs(d.array(shape, base)) + base(1)
    b = np.asarray(d.rng.integers(0, 6, d.one((), shape))).astype(exponent)
    return helper.make_node(op, ["a", "b"], ["y"]), opset, {"a": a, "b": b}


def cast(d, op):
    kinds = (np.float32, np.float64, np.float16, np.int8, np.uint8, np.int32, np.int64, bool)
    x = np.abs(d.array(d.shape(0, 3), d.one(*kinds)))  # a negative number as uint8 is nobody's
    to = helper.np_dtype_to_tensor_dtype(np.dtype(d.one(*kinds)))
    return helper.make_node(op, ["x"], ["y"], to=to), d.one(9, 13, 19), {"x": x}


def variadic(d, op):
    opset, shape = d.one(8, 12, 13), d.shape(0, 4)
    dtype = d.one(np.float32, np.int32) if opset >= 12 and op in ("Max", "Min") else np.float32
    feed = {
        f"x{i}": d.array([d.one(1, s) for s in shape[d.rng.integers(len(shape) + 1) :]], dtype)
        for i in range(d.one(1, 2, 3))
    }
    return helper.make_node(op, list(feed), ["y"]), opset, feed


def recurrent(d, op):
    gates, count = {"LSTM": (4, 3), "GRU": (3, 2), "RNN": (1, 1)}[op]
    ways = d.one(1, 2)
    steps, batch, features, size = (int(n) for n in d.rng.integers(1, 5, 4))
    attributes = {
        "hidden_size": size,
        "direction": "bidirectional" if ways == 2 else d.one("forward", "reverse"),
    }
    if d.one(0, 1):
        known = ("Sigmoid", "Tanh", "Relu", "Softsign", "HardSigmoid", "LeakyRelu")
        attributes["activations"] = [d.one(*known) for _ in range(ways * count)]
        if {"HardSigmoid", "LeakyRelu"} & set(attributes["activations"]):  # ONNX Runtime has others unsaid
            del attributes["activations"]
    if d.one(0, 1, 2) == 0:
        attributes["clip"] = 1.5
    if op == "GRU":
        attributes["linear_before_reset"] = d.one(0, 1)
    feed = {
        "x": d.array((steps, batch, features)),
        "w": d.array((ways, gates * size, features), spread=0.5),
        "r": d.array((ways, gates * size, size), spread=0.5),
    }
    names = ["x", "w", "r", "b", "", "h", "c", "p"]
    optional = {
        "b": (ways, 2 * gates * size), "h": (ways, batch, size), "c": (ways, batch, size), "p": (ways, 3 * size),
    }  # fmt: skip
    for name, shape in optional.items():
        if d.one(0, 1) and (op == "LSTM" or name in "bh"):
            feed[name] = d.array(shape)
    names = [name if name in feed else "" for name in names[: 8 if op == "LSTM" else 6]]
    return helper.make_node(op, names, ["y", "last", "cell"][: 2 + (op == "LSTM")], **attributes), 14, feed


def cumulative(d, op):
    x = d.array(d.shape())
    attributes = {"exclusive": d.one(0, 1), "reverse": d.one(0, 1)}
    feed = {"x": x, "axis": np.array(d.axis(x.ndim))}
    return helper.make_node(op, ["x", "axis"], ["y"], **attributes), d.one(11, 14), feed


DRAWS = {
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), softmax),
    **dict.fromkeys([op for op in RULES if op.startswith("Reduce")], reduction),
    **dict.fromkeys(("LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "HardSigmoid", "HardSwish", "Sigmoid",
                     "Tanh", "Softplus", "Softsign", "Gelu", "Mish", "Erf", "Sign", "Abs", "Neg"), activation),
    **dict.fromkeys(("ArgMax", "ArgMin"), arg),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), arithmetic),
    **dict.fromkeys(("Max", "Min", "Sum", "Mean"), variadic),
    "BatchNormalization": batch_norm, "Cast": cast, "Clip": clip, "CumSum": cumulative, "Einsum": einsum, "Gemm": gemm,
    "GroupNormalization": group_norm, "InstanceNormalization": instance_norm, "LayerNormalization": layer_norm,
    "LpNormalization": lp_norm, "LRN": local_response, "MatMul": matmul, "MeanVarianceNormalization": moments,
    "Pow": power, "PRelu": prelu, "TopK": top,
}  # fmt: skip


def by_onnxruntime(node, opset, feed):
    """Its outputs; None where it has no kernel for these types."""
    ort = pytest.importorskip("onnxruntime")
    kinds = {name: helper.np_dtype_to_tensor_dtype(a.dtype) for name, a in feed.items()}
    inputs = [helper.make_tensor_value_info(name, kinds[name], a.shape) for name, a in feed.items()]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
    model = helper.make_model(
        helper.make_graph([node], "one", inputs, outputs),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except ort.capi.onnxruntime_pybind11_state.NotImplemented:
        return None
    return session.run(None, feed)


@pytest.mark.parametrize("op", sorted(DRAWS))
def test_random_attributes_against_onnxruntime(op):
    compared, count = 0, 44 if op == "Einsum" else 24
    for i in range(count):
        d = Draw([i, *op.encode()])
        d.count = i
        node, opset, feed = DRAWS[op](d, op)
        feed = {name: np.asarray(a) for name, a in feed.items()}
        wanted = by_onnxruntime(node, opset, feed)
        if wanted is None:
            continue
        others = list(feed)[1:]
        shapes = [(plain(w).dtype, np.shape(w)) for w in wanted]
        for index, want in enumerate(map(plain, wanted)):
            made = run(node, opset, feed, others, shapes, index)
            story = f"{op} {i} opset {opset} {[(n, np.shape(a)) for n, a in feed.items()]} {node.attribute}"
            if want.dtype.kind == "f":
                bound = 1e-4 * np.abs(want[np.isfinite(want)]).max(initial=0) + 1e-6
                np.testing.assert_allclose(
                    made, want, 1e-3 if "float16" in str(wanted) else 0, bound, err_msg=story
                )
            else:
                np.testing.assert_array_equal(made, want, err_msg=story)
        compared += 1
    assert compared >= count // 2


# --- what neither of them tells


def one(node, opset, feed, wanted, constants=()):
    """The outputs of a node whose outputs look like ``wanted``."""
    shapes = [(plain(w).dtype, np.shape(w)) for w in wanted]
    return [run(node, opset, feed, constants, shapes, i) for i in range(len(wanted))]


@pytest.mark.parametrize(("equation", "shapes"), [("...ij,jk->...ik", [(2, 3, 4, 5), (5, 6)]),
                                                  ("...i,...i", [(2, 3, 4), (3, 4)]), ("aab,b->a", [(3, 3, 2), (2,)]),
                                                  ("a,b,c->cab", [(2,), (3,), (4,)]), ("Aa,aA", [(2, 3), (3, 2)])])  # fmt: skip
def test_einsum_is_numpys(equation, shapes):
    """ONNX Runtime wants ellipses of one length; the specification says "compatible with numpy"."""
    x = [np.random.default_rng(i).standard_normal(s).astype(np.float32) for i, s in enumerate(shapes)]
    feed = {f"x{i}": a for i, a in enumerate(x)}
    want = np.einsum(equation, *x)
    node = helper.make_node("Einsum", list(feed), ["y"], equation=equation)
    np.testing.assert_allclose(one(node, 12, feed, [want])[0], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("opset", "outputs"), [(9, 5), (14, 3), (9, 1), (14, 1)])
def test_batch_normalization_in_training(opset, outputs):
    """Below opset 14 the outputs say that it is training; from then on an attribute does, whatever the outputs."""
    rng = np.random.default_rng(3)
    x, *of = (rng.random(s).astype(np.float32) for s in ((2, 3, 4, 5), 3, 3, 3, 3))
    feed = dict(zip(("x", "scale", "b", "mean", "var"), (x, *of), strict=True))
    training = outputs > 1 or opset == 14
    now = (x.mean((0, 2, 3)), x.var((0, 2, 3)))
    mean, var = now if training else of[2:]
    scale, b, mean_, var_ = (v.reshape(3, 1, 1) for v in (*of[:2], mean, var))
    y = (x - mean_) / np.sqrt(var_ + 1e-5) * scale + b
    running = [old * 0.75 + new * 0.25 for old, new in zip(of[2:], now, strict=True)]
    attributes = {"training_mode": 1} if opset == 14 else {}
    names = ["y", "m", "v", "sm", "sv"][:outputs]
    node = helper.make_node("BatchNormalization", list(feed), names, momentum=0.75, **attributes)
    wanted = [y, *running, *now][:outputs]
    for made, want in zip(one(node, opset, feed, wanted), wanted, strict=True):
        np.testing.assert_allclose(made, want, rtol=1e-4, atol=1e-5)


def test_batch_normalization_that_is_not_spatial():
    """Opset 7 could have numbers for each place of a channel."""
    rng = np.random.default_rng(4)
    x, *of = (rng.random(s).astype(np.float32) for s in ((2, 3, 4), *[(3, 4)] * 4))
    feed = dict(zip(("x", "scale", "b", "mean", "var"), (x, *of), strict=True))
    want = (x - of[2]) / np.sqrt(of[3] + 1e-5) * of[0] + of[1]
    node = helper.make_node("BatchNormalization", list(feed), ["y"], spatial=0)
    np.testing.assert_allclose(one(node, 7, feed, [want])[0], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("op", "limit"), [("Softplus", np.float32(200)), ("Mish", np.float32(200)), ("Elu", np.float32(200)),
                                           ("ReduceLogSumExp", np.float32(200)), ("Softmax", np.float32(1))])  # fmt: skip
def test_no_overflow(op, limit):
    """exp(200) is no float32; its result would be."""
    x = np.array([[200.0]], np.float32)
    assert one(helper.make_node(op, ["x"], ["y"]), 18, {"x": x}, [x])[0] == limit


def test_the_sum_of_exponentials_of_nothing():
    x = np.array([[-np.inf, -np.inf], [np.inf, 0]], np.float32)
    node = helper.make_node("ReduceLogSumExp", ["x"], ["y"], axes=[1], keepdims=0)
    np.testing.assert_array_equal(one(node, 13, {"x": x}, [x[:, 0]])[0], [-np.inf, np.inf])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint64, np.int64])
def test_the_smallest_of_integers_at_the_edge_of_their_type(dtype):
    """Story: the smallest was the largest of -x, but -x of the lowest integer is itself, and of unsigned ones
    another order."""
    limits = np.iinfo(dtype)
    x = np.array([3, limits.max, limits.min, 3, limits.max - 1], dtype)
    least = helper.make_node("ArgMin", ["x"], ["y"], axis=0)
    assert one(least, 13, {"x": x}, [np.int64([0])])[0] == 2
    for largest, places in ((0, [2, 0, 3]), (1, [1, 4, 0])):
        node = helper.make_node("TopK", ["x", "k"], ["y", "i"], largest=largest)
        made = one(node, 11, {"x": x, "k": np.array([3])}, [x[places], np.int64(places)], ["k"])
        assert [a.tolist() for a in made] == [x[places].tolist(), places]


def test_an_even_number_of_neighbours():
    """ONNX Runtime refuses it; of an even size one more channel counts behind than before."""
    x = np.random.default_rng(6).standard_normal((1, 5, 1, 1)).astype(np.float32)
    squares = (x * x).ravel()
    around = np.array([squares[max(c - 1, 0) : c + 3].sum() for c in range(5)]).reshape(x.shape)
    node = helper.make_node("LRN", ["x"], ["y"], size=4, alpha=2.0)
    np.testing.assert_allclose(one(node, 13, {"x": x}, [x])[0], x / (1 + around / 2) ** 0.75, rtol=1e-5)


def test_integer_powers_are_exact():
    """7 ** 9 is no float32."""
    a, b = np.array([7, -3, 2, 9], np.int64), np.array([9, 3, -1, 0], np.int32)
    node = helper.make_node("Pow", ["a", "b"], ["y"])
    assert one(node, 15, {"a": a, "b": b}, [a])[0].tolist() == [7**9, -27, 0, 1]


def test_dropout_in_training_that_drops_nothing():
    feed = {"x": np.ones((2, 3), np.float32), "ratio": np.float32(0), "training": np.array(True)}
    node = helper.make_node("Dropout", list(feed), ["y", "mask"])
    y, mask = one(node, 13, feed, [feed["x"], np.ones((2, 3), bool)], ["ratio", "training"])
    assert (y == 1).all() and mask.all()


def test_a_float_node_reads_a_tensor_once_and_runs_in_the_graphs_layout():
    """Mul(x, x) has one tensor; an input left out has no place; arrays of four axes are NHWC."""
    x = np.random.default_rng(5).random((2, 4, 5, 3)).astype(np.float32)
    op, names = from_node(helper.make_node("Mul", ["x", "x"], ["y"]), 14, {}, [(np.float64, (2, 3, 4, 5))])
    assert names == ["x"] and op.tensors == {0: 0, 1: 0} and op.dtypes == ("float32",)
    np.testing.assert_array_equal(op.evaluate(x), x * x)
    clip = helper.make_node("Clip", ["x", "", "high"], ["y"])
    op, names = from_node(clip, 13, {"high": np.float16(0.5)}, [(np.float16, (2, 3, 4, 5))])
    assert op.tensors == {0: 0} and list(op.constants) == [2] and op.constants[2].dtype == np.float32
    np.testing.assert_array_equal(op.evaluate(x), np.minimum(x, np.float32(0.5)))


def test_what_no_rule_runs_the_reference_does():
    """The axes of this sum are computed."""
    x, axes = np.ones((2, 3), np.float32), np.array([1])
    op, names = from_node(
        helper.make_node("ReduceSum", ["x", "axes"], ["y"]), 13, {}, [(np.float32, (2, 1))]
    )
    assert names == ["x", "axes"]
    np.testing.assert_array_equal(op.evaluate(x, axes), [[3], [3]])


def runtime(model):
    import onnxruntime as ort

    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


SEVERAL = {
    "of several lengths": dict(lengths=(2, 5)),
    "of several lengths, from states": dict(lengths=(4, 1), initial=True),
    "with numbers": dict(activations=["HardSigmoid", "ScaledTanh", "Affine"], activation_alpha=[0.3, 0.7, 1.2],
                         activation_beta=[0.4, 0.9, 0.1]),
    "with numbers of some": dict(activations=["Elu", "LeakyRelu", "Tanh"], activation_alpha=[0.2, 0.5]),
    "long": dict(steps=520),
    "long and clipped": dict(steps=520, clip=0.4),
}  # fmt: skip


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op, count", [("LSTM", 3), ("GRU", 2), ("RNN", 1)])
@pytest.mark.parametrize("name", SEVERAL)
def test_what_a_recurrent_operator_seldom_has(name, op, count, direction):
    """Story: these were computed by onnx.reference, which ignores lengths, directions and activations, and the
    network was calibrated and compiled with its numbers."""
    options = dict(steps=5, batch=2, size=3) | SEVERAL[name]
    ways = 2 if direction == "bidirectional" else 1
    if "activations" in options:
        named = options["activations"][:count]
        options["activations"] = named * ways
        for which, takers in (
            ("alpha", ("HardSigmoid", "ScaledTanh", "Affine", "Elu", "LeakyRelu")),
            ("beta", ("HardSigmoid", "ScaledTanh", "Affine")),
        ):
            taken = sum(each in takers for each in named)
            numbers = options.pop(f"activation_{which}", [])[:taken] * ways
            options |= {f"activation_{which}": numbers} if numbers else {}
    model, x = networks.recurrent(op, direction=direction, **options)
    expected = runtime(model).run(None, {"x": x})
    for want, made in zip(expected, eq.load_onnx(model).run({"x": x}).values(), strict=True):
        np.testing.assert_allclose(made, want, atol=3e-6, rtol=1e-5)


def test_a_recurrent_operator_may_leave_out_its_first_output():
    model, x = networks.recurrent("GRU", steps=3, size=4)
    model.graph.node[0].output[0] = ""
    del model.graph.output[0]
    (want,) = runtime(model).run(None, {"x": x})
    np.testing.assert_allclose(eq.load_onnx(model).run({"x": x})["yh"], want, atol=1e-6)


def test_what_no_recurrent_operator_can_be_is_refused_by_name():
    model, _ = networks.recurrent("GRU", lengths=(7,))
    del model.graph.initializer[[each.name for each in model.graph.initializer].index("l")]
    model.graph.input.append(helper.make_tensor_value_info("l", onnx.TensorProto.INT32, [1]))
    with pytest.raises(
        LoadError, match=r"node cell \(GRU\) has sequence_lens that are computed; give them as"
    ):
        eq.load_onnx(model)
    model, _ = networks.recurrent("LSTM", activations=["Sigmoid", "ScaledTanh", "Tanh"] * 2)
    with pytest.raises(
        LoadError, match="has the activations Sigmoid, ScaledTanh, .* lacks its alpha or beta"
    ):
        eq.load_onnx(model)
