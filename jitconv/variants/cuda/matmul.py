"""The tiled matrix product out[m, n] = Σ_k a[m, k] · b[k, n], under linear, conv2d and their gradients.

A block of threads computes a tile of BM × BN outputs. It copies the a and b of BK terms at a time into shared memory,
from which each thread adds up a register tile of TM × TN: a value from global memory is used BN or BM times, a value
from shared memory TN or TM times. The sums of RUN terms are added to totals of their own, for their rounding error.

Operands are read and results written through small functions, so that a convolution never writes out its columns.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda

from jitconv.variants.cuda.launch import Kernel, device, empty_like
from jitconv.variants.cuda.per_element import number
from jitconv.variants.cuda.reduce import sum_parts
from jitconv.variants.cuda.sizes import FLAT, MIN_SPLIT, RUN, SQUARE, TARGET_BLOCKS, Tile, ceil_div

PAD = 1  # between the rows of a tile in shared memory: threads that write a column of it use different banks

Shape = tuple[int, int, int, int]  # of a product: groups, M, N, K
Store = Callable[..., None]


class Operand(NamedTuple):
    """load(array, group, index, k): the element of row (of a) or column (of b) `index` that belongs to the term k.

    along_k: neighbours in memory are neighbours in k, not in index; neighbouring threads load them (coalesced).
    """

    load: Callable[..., Any]
    along_k: bool


@device
def _row_element(array, group, index, k):
    """array: (groups, M or N, K)"""
    return array[group, index, k]


@device
def _column_element(array, group, index, k):
    """array: (groups, K, M or N)"""
    return array[group, k, index]


ROWS, COLUMNS = Operand(_row_element, True), Operand(_column_element, False)


@device
def epilogue(out, value, relu):
    return number(out, 0) if relu and value < 0 else value


@functools.cache
def store_matrix(relu: bool) -> Store:
    @device
    def store(out, bias, split, group, m, n, value):
        """out: (splits, groups, M, N)"""
        out[split, group, m, n] = epilogue(out, value, relu)

    return store


@functools.cache
def store_with_bias(relu: bool) -> Store:
    @device
    def store(out, bias, split, group, m, n, value):
        """out: (splits, groups, M, N), bias: (N,); the first split brings the bias"""
        out[split, group, m, n] = epilogue(out, value + bias[n] if split == 0 else value, relu)

    return store


def _copier(operand: Operand, extent: int, tile: Tile) -> Callable[..., None]:
    """Return how the threads of a block copy `extent` rows or columns × tile.BK terms into shared memory."""
    (load, along_k), BK, threads = operand, tile.BK, tile.threads

    @device
    def copy(array, group, first, end, k0, stop, shared):
        for r in range(extent * BK // threads):
            element = cuda.threadIdx.x + r * threads
            index, k = (element // BK, element % BK) if along_k else (element % extent, element // extent)
            inside = first + index < end and k0 + k < stop
            shared[k, index] = load(array, group, first + index, k0 + k) if inside else number(array, 0)

    return copy


@functools.cache
def product(tile: Tile, a_operand: Operand, b_operand: Operand, store: Store) -> Kernel:
    """Return the kernel (a, b, bias, out, M, N, K) for a grid of (groups · tiles, splits of the terms)."""
    BM, BN, BK, TM, TN = tile
    a_ld, b_ld = BM + PAD, BN + PAD
    row_step, col_step = BM // TM, BN // TN  # between the rows and columns of one thread: its neighbours' lie between
    copy_a, copy_b = _copier(a_operand, BM, tile), _copier(b_operand, BN, tile)

    @device
    def accumulate(a_tile, b_tile, row, col, sums):
        a, b = cuda.local.array(TM, sums.dtype), cuda.local.array(TN, sums.dtype)
        for k in range(BK):
            for i in range(TM):
                a[i] = a_tile[k, row + i * row_step]
            for j in range(TN):
                b[j] = b_tile[k, col + j * col_step]
            for i in range(TM):
                for j in range(TN):
                    sums[i, j] += a[i] * b[j]

    def product(a, b, bias, out, M, N, K):
        a_tile = cuda.shared.array((BK, a_ld), a.dtype)
        b_tile = cuda.shared.array((BK, b_ld), a.dtype)
        sums, totals = cuda.local.array((TM, TN), a.dtype), cuda.local.array((TM, TN), a.dtype)
        row, col = cuda.threadIdx.x // col_step, cuda.threadIdx.x % col_step
        tiles_m, tiles_n = (M + BM - 1) // BM, (N + BN - 1) // BN
        group, tile_m = divmod(cuda.blockIdx.x // tiles_n, tiles_m)
        first_m, first_n = tile_m * BM, cuda.blockIdx.x % tiles_n * BN
        share = (K + cuda.gridDim.y - 1) // cuda.gridDim.y
        start, stop = cuda.blockIdx.y * share, min(K, (cuda.blockIdx.y + 1) * share)

        for i in range(TM):
            for j in range(TN):
                totals[i, j] = 0
        for run in range(start, stop, RUN):
            for i in range(TM):
                for j in range(TN):
                    sums[i, j] = 0
            for k0 in range(run, min(run + RUN, stop), BK):
                copy_a(a, group, first_m, M, k0, stop, a_tile)
                copy_b(b, group, first_n, N, k0, stop, b_tile)
                cuda.syncthreads()
                accumulate(a_tile, b_tile, row, col, sums)
                cuda.syncthreads()
            for i in range(TM):
                for j in range(TN):
                    totals[i, j] += sums[i, j]
        for i in range(TM):
            for j in range(TN):
                m, n = first_m + row + i * row_step, first_n + col + j * col_step
                if m < M and n < N:
                    store(out, bias, cuda.blockIdx.y, group, m, n, totals[i, j])

    return Kernel(product)


def multiply(
    a: Any, b: Any, bias: Any, out: Any, operands: tuple[Operand, Operand], store: Store, shape: Shape, splits: int = 1
) -> None:
    """Fill out, of the form that `store` knows, with a product whose terms are split between so many blocks."""
    groups, M, N, K = shape
    tile, grid = choose_tile(M), (count_tiles(groups, M, N), splits)
    product(tile, *operands, store).launch(grid, tile.threads, a, b, bias, out, M, N, K)


def multiply_matrices(
    a: Any, b: Any, bias: Any, out: Any, operands: tuple[Operand, Operand], K: int,
    store: Callable[[bool], Store] = store_matrix, relu: bool = False,
) -> None:  # fmt: skip
    """Fill out: (groups, M, N) with a product over K terms, or with max(0, product).

    Where its tiles are too few for a GPU, the terms are split between blocks, whose sums are added up afterwards.
    """
    splits = max(1, min(TARGET_BLOCKS // count_tiles(*out.shape), K // MIN_SPLIT))
    parts = out[None] if splits == 1 else empty_like(out, (splits, *out.shape))
    multiply(a, b, bias, parts, operands, store(relu and splits == 1), (*out.shape, K), splits)
    if splits > 1:
        sum_parts(relu)(parts.reshape(splits, -1), out.reshape(-1))


def choose_tile(M: int) -> Tile:
    """Return the tile of a product with so many rows."""
    return FLAT if M <= FLAT.BM else SQUARE


def count_tiles(groups: int, M: int, N: int) -> int:
    tile = choose_tile(M)
    return groups * ceil_div(M, tile.BM) * ceil_div(N, tile.BN)


def linear(x: Any, weight: Any, bias: Any, out: Any, relu: bool = False) -> None:
    """Z = X·Wᵀ + B"""
    operands = ROWS, ROWS
    multiply_matrices(x[None], weight[None], bias, out[None], operands, x.shape[1], store_with_bias, relu)


def linear_relu(x: Any, weight: Any, bias: Any, out: Any) -> None:
    """Z = max(0, X·Wᵀ + B)"""
    linear(x, weight, bias, out, relu=True)


def linear_grad_input(grad: Any, weight: Any, out: Any) -> None:
    """∂X = ∂Z·W"""
    multiply_matrices(grad[None], weight[None], grad, out[None], (ROWS, COLUMNS), weight.shape[0])


def linear_grad_weight(grad: Any, x: Any, out: Any) -> None:
    """∂W = ∂Zᵀ·X"""
    multiply_matrices(grad[None], x[None], grad, out[None], (COLUMNS, COLUMNS), x.shape[0])
