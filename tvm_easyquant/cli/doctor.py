"""The verb ``doctor``: what this machine is and what runs on it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import platform
import sys

from topi_ext import cpu, isa

from .. import __version__
from . import memory
from .common import add_verb, print_json

#: package -> what it is for
OPTIONAL = {
    "onnx": "ONNX models",
    "onnxruntime": "comparison with ONNX Runtime",
    "PIL": "pictures as data",
    "jinja2": "the HTML report",
    "xgboost": "tune-kernels --tuner xgb",
    "distributed": "quantize and evaluate on a cluster",
}

EXAMPLES = """\
examples:
  tvmc-easyquant doctor
  tvmc-easyquant doctor --json
"""


def add(subparsers) -> None:
    help = "this machine, the kernels it can run, and whether int8 by pmaddubsw is right on it"
    parser = add_verb(subparsers, "doctor", _doctor, help, EXAMPLES)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _version(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return None
    names = importlib.metadata.packages_distributions().get(package, [package])
    try:
        return importlib.metadata.version(names[0])
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _memory() -> dict:
    """Bytes that quantize and compile need at least, and what limits them."""
    allowed = dict(zip(("addresses", "used"), memory.limits(), strict=True))
    return {
        "needs": {verb: memory.estimate(verb) for verb in ("quantize", "compile")},
        "limits": {kind: None if limit is None else limit.size for kind, limit in allowed.items()},
    }


def _doctor(args, host) -> int:
    logging.getLogger("te_compiler").setLevel(logging.ERROR)
    found = host.examine()
    saturation = found.pop("saturation")
    facts = {
        "tvm_easyquant": __version__,
        "python": platform.python_version(),
        "platform": sys.platform,
        "name": host.name,
        **found,
        "memory": _memory(),
        "flags_from": cpu.flags().source,
        "flags_refused": sorted(cpu.flags().refused),
        "packages": {name: _version(name) for name in OPTIONAL},
        "saturation": saturation,
    }
    if args.json:
        print_json(facts)
        return 0
    machine = facts["host"]
    ffi = f"its ffi {machine['ffi']}, " if machine.get("ffi") else ""
    ids = [f"{key.replace('cpu_', '')} {machine[key]}" for key in ("cpu_family", "model") if key in machine]
    print(
        f"CPU       {machine['cpu']} {', '.join(ids)}; {machine['cores']} cores; target '{facts['target']}'"
    )
    print(
        f"versions  tvm_easyquant {facts['tvm_easyquant']}, TVM {machine['tvm']} ({facts['name']} host), "
        f"{ffi}LLVM {machine['llvm']}, Python {facts['python']}"
    )
    print(f"features  {', '.join(isa.of_host())}; told by {facts['flags_from']}")
    if refused := facts["flags_refused"]:
        print(
            f"refused   {len(refused)} features of the CPU, by its system or this container: "
            f"{', '.join(refused)}; the kernels of {isa.of_host()[-1]} run instead"
        )
    print(f"linker    {facts['linker'] or 'none: tvmc compile needs one; install g++, or set CXX'}")
    needs = ", ".join(
        f"{verb} {used / 2**30:.2f} ({addresses / 2**30:.2f} of addresses)"
        for verb, (addresses, used) in facts["memory"]["needs"].items()
    )
    allowed = [
        f"{size / 2**30:.2f} of {kind}"
        for kind, size in facts["memory"]["limits"].items()
        if size is not None
    ]
    print(f"memory    GiB, and 4 times a model's size: {needs}; limits: {', '.join(allowed) or 'none'}")
    for row in facts["rows"]:
        mark = "yes" if row["here"] else "no "
        print(f"kernels   {mark} {row['isa']:13} {', '.join(row['kernels']) or '-'}")
    for name, use in OPTIONAL.items():
        print(f"package   {name} {facts['packages'][name] or 'missing'} ({use})")
    print(f"int8      {verdict(facts)}")
    return 0


def verdict(facts) -> str:
    """What the saturation test says, in a sentence or two."""
    found = facts["saturation"]
    if not found:
        return "pmaddubsw is an x86 instruction: not on this CPU; its int8 products do not saturate"
    if "tvm_int8_wrong" not in found:
        return (
            f"of a full-range int8 convolution for -mcpu={found['mcpu']} ours has "
            f"{found['ours_wrong']:.1%} of the outputs wrong; this TVM has none of its own for CPUs"
        )
    text = (
        f"pmaddubsw saturates here: TVM's own int8 convolution for -mcpu={found['mcpu']} has "
        f"{found['tvm_int8_wrong']:.1%} of its outputs wrong (by up to {found['tvm_int8_largest_error']}; "
        f"rms of the outputs {found['rms_output']:.0f}), ours {found['ours_wrong']:.1%}"
    )
    if not found["tvm_int8_wrong"]:
        text = text.replace("saturates here", "did not saturate here")
    if any("vnni" in row["isa"] and row["here"] for row in facts["rows"]):
        text += "; this CPU also has VNNI, which does not saturate"
    return text
