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
from jitconv.variants.tiled.relu import rectify

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
def part_of(c, worker, workers, row_step, column_step):
    """The worker's rows and columns of C: some of that of which there are more."""
    M, N = c.shape
    if M > N:
        return share(M, worker, workers, row_step), (NONE, N)
    return (NONE, M), share(N, worker, workers, column_step)


@inner
def matrix(c):
    """A C-contiguous matrix, to write to."""
    return Target(c.reshape(-1), c.shape[1], Places(c.shape[1], c.shape[1]))


@inner
def multiply(worker, workers, a, a_turned, common, b, b_turned, c, start):
    """The worker's rows or columns of C: (M, N) = start + A · B, or C += A · B; returns which they were."""
    (M, N), K = c.shape, b.shape[1] if b_turned == 1 else b.shape[0]
    rows, columns = part_of(c, worker, workers, ROWS, VECTORS * lanes(c))
    first, last = rows
    if first < last:
        panels = panels_of(a, a_turned, rows) if M > N else common
        parts = Panels(panels, last - first, K)
        product(parts, (NONE, last - first), operand(b, b_turned), columns, matrix(c[first:last]), start[first:last])
    return rows, columns


@inner
def dot(worker, workers, x, weight, out):
    """z[n, j] += Σ_i w[j, i] · x[n, i] for the worker's images or outputs; returns which they were."""
    O = out.shape[1]
    rows, columns = part_of(out, worker, workers, DOT_ROWS, DOT_COLUMNS)
    if rows[0] < rows[1] and columns[0] < columns[1]:
        runs, c = Runs(1, x.shape[1], 0, 0), out.reshape(-1)[rows[0] * O + columns[0] :]
        images, weights = rows_of(x)[rows[0] : rows[1]], rows_of(weight)[columns[0] : columns[1]]
        dot_products(x.reshape(-1), images, weight.reshape(-1), weights, runs, c, O)
    return rows, columns


def linear(workers, relu, x, weight, bias, out):
    """z[n, j] = b[j] + Σ_i w[j, i] · x[n, i], with `relu` max(0, z)"""
    N, O = out.shape
    for n in range(N):
        out[n] = bias
    if N <= FEW_IMAGES or min(FEW_OUTPUTS, x.shape[1] // TERMS) >= O:
        for worker in prange(workers):
            rows, columns = dot(worker, workers, x, weight, out)
            if relu:
                rectify(matrix(out), rows, columns)
    else:
        panels, nothing = common_panels(x, NONE, out), np.empty(0, out.dtype)
        for worker in prange(workers):
            rows, columns = multiply(worker, workers, x, NONE, panels, weight, ONE, out, nothing)
            if relu:
                rectify(matrix(out), rows, columns)


def linear_grad_input(workers, grad, weight, out):
    """∂x[n, i] = Σ_j ∂z[n, j] · w[j, i]"""
    panels, start = common_panels(grad, NONE, out), np.zeros(out.shape[0], out.dtype)
    for worker in prange(workers):
        multiply(worker, workers, grad, NONE, panels, weight, NONE, out, start)


def linear_grad_weight(workers, grad, x, out):
    """∂w[j, i] = Σ_n ∂z[n, j] · x[n, i]"""
    panels, start = common_panels(grad, ONE, out), np.zeros(out.shape[0], out.dtype)
    for worker in prange(workers):
        multiply(worker, workers, grad, ONE, panels, x, NONE, out, start)
