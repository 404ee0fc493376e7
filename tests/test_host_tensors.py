"""Every operation of `network.tensors.Tensors` of the installed host gives what its numpy meaning gives."""

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")

from tvm_easyquant.host import installed
from tvm_easyquant.network.tensors import BINARY, COMPARE, NUMPY, REDUCE, UNARY

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def whole(*shape, dtype=np.int64, lo=-4, hi=5):
    return RNG.integers(lo, hi, shape).astype(dtype)


def truth(*shape):
    return RNG.random(shape) < 0.5


def run_relay(cases, arrays, opt_level):
    """The outputs of all cases (functions of (t, tensors)) by ONE compiled function, and by the numpy rules of
    what was written, which need no TVM."""
    from tvm import relay

    from tvm_easyquant.relay.build import Executor
    from tvm_easyquant.relay.float_op import RelayOp
    from tvm_easyquant.relay.framework import NO_CSE, no_tophub
    from tvm_easyquant.relay.reference import execute
    from tvm_easyquant.relay.tensors import RELAY, Tensor

    tensors, params = [], []
    for i, a in enumerate(arrays):
        params.append(relay.var(f"x{i}", shape=a.shape, dtype=str(a.dtype)))
        tensors.append(Tensor.of(params[-1], a.shape, a.dtype))
    made = [case(RELAY, *tensors) for case in cases]
    module = tvm.IRModule.from_expr(relay.Function(params, relay.Tuple([m.expr for m in made])))
    with no_tophub(), tvm.transform.PassContext(opt_level=opt_level, config=NO_CSE):
        executor = Executor(relay.build(module, "llvm"))
    feed = {f"x{i}": a for i, a in enumerate(arrays)}
    got = executor(feed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RelayOp, "evaluate", None)
        return made, got, execute(module, feed)


def run_relax(cases, arrays, opt_level):
    """The same by Relax, twice the compiled ones: what was written has no numpy rules."""
    from tvm import relax

    from tvm_easyquant.relax.build import build
    from tvm_easyquant.relax.tensors import RelaxTensors, Tensor

    builder = relax.BlockBuilder()
    params = [relax.Var(f"x{i}", relax.TensorType(a.shape, str(a.dtype))) for i, a in enumerate(arrays)]
    tensors = [Tensor.of(p, a.shape, a.dtype) for p, a in zip(params, arrays, strict=True)]
    with builder.function("main", params):
        with builder.dataflow():
            made = [case(RelaxTensors(builder), *tensors) for case in cases]
            out = builder.emit_output(relax.Tuple([m.expr for m in made]))
        builder.emit_func_output(out)
    got = build(builder.get(), "llvm")({f"x{i}": a for i, a in enumerate(arrays)})
    return made, got, got


def check(cases, arrays, opt_level=0):
    run = {"relay": run_relay, "relax": run_relax}[installed().name]
    every = zip(cases.items(), *run(cases.values(), arrays, opt_level), strict=True)
    for (name, case), tensor, built, mine in every:
        want = case(NUMPY, *arrays)
        assert (tensor.shape, tensor.dtype) == (want.shape, want.dtype), name
        for got in (built, mine):
            equal(name, got, want)


def equal(name, mine, want):
    assert (mine.shape, mine.dtype) == (want.shape, want.dtype), name
    if want.dtype.kind == "f":
        atol = 2e-6 * np.abs(want).max(initial=1e-30)
        np.testing.assert_allclose(mine, want, rtol=1e-5, atol=atol, err_msg=name)
    else:
        np.testing.assert_array_equal(mine, want, err_msg=name)


def test_functions_of_one_tensor():
    real, positive = normal(3, 4, 5), np.abs(normal(7)) + np.float32(0.1)
    ties = np.float32([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49999997, 0.0, 1e9, -3.2, 3e38, -1e-30])
    cases = {}
    for name in sorted(set(UNARY) - {"not"}):
        source = 1 if name in ("log", "sqrt", "rsqrt") else 0
        cases[name] = lambda t, *x, n=name, i=source: t.unary(n, x[i])
        if name in ("floor", "ceil", "round", "sign", "abs", "negative"):
            cases[f"{name} of ties"] = lambda t, *x, n=name: t.unary(n, x[2])
            cases[f"{name} of integers"] = lambda t, *x, n=name: t.unary(n, x[3])
    cases["sqrt of integers"] = lambda t, *x: t.unary("sqrt", t.binary("multiply", x[3], x[3]))
    cases["not"] = lambda t, *x: t.unary("not", x[4])
    check(cases, [real, positive, ties, whole(9), truth(2, 6)])


@pytest.mark.parametrize("dtype", ["float32", "int64", "int32", "uint8", "bool"])
def test_functions_of_two_tensors(dtype):
    if dtype == "bool":
        arrays, names = [truth(2, 1, 5), truth(3, 1), truth()], {*COMPARE, "and", "or", "add", "multiply"}
    elif dtype == "float32":
        arrays = [np.abs(normal(2, 1, 5)), normal(3, 1), np.float32(1.5).reshape(())]
        names = {*COMPARE, *BINARY} - {"and", "or"}
    else:
        low = 0 if dtype == "uint8" else -4
        arrays = [
            whole(2, 1, 5, dtype=dtype, lo=low),
            whole(3, 1, dtype=dtype, lo=low),
            whole(dtype=dtype, lo=3),
        ]
        names = {*COMPARE, *BINARY} - {"and", "or", "power"}
    cases = {}
    for name in sorted(names):
        cases[name] = lambda t, a, b, c, n=name: t.binary(n, a, b)
        cases[f"{name} of a number"] = lambda t, a, b, c, n=name: t.binary(n, c, b)
        cases[f"{name} of itself"] = lambda t, a, b, c, n=name: t.binary(n, a, a)
    if dtype != "bool":
        cases["where"] = lambda t, a, b, c: t.where(t.binary("less", b, c), a, b)
        cases["where, a number"] = lambda t, a, b, c: t.where(t.binary("less", c, c), c, a)
    if dtype in ("int64", "int32"):
        cases["power"] = lambda t, a, b, c: t.binary("power", a, c)
    check(cases, arrays)


def test_integers_divide_towards_zero_and_never_stop_the_process():
    lowest = np.iinfo(np.int64).min
    a = np.int64([7, -7, 7, -7, 5, 0, lowest + 1, 2**62 + 1])
    b = np.int64([2, 2, -2, -2, 0, 0, -1, 3])
    check({"divide": lambda t, a, b: t.binary("divide", a, b)}, [a, b])


KINDS = ["float32", "int64", "int32", "uint8", "bool"]


def test_casts():
    arrays = [
        np.float32([-2.7, -0.5, 0.0, 0.3, 1.9, 100.6]), whole(5), whole(5, dtype=np.int32),
        whole(5, dtype=np.uint8, lo=0, hi=256), truth(5),
    ]  # fmt: skip
    cases = {
        f"{a.dtype} -> {to}": lambda t, *x, i=i, to=to: t.cast(x[i], to)
        for i, a in enumerate(arrays)
        for to in KINDS
        if (i, to) != (0, "uint8")  # negative
    }
    check(cases, arrays)


@pytest.mark.parametrize("dtype", KINDS)
def test_moves(dtype):
    kinds = {"float32": normal, "bool": truth}
    x = kinds.get(dtype, lambda *s: whole(*s, dtype=dtype, lo=0))(2, 3, 4, 5)
    y = kinds.get(dtype, lambda *s: whole(*s, dtype=dtype, lo=0))(3, 1)
    places = np.int64([[0, 2], [1, 1]])
    cases = {
        "reshape": lambda t, x, y, i: t.reshape(x, (4, 30)),
        "reshape to a number": lambda t, x, y, i: t.reshape(t.crop(y, (0, 0), (1, 1), (1, 1)), ()),
        "transpose": lambda t, x, y, i: t.transpose(x, (2, 0, 3, 1)),
        "broadcast": lambda t, x, y, i: t.broadcast(y, (2, 3, 4)),
        "concat": lambda t, x, y, i: t.concat([x, t.crop(x, (0,) * 4, (2, 1, 4, 5), (1,) * 4), x], 1),
        "concat of the last": lambda t, x, y, i: t.concat(
            [x, t.crop(x, (0,) * 4, (2, 3, 4, 4), (1,) * 4), x], 3
        ),
        "crop": lambda t, x, y, i: t.crop(x, (1, 0, 0, 1), (2, 3, 4, 5), (1, 2, 3, 2)),
        "pad": lambda t, x, y, i: t.pad(x, ((0, 0), (1, 0), (0, 2), (3, 1)), 1),
        "take": lambda t, x, y, i: t.take(x, np.int64([3, 0, 0]), 2),
        "gather": lambda t, x, y, i: t.gather(x, i, 1),
        "gather one": lambda t, x, y, i: t.gather(x, t.constant(np.int64(2)), 1),
        "constant": lambda t, x, y, i: t.constant(np.asarray(1, dtype)),
    }
    check(cases, [x, y, places])


@pytest.mark.parametrize("dtype", KINDS)
def test_reductions_and_orders(dtype):
    """Ties: few different numbers."""
    low = 0 if dtype in ("uint8", "bool") else -2
    x = whole(3, 4, 5, lo=low, hi=low + 4).astype(dtype)
    cases = {}
    for name in REDUCE:
        for axes in ((1,), (0, 2), (0, 1, 2), ()):
            cases[f"{name} {axes}"] = lambda t, x, n=name, a=axes: t.reduce(n, x, a)
    for axis in range(3):
        cases[f"argmax {axis}"] = lambda t, x, a=axis: t.argmax(x, a)
        cases[f"top {axis}"] = lambda t, x, a=axis: t.top(x, 2, a)[0]
        cases[f"places of top {axis}"] = lambda t, x, a=axis: t.top(x, 3, a)[1]
    check(cases, [x])


def test_the_first_place_of_the_largest_is_a_place():
    """Story: among equal numbers that are the lowest there is, Relay's argmax is -1."""
    x = np.float32([[np.finfo(np.float32).min] * 3, [-np.inf] * 3])
    check({"argmax": lambda t, x: t.argmax(x, 1)}, [x])


def test_products():
    arrays = [
        normal(2, 3, 4, 6),
        normal(2, 3, 6, 5),
        normal(4, 6),
        normal(6, 7),
        whole(3, 2, 4),
        whole(3, 4, 5),
    ]
    arrays += [normal(2, 1, 6), normal(1, 1, 4, 6)]
    cases = {
        "of a batch": lambda t, *x: t.matmul(x[0], x[1]),
        "of two matrices": lambda t, *x: t.matmul(x[2], x[3]),
        "with a constant": lambda t, *x: t.matmul(x[2], t.constant(np.ones((6, 3), np.float32))),
        "of integers": lambda t, *x: t.matmul(x[4], x[5]),
        "of two integer matrices": lambda t, *x: t.matmul(*(t.reshape(i, i.shape[1:]) for i in (
            t.crop(x[4], (0, 0, 0), (1, 2, 4), (1,) * 3), t.crop(x[5], (0, 0, 0), (1, 4, 5), (1,) * 3)))),
        "of a row": lambda t, *x: t.matmul(x[6], t.transpose(x[6], (0, 2, 1))),
        "of a batch of one": lambda t, *x: t.matmul(x[7], t.transpose(x[7], (0, 1, 3, 2))),
    }  # fmt: skip
    check(cases, arrays, opt_level=2)


#: name -> (x, weight, strides, padding, dilation, groups)
CONVOLUTIONS = {
    "1-D": ((2, 4, 11), (6, 4, 3), (2,), (1, 0), (2,), 1),
    "1-D, groups": ((2, 4, 11), (6, 2, 3), (1,), (0, 2), (1,), 2),
    "1-D, depthwise": ((1, 4, 9), (4, 1, 3), (1,), (1, 1), (1,), 4),
    "2-D": ((2, 4, 9, 8), (5, 4, 3, 2), (2, 1), (1, 0, 2, 1), (1, 2), 1),
    "2-D, groups": ((1, 4, 7, 7), (6, 2, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 2),
    "2-D, depthwise": ((1, 4, 7, 7), (4, 1, 3, 3), (1, 1), (1, 1, 1, 1), (2, 1), 4),
    "2-D, two filters of each channel": ((1, 4, 7, 7), (8, 1, 3, 3), (1, 2), (0, 1, 1, 0), (1, 1), 4),
    "3-D": ((1, 3, 5, 6, 7), (4, 3, 2, 3, 3), (1, 2, 1), (1, 0, 1, 0, 1, 2), (1, 1, 2), 1),
    "3-D, groups": ((1, 4, 4, 5, 5), (6, 2, 2, 2, 2), (1, 1, 2), (0, 1, 0, 1, 0, 0), (1, 1, 1), 2),
}


def test_convolutions():
    cases, arrays = {}, []
    for name, (x, weight, *rest) in CONVOLUTIONS.items():
        i, w = len(arrays), normal(*weight)
        arrays += [normal(*x), w]
        cases[name] = lambda t, *x, i=i, w=w, rest=rest: t.conv(x[i], t.constant(w), *rest)
        cases[f"{name}, computed"] = lambda t, *x, i=i, rest=rest: t.conv(x[i], x[i + 1], *rest)
    check(cases, arrays, opt_level=3)  # where layouts are changed


#: name -> (x, kernel, strides, padding, dilation)
POOLS = {
    "1-D": (normal(2, 3, 11), (3,), (2,), (1, 0), (2,)),
    "2-D": (normal(2, 3, 9, 8), (3, 2), (2, 1), (1, 0, 2, 1), (1, 2)),
    "3-D": (normal(1, 3, 5, 6, 7), (2, 3, 2), (1, 2, 2), (1, 0, 1, 0, 1, 1), (1, 1, 2)),
    "4-D": (normal(1, 2, 3, 4, 3, 4), (2, 2, 1, 2), (1, 2, 1, 2), (1, 0, 0, 0, 0, 0, 0, 0), (1, 1, 1, 1)),
    "2-D of integers": (whole(1, 3, 6, 5), (3, 2), (1, 2), (1, 1, 0, 0), (1, 1)),
    "2-D of bytes": (whole(1, 3, 6, 5, dtype=np.uint8, lo=0), (2, 2), (1, 1), (0, 0, 1, 1), (2, 1)),
}


def test_pools():
    cases = {
        f"{reduction} {name}": lambda t, *x, i=i, rest=rest, reduction=reduction: t.pool(
            reduction, x[i], *rest
        )
        for i, (name, (_, *rest)) in enumerate(POOLS.items())
        for reduction in ("max", "sum")
    }
    check(cases, [x for x, *_ in POOLS.values()])


def test_softmax():
    """Along any axis; far from zero, of equal numbers, of one."""
    arrays = [normal(2, 6, 7, 5), 100 * normal(3, 37), np.full((2, 1), 90, np.float32), normal(9)]
    cases = {
        f"{arrays[i].shape} along {axis}": lambda t, *x, i=i, axis=axis: t.softmax(x[i], axis)
        for i, axis in ((0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (2, 1), (3, 0))
    }
    check(cases, arrays)


def test_normalizations():
    """Of any rank, of one channel and of all together; numbers far from zero, and of no spread at all."""
    arrays = [
        normal(2, 6, 7, 5),
        normal(1, 4, 37),
        normal(2, 4, 3, 2, 5),
        normal(6),
        normal(6),
        normal(4),
        normal(4),
    ]
    arrays += [8 + normal(1, 6, 3, 3), np.full((1, 4, 2, 2), 3, np.float32)]
    made = ((0, 3, 6), (0, 3, 3), (0, 3, 1), (1, 5, 2), (1, 5, 4), (2, 5, 2), (7, 3, 2), (8, 5, 4))
    cases = {
        f"{arrays[i].shape}, {groups} groups": lambda t, *x, i=i, w=w, groups=groups: t.group_norm(
            x[i], x[w], x[w + 1], groups, 1e-5
        )
        for i, w, groups in made
    }
    check(cases, arrays)
