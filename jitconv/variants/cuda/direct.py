"""conv2d over few channels, directly: a thread computes some positions of many filters, all sums in registers.

Every input value that it reads serves all its filters. Their weights wait in shared memory, where one read serves every
thread of a warp, and all positions of each. The geometry is made of constants of the kernel. Where 2×2 pooling follows,
the positions of a thread are those of a window, and their maximum is all that it writes.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from jitconv.variants.cuda.finish import Finish
from jitconv.variants.cuda.grid import number, unfold
from jitconv.variants.cuda.launch import Kernel, device, size
from jitconv.variants.cuda.sizes import ALIGNMENT, DIRECT_FILTERS, DIRECT_POSITIONS, DIRECT_THREADS, ceil_div

Pair = tuple[int, int]


class Places(NamedTuple):
    """Which positions a thread computes, and what it writes of them.

    positions: how many. results: how many elements of a channel it writes, each for as many of its positions; a block
    has those of DIRECT_THREADS threads. at(out, start, p): its p-th position, (n, row, col) of the convolution.
    put(results, start, first, totals): write what becomes of totals, (positions, filters), to channels from `first` on.
    """

    positions: int
    results: int
    at: Callable[..., Any]
    put: Callable[..., None]


@functools.cache
def single(finish: Finish) -> Places:
    """Return positions that are results; neighbours are those of neighbouring threads."""

    @device
    def at(out, start, p):
        N, _, H_out, W_out = out.shape  # one beyond the last is computed like the last, but not written
        return unfold(min(start + p * DIRECT_THREADS, N * H_out * W_out - 1), (H_out, W_out))

    @device
    def put(results, start, first, totals):
        (out,) = results
        N, _, H_out, W_out = out.shape
        for p in range(DIRECT_POSITIONS):
            if start + p * DIRECT_THREADS < N * H_out * W_out:
                n, row, col = unfold(start + p * DIRECT_THREADS, (H_out, W_out))
                for f in range(totals.shape[1]):
                    out[n, first + f, row, col] = finish(out, totals[p, f])

    return Places(DIRECT_POSITIONS, DIRECT_POSITIONS, at, put)


@device
def at_window(out, start, p):
    N, _, H_out, W_out = out.shape
    n, row, col = unfold(min(start, N * H_out * W_out - 1), (H_out, W_out))
    return n, 2 * row + p // 2, 2 * col + p % 2


@device
def put_largest(results, start, first, totals):
    """The maximum of each window, and its index; the first wins, or the last NaN"""
    out, indices, (_, W) = results
    N, _, H_out, W_out = out.shape
    if start < N * H_out * W_out:
        n, row, col = unfold(start, (H_out, W_out))
        for f in range(totals.shape[1]):
            best, place = totals[0, f], 0
            for p in range(1, 4):
                if totals[p, f] > best or totals[p, f] != totals[p, f]:
                    best, place = totals[p, f], p
            out[n, first + f, row, col] = best
            indices[n, first + f, row, col] = (2 * row + place // 2) * W + 2 * col + place % 2


WINDOWS = Places(4, 1, at_window, put_largest)


def conv2d(
    x: Any, weight: Any, bias: Any, stride: Pair, padding: Pair, dilation: Pair, conv_size: Pair,
    results: tuple[Any, ...], places: Places,
) -> None:  # fmt: skip
    """Fill results, of at most MOST_PLACES positions; meant for few terms C_in/groups · K_h · K_w a filter.

    conv_size: (H_out, W_out) of the convolution. The weights of a block lie in shared memory.
    """
    C_out, *window = weight.shape
    C_in, H, W = x.shape[1:]
    most = DIRECT_FILTERS * DIRECT_POSITIONS // places.positions
    filters = next(f for f in range(most, 0, -1) if C_out // (C_in // window[0]) % f == 0)
    blocks = ceil_div(size(results[0]) // C_out, DIRECT_THREADS * places.results), C_out // filters, 1
    inside = padding == (0, 0) and all(
        (steps - 1) * s + (K - 1) * d < extent
        for steps, s, K, d, extent in zip(conv_size, stride, window[1:], dilation, (H, W), strict=True)
    )
    kernel = _kernel(filters, tuple(window), stride, padding, dilation, inside, places)
    kernel.launch(blocks, DIRECT_THREADS, x, weight, bias, C_in // window[0], results)


@functools.cache
def _kernel(
    filters: int, window: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair, inside: bool, mine: Places
) -> Kernel:
    """Return the kernel (x, weight, bias, groups, results). inside: no window leaves the image: nothing is checked."""
    C_group, K_h, K_w = window
    terms = C_group * K_h * K_w
    positions, results_of_block = mine.positions, DIRECT_THREADS * mine.results
    place_at, put = mine.at, mine.put

    @device
    def add_channel(x, strip, c, channel, places, weights, sums):
        for i in range(K_h):
            for j in range(K_w):
                for f in range(filters):
                    weights[f] = strip[(c * K_h + i) * K_w + j, f]
                for p in range(positions):
                    m, l = places[p, 1] + i * dilation[0], places[p, 2] + j * dilation[1]
                    there = inside or (0 <= m < x.shape[2] and 0 <= l < x.shape[3])
                    value = x[places[p, 0], channel, m, l] if there else number(x, 0)
                    for f in range(filters):
                        sums[p, f] += value * weights[f]

    def conv2d(x, weight, bias, groups, results):
        strip = cuda.shared.array((terms, filters), x.dtype, alignment=ALIGNMENT)
        places = cuda.local.array((positions, 3), np.int64)
        weights = cuda.local.array(filters, x.dtype)
        sums = cuda.local.array((positions, filters), x.dtype)
        totals = cuda.local.array((positions, filters), x.dtype)
        first = cuda.blockIdx.y * filters
        first_channel = first // (weight.shape[0] // groups) * C_group
        for e in range(cuda.threadIdx.x, terms * filters, cuda.blockDim.x):
            k, f = e // filters, e % filters
            strip[k, f] = weight[first + f, k // (K_h * K_w), k // K_w % K_h, k % K_w]
        cuda.syncthreads()

        start = cuda.blockIdx.x * results_of_block + cuda.threadIdx.x
        for p in range(positions):
            n, row, col = place_at(results[0], start, p)
            places[p, 0], places[p, 1], places[p, 2] = n, row * stride[0] - padding[0], col * stride[1] - padding[1]
            for f in range(filters):
                totals[p, f] = bias[first + f]
        for c in range(C_group):
            for p in range(positions):
                for f in range(filters):
                    sums[p, f] = 0
            add_channel(x, strip, c, first_channel + c, places, weights, sums)
            for p in range(positions):
                for f in range(filters):
                    totals[p, f] += sums[p, f]
        put(results, start, first, totals)

    return Kernel(conv2d)
