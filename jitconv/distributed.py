"""Training on several processes that torchrun started: who they are, and what they share. One process needs nothing.

Each takes its part of every batch, so that N of them together take the steps that one would take alone.
"""

import atexit
import gc
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jitconv import machine


def join(device: str, threads: int | None = None) -> None:
    """Join the other processes, if there are any (NCCL on GPUs, Gloo on CPUs), on cores and a GPU of one's own.

    threads: cores of each, None for its share of this machine's. Raises ValueError for more processes than GPUs.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun did not start this process
        if threads is not None:
            torch.set_num_threads(threads)
        return
    here, others = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    torch.set_num_threads(threads or max(1, machine.cores() // others))  # torchrun has set them to 1
    if device == "cuda":
        if here >= torch.cuda.device_count():
            raise ValueError(
                f"--nproc-per-node must be at most {torch.cuda.device_count()}, the GPUs here, got {others}"
            )
        torch.cuda.set_device(here)
    if not dist.is_initialized():
        # First, since DDP imports it: its default arguments hold the group that there is then, beyond its end.
        importlib.import_module("torch.distributed.nn")
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        atexit.register(leave)


def leave() -> None:
    """Part from the other processes; called at exit, where models still in use keep the group alive.

    Gloo's threads end with the group. One that is left while Python shuts down and lets go of a tensor ends the
    process with SIGABRT.
    """
    gc.collect()  # DDP models under torch.compile are in cycles
    if dist.is_initialized():
        dist.destroy_process_group()


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number; 0 is the one that writes and prints."""
    return dist.get_rank() if size() > 1 else 0


def part(items: Tensor) -> Tensor:
    """Return this process's part of the items of a batch, as even as may be."""
    return items.tensor_split(size())[rank()]


def parallel(model: nn.Module) -> Any:
    """Return the model whose gradients are the mean over all processes."""
    return nn.parallel.DistributedDataParallel(model) if size() > 1 else model


def mean_loss(loss: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return, for the mean loss of `count` images here, what to differentiate and the mean over the whole batch."""
    if size() == 1:
        return loss, loss.detach()
    totals = torch.stack([loss.detach() * count if count else loss.detach().new_zeros(()), loss.new_tensor(count)])
    dist.all_reduce(totals)
    return loss * (count * size() / totals[1]), totals[0] / totals[1]


def total(count: int, device: str) -> int:
    """Return the sum of the counts of all processes."""
    if size() == 1:
        return count
    counts = torch.tensor(count, device=device)
    dist.all_reduce(counts)
    return int(counts)


@contextmanager
def first_alone() -> Iterator[None]:
    """Let process 0 go through before the others, with a download or a file that is written once."""
    if rank() > 0:
        dist.barrier()
    yield
    if rank() == 0 and size() > 1:
        dist.barrier()
