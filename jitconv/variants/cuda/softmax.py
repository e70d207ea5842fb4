"""softmax, log_softmax and cross_entropy of many classes for `cuda-tiled`: a block of threads shares one sample.

Neighbouring threads read neighbouring classes. What each has found, the largest class or a sum, all learn through
shared memory. Where classes are few, or samples lie side by side (D > 1), one thread a sample reads as well: those are
the bodies of scalar.py, as in `cuda`.
"""

import math
from collections.abc import Callable
from typing import Any

from numba import cuda

from jitconv.variants.cuda.launch import Kernel, device
from jitconv.variants.cuda.per_element import OPS_PER_ELEMENT, bodies, number
from jitconv.variants.cuda.reduce import block_max, block_sum, larger
from jitconv.variants.cuda.sizes import MIN_CLASSES, THREADS

loss_at, pull_at = bodies.loss_at, bodies.pull_at


@device
def classes(x):
    """This thread's classes of the block's sample n."""
    return range(cuda.threadIdx.x, x.shape[1], THREADS)


@device
def max_and_exp_sum(x, shared, n):
    """top = max_c x[n, c, 0], and Σ_c exp(x[n, c, 0] − top)"""
    part = number(x, -math.inf)
    for c in classes(x):
        part = larger(part, x[n, c, 0])
    top = block_max(shared, part)
    part = number(x, 0)
    for c in classes(x):
        part += math.exp(x[n, c, 0] - top)
    return top, block_sum(shared, part)


def softmax(x, out):
    shared, n = cuda.shared.array(THREADS, x.dtype), cuda.blockIdx.x
    top, total = max_and_exp_sum(x, shared, n)
    for c in classes(x):
        out[n, c, 0] = math.exp(x[n, c, 0] - top) / total


def softmax_grad_input(grad, z, out):
    shared, n = cuda.shared.array(THREADS, grad.dtype), cuda.blockIdx.x
    part = number(grad, 0)
    for c in classes(grad):
        part += grad[n, c, 0] * z[n, c, 0]
    total = block_sum(shared, part)
    for c in classes(grad):
        out[n, c, 0] = z[n, c, 0] * (grad[n, c, 0] - total)


def log_softmax(x, out):
    shared, n = cuda.shared.array(THREADS, x.dtype), cuda.blockIdx.x
    top, total = max_and_exp_sum(x, shared, n)
    for c in classes(x):
        out[n, c, 0] = x[n, c, 0] - top - math.log(total)


def log_softmax_grad_input(grad, z, out):
    shared, n = cuda.shared.array(THREADS, grad.dtype), cuda.blockIdx.x
    part = number(grad, 0)
    for c in classes(grad):
        part += grad[n, c, 0]
    total = block_sum(shared, part)
    for c in classes(grad):
        out[n, c, 0] = grad[n, c, 0] - math.exp(z[n, c, 0]) * total


def cross_entropy(x, target, weight, ignore_index, smoothing, losses, weights, log_p):
    shared, n = cuda.shared.array(THREADS, x.dtype), cuda.blockIdx.x
    top, total = max_and_exp_sum(x, shared, n)
    for c in classes(x):
        log_p[n, c, 0] = x[n, c, 0] - top - math.log(total)
    cuda.syncthreads()  # now one thread may read what the others have written
    if cuda.threadIdx.x == 0:
        loss_at(log_p, target, weight, ignore_index, smoothing, losses, weights, n, 0)


def cross_entropy_grad_input(grad, log_p, target, weight, ignore_index, smoothing, out):
    shared, n = cuda.shared.array(THREADS, log_p.dtype), cuda.blockIdx.x
    part = number(log_p, 0)
    for c in classes(log_p):
        part += pull_at(log_p, target, weight, smoothing, n, c, 0)
    total = block_sum(shared, part)
    for c in classes(log_p):
        slope = math.exp(log_p[n, c, 0]) * total - pull_at(log_p, target, weight, smoothing, n, c, 0)
        out[n, c, 0] = grad[n, 0] * slope if target[n, 0] != ignore_index else number(log_p, 0)


def _op(function: Callable[..., None]) -> Callable[..., None]:
    """Return the op that shares the classes of a sample where they are many and neighbours in memory."""
    shared, per_sample = Kernel(function), OPS_PER_ELEMENT[function.__name__]

    def run(*args: Any) -> None:
        N, C, D = args[function is cross_entropy_grad_input].shape
        if C >= MIN_CLASSES and D == 1:
            shared.launch((N, 1), THREADS, *args)
        else:
            per_sample(*args)

    return run


FUNCTIONS = (softmax, softmax_grad_input, log_softmax, log_softmax_grad_input, cross_entropy, cross_entropy_grad_input)
SOFTMAX_OPS = {function.__name__: _op(function) for function in FUNCTIONS}
