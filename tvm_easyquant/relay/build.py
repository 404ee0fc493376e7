"""Build an integer module for a CPU and run it.

``lower=True`` hands every integer operator to our kernels (`topi_ext.lower`): integers equal to the
norm on every CPU. ``lower=False`` leaves TVM's stock lowering: it rounds ties differently, and its
int8 kernels are slower.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from ..errors import TargetError
from ..network.graph import GraphError
from .framework import BUILD_CONFIG, no_tophub, tvm


def host_target() -> str:
    """A target string for the CPU this runs on, without the instructions that it hides."""
    from tvm.target import codegen  # a module that ``import tvm`` may leave out

    from topi_ext import isa

    cpu = codegen.llvm_get_system_cpu()
    if not cpu:
        return "llvm"
    hidden = isa.lacking(map(str, codegen.llvm_get_cpu_features(tvm.target.Target(f"llvm -mcpu={cpu}"))))
    return f"llvm -mcpu={cpu}" + (f" -mattr={','.join(f'-{name}' for name in hidden)}" if hidden else "")


def cpu_target(target) -> object:
    """``target`` (a string or tvm.target.Target, None for this CPU) checked to be a CPU target."""
    try:
        target = tvm.target.Target(target if target is not None else host_target())
    except (ValueError, TypeError, tvm.TVMError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise TargetError(f"target {target!r} is not a TVM target: {reason}") from None
    if target.kind.name != "llvm":
        raise TargetError(
            f"target {target.kind.name!r} is not a CPU; name an llvm target, such as 'llvm -mcpu=core-avx2'"
        )
    from tvm.target.codegen import llvm_get_cpu_archlist

    _check_arch(target)
    cpu = str(target.attrs.get("mcpu", ""))
    if cpu and cpu not in {str(c) for c in llvm_get_cpu_archlist(target)}:
        raise TargetError(f"LLVM knows no -mcpu={cpu} for this target and would ignore it; mend the name")
    return target


def _check_arch(target) -> None:
    """Refuse what LLVM would crash on, or make code of that cannot be linked."""
    from topi_ext.isa import arch_of

    triple = str(target.attrs.get("mtriple", ""))
    arch, known = arch_of(triple), tuple(str(name) for name in tvm.target.codegen.llvm_get_targets())
    if triple and not (arch.startswith(known) or re.fullmatch("i[3-6]86", arch)):
        raise TargetError(f"this LLVM makes no code for {arch} (of -mtriple), but for {', '.join(known)}")
    if arch == "aarch64" and not tvm.get_global_func("target.target_has_feature")("neon", target):
        raise TargetError(
            f"target '{target}' has no NEON, which every 64-bit ARM CPU has; write -mattr=+neon"
        )
    if triple.endswith("eabihf") and target.attrs.get("mfloat-abi") != "hard":
        raise TargetError(f"-mtriple={triple} has its floats in registers; write -mfloat-abi=hard, too")


def build(module, target=None, *, lower: bool = True, opt_level: int = 3):
    """Compile an integer Relay module; returns TVM's library (``export_library`` works on it).

    The weights are linked into the code, not stored beside it: the operating system maps them from the
    file, so they are in memory once, and processes share them.

    Raises TargetError if the target is not a CPU that LLVM knows, or if the stock lowering is asked for
    where TVM's int8 dense kernel aborts the process (targets with AVX-512 VNNI).
    """
    from tvm import relay

    from topi_ext.relay.op import target_isa

    target = cpu_target(target)
    if not lower and target_isa(target) == "avx512vnni" and "qnn.dense" in _operators(module):
        raise TargetError(
            f"TVM's stock int8 dense kernel aborts the process on target '{target}'; leave lower=True, or "
            "name a -mcpu without AVX-512 VNNI, such as skylake-avx512"
        )
    # the kernels' own checks of their arguments, which the executor has made already, are a fifth of a
    # small network's code
    config = {**BUILD_CONFIG, "tir.disable_assert": True}
    with no_tophub(), tvm.transform.PassContext(opt_level=opt_level, config=config):
        if lower:
            from topi_ext.lower import LowerInteger

            module = LowerInteger(target)(module)
        return relay.build(module, target, executor=relay.backend.Executor("graph", {"link-params": True}))


def _operators(module) -> set[str]:
    """Names of the operators that a Relay module calls."""
    from tvm import relay

    names = set()

    def visit(expr):
        if isinstance(expr, relay.Call) and isinstance(expr.op, tvm.ir.Op):
            names.add(expr.op.name)

    relay.analysis.post_order_visit(module["main"], visit)
    return names


class Executor:
    """A built library with its inputs and outputs by name.

    ``executor(feed)`` takes {input: float32 NCHW array} and returns the outputs as a list.
    """

    def __init__(self, library, device=None):
        from tvm.contrib import graph_executor

        self.library = library
        self.device = device or tvm.cpu()
        self.module = graph_executor.GraphModule(library["default"](self.device))
        shapes, dtypes = self.module.get_input_info()
        self.inputs = {
            name: (tuple(int(d) for d in shape), str(dtypes[name]))
            for name, shape in shapes.items()
            if not re.fullmatch(r"p\d+", name)  # TVM's names for bound constants
        }

    def __call__(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        for name in feed:
            if name not in self.inputs:
                raise GraphError(f"there is no input {name}; the inputs are {sorted(self.inputs)}")
        for name, (shape, dtype) in self.inputs.items():
            array = feed.get(name)
            if array is None:
                raise GraphError(f"input {name} is missing")
            if tuple(array.shape) != shape or str(array.dtype) != dtype:
                raise GraphError(
                    f"input {name} is {array.dtype} {tuple(array.shape)}, the model takes {dtype} {shape}"
                )
            self.module.set_input(name, array)
        self.module.run()
        return [self.module.get_output(i).numpy() for i in range(self.module.get_num_outputs())]

    def milliseconds(self, repeat: int = 10, number: int = 1) -> list[float]:
        """Times of ``repeat`` runs (each the mean of ``number``), after the inputs were set."""
        timer = self.module.module.time_evaluator("run", self.device, number=number, repeat=repeat)
        return [1e3 * float(t) for t in timer().results]
