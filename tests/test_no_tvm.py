"""Without TVM: one sentence that says what to install, and the TVM-free half works."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HIDE = "import sys; sys.modules['tvm'] = None\n"


def run(code):
    return subprocess.run([sys.executable, "-c", HIDE + code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    "code",
    ["import tvm_easyquant as eq; eq.load_onnx", "from tvm_easyquant.relay.passes import EasyQuant",
     "import tvm_easyquant as eq; eq.quantize('net.onnx', [])"],
)  # fmt: skip
def test_the_front_end_says_what_to_install(code):
    result = run(
        f"try:\n    exec({code!r})\nexcept ImportError as e:\n    print(e)\nelse:\n    print('imported')"
    )
    assert result.stdout.startswith("tvm_easyquant needs Apache TVM 0.19 with Relay: install the extra")
    assert len(result.stdout.splitlines()) == 1


def test_the_command_line_says_it_in_one_line_and_exits_with_5():
    result = run("from tvm_easyquant.cli import main; sys.argv = ['tvmc-easyquant', 'demo']; main()")
    assert result.returncode == 5 and result.stderr.startswith("error: tvm_easyquant needs Apache TVM 0.19")
    assert len(result.stderr.splitlines()) == 1


def test_the_search_works_without_tvm():
    code = (
        "sys.path.insert(0, 'tests'); import networks\n"
        "import tvm_easyquant as eq\n"
        "from tvm_easyquant.scales.calibrate import calibrate; from tvm_easyquant.search.driver import search\n"
        "from tvm_easyquant.scales.partition import plan\n"
        "g, images = networks.chain(); c = eq.QuantConfig(grid=4); p = plan(g)\n"
        "print(len(search(g, p, calibrate(g, p, images, c), c).weights))"
    )
    assert run(code).stdout.strip() == "2"
