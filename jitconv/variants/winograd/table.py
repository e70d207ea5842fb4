"""Which convolutions jit-winograd computes by which transform, and how many tiles of them at once."""

import math
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np

from jitconv.variants.simd import HALVES, NR_VECTORS, lanes_of
from jitconv.variants.winograd.transforms import POINTS

Shape = tuple[int, ...]
Pair = tuple[int, int]

# What a method costs for each pair of a channel and a filter, in multiply-adds of the direct convolution: for an output
# or a tile, and for the transform of the filter, which counts where filters change at every call.
DIRECT_COST = 9
TILE_COST = {2: 16 * 1.15, 4: 36 * 1.2}
FILTER_COST = {2: 16 * 30, 4: 36 * 30}
# And to read a number of a transformed filter, where all of them are more than a core's share of the last-level cache:
# the time that slow multiplications do not hide.
READ_COST, IN_CACHE = 2 if HALVES else 10, 4_000_000
FEW = 16  # channels or filters of a group, below which the transforms cost more than they save
# Tiles computed at once: at most so many, and so many bytes of their transformed pixels. Fewer than the filters of a
# panel would read the filters more often than it saves reading pixels.
BLOCK_TILES, BLOCK_BYTES = 56, 5 << 18


class Geometry(NamedTuple):
    """A convolution of stride 1 with 3×3 taps: images (N, groups·C, …), outputs (N, groups·K, H, W)."""

    N: int
    groups: int
    C: int
    K: int
    H: int
    W: int

    def tiles(self, m: int) -> tuple[int, int]:
        """The lines and columns of tiles."""
        return -(-self.H // m), -(-self.W // m)


def geometry_of(x: Shape, weight: Shape, out: Shape, transposed: bool) -> Geometry:
    """Of the convolution that is computed; of the gradient for the input, `transposed`, x is that of the output."""
    C, K = weight[1], weight[0] * weight[1] // x[1]
    if transposed:
        C, K = weight[0] * weight[1] // out[1], weight[1]
    return Geometry(x[0], x[1] // C, C, K, *out[2:])


def method(geometry: Geometry, weight: Shape, stride: Pair, dilation: Pair, changing: bool) -> int | None:
    """The m of F(m×m, 3×3) that computes a convolution fastest; None if the direct way does.

    changing: whether the filters are transformed at each call.
    """
    if weight[2:] != (3, 3) or (*stride, *dilation) != (1, 1, 1, 1) or min(geometry.C, geometry.K) < FEW:
        return None
    costs = {}
    for m in POINTS:
        number = (m + 2) ** 2  # of a transformed filter
        read = geometry.groups * geometry.C * geometry.K * number > IN_CACHE
        costs[m] = geometry.N * math.prod(geometry.tiles(m)) * TILE_COST[m]
        costs[m] += changing * FILTER_COST[m] + read * number * READ_COST
    best = min(costs, key=lambda m: costs[m])
    return best if costs[best] < DIRECT_COST * geometry.N * geometry.H * geometry.W else None


def blocking(geometry: Geometry, m: int, dtype: np.dtype[Any]) -> tuple[int, int, int]:
    """The tiles that are computed at once: images, rows and columns; few channels stay in the second-level cache."""
    (down, across), number = geometry.tiles(m), (m + 2) ** 2 * dtype.itemsize
    tiles = min(BLOCK_TILES, max(NR_VECTORS * lanes_of(dtype), BLOCK_BYTES // (number * geometry.C)))
    columns = min(across, tiles)
    rows = max(1, min(down, tiles // columns))
    return max(1, min(geometry.N, tiles // (rows * columns))) if rows == down else 1, rows, columns


def blocks(geometry: Geometry, m: int, dtype: np.dtype[Any]) -> np.ndarray:
    """The blocks of tiles, all about as large: (count, 6), for each the fields of kernels.Block."""
    sizes = (geometry.N, *geometry.tiles(m))
    cuts = [_cuts(size, most) for size, most in zip(sizes, blocking(geometry, m, dtype), strict=True)]
    return np.array([(*firsts, *counts) for firsts, counts in (zip(*b, strict=True) for b in product(*cuts))], np.int64)


def _cuts(size: int, most: int) -> list[tuple[int, int]]:
    """range(size) in as few pieces of at most so many as there can be: the first number of each, and how many."""
    count = -(-size // most)
    edges = [i * size // count for i in range(count + 1)]
    return [(first, last - first) for first, last in pairwise(edges)]
