"""A plain loop over images, one at a time: one line makes the network a plan."""

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jitconv


class Net(nn.Module):
    """The network of the study as most people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(1, 20, 5), nn.Linear(2880, 500), nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


@torch.no_grad()
def main(images: int = 1000) -> float:
    torch.manual_seed(0)
    model, batch = Net().eval(), torch.randn(images, 1, 1, 28, 28)
    forward = jitconv.plan(model, batch[0])  # the line: torch's is forward = model
    times, results = {}, {}
    for name, call in (("torch", model), ("plan", forward)):
        call(batch[0])
        start = time.perf_counter()
        results[name] = torch.cat([call(image) for image in batch])
        times[name] = (time.perf_counter() - start) / images * 1e6
    print(forward)
    print(", ".join(f"{name}: {microseconds:.0f} µs an image" for name, microseconds in times.items()))
    return float((results["torch"] - results["plan"]).abs().max())


if __name__ == "__main__":
    print(f"largest difference: {main():.1e}")
