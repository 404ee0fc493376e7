"""The folder of `deploy`: it runs without this package and without TVM, from Python, C++ and over HTTP."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import networks
import numpy as np
import pytest

pytest.importorskip("tvm")

import tvm_easyquant as eq
from topi_ext import isa
from tvm_easyquant import cli, deployment
from tvm_easyquant.errors import ConfigError, DeployError, WriteError

pytestmark = [
    pytest.mark.linker,
    pytest.mark.skipif(sys.platform != "linux", reason="builds are for Linux"),
]
CLEAN = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).standard_normal((5, 1, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def quantized(images):
    return eq.quantize(networks.small_onnx(), list(images), method="minmax")


@pytest.fixture(scope="module")
def want(quantized, images):
    program = eq.Executor(quantized.build("llvm"))
    return np.concatenate([program({"x": x})[0] for x in images])


@pytest.fixture(scope="module")
def folder(quantized, tmp_path_factory):
    path = tmp_path_factory.mktemp("deployed") / "network"
    rows = ["generic", "avx2"] if runs_avx2() else ["generic"]
    sizes = quantized.deploy(path, isa=rows)
    assert sizes["network.tar"] == (path / "network.tar").stat().st_size > 0 < sizes["lib"]
    return path


def runs_avx2():
    return isa.host_has("avx2")


def python(folder, *words):
    """In a Python that knows neither this package nor TVM: of site-packages it sees numpy alone."""
    bare = folder.parent / "site"
    if not bare.exists():
        bare.mkdir()
        home = os.path.dirname(os.path.dirname(np.__file__))
        for name in os.listdir(home):
            if re.match(r"numpy(\.libs|-.*)?$", name):
                os.symlink(os.path.join(home, name), bare / name)
    return [sys.executable, "-S", *words], {**CLEAN, "PYTHONPATH": str(bare)}


def test_it_runs_with_numpy_alone(folder, images, want, tmp_path):
    np.save(tmp_path / "x.npy", images[:, 0])
    command, environment = python(folder, folder / "run.py", "x.npy", "-o", "y.npz")
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "output_0: float32 (5, 4), the largest at" in result.stdout
    np.testing.assert_array_equal(np.load(tmp_path / "y.npz")["output_0"], want)
    command, _ = python(folder, "-c", "import tvm")
    assert subprocess.run(command, env=environment, capture_output=True).returncode != 0  # it has none
    np.save(tmp_path / "x.npy", images[:, 0, :2])
    command, _ = python(folder, folder / "run.py", "x.npy")
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (
        result.returncode == 4 and result.stderr.count("\n") == 1 and "input x is float32" in result.stderr
    )


def test_a_network_that_sorts_runs_with_numpy_alone_and_from_cpp(tmp_path):
    """Story: what TVM sorts by was in a library that was not laid out, and told at the first call only."""
    import onnx
    from onnx import helper

    model = networks.small_onnx()
    (output,) = model.graph.output
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([3]), "k"))
    model.graph.node.append(helper.make_node("TopK", [output.name, "k"], ["best", "places"], axis=1))
    model.graph.output.append(helper.make_tensor_value_info("best", onnx.TensorProto.FLOAT, None))
    images = list(np.random.default_rng(0).standard_normal((3, 1, 3, 8, 8)).astype(np.float32))
    quantized = eq.quantize(model, images, method="minmax", check=False)
    best = eq.Executor(quantized.build("llvm"))(images[0])[1]
    folder = tmp_path / "network"
    quantized.deploy(folder, isa=["generic"])
    np.save(tmp_path / "x.npy", images[0])
    command, environment = python(folder, folder / "run.py", "x.npy", "-o", "y.npz")
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npz")["output_1"], best)
    images[0].tofile(tmp_path / "x.bin")
    compiler = shutil.which("g++") or shutil.which("clang++")
    subprocess.run([compiler, "-std=c++17", folder / "run.cc", "-ldl", "-o", tmp_path / "run"], check=True)
    subprocess.run([tmp_path / "run", folder, "x.bin"], cwd=tmp_path, env=CLEAN, check=True)
    np.testing.assert_array_equal(np.fromfile(tmp_path / "output_1.bin", np.float32), best.ravel())


def test_it_runs_from_cpp(folder, images, want, tmp_path):
    compiler = shutil.which("g++") or shutil.which("clang++")
    source = [folder / "run.cc", "-ldl", "-o", tmp_path / "run"]
    subprocess.run([compiler, "-std=c++17", "-O2", "-Wall", "-Werror", *source], check=True)
    images[0].tofile(tmp_path / "x.bin")

    def run(*words, **more):
        command = [tmp_path / "run", *words]
        return subprocess.run(
            command, cwd=tmp_path, env={**CLEAN, **more}, capture_output=True, text=True, check=False
        )

    for variant in (folder / "network/variants.txt").read_text().split("\n")[:-1]:
        result = run(folder, "x.bin", EASYQUANT_ISA=variant.split()[0])
        assert result.returncode == 0, result.stderr
        np.testing.assert_array_equal(np.fromfile(tmp_path / "output_0.bin", np.float32), want[0])
    (tmp_path / "short.bin").write_bytes(b"1234")
    for words, more, message in (
        ((folder,), {}, "the file of input x is missing: float32 1x3x8x8 x"),
        ((folder, "short.bin"), {}, "short.bin has 4 bytes, input float32 1x3x8x8 x takes 768"),
        (
            (folder, "x.bin"),
            {"EASYQUANT_ISA": "amx"},
            "no variant runs on this CPU: there is none so named",
        ),
        ((tmp_path, "x.bin"), {}, f"cannot read {tmp_path}/network/variants.txt"),
    ):
        result = run(*words, **more)
        assert result.returncode == 4 and result.stderr == f"error: {message}\n"
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "network/variants.txt").write_text("generic no_such_flag\n")
    assert "no variant runs on this CPU; generic needs no_such_flag" in run(other, "x.bin").stderr


@pytest.fixture
def server(folder):
    command, environment = python(folder, folder / "serve.py", "--port", "0", "--limit", "0.1")
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    port = process.stdout.readline().rpartition(":")[2].strip()
    yield process, f"http://127.0.0.1:{port}"
    process.kill()
    process.communicate()


def ask(url, data=None, **headers):
    request = urllib.request.Request(url, data, {k.replace("_", "-"): v for k, v in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_it_serves(server, images, want):
    process, url = server
    status, body = ask(f"{url}/health")
    assert status == 200 and json.loads(body)["inputs"] == {"x": [[1, 3, 8, 8], "float32"]}
    assert json.loads(body)["shapes"] == [{"x": [1, 3, 8, 8]}]
    file = io.BytesIO()
    np.save(file, images[:, 0])
    status, body = ask(f"{url}/predict", file.getvalue())
    assert status == 200
    np.testing.assert_array_equal(np.float32(json.loads(body)["outputs"][0]), want)
    status, body = ask(f"{url}/predict", file.getvalue(), Accept="application/octet-stream")
    np.testing.assert_array_equal(np.load(io.BytesIO(body))["output_0"], want)
    for path, data, code, message in (
        ("/predict", b"nonsense", 400, "the body is no .npy and no .npz"),
        ("/predict", bytes(200_000), 413, "200000 bytes are more than the 104857 that --limit allows"),
        ("/other", b"", 404, "there is no /other; GET /health, POST /predict"),
        ("/other", None, 404, "there is no /other"),
    ):
        status, body = ask(url + path, data)
        assert status == code and message in json.loads(body)["error"]
    file = io.BytesIO()
    np.save(file, images[:, 0].astype(np.float64))
    status, body = ask(f"{url}/predict", file.getvalue())
    assert status == 400 and "input x is float64" in json.loads(body)["error"]
    status, body = ask(f"{url}/predict", b"JFIF", Content_Type="image/jpeg")
    assert status == 400 and "no picture; send an .npy" in json.loads(body)["error"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def test_mistakes_are_a_line(folder, quantized, tmp_path, capsys, monkeypatch):
    package = folder / "network.tar"
    with pytest.raises(WriteError, match="exists and is not an empty folder"):
        quantized.deploy(folder, "llvm")
    for words, message in (
        (("deploy", package, "-o", folder), "exists and is not an empty folder"),
        (("deploy", tmp_path / "no.tar", "-o", tmp_path / "a"), "no.tar"),
        (("deploy", package, "-o", tmp_path / "no" / "a"), "cannot write .*No such file"),
        (
            ("deploy", package, "-o", tmp_path / "a", "--runtime", "no.so"),
            "there is no runtime library no.so",
        ),
    ):
        assert cli.run([*map(str, words)]) == 4
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and re.search(message, err)
    assert not (tmp_path / "a").exists() and not [n for n in os.listdir(tmp_path) if n.startswith(".")]
    assert cli.run(["deploy", str(package), "-o", str(tmp_path / "a"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"]["lib"] > 0
    assert "python serve.py" in (tmp_path / "a" / "README.md").read_text()


def test_a_board_needs_its_own_runtime(quantized, tmp_path, monkeypatch):
    quantized.build("llvm").export(tmp_path / "net.tar")
    monkeypatch.setattr(deployment.isa, "arch_of", lambda triple: "riscv64")
    with pytest.raises(DeployError, match="the TVM installed here is not: name a libtvm_runtime.so"):
        deployment.deploy(tmp_path / "net.tar", tmp_path / "out")


def test_a_name_that_ends_in_tar_is_the_package_alone(quantized, images, want, tmp_path):
    file = tmp_path / "net.tar"
    assert quantized.deploy(file, "llvm") == {"net.tar": file.stat().st_size}
    quantized.build("llvm").export(tmp_path / "built.tar")
    assert file.read_bytes() == (tmp_path / "built.tar").read_bytes()
    with eq.deploy.Program(file) as program:
        np.testing.assert_array_equal(np.concatenate([program(x)[0] for x in images]), want)
        assert repr(program).endswith(": x float32 (1, 3, 8, 8)>")
    with pytest.raises(ConfigError, match="is a package, which holds no runtime"):
        quantized.deploy(tmp_path / "other.tar", "llvm", runtime="libtvm_runtime.so")
    with pytest.raises(WriteError, match="not a folder that can be written"):
        quantized.deploy(tmp_path / "nowhere" / "net.tar", "llvm")
