"""Shared test machinery: instruction sets are skipped by name, and counted at the end."""

from __future__ import annotations

import os
from collections import Counter

import pytest

os.environ.setdefault("TOPHUB_LOCATION", "NONE")  # no schedules to download
os.environ.setdefault("TVM_NUM_THREADS", "2")

from topi_ext import isa

RAN: Counter = Counter()


def pytest_addoption(parser):
    parser.addoption("--require-isa", default="", help="comma-separated ISA rows that must not be skipped")


def pytest_collection_modifyitems(config, items):
    required = [name for name in config.getoption("--require-isa").split(",") if name]
    for name in required:
        if not isa.host_has(name):
            raise pytest.UsageError(f"--require-isa={name}: this CPU does not have it")
    for item in items:
        for mark in item.iter_markers("isa"):
            if not isa.host_has(mark.args[0]):
                item.add_marker(pytest.mark.skip(reason=f"this CPU lacks {mark.args[0]}"))


def pytest_runtest_logreport(report):
    if report.when == "call" or report.skipped:
        for name in isa.ISAS:
            if name in report.keywords.get("isa_rows", ()) or f"[{name}-" in report.nodeid:
                RAN[name, report.outcome] += 1


def pytest_terminal_summary(terminalreporter):
    for name in isa.ISAS:
        done, skipped = RAN[name, "passed"] + RAN[name, "failed"], RAN[name, "skipped"]
        if done or skipped:
            terminalreporter.write_line(f"kernels of {name}: {done} tests executed, {skipped} skipped")
