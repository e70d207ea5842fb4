"""The tiled matrix product out[m, n] = Σ_k a[m, k] · b[k, n], under linear, conv2d and their gradients.

A block of threads computes a tile of the output. It copies a strip of `a` (tile.M × tile.K) and of `b` into shared
memory, from which each thread multiplies tile.m rows by tile.n columns in registers: every value that was loaded from
memory is used tile.N or tile.M times, every value from shared memory tile.n or tile.m times. While a strip is
multiplied, the next one is on its way; it goes into a second buffer. Shared memory is read four values at once, and so
is a matrix whose rows allow it.

Matrices are read and written through small functions, so that a convolution never has to write out its columns.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda

from jitconv.variants.cuda.finish import Finish, as_it_is
from jitconv.variants.cuda.grid import grid_range, number
from jitconv.variants.cuda.launch import Kernel, PerElement, device, empty_like
from jitconv.variants.cuda.quads import in_quads, load4, store4
from jitconv.variants.cuda.sizes import ALIGNMENT, BUSY, LARGE, RUN, SHORTEST_SPLIT, SMALL, Tile, ceil_div

PAD = 4  # keeps rows in shared memory apart, so that threads of a warp write to different banks


class Matrix(NamedTuple):
    """How to read a matrix of a product. at(array, layer, group, index, k): the value at row or column `index`.

    along_k: neighbours in memory are neighbours in k. `layer` is what the layer's own functions need to know.
    quads: `at` gives four neighbours, of which the first has an index or k that four divides, and none lies outside
    the matrix unless all do.
    """

    at: Callable[..., Any]
    along_k: bool
    quads: bool = False


@device
def rows_at(array, layer, group, index, k):
    """array: (groups, M or N, K)"""
    return array[group, index, k] if index < array.shape[1] else number(array, 0)


@device
def columns_at(array, layer, group, index, k):
    """array: (groups, K, M or N)"""
    return array[group, k, index] if index < array.shape[2] else number(array, 0)


@device
def zeros(array):
    zero = number(array, 0)
    return zero, zero, zero, zero


@device
def rows4_at(array, layer, group, index, k):
    return load4(array, (group, index, k)) if index < array.shape[1] else zeros(array)


@device
def columns4_at(array, layer, group, index, k):
    return load4(array, (group, k, index)) if index < array.shape[2] else zeros(array)


ROWS, ROWS4 = Matrix(rows_at, True), Matrix(rows4_at, True, quads=True)
COLUMNS, COLUMNS4 = Matrix(columns_at, False), Matrix(columns4_at, False, quads=True)


def rows(array: Any) -> Matrix:
    """Return how to read (groups, M or N, K)."""
    return ROWS4 if in_quads(array) else ROWS


def columns(array: Any) -> Matrix:
    """Return how to read (groups, K, M or N)."""
    return COLUMNS4 if in_quads(array) else COLUMNS


Put = Callable[..., None]


@functools.cache
def put(finish: Finish) -> Put:
    """Return how to write an element of a product."""

    @device
    def put(out, layer, z, m, n, value):
        """out: (splits · groups, M, N)"""
        if m < out.shape[1] and n < out.shape[2]:
            out[z, m, n] = finish(out, value)

    return put


@device
def along_k(element, extent, K):
    """Which (index, k) of a strip the threads copy in which order: k first"""
    return element // K, element % K


@device
def along_index(element, extent, K):
    return element % extent, element // extent


def _copier(matrix: Matrix, extent: int, tile: Tile) -> tuple[Any, Any]:
    """Return how threads fetch a strip (extent × tile.K) of a matrix into registers, and store it in shared memory."""
    K, threads = tile.K, tile.threads
    share = extent * K // threads
    value_at, order = matrix.at, along_k if matrix.along_k else along_index

    @device
    def fetch(array, layer, group, first, k0, stop, thread, kept):
        for r in range(share):
            index, k = order(thread + r * threads, extent, K)
            kept[r] = value_at(array, layer, group, first + index, k0 + k) if k0 + k < stop else number(array, 0)

    @device
    def store(kept, thread, buffer, strips):
        for r in range(share):
            index, k = order(thread + r * threads, extent, K)
            strips[buffer, k, index] = kept[r]

    return fetch, store


def _quad_copier(matrix: Matrix, extent: int, tile: Tile) -> tuple[Any, Any]:
    """Return the same for a matrix that is read in quads."""
    K, threads = tile.K, tile.threads
    share = extent * K // threads // 4
    quad_at, order, is_along_k = matrix.at, along_k if matrix.along_k else along_index, matrix.along_k

    @device
    def fetch(array, layer, group, first, k0, stop, thread, kept):
        for r in range(share):
            index, k = order((thread + r * threads) * 4, extent, K)
            quad = quad_at(array, layer, group, first + index, k0 + k) if k0 + k < stop else zeros(array)
            kept[4 * r], kept[4 * r + 1], kept[4 * r + 2], kept[4 * r + 3] = quad

    @device
    def store(kept, thread, buffer, strips):
        for r in range(share):
            index, k = order((thread + r * threads) * 4, extent, K)
            if is_along_k:
                for e in range(4):
                    strips[buffer, k + e, index] = kept[4 * r + e]
            else:
                quad = kept[4 * r], kept[4 * r + 1], kept[4 * r + 2], kept[4 * r + 3]
                store4(strips, (buffer, k, index), quad)

    return fetch, store


@functools.cache
def product(tile: Tile, a_matrix: Matrix, b_matrix: Matrix, put: Put) -> Kernel:
    """Return the kernel (a, b, out, layer, groups, columns, depth) that multiplies such matrices tile by tile."""
    M, N, K, m, n = tile
    threads, row_threads = tile.threads, N // n
    pitch_a, pitch_b = M + PAD, N + PAD
    share_a, share_b = M * K // threads, N * K // threads
    fetch_a, store_a = (_quad_copier if a_matrix.quads else _copier)(a_matrix, M, tile)
    fetch_b, store_b = (_quad_copier if b_matrix.quads else _copier)(b_matrix, N, tile)

    # Of a tile's rows and columns, a thread has quads, which alternate with the quads of other threads.
    row_gap, col_gap = M // m, N // n

    @device
    def add_term(strips_a, strips_b, buffer, k, row, col, sums):
        left, right = cuda.local.array(m, sums.dtype), cuda.local.array(n, sums.dtype)
        for i in range(0, m, 4):
            left[i], left[i + 1], left[i + 2], left[i + 3] = load4(strips_a, (buffer, k, i * row_gap + 4 * row))
        for j in range(0, n, 4):
            right[j], right[j + 1], right[j + 2], right[j + 3] = load4(strips_b, (buffer, k, j * col_gap + 4 * col))
        for i in range(m):
            for j in range(n):
                sums[i, j] += left[i] * right[j]

    @device
    def multiply_strips(strips_a, strips_b, buffer, row, col, sums):
        for k in range(0, K, 4):  # four terms are too much code for the compiler to unroll by itself
            add_term(strips_a, strips_b, buffer, k, row, col, sums)
            add_term(strips_a, strips_b, buffer, k + 1, row, col, sums)
            add_term(strips_a, strips_b, buffer, k + 2, row, col, sums)
            add_term(strips_a, strips_b, buffer, k + 3, row, col, sums)

    def kernel(a, b, out, layer, groups, columns, depth):
        strips_a = cuda.shared.array((2, K, pitch_a), a.dtype, alignment=ALIGNMENT)
        strips_b = cuda.shared.array((2, K, pitch_b), a.dtype, alignment=ALIGNMENT)
        next_a, next_b = cuda.local.array(share_a, a.dtype), cuda.local.array(share_b, a.dtype)
        sums, totals = cuda.local.array((m, n), a.dtype), cuda.local.array((m, n), a.dtype)

        thread = cuda.threadIdx.x & (threads - 1)  # the mask changes nothing, but shows that no index is negative
        row, col = thread // row_threads, thread % row_threads
        tile_m, tile_n = divmod(cuda.blockIdx.x, (columns + N - 1) // N)
        split, group = divmod(cuda.blockIdx.z, groups)
        first_m, first_n = tile_m * M, tile_n * N
        splits = cuda.gridDim.z // groups
        share = ((depth + splits - 1) // splits + 3) // 4 * 4  # no quad belongs to two splits
        start, stop = split * share, min(depth, (split + 1) * share)

        for i in range(m):
            for j in range(n):
                sums[i, j] = totals[i, j] = 0
        buffer = run = 0
        for k0 in range(start - K, stop, K):  # the first turn only fetches, the last one fetches nothing
            fetch_a(a, layer, group, first_m, k0 + K, stop, thread, next_a)
            fetch_b(b, layer, group, first_n, k0 + K, stop, thread, next_b)
            if k0 >= start:
                multiply_strips(strips_a, strips_b, buffer, row, col, sums)
                run += K
            if run == RUN or k0 + K >= stop:
                run = 0
                for i in range(m):
                    for j in range(n):
                        totals[i, j] += sums[i, j]
                        sums[i, j] = 0
            buffer ^= 1
            store_a(next_a, thread, buffer, strips_a)
            store_b(next_b, thread, buffer, strips_b)
            cuda.syncthreads()

        for i in range(m):
            for j in range(n):
                at_m = first_m + i // 4 * 4 * row_gap + 4 * row + i % 4
                at_n = first_n + j // 4 * 4 * col_gap + 4 * col + j % 4
                put(out, layer, cuda.blockIdx.z, at_m, at_n, totals[i, j])

    return Kernel(kernel)


@functools.cache
def add_up(finish: Finish) -> PerElement:
    """Return the kernel (parts, out)."""

    def add_up(parts, out):
        """out[e] = Σ_s parts[s, e]"""
        for e in grid_range(out.size):
            total = number(parts, 0)
            for s in range(parts.shape[0]):
                total += parts[s, e]
            out[e] = finish(out, total)

    return PerElement(add_up)


def multiply(
    a: Any, b: Any, out: Any, matrices: tuple[Matrix, Matrix], shape: tuple[int, int, int], depth: int,
    layer: tuple[Any, ...] = (), put: Callable[[Finish], Put] = put, finish: Finish = as_it_is,
) -> None:  # fmt: skip
    """Fill out with what `finish` makes of products of shape (groups, M, N) over `depth` terms.

    Where the tiles of a plain out, (groups, M, N), are too few for a GPU, the terms are split between blocks and their
    sums added up afterwards. An out of another form is never split: its own `put` finds the elements' places.
    """
    groups, M, N = shape
    tile = choose(groups, M, N, out)
    tiles = ceil_div(M, tile.M) * ceil_div(N, tile.N)
    plain = tuple(out.shape) == shape
    splits = max(1, min(BUSY // (tiles * groups), depth // SHORTEST_SPLIT)) if plain else 1
    parts = out if splits == 1 else empty_like(out, (splits * groups, M, N))
    kernel = product(tile, *matrices, put(finish if splits == 1 else as_it_is))
    kernel.launch((tiles, 1, groups * splits), tile.threads, a, b, parts, layer, groups, N, depth)
    if splits > 1:
        add_up(finish)(parts.reshape(splits, -1), out.reshape(-1))


def choose(groups: int, M: int, N: int, like: Any) -> Tile:
    """Return the large tile, which loads less, where it still makes enough blocks; float64 has no room for it."""
    enough = groups * ceil_div(M, LARGE.M) * ceil_div(N, LARGE.N) >= BUSY
    return LARGE if enough and like.dtype.itemsize == 4 else SMALL
