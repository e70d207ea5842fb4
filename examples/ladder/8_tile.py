"""In the way: a tile that the compiler finds for one size only. Here 4 filters × 3 vectors of pixels serve every size.

The vectors are explicit: as long as the core has them, whatever the length of a row.
An image is read as one long line; the few columns in which its lines meet are computed and thrown away.
"""

import numpy as np
from numba import njit
from rung import main

from jitconv.variants.simd import fma_outer, lanes, store, zeros

LAYERS = ("digits",)
FILTERS, VECTORS = 4, 3


@njit(fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")
def tiles(x, weight, bias, out, sums):
    N, C_out, H_out, W_out = out.shape
    _, C_in, K_h, K_w = weight.shape
    H, W = x.shape[2:]
    a, terms, strip = weight.reshape(weight.size), C_in * K_h * K_w, VECTORS * lanes(x)
    for n in range(N):
        image = x[n].reshape(C_in * H * W)
        for first in range(0, C_out, FILTERS):
            for start in range(0, sums.shape[1], strip):
                pixel = min(start, sums.shape[1] - strip)  # the last strip overlaps the one before
                tile = zeros(x, FILTERS, VECTORS)
                for c in range(C_in):
                    for i in range(K_h):
                        for j in range(K_w):
                            tap = (c * K_h + i) * K_w + j
                            at = (c * H + i) * W + j + pixel
                            # tile[f, v] += a[first·terms + tap + f·terms] · image[at + v], all lanes
                            tile = fma_outer(tile, a, first * terms + tap, terms, image, at, None)
                store(tile, sums.reshape(sums.size), pixel, sums.shape[1], None)
            for f in range(FILTERS):
                for row in range(H_out):
                    line, outputs = sums[f, row * W :], out[n, first + f, row]
                    for col in range(W_out):
                        outputs[col] = line[col] + bias[first + f]


def conv2d(x, weight, bias, out):
    line = (out.shape[2] - 1) * x.shape[3] + out.shape[3]
    tiles(x, weight, bias, out, np.empty((FILTERS, line), np.float32))


if __name__ == "__main__":
    main(__file__)
