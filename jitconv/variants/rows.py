"""The sums of scalar.py for outputs that lie side by side: the innermost loop runs along a row of them.

scalar.py finishes one output before it begins the next, so each addition waits for the one before. Here a tap is added
to a short array of sums, one for each output of a row. `jit-static` compiles this with all sizes as constants: the loop
along the row becomes a few vector instructions, and the sums stay in registers. Without the sizes most of it is slower
than scalar.py, so `jit` keeps to that. Every driver takes the arguments of scalar.py's of its name, and adds up
as many terms in one chain as that does, or fewer.
"""

from typing import NamedTuple

from numba import prange

from jitconv.variants.compiling import registers
from jitconv.variants.scalar import linear_at, zero

FILTERS = 4  # that share the pixels they load
ROW = 32  # outputs of a convolution added up together: 4 registers of 8 numbers
GRAD_LINE = 64  # numbers of a line of ∂z
CHANNELS = 8  # filters whose share of ∂x is added up on its own
DOT_LANES = 32  # sums of a dot product, side by side
DOT_TERMS, DOT_FILTERS = 480, 16  # terms and rows of w that stay in the cache


class Conv(NamedTuple):
    """How the taps of a convolution lie: (rows, columns) each."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


def inside(steps, extent, kernel, stride, padding, dilation):
    """The outputs [first, last) whose taps all lie inside an input of `extent`"""
    first = min(steps, (padding + stride - 1) // stride)
    last = min(steps, (extent - 1 - (kernel - 1) * dilation + padding) // stride + 1)
    return first, max(first, last)


def fill(y, width, value):
    """y[k] = value for k < width"""
    for k in range(width):
        y[k] = value


def copy(x, y, width):
    """y[k] = x[k] for k < width"""
    for k in range(width):
        y[k] = x[k]


def add(x, y, width):
    """y[k] = y[k] + x[k] for k < width"""
    for k in range(width):
        y[k] = y[k] + x[k]


def axpy(a, x, step, y, width):
    """y[k] = y[k] + a · x[k · step] for k < width"""
    for k in range(width):
        y[k] = y[k] + a * x[k * step]


def multiply_add_row(x, y, step, sums, width):
    """sums[k] = sums[k] + x[k] · y[k · step] for k < width"""
    for k in range(width):
        sums[k] = sums[k] + x[k] * y[k * step]


def total_of(sums, width):
    """Σ_k sums[k] for k < width"""
    total = zero(sums)
    for k in range(width):
        total = total + sums[k]
    return total


def conv2d(x, weight, bias, stride, padding, dilation, out):
    N, C_out, C_group = out.shape[0], out.shape[1], weight.shape[1]
    groups = x.shape[1] // C_group
    filters = C_out // groups  # of a group
    blocks = (filters + FILTERS - 1) // FILTERS
    for item in prange(N * groups * blocks):
        n, group, f = item // (groups * blocks), item // blocks % groups, item % blocks * FILTERS
        c_in, c_out = group * C_group, group * filters + f
        image, conv = x[n, c_in : c_in + C_group], Conv(stride, padding, dilation)
        if filters % FILTERS == 0 or f + FILTERS <= filters:
            convolve(image, weight[c_out:], bias[c_out:], conv, out[n, c_out:], FILTERS)
        else:
            for last in range(c_out, (group + 1) * filters):
                convolve(image, weight[last:], bias[last:], conv, out[n, last:], 1)


def convolve(x, weight, bias, conv, z, filters):
    """The outputs of an image and of the first `filters` filters: rows of them where no tap meets the padding"""
    W_out, K_w = z.shape[2], weight.shape[3]
    left, right = inside(W_out, x.shape[2], K_w, conv.stride[1], conv.padding[1], conv.dilation[1])
    # 24 columns are one row of 24, 56 are 32 and 24: multiples of a vector, where there are so many.
    long = min(ROW, (right - left) // 8 * 8) if right - left >= 8 else max(1, right - left)
    last = left + (right - left) // long * long
    short = (right - last + 7) // 8 * 8  # overlaps the one before
    for row in range(z.shape[1]):
        for first in range(left, last, long):
            convolve_row(x, weight, bias, conv, row, first, z, filters, long)
        if last < right:
            convolve_row(x, weight, bias, conv, row, right - short, z, filters, short)
        for edge in range(left + W_out - right):
            convolve_row(x, weight, bias, conv, row, edge if edge < left else edge - left + right, z, filters, 1)


def convolve_row(x, weight, bias, conv, row, first, z, filters, width):
    """z[f, row, first + k] = b[f] + Σ_c Σ_i Σ_j x[c, row·s + i·d − p, (first + k)·s + j·d − p] · w[f, c, i, j]

    For k < width, and four filters f, which share each pixel that is loaded, or one.
    """
    (_, C, K_h, K_w), (step, W) = weight.shape, (conv.stride[1], x.shape[2])
    a, b, c, d = registers(x, ROW), registers(x, ROW), registers(x, ROW), registers(x, ROW)
    for f in range(filters):
        fill(z[f, row, first:], width, bias[f])
    for channel in range(C):  # each channel's sum on its own: shorter chains round less
        fill(a, width, 0)
        fill(b, width, 0)
        fill(c, width, 0)
        fill(d, width, 0)
        for i in range(K_h):
            m = row * conv.stride[0] - conv.padding[0] + i * conv.dilation[0]
            if 0 <= m < x.shape[1]:
                for j in range(K_w):
                    l = first * step - conv.padding[1] + j * conv.dilation[1]
                    if width > 1 or 0 <= l < W:  # rows of several never meet the padding
                        axpy(weight[0, channel, i, j], x[channel, m, l:], step, a, width)
                        if filters > 1:
                            axpy(weight[1, channel, i, j], x[channel, m, l:], step, b, width)
                            axpy(weight[2, channel, i, j], x[channel, m, l:], step, c, width)
                            axpy(weight[3, channel, i, j], x[channel, m, l:], step, d, width)
        add(a, z[0, row, first:], width)
        if filters > 1:
            add(b, z[1, row, first:], width)
            add(c, z[2, row, first:], width)
            add(d, z[3, row, first:], width)


def conv2d_grad_input(grad, weight, stride, padding, dilation, out):
    """All of a row of ∂z meets tap j; where its sums belong in ∂x, if they do, is asked once a row and tap."""
    N, C_in, H, W = out.shape
    (C_out, C_group, _, K_w), W_out = weight.shape, grad.shape[3]
    conv, width = Conv(stride, padding, dilation), W_out // ((W_out + GRAD_LINE - 1) // GRAD_LINE)
    for plane in prange(N * C_in):
        n, c_in = plane // C_in, plane % C_in
        filters = C_out // (C_in // C_group)
        group = c_in // C_group * filters, c_in // C_group * filters + filters, c_in % C_group
        for m in range(H):
            fill(out[n, c_in, m], W, 0)
            for j in range(K_w):
                for first in range(0, W_out // width * width, width):
                    add_tap(grad[n], weight, group, conv, m, j, first, out[n, c_in, m], width)
                for col in range(W_out // width * width, W_out):
                    add_tap(grad[n], weight, group, conv, m, j, col, out[n, c_in, m], 1)


def add_tap(grad, weight, group, conv, m, j, first, dx, width):
    """dx[(first + k)·s + j·d − p] += Σ_c_out Σ_i ∂z[c_out, (m + p − i·d)/s, first + k] · w[c_out, c, i, j], k < width

    group: the filters [first, last) and c.
    """
    sums, line = registers(grad, GRAD_LINE), registers(grad, GRAD_LINE)
    fill(line, width, 0)
    for few in range(group[0], group[1], CHANNELS):
        fill(sums, width, 0)
        for c_out in range(few, min(few + CHANNELS, group[1])):
            for i in range(weight.shape[2]):
                above = m + conv.padding[0] - i * conv.dilation[0]
                row = above // conv.stride[0]
                if row * conv.stride[0] == above and 0 <= row < grad.shape[1]:
                    axpy(weight[c_out, group[2], i, j], grad[c_out, row, first:], 1, sums, width)
        add(sums, line, width)
    for k in range(width):
        l = (first + k) * conv.stride[1] - conv.padding[1] + j * conv.dilation[1]
        if 0 <= l < dx.shape[0]:
            dx[l] = dx[l] + line[k]


def conv2d_grad_weight(grad, x, stride, padding, dilation, out):
    C_out, C_group, K_h, K_w = out.shape
    left, right = inside(grad.shape[3], x.shape[3], K_w, stride[1], padding[1], dilation[1])
    width = min(GRAD_LINE, right - left)
    width = max(1, width if width < 8 else width // 8 * 8)
    columns = left, left + (right - left) // width * width, width
    for plane in prange(C_out * C_group):
        c_out, c = plane // C_group, plane % C_group
        c_in = c_out // (C_out // (x.shape[1] // C_group)) * C_group + c
        for tap in range(K_h * K_w):
            out[c_out, c, tap // K_w, tap % K_w] = 0
        for n in range(grad.shape[0]):
            for i in range(K_h):
                for j in range(K_w):
                    slope = image_slope(grad[n, c_out], x[n, c_in], Conv(stride, padding, dilation), i, j, columns)
                    out[c_out, c, i, j] = out[c_out, c, i, j] + slope


def image_slope(grad, x, conv, i, j, columns):
    """Σ_row Σ_col ∂z[row, col] · x[row·s + i·d − p, col·s + j·d − p]

    columns: those [first, last) that are added up a `width` at a time, and that; the others may meet the padding.
    """
    (left, right, width), sums, total = columns, registers(grad, GRAD_LINE), zero(grad)
    for row in range(grad.shape[0]):
        m = row * conv.stride[0] - conv.padding[0] + i * conv.dilation[0]
        if 0 <= m < x.shape[0]:
            total = total + edge(grad[row], x[m], conv, j, 0, left)
            total = total + edge(grad[row], x[m], conv, j, right, grad.shape[1])
    for first in range(left, right, width):
        fill(sums, width, 0)
        for row in range(grad.shape[0]):
            m = row * conv.stride[0] - conv.padding[0] + i * conv.dilation[0]
            if 0 <= m < x.shape[0]:
                l = first * conv.stride[1] - conv.padding[1] + j * conv.dilation[1]
                multiply_add_row(grad[row, first:], x[m, l:], conv.stride[1], sums, width)
        total = total + total_of(sums, width)
    return total


def edge(grad, x, conv, j, first, last):
    """Σ_col ∂z[col] · x[col·s + j·d − p] over the columns [first, last) of a row, where that is inside"""
    total = zero(grad)
    for col in range(first, last):
        l = col * conv.stride[1] - conv.padding[1] + j * conv.dilation[1]
        if 0 <= l < x.shape[0]:
            total = total + grad[col] * x[l]
    return total


def linear(x, weight, bias, out):
    """Four images share each weight that is loaded; DOT_TERMS of theirs and of DOT_FILTERS rows of w stay in cache."""
    (N, O), I = out.shape, x.shape[1]
    for block in prange((O + DOT_FILTERS - 1) // DOT_FILTERS):
        filters = range(block * DOT_FILTERS, min(block * DOT_FILTERS + DOT_FILTERS, O))
        for n in range(N):
            for j in filters:
                out[n, j] = linear_at(x, weight, bias, n, j) if n >= N // 4 * 4 else bias[j]
        for start in range(0, I, DOT_TERMS):
            for n in range(0, N // 4 * 4, 4):
                for j in filters:
                    add_terms(x, weight, n, j, start, min(I, start + DOT_TERMS), out)


def add_terms(x, weight, n, j, start, stop, out):
    """out[n + r, j] = out[n + r, j] + Σ_i x[n + r, i] · w[j, i] for r < 4 and start ≤ i < stop"""
    a, b, c, d = registers(x, DOT_LANES), registers(x, DOT_LANES), registers(x, DOT_LANES), registers(x, DOT_LANES)
    fill(a, DOT_LANES, 0)
    fill(b, DOT_LANES, 0)
    fill(c, DOT_LANES, 0)
    fill(d, DOT_LANES, 0)
    whole = start + (stop - start) // DOT_LANES * DOT_LANES
    for i in range(start, whole, DOT_LANES):
        w = weight[j, i : i + DOT_LANES]
        multiply_add_row(w, x[n, i : i + DOT_LANES], 1, a, DOT_LANES)
        multiply_add_row(w, x[n + 1, i : i + DOT_LANES], 1, b, DOT_LANES)
        multiply_add_row(w, x[n + 2, i : i + DOT_LANES], 1, c, DOT_LANES)
        multiply_add_row(w, x[n + 3, i : i + DOT_LANES], 1, d, DOT_LANES)
    out[n, j] = out[n, j] + (total_of(a, DOT_LANES) + remainder(x[n], weight[j], whole, stop))
    out[n + 1, j] = out[n + 1, j] + (total_of(b, DOT_LANES) + remainder(x[n + 1], weight[j], whole, stop))
    out[n + 2, j] = out[n + 2, j] + (total_of(c, DOT_LANES) + remainder(x[n + 2], weight[j], whole, stop))
    out[n + 3, j] = out[n + 3, j] + (total_of(d, DOT_LANES) + remainder(x[n + 3], weight[j], whole, stop))


def remainder(x, w, start, stop):
    """Σ_i x[i] · w[i] for start ≤ i < stop, fewer than LANES"""
    total = zero(x)
    for i in range(start, stop):
        total = total + x[i] * w[i]
    return total


def linear_grad_input(grad, weight, out):
    """∂x[n, i] = Σ_j ∂z[n, j] · w[j, i]"""
    for block in prange((out.shape[1] + ROW - 1) // ROW):
        matmul_block(grad, weight, block, out)


def linear_grad_weight(grad, x, out):
    """∂w[j, i] = Σ_n ∂z[n, j] · x[n, i]"""
    for block in prange((out.shape[1] + ROW - 1) // ROW):
        matmul_block(grad.T, x, block, out)


def matmul_block(a, b, block, out):
    """out[m, n] = Σ_k a[m, k] · b[k, n] for the ROW columns n of a block, of which the last may have fewer"""
    N, first = out.shape[1], block * ROW
    if block < N // ROW:
        matmul_columns(a, b[:, first:], out[:, first:], ROW)
    else:
        matmul_columns(a, b[:, first:], out[:, first:], N % ROW)


def matmul_columns(a, b, out, width):
    """The first `width` columns of out: four rows share each number of b that is loaded."""
    M = out.shape[0]
    for m in range(0, M // 4 * 4, 4):
        p, q, r, s = registers(out, ROW), registers(out, ROW), registers(out, ROW), registers(out, ROW)
        fill(p, width, 0)
        fill(q, width, 0)
        fill(r, width, 0)
        fill(s, width, 0)
        for k in range(b.shape[0]):
            axpy(a[m, k], b[k], 1, p, width)
            axpy(a[m + 1, k], b[k], 1, q, width)
            axpy(a[m + 2, k], b[k], 1, r, width)
            axpy(a[m + 3, k], b[k], 1, s, width)
        copy(p, out[m], width)
        copy(q, out[m + 1], width)
        copy(r, out[m + 2], width)
        copy(s, out[m + 3], width)
    for m in range(M // 4 * 4, M):
        p = registers(out, ROW)
        fill(p, width, 0)
        for k in range(b.shape[0]):
            axpy(a[m, k], b[k], 1, p, width)
        copy(p, out[m], width)
