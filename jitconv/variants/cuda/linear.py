"""linear for `cuda-tiled`: three tiled products; bias and relu are added where the result is written."""

import functools
from typing import Any

from jitconv.variants.cuda.finish import Finish, as_it_is, rectified
from jitconv.variants.cuda.launch import device
from jitconv.variants.cuda.matmul import Put, columns, multiply, rows


@functools.cache
def put_with_bias(finish: Finish) -> Put:
    @device
    def put_with_bias(out, layer, z, n, j, value):
        """out: (splits, N, O); the first split brings the bias"""
        (bias,) = layer
        if n < out.shape[1] and j < out.shape[2]:
            out[z, n, j] = finish(out, value + bias[j] if z == 0 else value)

    return put_with_bias


def linear(x: Any, weight: Any, bias: Any, out: Any, finish: Finish = as_it_is) -> None:
    """Z = X·Wᵀ + B"""
    N, O = out.shape
    matrices = rows(x), rows(weight)
    multiply(x[None], weight[None], out[None], matrices, (1, N, O), x.shape[1], (bias,), put_with_bias, finish)


def linear_relu(x: Any, weight: Any, bias: Any, out: Any) -> None:
    """Z = max(0, X·Wᵀ + B)"""
    linear(x, weight, bias, out, rectified)


def linear_grad_input(grad: Any, weight: Any, out: Any) -> None:
    """∂X = ∂Z·W"""
    N, I = out.shape
    multiply(grad[None], weight[None], out[None], (rows(grad), columns(weight)), (1, N, I), weight.shape[0])


def linear_grad_weight(grad: Any, x: Any, out: Any) -> None:
    """∂W = ∂Zᵀ·X"""
    O, I = out.shape
    multiply(grad[None], x[None], out[None], (columns(grad), columns(x)), (1, O, I), x.shape[0])
