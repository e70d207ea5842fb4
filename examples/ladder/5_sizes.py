"""In the way: the compiler does not know how long a loop is. Here it is told: rung 1's loops, with sizes as constants.

The taps unroll into one long expression, the loop over columns becomes the innermost, and is vectorised.
"""

from functools import cache

from numba import njit
from rung import main

LAYERS = ("digits", "resnet")


@cache
def told(N, C_out, C_in, H_out, W_out, K):
    @njit(fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")
    def loops(x, weight, bias, out):
        for n in range(N):
            for c_out in range(C_out):
                for row in range(H_out):
                    for col in range(W_out):
                        z = bias[c_out]
                        for c in range(C_in):
                            for i in range(K):
                                for j in range(K):
                                    z = z + x[n, c, row + i, col + j] * weight[c_out, c, i, j]
                        out[n, c_out, row, col] = z

    return loops


def conv2d(x, weight, bias, out):
    N, C_out, H_out, W_out = out.shape
    told(N, C_out, weight.shape[1], H_out, W_out, weight.shape[3])(x, weight, bias, out)


if __name__ == "__main__":
    main(__file__)
