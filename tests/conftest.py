"""Shared test machinery: a missing instruction set skips tests by name, and the end counts them.

Without TVM the modules that need it skip themselves; what is left is the TVM-free half.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

os.environ.setdefault("TOPHUB_LOCATION", "NONE")  # no schedules to download
os.environ.setdefault("TVM_NUM_THREADS", "2")

from topi_ext import isa

GOLDEN = Path(__file__).with_name("golden")
RAN: Counter = Counter()
#: kernel -> outputs that equalled the norm, where a test counts them
COMPARED: Counter = Counter()
COMPILERS = ("g++", "gcc", "clang++", "clang", "c++", "cc")  # what tvm.contrib.cc links with


#: architecture -> what its tests need to be emulated (Debian: qemu-user and the cross compiler's package)
TOOLS = {
    "aarch64": ("qemu-aarch64", "aarch64-linux-gnu-g++"),
    "armv7": ("qemu-arm", "arm-linux-gnueabihf-gcc"),
}


def required(config) -> list[str]:
    return [name for name in config.getoption("--require-isa").split(",") if name]


def runs(name: str) -> str:
    """How tests of a row of `isa.ISAS` run here: "executed", "emulated" or "" for not at all."""
    if isa.host_has(name):
        return "executed"
    tools = TOOLS.get(isa.ISAS[name].arch)
    return "emulated" if tools and all(map(shutil.which, tools)) else ""


def why_not(name: str) -> str:
    tools = " and ".join(TOOLS.get(isa.ISAS[name].arch, ()))
    return f"this CPU lacks {name}" + (f" and cannot emulate it without {tools}" if tools else "")


def can_link() -> bool:
    """Whether TVM finds a compiler to link a shared library with."""
    return any(map(os.environ.get, ("CXX", "CC"))) or any(map(shutil.which, COMPILERS))


BROWSER = ("chromium", "chromedriver")  # Debian: chromium, chromium-driver


def no_browser() -> str:
    """What is missing to open a page in a browser; empty if nothing is."""
    return " and ".join(tool for tool in BROWSER if shutil.which(tool) is None)


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write tests/golden anew, so that what changed is a diff; stored scale tables are never rewritten",
    )
    parser.addoption(
        "--require-browser", action="store_true", help="fail where a browser's test is skipped"
    )
    parser.addoption(
        "--require-isa",
        default="",
        metavar="ROWS",
        help="comma-separated rows of topi_ext.isa: fail where one of their tests is skipped or none ran",
    )


def pytest_report_header(config):
    here = ", ".join(name for name in isa.ISAS if isa.host_has(name))
    return f"ISAs of this CPU: {here}; numpy seeds are in the tests, hypothesis takes --hypothesis-seed"


def pytest_collection_modifyitems(config, items):
    for name in required(config):
        if name not in isa.ISAS:
            raise pytest.UsageError(f"--require-isa={name}: there are {', '.join(isa.ISAS)}")
    for item in items:
        if item.get_closest_marker("linker") and not can_link():
            item.add_marker(pytest.mark.skip(reason="no C++ compiler here to link a library with"))
        if item.get_closest_marker("browser") and no_browser() and not config.option.require_browser:
            item.add_marker(pytest.mark.skip(reason=f"no {no_browser()} here to open the report with"))
        for mark in item.iter_markers("isa"):
            name = mark.args[0]
            item.user_properties.append(("isa", name))
            if not runs(name) and name not in required(config):
                item.add_marker(pytest.mark.skip(reason=why_not(name)))


def pytest_runtest_setup(item):
    if item.get_closest_marker("browser") and no_browser():  # not skipped above: required
        pytest.fail(f"no {no_browser()} here; --require-browser wants it", pytrace=False)
    for mark in item.iter_markers("isa"):
        if not runs(mark.args[0]):  # not skipped above: required
            pytest.fail(f"{why_not(mark.args[0])}; --require-isa wants it", pytrace=False)


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        for key, name in report.user_properties:
            if key == "isa":
                RAN[name, "skipped" if report.skipped else runs(name)] += 1


def pytest_sessionfinish(session):
    if not session.config.option.collectonly:
        if any(not RAN[name, "executed"] + RAN[name, "emulated"] for name in required(session.config)):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def golden(request):
    """golden(file, value[, key]): ``value`` is what tests/golden holds: a text, or (of .json, the entry ``key``
    of) what JSON can say. With --update-golden it is written there first."""

    def compare(file, value, key=None):
        path, update = GOLDEN / file, request.config.getoption("--update-golden")
        if path.suffix != ".json":
            if update:
                path.write_text(value, encoding="utf-8")
            assert value == path.read_text(encoding="utf-8")
            return
        stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if update:
            stored = value if key is None else dict(sorted({**stored, key: value}.items()))
            path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
        assert value == (stored if key is None else stored[key])

    return compare


@pytest.fixture
def compared():
    """Counts compared outputs by kernel for the summary."""
    return COMPARED


def pytest_terminal_summary(terminalreporter, config):
    for name, count in COMPARED.items():
        terminalreporter.write_line(f"{name}: {count:,} outputs compared, 0 differences")
    for name in isa.ISAS:
        how = runs(name) or "executed"
        ran, skipped = RAN[name, how], RAN[name, "skipped"]
        if ran or skipped:
            terminalreporter.write_line(f"ISA {name}: {ran} tests {how}, {skipped} skipped")
        elif name in required(config):
            terminalreporter.write_line(f"ISA {name}: no test ran, and --require-isa wants some", red=True)
