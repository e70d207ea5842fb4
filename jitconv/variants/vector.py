"""`vector`: the layers in matrix form, on NumPy arrays (CPU) or torch tensors (CUDA) alike.

im2col copies every window of the input into one column of C_in·K_h·K_w values, so that the convolution is the
matrix product Z = W·X_col + B; col2im is its transpose and carries gradients back. The loops here run over the
taps of a kernel, K_h·K_w of them, never over images or pixels.
"""

import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from jitconv.variants import Variant
from jitconv.variants.rounding import block_of

Array = Any  # a NumPy array or, on a GPU, a torch tensor: both understand all that is done with them here
Pair = tuple[int, int]


def _library(array: Array) -> ModuleType:
    if isinstance(array, np.ndarray):
        return np
    import torch  # only ever reached with a tensor, so it is loaded already

    return torch


def _arange(like: Array, stop: int) -> Array:
    return np.arange(stop) if isinstance(like, np.ndarray) else _library(like).arange(stop, device=like.device)


def _full(like: Array, shape: tuple[int, ...], value: float) -> Array:
    return np.full(shape, value, like.dtype) if isinstance(like, np.ndarray) else like.new_full(shape, value)


def matmul(a: Array, b: Array, out: Array | None = None) -> Array:
    """Return a: (…, M, K) times b: (…, K, N), in `out` if given, a block of terms after the other.

    A BLAS library may add up all terms in one chain, whose rounding error grows with its length.
    """
    K, product = a.shape[-1], _library(a).matmul
    block = block_of(K)
    total = product(a[..., :block], b[..., :block, :], out=out)
    for k in range(block, K, block):
        total += product(a[..., k : k + block], b[..., k : k + block, :])
    return total


# windows -------------------------------------------------------------------------------------------------


class Windows(NamedTuple):
    """Where a kernel's windows lie on an image; `size` of them, (H_out, W_out)."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    size: Pair

    def planes(self, like: Array, shape: tuple[int, ...], value: float) -> tuple[Array, Array]:
        """Return planes that hold every window, filled with `value`, and the view of them that is the image."""
        (K_h, K_w), (s_h, s_w), (top, left), (d_h, d_w), (H_out, W_out) = self
        N, C, H, W = shape
        height = max((H_out - 1) * s_h + d_h * (K_h - 1) + 1, top + H)
        width = max((W_out - 1) * s_w + d_w * (K_w - 1) + 1, left + W)
        planes = _full(like, (N, C, height, width), value)
        return planes, planes[:, :, top : top + H, left : left + W]

    def taps(self, planes: Array) -> Iterator[Array]:
        """Yield, tap by tap, the values it meets under every window: views of shape (N, C, H_out, W_out)."""
        (K_h, K_w), (s_h, s_w), _, (d_h, d_w), (H_out, W_out) = self
        for i in range(0, K_h * d_h, d_h):
            for j in range(0, K_w * d_w, d_w):
                yield planes[:, :, i : i + (H_out - 1) * s_h + 1 : s_h, j : j + (W_out - 1) * s_w + 1 : s_w]

    def indices(self, like: Array, H: int, W: int) -> Iterator[Array]:
        """Yield, tap by tap, the flat index m·W + l it meets under every window, −1 in the padding."""
        index = _arange(like, H * W).reshape(1, 1, H, W)
        planes, image = self.planes(index, index.shape, -1)
        image[...] = index
        return self.taps(planes)


def im2col(x: Array, windows: Windows) -> Array:
    """Copy the windows of x: (N, C, H, W) into columns: (N, C, K_h·K_w, H_out, W_out)."""
    planes, image = windows.planes(x, x.shape, 0)
    image[...] = x
    columns = _full(x, (*x.shape[:2], windows.kernel[0] * windows.kernel[1], *windows.size), 0)
    for k, values in enumerate(windows.taps(planes)):
        columns[:, :, k] = values
    return columns


def col2im(columns: Array, windows: Windows, out: Array) -> None:
    """Add columns (N, C, K_h·K_w, H_out, W_out) up where im2col took them from, out: (N, C, H, W)."""
    planes, image = windows.planes(out, out.shape, 0)
    for k, values in enumerate(windows.taps(planes)):
        values += columns[:, :, k]
    out[...] = image


# conv2d --------------------------------------------------------------------------------------------------


def _matrices(weight: Array, groups: int) -> Array:
    """weight: (C_out, C_in/groups, K_h, K_w) as W: (groups, C_out/groups, C_in/groups·K_h·K_w)"""
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def _grouped(columns: Array, groups: int) -> Array:
    """columns: (N, C_in, K_h·K_w, H_out, W_out) as X_col: (N, groups, C_in/groups·K_h·K_w, H_out·W_out)"""
    N, C_in, K, H_out, W_out = columns.shape
    return columns.reshape(N, groups, C_in // groups * K, H_out * W_out)


def conv2d(x: Array, weight: Array, bias: Array, stride: Pair, padding: Pair, dilation: Pair, out: Array) -> None:
    """Z = W·X_col + B, for each image and group"""
    N, C_out, H_out, W_out = out.shape
    groups = x.shape[1] // weight.shape[1]
    columns = im2col(x, Windows(weight.shape[2:], stride, padding, dilation, (H_out, W_out)))
    z = out.reshape(N, groups, C_out // groups, H_out * W_out)
    matmul(_matrices(weight, groups), _grouped(columns, groups), z)
    out += bias[:, None, None]


def conv2d_grad_input(grad: Array, weight: Array, stride: Pair, padding: Pair, dilation: Pair, out: Array) -> None:
    """∂X_col = Wᵀ·∂Z, then col2im"""
    N, C_out, H_out, W_out = grad.shape
    K_h, K_w = weight.shape[2:]
    groups = out.shape[1] // weight.shape[1]
    dz = grad.reshape(N, groups, C_out // groups, H_out * W_out)
    columns = matmul(_matrices(weight, groups).swapaxes(1, 2), dz).reshape(N, out.shape[1], K_h * K_w, H_out, W_out)
    col2im(columns, Windows((K_h, K_w), stride, padding, dilation, (H_out, W_out)), out)


def conv2d_grad_weight(grad: Array, x: Array, stride: Pair, padding: Pair, dilation: Pair, out: Array) -> None:
    """∂W = Σ_n ∂Z·X_colᵀ"""
    N, C_out, H_out, W_out = grad.shape
    groups = x.shape[1] // out.shape[1]
    columns = im2col(x, Windows(out.shape[2:], stride, padding, dilation, (H_out, W_out)))
    dz = grad.reshape(N, groups, C_out // groups, H_out * W_out)
    terms = matmul(dz, _grouped(columns, groups).swapaxes(2, 3))
    out[...] = terms.sum(0).reshape(out.shape)


def conv2d_grad_bias(grad: Array, out: Array) -> None:
    out[...] = grad.sum((0, 2, 3))


# max_pool2d ----------------------------------------------------------------------------------------------


def max_pool2d(
    x: Array, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, out: Array, indices: Array
) -> None:
    """The scalar body's rule, one tap of all windows at a time: the first maximum wins, the last NaN over all."""
    windows = Windows(kernel_size, stride, padding, dilation, out.shape[2:])
    where = _library(x).where
    planes, image = windows.planes(x, x.shape, 0)
    image[...] = x
    out[...] = -math.inf  # of a window that meets no pixel
    indices[...] = -1
    for values, index in zip(windows.taps(planes), windows.indices(x, *x.shape[2:]), strict=True):
        better = (index >= 0) & ((indices < 0) | (values > out) | (values != values))
        out[...] = where(better, values, out)
        indices[...] = where(better, index, indices)


def max_pool2d_grad_input(
    grad: Array, indices: Array, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, out: Array
) -> None:
    """∂Z added up where the indices say it came from"""
    windows = Windows(kernel_size, stride, padding, dilation, grad.shape[2:])
    planes, image = windows.planes(grad, out.shape, 0)
    taps = list(zip(windows.taps(planes), windows.indices(grad, *out.shape[2:]), strict=True))
    for values, index in reversed(taps):  # the last tap meets the first window: the order in which torch adds
        values += _library(grad).where(indices == index, grad, 0)
    out[...] = image


# linear, relu --------------------------------------------------------------------------------------------


def linear(x: Array, weight: Array, bias: Array, out: Array) -> None:
    """Z = X·Wᵀ + B"""
    matmul(x, weight.swapaxes(0, 1), out)
    out += bias


def linear_grad_input(grad: Array, weight: Array, out: Array) -> None:
    """∂X = ∂Z·W"""
    matmul(grad, weight, out)


def linear_grad_weight(grad: Array, x: Array, out: Array) -> None:
    """∂W = ∂Zᵀ·X"""
    matmul(grad.swapaxes(0, 1), x, out)


def linear_grad_bias(grad: Array, out: Array) -> None:
    out[...] = grad.sum(0)


def relu(x: Array, out: Array) -> None:
    out[...] = _library(x).where(x < 0, 0, x)


def relu_grad_input(grad: Array, z: Array, out: Array) -> None:
    out[...] = _library(grad).where(z <= 0, 0, grad)


# softmax, log_softmax, cross_entropy ---------------------------------------------------------------------


def _shifted(x: Array) -> Array:
    return x - _library(x).amax(x, axis=1, keepdims=True)


def softmax(x: Array, out: Array) -> None:
    out[...] = _library(x).exp(_shifted(x))
    out /= out.sum(axis=1, keepdims=True)


def softmax_grad_input(grad: Array, z: Array, out: Array) -> None:
    out[...] = z * (grad - (grad * z).sum(axis=1, keepdims=True))


def log_softmax(x: Array, out: Array) -> None:
    shifted = _shifted(x)
    out[...] = shifted - _library(x).log(_library(x).exp(shifted).sum(axis=1, keepdims=True))


def log_softmax_grad_input(grad: Array, z: Array, out: Array) -> None:
    out[...] = grad - _library(z).exp(z) * grad.sum(axis=1, keepdims=True)


def _classes(target: Array, classes: int) -> Array:
    """[c = y] as booleans: (N, C, D)."""
    return target[:, None] == _arange(target, classes)[:, None]


def cross_entropy(
    x: Array, target: Array, weight: Array, ignore_index: int, smoothing: float,
    losses: Array, weights: Array, log_p: Array,
) -> None:  # fmt: skip
    where = _library(x).where
    log_softmax(x, log_p)
    hit = _classes(target, x.shape[1])
    pull = -weight[:, None] * log_p
    kept = target != ignore_index
    loss = where(hit, pull, 0).sum(1)
    if smoothing > 0:
        loss = (1 - smoothing) * loss + smoothing * pull.mean(1)
    losses[...] = where(kept, loss, 0)
    weights[...] = where(kept, where(hit, weight[:, None], 0).sum(1), 0)


def cross_entropy_grad_input(
    grad: Array, log_p: Array, target: Array, weight: Array, ignore_index: int, smoothing: float, out: Array
) -> None:
    where = _library(grad).where
    C = log_p.shape[1]
    pull = weight[:, None] * (where(_classes(target, C), 1 - smoothing, 0) + smoothing / C)
    push = _library(log_p).exp(log_p) * pull.sum(axis=1, keepdims=True)
    out[...] = where((target != ignore_index)[:, None], grad[:, None] * (push - pull), 0)


VARIANTS = (
    Variant(
        "vector",
        "any",
        {
            kernel.__name__: kernel
            for kernel in (
                conv2d, conv2d_grad_input, conv2d_grad_weight, conv2d_grad_bias,
                max_pool2d, max_pool2d_grad_input,
                linear, linear_grad_input, linear_grad_weight, linear_grad_bias,
                relu, relu_grad_input,
                softmax, softmax_grad_input, log_softmax, log_softmax_grad_input,
                cross_entropy, cross_entropy_grad_input,
            )
        },
    ),
)  # fmt: skip
