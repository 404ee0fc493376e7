"""A compiled network runs without the TVM package, and gives what TVM's executor gives."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")
import networks

import tvm_easyquant as eq
from tvm_easyquant import deploy

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """(net.so, an input, the outputs)."""
    graph, images = networks.chain(channels=16)
    library = eq.quantize(graph, images, method="minmax").build()
    path = tmp_path_factory.mktemp("deploy") / "net.so"
    library.export_library(str(path))
    return path, images[0], eq.Executor(library)({"image": images[0]})


def test_it_gives_the_executors_outputs(compiled, monkeypatch):
    path, image, want = compiled
    monkeypatch.chdir(path.parent)
    program = deploy.Program(path.name)
    assert program.inputs == {"image": (image.shape, image.dtype)}
    for _ in range(2):
        got = program({"image": image})
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_process_of_it_never_imports_tvm_and_stays_small(compiled, tmp_path):
    path, image, want = compiled
    np.save(tmp_path / "in.npy", image)
    code = f"""
import sys
import numpy as np
from tvm_easyquant import deploy
program = deploy.Program({str(path)!r})
np.save({str(tmp_path / "out.npy")!r}, program({{"image": np.load({str(tmp_path / "in.npy")!r})}})[0])
print([name for name in ("tvm", "onnx", "scipy") if name in sys.modules])
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    modules, peak = map(json.loads, found.stdout.splitlines())
    assert modules == [] and peak < 60 * 1024  # KiB; with the tvm package it is over 70 MiB
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), want[0])


def test_it_takes_what_tvmc_compiled(tmp_path):
    from tvm_easyquant import demo

    model, images = demo.network_path(), demo.images()
    np.savez(tmp_path / "calibration.npz", image=images["calibration_images"][:8])
    table, archive = tmp_path / "net.json", tmp_path / "net.tar"
    calibration = tmp_path / "calibration.npz"
    for command in (
        ["quantize", model, "--calibration", calibration, "--method", "minmax", "-o", table],
        ["compile", model, "--target", f"easyquant -table={table}, llvm", "-o", archive],
    ):
        words = [sys.executable, "-m", "tvm_easyquant.cli", *map(str, command)]
        subprocess.run(words, cwd=ROOT, capture_output=True, check=True)
    q = eq.quantize(str(model), images["calibration_images"][:8], method="minmax")
    image = images["test_images"][:1]
    np.testing.assert_array_equal(
        deploy.Program(archive)({"image": image})[0], eq.Executor(q.build("llvm"))({"image": image})[0]
    )


def test_what_is_wrong_is_named(compiled, tmp_path, monkeypatch):
    path, image, _ = compiled
    program = deploy.Program(path)
    cases = [
        ({}, "input image is missing"),
        ({"image": image, "mask": image}, r"no input mask; the inputs are \['image'\]"),
        ({"image": image[..., 1:]}, "input image is float32 .* the network takes float32"),
        ({"image": image.astype(np.float64)}, "input image is float64"),
    ]
    for feed, message in cases:
        with pytest.raises(deploy.DeployError, match=message):
            program(feed)
    with pytest.raises(deploy.DeployError, match="nothing.so does not exist"):
        deploy.Program(tmp_path / "nothing.so")
    text = tmp_path / "text.so"
    text.write_text("this is no library")
    with pytest.raises(deploy.DeployError, match=r"text\.so"):
        deploy.Program(text)
    with pytest.raises(deploy.DeployError, match="is no TVM runtime"):
        deploy.Program(path, runtime=text)
    other = tmp_path / "other.tar"
    with tarfile.open(other, "w") as archive:
        archive.add(text, "text.so")
    with pytest.raises(deploy.DeployError, match="no archive of tvmc compile.*mod.so"):
        deploy.Program(other)
    with tarfile.open(other, "w") as archive:  # was an AttributeError: None has no read
        archive.add(text.parent, "mod.so", recursive=False)
    with pytest.raises(deploy.DeployError, match="'mod.so' is no file in it"):
        deploy.Program(other)
    monkeypatch.delitem(sys.modules, "tvm")
    monkeypatch.setattr(deploy.util, "find_spec", lambda name: None)
    with pytest.raises(deploy.DeployError, match="runtime="):
        deploy.find_runtime()
