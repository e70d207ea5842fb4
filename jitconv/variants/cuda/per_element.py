"""`cuda`: the bodies of scalar.py on a GPU, one thread an output element; also with a layer's geometry as constants.

The drivers of scalar.py that visit elements one by one run as they stand: their `prange` becomes a walk over the grid
of threads. Those that loop over planes are too coarse for a GPU; here they visit single elements instead.

Constants are for `cuda-tiled`: loops over a window unroll, and divisions by a stride become shifts or multiplications.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

from numba import cuda

from jitconv.variants import OPS, Variant, scalar
from jitconv.variants.compiling import specialise
from jitconv.variants.cuda.launch import Kernel, device, size
from jitconv.variants.cuda.sizes import MAX_BLOCKS, THREADS


class PerElement(Kernel):
    """A kernel that shares out the elements of its last argument to the threads of as many blocks as they need."""

    def __call__(self, *args: Any) -> None:
        self.launch_for(min(size(args[-1]), MAX_BLOCKS * THREADS), *args)


@device
def grid_range(stop):
    """This thread's share of range(stop): every element is visited by one thread, whatever the size of the grid."""
    return range(cuda.grid(1), stop, cuda.gridsize(1))


@device
def number(array, value):
    return array.dtype.type(value)


@device
def unravel(element, shape):
    """The four indices of an element in C order."""
    rest, fourth = divmod(element, shape[3])
    rest, third = divmod(rest, shape[2])
    first, second = divmod(rest, shape[1])
    return first, second, third, fourth


bodies = specialise(scalar, "cuda", device, lambda driver: driver, prange=grid_range, number=number)
conv2d_at = bodies.conv2d_at
conv2d_grad_input_at = bodies.conv2d_grad_input_at
conv2d_grad_weight_at = bodies.conv2d_grad_weight_at
max_pool2d_at = bodies.max_pool2d_at
max_pool2d_grad_input_at = bodies.max_pool2d_grad_input_at
linear_grad_input_at = bodies.linear_grad_input_at
linear_grad_weight_at = bodies.linear_grad_weight_at


def conv2d(x, weight, bias, stride, padding, dilation, out):
    for element in grid_range(out.size):
        n, c_out, row, col = unravel(element, out.shape)
        out[n, c_out, row, col] = conv2d_at(x, weight, bias, stride, padding, dilation, n, c_out, row, col)


def conv2d_grad_input(grad, weight, stride, padding, dilation, out):
    groups = out.shape[1] // weight.shape[1]
    for element in grid_range(out.size):
        n, c_in, m, l = unravel(element, out.shape)
        out[n, c_in, m, l] = conv2d_grad_input_at(grad, weight, stride, padding, dilation, groups, n, c_in, m, l)


def conv2d_grad_weight(grad, x, stride, padding, dilation, out):
    filters = out.shape[0] // (x.shape[1] // out.shape[1])
    for element in grid_range(out.size):
        c_out, c, i, j = unravel(element, out.shape)
        c_in = c_out // filters * out.shape[1] + c
        out[c_out, c, i, j] = conv2d_grad_weight_at(grad, x, stride, padding, dilation, c_out, c_in, i, j)


def max_pool2d(x, kernel_size, stride, padding, dilation, out, indices):
    W = x.shape[3]
    for element in grid_range(out.size):
        n, c, row, col = unravel(element, out.shape)
        index = max_pool2d_at(x, kernel_size, stride, padding, dilation, n, c, row, col)
        indices[n, c, row, col] = index
        if index < 0:
            out[n, c, row, col] = -math.inf
        else:
            out[n, c, row, col] = x[n, c, index // W, index % W]


def max_pool2d_grad_input(grad, indices, kernel_size, stride, padding, dilation, out):
    W = out.shape[3]
    for element in grid_range(out.size):
        n, c, m, l = unravel(element, out.shape)
        out[n, c, m, l] = max_pool2d_grad_input_at(
            grad[n, c], indices[n, c], kernel_size, stride, padding, dilation, W, m, l
        )


def flatten(x, out):
    for element in grid_range(out.size):
        n, c, m, l = unravel(element, x.shape)
        out[n, element % out.shape[1]] = x[n, c, m, l]


def flatten_grad_input(grad, out):
    for element in grid_range(out.size):
        n, c, m, l = unravel(element, out.shape)
        out[n, c, m, l] = grad[n, element % grad.shape[1]]


def linear_grad_input(grad, weight, out):
    for element in grid_range(out.size):
        n, i = divmod(element, out.shape[1])
        out[n, i] = linear_grad_input_at(grad, weight, n, i)


def linear_grad_weight(grad, x, out):
    for element in grid_range(out.size):
        j, i = divmod(element, out.shape[1])
        out[j, i] = linear_grad_weight_at(grad, x, j, i)


ROW_OPS = (
    conv2d, conv2d_grad_input, conv2d_grad_weight, max_pool2d, max_pool2d_grad_input, flatten, flatten_grad_input,
    linear_grad_input, linear_grad_weight,
)  # fmt: skip
OPS_PER_ELEMENT = {op: PerElement(getattr(bodies, op)) for op in OPS} | {f.__name__: PerElement(f) for f in ROW_OPS}

VARIANT = Variant("cuda", "cuda", OPS_PER_ELEMENT)


# With constant geometry: one kernel for each stride, padding, dilation and window that is met ---------------


def constant_geometry(driver: Callable[..., None], close: Callable[..., Callable[..., None]]) -> Callable[..., None]:
    """Return the driver's op; close(driver, *geometry) is the driver as a function of the arrays alone."""
    inlined = device(driver)

    @functools.cache
    def kernel(*geometry: tuple[int, int]) -> PerElement:
        function = close(inlined, *geometry)
        function.__name__ = function.__qualname__ = driver.__name__
        return PerElement(function)

    def run(*args: Any) -> None:
        geometry = [arg for arg in args if isinstance(arg, tuple)]
        kernel(*geometry)(*[arg for arg in args if not isinstance(arg, tuple)])

    return run


# The geometry is spelled out, because Numba's closures take no *arguments.
constant_conv2d = constant_geometry(
    conv2d,
    lambda op, stride, padding, dilation: (
        lambda x, weight, bias, out: op(x, weight, bias, stride, padding, dilation, out)
    ),
)
constant_conv2d_grad_input = constant_geometry(
    conv2d_grad_input,
    lambda op, stride, padding, dilation: lambda grad, weight, out: op(grad, weight, stride, padding, dilation, out),
)
constant_max_pool2d = constant_geometry(
    max_pool2d,
    lambda op, kernel_size, stride, padding, dilation: (
        lambda x, out, indices: op(x, kernel_size, stride, padding, dilation, out, indices)
    ),
)
constant_max_pool2d_grad_input = constant_geometry(
    max_pool2d_grad_input,
    lambda op, kernel_size, stride, padding, dilation: (
        lambda grad, indices, out: op(grad, indices, kernel_size, stride, padding, dilation, out)
    ),
)
