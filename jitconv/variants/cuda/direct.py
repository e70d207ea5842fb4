"""conv2d over few channels, directly: a thread computes one position of many filters.

Every input value that it reads serves all its filters, whose weights wait in shared memory, where one read serves
every thread of a warp. The geometry is made of constants of the kernel, so that the loops over the window unroll.
"""

import functools
from typing import Any

from numba import cuda

from jitconv.variants.cuda.grid import number, unfold
from jitconv.variants.cuda.launch import Kernel, device
from jitconv.variants.cuda.sizes import ALIGNMENT, DIRECT_FILTERS, DIRECT_THREADS, ceil_div

Pair = tuple[int, int]


def conv2d(x: Any, weight: Any, bias: Any, stride: Pair, padding: Pair, dilation: Pair, out: Any) -> None:
    """Fill out, of at most MOST_PLACES positions; meant for few terms C_in/groups · K_h · K_w a filter.

    The weights of a block lie in shared memory.
    """
    C_out, *window = weight.shape
    N, C_in, H, W = x.shape
    H_out, W_out = out.shape[2:]
    filters = next(f for f in range(DIRECT_FILTERS, 0, -1) if C_out // (C_in // window[0]) % f == 0)
    blocks = ceil_div(N * H_out * W_out, DIRECT_THREADS), C_out // filters, 1
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
    def add_channel(x, strip, c, n, channel, row, col, sums):
        for i in range(K_h):
            for j in range(K_w):
                m, l = row * stride[0] - padding[0] + i * dilation[0], col * stride[1] - padding[1] + j * dilation[1]
                there = inside or (0 <= m < x.shape[2] and 0 <= l < x.shape[3])
                value = x[n, channel, m, l] if there else number(x, 0)
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
        position = cuda.grid(1)
        if position < N * H_out * W_out:
            n, row, col = unfold(position, (H_out, W_out))
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
