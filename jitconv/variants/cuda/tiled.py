"""`cuda-tiled`: the layers in tiles, and those that `cuda` already runs as fast as memory allows as they are."""

from dataclasses import replace

from jitconv.variants.cuda import grid, linear

_TILED = (linear.linear, linear.linear_grad_input, linear.linear_grad_weight)

VARIANT = replace(
    grid.VARIANT,
    name="cuda-tiled",
    ops={**grid.VARIANT.ops, **{kernel.__name__: kernel for kernel in _TILED}},
)
