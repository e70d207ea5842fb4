"""linear and its gradients as products of matrices, shared out to the cores by columns or rows of the result."""

import numpy as np
from numba import prange

from jitconv.variants.simd import VECTORS, lanes
from jitconv.variants.tiled.dots import dot_products
from jitconv.variants.tiled.product import inner, pack, product

MANY_IMAGES = 192  # from here on, turning the weights once costs less than the sums across registers


@inner
def rows_of(matrix):
    """Where each row of a matrix begins in memory."""
    return np.arange(matrix.shape[0]) * matrix.shape[1]


@inner
def share(total, worker, workers, step):
    """The worker's part of range(total), begun at a multiple of `step`."""
    steps = (total + step - 1) // step
    return min(worker * steps // workers * step, total), min((worker + 1) * steps // workers * step, total)


def linear(workers, x, weight, bias, out):
    """z[n, j] = b[j] + Σ_i w[j, i] · x[n, i]"""
    N, O = out.shape
    for n in range(N):
        out[n] = bias
    if N < MANY_IMAGES:
        for worker in prange(workers):
            first, last = share(O, worker, workers, 1)
            _few_images(x, weight, out, first, last)
    else:
        turned = np.empty((weight.shape[1], (O + 31) // 32 * 32 + 16), weight.dtype)  # not a power of two
        panels = np.empty(x.size, x.dtype)
        pack(x, panels)
        for worker in prange(workers):
            first, last = share(O, worker, workers, VECTORS * lanes(x))
            _turn(weight, first, last, turned)
            b, c = turned.reshape(-1)[first:], out.reshape(-1)[first:]
            product(panels, N, b, rows_of(turned), last - first, c, O, True, False)


@inner
def _turn(weight, first, last, turned):
    """turned[i, j] = weight[j, i], a cache line of each row at a time."""
    for start in range(first, last, 16):
        rows = weight[start : min(start + 16, last)]
        for i in range(weight.shape[1]):
            line = turned[i, start : start + 16]
            for j in range(rows.shape[0]):
                line[j] = rows[j, i]


@inner
def _few_images(x, weight, out, first, last):
    I = x.shape[1]
    columns = np.arange(first, last) * I
    if columns.shape[0] > 0:
        dot_products(x.reshape(-1), rows_of(x), weight.reshape(-1), columns, I, out.reshape(-1)[first:], out.shape[1])


def linear_grad_input(workers, grad, weight, out):
    """∂x[n, i] = Σ_j ∂z[n, j] · w[j, i]"""
    N, I = out.shape
    panels = np.empty(grad.size, grad.dtype)
    pack(grad, panels)
    for worker in prange(workers):
        first, last = share(I, worker, workers, VECTORS * lanes(grad))
        b, c = weight.reshape(-1)[first:], out.reshape(-1)[first:]
        product(panels, N, b, rows_of(weight), last - first, c, I, False, False)


def linear_grad_weight(workers, grad, x, out):
    """∂w[j, i] = Σ_n ∂z[n, j] · x[n, i]"""
    O, I = out.shape
    for worker in prange(workers):
        first, last = share(O, worker, workers, 1)
        _grad_rows(grad, x, out, first, last)


@inner
def _grad_rows(grad, x, out, first, last):
    part = grad[:, first:last].T
    panels = np.empty(part.size, grad.dtype)
    if last > first:
        pack(part, panels)
        I = out.shape[1]
        product(panels, last - first, x.reshape(-1), rows_of(x), I, out[first:last].reshape(-1), I, False, False)
