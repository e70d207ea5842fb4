"""Compiling a model's kernels before they are needed: in time of its own, before a fork, before a CUDA graph."""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from jitconv.compat import pytree


def warmup(
    model: nn.Module, example: Any, loss: Callable[[Any], torch.Tensor] | None = None, *, quiet: bool = False
) -> float:
    """Run the model once forward and backward, so that every kernel it needs is compiled; return and print the seconds.

    example: a batch as the model will see it (shape, dtype, device), or a tuple of arguments. loss: from the model's
    result to a scalar, whose kernels are compiled too. The mode is the model's, the cores torch.get_num_threads().
    Weights, gradients, buffers (BatchNorm's statistics, say) and random states stay what they were; hooks are called.
    """
    start = time.perf_counter()
    tensors = {name: p.detach().requires_grad_(p.requires_grad) for name, p in model.named_parameters()}
    tensors |= {name: b.clone() for name, b in model.named_buffers()}
    arguments = example if isinstance(example, tuple) else (example,)
    devices = sorted({t.device for t in (*tensors.values(), *_tensors(arguments)) if t.is_cuda}, key=str)
    with torch.random.fork_rng(devices), torch.enable_grad():
        results = torch.func.functional_call(model, tensors, arguments)
        ends = [r for r in _tensors(results if loss is None else loss(results)) if r.requires_grad]
        inputs = [t for t in (*tensors.values(), *_tensors(arguments)) if t.requires_grad]
        if ends and inputs:
            torch.autograd.grad(ends, inputs, [torch.ones_like(end) for end in ends], allow_unused=True)
    for device in devices:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    if not quiet:
        print(f"jitconv: {type(model).__name__} is warm after {seconds:.1f} s", file=sys.stderr)
    return seconds


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
