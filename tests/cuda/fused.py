"""Layers in one pass, as `cuda-tiled` has them: those that reach every kernel of it, and what they must give."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from jitconv import functional as F

Size = tuple[int, ...]


@dataclass(frozen=True)
class Fused:
    """A function of layers in one pass, with the shapes of input and weight, and its options."""

    name: str
    input: Size
    weight: Size
    options: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.input} {self.weight} {self.options}"

    def results(
        self, variant: str, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> list[list[torch.Tensor]]:
        """Return values and gradients, in one pass and in turn; some of the input is NaN, ties abound."""
        x = torch.randint(-2, 3, self.input).to(dtype)
        x[torch.rand(self.input) < 0.02] = torch.nan
        weight, bias = torch.randint(-1, 2, self.weight).to(dtype), torch.randn(self.weight[0], dtype=dtype)
        leaves = [leaf.to(device).requires_grad_() for leaf in (x, weight, bias)]
        return [
            [out := layers(*leaves, *self.options, variant=variant), *torch.autograd.grad(out.sum(), leaves)]
            for layers in (getattr(F, self.name), IN_TURN[self.name])
        ]


def _pooled(x: Any, weight: Any, bias: Any, how: Any, pooling: Any, variant: str) -> Any:
    return F.max_pool2d(F.conv2d(x, weight, bias, *how, variant=variant), *pooling, variant=variant)


def _rectified(x: Any, weight: Any, bias: Any, how: Any, variant: str) -> Any:
    return F.relu(F.conv2d(x, weight, bias, *how, variant=variant), variant=variant)


def _product(x: Any, weight: Any, bias: Any, variant: str) -> Any:
    return F.relu(F.linear(x, weight, bias, variant=variant), variant=variant)


IN_TURN: dict[str, Callable[..., Any]] = {
    "conv2d_max_pool2d": _pooled, "conv2d_relu": _rectified, "linear_relu": _product,
}  # fmt: skip
FUSED = [  # of every path: in tiny blocks as the simulator has them, and in those of a GPU
    Fused("conv2d_max_pool2d", (2, 1, 5, 6), (4, 1, 2, 3), ((1, 0, 1, 1), (2,))),  # direct, in one kernel
    Fused("conv2d_max_pool2d", (1, 2, 4, 3), (2, 1, 3, 2), ((1, 1, 1, 2), (2,))),  # with edges and groups
    Fused("conv2d_max_pool2d", (1, 1, 4, 4), (3, 1, 2, 2), ((1, 0, 1, 1), (2, 2, 0, 1, True))),  # in two
    Fused("conv2d_relu", (1, 1, 4, 5), (4, 1, 3, 2), ((1, 0, 1, 1),)),
    Fused("conv2d_relu", (1, 4, 3, 3), (5, 4, 2, 2), ((1, 0, 1, 1),)),  # a product in tiny blocks
    Fused("conv2d_relu", (1, 2, 4, 4), (2, 1, 4, 4), ((1, 1, 1, 2),)),  # few filters: in two kernels
    Fused("linear_relu", (2, 3), (3, 3)),
    Fused("linear_relu", (3, 9), (5, 9)),  # sums that are split in tiny blocks
]
LARGE = [  # the same for blocks of a GPU
    Fused("conv2d_max_pool2d", (2, 1, 28, 28), (20, 1, 5, 5), ((1, 0, 1, 1), (2,))),  # SimpleConvNet's
    Fused("conv2d_max_pool2d", (2, 3, 8, 8), (64, 3, 7, 7), ((2, 3, 1, 1), (2,))),
    Fused("conv2d_max_pool2d", (1, 20, 6, 6), (20, 20, 3, 3), ((1, 1, 1, 1), (2,))),
    Fused("conv2d_relu", (1, 20, 6, 6), (20, 20, 3, 3), ((1, 1, 1, 1),)),
    Fused("conv2d_relu", (1, 2, 14, 14), (2, 1, 14, 14), ((1, 1, 1, 2),)),
    Fused("linear_relu", (64, 2880), (500, 2880)),
]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.nan_to_num(nan=99), b.nan_to_num(nan=99)) and torch.equal(a.isnan(), b.isnan())
