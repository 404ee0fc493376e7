"""What is written of compiled networks: what it needs, and its weights beside its code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from topi_ext import isa
from topi_ext.emit import target_features, target_isa

from .. import package
from ..host import LAYOUTS, TABLE
from ..runtime.vm import ALIGNMENT
from ..scales.table import ScaleTable
from .framework import relax, tvm


def with_table(module, table: ScaleTable):
    """An integer module that knows its table."""
    return module.with_attr(TABLE, table.to_json())


def with_layouts(module, layouts: Mapping[str, str]):
    """An integer module that knows the layouts of its images, {input: NHWC or NCHW}."""
    return module.with_attr(LAYOUTS, json.dumps(dict(layouts)))


def target_text(target) -> str:
    """The target as a string that `build.cpu_target` reads."""
    text, triple = "llvm", str(target.attrs.get("mtriple", ""))
    implied = "mcpu" in target.attrs and isa.arch_of(triple) == isa.arch_of("")
    for key in ("mtriple", "mcpu", "mattr", "mfloat-abi"):
        value = target.attrs.get(key)
        if value and not (key == "mtriple" and implied):
            text += f" -{key}={value if isinstance(value, str) else ','.join(map(str, value))}"
    return text


def needs(target) -> package.Needs:
    """What code for a ``tvm.target.Target`` may need of a machine."""
    return package.Needs(target_isa(target), *target_features(target))


def variant(target, layers: Sequence[str], inputs: Mapping[str, package.Input]) -> package.Variant:
    """The variant that is built for a target; layers: the names of its integer layers."""
    needed = needs(target)
    return package.Variant(
        needed.isa, needed, target_text(target), str(tvm.__version__), layers=tuple(layers), inputs=inputs,
        runtime=package.VM,
    )  # fmt: skip


def steps(ready) -> list[tuple[str, int, int]]:
    """(function, size of its largest constant, size of its output) of each call of a kernel in ``main``."""
    found = []
    for block in ready["main"].body.blocks:
        for binding in block.bindings:
            call = binding.value
            if isinstance(call, tvm.ir.Call) and isinstance(call.op, tvm.ir.GlobalVar):
                sizes = [argument.value.numpy().size for argument in call.args if _is_array(argument)]
                output = prod(int(d) for d in call.args[-1].ty.shape.values)
                found.append((str(call.op.name_hint), max(sizes, default=0), output))
    return found


def _is_array(expr) -> bool:
    return hasattr(getattr(expr, "value", None), "numpy")


# -- weights


def lifted(ready) -> tuple[object, list[np.ndarray]]:
    """(what `build.pipeline` made with its constants as arguments of ``main`` behind the inputs, they).

    Nothing checks them in a call: the checks of the arguments are in ``main`` already.
    """
    lift, name = _Lift(ready), ready.get_global_var("main")
    main = ready[name]
    body = lift.visit_expr(main.body)
    changed = relax.Function([*main.params, *lift.variables], body, main.ret_ty, main.is_pure, main.attrs)
    functions = {var: changed if var == name else function for var, function in ready.functions_items()}
    return tvm.IRModule(functions, attrs=ready.attrs), lift.arrays


@relax.expr_functor.mutator
class _Lift(relax.PyExprMutator):
    def __init__(self, module):
        super().__init__(module)
        self.variables: list = []
        self.arrays: list[np.ndarray] = []

    def visit_generic_const_(self, constant):
        if not _is_array(constant):
            return constant
        self.arrays.append(constant.value.numpy())
        self.variables.append(relax.Var(f"weight{len(self.variables)}", constant.ty))
        return self.variables[-1]


def weights(arrays: Sequence[np.ndarray]) -> tuple[bytes, bytes]:
    """(what says where each array is, as JSON; the arrays themselves) for `runtime.vm`."""
    rows, content = [], bytearray()
    for array in arrays:
        content += bytes(-len(content) % ALIGNMENT)
        rows.append([len(content), list(array.shape), str(array.dtype)])
        content += array.tobytes()
    return json.dumps({"weights": rows}).encode(), bytes(content)
