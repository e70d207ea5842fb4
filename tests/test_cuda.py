"""Starts the tests of tests/cuda that need a process of their own: Numba's simulator replaces numba.cuda as a whole."""

import os
import subprocess
import sys
from pathlib import Path


def test_the_kernels_in_the_simulator() -> None:
    file = Path(__file__).parent / "cuda" / "simulated.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(command, env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
