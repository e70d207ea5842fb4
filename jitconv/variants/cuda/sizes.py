"""How many threads a kernel starts, and how much each of them computes. None of these sizes was tuned on a device.

Numba's simulator takes a millisecond a thread: there all sizes are tiny, so that small inputs cross every border.
"""

from typing import NamedTuple

from numba.core import config

SIMULATED = bool(config.ENABLE_CUDASIM)  # type: ignore[attr-defined]


class Tile(NamedTuple):
    """A block of threads computes BM × BN outputs, BK terms at a time; each thread a register tile of TM × TN."""

    BM: int
    BN: int
    BK: int
    TM: int
    TN: int

    @property
    def threads(self) -> int:
        return self.BM // self.TM * (self.BN // self.TN)


if SIMULATED:
    THREADS, MAX_BLOCKS = 4, 2
    SQUARE, FLAT = Tile(8, 8, 4, 4, 4), Tile(4, 16, 2, 2, 8)
    MIN_ROWS, MIN_CLASSES = 3, 6
    TARGET_BLOCKS, MIN_SPLIT = 2, 4
    RUN = 8
else:
    THREADS, MAX_BLOCKS = 256, 1 << 16  # of a kernel that is not tiled; a power of two threads, for reduce.py
    SQUARE, FLAT = Tile(64, 64, 16, 4, 4), Tile(32, 128, 16, 4, 4)  # float64 has no registers for more
    MIN_ROWS = 16  # of a product: with fewer, most of a tile would be empty
    MIN_CLASSES = 128  # of a sample: with fewer, most of a block would be idle
    TARGET_BLOCKS = 128  # that keep a GPU busy
    MIN_SPLIT = 256  # terms for which a block of its own is started
    RUN = 64  # terms added up on their own, a multiple of every BK: the rounding error of long sums stays small


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)
