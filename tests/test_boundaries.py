"""Import rules: what must not know TVM does not, and importing registers nothing."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TVM_FREE = [
    "tvm_easyquant", "tvm_easyquant.network.graph", "tvm_easyquant.network.equalize", "tvm_easyquant.network.expression", "tvm_easyquant.scales.partition", "tvm_easyquant.scales.numerics",
    "tvm_easyquant.scales.calibrate", "tvm_easyquant.scales.histogram", "tvm_easyquant.search.objectives", "tvm_easyquant.search.reconstruct", "tvm_easyquant.scales.integer", "tvm_easyquant.scales.layers", "tvm_easyquant.search.driver",
    "tvm_easyquant.scales.table", "tvm_easyquant.files", "tvm_easyquant.pipeline", "tvm_easyquant.demo",
    "tvm_easyquant.images", "tvm_easyquant.samples.sources", "tvm_easyquant.search.curves", "tvm_easyquant.measure.report", "tvm_easyquant.evaluate", "tvm_easyquant.search.bits",
    "tvm_easyquant.search.find", "tvm_easyquant.search.grid", "tvm_easyquant.search.state", "tvm_easyquant.search.weights", "tvm_easyquant.search.workers",
    "tvm_easyquant.writers.qdq", "tvm_easyquant.writers.verify", "tvm_easyquant.readers.onnx_quantized", "tvm_easyquant.readers.take_over", "tvm_easyquant.writers.ncnn", "tvm_easyquant.deploy",
    "tvm_easyquant.cli", "tvm_easyquant.cli.common", "topi_ext", "topi_ext.reference", "topi_ext.conv2d", "topi_ext.isa",
]  # fmt: skip


def imports_tvm(modules):
    code = f"import sys\nfor m in {modules!r}: __import__(m)\nsys.exit('tvm' in sys.modules)"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 1


def test_tvm_free_modules_do_not_import_tvm():
    assert not imports_tvm(TVM_FREE)


@pytest.mark.skipif(importlib.util.find_spec("tvm") is None, reason="no TVM here")
def test_the_check_above_can_fail():
    assert imports_tvm(["tvm_easyquant.relay.read"])


def imported(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module


@pytest.mark.parametrize("path", sorted((ROOT / "topi_ext").rglob("*.py")), ids=lambda p: p.name)
def test_kernels_never_import_the_quantizer(path):
    assert not any(name.startswith("tvm_easyquant") for name in imported(path))


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("t*_e*/**/*.py")), ids=lambda p: f"{p.parent.name}/{p.name}"
)
def test_only_the_front_end_knows_relay(path):
    relay = any(
        name.startswith("tvm.relay")
        or (name == "tvm" and "from tvm import" in path.read_text() and " relay" in path.read_text())
        for name in imported(path)
    )
    assert not relay or path.parent.name == "relay"


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
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("path", sorted((ROOT / "topi_ext").rglob("*.py")), ids=lambda p: p.name)
def test_kernels_take_tvm_from_emit_only(path):
    """What the two hosts spell differently is in one file, so that every kernel builds on both."""
    hosts = {"emit.py", "op.py", "lower.py"}
    assert path.name in hosts or not any(name.split(".")[0] == "tvm" for name in imported(path))


def test_type_checkers_see_the_public_names():
    import tvm_easyquant

    source = ast.parse(Path(tvm_easyquant.__file__).read_text())
    (block,) = [node for node in source.body if isinstance(node, ast.If)]
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == tvm_easyquant._PUBLIC
    assert (Path(tvm_easyquant.__file__).parent / "py.typed").exists()
