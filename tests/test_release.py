"""A release says one version everywhere, and its checklist names the place that does not."""

import importlib.util
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHECKLIST = ROOT / ".ci" / "release.py"
pytestmark = pytest.mark.skipif(not CHECKLIST.exists(), reason="the checklist is not here")
FILES = ("tvm_easyquant/__init__.py", "pyproject.toml", "CITATION.cff", "CHANGELOG.md")


@pytest.fixture(scope="module")
def release():
    spec = importlib.util.spec_from_file_location("release", CHECKLIST)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(release, tmp_path):
    """These files, as they are on the day of a release."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    version = release.version(tmp_path)
    change(tmp_path / "CHANGELOG.md", "## [Unreleased]", f"## [{version}] - 2031-02-03")
    change(tmp_path / "CITATION.cff", "type: software", "type: software\ndate-released: 2031-02-03")
    return tmp_path


def change(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_between_releases_only_the_changelog_waits(release):
    assert [line for line in release.disagreements(ROOT) if not line.startswith("CHANGELOG.md")] == []


def test_on_the_day_of_a_release_nothing_is_against_it(release, copy):
    assert release.disagreements(copy) == []


@pytest.mark.parametrize(
    "name, old, new, told",
    [
        ("tvm_easyquant/__init__.py", '__version__ = "', '__version__ = "9', "CITATION.cff: version"),
        ("tvm_easyquant/__init__.py", '__version__ = "', '__version__ = "v', "write MAJOR.MINOR.PATCH"),
        ("pyproject.toml", 'version = { attr = "tvm_easyquant.__version__" }', 'version = "1"', "not read"),
        ("CITATION.cff", "\nversion: ", "\nversion: 9", "CITATION.cff: version 9"),
        (
            "CITATION.cff",
            "2031-02-03",
            "2031-02-04",
            "date-released 2031-02-04; CHANGELOG.md says 2031-02-03",
        ),
        ("CHANGELOG.md", " - 2031-02-03", "", "write '["),
        ("CHANGELOG.md", "## [", "## [9.", "topmost heading"),
    ],
)
def test_each_place_that_disagrees_is_named(release, copy, name, old, new, told):
    change(copy / name, old, new)
    assert any(told in line for line in release.disagreements(copy))
