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
from jitconv.compat import implicit_softmax_dim, is_observed
from jitconv.layer import Request, channels_last_as, layer

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
    return Request(ops.conv2d, (input, weight, bias, *geometry), finish=channels_last_as(input, weight))


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
    return Request(ops.max_pool2d, (input, *geometry), 2 if return_indices else 1, channels_last_as(input))


@layer
def flatten(input: Array, start_dim: int = 0, end_dim: int = -1, *, variant: Any = None) -> Array:
    """Merge the dimensions start_dim … end_dim of input into one; for images j = c·H·W + m·W + l.

    Images are copied by the variant's kernel, if it has one; all else is a view where torch returns one.
    """
    first, last = shapes.flatten(input, start_dim, end_dim)
    if "flatten" in variant.ops and (input.ndim, first, last) == (4, 1, 3):
        return Request(ops.flatten, (input,))
    shape = (*input.shape[:first], math.prod(input.shape[first : last + 1]), *input.shape[last + 1 :])
    return Request(lambda x: x.reshape(shape), (input,), any_dtype=True)


@layer
def linear(input: Array, weight: Array, bias: Array | None = None, *, variant: Any = None) -> Array:
    """Apply a fully-connected layer to input (..., I) with weight (O, I) and bias (O,): (..., O).

    z[n, j] = b[j] + Σ_i w[j, i] · x[n, i].
    """
    shapes.linear(input, weight, bias)
    return Request(ops.linear, (input, weight, bias))


def relu(input: Array, inplace: bool = False, *, variant: str | None = None) -> Array:
    """Return max(0, input) elementwise, any shape; NaN stays NaN. With `inplace` the result is written into input."""
    result = _relu(input, variant=variant)
    if inplace:
        input[...] = result
    return input if inplace else result


@layer
def _relu(input: Array, *, variant: Any) -> Array:
    shapes.arrays(input=input)
    return Request(ops.relu, (input,), finish=channels_last_as(input))


@layer
def softmax(
    input: Array, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None, *, variant: Any = None
) -> Array:
    """Return exp(x) / Σ exp(x) along `dim`, any shape, as `dtype` (torch tensors) if that is given."""
    return _along_dim(softmax, ops.softmax, input, dim, dtype, variant)


@layer
def log_softmax(
    input: Array, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None, *, variant: Any = None
) -> Array:
    """Return x − log Σ exp(x) along `dim`, any shape, as `dtype` (torch tensors) if that is given."""
    return _along_dim(log_softmax, ops.log_softmax, input, dim, dtype, variant)


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
    shapes.reduction(reduction, size_average, reduce)
    tensors = input, target, weight
    if not shapes.cross_entropy(*tensors, ignore_index, label_smoothing):  # target holds probabilities
        return Request(partial(ops.soft_cross_entropy, variant, reduction, label_smoothing), tensors)
    if input.ndim == 1 or target.dtype not in (torch.int64, np.dtype(np.int64)):
        options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
        loss = partial(cross_entropy, variant=variant.name, **options)
        shape = target.shape if reduction == "none" else ()
        return Request(lambda x, t, w: loss(torch.atleast_2d(x), torch.atleast_1d(t).long(), w).reshape(shape), tensors)
    args = *tensors, ignore_index, float(label_smoothing)
    if reduction != "none" and "reduced_cross_entropy" in variant.ops and not is_observed():  # vmap folds single losses
        return Request(ops.reduced_cross_entropy, (*args, reduction == "mean"))
    return Request(ops.cross_entropy, args, 2, finish=partial(ops.reduced, reduction))


LAYERS = ("conv2d", "max_pool2d", "flatten", "linear", "relu", "softmax", "log_softmax", "cross_entropy")
for _name in LAYERS:
    torch.fx.wrap(_name)  # torch.fx.symbolic_trace records the call and looks no further


def _along_dim(layer: Any, op: Any, input: Array, dim: int | None, dtype: Any, variant: Any) -> Request:
    """The request of softmax or log_softmax."""
    if dim is None:
        dim = implicit_softmax_dim(op.name, input.ndim, 5)  # torch's choice, with its warning
    if dtype is None:
        return Request(op, (input, shapes.softmax(input, dim)))
    dtype = dtype if isinstance(dtype, torch.dtype) else getattr(torch, np.dtype(dtype).name)
    return Request(lambda x: layer(x.to(dtype), dim, variant=variant.name), (input,), any_dtype=True)
