"""The machine a figure was measured on, to be stored beside it."""

from __future__ import annotations

import datetime
import platform
import re
import subprocess
import sys
from pathlib import Path


def cpu(facts: dict) -> str:
    """The CPU of `describe`, in words."""
    return f"{facts['cpu']} family {facts.get('cpu family')} model {facts.get('model')}"


def describe() -> dict:
    """cpu, ISA flags that matter, cores, Python, TVM, LLVM, commit, command and date."""
    facts = {"cpu": platform.processor(), "flags": []}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                facts["cpu"] = value.strip()
            elif key.strip() in ("cpu family", "model"):
                facts[key.strip()] = int(value)
            elif key.strip() == "flags":
                wanted = ("avx2", "avx512bw", "avx_vnni", "avx512_vnni", "amx_int8")
                facts["flags"] = [f for f in wanted if f in value.split()]
                break
    except OSError:
        pass
    try:
        import tvm

        facts["tvm"] = tvm.__version__
        facts["llvm"] = tvm.target.codegen.llvm_version_major()
    except ImportError:
        pass
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    import os

    return {
        **facts,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
        "command": " ".join(["python", *map(_plain, sys.argv)]),
        "date": datetime.date.today().isoformat(),
    }


def _plain(argument: str) -> str:
    """An argument without the folders of this machine."""
    path = Path(argument)
    if path.is_absolute():
        return path.name
    return re.sub(r"(?<=[=,])/(?:[^/,=]+/)*", "", argument)  # NAME=FILE,FILE
