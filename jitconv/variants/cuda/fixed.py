"""The bodies of scalar.py with a layer's geometry as constants of the kernel, for `cuda-tiled`.

Loops over the window unroll, and divisions by a stride of 1 or 2, with which `cuda` spends most of its time, vanish. A
kernel is made from its geometry, the tuples among an op's arguments, and takes the arrays. One thread computes one
output element; in the gradient of pooling, which is bound by memory, as many as a step of the window has.
"""

import functools
from collections.abc import Callable
from typing import Any

from numba import cuda

from jitconv.variants.cuda import grid
from jitconv.variants.cuda.grid import (
    MOST_PLACES,
    conv2d_at,
    conv2d_grad_input_at,
    divide,
    max_pool2d_at,
    max_pool2d_grad_input_at,
    unfold,
)  # fmt: skip
from jitconv.variants.cuda.launch import Kernel, device, size
from jitconv.variants.cuda.sizes import ceil_div


@device
def place(element, shape):
    """The four indices of an element in C order"""
    plane, third, fourth = unfold(element, shape[2:])
    first, second = divide(plane, shape[1])
    return first, second, third, fourth


def conv2d(stride, padding, dilation):
    def conv2d(x, weight, bias, out):
        element = cuda.grid(1)
        if element < out.size:
            n, c_out, row, col = place(element, out.shape)
            out[n, c_out, row, col] = conv2d_at(x, weight, bias, stride, padding, dilation, n, c_out, row, col)

    return conv2d


def conv2d_grad_input(stride, padding, dilation):
    def conv2d_grad_input(grad, weight, out):
        element = cuda.grid(1)
        if element < out.size:
            n, c_in, m, l = place(element, out.shape)
            groups = out.shape[1] // weight.shape[1]
            out[n, c_in, m, l] = conv2d_grad_input_at(grad, weight, stride, padding, dilation, groups, n, c_in, m, l)

    return conv2d_grad_input


def max_pool2d(kernel_size, stride, padding, dilation):
    def max_pool2d(x, out, indices):
        element = cuda.grid(1)
        if element < out.size:
            n, c, row, col = place(element, out.shape)
            index = max_pool2d_at(x, kernel_size, stride, padding, dilation, n, c, row, col)
            indices[n, c, row, col] = index
            m, l = divide(index, x.shape[3])
            out[n, c, row, col] = x[n, c, m, l]

    return max_pool2d


def max_pool2d_grad_input(kernel_size, stride, padding, dilation):
    step_h, step_w = stride

    def max_pool2d_grad_input(grad, indices, out):
        N, C, H, W = out.shape
        steps = N, C, (H + step_h - 1) // step_h, (W + step_w - 1) // step_w
        element = cuda.grid(1)
        if element < N * C * steps[2] * steps[3]:
            n, c, row, col = place(element, steps)
            for i in range(step_h):
                for j in range(step_w):
                    m, l = row * step_h + i, col * step_w + j
                    if m < H and l < W:
                        out[n, c, m, l] = max_pool2d_grad_input_at(
                            grad, indices, kernel_size, stride, padding, dilation, W, n, c, m, l
                        )

    return max_pool2d_grad_input


def _each(out: Any, *geometry: Any) -> int:
    return size(out)


def _each_step(out: Any, kernel_size: Any, stride: tuple[int, int], *geometry: Any) -> int:
    N, C, H, W = out.shape
    return N * C * ceil_div(H, stride[0]) * ceil_div(W, stride[1])


def _op(make: Callable[..., Any], threads: Callable[..., int]) -> Callable[..., None]:
    """Return the op that runs the kernel of its geometry; arrays too large to count in 32 bits are left to `cuda`."""
    kernel = functools.cache(lambda *geometry: Kernel(make(*geometry)))

    def run(*args: Any) -> None:
        geometry = [arg for arg in args if isinstance(arg, tuple)]
        arrays = [arg for arg in args if not isinstance(arg, tuple)]
        if max(map(size, arrays)) > MOST_PLACES:
            grid.VARIANT.ops[make.__name__](*args)
        else:
            kernel(*geometry).launch_for(threads(arrays[-1], *geometry), *arrays)

    return run


OPS = {
    make.__name__: _op(make, threads)
    for make, threads in (
        (conv2d, _each), (conv2d_grad_input, _each), (max_pool2d, _each), (max_pool2d_grad_input, _each_step),
    )
}  # fmt: skip
