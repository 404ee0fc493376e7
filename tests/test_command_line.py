"""``tvmc-easyquant`` as a new user meets it: what it says, when, and in whose words. No TVM but where said."""

import contextlib
import importlib.util
import json
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("onnx")
from tvm_easyquant import cli, demo
from tvm_easyquant.errors import WriteError

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


def test_a_verb_that_is_none_is_told_without_all_that_are(capsys):
    assert run("quantise", "net.onnx") == 2
    err = capsys.readouterr().err
    assert err == "error: there is no verb 'quantise'; did you mean quantize?; see tvmc-easyquant --help\n"


def uncompiled(monkeypatch):
    """Networks that evaluate would compile, as functions that answer with zeros."""
    from tvm_easyquant.measure import networks

    zeros = lambda feed: [np.zeros((1, 10), np.float32)]  # noqa: E731
    for name in ("built", "in_numpy"):
        monkeypatch.setattr(networks, name, lambda *_: networks.Networks(zeros, zeros))


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
def test_what_a_users_function_raises_is_told_by_its_own_frames(
    table, monkeypatch, capsys, words, error, frames, said
):
    """Eleven frames of ours stood before the one that mattered."""
    uncompiled(monkeypatch)
    Path("mine.py").write_text(MINE.format(error=error))
    assert run(*words) == 4
    err = capsys.readouterr().err
    files = [line for line in err.splitlines() if line.startswith('  File "')]
    assert [line.rpartition(" in ")[2] for line in files] == frames
    assert all("mine.py" in line for line in files)
    assert err.splitlines()[-1].startswith(f"error: {said}")


def test_a_bug_of_ours_keeps_its_traceback(table, monkeypatch):
    from tvm_easyquant.measure import accuracy

    uncompiled(monkeypatch)
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("evaluate", "net.onnx", "--table", "net.json", "--data", "other.npz"),
         "other.npz, sample 0: image has shape (1, 3, 8, 8), the network takes (1, 1, 28, 28)"),
        (("report", "net.onnx", "--table", "net.json", "--data", "other.npz"), "other.npz, sample 0: image has"),
        (("evaluate", "net.onnx", "--table", "net.json", "--data", "labelled.npz", "--metric", "mine:none"),
         "'mine:none' names no function"),
        (("evaluate", "small.onnx", "--table", "net.json", "--data", "labelled.npz"), "made for another model"),
        ((*QUANTIZE, "--max-drop", "1", "--eval", "other.npz"), "other.npz, sample 0: image has"),
        ((*QUANTIZE, "--max-drop", "-1", "--eval", "labelled.npz"), "--max-drop is -1.0; give points"),
        ((*QUANTIZE, "--max-drop", "1", "--eval", "labelled.npz", "--metric", "mine:none"), "names no function"),
        (("quantize", "no.onnx", "--calibration", "images.npz", "-o", "no/net.json"), "cannot write no/net.json"),
        (("compile", "net.onnx", "--table", "net.json"), "cannot write module.tar: it is a folder"),
    ],
)  # fmt: skip
@needs_host
def test_what_is_cheap_to_see_is_seen_before_anything_is_compiled(table, monkeypatch, capsys, words, said):
    """A drop of -1 was refused behind the compiler; data of another shape, behind two."""
    import networks
    import onnx

    from tvm_easyquant.host import installed
    from tvm_easyquant.measure import report

    monkeypatch.setattr(report, "check_packages", lambda: None)
    Path("mine.py").write_text(MINE.format(error="ValueError()"))
    onnx.save(networks.small_onnx(), "small.onnx")
    np.savez("other.npz", images=np.zeros((2, 3, 8, 8), np.float32), labels=np.zeros(2, int))
    Path("module.tar").mkdir()
    for name in ("build", "build_float"):
        monkeypatch.setattr(type(installed()), name, lambda *_, name=name, **__: pytest.fail(name))
    assert run(*words) == 4
    assert said in capsys.readouterr().err


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


@contextlib.contextmanager
def interrupted():
    """Within, a search is interrupted at its fourth site; how much was done at each."""
    from tvm_easyquant.search import driver

    searched, site = [], driver._Search._search_site

    def stopping(self, *rest):
        searched.append(self.done)
        if len(searched) == 4:
            raise KeyboardInterrupt
        return site(self, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver._Search, "_search_site", stopping)
        yield searched


@pytest.mark.ci
def test_an_interrupted_search_says_where_it_is_taken_up(folder, capsys):
    words = ("quantize", "net.onnx", "--calibration", "images.npz", "--resume", "-o", "net.json",
             "--search-images", "2")  # fmt: skip
    with interrupted() as searched:
        assert run(*words) == 130
    capsys.readouterr()
    assert run(*words) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("resumed at")]
    assert len(lines) == 1 and lines[0].startswith(f"resumed at {searched[-1]} of ")
    assert run(*words) == 0 and "resumed" not in capsys.readouterr().err


# -- what it ends with


def following(err):
    """The command of the ``next:`` line, which is the last and the only one."""
    lines = err.splitlines()
    (line,) = [line for line in lines if line.startswith("next: ")]
    assert line == lines[-1]
    return shlex.split(line.removeprefix("next: "))


def test_each_verb_names_the_command_that_follows(table, capsys):
    assert run("quantize", "net.onnx", "--dry-run") == 0
    words = following(capsys.readouterr().err)
    assert words == ["tvmc-easyquant", "quantize", "net.onnx", "--calibration", "DATA", "-o", "net.json"]
    assert run(*QUANTIZE, "--input-shapes", "image:[1,1,28,28]") == 0
    words = following(capsys.readouterr().err)
    shapes = ["--input-shapes", "image:[1,1,28,28]"]
    compiling = ["tvmc-easyquant", "compile", "net.onnx", "--table", "net.json", "-o", "net.tar"]
    assert words == [*compiling[:3], *shapes, *compiling[3:]]
    assert run("export-onnx", "net.onnx", "--table", "net.json", "-o", "qdq.onnx") == 0
    assert following(capsys.readouterr().err)[1:3] == ["verify-onnx", "net.onnx"]
    assert run("import-onnx", "qdq.onnx") == 0
    assert following(capsys.readouterr().err)[1:] == ["import-onnx", "qdq.onnx", "-o", "qdq.tar"]


def test_json_is_alone_on_stdout_and_has_no_next_line(table, capsys):
    assert run(*QUANTIZE, "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["table"] == "net.json" and "next:" not in err
    assert run(*QUANTIZE) == 0
    assert "next:" not in capsys.readouterr().out


def test_every_verb_is_followed_by_one_that_there_is():
    from tvm_easyquant.cli import onward, root

    ours = set(root._parser()[1])
    assert set(onward.NEXT) == (ours | {"compile", "run"}) - {"auto"}


def test_what_follows_is_of_the_bits_that_were_asked_for():
    """Of a table of both, the next command went back to 7."""
    from tvm_easyquant.cli import onward

    args = SimpleNamespace(FILE="net.onnx", table="net.json", bits=8, tuning_records=None)
    for verb in ("plan", "benchmark"):
        assert "--bits 8" in " ".join(onward.NEXT[verb](args))
    of_search = SimpleNamespace(FILE="net.onnx", output="net.json", bits="8", dry_run=False)
    assert "--bits" not in onward.NEXT["quantize"](of_search)  # its table has those alone


def test_what_is_made_for_another_machine_is_not_to_be_run_here(tmp_path, monkeypatch):
    """The line named benchmark, which ended in "made for another architecture"."""
    from test_package import AVX2_ONLY, compiled

    from topi_ext import isa
    from tvm_easyquant import package
    from tvm_easyquant.cli import onward

    monkeypatch.setattr(isa, "host_flags", lambda: AVX2_ONLY)
    monkeypatch.setattr(isa.platform, "machine", lambda: "x86_64")
    path = str(tmp_path / "net.tar")
    ours, theirs = ["run", path, "--print-time"], ["deploy", path, "-o", str(tmp_path / "net_deploy")]
    for row, arch, after, served in (
        ("avx2", "x86_64", ours, True),
        ("avx512vnni", "x86_64", theirs, False),
        ("neon", "aarch64", [*theirs, "--runtime", "LIB"], False),
    ):
        Path(path).write_bytes(package.packed("1.0", [compiled(row, arch=arch)]))
        args = SimpleNamespace(FILE="net.pt", table="net.json", output=path)
        for verb in ("compile", "import-onnx"):
            assert onward.NEXT[verb](args)[1:] == after
        args = SimpleNamespace(FILE=path, output="folder")
        assert bool(onward.NEXT["deploy"](args)) == served


@pytest.mark.ci
@needs_host
@pytest.mark.linker
def test_the_next_lines_lead_from_a_table_to_a_deployed_network(folder, capsys):
    """Each is run as it stands."""
    import networks
    import onnx

    onnx.save(networks.small_onnx(), "net.onnx")
    np.savez("images.npz", x=np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32))
    assert run(*QUANTIZE) == 0
    capsys.readouterr()
    words = ["tvmc-easyquant", "compile", "net.onnx", "--table", "net.json", "-o", "net.tar"]
    seen = []
    while words[0] == "tvmc-easyquant":
        seen.append(words[1])
        assert run(*words[1:], *(["--rounds", "1"] if words[1] == "benchmark" else [])) == 0
        err = capsys.readouterr().err
        words = following(err)
        if seen == ["compile"]:  # size, and what to do for kernels that were not measured
            size = Path("net.tar").stat().st_size / 1024
            assert f"\nnet.tar: {size:.1f} KiB; 3 of 3 kernels are chosen by stored costs: " in f"\n{err}"
            assert "tvmc-easyquant tune-kernels net.onnx --table net.json -o net.log measures them" in err
            assert run("run", "net.tar") == 0 and following(capsys.readouterr().err)[1] == "deploy"
    assert seen == ["compile", "benchmark", "deploy"]
    assert words == ["python", "net_deploy/serve.py"] and Path(words[1]).exists()


def test_ncnn_and_our_own_qdq_say_what_stays_float_and_how_many_bits(folder, capsys):
    """import-onnx called our own 7 bits int8, as the type that holds them."""
    assert run(*QUANTIZE, "--symmetric", "--skip", "logits") == 0
    capsys.readouterr()
    assert run("export-ncnn", "net.onnx", "--table", "net.json", "-o", "net.table") == 0
    out, err = capsys.readouterr()
    assert "float: logits: kept float by skip\n" in out and following(err)[0] == "ncnn2int8"
    assert run("import-ncnn", "net.onnx", "--ncnn", "net.table", "-o", "again.json") == 0
    assert "float: " in capsys.readouterr().out
    assert run("export-onnx", "net.onnx", "--table", "net.json", "-o", "qdq.onnx") == 0
    capsys.readouterr()
    assert run("import-onnx", "qdq.onnx", "--json") == 0
    kinds = {row["layer"]: row["kind"] for row in json.loads(capsys.readouterr().out)["layers"]}
    assert kinds.pop("logits") == "float32" and set(kinds.values()) == {"int7"}


@needs_host
@pytest.mark.ci
@pytest.mark.linker
def test_a_profile_names_layers_and_leaves_no_folder(table, capsys):
    """They were tvmgen_default_fused_easyquant_conv2d_avx2_5, sorted by time, beside a folder prof."""
    assert run("compile", "net.onnx", "--table", "net.json", "-o", "net.tar") == 0
    capsys.readouterr()
    assert run("run", "net.tar", "--profile") == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.lower().startswith("layer "))
    first = [line.split()[0] for line in lines[head + 1 :] if line.strip()]
    order = ["stem.conv", "down.conv", "block2.conv1", "block2.conv2", "avgpool", "head.conv", "logits"]
    assert [name for name in first if name in order] == order
    assert not Path("prof").exists()


# -- auto


@pytest.fixture
def steps(monkeypatch):
    """The command lines that ``auto`` runs, none of which does anything but write its file."""
    from tvm_easyquant.cli import root
    from tvm_easyquant.measure import report

    theirs, seen = root.run, []

    def stub(words, *, follows=True):
        if words[0] == "auto":
            return theirs(words, follows=follows)
        assert not follows
        seen.append(words)
        if words[0] == "evaluate":
            row = {"n": 20, "value": 90.0, "reference": 95.0, "gained": 0, "lost": 1, "difference": -5.0,
                   "interval": [-15.0, 5.0], "p": 1.0, "drop": 5.0}  # fmt: skip
            print(json.dumps({"data": "labelled.npz", "metrics": {"top1": row}}))
        else:
            Path(words[words.index("-o") + 1]).write_text(" ".join(words))
        return 0

    monkeypatch.setattr(root, "run", stub)
    monkeypatch.setattr(report, "check_packages", lambda: None)
    return seen


AUTO = ("auto", "net.onnx", "--images", "images.npz")


@needs_host
@pytest.mark.linker
def test_auto_is_the_verbs_one_after_the_other_and_keeps_what_is_done(folder, steps, capsys):
    from tvm_easyquant.cli import root

    words = [*AUTO, "--labels", "labelled.npz", "--bits", "8"]
    assert root.run(words) == 0
    out, err = capsys.readouterr()
    assert [line[0] for line in steps] == ["quantize", "evaluate", "compile", "report"]
    table = str(Path("net_easyquant", "net.json"))
    assert steps[0][1:] == [
        "net.onnx",
        "--calibration",
        "images.npz",
        "--bits",
        "8",
        "--resume",
        "-o",
        table,
    ]
    assert steps[2][1:4] == ["net.onnx", "--table", table] and "--accuracy" in steps[3]
    assert f"quantize: tvmc-easyquant quantize {' '.join(steps[0][1:])}\n" in out
    assert "top1: integers 90.00 against 95.00: -5.00 points" in out
    ends = [line.split()[1:3] for line in err.splitlines() if line.startswith("next: ")]
    assert ends == [["tvmc-easyquant", "run"], ["tvmc-easyquant", "deploy"], ["python", "-m"]]

    steps.clear()
    assert root.run(words) == 0 and not steps
    out = capsys.readouterr().out
    assert f"quantize: kept from {table}: " in out and "top1: integers 90.00" in out
    labels = dict(np.load("labelled.npz"))
    np.savez("labelled.npz", images=labels["images"], labels=labels["labels"][::-1])
    assert root.run(words) == 0 and [line[0] for line in steps] == ["evaluate", "report"]
    steps.clear()
    Path(table).write_text("by hand")  # is not what was made
    assert root.run(words) == 0 and [line[0] for line in steps] == ["quantize"]
    steps.clear()
    assert root.run([*AUTO, "--bits", "7"]) == 0
    assert [line[0] for line in steps] == ["quantize", "compile", "report"]


@needs_host
@pytest.mark.linker
@pytest.mark.parametrize("cpu, bits", [("core-avx2", "7"), ("cascadelake", "8")])
def test_auto_of_several_bits_scores_compiles_and_reports_those_of_the_class(folder, steps, cpu, bits):
    """The report refused the score, which is of one table, after everything else was done."""
    from tvm_easyquant.cli import root

    on = ["--target", f"llvm -mcpu={cpu}"]
    assert root.run([*AUTO, "--labels", "labelled.npz", "--bits", "7,8", *on]) == 0
    taken = [line[line.index("--bits") + 1] for line in steps]
    assert taken == ["7,8", bits, bits, bits] and "--accuracy" in steps[3]


@needs_host
@pytest.mark.linker
def test_auto_searches_on_the_cluster_that_it_names(folder, steps, monkeypatch, capsys):
    """It is asked for first; where a table was searched is no reason to search it again."""
    import contextlib

    from tvm_easyquant import cluster
    from tvm_easyquant.cli import root
    from tvm_easyquant.errors import ClusterError

    words, asked = [*AUTO, "--labels", "labelled.npz", "--json"], []

    @contextlib.contextmanager
    def connected(address):
        asked.append(address)
        yield

    monkeypatch.setattr(cluster, "connected", connected)
    assert root.run([*words, "--cluster", "tcp://here:1"]) == 0 and asked == ["tcp://here:1"]
    assert [line[-2:] == ["--cluster", "tcp://here:1"] for line in steps] == [True, False, False, False]
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["accuracy"]["metrics"]["top1"]["drop"] == 5.0 and found["kept"] == []
    assert found["files"]["quantize"] == str(Path("net_easyquant", "net.json"))
    assert "--cluster tcp://here:1\n" in err and "next: " not in err
    steps.clear()

    def lost(address):
        raise ClusterError("nobody answers there")

    monkeypatch.setattr(cluster, "connected", lost)
    for more in ((), ("--cluster", "tcp://here:1")):
        assert root.run([*words, *more]) == 0 and not steps
        assert json.loads(capsys.readouterr().out)["kept"] == list(found["files"])
    assert root.run([*AUTO, "--bits", "8", "--cluster", "tcp://here:1"]) == 4 and not steps
    assert "nobody answers there" in capsys.readouterr().err


@needs_host
@pytest.mark.linker
def test_auto_takes_class_folders_and_hands_the_pictures_settings_on(folder, steps):
    from PIL import Image

    from tvm_easyquant.cli import root

    for name in ("cat", "dog"):
        Path("photos", name).mkdir(parents=True)
        Image.new("L", (40, 30), 128).save(Path("photos", name, "0.png"))
    how = ["--channel-order", "GRAY", "--size", "28x28", "--mean", "-0.5"]
    words = ["auto", "net.onnx", "--images", "photos", "--labels", *how[:-2], "--mean=-0.5", "-o", "out"]
    assert root.run(words) == 0
    for line in steps[:2]:
        assert "--mean=-0.5" in line and line[line.index("--channel-order") + 1] == "GRAY"
    assert steps[1][steps[1].index("--data") + 1] == "photos"
    Image.new("L", (40, 30), 0).save(Path("photos", "dog", "1.png"))
    steps.clear()
    assert root.run(words) == 0 and len(steps) == 4


@needs_host
@pytest.mark.linker
def test_auto_sees_what_is_wrong_before_its_first_step(folder, steps, capsys):
    from tvm_easyquant.cli import root

    np.savez("other.npz", images=np.zeros((2, 3, 8, 8), np.float32), labels=np.zeros(2, int))
    Path("file").write_text("")
    for more, said in (
        (["--labels", "other.npz"], "other.npz, sample 0: image has shape (1, 3, 8, 8)"),
        (["--labels", "none.npz"], "there is no file none.npz"),
        (["--max-drop", "1"], "need --labels"),
        (["--labels", "labelled.npz", "--metric", "mine:none"], "names no function"),
        (["-o", "file"], "cannot write the folder file"),
    ):
        assert root.run([*AUTO, *more]) == 4
        assert said in capsys.readouterr().err and not steps


@needs_host
@pytest.mark.ci
@pytest.mark.linker
def test_auto_goes_on_in_the_middle_of_its_search(folder, capsys):
    words = (*AUTO, "--labels", "labelled.npz", "-o", "out")
    with interrupted() as searched:
        assert run(*words) == 130 and Path("out/net.json.search").exists()
    capsys.readouterr()
    assert run(*words) == 0
    out, err = capsys.readouterr()
    assert f"resumed at {searched[-1]} of " in err and "top1: integers " in out
    made = {"auto.json", "net.json", "net.tar", "net.accuracy.json"}
    page = {"net.html"} if importlib.util.find_spec("jinja2") else set()
    assert {path.name for path in Path("out").iterdir()} == made | page
    assert not page or '"top1"' in Path("out/net.html").read_text()
    before = Path("out/net.tar").read_bytes()
    assert run(*words) == 0 and capsys.readouterr().out.count(": kept from ") == 3 + len(page)
    assert Path("out/net.tar").read_bytes() == before


# -- demo


@needs_host
@pytest.mark.linker
def test_without_the_packages_of_a_report_auto_does_the_rest(folder, steps, monkeypatch, capsys):
    from tvm_easyquant.cli import root
    from tvm_easyquant.measure import report

    def lacks():
        raise ModuleNotFoundError("No module named 'plotly'", name="plotly_of_nobody")

    monkeypatch.setattr(report, "check_packages", lacks)
    assert root.run(AUTO) == 0 and [line[0] for line in steps] == ["quantize", "compile"]
    err = capsys.readouterr().err
    assert "note: no report: the package plotly_of_nobody is missing: pip install" in err
    assert "webbrowser" not in err


def test_the_demo_wants_a_folder(folder, capsys):
    """It was said as Python says it: [Errno 17] File exists."""
    with pytest.raises(WriteError, match="cannot write net.onnx: it is a file; name a folder"):
        demo.write_files("net.onnx")
    demo.write_files("new/folder")
    names = {"net.onnx", "images.npz", "labelled.npz", "input.npz"}
    assert {path.name for path in Path("new/folder").iterdir()} == names
    assert Path("new/folder/net.onnx").read_bytes() == Path("net.onnx").read_bytes()


@needs_host
@pytest.mark.ci
@pytest.mark.linker
def test_the_demo_leaves_what_its_next_line_names(folder, capsys):
    assert run("demo", "--out", "demo") == 0
    words = following(capsys.readouterr().err)
    assert words[:2] == ["tvmc-easyquant", "auto"]
    assert all(Path(word).exists() for word in words if word.startswith("demo"))
