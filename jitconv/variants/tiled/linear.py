"""linear and its gradients as products of matrices, shared out to the cores by the longer side of the result."""

import numpy as np

from jitconv.variants.simd import DOT_COLUMNS, DOT_ROWS, MR, NR_VECTORS, lanes
from jitconv.variants.tiled.dots import Runs, dot_products
from jitconv.variants.tiled.product import (
    NONE,
    ONE,
    AMatrix,
    BMatrix,
    CMatrix,
    Columns,
    a_matrix,
    copy,
    inner,
    product,
    rows_of,
    share,
    steps,
    transpose_matrix,
    workspace,
)
from jitconv.variants.tiled.relu import rectify
from jitconv.variants.workers import each_worker

FEW_OUTPUTS = 32  # up to here, transposing the images costs more than sums across lanes, if the sums are long:
TERMS_PER_OUTPUT = 8
FEW_IMAGES = 256  # up to here, results are computed transposed: the copy of more would not stay in the cache


@inner
def offsets_of(matrix):
    """Where each row of a C-contiguous matrix begins."""
    return steps(matrix.shape[0], NONE, matrix.shape[1])


@inner
def b_matrix(matrix, transposed):
    """A C-contiguous matrix, or its transpose."""
    return BMatrix(matrix.reshape(-1), offsets_of(matrix), Columns(matrix.shape[1], matrix.shape[1]), transposed)


@inner
def c_matrix(c):
    """A C-contiguous matrix, to write to."""
    return CMatrix(c.reshape(-1), c.shape[1], Columns(c.shape[1], c.shape[1]))


@inner
def share_of(c, worker, workers, row_step, column_step):
    """The worker's rows and columns of C: some of that of which there are more."""
    M, N = c.shape
    if M > N:
        return share(M, worker, workers, row_step), (NONE, N)
    return (NONE, M), share(N, worker, workers, column_step)


@inner
def multiply(worker, workers, a, b, c, bias):
    """The worker's rows or columns of C: (M, N) = bias + A · B; returns which they are."""
    rows, columns = share_of(c, worker, workers, MR, NR_VECTORS * lanes(c))
    product(a, rows, b, columns, c_matrix(c), bias, workspace(c))
    return rows, columns


@inner
def wastes_tiles(N, step):
    """Whether N columns would leave a fifth or more of tiles so wide empty, which dot products do not."""
    return (N + step - 1) // step * step * 4 >= N * 5


@inner
def by_dots(worker, workers, relu, x, weight, out):
    """z[n, j] += Σ_i w[j, i] · x[n, i] for the worker's images or outputs."""
    O = out.shape[1]
    rows, columns = share_of(out, worker, workers, DOT_ROWS, DOT_COLUMNS)
    if rows[0] < rows[1] and columns[0] < columns[1]:
        runs, c = Runs(1, x.shape[1], 0, 0), out.reshape(-1)[rows[0] * O + columns[0] :]
        images, weights = offsets_of(x)[rows[0] : rows[1]], offsets_of(weight)[columns[0] : columns[1]]
        dot_products(x.reshape(-1), images, weight.reshape(-1), weights, runs, c, O)
    if relu:
        rectify(c_matrix(out), rows, columns)


@inner
def by_outputs(worker, workers, relu, weights, x, bias, out):
    """zᵀ = W · xᵀ + b for the worker's outputs, and its transpose."""
    N, O = out.shape
    first, last = share(O, worker, workers, MR)
    z, own = np.empty((last - first, N), out.dtype), rows_of(weights, first, last - first)
    product(own, (NONE, last - first), b_matrix(x, ONE), (NONE, N), c_matrix(z), bias[first:last], workspace(z))
    if relu:
        rectify(c_matrix(z), (NONE, last - first), (NONE, N))
    transpose_matrix(z.reshape(-1), NONE, N, out.reshape(-1), first, O, last - first, N)


@inner
def by_images(worker, workers, relu, images, weight, out):
    """z[n, j] += Σ_i w[j, i] · x[n, i] for the worker's images or outputs."""
    rows, columns = multiply(worker, workers, images, b_matrix(weight, ONE), out, np.empty(0, out.dtype))
    if relu:
        rectify(c_matrix(out), rows, columns)


@inner
def add_bias(bias, out):
    """z[n, j] = b[j]"""
    (N, O), flat = out.shape, out.reshape(-1)
    for n in range(N):
        copy(bias, 0, flat, n * O, O)


def linear(start, workers, relu, x, weight, bias, out):
    """z[n, j] = b[j] + Σ_i w[j, i] · x[n, i], with `relu` max(0, z)"""
    (N, O), I = out.shape, x.shape[1]
    if wastes_tiles(N, NR_VECTORS * lanes(x)) or min(FEW_OUTPUTS, I // TERMS_PER_OUTPUT) >= O:
        add_bias(bias, out)
        each_worker(start, workers, by_dots, (relu, x, weight, out))
    elif N <= O and N <= FEW_IMAGES:
        each_worker(start, workers, by_outputs, (relu, a_matrix(weight.reshape(-1), O, I), x, bias, out))
    else:
        add_bias(bias, out)
        each_worker(start, workers, by_images, (relu, a_matrix(x.reshape(-1), N, I), weight, out))


def linear_gradient(start, workers, of_weight, grad, other, out):
    """∂x[n, i] = Σ_j ∂z[n, j] · w[j, i], or with `of_weight` ∂w[j, i] = Σ_n ∂z[n, j] · x[n, i]"""
    (N, O), flat = grad.shape, grad.reshape(-1)
    grads = AMatrix(flat, offsets_of(grad), ONE, O) if of_weight else a_matrix(flat, N, O)
    no_bias = np.zeros(out.shape[0], out.dtype)
    each_worker(start, workers, multiply, (grads, b_matrix(other, NONE), out, no_bias))
