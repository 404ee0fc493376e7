"""The verb ``demo``."""

from __future__ import annotations

from .common import add_verb


def add(subparsers) -> None:
    help = "quantize and run the embedded network"
    parser = add_verb(subparsers, "demo", _demo, help, "example:\n  tvmc-easyquant demo --out folder\n")
    parser.add_argument("-o", "--out", default="easyquant_demo", help="folder for the artefacts")


def _demo(args, host) -> int:
    from ..demo import main

    return main(args.out, host)
