"""Whether this tree makes what another commit makes, bit for bit, on this machine: for a refactoring.

    python benchmarks/same_as.py COMMIT --data DIR [--json benchmarks/results/same_as.json]
        [--here] [--nets NAME ...] [--methods NAME ...] [--bits 7 8] [--times NAME ...] [--cache FOLDER]

Both commits (COMMIT and HEAD; the working tree with ``--here``) lie in a git worktree while this runs. Each
quantizes the same models with the same images in a process of its own (`same_as_worker`). Compared are the
bytes of the scale table, what runs in floats and the warnings, the outputs of the numpy network and of the
compiled one, the bytes of the shared library, and for each target the whole answer of ``plan``: kernel,
proof, reasons. A model that one refuses must be refused by the other, in the same words. With ``--times``
the two libraries of a network run in turn on one thread; ``time_ratio`` is the median over the rounds of
new / old.

The networks are those of the data folder and, with random weights, those of `networks.py`. What a tree has
made is kept in the cache, by its sources, inputs, CPU and threads: an interrupted run goes on, and the old
tree is run once. Ends with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
import numpy as np
import random_networks
from data import NETWORKS, Network

import tvm_easyquant as eq
from topi_ext import isa
from tvm_easyquant.deploy import Program
from tvm_easyquant.files import write_text

ROOT = Path(__file__).resolve().parent.parent
WORKER = Path(__file__).with_name("same_as_worker.py")
PACKAGES = ("tvm_easyquant", "topi_ext")
#: networks of the data folder without images that are theirs: model -> NCHW of its input
UNLABELLED = {
    "yolo_fastest_1.1": (1, 3, 320, 320),
    "nsfw_mobilenet_v2": (1, 3, 224, 224),
    "esrgan_slim_x2": (1, 3, 96, 96),
}
METHODS = ("minmax", "default")
PLANNED = ("generic", "avx2", "avx512vnni", "neon", "neon_dotprod")
THREADS = ("OMP", "OPENBLAS", "MKL")
FEW = 2  # calibration images of a network with random weights
ROUNDS, BURST = 41, 0.05  # rounds of --times; seconds of one network in a round


def git(*arguments, **options) -> str:
    return subprocess.run(
        ["git", *map(str, arguments)], cwd=ROOT, check=True, capture_output=True, text=True, **options
    ).stdout.strip()


@contextlib.contextmanager
def checked_out(commit: str):
    """The folder of a worktree of ``commit``; it is removed at the end."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch).resolve() / "tree"
        git("worktree", "add", "--detach", tree, commit)
        try:
            yield tree
        finally:
            git("worktree", "remove", "--force", tree)


def sources(tree: Path) -> str:
    """A digest of what a tree's packages hold, wherever in them it lies."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((tree / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(str(path.relative_to(tree)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def noise(shape, count: int) -> list[np.ndarray]:
    """Random float32 images that are smooth and rough, about -3 to 3."""
    rng, found = np.random.default_rng(0), []
    n, c, h, w = shape
    for _ in range(count):
        image = rng.standard_normal((n, c, h, w))
        for cell in (8, 32):
            coarse = rng.standard_normal((n, c, -(-h // cell), -(-w // cell)))
            image += 2 * coarse.repeat(cell, 2).repeat(cell, 3)[:, :, :h, :w]
        found.append((image / 3).astype(np.float32))
    return found


def prepare(name: str, args, folder: Path) -> tuple[Path, Path]:
    """(model, .npz of ``calibration`` and ``test``), each image with its batch of 1."""
    if name in random_networks.NETWORKS:
        model = random_networks.save(name, folder)
        images = random_networks.pictures(FEW + args.images)
    elif name in UNLABELLED:
        model = args.data / f"{name}.onnx"
        images = noise(UNLABELLED[name], args.calibration + args.images)
    else:
        network = Network(args.data, name)
        model = network.path
        images = [*network.calibration(args.calibration), *(x for x, _ in network.test(args.images))]
    inputs = folder / f"{name}.npz"
    np.savez(inputs, calibration=np.stack(images[: -args.images]), test=np.stack(images[-args.images :]))
    return model, inputs


def made(side: str, tree: Path, name: str, model: Path, inputs: Path, args, folder: Path) -> dict:
    """{(method, bits): facts} of one tree, from the cache where it has them."""
    digest = hashlib.sha256(f"{side} {sources(tree)} {args.cpu} {args.target} {PLANNED}".encode())
    for array in np.load(inputs).values():
        digest.update(array.tobytes())
    digest.update(model.read_bytes())
    digest.update(WORKER.read_bytes())
    paths = {
        (method, bits): args.cache / f"{name}.{method}.int{bits}.{digest.hexdigest()[:16]}.json"
        for method in args.methods
        for bits in args.bits
    }
    wanted = [(method, bits, str(path)) for (method, bits), path in paths.items() if not path.exists()]
    if wanted:
        job = {
            "side": side, "tree": str(tree), "net": name, "model": str(model.resolve()),
            "inputs": str(inputs), "settings": wanted, "target": args.target,
            "plans": {row: isa.ISAS[row].target for row in PLANNED},
        }  # fmt: skip
        (folder / "job.json").write_text(json.dumps(job))
        env = {**os.environ, "PYTHONPATH": str(tree)}
        with contextlib.ExitStack() as stack:
            process = stack.enter_context(subprocess.Popen(
                [sys.executable, "-W", "ignore", WORKER, folder / "job.json"], cwd=folder, env=env,
                stdout=subprocess.PIPE, text=True,
            ))  # fmt: skip
            stack.callback(process.kill)  # of an interrupted run
            for line in process.stdout:
                facts = json.loads(line)
                spent = ", ".join(f"{what} {s} s" for what, s in facts["seconds"].items())
                print(f"  {side}: {'.'.join(facts['made'].split('.')[:-2])}: {spent}", flush=True)
            process.wait()
        if process.returncode:
            raise SystemExit(f"error: the {side} tree failed on {name} (exit code {process.returncode})")
    return {
        key: (json.loads(path.read_text()), path.with_suffix(".table.json")) for key, path in paths.items()
    }


def time_ratio(libraries, inputs) -> dict:
    """Median over the rounds of new / old, and both medians in milliseconds, of one thread on one core."""
    image = np.load(inputs)["test"][0]
    programs = [Program(library) for library in libraries]
    feeds = [{next(iter(program.inputs)): image} for program in programs]

    def burst(i, runs):
        start = time.perf_counter()
        for _ in range(runs):
            programs[i](feeds[i])
        return 1e3 * (time.perf_counter() - start) / runs

    runs = max(1, round(BURST / (1e-3 * min(burst(0, 3), burst(0, 3)))))
    times = []
    for k in range(ROUNDS):
        found = {i: burst(i, runs) for i in ((0, 1) if k % 2 else (1, 0))}
        times.append((found[0], found[1]))
    old, new = np.transpose(times)
    return {
        "time_ratio": round(float(np.median(new / old)), 4),
        "milliseconds": [round(float(np.median(t)), 4) for t in (old, new)],
    }


def differences(old: dict, new: dict, tables) -> list[str]:
    """A line for each part that differs."""
    lines = []
    for part in dict.fromkeys([*old, *new]):
        before, after = old.get(part), new.get(part)
        if part == "seconds" or before == after:
            continue
        if part == "table" and before and after:
            with contextlib.suppress(ValueError):
                found = eq.ScaleTable.load(tables[0]).diff(eq.ScaleTable.load(tables[1]))
                part += ": " + ("; ".join(found[:3]) or "the same scales, other text")
                part += f"; {len(found)} in all" if len(found) > 3 else ""
        elif part.startswith("plan") and before and after:
            kernels = [{row["layer"]: row["kernel"] for row in rows} for rows in (before, after)]
            moved = [n for n in kernels[0] if kernels[0][n] != kernels[1].get(n)]
            what = f"{len(moved)} kernels, such as {moved[0]}'s" if moved else "reasons"
            part += f": {what if len(before) == len(after) else 'other layers'}"
        elif part in ("refused", "coverage", "floats", "warnings"):
            part += f": {before} -> {after}"
        lines.append(part)
    return lines


def compared(name, method, bits, facts, tables) -> dict:
    """The row of one network at one setting; facts, tables: of the old and the new tree."""
    old, new = facts
    lines = differences(old, new, tables)
    parts = ("table", "integers", "compiled", "code")
    return {
        "net": name, "method": method, "bits": bits, "equal": not lines, "differs": lines,
        "layers": len(old.get("plan generic", ())), "refused": old.get("refused"),
        "seconds": {"old": old["seconds"], "new": new["seconds"]},
        "sha256": {part: old[part] for part in parts if part in old},
    }  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", help="what this tree should equal")
    parser.add_argument("--data", type=Path, required=True, help="folder of networks and images")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--here", action="store_true", help="the working tree instead of HEAD")
    known = [*NETWORKS, *UNLABELLED, *random_networks.NETWORKS]
    parser.add_argument("--nets", nargs="+", default=known, choices=known, metavar="NAME")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="of quantize, or default (both)")
    parser.add_argument("--bits", nargs="+", type=int, default=[7, 8], choices=(7, 8))
    parser.add_argument(
        "--times", nargs="+", default=(), choices=known, metavar="NAME", help="those to time"
    )
    parser.add_argument("--calibration", type=int, default=8, help="calibration images (8)")
    parser.add_argument("--images", type=int, default=2, help="images that are run (2)")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "easyquant_same_as",
                        help="where what a tree has made is kept")  # fmt: skip
    return parser.parse_args()


def main():
    args = arguments()
    if args.times:  # before TVM's runtime makes its threads
        os.environ["TVM_NUM_THREADS"] = "1"
    described = machine.describe()
    threads = [len(os.sched_getaffinity(0)), *(os.environ.get(f"{who}_NUM_THREADS") for who in THREADS)]
    args.cpu = (
        f"{machine.cpu(described)} {described['flags']} {threads} {described['tvm']} {np.__version__}"
    )
    args.target = isa.ISAS["avx2" if isa.host_has("avx2") else "generic"].target
    args.cache = args.cache.resolve()
    args.cache.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the worktrees are removed
    rows, clock = [], time.perf_counter()
    with contextlib.ExitStack() as stack:
        trees = {"old": stack.enter_context(checked_out(args.commit))}
        trees["new"] = ROOT if args.here else stack.enter_context(checked_out("HEAD"))
        commits = {"old": git("rev-parse", "--short", args.commit)}
        commits["new"] = described["commit"] if args.here else git("rev-parse", "--short", "HEAD")
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in args.nets:
            model, inputs = prepare(name, args, folder)
            found = {
                side: made(side, tree, name, model, inputs, args, folder) for side, tree in trees.items()
            }
            for method, bits in found["old"]:
                (old, first), (new, second) = (found[side][method, bits] for side in trees)
                row = compared(name, method, bits, (old, new), (first, second))
                if name in args.times and method == "minmax" and not row["refused"]:
                    libraries = [path.with_suffix("").with_suffix(".so") for path in (first, second)]
                    row |= time_ratio(libraries, inputs)
                rows.append(row)
                text = f"DIFFERS: {' | '.join(row['differs'])}" if row["differs"] else "equal"
                text += f" (refused: {row['refused']})" if row["refused"] else ""
                if "time_ratio" in row:
                    text += f", time new / old {row['time_ratio']:.3f} of {row['milliseconds'][0]} ms"
                print(f"{name:28}{method:10} INT{bits}  {text}", flush=True)
            if model.parent == folder:
                model.unlink()
            inputs.unlink()
            if args.json:
                settings = {
                    "commits": commits, "calibration_images": args.calibration, "images": args.images,
                    "compiled_for": args.target, "plans_for": PLANNED,
                }  # fmt: skip
                facts = {"machine": described, **settings, "rows": rows}
                write_text(args.json, json.dumps(facts, indent=1) + "\n")
    different = sum(not row["equal"] for row in rows)
    print(f"{len(rows) - different} of {len(rows)} equal, {time.perf_counter() - clock:.0f} s")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
