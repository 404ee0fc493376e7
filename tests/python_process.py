"""Python in a process of its own, which imports what this one can."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def run(*words, cwd, timeout=None, **environment):
    """The ended process of Python with these ``words``; its output is text."""
    # what packages add to sys.path as they are imported is not for others: onnxruntime's folder has a metrics.py
    path = [folder for folder in sys.path if "site-packages" not in folder]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), **environment}
    command = [sys.executable, "-W", "ignore", *map(str, words)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )


def python(code, *words, cwd=TESTS, timeout=None, **environment):
    """That of ``code``; words: its arguments."""
    return run("-c", code, *words, cwd=cwd, timeout=timeout, **environment)


def tvmc(*words, cwd, timeout=None, **environment):
    """That of our command line."""
    return run("-m", "tvm_easyquant.cli", *words, cwd=cwd, timeout=timeout, **environment)
