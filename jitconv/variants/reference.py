"""`torch`: torch.nn.functional itself, the oracle of every test and the unit of speed."""

import torch
import torch.nn.functional as F

from jitconv.variants import Variant

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
            "cross_entropy": F.cross_entropy,
        },
        whole=True,
    ),
)
