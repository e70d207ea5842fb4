"""Convert a model of torchvision: one line, the same numbers, and a report of what jitconv computes now."""

import sys

import torch

import jitconv


def main(name: str = "resnet18", size: int = 64) -> float:
    torch.manual_seed(0)
    model = getattr(jitconv.data.torchvision().models, name)(weights=None).eval()
    ours = jitconv.nn.convert(model, report=True)  # the one line; weights are shared, the model stays what it was
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected, found = model(images), ours(images)
    return float((found - expected).norm() / expected.norm())


if __name__ == "__main__":
    print(f"The outputs differ from torch's by {main(*sys.argv[1:2]):.1e} of their size")
