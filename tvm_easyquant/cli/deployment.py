"""The verb ``deploy``: a folder with a compiled network and all that runs it elsewhere."""

from __future__ import annotations

from .common import add_verb, print_json

EXAMPLES = """\
examples:
  tvmc-easyquant deploy net.tar -o network/
  tvmc-easyquant deploy board.tar -o network/ --runtime aarch64/libtvm_runtime.so
  python network/run.py input.npy
  python network/serve.py --port 8000
"""


def add(subparsers) -> None:
    help = "lay out a folder with a package, TVM's runtime library, loaders in Python and C++, a server"
    parser = add_verb(subparsers, "deploy", _deploy, help, EXAMPLES)
    add = parser.add_argument
    add("FILE", help="a package of compile, .tar")
    add("-o", "--output", required=True, metavar="FOLDER", help="a new folder, or an empty one")
    add("--runtime", metavar="LIB", help="libtvm_runtime.so of the machine it is for (the installed one)")
    add("--json", action="store_true", help="print the sizes as JSON")


def _deploy(args, host) -> int:
    from .. import deployment

    sizes = deployment.deploy(args.FILE, args.output, args.runtime)
    if args.json:
        print_json({"folder": args.output, "bytes": sizes})
        return 0
    for name, size in sizes.items():
        print(f"{name:12} {size / 1024:10.1f} KiB")
    print(f"wrote {args.output}: README.md there says how it runs")
    return 0
