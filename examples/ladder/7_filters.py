"""In the way: each multiply-add loads a pixel. Here four filters share it: four rows of sums stay in registers.

It is `jit-static`: its loops (jitconv/variants/rows.py) also know padding, strides, and edges of images.
"""

from rung import main

from jitconv.variants import get

LAYERS = ("digits", "resnet")


def conv2d(x, weight, bias, out):
    get("jit-static").ops["conv2d"].bind([(a.shape, a.dtype) for a in (x, weight, bias, out)], ONCE)(
        x, weight, bias, *ONCE, out
    )


ONCE = ((1, 1), (0, 0), (1, 1))  # stride, padding, dilation


if __name__ == "__main__":
    main(__file__)
