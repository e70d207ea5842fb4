"""linear and its gradients as products of matrices, shared out to the cores by the longer side of the result."""

import numpy as np
from numba import prange

from jitconv.variants.simd import DOT_COLUMNS, DOT_ROWS, ROWS, VECTORS, lanes
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

FEW_IMAGES = 128  # up to here, turning the weights costs more than sums across registers, which read them as they lie;
FEW_OUTPUTS = 32  # so does packing the images for so few uses, if the sums are long:
TERMS = 8  # for each output


@inner
def rows_of(matrix):
    """Where each row of a matrix begins in memory."""
    return steps(matrix.shape[0], NONE, matrix.shape[1])


@inner
def operand(matrix, turned):
    """A C-contiguous matrix, read by rows or, turned, by columns."""
    return Operand(matrix.reshape(-1), rows_of(matrix), Places(matrix.shape[1], matrix.shape[1]), turned)


@inner
def multiply(panels, b, turned, columns, c, start):
    """Some columns of C: (M, N) = start + A · B, or C += A · B; b: (K, N), or turned, (N, K)."""
    (M, N), K = c.shape, b.shape[1] if turned == 1 else b.shape[0]
    target = Target(c.reshape(-1), N, Places(N, N))
    product(Panels(panels, M, K), (NONE, M), operand(b, turned), columns, target, start)


@inner
def multiply_rows(panels, b, turned, rows, c, start):
    """Some rows of C, from panels of the same rows of A."""
    if rows[0] < rows[1]:
        multiply(panels, b, turned, (NONE, c.shape[1]), c[rows[0] : rows[1]], start[rows[0] : rows[1]])


@inner
def columns_of(worker, workers, c):
    """The worker's columns of C."""
    return share(c.shape[1], worker, workers, VECTORS * lanes(c))


@inner
def _dots(x, weight, out, rows, columns):
    """z[n, j] += Σ_i w[j, i] · x[n, i] for some n and some j."""
    (first, last), O = rows, out.shape[1]
    if first < last and columns[0] < columns[1]:
        runs, c = Runs(1, x.shape[1], 0, 0), out.reshape(-1)[first * O + columns[0] :]
        images, weights = rows_of(x)[first:last], rows_of(weight)[columns[0] : columns[1]]
        dot_products(x.reshape(-1), images, weight.reshape(-1), weights, runs, c, O)


def linear(workers, x, weight, bias, out):
    """z[n, j] = b[j] + Σ_i w[j, i] · x[n, i]"""
    (N, O), I = out.shape, x.shape[1]
    for n in range(N):
        out[n] = bias
    nothing = np.empty(0, out.dtype)
    few = min(FEW_OUTPUTS, I // TERMS)
    if N <= FEW_IMAGES or few >= O:
        for worker in prange(workers):
            if N > O:
                _dots(x, weight, out, share(N, worker, workers, DOT_ROWS), (NONE, O))
            else:
                _dots(x, weight, out, (NONE, N), share(O, worker, workers, DOT_COLUMNS))
    elif N > O:
        for worker in prange(workers):
            first, last = share(N, worker, workers, ROWS)
            multiply_rows(pack(x[first:last], 1), weight, ONE, (first, last), out, nothing)
    else:
        panels = pack(x, 1)
        for worker in prange(workers):
            multiply(panels, weight, ONE, columns_of(worker, workers, out), out, nothing)


def linear_grad_input(workers, grad, weight, out):
    """∂x[n, i] = Σ_j ∂z[n, j] · w[j, i]"""
    (N, I), start = out.shape, np.zeros(out.shape[0], out.dtype)
    if N > I:
        for worker in prange(workers):
            first, last = share(N, worker, workers, ROWS)
            multiply_rows(pack(grad[first:last], 1), weight, NONE, (first, last), out, start)
    else:
        panels = pack(grad, 1)
        for worker in prange(workers):
            multiply(panels, weight, NONE, columns_of(worker, workers, out), out, start)


def linear_grad_weight(workers, grad, x, out):
    """∂w[j, i] = Σ_n ∂z[n, j] · x[n, i]"""
    (O, I), start = out.shape, np.zeros(out.shape[0], out.dtype)
    if O > I:
        for worker in prange(workers):
            rows = share(O, worker, workers, ROWS)
            multiply_rows(pack_turned(grad, rows), x, NONE, rows, out, start)
    else:
        panels = pack_turned(grad, (NONE, O))
        for worker in prange(workers):
            multiply(panels, x, NONE, columns_of(worker, workers, out), out, start)
