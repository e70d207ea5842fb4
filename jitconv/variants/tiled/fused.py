"""conv2d and the max_pool2d after it in one pass: z is pooled in registers or in a cache, and never kept.

Windows are of 2×2, side by side and whole. Neither gradient asks for z: that of the pooling needs the indices, and that
of the convolution ∂z.
"""

import numpy as np
from numba import literal_unroll

from jitconv.variants.simd import MR, NR_VECTORS, fma_outer, fma_outer_gather, lanes, zeros
from jitconv.variants.tiled.conv2d import layout, tap_offsets
from jitconv.variants.tiled.pooling import pool_lines, results_of, store_largest
from jitconv.variants.tiled.product import (
    NONE,
    ONE,
    Operand,
    Places,
    Target,
    factor,
    finite,
    inner,
    product,
    rows_from,
    workspace,
)
from jitconv.variants.tiled.shifts import (
    AT_ONCE,
    Geometry,
    Planes,
    blocking,
    plane_size,
    shares,
    shift_images,
    total_size,
)
from jitconv.variants.workers import each_worker

WINDOW = 4  # numbers
TALLEST = MR * NR_VECTORS // WINDOW
HEIGHTS = (*(rows for rows in (1, 2, 4) if rows < TALLEST), TALLEST)  # of a tile of windows


def short_conv2d_max_pool2d(
    team, workers, x, weight, bias, stride, padding, dilation, conv_size,
    kernel_size, pool_stride, pool_padding, pool_dilation, out, indices,
):  # fmt: skip
    """z = W · (shifted images) + b, out = max over the windows of z; False if a weight is not finite.

    conv_size: (H, W) of z.
    """
    if not finite(weight):
        return False
    geometry = Geometry(stride, padding, dilation)
    each_worker(team, workers, _windows_in_registers, (x, weight, bias, geometry, conv_size[1], out, indices))
    return True


def conv2d_max_pool2d(
    team, workers, x, weight, bias, stride, padding, dilation, conv_size,
    kernel_size, pool_stride, pool_padding, pool_dilation, out, indices,
):  # fmt: skip
    """z = W · (shifted images) + b, out = max over the windows of z; False if a weight is not finite.

    conv_size: (H, W) of z.
    """
    if not finite(weight):
        return False
    geometry = Geometry(stride, padding, dilation)
    each_worker(team, workers, _windows_in_cache, (x, weight, bias, geometry, conv_size[1], out, indices))
    return True


@inner
def _windows_in_registers(worker, workers, x, weight, bias, geometry, W, out, indices):
    """For sums so short that pooling would take as long: a tile holds the four numbers of its windows apart.

    Each of the four is a convolution with twice the stride, begun a line or a column later.
    """
    N, C_out, H_out, W_out = out.shape
    C_group, kernels = weight.shape[1], factor(weight.reshape(-1), C_out, weight.size // C_out)
    groups = x.shape[1] // C_group
    F = C_out // groups
    images, filters = shares(worker, workers, N, F, TALLEST)
    _, rows = blocking(ONE, H_out, WINDOW * W_out, AT_ONCE)
    planes, starts = _window_planes(weight, geometry, rows, W_out)
    block, ones = np.empty(total_size(C_group, planes, x), x.dtype), np.ones(WINDOW * lanes(x), x.dtype)
    (maxima, places, kept, _), windows = results_of(out, indices), H_out * W_out
    firsts = np.zeros(windows + lanes(x), np.int64)
    for window in range(windows):
        firsts[window] = 2 * (window // W_out * W + window % W_out)
    step = 2 * geometry.stride[0], 2 * geometry.stride[1]
    for g in range(groups):
        numbers, offsets, ld, _ = rows_from(kernels, g * F, F)
        start, channels = bias[g * F : (g + 1) * F], (g * C_group, (g + 1) * C_group)
        for n in range(images[0], images[1]):
            for top in range(0, H_out, rows):
                shift_images(x, n, ONE, channels, top * step[0] - geometry.padding[0], step, planes, block)
                begin, end = top * W_out, min(top + rows, H_out) * W_out
                for window in range(begin, end, lanes(x)):
                    count = min(lanes(x), end - window)
                    m = filters[0]
                    for height in literal_unroll(HEIGHTS[::-1]):
                        while m + height <= filters[1]:
                            tile = zeros(x, height, WINDOW)
                            for k in range(offsets.size):
                                a = offsets[k] + m * ld
                                tile = fma_outer_gather(tile, numbers, a, ld, block, starts, k * WINDOW, window - begin)
                            tile = fma_outer(tile, start, m, 1, ones, 0, None)
                            o = (n * C_out + g * F + m) * windows + window
                            p, places_ld = o * kept, windows * kept
                            store_largest(tile, firsts, window, W, maxima, o, windows, places, p, places_ld, count)
                            m += height


@inner
def _window_planes(weight, geometry, rows, width):
    """The planes for so many lines of windows, and where in them each tap of a kernel meets the four numbers of one."""
    (s_h, s_w), (p_h, p_w), (d_h, d_w) = geometry
    _, C, K_h, K_w = weight.shape
    columns, count = np.empty(2 * K_w, np.int64), 0
    index = np.empty((2, K_w), np.int64)  # of the plane for a column of a window and one of the kernel
    for b in range(2):
        for j in range(K_w):
            column, at = b * s_w + j * d_w - p_w, 0
            while at < count and columns[at] != column:
                at += 1
            columns[at], index[b, j] = column, at
            count = max(count, at + 1)
    reach = s_h + (K_h - 1) * d_h
    planes = Planes(min(2 * s_h, reach + 1), columns[:count], 1, rows + reach // (2 * s_h), width)
    starts = np.empty(C * K_h * K_w * WINDOW, np.int64)
    at = 0
    for c in range(C):
        for i in range(K_h):
            for j in range(K_w):
                for number in range(WINDOW):
                    line, phase = divmod(i * d_h + number // 2 * s_h, 2 * s_h)
                    plane = (c * planes.phases + phase) * count + index[number % 2, j]
                    starts[at] = plane * plane_size(planes) + line * width
                    at += 1
    return planes, starts


@inner
def _windows_in_cache(worker, workers, x, weight, bias, geometry, W, out, indices):
    """Lines of windows, two lines of z each, which are pooled where the product leaves them."""
    N, C_out, H_out, W_out = out.shape
    C_group, kernels = weight.shape[1], factor(weight.reshape(-1), C_out, weight.size // C_out)
    groups, results = x.shape[1] // C_group, results_of(out, indices)
    F = C_out // groups
    images, filters = shares(worker, workers, N, F, MR)
    at_once, rows = blocking(images[1] - images[0], H_out, 2 * W, AT_ONCE)
    planes = layout(weight, geometry, at_once, 2 * rows, W)
    block, offsets = np.empty(total_size(C_group, planes, x), x.dtype), tap_offsets(weight, geometry, planes)
    z, work = np.empty(F * at_once * 2 * rows * W, x.dtype), workspace(x)
    for g in range(groups):
        part, start = rows_from(kernels, g * F, F), bias[g * F : (g + 1) * F]
        for first in range(images[0], images[1], at_once):
            count = min(at_once, images[1] - first)
            for top in range(0, H_out, rows):
                line = 2 * top * geometry.stride[0] - geometry.padding[0]
                shift_images(x, first, count, (g * C_group, (g + 1) * C_group), line, geometry.stride, planes, block)
                run = 2 * min(rows, H_out - top) * W
                b = Operand(block, offsets, Places(run, plane_size(planes)), NONE)
                target = Target(z, count * run, Places(count * run, NONE))
                product(part, filters, b, (NONE, count * run), target, start, work)
                for n in range(count):
                    for f in range(filters[0], filters[1]):
                        plane = ((first + n) * C_out + g * F + f) * H_out
                        pool_lines(z[(f * count + n) * run :], run // (2 * W), W, top, plane, results)
