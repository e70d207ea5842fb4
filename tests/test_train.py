"""Training: every variant follows torch's loss, and nothing but the running epoch can be lost."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COMPILED

from jitconv import variants
from jitconv.train import Config, Epoch, Run


def nothing(*_: object) -> None:
    pass


def run(folder: Path, resume: bool = False, on_epoch: Callable[[Epoch], None] = nothing, **options: object) -> Run:
    # One thread: two of torch's wait for each other where another program has one of the cores.
    given = {"variant": "torch", "epochs": 1, "limit": 256, "threads": 1, **options}
    config = Config(**given)  # type: ignore[arg-type]
    training = Run(config, folder, resume)
    training.run(nothing, on_epoch)
    return training


@pytest.fixture(scope="module", autouse=True)
def _as_many_threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def torch_losses(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray]:
    """torch's first losses in float64, and how far rounding has taken its own in float32 from them up to each step.

    It is 0.3 % within fifty steps: where two pixels of a pooling window are almost equal, rounding picks the maximum.
    """
    config = Config("torch", epochs=1, limit=3200, threads=1)
    training = Run(config, tmp_path_factory.mktemp("float64"))
    training.model.double()
    training.images = training.images.double()
    training.optimizer = torch.optim.SGD(training.model.parameters(), lr=0.01, momentum=0.9)
    exact = np.array([float(training.step(indices)) for indices in training.batches(1)])
    training = Run(config, tmp_path_factory.mktemp("float32"))
    own = np.array([float(training.step(indices)) for indices in training.batches(1)])
    return exact, np.maximum.accumulate(abs(own - exact))


@pytest.mark.parametrize(
    ("variant", "threads"), [*((name, 1) for name in COMPILED), ("jit-parallel", 2), ("jit-tiled", 2)]
)
def test_the_loss_follows_torch_for_fifty_steps(
    variant: str, threads: int, torch_losses: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    steps = 50 if variant in ("jit-tiled", "vector") else 8
    losses = run(tmp_path, variant=variant, limit=64 * steps, threads=threads).first_losses
    assert len(losses) == steps
    exact, rounding = (values[:steps] for values in torch_losses)
    assert (abs(np.array(losses) - exact) <= 1e-5 * exact + 2 * rounding).all()


def test_interpreted_loops_follow_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # On arrays, plain Python does in seconds what takes it minutes on tensors; the loops are the same.
    on_arrays = replace(variants.get("interpreted"), name="interpreted-numpy", device="cpu", tensors=False)
    monkeypatch.setattr(Run, "_warm_up", lambda run: 0.0)
    monkeypatch.setitem(variants._loaded, on_arrays.name, on_arrays)
    ours, expected = (run(tmp_path / name, variant=name, limit=2, batch_size=1) for name in (on_arrays.name, "torch"))
    assert ours.first_losses == pytest.approx(expected.first_losses, rel=2e-5)
    assert [epoch.accuracy for epoch in ours.epochs] == [None], "two of 8,000 images are an estimate"


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", epochs=3)
    run(tmp_path / "parts", epochs=1)
    parts = run(tmp_path / "parts", epochs=3, resume=True)
    assert [epoch.loss for epoch in parts.epochs] == [epoch.loss for epoch in whole.epochs]
    assert all(map(torch.equal, parts.model.parameters(), whole.model.parameters()))


def test_an_interruption_loses_the_running_epoch_only(tmp_path: Path) -> None:
    def interrupt(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, epochs=4, on_epoch=interrupt)
    assert len(run(tmp_path, epochs=4, resume=True).epochs) == 4
    assert not list(tmp_path.glob("*.part"))


def test_what_is_written(tmp_path: Path) -> None:
    training = run(tmp_path, epochs=2)
    result = json.loads((tmp_path / "result.json").read_text())
    assert "data_dir" not in result["config"]  # results are published
    assert result["kind"] == "jitconv-train"
    assert result["estimated"] is True
    assert [epoch["epoch"] for epoch in result["epochs"]] == [1, 2]
    assert (tmp_path / "epochs.csv").read_text().splitlines()[0] == "epoch,seconds,loss,accuracy"
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert torch.equal(saved["model"]["fc1.weight"], training.model.fc1.weight)


def test_resuming_needs_the_same_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resume needs a checkpoint"):
        run(tmp_path, resume=True)
    run(tmp_path)
    with pytest.raises(ValueError, match=r"lr must be 0\.01 as in .*checkpoint\.pt, got 0\.1"):
        run(tmp_path, resume=True, lr=0.1)
    (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not a readable checkpoint"):
        run(tmp_path, resume=True)


@pytest.mark.parametrize("name", ["epochs", "batch_size", "threads", "limit"])
def test_counts_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        Config(**{"variant": "torch", name: 0})  # type: ignore[arg-type]


def test_an_unknown_variant_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ValueError, match="variant must be one of"):
        Config("fast")


def test_a_device_must_be_known() -> None:
    with pytest.raises(ValueError, match="device must be one that torch knows, got 'abacus'"):
        Config("torch", device="abacus")


def test_an_earlier_run_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(ValueError, match="folder must be a new one, or resume given"):
        run(tmp_path)


def test_the_same_seed_gives_the_same_batches_to_every_variant(tmp_path: Path) -> None:
    first, second, other = (
        Run(Config(variant, seed=seed), tmp_path) for variant, seed in (("torch", 0), ("vector", 0), ("torch", 1))
    )
    orders = [list(training.batches(1)) for training in (first, second, other)]
    assert all(map(torch.equal, orders[0], orders[1]))
    assert not torch.equal(orders[0][0], orders[2][0])
    assert not torch.equal(orders[0][0], next(first.batches(2)))
    assert torch.cat(orders[0]).sort().values.equal(torch.arange(len(first.labels))), "every image once"
    assert torch.equal(first.model.fc1.weight, second.model.fc1.weight)


def test_a_compiled_run_takes_the_same_steps(tmp_path: Path) -> None:
    """Its last batch is smaller than the others: another shape, which is compiled before the first epoch too."""
    eager = run(tmp_path / "eager", variant="jit-tiled", limit=300)
    compiled = run(tmp_path / "compiled", variant="jit-tiled", limit=300, compile="jitconv")
    np.testing.assert_allclose(compiled.first_losses, eager.first_losses, rtol=1e-4)
    with pytest.raises(ValueError, match=r"compile must be a backend of torch\.compile .*, got 'fast'"):
        Config("jit-tiled", compile="fast")
