"""In the way: the multiplications of the equation. Winograd's transforms need fewer, at the price of more rounding.

Tiles of pixels are transformed, multiplied with transformed filters, and their products transformed back.
"""

import numpy as np
from rung import main

from jitconv.variants import get

LAYERS = ("resnet",)
ONCE = ((1, 1), (0, 0), (1, 1))  # stride, padding, dilation
bound = {}


def conv2d(x, weight, bias, out):
    if x.shape not in bound:
        kernel = get("jit-winograd").ops["conv2d"].bind(tuple((a.shape, a.dtype) for a in (x, weight, bias, out)), ONCE)
        bound[x.shape] = kernel, kernel.packs[1](weight)  # filters are transformed once, as a network in use does
    kernel, transformed = bound[x.shape]
    kernel(x, transformed, bias, *ONCE, out)


def allowed(x, weight, bias, out):
    """Its own bound: 4·eps·Σ|x·w| does not hold where a large pixel meets a small weight."""
    return np.finfo(x.dtype).eps * get("jit-winograd").bounds["conv2d"](x, weight, bias, *ONCE, out.shape)


if __name__ == "__main__":
    main(__file__)
