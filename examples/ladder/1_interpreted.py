"""Nothing is in the way of reading this: it is the equation, seven loops, each step of it taken by the interpreter."""

from rung import main

LAYERS = ("digits",)
IMAGES, PATIENCE = 1, 0  # of the 64; the time is scaled up


def conv2d(x, weight, bias, out):
    N, C_out, H_out, W_out = out.shape
    _, C_in, K_h, K_w = weight.shape
    for n in range(N):
        for c_out in range(C_out):
            for row in range(H_out):
                for col in range(W_out):
                    z = bias[c_out]
                    for c in range(C_in):
                        for i in range(K_h):
                            for j in range(K_w):
                                z = z + x[n, c, row + i, col + j] * weight[c_out, c, i, j]
                    out[n, c_out, row, col] = z


if __name__ == "__main__":
    main(__file__)
