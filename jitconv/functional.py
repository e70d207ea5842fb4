"""The layers as functions with torch.nn.functional's signatures, plus `variant=`.

NumPy arrays in give NumPy arrays out; torch tensors in give tensors out, differentiable. Every function checks its
arguments (shapes.py), picks the variant (None: the best for the input's device) and runs the op (ops.py).
Raises TypeError or ValueError naming the argument, its value and the rule.

float16 and bfloat16 tensors are computed in float32 and the result is cast back to input's dtype. torch.autocast casts
nothing (a float32 input gives a float32 result), but lets the three dtypes meet in one layer. Images (N, C, H, W) in
channels_last give results in channels_last where torch's do. Forward-mode derivatives raise NotImplementedError.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch._prims_common import suggest_memory_format
from torch.nn.functional import _get_softmax_dim  # type: ignore[attr-defined]

from jitconv import ops, shapes, variants
from jitconv.calls import View, observed, record, remembered
from jitconv.variants import Variant

Array = Any  # a NumPy array or a torch tensor; what comes in goes out
Size = int | Sequence[int]  # one for both directions, or (vertical, horizontal)


@remembered
def conv2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    variant: str | None = None,
) -> Array:
    """Convolve input (N, C_in, H, W) with weight (C_out, C_in/groups, K_h, K_w): (N, C_out, H_out, W_out).

    z[n, o, m, l] = b[o] + Σ_c Σ_i Σ_j x[n, c, m·s + i·d − p, l·s + j·d − p] · w[o, c, i, j]; see docs/equations.md.
    """
    geometry = shapes.conv2d(input, weight, bias, stride, padding, dilation, groups)
    chosen = _resolve(variant, input, weight, bias)
    if chosen.whole:
        return _whole(chosen, "conv2d", input, weight, bias, stride, padding, dilation, groups)
    out = _batched(input, lambda x: ops.conv2d(chosen, x, weight, bias, *geometry))
    return _as_channels_last(out) if _channels_last(input) or _channels_last(weight) else out


@remembered
def max_pool2d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    variant: str | None = None,
) -> Array | tuple[Array, Array]:
    """Take the maximum over every window of input (N, C, H, W): (N, C, H_out, W_out).

    With `return_indices` also its flat index m·W + l in the input plane, int64. A NaN is larger than any number.
    """
    geometry = shapes.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode)
    chosen = _resolve(variant, input)
    if chosen.whole:
        return _whole(chosen, "max_pool2d", input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    out, indices = _batched(input, lambda x: ops.max_pool2d(chosen, x, *geometry))
    if _channels_last(input):
        out, indices = _as_channels_last(out), _as_channels_last(indices)
    return (out, indices) if return_indices else out


@remembered
def conv2d_max_pool2d(
    input: Array,
    weight: Array,
    bias: Array | None,
    convolution: tuple[Any, ...],
    pooling: tuple[Any, ...],
    *,
    variant: str | None = None,
) -> Array:
    """Return max_pool2d(conv2d(input, weight, bias, *convolution), *pooling), in one pass if the variant has one.

    convolution: stride, padding, dilation, groups; pooling: kernel_size, stride, padding, dilation, ceil_mode.
    """
    chosen = _resolve(variant, input, weight, bias)
    if not _fuses(chosen, "conv2d_max_pool2d", input, weight):
        return max_pool2d(conv2d(input, weight, bias, *convolution, variant=variant), *pooling, variant=variant)
    geometry = shapes.conv2d(input, weight, bias, *convolution)
    windows = shapes.pooling((*input.shape[:-3], weight.shape[0], *geometry.size), *pooling)
    out, _ = _batched(input, lambda x: ops.conv2d_max_pool2d(chosen, x, weight, bias, *geometry, *windows))
    return out


@remembered
def conv2d_relu(
    input: Array, weight: Array, bias: Array | None, convolution: tuple[Any, ...], *, variant: str | None = None
) -> Array:
    """Return relu(conv2d(input, weight, bias, *convolution)), in one pass if the variant has one.

    convolution: stride, padding, dilation, groups.
    """
    chosen = _resolve(variant, input, weight, bias)
    if not _fuses(chosen, "conv2d_relu", input, weight):
        return relu(conv2d(input, weight, bias, *convolution, variant=variant), variant=variant)
    geometry = shapes.conv2d(input, weight, bias, *convolution)
    return _batched(input, lambda x: ops.conv2d_relu(chosen, x, weight, bias, *geometry))


def conv2d_relu_max_pool2d(
    input: Array,
    weight: Array,
    bias: Array | None,
    convolution: tuple[Any, ...],
    pooling: tuple[Any, ...],
    *,
    variant: str | None = None,
) -> Array:
    """Return max_pool2d(relu(conv2d(input, weight, bias, *convolution)), *pooling); see conv2d_max_pool2d.

    In a variant that pools as it convolves relu comes last and sees the maxima alone. The result equals that of the
    layers in turn but for the sign of a zero: see docs/equations.md.
    """
    args = input, weight, bias, convolution
    if _fuses(_resolve(variant, input, weight, bias), "conv2d_max_pool2d", input, weight):
        return relu(conv2d_max_pool2d(*args, pooling, variant=variant), variant=variant)
    return max_pool2d(conv2d_relu(*args, variant=variant), *pooling, variant=variant)


@remembered
def flatten(input: Array, start_dim: int = 0, end_dim: int = -1, *, variant: str | None = None) -> Array:
    """Merge the dimensions start_dim … end_dim of input into one; for images j = c·H·W + m·W + l.

    Variants without a flatten of their own return a view where torch would.
    """
    first, last = shapes.flatten(input, start_dim, end_dim)
    chosen = _resolve(variant, input)
    merged = math.prod(input.shape[first : last + 1])
    shape = (*input.shape[:first], merged, *input.shape[last + 1 :])
    if "flatten" not in chosen.ops or first == last:
        result = input.reshape(shape)
        record(View(shape), (input,), result)
        return result
    if chosen.whole:
        return _whole(chosen, "flatten", input, start_dim, end_dim)
    image = input.shape if input.ndim == 4 and first == 1 and last == 3 else (1, 1, 1, math.prod(input.shape))
    return ops.flatten(chosen, input.reshape(image)).reshape(shape)


@remembered
def linear(input: Array, weight: Array, bias: Array | None = None, *, variant: str | None = None) -> Array:
    """Apply a fully-connected layer to input (..., I) with weight (O, I) and bias (O,): (..., O).

    z[n, j] = b[j] + Σ_i w[j, i] · x[n, i].
    """
    shapes.linear(input, weight, bias)
    chosen = _resolve(variant, input, weight, bias)
    if chosen.whole:
        return _whole(chosen, "linear", input, weight, bias)
    return _by_rows(input, lambda x: ops.linear(chosen, x, weight, bias))


@remembered
def linear_relu(input: Array, weight: Array, bias: Array | None = None, *, variant: str | None = None) -> Array:
    """Return relu(linear(input, weight, bias)), in one pass if the variant has one."""
    chosen = _resolve(variant, input, weight, bias)
    if not _fuses(chosen, "linear_relu"):
        return relu(linear(input, weight, bias, variant=variant), variant=variant)
    shapes.linear(input, weight, bias)
    return _by_rows(input, lambda x: ops.linear_relu(chosen, x, weight, bias))


@remembered
def relu(input: Array, inplace: bool = False, *, variant: str | None = None) -> Array:
    """Return max(0, input) elementwise, any shape; NaN stays NaN. With `inplace` the result is written into input."""
    shapes.arrays(input=input)
    chosen = _resolve(variant, input)
    if chosen.whole:
        result = _whole(chosen, "relu", input)
    elif _channels_last(input):  # in the order of its memory, which the result then has too
        result = ops.relu(chosen, input.movedim(1, -1)).movedim(-1, 1)
    else:
        result = ops.relu(chosen, input)
    if not inplace:
        return result
    if isinstance(input, torch.Tensor):
        return input.copy_(result)
    input[...] = result
    return input


@remembered
def softmax(
    input: Array,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
    *,
    variant: str | None = None,
) -> Array:
    """Return exp(x) / Σ exp(x) along `dim`, any shape, as `dtype` (torch tensors) if that is given."""
    return _along(ops.softmax, "softmax", input, dim, dtype, variant)


@remembered
def log_softmax(
    input: Array,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
    *,
    variant: str | None = None,
) -> Array:
    """Return x − log Σ exp(x) along `dim`, any shape, as `dtype` (torch tensors) if that is given."""
    return _along(ops.log_softmax, "log_softmax", input, dim, dtype, variant)


@remembered
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
    variant: str | None = None,
) -> Array:
    """Return −log softmax(input)[target] for logits (C,), (N, C) or (N, C, d1, …), reduced as torch reduces it.

    target holds class indices (input's shape without C) or class probabilities (input's shape); weight: (C,).
    `size_average` and `reduce`, deprecated in torch, must stay None.
    """
    if size_average is not None or reduce is not None:
        raise ValueError(f"reduction must be used, not size_average={size_average!r} or reduce={reduce!r}")
    losses, weights, *_ = _losses(input, target, weight, ignore_index, reduction, label_smoothing, variant=variant)
    return losses if weights is None else _reduced(losses, weights, reduction)


@remembered
def _losses(
    input: Array, target: Array, weight: Array | None, ignore_index: int, reduction: str, label_smoothing: float,
    *, variant: str | None,
) -> tuple[Array, ...]:  # fmt: skip
    """The loss and the weight of every sample, or the loss as it is to be returned, and None."""
    by_index = shapes.cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing)
    chosen = _resolve(variant, input, weight)
    if chosen.whole:
        options = (None, ignore_index, None, reduction, label_smoothing)
        try:
            return _whole(chosen, "cross_entropy", input, target, weight, *options), None
        except IndexError as error:
            raise ValueError(f"target must hold classes of input or ignore_index {ignore_index}: {error}") from None
    if not by_index:
        return _soft_losses(chosen, input, target, weight, label_smoothing)
    target, how = _int64(target), (weight, ignore_index, float(label_smoothing))
    single = input.ndim == 1
    if single:
        input, target = input[None], target[None]
    if reduction != "none" and "reduced_cross_entropy" in chosen.ops and not observed():  # vmap folds single losses
        loss, _ = ops.reduced_cross_entropy(chosen, input, target, *how, reduction == "mean")
        return loss, None
    results = ops.cross_entropy(chosen, input, target, *how)
    return (results[0][0], results[1][0]) if single else results


SOFTMAX_FAMILY = (softmax, log_softmax, cross_entropy)
LAYERS = {layer.__name__: layer for layer in (conv2d, max_pool2d, flatten, linear, relu, *SOFTMAX_FAMILY)}
ONE_PASS = (conv2d_max_pool2d, conv2d_relu, conv2d_relu_max_pool2d, linear_relu)
for _name in (*LAYERS, *(layers.__name__ for layers in ONE_PASS)):
    torch.fx.wrap(_name)  # torch.fx.symbolic_trace records the call and looks no further


def _soft_losses(
    variant: Variant, input: Array, target: Array, weight: Array | None, smoothing: float
) -> tuple[Array, Array]:
    """−Σ_c w[c] · t[c] · log_softmax(input)[c] with t = (1 − ε)·target + ε/C; 'mean' counts every sample as one."""
    class_dim = 0 if input.ndim == 1 else 1
    log_p = log_softmax(input, class_dim, variant=variant.name)
    pulls = target * (1 - smoothing) + smoothing / input.shape[class_dim]
    if weight is not None:
        pulls = pulls * weight.reshape(-1, *[1] * (input.ndim - class_dim - 1))
    losses = -(log_p * pulls).sum(class_dim)
    return losses, np.float64(math.prod(losses.shape))


def _reduced(losses: Array, weights: Array, reduction: str) -> Array:
    if reduction == "none":
        return losses
    total = losses.sum()
    if isinstance(total, torch.Tensor):
        return total / weights.sum() if reduction == "mean" else total
    if reduction == "mean":
        with np.errstate(invalid="ignore"):  # no sample at all has the mean NaN, as in torch
            total = total / weights.sum()
    return np.asarray(total, losses.dtype)


def _along(
    op: Callable[..., Array], layer: str, input: Array, dim: int | None, dtype: Any, variant: str | None
) -> Array:
    """Run a softmax-like op along `dim` of an input of any shape."""
    if dtype is not None:
        input = input.to(dtype) if isinstance(input, torch.Tensor) else input.astype(dtype)
    if dim is None:
        dim = _get_softmax_dim(layer, input.ndim, 4)  # torch's implicit choice, with its warning
    axis = shapes.softmax(input, dim)
    chosen = _resolve(variant, input)
    if chosen.whole:
        return _whole(chosen, layer, input, dim)
    return op(chosen, input, axis)


def _resolve(variant: str | None, input: Array, *others: Array | None) -> Variant:
    if not isinstance(input, torch.Tensor):
        return variants.resolve(variant, "cpu")
    device = input.device.type
    chosen = variants.resolve(variant, "cpu" if device == "meta" else device)
    half = any(tensor is not None and tensor.dtype in shapes.HALVES for tensor in (input, *others))
    return _in_float32(chosen.name) if half and not chosen.whole else chosen


def _fuses(variant: Variant, op: str, *images: Array) -> bool:
    """Whether a variant has the op, and the order of these arrays in memory leaves it to it."""
    return op in variant.ops and not variant.whole and not any(map(_channels_last, images))


def _in_float32(name: str) -> Variant:
    """Return the variant for tensors in half precision: its layers compute in float32 and cast the result back.

    The softmax family's results stay float32 under torch.autocast, where a loss may be scaled beyond float16.
    """

    def widened(layer: Callable[..., Any]) -> Callable[..., Any]:
        def run(input: Array, *args: Any) -> Any:
            args = tuple(_float32(a) for a in args)
            results = layer(_float32(input), *args, variant=name)
            if layer in SOFTMAX_FAMILY and torch.is_autocast_enabled(input.device.type):
                return results
            if isinstance(results, tuple):
                return results[0].to(input.dtype), results[1]
            return results.to(input.dtype)

        return run

    original = variants.get(name)
    return replace(original, ops={name: widened(LAYERS[name]) for name in original.ops if name in LAYERS}, whole=True)


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype in shapes.HALVES else value


def _channels_last(x: Array) -> bool:
    """Whether torch takes x for images (N, C, H, W) whose channels lie side by side in memory."""
    if not isinstance(x, torch.Tensor) or x.ndim != 4 or x.stride(1) > x.stride(3):
        return False
    return suggest_memory_format(x) == torch.channels_last


def _as_channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _whole(variant: Variant, layer: str, *args: Any) -> Array:
    """Call a variant's complete torch function, through tensors that share the memory of NumPy arrays."""
    if isinstance(args[0], torch.Tensor):
        return variant.ops[layer](*args)
    tensors = (
        torch.from_numpy(np.require(a, requirements=["C", "W"])) if isinstance(a, np.ndarray) else a for a in args
    )
    result = variant.ops[layer](*tensors)
    return tuple(r.numpy() for r in result) if isinstance(result, tuple) else result.numpy()


def _batched(input: Array, run: Callable[[Array], Any]) -> Any:
    """Run on images (N, C, H, W); a single (C, H, W) is a batch of one."""
    if input.ndim == 4:
        return run(input)
    result = run(input[None])
    return tuple(r[0] for r in result) if isinstance(result, tuple) else result[0]


def _by_rows(input: Array, run: Callable[[Array], Array]) -> Array:
    """Run on rows (N, I); all but the last dimension of another input are merged into N, and restored."""
    if input.ndim == 2:
        return run(input)
    lead = tuple(input.shape[:-1])
    rows = run(input.reshape(math.prod(lead), input.shape[-1]))
    return rows.reshape(*lead, rows.shape[-1])


def _int64(target: Array) -> Array:
    return target.long() if isinstance(target, torch.Tensor) else target.astype(np.int64, copy=False)
