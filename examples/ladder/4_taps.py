"""In the way: every tap reads and writes the row of outputs. Here the taps of one line of the filter go at once."""

from numba import njit
from rung import main

LAYERS = ("digits", "resnet")


@njit(fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")
def conv2d(x, weight, bias, out):
    N, C_out, H_out, W_out = out.shape
    _, C_in, K_h, K_w = weight.shape
    for n in range(N):
        for c_out in range(C_out):
            for row in range(H_out):
                outputs = out[n, c_out, row]
                outputs[:] = bias[c_out]
                for c in range(C_in):
                    for i in range(K_h):
                        w, a = weight[c_out, c, i], x[n, c, row + i]
                        if K_w == 5:
                            w0, w1, w2, w3, w4 = w[0], w[1], w[2], w[3], w[4]
                            b, c2, d, e = a[1:], a[2:], a[3:], a[4:]
                            for col in range(W_out):
                                outputs[col] += w0 * a[col] + w1 * b[col] + w2 * c2[col] + w3 * d[col] + w4 * e[col]
                        elif K_w == 3:
                            w0, w1, w2 = w[0], w[1], w[2]
                            b, c2 = a[1:], a[2:]
                            for col in range(W_out):
                                outputs[col] += w0 * a[col] + w1 * b[col] + w2 * c2[col]


if __name__ == "__main__":
    main(__file__)
