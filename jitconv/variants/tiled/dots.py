"""A block of dot products at a time: C[r, c] = Σ_p A[r, p] · B[c, p], where both factors' rows lie along the sum.

Nothing is packed: every loaded register takes part in a row or a column of multiply-adds of a tile.
"""

import numpy as np

from jitconv.variants.simd import DOT_COLUMNS, DOT_ROWS, dots, lanes, sums, zeros
from jitconv.variants.tiled.product import inner

DEPTH = 1440  # terms of a sum between two additions to C: the rows of a tile stay in the first-level cache


@inner
def _starts(offsets, first, count, out):
    """The offsets of a tile's rows; those that are missing repeat the last one, and are not used."""
    for i in range(count):
        out[i] = offsets[min(first + i, offsets.shape[0] - 1)]


@inner
def dot_products(a, rows_at, b, columns_at, length, c, pitch):
    """C[r, c] += Σ_p a[rows_at[r] + p] · b[columns_at[c] + p] for p < length; row r of C begins at r · pitch of c."""
    step = lanes(a)
    left, right = np.empty(DOT_ROWS, np.int64), np.empty(DOT_COLUMNS, np.int64)
    totals = np.empty(DOT_ROWS * DOT_COLUMNS + step, a.dtype)
    R, C = rows_at.shape[0], columns_at.shape[0]
    for start in range(0, length, DEPTH):
        stop = min(start + DEPTH, length)
        whole = start + (stop - start) // step * step
        for column in range(0, C, DOT_COLUMNS):
            _starts(columns_at, column, DOT_COLUMNS, right)
            for row in range(0, R, DOT_ROWS):
                _starts(rows_at, row, DOT_ROWS, left)
                tile = zeros(a, DOT_ROWS, DOT_COLUMNS)
                for p in range(start, whole, step):
                    tile = dots(tile, a, left, b, right, p, None)
                if whole < stop:
                    tile = dots(tile, a, left, b, right, whole, stop - whole)
                sums(tile, totals)
                for r in range(min(DOT_ROWS, R - row)):
                    for j in range(min(DOT_COLUMNS, C - column)):
                        c[(row + r) * pitch + column + j] += totals[r * DOT_COLUMNS + j]
