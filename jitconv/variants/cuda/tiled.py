"""`cuda-tiled`: products in tiles, classes in rows, and for what is bound by memory few instructions an element.

`flatten` moves nothing: it is a view.
"""

from dataclasses import replace

from jitconv.variants.cuda import conv2d, fixed, grid, linear, relu, softmax, sums

_TILED = (
    conv2d.conv2d, conv2d.conv2d_relu, conv2d.conv2d_max_pool2d,
    conv2d.conv2d_grad_input, conv2d.conv2d_grad_weight, sums.conv2d_grad_bias,
    linear.linear, linear.linear_relu, linear.linear_grad_input, linear.linear_grad_weight, sums.linear_grad_bias,
)  # fmt: skip

VARIANT = replace(
    grid.VARIANT,
    name="cuda-tiled",
    ops=fixed.OPS | relu.OPS | softmax.OPS | {kernel.__name__: kernel for kernel in _TILED},
)
