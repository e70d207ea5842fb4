"""`jit-tiled`: kernels that keep a tile of the result in vector registers, on all cores.

product.py and dots.py are the two ways to fill a tile; shifts.py lays images out for them. conv2d.py, phases.py (its
gradient for the input), batches.py (both for small images), linear.py and pooling.py are the layers made of them;
softmax.py stands on an exp of registers. workers.py shares all of them out to the cores. What is left, relu and the
biases' gradients, is bound by memory already: `jit-parallel` computes them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from jitconv.shapes import class_indices
from jitconv.variants import Variant, get
from jitconv.variants.tiled import batches, conv2d, fused, linear, phases, pooling, softmax
from jitconv.variants.tiled.kernel import Tiled


class Pooling(Tiled):
    """A driver that need not keep the indices, and loops that always do."""

    leaves_out = True

    def __init__(self, driver: Any, plain: Callable[..., None]) -> None:
        def run(*args: Any) -> None:
            *others, out, indices = args
            plain(*others, out, indices if indices.size > 0 else np.empty(out.shape, np.int64))

        super().__init__(driver, run)


_drivers = (
    pooling.max_pool2d_grad_input,
    softmax.softmax,
    softmax.softmax_grad_input,
    softmax.log_softmax,
    softmax.log_softmax_grad_input,
    softmax.cross_entropy,
    softmax.cross_entropy_grad_input,
)
_plain = get("jit-parallel").ops
_ops = {op: kernel for op, kernel in _plain.items() if not op.startswith("flatten")}  # flatten is a view
_ops |= {driver.__name__: Tiled(driver, _plain[driver.__name__]) for driver in _drivers}


def _and_relu(plain: Callable[..., None]) -> Callable[..., None]:
    """A kernel whose result relu is applied to, in place."""

    def run(*args: Any) -> None:
        plain(*args)
        _plain["relu"](args[-1].reshape(-1), args[-1].reshape(-1))

    return run


for _relu, _end in ((False, ""), (True, "_relu")):
    _loops = {op: _and_relu(_plain[op]) if _relu else _plain[op] for op in ("conv2d", "linear")}
    _ops[f"linear{_end}"] = Tiled(linear.linear, _loops["linear"], _relu)
    _ops[f"conv2d{_end}"] = Tiled(conv2d.conv2d, Tiled(batches.conv2d, _loops["conv2d"], _relu), _relu)


def _in_turn(x: Any, weight: Any, bias: Any, *args: Any) -> None:
    """conv2d_max_pool2d as the two ops that it stands for."""
    *convolution, conv_size, kernel_size, stride, padding, dilation, out, indices = args
    z = np.empty((x.shape[0], weight.shape[0], *conv_size), x.dtype)
    _ops["conv2d"](x, weight, bias, *convolution, z)
    _ops["max_pool2d"](z, kernel_size, stride, padding, dilation, out, indices)


def _refuse(logits: Any, target: Any, weight: Any, ignore_index: int, *rest: Any) -> None:
    """Raise the ValueError of a target that is no class."""
    class_indices(target, logits.shape[1], ignore_index)


_ops["conv2d_grad_weight"] = Tiled(
    conv2d.few_conv2d_grad_weight, Tiled(conv2d.conv2d_grad_weight, _plain["conv2d_grad_weight"])
)
_ops["conv2d_grad_input"] = Tiled(
    phases.conv2d_grad_input, Tiled(batches.conv2d_grad_input, _plain["conv2d_grad_input"])
)
_ops["linear_grad_input"] = Tiled(linear.linear_gradient, _plain["linear_grad_input"], False)
_ops["linear_grad_weight"] = Tiled(linear.linear_gradient, _plain["linear_grad_weight"], True)
_ops["max_pool2d"] = Pooling(pooling.max_pool2d, _plain["max_pool2d"])
_ops["conv2d_max_pool2d"] = Pooling(fused.short_conv2d_max_pool2d, Pooling(fused.conv2d_max_pool2d, _in_turn))
_ops["reduced_cross_entropy"] = Tiled(softmax.reduced_cross_entropy, _refuse)
_ops["reduced_cross_entropy_grad_input"] = Tiled(
    softmax.reduced_cross_entropy_grad_input, lambda grad, *args: _refuse(*args)
)
VARIANTS = (Variant("jit-tiled", "cpu", _ops),)
