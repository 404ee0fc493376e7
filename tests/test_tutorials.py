"""Every tutorial runs, without anything from outside the package."""

from pathlib import Path

import pytest
from python_process import run

pytest.importorskip("tvm")
ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.ci
@pytest.mark.parametrize("script", sorted((ROOT / "tutorials").glob("*.py")), ids=lambda p: p.stem)
def test_the_tutorial_runs(tmp_path, script):
    result = run(script, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert not list(tmp_path.iterdir())  # the site's builder would leave it in the repository
    if result.stdout.startswith("skipped: "):  # a tool it shows is not installed
        pytest.skip(result.stdout.strip())
