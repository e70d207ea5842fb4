"""conv2d and the max_pool2d after it in one pass: z is pooled while it is in the second-level cache, and never kept.

Neither gradient asks for z: that of the pooling needs the indices, and that of the convolution ∂z.
"""

import numpy as np

from jitconv.variants.simd import ROWS
from jitconv.variants.tiled.conv2d import layout, tap_offsets
from jitconv.variants.tiled.pooling import pool_lines, side_by_side
from jitconv.variants.tiled.product import NONE, Operand, Places, Target, factor, finite, inner, product, rows_from
from jitconv.variants.tiled.shifts import AT_ONCE, Geometry, blocking, plane_size, shares, shift_images, total_size
from jitconv.variants.tiled.workers import each_worker


def conv2d_max_pool2d(
    team, workers, x, weight, bias, stride, padding, dilation, conv_size,
    kernel_size, pool_stride, pool_padding, pool_dilation, out, indices,
):  # fmt: skip
    """z = W · (shifted images) + b, out = max over the windows of z; False for what conv2d or max_pool2d leaves.

    conv_size: (H, W) of z.
    """
    whole = 2 * out.shape[2] <= conv_size[0] and 2 * out.shape[3] <= conv_size[1]
    if not whole or not side_by_side(kernel_size, pool_stride, pool_padding, pool_dilation) or not finite(weight):
        return False
    C_out, geometry = weight.shape[0], Geometry(stride, padding, dilation)
    kernels = factor(weight.reshape(-1), C_out, weight.size // C_out)
    each_worker(team, workers, _convolve_and_pool, (x, weight, kernels, bias, geometry, conv_size[1], out, indices))
    return True


@inner
def _convolve_and_pool(worker, workers, x, weight, kernels, bias, geometry, W, out, indices):
    """Lines of windows, two lines of z each, from the first tap to the maximum."""
    N, C_out, H_out, W_out = out.shape
    C_group = weight.shape[1]
    groups = x.shape[1] // C_group
    F = C_out // groups
    images, filters = shares(worker, workers, N, F, ROWS)
    at_once, rows = blocking(images[1] - images[0], H_out, 2 * W, AT_ONCE)
    planes = layout(weight, geometry, at_once, 2 * rows, W)
    block, offsets = np.empty(total_size(C_group, planes, x), x.dtype), tap_offsets(weight, geometry, planes)
    z = np.empty(F * at_once * 2 * rows * W, x.dtype)
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
                product(part, filters, b, (NONE, count * run), target, start)
                for n in range(count):
                    for f in range(filters[0], filters[1]):
                        plane = ((first + n) * C_out + g * F + f) * H_out
                        pool_lines(z[(f * count + n) * run :], run // (2 * W), W, top, plane, out, indices)
