"""A command that a signal ends: one line, its exit code, and nothing of it stays behind. No TVM but where said."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tvm_easyquant import demo
from tvm_easyquant.cli import memory
from tvm_easyquant.errors import UserError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
ROOT = Path(__file__).resolve().parent.parent
#: calibration images that come late; until then there are a child and a temporary file
SLOW = """
import pathlib, subprocess, tempfile, time
import numpy as np

def images():
    child = subprocess.Popen(["sleep", "60"])
    open(tempfile.mkdtemp() + "/half", "w").write("half")
    pathlib.Path("child").write_text(str(child.pid))
    pathlib.Path("ready").write_text("")
    time.sleep(60)
    yield np.zeros((1, 3, 8, 8), np.float32)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tmp").mkdir()
    (tmp_path / "slow.py").write_text(SLOW)
    shutil.copy(demo.network_path(), tmp_path / "net.onnx")
    return tmp_path


def usual(then=lambda: None):
    """Signals as a terminal leaves them: whoever runs the tests may have SIGINT or SIGHUP ignored."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    then()


def start(folder, *words, then=lambda: None, path="", **options):
    """path: a folder of modules that come before all others."""
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(ROOT)] if path else [str(ROOT)]),
        "TMPDIR": str(folder / "tmp"),
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "tvm_easyquant.cli", *map(str, words)], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=lambda: usual(then), **options,  # noqa: PLW1509
    )  # fmt: skip


def finish(process):
    process.communicate(timeout=300)
    return process.returncode


def there(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("SIGTERM", 143, "ended by SIGTERM"),
        ("SIGHUP", 129, "ended by SIGHUP"),
        ("SIGINT", 130, "interrupted"),
    ],
)
def test_a_signal_leaves_one_line_and_nothing_else(folder, name, code, said):
    """SIGTERM left a folder in the temporary directory each time, and what it had started ran on."""
    process = start(folder, "quantize", "net.onnx", "--calibration", "slow:images", "-o", "net.json")
    while not (folder / "ready").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=120)
    assert process.returncode == code
    assert err == f"error: {said}; a search begun with --resume and a tuning go on from there\n"
    assert os.listdir(folder / "tmp") == [] and not (folder / "net.json").exists()
    if sys.platform == "linux":
        assert not there(int((folder / "child").read_text()))


def test_what_fails_because_of_a_signal_is_not_said(folder):
    """compile under SIGTERM said that the compiler cannot link for the target: its files had just been
    removed. Here a child that ends ends the work, while another one takes its time."""
    stubborn = "trap : TERM; for i in $(seq 100); do sleep 0.1; done"
    (folder / "failing.py").write_text(
        SLOW.replace("time.sleep(60)", "child.wait()").replace(
            "    child = ",
            f"    subprocess.Popen(['sh', '-c', {stubborn!r}], stderr=subprocess.DEVNULL)\n    child = ",
        )
    )
    process = start(folder, "quantize", "net.onnx", "--calibration", "failing:images", "-o", "net.json")
    while not (folder / "ready").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    time.sleep(0.2)  # the shell has its trap
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143
    assert err == "error: ended by SIGTERM; a search begun with --resume and a tuning go on from there\n"
    assert os.listdir(folder / "tmp") == [] and not (folder / "net.json").exists()


def documented():
    """The exit codes of docs/command_line.rst."""
    text = (ROOT / "docs" / "command_line.rst").read_text()
    return [int(code) for code in re.findall(r"^   \* - (\d+)$", text, re.M)]


#: exit code -> a command line, and how it is ended, that has it
ENDINGS = {
    0: (["--version"], None),
    1: ([], None),
    2: (["quantize", "net.onnx", "--calibraton", "slow:images"], None),
    4: (["quantize", "no.onnx", "--calibration", "slow:images"], None),
    5: (["plan", "net.onnx", "--table", "no.json"], "no TVM"),
    129: (["quantize", "net.onnx", "--calibration", "slow:images"], "SIGHUP"),
    130: (["quantize", "net.onnx", "--calibration", "slow:images"], "SIGINT"),
    141: (["quantize", "net.onnx", "--dry-run", "--json"], "closed"),
    143: (["quantize", "net.onnx", "--calibration", "slow:images"], "SIGTERM"),
}


def test_the_documented_exit_codes_are_all_that_there_are():
    assert documented() == list(ENDINGS)


@pytest.mark.parametrize("code", ENDINGS)
def test_an_exit_code_is_as_documented(folder, code):
    pytest.importorskip("onnx")
    words, how = ENDINGS[code]
    if how == "no TVM":
        (folder / "tvm.py").write_text("raise ImportError('no TVM here')")
        process = start(folder, *words, path=folder)
    else:
        process = start(folder, *words)
    if how == "closed":
        process.stdout.close()
        process.stdout = None
    elif str(how).startswith("SIG"):
        while not (folder / "ready").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(getattr(signal, how))
    assert finish(process) == code


def test_what_is_ignored_stays_ignored(folder):
    """As under nohup."""
    process = start(
        folder, "quantize", "net.onnx", "--calibration", "slow:images", "-o", "net.json",
        then=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    while not (folder / "ready").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=120)
    assert process.returncode == 143


def test_the_folder_of_a_run_that_was_killed_goes_with_the_next(folder):
    process = start(folder, "quantize", "net.onnx", "--calibration", "slow:images", "-o", "net.json")
    while not (folder / "ready").exists():
        time.sleep(0.05)
    process.kill()
    os.kill(int((folder / "child").read_text()), signal.SIGKILL)  # it holds the pipes
    process.communicate()
    assert os.listdir(folder / "tmp") != []
    assert finish(start(folder, "doctor", "--help")) == 0
    assert os.listdir(folder / "tmp") == []


@pytest.mark.parametrize(
    ("words", "gib"),
    [
        (("quantize", "net.onnx", "--calibration", "slow:images", "-o", "net.json"), 0.6),
        (("quantize", "net.onnx", "--calibration", "slow:images", "-o", "net.json"), 0.9),
        (("evaluate", "net.onnx", "--table", "net.json", "--data", "e.npz"), 0.75),
        (("report", "net.onnx", "--table", "net.json", "-o", "page.html"), 0.75),
        (("compile", "net.onnx", "--target", "llvm", "-o", "net.tar"), 0.6),
    ],
)
def test_too_few_addresses_are_a_line_before_the_work(folder, words, gib):
    """Signal 11, "can't start new thread" and 'DummyProcess' object has no attribute 'terminate', each with a
    traceback."""
    resource = pytest.importorskip("resource")
    size = int(gib * 2**30)
    process = start(folder, *words, then=lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size)))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 4 and err.count("\n") == 1
    assert (
        err.startswith(f"error: {words[0]} needs about ") and f"(ulimit -v) allows {gib:.2f}: raise" in err
    )


def test_the_limit_of_a_container_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_addresses", lambda: None)
    monkeypatch.setattr(
        memory, "_files", lambda: [tmp_path / "outer", tmp_path / "inner", tmp_path / "none"]
    )
    (tmp_path / "outer").write_text("104857600\n")
    (tmp_path / "inner").write_text("max\n")
    with pytest.raises(
        UserError, match=r"compile needs about .* GiB of memory here, and its cgroup allows 0\.10"
    ):
        memory.check(["compile", "net.onnx"])
    memory.check(["doctor"])
    (tmp_path / "outer").write_text(f"{2**63 - 4096}\n")  # cgroup 1's word for none
    memory.check(["compile", "net.onnx"])


def test_a_large_image_is_held_against_the_limit_once_its_network_is_read(folder, monkeypatch, capsys):
    """The file of a network says nothing of its tensors: a model of kilobytes may take gigabytes."""
    onnx = pytest.importorskip("onnx")
    import networks

    from tvm_easyquant import cli, load_onnx

    onnx.save(networks.sized_onnx(), folder / "sized.onnx")
    graph = load_onnx(folder / "sized.onnx", {"x": (1, 3, 512, 512)})
    assert graph.live_bytes == (8 + 8) * 512 * 512 * 4  # conv1 and relu1
    limit = memory.Limit("its cgroup", 2**30)
    monkeypatch.setattr(memory, "limits", lambda: (None, limit))
    monkeypatch.chdir(folder)
    np.savez("x.npz", x=np.zeros((2, 3, 64, 64), np.float32))
    words = ["quantize", "sized.onnx", "--calibration", "x.npz", "-o", "sized.json", "--input-shapes"]
    assert cli.run([*words, "x:[1,3,4096,4096]"]) == 4
    err = capsys.readouterr().err
    assert "quantize needs about 1.18 GiB of memory here, and its cgroup allows 1.00: raise it" in err
    assert not (folder / "sized.json").exists()
    assert cli.run([*words, "x:[1,3,64,64]", "--method", "minmax"]) == 0


@pytest.mark.ci
@pytest.mark.linker
def test_signals_at_random_moments_lose_nothing(folder):
    """import-onnx under SIGINT ended with a traceback and a segmentation fault."""
    pytest.importorskip("tvm")
    images = demo.images()
    np.savez(folder / "c.npz", image=images["calibration_images"][:8])
    np.savez(folder / "e.npz", images=images["test_images"][:50], labels=images["test_labels"][:50])
    for words in (
        ("quantize", "net.onnx", "--calibration", "c.npz", "-o", "net.json"),
        ("export-onnx", "net.onnx", "--table", "net.json", "-o", "q.onnx"),
    ):
        assert finish(start(folder, *words)) == 0
    verbs = {
        "net.json": ("quantize", "net.onnx", "--calibration", "c.npz", "-o", "net.json"),
        "q.onnx": ("export-onnx", "net.onnx", "--table", "net.json", "-o", "q.onnx"),
        "i.json": ("import-onnx", "q.onnx", "-o", "i.json"),
        "net.tar": ("compile", "net.onnx", "--target", "easyquant -table=net.json, llvm", "-o", "net.tar"),
        "page.html": ("report", "net.onnx", "--table", "net.json", "-o", "page.html", "--no-benchmark"),
        "none": ("evaluate", "net.onnx", "--table", "net.json", "--data", "e.npz"),
    }
    chance, ended = random.Random(0), 0
    for file, words in [*verbs.items()] * 4:
        before = (folder / file).read_bytes() if (folder / file).exists() else None
        process = start(folder, *words)
        name = chance.choice(["SIGTERM", "SIGINT", "SIGHUP"])
        while not os.listdir(folder / "tmp") and process.poll() is None:
            time.sleep(0.01)  # before that it is Python, which starts
        time.sleep(chance.uniform(0, 3))
        process.send_signal(getattr(signal, name))
        _, err = process.communicate(timeout=300)
        number = getattr(signal, name)
        done = err == "" or err.splitlines()[-1].startswith(
            "next: "
        )  # its work was done, Python about to end
        over = process.returncode == -number and done
        assert over or process.returncode in (0, 128 + number), (words, err)
        if process.returncode == 128 + number:
            ended += 1
            assert err.splitlines()[-1].startswith("error: ") and "Traceback" not in err
            now = (folder / file).read_bytes() if (folder / file).exists() else None
            assert now == before or now is not None
        assert os.listdir(folder / "tmp") == [], words
        assert not [name for name in os.listdir(folder) if name.startswith(f".{file}")]
    assert ended
