"""Captured training steps, as far as they can be tested without a GPU: everything but the recording itself."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jitconv import SimpleConvNet, distributed, functional, train
from jitconv.graph import CapturedStep, Work
from jitconv.train import Config, Run

Step = Callable[[Tensor, Tensor], Tensor]


def replayed_on_the_cpu(work: Work, device: torch.device) -> tuple[Callable[[], Any], Tensor]:
    """Stands in for a CUDA graph: it runs the work before, and each replay writes its result where it was first."""
    result = work().clone()
    return lambda: result.copy_(work()), result


on_the_cpu = partial(CapturedStep, record=replayed_on_the_cpu)


def training() -> tuple[Step, SimpleConvNet, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = SimpleConvNet("torch")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images), labels, variant="torch")
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step, model, optimizer


@pytest.mark.parametrize("trained_before", [False, True])
def test_captured_steps_are_the_same_steps(trained_before: bool) -> None:
    batches = [(torch.randn(size, 1, 28, 28), torch.arange(size) % 10) for size in (4, 4, 4, 3, 4)]
    eager, model, _ = training()
    captured, same_model, optimizer = training()
    if trained_before:
        eager(*batches[0])
        captured(*batches[0])
    captured = on_the_cpu(captured, same_model, optimizer, *batches[1])
    losses = [captured(*batch) for batch in batches]  # kept: a replay must not change an earlier one's
    assert losses == [eager(*batch) for batch in batches]
    assert all(map(torch.equal, model.parameters(), same_model.parameters()))


def test_inputs_are_read_when_a_step_is_taken() -> None:
    step, model, optimizer = training()
    images, labels = torch.randn(4, 1, 28, 28), torch.arange(4)
    captured = on_the_cpu(step, model, optimizer, images, labels)
    images.zero_()
    assert captured.inputs[0].any(), "a later batch would overwrite the caller's"
    captured(images, labels)
    assert not captured.inputs[0].any()


def test_a_run_gathers_its_batches_in_the_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, recorded = [], []
    monkeypatch.setattr(train, "CapturedStep", lambda *args: recorded.append(args) or on_the_cpu(*args))
    for graph in (False, True):
        config = Config("torch", epochs=2, limit=3 * 64 + 5)  # the last batch is smaller
        object.__setattr__(config, "graph", graph)  # as if the device were a GPU
        result = Run(config, tmp_path / str(graph)).run(lambda done, total: None, lambda epoch: None)
        losses.append(result["first_losses"] + [epoch["loss"] for epoch in result["epochs"]])
    assert losses[0] == losses[1]
    ((step, _, _, indices),) = recorded
    assert indices.dtype == torch.int64
    assert indices.shape == (64,), "all that a step copies"


def test_a_graph_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="graph needs a CUDA device, got device 'cpu'"):
        Run(Config("torch", graph=True), tmp_path)


def test_a_graph_needs_a_single_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config("torch")
    object.__setattr__(config, "graph", True)  # as if the device were a GPU
    monkeypatch.setattr(distributed, "join", lambda device, threads: None)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with pytest.raises(ValueError, match="graph needs a single process, got 2"):
        Run(config, tmp_path)
