"""Winograd's convolution, a block of tiles at a time: transform pixels, multiply, transform back.

A tile is m × m outputs of one channel and the (m + 2)² pixels under them; p counts the (m + 2)² products. Channels lie
in the lanes of a register, so that no transform moves a lane:

    V[p, c, tile] = (Bᵀ d B)[p]                         registers of input channels c
    S[p, tile, k] = Σ_c V[p, c, tile] · U[p, c, k]      register tiles of MR tiles × NR output channels k
    y[tile, k]    = Aᵀ S A                              registers of output channels k

U, the transformed filters, is packed beforehand (filters.py). Images are (N, C, H, W): a block's pixels are transposed
to registers of channels with their halo of zeros, its outputs back.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numba import literal_unroll

from jitconv.variants.compiling import inner
from jitconv.variants.simd import NR_VECTORS, fma_outer, lanes, load_add, store, transpose, zeros
from jitconv.variants.tiled.layout import aligned
from jitconv.variants.tiled.product import HEIGHTS, NONE, clear, share
from jitconv.variants.winograd.filters import SKEW, matrix_size
from jitconv.variants.winograd.transforms import BLOCK_TERMS, Square, input_tile, output_tile
from jitconv.variants.workers import each_worker

_aligned = inner(aligned)


class Launch(NamedTuple):
    """z = max(low, min(high, filters ∗ x + bias)), stride 1, by F(m×m, 3×3); z[…, 0, 0] begins at x[…, top, left].

    points: those of the transform, m / 2 of them; C, K: channels and filters of a group; blocks: (count, 6), the fields
    of each Block; images, rows, columns: the most tiles that a block has.
    """

    points: tuple[float, ...]
    C: int
    K: int
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
    outputs: (rows, columns, lanes) of one image. v_ld, sums_ld: from a p to the next.
    """

    pixels: Any
    v: Any
    sums: Any
    outputs: Any
    v_ld: int
    sums_ld: int


def conv2d(start, workers, launch, arrays, overflow):
    """Fill arrays.out; overflow[0]: whether a number before bias and limits was not finite."""
    of_worker = np.zeros(workers, np.bool_)
    each_worker(start, workers, _convolve, (launch, arrays, of_worker))
    overflow[0] = of_worker.any()


@inner
def _convolve(worker, workers, launch, arrays, overflow):
    size, width = (2 * len(launch.points) + 2) ** 2, NR_VECTORS * lanes(arrays.x)
    groups, panels = arrays.x.shape[1] // launch.C, (launch.K + width - 1) // width
    blocks, mine = shares(worker, workers, len(launch.blocks), panels)
    if blocks[0] >= blocks[1] or mine[0] >= mine[1]:
        return
    work, bias = workspace(launch, arrays.x), padded(arrays.bias, groups, launch.K, panels * width)
    for item in range(groups * (blocks[1] - blocks[0])):
        g, index = item // (blocks[1] - blocks[0]), blocks[0] + item % (blocks[1] - blocks[0])
        line = launch.blocks[index]
        block = Block(line[0], line[1], line[2], line[3], line[4], line[5])
        _transform_pixels(launch, arrays.x, g, block, work)
        for panel in range(mine[0], mine[1]):
            for p in range(size):
                u_at = ((g * panels + panel) * size + p) * matrix_size(launch.C, arrays.x)
                _products(work, p, launch.C, arrays.u, u_at, block.images * block.rows * block.columns)
            for k in range(panel * width, min((panel + 1) * width, launch.K), lanes(arrays.x)):
                overflow[worker] |= _transform_sums(launch, g, k, bias, block, work, arrays.out)


@inner
def shares(worker, workers, blocks, panels):
    """The worker's blocks of tiles and panels of filters: of all the others, whichever makes more even shares."""
    blocks_each, panels_each = (blocks + workers - 1) // workers, (panels + workers - 1) // workers
    if blocks_each * panels <= panels_each * blocks:
        return share(blocks, worker, workers, 1), (NONE, panels)
    return (NONE, blocks), share(panels, worker, workers, 1)


@inner
def workspace(launch, like):
    m, step = 2 * len(launch.points), lanes(like)
    size, tiles = (m + 2) * (m + 2), launch.images * launch.rows * launch.columns
    v_ld, sums_ld = (launch.C + step - 1) // step * step * tiles + SKEW, tiles * NR_VECTORS * step + SKEW
    pixels = _aligned((launch.rows * m + 2) * (launch.columns * m + 2) * step, like)
    outputs = _aligned(launch.rows * m * launch.columns * m * step, like)
    return Workspace(pixels, _aligned(size * v_ld, like), _aligned(size * sums_ld, like), outputs, v_ld, sums_ld)


@inner
def padded(bias, groups, K, ld):
    """bias: (groups·K,) as (groups, ld), flat, with zeros after the K of each group."""
    numbers = np.zeros(groups * ld, bias.dtype)
    for g in range(groups):
        numbers[g * ld : g * ld + K] = bias[g * K : (g + 1) * K]
    return numbers


@inner
def _transform_pixels(launch, x, g, block, work):
    """V = Bᵀ d B for the tiles of a block and the channels of group g, a register of channels at a time."""
    m, step, capacity = 2 * len(launch.points), lanes(x), launch.images * launch.rows * launch.columns
    rows, columns, tiles = block.rows * m + 2, block.columns * m + 2, block.rows * block.columns
    pixels, v, v_ld = work.pixels, work.v, work.v_ld
    corner = block.row * m + launch.top, block.column * m + launch.left
    clear(pixels, 0, rows * columns * step)
    for item in range((launch.C + step - 1) // step * block.images):
        vector, n = item // block.images, item % block.images
        channels = min(step, launch.C - vector * step)
        if n == 0 and channels < step:
            clear(pixels, 0, rows * columns * step)
        _load_pixels(x, (block.n + n, g * launch.C + vector * step), channels, corner, (rows, columns), pixels)
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
            _transpose(source, i + q, H * W, pixels, (j + q) * step, step, channels, last - q)


@partial(inner, forceinline=True)
def _transpose(source, i, ld, target, j, target_ld, rows, columns):
    """target[j + c · target_ld + r] = source[i + r · ld + c] for r < rows, c < columns; of both at most a register."""
    step = lanes(source)
    if rows >= step and columns >= step:  # code without masks
        transpose(source, i, ld, target, j, target_ld, None, None)
    else:
        transpose(source, i, ld, target, j, target_ld, min(step, rows), min(step, columns))


@inner
def _products(work, p, C, u, u_at, tiles):
    """S[p, tile, k] = Σ_c V[p, c, tile] · U[p, c, k] for a panel of U, whose rows stay near a few at a time."""
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
def _transform_sums(launch, g, k, bias, block, work, out):
    """y = Aᵀ S A, bias and limits, for a block and a register of channels of group g, from k on.

    Returns whether a number is not finite.
    """
    m, step, tiles = 2 * len(launch.points), lanes(bias), block.rows * block.columns
    (_, C, H, W), (top, left), ld = out.shape, (block.row * m, block.column * m), block.columns * m
    sums, outputs, sums_ld, limits, overflow = work.sums, work.outputs, work.sums_ld, (launch.low, launch.high), False
    bias_at, channels, results = g * (bias.size // (C // launch.K)) + k, min(step, launch.K - k), out.reshape(-1)
    for n in range(block.images):
        for tile in range(tiles):
            row, column = tile // block.columns, tile % block.columns
            at = k % (NR_VECTORS * step) + (n * tiles + tile) * NR_VECTORS * step
            source = Square(at, (m + 2) * sums_ld, sums_ld)
            target = Square((row * ld + column) * m * step, ld * step, step)
            overflow |= not output_tile(launch.points, sums, source, outputs, target, bias, bias_at, limits)
        first = (((block.n + n) * C + g * launch.K + k) * H + top) * W + left
        width = min(W - left, ld)
        for row in range(min(H - top, block.rows * m)):
            i, j = row * ld, first + row * W
            for q in range(0, width, step):
                _transpose(outputs, (i + q) * step, step, results, j + q, H * W, width - q, channels)
    return overflow
