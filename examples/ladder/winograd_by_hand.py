"""The rung 12_winograd by hand: where a core is at its peak, do less. F(2×2, 3×3) has 16 products for 4 outputs.

z = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A for each tile of 2 × 2 outputs and the 4 × 4 pixels d under it, see docs/equations.md.
"""

import numpy as np
from rung import NAMES, measure, peak

from jitconv.variants.compiling import njit
from jitconv.variants.simd import fma_outer, lanes, store, zeros

LAYERS = ("resnet",)
LINES, ROWS = 4, 16  # lines of tiles at once, so that V and S stay in the cache; filters in a register tile
G = np.array([[-1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


@njit
def transform_pixels(image, V, first, T):
    """V[p, c, tile] = (Bᵀ d B)[p]: sums and differences of whole lines, then of every other number in them."""
    d = np.empty((4, 2 * T + 2), image.dtype)
    for c in range(image.shape[0]):
        for i in range(LINES):
            x = image[c, 2 * (first + i) : 2 * (first + i) + 4]
            d[0], d[1], d[2], d[3] = x[2] - x[0], x[2] + x[1], x[2] - x[1], x[3] - x[1]
            for p in range(4):
                line, v0, v1, v2, v3 = d[p], V[4 * p, c], V[4 * p + 1, c], V[4 * p + 2, c], V[4 * p + 3, c]
                for t in range(T):
                    v0[i * T + t] = line[2 * t + 2] - line[2 * t]
                    v1[i * T + t] = line[2 * t + 2] + line[2 * t + 1]
                    v2[i * T + t] = line[2 * t + 2] - line[2 * t + 1]
                    v3[i * T + t] = line[2 * t + 3] - line[2 * t + 1]


@njit
def multiply(U, V, S):
    """S[p, k, tile] = Σ_c U[p, k, c] · V[p, c, tile]: 16 matrix products."""
    (_, K, C), tiles = U.shape, V.shape[2]
    u, v, s = U.reshape(-1), V.reshape(-1), S.reshape(-1)
    for p in range(16):
        for k in range(0, K, ROWS):
            for t in range(0, tiles, lanes(v)):
                tile = zeros(v, ROWS, 1)
                for c in range(C):
                    tile = fma_outer(tile, u, (p * K + k) * C + c, C, v, (p * (C + 1) + c) * tiles + t, None)
                store(tile, s, (p * (K + 1) + k) * tiles + t, tiles, None)


@njit
def transform_sums(S, bias, out, first, T):
    """The 2 × 2 outputs of each tile: Aᵀ S A + bias."""
    for k in range(out.shape[0]):
        for i in range(LINES):
            for t in range(T):
                s, high, low = S[:, k, i * T + t], out[k, 2 * (first + i)], out[k, 2 * (first + i) + 1]
                a0, a1, a2, a3 = s[0] + s[4] + s[8], s[1] + s[5] + s[9], s[2] + s[6] + s[10], s[3] + s[7] + s[11]
                b0, b1, b2, b3 = s[4] - s[8] + s[12], s[5] - s[9] + s[13], s[6] - s[10] + s[14], s[7] - s[11] + s[15]
                high[2 * t], high[2 * t + 1] = a0 + a1 + a2 + bias[k], a1 - a2 + a3 + bias[k]
                low[2 * t], low[2 * t + 1] = b0 + b1 + b2 + bias[k], b1 - b2 + b3 + bias[k]


@njit
def convolve(x, U, bias, out):
    T = out.shape[3] // 2  # and a line more than needed, or the 16 matrices lie pages apart and share sets of the cache
    V, S = np.empty((16, x.shape[1] + 1, LINES * T), x.dtype), np.empty((16, out.shape[1] + 1, LINES * T), x.dtype)
    for n in range(x.shape[0]):
        for first in range(0, T, LINES):
            transform_pixels(x[n], V, first, T)
            multiply(U, V, S)
            transform_sums(S, bias, out[n], first, T)


def conv2d(x, weight, bias, out):
    U = (G @ weight @ G.T).reshape(-1, 16).T.reshape(16, *weight.shape[:2])
    convolve(x, np.ascontiguousarray(U), bias, out)


if __name__ == "__main__":
    print(__doc__)
    for layer in LAYERS:
        found, top = measure(__import__("__main__"), layer), peak()
        rate = found["flops"] / found["seconds"]
        print(f"{NAMES[layer]}: {found['bound_used']:.0%} of the allowed error, {found['seconds'] * 1e3:.3g} ms,")
        print(f"{rate / 1e9:.3g} GFLOP/s as the equation counts, {rate / top:.1%} of the core's peak")
