"""Threads that share a sum, a maximum or the classes of a sample: who has which part, and how each learns the whole.

A block has ROWS × LANES threads; the lanes of a row are neighbours. What one thread has found, the others of its row or
column learn through shared memory: parts, of that shape.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda

from jitconv.variants.cuda.grid import divide, number
from jitconv.variants.cuda.launch import device
from jitconv.variants.cuda.quads import load4
from jitconv.variants.cuda.sizes import LANES, ROWS

THREADS_OF_BLOCK = ROWS * LANES


@device
def thread_of_block():
    return cuda.threadIdx.x & (THREADS_OF_BLOCK - 1)  # the mask changes nothing, but shows that no index is negative


@device
def row_of_block():
    return thread_of_block() // LANES


@device
def lane_of_row():
    return thread_of_block() % LANES


@device
def larger(a, b):
    """max(a, b); a NaN wins"""
    return a if a > b or a != a else b


@device
def exchange(parts, part):
    cuda.syncthreads()  # what was exchanged before has been read
    parts[row_of_block(), lane_of_row()] = part
    cuda.syncthreads()


@device
def row_max(parts, part):
    """max of the parts of all lanes of the row"""
    exchange(parts, part)
    row = row_of_block()
    result = parts[row, 0]
    for first in range(0, LANES, 4):
        a, b, c, d = load4(parts, (row, first))
        result = larger(larger(larger(a, b), larger(c, d)), result)
    return result


@device
def lanes_sum(parts, row):
    """Σ_lane parts[*row, lane]"""
    result = number(parts, 0)
    for first in range(0, LANES, 4):
        a, b, c, d = load4(parts, (*row, first))
        result += (a + b) + (c + d)
    return result


@device
def row_sum(parts, part):
    """Σ of the parts of all lanes of the row"""
    exchange(parts, part)
    return lanes_sum(parts, (row_of_block(),))


@device
def column_max(parts, part):
    """max of the parts of this lane in all rows"""
    exchange(parts, part)
    lane = lane_of_row()
    result = parts[0, lane]
    for row in range(1, ROWS):
        result = larger(parts[row, lane], result)
    return result


@device
def column_sum(parts, part):
    """Σ of the parts of this lane in all rows"""
    exchange(parts, part)
    lane = lane_of_row()
    result = number(parts, 0)
    for row in range(ROWS):
        result += parts[row, lane]
    return result


@device
def block_sum(parts, part):
    """Σ of the parts of all threads"""
    return column_sum(parts, row_sum(parts, part))


@device
def own(parts, part):
    return part


class Team(NamedTuple):
    """The threads that share the classes of one sample (n, d) of x: (N, C, D).

    size: how many they are, and samples: how many samples a block has. place(x): the sample n, d of a thread, the
    first class of its own, of which there is one every `size` classes, and where they end: at 0 beyond the last sample.
    max, sum: (parts, part) → that of the whole team.
    """

    size: int
    samples: int
    place: Callable[..., Any]
    max: Callable[..., Any]
    sum: Callable[..., Any]


@device
def place(x, sample, member):
    n, d = divide(sample, x.shape[2])
    return n, d, member, x.shape[1] if n < x.shape[0] else 0


@device
def place_row(x):
    return place(x, cuda.blockIdx.x * ROWS + row_of_block(), lane_of_row())


@device
def place_column(x):
    return place(x, cuda.blockIdx.x * LANES + lane_of_row(), row_of_block())


@device
def place_thread(x):
    return place(x, cuda.blockIdx.x * THREADS_OF_BLOCK + thread_of_block(), 0)


# Neighbouring threads read neighbours in memory: classes where those are neighbours (D = 1), otherwise samples.
ROW = Team(LANES, ROWS, place_row, row_max, row_sum)
COLUMN = Team(ROWS, LANES, place_column, column_max, column_sum)
ALONE = Team(1, THREADS_OF_BLOCK, place_thread, own, own)
