"""Sums that many threads share, for `cuda-tiled`: over a batch for the gradients of biases and of few weights.

The threads of a block add up their shares of a sum; what each has found, all learn through shared memory.
"""

import functools
from collections.abc import Callable
from typing import Any

from numba import cuda

from jitconv.variants.cuda.launch import Kernel, device, size
from jitconv.variants.cuda.per_element import PerElement, grid_range, number
from jitconv.variants.cuda.sizes import RUN, THREADS


@device
def add(a, b):
    return a + b


@device
def larger(a, b):
    """max(a, b); a NaN wins"""
    return a if a > b or a != a else b


def block_reduction(combine: Callable[..., Any]) -> Callable[..., Any]:
    """Return reduce(shared, value): the values of all threads of a block combined; shared: (THREADS,)."""

    @device
    def reduce(shared, value):
        thread, half = cuda.threadIdx.x, THREADS // 2
        cuda.syncthreads()  # an earlier result has been read
        shared[thread] = value
        cuda.syncthreads()
        while half > 0:
            if thread < half:
                shared[thread] = combine(shared[thread], shared[thread + half])
            half //= 2
            cuda.syncthreads()
        return shared[0]

    return reduce


block_sum, block_max = block_reduction(add), block_reduction(larger)


@functools.cache
def sums(term: Callable[..., Any]) -> Callable[[Any, Any, Any, int], None]:
    """Return the op (a, b, out, terms) that fills out[e] = Σ_p term(a, b, e, p), a block an element."""

    def sums(a, b, out, terms):
        shared = cuda.shared.array(THREADS, a.dtype)
        element, total = cuda.blockIdx.x, number(a, 0)
        for first in range(cuda.threadIdx.x, terms, RUN * THREADS):
            run = number(a, 0)
            for p in range(first, min(first + RUN * THREADS, terms), THREADS):
                run += term(a, b, element, p)
            total += run
        total = block_sum(shared, total)
        if cuda.threadIdx.x == 0:
            out[element] = total

    kernel = Kernel(sums)

    def op(a: Any, b: Any, out: Any, terms: int) -> None:
        kernel.launch((size(out), 1), THREADS, a, b, out.reshape(-1), terms)

    return op


@device
def _pixel(grad, _, c, p):
    """grad: (N, C, H·W)"""
    n, pixel = divmod(p, grad.shape[2])
    return grad[n, c, pixel]


def conv2d_grad_bias(grad: Any, out: Any) -> None:
    """∂b[c_out] = Σ_n Σ_row Σ_col ∂z[n, c_out, row, col]"""
    N, C, H, W = grad.shape
    grad = grad.reshape(N, C, H * W)
    sums(_pixel)(grad, grad, out, N * H * W)


@functools.cache
def sum_parts(relu: bool) -> PerElement:
    """Return the kernel (parts, out): out[e] = Σ_s parts[s, e], or max(0, that)."""

    def sum_parts(parts, out):
        for e in grid_range(out.size):
            total = number(parts, 0)
            for s in range(parts.shape[0]):
                total += parts[s, e]
            out[e] = number(parts, 0) if relu and total < 0 else total

    return PerElement(sum_parts)
