"""Tuning records: what one configuration of a kernel took for a layer, and those applied now. No TVM."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from math import isnan
from types import MappingProxyType
from typing import NamedTuple

Knobs = tuple[tuple[str, object], ...]


class Record(NamedTuple):
    """One measurement: a row of `manifest.KERNELS`, `ConvSpec.to_json`, the target as a text and its
    ``-mcpu``, the knobs as (name, value), and microseconds of a call; NaN where it failed."""

    kernel: str
    spec: str
    target: str
    mcpu: str
    knobs: Knobs
    us: float


class Timed(NamedTuple):
    """The fastest configuration of a kernel for a layer, in microseconds."""

    us: float
    knobs: Knobs


_Applied = Mapping[tuple[str, str, str], Timed]
_applied: ContextVar[_Applied] = ContextVar("easyquant_records", default=MappingProxyType({}))


@contextmanager
def applied(records: Iterable[Record]) -> Iterator[None]:
    """While it is entered, `best` knows these records, and those of the blocks around it."""
    fastest: dict[tuple[str, str, str], Timed] = {}
    for kernel, spec, _, mcpu, knobs, us in records:
        key = mcpu, kernel, spec
        if not isnan(us) and (key not in fastest or us < fastest[key].us):
            fastest[key] = Timed(us, knobs)
    token = _applied.set({**_applied.get(), **fastest})
    try:
        yield
    finally:
        _applied.reset(token)


def best(mcpu: str) -> dict[tuple[str, str], Timed]:
    """{(kernel, spec as JSON): the fastest of the records applied now} that were made for this ``-mcpu``:
    a time of another CPU says little."""
    return {(kernel, spec): timed for (cpu, kernel, spec), timed in _applied.get().items() if cpu == mcpu}
