"""conv2d for `cuda-tiled`: a matrix product over columns that are never written out, or, for few channels, directly.

As products, for each group, with k = (c, i, j) or a position p = (n, row, col):

    forward       out[c_out, p] = Σ_k weight[c_out, k] · x_col[k, p]
    grad_input    ∂x[c_in, p]   = Σ_(c_out, i, j) weight[c_out, c_in, i, j] · ∂z_col[(c_out, i, j), p]
    grad_weight   ∂w[c_out, k]  = Σ_p ∂z[c_out, p] · x_col[k, p]

A tile of a product has SMALL.M rows of channels; where there are far fewer, most of it would be empty, and kernels do
less work that have one thread for each element (fixed.py) or many for each sum over positions (grouped.py).
"""

import functools
from typing import Any, NamedTuple

from jitconv.variants.cuda import direct, fixed, grid, grouped, relu
from jitconv.variants.cuda.finish import Finish, as_it_is, rectified
from jitconv.variants.cuda.grid import MOST_PLACES, divide, number, unfold
from jitconv.variants.cuda.launch import device, empty_like, size
from jitconv.variants.cuda.matmul import Matrix, Put, multiply, rows
from jitconv.variants.cuda.sizes import BUSY, FEWEST_ROWS, MOST_DIRECT, MOST_ROWS_OF_BLOCKS

Pair = tuple[int, int]


class Layer(NamedTuple):
    """The geometry of one product. channels: those of a group that its terms run over. plane: that of its positions."""

    padding: Pair
    dilation: Pair
    channels: int
    plane: Pair
    bias: Any = ()


class Matrices(NamedTuple):
    x_col: Matrix
    x_row: Matrix
    grad: Matrix
    grad_col: Matrix
    turned_weight: Matrix


@functools.cache
def matrices(kernel: Pair, stride: Pair) -> Matrices:
    """Return how to read the matrices of the products, without writing them out.

    What indices are divided by is constant in a GPU's code: so a division becomes a multiplication, or nothing.
    """

    @device
    def x_col_at(x, layer, group, p, k):
        """x[n, c_in, row·s + i·d − p, col·s + j·d − p] for the position (n, row, col) and the term (c, i, j)"""
        padding, dilation = layer.padding, layer.dilation
        n, row, col = unfold(p, layer.plane)
        c, i, j = unfold(k, kernel)
        m = row * stride[0] - padding[0] + i * dilation[0]
        l = col * stride[1] - padding[1] + j * dilation[1]
        inside = n < x.shape[0] and 0 <= m < x.shape[2] and 0 <= l < x.shape[3]
        return x[n, group * layer.channels + c, m, l] if inside else number(x, 0)

    @device
    def x_row_at(x, layer, group, k, p):
        """x_col for a product over positions; k may lie beyond the last term"""
        return x_col_at(x, layer, group, p, k) if k < layer.channels * kernel[0] * kernel[1] else number(x, 0)

    @device
    def grad_at(grad, layer, group, c_out, p):
        """∂z[c_out, p], where grad is (N, groups, C_out/groups, H_out·W_out)"""
        n, pixel = divide(p, grad.shape[3])
        return grad[n, group, c_out, pixel] if c_out < grad.shape[2] else number(grad, 0)

    @device
    def grad_col_at(grad, layer, group, p, k):
        """∂z[n, c_out, (m + p − i·d)/s, (l + p − j·d)/s] for the position (n, m, l) and the term (c_out, i, j)"""
        padding, dilation = layer.padding, layer.dilation
        n, m, l = unfold(p, layer.plane)
        c_out, i, j = unfold(k, kernel)
        above, before = m + padding[0] - i * dilation[0], l + padding[1] - j * dilation[1]
        if n >= grad.shape[0] or above < 0 or before < 0:
            return number(grad, 0)
        row, between_rows = divide(above, stride[0])
        col, between_cols = divide(before, stride[1])
        inside = between_rows == 0 and between_cols == 0 and row < grad.shape[2] and col < grad.shape[3]
        return grad[n, group * layer.channels + c_out, row, col] if inside else number(grad, 0)

    @device
    def turned_weight_at(weight, layer, group, c_in, k):
        """weight[c_out, c_in, i, j] for the term (c_out, i, j); weight: (groups, C_out/groups, C_in/groups, K_h·K_w)"""
        c_out, tap = divide(k, kernel[0] * kernel[1])
        return weight[group, c_out, c_in, tap] if c_in < weight.shape[2] else number(weight, 0)

    return Matrices(
        Matrix(x_col_at, False), Matrix(x_row_at, True), Matrix(grad_at, True), Matrix(grad_col_at, False),
        Matrix(turned_weight_at, True),
    )  # fmt: skip


@functools.cache
def put_image(finish: Finish) -> Put:
    @device
    def put_image(out, layer, group, c, p, value):
        """out: (N, groups, C/groups, H·W)"""
        n, pixel = divide(p, out.shape[3])
        if n < out.shape[0] and c < out.shape[2]:
            out[n, group, c, pixel] = finish(out, value)

    return put_image


@functools.cache
def put_image_with_bias(finish: Finish) -> Put:
    put = put_image(finish)

    @device
    def put_image_with_bias(out, layer, group, c, p, value):
        """out: (N, groups, C_out/groups, H_out·W_out)"""
        if c < out.shape[2]:
            put(out, layer, group, c, p, value + layer.bias[group * out.shape[2] + c])

    return put_image_with_bias


def countable(groups: int, positions: int) -> bool:
    """Return whether the products of so many groups and positions can be counted in a grid and in 32 bits."""
    return groups * BUSY <= MOST_ROWS_OF_BLOCKS and positions <= MOST_PLACES


def is_direct(weight: Any, positions: int) -> bool:
    """Return whether the direct convolution takes so many positions of such filters."""
    C_out, C_group, K_h, K_w = weight.shape
    return C_group * K_h * K_w <= MOST_DIRECT and positions <= MOST_PLACES and C_out <= MOST_ROWS_OF_BLOCKS


def conv2d(
    x: Any, weight: Any, bias: Any, stride: Pair, padding: Pair, dilation: Pair, out: Any, finish: Finish = as_it_is
) -> None:
    C_out, C_group, K_h, K_w = weight.shape
    N, _, H_out, W_out = out.shape
    groups = x.shape[1] // C_group
    filters, positions, terms = C_out // groups, N * H_out * W_out, C_group * K_h * K_w
    if is_direct(weight, positions):
        direct.conv2d(x, weight, bias, stride, padding, dilation, (H_out, W_out), (out,), direct.single(finish))
        return
    if filters < FEWEST_ROWS or not countable(groups, positions):
        fixed.OPS["conv2d"](x, weight, bias, stride, padding, dilation, out)
        if finish is rectified:
            relu.OPS["relu"](out.reshape(-1), out.reshape(-1))
        return
    layer = Layer(padding, dilation, C_group, (H_out, W_out), bias)
    matrix = weight.reshape(groups, filters, terms)
    image = out.reshape(N, groups, filters, H_out * W_out)
    pair = rows(matrix), matrices((K_h, K_w), stride).x_col
    multiply(matrix, x, image, pair, (groups, filters, positions), terms, layer, put_image_with_bias, finish)


def conv2d_relu(x: Any, weight: Any, bias: Any, stride: Pair, padding: Pair, dilation: Pair, out: Any) -> None:
    conv2d(x, weight, bias, stride, padding, dilation, out, rectified)


def conv2d_max_pool2d(
    x: Any, weight: Any, bias: Any, stride: Pair, padding: Pair, dilation: Pair, conv_size: Pair,
    kernel_size: Pair, pool_stride: Pair, pool_padding: Pair, pool_dilation: Pair, out: Any, indices: Any,
) -> None:  # fmt: skip
    """In one kernel where the convolution is direct and windows of 2×2 lie side by side, else in two."""
    pooling = kernel_size, pool_stride, pool_padding, pool_dilation
    whole = 2 * out.shape[2] <= conv_size[0] and 2 * out.shape[3] <= conv_size[1]
    if whole and pooling == ((2, 2), (2, 2), (0, 0), (1, 1)) and is_direct(weight, 4 * size(out)):
        direct.conv2d(x, weight, bias, stride, padding, dilation, conv_size, (out, indices, conv_size), direct.WINDOWS)
        return
    z = empty_like(x, (x.shape[0], weight.shape[0], *conv_size))
    conv2d(x, weight, bias, stride, padding, dilation, z)
    fixed.OPS["max_pool2d"](z, *pooling, out, indices)


def conv2d_grad_input(grad: Any, weight: Any, stride: Pair, padding: Pair, dilation: Pair, out: Any) -> None:
    C_out, C_group, K_h, K_w = weight.shape
    N, C_in, H, W = out.shape
    groups = C_in // C_group
    filters, positions = C_out // groups, N * H * W
    if C_group < FEWEST_ROWS or not countable(groups, positions):
        fixed.OPS["conv2d_grad_input"](grad, weight, stride, padding, dilation, out)
        return
    layer = Layer(padding, dilation, filters, (H, W))
    matrix, terms = weight.reshape(groups, filters, C_group, K_h * K_w), filters * K_h * K_w
    image = out.reshape(N, groups, C_group, H * W)
    read = matrices((K_h, K_w), stride)
    pair = read.turned_weight, read.grad_col
    multiply(matrix, grad, image, pair, (groups, C_group, positions), terms, layer, put_image)


def conv2d_grad_weight(grad: Any, x: Any, stride: Pair, padding: Pair, dilation: Pair, out: Any) -> None:
    C_out, C_group, K_h, K_w = out.shape
    N, _, H_out, W_out = grad.shape
    groups = x.shape[1] // C_group
    filters, positions = C_out // groups, N * H_out * W_out
    if positions > MOST_PLACES:
        grid.VARIANT.ops["conv2d_grad_weight"](grad, x, stride, padding, dilation, out)
        return
    if filters < FEWEST_ROWS or not countable(groups, positions):
        grouped.conv2d_grad_weight(grad, x, stride, padding, dilation, out)
        return
    layer = Layer(padding, dilation, C_group, (H_out, W_out))
    shape = groups, filters, C_group * K_h * K_w
    matrix = grad.reshape(N, groups, filters, H_out * W_out)
    read = matrices((K_h, K_w), stride)
    multiply(matrix, x, out.reshape(shape), (read.grad, read.x_row), shape, positions, layer)
