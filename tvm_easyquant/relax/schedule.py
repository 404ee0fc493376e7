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
#: lanes from which on a vector along the channels is worth more than one along all axes
WHOLE = 8
#: channels of an image, for which the last loop makes no vector
FEW = 4
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
    if summed:
        if len(summed) == len(loops) and not all(summed):
            _sum(plan, block, loops, summed)
        return
    across = _read_across(plan, block)
    if across is not None and len(loops) > across:
        _transposed(plan, loops, across)
    elif loops:
        _flat(plan, loops)


def _flat(plan, loops):
    """Vectors along the last axis if they are whole, so that what is read by channel is no gather; else
    along all axes as one."""
    size = prod(_size(plan, loop) for loop in loops)
    last = _lanes(_size(plan, loops[-1]))
    if last >= WHOLE:
        *before, loop = loops
        rest, inner = plan.split(loop, [None, last])
        plan.vectorize(inner)
        if size > PARALLEL:
            plan.parallel(plan.fuse(*before) if before else rest)
        return
    loop = plan.fuse(*loops)
    lanes = _lanes(size)
    if lanes > 1:
        outer, inner = plan.split(loop, [None, lanes])
        plan.vectorize(inner)
        if size > PARALLEL:
            plan.parallel(outer)


def _sum(plan, block, loops, summed):
    """Vectors along the last axis of the output, around what is summed."""
    *before, last = (loop for loop, over in zip(loops, summed, strict=True) if not over)
    over = [loop for loop, over in zip(loops, summed, strict=True) if over]
    size, lanes = prod(_size(plan, loop) for loop in (*before, last)), _lanes(_size(plan, last))
    rest, inner = plan.split(last, [None, lanes])
    plan.reorder(*before, rest, *over, inner)
    if lanes > 1:
        plan.vectorize(inner)
    if before and size > PARALLEL:
        plan.parallel(plan.fuse(*before))
    plan.decompose_reduction(block, over[0])  # after it a loop cannot be made parallel


def _read_across(plan, block) -> int | None:
    """The axis of the output along which a block reads its input in order; None if that is the last one, or
    the last has more than a few numbers. An image in NCHW becomes one in NHWC so."""
    found = plan.get(block)
    axes = [axis.var for axis in found.iter_vars]
    if len(axes) < 2 or not found.reads or int(found.iter_vars[-1].dom.extent) > FEW:
        return None
    region = found.reads[0].region
    along = [i for i, axis in enumerate(axes[:-1]) if len(region) and region[-1].min.same_as(axis)]
    return along[0] if along else None


def _transposed(plan, loops, across):
    """Vectors along the axis that is read in order, for each of the few channels."""
    lanes = _lanes(_size(plan, loops[across]))
    if lanes == 1:
        return
    rest, inner = plan.split(loops[across], [None, lanes])
    *before, last = (loop for i, loop in enumerate(loops) if i != across)
    size = lanes * prod(_size(plan, loop) for loop in (*before, rest, last))
    plan.reorder(*before, rest, last, inner)
    plan.vectorize(inner)
    plan.unroll(last)
    if before and size > PARALLEL:
        plan.parallel(plan.fuse(*before))


def _size(plan, loop) -> int:
    return int(plan.get(loop).extent)


def _lanes(size: int) -> int:
    return next((lanes for lanes in LANES if size % lanes == 0), 1)
