"""relu for `cuda-tiled`: bound by memory, so each thread moves four neighbours with one load and one store.

As the end of another layer it moves nothing: that layer's kernels store max(0, z) instead of z (finish.py).
"""

from collections.abc import Callable
from typing import Any

from numba import cuda

from jitconv.variants.cuda import grid
from jitconv.variants.cuda.grid import relu_at, relu_grad_input_at
from jitconv.variants.cuda.launch import Kernel, size
from jitconv.variants.cuda.quads import aligned, load4, store4
from jitconv.variants.cuda.sizes import ceil_div


def relu(x, out):
    values = cuda.local.array(4, x.dtype)
    first = cuda.grid(1) * 4
    if first + 4 <= x.size:
        values[0], values[1], values[2], values[3] = load4(x, (first,))
        store4(out, (first,), (relu_at(values, 0), relu_at(values, 1), relu_at(values, 2), relu_at(values, 3)))
    else:
        for i in range(first, x.size):
            out[i] = relu_at(x, i)


def relu_grad_input(grad, z, out):
    grads, values = cuda.local.array(4, grad.dtype), cuda.local.array(4, grad.dtype)
    first = cuda.grid(1) * 4
    if first + 4 <= grad.size:
        grads[0], grads[1], grads[2], grads[3] = load4(grad, (first,))
        values[0], values[1], values[2], values[3] = load4(z, (first,))
        a, b = relu_grad_input_at(grads, values, 0), relu_grad_input_at(grads, values, 1)
        c, d = relu_grad_input_at(grads, values, 2), relu_grad_input_at(grads, values, 3)
        store4(out, (first,), (a, b, c, d))
    else:
        for i in range(first, grad.size):
            out[i] = relu_grad_input_at(grad, z, i)


def _op(function: Callable[..., None]) -> Callable[..., None]:
    """Return the op; arrays that begin where no quad may are left to `cuda`."""
    kernel, others = Kernel(function), grid.VARIANT.ops[function.__name__]

    def run(*arrays: Any) -> None:
        if aligned(*arrays):
            kernel.launch_for(ceil_div(size(arrays[-1]), 4), *arrays)
        else:
            others(*arrays)

    return run


OPS = {function.__name__: _op(function) for function in (relu, relu_grad_input)}
