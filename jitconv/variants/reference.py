"""`torch`: torch.nn.functional itself, the oracle of every test and the unit of speed."""

from typing import Any

import torch
import torch.nn.functional as F

from jitconv.variants import Variant


def cross_entropy(input: torch.Tensor, target: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    """torch's, with the error of the other variants for a class that input does not have."""
    try:
        return F.cross_entropy(input, target, *args, **options)
    except IndexError as error:
        raise ValueError(f"target must hold classes of input or ignore_index: {error}") from None


VARIANTS = (
    Variant(
        "torch",
        "any",
        {
            "conv2d": F.conv2d,
            "max_pool2d": F.max_pool2d,
            "flatten": torch.flatten,
            "linear": F.linear,
            "relu": F.relu,
            "softmax": F.softmax,
            "log_softmax": F.log_softmax,
            "cross_entropy": cross_entropy,
        },
        whole=True,
    ),
)
