"""Starts the tests of tests/cuda that need a process of their own: Numba's simulator replaces numba.cuda as a whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jitconv import functional, nn, variants


def test_the_kernels_in_the_simulator() -> None:
    pytest.importorskip("numba_cuda")
    file = Path(__file__).parent / "cuda" / "simulated.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(command, env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]


@pytest.mark.parametrize("name", ["cuda", "cuda-tiled"])
def test_what_is_missing_is_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba_cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"'{name}' runs on cuda, but input is on cpu: torch sees no CUDA GPU"):
        functional.relu(torch.ones(3), variant=name)
    monkeypatch.setattr(variants.importlib.util, "find_spec", lambda package: None)
    monkeypatch.setattr(variants, "_loaded", {})
    with pytest.raises(ValueError, match=r"numba-cuda is not installed: pip install 'jitconv\[cuda\]'"):
        nn.ReLU(variant=name)


def test_the_cpu_never_needs_cuda() -> None:
    code = """
import sys, torch, jitconv
model = jitconv.SimpleConvNet("vector")
loss = jitconv.functional.cross_entropy(model(torch.randn(2, 1, 28, 28)), torch.arange(2), variant="jit")
loss.backward()
try:
    jitconv.functional.relu(torch.ones(3), variant="cuda-tiled")
except ValueError as error:
    print("cuda-tiled" in str(error))
jitconv.available()
print([name for name in sys.modules if name.startswith(("numba.cuda", "numba_cuda"))])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["True", "[]"], done.stderr
