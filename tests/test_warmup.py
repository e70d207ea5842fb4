"""jitconv.warmup: every kernel is compiled afterwards, and nothing else has happened."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import jitconv

STEP = """
import sys, torch, jitconv
from jitconv.variants import jit
model = jitconv.nn.convert(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Softmax(1)), "jit")
x = torch.rand(2, 3)
torch.set_num_threads(1)
def compiled():
    return sum(len(kernel.signatures) for kernel in jit.VARIANTS[0].ops.values())
"""


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", STEP + code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "is warm after" in done.stderr
    return done.stdout.split()


def test_a_step_after_it_compiles_nothing() -> None:
    code = """
before = compiled()
seconds = jitconv.warmup(model, x)
warm = compiled()
model(x).square().sum().backward()
print(before, warm > 3, compiled() == warm, seconds > 0)
"""
    assert run(code) == ["0", "True", "True", "True"]


def test_a_fork_after_it_computes_and_compiles_nothing() -> None:
    code = """
import os
jitconv.warmup(model, x)
warm, expected = compiled(), model(x).detach().numpy().copy()
child = os.fork()
if child == 0:
    same = (model(x).detach().numpy() == expected).all()
    os._exit(0 if same and compiled() == warm else 1)
print(os.waitpid(child, 0)[1])
"""
    assert run(code) == ["0"]


def test_the_model_is_left_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    model = jitconv.nn.convert(
        nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Dropout(), nn.Flatten(), nn.Linear(18, 3)
        )
    )
    model[0].weight.requires_grad_(False)
    model[5].weight.grad = torch.ones(3, 18)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(4, 1, 5, 5)
    random = torch.get_rng_state()
    with torch.no_grad():
        seconds = jitconv.warmup(model, (x,), lambda out: jitconv.functional.cross_entropy(out, torch.arange(4) % 3))
    assert seconds > 0
    assert "Sequential is warm after" in capsys.readouterr().err
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert [p.grad is None for p in model.parameters()] == [True, True, True, True, False, True]
    assert torch.equal(model[5].weight.grad, torch.ones(3, 18))


def test_results_of_any_kind_and_models_without_weights() -> None:
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor, scale: float) -> dict[str, torch.Tensor]:
            return {"relu": jitconv.functional.relu(x) * scale, "classes": x.argmax(1)}

    x = torch.rand(2, 3, requires_grad=True)
    assert jitconv.warmup(Branches(), (x, 2.0), quiet=True) > 0
    assert x.grad is None
    assert jitconv.warmup(Branches(), (x.detach(), 2.0), quiet=True) > 0
