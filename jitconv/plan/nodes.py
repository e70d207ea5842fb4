"""The operations a plan is made of, as functions of tensors: what each computes, in torch's terms.

Rewrites (rewrite.py) put calls of these into the captured graph, so that a graph can be run as it stands after any of
them; kernels.py then binds a kernel to each call. A call that gets none runs the function below: a torch step.

activation, everywhere: None, ("relu",), ("clamp", low, high), or one of SMOOTH_ACTIVATIONS.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Node = Any  # an fx.Node, whose arguments' type would have to be narrowed at each use
Activation = tuple[Any, ...] | None
SMOOTH_ACTIVATIONS = {(each.__name__,): each for each in (F.hardswish, F.silu, torch.sigmoid, F.hardsigmoid)}


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Apply an activation elementwise; NaN stays NaN."""
    match activation:
        case None:
            return x
        case ("relu",):
            return F.relu(x)
        case ("clamp", low, high):
            return torch.clamp(x, low, high)
    return SMOOTH_ACTIVATIONS[activation](x)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    convolution: tuple[Any, ...],
    residual: Tensor | None = None,
    activation: Activation = None,
) -> Tensor:
    """activation(conv2d(x) + residual); convolution: stride, padding, dilation, groups."""
    z = F.conv2d(x, weight, bias, *convolution)
    return activate(z if residual is None else z + residual, activation)


def conv2d_max_pool2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, convolution: tuple[Any, ...], pooling: tuple[Any, ...]
) -> Tensor:
    """max_pool2d(conv2d(x)); pooling: kernel_size, stride, padding, dilation, ceil_mode."""
    return F.max_pool2d(F.conv2d(x, weight, bias, *convolution), *pooling)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation = None) -> Tensor:
    """activation(x · weightᵀ + bias)"""
    return activate(F.linear(x, weight, bias), activation)


def max_pool2d(x: Tensor, pooling: tuple[Any, ...]) -> Tensor:
    """pooling: kernel_size, stride, padding, dilation, ceil_mode."""
    return F.max_pool2d(x, *pooling)


def avg_pool2d(x: Tensor, pooling: tuple[Any, ...]) -> Tensor:
    """pooling: kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override."""
    return F.avg_pool2d(x, *pooling)


def adaptive_avg_pool2d(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.adaptive_avg_pool2d(x, size)


def affine(x: Tensor, scale: Tensor, shift: Tensor, activation: Activation = None) -> Tensor:
    """activation(x · scale[c] + shift[c]), c along dimension 1: a batch norm of which nothing is learned any more."""
    shape = (1, -1, *(1,) * (x.dim() - 2))
    return activate(x * scale.view(shape) + shift.view(shape), activation)


def add(x: Tensor, y: Tensor, activation: Activation = None) -> Tensor:
    return activate(x + y, activation)


def scale(x: Tensor, factors: Tensor) -> Tensor:
    """x · factors; x: (N, C, H, W), factors: (N, C, 1, 1)"""
    return x * factors


def concat(tensors: tuple[Tensor, ...], dim: int) -> Tensor:
    return torch.cat(tensors, dim)


def softmax(x: Tensor, dim: int) -> Tensor:
    return F.softmax(x, dim)


def log_softmax(x: Tensor, dim: int) -> Tensor:
    return F.log_softmax(x, dim)


def reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A view of the same numbers in the same order: no step at all."""
    return x.reshape(shape)


# Of weights alone: computed once, and again when one of them has changed. In float64: folding costs one rounding.
# All plans of a model share what FOLDED names.


def norm_scale(weight: Tensor | None, variance: Tensor, eps: float) -> Tensor:
    """γ / √(σ² + ε)"""
    scale = torch.rsqrt(variance.double() + eps)
    return scale if weight is None else scale * weight.double()


def norm_shift(bias: Tensor | None, mean: Tensor, scale: Tensor) -> Tensor:
    """β − μ · scale"""
    shift = -mean.double() * scale
    return shift if bias is None else shift + bias.double()


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype)


def scaled_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """w[o, …] · scale[o]"""
    return (weight.double() * scale.view(-1, *(1,) * (weight.dim() - 1))).to(weight.dtype)


def scaled_bias(bias: Tensor | None, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """b[o] · scale[o] + shift[o]"""
    return (shift if bias is None else bias.double() * scale + shift).to(dtype)


def packed(weight: Tensor, pack: Any) -> Tensor:
    """What a kernel packs of a weight."""
    return torch.from_numpy(pack(np.ascontiguousarray(weight.numpy())))


FOLDED = (norm_scale, norm_shift, cast, scaled_weight, scaled_bias, packed)
