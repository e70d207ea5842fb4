"""linear and its gradients as products of matrices, shared out to the cores by the longer side of the result."""

import numpy as np

from jitconv.variants.simd import DOT_COLUMNS, DOT_ROWS, ROWS, VECTORS, lanes
from jitconv.variants.tiled.dots import Runs, dot_products
from jitconv.variants.tiled.product import (
    NONE,
    ONE,
    Operand,
    Panels,
    Places,
    Target,
    copy,
    inner,
    pack,
    pack_turned,
    product,
    share,
    steps,
)
from jitconv.variants.tiled.workers import each_worker

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
def panels_of(a, turned, rows):
    """Some rows of A, packed; A is `a`, or turned, its columns."""
    return pack_turned(a, rows) if turned == 1 else pack(a[rows[0] : rows[1]], 1)


@inner
def common_panels(a, turned, c):
    """What the cores have in common: all of A, unless they share C by rows."""
    M, N = c.shape
    return np.empty(0, a.dtype) if M > N else panels_of(a, turned, (NONE, M))


@inner
def multiply(worker, workers, a, a_turned, common, b, b_turned, c, start):
    """The worker's rows, or if there are more, columns, of C: (M, N) = start + A · B, or C += A · B."""
    (M, N), K = c.shape, b.shape[1] if b_turned == 1 else b.shape[0]
    rows, columns, panels = (NONE, M), share(N, worker, workers, VECTORS * lanes(c)), common
    if M > N:
        rows, columns = share(M, worker, workers, ROWS), (NONE, N)
        panels = panels_of(a, a_turned, rows)
    first, last = rows
    if first < last:
        target = Target(c[first:last].reshape(-1), N, Places(N, N))
        parts = Panels(panels, last - first, K)
        product(parts, (NONE, last - first), operand(b, b_turned), columns, target, start[first:last])


@inner
def dot(worker, workers, x, weight, out):
    """z[n, j] += Σ_i w[j, i] · x[n, i] for the worker's images or, if there are more, outputs."""
    N, O = out.shape
    rows, columns = (NONE, N), share(O, worker, workers, DOT_COLUMNS)
    if N > O:
        rows, columns = share(N, worker, workers, DOT_ROWS), (NONE, O)
    if rows[0] < rows[1] and columns[0] < columns[1]:
        runs, c = Runs(1, x.shape[1], 0, 0), out.reshape(-1)[rows[0] * O + columns[0] :]
        images, weights = rows_of(x)[rows[0] : rows[1]], rows_of(weight)[columns[0] : columns[1]]
        dot_products(x.reshape(-1), images, weight.reshape(-1), weights, runs, c, O)


def linear(team, workers, x, weight, bias, out):
    """z[n, j] = b[j] + Σ_i w[j, i] · x[n, i]"""
    (N, O), flat = out.shape, out.reshape(-1)
    for n in range(N):
        copy(bias, 0, flat, n * O, O)
    if N <= FEW_IMAGES or min(FEW_OUTPUTS, x.shape[1] // TERMS) >= O:
        each_worker(team, workers, dot, (x, weight, out))
    else:
        panels, nothing = common_panels(x, NONE, out), np.empty(0, out.dtype)
        each_worker(team, workers, multiply, (x, NONE, panels, weight, ONE, out, nothing))


def linear_grad_input(team, workers, grad, weight, out):
    """∂x[n, i] = Σ_j ∂z[n, j] · w[j, i]"""
    panels, start = common_panels(grad, NONE, out), np.zeros(out.shape[0], out.dtype)
    each_worker(team, workers, multiply, (grad, NONE, panels, weight, NONE, out, start))


def linear_grad_weight(team, workers, grad, x, out):
    """∂w[j, i] = Σ_n ∂z[n, j] · x[n, i]"""
    panels, start = common_panels(grad, ONE, out), np.zeros(out.shape[0], out.dtype)
    each_worker(team, workers, multiply, (grad, ONE, panels, x, NONE, out, start))
