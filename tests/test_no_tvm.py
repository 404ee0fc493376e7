"""Without TVM: one sentence that says what to install, and the TVM-free half works."""

import numpy as np
import pytest
from python_process import python

HIDE = "import sys; sys.modules['tvm'] = None\n"


def run(code):
    return python(HIDE + code)


@pytest.mark.parametrize(
    "code",
    ["import tvm_easyquant as eq; eq.from_relay", "from tvm_easyquant.relay.passes import EasyQuant",
     "import tvm_easyquant as eq; eq.load('net.tflite')"],
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


@pytest.mark.parametrize("command", ["--help", "quantize --help", "tune-kernels --help", ""])
def test_help_needs_no_tvm(command):
    result = run(f"from tvm_easyquant import cli; sys.exit(cli.run({command.split()}))")
    assert result.returncode == (0 if command else 1)
    shown = result.stdout if command else result.stderr
    assert "examples:" in shown and "Apache TVM" not in shown


@pytest.mark.parametrize("command", ["compile net.onnx --target llvm", "plan n.onnx --table t.json"])
def test_a_verb_that_needs_tvm_says_so(command):
    result = run(f"from tvm_easyquant import cli; sys.exit(cli.run({command.split()}))")
    assert result.returncode == 5 and result.stderr.startswith("error: tvm_easyquant needs Apache TVM 0.19")
    assert len(result.stderr.splitlines()) == 1


def test_the_version_is_ours_whatever_compiles():
    result = run("from tvm_easyquant import cli; sys.exit(cli.run(['--version']))")
    assert result.returncode == 0
    assert (
        result.stdout.startswith("tvm_easyquant 0.")
        and "(no TVM here, so nothing compiles" in result.stdout
    )


QUANTIZE = """
import networks
import numpy as np, tvm_easyquant as eq
"""


def test_a_graph_is_quantized_without_tvm(tmp_path):
    """All but the module: the table, the layers, their coverage, and the network as QDQ ONNX."""
    pytest.importorskip("onnx")
    code = QUANTIZE + (
        "g, images = networks.chain()\n"
        "q = eq.quantize(g, images, method='minmax')\n"
        "print(len(q.table.weights), [row['kind'] for row in q.layers], q.coverage)\n"
        f"q.to_onnx({str(tmp_path / 'net.onnx')!r})\n"
        "for ask in (lambda: q.module, q.build):\n"
        "    try: ask()\n"
        "    except ImportError as error: print(error)\n"
    )
    result = run(code)
    lines = result.stdout.splitlines()
    assert lines[0] == "2 ['int7', 'int7'] 100.0", result.stderr
    assert len(lines) == 3 and all(
        line.startswith("tvm_easyquant needs Apache TVM 0.19") for line in lines[1:]
    )
    assert (tmp_path / "net.onnx").stat().st_size


def command(*words, cwd):
    code = f"from tvm_easyquant import cli; sys.exit(cli.run({[str(w) for w in words]}))"
    return python(HIDE + code, cwd=cwd)


def test_an_onnx_model_goes_all_the_way_without_tvm(tmp_path):
    """Quantized, exported, compared with ONNX Runtime, evaluated, taken over again: a compiler has no part."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    import networks

    onnx.save(networks.small_onnx(island=True), tmp_path / "net.onnx")
    rng = np.random.default_rng(0)
    images = rng.standard_normal((6, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=images)
    np.savez(tmp_path / "labelled.npz", images=images, labels=np.zeros(6, np.int64))
    table = ("net.onnx", "--table", "t.json")
    steps = (
        ("quantize", "net.onnx", "--calibration", "x.npz", "--method", "minmax", "-o", "t.json",
         "--qdq-out", "other.onnx"),
        ("export-onnx", *table, "-o", "qdq.onnx"),
        ("verify-onnx", *table, "--inputs", "x.npz"),
        ("verify-onnx", "qdq.onnx", "--inputs", "x.npz"),
        ("export-ncnn", *table, "-o", "net.table"),
        ("import-onnx", "qdq.onnx", "--table-out", "again.json"),
        ("evaluate", *table, "--data", "labelled.npz"),
        ("quantize", "net.onnx", "--dry-run"),
    )  # fmt: skip
    for step in steps:
        done = command(*step, cwd=tmp_path)
        assert done.returncode == 0, (step, done.stderr)
    assert "both networks run in numpy" in command(*steps[6], cwd=tmp_path).stderr
    for step in (("benchmark", *table), ("quantize", "net.onnx", "--calibration", "x.npz", "--module-out", "m"),
                 ("import-onnx", "qdq.onnx", "-o", "net.tar")):  # fmt: skip
        done = command(*step, cwd=tmp_path)
        assert done.returncode == 5 and done.stderr.startswith("error: tvm_easyquant needs Apache TVM 0.19")
        assert len(done.stderr.splitlines()) == 1


def test_a_table_made_with_outputs_is_used_without(tmp_path):
    """Where the network was cut got lost on the way from the command line: no verb took the table."""
    onnx = pytest.importorskip("onnx")
    import networks

    onnx.save(networks.small_onnx(island=True), tmp_path / "net.onnx")
    images = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=images)
    np.savez(tmp_path / "labelled.npz", images=images, labels=np.zeros(4, np.int64))
    cut = next(
        node.output[0] for node in onnx.load(tmp_path / "net.onnx").graph.node if node.op_type == "Conv"
    )
    for step in (
        ("quantize", "net.onnx", "--calibration", "x.npz", "--method", "minmax", "-o", "t.json",
         "--outputs", cut),
        ("export-onnx", "net.onnx", "--table", "t.json", "-o", "qdq.onnx"),
        ("evaluate", "net.onnx", "--table", "t.json", "--data", "labelled.npz"),
    ):  # fmt: skip
        done = command(*step, cwd=tmp_path)
        assert done.returncode == 0, (step, done.stderr)
    assert [value.name for value in onnx.load(tmp_path / "qdq.onnx").graph.output] == [cut]


def test_names_in_letters_that_the_terminal_lacks(tmp_path, monkeypatch):
    """The table was written, and the summary of it ended in a traceback."""
    onnx = pytest.importorskip("onnx")
    import networks

    model = networks.small_onnx()
    for node in model.graph.node:
        node.name = f"層 {node.name}"
    onnx.save(model, tmp_path / "net.onnx")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    code = "from tvm_easyquant import cli; sys.argv = ['', 'quantize', 'net.onnx', '--dry-run']; cli.main()"
    done = python(HIDE + code, cwd=tmp_path)
    assert done.returncode == 0 and "\\u5c64" in done.stdout, done.stderr


def test_an_accumulator_beyond_int32_of_the_only_layer_is_refused_by_quantize_itself():
    """It was found when the module was made, which quantize does no more; other layers would be quantized."""
    code = QUANTIZE + (
        "b = networks.Builder(size=4, channels=5000)\n"
        "b.dense('wide', b.flatten('flat', 'image'), 2)\n"
        "b.nodes['wide'].weight[:] = 1\n"
        "try: eq.quantize(b.graph('wide'), b.images(1), method='minmax', bits=8)\n"
        "except OverflowError as error: print(error)\n"
    )
    result = run(code)
    assert result.stdout.startswith("layer wide: its int32 accumulator may reach "), result.stderr
    assert result.stdout.endswith("beyond 2**30; no other layer is left to quantize\n")


def test_the_search_works_without_tvm():
    code = (
        "import networks\n"
        "import tvm_easyquant as eq\n"
        "from tvm_easyquant.scales.calibrate import calibrate; from tvm_easyquant.search.driver import search\n"
        "from tvm_easyquant.scales.partition import plan\n"
        "g, images = networks.chain(); c = eq.QuantConfig(grid=4); p = plan(g)\n"
        "print(len(search(g, p, calibrate(g, p, images, c), c).weights))"
    )
    assert run(code).stdout.strip() == "2"
