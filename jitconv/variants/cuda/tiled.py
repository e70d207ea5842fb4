"""`cuda-tiled`: the layers in tiles, and those that `cuda` already runs as fast as memory allows as they are."""

from dataclasses import replace

from jitconv.variants.cuda import conv2d, grid, linear, softmax

_TILED = (
    conv2d.conv2d, conv2d.conv2d_grad_input, conv2d.conv2d_grad_weight,
    linear.linear, linear.linear_grad_input, linear.linear_grad_weight,
)  # fmt: skip

VARIANT = replace(
    grid.VARIANT,
    name="cuda-tiled",
    ops={**grid.VARIANT.ops, **{kernel.__name__: kernel for kernel in _TILED}, **softmax.OPS},
)
