"""Which kernel of `jit-tiled` computes a convolution: decided here, from shapes and constants, when a call is bound.

| | forward | gradient for the input | for the weight |
|---|---|---|---|
| many output channels of the product | blocked.py: channels in the lanes | the same, filters turned about | |
| 1×1, few input channels | conv2d.py: each number is used too few times to be transposed | | |
| few | conv2d.py: pixels in the lanes, shifted copies of the image | the same, in grad_input.py | conv2d.py |
| up to 4 | | col2im.py: so few that shifted copies of ∂z would cost more than the sums | |

"Many" fill most lanes of the registers. The channels that a product puts into the lanes are the filters, and for the
gradient for the input the image's channels. Where the sum is over less than a register of channels pixels are in the
lanes too: there are few channels to copy, and a blocked tile would add up too few terms. With stride 2 that holds for
short sums only: of a long one, as of 7×7 taps, blocked tiles read the image as it lies, each core its own lines. Pixels
are in the lanes also where one register holds all filters and lines are long: such a blocked tile is one vector wide,
and loads as often as it multiplies. Where multiplications are slow (HALVES) that costs nothing, and half as few input
channels are few.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from jitconv.variants import get
from jitconv.variants.rounding import SHORT_BLOCK
from jitconv.variants.rows import Conv
from jitconv.variants.simd import HALVES, lanes_of
from jitconv.variants.tiled import blocked, col2im, conv2d, fused, pooling
from jitconv.variants.tiled.blocked import Convolution, Epilogue
from jitconv.variants.tiled.grad_input import GradInput
from jitconv.variants.tiled.grad_weight import GradWeight
from jitconv.variants.tiled.kernel import Choice, Tiled
from jitconv.variants.tiled.layout import workspace
from jitconv.variants.tiled.product import ONE

MANY_FILTERS = 192  # from here on, the gradient for the weight copies panels of the images: they are used often enough
FULL = 0.7  # of the lanes, from which on channels belong into them
COL2IM_CHANNELS = 4  # of an image whose gradient is asked for
COLOURS = 4  # channels of a picture, with transparency
FEW_INPUTS = 128  # channels of a 1×1 filter, up to which pixels stay in the lanes
POOLED_TERMS = 2 * SHORT_BLOCK  # of a sum whose result is pooled in registers: of longer ones that saves nothing
MOST_PIXELS = 1 << 31  # of an image whose indices fit into the lanes of a register of float32
LONGEST = 9216  # terms of a sum that blocked.py adds up within the bound; products have one level of blocks more

plain = get("jit-parallel").ops


def fills_lanes(channels: int, others: int, groups: int, area: int, dtype: Any) -> bool:
    """Whether `channels` of each group fill the lanes; a sum over `others` channels and an `area` of taps."""
    lanes = lanes_of(dtype)
    if others * area > LONGEST:
        return False
    if channels == others == 1 and groups > 1:  # depthwise: a group in each lane
        return groups >= FULL * lanes
    return channels >= FULL * (-(-channels // lanes) * lanes)


class Blocked:
    """A blocked convolution as a kernel of conv2d, or of its gradient for the input; a weight may come unpacked."""

    def __init__(self, convolution: Convolution, zeros: int | None = None) -> None:
        self.convolution = convolution
        self.packs = {1: convolution.pack}
        self.bias = None if zeros is None else np.zeros(zeros, convolution.dtype)

    def __call__(self, x: Any, weight: Any, *args: Any) -> None:
        packed, pack = weight, self.convolution.pack
        if weight.ndim > 1:  # fresh memory of some megabytes would cost more than packing
            packed = pack(weight, workspace("packed weight", pack.size, weight.dtype))
        bias = args[0] if self.bias is None else self.bias
        self.convolution(x, packed, bias, None, args[-1])


def is_narrow(
    filters: int, inputs: int, groups: int, area: int, stride: tuple[int, int], width: int, dtype: Any
) -> bool:
    """Whether sums over so few channels, or so few filters of an image this wide, cost less on copies of the image."""
    if (filters == inputs == 1 and groups > 1) or stride not in ((1, 1), (2, 2)):
        return False
    lanes = lanes_of(dtype)
    if stride == (2, 2):
        return inputs <= COLOURS and inputs * area < 2 * lanes
    if HALVES:
        return inputs < lanes // 2
    return inputs < lanes or (filters <= lanes and inputs <= (4 * lanes if width >= lanes else lanes))


def choose_conv2d(relu: bool, arrays: Any, constants: Any) -> Callable[..., Any]:
    (x_shape, dtype), (weight_shape, _), *_ = arrays
    groups = x_shape[1] // weight_shape[1]
    (stride, padding, dilation), area = constants, math.prod(weight_shape[2:])
    filters, inputs = weight_shape[0] // groups, weight_shape[1]
    product = area == 1 and stride == (1, 1) and padding == (0, 0) and groups == 1 and inputs <= FEW_INPUTS
    shifted = product or is_narrow(filters, inputs, groups, area, stride, arrays[-1][0][3], dtype)
    if not shifted and fills_lanes(filters, inputs, groups, area, dtype):
        how = Epilogue("relu" if relu else None)
        return Blocked(
            blocked.bind(x_shape, weight_shape, dtype, stride, padding, dilation, groups, "nchw", "nchw", how)
        )
    return SHIFTED[relu]


def choose_grad_input(arrays: Any, constants: Any) -> Callable[..., Any]:
    (grad_shape, dtype), (weight_shape, _), (x_shape, _) = arrays
    groups = x_shape[1] // weight_shape[1]
    if fills_lanes(weight_shape[1], weight_shape[0] // groups, groups, math.prod(weight_shape[2:]), dtype):
        kernel = blocked.bind_grad_input(grad_shape, weight_shape, dtype, constants, x_shape)
        return Blocked(kernel, x_shape[1])
    if weight_shape[1] <= COL2IM_CHANNELS:
        return COL2IM
    return GradInput(grad_shape, weight_shape, x_shape, constants, SHIFTED[False])


def _and_relu(kernel: Callable[..., None]) -> Callable[..., None]:
    """A kernel whose result relu is applied to, in place."""

    def run(*args: Any) -> None:
        kernel(*args)
        plain["relu"](args[-1].reshape(-1), args[-1].reshape(-1))

    return run


SHIFTED = {
    False: Tiled(conv2d.conv2d, plain["conv2d"], False),
    True: Tiled(conv2d.conv2d, _and_relu(plain["conv2d"]), True),
}
COL2IM = Tiled(col2im.conv2d_grad_input, None, recordable=True)
DOTS, PANELS = (Tiled(conv2d.conv2d_grad_weight, plain["conv2d_grad_weight"], packed) for packed in (None, ONE))


def choose_grad_weight(arrays: Any, constants: Any) -> Callable[..., Any]:
    (grad_shape, dtype), (x_shape, _), (weight_shape, _) = arrays
    groups = x_shape[1] // weight_shape[1]
    filters, channels = weight_shape[0] // groups, weight_shape[1]
    if fills_lanes(filters, channels, 1, 1, dtype) and fills_lanes(channels, filters, 1, 1, dtype):
        return GradWeight(grad_shape, x_shape, weight_shape, dtype, constants)
    return PANELS if filters >= MANY_FILTERS else DOTS


def whole_windows(size: Any, out_size: Any, pooling: Any) -> bool:
    """Whether windows are of 2×2, side by side, and none reaches over the edge."""
    side_by_side = tuple(map(tuple, pooling)) == ((2, 2), (2, 2), (0, 0), (1, 1))
    return side_by_side and 2 * out_size[0] <= size[0] and 2 * out_size[1] <= size[1]


def choose_max_pool2d(arrays: Any, constants: Any) -> Callable[..., Any]:
    (x_shape, _), (out_shape, _), *_ = arrays
    if whole_windows(x_shape[2:], out_shape[2:], constants):
        return WINDOWS
    return ANY_WINDOWS if constants[1][1] <= 2 and math.prod(x_shape[2:]) < MOST_PIXELS else _with_indices


def choose_max_pool2d_grad_input(arrays: Any, constants: Any) -> Callable[..., Any]:
    (grad_shape, _), _, (x_shape, _) = arrays
    return SPREAD[whole_windows(x_shape[2:], grad_shape[2:], constants)]


def choose_conv2d_max_pool2d(arrays: Any, constants: Any) -> Callable[..., Any]:
    x, weight, bias, out, indices = arrays
    stride, padding, dilation, conv_size, *pooling = constants
    groups = x[0][1] // weight[0][1]
    blocks = fills_lanes(weight[0][0] // groups, weight[0][1], groups, math.prod(weight[0][2:]), x[1])
    few = 0 < math.prod(weight[0][1:]) <= POOLED_TERMS
    if few and not blocks and whole_windows(conv_size, out[0][2:], pooling):
        return POOLED
    z = (x[0][0], weight[0][0], *conv_size), x[1]
    convolution = choose_conv2d(False, (x, weight, bias, z), (stride, padding, dilation))
    return TwoOps(convolution, choose_max_pool2d((z, out, indices), tuple(pooling)), z)


class Pooled(Tiled):
    """The kernel of fused.py, called with the arguments of conv2d_max_pool2d."""

    def run(self, start: int, workers: int, *args: Any) -> None:
        ((_, own),) = self.calls(*args)
        all_finite = self.function(start, workers, *own)
        if not all_finite:
            _two_ops_of_plain_loops(*args)

    def calls(self, *args: Any) -> list[tuple[Tiled, tuple[Any, ...]]]:
        x, weight, bias, stride, padding, dilation, (_, W), *_, out, indices = args
        return [(self, (Conv(stride, padding, dilation), W, x, weight, bias, out, indices))]


class TwoOps:
    """conv2d_max_pool2d as the two ops that it stands for."""

    def __init__(self, convolution: Any, pooling: Any, between: Any) -> None:
        self.convolution, self.pooling, self.between = convolution, pooling, between
        self.packs = getattr(convolution, "packs", {})

    def __call__(self, x: Any, weight: Any, bias: Any, *args: Any) -> None:
        *convolution, _, kernel_size, stride, padding, dilation, out, indices = args
        z = np.empty(*self.between)
        self.convolution(x, weight, bias, *convolution, z)
        self.pooling(z, kernel_size, stride, padding, dilation, out, indices)


def _with_indices(*args: Any) -> None:
    """max_pool2d by the plain loops, which always write indices."""
    *others, out, indices = args
    plain["max_pool2d"](*others, out, indices if indices.size > 0 else np.empty(out.shape, np.int64))


def _two_ops_of_plain_loops(x: Any, weight: Any, bias: Any, *args: Any) -> None:
    """conv2d_max_pool2d where a weight that is not finite would meet padding."""
    *convolution, conv_size, kernel_size, stride, padding, dilation, out, indices = args
    z = np.empty((x.shape[0], weight.shape[0], *conv_size), x.dtype)
    plain["conv2d"](x, weight, bias, *convolution, z)
    _with_indices(z, kernel_size, stride, padding, dilation, out, indices)


WINDOWS = Tiled(pooling.max_pool2d, None, recordable=True)
ANY_WINDOWS = Tiled(pooling.max_pool2d_of_any, None, recordable=True)
SPREAD = {True: Tiled(pooling.spread_whole_windows, None), False: Tiled(pooling.spread_windows, None)}
POOLED = Pooled(fused.conv2d_max_pool2d, None, recordable=True)

CONVOLUTIONS = {
    "conv2d": Choice(partial(choose_conv2d, False)),
    "conv2d_relu": Choice(partial(choose_conv2d, True)),
    "conv2d_grad_input": Choice(choose_grad_input),
    "conv2d_grad_weight": Choice(choose_grad_weight),
    "max_pool2d": Choice(choose_max_pool2d, skips_last=True),
    "max_pool2d_grad_input": Choice(choose_max_pool2d_grad_input),
    "conv2d_max_pool2d": Choice(choose_conv2d_max_pool2d, skips_last=True),
}
