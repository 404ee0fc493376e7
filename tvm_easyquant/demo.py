"""The demo: quantize the embedded network, run it, and say what it gained and lost.

``python -m tvm_easyquant.demo [--out FOLDER]``, ``tvmc-easyquant demo`` or ``make demo``.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import WriteError

if TYPE_CHECKING:
    from .host import Host

MEAN, STD = np.float32(0.2860), np.float32(0.3530)


def network_path() -> Path:
    """The embedded ONNX network; its input ``image`` is float32 (1, 1, 28, 28)."""
    return Path(str(files("tvm_easyquant") / "data" / "fashion_cnn.onnx"))


def images() -> dict[str, np.ndarray]:
    """calibration_images (200), test_images (2000), both float32 (N, 1, 28, 28); test_labels."""
    stored = np.load(Path(str(files("tvm_easyquant") / "data" / "fashion_mnist.npz")))

    def normalised(name):
        return (stored[name][:, None] / np.float32(255) - MEAN) / STD

    return {
        "calibration_images": normalised("calibration_images"),
        "test_images": normalised("test_images"),
        "test_labels": stored["test_labels"].astype(np.int64),
    }


#: of the test images, those that `write_files` gives labels
LABELLED = 500


def write_files(folder: str | os.PathLike) -> None:
    """What the command lines of the README name, in a folder: net.onnx, images.npz (for calibration),
    labelled.npz and input.npz (one image). Raises WriteError."""
    from .files import replacing

    folder, data = Path(folder), images()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise WriteError(f"cannot write {folder}: it is a file; name a folder") from None
    with replacing(folder / "net.onnx") as temporary:
        temporary.write_bytes(network_path().read_bytes())
    test, labels = data["test_images"][:LABELLED], data["test_labels"][:LABELLED]
    files: dict[str, dict[str, Any]] = {
        "images": {"image": data["calibration_images"]},
        "labelled": {"images": test, "labels": labels},
        "input": {"image": test[:1]},
    }
    for name, arrays in files.items():
        with replacing(folder / f"{name}.npz") as temporary:
            np.savez_compressed(temporary, **arrays)


def _classify(network, pictures) -> np.ndarray:
    return np.array([network({"image": x[None]})[0].argmax() for x in pictures])


def _median_microseconds(networks, rounds=15) -> list[float]:
    """Times, interleaved, so that a noisy machine disturbs all alike."""
    times = [[e.milliseconds(repeat=3, number=10) for e in networks] for _ in range(rounds)]
    return [1e3 * float(np.median([min(row[i]) for row in times])) for i in range(len(networks))]


def main(out: str = "easyquant_demo", host: Host | None = None) -> int:
    """Run the demo on ``host``, the installed one; artefacts go to the folder ``out``. Returns 0."""
    from . import workflow
    from .files import replacing
    from .host import installed
    from .progress import Bar, peak_memory_gib

    host = host or installed()
    suffix = ".so" if host.linker() else ".tar"  # object files, if nothing can link them
    folder = Path(out)
    write_files(folder)
    data = images()
    labels, target = data["test_labels"], host.this_cpu()
    graph = workflow.load(network_path())
    networks = [host.build_float(host.float_module(graph), target)]
    right = _classify(networks[0], data["test_images"]) == labels
    rows: list[tuple[str, np.ndarray, workflow.Quantized | None]] = [("fp32", right, None)]
    for bits in (8, 7):
        bar = Bar()
        result = workflow.quantize(graph, data["calibration_images"], bits=bits, progress=bar, host=host)
        bar.close()
        networks.append(result.build(target))
        result.table.save(folder / f"int{bits}.json")
        with replacing(folder / f"int{bits}{suffix}") as temporary:
            networks[-1].export_library(str(temporary))
        with replacing(folder / f"int{bits}.{host.name}.json") as temporary:
            temporary.write_text(host.save_module(result.module))
        rows.append((f"INT{bits}", _classify(networks[-1], data["test_images"]) == labels, result))
    host.threads(1)
    times = _median_microseconds(networks)
    print(f"Fashion-MNIST, {len(labels)} test images, target {target!r}")
    _print_rows(rows, times)
    print(
        f"INT7 takes {times[2] / times[0]:.2f} of the fp32 time (median, one thread); "
        f"peak memory {peak_memory_gib():.2f} GiB"
    )
    print(
        f"artefacts in {folder}: int7{suffix} (compiled), int7.json (scale table), int7.{host.name}.json "
        f"({host.name.capitalize()} module); the same for int8; net.onnx, images.npz, labelled.npz and "
        "input.npz are for the command lines of the README"
    )
    return 0


def _print_rows(rows, times) -> None:
    """rows: (network, which images it got right, its `Quantized` or None); the first is the float one."""
    print(f"{'':6}{'top-1 %':>9}{'gained':>8}{'lost':>6}{'us/image':>10}{'coverage %':>12}{'search s':>10}")
    base = rows[0][1]
    for (name, hits, found), microseconds in zip(rows, times, strict=True):
        line = f"{name:6}{100 * hits.mean():9.2f}"
        if found is None:
            line += f"{'':14}{microseconds:10.1f}"
        else:
            gained, lost = int((hits & ~base).sum()), int((~hits & base).sum())
            line += f"{gained:8}{lost:6}{microseconds:10.1f}{found.plan.coverage(found.graph).figure:>12}"
            line += f"{found.seconds['search']:10.1f}"
        print(line)


if __name__ == "__main__":
    logging.getLogger("autotvm").setLevel(logging.ERROR)  # the float network is meant to be untuned
    parser = argparse.ArgumentParser(prog="python -m tvm_easyquant.demo", description=main.__doc__)
    parser.add_argument("-o", "--out", default="easyquant_demo", help="folder for the artefacts")
    sys.exit(main(parser.parse_args().out))
