"""conv2d and the max_pool2d after it in one pass: z is pooled in registers, and never stored.

Windows are of 2×2, side by side and whole. Neither gradient asks for z: that of the pooling needs the indices, and that
of the convolution ∂z. A register tile holds the four numbers of its windows in registers of their own: each of the four
is a convolution with twice the stride, begun a line or a column later.
"""

from functools import partial

import numpy as np
from numba import literal_unroll

from jitconv.variants.rounding import SHORT_BLOCK
from jitconv.variants.simd import MR, NR_VECTORS, fma_outer, fma_outer_gather, lanes, load_add, store, zeros
from jitconv.variants.tiled.pooling import results_of, store_largest
from jitconv.variants.tiled.product import ONE, finite, inner
from jitconv.variants.tiled.shifts import (
    AT_ONCE,
    Bands,
    Planes,
    band_at,
    bands_of,
    count_of,
    plane_size,
    shares,
    shift_images,
    total_size,
)
from jitconv.variants.workers import each_worker

WINDOW = 4  # numbers
TALLEST = MR * NR_VECTORS // WINDOW
WINDOW_HEIGHTS = (*(rows for rows in (1, 2, 4) if rows < TALLEST), TALLEST)  # of a register tile


def conv2d_max_pool2d(start, workers, conv, W, x, weight, bias, out, indices):
    """z = W · (shifted images) + b, out = max over the windows of z, if all weights are finite.

    conv: Conv; W: the width of z.
    """
    all_finite = finite(weight)
    if all_finite:
        each_worker(start, workers, _pool, (conv, W, x, weight, bias, out, indices))
    return all_finite


@inner
def _pool(worker, workers, conv, W, x, weight, bias, out, indices):
    (N, C_out, H_out, W_out), C, step = out.shape, weight.shape[1], lanes(x)
    groups, ld, filters_of_all = x.shape[1] // C, weight.size // C_out, weight.reshape(-1)
    F, stride, (p_h, _) = C_out // groups, (2 * conv.stride[0], 2 * conv.stride[1]), conv.padding
    images, filters = shares(worker, workers, N, F, TALLEST)
    lines = bands_of(groups, images, H_out, WINDOW * W_out, AT_ONCE).lines
    bands = Bands(groups, images[0], images[1], ONE, H_out, lines)  # of one image each
    planes, starts = _window_planes(weight, conv, lines, W_out)
    shifted, partial_sums = np.empty(total_size(C, planes, x), x.dtype), np.empty(MR * NR_VECTORS * step, x.dtype)
    (maxima, positions, index_step), windows = results_of(out, indices), H_out * W_out
    ones, firsts = np.ones(WINDOW * step, x.dtype), _first_indices(windows + step, W_out, W)
    for index in range(count_of(bands)):
        band = band_at(bands, index)
        shift_images(x, band, C, band.top * stride[0] - p_h, stride, planes, shifted)
        begin, end = band.top * W_out, (band.top + band.lines) * W_out
        for window in range(begin, end, step):
            f = filters[0]
            for height in literal_unroll(WINDOW_HEIGHTS[::-1]):
                while filters[1] - f >= height:
                    m = band.g * F + f
                    tile = _sums(height, filters_of_all, m * ld, ld, shifted, starts, window - begin, partial_sums)
                    tile = fma_outer(tile, bias, m, 1, ones, 0, None)
                    o = (band.n * C_out + m) * windows + window
                    maxima_at, positions_at = (o, windows), (o * index_step, windows * index_step)
                    store_largest(tile, firsts, window, W, maxima, maxima_at, positions, positions_at, end - window)
                    f += height


# Not a tile of product.py: its registers are adjacent in a row of B, these lie in four planes, and are pooled at once.
@partial(inner, forceinline=True)
def _sums(height, a, row, ld, b, starts, column, partial_sums):
    """tile[r, v] = Σ_k a[row + r·ld + k] · b[starts[k, v] + column …] for k < ld, SHORT_BLOCK terms at a time"""
    tile, step = zeros(b, height, WINDOW), WINDOW * lanes(b)
    for first in range(0, ld, SHORT_BLOCK):
        tile = zeros(b, height, WINDOW)
        for k in range(first, min(first + SHORT_BLOCK, ld)):
            tile = fma_outer_gather(tile, a, row + k, ld, b, starts, k * WINDOW, column)
        if first > 0:
            tile = load_add(tile, partial_sums, 0, step)
        if first + SHORT_BLOCK < ld:
            store(tile, partial_sums, 0, step, None)
    return tile


@inner
def _first_indices(count, W_out, W):
    """For each window: the index of its first number in its plane of z."""
    firsts = np.empty(count, np.int64)
    for window in range(count):
        firsts[window] = 2 * (window // W_out * W + window % W_out)
    return firsts


@inner
def _window_planes(weight, conv, lines, width):
    """The planes for so many lines of windows, and where in them each tap meets the four numbers of a window."""
    (s_h, s_w), (p_h, p_w), (d_h, d_w) = conv
    _, C, K_h, K_w = weight.shape
    columns, count = np.empty(2 * K_w, np.int64), 0
    index = np.empty((2, K_w), np.int64)  # of the plane for a column of a window and one of the filter
    for b in range(2):
        for j in range(K_w):
            column, at = b * s_w + j * d_w - p_w, 0
            while at < count and columns[at] != column:
                at += 1
            columns[at], index[b, j] = column, at
            count = max(count, at + 1)
    reach = s_h + (K_h - 1) * d_h
    planes = Planes(min(2 * s_h, reach + 1), columns[:count], 1, lines + reach // (2 * s_h), width)
    starts = np.empty(C * K_h * K_w * WINDOW, np.int64)
    for at in range(starts.size):
        tap, number = at // WINDOW, at % WINDOW
        line, phase = divmod(tap // K_w % K_h * d_h + number // 2 * s_h, 2 * s_h)
        plane = (tap // (K_h * K_w) * planes.phases + phase) * count + index[number % 2, tap % K_w]
        starts[at] = plane * plane_size(planes) + line * width
    return planes, starts
