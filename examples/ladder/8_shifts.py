"""In the way: columns computed and thrown away, a copy of every sum. Here pixels are copied, once for each tap column.

In lines as wide as the output a tap is an offset, tiles fill up, and are stored where they belong: `jit-tiled`.
"""

from rung import main

from jitconv import functional

LAYERS = ("digits", "pooled", "resnet")


def conv2d(x, weight, bias, out):
    z = functional.conv2d(x, weight, bias, variant="jit-tiled")
    return z if z.shape == out.shape else functional.max_pool2d(z, 2, variant="jit-tiled")


if __name__ == "__main__":
    main(__file__)
