"""conv2d and its gradients for `cuda-tiled`: matrix products over columns that are never written out (implicit GEMM).

For each group, with terms k = (c, i, j) and positions p = (n, row, col):

    forward       out[c_out, p] = Σ_k weight[c_out, k] · x_col[k, p]
    grad_input    ∂x[c_in, p]   = Σ_(c_out, i, j) weight[c_out, c_in, i, j] · ∂z_col[(c_out, i, j), p]
    grad_weight   ∂w[c_out, k]  = Σ_p ∂z[c_out, p] · x_col[k, p]

Of few channels a group, depthwise ones above all, a tile would be mostly empty: there a thread computes an element
(per_element.py), or a block of threads a sum over positions (reduce.py).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from jitconv.variants.cuda.launch import device
from jitconv.variants.cuda.matmul import ROWS, Operand, Store, epilogue, multiply, multiply_matrices
from jitconv.variants.cuda.per_element import (
    OPS_PER_ELEMENT,
    constant_conv2d,
    constant_conv2d_grad_input,
    number,
)
from jitconv.variants.cuda.reduce import sums
from jitconv.variants.cuda.sizes import MIN_ROWS

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """What is constant in a kernel: indices are divided by constants, which takes multiplications.

    window: (K_h, K_w). plane: the size of the images of positions, x's in grad_input and z's in the others.
    """

    window: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    plane: Pair


@device
def unravel(index, last_two):
    """(first, second, third) of a flat index, the last two of these extents"""
    rest, third = divmod(index, last_two[1])
    first, second = divmod(rest, last_two[0])
    return first, second, third


def by_group(image: Any, groups: int) -> Any:
    """Return (N, C, H, W) as (N, groups, C/groups, H, W)."""
    N, C, H, W = image.shape
    return image.reshape(N, groups, C // groups, H, W)


class Operands(NamedTuple):
    """How the products read x and ∂z: (N, groups, C/groups, H, W), weight: (groups, C_out/g, C_in/g, K_h·K_w)."""

    x_col: Operand
    x_row: Operand
    grad: Operand
    grad_col: Operand
    weight: Operand


@functools.cache
def operands(geometry: Geometry) -> Operands:
    """Return how to read the operands of products with such a geometry."""
    window, stride, padding, dilation, plane = geometry
    taps = window[0] * window[1]

    @device
    def x_at(x, group, p, k):
        """x[n, c, row·s + i·d − p, col·s + j·d − p] for the position (n, row, col) and the term (c, i, j)"""
        n, row, col = unravel(p, plane)
        c, i, j = unravel(k, window)
        m = row * stride[0] - padding[0] + i * dilation[0]
        l = col * stride[1] - padding[1] + j * dilation[1]
        inside = 0 <= m < x.shape[3] and 0 <= l < x.shape[4]
        return x[n, group, c, m, l] if inside else number(x, 0)

    @device
    def x_row_at(x, group, k, p):
        return x_at(x, group, p, k)

    @device
    def grad_at(grad, group, c_out, p):
        n, row, col = unravel(p, plane)
        return grad[n, group, c_out, row, col]

    @device
    def grad_col_at(grad, group, p, k):
        """∂z[n, c_out, (m + p − i·d)/s, (l + p − j·d)/s] for the position (n, m, l) and the term (c_out, i, j)"""
        n, m, l = unravel(p, plane)
        c_out, i, j = unravel(k, window)
        row, row_rest = divmod(m + padding[0] - i * dilation[0], stride[0])
        col, col_rest = divmod(l + padding[1] - j * dilation[1], stride[1])
        inside = row_rest == 0 and col_rest == 0 and 0 <= row < grad.shape[3] and 0 <= col < grad.shape[4]
        return grad[n, group, c_out, row, col] if inside else number(grad, 0)

    @device
    def weight_at(weight, group, c_in, k):
        c_out, tap = divmod(k, taps)
        return weight[group, c_out, c_in, tap]

    return Operands(
        Operand(x_at, False), Operand(x_row_at, True), Operand(grad_at, True), Operand(grad_col_at, False),
        Operand(weight_at, True),
    )  # fmt: skip


@functools.cache
def term_of_weight(geometry: Geometry, filters: int, columns: int) -> Callable[..., Any]:
    """Return term(grad, x, e, p): what position p adds to the e-th of ∂w: (groups, filters, columns), flat."""
    x_at, grad_at = operands(geometry).x_col.load, operands(geometry).grad.load

    @device
    def term(grad, x, e, p):
        group, c_out, k = unravel(e, (filters, columns))
        return grad_at(grad, group, c_out, p) * x_at(x, group, p, k)

    return term


@functools.cache
def store_image(plane: Pair, with_bias: bool, relu: bool) -> Store:
    @device
    def store(out, bias, split, group, c, p, value):
        """out: (N, groups, C/groups, H, W), bias: (groups, C/groups)"""
        n, row, col = unravel(p, plane)
        out[n, group, c, row, col] = epilogue(out, value + bias[group, c] if with_bias else value, relu)

    return store


def conv2d(
    x: Any, weight: Any, bias: Any, stride: Pair, padding: Pair, dilation: Pair, out: Any, relu: bool = False
) -> None:
    C_out, C_group, K_h, K_w = weight.shape
    N, _, H_out, W_out = out.shape
    groups = x.shape[1] // C_group
    filters, terms = C_out // groups, C_group * K_h * K_w
    if filters < MIN_ROWS:
        constant_conv2d(x, weight, bias, stride, padding, dilation, out)
        if relu:
            OPS_PER_ELEMENT["relu"](out.reshape(-1), out.reshape(-1))
        return
    geometry = Geometry((K_h, K_w), stride, padding, dilation, (H_out, W_out))
    a, b = weight.reshape(groups, filters, terms), by_group(x, groups)
    c, bias = by_group(out, groups), bias.reshape(groups, filters)
    pair, shape = (ROWS, operands(geometry).x_col), (groups, filters, N * H_out * W_out, terms)
    multiply(a, b, bias, c, pair, store_image(geometry.plane, True, relu), shape)


def conv2d_relu(x: Any, weight: Any, bias: Any, stride: Pair, padding: Pair, dilation: Pair, out: Any) -> None:
    """max(0, conv2d)"""
    conv2d(x, weight, bias, stride, padding, dilation, out, relu=True)


def conv2d_grad_input(grad: Any, weight: Any, stride: Pair, padding: Pair, dilation: Pair, out: Any) -> None:
    C_out, C_group, K_h, K_w = weight.shape
    N, C_in, H, W = out.shape
    groups = C_in // C_group
    if C_group < MIN_ROWS:
        constant_conv2d_grad_input(grad, weight, stride, padding, dilation, out)
        return
    geometry = Geometry((K_h, K_w), stride, padding, dilation, (H, W))
    a, b = weight.reshape(groups, C_out // groups, C_group, K_h * K_w), by_group(grad, groups)
    pair = operands(geometry).weight, operands(geometry).grad_col
    shape = groups, C_group, N * H * W, C_out // groups * K_h * K_w
    multiply(a, b, grad, by_group(out, groups), pair, store_image(geometry.plane, False, False), shape)


def conv2d_grad_weight(grad: Any, x: Any, stride: Pair, padding: Pair, dilation: Pair, out: Any) -> None:
    C_out, C_group, K_h, K_w = out.shape
    N, _, H_out, W_out = grad.shape
    groups = x.shape[1] // C_group
    filters, columns = C_out // groups, C_group * K_h * K_w
    geometry = Geometry((K_h, K_w), stride, padding, dilation, (H_out, W_out))
    a, b, c = by_group(grad, groups), by_group(x, groups), out.reshape(groups, filters, columns)
    if filters < MIN_ROWS:
        sums(term_of_weight(geometry, filters, columns))(a, b, c, N * H_out * W_out)
    else:
        pair = operands(geometry).grad, operands(geometry).x_row
        multiply_matrices(a, b, grad, c, pair, N * H_out * W_out)
