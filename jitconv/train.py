"""Training SimpleConvNet through a variant: epochs that are timed, checkpoints that lose at most one epoch."""

import csv
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jitconv import data, distributed, functional, machine, variants
from jitconv.graph import CapturedStep
from jitconv.model import SimpleConvNet
from jitconv.warming import warmup

FIRST_STEPS = 50  # losses of single steps that are kept, to lay the variants' curves over each other


@dataclass(frozen=True)
class Config:
    """What a run is made of; equal configs but for `variant` see the same initial weights and the same batches.

    limit: train on the first so many images of each epoch only, and estimate the whole epoch's time from them.
    threads: CPU cores of a process, None for as many as torch takes; of several processes, its share of the cores.
    graph: replay each step as one CUDA graph; the steps, and so the losses, are the same.
    compile: train through torch.compile with this backend: "jitconv" makes plans of the variant's layers.
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
    graph: bool = False
    compile: str | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "threads", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(f"device must be one that torch knows, got {self.device!r}: {error}") from None
        if self.graph and device.type != "cuda":
            raise ValueError(f"graph needs a CUDA device, got device {self.device!r}: steps are graphs on GPUs only")
        if self.compile is not None and self.compile not in torch.compiler.list_backends():
            known = ", ".join(torch.compiler.list_backends())
            raise ValueError(f"compile must be a backend of torch.compile ({known}), got {self.compile!r}")
        variants.resolve(self.variant, device.type)


@dataclass(frozen=True)
class Epoch:
    """One epoch: seconds of its training steps alone, mean training loss, share of test images classified right.

    seconds is estimated, and accuracy None, where only `limit` images of more were trained on.
    """

    epoch: int
    seconds: float
    loss: float
    accuracy: float | None


class Run:
    """A training run and its folder: result.json and epochs.csv for the report, checkpoint.pt after every epoch.

    With `resume`, it goes on after the last checkpoint's epoch; ValueError if there is none or its config differs
    in anything but the number of epochs. Without, ValueError if the folder already holds a run.
    """

    def __init__(self, config: Config, folder: Path, resume: bool = False) -> None:
        self.config, self.folder = config, folder
        if not resume and self._checkpoint.exists():
            raise ValueError(f"folder must be a new one, or resume given, got {folder}, which holds an earlier run")
        distributed.join(config.device, config.threads)
        if config.graph and distributed.size() > 1:
            raise ValueError(
                f"graph needs a single process, got {distributed.size()}: they exchange gradients in a step"
            )
        with distributed.first_alone():
            train, test = data.load(config.data, config.data_dir)
        self.images, self.labels = (tensor.to(config.device) for tensor in train.tensors)
        self.test_images, self.test_labels = (tensor.to(config.device) for tensor in test.tensors)

        self.machine = machine.describe()

        torch.manual_seed(config.seed)
        self.model = SimpleConvNet(config.variant).to(config.device)
        parallel = distributed.parallel(self.model)
        self.forward = torch.compile(parallel, backend=config.compile) if config.compile else parallel
        fused = True if config.device == "cpu" else None  # one pass over the parameters: 0.3 of a step's 10 ms less
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=config.lr, momentum=config.momentum, fused=fused)
        self.epochs: list[Epoch] = []
        self.first_losses: list[float] = []
        self.warmup_seconds = 0.0
        self.take_step: Callable[[Tensor], Tensor] = self.step
        if distributed.rank() == 0:
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
        """Compile every kernel, and record the step as a graph, outside the epochs' time; return the seconds."""
        if self.config.variant == "interpreted":
            return 0.0  # nothing to compile, and a single image takes it a minute
        start = time.perf_counter()
        first = torch.arange(len(self.labels), device=self.config.device)[: self.config.batch_size]
        loss = partial(functional.cross_entropy, target=self.labels[first], variant=self.config.variant)
        warmup(self.model, self.images[first], loss, quiet=True)
        if self.config.compile:
            images = min(len(self.labels), self.config.limit or len(self.labels))
            for size in {len(first), images % self.config.batch_size or len(first)}:  # the last batch may be smaller
                self.forward(self.images[:size]).sum().backward()
            self.optimizer.zero_grad()
        if self.config.graph:
            self.take_step = CapturedStep(self.step, self.model, self.optimizer, first)
        self._synchronize()
        return time.perf_counter() - start

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """Return the indices of the images in an epoch's batches, in an order that only the seed and the epoch decide.

        Of several processes each gets its part of every batch.
        """
        order = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        chosen = torch.randperm(len(self.labels), generator=order)[: self.config.limit].to(self.config.device)
        return map(distributed.part, chosen.split(self.config.batch_size))

    def step(self, indices: Tensor) -> Tensor:
        """Take one step of gradient descent on the images of these indices and return the loss before it."""
        images, labels = self.images[indices], self.labels[indices]
        self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.forward(images), labels, variant=self.config.variant)
        share, loss = distributed.mean_loss(loss, len(labels))
        share.backward()
        self.optimizer.step()
        return loss

    def _train_epoch(self, number: int, on_step: Callable[[int, int], None]) -> Epoch:
        total = min(len(self.labels), self.config.limit or len(self.labels))
        losses, sizes, done = [], [], 0
        self._synchronize()
        start = time.perf_counter()
        for indices in self.batches(number):
            losses.append(self.take_step(indices))
            sizes.append(min(self.config.batch_size, total - done))
            done += sizes[-1]
            on_step(done, total)
        self._synchronize()
        seconds = (time.perf_counter() - start) * len(self.labels) / total
        of_steps = torch.stack(losses).tolist()
        if number == 1:
            self.first_losses = of_steps[:FIRST_STEPS]
        mean = sum(loss * size for loss, size in zip(of_steps, sizes, strict=True)) / total
        return Epoch(number, seconds, mean, None if self.estimated else self.accuracy())

    @property
    def estimated(self) -> bool:
        """Whether an epoch's time is estimated from a part of its images."""
        return self.config.limit is not None and self.config.limit < len(self.labels)

    @torch.no_grad()
    def accuracy(self) -> float:
        """Return the share of the test images that the model classifies right."""
        right = 0
        batches = list(zip(self.test_images.split(500), self.test_labels.split(500), strict=True))
        for images, labels in batches[distributed.rank() :: distributed.size()]:
            right += int((self.model(images).argmax(1) == labels).sum())
        return distributed.total(right, self.config.device) / len(self.test_labels)

    def _synchronize(self) -> None:
        if self.config.device.startswith("cuda"):
            torch.cuda.synchronize()

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def _result(self) -> dict[str, Any]:
        config = asdict(self.config)
        del config["data_dir"]  # results are published, and say nothing of this machine's folders
        return {
            "kind": "jitconv-train",
            "config": config,
            "machine": self.machine,
            "processes": distributed.size(),
            "images": len(self.labels),
            "warmup_seconds": self.warmup_seconds,
            "estimated": self.estimated,
            "first_losses": self.first_losses,
            "epochs": [asdict(epoch) for epoch in self.epochs],
        }

    def _save(self) -> None:
        if distributed.rank() > 0:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "config": asdict(self.config),
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "first_losses": self.first_losses,
        }
        _replace(self.folder / "result.json", lambda path: path.write_text(json.dumps(self._result(), indent=1)))
        _replace(self.folder / "epochs.csv", self._write_csv)
        _replace(self._checkpoint, lambda path: torch.save(state, path))  # last: what it holds is written elsewhere too

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
            before = state["config"]
        except Exception as error:
            raise ValueError(f"{self._checkpoint} is not a readable checkpoint: {error!r}") from None
        for name, value in asdict(self.config).items():
            if name != "epochs" and before.get(name) != value:
                raise ValueError(f"{name} must be {before.get(name)!r} as in {self._checkpoint}, got {value!r}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epochs = [Epoch(**epoch) for epoch in state["epochs"]]
        self.first_losses = state["first_losses"]


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file such that an interruption, of the power too, leaves either the old or the new one, whole."""
    part = path.with_name(path.name + ".part")
    write(part)
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
