"""Filters as Winograd's convolution reads them: U = G g Gᵀ of every filter, for each panel of NR of them and each p.

U[g, panel, p, c, k]    registers of filters k; p counts the (m + 2)² products of a tile
"""

from typing import Any, NamedTuple

import numpy as np

from jitconv.variants.compiling import inner
from jitconv.variants.simd import NR_VECTORS, lanes, transpose
from jitconv.variants.tiled.product import clear, finite, share
from jitconv.variants.winograd.transforms import Square, weight_tile
from jitconv.variants.workers import each_worker

SKEW = 16  # numbers between the matrices of two p: whole pages apart, they would share sets of the first-level cache
TAPS = 9


class Filters(NamedTuple):
    """Tap t from channel c to output k of group g is numbers[g·group + k·k_ld + c·c_ld + first + t·step]."""

    numbers: Any
    group: int
    k_ld: int
    c_ld: int
    first: int
    step: int
    K: int  # outputs and channels of a group
    C: int


@inner
def matrix_size(C, like):
    """The numbers in one matrix of U, (C, NR), with C in whole registers."""
    step = lanes(like)
    return (C + step - 1) // step * step * NR_VECTORS * step + SKEW


def pack(start, workers, points, filters, groups, u):
    """Fill u, (groups, panels, (m + 2)², C, NR), with G g Gᵀ; u[0] is NaN if a filter is not finite."""
    if finite(filters.numbers):
        each_worker(start, workers, _pack, (points, filters, groups, u))
    else:
        u[0] = np.nan


@inner
def _pack(worker, workers, points, filters, groups, u):
    step, ld, across = lanes(u), matrix_size(filters.C, u), 2 * len(points) + 2
    width, channels = NR_VECTORS * step, (ld - SKEW) // (NR_VECTORS * step)
    panels, taps = (filters.K + width - 1) // width, np.zeros(TAPS * step, u.dtype)
    begin, end = share(groups * panels * NR_VECTORS, worker, workers, 1)
    for item in range(begin, end):  # a register of output channels
        panel, k = item // NR_VECTORS, item // NR_VECTORS % panels * width + item % NR_VECTORS * step
        count = max(0, min(step, filters.K - k))
        clear(taps, 0, taps.size)
        for c in range(channels):
            if c == filters.C:
                clear(taps, 0, taps.size)
            if c < filters.C:
                i = panel // panels * filters.group + k * filters.k_ld + c * filters.c_ld
                transpose_taps(filters.numbers, i, filters.k_ld, taps, count)
            source = Square(filters.first * step, 3 * filters.step * step, filters.step * step)
            target = Square(panel * across * across * ld + c * width + k % width, across * ld, ld)
            weight_tile(points, taps, source, u, target)


@inner
def transpose_taps(numbers, i, ld, taps, count):
    """taps[t · lanes + k] = numbers[i + k · ld + t] for k < count: the taps of as many filters as a register holds."""
    step = lanes(taps)
    for t in range(0, TAPS, step):
        transpose(numbers, i + t, ld, taps, t * step, step, count, min(step, TAPS - t))
