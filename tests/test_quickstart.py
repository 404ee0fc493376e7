"""The quickstart's commands are typed as they stand, and print what it says that they print."""

import re
import shlex
from pathlib import Path

import pytest
from python_process import run

pytest.importorskip("tvm")
pytest.importorskip("PIL")
pytest.importorskip("jinja2")
ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "quickstart.rst"


def blocks(text):
    """(language, caption, lines) of each code block of a page."""
    for found in re.finditer(r"^\.\. code-block:: (\w+)\n((?:(?:   .*)?\n)+)", text, re.M):
        lines = [line[3:] for line in found[2].rstrip().splitlines()]
        caption = lines.pop(0).removeprefix(":caption: ") if lines[0].startswith(":caption:") else None
        yield found[1], caption, lines[1:]


def masked(line):
    """Decimals depend on the CPU's float32 sums, and so do an image or two; words and other counts do not."""
    line = re.sub(r"gained \d+, lost \d+|p = \d+|[-+]?\d+\.\d+", "#", line)
    return re.sub(r"\s+", " ", line).strip()


def in_order(wanted, printed):
    """Whether these lines are among the printed ones, in this order."""
    rest = iter(printed)
    return all(line in rest for line in wanted)


def test_the_comparison_sees_a_line_that_is_missing_or_out_of_order():
    assert in_order(["a", "c"], ["a", "b", "c"])
    assert not in_order(["c", "a"], ["a", "b", "c"]) and not in_order(["d"], ["a"])
    assert masked("top1: 94.67  of 300") == "top1: # of 300"


@pytest.mark.ci
@pytest.mark.linker
def test_the_commands_of_the_quickstart_print_what_it_says(tmp_path):
    typed = 0
    for language, caption, lines in blocks(PAGE.read_text(encoding="utf-8")):
        if language == "python":
            (tmp_path / caption).write_text("\n".join(lines))
            if caption == "run.py":  # the page types that one
                continue
            lines = [f"$ python {caption}"]
        command = lines[0].removeprefix("$ ").replace("tvmc-easyquant", "python -m tvm_easyquant.cli", 1)
        program, *words = shlex.split(command)
        assert program == "python"
        done = run(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        wanted = [masked(line) for line in lines[1:] if line != "..."]
        printed = [masked(line) for line in done.stdout.splitlines()]
        assert in_order(wanted, printed), (lines, done.stdout)
        typed += 1
    assert typed == 8
    assert {"net.json", "net.tar", "net.html", "again.tar"} <= {path.name for path in tmp_path.iterdir()}
