"""The layers as functions with torch.nn.functional's signatures, plus `variant=`.

NumPy arrays in give NumPy arrays out; torch tensors in give tensors out, differentiable. Every function checks its
arguments (shapes.py), picks the variant (None: the best for the input's device) and runs the op (ops.py).
Raises TypeError or ValueError naming the argument, its value and the rule.

float16 and bfloat16 tensors are computed in float32 and the result is cast back to input's dtype. torch.autocast casts
nothing (a float32 input gives a float32 result), but lets the three dtypes meet in one layer. Images (N, C, H, W) in
channels_last give results in channels_last where torch's do. Forward-mode derivatives raise NotImplementedError.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from jitconv import ops, shapes
from jitconv.compat import implicit_softmax_dim
from jitconv.layer import Request, layer
from jitconv.op import is_observed

Array = Any  # a NumPy array or a torch tensor; what comes in goes out
Size = int | Sequence[int]  # one for both directions, or (vertical, horizontal)


@layer
def conv2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    variant: Any = None,
) -> Array:
    """Convolve input (N, C_in, H, W) with weight (C_out, C_in/groups, K_h, K_w): (N, C_out, H_out, W_out).

    z[n, o, m, l] = b[o] + Σ_c Σ_i Σ_j x[n, c, m·s + i·d − p, l·s + j·d − p] · w[o, c, i, j]; see docs/equations.md.
    """
    geometry = shapes.conv2d(input, weight, bias, stride, padding, dilation, groups)
    args = input, weight, bias, *geometry
    return Request(ops.conv2d, args, images=True, **_as_batch(input, weight.shape[0], geometry.size))


@layer
def max_pool2d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    variant: Any = None,
) -> Array | tuple[Array, Array]:
    """Take the maximum over every window of input (N, C, H, W): (N, C, H_out, W_out).

    With `return_indices` also its flat index m·W + l in the input plane, int64. A NaN is larger than any number.
    """
    geometry = shapes.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode)
    batch = _as_batch(input, input.shape[-3], geometry.size)
    return Request(ops.max_pool2d, (input, *geometry), 2 if return_indices else 1, images=True, **batch)


@layer
def flatten(input: Array, start_dim: int = 0, end_dim: int = -1, *, variant: Any = None) -> Array:
    """Merge the dimensions start_dim … end_dim of input into one; for images j = c·H·W + m·W + l.

    Variants without a flatten of their own return a view where torch would.
    """
    first, last = shapes.flatten(input, start_dim, end_dim)
    merged = math.prod(input.shape[first : last + 1])
    shape = (*input.shape[:first], merged, *input.shape[last + 1 :])
    if "flatten" not in variant.ops or first == last:
        return Request(None, (input,), finish=lambda x: x.reshape(shape), is_view=True)
    image = input.shape if input.ndim == 4 and first == 1 and last == 3 else (1, 1, 1, math.prod(input.shape))
    return Request(ops.flatten, (input,), views={0: image}, result=shape)


@layer
def linear(input: Array, weight: Array, bias: Array | None = None, *, variant: Any = None) -> Array:
    """Apply a fully-connected layer to input (..., I) with weight (O, I) and bias (O,): (..., O).

    z[n, j] = b[j] + Σ_i w[j, i] · x[n, i].
    """
    shapes.linear(input, weight, bias)
    if input.ndim == 2:
        return Request(ops.linear, (input, weight, bias))
    lead = tuple(input.shape[:-1])
    rows = math.prod(lead), input.shape[-1]
    return Request(ops.linear, (input, weight, bias), views={0: rows}, result=(*lead, weight.shape[0]))


def relu(input: Array, inplace: bool = False, *, variant: str | None = None) -> Array:
    """Return max(0, input) elementwise, any shape; NaN stays NaN. With `inplace` the result is written into input."""
    result = _relu(input, variant=variant)
    if not inplace:
        return result
    if isinstance(input, torch.Tensor):
        return input.copy_(result)
    input[...] = result
    return input


@layer
def _relu(input: Array, *, variant: Any) -> Array:
    shapes.arrays(input=input)
    return Request(ops.relu, (input,), images=True)


def softmax(
    input: Array,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
    *,
    variant: str | None = None,
) -> Array:
    """Return exp(x) / Σ exp(x) along `dim`, any shape, as `dtype` (torch tensors) if that is given."""
    return _softmax(*_along("softmax", input, dim, dtype), variant=variant)


@layer
def _softmax(input: Array, dim: int, *, variant: Any) -> Array:
    return Request(ops.softmax, (input, shapes.softmax(input, dim)))


def log_softmax(
    input: Array,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
    *,
    variant: str | None = None,
) -> Array:
    """Return x − log Σ exp(x) along `dim`, any shape, as `dtype` (torch tensors) if that is given."""
    return _log_softmax(*_along("log_softmax", input, dim, dtype), variant=variant)


@layer
def _log_softmax(input: Array, dim: int, *, variant: Any) -> Array:
    return Request(ops.log_softmax, (input, shapes.softmax(input, dim)))


@layer
def cross_entropy(
    input: Array,
    target: Array,
    weight: Array | None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    variant: Any = None,
) -> Array:
    """Return −log softmax(input)[target] for logits (C,), (N, C) or (N, C, d1, …), reduced as torch reduces it.

    target holds class indices (input's shape without C) or class probabilities (input's shape); weight: (C,).
    `size_average` and `reduce`, deprecated in torch, must stay None.
    """
    if size_average is not None or reduce is not None:
        raise ValueError(f"reduction must be used, not size_average={size_average!r} or reduce={reduce!r}")
    by_index = shapes.cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing)
    tensors, name = (input, target, weight), variant.name
    if not by_index and not variant.whole:
        options = {"reduction": reduction, "smoothing": label_smoothing, "variant": name}
        return Request(None, tensors, finish=partial(_soft_cross_entropy, **options))
    if by_index and target.dtype not in (torch.int64, np.dtype(np.int64)) and not variant.whole:
        options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
        long = partial(cross_entropy, variant=name, **options)
        return Request(None, tensors, finish=lambda x, bytes, w: long(x, bytes.long(), w))
    args = *tensors, ignore_index, float(label_smoothing)
    single: dict[str, Any] = {"views": {0: (1, *input.shape), 1: (1,)}} if input.ndim == 1 else {}
    if reduction != "none" and "reduced_cross_entropy" in variant.ops and not is_observed():  # vmap folds single losses
        return Request(ops.reduced_cross_entropy, (*args, reduction == "mean"), **single)
    return Request(ops.cross_entropy, args, 2, finish=partial(_reduced, reduction=reduction), **single)


LAYERS = {f.__name__: f for f in (conv2d, max_pool2d, flatten, linear, relu, softmax, log_softmax, cross_entropy)}
for _name in LAYERS:
    torch.fx.wrap(_name)  # torch.fx.symbolic_trace records the call and looks no further


def _as_batch(input: Array, channels: int, size: tuple[int, int]) -> dict[str, Any]:
    """How a single image (C, H, W) is seen: as a batch of one."""
    return {} if input.ndim == 4 else {"views": {0: (1, *input.shape)}, "result": (channels, *size)}


def _along(layer: str, input: Array, dim: int | None, dtype: Any) -> tuple[Array, int]:
    if dtype is not None:
        input = input.to(dtype) if isinstance(input, torch.Tensor) else input.astype(dtype)
    return input, implicit_softmax_dim(layer, input.ndim, 4) if dim is None else dim  # torch's choice, with its warning


def _soft_cross_entropy(
    input: torch.Tensor, target: torch.Tensor, weight: Any, reduction: str, smoothing: float, variant: str
) -> torch.Tensor:
    """−Σ_c w[c] · t[c] · log_softmax(input)[c] with t = (1 − ε)·target + ε/C; 'mean' counts every sample as one."""
    class_dim = 0 if input.ndim == 1 else 1
    log_p = log_softmax(input, class_dim, variant=variant)
    pulls = target * (1 - smoothing) + smoothing / input.shape[class_dim]
    if weight is not None:
        pulls = pulls * weight.reshape(-1, *[1] * (input.ndim - class_dim - 1))
    losses = -(log_p * pulls).sum(class_dim)
    return _reduced(losses, losses.new_tensor(losses.numel()), reduction)


def _reduced(losses: torch.Tensor, weights: torch.Tensor, reduction: str) -> torch.Tensor:
    if reduction == "none":
        return losses
    return losses.sum() / weights.sum() if reduction == "mean" else losses.sum()
