"""The peers' runtimes, each in a process of its own, on the CPU as it is or as a plainer class (`cap`)."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

import cap
import numpy as np

from topi_ext import isa
from tvm_easyquant.relay.build import host_target

HERE = Path(__file__).resolve().parent
#: --isa, the class of a stored row: a row of topi_ext.isa
CLASSES = cap.CAPS


def class_of_host():
    """The class that this CPU is of when nothing is hidden."""
    has = {feature for row in isa.ISAS.values() if isa.host_has(row.name) for feature in row.features}
    return isa.best(has.__contains__, isa.arch_of(""))


def check_classes(names, uncapped=False):
    """SystemExit if this CPU lacks one of the instruction sets, or, uncapped, is of another class."""
    for name in names:
        if not isa.host_has(name):
            raise SystemExit(f"error: this CPU does not have {name}")
    if uncapped and list(names) != [class_of_host()]:
        raise SystemExit(f"error: --uncapped: this CPU's class is {class_of_host()}: say --isa so")


def target_of(name, uncapped=False):
    return host_target() if uncapped else f"llvm -mcpu={isa.ISAS[name].mcpu}"


@functools.cache
def urgent():
    """The command that runs another at real-time priority; empty where it is not allowed."""
    command = ("chrt", "--rr", "10")
    allowed = (
        shutil.which("chrt") and subprocess.run([*command, "true"], capture_output=True).returncode == 0
    )
    return command if allowed else ()


class Runner:
    """A started `runner.py`."""

    def __init__(self, python, kind, model, inputs, threads, cpus, env=None, batch=1):
        self.python, self.model, self.inputs, self.env = python, model, inputs, env
        command = [python, HERE / "runner.py", kind, model, inputs, threads, batch]
        self.process = subprocess.Popen(
            [*urgent(), "taskset", "-c", ",".join(map(str, cpus)), *map(str, command)], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
        )  # fmt: skip
        self.version = self.answer()

    def another(self, kind, threads, cpus, batch, model):
        """A process more, of the same runtime."""
        return Runner(self.python, kind, model, self.inputs, threads, cpus, self.env, batch)

    def answer(self):
        line = self.process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"{Path(self.model).name} ended")
        return line

    def tell(self, text):
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()

    def ask(self, text):
        self.tell(text)
        return self.answer()

    def output(self, path):
        self.ask(f"output {path}")
        return np.load(path)

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


def package(python, name):
    """The folder of an installed package."""
    code = f"import importlib.util as u; print(u.find_spec({name!r}).submodule_search_locations[0])"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return Path(found.stdout.strip())


def capped(python, name, isa_name, scratch: Path) -> dict[str, str]:
    """Environment variables with which a package sees a CPU of the class; its copy stays in ``scratch``."""
    return {**cap.capped(package(python, name), scratch / "capped"), "EASYQUANT_CAP": isa_name}
