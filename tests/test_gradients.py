"""The second witness: gradients against finite differences, and second derivatives that work or say why not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from jitconv import functional as F


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


TARGET = torch.tensor([0, 2, -100])
WEIGHT = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
STRIDED = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}

LAYERS: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "conv2d": (lambda x, w, b, **v: F.conv2d(x, w, b, **STRIDED, **v), ((2, 2, 4, 3), (2, 1, 2, 2), (2,))),
    "max_pool2d": (lambda x, **v: F.max_pool2d(x, 2, 1, 1, **v), ((1, 2, 3, 4),)),
    "flatten": (lambda x, **v: F.flatten(x, 1, **v), ((2, 2, 2, 2),)),
    "linear": (lambda x, w, b, **v: F.linear(x, w, b, **v), ((2, 3), (4, 3), (4,))),
    "relu": (lambda x, **v: F.relu(x, **v) ** 2, ((3, 4),)),
    "softmax": (lambda x, **v: F.softmax(x, 1, **v), ((2, 3, 2),)),
    "log_softmax": (lambda x, **v: F.log_softmax(x, 0, **v), ((3, 2),)),
    "cross_entropy": (lambda x, **v: F.cross_entropy(x, TARGET, WEIGHT, label_smoothing=0.1, **v), ((3, 3),)),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_first_derivatives(layer: str, variant: str) -> None:
    function, shapes = LAYERS[layer]
    assert gradcheck(lambda *args: function(*args, variant=variant), [leaf(*shape) for shape in shapes])


@pytest.mark.parametrize("layer", LAYERS)
def test_second_derivatives(layer: str, variant: str) -> None:
    function, shapes = LAYERS[layer]
    assert gradgradcheck(lambda *args: function(*args, variant=variant), [leaf(*shape) for shape in shapes])
