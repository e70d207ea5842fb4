"""In which blocks the terms of a sum are added up, each on its own, which bounds its rounding error."""

import numpy as np

SHORT_BLOCK, LONG_BLOCK = np.int64(64), np.int64(128)  # terms; of this type, since Numba compiles anew for each literal
FEW_BLOCKS = 3  # long ones; the errors of more even out


def block_of(K):
    """How many terms of a sum of K are added up on their own."""
    return SHORT_BLOCK if K <= FEW_BLOCKS * LONG_BLOCK else LONG_BLOCK
