"""Float Relax modules for tests, as a user writes them with a BlockBuilder."""

from __future__ import annotations

import numpy as np

from tvm_easyquant.relax.framework import relax, tvm

OP = relax.op


def variable(name, shape, dtype="float32"):
    return relax.Var(name, relax.TensorType(shape, dtype))


def module(inputs, body, **attributes):
    """A module whose ``main`` takes ``inputs`` (variables) and returns ``body(emit, *inputs)``, an expression
    or a list of them."""
    builder = relax.BlockBuilder()
    with builder.function("main", list(inputs), attrs=attributes):
        with builder.dataflow():
            made = body(builder.emit, *inputs)
            made = relax.Tuple(made) if isinstance(made, (list, tuple)) else made
            made = builder.emit_output(made)
        builder.emit_func_output(made)
    return builder.get()


def constants(seed=0):
    """A function that makes constants: normal numbers, or from ``low`` to 1.5."""
    rng = np.random.default_rng(seed)

    def const(*shape, low=None):
        values = 0.3 * rng.standard_normal(shape) if low is None else rng.uniform(low, 1.5, shape)
        return relax.const(values.astype(np.float32))

    return const


def float_module(seed=0):
    """A convolution, batch norm, ReLU, pool, softmax, two more layers."""
    const = constants(seed)

    def body(emit, x):
        y = emit(OP.nn.conv2d(x, const(8, 3, 3, 3), padding=1), "first")
        numbers = [const(8, low=0.5), const(8), const(8), const(8, low=0.5)]
        norm = emit(OP.nn.batch_norm(y, *numbers, axis=1, training=False))
        y = emit(OP.nn.relu(emit(relax.TupleGetItem(norm, 0))), "on")
        y = emit(OP.nn.softmax(emit(OP.nn.max_pool2d(y, (2, 2), (2, 2))), axis=1), "soft")
        y = emit(OP.nn.relu(emit(OP.nn.conv2d(y, const(4, 8, 1, 1)), "second")))
        y = emit(OP.matmul(emit(OP.reshape(y, (1, 64))), const(64, 5)), "dense")
        return emit(OP.add(y, const(5)), "logits")

    return module([variable("image", (1, 3, 8, 8))], body)


def unbound():
    """(a module whose weights are parameters without values, their values)."""
    rng = np.random.default_rng(3)
    params = {"w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32)}
    inputs = [variable("image", (1, 3, 8, 8)), variable("w", (4, 3, 3, 3))]
    made = module(inputs, lambda emit, x, w: emit(OP.nn.relu(emit(OP.nn.conv2d(x, w, padding=1), "only"))))
    return made, params


def pictures(count=4, shape=(1, 3, 8, 8)):
    rng = np.random.default_rng(1)
    return [rng.standard_normal(shape).astype(np.float32) for _ in range(count)]


def computed(made, feed):
    """What TVM computes of a module, by its default pipeline."""
    library = tvm.compile(made, tvm.target.Target({"kind": "llvm"}))
    found = relax.VirtualMachine(library, tvm.cpu())["main"](*map(tvm.runtime.tensor, feed))
    return [found.numpy()] if hasattr(found, "numpy") else [output.numpy() for output in found]
