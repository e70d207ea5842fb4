"""`cuda`: the bodies of scalar.py on a GPU, one thread for each output element.

The drivers of scalar.py that visit elements one by one run as they stand: their `prange` becomes a walk over the grid
of threads. Those that loop over planes are too coarse for a GPU; here they visit single elements instead.
"""

import numpy as np
from numba import cuda

from jitconv.variants import OPS, Variant, scalar
from jitconv.variants.compiling import specialise
from jitconv.variants.cuda.launch import PerElement, device


@device
def grid_range(stop):
    """This thread's share of range(stop): every element is visited by one thread, whatever the size of the grid."""
    return range(cuda.grid(1), stop, cuda.gridsize(1))


@device
def number(array, value):
    return array.dtype.type(value)


@device
def place(element, shape):
    """The four indices of an element in C order."""
    rest, fourth = divmod(element, shape[3])
    rest, third = divmod(rest, shape[2])
    first, second = divmod(rest, shape[1])
    return first, second, third, fourth


MOST_PLACES = 2**32 - 1024  # that 32 bits can count, with those of a tile that reaches beyond the last


@device
def divide(a, b):
    """a // b and a % b of numbers up to MOST_PLACES, several times faster than for larger ones"""
    quotient = np.uint32(np.uint32(a) // np.uint32(b))
    return np.int64(quotient), np.int64(np.uint32(np.uint32(a) - quotient * np.uint32(b)))


@device
def unfold(index, last_two):
    """(first, second, third) of a flat index, the last two of these extents"""
    rest, third = divide(index, last_two[1])
    first, second = divide(rest, last_two[0])
    return first, second, third


_scalar = specialise(scalar, "cuda", device, lambda driver: driver, prange=grid_range, number=number)

conv2d_at = _scalar.conv2d_at
conv2d_grad_input_at = _scalar.conv2d_grad_input_at
conv2d_grad_weight_at = _scalar.conv2d_grad_weight_at
max_pool2d_at = _scalar.max_pool2d_at
max_pool2d_grad_input_at = _scalar.max_pool2d_grad_input_at
relu_at, relu_grad_input_at = _scalar.relu_at, _scalar.relu_grad_input_at
loss_at, pull_at = _scalar.loss_at, _scalar.pull_at


def conv2d(x, weight, bias, stride, padding, dilation, out):
    for element in grid_range(out.size):
        n, c_out, row, col = place(element, out.shape)
        out[n, c_out, row, col] = conv2d_at(x, weight, bias, stride, padding, dilation, n, c_out, row, col)


def conv2d_grad_input(grad, weight, stride, padding, dilation, out):
    groups = out.shape[1] // weight.shape[1]
    for element in grid_range(out.size):
        n, c_in, m, l = place(element, out.shape)
        out[n, c_in, m, l] = conv2d_grad_input_at(grad, weight, stride, padding, dilation, groups, n, c_in, m, l)


def conv2d_grad_weight(grad, x, stride, padding, dilation, out):
    filters = out.shape[0] // (x.shape[1] // out.shape[1])
    for element in grid_range(out.size):
        c_out, c, i, j = place(element, out.shape)
        c_in = c_out // filters * out.shape[1] + c
        out[c_out, c, i, j] = conv2d_grad_weight_at(grad, x, stride, padding, dilation, c_out, c_in, i, j)


def max_pool2d(x, kernel_size, stride, padding, dilation, out, indices):
    W = x.shape[3]
    for element in grid_range(out.size):
        n, c, row, col = place(element, out.shape)
        index = max_pool2d_at(x, kernel_size, stride, padding, dilation, n, c, row, col)
        indices[n, c, row, col] = index
        out[n, c, row, col] = x[n, c, index // W, index % W]


def max_pool2d_grad_input(grad, indices, kernel_size, stride, padding, dilation, out):
    W = out.shape[3]
    for element in grid_range(out.size):
        n, c, m, l = place(element, out.shape)
        out[n, c, m, l] = max_pool2d_grad_input_at(grad, indices, kernel_size, stride, padding, dilation, W, n, c, m, l)


def flatten(x, out):
    for element in grid_range(out.size):
        n, c, m, l = place(element, x.shape)
        out[n, element % out.shape[1]] = x[n, c, m, l]


def flatten_grad_input(grad, out):
    for element in grid_range(out.size):
        n, c, m, l = place(element, out.shape)
        out[n, c, m, l] = grad[n, element % grad.shape[1]]


_PER_ELEMENT = (
    conv2d, conv2d_grad_input, conv2d_grad_weight,
    max_pool2d, max_pool2d_grad_input, flatten, flatten_grad_input,
)  # fmt: skip
_DRIVERS = {op: getattr(_scalar, op) for op in OPS} | {kernel.__name__: kernel for kernel in _PER_ELEMENT}

VARIANT = Variant("cuda", "cuda", {op: PerElement(driver) for op, driver in _DRIVERS.items()})
