"""linear and its gradients as products of matrices, shared out to the cores by columns of the result."""

import numpy as np
from numba import prange

from jitconv.variants.simd import VECTORS, lanes
from jitconv.variants.tiled.dots import Runs, dot_products
from jitconv.variants.tiled.product import (
    NONE,
    ONE,
    Operand,
    Panels,
    Places,
    Target,
    inner,
    pack,
    pack_turned,
    product,
    share,
    steps,
)

FEW_IMAGES = 128  # up to here, turning the weights costs more than sums across registers, which read them as they lie


@inner
def rows_of(matrix):
    """Where each row of a matrix begins in memory."""
    return steps(matrix.shape[0], NONE, matrix.shape[1])


@inner
def operand(matrix, turned):
    """A C-contiguous matrix, read by rows or, turned, by columns."""
    return Operand(matrix.reshape(-1), rows_of(matrix), Places(matrix.shape[1], matrix.shape[1]), turned)


@inner
def multiply(worker, workers, panels, b, turned, c, start):
    """The worker's columns of C: (M, N) = start + A · B, or C += A · B; b: (K, N), or turned, (N, K)."""
    (M, N), K = c.shape, b.shape[1] if turned == 1 else b.shape[0]
    target = Target(c.reshape(-1), N, Places(N, N))
    part = share(N, worker, workers, VECTORS * lanes(c))
    product(Panels(panels, M, K), (NONE, M), operand(b, turned), part, target, start)


@inner
def _few_images(x, weight, out, first):
    """z[n, j] += Σ_i w[j, i] · x[n, i] for some j, from the first on."""
    if weight.shape[0] > 0:
        runs, c = Runs(1, x.shape[1], 0, 0), out.reshape(-1)[first:]
        dot_products(x.reshape(-1), rows_of(x), weight.reshape(-1), rows_of(weight), runs, c, out.shape[1])


def linear(workers, x, weight, bias, out):
    """z[n, j] = b[j] + Σ_i w[j, i] · x[n, i]"""
    N, O = out.shape
    for n in range(N):
        out[n] = bias
    if N <= FEW_IMAGES:
        for worker in prange(workers):
            first, last = share(O, worker, workers, 1)
            _few_images(x, weight[first:last], out, first)
    else:
        panels, nothing = pack(x, 1), np.empty(0, out.dtype)
        for worker in prange(workers):
            multiply(worker, workers, panels, weight, ONE, out, nothing)


def linear_grad_input(workers, grad, weight, out):
    """∂x[n, i] = Σ_j ∂z[n, j] · w[j, i]"""
    panels, start = pack(grad, 1), np.zeros(grad.shape[0], out.dtype)
    for worker in prange(workers):
        multiply(worker, workers, panels, weight, NONE, out, start)


def linear_grad_weight(workers, grad, x, out):
    """∂w[j, i] = Σ_n ∂z[n, j] · x[n, i]"""
    panels, start = pack_turned(grad), np.zeros(grad.shape[1], out.dtype)
    for worker in prange(workers):
        multiply(worker, workers, panels, x, NONE, out, start)
