"""The matrix product that every tiled layer stands on: C (+)= A · B, a register tile of C at a time.

A: (M, K) is packed once into panels of a few rows, each column of a panel side by side, as `outer` reads them.
Row k of B begins at `offsets[k]` of a flat array. That is all a row is: a row of a matrix, or, for a convolution, the
image itself, shifted to one tap of the kernel. Nothing is copied into columns.
"""

from functools import partial

import numpy as np

from jitconv.variants.compiling import njit
from jitconv.variants.simd import ROWS, VECTORS, add, lanes, move, outer, put, zeros

DEPTH = 128  # terms of a sum that are added up on their own: it bounds the rounding error
WIDTH = 512  # columns of B that all rows of A pass over before the next ones: they fit the second-level cache
PITCH = WIDTH + 32  # between gathered rows: a power of two would send them all to the same places of the cache

inner = partial(njit, cache=False)  # what a cached kernel calls is kept in the kernel's own file


def _panel(rows, smaller):
    """c[i, j] (+)= Σ_k a[k·rows + i] · b[offsets[k] + j] for i < rows and start ≤ j < stop, a register tile at a time.

    `smaller` does it for any lower number of rows.
    """

    @inner
    def tile_at(a, b, offsets, c, pitch, j, first, n):
        tile = zeros(c, rows, VECTORS)
        for k in range(offsets.shape[0]):
            tile = outer(tile, a, k * rows, b, offsets[k] + j, n)
        if first:
            put(tile, c, j, pitch, n)
        else:
            add(tile, c, j, pitch, n)

    @inner
    def panel(height, a, b, offsets, c, pitch, start, stop, first, padded):
        if height < rows:
            smaller(height, a, b, offsets, c, pitch, start, stop, first, padded)
            return
        step = VECTORS * lanes(c)
        for j in range(start, stop, step):
            if padded or stop - j >= step:
                tile_at(a, b, offsets, c, pitch, j, first, None)
            else:
                tile_at(a, b, offsets, c, pitch, j, first, stop - j)

    return panel


@inner
def _no_rows(height, a, b, offsets, c, pitch, start, stop, first, padded):
    pass


_panels = _no_rows
for _rows in range(1, ROWS + 1):
    _panels = _panel(_rows, _panels)


@inner
def panel_rows(M):
    """The rows of a panel: as many as fit the registers, but no nearly empty last panel."""
    panels = (M + ROWS - 1) // ROWS
    return (M + panels - 1) // panels


@inner
def pack(matrix, panels):
    """Write a matrix (M, K) as panels; return whether all of it is finite."""
    M, K = matrix.shape
    rows = panel_rows(M)
    check = panels.dtype.type(0)
    for m in range(0, M, rows):
        height = min(rows, M - m)
        panel = panels[m * K : m * K + height * K]
        part = matrix[m : m + height]
        for k in range(K):
            for i in range(height):
                panel[k * height + i] = part[i, k]
                check += part[i, k] * 0
    return check == 0


@inner
def copy(source, i, target, j, count, added):
    """target[j + v] = source[i + v] + added for v < count."""
    step = lanes(source)
    whole = count // step * step
    for v in range(0, whole, step):
        move(source, i + v, target, j + v, added, None)
    if whole < count:
        move(source, i + whole, target, j + whole, added, count - whole)


@inner
def product(panels, M, b, offsets, columns, c, pitch, added, padded):
    """C[m, j] (+)= Σ_k A[m, k] · b[offsets[k] + j] for j < columns; row m of C begins at m · pitch of c.

    added: add to C instead of overwriting it. padded: b and c have room behind every row for a whole register tile.
    """
    K = offsets.shape[0]
    if K == 0 and not added:
        for m in range(M):
            c[m * pitch : m * pitch + columns] = 0
    rows = panel_rows(M)
    gathered = not padded and M > 2 * ROWS
    block = np.empty(DEPTH * PITCH if gathered else 0, c.dtype)
    for start in range(0, columns, WIDTH):
        stop = min(start + WIDTH, columns)
        for k in range(0, K, DEPTH):
            source, taps = b, offsets[k : k + DEPTH]
            if gathered:
                source, taps = block, _gather(b, taps, start, stop, block)
            first = k == 0 and not added
            for m in range(0, M, rows):
                height = min(rows, M - m)
                panel = panels[m * K + k * height :]
                _panels(height, panel, source, taps, c[m * pitch :], pitch, start, stop, first, padded)


@inner
def _gather(b, taps, start, stop, block):
    """Copy the columns from start to stop of some rows of B side by side: far apart, they would share cache lines."""
    zero = block.dtype.type(0)
    for k in range(taps.shape[0]):
        copy(b, taps[k] + start, block, k * PITCH, stop - start, zero)
    return np.arange(taps.shape[0]) * PITCH - start
