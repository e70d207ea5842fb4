"""conv2d over few channels, directly: a thread computes one position of many filters.

Every input value that it reads serves all its filters, whose weights wait in shared memory, where one read serves
every thread of a warp. The extents of the window are constants of the kernel, so that its loops unroll.
"""

import functools
from typing import Any

from numba import cuda

from jitconv.variants.cuda.grid import grid_range, number
from jitconv.variants.cuda.launch import Kernel, device
from jitconv.variants.cuda.sizes import ALIGNMENT, DIRECT_FILTERS, MOST_BLOCKS, THREADS, ceil_div

Pair = tuple[int, int]


def conv2d(x: Any, weight: Any, bias: Any, stride: Pair, padding: Pair, dilation: Pair, out: Any) -> None:
    """Fill out; meant for few terms C_in/groups · K_h · K_w, because the weights of a block lie in shared memory."""
    C_out, *window = weight.shape
    N, _, H_out, W_out = out.shape
    groups = x.shape[1] // window[0]
    filters = next(f for f in range(DIRECT_FILTERS, 0, -1) if C_out // groups % f == 0)
    blocks = min(ceil_div(N * H_out * W_out, THREADS), MOST_BLOCKS), C_out // filters, 1
    kernel = _kernel(filters, tuple(window), stride, padding, dilation)
    kernel.launch(blocks, THREADS, x, weight, bias, groups, out)


@functools.cache
def _kernel(filters: int, window: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair) -> Kernel:
    C_group, K_h, K_w = window
    terms = C_group * K_h * K_w

    @device
    def add_channel(x, strip, c, n, channel, row, col, sums):
        for i in range(K_h):
            for j in range(K_w):
                m, l = row * stride[0] - padding[0] + i * dilation[0], col * stride[1] - padding[1] + j * dilation[1]
                inside = 0 <= m < x.shape[2] and 0 <= l < x.shape[3]
                value = x[n, channel, m, l] if inside else number(x, 0)
                for f in range(filters):
                    sums[f] += value * strip[(c * K_h + i) * K_w + j, f]

    def conv2d(x, weight, bias, groups, out):
        strip = cuda.shared.array((terms, filters), x.dtype, alignment=ALIGNMENT)
        sums, totals = cuda.local.array(filters, x.dtype), cuda.local.array(filters, x.dtype)
        N, C_out, H_out, W_out = out.shape
        first = cuda.blockIdx.y * filters
        first_channel = first // (C_out // groups) * C_group
        for e in range(cuda.threadIdx.x, terms * filters, cuda.blockDim.x):
            k, f = e // filters, e % filters
            strip[k, f] = weight[first + f, k // (K_h * K_w), k // K_w % K_h, k % K_w]
        cuda.syncthreads()
        for position in grid_range(N * H_out * W_out):
            rest, col = divmod(position, W_out)
            n, row = divmod(rest, H_out)
            for f in range(filters):
                totals[f] = bias[first + f]
            for c in range(C_group):
                for f in range(filters):
                    sums[f] = 0
                add_channel(x, strip, c, n, first_channel + c, row, col, sums)
                for f in range(filters):
                    totals[f] += sums[f]
            for f in range(filters):
                out[n, first + f, row, col] = totals[f]

    return Kernel(conv2d)
