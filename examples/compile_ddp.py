"""Two processes train one network: DistributedDataParallel around what torch.compile makes, in one line."""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def train(rank: int, processes: int, folder: str, steps: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=processes)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(288, 10))
    forward = DistributedDataParallel(torch.compile(model, backend="jitconv"))  # the line: torch's is …(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(rank)
    for _ in range(steps):
        x, labels = torch.randn(16, 1, 14, 14), torch.randint(10, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(forward(x), labels).backward()
        optimizer.step()
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def main(steps: int = 20) -> float:
    """Return by how much the weights of two processes differ: by nothing."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(train, (2, folder, steps), nprocs=2)
        states = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]
    return max(float((a - b).abs().max()) for a, b in zip(states[0].values(), states[1].values(), strict=True))


if __name__ == "__main__":
    print(f"the two processes' weights differ by {main()}")
