"""The equations: every layer, forward and backward, as plain scalar loops. rows.py alone writes some of them otherwise.

A function named `…_at` is the body: it computes one output element, in the softmax family those of one sample, and
reads like its equation. A function without the suffix is the driver: it visits the output, each element of which has
one writer (gather, never scatter), so its outermost loop may run in any order (`prange`). The drivers of linear's
gradients add up a row at a time, as a CPU reads memory best. `interpreted` runs this file as it stands, `jit` and
`jit-parallel` compile it, `jit-static` too where rows.py has no loops of its own, and `cuda` gives each body a GPU
thread. Shapes, in torch's letters:

    x: (N, C_in, H, W)    weight: (C_out, C_in/groups, K_h, K_w)    out: (N, C_out, H_out, W_out)

Sums are written `total = total + term`: given torch tensors, `+=` would write into the array it started from. Long
sums are sums of shorter ones, which keeps their rounding error small: it grows with the length of either.
"""

import math

from numba import prange  # plain range when interpreted

BLOCK = 64  # terms of a dot product that are added up on their own


def number(array, value):
    """`value` in the array's own dtype: a Python number would turn a float32 sum into float64 once compiled."""
    return array.dtype.type(value) if hasattr(array.dtype, "type") else array.new_tensor(value)


def zero(array):
    return number(array, 0)


def multiply_add(a, b, c):
    return a * b + c


# ---------------------------------------------------------------------------------------------------------
# conv2d
#   interpreted   seven nested loops, outputs outside and the sum inside: the study's starting point
#   jit           the same loops as machine code, bound by one chain of additions
#   jit-parallel  images × filters shared out to the cores
#   jit-static    a row of outputs inside and the taps outside (rows.py), in registers as all sizes are constants
#   jit-tiled     a tile of outputs in vector registers: each loaded value is used many times
#   vector        windows copied out as columns, then one matrix product
#   cuda          one GPU thread an output element; cuda-tiled shares loads through shared memory
# ---------------------------------------------------------------------------------------------------------


def conv2d_at(x, weight, bias, stride, padding, dilation, n, c_out, row, col):
    """z[n, c_out, row, col] = b[c_out] + Σ_c Σ_i Σ_j x[n, c, row·s + i·d − p, col·s + j·d − p] · w[c_out, c, i, j]"""
    _, C_in, H, W = x.shape
    C_out, C_group, K_h, K_w = weight.shape
    first = c_out // (C_out // (C_in // C_group)) * C_group
    z = bias[c_out]
    for c in range(C_group):
        channel = zero(x)
        for i in range(K_h):
            m = row * stride[0] - padding[0] + i * dilation[0]
            if 0 <= m < H:
                for j in range(K_w):
                    l = col * stride[1] - padding[1] + j * dilation[1]
                    if 0 <= l < W:
                        channel = channel + x[n, first + c, m, l] * weight[c_out, c, i, j]
        z = z + channel
    return z


def conv2d(x, weight, bias, stride, padding, dilation, out):
    N, C_out, H_out, W_out = out.shape
    for plane in prange(N * C_out):
        n, c_out = plane // C_out, plane % C_out
        for row in range(H_out):
            for col in range(W_out):
                out[n, c_out, row, col] = conv2d_at(x, weight, bias, stride, padding, dilation, n, c_out, row, col)


def conv2d_grad_input_at(grad, weight, stride, padding, dilation, groups, n, c_in, m, l):
    """∂x[n, c_in, m, l] = Σ_c_out Σ_i Σ_j ∂z[n, c_out, (m + p − i·d)/s, (l + p − j·d)/s] · w[c_out, c_in, i, j]"""
    _, C_out, H_out, W_out = grad.shape
    _, C_group, K_h, K_w = weight.shape
    filters = C_out // groups
    first = c_in // C_group * filters
    c = c_in % C_group
    total = zero(grad)
    for c_out in range(first, first + filters):
        channel = zero(grad)
        for i in range(K_h):
            above = m + padding[0] - i * dilation[0]
            row = above // stride[0]
            if row * stride[0] == above and 0 <= row < H_out:
                for j in range(K_w):
                    before = l + padding[1] - j * dilation[1]
                    col = before // stride[1]
                    if col * stride[1] == before and 0 <= col < W_out:
                        channel = channel + grad[n, c_out, row, col] * weight[c_out, c, i, j]
        total = total + channel
    return total


def conv2d_grad_input(grad, weight, stride, padding, dilation, out):
    N, C_in, H, W = out.shape
    groups = C_in // weight.shape[1]
    for plane in prange(N * C_in):
        n, c_in = plane // C_in, plane % C_in
        for m in range(H):
            for l in range(W):
                out[n, c_in, m, l] = conv2d_grad_input_at(
                    grad, weight, stride, padding, dilation, groups, n, c_in, m, l
                )


def conv2d_grad_weight_at(grad, x, stride, padding, dilation, c_out, c_in, i, j):
    """∂w[c_out, c_in, i, j] = Σ_n Σ_row Σ_col ∂z[n, c_out, row, col] · x[n, c_in, row·s + i·d − p, col·s + j·d − p]"""
    N, _, H_out, W_out = grad.shape
    _, _, H, W = x.shape
    total = zero(grad)
    for n in range(N):
        image = zero(grad)
        for row in range(H_out):
            m = row * stride[0] - padding[0] + i * dilation[0]
            if 0 <= m < H:
                line = zero(grad)
                for col in range(W_out):
                    l = col * stride[1] - padding[1] + j * dilation[1]
                    if 0 <= l < W:
                        line = line + grad[n, c_out, row, col] * x[n, c_in, m, l]
                image = image + line
        total = total + image
    return total


def conv2d_grad_weight(grad, x, stride, padding, dilation, out):
    C_out, C_group, K_h, K_w = out.shape
    filters = C_out // (x.shape[1] // C_group)
    for plane in prange(C_out * C_group):
        c_out, c = plane // C_group, plane % C_group
        c_in = c_out // filters * C_group + c
        for i in range(K_h):
            for j in range(K_w):
                out[c_out, c, i, j] = conv2d_grad_weight_at(grad, x, stride, padding, dilation, c_out, c_in, i, j)


def conv2d_grad_bias_at(grad, c_out):
    """∂b[c_out] = Σ_n Σ_row Σ_col ∂z[n, c_out, row, col]"""
    N, _, H_out, W_out = grad.shape
    total = zero(grad)
    for n in range(N):
        for row in range(H_out):
            line = zero(grad)
            for col in range(W_out):
                line = line + grad[n, c_out, row, col]
            total = total + line
    return total


def conv2d_grad_bias(grad, out):
    for c_out in prange(out.shape[0]):
        out[c_out] = conv2d_grad_bias_at(grad, c_out)


# ---------------------------------------------------------------------------------------------------------
# max_pool2d: no arithmetic at all, so every variant must agree with torch bit for bit
#   jit           the window's comparisons become a few instructions
#   jit-tiled     2×2 windows as vector maxima: bound by reading the input once
#   vector        the same windows as strided views, one maximum a tap
#   cuda          one thread a window; cuda-tiled with the window's geometry as constants: bound by memory traffic
# ---------------------------------------------------------------------------------------------------------


def max_pool2d_at(x, kernel_size, stride, padding, dilation, n, c, row, col):
    """The flat index m·W + l of max over (i, j) of x[n, c, row·s + i·d − p, col·s + j·d − p].

    The first maximum wins; a NaN wins over everything, and the last NaN over other NaNs. −1 where a window meets no
    pixel, as one with dilation may that steps over a small image: its maximum is −∞.
    """
    _, _, H, W = x.shape
    best, index = zero(x), -1
    for i in range(kernel_size[0]):
        m = row * stride[0] - padding[0] + i * dilation[0]
        if 0 <= m < H:
            for j in range(kernel_size[1]):
                l = col * stride[1] - padding[1] + j * dilation[1]
                if 0 <= l < W:
                    value = x[n, c, m, l]
                    if index < 0 or value > best or value != value:
                        best, index = value, m * W + l
    return index


def max_pool2d(x, kernel_size, stride, padding, dilation, out, indices):
    N, C, H_out, W_out = out.shape
    W = x.shape[3]
    for plane in prange(N * C):
        n, c = plane // C, plane % C
        for row in range(H_out):
            for col in range(W_out):
                index = max_pool2d_at(x, kernel_size, stride, padding, dilation, n, c, row, col)
                indices[n, c, row, col] = index
                if index < 0:
                    out[n, c, row, col] = -math.inf
                else:
                    out[n, c, row, col] = x[n, c, index // W, index % W]


def max_pool2d_grad_input_at(grad, indices, kernel_size, stride, padding, dilation, W, m, l):
    """∂x[m, l] = Σ ∂z[row, col] over the windows (row, col) of a plane whose maximum is at m·W + l"""
    H_out, W_out = grad.shape
    total = zero(grad)
    for i in range(kernel_size[0] - 1, -1, -1):  # from the last tap: windows in rising order, as torch adds them
        above = m + padding[0] - i * dilation[0]
        row = above // stride[0]
        if row * stride[0] == above and 0 <= row < H_out:
            for j in range(kernel_size[1] - 1, -1, -1):
                before = l + padding[1] - j * dilation[1]
                col = before // stride[1]
                inside = col * stride[1] == before and 0 <= col < W_out
                if inside and indices[row, col] == m * W + l:
                    total = total + grad[row, col]
    return total


def max_pool2d_grad_input(grad, indices, kernel_size, stride, padding, dilation, out):
    """Each window gives its ∂z to the pixel that was its maximum, in the order in which torch adds them."""
    N, C, H, W = out.shape
    for plane in prange(N * C):
        n, c = plane // C, plane % C
        for m in range(H):
            for l in range(W):
                out[n, c, m, l] = 0
        for row in range(grad.shape[2]):
            for col in range(grad.shape[3]):
                index = indices[n, c, row, col]
                if 0 <= index < H * W:
                    m, l = index // W, index % W
                    out[n, c, m, l] = out[n, c, m, l] + grad[n, c, row, col]


# ---------------------------------------------------------------------------------------------------------
# flatten, the reshape layer, of images: no arithmetic; `vector`, `jit-tiled` and `torch` return a view and move nothing
# ---------------------------------------------------------------------------------------------------------


def flatten(x, out):
    """out[n, j] = x[n, c, m, l] with j = c·H·W + m·W + l"""
    N, C, H, W = x.shape
    for plane in prange(N * C):
        n, c = plane // C, plane % C
        for m in range(H):
            for l in range(W):
                out[n, c * H * W + m * W + l] = x[n, c, m, l]


def flatten_grad_input(grad, out):
    """∂x[n, c, m, l] = ∂out[n, c·H·W + m·W + l]"""
    N, C, H, W = out.shape
    for plane in prange(N * C):
        n, c = plane // C, plane % C
        for m in range(H):
            for l in range(W):
                out[n, c, m, l] = grad[n, c * H * W + m * W + l]


# ---------------------------------------------------------------------------------------------------------
# linear, the fully-connected layer
#   interpreted   one row of weights against one image at a time
#   jit           the compiler turns the innermost sum into vector instructions, but loads two values for
#                 every multiply-add
#   jit-tiled     blocks of rows and images in registers: one load feeds many multiply-adds
#   vector        X·Wᵀ + B as one matrix product
# ---------------------------------------------------------------------------------------------------------


def linear_at(x, weight, bias, n, j):
    """z[n, j] = b[j] + Σ_i w[j, i] · x[n, i]"""
    z = bias[j]
    for first in range(0, weight.shape[1], BLOCK):
        weights, values = weight[j, first : first + BLOCK], x[n, first : first + BLOCK]
        block = zero(x)
        for i in range(weights.shape[0]):
            block = block + weights[i] * values[i]
        z = z + block
    return z


def linear(x, weight, bias, out):
    N, O = out.shape
    for element in prange(N * O):
        n, j = element // O, element % O
        out[n, j] = linear_at(x, weight, bias, n, j)


def linear_grad_input_at(grad, weight, n, i):
    """∂x[n, i] = Σ_j ∂z[n, j] · w[j, i]"""
    total = zero(grad)
    for j in range(weight.shape[0]):
        total = total + grad[n, j] * weight[j, i]
    return total


def linear_grad_input(grad, weight, out):
    """A row of ∂x at a time: rows of w are read as they lie, and neighbours of ∂x share a vector register."""
    N, I = out.shape
    for n in prange(N):
        for i in range(I):
            out[n, i] = 0
        for j in range(weight.shape[0]):
            for i in range(I):
                out[n, i] = out[n, i] + grad[n, j] * weight[j, i]


def linear_grad_weight_at(grad, x, j, i):
    """∂w[j, i] = Σ_n ∂z[n, j] · x[n, i]"""
    total = zero(grad)
    for n in range(grad.shape[0]):
        total = total + grad[n, j] * x[n, i]
    return total


def linear_grad_weight(grad, x, out):
    O, I = out.shape
    for j in prange(O):
        for i in range(I):
            out[j, i] = 0
        for n in range(x.shape[0]):
            for i in range(I):
                out[j, i] = out[j, i] + grad[n, j] * x[n, i]


def linear_grad_bias_at(grad, j):
    """∂b[j] = Σ_n ∂z[n, j]"""
    total = zero(grad)
    for n in range(grad.shape[0]):
        total = total + grad[n, j]
    return total


def linear_grad_bias(grad, out):
    for j in prange(out.shape[0]):
        out[j] = linear_grad_bias_at(grad, j)


# ---------------------------------------------------------------------------------------------------------
# relu, on arrays of any shape seen as one dimension; bound by memory traffic in every compiled variant
# ---------------------------------------------------------------------------------------------------------


def relu_at(x, i):
    """z[i] = max(0, x[i]); NaN stays NaN, and −0.0 stays −0.0"""
    return zero(x) if x[i] < 0 else x[i]


def relu(x, out):
    for i in prange(x.shape[0]):
        out[i] = relu_at(x, i)


def relu_grad_input_at(grad, z, i):
    """∂x[i] = ∂z[i] where z[i] > 0, else 0 (so 0 at x = 0); where z is NaN the gradient passes"""
    return zero(grad) if z[i] <= 0 else grad[i]


def relu_grad_input(grad, z, out):
    for i in prange(grad.shape[0]):
        out[i] = relu_grad_input_at(grad, z, i)


# ---------------------------------------------------------------------------------------------------------
# softmax, log_softmax, cross_entropy over the classes c of x: (N, C, D)
#   jit           `exp` is one call into the C library for each element
#   jit-tiled     `exp` as a polynomial on vector registers
#   vector        a maximum, an exp and a sum, each over the whole array
#   cuda          one thread a sample (n, d); cuda-tiled many threads a sample of many classes
# ---------------------------------------------------------------------------------------------------------


def class_max_at(x, n, d):
    """max_c x[n, c, d]: subtracting it keeps exp from overflowing; a NaN wins"""
    best = x[n, 0, d]
    for c in range(1, x.shape[1]):
        if x[n, c, d] > best or x[n, c, d] != x[n, c, d]:
            best = x[n, c, d]
    return best


def exp_sum_at(x, top, n, d):
    """Σ_c exp(x[n, c, d] − top)"""
    total = zero(x)
    for c in range(x.shape[1]):
        total = total + math.exp(x[n, c, d] - top)
    return total


def softmax(x, out):
    """z[n, c, d] = exp(x[n, c, d] − top) / Σ_k exp(x[n, k, d] − top)"""
    N, C, D = x.shape
    for sample in prange(N * D):
        softmax_at(x, out, sample // D, sample % D)


def softmax_at(x, out, n, d):
    top = class_max_at(x, n, d)
    total = exp_sum_at(x, top, n, d)
    for c in range(x.shape[1]):
        out[n, c, d] = math.exp(x[n, c, d] - top) / total


def softmax_grad_input_at(grad, z, out, n, d):
    """∂x[n, c, d] = z[n, c, d] · (∂z[n, c, d] − Σ_k ∂z[n, k, d] · z[n, k, d])"""
    total = zero(grad)
    for c in range(grad.shape[1]):
        total = total + grad[n, c, d] * z[n, c, d]
    for c in range(grad.shape[1]):
        out[n, c, d] = z[n, c, d] * (grad[n, c, d] - total)


def softmax_grad_input(grad, z, out):
    N, C, D = out.shape
    for sample in prange(N * D):
        softmax_grad_input_at(grad, z, out, sample // D, sample % D)


def log_softmax_at(x, out, n, d):
    """z[n, c, d] = x[n, c, d] − top − log Σ_k exp(x[n, k, d] − top)"""
    top = class_max_at(x, n, d)
    log_total = math.log(exp_sum_at(x, top, n, d))
    for c in range(x.shape[1]):
        out[n, c, d] = x[n, c, d] - top - log_total


def log_softmax(x, out):
    N, C, D = x.shape
    for sample in prange(N * D):
        log_softmax_at(x, out, sample // D, sample % D)


def log_softmax_grad_input_at(grad, z, out, n, d):
    """∂x[n, c, d] = ∂z[n, c, d] − exp(z[n, c, d]) · Σ_k ∂z[n, k, d]"""
    total = zero(grad)
    for c in range(grad.shape[1]):
        total = total + grad[n, c, d]
    for c in range(grad.shape[1]):
        out[n, c, d] = grad[n, c, d] - math.exp(z[n, c, d]) * total


def log_softmax_grad_input(grad, z, out):
    N, C, D = out.shape
    for sample in prange(N * D):
        log_softmax_grad_input_at(grad, z, out, sample // D, sample % D)


def cross_entropy_at(log_p, target, weight, smoothing, n, d):
    """−(1 − ε) · w[y] · log_p[n, y, d] − ε/C · Σ_c w[c] · log_p[n, c, d] with y = target[n, d]

    A y outside [0, C), which only an unchecked target on a GPU can hold, gives NaN and reads nothing.
    """
    C = log_p.shape[1]
    y = target[n, d]
    if y < 0 or y >= C:
        return number(log_p, math.nan)
    hit = -weight[y] * log_p[n, y, d]
    epsilon = number(log_p, smoothing)
    if epsilon == 0:
        return hit
    spread = zero(log_p)
    for c in range(C):
        spread = spread - weight[c] * log_p[n, c, d]
    return (number(log_p, 1) - epsilon) * hit + epsilon / number(log_p, C) * spread


def loss_at(log_p, target, weight, ignore_index, smoothing, losses, weights, n, d):
    """The loss and the weight w[y] of a sample, both 0 where y is `ignore_index`"""
    y = target[n, d]
    counts, known = y != ignore_index, min(max(y, 0), weight.shape[0] - 1)
    losses[n, d] = cross_entropy_at(log_p, target, weight, smoothing, n, d) if counts else zero(log_p)
    weights[n, d] = weight[known] if counts else zero(weight)


def cross_entropy(x, target, weight, ignore_index, smoothing, losses, weights, log_p):
    """The loss and the weight of each sample, and log_p = log_softmax(x)."""
    N, C, D = x.shape
    for sample in prange(N * D):
        n, d = sample // D, sample % D
        log_softmax_at(x, log_p, n, d)
        loss_at(log_p, target, weight, ignore_index, smoothing, losses, weights, n, d)


def pull_at(log_p, target, weight, smoothing, n, c, d):
    """t_c = w[c] · ((1 − ε)·[c = y] + ε/C)"""
    epsilon = number(log_p, smoothing)
    pull = epsilon / number(log_p, log_p.shape[1]) * weight[c]
    return pull + (number(log_p, 1) - epsilon) * weight[c] if c == target[n, d] else pull


def cross_entropy_grad_input_at(grad, log_p, target, weight, ignore_index, smoothing, out, n, d):
    """∂x[n, c, d] = ∂loss[n, d] · (exp(log_p[n, c, d]) · Σ_k t_k − t_c)"""
    total = zero(log_p)
    for c in range(log_p.shape[1]):
        total = total + pull_at(log_p, target, weight, smoothing, n, c, d)
    for c in range(log_p.shape[1]):
        out[n, c, d] = 0
        if target[n, d] != ignore_index:
            pull = pull_at(log_p, target, weight, smoothing, n, c, d)
            out[n, c, d] = grad[n, d] * (math.exp(log_p[n, c, d]) * total - pull)


def cross_entropy_grad_input(grad, log_p, target, weight, ignore_index, smoothing, out):
    N, C, D = out.shape
    for sample in prange(N * D):
        cross_entropy_grad_input_at(grad, log_p, target, weight, ignore_index, smoothing, out, sample // D, sample % D)
