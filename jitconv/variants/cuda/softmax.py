"""softmax, log_softmax and cross_entropy for `cuda-tiled`: many classes of one sample are shared out to many threads.

The lanes of a row are neighbours among the threads and take its classes in turn, so that they read neighbours in
memory; what one lane has found, a maximum or a sum, the others learn through shared memory. A row is read several
times, but comes from memory once: the rows at work at one time fit into the nearest cache. Few classes, or samples
that are neighbours in memory themselves (D > 1), are best served by the one thread a sample of `cuda`.
"""

import math
from collections.abc import Callable
from typing import Any

from numba import cuda

from jitconv.variants.cuda import grid
from jitconv.variants.cuda.grid import number
from jitconv.variants.cuda.launch import Kernel, device
from jitconv.variants.cuda.quads import load4
from jitconv.variants.cuda.sizes import ALIGNMENT, FEWEST_CLASSES, LANES, ROWS, ceil_div


@device
def place(x):
    """A thread's sample n, its row in the block, its lane, and the number of classes: none beyond the last sample."""
    thread = cuda.threadIdx.x & (ROWS * LANES - 1)  # the mask changes nothing, but shows that no index is negative
    row = thread // LANES
    n = cuda.blockIdx.x * ROWS + row
    return n, row, thread % LANES, x.shape[1] if n < x.shape[0] else 0


@device
def larger(a, b):
    """max(a, b); a NaN wins"""
    return a if a > b or a != a else b


@device
def exchange(parts, row, lane, part):
    cuda.syncthreads()  # what was exchanged before has been read
    parts[row, lane] = part
    cuda.syncthreads()


@device
def row_max(parts, row, lane, part):
    """max of the parts of all lanes"""
    exchange(parts, row, lane, part)
    result = parts[row, 0]
    for first in range(0, LANES, 4):
        a, b, c, d = load4(parts, (row, first))
        result = larger(larger(larger(a, b), larger(c, d)), result)
    return result


@device
def row_sum(parts, row, lane, part):
    """Σ of the parts of all lanes"""
    exchange(parts, row, lane, part)
    result = number(parts, 0)
    for first in range(0, LANES, 4):
        a, b, c, d = load4(parts, (row, first))
        result += (a + b) + (c + d)
    return result


@device
def exp_sum(x, parts, n, row, lane, C):
    """top = max_c x[n, c], and Σ_c exp(x[n, c] − top)"""
    best, part = number(x, -math.inf), number(x, 0)
    for c in range(lane, C, LANES):
        best = larger(x[n, c, 0], best)
    top = row_max(parts, row, lane, best)
    for c in range(lane, C, LANES):
        part += math.exp(x[n, c, 0] - top)
    return top, row_sum(parts, row, lane, part)


def softmax(x, out):
    parts = cuda.shared.array((ROWS, LANES), x.dtype, alignment=ALIGNMENT)
    n, row, lane, C = place(x)
    top, total = exp_sum(x, parts, n, row, lane, C)
    for c in range(lane, C, LANES):
        out[n, c, 0] = math.exp(x[n, c, 0] - top) / total


def softmax_grad_input(grad, z, out):
    parts = cuda.shared.array((ROWS, LANES), grad.dtype, alignment=ALIGNMENT)
    n, row, lane, C = place(grad)
    part = number(grad, 0)
    for c in range(lane, C, LANES):
        part += grad[n, c, 0] * z[n, c, 0]
    total = row_sum(parts, row, lane, part)
    for c in range(lane, C, LANES):
        out[n, c, 0] = z[n, c, 0] * (grad[n, c, 0] - total)


def log_softmax(x, out):
    parts = cuda.shared.array((ROWS, LANES), x.dtype, alignment=ALIGNMENT)
    n, row, lane, C = place(x)
    write_log_softmax(x, parts, n, row, lane, C, out)


@device
def write_log_softmax(x, parts, n, row, lane, C, out):
    top, total = exp_sum(x, parts, n, row, lane, C)
    if C > 0:
        log_total = math.log(total)
        for c in range(lane, C, LANES):
            out[n, c, 0] = x[n, c, 0] - top - log_total


def log_softmax_grad_input(grad, z, out):
    parts = cuda.shared.array((ROWS, LANES), grad.dtype, alignment=ALIGNMENT)
    n, row, lane, C = place(grad)
    part = number(grad, 0)
    for c in range(lane, C, LANES):
        part += grad[n, c, 0]
    total = row_sum(parts, row, lane, part)
    for c in range(lane, C, LANES):
        out[n, c, 0] = grad[n, c, 0] - math.exp(z[n, c, 0]) * total


def cross_entropy(x, target, weight, ignore_index, smoothing, losses, weights, log_p):
    parts = cuda.shared.array((ROWS, LANES), x.dtype, alignment=ALIGNMENT)
    n, row, lane, C = place(x)
    write_log_softmax(x, parts, n, row, lane, C, log_p)
    cuda.syncthreads()  # one thread of the row reads what all have written
    if lane == 0 and C > 0:
        grid.loss_at(log_p, target, weight, ignore_index, smoothing, losses, weights, n, 0)


def cross_entropy_grad_input(grad, log_p, target, weight, ignore_index, smoothing, out):
    parts = cuda.shared.array((ROWS, LANES), log_p.dtype, alignment=ALIGNMENT)
    n, row, lane, C = place(log_p)
    part = number(log_p, 0)
    for c in range(lane, C, LANES):
        part += grid.pull_at(log_p, target, weight, smoothing, n, c, 0)
    total = row_sum(parts, row, lane, part)
    for c in range(lane, C, LANES):
        slope = math.exp(log_p[n, c, 0]) * total - grid.pull_at(log_p, target, weight, smoothing, n, c, 0)
        out[n, c, 0] = grad[n, 0] * slope if target[n, 0] != ignore_index else number(log_p, 0)


def _by_rows(function: Callable[..., None], samples: int) -> Callable[..., None]:
    """Return the op: `function` for rows of many classes, (N, C, 1), in argument `samples`; for others `cuda`'s."""
    rows, others = Kernel(function), grid.VARIANT.ops[function.__name__]

    def run(*args: Any) -> None:
        N, C, D = args[samples].shape
        if D > 1 or C < FEWEST_CLASSES:
            others(*args)
        else:
            rows.launch((ceil_div(N, ROWS), 1, 1), ROWS * LANES, *args)

    return run


OPS = {
    function.__name__: _by_rows(function, samples)
    for function, samples in (
        (softmax, 0), (softmax_grad_input, 0), (log_softmax, 0), (log_softmax_grad_input, 0),
        (cross_entropy, 0), (cross_entropy_grad_input, 1),
    )
}  # fmt: skip
