"""Arrays that no 128-bit load may read."""

import torch


def shifted(x: torch.Tensor) -> torch.Tensor:
    """Return a contiguous copy of x that begins one element behind where torch's memory begins."""
    return x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
