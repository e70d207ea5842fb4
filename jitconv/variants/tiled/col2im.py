"""The gradient of conv2d for an input of few channels: Wᵀ · ∂z, and each number added to the pixel that its tap met.

This is im2col's product backwards. A number of ∂z meets the taps that it met in the forward, and no zeros: what is not
finite reaches the pixels that it should. A band of lines of the image is done at a time.
"""

import numpy as np

from jitconv.variants.compiling import inner
from jitconv.variants.elementwise import load, store
from jitconv.variants.rows import Conv
from jitconv.variants.simd import lanes, zeros
from jitconv.variants.tiled.product import (
    NONE,
    AMatrix,
    BMatrix,
    CMatrix,
    Columns,
    clear,
    product,
    share,
    steps,
    workspace,
)
from jitconv.variants.tiled.shifts import tap_columns
from jitconv.variants.workers import each_worker

BAND_PIXELS = 1024  # pixels of the image that are computed together, about


def conv2d_grad_input(start, workers, grad, weight, stride, padding, dilation, out):
    """∂x[n, c, m, l] = Σ_o Σ_(i, j) w[o, c, i, j] · ∂z[n, o, row, col] with m = row·s + i·d − p, l = col·s + j·d − p"""
    each_worker(start, workers, _bands, (grad, weight, Conv(stride, padding, dilation), out))


@inner
def _bands(worker, workers, grad, weight, conv, out):
    (N, O, H_out, W_out), (_, C, K_h, K_w), (H, W) = grad.shape, weight.shape, out.shape[2:]
    groups, taps, pixels = out.shape[1] // C, C * K_h * K_w, H_out * W_out
    F, images = O // groups, N * groups
    per_image = max(1, H * W // BAND_PIXELS, (workers + images - 1) // images)
    lines = (H + per_image - 1) // per_image
    rows = min(H_out, (lines - 1 + (K_h - 1) * conv.dilation[0]) // conv.stride[0] + 1)
    z, work, no_bias = np.empty(taps * rows * W_out, grad.dtype), workspace(grad), np.zeros(taps, grad.dtype)
    columns = tap_columns(K_w, conv.stride[1], conv.padding[1], conv.dilation[1], W, W_out, W_out)
    begin, end = share(images * per_image, worker, workers, 1)
    for index in range(begin, end):
        image, top = index // per_image, index % per_image * lines
        bottom, n, g = min(H, top + lines), image // groups, image % groups
        # Lines of ∂z that meet the band: those of its first line's last tap to its last line's first one.
        first = max(0, -(((K_h - 1) * conv.dilation[0] - conv.padding[0] - top) // conv.stride[0]))
        last = max(first, min(H_out, (bottom - 1 + conv.padding[0]) // conv.stride[0] + 1))
        size = (last - first) * W_out
        a = AMatrix(weight.reshape(-1), steps(F, g * F * taps, taps), 1, taps)
        planes, columns_of_z = steps(F, (n * O + g * F) * pixels + first * W_out, pixels), Columns(size, NONE)
        b = BMatrix(grad.reshape(-1), planes, columns_of_z, NONE)
        product(a, (NONE, taps), b, (NONE, size), CMatrix(z, size, columns_of_z), no_bias, work)
        for line in range(C * (bottom - top)):
            c, m = line // (bottom - top), top + line % (bottom - top)
            source = z[c * K_h * K_w * size :], size, W_out
            _add_up(source, (first, last), m + conv.padding[0], K_h, columns, conv, out[n, g * C + c, m])


@inner
def _add_up(source, rows, m, K_h, columns, conv, line):
    """One line of ∂x, whose number + padding is m: what each tap brings of lines `rows` of ∂z.

    source: z = Wᵀ · ∂z, and the distances from a tap to the next in it, and from a line to the next.
    """
    (z, ld, width), unit, K_w, step = source, zeros(line, 1, 1), columns.shape[0], conv.stride[1]
    clear(line, 0, line.size)
    for i in range(K_h):
        row, phase = divmod(m - i * conv.dilation[0], conv.stride[0])
        if phase == 0 and rows[0] <= row < rows[1]:
            for j in range(K_w):
                at, first, last = columns[j, 0], columns[j, 1], columns[j, 2]
                k = (i * K_w + j) * ld + (row - rows[0]) * width
                if step > 1:
                    for q in range(first, last):
                        line[at + q * step] += z[k + q]
                    continue
                for q in range(first, last, lanes(line)):
                    total = load(unit, line, at + q, last - q, 0) + load(unit, z, k + q, last - q, 0)
                    store(total, line, at + q, last - q)
