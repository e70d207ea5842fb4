"""conv2d over few channels, directly: a thread computes some positions of many filters, all sums in registers.

Every input value that it reads serves all its filters. Their weights wait in shared memory, where one read serves every
thread of a warp, and all positions of each. The geometry is made of constants of the kernel.
"""

import functools
from typing import Any

import numpy as np
from numba import cuda

from jitconv.variants.cuda.grid import number, unfold
from jitconv.variants.cuda.launch import Kernel, device
from jitconv.variants.cuda.sizes import ALIGNMENT, DIRECT_FILTERS, DIRECT_POSITIONS, DIRECT_THREADS, ceil_div

Pair = tuple[int, int]


def conv2d(x: Any, weight: Any, bias: Any, stride: Pair, padding: Pair, dilation: Pair, out: Any) -> None:
    """Fill out, of at most MOST_PLACES positions; meant for few terms C_in/groups · K_h · K_w a filter.

    The weights of a block lie in shared memory.
    """
    C_out, *window = weight.shape
    N, C_in, H, W = x.shape
    H_out, W_out = out.shape[2:]
    filters = next(f for f in range(DIRECT_FILTERS, 0, -1) if C_out // (C_in // window[0]) % f == 0)
    blocks = ceil_div(N * H_out * W_out, DIRECT_THREADS * DIRECT_POSITIONS), C_out // filters, 1
    inside = padding == (0, 0) and all(
        (steps - 1) * s + (K - 1) * d < extent
        for steps, s, K, d, extent in zip((H_out, W_out), stride, window[1:], dilation, (H, W), strict=True)
    )
    kernel = _kernel(filters, tuple(window), stride, padding, dilation, inside)
    kernel.launch(blocks, DIRECT_THREADS, x, weight, bias, C_in // window[0], out)


@functools.cache
def _kernel(filters: int, window: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair, inside: bool) -> Kernel:
    """Return the kernel (x, weight, bias, groups, out). inside: no window leaves the image, so nothing is checked."""
    C_group, K_h, K_w = window
    terms = C_group * K_h * K_w

    @device
    def add_channel(x, strip, c, channel, places, weights, sums):
        for i in range(K_h):
            for j in range(K_w):
                for f in range(filters):
                    weights[f] = strip[(c * K_h + i) * K_w + j, f]
                for p in range(DIRECT_POSITIONS):
                    m, l = places[p, 1] + i * dilation[0], places[p, 2] + j * dilation[1]
                    there = inside or (0 <= m < x.shape[2] and 0 <= l < x.shape[3])
                    value = x[places[p, 0], channel, m, l] if there else number(x, 0)
                    for f in range(filters):
                        sums[p, f] += value * weights[f]

    def conv2d(x, weight, bias, groups, out):
        strip = cuda.shared.array((terms, filters), x.dtype, alignment=ALIGNMENT)
        places = cuda.local.array((DIRECT_POSITIONS, 3), np.int64)
        weights = cuda.local.array(filters, x.dtype)
        sums = cuda.local.array((DIRECT_POSITIONS, filters), x.dtype)
        totals = cuda.local.array((DIRECT_POSITIONS, filters), x.dtype)
        N, C_out, H_out, W_out = out.shape
        first = cuda.blockIdx.y * filters
        first_channel = first // (C_out // groups) * C_group
        for e in range(cuda.threadIdx.x, terms * filters, cuda.blockDim.x):
            k, f = e // filters, e % filters
            strip[k, f] = weight[first + f, k // (K_h * K_w), k // K_w % K_h, k % K_w]
        cuda.syncthreads()

        start = cuda.blockIdx.x * (DIRECT_THREADS * DIRECT_POSITIONS) + cuda.threadIdx.x
        for p in range(DIRECT_POSITIONS):  # one beyond the last is computed like the last, but not written
            n, row, col = unfold(min(start + p * DIRECT_THREADS, N * H_out * W_out - 1), (H_out, W_out))
            places[p, 0], places[p, 1], places[p, 2] = n, row * stride[0] - padding[0], col * stride[1] - padding[1]
            for f in range(filters):
                totals[p, f] = bias[first + f]
        for c in range(C_group):
            for p in range(DIRECT_POSITIONS):
                for f in range(filters):
                    sums[p, f] = 0
            add_channel(x, strip, c, first_channel + c, places, weights, sums)
            for p in range(DIRECT_POSITIONS):
                for f in range(filters):
                    totals[p, f] += sums[p, f]
        for p in range(DIRECT_POSITIONS):
            if start + p * DIRECT_THREADS < N * H_out * W_out:
                n, row, col = unfold(start + p * DIRECT_THREADS, (H_out, W_out))
                for f in range(filters):
                    out[n, first + f, row, col] = totals[p, f]

    return Kernel(conv2d)
