"""``tvmc-easyquant`` as a new user meets it: what it says, when, and in whose words. No TVM but where said."""

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
from tvm_easyquant import cli, demo

ROOT = Path(__file__).resolve().parent.parent
NO_HOST = importlib.util.find_spec("tvm") is None
needs_host = pytest.mark.skipif(NO_HOST, reason="no TVM here")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The embedded network, some of its images, and nothing else; it is the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copy(demo.network_path(), "net.onnx")
    images = demo.images()
    np.savez("images.npz", image=images["calibration_images"][:20])
    np.savez("labelled.npz", images=images["test_images"][:20], labels=images["test_labels"][:20])
    yield tmp_path
    sys.modules.pop("mine", None)


def run(*words):
    """The exit code of a command line."""
    try:
        return cli.run([str(word) for word in words])
    except SystemExit as end:
        return end.code


QUANTIZE = ("quantize", "net.onnx", "--calibration", "images.npz", "--method", "minmax", "-o", "net.json")


@pytest.fixture
def table(folder, capsys):
    assert run(*QUANTIZE) == 0
    capsys.readouterr()
    return folder / "net.json"


# -- mistakes


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (("quantize", "net.onnx", "--calibraton", "images.npz"), "--calibration"),
        pytest.param(("compile", "net.onnx", "--tabel", "net.json"), "--table", marks=needs_host),
        pytest.param(("run", "net.tar", "--print-tiem"), "--print-time", marks=needs_host),
    ],
)
def test_an_unknown_option_brings_the_usage_of_its_verb(folder, capsys, words, near):
    """It was the root's, with 19 verbs and no option; of tvmc's verbs a hundred lines of a target's attributes."""
    assert run(*words) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"usage: tvmc-easyquant {words[0]} [-h]") and near in err
    assert "--target-llvm" not in err and err.count("\n") < 40
    assert err.splitlines()[-1].endswith(f"did you mean {near}?; see tvmc-easyquant {words[0]} --help")


MINE = """
import numpy as np

def metric(outputs, label):
    return helper(outputs)

def helper(outputs):
    return outputs.nothing

def pairs():
    yield np.zeros((1, 1, 28, 28), np.float32), 0
    raise {error}

def batches():
    yield np.zeros((1, 1, 28, 28), np.float32)
    raise {error}
"""


@pytest.mark.parametrize(
    ("words", "error", "frames", "said"),
    [
        (
            ("evaluate", "net.onnx", "--table", "net.json", "--data", "labelled.npz", "--metric", "mine:metric"),
            "ValueError()", ["metric", "helper"], "mine:metric raised AttributeError: 'list' object has no",
        ),
        (
            ("evaluate", "net.onnx", "--table", "net.json", "--data", "mine:pairs"),
            "KeyError('no such row')", ["pairs"], "mine:pairs raised KeyError: 'no such row'",
        ),
        (
            ("quantize", "net.onnx", "--calibration=mine:batches", "-o", "again.json"),
            "OSError('gone')", ["batches"], "mine:batches raised OSError: gone",
        ),
    ],
)  # fmt: skip
def test_what_a_users_function_raises_is_told_by_its_own_frames(table, capsys, words, error, frames, said):
    """Eleven frames of ours stood before the one that mattered."""
    Path("mine.py").write_text(MINE.format(error=error))
    assert run(*words) == 4
    err = capsys.readouterr().err
    files = [line for line in err.splitlines() if line.startswith('  File "')]
    assert [line.rpartition(" in ")[2] for line in files] == frames
    assert all("mine.py" in line for line in files)
    assert err.splitlines()[-1].startswith(f"error: {said}")


def test_a_bug_of_ours_keeps_its_traceback(table, monkeypatch):
    from tvm_easyquant.measure import accuracy

    Path("mine.py").write_text(MINE.format(error="ValueError()"))
    monkeypatch.setattr(accuracy, "evaluate", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("evaluate", "net.onnx", "--table", "net.json", "--data", "mine:pairs")


def test_a_table_of_another_network_is_told_by_fingerprints(table, capsys):
    """It listed every name of both networks."""
    import networks
    import onnx

    onnx.save(networks.small_onnx(), "small.onnx")
    assert run("export-onnx", "small.onnx", "--table", "net.json", "-o", "out.onnx") == 4
    err = capsys.readouterr().err
    assert "made for another model (" in err and "small is " in err and "quantize this one" in err
    assert "block1" not in err and len(err) < 200


@pytest.mark.parametrize(
    ("version", "said"), [(99, "install a newer tvm_easyquant"), (0, "is not a search")]
)
def test_files_of_another_release_say_which_is_newer(tmp_path, version, said):
    from tvm_easyquant.errors import CheckpointError, CurvesError
    from tvm_easyquant.search import curves, state

    path = tmp_path / "file"
    path.write_text(f'{{"format": "{state.FORMAT}", "version": {version}, "identity": {{}}}}\n')
    with pytest.raises(CheckpointError, match=said):
        state.State(path)
    path.write_text(f'{{"format": "{curves.FORMAT}", "version": {version}}}\n')
    with pytest.raises(CurvesError, match=said):
        curves.Curves.load(path)


# -- while it works


def test_a_log_gets_a_line_now_and_then_and_one_for_each_kernel(monkeypatch, capsys):
    """Off a terminal nothing was said until the end, for hours of a search."""
    from tvm_easyquant import progress

    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    bar, tuning = progress.Bar(), progress.Bar(steps=True)
    for second in range(0, 70, 10):
        clock[0] = float(second)
        bar(second, 70, "weights conv")
    assert capsys.readouterr().err == "weights conv: 30 of 70\nweights conv: 60 of 70\n"
    for done, text in enumerate(["kernel 1 of 2, a", "kernel 1 of 2, a", "kernel 2 of 2, a"], 1):
        tuning(done, 3, text)
    bar(1, 0, "calibrate")
    assert capsys.readouterr().err == "kernel 1 of 2, a: 1 of 3\nkernel 2 of 2, a: 3 of 3\n"


def test_an_interrupted_search_says_where_it_is_taken_up(folder, monkeypatch, capsys):
    from tvm_easyquant.search import driver

    words = ("quantize", "net.onnx", "--calibration", "images.npz", "--resume", "-o", "net.json",
             "--search-images", "2")  # fmt: skip
    searched, site = [], driver._Search._search_site

    def stopping(self, *rest):
        searched.append(self.done)
        if len(searched) == 4:
            raise KeyboardInterrupt
        return site(self, *rest)

    monkeypatch.setattr(driver._Search, "_search_site", stopping)
    assert run(*words) == 130
    monkeypatch.setattr(driver._Search, "_search_site", site)
    capsys.readouterr()
    assert run(*words) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("resumed at")]
    assert len(lines) == 1 and lines[0].startswith(f"resumed at {searched[-1]} of ")
    assert run(*words) == 0 and "resumed" not in capsys.readouterr().err
