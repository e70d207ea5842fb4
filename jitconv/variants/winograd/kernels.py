"""Winograd's convolution, a block of tiles at a time: transform pixels, multiply, transform back.

A tile is m × m outputs of one channel and the (m + 2)² pixels under them; p counts the (m + 2)² products. Channels lie
in the lanes of a register, so that no transform moves a lane:

    V[p, c, tile] = (Bᵀ d B)[p]                         registers of input channels c
    S[p, tile, k] = Σ_c V[p, c, tile] · U[p, c, k]      register tiles of MR tiles × NR output channels k
    y[tile, k]    = Aᵀ S A                              registers of output channels k

U, the transformed filters, is packed beforehand. Images are (N, C, H, W): a block's pixels are transposed to registers
of channels with their halo of zeros, its outputs back.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numba import literal_unroll

from jitconv.variants.compiling import inner
from jitconv.variants.simd import NR_VECTORS, fma_outer, lanes, load_add, store, transpose, zeros
from jitconv.variants.tiled.layout import aligned
from jitconv.variants.tiled.product import HEIGHTS, NONE, clear, finite, share
from jitconv.variants.winograd.transforms import BLOCK_TERMS, Square, input_tile, output_tile, weight_tile
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


class Launch(NamedTuple):
    """z = max(low, min(high, filters ∗ x + bias)), stride 1, by F(m×m, 3×3); z[…, 0, 0] begins at x[…, top, left].

    points: those of the transform, m / 2 of them; blocks: (count, 6), the fields of each Block; images, rows, columns:
    the most tiles that a block has.
    """

    points: tuple[float, ...]
    blocks: Any
    images: int
    rows: int
    columns: int
    top: int
    left: int
    low: Any
    high: Any


class Arrays(NamedTuple):
    """x: (N, groups·C, H, W), u: packed filters, bias: (groups·K,), out: (N, groups·K, H_out, W_out)"""

    x: Any
    u: Any
    bias: Any
    out: Any


class Block(NamedTuple):
    """Tiles: of so many images from n on, rows × columns of them from the tile at (row, column) on."""

    n: int
    row: int
    column: int
    images: int
    rows: int
    columns: int


class Workspace(NamedTuple):
    """What a worker holds of one block.

    pixels: (rows, columns, lanes) of one image; v: (p, c / lanes, tile, lanes); sums: (p, tile, NR);
    outputs: (rows, columns, lanes) of one image; overflow: (tile,), 1 where a number is not finite.
    v_ld, sums_ld: from a p to the next.
    """

    pixels: Any
    v: Any
    sums: Any
    outputs: Any
    overflow: Any
    v_ld: int
    sums_ld: int


_aligned = inner(aligned)


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


def conv2d(start, workers, launch, filters, arrays):
    """Fill arrays.out."""
    each_worker(start, workers, _convolve, (launch, filters, arrays))


@inner
def _convolve(worker, workers, launch, filters, arrays):
    size, width = (2 * len(launch.points) + 2) ** 2, NR_VECTORS * lanes(arrays.x)
    groups, panels = arrays.x.shape[1] // filters.C, (filters.K + width - 1) // width
    blocks, mine = shares(worker, workers, len(launch.blocks), panels)
    if blocks[0] >= blocks[1] or mine[0] >= mine[1]:
        return
    work, bias = workspace(launch, filters.C, arrays.x), padded(arrays.bias, groups, filters.K, panels * width)
    for item in range(groups * (blocks[1] - blocks[0])):
        g, index = item // (blocks[1] - blocks[0]), blocks[0] + item % (blocks[1] - blocks[0])
        line = launch.blocks[index]
        block = Block(line[0], line[1], line[2], line[3], line[4], line[5])
        _transform_pixels(launch, arrays.x, g * filters.C, filters.C, block, work)
        for panel in range(mine[0], mine[1]):
            for p in range(size):
                u_at = ((g * panels + panel) * size + p) * matrix_size(filters.C, arrays.x)
                _products(work, p, filters.C, arrays.u, u_at, block.images * block.rows * block.columns)
            for k in range(panel * width, min((panel + 1) * width, filters.K), lanes(arrays.x)):
                overflow = _transform_sums(launch, g, k, filters.K, bias, block, work, arrays.out)
                if overflow:
                    _repair(launch, arrays.x, filters, g, k, bias, block, work.overflow, arrays.out)


@inner
def shares(worker, workers, blocks, panels):
    """The worker's blocks of tiles and panels of filters: of all the others, whichever makes more even shares."""
    blocks_each, panels_each = (blocks + workers - 1) // workers, (panels + workers - 1) // workers
    if blocks_each * panels <= panels_each * blocks:
        return share(blocks, worker, workers, 1), (NONE, panels)
    return (NONE, blocks), share(panels, worker, workers, 1)


@inner
def workspace(launch, C, like):
    m, step = 2 * len(launch.points), lanes(like)
    size, tiles = (m + 2) * (m + 2), launch.images * launch.rows * launch.columns
    v_ld, sums_ld = (C + step - 1) // step * step * tiles + SKEW, tiles * NR_VECTORS * step + SKEW
    pixels = _aligned((launch.rows * m + 2) * (launch.columns * m + 2) * step, like)
    outputs = _aligned(launch.rows * m * launch.columns * m * step, like)
    v, sums, overflow = _aligned(size * v_ld, like), _aligned(size * sums_ld, like), np.zeros(tiles, np.uint8)
    return Workspace(pixels, v, sums, outputs, overflow, v_ld, sums_ld)


@inner
def padded(bias, groups, K, ld):
    """bias: (groups·K,) as (groups, ld), flat, with zeros after the K of each group."""
    numbers = np.zeros(groups * ld, bias.dtype)
    for g in range(groups):
        numbers[g * ld : g * ld + K] = bias[g * K : (g + 1) * K]
    return numbers


@inner
def _transform_pixels(launch, x, first, C, block, work):
    """Fill work.v for the tiles of a block and the C channels from `first` on, a register of channels at a time."""
    m, step, capacity = 2 * len(launch.points), lanes(x), launch.images * launch.rows * launch.columns
    rows, columns, tiles = block.rows * m + 2, block.columns * m + 2, block.rows * block.columns
    pixels, v, v_ld = work.pixels, work.v, work.v_ld
    corner = block.row * m + launch.top, block.column * m + launch.left
    clear(pixels, 0, rows * columns * step)
    for item in range((C + step - 1) // step * block.images):
        vector, n = item // block.images, item % block.images
        channels = min(step, C - vector * step)
        if n == 0 and channels < step:
            clear(pixels, 0, rows * columns * step)
        _load_pixels(x, (block.n + n, first + vector * step), channels, corner, (rows, columns), pixels)
        for tile in range(tiles):
            row, column = tile // block.columns * m, tile % block.columns * m
            source = Square((row * columns + column) * step, columns * step, step)
            target = Square((vector * capacity + n * tiles + tile) * step, (m + 2) * v_ld, v_ld)
            input_tile(launch.points, pixels, source, v, target)


@inner
def _load_pixels(x, plane, channels, corner, size, pixels):
    """pixels[row, column, lane] = x[n, c + lane, corner + (row, column)] where that is inside; plane: (n, c)."""
    (_, C, H, W), (n, c), (top, left), (rows, columns), step = x.shape, plane, corner, size, lanes(x)
    source, first, last = x.reshape(-1), max(0, -left), min(columns, W - left)
    for row in range(max(0, -top), min(rows, H - top)):
        i, j = ((n * C + c) * H + top + row) * W + left, row * columns
        for q in range(first, last, step):
            if channels == step and last - q >= step:  # code without masks
                transpose(source, i + q, H * W, pixels, (j + q) * step, step, step, step)
            else:
                transpose(source, i + q, H * W, pixels, (j + q) * step, step, channels, min(step, last - q))


@inner
def _products(work, p, C, u, u_at, tiles):
    """sums[p, tile, k] = Σ_c V[p, c, tile] · U[p, c, k] for a panel of U, whose rows stay near a few at a time."""
    v, sums, step = work.v, work.sums, lanes(u)
    vectors, width, terms = (C + step - 1) // step, NR_VECTORS * step, BLOCK_TERMS // step
    ld = (work.v_ld - SKEW) // vectors
    for first in range(0, vectors, terms):
        tile, depth = 0, min(terms, vectors - first)
        for height in literal_unroll(HEIGHTS[::-1]):  # each height is code of its own
            while tiles - tile >= height:
                a, c = p * work.v_ld + first * ld + tile * step, p * work.sums_ld + tile * width
                _register_tile(height, v, (a, ld), depth, u, u_at + first * step * width, sums, c, first > 0)
                tile += height


@partial(inner, forceinline=True)
def _register_tile(height, v, a, vectors, u, j, sums, at, more):
    """The sums of a register tile over some vectors of channels, `more` if to what is there; a: where V lies, ld."""
    step, (i, ld), total = lanes(v), a, zeros(v, height, NR_VECTORS)
    for k in range(vectors):
        for c in range(step):
            total = fma_outer(total, v, i + k * ld + c, step, u, j + (k * step + c) * NR_VECTORS * step, None)
    if more:
        total = load_add(total, sums, at, NR_VECTORS * step)
    store(total, sums, at, NR_VECTORS * step, None)


@inner
def _transform_sums(launch, g, k, K, bias, block, work, out):
    """Write a block's outputs of a register of channels of group g, from k on; whether any is not finite."""
    m, step, tiles = 2 * len(launch.points), lanes(bias), block.rows * block.columns
    (_, C, H, W), (top, left), ld = out.shape, (block.row * m, block.column * m), block.columns * m
    sums, outputs, flags, sums_ld, results = work.sums, work.outputs, work.overflow, work.sums_ld, out.reshape(-1)
    bias_at, channels, limits, overflow = (
        g * (bias.size // (C // K)) + k,
        min(step, K - k),
        (launch.low, launch.high),
        False,
    )
    for n in range(block.images):
        for tile in range(tiles):
            row, column = tile // block.columns, tile % block.columns
            at = k % (NR_VECTORS * step) + (n * tiles + tile) * NR_VECTORS * step
            source = Square(at, (m + 2) * sums_ld, sums_ld)
            target = Square((row * ld + column) * m * step, ld * step, step)
            is_finite = output_tile(launch.points, sums, source, outputs, target, bias, bias_at, limits)
            flags[n * tiles + tile] = not is_finite
            overflow |= not is_finite
        first = (((block.n + n) * C + g * K + k) * H + top) * W + left
        height, width = min(H - top, block.rows * m), min(W - left, ld)
        _store_outputs(outputs, ld, height, width, results, first, channels, (H * W, W))
    return overflow


@inner
def _store_outputs(outputs, ld, height, width, out, first, channels, lds):
    """out[first + channel · lds[0] + row · lds[1] + column] = outputs[row, column, channel]"""
    step = lanes(out)
    for row in range(height):
        i, j = row * ld * step, first + row * lds[1]
        for q in range(0, width, step):
            if channels == step and width - q >= step:  # code without masks
                transpose(outputs, i + q * step, step, out, j + q, lds[0], step, step)
            else:
                transpose(outputs, i + q * step, step, out, j + q, lds[0], min(step, width - q), channels)


@inner
def _repair(launch, x, filters, g, k, bias, block, overflow, out):
    """Compute the tiles whose numbers were not finite by the equation, for a register of channels from k on."""
    m, tiles, channels = 2 * len(launch.points), block.rows * block.columns, min(lanes(x), filters.K - k)
    bias_at = g * (bias.size // (out.shape[1] // filters.K)) + k
    for tile in range(block.images * tiles):
        if overflow[tile]:
            n, row = block.n + tile // tiles, (block.row + tile % tiles // block.columns) * m
            column = (block.column + tile % block.columns) * m
            for item in range(channels * m * m):
                c, i, j = item // (m * m), row + item // m % m, column + item % m
                if i < out.shape[2] and j < out.shape[3]:
                    z = _convolve_at(x, n, g, filters, k + c, i + launch.top, j + launch.left) + bias[bias_at + c]
                    z = launch.low if z < launch.low else z
                    out[n, g * filters.K + k + c, i, j] = launch.high if z > launch.high else z


@inner
def _convolve_at(x, n, g, filters, k, row, column):
    """Σ_c Σ_t of one output, in partial sums of at most BLOCK_TERMS products."""
    H, W, sums = x.shape[2], x.shape[3], np.zeros(2, x.dtype)
    for c in range(filters.C):
        i = g * filters.group + k * filters.k_ld + c * filters.c_ld + filters.first
        for t in range(TAPS):
            a, b = row + t // 3, column + t % 3
            if 0 <= a < H and 0 <= b < W:
                sums[1] += x[n, g * filters.C + c, a, b] * filters.numbers[i + t * filters.step]
        if (c + 1) % (BLOCK_TERMS // TAPS) == 0 or c == filters.C - 1:
            sums[0] += sums[1]
            sums[1] = 0
    return sums[0]
