"""The matrix product of linear.py and of convolutions with pixels in the lanes: C = A · B, a register tile at a time.

A: (M, K) is read where it lies, MR numbers of a column of it for one row of B.
B: (K, N) is a matrix, its transpose, or shifted images (a convolution's im2col matrix never exists whole). It is packed
in panels of KC × NR, or read where it lies if A has few rows. NC columns of it stay in the second-level cache, or more
in the third, while all of A passes over them, and the partial sums of MR rows of C in the first until KC terms are
added up.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numba import literal_unroll

from jitconv.variants import rounding
from jitconv.variants.compiling import inner
from jitconv.variants.rounding import LONG_BLOCK
from jitconv.variants.simd import (
    CACHE_LINE,
    MR,
    NR_VECTORS,
    accumulate,
    copy_vector,
    fma_outer,
    lanes,
    load_add,
    prefetch,
    store,
    transpose,
    zeros,
)

KC = 512  # terms of a sum, whole blocks, after which C is written
NC = 256  # columns of C that are finished before the next ones,
WIDE_NC = 1024  # and where B is not packed, or A is: the fewer columns, the more often
HEIGHTS = (*(rows for rows in (1, 2, 4, 8) if rows < MR), MR)  # of a register tile
PAGE = 4096  # bytes; what lies whole pages apart shares one set of the first-level cache
FEW_ROWS = 128  # of A, up to which a panel of B is used too little to be worth packing
NONE, ONE = np.int64(0), np.int64(1)  # Numba would compile a function anew for each literal
A_LD = KC + CACHE_LINE // 4  # between packed rows of A

block_of = inner(rounding.block_of)


class AMatrix(NamedTuple):
    """A[m, k] = numbers[offsets[k] + m · ld], with M rows."""

    numbers: Any
    offsets: Any
    ld: int
    M: int


class Columns(NamedTuple):
    """How the columns of B or C lie: in blocks of `width`, column j at j // width · ld + j % width."""

    width: int
    ld: int


class BMatrix(NamedTuple):
    """B[k, j] = numbers[offsets[k] + column j]; if `transposed` is 1, numbers[offsets[j] + column k]."""

    numbers: Any
    offsets: Any
    columns: Columns
    transposed: int


class CMatrix(NamedTuple):
    """C[m, j] = numbers[m · ld + column j]."""

    numbers: Any
    ld: int
    columns: Columns


class PackWorkspace(NamedTuple):
    """Memory for KC × NC of B: panels of NR columns, each KC × NR."""

    panels: Any
    rows: Any  # (KC,): where each row of a panel begins
    untransposed: Any  # rows of B before they are transposed
    tiles: Any  # (tiles, 3): see _divide


class TileWorkspace(NamedTuple):
    """Memory for the partial sums of MR rows of C, and for as many rows of A."""

    partial: Any
    a_rows: Any
    a_offsets: Any  # (KC,): where the columns of packed rows of A begin
    ones: Any


class Workspace(NamedTuple):
    """The memory that a product works in, for any number of them that one worker computes."""

    packing: PackWorkspace
    sums: TileWorkspace


@inner
def workspace(like):
    """The work arrays of products in the dtype of an array; what a product has no use for is not touched."""
    step, dtype = NR_VECTORS * lanes(like), like.dtype
    untransposed, tiles = np.empty(LONG_BLOCK * step, dtype), np.empty((WIDE_NC, 3), np.int64)
    packing = PackWorkspace(np.empty(KC * WIDE_NC, dtype), steps(KC, NONE, step), untransposed, tiles)
    partial, a_rows = np.empty(MR * step * WIDE_NC, dtype), np.empty(MR * A_LD, dtype)
    return Workspace(packing, TileWorkspace(partial, a_rows, steps(KC, NONE, ONE), np.ones(step, dtype)))


@inner
def tiles_of(rows):
    """The height of the next tiles of so many rows, and how many there are; the last two rather alike than one low."""
    best = 1
    for height in HEIGHTS:
        if height <= rows:
            best = height
    if rows > MR:
        for height in HEIGHTS[:-1]:
            if rows == 2 * height:
                return height, 2
            if rows % MR + MR == 2 * height:
                return best, rows // best - 1
    return best, rows // best


@inner
def a_matrix(numbers, M, K):
    """The rows of C-contiguous matrices, (M, K) in all, as they lie."""
    return AMatrix(numbers, steps(K, NONE, ONE), K, M)


@inner
def is_packed(a):
    """Whether A is packed, a tile's rows at a time: they would evict each other from the first-level cache."""
    K = a.offsets.size
    return a.ld * a.numbers.itemsize % PAGE == 0 and K > 0 and a.offsets[K - 1] - a.offsets[0] == K - 1


@inner
def rows_of(a, m, M):
    """Rows m … m + M of A."""
    return AMatrix(a.numbers[m * a.ld :], a.offsets, a.ld, M)


@partial(inner, forceinline=True)
def copy(source, i, target, j, count):
    """target[j + v] = source[i + v] for v < count; the two do not overlap."""
    step, last = lanes(source), count - lanes(source)
    if last < 0:
        copy_vector(source, i, target, j, count)
        return
    for v in range(0, last, step):
        copy_vector(source, i + v, target, j + v, None)
    copy_vector(source, i + last, target, j + last, None)  # some numbers a second time: cheaper than a mask


@inner
def clear(target, first, last):
    """target[first : last] = 0"""
    for i in range(first, last):
        target[i] = 0


@inner
def steps(count, first, step):
    """first, first + step, …: so many numbers."""
    numbers = np.empty(count, np.int64)
    for i in range(count):
        numbers[i] = first + i * step
    return numbers


@inner
def share(total, worker, workers, step):
    """The worker's share of range(total), which begins at a multiple of `step`: its first number and last + 1."""
    steps = (total + step - 1) // step
    return min(worker * steps // workers * step, total), min((worker + 1) * steps // workers * step, total)


@inner
def finite(array):
    """Whether no number of a C-contiguous array is infinite or NaN, which zero times it would tell."""
    numbers, step = array.reshape(-1), NR_VECTORS * lanes(array)
    zero, total = np.zeros(step, array.dtype), zeros(array, 1, NR_VECTORS)
    whole = numbers.size // step * step
    for i in range(0, whole, step):
        total = fma_outer(total, zero, 0, 1, numbers, i, None)
    total = fma_outer(total, zero, 0, 1, numbers, whole, numbers.size - whole)
    store(total, zero, 0, step, None)
    for lane in zero[1:]:
        zero[0] += lane
    return zero[0] == 0


@inner
def product(a, m_range, b, columns, c, bias, work):
    """C[m, j] = bias[m] + Σ_k A[m, k] · B[k, j] for m of m_range and j of columns.

    If `bias` is empty, the sums are added to what C holds. C's columns are one block where A has more than FEW_ROWS.
    """
    if m_range[0] >= m_range[1] or columns[0] >= columns[1]:
        return
    readable, first = columns[0], columns[0]
    if a.M <= FEW_ROWS:
        readable = _readable(b, columns, NR_VECTORS * lanes(c.numbers))
    while first < columns[1]:
        in_place = first < readable
        stop = first + (WIDE_NC if in_place or is_packed(a) else NC)
        stop = min(stop, readable if in_place else columns[1])
        _some_columns(a, m_range, b, (first, stop), in_place, c, bias, work)
        first = stop


@inner
def _readable(b, columns, nr):
    """Up to which column whole tiles of B can be read where they lie."""
    stop, last = columns[1], NONE
    if b.transposed == 1 or b.offsets.size == 0:
        return columns[0]
    for offset in b.offsets:
        last = max(last, offset)
    while stop > columns[0]:
        first = stop - 1 - (stop - 1) % b.columns.width % nr
        if offset_of(first, b.columns) + last + nr <= b.numbers.shape[0]:
            return stop
        stop = max(first, columns[0])
    return stop


# Not inlined, functions count the references of all arrays in their arguments, which costs as much as some tiles.
@partial(inner, forceinline=True)
def _some_columns(a, m_range, b, columns, in_place, c, bias, work):
    """The product for so many columns as are finished at once; B is read in place, or packed."""
    nr, K, packing = NR_VECTORS * lanes(c.numbers), a.offsets.size, work.packing
    count = _divide(b.columns, c.columns, in_place, columns[0], columns[1], nr, packing.tiles)
    for k in range(0, max(K, 1), KC):  # once even for an empty sum, which is 0
        terms = k, min(k + KC, K)
        numbers, rows = b.numbers, b.offsets[terms[0] : terms[1]]
        if not in_place:
            _pack(b, terms, columns, packing)
            numbers, rows = packing.panels, packing.rows[: terms[1] - terms[0]]
        m = m_range[0]
        while m < m_range[1]:  # the tiles of one height together
            height, count_of_tiles = tiles_of(m_range[1] - m)
            last = m + count_of_tiles * height
            _tiles_of_height(height, a, (m, last), terms, numbers, rows, packing.tiles[:count], c, bias, work.sums)
            m = last


@inner
def _divide(b_columns, c_columns, in_place, first, stop, nr, tiles):
    """Fill a table of tiles: where each begins in a row of B or in the panels, and in one of C, and its width."""
    count, j = 0, first
    while j < stop:
        width, at = min(nr, stop - j), count * KC * nr
        if in_place:
            width, at = min(width, b_columns.width - j % b_columns.width), offset_of(j, b_columns)
        tiles[count, 0], tiles[count, 1], tiles[count, 2] = at, offset_of(j, c_columns), width
        count, j = count + 1, j + width
    return count


@inner
def _pack(b, terms, columns, packing):
    """Copy rows `terms` of B, in some columns, panel by panel, the NR numbers of each row side by side."""
    nr, panels, untransposed = NR_VECTORS * lanes(packing.panels), packing.panels, packing.untransposed
    runs = np.empty((max(WIDE_NC, LONG_BLOCK), 3), np.int64)
    if b.transposed == 0:
        count = _runs(b.columns, columns, nr, KC * nr, runs)
        _copy_runs(b.numbers, b.offsets[terms[0] : terms[1]], runs[:count], panels, nr)
        return
    for j in range(columns[0], columns[1], nr):
        panel, offsets = (j - columns[0]) * KC, b.offsets[j : min(j + nr, columns[1])]
        for k in range(terms[0], terms[1], LONG_BLOCK):
            depth = min(LONG_BLOCK, terms[1] - k)
            count = _runs(b.columns, (k, k + depth), LONG_BLOCK, NONE, runs)
            _copy_runs(b.numbers, offsets, runs[:count], untransposed, LONG_BLOCK)
            to = panel + (k - terms[0]) * nr
            transpose_matrix(untransposed, NONE, LONG_BLOCK, panels, to, nr, offsets.size, depth)


@inner
def _runs(b_columns, columns, width, ld, runs):
    """Fill a table of columns that lie side by side in B and in a panel of `width`; ld: from one panel to the next.

    Where each run begins in a row of B and in the first row of the panels, and its length.
    """
    count, j = 0, columns[0]
    while j < columns[1]:
        panel, column = divmod(j - columns[0], width)
        length = min(width - column, columns[1] - j, b_columns.width - j % b_columns.width)
        runs[count, 0], runs[count, 1], runs[count, 2] = offset_of(j, b_columns), panel * ld + column, length
        count, j = count + 1, j + length
    return count


@inner
def offset_of(j, columns):
    """Where column j lies in a row."""
    return j // columns.width * columns.ld + j % columns.width


@inner
def _copy_runs(numbers, offsets, runs, panels, ld):
    """panels[r · ld + to + i] = numbers[offsets[r] + from + i] for each r and i < length of every run."""
    for r in range(offsets.shape[0]):
        for run in range(runs.shape[0]):
            copy(numbers, offsets[r] + runs[run, 0], panels, r * ld + runs[run, 1], runs[run, 2])


@inner
def transpose_matrix(source, i, ld, target, j, target_ld, rows, columns):
    """target[j + c · target_ld + r] = source[i + r · ld + c] for r < rows and c < columns"""
    vlen = lanes(source)
    for r in range(0, rows, vlen):
        for c in range(0, columns, vlen):
            a, b = i + r * ld + c, j + c * target_ld + r
            if r + vlen <= rows and c + vlen <= columns:  # code without masks
                transpose(source, a, ld, target, b, target_ld, None, None)
            else:
                transpose(source, a, ld, target, b, target_ld, min(vlen, rows - r), min(vlen, columns - c))


@partial(inner, forceinline=True)
def _tiles_of_height(rows, a, m_range, terms, b, b_rows, tiles, c, bias, sums):
    for height in literal_unroll(HEIGHTS):  # each height is code of its own
        if height == rows:
            _tiles(height, a, m_range, terms, b, b_rows, tiles, c, bias, sums)


@partial(inner, forceinline=True)
def _tiles(height, a, m_range, terms, b, b_rows, tiles, c, bias, sums):
    """C[m, j] (+)= Σ_k A[m, k] · B[k, j], k of `terms`, for the rows m_range, `height` at a time, and some tiles."""
    (partial, packed, packed_offsets, ones), block, nr = sums, block_of(a.offsets.size), NR_VECTORS * lanes(c.numbers)
    a_offsets, pack, count = a.offsets[terms[0] : terms[1]], is_packed(a), terms[1] - terms[0]
    for m in range(m_range[0], m_range[1], height):
        numbers, offsets, row, ld = a.numbers, a_offsets, m * a.ld, a.ld
        if pack:
            for r in range(height):
                copy(numbers, a_offsets[0] + row + r * ld, packed, r * A_LD, count)
            numbers, offsets, row, ld = packed, packed_offsets, NONE, A_LD
        for k in range(terms[0], max(terms[1], terms[0] + 1), block):
            depth = min(block, terms[1] - k)
            a_at, b_at = offsets[k - terms[0] :], b_rows[k - terms[0] :]
            for t in range(tiles.shape[0]):
                at, i, width, partial_at = tiles[t, 0], m * c.ld + tiles[t, 1], tiles[t, 2], t * height * nr
                tile, last = zeros(c.numbers, height, NR_VECTORS), k + depth == terms[1]
                if last:
                    prefetch(tile, c.numbers, i, c.ld)
                for q in range(depth):
                    tile = fma_outer(tile, numbers, a_at[q] + row, ld, b, b_at[q] + at, None)
                if k > terms[0]:
                    tile = load_add(tile, partial, partial_at, nr)
                if not last:
                    store(tile, partial, partial_at, nr, None)
                elif terms[0] == 0 and bias.size > 0:
                    store(fma_outer(tile, bias, m, 1, ones, 0, None), c.numbers, i, c.ld, width)
                else:
                    accumulate(tile, c.numbers, i, c.ld, width)
