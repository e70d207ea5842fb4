"""In the way: with many channels the sum stays a loop, and its row of sums in memory. Here they stay in registers.

The loops along a row become vector instructions before they are unrolled, not after, as Numba's own passes have it.
"""

from functools import cache

from rung import main

from jitconv.compat import VectorsFirstCompiler
from jitconv.variants.compiling import njit, registers

LAYERS = ("digits", "resnet")


@cache
def told(N, C_out, C_in, H_out, W_out, K):
    def loops(x, weight, bias, out):
        sums = registers(x, W_out)  # W_out numbers on the stack: in registers, where every index is a constant
        for n in range(N):
            for c_out in range(C_out):
                for row in range(H_out):
                    for col in range(W_out):
                        sums[col] = bias[c_out]
                    for c in range(C_in):
                        for i in range(K):
                            for j in range(K):
                                tap, pixels = weight[c_out, c, i, j], x[n, c, row + i, j:]
                                for col in range(W_out):
                                    sums[col] = sums[col] + tap * pixels[col]
                    for col in range(W_out):
                        out[n, c_out, row, col] = sums[col]

    return njit(loops, cache=False, pipeline_class=VectorsFirstCompiler)


def conv2d(x, weight, bias, out):
    N, C_out, H_out, W_out = out.shape
    told(N, C_out, weight.shape[1], H_out, W_out, weight.shape[3])(x, weight, bias, out)


if __name__ == "__main__":
    main(__file__)
