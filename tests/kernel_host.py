"""Builds and runs one kernel of the manifest on whichever TVM is installed: Relay (0.19) or Relax (0.27)."""

import importlib.util

import numpy as np
import tvm

from topi_ext import isa
from topi_ext.conv2d import fold_zero_point

RELAY = importlib.util.find_spec("tvm.relay") is not None


def run(row, spec, data, weight, bias, factor, residual=None, mcpu=None):
    """(output, assembly) of the kernel ``row`` for one layer; bias without the zero point folded in."""
    folded = fold_zero_point(bias, weight, spec.zero_point)
    constants = row.pack(spec, weight, folded, factor)
    mcpu = isa.ISAS[row.isa].mcpu if mcpu is None else mcpu
    return (_relay if RELAY else _prim_func)(row, spec, data, constants, residual, mcpu)


def compiled(row, spec, arrays, mcpu):
    """The assembly of a kernel for a CPU that need not be this one; arrays: data and constants."""
    library = _library(row, spec, arrays, mcpu)
    return library.get_source("asm") if RELAY else library.mod.inspect_source("asm")


def output(row, spec, arrays, mcpu, copy=True, **knobs):
    """What a kernel that need not be in the manifest computes; arrays: data, constants and residual, of which
    it reads copies, or themselves."""
    library = _library(row, spec, arrays, mcpu, **knobs)
    array = tvm.nd.array if RELAY else tvm.runtime.tensor
    given = array if copy else (tvm.nd if RELAY else tvm.runtime).from_dlpack
    out = array(np.zeros(spec.out_shape, spec.out_dtype))
    library["main"](*map(given, arrays), out)
    return out.numpy()


def _library(row, spec, arrays, mcpu, **knobs):
    from tvm import te

    from topi_ext.emit import DefaultKnobs

    inputs = [te.placeholder(a.shape, str(a.dtype), name=f"in{i}") for i, a in enumerate(arrays)]
    out = row.compute(DefaultKnobs(**knobs), spec, *inputs)
    target = tvm.target.Target({"kind": "llvm", "mcpu": mcpu})
    if RELAY:
        return tvm.build(te.create_schedule(out.op), [*inputs, out], target, name="main")
    return tvm.compile(tvm.IRModule({"main": te.create_prim_func([*inputs, out])}), target)


def _relay(row, spec, data, constants, residual, mcpu):
    """Through our Relay operator, `relay.build` and the graph executor."""
    from tvm import relay

    from topi_ext.relay import op as relay_op
    from tvm_easyquant.relay.build import Executor
    from tvm_easyquant.relay.framework import no_tophub

    relay_op.register()
    x = relay.var("x", shape=data.shape, dtype="uint8")
    arguments, feed = [x], {"x": data}
    if residual is not None:
        arguments.append(relay.var("r", shape=residual.shape, dtype="uint8"))
        feed["r"] = residual
    call = relay_op.conv2d(x, spec, row, [relay.const(c) for c in constants], *arguments[1:])
    module = tvm.IRModule.from_expr(relay.Function(arguments, call))
    with no_tophub(), tvm.transform.PassContext(opt_level=3):
        library = relay.build(module, f"llvm -mcpu={mcpu}" if mcpu else "llvm")
    return Executor(library)(feed)[0], library.get_lib().get_source("asm")


def _prim_func(row, spec, data, constants, residual, mcpu):
    """The same compute as a PrimFunc, through `tvm.compile`: what a Relax front end calls."""
    from tvm import te

    from topi_ext.emit import DefaultKnobs

    arrays = [data, *constants] + ([] if residual is None else [residual])
    inputs = [te.placeholder(a.shape, str(a.dtype), name=f"in{i}") for i, a in enumerate(arrays)]
    function = te.create_prim_func([*inputs, row.compute(DefaultKnobs(), spec, *inputs)])
    target = tvm.target.Target({"kind": "llvm"} | ({"mcpu": mcpu} if mcpu else {}))
    executable = tvm.compile(tvm.IRModule({"main": function}), target)
    out = tvm.runtime.tensor(np.zeros(spec.out_shape, spec.out_dtype))
    executable["main"](*(tvm.runtime.tensor(a) for a in arrays), out)
    return out.numpy(), executable.mod.inspect_source("asm")


def computed(function, arrays, mcpu=""):
    """What a function of TE tensors makes of arrays, in plain loops if it is no statement of its own."""
    from tvm import te

    inputs = [te.placeholder(a.shape, str(a.dtype), name=f"in{i}") for i, a in enumerate(arrays)]
    out = function(*inputs)
    made = np.zeros([int(d) for d in out.shape], str(out.dtype))
    if RELAY:
        buffers = [tvm.nd.array(a) for a in (*arrays, made)]
        target = f"llvm -mcpu={mcpu}" if mcpu else "llvm"
        tvm.build(te.create_schedule(out.op), [*inputs, out], target)(*buffers)
    else:
        buffers = [tvm.runtime.tensor(a) for a in (*arrays, made)]
        module = tvm.IRModule({"main": te.create_prim_func([*inputs, out])})
        target = tvm.target.Target({"kind": "llvm"} | ({"mcpu": mcpu} if mcpu else {}))
        tvm.compile(module, target)["main"](*buffers)
    return buffers[-1].numpy()
