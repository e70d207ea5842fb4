"""How many threads a kernel starts and how much of a matrix product each takes: every size that may be tuned.

The simulator takes a millisecond for each thread, so it has a few of each: small inputs then cross every border.
"""

from typing import NamedTuple

from numba.core import config

SIMULATED = bool(config.ENABLE_CUDASIM)  # type: ignore[attr-defined]


class Tile(NamedTuple):
    """A block of threads computes a tile of M × N outputs, K terms at a time; each thread has m × n of them."""

    M: int
    N: int
    K: int
    m: int
    n: int

    @property
    def threads(self) -> int:
        return self.M // self.m * (self.N // self.n)


MOST_ROWS_OF_BLOCKS = 65_535  # that a grid has in its second and third dimension

if SIMULATED:
    THREADS, MOST_BLOCKS = 3, 2
    LARGE, SMALL = Tile(16, 8, 4, 8, 4), Tile(8, 8, 4, 4, 4)
    BUSY, SHORTEST_SPLIT = 2, 4
    RUN = 8
    FEWEST_ROWS = 3
    MOST_DIRECT, DIRECT_FILTERS, DIRECT_POSITIONS, DIRECT_THREADS = 12, 2, 2, 3
    LANES, ROWS, FEWEST_CLASSES = 4, 2, 6
    RESIDENT, MOST_SUMS = 4, 18
    ALIGNMENT = None  # of shared memory, in bytes; the simulator has none
else:
    THREADS, MOST_BLOCKS = 256, 1 << 16
    LARGE, SMALL = Tile(128, 64, 8, 8, 8), Tile(64, 64, 16, 4, 4)
    BUSY, SHORTEST_SPLIT = 128, 256  # blocks that fill a GPU; terms that are worth a block of their own
    RUN = 64  # terms that are added up on their own: the rounding error of long sums stays small
    FEWEST_ROWS = 16  # of channels, below which a tile would be mostly empty
    MOST_DIRECT = 160  # terms of a direct convolution
    DIRECT_FILTERS, DIRECT_POSITIONS, DIRECT_THREADS = 20, 2, 128  # filters and positions of a thread
    LANES, ROWS = 32, 8  # threads of a row, rows of a block, where threads share sums (teams.py)
    FEWEST_CLASSES = 32  # that are worth so many threads
    RESIDENT = 1024  # blocks of so many threads that a GPU has room for: so many loads hide the memory's latency
    MOST_SUMS = 36  # of a thread in the gradient of grouped weights
    ALIGNMENT = 16


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)
