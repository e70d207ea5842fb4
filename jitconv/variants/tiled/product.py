"""The matrix product that every tiled layer stands on: C = A · B, a register tile of C at a time.

A: (M, K) is read where it lies, a few rows at a time, one number of each for one row of B.
B: (K, N) is read where it lies, rows or columns of a matrix or shifted images, and copied in panels as wide as a tile
(a convolution's columns never exist beyond that). Strips stay in the second-level cache while all of A passes over
them, and the sums of a few rows of C in the first until a chunk of their terms is added up.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numba import literal_unroll

from jitconv.variants.compiling import inner
from jitconv.variants.simd import (
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

SHORT_BLOCK, LONG_BLOCK = np.int64(64), np.int64(128)  # terms of a sum that are added up on their own: it bounds
FEW_BLOCKS = 3  # the rounding error, which evens out over more blocks than these
KC = 512  # terms of a sum, whole blocks, after which C is written
NC = 256  # columns of C that are finished before the next ones
HEIGHTS = (*(rows for rows in (1, 2, 4, 8) if rows < MR), MR)  # of a tile
PAGE, LINE = 4096, 64  # bytes; what lies whole pages apart shares one set of the first-level cache
FEW_ROWS = 128  # of A, up to which a panel is used too little to be worth its copy
NONE, ONE = np.int64(0), np.int64(1)  # Numba would compile a function anew for each literal

A_PANEL_LD = KC + LINE // 4  # numbers between rows of A that are copied for a tile


class Factor(NamedTuple):
    """A[m, k] = numbers[offsets[k] + m · ld], with M rows."""

    numbers: Any
    offsets: Any
    ld: int
    M: int


class Places(NamedTuple):
    """Where the columns of B or C lie in a row: run after run of `width` numbers, `apart` from each other."""

    width: int
    apart: int


class Operand(NamedTuple):
    """B[k, j] = numbers[offsets[k] + the place of j]; if `transposed` is 1, numbers[offsets[j] + the place of k]."""

    numbers: Any
    offsets: Any
    places: Places
    transposed: int


class Target(NamedTuple):
    """C[m, j] = numbers[m · ld + the place of j]."""

    numbers: Any
    ld: int
    places: Places


class PackWorkspace(NamedTuple):
    """Workspace for a panel of B, and the table of tiles that it is divided into."""

    panels: Any
    rows: Any  # where each row of the panels begins
    untransposed: Any  # rows of B before they are transposed
    tiles: Any


class TileWorkspace(NamedTuple):
    """Workspace for the sums of a few rows of C between blocks of their terms, and for the rows of A."""

    partial: Any
    a_panel: Any  # rows of A that lie whole pages apart, copied
    a_offsets: Any  # where their numbers lie
    ones: Any


class Workspace(NamedTuple):
    """The memory that a product works in, for any number of them that one worker computes."""

    packing: PackWorkspace
    sums: TileWorkspace


@inner
def workspace(like):
    """The work arrays of products in the dtype of an array; what a product has no use for is not touched."""
    step, dtype = NR_VECTORS * lanes(like), like.dtype
    untransposed, tiles = np.empty(LONG_BLOCK * step, dtype), np.empty((NC, 3), np.int64)
    packing = PackWorkspace(np.empty(KC * NC, dtype), steps(KC, NONE, step), untransposed, tiles)
    partial, a_panel = np.empty(MR * step * NC, dtype), np.empty(MR * A_PANEL_LD, dtype)
    return Workspace(packing, TileWorkspace(partial, a_panel, steps(KC, NONE, ONE), np.ones(step, dtype)))


@inner
def block_of(K):
    """How many terms of a sum of K are added up on their own."""
    return SHORT_BLOCK if K <= FEW_BLOCKS * LONG_BLOCK else LONG_BLOCK


@inner
def tile_height(rows):
    """The height of the next tile of so many rows."""
    best = 1
    for height in HEIGHTS:
        if height <= rows:
            best = height
    return best


@inner
def factor(numbers, M, K):
    """The rows of C-contiguous matrices, (M, K) in all, as they lie."""
    return Factor(numbers, steps(K, NONE, ONE), K, M)


@inner
def rows_from(a, m, M):
    """Rows m … m + M of a factor."""
    return Factor(a.numbers[m * a.ld :], a.offsets, a.ld, M)


@partial(inner, forceinline=True)
def copy(source, i, target, j, count):
    """target[j + v] = source[i + v] for v < count."""
    step = lanes(source)
    whole = count // step * step
    for v in range(0, whole, step):
        copy_vector(source, i + v, target, j + v, None)
    if whole < count:
        copy_vector(source, i + whole, target, j + whole, count - whole)


@inner
def clear(target, start, stop):
    """target[start : stop] = 0"""
    for i in range(start, stop):
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
    """The worker's part of range(total), begun at a multiple of `step`."""
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
    for left in zero[1:]:
        zero[0] += left
    return zero[0] == 0


@inner
def product(a, m_range, b, columns, c, start, work):
    """C[m, j] = start[m] + Σ_k A[m, k] · B[k, j] for m of m_range and j of columns.

    If `start` is empty, the sums are added to what C holds. Where A has more rows than FEW_ROWS, C must be one run.
    """
    if m_range[0] >= m_range[1] or columns[0] >= columns[1]:
        return
    step = NR_VECTORS * lanes(c.numbers)
    K, packing = a.offsets.size, work.packing
    in_place = a.M <= FEW_ROWS and K > 0 and _may_be_read(b, columns[1] - 1, step)
    for first in range(columns[0], columns[1], NC):
        stop = min(first + NC, columns[1])
        count = _divide(b.places, c.places, in_place, first, stop, step, packing.tiles)
        for k in range(0, max(K, 1), KC):  # once even for an empty sum, which is 0
            terms = k, min(k + KC, K)
            numbers, rows = b.numbers, b.offsets[terms[0] : terms[1]]
            if not in_place:
                _pack_panels(b, terms, (first, stop), packing)
                numbers, rows = packing.panels, packing.rows[: terms[1] - terms[0]]
            m = m_range[0]
            while m < m_range[1]:  # the tiles of one height together
                height = tile_height(m_range[1] - m)
                last = m + (m_range[1] - m) // height * height
                _tiles_of_height(height, a, (m, last), terms, numbers, rows, packing.tiles[:count], c, start, work.sums)
                m = last


@inner
def _may_be_read(b, j, step):
    """Whether a row of B can be read where it lies, even the whole tile in which column j lies."""
    begin, last = j - j % b.places.width % step, b.offsets[0]
    for offset in b.offsets:
        last = max(last, offset)
    return b.transposed == 0 and place_of(begin, b.places) + last + step <= b.numbers.shape[0]


@inner
def _divide(b_places, c_places, in_place, first, stop, step, tiles):
    """Fill a table of tiles: where each begins in a row of B, or among the panels, and of C, and its width."""
    count, j = 0, first
    while j < stop:
        width, at = min(step, stop - j), count * KC * step
        if in_place:
            width, at = min(width, b_places.width - j % b_places.width), place_of(j, b_places)
        tiles[count, 0], tiles[count, 1], tiles[count, 2] = at, place_of(j, c_places), width
        count, j = count + 1, j + width
    return count


@inner
def _pack_panels(b, terms, columns, packing):
    """Copy the rows of B that `terms` names, in some columns, panel by panel, each row of a panel side by side."""
    step, panels, untransposed = NR_VECTORS * lanes(packing.panels), packing.panels, packing.untransposed
    pieces = np.empty((max(NC, LONG_BLOCK), 3), np.int64)
    if b.transposed == 0:
        count = _pieces(b.places, columns, step, KC * step, pieces)
        _gather(b.numbers, b.offsets[terms[0] : terms[1]], pieces[:count], panels, step)
        return
    for j in range(columns[0], columns[1], step):
        panel, offsets = panels[(j - columns[0]) * KC :], b.offsets[j : min(j + step, columns[1])]
        for k in range(terms[0], terms[1], LONG_BLOCK):
            depth = min(LONG_BLOCK, terms[1] - k)
            count = _pieces(b.places, (k, k + depth), LONG_BLOCK, NONE, pieces)
            _gather(b.numbers, offsets, pieces[:count], untransposed, LONG_BLOCK)
            transpose_matrix(untransposed, offsets.size, depth, LONG_BLOCK, panel[(k - terms[0]) * step :], step)


@inner
def _pieces(places, columns, step, apart, table):
    """Fill a table of runs within panels of `step` columns: the place of each, that in the panels, and its length."""
    count, j = 0, columns[0]
    while j < columns[1]:
        panel, col = divmod(j - columns[0], step)
        run = min(step - col, columns[1] - j, places.width - j % places.width)
        table[count, 0], table[count, 1], table[count, 2] = place_of(j, places), panel * apart + col, run
        count, j = count + 1, j + run
    return count


@inner
def place_of(j, places):
    return j // places.width * places.apart + j % places.width


@inner
def _gather(numbers, offsets, pieces, panels, ld):
    """panels[r · ld + place in the panels + i] = numbers[offsets[r] + place + i] for the i of every piece."""
    for r in range(offsets.shape[0]):
        for piece in range(pieces.shape[0]):
            copy(numbers, offsets[r] + pieces[piece, 0], panels, r * ld + pieces[piece, 1], pieces[piece, 2])


@inner
def transpose_matrix(source, M, N, ld, target, target_ld):
    """target[n · target_ld + m] = source[m · ld + n] for m < M and n < N"""
    lane = lanes(source)
    for m in range(0, M, lane):
        for n in range(0, N, lane):
            i, j = m * ld + n, n * target_ld + m
            transpose(source, i, ld, target, j, target_ld, min(lane, M - m), min(lane, N - n))


@inner
def _tiles_of_height(rows, a, m_range, terms, b, b_rows, tiles, c, start, sums):
    for height in literal_unroll(HEIGHTS):  # each height is code of its own
        if height == rows:
            _tiles(height, a, m_range, terms, b, b_rows, tiles, c, start, sums)


@inner
def _tiles(height, a, m_range, terms, b, b_rows, tiles, c, start, sums):
    """C[m, j] (+)= Σ_k A[m, k] · B[k, j], k of `terms`, for the m of tiles of one height, in some tiles."""
    (partial, a_panel, a_offsets, ones), block, step = sums, block_of(a.offsets.size), NR_VECTORS * lanes(c.numbers)
    a_rows, apart, count = a.offsets[terms[0] : terms[1]], False, terms[1] - terms[0]
    if count > 0 and a.ld * a_panel.itemsize % PAGE == 0:
        apart = a_rows[count - 1] - a_rows[0] == count - 1
    for m in range(m_range[0], m_range[1], height):
        numbers, places, row, ld = a.numbers, a_rows, m * a.ld, a.ld
        if apart:  # the rows of a tile would push each other out of that cache
            for r in range(height):
                copy(numbers, a_rows[0] + row + r * ld, a_panel, r * A_PANEL_LD, count)
            numbers, places, row, ld = a_panel, a_offsets, NONE, A_PANEL_LD
        for k in range(terms[0], max(terms[1], terms[0] + 1), block):
            depth = min(block, terms[1] - k)
            a_at, b_at = places[k - terms[0] :], b_rows[k - terms[0] :]
            for s in range(tiles.shape[0]):
                at, i, width, at_kept = tiles[s, 0], m * c.ld + tiles[s, 1], tiles[s, 2], s * height * step
                tile, last = zeros(c.numbers, height, NR_VECTORS), k + depth == terms[1]
                if last:
                    prefetch(tile, c.numbers, i, c.ld)
                for q in range(depth):
                    tile = fma_outer(tile, numbers, a_at[q] + row, ld, b, b_at[q] + at, None)
                if k > terms[0]:
                    tile = load_add(tile, partial, at_kept, step)
                if not last:
                    store(tile, partial, at_kept, step, None)
                elif terms[0] == 0 and start.size > 0:
                    store(fma_outer(tile, start, m, 1, ones, 0, None), c.numbers, i, c.ld, width)
                else:
                    accumulate(tile, c.numbers, i, c.ld, width)
