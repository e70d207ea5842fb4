"""A block of dot products at a time: C[r, c] = Σ_p A[r, p] · B[c, p], where both factors' rows lie along the sum.

Nothing is packed: every loaded register takes part in a row or a column of multiply-adds of a tile.
"""

from typing import NamedTuple

import numpy as np

from jitconv.variants.simd import DOT_COLUMNS, DOT_ROWS, fma_dots, lanes, load_add, reduce_lanes, store, zeros
from jitconv.variants.tiled.product import inner

DEPTH = 1440  # terms of a sum between two additions to C: the columns of a tile stay in the first-level cache,
ROWS_AT_ONCE = 64  # and as many rows in the second-level one
TILES_AT_ONCE = 5  # side by side, whose partial sums, lane by lane, stay in the cache between two runs
ONE_ROW = DOT_ROWS * DOT_COLUMNS  # columns of a tile that is all for one row


class Runs(NamedTuple):
    """Where the terms of a sum lie: `times` runs of `length`, in A and B each its own step apart."""

    times: int
    length: int
    a_step: int
    b_step: int


@inner
def dot_products(a, rows_at, b, columns_at, runs, c, ld):
    """C[r, c] += Σ_n Σ_p a[rows_at[r] + n·a_step + p] · b[columns_at[c] + n·b_step + p] for the runs n and their p.

    Row r of C begins at r · ld of c.
    """
    for first in range(0, rows_at.shape[0], ROWS_AT_ONCE):
        rows, sums = rows_at[first : first + ROWS_AT_ONCE], c[first * ld :]
        for start in range(0, runs.length, DEPTH):
            terms = start, min(start + DEPTH, runs.length)
            if rows_at.shape[0] == 1:
                _tiles(1, ONE_ROW, a, rows, b, columns_at, runs, terms, sums, ld)
            else:
                _tiles(DOT_ROWS, DOT_COLUMNS, a, rows, b, columns_at, runs, terms, sums, ld)


@inner
def _tiles(height, width, a, rows_at, b, columns_at, runs, terms, c, ld):
    """Add up the same `terms` of every run: one run of all tiles after the other, lane by lane, and then the lanes."""
    R, C, step = rows_at.shape[0], columns_at.shape[0], lanes(a)
    left, right, line = np.empty(height, np.int64), np.empty(width, np.int64), width * step
    totals, down = np.empty(height * width + step, a.dtype), (R + height - 1) // height
    partial = np.empty(down * TILES_AT_ONCE * height * line, a.dtype)
    whole = terms[0] + (terms[1] - terms[0]) // step * step
    for first in range(0, C, TILES_AT_ONCE * width):
        tiles = (min(TILES_AT_ONCE * width, C - first) + width - 1) // width * down
        for n in range(runs.times):
            a_run, b_run = a[n * runs.a_step :], b[n * runs.b_step :]
            for t in range(tiles):
                _starts(columns_at, first + t // down * width, right)
                _starts(rows_at, t % down * height, left)
                tile = zeros(a, height, width)
                for p in range(terms[0], whole, step):
                    tile = fma_dots(tile, a_run, left, b_run, right, p, None)
                if whole < terms[1]:
                    tile = fma_dots(tile, a_run, left, b_run, right, whole, terms[1] - whole)
                if n > 0:
                    tile = load_add(tile, partial, t * height * line, line)
                store(tile, partial, t * height * line, line, None)
        for t in range(tiles):
            row, column = t % down * height, first + t // down * width
            reduce_lanes(load_add(zeros(a, height, width), partial, t * height * line, line), totals)
            for r in range(min(height, R - row)):
                for j in range(min(width, C - column)):
                    c[(row + r) * ld + column + j] += totals[r * width + j]


@inner
def _starts(offsets, first, out):
    """The offsets of a tile's rows; past the end, where sums are not used, that of the last."""
    for i in range(out.shape[0]):
        out[i] = offsets[min(first + i, offsets.shape[0] - 1)]
