"""The sums of scalar.py for outputs that lie side by side: the innermost loop runs along a row of them.

scalar.py finishes one output before it begins the next, so each addition waits for the one before. Here a tap is added
to a short array of sums, one for each output of a row. `jit-static` compiles this with all sizes as constants: the loop
along the row becomes a few vector instructions, and the sums stay in registers. Without the sizes most of it is slower
than scalar.py, so `jit` keeps to that. Every driver takes the arguments of scalar.py's of its name, and adds up
as many terms in one chain as that does, or fewer.
"""

from numba import prange

from jitconv.variants.compiling import registers
from jitconv.variants.scalar import conv2d_at, linear_at, zero

ROW = 32  # outputs of a convolution added up together: 4 registers of 8 numbers
LINE = 64  # numbers of a line of ∂z
CHANNELS = 8  # filters whose share of ∂x is added up on its own
LANES, TERMS, FILTERS = 32, 480, 16  # of a dot product: sums side by side, terms and rows of w that stay in the cache


def inside(steps, extent, kernel, stride, padding, dilation):
    """The outputs [first, last) whose taps all lie inside an input of `extent`"""
    first = min(steps, (padding + stride - 1) // stride)
    last = min(steps, (extent - 1 - (kernel - 1) * dilation + padding) // stride + 1)
    return first, max(first, last)


def conv2d(x, weight, bias, stride, padding, dilation, out):
    N, C_out, H_out, W_out = out.shape
    _, C_in, H, W = x.shape
    _, C_group, K_h, K_w = weight.shape
    left, right = inside(W_out, W, K_w, stride[1], padding[1], dilation[1])
    width = min(ROW, right - left)
    sums = registers(x, ROW)
    for plane in prange(N * C_out):
        n, c_out = plane // C_out, plane % C_out
        c_first = c_out // (C_out // (C_in // C_group)) * C_group
        for row in range(H_out):
            for start in range(left, right, ROW):
                first = min(start, right - width)  # the last ones overlap those before
                for k in range(width):
                    out[n, c_out, row, first + k] = bias[c_out]
                for c in range(C_group):
                    for k in range(width):
                        sums[k] = 0
                    for i in range(K_h):
                        m = row * stride[0] - padding[0] + i * dilation[0]
                        if 0 <= m < H:
                            for j in range(K_w):
                                w = weight[c_out, c, i, j]
                                pixels = x[n, c_first + c, m, first * stride[1] - padding[1] + j * dilation[1] :]
                                for k in range(width):
                                    sums[k] = sums[k] + w * pixels[k * stride[1]]
                    for k in range(width):
                        out[n, c_out, row, first + k] = out[n, c_out, row, first + k] + sums[k]
            for col in range(left):
                out[n, c_out, row, col] = conv2d_at(x, weight, bias, stride, padding, dilation, n, c_out, row, col)
            for col in range(right, W_out):
                out[n, c_out, row, col] = conv2d_at(x, weight, bias, stride, padding, dilation, n, c_out, row, col)


def conv2d_grad_input(grad, weight, stride, padding, dilation, out):
    """All of a row of ∂z meets tap j; where its sums belong in ∂x, if they do, is asked once a row and tap."""
    N, C_in, H, W = out.shape
    _, C_out, H_out, W_out = grad.shape
    _, C_group, K_h, K_w = weight.shape
    filters = C_out // (C_in // C_group)
    width = W_out // ((W_out + LINE - 1) // LINE)
    sums, line = registers(grad, LINE), registers(grad, LINE)
    for plane in prange(N * C_in):
        n, c_in = plane // C_in, plane % C_in
        group = (c_in // C_group * filters, c_in // C_group * filters + filters)
        for m in range(H):
            for l in range(W):
                out[n, c_in, m, l] = 0
            for j in range(K_w):
                for first in range(0, W_out // width * width, width):
                    for k in range(width):
                        line[k] = 0
                    for few in range(group[0], group[1], CHANNELS):
                        for k in range(width):
                            sums[k] = 0
                        for c_out in range(few, min(few + CHANNELS, group[1])):
                            for i in range(K_h):
                                above = m + padding[0] - i * dilation[0]
                                row = above // stride[0]
                                if row * stride[0] == above and 0 <= row < H_out:
                                    w, slopes = weight[c_out, c_in % C_group, i, j], grad[n, c_out, row, first:]
                                    for k in range(width):
                                        sums[k] = sums[k] + w * slopes[k]
                        for k in range(width):
                            line[k] = line[k] + sums[k]
                    for k in range(width):
                        l = (first + k) * stride[1] - padding[1] + j * dilation[1]
                        if 0 <= l < W:
                            out[n, c_in, m, l] = out[n, c_in, m, l] + line[k]
                for col in range(W_out // width * width, W_out):
                    l = col * stride[1] - padding[1] + j * dilation[1]
                    if 0 <= l < W:
                        rest = tap_at(grad, weight, stride, padding, dilation, group, n, c_in % C_group, m, j, col)
                        out[n, c_in, m, l] = out[n, c_in, m, l] + rest


def tap_at(grad, weight, stride, padding, dilation, c_outs, n, c, m, j, col):
    """Σ_c_out Σ_i ∂z[n, c_out, (m + p − i·d)/s, col] · w[c_out, c, i, j] over the filters c_outs of a group"""
    total = zero(grad)
    for c_out in range(c_outs[0], c_outs[1]):
        filter = zero(grad)
        for i in range(weight.shape[2]):
            above = m + padding[0] - i * dilation[0]
            row = above // stride[0]
            if row * stride[0] == above and 0 <= row < grad.shape[2]:
                filter = filter + grad[n, c_out, row, col] * weight[c_out, c, i, j]
        total = total + filter
    return total


def conv2d_grad_weight(grad, x, stride, padding, dilation, out):
    C_out, C_group, K_h, K_w = out.shape
    N, _, H_out, W_out = grad.shape
    _, C_in, H, W = x.shape
    left, right = inside(W_out, W, K_w, stride[1], padding[1], dilation[1])
    width = min(LINE, right - left)
    width = max(1, width if width < 8 else width // 8 * 8)
    right = left + (right - left) // width * width
    sums = registers(grad, LINE)
    for plane in prange(C_out * C_group):
        c_out, c = plane // C_group, plane % C_group
        c_in = c_out // (C_out // (C_in // C_group)) * C_group + c
        for i in range(K_h):
            for j in range(K_w):
                out[c_out, c, i, j] = 0
        for n in range(N):
            for i in range(K_h):
                for j in range(K_w):
                    image = zero(grad)
                    for row in range(H_out):
                        m = row * stride[0] - padding[0] + i * dilation[0]
                        if 0 <= m < H:
                            for col in range(left):
                                l = col * stride[1] - padding[1] + j * dilation[1]
                                if 0 <= l < W:
                                    image = image + grad[n, c_out, row, col] * x[n, c_in, m, l]
                            for col in range(right, W_out):
                                l = col * stride[1] - padding[1] + j * dilation[1]
                                if 0 <= l < W:
                                    image = image + grad[n, c_out, row, col] * x[n, c_in, m, l]
                    for first in range(left, right, width):
                        for k in range(width):
                            sums[k] = 0
                        for row in range(H_out):
                            m = row * stride[0] - padding[0] + i * dilation[0]
                            if 0 <= m < H:
                                slopes = grad[n, c_out, row, first:]
                                pixels = x[n, c_in, m, first * stride[1] - padding[1] + j * dilation[1] :]
                                for k in range(width):
                                    sums[k] = sums[k] + slopes[k] * pixels[k * stride[1]]
                        for k in range(width):
                            image = image + sums[k]
                    out[c_out, c, i, j] = out[c_out, c, i, j] + image


def linear(x, weight, bias, out):
    """Four images share each weight that is loaded; TERMS of them and of FILTERS rows of w stay in the cache."""
    N, O = out.shape
    I = x.shape[1]
    a, b, c, d = registers(x, LANES), registers(x, LANES), registers(x, LANES), registers(x, LANES)
    for block in prange((O + FILTERS - 1) // FILTERS):
        filters = range(block * FILTERS, min(block * FILTERS + FILTERS, O))
        for n in range(N):
            for j in filters:
                out[n, j] = linear_at(x, weight, bias, n, j) if n >= N // 4 * 4 else bias[j]
        for start in range(0, I, TERMS):
            stop = min(I, start + TERMS)
            whole = start + (stop - start) // LANES * LANES
            for n in range(0, N // 4 * 4, 4):
                for j in filters:
                    for k in range(LANES):
                        a[k] = 0
                    for k in range(LANES):
                        b[k] = 0
                    for k in range(LANES):
                        c[k] = 0
                    for k in range(LANES):
                        d[k] = 0
                    for i in range(start, whole, LANES):
                        w = weight[j, i : i + LANES]
                        first, second = x[n, i : i + LANES], x[n + 1, i : i + LANES]
                        third, fourth = x[n + 2, i : i + LANES], x[n + 3, i : i + LANES]
                        for k in range(LANES):
                            a[k] = a[k] + first[k] * w[k]
                        for k in range(LANES):
                            b[k] = b[k] + second[k] * w[k]
                        for k in range(LANES):
                            c[k] = c[k] + third[k] * w[k]
                        for k in range(LANES):
                            d[k] = d[k] + fourth[k] * w[k]
                    out[n, j] = out[n, j] + whole_and_rest(a, x, weight, n, j, whole, stop)
                    out[n + 1, j] = out[n + 1, j] + whole_and_rest(b, x, weight, n + 1, j, whole, stop)
                    out[n + 2, j] = out[n + 2, j] + whole_and_rest(c, x, weight, n + 2, j, whole, stop)
                    out[n + 3, j] = out[n + 3, j] + whole_and_rest(d, x, weight, n + 3, j, whole, stop)


def whole_and_rest(sums, x, weight, n, j, start, stop):
    """The LANES sums of a dot product and its last terms, fewer than LANES"""
    total = zero(x)
    for k in range(LANES):
        total = total + sums[k]
    for i in range(start, stop):
        total = total + x[n, i] * weight[j, i]
    return total
