"""How wrong a Winograd convolution may be: c · Σ_c ‖pixels of the tile‖∞ · ‖filter‖₁, in units of eps, for every input.

docs/equations.md derives it. It holds where that sum is finite; calls with other numbers go the direct way.
"""

from typing import Any

import numpy as np

from jitconv.variants.winograd.table import Geometry, Pair, Shape, geometry_of, method
from jitconv.variants.winograd.transforms import matrices, roundings


def growth(m: int) -> float:
    """κ²: what the transforms, all their numbers positive, make of pixels of 1 and one tap of 1, at most."""
    b, g, a = map(np.abs, matrices(m))
    return float((a * b.sum(1) @ g).max() ** 2)


def factor(m: int, C: int) -> float:
    """c, for sums over C channels: eps/2 for each rounding on the longest way; and a thousandth for their products."""
    return 1.001 * roundings(m, C) / 2 * growth(m)


def conv2d(x: Any, weight: Any, bias: Any, stride: Pair, padding: Pair, dilation: Pair, size: Shape) -> Any:
    """The bound for every element of conv2d, (N, C_out, H_out, W_out), float64; None where jit-tiled's holds."""
    geometry = geometry_of(x.shape, weight.shape, size, False)
    m = method(geometry, weight.shape, stride, dilation, False)
    if m is None:
        return None
    norms = abs(weight).sum((2, 3), np.float64).reshape(geometry.groups, geometry.K, geometry.C)
    return _allowed(geometry, m, x, norms, (-padding[0], -padding[1])) + abs(bias)[:, None, None]


def conv2d_grad_input(grad: Any, weight: Any, stride: Pair, padding: Pair, dilation: Pair, size: Shape) -> Any:
    """The bound for every element of the gradient for the input."""
    geometry = geometry_of(grad.shape, weight.shape, size, True)
    m = method(geometry, weight.shape, stride, dilation, True)
    if m is None:
        return None
    norms = abs(weight).sum((2, 3), np.float64).reshape(geometry.groups, geometry.C, geometry.K).swapaxes(1, 2)
    return _allowed(geometry, m, grad, norms, (padding[0] - 2, padding[1] - 2))


def _allowed(geometry: Geometry, m: int, x: np.ndarray, norms: np.ndarray, corner: Pair) -> np.ndarray:
    """From images and the norms of filters (groups, K, C); what underflows counts as the smallest normal number."""
    (N, groups, C, K, H, W), tiny = geometry, float(np.finfo(x.dtype).tiny)
    down, across = geometry.tiles(m)
    pixels = np.zeros((N, groups * C, down * m + 2, across * m + 2))
    target, source = [], []
    for first, size, length in zip(corner, x.shape[2:], pixels.shape[2:], strict=True):
        target.append(slice(max(0, -first), min(length, size - first)))
        source.append(slice(max(0, first), min(size, length + first)))
    pixels[:, :, target[0], target[1]] = abs(x[:, :, source[0], source[1]])
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (m + 2, m + 2), (2, 3))[:, :, ::m, ::m]
    largest = windows.max((4, 5)).reshape(N, groups, C, down, across)
    sums = np.einsum("gkc,ngcij->ngkij", norms + tiny, largest + tiny) + C * tiny
    each = factor(m, C) * sums.reshape(N, groups * K, down, across)
    return each.repeat(m, 2).repeat(m, 3)[:, :, :H, :W]
