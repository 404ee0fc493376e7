"""Import rules: the contracts of pyproject.toml can fail, what must not know TVM does not, and importing
registers nothing.
"""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from python_process import python

import topi_ext

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = Path(topi_ext.__file__).resolve().parent.parent  # the checkout, or where they are installed
LINT = "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache', '--no-logo'])"


def modules(package):
    """Names of a package's modules, but for the hosts, what runs when it is imported, and what is data."""
    for path in sorted((PACKAGES / package).rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGES).with_suffix("").parts).removesuffix(".__init__")
        if not any(room in name for room in (".relay", ".relax", ".data")) and not name.endswith(
            "__main__"
        ):
            yield name


TVM_FREE = [
    *modules("tvm_easyquant"), "topi_ext", "topi_ext.reference", "topi_ext.conv2d", "topi_ext.isa",
]  # fmt: skip


def imports_tvm(modules):
    code = f"import sys\nfor m in {modules!r}: __import__(m)\nsys.exit('tvm' in sys.modules)"
    return python(code).returncode == 1


def test_tvm_free_modules_do_not_import_tvm():
    assert not imports_tvm(TVM_FREE)


@pytest.mark.skipif(importlib.util.find_spec("tvm") is None, reason="no TVM here")
def test_the_check_above_can_fail():
    assert imports_tvm(["tvm_easyquant.relay.read"])


@pytest.mark.parametrize(
    "path, line, named",
    [
        ("tvm_easyquant/network/graph.py", "from ..scales import table", "network.graph -> tvm_easyquant.scales.table"),
        ("tvm_easyquant/relay/read.py", "from ..workflow import quantize", "relay.read -> tvm_easyquant.workflow"),
        ("tvm_easyquant/cli/measure.py", "def late():\n    from ..relay import build", "cli.measure -> tvm_easyquant.relay.build"),
        ("tvm_easyquant/relax/build.py", "from ..relay import build", "relax.build -> tvm_easyquant.relay"),
        ("tvm_easyquant/scales/table.py", "import tvm", "scales.table -> tvm"),
        ("topi_ext/isa.py", "import tvm_easyquant.files", "topi_ext.isa -> tvm_easyquant.files"),
        ("tvm_easyquant/garage.py", "", "garage"),
    ],
    ids=["upwards", "a host that knows the workflow", "in a function", "a host that knows the other", "TVM", "kernels", "a room without a place"],
)  # fmt: skip
def test_a_wrong_import_breaks_a_contract(path, line, named, tmp_path):
    """`make lint` on a copy of the packages with one bad line names that line."""
    pytest.importorskip("importlinter")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in ("tvm_easyquant", "topi_ext"):
        shutil.copytree(
            PACKAGES / package, tmp_path / package, ignore=shutil.ignore_patterns("data", "*.pyc")
        )
    with open(tmp_path / path, "a") as file:
        file.write(f"\n{line}\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "200"}
    result = subprocess.run(
        [sys.executable, "-c", LINT], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert result.returncode == 1 and named in result.stdout, result.stdout + result.stderr


@pytest.mark.parametrize(
    "path, line",
    [
        ("tvm_easyquant/workflow.py", "from tvm import relay"),
        ("tvm_easyquant/relay/build.py", "from tvm.driver import tvmc"),
        ("topi_ext/emit.py", "from tvm import relay"),
        ("tvm_easyquant/relax/build.py", "from tvm import relax"),
    ],
)
def test_relay_and_tvmc_are_banned_outside_their_files(path, line):
    pytest.importorskip("ruff")
    result = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID251", "--stdin-filename", path, "-"],
        cwd=ROOT, input=f"{line}\n", capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 1 and "TID251" in result.stdout, result.stdout + result.stderr


@pytest.mark.skipif(importlib.util.find_spec("tvm") is None, reason="no TVM here")
def test_importing_registers_no_operator_and_no_autotvm_task():
    """The AutoTVM templates once were registered by the import, against what the documents say."""
    code = (
        "import tvm; from tvm import autotvm, relay\n"
        "from tvm.autotvm.task.task import TASK_TABLE\n"
        "before, tasks = set(tvm.ir.Op.list_op_names()), set(TASK_TABLE)\n"
        "import tvm_easyquant, tvm_easyquant.relay.passes, topi_ext.lower, tvm_easyquant.cli\n"
        "assert set(tvm.ir.Op.list_op_names()) == before\n"
        "from tvm.driver.tvmc import main, composite_target\n"
        "assert not any('easyquant' in f.__module__ for f in main.REGISTERED_PARSER)\n"
        "assert 'easyquant' not in composite_target.REGISTERED_CODEGEN\n"
        "from topi_ext.relay import op\n"
        "assert set(TASK_TABLE) == tasks\n"
        "op.register(); op.register()\n"
        "from topi_ext import manifest\n"
        "assert set(TASK_TABLE) - tasks == {op.template_name(row) for row in manifest.KERNELS}\n"
        "new = set(tvm.ir.Op.list_op_names()) - before\n"
        "assert new and all(n.startswith('easyquant.') for n in new), new\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_type_checkers_see_the_public_names():
    import tvm_easyquant

    source = ast.parse(Path(tvm_easyquant.__file__).read_text())
    (block,) = [node for node in source.body if isinstance(node, ast.If)]
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    modules = dict.fromkeys(tvm_easyquant._MODULES)
    assert seen == {**tvm_easyquant._PUBLIC, **modules}
    assert (Path(tvm_easyquant.__file__).parent / "py.typed").exists()
