"""What users' type checkers see: a script that uses the public names passes mypy --strict, and a wrong one does not."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SCRIPT = """
import numpy as np
import torch
from torch import Tensor, nn

import jitconv
from jitconv import functional as F


def double(x: np.ndarray, out: np.ndarray) -> None:
    out[...] = 2 * x


model: nn.Module = jitconv.nn.convert(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), report=True)
images = torch.randn(2, 1, 12, 12)
seconds: float = jitconv.warmup(model, images)
plan = jitconv.plan(model.eval(), images)
result: Tensor = plan(images)
plan.refresh()
print(plan.profile(images, repeats=2))
own: jitconv.Variant = jitconv.register_variant("mine", base="vector", relu=double)
names: tuple[str, ...] = jitconv.available("cpu")
difference: float = jitconv.diff_mse(F.relu(images), F.relu(images, variant="jit"))
layer: nn.Module = jitconv.nn.Conv2d(1, 4, 3, variant="jit-tiled")
network: nn.Module = jitconv.SimpleConvNet("jit-tiled")
loss: Tensor = F.cross_entropy(network(torch.randn(2, 1, 28, 28)), torch.tensor([1, 2]))
array: np.ndarray = F.softmax(np.zeros((2, 3), np.float32), 1)
train, test = jitconv.data.load("mnist-10k")
print(F.conv2d(images, torch.randn(4, 1, 3, 3)), F.max_pool2d(images, 2), F.linear(images, torch.randn(3, 12)))
"""
WRONG = """
jitconv.plan(3, images)
jitconv.SimpleConvNet(variant=1)
F.relu(images, variant=3)
"""


def test_a_users_script_passes_mypy_strict(tmp_path: Path) -> None:
    for name, text in (("right", SCRIPT), ("wrong", SCRIPT + WRONG)):
        (tmp_path / f"{name}.py").write_text(text)
    run = [sys.executable, "-m", "mypy", "--strict", "--follow-imports", "silent", "--config-file", "", "right.py"]
    path = {"MYPYPATH": str(ROOT)}
    done = subprocess.run([*run, "wrong.py"], env=os.environ | path, cwd=tmp_path, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if "error:" in line]
    assert all(line.startswith("wrong.py:") for line in lines), done.stdout
    assert [line.rpartition("[")[2] for line in lines] == ["arg-type]"] * 3, done.stdout
