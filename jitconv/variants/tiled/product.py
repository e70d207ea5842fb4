"""The matrix product that every tiled layer stands on: C += A · B, a register tile of C at a time.

A: (M, K) is packed once into panels of a few rows, each column of a panel side by side, as `outer` reads them.
B: (K, N) is read where it lies, rows or columns of a matrix or shifted images, and copied in strips as wide as a tile
(a convolution's columns never exist beyond that). A strip stays in the first-level cache while all of A passes over it.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numba import literal_unroll

from jitconv.variants.compiling import njit
from jitconv.variants.simd import ROWS, VECTORS, add, fetch, lanes, move, outer, turn, zeros

DEPTH = 128  # terms of a sum that are added up on their own: it bounds the rounding error
WIDTH = 512  # columns of C that are finished before the next ones: they stay in the second-level cache
HEIGHTS = (*(rows for rows in (1, 2, 4, 8) if rows < ROWS), ROWS)  # of a tile
NONE, ONE = np.int64(0), np.int64(1)  # Numba would compile a function anew for each literal

inner = partial(njit, cache=False)  # what a cached kernel calls is kept in the kernel's own file


class Panels(NamedTuple):
    """What `pack` made of a matrix, (M, K): for each DEPTH of columns all panels, the highest ones first."""

    numbers: Any
    M: int
    K: int


class Places(NamedTuple):
    """Where the pixels of some images lie: pixel j of image n, line row, column col at n·size + row·pitch + col."""

    width: int
    lines: int
    pitch: int
    size: int


class Operand(NamedTuple):
    """B[k, j] = numbers[offsets[k] + the place of j]; if `turned` is 1, numbers[offsets[j] + the place of k]."""

    numbers: Any
    offsets: Any
    places: Places
    turned: int


@inner
def panel_height(rows):
    """The height of the next panel of so many rows."""
    best = 1
    for height in HEIGHTS:
        if height <= rows:
            best = height
    return best


@inner
def pack(matrix, groups):
    """A C-contiguous matrix, (groups · M, K), as panels of each group's M rows."""
    M, K = matrix.shape[0] // groups, matrix.shape[1]
    step, flat, numbers, at = lanes(matrix), matrix.reshape(-1), np.empty(matrix.size, matrix.dtype), 0
    for g in range(groups):
        for k in range(0, K, DEPTH):
            depth, m, last = min(DEPTH, K - k), g * M, (g + 1) * M
            while m < last:
                height = panel_height(last - m)
                for r in range(0, height, step):
                    for t in range(0, depth, step):
                        rows, columns = min(step, height - r), min(step, depth - t)
                        turn(flat, (m + r) * K + k + t, K, numbers, at + t * height + r, height, rows, columns)
                at, m = at + depth * height, m + height
    return numbers


@inner
def pack_turned(matrix):
    """The columns of a C-contiguous matrix, (K, M), as the rows of panels."""
    K, M = matrix.shape
    flat, numbers, at = matrix.reshape(-1), np.empty(matrix.size, matrix.dtype), 0
    for k in range(0, K, DEPTH):
        m = 0
        while m < M:
            height = panel_height(M - m)
            for t in range(k, min(k + DEPTH, K)):
                copy(flat, t * M + m, numbers, at, height)
                at += height
            m += height
    return numbers


@inner
def copy(source, i, target, j, count):
    """target[j + v] = source[i + v] for v < count."""
    step = lanes(source)
    whole = count // step * step
    for v in range(0, whole, step):
        move(source, i + v, target, j + v, None)
    if whole < count:
        move(source, i + whole, target, j + whole, count - whole)


@inner
def share(total, worker, workers, step):
    """The worker's part of range(total), begun at a multiple of `step`."""
    steps = (total + step - 1) // step
    return min(worker * steps // workers * step, total), min((worker + 1) * steps // workers * step, total)


@inner
def finite(array):
    """Whether no number of a C-contiguous array is infinite or NaN."""
    total = array.dtype.type(0)
    for number in array.reshape(-1):
        total += number * 0
    return total == 0


@inner
def product(panels, m_range, b, columns, c, pitch):
    """C[m, j] += Σ_k A[m, k] · B[k, j] for m of m_range, begun at a multiple of ROWS, and j of columns.

    C[m, j] is c[m · pitch + j − columns[0]].
    """
    step = VECTORS * lanes(c)
    strip, spare = np.empty(DEPTH * step, c.dtype), np.empty(DEPTH * step, c.dtype)
    for start in range(columns[0], columns[1], WIDTH):
        for k in range(0, panels.K, DEPTH):
            depth = min(DEPTH, panels.K - k)
            for j in range(start, min(start + WIDTH, columns[1]), step):
                width = min(step, columns[1] - j)
                if b.turned == 0:
                    _gather(b.numbers, b.offsets[k : k + depth], b.places, j, width, strip, step)
                else:
                    _gather(b.numbers, b.offsets[j : j + width], b.places, k, depth, spare, DEPTH)
                    _turn_strip(spare, depth, width, strip)
                m = m_range[0]
                while m < m_range[1]:
                    height = panel_height(panels.M - m)
                    stop = min(m_range[1], m + (panels.M - m) // height * height)
                    block, place = panels.numbers[k * panels.M :], (pitch, j - columns[0])
                    _tiles_of_height(height, block, (m, stop), depth, strip, width, c, place)
                    m = stop


@inner
def _gather(numbers, offsets, places, first, count, strip, pitch):
    """strip[r · pitch + i] = numbers[offsets[r] + the place of first + i] for i < count, line by line of the images."""
    line, col, done = first // places.width, first % places.width, 0
    while done < count:
        run = min(count - done, places.width - col)
        place = line // places.lines * places.size + line % places.lines * places.pitch + col
        for r in range(offsets.shape[0]):
            copy(numbers, offsets[r] + place, strip, r * pitch + done, run)
        line, col, done = line + 1, 0, done + run


@inner
def _turn_strip(columns, depth, width, strip):
    """strip[k, j] = columns[j, k]"""
    lane, step = lanes(strip), VECTORS * lanes(strip)
    for v in range(0, width, lane):
        for t in range(0, depth, lane):
            rows = min(lane, width - v)
            turn(columns, v * DEPTH + t, DEPTH, strip, t * step + v, step, rows, min(lane, depth - t))


@inner
def _tiles_of_height(rows, panels, m_range, depth, strip, width, c, place):
    for height in literal_unroll(HEIGHTS):  # each height is code of its own
        if height == rows:
            _tiles(height, panels, m_range, depth, strip, width, c, place)


@inner
def _tiles(height, panels, m_range, depth, strip, width, c, place):
    """c[m, j] += Σ_k A[m, k] · strip[k, j] for the m of some panels of one height, and one strip."""
    pitch, j = place
    for m in range(m_range[0], m_range[1], height):
        tile, i = zeros(c, height, VECTORS), m * pitch + j
        fetch(tile, c, i, pitch)
        for k in range(depth):
            tile = outer(tile, panels, m * depth + k * height, strip, k * VECTORS * lanes(c), None)
        add(tile, c, i, pitch, width)
