"""Shared test machinery: a missing instruction set skips tests by name, and the end counts them.

Without TVM the modules that need it skip themselves; what is left is the TVM-free half. Under pytest-xdist
(``make test``) what the workers counted reaches the end's lines with the reports.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

os.environ.setdefault("TOPHUB_LOCATION", "NONE")  # no schedules to download
os.environ.setdefault("TVM_NUM_THREADS", "2")
if "PYTEST_XDIST_WORKER" in os.environ:  # several pools of threads, which would be bound to the same cores
    os.environ.setdefault("TVM_BIND_THREADS", "0")

import topi_ext
import tvm_easyquant
from topi_ext import isa

GOLDEN = Path(__file__).with_name("golden")
#: (row of isa.ISAS, how it ran) -> tests
RAN: Counter = Counter()
#: kernel -> outputs that equalled the norm, where a test counts them
COMPARED: Counter = Counter()
#: (marker of a later tier, file) -> tests that -m left out
LEFT_OUT: Counter = Counter()
#: marker -> what runs its tests
TIERS = {"ci": "make test-ci", "slow": "make test-slow"}
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
        "--require-installed",
        action="store_true",
        help="fail unless the packages are those of site-packages",
    )
    parser.addoption(
        "--require-isa",
        default="",
        metavar="ROWS",
        help="comma-separated rows of topi_ext.isa: fail where one of their tests is skipped or none ran",
    )


def pytest_configure(config):
    for name in required(config):
        if name not in isa.ISAS:
            raise pytest.UsageError(f"--require-isa={name}: there are {', '.join(isa.ISAS)}")
    for package in (tvm_easyquant, topi_ext):
        if config.option.require_installed and "site-packages" not in package.__file__:
            raise pytest.UsageError(f"--require-installed: {package.__name__} is {package.__file__}")


def pytest_report_header(config):
    here = ", ".join(name for name in isa.ISAS if isa.host_has(name))
    return f"ISAs of this CPU: {here}; numpy seeds are in the tests, hypothesis takes --hypothesis-seed"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file with a fixture of scope "module" goes to one worker, which makes it once; of the other files each
    test goes to whichever worker is free. (xdist's own groups, --dist=loadgroup, do nothing with pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    @cache
    def shared(file):
        return 'scope="module"' in (config.rootpath / file).read_text(encoding="utf-8")

    class ByFixture(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            return file if shared(file) else nodeid

    return ByFixture(config, log) if config.option.dist == "load" else None


@cache
def has_relay() -> bool:
    """Whether the TVM here, which is not imported, is the one with Relay."""
    found = find_spec("tvm")
    return bool(found and found.origin) and (Path(found.origin).parent / "relay").is_dir()


def on_a_worker(config) -> bool:
    return hasattr(config, "workeroutput")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("linker") and not can_link():
            item.add_marker(pytest.mark.skip(reason="no C++ compiler here to link a library with"))
        if item.get_closest_marker("relay") and not has_relay():
            item.add_marker(pytest.mark.skip(reason="TVM 0.19 is not installed here"))
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


def pytest_deselected(items):
    for item in items:
        LEFT_OUT.update((tier, item.path.name) for tier in TIERS if item.get_closest_marker(tier))


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        for key, value in report.user_properties:
            if key == "isa":
                RAN[value, "skipped" if report.skipped else runs(value)] += 1
            elif key == "compared" and report.passed:
                COMPARED.update({value[0]: value[1]})


def pytest_sessionfinish(session):
    config = session.config
    if on_a_worker(config):
        config.workeroutput["left_out"] = list(LEFT_OUT.items())
    elif not config.option.collectonly and any(
        not RAN[name, "executed"] + RAN[name, "emulated"] for name in required(config)
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """A worker of pytest-xdist ends; each has collected, and left out, the same."""
    found = getattr(node, "workeroutput", {}).get("left_out", [])  # nothing of one that crashed
    LEFT_OUT.update({tuple(key): count for key, count in found} if not LEFT_OUT else {})


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
def compared(record_property):
    """Counts a kernel's compared outputs for the summary: ``compared(kernel, outputs)``, of a test that passes."""
    return lambda kernel, outputs: record_property("compared", (kernel, outputs))


def pytest_terminal_summary(terminalreporter, config):
    for tier, command in TIERS.items():
        files = ", ".join(f"{file} {count}" for (of, file), count in LEFT_OUT.items() if of == tier)
        if files:
            terminalreporter.write_line(f"left to {command}: {files}")
    for name, count in COMPARED.items():
        terminalreporter.write_line(f"{name}: {count:,} outputs compared, 0 differences")
    for name in isa.ISAS:
        how = runs(name) or "executed"
        ran, skipped = RAN[name, how], RAN[name, "skipped"]
        if ran or skipped:
            terminalreporter.write_line(f"ISA {name}: {ran} tests {how}, {skipped} skipped")
        elif name in required(config):
            terminalreporter.write_line(f"ISA {name}: no test ran, and --require-isa wants some", red=True)
