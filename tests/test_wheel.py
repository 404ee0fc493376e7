"""The wheel, made from the sdist, holds every file of the packages, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("build")
ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tvm_easyquant", "topi_ext")
#: what a package holds beside its code, by the end of the name
DATA = (
    ".json",
    ".md",
    ".npz",
    ".onnx",
    "data/package.html",
    "data/page.html",
    "data/parts.html",
    "data/report.css",
    "data/report.html",
    "data/report.js",
    "deployment/Dockerfile",
    "deployment/network.h",
    "deployment/run.cc",
    "deployment/run_vm.cc",
    "py.typed",
)


@pytest.mark.ci  # an environment of its own for setuptools
@pytest.mark.skipif(not (ROOT / "tvm_easyquant").exists(), reason="the sources are not here")
def test_the_wheel_holds_every_file_of_the_packages_and_no_other(tmp_path):
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "tests").mkdir()  # beside the packages there is more, which stays out
    (tmp_path / "tests" / "conftest.py").touch()
    sources = {
        path.relative_to(tmp_path).as_posix()
        for name in PACKAGES
        for path in (tmp_path / name).rglob("*")
        if path.is_file()
    }
    command = [sys.executable, "-m", "build", "--outdir", tmp_path / "dist", tmp_path]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == sources
    assert not [name for name in names if not name.endswith((".py", *DATA))]
    assert {f"{package}/py.typed" for package in PACKAGES} < names
    assert {"topi_ext/costs/znver4.json", "tvm_easyquant/data/report.html"} < names
