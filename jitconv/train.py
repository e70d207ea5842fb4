"""Training SimpleConvNet through a variant: epochs that are timed, checkpoints that lose at most one epoch."""

import csv
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jitconv import data, functional, machine, variants
from jitconv.model import SimpleConvNet

FIRST_STEPS = 50  # losses of single steps that are kept, to lay the variants' curves over each other


@dataclass(frozen=True)
class Config:
    """What a run is made of; equal configs but for `variant` see the same initial weights and the same batches.

    limit: train on the first so many images of each epoch only, and estimate the whole epoch's time from them.
    threads: CPU cores, None for as many as torch takes.
    """

    variant: str
    data: str = "mnist-10k"
    data_dir: str | None = None
    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.01
    momentum: float = 0.9
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "threads", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        variants.resolve(self.variant, torch.device(self.device).type)


@dataclass(frozen=True)
class Epoch:
    """One epoch: seconds of its training steps alone, mean training loss, share of test images classified right.

    seconds is estimated, and accuracy None, where only `limit` images were trained on.
    """

    epoch: int
    seconds: float
    loss: float
    accuracy: float | None


class Run:
    """A training run and its folder: checkpoint.pt after every epoch, result.json and epochs.csv for the report.

    With `resume`, it goes on after the last checkpoint's epoch; ValueError if there is none or its config differs
    in anything but the number of epochs.
    """

    def __init__(self, config: Config, folder: Path, resume: bool = False) -> None:
        self.config, self.folder = config, folder
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        train, test = data.load(config.data, config.data_dir)
        self.images, self.labels = (tensor.to(config.device) for tensor in train.tensors)
        self.test_images, self.test_labels = (tensor.to(config.device) for tensor in test.tensors)

        torch.manual_seed(config.seed)
        self.model = SimpleConvNet(config.variant).to(config.device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=config.lr, momentum=config.momentum)
        self.epochs: list[Epoch] = []
        self.first_losses: list[float] = []
        self.warmup_seconds = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if resume:
            self._load()

    def run(self, on_step: Callable[[int, int], None], on_epoch: Callable[[Epoch], None]) -> dict[str, Any]:
        """Train the epochs that are left and return what result.json holds.

        on_step is told the images done and to do in the epoch, on_epoch every epoch that is finished and saved.
        """
        self.warmup_seconds = self._warm_up()
        for number in range(len(self.epochs) + 1, self.config.epochs + 1):
            self.epochs.append(self._train_epoch(number, on_step))
            self._save()
            on_epoch(self.epochs[-1])
        return self._result()

    def _warm_up(self) -> float:
        """Compile every kernel on a copy of the model, so that no epoch's time holds compiling; return the seconds."""
        if self.config.variant == "interpreted":
            return 0.0  # nothing to compile, and a single image takes it a minute
        start = time.perf_counter()
        model = SimpleConvNet(self.config.variant).to(self.config.device)
        model.load_state_dict(self.model.state_dict())
        loss = functional.cross_entropy(model(self.images[:1]), self.labels[:1], variant=self.config.variant)
        loss.backward()
        return time.perf_counter() - start

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images and labels of an epoch's batches, in an order that only the seed and the epoch decide."""
        order = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        chosen = torch.randperm(len(self.labels), generator=order)[: self.config.limit].to(self.config.device)
        for indices in chosen.split(self.config.batch_size):
            yield self.images[indices], self.labels[indices]

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Take one step of gradient descent and return the loss before it."""
        self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.model(images), labels, variant=self.config.variant)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _train_epoch(self, number: int, on_step: Callable[[int, int], None]) -> Epoch:
        total = min(len(self.labels), self.config.limit or len(self.labels))
        losses, done = [], 0
        self._synchronize()
        start = time.perf_counter()
        for images, labels in self.batches(number):
            losses.append(self.step(images, labels) * len(labels))
            done += len(labels)
            on_step(done, total)
        self._synchronize()
        seconds = (time.perf_counter() - start) * len(self.labels) / total
        if number == 1:
            sizes = [self.config.batch_size] * (len(losses) - 1) + [total - self.config.batch_size * (len(losses) - 1)]
            self.first_losses = [float(loss) / size for loss, size in zip(losses, sizes, strict=True)][:FIRST_STEPS]
        accuracy = self.accuracy() if self.config.limit is None else None
        return Epoch(number, seconds, float(sum(losses)) / total, accuracy)

    @torch.no_grad()
    def accuracy(self) -> float:
        """Return the share of the test images that the model classifies right."""
        right = 0
        for images, labels in zip(self.test_images.split(500), self.test_labels.split(500), strict=True):
            right += int((self.model(images).argmax(1) == labels).sum())
        return right / len(self.test_labels)

    def _synchronize(self) -> None:
        if self.config.device.startswith("cuda"):
            torch.cuda.synchronize()

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def _result(self) -> dict[str, Any]:
        return {
            "kind": "jitconv-train",
            "config": asdict(self.config),
            "machine": machine.describe(),
            "images": len(self.labels),
            "warmup_seconds": self.warmup_seconds,
            "estimated": self.config.limit is not None and self.config.limit < len(self.labels),
            "first_losses": self.first_losses,
            "epochs": [asdict(epoch) for epoch in self.epochs],
        }

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "config": asdict(self.config),
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "first_losses": self.first_losses,
        }
        _replace(self._checkpoint, lambda path: torch.save(state, path))
        _replace(self.folder / "result.json", lambda path: path.write_text(json.dumps(self._result(), indent=1)))
        _replace(self.folder / "epochs.csv", self._write_csv)

    def _write_csv(self, path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["epoch", "seconds", "loss", "accuracy"])
            writer.writeheader()
            writer.writerows(asdict(epoch) for epoch in self.epochs)

    def _load(self) -> None:
        if not self._checkpoint.is_file():
            raise ValueError(f"resume needs a checkpoint, but there is no {self._checkpoint}")
        try:
            state = torch.load(self._checkpoint, map_location=self.config.device, weights_only=True)
        except Exception as error:
            raise ValueError(f"{self._checkpoint} is not a readable checkpoint: {error}") from None
        for name, value in asdict(self.config).items():
            if name != "epochs" and state["config"][name] != value:
                raise ValueError(f"{name} must be {state['config'][name]!r} as in {self._checkpoint}, got {value!r}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epochs = [Epoch(**epoch) for epoch in state["epochs"]]
        self.first_losses = state["first_losses"]


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file such that an interruption leaves either the old or the new one, whole."""
    part = path.with_name(path.name + ".part")
    write(part)
    os.replace(part, path)
