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
from jitconv.variants.tiled.product import HEIGHTS, NONE, clear, finite, share
from jitconv.variants.winograd.transforms import TERMS, input_tile, output_tile, weight_tile
from jitconv.variants.workers import each_worker

LINE = 64  # bytes
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


class Blocking(NamedTuple):
    """What is computed at once: the tiles of so many images, lines and columns of tiles, or fewer."""

    images: int
    rows: int
    columns: int


class Block(NamedTuple):
    """Images, lines and columns of tiles: from the first of each pair to the second, without it."""

    images: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]


@inner
def aligned(count, like):
    """An array of so many numbers, of an array's dtype, that begins at a cache line."""
    room = np.empty(count + LINE // like.itemsize, like.dtype)
    skip = -room.ctypes.data % LINE // like.itemsize
    return room[skip : skip + count]


@inner
def matrix_size(C, like):
    """The numbers in one matrix of U, (C, NR), with C in whole registers."""
    step = lanes(like)
    return (C + step - 1) // step * step * NR_VECTORS * step + SKEW


def pack(start, workers, points, filters, groups, u):
    """Fill u, (groups, panels, (m + 2)², C, NR), with G g Gᵀ; with NaN in the first place if a filter is not finite."""
    if finite(filters.numbers):
        each_worker(start, workers, _pack, (points, filters, groups, u))
    else:
        u[0] = np.nan


@inner
def _pack(worker, workers, points, filters, groups, u):
    step, matrix, across = lanes(u), matrix_size(filters.C, u), 2 * len(points) + 2
    width, size = NR_VECTORS * step, across * across * matrix
    panels = (filters.K + width - 1) // width
    mine, taps = share(groups * panels, worker, workers, 1), np.zeros(TAPS * step, u.dtype)
    for panel in range(mine[0], mine[1]):
        for k in range(panel % panels * width, panel % panels * width + width, step):
            count = max(0, min(step, filters.K - k))
            if count < step:
                clear(taps, 0, taps.size)
            for c in range((matrix - SKEW) // width):
                if c == filters.C:
                    clear(taps, 0, taps.size)
                if c < filters.C:
                    i = panel // panels * filters.group + k * filters.k_ld + c * filters.c_ld
                    transpose_taps(filters.numbers, i, filters.k_ld, taps, count)
                at = panel * size + c * width + k % width
                first, down = filters.first * step, 3 * filters.step * step
                weight_tile(points, taps, first, down, filters.step * step, u, at, across * matrix, matrix)


@inner
def transpose_taps(numbers, i, ld, taps, count):
    """taps[t · lanes + k] = numbers[i + k · ld + t] for k < count: the taps of as many filters as a register holds."""
    step = lanes(taps)
    for t in range(0, TAPS, step):
        transpose(numbers, i + t, ld, taps, t * step, step, count, min(step, TAPS - t))


def conv2d(start, workers, points, blocking, limits, x, packed, filters, bias, corner, out):
    """z = max(low, min(high, filters ∗ x + bias)) with stride 1; z[…, 0, 0] has its first tap at x[…, corner]."""
    each_worker(start, workers, _convolve, (points, blocking, limits, x, packed, filters, bias, corner, out))


@inner
def blocks_of(blocking, out, m):
    """How many blocks there are of images, lines and columns of tiles; and how many lines and columns of tiles."""
    N, _, H, W = out.shape
    down, across = (H + m - 1) // m, (W + m - 1) // m
    images, rows, columns = blocking.images, blocking.rows, blocking.columns
    counts = (N + images - 1) // images, (down + rows - 1) // rows, (across + columns - 1) // columns
    return counts, (N, down, across)


@inner
def block_at(index, counts, totals):
    """Block number `index` of them, all about as large."""
    n, row, column = index // (counts[1] * counts[2]), index // counts[2] % counts[1], index % counts[2]
    return Block(
        (n * totals[0] // counts[0], (n + 1) * totals[0] // counts[0]),
        (row * totals[1] // counts[1], (row + 1) * totals[1] // counts[1]),
        (column * totals[2] // counts[2], (column + 1) * totals[2] // counts[2]),
    )


@inner
def _convolve(worker, workers, points, blocking, limits, x, u, filters, bias, corner, out):
    m, step, C = 2 * len(points), lanes(x), filters.C
    size, width = (m + 2) * (m + 2), NR_VECTORS * step
    groups, panels = x.shape[1] // C, (filters.K + width - 1) // width
    counts, totals = blocks_of(blocking, out, m)
    blocks, mine = shares(worker, workers, counts[0] * counts[1] * counts[2], panels)
    if blocks[0] >= blocks[1] or mine[0] >= mine[1]:
        return
    tiles, vectors = blocking.images * blocking.rows * blocking.columns, (C + step - 1) // step
    v_ld, s_ld = vectors * tiles * step + SKEW, tiles * width + SKEW
    v, s = aligned(size * v_ld, x), aligned(size * s_ld, x)
    near = aligned((blocking.rows * m + 2) * (blocking.columns * m + 2) * step, x)
    far, wrong = aligned(blocking.rows * m * blocking.columns * m * step, x), np.zeros(tiles, np.uint8)
    group_bias = np.zeros(panels * width, x.dtype)
    for g in range(groups):
        group_bias[: filters.K] = bias[g * filters.K : (g + 1) * filters.K]
        for index in range(blocks[0], blocks[1]):
            block = block_at(index, counts, totals)
            count = _transform_pixels(points, x, (g * C, (g + 1) * C), corner, block, near, v, tiles, v_ld)
            for panel in range(mine[0], mine[1]):
                for p in range(size):
                    j = ((g * panels + panel) * size + p) * matrix_size(C, x)
                    _products(v, p * v_ld, tiles * step, vectors, u, j, s, p * s_ld, count)
                for k in range(panel * width, min((panel + 1) * width, filters.K), step):
                    outputs = g * filters.K, k, min(step, filters.K - k)
                    bad = _transform_sums(
                        points, s, k % width, s_ld, outputs, group_bias, limits, block, far, wrong, out
                    )
                    if bad:
                        _repair(m, x, g, filters, group_bias, limits, corner, block, wrong, outputs, out)


@inner
def shares(worker, workers, blocks, panels):
    """The worker's blocks of tiles and panels of filters: of all the others, whichever makes more even shares."""
    blocks_each, panels_each = (blocks + workers - 1) // workers, (panels + workers - 1) // workers
    if blocks_each * panels <= panels_each * blocks:
        return share(blocks, worker, workers, 1), (NONE, panels)
    return (NONE, blocks), share(panels, worker, workers, 1)


@inner
def _transform_pixels(points, x, channels, corner, block, near, v, tiles, v_ld):
    """V of a block's tiles; returns how many they are."""
    m, step = 2 * len(points), lanes(x)
    rows, columns = (block.rows[1] - block.rows[0]) * m + 2, (block.columns[1] - block.columns[0]) * m + 2
    top, left, count = block.rows[0] * m + corner[0], block.columns[0] * m + corner[1], 0
    clear(near, 0, rows * columns * step)
    for c in range(channels[0], channels[1], step):
        if channels[1] - c < step:
            clear(near, 0, rows * columns * step)
        t = (c - channels[0]) // step * tiles
        for n in range(block.images[0], block.images[1]):
            _load_pixels(x, n, c, min(step, channels[1] - c), (top, left), (rows, columns), near)
            for row in range(0, rows - 2, m):
                for column in range(0, columns - 2, m):
                    i = (row * columns + column) * step
                    input_tile(points, near, i, columns * step, step, v, t * step, (m + 2) * v_ld, v_ld)
                    t += 1
        count = t - (c - channels[0]) // step * tiles
    return count


@inner
def _load_pixels(x, n, c, channels, corner, size, near):
    """near[row, column, lane] = x[n, c + lane, corner + (row, column)] where that is inside the image."""
    (_, C, H, W), (top, left), (rows, columns), step = x.shape, corner, size, lanes(x)
    pixels, first, last = x.reshape(-1), max(0, -left), min(columns, W - left)
    for row in range(max(0, -top), min(rows, H - top)):
        i, at = ((n * C + c) * H + top + row) * W + left, row * columns
        for q in range(first, last, step):
            if channels == step and last - q >= step:  # code without masks
                transpose(pixels, i + q, H * W, near, (at + q) * step, step, step, step)
            else:
                transpose(pixels, i + q, H * W, near, (at + q) * step, step, channels, min(step, last - q))


@inner
def _products(v, i, ld, vectors, u, j, s, at, count):
    """s[at + t·NR + k] = Σ_c v[t, c] · u[c, k] for `count` tiles t and a panel of U, a few of whose rows stay near."""
    step = lanes(v)
    width, block = NR_VECTORS * step, TERMS // step
    for first in range(0, vectors, block):
        t, terms = 0, min(block, vectors - first)
        for height in literal_unroll(HEIGHTS[::-1]):  # each height is code of its own
            while count - t >= height:
                a, b, c = i + first * ld + t * step, j + first * step * width, at + t * width
                _register_tile(height, v, a, ld, terms, u, b, s, c, first > 0)
                t += height


@partial(inner, forceinline=True)
def _register_tile(height, v, i, ld, vectors, u, j, s, at, more):
    step, total = lanes(v), zeros(v, height, NR_VECTORS)
    for k in range(vectors):
        for c in range(step):
            total = fma_outer(total, v, i + k * ld + c, step, u, j + (k * step + c) * NR_VECTORS * step, None)
    if more:
        total = load_add(total, s, at, NR_VECTORS * step)
    store(total, s, at, NR_VECTORS * step, None)


@inner
def _transform_sums(points, s, at, s_ld, outputs, group_bias, limits, block, far, wrong, out):
    """Write the outputs of a block for a register of filters; returns whether some were not finite, by tile `wrong`."""
    m, step, bad, t = 2 * len(points), lanes(s), False, 0
    (rows, columns), (first, k, channels), (_, K, H, W) = (block.rows, block.columns), outputs, out.shape
    ld, results = (columns[1] - columns[0]) * m, out.reshape(-1)
    height, width = min(H - rows[0] * m, (rows[1] - rows[0]) * m), min(W - columns[0] * m, ld)
    for n in range(block.images[0], block.images[1]):
        for row in range(rows[1] - rows[0]):
            for column in range(columns[1] - columns[0]):
                i, j = at + t * NR_VECTORS * step, (row * ld + column) * m * step
                right = output_tile(
                    points, s, i, (m + 2) * s_ld, s_ld, far, j, ld * step, step, group_bias, k, limits[0], limits[1]
                )
                wrong[t] = not right
                bad |= not right
                t += 1
        for row in range(height):
            i, j = row * ld * step, ((n * K + first + k) * H + rows[0] * m + row) * W + columns[0] * m
            for q in range(0, width, step):
                if channels == step and width - q >= step:
                    transpose(far, i + q * step, step, results, j + q, H * W, step, step)
                else:
                    transpose(far, i + q * step, step, results, j + q, H * W, min(step, width - q), channels)
    return bad


@inner
def _repair(m, x, g, filters, group_bias, limits, corner, block, wrong, outputs, out):
    """Compute the outputs of the tiles that are `wrong` by the equation: a number was not finite, or grew too large."""
    t = 0
    for n in range(block.images[0], block.images[1]):
        for row in range(block.rows[0], block.rows[1]):
            for column in range(block.columns[0], block.columns[1]):
                if wrong[t]:
                    for k in range(outputs[1], outputs[1] + outputs[2]):
                        for i in range(row * m, min(row * m + m, out.shape[2])):
                            for j in range(column * m, min(column * m + m, out.shape[3])):
                                z = _convolve_at(x, n, g, filters, k, i + corner[0], j + corner[1]) + group_bias[k]
                                z = limits[0] if z < limits[0] else z
                                out[n, outputs[0] + k, i, j] = limits[1] if z > limits[1] else z
                t += 1


@inner
def _convolve_at(x, n, g, filters, k, row, column):
    """Σ_c Σ_t of one output, in partial sums of at most TERMS products."""
    H, W, sums = x.shape[2], x.shape[3], np.zeros(2, x.dtype)
    for c in range(filters.C):
        i = g * filters.group + k * filters.k_ld + c * filters.c_ld + filters.first
        for t in range(TAPS):
            a, b = row + t // 3, column + t % 3
            if 0 <= a < H and 0 <= b < W:
                sums[1] += x[n, g * filters.C + c, a, b] * filters.numbers[i + t * filters.step]
        if (c + 1) % (TERMS // TAPS) == 0 or c == filters.C - 1:
            sums[0] += sums[1]
            sums[1] = 0
    return sums[0]
