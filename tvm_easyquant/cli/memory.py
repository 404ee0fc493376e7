"""Whether a command has the memory it needs, asked before the work: what runs out of it in the middle ends
in a crash of whatever asked last.

Two things can be limited: addresses (``ulimit -v``, RLIMIT_AS), of which threads and shared libraries take
far more than they use, and what is really used (the cgroup of a container, which kills).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError

MIB = 2**20
GROUPS = Path("/sys/fs/cgroup")


class Need(NamedTuple):
    """MiB of a verb on a small network: addresses with one thread, for each core (its threads' stacks,
    arenas and buffers), and what is used. ``VmPeak`` and ``VmHWM`` of the demo network with 2 cores, and a
    tenth more."""

    addresses: int
    for_each_core: int
    used: int


COMPILER = ("auto", "evaluate", "benchmark", "report", "compile", "plan", "tune-kernels", "demo")
NEEDS = {
    "quantize": Need(900, 220, 180),
    "run": Need(500, 40, 220),
    **dict.fromkeys(("export-onnx", "import-onnx"), Need(370, 40, 80)),
    **dict.fromkeys(COMPILER, Need(750, 80, 380)),
}
#: of what is used, for each byte of a model's file: its weights in float, in integers, in the compiler
FOR_EACH_BYTE = 4


class Limit(NamedTuple):
    """name: of what sets it; size: in bytes."""

    name: str
    size: int


def limits() -> tuple[Limit | None, Limit | None]:
    """(of addresses, of what is used), None where there is none."""
    return _addresses(), _used()


def _addresses() -> Limit | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    size = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if size == resource.RLIM_INFINITY else Limit("RLIMIT_AS (ulimit -v)", size)


def _used() -> Limit | None:
    sizes = []
    for file in _files():
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < 2**60:  # more is cgroup 1's word for none
            sizes.append(int(text))
    return Limit("its cgroup", min(sizes)) if sizes else None


def _files() -> Iterator[Path]:
    """Where a limit of this process, or of a group around it, may stand."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds == "":
            root, name = GROUPS, "memory.max"
        elif "memory" in kinds.split(","):
            root, name = GROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = root / path.lstrip("/")
        for place in (folder, *folder.parents):
            yield place / name
            if place == root:
                break


def estimate(verb: str, files: Sequence[str] = ()) -> tuple[int, int]:
    """(bytes of addresses, bytes used) that a verb needs at least; files: the words of its command line."""
    need, cores = NEEDS[verb], os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    model = max((os.path.getsize(word) for word in files if os.path.isfile(word)), default=0)
    more = FOR_EACH_BYTE * model
    return (need.addresses + cores * need.for_each_core) * MIB + more, need.used * MIB + more


def check(argv: Sequence[str]) -> None:
    """UserError where a limit is below what the command line needs."""
    verb = next((word for word in argv if word in NEEDS), None)
    if verb is not None:
        _hold(verb, estimate(verb, argv))


def check_network(verb: str, file: str, live: int) -> None:
    """The same once a verb has read its model; live: bytes of the tensors of a run (`Graph.live_bytes`)."""
    if verb in NEEDS:
        addresses, used = estimate(verb, [file])
        _hold(verb, (addresses + live, used + live))


def _hold(verb: str, needs: tuple[int, int]) -> None:
    kinds = ("addresses", "memory")
    for kind, limit, need in zip(kinds, limits(), needs, strict=True):
        if limit is not None and limit.size < need:
            raise UserError(
                f"{verb} needs about {need / 2**30:.2f} GiB of {kind} here, and {limit.name} allows "
                f"{limit.size / 2**30:.2f}: raise it, or do this on a larger machine"
            )
