"""`jit-tiled`: kernels that keep a tile of the result in vector registers, on all cores.

table.py says which kernel computes which shape. blocked.py convolves with channels in the lanes: what a call adds up is
worked out once, in geometry.py, for the loops of direct.py on the register tiles of microkernel.py. conv2d.py,
grad_input.py and fused.py (with the pooling after it) convolve with pixels in the lanes, on shifts.py's shifted copies.
product.py and dots.py are the products under them and linear.py; pooling.py and softmax.py stand alone. workers.py
shares all of them out to the cores. What is left, relu and the gradient for linear's bias, is bound by memory
already: `jit-parallel` computes them.
"""

from typing import Any

from jitconv.shapes import class_indices
from jitconv.variants import Variant
from jitconv.variants.tiled import conv2d, linear, softmax
from jitconv.variants.tiled.kernel import Tiled
from jitconv.variants.tiled.table import CONVOLUTIONS, plain

_drivers = (
    softmax.softmax,
    softmax.softmax_grad_input,
    softmax.log_softmax,
    softmax.log_softmax_grad_input,
    softmax.cross_entropy,
    softmax.cross_entropy_grad_input,
)
_ops: dict[str, Any] = {op: kernel for op, kernel in plain.items() if not op.startswith("flatten")}  # flatten is a view
_ops |= CONVOLUTIONS
_ops["conv2d_grad_bias"] = Tiled(conv2d.conv2d_grad_bias, None)
_ops |= {driver.__name__: Tiled(driver, None) for driver in _drivers}
_ops["linear"], _ops["linear_relu"] = Tiled(linear.linear, None, False), Tiled(linear.linear, None, True)
_ops["linear_grad_input"] = Tiled(linear.linear_gradient, None, False)
_ops["linear_grad_weight"] = Tiled(linear.linear_gradient, None, True)


def _raise_for(target: Any, weight: Any, ignore_index: int, *_: Any) -> None:
    """Raise the ValueError of a target that is no class."""
    class_indices(target, len(weight), ignore_index)


_ops["reduced_cross_entropy"] = Tiled(softmax.reduced_cross_entropy, lambda x, *labels: _raise_for(*labels))
_ops["reduced_cross_entropy_grad_input"] = Tiled(
    softmax.reduced_cross_entropy_grad_input, lambda grad, log_p, *labels: _raise_for(*labels)
)
VARIANTS = (Variant("jit-tiled", "cpu", _ops),)
