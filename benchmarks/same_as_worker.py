"""What one tree of this project makes of a network; `same_as.py` starts it once for each tree and network.

    PYTHONPATH=TREE python benchmarks/same_as_worker.py JOB.json

It must run on trees whose private modules lie elsewhere: it takes the public names, the command line, and
for the numpy network the first of the places where it has been.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import logging
import runpy
import sys
import time
import warnings
from pathlib import Path

import numpy as np

import tvm_easyquant as eq

RUN_INTEGER = ("tvm_easyquant.scales.integer", "tvm_easyquant.integer")


def run_integer(*arguments):
    for name in RUN_INTEGER:
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(name).run_integer(*arguments)
    raise ModuleNotFoundError(f"no run_integer in {', '.join(RUN_INTEGER)}: add the module it is in now")


def sha(arrays) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr((array.dtype.str, array.shape)).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def command_line(*arguments) -> dict:
    """What ``python -m tvm_easyquant.cli ... --json`` prints."""
    text, sys.argv = io.StringIO(), ["tvmc-easyquant", *map(str, arguments), "--json"]
    with contextlib.redirect_stdout(text), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # runpy's, of a module that is imported already
        try:
            runpy.run_module("tvm_easyquant.cli", run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"{arguments[0]} ended with {end.code}") from None
    return json.loads(text.getvalue())


class Progress:
    """A line that is rewritten, if somebody watches."""

    def __init__(self, what):
        self.what, self.shown = what, 0.0

    def __call__(self, done, total, text):
        if sys.stderr.isatty() and time.monotonic() - self.shown > 0.5:
            self.shown = time.monotonic()
            print(f"\r\033[K{self.what}: {done} of {total}, {text}", end="", file=sys.stderr, flush=True)


def facts(job, graph, method, bits, table_path) -> dict:
    images = np.load(job["inputs"])
    clock, seconds = time.perf_counter(), {}

    def lap(what):
        nonlocal clock
        now = time.perf_counter()
        seconds[what], clock = round(now - clock, 1), now

    bar = Progress(f"{job['side']}: {job['net']} {method} int{bits}")
    settings = {} if method == "default" else {"method": method}
    q = eq.quantize(graph, list(images["calibration"]), bits=bits, progress=bar, **settings)
    q.table.save(table_path)
    lap("quantize")
    (name,) = q.graph.inputs
    feeds = [{name: x} for x in images["test"]]
    found = {
        "table": hashlib.sha256(table_path.read_bytes()).hexdigest(),
        "coverage": q.coverage,
        "floats": dict(q.plan.floats),
        "warnings": list(q.warnings),
        "integers": sha(value for feed in feeds for value in run_integer(q.graph, q.table, feed).values()),
    }
    lap("integers")
    built = q.build(job["target"])
    library = table_path.with_suffix("").with_suffix(".so")
    built.export_library(str(library))
    found["code"] = hashlib.sha256(library.read_bytes()).hexdigest()
    run = eq.Executor(built)
    found["compiled"] = sha(value for feed in feeds for value in run(feed))
    lap("compiled")
    for row, target in job["plans"].items():
        planned = command_line("plan", job["model"], "--table", table_path, "--target", target)
        found[f"plan {row}"] = planned["layers"]
    lap("plans")
    return {**found, "seconds": seconds}


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    # an editable install would find in its own checkout the modules that this tree lacks
    sys.meta_path[:] = [
        f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")
    ]
    if not Path(eq.__file__).is_relative_to(job["tree"]):
        raise SystemExit(f"error: {eq.__file__} is not of {job['tree']}")
    logging.getLogger("autotvm").setLevel(logging.ERROR)  # what stays float is meant to be untuned
    graph = None
    for method, bits, path in job["settings"]:
        path = Path(path)
        try:
            graph = graph or eq.load_onnx(job["model"])
            found = facts(job, graph, method, bits, path.with_suffix(".table.json"))
        except ValueError as error:  # a network that is refused must be refused alike
            found = {"refused": f"{type(error).__name__}: {error}", "seconds": {}}
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(found, default=str))
        temporary.replace(path)
        print(json.dumps({"made": path.name, "seconds": found["seconds"]}), flush=True)


if __name__ == "__main__":
    main()
