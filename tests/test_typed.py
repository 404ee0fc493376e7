"""`quantize` is typed: an editor shows its settings, and a misspelt one is found before it runs."""

import doctest
import json
import os
import shutil
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import networks
import numpy as np
import pytest

import tvm_easyquant as eq
from tvm_easyquant import workflow
from tvm_easyquant.scales.numerics import METHODS, ConfigError, QuantConfig, Settings

RIGHT = """
import numpy as np
import tvm_easyquant as eq

images = np.zeros((1, 3, 8, 8), np.float32)
eq.quantize("net.onnx", images, bits=7, method="minmax", skip=["conv"], rounds=2, rounding="descent")
eq.quantize("net.onnx", images, bits={"*": 7, "conv": 8, "last": "float"}, skip="conv", start="kl")
eq.quantize("net.onnx", images, max_drop=0.5, evaluation="set.npz", metric=lambda outputs, label: 1.0)
eq.quantize("net.onnx", images, bits="auto", evaluation=eq.Evaluation(data="set.npz", max_drop=0.5))
eq.quantize("net.onnx", images, config=eq.QuantConfig(bits=8), checkpoint="state", target="llvm", batch=1)
"""
WRONG = {
    "bitz=7": 'Unexpected keyword argument "bitz"',
    'bits="many"': "incompatible type",
    "rounds=0.5": "incompatible type",
    'rounding="up"': "incompatible type",
    "skip=3": "incompatible type",
    "max_drop='1'": "incompatible type",
    'evaluation=eq.Evaluation(data="set.npz")': 'Missing named argument "max_drop"',
}


def test_mypy_finds_what_is_misspelt_and_nothing_else(tmp_path):
    pytest.importorskip("mypy")
    calls = [f'eq.quantize("net.onnx", images, {argument})' for argument in WRONG]
    (tmp_path / "user.py").write_text("\n".join([*RIGHT.splitlines(), *calls]) + "\n")
    (tmp_path / "mypy.ini").write_text("[mypy]\nfollow_imports = silent\nignore_missing_imports = true\n")
    where = Path(eq.__file__).parent.parent
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--no-error-summary", "user.py"]
    environment = {"MYPYPATH": str(where), "PATH": "", "MYPY_CACHE_DIR": str(tmp_path / "cache")}
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert result.returncode == 1, result.stderr
    errors = [line for line in result.stdout.splitlines() if ": error: " in line]
    first = len(RIGHT.splitlines())
    assert [int(line.split(":")[1]) for line in errors] == [first + 1 + i for i in range(len(WRONG))], (
        errors
    )
    for line, message in zip(errors, WRONG.values(), strict=True):
        assert message in line


@pytest.mark.ci
@pytest.mark.parametrize("checker", ["mypy", "basedpyright"])
def test_a_user_s_script_is_clean_under_strict_checkers(tmp_path, checker):
    """basedpyright found half of the types unknown: of paths, of outputs, of whatever quantize takes."""
    pytest.importorskip(checker)
    where = Path(eq.__file__).parent.parent
    shutil.copy(Path(__file__).with_name("user_script.py"), tmp_path / "script.py")
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = true\nfollow_imports = silent\nignore_missing_imports = true\n"
    )
    settings = {"include": ["script.py"], "extraPaths": [str(where)], "typeCheckingMode": "strict"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    options = {
        "mypy": ["--config-file", "mypy.ini", "script.py"],
        "basedpyright": ["-p", ".", "--pythonpath", sys.executable],
    }
    environment = {**os.environ, "MYPYPATH": str(where), "MYPY_CACHE_DIR": str(tmp_path / "cache")}

    def checked():
        command = [sys.executable, "-m", checker, *options[checker]]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)

    result = checked()
    assert result.returncode == 0, result.stdout + result.stderr
    with open(tmp_path / "script.py", "a") as script:  # and it would be seen if there were something
        script.write("unknown: str = q.evaluate(pairs)\n")
    assert checked().returncode == 1


def test_help_has_an_example_that_runs_and_names_the_methods():
    runner = doctest.DocTestRunner(verbose=False)
    (example,) = doctest.DocTestFinder(recurse=False).find(eq.quantize, "quantize", globs={})
    assert len(example.examples) >= 4 and runner.run(example).failed == 0
    for method in METHODS:
        assert f"``{method}``" in eq.quantize.__doc__, method


def test_the_settings_are_those_of_the_config():
    assert {field.name for field in fields(QuantConfig)} == {
        "bits",
        "method",
        "skip",
        *Settings.__annotations__,
    }


def test_a_misspelt_setting_is_named_at_run_time():
    graph, images = networks.chain()
    with pytest.raises(TypeError, match=r"quantize\(\) takes no bitz; did you mean bits\?"):
        eq.quantize(graph, images, bitz=7)
    with pytest.raises(TypeError, match=r"quantize\(\) takes no colour; the settings are bits, method"):
        eq.quantize(graph, images, colour=7)


def test_an_evaluation_is_the_keywords_of_before(monkeypatch):
    pytest.importorskip("tvm")
    graph, images = networks.chain()
    pairs = [(image, 0) for image in images]
    seen = []

    class Judge:
        def __init__(self, host, graph, fp32, evaluation, progress, preprocess):
            seen.append(evaluation)
            raise KeyboardInterrupt

    def metric(outputs, label):
        return 1.0

    monkeypatch.setattr(workflow, "_Judge", Judge)
    whole = eq.Evaluation(data=pairs, max_drop=0.5, metric=metric, target="llvm")
    for keywords in (
        dict(evaluation=whole),
        dict(evaluation=pairs, max_drop=0.5, metric=metric, target="llvm"),
    ):
        with pytest.raises(KeyboardInterrupt):
            eq.quantize(graph, images, method="minmax", **keywords)
    assert seen == [whole, whole]
    with pytest.raises(ConfigError, match="the Evaluation says max_drop, target; give it there only"):
        eq.quantize(graph, images, evaluation=whole, max_drop=1, target="llvm")
    with pytest.raises(ConfigError, match="need labelled data"):
        eq.quantize(graph, images, bits="auto")
    with pytest.raises(FrozenInstanceError):
        whole.max_drop = 1


def test_keywords_change_a_config():
    pytest.importorskip("tvm")
    graph, images = networks.chain()
    config = QuantConfig(bits=8, method="minmax", skip=("second",))
    assert eq.quantize(graph, images, config=config).table.config == config
    assert eq.quantize(graph, images, config=config, skip=()).table.config.skip == ()
    assert eq.quantize(graph, images, config=config, bits=7, start="kl").table.config == QuantConfig(
        bits=7, method="minmax", skip=("second",), start="kl"
    )
    assert eq.quantize(graph, np.concatenate(images), method="minmax").table.config.bits == 7


def test_a_metric_needs_something_to_judge():
    """It was left out without a word."""
    graph, images = networks.chain()
    with pytest.raises(ConfigError, match="a metric judges labelled data"):
        eq.quantize(graph, images, metric=lambda outputs, label: 1.0)


@pytest.mark.parametrize("drop", [-1, float("nan"), "1", True])
def test_an_evaluation_has_a_drop(drop):
    with pytest.raises(ValueError, match="max_drop is .*0 or more"):
        eq.Evaluation("set.npz", max_drop=drop)
