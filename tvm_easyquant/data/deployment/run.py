"""Run the network of this folder on a file of arrays: Python and numpy, nothing else.

python run.py INPUT.npy|INPUTS.npz [-o OUTPUTS.npz] [--isa ROW] [--threads N]
"""

import argparse
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "python"))

from tvm_easyquant.deploy import Program  # noqa: E402  # from the folder above
from tvm_easyquant.errors import DeployError  # noqa: E402


def open_program(**options) -> Program:
    """The network of this folder, for any number of threads."""
    return Program(HERE / "network.tar", HERE / "lib" / "libtvm_runtime.so", **options)


def arrays(file):
    """Of an .npy the array, of an .npz {input: array}."""
    loaded = np.load(file, allow_pickle=False)
    return loaded if isinstance(loaded, np.ndarray) else dict(loaded)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("inputs")
    parser.add_argument("-o", "--output", default="outputs.npz")
    parser.add_argument("--isa", help="the variant to take, by the name of its instruction set")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    try:
        with open_program(isa=args.isa, threads=args.threads) as program:
            outputs = program(arrays(args.inputs))
    except (DeployError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    named: dict = {f"output_{i}": array for i, array in enumerate(outputs)}
    np.savez(args.output, **named)
    for i, array in enumerate(outputs):
        print(f"output_{i}: {array.dtype} {array.shape}, the largest at {int(array.argmax())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
