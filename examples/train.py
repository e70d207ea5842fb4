"""Train SimpleConvNet on the bundled digits: an ordinary torch loop, computed by jitconv's loops."""

import sys

import torch
from torch.utils.data import DataLoader

import jitconv


def main(images: int = 8_000, epochs: int = 1) -> float:
    train, test = jitconv.data.load("mnist-10k")
    torch.manual_seed(0)
    model, loss = jitconv.SimpleConvNet(), jitconv.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    jitconv.warmup(model, torch.zeros(64, 1, 28, 28))
    for _ in range(epochs):
        for x, labels in DataLoader(torch.utils.data.Subset(train, range(images)), batch_size=64, shuffle=True):
            optimizer.zero_grad()
            loss(model(x), labels).backward()
            optimizer.step()
    x, labels = test.tensors
    with torch.no_grad():
        return float((model(x).argmax(1) == labels).float().mean())


if __name__ == "__main__":
    print(f"{main(*map(int, sys.argv[1:])):.1%} of the test images are classified right")
