"""``python -m tvm_easyquant.cli``."""

from .root import main

main()
