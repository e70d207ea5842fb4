"""DataLoader, loss, optimizer as ever: one line compiles the network, forward and backward, to jitconv's kernels."""

import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

import jitconv


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2880, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


def main(images: int = 8_000, backend: str = "jitconv") -> float:
    train, test = jitconv.data.load("mnist-10k")
    torch.manual_seed(0)
    model = network()
    forward = torch.compile(model, backend=backend)  # the line: torch's is forward = model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    start = time.perf_counter()
    for x, labels in DataLoader(Subset(train, range(images)), batch_size=64, shuffle=True, drop_last=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(forward(x), labels).backward()
        optimizer.step()
    print(f"{backend}: an epoch in {time.perf_counter() - start:.1f} s, compiling included")
    x, labels = test.tensors
    with torch.no_grad():
        return float((model(x).argmax(1) == labels).float().mean())


if __name__ == "__main__":
    print(f"{main(*map(int, sys.argv[1:])):.1%} of the test images are classified right")
