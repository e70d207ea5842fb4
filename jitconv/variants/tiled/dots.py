"""A block of dot products at a time: C[r, c] = Σ_p A[r, p] · B[c, p], where both factors' rows lie along the sum.

Nothing is packed: every loaded register takes part in a row or a column of multiply-adds of a tile.
"""

from typing import NamedTuple

import numpy as np

from jitconv.variants.simd import DOT_COLUMNS, DOT_ROWS, fma_dots, lanes, load_add, reduce_lanes, store, zeros
from jitconv.variants.tiled.product import inner

DEPTH = 1440  # terms of a sum between two additions to C: the columns of a tile stay in the first-level cache,
ROWS_AT_ONCE = 64  # and as many rows in the second-level one
TILES_AT_ONCE = 5  # side by side, whose lanes are kept between two runs
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
        rows, part = rows_at[first : first + ROWS_AT_ONCE], c[first * ld :]
        for start in range(0, runs.length, DEPTH):
            terms = start, min(start + DEPTH, runs.length)
            if rows_at.shape[0] == 1:
                _tiles(1, ONE_ROW, a, rows, b, columns_at, runs, terms, part, ld)
            else:
                _tiles(DOT_ROWS, DOT_COLUMNS, a, rows, b, columns_at, runs, terms, part, ld)


@inner
def _tiles(height, width, a, rows_at, b, columns_at, runs, terms, c, ld):
    """Add up the same `terms` of every run: one run of all tiles after the other, lane by lane, and then the lanes."""
    R, C, step = rows_at.shape[0], columns_at.shape[0], lanes(a)
    left, right, line = np.empty(height, np.int64), np.empty(width, np.int64), width * step
    totals = np.empty(height * width + step, a.dtype)
    kept = np.empty((R + height - 1) // height * TILES_AT_ONCE * height * line, a.dtype)
    whole = terms[0] + (terms[1] - terms[0]) // step * step
    for first in range(0, C, TILES_AT_ONCE * width):
        last = min(first + TILES_AT_ONCE * width, C)
        for n in range(runs.times):
            a_run, b_run, at = a[n * runs.a_step :], b[n * runs.b_step :], 0
            for column in range(first, last, width):
                _starts(columns_at, column, right)
                for row in range(0, R, height):
                    _starts(rows_at, row, left)
                    tile = zeros(a, height, width)
                    for p in range(terms[0], whole, step):
                        tile = fma_dots(tile, a_run, left, b_run, right, p, None)
                    if whole < terms[1]:
                        tile = fma_dots(tile, a_run, left, b_run, right, whole, terms[1] - whole)
                    if n > 0:
                        tile = load_add(tile, kept, at, line)
                    store(tile, kept, at, line, None)
                    at += height * line
        at = 0
        for column in range(first, last, width):
            for row in range(0, R, height):
                reduce_lanes(load_add(zeros(a, height, width), kept, at, line), totals)
                at += height * line
                for r in range(min(height, R - row)):
                    for j in range(min(width, C - column)):
                        c[(row + r) * ld + column + j] += totals[r * width + j]


@inner
def _starts(offsets, first, out):
    """The offsets of a tile's rows; those that are missing repeat the last one, and are not used."""
    for i in range(out.shape[0]):
        out[i] = offsets[min(first + i, offsets.shape[0] - 1)]
