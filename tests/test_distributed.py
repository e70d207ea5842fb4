"""Two processes that share every batch take the steps of one."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jitconv import distributed, machine
from jitconv.train import Config, Run

OPTIONS = {
    "variant": "jit-tiled",
    "epochs": 2,
    "batch_size": 501,
}  # parts of 251 and 250 images, 243 and 242 at the end


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    options = [text for name, value in OPTIONS.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    done = torchrun("-m", "jitconv", "train", *options, "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch 1:") == 1, "one process prints"
    assert done.stdout.splitlines()[-1] == str(tmp_path / "two" / "result.json")

    before = torch.get_num_threads()
    single = Run(Config(**OPTIONS, threads=1), tmp_path / "one")  # type: ignore[arg-type]
    single.run(lambda *_: None, lambda *_: None)
    torch.set_num_threads(before)

    found = json.loads((tmp_path / "two" / "result.json").read_text())
    assert found["processes"] == 2
    assert found["first_losses"] == pytest.approx(single.first_losses, rel=1e-4)
    for epoch, expected in zip(found["epochs"], single.epochs, strict=True):
        assert epoch["loss"] == pytest.approx(expected.loss, rel=1e-4)
        assert epoch["accuracy"] == pytest.approx(expected.accuracy, abs=2e-3)
    weights = torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=True)["model"]
    torch.testing.assert_close(weights, dict(single.model.state_dict()), rtol=1e-3, atol=1e-4)


SCRIPT = """
import atexit, os, sys
import torch, jitconv
from torch import nn
from jitconv import distributed


def gloo():
    tasks = os.listdir("/proc/self/task") if sys.platform == "linux" else []
    return [name for task in tasks if "gloo" in (name := open(f"/proc/self/task/{task}/comm").read())]


@atexit.register  # so called after the group is left
def left():  # a thread of gloo that lets go of a tensor while Python shuts down ends the process with SIGABRT
    if gloo():
        print("threads left:", *gloo())


def main():  # whose models are gone before the processes part: they hold on to the group
    distributed.join("cpu")
    rank, size = distributed.rank(), distributed.size()
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )
    model = jitconv.nn.convert(model)
    model = torch.compile(nn.parallel.DistributedDataParallel(model), backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        images, labels = torch.rand(6, 1, 8, 8), torch.arange(6) % 3
        loss = nn.functional.cross_entropy(model(distributed.part(images)), distributed.part(labels))
        loss.backward()
        optimizer.step()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    everywhere = [torch.empty_like(weights) for _ in range(size)]
    torch.distributed.all_gather(everywhere, weights)
    assert torch.equal(*everywhere)

    model = jitconv.SimpleConvNet()
    image, label = torch.rand(1, 1, 28, 28), torch.tensor([3])  # one process has nothing of it
    parallel = distributed.parallel(model)
    loss = jitconv.functional.cross_entropy(parallel(distributed.part(image)), distributed.part(label))
    share, mean = distributed.mean_loss(loss, len(distributed.part(label)))
    share.backward()
    whole = jitconv.functional.cross_entropy(model(image), label)
    torch.testing.assert_close(mean, whole.detach())
    gradients = list(torch.autograd.grad(whole, model.parameters()))
    torch.testing.assert_close([p.grad for p in model.parameters()], gradients)
    assert distributed.total(rank + 1, "cpu") == 3
    assert gloo() or sys.platform != "linux" or torch.__version__ < "2.13"  # older ones give threads no names
    print(f"cores {torch.get_num_threads()} parts {len(distributed.part(torch.arange(3)))}\\n", end="")  # in one write


main()
"""


def test_a_converted_compiled_model_in_ddp_on_its_share_of_the_cores(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = torchrun(str(script))
    assert done.returncode == 0, done.stderr
    share = max(1, machine.cores() // 2)
    assert "threads left" not in done.stdout
    lines = re.findall(r"cores \d+ parts \d+", done.stdout)  # torch 2.8 prints between them, in the middle of lines
    assert sorted(lines) == [f"cores {share} parts {n}" for n in (1, 2)]


def test_one_process_needs_no_others() -> None:
    loss = torch.tensor(2.0, requires_grad=True)
    mine, mean = distributed.mean_loss(loss, 3)
    assert mine is loss
    assert mean == 2
    assert (distributed.rank(), distributed.size(), distributed.total(5, "cpu")) == (0, 1, 5)
    assert distributed.part(torch.arange(3)).tolist() == [0, 1, 2]
