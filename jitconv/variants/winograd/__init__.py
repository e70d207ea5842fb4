"""`jit-winograd`: as `jit-tiled`, but 3×3 convolutions with fewer multiplications than the equation has.

transforms.py has the mathematics, kernels.py the loops, table.py says which shapes are computed so: the rest, and all
other ops, are jit-tiled's. The error has a bound of its own (bounds.py), so this is never the default.
"""

import functools
import math
from typing import Any

import numpy as np

from jitconv.variants import Variant, get
from jitconv.variants.compiling import njit
from jitconv.variants.simd import NR_VECTORS, lanes_of
from jitconv.variants.threads import Kernel
from jitconv.variants.tiled.kernel import Choice
from jitconv.variants.tiled.layout import aligned
from jitconv.variants.tiled.table import TwoOps, choose_max_pool2d
from jitconv.variants.winograd import bounds, filters, kernels
from jitconv.variants.winograd.filters import SKEW, TAPS, Filters
from jitconv.variants.winograd.kernels import Arrays, Launch
from jitconv.variants.winograd.table import Geometry, Pair, Shape, blocking, blocks, geometry_of, method
from jitconv.variants.winograd.transforms import POINTS

RECTIFIED, TRANSPOSED = ("conv2d_relu",), ("conv2d_grad_input",)  # what these ops do beside conv2d

_pack, _convolve = Kernel(njit(filters.pack)), Kernel(njit(kernels.conv2d))


class Pack:
    """Packs weight, (C_out, C_in/groups, 3, 3), for F(m×m, 3×3) or, transposed, for the gradient for the input.

    The result is one array: the transformed filters, then weight itself, for calls with numbers that are not finite;
    weight alone if it has such a number.
    """

    def __init__(self, m: int, groups: int, transposed: bool) -> None:
        self.m, self.groups, self.transposed = m, groups, transposed

    def filters(self, numbers: np.ndarray, shape: Shape) -> Filters:
        """Weight as the convolution sees it: transposed, channels and filters change places and taps are reversed."""
        F, C = shape[0] // self.groups, shape[1]
        if self.transposed:
            return Filters(numbers, F * C * TAPS, TAPS, C * TAPS, TAPS - 1, -1, C, F)
        return Filters(numbers, F * C * TAPS, C * TAPS, TAPS, 0, 1, F, C)

    def __call__(self, weight: np.ndarray) -> np.ndarray:
        source, step = self.filters(weight.reshape(-1), weight.shape), lanes_of(weight.dtype)
        panels, channels = -(-source.K // (NR_VECTORS * step)), -(-source.C // step) * step
        size = self.groups * panels * (self.m + 2) ** 2 * (channels * NR_VECTORS * step + SKEW)
        packed = aligned(size + weight.size, weight)
        packed[size:] = source.numbers
        _pack(POINTS[self.m], source, self.groups, packed[:size])
        return packed[size:] if math.isnan(packed[0]) else packed


pack_for = functools.cache(Pack)  # one function for one way to pack: whoever caches what it packed goes by that


class TiledConvolution:
    """A convolution bound to its shapes: a kernel of its op, whose weight may come packed or not."""

    def __init__(
        self, op: str, plain: Any, m: int, geometry: Geometry, padding: Pair, weight: Shape, dtype: Any
    ) -> None:
        self.plain, self.weight, self.transposed = plain, weight, op in TRANSPOSED
        self.pack = pack_for(m, geometry.groups, self.transposed)
        self.packs = {1: self.pack}
        low, high = dtype.type(0 if op in RECTIFIED else -np.inf), dtype.type(np.inf)
        top, left = (padding[0] - 2, padding[1] - 2) if self.transposed else (-padding[0], -padding[1])
        how = geometry.C, geometry.K, blocks(geometry, m, dtype), *blocking(geometry, m, dtype)
        self.launch = Launch(POINTS[m], *how, top, left, low, high)
        self.no_bias = np.zeros(geometry.K * geometry.groups, dtype)

    def __call__(self, x: np.ndarray, weight: np.ndarray, *args: Any) -> None:
        *bias, _, _, _, out = args
        packed, size = weight if weight.ndim == 1 else self.pack(weight), math.prod(self.weight)
        overflow = np.ones(1, np.bool_)
        if packed.size > size:
            _convolve(self.launch, Arrays(x, packed, bias[0] if bias else self.no_bias, out), overflow)
        if overflow[0]:
            self.plain(x, packed[packed.size - size :].reshape(self.weight), *args)


def choose(op: str, arrays: Any, constants: Any) -> Any:
    """The kernel of conv2d, conv2d_relu or conv2d_grad_input for these arrays: by tiles, or jit-tiled's."""
    (x, dtype), (weight, _), *_, (out, _) = arrays
    stride, padding, dilation = constants
    plain, transposed = _base[op].bind(arrays, constants), op in TRANSPOSED
    geometry = geometry_of(x, weight, out, transposed)
    m = method(geometry, weight, stride, dilation, transposed)
    return plain if m is None else TiledConvolution(op, plain, m, geometry, padding, weight, np.dtype(dtype))


def choose_conv2d_max_pool2d(arrays: Any, constants: Any) -> Any:
    """conv2d_max_pool2d as two ops where the first goes by tiles, else jit-tiled's kernel."""
    x, weight, bias, out, indices = arrays
    stride, padding, dilation, size, *pooling = constants
    z = (x[0][0], weight[0][0], *size), x[1]
    convolution = choose("conv2d", (x, weight, bias, z), (stride, padding, dilation))
    if isinstance(convolution, TiledConvolution):
        return TwoOps(convolution, choose_max_pool2d((z, out, indices), tuple(pooling)), z)
    return _base["conv2d_max_pool2d"].bind(arrays, constants)


_base: Any = get("jit-tiled").ops
_ops = {op: Choice(functools.partial(choose, op)) for op in ("conv2d", *RECTIFIED, *TRANSPOSED)}
_ops["conv2d_max_pool2d"] = Choice(choose_conv2d_max_pool2d, skips_last=True)
_bounds: Any = {"conv2d": bounds.conv2d, "conv2d_grad_input": bounds.conv2d_grad_input}
VARIANTS = (Variant("jit-winograd", "cpu", {**_base, **_ops}, bounds=_bounds),)
