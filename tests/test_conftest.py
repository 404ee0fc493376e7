"""What conftest counts is the same on one process and on the workers of pytest-xdist."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from topi_ext import isa

CONFTEST = Path(__file__).with_name("conftest.py")
HERE = next(name for name in reversed(isa.ISAS) if isa.host_has(name))
TESTS = f"""
import os
import pytest

@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with open("made", "a") as file:
        print(os.getpid(), file=file)

@pytest.mark.parametrize("case", range(4))
def test_together(made, case): pass

@pytest.mark.isa({HERE!r})
@pytest.mark.parametrize("case", range(5))
def test_counted(compared, case):
    compared("a kernel", 1000)
    compared("a kernel", 5)

@pytest.mark.ci
@pytest.mark.parametrize("case", range(3))
def test_of_ci(case): pass

@pytest.mark.slow
def test_of_slow(): pass
"""
WORKERS = {"one process": [], "two workers": ["-pxdist", "-n2"]}


@pytest.fixture(params=WORKERS)
def suite(request, tmp_path):
    """Runs a suite of a few tests in a process of its own; returns its exit code and its output."""
    if request.param == "two workers":
        pytest.importorskip("xdist")
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
    (tmp_path / "test_few.py").write_text(TESTS)
    ini = "[pytest]\naddopts = --strict-markers -m 'not slow and not ci'\nmarkers =\n    isa\n    ci\n    slow\n"
    (tmp_path / "pytest.ini").write_text(ini)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # starts sooner
    env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))

    def run(*words):
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            *WORKERS[request.param],
            *words,
        ]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    return run


def test_the_end_counts_tests_outputs_and_what_is_left_out(suite, tmp_path):
    code, out = suite(f"--require-isa={HERE}")
    assert code == 0 and "9 passed" in out
    assert "a kernel: 5,025 outputs compared, 0 differences" in out
    assert f"ISA {HERE}: 5 tests executed, 0 skipped" in out
    assert "left to make test-ci: test_few.py 3\n" in out
    assert "left to make test-slow: test_few.py 1\n" in out
    assert len((tmp_path / "made").read_text().splitlines()) == 1  # a fixture of a module, by one worker


def test_a_required_row_of_which_no_test_ran_fails(suite):
    code, out = suite(f"--require-isa={HERE}", "-k", "together")
    assert code == pytest.ExitCode.TESTS_FAILED and "4 passed" in out and "failed" not in out
    assert f"ISA {HERE}: no test ran, and --require-isa wants some" in out


def test_a_required_row_that_is_none_is_named(suite):
    code, out = suite("--require-isa=avx3")
    assert code == pytest.ExitCode.USAGE_ERROR and "--require-isa=avx3: there are generic, " in out
