"""Functions of numbers: one by one, of two tensors, along axes."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from ...network.tensors import NUMPY
from .attributes import along, axes, ints, only, shape


def _unary(name: str) -> Callable:
    return lambda call, attrs, x: NUMPY.unary(name, x)


def _binary(name: str) -> Callable:
    return lambda call, attrs, a, b: NUMPY.binary(name, a, b)


def _quiet(function: Callable) -> Callable:
    """A function of numpy's as a rule: what it says of infinities and zeros is in its result."""

    def rule(call, attrs, *arrays):
        with np.errstate(all="ignore"):
            return function(*arrays)

    return rule


def _half_away(x):
    """Relay's rounding."""
    return np.trunc(x + np.copysign(x.dtype.type(0.5), x)) if x.dtype.kind == "f" else x


def _truncated(function: Callable) -> Callable:
    """Division of integers towards zero, or what it leaves."""

    def rule(call, attrs, a, b):
        if a.dtype.kind == "f":
            with np.errstate(all="ignore"):
                return np.trunc(a / b) if function is np.floor_divide else np.fmod(a, b)
        quotient = NUMPY.binary("divide", a, b)
        return quotient if function is np.floor_divide else a - quotient * b

    return rule


def _clip(call, attrs, x):
    lo, hi = float(attrs.a_min), float(attrs.a_max)
    if x.dtype.kind in "iu":
        held = np.iinfo(x.dtype)
        lo, hi = max(lo, held.min), min(hi, held.max)
    return np.clip(x, x.dtype.type(lo), x.dtype.type(hi))


def _leaky_relu(call, attrs, x):
    return np.where(x >= 0, x, x * x.dtype.type(attrs.alpha))


def _prelu(call, attrs, x, slope):
    return np.where(x >= 0, x, x * along(slope, int(attrs.axis), x.ndim))


def _bias_add(call, attrs, x, bias):
    return x + along(bias, int(attrs.axis), x.ndim)


def _softmax(call, attrs, x):
    e = np.exp(x - x.max(int(attrs.axis), keepdims=True))
    return e / e.sum(int(attrs.axis), keepdims=True)


def _log_softmax(call, attrs, x):
    x = x - x.max(int(attrs.axis), keepdims=True)
    return x - np.log(np.exp(x).sum(int(attrs.axis), keepdims=True))


def _filled(value: int) -> Callable:
    return lambda call, attrs, *like: np.full(shape(call), value)


def _full(call, attrs, value, *sizes):
    return np.full(shape(call), value)


def _full_like(call, attrs, x, value):
    return np.full(shape(call), value)


def _one_hot(call, attrs, indices, on, off):
    made = np.where(np.arange(int(attrs.depth)) == indices[..., None], on, off)
    return np.moveaxis(made, -1, int(attrs.axis))


# -- along axes


def _reduce(name: str) -> Callable:
    return lambda call, attrs, x: NUMPY.reduce(name, x, axes(attrs, x.ndim)).reshape(shape(call))


def _mean(call, attrs, x):
    over = axes(attrs, x.ndim)
    total = NUMPY.reduce("sum", x, over).reshape(shape(call))
    return total / x.dtype.type(prod(x.shape[i] for i in over))


def _variance(call, attrs, x, mean):
    over = axes(attrs, x.ndim)
    squares = NUMPY.reduce("sum", (x - mean) ** 2, over).reshape(shape(call))
    return squares / x.dtype.type(prod(x.shape[i] for i in over) - bool(attrs.unbiased))


def _logical(function: Callable) -> Callable:
    return lambda call, attrs, x: function(x, axis=axes(attrs, x.ndim)).reshape(shape(call))


def _place(sign: int) -> Callable:
    """Where the largest is, or the smallest."""

    def rule(call, attrs, x):
        over = axes(attrs, x.ndim)
        only(len(over) in (1, x.ndim) and not attrs.select_last_index, call)
        x = x if sign > 0 else -x if x.dtype.kind == "f" else ~x
        if len(over) != 1:
            return np.reshape(x.reshape(-1).argmax(), shape(call))
        return NUMPY.argmax(x, over[0]).reshape(shape(call))

    return rule


def _running(function: Callable) -> Callable:
    def rule(call, attrs, x):
        axis = None if attrs.axis is None else int(attrs.axis)
        x = x.astype(call.checked_type.dtype)
        made = function(x, axis)
        if attrs.exclusive:  # without the number itself
            first = np.full_like(made.take([0], axis or 0), 0 if function is np.cumsum else 1)
            made = np.concatenate(
                [first, made.take(np.arange(made.shape[axis or 0] - 1), axis or 0)], axis or 0
            )
        return made

    return rule


def _sort(call, attrs, x):
    made = np.sort(x, int(attrs.axis), kind="stable")
    return made if attrs.is_ascend else np.flip(made, int(attrs.axis))


def _argsort(call, attrs, x):
    if attrs.is_ascend:
        return x.argsort(int(attrs.axis), kind="stable")
    return NUMPY.top(x, x.shape[int(attrs.axis)], int(attrs.axis))[1]


def _topk(call, attrs, x):
    only(not attrs.is_ascend and hasattr(attrs.k, "__int__") and int(attrs.k) > 0, call)
    values, places = NUMPY.top(x, min(int(attrs.k), x.shape[int(attrs.axis)]), int(attrs.axis))
    return {"both": [values, places], "values": values, "indices": places}[str(attrs.ret_type)]


# -- normalizations


def _moments(x, over):
    """x without its mean, and its variance over all there is, in which ``over`` stays with size 1."""
    centred = x - x.mean(over, keepdims=True)
    return centred, np.mean(centred * centred, over, keepdims=True)


def _scaled(attrs, made, gamma, beta, shaped):
    made = made * shaped(gamma) if attrs.scale else made
    return made + shaped(beta) if attrs.center else made


def _normalized(x, over, epsilon):
    centred, variance = _moments(x, over)
    return centred / np.sqrt(variance + x.dtype.type(epsilon))


def _batch_norm(call, attrs, x, gamma, beta, mean, variance):
    axis = int(attrs.axis) % x.ndim
    centred = x - along(mean, axis, x.ndim)
    made = centred / np.sqrt(along(variance, axis, x.ndim) + x.dtype.type(attrs.epsilon))
    return [_scaled(attrs, made, gamma, beta, lambda v: along(v, axis, x.ndim)), mean, variance]


def _layer_norm(call, attrs, x, gamma, beta):
    axis = int(attrs.axis) % x.ndim
    made = _normalized(x, axis, attrs.epsilon)
    return _scaled(attrs, made, gamma, beta, lambda v: along(v, axis, x.ndim))


def _instance_norm(call, attrs, x, gamma, beta):
    axis = int(attrs.axis) % x.ndim
    made = _normalized(x, tuple(i for i in range(1, x.ndim) if i != axis), attrs.epsilon)
    return _scaled(attrs, made, gamma, beta, lambda v: along(v, axis, x.ndim))


def _group_norm(call, attrs, x, gamma, beta):
    axis, groups = int(attrs.axis) % x.ndim, int(attrs.num_groups)
    only(axis == 1, call)
    made = _normalized(x.reshape(x.shape[0], groups, -1), 2, attrs.epsilon).reshape(x.shape)
    return _scaled(attrs, made, gamma, beta, lambda v: along(v, axis, x.ndim))


def _l2_normalize(call, attrs, x):
    over = ints(attrs.axis) if attrs.axis is not None else tuple(range(x.ndim))
    squares = np.maximum((x * x).sum(over, keepdims=True), x.dtype.type(attrs.eps))
    return x / np.sqrt(squares)


def _lrn(call, attrs, x):
    axis = int(attrs.axis) % x.ndim
    size, half = int(attrs.size), int(attrs.size) // 2
    squares = np.pad(x * x, [(half, half) if i == axis else (0, 0) for i in range(x.ndim)])
    reach = np.arange(x.shape[axis])
    total = sum(squares.take(reach + i, axis) for i in range(size))
    return x / (attrs.bias + (attrs.alpha / size) * total) ** attrs.beta


#: Relay operator -> its rule (call, attributes, arrays)
RULES: dict[str, Callable] = {
    **{name: _unary(name) for name in (
        "sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "abs", "negative", "erf", "floor", "ceil", "sign",
    )},
    **{name: _binary(name) for name in (
        "add", "subtract", "multiply", "divide", "maximum", "minimum", "power", "equal", "less",
        "less_equal", "greater", "greater_equal",
    )},
    **{name: _quiet(function) for name, function in {
        "acos": np.arccos, "acosh": np.arccosh, "asin": np.arcsin, "asinh": np.arcsinh,
        "atan": np.arctan, "atanh": np.arctanh, "cos": np.cos, "cosh": np.cosh, "sin": np.sin,
        "sinh": np.sinh, "tan": np.tan, "log2": np.log2, "log10": np.log10, "trunc": np.trunc,
        "isnan": np.isnan, "isinf": np.isinf, "isfinite": np.isfinite, "floor_divide": np.floor_divide,
        "logical_xor": np.logical_xor, "bitwise_and": np.bitwise_and, "bitwise_or": np.bitwise_or,
        "bitwise_xor": np.bitwise_xor, "bitwise_not": np.bitwise_not, "left_shift": np.left_shift,
        "right_shift": np.right_shift, "not_equal": np.not_equal,
    }.items()},
    "floor_mod": _quiet(np.mod),
    "mod": _truncated(np.mod),
    "trunc_mod": _truncated(np.mod),
    "trunc_divide": _truncated(np.floor_divide),
    "round": lambda call, attrs, x: _half_away(x),
    "logical_not": _unary("not"),
    "logical_and": _binary("and"),
    "logical_or": _binary("or"),
    "where": lambda call, attrs, condition, a, b: np.where(condition, a, b),
    "cast": lambda call, attrs, x: NUMPY.cast(x, attrs.dtype),
    "cast_like": lambda call, attrs, x, like: NUMPY.cast(x, like.dtype),
    "clip": _clip,
    "nn.relu": lambda call, attrs, x: np.maximum(x, x.dtype.type(0)),
    "nn.leaky_relu": _leaky_relu,
    "nn.prelu": _prelu,
    "nn.bias_add": _bias_add,
    **dict.fromkeys(("nn.softmax", "nn.fast_softmax"), _softmax),
    "nn.log_softmax": _log_softmax,
    **dict.fromkeys(("zeros", "zeros_like"), _filled(0)),
    **dict.fromkeys(("ones", "ones_like"), _filled(1)),
    "full": _full,
    "full_like": _full_like,
    "one_hot": _one_hot,
    **{name: _reduce(name) for name in ("sum", "max", "min", "prod")},
    "mean": _mean,
    "variance": _variance,
    "all": _logical(np.all),
    "any": _logical(np.any),
    "argmax": _place(1),
    "argmin": _place(-1),
    "cumsum": _running(np.cumsum),
    "cumprod": _running(np.cumprod),
    "sort": _sort,
    "argsort": _argsort,
    "topk": _topk,
    "nn.batch_norm": _batch_norm,
    "nn.layer_norm": _layer_norm,
    "nn.instance_norm": _instance_norm,
    "nn.group_norm": _group_norm,
    "nn.l2_normalize": _l2_normalize,
    "nn.lrn": _lrn,
}  # fmt: skip
