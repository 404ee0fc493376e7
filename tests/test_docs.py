"""The documentation site is built without a warning, says every public name, and needs no network."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tvm")
pytest.importorskip("sphinx_gallery")
import tvm_easyquant

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, without running the tutorials (test_tutorials does)."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-W", "ignore", "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    command += ["-d", out / "doctrees", "-D", "plot_gallery=0", ROOT / "docs", out / "html"]
    env = {**os.environ, "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env)
    assert result.returncode == 0 and not result.stderr.strip(), result.stderr
    return out / "html"


@pytest.mark.ci
def test_every_public_name_and_every_verb_is_documented(site):
    from tvm_easyquant.cli import root

    verbs = (site / "command_line.html").read_text()
    api = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    targets = set(re.findall(r'id="tvm_easyquant\.([\w.]+)"', api))
    here = {name for name, module in tvm_easyquant._PUBLIC.items() if not module.startswith("relax.")}
    missing = [name for name in here if not {name, f"relay.build.{name}"} & targets]
    assert not missing
    missing = [name for name in tvm_easyquant.__all__ if not re.search(rf"\b{name}\b", api)]
    assert not missing
    assert "tvmc-easyquant quantize" in verbs and len(root.VERBS) > 1


@pytest.mark.ci
def test_arguments_are_a_list_with_types_and_names_link(site):
    """They were one paragraph, without types; names in backticks led nowhere."""
    page = (site / "api" / "quantize.html").read_text()
    text = page[page.index('id="tvm_easyquant.quantize"') : page.index('id="tvm_easyquant.Quantized"')]
    assert "<li><p><strong>calibration</strong>:" in text and "<li><p><strong>max_drop" not in text
    assert re.search(r"max_drop.{0,200}float", text, re.S)
    assert 'href="networks.html#tvm_easyquant.Graph"' in text
    assert 'href="errors.html#tvm_easyquant.errors.LoadError"' in text


@pytest.mark.ci
def test_every_tutorial_has_its_page(site):
    scripts = sorted((ROOT / "tutorials").glob("*.py"))
    assert len(scripts) >= 8
    for script in scripts:
        assert (site / "tutorials" / f"{script.stem}.html").exists()


@pytest.mark.ci
def test_no_page_asks_the_network_for_anything(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:)?//', text)
        assert not loaded, page


def test_pictures_are_small_and_every_tutorial_has_one():
    pictures = {path.name: path.stat().st_size for path in (ROOT / "docs" / "pictures").iterdir()}
    assert all(size < 150_000 for size in pictures.values())
    for script in (ROOT / "tutorials").glob("*.py"):
        (name,) = re.findall(
            r"^# sphinx_gallery_thumbnail_path = 'pictures/(.+)'$", script.read_text(), re.M
        )
        assert name in pictures, script


def test_no_page_states_a_measurement():
    """Figures are in the README's block only, where test_readme compares them with the stored results."""
    found = []
    for page in (ROOT / "docs").glob("*.rst"):
        unit = r"\b\d[\d.,]*\s*(?:ms|us|µs|GMAC/s|GMACs?|%|percent|points|times)(?=\W|$)"
        prose = [
            line for line in page.read_text(encoding="utf-8").splitlines() if not line.startswith("   ")
        ]
        found += [f"{page.name}: {hit}" for line in prose for hit in re.findall(unit, line)]
    assert not found
