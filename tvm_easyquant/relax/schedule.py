"""Schedules for what is not ours: element-wise operators, moves, pools and sums, as Relax makes them.

TVM's own pipeline for CPUs leaves them plain loops. Here the last loop is vectorized and a large map
divided among the threads. No number changes: sums keep their order.
"""

from __future__ import annotations

from math import prod

from tvm.s_tir import Schedule, ScheduleError

from .framework import tvm

#: outputs from which on a function is divided among threads
PARALLEL = 200_000
LANES = (16, 8, 4, 2)
REDUCTION = 2  # TVM's number for the axis of a sum


def schedule(module):
    """The module with a schedule for each of its TIR functions that has none."""
    done = tvm.IRModule(dict(module.functions_items()), attrs=module.attrs)
    for name, function in module.functions_items():
        if isinstance(function, tvm.tirx.PrimFunc) and "tirx.is_scheduled" not in (function.attrs or {}):
            made = _scheduled(function)
            if made is not None:
                done[name] = made
    return done


def _scheduled(function):
    """The function with loops for a CPU; None where TVM refuses, as it does for calls of its library."""
    try:
        plan = Schedule(function)
        blocks = plan.get_child_blocks(plan.get_sblock("root"))
        for block in blocks[:-1]:
            if len(plan.get_consumers(block)) == 1 and not _reductions(plan, block):
                _inline(plan, block)
        for block in plan.get_child_blocks(plan.get_sblock("root")):
            _loops(plan, block)
    except ScheduleError:  # no loops that can be moved
        return None
    return plan.mod["main"].with_attr("tirx.is_scheduled", True)


def _inline(plan, block):
    try:
        plan.compute_inline(block)
    except ScheduleError:  # it stays a loop of its own
        return


def _reductions(plan, block) -> list[bool]:
    """For each axis of a block that sums, which are summed over; [] of another."""
    kinds = [int(axis.iter_type) == REDUCTION for axis in plan.get(block).iter_vars]
    return kinds if any(kinds) else []


def _loops(plan, block):
    loops, summed = plan.get_loops(block), _reductions(plan, block)
    if not loops or (summed and len(summed) != len(loops)):
        return
    if not summed:
        loop = plan.fuse(*loops)
        size = _size(plan, loop)
        outer = _vectorize(plan, loop)
        if outer is not None and size > PARALLEL:
            plan.parallel(outer)
        return
    spatial = [loop for loop, over in zip(loops, summed, strict=True) if not over]
    over = [loop for loop, over in zip(loops, summed, strict=True) if over]
    if not spatial:
        return
    *before, last = spatial
    size, lanes = prod(_size(plan, loop) for loop in spatial), _lanes(_size(plan, last))
    rest, inner = plan.split(last, [None, lanes])
    plan.reorder(*before, rest, *over, inner)
    if lanes > 1:
        plan.vectorize(inner)
    if before and size > PARALLEL:
        plan.parallel(plan.fuse(*before))
    plan.decompose_reduction(block, over[0])  # after it a loop cannot be made parallel


def _vectorize(plan, loop):
    """The loop around the lanes; None where there are none."""
    lanes = _lanes(_size(plan, loop))
    if lanes == 1:
        return None
    outer, inner = plan.split(loop, [None, lanes])
    plan.vectorize(inner)
    return outer


def _size(plan, loop) -> int:
    return int(plan.get(loop).extent)


def _lanes(size: int) -> int:
    return next((lanes for lanes in LANES if size % lanes == 0), 1)
