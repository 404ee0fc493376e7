"""Python in a process of its own, which imports what this one can."""

import os
import subprocess
import sys
from pathlib import Path


def python(code, **environment):
    """The ended process of ``code``, run beside the tests; its output is text."""
    path = os.pathsep.join(sys.path)
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
    )
